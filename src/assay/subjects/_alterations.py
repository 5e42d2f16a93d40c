"""What a model does beside its weights and configuration: hooks, replaced methods, settings of its modules, code."""

import inspect
from collections.abc import Iterator
from types import FunctionType
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as of_all_modules

from assay._fingerprint import origin

_HOOKS = {"_forward_pre_hooks": "forward pre-hook", "_forward_hooks": "forward hook"}

_NAMES = ("name_or_path", "_output_capturing_hooks_installed")
"""Attributes that say where a model is from, and whether transformers' own hooks are on, not what it does."""

_CAPTURING = "transformers.utils.output_capturing"
"""Whose hooks only keep what transformers was asked to give out; they stay on a model, and change nothing."""

_SETTINGS = (type(None), bool, int, float, complex, str)


def alterations(model: nn.Module) -> tuple[str, ...]:
    """What others have put on a model and its file does not say, in words: `"forward hook f on transformer.h.0"`.

    Hooks, forward methods that were replaced (of a module or a whole class), parametrizations, and hooks on all modules
    of this process.
    """
    return tuple(words for words, _ in _found(model))


def behaviour(model: nn.Module) -> list[Any]:
    """All that a model's outputs depend on beside weights and configuration, to be hashed.

    That is what `alterations` names, and the classes, settings and other tensors of its modules.
    """
    kept = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    modules = []
    for name, module in model.named_modules():
        attributes = {**vars(module), **module._buffers}
        held = {
            key: value
            for key, value in attributes.items()
            if (type(value) in _SETTINGS and key not in _NAMES) or (isinstance(value, Tensor) and id(value) not in kept)
        }
        modules.append((name, type(module), held))
    return [modules, [(words, what) for words, what in _found(model)]]


def _found(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for attribute, words in _HOOKS.items():
        for hook in getattr(of_all_modules, f"_global{attribute}").values():
            yield f"{words} {_called(hook)} on all modules", hook
    classes: set[type[nn.Module]] = set()
    for name, module in model.named_modules():
        where = name or "the model"
        for attribute, words in _HOOKS.items():
            for hook in getattr(module, attribute).values():
                if getattr(hook, "__module__", None) == _CAPTURING:
                    continue
                yield f"{words} {_called(hook)} on {where}", hook
        for method, other in vars(module).items():
            if method != "extra_repr" and callable(other) and callable(getattr(type(module), method, None)):
                yield f"{method} of {where} replaced by {_called(other)}", other
        for parameter, chain in getattr(module, "parametrizations", {}).items():
            names = ", ".join(type(one).__name__ for one in chain)
            yield f"{parameter} of {where} parametrized by {names}", type(chain)
        classes.add(type(module))
    for kind in sorted(classes, key=lambda one: (one.__module__, one.__qualname__)):
        function = inspect.unwrap(kind.forward)
        of_others = isinstance(function, FunctionType) and origin(function.__globals__.get("__name__")) is None
        if of_others and all(origin(base.__module__) is not None for base in kind.__mro__):
            yield f"forward of every {kind.__name__} replaced by {_called(function)}", function


def _called(function: object) -> str:
    return getattr(function, "__qualname__", None) or type(function).__name__
