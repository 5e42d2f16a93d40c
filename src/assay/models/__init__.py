"""Other models as proxies, recipes on weights, and where models and their stored log-probabilities come from."""

from assay.models._breaks import Breaks, breaks
from assay.models._llama_cpp import (
    Counted,
    Counts,
    LlamaCppFile,
    counting,
    scored_by_llama_cpp,
    through_llama_cpp,
    write_llama_cpp,
)
from assay.models._other import OtherModel
from assay.models._store import SelfKL, Store, StoreWriter

__all__ = [
    "Breaks",
    "Counted",
    "Counts",
    "LlamaCppFile",
    "OtherModel",
    "SelfKL",
    "Store",
    "StoreWriter",
    "breaks",
    "counting",
    "scored_by_llama_cpp",
    "through_llama_cpp",
    "write_llama_cpp",
]
