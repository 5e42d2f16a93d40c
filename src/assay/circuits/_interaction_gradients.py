"""Gradient interaction modifications: edge attribution with a backward pass that looks through self-repair."""

import functools
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from assay._errors import AssayError
from assay.circuits._attribution import Gradients, check_gradient, means_of, no_scores
from assay.circuits._parameters import check_number
from assay.circuits._problem import Problem
from assay.circuits._run import Trace, differences
from assay.circuits._wiring import Layer, Norm, Wiring
from assay.engine import Edit, Head, instead
from assay.engine._attention import Plan, in_force

QUERIES_AND_KEYS, VALUES, GATE = 1 / 4, 1 / 2, 1 / 2
"""What is left of the gradients of factors: of a pattern times values, of queries times keys in the pattern, and of
the two branches of a gated MLP."""


@dataclass
class InteractionGradients:
    """GIM: edge attribution at the subject's own run, with another backward pass.

    score(s -> r) = <c'_s - c_s, g_r>, summed over positions, mean over pairs, as in `EdgeAttribution`, where g_r is
    dm/d input_r by rules of its own:

    - the scale of a norm, 1/σ, is a constant;
    - the gradient of attention's softmax is taken at a `temperature` T: ds_i = p_i (dp_i - sum over j of p_j dp_j),
      with p = softmax(s / T) there in place of softmax(s), so that a key which has all the attention still counts;
    - factors share a gradient: 1/2 of it goes to values, 1/4 to queries and to keys, and 1/2 to each branch of a gated
      MLP, which is 1/2 to what the MLP takes in.

    The forward pass is the subject's own. Scores are in the units of m, but no estimates of effects: by the shares,
    edges into queries, keys and values are smaller than those into the logits. Their ranks are meant.

    Source: Edin et al., arXiv 2505.17630, section 4, as in the code of the authors (attention.py, mlp.py, layernorm.py
    and softmax_tsg of their repository `gim`), where, as here, the gradient at T is not divided by T. Differences: the
    package `gim-explain` up to 0.1.4 leaves MLPs as they are and does, in a model of transformers, either the shares
    (SDPA) or the temperature (eager), never both; the sign is that of m; a score is a mean over pairs.
    Raises AssayError for `measure="kl"`, whose gradient is 0 at the subject itself, and for an architecture with
    attention sinks, norms that are no LayerNorm or RMSNorm, or an MLP of which it was not found whether it is gated.
    """

    temperature: float = 2.0

    def check(self, problem: Problem) -> None:
        """Raise AssayError for a temperature, a measure or an architecture that it cannot work with."""
        check_number("temperature", self.temperature, lambda value: 1 <= value < float("inf"), "a number of at least 1")
        check_gradient(problem, "gim")
        self._gates(problem)

    def _gates(self, problem: Problem) -> tuple[bool, ...]:
        """Which layers have gated MLPs. Raises AssayError for an architecture that it cannot work with."""
        wiring = problem.wiring
        subject = problem.engine.subject
        who = f"method 'gim': {type(subject.model).__name__} ({subject.name!r})"
        if any(norm.weight is None for norm in _norms(wiring)):
            raise AssayError(f"{who} has a norm that is no LayerNorm or RMSNorm; use method='eap-ig'.")
        batch = next(iter(problem.batches(rows=1)))
        met: list[list[nn.Module]] = [[] for _ in wiring.layers]
        with ExitStack() as stack:
            for layer, linear in zip(wiring.layers, met, strict=True):
                for module in dict.fromkeys((*layer.entry.modules(), *layer.mlp.modules())):
                    if isinstance(module, nn.Linear | Conv1D):
                        hook = functools.partial(_note, linear)
                        stack.callback(module.register_forward_hook(hook).remove)
            run = problem.engine.run(batch.tokens, batch.valid, read=("patterns",), logits=False)
        if any(bool((pattern.sum(dim=-1) - 1).abs().max() > 1e-2) for pattern in run.patterns.values()):
            raise AssayError(f"{who} has patterns that do not add up to 1 (attention sinks); use method='eap-ig'.")
        found = []
        for number, linear in enumerate(met):
            inner = sum(_sizes(module)[1] for module in linear[:-1])
            taken = _sizes(linear[-1])[0] if linear else 0
            if not inner or inner not in (taken, 2 * taken):
                raise AssayError(
                    f"{who}: whether the MLP of layer {number} is gated was not found (it is no linear maps into it "
                    "and one out of it); use method='eap-ig'."
                )
            found.append(inner == 2 * taken)
        return tuple(found)

    def scores(self, problem: Problem) -> Float[np.ndarray, "sender receiver"]:
        """The score of every edge; NaN where there is none."""
        self.check(problem)
        gates = self._gates(problem)
        wiring = problem.wiring
        held = replace(wiring, layers=tuple(_held(layer) for layer in wiring.layers))
        scores = no_scores(problem)
        for batch in problem.batches():
            reference, trace = problem.trace(batch), Trace()
            with ExitStack() as stack:
                self._modify(stack, problem, gates)
                gradients = Gradients.at(problem, batch, None, trace)
            with torch.no_grad():
                gradients.add(held, differences(wiring, reference, trace), scores)
        return means_of(problem, scores)

    def _modify(self, stack: ExitStack, problem: Problem, gates: tuple[bool, ...]) -> None:
        """Until the stack is closed, gradients are taken by the rules."""
        wiring, engine = problem.wiring, problem.engine
        for norm in {norm.module: norm for norm in _norms(wiring)}.values():
            stack.enter_context(instead(norm.module, functools.partial(_at_scale, norm, norm.module.forward)))
        for layer, gated in zip(wiring.layers, gates, strict=True):
            if gated:
                stack.callback(layer.mlp.register_forward_hook(_halve).remove)
        less = functools.partial(_part_of_gradient, share=QUERIES_AND_KEYS)
        rules: dict[str, Callable[..., Tensor]] = {
            "queries": less,
            "keys": less,
            "values": functools.partial(_part_of_gradient, share=VALUES),
            "pattern": functools.partial(_tempered, temperature=self.temperature),
        }
        layers = {id(module): number for number, module in enumerate(engine.attentions)}
        edits = {
            number: tuple(Edit(Head(number, head), **rules) for head in range(wiring.graph.heads))
            for number in layers.values()
        }
        stack.enter_context(in_force(engine.subject.model, Plan(layers, edits)))


def _norms(wiring: Wiring) -> list[Norm]:
    of_layers = [norm for layer in wiring.layers for norm in (layer.norm, layer.mlp_norm, layer.after, layer.mlp_after)]
    return [wiring.norm, *(norm for norm in of_layers if norm is not None)]


def _held(layer: Layer) -> Layer:
    return replace(layer, norm=replace(layer.norm, held=True), mlp_norm=replace(layer.mlp_norm, held=True))


def _note(met: list[nn.Module], module: nn.Module, *_: Any) -> None:
    met.append(module)


def _sizes(module: nn.Module) -> tuple[int, int]:
    """How many numbers a linear map takes and gives."""
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    assert isinstance(module, nn.Linear)
    return module.in_features, module.out_features


def _at_scale(norm: Norm, own: Callable[[Tensor], Tensor], stream: Tensor, *_: Any) -> Tensor:
    """What a norm gives, with the gradients of one whose scale is a constant."""
    assert norm.weight is not None
    centre = stream - stream.mean(dim=-1, keepdim=True) if norm.centred else stream
    linear = centre * norm.unit(stream)[1].detach() * norm.weight
    return own(stream).detach() + (linear - linear.detach())


def _part_of_gradient(states: Tensor, share: float) -> Tensor:
    return states.detach() + share * (states - states.detach())


def _halve(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    if isinstance(output, tuple):
        return (_part_of_gradient(output[0], GATE), *output[1:])
    return _part_of_gradient(output, GATE)


def _tempered(pattern: Tensor, _: Tensor, temperature: float) -> Tensor:
    found: Tensor = _Tempered.apply(pattern, temperature)
    return found


class _Tempered(torch.autograd.Function):
    """A pattern, with such a gradient that the softmax before it passes on the one at a temperature.

    With p = softmax(s), q = softmax(s / T) is p^(1/T), normalised. Softmax passes p (g - <p, g>) on, and h = q (g -
    <q, g>) is what it should: it does for h / p, as h sums to 0.
    """

    @staticmethod
    def forward(context: Any, pattern: Tensor, temperature: float) -> Tensor:
        context.save_for_backward(pattern.clone())
        context.temperature = temperature
        return pattern.clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (pattern,) = context.saved_tensors
        (gradient,) = gradients
        warm = pattern ** (1 / context.temperature)
        warm = warm / warm.sum(dim=-1, keepdim=True)
        wanted = warm * (gradient - (warm * gradient).sum(dim=-1, keepdim=True))
        return torch.where(pattern > 0, wanted / pattern, 0), None
