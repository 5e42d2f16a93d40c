"""Discrete codes: which heads say by one of a few codes whether they see an input or its counterfactual."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from assay._errors import AssayError
from assay._given import checked
from assay.circuits._importance import spread
from assay.circuits._parameters import check_choice, check_number, check_whole
from assay.circuits._problem import Batch, Problem
from assay.circuits._run import Trace, traced

CodeScore = Literal["information", "count", "union"]
"""Mutual information of code and class less its mean over all permutations of classes, in nats; how many codes occur
on the inputs only; the same over all codes that occur."""

Classes = Literal["side", "answer"]
"""What codes are to tell: whether it is an input or a counterfactual; or which token is right there."""

NO_CODE = -1
"""The code of a vector that no feature sees."""


@dataclass
class DiscreteCodes:
    """A sparse autoencoder a head, a code for each of its outputs (its strongest feature), and how codes tell classes.

    The outputs of heads and MLPs at scored predictions, on inputs and on counterfactuals, half and half. Each sender's
    are scaled to root mean square 1 and get an autoencoder of `features` with unit directions, trained for `steps` of
    Adam with `penalty` on the sum of activations. The code is the feature that is most active, or -1 where none is. A
    sender that only sees what was changed has codes as telling as one that acts on it: judge the circuit.

    Where inputs and counterfactuals are of one kind (a bracket of one type for one of another, names in either order),
    no head can tell them apart, and all scores are near 0: there give `classes="answer"`, by which codes are to tell
    the answer of an input and the (first) foil of a counterfactual from the others.

    Scores: see `CodeScore`. Counts of codes grow with how many codes a head has, whatever it does: in a simulation
    with heads of random codes they rank those before heads that tell the classes perfectly.

    A sender's score is spread over the edges out of it; give `Circuit(level="heads")`. Source: O'Neill and Bui, arXiv
    2405.12522. Differences: -1 (theirs has code 0 there, as if it were a feature); the information, less what chance
    gives; widths of heads before their output maps; all pairs, where they take ten.
    """

    features: int = 32
    score: CodeScore = "information"
    classes: Classes = "side"
    penalty: float = 0.02
    steps: int = 300
    seed: int = 0

    pairwise: ClassVar[bool] = False

    def check(self, problem: Problem) -> None:
        """Raise AssayError for bad parameters, or an ablation without counterfactuals."""
        check_choice("score of codes", self.score, get_args(CodeScore))
        check_choice("classes of codes", self.classes, get_args(Classes))
        if self.classes == "answer" and self.score != "information":
            raise AssayError(f"score={self.score!r} is of two classes; with classes='answer' use score='information'.")
        for name, least in (("features", 1), ("steps", 1), ("seed", 0)):
            check_whole(name, getattr(self, name), least=least)
        check_number("penalty", self.penalty, lambda value: 0 <= value < float("inf"), "a number of at least 0")
        if problem.split.counterfactuals is None:
            raise AssayError(f"method 'discrete-codes': split {problem.split.name!r} has no counterfactuals.")

    def scores(self, problem: Problem) -> Float[np.ndarray, "sender receiver"]:
        """The score of every edge, in nats or codes; NaN where there is none."""
        self.check(problem)
        graph = problem.wiring.graph
        heads, mlps, labels = _outputs(problem, self.classes)
        importance = np.zeros(len(graph.senders))
        of_heads = [graph.sender(layer, head) for layer in range(graph.layers) for head in range(graph.heads)]
        of_mlps = [graph.sender(layer) for layer in range(graph.layers)]
        for senders, vectors in ((of_heads, heads), (of_mlps, mlps)):
            codes = self.codes(vectors)
            importance[senders] = [code_score(one, labels, self.score) for one in codes]
        return spread(problem, importance)

    def codes(self, vectors: Float[Tensor, "sender sample width"]) -> Int[np.ndarray, "sender sample"]:
        """The code of every vector, by an autoencoder of each sender's own."""
        size = vectors.square().mean(dim=(1, 2), keepdim=True).sqrt()
        with torch.inference_mode(mode=False), torch.enable_grad():
            x = (vectors / size.clamp(min=1e-12)).float().clone()
            generator = torch.Generator().manual_seed(self.seed)
            start = torch.randn(len(x), self.features, x.shape[2], generator=generator).to(x)
            directions = start.clone().requires_grad_(True)
            encoder = torch.nn.functional.normalize(start, dim=-1).clone().requires_grad_(True)
            bias = x.new_zeros(len(x), 1, self.features).requires_grad_(True)
            centre = x.mean(dim=1, keepdim=True)
            optimizer = torch.optim.Adam([directions, encoder, bias], lr=1e-2)
            for _ in range(self.steps):
                optimizer.zero_grad()
                unit = torch.nn.functional.normalize(directions, dim=-1)
                active = ((x - centre) @ encoder.mT + bias).relu()
                error = (active @ unit + centre - x).square().sum(dim=-1)
                loss = (error + self.penalty * active.sum(dim=-1)).mean(dim=1).sum()
                loss.backward()
                optimizer.step()
        with torch.no_grad():
            active = ((x - centre) @ encoder.mT + bias).relu()
            strongest, code = active.max(dim=-1)
            found: np.ndarray = torch.where(strongest > 0, code, NO_CODE).cpu().numpy()
        return found


@checked
def code_score(codes: Int[np.ndarray, " sample"], labels: Int[np.ndarray, " sample"], score: CodeScore) -> float:
    """How well codes tell classes (1 and 0, or for the information any number of them).

    The information may be a little below 0 where they do not.
    """
    if score != "information":
        positive, negative = set(codes[labels == 1].tolist()), set(codes[labels != 1].tolist())
        return len(positive - negative) / (1 if score == "count" else len(positive | negative))
    _, columns = np.unique(codes, return_inverse=True)
    _, rows = np.unique(labels, return_inverse=True)
    joint = np.zeros((rows.max() + 1, columns.max() + 1), dtype=int)
    np.add.at(joint, (rows, columns), 1)
    found = 0.0
    for label, counts in zip(joint.sum(axis=1).tolist(), joint.tolist(), strict=True):
        for code, count in zip(joint.sum(axis=0).tolist(), counts, strict=True):
            found += _part(count, label, code, len(codes)) - _chance(label, code, len(codes))
    return found


def _part(count: int, label: int, code: int, whole: int) -> float:
    """What a cell of the table adds to the mutual information, in nats."""
    return count / whole * math.log(count * whole / (label * code)) if count else 0.0


def _chance(label: int, code: int, whole: int) -> float:
    """The mean of that over permutations: the cell's count is hypergeometric."""
    counts = np.arange(max(0, label + code - whole), min(label, code) + 1)
    chances = stats.hypergeom.pmf(counts, whole, label, code).tolist()
    return sum(
        chance * _part(count, label, code, whole) for chance, count in zip(chances, counts.tolist(), strict=True)
    )


def _outputs(
    problem: Problem, classes: Classes
) -> tuple[Float[Tensor, "head sample width"], Float[Tensor, "layer sample model"], Int[np.ndarray, " sample"]]:
    """What heads and MLPs give at scored predictions, on inputs and then on counterfactuals, and their classes."""
    heads: tuple[list[Tensor], list[Tensor]] = ([], [])
    mlps: tuple[list[Tensor], list[Tensor]] = ([], [])
    labels: tuple[list[Tensor], list[Tensor]] = ([], [])
    for batch in problem.batches():
        assert batch.counterfactuals is not None
        right = (batch.answers, batch.foils[:, 0])
        for place, tokens in enumerate((batch.tokens, batch.counterfactuals)):
            trace = traced(problem.wiring, tokens, batch.valid)
            heads[place].append(_of_heads(problem, trace, batch))
            mlps[place].append(torch.stack([one[batch.rows, batch.positions] for one in trace.mlp.values()]))
            labels[place].append(right[place] if classes == "answer" else torch.full_like(right[place], 1 - place))
    found = torch.cat(labels[0] + labels[1]).cpu().numpy()
    return torch.cat(heads[0] + heads[1], dim=1), torch.cat(mlps[0] + mlps[1], dim=1), found


def _of_heads(problem: Problem, trace: Trace, batch: Batch) -> Float[Tensor, "head sample width"]:
    found = []
    for given in trace.heads.values():
        parts = given[batch.rows, batch.positions].unflatten(-1, (problem.wiring.graph.heads, -1))
        found.append(parts.transpose(0, 1))
    return torch.cat(found)
