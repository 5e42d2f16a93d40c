"""A comparison that is killed or runs out of disk loses nothing that was finished, and ends as if nothing had been."""

import hashlib
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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
    sites=["all-heads", "all"], sequences=60, fit_sequences=60, resamples=100, folder=Path(sys.argv[1]),
    workers=assay.Workers(int(sys.argv[2])),
)
"""


def start(folder: Path, jobs: int = 1, limit: int | None = None) -> subprocess.Popen:
    def limited() -> None:
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(jobs)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=limited,  # noqa: PLW1509
    )  # fmt: skip


def finish(run: subprocess.Popen) -> tuple[int, str]:
    """Exit status and what was said on the error stream."""
    _, said = run.communicate()
    return run.returncode, said


def complete(folder: Path, jobs: int = 1) -> None:
    status, said = finish(start(folder, jobs))
    assert status == 0, said


def results(folder: Path) -> dict[str, str]:
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("results.parquet", "gaps.parquet", "sequences.parquet")
    }


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_killed_at_any_moment_and_run_again(tmp_path, jobs):
    complete(tmp_path / "whole", jobs)
    moments, killed = random.Random(jobs), 0
    for _ in range(6):
        run = start(tmp_path / "killed", jobs)
        run.stdout.readline()
        time.sleep(moments.uniform(0.1, 4))
        killed += run.poll() is None
        run.kill()
        run.communicate()
    assert killed, "the run was over before it was killed"
    complete(tmp_path / "killed", jobs)
    assert results(tmp_path / "killed") == results(tmp_path / "whole")


@pytest.mark.slow
def test_a_full_disk_leaves_nothing_damaged(tmp_path):
    status, said = finish(start(tmp_path / "run", limit=4_000))
    assert status != 0
    assert "File too large" in said
    assert not (tmp_path / "run" / "comparison.json").exists()
    complete(tmp_path / "run")
    complete(tmp_path / "whole")
    assert results(tmp_path / "run") == results(tmp_path / "whole")
