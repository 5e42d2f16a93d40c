"""The words of the page: the finding, the paragraph and the reasons, for every combination of verdicts."""

import math
from dataclasses import replace
from itertools import combinations_with_replacement

import pytest

from assay.faithfulness import JUDGEMENTS, Comparison
from assay.reports._forest import DRAWN, FIRST, _Axis, forest
from assay.reports._story import (
    HEADLINE,
    PARAGRAPH,
    REASON,
    SEVERITY,
    by_severity,
    clipped,
    finding,
    in_words,
    paragraph,
    points_of,
    reason,
    worst_shift,
)


class Told(Comparison):
    """A comparison whose verdicts are given."""

    def verdicts(self, **_):
        return self.given


def told(shown, *verdicts, splits=None, **record):
    """The comparison with these verdicts, and of its splits only so many."""
    kept = shown.record.splits if splits is None else shown.record.splits[: 1 + splits]
    changed = shown.record.model_copy(update={"splits": kept, **record})
    found = Told(changed, shown.results, shown._gaps, shown._controls, shown._sequences)
    shifts = [None, *found.shifts]
    found.given = tuple(one if one.shift in shifts else replace(one, shift=shifts[-1]) for one in verdicts)
    return found


@pytest.fixture(scope="module")
def sample(shown):
    """A function that makes a verdict."""
    [first, *_] = shown.verdicts()
    sure = {"agreement": 0.99, "low": 0.97, "high": 0.999, "gap": 0.001, "gap_low": -0.01, "gap_high": 0.015}
    lost = {"gap": 0.081, "gap_low": 0.052, "gap_high": 0.101, "matched": 0.0, "shift": "unseen_depth"}
    numbers = {
        "illusion": sure | lost | {"matched": 0.06},
        "gap": sure | lost,
        "inconclusive": sure,
        "unfaithful": {"agreement": 0.5, "low": 0.4, "high": 0.6},
        "vacuous": sure,
        "faithful": sure,
        "identical": sure,
    }

    def make(judgement, **changed):
        given = {"notes": (), "needed": None, "effect": math.nan, **numbers[judgement], **changed}
        return replace(first, judgement=judgement, **given)

    return make


def test_the_finding_of_one_run(shown, sample):
    some = [sample("gap"), sample("faithful"), sample("unfaithful")]
    assert finding(told(shown, *some)) == (
        "2 of 3 simplifications match the full model on familiar inputs; "
        "under deeper nesting, 1 of 2 loses over 2 points"
    )
    assert finding(told(shown, sample("illusion"), sample("gap"))) == (
        "Both simplifications match the full model on familiar inputs; under deeper nesting, both lose over 2 points"
    )
    elsewhere = sample("gap", shift="seen_structure")
    assert finding(told(shown, sample("gap"), elsewhere)).endswith("; under shifts, both lose over 2 points")


FEW = [
    (("unfaithful",) * 4, "None of 4 simplifications matches the full model, even on familiar inputs"),
    (("faithful",) * 3, "All 3 simplifications match the full model on familiar inputs, and under all 4 shifts"),
    (("faithful", "unfaithful"),
     "1 of 2 simplifications matches the full model on familiar inputs, and under all 4 shifts"),
    (("faithful", "inconclusive"),
     "Both simplifications match the full model on familiar inputs; under shifts, 1 of 2 is undecided"),
    (("faithful", "vacuous"), "Both simplifications match the full model on familiar inputs, and under all 4 shifts; "
     "1 of 2 vacuously"),
    (("faithful",), "One matches the full model on familiar inputs, and under all 4 shifts"),
    (("vacuous",), "One matches the full model on familiar inputs, and under all 4 shifts; that explains nothing"),
    (("inconclusive",), "One matches the full model on familiar inputs; under shifts, this is undecided"),
    (("gap",), "One matches the full model on familiar inputs; under deeper nesting, it loses over 2 points"),
    (("unfaithful",), "One does not match the full model, even on familiar inputs"),
    ((), "No simplification was judged"),
]  # fmt: skip


@pytest.mark.parametrize(("judgements", "words"), FEW, ids=["-".join(judgements) or "none" for judgements, _ in FEW])
def test_the_finding_of_few(shown, sample, judgements, words):
    assert finding(told(shown, *(sample(one, proxy="One") for one in judgements))) == words


def test_the_finding_where_distribution_itself_is_undecided(shown, sample):
    open_still = sample("inconclusive", low=0.9, proxy="One")
    assert finding(told(shown, open_still)) == "Whether One matches the full model is open, on familiar inputs"
    assert finding(told(shown, open_still, open_still)) == (
        "None of 2 simplifications is shown to match the full model on familiar inputs; all are undecided"
    )
    assert finding(told(shown, open_still, sample("unfaithful"))).endswith("on familiar inputs; 1 is undecided")


def test_the_finding_without_shifts_with_one_and_of_neighbours(shown, sample):
    alone = finding(told(shown, sample("inconclusive"), splits=1))
    assert alone.endswith(" on familiar inputs; no shift was measured")
    assert finding(told(shown, sample("faithful"), splits=2)).endswith(", and under the shift")
    assert finding(told(shown, sample("faithful"), splits=3)).endswith(", and under both shifts")
    near = told(shown, sample("faithful"), sample("unfaithful"), primary_metric="same_neighbour")
    assert finding(near).startswith("1 of 2 simplifications finds the full model's neighbours on familiar inputs")
    five = told(shown, sample("faithful"), sample("faithful"), primary_metric="first_five")
    assert finding(five).startswith("Both simplifications match the full model by first five on familiar inputs, and")
    noise = shown.record.noise_floor.model_copy(update={"flipped": 0.031})
    assert finding(told(shown, sample("faithful"), noise_floor=noise)) == (
        "Nothing can be told: changing nothing already flips 3.1% of the predictions"
    )


def renamed(comparison, **changes):
    """The comparison with other labels of its splits, by their names."""
    splits = tuple(
        split.model_copy(update={"label": changes.get(split.name, split.label)}) for split in comparison.record.splits
    )
    record = comparison.record.model_copy(update={"splits": splits})
    return Comparison(record, comparison.results, comparison._gaps, comparison._controls, comparison._sequences)


def test_splits_without_a_label_and_those_of_the_same_go_on_with_their_names(shown, sample):
    assert shown.split_labels["unseen_depth"] == "deeper nesting"
    given = renamed(shown, unseen_depth=None, iid="like others", seen_structure="like others")
    assert given.split_labels == {
        "train": "training", "iid": "iid", "seen_structure": "seen_structure",
        "unseen_structure_short": "new structures, short", "unseen_structure_long": "new structures, long",
        "unseen_depth": "unseen depth",
    }  # fmt: skip
    assert "; under “unseen depth”, it loses" in finding(told(given, sample("gap"), sample("unfaithful")))


def test_sentences_have_labels_in_place_of_names():
    labels = {"deep": "deeper nesting", "deep_2": "two deeper", "a.b": "dots"}
    told = "More under deep, deep_2, a.b than in distribution. Deep; underdeep. On deep: under deeper, under deep."
    assert in_words(told, labels) == (
        "More under deeper nesting, two deeper, dots than in distribution. Deep; underdeep. On deep: under deeper, "
        "under deeper nesting."
    )
    assert in_words("under the mean", {}) == "under the mean"


def test_a_short_description_of_a_shift_is_used(shown, sample):
    splits = tuple(
        split.model_copy(update={"description": "C"} if split.name == "unseen_depth" else {})
        for split in shown.record.splits
    )
    given = told(shown, sample("gap"), sample("unfaithful"))
    given.record = given.record.model_copy(update={"splits": splits})
    assert "; under a shift (C), it loses over 2 points" in finding(given)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_finding_and_paragraph_keep_their_length_for_every_combination(shown, sample, count):
    long = tuple(
        split.model_copy(update={"description": "words and words " * 20, "name": split.name})
        for split in shown.record.splits
    )
    for judgements in combinations_with_replacement(JUDGEMENTS, count):
        for number in (0, 1, 4):
            given = told(shown, *(sample(one, proxy="P" * 60) for one in judgements), splits=1 + number)
            given.record = given.record.model_copy(update={"splits": long[: 2 + number]})
            assert 20 < len(finding(given)) <= HEADLINE
            words = paragraph(given).striptags().split()
            assert 30 < len(words) <= PARAGRAPH


def test_the_paragraph_says_task_splits_and_kinds_in_words(shown):
    words = " ".join(paragraph(shown).striptags().split())
    assert words.startswith("3 simplifications stand in for layer1 of dyck-20-10 (GPT2LMHeadModel, 35,040 parameters).")
    assert "closing bracket at least 10 positions from its opener (closing_far); 16 sequences a split" in words
    assert "Familiar: fresh sentences of the training distribution (iid)." in words
    worst = worst_shift(by_severity(shown.verdicts()))
    described = next(split.description for split in shown.record.splits if split.name == worst)
    assert f"The worst of 4 shifts: {described} ({worst})." in words
    counted = {one: sum(verdict.judgement == one for verdict in shown.verdicts()) for one in SEVERITY}
    assert ", ".join(f"{number} {one}" for one, number in counted.items() if number) in words


def test_those_that_mislead_most_come_first(sample):
    verdicts = [
        sample("identical"), sample("faithful"), sample("unfaithful", agreement=0.2), sample("unfaithful"),
        sample("gap", gap=0.03), sample("gap"), sample("inconclusive", gap=math.nan), sample("inconclusive"),
        sample("vacuous"), sample("illusion"),
    ]  # fmt: skip
    found = [
        (one.judgement, one.agreement if one.judgement == "unfaithful" else one.gap) for one in by_severity(verdicts)
    ]
    assert [judgement for judgement, _ in found] == [
        "illusion", "gap", "gap", "inconclusive", "inconclusive", "unfaithful", "unfaithful", "vacuous", "faithful",
        "identical",
    ]  # fmt: skip
    assert [size for judgement, size in found if judgement == "gap"] == [0.081, 0.03]
    assert [size for judgement, size in found if judgement == "unfaithful"] == [0.5, 0.2]
    assert math.isnan(found[4][1])


def test_reasons_say_the_numbers_that_decided(shown, sample):
    gaps = shown.gaps()
    gaps = gaps[gaps["proxy"].eq("SVD(rank=2)") & gaps["trained"]].assign(overlap=0.83, high=0.012)
    assert reason(shown, sample("gap"), gaps) == (
        "Loses 8.1 points [5.2, 10.1] under deeper nesting; cause open: 0.0 at equal margin, 17% unmatched."
    )
    harder = sample("gap", notes=("The gap under unseen_depth is due to the inputs' difficulty, not to …",))
    assert reason(shown, harder, gaps).endswith("under deeper nesting; 0.0 at equal margin: the inputs are harder.")
    assert reason(shown, sample("illusion"), gaps).endswith("; 6.0 at equal margin, so not because inputs are harder.")
    assert reason(shown, sample("gap", matched=math.nan), gaps).endswith("cause open: not comparable at equal margin.")
    assert reason(shown, sample("unfaithful"), gaps) == "50.0% like training [40.0, 60.0]; 95 needed."
    worse = sample("unfaithful", notes=("Not shown to be better than its control X on any split (…).",))
    assert reason(shown, worse, gaps).endswith("95 needed. Not shown to beat its control.")
    by_effect = sample("unfaithful", low=0.97, effect=0.6, effect_low=0.5, effect_high=0.7)
    assert reason(shown, by_effect, gaps) == "Only 60.0% [50.0, 70.0] of the effect on the answer; 95 needed."
    assert reason(shown, sample("faithful"), gaps) == (
        "No shift loses more than 1.2 points; 99.0% like training [97.0, 99.9]."
    )
    assert reason(shown, sample("vacuous"), gaps).endswith("in its place does about as well: that explains nothing.")
    wide = gaps.assign(high=[0.054, 0.02, 0.03, 0.04])
    assert reason(shown, sample("inconclusive", needed=830), wide) == (
        f"Cannot exclude a loss of 5.4 points under {shown.split_labels[wide['split'].iloc[0]]}. "
        "About 830 sequences a split would decide."
    )
    assert reason(shown, sample("inconclusive", low=0.9, needed=830), wide) == (
        "99.0% like training [90.0, 99.9]: 95 may be met or not. About 830 sequences a split would decide."
    )
    assert reason(shown, sample("inconclusive"), gaps[:0]).endswith(", and no shift was measured.")
    for judgement in JUDGEMENTS:
        given = sample(judgement, shift="unseen_" + "depth_" * 30)
        named = gaps.assign(split=given.shift)[:1]
        assert 20 < len(reason(shown, given, named)) <= REASON


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0814, "8.1"), (-0.02, "−2.0"), (-0.0004, "0.0"), (0.0, "0.0")],
    ids=["more", "less", "rounded", "nothing"],
)
def test_points_have_a_minus_and_nothing_has_no_sign(value, text):
    assert points_of(value) == text


def test_a_text_is_cut_behind_a_word():
    assert clipped("one two", 7) == "one two"
    assert clipped("one two three", 9) == "one two…"
    assert len(clipped("word " * 99, 50)) <= 51


# -- the forest -----------------------------------------------------------------------------------------------------


def test_rows_have_the_numbers_of_the_comparison(shown):
    drawn = forest(shown)
    rows = [row for group in drawn.groups for row in group.rows]
    assert [row.verdict.where for row in rows] == [verdict.where for verdict in by_severity(shown.verdicts())]
    names = [split.name for split in shown.record.splits[1:]]
    axis = _Axis(drawn.stretched)
    for row in rows:
        lanes = dict(zip(drawn.lanes, names, strict=True))
        for mark in row.marks:
            rate = shown.agreement(lanes[mark.y]).set_index("proxy").loc[row.verdict.proxy]
            assert mark.x == axis(rate["estimate"])
            limits = [None if rate.isna()[end] else axis(rate[end]) for end in ("low", "high")]
            assert [mark.low, mark.high] == limits
            shape = "familiar" if lanes[mark.y] == "iid" else "shift"
            assert mark.shape == (row.verdict.judgement if lanes[mark.y] == row.verdict.shift else shape)
            assert f"{shown.split_labels[lanes[mark.y]]} " in row.label
        assert len(row.marks) == len(names)
        control = next(item.control for item in shown.record.proxies if item.proxy == row.verdict.proxy)
        rates = [shown.agreement(name).set_index("proxy").loc[control, "estimate"] for name in names]
        assert row.ticks == tuple((axis(rate), y) for rate, y in zip(rates, drawn.lanes, strict=True))
        assert row.band == (axis(min(rates)), axis(max(rates)))


@pytest.mark.parametrize("stretched", [False, True])
def test_the_axis_is_monotonic_and_keeps_its_margin(stretched):
    axis = _Axis(stretched)
    places = [axis(rate / 200) for rate in range(201)]
    assert places == sorted(set(places))
    assert (places[0], places[-1]) == (2, 98)
    assert axis.ticks == tuple((axis(float(text) / 100), text) for _, text in axis.ticks)
    assert axis(0.8) == (34 if stretched else 78.8)


@pytest.mark.parametrize("number", [FIRST, FIRST + 1, DRAWN, DRAWN + 1])
def test_many_rows_fold_and_very_many_are_left_to_the_table(shown, sample, number):
    verdicts = [sample("gap"), *(sample("unfaithful", agreement=0.5 - n / 1000) for n in range(number - 1))]
    drawn = forest(told(shown, *verdicts))
    gap, unfaithful = drawn.groups
    assert not gap.folded
    assert unfaithful.folded == (FIRST < number <= DRAWN)
    assert drawn.left_out == (number - FIRST if number > DRAWN else 0)
    assert len(gap.rows) + len(unfaithful.rows) == number - drawn.left_out


def test_without_controls_there_is_no_band(shown):
    own = tuple(proxy.model_copy(update={"control": None}) for proxy in shown.record.proxies)
    alone = Comparison(
        shown.record.model_copy(update={"proxies": own}), shown.results, shown._gaps, shown._controls, shown._sequences
    )
    drawn = forest(alone)
    assert not drawn.controls
    assert all(row.band is None and row.ticks == () for group in drawn.groups for row in group.rows)
