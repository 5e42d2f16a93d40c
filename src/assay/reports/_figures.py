"""The figures of a comparison. Each function draws one, from the comparison's own numbers only."""

import re
from collections.abc import Iterator
from itertools import cycle

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
from assay.reports._style import INK, PALETTE, style
from assay.reports._tables import agreement_words, on_what

MANY = 8
"""With more sites than this, they are drawn together in one figure."""

TOKENS = 40
"""So many tokens can be named along an axis of a sentence's attention without touching."""

RANKED = re.compile(r"^(\w+)\((?:rank|clusters)=(\d+)\)$")

_LAYER_OF = re.compile(r"layer(\d+)(?:\.|$)")


def figures(comparison: Comparison, illustrations: Illustrations) -> Iterator[tuple[str, str, Figure]]:
    """All figures: a name for the file, a caption, the figure."""
    splits = _evaluation_splits(comparison)
    words, on = agreement_words(comparison), on_what(comparison)
    accuracy = ", and accuracy of the proxy," if _has_accuracy(comparison) else ""
    with style():
        if len(_sites(comparison)) > MANY:
            yield (
                "agreement-by-site",
                f"{words}{on}, at each of the {len(_sites(comparison))} sites by itself, a panel a split. Below, the "
                f"sites that reach over several layers (at most {MANY}) by themselves; the table has all.",
                agreement_by_site(comparison),
            )
        for site in _detailed(comparison):
            if _ranked(comparison, site):
                yield (
                    f"agreement-by-size-{site}",
                    f"{words}{accuracy}{on}, against rank or number of clusters; simplified at {site}. Bands: "
                    "confidence intervals.",
                    agreement_by_size(comparison, site),
                )
            if comparison.shifts:
                yield (
                    f"gaps-{site}",
                    f"Generalization gap of every proxy at {site}. {words}: in distribution minus under the shift, in "
                    "points, with confidence intervals; hollow: at equal margin of the subject. Right of zero: less "
                    "faithful under the shift.",
                    gap_chart(comparison, site),
                )
            for feature in comparison.record.features:
                drawn = _rows(comparison, site, comparison.record.primary_metric, feature=feature.name)
                if not drawn["split"].isin(comparison.shifts if feature.labels is None else splits).any():
                    continue
                if feature.labels is not None:
                    yield (
                        f"agreement-by-{feature.name}-{site}",
                        f"{words} by {feature.description}; simplified at {site}. The five "
                        "proxies that agree most in distribution, with confidence intervals; classes that do "
                        "not occur are left out.",
                        agreement_by_class(comparison, site, feature),
                    )
                else:
                    yield (
                        f"agreement-by-{feature.name}-{site}",
                        f"{words}{accuracy and ', and accuracy,'} against the {feature.description}, under the shift "
                        f"where it reaches furthest; simplified at {site}. Bands: confidence intervals.",
                        agreement_by_feature(comparison, site, feature.name),
                    )
            # Skipped for other models whose attention is not laid out as the subject's.
            if _rows(comparison, site, "attention_jsd", feature="layer")["estimate"].notna().any():
                yield (
                    f"attention-by-layer-{site}",
                    f"Jensen-Shannon divergence of attention (nats; ln 2 = 0.69 at most) by layer, in distribution; "
                    f"simplified at {site}.",
                    attention_by_layer(comparison, site),
                )
        yield from _of_illustrations(illustrations)


def _of_illustrations(illustrations: Illustrations) -> Iterator[tuple[str, str, Figure]]:
    """The figures of a study's own pictures."""
    for cloud in illustrations.keys:
        yield (
            f"keys-{cloud.site}",
            f"Keys at {cloud.site} in their first two singular directions, coloured by {cloud.colour}.",
            key_cloud(cloud),
        )
    for number, view in enumerate(illustrations.sentences):
        yield (
            f"sentence-{number}",
            f"{view.title}: attention at {view.site} of the subject and of {view.proxy}; the dot marks the "
            "position that a query attends to most.",
            sentence_attention(view),
        )
    for chart in illustrations.charts:
        yield chart.name, chart.caption, points_chart(chart)
    for circuit in illustrations.circuits:
        yield circuit.name, circuit.caption, circuit_figure(circuit)
    for heat in illustrations.heats:
        yield heat.name, heat.caption, heat_figure(heat)


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
    axes.plot(x, rows["estimate"], color=colour, marker="o", markersize=3.5, linewidth=1.6, label=label, **line)  # type: ignore[arg-type]
    axes.fill_between(x, rows["low"], rows["high"], color=colour, alpha=0.18, linewidth=0)


def agreement_by_size(comparison: Comparison, site: str) -> Figure:
    """Same prediction and proxy accuracy against rank or number of clusters, a line a split, a row a family."""
    families = _ranked(comparison, site)
    shown = [(comparison.record.primary_metric, agreement_words(comparison))]
    if _has_accuracy(comparison):
        shown.append(("proxy_accuracy", "Accuracy of the proxy"))
    figure = Figure(figsize=(9, 3.1 * len(families)))
    grid = figure.subplots(len(families), len(shown), squeeze=False, sharey=True)
    for row, (family, members) in zip(grid, families.items(), strict=True):
        sizes = np.array([size for size, _ in members])
        names = [name for _, name in members]
        for axes, (metric, title) in zip(row, shown, strict=True):
            table = _rows(comparison, site, metric)
            for colour, split in zip(cycle(PALETTE), _evaluation_splits(comparison), strict=False):
                rows = table[table["split"] == split].set_index("proxy").reindex(names)
                _band(axes, sizes, rows, colour, split)
                if metric == "proxy_accuracy":
                    subject = _rows(comparison, site, "subject_accuracy")
                    value = subject[subject["split"] == split]["estimate"]
                    if len(value):
                        axes.axhline(float(value.iloc[0]), color=colour, linestyle=":", linewidth=1)
            axes.set_xscale("log", base=2)
            axes.set_xticks(sizes, [str(size) for size in sizes])
            axes.set_xlabel("rank" if names[0].count("rank") else "clusters")
            axes.set_ylim(-0.02, 1.02)
            axes.set_title(f"{family}: {_lower(title)}", loc="left")
        row[0].set_ylabel(f"share of {_unit(comparison)}")
    figure.legend(
        *grid[0][0].get_legend_handles_labels(),
        title="split (dotted: accuracy of the subject)" if len(shown) > 1 else "split",
        loc="outside lower center",
        ncols=4,
    )
    return figure


def agreement_by_site(comparison: Comparison) -> Figure:
    """Agreement of every proxy (row) at every site (column), a panel a split."""
    splits, sites = _evaluation_splits(comparison), _sites(comparison)
    proxies = list(dict.fromkeys(proxy.proxy for proxy in comparison.record.proxies if not proxy.is_control))
    figure = Figure(figsize=(10, len(splits) * (0.9 + 0.3 * len(proxies)) + 0.8))
    panels = figure.subplots(len(splits), 1, sharex=True, squeeze=False)[:, 0]
    step = -(-len(sites) // 40)
    for axes, split in zip(panels, splits, strict=True):
        table = comparison.agreement(split).pivot(index="proxy", columns="site", values="estimate")
        rates = table.reindex(index=proxies, columns=sites).to_numpy(dtype=float)
        shown = axes.imshow(rates, cmap="viridis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axes.set_yticks(range(len(proxies)), proxies)
        axes.set_title(split, loc="left")
        axes.grid(visible=False)
    panels[-1].set_xticks(range(0, len(sites), step), sites[::step], rotation=90, fontsize=7)
    panels[-1].set_xlabel("simplified at")
    figure.colorbar(shown, ax=list(panels), label=f"share with the {_short(comparison)}")
    return figure


def gap_chart(comparison: Comparison, site: str) -> Figure:
    """Generalization gaps of all proxies, two marks a shift: filled as it is, hollow at equal margin."""
    gaps = comparison.gaps()
    gaps = gaps[gaps["trained"] & (gaps["site"] == site)]
    perturbations = {proxy.perturbation for proxy in comparison.record.proxies if proxy.site == site}
    proxies = [name for name in dict.fromkeys(gaps["proxy"]) if name not in perturbations]
    shifts = comparison.shifts
    step = min(0.16, 0.8 / max(len(shifts), 1))
    figure = Figure(figsize=(8.5, 0.9 + 0.42 * len(proxies) * 0.16 / step))
    axes = figure.subplots()
    for index, (colour, shift) in enumerate(zip(cycle(PALETTE[1:]), shifts, strict=False)):
        rows = gaps[gaps["split"] == shift].set_index("proxy").reindex(proxies)
        y = np.arange(len(proxies)) + (index - (len(shifts) - 1) / 2) * step
        value = 100 * rows["gap"].to_numpy(dtype=float)
        error = 100 * np.stack((rows["gap"] - rows["low"], rows["high"] - rows["gap"])).astype(float)
        axes.errorbar(
            value, y, xerr=np.clip(error, 0, None), fmt="o", color=colour, markersize=3.5, elinewidth=1.3, label=shift
        )
        matched = 100 * rows["matched"].to_numpy(dtype=float)
        error = 100 * np.stack((rows["matched"] - rows["matched_low"], rows["matched_high"] - rows["matched"]))
        axes.errorbar(
            matched, y + step / 2, xerr=np.clip(error.astype(float), 0, None), fmt="o", color=colour, markersize=3.5,
            markerfacecolor="none", elinewidth=0.7, alpha=0.8,
        )  # fmt: skip
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks(range(len(proxies)), proxies)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"gap: {_short(comparison)} on iid minus on the shift (points)")
    handles, labels = axes.get_legend_handles_labels()
    hollow = Line2D([], [], color=INK, marker="o", markersize=3.5, markerfacecolor="none", linewidth=0.7)
    figure.legend([*handles, hollow], [*labels, "at equal margin of the subject"], loc="outside lower center", ncols=3)
    return figure


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


def agreement_by_class(comparison: Comparison, site: str, feature: FeatureRecord) -> Figure:
    """Same prediction by the classes of a feature, a panel a split, a mark a proxy."""
    splits, names = _evaluation_splits(comparison), _leading(comparison, site)
    table = _rows(comparison, site, comparison.record.primary_metric, feature=feature.name)
    there = set(table[table["split"].isin(splits)]["bin"])
    named = dict(zip(feature.edges or (), feature.labels or (), strict=True))
    edges = [edge for edge in named if edge in there]
    labels = [named[edge] for edge in edges]
    columns = min(3, len(splits))
    rows = -(-len(splits) // columns)
    figure = Figure(figsize=(10, rows * (1.1 + 0.42 * len(labels)) + 0.5))
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, split in zip(panels, splits, strict=False):
        for index, (colour, name) in enumerate(zip(cycle(PALETTE), names, strict=False)):
            found = table[(table["split"] == split) & (table["proxy"] == name)].set_index("bin").reindex(edges)
            y = np.arange(len(edges)) + (index - (len(names) - 1) / 2) * 0.14
            value = found["estimate"].to_numpy(dtype=float)
            error = np.stack((found["estimate"] - found["low"], found["high"] - found["estimate"])).astype(float)
            axes.errorbar(
                value, y, xerr=np.clip(error, 0, None), fmt="o", color=colour, markersize=3.5, elinewidth=1.3,
                label=name if axes is panels[0] else "",
            )  # fmt: skip
        axes.set_title(split, loc="left")
        axes.set_xlabel(f"share with the {_short(comparison)}")
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].set_ylim(len(labels) - 0.5, -0.5)
    panels[0].set_xlim(-0.02, 1.02)
    for empty in panels[len(splits) :]:
        empty.remove()
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def agreement_by_feature(comparison: Comparison, site: str, feature: str) -> Figure:
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
    figure = Figure(figsize=(10, 4.2))
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    if len(reach):
        split = str(reach.idxmax())
        iid_reach = agreement[~agreement["split"].isin(shifts)]["bin"].max()
        for axes, (metric, title) in zip(panels, shown, strict=True):
            table = _rows(comparison, site, metric, feature=feature)
            table = table[table["split"] == split].sort_values("bin")
            for colour, name in zip(cycle(PALETTE), names, strict=False):
                rows = table[table["proxy"] == name]
                _band(axes, rows["bin"].to_numpy(), rows, colour, name if axes is panels[0] else "")
            if iid_reach < reach.max():
                axes.axvline(iid_reach + 0.5, color=INK, linewidth=1, linestyle=":")
                axes.text(iid_reach + 0.6, 0.0, "beyond any on iid →", fontsize=9, va="bottom")
            axes.set_title(f"{title}, {split}", loc="left")
        subject = _rows(comparison, site, "subject_accuracy", feature=feature)
        rows = subject[subject["split"] == split].drop_duplicates("bin").sort_values("bin")
        if metric == "proxy_accuracy" and len(rows):
            _band(panels[-1], rows["bin"].to_numpy(), rows, INK, "the subject", linestyle="--")
    for axes in panels:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(words)
        axes.set_ylim(-0.02, 1.02)
    panels[0].set_ylabel("share of predictions")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def _layers_shown(comparison: Comparison, site: str, table: pd.DataFrame) -> list[int]:
    """The layers that the site edits; where their attention stays as it was (an edit behind it), those it changes."""
    places = {place for proxy in comparison.record.proxies if proxy.site == site for place in proxy.heads}
    edited = {int(match[1]) for match in map(_LAYER_OF.match, places) if match}
    changed = set(table[table["estimate"] > 0]["bin"])
    return sorted(edited & changed or changed or set(table["bin"]))


def attention_by_layer(comparison: Comparison, site: str) -> Figure:
    """Attention divergence by layer in distribution, one group of bars a proxy; only layers that the site edits."""
    table = _rows(comparison, site, "attention_jsd", feature=LAYER)
    table = table[table["split"] == _evaluation_splits(comparison)[0]]
    proxies = list(dict.fromkeys(table["proxy"]))
    layers = _layers_shown(comparison, site, table)
    figure = Figure(figsize=(8.5, 0.9 + max(0.3, 0.09 * len(layers)) * len(proxies)))
    axes = figure.subplots()
    height = 0.8 / max(len(layers), 1)
    for colour, (index, layer) in zip(cycle(PALETTE), enumerate(layers), strict=False):
        rows = table[table["bin"] == layer].set_index("proxy").reindex(proxies)
        y = np.arange(len(proxies)) + (index - (len(layers) - 1) / 2) * height
        value = rows["estimate"].to_numpy(dtype=float)
        error = np.stack((rows["estimate"] - rows["low"], rows["high"] - rows["estimate"])).astype(float)
        axes.barh(y, value, height * 0.9, color=colour, label=f"layer {layer}")
        axes.errorbar(value, y, xerr=np.clip(error, 0, None), fmt="none", ecolor=INK, elinewidth=1)
    axes.set_yticks(range(len(proxies)), proxies)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("attention JSD (nats)")
    axes.legend(loc="lower right")
    return figure


def key_cloud(cloud: KeyCloud) -> Figure:
    """Keys in two dimensions, a panel a split."""
    figure = Figure(figsize=(4.4 * len(cloud.points), 3.8))
    panels = figure.subplots(1, len(cloud.points), squeeze=False, sharex=True, sharey=True)[0]
    top = max(value for points in cloud.points.values() for _, _, value in points)
    for axes, (split, points) in zip(panels, cloud.points.items(), strict=True):
        x, y, value = (np.array(column) for column in zip(*points, strict=True))
        dots = axes.scatter(x, y, c=value, s=7, cmap="viridis", vmin=0, vmax=top, linewidths=0, rasterized=True)
        axes.set_title(split, loc="left")
        axes.set_xlabel("first direction")
    panels[0].set_ylabel("second direction")
    bar = figure.colorbar(dots, ax=panels, label=cloud.colour)
    if cloud.boundary is not None and cloud.boundary < top:
        bar.ax.axhline(cloud.boundary + 0.5, color=INK, linewidth=1.5)
    return figure


def sentence_attention(view: SentenceView) -> Figure:
    """The attention of subject and proxy side by side; of many tokens only some are named."""
    size = len(view.tokens)
    # The usual layout cuts titles and labels off panels whose height follows from their width.
    figure = Figure(figsize=(10, 5.2), layout="compressed")
    step = -(-size // TOKENS)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, title, pattern in zip(
        panels, ("subject", view.proxy), (view.subject_pattern, view.proxy_pattern), strict=True
    ):
        weights = np.array(pattern)
        axes.imshow(np.where(np.tri(size, dtype=bool), weights, np.nan), cmap="Blues", vmin=0, vmax=1, aspect="equal")
        axes.plot(weights.argmax(axis=1), np.arange(size), "o", color=PALETTE[1], markersize=2.5, linestyle="none")
        axes.set_xticks(range(0, size, step), view.tokens[::step], rotation=90, fontsize=6, parse_math=False)
        axes.set_yticks(range(0, size, step), view.tokens[::step], fontsize=6, parse_math=False)
        axes.set_title(title, loc="left")
        axes.set_xlabel("attended position (key)")
        axes.grid(visible=False)
    panels[0].set_ylabel("position (query)")
    return figure


_MARKERS = ("o", "D", "^", "s", "v")
_LEGEND_LETTERS = 110
"""About as many letters stand beside each other below a chart."""

_BANDS, _BAND = ("#80868b", "#c9a66b", "#8fa8c9"), 0.3
"""Colours of bands, and how much of them is seen."""


def points_chart(chart: Chart) -> Figure:
    """A chart as it is given: a colour a name, a marker a variant (hollow from the second on), bands behind them."""
    panels = list(dict.fromkeys(series.panel for series in chart.series))
    figure = Figure(figsize=(9, 4.2))
    grid = dict(zip(panels, figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], strict=True))
    points = [series for series in chart.series if not series.band]
    colours = dict(zip(dict.fromkeys(series.name for series in points), cycle(PALETTE), strict=False))
    markers = dict(zip(dict.fromkeys(series.variant for series in points), cycle(_MARKERS), strict=False))
    bands = dict.fromkeys(series.name for series in chart.series if series.band)
    greys = dict(zip(bands, cycle(_BANDS), strict=False))
    plain = next(iter(markers), "")
    for number, series in enumerate(chart.series):
        axes = grid[series.panel]
        x = np.array(series.x, dtype=float)
        if chart.names is not None:
            x = x + (number - (len(chart.series) - 1) / 2) * 0.8 / max(len(chart.series), 2)
        y, low, high = (np.array(values, dtype=float) for values in (series.y, series.low, series.high))
        if series.band:
            axes.fill_between(x, low, high, color=greys[series.name], alpha=_BAND, linewidth=0, zorder=0)
            axes.plot(x, y, color=greys[series.name], linewidth=1, linestyle=":", zorder=1)
            continue
        error = np.nan_to_num(np.clip(np.stack((y - low, high - y)), 0, None))
        axes.errorbar(
            x,
            y,
            yerr=error,
            fmt=markers[series.variant] + ("" if chart.names is not None else "-"),
            color=colours[series.name],
            markerfacecolor=colours[series.name] if series.variant == plain else "none",
            markersize=4,
            elinewidth=1.2,
        )
    entries = [Line2D([], [], color=colour, marker="o", linestyle="", label=name) for name, colour in colours.items()]
    if len(markers) > 1:
        entries += [
            Line2D([], [], color=INK, marker=marker, linestyle="", label=variant,
                   markerfacecolor=INK if variant == plain else "none")
            for variant, marker in markers.items()
        ]  # fmt: skip
    for title, axes in grid.items():
        if chart.names is not None:
            axes.set_xticks(range(len(chart.names)), [name.replace("_", " ") for name in chart.names])
            axes.axhline(0, color=INK, linewidth=1)
            axes.grid(axis="x", visible=False)
        if chart.logarithmic:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set_title(title, loc="left")
        axes.set_xlabel(chart.x_label)
    grid[panels[0]].set_ylabel(chart.y_label)
    longest = max(len(str(entry.get_label())) for entry in entries)
    columns = max(1, min(len(entries), _LEGEND_LETTERS // (longest + 8)))
    figure.legend(handles=entries, loc="outside lower center", ncols=columns)
    if greys:
        shades = [Patch(color=grey, alpha=_BAND, linewidth=0, label=name) for name, grey in greys.items()]
        figure.legend(handles=shades, loc="outside upper center")
    return figure
