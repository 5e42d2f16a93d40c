"""Organisms: small models whose mechanism is planted or controlled, each a study of its own, a module of this package.

A new one is one file here: its name is that of the module, and it has what `Study` says.
"""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import cast

from assay._errors import AssayError, unknown_name
from assay._files import write_atomically
from assay.faithfulness import Step
from assay.reports import write_figures, write_page, write_pictures
from assay.studies.organisms._study import Findings, Study

__all__ = ["FIRST", "RESULTS", "Findings", "Study", "names", "run", "study"]

FIRST = "toy-english"
"""The organism that is meant where none is named."""

RESULTS = "organism.json"


def names() -> list[str]:
    """The names of all studies, `FIRST` first."""
    found = [module.name.replace("_", "-") for module in iter_modules(__path__) if not module.name.startswith("_")]
    return sorted(found, key=lambda name: (name != FIRST, name))


def study(name: str) -> Study:
    """A study by its name. Raises AssayError for one that is not known."""
    if name not in names():
        raise unknown_name("organism", name, names())
    return cast(Study, import_module(f"{__name__}.{name.replace('-', '_')}"))


def run(
    name: str,
    folder: Path,
    *,
    seeds: int | None = None,
    sequences: int | None = None,
    device: str = "cpu",
    progress: Callable[[Step], None] = lambda step: None,
) -> Findings:
    """Run a study by its name, with as many trainings and sequences a split as it says itself where none are given.

    Leaves its numbers (organism.json), its figures, and a page a comparison in `folder`. Raises AssayError for an
    unknown name, fewer than 1 training or 2 sequences, and whatever the study refuses.
    """
    chosen = study(name)
    seeds = chosen.SEEDS if seeds is None else seeds
    sequences = chosen.SEQUENCES if sequences is None else sequences
    if seeds < 1 or sequences < 2:
        raise AssayError(f"seeds is {seeds} and sequences {sequences}; give at least 1 training and 2 sequences.")
    found = chosen.run(folder, seeds=seeds, sequences=sequences, device=device, progress=progress)
    progress(Step(0, 1, "figures and pages"))
    text = json.dumps({"organism": name, "seeds": seeds, "sequences": sequences, **found.numbers}, indent=1)
    write_atomically(folder / RESULTS, lambda path: path.write_text(text + "\n", encoding="utf-8"))
    write_pictures(found.shown, folder / "figures")
    for number, (part, comparison) in enumerate(found.comparisons.items()):
        shown = found.shown if number == 0 else None
        comparison.save(folder / part)
        if shown is not None:
            shown.save(folder / part)
        write_figures(comparison, folder / part / "figures", shown)
        write_page(comparison, folder / part / "report.html", shown)
    progress(Step(1, 1, "done"))
    return found
