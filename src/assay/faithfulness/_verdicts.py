"""One line of judgement on each proxy."""

import math
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from assay.faithfulness._statistics import NO_MARGIN

Judgement = Literal["faithful", "illusion", "unfaithful", "inconclusive"]

Standing = Literal["holds", "fails", "undecided"]
"""What an interval says about a claim: shown to hold, shown to fail, or neither."""

RULES = """\
All rules look at `same_prediction` on the primary kind (for embeddings at `same_neighbour`, the share of sequences with
the same nearest neighbour), and at whole confidence intervals, never at points alone.

1. **unfaithful**: the upper limit on `iid` is below `min_agreement`.
2. **inconclusive**: the interval on `iid` contains `min_agreement`, or there is none.
3. Otherwise the proxy is faithful in distribution, and its generalization gaps (iid minus shift) decide. A gap is
   *shown* if its lower limit exceeds `max_gap`, the one-sided test of "the gap is at most `max_gap`", Holm-adjusted
   over all proxies and shifts, has a p-value below `alpha`, and the gap is above the noise floor (the share of
   predictions, of all kinds, that flip when nothing is changed). A shown gap
   - **survives** if the gap at equal margin of the subject (`matched`) has a lower limit above `max_gap` too, and the
     larger of the two p-values is still below `alpha` when adjusted in the same way;
   - **vanishes** if the upper limit at equal margin, weighted by the overlap, plus the most that predictions outside
     the overlap can add, is at most `max_gap`: then it is due to the inputs' difficulty, not to the explanation;
   - is of **open cause** otherwise. Embeddings have no margin: there, a shown gap decides as it is.

   **illusion** if at least one shown gap does not vanish; the note beside it says whether it survives at equal margin,
   which is the stronger finding, or its cause is open. **faithful** if under every shift the raw gap's upper limit is
   at most `max_gap`. **inconclusive** if neither: a gap that is neither shown nor excluded, a shift that was not
   measured, or gaps that are shown but all vanish. In the last case the proxy does agree less under the shift, and the
   note says so; the explanation is not to blame.

A negative gap (more faithful under the shift) never makes an illusion; it is said beside the verdict. So is a control
that does as well: then the simplification has not shown what matters, only that little does.
"""


@dataclass(frozen=True)
class Verdict:
    """A judgement on one proxy at one site, with the numbers that it rests on.

    `agreement`, `low` and `high` are the same-prediction rate on iid; `gap`, `gap_low`, `gap_high` and `p_holm` belong
    to the `shift` that decided (the one with the largest gap), as do `matched`, `matched_low` and `matched_high`, the
    gap at equal margin of the subject (NaN where it could not be measured). `notes` say what else to know.
    """

    proxy: str
    site: str
    judgement: Judgement
    agreement: float
    low: float
    high: float
    shift: str | None
    gap: float
    gap_low: float
    gap_high: float
    p_holm: float
    matched: float
    matched_low: float
    matched_high: float
    notes: tuple[str, ...]

    @property
    def where(self) -> str:
        """The proxy and its site."""
        return f"{self.proxy} at {self.site}"

    @property
    def why(self) -> str:
        """The numbers and notes behind the judgement, in words."""
        if math.isnan(self.agreement):
            return " ".join(self.notes)
        limits = f"[{in_percent(self.low)}, {in_percent(self.high)}]"
        text = f"Agrees with the subject on {in_percent(self.agreement)} {limits} in distribution"
        if self.shift is not None:
            change = "less" if self.gap >= 0 else "more"
            text += (
                f"; {abs(100 * self.gap):.1f} points {change} under {self.shift} "
                f"(gap {_points(self.gap_low, self.gap_high)})"
            )
        return " ".join((f"{text}.", *self.notes))

    def __str__(self) -> str:
        return f"{self.where}: {self.judgement.upper()}. {self.why}"


def _points(low: float, high: float) -> str:
    return f"[{100 * low:+.1f}, {100 * high:+.1f}]"


def in_percent(rate: float) -> str:
    """A rate in per cent; 100% only if it is all."""
    return ">99.9%" if 0.9995 <= rate < 1 else f"{100 * rate:.1f}%"


def standing_of_agreement(low: float, high: float, min_agreement: float) -> Standing:
    """What an interval of agreement says of "at least `min_agreement`"; NaN decides nothing."""
    if high < min_agreement:
        return "fails"
    return "holds" if low >= min_agreement else "undecided"


def standing_of_gap(
    gap: float, low: float, high: float, p_holm: float, *, max_gap: float, alpha: float, noise: float
) -> Standing:
    """What a gap with its interval and adjusted p-value says of "at most `max_gap`"; NaN decides nothing."""
    if low > max_gap and p_holm < alpha and gap > noise:
        return "fails"
    return "holds" if high <= max_gap else "undecided"


def judge(
    agreement: pd.Series,
    gaps: pd.DataFrame,
    *,
    proxy: str,
    site: str,
    noise: float,
    notes: tuple[str, ...],
    min_agreement: float,
    max_gap: float,
    alpha: float,
) -> Verdict:
    """Apply the rules (see `RULES`) to one proxy.

    `agreement` is its row of results on iid, `gaps` its rows of gaps, both of same_prediction on the primary kind.
    `p_holm` in the latter is the adjusted test of the raw gap, `p_both` that of the larger of the two p-values.
    """
    value, low, high = float(agreement["estimate"]), float(agreement["low"]), float(agreement["high"])
    measured = gaps[gaps["gap"].notna()].sort_values("gap", ascending=False, kind="stable")
    worst = measured.iloc[0] if len(measured) else None
    better = measured[measured["high"] < 0]
    extra = list(notes)
    if len(better):
        extra.append(f"More faithful under {', '.join(better['split'])} than in distribution.")
    standing = standing_of_agreement(low, high, min_agreement)
    judgement: Judgement
    if math.isnan(low):
        judgement = "inconclusive"
        extra.append(f"Nothing to go by in distribution: {agreement['reason'] or 'no interval'}.")
    elif standing == "fails":
        judgement = "unfaithful"
    elif standing == "undecided":
        judgement = "inconclusive"
        extra.append(
            f"The interval in distribution contains the threshold {in_percent(min_agreement)}: use more sequences."
        )
    elif worst is None:
        judgement = "inconclusive"
        extra.append("No shift was measured.")
    else:
        standings = pd.Series(
            [
                standing_of_gap(*numbers, max_gap=max_gap, alpha=alpha, noise=noise)
                for numbers in measured[["gap", "low", "high", "p_holm"]].to_numpy(dtype=float).tolist()
            ],
            index=measured.index,
        )
        shown = measured[standings == "fails"]
        no_margin = shown["matched_reason"] == NO_MARGIN
        survives = shown[no_margin | ((shown["matched_low"] > max_gap) & (shown["p_both"] < alpha))]
        vanishes = shown["overlap"] * shown["matched_high"] + shown["outside"] <= max_gap
        left = shown[~vanishes]
        extra += [
            _cause(row, survives=index in survives.index, vanishes=bool(vanishes[index]), max_gap=max_gap)
            for index, row in shown.iterrows()
        ]
        if len(left):
            judgement = "illusion"
            worst = survives.iloc[0] if len(survives) else left.iloc[0]
        elif bool((standings == "holds").all()) and len(measured) == len(gaps):
            judgement = "faithful"
        else:
            judgement = "inconclusive"
            undecided = measured[standings == "undecided"]
            missing = gaps[gaps["gap"].isna()]["split"]
            if len(undecided):
                extra.append(
                    f"A gap above {100 * max_gap:g} points is neither shown (Holm-adjusted) nor excluded under "
                    f"{', '.join(undecided['split'])}."
                )
            if bool((undecided["gap"] <= noise).any()) and noise > 0:
                extra.append("Some of these gaps are within the noise floor.")
            if len(missing):
                extra.append(f"Not measured under {', '.join(missing)}.")
    return Verdict(
        proxy=proxy,
        site=site,
        judgement=judgement,
        agreement=value,
        low=low,
        high=high,
        shift=None if worst is None else str(worst["split"]),
        gap=math.nan if worst is None else float(worst["gap"]),
        gap_low=math.nan if worst is None else float(worst["low"]),
        gap_high=math.nan if worst is None else float(worst["high"]),
        p_holm=math.nan if worst is None else float(worst["p_holm"]),
        matched=math.nan if worst is None else float(worst["matched"]),
        matched_low=math.nan if worst is None else float(worst["matched_low"]),
        matched_high=math.nan if worst is None else float(worst["matched_high"]),
        notes=tuple(extra),
    )


def _cause(row: pd.Series, *, survives: bool, vanishes: bool, max_gap: float) -> str:
    """What a shown gap is due to, in words."""
    if row["matched_reason"] == NO_MARGIN:
        return f"How much of the gap under {row['split']} is due to harder inputs is not known: {NO_MARGIN}."
    if math.isnan(row["matched"]):
        return f"The gap under {row['split']} could not be compared at equal margin: {row['matched_reason']}."
    change = f"{100 * row['matched']:+.1f} points {_points(row['matched_low'], row['matched_high'])}"
    if survives:
        return f"The gap under {row['split']} is not due to harder inputs: at equal margin of the subject {change}."
    if vanishes:
        return (
            f"The gap under {row['split']} is due to the inputs' difficulty, not to the explanation: at equal margin "
            f"of the subject {change}."
        )
    text = f"Whether the gap under {row['split']} is due to harder inputs is open: at equal margin {change}"
    if row["matched_high"] > max_gap:
        text += f", not shown to be above {100 * max_gap:g} points when all are tested"
    if row["outside"] > 0:
        text += (
            f", and {100 * row['outside']:.1f} points may come from the {100 * (1 - row['overlap']):.0f}% of its "
            "predictions that have a margin that too few on iid have"
        )
    return f"{text}."
