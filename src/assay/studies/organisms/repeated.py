"""Repeated data: how copying is damaged where some documents come again and again, and what becomes of its account.

Half of each batch of a training comes from a fixed set of documents, the smaller the set, the more often each of them
is seen (arXiv 2205.10487). The account of copying, one induction head, is judged by `compare` on fresh documents, on
longer segments, and on the documents that were repeated.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from assay.engine import Engine
from assay.faithfulness import Comparison, Step, compare
from assay.reports import Chart, Illustrations, Series, TableView
from assay.simplify import SVD
from assay.studies.organisms._one_head import OneHead, matches, permuted, scores
from assay.studies.organisms._segments import Segments, as_batch, batches, small_decoder
from assay.studies.organisms._shown import Limits, agreement, judgement, line, number, with_limits
from assay.studies.organisms._study import Findings
from assay.subjects import Event, Recipe, Repeated, Subject, Trained, Watch, train
from assay.tasks import Split

__all__ = ["SEEDS", "SEQUENCES", "SUMMARY", "run"]

SUMMARY = "documents that come again in training: what it does to copying, and to the account of it by one head"

SEEDS = 3

SEQUENCES = 400

BATCH, SHARE = 64, 0.5

SETS = (2_000, 200, 20)
"""Sizes of the repeated set: with half of each batch out of it, each document comes 38, 384 and 3,840 times."""

CLEAN = 0
"""Stands for no repeated set."""

RECIPE = Recipe(steps=2_400, learning_rate=2e-3, decay=False)

EVERY = 100

COPIES = 0.9
"""Accuracy on the tokens of the second segment at which copying counts as learned."""

MEASURED = 500
"""Documents that a training is looked at with."""

RANK = 4

PROXIES: tuple[OneHead | SVD, ...] = (OneHead(), SVD(rank=RANK))


@dataclass(frozen=True)
class Cell:
    """A training: of its repeated set (0: none) each document came `repeats` times.

    `accuracy` and `loss` (nats) are of the second segment in fresh documents, `loss_repeated` of all tokens of the
    repeated documents, `match` the largest attention of a head to the match, by layer. `copies` is the step at which
    accuracy was above 0.9 (None: never), `early` the loss of the second segment after as many fresh documents as a
    training with repeats sees in all.
    """

    documents: int
    seed: int
    repeats: float
    accuracy: float
    loss: float
    loss_repeated: float
    match: tuple[float, float]
    copies: int | None
    early: float


def run(
    folder: Path,
    *,
    seeds: int,
    sequences: int,
    device: str,
    progress: Callable[[Step], None],
    recipe: Recipe = RECIPE,
    sets: Sequence[int] = SETS,
) -> Findings:
    """Train with every set and without, then judge the account of copying; nothing is left in `folder`."""
    total = (1 + len(sets)) * (seeds + 1)
    cells: list[Cell] = []
    logs: dict[str, Any] = {}
    subjects: dict[int, list[Subject]] = {}
    for documents in (CLEAN, *sets):
        for seed in range(seeds):
            progress(Step(len(cells), total, f"training, seed {seed}, {_name(documents)}"))
            cell, subject, trained = _trained(documents, seed, recipe, device)
            cells.append(cell)
            logs[f"{documents}, seed {seed}"] = list(trained.log)
            subjects.setdefault(documents, []).append(subject)
    comparisons = {}
    for number_, (documents, own) in enumerate(subjects.items()):
        progress(Step(len(cells) + number_, total, f"the account, {_name(documents)}"))
        comparisons[_name(documents)] = compare(
            own,
            Segments(documents or max(sets)),
            PROXIES,
            sites=["layer1"],
            sequences=sequences,
            fit_sequences=sequences,
            refit=False,
            progress=False,
        )
    numbers = {
        "recipe": asdict(recipe),
        "cells": [asdict(cell) for cell in cells],
        "logs": logs,
        "agreement": {
            name: {_title(proxy): _agreements(one, proxy) for proxy in PROXIES} for name, one in comparisons.items()
        },
    }
    shown = Illustrations(tables=[_of_cells(cells), _of_accounts(comparisons)], charts=[_chart(cells)])
    return Findings(numbers, shown, comparisons)


def _name(documents: int) -> str:
    return "nothing repeated" if documents == CLEAN else f"{documents:,} documents repeated"


def _trained(documents: int, seed: int, recipe: Recipe, device: str) -> tuple[Cell, Subject, Trained]:
    """A training, and its model with the head of layer 1 that attends most to the match as head 0."""
    task = Segments(documents or SETS[0])
    fresh, again = task.split("iid", MEASURED), task.split("repeated", MEASURED)
    model = small_decoder(seed).to(device)  # type: ignore[arg-type]
    engine = Engine(Subject(model, None, "in training"))
    source = batches(batch=BATCH, seed=seed)
    repeats = 0.0
    if documents != CLEAN:
        source = repeated = Repeated(source, as_batch(task.repeated()), share=SHARE, seed=seed)
        repeats = repeated.repeats(BATCH, recipe.steps)

    def look(model: PreTrainedModel) -> dict[str, float]:
        accuracy, loss = _copying(engine, fresh)
        match = _matching(engine, fresh).amax(dim=1).tolist()
        everywhere = _losses(engine, again).mean()
        return {
            "accuracy": accuracy,
            "loss": loss,
            "match0": match[0],
            "match1": match[1],
            "repeated": float(everywhere),
        }

    trained = train(
        model,
        source,
        recipe,
        checkpoint=None,
        device=device,
        watch=Watch(look, every=EVERY, events=(Event("copies", "accuracy", COPIES, keep=()),)),
    )
    last = trained.log[-1]
    unique = round(recipe.steps * (1 - SHARE))
    early = min(trained.log, key=lambda line: abs(line["step"] - unique))
    order = _matching(engine, fresh)[1].argsort(descending=True).tolist()
    cell = Cell(
        documents,
        seed,
        repeats,
        last["accuracy"],
        last["loss"],
        last["repeated"],
        (last["match0"], last["match1"]),
        trained.events.get("copies"),
        early["loss"],
    )
    return cell, Subject(permuted(model, 1, order), None, task.name, seed=seed), trained


def _losses(engine: Engine, split: Split) -> torch.Tensor:
    """The loss of every token after the first, (document, position), in nats."""
    tokens = torch.from_numpy(split.tokens).to(engine.subject.device)
    chances = engine.subject(tokens)[:, :-1].log_softmax(dim=-1)
    return -chances.gather(2, tokens[:, 1:, None])[..., 0]


def _copying(engine: Engine, split: Split) -> tuple[float, float]:
    """How often the tokens of the second segment are right, and their mean loss."""
    tokens = torch.from_numpy(split.tokens).to(engine.subject.device)
    inner = torch.from_numpy(split.kinds[:, :-1] == 0).to(tokens.device)
    chances = engine.subject(tokens)[:, :-1].log_softmax(dim=-1)[inner]
    right = tokens[:, 1:][inner]
    loss = -chances.gather(1, right[:, None]).mean()
    return float((chances.argmax(dim=-1) == right).float().mean()), float(loss)


def _matching(engine: Engine, split: Split) -> torch.Tensor:
    """The attention of every head (layer, head), from the second segment, to the token behind the earlier one."""
    tokens = torch.from_numpy(split.tokens).to(engine.subject.device)
    return scores(engine, tokens, matches(tokens), torch.from_numpy(split.kinds == 0).to(tokens.device))


_ASKED = (("iid", "copy"), ("longer", "copy"), ("repeated", "copy"), ("repeated", "memory"))


def _agreements(comparison: Comparison, proxy: OneHead | SVD) -> dict[str, Limits]:
    return {f"{split}, {kind}": agreement(comparison, split, _title(proxy), kind) for split, kind in _ASKED}


def _title(proxy: OneHead | SVD) -> str:
    return proxy.title if isinstance(proxy, OneHead) else f"SVD(rank={proxy.rank})"


def _of_cells(cells: Sequence[Cell]) -> TableView:
    return TableView(
        title="Copying after the training",
        note=f"Copy: the tokens of the second segment in {MEASURED} fresh documents, accuracy and loss in nats. Early: "
        "that loss halfway, where a training without repeats has seen as many fresh documents as one with repeats sees "
        "in all; the reference for these. Match: the largest attention of a head to the token behind the earlier "
        "occurrence, in layer 0 and 1. Loss, repeated: of all tokens of the repeated documents.",
        headings=[
            "training",
            "repeats",
            "copy",
            "copy loss",
            "early",
            "match 0",
            "match 1",
            "loss, repeated",
            "copies",
        ],
        rows=[
            [
                (f"{_name(cell.documents)}, seed {cell.seed}", ""),
                (f"{cell.repeats:,.0f}" if cell.documents else "–", ""),
                *((number(value), "") for value in (cell.accuracy, cell.loss, cell.early, *cell.match)),
                (number(cell.loss_repeated) if cell.documents else "–", ""),
                ("never" if cell.copies is None else f"step {cell.copies:,}", ""),
            ]
            for cell in cells
        ],
    )


def _of_accounts(comparisons: Mapping[str, Comparison]) -> TableView:
    rows = []
    for name, one in comparisons.items():
        for proxy in (*map(_title, PROXIES), OneHead(attends="all").title):
            cells = [with_limits(agreement(one, split, proxy, kind)) for split, kind in _ASKED]
            verdict = judgement(one, proxy) if proxy in map(_title, PROXIES) else "control"
            rows.append([(f"{name}: {proxy}", ""), *cells, (verdict, "")])
    return TableView(
        title="How often accounts of copying agree with the models, all seeds together",
        note="Head 0 of layer 1 is the one that attends most to the match in fresh documents; its attention is given, "
        "the other heads of the layer are off. Memory: the other tokens of repeated documents, which no account of "
        "copying can tell. Where nothing was repeated, documents of the set are fresh ones, too.",
        headings=["training and account", "iid", "longer", "repeated", "repeated, memory", "verdict"],
        rows=rows,
    )


def _chart(cells: Sequence[Cell]) -> Chart:
    series = []
    clean = [cell for cell in cells if cell.documents == CLEAN]
    again = [cell for cell in cells if cell.documents != CLEAN]
    ends = sorted({cell.repeats for cell in again})
    panels: dict[str, Callable[[Cell], float]] = {
        "copy loss, nats": lambda cell: cell.loss,
        "largest attention to the match": lambda cell: max(cell.match),
    }
    for panel, value in panels.items():
        known = [value(cell) for cell in clean]
        if panel.startswith("copy loss"):
            known = [cell.early for cell in clean]
        series.append(
            Series(
                name="nothing repeated: least, mean and most of all seeds",
                panel=panel,
                band=True,
                x=[ends[0], ends[-1]],
                y=[float(np.mean(known))] * 2,
                low=[min(known)] * 2,
                high=[max(known)] * 2,
            )
        )
        for seed in sorted({cell.seed for cell in again}):
            own = sorted((cell.repeats, value(cell)) for cell in again if cell.seed == seed)
            series.append(line(f"seed {seed}", panel, own))
    return Chart(
        name="copying-by-repeats",
        caption=f"Copying in fresh documents against how often each repeated document was seen; {SHARE:.0%} of each "
        "batch is repeated. Grey: trainings without repeats; for the loss, after as many fresh documents.",
        x_label="times that a repeated document is seen",
        y_label="after the training",
        names=None,
        series=series,
        logarithmic=True,
    )
