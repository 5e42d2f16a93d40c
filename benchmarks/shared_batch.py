"""When it pays that several proxies share a batch: the same proxies one at a time, and 2, 4 and 8 of them together.

Run `python benchmarks/shared_batch.py` (`--device cuda` on a GPU, where sharing is the default). All sizes alternate in
one run; ratios are medians over rounds, above 1 where sharing is faster.
"""

import argparse
import statistics
import time

import torch

import assay
from assay.engine import EditedSubject, Engine, collect, tensors
from assay.faithfulness import CleanPass
from assay.simplify import SVD
from assay.subjects import resolve_device
from machine import machine

TOGETHER = (1, 2, 4, 8)


def seconds(engine: Engine, clean: CleanPass, proxies: list[EditedSubject], together: int) -> float:
    """Seconds that all proxies take, with their attention compared, so many in a batch."""
    device = engine.subject.device
    start = time.perf_counter()
    for _, answer in clean.answers(proxies, together=together):
        answer.logits(slice(None))
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Print a table: one row a batch size, one column a number of proxies that share it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    subject = assay.load("dyck-20-10", device=resolve_device(options.device))
    task = assay.tasks.Dyck()
    engine = Engine(subject)
    samples = collect(engine, task.split("train", 200), ("queries", "keys"))
    proxies = [SVD(rank=rank).fit(samples).apply(subject) for rank in range(1, 9)]
    print("| sequences | seconds alone | " + " | ".join(f"{count} together" for count in TOGETHER[1:]) + " |")
    print("|" + "---|" * (len(TOGETHER) + 1))
    with engine.ready(), torch.inference_mode():
        for sequences in (1, 4, 16, 64):
            clean = CleanPass(engine, *tensors(task.split("iid", sequences), subject.device))
            for count in TOGETHER:
                seconds(engine, clean, proxies, count)
            rounds = [[seconds(engine, clean, proxies, count) for count in TOGETHER] for _ in range(options.rounds)]
            alone = statistics.median(row[0] for row in rounds)
            ratios = [statistics.median(row[0] / row[i] for row in rounds) for i in range(1, len(TOGETHER))]
            print(f"| {sequences} | {alone:.3f} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")


if __name__ == "__main__":
    main()
    print(f"\n{machine()}")
