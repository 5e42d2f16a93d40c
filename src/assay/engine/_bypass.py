"""Finding attention that an architecture computes beside transformers' AttentionInterface."""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


class Bypass(TorchDispatchMode):
    """Notes in which modules attention weights are computed: a softmax or a fused attention within an attention module.

    Modules are taken for attention by the name of their class. Attention over layers instead of positions (a residual
    stream made so) is none.
    """

    def __init__(self) -> None:
        super().__init__()
        self._within: list[nn.Module] = []
        self._found: list[tuple[nn.Module, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if ("softmax" in name and "log_softmax" not in name) or "scaled_dot_product" in name:
            self._found.append(tuple(self._within))
        return func(*args, **(kwargs or {}))

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Within the block, passes of a model are watched."""
        with ExitStack() as stack:
            for module in model.modules():
                if "attention" in type(module).__name__.lower() and "residual" not in type(module).__name__.lower():
                    stack.callback(module.register_forward_pre_hook(lambda own, _: self._within.append(own)).remove)
                    after = module.register_forward_hook(lambda *_: self._leave(), always_call=True)
                    stack.callback(after.remove)
            stack.enter_context(self)
            yield

    def _leave(self) -> None:
        self._within.pop()

    def around(self, met: Collection[nn.Module]) -> str | None:
        """The class of an attention module that was not `met` and is in none of those; None if there is none.

        A block around one that was met is no attention itself, whatever it is called.
        """
        known = {id(module) for module in met}
        for within in self._found:
            if any(id(module) in known for module in within):
                continue
            alone = [module for module in within if not any(id(child) in known for child in module.modules())]
            if alone:
                return type(alone[-1]).__name__
        return None
