"""The command that fuzzes, and the fuzz of proofs: it finds what is planted, and its evaluator is right."""

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from assay.proofs.attention import _groups
from assay.proofs.checker import _attention, _linear
from assay.testing.fuzz import Tally, Tried, proofs
from assay.testing.fuzz.__main__ import FUZZES, main, table, write_section
from assay.testing.fuzz._models import attention_subject, tiny_model
from assay.testing.fuzz._truth import AttentionTruth, every_input


def stopped_after(models):
    """Hears of so many models, and is interrupted."""
    left = iter(range(models - 1))

    def say(text):
        if next(left, None) is None:
            raise KeyboardInterrupt

    return say


def of(rows):
    return {row.kind: row for row in rows}


def test_an_interruption_ends_with_what_was_tried_and_the_same_seed_tries_the_same():
    first, second = (proofs.run(3, 60.0, stopped_after(3)) for _ in range(2))
    assert first == second
    assert of(first)["models"].tried == 3
    assert {row.wrong for row in first} == {0}
    assert sum(row.tried for row in first if row.kind.startswith("forgeries")) <= 6 * 3


def mutant(upper, last, cell):
    top = upper.max(axis=2)
    return top.sum(axis=1) + last - (cell.copies[0] >= 1) * (top - upper[:, :, -1]).max(axis=1)


def test_a_bound_that_is_wrong_is_found_and_its_seed_repeats_it(monkeypatch):
    monkeypatch.setattr(_groups, "worst", mutant)
    seed = 122692994000527
    found = of(proofs.run(seed, 60.0, stopped_after(1)))["certificates: attention, exact"]
    assert found.wrong == 1
    assert found.first.startswith(f"--seed {seed}: ")
    assert "of 81 inputs it is 58, not from 64 to 64" in found.first
    monkeypatch.undo()
    assert {row.wrong for row in proofs.run(seed, 60.0, stopped_after(1))} == {0}


def test_a_checker_that_refuses_nothing_is_found(monkeypatch):
    for family in (_attention, _linear):
        monkeypatch.setattr(family, "require", lambda condition, reason: None)
    rows = proofs.run(3, 60.0, stopped_after(2))
    wrong = {row.kind for row in rows if row.wrong}
    assert "forgeries: numbers of claim or evidence changed, the rest made to fit" in wrong
    assert not any(kind.startswith("certificates") for kind in wrong)


@pytest.mark.parametrize("head", [1, 2, 3, 5])
def test_the_evaluator_says_what_the_model_does(head):
    """In float64, on models of any width, wherever the two best logits are not next to each other."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        shapes = {"W_E": (5, 6), "W_pos": (3, 6), "W_O": (head, 6), "W_U": (6, 5)} | {
            f"W_{n}": (6, head) for n in "QKV"
        }
        arrays = {name: rng.normal(0, 1, shape) for name, shape in shapes.items()}
        subject = attention_subject(arrays, 3, torch.float64)
        logits = subject.model(torch.from_numpy(every_input(5, 3))).logits[:, -1].detach().numpy()
        best = np.sort(logits, axis=1)
        truth = AttentionTruth(subject)
        assert (best[:, -1] - best[:, -2] > 1e-9).all()
        assert (truth.predictions == logits.argmax(axis=1)).all()
        assert [truth.correct(tuple(tokens)) for tokens in every_input(5, 3)[:20].tolist()] == truth.right()[
            :20
        ].tolist()


def test_the_evaluator_decides_without_floats_where_they_cannot():
    """Of tiny models, with ties and numbers far apart: floats that decide, and exact arithmetic on every input."""
    for seed in range(12):
        truth = AttentionTruth(tiny_model(Random(seed)))
        exactly = [truth.correct(tuple(tokens)) for tokens in every_input(truth.vocabulary, truth.length).tolist()]
        assert truth.right().tolist() == exactly


def test_models_are_of_every_width_and_precision():
    models = [tiny_model(Random(seed)).model for seed in range(200)]
    assert {model.config.head_dim for model in models} == {1, 2, 3, 4, 5, 7}
    assert {model.config.vocab_size for model in models} == {3, 4, 9, 10, 11}
    assert {model.lm_head.weight.dtype for model in models} == {torch.float32, torch.float64}


def test_a_tally_counts_by_kind_and_keeps_the_first_wrong_case():
    tally = Tally()
    for kind, wrong in (("b", ""), ("a", "one"), ("b", ""), ("a", "two"), ("a", "")):
        tally.count(kind, wrong)
    assert tally.rows() == [Tried("a", 3, 2, "one"), Tried("b", 2, 0, "")]
    assert str(tally) == "5 tried, 2 wrong"
    assert table(tally.rows()).splitlines() == [
        "| what | tried | wrong |", "|---|---|---|", "| a | 3 | 2 |", "| b | 2 | 0 |", "", "- a: `one`",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (["proof"], "unknown fuzz 'proof'; did you mean 'proofs'?"),
        (["proofs", "--minutes", "0"], "--minutes 0.0 --seed 0: minutes above 0, a seed of at least 0."),
        (["proofs", "--minutes", "nan"], "--minutes nan --seed 0: minutes above 0, a seed of at least 0."),
        (["proofs", "--seed", "-1"], "--minutes 1.0 --seed -1: minutes above 0, a seed of at least 0."),
        (["proofs", "--markdown", "no/such/page.md"], "--markdown 'no/such/page.md': there is no such folder"),
    ],
    ids=["name", "zero", "nan", "seed", "folder"],
)
def test_a_wrong_call_ends_in_one_line(call, words, capsys):
    assert main(call) == 2
    told = capsys.readouterr()
    assert told.err.startswith(words)
    assert told.err.count("\n") == 1
    assert not told.out


def test_the_status_says_whether_anything_was_wrong(monkeypatch, capsys, tmp_path):
    page = tmp_path / "page.md"
    for rows, status in (([Tried("a", 3, 0, "")], 0), ([Tried("a", 4, 1, "--seed 5: b")], 1)):
        monkeypatch.setattr(proofs, "run", lambda seed, minutes, say, rows=rows: rows)
        assert main(["proofs", "--minutes", "2", "--seed", "7", "--markdown", str(page)]) == status
        assert capsys.readouterr().out == table(rows) + "\n"
    written = page.read_text(encoding="utf-8")
    assert "`python -m assay.testing.fuzz proofs --minutes 2 --seed 7`" in written
    assert "- a: `--seed 5: b`" in written
    assert written.count("## `proofs`") == 1


def test_an_interruption_before_the_first_case_ends_in_one_line(monkeypatch, capsys):
    def interrupted(seed, minutes, say):
        raise KeyboardInterrupt

    monkeypatch.setattr(proofs, "run", interrupted)
    assert main(["proofs"]) == 1
    assert capsys.readouterr().err == "interrupted before anything was tried.\n"


def test_a_section_is_written_in_place_of_its_former_self(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A page\n\nWords.\n\n## Other\n\nMore.\n", encoding="utf-8")
    for text in ("first", "second"):
        for name in ("proofs", "readers"):
            write_section(page, name, f"{name}, {text}")
    assert page.read_text(encoding="utf-8") == (
        "# A page\n\nWords.\n\n## Other\n\nMore.\n\n## `proofs`\n\nproofs, second\n\n## `readers`\n\nreaders, second\n"
    )


def test_every_fuzz_has_a_module_and_every_module_is_a_fuzz():
    modules = {path.stem for path in Path(proofs.__file__).parent.glob("[!_]*.py")}
    assert modules == set(FUZZES)
