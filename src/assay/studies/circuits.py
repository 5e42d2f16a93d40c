"""Circuits, judged where they were not found: as one experiment."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from assay.circuits import Circuit, Edge
from assay.diagnostics import Estimate, areas, overlap, stability
from assay.engine import Samples
from assay.faithfulness import Comparison, Step, Workers, compare
from assay.reports import (
    Chart,
    CircuitEdge,
    CircuitView,
    HeatView,
    Illustrations,
    Series,
    TableView,
)
from assay.simplify import label
from assay.studies._parts import check_parts, run_parts, write_parts
from assay.studies._sentences import agreement_pairs, ioi_pairs
from assay.subjects import Subject, load, shipped
from assay.tasks import DyckPairs, InductionPairs, Task

DRAWN = 0.95
"""The circuit that is drawn is the smallest with so much of the subject's effect in distribution."""


@dataclass(frozen=True)
class Part:
    """One kind of pairs: its subjects (training seeds), its task, the circuits to find, and how many pairs to use.

    `resamples` is how often circuits are found again to see whether they are stable.
    """

    name: str
    subjects: Sequence[Subject]
    task: Task
    circuits: Sequence[Circuit]
    sequences: int
    fit_sequences: int
    resamples: int = 0


def _circuits(sizes: Sequence[int], methods: Sequence[str]) -> list[Circuit]:
    return [Circuit(edges=size, method=method) for method in methods for size in sizes]


def dyck(*, everything: bool, device: str) -> list[Part]:
    """Bracket matchers on far closing brackets: which opener was it? Five training seeds with `everything`."""
    seeds = shipped()["dyck-20-10"] if everything else (0,)
    methods = ("exact", "eap-ig", "eap", "greedy") if everything else ("exact", "eap-ig", "greedy")
    return [
        Part(
            "dyck",
            [load("dyck-20-10", seed=seed, device=device) for seed in seeds],
            DyckPairs(),
            _circuits((4, 6, 8, 10, 16), methods),
            240,
            200,
            resamples=10 if everything else 0,
        )
    ]


def induction(*, everything: bool, device: str) -> list[Part]:
    """A character model of Python on names that occur again: how does it go on?"""
    sizes, methods = (
        ((10, 20, 50, 100, 200), ("eap-ig", "exact", "eap")) if everything else ((20, 50, 100), ("eap-ig",))
    )
    subject = load("code-python", device=device)
    task = InductionPairs()
    judged, fitted = (200, 120) if everything else (60, 60)
    return [Part("induction", [subject], task, _circuits(sizes, methods), judged, fitted)]


def smollm2(*, everything: bool, device: str) -> list[Part]:
    """SmolLM2-135M on indirect objects and on agreement, where the package that carries it is installed."""
    subject = load("smollm2", device=device)
    assert subject.tokenizer is not None
    sizes = (50, 100, 200, 500, 1000, 2000, 5000) if everything else (100, 500, 2000)
    tasks = {"smollm2-ioi": ioi_pairs(), "smollm2-agreement": agreement_pairs()}
    return [
        Part(name, [subject], task.bound_to(subject.tokenizer), _circuits(sizes, ("eap-ig",)), 60, 60)
        for name, task in tasks.items()
    ]


PARTS: dict[str, Callable[..., list[Part]]] = {"dyck": dyck, "induction": induction, "smollm2": smollm2}
"""What can be run, by name; the default run has the first two."""


@dataclass(frozen=True)
class Found:
    """A circuit of the first subject, fitted on the train split and on each shift that has pairs enough."""

    circuit: Circuit
    elsewhere: Mapping[str, Circuit]


@dataclass(frozen=True)
class Done:
    """A finished part: its comparison, and its circuits."""

    part: Part
    comparison: Comparison
    found: Sequence[Found]
    folder: Path


def check_names(only: Sequence[str]) -> None:
    """Raise AssayError for an unknown part, and one that is named twice."""
    check_parts(only, PARTS)


def run(
    folder: Path,
    *,
    everything: bool = False,
    only: Sequence[str] = (),
    device: str = "cpu",
    sequences: int | None = None,
    overwrite: bool = False,
    workers: Workers = Workers(),
    progress: Callable[[Step], None] = lambda step: None,
) -> tuple[list[Done], Illustrations]:
    """Find circuits on pairs of the train split, judge them in distribution and under every shift, leave a run folder.

    By default the Dyck model of seed 0 and induction in the Python model; with `everything` five seeds, more methods
    and sizes. `only` names what to run (see `PARTS`; "smollm2" is two parts), `sequences` how many pairs a split are
    judged. Every part is a comparison in a folder of its name with a page of its own. A run that was stopped goes on
    where it was. Raises AssayError as `assay.compare` does, for an unknown part, and for one whose model is missing.
    """
    check_names(only)
    done = run_parts(
        folder,
        list(only) or ["dyck", "induction"],
        lambda name: PARTS[name](everything=everything, device=device),
        _judged,
        sequences=sequences,
        overwrite=overwrite,
        workers=workers,
        progress=progress,
    )
    return done, write_parts(folder, done, [illustrations(one) for one in done])


def illustrations(done: Done) -> Illustrations:
    """What a part adds to its comparison: tables, curves over sizes, the circuit drawn, scores of heads."""
    drawn = _drawn(done)
    return Illustrations(
        tables=[sizes(done), methods(done), elsewhere(done)],
        charts=[curve(done, "effect"), curve(done, "same_prediction")],
        circuits=[] if drawn is None else [picture(done, drawn)],
        heats=[] if drawn is None else [heads(done, drawn)],
    )


def _judged(folder: Path, part: Part, overwrite: bool, workers: Workers, progress: Callable[[Step], None]) -> Done:
    comparison = compare(
        part.subjects,
        part.task,
        part.circuits,
        folder=folder,
        sequences=part.sequences,
        fit_sequences=part.fit_sequences,
        overwrite=overwrite,
        workers=workers,
        progress=lambda step: progress(Step(step.done, step.total, f"{part.name}: {step.text}")),
    )
    progress(Step(1, 1, f"{part.name}: circuits"))
    return Done(part, comparison, list(_found(part, comparison)), folder)


def _found(part: Part, comparison: Comparison) -> Iterator[Found]:
    """The circuits of the first subject once more (scores are kept between fits of one process)."""
    refitted = {split.name: split.refit_sequences for split in comparison.record.splits if split.refit_sequences}
    splits = {}
    for name, count in refitted.items():
        whole = part.task.split(name, part.sequences + count)
        splits[name] = whole.take(np.arange(len(whole) - count, len(whole)))
    train = part.task.split(part.task.split_names[0], part.fit_sequences)
    for recipe in part.circuits:
        on = {name: Samples((), subject=part.subjects[0], split=split) for name, split in splits.items()}
        yield Found(
            copy.deepcopy(recipe).fit(Samples((), subject=part.subjects[0], split=train)),
            {name: copy.deepcopy(recipe).fit(samples) for name, samples in on.items()},
        )


def _rows(done: Done) -> dict[tuple[str, str], dict[str, Any]]:
    """The effect and the agreement of every proxy on every split."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in done.comparison.effects().to_dict("records"):
        found.setdefault((row["proxy"], row["split"]), {}).update(row)
    for split in done.comparison.record.splits[1:]:
        for row in done.comparison.agreement(split.name).to_dict("records"):
            own = found.setdefault((row["proxy"], split.name), {})
            own |= {f"agreement{end}": row[f"{name}"] for end, name in _ENDS}
    return found


_ENDS = (("", "estimate"), ("_low", "low"), ("_high", "high"))


def _cell(
    row: Mapping[str, Any], name: str, scale: float = 1.0, digits: int = 2, ends: str | None = None
) -> tuple[str, str]:
    """A number of a row with its limits, which are called `ends` and low or high (default: as the number)."""
    prefix = f"{name}_" if ends is None else ends
    value, low, high = (row.get(key, np.nan) for key in (name, f"{prefix}low", f"{prefix}high"))
    if np.isnan(value):
        return "–", ""
    limits = "" if np.isnan(low) else f"{scale * low:.{digits}f} to {scale * high:.{digits}f}"
    return f"{scale * value:.{digits}f}", limits


def sizes(done: Done) -> TableView:
    """Every circuit: its size, its effect and agreement in distribution and where they are least."""
    rows = _rows(done)
    shifts = done.comparison.shifts
    verdicts = {verdict.proxy: verdict.judgement for verdict in done.comparison.verdicts()}
    lines = []
    for one in done.found:
        name = label(one.circuit)
        graph = one.circuit.graph_
        assert graph is not None
        worst = min(shifts, key=lambda shift: rows[name, shift]["agreement"])
        random = rows.get((label(one.circuit.control()), "iid"), {})
        lines.append([
            (name, ""),
            (f"{one.circuit.pruned_} of {graph.size}", f"{one.circuit.bits_:.0f} bits"),
            _cell(rows[name, "iid"], "effect"),
            _cell(random, "effect"),
            _cell(rows[name, "iid"], "agreement", 100.0, 1),
            _cell(rows[name, worst], "effect"),
            _cell(rows[name, worst], "agreement", 100.0, 1),
            (worst.replace("_", " "), ""),
            (verdicts[name], ""),
        ])  # fmt: skip
    return TableView(
        title=f"{done.part.name}: circuits, their effect and their agreement",
        note="Edges: those on paths from the embeddings to the logits (of the first training seed). Effect: the share "
        "of the subject's effect on the answer's logit less the foil's that the circuit has, beyond all edges ablated; "
        "1 is all of it. Same prediction: per cent of pairs. Random: a circuit of the same shape between other heads. "
        "The worst shift is the one of least agreement.",
        headings=[
            "circuit", "edges", "effect, iid", "effect of a random one", "same prediction, iid", "effect, worst shift",
            "same prediction, worst shift", "worst shift", "verdict",
        ],
        rows=lines,
    )  # fmt: skip


def elsewhere(done: Done) -> TableView:
    """Under every shift: the gaps, what the circuit found there has, and how far it is the same circuit."""
    rows, gaps = _rows(done), {(row["proxy"], row["split"]): row for row in done.comparison.gaps().to_dict("records")}
    lines = []
    for one in done.found:
        name = label(one.circuit)
        for shift in done.comparison.shifts:
            gap = gaps.get((name, shift), {})
            other = one.elsewhere.get(shift)
            again = rows.get((f"{name}, refitted", shift), {})
            lines.append([
                (f"{name}, {shift}", ""),
                _cell(rows[name, shift], "gap"),
                _cell(gap, "gap", 100.0, 1, ends=""),
                _cell(gap, "matched", 100.0, 1),
                _cell(again, "effect"),
                _cell(again, "agreement", 100.0, 1),
                ("–", "") if other is None else _shared(one.circuit, other),
            ])  # fmt: skip
    return TableView(
        title=f"{done.part.name}: circuits under every shift",
        note="Gap: on iid less under the shift, of the effect (each on the scale of its own split) and of the same "
        "prediction (points; at equal margin: iid re-weighted to the shift's margins of the subject). Found there: "
        "the same recipe fitted on other pairs of the shift. Shared edges: of the two circuits of the first seed, and "
        "what circuits with as many edges between the same layers share by chance.",
        headings=[
            "circuit, shift", "gap of the effect", "gap of the same prediction", "at equal margin",
            "effect if found there", "same prediction if found there", "edges shared with that one",
        ],
        rows=lines,
        quiet=True,
    )  # fmt: skip


def _kept(circuit: Circuit) -> set[Edge]:
    """The edges on paths."""
    assert circuit.graph_ is not None
    assert circuit.kept_ is not None
    return set(circuit.graph_.edges(circuit.graph_.pruned(circuit.kept_)))


def _shared(first: Circuit, second: Circuit) -> tuple[str, str]:
    """How many edges on paths two circuits share, and how many they would by chance."""
    if not first.pruned_ or not second.pruned_:
        return "–", ""
    found = overlap(first, second)
    return f"{found.shared} of {min(found.first, found.second)}", f"by chance {found.layered_expected:.1f}"


def methods(done: Done) -> TableView:
    """Every method over all sizes at once, in distribution and under the shifts, and how stable what it finds is."""
    subject, task, comparison = done.part.subjects[0], done.part.task, done.comparison
    first: dict[str, Found] = {}
    for one in done.found:
        first.setdefault(str(one.circuit.method), one)
    on_iid = task.split("iid", done.part.sequences)
    known = sorted({one.circuit.edges for one in done.found if isinstance(one.circuit.edges, int)})
    middle = known[len(known) // 2]
    rows = []
    for method, one in first.items():
        iid = areas(one.circuit, subject, on_iid)
        shifts = {
            shift: areas(one.circuit, subject, task.split(shift, done.part.sequences))
            for shift in comparison.shifts
            if _enough(comparison, shift)
        }
        worst = max(shifts, key=lambda shift: shifts[shift].cmd.value) if shifts else None
        again = "–"
        if done.part.resamples:
            train = task.split(task.split_names[0], done.part.fit_sequences)
            found = stability(replace(one.circuit, edges=middle), subject, train, resamples=done.part.resamples)
            again = f"{found.ceiling:.2f}"
        rows.append([
            (method, ""),
            _estimate(iid.cpr),
            _estimate(iid.cmd),
            ("–", "") if worst is None else _estimate(shifts[worst].cmd),
            ("–" if worst is None else worst.replace("_", " "), ""),
            (again, ""),
        ])  # fmt: skip
    return TableView(
        title=f"{done.part.name}: methods over all sizes",
        note="Of the first training seed. CPR and CMD: areas under f and under |1 - f| against log2 of the number of "
        "edges on paths, from 1 to all; CMD of a perfect method is 0. Limits are over pairs. Stability: the mean "
        f"Jaccard index of circuits of {middle} edges found again on bootstrap samples of the train split's pairs"
        + (f" ({done.part.resamples} of them)." if done.part.resamples else "; with --full."),
        headings=["method", "CPR, iid", "CMD, iid", "CMD, worst shift", "worst shift", "stability"],
        rows=rows,
    )


def _enough(comparison: Comparison, shift: str) -> bool:
    """Whether the effect is defined under a shift."""
    effects = comparison.effects()
    return bool(effects.loc[effects["split"] == shift, "effect"].notna().any())


def _estimate(estimate: Estimate) -> tuple[str, str]:
    return f"{estimate.value:.2f}", f"{estimate.low:.2f} to {estimate.high:.2f}"


def curve(done: Done, what: str) -> Chart:
    """Effect or same prediction against the number of edges, in distribution and under every shift, and at random."""
    rows = _rows(done)
    by_method: dict[str, list[Found]] = {}
    for one in done.found:
        if one.circuit.pruned_:
            by_method.setdefault(str(one.circuit.method), []).append(one)
    key, scale = ("effect", 1.0) if what == "effect" else ("agreement", 100.0)
    record = done.comparison.record
    level = float(record.settings["level"])
    drawn = max((proxy.draws for proxy in record.proxies if proxy.is_control), default=1)
    random = f"random circuits, iid: mean of {drawn} draws, with its {100 * level:g}% interval over pairs and draws"
    series = []
    for method, found in by_method.items():
        found.sort(key=lambda one: one.circuit.pruned_)
        lines = {split.replace("_", " "): [rows.get((label(one.circuit), split), {}) for one in found]
                 for split in ("iid", *done.comparison.shifts)}  # fmt: skip
        lines[random] = [rows.get((label(one.circuit.control()), "iid"), {}) for one in found]
        for name, places in lines.items():
            y, low, high = (
                [_or_none(scale * place.get(f"{key}{end}", np.nan)) for place in places]
                for end in ("", "_low", "_high")
            )
            x: list[float] = [one.circuit.pruned_ for one in found]
            series.append(Series(name=name, panel=method, band=name == random, x=x, y=y, low=low, high=high))
    words = "share of the subject's effect on the answer" if what == "effect" else "same prediction as the subject, %"
    return Chart(
        name=f"{what.replace('_', '-')}-by-size-{done.part.name}",
        caption=f"{done.part.name}: {words} against the number of edges on paths from the embeddings to the logits, a "
        "panel a method; in distribution, under every shift, and (band) of random circuits of the same shape.",
        x_label="edges on paths",
        y_label="share of the effect" if what == "effect" else "same prediction, %",
        names=None,
        series=series,
        logarithmic=True,
    )


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _drawn(done: Done) -> Found | None:
    """The circuit to draw: the smallest of the first method with nearly the whole effect, or its largest."""
    rows = _rows(done)
    first = [one for one in done.found if one.circuit.method == done.found[0].circuit.method and one.circuit.pruned_]
    enough = [one for one in first if rows[label(one.circuit), "iid"].get("effect", np.nan) >= DRAWN]
    return next(iter(enough or first[-1:]), None)


def picture(done: Done, one: Found) -> CircuitView:
    """The circuit found in distribution and the one found under a shift, drawn into one another."""
    graph, circuit = one.circuit.graph_, one.circuit
    assert graph is not None
    assert circuit.scores_ is not None
    rows = _rows(done)
    shifts = [shift for shift in done.comparison.shifts if shift in one.elsewhere]
    worst = min(shifts, key=lambda shift: rows[label(circuit), shift]["agreement"], default=None)
    mine = _kept(circuit)
    other = mine if worst is None else _kept(one.elsewhere[worst])
    edges = []
    for edge in sorted(mine | other):
        where = "both" if edge in mine and edge in other else "in distribution" if edge in mine else "under the shift"
        score = float(circuit.scores_[graph.place(edge)])
        edges.append(CircuitEdge(sender=edge.sender, receiver=edge.receiver, where=where, score=score))  # type: ignore[arg-type]
    beside = "" if worst is None else f", and the one found on pairs of {worst.replace('_', ' ')}"
    return CircuitView(
        name=f"circuit-{done.part.name}",
        caption=f"{done.part.name}: {label(circuit)} on pairs of the train split{beside}. Wider edges have larger "
        "scores.",
        layers=graph.layers,
        heads=graph.heads,
        groups=graph.groups,
        parallel=graph.parallel,
        edges=edges,
    )


def heads(done: Done, one: Found) -> HeatView:
    """The sum of the scores of the edges out of every head and MLP."""
    graph, scores = one.circuit.graph_, one.circuit.scores_
    assert graph is not None
    assert scores is not None
    totals = np.nansum(scores, axis=1)[1:].reshape(graph.layers, graph.heads + 1)
    return HeatView(
        name=f"heads-{done.part.name}",
        caption=f"{done.part.name}: what ablating the edges out of each head changes, the sum of their scores by "
        f"{one.circuit.method}; below zero, the head helps the answer.",
        unit="logits",
        x_label="head",
        columns=[*map(str, range(graph.heads)), "MLP"],
        values=totals.tolist(),
    )
