"""Where in a subject something is read or changed: heads and blocks, their streams, and names for sites."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

HEAD_STREAMS = ("queries", "keys", "values", "outputs")
"""Vectors of a head: queries and keys after rotary positions, values, and its output before the output projection."""

BLOCK_STREAMS = ("mlp_input", "mlp", "residual", "attention", "after", "heads", "middle")
"""Vectors of a block: what enters its MLP (behind the norm that stands before it) and what its MLP gives, the residual
stream that enters the block, what its attention adds to that (all heads together, after the output projection), the
residual stream that leaves the block, the outputs of its heads side by side, before the output projection, and the
residual stream between attention and MLP, which reads it and adds to it."""

ATTENTION = ("queries", "keys")
"""The streams of a site whose name gives none."""


GRAMMAR = {
    "all": "every head; with a stream of blocks, every block",
    "layer2": "the heads of a layer, numbered from 0; L2 is the same",
    "layer2.head1": "one head; L2H1 and 2.1 are the same",
    f"….{'|'.join(HEAD_STREAMS)}": "one stream of these heads; without one, queries and keys, or the pattern",
    f"all|layer2.{'|'.join(BLOCK_STREAMS)}": "a stream of blocks",
    "embeddings": "what enters the first block",
    "A+B": "several parts as one site, such as layer0.head1+layer2.mlp",
    "all-heads|all-layers": "one after the other, each a site of its own; also all-layers.mlp",
    "up-to-layers": "the first layer, the first two, and so on",
}
"""How names of sites are made, and what they mean: parts that are written as they are, and choices between bars."""


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

Named = str | Sequence[str]
"""What stands for a site where sites are asked for: a name, or the names of its parts."""


@dataclass(frozen=True)
class Site:
    """A set of places of a subject, and which of their streams are meant at each.

    `name` is as in `Engine.site`; `streams` has the streams of every place, in the order of `HEAD_STREAMS` or
    `BLOCK_STREAMS`. Where they are `ATTENTION`, a simplification acts on what it is about (queries and keys, or the
    pattern).
    """

    name: str
    streams: Mapping[Place, tuple[str, ...]]

    @property
    def places(self) -> tuple[Place, ...]:
        """The places, heads before blocks, each kind in order."""
        return tuple(self.streams)

    def streams_of(self, place: Place) -> tuple[str, ...]:
        """The streams that are meant at a place."""
        return self.streams[place]

    @property
    def read(self) -> tuple[str, ...]:
        """Every stream that is meant anywhere."""
        return tuple(name for name in (*HEAD_STREAMS, *BLOCK_STREAMS) if any(name in own for own in self._all))

    @property
    def explicit(self) -> bool:
        """Whether something else than attention is meant somewhere."""
        return any(own != ATTENTION for own in self._all)

    @property
    def _all(self) -> set[tuple[str, ...]]:
        return set(self.streams.values())


def in_order(streams: Mapping[Place, set[str]]) -> dict[Place, tuple[str, ...]]:
    """The same places and streams, in the order that every site has."""
    return {
        place: tuple(name for name in (*HEAD_STREAMS, *BLOCK_STREAMS) if name in streams[place])
        for place in sorted(streams, key=lambda place: (isinstance(place, Block), place))
    }


def name_of(streams: Mapping[Place, tuple[str, ...]], heads: Sequence[Head], blocks: Sequence[Block]) -> str:
    """The one name of a set of places and streams: parts in order, joined by `+`.

    All places of a subject are `all`, all heads of a layer that has several are that layer.
    """
    return "+".join(text for _, text in sorted(_parts(streams, heads, blocks)))


def _parts(
    streams: Mapping[Place, tuple[str, ...]], heads: Sequence[Head], blocks: Sequence[Block]
) -> Iterator[tuple[tuple[int, bool, int, int], str]]:
    """Where a part comes, and its name."""
    for order, stream in enumerate(("", *HEAD_STREAMS, *BLOCK_STREAMS)):
        of_blocks = stream in BLOCK_STREAMS
        of_kind: Sequence[Place] = blocks if of_blocks else heads
        chosen = [place for place in of_kind if place in streams and _has(streams[place], stream)]
        ending = f".{stream}" if stream else ""
        if len(chosen) == len(of_kind) > 1:
            yield (-1, of_blocks, 0, order), f"all{ending}"
            continue
        for layer in sorted({place.layer for place in chosen}):
            own = [place for place in chosen if place.layer == layer]
            whole = len(own) == sum(place.layer == layer for place in of_kind) > 1
            for place in own[:1] if whole else own:
                number = place.head if isinstance(place, Head) and not whole else -1
                yield (layer, of_blocks, number, order), f"{f'layer{layer}' if whole else place}{ending}"


def _has(streams: tuple[str, ...], stream: str) -> bool:
    """Whether a part of this stream is among the streams of a place; queries and keys together are one without."""
    both = set(ATTENTION) <= set(streams)
    return both if stream == "" else stream in streams and not (both and stream in ATTENTION)
