"""How many bits the simplified representation has, so that recipes of different kinds can be drawn on one axis."""

import math
from dataclasses import dataclass

from assay._errors import AssayError
from assay.simplify._controls import Identity, MeanAblation, RandomPerturbation, RandomProjection, UniformAttention
from assay.simplify._interaction_basis import InteractionBasis
from assay.simplify._kmeans import KMeans
from assay.simplify._one_hot import OneHotAttention
from assay.simplify._protocol import Simplification, label
from assay.simplify._svd import SVD


@dataclass(frozen=True)
class RepresentationBits:
    """Bits of a representation of one head (or one block, at a site of blocks).

    `per_position` is what is kept at each position, enough to compute the simplified head from; `codebook` is kept once
    for all positions. `stated` is what it takes at a position to state the simplified pattern itself to one who cannot
    compute it, where it is one of finitely many; None where it is not.
    """

    per_position: float
    codebook: float
    stated: float | None = None

    def spread(self, positions: int) -> float:
        """Bits a position with the codebook, its bits spread over so many positions."""
        return self.per_position + self.codebook / positions


def representation_bits(
    simplification: Simplification, *, width: int, length: int, vectors: int = 2, precision: int = 16
) -> RepresentationBits:
    """The bits of what a simplification keeps of one head: of the representation, and of nothing else.

    What the proxy gets wrong is not paid for: no bits are counted that would correct it to the subject, so this is only
    the first part of a two-part code in the sense of minimum description length, and the shortest representation is not
    the best explanation. Read it beside agreement.

    At each position `vectors` vectors of `width` numbers (2: query and key) are replaced. A number takes `precision`
    bits. Then

    | recipe | per position | codebook | stated |
    |---|---|---|---|
    | SVD, r directions | vectors · r · precision | width · r · precision, for each basis (and mean) | |
    | InteractionBasis, r features | vectors · r · precision | vectors · width · (2 r + 1) · precision | |
    | KMeans, c clusters | vectors · log2 c | vectors · c · width · precision | |
    | OneHotAttention | vectors · width · precision | 0 | mean of log2 t over positions t = 1 … `length` |
    | UniformAttention | 0 | 0 | 0 |
    | MeanAblation | 0 | vectors · width · precision | |
    | Identity | vectors · width · precision | 0 | |

    An interaction basis is oblique: what reads its features and what makes vectors of them are two matrices.

    One-hot attention keeps whole queries and keys, for their scores choose the position that is attended to: whoever
    has log2 t bits knows which one it was, but cannot find the next.

    A random projection of the same rank needs no codebook: a seed gives its basis. A random perturbation is counted as
    what it stands beside, without the codebook. A recipe of one's own gives its bits by a method `representation_bits`
    with the same arguments. All are upper bounds: numbers and cluster indices could be coded by their frequencies.

    Source: Rissanen (1978, Automatica 14), for the two parts; that explanations be compared at equal length is the open
    question of arXiv 2312.03656, which does not say how to count. Raises AssayError for a recipe of unknown bits.
    """
    own = getattr(simplification, "representation_bits", None)
    if own is not None:
        given: RepresentationBits = own(width=width, length=length, vectors=vectors, precision=precision)
        return given
    one_vector = width * precision
    found: tuple[float, float] | None = None
    stated: float | None = None
    match simplification:
        case SVD(rank=rank, joint=joint, centred=centred):
            bases = (1 if joint else vectors) * (rank + int(centred))
            found = vectors * rank * precision, bases * one_vector
        case InteractionBasis(features=features):
            found = vectors * features * precision, vectors * (2 * features + 1) * one_vector
        case RandomProjection(rank=rank):
            found = vectors * rank * precision, 0
        case KMeans(clusters=clusters):
            found = vectors * math.log2(clusters), vectors * clusters * one_vector
        case OneHotAttention():
            found, stated = (vectors * one_vector, 0), sum(map(math.log2, range(1, length + 1))) / length
        case UniformAttention():
            found, stated = (0, 0), 0.0
        case MeanAblation():
            found = 0, vectors * one_vector
        case Identity():
            found = vectors * one_vector, 0
        case RandomPerturbation(of=of):
            whole = representation_bits(of, width=width, length=length, vectors=vectors, precision=precision)
            found, stated = (whole.per_position, 0), whole.stated
    if found is not None:
        return RepresentationBits(float(found[0]), float(found[1]), stated)
    raise AssayError(
        f"the bits of {label(simplification)} are not known; give it a method "
        "representation_bits(width, length, vectors, precision)."
    )
