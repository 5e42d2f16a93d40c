"""Rows of vectors, read from a subject as they are needed: all at once where they fit into memory, else bit by bit."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assay.engine._batches import batches, tensors
from assay.engine._engine import Engine
from assay.engine._places import Head, Place
from assay.engine._run import Run
from assay.tasks import Split

Wanted = Mapping[Place, Sequence[str]]
"""Which streams of which places."""

Rows = tuple[Float[Tensor, "row _"], ...]
"""The same rows of one or several streams, one tensor a stream, in float32 on the CPU."""

LARGEST = 1_000_000_000
"""The most bytes of rows that are held."""

BUFFER = 2**18
"""The most rows that are held of what does not fit as a whole."""


def read_rows(
    engine: Engine, split: Split, wanted: Wanted, keep: Bool[np.ndarray, "sequence position"] | None = None
) -> dict[tuple[Place, str], Float[Tensor, "row _"]]:
    """The vectors at the valid positions of a split, or at those to `keep`, the shortest sequences first."""
    names, layers = _names(wanted), {place.layer for place in wanted}
    parts: dict[tuple[Place, str], list[Tensor]] = {(place, name): [] for place in wanted for name in wanted[place]}
    chosen = split.valid if keep is None else keep
    for index, batch in batches(engine, split) if names else ():
        tokens, valid = tensors(batch, engine.subject.device)
        run = engine.run(tokens, valid, read=names, layers=layers, logits=False)
        here = torch.from_numpy(chosen[index, : tokens.shape[1]]).to(tokens.device)
        for (place, name), found in parts.items():
            found.append(_vectors(run, place, name)[here].float().cpu())
    return {key: torch.cat(found) for key, found in parts.items()}


def bytes_a_row(engine: Engine, wanted: Wanted) -> int:
    """How many bytes the vectors of one position take."""
    names, layers = _names(wanted), {place.layer for place in wanted}
    if not names:
        return 0
    run = engine.run(engine.few_tokens(), read=names, layers=layers, logits=False)
    return sum(4 * _vectors(run, place, name).shape[-1] for place in wanted for name in wanted[place])


def _names(wanted: Wanted) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for streams in wanted.values() for name in streams))


def _vectors(run: Run, place: Place, name: str) -> Float[Tensor, "batch position _"]:
    by_layer: dict[int, Tensor] = getattr(run, name)
    return by_layer[place.layer][:, place.head] if isinstance(place, Head) else by_layer[place.layer]


def shuffled(rows: Rows, batch: int, seed: int) -> Iterator[Rows]:
    """Batches of rows in random order without end, every row once an epoch."""
    rng = np.random.default_rng(seed)
    left = np.zeros(0, dtype=np.int64)
    while True:
        while len(left) < batch:
            left = np.concatenate((left, rng.permutation(len(rows[0]))))
        index = torch.from_numpy(left[:batch])
        yield tuple(own[index] for own in rows)
        left = left[batch:]


class Reader:
    """Reads rows of a subject on a split; of what fits into `largest` bytes, what was asked for last stays."""

    def __init__(self, engine: Engine, split: Split, largest: int) -> None:
        self.engine, self.split, self.largest = engine, split, largest
        self._held: dict[tuple[Place, str], Tensor] = {}
        self.shared: dict[Any, Any] = {}

    @property
    def count(self) -> int:
        """How many rows a pass over the split has."""
        return int(self.split.lengths.sum())

    def whole(self, place: Place, streams: Sequence[str], beside: Wanted) -> Rows | None:
        """All rows of a place, or None if they do not fit; those of places `beside` are read along if all fit."""
        keys = [(place, name) for name in streams]
        for wanted in ({**beside, place: streams}, {place: streams}):
            if not all(key in self._held for key in keys) and self._fits(wanted):
                self._held = {}
                self._held = read_rows(self.engine, self.split, wanted)
        return tuple(self._held[key] for key in keys) if all(key in self._held for key in keys) else None

    def _fits(self, wanted: Wanted) -> bool:
        return self.count * bytes_a_row(self.engine, wanted) <= self.largest

    def streamed(self, place: Place, streams: Sequence[str], batch: int, seed: int) -> Iterator[Rows]:
        """Batches of shuffled rows without end, each epoch over every sequence once, in random order.

        They are drawn from a buffer, which is filled up when half of it has gone.
        """
        wanted, rng = {place: streams}, np.random.default_rng(seed)
        half = max(min(BUFFER, self.largest // bytes_a_row(self.engine, wanted)) // 2, batch)
        sequences = _Sequences(self.split.lengths, rng)
        left = tuple(torch.zeros(0, 0) for _ in streams)
        while True:
            while len(left[0]) < half + batch:
                index = sequences.most(2 * half - len(left[0]))
                found = read_rows(self.engine, self.split.take(index), wanted)
                new = (found[place, name] for name in streams)
                left = tuple(torch.cat((old, own)) if len(old) else own for old, own in zip(left, new, strict=True))
            order = torch.from_numpy(rng.permutation(len(left[0])))
            used = (len(order) - half) // batch * batch
            for start in range(0, used, batch):
                yield tuple(own[order[start : start + batch]] for own in left)
            left = tuple(own[order[used:]] for own in left)

    def some(self, place: Place, streams: Sequence[str], index: Int[np.ndarray, " chosen"]) -> Rows:
        """The rows of these numbers, each once, in the order in which `read_rows` has them."""
        order = np.argsort(self.split.lengths, kind="stable")
        ends = np.cumsum(self.split.lengths[order])
        places = np.searchsorted(ends, index, side="right")
        keep = np.zeros(self.split.tokens.shape, dtype=bool)
        keep[order[places], index - (ends - self.split.lengths[order])[places]] = True
        needed = order[np.unique(places)]
        part = self.split.take(needed)
        found = read_rows(self.engine, part, {place: streams}, keep[needed, : part.tokens.shape[1]])
        back = torch.from_numpy(np.argsort(np.argsort(index)))
        return tuple(found[place, name][back] for name in streams)


class _Sequences:
    """The numbers of sequences in random order without end, every one once an epoch."""

    def __init__(self, lengths: Int[np.ndarray, " sequence"], rng: np.random.Generator) -> None:
        self._lengths, self._rng = lengths, rng
        self._left = rng.permutation(len(lengths))

    def most(self, rows: int) -> Int[np.ndarray, " chosen"]:
        """The next sequences of this epoch that have at most so many rows together; at least one."""
        if len(self._left) == 0:
            self._left = self._rng.permutation(len(self._lengths))
        count = int(np.searchsorted(np.cumsum(self._lengths[self._left]), rows, side="right"))
        chosen, self._left = np.split(self._left, [max(1, count)])
        return chosen
