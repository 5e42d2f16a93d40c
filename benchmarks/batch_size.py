"""Why batches on a CPU are small: attention and its divergence per number, in batches that fit a cache or do not.

Run `python benchmarks/batch_size.py`. Both sizes alternate in one run; the ratio is the median over rounds.
"""

import statistics
import time

import torch

from assay.faithfulness import attention_divergence
from machine import machine

POSITIONS, ROUNDS = 256, 7
SMALL, LARGE = 16, 256
"""Sequences a batch: 1 million and 16 million attention weights."""


def seconds_per_number(sequences: int) -> float:
    """Processor time of a softmax and a divergence, over the number of attention weights."""
    scores = torch.randn(sequences, 1, POSITIONS, POSITIONS) * 5
    hidden = torch.full((POSITIONS, POSITIONS), -torch.inf).triu(1)
    start = time.process_time()
    first, second = (scores + hidden).softmax(-1), (0.9 * scores + hidden).softmax(-1)
    attention_divergence(first, second)
    return (time.process_time() - start) / scores.numel()


def main() -> None:
    """Print the time of both sizes and their ratio."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for size in (SMALL, LARGE):
        seconds_per_number(size)
    rounds = [(seconds_per_number(SMALL), seconds_per_number(LARGE)) for _ in range(ROUNDS)]
    small, large = (1e9 * statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = statistics.median(b / a for a, b in rounds)
    print(f"{SMALL} sequences: {small:.1f} ns a weight; {LARGE} sequences: {large:.1f} ns; ratio {ratio:.1f}")


if __name__ == "__main__":
    main()
    print(f"\n{machine()}")
