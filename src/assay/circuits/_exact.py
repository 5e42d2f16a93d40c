"""Edge patching: the effect of every edge, measured."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay._errors import AssayError
from assay.circuits._attribution import IntegratedEdgeAttribution
from assay.circuits._graph import Graph
from assay.circuits._parameters import check_whole
from assay.circuits._problem import Batch, Problem
from assay.circuits._run import Trace, differences, first_of, resume_at, traced, with_given
from assay.circuits._wiring import Layer
from assay.engine import instead
from assay.engine._kernels import product

SCREEN = 2_000
"""Edges above which `ExactEdges` looks only at those that EAP-IG finds likely: beyond, every edge takes too long."""

TOKENS = 4_096
"""Tokens of patched runs that share a batch on a CPU; 16 times as many elsewhere."""


@dataclass
class ExactEdges:
    """Patching, edge by edge: m with one edge ablated and all else as in the subject, less m of the subject.

    Runs resume from the receiver's layer, senders side by side in a batch. In a graph of more than `screen` edges, only
    the `screen` edges with the largest scores by EAP-IG are measured, and the others keep score 0. Single edges miss
    what is redundant: where either of two edges is enough, both score 0.

    Source: activation patching of single edges, as in Conmy et al., arXiv 2304.14997, section 3.
    """

    screen: int = SCREEN

    def check(self, problem: Problem) -> None:
        """Raise AssayError unless `screen` is a whole number of at least 1."""
        check_whole("screen", self.screen)

    def scores(self, problem: Problem) -> Float[np.ndarray, "sender receiver"]:
        """The score of every edge, in the units of m; NaN where there is none, 0 where the screen left it out."""
        self.check(problem)
        graph = problem.wiring.graph
        chosen = graph.exists
        if graph.size > self.screen:
            steps = _screen_of(problem).scores(problem)
            order = np.argsort(-np.abs(steps[graph.exists]), kind="stable")[: self.screen]
            chosen = np.zeros(graph.shape, dtype=bool)
            chosen[tuple(np.argwhere(graph.exists)[order].T)] = True
        found = np.where(graph.exists, 0.0, np.nan)
        for batch in problem.batches():
            found += _Patched(problem, batch).edges(chosen)
        return found / len(problem.split)


def _screen_of(problem: Problem) -> IntegratedEdgeAttribution:
    if not problem.reference.is_another_input:
        raise AssayError(
            f"method 'exact' with ablation={problem.reference.ablation!r} on {problem.wiring.graph.size:,} edges: "
            "every edge would take too long, and the screen by EAP-IG needs counterfactuals; use "
            "ablation='counterfactual', or give ExactEdges(screen=...) at least as many edges as there are."
        )
    return IntegratedEdgeAttribution()


@dataclass
class ExactNodes:
    """Patching, sender by sender: m with all edges out of one sender ablated, less m of the subject.

    A sender's score is spread evenly over the edges out of it, so that they sum to it: made for circuits of whole heads
    (`level="heads"`).
    """

    def check(self, problem: Problem) -> None:
        """Nothing is refused."""

    def scores(self, problem: Problem) -> Float[np.ndarray, "sender receiver"]:
        """The score of every edge, in the units of m; NaN where there is none."""
        graph = problem.wiring.graph
        found = np.zeros(len(graph.senders))
        for batch in problem.batches():
            found += _Patched(problem, batch).nodes()
        return over_edges(graph, found / len(problem.split))


def over_edges(graph: Graph, scores: Float[np.ndarray, " sender"]) -> Float[np.ndarray, "sender receiver"]:
    """Scores of senders spread evenly over the edges out of them; NaN where there is no edge."""
    return np.where(graph.exists, (scores / graph.exists.sum(axis=1))[:, None], np.nan)


def together(batch: Batch) -> int:
    """How many runs of a batch share a pass."""
    scale = 1 if batch.tokens.device.type == "cpu" else 16
    return max(1, scale * TOKENS // batch.tokens.numel())


class _Patched:
    """Runs of the subject on one batch with something patched in: from a layer on, several patches side by side."""

    def __init__(self, problem: Problem, batch: Batch) -> None:
        self.problem, self.batch, self.wiring = problem, batch, problem.wiring
        self.trace = traced(self.wiring, batch.tokens, batch.valid)
        self.reference: Trace = problem.trace(batch)
        self.more = differences(self.wiring, self.reference, self.trace)
        with torch.inference_mode():
            self.clean = self.wiring.norm.module(self.trace.final)
            self.value = self._values(self.clean, batch, 1)[0]
        self.together = together(batch)

    def _values(self, hidden: Tensor, several: Batch, count: int) -> list[float]:
        """m, summed over pairs, of each of `count` equal parts of a batch of final hidden states."""
        clean = self.clean.repeat(count, 1, 1) if self.problem.measure == "kl" else None
        values = self.problem.value(hidden, several, clean)
        found: list[float] = values.double().view(count, -1).sum(dim=1).tolist()
        return found

    def _chunks(self, senders: Sequence[int]) -> Iterator[list[int]]:
        for start in range(0, len(senders), self.together):
            yield list(senders[start : start + self.together])

    def edges(self, chosen: np.ndarray) -> Float[np.ndarray, "sender receiver"]:
        """What ablating each chosen edge changes, summed over pairs."""
        graph = self.wiring.graph
        found = np.zeros(graph.shape)
        for number in range(len(self.wiring.layers)):
            receivers = range(graph.reading(number).start, graph.mlp(number) + 1)
            edges = np.argwhere(chosen[:, receivers])
            for start in range(0, len(edges), self.together):
                some = edges[start : start + self.together]
                values = self._from(number, len(some), functools.partial(self._patched, number, some))
                found[some[:, 0], receivers[0] + some[:, 1]] = np.array(values) - self.value
        for senders in self._chunks(np.flatnonzero(chosen[:, graph.logits]).tolist()):
            hidden = self._normed(self.wiring.norm.module, self.trace.final, senders)
            with torch.inference_mode():
                values = self._values(hidden.flatten(0, 1), self.batch.repeated(len(senders)), len(senders))
            found[senders, graph.logits] = np.array(values) - self.value
        return found

    def nodes(self) -> Float[np.ndarray, " sender"]:
        """What ablating each sender everywhere changes, summed over pairs."""
        graph = self.wiring.graph
        found = np.zeros(len(graph.senders))
        stream = self.reference.embeddings.expand_as(self.trace.embeddings)
        found[0] = self._from(0, 1, functools.partial(_entering, self.wiring.blocks[0], stream))[0] - self.value
        for number, layer in enumerate(self.wiring.layers):
            for heads in self._chunks(range(graph.heads)):
                put = functools.partial(self._as_reference, layer, number, heads)
                values = self._from(number, len(heads), put)
                found[[graph.sender(number, head) for head in heads]] = np.array(values) - self.value
            added = self.reference.mlp[number].expand_as(self.trace.mlp[number]) / layer.mlp_scale
            (value,) = self._from(number, 1, functools.partial(_giving, layer.mlp, added))
            found[graph.sender(number)] = value - self.value
        return found

    def _normed(self, norm: nn.Module, stream: Tensor, senders: Sequence[int]) -> Tensor:
        """A norm of the residual stream in which one sender each is ablated: (sender, pair, position, width)."""
        with torch.inference_mode():
            found: Tensor = norm(stream + self.more[list(senders)])
            return found

    def _patched(self, number: int, edges: Int[np.ndarray, "edge 2"], stack: ExitStack) -> None:
        """Until the stack is closed, each part of a batch has one edge into a layer ablated.

        Edges are the numbers of their sender and of their receiver among the layer's own.
        """
        layer, shape = self.wiring.layers[number], self.batch.tokens.shape
        into_mlp = edges[:, 1] == self.wiring.graph.readers
        senders, which = np.unique(edges[~into_mlp, 0], return_inverse=True)
        places = np.flatnonzero(~into_mlp)
        if len(senders):
            normed = self._normed(layer.norm.module, self.trace.attention_input[number], senders.tolist())
        projected = [
            self.trace.projected[number][place].repeat(len(edges), 1, 1).unflatten(0, (len(edges), -1))
            for place in range(len(layer.projections))
        ]
        first = 0
        for kind, stream in enumerate(layer.streams):
            weight, bias = layer.weight(kind), layer.bias(kind)
            for receiver in range(len(stream.columns)):
                mine = edges[places, 1] == first + receiver
                if mine.any():
                    values = product(normed[which[mine]], weight[receiver])
                    values = values if bias is None else values + bias[receiver]
                    stream.put_rows(projected[stream.projection], places[mine], receiver, values)
            first += len(stream.columns)
        for module, found in zip(layer.projections, projected, strict=True):
            stack.enter_context(instead(module, functools.partial(_given, found)))
        if into_mlp.any():
            normed = self._normed(layer.mlp_norm.module, self.trace.mlp_input[number], edges[into_mlp, 0].tolist())
            _entering_some(stack, layer.entry, np.flatnonzero(into_mlp), normed, (len(edges), *shape))

    def _as_reference(self, layer: Layer, number: int, heads: Sequence[int], stack: ExitStack) -> None:
        """Until the stack is closed, each part of a batch has one head add what it added in the reference."""
        if layer.after is not None:
            more = self.more[[self.wiring.graph.sender(number, head) for head in heads]] / layer.scale
            stack.callback(layer.after.module.register_forward_hook(functools.partial(_adding, more)).remove)
            return
        own = self.reference.heads[number].unflatten(-1, (self.wiring.graph.heads, -1))
        size = len(self.batch.tokens)

        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            found = inputs[0].clone()
            parts = found.view(len(heads), size, self.batch.tokens.shape[1], self.wiring.graph.heads, -1)
            for place, head in enumerate(heads):
                parts[place, :, :, head] = own[:, :, head]
            return (found, *inputs[1:])

        stack.callback(layer.output.register_forward_pre_hook(hook).remove)

    def _from(self, number: int, count: int, put: Callable[[ExitStack], None]) -> list[float]:
        """m of `count` runs side by side from a layer on, with something put in place, summed over pairs."""
        several = self.batch.repeated(count)
        with ExitStack() as stack, torch.inference_mode():
            if number:
                resume_at(stack, self.wiring, number, self.trace.attention_input[number].repeat(count, 1, 1))
            put(stack)
            return self._values(self.wiring.hidden(several.tokens, several.valid), several, count)


def _given(found: Tensor, given: Tensor, *_: Any) -> Tensor:
    """A tensor in the form that a module gives for what it was given."""
    return found.reshape(*given.shape[:-1], found.shape[-1])


def _entering_some(
    stack: ExitStack, entry: nn.Module, rows: Int[np.ndarray, " chosen"], normed: Tensor, shape: Sequence[int]
) -> None:
    """Until the stack is closed, a module takes in something else in some parts of a batch."""

    def hook(_: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        own = first_of(inputs, options).reshape(*shape, -1).clone()
        own[rows] = normed
        return with_given(inputs, options, own)

    stack.callback(entry.register_forward_pre_hook(hook, with_kwargs=True).remove)


def _entering(entry: nn.Module, normed: Tensor, stack: ExitStack) -> None:
    """Until the stack is closed, a module takes in something else."""

    def hook(_: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return with_given(inputs, options, normed)

    stack.callback(entry.register_forward_pre_hook(hook, with_kwargs=True).remove)


def _adding(more: Tensor, _: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return output + more.reshape(output.shape)


def _giving(module: nn.Module, added: Tensor, stack: ExitStack) -> None:
    """Until the stack is closed, a module gives something else."""

    def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        given = added.reshape(first.shape)
        return (given, *output[1:]) if isinstance(output, tuple) else given

    stack.callback(module.register_forward_hook(hook).remove)
