"""How a subject is read and edited: its attention, through transformers' AttentionInterface, its MLPs and residuals."""

from assay.engine._attention import Edit, MapEdit, PatternEdit, VectorEdit
from assay.engine._batches import batches, device_scale, tensors
from assay.engine._engine import Engine
from assay.engine._hook_names import affine_of_hook, site_of_hook
from assay.engine._places import ATTENTION, BLOCK_STREAMS, GRAMMAR, HEAD_STREAMS, Block, Head, Named, Place, Site
from assay.engine._plain import PlainEngine, engine_of
from assay.engine._proxy import (
    NO_ATTENTION,
    Answer,
    Clean,
    EditedSubject,
    Proxy,
    Watch,
    WholeModel,
    answers,
    check_proxy,
)
from assay.engine._run import Run
from assay.engine._samples import Samples, collect
from assay.engine._scored import AtScored
from assay.engine._tail import instead
from assay.engine._together import run_together, shared

__all__ = [
    "ATTENTION",
    "BLOCK_STREAMS",
    "GRAMMAR",
    "HEAD_STREAMS",
    "NO_ATTENTION",
    "Answer",
    "AtScored",
    "Block",
    "Clean",
    "Edit",
    "EditedSubject",
    "Engine",
    "Head",
    "MapEdit",
    "Named",
    "PatternEdit",
    "Place",
    "PlainEngine",
    "Proxy",
    "Run",
    "Samples",
    "Site",
    "VectorEdit",
    "Watch",
    "WholeModel",
    "affine_of_hook",
    "answers",
    "batches",
    "check_proxy",
    "collect",
    "device_scale",
    "engine_of",
    "instead",
    "run_together",
    "shared",
    "site_of_hook",
    "tensors",
]
