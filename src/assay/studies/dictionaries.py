"""Dictionaries, judged off the distribution that they were trained on: as one experiment."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from assay._errors import AssayError, unknown_name
from assay.diagnostics import loss_recovered, reconstruction
from assay.dictionaries import SparseAutoencoder
from assay.engine import Engine
from assay.faithfulness import Comparison, Step, Workers, compare
from assay.reports import Illustrations, write_figures, write_page
from assay.simplify import SVD, Simplification, label, representation_bits
from assay.studies import code
from assay.subjects import Subject, load, shipped
from assay.tasks import Dyck, Task

SHIFTS_DRAWN = 3
"""Shifts in a chart, at most: those of the largest gaps."""

PRECISION = 16
"""Bits of a number of a code, for dictionaries and SVD alike."""


@dataclass(frozen=True)
class Part:
    """One subject (its training seeds), where dictionaries are trained, which, and on how much.

    `main` is the dictionary that is told of in detail: trained on as many vectors as can be had of every shift, so that
    what refitting it gives back is not a matter of their number.
    """

    name: str
    subjects: Sequence[Subject]
    task: Task
    site: str
    main: SparseAutoencoder
    others: Sequence[Simplification]
    sequences: int
    fit_sequences: int

    @property
    def recipes(self) -> list[Simplification]:
        """All that are judged."""
        return [self.main, *self.others]


def equal_rank(dictionary: SparseAutoencoder, width: int) -> int:
    """The rank of the projection that takes as many bits a position as a dictionary of vectors of this width."""
    features = dictionary.expansion * width if dictionary.features is None else dictionary.features
    chosen = sum(np.log2((features - number) / (number + 1)) for number in range(dictionary.k))
    return min(width, max(1, round((chosen + dictionary.k * PRECISION) / PRECISION)))


def _with_svd(width: int, dictionaries: Sequence[SparseAutoencoder]) -> list[Simplification]:
    """Dictionaries, each size with the projection of equal bits."""
    ranks = dict.fromkeys(equal_rank(one, width) for one in dictionaries)
    return [*dictionaries, *(SVD(rank=rank, centred=True) for rank in ranks)]


def _code(name: str, task: Task, subject: Subject, *, everything: bool) -> Part:
    width = subject.model.config.hidden_size
    main = SparseAutoencoder(k=16, steps=400, rows=ROWS)
    options: dict[str, Any] = {"steps": 600 if everything else 400}
    dictionaries = [SparseAutoencoder(k=16, **options)]
    if everything:
        dictionaries = [
            *(SparseAutoencoder(k=k, seed=seed, **options) for k in (8, 16, 32, 64) for seed in (0, 1, 2)),
            *(SparseAutoencoder(k=16, kind=kind, **options) for kind in KINDS),
        ]
    return Part(
        name,
        [subject],
        task,
        "layer2.residual",
        main,
        _with_svd(width, dictionaries),
        200 if everything else 60,
        1_500 if everything else 300,
    )


ROWS = 10_000
"""Vectors that the dictionary is trained on whose refits are told of: as many as the smallest shift has beyond those
that are judged."""

KINDS = ("batchtopk", "matryoshka", "relu", "gated", "jumprelu")
"""Kinds of the full run beside TopK."""


def code_python(*, everything: bool, device: str, data: str | None) -> Part:
    """A character model of Python."""
    subject = load("code-python", device=device)
    return _code("code-python", code.task_of(subject), subject, everything=everything)


def code_java(*, everything: bool, device: str, data: str | None) -> Part:
    """A character model of Java, on functions that the caller has."""
    if data is None:
        raise AssayError(
            "code-java needs functions: give --data, a CodeSearchNet file or folder, hub:NAME, or a folder."
        )
    subject = load("code-java", device=device)
    return _code("code-java", code.task_of(subject, data), subject, everything=everything)


def dyck(*, everything: bool, device: str, data: str | None) -> Part:
    """Bracket matchers; five training seeds with `everything`."""
    seeds = shipped()["dyck-20-10"] if everything else (0,)
    subjects = [load("dyck-20-10", seed=seed, device=device) for seed in seeds]
    width = subjects[0].model.config.hidden_size
    dictionaries = [SparseAutoencoder(k=k, steps=400) for k in ((4, 8, 16) if everything else (8,))]
    return Part(
        "dyck", subjects, Dyck(), "layer1.residual", SparseAutoencoder(k=8, steps=400, rows=ROWS),
        _with_svd(width, dictionaries), 500 if everything else 200, 1_000,
    )  # fmt: skip


PARTS: dict[str, Callable[..., Part]] = {"code-python": code_python, "code-java": code_java, "dyck": dyck}
"""All parts by name; the default run has the first."""


@dataclass(frozen=True)
class Done:
    """A finished part: its comparison, what its recipes make of vectors, and the loss that they recover.

    `vectors` and `losses` are those of the first subject, by proxy.
    """

    part: Part
    comparison: Comparison
    vectors: Mapping[str, pd.DataFrame]
    losses: Mapping[str, pd.DataFrame]
    bits: Mapping[str, float]
    folder: Path


def check_parts(only: Sequence[str], data: str | None = None) -> None:
    """Raise AssayError for an unknown part, one that is named twice, and code-java without functions."""
    for name in only:
        if name not in PARTS:
            raise unknown_name("part", name, PARTS)
    twice = {name for name in only if list(only).count(name) > 1}
    if twice:
        raise AssayError(f"{', '.join(sorted(twice))} is named twice.")
    if "code-java" in only and data is None:
        raise AssayError(
            "code-java needs functions: give --data, a CodeSearchNet file or folder, hub:NAME, or a folder."
        )


def run(
    folder: Path,
    *,
    everything: bool = False,
    only: Sequence[str] = (),
    data: str | None = None,
    device: str = "cpu",
    sequences: int | None = None,
    overwrite: bool = False,
    workers: Workers = Workers(),
    progress: Callable[[Step], None] = lambda step: None,
) -> tuple[list[Done], Illustrations]:
    """Train dictionaries in one layer, judge them in distribution and under every shift, leave a run folder.

    By default a TopK dictionary of the Python model beside SVD of equal bits; with `everything` more kinds, sizes and
    seeds, and the Dyck models, too. `only` names the parts to run (see `PARTS`), `sequences` how many sequences a split
    are judged; `data` has functions for code-java. Every part is a comparison in a folder of its name with a page of
    its own. A run that was stopped goes on where it was. Raises AssayError as `assay.compare` does, and as
    `check_parts`.
    """
    check_parts(only, data)
    chosen = list(only) or (["code-python", "dyck"] if everything else ["code-python"])
    done = []
    for name in chosen:
        progress(Step(0, 1, f"{name}: reading"))
        part = PARTS[name](everything=everything, device=device, data=data)
        if sequences is not None:
            part = replace(part, sequences=sequences)
        done.append(_judged(folder / name, part, overwrite, workers, progress))
    progress(Step(1, 1, "pages"))
    parts = [illustrations(one) for one in done]
    for name, one, own in zip(chosen, done, parts, strict=True):
        own.save(folder / name)
        write_figures(one.comparison, folder / name / "figures", own)
        write_page(one.comparison, folder / name / "report.html", own)
    shown = Illustrations(
        tables=[table for part in parts for table in part.tables],
        charts=[chart for part in parts for chart in part.charts],
    )
    write_page(done[0].comparison, folder / "report.html", shown)
    return done, shown


def _judged(folder: Path, part: Part, overwrite: bool, workers: Workers, progress: Callable[[Step], None]) -> Done:
    comparison = compare(
        part.subjects,
        part.task,
        part.recipes,
        sites=[part.site],
        folder=folder,
        sequences=part.sequences,
        fit_sequences=part.fit_sequences,
        overwrite=overwrite,
        workers=workers,
        progress=lambda step: progress(Step(step.done, step.total, f"{part.name}: {step.text}")),
    )
    subject = part.subjects[0]
    vectors, losses, bits = {}, {}, {}
    site = Engine(subject).site(part.site).name
    width = subject.model.config.hidden_size
    for number, recipe in enumerate(part.recipes):
        name = label(recipe)
        progress(Step(number, len(part.recipes), f"{part.name}: reconstruction"))
        fitted = comparison.fitted(name, site)
        vectors[name] = reconstruction(subject, part.task, fitted, sequences=part.sequences)
        losses[name] = loss_recovered(subject, part.task, fitted, sequences=part.sequences)
        counted = representation_bits(fitted, width=width, length=1, vectors=1, precision=PRECISION)
        bits[name] = counted.per_position
    return Done(part, comparison, vectors, losses, bits, folder)
