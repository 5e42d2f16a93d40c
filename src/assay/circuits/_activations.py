"""Edge attribution with the gradient averaged while what a sender writes is changed."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.circuits._attribution import Gradients, Rule, check_steps, groups, means_of, no_scores, nodes, own_run
from assay.circuits._problem import Problem
from assay.circuits._run import Trace, differences, first_of, with_given
from assay.circuits._wiring import Wiring


@dataclass
class IntegratedActivationAttribution:
    """EAP-IG on activations: the gradient averaged while the senders of one layer move to the reference.

    score(s -> r) = <c'_s - c_s, mean over t in [0, 1] of dm/d input_r>, where s, and the other heads of its layer with
    it, write c' + t (c - c') and all before them is as in the subject. Summed over positions, mean over pairs. It is
    complete for every such group (the embeddings, the heads of a layer, an MLP): the edges out of it sum to m with all
    of them ablated, less m of the subject, up to the error of the `rule`, which takes `steps` points. Works with every
    ablation: between two activations there is a line where there is none between inputs. Runs resume from the
    sender's layer; there are 1 + 2 x layers x `steps` of them with gradients.

    Source: the variant "EAP-IG-activations" of the code of Hanna, Pezzelle and Belinkov (arXiv 2403.17806), also in
    the benchmark MIB (arXiv 2504.13151). Differences: there an edge's gradient is averaged over the runs of all
    groups, also of those after its sender, which breaks completeness; here over those of its own. They take the right
    ends of equal parts. The sign is that of m, and a score is a mean over pairs, whatever the batches.
    """

    steps: int = 5
    rule: Rule = "midpoint"

    complete: ClassVar[Literal["embeddings"]] = "embeddings"

    def check(self, problem: Problem) -> None:
        """Raise AssayError for a number of steps or a rule that there is not."""
        check_steps(self.steps, self.rule)

    def scores(self, problem: Problem) -> Float[np.ndarray, "sender receiver"]:
        """The score of every edge, in the units of m; NaN where there is none."""
        self.check(problem)
        wiring = problem.wiring
        points = nodes(self.rule, self.steps)
        scores = no_scores(problem)
        for batch in problem.batches():
            reference = problem.trace(batch)
            trace, clean = own_run(wiring, batch)
            with torch.no_grad():
                more = differences(wiring, reference, trace)
            for senders, start, module, ends in _groups(wiring, trace, reference):
                for part in groups(problem, points, batch):
                    several = batch.repeated(len(part))
                    line = torch.cat([_between(*ends, point) for point, _ in part])
                    stream = trace.attention_input[start].repeat(len(part), 1, 1)
                    with ExitStack() as stack:
                        if module is None:
                            stream = line
                        else:
                            _write(stack, module, line, before=module is wiring.layers[start].output)
                        gradients = Gradients.at(problem, several, stream, Trace(), clean, start=start)
                    with torch.no_grad():
                        weights = [weight for _, weight in part]
                        gradients.weighted(weights).add(wiring, more[senders], scores, senders.start)
        return means_of(problem, scores)


def _groups(
    wiring: Wiring, trace: Trace, reference: Trace
) -> Iterator[tuple[slice, int, nn.Module | None, tuple[Tensor, Tensor]]]:
    """Senders that move together, their layer, the module where they write (None: a stream), from where to where."""
    yield slice(0, 1), 0, None, (trace.embeddings, reference.embeddings)
    for number, layer in enumerate(wiring.layers):
        mlp = wiring.graph.sender(number)
        heads = slice(wiring.graph.sender(number, 0), mlp)
        if layer.after is None:
            yield heads, number, layer.output, (trace.heads[number], reference.heads[number])
        else:
            written = (layer.attended(trace.heads[number]), layer.attended(reference.heads[number]))
            yield heads, number, layer.after.module, written
        ends = trace.mlp[number] / layer.mlp_scale, reference.mlp[number] / layer.mlp_scale
        yield slice(mlp, mlp + 1), number, layer.mlp, ends


def _between(own: Tensor, other: Tensor, point: float) -> Tensor:
    """c' + t (c - c'), outside inference mode: what a graph is to keep must not be an inference tensor."""
    return (other + point * (own - other)).expand_as(own).clone()


def _write(stack: ExitStack, module: nn.Module, line: Tensor, *, before: bool) -> None:
    """Until the stack is closed, a module takes in (or gives) what is on a line, with the gradients of its own."""

    def on_line(own: Tensor) -> Tensor:
        return own + (line.reshape(own.shape) - own).detach()

    def enter(_: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return with_given(inputs, options, on_line(first_of(inputs, options)))

    def leave(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        return (on_line(output[0]), *output[1:]) if isinstance(output, tuple) else on_line(output)

    if before:
        stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
    else:
        stack.callback(module.register_forward_hook(leave).remove)
