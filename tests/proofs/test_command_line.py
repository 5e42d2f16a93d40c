import json

import pytest
from typer.testing import CliRunner

import assay
from assay.cli import app, main


def test_certify_and_verify(tmp_path, monkeypatch, capsys):
    path = tmp_path / "certificate.json"
    done = CliRunner().invoke(app, ["certify", "max-of-4", "--strategy", "exact", "--within", "2", "--out", str(path)])
    assert done.exit_code == 0, done.output
    assert CliRunner().invoke(app, ["verify", str(path)]).exit_code == 0

    content = json.loads(path.read_text(encoding="utf-8"))
    content["at_least"] += 1
    path.write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["assay", "verify", str(path)])
    status = 0
    try:
        main()
    except SystemExit as stopped:
        status = stopped.code
    assert status == 1
    assert "refuted" in capsys.readouterr().err


def test_an_impossible_set_is_a_wrong_call():
    assert CliRunner().invoke(app, ["certify", "max-of-4", "--copies", "9"]).exit_code == 2


@pytest.mark.parametrize(
    "call",
    [
        ["certify", "max-of-9"],
        ["certify", "max-of-4", "--seed", "77"],
        ["certify", "max-of-4", "--strategy", "separabel"],
        ["certify", "max-of-4", "--strategy", "cubic", "--grid", "64"],
        ["certify", "max-of-4", "--strategy", "subcubic-low-rank", "--remainder", "means"],
        ["verify", "no-such-certificate.json"],
    ],
)
def test_wrong_calls_exit_with_2(call):
    assert CliRunner().invoke(app, call).exit_code == 2


def test_the_loss_of_a_linear_model(tmp_path, capsys, monkeypatch):
    subject = assay.subjects.load("linear-max-of-3")
    folder = tmp_path / "model"
    assay.subjects.save(subject, folder)
    path = tmp_path / "certificate.json"
    call = ["certify", str(folder), "--loss", "--within", "2", "--strategy", "gemm", "--out", str(path)]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    assert "the mean cross-entropy of" in done.output
    certificate = assay.proofs.Certificate.load(path)
    assert certificate.quantity == "loss"
    assert certificate.inputs.within == 2


@pytest.mark.parametrize(
    "call",
    [["certify", "linear-max-of-3", "--strategy", "cubic"], ["certify", "linear-max-of-3", "--copies", "4"]],
)
def test_wrong_calls_about_linear_models_exit_with_2(call):
    assert CliRunner().invoke(app, call).exit_code == 2
