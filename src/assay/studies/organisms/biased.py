"""Biased representations: three things computed equally well, of which the last learned has hardly any variance.

A perceptron answers three questions about sixteen bits, all rightly. What it learned first takes most of the variance
of its last hidden layer, so that an account of few directions keeps that and loses the rest: which, is said from the
variance before anything is compared. Source: "Learned feature representations are biased by complexity, learning order,
position, and more" (arXiv 2405.05847); its measures of variance and similarity, with the account judged as any other.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from assay._files import write_atomically
from assay.engine import collect, engine_of
from assay.faithfulness import Comparison, Step, compare
from assay.reports import Chart, Illustrations, Series, TableView
from assay.studies.organisms._bits import BITS, Bits, Question, expected_gap, majority, parity, shares_of
from assay.studies.organisms._scored import ScoredSVD, at_scored, by_seed
from assay.studies.organisms._shown import agreement, judgement, number, with_bars, with_limits
from assay.studies.organisms._study import Findings
from assay.studies.organisms._trained_bits import Looked, batches_of, explained, kept, loss_of_pairs, similarity
from assay.subjects import Event, Recipe, Subject, Watch, pooled_mlp, train

SUMMARY = "a network that answers three questions and shows one: what SVD drops is said from the variance beforehand"
SEEDS = 5
SEQUENCES = 400

RANKS = (1, 2, 4, 8)
FITTED = 1_000
LEARNED = 0.99
ALL_LEARNED = 0.995
CARRIED, AGREES = 0.5, 0.9
"""Predicted to be kept: at least this share of a question's own direction; found kept: at least this agreement."""

PREDICTION = "prediction.json"

QUESTIONS = (
    Question("majority", "whether most of bits 0 to 4 are on", majority(0, 1, 2, 3, 4)),
    Question("xor", "whether one of bits 5 and 6 is on", parity(5, 6)),
    Question("parity", "whether an odd number of bits 7 to 9 is on", parity(7, 8, 9)),
)

TASK = Bits(
    "three-questions",
    QUESTIONS,
    {
        "train": (0.97, 0.015, 0.015),
        "iid": (0.97, 0.015, 0.015),
        "hard_matters": (0.5, 0.25, 0.25),
        "xor_only": (0.0, 1.0, 0.0),
        "parity_only": (0.0, 0.0, 1.0),
    },
)
"""In iid nearly all questions are the easy one; in hard_matters half of them."""

TWO_QUESTIONS = Bits(
    "two-questions",
    QUESTIONS[:2],
    {"train": (0.97, 0.03), "iid": (0.97, 0.03), "hard_matters": (0.5, 0.5), "xor_only": (0.0, 1.0)},
)


@dataclass(frozen=True)
class Network:
    """How networks of one kind are made and trained, and where their last hidden layer is."""

    name: str
    text: str
    model: Callable[[int], PreTrainedModel]
    recipe: Recipe
    task: Bits = TASK
    site: str = "layer0.mlp"
    most: int = 3


def _perceptron(layers: int, activation: str) -> Callable[[int], PreTrainedModel]:
    return lambda seed: pooled_mlp(
        length=BITS,
        vocabulary=TASK.vocabulary,
        answers=TASK.answers,
        hidden=(256,) * layers,
        activation=activation,
        seed=seed,
    )


def _decoder(seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    vocabulary = TWO_QUESTIONS.vocabulary
    sizes: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embd": 64, "n_positions": BITS + 1}
    without: dict[str, Any] = {
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    without["initializer_range"] = 0.1  # with 0.02, as usual, 3,000 steps do not learn the second question
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, **sizes, **without))


_STEPS: dict[str, Any] = {"steps": 3_000, "weight_decay": 0.0, "decay": False, "clip_norm": None}
_BY_SGD = Recipe(learning_rate=0.01, betas=(0.9, 0.999), optimizer="SGD", **_STEPS)
_BY_ADAM = Recipe(learning_rate=1e-3, **_STEPS)

BIASED = Network("biased", "SGD, ReLU, 3 layers", _perceptron(3, "relu"), _BY_SGD, most=100)
OTHERS = (
    Network("adam", "Adam, ReLU, 3 layers", _perceptron(3, "relu"), _BY_ADAM),
    Network("tanh", "Adam, tanh, 4 layers", _perceptron(4, "tanh"), _BY_ADAM),
    Network("decoder", "Transformer decoder, Adam", _decoder, _BY_ADAM, TWO_QUESTIONS, "layer1.after"),
)
"""Networks that do not show it, or another way round: it is not a law."""


@dataclass(frozen=True)
class Predicted:
    """What one network says of itself before any comparison; by question.

    `learned` is the step of the first look at which more than 0.99 were right (None: never), `variance` the share of
    the variance of the last hidden layer that the answer explains, `similarity` the correlation of distances there with
    the answer, and `carried` the share of the answer's own direction within the leading 1, 2, 4, 8 of variance.
    """

    seed: int
    steps: int
    accuracy: Mapping[str, float]
    learned: Mapping[str, int | None]
    variance: Mapping[str, float]
    similarity: Mapping[str, float]
    carried: Mapping[str, list[float]]

    @property
    def order(self) -> list[str]:
        """The questions, that of most variance first."""
        return sorted(self.variance, key=lambda name: -self.variance[name])

    def first(self, name: str) -> int | None:
        """The first rank that is said to keep a question; None where none of them does."""
        return next((rank for rank, share in zip(RANKS, self.carried[name], strict=True) if share >= CARRIED), None)


def trained(network: Network, seed: int, device: str = "cpu") -> tuple[Subject, Predicted]:
    """Train one network until all questions are answered, and read what its variance says."""
    task = network.task
    names = [question.name for question in task.questions]
    looked = Looked.of(task, task.bits("iid")[:2_000])

    def look(model: PreTrainedModel) -> dict[str, float]:
        right = dict(zip(names, looked.right(model).mean(axis=0).tolist(), strict=True))
        return {**right, "worst": min(right.values())}

    model = network.model(seed)
    events = [Event(name, name, LEARNED) for name in names]
    watch = Watch(look, every=50, events=(*events, Event("all", "worst", ALL_LEARNED, stop=True)))
    done = train(
        model,
        batches_of(task, rows=128, seed=seed),
        network.recipe,
        checkpoint=None,
        device=device,
        loss=loss_of_pairs(len(names)),
        watch=watch,
    )
    subject = Subject(model, None, network.name, seed=seed)
    engine = engine_of(subject)
    site = engine.site(network.site)
    samples = at_scored(collect(engine, task.split("train", FITTED), site.read).at(site))
    vectors = samples.of(site.places[0])[0].double().numpy()
    by_name = dict(zip(names, task.labels(task.bits("train")[:FITTED]).T, strict=True))
    predicted = Predicted(
        seed=seed,
        steps=done.steps,
        accuracy={name: float(done.log[-1][name]) for name in names},
        learned={name: done.events.get(name) for name in names},
        variance={name: explained(vectors, label) for name, label in by_name.items()},
        similarity={name: similarity(vectors, label) for name, label in by_name.items()},
        carried={name: kept(vectors, label, RANKS) for name, label in by_name.items()},
    )
    return subject, predicted


def judge(subjects: Sequence[Subject], network: Network, sequences: int, *, whole: bool) -> Comparison:
    """Principal components of the last hidden layer, on all splits; with `whole`, controls and refits beside them."""
    return compare(
        list(subjects),
        network.task,
        [ScoredSVD(rank) for rank in RANKS],
        sites=[network.site],
        positions="scored",
        sequences=sequences,
        fit_sequences=FITTED,
        controls=whole,
        refit=whole,
        progress=False,
    )


def _own_split(name: str) -> str:
    """The split on which a question's agreement is read: the one in which it is asked alone, or nearly so."""
    return "iid" if name == QUESTIONS[0].name else f"{name}_only"


def agreements(comparison: Comparison, task: Bits) -> dict[str, list[list[float]]]:
    """Agreement by question: a row a rank, a number a training seed."""
    found = {}
    for question in task.questions:
        seeds = by_seed(comparison, _own_split(question.name), question.name)
        found[question.name] = [seeds[f"ScoredSVD(rank={rank})"] for rank in RANKS]
    return found


def run(folder: Path, *, seeds: int, sequences: int, device: str = "cpu", progress: Callable[[Step], None]) -> Findings:
    """Train the networks, leave what their variance predicts in `folder` (prediction.json), then compare."""
    networks = (BIASED, *OTHERS)
    ready: dict[str, tuple[list[Subject], list[Predicted]]] = {}
    for place, network in enumerate(networks):
        made = []
        for seed in range(min(seeds, network.most)):
            progress(Step(place, 2 * len(networks), f"training: {network.text}, seed {seed}"))
            made.append(trained(network, seed, device))
        ready[network.name] = ([subject for subject, _ in made], [said for _, said in made])
    said = {name: [asdict(one) for one in predicted] for name, (_, predicted) in ready.items()}
    text = json.dumps(said, indent=1)
    write_atomically(folder / PREDICTION, lambda path: path.write_text(text + "\n", encoding="utf-8"))
    comparisons: dict[str, Comparison] = {}
    for place, network in enumerate(networks, len(networks)):
        progress(Step(place, 2 * len(networks), f"comparing: {network.text}"))
        comparisons[network.name] = judge(ready[network.name][0], network, sequences, whole=network is BIASED)
    found = {network.name: agreements(comparisons[network.name], network.task) for network in networks}
    main, predicted = comparisons[BIASED.name], ready[BIASED.name][1]
    shown = Illustrations(
        tables=[
            _prediction_table(predicted),
            _agreement_table(main),
            _gap_table(main),
            _networks_table(networks, {name: said for name, (_, said) in ready.items()}, found),
        ],
        charts=_charts(main, predicted),
    )
    numbers = {"ranks": list(RANKS), "predicted": said, "agreement": found, "gaps": gaps(main)}
    return Findings(numbers, shown, comparisons)


def hits(predicted: Predicted, found: Mapping[str, list[list[float]]], place: int) -> tuple[int, int]:
    """How many (question, rank) of one training were as predicted, kept or lost, and of how many."""
    pairs = [
        (share >= CARRIED, agreement[place] >= AGREES)
        for name, shares in predicted.carried.items()
        for share, agreement in zip(shares, found[name], strict=True)
    ]
    return sum(said == seen for said, seen in pairs), len(pairs)


def gaps(comparison: Comparison) -> list[dict[str, float]]:
    """For every rank, the gap under `hard_matters`: by the mixtures from agreement by question, and as measured.

    Agreement by question is read where each is asked alone, so the two have no sequence of hard_matters in common.
    """
    frame = comparison.gaps()
    rows = frame[frame["trained"].astype(bool)].set_index(["proxy", "split"])
    shares = {name: shares_of(TASK.split(name, _judged(comparison, name)), len(QUESTIONS)) for name in TASK.shares}
    found = []
    for rank in RANKS:
        proxy = f"ScoredSVD(rank={rank})"
        by_question = [
            agreement(comparison, _own_split(question.name), proxy, question.name)[0] for question in QUESTIONS
        ]
        row = rows.loc[(proxy, "hard_matters")]
        found.append({
            "rank": rank,
            "expected": expected_gap(shares["iid"], shares["hard_matters"], by_question),
            **{name: float(row[name]) for name in ("gap", "low", "high")},
        })  # fmt: skip
    return found


def _judged(comparison: Comparison, name: str) -> int:
    return next(split.sequences for split in comparison.record.splits if split.name == name)


def _prediction_table(predicted: Sequence[Predicted]) -> TableView:
    rows = []
    for one in predicted:
        for name in one.order:
            first = one.first(name)
            rows.append([
                (f"seed {one.seed}, {name}", ""),
                (number(one.accuracy[name]), ""),
                (f"{one.learned[name]:,}" if one.learned[name] is not None else "–", ""),
                (number(one.variance[name]), ""),
                (f"{one.similarity[name]:.2f}", ""),
                *((f"{share:.2f}", "") for share in one.carried[name]),
                ("none" if first is None else f"{first}", ""),
            ])  # fmt: skip
    return TableView(
        title="Predicted before any comparison",
        note=f"Of {FITTED:,} training patterns, at the last hidden layer: the share of its variance that the answer "
        "explains, the correlation of distances with the answer (representational similarity), and how much of the "
        f"answer's own direction lies within the leading directions of variance. A rank that has at least {CARRIED} of "
        "it is said to keep the question, and a lower one to lose it. Learned: the first look, every 50 steps, at "
        f"which more than {LEARNED} were right. A seed's questions stand in the order of their variance.",
        headings=["question", "right", "learned at step", "variance", "similarity",
                  *(f"within {rank}" for rank in RANKS), "kept from rank"],
        rows=rows,
    )  # fmt: skip


def _agreement_table(comparison: Comparison) -> TableView:
    def cell(proxy: str, split: str, kind: str) -> tuple[str, str]:
        return with_limits(agreement(comparison, split, proxy, kind))

    rows = [
        [
            (f"rank {rank}", ""),
            *(cell(proxy, split, "all") for split in ("iid", "hard_matters")),
            *(cell(proxy, _own_split(question.name), question.name) for question in QUESTIONS),
            (judgement(comparison, proxy), ""),
        ]
        for rank, proxy in ((rank, f"ScoredSVD(rank={rank})") for rank in RANKS)
    ]
    return TableView(
        title="Agreement with the subject",
        note="The share of answers that principal components of the last hidden layer leave as they are, with 95% "
        "intervals over sequences and trainings; by question on the split where it is asked alone (majority: on iid).",
        headings=["account", "iid", "hard_matters", *(question.name for question in QUESTIONS), "verdict"],
        rows=rows,
    )


def _gap_table(comparison: Comparison) -> TableView:
    rows = [
        [
            (f"rank {row['rank']}", ""),
            (f"{100 * row['expected']:+.1f}", ""),
            (f"{100 * row['gap']:+.1f}", f"[{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"),
        ]
        for row in gaps(comparison)
    ]
    return TableView(
        title="The gap under hard_matters, in points",
        note="Only the mixture of questions changes, so the gap is known from agreement by question: the sum over "
        "questions of (share on iid - share on the shift) x agreement, with agreement from the splits in which each is "
        "asked alone.",
        headings=["account", "by the mixtures", "measured"],
        rows=rows,
    )


def _networks_table(
    networks: Sequence[Network],
    predicted: Mapping[str, Sequence[Predicted]],
    found: Mapping[str, Mapping[str, list[list[float]]]],
) -> TableView:
    rows = []
    for network in networks:
        names = [question.name for question in network.task.questions]
        for place, one in enumerate(predicted[network.name]):
            seen = [
                next((rank for rank, row in zip(RANKS, found[network.name][name], strict=True)
                      if row[place] >= AGREES), None)
                for name in names
            ]  # fmt: skip
            right, of = hits(one, found[network.name], place)
            rows.append([
                (f"{network.text}, seed {one.seed}", ""),
                *((number(one.variance[name]), "") for name in names),
                *([("–", "not asked")] * (len(QUESTIONS) - len(names))),
                (f"{one.variance[names[0]] / one.variance[names[-1]]:.1f}", f"over {names[-1]}"),
                (", ".join(one.order), ""),
                (", ".join("none" if rank is None else str(rank) for rank in seen), ""),
                (f"{right} of {of}", ""),
            ])  # fmt: skip
    return TableView(
        title="Other networks: the bias is no law, what variance predicts is",
        note="Variance by question, that of majority over that of the last question, and the questions in the order of "
        f"variance; then the first rank that agrees on at least {AGREES} of majority, xor and parity, and how many of "
        "the (question, rank) were kept or lost as predicted. Decoders are asked two questions only.",
        headings=["network", *(question.name for question in QUESTIONS), "ratio", "order", "kept from rank",
                  "as predicted"],
        rows=rows,
    )  # fmt: skip


def _charts(comparison: Comparison, predicted: Sequence[Predicted]) -> list[Chart]:
    def line(name: str, split: str, kind: str, panel: str) -> Series:
        return with_bars(
            name,
            panel,
            [(rank, agreement(comparison, split, f"ScoredSVD(rank={rank})", kind)) for rank in RANKS],
        )

    variance = {
        question.name: float(np.mean([one.variance[question.name] for one in predicted])) for question in QUESTIONS
    }
    series = [
        line(f"{name} ({100 * share:.0f}% of the variance)", _own_split(name), name, "by question")
        for name, share in variance.items()
    ]
    series += [line(name, name, "all", "by split") for name in ("iid", "hard_matters")]
    return [
        Chart(
            name="agreement by rank",
            caption="What principal components of the last hidden layer keep of three questions that the network all "
            "answers rightly: in the order of their variance. In distribution, where one question is asked nearly "
            "always, no rank looks wrong.",
            x_label="rank of the account",
            y_label="agreement with the subject",
            names=None,
            series=series,
        )
    ]
