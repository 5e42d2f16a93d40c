"""What the page says in words: the finding, what was done, and why each verdict is what it is. No number is new."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import pandas as pd
from markupsafe import Markup

from assay.faithfulness import MEAN_ABLATION, Comparison, Judgement, Verdict
from assay.reports._tables import percent

SEVERITY: tuple[Judgement, ...] = (
    "illusion", "gap", "inconclusive", "unfaithful", "vacuous", "faithful", "identical",
)  # fmt: skip
"""All judgements, those first that could mislead a reader most: what is open may still be either."""

HEADLINE, PARAGRAPH, REASON = 115, 80, 120
"""So many characters has the finding at most, so many words the paragraph, so many characters a reason."""

_PREDICATES = {
    "same_prediction": ("match the full model", "matches the full model"),
    "same_neighbour": ("find the full model's neighbours", "finds the full model's neighbours"),
}
"""What a simplification does that agrees, by what verdicts rest on: many of them, one of them."""

_ASKED = {"same_prediction": "the same prediction as the full model", "same_neighbour": "the same nearest neighbour"}

_DESCRIPTION = 14
"""So many words of the description of a split or kind are in the paragraph; the key has all."""


def by_severity(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """The verdicts, those first that could mislead most: by judgement, then by what is lost.

    The unfaithful are sorted by their agreement: the more they agree, the sooner are they believed.
    """

    def place(verdict: Verdict) -> tuple[int, float]:
        size = verdict.agreement if verdict.judgement == "unfaithful" else verdict.gap
        return SEVERITY.index(verdict.judgement), math.inf if math.isnan(size) else -size

    return sorted(verdicts, key=place)


def tally(verdicts: Iterable[Verdict]) -> list[tuple[Judgement, int]]:
    """How many verdicts there are of each sort, those that could mislead most first."""
    counted = Counter(verdict.judgement for verdict in verdicts)
    return [(judgement, counted[judgement]) for judgement in SEVERITY if counted[judgement]]


def clipped(text: str, most: int) -> str:
    """A text of at most so many characters, cut behind a word."""
    if len(text) <= most:
        return text
    return re.sub(r"[\s,;:(]*\S*$", "", text[:most]) + "…"


def in_words(text: str, labels: Mapping[str, str]) -> str:
    """Sentences about splits ("… under unseen_depth.") with what `labels` has in place of their names."""
    if not labels:
        return text
    name = "|".join(re.escape(one) for one in sorted(labels, key=len, reverse=True))
    listed = rf"\b(under|on) ((?:{name})(?:, (?:{name}))*)(?!\w)"
    return re.sub(listed, lambda found: f"{found[1]} {', '.join(labels[one] for one in found[2].split(', '))}", text)


def shift_labels(comparison: Comparison) -> dict[str, str]:
    """What sentences call the shifts, by their names."""
    labels = comparison.split_labels
    return {name: labels[name] for name in comparison.shifts}


def _first_words(text: str) -> str:
    words = text.split()
    return text if len(words) <= _DESCRIPTION else " ".join(words[:_DESCRIPTION]).rstrip(",;:") + " …"


def points_of(value: float) -> str:
    """A difference of two rates in points; the sign of less is a minus, and nothing has none."""
    text = f"{100 * value:.1f}"
    return "0.0" if text == "-0.0" else text.replace("-", "\N{MINUS SIGN}")


def _between(low: float, high: float) -> str:
    return f"[{points_of(low)}, {points_of(high)}]"


def _of(many: Sequence[Verdict], all_of: int) -> str:
    """So many of a number that was just named."""
    if len(many) == all_of:
        return "both" if all_of == 2 else f"all {all_of}"
    return f"{len(many)} of {all_of}"


def finding(comparison: Comparison) -> str:
    """The finding in one sentence of at most `HEADLINE` characters."""
    verdicts = comparison.verdicts()
    settings, noise = comparison.record.settings, comparison.record.noise_floor.flipped
    if not verdicts:
        return "No simplification was judged"
    if noise > settings["max_gap"]:
        return f"Nothing can be told: changing nothing already flips {percent(noise)}% of the predictions"
    alike = [verdict for verdict in verdicts if verdict.judgement == "identical" or verdict.low >= _asked(comparison)]
    start = _start(comparison, verdicts, alike)
    if not alike:
        return start
    return clipped(f"{start}{_under_shifts(comparison, alike, HEADLINE - len(start))}", HEADLINE)


def _asked(comparison: Comparison) -> float:
    return float(comparison.record.settings["min_agreement"])


def _start(comparison: Comparison, verdicts: Sequence[Verdict], alike: Sequence[Verdict]) -> str:  # noqa: PLR0911  (one a case)
    """Who agrees with the subject in distribution."""
    metric = comparison.record.primary_metric
    named = clipped(metric.replace("_", " "), 16)
    many, one = _PREDICATES.get(metric, (f"match the full model by {named}", f"matches the full model by {named}"))
    number = len(verdicts)
    open_still = sum(verdict.judgement == "inconclusive" for verdict in verdicts)
    if number == 1:
        [verdict] = verdicts
        name = verdict.proxy if len(verdict.proxy) <= 24 else "The simplification"
        if alike:
            return f"{name} {one} on familiar inputs"
        if open_still:
            return f"Whether {name[:1].lower() + name[1:] if ' ' in name else name} {one} is open, on familiar inputs"
        return f"{name} does not {many}, even on familiar inputs"
    if not alike:
        if open_still:
            return (
                f"None of {number} simplifications is shown to {many} on familiar inputs; "
                f"{'all' if open_still == number else open_still} {'is' if open_still == 1 else 'are'} undecided"
            )
        return f"None of {number} simplifications {one}, even on familiar inputs"
    if len(alike) == number:
        return f"{'Both' if number == 2 else f'All {number}'} simplifications {many} on familiar inputs"
    return f"{len(alike)} of {number} simplifications {one if len(alike) == 1 else many} on familiar inputs"


def _under_shifts(comparison: Comparison, alike: Sequence[Verdict], room: int) -> str:
    """What becomes of those that agree in distribution, under the shifts."""
    shifts, number = comparison.shifts, len(alike)
    if not shifts:
        return "; no shift was measured"
    lost = [verdict for verdict in alike if verdict.judgement in {"illusion", "gap"}]
    if lost:
        does = "it loses" if number == 1 else f"{_of(lost, number)} {'loses' if len(lost) == 1 else 'lose'}"
        end = f", {does} over {100 * comparison.record.settings['max_gap']:g} points"
        return f"; {_where(comparison, lost, room - len(end) - 2)}{end}"
    undecided = [verdict for verdict in alike if verdict.judgement == "inconclusive"]
    if undecided:
        left = "this" if number == 1 else _of(undecided, number)
        return f"; under shifts, {left} {'is' if len(undecided) == 1 else 'are'} undecided"
    under = "the shift" if len(shifts) == 1 else "both shifts" if len(shifts) == 2 else f"all {len(shifts)} shifts"
    end = f", and under {under}"
    vacuous = [verdict for verdict in alike if verdict.judgement == "vacuous"]
    if vacuous:
        end += "; that explains nothing" if number == 1 else f"; {_of(vacuous, number)} vacuously"
    other = [verdict for verdict in alike if verdict.judgement == "unfaithful"]
    if other:
        who = "it" if number == 1 else _of(other, number)
        end += f"; by effect, {who} {'fails' if len(other) == 1 else 'fail'}"
    return end


def _where(comparison: Comparison, lost: Sequence[Verdict], room: int) -> str:
    """Under which shift something is lost, as clear as there is room for."""
    names = {verdict.shift for verdict in lost}
    if len(names) > 1:
        return "under shifts"
    [name] = names
    shift = next(split for split in comparison.record.splits if split.name == name)
    called = comparison.split_labels[shift.name]
    for text in (f"under a shift ({shift.description})", f"under {called if shift.label else f'“{called}”'}"):
        if len(text) <= room:
            return text
    return "under a shift"


def paragraph(comparison: Comparison) -> Markup:
    """What was simplified, judged on what, with what result, in at most `PARAGRAPH` words."""
    found = Markup("")
    for sentence in _sentences(comparison):
        longer = Markup("{} {}").format(found, sentence) if found else sentence
        if len(longer.striptags().split()) <= PARAGRAPH:
            found = longer
    return found


def _sentences(comparison: Comparison) -> Iterator[Markup]:
    record, verdicts = comparison.record, comparison.verdicts()
    subjects = [subject for subject in record.subjects if subject["trained"]]
    subject = (subjects or record.subjects)[0]
    what = f"{subject['architecture']}, {subject['parameters']:,} parameters"
    if len(subjects) > 1:
        what += f", {len(subjects)} training seeds"
    sites = list(dict.fromkeys(verdict.site for verdict in verdicts))
    if sites == ["model"]:
        start = "{} stands in for <b>{}</b> ({})." if len(verdicts) == 1 else "{} stand in for <b>{}</b> ({})."
        who = "1 other, simpler model" if len(verdicts) == 1 else f"{len(verdicts)} other, simpler models"
        yield Markup(start).format(who, subject["name"], what)
    else:
        where = Markup("<code>{}</code>").format(sites[0]) if len(sites) == 1 else f"{len(sites)} sites"
        verb = "simplification stands" if len(verdicts) == 1 else "simplifications stand"
        yield Markup("{} {} in for {} of <b>{}</b> ({}).").format(len(verdicts), verb, where, subject["name"], what)
    yield _judged_on(comparison)
    familiar = next(split for split in record.splits if split.role == "iid")
    yield Markup("Familiar: {} (<code>{}</code>).").format(_first_words(familiar.description), familiar.name)
    yield _tally(comparison)
    worst = worst_shift(verdicts)
    if worst is not None:
        described = next(split.description for split in record.splits if split.name == worst)
        one = "The shift" if len(comparison.shifts) == 1 else f"The worst of {len(comparison.shifts)} shifts"
        yield Markup("{}: {} (<code>{}</code>).").format(one, _first_words(described), worst)
    elif not comparison.shifts:
        yield Markup("No shift was measured, so what holds elsewhere is not known.")


def _judged_on(comparison: Comparison) -> Markup:
    """What was compared, on which predictions."""
    record = comparison.record
    described = {metric.name: metric.description for metric in record.metrics}
    asked = _ASKED.get(record.primary_metric) or described.get(record.primary_metric, record.primary_metric)
    kinds = {kind.name: kind.description for kind in record.kinds}
    size = max(split.sequences for split in record.splits if split.role != "train")
    if record.primary_kind not in kinds:
        where = Markup("") if record.primary_metric == "same_neighbour" else Markup(", on every prediction")
    else:
        kind = record.primary_kind
        where = Markup(", where it predicts: {} (<code>{}</code>)").format(_first_words(kinds[kind]), kind)
    return Markup("Asked: {}{}; {:,} sequences a split.").format(asked, where, size)


def _tally(comparison: Comparison) -> Markup:
    """How many verdicts there are of each sort."""
    parts = [f"{number} {judgement}" for judgement, number in tally(comparison.verdicts())]
    return Markup('Verdicts (<a href="#rules">what they mean</a>): {}.').format(", ".join(parts) or "none")


def worst_shift(verdicts: Sequence[Verdict]) -> str | None:
    """The shift that most verdicts speak of, those that could mislead most before others; None without shifts."""
    counted: Counter[str] = Counter()
    for judgement in SEVERITY:
        counted.update(
            verdict.shift for verdict in verdicts if verdict.judgement == judgement and verdict.shift is not None
        )
        if counted:
            return counted.most_common(1)[0][0]
    return None


def reason(comparison: Comparison, verdict: Verdict, gaps: pd.DataFrame) -> str:
    """Why a verdict is what it is, in at most `REASON` characters; `gaps` are the rows of its proxy."""
    return clipped(in_words(_reason(comparison, verdict, gaps), shift_labels(comparison)), REASON)


def _reason(comparison: Comparison, verdict: Verdict, gaps: pd.DataFrame) -> str:  # noqa: PLR0911  (one a judgement)
    asked, most = _asked(comparison), float(comparison.record.settings["max_gap"])
    needed = f"{100 * asked:g} needed."
    familiar = f"{percent(verdict.agreement)}% like training [{percent(verdict.low)}, {percent(verdict.high)}]"
    match verdict.judgement:
        case "illusion" | "gap":
            return _of_loss(verdict, gaps)
        case "unfaithful":
            if verdict.low >= asked:
                effect = f"[{percent(verdict.effect_low)}, {percent(verdict.effect_high)}]"
                return f"Only {percent(verdict.effect)}% {effect} of the effect on the answer; {needed}"
            worse = any(note.startswith("Not shown to be better than its control") for note in verdict.notes)
            return f"{familiar}; {needed}{' Not shown to beat its control.' if worse else ''}"
        case "inconclusive":
            return _of_doubt(verdict, familiar, asked, most, gaps)
        case "identical":
            return "Not one logit differs at any position that was judged, on any split."
    excluded = f"No shift loses more than {points_of(gaps['high'].max())} points"
    if verdict.judgement == "faithful":
        return f"{excluded}; {familiar}."
    if any(note.startswith("Not shown to be better than its control") for note in verdict.notes):
        return f"{excluded}, but it is not shown to be better than its control: that explains nothing."
    ablated = "its mean" if verdict.ablation == MEAN_ABLATION else verdict.ablation
    return f"{excluded}, but {ablated} in its place does about as well: that explains nothing."


def _of_loss(verdict: Verdict, gaps: pd.DataFrame) -> str:
    """A shown gap: how large, and what of it harder inputs explain."""
    text = f"Loses {points_of(verdict.gap)} points {_between(verdict.gap_low, verdict.gap_high)}"
    text += f" under {verdict.shift}"
    if math.isnan(verdict.matched):
        return f"{text}; cause open: not comparable at equal margin."
    matched = f"{points_of(verdict.matched)} at equal margin"
    if verdict.judgement == "illusion":
        return f"{text}; {matched}, so not because inputs are harder."
    if any(f"under {verdict.shift} is due to the inputs' difficulty" in note for note in verdict.notes):
        return f"{text}; {matched}: the inputs are harder."
    unmatched = 1 - float(gaps.set_index("split")["overlap"][verdict.shift])
    return f"{text}; cause open: {matched}, {100 * unmatched:.0f}% unmatched."


def _of_doubt(verdict: Verdict, familiar: str, asked: float, most: float, gaps: pd.DataFrame) -> str:
    """What cannot be excluded, and what would decide."""
    if math.isnan(verdict.low):
        return verdict.notes[0] if verdict.notes else "Nothing to go by in distribution."
    decide = "" if verdict.needed is None else f" About {verdict.needed:,} sequences a split would decide."
    if verdict.low < asked <= verdict.high:
        return f"{familiar}: {100 * asked:g} may be met or not.{decide}"
    if not gaps["gap"].notna().any():
        return f"{familiar}, and no shift was measured."
    # The shift whose limit reaches furthest, which need not be the one of the largest gap.
    widest = gaps.loc[gaps["high"].idxmax()] if gaps["high"].notna().any() else None
    if widest is None or not widest["high"] > most:
        return next(iter(verdict.notes), familiar)
    return f"Cannot exclude a loss of {points_of(widest['high'])} points under {widest['split']}.{decide}"
