"""Finding the module that gives back what attention adds to the residual stream."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from assay.engine._hooks import entering

_ULPS = 4
"""How many units in the last place a sum of two or three vectors may be off."""

_DECISIVE = 32
"""From how many units on an addend cannot be taken for rounding."""


@dataclass
class _Seen:
    """What the modules of one block took and gave in a pass: vectors of the shape of what enters the block.

    `given` has the modules that ran once, in the order in which they ended, each with whether it began after attention
    had.
    """

    entered: Tensor | None = None
    taken: list[Tensor] = field(default_factory=list)
    given: dict[str, Tensor] = field(default_factory=dict)
    late: set[str] = field(default_factory=set)
    called: dict[str, int] = field(default_factory=dict)
    left: Tensor | None = None
    attended: bool = False

    def like(self, value: Any) -> Tensor | None:
        """A value as vectors of the residual stream; None if it is none."""
        value = value[0] if isinstance(value, tuple) and value else value
        if self.entered is None or not isinstance(value, Tensor) or not value.is_floating_point():
            return None
        fits = value.numel() == self.entered.numel() and value.shape[-1] == self.entered.shape[-1]
        return value.detach().reshape(self.entered.shape).clone() if fits else None


def added_by_attention(
    blocks: Mapping[int, tuple[nn.Module, nn.Module]], run: Callable[[], None]
) -> dict[int, nn.Module]:
    """The module of each block (given with its attention module) whose output is what attention adds.

    `run` is a pass on a few tokens. The output A of the module is such that x + A, with x what enters the block, is
    what a later module takes in or what leaves the block, or that x + A + M is what leaves it, with M what another
    module gives (an MLP beside attention): so it is after the output projection, and after a norm or a scale on top of
    it. Where attention happens to add nothing, the module is that of the other blocks. Blocks without one are left out.
    """
    seen = {layer: _Seen() for layer in blocks}
    with ExitStack() as stack:
        for layer, (block, attention) in blocks.items():
            _watch(stack, block, attention, seen[layer])
        run()
    names: dict[int, str] = {}
    undecided: dict[int, list[str]] = {}
    for layer, (block, attention) in blocks.items():
        found = {name: _is_added(seen[layer], name) for name in _candidates(block, attention, seen[layer])}
        possible = [name for name, holds in found.items() if holds is not False]
        if possible and found[possible[0]]:
            names[layer] = possible[0]
        else:  # where attention adds nothing, x + M is x + A + M, and an MLP would be taken for it
            undecided[layer] = [name for name in possible if found[name] is None]
    usual = set(names.values())
    for layer, possible in undecided.items():
        names.update((layer, name) for name in possible[::-1] if name in usual)
    return {layer: blocks[layer][0].get_submodule(name) for layer, name in names.items()}


def added_behind(
    blocks: Mapping[int, tuple[nn.Module, nn.Module]], attending: Mapping[int, nn.Module], run: Callable[[], None]
) -> set[int]:
    """The blocks of which x + A + M leaves, with x what enters, A what attention adds, M what a later module gives.

    `blocks` and `run` are those of `added_by_attention`, `attending` what that found.
    """
    seen = {layer: _Seen() for layer in blocks}
    with ExitStack() as stack:
        for layer, (block, attention) in blocks.items():
            _watch(stack, block, attention, seen[layer])
        run()
    found = set()
    for layer, (block, _) in blocks.items():
        own = seen[layer]
        given = {block.get_submodule(name): value for name, value in own.given.items()}
        later = [own.given[name] for name in own.late if name in own.given]
        x, added = own.entered, given.get(attending[layer])
        if x is None or added is None or own.left is None:
            continue
        rounding = max(torch.finfo(value.dtype).eps for value in (x, added))
        if any(_is_sum(own.left, (x, added, more), rounding) for more in later):
            found.add(layer)
    return found


def _watch(stack: ExitStack, block: nn.Module, attention: nn.Module, seen: _Seen) -> None:
    """Until the stack is closed, note what a block and the modules in it take and give."""

    def enter(_: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        residual = entering(inputs, options)
        if isinstance(residual, Tensor):
            seen.entered = residual.detach().clone()

    def leave(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        seen.left = seen.like(output)

    def before(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def note(_: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
            if seen.attended:
                seen.taken += [value for each in (*inputs, *options.values()) if (value := seen.like(each)) is not None]
                seen.late.add(name)
            seen.called[name] = seen.called.get(name, 0) + 1

        return note

    def behind(name: str, module: nn.Module) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def note(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            seen.attended = seen.attended or module is attention
            value = seen.like(output)
            if value is not None:
                seen.given[name] = value

        return note

    stack.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
    for name, module in block.named_modules():
        if module is not block:
            stack.callback(module.register_forward_pre_hook(before(name), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(behind(name, module)).remove)
    stack.callback(block.register_forward_hook(leave).remove)


def _candidates(block: nn.Module, attention: nn.Module, seen: _Seen) -> Iterator[str]:
    """Names in the block: its attention, what is around that, and what began after it, each called once."""
    around = [name for name, module in block.named_modules() if name and attention in module.modules()]
    for name in (*reversed(around), *(name for name in seen.given if name in seen.late)):
        if name in seen.given and seen.called[name] == 1:
            yield name


def _is_added(seen: _Seen, name: str) -> bool | None:
    """Whether what a module gives is what attention adds; None if it gives next to nothing, which tells nothing."""
    x, added = seen.entered, seen.given[name]
    if x is None:
        return False
    rounding = max(torch.finfo(value.dtype).eps for value in (x, added))
    if not bool((added.abs() > _DECISIVE * rounding * (x.abs() + added.abs())).any()):
        return None
    left = [] if seen.left is None else [seen.left]
    if any(_is_sum(value, (x, added), rounding) for value in (*seen.taken, *left)):
        return True
    others = [value for other, value in seen.given.items() if other != name]
    return any(_is_sum(value, (x, added, other), rounding) for value in left for other in others)


def _is_sum(whole: Tensor, parts: Sequence[Tensor], rounding: float) -> bool:
    """Whether a tensor is the sum of others, up to rounding."""
    wide = [part.double() for part in parts]
    size = torch.stack([part.abs() for part in wide]).sum(dim=0)
    difference = (whole.double() - torch.stack(wide).sum(dim=0)).abs()
    return bool((difference <= _ULPS * rounding * size).all())
