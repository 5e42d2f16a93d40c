"""Names for things that third parties can add: simplifications, tasks, metrics.

A package adds its own through an entry point of the matching group, and needs nothing from Assay:

    [project.entry-points."assay.simplifications"]
    my-method = "my_package:MyMethod"

On the command line a class can be taken from a file as well, without any package: `my_file.py:MyMethod(rank=4)`.
"""

import inspect
from ast import literal_eval
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any

from assay._errors import AssayError, unknown_name
from assay._from_file import FromFile, from_file

PATH = "path"
"""The parameter that text may give without its name, where a factory takes it first."""


class Registry:
    """Factories by name, ours and those of entry points of `group`; a name is taken once.

    `members` are what an object of a user's own class needs to have.
    """

    def __init__(self, group: str, noun: str, members: Sequence[str] = ()) -> None:
        self.group = group
        self.noun = noun
        self.members = tuple(members)
        self._own: dict[str, Callable[..., Any]] = {}

    def register(self, name: str, factory: Callable[..., Any]) -> None:
        """Add `factory` under `name`. Raises AssayError if the name is taken."""
        if name in self._own:
            raise AssayError(
                f"{self.noun} {name!r} is registered already, by {self._own[name]!r}; choose another name."
            )
        self._own[name] = factory

    def _outside(self) -> dict[str, Any]:
        """The entry points of the group by name; where importlib_metadata is in use they are of its class."""
        found: dict[str, Any] = {}
        for entry in entry_points(group=self.group):
            other = found.setdefault(entry.name, entry)
            if other.value != entry.value:
                raise AssayError(
                    f"{self.noun} {entry.name!r} is offered by two entry points, {other.value!r} and {entry.value!r}; "
                    "uninstall one of them."
                )
        return found

    def __iter__(self) -> Iterator[str]:
        """All known names, sorted."""
        return iter(sorted({*self._own, *self._outside()}))

    def get(self, name: str) -> Callable[..., Any]:
        """The factory called `name`. Raises AssayError with the nearest names if there is none."""
        outside = self._outside()
        if name in self._own and name in outside:
            raise AssayError(
                f"{self.noun} {name!r} is offered both by Assay and by the entry point {outside[name].value!r}; "
                "rename or uninstall the latter."
            )
        if name in self._own:
            return self._own[name]
        if name in outside:
            try:
                factory: Callable[..., Any] = outside[name].load()
            except Exception as error:
                raise AssayError(
                    f"{self.noun} {name!r} (entry point {outside[name].value!r}) cannot be imported: {error}."
                ) from error
            return factory
        raise unknown_name(self.noun, name, self)

    def name_of(self, factory: type) -> str | None:
        """The name under which a class is known; None if it is not."""
        own = next((name for name, known in self._own.items() if known is factory), None)
        named = (entry for entry in self._outside().values() if entry.attr == factory.__qualname__)
        return own or next((entry.name for entry in named if self.get(entry.name) is factory), None)

    def build(self, specification: str) -> Any:
        """Make an object from text: `"svd:rank=8,joint=False"` is `SVD(rank=8, joint=False)`.

        Where the first parameter is a `path`, it may be given without its name: `"file:their.json,edges=20"`. What
        has an `=` in it is a parameter if its name could be one, and else a path. `"path/to/file.py:Mine(rank=8)"` is
        made by a class of that file. Raises AssayError if the name is unknown, the parameters do not fit it (those of
        a recipe with `check_parameters`, their values, too), or the file has no such class.
        """
        own = from_file(specification)
        made = self._named(specification) if own is None else self._own_made(specification, own)
        check: Callable[[], None] | None = getattr(made, "check_parameters", None)
        if check is not None:
            check()
        return made

    def _named(self, specification: str) -> Any:
        """An object of a name and parameters."""
        name, _, rest = specification.partition(":")
        factory = self.get(name.strip())
        signature = inspect.signature(factory)
        keywords = _keywords(specification, name.strip(), rest, signature)
        _bind(specification, name, signature, (), keywords)
        return factory(**keywords)

    def _own_made(self, specification: str, own: FromFile) -> Any:
        """An object of somebody's own class."""
        name = own.made.__name__
        _bind(specification, name, inspect.signature(own.made), own.arguments, own.keywords)
        try:
            made = own.made(*own.arguments, **own.keywords)
        except AssayError:
            raise
        except Exception as error:  # code of others may raise anything
            what = " ".join(str(error).split())
            raise AssayError(f"{specification!r} cannot be made: {type(error).__name__}: {what}.") from error
        missing = [member for member in self.members if not hasattr(made, member)]
        if missing:
            raise AssayError(
                f"{specification!r}: {name} is no {self.noun}; it has no {', '.join(missing)}, and needs "
                f"{', '.join(self.members)}."
            )
        return made


def _keywords(specification: str, name: str, rest: str, signature: inspect.Signature) -> dict[str, Any]:
    """The parameters of `name=value,…`, of which a path that comes first needs no name."""
    takes_path = next(iter(signature.parameters), None) == PATH
    parts = [part.strip() for part in rest.split(",") if part.strip()]
    found: dict[str, Any] = {}
    for place, part in enumerate(parts):
        key, equals, text = part.partition("=")
        key = key.strip()
        if takes_path and not (equals and key.isidentifier()):
            if place:
                raise AssayError(
                    f"{specification!r}: {part!r} is not of the form name=value. Only the path, which comes first, "
                    "needs no name, and a path with a comma cannot be given here; rename the file."
                )
            key, equals, text = PATH, "=", part
        if not equals:
            raise AssayError(f"{specification!r}: {part!r} is not of the form name=value; {called(name, signature)}.")
        if key in found:
            raise AssayError(f"{specification!r}: {key} is given twice.")
        found[key] = _value(text, as_path=takes_path and key == PATH)
    if takes_path and found and PATH not in found and signature.parameters[PATH].default is inspect.Parameter.empty:
        raise AssayError(
            f"{specification!r}: no path is given, since {parts[0]!r} is a parameter and its value; give the path "
            f"first, {name}:FILE,{parts[0]}, or if that is the path itself, {name}:{PATH}={parts[0]}."
        )
    return found


def _value(text: str, *, as_path: bool) -> Any:
    """A literal, or else the text itself; a path is text, whatever it looks like."""
    try:
        value = literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return text if as_path and not isinstance(value, str) else value


def _bind(
    specification: str, name: str, signature: inspect.Signature, arguments: Sequence[Any], keywords: Mapping[str, Any]
) -> None:
    """Raise AssayError, with the nearest names, unless parameters fit."""
    by_name = [one.name for one in signature.parameters.values() if one.kind not in _WITHOUT_NAME]
    takes_any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in signature.parameters.values())
    for given in keywords:
        if given not in by_name and not takes_any:
            wrong = unknown_name(f"parameter of {name}", given, by_name)
            raise AssayError(f"{specification!r}: {wrong} Write it as {called(name, signature)}.")
    try:
        signature.bind(*arguments, **keywords)
    except TypeError as error:
        raise AssayError(f"{specification!r}: {error}; its parameters are {called(name, signature)}.") from None


_WITHOUT_NAME = (
    inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD,
)  # fmt: skip


def called(name: str, signature: inspect.Signature) -> str:
    """How something is called on the command line, with the defaults of its parameters: `svd:rank=…,joint=True`."""
    parts = [
        f"{one.name}=…" if one.default is inspect.Parameter.empty else f"{one.name}={one.default!r}"
        for one in signature.parameters.values()
        if one.kind not in _WITHOUT_NAME
    ]
    return f"{name}:{','.join(parts)}" if parts else name
