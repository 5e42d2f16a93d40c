"""A dictionary whose decoder is fitted again in closed form on a few vectors, its encoder kept as it is."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from assay._errors import AssayError
from assay._given import checked
from assay.dictionaries._dictionary import Dictionary
from assay.dictionaries._given import GivenDictionary
from assay.engine import Place, Samples
from assay.simplify import label
from assay.simplify._protocol import check_positive


def principal(moment: Float[Tensor, "width width"], rank: int) -> Float[Tensor, "width rank"]:
    """The `rank` directions of the largest eigenvalues of a symmetric matrix, the largest first."""
    return torch.linalg.eigh(moment).eigenvectors.flip(1)[:, :rank]


@checked
def realigned(
    dictionary: Dictionary,
    vectors: Float[Tensor, "row width"],
    wanted: Float[Tensor, "row out"],
    *,
    rank: int | None = None,
    ridge: float = 1.0,
) -> Dictionary:
    """A dictionary's decoder turned to the directions that vectors vary in, and fitted there; codes stay what they are.

    With W the decoder (a row a feature), U its `rank` leading directions (right singular vectors) and V those of the
    covariance of `wanted`, the decoder is first turned, W' = W U R^T V^T, with R the rotation nearest to V^T U
    (orthogonal Procrustes). Then, among decoders whose rows lie in the span of V, that is taken which minimizes

        sum |y - y mean - (z - z mean) D|^2 + ridge m |D - W'|^2

    over the rows, with y what is wanted (without what a skip connection gives), z the codes and m the mean of
    |z - z mean|^2 over rows. A feature that is never on keeps its turned direction; b_dec takes the means. With a
    `rank` of the whole width (None) nothing is turned or left out, and the fit is all that there is.

    Source: the Geometry-Adaptive Explainer (arXiv 2605.21849 and its code). Differences: the turned decoder is the only
    prior, its strength relative to the codes' size; rows lie in the span exactly, in place of a penalty. Raises
    AssayError for a rank that the decoder does not have, a ridge that is not above 0, fewer than two rows, and an
    autoencoder that normalizes vectors.
    """
    out = dictionary.out
    rank = out if rank is None else rank
    if not 1 <= rank <= min(out, dictionary.features):
        raise AssayError(
            f"rank={rank}: a decoder of {dictionary.features} features in {out} numbers has 1 to "
            f"{min(out, dictionary.features)} directions."
        )
    if not ridge > 0 or len(vectors) < 2:
        raise AssayError(f"ridge={ridge} and {len(vectors)} vectors: give a ridge above 0, and at least 2 vectors.")
    if dictionary.normalization is not None and not dictionary.transcodes:
        raise AssayError(
            f"this dictionary normalizes every vector ({dictionary.normalization}), so that its decoder has no one "
            "place in their space; it cannot be realigned."
        )
    double = torch.float64
    codes = dictionary.encode(vectors).dense().to(double)
    base = dictionary.without_features(vectors.to(double)) - dictionary.b_dec.to(double)
    target = wanted.to(double) - base
    moved, on = target - target.mean(dim=0), codes - codes.mean(dim=0)
    decoder = dictionary.W_dec.to(double)
    own = principal(decoder.T @ decoder, rank)
    new = principal(moved.T @ moved, rank)
    left, _, right = torch.linalg.svd(new.T @ own)
    turned = decoder @ own @ (left @ right).T  # in coordinates of the new directions
    inner = on @ on.T
    strength = ridge * inner.diagonal().mean().clamp_min(torch.finfo(double).tiny)
    solved = torch.linalg.solve(inner + strength * torch.eye(len(inner), dtype=double), moved @ new - on @ turned)
    W_dec = (turned + on.T @ solved) @ new.T
    b_dec = target.mean(dim=0) - codes.mean(dim=0) @ W_dec
    # b_dec changes, and what is encoded must not.
    like = dictionary.W_dec
    return replace(dictionary.without_pre_bias(), W_dec=W_dec.to(like), b_dec=b_dec.to(like))


@dataclass
class RealignedDictionary(GivenDictionary):
    """A dictionary of files whose decoder is fitted again in closed form on `rows` vectors of the split to fit on.

    What `realigned` says: the encoder stays, and so do codes and what features are named by; no gradients, no labels.
    In a comparison, what stands beside it as fitted on a shift says how much of a dictionary's loss there is the
    decoder's, for a few thousand vectors; on the train split it changes little. `rank` is that of the directions that
    the decoder is turned to, by default all; `ridge` how strongly the old decoder is held to; `seed` draws the rows.

    Raises AssayError as `GivenDictionary` and `realigned` do.
    """

    rank: int | None = None
    ridge: float = 1.0
    rows: int = 2_000
    seed: int = 0

    learns: ClassVar[bool] = True
    streams_rows: ClassVar[bool] = True

    @property
    def title(self) -> str:
        """What it is, and how it is fitted."""
        rank = "" if self.rank is None else f"rank {self.rank}, "
        return f"{super().title} realigned ({rank}{self.rows:,} vectors)"

    def describe(self) -> dict[str, Any]:
        """What the record keeps of it."""
        return {**super().describe(), **self._parameters}

    @property
    def _parameters(self) -> dict[str, Any]:
        return {"rank": self.rank, "ridge": self.ridge, "rows": self.rows, "seed": self.seed}

    def made(self, own: Dictionary, samples: Samples, place: Place, stream: str) -> Dictionary:
        """The dictionary realigned on some vectors of a place."""
        check_positive(self, rows=self.rows)
        streams = ("mlp_input", stream) if own.transcodes else (stream,)
        found = samples.some(place, self.rows, seed=self.seed, streams=streams)
        try:
            return realigned(own, found[0], found[-1], rank=self.rank, ridge=self.ridge)
        except AssayError as error:
            raise AssayError(f"{label(self)} at {place}.{stream}: {error}") from None

    def saved(self) -> dict[str, Any]:
        """All that it holds."""
        kept = super().saved()
        return {**kept, "parameters": {**kept["parameters"], **self._parameters}}
