"""A subject with a fitted simplification in force."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from assay.engine import Edit, EditedSubject, Proxy
from assay.subjects import Subject


@dataclass(frozen=True)
class Origin:
    """The subject that a simplification was fitted on: its name, class and training seed, and what tells it apart."""

    name: str
    seed: int | None
    architecture: str
    weights_sha256: str
    config_sha256: str

    @classmethod
    def of(cls, subject: Subject) -> "Origin":
        """What there is to know of a subject."""
        architecture = type(subject.model).__name__
        return cls(subject.name, subject.seed, architecture, subject.weights_sha256, subject.config_sha256)


@runtime_checkable
class SavedProxy(Proxy, Protocol):
    """A proxy that can be saved (`save`) and loaded (`assay.load_proxy`), and knows what it was fitted on."""

    subject: Subject
    simplification: Any

    @property
    def fitted_on(self) -> Origin:
        """The subject that the simplification was fitted on."""
        ...

    @property
    def transferred(self) -> bool:
        """Whether that had other weights than the subject."""
        ...

    def save(self, folder: str | Path) -> Path:
        """Write it to a folder."""
        ...


class SimplifiedSubject(EditedSubject):
    """A subject with a fitted simplification in force at some places: what `apply(subject)` gives.

    `simplification` is the fitted recipe. `transferred` says whether that was fitted on other weights than those of the
    subject, as a proxy may have been that `assay.load_proxy` loaded.
    """

    def __init__(
        self,
        subject: Subject,
        edits: Sequence[Edit],
        simplification: object,
        *,
        fitted_on: Origin | None = None,
        transferred: bool = False,
    ) -> None:
        super().__init__(subject, edits)
        self.simplification: Any = copy.copy(simplification)  # a later fit of the same object makes it another
        self.transferred = transferred
        self._fitted_on = fitted_on

    @property
    def fitted_on(self) -> Origin:
        """The subject that the simplification was fitted on."""
        if self._fitted_on is None:
            self._fitted_on = Origin.of(self.subject)
        return self._fitted_on

    def save(self, folder: str | Path) -> Path:
        """Write the fitted simplification to a folder, for `assay.load_proxy`; the subject's weights are not kept.

            proxy.save("explanations/brackets")

        The folder gets `proxy.json` (the class by its name, parameters, places and streams, and which subject it was
        fitted on) and `tensors.safetensors` (what was learned); a proxy that was saved there before is replaced. Raises
        AssayError for a folder that holds something else, and for what was learned beyond tensors, arrays, numbers,
        text and places.
        """
        from assay.simplify._saved import save_proxy  # noqa: PLC0415  (which makes proxies itself)

        return save_proxy(self, folder)

    def __repr__(self) -> str:
        from assay.simplify._protocol import label  # noqa: PLC0415

        places = ", ".join(str(edit.place) for edit in self.edits)
        other = ""
        if self.transferred:
            origin = self.fitted_on
            other = f", fitted on other weights: those of {origin.name!r} ({origin.weights_sha256[:8]})"
        return f"SimplifiedSubject({self.subject!r}, {label(self.simplification)} at {places}{other})"
