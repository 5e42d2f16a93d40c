"""Every rule on results made for it."""

import math

import pandas as pd
import pytest

from assay import AssayError
from assay.faithfulness._statistics import NO_MARGIN
from assay.faithfulness._verdicts import in_percent, judge

LIMITS = {"min_agreement": 0.95, "max_gap": 0.02, "alpha": 0.05}


def judged(agreement, *gaps, noise=0.0, notes=(), matched=None, reason="only 10% overlap", **limits):
    """`agreement` is (estimate, low, high), each gap (split, gap, low, high, p_holm).

    `matched` gives gaps at equal margin by split: (value, low, high, overlap, outside); by default the raw gap.
    """
    frame = pd.DataFrame(list(gaps), columns=["split", "gap", "low", "high", "p_holm"])
    at_margin = [
        (matched or {}).get(row.split, (row.gap, row.low, row.high, 1.0, 0.0)) for row in frame.itertuples(index=False)
    ]
    for place, name in enumerate(("matched", "matched_low", "matched_high", "overlap", "outside")):
        frame[name] = [values[place] for values in at_margin]
    frame["p_both"] = frame["p_holm"].where(frame["matched_low"] > 0.02, 1.0)
    frame["matched_reason"] = reason
    return judge(
        pd.Series({**dict(zip(("estimate", "low", "high"), agreement, strict=True)), "reason": "too few"}),
        frame,
        proxy="SVD(rank=8)",
        site="layer1",
        noise=noise,
        notes=tuple(notes),
        **{**LIMITS, **limits},
    )


GOOD = (0.99, 0.98, 0.995)
SMALL = ("structure", 0.005, -0.002, 0.015, 0.4)
LARGE = ("depth", 0.10, 0.05, 0.15, 0.001)


def test_faithful_needs_every_shift_excluded():
    verdict = judged(GOOD, SMALL, ("length", -0.001, -0.01, 0.02, 1.0))
    assert verdict.judgement == "faithful"
    assert verdict.shift == "structure"
    assert verdict.notes == ()


def test_illusion_names_the_shift_that_decided():
    verdict = judged(GOOD, SMALL, LARGE)
    assert verdict.judgement == "illusion"
    assert (verdict.shift, verdict.gap, verdict.gap_low, verdict.gap_high) == ("depth", 0.10, 0.05, 0.15)
    assert "ILLUSION" in str(verdict)
    assert "10.0 points less under depth" in str(verdict)


def test_a_gap_that_vanishes_at_equal_margin_is_due_to_the_inputs():
    verdict = judged(GOOD, SMALL, LARGE, matched={"depth": (0.0, -0.01, 0.01, 1.0, 0.0)})
    assert verdict.judgement == "inconclusive"
    assert verdict.shift == "depth"
    assert (verdict.matched, verdict.matched_low, verdict.matched_high) == (0.0, -0.01, 0.01)
    assert "due to the inputs' difficulty, not to the explanation" in str(verdict)
    assert "nor excluded" not in str(verdict)


def test_a_gap_that_survives_is_said_to():
    verdict = judged(GOOD, LARGE, matched={"depth": (0.06, 0.03, 0.09, 0.9, 0.01)})
    assert verdict.judgement == "illusion"
    assert "not due to harder inputs: at equal margin of the subject +6.0 points [+3.0, +9.0]" in str(verdict)


@pytest.mark.parametrize(
    "at_margin", [(0.01, 0.0, 0.021, 1.0, 0.0), (0.03, 0.01, 0.05, 1.0, 0.0), (0.0, -0.01, 0.01, 0.8, 0.06)]
)
def test_a_gap_of_open_cause_is_not_explained_away_and_that_is_said(at_margin):
    verdict = judged(GOOD, LARGE, matched={"depth": at_margin})
    assert verdict.judgement == "illusion"
    assert "Whether the gap under depth is due to harder inputs is open" in str(verdict)
    assert ("not shown to be above 2 points when all are tested" in str(verdict)) == (at_margin[2] > 0.02)
    assert ("20% of its predictions" in str(verdict)) == (at_margin[3] < 1)


def test_predictions_outside_the_overlap_count_at_their_worst():
    """0.8 x 1 point and 1.1 points that 20% of the predictions may add: within 2 points; with 1.3 not."""
    for outside, due in ((0.011, True), (0.013, False)):
        verdict = judged(GOOD, LARGE, matched={"depth": (0.0, -0.01, 0.01, 0.8, outside)})
        assert ("not to the explanation" in str(verdict)) == due


def test_a_gap_that_could_not_be_matched_says_why():
    verdict = judged(GOOD, LARGE, matched={"depth": (math.nan, math.nan, math.nan, 0.1, 0.05)})
    assert verdict.judgement == "illusion"
    assert "only 10% overlap" in str(verdict)


def test_without_a_margin_the_raw_gap_decides_and_that_is_said():
    verdict = judged(GOOD, LARGE, matched={"depth": (math.nan,) * 5}, reason=NO_MARGIN)
    assert verdict.judgement == "illusion"
    assert "is not known: there is no margin" in str(verdict)


def test_one_surviving_gap_is_enough():
    gaps = (LARGE, ("length", 0.2, 0.15, 0.25, 0.001))
    verdict = judged(GOOD, *gaps, matched={"length": (0.0, -0.01, 0.01, 1.0, 0.0)})
    assert verdict.judgement == "illusion"
    assert verdict.shift == "depth"
    assert "The gap under length is due to the inputs' difficulty" in str(verdict)


def test_the_raw_gap_must_be_shown_after_adjustment():
    frame = {"depth": (0.05, 0.021, 0.08, 1.0, 0.0)}
    assert judged(GOOD, LARGE, matched=frame).judgement == "illusion"
    assert judged(GOOD, ("depth", 0.1, 0.03, 0.17, 0.04), matched=frame, alpha=0.03).judgement == "inconclusive"


def test_a_larger_gap_without_certainty_does_not_take_the_place_of_a_certain_one():
    verdict = judged(GOOD, LARGE, ("length", 0.2, -0.1, 0.5, 0.3))
    assert verdict.judgement == "illusion"
    assert verdict.shift == "depth"


def test_unfaithful_in_distribution_goes_before_everything():
    assert judged((0.5, 0.4, 0.6), SMALL, LARGE).judgement == "unfaithful"
    assert judged((0.94, 0.93, 0.9499), SMALL).judgement == "unfaithful"


@pytest.mark.parametrize("agreement", [(0.95, 0.94, 0.96), (0.96, 0.949, 0.97), (0.94, 0.93, 0.95), (1.0, 0.6, 1.0)])
def test_inconclusive_where_the_threshold_lies_inside_the_interval(agreement):
    verdict = judged(agreement, SMALL, LARGE)
    assert verdict.judgement == "inconclusive"
    assert "95.0%" in verdict.notes[-1]


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
    verdict = judged(GOOD, SMALL, ("depth", 0.03, 0.01, 0.05, 0.001))
    assert verdict.judgement == "inconclusive"
    assert "depth" in verdict.notes[-1]
    assert "structure" not in verdict.notes[-1]


def test_a_gap_that_does_not_survive_holm_is_no_illusion_and_not_faithful():
    assert judged(GOOD, ("depth", 0.10, 0.03, 0.17, 0.06)).judgement == "inconclusive"
    assert judged(GOOD, ("depth", 0.10, 0.03, 0.17, 0.06), alpha=0.1).judgement == "illusion"
    assert judged(GOOD, ("depth", 0.10, 0.03, 0.17, math.nan)).judgement == "inconclusive"


def test_a_gap_below_the_noise_floor_is_inconclusive():
    assert judged(GOOD, LARGE, noise=0.2).judgement == "inconclusive"


def test_a_shift_that_was_not_measured_keeps_a_proxy_from_being_faithful():
    nothing = ("depth", math.nan, math.nan, math.nan, math.nan)
    verdict = judged(GOOD, SMALL, nothing)
    assert verdict.judgement == "inconclusive"
    assert "depth" in verdict.notes[-1]


def test_a_gap_without_limits_is_named():
    verdict = judged(GOOD, SMALL, ("depth", 0.0, math.nan, math.nan, math.nan))
    assert verdict.judgement == "inconclusive"
    assert "depth" in verdict.notes[-1]


def test_a_negative_gap_is_said_and_is_no_illusion():
    verdict = judged(GOOD, ("depth", -0.10, -0.15, -0.05, 0.001))
    assert verdict.judgement == "faithful"
    assert "More faithful under depth" in str(verdict)
    assert "10.0 points more under depth" in str(verdict)


def test_a_negative_gap_beside_an_illusion_is_said_too():
    verdict = judged(GOOD, LARGE, ("short", -0.02, -0.03, -0.01, 0.01))
    assert verdict.judgement == "illusion"
    assert "More faithful under short" in str(verdict)


def test_notes_given_are_kept():
    assert judged(GOOD, SMALL, notes=("Not shown to beat its control.",)).notes[0].startswith("Not shown")


@pytest.mark.parametrize("name", ["min_agreement", "max_gap", "alpha"])
@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan])
def test_thresholds_are_shares(comparison, name, value):
    with pytest.raises(AssayError, match=rf"{name}={value}.*between 0 and 1"):
        comparison.verdicts(**{name: value})


def test_thresholds_decide(comparison):
    lenient = comparison.verdicts(min_agreement=0.0, max_gap=1.0)
    assert {verdict.judgement for verdict in lenient} <= {"faithful", "inconclusive"}
    strict = {verdict.judgement for verdict in comparison.verdicts(min_agreement=1.0) if verdict.low < 1}
    assert strict <= {"unfaithful", "inconclusive"}


def test_a_control_that_does_as_well_is_said(comparison):
    frame = comparison.agreement().set_index(["proxy", "site"])
    for verdict in comparison.verdicts():
        record = next(p for p in comparison.record.proxies if (p.proxy, p.site) == (verdict.proxy, verdict.site))
        control = frame.loc[(record.control, record.site)]
        beaten = control["high"] < verdict.low
        assert any(record.control in note for note in verdict.notes) == (not beaten)


@pytest.mark.parametrize(
    ("rate", "shown"), [(0.0, "0.0%"), (0.9494, "94.9%"), (0.9994, "99.9%"), (0.99997, ">99.9%"), (1.0, "100.0%")]
)
def test_only_all_is_a_hundred_per_cent(rate, shown):
    assert in_percent(rate) == shown
