"""Estimates, intervals, gaps and tests against scipy, by hand, and by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from assay.faithfulness import estimate, gap, holm


def one_seed(sums, counts):
    return np.asarray(sums, dtype=float)[None, :, None], np.asarray(counts, dtype=np.int64)[None, :, None]


def estimated(sums, counts, *, rate=True, seed=0, **options):
    columns = sums.shape[-1]
    return estimate(sums, counts, rates=[rate] * columns, rng=np.random.default_rng(seed), **options)


def gap_of(iid, shift, *, signs=None, rates=True, seed=0, **options):
    columns = iid[0].shape[-1]
    rates = [rates] * columns if isinstance(rates, bool) else rates
    level = {name: options[name] for name in ("level", "resamples", "method") if name in options}
    limits = tuple(
        estimate(*side, rates=rates, rng=np.random.default_rng(seed + 1 + number), **level)
        for number, side in enumerate((iid, shift))
    )
    return gap(
        iid,
        shift,
        limits,
        signs=np.ones(columns) if signs is None else np.asarray(signs, dtype=float),
        rng=np.random.default_rng(seed),
        **options,
    )


def bernoulli(rng, rate, sequences, *, seeds=1, per_sequence=8, spread=0.0):
    """Predictions of sequences that differ in difficulty: (sums, counts) of one column."""
    counts = rng.integers(1, per_sequence + 1, (1, sequences, 1)).repeat(seeds, axis=0)
    concentration = np.inf if spread == 0 else (1 - spread) / spread
    if math.isinf(concentration):
        chance = np.full((1, sequences, 1), rate)
    else:
        chance = rng.beta(rate * concentration, (1 - rate) * concentration, (1, sequences, 1))
    return rng.binomial(counts, chance.repeat(seeds, axis=0)).astype(float), counts


# -- one split ------------------------------------------------------------------------------------------------------


def test_the_estimate_is_a_mean_over_predictions_not_over_sequences():
    sums, counts = one_seed([1, 0, 9], [1, 1, 10])
    assert estimated(sums, counts).value[0] == pytest.approx(10 / 12)


@pytest.mark.parametrize(("method", "name"), [("bca", "BCa"), ("percentile", "percentile")])
def test_limits_are_those_of_scipy_on_the_ratio_of_sums_and_counts(method, name):
    rng = np.random.default_rng(3)
    sums, counts = bernoulli(rng, 0.7, 40, spread=0.2)
    found = estimated(sums, counts, seed=11, resamples=1_500, method=method)

    def ratio(x, n, axis=-1):
        return x.sum(axis=axis) / n.sum(axis=axis)

    expected = stats.bootstrap(
        (sums[0, :, 0], counts[0, :, 0].astype(float)),
        ratio,
        paired=True,
        vectorized=True,
        n_resamples=1_500,
        method=name,
        rng=np.random.default_rng(11),
    )
    assert found.low[0] == pytest.approx(expected.confidence_interval.low, abs=1e-12)
    assert found.high[0] == pytest.approx(expected.confidence_interval.high, abs=1e-12)
    assert found.error[0] == pytest.approx(expected.standard_error, abs=1e-12)
    assert found.how == (method,)


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("sequences", [2, 7, 60])
@pytest.mark.parametrize("rate", [0, 1])
def test_a_rate_without_variation_gets_the_exact_limits(level, sequences, rate):
    counts = np.arange(1, sequences + 1)
    found = estimated(*one_seed(rate * counts, counts), level=level, resamples=100)
    exact = stats.binomtest(rate * sequences, sequences).proportion_ci(confidence_level=level, method="exact")
    assert (found.low[0], found.high[0]) == (pytest.approx(exact.low), pytest.approx(exact.high))
    assert found.how == ("clopper-pearson",)
    assert found.low[0] <= found.value[0] <= found.high[0]


def test_sequences_without_such_a_prediction_are_no_trials():
    sums, counts = one_seed([3, 0, 2, 0, 1], [3, 0, 2, 0, 1])
    exact = stats.binomtest(3, 3).proportion_ci(method="exact")
    assert estimated(sums, counts).low[0] == pytest.approx(exact.low)


def test_a_constant_that_is_no_rate_has_a_point_as_interval_and_no_exact_limits():
    sums, counts = one_seed([0.0, 0.0, 0.0], [4, 2, 1])
    found = estimated(sums, counts, rate=False)
    assert (found.value[0], found.low[0], found.high[0]) == (0, 0, 0)
    assert "clopper-pearson" not in found.how


@pytest.mark.parametrize("counts", [[0, 0, 0], [5, 0, 0]])
def test_fewer_than_two_sequences_give_no_interval(counts):
    found = estimated(*one_seed([min(1, count) for count in counts], counts))
    assert math.isnan(found.low[0])
    assert math.isnan(found.high[0])
    assert found.how == ("none",)
    assert math.isnan(found.value[0]) == (sum(counts) == 0)


def test_columns_do_not_influence_each_other():
    rng = np.random.default_rng(5)
    parts = [bernoulli(rng, rate, 30, spread=0.3) for rate in (0.2, 0.5, 0.9)]
    parts.append((np.zeros((1, 30, 1)), np.zeros((1, 30, 1), dtype=np.int64)))
    sums, counts = (np.concatenate([part[side] for part in parts], axis=2) for side in (0, 1))
    straight = estimated(sums, counts, resamples=300)
    order = [2, 3, 0, 1]
    turned = estimated(sums[..., order], counts[..., order], resamples=300)
    for name in ("value", "low", "high", "error"):
        np.testing.assert_allclose(getattr(turned, name), getattr(straight, name)[order], rtol=1e-12)
    assert turned.how == tuple(straight.how[index] for index in order)
    alone = estimated(sums[..., :1], counts[..., :1], resamples=300)
    assert alone.low[0] == pytest.approx(straight.low[0], abs=1e-12)


def test_single_seed_intervals_cover():
    hits = 0
    for number in range(200):
        rng = np.random.default_rng([7, number])
        sums, counts = bernoulli(rng, 0.8, 60, spread=0.2)
        found = estimated(sums, counts, seed=number, resamples=400)
        hits += bool(found.low[0] <= 0.8 <= found.high[0])
    assert 0.90 <= hits / 200 <= 0.99


@pytest.mark.parametrize("sequences", [3, 5])
def test_intervals_of_few_sequences_cover(sequences):
    """A verdict of "unfaithful" must not rest on three sequences whose range happens to lie below the threshold."""
    hits = 0
    for number in range(200):
        rng = np.random.default_rng([8, number])
        sums, counts = bernoulli(rng, 0.5, sequences, per_sequence=10, spread=0.1)
        found = estimated(sums, counts, seed=number, resamples=200)
        hits += bool(math.isnan(found.low[0]) or found.low[0] <= 0.5 <= found.high[0])
    assert hits / 200 >= 0.90


def test_skewed_divergences_cover():
    hits = 0
    for number in range(200):
        rng = np.random.default_rng([9, number])
        values = rng.exponential(0.5, (1, 60, 1))
        found = estimated(values, np.ones((1, 60, 1), dtype=np.int64), rate=False, seed=number, resamples=400)
        hits += bool(found.low[0] <= 0.5 <= found.high[0])
    assert 0.90 <= hits / 200 <= 0.99


# -- several seeds --------------------------------------------------------------------------------------------------


def seeded(rng, seeds=5, sequences=60, spread=0.08, rate=0.8):
    rates = np.clip(rng.normal(rate, spread, seeds), 0.01, 0.99)
    counts = rng.integers(1, 9, (1, sequences, 1)).repeat(seeds, axis=0)
    return rng.binomial(counts, rates[:, None, None]).astype(float), counts


def test_seeds_that_differ_widen_the_interval():
    sums, counts = seeded(np.random.default_rng(1), spread=0.15)
    crossed = estimated(sums, counts, method="percentile")
    pooled = estimated(sums.sum(axis=0, keepdims=True), counts.sum(axis=0, keepdims=True), method="percentile")
    assert crossed.value[0] == pytest.approx(pooled.value[0])
    assert crossed.high[0] - crossed.low[0] > 2 * (pooled.high[0] - pooled.low[0])


def test_seeds_that_are_alike_leave_the_interval_nearly_as_it_is():
    sums, counts = bernoulli(np.random.default_rng(2), 0.8, 80, spread=0.2)
    one = estimated(sums, counts, resamples=4_000)
    five = estimated(sums.repeat(5, axis=0), counts.repeat(5, axis=0), resamples=4_000)
    assert five.value[0] == pytest.approx(one.value[0])
    assert five.high[0] - five.low[0] == pytest.approx(one.high[0] - one.low[0], rel=0.1)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_over_seeds_cover_the_rate_of_the_population_of_seeds(seeds):
    hits = 0
    for number in range(200):
        rng = np.random.default_rng([10, number])
        sums, counts = seeded(rng, seeds=seeds)
        found = estimated(sums, counts, seed=number, resamples=300)
        hits += bool(found.low[0] <= 0.8 <= found.high[0])
    assert hits / 200 >= 0.90


# -- gaps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sign", "expected"), [(1.0, 0.5), (-1.0, -0.5)])
def test_positive_means_less_faithful_under_the_shift(sign, expected):
    iid, shift = one_seed([4, 4, 3, 5], [5, 5, 5, 5]), one_seed([1, 2, 1, 2], [5, 5, 5, 5])
    found, p = gap_of(iid, shift, signs=[sign], rates=False)
    assert found.value[0] == pytest.approx(expected)
    assert found.low[0] <= found.value[0] <= found.high[0]
    assert np.sign(found.low[0]) == np.sign(found.high[0]) == np.sign(expected)
    assert p[0] < 0.001


def test_turning_the_sign_mirrors_the_interval():
    rng = np.random.default_rng(4)
    iid, shift = bernoulli(rng, 0.9, 40, spread=0.2), bernoulli(rng, 0.7, 50, spread=0.2)
    up, p_up = gap_of(iid, shift, signs=[1], method="percentile")
    down, p_down = gap_of(iid, shift, signs=[-1], method="percentile")
    assert (down.low[0], down.high[0]) == (pytest.approx(-up.high[0]), pytest.approx(-up.low[0]))
    assert p_up[0] == pytest.approx(p_down[0])


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_gap_limits_are_those_of_scipy_on_two_samples(method):
    rng = np.random.default_rng(6)
    a, b = rng.uniform(size=30), rng.uniform(size=20) * 0.8
    iid, shift = one_seed(a, np.ones(30)), one_seed(b, np.ones(20))
    found, p = gap_of(iid, shift, rates=False, method=method, resamples=800, seed=21)
    expected = stats.bootstrap(
        (a, b),
        lambda x, y, axis=-1: x.mean(axis=axis) - y.mean(axis=axis),
        vectorized=True,
        n_resamples=800,
        method="BCa" if method == "bca" else method,
        rng=np.random.default_rng(21),
    )
    assert found.low[0] == pytest.approx(expected.confidence_interval.low, abs=1e-12)
    assert found.high[0] == pytest.approx(expected.confidence_interval.high, abs=1e-12)
    z = abs(a.mean() - b.mean()) / expected.standard_error
    assert p[0] == pytest.approx(2 * stats.norm.sf(z), rel=1e-9)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_gap_from_a_perfect_rate_is_combined_from_both_sides(sign):
    iid, shift = one_seed([5] * 10, [5] * 10), one_seed([5, 4, 3, 5, 5, 2, 4, 5], [5] * 8)
    limits = [estimated(*side, seed=1 + number) for number, side in enumerate((iid, shift))]
    found, p = gap_of(iid, shift, signs=[sign])
    low_a, high_b = 0.025 ** (1 / 10), limits[1].high[0]
    low_b, value_b = limits[1].low[0], 33 / 40
    narrow = math.hypot(1 - low_a, high_b - value_b)
    wide = value_b - low_b
    value = 1 - value_b
    expected = (value - narrow, value + wide) if sign > 0 else (-value - wide, -value + narrow)
    assert found.how == ("mover",)
    assert found.value[0] == pytest.approx(sign * value)
    assert (found.low[0], found.high[0]) == (pytest.approx(expected[0]), pytest.approx(expected[1]))
    assert p[0] == pytest.approx(2 * stats.norm.sf(value / (narrow / stats.norm.ppf(0.975))))
    assert (p[0] < 0.05) == (found.low[0] > 0 or found.high[0] < 0)


def test_two_perfect_rates_have_no_gap_and_an_honest_interval():
    found, p = gap_of(one_seed([2] * 12, [2] * 12), one_seed([3] * 30, [3] * 30))
    assert found.value[0] == 0
    assert found.low[0] == pytest.approx(-(1 - 0.025 ** (1 / 12)))
    assert found.high[0] == pytest.approx(1 - 0.025 ** (1 / 30))
    assert p[0] == 1


def test_a_gap_that_cannot_be_told_is_nan_and_spares_the_others():
    rng = np.random.default_rng(12)
    iid = tuple(np.concatenate(parts, axis=2) for parts in zip(bernoulli(rng, 0.8, 20), bernoulli(rng, 0.8, 20), strict=True))
    sums, counts = (np.array(part) for part in iid)
    sums[..., 1], counts[..., 1] = 0, 0
    found, p = gap_of(iid, (sums, counts))
    assert np.isfinite([found.value[0], found.low[0], found.high[0], p[0]]).all()
    assert np.isnan([found.value[1], found.low[1], found.high[1], p[1]]).all()
    assert found.how[1] == "none"


def test_gap_intervals_cover():
    hits = 0
    for number in range(200):
        rng = np.random.default_rng([13, number])
        iid, shift = bernoulli(rng, 0.9, 60, spread=0.1), bernoulli(rng, 0.75, 60, spread=0.2)
        found, _ = gap_of(iid, shift, seed=number, resamples=300)
        hits += bool(found.low[0] <= 0.15 <= found.high[0])
    assert 0.90 <= hits / 200 <= 0.99


def test_gap_intervals_cover_where_one_side_is_often_perfect():
    hits, movers = 0, 0
    for number in range(200):
        rng = np.random.default_rng([14, number])
        iid, shift = bernoulli(rng, 0.998, 60), bernoulli(rng, 0.95, 60, spread=0.1)
        found, _ = gap_of(iid, shift, seed=number, resamples=300)
        hits += bool(found.low[0] <= 0.048 <= found.high[0])
        movers += found.how[0] == "mover"
    assert movers > 30
    assert hits / 200 >= 0.90


def test_no_gap_gives_few_false_alarms():
    alarms = 0
    for number in range(200):
        rng = np.random.default_rng([15, number])
        found, p = gap_of(
            bernoulli(rng, 0.85, 60, spread=0.2), bernoulli(rng, 0.85, 60, spread=0.2), seed=number, resamples=300
        )
        alarms += bool(p[0] < 0.05)
    assert alarms / 200 <= 0.09


def test_seeds_make_the_test_of_a_gap_a_t_test():
    rng = np.random.default_rng(16)
    iid, shift = seeded(rng, seeds=4, rate=0.9), seeded(rng, seeds=4, rate=0.7)
    found, p = gap_of(iid, shift)
    assert p[0] == pytest.approx(2 * stats.t.sf(abs(found.value[0]) / found.error[0], 3))


def test_a_seed_that_is_bad_everywhere_does_not_look_like_a_gap():
    """Seeds are resampled jointly on both splits, so what they have in common cancels."""
    rng = np.random.default_rng(17)
    rates = np.array([0.5, 0.7, 0.9])[:, None, None]
    counts = np.full((3, 80, 1), 6)
    iid, shift = ((rng.binomial(counts, rates).astype(float), counts) for _ in range(2))
    found, _ = gap_of(iid, shift)
    one_side = estimated(*iid)
    assert found.high[0] - found.low[0] < 0.7 * (one_side.high[0] - one_side.low[0])


# -- Holm -----------------------------------------------------------------------------------------------------------


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_leaves_out_what_was_not_measured():
    found = holm([0.02, math.nan, 0.03])
    assert found[0] == pytest.approx(0.04)
    assert math.isnan(found[1])
    assert found[2] == pytest.approx(0.04)
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=80, deadline=None)
def test_holm_is_the_largest_of_the_steps_before_it(p):
    """Adjusted p_(i) = max over j <= i of min(1, (m - j + 1) p_(j)), written out without a running maximum."""
    ordered = sorted(p)
    found = holm(p)
    for value, adjusted in zip(p, found, strict=True):
        rank = ordered.index(value)
        steps = [min(1.0, (len(p) - j) * ordered[j]) for j in range(rank + 1)]
        last = rank + ordered.count(value) - 1
        ties = [min(1.0, (len(p) - j) * ordered[j]) for j in range(last + 1)]
        assert max(steps) - 1e-15 <= adjusted <= max(ties) + 1e-15
        assert adjusted >= value
    for alpha in (0.01, 0.05, 0.2):
        rejected = 0
        while rejected < len(p) and ordered[rejected] <= alpha / (len(p) - rejected):
            rejected += 1
        assert sum(value <= alpha for value in found) == pytest.approx(rejected, abs=1e-9)
