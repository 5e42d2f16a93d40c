"""Programs: what is known of a model that was compiled, and so what every number of Assay has to say of it.

An exact explanation has agreement 1, gap 0 and the verdict faithful; one with a planted error is off by what was
planted; and the edges of the model are known, so that methods that look for circuits can be told what they find, miss
and invent.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from assay._errors import AssayError
from assay._files import write_atomically
from assay.circuits import Discovery, Problem, Reference, discoveries
from assay.engine import Engine
from assay.faithfulness import Comparison, Step, compare
from assay.reports import Chart, Illustrations, Series, TableView
from assay.studies._right_program import RECIPE, Histogram, explain, table, trained, whole
from assay.subjects import Recipe
from assay.testing.compiled import Compiled, Interpreted, compile_program, effects, known_program

RESULTS = "programs.json"

JUDGED: Mapping[str, tuple[int, int]] = {
    "induction": (12, 6), "own-count": (12, 6), "maximum": (12, 8), "dyck1": (14, 2), "reverse": (10, 6),
    "histogram": (10, 6),
}  # fmt: skip
"""Programs that are judged, with length and number of words: so many inputs that few are drawn twice."""

DISCOVERED = ("induction", "own-count", "maximum", "dyck1")
"""Programs whose edges are looked for (edges are for decoders)."""

SIZES = (300, 500, 1_000, 2_000)
"""Sequences a split at which an exact explanation and a planted error are judged."""

PLANTED = 0.01
"""The share of the inputs of two words that a planted error answers wrongly."""

PAIRS = 200
"""Pairs on which edges are looked for."""


NO_SCORE = 1e-9
"""The share of the largest score below which a score is rounding, and says nothing of an edge."""


@dataclass(frozen=True)
class Judged:
    """What `compare` says of an explanation of a compiled model whose error is known."""

    program: str
    explanation: str
    sequences: int
    agreement: tuple[float, float, float]
    shift: str
    gap: tuple[float, float, float]
    kl: float
    verdict: str
    seconds: float


@dataclass(frozen=True)
class Discovered:
    """Which edges a method gives the largest scores, as many as can be seen to matter.

    `found` of those that matter, `missed` of them, `inert` that the weights read, but that no exchange can show, and
    `invented` that do nothing at all.
    """

    program: str
    rotated: bool
    method: str
    edges: int
    declared: int
    live: int
    found: int
    missed: int
    inert: int
    invented: int
    reason: str = ""


def run(
    folder: Path,
    *,
    sequences: int | None = None,
    seeds: int = 3,
    recipe: Recipe = RECIPE,
    device: str = "cpu",
    progress: Callable[[Step], None] = lambda step: None,
) -> Illustrations:
    """Judge exact and slightly wrong explanations of compiled models, look for their edges, and judge a right program
    as the explanation of `seeds` Transformers that are trained here.

    `sequences` a split in the place of `SIZES`. Leaves the numbers in `folder` (programs.json).
    """
    sizes = SIZES if sequences is None else (sequences,)
    total = len(JUDGED) + 2 * len(sizes) + 2 * len(DISCOVERED) + seeds + 1
    done = 0

    def step(text: str) -> None:
        nonlocal done
        progress(Step(done, total, text))
        done += 1

    judged = []
    for name in JUDGED:
        step(f"judging {name}")
        judged.append(judge(name, sizes[0] if sequences else 500, wrong=0.0, device=device)[0])
    by_size = []
    for size in sizes:
        for wrong in (0.0, PLANTED):
            step(f"{size:,} sequences, {wrong:.0%} wrong")
            by_size.append(judge("own-count", size, wrong=wrong, device=device))
    discovered = []
    for name in DISCOVERED:
        for rotated in (False, True):
            step(f"edges of {name}{', rotated' if rotated else ''}")
            discovered += discover(name, rotated=rotated, device=device)
    explained = []
    task = Histogram()
    for seed in range(seeds):
        step(f"training and judging a Transformer, seed {seed}")
        explained.append(explain(task, trained(task, seed, recipe=recipe, device=device), sequences or 500))
    step("tables")
    exact, planted = by_size[-2][1], by_size[-1][1]
    numbers = {
        "judged": [asdict(one) for one in judged],
        "by_size": [asdict(one) for one, _ in by_size],
        "edges": [asdict(one) for one in discovered],
        "right_program": [asdict(one) for one in explained],
    }
    text = json.dumps(numbers, indent=1)
    write_atomically(folder / RESULTS, lambda path: path.write_text(text + "\n", encoding="utf-8"))
    tables = [
        _calibration(judged),
        _by_size([one for one, _ in by_size]),
        _by_metric(exact, planted),
        _of_edges(discovered),
        table(explained, _limits),
    ]
    return Illustrations(tables=tables, charts=[_chart(discovered)])


def made(name: str, **options: Any) -> Compiled:
    """A compiled program, of the size at which it is judged."""
    length, words = JUDGED[name]
    known = known_program(name, length=length, words=words)
    return compile_program(known.output, known.length, family=known.family, name=name, **options)


def judge(name: str, sequences: int, *, wrong: float, device: str = "cpu") -> tuple[Judged, Comparison]:
    """What `compare` says of the program itself, or of one that is wrong on a share of the inputs of two words."""
    compiled = made(name)
    compiled.subject.model.to(device)  # type: ignore[arg-type]
    few = {*compiled.program.words[:2]}
    recipe = Interpreted(compiled, wrong=wrong, where=None if not wrong else lambda words: {*words} <= few)
    started = time.monotonic()
    comparison = compare(compiled.subject, compiled.task(), [recipe], sequences=sequences, progress=False)
    seconds = time.monotonic() - started
    (verdict,) = comparison.verdicts()
    results = whole(comparison)
    largest = results[(results["metric"] == "kl")]["estimate"].max()
    return Judged(
        program=name,
        explanation="exact" if not wrong else f"{wrong:.0%} of two words wrong",
        sequences=sequences,
        agreement=(verdict.agreement, verdict.low, verdict.high),
        shift=verdict.shift or "",
        gap=(verdict.gap, verdict.gap_low, verdict.gap_high),
        kl=float(largest),
        verdict=verdict.judgement,
        seconds=round(seconds, 1),
    ), comparison


def discover(name: str, *, rotated: bool, device: str = "cpu") -> list[Discovered]:
    """Which edges every registered method of discovery ranks first in a compiled model."""
    known = known_program(name)
    compiled = compile_program(
        known.output, known.length, family=known.family, dtype=torch.float64, rotated=0 if rotated else None, name=name
    )
    split = compiled.task().split("train", PAIRS)
    live = {edge for edge, share in effects(compiled, split).items() if share}
    torch.nn.Module.to(compiled.subject.model, device)
    engine = Engine(compiled.subject)
    problem = Problem(engine, split, Reference.fitted(engine, "counterfactual", split))
    graph = problem.wiring.graph
    edges = np.argwhere(graph.exists)
    found = []
    for method in discoveries:
        start = partial(Discovered, name, rotated, method, len(edges), len(compiled.edges), len(live))
        try:
            maker: Callable[[], Discovery] = discoveries.get(method)
            # A method that does not look at an edge gives it no number.
            scores = np.nan_to_num(np.abs(maker().scores(problem))[graph.exists])
        except AssayError as error:
            found.append(start(found=0, missed=0, inert=0, invented=0, reason=str(error)))
            continue
        least = NO_SCORE * scores.max()
        first = [place for place in np.argsort(-scores, kind="stable")[: len(live)] if scores[place] > least]
        chosen = {f"{graph.senders[s]} -> {graph.receivers[r]}" for s, r in edges[first]}
        declared = {*compiled.edges}
        found.append(
            start(
                found=len(chosen & live),
                missed=len(live - chosen),
                inert=len((chosen & declared) - live),
                invented=len(chosen - declared),
            )
        )
    return found


def _limits(value: tuple[float, float, float], scale: float = 100) -> tuple[str, str]:
    estimate, low, high = (scale * number for number in value)
    return f"{estimate:.1f}", "" if math.isnan(low) else f"{low:.1f} to {high:.1f}"


def _calibration(judged: Sequence[Judged]) -> TableView:
    return TableView(
        title="What Assay says of exact explanations",
        note="The program, interpreted, as the explanation of the model that was compiled from it: agreement has to be "
        "100%, the gap 0, and the verdict faithful. Agreement in distribution and the largest gap in points, with "
        "intervals; KL in nats, the largest of all splits; seconds by the clock.",
        headings=["program", "sequences", "agreement, %", "largest gap", "KL", "verdict", "seconds"],
        rows=[
            [(one.program, ""), (f"{one.sequences:,}", ""), _limits(one.agreement), _limits(one.gap),
             (f"{one.kl:.1g}", ""), (one.verdict, ""), (f"{one.seconds:.1f}", "")]
            for one in judged
        ],
    )  # fmt: skip


def _by_size(found: Sequence[Judged]) -> TableView:
    return TableView(
        title="How many sequences it takes",
        note=f"The count of own words: exact, and with {PLANTED:.0%} of the inputs of two words answered wrongly (the "
        "shift few), which are chosen by a hash of the words. Without a single disagreement, n different sequences "
        "leave room for one of about 3 / n; a planted error of one point is shown where its interval leaves out 0.",
        headings=["explanation", "sequences", "agreement, %", "largest gap", "verdict"],
        rows=[
            [(one.explanation, ""), (f"{one.sequences:,}", ""), _limits(one.agreement),
             _limits(one.gap), (one.verdict, "")]
            for one in found
        ],
    )  # fmt: skip


def _by_metric(exact: Comparison, planted: Comparison) -> TableView:
    """Every metric on both, in distribution and under the shift that the error is planted in."""
    known = [whole(one).set_index(["metric", "split"]) for one in (exact, planted)]
    metrics = list(dict.fromkeys(whole(exact)["metric"]))
    rows = []
    for metric in metrics:
        cells = []
        for results in known:
            for split in ("iid", "few"):
                row = results.loc[(metric, split)]
                row = row.iloc[0] if isinstance(row, pd.DataFrame) else row
                value = float(row["estimate"])
                cells.append(("–", "") if math.isnan(value) else (f"{value:.4g}", ""))
        rows.append([(metric.replace("_", " "), ""), *cells])
    return TableView(
        title="Every metric on an exact explanation, and on one with a planted error",
        note=f"Over all predictions, at {SIZES[-1]:,} sequences a split (or as many as were asked for); – where a "
        "metric cannot be taken of what has no attention, no streams and no layers.",
        headings=["metric", "exact, iid", "exact, few", "planted, iid", "planted, few"],
        rows=rows,
        quiet=True,
    )


def _of_edges(found: Sequence[Discovered]) -> TableView:
    rows = []
    for method in dict.fromkeys(one.method for one in found):
        cells = []
        for name in DISCOVERED:
            plain, turned = (
                next(one for one in found if (one.method, one.program, one.rotated) == (method, name, rotated))
                for rotated in (False, True)
            )
            if plain.reason:
                cells.append(("–", ""))
                continue
            below = f"{plain.inert} inert, {plain.invented} invented"
            if (plain.found, plain.inert, plain.invented) != (turned.found, turned.inert, turned.invented):
                below += f"; rotated {turned.found}, {turned.inert}, {turned.invented}"
            cells.append((f"{plain.found} of {plain.live}", below))
        rows.append([(method, ""), *cells])
    sizes = {one.program: one for one in found}
    return TableView(
        title="Edges that methods of discovery find in compiled models",
        note="Of the edges that an exchange with another input shows to matter, how many are among as many with the "
        "largest scores; below, how many of those are read by the weights without an effect that an exchange could "
        f"show, and how many do nothing at all. {PAIRS} pairs, every method with its defaults, scores below 1e-9 of "
        "the largest left out; the model whose stream is turned by a random rotation gives the same where nothing else "
        "is said. Methods that score heads, not edges, spread a head's score over its edges.",
        headings=["method", *(f"{name}, {sizes[name].edges} edges" for name in DISCOVERED)],
        rows=rows,
    )


def _chart(found: Sequence[Discovered]) -> Chart:
    methods = list(dict.fromkeys(one.method for one in found if not one.reason))
    series = []
    for name in DISCOVERED:
        shares: list[float | None] = [
            one.found / one.live
            for method in methods
            for one in found
            if (one.method, one.program, one.rotated) == (method, name, False)
        ]
        nothing: list[float | None] = [None] * len(methods)
        series.append(Series(name=name, x=list(map(float, range(len(methods)))), y=shares, low=nothing, high=nothing))
    return Chart(
        name="edges-found",
        caption="The share of the edges that matter in compiled programs that methods of discovery rank first.",
        x_label="method",
        y_label="share of the edges that matter",
        names=methods,
        series=series,
    )
