"""Divergence of attention, block of rows by block of rows, without ever holding all patterns."""

import copy
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from assay.engine import Answer, Engine, Proxy, Run, answers
from assay.faithfulness._by_numpy import log_
from assay.tasks import Split

ROWS = 64
"""Queries a block."""

WEIGHTS_KEPT = 16_000_000
"""Attention weights of the subject on a batch that are kept for the proxies; more of them are made again each time."""


class CleanPass:
    """The subject's own pass on one batch, which its proxies share, and how far their attention diverges from it.

    The divergence is that of `attention_divergence`, by H(m) − H(p)/2 − H(q)/2 with m = (p + q)/2 and H the entropy,
    so that what is known of the subject is computed once. `run` is the subject's, without logits. Without `attention`
    nothing is kept to compare attention with, and no divergence can be asked for.
    """

    def __init__(self, engine: Engine, tokens: Tensor, valid: Tensor, *, attention: bool = True) -> None:
        self.engine, self.tokens, self.valid, self.rows = engine, tokens, valid, ROWS
        attention = attention and engine.layers > 0
        self._patterns: dict[tuple[int, int], Tensor] = {}
        self._rows = _Rows(engine, tokens)
        self._kept = tokens.numel() * tokens.shape[1] * len(engine.heads) <= WEIGHTS_KEPT
        self.run: Run = engine.run(
            tokens,
            valid,
            on_rows=self._keep if attention else None,
            rows=self.rows,
            read=() if self._kept or not attention else ("queries", "keys"),
            logits=False,
            resumable=True,
        )

    def tensors(self) -> Iterator[Tensor]:
        """Everything that is kept, for those who count memory."""
        yield from self._patterns.values()
        yield from self._rows.tensors()
        yield from self.run.tensors()

    def _keep(self, layer: int, rows: slice, pattern: Tensor, _: Tensor | None) -> None:
        pattern = pattern.float()
        self._rows.note(layer, rows, pattern)
        self._rows.weigh(layer, rows, pattern)
        if self._kept:
            self._patterns[layer, rows.start] = pattern

    def answers(
        self,
        proxies: Sequence[Proxy],
        *,
        attention: bool = True,
        together: int | None = None,
        batch: Split | None = None,
    ) -> Iterator[tuple[int, Answer]]:
        """Number and answer of each proxy, with the divergence of every layer: 0 below the first edited.

        Up to `together` proxies share a batch, by default as many as pay. Without `attention` no divergence is
        measured. `batch` has the sequences with what else belongs to them, such as counterfactuals.
        """
        asked = _Asked(self, attention=attention, together=together if self._kept else 1, batch=batch)
        return answers(proxies, asked)

    def watch(self, copies: int) -> "_Watch":
        """Compares attention rows with the subject's, for so many proxies in one batch."""
        return _Watch(self, copies)


@dataclass(frozen=True)
class _Asked:
    """A clean pass, and what is asked of its proxies."""

    passed: CleanPass
    attention: bool
    together: int | None
    batch: Split | None

    @property
    def rows(self) -> int:
        return self.passed.rows

    @property
    def engine(self) -> Engine:
        return self.passed.engine

    @property
    def tokens(self) -> Tensor:
        return self.passed.tokens

    @property
    def valid(self) -> Tensor:
        return self.passed.valid

    @property
    def run(self) -> Run:
        return self.passed.run

    def watch(self, copies: int = 1) -> "_Watch | None":
        return self.passed.watch(copies) if self.attention else None


class _Watch:
    """Takes in the attention rows of some proxies in one batch, beside the subject's."""

    def __init__(self, passed: CleanPass, copies: int) -> None:
        tokens = passed.tokens.repeat(copies, 1)
        self.beside = None if passed._kept else passed.run
        self._passed, self._copies = passed, copies
        self._own, self._middle = _Rows(passed.engine, tokens), _Rows(passed.engine, tokens)

    def on_rows(self, layer: int, rows: slice, pattern: Tensor, clean: Tensor | None) -> None:
        clean = self._passed._patterns[layer, rows.start] if clean is None else clean.float()
        clean = clean.repeat(self._copies, 1, 1, 1) if self._copies > 1 else clean
        pattern = pattern.float()
        self._own.note(layer, rows, pattern)
        self._own.weigh(layer, rows, pattern)
        self._middle.note(layer, rows, torch.lerp(clean, pattern, 0.5))

    def divergences(self) -> list[dict[int, Float[Tensor, "batch query"]]]:
        parts = zip(self._own.parts(self._copies), self._middle.parts(self._copies), strict=True)
        return [_divergences(self._passed._rows, own, middle) for own, middle in parts]


class _Rows:
    """Entropy in nats and mass of every row of every pattern: (batch, all heads, query), layer after layer.

    Both are summed over keys in float32, and taken in float64 from there on. `first` is the first layer noted.
    """

    def __init__(self, engine: Engine, tokens: Tensor) -> None:
        counts = Counter(head.layer for head in engine.heads)
        ends = [0, *itertools.accumulate(counts[layer] for layer in range(engine.layers))]
        self.heads = [slice(start, end) for start, end in itertools.pairwise(ends)]
        self.first = engine.layers
        self._entropy = tokens.new_zeros((len(tokens), ends[-1], tokens.shape[1]), dtype=torch.float32)
        self._mass = self._entropy.clone()

    def note(self, layer: int, rows: slice, pattern: Tensor) -> None:
        """Take in some rows of a layer's pattern. 1e-30 keeps the logarithm of 0 finite and changes no other term."""
        self.first = min(self.first, layer)
        self._entropy[:, self.heads[layer], rows] = log_(pattern + 1e-30).mul_(pattern).sum(dim=-1).neg_()

    def weigh(self, layer: int, rows: slice, pattern: Tensor) -> None:
        """Take in the mass of some rows of a layer's pattern."""
        self._mass[:, self.heads[layer], rows] = pattern.sum(dim=-1)

    @property
    def nothing(self) -> Tensor:
        """The divergence (batch, query) of a layer that a proxy shares with its subject."""
        return self._entropy.new_zeros((len(self._entropy), self._entropy.shape[-1]), dtype=torch.float64)

    def since(self, layer: int) -> tuple[Tensor, Tensor]:
        """Entropies and masses from a layer on."""
        heads = slice(self.heads[layer].start, None)
        return self._entropy[:, heads].double(), self._mass[:, heads].double()

    def parts(self, count: int) -> Iterator["_Rows"]:
        """Those of `count` equal parts of the batch."""
        for entropy, mass in zip(self._entropy.chunk(count), self._mass.chunk(count), strict=True):
            part = copy.copy(self)
            part._entropy, part._mass = entropy, mass
            yield part

    def tensors(self) -> tuple[Tensor, Tensor]:
        """What is held."""
        return self._entropy, self._mass


def _divergences(clean: _Rows, own: _Rows, middle: _Rows) -> dict[int, Float[Tensor, "batch query"]]:
    """The divergence of each query's rows, averaged over heads, for every layer."""
    layers, first = len(clean.heads), own.first
    found = dict.fromkeys(range(first), clean.nothing)
    if first == layers:
        return found
    (entropy, mass), (own_entropy, own_mass) = clean.since(first), own.since(first)
    rows = middle.since(first)[0] - (entropy + own_entropy) / 2
    left, own_left = (1 - mass).clamp(min=0), (1 - own_mass).clamp(min=0)
    sink = (left > 1e-3) | (own_left > 1e-3)
    if bool(sink.any()):
        between = ((left + own_left) / 2).clamp_min(1e-30).log()
        rest = left * (left.clamp_min(1e-30).log() - between) + own_left * (own_left.clamp_min(1e-30).log() - between)
        rows = rows + torch.where(sink, rest / 2, 0)
    sizes = [heads.stop - heads.start for heads in clean.heads[first:]]
    by_layer = rows.clamp(0, math.log(2)).split(sizes, dim=1)
    return found | {layer: part.mean(dim=1) for layer, part in enumerate(by_layer, start=first)}
