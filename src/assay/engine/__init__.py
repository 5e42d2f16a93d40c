"""How a subject is read and edited: its attention, through transformers' AttentionInterface."""

from assay.engine._attention import Edit, Head, PatternEdit, VectorEdit
from assay.engine._engine import Engine, Run
from assay.engine._proxy import Proxy
from assay.engine._samples import Samples, batches, collect, tensors

__all__ = [
    "Edit",
    "Engine",
    "Head",
    "PatternEdit",
    "Proxy",
    "Run",
    "Samples",
    "VectorEdit",
    "batches",
    "collect",
    "tensors",
]
