"""The same functions by faster kernels, where a model's own code takes slower ones than torch has."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import GELUTanh, NewGELUActivation
from transformers.pytorch_utils import Conv1D

LEAST, ROWS = 2_000_000, 16
"""Multiplications and rows from which oneDNN's own overhead is small beside them."""


def faster(model: nn.Module) -> dict[nn.Module, Callable[..., Tensor]]:
    """The modules of a model that have a faster kernel, each with it.

    These are GELUs in the tanh approximation, and dense layers in float32 on a CPU with AVX-512, by oneDNN: torch
    multiplies float32 matrices by MKL, which does not use AVX-512 on every CPU that has it
    (`benchmarks/faster_kernels.py` shows the difference). Other rounding is part of the noise floor.
    """
    found: dict[nn.Module, Callable[..., Tensor]] = {}
    for module in model.modules():
        if type(module) in (NewGELUActivation, GELUTanh):
            found[module] = gelu
        elif type(module) in (nn.Linear, Conv1D) and _plain(module) and _by_onednn():
            found[module] = functools.partial(_dense, module)
    return found


def gelu(input: Tensor) -> Tensor:
    """GELU in the tanh approximation: x / 2 (1 + tanh u) = x sigmoid(2 u) with u = sqrt(2 / pi) (x + 0.044715 x^3).

    On a CPU the sigmoid is several times faster than torch's tanh.
    """
    if input.device.type != "cpu" or input.dtype != torch.float32:
        return nn.functional.gelu(input, approximate="tanh")
    twice = 2 * math.sqrt(2 / math.pi)
    found = torch.addcmul(input.new_tensor(twice), input, input, value=twice * 0.044715)
    return found.mul_(input).sigmoid_().mul_(input)


@contextmanager
def using_kernels(kernels: Mapping[nn.Module, Callable[..., Tensor]]) -> Iterator[None]:
    """Within the block, modules are computed by other kernels; one that has a forward of its own keeps it."""
    free = {module: kernel for module, kernel in kernels.items() if "forward" not in vars(module)}
    for module, kernel in free.items():
        vars(module)["forward"] = kernel
    try:
        yield
    finally:
        for module in free:
            vars(module).pop("forward", None)


def _plain(module: nn.Module) -> bool:
    """Whether a layer's class computes as it always did, and all parameters are plain float32 tensors on a CPU.

    A quantised parameter is of another class; a forward that someone put into the class comes from another module.
    """
    return type(module).forward.__module__ == type(module).__module__ and all(
        type(parameter) is nn.Parameter and parameter.dtype == torch.float32 and parameter.device.type == "cpu"
        for parameter in module.parameters()
    )


@functools.cache
def _by_onednn() -> bool:
    """Whether this torch has oneDNN and otherwise multiplies by MKL, on a CPU where the two may differ."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    inputs, weight, bias = torch.ones(2, 3), torch.ones(4, 3), torch.ones(4)
    try:
        return torch.equal(_product(inputs, weight, bias), torch.full((2, 4), 4.0))
    except (AttributeError, NotImplementedError, RuntimeError):
        return False


def product(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """inputs (…, in) times the transpose of weight (out, in), plus bias (out,), by a faster kernel if one is there."""
    rows = inputs.numel() // max(1, inputs.shape[-1])
    plain = inputs.dtype == torch.float32 and inputs.device.type == "cpu"
    if plain and rows >= ROWS and rows * weight.numel() >= LEAST and torch.backends.mkldnn.enabled and _by_onednn():
        return _product(_as_it_lies(inputs), _as_it_lies(weight), bias)
    return nn.functional.linear(inputs, weight, bias)


def _as_it_lies(tensor: Tensor) -> Tensor:
    """A tensor that is dense in memory: with a part of a wider matrix oneDNN falls back to loops."""
    return tensor if tensor.dim() == 2 and tensor.t().is_contiguous() else tensor.contiguous()


def _product(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return found


def _dense(module: nn.Module, *given: Tensor, **named: Tensor) -> Tensor:
    """What a dense layer gives; by its own code where that is no slower or its inputs are of another kind."""
    own: Any = module
    (inputs,) = (*given, *named.values())
    rows = inputs.numel() // max(1, inputs.shape[-1])
    if (
        rows < ROWS
        or rows * own.weight.numel() < LEAST
        or inputs.dtype != torch.float32
        or inputs.device.type != "cpu"
        or not _plain(module)
        or not torch.backends.mkldnn.enabled
        or torch.is_autocast_enabled("cpu")
    ):
        return type(own).forward(module, inputs)
    return _product(inputs, own.weight if isinstance(module, nn.Linear) else own.weight.t(), own.bias)
