"""Concept bottlenecks: a model that answers by concepts claims that its unit k is concept k; is it, where they part?

Six concepts, each in a region of its own; in training the second of each pair copies the first with a probability
(co-occurrence). The best answer that there can be is known, so that what a network gets wrong elsewhere can be told
from what nobody could have known.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from assay.diagnostics import concept_check
from assay.faithfulness import Step
from assay.reports import Chart, Illustrations, Series, TableView
from assay.studies.organisms._study import Findings

__all__ = ["SEEDS", "SEQUENCES", "SUMMARY", "Inputs", "best", "draw", "run"]

SUMMARY = "models that answer by concepts: whether unit k is concept k where concepts no longer come together"

SEEDS = 3

SEQUENCES = 2_000
"""Inputs on which a model is judged."""

CONCEPTS, PIXELS = 6, 8
"""Concepts, and the size of the region of each."""

APART = 3.0
"""How far the means of a region with and without its concept are apart, in standard deviations of a pixel."""

WEIGHTS = np.array([3.0, 1.0, 2.5, 1.5, 2.0, 1.25])
"""What each concept counts for the label; no two sets of concepts have the same sum."""

TOGETHER = (0.0, 0.5, 0.9, 1.0)
"""Probabilities in training that the second of a pair copies the first."""

Way = Literal["sequential", "joint", "slots", "slots, placed"]
WAYS: tuple[Way, ...] = ("sequential", "joint", "slots", "slots, placed")

PLACED = 5.0
"""What attention outside a concept's region costs: with 1, 1% of the attention stays outside, and the unit uses it."""

CORRECTED = (0, 2, 4, 6)
"""How many concepts are set to the truth."""

REGIONS = np.kron(np.eye(CONCEPTS, dtype=bool), np.ones((1, PIXELS), dtype=bool))


class Inputs(NamedTuple):
    """Inputs (input, pixel), which concepts are there (input, concept), and the labels."""

    pixels: np.ndarray
    present: np.ndarray
    labels: np.ndarray


def _templates() -> np.ndarray:
    """What a concept looks like in its region, of length 1 each."""
    drawn = np.random.default_rng(7).normal(size=(CONCEPTS, PIXELS))
    found: np.ndarray = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return found


def draw(count: int, together: float, rng: np.random.Generator) -> Inputs:
    """Random inputs in which the second concept of each pair copies the first with a probability."""
    present = rng.random((count, CONCEPTS)) < 0.5
    copied = rng.random((count, CONCEPTS // 2)) < together
    present[:, 1::2] = np.where(copied, present[:, ::2], present[:, 1::2])
    means = APART * (present - 0.5)[:, :, None] * _templates()
    pixels = (means + rng.normal(size=(count, CONCEPTS, PIXELS))).reshape(count, -1)
    return Inputs(pixels.astype(np.float32), present, ((present - 0.5) @ WEIGHTS > 0))


def best(pixels: np.ndarray, together: float) -> np.ndarray:
    """The log odds of every concept given all pixels: the best there is, where concepts come as in training.

    They are those of its own region, and what the other of the pair tells.
    """
    own = APART * (pixels.reshape(len(pixels), CONCEPTS, PIXELS) * _templates()).sum(axis=2)
    other = own.reshape(len(pixels), -1, 2)[:, :, ::-1].reshape(own.shape)
    same, opposite = (1 + together) / 2, (1 - together) / 2
    with np.errstate(divide="ignore"):
        told = np.logaddexp(np.log(same) + other, np.log(opposite)) - np.logaddexp(
            np.log(opposite) + other, np.log(same)
        )
    found: np.ndarray = own + told
    return found


class Slots(nn.Module):
    """Six learned slots compete for the regions, twice; a concept's logit is read from its slot (arXiv 2305.15775).

    The smallest form: regions embedded by one linear map, slots that are updated by a gated unit.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Linear(PIXELS, width)
        self.place = nn.Parameter(torch.randn(CONCEPTS, width) / width**0.5)
        self.slots = nn.Parameter(torch.randn(CONCEPTS, width) / width**0.5)
        self.update = nn.GRUCell(width, width)
        self.read = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
        self.attention: Tensor | None = None

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits of concepts; keeps the attention (input, slot, region) of the last round."""
        regions = self.embed(pixels.view(len(pixels), CONCEPTS, PIXELS)) + self.place
        slots = self.slots.expand(len(pixels), -1, -1)
        for _ in range(2):
            scores = slots @ regions.transpose(1, 2) / regions.shape[-1] ** 0.5
            self.attention = scores.softmax(dim=1)
            shares = self.attention / self.attention.sum(dim=2, keepdim=True)
            taken = shares @ regions
            slots = self.update(taken.flatten(0, 1), slots.flatten(0, 1)).view(slots.shape)
        found: Tensor = self.read(slots)[:, :, 0]
        return found


@dataclass(frozen=True)
class Bottleneck:
    """A trained one: its concepts as a function of pixels, and how a label is read from their probabilities."""

    concepts: nn.Module
    head: nn.Linear

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """Logits of concepts."""
        with torch.no_grad():
            found: np.ndarray = self.concepts(torch.from_numpy(np.asarray(pixels, dtype=np.float32))).double().numpy()
        return found

    def labels(self, logits: np.ndarray, present: np.ndarray, corrected: int) -> np.ndarray:
        """Labels, with the first so many concepts of a fixed random order set to the truth."""
        given = 1 / (1 + np.exp(-logits))
        order = np.random.default_rng(0).permutation(CONCEPTS)[:corrected]
        given[:, order] = present[:, order]
        with torch.no_grad():
            found: np.ndarray = self.head(torch.from_numpy(given).float())[:, 0].numpy() > 0
        return found


def train(way: Way, together: float, seed: int, steps: int = 600) -> Bottleneck:
    """Train concepts and a linear head: the head after them on their probabilities, or (joint) both at once."""
    rng = np.random.default_rng([seed, 1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        concepts: nn.Module = (
            Slots() if way.startswith("slots")
            else nn.Sequential(nn.Linear(CONCEPTS * PIXELS, 64), nn.ReLU(), nn.Linear(64, CONCEPTS))
        )  # fmt: skip
        head = nn.Linear(CONCEPTS, 1)
    # The head has to be quick, or interventions show how little it was trained.
    optimizer = torch.optim.Adam(
        [{"params": concepts.parameters(), "lr": 3e-3}, {"params": head.parameters(), "lr": 3e-2}]
    )
    criterion = nn.BCEWithLogitsLoss()
    for _ in range(steps):
        drawn = draw(256, together, rng)
        present, labels = (torch.from_numpy(one).float() for one in (drawn.present, drawn.labels))
        logits = concepts(torch.from_numpy(drawn.pixels))
        loss = criterion(logits, present)
        if way == "joint":
            loss = loss + criterion(head(logits.sigmoid())[:, 0], labels)
        else:
            loss = loss + criterion(head(logits.detach().sigmoid())[:, 0], labels)
        if way == "slots, placed":
            assert isinstance(concepts, Slots)
            assert concepts.attention is not None
            inside = concepts.attention.diagonal(dim1=1, dim2=2).clamp_min(1e-6)
            loss = loss - PLACED * inside.log().sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Bottleneck(concepts.eval(), head)


@dataclass(frozen=True)
class Judged:
    """What is found of one training: shares, in distribution and where concepts are independent (`apart`).

    `leak` and `existence` are means over concepts, on inputs in which concepts are independent; `labels` the accuracy
    there by how many concepts are corrected.
    """

    way: str
    together: float
    seed: int
    accuracy: float
    accuracy_apart: float
    leak: float
    leak_low: float
    leak_high: float
    existence: float
    label: float
    labels: Mapping[int, float]


def judge(way: str, model: "Bottleneck | None", together: float, seed: int, inputs: int) -> Judged:
    """Judge a bottleneck, or (None) the best answer that there is."""
    inside, apart = (draw(inputs, share, np.random.default_rng([seed, 2 + place]))
                     for place, share in enumerate((together, 0.0)))  # fmt: skip

    def concepts(pixels: np.ndarray) -> np.ndarray:
        return best(pixels, together) if model is None else model.logits(pixels)

    weights = WEIGHTS if model is None else model.head.weight.detach().double().numpy()[0]
    found = concept_check(concepts, apart.pixels, apart.present, REGIONS, weights=weights, top=2, draws=4).rows
    within, elsewhere = (concepts(one.pixels) for one in (inside, apart))

    def right(one: Inputs, logits: np.ndarray, corrected: int = 0) -> float:
        if model is None:
            given = 1 / (1 + np.exp(-logits)) - 0.5
            return float(((given @ WEIGHTS > 0) == one.labels).mean())
        return float((model.labels(logits, one.present, corrected) == one.labels).mean())

    return Judged(
        way=way,
        together=together,
        seed=seed,
        accuracy=float(((within > 0) == inside.present).mean()),
        accuracy_apart=float(((elsewhere > 0) == apart.present).mean()),
        leak=float(found["leak"].mean()),
        leak_low=float(found["leak_low"].mean()),
        leak_high=float(found["leak_high"].mean()),
        existence=float(found["existence"].mean()),
        label=right(inside, within),
        labels={} if model is None else {number: right(apart, elsewhere, number) for number in CORRECTED},
    )


def run(folder: Path, *, seeds: int, sequences: int, device: str, progress: Callable[[Step], None]) -> Findings:
    """Train bottlenecks at every co-occurrence, and judge their concepts where concepts are independent.

    They are small: `device` is not used, they run on the CPU. Inputs are vectors, not tokens, so that they are judged
    by `concept_check`, and not by `compare`.
    """
    judged: list[Judged] = []
    total = len(TOGETHER) * len(WAYS) * seeds
    for together in TOGETHER:
        judged.append(judge("best", None, together, 0, sequences))
        for way in WAYS:
            for seed in range(seeds):
                progress(Step(len(judged), total + len(TOGETHER), f"{way}, {together:g} together, seed {seed}"))
                judged.append(judge(way, train(way, together, seed), together, seed, sequences))
    shown = Illustrations(tables=[_claims(judged), _interventions(judged)], charts=[_chart(judged)])
    return Findings({"bottlenecks": [asdict(one) for one in judged]}, shown)


def _of(judged: Sequence[Judged], way: str, together: float, name: str) -> tuple[float, float, float]:
    """Mean, least and largest over trainings."""
    values = [getattr(one, name) for one in judged if (one.way, one.together) == (way, together)]
    return float(np.mean(values)), min(values), max(values)


def _cell(value: tuple[float, float, float]) -> tuple[str, str]:
    mean, low, high = value
    return f"{mean:.3f}", "" if low == high else f"{low:.3f} to {high:.3f}"


def _claims(judged: Sequence[Judged]) -> TableView:
    names = ("accuracy", "accuracy_apart", "leak", "existence", "label")
    return TableView(
        title="Whether unit k is concept k",
        note="By how often the second concept of a pair copies the first in training. Accuracy of concepts on such "
        "inputs and on inputs with independent concepts (apart); leak: the share of a unit's change that comes from "
        "outside its concept's region, 0 where it reads its own region alone; existence: how often a concept is there "
        "when it is among the two that count most; label: accuracy of the answer in distribution. Means over "
        "trainings, below them the least and the largest. Best: the answer of Bayes for the training distribution.",
        headings=["model", "concepts", "concepts, apart", "leak", "existence", "label"],
        rows=[
            [(f"{way}, {together:g} together", ""), *(_cell(_of(judged, way, together, name)) for name in names)]
            for together in TOGETHER
            for way in ("best", *WAYS)
        ],
    )


def _interventions(judged: Sequence[Judged]) -> TableView:
    rows = []
    for together in TOGETHER:
        for way in WAYS:
            cells = []
            for number in CORRECTED:
                values = [one.labels[number] for one in judged if (one.way, one.together) == (way, together)]
                cells.append(_cell((float(np.mean(values)), min(values), max(values))))
            rows.append([(f"{way}, {together:g} together", ""), *cells])
    return TableView(
        title="Correcting concepts, where they are independent",
        note="Accuracy of the label with so many of the six concepts set to the truth. A head that reads concepts as "
        "what they are called gets better with every one.",
        headings=["model", *(f"{number} corrected" for number in CORRECTED)],
        rows=rows,
    )


def _chart(judged: Sequence[Judged]) -> Chart:
    series = []
    for panel, name in (
        ("leak, concepts independent", "leak"),
        ("accuracy of concepts, independent", "accuracy_apart"),
    ):
        for way in ("best", *WAYS):
            values = [_of(judged, way, together, name) for together in TOGETHER]
            several = way != "best"
            series.append(
                Series(
                    name=way,
                    panel=panel,
                    x=list(TOGETHER),
                    y=[value[0] for value in values],
                    low=[value[1] if several else None for value in values],
                    high=[value[2] if several else None for value in values],
                )
            )
    return Chart(
        name="concepts-apart",
        caption="How much of a unit's change comes from outside its concept's region, and how often it is right, where "
        "concepts are independent, by how often they came together in training. Bars: least and largest of the "
        "trainings.",
        x_label="second of a pair copies the first, probability in training",
        y_label="share",
        names=None,
        series=series,
    )
