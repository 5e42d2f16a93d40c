"""Proofs about linear max-of-n models: accuracy and mean loss over all inputs."""

from assay.proofs.linear._certify import certify_linear
from assay.proofs.linear._coq import coq_development
from assay.proofs.linear._proof import LINEAR_STRATEGIES

__all__ = ["LINEAR_STRATEGIES", "certify_linear", "coq_development"]
