"""The HTML page: one file, no scripts, no network."""

import math
import re
from collections.abc import Iterable, Iterator
from functools import partial
from importlib.metadata import version
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from assay._files import inside, safe_name, write_atomically
from assay.faithfulness import JUDGEMENTS, RULES, Comparison
from assay.reports._figures import drawings, figures, illustration_figures
from assay.reports._forest import FIRST, SHAPES, forest
from assay.reports._forest import caption as forest_caption
from assay.reports._grid import MISLEADING, grids, losses
from assay.reports._illustrations import FeatureSide, FeatureView, Illustrations, TextView
from assay.reports._inline import inline, raster
from assay.reports._story import by_severity, finding, in_words, paragraph, shift_labels, tally
from assay.reports._style import COLOURS, PHONE, WIDE, style, to_png, to_svg
from assay.reports._tables import (
    CAUSES,
    RECOVERS,
    agreement_words,
    causes,
    controls_asked,
    detectable_words,
    effects_table,
    evaluation_splits,
    limits,
    lines,
    on_what,
    percent,
    point_limits,
    points,
    subject_accuracy,
    worth,
)
from assay.reports._told import numbers

_RASTER = ("keys-", "sentence-")
"""Figures with many marks are smaller as PNG."""


class Picture(NamedTuple):
    """A figure ready for a page; `title` is its name as words."""

    title: str
    caption: str
    content: Markup


def environment() -> Environment:
    """Templates that escape all text; `base.html` is the frame of every page of Assay."""
    found = Environment(
        loader=PackageLoader("assay.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    found.globals.update(colours=COLOURS, judgements=JUDGEMENTS)
    return found


def picture(name: str, caption: str, figure: Figure, phone: Figure | None = None) -> Picture:
    """A figure as it stands in a page: inline SVG whose text and colours follow the page's mode, or a PNG.

    `phone` is the same in the width of a phone, which is shown there instead.
    """
    title = re.sub(r"[-_]", " ", name)
    title = title[:1].upper() + title[1:]
    told = f"{caption} {numbers(figure)}".strip()
    draw = raster if name.startswith(_RASTER) else inline
    forms = [(figure, "wide" if phone else "")] + ([(phone, "narrow")] if phone else [])
    drawn = Markup("").join(Markup(draw(one, f"{name} {form}", form)) for one, form in forms)
    return Picture(title, caption, Markup('<div role="img" aria-label="{}">{}</div>').format(told, drawn))


def rendered(text: str) -> Markup:
    """The rules as HTML: paragraphs, a numbered list (its items have paragraphs and lists), bold, italics and code."""

    def inline(words: str) -> Markup:
        shown = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", str(Markup.escape(" ".join(words.split()))))
        shown = re.sub(r"\*(.+?)\*", r"<i>\1</i>", shown)
        return Markup(re.sub(r"`(.+?)`", r"<code>\1</code>", shown))

    def blocks(lines: str) -> Iterator[Markup]:
        for block in re.split(r"\n\n+", lines):
            before, *points = re.split(r"^\s*- ", block, flags=re.MULTILINE)
            if before.strip():
                yield Markup("<p>{}</p>").format(inline(before))
            if points:
                yield Markup("<ul>{}</ul>").format(_joined(Markup("<li>{}</li>").format(inline(one)) for one in points))

    parts = []
    # An item goes on for as long as its lines are indented.
    for numbered, found in groupby(re.split(r"\n(?=\S)", text), key=lambda part: bool(re.match(r"\d+\. ", part))):
        if numbered:
            items = [re.match(r"(\d+)\. (.*)", part, re.DOTALL) for part in found]
            shown = _joined(
                Markup('<li value="{}">{}</li>').format(item[1], _joined(blocks(item[2]))) for item in items if item
            )
            parts.append(Markup("<ol>{}</ol>").format(shown))
        else:
            parts += blocks("\n".join(found))
    return _joined(parts)


def _joined(parts: Iterable[Markup]) -> Markup:
    return Markup("\n").join(parts)


def write_page(comparison: Comparison, path: Path, illustrations: Illustrations | None = None) -> Path:
    """Write the report of a comparison as one self-contained HTML file; returns its path."""
    with comparison.trusted_no_further():
        text = _page(comparison, illustrations or Illustrations())
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return path


def _page(comparison: Comparison, shown: Illustrations) -> str:
    """The page."""
    with style():
        drawn = [picture(one.name, one.caption, one.draw(WIDE), one.draw(PHONE)) for one in drawings(comparison, shown)]
    drawn_forest = forest(comparison)
    verdicts = by_severity(comparison.verdicts())
    # Of a sweep over many sites the page has all verdicts in grids and one table, and the rest of the worst alone.
    many = drawn_forest.left_out > 0
    worst = verdicts[:FIRST] if many else verdicts
    told = {(verdict.proxy, verdict.site) for verdict in worst}
    accuracy = subject_accuracy(comparison)
    splits = evaluation_splits(comparison)
    record = comparison.record
    names = ", ".join(sorted({item["name"] for item in record.subjects}))
    return (
        environment()
        .get_template("comparison.html")
        .render(
            title=f"Assay: {names}",
            names=names,
            version=version("assay-interp"),
            record=record,
            seeds=sum(bool(subject["trained"]) for subject in record.subjects),
            finding=finding(comparison),
            paragraph=paragraph(comparison),
            forest=drawn_forest,
            forest_caption=forest_caption(comparison, drawn_forest, left_out=drawn_forest.left_out),
            shapes=SHAPES,
            shown_splits=sorted(
                (split for split in record.splits if split.role != "train"), key=lambda split: split.role != "iid"
            ),
            verdicts=verdicts,
            worst=worst,
            many=many,
            tally=tally(verdicts),
            drawn_judgements={group.judgement for group in drawn_forest.groups},
            grids=grids(comparison.verdicts()) if many else (),
            losses=losses(comparison.verdicts()) if many else (),
            misleading=MISLEADING,
            rules=rendered(RULES),
            splits=splits,
            labels=comparison.split_labels,
            told=partial(in_words, labels=shift_labels(comparison)),
            headline=agreement_words(comparison) + on_what(comparison),
            accuracy=[float(accuracy["estimate"].get(name, float("nan"))) for name in splits] if len(accuracy) else [],
            lines=[line for line in lines(comparison) if not many or not line.is_control],
            headings=CAUSES,
            recovers=RECOVERS,
            asked=list(controls_asked(comparison)),
            warnings=comparison.warnings(),
            detectable=detectable_words(comparison),
            causes=[(row, worth(row)) for row in causes(comparison) if not many or (row.proxy, row.site) in told],
            points=points,
            point_limits=point_limits,
            percent=percent,
            limits=limits,
            pictures=drawn,
            sentences=shown.sentences,
            tables=[*effects_table(comparison, whole=True, labels=comparison.split_labels), *shown.tables],
            texts=_together(
                ((view, list(_marked(view)), list(_differing(view))) for view in shown.texts),
                "proxy",
                "site",
            ),
            features=_together(
                ((view, _steps(view), list(_shaded(view))) for view in shown.features),
                "dictionary",
                "site",
            ),
        )
    )


def _together(views: Iterable[tuple[Any, ...]], *whose: str) -> list[list[tuple[Any, ...]]]:
    """Views one after the other that share these fields, such as proxy and site, as one list each."""
    return [list(found) for _, found in groupby(views, key=lambda item: attrgetter(*whose)(item[0]))]


def _differing(view: TextView) -> Iterator[str]:
    """What both predict where they differ, in words: what a pointer shows over the text."""
    for place, (_, mark, words) in enumerate(_marked(view), 1):
        if mark.endswith(" other"):
            yield f"character {place}: {words}"


def _marked(view: TextView) -> Iterator[tuple[str, str, str]]:
    """Every character with its class (how far the proxy departs, in five steps) and what both predicted."""
    for character, divergence, subject, proxy in zip(
        view.characters, view.divergence, view.subject, view.proxy_says, strict=True
    ):
        if divergence is None or subject is None or proxy is None:
            yield character, "", ""
            continue
        step = min(4, int(5 * divergence / math.log(2)))
        differs = " other" if subject != proxy else ""
        words = f"subject {subject!r}, proxy {proxy!r}, {divergence:.2f} nats"
        yield character, f"d{step}{differs}", words


STEPS = 5
"""Shades of an activation."""


def _largest(view: FeatureView) -> float:
    return max((value for side in view.sides for text in side.texts for value in text.activations), default=0.0)


def _steps(view: FeatureView) -> list[tuple[str, str]]:
    """The classes of a feature's shades, and the activations that each stands for: equal parts up to the largest."""
    edges = [f"{_largest(view) * step / STEPS:.2g}" for step in range(STEPS + 1)]
    return [(f"a{step}", f"{edges[step]} to {edges[step + 1]}") for step in range(STEPS)]


def _shaded(view: FeatureView) -> Iterator[tuple[FeatureSide, list[list[tuple[str, str, str]]]]]:
    """Every side with its texts: each token with its class (the activation, in steps up to the largest) and that."""
    largest = _largest(view)
    for side in view.sides:
        texts = []
        for text in side.texts:
            best = max(text.activations, default=0.0)
            shaded = []
            for token, value in zip(text.tokens, text.activations, strict=True):
                # A line's end would take its colour to nowhere.
                shown = token if token.strip("\n") else token.replace("\n", "↵\n")
                if value > 0:
                    step = min(STEPS - 1, int(STEPS * value / largest))
                    shaded.append((shown, f"a{step}{' best' if value == best else ''}", f"{value:.3g}"))
                else:
                    shaded.append((token, "", ""))
            texts.append(shaded)
        yield side, texts


def write_figures(comparison: Comparison, folder: Path, illustrations: Illustrations | None = None) -> list[Path]:
    """Write every figure as SVG and PNG; returns the paths. Raises AssayError for a folder that is a link elsewhere."""
    inside(folder.parent, folder.name)
    paths = []
    with comparison.trusted_no_further():
        for name, _, figure in figures(comparison, illustrations or Illustrations()):
            svg, png = to_svg(figure), to_png(figure)
            for suffix, data in (("svg", svg.encode()), ("png", png)):
                path = folder / f"{safe_name(name)}.{suffix}"
                write_atomically(path, lambda temporary, data=data: temporary.write_bytes(data))  # type: ignore[misc]
                paths.append(path)
    return paths


def write_chart(illustrations: Illustrations, path: Path) -> None:
    """Write the first of a study's own pictures as SVG; nothing where it has none."""
    first = next(illustration_figures(illustrations), None)
    if first is not None:
        drawn = to_svg(first[2])
        write_atomically(path, lambda temporary: temporary.write_text(drawn, encoding="utf-8"))


def write_pictures(illustrations: Illustrations, folder: Path) -> None:
    """Write a study's own pictures as SVG."""
    for name, _, figure in illustration_figures(illustrations):
        drawn = to_svg(figure).encode()
        path = folder / f"{safe_name(name)}.svg"
        write_atomically(path, lambda temporary, drawn=drawn: temporary.write_bytes(drawn))  # type: ignore[misc]
