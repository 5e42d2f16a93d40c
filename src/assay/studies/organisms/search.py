"""Graph search: what a small model does beyond the lookahead that it was trained on, and what accounts of it do.

Two chains of equal length leave a start, one of them ends in the goal, and the first step is asked for; chains of 1, 2
and 3 edges are introduced one after another. After arXiv 2412.04703 (Saparov and others), much smaller.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from assay.faithfulness import Comparison, Step, compare
from assay.reports import Chart, Illustrations, Series, TableView
from assay.simplify import SVD, OneHotAttention
from assay.studies.organisms._search_model import graph_model
from assay.studies.organisms._search_task import LONGEST, TRAINED, Search, batches, draw
from assay.studies.organisms._shown import Limits, agreement, gap, judgement, line, number, with_bars, with_limits
from assay.studies.organisms._study import Findings
from assay.subjects import Recipe, Subject, Trained, Watch, train

__all__ = ["SEEDS", "SEQUENCES", "SUMMARY", "run"]

SUMMARY = "search in small graphs: where a model and accounts of it stop beyond the lookahead that was trained on"

SEEDS = 3

SEQUENCES = 600

BATCH, STAGE = 128, 800
"""Graphs a batch, and steps after which the next lookahead is introduced."""

RECIPE = Recipe(steps=TRAINED * STAGE, learning_rate=1e-3, decay=False)

EVERY = 100

RANKS = (2, 4, 8)

LOOKED_AT = 300
"""Graphs of each lookahead that a training is looked at with."""

PROXIES: tuple[SVD | OneHotAttention, ...] = (*(SVD(rank=rank) for rank in RANKS), OneHotAttention())

_SPLITS = ("iid", "one_more", "two_more", "distractor")


@dataclass(frozen=True)
class Answered:
    """How often a model of a seed names the right first vertex at a lookahead, and that of the other chain.

    `back` is how often it names the goal, the vertex before it, and so on to the first.
    """

    seed: int
    lookahead: int
    right: float
    other: float
    back: tuple[float, ...]


def run(
    folder: Path,
    *,
    seeds: int,
    sequences: int,
    device: str,
    progress: Callable[[Step], None],
    recipe: Recipe = RECIPE,
) -> Findings:
    """Train the models and judge accounts of their attention; nothing is left in `folder`."""
    answered: list[Answered] = []
    subjects, trained = [], []
    for seed in range(seeds):
        progress(Step(seed, seeds + 1, f"training, seed {seed}"))
        model = graph_model(seed).to(device)  # type: ignore[arg-type]
        trained.append(
            train(
                model,
                batches(batch=BATCH, seed=seed, stage=STAGE),
                recipe,
                checkpoint=None,
                device=device,
                watch=Watch(look, every=EVERY),
            )
        )
        last = trained[-1].log[-1]
        answered += [
            Answered(
                seed,
                length,
                last[f"right{length}"],
                last[f"other{length}"],
                tuple(last[f"back{back} of {length}"] for back in range(length)),
            )
            for length in range(1, LONGEST + 1)
        ]
        subjects.append(Subject(model, None, Search.name, seed=seed))
    progress(Step(seeds, seeds + 1, "accounts of attention"))
    comparison = compare(
        subjects,
        Search(),
        PROXIES,
        sites=["all"],
        sequences=sequences,
        fit_sequences=sequences,
        refit=False,
        progress=False,
    )
    numbers = {
        "recipe": asdict(recipe),
        "stage": STAGE,
        "answered": [asdict(one) for one in answered],
        "logs": {str(seed): list(one.log) for seed, one in enumerate(trained)},
        "agreement": {
            _title(proxy): {split: agreement(comparison, split, _title(proxy)) for split in _SPLITS}
            for proxy in PROXIES
        },
    }
    shown = Illustrations(
        tables=[_of_answers(answered), _of_ways(answered), _of_learning(trained), _of_accounts(comparison)],
        charts=[_chart(answered, comparison), _learning(trained)],
    )
    return Findings(numbers, shown, {"accounts": comparison})


def look(model: PreTrainedModel) -> dict[str, float]:
    """Of each lookahead, the share of right first vertices, of those of the other chain, and of others of the chain.

    "back2 of 4" is how often the vertex two edges before the goal is said, where the goal is 4 edges away.
    """
    found = {}
    for length in range(1, LONGEST + 1):
        tokens, _, chain, other = draw(np.random.default_rng([length]), np.full(LOOKED_AT, length))
        logits = model(input_ids=torch.from_numpy(tokens[:, : 2 * length + 1]).to(model.device)).logits
        said = logits[:, 0].argmax(dim=-1).cpu().numpy()
        found[f"right{length}"] = float((said == chain[:, 0]).mean())
        found[f"other{length}"] = float((said == other[:, 0]).mean())
        for back in range(length):
            found[f"back{back} of {length}"] = float((said == chain[:, length - 1 - back]).mean())
    return found


def _title(proxy: SVD | OneHotAttention) -> str:
    return f"SVD(rank={proxy.rank})" if isinstance(proxy, SVD) else "OneHotAttention()"


def _of_answers(answered: Sequence[Answered]) -> TableView:
    seeds = sorted({one.seed for one in answered})
    by = {(one.seed, one.lookahead): one for one in answered}
    return TableView(
        title="The right first step, by lookahead",
        note=f"On {LOOKED_AT} fresh graphs each; below it, how often the first vertex of the other chain is said. "
        f"Up to {TRAINED} was trained on. Half is chance only for one that knows the two vertices beside the start.",
        headings=["lookahead", *(f"seed {seed}" for seed in seeds)],
        rows=[
            [
                (f"{length}" + ("" if length <= TRAINED else ", not trained on"), ""),
                *((number(by[seed, length].right), number(by[seed, length].other)) for seed in seeds),
            ]
            for length in range(1, LONGEST + 1)
        ],
    )


def _of_ways(answered: Sequence[Answered]) -> TableView:
    return TableView(
        title="What is said beyond the range: how far before the goal",
        note="The share of graphs in which the model names the goal, the vertex one edge before it, and so on; the "
        "last of a row is the right answer. What is missing to 1 are the other chain, the start, and others.",
        headings=["lookahead", "goal", *(f"{back} before" for back in range(1, LONGEST))],
        rows=[
            [
                (f"{one.lookahead}, seed {one.seed}", ""),
                *((number(one.back[back]) if back < one.lookahead else "–", "") for back in range(LONGEST)),
            ]
            for one in sorted(answered, key=lambda one: (one.lookahead, one.seed))
            if one.lookahead >= TRAINED
        ],
    )


def _of_learning(trained: Sequence[Trained]) -> TableView:
    steps = [line["step"] for line in trained[0].log if line["step"] and line["step"] % STAGE == 0]
    rows = []
    for seed, one in enumerate(trained):
        for at in one.log:
            if at["step"] in steps:
                cells = [
                    (number(at[f"right{length}"]), number(at[f"other{length}"])) for length in range(1, LONGEST + 1)
                ]
                rows.append([(f"seed {seed}, step {at['step']:,}", ""), *cells])
    return TableView(
        title="At the end of each stage",
        note=f"Every {STAGE} steps the next lookahead is introduced, up to {TRAINED}: the share of right first steps, "
        "and below it of those of the other chain. A model of lookahead 1 can say the goal itself, and one of up to 2 "
        "look one edge back from it.",
        headings=["model", *(f"lookahead {length}" for length in range(1, LONGEST + 1))],
        rows=rows,
    )


def _of_accounts(comparison: Comparison) -> TableView:
    rows = []
    for title in map(_title, PROXIES):
        cells = [with_limits(agreement(comparison, split, title)) for split in _SPLITS]
        rows.append([
            (title, ""), *cells, with_limits(gap(comparison, "one_more", title)), (judgement(comparison, title), ""),
        ])  # fmt: skip
    for title in ("UniformAttention()", "RandomProjection(rank=8)"):
        cells = [with_limits(agreement(comparison, split, title)) for split in _SPLITS]
        rows.append([(f"control: {title}", ""), *cells, ("–", ""), ("control", "")])
    return TableView(
        title="How often accounts of all heads agree with the models, all seeds together",
        note="Beyond the range the models themselves are wrong, so that agreement there is agreement about errors.",
        headings=["account", "iid", "one more", "two more", "distractor", "gap, one more", "verdict"],
        rows=rows,
    )


def _by_lookahead(comparison: Comparison, title: str) -> list[tuple[float, Limits]]:
    """The agreement of an account at each lookahead, over the splits that have it."""
    frame = comparison.results
    chosen = frame[
        (frame["metric"] == comparison.record.primary_metric)
        & (frame["kind"] == "step")
        & (frame["feature"] == "lookahead")
        & (frame["proxy"] == title)
        & frame["split"].isin(["iid", "one_more", "two_more"])
        & frame["trained"].astype(bool)
    ]
    rows = sorted(chosen.to_dict("records"), key=lambda row: row["bin"])
    return [(float(row["bin"]), (float(row["estimate"]), float(row["low"]), float(row["high"]))) for row in rows]


def _chart(answered: Sequence[Answered], comparison: Comparison) -> Chart:
    trained: list[float | None] = [1.0, 1.0]
    series = [
        Series(name=f"lookahead {1} to {TRAINED}: trained on", panel=panel, band=True, x=[1.0, float(TRAINED)],
               y=trained, low=[0.0, 0.0], high=trained)
        for panel in ("the model", "agreement with it")
    ]  # fmt: skip
    said: dict[str, Callable[[Answered], float]] = {
        "right": lambda one: one.right,
        "other chain": lambda one: one.other,
        f"{TRAINED - 1} before the goal": lambda one: one.back[TRAINED - 1] if one.lookahead >= TRAINED else math.nan,
    }
    for name, share in said.items():
        points = []
        for length in sorted({one.lookahead for one in answered}):
            known = [share(one) for one in answered if one.lookahead == length]
            if not math.isnan(known[0]):
                points.append((float(length), (float(np.mean(known)), min(known), max(known))))
        series.append(with_bars(name, "the model", points))
    series += [
        with_bars(_title(proxy), "agreement with it", _by_lookahead(comparison, _title(proxy))) for proxy in PROXIES
    ]
    return Chart(
        name="by-lookahead",
        caption="What models say, the mean of all seeds with the least and the most; and how often accounts "
        "of the attention of all heads agree with the models, with 95% intervals over graphs and seeds.",
        x_label="lookahead",
        y_label="share",
        names=None,
        series=series,
    )


def _learning(trained: Sequence[Trained]) -> Chart:
    return Chart(
        name="learning",
        caption=f"The share of right first steps along the training; every {STAGE} steps the next lookahead is "
        f"introduced, up to {TRAINED}.",
        x_label="steps",
        y_label="right",
        names=None,
        series=[
            line(f"lookahead {length}", f"seed {seed}", [(at["step"], at[f"right{length}"]) for at in one.log])
            for seed, one in enumerate(trained)
            for length in range(1, LONGEST + 1)
        ],
    )
