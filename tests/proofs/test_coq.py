"""Coq developments say what certificates say, and Coq accepts exactly those."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from tiny import table_subject
from typer.testing import CliRunner

import assay
from assay.cli import app
from assay.proofs import certify, coq_development
from assay.proofs.linear import _coq
from assay.subjects import Subject
from assay.tasks import InputSet
from assay.testing.fuzz._models import linear_subject
from assay.testing.fuzz._truth import LinearTruth


@pytest.fixture(scope="module")
def subject():
    rng = np.random.default_rng(3)
    size = np.arange(5.0)
    U = np.vstack([2 * size, -(size**2) / 2, rng.normal(0, 0.3, 5)])
    return linear_subject(np.column_stack([size, np.ones(5), rng.normal(size=5)]), np.eye(3), U, 2)


def matrix(text, name):
    found = re.search(rf"Definition {name} : list \(list Z\) := (\[\[.*?\]\])\.", text, re.DOTALL)
    rows = found[1].replace("\n", " ").replace("(", "").replace(")", "").strip("[]").split("];   [")
    return [[int(entry) for entry in row.split("; ")] for row in rows]


def test_the_weights_and_the_number_are_those_of_the_model(subject):
    certificate = certify(subject)
    text = coq_development(subject, certificate)
    assert "@" not in text
    assert certificate.statement.replace('"', "_") in text
    exponents = [int(power) for power in re.findall(r"2\^(-?\d+)", text)[:3]]
    state = subject.model.state_dict()
    for name, exponent, key in zip("EWU", exponents, ("embed_tokens", "linear", "lm_head"), strict=True):
        assert (np.array(matrix(text, name)) * 2.0**exponent == state[f"{key}.weight"].double().numpy()).all()
    assert f"Z.of_nat (length right) = {LinearTruth(subject).count(InputSet(2, 5))}." in text
    assert "Admitted" not in text
    assert "Axiom" not in text


def test_a_name_does_not_end_the_comment_it_stands_in(subject):
    named = Subject(subject.model, None, 'a "name" *) Axiom strange : False. (* @N@')
    text = coq_development(named, certify(named))
    assert r"_a \_name\_ _) Axiom strange : False. (_ _N__ predicts" in text
    assert text.count("(*") == text.count("*)") == coq_development(subject, certify(subject)).count("*)")


def test_what_cannot_be_stated_is_refused(subject, monkeypatch):
    with pytest.raises(assay.AssayError, match="over all inputs"):
        coq_development(subject, certify(subject, inputs=InputSet(2, 5, copies=1)))
    with pytest.raises(assay.AssayError, match="exact accuracy"):
        coq_development(subject, certify(subject, quantity="loss"))
    with pytest.raises(assay.AssayError, match="other weights"):
        coq_development(table_subject(np.eye(5), 2), certify(subject))
    with pytest.raises(assay.AssayError, match="linear models only"):
        coq_development(assay.load("max-of-4"), certify(subject))
    monkeypatch.setattr(_coq, "_LARGEST", 5**3 - 1)
    with pytest.raises(assay.AssayError, match="too long"):
        coq_development(subject, certify(subject))


def coqc(text, folder):
    (folder / "accuracy.v").write_text(text, encoding="utf-8")
    return subprocess.run(["coqc", "accuracy.v"], cwd=folder, capture_output=True, text=True, check=False)


needs_coq = pytest.mark.skipif(shutil.which("coqc") is None, reason="coqc is not installed (Debian: apt install coq)")


@pytest.mark.slow
@needs_coq
@pytest.mark.parametrize("length", [2, 3])
def test_coq_accepts_the_theorem_without_axioms(length, tmp_path):
    noise = np.random.default_rng(length).normal(0, 1, (4, 4))
    subject = table_subject(np.outer(np.arange(4.0), np.arange(4.0)) - np.arange(4.0) ** 2 / 3 + noise, length)
    done = coqc(coq_development(subject, certify(subject)), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "Closed under the global context"


@pytest.mark.slow
@needs_coq
def test_coq_refuses_another_number_and_other_weights(subject, tmp_path):
    certificate = certify(subject)
    text = coq_development(subject, certificate)
    number = certificate.at_least
    forged = text.replace(f"= {number}.", f"= {number + 1}.").replace(f"eq_refl ({number})", f"eq_refl ({number + 1})")
    assert forged != text
    assert coqc(forged, tmp_path).returncode != 0
    assert coqc(text.replace("Definition n : nat := 2.", "Definition n : nat := 3."), tmp_path).returncode != 0


@pytest.mark.slow
@needs_coq
@pytest.mark.timeout(900)
def test_coq_checks_64_tokens_of_width_32(tmp_path):
    rng = np.random.default_rng(0)
    size = np.arange(64) / 64
    E, U = rng.normal(0, 0.1, (64, 32)), rng.normal(0, 0.05, (32, 64))
    E[:, 0], E[:, 1], U[0], U[1] = size, 1, 12 * size, -6 * size**2
    subject = linear_subject(E, np.eye(32), U, 2)
    done = coqc(coq_development(subject, certify(subject)), tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_command_writes_the_file(subject, tmp_path):
    assay.subjects.save(subject, tmp_path / "model")
    path = tmp_path / "accuracy.v"
    done = CliRunner().invoke(app, ["certify", str(tmp_path / "model"), "--coq", str(path)])
    assert done.exit_code == 0, done.output
    assert "Theorem accuracy" in path.read_text(encoding="utf-8")
