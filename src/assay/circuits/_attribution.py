"""Edge attribution patching: scores of all edges from gradients, plain and integrated."""

import functools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay._errors import AssayError, unknown_name
from assay.circuits._problem import Batch, Problem
from assay.circuits._run import Trace, differences, first_of, keep
from assay.circuits._wiring import Layer, Norm, Wiring, frozen

Rule = Literal["midpoint", "left", "gauss"]
"""Where an integral over [0, 1] is taken: the middles of equal parts, their left ends (as EAP-IG does), or the nodes of
Gauss and Legendre."""

TOKENS_IN_A_BATCH = 4_096
"""Tokens up to which several steps of an integral share a batch on a CPU."""


@dataclass
class EdgeAttribution:
    """EAP: the change of m when an edge is ablated, to first order at the subject's own run.

    score(s -> r) = <c'_s - c_s, dm/d input_r>, summed over positions, mean over pairs, with c' what the sender writes
    in the reference. One run of the reference and one with gradients give all edges. It misses what saturates: the
    score of a real edge may be near 0 there, or have the wrong sign; see `IntegratedEdgeAttribution`.

    Source: Syed, Rager and Conmy, arXiv 2310.10348, eq. 3. Differences: the sign is that of m (theirs a loss), and a
    score is a mean over pairs, whatever the batches. Raises AssayError for `measure="kl"`, whose gradient is 0 at the
    subject itself.
    """

    def check(self, problem: Problem) -> None:
        """Raise AssayError for a measure without a gradient at the subject's own run."""
        if problem.measure == "kl":
            raise AssayError(
                "method 'eap' with measure='kl': the gradient of KL is 0 at the subject's own run, so that every score "
                "would be 0; use method='eap-ig', or measure='logit_difference'."
            )

    def scores(self, problem: Problem) -> Float[np.ndarray, "sender receiver"]:
        """The score of every edge, in the units of m; NaN where there is none."""
        self.check(problem)
        return _integrated(problem, [(1.0, 1.0)])


@dataclass
class IntegratedEdgeAttribution:
    """EAP-IG: edge attribution with the gradient averaged on the line between the two inputs.

    score(s -> r) = <c'_s - c_s, mean over t in [0, 1] of dm/d input_r at embeddings e' + t (e - e')>. Over the edges
    out of the embeddings it is complete: they sum to m(counterfactual) - m(subject), up to the error of the `rule`,
    which takes `steps` points. Needs a counterfactual: elsewhere the line has no end in the space of embeddings.

    Source: Hanna, Pezzelle and Belinkov, arXiv 2403.17806, section 3. Differences: the default rule takes midpoints,
    whose error is six to ten times smaller at 5 steps than that of the left ends there (`rule="left"`); the sign is
    that of m; and a score is a mean over pairs, whatever the batches.
    """

    steps: int = 5
    rule: Rule = "midpoint"

    complete: ClassVar[Literal["embeddings"]] = "embeddings"

    def check(self, problem: Problem) -> None:
        """Raise AssayError for bad parameters, or an ablation without another input."""
        if not isinstance(self.steps, int) or isinstance(self.steps, bool) or self.steps < 1:
            raise AssayError(f"steps={self.steps!r}: must be a whole number of at least 1.")
        if self.rule not in get_args(Rule):
            raise unknown_name("rule", self.rule, get_args(Rule))
        if problem.reference.ablation != "counterfactual":
            raise AssayError(
                f"method 'eap-ig' with ablation={problem.reference.ablation!r}: it needs another input to integrate "
                "towards; use ablation='counterfactual', or method='eap' or 'exact'."
            )

    def scores(self, problem: Problem) -> Float[np.ndarray, "sender receiver"]:
        """The score of every edge, in the units of m; NaN where there is none."""
        self.check(problem)
        return _integrated(problem, nodes(self.rule, self.steps))


def nodes(rule: Rule, steps: int) -> list[tuple[float, float]]:
    """Points in [0, 1] and their weights."""
    if rule == "gauss":
        points, weights = np.polynomial.legendre.leggauss(steps)
        return [(float(point + 1) / 2, float(weight) / 2) for point, weight in zip(points, weights, strict=True)]
    shift = 0.5 if rule == "midpoint" else 0.0
    return [((step + shift) / steps, 1 / steps) for step in range(steps)]


def _integrated(problem: Problem, points: list[tuple[float, float]]) -> Float[np.ndarray, "sender receiver"]:
    """Scores with gradients at e' + t (e - e'), weighted."""
    wiring = problem.wiring
    graph = wiring.graph
    device = problem.engine.subject.device
    exact = torch.float32 if device.type == "mps" else torch.float64
    scores = torch.zeros(graph.shape, dtype=exact, device=device)
    for batch in problem.batches():
        reference = problem.trace(batch)
        trace = Trace()
        gradients: list[_Gradients] = []
        if [point for point, _ in points] == [1.0]:
            gradients.append(_Gradients.at(problem, batch, None, trace))
        else:
            trace, clean = _own_run(wiring, batch)
            line = trace.embeddings - reference.embeddings
            for group in _groups(points, batch):
                streams = [reference.embeddings + point * line for point, _ in group]
                several = batch.repeated(len(group))
                # Made outside inference mode: what a graph is to keep must not be an inference tensor.
                stream = torch.cat([one.expand_as(line) for one in streams]).clone()
                weights = [weight for _, weight in group]
                gradients += _Gradients.at(problem, several, stream, Trace(), clean).parts(weights)
        with torch.no_grad():
            more = differences(wiring, reference, trace)
            for one in gradients:
                one.add(wiring, more, scores)
    found = scores.cpu().double().numpy() / len(problem.split)
    found[~graph.exists] = np.nan
    return found


def _own_run(wiring: Wiring, batch: Batch) -> tuple[Trace, Tensor]:
    """The subject's own trace and final hidden states, without gradients."""
    trace = Trace()
    with ExitStack() as stack, torch.no_grad():
        keep(stack, wiring, trace, batch.tokens.shape)
        return trace, wiring.hidden(batch.tokens, batch.valid)


def _groups(points: list[tuple[float, float]], batch: Batch) -> Iterator[list[tuple[float, float]]]:
    """Points that share a batch: together they have at most so many tokens."""
    room = max(1, TOKENS_IN_A_BATCH // batch.tokens.numel()) if batch.tokens.device.type == "cpu" else len(points)
    for start in range(0, len(points), room):
        yield points[start : start + room]


@dataclass
class _Gradients:
    """dm of a batch with respect to what projections give, what MLPs take in, and what enters the last norm.

    `inputs` are the residual streams at the norms before attention and MLP, by layer.
    """

    projected: dict[tuple[int, int], Tensor]
    mlp: dict[int, Tensor]
    final: Tensor
    attention_input: Mapping[int, Tensor]
    mlp_input: Mapping[int, Tensor]
    weight: float = 1.0

    @classmethod
    def at(
        cls, problem: Problem, batch: Batch, stream: Tensor | None, trace: Trace, clean: Tensor | None = None
    ) -> "_Gradients":
        """Those of a run on a batch from `stream` on (None: its own embeddings), whose trace goes into `trace`.

        `clean` are final hidden states of the subject, for KL.
        """
        wiring = problem.wiring
        asked: dict[Any, Tensor] = {}
        with ExitStack() as stack, torch.inference_mode(mode=False), torch.enable_grad():
            stack.enter_context(frozen(problem.engine.subject.model))
            begin = functools.partial(_begin, stream)
            stack.callback(wiring.blocks[0].register_forward_pre_hook(begin, with_kwargs=True).remove)
            for number, layer in enumerate(wiring.layers):
                for place, module in enumerate(layer.projections):
                    put = functools.partial(_put, asked, ("projected", number, place))
                    stack.callback(module.register_forward_hook(put).remove)
                apart = functools.partial(_apart, asked, ("mlp", number))
                stack.callback(layer.entry.register_forward_pre_hook(apart, with_kwargs=True).remove)
            last = functools.partial(_apart, asked, "final")
            stack.callback(wiring.norm.module.register_forward_pre_hook(last, with_kwargs=True).remove)
            keep(stack, wiring, trace, batch.tokens.shape)
            hidden = wiring.hidden(batch.tokens, batch.valid)
            if clean is not None:
                clean = clean.repeat(len(batch.tokens) // len(clean), 1, 1)
            value = problem.value(hidden, batch, clean).sum()
            found = dict(zip(asked, torch.autograd.grad(value, list(asked.values())), strict=True))
        detached = trace.detached()
        trace.__dict__.update(detached.__dict__)
        shape = batch.tokens.shape
        return cls(
            {key[1:]: value for key, value in found.items() if key[0] == "projected"},
            {key[1]: value.reshape(*shape, -1) for key, value in found.items() if key[0] == "mlp"},
            found["final"],
            detached.attention_input,
            detached.mlp_input,
        )

    def parts(self, weights: list[float]) -> list["_Gradients"]:
        """Those of the equal parts of a batch, each with its weight."""
        count = len(weights)

        def cut(tensors: Mapping[Any, Tensor]) -> list[dict[Any, Tensor]]:
            chunks = {key: tensor.chunk(count) for key, tensor in tensors.items()}
            return [{key: found[place] for key, found in chunks.items()} for place in range(count)]

        columns = (cut(part) for part in (self.projected, self.mlp, self.attention_input, self.mlp_input))
        return [
            _Gradients(projected, mlp, final, attention_input, mlp_input, weight)
            for projected, mlp, attention_input, mlp_input, final, weight in zip(
                *columns, self.final.chunk(count), weights, strict=True
            )
        ]

    def add(self, wiring: Wiring, more: Float[Tensor, "sender pair position width"], scores: Tensor) -> None:
        """Add the scores of a batch, from what senders write `more` in the reference."""
        graph = wiring.graph
        rows = more.flatten(1, 2)
        means = rows.mean(dim=-1)
        for number, layer in enumerate(wiring.layers):
            reading, mlp = graph.reading(number), graph.mlp(number)
            heard = graph.heard[reading.start]
            stream = self.attention_input[number].flatten(0, 1)
            parts = self._of_streams(layer, number)
            scores[:heard, reading] += self.weight * _products(rows[:heard], means[:heard], layer.norm, stream, parts)
            heard = graph.heard[mlp]
            stream = self.mlp_input[number].flatten(0, 1)
            gradient = self.mlp[number].flatten(0, 1)[None]
            scores[:heard, mlp : mlp + 1] += self.weight * _products(
                rows[:heard], means[:heard], layer.mlp_norm, stream, gradient
            )
        final = self.final.flatten()
        scores[:, graph.logits] += self.weight * (rows.flatten(1) @ final)

    def _of_streams(self, layer: Layer, number: int) -> Float[Tensor, "receiver row width"]:
        """Gradients with respect to what every receiver of attention takes in, behind the norm."""
        found = []
        for stream, place in enumerate(layer.streams):
            gradient = self.projected[number, place.projection]
            columns = place.columns.to(gradient.device)
            own = gradient.flatten(0, -2)[:, columns.flatten()].unflatten(-1, columns.shape).transpose(0, 1)
            found.append(torch.bmm(own, layer.weight(stream)))
        return torch.cat(found)


def _products(
    more: Float[Tensor, "sender row width"],
    means: Float[Tensor, "sender row"],
    norm: Norm,
    stream: Float[Tensor, "row width"],
    gradients: Float[Tensor, "receiver row width"],
) -> Float[Tensor, "sender receiver"]:
    """<what a sender writes more, gradient with respect to the stream>, from gradients behind the norm at `stream`.

    With w the gradient times the norm's weight, that with respect to the stream is (w - mean w - x̂ mean(w x̂)) / σ.
    It is never made: its last two terms are products of numbers a row.
    """
    if norm.weight is None:
        whole = norm.pulled_back(stream, gradients)
        return more.flatten(1) @ whole.flatten(1).T
    unit, inverse = norm.unit(stream)
    weighted = gradients * (norm.weight * inverse)
    found = more.flatten(1) @ weighted.flatten(1).T
    # By row: (row, sender, width) @ (row, width, 1).
    of_senders = torch.einsum("srw,rw->sr", more, unit)
    of_receivers = torch.einsum("grw,rw->gr", weighted, unit)
    found -= of_senders @ of_receivers.T / unit.shape[-1]
    if norm.centred:
        found -= means @ weighted.sum(dim=-1).T
    return found


def _begin(
    stream: Tensor | None, _: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Start the graph at what enters the first block."""
    own = first_of(inputs, options)
    given = (own if stream is None else stream.reshape(own.shape)).detach().requires_grad_(True)
    if inputs:
        return (given, *inputs[1:]), options
    return inputs, {**options, next(name for name in options if options[name] is own): given}


def _put(asked: dict[Any, Tensor], key: Any, _: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
    asked[key] = output


def _apart(
    asked: dict[Any, Tensor], key: Any, _: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a module takes in as a tensor of its own, which nothing else reads: its gradient is the module's alone."""
    own = first_of(inputs, options)
    given = asked[key] = own.view_as(own)
    if inputs:
        return (given, *inputs[1:]), options
    return inputs, {**options, next(name for name in options if options[name] is own): given}
