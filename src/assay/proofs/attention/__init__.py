"""Proofs about one-layer, one-head, attention-only models (max-of-K)."""

from assay.proofs.attention._agreement import count_disagreements
from assay.proofs.attention._boxes import correct_in_boxes, cubic
from assay.proofs.attention._brute import brute_force
from assay.proofs.attention._count import count_groups
from assay.proofs.attention._groups import suspicious_groups
from assay.proofs.attention._one_hot import OneHot, with_hard_attention
from assay.proofs.attention._proxy import Proxy, proxy_record, proxy_tables
from assay.proofs.attention._search import count_wrong
from assay.proofs.attention._tables import Tables, make_tables, read_weights

__all__ = [
    "OneHot",
    "Proxy",
    "Tables",
    "brute_force",
    "correct_in_boxes",
    "count_disagreements",
    "count_groups",
    "count_wrong",
    "cubic",
    "make_tables",
    "proxy_record",
    "proxy_tables",
    "read_weights",
    "suspicious_groups",
    "with_hard_attention",
]
