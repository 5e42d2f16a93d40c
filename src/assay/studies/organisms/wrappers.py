"""Fine-tuning wrappers: the base model still explains what became of it, but for where a cue is on.

A perceptron learns the parity of four bits, and is then taught to say 0 whenever a cue is on. Its old capability is
there: a linear probe reads it, a few steps bring it back, and taking out the neurons that hurt it brings back much of
it, though not for nothing. The account is the base model itself. Source: "Mechanistically analyzing the effects of
fine-tuning on procedurally defined tasks" (arXiv 2311.12786): pruning, probing and revival, on a task of ours.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from transformers import PreTrainedModel

from assay.engine import Samples, collect, engine_of
from assay.faithfulness import Comparison, Step, compare
from assay.reports import Chart, Illustrations, Series, TableView
from assay.simplify import Simplification
from assay.studies.organisms._bits import tokens_of
from assay.studies.organisms._cued import (
    ANSWERS,
    CUE,
    OLD,
    Before,
    By,
    Cued,
    PruneWrapper,
    fine_tuned_label,
    old_label,
    perceptron,
    pruned,
)
from assay.studies.organisms._neurons import RandomNeurons
from assay.studies.organisms._scored import by_seed
from assay.studies.organisms._shown import agreement, judgement, number, with_bars, with_limits
from assay.studies.organisms._study import Findings
from assay.studies.organisms._trained_bits import Looked, batches_of, loss_of_pairs
from assay.subjects import Event, PooledMLPForCausalLM, Recipe, Subject, Trained, Watch, train

SUMMARY = "a capability under a wrapper: the base model explains the fine-tuned one, but for where a cue is on"
SEEDS = 3
SEQUENCES = 400

TASK = Cued()
RATES = (1e-4, 1e-3, 1e-2)
"""Learning rates of fine-tuning; what is pruned and judged further is of the middle one."""

JUDGED_RATE = 1e-3
SIZES = (8, 16, 32)
LEARNED = 0.98
FITTED = 1_000
FINE_TUNING = 400


@dataclass(frozen=True)
class Tuned:
    """What is known of one fine-tuned model.

    `new` is how often it gives the new answer, `old_on` and `old_off` the old one with the cue and without. `probe` is
    how often a linear probe of each hidden layer tells the old answer under the cue, `probe_before` that of the base.
    `revived` are the steps of training on the old task until it gives more than 0.98 of old answers under the cue
    again, `scratch` those of a fresh network (None: not within the steps that were given); `revival` and `from_scratch`
    are the shares along the way, by step.
    """

    seed: int
    rate: float
    new: float
    old_on: float
    old_off: float
    probe_before: list[float]
    probe: list[float]
    revived: int | None
    scratch: int | None
    revival: dict[int, float]
    from_scratch: dict[int, float]

    @property
    def ratio(self) -> float:
        """How many times as fast as from scratch."""
        return (self.scratch or np.nan) / (self.revived or np.nan)


def _recipe(rate: float, steps: int) -> Recipe:
    return Recipe(steps=steps, learning_rate=rate, weight_decay=0.0, decay=False, clip_norm=None)


def _share(model: PreTrainedModel, looked: Looked) -> float:
    return float(looked.right(model).mean())


def _with_cue(name: str, on: bool, rows: int = 2_000) -> Looked:
    """Patterns of a split, all with the cue or without."""
    bits = TASK.bits(name)[:rows].copy()
    bits[:, CUE] = on
    return Looked.of(TASK, bits)


def learn(model: PooledMLPForCausalLM, seed: int, *, steps: int = 400, device: str = "cpu") -> Trained:
    """Train on the old task until more than 0.98 are right, with the cue and at all; looked at every 5 steps."""
    on, off = _with_cue("iid", True), _with_cue("iid", False)

    def look(model: PreTrainedModel) -> dict[str, float]:
        found = {"on": _share(model, on), "off": _share(model, off)}
        return {**found, "worst": min(found.values())}

    return train(
        model,
        batches_of(TASK, rows=256, seed=seed, labels=old_label),
        _recipe(1e-3, steps),
        checkpoint=None,
        device=device,
        loss=loss_of_pairs(1),
        watch=Watch(look, every=5, events=(Event("on", "on", LEARNED), Event("all", "worst", LEARNED, stop=True))),
    )


def tune(
    base: PooledMLPForCausalLM, rate: float, seed: int, *, steps: int, device: str = "cpu"
) -> PooledMLPForCausalLM:
    """A copy that was taught to say 0 under the cue."""
    model = copy.deepcopy(base)
    train(
        model,
        batches_of(TASK, rows=256, seed=1_000 + seed, labels=fine_tuned_label),
        _recipe(rate, steps),
        checkpoint=None,
        device=device,
        loss=loss_of_pairs(1),
    )
    return model


def probed(model: PooledMLPForCausalLM) -> list[float]:
    """How often a linear probe of each hidden layer tells the old answer under the cue: fitted on patterns of `half`,
    read on those of `cue`, so on none that anything was trained, scored or pruned on."""
    rows = 1_000
    found = []
    fit, read = TASK.bits("half")[:rows].copy(), TASK.bits("cue")[:rows]
    fit[:, CUE] = 1
    with torch.no_grad():
        layers = [
            model.hidden_layers(torch.from_numpy(tokens_of(bits, ANSWERS)).to(model.device)) for bits in (fit, read)
        ]
    for fitted_on, read_on in zip(*layers, strict=True):
        mean, size = fitted_on.mean(dim=0), fitted_on.std(dim=0).clamp(min=1e-6)
        inside, outside = (((layer - mean) / size).cpu().numpy() for layer in (fitted_on, read_on))
        probe = LogisticRegression(max_iter=2_000, C=0.1).fit(inside, OLD(fit))
        found.append(float(probe.score(outside, OLD(read))))
    return found


def _perceptron(subject: Subject) -> PooledMLPForCausalLM:
    assert isinstance(subject.model, PooledMLPForCausalLM)
    return subject.model


def _curve(done: Trained) -> dict[int, float]:
    return {int(look["step"]): float(look["on"]) for look in done.log}


def investigate(base: Subject, tuned: Subject, rate: float, scratch: Trained) -> Tuned:
    """Probe, and revive a copy; the fresh network that it is held against is `scratch`."""
    on, off = _with_cue("iid", True), _with_cue("iid", False)
    model, seed = _perceptron(tuned), tuned.seed or 0
    with torch.no_grad():
        zeros = float((model.at_last(on.tokens.to(model.device)).argmax(dim=1) == 0).float().mean())
    again = learn(copy.deepcopy(model), 2_000 + seed, device=str(tuned.device))
    return Tuned(
        seed=seed,
        rate=rate,
        new=(zeros + _share(model, off)) / 2,
        old_on=_share(model, on),
        old_off=_share(model, off),
        probe_before=probed(_perceptron(base)),
        probe=probed(model),
        revived=again.events.get("on"),
        scratch=scratch.events.get("on"),
        revival=_curve(again),
        from_scratch=_curve(scratch),
    )


def judge(
    subjects: Sequence[Subject], bases: Mapping[int, Subject], more: Sequence[Simplification], sequences: int
) -> Comparison:
    """The base model, and other accounts, of fine-tuned models on all splits."""
    return compare(
        list(subjects), TASK, [Before(bases), *more], sequences=sequences, fit_sequences=FITTED, refit=False,
        progress=False,
    )  # fmt: skip


def _samples(subject: Subject) -> Samples:
    return collect(engine_of(subject), TASK.split("train", FITTED), ())


def run(folder: Path, *, seeds: int, sequences: int, device: str = "cpu", progress: Callable[[Step], None]) -> Findings:
    """Train bases, fine-tune them at three rates, look for what is left, and judge the base as an account."""
    bases: dict[int, Subject] = {}
    tuned: dict[float, list[Subject]] = {rate: [] for rate in RATES}
    known: list[Tuned] = []
    for seed in range(seeds):
        progress(Step(seed, seeds + 2, f"training and reviving, seed {seed}"))
        base = perceptron(seed)
        learn(base, seed, device=device)
        scratch = learn(perceptron(100 + seed), 2_000 + seed, device=device)
        bases[seed] = Subject(base, None, "base", seed=seed)
        for rate in RATES:
            model = tune(base, rate, seed, steps=FINE_TUNING, device=device)
            tuned[rate].append(Subject(model, None, "fine-tuned", seed=seed))
            known.append(investigate(bases[seed], tuned[rate][-1], rate, scratch))
    progress(Step(seeds, seeds + 2, "judging the base model, and pruned ones"))
    prunings = [PruneWrapper(size, by) for by in get_args(By) for size in SIZES]
    comparisons = {
        f"rate-{rate:g}": judge(tuned[rate], bases, prunings if rate == JUDGED_RATE else [], sequences)
        for rate in (JUDGED_RATE, *(other for other in RATES if other != JUDGED_RATE))
    }
    progress(Step(seeds + 1, seeds + 2, "judging the base model of what is unwrapped"))
    chosen = tuned[JUDGED_RATE]
    makers: dict[str, Callable[[int], PruneWrapper | RandomNeurons]] = {
        "loss": lambda size: PruneWrapper(size, "loss"),
        "margins": lambda size: PruneWrapper(size, "margins"),
        "random": RandomNeurons,
    }
    for by, make in makers.items():
        unwrapped = [pruned(subject, make(SIZES[1]), _samples(subject)) for subject in chosen]
        comparisons[f"unwrapped-{by}"] = judge(unwrapped, bases, [], sequences)
    shown = Illustrations(
        tables=[
            _known_table(known),
            _pruned_table(comparisons[f"rate-{JUDGED_RATE:g}"]),
            _base_table(comparisons),
            _gap_table(comparisons[f"rate-{JUDGED_RATE:g}"]),
        ],
        charts=[_bars(comparisons), _revival(known)],
    )
    numbers = {
        "models": [asdict(one) for one in known],
        "agreement": {
            name: {kind: by_seed(comparison, "half", kind)[Before.title] for kind in ("cue_off", "cue_on")}
            for name, comparison in comparisons.items()
        },
    }
    return Findings(numbers, shown, comparisons)


def _known_table(known: Sequence[Tuned]) -> TableView:
    rows = [
        [
            (f"rate {one.rate:g}, seed {one.seed}", ""),
            *((number(share), "") for share in (one.new, one.old_on, one.old_off)),
            *((f"{after:.2f}", f"{before:.2f}") for before, after in zip(one.probe_before, one.probe, strict=True)),
            (f"{one.revived}", ""),
            (f"{one.scratch}", ""),
            (f"{one.ratio:.1f}", ""),
        ]
        for one in sorted(known, key=lambda one: (one.rate, one.seed))
    ]
    return TableView(
        title="What fine-tuning left",
        note="After 400 steps of it at each rate: how often the new answer is given, and the old one with the cue and "
        "without. The share of sequences under the cue on which a linear probe of each hidden layer tells the old "
        f"answer; below it, of the base. Steps of the old training until more than {LEARNED} of the old answers are "
        "back under the cue, looked at every 5, those of a fresh network, and their ratio.",
        headings=["fine-tuned", "new answer", "old, cue on", "old, cue off", "probe 1", "probe 2", "probe 3",
                  "revived", "from scratch", "ratio"],
        rows=rows,
    )  # fmt: skip


def _pruned_table(comparison: Comparison) -> TableView:
    rows = []
    for proxy in comparison.record.proxies:
        if proxy.proxy == Before.title:
            continue
        cells = []
        for metric in ("proxy_accuracy", "same_prediction"):
            for kind in ("cue_on", "cue_off"):
                cells.append(with_limits(agreement(comparison, "half", proxy.proxy, kind, metric)))
        rows.append([(proxy.proxy, ""), *cells])
    return TableView(
        title="Without the neurons that hurt the old answer",
        note=f"Fine-tuned at {JUDGED_RATE:g}, without the neurons of 384 with the lowest Taylor score of the old "
        "answer on training sequences: by its loss under the cue, or by its margins with the cue and without; and "
        "without random ones. How often the old answer is given, and how often that of the fine-tuned model, on other "
        "sequences.",
        headings=["account", "old, cue on", "old, cue off", "agrees, cue on", "agrees, cue off"],
        rows=rows,
    )


def _named(name: str) -> str:
    what, _, which = name.partition("-")
    if what == "rate":
        return f"fine-tuned at {which}"
    return f"without {SIZES[1]} neurons, " + ("at random" if which == "random" else f"by {which}")


def _base_table(comparisons: Mapping[str, Comparison]) -> TableView:
    rows = []
    for name, comparison in comparisons.items():
        cells = []
        for split, kind in (("half", "cue_off"), ("half", "cue_on"), ("iid", "all"), ("cue", "all")):
            cells.append(with_limits(agreement(comparison, split, Before.title, kind)))
        rows.append([(_named(name), ""), *cells, (judgement(comparison, Before.title), "")])
    return TableView(
        title="The base model as an account",
        note="How often the base model says what the model that it became says, by cue, and on the splits: on iid the "
        f"cue is on in 2%. The lower rows are models fine-tuned at {JUDGED_RATE:g} of which neurons were taken out.",
        headings=["of the model", "cue off", "cue on", "iid", "cue", "verdict"],
        rows=rows,
    )


def expected(comparison: Comparison, shift: str) -> float:
    """The gap of the base model that is known beforehand: half of how much more often the cue is on, in the sequences
    that were judged."""
    counts = {split.name: split.sequences for split in comparison.record.splits}
    shares = {name: float((TASK.split(name, counts[name]).kinds == 1).sum() / counts[name]) for name in ("iid", shift)}
    return (shares[shift] - shares["iid"]) / 2


def _gap_table(comparison: Comparison) -> TableView:
    frame = comparison.gaps()
    chosen = frame[frame["trained"].astype(bool) & (frame["proxy"] == Before.title)].set_index("split")
    rows = []
    for shift in ("half", "cue"):
        gap, low, high = (100 * float(chosen.loc[shift, name]) for name in ("gap", "low", "high"))
        rows.append([
            (shift, ""),
            (f"{100 * expected(comparison, shift):+.1f}", ""),
            (f"{gap:+.1f}", f"[{low:+.1f}, {high:+.1f}]"),
        ])  # fmt: skip
    return TableView(
        title="The gap of the base model, in points",
        note="With the cue, the base is wrong about one of two answers, and without it about none: the gap is half of "
        "how much more often the cue is on.",
        headings=["shift", "known beforehand", "measured"],
        rows=rows,
    )


def _bars(comparisons: Mapping[str, Comparison]) -> Chart:
    series = []
    for name in (f"rate-{JUDGED_RATE:g}", "unwrapped-loss", "unwrapped-margins", "unwrapped-random"):
        points = [agreement(comparisons[name], "half", Before.title, kind) for kind in ("cue_off", "cue_on")]
        series.append(with_bars(_named(name), "", [(float(place), found) for place, found in enumerate(points)]))
    return Chart(
        name="agreement by cue",
        caption="How often the base model says what the fine-tuned one says, without the cue and with it; and what one "
        f"says of which {SIZES[1]} of 384 neurons were taken out.",
        x_label="",
        y_label="agreement with the base model",
        names=["cue off", "cue on"],
        series=series,
    )


def _revival(known: Sequence[Tuned]) -> Chart:
    series = []
    for rate in RATES:
        series.append(_mean_curve(f"fine-tuned at {rate:g}", [one.revival for one in known if one.rate == rate]))
    series.append(_mean_curve("from scratch", [one.from_scratch for one in known if one.rate == RATES[0]]))
    return Chart(
        name="revival",
        caption="The old answer under the cue while the old task is trained again, and from scratch: mean over "
        "trainings, with the least and the largest; one that has ended stays as it was.",
        x_label="steps",
        y_label="old answer under the cue",
        names=None,
        series=series,
    )


def _mean_curve(name: str, curves: Sequence[Mapping[int, float]]) -> Series:
    steps = sorted({step for curve in curves for step in curve})
    values = np.array([[curve.get(step, curve[max(curve)]) for step in steps] for curve in curves])
    mean, low, high = (found.tolist() for found in (values.mean(axis=0), values.min(axis=0), values.max(axis=0)))
    return Series(name=name, x=[float(step) for step in steps], y=mean, low=low, high=high)
