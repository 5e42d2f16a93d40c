"""How long the simplified representation is, so that recipes of different kinds can be drawn on one axis."""

import math
from dataclasses import dataclass

from assay._errors import AssayError
from assay.simplify._controls import Identity, MeanAblation, RandomPerturbation, RandomProjection, UniformAttention
from assay.simplify._kmeans import KMeans
from assay.simplify._one_hot import OneHotAttention
from assay.simplify._protocol import Simplification, label
from assay.simplify._svd import SVD


@dataclass(frozen=True)
class DescriptionLength:
    """A two-part code, in bits: `per_position` for what is said at each position, `codebook` once for all of them.

    Both are for one head (or one block, at a site of blocks).
    """

    per_position: float
    codebook: float


def description_length(
    simplification: Simplification, *, width: int, length: int, vectors: int = 2, precision: int = 16
) -> DescriptionLength:
    """The bits of what a simplification keeps of one head: a two-part code in the sense of minimum description length.

    At each position `vectors` vectors of `width` numbers (2: query and key) are replaced. A number takes `precision`
    bits. Then

    | recipe | per position | codebook |
    |---|---|---|
    | SVD, r directions | vectors · r · precision | width · r · precision, for each basis (and mean) |
    | KMeans, c clusters | vectors · log2 c | vectors · c · width · precision |
    | OneHotAttention | mean of log2 t over positions t = 1 … `length`: which position is attended to | 0 |
    | UniformAttention | 0 | 0 |
    | MeanAblation | 0 | vectors · width · precision |
    | Identity | vectors · width · precision | 0 |

    Controls that are drawn at random cost as much as what they stand for, without the codebook: a seed gives it. A
    recipe of one's own says its length by a method `description_length` with the same arguments. The codes are upper
    bounds: numbers and cluster indices could be coded by their frequencies.

    Source: Rissanen (1978, Automatica 14), two-part codes; that explanations be compared at equal length is the open
    question of arXiv 2312.03656, which does not say how to count. Raises AssayError for a recipe of unknown length.
    """
    own = getattr(simplification, "description_length", None)
    if own is not None:
        found: DescriptionLength = own(width=width, length=length, vectors=vectors, precision=precision)
        return found
    number, one_vector = precision, width * precision
    lengths: tuple[float, float] | None = None
    match simplification:
        case SVD(rank=rank, joint=joint, centred=centred):
            bases = (1 if joint else vectors) * (rank + int(centred))
            lengths = vectors * rank * number, bases * one_vector
        case RandomProjection(rank=rank):
            lengths = vectors * rank * number, 0
        case KMeans(clusters=clusters):
            lengths = vectors * math.log2(clusters), vectors * clusters * one_vector
        case OneHotAttention():
            lengths = sum(map(math.log2, range(1, length + 1))) / length, 0
        case UniformAttention():
            lengths = 0, 0
        case MeanAblation():
            lengths = 0, vectors * one_vector
        case Identity():
            lengths = vectors * one_vector, 0
        case RandomPerturbation(of=of):
            whole = description_length(of, width=width, length=length, vectors=vectors, precision=precision)
            lengths = whole.per_position, 0
    if lengths is not None:
        return DescriptionLength(*map(float, lengths))
    raise AssayError(
        f"the description length of {label(simplification)} is not known; give it a method "
        "description_length(width, length, vectors, precision)."
    )
