"""Optimal ablation: constants for ablated edges, learned so that a circuit is as near to its subject as they let it."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from assay._given import checked
from assay.circuits._attribution import own_run, tokens_of_a_pass
from assay.circuits._problem import Batch, Problem, Reference
from assay.circuits._run import Pass, Trace, constant
from assay.circuits._wiring import Layer
from assay.engine._frozen import frozen

PASSES = 100
"""Passes over the train split, with gradients, after which constants are taken as learned."""


@dataclass(frozen=True)
class Learned:
    """How far a circuit is from the subject with the constants, and with the means that they were begun at.

    `kl` and `kl_of_means` are mean KL(subject || circuit) over pairs of the train split, in nats, summed over the
    scored predictions of a pair; `passes` over the split were made.
    """

    kl: float
    kl_of_means: float
    passes: int


@checked
def learn_constants(problem: Problem, kept: Bool[np.ndarray, "sender receiver"]) -> tuple[Reference, Learned]:
    """The constants a_s, one vector a sender, under which a circuit is nearest to the subject on the problem's split.

    minimise over a: mean over pairs of KL(subject || circuit), summed over the scored predictions of a pair, in nats,
    where every edge outside the circuit carries the a_s of its sender. A head's is what its part of the output
    projection takes in, that of the embeddings and of an MLP what they add. Begun at the means that the problem's
    reference has, by L-BFGS on all pairs at once, so that nothing is drawn; the best that was met is kept, which is
    never worse than the means. The minimum may be a local one.

    Source: Li and Janson, arXiv 2409.09951. Differences: theirs learns by stochastic gradient descent, and in the
    search for a circuit its edges with the constants; here the circuit stands.
    """
    learning = _Learning(problem, kept)
    optimizer = torch.optim.LBFGS(
        learning.constants, max_iter=PASSES, max_eval=PASSES, history_size=20, line_search_fn="strong_wolfe",
        tolerance_grad=1e-9, tolerance_change=1e-8,
    )  # fmt: skip
    with torch.inference_mode(mode=False), frozen(problem.engine.subject.model):
        optimizer.step(learning.step)
        with torch.no_grad():
            found = replace(problem.reference, means=learning.trace(learning.best))
    return found, Learned(min(learning.values), learning.values[0], len(learning.values))


class _Learning:
    """Constants and the objective; the subject's own pass is made once."""

    def __init__(self, problem: Problem, kept: Bool[np.ndarray, "sender receiver"]) -> None:
        assert problem.reference.means is not None
        self.problem, self.wiring, self.means = problem, problem.wiring, problem.reference.means
        self.pruned = self.wiring.graph.pruned(kept)
        self.layers = range(self.wiring.graph.layers)
        exact = torch.float32 if self.means.embeddings.device.type == "mps" else torch.float64
        with torch.inference_mode(mode=False):
            # Made anew: what a graph is to keep must not be an inference tensor.
            self.constants = [
                part.detach().to(exact).clone().requires_grad_(True)
                for part in (
                    self.means.embeddings,
                    *(self.means.heads[layer] for layer in self.layers),
                    *(self.means.mlp[layer] for layer in self.layers),
                )
            ]
        senders = max(1, int(self.pruned.any(axis=1).sum()))
        self.known = [
            (batch, own_run(self.wiring, batch, ())[1][batch.rows, batch.positions])
            for batch in problem.batches(senders, tokens=tokens_of_a_pass(problem))
        ]
        self.best: Sequence[Tensor] = [one.detach().clone() for one in self.constants]
        self.values: list[float] = []

    def trace(self, constants: Sequence[Tensor]) -> Trace:
        """The run in which senders write some constants."""
        first, *rest = (one.to(self.means.embeddings.dtype) for one in constants)
        heads, mlp = rest[: len(self.layers)], rest[len(self.layers) :]
        return constant(self.wiring, Trace(first, dict(enumerate(heads)), dict(enumerate(mlp))))

    def step(self) -> float:
        """The objective at the constants as they are, whose gradients it leaves at them."""
        sums = [torch.zeros_like(one) for one in self.constants]
        total = 0.0
        for batch, clean in self.known:
            with torch.enable_grad():
                loss = self._divergence(self.trace(self.constants), batch, clean) / len(self.problem.split)
            total += float(loss.detach())
            gradients = torch.autograd.grad(loss, self.constants, allow_unused=True, materialize_grads=True)
            sums = [one + more for one, more in zip(sums, gradients, strict=True)]
        for one, gradient in zip(self.constants, sums, strict=True):
            one.grad = gradient
        if not self.values or total < min(self.values):
            self.best = [one.detach().clone() for one in self.constants]
        self.values.append(total)
        return total

    def _divergence(self, reference: Trace, batch: Batch, clean: Float[Tensor, "scored width"]) -> Float[Tensor, ""]:
        """KL(subject || circuit), summed over the predictions of a batch."""
        circuit = _PassWithGradients(self.wiring, self.pruned, reference, batch.tokens)
        hidden = circuit.run(lambda: self.wiring.hidden(batch.tokens, batch.valid))
        log_p, log_q = (
            self.wiring.logits(states).double().log_softmax(dim=-1)
            for states in (clean, hidden[batch.rows, batch.positions])
        )
        return (log_p.exp() * (log_p - log_q)).sum()


class _PassWithGradients(Pass):
    """A pass of a circuit through which gradients go to what ablated edges carry: nothing is written in place."""

    def start(self, stream: Tensor) -> None:
        self.written: dict[int, Tensor] = {}
        if 0 in self.place:
            self.written[self.place[0]] = stream - self.reference.embeddings

    def mode(self) -> AbstractContextManager[object]:
        return nullcontext()

    def product(self, inputs: Tensor, weight: Tensor) -> Tensor:
        return nn.functional.linear(inputs, weight)

    def write_heads(self, number: int, layer: Layer, heads: Sequence[int], change: Tensor) -> None:
        weight = layer.output_weight.unflatten(0, (self.graph.heads, -1))
        for head in heads:
            own = change.unflatten(-1, (self.graph.heads, -1))[..., head, :]
            self.written[self.place[self.graph.sender(number, head)]] = own @ weight[head]

    def write_mlp(self, number: int, added: Tensor) -> None:
        self.written[self.place[self.graph.sender(number)]] = added - self.reference.mlp[number]

    def inputs(self, heard: Sequence[Sequence[int]], reference: Tensor) -> Float[Tensor, "group batch position width"]:
        own = reference.expand(*self.shape, -1)
        return torch.stack([own + sum(self.written[sender] for sender in senders) for senders in heard])
