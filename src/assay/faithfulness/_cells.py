"""The cells of a comparison (subject x proxy x split): which there are, and where finished ones are kept."""

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from assay._errors import AssayError
from assay.engine import Engine, Site
from assay.faithfulness._comparison import SCHEMA
from assay.faithfulness._metrics import metrics
from assay.faithfulness._scores import NotFiniteError, Scores
from assay.simplify import Identity, MeanAblation, RandomPerturbation, Simplification, label
from assay.subjects import write_atomically
from assay.tasks import Task

_WITHOUT_SIZE = (Identity, RandomPerturbation)
"""What moves nothing, or by a size that is not its own."""

REFITTED = ", refitted"
"""What the name of a proxy ends in that was fitted on the shift itself."""


@dataclass(frozen=True)
class Candidate:
    """A simplification at a site, not yet fitted.

    `control` and `perturbation` are the labels of its own control and of the control of equal size. With `refitted`
    it is a control itself: fitted on other sequences of the shift that it is judged on.
    """

    simplification: Simplification
    at: Site
    is_control: bool
    control: str | None = None
    perturbation: str | None = None
    refitted: bool = False

    @property
    def name(self) -> str:
        """How the proxy is called in the results."""
        return label(self.simplification) + (REFITTED if self.refitted else "")

    @property
    def site(self) -> str:
        """The site's name."""
        return self.at.name

    @property
    def streams(self) -> tuple[str, ...]:
        """What has to be read of the train split to fit it."""
        return self.at.streams if self.simplification.streams and self.at.explicit else self.simplification.streams

    @property
    def key(self) -> str:
        """The candidate's name within the comparison."""
        return f"{self.name} at {self.site}"


class Cells:
    """Finished cells, in memory or in a folder; a file is named by a hash of all that its content depends on.

    With a folder, a cell is read when it is asked for, so that a long run does not have to fit in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._memory: dict[str, Scores | NotFiniteError] = {}

    def __contains__(self, name: str) -> bool:
        """Whether the cell is finished; a file that was cut short counts as not there."""
        return name in self._memory or (self.folder is not None and zipfile.is_zipfile(self.folder / f"{name}.npz"))

    def __getitem__(self, name: str) -> Scores | NotFiniteError:
        if name in self._memory or self.folder is None:
            return self._memory[name]
        path = self.folder / f"{name}.npz"
        try:
            return Scores.read(path)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise AssayError(f"{path} is damaged ({error}); remove it and run again.") from None

    def put(self, name: str, scores: Scores | NotFiniteError) -> None:
        """Keep a finished cell; one that could not be scored is kept in memory only."""
        if self.folder is not None and isinstance(scores, Scores):
            write_atomically(self.folder / f"{name}.npz", scores.write)
        else:
            self._memory[name] = scores


class Found(Mapping[tuple[int, str, str], Scores | NotFiniteError]):
    """The cells of one comparison by number of the subject, key of the candidate and split."""

    def __init__(self, cells: Cells) -> None:
        self._cells = cells
        self._names: dict[tuple[int, str, str], str] = {}

    def add(self, place: tuple[int, str, str], name: str) -> None:
        """Note the name of a finished cell."""
        self._names[place] = name

    def __getitem__(self, place: tuple[int, str, str]) -> Scores | NotFiniteError:
        return self._cells[self._names[place]]

    def __iter__(self) -> Iterator[tuple[int, str, str]]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def candidates_of(
    engine: Engine, simplifications: Sequence[Simplification], sites: Sequence[str], controls: bool, refit: bool
) -> list[Candidate]:
    """Every simplification at every site, each site followed by its controls.

    At a site that names a stream, mean ablation takes the place of a control that is for attention only. Raises
    AssayError for a simplification that does not act on a site's stream, and for sites that `Engine.sites` refuses.
    """
    given = {label(item) for item in simplifications}
    found = []
    for site in engine.sites(sites):
        of_controls: dict[str, Simplification] = {}
        perturbations: list[Any] = []
        refitted: list[Candidate] = []
        for item in simplifications:
            if site.explicit and not getattr(item, "any_stream", False):
                raise AssayError(
                    f"{label(item)} is about attention and cannot act on site {site.name!r}; give it a site without "
                    "a stream, or give that site a simplification of vectors, such as SVD(rank=8)."
                )
            control = item.control() if controls else None
            if control is not None and site.explicit and not getattr(control, "any_stream", False):
                control = MeanAblation()
            name = None if control is None else label(control)
            if control is not None and name is not None and name not in given:
                of_controls[name] = control
            equal = RandomPerturbation(item) if controls and not isinstance(item, _WITHOUT_SIZE) else None
            if equal is not None:
                perturbations.append(equal)
            found.append(
                Candidate(
                    item,
                    site,
                    is_control=False,
                    control=name,
                    perturbation=None if equal is None else label(equal),
                )
            )
            if refit and item.streams:
                refitted.append(Candidate(item, site, is_control=True, refitted=True))
        if controls and label(Identity()) not in given:
            of_controls[label(Identity())] = Identity()
        found += [Candidate(item, site, is_control=True) for item in (*of_controls.values(), *perturbations)]
        found += refitted
    return found


def cell_name(
    subject: Mapping[str, Any], task: Task, item: Candidate, *, fitted_on: str, judged_on: str, seed: int
) -> str:
    """The name of a cell: a hash of everything that its scores depend on."""
    content = {
        "schema": SCHEMA,
        "assay": version("assay-interp"),
        "versions": [version(name) for name in ("torch", "transformers", "scikit-learn")],
        "weights": subject["weights_sha256"],
        "config": subject["config_sha256"],
        "asked": [subject["objective"], subject.get("pooling")],
        "dtype": subject["dtype"],
        "device": subject["device"],
        "kinds": [repr(kind) for kind in task.kinds],
        "features": [repr(feature) for feature in task.features],
        "metrics": list(metrics),
        "simplification": f"{type(item.simplification).__module__}.{label(item.simplification)}",
        "of": type(getattr(item.simplification, "of", None)).__module__,
        "places": [str(place) for place in item.at.places],
        "streams": item.at.streams,
        "train": fitted_on if item.streams else None,
        "split": judged_on,
        "seed": seed,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
