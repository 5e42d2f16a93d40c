"""A hash of all that an object does: of its parameters to the last byte, and of its code.

Code is taken as it is loaded: the bytecode of a function, what it has closed over, its defaults, and the globals that
it names, down to the code of others, which is taken by name. So a class that was edited is another one, in a notebook
as in a file, and so is one whose helper was edited, in whatever file. Others are Python, Assay, and every installed
package, which stands for itself with its version and its list of files.
"""

import copyreg
import dis
import functools
import hashlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from importlib.metadata import distribution, packages_distributions
from inspect import signature
from pathlib import Path
from types import CodeType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), type(NotImplemented))
"""Types whose values are written in full by repr."""

_STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib")).resolve()

_GENERATED = "__create_fn__"
"""In what function dataclasses makes the methods that follow from the fields."""


class NotHashableError(ValueError):
    """An object that cannot be told from another one in another run; the message says why."""


def fingerprint(value: object, *, unfitted: bool = False) -> str:
    """A hash (64 hexadecimal digits) that is the same, in this run and others, for what does the same.

    It covers every array, tensor and torch module that is held, however deep, hooks included, and the code of the
    classes and functions in use. With `unfitted`, what the object itself learned is left out: attributes that end in
    `_` and are no parameters, which `fit` makes anew. Raises NotHashableError for what cannot be copied (an open file,
    a generator, a lock) and for code that cannot be followed.
    """
    try:
        return _Digests().of_instance(value, unfitted=unfitted).hex()
    except RecursionError:
        raise NotHashableError(f"{type(value).__name__} is nested too deeply") from None


def fingerprint_or_reason(value: object, *, unfitted: bool = False) -> str | NotHashableError:
    """The fingerprint of an object, or why there is none."""
    try:
        return fingerprint(value, unfitted=unfitted)
    except NotHashableError as reason:
        return reason


class _Digests:
    """Digests of objects, each made once. An object that holds itself counts there by how far up it is."""

    def __init__(self) -> None:
        self._done: dict[int, bytes] = {}
        self._open: dict[int, int] = {}
        self._kept: list[object] = []

    def of(self, value: Any) -> bytes:
        """The digest of anything."""
        if type(value) in _PLAIN:
            return _digest(type(value).__name__, repr(value))
        key = id(value)
        if key in self._done:
            return self._done[key]
        if key in self._open:
            return _digest("again", str(len(self._open) - self._open[key]))
        self._open[key] = len(self._open)
        self._kept.append(value)  # an object that is gone would leave its id to another
        try:
            self._done[key] = self._of_one(value)
        finally:
            del self._open[key]
        return self._done[key]

    def of_instance(self, value: Any, *, unfitted: bool = False) -> bytes:
        """The digest of an object by what a copy of it would be made of."""
        if not unfitted or type(value) in _PLAIN:
            return self.of(value)
        return self._of_object(value, set(signature(type(value)).parameters))

    def _all(self, what: str, *parts: Any) -> bytes:
        return _digest(what, *map(self.of, parts))

    def _of_one(self, value: Any) -> bytes:  # noqa: PLR0911, PLR0912  (a case a type)
        match value:
            case tuple() | list() if type(value) in (tuple, list):
                return self._all(type(value).__name__, *value)
            case dict() | MappingProxyType() if type(value) in (dict, MappingProxyType):
                return self._all("dict", *(part for pair in value.items() for part in pair))
            case set() | frozenset() if type(value) in (set, frozenset):
                return _digest("set", *sorted(map(self.of, value)))
            case np.ndarray() if type(value) is np.ndarray and not value.dtype.hasobject:
                return _digest("array", value.dtype.str, str(value.shape), np.ascontiguousarray(value).data)
            case Tensor() if type(value) in (Tensor, nn.Parameter) and value.layout is torch.strided:
                return _of_tensor(value)
            case nn.Module():
                return self._of_torch_module(value)
            case CodeType():
                return self._of_code(value)
            case FunctionType():
                return self._of_function(value)
            case MethodType():
                return self._all("method", value.__func__, value.__self__)
            case type():
                return self._of_class(value)
            case ModuleType():
                return self._of_module(value, None)
            case staticmethod() | classmethod():
                return self._all(type(value).__name__, value.__func__)
            case property():
                return self._all("property", value.fget, value.fset, value.fdel)
            case functools.cached_property():
                return self._all("cached property", value.func)
        return self._of_object(value, None)

    def _of_object(self, value: Any, parameters: set[str] | None) -> bytes:
        """Of anything else: what `copy` and `pickle` make another one of, learned attributes left out if asked."""
        what = type(value).__name__
        try:
            reduce = copyreg.dispatch_table.get(type(value))
            reduced = value.__reduce_ex__(4) if reduce is None else reduce(value)
        except Exception as error:
            raise NotHashableError(f"a {what} cannot be hashed ({error})") from None
        if isinstance(reduced, str):
            wrapped = getattr(value, "__wrapped__", None)  # a cached function is known to pickle by its name alone
            return _digest(
                "name", str(getattr(value, "__module__", "")), reduced, self.of(type(value)), self.of(wrapped)
            )
        make, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
        if parameters is not None and isinstance(state, dict):
            state = {key: held for key, held in state.items() if key in parameters or not key.endswith("_")}
        if isinstance(state, dict):
            return _digest(
                "object",
                *map(self.of, (make, arguments)),
                *(self._of_attribute(what, key, held) for key, held in state.items()),
                *map(self.of, (list(items or ()), list(pairs or ()))),
            )
        return self._all("object", make, arguments, state, list(items or ()), list(pairs or ()))

    def _of_attribute(self, what: str, name: object, held: object) -> bytes:
        try:
            return self._all("attribute", name, held)
        except NotHashableError as error:
            raise NotHashableError(f"{what}.{name}: {error}") from None

    def _of_torch_module(self, module: nn.Module) -> bytes:
        """Of a torch module: its class and attributes; hooks by what they are, for torch numbers them as it goes."""
        state = {
            name: list(held.values()) if name.endswith(("_hooks", "_with_kwargs", "_always_called")) else held
            for name, held in vars(module).items()
        }
        what = type(module).__name__
        return _digest(
            "module", self.of(type(module)), *(self._of_attribute(what, name, held) for name, held in state.items())
        )

    def _of_class(self, kind: type) -> bytes:
        home = origin(kind.__module__)
        if home is not None:
            return _digest("class", home, kind.__module__, kind.__qualname__)
        members = {name: member for name, member in vars(kind).items() if _counts(name, member)}
        return self._all("class", kind.__qualname__, type(kind), kind.__bases__, members)

    def _of_function(self, function: FunctionType) -> bytes:
        code, space = function.__code__, function.__globals__
        if hasattr(function, "__wrapped__") and _only_checks_types(function):
            return self.of(function.__wrapped__)
        home = origin(space.get("__name__"))
        filled = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
        held = (function.__defaults__, function.__kwdefaults__, filled)
        if home is not None:
            return _digest("function", home, str(space["__name__"]), code.co_qualname, *map(self.of, held))
        names = frozenset(_names(code))
        found = {name: space[name] for name in sorted(_globals(code)) if name in space}
        _check_imports(code, space.get("__package__"))
        return _digest(
            "function",
            *map(self.of, (code, *held)),
            *(
                _digest(name, self._of_module(one, names) if isinstance(one, ModuleType) else self.of(one))
                for name, one in found.items()
            ),
        )

    def _of_module(self, module: ModuleType, names: frozenset[str] | None) -> bytes:
        """Of a Python module that code with these names refers to: what they name in it."""
        home = origin(module.__name__)
        if home is not None:
            return _digest("python module", home, module.__name__)
        if names is None:
            raise NotHashableError(f"the Python module {module.__name__} cannot be hashed as a value")
        found = {name: getattr(module, name) for name in sorted(names) if hasattr(module, name)}
        return _digest(
            "python module",
            *(
                _digest(name, self._of_module(one, names) if isinstance(one, ModuleType) else self.of(one))
                for name, one in found.items()
            ),
        )

    def _of_code(self, code: CodeType) -> bytes:
        return self._all(
            "code", code.co_code, code.co_consts, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars,
            code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags, code.co_exceptiontable,
        )  # fmt: skip


def _digest(*parts: str | bytes | memoryview) -> bytes:
    """A hash of parts; their lengths go in, so that no two lists of parts are written alike."""
    found = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        found.update(str(data.nbytes if isinstance(data, memoryview) else len(data)).encode() + b":")
        found.update(data)
    return found.digest()


def _of_tensor(value: Tensor) -> bytes:
    if value.is_meta or value.is_quantized:
        raise NotHashableError(f"a tensor on the device {value.device} in {value.dtype} has no bytes to hash")
    plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous().flatten()
    return _digest("tensor", str(value.dtype), str(tuple(value.shape)), plain.view(torch.uint8).numpy().data)


@functools.cache
def origin(module: str | None) -> str | None:
    """Whose code a Python module is, with its version; None where it is nobody's but the user's."""
    top = (module or "").partition(".")[0]
    if top == "assay":
        return top
    file = _file(top)
    if file is None:
        return _python() if top in sys.stdlib_module_names else None
    if not {"site-packages", "dist-packages"} & set(file.parts):
        return _python() if file.is_relative_to(_STANDARD_LIBRARY) else None
    names = sorted(set(_distributions().get(top, ())))
    return " ".join(map(_installed, names)) if names else None


def _file(top: str) -> Path | None:
    """The file (of a package without __init__: a folder) that a top module is from; None if it has none."""
    try:
        spec = getattr(sys.modules.get(top), "__spec__", None) or importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    places = (
        [] if spec is None else [spec.origin if spec.has_location else None, *(spec.submodule_search_locations or ())]
    )
    return next((Path(place).resolve() for place in places if place), None)


def _python() -> str:
    return f"python {sys.version_info.major}.{sys.version_info.minor}"


_distributions = functools.cache(packages_distributions)


@functools.cache
def _installed(name: str) -> str:
    """An installed package with its version, and a hash of the list of its files with theirs."""
    found = distribution(name)
    return f"{name} {found.version} {hashlib.sha256((found.read_text('RECORD') or '').encode()).hexdigest()}"


def _counts(name: str, member: object) -> bool:
    """Whether something in a class is of its code, and not what Python or dataclasses wrote beside it."""
    if name.startswith("_abc_"):
        return False
    if isinstance(member, FunctionType):
        return not member.__code__.co_qualname.startswith(_GENERATED)
    return not (name.startswith("__") and name.endswith("__")) or isinstance(
        member, staticmethod | classmethod | property
    )


def _only_checks_types(function: FunctionType) -> bool:
    """Whether a wrapper is there for the types of arguments; such ones hold what no other run has."""
    return function.__code__.co_filename.startswith("<@beartype") or _top(function) in ("beartype", "jaxtyping")


def _top(function: FunctionType) -> str:
    return str(function.__globals__.get("__name__")).partition(".")[0]


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Some code and all that is defined within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _names(code: CodeType) -> Iterator[str]:
    for one in _codes(code):
        yield from one.co_names


def _globals(code: CodeType) -> set[str]:
    """The names that code looks for among the globals."""
    return {
        step.argval
        for one in _codes(code)
        for step in dis.get_instructions(one)
        if step.opname.startswith("LOAD") and ("GLOBAL" in step.opname or step.opname == "LOAD_NAME")
    }


def _check_imports(code: CodeType, package: str | None) -> None:
    """Raise NotHashableError if code imports the user's own when it is run: that is not there to be hashed yet."""
    for one in _codes(code):
        steps = [step for step in dis.get_instructions(one) if step.opname != "EXTENDED_ARG"]
        for place, step in enumerate(steps):
            if step.opname != "IMPORT_NAME":
                continue
            level = steps[place - 2].argval
            name = f"{package}.{step.argval}" if level else step.argval
            if origin(name) is None:
                raise NotHashableError(
                    f"{code.co_qualname} imports {step.argval} while it runs; import it at the top of the file"
                )
