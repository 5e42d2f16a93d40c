"""Search in a star: two chains leave the start, one ends in the goal; which way is the first step?"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Int

from assay._errors import AssayError, unknown_name
from assay._given import check_fields
from assay.subjects import IGNORED, Batch
from assay.tasks import NO_TOKEN, UNSCORED, Feature, Kind, Role, Split

VERTICES, TRAINED, LONGEST = 12, 3, 5
"""Chains of up to 3 edges are trained on; with 12 vertices there is room for two of 5."""

EDGES, QUESTIONS = VERTICES, VERTICES + VERTICES**2
"""The first token of edges, source by source, and of questions, start by start; vertices are the first of all."""

WIDTH = 2 * LONGEST + 1


@dataclass(frozen=True)
class Search:
    """A question (start, goal), then the edges of two chains of equal length from the start, in random order.

    One chain ends in the goal; the answer is its first vertex, and the number of its edges is the lookahead. Vertices
    are permuted, example by example. The counterfactual asks for the end of the other chain; the foil is its first
    vertex. The model reads a set of tokens, so the question may stand first, and what pads a row is not seen.

    | split | lookahead |
    |---|---|
    | train, iid | 1, 2 and 3, each as often |
    | one_more | 4 |
    | two_more | 5 |
    | distractor | 3, with a chain of three edges elsewhere |
    """

    seed: int = 0

    name = "graph-search"
    primary_kind = "step"
    split_names = ("train", "iid", "one_more", "two_more", "distractor")
    kinds = (Kind("step", "the first vertex on the way to the goal"),)
    features = (Feature("lookahead", "edges from the start to the goal", ("step",)),)

    def __post_init__(self) -> None:
        check_fields(self)

    def describe(self) -> dict[str, object]:
        """The parameters, as plain values."""
        return {"task": self.name, **asdict(self)}

    def split(self, name: str, sequences: int) -> Split:
        """The first `sequences` graphs of a split. Raises AssayError for an unknown split or a number below 1."""
        roles: dict[str, tuple[Role, str]] = {
            "train": ("train", f"chains of 1 to {TRAINED} edges"),
            "iid": ("iid", f"chains of 1 to {TRAINED} edges"),
            "one_more": ("shift", f"chains of {TRAINED + 1} edges"),
            "two_more": ("shift", f"chains of {TRAINED + 2} edges"),
            "distractor": ("shift", f"chains of {TRAINED} edges, and a third one elsewhere"),
        }
        if name not in roles:
            raise unknown_name("split", name, roles)
        if sequences < 1:
            raise AssayError(f"split({name!r}, sequences={sequences}): must be at least 1.")
        rng = np.random.default_rng([self.seed, 1 + self.split_names.index(name)])
        fixed = {"one_more": TRAINED + 1, "two_more": TRAINED + 2, "distractor": TRAINED}
        lookahead = np.full(sequences, fixed[name]) if name in fixed else rng.integers(1, TRAINED + 1, size=sequences)
        tokens, other, chain, wrong = draw(rng, lookahead, distractor=name == "distractor")
        role, description = roles[name]

        def at_question(values: np.ndarray | int, elsewhere: int) -> np.ndarray:
            found = np.full(tokens.shape, elsewhere)
            found[:, 0] = values
            return found

        return Split(
            name=name,
            role=role,
            description=description,
            tokens=tokens,
            lengths=1 + 2 * lookahead + (TRAINED if name == "distractor" else 0),
            kinds=at_question(0, UNSCORED),
            features={"lookahead": at_question(lookahead, 0)},
            counterfactuals=np.column_stack((other, tokens[:, 1:])),
            answers=at_question(chain[:, 0], NO_TOKEN),
            foils=at_question(wrong[:, 0], NO_TOKEN),
        )


def draw(
    rng: np.random.Generator, lookahead: Int[np.ndarray, " graph"], *, distractor: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Graphs (graph, position), the question for the other goal, and both chains behind the start (graph, 5).

    Of a chain the first `lookahead` vertices count. Behind its edges a row is filled up with its question. A distractor
    has as many edges as are trained on, and needs its vertices beside those of the two chains.
    """
    rows = np.arange(len(lookahead))
    vertices = rng.permuted(np.tile(np.arange(VERTICES), (len(lookahead), 1)), axis=1)
    start, step = vertices[:, 0], np.arange(LONGEST)
    chains = vertices[:, 1:].reshape(len(lookahead), -1)
    # Chains of length L are the first L of the other vertices, and the next L.
    first = chains[:, :LONGEST]
    second = np.take_along_axis(chains, np.minimum(lookahead[:, None] + step, VERTICES - 2), axis=1)
    edges, used = [], []
    for chain in (first, second):
        before = np.column_stack((start, chain[:, :-1]))
        edges.append(EDGES + VERTICES * before + chain)
        used.append(step < lookahead[:, None])
    if distractor:
        rest = chains[:, 2 * TRAINED : 3 * TRAINED + 1]
        edges.append(EDGES + VERTICES * rest[:, :-1] + rest[:, 1:])
        used.append(np.ones((len(lookahead), TRAINED), dtype=bool))
    every, there = np.concatenate(edges, axis=1), np.concatenate(used, axis=1)
    order = np.argsort(np.where(there, rng.random(every.shape), 2.0), axis=1)
    every, there = (np.take_along_axis(part, order, axis=1)[:, : WIDTH - 1] for part in (every, there))
    goals = [chain[rows, lookahead - 1] for chain in (first, second)]
    asked, other = (QUESTIONS + VERTICES * start + goal for goal in goals)
    tokens = np.column_stack((asked, np.where(there, every, asked[:, None])))
    return tokens, other, first, second


def batches(*, batch: int, seed: int, stage: int) -> Callable[[int], Batch]:
    """Fresh graphs: every `stage` steps the next lookahead is introduced, up to the longest that is trained on.

    All rows of a batch have one lookahead, drawn evenly from those introduced; nothing has to be padded.
    """

    def at(step: int) -> Batch:
        rng = np.random.default_rng([seed, 0, step])
        longest = min(TRAINED, 1 + step // stage)
        length = int(rng.integers(1, longest + 1))
        tokens, _, chain, _ = draw(rng, np.full(batch, length))
        tokens = tokens[:, : 2 * length + 1]
        labels = np.full(tokens.shape, IGNORED)
        labels[:, 0] = chain[:, 0]
        return Batch(tokens, labels)

    return at
