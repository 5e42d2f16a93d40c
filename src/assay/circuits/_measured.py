"""What circuits do on pairs, pair by pair: many of them from one run of the reference."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from assay._given import checked
from assay.circuits._problem import Batch, Problem
from assay.circuits._run import Trace, run_circuit

Mask = Bool[np.ndarray, "sender receiver"]


@checked
def measured(problem: Problem, circuits: Sequence[Mask]) -> Float[np.ndarray, "circuit pair"]:
    """m of every pair with all edges ablated but those of a circuit, for each of some circuits.

    Edges on no path from the embeddings to the logits are taken out first. In the units of the problem's measure: KL is
    that of subject and circuit, summed over the scored predictions of a pair.
    """
    graph = problem.wiring.graph
    different: dict[bytes, Mask] = {}
    keys = []
    for kept in circuits:
        pruned = graph.pruned(kept)
        keys.append(pruned.tobytes())
        different.setdefault(keys[-1], pruned)
    found = {key: np.zeros(len(problem.split)) for key in different}
    for batch in problem.batches(_senders(different.values())):
        reference = problem.trace(batch)
        clean = _own(problem, batch) if problem.measure == "kl" else None
        for key, pruned in different.items():
            hidden = _hidden(problem, pruned, reference, batch)
            with torch.inference_mode():
                found[key][batch.index] = problem.value(hidden, batch, clean).double().cpu().numpy()
    return np.stack([found[key] for key in keys])


@checked
def measured_by_pair(problem: Problem, circuits: Sequence[Mask]) -> Float[np.ndarray, " pair"]:
    """m of every pair, each with a circuit of its own; pairs with equal circuits are run together."""
    together: dict[bytes, list[int]] = {}
    for pair, kept in enumerate(circuits):
        together.setdefault(kept.tobytes(), []).append(pair)
    found = np.zeros(len(problem.split))
    for pairs in together.values():
        own = replace(problem, split=problem.split.take(np.array(pairs)))
        found[pairs] = measured(own, [circuits[pairs[0]]])[0]
    return found


@checked
def divergences(problem: Problem, circuits: Sequence[tuple[Mask, Mask]]) -> Float[np.ndarray, "circuit pair"]:
    """KL(first || second) of every pair for two circuits each, in nats, summed over the scored predictions of a pair.

    Edges on no path are taken out of both.
    """
    graph = problem.wiring.graph
    pruned = [(graph.pruned(first), graph.pruned(second)) for first, second in circuits]
    asked = replace(problem, measure="kl")
    found = np.zeros((len(pruned), len(problem.split)))
    for batch in asked.batches(_senders([kept for both in pruned for kept in both])):
        reference = asked.trace(batch)
        for row, (first, second) in enumerate(pruned):
            of_first, of_second = (_hidden(asked, kept, reference, batch) for kept in (first, second))
            with torch.inference_mode():
                found[row, batch.index] = asked.value(of_second, batch, of_first).double().cpu().numpy()
    return found


def _senders(circuits: Iterable[Mask]) -> int:
    """The most senders that any of some circuits has."""
    return max((int(kept.any(axis=1).sum()) for kept in circuits), default=1) or 1


def _own(problem: Problem, batch: Batch) -> Tensor:
    """The subject's own final hidden states."""
    with torch.inference_mode():
        return problem.wiring.hidden(batch.tokens, batch.valid)


def _hidden(problem: Problem, pruned: Mask, reference: Trace, batch: Batch) -> Tensor:
    """The final hidden states of a circuit."""
    found: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.append(output)

    handle = problem.wiring.norm.module.register_forward_hook(keep)
    try:
        run_circuit(problem.engine, problem.wiring, pruned, reference, batch.tokens, batch.valid)
    finally:
        handle.remove()
    return found[0].reshape(*batch.tokens.shape, -1)
