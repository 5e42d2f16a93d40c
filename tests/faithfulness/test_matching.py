"""What a gap is made of: matching on the subject's margin by hand, in simulation, and on planted causes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from assay.engine import Site
from assay.faithfulness import Pair, Predictions, metrics
from assay.faithfulness._cells import Candidate
from assay.faithfulness._metrics import margins
from assay.faithfulness._scores import ALL, MARGIN_EDGES, Scores, _Grouping
from assay.faithfulness._statistics import change, matched_gap
from assay.faithfulness._summary import summarise
from assay.simplify import SVD
from assay.tasks import Kind, Split


def alike(sums, counts, sequences):
    """The same sums and counts by stratum in every sequence, one seed."""
    shape = (1, sequences, 1)
    return np.tile(np.asarray(sums, dtype=float), shape), np.tile(np.asarray(counts, dtype=np.int64), shape)


# -- by hand --------------------------------------------------------------------------------------------------------


def test_iid_is_weighted_as_the_shift_is():
    """On iid 9 of 10 sure predictions and 1 of 2 unsure ones agree; the shift has three unsure ones to a sure one."""
    iid, shift = alike([9, 1], [10, 2], 40), alike([0.9, 1.2], [1, 3], 40)
    found = matched_gap(iid, shift, sign=1.0, rate=True)
    assert found.value == pytest.approx((0.25 * 0.9 + 0.75 * 0.5) - (0.25 * 0.9 + 0.75 * 0.4))
    assert found.overlap == 1
    assert found.outside == 0
    assert found.reason is None


def test_the_same_strata_in_the_same_shares_give_the_raw_gap():
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 5, (1, 40, 3))
    sums = [rng.binomial(counts, rate).astype(float) for rate in (0.9, 0.7)]
    found = matched_gap((sums[0], counts), (sums[1], counts), sign=1.0, rate=True)
    assert found.value == pytest.approx((sums[0].sum() - sums[1].sum()) / counts.sum(), abs=0.02)


def test_a_divergence_is_signed_so_that_positive_is_less_faithful():
    iid, shift = alike([1.0, 3.0], [10, 10], 30), alike([3.0, 5.0], [10, 10], 30)
    found = matched_gap(iid, shift, sign=-1.0, rate=False)
    assert found.value == pytest.approx(0.2)
    assert found.low <= found.value <= found.high


def test_the_effective_sample_size_is_that_of_kish():
    """40 sequences with 10 and 2 predictions, weights 1/4 and 3/4: (sum w)^2 / sum w^2, prediction by prediction."""
    found = matched_gap(alike([9, 1], [10, 2], 40), alike([1, 2], [1, 3], 40), sign=1.0, rate=True)
    weights = np.repeat([0.25 / 400, 0.75 / 80], [400, 80])
    assert found.effective == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    assert found.effective < 480
    same = matched_gap(alike([9, 1], [10, 2], 40), alike([9, 1], [10, 2], 40), sign=1.0, rate=True)
    assert same.effective == pytest.approx(480)


def test_seeds_are_matched_each_by_itself():
    """Two models that agree with their proxies to different degrees, the same in and out of distribution.

    The shift makes the first unsure and the second sure. Within each model there is no gap; strata that mix the models
    would find one.
    """
    counts_a = np.stack([np.tile([[8, 2]], (40, 1)), np.tile([[2, 8]], (40, 1))])
    counts_b = np.stack([np.tile([[2, 8]], (40, 1)), np.tile([[8, 2]], (40, 1))])
    rates = np.array([[1.0, 0.5], [0.3, 0.2]])[:, None, :]
    found = matched_gap((rates * counts_a, counts_a), (rates * counts_b, counts_b), sign=1.0, rate=True)
    assert found.value == pytest.approx(0, abs=1e-12)
    pooled = matched_gap(
        ((rates * counts_a).sum(axis=0, keepdims=True), counts_a.sum(axis=0, keepdims=True)),
        ((rates * counts_b).sum(axis=0, keepdims=True), counts_b.sum(axis=0, keepdims=True)),
        sign=1.0,
        rate=True,
    )
    assert abs(pooled.value) > 0.05
    assert found.effective == pytest.approx(1 / (0.2**2 / 320 + 0.8**2 / 80))


def test_what_iid_lacks_is_left_out_and_bounded():
    """A fifth of the shift's predictions has a margin that iid never has; half of those agree."""
    iid, shift = alike([5, 0], [5, 0], 50), alike([4, 0.5], [4, 1], 50)
    found = matched_gap(iid, shift, sign=1.0, rate=True)
    assert found.value == pytest.approx(0)
    assert found.overlap == pytest.approx(0.8)
    assert found.outside == pytest.approx(0.1)
    assert math.isnan(matched_gap(iid, shift, sign=-1.0, rate=False).outside), "a divergence has no upper bound"


@pytest.mark.parametrize("sequences", [4, 5])
def test_a_stratum_needs_five_iid_sequences(sequences):
    counts = np.zeros((1, 50, 2), dtype=np.int64)
    counts[:, :, 0] = 5
    counts[:, :sequences, 1] = 1
    found = matched_gap((counts * 1.0, counts), alike([4, 1], [4, 1], 50), sign=1.0, rate=True)
    assert found.overlap == pytest.approx(1 if sequences == 5 else 0.8)


def test_too_little_overlap_is_not_measured_and_says_so():
    found = matched_gap(alike([5, 0], [5, 0], 50), alike([1, 2], [2, 3], 50), sign=1.0, rate=True)
    assert all(map(math.isnan, found[:5]))
    assert found.overlap == pytest.approx(0.4)
    assert "only 40% of the shift's predictions" in found.reason


def test_too_few_effective_predictions_are_not_measured():
    found = matched_gap(alike([5, 0.5], [5, 1], 6), alike([0, 20], [0, 40], 50), sign=1.0, rate=True)
    assert math.isnan(found.value)
    assert found.effective == pytest.approx(6)
    assert "worth only 6.0 predictions" in found.reason


@pytest.mark.parametrize("side", [0, 1])
def test_no_prediction_at_all_is_not_measured(side):
    sides = [alike([5], [5], 20), alike([5], [5], 20)]
    sides[side] = alike([0], [0], 20)
    assert "no such prediction" in matched_gap(*sides, sign=1.0, rate=True).reason


def test_perfect_agreement_has_the_exact_limits_of_as_many_trials_as_effective_sequences():
    found = matched_gap(alike([4, 2], [4, 2], 20), alike([3, 3], [3, 3], 30), sign=1.0, rate=True)
    assert found.value == 0
    assert found.low == pytest.approx(-(1 - 0.025 ** (1 / 20)))
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 30))


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


@pytest.mark.parametrize(("sequences", "loss"), [(60, 0.0), (60, 0.05), (15, 0.0)])
def test_matched_intervals_cover(sequences, loss):
    truth, hits, widths = expected_gap(loss, 0.5), 0, []
    for number in range(300):
        rng = np.random.default_rng([21, number])
        iid, shift = simulated(rng, sequences), simulated(rng, sequences, tilt=0.5, loss=loss)
        found = matched_gap(iid, shift, sign=1.0, rate=True)
        hits += found.low <= truth <= found.high
        widths.append(found.high - found.low)
    assert 0.92 <= hits / 300 <= 0.99
    assert np.median(widths) < 0.12 * math.sqrt(60 / sequences)


def test_matched_intervals_cover_near_perfect_agreement():
    hits = 0
    for number in range(300):
        rng = np.random.default_rng([22, number])
        counts = [rng.multinomial(20, share, 40)[None] for share in ([0.1, 0.9], [0.3, 0.7])]
        iid, shift = ((rng.binomial(n, [0.97, 0.999]).astype(float), n) for n in counts)
        found = matched_gap(iid, shift, sign=1.0, rate=True)
        hits += found.low <= 0 <= found.high
    assert hits / 300 >= 0.92


def test_matched_intervals_cover_over_seeds():
    hits = 0
    for number in range(200):
        rng = np.random.default_rng([23, number])
        effects = rng.normal(0, 0.03, (3, 1, 1))
        sides = []
        for tilt, own in ((0.0, 0.0), (0.5, effects)):
            share = np.exp(-tilt * np.arange(4))
            counts = rng.multinomial(20, share / share.sum(), (3, 50))
            sides.append((rng.binomial(counts, np.array([0.5, 0.6, 0.7, 0.8]) - own).astype(float), counts))
        found = matched_gap(*sides, sign=1.0, rate=True)
        hits += found.low <= 0 <= found.high
    assert hits / 200 >= 0.9


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
    item = Candidate(SVD(rank=1), Site("all", ()), is_control=False)
    _, frame = summarise(
        [metrics.get("same_prediction")(), metrics.get("jsd")()],
        KINDS,
        [subject],
        [item],
        splits={name: split for name, (split, _) in made.items()},
        found={(0, item.key, name): scores for name, (_, scores) in made.items()},
        seed=0,
        resamples=300,
        level=0.95,
        method="bca",
    )
    return frame.set_index(["metric", "kind"])


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
    fine = matched_gap(*sides, sign=1.0, rate=True)
    merged = [tuple(part.reshape(1, 600, len(MARGIN_EDGES) // 2, 2).sum(axis=-1) for part in side) for side in sides]
    coarse = matched_gap(*merged, sign=1.0, rate=True)
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
    counts = np.full((1, 60, 1), 10)
    before = rng.integers(1, 9, (1, 60, 1)).astype(float)
    after = before + rng.choice([0, 1], (1, 60, 1), p=[0.2, 0.8])
    options = {"rates": [True], "rng": np.random.default_rng(0), "resamples": 500}
    found = change(before, after, counts, **options)
    assert found.value[0] == pytest.approx((after - before).sum() / 600)
    spread = (after - before)[0, :, 0].std(ddof=1) / 10 / math.sqrt(60)
    assert found.error[0] == pytest.approx(spread, rel=0.15)


def test_no_change_at_all_has_the_limits_of_as_many_sequences():
    counts = np.full((1, 50, 2), 4)
    sums = np.full((1, 50, 2), 3.0)
    found = change(sums, sums, counts, rates=[True, False], rng=np.random.default_rng(0), resamples=100)
    exact = stats.binomtest(0, 50).proportion_ci(method="exact").high
    assert (found.low[0], found.high[0]) == (pytest.approx(-exact), pytest.approx(exact))
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
    import assay  # noqa: PLC0415

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
    import assay  # noqa: PLC0415

    class Scarce(FromShift):
        def split(self, name, sequences):
            return self.inner.split(name, min(sequences, 30 if name == "unseen_depth" else sequences))

    task = Scarce(bracket_task, 12, 40)
    options = {"sites": ("layer1",), "sequences": 12, "fit_sequences": 40, "resamples": 100, "controls": False}
    found = assay.compare(trained[0], task, [SVD(rank=3)], **options)
    assert found.gaps()["removed"].isna().all()
    assert any(item.what == "refitting on unseen_depth" and "30" in item.reason for item in found.record.skipped)
    assert not found.results["proxy"].str.contains("refitted").any()
