"""A run folder holds one study: nothing of another one stays in it, and none is taken over unasked."""

import json
from dataclasses import replace

import pytest

import assay
from assay import AssayError
from assay.faithfulness import Comparison, claim
from assay.studies import max_of_k, text

QUICK = {
    "sequences": 8, "fit_sequences": 40, "resamples": 50, "refit": False, "controls": False,
    "metrics": ["same_prediction", "proxy_accuracy"],
}  # fmt: skip


@pytest.fixture(scope="module")
def judge(subject, task):
    """judge(folder, **changes): a quick comparison on the small subject."""
    one = [assay.SVD(rank=2)]

    def compare(folder, *, subject=subject, task=task, simplifications=one, **changes):
        return assay.compare(subject, task, simplifications, folder=folder, **{**QUICK, **changes})

    return compare


@pytest.fixture
def finished(tmp_path, judge):
    """A folder with a finished run, its figures and its page."""
    found = judge(tmp_path)
    for name in ("figures/old.svg", "figures/old.png", "report.html", "illustrations.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("old")
    assert Comparison.load(tmp_path).record == found.record
    return tmp_path


def files(folder):
    """What a folder holds, without cells and times of change."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


OTHERS = {
    "simplifications": lambda given: {"simplifications": [assay.SVD(rank=1)]},
    "sequences": lambda given: {"sequences": 9},
    "fit_sequences": lambda given: {"fit_sequences": 41},
    "sites": lambda given: {"sites": ("layer1",)},
    "controls": lambda given: {"controls": True},
    "seed": lambda given: {"seed": 1},
    "resamples": lambda given: {"resamples": 60},
    "level": lambda given: {"level": 0.9},
    "metrics": lambda given: {"metrics": ["same_prediction"]},
    "primary": lambda given: {"primary_kind": "all"},
    "subjects": lambda given: {"subject": given[0].shuffled_copy()},
    "task": lambda given: {"task": replace(given[1], seed=5)},
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_study_is_refused_before_any_work_and_nothing_is_touched(finished, judge, subject, task, what):
    before = files(finished)
    with pytest.raises(
        AssayError, match=rf"finished run of another study \(different: .*{what}.*--overwrite"
    ) as caught:
        judge(finished, progress=lambda step: pytest.fail("worked"), **OTHERS[what]((subject, task)))
    assert "\n" not in str(caught.value)
    assert files(finished) == before


def test_with_overwrite_nothing_old_stays_but_cells(finished, judge):
    cells = set((finished / "cells").iterdir())
    both = [assay.SVD(rank=2), assay.SVD(rank=1)]
    found = judge(finished, simplifications=both, overwrite=True)
    assert Comparison.load(finished).record == found.record
    assert not [name for name, content in files(finished).items() if content == b"old"]
    assert not (finished / "report.html").exists()
    assert cells < set((finished / "cells").iterdir()), "the cells of the one that is judged again are used"
    judge(finished, simplifications=both)


def test_a_folder_within_is_cleared_too(finished, judge):
    judge(finished / "heads")
    (finished / "heads" / "report.html").write_text("old")
    judge(finished, sequences=9, overwrite=True)
    assert {path.name for path in (finished / "heads").iterdir()} == {"cells"}


def test_the_same_study_is_drawn_again(finished, judge):
    before = Comparison.load(finished)
    again = judge(finished)
    assert again.results.equals(before.results)
    assert (finished / "report.html").read_text() == "old", "to be drawn by whoever draws it"
    judge(finished, overwrite=True)


class StopError(Exception):
    """Raised from the progress callback."""


def test_an_unfinished_run_of_another_study_gives_way_and_leaves_its_cells(tmp_path, judge):
    def stop(step):
        if step.done >= step.total // 2:
            raise StopError

    with pytest.raises(StopError):
        judge(tmp_path, progress=stop)
    cells = set((tmp_path / "cells").iterdir())
    assert cells
    found = judge(tmp_path, sequences=9)
    assert found.results.equals(judge(None, sequences=9).results)
    assert cells < set((tmp_path / "cells").iterdir())


def test_a_finished_run_that_does_not_say_of_which_study_is_refused(finished, judge):
    for content in (None, b"", b"[1]", b"\xff"):
        (finished / "study.json").unlink(missing_ok=True)
        if content is not None:
            (finished / "study.json").write_bytes(content)
        with pytest.raises(AssayError, match="it does not say of which"):
            judge(finished)
    judge(finished, overwrite=True)


def test_what_is_of_no_run_is_never_removed(tmp_path, judge):
    for name in ("report.html", "figures/mine.svg", "results.parquet", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    before = files(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(AssayError, match=r"report\.html that is of no run"):
            judge(tmp_path, overwrite=overwrite)
    assert files(tmp_path) == before
    (tmp_path / "report.html").unlink()
    claim(tmp_path, {"study": "comparison"}, overwrite=True)
    assert (tmp_path / "figures" / "mine.svg").read_text() == "mine"


def test_a_file_is_no_folder(tmp_path, judge):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(AssayError, match="is a file; give a folder"):
        judge(tmp_path / "file")


def test_the_study_is_written_in_plain_words(finished):
    study = json.loads((finished / "study.json").read_text())
    assert study["simplifications"] == ["SVD(rank=2)"]
    assert study["sequences"] == 8
    assert study["primary"] == ["same_prediction", "closing_far"]


def test_proofs_and_comparisons_do_not_mix(finished, judge):
    with pytest.raises(AssayError, match="different: study"):
        max_of_k.run(finished, quick=True)
    other = finished / "proofs"
    claim(other, {"study": "max-of-k", "quick": True})
    (other / "report.html").write_text("old")
    with pytest.raises(AssayError, match="different: quick"):
        max_of_k.run(other)
    with pytest.raises(AssayError, match="different: study"):
        judge(other)


def test_from_the_command_line(tmp_path, command):
    for name, numbers in (("fit", range(8)), ("iid", range(8, 16))):
        (tmp_path / f"{name}.txt").write_text("\n".join(f"def f{n}(a): return a + {n}" for n in numbers))
    fixed = (
        "compare", "code-python", "--fit", tmp_path / "fit.txt", "--split", f"iid={tmp_path / 'iid.txt'}",
        "--simplify", "one-hot", "--max-length", "16", "--no-controls", "--fit-sequences", "4",
        "--out", tmp_path / "run", "--json",
    )  # fmt: skip
    assert command(*fixed, "--sequences", "4")[0] == 0
    assert command(*fixed, "--sequences", "4")[0] == 0, "the same study is drawn again"
    (tmp_path / "run" / "figures" / "old.svg").write_text("old")
    status, out, err = command(*fixed, "--sequences", "5")
    assert status == 1
    assert not out
    assert "another study (different: splits, sequences)" in err
    assert command(*fixed, "--sequences", "5", "--overwrite")[0] == 0
    assert not (tmp_path / "run" / "figures" / "old.svg").exists()
    assert Comparison.load(tmp_path / "run").record.splits[1].sequences == 5


def test_every_study_that_leaves_a_folder_can_overwrite():
    import inspect  # noqa: PLC0415

    from assay.studies import code, dyck  # noqa: PLC0415

    for run in (text.run, dyck.run, code.run, max_of_k.run):
        assert inspect.signature(run).parameters["overwrite"].default is False
