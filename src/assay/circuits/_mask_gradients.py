"""Integrated mask gradients: scores from gradients of circuits in which every edge is ablated a part of the way."""

import functools
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.circuits._attribution import Gradients, Rule, check_steps, means_of, no_scores, nodes, own_run
from assay.circuits._problem import Batch, Problem
from assay.circuits._run import Trace, differences, first_of, with_given
from assay.circuits._wiring import Wiring


@dataclass
class IntegratedMaskGradients:
    """Mask gradients: the gradient with respect to how far each edge is ablated, averaged while all of them are.

    With every edge ablated to t in [0, 1], receiver r takes in x_r(t) = sum over s of (1 - t) c_s(t) + t c'_s, plus
    biases; c_s(t) is what the sender writes in that run, and c'_s what it writes in the reference.

    score(s -> r) = integral over t from 0 to 1 of <c'_s - c_s(t), dm/d x_r at t>, summed over positions, mean over
    pairs. Over all edges it is complete: they sum to m(all ablated) - m(subject), up to the error of the `rule`, which
    takes `steps` points. Works with every ablation and measure. A score is no effect of the edge alone: most of it is
    collected where the others are ablated too.

    Source: mask gradients with integrated gradients in auto-circuit (Miller, Chughtai and Saunders, arXiv 2407.08734).
    Differences: weights of the points sum to 1 (there, steps + 1 points of weight 1), and the default rule takes
    midpoints; the sign is that of m; and a score is a mean over pairs, whatever the batches.
    """

    steps: int = 5
    rule: Rule = "midpoint"

    complete: ClassVar[Literal["all"]] = "all"

    def check(self, problem: Problem) -> None:
        """Raise AssayError for a number of steps or a rule that there is not."""
        check_steps(self.steps, self.rule)

    def scores(self, problem: Problem) -> Float[np.ndarray, "sender receiver"]:
        """The score of every edge, in the units of m; NaN where there is none."""
        self.check(problem)
        wiring = problem.wiring
        scores = no_scores(problem)
        for batch in problem.batches():
            reference = problem.trace(batch)
            clean = own_run(wiring, batch)[1] if problem.measure == "kl" else None
            for share, weight in nodes(self.rule, self.steps):
                trace = Trace()
                with ExitStack() as stack:
                    _ablate(stack, wiring, batch, reference, share)
                    gradients = Gradients.at(problem, batch, None, trace, clean)
                with torch.no_grad():
                    gradients.add(wiring, weight * differences(wiring, reference, trace), scores)
        return means_of(problem, scores)


def _ablate(stack: ExitStack, wiring: Wiring, batch: Batch, reference: Trace, share: float) -> None:
    """Until the stack is closed, every receiver takes in a share of the reference and the rest of its own stream.

    Receivers that read the same stream take in the same, so that it is enough to mix what enters their norm.
    """
    entering: dict[nn.Module, Tensor] = {wiring.norm.module: reference.final}
    for number, layer in enumerate(wiring.layers):
        entering[layer.norm.place] = reference.attention_input[number]
        entering[layer.mlp_norm.place] = reference.mlp_input[number]
    for module, stream in entering.items():
        hook = functools.partial(_mix, stream.expand(*batch.tokens.shape, -1), share)
        stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)


def _mix(
    reference: Tensor, share: float, _: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    own = first_of(inputs, options)
    return with_given(inputs, options, (1 - share) * own + share * reference.reshape(own.shape))
