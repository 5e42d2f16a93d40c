"""The max-of-K study: train the models that the proofs are about, and make every proof on them."""

import itertools
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from matplotlib.figure import Figure
from rich.console import Group
from rich.table import Table
from scipy import stats
from transformers import PreTrainedModel

from assay._errors import unknown_name
from assay._files import remove, write_atomically
from assay._terminal import styled
from assay.faithfulness import claim
from assay.proofs import LINEAR_STRATEGIES, REMAINDERS, Certificate, Proxy, certify
from assay.reports import PALETTE, environment, picture, style, to_png, to_svg
from assay.simplify import SVD, OneHotAttention, Simplification
from assay.simplify import label as name_of
from assay.subjects import (
    LINEAR_MAX_BATCH,
    LINEAR_MAX_RECIPE,
    MAX_OF_K_BATCH,
    MAX_OF_K_RECIPE,
    Progress,
    Subject,
    linear_max_model,
    load,
    max_of_k_batches,
    max_of_k_model,
    save,
    shipped,
)
from assay.subjects import train as train_model
from assay.tasks import InputSet, MaxOfK

MODELS: dict[str, tuple[str, MaxOfK]] = {
    "max-of-4": ("attention", MaxOfK(4)),
    "max-of-5": ("attention", MaxOfK(5)),
    "max-of-10": ("attention", MaxOfK(10)),
    "max-of-20": ("attention", MaxOfK(20)),
    "max-of-10-vocabulary-128": ("attention", MaxOfK(10, vocabulary=128)),
    "linear-max-of-2": ("linear", MaxOfK(2, vocabulary=2048)),
    "linear-max-of-3": ("linear", MaxOfK(3, vocabulary=256)),
}
"""The shipped models: name, family and task."""


def task_of(name: str) -> MaxOfK:
    """The task of a model of `MODELS`. Raises AssayError for an unknown name."""
    if name not in MODELS:
        raise unknown_name("max-of-k model", name, MODELS)
    return MODELS[name][1]


def train(
    name: str,
    *,
    seed: int,
    folder: Path,
    device: str = "cpu",
    report: Callable[[Progress], None] = lambda progress: None,
) -> Subject:
    """Train the model `name` of `MODELS` from `seed` and save it as `folder/name/seed-<seed>`; resumes if interrupted.

    Raises AssayError for an unknown name.
    """
    task = task_of(name)
    attention = MODELS[name][0] == "attention"
    model: PreTrainedModel = max_of_k_model(task, seed) if attention else linear_max_model(task, seed)
    recipe = MAX_OF_K_RECIPE if attention else LINEAR_MAX_RECIPE
    batch = MAX_OF_K_BATCH if attention else LINEAR_MAX_BATCH
    target = folder / name / f"seed-{seed}"
    checkpoint = target / "checkpoint.pt"
    trained = train_model(
        model,
        max_of_k_batches(task, batch=batch, seed=seed),
        recipe,
        checkpoint=checkpoint,
        device=device,
        report=report,
    )
    torch.nn.Module.to(model, "cpu")
    split = task.split("iid", 10_000)
    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(split.tokens[:, :-1])).logits[:, -1]
    record: dict[str, Any] = {
        "name": name,
        "seed": seed,
        "task": task.describe(),
        "recipe": asdict(recipe),
        "batch": batch,
        **asdict(trained),
        "iid_accuracy": float(np.mean(logits.argmax(dim=1).numpy() == split.tokens[:, -1])),
        "iid_sequences": len(split),
        "device": device,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
        },
    }
    subject = Subject(model, None, name, seed=seed, record=record)
    save(subject, target)
    remove(checkpoint)
    return subject


@dataclass(frozen=True)
class Result:
    """One certificate of the study, how long its check took (None: not checked), and what its proxy was made by."""

    model: str
    seed: int
    group: str
    certificate: Certificate
    check_seconds: float | None
    against: str | None = None

    def row(self) -> dict[str, Any]:
        """The result as plain values."""
        return {
            "model": self.model,
            "seed": self.seed,
            "group": self.group,
            "strategy": self.certificate.strategy,
            "quantity": self.certificate.quantity,
            "inputs": self.certificate.inputs.size,
            "low": self.certificate.low,
            "high": self.certificate.high,
            "operations": self.certificate.operations.total,
            "unexplained_dimension": self.certificate.unexplained_dimension,
            "seconds": self.certificate.seconds,
            "check_seconds": self.check_seconds,
        }


_PROXIES: tuple[Proxy | Simplification, ...] = (Proxy(1), Proxy(1, average_positions=True), SVD(1))
"""The proxies whose agreement is searched exactly where K = 4, and bounded where K = 10."""


def _plan(quick: bool) -> list[tuple[str, str, dict[str, Any]]]:
    """(group, model, keywords of certify) of every proof about attention, for each shipped seed of the model."""
    plan: list[tuple[str, str, dict[str, Any]]] = [
        *(("frontier", "max-of-4", {"strategy": "subcubic-low-rank", "remainder": name}) for name in REMAINDERS),
        *(("frontier", "max-of-4", {"strategy": name}) for name in ("subcubic", "cubic")),
        ("frontier", "max-of-4", {"strategy": "separable", "grid": 64, "search": 0}),
        ("frontier", "max-of-4", {"strategy": "separable"}),
        ("frontier", "max-of-4", {"strategy": "exact"}),
    ]
    near = InputSet(4, 64, within=2)
    plan.append(("gap", "max-of-4", {"strategy": "exact", "inputs": near}))
    for proxy in _PROXIES:
        plan.append(("agreement", "max-of-4", {"strategy": "exact", "against": proxy}))
        plan.append(("agreement", "max-of-4", {"strategy": "exact", "against": proxy, "inputs": near}))
    plan.append(("agreement", "max-of-4", {"strategy": "separable", "against": OneHotAttention()}))
    if quick:
        return plan
    plan.append(("frontier", "max-of-5", {"strategy": "exact"}))
    for name in ("max-of-5", "max-of-10", "max-of-20", "max-of-10-vocabulary-128"):
        plan += [("frontier", name, {"strategy": strategy}) for strategy in ("subcubic", "cubic")]
        plan.append(("frontier", name, {"strategy": "separable", "grid": 2048}))
    for name, length in (("max-of-10", 10), ("max-of-20", 20)):
        plan.append(("gap", name, {"strategy": "separable", "two_sided": True}))
        high = InputSet(length, 64, minimum_maximum=48)
        plan.append(("gap", name, {"strategy": "separable", "inputs": high, "two_sided": True}))
    near = InputSet(10, 64, within=2)
    plan.append(("gap", "max-of-10", {"strategy": "exact", "inputs": near}))
    for proxy in (*_PROXIES, OneHotAttention()):
        plan.append(("agreement", "max-of-10", {"strategy": "separable", "against": proxy}))
    plan += [("agreement", "max-of-10", {"strategy": "exact", "against": proxy, "inputs": near}) for proxy in _PROXIES]
    return plan


_BLOCKS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "linear-max-of-2": ((2048, 0, 0), (256, 4, 0), (64, 16, 0), (64, 32, 98_304), (64, 128, 294_912)),
    "linear-max-of-3": ((256, 0, 0), (32, 8, 16_384), (16, 16, 65_536)),
}
"""Width, kept outputs and refined multisets of the strategy "blocks", from the shortest proof to the longest."""


def _linear_plan() -> list[tuple[str, str, dict[str, Any]]]:
    """(group, model, keywords of certify) of every proof about the linear models."""
    plan: list[tuple[str, str, dict[str, Any]]] = []
    for name, blocks in _BLOCKS.items():
        options = [{"width": width, "top": top, "refine": refine} for width, top, refine in blocks]
        for strategy in ("brute-force", "symmetry", "convexity"):
            plan.append(("loss", name, {"strategy": strategy, "quantity": "loss"}))
        plan += [("loss", name, {"strategy": "blocks", "quantity": "loss"} | option) for option in options]
        plan.append(("loss", name, {"strategy": "gemm", "quantity": "loss"}))
        plan.append(("frontier", name, {"strategy": "convexity"}))
        plan.append(("frontier", name, {"strategy": "blocks"} | options[-1]))
        plan.append(("frontier", name, {"strategy": "gemm"}))
    return plan


def run(
    folder: Path,
    *,
    quick: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> list[Result]:
    """Make and check every proof on the shipped models; write certificates, figures and `report.html` to `folder`.

    `quick` stays with K = 4. Brute force, which takes a minute, is made for seed 0 of K = 4 unless `quick`. A folder
    with the finished run of another study is refused, unless `overwrite` says that what that left is to be removed.
    """
    claim(folder, {"study": "max-of-k", "quick": quick}, overwrite=overwrite)
    seeds = shipped()
    plan = _plan(quick) + ([] if quick else _linear_plan())
    jobs = [(*item, seed) for item in plan for seed in seeds[item[1]]]
    if not quick:
        jobs.append(("frontier", "max-of-4", {"strategy": "brute-force"}, 0))
        jobs.append(("agreement", "max-of-4", {"strategy": "brute-force", "against": OneHotAttention()}, 0))
    results = []
    for index, (group, name, keywords, seed) in enumerate(jobs):
        strategy = keywords["strategy"]
        progress(index, len(jobs), f"{name} seed {seed}: {strategy}")
        subject = load(name, seed=seed)
        certificate = certify(subject, **keywords)
        started = time.monotonic()
        # Checking brute force on attention means redoing it; its counts are compared with those of "exact" instead.
        checked = strategy != "brute-force" or MODELS[name][0] == "linear"
        if checked:
            certificate.verify(subject)
        seconds = time.monotonic() - started if checked else None
        against = name_of(keywords["against"]) if "against" in keywords else None
        results.append(Result(name, seed, group, certificate, seconds, against))
        certificate.save(folder / "certificates" / f"{index:03d}-{name}-seed-{seed}-{strategy}.json")
    progress(len(jobs), len(jobs), "drawing")
    _draw(results, folder)
    return results


def _label(result: Result) -> str:
    certificate = result.certificate
    grid = f", grid {certificate.parameters['grid']}" if "grid" in certificate.parameters else ""
    if certificate.parameters.get("search") == 0:
        grid += ", counted only"
    if "remainder" in certificate.parameters:
        grid = f", {certificate.parameters['remainder']}"
    if certificate.strategy == "blocks":
        grid = ", {width} wide, {top} kept, {refine} refined".format(**certificate.parameters)
    against = f" against {result.against}" if result.against else ""
    where = ""
    if certificate.inputs.within is not None:
        where = f", within {certificate.inputs.within}"
    if certificate.inputs.minimum_maximum:
        where = f", maximum at least {certificate.inputs.minimum_maximum}"
    return f"{certificate.strategy}{grid}{against}{where}"


def _range(values: list[float] | list[int], write: Callable[[float], str]) -> str:
    """The median, with the range where values differ."""
    low, middle, high = (write(value) for value in (min(values), statistics.median_low(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def _rounded(bound: float, places: int, *, up: bool) -> str:
    """A bound in decimals, rounded up or down."""
    numerator, denominator = bound.as_integer_ratio()
    scaled = numerator * 10**places
    return f"{(-(-scaled // denominator) if up else scaled // denominator) / 10**places:.{places}f}"


def _bounds(results: list[Result], *, up: bool) -> str:
    """The upper or lower bounds of several seeds: nine places of a share, twelve of a loss."""
    places = 12 if results[0].certificate.quantity == "loss" else 9
    values = [result.certificate.high if up else result.certificate.low for result in results]
    return _range(values, lambda value: _rounded(value, places, up=up))


COLUMNS = ("model", "seeds", "proof", "at least", "at most", "operations", "unexplained", "seconds", "check, s")


def lines(results: list[Result], group: str) -> list[tuple[str, ...]]:
    """The rows of the table of a group: medians over seeds, with ranges."""
    merged: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        if result.group == group:
            merged.setdefault((result.model, _label(result)), []).append(result)
    return [
        (
            model,
            str(len(found)),
            label,
            _bounds(found, up=False),
            _bounds(found, up=True),
            _range([item.certificate.operations.total for item in found], "{:.3g}".format),
            str(found[0].certificate.unexplained_dimension),
            _range([item.certificate.seconds for item in found], "{:.2f}".format),
            "not checked"
            if None in (checks := [item.check_seconds for item in found])
            else _range([seconds for seconds in checks if seconds is not None], "{:.2f}".format),
        )
        for (model, label), found in merged.items()
    ]


HEADINGS = {
    "frontier": "Accuracy over all inputs",
    "gap": "Accuracy over restricted sets, and over all inputs from both sides",
    "loss": "Mean loss over all inputs, in nats (linear models)",
    "agreement": "Subject and proxy predict the same token, over all inputs and over near ties",
}


GAPS = "Certified generalization gaps: from all inputs to near ties"

GAP_COLUMNS = ("model", "seeds", "quantity", "all inputs, at least", "near ties", "at most", "gap at least")


def gap_lines(results: list[Result]) -> list[tuple[str, ...]]:
    """The rows of the table of certified gaps: what holds over all inputs at least, and over near ties at most.

    Of several proofs about all inputs the tightest counts. Medians over seeds, with ranges.
    """
    whole: dict[tuple[str, str, int], float] = {}
    near: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        certificate = result.certificate
        if certificate.quantity == "loss":
            continue
        about: str = certificate.quantity
        if result.against:
            about = f"{about} with {result.against}"
        inputs = certificate.inputs
        if inputs.within is not None:
            near.setdefault((result.model, about, f"within {inputs.within}"), []).append(result)
        elif not inputs.minimum_maximum and inputs.copies is None:
            key = result.model, about, result.seed
            whole[key] = max(whole.get(key, 0.0), certificate.low)
    rows: list[tuple[str, ...]] = []
    for (model, about, where), found in near.items():
        pairs = [
            (whole[model, about, item.seed], item.certificate.high)
            for item in found
            if (model, about, item.seed) in whole
        ]
        if pairs:
            gaps = [math.nextafter(low - high, -math.inf) for low, high in pairs]
            rows.append(
                (
                    model,
                    str(len(pairs)),
                    about,
                    _range([low for low, _ in pairs], partial(_rounded, places=9, up=False)),
                    where,
                    _range([high for _, high in pairs], partial(_rounded, places=9, up=True)),
                    _range(gaps, partial(_rounded, places=6, up=False)),
                )
            )
    return rows


def terminal(results: list[Result]) -> Group:
    """The tables for a terminal."""
    tables = []
    for group, heading in HEADINGS.items():
        if not (found := lines(results, group)):
            continue
        table = Table(title=heading, title_justify="left", box=None)
        for column in ("model", "proof", "at least", "at most", "operations", "seconds"):
            table.add_column(column, overflow="fold")
        for row in found:
            table.add_row(*(styled(row[column]) for column in (0, 2, 3, 4, 5, 7)))
        tables.append(table)
    if gaps := gap_lines(results):
        table = Table(*GAP_COLUMNS, title=GAPS, title_justify="left", box=None)
        for row in gaps:
            table.add_row(*map(styled, row))
        tables.append(table)
    return Group(*tables)


_SAMPLED = 200_000
"""Sequences of a sampled accuracy."""


def sampled_lines(models: Iterable[tuple[str, int]], sequences: int = _SAMPLED) -> list[tuple[str, ...]]:
    """What sampling says about models (name, seed): accuracy on uniform sequences, with a 95% interval.

    The interval is that of Clopper and Pearson. Unlike a certificate it is about the float32 program, and may be wrong
    one time in twenty.
    """
    found: list[tuple[str, ...]] = []
    for name, seed in models:
        subject, task = load(name, seed=seed), task_of(name)
        rng = np.random.default_rng([seed, 2**31])
        right = 0
        for start in range(0, sequences, 10_000):
            tokens = task.sample(rng, min(10_000, sequences - start))
            with torch.inference_mode():
                predicted = subject(torch.from_numpy(tokens))[:, -1].argmax(dim=1).numpy()
            right += int((predicted == tokens.max(axis=1)).sum())
        interval = stats.binomtest(right, sequences).proportion_ci(0.95, method="exact")
        bounds = _rounded(float(interval.low), 6, up=False), _rounded(float(interval.high), 6, up=True)
        found.append((name, str(seed), str(sequences), f"{right / sequences:.6f}", *bounds))
    return found


def write_markdown(results: list[Result], sampled: Iterable[tuple[str, ...]], path: Path) -> None:
    """Write the tables, and beside them what `sampled_lines` found, as Markdown."""
    text = [
        "# Compact proofs of the shipped models",
        "",
        "Made by `assay run max-of-k --markdown docs/results/proofs.md`. Bounds are shares of all inputs of a",
        "set (losses: nats), with the median over training seeds and the range in brackets; operations are those of",
        "the one counter (`assay.proofs.Operations`); seconds are of one process on a shared two-core machine. Every",
        "certificate that is not marked otherwise was checked by the independent checker, which does not count again",
        "the operations of proofs about attention. The separable proof of accuracy searches groups of few inputs,",
        "unless it is counted only; with K = 4 these are all, and it is the exact one.",
    ]
    for group, heading in HEADINGS.items():
        text += ["", f"## {heading}", "", "| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
        text += ["| " + " | ".join(row) + " |" for row in lines(results, group)]
    text += ["", f"## {GAPS}", "", "| " + " | ".join(GAP_COLUMNS) + " |", "|---" * len(GAP_COLUMNS) + "|"]
    text += ["| " + " | ".join(row) + " |" for row in gap_lines(results)]
    names = ("model", "seed", "sequences", "sampled accuracy", "95% low", "95% high")
    text += ["", "## Sampled accuracy, which proves nothing, for comparison", ""]
    text += ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    text += ["| " + " | ".join(row) + " |" for row in sampled]
    content = "\n".join(text) + "\n"
    write_atomically(path, lambda file: file.write_text(content, encoding="utf-8"))


def _frontier(results: list[Result]) -> Figure:
    """What each proof leaves open (1 - bound) against its operations, for K = 4, with the Pareto front."""
    with style():
        figure = Figure(figsize=(8.6, 4))
        axes = figure.subplots()
        points = [item for item in results if item.group == "frontier" and item.model == "max-of-4"]
        exact = [1 - item.certificate.high for item in points if item.certificate.strategy == "exact"]
        labels = list(dict.fromkeys(map(_label, points)))
        for label, colour in zip(labels, itertools.cycle(PALETTE), strict=False):
            chosen = [item.certificate for item in points if _label(item) == label]
            axes.scatter([c.operations.total for c in chosen], [1 - c.low for c in chosen], label=label, color=colour)
        first = sorted(
            (item.certificate.operations.total, 1 - item.certificate.low) for item in points if item.seed == 0
        )
        best = list(itertools.accumulate((left for _, left in first), min))
        axes.step([total for total, _ in first], best, where="post", color="0.5", linewidth=1, label="front, seed 0")
        if exact:
            axes.axhspan(min(exact), max(exact), color="0.5", alpha=0.12, label="exact share of errors")
        axes.set(xscale="log", yscale="log", xlabel="operations", ylabel="1 - certified accuracy")
        figure.legend(loc="outside right upper")
    return figure


def _losses(results: list[Result]) -> Figure:
    """The certified interval of the mean loss against operations, for each linear model."""
    with style():
        figure = Figure(figsize=(7.2, 3.6))
        for axes, name in zip(figure.subplots(1, 2), _BLOCKS, strict=True):
            points = [item.certificate for item in results if item.group == "loss" and item.model == name]
            for strategy, colour in zip(LINEAR_STRATEGIES, itertools.cycle(PALETTE), strict=False):
                chosen = [point for point in points if point.strategy == strategy]
                totals = [point.operations.total for point in chosen]
                axes.scatter(totals, [point.high for point in chosen], color=colour, label=strategy, zorder=2)
                two_sided = [point for point in chosen if point.low > 0]
                axes.vlines(
                    [point.operations.total for point in two_sided],
                    [point.low for point in two_sided],
                    [point.high for point in two_sided],
                    color=colour,
                    zorder=1,
                )
            exact = next(point for point in points if point.strategy == "gemm")
            axes.axhline(exact.high, color="0.5", linewidth=1, label="exact")
            axes.axhline(math.log(exact.subject.vocabulary), color="0.5", linewidth=1, linestyle=":", label="guessing")
            axes.set(xscale="log", yscale="log", xlabel="operations", ylabel="mean loss, nats", title=name)
        axes.legend()
    return figure


def _draw(results: list[Result], folder: Path) -> None:
    """Write the figures as SVG and PNG, and the page."""
    figures = [("frontier", "What the proofs of the K = 4 models leave open, against their length", _frontier(results))]
    if any(result.group == "loss" for result in results):
        caption = "Certified mean loss of the linear models against the length of the proof: lower to upper bound"
        figures.append(("loss", caption, _losses(results)))
    for name, _, figure in figures:
        svg, png = to_svg(figure).encode(), to_png(figure)
        write_atomically(folder / "figures" / f"{name}.svg", partial(Path.write_bytes, data=svg))
        write_atomically(folder / "figures" / f"{name}.png", partial(Path.write_bytes, data=png))
    page = (
        environment()
        .get_template("proofs.html")
        .render(
            title="Assay: compact proofs",
            version=version("assay-interp"),
            tables=[
                *((head, COLUMNS, found) for group, head in HEADINGS.items() if (found := lines(results, group))),
                *([(GAPS, GAP_COLUMNS, gaps)] if (gaps := gap_lines(results)) else []),
            ],
            pictures=[picture(*figure) for figure in figures],
        )
    )
    write_atomically(folder / "report.html", lambda path: path.write_text(page, encoding="utf-8"))
