"""Pairs of token sequences that differ in their largest token."""

import math
from dataclasses import dataclass, field

import numpy as np

from assay._errors import AssayError, unknown_name
from assay.tasks._max_of_k import NEAR, MaxOfK
from assay.tasks._task import Split
from assay.tasks._token_pairs import TokenPair, split_of_pairs

LEAST = 8
"""Tokens of the smallest vocabulary of which a quarter is more than one."""


@dataclass(frozen=True)
class MaxOfKPairs:
    """Sequences of max-of-K, and the same with their largest token replaced by a smaller one, wherever it stands.

    The smaller token is uniform over those that leave the counterfactual in the same split: any; in `high_maximum`
    the upper quarter; in `near_ties` those within 2 of the old largest. The answer is the largest token, the foil the
    largest of the counterfactual. Sequences whose largest token cannot be made smaller so are left out.
    Raises AssayError for a vocabulary below 8.
    """

    task: MaxOfK = field(default_factory=MaxOfK)
    seed: int = 0

    primary_kind = MaxOfK.primary_kind
    split_names = MaxOfK.split_names
    kinds = MaxOfK.kinds
    features = MaxOfK.features

    def __post_init__(self) -> None:
        if self.task.vocabulary < LEAST:
            raise AssayError(
                f"MaxOfKPairs(task=MaxOfK(vocabulary={self.task.vocabulary})): must be at least {LEAST}, so that the "
                "upper quarter has a smaller token too."
            )

    @classmethod
    def from_parameters(cls, length: int = 4, vocabulary: int = 64, seed: int = 0) -> "MaxOfKPairs":
        """The pairs of `MaxOfK(length, vocabulary, seed)`."""
        return cls(MaxOfK(length=length, vocabulary=vocabulary, seed=seed), seed)

    @property
    def name(self) -> str:
        """`max-of-K-pairs`."""
        return f"{self.task.name}-pairs"

    def describe(self) -> dict[str, object]:
        """The parameters, as plain values."""
        return {"task": "max-of-k-pairs", "max_of_k": self.task.describe(), "seed": self.seed}

    def split(self, name: str, sequences: int) -> Split:
        """The first `sequences` pairs of a split. Raises AssayError for an unknown split or a number below 1."""
        if name not in self.split_names:
            raise unknown_name("split", name, self.split_names)
        if sequences < 1:
            raise AssayError(f"split({name!r}, sequences={sequences}): must be at least 1.")
        wanted = sequences
        while True:
            whole = self.task.split(name, wanted)
            inputs = whole.tokens[:, : self.task.length]
            largest = inputs.max(axis=1)
            able = np.flatnonzero(largest > self._lowest(name, largest))
            if len(able) >= sequences:
                break
            wanted = math.ceil(1.2 * wanted) + 16
        gaps = whole.features["gap"][:, self.task.length - 1]
        rows = able[:sequences].tolist()
        return split_of_pairs(
            [self._pair(name, row, inputs[row], int(gaps[row])) for row in rows],
            name=name,
            role=whole.role,
            description=f"{whole.description}, the largest token made smaller",
            label=whole.label,
            pad=0,
            names=None,
        )

    def _lowest(self, name: str, largest: np.ndarray) -> np.ndarray:
        """The smallest token that the largest one may become."""
        if name == "high_maximum":
            return np.full_like(largest, self.task.high)
        return np.maximum(largest - NEAR, 0) if name == "near_ties" else np.zeros_like(largest)

    def _pair(self, name: str, row: int, tokens: np.ndarray, gap: int) -> TokenPair:
        rng = np.random.default_rng([self.seed, self.split_names.index(name), row])
        largest = tokens.max()
        smaller = rng.integers(int(self._lowest(name, largest[None])[0]), int(largest))
        counterfactual = np.where(tokens == largest, smaller, tokens)
        foil = int(counterfactual.max())
        return TokenPair(tokens.tolist(), counterfactual.tolist(), int(largest), (foil,), features={"gap": gap})
