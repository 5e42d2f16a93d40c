"""What is asked of an explanation beside a comparison: functions from an explanation to a record."""

from assay.diagnostics._areas import Areas, area_from_one, area_under, areas
from assay.diagnostics._setting import Estimate

__all__ = [
    "Areas",
    "Estimate",
    "area_from_one",
    "area_under",
    "areas",
]
