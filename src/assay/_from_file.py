"""A class from a Python file of one's own, without packaging: `path/to/file.py:Name(rank=4)`."""

import ast
import hashlib
import importlib
import re
import sys
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from assay._errors import AssayError, unknown_name

_SPECIFICATION = re.compile(r"(.+\.py):(.*)", re.DOTALL)

_PICKLERS = ("joblib.externals.cloudpickle", "cloudpickle")
"""What sends classes to workers: processes beside this one, and those of a cluster."""


@dataclass(frozen=True)
class FromFile:
    """A class of a file, and the arguments that it is to be called with."""

    made: type
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


def from_file(specification: str) -> FromFile | None:
    """What `file.py:Name` or `file.py:Name(4, centred=True)` stands for; None if the text is not of that form.

    Parameters are literals. The file is run, once for its content. Raises AssayError if there is none, it cannot be
    run, has no such class, or the rest is no call.
    """
    match = _SPECIFICATION.fullmatch(specification.strip())
    if match is None:
        return None
    name, arguments, keywords = _call(match[2], specification)
    module = _module(Path(match[1]).expanduser(), specification)
    made = getattr(module, name, None)
    if made is None:
        known = vars(module).items()
        own = [key for key, value in known if isinstance(value, type) and value.__module__ == module.__name__]
        raise unknown_name(f"class of {match[1]}:", name, own)
    if not isinstance(made, type):
        raise AssayError(f"{specification!r}: {name} is a {type(made).__name__}, not a class.")
    return FromFile(made, arguments, keywords)


def _call(text: str, specification: str) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """Name, arguments and keywords of a call whose arguments are literals."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
        call = node if isinstance(node, ast.Call) else ast.Call(func=node, args=[], keywords=[])
        if not isinstance(call.func, ast.Name) or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError
        arguments = tuple(map(ast.literal_eval, call.args))
        return call.func.id, arguments, {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise AssayError(
            f"{specification!r}: {text!r} is not of the form Name or Name(parameter=value, ...), with numbers, text in "
            "quotes, True, False, None, and lists and the like of them as values."
        ) from None


def _module(path: Path, specification: str) -> ModuleType:
    """A file as a module, run once for its content, and sent to workers as it is."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise AssayError(f"{specification!r}: {str(path)!r} cannot be read ({error.strerror}).") from None
    digest = hashlib.sha256(str(path.resolve()).encode() + b"\0" + content).hexdigest()[:16]
    name = re.sub(r"\W", "_", path.stem) + f"_{digest}"
    known = sys.modules.get(name)
    if known is not None:
        return known
    spec = spec_from_file_location(name, path.resolve())
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        exec(compile(content, str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:  # code of others may raise anything
        del sys.modules[name]
        what = " ".join(str(error).split())
        raise AssayError(f"{str(path)!r} cannot be run: {type(error).__name__}{': ' if what else ''}{what}.") from error
    for pickler in _PICKLERS:
        try:
            importlib.import_module(pickler).register_pickle_by_value(module)
        except ImportError:  # no cluster is used here
            continue
    return module
