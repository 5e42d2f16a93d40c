"""What a forward pass gave, and what of it later passes can use."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from assay.engine._attention import Masks


@dataclass
class Run:
    """What one forward pass gave.

    `logits` is (batch, position, vocabulary), empty where they were left out (`Engine.logits` makes them up). The
    others hold what was asked for, by layer: `queries`, `keys`, `values` and `outputs` (batch, head, position,
    width), `patterns` (batch, head, query, key), `mlp` (batch, position, model width): what each block's MLP gives, and
    of the same shape `mlp_input`: what enters the MLP, `residual`: the residual stream that enters each block,
    `attention`: what its attention adds, `middle`: the residual stream between attention and MLP, and `after`: the one
    that leaves the block; `heads` (batch, position, heads x width): the outputs of its heads side by side. All are as
    edited. What each block gave back is kept for runs that resume from this one, with the masks and with the
    projections of the layer that was resumed at last. A run that read some layers only may have `stopped` behind one;
    then it has no logits.
    """

    logits: Float[Tensor, "batch position vocabulary"]
    queries: dict[int, Tensor] = field(default_factory=dict)
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    outputs: dict[int, Tensor] = field(default_factory=dict)
    patterns: dict[int, Tensor] = field(default_factory=dict)
    mlp_input: dict[int, Tensor] = field(default_factory=dict)
    mlp: dict[int, Tensor] = field(default_factory=dict)
    residual: dict[int, Tensor] = field(default_factory=dict)
    attention: dict[int, Tensor] = field(default_factory=dict)
    after: dict[int, Tensor] = field(default_factory=dict)
    heads: dict[int, Tensor] = field(default_factory=dict)
    middle: dict[int, Tensor] = field(default_factory=dict)
    stopped: int | None = None
    _blocks: dict[int, Any] = field(default_factory=dict, repr=False)
    _projected: dict[int, dict[nn.Module, Any]] = field(default_factory=dict, repr=False)
    _masks: Masks = field(default_factory=Masks, repr=False)
    _tokens: Tensor | None = field(default=None, repr=False)
    _valid: Tensor | None = field(default=None, repr=False)
    _edited: bool = field(default=False, repr=False)
    _body: Any = field(default=None, repr=False)

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor that the run holds on to."""
        left: list[Any] = [getattr(self, item.name) for item in fields(self)]
        while left:
            item = left.pop()
            if isinstance(item, Tensor):
                yield item
            elif isinstance(item, Mapping):
                left += item.values()
            elif isinstance(item, tuple | list):
                left += item
            elif isinstance(item, Masks):
                left += item.made

    @property
    def shape(self) -> tuple[int, int]:
        """Sequences and positions of its batch."""
        assert self._tokens is not None
        sequences, positions = self._tokens.shape
        return sequences, positions

    def repeated(self, count: int) -> "Run":
        """What runs need that resume from this one, with its batch there `count` times over."""
        assert self._tokens is not None
        sequences = len(self._tokens)

        def repeat(item: Any) -> Any:
            if isinstance(item, Tensor) and item.shape[:1] == (sequences,):
                return item.repeat(count, *(1 for _ in item.shape[1:]))
            return type(item)(map(repeat, item)) if isinstance(item, tuple | list) else item

        return Run(
            logits=self.logits,
            _blocks={layer: repeat(output) for layer, output in self._blocks.items()},
            _tokens=repeat(self._tokens),
            _valid=repeat(self._valid),
            _edited=self._edited,
        )

    def parts(self, count: int) -> Iterator["Run"]:
        """The runs of `count` equal parts of the batch: their logits, or what they are made of."""
        assert self._tokens is not None
        size = len(self._tokens) // count
        for start in range(0, count * size, size):
            rows = slice(start, start + size)
            body = copy.copy(self._body)
            if body is not None:
                body["last_hidden_state"] = self._body[0][rows]
            yield Run(
                logits=self.logits[rows],
                _tokens=self._tokens[rows],
                _valid=None if self._valid is None else self._valid[rows],
                _edited=self._edited,
                _body=body,
            )

    @property
    def held(self) -> int:
        """How many numbers are kept for its logits: the logits themselves, or final hidden states."""
        return int(self.logits.numel() if self._body is None else self._body[0].numel())


@dataclass(frozen=True)
class IdentityDifference:
    """Largest absolute differences of a logit between an identity edit and the subject, and both logits.

    `eager` is against the subject under its own eager attention, by the same kernels for the rest; `as_loaded` against
    the subject as it was loaded, with its attention implementation and its own code throughout.
    """

    eager: float
    as_loaded: float
    edited_logits: Float[Tensor, "batch position vocabulary"]
    loaded_logits: Float[Tensor, "batch position vocabulary"]
