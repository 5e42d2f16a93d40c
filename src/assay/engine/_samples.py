"""The activations that simplifications are fitted on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.engine._attention import Head
from assay.engine._engine import Engine
from assay.tasks import Split


@dataclass(frozen=True)
class Samples:
    """Queries and keys of some heads at all valid positions of some sequences: (sample, width) a head, on the CPU.

    What no simplification asked for is left out.
    """

    heads: tuple[Head, ...]
    queries: Mapping[Head, Float[Tensor, "sample width"]] = field(default_factory=dict)
    keys: Mapping[Head, Float[Tensor, "sample width"]] = field(default_factory=dict)

    def at(self, heads: Sequence[Head]) -> "Samples":
        """The samples of some of the heads."""
        return Samples(
            tuple(heads),
            {head: self.queries[head] for head in heads if head in self.queries},
            {head: self.keys[head] for head in heads if head in self.keys},
        )


def batches(engine: Engine, split: Split) -> Iterator[tuple[Int[np.ndarray, " sequence"], Split]]:
    """Index and sequences of batches of similar length, at least one sequence each.

    A batch's attention patterns have about a million numbers on a CPU, so that they stay in its cache, and 64 million
    elsewhere (`benchmarks/batch_size.py` shows what it gains).
    """
    budget = 1_000_000 if engine.subject.device.type == "cpu" else 64_000_000
    order = np.argsort(split.lengths, kind="stable")
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order):
            width = int(split.lengths[order[end]])
            if (end + 1 - start) * width * width * len(engine.heads) > budget:
                break
            end += 1
        index = order[start:end]
        yield index, split.take(index)
        start = end


def tensors(batch: Split, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens and validity (1 or 0) of a batch."""
    return (
        torch.from_numpy(batch.tokens.astype(np.int64)).to(device),
        torch.from_numpy(batch.valid.astype(np.int64)).to(device),
    )


def collect(engine: Engine, split: Split, streams: Sequence[str]) -> Samples:
    """Read the named streams ("queries", "keys") of every head on all valid positions of a split."""
    found: dict[str, dict[Head, list[Tensor]]] = {name: {head: [] for head in engine.heads} for name in streams}
    if streams:
        for _, batch in batches(engine, split):
            tokens, valid = tensors(batch, engine.subject.device)
            run = engine.run(tokens, valid, read=tuple(streams))
            keep = valid.bool()
            for name in streams:
                by_layer: dict[int, Tensor] = getattr(run, name)
                for head in engine.heads:
                    found[name][head].append(by_layer[head.layer][:, head.head][keep].float().cpu())
    joined = {name: {head: torch.cat(parts) for head, parts in heads.items()} for name, heads in found.items()}
    return Samples(engine.heads, joined.get("queries", {}), joined.get("keys", {}))
