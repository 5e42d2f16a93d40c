"""compare() from end to end, its folder, what stops it and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal
from small_comparison import CALL, recipes
from transformers import GPT2LMHeadModel

import assay
from assay import AssayError
from assay.engine import Edit
from assay.faithfulness import UNBOUNDED, Comparison, Pair, Predictions, _summary, draws, estimate, metrics
from assay.faithfulness._comparison import SCHEMA
from assay.simplify import RandomProjection
from assay.simplify._protocol import proxy_of
from assay.subjects import Subject
from assay.tasks import Dyck

QUICK = {"sites": ("layer1",), "sequences": 8, "fit_sequences": 40, "resamples": 100, "refit": False}


# -- results --------------------------------------------------------------------------------------------------------


def test_results_have_their_columns_units_and_directions(comparison):
    frame = comparison.to_frame()
    assert list(frame.columns) == [
        "subject", "trained", "proxy", "site", "is_control", "split", "metric", "kind", "feature", "bin", "label",
        "estimate", "low", "high", "interval", "sequences", "predictions", "seeds", "unit", "higher_is_better",
        "reason",
    ]  # fmt: skip
    key = ["subject", "trained", "proxy", "site", "split", "metric", "kind", "feature", "bin"]
    assert not frame.duplicated(key).any()
    assert dict(frame.groupby("metric")["unit"].unique().map(list)) == {
        "same_prediction": ["rate"],
        "subject_accuracy": ["rate"],
        "proxy_accuracy": ["rate"],
        "kl": ["nats"],
        "jsd": ["nats"],
        "attention_jsd": ["nats"],
    }
    assert (frame["higher_is_better"] == (frame["unit"] == "rate")).all()
    assert set(frame["split"]) == set(Dyck.split_names[1:])
    assert (frame[frame["trained"]]["seeds"] == 2).all()
    frame["estimate"] = 0
    assert not (comparison.results["estimate"] == 0).all(), "to_frame gives a copy"


def test_estimates_lie_in_their_range_and_within_their_limits(comparison):
    frame = comparison.results.dropna(subset=["estimate"])
    assert (frame["estimate"] >= 0).all()
    assert (frame.loc[frame["unit"] == "rate", "estimate"] <= 1).all()
    assert (frame.loc[frame["metric"].isin(["jsd", "attention_jsd"]), "estimate"] <= np.log(2)).all()
    limited = frame.dropna(subset=["low"])
    assert (limited["low"] <= limited["estimate"] + 1e-12).all()
    assert (limited["high"] >= limited["estimate"] - 1e-12).all()
    missing = comparison.results[comparison.results["low"].isna()]
    assert missing["reason"].notna().all()


def test_identity_is_exact(comparison):
    rows = comparison.results.query("proxy == 'Identity()'").dropna(subset=["estimate"])
    assert rows["is_control"].all()
    assert (rows.query("metric == 'same_prediction'")["estimate"] == 1).all()
    assert rows.query("metric in ('kl', 'jsd', 'attention_jsd')")["estimate"].max() < 1e-9
    accuracy = [rows.query(f"metric == '{name}_accuracy'")["estimate"].to_numpy() for name in ("subject", "proxy")]
    np.testing.assert_array_equal(*accuracy)


def test_full_rank_is_nearly_the_identity_and_low_rank_is_not(comparison):
    kl = comparison.results.query("metric == 'kl' and kind == 'all' and split == 'iid' and feature == '' and trained")
    kl = kl.set_index(["proxy", "site"])["estimate"]
    assert kl["SVD(rank=32)", "all"] < 1e-6
    assert kl["SVD(rank=2)", "all"] > kl["SVD(rank=8)", "all"] > kl["SVD(rank=32)", "all"]


def test_controls_and_shuffled_copies_stand_beside(comparison):
    frame = comparison.agreement()
    controls = set(frame[frame["is_control"]]["proxy"])
    assert controls == {"RandomProjection(rank=2)", "RandomProjection(rank=8)", "RandomProjection(rank=32)",
                        "UniformAttention()", "MeanAblation()", "Identity()", "RandomPerturbation(of=SVD(rank=2))",
                        "RandomPerturbation(of=SVD(rank=8))", "RandomPerturbation(of=SVD(rank=32))",
                        "RandomPerturbation(of=OneHotAttention())"}  # fmt: skip
    shuffled = comparison.agreement(trained=False)
    assert set(shuffled["proxy"]) == {str(p.proxy) for p in comparison.record.proxies if not p.is_control}
    assert (shuffled["seeds"] == 1).all()


def test_gaps_are_differences_of_the_estimates_with_the_sign_of_the_metric(comparison):
    for metric, sign in (("same_prediction", 1), ("kl", -1)):
        gaps = comparison.gaps(metric, "all")
        rows = comparison.results.query(f"metric == '{metric}' and kind == 'all' and feature == ''")
        rows = rows[~rows["proxy"].str.endswith(", refitted")]
        value = rows.set_index(["trained", "proxy", "site", "split"])["estimate"]
        assert len(gaps) == len(value) * 4 / 5
        for gap in gaps.itertuples():
            iid, shift = (value[gap.trained, gap.proxy, gap.site, split] for split in ("iid", gap.split))
            assert gap.gap == pytest.approx(sign * (iid - shift), abs=1e-12)
            assert gap.low <= gap.gap + 1e-12
            assert gap.high >= gap.gap - 1e-12


def test_holm_is_over_simplifications_and_shifts_without_the_controls(comparison):
    gaps = comparison.gaps("jsd", "all")
    assert gaps[gaps["is_control"]]["p_holm"].isna().all()
    family = gaps[gaps["trained"] & ~gaps["is_control"]]
    assert len(family) == 4 * 4
    ordered = family.sort_values("p")
    steps = np.minimum(1, ordered["p"] * np.arange(len(ordered), 0, -1)).cummax()
    np.testing.assert_allclose(ordered["p_holm"], steps)


@pytest.mark.parametrize(("name", "value"), [("metric", "kld"), ("kind", "closing")])
def test_unknown_metric_or_kind_of_gaps(comparison, name, value):
    with pytest.raises(AssayError, match=rf"{name}='{value}'"):
        comparison.gaps(**{name: value})


def test_results_come_from_the_sequences_that_are_kept(comparison):
    table = comparison.sequence_scores().to_pandas()
    chosen = table.query("proxy == 'SVD(rank=8)' and site == 'all' and split == 'unseen_depth' and trained")
    chosen = chosen.query("metric == 'same_prediction' and kind == 'closing_far'")
    assert set(chosen["seed"]) == {0, 1}
    mean = (chosen["mean"] * chosen["predictions"]).sum() / chosen["predictions"].sum()
    row = comparison.agreement("unseen_depth").set_index(["proxy", "site"]).loc[("SVD(rank=8)", "all")]
    assert mean == pytest.approx(row["estimate"], abs=1e-6)
    assert chosen["sequence"].nunique() == row["sequences"]


def test_undetermined_accuracy_is_skipped_with_its_reason(comparison):
    assert any("accuracy on opening" in item.what and item.reason for item in comparison.record.skipped)
    assert comparison.results.query("metric == 'subject_accuracy' and kind == 'opening'").empty


def test_the_record_says_what_was_run(comparison, trained):
    record = comparison.record
    assert [item["seed"] for item in record.subjects] == [0, 1, 0]
    assert [item["weights_sha256"] for item in record.subjects[:2]] == [item.weights_sha256 for item in trained]
    assert record.settings["resamples"] == CALL["resamples"]
    assert record.task["brackets"] == 20
    assert record.noise_floor.logit_difference < 1e-5
    assert {"torch", "numpy", "scipy", "transformers"} <= set(record.environment)


def test_repr_is_short_and_html_is_escaped(comparison):
    assert repr(comparison).startswith("Comparison(dyck-20-10: ")
    record = comparison.record.model_copy(
        update={"subjects": ({**comparison.record.subjects[0], "name": "<script>alert(1)</script>"},)}
    )
    html = Comparison(
        record, comparison.results, comparison._gaps, comparison._controls, comparison._sequences
    )._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "SVD(rank=8)" in html
    assert all(verdict.judgement in html for verdict in comparison.verdicts())


def test_one_column_more_or_less_changes_no_other_result(comparison, trained, bracket_task):
    alone = assay.compare(trained, bracket_task, [assay.SVD(rank=8)], controls=False, refit=False, **CALL)
    key = ["proxy", "site", "split", "metric", "kind", "feature", "bin"]
    chosen = comparison.results.query("proxy == 'SVD(rank=8)' and trained")
    assert_frame_equal(alone.results.sort_values(key, ignore_index=True), chosen.sort_values(key, ignore_index=True))


# -- controls -------------------------------------------------------------------------------------------------------


def test_a_random_control_is_drawn_five_times_and_its_interval_has_their_spread(subject, task):
    """By hand, from five comparisons of which each has one draw as its proxy."""
    options = {**QUICK, "sequences": 20}
    found = assay.compare(subject, task, [assay.SVD(rank=4)], **options, metrics=["jsd", "same_prediction"])
    draws_of = {proxy.proxy: proxy.draws for proxy in found.record.proxies}
    assert draws_of["RandomProjection(rank=4)"] == 5
    assert {number for proxy, number in draws_of.items() if "RandomProjection" not in proxy} == {1}
    sums, widths = [], []
    asked = "split == 'iid' and metric == 'jsd' and kind == 'all'"
    for seed in range(5):
        alone = assay.compare(
            subject,
            task,
            [RandomProjection(rank=4, seed=seed)],
            controls=False,
            **options,
            metrics=["jsd", "same_prediction"],
        )
        scores = alone.sequence_scores().to_pandas().query(asked)
        sums.append((scores["mean"] * scores["predictions"]).to_numpy(dtype=float))
        counts = scores["predictions"].to_numpy(dtype=np.int64)
        row = alone.results.query(f"{asked} and feature == ''").iloc[0]
        widths.append(row["high"] - row["low"])
    row = found.results.query(f"{asked} and feature == '' and trained and proxy == 'RandomProjection(rank=4)'").iloc[0]
    weights = _summary.weights_of(task.split("iid", 20), seed=0, resamples=options["resamples"])
    by_hand = estimate(
        draws(np.stack(sums)[..., None], np.tile(counts, (5, 1))[..., None], weights, bounds=[UNBOUNDED])
    )
    assert [row["estimate"], row["low"], row["high"]] == pytest.approx(
        [by_hand.value[0], by_hand.low[0], by_hand.high[0]], rel=1e-4
    )
    assert row["seeds"] == 1
    assert row["high"] - row["low"] > max(widths), "the draws differ"


def test_every_draw_has_rows_of_its_own(subject, task):
    scores = assay.compare(subject, task, [assay.SVD(rank=4)], **QUICK).sequence_scores().to_pandas()
    key = ["trained", "seed", "draw", "proxy", "site", "split", "metric", "kind", "sequence"]
    assert not scores.duplicated(key).any()
    assert set(scores[scores["proxy"] == "RandomProjection(rank=4)"]["draw"]) == {1, 2, 3, 4, 5}
    assert set(scores[scores["proxy"] == "SVD(rank=4)"]["draw"]) == {1}


def test_mean_ablation_is_judged_at_every_site_and_recovery_is_the_share_of_its_effect(trained, bracket_task):
    sites = ("layer0", "layer1", "all.values", "layer1.mlp")
    options = {**QUICK, "sites": sites, "sequences": 30, "metrics": ["same_prediction"]}
    found = assay.compare(trained[0], bracket_task, [assay.SVD(rank=4)], **options)
    assert {proxy.ablation for proxy in found.record.proxies if not proxy.is_control} == {"MeanAblation()"}
    frame = found.controls()
    assert set(zip(frame["site"], frame["split"], strict=True)) == {
        (site, split.name) for site in sites for split in found.record.splits[1:]
    }
    agreement = found.agreement().set_index(["proxy", "site"])["estimate"]
    told = 0
    for row in frame.query("split == 'iid'").itertuples():
        own, ablated = (agreement[proxy, row.site] for proxy in ("SVD(rank=4)", "MeanAblation()"))
        assert row.ablated == ablated
        assert row.ablated_low <= row.ablated <= row.ablated_high
        if ablated < 1:
            told += 1
            assert row.recovered == pytest.approx((own - ablated) / (1 - ablated))
            assert row.recovered_low <= row.recovered <= row.recovered_high <= 1
        else:
            assert row.recovered_reason == "MeanAblation() changes no prediction"
    assert told > 1


def test_what_stands_beside_no_control_says_so(subject, task):
    found = assay.compare(subject, task, [assay.SVD(rank=4)], controls=False, **QUICK)
    assert found.controls()["beyond_control"].isna().all()
    assert set(found.controls()["recovered_reason"]) == {"no ablation was judged"}


# -- warnings -------------------------------------------------------------------------------------------------------


def warned(comparison, words):
    return [text for text in comparison.warnings() if words in text]


def test_a_weak_subject_is_told_from_one_that_has_learned(trained, bracket_task):
    """Random weights are right as often as always answering the most frequent bracket, or less."""
    random = Subject(GPT2LMHeadModel(trained[0].model.config), None, "random")
    options = {**QUICK, "sequences": 60, "controls": False}
    weak, able = (assay.compare(one, bracket_task, [assay.SVD(rank=4)], **options) for one in (random, trained[0]))
    split = bracket_task.split("iid", 60)
    far = split.kinds == [kind.name for kind in bracket_task.kinds].index(bracket_task.primary_kind)
    answers = np.roll(split.tokens, -1, axis=1)[far]
    assert weak.record.chance == pytest.approx(np.unique(answers, return_counts=True)[1].max() / len(answers))
    [text] = warned(weak, "Weak subject")
    assert f"always answering the most frequent token on {100 * weak.record.chance:.1f}%" in text
    assert not warned(able, "Weak subject")


def test_missing_controls_are_warned_about(subject, task):
    without, beside = (assay.compare(subject, task, [assay.SVD(rank=4)], controls=on, **QUICK) for on in (False, True))
    assert warned(without, "No controls were judged")
    assert not warned(beside, "No controls were judged")


def test_the_caution_of_a_recipe_is_said_once_where_it_is_judged(subject, task):
    clusters = [assay.KMeans(clusters=4), assay.KMeans(clusters=8)]
    found, other = (
        assay.compare(subject, task, [*given, assay.SVD(rank=4)], controls=False, **QUICK) for given in (clusters, ())
    )
    assert len(warned(found, "k-means starts from drawn centres")) == 1
    assert not warned(other, "k-means")


# -- copies ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Copied:
    """Splits that are made of the sequences of another task: `of[name]` is a split there, and numbers."""

    inner: Dyck
    of: dict

    kinds = property(lambda self: self.inner.kinds)
    features = property(lambda self: ())
    name, primary_kind = "copied", "all"
    split_names = property(lambda self: ("train", *self.of))

    def split(self, name, sequences):
        if name not in self.of:
            return self.inner.split(name, sequences)
        source, numbers = self.of[name]
        part = self.inner.split(source, 60).take(np.asarray(numbers))
        return replace(part, name=name, role="iid" if name == "iid" else "shift")

    def describe(self):
        return {"task": "copied"}


def judged_copies(subject, task, **of):
    return assay.compare(subject, Copied(task, of), [assay.SVD(rank=4)], controls=False, **QUICK)


def test_copies_of_a_sequence_are_one_and_that_is_said(subject, task):
    once = np.arange(30)
    twice, single = (
        judged_copies(subject, task, iid=("iid", numbers), deep=("unseen_depth", once))
        for numbers in (np.concatenate((once, once)), once)
    )
    record = {split.name: (split.sequences, split.different) for split in twice.record.splits}
    assert (record["iid"], record["deep"]) == ((60, 30), (30, 30))
    assert warned(twice, "30 of the 60 sequences of iid are copies of others in it; the 30 different ones")
    assert not warned(single, "of iid are copies")
    both = [
        found.results[found.results["feature"] == ""].set_index(["split", "metric", "kind"])[
            ["estimate", "low", "high"]
        ]
        for found in (twice, single)
    ]
    assert (both[0]["high"] > both[0]["low"]).any()
    # Not the gaps by margin, whose effective sample size counts predictions.
    assert_frame_equal(*both)
    columns = ["gap", "low", "high", "p", "per_sequence", "per_sequence_low", "per_sequence_high"]
    assert_frame_equal(twice.gaps()[columns], single.gaps()[columns])


def test_forty_copies_of_one_sequence_have_no_interval(subject, task):
    found = judged_copies(
        subject, task, iid=("iid", np.arange(40)), deep=("unseen_depth", np.zeros(40, dtype=np.int64))
    )
    rows = found.results.query("split == 'deep' and kind == 'all' and feature == '' and estimate == estimate")
    assert len(rows) > 3
    assert rows[["low", "high"]].isna().all(axis=None)
    assert set(rows["interval"]) == {"none"}


@pytest.mark.parametrize("order", [1, -1], ids=["as it is", "in another order"])
def test_a_split_that_is_another_is_refused(subject, task, order):
    numbers = np.arange(20)
    made = Copied(task, {"iid": ("iid", numbers), "same": ("iid", numbers[::order])})
    refused(r"splits 'iid' and 'same' have the same sequences \(20 different ones\)", subject, made)


def test_sequences_that_two_splits_share_are_counted_and_warned_about(subject, task):
    found = judged_copies(
        subject, task, iid=("iid", np.arange(30)), near=("iid", np.arange(20, 50)), deep=("unseen_depth", np.arange(9))
    )
    shared = {(one.first, one.second): (one.of_first, one.of_second) for one in found.record.overlaps}
    assert shared["iid", "near"] == (10, 10)
    assert warned(found, "10 sequences of near also occur in iid")
    assert ("iid", "deep") not in shared


# -- null predictors ------------------------------------------------------------------------------------------------


@dataclass
class Coin:
    """Logits that know nothing: the last layer's input is noise, drawn anew for every query."""

    heads_: tuple | None = field(default=None, init=False, repr=False)

    streams = ()

    def fit(self, samples):
        self.heads_ = samples.places
        return self

    def apply(self, subject):
        generator = torch.Generator().manual_seed(0)

        def scatter(pattern, visible):
            weight = torch.rand(pattern.shape, generator=generator).to(pattern) * visible
            return (weight == weight.amax(dim=-1, keepdim=True)) * visible.to(pattern)

        return proxy_of(self, subject, self.heads_, lambda head: Edit(head, pattern=scatter))

    def control(self):
        return None


def test_a_proxy_that_guesses_among_two_brackets_is_right_half_of_the_time(trained):
    """Two kinds of bracket, attention on a random position: agreement near one half, and the interval contains it."""
    task = Dyck(brackets=2, max_depth=4, deeper=8, training_sentences=500, max_brackets=40)
    split = task.split("iid", 300)
    rng = np.random.default_rng(0)
    shape = (*split.tokens.shape, len(task.vocabulary))
    kind_of = torch.from_numpy(split.kinds)
    subject, proxy = (Predictions(torch.from_numpy(rng.normal(size=shape)), kind_of, task.kinds) for _ in range(2))
    targets = torch.from_numpy(split.tokens).roll(-1, dims=1)
    pair = Pair(subject, proxy, targets, {})
    brackets = np.isin(split.kinds, (0, 1, 2))
    for name in ("same_prediction", "proxy_accuracy"):
        where = brackets if name == "same_prediction" else np.isin(split.kinds, (0, 1))
        rate = metrics.get(name)()(pair).numpy()[where].mean()
        assert rate == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(where.sum()))


def test_attention_that_knows_nothing_is_judged_unfaithful(trained, bracket_task):
    found = assay.compare(trained[0], bracket_task, [Coin()], **{**QUICK, "sequences": 40})
    [verdict] = found.verdicts()
    assert verdict.judgement == "unfaithful"
    assert verdict.agreement < 0.6


@dataclass(frozen=True)
class Twice:
    """A task whose only shift is more of the same: there is no gap by construction."""

    inner: Dyck
    start: int

    kinds = property(lambda self: self.inner.kinds)
    features = property(lambda self: ())
    name, primary_kind, split_names = "twice", "all", ("train", "iid", "same")

    def split(self, name, sequences):
        if name == "train":
            return self.inner.split("train", sequences)
        many = self.inner.split("iid", self.start + 2 * sequences)
        first = self.start + (sequences if name == "same" else 0)
        part = many.take(np.arange(first, first + sequences))
        return replace(part, name=name, role="iid" if name == "iid" else "shift")

    def describe(self):
        return {"task": "twice"}


def test_no_gap_by_construction_gives_no_illusion(trained, bracket_task):
    alarms = 0
    judgements = []
    for number in range(8):
        found = assay.compare(
            trained[0],
            Twice(bracket_task, 120 * number),
            [assay.SVD(rank=4), assay.SVD(rank=8)],
            controls=False,
            sites=("layer1",),
            sequences=60,
            fit_sequences=60,
            resamples=300,
        )
        alarms += int((found.gaps()["p_holm"] < 0.05).any())
        judgements += [verdict.judgement for verdict in found.verdicts()]
    assert alarms <= 2
    assert judgements.count("illusion") == 0


# -- proxies that fail ----------------------------------------------------------------------------------------------


@dataclass
class Spoiled:
    """Not a number on sequences longer than `longest`."""

    longest: int
    heads_: tuple | None = field(default=None, init=False, repr=False)

    streams = ()

    def fit(self, samples):
        self.heads_ = samples.places
        return self

    def apply(self, subject):
        def spoil(pattern, visible):
            return pattern * torch.nan if pattern.shape[-1] > self.longest else pattern

        return proxy_of(self, subject, self.heads_, lambda head: Edit(head, pattern=spoil))

    def control(self):
        return None


def test_a_proxy_that_fails_everywhere_is_skipped_with_its_reason(trained, bracket_task):
    found = assay.compare(trained[0], bracket_task, [Spoiled(longest=0), assay.SVD(rank=8)], **QUICK)
    rows = found.results.query("proxy == 'Spoiled(longest=0)'")
    assert rows["estimate"].isna().all()
    assert rows["reason"].str.contains("not finite").all()
    assert set(rows["split"]) == set(Dyck.split_names[1:])
    assert any("Spoiled" in item.what for item in found.record.skipped)
    assert found.results.query("proxy == 'SVD(rank=8)'")["estimate"].notna().any()
    verdicts = {verdict.proxy: verdict for verdict in found.verdicts()}
    assert verdicts["Spoiled(longest=0)"].judgement == "inconclusive"
    assert "not finite" in str(verdicts["Spoiled(longest=0)"])


def test_a_proxy_that_fails_under_one_shift_is_not_called_faithful(trained, bracket_task):
    """Exactly the subject on short sequences, nothing at all on long ones: a shift that could not be measured."""
    found = assay.compare(
        trained[0], Short(bracket_task), [Spoiled(longest=40)], controls=False, **{**QUICK, "sequences": 300}
    )
    gaps = found.gaps().set_index("split")
    assert found.results.query("split == 'long' and metric == 'same_prediction'")["estimate"].isna().all()
    [verdict] = found.verdicts()
    assert verdict.judgement == "inconclusive"
    assert "long" in str(verdict)
    assert gaps.loc["short", "gap"] == 0


@dataclass(frozen=True)
class Short:
    """Training and iid are short, as is one shift; the other shift is long."""

    inner: Dyck

    kinds = property(lambda self: self.inner.kinds)
    features = property(lambda self: ())
    name, primary_kind, split_names = "short", "all", ("train", "iid", "short", "long")

    def split(self, name, sequences):
        if name == "train":
            return self.inner.split("train", sequences)
        if name == "long":
            return replace(self.inner.split("unseen_structure_long", 20), name=name, role="shift")
        part = self.inner.split("iid", 1_500)
        part = part.take(np.flatnonzero(part.lengths <= 30))
        index = np.arange(sequences) + (sequences if name == "short" else 0)
        return replace(part.take(index), name=name, role="iid" if name == "iid" else "shift")

    def describe(self):
        return {"task": "short"}


def test_a_subject_that_is_not_finite_is_refused(trained, bracket_task):
    model = GPT2LMHeadModel(trained[0].model.config).eval()
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = torch.nan
    broken = Subject(model, None, "broken")
    with pytest.raises(AssayError, match=r"broken.*not finite"):
        assay.compare(broken, bracket_task, [assay.SVD(rank=2)], **QUICK)


def test_a_half_precision_subject_has_numbers_everywhere(trained, bracket_task):
    half = Subject(GPT2LMHeadModel(trained[0].model.config).eval().to(torch.float16), None, "half")
    half.model.load_state_dict(trained[0].model.state_dict())
    found = assay.compare(half, bracket_task, [assay.SVD(rank=8)], controls=False, **QUICK)
    rows = found.results.query("metric == 'attention_jsd' and kind == 'all' and feature == ''")
    assert rows["estimate"].notna().all()
    assert (rows["estimate"] > 0).all()


# -- folders --------------------------------------------------------------------------------------------------------


def test_a_saved_comparison_is_loaded_as_it_was(comparison, run_folder):
    loaded = Comparison.load(run_folder)
    assert loaded.record == comparison.record
    assert_frame_equal(loaded.to_frame(), comparison.to_frame())
    assert_frame_equal(loaded.gaps(), comparison.gaps())
    assert loaded.sequence_scores().to_pandas().equals(comparison.sequence_scores().to_pandas())
    assert list(map(str, loaded.verdicts())) == list(map(str, comparison.verdicts()))
    assert_frame_equal(loaded.controls(), comparison.controls())
    tables = {f"{name}.parquet" for name in ("results", "gaps", "controls", "sequences")}
    assert {"comparison.json", "cells", *tables} <= set(os.listdir(run_folder))
    assert not [name for name in os.listdir(run_folder / "cells") if name.endswith(".part")]


class StopError(Exception):
    """Raised from the progress callback."""


def call(trained, task, folder, **changes):
    return assay.compare(trained, task, recipes(), folder=folder, **{**CALL, **changes})


@pytest.mark.slow
def test_a_stopped_run_resumes_and_ends_the_same(tmp_path, trained, bracket_task, run_folder, comparison):
    def stop(step):
        if step.done >= step.total // 2:
            raise StopError

    with pytest.raises(StopError):
        call(trained, bracket_task, tmp_path, progress=stop)
    assert not (tmp_path / "comparison.json").exists()
    with pytest.raises(AssayError, match="not finished"):
        Comparison.load(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cells").glob("*.npz")}
    whole = {path.name for path in (run_folder / "cells").glob("*.npz")}
    assert 0 < len(before) < len(whole)
    again = call(trained, bracket_task, tmp_path)
    assert {path.name for path in (tmp_path / "cells").glob("*.npz")} == whole
    assert {name: (tmp_path / "cells" / name).stat().st_mtime_ns for name in before} == before
    assert_frame_equal(again.to_frame(), comparison.to_frame())
    for name in ("results.parquet", "gaps.parquet", "controls.parquet"):
        assert (tmp_path / name).read_bytes() == (run_folder / name).read_bytes()


SCRIPT = """
import sys, time, assay, torch
torch.set_num_threads(1)
sys.path.insert(0, {here!r})
from small_comparison import CALL, recipes
from assay.tasks import Dyck
task = Dyck(brackets=20, max_depth=10, deeper=14, training_sentences=2_000, max_brackets=60)
def slow(step):
    print(step.done, flush=True)
    time.sleep(0.05)
subjects = [assay.load("dyck-20-10", seed=seed) for seed in (0, 1)]
assay.compare(subjects, task, recipes(), folder=sys.argv[1], progress=slow, **CALL)
"""


@pytest.mark.slow
def test_a_killed_process_leaves_a_folder_that_resumes(tmp_path, trained, bracket_task, run_folder, comparison):
    script = SCRIPT.format(here=str(Path(__file__).parent))
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "cells").glob("*.npz"))) < 20 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert not (tmp_path / "comparison.json").exists()
    call(trained, bracket_task, tmp_path)
    assert (tmp_path / "results.parquet").read_bytes() == (run_folder / "results.parquet").read_bytes()


@pytest.fixture
def small(trained, bracket_task):
    """A quick run in a folder: small(folder, **changes)."""

    def run(folder, subject=trained[0], task=bracket_task, recipe=None, **changes):
        options = {**QUICK, "controls": False, **changes}
        return assay.compare(subject, task, [recipe or assay.SVD(rank=4)], folder=folder, overwrite=True, **options)

    return run


@pytest.mark.parametrize(
    "change",
    [
        {"sequences": 9},
        {"fit_sequences": 60},
        {"sites": ("all",)},
        {"recipe": assay.SVD(rank=4, centred=True)},
        {"task": Dyck(brackets=20, max_depth=10, deeper=14, training_sentences=2_000, max_brackets=60, seed=1)},
        {"resamples": 150},
        {"level": 0.8},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_setting_reuses_nothing_stale(tmp_path, small, change):
    small(tmp_path)
    again = small(tmp_path, **change)
    assert_frame_equal(again.to_frame(), small(None, **change).to_frame())


def test_other_weights_or_another_configuration_reuse_nothing(tmp_path, trained, small):
    small(tmp_path)
    other = assay.load("dyck-20-10", seed=1)
    assert_frame_equal(small(tmp_path, subject=other).to_frame(), small(None, subject=other).to_frame())
    config = type(trained[0].model.config)(**{**trained[0].model.config.to_dict(), "activation_function": "relu"})
    model = GPT2LMHeadModel(config).eval()
    model.load_state_dict(trained[0].model.state_dict())
    relu = Subject(model, trained[0].tokenizer, trained[0].name, seed=0)
    assert relu.weights_sha256 == trained[0].weights_sha256
    assert_frame_equal(small(tmp_path, subject=relu).to_frame(), small(None, subject=relu).to_frame())


def test_a_finished_run_computes_nothing_again(tmp_path, monkeypatch, small):
    first = small(tmp_path)

    def forbidden(*_):
        raise AssertionError("scored again")

    monkeypatch.setattr("assay.faithfulness._compare.score_split", forbidden)
    assert_frame_equal(small(tmp_path).to_frame(), first.to_frame())


def test_a_long_run_does_not_hold_all_of_its_cells(monkeypatch, trained, bracket_task):
    """While intervals are computed, no more cells are in memory than one simplification has."""
    seen, alive = [], []
    whole = _summary._Measured.of

    def of(cells, way, split):
        found = whole(cells, way, split)
        seen.append(weakref.ref(found.sums))
        alive.append(sum(one() is not None for one in seen))
        return found

    monkeypatch.setattr(_summary._Measured, "of", of)
    ranks = [assay.SVD(rank=rank) for rank in range(1, 7)]
    comparison = assay.compare(trained[0], bracket_task, ranks, controls=False, **QUICK)
    judged = len(comparison.record.splits) - 1
    assert len(seen) == 6 * judged
    assert max(alive) <= 2 * judged, "those of one simplification, while the next takes their place"


def test_a_damaged_cell_is_named_or_made_again(tmp_path, small):
    first = small(tmp_path)
    cell = sorted((tmp_path / "cells").glob("*.npz"))[0]
    cell.write_bytes(cell.read_bytes()[:100])
    try:
        again = small(tmp_path)
    except AssayError as error:
        assert cell.name in str(error)  # noqa: PT017
    else:
        assert_frame_equal(again.to_frame(), first.to_frame())


@pytest.mark.parametrize(
    ("name", "content", "trouble"),
    [
        ("comparison.json", f'{{"schema_version": {SCHEMA}}}'.encode(), f"schema {SCHEMA}"),
        ("comparison.json", f'{{"schema_version": {SCHEMA}, "stat'.encode(), f"schema {SCHEMA}"),
        ("comparison.json", b"\xff\xfe\x00", "comparison.json"),
        ("results.parquet", b"PAR1 and no more", "damaged"),
        ("results.parquet", None, "damaged"),
        ("gaps.parquet", b"", "damaged"),
        ("controls.parquet", None, "damaged"),
        ("sequences.parquet", None, "damaged"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path, run_folder, comparison, name, content, trouble):  # noqa: PLR0917
    for path in run_folder.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    Comparison.load(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(AssayError, match=trouble):
        Comparison.load(tmp_path)


@pytest.mark.parametrize("version", [1, SCHEMA - 1, SCHEMA + 1, None])
def test_another_schema_is_refused(tmp_path, run_folder, comparison, version):
    record = json.loads((run_folder / "comparison.json").read_text())
    (tmp_path / "comparison.json").write_text(json.dumps({**record, "schema_version": version}))
    with pytest.raises(AssayError, match=rf"schema_version {version}.*reads {SCHEMA}"):
        Comparison.load(tmp_path)


def test_no_folder_at_all(tmp_path):
    with pytest.raises(AssayError, match="no such folder"):
        Comparison.load(tmp_path / "nothing")


# -- wrong calls ----------------------------------------------------------------------------------------------------


def refused(match, subject, task, recipes=None, **changes):
    options = {**QUICK, **changes}
    with pytest.raises(AssayError, match=match):
        assay.compare(subject, task, [assay.SVD(rank=2)] if recipes is None else recipes, **options)


@pytest.mark.parametrize("site", ["layer2", "layer1.head1", "mlp"])
def test_unknown_site(trained, bracket_task, site):
    refused(rf"'{site}'.*'all'.*layer1", trained[0], bracket_task, sites=(site,))


def test_the_same_thing_twice(trained, bracket_task):
    refused(r"SVD\(rank=2\).*twice", trained[0], bracket_task, [assay.SVD(rank=2), assay.SVD(rank=2)])
    refused("two are the same", [trained[0], trained[0]], bracket_task)


def test_the_same_site_twice(trained, bracket_task):
    refused("layer1", trained[0], bracket_task, sites=("layer1", "layer1"))


def test_nothing_to_do(trained, bracket_task):
    refused("at least one", [], bracket_task)
    refused("at least one", trained[0], bracket_task, [])
    refused("at least one", trained[0], bracket_task, sites=())


@pytest.mark.parametrize(
    ("name", "value"), [("sequences", 1), ("fit_sequences", 0), ("resamples", -5), ("level", 2.0), ("level", 0.0)]
)
def test_numbers_out_of_range(trained, bracket_task, name, value):
    refused(rf"{name}={value}", trained[0], bracket_task, **{name: value})


def test_a_subject_of_another_vocabulary(trained, task, subject):
    small_vocabulary = Dyck(brackets=20, max_depth=4, deeper=8, training_sentences=200, max_brackets=40)
    refused(r"token \d+ but 'random-dyck' has embeddings of 0 to 10", subject, small_vocabulary)


def test_sequences_too_long_for_the_subject(subject):
    longer = Dyck(brackets=4, max_depth=4, deeper=8, training_sentences=300, max_brackets=200)
    refused(r"\d+ tokens but 'random-dyck' has 62 positions", subject, longer, fit_sequences=300, sequences=100)


def test_two_architectures(trained, bracket_task, subject):
    refused("one architecture", [trained[0], subject], bracket_task)


def test_a_rank_beyond_the_width(trained, bracket_task):
    refused(r"SVD\(rank=33\).*between 1 and 32", trained[0], bracket_task, [assay.SVD(rank=33)])


WRONG_TYPES = """
import assay
from assay.tasks import Dyck
task = Dyck(brackets=20, max_depth=10, deeper=14, training_sentences=200, max_brackets=60)
subject = assay.load("dyck-20-10")
for arguments, word in [
    ((subject, "dyck", [assay.SVD(2)]), "must be a Task"),
    ((subject, task, [assay.SVD]), "assay.SVD(rank=8)"),
    ((subject, task, ["svd"]), "'svd'"),
]:
    try:
        assay.compare(*arguments, sequences=4, fit_sequences=20)
    except assay.AssayError as error:
        assert word in str(error), (word, str(error))
    else:
        raise SystemExit(f"{word}: not refused")
for options, word in [
    ({"sites": "all"}, "a list of strings"),
    ({"metrics": "kl"}, "Metrics"),
    ({"metrics": ["kl", assay.SVD(2)]}, "Metrics"),
]:
    try:
        assay.compare(subject, task, [assay.SVD(2)], sequences=4, fit_sequences=20, resamples=20, **options)
    except assay.AssayError as error:
        assert word in str(error), (word, str(error))
    else:
        raise SystemExit(f"{options}: not refused")
"""


def test_things_of_the_wrong_type_are_refused_in_plain_words():
    """In a process of its own, because types are checked while these tests run."""
    done = subprocess.run([sys.executable, "-c", WRONG_TYPES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-800:]


def test_gaps_frame_is_empty_but_shaped_without_shifts(trained, bracket_task):
    found = assay.compare(trained[0], OnlyIid(bracket_task), [assay.SVD(rank=4)], controls=False, **QUICK)
    assert isinstance(found.gaps(), pd.DataFrame)
    assert len(found.gaps()) == 0
    [verdict] = found.verdicts()
    assert verdict.judgement in ("inconclusive", "unfaithful")


@dataclass(frozen=True)
class OnlyIid:
    """A task without any shift."""

    inner: Dyck

    kinds = property(lambda self: self.inner.kinds)
    features = property(lambda self: ())
    name, primary_kind, split_names = "only-iid", "all", ("train", "iid")

    def split(self, name, sequences):
        return self.inner.split(name, sequences)

    def describe(self):
        return {"task": "only-iid"}
