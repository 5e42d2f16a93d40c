"""Circuits through the harness: found, given, swept, refitted, controlled, by several workers, and resumed."""

import hashlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from planted_task import FOUND_ON_TRAIN, NEEDED_BY_THE_SHIFT, Induction

import assay
from assay import AssayError
from assay.circuits import Circuit, EdgeAttribution, IntegratedEdgeAttribution
from assay.engine import Engine, collect
from assay.faithfulness import Workers
from assay.testing import check_simplification

pytestmark = pytest.mark.slow
"""Whole comparisons; `tests/studies/test_circuits.py` has a shorter one."""

PAIRS = 100


@pytest.fixture(scope="module")
def task():
    return Induction()


@pytest.fixture(scope="module")
def subject(task):
    return task.subject()


@pytest.fixture(scope="module")
def samples(task, subject):
    return collect(Engine(subject), task.split("train", 40), ())


def judge(subject, task, circuits, **options):
    options = {"sequences": PAIRS, "fit_sequences": 40, "resamples": 200, "seed": 1} | options
    return assay.compare(subject, task, circuits, **options)


@pytest.fixture(scope="module")
def comparison(subject, task):
    circuits = [Circuit(3, method="exact"), Circuit(list(FOUND_ON_TRAIN), name="given"), Circuit(46, method="exact")]
    return judge(subject, task, circuits)


def estimates(comparison, metric, split):
    frame = comparison.to_frame()
    chosen = (frame["metric"] == metric) & (frame["split"] == split) & (frame["kind"] == "answer")
    return dict(zip(frame[chosen]["proxy"], frame[chosen]["estimate"], strict=True))


FOUND, GIVEN, ALL = "Circuit(edges=3, method='exact')", "Circuit(given, 3 edges)", "Circuit(edges=46, method='exact')"


def test_what_was_found_in_distribution_fails_where_other_edges_are_needed(comparison, task):
    """Effects, gaps and verdicts of a planted circuit that train knows only in part."""
    effects = comparison.effects().set_index(["proxy", "split"])
    for circuit in (FOUND, GIVEN):
        for split, effect in (("iid", 1), ("first", 0)):
            row = effects.loc[(circuit, split)]
            assert row["effect"] == pytest.approx(effect, abs=1e-9)
            assert row["deviation"] == pytest.approx(1 - effect, abs=1e-9)
            assert row["pairs"] == len(np.unique(task.split(split, PAIRS).tokens, axis=0))
            assert row["ablation"] == "AllAblated()"
        assert effects.loc[(circuit, "first")]["gap"] == pytest.approx(1, abs=1e-9)
        assert effects.loc[(circuit, "first")]["gap_iid_scale"] == pytest.approx(1, abs=1e-9)
    for split in ("iid", "first"):
        assert effects.loc[(ALL, split)]["effect"] == pytest.approx(1, abs=1e-9)
    judgements = {verdict.proxy: verdict.judgement for verdict in comparison.verdicts()}
    # An illusion needs as sure predictions in distribution to compare with: there may be too few.
    assert judgements[FOUND] == judgements[GIVEN]
    assert judgements[FOUND] in ("illusion", "gap")
    assert judgements[ALL] in ("faithful", "inconclusive")  # so few pairs cannot show that there is no gap


def test_what_is_found_on_the_shift_itself_holds_there(comparison):
    rates = estimates(comparison, "same_prediction", "first")
    assert rates[FOUND] == 0
    assert rates[f"{FOUND}, refitted"] == 1
    assert f"{GIVEN}, refitted" not in rates
    gaps = comparison.gaps().set_index("proxy")
    assert (gaps.loc[FOUND, "removed"], gaps.loc[FOUND, "remaining"]) == (1, 0)
    assert np.isnan(gaps.loc[GIVEN, "removed"])
    effects = comparison.effects().set_index("proxy")
    again = effects.loc[f"{FOUND}, refitted"]  # one row: it is judged where it was fitted
    assert (again["split"], again["is_control"], again["ablation"]) == ("first", True, "AllAblated()")
    assert again["effect"] == pytest.approx(1, abs=1e-9)
    assert again["subject_difference"] == effects.query("split == 'first'").loc[FOUND, "subject_difference"]
    assert np.isnan(again["gap"])
    assert f"{GIVEN}, refitted" not in effects.index


def test_controls_know_nothing(comparison):
    for split in ("iid", "first"):
        rates = estimates(comparison, "same_prediction", split)
        assert rates["AllAblated()"] == 0
        assert rates[f"RandomCircuit({FOUND})"] < 0.7
        assert rates[f"RandomCircuit({GIVEN})"] < 0.7
    beyond = comparison.controls().set_index(["proxy", "split"])
    assert beyond.loc[(FOUND, "iid"), "beyond_control"] > 0.3
    assert beyond.loc[(FOUND, "iid"), "control"] == f"RandomCircuit({FOUND})"
    assert beyond.loc[(FOUND, "iid"), "recovered"] == pytest.approx(1)


def test_the_record_says_what_a_circuit_was_defaults_too(comparison, tmp_path):
    known = assay.faithfulness.Comparison.load(comparison.save(tmp_path / "run")).record.proxies
    told = {proxy.proxy: proxy.about for proxy in known}
    assert told[FOUND] == {
        "edges": 3, "method": "exact", "parameters": {"screen": 2000}, "measure": "logit_difference",
        "rank": "absolute", "level": "edges", "ablation": "counterfactual", "seed": 0,
    }  # fmt: skip
    names = "\n".join(sorted(FOUND_ON_TRAIN)).encode()
    assert told[GIVEN] == {
        "edges": 3, "edges_sha256": hashlib.sha256(names).hexdigest(), "found": {}, "ablation": "counterfactual",
        "seed": 0,
    }  # fmt: skip
    assert told[f"RandomCircuit({FOUND})"] == {"of": FOUND, "seed": 0}
    assert told["AllAblated()"] == {"edges": 0, "ablation": "counterfactual", "seed": 0}


def test_a_circuit_from_a_file_says_where_it_is_from(samples, tmp_path):
    found = Circuit(3, method=IntegratedEdgeAttribution(10, "gauss"), ablation="resample").fit(samples)
    told = Circuit.read(found.write(tmp_path / "circuit.json")).describe()
    assert found.describe()["method"] == "IntegratedEdgeAttribution(steps=10, rule='gauss')"
    assert found.describe()["parameters"] == {"steps": 10, "rule": "gauss"}
    assert (told["edges"], told["ablation"]) == (3, "resample")
    assert told["found"]["method"] == found.describe()["method"]
    assert told["found"]["subject"]["weights_sha256"] == samples.subject.weights_sha256
    assert told["found"]["pairs_sha256"] == found.found_.pairs_sha256


def test_logit_differences_are_those_of_the_pairs(comparison, subject, task):
    split = task.split("iid", PAIRS)
    logits = subject(torch.from_numpy(split.tokens))[:, -1].numpy()
    rows = np.arange(PAIRS)
    own = (logits[rows, split.answers[:, -1]] - logits[rows, split.foils[:, -1]]).mean()
    row = comparison.effects().set_index(["proxy", "split"]).loc[(ALL, "iid")]
    assert row["subject_difference"] == pytest.approx(own, abs=1e-6)
    assert row["ablated_difference"] == pytest.approx(-own, abs=1e-6)


def test_a_sweep_is_one_discovery_a_split(task, monkeypatch):
    """Found once on train and once for the refits, for all sizes and all draws of their controls."""
    asked, own = [], EdgeAttribution.scores

    def counted(self, problem):
        asked.append(problem.split.name)
        return own(self, problem)

    monkeypatch.setattr(EdgeAttribution, "scores", counted)
    sizes = (1, 3, 10)
    comparison = judge(task.subject(), task, [Circuit(size, method="eap") for size in sizes])
    assert Counter(asked) == {"train": 1, "first": 1}
    effects = comparison.effects().set_index(["proxy", "split"])
    found = [effects.loc[(f"Circuit(edges={size}, method='eap')", "iid"), "effect"] for size in sizes]
    assert found[0] == pytest.approx(0, abs=1e-9)  # one edge is no path
    assert found[1:] == [pytest.approx(1, abs=1e-9)] * 2


def frame_of(comparison) -> pd.DataFrame:
    frame = comparison.to_frame()
    return frame.sort_values(["proxy", "split", "metric", "kind", "bin"]).reset_index(drop=True)


def test_workers_give_the_same_numbers(comparison, subject, task):
    circuits = [Circuit(3, method="exact"), Circuit(list(FOUND_ON_TRAIN), name="given"), Circuit(46, method="exact")]
    pd.testing.assert_frame_equal(
        frame_of(judge(subject, task, circuits, workers=Workers(jobs=2))), frame_of(comparison)
    )


def test_a_run_that_was_stopped_goes_on(comparison, subject, task, tmp_path):
    circuits = [Circuit(3, method="exact"), Circuit(list(FOUND_ON_TRAIN), name="given"), Circuit(46, method="exact")]
    folder = tmp_path / "run" / "cells"

    def stop(step):
        if len([path for path in folder.rglob("*") if path.is_file()]) >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge(subject, task, circuits, folder=tmp_path / "run", progress=stop)
    cells = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert cells
    again = judge(subject, task, circuits, folder=tmp_path / "run")
    assert {path: path.stat().st_mtime_ns for path in cells} == cells
    pd.testing.assert_frame_equal(frame_of(again), frame_of(comparison))


def test_everything_a_fitted_circuit_says(samples):
    circuit = Circuit(5, method="exact").fit(samples)
    assert {str(edge) for edge in circuit.edges_[:3]} == set(FOUND_ON_TRAIN)
    assert str(circuit.edges_[0]) == "layer1.head0 -> logits"
    assert circuit.kept_.sum() == 5
    assert 3 <= circuit.pruned_ <= 5
    assert circuit.baseline_[0] == pytest.approx(-circuit.baseline_[1])
    assert circuit.scores_.shape == circuit.graph_.shape == (7, 15)
    # 3 of 46 edges: log2 of 15,180.
    assert Circuit(list(FOUND_ON_TRAIN)).fit(samples).bits_ == pytest.approx(np.log2(15_180))
    with_means = Circuit(list(FOUND_ON_TRAIN), ablation="mean").fit(samples)
    width = samples.subject.model.config.n_embd
    # A vector for the embeddings and each MLP, and what a layer's heads put into the output projection.
    assert with_means.bits_ == pytest.approx(np.log2(15_180) + 32 * 5 * width)


@pytest.mark.parametrize("level", ["edges", "heads"])
def test_other_sizes_come_from_the_same_scores(samples, level):
    circuit = Circuit(20, method="eap", level=level).fit(samples)
    for size in (1, 7, 15, 30, 46) if level == "edges" else (15, 22, 30, 46):
        again = Circuit(size, method="eap", level=level).fit(samples)
        assert np.array_equal(circuit.of_size(size).kept_, again.kept_)


def test_whole_heads_are_taken_with_all_their_edges(samples):
    circuit = Circuit(18, method="exact", level="heads").fit(samples)
    for sender in np.flatnonzero(circuit.kept_.any(axis=1)):
        assert np.array_equal(circuit.kept_[sender], circuit.graph_.exists[sender])
    assert circuit.kept_.sum() <= 18
    assert circuit.pruned_ > 0


def test_ranks_by_help(samples):
    """What lowers m most when it is ablated comes first, and what raises it last."""
    every = Circuit(46, method="eap", rank="helpful").fit(samples)
    scores = [every.scores_[every.graph_.place(edge)] for edge in every.edges_]
    assert scores == sorted(scores)
    by_size = Circuit(46, method="eap").fit(samples)
    sizes = [abs(by_size.scores_[by_size.graph_.place(edge)]) for edge in by_size.edges_]
    assert sizes == sorted(sizes, reverse=True)


PATHS = ["embeddings -> layer0.mlp", "layer0.mlp -> layer1.head1.queries", "embeddings -> layer0.head0.queries",
         "layer0.head0 -> layer1.mlp", "layer1.head1 -> layer1.mlp", "layer1.mlp -> logits"]  # fmt: skip


@pytest.mark.parametrize("ablation", ["mean", "zero"])
def test_circuits_and_controls_keep_the_contract_of_simplifications(ablation):
    check_simplification(lambda: Circuit(PATHS, ablation=ablation).control())
    check_simplification(lambda: Circuit(PATHS, ablation=ablation).ablated())


REFUSED = [
    ({"edges": 0}, "edges must be 1 to 46"),
    ({"edges": 47}, "edges must be 1 to 46"),
    ({"edges": []}, "give how many edges, or a list"),
    ({"edges": ["embeddings -> layer7.mlp"]}, "is no receiver here"),
    ({"edges": ["nonsense"]}, "is no edge"),
    ({"edges": 5, "method": "no-such-method"}, "no-such-method"),
    ({"edges": 5, "method": "eap", "measure": "kl"}, "gradient of KL is 0"),
    ({"edges": 5, "method": "eap-ig", "ablation": "mean"}, "needs another input to integrate"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_cannot_be_found_is_refused_before_any_work(subject, task, options, message, monkeypatch):
    monkeypatch.setattr("assay.faithfulness._compare.collect", None)
    with pytest.raises(AssayError, match=message):
        judge(subject, task, [Circuit(**options)])


def test_too_few_pairs_are_refused(subject, task):
    with pytest.raises(AssayError, match="has 29 pairs; to find a circuit give at least 30"):
        Circuit(3).check(subject, [task.split("train", 29)])


def test_splits_without_pairs_are_refused(subject, task):
    split = task.split("iid", 40)
    plain = replace(split, counterfactuals=None, answers=None, foils=None)
    with pytest.raises(AssayError, match="split 'iid' has no pairs"):
        Circuit(list(FOUND_ON_TRAIN)).check(subject, [plain])
    Circuit(list(FOUND_ON_TRAIN), ablation="mean").check(subject, [plain])


def test_pairs_without_an_effect_are_refused(subject, task):
    """Half of the pairs ask for the answer, half for the foil: on average nothing changes."""
    split = task.split("train", 40)
    answers, foils = split.answers.copy(), split.foils.copy()
    answers[::2], foils[::2] = split.foils[::2], split.answers[::2]
    odd = replace(split, answers=answers, foils=foils)
    with pytest.raises(AssayError, match="nothing to explain on split 'train'"):
        Circuit(3, method="eap").fit(collect(Engine(subject), odd, ()))


def test_the_shifts_edges_are_found_on_the_shift(subject, task):
    found = Circuit(3, method="exact").fit(collect(Engine(subject), task.split("first", 40), ()))
    assert {str(edge) for edge in found.edges_} == set(NEEDED_BY_THE_SHIFT)
