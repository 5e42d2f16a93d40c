"""Kill a comparison at random moments, run it again each time, and compare its files with those of one left in peace.

Run `python benchmarks/kills.py`. For one worker and two it takes the time of an undisturbed run, then starts runs in a
fresh folder (`--folders` of them), kills each (`--kills` times) when a random number of its cells is finished or at a
random moment of that time, in turn, and lets the last go to its end. A row of the table tells when each run was killed,
in seconds from when the subject was there, how many cells were finished by then, and whether `results.parquet`,
`gaps.parquet` and `sequences.parquet` have the bytes of the undisturbed run.
"""

import argparse
import hashlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

SCRIPT = """
import sys
from pathlib import Path
import torch
import assay
from assay.subjects import Subject, dyck_model
from assay.tasks import Dyck

torch.set_num_threads(1)
task = Dyck(brackets=4, max_depth=4, deeper=8, training_sentences=500, max_brackets=40)
subject = Subject(dyck_model(task, seed=0).eval(), task.tokenizer(), "random", seed=0)
print("begun", flush=True)
assay.compare(
    subject, task, [assay.SVD(rank=2), assay.KMeans(clusters=8), assay.OneHotAttention()],
    sites=["all-heads", "all"], sequences=300, fit_sequences=60, resamples=50, folder=Path(sys.argv[1]),
    workers=assay.Workers(int(sys.argv[2])),
)
"""
"""The comparison."""


class Kill(NamedTuple):
    """When a run was killed (None: it was over), in seconds from when the subject was there, and the cells it left."""

    moment: float | None
    cells: int


def start(folder: Path, jobs: int = 1, before: Callable[[], None] | None = None) -> "subprocess.Popen[str]":
    """The comparison, begun in a process of its own; `before` runs there first."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(jobs)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=before,  # noqa: PLW1509
    )  # fmt: skip


def finish(run: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit status and what was said on the error stream."""
    _, said = run.communicate()
    return run.returncode, said


def complete(folder: Path, jobs: int = 1) -> float:
    """Run the comparison to its end; gives the seconds from when the subject was there.

    Raises RuntimeError, with what it said, if it fails.
    """
    run = start(folder, jobs)
    assert run.stdout is not None
    run.stdout.readline()
    begun = time.monotonic()
    status, said = finish(run)
    if status != 0:
        raise RuntimeError(said)
    return time.monotonic() - begun


def cells(folder: Path) -> int:
    """How many cells are finished."""
    return len(list(folder.glob("cells/*.npz")))


def kill(folder: Path, jobs: int, *, times: int, seed: int, longest: float, most: int) -> Iterator[Kill]:
    """Start the comparison so many times, and kill it each time.

    Every other run is killed at a random moment within `longest` seconds, the rest when a random number of its `most`
    cells that are still missing is finished.
    """
    chance = random.Random(seed)
    for number in range(times):
        run = start(folder, jobs)
        assert run.stdout is not None
        run.stdout.readline()
        begun = time.monotonic()
        missing = most - cells(folder)
        if number % 2 or not missing:
            wanted, moment = most + 1, chance.uniform(0.1, longest)
        else:
            wanted, moment = cells(folder) + chance.randint(1, missing), longest * 2
        while cells(folder) < wanted and time.monotonic() < begun + moment and run.poll() is None:
            time.sleep(0.002)
        alive, moment = run.poll() is None, time.monotonic() - begun
        run.kill()
        run.communicate()
        yield Kill(moment if alive else None, cells(folder))


def results(folder: Path) -> dict[str, str]:
    """A hash of each file of results."""
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("results.parquet", "gaps.parquet", "sequences.parquet")
    }


def main() -> None:
    """Print the list; the exit status is 1 if any files differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folders", type=int, default=3)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if min(options.folders, options.kills) < 1:
        parser.error("--folders and --kills must be at least 1.")
    other = False
    print("| workers | killed after (cells finished) | run again to its end (cells) |")
    print("|---|---|---|")
    for jobs in (1, 2):
        with tempfile.TemporaryDirectory() as name:
            whole = Path(name, "whole")
            longest = complete(whole, jobs)
            for number in range(options.folders):
                folder, seed = Path(name, str(number)), options.seed + 100 * jobs + number
                kills = [
                    "over before" if moment is None else f"{moment:.1f} s ({found})"
                    for moment, found in kill(
                        folder, jobs, times=options.kills, seed=seed, longest=longest, most=cells(whole)
                    )
                ]
                complete(folder, jobs)
                same = results(folder) == results(whole)
                other |= not same
                bytes_ = "the same bytes" if same else "OTHER BYTES"
                print(f"| {jobs} | {', '.join(kills)} | {bytes_} ({cells(folder)}) |", flush=True)
    sys.exit(other)


if __name__ == "__main__":
    main()
