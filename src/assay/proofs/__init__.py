"""What is guaranteed: bounds over all inputs of a set, certificates, and their independent checker."""

from assay.proofs._certificate import Certificate
from assay.proofs._certify import certify
from assay.proofs._operations import Operations
from assay.proofs.attention import STRATEGIES, Proxy
from assay.proofs.linear import LINEAR_STRATEGIES, coq_development

__all__ = ["LINEAR_STRATEGIES", "STRATEGIES", "Certificate", "Operations", "Proxy", "certify", "coq_development"]
