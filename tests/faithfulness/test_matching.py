"""What a gap is made of: matching on the subject's margin by hand, in simulation, and on planted causes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

import assay
from assay.engine import Site
from assay.faithfulness import (
    CHANGE_OF_RATE,
    RATE,
    UNBOUNDED,
    Pair,
    Predictions,
    Weights,
    draws,
    estimate,
    every,
    gap,
    metrics,
)
from assay.faithfulness._cells import Candidate
from assay.faithfulness._metrics import margins
from assay.faithfulness._scores import ALL, MARGIN_EDGES, Scores, _Grouping
from assay.faithfulness._statistics import LEAST_SEQUENCES, matched_gaps
from assay.faithfulness._summary import summarise
from assay.simplify import SVD
from assay.tasks import Kind, Split
from assay.testing.planted import Lookup

MANY = 40_000
"""Draws with which a quantile is known to a few hundredths of the width."""


def matched(*pairs, sign=1.0, bounds=RATE, resamples=2_000, units=(None, None)):
    """Matched gaps of pairs (iid, shift) of sums and counts (seed, sequence, stratum); of one pair, its own."""
    weights = tuple(
        every(pairs[0][side][0].shape[1], resamples=resamples, seed=side)
        if units[side] is None
        else Weights(units[side], resamples, side)
        for side in (0, 1)
    )
    found = matched_gaps(
        [iid for iid, _ in pairs],
        [shift for _, shift in pairs],
        weights,
        signs=[sign] * len(pairs),
        bounds=[bounds] * len(pairs),
    )
    return found[0] if len(pairs) == 1 else found


def alike(sums, counts, sequences):
    """The same sums and counts by stratum in every sequence, one seed."""
    shape = (1, sequences, 1)
    return np.tile(np.asarray(sums, dtype=float), shape), np.tile(np.asarray(counts, dtype=np.int64), shape)


# -- by hand --------------------------------------------------------------------------------------------------------


def test_iid_is_weighted_as_the_shift_is():
    """On iid 9 of 10 sure predictions and 1 of 2 unsure ones agree; the shift has three unsure ones to a sure one."""
    found = matched((alike([9, 1], [10, 2], 40), alike([0.9, 1.2], [1, 3], 40)))
    assert found.value == pytest.approx((0.25 * 0.9 + 0.75 * 0.5) - (0.25 * 0.9 + 0.75 * 0.4))
    assert found.overlap == 1
    assert found.outside == 0
    assert found.reason is None


def test_the_same_strata_in_the_same_shares_give_the_raw_gap():
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 5, (1, 40, 3))
    sums = [rng.binomial(counts, rate).astype(float) for rate in (0.9, 0.7)]
    found = matched(((sums[0], counts), (sums[1], counts)))
    assert found.value == pytest.approx((sums[0].sum() - sums[1].sum()) / counts.sum(), abs=0.02)


def test_a_single_stratum_has_the_raw_gap_and_its_limits():
    rng = np.random.default_rng(1)
    counts = [rng.integers(1, 9, (1, size, 1)) for size in (40, 30)]
    sides = [(rng.binomial(n, rate).astype(float), n) for n, rate in zip(counts, (0.95, 0.8), strict=True)]
    found = matched(tuple(sides))
    raw, _ = gap(
        *(draws(*side, every(side[0].shape[1], seed=number), bounds=[RATE]) for number, side in enumerate(sides)),
        signs=np.ones(1),
    )
    for name in ("value", "low", "high", "error"):
        assert getattr(found, name) == pytest.approx(getattr(raw, name)[0])


def test_a_divergence_is_signed_so_that_positive_is_less_faithful():
    iid, shift = alike([1.0, 3.0], [10, 10], 30), alike([3.0, 5.0], [10, 10], 30)
    found = matched((iid, shift), sign=-1.0, bounds=UNBOUNDED)
    assert found.value == pytest.approx(0.2)
    assert found.low <= found.value <= found.high


@pytest.mark.parametrize("bounds", [RATE, UNBOUNDED])
def test_turning_the_sign_mirrors_the_interval(bounds):
    rng = np.random.default_rng(2)
    pair = simulated(rng, 40), simulated(rng, 50, tilt=0.5, loss=0.1)
    up, down = (matched(pair, sign=sign, bounds=bounds) for sign in (1.0, -1.0))
    assert (down.value, down.low, down.high) == pytest.approx((-up.value, -up.high, -up.low))


def test_pairs_do_not_influence_each_other():
    rng = np.random.default_rng(3)
    pairs = [
        (simulated(rng, 30, bins=bins), simulated(rng, 40, bins=bins, tilt=tilt)) for bins, tilt in ((6, 0.5), (2, 0.1))
    ]
    pairs.insert(1, (alike([5, 0], [5, 0], 30), alike([1, 2], [2, 3], 40)))
    for bounds in (RATE, UNBOUNDED):
        together = matched(*pairs, bounds=bounds)
        for pair, found in zip(pairs, together, strict=True):
            np.testing.assert_allclose(found[:-1], matched(pair, bounds=bounds)[:-1], rtol=1e-9)
    assert matched_gaps([], [], (every(5), every(5)), signs=[], bounds=[]) == []


def test_the_effective_sample_size_is_that_of_kish():
    """40 sequences with 10 and 2 predictions, weights 1/4 and 3/4: (sum w)^2 / sum w^2, prediction by prediction."""
    found = matched((alike([9, 1], [10, 2], 40), alike([1, 2], [1, 3], 40)))
    weights = np.repeat([0.25 / 400, 0.75 / 80], [400, 80])
    assert found.effective == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    assert found.effective < 480
    same = matched((alike([9, 1], [10, 2], 40), alike([9, 1], [10, 2], 40)))
    assert same.effective == pytest.approx(480)


def test_seeds_are_matched_each_by_itself():
    """Two models that agree with their proxies to different degrees, the same in and out of distribution.

    The shift makes the first unsure and the second sure. Within each model there is no gap; strata that mix the models
    would find one.
    """
    counts_a = np.stack([np.tile([[8, 2]], (40, 1)), np.tile([[2, 8]], (40, 1))])
    counts_b = np.stack([np.tile([[2, 8]], (40, 1)), np.tile([[8, 2]], (40, 1))])
    rates = np.array([[1.0, 0.5], [0.3, 0.2]])[:, None, :]
    found = matched(((rates * counts_a, counts_a), (rates * counts_b, counts_b)))
    assert found.value == pytest.approx(0, abs=1e-12)
    assert found.degrees == 1
    pooled = matched(
        (
            ((rates * counts_a).sum(axis=0, keepdims=True), counts_a.sum(axis=0, keepdims=True)),
            ((rates * counts_b).sum(axis=0, keepdims=True), counts_b.sum(axis=0, keepdims=True)),
        )
    )
    assert abs(pooled.value) > 0.05
    assert found.effective == pytest.approx(1 / (0.2**2 / 320 + 0.8**2 / 80))


def test_two_seeds_that_differ_allow_every_gap_and_no_other():
    counts = np.full((2, 30, 2), 5)
    sides = [np.repeat(np.array(rates)[:, None, None] * counts[:, :1], 30, axis=1) for rates in ((1, 0.9), (0.9, 0.1))]
    found = matched(tuple((side, counts) for side in sides))
    assert (found.low, found.high) == (-1, 1)


def test_what_iid_lacks_is_left_out_and_bounded():
    """A fifth of the shift's predictions has a margin that iid never has; half of those agree."""
    pair = alike([5, 0], [5, 0], 50), alike([4, 0.5], [4, 1], 50)
    found = matched(pair)
    assert found.value == pytest.approx(0)
    assert found.overlap == pytest.approx(0.8)
    assert found.outside == pytest.approx(0.1)
    unbounded = matched(pair, sign=-1.0, bounds=UNBOUNDED)
    assert math.isnan(unbounded.outside), "a divergence has no upper bound"
    assert unbounded.overlap == pytest.approx(0.8)


def test_overlap_and_outside_have_the_limits_of_rates():
    """Of 60 sequences with one prediction, 12 have a margin that iid lacks, and 7 of those are wrong."""
    inside, right = np.repeat([1, 0], (48, 12)), np.repeat([1, 0], (53, 7))
    counts = np.stack((inside, 1 - inside), axis=1)[None]
    shift = counts * right[None, :, None] * 1.0, counts
    found = matched((alike([5, 0], [5, 0], 50), shift), resamples=MANY)
    for name, successes in (("overlap", 48), ("outside", 7)):
        exact = stats.binomtest(successes, 60).proportion_ci(method="exact")
        assert getattr(found, name) == pytest.approx(successes / 60)
        assert getattr(found, f"{name}_low") == pytest.approx(exact.low, abs=0.01)
        assert getattr(found, f"{name}_high") == pytest.approx(exact.high, abs=0.01)


def test_nothing_outside_is_shown_by_so_many_sequences():
    """That none of 40 sequences is outside does not show that none ever is."""
    found = matched((alike([9, 1], [10, 2], 40), alike([1, 2], [1, 3], 40)), resamples=MANY)
    at_most = 1 - 0.025 ** (1 / 40)
    assert (found.overlap, found.overlap_high, found.outside, found.outside_low) == (1, 1, 0, 0)
    assert found.overlap_low == pytest.approx(1 - at_most, abs=0.01)
    assert found.outside_high == pytest.approx(at_most, abs=0.01)


@pytest.mark.parametrize("sequences", [LEAST_SEQUENCES - 1, LEAST_SEQUENCES])
def test_a_stratum_needs_enough_iid_sequences(sequences):
    counts = np.zeros((1, 50, 2), dtype=np.int64)
    counts[:, :, 0] = 5
    counts[:, :sequences, 1] = 1
    found = matched(((counts * 1.0, counts), alike([4, 1], [4, 1], 50)))
    assert found.overlap == pytest.approx(1 if sequences == LEAST_SEQUENCES else 0.8)


def test_copies_do_not_make_a_stratum():
    """Ten iid sequences in a stratum that are two different ones, five times each, are two."""
    counts = np.zeros((1, 50, 2), dtype=np.int64)
    counts[:, :, 0] = 5
    counts[:, :10, 1] = 1
    units = np.concatenate((np.arange(10) % 2, np.arange(2, 42)))
    pair = (counts * 1.0, counts), alike([4, 1], [4, 1], 50)
    assert matched(pair).overlap == 1
    assert matched(pair, units=(units, None)).overlap == pytest.approx(0.8)


def test_too_little_overlap_is_not_measured_and_says_so():
    found = matched((alike([5, 0], [5, 0], 50), alike([1, 2], [2, 3], 50)))
    assert all(map(math.isnan, found[:5]))
    assert found.overlap == pytest.approx(0.4)
    assert "only 40% of the shift's predictions" in found.reason


def test_too_few_effective_predictions_are_not_measured():
    found = matched((alike([5, 0.5], [5, 1], 6), alike([0, 20], [0, 40], 50)))
    assert math.isnan(found.value)
    assert found.effective == pytest.approx(6)
    assert "worth only 6.0 predictions" in found.reason


@pytest.mark.parametrize("side", [0, 1])
def test_no_prediction_at_all_is_not_measured(side):
    sides = [alike([5], [5], 20), alike([5], [5], 20)]
    sides[side] = alike([0], [0], 20)
    assert "no such prediction" in matched(tuple(sides)).reason


def test_perfect_agreement_has_the_exact_limits_of_so_many_sequences():
    found = matched((alike([4, 2], [4, 2], 20), alike([3, 3], [3, 3], 30)), resamples=MANY)
    assert found.value == 0
    assert found.low == pytest.approx(-(1 - 0.025 ** (1 / 20)), abs=0.01)
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 30), abs=0.01)


def test_pure_strata_that_differ_have_the_width_of_the_stratum_that_iid_hardly_has():
    """Of 1,000 iid sequences 23 are in a stratum that is always wrong, of as many of the shift 320; the others right.

    By hand: the few of iid may hide what Clopper and Pearson allow, times the shift's share of that stratum, .32 x
    .148; the rest is of the order of 1/1,000. The interval was the point 0 before.
    """
    sides = []
    for low in (23, 320):
        counts = np.zeros((1, 1_000, 2), dtype=np.int64)
        counts[0, :low, 0], counts[0, low:, 1] = 1, 1
        sides.append((counts * [0.0, 1.0], counts))
    found = matched(tuple(sides), resamples=MANY)
    assert found.value == 0
    assert -0.005 <= found.low < -0.001
    assert found.high == pytest.approx(0.048, abs=0.001)
    rng = np.random.default_rng(4)
    share = rng.beta(320, 680, MANY)
    more, other = rng.beta(1, 23, MANY), rng.beta(1, 977, MANY)
    on_shift = rng.beta(1, 1_000, MANY)
    assert found.high == pytest.approx(np.quantile(share * more + (1 - share) * on_shift, 0.975), abs=0.001)
    assert found.low == pytest.approx(-np.quantile((1 - share) * other + share * on_shift, 0.975), abs=0.0002)


def test_an_error_more_under_the_shift_never_lowers_a_limit():
    """From all right to all wrong, one error at a time in random order, in strata that iid has to different degrees."""
    rng = np.random.default_rng(5)
    counts = rng.integers(0, 3, (1, 40, 3))
    iid = rng.binomial(counts, [0.5, 0.9, 1.0]).astype(float), counts
    counts = rng.integers(0, 3, (1, 30, 3))
    sums = counts * 1.0
    one = [place for place in np.ndindex(counts.shape) for _ in range(counts[place])]
    before = matched((iid, (sums.copy(), counts)), resamples=300)
    for place in rng.permutation(len(one)):
        sums[one[place]] -= 1
        after = matched((iid, (sums.copy(), counts)), resamples=300)
        for name in ("value", "low", "high"):
            assert getattr(after, name) >= getattr(before, name) - 1e-12
        before = after
    assert before.low > 0.3


# -- in simulation --------------------------------------------------------------------------------------------------


def simulated(rng, sequences, *, bins=6, tilt=0.0, loss=0.0, seeds=1):
    """Predictions of sequences that differ in difficulty; agreement rises with the stratum, less `loss`.

    `tilt` moves predictions to the unsure strata. Returns sums and counts (seed, sequence, stratum).
    """
    agree = np.linspace(0.6, 0.98, bins) - loss
    share = np.exp(-tilt * np.arange(bins))
    own = rng.dirichlet(20 * share / share.sum(), sequences)
    counts = np.stack([rng.multinomial(20, row) for row in own])[None].repeat(seeds, axis=0)
    chance = np.clip(agree + rng.normal(0, 0.05, (1, sequences, 1)), 0, 1)
    return rng.binomial(counts, chance.repeat(seeds, axis=0)).astype(float), counts


def expected_gap(loss, tilt, bins=6):
    """What the clipping of chances leaves of `loss`, from many sequences."""
    rng = np.random.default_rng(99)
    share = np.exp(-tilt * np.arange(bins))
    noise = rng.normal(0, 0.05, (200_000, 1))
    means = [np.clip(np.linspace(0.6, 0.98, bins) - part + noise, 0, 1).mean(axis=0) for part in (0.0, loss)]
    return float((share / share.sum()) @ (means[0] - means[1]))


def covered(pairs, truth, **options):
    """The share of pairs whose interval has the truth, and the median width."""
    found = matched(*pairs, **options)
    limits = np.array([(one.low, one.high) for one in found])
    assert np.isfinite(limits).all()
    return ((limits[:, 0] <= truth) & (truth <= limits[:, 1])).mean(), np.median(np.diff(limits))


def at_least(share, replicates):
    """The bar, less three standard errors of so many replicates."""
    return share - 3 * math.sqrt(share * (1 - share) / replicates)


@pytest.mark.parametrize(("sequences", "loss", "widest"), [(60, 0.0, 0.16), (60, 0.05, 0.16), (15, 0.0, 0.45)])
def test_matched_intervals_cover(sequences, loss, widest):
    pairs = []
    for number in range(300):
        rng = np.random.default_rng([21, number])
        pairs.append((simulated(rng, sequences), simulated(rng, sequences, tilt=0.5, loss=loss)))
    share, width = covered(pairs, expected_gap(loss, 0.5))
    assert share >= at_least(0.94, 300)
    assert width < widest


def test_matched_intervals_cover_near_perfect_agreement():
    pairs = []
    for number in range(300):
        rng = np.random.default_rng([22, number])
        counts = [rng.multinomial(20, share, 40)[None] for share in ([0.1, 0.9], [0.3, 0.7])]
        pairs.append(tuple((rng.binomial(n, [0.97, 0.999]).astype(float), n) for n in counts))
    share, _ = covered(pairs, 0)
    assert share >= at_least(0.94, 300)


def test_matched_intervals_cover_where_pure_strata_are_rare_on_iid():
    """The planted difficulty: one prediction a sequence, always wrong in one stratum, but for one in twenty-five."""
    pairs = []
    for number in range(300):
        rng = np.random.default_rng([24, number])
        counts = [rng.multinomial(1, share, 300)[None] for share in ([0.1, 0.9], [0.5, 0.5])]
        pairs.append(tuple((rng.binomial(n, [0.04, 1.0]).astype(float), n) for n in counts))
    share, width = covered(pairs, 0)
    assert share >= at_least(0.94, 300)
    assert width > 0.02


def test_matched_intervals_cover_over_seeds():
    pairs = []
    for number in range(200):
        rng = np.random.default_rng([23, number])
        effects = rng.normal(0, 0.03, (3, 1, 1))
        sides = []
        for tilt, own in ((0.0, 0.0), (0.5, effects)):
            share = np.exp(-tilt * np.arange(4))
            counts = rng.multinomial(20, share / share.sum(), (3, 50))
            sides.append((rng.binomial(counts, np.array([0.5, 0.6, 0.7, 0.8]) - own).astype(float), counts))
        pairs.append(tuple(sides))
    share, _ = covered(pairs, 0)
    assert share >= at_least(0.94, 200)


def test_matched_intervals_of_divergences_cover():
    """Gamma distributed, larger where the subject is unsure, and equal at equal margin."""
    pairs = []
    for number in range(300):
        rng = np.random.default_rng([25, number])
        counts = [rng.multinomial(10, share, 60)[None] for share in ([0.2, 0.8], [0.5, 0.5])]
        pairs.append(tuple((rng.gamma(n * 1.0, [2.0, 0.5]), n) for n in counts))
    share, width = covered(pairs, 0, sign=-1.0, bounds=UNBOUNDED)
    assert share >= at_least(0.94, 300)
    assert width < 0.7


# -- planted causes -------------------------------------------------------------------------------------------------

KINDS = (Kind("first", "any token"), Kind("second", "among the first five", candidates=(0, 1, 2, 3, 4)))


class TwoKinds:
    """A task that is asked for nothing but its kinds."""

    kinds = KINDS
    features = ()
    name, primary_kind, split_names = "two-kinds", ALL, ("train", "iid", "shift")

    def split(self, name, sequences):
        raise NotImplementedError

    def describe(self):
        return {}


def cells(rng, *, sure, noise, name, rivals=2, sequences=150, length=30):
    """Scores of a proxy whose logits are the subject's plus noise; `sure` scales the subject's logits.

    The first `rivals` tokens lead over the others by far.
    """
    shape = (sequences, length, 12)
    lead = torch.where(torch.arange(12) < rivals, 40.0, 0.0)
    logits = torch.from_numpy(rng.normal(size=shape) * sure * 3) + lead
    edited = logits + noise * torch.from_numpy(rng.normal(size=shape))
    kinds = rng.integers(0, 2, shape[:2])
    tokens = rng.integers(0, 12, shape[:2])
    split = Split(name=name, role="iid" if name == "iid" else "shift", description="", tokens=tokens,
                  lengths=np.full(sequences, length), kinds=kinds)  # fmt: skip
    kind_of = torch.from_numpy(kinds)
    pair = Pair(Predictions(logits, kind_of, KINDS), Predictions(edited, kind_of, KINDS), torch.from_numpy(tokens), {})
    judged = [metrics.get("same_prediction")(), metrics.get("jsd")()]
    grouping = _Grouping(TwoKinds(), split, judged, 0)
    values = {metric.name: metric(pair).numpy() for metric in judged}
    sums, counts = grouping.scores(values, {}, margins(logits, kind_of, KINDS).numpy(), split)
    return split, Scores(tuple(grouping.columns), sums, counts)


def gaps_of(subject, rng, iid, shift, **options):
    """The gaps frame of one proxy, from logits on."""
    made = {
        "iid": cells(rng, name="iid", **iid, **options),
        "shift": cells(rng, name="shift", **shift, **options),
    }
    item = Candidate("SVD(rank=1)", SVD(rank=1), Site("all", {}), is_control=False, fingerprint="")
    found = summarise(
        [metrics.get("same_prediction")(), metrics.get("jsd")()],
        KINDS,
        [subject],
        [item],
        primary=("same_prediction", ALL),
        splits={name: split for name, (split, _) in made.items()},
        found={(0, item.key, name): scores for name, (_, scores) in made.items()},
        seed=0,
        resamples=300,
        level=0.95,
    )
    return found.gaps.set_index(["metric", "kind"])


@pytest.mark.parametrize("kind", [ALL, "first", "second"])
def test_noise_that_does_not_know_the_split_has_a_raw_gap_and_no_matched_one(trained, kind):
    rng = np.random.default_rng(31)
    frame = gaps_of(trained[0], rng, {"sure": 1.0, "noise": 1.0}, {"sure": 0.4, "noise": 1.0})
    row = frame.loc["same_prediction", kind]
    assert row["low"] > 0.05
    assert row["matched_low"] < 0 < row["matched_high"]
    assert abs(row["matched"]) < 0.02
    assert row["overlap"] > 0.99
    assert 100 < row["effective"] < 150 * 30


@pytest.mark.parametrize("kind", [ALL, "first", "second"])
def test_a_failure_that_depends_on_the_split_keeps_its_gap(trained, kind):
    rng = np.random.default_rng(32)
    frame = gaps_of(trained[0], rng, {"sure": 1.0, "noise": 0.3}, {"sure": 0.7, "noise": 0.9})
    row = frame.loc["same_prediction", kind]
    assert row["matched_low"] > 0.05
    assert row["matched_high"] < row["high"] + 1e-9, "the harder inputs' part is taken off"


def test_many_close_rivals_leave_a_small_part_of_the_gap(trained):
    """A limit, said in `matched_gap`: the margin knows the nearest rival only, and here there are eleven."""
    rng = np.random.default_rng(34)
    frame = gaps_of(trained[0], rng, {"sure": 1.0, "noise": 0.5}, {"sure": 0.5, "noise": 0.5}, rivals=12)
    row = frame.loc["same_prediction", "first"]
    assert 0 < row["matched"] < 0.4 * row["gap"]


def test_coarser_bins_would_say_the_same(trained):
    """Merging the bins of the margin two by two moves the planted matched gap by less than half a point."""
    rng = np.random.default_rng(33)
    (_, iid), (_, shift) = (
        cells(rng, name=name, sure=sure, noise=0.5, sequences=600) for name, sure in (("iid", 1.0), ("shift", 0.5))
    )
    place = [i for i, column in enumerate(iid.columns) if column[:3] == ("same_prediction", "first", "margin")]
    sides = [(scores.sums[None][..., place], scores.counts[None][..., place]) for scores in (iid, shift)]
    fine = matched(tuple(sides))
    merged = [tuple(part.reshape(1, 600, len(MARGIN_EDGES) // 2, 2).sum(axis=-1) for part in side) for side in sides]
    coarse = matched(tuple(merged))
    assert abs(fine.value) < 0.01
    assert abs(coarse.value - fine.value) < 0.005


# -- margins --------------------------------------------------------------------------------------------------------


def test_a_margin_is_the_lead_of_the_first_choice_among_the_candidates():
    logits = torch.tensor([[[0.0, 1.0, 5.0, 2.0], [0.0, 1.0, 5.0, 2.0], [3.0, 1.0, 0.0, 0.0]]])
    kinds = (Kind("any", ""), Kind("low", "", candidates=(0, 1)), Kind("one", "", candidates=(2,)))
    found = margins(logits, torch.tensor([[0, 1, 2]]), kinds)
    assert found.tolist() == [[3.0, 1.0, math.inf]]


def test_margins_of_every_size_have_a_bin():
    edges = np.array(MARGIN_EDGES)
    assert edges[0] == 0
    assert (np.diff(edges) > 0).all()
    assert np.searchsorted(edges, [0.0, 1e9, np.inf], side="right").tolist() == [1, len(edges), len(edges)]


# -- refitting ------------------------------------------------------------------------------------------------------


def test_a_change_is_paired():
    """Sequences of very different difficulty, of which refitting improves each by the same share."""
    rng = np.random.default_rng(41)
    counts = np.full((1, 300, 1), 10)
    before = rng.integers(1, 9, (1, 300, 1)).astype(float)
    after = before + rng.choice([0, 1], (1, 300, 1), p=[0.2, 0.8])
    found = estimate(draws(after - before, counts, every(300), bounds=[CHANGE_OF_RATE]), nonnegative=False)
    assert found.value[0] == pytest.approx((after - before).sum() / 3_000)
    alone, _ = gap(
        *(draws(side, counts, every(300, seed=seed), bounds=[RATE]) for seed, side in enumerate((after, before))),
        signs=np.ones(1),
    )
    assert found.high[0] - found.low[0] < 0.5 * (alone.high[0] - alone.low[0])


def test_no_change_at_all_has_the_limits_of_as_many_sequences():
    counts = np.full((1, 50, 2), 4)
    drawn = draws(np.zeros((1, 50, 2)), counts, every(50, resamples=MANY), bounds=[CHANGE_OF_RATE, UNBOUNDED])
    found = estimate(drawn, nonnegative=False)
    exact = stats.binomtest(0, 50).proportion_ci(method="exact").high
    assert (found.low[0], found.high[0]) == (pytest.approx(-exact, abs=0.005), pytest.approx(exact, abs=0.005))
    assert (found.low[1], found.high[1]) == (0, 0)


def test_parts_add_up_and_stand_where_something_was_refitted(comparison):
    gaps = comparison.gaps("same_prediction", ALL)
    own = gaps[gaps["trained"] & gaps["proxy"].str.startswith("SVD")]
    np.testing.assert_allclose(own["removed"] + own["remaining"], own["gap"], atol=1e-12)
    others = gaps.drop(own.index)
    assert others["removed"].isna().all()
    for split in comparison.record.splits[2:]:
        assert split.refit_sequences == comparison.record.settings["fit_sequences"]
    assert [split.refit_sequences for split in comparison.record.splits[:2]] == [0, 0]


def test_a_perturbation_stands_beside_its_proxy(comparison):
    gaps = comparison.gaps("same_prediction", ALL).set_index(["trained", "proxy", "split"])
    for shift in comparison.shifts:
        control = gaps.loc[(True, "RandomPerturbation(of=SVD(rank=2))", shift)]
        proxy = gaps.loc[(True, "SVD(rank=2)", shift)]
        assert (proxy["perturbed"], proxy["perturbed_low"], proxy["perturbed_high"]) == (
            control["gap"], control["low"], control["high"],
        )  # fmt: skip
        assert math.isnan(control["perturbed"])


class FromShift:
    """The same task, fitted on what `compare` leaves of unseen_depth."""

    def __init__(self, inner, sequences, fit_sequences):
        self.inner, self.rows = inner, np.arange(sequences, sequences + fit_sequences)
        self.kinds, self.features, self.primary_kind = inner.kinds, inner.features, inner.primary_kind
        self.name, self.split_names = "from-shift", ("train", "iid", "unseen_depth")

    def split(self, name, sequences):
        if name == "train":
            whole = self.inner.split("unseen_depth", int(self.rows[-1]) + 1)
            return replace(whole.take(self.rows), name="train", role="train")
        return self.inner.split(name, sequences)

    def describe(self):
        return {"task": "from-shift"}


def test_refitting_is_fitting_on_sequences_of_the_shift_that_are_not_judged(trained, bracket_task):
    options = {"sites": ("layer1",), "sequences": 12, "fit_sequences": 40, "resamples": 100, "controls": False}
    usual = assay.compare(trained[0], bracket_task, [SVD(rank=3)], **options)
    other = assay.compare(trained[0], FromShift(bracket_task, 12, 40), [SVD(rank=3)], refit=False, **options)
    refitted = usual.agreement("unseen_depth").set_index("proxy").loc["SVD(rank=3), refitted"]
    assert refitted["estimate"] == other.agreement("unseen_depth")["estimate"].item()
    row = usual.gaps().query("split == 'unseen_depth'").iloc[0]
    fitted = usual.agreement("unseen_depth").set_index("proxy").loc["SVD(rank=3)"]
    assert row["removed"] == pytest.approx(refitted["estimate"] - fitted["estimate"])
    assert other.gaps()["removed"].isna().all()


def test_a_shift_without_sequences_to_spare_is_not_refitted_and_says_so(trained, bracket_task):
    class Scarce(FromShift):
        def split(self, name, sequences):
            return self.inner.split(name, min(sequences, 30 if name == "unseen_depth" else sequences))

    task = Scarce(bracket_task, 12, 40)
    options = {"sites": ("layer1",), "sequences": 12, "fit_sequences": 40, "resamples": 100, "controls": False}
    found = assay.compare(trained[0], task, [SVD(rank=3)], **options)
    assert found.gaps()["removed"].isna().all()
    assert any(item.what == "refitting on unseen_depth" and "30" in item.reason for item in found.record.skipped)
    assert not found.results["proxy"].str.contains("refitted").any()


@pytest.mark.parametrize(("rare_share", "open_cause"), [(0.02, True), (0.1, False)])
def test_a_gap_of_difficulty_is_said_to_be_so_only_by_enough_difficult_inputs_on_iid(rare_share, open_cause):
    """All of a gap of 30 points is difficulty; 20 iid sequences of that kind do not show it, 150 do."""
    case = Lookup(0.3, rare_share=rare_share, cause="difficulty")
    found = assay.compare(
        case.subject(), case, [SVD(rank=case.rank)],
        sequences=1_000 if open_cause else 1_500, fit_sequences=200, refit=False, controls=False,
    )  # fmt: skip
    row = found.gaps().iloc[0]
    assert row["matched"] == 0
    assert row["matched_low"] < 0 < row["matched_high"]
    assert (row["matched_high"] > 0.02) == open_cause
    [verdict] = found.verdicts(min_agreement=0.8)
    assert verdict.judgement == "gap"
    assert ("is due to harder inputs is open" in verdict.why) == open_cause
    assert ("due to the inputs' difficulty" in verdict.why) != open_cause
