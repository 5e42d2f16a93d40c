"""Shares of the subject's effect on the answer: known exactly, against independent formulas, and by simulation."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from pairs_by_chance import Between, PairTask
from scipy import stats

import assay
from assay.faithfulness import Comparison, every
from assay.faithfulness._effects import EFFECT_COLUMNS, LEAST_PAIRS, OfPairs, effect_rows
from assay.faithfulness._statistics import smooth
from assay.subjects import Subject

OPTIONS = {"sequences": 40, "fit_sequences": 12, "resamples": 200, "refit": False}
NAN = float("nan")


@pytest.fixture(scope="module")
def found(subject, tmp_path_factory):
    recipes = [Between(0.9, under_shift=0.6), Between(0.5), Between(1.2)]
    folder = tmp_path_factory.mktemp("effects")
    assay.compare(subject, PairTask(moving=subject), recipes, folder=folder, **OPTIONS)
    return Comparison.load(folder)


def of(comparison, split):
    return comparison.effects().query("split == @split").set_index("proxy")


# -- what a recipe ablates itself -----------------------------------------------------------------------------------


def test_what_a_recipe_ablates_is_judged_once_as_a_control_and_named(found):
    proxies = {proxy.proxy: proxy for proxy in found.record.proxies}
    nothing = "Between(share=0.0)"
    assert [proxies[nothing].is_control, proxies[nothing].ablation] == [True, None]
    assert len(proxies) == len(found.record.proxies)
    for name in ("Between(share=0.9, under_shift=0.6)", "Between(share=0.5)", "Between(share=0.05)"):
        assert proxies[name].ablation == nothing
    assert "MeanAblation()" not in proxies


def test_recovery_is_from_what_the_recipe_ablates(found):
    agreement = found.agreement().set_index("proxy")["estimate"]
    row = found.controls().query("split == 'iid' and proxy == 'Between(share=0.5)'").iloc[0]
    own, ablated = agreement["Between(share=0.5)"], agreement["Between(share=0.0)"]
    assert ablated < 1
    assert row["ablated"] == ablated
    assert row["recovered"] == pytest.approx((own - ablated) / (1 - ablated))


def test_a_recipe_that_names_no_ablation_has_no_effect(subject):
    found = assay.compare(subject, PairTask(moving=subject), [Between(0.5, knows=False)], **OPTIONS)
    assert found.effects().empty
    assert set(found.controls()["recovered_reason"]) == {"no ablation was judged"}
    assert not [proxy for proxy in found.record.proxies if proxy.ablation]


def test_without_controls_nothing_is_ablated(subject):
    found = assay.compare(subject, PairTask(moving=subject), [Between(0.5)], controls=False, **OPTIONS)
    assert [proxy.proxy for proxy in found.record.proxies] == ["Between(share=0.5)"]
    assert found.effects().empty


def test_verdicts_have_the_share_beside_them(found):
    verdicts = {verdict.proxy: verdict for verdict in found.verdicts()}
    one = verdicts["Between(share=0.9, under_shift=0.6)"]
    assert one.ablation == "Between(share=0.0)"
    assert (one.effect, one.effect_gap, one.shift) == (
        pytest.approx(0.9, abs=1e-4),
        pytest.approx(0.3, abs=2e-4),
        "shorter",
    )
    assert "of the subject's effect on the answer beyond Between(share=0.0); 30.0 points less under shorter" in str(one)


# -- the share of the effect ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "iid", "shift"), [
    ("Between(share=0.9, under_shift=0.6)", 0.9, 0.6), ("Between(share=0.5)", 0.5, 0.5),
    ("Between(share=1.2)", 1.2, 1.2), ("Between(share=0.05)", 0.05, 0.05),
])  # fmt: skip
def test_a_share_that_is_known_is_found(found, name, iid, shift):
    """In every resample it is the same: the interval is a point, and it may lie above 1."""
    here, there = of(found, "iid").loc[name], of(found, "shorter").loc[name]
    assert (here["reason"], there["reason"]) == (None, None)
    for row, share in ((here, iid), (there, shift)):
        assert [row["effect"], row["effect_low"], row["effect_high"]] == pytest.approx([share] * 3, abs=1e-4)
        assert row["deviation"] == pytest.approx(abs(1 - share), abs=1e-4)
        difference = row["subject_difference"] - row["ablated_difference"]
        assert difference > 0.1
        assert row["proxy_difference"] == pytest.approx(row["ablated_difference"] + share * difference, abs=1e-4)
    assert [there["gap"], there["gap_low"], there["gap_high"]] == pytest.approx([iid - shift] * 3, abs=2e-4)
    effects = [row["subject_difference"] - row["ablated_difference"] for row in (here, there)]
    lost = ((1 - shift) * effects[1] - (1 - iid) * effects[0]) / effects[0]
    assert there["gap_iid_scale"] == pytest.approx(lost, abs=1e-3)
    assert there["gap_iid_scale_low"] <= there["gap_iid_scale"] <= there["gap_iid_scale_high"]
    assert here[["gap", "gap_low", "gap_high", "gap_iid_scale"]].isna().all()
    assert here["is_control"] == (name == "Between(share=0.05)")


def test_the_differences_are_those_of_the_results(found):
    rows = found.results.query("split == 'shorter' and kind == 'asked' and feature == ''")
    rows = rows.set_index(["proxy", "metric"])["estimate"]
    for name, row in of(found, "shorter").iterrows():
        assert row["subject_difference"] == pytest.approx(rows[name, "subject_logit_difference"])
        assert row["proxy_difference"] == pytest.approx(rows[name, "logit_difference"])
        assert row["ablated_difference"] == pytest.approx(rows["Between(share=0.0)", "logit_difference"])
        far = rows["Between(share=0.0)", "logit_deviation"]
        assert row["deviation"] == pytest.approx(rows[name, "logit_deviation"] / far)


def test_sites_have_the_effect_of_their_mean_ablation(subject):
    found = assay.compare(subject, PairTask(moving=subject), [assay.SVD(rank=1)], sites=["layer1"], **OPTIONS)
    frame = found.effects().set_index(["proxy", "split"])
    assert set(frame["ablation"]) == {"MeanAblation()"}
    assert {name for name, _ in frame.index} == {"SVD(rank=1)", "RandomProjection(rank=1)"}
    row = frame.loc["SVD(rank=1)", "iid"]
    effect = row["subject_difference"] - row["ablated_difference"]
    assert row["effect"] == pytest.approx((row["proxy_difference"] - row["ablated_difference"]) / effect)


def test_effects_are_kept_in_the_folder_and_an_older_one_has_none(subject, found, tmp_path):
    assert tuple(found.effects().columns) == EFFECT_COLUMNS
    again = Comparison.load(found.save(tmp_path / "again"))
    pd.testing.assert_frame_equal(again.effects(), found.effects())
    (tmp_path / "again" / "effects.parquet").unlink()
    with pytest.raises(assay.AssayError, match="is damaged"):
        Comparison.load(tmp_path / "again")
    options = {**OPTIONS, "metrics": ["same_prediction"], "controls": False}
    older = assay.compare(subject, PairTask(), [Between(0.5)], **options).save(tmp_path / "older")
    (older / "effects.parquet").unlink()
    assert Comparison.load(older).effects().empty
    assert json.loads((older / "comparison.json").read_text())["schema_version"] == 4


# -- where there is none --------------------------------------------------------------------------------------------


def drawn(rng, pairs, *, share=0.8, effect=20.0, seeds=1, spread=3.0):
    """A candidate and its ablation on pairs of one prediction each: the subject's effect varies, and so does the share.

    The mean share is `share` in truth: what is added to it has mean 0 and nothing to do with the effect.
    """
    subject = rng.normal(effect / 2, spread, (seeds, pairs))
    ablated = rng.normal(-effect / 2, spread, (seeds, pairs))
    proxy = ablated + (share + rng.normal(0, 0.1, (seeds, pairs))) * (subject - ablated)
    ones = np.ones((seeds, pairs), dtype=np.int64)
    own = OfPairs(subject, proxy, np.abs(proxy - subject), ones)
    return own, OfPairs(subject, ablated, np.abs(ablated - subject), ones)


def rows(sides, *, level=0.95, resamples=500):
    """The rows of splits given by (candidate, ablation), the first of which is iid."""
    own, ablated = ({name: side[place] for name, side in sides.items() if side[place]} for place in (0, 1))
    weights = {
        name: every(max(part.counts.shape[1] for part in side if part), resamples=resamples, seed=number)
        for number, (name, side) in enumerate(sides.items())
    }
    base = {"proxy": "it", "site": "model", "is_control": False, "ablation": "nothing"}
    found = effect_rows(base, own, ablated, list(sides), iid=next(iter(sides)), weights=weights, level=level)
    return {row["split"]: row for row in found}


def test_with_too_few_pairs_there_is_no_share_and_the_differences_remain():
    rng = np.random.default_rng(0)
    found = rows({"iid": drawn(rng, LEAST_PAIRS), "few": drawn(rng, LEAST_PAIRS - 1)})
    assert found["iid"]["reason"] is None
    assert found["iid"]["effect"] == pytest.approx(0.8, abs=0.1)
    few = found["few"]
    assert few["reason"] == "only 29 different pairs, and at least 30 are needed"
    assert few["pairs"] == 29
    assert all(math.isnan(few[name]) for name in ("effect", "effect_low", "deviation", "gap", "gap_iid_scale"))
    assert few["subject_difference"] == pytest.approx(10, abs=2)


def test_copies_of_a_pair_are_one():
    own, ablated = drawn(np.random.default_rng(0), 40)
    weights = {"iid": type(every(2))(np.arange(40) % 20, 200, 0)}
    (row,) = effect_rows({}, {"iid": own}, {"iid": ablated}, ["iid"], iid="iid", weights=weights, level=0.95)
    assert (row["pairs"], row["reason"]) == (20, "only 20 different pairs, and at least 30 are needed")


def test_where_the_subject_does_as_the_ablated_model_there_is_no_share_but_a_deviation():
    rng = np.random.default_rng(1)
    found = rows({"iid": drawn(rng, 60), "none": drawn(rng, 60, effect=0.0)})
    none = found["none"]
    assert "99% interval contains 0" in none["reason"]
    assert all(math.isnan(none[name]) for name in ("effect", "effect_low", "effect_high", "gap", "gap_low"))
    assert 0 < none["deviation_low"] < none["deviation"] < none["deviation_high"] < 1
    assert none["gap_iid_scale_low"] < none["gap_iid_scale"] < none["gap_iid_scale_high"]
    turned = rows({"iid": drawn(rng, 60, effect=0.0), "shift": drawn(rng, 60)})["shift"]
    assert turned["reason"] is None
    assert math.isnan(turned["gap"])
    assert math.isnan(turned["gap_iid_scale"])


def test_an_effect_may_be_negative_and_a_share_too():
    own, ablated = drawn(np.random.default_rng(2), 60, effect=-20.0, share=-0.5)
    row = rows({"iid": (own, ablated)})["iid"]
    assert row["effect_high"] < 0
    assert row["effect"] == pytest.approx(-0.5, abs=0.1)


def test_what_was_not_measured_says_so():
    own, ablated = drawn(np.random.default_rng(3), 40)
    found = rows({"iid": (own, ablated), "a": (own, None), "b": (None, ablated)})
    assert found["a"]["reason"] == "the ablated model was not measured there"
    assert found["b"]["reason"] == "the proxy was not measured there"
    assert found["a"]["proxy_difference"] == found["iid"]["proxy_difference"]
    assert math.isnan(found["a"]["ablated_difference"])
    assert all(math.isnan(found[name]["effect"]) for name in "ab")


def test_errors_of_opposite_sign_cancel_in_the_share_and_not_in_the_deviation():
    subject, nothing = np.full((1, 40), 10.0), np.zeros((1, 40))
    proxy = subject + 5 * np.where(np.arange(40) % 2, 1, -1)
    ones = np.ones((1, 40), dtype=np.int64)
    own, ablated = OfPairs(subject, proxy, np.abs(proxy - subject), ones), OfPairs(subject, nothing, subject, ones)
    row = rows({"iid": (own, ablated)})["iid"]
    assert (row["effect"], row["deviation"]) == (1.0, 0.5)
    assert row["effect_low"] < 0.9
    assert row["effect_high"] > 1.1


# -- intervals ------------------------------------------------------------------------------------------------------


def ratio(sums):
    return sums[0] / sums[1]


def test_the_limits_are_those_of_scipy_for_one_sample_and_for_two():
    rng = np.random.default_rng(0)
    first, second = (rng.exponential(size=(size, 2)) + np.array([0, 1]) for size in (40, 25))
    weights = [every(len(side), resamples=20_000, seed=number) for number, side in enumerate((first, second))]
    samples = [(side[None], own) for side, own in zip((first, second), weights, strict=True)]

    def of_rows(a, b=None, axis=-1):
        found = first[a, 0].sum(axis=-1) / first[a, 1].sum(axis=-1)
        return found if b is None else found - second[b, 0].sum(axis=-1) / second[b, 1].sum(axis=-1)

    for function, count in ((ratio, 1), (lambda a, b: ratio(a) - ratio(b), 2)):
        data = tuple(np.arange(len(side)) for side in (first, second)[:count])
        expected = stats.bootstrap(data, of_rows, n_resamples=20_000, method="BCa", vectorized=True, rng=1)
        value, low, high = smooth(function, *samples[:count])
        assert value == pytest.approx(float(of_rows(*data)))
        limits = expected.confidence_interval
        assert (low, high) == pytest.approx((limits.low, limits.high), abs=0.02)


def test_seeds_that_differ_make_a_share_uncertain_and_seeds_that_agree_do_not():
    rng = np.random.default_rng(0)
    own, ablated = drawn(rng, 200, seeds=1)
    same = [OfPairs(*(np.repeat(part, 3, axis=0) for part in vars(side).values())) for side in (own, ablated)]
    one, three = rows({"iid": (own, ablated)})["iid"], rows({"iid": tuple(same)})["iid"]
    assert three["effect"] == pytest.approx(one["effect"])
    assert (three["effect_low"], three["effect_high"]) == pytest.approx((one["effect_low"], one["effect_high"]))
    shares = (0.7, 0.8, 0.9)
    parts = [drawn(rng, 200, share=share) for share in shares]
    apart = [
        OfPairs(*(np.concatenate(both) for both in zip(*(vars(side[place]).values() for side in parts), strict=True)))
        for place in (0, 1)
    ]
    wide = rows({"iid": tuple(apart)}, resamples=2_000)["iid"]
    assert wide["effect"] == pytest.approx(0.8, abs=0.02)
    student = stats.t.ppf(0.975, 2) * 0.1 / math.sqrt(3)
    assert wide["effect_high"] - wide["effect_low"] == pytest.approx(2 * student, rel=0.25)


def test_draws_of_a_control_are_compared_with_the_one_ablated_model():
    own, ablated = drawn(np.random.default_rng(0), 60, seeds=5)
    single = OfPairs(*(part[:1] for part in vars(ablated).values()))
    first = OfPairs(*(np.repeat(part[:1], 5, axis=0) for part in (own.subject, own.proxy, own.deviation, own.counts)))
    row = rows({"iid": (first, single)})["iid"]
    expected = (own.proxy[0] - ablated.proxy[0]).sum() / (own.subject[0] - ablated.proxy[0]).sum()
    assert row["effect"] == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["even", "skewed", "correlated"])
def test_the_interval_of_a_share_covers(kind):
    """2,000 sets of 50 pairs whose true share is 0.8: 0.941, 0.933 and 0.930 of the intervals contain it."""
    weights, hits = [every(50, seed=seed) for seed in range(20)], 0
    for number in range(2_000):
        rng = np.random.default_rng([number, 50])
        if kind == "even":
            effect, share = rng.normal(20, 6, 50), rng.normal(0.8, 0.15, 50)
        elif kind == "skewed":
            effect, share = rng.gamma(2, 3, 50), rng.beta(8, 2, 50)
        else:  # a pair's share is the lower, the larger its effect
            effect = rng.gamma(4, 2, 50)
            share = 0.8 * 8 / effect + rng.normal(0, 0.2, 50)
        _, low, high = smooth(ratio, (np.stack((share * effect, effect), axis=-1)[None], weights[number % 20]))
        hits += low <= 0.8 <= high
    assert 0.92 <= hits / 2_000 <= 0.96


def test_without_two_sequences_or_a_finite_value_there_are_no_limits():
    value, *limits = smooth(ratio, (np.array([[[1.0, 2.0]]]), every(1)))
    assert value == 0.5
    assert all(map(math.isnan, limits))
    assert all(map(math.isnan, smooth(ratio, (np.array([[[1.0, 2.0], [1.0, -2.0]]]), every(2)))))


def test_a_subject_of_two_seeds_is_judged_as_one(subject):
    twin = Subject(subject.model, subject.tokenizer, "random-dyck", seed=1)
    found = assay.compare([subject, twin], PairTask(moving=subject), [Between(0.7)], **OPTIONS)
    row = of(found, "iid").loc["Between(share=0.7)"]
    assert row["effect"] == pytest.approx(0.7, abs=1e-4)
