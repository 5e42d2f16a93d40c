"""Other models that stand for a subject, run whole: its weights changed by a recipe, and what needs no weights."""

from assay.models._bits import WeightBits, weight_bits
from assay.models._controls import NoiseWeights, RandomFactors, RandomMask
from assay.models._low_rank import LowRankWeights
from assay.models._n_gram import NGram
from assay.models._prune import PruneWeights
from assay.models._round import RoundWeights

__all__ = [
    "LowRankWeights",
    "NGram",
    "NoiseWeights",
    "PruneWeights",
    "RandomFactors",
    "RandomMask",
    "RoundWeights",
    "WeightBits",
    "weight_bits",
]
