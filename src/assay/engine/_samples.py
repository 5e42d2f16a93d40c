"""The activations that simplifications are fitted on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.engine._engine import Engine
from assay.engine._places import ATTENTION, BLOCK_STREAMS, HEAD_STREAMS, Place, Site
from assay.subjects import Subject
from assay.tasks import Split

Vectors = Mapping[Place, Float[Tensor, "sample _"]]

LARGEST = 1_000_000_000
"""The most bytes of samples; positions are thinned out beyond."""

TOKENS_PER_BATCH, WEIGHTS_PER_BATCH = 4_096, 3_000_000
"""On a CPU: tokens, and attention weights of all heads; elsewhere 16 times as many."""


@dataclass(frozen=True)
class Samples:
    """Vectors at some places (heads or blocks) of a subject: (sample, width) a place, on the CPU.

    `streams` has those that a simplification is to act on at each place; a place that it does not have is meant as
    attention, queries and keys. Of the mappings of vectors, only what was asked for is filled. `subject` and `split`
    are what the vectors were read from, for a recipe that needs more than them (the weights, or the sequences
    themselves).
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
    streams: Mapping[Place, tuple[str, ...]] = field(default_factory=dict)
    subject: Subject | None = None
    split: Split | None = None

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
        )

    def streams_of(self, place: Place) -> tuple[str, ...]:
        """The streams to act on at a place, in order."""
        return self.streams.get(place, ATTENTION)

    def of(self, place: Place) -> tuple[Float[Tensor, "sample _"], ...]:
        """What was read at a place of the streams to act on, in their order."""
        read: list[Vectors] = [getattr(self, stream) for stream in self.streams_of(place)]
        return tuple(vectors[place] for vectors in read if vectors)


def batches(engine: Engine, split: Split) -> Iterator[tuple[Int[np.ndarray, " sequence"], Split]]:
    """Index and sequences of batches of similar length, at least one sequence each.

    Batches are small enough for a CPU's cache, larger elsewhere (`benchmarks/batch_size.py` shows what it gains).
    """
    order = np.argsort(split.lengths, kind="stable")
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and _fill(engine, end + 1 - start, int(split.lengths[order[end]])) <= 1:
            end += 1
        index = order[start:end]
        yield index, split.take(index)
        start = end


def device_scale(device: torch.device) -> int:
    """How many times as much as a CPU a device takes at once."""
    return 1 if device.type == "cpu" else 16


def _fill(engine: Engine, sequences: int, width: int) -> float:
    """How full a batch is of so many sequences of a length; above 1 it is too large."""
    tokens, weights = sequences * width, sequences * width * width * len(engine.heads)
    return max(tokens / TOKENS_PER_BATCH, weights / WEIGHTS_PER_BATCH) / device_scale(engine.subject.device)


def copies_that_fit(engine: Engine, sequences: int, width: int) -> int:
    """How many times over such a batch fits into one, at least once; on a CPU, which one keeps busy, always once."""
    alone = engine.subject.device.type == "cpu"
    return 1 if alone else max(1, int(1 / _fill(engine, sequences, width)))


def tensors(batch: Split, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens and validity (1 or 0) of a batch."""
    return (
        torch.from_numpy(batch.tokens.astype(np.int64)).to(device),
        torch.from_numpy(batch.valid.astype(np.int64)).to(device),
    )


def collect(engine: Engine, split: Split, streams: Sequence[str], *, largest: int = LARGEST, seed: int = 0) -> Samples:
    """Read the named streams of every head or block on the valid positions of a split.

    Where they would take more than `largest` bytes, a random part of the positions is read, the same at every place.
    """
    found: dict[str, dict[Place, list[Tensor]]] = {
        name: {place: [] for place in (engine.blocks if name in BLOCK_STREAMS else engine.heads)} for name in streams
    }
    share, rng = 1.0, np.random.default_rng(seed)
    for _, batch in batches(engine, split) if streams else ():
        tokens, valid = tensors(batch, engine.subject.device)
        run = engine.run(tokens, valid, read=tuple(streams), logits=False)
        if not any(parts for places in found.values() for parts in places.values()):
            here = [layer for name in streams for layer in getattr(run, name).values()]
            bytes_a_position = sum(4 * layer.numel() // tokens.numel() for layer in here)
            share = min(1.0, largest / (bytes_a_position * int(split.lengths.sum())))
        keep = valid.bool() & torch.from_numpy(rng.random(tuple(valid.shape)) < share).to(valid.device)
        for name in streams:
            by_layer: dict[int, Tensor] = getattr(run, name)
            for place, parts in found[name].items():
                states = by_layer[place.layer]
                parts.append((states if name in BLOCK_STREAMS else states[:, place.head])[keep].float().cpu())  # type: ignore[union-attr]
    joined = {name: {place: torch.cat(parts) for place, parts in places.items()} for name, places in found.items()}
    return Samples(engine.heads, subject=engine.subject, split=split, **joined)  # type: ignore[arg-type]
