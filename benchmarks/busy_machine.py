"""What a run takes beside other busy processes, by how torch's threads wait for each other and how many there are.

Run `python benchmarks/busy_machine.py` (a few minutes). The same comparison runs in fresh processes, alone and beside
so many processes that never rest (`--busy`), with the settings in turn; seconds are medians over rounds, by the clock
and of the processor. A fair share of C cores among N busy processes and a run of T threads is C T / (N + T) cores, at
most T: *share* is the clock's time for it, computed from the processor's.
"""

import argparse
import contextlib
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from machine import machine

RUN = """
import os
import torch
threads = os.environ.pop("THREADS")
if threads:
    torch.set_num_threads(int(threads))
import assay
assay.compare(
    assay.load("code-python"), assay.tasks.Code(), [assay.SVD(rank=rank) for rank in (4, 8, 16)], sequences={sequences},
    fit_sequences=50, resamples=100, controls=False, refit=False, progress=False,
)
"""

SETTINGS: dict[str, dict[str, str]] = {
    "torch's own": {"THREADS": ""},
    "threads that sleep": {"THREADS": "", "OMP_WAIT_POLICY": "passive"},
    "one thread": {"THREADS": "1"},
}


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that never rest."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def seconds(sequences: int, setting: dict[str, str]) -> tuple[float, float]:
    """How long the run takes, by the clock and of the processor."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    call = [sys.executable, "-c", RUN.replace("{sequences}", str(sequences))]
    subprocess.run(call, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1", **setting})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print a table: one row a setting and number of busy processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=30)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if min(options.sequences, options.rounds) < 2 or min(options.busy) < 0:
        parser.error("--sequences and --rounds must be at least 2, --busy numbers of processes from 0 on.")
    cores = os.cpu_count() or 1
    print("| busy processes | threads | seconds by the clock | of the processor | share |\n|---|---|---|---|---|")
    for count in options.busy:
        rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in SETTINGS}
        with busy(count):
            for _ in range(options.rounds):
                for name, setting in SETTINGS.items():
                    rounds[name].append(seconds(options.sequences, setting))
        for name, found in rounds.items():
            clock, processor = (statistics.median(column) for column in zip(*found, strict=True))
            threads = int(SETTINGS[name]["THREADS"] or cores)
            share = processor / min(threads, cores * threads / (count + threads))
            print(f"| {count} | {name} | {clock:.1f} | {processor:.1f} | {share:.1f} |", flush=True)


if __name__ == "__main__":
    main()
    print(f"\n{machine()}")
