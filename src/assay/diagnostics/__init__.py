"""What is asked of an explanation beside a comparison: functions from an explanation to a record."""

from assay.diagnostics._absorption import absorption
from assay.diagnostics._areas import Areas, area_from_one, area_under, areas
from assay.diagnostics._attribution_claims import AttributionClaims, attribution_claims
from assay.diagnostics._concept_check import ConceptCheck, concept_check
from assay.diagnostics._concept_shift import Account, Concept, ConceptShift, concept_shift
from assay.diagnostics._descriptions import described
from assay.diagnostics._features import TopSequence, TopSequences, feature_use, telling_features, top_sequences
from assay.diagnostics._fidelity import RobustFidelity, robust_fidelity
from assay.diagnostics._function_errors import FunctionErrors, function_errors
from assay.diagnostics._illusion import Part, SubspacePatch, subspace_patch
from assay.diagnostics._knock_outs import Completeness, EdgeEffect, KnockOut, Minimality, completeness, minimality
from assay.diagnostics._mlp_subspaces import aligned_subspace, mlp_patch
from assay.diagnostics._overlap import Overlap, Stability, overlap, stability
from assay.diagnostics._probe_sets import ProbeSetDependence, probe_set_dependence
from assay.diagnostics._reconstruction import loss_recovered, reconstruction
from assay.diagnostics._removal import Removal, removal
from assay.diagnostics._reuse import ComponentReuse, Reuse, component_importances, component_reuse
from assay.diagnostics._setting import Estimate
from assay.diagnostics._simulatability import Explained, Simulatability, simulatability
from assay.diagnostics._subspace_gap import subspace_gap
from assay.diagnostics._transcoder_paths import transcoder_paths

__all__ = [
    "Account",
    "Areas",
    "AttributionClaims",
    "Completeness",
    "ComponentReuse",
    "Concept",
    "ConceptCheck",
    "ConceptShift",
    "EdgeEffect",
    "Estimate",
    "Explained",
    "FunctionErrors",
    "KnockOut",
    "Minimality",
    "Overlap",
    "Part",
    "ProbeSetDependence",
    "Removal",
    "Reuse",
    "RobustFidelity",
    "Simulatability",
    "Stability",
    "SubspacePatch",
    "TopSequence",
    "TopSequences",
    "absorption",
    "aligned_subspace",
    "area_from_one",
    "area_under",
    "areas",
    "attribution_claims",
    "completeness",
    "component_importances",
    "component_reuse",
    "concept_check",
    "concept_shift",
    "described",
    "feature_use",
    "function_errors",
    "loss_recovered",
    "minimality",
    "mlp_patch",
    "overlap",
    "probe_set_dependence",
    "reconstruction",
    "removal",
    "robust_fidelity",
    "simulatability",
    "stability",
    "subspace_gap",
    "subspace_patch",
    "telling_features",
    "top_sequences",
    "transcoder_paths",
]
