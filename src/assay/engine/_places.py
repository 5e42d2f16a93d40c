"""Where in a subject something is read or changed: heads and blocks, their streams, and names for sites."""

from dataclasses import dataclass

HEAD_STREAMS = ("queries", "keys", "values", "outputs")
"""Vectors of a head: queries and keys after rotary positions, values, and its output before the output projection."""

BLOCK_STREAMS = ("mlp", "residual")
"""Vectors of a block: what its MLP adds to the residual stream, and the residual stream that enters it."""

ATTENTION = ("queries", "keys")
"""The streams of a site whose name gives none."""


@dataclass(frozen=True, order=True)
class Head:
    """One attention head: the layer in order of execution and the (query) head in it, both from 0."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"layer{self.layer}.head{self.head}"


@dataclass(frozen=True, order=True)
class Block:
    """One Transformer block, by the number of its attention layer, from 0."""

    layer: int

    def __str__(self) -> str:
        return f"layer{self.layer}"


Place = Head | Block


@dataclass(frozen=True)
class Site:
    """Some places of a subject, and which of their streams are meant.

    `name` is as in `Engine.site`. `explicit` says whether the name gives the stream; where it does not, a
    simplification acts on what it is about (queries and keys, or the pattern).
    """

    name: str
    places: tuple[Place, ...]
    streams: tuple[str, ...] = ATTENTION

    @property
    def explicit(self) -> bool:
        """Whether the stream is part of the name."""
        return self.streams != ATTENTION
