"""Edge attribution patching: scores of all edges from gradients, plain and integrated."""

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay._errors import AssayError
from assay.circuits._alike import APART, Alike
from assay.circuits._parameters import check_choice, check_whole
from assay.circuits._problem import Batch, Problem
from assay.circuits._run import (
    BUDGET,
    INPUTS,
    PARTS,
    SENDERS,
    Trace,
    differences,
    first_of,
    keep,
    resume_at,
    with_given,
)
from assay.circuits._wiring import Layer, Norm, Wiring
from assay.engine._frozen import frozen
from assay.engine._kernels import product

Rule = Literal["midpoint", "left", "gauss"]
"""Where an integral over [0, 1] is taken: the middles of equal parts, their left ends (as EAP-IG does), or the nodes of
Gauss and Legendre."""

TOKENS, TOKENS_IN_A_BATCH = 384, 1_024
"""Tokens of a pass with gradients on a CPU, and up to which several steps of an integral share one: more need more
memory and save no time."""

ROWS = 256
"""Tokens for which what senders write is held at a time on a CPU."""


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
        check_gradient(problem, "eap")

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
        check_steps(self.steps, self.rule)
        if not problem.reference.is_another_input:
            raise AssayError(
                f"method 'eap-ig' with ablation={problem.reference.ablation!r}: it needs another input to integrate "
                "towards; use ablation='counterfactual', or method='eap' or 'exact'."
            )

    def scores(self, problem: Problem) -> Float[np.ndarray, "sender receiver"]:
        """The score of every edge, in the units of m; NaN where there is none."""
        self.check(problem)
        return _integrated(problem, nodes(self.rule, self.steps))


def check_gradient(problem: Problem, method: str) -> None:
    """Raise AssayError for a measure without a gradient at the subject's own run."""
    if problem.measure == "kl":
        raise AssayError(
            f"method {method!r} with measure='kl': the gradient of KL is 0 at the subject's own run, so that every "
            "score would be 0; use method='eap-ig', or measure='logit_difference'."
        )


def check_steps(steps: object, rule: object) -> None:
    """Raise AssayError unless there is such a rule and it can take so many steps."""
    check_whole("steps", steps)
    check_choice("rule", rule, get_args(Rule))


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
    scores = no_scores(problem)
    for batch in problem.batches(1, tokens=tokens_of_a_pass(problem)):
        alike, reference = Alike.of(problem, batch, SENDERS)
        # Nothing has a score before a pair's inputs differ, nor behind all that is scored.
        where = slice(alike.length, int(batch.positions.max()) + 1 if len(batch.positions) else None)
        if [point for point, _ in points] == [1.0]:
            trace = Trace()
            gradients = Gradients.at(problem, batch, None, trace, alike=alike)
            _add(wiring, gradients.within(where), reference.within(where), trace.within(where), scores)
            continue
        trace, clean = own_run(wiring, batch, SENDERS, alike)
        line = trace.embeddings - reference.embeddings
        senders = reference.within(where), trace.within(where)
        for group in groups(problem, points, batch, alike.length):
            streams = [reference.embeddings + point * line for point, _ in group]
            several = batch.repeated(len(group))
            # Made outside inference mode: what a graph is to keep must not be an inference tensor.
            stream = torch.cat([one.expand_as(line) for one in streams]).clone()
            found = Gradients.at(problem, several, stream, Trace(), clean, alike=alike)
            gradients = found.weighted([one for _, one in group])
            _add(wiring, gradients.within(where), *senders, scores)
    return means_of(problem, scores)


def tokens_of_a_pass(problem: Problem, most: int = TOKENS) -> int:
    """Tokens of a pass with gradients: as many as are fast, and as what the graph keeps of them has room for."""
    wiring, model = problem.wiring, problem.engine.subject.model
    # A block keeps some sixteen vectors of a token: what enters norms, projections and activations.
    kept = 16 * wiring.width * len(wiring.layers) * torch.finfo(model.dtype).bits // 8
    return _scale(problem.engine.subject.device) * max(1, min(most, BUDGET // kept))


def _scale(device: torch.device) -> int:
    """How many times as much as on a CPU is done at a time."""
    return 1 if device.type == "cpu" else 16


def _add(wiring: Wiring, gradients: "Gradients", reference: Trace, trace: Trace, scores: Tensor) -> None:
    """Add the scores of a batch, a part of it at a time: what all senders write takes more room than all else."""
    pairs, positions, width = trace.embeddings.shape
    of_token = len(wiring.graph.senders) * width * trace.embeddings.element_size()
    room = max(1, _scale(scores.device) * min(ROWS, BUDGET // 4 // of_token) // positions)
    with torch.no_grad():
        for start in range(0, pairs, room):
            rows = slice(start, start + room)
            gradients.rows(rows).add(wiring, differences(wiring, reference.rows(rows), trace.rows(rows)), scores)


def no_scores(problem: Problem) -> Float[Tensor, "sender receiver"]:
    """Zeros to add scores of batches to, on the subject's device."""
    device = problem.engine.subject.device
    exact = torch.float32 if device.type == "mps" else torch.float64
    return torch.zeros(problem.wiring.graph.shape, dtype=exact, device=device)


def means_of(problem: Problem, scores: Float[Tensor, "sender receiver"]) -> Float[np.ndarray, "sender receiver"]:
    """Means over pairs from sums over them; NaN where there is no edge."""
    found = scores.cpu().double().numpy() / len(problem.split)
    found[~problem.wiring.graph.exists] = np.nan
    return found


def own_run(wiring: Wiring, batch: Batch, parts: Collection[str] = PARTS, alike: Alike = APART) -> tuple[Trace, Tensor]:
    """The subject's own trace, with some parts, and its final hidden states, without gradients."""
    trace = Trace()
    with ExitStack() as stack, torch.no_grad():
        alike.after(stack)
        keep(stack, wiring, trace, batch.tokens.shape, parts)
        alike.before(stack)
        return trace, wiring.hidden(batch.tokens, batch.valid)


def groups(
    problem: Problem, points: list[tuple[float, float]], batch: Batch, alike: int = 0
) -> Iterator[list[tuple[float, float]]]:
    """Points that share a pass with gradients; of positions that are `alike` its graph keeps about half."""
    tokens = len(batch.tokens) * (batch.tokens.shape[1] - alike // 2)
    room = max(1, tokens_of_a_pass(problem, TOKENS_IN_A_BATCH) // tokens)
    for start in range(0, len(points), room):
        yield points[start : start + room]


@dataclass
class Gradients:
    """dm of a batch with respect to what projections give, what MLPs take in, and what enters the last norm.

    All are (step, pair, position, …), of several runs on the same pairs whose scores are added up with `weights`.
    `attention_input` and `mlp_input` are the residual streams at the norms before attention and MLP, by layer.
    """

    projected: dict[tuple[int, int], Tensor]
    mlp: dict[int, Tensor]
    final: Tensor
    attention_input: dict[int, Tensor]
    mlp_input: dict[int, Tensor]
    weights: tuple[float, ...] = (1.0,)

    @classmethod
    def at(
        cls,
        problem: Problem,
        batch: Batch,
        stream: Tensor | None,
        trace: Trace,
        clean: Tensor | None = None,
        *,
        start: int = 0,
        alike: Alike = APART,
    ) -> "Gradients":
        """Those of a run on a batch in which `stream` enters block `start`, whose trace goes into `trace`.

        None stands for the subject's own stream. `clean` are final hidden states of the subject, for KL. The batch is
        that of `alike`, some times over; at positions that are alike the gradients mean nothing.
        """
        wiring = problem.wiring
        asked: dict[Any, Tensor] = {}
        with ExitStack() as stack, torch.inference_mode(mode=False), torch.enable_grad():
            stack.enter_context(frozen(problem.engine.subject.model))
            alike.after(stack, copies=1 if clean is None else len(batch.tokens) // len(clean))
            if stream is not None and start:
                resume_at(stack, wiring, start, stream)
            begin = functools.partial(_begin, stream)
            stack.callback(wiring.blocks[start].register_forward_pre_hook(begin, with_kwargs=True).remove)
            for number, layer in list(enumerate(wiring.layers))[start:]:
                for place, module in enumerate(layer.projections):
                    put = functools.partial(_put, asked, ("projected", number, place))
                    stack.callback(module.register_forward_hook(put).remove)
                apart = functools.partial(_apart, asked, ("mlp", number))
                stack.callback(layer.entry.register_forward_pre_hook(apart, with_kwargs=True).remove)
            last = functools.partial(_apart, asked, "final")
            stack.callback(wiring.norm.module.register_forward_pre_hook(last, with_kwargs=True).remove)
            keep(stack, wiring, trace, batch.tokens.shape, (*SENDERS, *INPUTS))
            alike.before(stack)
            hidden = wiring.hidden(batch.tokens, batch.valid)
            if clean is not None:
                clean = clean.repeat(len(batch.tokens) // len(clean), 1, 1)
            value = problem.value(hidden, batch, clean).sum()
            found = dict(zip(asked, torch.autograd.grad(value, list(asked.values())), strict=True))
        trace.__dict__.update(trace.detached().__dict__)
        one = (1, *batch.tokens.shape, -1)
        return cls(
            {key[1:]: value.view(one) for key, value in found.items() if key[0] == "projected"},
            {key[1]: value.reshape(one) for key, value in found.items() if key[0] == "mlp"},
            found["final"].reshape(one),
            {number: stream.reshape(one) for number, stream in trace.attention_input.items()},
            {number: stream.reshape(one) for number, stream in trace.mlp_input.items()},
        )

    def weighted(self, weights: Sequence[float]) -> "Gradients":
        """Those of equal parts of a batch as steps on the same pairs, each with its weight."""
        steps = len(weights)
        found = self._each(lambda tensor: tensor.unflatten(1, (steps, -1)).flatten(0, 1))
        return replace(found, weights=tuple(weights))

    def rows(self, chosen: slice) -> "Gradients":
        """Those of some pairs."""
        return self._each(lambda tensor: tensor[:, chosen])

    def within(self, positions: slice) -> "Gradients":
        """Those of some positions."""
        return self._each(lambda tensor: tensor[:, :, positions])

    def _each(self, function: Callable[[Tensor], Tensor]) -> "Gradients":
        return Gradients(
            {place: function(tensor) for place, tensor in self.projected.items()},
            {number: function(tensor) for number, tensor in self.mlp.items()},
            function(self.final),
            {number: function(tensor) for number, tensor in self.attention_input.items()},
            {number: function(tensor) for number, tensor in self.mlp_input.items()},
            self.weights,
        )

    def add(
        self, wiring: Wiring, more: Float[Tensor, "sender pair position width"], scores: Tensor, first: int = 0
    ) -> None:
        """Add the scores of a batch, from what senders, those from `first` on, write `more` in the reference."""
        graph = wiring.graph
        weights = more.new_tensor(self.weights)[:, None, None]
        rows = more.flatten(1)
        streams = more.new_empty((graph.readers + 1, *more.flatten(1, 2).shape[1:]))
        for number in self.mlp:
            reading, mlp = graph.reading(number), graph.mlp(number)
            heard = min(graph.heard[mlp] - first, len(rows))
            if heard > 0:
                self._of_layer(wiring.layers[number], number, weights, streams)
                # Heads do not feed the attention of their own layer: those scores are left out in the end.
                scores[first : first + heard, reading.start : mlp + 1] += rows[:heard] @ streams.flatten(1).T
        final = (weights * self.final.flatten(1, 2)).sum(dim=0)
        scores[first : first + len(rows), graph.logits] += rows @ final.flatten()

    def _of_layer(
        self, layer: Layer, number: int, weights: Float[Tensor, "step 1 1"], into: Float[Tensor, "receiver row width"]
    ) -> None:
        """Gradients with respect to the stream that every receiver of a layer takes in, before its norm, in sum."""
        stream = self.attention_input[number].flatten(1, 2)
        at = _Point(layer.norm, stream, weights)
        start = 0
        for kind, place in enumerate(layer.streams):
            end = start + len(place.columns)
            own = place.of(self.projected[number, place.projection].flatten(1, 2))
            at.through(own, layer.weight(kind), into[start:end])
            start = end
        at = _Point(layer.mlp_norm, self.mlp_input[number].flatten(1, 2), weights)
        at.behind(self.mlp[number].flatten(1, 2), into[start])


class _Point:
    """Where a norm was in several runs: takes gradients behind it to those before it, weighted and summed over runs.

    With w the gradient times the norm's weight, that with respect to the stream is (w - mean w - x̂ mean(w x̂)) / σ;
    the last term is not there where σ is held.
    """

    def __init__(self, norm: Norm, stream: Float[Tensor, "step row width"], weights: Float[Tensor, "step 1 1"]) -> None:
        self.norm, self.stream, self.weights = norm, stream, weights
        if norm.weight is not None:
            self.unit, inverse = norm.unit(stream)
            self.scale = inverse * weights

    def through(
        self,
        gradients: Float[Tensor, "step row receiver output"],
        weight: Float[Tensor, "receiver output width"],
        into: Float[Tensor, "receiver row width"],
    ) -> None:
        """From gradients of what receivers project by `weight` from what the norm gives."""
        if self.norm.weight is None:
            behind = torch.einsum("srgo,gow->gsrw", gradients, weight)
            before = self.norm.pulled_back(self.stream.flatten(0, 1), behind.flatten(1, 2)).view_as(behind)
            torch.sum(self.weights * before, dim=1, out=into)
            return
        folded = weight * self.norm.weight
        if self.norm.centred:
            folded = folded - folded.mean(dim=-1, keepdim=True)
        scaled = gradients * self.scale[..., None]
        torch.bmm(scaled.sum(dim=0).transpose(0, 1), folded, out=into)
        if self.norm.held:
            return
        along = product(self.unit, folded.flatten(0, 1)).view_as(scaled)
        share = (along * scaled).sum(dim=-1) / folded.shape[-1]
        for unit, one in zip(self.unit, share, strict=True):
            into.addcmul_(unit, one.T[..., None], value=-1)

    def behind(self, gradient: Float[Tensor, "step row width"], into: Float[Tensor, "row width"]) -> None:
        """From the gradient of what the norm gives."""
        if self.norm.weight is None:
            before = self.norm.pulled_back(self.stream.flatten(0, 1), gradient.flatten(0, 1)[None]).view_as(gradient)
            torch.sum(self.weights * before, dim=0, out=into)
            return
        scaled = gradient * self.norm.weight
        if self.norm.centred:
            scaled = scaled - scaled.mean(dim=-1, keepdim=True)
        scaled = scaled * self.scale
        along = 0.0 if self.norm.held else self.unit * (scaled * self.unit).mean(dim=-1, keepdim=True)
        torch.sum(scaled - along, dim=0, out=into)


def _begin(
    stream: Tensor | None, _: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Start the graph at what enters a block."""
    given = first_of(inputs, options) if stream is None else stream
    return with_given(inputs, options, given.detach().requires_grad_(True))


def _put(asked: dict[Any, Tensor], key: Any, _: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
    asked[key] = output


def _apart(
    asked: dict[Any, Tensor], key: Any, _: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a module takes in as a tensor of its own, which nothing else reads: its gradient is the module's alone."""
    own = first_of(inputs, options)
    asked[key] = own.view_as(own)
    return with_given(inputs, options, asked[key])
