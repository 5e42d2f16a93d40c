"""How well a dictionary stands for vectors, from sums over any number of them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from assay._given import checked
from assay.dictionaries._dictionary import Codes, Dictionary

ROWS = 4_096
"""Vectors that are encoded at a time."""

DENSE = 0.1
"""A feature that is on in more than this share of vectors is dense."""


@dataclass(frozen=True)
class Measures:
    """What a dictionary does on some vectors.

    `rows` is their number. `explained` is 1 - sum |x - x^|^2 / sum |x - mean x|^2, with the mean of these vectors: at
    most 1, higher is better, 0 for their mean and below 0 for anything worse; of a transcoder, x is what it is to give.
    `l0` is the mean number of features that are on, `dead` the share of features that never are (lower is better, and
    more vectors always lower it), `dense` the share that is on in more than a tenth of the vectors. `shrinkage` is
    sum |x^ - b|^2 / sum <x^ - b, x - b>, with b what is decoded of no feature: 1 is unbiased, less is too short
    (arXiv 2404.16014, eq. 10, with b taken off, as without it what b gives hides the rest). Shares and numbers are NaN
    of no vectors.
    """

    rows: int
    explained: float
    l0: float
    dead: float
    dense: float
    shrinkage: float


class Sums:
    """Sums of vectors, their reconstructions and codes, in float64, from which measures are made."""

    def __init__(self, dictionary: Dictionary) -> None:
        self.dictionary = dictionary
        self.rows = 0
        self.on = torch.zeros(dictionary.features, dtype=torch.int64)
        self._centre: Tensor | None = None
        self._first = torch.zeros(dictionary.out, dtype=torch.float64)
        self._square = self._error = self._long = self._along = 0.0

    def add(
        self, vectors: Float[Tensor, "row width"], wanted: Float[Tensor, "row out"] | None = None
    ) -> tuple[Codes, Float[Tensor, "row out"]]:
        """Take in vectors, and what is to be made of them where that is not themselves; gives codes and what it is."""
        codes = self.dictionary.encode(vectors)
        given = self.dictionary.decode(codes, vectors).double().cpu()
        target = (vectors if wanted is None else wanted).double().cpu()
        if self._centre is None and len(target):
            # Squares about something near the mean, or the variance of vectors far from 0 is lost in rounding.
            self._centre = target.mean(dim=0)
        self.rows += len(target)
        self.on += torch.bincount(codes.index.cpu(), minlength=len(self.on))
        moved = target if self._centre is None else target - self._centre
        self._first += moved.sum(dim=0)
        self._square += float(moved.square().sum())
        self._error += float((target - given).square().sum())
        own, base = given - self.dictionary.b_dec.double().cpu(), target - self.dictionary.b_dec.double().cpu()
        self._long += float(own.square().sum())
        self._along += float((own * base).sum())
        return codes, given

    def measures(self) -> Measures:
        """The measures of all that was taken in."""
        if not self.rows:
            return Measures(0, *[float("nan")] * 5)
        variance = self._square - float(self._first.square().sum()) / self.rows
        share = self.on.double() / self.rows
        return Measures(
            rows=self.rows,
            explained=1 - self._error / variance if variance > 0 else float("nan"),
            l0=float(share.sum()),
            dead=float((self.on == 0).double().mean()),
            dense=float((share > DENSE).double().mean()),
            shrinkage=self._long / self._along if self._along else float("nan"),
        )


@checked
def measure(
    dictionary: Dictionary, vectors: Float[Tensor, "row width"], wanted: Float[Tensor, "row out"] | None = None
) -> Measures:
    """The measures of a dictionary on some vectors, and on what is to be made of them where that is not themselves."""
    sums = Sums(dictionary)
    for start in range(0, len(vectors), ROWS):
        rows = slice(start, start + ROWS)
        sums.add(vectors[rows], None if wanted is None else wanted[rows])
    return sums.measures()
