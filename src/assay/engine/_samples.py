"""The activations that simplifications are fitted on."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assay._errors import AssayError
from assay.engine._engine import Engine
from assay.engine._places import ATTENTION, BLOCK_STREAMS, HEAD_STREAMS, Place, Site
from assay.engine._rows import LARGEST, Reader, Rows, bytes_a_row, read_rows, shuffled
from assay.subjects import Subject
from assay.tasks import Split

Vectors = Mapping[Place, Float[Tensor, "sample _"]]


@dataclass(frozen=True)
class Samples:
    """Vectors at some places (heads or blocks) of a subject: (sample, width) a place, on the CPU.

    `streams` has those that a simplification is to act on at each place; a place that it does not have is meant as
    attention, queries and keys. Of the mappings of vectors, only what was asked for is filled. `subject` and `split`
    are what the vectors were read from, for a recipe that needs more than them (the weights, or the sequences
    themselves).

    A recipe that takes its vectors as rows, a batch at a time (`rows`, `some`, `count`), is bounded by no memory: what
    is not held, or only in part, is read from the subject when it is asked for. It says so with a class attribute
    `streams_rows = True`, and nothing is read for it before.
    """

    places: tuple[Place, ...]
    queries: Vectors = field(default_factory=dict)
    keys: Vectors = field(default_factory=dict)
    values: Vectors = field(default_factory=dict)
    outputs: Vectors = field(default_factory=dict)
    mlp_input: Vectors = field(default_factory=dict)
    mlp: Vectors = field(default_factory=dict)
    residual: Vectors = field(default_factory=dict)
    attention: Vectors = field(default_factory=dict)
    after: Vectors = field(default_factory=dict)
    heads: Vectors = field(default_factory=dict)
    middle: Vectors = field(default_factory=dict)
    streams: Mapping[Place, tuple[str, ...]] = field(default_factory=dict)
    subject: Subject | None = None
    split: Split | None = None
    _reader: Reader | None = field(default=None, repr=False, compare=False)
    _thinned: bool = field(default=False, repr=False, compare=False)

    def at(self, site: Site) -> "Samples":
        """The samples of one site."""
        return Samples(
            site.places,
            **{
                stream: {place: found[place] for place in site.places if place in found}
                for stream in (*HEAD_STREAMS, *BLOCK_STREAMS)
                if (found := getattr(self, stream))
            },
            streams=site.streams,
            subject=self.subject,
            split=self.split,
            _reader=self._reader,
            _thinned=self._thinned,
        )

    def streams_of(self, place: Place) -> tuple[str, ...]:
        """The streams to act on at a place, in order."""
        return self.streams.get(place, ATTENTION)

    def of(self, place: Place) -> tuple[Float[Tensor, "sample _"], ...]:
        """What was read at a place of the streams to act on, in their order."""
        read: list[Vectors] = [getattr(self, stream) for stream in self.streams_of(place)]
        return tuple(vectors[place] for vectors in read if vectors)

    @property
    def shared(self) -> dict[Any, Any]:
        """What recipes that are fitted on the same vectors may leave for one another: sites may share a place.

        Who puts something there makes sure that its key says all that it depends on, but for the vectors.
        """
        return {} if self._reader is None else self._reader.shared

    def rows(
        self, place: Place, *, batch: int, steps: int, seed: int = 0, streams: Sequence[str] | None = None
    ) -> Iterator[Rows]:
        """`steps` batches of `batch` shuffled rows of a place, each a tensor (row, width) a stream.

        The streams are those to act on (`streams_of(place)`), or `streams`, in that order: ("mlp_input", "mlp") gives
        pairs of what enters an MLP and what it gives. Every row is a valid position, the same of all streams. Each
        epoch has every row once; where they do not fit into memory, every sequence once, and rows are shuffled in a
        buffer. The same seed gives the same bits. Raises AssayError if there is nothing to read them from.
        """
        names = self._names(place, streams)
        for name, value in (("batch", batch), ("steps", steps)):
            if value < 1:
                raise AssayError(f"rows({name}={value}): must be at least 1.")
        whole = self._whole(place, names)
        if whole is not None:
            return itertools.islice(shuffled(whole, batch, seed), steps)
        return itertools.islice(self._source(place, names).streamed(place, names, batch, seed), steps)

    def count(self, place: Place) -> int:
        """How many rows there are of a place in one pass. Raises AssayError if there is nothing to read them from."""
        if self._reader is not None:
            return self._reader.count
        held = self.of(place)
        return len(held[0]) if held else self._source(place, self.streams_of(place)).count

    def some(self, place: Place, count: int, *, seed: int = 0, streams: Sequence[str] | None = None) -> Rows:
        """`count` rows of a place, drawn without replacement (all, where there are fewer), a tensor a stream.

        What `rows` are is said there; the same seed draws the same ones. The first rows of `of(place)` are those of the
        shortest sequences: for a start, a threshold or a plot take these.
        """
        names = self._names(place, streams)
        index = np.random.default_rng(seed).permutation(self.count(place))[:count]
        whole = self._whole(place, names)
        if whole is not None:
            return tuple(own[torch.from_numpy(index)] for own in whole)
        return self._source(place, names).some(place, names, index)

    def _names(self, place: Place, streams: Sequence[str] | None) -> tuple[str, ...]:
        return self.streams_of(place) if streams is None else tuple(streams)

    def _whole(self, place: Place, streams: tuple[str, ...]) -> Rows | None:
        """All rows of a place, where memory holds them."""
        held: list[Vectors] = [getattr(self, name) for name in streams]
        if not self._thinned and all(place in vectors for vectors in held):
            return tuple(vectors[place] for vectors in held)
        same = {other: self._names(other, None) for other in self.places if type(other) is type(place)}
        beside = same if streams == self.streams_of(place) else dict.fromkeys(same, streams)
        return self._source(place, streams).whole(place, streams, beside)

    def _source(self, place: Place, streams: tuple[str, ...]) -> Reader:
        if self._reader is None:
            raise AssayError(
                f"these samples do not hold {' and '.join(streams)} of {place}, nor do they say what to read them "
                "from; take samples from assay.engine.collect(engine, split, streams)."
            )
        return self._reader


def collect(engine: Engine, split: Split, streams: Sequence[str], *, largest: int = LARGEST, seed: int = 0) -> Samples:
    """Read the named streams of every head or block on the valid positions of a split.

    Where they would take more than `largest` bytes, a random part of the positions is read, the same at every place.
    Other streams, and rows of what was read in part, are read when they are asked for (`Samples.rows`).
    """
    of_blocks = [name for name in streams if name in BLOCK_STREAMS]
    of_heads = [name for name in streams if name not in BLOCK_STREAMS]
    wanted: dict[Place, list[str]] = dict.fromkeys(engine.heads, of_heads) if of_heads else {}
    wanted |= dict.fromkeys(engine.blocks, of_blocks) if of_blocks else {}
    needed = bytes_a_row(engine, wanted) * int(split.lengths.sum())
    keep = None
    if needed > largest:
        keep = split.valid & (np.random.default_rng(seed).random(split.tokens.shape) < largest / needed)
    found: dict[str, dict[Place, Tensor]] = {name: {} for name in streams}
    for (place, name), vectors in read_rows(engine, split, wanted, keep).items():
        found[name][place] = vectors
    reader = Reader(engine, split, largest)
    return Samples(
        engine.heads,
        subject=engine.subject,
        split=split,
        _reader=reader,
        _thinned=keep is not None,
        **found,  # type: ignore[arg-type]
    )
