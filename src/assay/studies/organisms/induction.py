"""Induction heads under clamps: which part of the circuit the phase change waits for, and when the account holds.

Small attention-only models learn to answer with the label that an exemplar had in the context, by a sudden change.
Trainings in which a part of the circuit is given from the start tell what the change waits for (arXiv 2404.07129). The
account "one head copies what followed the match" is judged by `compare` against the models along the training.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from assay.engine import Edit, Engine, Head
from assay.faithfulness import Comparison, Step, compare
from assay.reports import Chart, Illustrations, TableView
from assay.studies.organisms._clamps import CLAMPS, Clamped
from assay.studies.organisms._labels_in_context import (
    EXEMPLARS,
    LABELS,
    LENGTH,
    QUERY,
    LabelsInContext,
    attention_only,
    batches,
)
from assay.studies.organisms._one_head import OneHead, matches, permuted, scores
from assay.studies.organisms._shown import Limits, agreement, gap, judgement, line, number, with_bars, with_limits
from assay.studies.organisms._study import Findings
from assay.subjects import Event, Recipe, Subject, Trained, Watch, train
from assay.tasks import Split

__all__ = ["SEEDS", "SEQUENCES", "SUMMARY", "run"]

SUMMARY = (
    "induction heads trained with parts of the circuit given: what the phase change waits for, when one head will do"
)

SEEDS = 3

SEQUENCES = 400

BATCH = 64

RECIPE = Recipe(steps=2_500, learning_rate=1e-4, weight_decay=0.0, decay=False, clip_norm=None)
"""At a rate of 1e-3 the change is over after 250 steps, and there is no plateau to look at."""

EVERY = 50
"""Steps between looks: all steps of events are known up to these."""

LEARNED, HALFWAY = 0.97, 0.75
"""Accuracy at which the task counts as learned, and as half learned: between the plateau's 1/2 and 1."""

KEPT = (0, 500, 1_000, 1_250, 1_500, 1_750, 2_000)
"""Steps of the training without clamps after which the account is judged, beside the last."""

UNTRAINED, MIDDLE, END = "untrained", "in the phase change", "at the end"


@dataclass(frozen=True)
class Timed:
    """A training under a clamp, by its seed: the step at which it was learned (None: never), and the accuracy then.

    Accuracies are measured with the clamp on. `plateau` is the accuracy at the third look, `relabelled` that on pairs
    of labels that never occurred together in training.
    """

    clamp: str
    seed: int
    learned: int | None
    accuracy: float
    relabelled: float
    plateau: float


@dataclass(frozen=True)
class Judged:
    """How often the account agrees with the model of a seed after so many steps, with 95% intervals, and the gap."""

    seed: int
    step: int
    iid: Limits
    relabelled: Limits
    gap: Limits


@dataclass(frozen=True)
class HeadFound:
    """A head of the last layer at the end of a training, in the order of their attention to the match.

    `score` is that attention, from the query; `without` the accuracy when it is off, `alone` when all others are.
    """

    seed: int
    head: int
    score: float
    without: float
    alone: float


def run(
    folder: Path, *, seeds: int, sequences: int, device: str, progress: Callable[[Step], None], recipe: Recipe = RECIPE
) -> Findings:
    """Train with every clamp and judge the account along the trainings without; nothing is left in `folder`."""
    task = LabelsInContext()
    splits = {name: task.split(name, sequences) for name in ("iid", "relabelled")}
    total = seeds * (len(CLAMPS) + 1) + 1
    timed: list[Timed] = []
    free: list[Trained] = []
    for seed in range(seeds):
        for clamp in CLAMPS:
            progress(Step(len(timed), total, f"training, seed {seed}, clamp: {clamp}"))
            trained = _train(seed, clamp, recipe, splits, device)
            timed.append(_timed(clamp, seed, trained))
            free += [trained] if clamp == "none" else []
    subjects, found = [], []
    for seed, trained in enumerate(free):
        models, heads = _in_order(seed, trained, splits["iid"], device)
        subjects.append(models)
        found += heads
    judged: list[Judged] = []
    for seed, models in enumerate(subjects):
        progress(Step(len(timed) + seed, total, f"the account along the training, seed {seed}"))
        for step in sorted({step for step in KEPT if step in models} | {max(models)}):
            judged.append(_judged(seed, step, _compare([models[step]], task, sequences, controls=False)))
    progress(Step(total - 1, total, "the account with its controls"))
    chosen = {
        UNTRAINED: [models[0] for models in subjects],
        MIDDLE: [
            models[trained.events.get("halfway", max(models))] for models, trained in zip(subjects, free, strict=True)
        ],
        END: [models[max(models)] for models in subjects],
    }
    comparisons = {name: _compare(own, task, sequences, controls=True) for name, own in reversed(chosen.items())}
    numbers = {
        "recipe": asdict(recipe),
        "clamps": [asdict(one) for one in timed],
        "along": {str(seed): list(trained.log) for seed, trained in enumerate(free)},
        "events": {str(seed): dict(trained.events) for seed, trained in enumerate(free)},
        "judged": [asdict(one) for one in judged],
        "heads": [asdict(one) for one in found],
    }
    shown = Illustrations(
        tables=[_of_clamps(timed), _of_steps(judged, free), _of_comparisons(comparisons), _of_heads(found)],
        charts=[_along(judged, free), _bars(timed)],
    )
    return Findings(numbers, shown, comparisons)


def _train(seed: int, clamp: str, recipe: Recipe, splits: Mapping[str, Split], device: str) -> Trained:
    """A training under a clamp; without one it goes on to the last step, and its models are kept."""
    model = attention_only(seed, vocabulary=EXEMPLARS + LABELS, positions=LENGTH).to(device)  # type: ignore[arg-type]
    clamped = Clamped(model, CLAMPS[clamp])
    look = _look(clamped, splits)
    events = (
        Event("halfway", "accuracy", HALFWAY, keep=(0,) if clamp == "none" else ()),
        Event("learned", "accuracy", LEARNED, keep=(), stop=clamp != "none"),
    )
    at = (*(step for step in KEPT if step <= recipe.steps), recipe.steps) if clamp == "none" else ()
    with clamped.engine.ready():
        return train(
            model,
            batches(batch=BATCH, seed=seed),
            recipe,
            checkpoint=None,
            device=device,
            loss=clamped.loss,
            around=clamped.around,
            watch=Watch(look, every=EVERY, at=at, events=events),
        )


def _look(clamped: Clamped, splits: Mapping[str, Split]) -> Callable[[PreTrainedModel], dict[str, float]]:
    """Accuracy on both splits, with the clamps on, and where the heads look on iid without them."""

    def look(model: PreTrainedModel) -> dict[str, float]:
        found = {name: _right(clamped.answers(model, split.tokens), split) for name, split in splits.items()}
        before, match = _attention(clamped.engine, splits["iid"])
        measured = {"accuracy": found["iid"], "relabelled": found["relabelled"]}
        return {**measured, "previous": float(before.max()), "match": float(match.max())}

    return look


def _right(answers: np.ndarray, split: Split) -> float:
    assert split.answers is not None
    return float((answers == split.answers[:, QUERY]).mean())


def _attention(engine: Engine, split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    """Of every head of the first layer, its attention from labels to the token before; of the last, from the query to
    the match."""
    tokens = torch.from_numpy(split.tokens).to(engine.subject.device)
    before = torch.eye(LENGTH, device=tokens.device).roll(1, dims=0).expand(len(tokens), -1, -1)
    query = torch.zeros_like(tokens, dtype=torch.bool)
    query[:, QUERY] = True
    return scores(engine, tokens, before, tokens >= EXEMPLARS)[0], scores(engine, tokens, matches(tokens), query)[1]


def _timed(clamp: str, seed: int, trained: Trained) -> Timed:
    learned = trained.events.get("learned")
    then = next((line for line in trained.log if line["step"] == learned), trained.log[-1])
    third = trained.log[min(2, len(trained.log) - 1)]
    return Timed(clamp, seed, learned, then["accuracy"], then["relabelled"], third["accuracy"])


def _in_order(seed: int, trained: Trained, split: Split, device: str) -> tuple[dict[int, Subject], list[HeadFound]]:
    """The kept models by step, heads of the last layer in the order of their attention to the match at the end.

    Which head will be the strongest is known only then; their order is a matter of names.
    """
    model = attention_only(seed, vocabulary=EXEMPLARS + LABELS, positions=LENGTH).to(device)  # type: ignore[arg-type]
    last = max(trained.kept)
    model.load_state_dict(trained.kept[last])
    order = _attention(Engine(Subject(model, None, "finished")), split)[1].argsort(descending=True).tolist()
    subjects = {}
    for step, weights in trained.kept.items():
        model.load_state_dict(weights)
        own = permuted(model, 1, order)
        subjects[step] = Subject(own, None, LabelsInContext.name, seed=seed)
    engine = Engine(subjects[last])
    match = _attention(engine, split)[1].tolist()
    heads = [head for head in engine.heads if head.layer == 1]
    found = [
        HeadFound(
            seed,
            head.head,
            match[head.head],
            _accuracy(engine, split, [head]),
            _accuracy(engine, split, [other for other in heads if other != head]),
        )
        for head in heads
    ]
    return subjects, found


def _accuracy(engine: Engine, split: Split, off: Sequence[Head]) -> float:
    """How often a model is right among the labels, with some heads off."""
    tokens = torch.from_numpy(split.tokens).to(engine.subject.device)
    logits = engine.run(tokens, edits=[Edit(head, outputs=torch.zeros_like) for head in off]).logits
    return _right(EXEMPLARS + logits[:, QUERY, EXEMPLARS:].argmax(dim=-1).cpu().numpy(), split)


def _compare(subjects: Sequence[Subject], task: LabelsInContext, sequences: int, *, controls: bool) -> Comparison:
    return compare(
        list(subjects), task, [OneHead()], sites=["layer1"], sequences=sequences, fit_sequences=sequences,
        controls=controls, metrics=None if controls else ["same_prediction"], progress=False,
    )  # fmt: skip


def _judged(seed: int, step: int, comparison: Comparison) -> Judged:
    account = OneHead().title
    iid, relabelled = (agreement(comparison, split, account) for split in ("iid", "relabelled"))
    return Judged(seed, step, iid, relabelled, gap(comparison, "relabelled", account))


def _of_clamps(timed: Sequence[Timed]) -> TableView:
    seeds = sorted({one.seed for one in timed})
    by = {(one.clamp, one.seed): one for one in timed}
    return TableView(
        title=f"Steps until accuracy is above {LEARNED}",
        note=f"Looked at every {EVERY} steps, with the clamp on; below it, the accuracy then on pairs of labels that "
        "never occur together in training. Plateau: the mean accuracy over seeds after the second look. Clamped values "
        "are constants: prev is head 0 of layer 0 on the token before, match head 0 of layer 1, from the query, on the "
        "right label, copy the logits of labels from that head's attention.",
        headings=["clamp", *(f"seed {seed}" for seed in seeds), "plateau"],
        rows=[
            [
                (clamp, ""),
                *(
                    ("never" if one.learned is None else f"{one.learned:,}", number(one.relabelled))
                    for one in (by[clamp, seed] for seed in seeds)
                ),
                (number(float(np.mean([by[clamp, seed].plateau for seed in seeds]))), ""),
            ]
            for clamp in CLAMPS
        ],
    )


def _of_steps(judged: Sequence[Judged], free: Sequence[Trained]) -> TableView:
    rows = []
    for one in judged:
        line = next(line for line in free[one.seed].log if line["step"] == one.step)
        rows.append([
            (f"seed {one.seed}, step {one.step:,}", ""),
            *((number(line[name]), "") for name in ("accuracy", "relabelled", "previous", "match")),
            *map(with_limits, (one.iid, one.relabelled, one.gap)),
        ])  # fmt: skip
    return TableView(
        title="The account along the trainings without clamps",
        note="The account: of layer 1 the head alone that attends most to the match at the end, its attention given. "
        "An untrained model is nearly constant, so that agreement with it says nothing (step 0); on the plateau model "
        "and account both answer one of two labels, so agreement near 1/2 is chance. Previous and match: the largest "
        "attention of a head of layer 0 from the two labels to the tokens before, and of layer 1 from the query to the "
        "match.",
        headings=[
            "model", "accuracy", "relabelled", "previous", "match", "agreement, iid", "agreement, relabelled", "gap",
        ],
        rows=rows,
    )  # fmt: skip


def _of_comparisons(comparisons: Mapping[str, Comparison]) -> TableView:
    account, control = OneHead(), OneHead(attends="all")
    rows = []
    for name, one in comparisons.items():
        cells = [
            with_limits(agreement(one, split, proxy.title))
            for proxy in (account, control)
            for split in ("iid", "relabelled")
        ]
        rows.append([(name, ""), *cells, (judgement(one, account.title), "")])
    return TableView(
        title="The account and its control, all seeds together",
        note="The control is the same head alone, attending to all that it sees. Untrained: agreement without any "
        "mechanism.",
        headings=["models", "account, iid", "relabelled", "control, iid", "relabelled ", "verdict"],
        rows=rows,
    )


def _of_heads(found: Sequence[HeadFound]) -> TableView:
    return TableView(
        title="Heads of layer 1 at the end",
        note="In the order of their attention from the query to the match, on iid, and the accuracy without the head, "
        "and with it alone.",
        headings=["head", "match", "without", "alone"],
        rows=[
            [
                (f"seed {one.seed}, head {one.head}", ""),
                *((number(x), "") for x in (one.score, one.without, one.alone)),
            ]
            for one in found
        ],
    )


def _along(judged: Sequence[Judged], free: Sequence[Trained]) -> Chart:
    series = []
    for seed, trained in enumerate(free):
        panel = f"seed {seed}"
        names = {"accuracy": "accuracy", "match": "match score", "previous": "previous-token score"}
        for measure, name in names.items():
            series.append(line(name, panel, [(line["step"], line[measure]) for line in trained.log]))
        own = [one for one in judged if one.seed == seed]
        for split in ("iid", "relabelled"):
            points = [(one.step, getattr(one, split)) for one in own]
            series.append(with_bars("agreement of the account", panel, points, split))
        if "learned" in trained.events:
            at = trained.events["learned"]
            series.append(line(f"accuracy above {LEARNED}", panel, [(at, 0.0), (at, 1.0)]))
    return Chart(
        name="along-the-training",
        caption="Trainings without clamps: accuracy, the largest attention of a head to the match and, from labels, to "
        "the token before, and how often the account agrees with the model, with 95% intervals.",
        x_label="steps",
        y_label="share",
        names=None,
        series=series,
    )


def _bars(timed: Sequence[Timed]) -> Chart:
    names = list(CLAMPS)
    seeds = sorted({one.seed for one in timed})
    series = []
    for seed in seeds:
        own = {one.clamp: one.learned for one in timed if one.seed == seed}
        series.append(line(f"seed {seed}", "", [(place, own[name]) for place, name in enumerate(names)]))
    return Chart(
        name="steps-by-clamp",
        caption=f"Steps until accuracy is above {LEARNED}, by what of the circuit is given.",
        x_label="clamp",
        y_label="steps",
        names=names,
        series=series,
    )
