"""What `assay run code` shows beside the usual: tables, charts and functions, from comparisons and the subject."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch

from assay.engine import EditedSubject, Engine, tensors
from assay.faithfulness import ALL, Comparison, rank_correlation
from assay.reports import Chart, SentenceView, Series, TableView, TextView, limits, percent, point_limits, points
from assay.simplify import Simplification, label, representation_bits
from assay.subjects import Subject
from assay.tasks import KINDS, UNSCORED, Code, Split

KIND_HEADINGS = tuple(kind.replace("_", " ").replace("whitespace", "white space") for kind in KINDS)
"""Kinds as headings that fold at words, so that seven columns fit into eighty letters."""

SHOWN_CHARACTERS = 48
"""Characters of a function whose attention is drawn."""


def _rate(row: pd.Series) -> tuple[str, str]:
    return percent(float(row["estimate"])), limits(float(row["low"]), float(row["high"]))


def _rows(comparison: Comparison, metric: str, kind: str = ALL, feature: str = "") -> pd.DataFrame:
    frame = comparison.results
    return frame[
        (frame["metric"] == metric) & (frame["kind"] == kind) & (frame["feature"] == feature) & frame["trained"]
    ]


def _splits(comparison: Comparison) -> list[str]:
    return [split.name for split in comparison.record.splits if split.role != "train"]


def _own(comparison: Comparison) -> list[tuple[str, str]]:
    """EditedSubject and site of what is judged, without the controls."""
    return [(proxy.proxy, proxy.site) for proxy in comparison.record.proxies if not proxy.is_control]


def by_kind(comparison: Comparison, proxies: Sequence[str], loud: Sequence[str]) -> Iterator[TableView]:
    """By split (rows) and kind of character (columns): same prediction of each proxy, then accuracy, the subject first.

    Those of `loud` are shown in the terminal too.
    """

    def table(title: str, metric: str, proxy: str | None, *, quiet: bool) -> TableView:
        rates = []
        for kind in (ALL, *KINDS):
            found = _rows(comparison, metric, kind)
            found = found[found["site"] == "all"] if proxy is None else found[found["proxy"] == proxy]
            rates.append(found.drop_duplicates("split").set_index("split"))
        return TableView(
            title=f"{title} by kind of character",
            note="Per cent, with intervals over functions" + ("; every head simplified." if proxy else "."),
            headings=["split", "all", *KIND_HEADINGS],
            rows=[[(split, ""), *(_rate(rate.loc[split]) for rate in rates)] for split in _splits(comparison)],
            quiet=quiet,
        )

    for proxy in proxies:
        yield table(f"{proxy}: same prediction", "same_prediction", proxy, quiet=proxy not in loud)
    yield table("The subject: accuracy", "subject_accuracy", None, quiet=False)
    for proxy in proxies:
        yield table(f"{proxy}: accuracy", "proxy_accuracy", proxy, quiet=proxy not in loud)


def shares(task: Code, splits: Sequence[Split]) -> TableView:
    """The share of each kind, and how many functions and predictions there are, by split."""
    rows = []
    for split in splits:
        kinds = split.kinds[split.kinds != UNSCORED]
        cells = [(split.name, ""), (f"{len(split):,}", ""), (f"{len(kinds):,}", "")]
        rows.append(cells + [(percent(float((kinds == index).mean())), "") for index in range(len(KINDS))])
    return TableView(
        title="What is predicted",
        note=f"Functions and predictions judged by split, and the share of each kind in per cent ({task.name}).",
        headings=["split", "functions", "predictions", *KIND_HEADINGS],
        rows=rows,
        quiet=True,
    )


def measured(subject: Subject) -> TableView:
    """How well the subject predicts, by split, as its training record says."""
    kinds = list(KIND_HEADINGS)
    rows = []
    for split, found in subject.record["measured"].items():
        rates = [found["accuracy"], *(found["kinds"][kind]["accuracy"] for kind in KINDS)]
        cells = [split, f"{found['functions']:,}", f"{found['bits_per_character']:.3f}"]
        cells += ["–" if rate is None else percent(rate) for rate in rates]
        rows.append([(cell, "") for cell in cells])
    return TableView(
        title="How well the subject predicts",
        note="Bits per character and accuracy in per cent, over all characters and by kind; from its training record.",
        headings=["split", "functions", "bits", "accuracy", *kinds],
        rows=rows,
        quiet=True,
    )


def kind_gaps(comparison: Comparison, proxy: str) -> Iterator[TableView]:
    """The gap of one proxy by shift (rows) and kind (columns): as it is, and at equal margin of the subject."""
    by_kind = {kind: comparison.gaps("same_prediction", kind) for kind in KINDS}
    by_kind = {
        kind: gaps[gaps["trained"].astype(bool) & (gaps["proxy"] == proxy)].set_index("split")
        for kind, gaps in by_kind.items()
    }
    for prefix, title, note in (
        ("", "gap by kind of character", "Points, with intervals over functions."),
        (
            "matched_",
            "gap by kind of character at equal margin",
            "Points; – where too few predictions can be compared.",
        ),
    ):
        column = prefix.rstrip("_") or "gap"
        rows = []
        for shift in comparison.shifts:
            found = [gaps.loc[shift] for gaps in by_kind.values()]
            cells = [
                (points(float(row[column])), point_limits(float(row[f"{prefix}low"]), float(row[f"{prefix}high"])))
                for row in found
            ]
            rows.append([(shift, ""), *cells])
        yield TableView(
            title=f"{proxy} at all: {title}",
            note=note,
            headings=["shift", *KIND_HEADINGS],
            rows=rows,
            quiet=True,
        )


def by_depth(comparison: Comparison, proxy: str, site: str, deepest: int) -> TableView:
    """Same prediction of one proxy by split (rows) and open brackets at the predicted character (columns)."""
    table = _rows(comparison, "same_prediction", feature="depth")
    table = table[(table["proxy"] == proxy) & (table["site"] == site)]
    depths = sorted({int(depth) for depth in table["bin"]})
    rows = []
    for split in _splits(comparison):
        of_split = table[table["split"] == split].set_index("bin")
        cells = [_rate(of_split.loc[depth]) if depth in of_split.index else ("–", "") for depth in depths]
        rows.append([(split, ""), *cells])
    return TableView(
        title=f"{proxy} at {site}: same prediction by bracket depth of the predicted character",
        note=f"Per cent, with intervals over functions. The subject was trained on depths up to {deepest}.",
        headings=["split", *map(str, depths)],
        rows=rows,
        quiet=True,
    )


# -- heads ----------------------------------------------------------------------------------------------------------


def head_gaps(heads: Comparison, proxy: str, kind: str = ALL) -> pd.DataFrame:
    """One row a head: the mean of its gaps over shifts, and the gap that is largest, with its interval and p-value."""
    gaps = heads.gaps("same_prediction", kind)
    gaps = gaps[gaps["trained"].astype(bool) & (gaps["proxy"] == proxy)].dropna(subset=["gap"])
    largest = gaps.loc[gaps.groupby("site", sort=False)["gap"].idxmax()].set_index("site")
    return largest.assign(mean_gap=gaps.groupby("site")["gap"].mean()).sort_values("gap", ascending=False)


def heads_table(heads: Comparison, scores: pd.DataFrame, proxy: str) -> TableView:
    """Heads by their largest gap, with what they do."""
    by_head = scores.set_index("head")
    table = head_gaps(heads, proxy)
    rows = []
    for site, row in zip(map(str, table.index), table.to_dict("records"), strict=True):
        own = by_head.loc[site]
        rows.append(
            [
                (site, ""),
                (str(row["split"]).replace("_", " "), ""),
                (points(float(row["gap"])), point_limits(float(row["low"]), float(row["high"]))),
                (points(float(row["matched"])), point_limits(float(row["matched_low"]), float(row["matched_high"]))),
                (_p_value(float(row["p_holm"])), ""),
                (f"{float(own['previous_token']):.2f}", ""),
                (f"{float(own['induction']):.2f}", ""),
            ]
        )
    chance = float(scores["induction_chance"].iloc[0])
    return TableView(
        title=f"Each head by itself, {proxy}: the shift with the largest gap",
        note=(
            "Gaps in points with intervals over functions; p is adjusted by Holm over all heads, shifts and "
            "simplifications. Attention to the token before, and to what followed the last occurrence of the same "
            f"context (by chance {chance:.3f})."
        ),
        headings=["head", "shift", "gap", "at equal margin", "p (Holm)", "previous", "induction"],
        rows=rows,
    )


def heads_by_proxy(heads: Comparison, shown: str) -> Iterator[TableView]:
    """Heads (rows, as in `heads_table`) by simplification (columns): same prediction on iid, then the largest gap."""
    sites = [str(site) for site in head_gaps(heads, shown).index]
    own = list(dict.fromkeys(proxy for proxy, _ in _own(heads)))
    perturbations = {proxy.perturbation for proxy in heads.record.proxies}
    controls = [proxy.proxy for proxy in heads.record.proxies if proxy.is_control and proxy.proxy not in perturbations]
    agreement = _rows(heads, "same_prediction").set_index(["split", "proxy", "site"]).loc["iid"]
    names = [*own, *dict.fromkeys(controls)]
    yield TableView(
        title="Each head by itself: same prediction in distribution",
        note="Per cent, with intervals over functions; controls behind the simplifications.",
        headings=["head", *names],
        rows=[[(site, ""), *(_rate(agreement.loc[name, site]) for name in names)] for site in sites],
        quiet=True,
    )
    gaps = {proxy: head_gaps(heads, proxy) for proxy in own}
    rows = []
    for site in sites:
        largest = [table.loc[site] for table in gaps.values()]
        cells = [
            (f"{points(float(row['gap']))} {row['split']}", point_limits(float(row["low"]), float(row["high"])))
            for row in largest
        ]
        rows.append([(site, ""), *cells])
    yield TableView(
        title="Each head by itself: the largest gap of every simplification",
        note="Points and the shift, with intervals over functions.",
        headings=["head", *own],
        rows=rows,
        quiet=True,
    )


def heads_by_kind(heads: Comparison, proxy: str) -> TableView:
    """The gap by kind of character (columns) of every head (rows), each under the shift of its largest gap."""
    chosen = head_gaps(heads, proxy)["split"]
    by_kind = [heads.gaps("same_prediction", kind) for kind in (ALL, *KINDS)]
    tables = [
        gaps[gaps["trained"].astype(bool) & (gaps["proxy"] == proxy)].set_index(["site", "split"]) for gaps in by_kind
    ]
    rows = []
    for site, shift in chosen.items():
        found = [table.loc[(site, shift)] for table in tables]
        cells = [(points(float(row["gap"])), point_limits(float(row["low"]), float(row["high"]))) for row in found]
        rows.append([(str(site), ""), (str(shift), ""), *cells])
    return TableView(
        title=f"Each head by itself, {proxy}: gap by kind of character",
        note="Points, under the shift where the head's gap is largest, with intervals over functions.",
        headings=["head", "shift", "all", *KIND_HEADINGS],
        rows=rows,
        quiet=True,
    )


def correlations(heads: Comparison, scores: pd.DataFrame, proxy: str) -> TableView:
    """Whether heads with a high score have a large gap."""
    rows = []
    for kind in (ALL, "repeated_word"):
        mean = head_gaps(heads, proxy, kind)["mean_gap"].reindex(scores["head"])
        for score in ("previous_token", "induction"):
            found = rank_correlation(scores[score].to_numpy(), mean.to_numpy())
            interval = "" if math.isnan(found.low) else f"{found.low:+.2f} {found.high:+.2f}"
            value = "–" if math.isnan(found.value) else f"{found.value:+.2f}"
            rows.append([(kind.replace("_", " "), ""), (score.replace("_", " "), ""), (value, interval)])
    return TableView(
        title="Do heads of one kind have the largest gaps?",
        note=(
            f"Spearman's rank correlation over the {len(scores)} heads of a head's score with its gap (mean over "
            "shifts), by kind of prediction, with 95% limits."
        ),
        headings=["gap on", "score", "rank correlation"],
        rows=rows,
    )


# -- charts ---------------------------------------------------------------------------------------------------------


def _p_value(p: float) -> str:
    if math.isnan(p):
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _gap_series(name: str, rows: pd.DataFrame, prefix: str = "", variant: str = "") -> Series:
    value = prefix.rstrip("_") or "gap"
    return Series(
        name=name,
        variant=variant,
        x=[float(index) for index in range(len(rows))],
        y=[_number(100 * float(one)) for one in rows[value]],
        low=[_number(100 * float(one)) for one in rows[f"{prefix}low"]],
        high=[_number(100 * float(one)) for one in rows[f"{prefix}high"]],
    )


def gaps_by_shift(comparison: Comparison, proxies: Sequence[str]) -> Chart:
    """The paper's first open question: is there a gap for every kind of shift?"""
    gaps = comparison.gaps("same_prediction", ALL).set_index(["trained", "proxy", "split"])
    shifts = list(comparison.shifts)
    series = [
        _gap_series(proxy, gaps.loc[True].loc[proxy].reindex(shifts), prefix, variant)
        for proxy in proxies
        for variant, prefix in (("as it is", ""), ("at equal margin of the subject", "matched_"))
    ]
    return Chart(
        name="gap-by-shift",
        caption="Gap of simplifications of all heads under every shift, as it is and at equal margin of the subject.",
        x_label="shift",
        y_label="gap in same prediction (points)",
        names=shifts,
        series=series,
    )


def gaps_by_kind(comparison: Comparison, proxy: str) -> Chart:
    """Where the gap is, by kind of predicted character."""
    series = []
    for shift in comparison.shifts:
        rows = []
        for kind in KINDS:
            gaps = comparison.gaps("same_prediction", kind)
            rows.append(gaps[gaps["trained"] & (gaps["proxy"] == proxy) & (gaps["split"] == shift)].iloc[0])
        series.append(_gap_series(shift.replace("_", " "), pd.DataFrame(rows)))
    return Chart(
        name="gap-by-kind",
        caption=f"Gap of {proxy} by kind of predicted character and shift; all heads simplified.",
        x_label="kind of predicted character",
        y_label="gap in same prediction (points)",
        names=list(KINDS),
        series=series,
    )


def agreement_by_bits(
    comparison: Comparison, recipes: Sequence[Simplification], splits: Sequence[Split], width: int, length: int
) -> Chart:
    """The paper's second open question: how do the techniques compare at equal length of what they keep?

    A codebook is kept once a head; it is spread over the positions of the judged functions of a split, which all use
    it. One-hot attention is put at the queries and keys that its positions are chosen by.
    """
    table = _rows(comparison, "same_prediction").set_index(["split", "proxy"])
    bits = {label(item): representation_bits(item, width=width, length=length) for item in recipes}
    positions = {split.name: int(split.lengths.sum()) for split in splits}
    stated = [f"{one.stated:.1f} for {name}" for name, one in bits.items() if one.stated is not None]
    shown = ("iid", *comparison.shifts[:3])
    series = []
    for split in shown:
        at = {name: one.spread(positions[split]) for name, one in bits.items()}
        for family in dict.fromkeys(name.partition("(")[0] for name in bits):
            names = sorted((name for name in bits if name.startswith(f"{family}(")), key=at.__getitem__)
            rows = table.loc[split].loc[names]
            series.append(
                Series(
                    name=split.replace("_", " "),
                    variant=family,
                    x=[at[name] for name in names],
                    y=[_number(100 * float(one)) for one in rows["estimate"]],
                    low=[_number(100 * float(one)) for one in rows["low"]],
                    high=[_number(100 * float(one)) for one in rows["high"]],
                )
            )
    few, many = (f"{limit(positions[split] for split in shown):,}" for limit in (min, max))
    caption = (
        "Same prediction against the bits of what a simplification keeps of a head at each position: numbers of 16 "
        f"bits, codebooks spread over the {few} to {many} positions of a split's judged functions. What a proxy gets "
        "wrong is not paid for."
    )
    if stated:
        caption += (
            " Attention to one position is chosen by whole queries and keys, and put there; to state the positions "
            f"themselves takes fewer bits ({', '.join(stated)})."
        )
    return Chart(
        name="agreement-by-bits",
        caption=caption,
        x_label="bits a position and head, its share of the codebook counted",
        y_label="same prediction (per cent)",
        names=None,
        series=series,
        logarithmic=True,
    )


def components_view(whole: Comparison, components: Sequence[Comparison], pattern: str) -> tuple[TableView, Chart]:
    """The paper's third open question: which component's simplification costs most under each shift?"""
    rows, series = [], []
    shifts = list(whole.shifts)
    for comparison, proxy, site in (
        (whole, pattern, "all"),
        *((one, proxy, site) for one in components for proxy, site in _own(one)),
    ):
        what = "pattern (queries and keys)" if site == "all" else site.removeprefix("all.")
        gaps = comparison.gaps("same_prediction", ALL)
        gaps = gaps[gaps["trained"] & (gaps["proxy"] == proxy) & (gaps["site"] == site)].set_index("split")
        agreement = _rows(comparison, "same_prediction")
        agreement = agreement[(agreement["proxy"] == proxy) & (agreement["site"] == site)].set_index("split")
        rows.append(
            [
                (what, ""),
                (proxy, ""),
                _rate(agreement.loc["iid"]),
                *(
                    (points(float(row["gap"])), point_limits(float(row["low"]), float(row["high"])))
                    for row in gaps.loc[shifts].to_dict("records")
                ),
            ]
        )
        series.append(_gap_series(what, gaps.loc[shifts]))
    table = TableView(
        title="Which component costs most: a quarter of the directions of each",
        note="Same prediction on iid in per cent, then the gap under each shift in points.",
        headings=["component", "by", "iid", *(shift.replace("_", " ") for shift in shifts)],
        rows=rows,
        quiet=True,
    )
    chart = Chart(
        name="gap-by-component",
        caption="Gap under each shift when one component is projected on a quarter of its directions, in all layers.",
        x_label="shift",
        y_label="gap in same prediction (points)",
        names=shifts,
        series=series,
    )
    return table, chart


# -- functions ------------------------------------------------------------------------------------------------------


def _shown(token: str) -> str:
    return {"\n": "↵", "\t": "→", " ": "·"}.get(token, token)


def _character(token: str) -> str:
    """What a token adds to the text: nothing for START, END and padding."""
    return token if len(token) == 1 else ""


def function_view(  # noqa: PLR0917
    engine: Engine, task: Code, one: Split, proxy: EditedSubject, name: str, site: str
) -> TextView:
    """One function with every character marked by how far the proxy departs when it predicts it."""
    tokens, valid = tensors(one, engine.subject.device)
    first, second = (engine.run(tokens, valid, edits=edits).logits[0].double() for edits in ((), proxy.edits))
    p, q = first.log_softmax(dim=-1), second.log_softmax(dim=-1)
    middle = torch.logaddexp(p, q) - math.log(2)
    divergence = ((p.exp() * (p - middle) + q.exp() * (q - middle)).sum(dim=-1) / 2).clamp(0, math.log(2)).tolist()
    picks = [logits.argmax(dim=-1).tolist() for logits in (first, second)]
    words = [[task.vocabulary[token] for token in pick] for pick in picks]
    length = int(one.lengths[0])
    shown = one.tokens[0, 1:length].tolist()
    return TextView(
        title=f"A function of {one.name}",
        site=site,
        proxy=name,
        characters=["\ufffd" if token == task.unknown_id else _character(task.vocabulary[token]) for token in shown],
        divergence=[round(value, 4) for value in divergence[: len(shown)]],
        subject=words[0][: len(shown)],
        proxy_says=words[1][: len(shown)],
    )


def telling_function(engine: Engine, split: Split, proxy: EditedSubject, characters: int = 200) -> Split:
    """Of the first functions of a split, the one with the median share of changed predictions among those that fit."""
    found = []
    for index in range(min(len(split), 20)):
        one = split.take(np.array([index]))
        tokens, valid = tensors(one, engine.subject.device)
        picks = [engine.run(tokens, valid, edits=edits).logits[0].argmax(dim=-1) for edits in ((), proxy.edits)]
        scored = torch.from_numpy(one.kinds[0] != UNSCORED).to(tokens.device)
        share = float((picks[0] != picks[1])[scored].double().mean())
        found.append((int(one.lengths[0]) > characters, share, index))
    fitting = sorted(item for item in found if not item[0]) or sorted(found)
    return split.take(np.array([fitting[len(fitting) // 2][2]]))


def attention_views(  # noqa: PLR0917
    engine: Engine, task: Code, splits: Sequence[Split], head: str, proxy: EditedSubject, name: str
) -> Iterator[SentenceView]:
    """The attention of one head, of the subject and of the proxy, on the beginning of one function of each split."""
    place = engine.site(head).places[0]
    for split in splits:
        lengths = np.minimum(split.lengths, SHOWN_CHARACTERS)
        one = split.take(np.array([int(np.argmax(lengths))]))
        width = int(min(one.lengths[0], SHOWN_CHARACTERS))
        tokens, valid = tensors(one, engine.subject.device)
        tokens, valid = tokens[:, :width], valid[:, :width]
        runs = [engine.run(tokens, valid, edits=edits, read=("patterns",)) for edits in ((), proxy.edits)]
        number = getattr(place, "head", 0)
        patterns = [
            [[round(v, 4) for v in row] for row in run.patterns[place.layer][0, number].tolist()] for run in runs
        ]
        picks = [run.logits[0].argmax(dim=-1).tolist() for run in runs]
        vocabulary = [_shown(token) for token in task.vocabulary]
        yield SentenceView(
            title=f"The beginning of a function of {split.name}",
            site=head,
            proxy=name,
            tokens=[vocabulary[token] for token in tokens[0].tolist()],
            subject_pattern=patterns[0],
            proxy_pattern=patterns[1],
            predictions=[
                (t, vocabulary[int(tokens[0, t + 1])], vocabulary[picks[0][t]], vocabulary[picks[1][t]])
                for t in range(width - 1)
                if one.kinds[0, t] != UNSCORED and picks[0][t] != picks[1][t]
            ],
        )
