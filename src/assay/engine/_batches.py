"""Batches of a split, as many sequences as a device takes at once."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from assay.engine._engine import Engine
from assay.tasks import Split

TOKENS_PER_BATCH, WEIGHTS_PER_BATCH = 4_096, 3_000_000
"""On a CPU: tokens, and attention weights of all heads; elsewhere 16 times as many."""


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
