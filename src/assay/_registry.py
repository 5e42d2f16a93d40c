"""Names for things that third parties can add: simplifications, tasks, metrics.

A package adds its own through an entry point of the matching group, and needs nothing from Assay:

    [project.entry-points."assay.simplifications"]
    my-method = "my_package:MyMethod"
"""

import inspect
from ast import literal_eval
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from assay._errors import AssayError, unknown_name


class Registry:
    """Factories by name, ours and those of entry points of `group`; a name is taken once."""

    def __init__(self, group: str, noun: str) -> None:
        self.group = group
        self.noun = noun
        self._own: dict[str, Callable[..., Any]] = {}

    def register(self, name: str, factory: Callable[..., Any]) -> None:
        """Add `factory` under `name`. Raises AssayError if the name is taken."""
        if name in self._own:
            raise AssayError(
                f"{self.noun} {name!r} is registered already, by {self._own[name]!r}; choose another name."
            )
        self._own[name] = factory

    def _outside(self) -> dict[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
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

    def build(self, specification: str) -> Any:
        """Make an object from text: `"svd:rank=8,joint=False"` is `SVD(rank=8, joint=False)`.

        Raises AssayError if the name is unknown or the parameters do not fit it.
        """
        name, _, rest = specification.partition(":")
        factory = self.get(name.strip())
        signature = inspect.signature(factory)
        keywords: dict[str, Any] = {}
        for part in filter(None, (part.strip() for part in rest.split(","))):
            key, equals, text = part.partition("=")
            if not equals:
                raise AssayError(f"{specification!r}: {part!r} is not of the form name=value; {name}{signature}.")
            if key.strip() in keywords:
                raise AssayError(f"{specification!r}: {key.strip()} is given twice.")
            try:
                keywords[key.strip()] = literal_eval(text)
            except (ValueError, SyntaxError):
                keywords[key.strip()] = text
        try:
            signature.bind(**keywords)
        except TypeError as error:
            raise AssayError(f"{specification!r}: {error}; its parameters are {name}{signature}.") from None
        return factory(**keywords)
