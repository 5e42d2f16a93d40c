"""The command line: what it prints, what it leaves, and how it ends."""

import json
import math
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

import assay
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
    folder.mkdir(parents=True)
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
        (("run", "code", "--model", "code-pythom"), "code-python"),
        (("certify", "max-of-4", "--against", "svd:rank=0"), "--against"),
        (("certify", "max-of-44"), "MODEL"),
        (("report", "no-such-run"), "RUN"),
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
    assert found["parameters of simplifications"]["svd"] == "svd:rank=…,joint=True,centred=False"
    assert found["parameters of simplifications"].keys() == found["simplifications"].keys()


def test_the_grammar_of_sites_is_what_the_engine_reads(subject):
    """Every way to write a site that is listed can be written; choices stand between bars."""
    engine = assay.engine.Engine(subject)
    for written in assay.engine.GRAMMAR:
        before, _, streams = written.rpartition(".") if "|" in written and "." in written else ("", "", written)
        wheres = ["all"] if before == "…" else before.split("|") if before else [""]
        for where in wheres:
            for stream in streams.split("|"):
                name = {"A+B": "layer0.head0+layer1.mlp"}.get(written, f"{where}.{stream}".lstrip("."))
                assert engine.sites([name.replace("layer2.head1", "layer1.head0").replace("layer2", "layer1")]), name


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


@pytest.mark.parametrize("asked", ["-h", "--help"])
def test_help_names_the_commands(command, asked):
    status, out, _ = command(asked)
    assert status == 0
    assert all(word in out for word in ("run", "train", "report", "list", "--install-completion"))


def test_help_has_groups_and_examples(command):
    status, out, _ = command("compare", "-h")
    assert status == 0
    for words in ("On what, and where", "What is judged", "The model", "Verdicts", "What is left", "$ assay compare"):
        assert words in out
    own = out.split("╭─ Options")[1].split("╭─")[0]
    assert re.findall(r"--[a-z-]+", own) == ["--help"], "every option is in a group"


def test_version(command):
    assert command("--version") == (0, f"assay {assay.__version__}\n", "")


def test_completion_answers_with_what_can_follow():
    asked = {"_ASSAY_COMPLETE": "complete_bash", "COMP_WORDS": "assay comp", "COMP_CWORD": "1"}
    code = "import sys; from assay.cli import main; sys.argv = ['assay']; main()"
    found = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["compare", "compare-runs"]
