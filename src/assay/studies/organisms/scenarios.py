"""Toy English by what gives the answer: accounts by scenario, a bias taken out, a default answer, heads used again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from assay.circuits import (
    Circuit,
    ExactNodes,
    Problem,
    RandomValueVectors,
    Reference,
    Ships,
    ValueVectorEdit,
)
from assay.circuits._ships import without_head
from assay.diagnostics import ComponentReuse, component_reuse
from assay.engine import Engine, Head, collect, tensors
from assay.faithfulness import Comparison, Step, compare
from assay.reports import Chart, Illustrations, Series, TableView
from assay.simplify import SVD, Simplification, label
from assay.studies.organisms._study import Findings
from assay.studies.organisms._toy_english import SCENARIOS, SUBJECT, is_right, right, said
from assay.subjects import Subject, load
from assay.tasks import Split, ToyEnglish
from assay.tasks.toy_english import GRAMMARS, ID

__all__ = ["SEEDS", "SEQUENCES", "SUMMARY", "run"]

SUMMARY = "toy English: accounts by scenario, a biased answer edited, heads behind a default answer, heads used again"

SEEDS = 3

SEQUENCES = 200
"""Prompts a split."""

ANCHORED = f"{SUBJECT}@250"
"""The model that says A to every question of choice."""

LEAST_GAP, DRAWS = 1.5, 5
"""Logits a neuron writes of A over what is right, to be edited, and draws of the controls."""

SIZES, PAIRS, AGAIN = (3, 5, 8), 100, 3
"""Of reuse: how many heads and MLPs are taken, on how many pairs they are found, and how often again."""

SHOWN = 5
"""The size that is shown; the numbers of all are in the run's file."""

_SHIFTS = (("ioi", "pairs"), ("ioi", "templates"), ("ioi", "bystander"), ("coloured", "four"), ("choice", "balanced"),
           ("choice", "plain"), ("greater", "nouns"), ("facts", "paraphrase"))  # fmt: skip


def run(folder: Path, *, seeds: int, sequences: int, device: str, progress: Callable[[Step], None]) -> Findings:
    """Judge accounts of the shipped models of toy English scenario by scenario. Nothing is trained."""
    del folder
    subjects = [load(SUBJECT, seed=seed, device=device) for seed in range(seeds)]
    parts: tuple[tuple[str, Callable[[], Any]], ...] = (
        ("accounts of facts", lambda: [by_scenario(subject, sequences) for subject in subjects]),
        ("the biased answer", lambda: edited(load(ANCHORED, device=device), sequences)),
        ("the default answer", lambda: [default_heads(subject, sequences) for subject in subjects]),
        ("heads used again", lambda: [reused(subject) for subject in subjects]),
    )
    found = []
    for number, (name, make) in enumerate(parts):
        progress(Step(number, len(parts), name))
        found.append(make())
    comparisons, bias, heads, reuses = found
    shares = [mixture(comparison) for comparison in comparisons]
    tables = [
        _of_scenarios(comparisons, shares),
        _of_bias(bias),
        _of_default(heads),
        _of_reuse([between_tasks for between_tasks, _ in reuses]),
        _of_shifts([under_shifts for _, under_shifts in reuses]),
    ]
    numbers = {
        "mixture": shares,
        "bias": bias,
        "default": heads,
        "reuse": [[asdict(one) for one in between_tasks.pairs] for between_tasks, _ in reuses],
    }
    named = {f"facts-seed-{seed}": comparison for seed, comparison in enumerate(comparisons)}
    return Findings(numbers, Illustrations(tables=tables, charts=[_chart(comparisons)]), named)


# -- scenarios ------------------------------------------------------------------------------------------------------


def accounts() -> list[Simplification]:
    """What is held against the scenarios."""
    return [SVD(rank=4), SVD(rank=8), Circuit(edges=20), Circuit(edges=40)]


def by_scenario(subject: Subject, sequences: int) -> Comparison:
    """Accounts fitted on the pooled facts of training, judged on iid, on every scenario and the other shifts."""
    return compare(
        subject, ToyEnglish("facts"), accounts(), sequences=sequences, fit_sequences=sequences, controls=False,
        refit=False, resamples=500, progress=False,
    )  # fmt: skip


def mixture(comparison: Comparison) -> dict[str, dict[str, float]]:
    """Of every account: agreement on iid, and what its kinds there say it is from agreement on the scenarios alone."""
    frame = comparison.results
    frame = frame[(frame["metric"] == "same_prediction") & (frame["feature"] == "")]
    found = {}
    for proxy in dict.fromkeys(frame["proxy"]):
        own = frame[frame["proxy"] == proxy].set_index(["split", "kind"])
        counts = {kind: own.loc[("iid", kind), "sequences"] for kind in ("recall", "both")}
        whole = sum(counts.values())
        mixed = sum(counts[kind] / whole * own.loc[(kind, kind), "estimate"] for kind in counts)
        found[str(proxy)] = {"iid": float(own.loc[("iid", "all"), "estimate"]), "mixed": float(mixed)}
    return found


def _of_scenarios(comparisons: Sequence[Comparison], shares: Sequence[Mapping[str, Mapping[str, float]]]) -> TableView:
    rows = []
    for seed, (comparison, mixed) in enumerate(zip(comparisons, shares, strict=True)):
        verdicts = {verdict.proxy: verdict.judgement for verdict in comparison.verdicts()}
        for recipe in accounts():
            name = label(recipe)
            row = [(f"{name}, seed {seed}", "")]
            for split in ("iid", *SCENARIOS):
                own = comparison.agreement(split).set_index("proxy").loc[name]
                row.append((f"{own['estimate']:.3f}", f"[{own['low']:.3f}, {own['high']:.3f}]"))
            rows.append([*row, (f"{mixed[name]['mixed']:.3f}", ""), (verdicts[name], "")])
    return TableView(
        title="Accounts of facts by what gives the answer",
        note="Agreement with the subject, with its 95% interval, of accounts that were fitted on pooled facts. Recall: "
        "memory against the rule of the suffix, or without one; both: memory and the rule agree; heuristic: the rule "
        "alone; guess: nothing tells. Mixed: what iid should be by the agreement on recall and both and by how often "
        "each is in iid.",
        headings=["account", "iid", *SCENARIOS, "mixed", "verdict"],
        rows=rows,
    )


def _chart(comparisons: Sequence[Comparison]) -> Chart:
    series = []
    for seed, comparison in enumerate(comparisons):
        for recipe in accounts():
            own = [comparison.agreement(split).set_index("proxy").loc[label(recipe)] for split in SCENARIOS]
            series.append(
                Series(
                    name=label(recipe), panel=f"seed {seed}", x=[float(place) for place in range(len(own))],
                    y=[float(row["estimate"]) for row in own], low=[float(row["low"]) for row in own],
                    high=[float(row["high"]) for row in own],
                )
            )  # fmt: skip
    return Chart(
        name="scenarios",
        caption="Agreement of accounts of facts with the model, by what gives the answer, with 95% intervals.",
        x_label="what gives the answer",
        y_label="agreement",
        names=list(SCENARIOS),
        series=series,
    )


# -- a biased answer ------------------------------------------------------------------------------------------------

_ASKED = ("iid", "balanced", "last", "five", "letters", "open")


def edited(subject: Subject, sequences: int) -> list[dict[str, Any]]:
    """What becomes of a model that says A to everything when the neurons that write A are edited, and of controls.

    Of every edit: how many neurons; by split how often A is said, and how often what is right; and on how many prompts
    of other tasks the likeliest word stays what it was. The neurons are found on failures of the train split alone.
    """
    task = ToyEnglish("choice")
    samples = collect(Engine(subject), task.split("train", 2 * sequences), ())
    splits = {name: task.split(name, sequences) for name in _ASKED}
    others = [ToyEnglish(asks).split("iid", sequences) for asks in GRAMMARS if asks != "choice"]
    before = [said(subject.model, split) for split in others]

    def measured(name: str, model: Any, neurons: int) -> dict[str, Any]:
        kept = [float((said(model, split) == own).mean()) for split, own in zip(others, before, strict=True)]
        return {
            "edit": name,
            "neurons": neurons,
            "says_a": {split: float((said(model, one) == ID["A"]).mean()) for split, one in splits.items()},
            "right": {split: right(model, one).accuracy for split, one in splits.items()},
            "kept": float(np.mean(kept)),
        }

    edit = ValueVectorEdit(token=ID["A"], least_gap=LEAST_GAP).fit(samples)
    neurons = edit.neurons_ or ()
    found = [measured("none", subject.model, 0)]
    edits: dict[str, list[Any]] = {
        "subtract A": [edit],
        "subtract A three times": [replace(edit, strength=3.0).fit(samples)],
        "remove the vectors": [replace(edit, edit="remove").fit(samples)],
        "other neurons": [RandomValueVectors(edit, seed).fit(samples) for seed in range(DRAWS)],
        "other neurons, three times": [
            RandomValueVectors(replace(edit, strength=3.0), seed).fit(samples) for seed in range(DRAWS)
        ],
        "these neurons, random directions": [
            RandomValueVectors(edit, seed, True).fit(samples) for seed in range(DRAWS)
        ],
    }
    for name, recipes in edits.items():
        drawn = [measured(name, recipe.apply(subject).model.model, len(neurons)) for recipe in recipes]
        found.append({
            **drawn[0],
            **{key: _means([one[key] for one in drawn]) for key in ("says_a", "right")},
            "kept": float(np.mean([one["kept"] for one in drawn])),
        })  # fmt: skip
    return found


def _means(drawn: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {split: float(np.mean([one[split] for one in drawn])) for split in _ASKED}


def _of_bias(found: Sequence[Mapping[str, Any]]) -> TableView:
    rows = [
        [
            (f"{one['edit']} ({one['neurons']} neurons)" if one["neurons"] else "no edit", ""),
            *((f"{one['says_a'][split]:.3f}", f"{one['right'][split]:.3f}") for split in _ASKED),
            (f"{one['kept']:.3f}", ""),
        ]
        for one in found
    ]
    return TableView(
        title="A model that says A, edited",
        note=f"The model after 250 steps ({ANCHORED}). How often it says A; in brackets, how often what is right. "
        f"Neurons that write A (by {LEAST_GAP:g} logits over what is right) are found on failures of the train split; "
        "of what they write the direction of A is taken away, once or three times, or all. "
        f"Controls are means of {DRAWS} draws: the same edit of as many other neurons of the layer, and random "
        "directions as long. Kept: the share of prompts of the other eight tasks after which the likeliest word stays.",
        headings=["edit", *_ASKED, "kept"],
        rows=rows,
    )


# -- a default answer -----------------------------------------------------------------------------------------------


def default_heads(subject: Subject, sequences: int) -> list[dict[str, Any]]:
    """What every head is to the answer to open questions, beyond what it is to others, and what its loss does.

    By head: the score of `Ships`, in nats, found on the first half of the prompts; on the other half how often A is
    said to open questions without the head, and how often what is right to others.
    """
    task, engine = ToyEnglish("choice"), Engine(subject)
    halves = {
        name: (split.first(half), split.take(np.arange(half, len(split))))
        for name in ("open", "iid")
        for split in (task.split(name, 2 * sequences),)
        for half in (len(split) // 2,)
    }
    asked = halves["open"][0]
    problem = Problem(engine, asked, Reference.fitted(engine, "counterfactual", asked), "logit_difference")
    scores = -np.nansum(Ships(plain=halves["iid"][0]).scores(problem), axis=1)
    graph = problem.wiring.graph
    found = []
    for head in engine.heads:
        found.append({
            "head": str(head),
            "score": float(scores[graph.sender(head.layer, head.head)]),
            "open": _right_without(engine, head, halves["open"][1]),
            "iid": _right_without(engine, head, halves["iid"][1]),
        })  # fmt: skip
    return found


def _right_without(engine: Engine, head: Head, split: Split) -> float:
    tokens, valid = tensors(split, engine.subject.device)
    with torch.no_grad():
        logits = engine.run(tokens, valid, edits=[without_head(head, "uniform")]).logits
    return float(is_right(logits.float().cpu(), split).mean())


def _of_default(found: Sequence[Sequence[Mapping[str, Any]]]) -> TableView:
    rows = []
    for seed, heads in enumerate(found):
        order = sorted(heads, key=lambda one: -one["score"])
        for one in (*order[:2], order[-1]):
            rows.append([
                (f"seed {seed}, {one['head']}", ""),
                *((f"{one[key]:.3f}", "") for key in ("score", "open", "iid")),
            ])  # fmt: skip
        others = order[1:]
        rows.append([
            (f"seed {seed}, mean of the other {len(others)} heads", ""),
            *((f"{np.mean([one[key] for one in others]):.3f}", "") for key in ("score", "open", "iid")),
        ])  # fmt: skip
    return TableView(
        title="Heads behind the default answer",
        note="Score: KL of the answer to open questions (nothing is stated, and the model says A) where the head "
        "attends evenly, less the same of questions that can be answered, in nats. On other prompts: how often A is "
        "still said to open questions without the head, and how often what is right to the others. The two highest "
        "scores, the lowest, and all but the first.",
        headings=["head", "score", "A to open questions", "right to others"],
        rows=rows,
    )


# -- reuse ----------------------------------------------------------------------------------------------------------


def reused(subject: Subject) -> tuple[ComponentReuse, dict[str, ComponentReuse]]:
    """Which heads and MLPs the nine tasks share, and those of a task on iid and under some shifts."""
    engine = Engine(subject)
    problems = {asks: _problem(engine, ToyEnglish(asks).split("iid", PAIRS)) for asks in GRAMMARS}
    found = {asks: _importances(problem) for asks, problem in problems.items()}
    again = {asks: _again(problem) for asks, problem in problems.items()}
    tasks = component_reuse(found, sizes=SIZES, resampled=again, problems=problems)
    shifts = {}
    for asks, name in _SHIFTS:
        elsewhere = _problem(engine, ToyEnglish(asks).split(name, PAIRS))
        shifts[f"{asks}, {name}"] = component_reuse(
            {"iid": found[asks], name: _importances(elsewhere)}, sizes=(SHOWN,),
            resampled={"iid": again[asks], name: _again(elsewhere)}, problems={"iid": problems[asks], name: elsewhere},
        )  # fmt: skip
    return tasks, shifts


def _problem(engine: Engine, split: Split) -> Problem:
    return Problem(engine, split, Reference.fitted(engine, "counterfactual", split), "logit_difference")


def _importances(problem: Problem) -> np.ndarray:
    """What ablating every head and MLP changes m by."""
    graph = problem.wiring.graph
    found: np.ndarray = np.nansum(ExactNodes().scores(problem), axis=1)[1:].reshape(graph.layers, graph.heads + 1)
    return found


def _again(problem: Problem) -> list[np.ndarray]:
    """The same on bootstrap samples of the pairs."""
    rng = np.random.default_rng(0)
    drawn = [rng.integers(len(problem.split), size=len(problem.split)) for _ in range(AGAIN)]
    return [_importances(replace(problem, split=problem.split.take(rows))) for rows in drawn]


def _of_reuse(found: Sequence[ComponentReuse]) -> TableView:
    size = SHOWN
    rows = []
    pairs = [one for one in found[0].pairs if one.size == size]
    for pair in sorted(pairs, key=lambda one: -one.weighted):
        own = [one.between(pair.first, pair.second, size) for one in found]
        across = found[0].faithfulness[size]
        rows.append([
            (f"{pair.first} and {pair.second}", ""),
            (" ".join(str(one.shared) for one in own), ""),
            (f"{pair.expected:.1f}, {pair.layered_expected:.1f}", ""),
            (f"{pair.layered_p:.2g}", ""),
            (" ".join(f"{one.jaccard:.2f}" for one in own), ""),
            (" ".join(f"{one.ceiling:.2f}" for one in own), ""),
            (" ".join(f"{one.weighted:.2f}" for one in own), ""),
            (f"{across[pair.first, pair.first]:.2f}, {across[pair.second, pair.second]:.2f}", ""),
            (f"{across[pair.first, pair.second]:.2f}, {across[pair.second, pair.first]:.2f}", ""),
        ])  # fmt: skip
    return TableView(
        title="Heads and MLPs that two tasks share",
        note=f"The {size} of 15 heads and MLPs whose ablation (to the counterfactual's) changes the logit difference "
        f"most, on {PAIRS} pairs of iid. Shared, by seed of the model; by chance, drawn evenly and within layers, and "
        "the probability of as many within layers (seed 0); Jaccard index, and that of two discoveries of one task, on "
        "bootstrap samples (the ceiling), by seed; weighted: the index of importances, by seed; own and across "
        "(seed 0): what comes back of either task with its own components alone; of the second with those of the "
        "first, and of the first with those of the second.",
        headings=["tasks", "shared", "by chance", "p", "Jaccard", "ceiling", "weighted", "own", "across"],
        rows=rows,
    )


def _of_shifts(found: Sequence[Mapping[str, ComponentReuse]]) -> TableView:
    rows = []
    for name in found[0]:
        own = [one[name] for one in found]
        shift = own[0].pairs[0].second
        rows.append([
            (name, ""),
            (" ".join(str(one.pairs[0].shared) for one in own), ""),
            (" ".join(f"{one.pairs[0].jaccard:.2f}" for one in own), ""),
            (" ".join(f"{one.pairs[0].ceiling:.2f}" for one in own), ""),
            (" ".join(f"{one.pairs[0].weighted:.2f}" for one in own), ""),
            *(
                (" ".join(f"{one.faithfulness[SHOWN]['iid', asked]:.2f}" for one in own), "")
                for asked in ("iid", shift)
            ),
        ])  # fmt: skip
    return TableView(
        title="The same heads and MLPs under a shift",
        note="As above, of one task on iid and under a shift, by seed of the model; last: what comes back of the task "
        "on iid, and under the shift, with the components found on iid.",
        headings=["task and shift", "shared", "Jaccard", "ceiling", "weighted", "on iid", "under the shift"],
        rows=rows,
    )
