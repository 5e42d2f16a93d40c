"""What a study of an organism gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from assay.faithfulness import Comparison, Step
from assay.reports import Illustrations


@dataclass(frozen=True)
class Findings:
    """What a study of an organism found.

    `numbers` go into a file as JSON. `shown` are its tables and charts; the first chart is the figure that carries it.
    `comparisons` by name, each of which gets a page, and the first of them all that is shown.
    """

    numbers: Mapping[str, Any]
    shown: Illustrations
    comparisons: Mapping[str, Comparison] = field(default_factory=dict)


class Study(Protocol):
    """A module of this package: one organism, from its training to its tables.

    `SUMMARY` says in a line what it is about; `SEEDS` and `SEQUENCES` are how many trainings it looks at and how many
    sequences a split if nothing is asked for.
    """

    SUMMARY: str
    SEEDS: int
    SEQUENCES: int

    def run(
        self, folder: Path, *, seeds: int, sequences: int, device: str, progress: Callable[[Step], None]
    ) -> Findings:
        """Train (or read) the organism and judge what is said of it; whatever has to stay is left in `folder`."""
