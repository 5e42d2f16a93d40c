"""Every rule on numbers made for it, and whole comparisons of scores that were drawn for them."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay import AssayError
from assay.engine import Site
from assay.faithfulness import ALL, JUDGEMENTS, Comparison, metrics
from assay.faithfulness._cells import Candidate
from assay.faithfulness._comparison import MetricRecord, NoiseFloor, ProxyRecord, Record, SplitRecord
from assay.faithfulness._scores import MARGIN, Column, Scores
from assay.faithfulness._statistics import NO_MARGIN, holm, p_above
from assay.faithfulness._summary import summarise
from assay.faithfulness._verdicts import Bar, Difference, in_percent, judge, sequences_needed
from assay.simplify import Identity
from assay.tasks import Split

OPEN_WORDS = "Whether the gap under depth is due to harder inputs is open"

ENDS = ("", "_low", "_high")
LIMITED = ("beyond_control", "ablated", "recovered")
NOTHING = dict.fromkeys((f"{name}{end}" for name in LIMITED for end in ("", "_low", "_high")), math.nan)


def beside(split, **known):
    """A row beside the controls: `beyond_control`, `ablated` and `recovered`, each (value, low, high)."""
    row = {"split": split, "control": "RandomProjection(rank=8)", **NOTHING}
    for name, values in known.items():
        row |= dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))
    return row


def effect_on(split, *numbers):
    """A row of effects: of the share on iid, and of its gap elsewhere."""
    row = {"split": split, **dict.fromkeys((f"{name}{end}" for name in ("effect", "gap") for end in ENDS), math.nan)}
    name = "effect" if split == "iid" else "gap"
    return row | dict(zip((f"{name}{end}" for end in ENDS), numbers, strict=True))


def judged(
    agreement, *gaps, noise=0.0, matched=None, per_sequence=None, controls=(), reason="only 10% overlap", sizes=None,
    difference=1.0, effects=None, ablation="MeanAblation()", **limits,
):  # fmt: skip
    """`agreement` is (estimate, low, high), each gap (split, gap, low, high, p_holm).

    `matched` gives gaps at equal margin by split: (value, low, high, overlap, outside, outside's upper limit); by
    default the raw gap. `per_sequence` is the gap counted by sequence, by split. `difference` is the largest one of a
    logit; changing nothing changes 1e-5. `effects` has by split (value, low, high) of the share of the effect on iid,
    and of its gap elsewhere.
    """
    frame = pd.DataFrame(list(gaps), columns=["split", "gap", "low", "high", "p_holm"])
    at_margin = [
        (matched or {}).get(row.split, (row.gap, row.low, row.high, 1.0, 0.0, 0.0))
        for row in frame.itertuples(index=False)
    ]
    for place, name in enumerate(("matched", "matched_low", "matched_high", "overlap", "outside", "outside_high")):
        frame[name] = [values[place] for values in at_margin]
    frame["outside_low"] = 0.0
    frame["per_sequence"] = [(per_sequence or {}).get(row.split, row.gap) for row in frame.itertuples(index=False)]
    options = {"min_agreement": 0.95, "max_gap": 0.02, "level": 0.95, **limits}
    frame["p_both"] = frame["p_holm"].where(frame["matched_low"] > options["max_gap"], 1.0)
    frame["matched_reason"] = reason
    return judge(
        pd.Series({
            **dict(zip(("estimate", "low", "high"), agreement, strict=True)), "reason": "too few", "split": "iid",
        }),
        frame,
        pd.DataFrame(list(controls), columns=["split", "control", *NOTHING]),
        pd.DataFrame([effect_on(split, *numbers) for split, numbers in (effects or {}).items()]),
        ablation=ablation,
        proxy="SVD(rank=8)",
        site="layer1",
        bar=Bar(noise=noise, **options),
        sizes={name: (sizes or {}).get(name, 500) for name in ("iid", *frame["split"])},
        difference=Difference(difference, 1e-5),
    )  # fmt: skip


GOOD = (0.99, 0.98, 0.995)
SMALL = ("structure", 0.005, -0.002, 0.015, 0.4)
LARGE = ("depth", 0.10, 0.05, 0.15, 0.001)
UNDECIDED = ("depth", 0.03, 0.01, 0.05, 0.2)
NONE = (0.0, -0.01, 0.01, 1.0, 0.0, 0.0)


# -- identical ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_what_differs_in_no_logit_is_identical_however_few_the_sequences(noise):
    verdict = judged((1.0, 0.5, 1.0), ("depth", 0.0, -0.4, 0.4, 1.0), noise=noise, difference=0.0)
    assert verdict.judgement == "identical"
    assert "Not one logit differs at any position that was judged" in str(verdict)


def test_a_difference_within_numerical_noise_is_said_and_decides_nothing():
    verdict = judged((1.0, 0.5, 1.0), SMALL, difference=9e-6)
    assert verdict.judgement == "inconclusive"
    assert "No logit differs by more than 9.0e-06, which is within numerical noise" in str(verdict)
    assert "numerical noise" not in str(judged((1.0, 0.5, 1.0), SMALL, difference=1.1e-5))


@pytest.mark.parametrize("difference", [1e-30, math.nan])
def test_any_difference_and_an_unknown_one_are_not_identical(difference):
    assert judged(GOOD, SMALL, difference=difference).judgement == "faithful"


# -- faithful -------------------------------------------------------------------------------------------------------


def test_faithful_needs_every_shift_excluded():
    verdict = judged(GOOD, SMALL, ("length", -0.001, -0.01, 0.02, 1.0))
    assert verdict.judgement == "faithful"
    assert verdict.shift == "structure"
    assert verdict.notes == ()
    assert verdict.needed is None


def test_the_grades_are_seven_and_the_gravest_is_first():
    assert JUDGEMENTS == ("illusion", "gap", "unfaithful", "inconclusive", "vacuous", "faithful", "identical")


# -- illusion and gap -----------------------------------------------------------------------------------------------


def test_illusion_names_the_shift_that_decided():
    verdict = judged(GOOD, SMALL, LARGE)
    assert verdict.judgement == "illusion"
    assert (verdict.shift, verdict.gap, verdict.gap_low, verdict.gap_high) == ("depth", 0.10, 0.05, 0.15)
    assert "ILLUSION" in str(verdict)
    assert "10.0 points less under depth" in str(verdict)


def test_illusion_is_a_gap_that_survives_at_equal_margin():
    verdict = judged(GOOD, LARGE, matched={"depth": (0.06, 0.03, 0.09, 0.9, 0.01, 0.02)})
    assert verdict.judgement == "illusion"
    assert "not due to harder inputs: at equal margin of the subject +6.0 points [+3.0, +9.0]" in str(verdict)


def test_a_gap_that_vanishes_at_equal_margin_is_due_to_the_inputs():
    verdict = judged(GOOD, SMALL, LARGE, matched={"depth": NONE})
    assert verdict.judgement == "gap"
    assert verdict.shift == "depth"
    assert (verdict.matched, verdict.matched_low, verdict.matched_high) == (0.0, -0.01, 0.01)
    assert "due to the inputs' difficulty, not to the explanation" in str(verdict)
    assert str(verdict).startswith("SVD(rank=8) at layer1: GAP. ")
    assert "nor excluded" not in str(verdict)


@pytest.mark.parametrize(
    "at_margin",
    [
        pytest.param((0.01, 0.0, 0.021, 1.0, 0.0, 0.0), id="upper limit above"),
        pytest.param((0.03, 0.01, 0.05, 1.0, 0.0, 0.0), id="lower limit below"),
        pytest.param((0.0, -0.01, 0.01, 0.8, 0.06, 0.07), id="outside"),
        pytest.param((0.001, -0.01, 0.01, 0.17, 0.084, 0.1), id="all of it outside"),
    ],
)
def test_a_gap_of_open_cause_is_a_gap_and_no_illusion_and_that_is_said(at_margin):
    verdict = judged(GOOD, LARGE, matched={"depth": at_margin})
    assert verdict.judgement == "gap"
    assert OPEN_WORDS in str(verdict)
    assert ("not shown to be above 2 points when all are tested" in str(verdict)) == (at_margin[2] > 0.02)
    share = f"{100 * (1 - at_margin[3]):.0f}% of its predictions"
    assert (share in str(verdict)) == (at_margin[3] < 1)


def test_what_is_outside_the_overlap_is_said_with_its_limits():
    verdict = judged(GOOD, LARGE, matched={"depth": (0.0, -0.01, 0.01, 0.8, 0.06, 0.07)})
    assert "6.0 points [+0.0, +7.0] may come from the 20% of its predictions" in str(verdict)


def test_predictions_outside_the_overlap_count_at_their_worst_and_by_their_upper_limit():
    """0.8 x 1 point and 1.1 points that 20% of the predictions may add: within 2 points; with 1.3 not."""
    for outside, high, due in ((0.009, 0.011, True), (0.009, 0.013, False), (0.013, 0.013, False)):
        verdict = judged(GOOD, LARGE, matched={"depth": (0.0, -0.01, 0.01, 0.8, outside, high)})
        assert verdict.judgement == "gap"
        assert ("not to the explanation" in str(verdict)) == due


def test_a_gap_that_could_not_be_matched_says_why():
    verdict = judged(GOOD, LARGE, matched={"depth": (math.nan, math.nan, math.nan, 0.1, 0.05, 0.06)})
    assert verdict.judgement == "gap"
    assert "is open" in str(verdict)
    assert "only 10% overlap" in str(verdict)


def test_without_a_margin_no_gap_is_an_illusion_and_that_is_said():
    verdict = judged(GOOD, LARGE, matched={"depth": (math.nan,) * 6}, reason=NO_MARGIN)
    assert verdict.judgement == "gap"
    assert f"due to harder inputs is not known: {NO_MARGIN}" in str(verdict)


def test_one_surviving_gap_is_enough_and_decides():
    """Of a larger gap that is difficulty, and a smaller one that is not, the smaller makes the illusion."""
    verdict = judged(GOOD, LARGE, ("length", 0.2, 0.15, 0.25, 0.001), matched={"length": NONE})
    assert verdict.judgement == "illusion"
    assert verdict.shift == "depth"
    assert "The gap under length is due to the inputs' difficulty" in str(verdict)


def test_a_gap_that_survives_before_adjustment_only_is_no_illusion():
    """`p_both` is adjusted over all shifts and proxies; the lower limit at equal margin alone is not enough."""
    at_margin = {"depth": (0.05, 0.021, 0.08, 1.0, 0.0, 0.0)}
    for p, grade in ((0.049, "illusion"), (0.051, "inconclusive")):
        assert judged(GOOD, ("depth", 0.1, 0.03, 0.17, p), matched=at_margin).judgement == grade
    assert judged(GOOD, LARGE, matched={"depth": (0.05, 0.019, 0.08, 1.0, 0.0, 0.0)}).judgement == "gap"


def test_a_larger_gap_without_certainty_does_not_take_the_place_of_a_certain_one():
    verdict = judged(GOOD, LARGE, ("length", 0.2, -0.1, 0.5, 0.3))
    assert verdict.judgement == "illusion"
    assert verdict.shift == "depth"


def test_the_level_moves_the_tests_too():
    """There is one level: that of the intervals is 1 less the error of the tests."""
    gap = ("depth", 0.10, 0.03, 0.17, 0.06)
    assert judged(GOOD, gap).judgement == "inconclusive"
    assert judged(GOOD, gap, level=0.9).judgement == "illusion"
    assert judged(GOOD, ("depth", 0.10, 0.03, 0.17, math.nan)).judgement == "inconclusive"


# -- unfaithful and inconclusive ------------------------------------------------------------------------------------


def test_unfaithful_in_distribution_goes_before_everything():
    assert judged((0.5, 0.4, 0.6), SMALL, LARGE).judgement == "unfaithful"
    assert judged((0.94, 0.93, 0.9499), SMALL).judgement == "unfaithful"


@pytest.mark.parametrize("agreement", [(0.95, 0.94, 0.96), (0.96, 0.949, 0.97), (0.94, 0.93, 0.95), (1.0, 0.6, 1.0)])
def test_inconclusive_where_the_threshold_lies_inside_the_interval(agreement):
    verdict = judged(agreement, SMALL, LARGE)
    assert verdict.judgement == "inconclusive"
    assert "contains the threshold 95.0%" in str(verdict)


def test_inconclusive_without_an_interval_in_distribution():
    verdict = judged((0.99, math.nan, math.nan), SMALL)
    assert verdict.judgement == "inconclusive"
    assert "too few" in str(verdict)


def test_inconclusive_without_any_shift():
    verdict = judged(GOOD)
    assert verdict.judgement == "inconclusive"
    assert verdict.shift is None
    assert "No shift was measured" in str(verdict)


def test_inconclusive_where_a_gap_is_neither_shown_nor_excluded():
    verdict = judged(GOOD, SMALL, UNDECIDED)
    assert verdict.judgement == "inconclusive"
    assert "A gap above 2 points is neither shown (Holm-adjusted) nor excluded under depth." in verdict.notes


@pytest.mark.parametrize("agreement", [GOOD, (0.5, 0.4, 0.6), (1.0, 0.99, 1.0)])
@pytest.mark.parametrize("gap", [SMALL, LARGE, ("depth", 0.0, -0.01, 0.01, 1.0)])
def test_a_noise_floor_above_the_largest_gap_makes_everything_inconclusive(agreement, gap):
    verdict = judged(agreement, gap, noise=0.021)
    assert verdict.judgement == "inconclusive"
    assert "Changing nothing already flips 2.1% of the predictions (the noise floor), more than the 2 points" in str(
        verdict
    )
    assert verdict.needed is None
    assert judged(agreement, gap, noise=0.02).judgement != "inconclusive"


def test_a_gap_within_the_noise_floor_is_not_shown():
    verdict = judged(GOOD, ("depth", 0.10, 0.05, 0.15, 0.001), noise=0.15, max_gap=0.2)
    assert verdict.judgement == "faithful"
    verdict = judged(GOOD, ("depth", 0.012, 0.011, 0.013, 0.001), noise=0.01, max_gap=0.01)
    assert verdict.judgement == "illusion"
    verdict = judged(GOOD, ("depth", 0.009, 0.005, 0.013, 0.001), noise=0.01, max_gap=0.01)
    assert verdict.judgement == "inconclusive"
    assert "within the noise floor" in str(verdict)


def test_a_shift_that_was_not_measured_keeps_a_proxy_from_being_faithful():
    nothing = ("depth", math.nan, math.nan, math.nan, math.nan)
    verdict = judged(GOOD, SMALL, nothing)
    assert verdict.judgement == "inconclusive"
    assert "Not measured under depth." in verdict.notes


def test_a_gap_without_limits_is_named_and_is_not_taken_for_too_near():
    nothing = ("depth", 0.0, math.nan, math.nan, math.nan)
    verdict = judged(GOOD, SMALL, nothing)
    assert verdict.judgement == "inconclusive"
    assert "No interval under depth: fewer than two different sequences there have such predictions" in str(verdict)
    assert "Too near" not in str(verdict)
    assert "About" not in str(verdict)
    assert "nan" not in str(judged(GOOD, nothing))
    assert judged(GOOD, nothing, ("length", 0.03, 0.01, 0.05, 0.2)).needed == 2_200


# -- how much data would decide -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "verdict",
    [
        pytest.param(judged((0.96, 0.94, 0.98), SMALL), id="agreement"),
        pytest.param(judged(GOOD, SMALL, UNDECIDED), id="gap"),
        pytest.param(judged(GOOD, UNDECIDED, ("length", 0.01, -0.02, 0.04, 1.0)), id="two gaps"),
        pytest.param(judged((1.0, 0.9, 1.0), SMALL), id="no error"),
        pytest.param(judged((0.9505, 0.94, 0.96), SMALL), id="agreement too near"),
        pytest.param(judged(GOOD, ("depth", 0.0205, 0.01, 0.03, 0.2)), id="gap too near"),
    ],
)
def test_an_inconclusive_verdict_says_how_many_sequences_would_decide_or_that_it_is_too_near(verdict):
    assert verdict.judgement == "inconclusive"
    if verdict.needed is None:
        assert verdict.notes[-1] == "Too near a threshold for any number of sequences to decide soon."
    else:
        assert (
            verdict.notes[-1]
            == f"About {verdict.needed:,} sequences a split would decide, if the rates stay as they are."
        )
        assert verdict.needed > 500


def test_the_sequences_needed_are_those_of_the_split_that_needs_most():
    """By hand: 1.1 x 500 x (1 / distance in half widths)^2, upwards to two digits."""
    one, other = UNDECIDED, ("length", 0.01, -0.02, 0.04, 1.0)
    assert judged(GOOD, one).needed == math.ceil(1.1 * 500 * 2**2 / 100) * 100 == 2_200
    assert judged(GOOD, other).needed == math.ceil(1.1 * 500 * 3**2 / 100) * 100 == 5_000
    assert judged(GOOD, one, other).needed == 5_000
    assert judged(GOOD, one, other, sizes={"depth": 2_000}).needed == 8_800


def test_so_many_sequences_do_decide():
    """Where no error was seen, the limits move with the number itself, otherwise with its square root."""
    assert sequences_needed(10, 1.0, 0.69, 1.0, 0.95, without_errors=True) == math.ceil(10 * 1.1 * 0.31 / 0.05)
    exact = 1 - 0.025 ** (1 / 69)
    assert exact == pytest.approx(0.05, abs=0.003)
    needed = sequences_needed(100, 0.97, 0.91, 0.99, 0.95, without_errors=False)
    assert 0.97 - 0.06 * math.sqrt(100 / needed) > 0.95
    assert sequences_needed(100, 0.97, math.nan, math.nan, 0.95, without_errors=False) is None


# -- vacuous --------------------------------------------------------------------------------------------------------

NO_BETTER = beside("iid", beyond_control=(0.001, -0.01, 0.02))
BETTER = beside("depth", beyond_control=(0.05, 0.01, 0.1))
MATTERS = beside("iid", beyond_control=(0.3, 0.2, 0.4), ablated=(0.5, 0.4, 0.6), recovered=(0.98, 0.95, 0.99))
HARDLY = beside("iid", beyond_control=(0.3, 0.2, 0.4), ablated=(0.94, 0.9, 0.96), recovered=(0.8, 0.5, 0.9))


def test_a_faithful_proxy_that_is_no_better_than_its_control_is_vacuous():
    verdict = judged(GOOD, SMALL, controls=[NO_BETTER])
    assert verdict.judgement == "vacuous"
    assert "VACUOUS" in str(verdict)
    assert (
        "Not shown to be better than its control RandomProjection(rank=8) on any split (paired: +0.1 points "
        "[-1.0, +2.0] on iid)." in verdict.notes
    )


def test_to_be_better_on_one_split_is_enough():
    assert judged(GOOD, SMALL, controls=[NO_BETTER, BETTER]).judgement == "faithful"
    assert judged(GOOD, SMALL, controls=[beside("iid", beyond_control=(0.001, 0.0, 0.002))]).judgement == "vacuous"


def test_a_faithful_proxy_of_a_site_that_hardly_matters_is_vacuous():
    verdict = judged(GOOD, SMALL, controls=[HARDLY])
    assert verdict.judgement == "vacuous"
    assert (
        "The site is not shown to matter: with its mean in its place the model agrees with itself on 94.0% "
        "[90.0%, 96.0%]." in verdict.notes
    )
    assert judged(GOOD, SMALL, controls=[HARDLY], min_agreement=0.97).judgement == "faithful"


def test_a_proxy_that_beats_its_control_at_a_site_that_matters_is_faithful():
    verdict = judged(GOOD, SMALL, controls=[MATTERS])
    assert verdict.judgement == "faithful"
    assert (verdict.recovered, verdict.recovered_low, verdict.recovered_high) == (0.98, 0.95, 0.99)
    assert "which recovers 98% [95%, 99%] of what mean ablation loses" in str(verdict)


def test_a_proxy_without_controls_is_not_called_vacuous():
    assert judged(GOOD, SMALL, controls=[beside("iid")]).judgement == "faithful"


@pytest.mark.parametrize(
    ("agreement", "gap", "grade"),
    [(GOOD, LARGE, "illusion"), (GOOD, UNDECIDED, "inconclusive"), ((0.5, 0.4, 0.6), SMALL, "unfaithful")],
)
def test_only_what_would_be_faithful_is_vacuous_but_all_are_told(agreement, gap, grade):
    verdict = judged(agreement, gap, controls=[NO_BETTER])
    assert verdict.judgement == grade
    assert "Not shown to be better than its control" in str(verdict)


# -- effect on the answer -------------------------------------------------------------------------------------------

ALL_OF_IT = (0.98, 0.96, 0.99)
LITTLE = (0.0, -0.01, 0.015)


def test_without_pairs_there_is_no_effect():
    verdict = judged(GOOD, SMALL)
    assert all(math.isnan(getattr(verdict, name)) for name in ("effect", "effect_low", "effect_high", "effect_gap"))
    assert "effect on the answer" not in str(verdict)


def test_the_share_and_its_gap_under_the_same_shift_stand_beside_the_verdict():
    effects = {"iid": ALL_OF_IT, "structure": (0.2, 0.1, 0.3), "depth": LITTLE}
    verdict = judged(GOOD, SMALL, ("depth", 0.015, 0.01, 0.019, 0.9), effects=effects, ablation="Circuit(edges=0)")
    assert verdict.judgement == "faithful"
    assert (verdict.effect, verdict.effect_low, verdict.effect_high) == ALL_OF_IT
    assert (verdict.shift, verdict.effect_gap, verdict.effect_gap_low, verdict.effect_gap_high) == ("depth", *LITTLE)
    assert (
        "It has 98.0% [96.0%, 99.0%] of the subject's effect on the answer beyond Circuit(edges=0); 0.0 points less "
        "under depth (gap [-1.0, +1.5])." in str(verdict)
    )


@pytest.mark.parametrize(
    ("share", "grade"),
    [
        ((0.9, 0.85, 0.949), "unfaithful"),
        ((0.9, 0.85, 0.95), "faithful"),
        ((-3.0, -4.0, -2.0), "unfaithful"),
        ((1.3, 1.2, 1.4), "faithful"),
        ((math.nan,) * 3, "faithful"),
    ],
)
def test_what_would_be_faithful_and_lacks_the_effect_is_not(share, grade):
    verdict = judged(GOOD, SMALL, effects={"iid": share})
    assert verdict.judgement == grade
    assert ("is not by its effect on the answer (rule 4)" in str(verdict)) == (grade == "unfaithful")


@pytest.mark.parametrize(
    ("agreement", "gap", "grade"),
    [(GOOD, LARGE, "illusion"), (GOOD, UNDECIDED, "inconclusive"), ((0.5, 0.4, 0.6), SMALL, "unfaithful")],
)
@pytest.mark.parametrize("share", [ALL_OF_IT, (0.5, 0.4, 0.6)])
def test_the_effect_changes_no_other_verdict(agreement, gap, grade, share):
    verdict = judged(agreement, gap, effects={"iid": share, gap[0]: LITTLE})
    assert verdict.judgement == grade
    assert "rule 4" not in str(verdict)


def test_a_gap_of_the_effect_alone_is_no_gap():
    effects = {"iid": ALL_OF_IT, "structure": (0.5, 0.4, 0.6)}
    assert judged(GOOD, SMALL, effects=effects).judgement == "faithful"


@pytest.mark.parametrize(
    ("share", "at_depth", "at_structure", "said"),
    [
        (ALL_OF_IT, LITTLE, LITTLE, "it would have passed"),
        (ALL_OF_IT, (0.011, -0.007, 0.03), LITTLE, "no gap would have been shown"),
        (ALL_OF_IT, LITTLE, (math.nan,) * 3, "no gap would have been shown"),
        ((0.95, 0.93, 0.96), LITTLE, LITTLE, "no gap would have been shown"),
        (ALL_OF_IT, (0.05, 0.03, 0.07), LITTLE, None),
        (ALL_OF_IT, LITTLE, (0.05, 0.03, 0.07), None),
        (ALL_OF_IT, (math.nan,) * 3, LITTLE, None),
        ((0.5, 0.4, 0.6), LITTLE, LITTLE, None),
        ((math.nan,) * 3, LITTLE, LITTLE, None),
    ],
)
@pytest.mark.parametrize("survives", [True, False])
def test_what_the_effect_alone_would_have_said_of_a_gap_is_said(share, at_depth, at_structure, said, survives):
    effects = {"iid": share, "depth": at_depth, "structure": at_structure}
    verdict = judged(GOOD, SMALL, LARGE, effects=effects, matched={} if survives else {"depth": NONE})
    assert verdict.judgement == ("illusion" if survives else "gap")
    text = str(verdict)
    assert ("By its effect on the answer alone" in text) == (said is not None)
    assert said is None or said in text


def test_an_ablation_of_its_own_is_called_by_its_name():
    verdict = judged(GOOD, SMALL, controls=[MATTERS], ablation="Circuit(edges=0)")
    assert "which recovers 98% [95%, 99%] of what Circuit(edges=0) loses" in str(verdict)
    verdict = judged(GOOD, SMALL, controls=[HARDLY], ablation="Circuit(edges=0)")
    assert verdict.judgement == "vacuous"
    assert "What it keeps is not shown to matter: Circuit(edges=0) agrees with the subject on 94.0% [" in str(verdict)


# -- other notes ----------------------------------------------------------------------------------------------------


def test_a_gap_on_two_sides_of_the_bound_by_prediction_and_by_sequence_is_said():
    words = "Counted by prediction and by sequence, the gap under depth is on two sides of 2 points"
    for raw, other, said in ((LARGE, 0.01, True), (LARGE, 0.03, False), (("depth", 0.01, 0.0, 0.015, 1.0), 0.03, True)):
        verdict = judged(GOOD, raw, per_sequence={"depth": other})
        assert (words in str(verdict)) == said
        assert verdict.per_sequence == other
        assert f"; {100 * other:+.1f} counted by sequence)" in str(verdict)
    assert "counted by sequence" not in str(judged(GOOD, LARGE, per_sequence={"depth": math.nan}))


def test_a_negative_gap_is_said_and_is_no_illusion():
    verdict = judged(GOOD, ("depth", -0.10, -0.15, -0.05, 0.001))
    assert verdict.judgement == "faithful"
    assert "More faithful under depth" in str(verdict)
    assert "10.0 points more under depth" in str(verdict)


def test_a_negative_gap_beside_an_illusion_is_said_too():
    verdict = judged(GOOD, LARGE, ("short", -0.02, -0.03, -0.01, 0.01))
    assert verdict.judgement == "illusion"
    assert "More faithful under short" in str(verdict)


@pytest.mark.parametrize(
    ("rate", "shown"), [(0.0, "0.0%"), (0.9494, "94.9%"), (0.9994, "99.9%"), (0.99997, ">99.9%"), (1.0, "100.0%")]
)
def test_only_all_is_a_hundred_per_cent(rate, shown):
    assert in_percent(rate) == shown


# -- whole comparisons ----------------------------------------------------------------------------------------------

METRIC = metrics.get("same_prediction")()


@dataclass
class Told:
    """A proxy by its name and its outcomes on every split: right and all predictions, (sequence, stratum) each."""

    name: str
    outcomes: dict[str, tuple[np.ndarray, np.ndarray]]
    control: str | None = None
    is_control: bool = False


def told(subject, *proxies, noise=0.0, chance=None, resamples=300, **settings_):
    """The comparison that `compare` makes of proxies with such outcomes. Strata are bins of the subject's margin."""
    splits, found, candidates = {}, {}, []
    for number, (name, (right, _)) in enumerate(proxies[0].outcomes.items()):
        tokens = np.random.default_rng(number).integers(0, 9, (len(right), 30))
        splits[name] = Split(
            name, "iid" if name == "iid" else "shift", "", tokens, np.full(len(right), 30), np.zeros_like(tokens)
        )
    for one in proxies:
        item = Candidate(one.name, Identity(), Site("all", {}), one.is_control, fingerprint="", control=one.control)
        candidates.append(item)
        for name, (right, all_) in one.outcomes.items():
            bins = [Column(METRIC.name, "any", MARGIN, place) for place in range(right.shape[1])]
            found[0, item.key, name] = Scores(
                (Column(METRIC.name, ALL, "", 0), *bins),
                np.column_stack((right.sum(axis=1), right)).astype(float),
                np.column_stack((all_.sum(axis=1), all_)),
            )
    options = {"seed": 0, "resamples": resamples, "level": 0.95, **settings_}
    results, gaps, controls, *_ = summarise(
        [METRIC], (), [subject], candidates, primary=(METRIC.name, ALL), splits=splits, found=found, **options
    )
    record = Record(
        created="", seconds=0, assay_version="", environment={}, subjects=(subject.describe(),), task={},
        primary_kind=ALL, overlaps=(), chance=chance, kinds=(), features=(), skipped=(),
        splits=tuple(
            SplitRecord(name=split.name, role=split.role, description="", sequences=len(split), different=len(split),
                        refit_sequences=0, sha256="")
            for split in splits.values()
        ),
        metrics=(MetricRecord(name=METRIC.name, unit="rate", higher_is_better=True, description=""),),
        proxies=tuple(
            ProxyRecord(proxy=one.name, site="all", heads=(), is_control=one.is_control, control=one.control,
                        ablation=None, perturbation=None)
            for one in proxies
        ),
        settings={"controls": True, "min_agreement": 0.95, "max_gap": 0.02, **options},
        noise_floor=NoiseFloor(logit_difference=0, logit_difference_as_loaded=0, flipped=noise, sequences=1),
    )  # fmt: skip
    return Comparison(record, results, gaps, controls, lambda: iter(()))


def drawn(rng, rate, sequences, predictions=10):
    """Outcomes of one stratum."""
    all_ = np.full((sequences, 1), predictions)
    return rng.binomial(all_, rate), all_


def graded(judgement):
    """How good a verdict is: the higher, the nearer to faithful."""
    return {"illusion": 0, "gap": 0, "unfaithful": 0, "inconclusive": 1, "vacuous": 2, "faithful": 2}[judgement]


@pytest.mark.parametrize(
    ("sequences", "predictions", "max_gap"), [(40, 3, 0.2), pytest.param(120, 1, 0.1, marks=pytest.mark.slow)]
)
def test_errors_under_a_shift_one_by_one_never_improve_the_verdict(subject, sequences, predictions, max_gap):
    """From none to all, in random order."""
    rng = np.random.default_rng(1)
    iid, (right, all_) = drawn(rng, 0.99, sequences), drawn(rng, 1.0, sequences, predictions)
    grades = []
    for place in rng.permutation(np.repeat(np.arange(sequences), predictions)):
        found = told(subject, Told("P", {"iid": iid, "shift": (right.copy(), all_)}), resamples=200)
        [verdict] = found.verdicts(min_agreement=0.8, max_gap=max_gap)
        grades.append(graded(verdict.judgement))
        right[place] -= 1
    assert grades == sorted(grades, reverse=True)
    assert set(grades) == {0, 1, 2}, "the test would not see a change of grade"


outcomes = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), min_size=12, max_size=40).map(
    lambda pairs: tuple(np.array(column)[:, None] for column in zip(*((r, r + w) for r, w in pairs), strict=True))
)


@given(outcomes, outcomes, st.integers(0, 1_000), st.sampled_from([0.05, 0.2, 0.4]))
@settings(max_examples=40, deadline=None)
def test_an_error_more_under_a_shift_never_improves_the_verdict(subject, iid, shift, which, max_gap):
    right, all_ = shift
    able = np.flatnonzero(right)
    if not len(able) or (all_ > 0).sum() < 2 or (iid[1] > 0).sum() < 2:
        return
    worse = right.copy()
    worse[able[which % len(able)]] -= 1
    grades = []
    for side in (right, worse):
        found = told(subject, Told("P", {"iid": iid, "shift": (side, all_)}), resamples=200)
        [verdict] = found.verdicts(min_agreement=0.3, max_gap=max_gap)
        grades.append(graded(verdict.judgement))
    assert grades[1] <= grades[0]


def test_the_family_are_the_proxies_that_are_faithful_in_distribution(subject):
    """Twenty others with large gaps, which are not, change nothing of what is said of one that is."""
    rng = np.random.default_rng(2)
    own = Told("own", {"iid": drawn(rng, 0.99, 100), "shift": drawn(rng, 0.9, 100)})
    bad = [Told(f"bad {number}", {"iid": drawn(rng, 0.5, 100), "shift": drawn(rng, 0.2, 100)}) for number in range(20)]
    good = [Told(f"good {number}", {"iid": drawn(rng, 1.0, 100), "shift": drawn(rng, 1.0, 100)}) for number in range(4)]
    alone, beside_bad, beside_good = (
        next(verdict for verdict in told(subject, own, *others).verdicts() if verdict.proxy == "own")
        for others in ((), bad, good)
    )
    assert str(beside_bad) == str(alone)
    assert beside_bad.p_holm == alone.p_holm > 0
    assert beside_good.p_holm == pytest.approx(5 * alone.p_holm)
    found = told(subject, own, *bad)
    assert {verdict.judgement for verdict in found.verdicts()[1:]} == {"unfaithful"}
    assert all(math.isnan(verdict.p_holm) for verdict in found.verdicts()[1:])


def test_the_family_has_all_shifts_of_its_members_and_no_controls(subject):
    rng = np.random.default_rng(3)
    rates = {"iid": 0.99, "a": 0.93, "b": 0.95, "c": 0.99}
    made = [
        Told(f"P{number}", {name: drawn(rng, rate, 100) for name, rate in rates.items()}, "control")
        for number in range(2)
    ]
    control = Told("control", {name: drawn(rng, 0.6, 100) for name in rates}, is_control=True)
    found = told(subject, *made, control)
    gaps = found.gaps().query("not is_control")
    p = holm(p_above(gaps["gap"], gaps["error"], gaps["degrees"], 0.02).tolist())
    assert len(p) == 6
    largest = gaps.assign(p=p).sort_values("gap").groupby("proxy").last()["p"]
    assert {verdict.proxy: pytest.approx(verdict.p_holm) for verdict in found.verdicts()} == largest.to_dict()


def test_a_control_that_does_as_well_is_compared_in_pairs(subject):
    """Two that agree on the same predictions, but for one: apart, their intervals overlap; paired, they are told apart.

    And of two that are equal it is not shown that one is better.
    """
    rng = np.random.default_rng(4)
    right, all_ = rng.binomial(10, rng.beta(9, 0.5, (200, 1))), np.full((200, 1), 10)
    worse = np.maximum(right - rng.binomial(1, 0.25, right.shape), 0)
    both = {"iid": (right, all_), "shift": (right[:150], all_[:150])}
    of_control = {"iid": (worse, all_), "shift": (right[:150], all_[:150])}
    found = told(subject, Told("P", both, "C"), Told("C", of_control, is_control=True))
    limits = found.agreement().set_index("proxy")
    assert limits.loc["C", "high"] > limits.loc["P", "low"], "apart they are not told from each other"
    row = found.controls().query("split == 'iid'").iloc[0]
    assert row["beyond_control"] == pytest.approx((right - worse).sum() / all_.sum())
    assert row["beyond_control_low"] > 0
    assert "Not shown" not in str(found.verdicts()[0])
    equal = told(subject, Told("P", both, "C"), Told("C", both, is_control=True))
    [verdict] = equal.verdicts(min_agreement=0.5, max_gap=0.5)
    assert verdict.judgement == "vacuous"


def test_a_noise_floor_above_the_largest_gap_decides_for_all_proxies(subject):
    rng = np.random.default_rng(8)
    made = [
        Told("good", {"iid": drawn(rng, 1.0, 400), "shift": drawn(rng, 1.0, 400)}),
        Told("illusion", {"iid": drawn(rng, 1.0, 400), "shift": drawn(rng, 0.5, 400)}),
        Told("bad", {"iid": drawn(rng, 0.2, 400), "shift": drawn(rng, 0.2, 400)}),
    ]
    quiet, noisy = (told(subject, *made, noise=noise).verdicts() for noise in (0.0, 0.03))
    assert [verdict.judgement for verdict in quiet] == ["faithful", "illusion", "unfaithful"]
    assert [verdict.judgement for verdict in noisy] == ["inconclusive"] * 3
    assert all("Changing nothing already flips 3.0%" in str(verdict) for verdict in noisy)


def test_the_smallest_detectable_gap_is_one_that_is_detected_and_shrinks_with_the_data(subject):
    rng = np.random.default_rng(5)
    rows = []
    for sequences in (50, 500):
        sides = {"iid": drawn(rng, 0.99, sequences), "small": drawn(rng, 0.98, sequences)}
        found = told(subject, Told("P", {**sides, "large": drawn(rng, 0.9, 2 * sequences)}))
        rows.append(found.detectable())
        gaps = found.gaps().set_index("split")
        for shift in ("small", "large"):
            assert rows[-1][shift] == pytest.approx(0.02 + gaps.loc[shift, "gap"] - gaps.loc[shift, "low"])
    assert list(rows[0]) == ["small", "large"]
    assert rows[1]["small"] < rows[0]["small"] / 1.5
    assert found.detectable(max_gap=0.1)["small"] == pytest.approx(rows[1]["small"] + 0.08)


def test_what_can_be_detected_is_asked_of_proxies_that_are_not_unfaithful(subject):
    rng = np.random.default_rng(6)
    good = Told("good", {"iid": drawn(rng, 0.99, 100), "shift": drawn(rng, 0.98, 100)})
    bad = [Told(f"bad {number}", {"iid": drawn(rng, 0.5, 100), "shift": drawn(rng, 0.5, 100)}) for number in range(3)]
    assert told(subject, good, *bad).detectable() == told(subject, good).detectable()
    assert told(subject, *bad).detectable()["shift"] > told(subject, good).detectable()["shift"]


def test_the_gap_by_sequence_counts_every_sequence_once(subject):
    """Long sequences are right, short ones wrong under the shift."""
    rng = np.random.default_rng(7)
    long = np.arange(100)[:, None] % 2 == 0
    all_ = np.where(long, 50, 1)
    found = told(subject, Told("P", {"iid": drawn(rng, 1.0, 100), "shift": (np.where(long, 50, 0), all_)}))
    row = found.gaps().iloc[0]
    assert row["gap"] == pytest.approx(50 / 2_550)
    assert row["per_sequence"] == pytest.approx(0.5)
    assert row["per_sequence_low"] < 0.5 < row["per_sequence_high"]
    [verdict] = found.verdicts()
    assert "on two sides of 2 points: longer sequences differ from shorter ones" in str(verdict)


# -- the shared comparison ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["min_agreement", "max_gap"])
@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan])
def test_thresholds_are_shares(comparison, name, value):
    with pytest.raises(AssayError, match=rf"{name}={value}.*between 0 and 1"):
        comparison.verdicts(**{name: value})


def test_thresholds_decide(comparison):
    lenient = comparison.verdicts(min_agreement=0.0, max_gap=1.0)
    assert not any("above 100 points" in str(verdict) for verdict in lenient)
    assert all(verdict.judgement == "inconclusive" for verdict in lenient if "No interval" in str(verdict))
    assert not {verdict.judgement for verdict in lenient} & {"illusion", "gap", "unfaithful"}
    strict = {verdict.judgement for verdict in comparison.verdicts(min_agreement=1.0) if verdict.low < 1}
    assert strict <= {"unfaithful", "inconclusive"}


def test_a_control_that_does_as_well_is_said(comparison):
    frame = comparison.controls().set_index(["proxy", "site"])
    for verdict in comparison.verdicts():
        rows = frame.loc[[(verdict.proxy, verdict.site)]]
        beaten = (rows["beyond_control_low"] > 0).any()
        assert any(rows["control"].iloc[0] in note for note in verdict.notes) == (not beaten)


def test_every_verdict_says_what_share_of_the_ablation_it_recovers(comparison):
    rows = comparison.controls().query("split == 'iid'").set_index(["proxy", "site"])
    agreement = comparison.agreement().set_index(["proxy", "site"])["estimate"]
    for verdict in comparison.verdicts():
        row = rows.loc[(verdict.proxy, verdict.site)]
        assert row["ablated"] == pytest.approx(agreement["MeanAblation()", verdict.site])
        assert verdict.recovered == row["recovered"]
        assert f"recovers {100 * verdict.recovered:.0f}% [" in str(verdict)
