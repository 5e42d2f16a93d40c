"""Max-of-K: name the largest of K tokens.

The task of "Compact Proofs of Model Performance via Mechanistic Interpretability" (arXiv 2406.11779, §3): K tokens,
each uniform over the vocabulary; after the last one the model must predict the largest. An `InputSet` is a set of such
sequences whose size is known exactly, which is what a certificate makes a statement about.
"""

from dataclasses import dataclass
from math import comb

import numpy as np
from jaxtyping import Int

from assay._errors import AssayError, unknown_name
from assay._given import check_fields, checked
from assay.tasks._task import UNSCORED, Feature, Kind, Role, Split

NEAR = 2
"""In the split `near_ties` all tokens lie within this distance of the largest."""

_LARGEST = 10**6
"""Tokens times positions of an input set: its size, a sum over tokens of powers, is exact and takes seconds at most."""


@dataclass(frozen=True)
class InputSet:
    """All sequences of `length` tokens out of `vocabulary` that satisfy every condition given.

    `minimum_maximum`: the largest token is at least this. `within`: every token is at least the largest minus this.
    `copies`: exactly this many tokens equal the largest. Without conditions it is the set of all sequences.

    Raises AssayError if a condition is out of range or no sequence satisfies them.
    """

    length: int
    vocabulary: int
    minimum_maximum: int = 0
    within: int | None = None
    copies: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        for name, value, low, high in (
            ("length", self.length, 1, None),
            ("vocabulary", self.vocabulary, 1, None),
            ("minimum_maximum", self.minimum_maximum, 0, self.vocabulary - 1),
            ("within", self.within, 0, None),
            ("copies", self.copies, 1, self.length),
        ):
            if value is not None and (value < low or (high is not None and value > high)):
                limit = f"at least {low}" if high is None else f"between {low} and {high}"
                raise AssayError(f"InputSet({name}={value}): must be {limit}.")
        if self.length * self.vocabulary > _LARGEST:
            raise AssayError(
                f"InputSet(length={self.length}, vocabulary={self.vocabulary}): their product must be at most "
                f"{_LARGEST}, or the number of sequences could not be worked out."
            )
        if self.size == 0:
            raise AssayError(f"{self!r} is empty; loosen a condition.")

    @property
    def maxima(self) -> range:
        """The values the largest token can take."""
        return range(self.minimum_maximum, self.vocabulary)

    def lowest(self, maximum: int) -> int:
        """The smallest token allowed beside the largest token `maximum`."""
        return 0 if self.within is None else max(0, maximum - self.within)

    def count(self, maximum: int) -> int:
        """How many sequences of the set have this largest token, exactly."""
        if maximum not in self.maxima:
            return 0
        smaller = maximum - self.lowest(maximum)
        if self.copies is not None:
            return comb(self.length, self.copies) * smaller ** (self.length - self.copies)
        return (smaller + 1) ** self.length - smaller**self.length

    @property
    def size(self) -> int:
        """How many sequences the set has, exactly."""
        return sum(self.count(maximum) for maximum in self.maxima)

    def contains(self, tokens: Int[np.ndarray, "sequence position"]) -> np.ndarray:
        """For each sequence, whether it belongs to the set."""
        maximum = tokens.max(axis=1, keepdims=True)
        inside = (tokens.min(axis=1) >= 0) & (maximum[:, 0] < self.vocabulary) & (maximum[:, 0] >= self.minimum_maximum)
        if self.within is not None:
            inside &= (tokens >= maximum - self.within).all(axis=1)
        if self.copies is not None:
            inside &= (tokens == maximum).sum(axis=1) == self.copies
        return inside

    def describe(self) -> str:
        """The set in words."""
        conditions = []
        if self.minimum_maximum:
            conditions.append(f"the largest token is at least {self.minimum_maximum}")
        if self.within is not None:
            conditions.append(f"every token is within {self.within} of the largest")
        if self.copies is not None:
            conditions.append(f"exactly {self.copies} tokens equal the largest")
        suffix = " in which " + " and ".join(conditions) if conditions else ""
        return f"all sequences of {self.length} tokens out of {self.vocabulary}{suffix}"


@dataclass(frozen=True)
class MaxOfK:
    """Sequences of `length` uniform tokens, followed by the largest of them (arXiv 2406.11779, §3).

    | split | sequences |
    |---|---|
    | train, iid | uniform over all sequences |
    | high_maximum | uniform, given that the largest token is in the upper quarter of the vocabulary |
    | near_ties | the largest token uniform, the others uniform within 2 of it |

    One prediction a sequence is scored: that of the answer, made at position `length - 1`. Its `gap` is the largest
    token minus the largest smaller one (0 if all tokens are equal).
    """

    length: int = 4
    vocabulary: int = 64
    seed: int = 0

    primary_kind = "maximum"
    split_names = ("train", "iid", "high_maximum", "near_ties")
    kinds = (Kind("maximum", "the largest of the tokens before"),)
    features = (Feature("gap", "largest token minus the largest smaller one", ("maximum",), (0, 1, 2, 4, 8, 16, 32)),)

    def __post_init__(self) -> None:
        check_fields(self)
        for name, value, low in (("length", self.length, 2), ("vocabulary", self.vocabulary, 2)):
            if value < low:
                raise AssayError(f"MaxOfK({name}={value}): must be at least {low}.")

    @property
    def name(self) -> str:
        """`max-of-K`, with the vocabulary where it is not 64."""
        return f"max-of-{self.length}" + ("" if self.vocabulary == 64 else f"-vocabulary-{self.vocabulary}")

    def describe(self) -> dict[str, object]:
        """The parameters, as plain values."""
        return {"task": "max-of-k", "length": self.length, "vocabulary": self.vocabulary, "seed": self.seed}

    @property
    def high(self) -> int:
        """The smallest token of the upper quarter of the vocabulary."""
        return self.vocabulary - max(1, self.vocabulary // 4)

    @checked
    def sample(self, rng: np.random.Generator, count: int) -> Int[np.ndarray, "count length"]:
        """Uniform sequences, without the answer."""
        return rng.integers(self.vocabulary, size=(count, self.length))

    def _draw(self, name: str, rng: np.random.Generator, count: int) -> np.ndarray:
        if name == "high_maximum":
            kept: list[np.ndarray] = []
            while sum(map(len, kept)) < count:
                drawn = self.sample(rng, 4 * count + 64)
                kept.append(drawn[drawn.max(axis=1) >= self.high])
            return np.concatenate(kept)[:count]
        if name == "near_ties":
            maximum = rng.integers(self.vocabulary, size=(count, 1))
            tokens = np.maximum(maximum - rng.integers(NEAR + 1, size=(count, self.length)), 0)
            tokens[np.arange(count), rng.integers(self.length, size=count)] = maximum[:, 0]
            return tokens
        return self.sample(rng, count)

    @checked
    def split(self, name: str, sequences: int) -> Split:
        """The first `sequences` sequences of a split, each followed by its answer.

        Raises AssayError for an unknown split or a number below 1.
        """
        roles: dict[str, tuple[Role, str, str]] = {
            "train": ("train", "training", "uniform sequences"),
            "iid": ("iid", "like training", "fresh uniform sequences"),
            "high_maximum": ("shift", "large maximum", "the largest token is in the upper quarter of the vocabulary"),
            "near_ties": ("shift", "near ties", f"all tokens are within {NEAR} of the largest"),
        }
        if name not in roles:
            raise unknown_name("split", name, roles)
        if sequences < 1:
            raise AssayError(f"split({name!r}, sequences={sequences}): must be at least 1.")
        chunk, drawn, index = 4096, [], 0
        while index * chunk < sequences:
            rng = np.random.default_rng([self.seed, 1 + self.split_names.index(name), index])
            drawn.append(self._draw(name, rng, chunk))
            index += 1
        inputs = np.concatenate(drawn)[:sequences]
        ordered = np.sort(inputs, axis=1)
        largest = ordered[:, -1]
        smaller = np.where(ordered < largest[:, None], ordered, -1).max(axis=1)
        kinds = np.full((sequences, self.length + 1), UNSCORED, dtype=np.int64)
        kinds[:, -2] = 0
        gap = np.zeros_like(kinds)
        gap[:, -2] = np.where(smaller < 0, 0, largest - smaller)
        role, label, description = roles[name]
        return Split(
            name=name,
            role=role,
            description=description,
            label=label,
            tokens=np.column_stack([inputs, largest]),
            lengths=np.full(sequences, self.length + 1),
            kinds=kinds,
            features={"gap": gap},
        )
