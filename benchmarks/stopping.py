"""What it gains to stop a run at the last layer that is read, as training rows are harvested.

Run `python benchmarks/stopping.py`. Runs that read one layer's residual stream and stop there alternate with runs of
all blocks, both without logits; ratios are medians over rounds of CPU time, above 1 where stopping is faster. What is
read is compared bit by bit.
"""

import argparse
import statistics
import time
from typing import Any

import torch

import assay
from assay.engine import Engine, batches, tensors
from machine import machine


def seconds(engine: Engine, pieces: list[tuple[torch.Tensor, torch.Tensor]], **options: Any) -> float:
    """CPU seconds to read the residual stream of all batches."""
    start = time.process_time()
    for tokens, valid in pieces:
        engine.run(tokens, valid, read=("residual",), logits=False, **options)
    return time.process_time() - start


def main() -> None:
    """Print a table: one row a layer, with how many times as fast it is read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="code-java")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    engine = Engine(assay.load(options.model))
    shape, generator = (options.sequences, options.length), torch.Generator().manual_seed(0)
    tokens = torch.randint(engine.subject.vocabulary, shape, generator=generator).numpy()
    split = assay.tasks.Split("random", "train", "random tokens", tokens, (tokens >= 0).sum(axis=1), tokens * 0)
    pieces = [tensors(batch, engine.subject.device) for _, batch in batches(engine, split)]
    print("| layer | seconds, all blocks | seconds, stopped | times as fast |")
    print("|---|---|---|---|")
    with engine.ready():
        for layer in range(engine.layers):
            whole = engine.run(*pieces[0], read=("residual",), logits=False).residual[layer]
            part = engine.run(*pieces[0], read=("residual",), logits=False, layers=[layer]).residual[layer]
            assert torch.equal(whole, part)
            rounds = [(seconds(engine, pieces), seconds(engine, pieces, layers=[layer])) for _ in range(options.rounds)]
            everything, stopped = (statistics.median(row[i] for row in rounds) for i in (0, 1))
            ratio = statistics.median(one / other for one, other in rounds)
            print(f"| {layer} | {everything:.2f} | {stopped:.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
    print(f"\n{machine()}")
