"""One line of judgement on each proxy."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal, get_args

import pandas as pd

from assay._errors import AssayError, unknown_name
from assay._terminal import visible
from assay.faithfulness._statistics import NO_MARGIN
from assay.simplify import MeanAblation, label

Judgement = Literal["illusion", "gap", "unfaithful", "inconclusive", "vacuous", "faithful", "identical"]
"""All judgements, the gravest first."""

JUDGEMENTS: tuple[Judgement, ...] = get_args(Judgement)

Standing = Literal["holds", "fails", "undecided"]
"""What an interval says about a claim: shown to hold, shown to fail, or neither."""

MEAN_ABLATION = label(MeanAblation())
"""How the mean ablation of a site is called."""

RULES = """\
All rules look at the primary metric (`same_prediction`, unless another was chosen; for embeddings `same_neighbour`, the
share of sequences with the same nearest neighbour) on the primary kind, and at whole confidence intervals, never at
points alone.

0. **identical**: not one logit differs from the subject's, at any scored position of any split. There, nothing was
   changed, and no interval is needed; of other inputs it says nothing. Where logits differ by no more than they do when
   nothing is changed (another order of the arithmetic), the line says so, and the rules below apply.
1. **unfaithful**: the upper limit on `iid` is below `min_agreement`.
2. **inconclusive**: the interval on `iid` contains `min_agreement`, or there is none; or changing nothing flips more
   than `max_gap` of the predictions (the noise floor), so that nothing can be told.
3. Otherwise the proxy is faithful in distribution, and its generalization gaps (iid minus shift) decide. A gap is
   *shown* if its lower limit exceeds `max_gap`, the one-sided test of "the gap is at most `max_gap`", Holm-adjusted,
   has a p-value below 1 - level, and the gap is above the noise floor. A shown gap
   - **survives** if the gap at equal margin of the subject (`matched`) has a lower limit above `max_gap` too, and the
     larger of the two p-values is still below 1 - level when adjusted in the same way;
   - **vanishes** if the upper limit at equal margin, weighted by the overlap, plus the upper limit of what predictions
     outside the overlap can add, is at most `max_gap`: then it is due to the inputs' difficulty;
   - is of **open cause** otherwise. Embeddings have no margin: there, the cause of every shown gap is open.

   **illusion**: a shown gap survives. **gap**: a gap is shown, and none survives; the line says whether its cause is
   open or the inputs' difficulty. **faithful**: under every shift the raw gap's upper limit is at most `max_gap`.
   **vacuous**: it would be faithful, but it is not shown to be better than its own control on any split, or mean
   ablation of the site (or what the recipe calls `ablated`) is not shown to agree on less than `min_agreement` in
   distribution, so that the site hardly matters: agreement then explains nothing. **inconclusive**: none of these; a
   gap is neither shown nor excluded, or a shift was not measured. The line says about how many sequences would decide.

4. **Effect on the answer**, where iid has pairs and an ablation was judged (see `Comparison.effects`): the share of the
   subject's effect on answer against foils that the proxy has. It sees these tokens alone, so it never makes a verdict
   better: gaps are those of the primary metric, and the share and its own gap stand beside them. But "faithful" needs
   it, too: where its upper limit on `iid` is below `min_agreement`, what would be faithful is **unfaithful**.

Families. "Shown" and "survives" are adjusted by Holm over all shifts and all proxies that are faithful in distribution:
the chance of any false illusion or gap in a run is at most 1 - level. "Faithful" and "unfaithful" are claims about one
proxy each, which is their family: "faithful" needs every one of its limits to hold, so its chance of being false is at
most (1 - level) / 2 however many shifts there are; among m proxies expect at most m times that.

A negative gap (more faithful under the shift) never makes an illusion; it is said beside the verdict.
"""


@dataclass(frozen=True, repr=False)
class Verdict:
    """A judgement on one proxy at one site, with the numbers that it rests on.

    `agreement`, `low` and `high` are the primary metric's rate on iid; `gap`, `gap_low`, `gap_high` and `p_holm` belong
    to the `shift` that decided (the one with the largest gap), as do `per_sequence`, the same gap with every sequence
    counting once, and `matched`, `matched_low` and `matched_high`, the gap at equal margin of the subject. `recovered`
    is the share of what the `ablation` loses on iid (by its name; None: none was judged) that the proxy recovers (1:
    all of it). `effect` is the share on iid of the subject's effect on the answer, and `effect_gap` by how much it is
    less under the same `shift` (see `Comparison.effects`), each with limits. NaN for what could not be measured.
    `needed` is about how many sequences a split would decide, where that can be said. `notes` say what else to know.
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
    per_sequence: float
    matched: float
    matched_low: float
    matched_high: float
    recovered: float
    recovered_low: float
    recovered_high: float
    ablation: str | None
    effect: float
    effect_low: float
    effect_high: float
    effect_gap: float
    effect_gap_low: float
    effect_gap_high: float
    needed: int | None
    notes: tuple[str, ...]

    @property
    def where(self) -> str:
        """The proxy and its site."""
        return f"{self.proxy} at {self.site}"

    @property
    def why(self) -> str:
        """The numbers and notes behind the judgement, in words."""
        if math.isnan(self.agreement) or self.judgement == "identical":
            return " ".join(self.notes)
        limits = f"[{in_percent(self.low)}, {in_percent(self.high)}]"
        text = f"Agrees with the subject on {in_percent(self.agreement)} {limits} in distribution"
        if not math.isnan(self.recovered):
            text += (
                f", which recovers {100 * self.recovered:.0f}% "
                f"[{100 * self.recovered_low:.0f}%, {100 * self.recovered_high:.0f}%] of what "
                f"{'mean ablation' if self.ablation == MEAN_ABLATION else self.ablation} loses"
            )
        if self.shift is not None:
            change = "less" if self.gap >= 0 else "more"
            gap = "no interval" if math.isnan(self.gap_low) else f"gap {_points(self.gap_low, self.gap_high)}"
            text += f"; {abs(100 * self.gap):.1f} points {change} under {self.shift} ({gap}"
            counted = f"; {100 * self.per_sequence:+.1f} counted by sequence)"
            text += counted if abs(self.per_sequence - self.gap) >= SHOWN else ")"
        return " ".join((f"{text}.", *self._effect_in_words(), *self.notes))

    def _effect_in_words(self) -> Iterator[str]:
        if math.isnan(self.effect):
            return
        limits = f"[{in_percent(self.effect_low)}, {in_percent(self.effect_high)}]"
        text = f"It has {in_percent(self.effect)} {limits} of the subject's effect on the answer beyond {self.ablation}"
        if not math.isnan(self.effect_gap):
            change = "less" if self.effect_gap >= 0 else "more"
            gap = f"gap {_points(self.effect_gap_low, self.effect_gap_high)}"
            text += f"; {abs(100 * self.effect_gap):.1f} points {change} under {self.shift} ({gap})"
        yield f"{text}."

    @property
    def agrees(self) -> str:
        """The rate on iid with its interval, in per cent; empty where there is none."""
        if math.isnan(self.agreement):
            return ""
        limits = "" if math.isnan(self.low) else f" [{in_percent(self.low)}, {in_percent(self.high)}]"
        return f"{in_percent(self.agreement)}{limits}"

    @property
    def loses(self) -> str:
        """The gap that decided, in points with its interval, and its shift; empty where there is none."""
        if self.shift is None or math.isnan(self.gap):
            return ""
        limits = "" if math.isnan(self.gap_low) else f" {_points(self.gap_low, self.gap_high)}"
        return f"{100 * self.gap:+.1f}{limits} under {self.shift}"

    def __repr__(self) -> str:
        parts = (self.judgement, f"agrees {self.agrees}" if self.agrees else "", f"gap {self.loses}" * bool(self.loses))
        return visible(f"<Verdict {self.where}: {', '.join(filter(None, parts))}>")

    def __str__(self) -> str:
        return f"{self.where}: {self.judgement.upper()}. {self.why}"


class Verdicts(tuple[Verdict, ...]):
    """Verdicts that print as a table, in a terminal and in a notebook; a tuple in all else."""

    __slots__ = ()

    _HEADS = ("proxy", "site", "verdict", "agrees in distribution", "largest gap, in points")

    def __repr__(self) -> str:
        rows = [self._HEADS, *(tuple(map(visible, _row(verdict))) for verdict in self)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
        return "\n".join(lines) if self else "no verdicts"

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col">{text}</th>' for text in (*self._HEADS, "why"))
        rows = "".join(
            f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in (*_row(verdict), verdict.why))}</tr>"
            for verdict in self
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _row(verdict: Verdict) -> tuple[str, ...]:
    return (verdict.proxy, verdict.site, verdict.judgement, verdict.agrees, verdict.loses)


def check_shares(who: str, **values: float | None) -> None:
    """Raise AssayError unless every value is a share in [0, 1]; infinite ones and NaN are none."""
    for name, value in values.items():
        if value is None or not 0 <= value <= 1:
            raise AssayError(f"{who}({name}={value}): must be a share between 0 and 1.")


Required = Literal["faithful", "identical"]
"""What may be required of a verdict."""


@dataclass(frozen=True)
class Requirement:
    """What every proxy has to be: faithful (or identical), or identical. Raises AssayError for anything else."""

    judgement: str = "faithful"

    def __post_init__(self) -> None:
        if self.judgement not in get_args(Required):
            raise unknown_name("judgement to require", self.judgement, get_args(Required))

    def failing(self, verdicts: Sequence[Verdict]) -> list[Verdict]:
        """The verdicts that are not what is required."""
        enough = {"identical"} if self.judgement == "identical" else {"faithful", "identical"}
        return [verdict for verdict in verdicts if verdict.judgement not in enough]


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
    gap: float, low: float, high: float, p_holm: float, *, max_gap: float, level: float, noise: float
) -> Standing:
    """What a gap with its interval and adjusted p-value says of "at most `max_gap`"; NaN decides nothing."""
    if low > max_gap and p_holm < 1 - level and gap > noise:
        return "fails"
    return "holds" if high <= max_gap else "undecided"


SHOWN = 0.0005
"""Gaps that differ by less look the same; with one prediction a sequence they are the same."""

TOO_NEAR = 0.001
"""A share nearer to its bound than this takes hundreds of thousands of predictions to tell from it."""


def sequences_needed(
    sequences: int, value: float, low: float, high: float, bound: float, *, without_errors: bool
) -> int | None:
    """About how many sequences a split would tell a share from a bound, if rates stay as they are; None: too near.

    An interval shrinks with the square root of their number, one `without_errors` with the number itself. Two digits,
    upwards: an extrapolation is not worth more.
    """
    distance = abs(value - bound)
    if distance < TOO_NEAR or math.isnan(low):
        return None
    half = value - low if value > bound else high - value
    number = math.ceil(sequences * max(1.5, 1.1 * (half / distance) ** (1 if without_errors else 2)))
    unit: int = 10 ** max(len(str(number)) - 2, 0)
    return math.ceil(number / unit) * unit


@dataclass(frozen=True)
class Difference:
    """The largest absolute difference of a logit on any split (NaN: not measured), and that of changing nothing."""

    largest: float
    noise: float

    @property
    def note(self) -> str | None:
        """What the size of the difference says by itself."""
        if self.largest == 0:
            return "Not one logit differs at any position that was judged: there, nothing was changed."
        if self.largest <= self.noise:
            return (
                f"No logit differs by more than {self.largest:.1e}, which is within numerical noise: the order of the "
                f"arithmetic changes up to {self.noise:.1e}."
            )
        return None


@dataclass(frozen=True)
class Bar:
    """What is asked of a proxy: agreement in distribution, the largest gap, at which level, above which noise floor."""

    min_agreement: float
    max_gap: float
    level: float
    noise: float


def judge(
    agreement: pd.Series,
    gaps: pd.DataFrame,
    controls: pd.DataFrame,
    effects: pd.DataFrame,
    *,
    proxy: str,
    site: str,
    ablation: str | None,
    bar: Bar,
    sizes: Mapping[str, int],
    difference: Difference,
) -> Verdict:
    """Apply the rules (see `RULES`) to one proxy.

    `agreement` is its row of results on iid, `gaps` its rows of gaps, both of the primary metric and kind, `controls`
    its rows beside the controls, iid first, `effects` its rows of effects on the answer; `sizes` has the number of
    sequences by split. `p_holm` in the gaps is the adjusted test of the raw gap, `p_both` that of the larger of the two
    p-values.
    """
    value, low, high = float(agreement["estimate"]), float(agreement["low"]), float(agreement["high"])
    measured = gaps[gaps["gap"].notna()].sort_values("gap", ascending=False, kind="stable")
    worst = measured.iloc[0] if len(measured) else None
    better = measured[measured["high"] < 0]
    notes = [] if difference.note is None else [difference.note]
    if len(better):
        notes.append(f"More faithful under {', '.join(better['split'])} than in distribution.")
    standing = standing_of_agreement(low, high, bar.min_agreement)
    needed: list[int | None] = []
    judgement: Judgement = "inconclusive"
    if difference.largest == 0:
        judgement = "identical"
    elif math.isnan(low):
        notes.append(f"Nothing to go by in distribution: {agreement['reason'] or 'no interval'}.")
    elif bar.noise > bar.max_gap:
        notes.append(
            f"Changing nothing already flips {in_percent(bar.noise)} of the predictions (the noise floor), more than "
            f"the {100 * bar.max_gap:g} points to be told apart: compute in a wider dtype."
        )
    elif standing == "fails":
        judgement = "unfaithful"
    elif standing == "undecided":
        size = sizes[str(agreement["split"])]
        needed.append(sequences_needed(size, value, low, high, bar.min_agreement, without_errors=value == 1))
        notes.append(f"The interval in distribution contains the threshold {in_percent(bar.min_agreement)}.")
    elif worst is None:
        notes.append("No shift was measured.")
    else:
        judgement, worst, more, needed = _by_gaps(measured, gaps, bar, sizes, agreement=value)
        notes += more
    effect = _Effect.of(effects, str(agreement["split"]), None if worst is None else str(worst["split"]))
    judgement, more = effect.beside(judgement, bar)
    notes += more
    vacuous = [] if judgement == "identical" else list(_vacuous(controls, bar, ablation))
    if judgement == "faithful" and vacuous:
        judgement = "vacuous"
    notes += vacuous
    number = None if not needed or None in needed else max(size for size in needed if size is not None)
    if judgement == "inconclusive" and needed:
        notes.append(
            "Too near a threshold for any number of sequences to decide soon."
            if number is None
            else f"About {number:,} sequences a split would decide, if the rates stay as they are."
        )
    if worst is not None and _on_two_sides(worst["gap"], worst["per_sequence"], bar.max_gap):
        notes.append(
            f"Counted by prediction and by sequence, the gap under {worst['split']} is on two sides of "
            f"{100 * bar.max_gap:g} points: longer sequences differ from shorter ones."
        )
    recovered = controls.iloc[0] if len(controls) else None
    return Verdict(
        proxy=proxy,
        site=site,
        judgement=judgement,
        agreement=value,
        low=low,
        high=high,
        shift=None if worst is None else str(worst["split"]),
        **{
            name: math.nan if worst is None else float(worst[column])
            for name, column in (
                ("gap", "gap"),
                ("gap_low", "low"),
                ("gap_high", "high"),
                ("p_holm", "p_holm"),
                *((name, name) for name in ("per_sequence", "matched", "matched_low", "matched_high")),
            )
        },
        **{
            name: math.nan if recovered is None else float(recovered[name])
            for name in ("recovered", "recovered_low", "recovered_high")
        },
        ablation=ablation,
        **effect.numbers,
        needed=number,
        notes=tuple(notes),
    )


_NAN = (math.nan,) * 3


@dataclass(frozen=True)
class _Effect:
    """The share of the subject's effect on the answer on iid and its gaps by shift, (value, low, high) each."""

    share: tuple[float, ...]
    gaps: Mapping[str, tuple[float, ...]]
    shift: str | None

    @classmethod
    def of(cls, effects: pd.DataFrame, iid: str, shift: str | None) -> "_Effect":
        """From the rows of one proxy; `shift` is the one that its verdict is about."""
        share: tuple[float, ...] = _NAN
        gaps: dict[str, tuple[float, ...]] = {}
        for row in effects.to_dict("records"):
            if row["split"] == iid:
                share = tuple(float(row[f"effect{end}"]) for end in ("", "_low", "_high"))
            else:
                gaps[str(row["split"])] = tuple(float(row[f"gap{end}"]) for end in ("", "_low", "_high"))
        return cls(share, gaps, shift)

    @property
    def numbers(self) -> dict[str, float]:
        """What a verdict has of it."""
        names = [f"{name}{end}" for name in ("effect", "effect_gap") for end in ("", "_low", "_high")]
        return dict(zip(names, (*self.share, *self.gaps.get(self.shift or "", _NAN)), strict=True))

    def beside(self, judgement: Judgement, bar: Bar) -> tuple[Judgement, list[str]]:
        """A judgement by the primary metric with the effect beside it (rule 4), and what is to be said of that.

        Where the metric shows a gap and the effect does not, it says what would have been found by the effect alone.
        """
        _, low, high = self.share
        if judgement == "faithful" and high < bar.min_agreement:
            return "unfaithful", [
                "It would be faithful by its predictions, and is not by its effect on the answer (rule 4), which is "
                f"shown to be less than {in_percent(bar.min_agreement)} of the subject's."
            ]
        shown = any(least > bar.max_gap for _, least, _ in self.gaps.values())
        known = high >= bar.min_agreement and not math.isnan(self.gaps.get(self.shift or "", _NAN)[1])
        if judgement not in {"illusion", "gap"} or shown or not known:
            return judgement, []
        passes = low >= bar.min_agreement and all(most <= bar.max_gap for *_, most in self.gaps.values())
        found = "it would have passed" if passes else "no gap would have been shown"
        return judgement, [f"By its effect on the answer alone, which sees no tokens but answer and foils, {found}."]


def _on_two_sides(one: float, other: float, bound: float) -> bool:
    """Whether a bound lies between two numbers, both known and not the same to the digit that is shown."""
    return bool(abs(one - other) >= SHOWN and (one > bound) != (other > bound))


def _by_gaps(
    measured: pd.DataFrame, gaps: pd.DataFrame, bar: Bar, sizes: Mapping[str, int], *, agreement: float
) -> tuple[Judgement, pd.Series, list[str], list[int | None]]:
    """The judgement on a proxy that is faithful in distribution, the gap that decided, notes and sequences needed."""
    standings = pd.Series(
        [
            standing_of_gap(*numbers, max_gap=bar.max_gap, level=bar.level, noise=bar.noise)
            for numbers in measured[["gap", "low", "high", "p_holm"]].to_numpy(dtype=float).tolist()
        ],
        index=measured.index,
    )
    shown = measured[standings == "fails"]
    if len(shown):
        survives = shown[(shown["matched_low"] > bar.max_gap) & (shown["p_both"] < 1 - bar.level)]
        most = shown["overlap"] * shown["matched_high"].clip(lower=0) + shown["outside_high"]
        causes = [
            _cause(row, survives=index in survives.index, vanishes=bool(most[index] <= bar.max_gap), bar=bar)
            for index, row in shown.iterrows()
        ]
        if len(survives):
            return "illusion", survives.iloc[0], causes, []
        return "gap", shown.iloc[0], causes, []
    worst = measured.iloc[0]
    if bool((standings == "holds").all()) and len(measured) == len(gaps):
        return "faithful", worst, [], []
    notes = []
    without = measured[measured["low"].isna()]
    undecided = measured[(standings == "undecided") & measured["low"].notna()]
    missing = gaps[gaps["gap"].isna()]["split"]
    if len(undecided):
        notes.append(
            f"A gap above {100 * bar.max_gap:g} points is neither shown (Holm-adjusted) nor excluded under "
            f"{', '.join(undecided['split'])}."
        )
    if bool((undecided["gap"] <= bar.noise).any()) and bar.noise > 0:
        notes.append("Some of these gaps are within the noise floor.")
    if len(without):
        notes.append(
            f"No interval under {', '.join(without['split'])}: fewer than two different sequences there have such "
            "predictions; give more."
        )
    if len(missing):
        notes.append(f"Not measured under {', '.join(missing)}.")
    needed = [
        sequences_needed(
            sizes[str(row["split"])],
            float(row["gap"]),
            float(row["low"]),
            float(row["high"]),
            bar.max_gap,
            without_errors=agreement == 1 and row["gap"] == 0,
        )
        for _, row in undecided.iterrows()
    ]
    return "inconclusive", worst, notes, needed


def _vacuous(controls: pd.DataFrame, bar: Bar, ablation: str | None) -> Iterator[str]:
    """Why agreement explains nothing here, if it does not."""
    compared = controls[controls["beyond_control_low"].notna()]
    if len(compared) and not bool((compared["beyond_control_low"] > 0).any()):
        row = compared.iloc[0]
        yield (
            f"Not shown to be better than its control {row['control']} on any split (paired: "
            f"{100 * row['beyond_control']:+.1f} points "
            f"{_points(row['beyond_control_low'], row['beyond_control_high'])} on {row['split']})."
        )
    if len(controls) and controls.iloc[0]["ablated_high"] >= bar.min_agreement:
        row = controls.iloc[0]
        what = "The site is not shown to matter: with its mean in its place the model agrees with itself on"
        if ablation != MEAN_ABLATION:
            what = f"What it keeps is not shown to matter: {ablation} agrees with the subject on"
        low, high = (in_percent(row[f"ablated_{end}"]) for end in ("low", "high"))
        yield f"{what} {in_percent(row['ablated'])} [{low}, {high}]."


def _cause(row: pd.Series, *, survives: bool, vanishes: bool, bar: Bar) -> str:
    """What a shown gap is due to, in words."""
    if row["matched_reason"] == NO_MARGIN:
        return f"How much of the gap under {row['split']} is due to harder inputs is not known: {NO_MARGIN}."
    if math.isnan(row["matched"]):
        return (
            f"The cause of the gap under {row['split']} is open: it could not be compared at equal margin "
            f"({row['matched_reason']})."
        )
    change = f"{100 * row['matched']:+.1f} points {_points(row['matched_low'], row['matched_high'])}"
    if survives:
        return f"The gap under {row['split']} is not due to harder inputs: at equal margin of the subject {change}."
    if vanishes:
        return (
            f"The gap under {row['split']} is due to the inputs' difficulty, not to the explanation: at equal margin "
            f"of the subject {change}."
        )
    text = f"Whether the gap under {row['split']} is due to harder inputs is open: at equal margin {change}"
    if row["matched_high"] > bar.max_gap:
        text += f", not shown to be above {100 * bar.max_gap:g} points when all are tested"
    if row["outside"] > 0:
        text += (
            f", and {100 * row['outside']:.1f} points {_points(row['outside_low'], row['outside_high'])} may come from "
            f"the {100 * (1 - row['overlap']):.0f}% of its predictions that have a margin that too few on iid have"
        )
    return f"{text}."
