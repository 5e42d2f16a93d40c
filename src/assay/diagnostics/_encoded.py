"""What diagnostics of single features share: the dictionary that is meant, and its vectors, batch by batch."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assay._errors import AssayError, unknown_name
from assay.diagnostics._reconstruction import judged_splits
from assay.dictionaries import Codes, Dictionary
from assay.engine import Engine, Head, Place, Run, batches, tensors
from assay.simplify import Simplification, label
from assay.tasks import Split, Task


@dataclass(frozen=True)
class Batch:
    """Some sequences of a split: their numbers there, and of every valid token its vector and codes, in order.

    `wanted` is what is to be decoded: the vectors themselves, or what the MLP gives that a transcoder stands for.
    """

    index: Int[np.ndarray, " sequence"]
    split: Split
    vectors: Float[Tensor, "row width"]
    wanted: Float[Tensor, "row out"]
    dictionary: Dictionary

    @cached_property
    def codes(self) -> Codes:
        """The codes of the vectors."""
        return self.dictionary.encode(self.vectors)

    @property
    def valid(self) -> Bool[np.ndarray, "sequence position"]:
        """Which places hold a token."""
        return self.split.valid.astype(bool)

    @property
    def sequence(self) -> Int[np.ndarray, " row"]:
        """The number of the sequence of every row, in the whole split."""
        return np.broadcast_to(self.index[:, None], self.valid.shape)[self.valid]

    @property
    def position(self) -> Int[np.ndarray, " row"]:
        """The position of every row in its sequence."""
        return np.nonzero(self.valid)[1]


@dataclass(frozen=True)
class Encoded:
    """A dictionary, and the stream of a place whose vectors it encodes (of a transcoder, what enters the MLP)."""

    place: Place
    stream: str
    dictionary: Dictionary

    @property
    def name(self) -> str:
        """Place and stream, as a site has them."""
        return f"{self.place}.{self.stream}"

    @property
    def reads(self) -> str:
        """The stream that is encoded."""
        return "mlp_input" if self.dictionary.transcodes else self.stream

    def checked(self, feature: int) -> int:
        """A feature that there is. Raises AssayError for any other."""
        if isinstance(feature, bool) or not isinstance(feature, int | np.integer):
            raise AssayError(f"feature {feature!r}: features are named by their numbers, from 0.")
        if not 0 <= feature < self.dictionary.features:
            raise AssayError(
                f"feature {feature}: the dictionary at {self.name} has features 0 to {self.dictionary.features - 1}."
            )
        return int(feature)

    def check_not_normalizing(self, why: str) -> None:
        """Raise AssayError for an autoencoder that normalizes vectors; what a transcoder decodes stays as it is."""
        if self.dictionary.normalization is not None and not self.dictionary.transcodes:
            raise AssayError(
                f"the dictionary at {self.name} normalizes every vector ({self.dictionary.normalization}), and what "
                f"its features make of the vector itself differs from vector to vector: {why} for it."
            )

    def batches(self, engine: Engine, split: Split) -> Iterator[Batch]:
        """The vectors and codes of a split."""
        names = tuple(dict.fromkeys((self.reads, self.stream)))
        with engine.ready():
            for index, batch in batches(engine, split):
                tokens, valid = tensors(batch, engine.subject.device)
                run = engine.run(tokens, valid, read=names, layers=(self.place.layer,), logits=False)
                found = [self._rows(run, name, batch.valid.astype(bool)) for name in names]
                yield Batch(index, batch, found[0], found[-1], self.dictionary)

    def _rows(self, run: Run, stream: str, valid: Bool[np.ndarray, "sequence position"]) -> Float[Tensor, "row width"]:
        """The vectors of a stream at the valid tokens of a run."""
        states: Tensor = getattr(run, stream)[self.place.layer]
        if isinstance(self.place, Head):
            states = states[:, self.place.head]
        return states[torch.from_numpy(valid).to(states.device)].detach()


def all_encoded(simplification: Simplification) -> list[Encoded]:
    """Every dictionary of a fitted recipe. Raises AssayError for one that has none, or was not fitted."""
    if not hasattr(simplification, "dictionaries_"):
        raise AssayError(
            f"{label(simplification)} has no features; give a dictionary, such as SparseAutoencoder or GivenDictionary."
        )
    fitted: Mapping[Place, Sequence[Dictionary]] | None = simplification.dictionaries_
    streams: Mapping[Place, Sequence[str]] = getattr(simplification, "streams_", None) or {}
    if not fitted:
        raise AssayError(f"{label(simplification)} has not been fitted; call fit(samples) first.")
    return [
        Encoded(place, stream, one)
        for place, own in fitted.items()
        for stream, one in zip(streams[place], own, strict=True)
    ]


def encoded(simplification: Simplification, place: str | None) -> Encoded:
    """The dictionary of a fitted recipe at a place ("layer2.residual"), which may be left out where there is one.

    Raises AssayError for a recipe without dictionaries, an unknown place, and none where there are several.
    """
    found = {one.name: one for one in all_encoded(simplification)}
    if place is None and len(found) == 1:
        return next(iter(found.values()))
    if place is None:
        raise AssayError(f"{label(simplification)} has dictionaries at {', '.join(found)}; say which by place=.")
    if place not in found:
        raise unknown_name("place", place, found)
    return found[place]


def chosen_splits(task: Task, names: Collection[str] | None, sequences: int) -> list[Split]:
    """The named splits, in their order; by default those that explanations are judged on, iid first.

    Raises AssayError for a name that the task does not have.
    """
    if names is None:
        return judged_splits(task, sequences)
    for name in names:
        if name not in task.split_names:
            raise unknown_name("split", name, task.split_names)
    return [task.split(name, sequences) for name in names]
