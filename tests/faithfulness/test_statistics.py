"""Estimates, intervals, gaps and tests: by hand, against independent formulas, by properties and by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from assay.faithfulness import CHANGE_OF_RATE, RATE, UNBOUNDED, Weights, draws, estimate, every, gap, holm
from assay.faithfulness._statistics import p_above, share_recovered

MANY = 40_000
"""Draws with which a quantile is known to a few thousandths."""


def one_seed(sums, counts):
    return np.asarray(sums, dtype=float)[None, :, None], np.asarray(counts, dtype=np.int64)[None, :, None]


def drawn(sample, *, bounds=RATE, seed=0, resamples=2_000):
    sums, counts = sample
    return draws(sums, counts, every(sums.shape[1], resamples=resamples, seed=seed), bounds=[bounds] * sums.shape[2])


def estimated(sample, *, level=0.95, nonnegative=True, **options):
    return estimate(drawn(sample, **options), level=level, nonnegative=nonnegative)


def gap_of(iid, shift, *, signs=None, seed=0, level=0.95, **options):
    sides = [drawn(side, seed=2 * seed + number, **options) for number, side in enumerate((iid, shift))]
    columns = iid[0].shape[2]
    return gap(*sides, signs=np.ones(columns) if signs is None else np.asarray(signs, dtype=float), level=level)


def bernoulli(rng, rate, sequences, *, seeds=1, per_sequence=8, spread=0.0):
    """Predictions of sequences that differ in difficulty: (sums, counts) of one column."""
    counts = rng.integers(1, per_sequence + 1, (1, sequences, 1)).repeat(seeds, axis=0)
    chance = np.full((1, sequences, 1), rate)
    if spread:
        chance = rng.beta(rate * (1 / spread - 1), (1 - rate) * (1 / spread - 1), (1, sequences, 1))
    return rng.binomial(counts, chance.repeat(seeds, axis=0)).astype(float), counts


# -- one split ------------------------------------------------------------------------------------------------------


def test_the_estimate_is_a_mean_over_predictions_not_over_sequences():
    assert estimated(one_seed([1, 0, 9], [1, 1, 10])).value[0] == pytest.approx(10 / 12)


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
@pytest.mark.parametrize(("right", "sequences"), [(0, 2), (2, 2), (7, 7), (55, 60), (60, 60), (30, 60)])
def test_with_one_prediction_a_sequence_the_limits_are_those_of_clopper_and_pearson(level, right, sequences):
    found = estimated(one_seed([1] * right + [0] * (sequences - right), [1] * sequences), level=level, resamples=MANY)
    exact = stats.binomtest(right, sequences).proportion_ci(confidence_level=level, method="exact")
    assert found.low[0] == pytest.approx(exact.low, abs=0.01)
    assert found.high[0] == pytest.approx(exact.high, abs=0.01)
    assert found.how == ("one more",)


def test_for_means_of_equal_lengths_the_limits_are_those_of_gaffke():
    """Written out with order statistics of uniform numbers: 1 - sum of u_(i) (z_(i+1) - z_(i)), z_(n+1) = 1."""
    rng = np.random.default_rng(1)
    shares = rng.beta(4, 1, 15).round(1)
    found = estimated(one_seed(10 * shares, [10] * 15), resamples=MANY)
    uniform = np.sort(rng.uniform(size=(MANY, 15)), axis=1)
    for sign, limit in ((1, found.high[0]), (-1, 1 - found.low[0])):
        ordered = np.sort(shares if sign > 0 else 1 - shares)
        steps = np.diff(np.append(ordered, 1.0))
        expected = np.quantile(1 - uniform @ steps, 0.975)
        assert limit == pytest.approx(expected, abs=0.01)


sequences_of_errors = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=40).map(
    lambda pairs: [(right, right + wrong) for right, wrong in pairs]
)


@given(sequences_of_errors, st.integers(0, 1_000))
@settings(max_examples=200, deadline=None)
def test_an_error_more_never_raises_a_limit(sequences, which):
    right, all_ = map(np.array, zip(*sequences, strict=True))
    able = np.flatnonzero(right)
    if not len(able):
        return
    worse = right.copy()
    worse[able[which % len(able)]] -= 1
    before, after = (estimated(one_seed(side, all_), resamples=200) for side in (right, worse))
    if math.isnan(before.low[0]):
        return
    assert after.low[0] <= before.low[0] + 1e-12
    assert after.high[0] <= before.high[0] + 1e-12


@given(sequences_of_errors, sequences_of_errors, st.integers(0, 1_000))
@settings(max_examples=200, deadline=None)
def test_an_error_more_under_the_shift_never_lowers_a_limit_of_the_gap(iid, shift, which):
    (a, all_a), (b, all_b) = (map(np.array, zip(*side, strict=True)) for side in (iid, shift))
    able = np.flatnonzero(b)
    if not len(able):
        return
    worse = b.copy()
    worse[able[which % len(able)]] -= 1
    before, _ = gap_of(one_seed(a, all_a), one_seed(b, all_b), resamples=200)
    after, _ = gap_of(one_seed(a, all_a), one_seed(worse, all_b), resamples=200)
    if math.isnan(before.low[0]):
        return
    assert after.low[0] >= before.low[0] - 1e-12
    assert after.high[0] >= before.high[0] - 1e-12


def test_one_error_does_not_make_a_proxy_look_more_faithful_than_none():
    """300 and 100 sequences of 20: the upper limit fell from 3.6 points to 0.3 with the first error."""
    iid, perfect = one_seed([20] * 300, [20] * 300), one_seed([20] * 100, [20] * 100)
    one_error = one_seed([19] + [20] * 99, [20] * 100)
    highs = [gap_of(iid, shift)[0].high[0] for shift in (perfect, one_error)]
    assert highs[0] == pytest.approx(1 - 0.025 ** (1 / 100), abs=0.005)
    assert highs[0] < highs[1]


def test_sequences_without_such_a_prediction_are_no_trials():
    found = estimated(one_seed([3, 0, 2, 0, 1], [3, 0, 3, 0, 2]))
    rest = estimated(one_seed([3, 2, 1], [3, 3, 2]))
    assert found.value[0] == rest.value[0]
    assert (found.low[0], found.high[0]) == (
        pytest.approx(rest.low[0], abs=0.05),
        pytest.approx(rest.high[0], abs=0.05),
    )


@pytest.mark.parametrize("counts", [[0, 0, 0], [5, 0, 0]])
@pytest.mark.parametrize("bounds", [RATE, UNBOUNDED])
def test_fewer_than_two_sequences_give_no_interval(counts, bounds):
    found = estimated(one_seed([min(1, count) for count in counts], counts), bounds=bounds)
    assert math.isnan(found.low[0])
    assert math.isnan(found.high[0])
    assert found.how == ("none",)
    assert math.isnan(found.value[0]) == (sum(counts) == 0)


def test_copies_of_a_sequence_are_one_unit():
    rng = np.random.default_rng(3)
    sums, counts = bernoulli(rng, 0.7, 25)
    twice = draws(
        sums.repeat(2, axis=1), counts.repeat(2, axis=1), Weights(np.arange(25).repeat(2), 2_000, 0), bounds=[RATE]
    )
    once = draws(sums, counts, every(25), bounds=[RATE])
    np.testing.assert_allclose(estimate(twice).low, estimate(once).low)
    np.testing.assert_allclose(estimate(twice).high, estimate(once).high)


def test_copies_of_one_sequence_are_no_evidence():
    """Forty copies of one sequence had the interval [66.7, 66.7]."""
    sums, counts = one_seed([2] * 40, [3] * 40)
    found = estimate(draws(sums, counts, Weights(np.zeros(40, dtype=int), 100, 0), bounds=[RATE]))
    assert found.how == ("none",)
    assert math.isnan(found.low[0])


def test_the_order_of_units_does_not_matter():
    rng = np.random.default_rng(4)
    sums, counts = bernoulli(rng, 0.7, 12)
    order = rng.permutation(12)
    straight = estimate(draws(sums, counts, every(12), bounds=[RATE]))
    turned = estimate(draws(sums[:, order], counts[:, order], Weights(order, 2_000, 0), bounds=[RATE]))
    np.testing.assert_allclose(turned.low, straight.low)


@pytest.mark.parametrize("bounds", [RATE, UNBOUNDED])
def test_columns_do_not_influence_each_other(bounds):
    rng = np.random.default_rng(5)
    parts = [bernoulli(rng, rate, 30, spread=0.3) for rate in (0.2, 0.5, 0.9)]
    parts.append((np.zeros((1, 30, 1)), np.zeros((1, 30, 1), dtype=np.int64)))
    sums, counts = (np.concatenate([part[side] for part in parts], axis=2) for side in (0, 1))
    straight = estimated((sums, counts), resamples=300, bounds=bounds)
    order = [2, 3, 0, 1]
    turned = estimated((sums[..., order], counts[..., order]), resamples=300, bounds=bounds)
    for name in ("value", "low", "high", "error"):
        np.testing.assert_allclose(getattr(turned, name), getattr(straight, name)[order], rtol=1e-9)
    assert turned.how == tuple(straight.how[index] for index in order)


def test_other_numbers_have_the_studentized_bootstrap():
    """Against it, written out resample by resample on the same resampled sequences."""
    rng = np.random.default_rng(6)
    counts = rng.integers(1, 9, 25)
    sums = rng.gamma(0.5 * counts, 2)
    weights = every(25, resamples=999)
    found = estimate(draws(*one_seed(sums, counts), weights, bounds=[UNBOUNDED]))

    def ratio_and_error(x, n):
        ratio = x.sum() / n.sum()
        return ratio, math.sqrt(((x - ratio * n) ** 2).sum() * 25 / 24) / n.sum()

    value, error = ratio_and_error(sums, counts)
    t = []
    for drawn_times in weights.resampled:
        index = np.arange(25).repeat(drawn_times.astype(int))
        other, own = ratio_and_error(sums[index], counts[index])
        t.append((other - value) / own)
    t.sort()
    assert found.value[0] == pytest.approx(value)
    assert found.low[0] == pytest.approx(max(value - error * t[-25], 0))
    assert found.high[0] == pytest.approx(value - error * t[24])
    assert found.how == ("studentized",)


def test_a_number_without_variation_has_a_point_as_interval():
    found = estimated(one_seed([0.0, 0.0, 0.0], [4, 2, 1]), bounds=UNBOUNDED)
    assert (found.value[0], found.low[0], found.high[0]) == (0, 0, 0)


def test_differences_of_rates_may_be_negative_and_no_difference_has_an_honest_interval():
    found = estimated(one_seed([0] * 50, [1] * 50), bounds=CHANGE_OF_RATE, resamples=MANY)
    assert found.low[0] == pytest.approx(-(1 - 0.025 ** (1 / 50)), abs=0.005)
    assert found.high[0] == pytest.approx(1 - 0.025 ** (1 / 50), abs=0.005)


@pytest.mark.parametrize(
    ("rate", "sequences", "spread"), [(0.95, 10, 0.1), (0.95, 30, 0.5), (0.99, 100, 0.5), (0.5, 60, 0.5), (0.97, 60, 0)]
)
def test_intervals_of_rates_cover(rate, sequences, spread):
    """The whole grid is in benchmarks/intervals.py; these are rows in which the bootstrap covered .81 to .92."""
    rng = np.random.default_rng(7)
    samples = [bernoulli(rng, rate, sequences, per_sequence=30, spread=spread) for _ in range(500)]
    found = estimated(tuple(np.concatenate([sample[side] for sample in samples], axis=2) for side in (0, 1)))
    inside = (found.low <= rate) & (rate <= found.high)
    # 0.94, less three standard errors of 500 replicates.
    assert inside.mean() >= 0.94 - 3 * math.sqrt(0.06 * 0.94 / 500)


def test_intervals_of_skewed_numbers_cover():
    rng = np.random.default_rng(8)
    values = rng.exponential(0.5, (1, 60, 400))
    found = estimated((values, np.ones(values.shape, dtype=np.int64)), bounds=UNBOUNDED)
    assert 0.91 <= ((found.low <= 0.5) & (found.high >= 0.5)).mean() <= 0.985


# -- several seeds --------------------------------------------------------------------------------------------------


def seeded(rng, *, seeds=5, sequences=60, spread=0.08, rate=0.8, columns=1):
    rates = np.clip(rng.normal(rate, spread, (seeds, 1, columns)), 0.01, 0.99)
    counts = rng.integers(1, 9, (1, sequences, columns)).repeat(seeds, axis=0)
    return rng.binomial(counts, rates).astype(float), counts


def test_the_value_over_seeds_is_the_mean_of_theirs():
    sums, counts = seeded(np.random.default_rng(1), seeds=3)
    by_hand = np.mean([sums[seed].sum() / counts[seed].sum() for seed in range(3)])
    assert estimated((sums, counts)).value[0] == pytest.approx(by_hand)


def test_seeds_that_differ_widen_the_interval():
    sums, counts = seeded(np.random.default_rng(1), spread=0.15)
    crossed = estimated((sums, counts))
    pooled = estimated((sums.sum(axis=0, keepdims=True), counts.sum(axis=0, keepdims=True)))
    assert crossed.value[0] == pytest.approx(pooled.value[0])
    assert crossed.high[0] - crossed.low[0] > 2 * (pooled.high[0] - pooled.low[0])


def test_seeds_that_are_alike_leave_the_interval_as_it_is():
    sums, counts = bernoulli(np.random.default_rng(2), 0.8, 80, spread=0.2)
    one = estimated((sums, counts))
    five = estimated((sums.repeat(5, axis=0), counts.repeat(5, axis=0)))
    for name in ("value", "low", "high"):
        assert getattr(five, name)[0] == pytest.approx(getattr(one, name)[0])


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_over_seeds_cover_the_rate_of_the_population_of_seeds(seeds):
    found = estimated(seeded(np.random.default_rng(10), seeds=seeds, columns=400))
    assert ((found.low <= 0.8) & (found.high >= 0.8)).mean() >= 0.91


# -- gaps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sign", "expected"), [(1.0, 0.5), (-1.0, -0.5)])
@pytest.mark.parametrize("bounds", [RATE, UNBOUNDED])
def test_positive_means_less_faithful_under_the_shift(sign, expected, bounds):
    iid, shift = one_seed([4, 4, 3, 5] * 10, [5] * 40), one_seed([1, 2, 1, 2] * 10, [5] * 40)
    found, p = gap_of(iid, shift, signs=[sign], bounds=bounds)
    assert found.value[0] == pytest.approx(expected)
    assert found.low[0] <= found.value[0] <= found.high[0]
    assert np.sign(found.low[0]) == np.sign(found.high[0]) == np.sign(expected)
    assert p[0] < 0.001


@pytest.mark.parametrize("bounds", [RATE, UNBOUNDED])
def test_turning_the_sign_mirrors_the_interval(bounds):
    rng = np.random.default_rng(4)
    iid, shift = bernoulli(rng, 0.9, 40, spread=0.2), bernoulli(rng, 0.7, 50, spread=0.2)
    up, p_up = gap_of(iid, shift, signs=[1], bounds=bounds)
    down, p_down = gap_of(iid, shift, signs=[-1], bounds=bounds)
    assert (down.low[0], down.high[0]) == (pytest.approx(-up.high[0]), pytest.approx(-up.low[0]))
    assert p_up[0] == pytest.approx(p_down[0])


def test_the_draws_of_a_gap_are_those_of_its_sides_each_against_the_limit():
    rng = np.random.default_rng(6)
    iid, shift = bernoulli(rng, 0.95, 30), bernoulli(rng, 0.8, 20)
    found, _ = gap_of(iid, shift, resamples=999)
    a, b = drawn(iid, seed=0, resamples=999), drawn(shift, seed=1, resamples=999)
    assert found.low[0] == pytest.approx(np.sort(a.low[0, 0] - b.high[0, 0])[24])
    assert found.high[0] == pytest.approx(np.sort(a.high[0, 0] - b.low[0, 0])[-25])


def test_two_perfect_rates_have_no_gap_and_an_honest_interval():
    found, p = gap_of(one_seed([2] * 12, [2] * 12), one_seed([3] * 30, [3] * 30), resamples=MANY)
    assert found.value[0] == 0
    assert found.low[0] == pytest.approx(-(1 - 0.025 ** (1 / 12)), abs=0.01)
    assert found.high[0] == pytest.approx(1 - 0.025 ** (1 / 30), abs=0.01)
    assert p[0] == 1


def test_a_gap_that_cannot_be_told_is_nan_and_spares_the_others():
    rng = np.random.default_rng(12)
    iid = tuple(
        np.concatenate(parts, axis=2) for parts in zip(bernoulli(rng, 0.8, 20), bernoulli(rng, 0.8, 20), strict=True)
    )
    sums, counts = (np.array(part) for part in iid)
    sums[..., 1], counts[..., 1] = 0, 0
    found, p = gap_of(iid, (sums, counts))
    assert np.isfinite([found.value[0], found.low[0], found.high[0], p[0]]).all()
    assert np.isnan([found.value[1], found.low[1], found.high[1], p[1]]).all()
    assert found.how[1] == "none"


def test_no_gap_gives_few_false_alarms():
    rng = np.random.default_rng(15)
    sides = []
    for _ in range(2):
        samples = [bernoulli(rng, 0.85, 60, spread=0.2) for _ in range(300)]
        sides.append(tuple(np.concatenate([sample[side] for sample in samples], axis=2) for side in (0, 1)))
    _, p = gap_of(*sides)
    assert (p < 0.05).mean() <= 0.06


def test_a_test_agrees_with_its_interval_and_goes_on_beyond_the_draws():
    rng = np.random.default_rng(16)
    iid, shift = bernoulli(rng, 0.98, 200), bernoulli(rng, 0.8, 200, spread=0.1)
    found, _ = gap_of(iid, shift)
    at_limit = p_above(found.value, found.error, found.degrees, found.low[0])[0]
    assert 0.015 < at_limit < 0.04
    far = p_above(found.value, found.error, found.degrees, 0.0)[0]
    assert 0 < far < 1 / 2_000


def test_seeds_make_the_test_of_a_gap_a_t_test():
    rng = np.random.default_rng(16)
    found, p = gap_of(seeded(rng, seeds=4, rate=0.9), seeded(rng, seeds=4, rate=0.7))
    assert found.degrees[0] == 3
    assert p[0] == pytest.approx(2 * stats.t.sf(abs(found.value[0]) / found.error[0], 3))


def test_a_seed_that_is_bad_everywhere_does_not_look_like_a_gap():
    """Seeds are paired on the two splits, so what they have in common cancels."""
    rng = np.random.default_rng(17)
    rates = np.array([0.5, 0.7, 0.9])[:, None, None]
    counts = np.full((3, 80, 1), 6)
    iid, shift = ((rng.binomial(counts, rates).astype(float), counts) for _ in range(2))
    found, _ = gap_of(iid, shift)
    one_side = estimated(iid)
    assert found.high[0] - found.low[0] < 0.7 * (one_side.high[0] - one_side.low[0])


@pytest.mark.parametrize("sign", [1, -1])
def test_two_seeds_that_differ_allow_every_gap_and_no_other(sign):
    """Student's t on one degree of freedom reaches far beyond what a difference of two rates can be."""
    counts = np.full((2, 30, 1), 10)
    iid, shift = (np.repeat(np.array(rates)[:, None, None] * 10, 30, axis=1) for rates in ((1.0, 0.9), (0.9, 0.1)))
    found, _ = gap_of((iid, counts), (shift, counts), signs=[sign])
    assert (found.low[0], found.high[0]) == (-1, 1)


# -- recovered ------------------------------------------------------------------------------------------------------


def test_the_share_recovered_by_hand():
    errors, of_ablation = one_seed([1, 0, 1, 0] * 10, [0] * 40)[0], one_seed([4, 5, 3, 4] * 10, [0] * 40)[0]
    counts = np.full((1, 40, 1), 5)
    value, low, high = share_recovered(errors, of_ablation, counts, every(40))
    assert value == pytest.approx(1 - 20 / 160)
    assert low < value < high <= 1
    perfect = share_recovered(errors * 0, of_ablation, counts, every(40))
    assert perfect[0] == perfect[2] == 1
    assert perfect[1] < 1
    assert share_recovered(errors, of_ablation * 0, counts, every(40)) is None
    assert share_recovered(of_ablation, errors, counts, every(40))[0] < 0


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
