"""What a caller gives is held against the type hints of what was called, so that a wrong type is told at once."""

import functools
import inspect
import os
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from itertools import islice
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, TypeVar

import numpy as np

from assay._errors import AssayError

_P = ParamSpec("_P")
_R = TypeVar("_R")

_WORDS: dict[Any, tuple[str, str]] = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("True or False", "True or False"),
    str: ("a string", "strings"),
    Path: ("a path", "paths"),
    NoneType: ("None", "None"),
}
"""How a type is called: one of it, and several."""

_LOOKED_AT = 1_000
"""Of a long list or table so many items are looked at."""

_MADE_BY = {
    "Certificate": "assay.certify(...)",
    "Circuit": "assay.Circuit(edges=200)",
    "Comparison": "assay.compare(...)",
    "Dictionary": "assay.Dictionary.read(folder)",
    "Proxy": "simplification.fit(...).apply(subject)",
    "SavedProxy": "simplification.fit(...).apply(subject)",
    "Simplification": "assay.SVD(rank=8)",
    "Split": "task.split('iid', 100)",
    "Subject": "assay.load(name), or assay.Subject(model, tokenizer, name),",
    "Task": "assay.tasks.Dyck()",
    "Workers": "assay.Workers(4)",
}
"""An example, by the name of a class, of what gives one."""


def checked(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function, with its arguments held against their hints first: a wrong type raises AssayError.

    A whole number may be of any integer type, a number of any real one; what goes for a list is whatever has a length
    and can be indexed. Shapes are not looked at.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def with_checks(*arguments: _P.args, **options: _P.kwargs) -> _R:
        given = signature.bind(*arguments, **options).arguments
        hints = _hints(function)
        for name, value in given.items():
            if name in hints and signature.parameters[name].kind not in _MANY:
                _check(function.__qualname__, name, value, hints[name])
        return function(*arguments, **options)

    return with_checks


_MANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def check_fields(record: Any) -> None:
    """Hold the fields of a dataclass against their hints; for `__post_init__`. Raises AssayError for a wrong type."""
    hints = _hints(type(record))
    for field in fields(record):
        if field.init and field.name in hints:
            _check(type(record).__name__, field.name, getattr(record, field.name), hints[field.name])


def _hints(owner: Any) -> dict[str, Any]:
    """The hints of a function or class; none where some cannot be found, as in what others derive from ours."""
    if owner not in _known:
        try:
            _known[owner] = typing.get_type_hints(owner)
        except (NameError, TypeError, AttributeError):
            _known[owner] = {}
    return _known[owner]


_known: dict[Any, dict[str, Any]] = {}


def _check(caller: str, name: str, value: object, hint: Any) -> None:
    if type(value) is hint and name != "seed":  # most are, and records are made by the thousand
        return
    if _fits(value, hint):
        if name == "seed" and isinstance(value, Integral) and not -(2**63) <= int(value) < 2**63:
            raise AssayError(f"{caller}(seed={in_short(value)}): must be a whole number of at most 64 bits.")
        if isinstance(value, str | os.PathLike) and Path in (hint, *typing.get_args(hint)) and not _is_path(value):
            raise AssayError(f"{caller}({name}={in_short(str(value))}): no file can be called so; give another path.")
        return
    example = next((f"; {_MADE_BY[part]} gives one" for part in _classes(hint) if part in _MADE_BY), "")
    raise AssayError(f"{caller}({name}={in_short(value)}): must be {_words(hint)}{example}.")


def _is_path(value: "str | os.PathLike[str]") -> bool:
    """Whether the system can be asked for it."""
    try:
        return b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def in_short(value: object) -> str:
    """How a value is named in an error: as it is written if that is short, else by its type."""
    if isinstance(value, NoneType | bool | int | float | str | bytes | list | tuple | set | dict | Path):
        try:
            written = repr(value)
        except Exception:  # what is inside may be anything
            written = ""
        if written and len(written) <= 60 and "\n" not in written:
            return written
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"<{type(value).__name__}>"


def _fits(value: Any, hint: Any) -> bool:  # noqa: PLR0911
    """Whether a value is of a type, as far as that can be told without using it up."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, UnionType):
        return any(_fits(value, part) for part in inner)
    if origin is Literal:
        return any(isinstance(value, type(part)) for part in inner)
    if origin is typing.Annotated:
        return _fits(value, inner[0])
    if origin is type:
        return isinstance(value, type)
    kind = origin or hint
    if kind in (Any, object) or isinstance(kind, TypeVar):
        return True
    if kind in _PLAIN_TYPES:
        return isinstance(value, _PLAIN_TYPES[kind]) and (kind is bool or not isinstance(value, bool | np.bool_))
    if kind is Callable:
        return callable(value)
    if kind is tuple:
        return _is_tuple(value, inner)
    if kind in (Sequence, list, Collection, Iterable):
        return _is_many(value, kind, inner)
    if kind in (Mapping, dict):
        first = islice(value.items(), _LOOKED_AT) if isinstance(value, Mapping) and inner else ()
        return isinstance(value, Mapping) and all(_fits(key, inner[0]) and _fits(item, inner[1]) for key, item in first)
    kind = getattr(kind, "array_type", kind)  # of jaxtyping: the type without the shape
    try:
        return isinstance(value, kind) and not (isinstance(value, type) and getattr(kind, "_is_protocol", False))
    except TypeError:  # a protocol that cannot be asked, a hint of another kind
        return True


_PLAIN_TYPES: dict[Any, Any] = {
    int: Integral,
    float: Real,
    bool: bool | np.bool_,
    str: str,
    None: NoneType,
    NoneType: NoneType,
    Path: os.PathLike,
}
"""What is taken for a plain type."""


def _is_tuple(value: Any, inner: tuple[Any, ...]) -> bool:
    if not isinstance(value, tuple | list):
        return False
    if len(inner) == 2 and inner[1] is Ellipsis:
        return all(_fits(item, inner[0]) for item in value)
    return not inner or (len(value) == len(inner) and all(map(_fits, value, inner)))


def _is_many(value: Any, kind: Any, inner: tuple[Any, ...]) -> bool:
    if isinstance(value, str | bytes | Mapping | type) or not isinstance(value, Iterable):
        return False
    if kind in (Sequence, list) and not (hasattr(value, "__getitem__") and hasattr(value, "__len__")):
        return False
    one_shot = not isinstance(value, Collection)  # a generator would be used up
    return not inner or one_shot or all(_fits(item, inner[0]) for item in islice(value, _LOOKED_AT))


def _words(hint: Any, *, many: bool = False) -> str:  # noqa: PLR0911
    """A type in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, UnionType):
        words = list(dict.fromkeys(_words(part, many=many) for part in inner))
        return ", ".join(words[:-1]) + f" or {words[-1]}" if len(words) > 1 else words[0]
    if origin is Literal:
        return " or ".join(repr(part) for part in inner)
    if origin is typing.Annotated:
        return _words(inner[0], many=many)
    kind = origin or hint
    if kind in _WORDS:
        return _WORDS[kind][many]
    if kind is Callable:
        return "functions" if many else "a function"
    if kind in (Sequence, list, tuple, Collection, Iterable):
        parts = [part for part in inner if part is not Ellipsis]
        of = f" of {_words(parts[0], many=True)}" if len(set(map(str, parts))) == 1 else f" of {len(parts) or 'any'}"
        return f"lists{of}" if many else f"a list{of}"
    if kind in (Mapping, dict):
        return "tables" if many else "a table (a dict)"
    name = getattr(getattr(kind, "array_type", kind), "__name__", str(kind))
    if many:
        return f"{name[:-1]}ies" if name.endswith("y") else f"{name}s"
    return f"a{'n' if name[0] in 'AEIOU' else ''} {name}"


def _classes(hint: Any) -> Iterable[str]:
    """The names of the classes in a hint."""
    yield getattr(hint, "__name__", "")
    for part in typing.get_args(hint):
        yield from _classes(part)
