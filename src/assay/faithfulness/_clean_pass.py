"""Divergence of attention, block of rows by block of rows, without ever holding all patterns."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from assay.engine import Engine, Proxy, Run

ROWS = 64
"""Queries a block."""

WEIGHTS_KEPT = 16_000_000
"""Attention weights of the subject on a batch that are kept for the proxies; more of them are made again each time."""


class CleanPass:
    """The subject's own pass on one batch, which its proxies share, and how far their attention diverges from it.

    The divergence is that of `attention_divergence`, by H(m) − H(p)/2 − H(q)/2 with m = (p + q)/2 and H the entropy,
    so that what is known of the subject is computed once. `clean` is the subject's run, without logits.
    """

    def __init__(self, engine: Engine, tokens: Tensor, valid: Tensor) -> None:
        self._engine, self._tokens, self._valid = engine, tokens, valid
        self._blocks: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}
        self._kept = tokens.numel() * tokens.shape[1] * len(engine.heads) <= WEIGHTS_KEPT
        self.clean: Run = engine.run(
            tokens,
            valid,
            on_rows=self._keep if self._kept else None,
            rows=ROWS,
            read=() if self._kept else ("queries", "keys"),
            logits=False,
            resumable=True,
        )

    def tensors(self) -> Iterator[Tensor]:
        """Everything that is kept, for those who count memory."""
        for block in self._blocks.values():
            yield from block
        yield from self.clean.tensors()

    def _keep(self, layer: int, rows: slice, pattern: Tensor, _: Tensor | None) -> None:
        pattern = pattern.float()
        self._blocks[layer, rows.start] = (pattern, *_entropies(pattern))

    def of(self, proxy: Proxy) -> tuple[Run, dict[int, Float[Tensor, "batch query"]]]:
        """A proxy's run, without logits, and the divergence of every layer: 0 below the first edited one."""
        found = {
            layer: torch.zeros(self._tokens.shape, dtype=torch.float64, device=self._tokens.device)
            for layer in range(self._engine.layers)
        }

        def compare(layer: int, rows: slice, pattern: Tensor, clean: Tensor | None) -> None:
            if clean is None:
                found[layer][:, rows] = _divergence(*self._blocks[layer, rows.start], pattern.float())
            else:
                found[layer][:, rows] = _divergence(clean.float(), *_entropies(clean.float()), pattern.float())

        run = self._engine.run(
            self._tokens,
            self._valid,
            edits=proxy.edits,
            on_rows=compare,
            rows=ROWS,
            beside=None if self._kept else self.clean,
            logits=False,
            resume=self.clean,
        )
        return run, found


def _divergence(p: Tensor, entropy: Tensor, mass: Tensor, q: Tensor) -> Tensor:
    """The divergence of each query's rows, averaged over heads."""
    own_entropy, own_mass = _entropies(q)
    middle_entropy, _ = _entropies((p + q).mul_(0.5))
    found = middle_entropy - (entropy + own_entropy) / 2
    left, own_left = (1 - mass).clamp(min=0), (1 - own_mass).clamp(min=0)
    sink = (left > 1e-3) | (own_left > 1e-3)
    if bool(sink.any()):
        middle = ((left + own_left) / 2).clamp_min(1e-30).log()
        rest = left * (left.clamp_min(1e-30).log() - middle) + own_left * (own_left.clamp_min(1e-30).log() - middle)
        found = found + torch.where(sink, rest / 2, 0)
    return found.clamp(0, math.log(2)).mean(dim=1)


def _entropies(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy in nats and mass of every row, summed over its keys in float32 and in float64 from there on.

    1e-30 keeps the logarithm of 0 finite; it changes no other term.
    """
    entropy = (rows + 1e-30).log_().mul_(rows).sum(dim=-1)
    return -entropy.double(), rows.sum(dim=-1).double()
