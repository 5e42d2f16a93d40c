"""Pairs of bracket sentences that differ in the type of one opening bracket."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from assay._errors import AssayError, unknown_name
from assay.tasks._dyck import FAR, Dyck
from assay.tasks._task import Feature, Kind, Split
from assay.tasks._token_pairs import TokenPair, split_of_pairs

_SPARE = 1.25
"""Sentences read at first for every pair that is asked for; most have a prediction to ask for."""


@dataclass(frozen=True)
class DyckPairs:
    """Sentences of a Dyck task up to one far closing bracket, and the same with its opener of another type.

    Of every sentence one closing bracket at least 10 positions from its opener is drawn (from `seed` and the
    sentence's place in its split), and the sentence is cut before it: that bracket is the answer. In the counterfactual
    its opener has another type, drawn uniformly; the closer of that type is the foil. The bracket itself is not there
    any more, so the two sequences differ in one token. In `unseen_depth` only brackets are drawn before which the
    sentence has been deeper than `max_depth`; else what is left of it would show no such depth.

    The splits are those of the Dyck task, in its order, without the sentences that have no such bracket. `depth` and
    `distance` are those of the closing bracket. Raises AssayError for a task with a single type of brackets.
    """

    dyck: Dyck = field(default_factory=Dyck)
    seed: int = 0

    primary_kind = "closing_far"

    def __post_init__(self) -> None:
        if self.dyck.brackets < 2:
            raise AssayError("DyckPairs(dyck=Dyck(brackets=1)): a bracket has no other type; use brackets=2 or more.")

    @classmethod
    def from_parameters(cls, seed: int = 0, brackets: int = 20, max_depth: int = 10, deeper: int = 20) -> "DyckPairs":
        """The pairs of `Dyck(brackets, max_depth, deeper)`, of which `seed` gives both sentences and draws."""
        return cls(Dyck(brackets=brackets, max_depth=max_depth, deeper=deeper, seed=seed), seed)

    @property
    def name(self) -> str:
        """`dyck-k-m-pairs`."""
        return f"{self.dyck.name}-pairs"

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Far closing brackets, as in the Dyck task."""
        return tuple(kind for kind in self.dyck.kinds if kind.name == self.primary_kind)

    @property
    def features(self) -> tuple[Feature, ...]:
        """Depth and distance of the closing bracket."""
        return tuple(replace(feature, kinds=(self.primary_kind,)) for feature in self.dyck.features)

    @property
    def split_names(self) -> tuple[str, ...]:
        """Those of the Dyck task."""
        return self.dyck.split_names

    def describe(self) -> dict[str, object]:
        """The parameters, as plain values."""
        return {"task": "dyck-pairs", "dyck": self.dyck.describe(), "seed": self.seed}

    def split(self, name: str, sequences: int) -> Split:
        """The first `sequences` pairs of a split; of train fewer, if its sentences have fewer.

        Raises AssayError for an unknown split, a number below 1, a train split without any, and where the Dyck task
        has too few sentences.
        """
        if name not in self.split_names:
            raise unknown_name("split", name, self.split_names)
        if sequences < 1:
            raise AssayError(f"split({name!r}, sequences={sequences}): must be at least 1.")
        most = self.dyck.training_sentences if name == "train" else math.inf
        wanted = math.ceil(_SPARE * sequences) + 32
        while True:
            read = int(min(wanted, most))
            sentences = self.dyck.split(name, read)
            pairs = list(self._pairs(sentences))
            if len(pairs) >= sequences or read == most:
                break
            wanted = math.ceil(_SPARE * read * sequences / max(len(pairs), 1)) + 32
        if not pairs:
            raise AssayError(
                f"no training sentence of {self.dyck.name} has a closing bracket {FAR} positions from its opener; use "
                "more training sentences, or longer ones."
            )
        return split_of_pairs(
            pairs[:sequences],
            name=name,
            role=sentences.role,
            description=f"{sentences.description}, cut before a far closing bracket",
            label=sentences.label,
            pad=self.dyck.pad_id,
            names=sentences.names,
        )

    def _pairs(self, sentences: Split) -> Iterator[TokenPair]:
        far = next(index for index, kind in enumerate(self.dyck.kinds) if kind.name == self.primary_kind)
        depth, distance = sentences.features["depth"], sentences.features["distance"]
        able = sentences.kinds == far
        if sentences.name == "unseen_depth":
            able &= np.maximum.accumulate(depth, axis=1) > self.dyck.max_depth
        split = self.split_names.index(sentences.name)
        for row in np.flatnonzero(able.any(axis=1)).tolist():
            rng = np.random.default_rng([self.seed, split, row])
            at = int(rng.choice(np.flatnonzero(able[row])))
            tokens = sentences.tokens[row, : at + 1]
            # What is known at `at` is of the bracket at `at + 1`.
            opener = at + 1 - int(distance[row, at])
            other = (int(tokens[opener]) + int(rng.integers(1, self.dyck.brackets))) % self.dyck.brackets
            counterfactual = tokens.copy()
            counterfactual[opener] = other
            yield TokenPair(
                tokens.tolist(),
                counterfactual.tolist(),
                answer=self.dyck.brackets + int(tokens[opener]),
                foils=(self.dyck.brackets + other,),
                features={"depth": int(depth[row, at]), "distance": int(distance[row, at])},
            )
