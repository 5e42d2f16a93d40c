"""What is asked of an explanation beside a comparison: functions from an explanation to a record."""

from assay.diagnostics._areas import Areas, area_from_one, area_under, areas
from assay.diagnostics._fidelity import RobustFidelity, robust_fidelity
from assay.diagnostics._knock_outs import Completeness, EdgeEffect, KnockOut, Minimality, completeness, minimality
from assay.diagnostics._overlap import Overlap, Stability, overlap, stability
from assay.diagnostics._setting import Estimate

__all__ = [
    "Areas",
    "Completeness",
    "EdgeEffect",
    "Estimate",
    "KnockOut",
    "Minimality",
    "Overlap",
    "RobustFidelity",
    "Stability",
    "area_from_one",
    "area_under",
    "areas",
    "completeness",
    "minimality",
    "overlap",
    "robust_fidelity",
    "stability",
]
