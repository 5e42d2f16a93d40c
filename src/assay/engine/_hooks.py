"""Hooks on blocks, MLPs and projections."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from assay._errors import AssayError


def entering(inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """What a block is called with as the residual stream: its first argument."""
    return inputs[0] if inputs else options.get("hidden_states")


def at_input(
    stream: str,
    layer: int,
    edit: Callable[[Tensor], Tensor] | None,
    keep: dict[int, Tensor] | None,
    shape: torch.Size,
) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]]:
    """A hook that edits and keeps a stream that enters a module: its first argument."""

    def hook(
        module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = entering(inputs, options)
        if not isinstance(given, Tensor) or given.shape[:-1] not in (shape, (shape.numel(),)):
            raise AssayError(
                f"what enters {type(module).__name__} (layer {layer}) is not one vector a token; sites that end in "
                f".{stream} cannot be used with this architecture."
            )
        vectors = _changed(given, edit, keep, layer, shape)
        if inputs:
            return (vectors, *inputs[1:]), options
        return inputs, {**options, "hidden_states": vectors}

    return hook


def at_output(
    stream: str,
    layer: int,
    edit: Callable[[Tensor], Tensor] | None,
    keep: dict[int, Tensor] | None,
    shape: torch.Size,
) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
    """A hook that edits and keeps a stream that a module gives back (the first thing, where it gives several)."""

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        added = output[0] if isinstance(output, tuple) else output
        if not isinstance(added, Tensor) or added.numel() != shape.numel() * added.shape[-1]:
            raise AssayError(
                f"what {type(module).__name__} gives back (layer {layer}) is not one vector a token; sites that end in "
                f".{stream} cannot be used with this architecture."
            )
        vectors = _changed(added, edit, keep, layer, shape)
        return (vectors, *output[1:]) if isinstance(output, tuple) else vectors

    return hook


def _changed(
    given: Tensor,
    edit: Callable[[Tensor], Tensor] | None,
    keep: dict[int, Tensor] | None,
    layer: int,
    shape: torch.Size,
) -> Tensor:
    """Vectors as they are after an edit, in the shape in which they came, kept as (batch, position, width)."""
    vectors = given.reshape(*shape, given.shape[-1])
    if edit is not None:
        vectors = edit(vectors.clone())
    if keep is not None:
        keep[layer] = vectors
    return vectors.reshape(given.shape)


def keep_output(into: dict[int, Any], layer: int) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def keep(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        into[layer] = output

    return keep


def keep_once(
    into: dict[nn.Module, Any], until: Callable[[], bool]
) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    """A hook that keeps what modules give back `until` something has happened, unless they are called twice before."""
    called: set[nn.Module] = set()

    def keep(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if until():
            return
        if module in called:
            into.pop(module, None)
        else:
            into[module] = output
        called.add(module)

    return keep
