"""The cells of a comparison (subject x proxy x split): which there are, and where finished ones are kept."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from assay.engine import Engine, Head
from assay.faithfulness._comparison import SCHEMA
from assay.faithfulness._metrics import metrics
from assay.faithfulness._scores import NotFiniteError, Scores
from assay.simplify import Identity, Simplification, label
from assay.subjects import write_atomically
from assay.tasks import Task


@dataclass(frozen=True)
class Candidate:
    """A simplification at a site, not yet fitted."""

    simplification: Simplification
    site: str
    heads: tuple[Head, ...]
    is_control: bool
    control: str | None

    @property
    def key(self) -> str:
        """The candidate's name within the comparison."""
        return f"{label(self.simplification)} at {self.site}"


class Cells:
    """Finished cells, in memory or in a folder; a file is named by a hash of all that its content depends on."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._memory: dict[str, Scores | NotFiniteError] = {}

    def get(self, name: str) -> Scores | NotFiniteError | None:
        """A finished cell, or None."""
        if name not in self._memory and self.folder is not None and (self.folder / f"{name}.npz").is_file():
            self._memory[name] = Scores.read(self.folder / f"{name}.npz")
        return self._memory.get(name)

    def take(self, name: str) -> Scores | NotFiniteError:
        """A cell that is known to be finished."""
        found = self.get(name)
        assert found is not None
        return found

    def put(self, name: str, scores: Scores | NotFiniteError) -> None:
        """Keep a finished cell; one that could not be scored is kept in memory only."""
        self._memory[name] = scores
        if self.folder is not None and isinstance(scores, Scores):
            write_atomically(self.folder / f"{name}.npz", scores.write)


def candidates_of(
    engine: Engine, simplifications: Sequence[Simplification], sites: Sequence[str], controls: bool
) -> list[Candidate]:
    """Every simplification at every site, each site followed by its controls."""
    given = {label(item) for item in simplifications}
    found = []
    for site in sites:
        heads = engine.sites(site)
        of_controls: dict[str, Simplification] = {}
        for item in simplifications:
            control = item.control() if controls else None
            name = None if control is None else label(control)
            if control is not None and name is not None and name not in given:
                of_controls[name] = control
            found.append(Candidate(item, site, heads, is_control=False, control=name))
        if controls and label(Identity()) not in given:
            of_controls[label(Identity())] = Identity()
        found += [Candidate(item, site, heads, is_control=True, control=None) for item in of_controls.values()]
    return found


def cell_name(
    subject: Mapping[str, Any], task: Task, item: Candidate, *, fitted_on: str, judged_on: str, seed: int
) -> str:
    """The name of a cell: a hash of everything that its scores depend on."""
    content = {
        "schema": SCHEMA,
        "assay": version("assay-interp"),
        "weights": subject["weights_sha256"],
        "dtype": subject["dtype"],
        "device": subject["device"],
        "kinds": [repr(kind) for kind in task.kinds],
        "features": [repr(feature) for feature in task.features],
        "metrics": list(metrics),
        "simplification": f"{type(item.simplification).__module__}.{label(item.simplification)}",
        "heads": [str(head) for head in item.heads],
        "train": fitted_on if item.simplification.streams else None,
        "split": judged_on,
        "seed": seed,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
