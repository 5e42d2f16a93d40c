"""Greedy pruning: edges ablated for good, one after the other, as long as little is lost."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from assay.circuits._attribution import own_run
from assay.circuits._graph import Graph
from assay.circuits._parameters import check_number
from assay.circuits._problem import Batch, Problem
from assay.circuits._run import Trace, hidden_of_circuit


@dataclass
class GreedyEdges:
    """Edges are tried from the logits backwards; each whose ablation costs less than `threshold` is ablated for good.

    How far a circuit is from the subject is KL(subject || circuit) in nats with `measure="kl"`, and else the change of
    the logit difference, |m(circuit) - m(subject)|: summed over a pair's scored predictions, mean over pairs (of the
    absolute change of each pair, so that pairs cannot make up for each other). The score of an edge is by how much
    this distance rose when the edge was tried, in a circuit without the edges ablated before; 0 where it fell or the
    edge was on no path any more. So the edges kept score at least `threshold`, all others less, and `Circuit` with as
    many edges as `kept` tells is the greedy circuit. Scores are no effects of single edges: they depend on the order.
    Of two edges either of which is enough, the one tried first is ablated, with score 0, and the other has to stay.
    They are not negative whether an edge helps or harms: rank them by absolute value.

    Receivers come in reverse order of execution, and so do the senders of each. An edge takes one pass over all pairs.

    Source: ACDC, Conmy et al., arXiv 2304.14997, section 3, algorithm 1. Differences: all pairs decide, not one batch;
    the distance in logits is absolute; and ablated edges may also carry means or nothing.
    """

    threshold: float = 0.01

    pairwise: ClassVar[bool] = False

    def check(self, problem: Problem) -> None:
        """Raise AssayError unless `threshold` is a positive number."""
        check_number(
            "threshold",
            self.threshold,
            lambda value: 0 < value < float("inf"),
            "a positive number, in nats or in units of the logit difference",
        )

    def scores(self, problem: Problem) -> Float[np.ndarray, "sender receiver"]:
        """What ablating every edge cost when it was tried; NaN where there is none."""
        self.check(problem)
        graph = problem.wiring.graph
        distance = _Distance(problem)
        found = np.where(graph.exists, 0.0, np.nan)
        kept = graph.exists.copy()
        now = 0.0
        for sender, receiver in _backwards(graph):
            on_paths = graph.pruned(kept)[sender, receiver]
            kept[sender, receiver] = False
            if not on_paths:
                continue
            then = distance.of(graph.pruned(kept))
            found[sender, receiver] = max(0.0, then - now)
            if then - now < self.threshold:
                now = then
            else:
                kept[sender, receiver] = True
        return found

    def kept(self, scores: Float[np.ndarray, "sender receiver"]) -> Bool[np.ndarray, "sender receiver"]:
        """The greedy circuit that made some scores: `kept(...).sum()` is how many edges to ask `Circuit` for."""
        return np.nan_to_num(scores, nan=-1.0) >= self.threshold


def _backwards(graph: Graph) -> Iterator[tuple[int, int]]:
    for receiver in reversed(range(len(graph.receivers))):
        for sender in reversed(range(graph.heard[receiver])):
            yield sender, receiver


class _Distance:
    """How far circuits are from the subject: its own pass and that of the reference are made once."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.known: list[tuple[Batch, Trace, Tensor, Tensor]] = []
        for batch in problem.batches():
            clean = own_run(problem.wiring, batch)[1]
            self.known.append((batch, problem.trace(batch), clean, problem.value(clean, batch, clean)))

    def of(self, kept: Bool[np.ndarray, "sender receiver"]) -> float:
        """That of the circuit of some edges on paths, mean over pairs."""
        total = 0.0
        with torch.inference_mode():
            for batch, reference, clean, value in self.known:
                hidden = hidden_of_circuit(self.problem.wiring, kept, reference, batch.tokens, batch.valid)
                total += float((self.problem.value(hidden, batch, clean) - value).double().abs().sum())
        return total / len(self.problem.split)
