"""Observable propagation: what values carry to the answer, with attention taken as it is."""

import functools
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from assay._errors import AssayError
from assay.circuits._attribution import EdgeAttribution
from assay.circuits._graph import Graph
from assay.circuits._problem import Problem


@dataclass
class ObservablePropagation:
    """The observable n = answer - foils, pulled back from the logits through values and MLPs, attention held fixed.

    score(s -> r) = <c'_s - c_s, y_r>, summed over positions, mean over pairs. At the logits y is the unembedding of n
    through the last norm; a head pulls y back through its output and value maps and the pattern that it has on the
    input, an MLP and a norm by their gradient there. Where attention does not move and all else is linear, scores are
    exact and paths add up.

    Queries and keys have no score (NaN): how patterns come about is not explained, and those edges rank last. What
    share of the effects they have `unseen` says, from exact scores.

    Source: Dunefsky and Cohan, arXiv 2312.16291. Differences: the gradient of norms and MLPs at every input, for one
    direction of all inputs; and the differences that the reference makes, for a head's outputs as such. Raises
    AssayError for `measure="kl"`, which is no observable, and for architectures that make keys and values of the same
    numbers (latent attention).
    """

    partial: ClassVar[bool] = True

    def check(self, problem: Problem) -> None:
        """Raise AssayError for a measure that is no linear function of logits, and where values are made with keys."""
        EdgeAttribution().check(problem)
        if problem.wiring.graph.latent:
            subject = problem.engine.subject
            raise AssayError(
                f"method 'observable': {type(subject.model).__name__} ({subject.name!r}) makes keys and values of the "
                "same numbers, so that values cannot be followed with attention held; use method='eap'."
            )

    def scores(self, problem: Problem) -> Float[np.ndarray, "sender receiver"]:
        """The score of every edge, in the units of m; NaN where there is none, and at queries and keys."""
        self.check(problem)
        with ExitStack() as stack:
            for layer in problem.wiring.layers:
                for place, module in enumerate(layer.projections):
                    columns = [one.columns.flatten() for one in layer.streams[:2] if one.projection == place]
                    if columns:
                        hold = functools.partial(_held, torch.cat(columns))
                        stack.callback(module.register_forward_hook(hold).remove)
            found = EdgeAttribution().scores(problem)
        found[:, _of_patterns(problem.wiring.graph)] = np.nan
        return found

    @staticmethod
    def unseen(graph: Graph, exact: Float[np.ndarray, "sender receiver"]) -> float:
        """The share of all |scores| that edges into queries and keys have, from exact scores; in [0, 1]."""
        sizes = np.abs(np.nan_to_num(exact))
        return float(sizes[:, _of_patterns(graph)].sum() / sizes.sum())


def _of_patterns(graph: Graph) -> Bool[np.ndarray, " receiver"]:
    """The receivers that are queries or keys."""
    return np.array([name.endswith((".queries", ".keys")) for name in graph.receivers])


def _held(columns: Tensor, _: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """Columns of an output without gradients."""
    held = torch.zeros(output.shape[-1], dtype=torch.bool, device=output.device)
    held[columns.to(output.device)] = True
    return torch.where(held, output.detach(), output)
