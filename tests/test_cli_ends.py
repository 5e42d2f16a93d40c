"""How commands end that cannot go on: in one line, before the work where they can, and how to go on."""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import assay
from assay.studies import dyck


@pytest.fixture(scope="module")
def finished(subject, task, tmp_path_factory) -> Path:
    """The folder of a small run."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assay.compare(
        subject, task, [assay.SVD(rank=2)], sites=["layer0.head0"], sequences=6, fit_sequences=40, resamples=20,
        controls=False, refit=False, folder=folder,
    )  # fmt: skip
    return folder


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


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), SystemError("bad argument to internal function")], ids=repr)
def test_another_error_is_a_fault_and_shows_where(command, monkeypatch, tmp_path, error):
    def fails(*arguments, **options):
        raise error

    monkeypatch.setattr(dyck, "run", fails)
    with pytest.raises(type(error)):
        command("run", "dyck", "--out", tmp_path)


MUCH = (150, 600, 1_000, 1_200, 1_500, 2_200)


@pytest.mark.parametrize("megabytes", [250, *(pytest.param(size, marks=pytest.mark.slow) for size in MUCH)])
def test_a_process_that_may_have_little_memory_says_so_in_one_line(tmp_path, megabytes):
    def limited():
        resource.setrlimit(resource.RLIMIT_AS, (megabytes * 2**20, megabytes * 2**20))

    call = [sys.executable, "-m", "assay", "run", "dyck", "--sequences", "60", "--out", str(tmp_path / "it")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    found = subprocess.run(call, check=False, capture_output=True, text=True, env=environment, preexec_fn=limited)
    assert (found.returncode, found.stdout) == (1, ""), found.stderr
    assert found.stderr.strip().splitlines()[-1].startswith("error: out of memory"), found.stderr
    assert "Traceback" not in found.stderr


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


def test_a_run_on_a_disk_that_is_read_only_is_reported_elsewhere(finished, command, monkeypatch, tmp_path):
    closed(monkeypatch, finished)
    status, out, err = command("report", finished)
    assert (status, out) == (2, "")
    said = " ".join(err.replace("│", " ").split())
    assert "nothing can be written to" in said
    assert "(Read-only file system); give another folder" in said
    status, out, err = command("report", finished, "--out", tmp_path / "page")
    assert status == 0, err
    assert str(tmp_path / "page" / "report.html") in out
    assert {path.name for path in (tmp_path / "page").iterdir()} == {"report.html", "figures"}


def test_a_comparison_tries_its_folder_before_the_work(subject, task, monkeypatch, tmp_path):
    def begun(*arguments, **options):
        raise AssertionError("the work was begun")

    monkeypatch.setattr("assay.faithfulness._compare.noise_floor", begun)
    closed(monkeypatch, tmp_path)
    with pytest.raises(assay.AssayError, match=r"nothing can be written to .* \(Read-only file system\)"):
        assay.compare(subject, task, [assay.SVD(rank=2)], sequences=4, fit_sequences=40, folder=tmp_path / "run")


@pytest.mark.parametrize(
    "arguments",
    [
        ("certify", "max-of-4", "--out", "{place}/c.json"),
        ("certify", "linear-max-of-2", "--coq", "{place}/c.v"),
        ("run", "max-of-k", "--markdown", "{place}/t.md"),
        ("run", "compressed", "--markdown", "{place}/t.md"),
        ("compare", "m", "--require", "faithful", "--junit", "{place}/j.xml", "--split", "iid=x", "--with", "y"),
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
