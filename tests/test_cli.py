"""The command line: what it prints, what it leaves, and how it ends."""

import json
import math
import os
import re
from functools import partial
from pathlib import Path

import pytest

from assay import cli
from assay.faithfulness import Comparison
from assay.studies import dyck
from assay.tasks import Dyck


def strict(text):
    """JSON as the standard has it: no NaN, no Infinity."""

    def forbidden(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=forbidden)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """What `assay run dyck --sequences 6` leaves, on the shipped model."""
    folder = tmp_path_factory.mktemp("runs") / "dyck"
    patch = pytest.MonkeyPatch()
    patch.setattr("sys.argv", ["assay", "run", "dyck", "--sequences", "6", "--out", str(folder)])
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code  # noqa: PT017
    finally:
        patch.undo()
    return folder


def test_run_leaves_the_files_of_a_run_folder(run_folder):
    assert {"comparison.json", "results.parquet", "sequences.parquet", "report.html", "figures"} <= set(
        os.listdir(run_folder)
    )
    assert {path.suffix for path in (run_folder / "figures").iterdir()} == {".svg", ".png"}
    comparison = Comparison.load(run_folder)
    assert {split.sequences for split in comparison.record.splits[1:]} == {6}
    page = (run_folder / "report.html").read_text(encoding="utf-8")
    for verdict in comparison.verdicts():
        assert f"{verdict.proxy} at {verdict.site}" in page


def test_report_draws_a_run_again(run_folder, command, tmp_path):
    before = (run_folder / "results.parquet").read_bytes()
    (run_folder / "report.html").unlink()
    status, out, _ = command("report", run_folder, "--markdown", tmp_path / "table.md")
    assert status == 0
    assert (run_folder / "report.html").is_file()
    assert (run_folder / "results.parquet").read_bytes() == before
    assert "SVD(rank=8)" in out
    assert "| SVD(rank=8) |" in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_report_as_json_is_json(run_folder, command):
    status, out, _ = command("report", run_folder, "--json")
    assert status == 0
    found = strict(out)
    assert {"folder", "verdicts", "same_prediction", "gaps", "noise_floor"} <= set(found)
    assert {verdict["judgement"] for verdict in found["verdicts"]} <= {
        "illusion", "gap", "unfaithful", "inconclusive", "vacuous", "faithful", "identical",
    }  # fmt: skip
    comparison = Comparison.load(run_folder)
    assert found["warnings"] == list(comparison.warnings())
    assert found["detectable"] == pytest.approx(comparison.detectable())
    assert found["detectable"]
    first = next(row for row in found["gaps"] if row["proxy"] == "SVD(rank=8)" and row["trained"])
    own = comparison.gaps().query("proxy == 'SVD(rank=8)' and trained").set_index("split").loc[first["split"]]
    for part in ("per_sequence", "overlap", "outside"):
        for end in ("", "_low", "_high"):
            value = own[f"{part}{end}"]
            assert first[f"{part}{end}"] == (None if math.isnan(value) else pytest.approx(value))
    of_iid = next(row for row in found["controls"] if row["proxy"] == "SVD(rank=8)" and row["split"] == "iid")
    verdict = next(row for row in found["verdicts"] if row["proxy"] == "SVD(rank=8)")
    assert verdict["recovered"] == pytest.approx(of_iid["recovered"])
    assert of_iid["control"] == "RandomProjection(rank=8)"


def test_report_on_an_unfinished_run_fails_in_one_line(command, tmp_path):
    (tmp_path / "cells").mkdir()
    status, out, err = command("report", tmp_path)
    assert status == 1
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert "not finished" in err
    assert "Traceback" not in err


def test_names_in_brackets_are_printed_as_they_are(command, tmp_path):
    folder = tmp_path / "runs[bold][/x]"
    status, _, err = command("report", folder)
    assert status == 1
    assert "runs[bold][/x]" in err.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "dyck", "--sequences", "1"), "sequences"),
        (("run", "dyck", "--sequences", "many"), "sequences"),
        (("run", "dyck", "--seed", "77"), "77"),
        (("run", "dyck", "--full", "--seed", "0"), "seed"),
        (("run", "dyck", "--device", "abacus"), "abacus"),
        (("run", "dyck", "--sentence", "(0 (1 0)"), "sentence"),
        (("run", "dyck", "--sentence", "(77 77)"), "77"),
        (("run", "code", "--functions", "1"), "--functions"),
        (("run", "code", "--model", "dyck-20-10"), "--model"),
        (("run", "code", "--data", "nowhere"), "--data"),
        (("run", "code", "--jobs", "0"), "--jobs"),
        (("train", "dyck", "--steps", "0"), "steps"),
        (("run", "dyck", "--sequence", "5"), "--sequences"),
        (("run", "dick"), "dyck"),
        (("train", "dick"), "dyck"),
        (("reprot",), "report"),
        (("report",), "report"),
    ],
)
def test_wrong_calls_end_with_2_and_a_hint(command, arguments, words):
    status, out, err = command(*arguments)
    assert status == 2
    assert words in err
    assert "Traceback" not in err
    assert not out


def test_list_names_everything(command):
    status, out, _ = command("list")
    assert status == 0
    for name in ("dyck", "dyck-20-10", "svd", "kmeans", "one-hot", "identity", "same_prediction", "attention_jsd"):
        assert re.search(rf"^\s+{name}\s", out, re.MULTILINE), name


def test_list_as_json(command):
    status, out, _ = command("list", "--json")
    assert status == 0
    found = strict(out)
    assert {"tasks", "models", "simplifications", "metrics"} <= set(found)
    assert found["simplifications"]["svd"].startswith("Project each head")


def test_train_makes_a_model_with_its_record_and_refuses_to_do_it_twice(command, monkeypatch, tmp_path):
    """Three steps on a smaller task; the evaluation is the only thing that is cut short."""
    small = Dyck(brackets=20, max_depth=10, deeper=14, training_sentences=2_000, max_brackets=60)
    monkeypatch.setattr(dyck, "train", partial(dyck.train, task=small, evaluation_sequences=4))
    folder = tmp_path / "model"
    status, out, _ = command("train", "dyck", "--steps", "3", "--out", folder, "--json")
    assert status == 0
    record = strict(out)
    assert record["steps"] == 3
    assert record["accuracy"].keys() == set(Dyck.split_names[1:])
    assert record["weights_sha256"]
    written = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    assert written["weights_sha256"] == record["weights_sha256"]
    assert (folder / "model.safetensors").is_file()
    assert not (folder / "checkpoint.pt").exists()
    status, _, err = command("train", "dyck", "--steps", "3", "--out", folder)
    assert status == 1
    assert "trained model already" in err.replace("\n", " ")


def test_help_names_the_commands(command):
    status, out, _ = command("--help")
    assert status == 0
    assert all(word in out for word in ("run", "train", "report", "list"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (MemoryError("a\nb"), "out of memory"),
        (SystemError("error return without exception set"), "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory"),
        (ImportError("libtorch.so: failed to map segment from shared object"), "out of memory"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_run_lacks_ends_it_in_one_line_that_says_how_to_go_on(command, monkeypatch, tmp_path, error, said):
    def fails(*arguments, **options):
        raise error

    monkeypatch.setattr(dyck, "run", fails)
    folder = tmp_path / "it"
    status, out, err = command("run", "dyck", "--out", folder)
    assert (status, out) == (1, "")
    go_on = f"what is finished is in {folder}: the same command with --out {folder} goes on."
    assert err.strip().splitlines()[-1] == f"error: {said}; {go_on}"
    monkeypatch.setattr("assay.subjects.check_seed", fails)  # before the run
    status, out, err = command("run", "dyck", "--out", folder)
    assert (status, out, err.strip().splitlines()) == (1, "", [f"error: {said}"])


def test_another_error_is_a_fault_and_shows_where(command, monkeypatch, tmp_path):
    monkeypatch.setattr(dyck, "run", lambda *arguments, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        command("run", "dyck", "--out", tmp_path)


def test_an_interrupted_command_says_where_it_goes_on(command, monkeypatch, tmp_path):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(dyck, "run", interrupted)
    status, out, err = command("run", "dyck", "--out", tmp_path / "a run")
    assert (status, out) == (130, "")
    folder = tmp_path / "a run"
    said = f"stopped; what is finished is in {folder}: the same command with --out '{folder}' goes on."
    assert err.strip().splitlines()[-1] == said
    monkeypatch.setattr("assay.subjects.check_seed", interrupted)
    assert command("run", "dyck", "--out", folder) == (130, "", "stopped.\n")


def closed(monkeypatch, folder):
    """Let nothing be written below a folder, as on a disk that is mounted to be read (root may write anything)."""
    opened = os.open

    def refused(path, flags, *rest, **options):
        if flags & os.O_CREAT and Path(path).is_relative_to(folder):
            raise OSError(30, "Read-only file system", str(path))
        return opened(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", refused)


def test_a_run_on_a_disk_that_is_read_only_is_reported_elsewhere(run_folder, command, monkeypatch, tmp_path):
    closed(monkeypatch, run_folder)
    status, out, err = command("report", run_folder)
    assert (status, out) == (2, "")
    said = " ".join(err.replace("│", " ").split())
    assert "nothing can be written to" in said
    assert "(Read-only file system); give another one" in said
    status, out, err = command("report", run_folder, "--out", tmp_path / "page")
    assert status == 0, err
    assert str(tmp_path / "page" / "report.html") in out
    assert {path.name for path in (tmp_path / "page").iterdir()} == {"report.html", "figures"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("certify", "max-of-4", "--out", "{place}/c.json"),
        ("certify", "linear-max-of-2", "--coq", "{place}/c.v"),
        ("run", "max-of-k", "--markdown", "{place}/t.md"),
        ("run", "compressed", "--markdown", "{place}/t.md"),
        (
            "compare",
            "code-python",
            "--require",
            "faithful",
            "--junit",
            "{place}/j.xml",
            "--split",
            "iid=x",
            "--with",
            "y",
        ),
        ("run", "max-of-k", "--out", "{place}"),
    ],
    ids=lambda arguments: " ".join(arguments[:3]),
)
@pytest.mark.parametrize("why", ["closed", "a file is there", "a folder is there"])
def test_places_are_tried_before_the_work(command, monkeypatch, tmp_path, arguments, why):
    def begun(*arguments, **options):
        raise AssertionError("the work was begun")

    for work in ("assay.proofs.certify", "assay.studies.max_of_k.certify", "assay.studies.compressed.run"):
        monkeypatch.setattr(work, begun)
    place = tmp_path / "place"
    if why == "closed":
        place.mkdir()
        closed(monkeypatch, place)
    elif why == "a file is there":
        place.touch()
    else:
        (place / arguments[-1].removeprefix("{place}/")).mkdir(parents=True)
        if arguments[-1] == "{place}":
            pytest.skip("that is what it is for")
    status, out, err = command(*(part.format(place=place) for part in arguments))
    assert status in (1, 2)
    assert not out
    said = " ".join(err.replace("│", " ").split())
    assert re.search("Read-only file system|is a file|is a folder|must be|no file", said), said
    if why == "closed" and "iid=x" not in arguments:
        assert "Read-only file system" in said
