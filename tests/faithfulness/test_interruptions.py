"""A comparison that is killed or runs out of disk loses nothing that was finished, and ends as if nothing had been."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import assay
from assay.faithfulness._cells import Cells
from assay.faithfulness._scores import NotFiniteError, Scores
from assay.tasks import Text
from assay.testing.fuzz import _samples
from kills import cells, complete, finish, kill, results, start


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_killed_at_any_moment_and_run_again(tmp_path, jobs):
    longest = complete(tmp_path / "whole", jobs)
    most = cells(tmp_path / "whole")
    kills = list(kill(tmp_path / "killed", jobs, times=4, seed=jobs, longest=longest, most=most))
    assert any(found.moment is not None and 0 < found.cells < most for found in kills), (
        "no run was killed in the middle"
    )
    complete(tmp_path / "killed", jobs)
    assert results(tmp_path / "killed") == results(tmp_path / "whole")


@pytest.mark.slow
def test_a_full_disk_leaves_nothing_damaged(tmp_path):
    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, 4_000))

    status, said = finish(start(tmp_path / "run", before=limited))
    assert status != 0
    assert "File too large" in said
    assert not (tmp_path / "run" / "comparison.json").exists()
    complete(tmp_path / "run")
    complete(tmp_path / "whole")
    assert results(tmp_path / "run") == results(tmp_path / "whole")


def stop_after(cells):
    """A progress that interrupts when so many cells are finished; and the steps it saw."""
    seen = []

    def progress(step):
        seen.append(step)
        if step.done >= cells:
            raise KeyboardInterrupt

    return progress, seen


@pytest.mark.parametrize("kept", ["in a folder", "in this process"])
def test_an_interrupted_comparison_goes_on_where_it_was(tmp_path, kept):
    folder = tmp_path / "run" if kept == "in a folder" else None
    subject = _samples.subject()
    texts = ["a b c", "b a d c", "c ( a )", "d d b", "( b ) a", "a a c d", "b c ( d )", "c b d"]
    shifts = {"reversed": [text[::-1] for text in texts], "twice": [f"{text} {text}" for text in texts]}
    task = Text(subject.tokenizer, train=["a d c b", "b d"], iid=texts, shifts=shifts)
    call = {"sites": ("layer0.head0",), "sequences": 8, "fit_sequences": 2, "resamples": 10, "refit": False,
            "controls": False, "folder": folder}  # fmt: skip
    recipes = [assay.SVD(rank=2)]
    progress, seen = stop_after(2)
    with pytest.raises(KeyboardInterrupt, match=r"\d+ of \d+ cells are finished and kept in .* goes on") as stopped:
        assay.compare(subject, task, recipes, **call, progress=progress)
    assert (repr(str(folder)) in str(stopped.value)) == (folder is not None)
    # Once more, when all is finished but the intervals.
    progress, again = stop_after(3)
    with pytest.raises(KeyboardInterrupt):
        assay.compare(subject, task, recipes, **call, progress=progress)
    assert again[0].done == seen[-1].done == 2
    resumed = assay.compare(subject, task, recipes, **call, progress=again.append)
    assert again[-1].text == "intervals"
    whole = assay.compare(subject, task, recipes, **(call | {"folder": None}))
    assert resumed.results.equals(whole.results)
    assert resumed.gaps().equals(whole.gaps())
    # What was left is used once: the next begins at nothing.
    fresh = []
    assay.compare(subject, task, recipes, **(call | {"folder": None}), progress=fresh.append)
    assert fresh[0].done == 0


def test_only_what_was_scored_is_left_and_only_to_the_same_cells():
    scores = Scores((), np.zeros((1, 0)), np.zeros((1, 0), dtype=np.int64), {}, 0.0)
    interrupted = Cells(None)
    for name in ("a", "b", interrupted.without_name()):
        interrupted.put(name, scores)
    interrupted.put("c", NotFiniteError("no numbers"))
    interrupted.leave()
    in_a_folder = Cells(Path("unused"))
    in_a_folder.take_over(["a", "b"])
    in_a_folder.leave()
    following = Cells(None)
    following.take_over(["b", "c", "d", "unnamed 0"])
    assert [name for name in ("a", "b", "c", "d", "unnamed 0") if name in following] == ["b"]
    assert following["b"] is scores
    last = Cells(None)
    last.take_over(["a", "b"])
    assert "a" not in last
    assert "b" not in last


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_ctrl_c_on_the_command_line_says_where_the_run_is(tmp_path, jobs):
    folder = tmp_path / "a run"
    call = [sys.executable, "-m", "assay", "run", "dyck", "--sequences", "60", "--jobs", jobs, "--out", str(folder)]
    run = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while cells(folder) < 2 and run.poll() is None:
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to the workers, too
    out, err = run.communicate(timeout=120)
    assert run.returncode == 130, err
    assert not out
    lines = err.strip().splitlines()
    assert lines[-1] == f"stopped; what is finished is in {folder}: the same command with --out '{folder}' goes on."
    assert "Traceback" not in err
    before = cells(folder)
    done = subprocess.run(call, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert cells(folder) > before >= 2
