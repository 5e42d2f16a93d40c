"""The API: a page a room, of everything public in it, and one of the names at the top."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import assay
from site_pages import plain

ROOMS = (
    "subjects", "tasks", "simplify", "circuits", "dictionaries", "models", "faithfulness", "diagnostics", "proofs",
    "reports", "testing", "engine",
)  # fmt: skip
"""Rooms in the order in which somebody new needs them."""


def constants(room: ModuleType) -> dict[str, str]:
    """Docstrings of what is neither class nor function: the text that follows an assignment, by name."""
    found: dict[str, str] = {}
    for path in sorted(Path(room.__file__ or "").parent.rglob("*.py")):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        for one, after in pairwise(body):
            targets = (
                one.targets if isinstance(one, ast.Assign) else [one.target] if isinstance(one, ast.AnnAssign) else []
            )
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                for target in targets:
                    if isinstance(target, ast.Name) and isinstance(after.value.value, str):
                        found.setdefault(target.id, after.value.value)
    return found


def entry(room: str, name: str, value: Any, said: dict[str, str]) -> Iterator[str]:
    """The entry of a public name, in reStructuredText."""
    if inspect.ismodule(value):
        yield f".. automodule:: assay.{room}.{name}\n   :members:\n"
    elif inspect.isclass(value):
        yield f".. autoclass:: assay.{room}.{name}\n   :members:\n   :member-order: bysource\n"
    elif inspect.isroutine(value):
        yield f".. autofunction:: assay.{room}.{name}\n"
    else:
        text = plain.restructured(said.get(name, ""))
        yield f".. py:data:: assay.{room}.{name}\n"
        yield "\n".join(f"   {line}".rstrip() for line in text)


def page(room: str) -> str:
    """The page of a room, in reStructuredText."""
    module = importlib.import_module(f"assay.{room}")
    title = f"assay.{room}"
    said = constants(module)
    parts = [title, "=" * len(title), "", *plain.restructured(module.__doc__ or "")]
    for name in sorted(module.__all__, key=lambda name: (not name[0].isupper(), name.lower())):
        parts += entry(room, name, getattr(module, name), said)
    return "\n".join(parts) + "\n"


def home(name: str) -> str | None:
    """The room in which a name of `assay` is documented; None for a room itself, and for what only the top has."""
    return next((room for room in ROOMS if name in importlib.import_module(f"assay.{room}").__all__), None)


def top() -> str:
    """The page of the names at the top, with links to where they are described."""
    rows = []
    for name in sorted(set(assay.__all__) - set(ROOMS)):
        value, room = getattr(assay, name), home(name)
        role = "class" if inspect.isclass(value) else "func"
        target = f"assay.{room}.{name}" if room else f"assay.{name}"
        link = f"{{py:{role}}}`assay.{name} <{target}>`"
        rows.append([link, plain.escaped(plain.summary(value.__doc__))])
    said = {room: plain.summary(importlib.import_module(f"assay.{room}").__doc__) for room in ROOMS}
    rooms = [[f"[assay.{room}](assay.{room}.rst)", plain.escaped(text)] for room, text in said.items()]
    tree = "\n".join(f"assay.{room}" for room in ROOMS)
    return (
        "# API\n\nWhat `import assay` gives. Names below a room (`assay.tasks.Text`) are on the page of the room. "
        "Whatever has no page is private.\n\n"
        f"{plain.table(['name', 'what it is'], rows)}\n\n## The error\n\n"
        "```{eval-rst}\n.. autoexception:: assay.AssayError\n```\n\n"
        f"## Rooms\n\n{plain.table(['room', 'what is in it'], rooms)}\n\n"
        f"```{{toctree}}\n:hidden:\n\n{tree}\n```\n"
    )


def pages() -> dict[str, str]:
    """The page of the top and one a room."""
    return {"api/index.md": top(), **{f"api/assay.{room}.rst": page(room) for room in ROOMS}}
