"""The cells of a comparison (subject x proxy x split): which there are, and where finished ones are kept."""

import functools
import hashlib
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import assay
from assay._errors import AssayError
from assay._files import write_atomically
from assay._fingerprint import NotHashableError, fingerprint_or_reason
from assay.engine import Engine, Named, Site
from assay.faithfulness._comparison import SCHEMA
from assay.faithfulness._scores import NotFiniteError, Scores
from assay.simplify import (
    Identity,
    MeanAblation,
    RandomPerturbation,
    Simplification,
    ablated_of,
    is_whole,
    label,
    learns,
    own_sites_of,
    reads,
)
from assay.tasks import Task

_WITHOUT_SIZE = (Identity, RandomPerturbation)
"""What moves nothing, or by a size that is not its own."""

DRAWS = 5
"""A control that is drawn at random is drawn so often: one subspace may be lucky."""

REFITTED = ", refitted"
"""What the name of a proxy ends in that was fitted on the shift itself."""


@dataclass(frozen=True)
class Candidate:
    """A simplification at a site, not yet fitted.

    `name` is how the proxy is called in the results, `fingerprint` a hash of the simplification (see
    `assay._fingerprint`), or why there is none. `control` and `perturbation` are the names of its own control and of
    the control of equal size, `ablation` that of the one in which all is ablated that it could keep: what the recipe
    calls `ablated`, else the mean ablation of its site; its own control has the same, and so has the same recipe
    refitted. With `refitted` it is a control itself: fitted on other sequences of the shift that it is judged on.
    `redraw` numbers the draws of one control, from 0.
    """

    name: str
    simplification: Simplification
    at: Site
    is_control: bool
    fingerprint: str | NotHashableError
    control: str | None = None
    perturbation: str | None = None
    ablation: str | None = None
    refitted: bool = False
    redraw: int = 0

    @property
    def site(self) -> str:
        """The site's name."""
        return self.at.name

    @property
    def streams(self) -> tuple[str, ...]:
        """What has to be read of the train split to fit it."""
        return reads(self.simplification, self.at)

    @property
    def key(self) -> str:
        """The candidate's name within the comparison."""
        return self.of_all_draws + (f", draw {self.redraw + 1}" if self.redraw else "")

    @property
    def of_all_draws(self) -> str:
        """The name that all draws of a control share."""
        return f"{self.name} at {self.site}"


class Names:
    """Simplifications of one comparison by name: their labels, with a number where different ones share a label."""

    def __init__(self) -> None:
        self._known: dict[str, list[str | NotHashableError]] = {}
        self._of: dict[int, tuple[str, str | NotHashableError, Simplification]] = {}

    def of(self, simplification: Simplification) -> tuple[str, str | NotHashableError]:
        """The name of a simplification, that of an earlier one if both do the same, and its fingerprint."""
        if id(simplification) not in self._of:
            text = label(simplification)
            found = fingerprint_or_reason(simplification, unfitted=True)
            known = self._known.setdefault(text, [])
            if found not in known:
                known.append(found)
            number = known.index(found) + 1
            self._of[id(simplification)] = (f"{text} #{number}" if number > 1 else text, found, simplification)
        return self._of[id(simplification)][:2]


class Cells:
    """Finished cells, in memory or in a folder; a file is named by a hash of all that its content depends on.

    With a folder, a cell is read when it is asked for, so that a long run does not have to fit in memory. A file ends
    with its own name and a hash of the rest of it (a comment, to a reader of zip files): one that was changed, cut
    short or renamed counts as not there, and its name is among `damaged`. A cell without a name of its own, one of
    `unnamed`, stays in memory.
    """

    _left: ClassVar[dict[str, Scores]] = {}
    """What an interrupted comparison without a folder had finished, until the next one takes it over."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.damaged: set[str] = set()
        self.unnamed: set[str] = set()
        self._memory: dict[str, Scores | NotFiniteError] = {}

    def take_over(self, names: Iterable[str]) -> None:
        """Take those of these cells that an interrupted comparison of this process left, and drop its others."""
        if self.folder is None:
            left, Cells._left = Cells._left, {}
            self._memory |= {name: left[name] for name in names if name in left}

    def leave(self) -> None:
        """Leave finished cells without a folder to the next comparison without one: this one was interrupted.

        Those that could not be scored are tried again, as in a folder.
        """
        if self.folder is None:
            scored = {name: cell for name, cell in self._memory.items() if isinstance(cell, Scores)}
            Cells._left |= {name: cell for name, cell in scored.items() if name not in self.unnamed}

    def without_name(self) -> str:
        """A name for a cell that no other run can find."""
        name = f"unnamed {len(self.unnamed)}"
        self.unnamed.add(name)
        return name

    def __contains__(self, name: str) -> bool:
        """Whether the cell is finished."""
        if name in self._memory or self.folder is None or name in self.unnamed:
            return name in self._memory
        path = self._path(name)
        if not path.exists():
            return False
        if _is_sealed(path, name):
            return True
        self.damaged.add(name)
        return False

    def __getitem__(self, name: str) -> Scores | NotFiniteError:
        if name in self._memory or self.folder is None:
            return self._memory[name]
        path = self._path(name)
        try:
            return Scores.read(path)
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise AssayError(f"{path} is damaged ({error}); remove it and run again.") from None

    def put(self, name: str, scores: Scores | NotFiniteError) -> None:
        """Keep a finished cell; one that could not be scored is kept in memory only."""
        if self.folder is not None and isinstance(scores, Scores) and name not in self.unnamed:
            write_atomically(self._path(name), lambda path: _seal(path, name, scores))
        else:
            self._memory[name] = scores

    def _path(self, name: str) -> Path:
        return (self.folder or Path()) / f"{name}.npz"


_NO_COMMENT = b"\0\0"
"""How a zip file without a comment ends: the length of the comment, in two bytes."""


def _seal(path: Path, name: str, scores: Scores) -> None:
    """Write a cell, and behind it its name and a hash of both."""
    scores.write(path)
    content = path.read_bytes().removesuffix(_NO_COMMENT)
    path.write_bytes(content + _seal_of(name, content))


def _seal_of(name: str, content: bytes) -> bytes:
    comment = f"{name} {hashlib.sha256(name.encode() + content).hexdigest()}".encode()
    return len(comment).to_bytes(2, "little") + comment


def _is_sealed(path: Path, name: str) -> bool:
    """Whether a file is what `_seal` wrote under this name."""
    length = len(_seal_of(name, b""))
    try:
        data = path.read_bytes()
    except OSError:
        return False
    return len(data) > length and data[-length:] == _seal_of(name, data[:-length])


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
    engine: Engine, simplifications: Sequence[Simplification], sites: Sequence[Named], controls: bool, refit: bool
) -> list[Candidate]:
    """Every simplification at every site, each site followed by its controls; what replaces the model whole once.

    One that names its `own_sites` is judged there, and nowhere else.
    At a site that names a stream, mean ablation takes the place of a control that is for attention only; at every site
    it is judged, to tell how much the site matters, and so is what a recipe calls `ablated`. Controls that are drawn at
    random are drawn `DRAWS` times. Raises AssayError for a simplification that is given twice or does not act on a
    site's stream, and for sites that `Engine.sites` refuses.
    """
    names = Names()
    given = [names.of(item)[0] for item in simplifications]
    twice = {name for name in given if given.count(name) > 1}
    if twice:
        raise AssayError(f"compare(): {', '.join(sorted(twice))} is given twice.")
    asked = [_Asked.of(item, controls) for item in simplifications]
    by_site: dict[str, tuple[Site, list[_Asked]]] = {}
    for one in (one for one in asked if not is_whole(one.item)):
        for site in engine.sites(own_sites_of(one.item, engine) or sites):
            by_site.setdefault(site.name, (site, []))[1].append(one)
    found: list[Candidate] = []
    for site, there in by_site.values():
        found += _at(site, there, names, given, controls, refit)
    return found + _at(MODEL, [one for one in asked if is_whole(one.item)], names, given, controls, refit)


MODEL = Site("model", {})
"""Where a simplification acts that replaces the model as a whole."""


@dataclass(frozen=True)
class _Asked:
    """A simplification with its own control, that of equal size, and what ablates all that it could keep."""

    item: Simplification
    control: Simplification | None
    equal: Simplification | None
    ablated: Simplification | None

    @classmethod
    def of(cls, item: Simplification, controls: bool) -> "_Asked":
        if not controls:
            return cls(item, None, None, None)
        own = getattr(item, "perturbation", None)
        equal: Any = None if is_whole(item) or isinstance(item, _WITHOUT_SIZE) else RandomPerturbation(item)
        return cls(item, item.control(), equal if own is None else own(), ablated_of(item))


def _at(  # noqa: PLR0917
    site: Site, asked: Sequence[_Asked], names: Names, given: Sequence[str], controls: bool, refit: bool
) -> list[Candidate]:
    """The candidates at one site; none if nothing acts there."""
    if not asked:
        return []
    ablation, identity = MeanAblation(), Identity()
    general = (ablation, identity) if controls and site is not MODEL else ()
    general_ablation = names.of(ablation)[0] if general else None

    def candidate(simplification: Simplification, ending: str = "", **options: Any) -> Candidate:
        name, found = names.of(simplification)
        return Candidate(name + ending, simplification, site, fingerprint=found, **options)

    found = []
    of_controls: dict[str, tuple[Simplification, str | None]] = {}
    perturbations: dict[str, Simplification] = {}
    refitted: list[Candidate] = []
    for one in asked:
        item, here = one.item, one.control
        if site.explicit and not getattr(item, "any_stream", False):
            raise AssayError(
                f"{label(item)} is about attention and cannot act on site {site.name!r}; give it a site without "
                "a stream, or give that site a simplification of vectors, such as SVD(rank=8)."
            )
        if here is not None and site.explicit and not getattr(here, "any_stream", False):
            here = ablation
        nothing = general_ablation if one.ablated is None else names.of(one.ablated)[0]
        name = None if here is None else names.of(here)[0]
        if here is not None and name is not None and name not in given:
            of_controls.setdefault(name, (here, None if name == nothing else nothing))
        if one.ablated is not None and nothing is not None and nothing not in given:
            of_controls.setdefault(nothing, (one.ablated, None))
        perturbation = None if one.equal is None else names.of(one.equal)[0]
        if one.equal is not None and perturbation is not None:
            perturbations[perturbation] = one.equal
        found.append(candidate(item, is_control=False, control=name, perturbation=perturbation, ablation=nothing))
        if refit and learns(item):
            refitted.append(candidate(item, REFITTED, is_control=True, ablation=nothing, refitted=True))
    for control in general:
        if names.of(control)[0] not in given:
            of_controls[names.of(control)[0]] = (control, None)
    for item, nothing in (*of_controls.values(), *((item, None) for item in perturbations.values())):
        first = candidate(item, is_control=True, ablation=nothing)
        found += [first, *(_redrawn(first, number) for number in range(1, DRAWS) if hasattr(item, "redrawn"))]
    return found + refitted


def _redrawn(first: Candidate, number: int) -> Candidate:
    """Another draw of a control, under the same name."""
    again: Any = first.simplification.redrawn(number)  # type: ignore[attr-defined]
    return replace(first, simplification=again, fingerprint=fingerprint_or_reason(again, unfitted=True), redraw=number)


_version = functools.cache(version)
"""The version of a package: read from its files once, and not for every cell."""


def cell_name(
    subject: Mapping[str, Any],
    task: Task,
    item: Candidate,
    *,
    fingerprints: Sequence[str],
    fitted_on: str,
    judged_on: str,
    positions: str,
    seed: int,
) -> str:
    """The name of a cell: a hash of everything that its scores depend on.

    `fingerprints` are those of the subject's behaviour, of the metrics and of the simplification.
    """
    content = {
        "schema": SCHEMA,
        "assay": [_version("assay-interp"), _code_of_assay()],
        "versions": [_version(name) for name in ("torch", "transformers", "scikit-learn", "numpy")],
        "weights": subject["weights_sha256"],
        "config": subject["config_sha256"],
        "asked": [subject["objective"], subject.get("pooling")],
        "dtype": subject["dtype"],
        "device": subject["device"],
        "kinds": [repr(kind) for kind in task.kinds],
        "features": [repr(feature) for feature in task.features],
        "fingerprints": fingerprints,
        "site": [[str(place), *streams] for place, streams in item.at.streams.items()],
        "positions": positions,
        "train": fitted_on if learns(item.simplification) else None,
        "split": judged_on,
        "seed": seed,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


_AFTER_CELLS = ("cli", "cli.py", "diagnostics", "proofs", "reports", "studies", "testing")
_AFTER_CELLS_HERE = (
    "_assess", "_cells", "_columns", "_comparison", "_effects", "_flips", "_folder", "_heads", "_of_models",
    "_quantiles", "_statistics", "_summary", "_told_apart", "_verdicts",
)  # fmt: skip
"""Rooms, and files of this one, that only read finished cells: a change there leaves cells as they are."""


@functools.cache
def _code_of_assay() -> str:
    """A hash of the files of Assay that a cell may depend on."""
    root = Path(assay.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if inside.parts[0] in _AFTER_CELLS or (inside.parts[0] == "faithfulness" and path.stem in _AFTER_CELLS_HERE):
            continue
        digest.update(f"{inside.as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()
