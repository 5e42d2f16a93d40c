"""Proofs about one-layer, one-head, attention-only models (max-of-K)."""

from assay.proofs.attention._certify import STRATEGIES, certify_attention
from assay.proofs.attention._proxy import Proxy
from assay.proofs.attention._remainders import REMAINDERS

__all__ = ["REMAINDERS", "STRATEGIES", "Proxy", "certify_attention"]
