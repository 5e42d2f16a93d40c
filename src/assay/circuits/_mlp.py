"""The last linear map of an MLP, whose inputs are its hidden activations."""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from assay._errors import AssayError
from assay.circuits._wiring import Wiring
from assay.engine import Engine


def last_linear(engine: Engine, wiring: Wiring, layer: int) -> nn.Linear | Conv1D:
    """The linear map whose output is what the MLP of a layer gives. Raises AssayError if there is none."""
    mlp = wiring.layers[layer].mlp
    given: dict[nn.Module, Tensor] = {}

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        given[module] = output[0] if isinstance(output, tuple) else output

    linear = [module for module in mlp.modules() if isinstance(module, nn.Linear | Conv1D)]
    tokens = engine.few_tokens()
    with ExitStack() as stack, torch.inference_mode():
        for module in {mlp, *linear}:
            stack.callback(module.register_forward_hook(note).remove)
        wiring.hidden(tokens, torch.ones_like(tokens))
    whole = given[mlp]
    for module in linear:
        own = given.get(module)
        if own is not None and own.numel() == whole.numel() and torch.equal(own.reshape(whole.shape), whole):
            return module
    who = f"{type(engine.subject.model).__name__} ({engine.subject.name!r})"
    raise AssayError(
        f"{who}: what the MLP of layer {layer} adds is given by no single linear map; it has no hidden activations and "
        "no value vectors."
    )


def inputs_first(module: nn.Linear | Conv1D) -> Tensor:
    """Its weight, a row an input: what one unit of the input adds to the output. A view of the stored one."""
    stored: Tensor = module.weight.detach()
    return stored if isinstance(module, Conv1D) else stored.T
