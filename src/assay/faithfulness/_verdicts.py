"""One line of judgement on each proxy."""

import math
from dataclasses import dataclass
from typing import Literal

import pandas as pd

Judgement = Literal["faithful", "illusion", "unfaithful", "inconclusive"]

Standing = Literal["holds", "fails", "undecided"]
"""What an interval says about a claim: shown to hold, shown to fail, or neither."""

RULES = """\
All rules look at `same_prediction` on the primary kind (for embeddings at `same_neighbour`, the share of sequences with
the same nearest neighbour), and at whole confidence intervals, never at points alone.

1. **unfaithful**: the upper limit on `iid` is below `min_agreement`.
2. **inconclusive**: the interval on `iid` contains `min_agreement`, or there is none.
3. Otherwise the proxy is faithful in distribution, and its generalization gaps (iid minus shift) decide:
   **illusion** if, under at least one shift, the gap's lower limit exceeds `max_gap` and the one-sided test of "the
   gap is at most `max_gap`", Holm-adjusted over all proxies and shifts, has a p-value below `alpha`; **faithful** if
   under every shift the gap's upper limit is at most `max_gap`; **inconclusive** if neither, if a shift was not
   measured, or if the gap is not above the noise floor (the share of predictions, of all kinds, that flip when
   nothing is changed).

A negative gap (more faithful under the shift) never makes an illusion; it is said beside the verdict. So is a control
that does as well: then the simplification has not shown what matters, only that little does.
"""


@dataclass(frozen=True)
class Verdict:
    """A judgement on one proxy at one site, with the numbers that it rests on.

    `agreement`, `low` and `high` are the same-prediction rate on iid; `gap`, `gap_low`, `gap_high` and `p_holm` belong
    to the `shift` that decided (the one with the largest gap). `notes` say what else to know.
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
        limits = f"[{_percent(self.low)}, {_percent(self.high)}]"
        text = f"Agrees with the subject on {_percent(self.agreement)} {limits} in distribution"
        if self.shift is not None:
            change = "less" if self.gap >= 0 else "more"
            text += (
                f"; {abs(100 * self.gap):.1f} points {change} under {self.shift} "
                f"(gap [{100 * self.gap_low:+.1f}, {100 * self.gap_high:+.1f}])"
            )
        return " ".join((f"{text}.", *self.notes))

    def __str__(self) -> str:
        return f"{self.where}: {self.judgement.upper()}. {self.why}"


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f}%"


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
            f"The interval in distribution contains the threshold {_percent(min_agreement)}: use more sequences."
        )
    elif worst is None:
        judgement = "inconclusive"
        extra.append("No shift was measured.")
    else:
        standings = [
            standing_of_gap(*numbers, max_gap=max_gap, alpha=alpha, noise=noise)
            for numbers in measured[["gap", "low", "high", "p_holm"]].to_numpy(dtype=float).tolist()
        ]
        if "fails" in standings:
            judgement = "illusion"
            worst = measured.iloc[standings.index("fails")]
        elif set(standings) == {"holds"} and len(measured) == len(gaps):
            judgement = "faithful"
        else:
            judgement = "inconclusive"
            undecided = measured[[standing == "undecided" for standing in standings]]
            missing = gaps[gaps["gap"].isna()]["split"]
            if len(undecided):
                extra.append(
                    f"A gap above {100 * max_gap:g} points is neither shown nor excluded under "
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
        notes=tuple(extra),
    )
