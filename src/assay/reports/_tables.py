"""Tables of a comparison: for the terminal and as Markdown, from the same rows."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pandas as pd
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from assay._errors import AssayError
from assay._files import try_file, write_atomically
from assay._terminal import styled, visible
from assay.faithfulness import MEAN_ABLATION, Comparison, Judgement, Verdict
from assay.reports._illustrations import Illustrations, TableView

JUDGEMENT_STYLE: dict[Judgement, str] = {
    "illusion": "bold red",
    "gap": "magenta",
    "unfaithful": "yellow",
    "inconclusive": "cyan",
    "vacuous": "blue",
    "faithful": "green",
    "identical": "bold cyan",
}

MEANING: dict[Judgement, str] = {
    "illusion": "holds in distribution and not under a shift, beyond what harder inputs explain",
    "gap": "holds in distribution and less under a shift, whose inputs may just be harder",
    "unfaithful": "does not do what the subject does even in distribution",
    "inconclusive": "is not decided",
    "vacuous": "would be faithful, but its control agrees as much or the site hardly matters: that explains nothing",
    "faithful": "holds in distribution and under every shift that was measured, and is better than its control",
    "identical": "not one logit differs from the subject's at any position that was judged",
}
"""What each judgement says, in a few words."""

Interval = tuple[float, float, float]
"""An estimate with its limits; NaN for what was not measured."""

NOTHING: Interval = (math.nan,) * 3

_ASKS = {
    "RandomProjection": "is it these directions, or would any as many do?",
    "SVD": "would the directions of most variance, as many, do as well?",
    "RandomDictionary": "is it these features, or would any as many do?",
    "RandomFeatures": "is it these features, or would as many others of each layer do?",
    "RandomCircuit": "is it these edges, or would any of this number and shape do?",
    "RandomValueVectors": "is it these neurons, or would any as many do?",
    "RandomMask": "does it matter which weights are left out?",
    "RandomFactors": "is it these directions of the weights, or would any as many do?",
    "NoiseWeights": "does it matter how weights are moved, or only how far?",
    "NGram": "does it know more than how frequent each token is?",
    "RuleSurrogate": "does it know more than the most frequent prediction?",
    "UniformAttention": "does it matter where it attends?",
    "MeanAblation": "does the site matter at all?",
    "RandomPerturbation": "does it matter which information is lost, or only how much?",
    "Identity": "how much is numerical noise?",
}
"""What each control controls."""


@dataclass(frozen=True)
class Line:
    """A row of the main table: a proxy at a site and its rates on each split.

    `group` is the heading that it stands under, `recovered` the share of what mean ablation of the site loses in
    distribution that a simplification recovers (NaN for controls).
    """

    proxy: str
    group: str
    is_control: bool
    rates: tuple[Interval, ...]
    recovered: Interval
    judgement: Judgement | None


def lines(comparison: Comparison) -> Iterator[Line]:
    """The main table: same prediction on the primary kind by split; controls below, then shuffled copies.

    Perturbations of equal size stand in the second table, beside what they are compared with.
    """
    splits = evaluation_splits(comparison)
    judged = {(verdict.proxy, verdict.site): verdict for verdict in comparison.verdicts()}
    perturbations = {(proxy.perturbation, proxy.site) for proxy in comparison.record.proxies}
    for trained in (True, False):
        tables = {split: comparison.agreement(split, trained=trained).set_index(["proxy", "site"]) for split in splits}
        for proxy in comparison.record.proxies:
            key = (proxy.proxy, proxy.site)
            found = [table.loc[key] if key in table.index else None for table in tables.values()]
            if key in perturbations or all(row is None for row in found):
                continue
            rates = tuple(
                NOTHING if row is None else (float(row["estimate"]), float(row["low"]), float(row["high"]))
                for row in found
            )
            what = "" if trained and not proxy.is_control else ", controls" if trained else ", shuffled copy"
            verdict = judged.get(key) if trained else None
            yield Line(
                proxy=proxy.proxy,
                group=f"at {proxy.site}{what}",
                is_control=proxy.is_control or not trained,
                rates=rates,
                recovered=(
                    NOTHING if verdict is None else (verdict.recovered, verdict.recovered_low, verdict.recovered_high)
                ),
                judgement=None if verdict is None else verdict.judgement,
            )


RECOVERS = "Recovers: how much of what mean ablation of the site loses in distribution. What each control asks:"


def controls_asked(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """What each control of a comparison controls: its name, with how often it was drawn, and the question."""
    record = comparison.record
    draws: dict[str, int] = {}
    for proxy in record.proxies:
        if proxy.is_control:
            draws.setdefault(proxy.proxy.partition("(")[0], proxy.draws)
    for name, question in _ASKS.items():
        if name in draws:
            yield f"{name} ({draws[name]} draws)" if draws[name] > 1 else name, question
    for own in dict.fromkeys(proxy.ablation for proxy in record.proxies if not proxy.is_control):
        if own is not None and own != MEAN_ABLATION:
            yield own, "what is there to recover, in place of what mean ablation loses?"
    if not all(subject["trained"] for subject in record.subjects):
        yield "Shuffled copy (every matrix with its entries in random order)", "would it hold if nothing were learned?"


def detectable_words(comparison: Comparison) -> str:
    """The smallest gap that can be shown, by shift, in one sentence; nothing where no gap was measured."""
    found = ", ".join(f"{100 * gap:.1f} under {shift}" for shift, gap in comparison.detectable().items())
    return f"About the smallest gaps that these data can show to be too large, in points: {found}." if found else ""


@dataclass(frozen=True)
class Cause:
    """A row of the second table: what the gap of a proxy under a shift is made of.

    `raw` is the gap itself, `per_sequence` the same with every sequence counting once, `matched` at equal margin of the
    subject (`effective` predictions on iid count, `overlap` of the shift's could be compared), `perturbed` that of a
    random perturbation of equal size, `removed` and `remaining` the parts that refitting on the shift takes away and
    leaves. NaN where not measured.
    """

    proxy: str
    site: str
    shift: str
    raw: Interval
    per_sequence: Interval
    matched: Interval
    effective: float
    overlap: Interval
    perturbed: Interval
    removed: Interval
    remaining: Interval
    deciding: bool

    @property
    def before(self) -> tuple[Interval, ...]:
        """What stands before the number of predictions that the matched gap rests on, with it the last."""
        return self.raw, self.per_sequence, self.matched

    @property
    def behind(self) -> tuple[Interval, ...]:
        """What stands behind it."""
        return self.perturbed, self.removed, self.remaining


CAUSES = (
    "gap", "by sequence", "at equal margin", "n (of shift)", "random, equal size", "refit removes", "refit leaves",
)  # fmt: skip
"""Headings of the second table: of `Cause.before`, `worth` and `Cause.behind`."""


_PARTS = ("per_sequence", "matched", "overlap", "perturbed", "removed", "remaining")


def causes(comparison: Comparison) -> Iterator[Cause]:
    """The second table, a row a simplification and shift; `deciding` marks the shift that a verdict speaks of."""
    decided = {(verdict.proxy, verdict.site): verdict.shift for verdict in comparison.verdicts()}
    gaps = comparison.gaps()
    for row in gaps[gaps["trained"].astype(bool) & ~gaps["is_control"].astype(bool)].to_dict("records"):
        parts: dict[str, Interval] = {
            part: (float(row[part]), float(row[f"{part}_low"]), float(row[f"{part}_high"])) for part in _PARTS
        }
        yield Cause(
            proxy=str(row["proxy"]),
            site=str(row["site"]),
            shift=str(row["split"]),
            raw=(float(row["gap"]), float(row["low"]), float(row["high"])),
            effective=float(row["effective"]),
            **parts,
            deciding=decided[str(row["proxy"]), str(row["site"])] == row["split"],
        )


def effects_table(comparison: Comparison, *, whole: bool, labels: Mapping[str, str] | None = None) -> list[TableView]:
    """The effect on the answer, a row a proxy and split of pairs; no table where there is none.

    Only as a `whole` it has the controls and the gap on iid's scale: the terminal is too narrow for them. Splits are
    called by their names, or what `labels` has for them.
    """
    frame = comparison.effects()
    frame = frame if whole else frame[~frame["is_control"].astype(bool)]
    if not len(frame):
        return []
    sites = frame["site"].nunique() > 1
    called = {split: split for split in evaluation_splits(comparison)} | dict(labels or {})
    gaps = {"gap": "gap", "gap, iid scale": "gap_iid_scale"} if whole else {"gap": "gap"}
    rows = []
    for row in frame.to_dict("records"):
        cells = [(row["proxy"], f"{called[row['split']]} at {row['site']}" if sites else called[row["split"]])]
        cells += [(_logits(row[f"{model}_difference"]), "") for model in ("subject", "proxy", "ablated")]
        for name in ("effect", "deviation"):
            cells.append((_share(row[name]), limits(row[f"{name}_low"], row[f"{name}_high"])))
        for name in gaps.values():
            cells.append((points(row[name]), point_limits(row[f"{name}_low"], row[f"{name}_high"])))
        rows.append([(text, "" if small == "–" else small) for text, small in cells])
    why = frame[frame["reason"].notna()][["split", "reason"]].drop_duplicates().itertuples(index=False)
    return [
        TableView(
            title="Effect on the answer",
            note=(EFFECTS + IID_SCALE if whole else EFFECTS)
            + "".join(f" No share of some proxies on {called[split]}: {reason}." for split, reason in why),
            headings=["proxy, split", "m(M)", "m(C)", "m(∅)", "effect", "deviation", *gaps],
            rows=rows,
        )
    ]


EFFECTS = (
    "m: logit of the answer minus the mean of its foils', by the subject M, the proxy C and the ablated model ∅. "
    "Effect: the share (%) of what the subject does beyond the ablated model that the proxy does, "
    "(m(C) - m(∅)) / (m(M) - m(∅)); errors of opposite sign cancel. Deviation (%): mean |C - M| / mean |∅ - M|, in "
    "which they do not. Gap (points): by how much the effect is less than on iid, each on the scale of its own split."
)
IID_SCALE = " On the iid scale: how many logits more are lost than on iid, in points of m(M) - m(∅) there."


def _logits(value: float) -> str:
    """A difference of logits; an en dash where it was not measured."""
    return "–" if math.isnan(value) else f"{value:.2f}"


def _share(value: float) -> str:
    """A share that may be anything, in per cent; an en dash where it was not measured."""
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def points(value: float) -> str:
    """A difference of two rates in points, with its sign; an en dash where it was not measured."""
    return "–" if math.isnan(value) else f"{100 * value:+.1f}"


def point_limits(low: float, high: float) -> str:
    """An interval in points."""
    return "–" if math.isnan(low) else f"{points(low)} {points(high)}"


def worth(cause: Cause) -> str:
    """How many predictions the matched gap rests on, and of which share of the shift's it speaks."""
    return "–" if math.isnan(cause.matched[0]) else f"{cause.effective:,.0f} ({100 * cause.overlap[0]:.0f}%)"


def evaluation_splits(comparison: Comparison) -> list[str]:
    """The names of iid and the shifts."""
    return [split.name for split in comparison.record.splits if split.role != "train"]


def percent(value: float) -> str:
    """A share as a percentage with one decimal (100 only if it is all); an en dash where it was not measured."""
    if math.isnan(value):
        return "–"
    return "100" if value == 1 else ">99.9" if 0.9995 <= value < 1 else f"{100 * value:.1f}"


def limits(low: float, high: float) -> str:
    """A confidence interval in per cent, as short as one decimal allows; its ends are rounded as `percent` does."""
    if math.isnan(low):
        return "–"
    ends = [percent(low), percent(high)]
    return (" to " if low < 0 or ">" in ends[1] else "–").join(ends)


_AGREEMENT = {
    "same_prediction": "Same prediction as the subject",
    "same_neighbour": "Same nearest neighbour as by the subject's embeddings",
}


def agreement_words(comparison: Comparison) -> str:
    """What the verdicts rest on, in a few words."""
    record = comparison.record
    described = {metric.name: metric.description for metric in record.metrics}
    return _AGREEMENT.get(record.primary_metric, described.get(record.primary_metric, record.primary_metric))


def on_what(comparison: Comparison) -> str:
    """Which predictions the verdicts are about, to be put behind `agreement_words`; nothing for embeddings."""
    record = comparison.record
    if record.primary_metric == "same_neighbour":
        return ""
    return f" on {record.primary_kind} predictions"


def subject_accuracy(comparison: Comparison) -> pd.DataFrame:
    """The subject's accuracy on the primary kind, one row a split."""
    frame = comparison.results
    chosen = (
        (frame["metric"] == "subject_accuracy")
        & (frame["kind"] == comparison.record.primary_kind)
        & (frame["feature"] == "")
        & frame["trained"]
    )
    return frame[chosen].drop_duplicates("split").set_index("split")


@dataclass(frozen=True)
class _Agreement:
    """The main table; where the terminal is narrow, several, each with as many splits as fit.

    What a simplification recovers stands below its name: a column of its own would not fit beside five splits.
    """

    comparison: Comparison

    NAME: ClassVar[int] = 25

    @property
    def width(self) -> int:
        """That of a split's column: an interval, and every word of the names."""
        return max(9, _longest(word for split in evaluation_splits(self.comparison) for word in split.split("_")))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        splits = evaluation_splits(self.comparison)
        fitting = max(1, (options.max_width - self.NAME) // (self.width + 1))
        parts = math.ceil(len(splits) / fitting)
        for part in range(parts):
            columns = slice(part * len(splits) // parts, (part + 1) * len(splits) // parts)
            yield self._table(splits, columns, titled=part == 0)
            yield Text()

    def _table(self, splits: Sequence[str], columns: slice, *, titled: bool) -> Table:
        table = Table(
            title=_title(f"{agreement_words(self.comparison)}{on_what(self.comparison)} (%, interval below)")
            if titled
            else None,
            title_justify="left",
            box=None,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        table.add_column("proxy", min_width=self.NAME)
        for split in splits[columns]:
            table.add_column(styled(split.replace("_", " ")), justify="right", width=self.width)
        accuracy = subject_accuracy(self.comparison)
        if len(accuracy):
            rates = [accuracy["estimate"].get(split, math.nan) for split in splits[columns]]
            table.add_row(Text("accuracy of subject", style="italic"), *map(percent, rates))
        group = None
        for line in lines(self.comparison):
            if line.group != group:
                table.add_section()
                table.add_row(styled((line.group, "bold")))
                group = line.group
            shown = line.rates[columns]
            if line.is_control:
                table.add_row(styled((line.proxy, "dim")), *(Text(percent(rate[0]), style="dim") for rate in shown))
                continue
            style = JUDGEMENT_STYLE[line.judgement] if line.judgement else ""
            cells = [
                Text(percent(value), style=style) + Text(f"\n{limits(low, high)}", style="dim")
                for value, low, high in shown
            ]
            value, low, high = line.recovered
            below = "" if math.isnan(value) else f"\nrecovers {percent(value)} ({limits(low, high)})"
            table.add_row(styled((line.proxy, style)) + Text(below, style="dim"), *cells)
        return table


def terminal(comparison: Comparison) -> RenderableType:
    """The tables, what to know beforehand, and the verdicts, for a terminal."""
    asked = [f"{name}: {question}" for name, question in controls_asked(comparison)]
    return Group(
        _Agreement(comparison),
        *(styled((text, "dim")) for text in ([RECOVERS, *asked, ""] if asked else [])),
        *_causes(comparison),
        *_blank_after(map(terminal_table, effects_table(comparison, whole=False))),
        *(styled(("Warning: ", "bold yellow"), warning) for warning in comparison.warnings()),
        *(_verdict(verdict) for verdict in comparison.verdicts()),
        Text(),
        styled((detectable_words(comparison), "dim")),
        _floor(comparison),
    )


def _blank_after(tables: Iterable[RenderableType]) -> Iterator[RenderableType]:
    for table in tables:
        yield table
        yield Text()


def _causes(comparison: Comparison) -> Iterator[RenderableType]:
    """The second table for the shift that each verdict speaks of."""
    rows = [cause for cause in causes(comparison) if cause.deciding]
    if not rows:
        return
    table = Table(
        title="What the largest gaps are made of (points, interval below)",
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("proxy, shift", min_width=22)
    for heading in CAUSES:
        table.add_column(heading, justify="right", width=max(6, *map(len, heading.split())))
    site = None
    for row in rows:
        if row.site != site:
            table.add_section()
            table.add_row(styled((f"at {row.site}", "bold")))
            site = row.site
        before, behind = (
            [
                Text(points(value)) + Text("" if math.isnan(low) else f"\n{points(low)}\n{points(high)}", style="dim")
                for value, low, high in parts
            ]
            for parts in (row.before, row.behind)
        )
        name = _below(row.proxy, row.shift)
        table.add_row(name, *before, Text(worth(row).replace(" ", "\n")), *behind)
    yield table
    yield Text()


def terminal_table(view: TableView) -> RenderableType:
    """A table of a study, for a terminal."""
    note = styled((view.note, "table.caption"))
    table = Table(title=_title(view.title), title_justify="left", caption=note, caption_justify="left", box=None,
                  pad_edge=False, padding=(0, 1, 0, 0))  # fmt: skip
    for number, heading in enumerate(view.headings):
        if number:
            # As wide as its cells, and its heading folds at words.
            parts = [*heading.split(), *(part for row in view.rows for part in row[number])]
            table.add_column(styled(heading), justify="right", overflow="fold", max_width=_longest(parts))
        else:
            words = [word for row in view.rows for word in row[0][0].replace("_", " ").split()]
            table.add_column(styled(heading), overflow="fold", min_width=min(14, _longest(words)))
    for (name, below), *rest in view.rows:
        cells = [(name.replace("_", " "), below), *rest]
        table.add_row(*(_below(text, small) for text, small in cells))
    return table


def _title(text: str) -> Text:
    return styled((text, "table.title"))


def _below(text: str, small: str) -> Text:
    """A cell of a table, with what stands below in a line of its own."""
    return styled(text) + Text("\n" if small else "") + styled((small, "dim"))


def _longest(words: Iterable[str]) -> int:
    """The width of the longest word as it is shown; 1 where there is none."""
    return max((len(visible(word)) for word in words), default=1)


def markdown_table(view: TableView) -> str:
    """A table of a study as Markdown, with its title and note above."""
    rows = ["| " + " | ".join(view.headings) + " |", "|" + "---|" * len(view.headings)]
    rows += [
        "| " + " | ".join(f"{text} ({small})" if small else text for text, small in row) + " |" for row in view.rows
    ]
    title = view.title if view.title.endswith("?") else f"{view.title}."
    return "\n".join(["", f"**{title}** {view.note}".strip(), "", *rows]) + "\n"


def _verdict(verdict: Verdict) -> Text:
    word = (verdict.judgement.upper(), JUDGEMENT_STYLE[verdict.judgement])
    return styled((verdict.where, "bold"), ": ", word, f". {verdict.why}")


def _floor(comparison: Comparison) -> Text:
    noise = comparison.record.noise_floor
    return Text(
        f"Noise floor: changing nothing moves a logit by at most {noise.logit_difference:.1e} "
        f"({noise.logit_difference_as_loaded:.1e} from the subject as it was loaded) and flips "
        f"{100 * noise.flipped:.3g}% of {'predictions' if on_what(comparison) else 'nearest neighbours'}.",
        style="dim",
    )


def markdown(comparison: Comparison) -> str:
    """The tables as Markdown, percentages with intervals, and the notes below them."""
    splits = evaluation_splits(comparison)
    head = ["proxy", "where", *splits, "recovers", "verdict"]
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    accuracy = subject_accuracy(comparison)
    if len(accuracy):
        cells = [
            f"{percent(float(row['estimate']))} ({limits(float(row['low']), float(row['high']))})"
            for row in (accuracy.loc[split] for split in splits)
        ]
        rows.append("| *accuracy of the subject* | | " + " | ".join(cells) + " | | |")
    for line in lines(comparison):
        cells = [f"{percent(value)} ({limits(low, high)})" for value, low, high in line.rates]
        cells.append("" if line.is_control else f"{percent(line.recovered[0])} ({limits(*line.recovered[1:])})")
        name = f"*{line.proxy}*" if line.is_control else line.proxy
        cells = [cell.replace("– (–)", "–") for cell in cells]
        rows.append("| " + " | ".join([name, line.group, *cells, line.judgement or ""]) + " |")
    effects = _in_markdown(effects_table(comparison, whole=True))
    return "\n".join(rows) + "\n" + _markdown_causes(comparison) + effects + _markdown_notes(comparison)


def _markdown_notes(comparison: Comparison) -> str:
    """What else is to be known, as Markdown: what the controls control, the smallest gaps, warnings."""
    parts = []
    asked = [f"{name}: {question}" for name, question in controls_asked(comparison)]
    if asked:
        parts.append(" ".join([RECOVERS, *asked]))
    parts += [detectable_words(comparison), *(f"**Warning:** {warning}" for warning in comparison.warnings())]
    return "".join(f"\n{part}\n" for part in parts if part)


def _markdown_causes(comparison: Comparison) -> str:
    """The second table as Markdown, for the shift that each verdict speaks of."""
    head = ["proxy", "where", "shift", *CAUSES]
    rows = ["", "What the largest gaps are made of, in points:", "", "| " + " | ".join(head) + " |"]
    rows.append("|" + "---|" * len(head))
    found = [cause for cause in causes(comparison) if cause.deciding]
    for row in found:
        before, behind = (
            [f"{points(value)} ({point_limits(low, high)})".replace("– (–)", "–") for value, low, high in parts]
            for parts in (row.before, row.behind)
        )
        cells = [row.proxy, f"at {row.site}", row.shift, *before, worth(row), *behind]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n" if found else ""


_BEGIN, _END = "<!-- table: begin -->", "<!-- table: end -->"


def write_markdown(comparison: Comparison, path: Path, illustrations: Illustrations | None = None) -> None:
    """Write the main table and those of a study into a Markdown file, in place of what stands between its table marks.

    A file that does not exist is made; one without marks is refused with an AssayError, and left as it is.
    """
    _write_between_marks(path, markdown(comparison) + _in_markdown(illustrations.tables if illustrations else ()))


def write_tables(tables: Sequence[TableView], path: Path) -> None:
    """Write the tables of a study into a Markdown file, as `write_markdown` does."""
    _write_between_marks(path, _in_markdown(tables))


def _in_markdown(tables: Sequence[TableView]) -> str:
    return "".join(map(markdown_table, tables))


def check_markdown(path: Path) -> None:
    """Raise AssayError, before the work whose table it is for, where `write_markdown` could not write to a file."""
    try_file(path)
    _around(path)


def _around(path: Path) -> tuple[str, str]:
    """What a file has before and behind its table."""
    if not path.exists():
        return "", "\n"
    old = path.read_text(encoding="utf-8")
    if old.count(_BEGIN) != 1 or old.partition(_BEGIN)[2].count(_END) != 1 or old.count(_END) != 1:
        raise AssayError(f"{path} must hold one {_BEGIN!r} and one {_END!r}; the table goes between them.")
    before, _, rest = old.partition(_BEGIN)
    return before, rest.partition(_END)[2]


def _write_between_marks(path: Path, content: str) -> None:
    before, behind = _around(path)
    text = f"{before}{_BEGIN}\n{content}{_END}{behind}"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
