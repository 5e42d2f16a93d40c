"""What is guaranteed: bounds over all inputs of a set, certificates, and their independent checker."""

from assay.proofs._certificate import Certificate
from assay.proofs._certify import certify, check_options
from assay.proofs._operations import Operations
from assay.proofs.attention import REMAINDERS, STRATEGIES, Proxy
from assay.proofs.linear import LINEAR_STRATEGIES, coq_development

__all__ = [
    "LINEAR_STRATEGIES",
    "REMAINDERS",
    "STRATEGIES",
    "Certificate",
    "Operations",
    "Proxy",
    "certify",
    "check_options",
    "coq_development",
]
