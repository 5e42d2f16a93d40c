"""Other models as proxies, recipes on weights, and where models and their stored log-probabilities come from."""

from assay.models._bits import WeightBits, weight_bits
from assay.models._breaks import LARGE, Breaks, breaks
from assay.models._controls import NoiseWeights, RandomFactors, RandomMask
from assay.models._counted import CONTEXT, count_like_llama_cpp, cut_like_llama_cpp
from assay.models._llama_cpp import (
    Counted,
    Counts,
    LlamaCppFile,
    counting,
    scored_by_llama_cpp,
    through_llama_cpp,
    write_llama_cpp,
)
from assay.models._low_rank import LowRankWeights
from assay.models._n_gram import NGram
from assay.models._other import OtherModel
from assay.models._prune import PruneWeights
from assay.models._round import RoundWeights
from assay.models._rule_surrogate import RuleProxy, RuleSurrogate
from assay.models._store import SelfKL, Store, StoreWriter
from assay.models._stored import StoredModel, is_stored, store_model

__all__ = [
    "CONTEXT",
    "LARGE",
    "Breaks",
    "Counted",
    "Counts",
    "LlamaCppFile",
    "LowRankWeights",
    "NGram",
    "NoiseWeights",
    "OtherModel",
    "PruneWeights",
    "RandomFactors",
    "RandomMask",
    "RoundWeights",
    "RuleProxy",
    "RuleSurrogate",
    "SelfKL",
    "Store",
    "StoreWriter",
    "StoredModel",
    "WeightBits",
    "breaks",
    "count_like_llama_cpp",
    "counting",
    "cut_like_llama_cpp",
    "is_stored",
    "scored_by_llama_cpp",
    "store_model",
    "through_llama_cpp",
    "weight_bits",
    "write_llama_cpp",
]
