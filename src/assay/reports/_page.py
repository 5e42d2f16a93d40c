"""The HTML page: one file, no scripts, no network."""

import base64
import math
import re
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from assay._files import inside, safe_name, write_atomically
from assay.faithfulness import RULES, Comparison, Verdict
from assay.reports._figures import figures
from assay.reports._illustrations import FeatureSide, FeatureView, Illustrations, TextView
from assay.reports._style import INK, to_png, to_svg
from assay.reports._tables import (
    CAUSES,
    MEANING,
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

_RASTER = ("keys-", "sentence-")
"""Figures with many marks are smaller as PNG."""


class Picture(NamedTuple):
    """A figure ready for a page."""

    caption: str
    content: Markup


def environment() -> Environment:
    """Templates that escape all text; `base.html` is the frame of every page of Assay."""
    return Environment(
        loader=PackageLoader("assay.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )


def picture(name: str, caption: str, figure: Figure) -> Picture:
    """A figure as it stands in a page: inline SVG whose text takes the page's colour, or a PNG."""
    if name.startswith(_RASTER):
        data = base64.b64encode(to_png(figure, dpi=110)).decode()
        return Picture(caption, Markup('<img alt="{}" src="data:image/png;base64,{}">').format(caption, data))
    svg = re.sub(r"^.*?(?=<svg)", "", to_svg(figure), flags=re.DOTALL).replace(INK, "currentColor")
    prefix = re.sub(r"\W", "_", name)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{prefix}_", svg)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{Markup.escape(caption)}" ', 1)
    return Picture(caption, Markup(svg))


_NAMED = 6
"""So many proxies of one judgement are called by name."""


def in_words(verdicts: Sequence[Verdict]) -> str:
    """The verdicts in one plain sentence: proxies by name, or how many, where they are many."""
    names: dict[str, list[str]] = {}
    for verdict in verdicts:
        names.setdefault(verdict.judgement, []).append(f"{verdict.proxy} at {verdict.site}")
    parts = []
    for judgement, text in MEANING.items():
        found = names.get(judgement, [])
        if found:
            who = ", ".join(found) if len(found) <= _NAMED else f"{len(found)} of {len(verdicts)} proxies"
            parts.append(f"{who}: {judgement} ({text}).")
    return " ".join(parts)


def write_page(comparison: Comparison, path: Path, illustrations: Illustrations | None = None) -> Path:
    """Write the report of a comparison as one self-contained HTML file; returns its path."""
    with comparison.trusted_no_further():
        text = _page(comparison, illustrations or Illustrations())
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return path


def _page(comparison: Comparison, shown: Illustrations) -> str:
    """The page."""
    drawn = [picture(*item) for item in figures(comparison, shown)]
    accuracy = subject_accuracy(comparison)
    splits = evaluation_splits(comparison)
    return (
        environment()
        .get_template("comparison.html")
        .render(
            title=f"Assay: {', '.join(sorted({item['name'] for item in comparison.record.subjects}))}",
            version=version("assay-interp"),
            record=comparison.record,
            verdicts=comparison.verdicts(),
            words=in_words(comparison.verdicts()),
            rules=RULES,
            splits=splits,
            headline=agreement_words(comparison) + on_what(comparison),
            accuracy=[float(accuracy["estimate"].get(name, float("nan"))) for name in splits] if len(accuracy) else [],
            lines=list(lines(comparison)),
            headings=CAUSES,
            recovers=RECOVERS,
            asked=list(controls_asked(comparison)),
            warnings=comparison.warnings(),
            detectable=detectable_words(comparison),
            causes=[(row, worth(row)) for row in causes(comparison)],
            points=points,
            point_limits=point_limits,
            percent=percent,
            limits=limits,
            pictures=drawn,
            sentences=shown.sentences,
            tables=[*effects_table(comparison, whole=True), *shown.tables],
            texts=[(view, list(_marked(view))) for view in shown.texts],
            features=[(view, _steps(view), list(_shaded(view))) for view in shown.features],
        )
    )


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
