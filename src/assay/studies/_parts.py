"""Studies of several parts, each a comparison of its own: which parts, one after the other, and their pages."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from assay._errors import AssayError, unknown_name
from assay.faithfulness import Comparison, Step, Workers
from assay.reports import Illustrations, TableView, write_figures, write_page

NEEDS_DATA = "code-java"
"""The one part whose functions are not shipped."""


@runtime_checkable
class Finished(Protocol):
    """A part that has been judged."""

    @property
    def comparison(self) -> Comparison:
        """Its comparison."""

    @property
    def folder(self) -> Path:
        """Where it is."""


Part = TypeVar("Part", bound=Any)
Done = TypeVar("Done", bound=Finished)
Judge = Callable[[Path, Part, bool, Workers, Callable[[Step], None]], Done]
"""Judges a part in a folder: folder, part, overwrite, workers, progress."""


def check_parts(only: Sequence[str], known: Collection[str], data: str | None = None) -> None:
    """Raise AssayError for an unknown part, one that is named twice, and `data` with nobody to use it, or missing."""
    for name in only:
        if name not in known:
            raise unknown_name("part", name, known)
    twice = {name for name in only if list(only).count(name) > 1}
    if twice:
        raise AssayError(f"{', '.join(sorted(twice))} is named twice.")
    if data is None and NEEDS_DATA in only:
        raise AssayError(
            f"{NEEDS_DATA} needs Java functions: give --data, a CodeSearchNet file or folder, hub:NAME, or a folder."
        )
    if data is not None and NEEDS_DATA not in only:
        raise AssayError(f"--data is for the Java model: --only {NEEDS_DATA}.")


def run_parts(
    folder: Path,
    names: Sequence[str],
    parts_of: Callable[[str], Sequence[Part]],
    judge: "Judge[Part, Done]",
    *,
    sequences: int | None,
    overwrite: bool,
    workers: Workers,
    progress: Callable[[Step], None],
) -> list[Done]:
    """Judge the parts of every name, each in a folder of its own; `sequences` overrides how many a split."""
    done = []
    for name in names:
        progress(Step(0, 1, f"{name}: reading"))
        parts = parts_of(name)
        for part in parts:
            asked = part if sequences is None else replace(part, sequences=sequences)
            own = name if len(parts) == 1 else part.name
            done.append(judge(folder / own, asked, overwrite, workers, progress))
    progress(Step(1, 1, "pages"))
    return done


def write_parts(
    folder: Path, done: Sequence[Finished], own: Sequence[Illustrations], first: Sequence[TableView] = ()
) -> Illustrations:
    """Write a page, pictures and figures for every part, and the page of all; give what the latter shows.

    `first` are tables of all parts together, which stand before those of each.
    """
    for one, pictures in zip(done, own, strict=True):
        pictures.save(one.folder)
        write_figures(one.comparison, one.folder / "figures", pictures)
        write_page(one.comparison, one.folder / "report.html", pictures)
    shown = Illustrations.joined([Illustrations(tables=list(first)), *own])
    write_page(done[0].comparison, folder / "report.html", shown)
    return shown
