"""Grokking with wrong labels: a network that adds and remembers at once, and an account that only adds.

A network learns a + b mod 97 from half of all pairs, of which 35% carry another answer. By how strongly weights decay
it keeps the wrong answers beside the rule, gives up a part of them, or all. The account "its periodic neurons add" is
then right about the rule and wrong about the model exactly where the model remembered. Source: "To grok or not to
grok" (arXiv 2310.13061): its network, data, rate and pruning by participation ratio; what is counted on wrong labels is
judged here as any account is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from assay.engine import Samples
from assay.faithfulness import Comparison, Step, compare
from assay.reports import Chart, Illustrations, Series, TableView
from assay.simplify import Simplification
from assay.studies.organisms._modular import (
    Adds,
    ModularAddition,
    PrunePeriodic,
    periodicity,
    said,
    squares,
)
from assay.studies.organisms._neurons import RandomNeurons
from assay.studies.organisms._scored import by_seed
from assay.studies.organisms._shown import agreement, number, with_limits
from assay.studies.organisms._study import Findings
from assay.subjects import IGNORED, Batch, PooledMLPForCausalLM, Recipe, Subject, Watch, train

SUMMARY = "addition modulo 97 with 35% wrong labels: the account that it adds fails exactly where it remembered"
SEEDS = 3
SEQUENCES = 500

NEURONS = 500
STEPS = {0: 600, 5: 500, 15: 300}
"""Steps of full batches by weight decay: enough for each to come to rest."""

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
JUDGED = (0.4, 0.7)
PRUNED = 0.7


@dataclass(frozen=True)
class State:
    """What a network says, as shares: of wrong labels it gives back (`memorised`) or answers truthfully (`inverted`),
    of true labels, and of pairs that it never saw; and how periodic its neurons are in the mean."""

    memorised: float
    inverted: float
    clean: float
    unseen: float
    periodicity: float

    @classmethod
    def of(cls, model: PreTrainedModel, task: ModularAddition) -> "State":
        """That of a network, over all pairs."""
        assert isinstance(model, PooledMLPForCausalLM)
        labels, wrong = task.labels
        answers, seen = said(model, task), task.trained_on
        true = answers == task.sums
        return cls(
            memorised=float((answers[:seen] == labels)[wrong].mean()),
            inverted=float(true[:seen][wrong].mean()),
            clean=float(true[:seen][~wrong].mean()),
            unseen=float(true[seen:].mean()),
            periodicity=float(periodicity(model, task.modulus).nanmean()),
        )


def trained(
    task: ModularAddition, decay: int, seed: int, *, neurons: int = NEURONS, steps: int | None = None,
    device: str = "cpu",
) -> tuple[Subject, list[dict[str, float]]]:  # fmt: skip
    """Train one network; gives it with its states along the way, every 50 steps."""
    model = squares(task, neurons, seed)
    labels, _ = task.labels
    tokens = task.tokens(task.pairs[: task.trained_on])
    everything = Batch(tokens, np.stack((np.full_like(labels, IGNORED), labels), axis=1))
    inputs = torch.from_numpy(tokens).to(device)
    targets = torch.nn.functional.one_hot(torch.from_numpy(labels), task.modulus).float().to(device)

    def loss(model: PreTrainedModel, batch: Batch) -> Tensor:
        assert isinstance(model, PooledMLPForCausalLM)
        return torch.nn.functional.mse_loss(model.at_last(inputs), targets)

    recipe = Recipe(
        steps=STEPS[decay] if steps is None else steps,
        learning_rate=1e-2,
        betas=(0.9, 0.98),
        weight_decay=float(decay),
        decay=False,
        clip_norm=None,
    )
    watch = Watch(lambda model: asdict(State.of(model, task)))
    done = train(model, lambda step: everything, recipe, checkpoint=None, device=device, loss=loss, watch=watch)
    return Subject(model, None, f"decay-{decay}", seed=seed), [dict(look) for look in done.log]


def accounts(task: ModularAddition, neurons: int) -> list[Simplification]:
    """What is judged: the program, the periodic neurons alone, and the others alone."""
    low = [PrunePeriodic(round(share * neurons), task.modulus) for share in JUDGED]
    return [Adds(task.modulus), *low, PrunePeriodic(round(JUDGED[0] * neurons), task.modulus, "high")]


def judge(subjects: Sequence[Subject], task: ModularAddition, sequences: int) -> Comparison:
    """The accounts of networks of one weight decay, on all splits."""
    neurons = subjects[0].model.config.hidden_sizes[0]
    return compare(
        list(subjects), task, accounts(task, neurons), sequences=sequences, fit_sequences=100, refit=False,
        progress=False,
    )  # fmt: skip


def curves(subject: Subject, task: ModularAddition) -> dict[str, list[dict[str, float]]]:
    """The states of a network without a growing share of its neurons: least or most periodic first, or at random."""
    neurons = subject.model.config.hidden_sizes[0]
    makers: dict[str, Callable[[int], Simplification]] = {
        "low": lambda count: PrunePeriodic(count, task.modulus),
        "high": lambda count: PrunePeriodic(count, task.modulus, "high"),
        "random": RandomNeurons,
    }
    nothing = Samples(())
    return {
        by: [asdict(State.of(_pruned(make(round(share * neurons)), nothing, subject), task)) for share in SHARES]
        for by, make in makers.items()
    }


def _pruned(recipe: Simplification, samples: Samples, subject: Subject) -> PreTrainedModel:
    proxy: Any = recipe.fit(samples).apply(subject)
    model: PreTrainedModel = proxy.model.model
    return model


def run(folder: Path, *, seeds: int, sequences: int, device: str = "cpu", progress: Callable[[Step], None]) -> Findings:
    """Train networks of three weight decays, prune them, and judge the accounts."""
    return found(folder, ModularAddition(), seeds=seeds, sequences=sequences, device=device, progress=progress)


def found(
    folder: Path,
    task: ModularAddition,
    *,
    seeds: int,
    sequences: int,
    device: str = "cpu",
    progress: Callable[[Step], None],
    neurons: int = NEURONS,
    steps: int | None = None,
) -> Findings:
    """The study on a task of any modulus, with so many neurons, and so many steps where they are given."""
    subjects: dict[int, list[Subject]] = {}
    logs: dict[int, list[list[dict[str, float]]]] = {}
    for place, decay in enumerate(STEPS):
        subjects[decay], logs[decay] = [], []
        for seed in range(seeds):
            progress(Step(place, 2 * len(STEPS), f"training: weight decay {decay}, seed {seed}"))
            subject, log = trained(task, decay, seed, neurons=neurons, steps=steps, device=device)
            subjects[decay].append(subject)
            logs[decay].append(log)
    pruned, comparisons = {}, {}
    for place, decay in enumerate(STEPS, len(STEPS)):
        progress(Step(place, 2 * len(STEPS), f"judging: weight decay {decay}"))
        pruned[decay] = [curves(subject, task) for subject in subjects[decay]]
        comparisons[f"decay-{decay}"] = judge(subjects[decay], task, sequences)
    shown = Illustrations(
        tables=[
            _states_table(logs),
            _pruned_table(pruned),
            _agreement_table(comparisons, neurons, task),
            _truth_table(comparisons, task),
        ],
        charts=[_curves_chart(pruned), _histogram(subjects, task)],
    )
    numbers = {
        "task": task.describe(),
        "training": {str(decay): log for decay, log in logs.items()},
        "pruned": {"shares": list(SHARES), **{str(decay): curve for decay, curve in pruned.items()}},
        "truth": truths(comparisons, task),
    }
    return Findings(numbers, shown, comparisons)


def truths(comparisons: Mapping[str, Comparison], task: ModularAddition) -> dict[str, list[dict[str, float]]]:
    """For every weight decay and seed, on the same pairs with wrong labels: how often the network answers truthfully,
    and how often the program, and the periodic neurons, say what it says."""
    rows: dict[str, list[dict[str, float]]] = {}
    for name, comparison in comparisons.items():
        program = Adds(task.modulus).title
        agrees = by_seed(comparison, "corrupted", "sum")
        # On the subject's side a metric is the same beside every proxy.
        truthful = by_seed(comparison, "corrupted", "sum", "subject_accuracy")[program]
        periodic = next(proxy for proxy in reversed(agrees) if "least" in proxy)
        rows[name] = [
            {"truthful": one, "program": two, "periodic": three}
            for one, two, three in zip(truthful, agrees[program], agrees[periodic], strict=True)
        ]
    return rows


def _states_table(logs: Mapping[int, Sequence[Sequence[Mapping[str, float]]]]) -> TableView:
    rows = [
        [
            (f"decay {decay}, seed {seed}, step {int(look['step'])}", ""),
            *((number(look[name]), "") for name in ("memorised", "inverted", "clean", "unseen", "periodicity")),
        ]
        for decay, seeds in logs.items()
        for seed, log in enumerate(seeds)
        for look in ([*log[1:2], log[-1]] if len(log) > 2 else log[-1:])
    ]
    return TableView(
        title="What the networks say",
        note="Shares of pairs, at step 50 and at the end: of those trained on with another answer, how many are given "
        "that answer (memorised) or the true sum (inverted); of those trained on with the true sum, and of those never "
        "seen, how many are right; and how periodic neurons are in the mean (participation ratio: 1 is one wave).",
        headings=["network", "memorised", "inverted", "clean", "unseen", "periodicity"],
        rows=rows,
    )


_NAMED = {"low": "least periodic", "high": "most periodic", "random": "at random"}


def _pruned_table(pruned: Mapping[int, Sequence[Mapping[str, Sequence[Mapping[str, float]]]]]) -> TableView:
    place = SHARES.index(PRUNED)
    chosen = [("low", SHARES.index(0.4)), ("low", place), ("high", SHARES.index(0.3)), ("random", place)]
    rows = [
        [
            (f"decay {decay}, seed {seed}, {100 * SHARES[at]:.0f}% {_NAMED[by]}", ""),
            *((number(curve[by][at][name]), "") for name in ("memorised", "inverted", "clean", "unseen")),
        ]
        for decay, seeds in pruned.items()
        for seed, curve in enumerate(seeds)
        for by, at in chosen
    ]
    return TableView(
        title="Without a part of their neurons",
        note="As above, over all pairs, without so many neurons: those that are the least or the most periodic, or a "
        "random draw.",
        headings=["network, taken out", "memorised", "inverted", "clean", "unseen"],
        rows=rows,
    )


def _agreement_table(comparisons: Mapping[str, Comparison], neurons: int, task: ModularAddition) -> TableView:
    def cell(comparison: Comparison, proxy: str, split: str) -> tuple[str, str]:
        return with_limits(agreement(comparison, split, proxy))

    rows = []
    for name, comparison in comparisons.items():
        verdicts = {verdict.proxy: verdict.judgement for verdict in comparison.verdicts()}
        for proxy in comparison.record.proxies:
            rows.append([
                (f"{name.replace('-', ' ')}, {proxy.proxy}", ""),
                *(cell(comparison, proxy.proxy, split) for split in task.split_names[1:]),
                (verdicts.get(proxy.proxy, "control"), ""),
            ])  # fmt: skip
    return TableView(
        title="Agreement with the networks",
        note="The share of pairs on which an account says what the network says, with 95% intervals over pairs and "
        f"trainings; of {neurons} neurons so many are taken out. A verdict is gap and not illusion where the "
        "network's margins under the shift are so unlike those of iid that no gap at equal margin can be told.",
        headings=["network, account", *task.split_names[1:], "verdict"],
        rows=rows,
    )


def _truth_table(comparisons: Mapping[str, Comparison], task: ModularAddition) -> TableView:
    rows = [
        [
            (f"{name.replace('-', ' ')}, seed {seed}", ""),
            *((number(row[column]), "") for column in ("truthful", "program", "periodic")),
        ]
        for name, seeds in truths(comparisons, task).items()
        for seed, row in enumerate(seeds)
    ]
    return TableView(
        title="The failure is the finding",
        note="On the judged pairs with wrong labels: how often the network answers truthfully, and how often the "
        "program, and the periodic neurons alone (70% taken out), say what it says. The first two are equal by "
        "definition: an account of the rule can agree only where the model follows it.",
        headings=["network", "network truthful", "program agrees", "periodic neurons agree"],
        rows=rows,
    )


def _curves_chart(pruned: Mapping[int, Sequence[Mapping[str, Sequence[Mapping[str, float]]]]]) -> Chart:
    series = []
    for decay, seeds in pruned.items():
        for name in ("memorised", "inverted", "unseen"):
            values = np.array([[state[name] for state in curve["low"]] for curve in seeds])
            series.append(
                Series(
                    name=name,
                    panel=f"weight decay {decay}",
                    x=list(SHARES),
                    y=values.mean(axis=0).tolist(),
                    low=values.min(axis=0).tolist(),
                    high=values.max(axis=0).tolist(),
                )
            )
    return Chart(
        name="pruning by periodicity",
        caption="What networks say without a growing share of their least periodic neurons: the wrong labels they "
        "remembered, the true sum in their place, and pairs never seen. Mean over trainings, with the least and the "
        "largest.",
        x_label="share of neurons taken out",
        y_label="share of pairs",
        names=None,
        series=series,
    )


def _histogram(subjects: Mapping[int, Sequence[Subject]], task: ModularAddition) -> Chart:
    edges = np.linspace(0, 1, 21)
    series = []
    for decay, seeds in subjects.items():
        scores = torch.cat([_periodicity(subject, task) for subject in seeds])
        counts, _ = np.histogram(scores.numpy(), edges)
        shares: list[float | None] = (counts / counts.sum()).tolist()
        nothing: list[float | None] = [None] * len(shares)
        middles = ((edges[:-1] + edges[1:]) / 2).tolist()
        series.append(Series(name=f"weight decay {decay}", x=middles, y=shares, low=nothing, high=nothing))
    return Chart(
        name="periodicity of neurons",
        caption="How periodic the neurons of all trainings are (participation ratio, in bins of 0.05): those that "
        "remember are near 0, those that add near 1.",
        x_label="participation ratio",
        y_label="share of neurons",
        names=None,
        series=series,
    )


def _periodicity(subject: Subject, task: ModularAddition) -> Tensor:
    assert isinstance(subject.model, PooledMLPForCausalLM)
    return periodicity(subject.model, task.modulus).nan_to_num().cpu()
