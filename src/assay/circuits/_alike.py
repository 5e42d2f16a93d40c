"""Where the two inputs of pairs are the same: what a module gives there is computed once."""

from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.circuits._problem import Batch, Problem
from assay.circuits._run import Trace, first_of, with_given
from assay.circuits._wiring import Wiring


@dataclass
class Alike:
    """The first `length` positions of a batch, at which its pairs have the same tokens.

    Decoders look back alone, so that a module gives there what it gave in the counterfactual's run, on the whole line
    between the two inputs. `given` has that of all that works at every position by itself: projections and MLPs. In a
    run within `before` and `after` they are asked for the other positions alone; no gradient passes what is known.
    """

    length: int
    given: dict[nn.Module, Float[Tensor, "pair position width"]] = field(default_factory=dict)

    @classmethod
    def of(cls, problem: Problem, batch: Batch, parts: Collection[str]) -> tuple["Alike", Trace]:
        """That of a batch, with the trace of what ablated edges carry."""
        found = cls(_length(problem, batch))
        with ExitStack() as stack:
            for module in _by_position(problem.wiring) if found.length else ():
                stack.callback(module.register_forward_hook(found._note(batch.tokens.shape), with_kwargs=True).remove)
            return found, problem.trace(batch, parts)

    def _note(self, shape: torch.Size) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
            if isinstance(output, Tensor) and output.shape[:-1] == shape and len(inputs) + len(options) == 1:
                self.given[module] = output[:, : self.length].clone()

        return hook

    def after(self, stack: ExitStack, copies: int = 1) -> None:
        """Until the stack is closed, modules give back whole what they gave of a part, of so many times the batch.

        To be entered before other hooks, which then see the whole.
        """

        def hook(module: nn.Module, _: tuple[Any, ...], output: Tensor) -> Tensor:
            return torch.cat((self.given[module].repeat(copies, 1, 1), output), dim=1)

        for module in self.given:
            stack.callback(module.register_forward_hook(hook).remove)

    def before(self, stack: ExitStack) -> None:
        """Until the stack is closed, modules are asked for a part. To be entered behind other hooks."""

        def hook(_: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
            return with_given(inputs, options, first_of(inputs, options)[:, self.length :].contiguous())

        for module in self.given:
            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)


APART = Alike(0)
"""Inputs that are the same nowhere, or may be."""


def _length(problem: Problem, batch: Batch) -> int:
    """How many positions from the first on are the same in both inputs of all pairs: where nothing has a score."""
    if problem.reference.ablation != "counterfactual" or batch.counterfactuals is None:
        return 0
    return int((batch.tokens != batch.counterfactuals).any(dim=0).int().argmax())


def _by_position(wiring: Wiring) -> list[nn.Module]:
    """The modules that work at every position by itself, and that a pass spends its time in."""
    found: list[nn.Module] = []
    for layer in wiring.layers:
        found += [*layer.projections, layer.output, *([layer.mlp] if layer.entry is layer.mlp else [])]
    return found
