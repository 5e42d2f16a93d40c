"""Faster kernels for passes of a subject, through which gradients go on to what entered the first block."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from assay.engine._kernels import faster, gelu, product


def kernels_of(model: nn.Module) -> dict[nn.Module, Callable[..., Tensor]]:
    """The modules of a model that have a faster kernel, each with it; gradients of their inputs pass.

    A dense layer whose own parameters ask for gradients is computed by its own code where there are gradients.
    """
    return {module: functools.partial(_through, module, kernel) for module, kernel in faster(model).items()}


def _through(module: nn.Module, kernel: Callable[..., Tensor], *given: Tensor, **named: Tensor) -> Tensor:
    (inputs,) = (*given, *named.values())
    if not (torch.is_grad_enabled() and inputs.requires_grad):
        return kernel(inputs)
    if any(parameter.requires_grad for parameter in module.parameters()):
        found: Tensor = type(module).forward(module, inputs)
        return found
    return _Gelu.apply(inputs) if kernel is gelu else _Dense.apply(inputs, module, kernel)


class _Dense(torch.autograd.Function):
    """A dense layer."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, module: nn.Module, kernel: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.module = module
        return kernel(inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        weight: Tensor = ctx.module.weight.detach()
        return product(gradient, weight.t() if isinstance(ctx.module, nn.Linear) else weight), None, None


class _Gelu(torch.autograd.Function):
    """GELU in the tanh approximation, of which nothing but the input is kept."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        ctx.save_for_backward(inputs)
        return gelu(inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (inputs,) = ctx.saved_tensors
        found: Tensor = torch.ops.aten.gelu_backward(gradient, inputs, approximate="tanh")
        return found
