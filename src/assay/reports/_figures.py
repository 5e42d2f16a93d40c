"""The figures of a comparison. Each function draws one, from the comparison's own numbers only, in any width.

Widths are in inches. Where there is little, panels stand below each other and long names are shortened; text keeps its
size.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from assay.faithfulness import LAYER, Comparison, FeatureRecord
from assay.reports._circuits import circuit_figure, heat_figure
from assay.reports._illustrations import Chart, Illustrations, KeyCloud, SentenceView
from assay.reports._style import NARROW, WIDE, inches, ink, legend, series, shortened, small, style, wrapped
from assay.reports._tables import agreement_words, on_what

MANY = 8
"""With more sites than this, they are drawn together in one figure."""

APART = 1.35
"""Lines of text along an axis stand so many times their size apart at least."""

LONGEST, TOKEN = 1.2, 0.6
"""Inches of the name of a column that is written upright, and of a token."""

NAMES = 0.4
"""The share of a figure's width that the names of its rows take at most."""

RANKED = re.compile(r"^(\w+)\((?:rank|clusters)=(\d+)\)$")

_LAYER_OF = re.compile(r"layer(\d+)(?:\.|$)")


class Drawn(NamedTuple):
    """A figure: a name for the file, a caption, and what draws it in a width (within a `style`)."""

    name: str
    caption: str
    draw: Callable[[float], Figure]


def figures(comparison: Comparison, illustrations: Illustrations) -> Iterator[tuple[str, str, Figure]]:
    """All figures as wide as a page shows them: a name for the file, a caption, the figure."""
    with style():
        for drawn in drawings(comparison, illustrations):
            yield drawn.name, drawn.caption, drawn.draw(WIDE)


def drawings(comparison: Comparison, illustrations: Illustrations) -> Iterator[Drawn]:
    """All figures, not drawn yet."""
    splits = _evaluation_splits(comparison)
    words, on = agreement_words(comparison), on_what(comparison)
    accuracy = ", and accuracy of the proxy," if _has_accuracy(comparison) else ""
    if len(_sites(comparison)) > MANY:
        yield Drawn(
            "agreement-by-site",
            f"{words}{on}, at each of the {len(_sites(comparison))} sites by itself, a panel a split. Below, the "
            f"sites that reach over several layers (at most {MANY}) by themselves; the table has all.",
            partial(agreement_by_site, comparison),
        )
    for site in _detailed(comparison):
        if _ranked(comparison, site):
            yield Drawn(
                f"agreement-by-size-{site}",
                f"{words}{accuracy}{on}, against rank or number of clusters; simplified at {site}. Bands: "
                "confidence intervals.",
                partial(agreement_by_size, comparison, site),
            )
        if comparison.shifts:
            yield Drawn(
                f"gaps-{site}",
                f"Generalization gap of every proxy at {site}. {words}: in distribution minus under the shift, in "
                "points, with confidence intervals; hollow: at equal margin of the subject. Right of zero: less "
                "faithful under the shift.",
                partial(gap_chart, comparison, site),
            )
        for feature in comparison.record.features:
            drawn = _rows(comparison, site, comparison.record.primary_metric, feature=feature.name)
            if not drawn["split"].isin(comparison.shifts if feature.labels is None else splits).any():
                continue
            if feature.labels is not None:
                yield Drawn(
                    f"agreement-by-{feature.name}-{site}",
                    f"{words} by {feature.description}; simplified at {site}. The five "
                    "proxies that agree most in distribution, with confidence intervals; classes that do "
                    "not occur are left out.",
                    partial(agreement_by_class, comparison, site, feature),
                )
            else:
                yield Drawn(
                    f"agreement-by-{feature.name}-{site}",
                    f"{words}{accuracy and ', and accuracy,'} against the {feature.description}, under the shift "
                    f"where it reaches furthest; simplified at {site}. Bands: confidence intervals.",
                    partial(agreement_by_feature, comparison, site, feature.name),
                )
        # Skipped for other models whose attention is not laid out as the subject's.
        if _rows(comparison, site, "attention_jsd", feature="layer")["estimate"].notna().any():
            yield Drawn(
                f"attention-by-layer-{site}",
                f"Jensen-Shannon divergence of attention (nats; ln 2 = 0.69 at most) by layer, in distribution; "
                f"simplified at {site}.",
                partial(attention_by_layer, comparison, site),
            )
    yield from _of_illustrations(illustrations, comparison.split_labels)


def illustration_figures(illustrations: Illustrations) -> Iterator[tuple[str, str, Figure]]:
    """The figures of a study's own pictures, which need no comparison, as `figures` gives them."""
    with style():
        for drawn in _of_illustrations(illustrations, {}):
            yield drawn.name, drawn.caption, drawn.draw(WIDE)


def _of_illustrations(illustrations: Illustrations, labels: Mapping[str, str]) -> Iterator[Drawn]:
    """The figures of a study's own pictures; `labels` are what its splits are called."""
    for cloud in illustrations.keys:
        yield Drawn(
            f"keys-{cloud.site}",
            f"Keys at {cloud.site} in their first two singular directions, coloured by {cloud.colour}.",
            partial(key_cloud, labels, cloud),
        )
    for number, view in enumerate(illustrations.sentences):
        yield Drawn(
            f"sentence-{number}",
            f"{view.title}: attention at {view.site} of the subject and of {view.proxy}; the dot marks the "
            "position that a query attends to most.",
            partial(sentence_attention, view),
        )
    for chart in illustrations.charts:
        yield Drawn(chart.name, chart.caption, partial(points_chart, chart))
    for circuit in illustrations.circuits:
        yield Drawn(circuit.name, circuit.caption, partial(circuit_figure, circuit))
    for heat in illustrations.heats:
        yield Drawn(heat.name, heat.caption, partial(heat_figure, heat))


def _panels(
    width: float,
    height: float,
    number: int,
    columns: int,
    *,
    legend_height: float = 0.5,
    sharex: bool = True,
    least: int = 1,
) -> tuple[Figure, list[Axes], float]:
    """A figure of panels, row by row, each so high; in `least` columns where it is narrow. Gives a panel's width."""
    columns = least if width < NARROW else min(columns, number)
    rows = -(-number // columns)
    figure = Figure(figsize=(width, rows * height + legend_height))
    found = figure.subplots(rows, columns, sharex=sharex, sharey=True, squeeze=False).ravel()
    for empty in found[number:]:
        empty.remove()
    for last in found[max(0, number - columns) : number]:
        last.tick_params(labelbottom=True)
    return figure, list(found[:number]), (width - 0.6) / columns


def _name_rows(axes: Axes, names: Sequence[str], places: Sequence[float] | None = None) -> None:
    """Name the rows of a panel at its left, as far as there is room."""
    room = NAMES * (axes.figure.get_figwidth() if isinstance(axes.figure, Figure) else WIDE)
    shown = [shortened(name, room) for name in names]
    axes.set_yticks(range(len(names)) if places is None else places, shown)


def _upright(names: Sequence[str], room: float) -> bool:
    """Whether the names of so many columns in so many inches have no room beside each other, word below word."""
    slot = room / max(len(names), 1)
    lines = (wrapped(name, slot - 0.05, small()) for name in names)
    return any(inches(line) >= slot for name in lines for line in name.split("\n"))


def _name_columns(axes: Axes, names: Sequence[str], room: float) -> None:
    """Name the columns of a panel below it: beside each other in lines, or else upright as many as fit."""
    slot = room / max(len(names), 1)
    if not _upright(names, room):
        axes.set_xticks(range(len(names)), [wrapped(name, slot - 0.05, small()) for name in names])
        return
    step = -(-small() * APART / 72 // slot) if slot > 0 else 1
    kept = range(0, len(names), max(1, int(step)))
    axes.set_xticks(kept, [shortened(names[place], LONGEST) for place in kept], rotation=90)


def _metrics(comparison: Comparison) -> list[str]:
    return [metric.name for metric in comparison.record.metrics]


def _has_accuracy(comparison: Comparison) -> bool:
    """Whether accuracy can be shown beside what the verdicts rest on."""
    return "proxy_accuracy" in _metrics(comparison) and comparison.record.primary_metric != "proxy_accuracy"


def _sites(comparison: Comparison) -> list[str]:
    return list(dict.fromkeys(proxy.site for proxy in comparison.record.proxies))


def _detailed(comparison: Comparison) -> list[str]:
    """The sites that have figures of their own: all, or of many those that reach over several layers."""
    sites = _sites(comparison)
    if len(sites) <= MANY:
        return sites
    reach = {proxy.site: {place.partition(".")[0] for place in proxy.heads} for proxy in comparison.record.proxies}
    return [site for site in sites if len(reach[site]) > 1][:MANY]


def _ranked(comparison: Comparison, site: str) -> dict[str, list[tuple[int, str]]]:
    """Families of proxies that differ in a size only: family -> (size, label), at least two sizes each."""
    families: dict[str, list[tuple[int, str]]] = {}
    for proxy in comparison.record.proxies:
        match = RANKED.match(proxy.proxy)
        if match and proxy.site == site:
            families.setdefault(match[1], []).append((int(match[2]), proxy.proxy))
    return {family: sorted(members) for family, members in families.items() if len(members) > 1}


def _evaluation_splits(comparison: Comparison) -> list[str]:
    return [split.name for split in comparison.record.splits if split.role != "train"]


def _rows(comparison: Comparison, site: str, metric: str, *, feature: str = "") -> pd.DataFrame:
    frame = comparison.results
    chosen = (
        (frame["metric"] == metric)
        & (frame["kind"] == comparison.record.primary_kind)
        & (frame["feature"] == feature)
        & (frame["site"] == site)
        & frame["trained"]
    )
    return frame[chosen]


def _band(axes: Axes, x: np.ndarray, rows: pd.DataFrame, colour: str, label: str, **line: object) -> None:
    axes.plot(x, rows["estimate"], color=colour, marker="o", label=label, **line)  # type: ignore[arg-type]
    axes.fill_between(x, rows["low"], rows["high"], color=colour, alpha=0.18, linewidth=0)


def agreement_by_size(comparison: Comparison, site: str, width: float = WIDE) -> Figure:
    """Same prediction and proxy accuracy against rank or number of clusters, a line a split, a row a family."""
    families = _ranked(comparison, site)
    shown = [(comparison.record.primary_metric, agreement_words(comparison))]
    if _has_accuracy(comparison):
        shown.append(("proxy_accuracy", "Accuracy of the proxy"))
    number = len(families) * len(shown)
    figure, panels, room = _panels(width, 2.3, number, 2, legend_height=0.6, sharex=False, least=1 + (number > 3))
    together = [(*family, *metric) for family in families.items() for metric in shown]
    for axes, (family, members, metric, title) in zip(panels, together, strict=True):
        sizes = np.array([size for size, _ in members])
        names = [name for _, name in members]
        table = _rows(comparison, site, metric)
        for colour, split in zip(cycle(series()), _evaluation_splits(comparison), strict=False):
            rows = table[table["split"] == split].set_index("proxy").reindex(names)
            _band(axes, sizes, rows, colour, comparison.split_labels[split])
            if metric == "proxy_accuracy":
                subject = _rows(comparison, site, "subject_accuracy")
                value = subject[subject["split"] == split]["estimate"]
                if len(value):
                    axes.axhline(float(value.iloc[0]), color=colour, linestyle=":", linewidth=1)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("rank" if names[0].count("rank") else "clusters")
        axes.set_ylim(-0.02, 1.02)
        axes.set_title(wrapped(f"{family}: {_lower(title)}", room - 0.2), loc="left")
    for axes in panels[:: max(1, round(width / room))]:
        axes.set_ylabel(f"share of {_unit(comparison)}")
    title = "split (dotted: accuracy of the subject)" if len(shown) > 1 else "split"
    legend(figure, *panels[0].get_legend_handles_labels(), title=title)
    return figure


def agreement_by_site(comparison: Comparison, width: float = WIDE) -> Figure:
    """Agreement of every proxy (row) at every site (column), a panel a split."""
    splits, sites = _evaluation_splits(comparison), _sites(comparison)
    proxies = list(dict.fromkeys(proxy.proxy for proxy in comparison.record.proxies if not proxy.is_control))
    figure = Figure(figsize=(width, len(splits) * (0.5 + 0.24 * len(proxies)) + 1.5))
    panels = figure.subplots(len(splits), 1, sharex=True, squeeze=False)[:, 0]
    for axes, split in zip(panels, splits, strict=True):
        table = comparison.agreement(split).pivot(index="proxy", columns="site", values="estimate")
        rates = table.reindex(index=proxies, columns=sites).to_numpy(dtype=float)
        shown = axes.imshow(rates, cmap="viridis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        _name_rows(axes, proxies)
        axes.set_title(comparison.split_labels[split], loc="left")
        axes.grid(visible=False)
    step = -(-len(sites) * small() * APART / 72 // (width * (1 - NAMES) - 0.2))
    kept = range(0, len(sites), max(1, int(step)))
    panels[-1].set_xticks(kept, [shortened(sites[place], LONGEST) for place in kept], rotation=90)
    panels[-1].set_xlabel("simplified at")
    label = wrapped(f"share with the {_short(comparison)}", width - 0.5)
    figure.colorbar(shown, ax=list(panels), label=label, location="top", aspect=40, shrink=0.8)
    return figure


def gap_chart(comparison: Comparison, site: str, width: float = WIDE) -> Figure:
    """Generalization gaps of all proxies, two marks a shift: filled as it is, hollow at equal margin."""
    gaps = comparison.gaps()
    gaps = gaps[gaps["trained"] & (gaps["site"] == site)]
    perturbations = {proxy.perturbation for proxy in comparison.record.proxies if proxy.site == site}
    proxies = [name for name in dict.fromkeys(gaps["proxy"]) if name not in perturbations]
    shifts = comparison.shifts
    step = min(0.16, 0.8 / max(len(shifts), 1))
    figure = Figure(figsize=(width, 1.3 + 0.42 * len(proxies) * 0.16 / step))
    axes = figure.subplots()
    colours = series()
    for index, (colour, shift) in enumerate(zip(cycle(colours[1:] or colours), shifts, strict=False)):
        rows = gaps[gaps["split"] == shift].set_index("proxy").reindex(proxies)
        y = np.arange(len(proxies)) + (index - (len(shifts) - 1) / 2) * step
        for name, limit, place, label in (
            ("gap", "", y, comparison.split_labels[shift]),
            ("matched", "matched_", y + step / 2, f"{comparison.split_labels[shift]}, {MATCHED}"),
        ):
            hollow = bool(limit)
            value = 100 * rows[name].to_numpy(dtype=float)
            below, above = rows[name] - rows[f"{limit}low"], rows[f"{limit}high"] - rows[name]
            axes.errorbar(
                value, place, xerr=np.clip(100 * np.stack((below, above)).astype(float), 0, None), fmt="o",
                color=colour, label=label, elinewidth=0.7 if hollow else 1.2, alpha=0.8 if hollow else 1.0,
                markerfacecolor="none" if hollow else colour,
            )  # fmt: skip
    axes.axvline(0, color=ink(), linewidth=1)
    _name_rows(axes, proxies)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(wrapped(f"gap: {_short(comparison)} on iid minus on the shift (points)", (1 - NAMES) * width - 0.1))
    handles, labels = axes.get_legend_handles_labels()
    ring = Line2D([], [], color=ink(), marker="o", markerfacecolor="none", linewidth=0.7)
    legend(figure, [*handles[::2], ring], [*labels[::2], MATCHED])
    return figure


MATCHED = "at equal margin of the subject"


def _lower(words: str) -> str:
    return words[0].lower() + words[1:]


def _short(comparison: Comparison) -> str:
    return comparison.record.primary_metric.replace("_", " ")


def _unit(comparison: Comparison) -> str:
    return "sequences" if comparison.record.primary_metric == "same_neighbour" else "predictions"


def _leading(comparison: Comparison, site: str) -> list[str]:
    """The five proxies that agree most in distribution."""
    best = comparison.agreement().query("site == @site and not is_control")
    return list(best.sort_values("estimate", ascending=False, kind="stable")["proxy"].head(5))


def agreement_by_class(comparison: Comparison, site: str, feature: FeatureRecord, width: float = WIDE) -> Figure:
    """Same prediction by the classes of a feature, a panel a split, a mark a proxy."""
    splits, names = _evaluation_splits(comparison), _leading(comparison, site)
    table = _rows(comparison, site, comparison.record.primary_metric, feature=feature.name)
    there = set(table[table["split"].isin(splits)]["bin"])
    named = dict(zip(feature.edges or (), feature.labels or (), strict=True))
    edges = [edge for edge in named if edge in there]
    height = 0.55 + 0.36 * len(edges)
    figure, panels, room = _panels(width, height, len(splits), 3, legend_height=0.9)
    for axes, split in zip(panels, splits, strict=True):
        for index, (colour, name) in enumerate(zip(cycle(series()), names, strict=False)):
            found = table[(table["split"] == split) & (table["proxy"] == name)].set_index("bin").reindex(edges)
            y = np.arange(len(edges)) + (index - (len(names) - 1) / 2) * 0.14
            value = found["estimate"].to_numpy(dtype=float)
            error = np.stack((found["estimate"] - found["low"], found["high"] - found["estimate"])).astype(float)
            axes.errorbar(value, y, xerr=np.clip(error, 0, None), fmt="o", color=colour, elinewidth=1.2, label=name)
        axes.set_title(wrapped(comparison.split_labels[split], room - 0.4), loc="left")
        # Below each other, they share what is on the axis.
        if room < width / 2 or axes is panels[-1]:
            axes.set_xlabel(wrapped(f"share with the {_short(comparison)}", 0.8 * room))
    _name_rows(panels[0], [named[edge] for edge in edges])
    panels[0].set_ylim(len(edges) - 0.5, -0.5)
    panels[0].set_xlim(-0.02, 1.02)
    panels[0].set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    legend(figure, *panels[0].get_legend_handles_labels())
    return figure


def agreement_by_feature(comparison: Comparison, site: str, feature: str, width: float = WIDE) -> Figure:
    """Same prediction and accuracy of the five proxies that agree most in distribution, against a feature."""
    shifts = comparison.shifts
    primary = comparison.record.primary_metric
    agreement = _rows(comparison, site, primary, feature=feature)
    reach = agreement[agreement["split"].isin(shifts)].groupby("split", sort=False)["bin"].max()
    names = _leading(comparison, site)
    words = next(item.description for item in comparison.record.features if item.name == feature)
    shown = [(primary, _lower(agreement_words(comparison)))]
    if _has_accuracy(comparison):
        shown.append(("proxy_accuracy", "accuracy"))
    figure, panels, room = _panels(width, 2.6, len(shown), 2, legend_height=0.6)
    if len(reach):
        split = str(reach.idxmax())
        iid_reach = agreement[~agreement["split"].isin(shifts)]["bin"].max()
        start = agreement[agreement["split"] == split]["bin"].min()
        for axes, (metric, title) in zip(panels, shown, strict=True):
            table = _rows(comparison, site, metric, feature=feature)
            table = table[table["split"] == split].sort_values("bin")
            for colour, name in zip(cycle(series()), names, strict=False):
                rows = table[table["proxy"] == name]
                _band(axes, rows["bin"].to_numpy(), rows, colour, name)
            if iid_reach < reach.max():
                axes.axvline(iid_reach + 0.5, color=ink(), linewidth=1, linestyle=":")
                # On the side where there is more room.
                beyond = 2 * iid_reach < start + reach.max()
                axes.text(
                    iid_reach + (0.6 if beyond else 0.4), 0.0, "beyond any on iid →" if beyond else "← as on iid",
                    fontsize=small(), va="bottom", ha="left" if beyond else "right",
                )  # fmt: skip
            axes.set_title(wrapped(f"{title}, {comparison.split_labels[split]}", room - 0.2), loc="left")
        subject = _rows(comparison, site, "subject_accuracy", feature=feature)
        rows = subject[subject["split"] == split].drop_duplicates("bin").sort_values("bin")
        if metric == "proxy_accuracy" and len(rows):
            _band(panels[-1], rows["bin"].to_numpy(), rows, ink(), "the subject", linestyle="--")
    for axes in panels:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if room < width / 2 or axes is panels[-1]:
            axes.set_xlabel(wrapped(words, 0.85 * room))
        axes.set_ylim(-0.02, 1.02)
    panels[0].set_ylabel("share of predictions")
    legend(figure, *panels[-1].get_legend_handles_labels())
    return figure


def _layers_shown(comparison: Comparison, site: str, table: pd.DataFrame) -> list[int]:
    """The layers that the site edits; where their attention stays as it was (an edit behind it), those it changes."""
    places = {place for proxy in comparison.record.proxies if proxy.site == site for place in proxy.heads}
    edited = {int(match[1]) for match in map(_LAYER_OF.match, places) if match}
    changed = set(table[table["estimate"] > 0]["bin"])
    return sorted(edited & changed or changed or set(table["bin"]))


def attention_by_layer(comparison: Comparison, site: str, width: float = WIDE) -> Figure:
    """Attention divergence by layer in distribution, one group of bars a proxy; only layers that the site edits."""
    table = _rows(comparison, site, "attention_jsd", feature=LAYER)
    table = table[table["split"] == _evaluation_splits(comparison)[0]]
    proxies = list(dict.fromkeys(table["proxy"]))
    layers = _layers_shown(comparison, site, table)
    figure = Figure(figsize=(width, 1.2 + max(0.2, 0.09 * len(layers)) * len(proxies)))
    axes = figure.subplots()
    height = 0.8 / max(len(layers), 1)
    for colour, (index, layer) in zip(cycle(series()), enumerate(layers), strict=False):
        rows = table[table["bin"] == layer].set_index("proxy").reindex(proxies)
        y = np.arange(len(proxies)) + (index - (len(layers) - 1) / 2) * height
        value = rows["estimate"].to_numpy(dtype=float)
        error = np.stack((rows["estimate"] - rows["low"], rows["high"] - rows["estimate"])).astype(float)
        axes.barh(y, value, height * 0.9, color=colour, label=f"layer {layer}")
        axes.errorbar(value, y, xerr=np.clip(error, 0, None), fmt="none", ecolor=ink(), elinewidth=1)
    _name_rows(axes, proxies)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("attention JSD (nats)")
    legend(figure, *axes.get_legend_handles_labels())
    return figure


def key_cloud(labels: Mapping[str, str], cloud: KeyCloud, width: float = WIDE) -> Figure:
    """Keys in two dimensions, a panel a split."""
    number = len(cloud.points)
    figure, panels, room = _panels(width, 2.4 if width < NARROW else 3.0, number, 2, legend_height=0.7)
    top = max(value for points in cloud.points.values() for _, _, value in points)
    for axes, (split, points) in zip(panels, cloud.points.items(), strict=True):
        x, y, value = (np.array(column) for column in zip(*points, strict=True))
        dots = axes.scatter(x, y, c=value, s=4, cmap="viridis", vmin=0, vmax=top, linewidths=0, rasterized=True)
        axes.set_title(wrapped(labels.get(split, split), room - 0.2), loc="left")
        if room < width / 2 or axes is panels[-1]:
            axes.set_xlabel("first direction")
    for axes in panels[:: max(1, round(width / room))]:
        axes.set_ylabel("second direction")
    bar = figure.colorbar(dots, ax=panels, label=wrapped(cloud.colour, width - 0.5), location="bottom", aspect=40)
    if cloud.boundary is not None and cloud.boundary < top:
        bar.ax.axvline(cloud.boundary + 0.5, color=ink(), linewidth=1.5)
    return figure


def sentence_attention(view: SentenceView, width: float = WIDE) -> Figure:
    """The attention of subject and proxy side by side; of many tokens only some are named."""
    size = len(view.tokens)
    columns = 1 if width < NARROW else 2
    tokens = [shortened(token, TOKEN) for token in view.tokens]
    aside = max(map(inches, tokens)) + 0.5
    room = max(1.2, (width - 0.3) / columns - aside)
    # The usual layout cuts titles and labels off panels whose height follows from their width.
    figure = Figure(figsize=(width, (room + aside + 0.5) * (2 // columns)), layout="compressed")
    step = max(1, int(-(-size * small() * APART / 72 // (0.85 * room))))
    panels = figure.subplots(2 // columns, columns, sharey=True, squeeze=False).ravel()
    for axes, title, pattern in zip(
        panels, ("subject", view.proxy), (view.subject_pattern, view.proxy_pattern), strict=True
    ):
        weights = np.array(pattern)
        axes.imshow(np.where(np.tri(size, dtype=bool), weights, np.nan), cmap="Blues", vmin=0, vmax=1, aspect="equal")
        axes.plot(weights.argmax(axis=1), np.arange(size), "o", color=series()[1], markersize=2.5, linestyle="none")
        axes.set_xticks(range(0, size, step), tokens[::step], rotation=90, parse_math=False)
        axes.set_yticks(range(0, size, step), tokens[::step], parse_math=False)
        axes.set_title(shortened(title, room), loc="left")
        axes.set_xlabel("attended position (key)")
        axes.grid(visible=False)
    for axes in panels[::columns]:
        axes.set_ylabel("position (query)")
    return figure


_MARKERS = ("o", "D", "^", "s", "v")
_BANDS, _BAND = ("#80868b", "#c9a66b", "#8fa8c9"), 0.3
"""Colours of bands, and how much of them is seen."""


def points_chart(chart: Chart, width: float = WIDE) -> Figure:
    """A chart as it is given: a colour a name, a marker a variant (hollow from the second on), bands behind them."""
    titles = list(dict.fromkeys(one.panel for one in chart.series))
    names = [name.replace("_", " ") for name in chart.names or ()]
    # Names that stand upright need a panel as high again as they are long.
    columns = 1 if width < NARROW else min(3, len(titles))
    longest = max(map(inches, names), default=0.0) if _upright(names, 0.85 * (width - 0.6) / columns) else 0.0
    height = 2.6 + min(LONGEST, longest)
    figure, panels, room = _panels(width, height, len(titles), 3, legend_height=0.8)
    grid = dict(zip(titles, panels, strict=True))
    points = [one for one in chart.series if not one.band]
    colours = dict(zip(dict.fromkeys(one.name for one in points), cycle(series()), strict=False))
    markers = dict(zip(dict.fromkeys(one.variant for one in points), cycle(_MARKERS), strict=False))
    bands = dict.fromkeys(one.name for one in chart.series if one.band)
    greys = dict(zip(bands, cycle(_BANDS), strict=False))
    plain = next(iter(markers), "")
    for number, one in enumerate(chart.series):
        axes = grid[one.panel]
        x = np.array(one.x, dtype=float)
        if chart.names is not None:
            x = x + (number - (len(chart.series) - 1) / 2) * 0.8 / max(len(chart.series), 2)
        y, low, high = (np.array(values, dtype=float) for values in (one.y, one.low, one.high))
        if one.band:
            axes.fill_between(x, low, high, color=greys[one.name], alpha=_BAND, linewidth=0, zorder=0)
            axes.plot(x, y, color=greys[one.name], linewidth=1, linestyle=":", zorder=1, label=one.name)
            continue
        error = np.nan_to_num(np.clip(np.stack((y - low, high - y)), 0, None))
        axes.errorbar(
            x,
            y,
            yerr=error,
            fmt=markers[one.variant] + ("" if chart.names is not None else "-"),
            color=colours[one.name],
            markerfacecolor=colours[one.name] if one.variant == plain else "none",
            elinewidth=1.2,
            label=f"{one.name}, {one.variant}" if one.variant else one.name,
        )
    entries = [Line2D([], [], color=colour, marker="o", linestyle="", label=name) for name, colour in colours.items()]
    if len(markers) > 1:
        entries += [
            Line2D([], [], color=ink(), marker=marker, linestyle="", label=variant,
                   markerfacecolor=ink() if variant == plain else "none")
            for variant, marker in markers.items()
        ]  # fmt: skip
    for number, (title, axes) in enumerate(grid.items()):
        if chart.names is not None:
            _name_columns(axes, names, 0.85 * room)
            axes.axhline(0, color=ink(), linewidth=1)
            axes.grid(axis="x", visible=False)
        if chart.logarithmic:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set_title(wrapped(title, room - 0.2), loc="left")
        if number >= len(grid) - columns:
            axes.set_xlabel(wrapped(chart.x_label, 0.85 * room))
        if number % columns == 0:
            axes.set_ylabel(wrapped(chart.y_label, 1.6))
    legend(figure, entries, [str(entry.get_label()) for entry in entries])
    if greys:
        shades = [Patch(color=grey, alpha=_BAND, linewidth=0, label=name) for name, grey in greys.items()]
        legend(figure, shades, list(greys), place="upper")
    return figure
