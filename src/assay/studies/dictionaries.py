"""Dictionaries, judged off the distribution that they were trained on: as one experiment."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from assay._files import write_atomically
from assay.diagnostics import loss_recovered, reconstruction
from assay.dictionaries import SparseAutoencoder
from assay.engine import Engine, collect
from assay.faithfulness import REFITTED, Comparison, Step, Workers, compare
from assay.reports import Chart, FeatureView, Illustrations, Series, TableView
from assay.simplify import SVD, RandomPerturbation, Simplification, label, representation_bits
from assay.studies import code
from assay.studies._dictionary_views import Cell, cell, split_by_split, whole
from assay.studies._feature_views import feature_views
from assay.studies._parts import check_parts, run_parts, write_parts
from assay.subjects import Subject, load, shipped
from assay.tasks import Dyck, Task

VECTORS, LOSSES = "reconstruction.parquet", "losses.parquet"
"""Files of a run that have what the first subject's recipes make of vectors, and the loss that they recover."""

SHIFTS_DRAWN = 3
"""Shifts in a chart, at most: those of the largest gaps."""

SAME_BITS = 1.5
"""Recipes whose bits differ by less than this factor are drawn by name: an axis of bits would have no tick."""

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
            *(SparseAutoencoder(k=k, **options) for k in (8, 16, 32, 64, 128)),
            *(SparseAutoencoder(k=16, seed=seed, **options) for seed in (1, 2)),
            *(SparseAutoencoder(k=16, kind=kind, **options) for kind in KINDS),
        ]
    return Part(
        name,
        [subject],
        task,
        "layer2.residual",
        main,
        _with_svd(width, dictionaries),
        150 if everything else 60,
        1_000 if everything else 300,
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
    assert data is not None, "see check_names"
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

    `vectors` and `losses` are those of the first subject, by proxy; `pictures` are features of the main dictionary.
    """

    part: Part
    comparison: Comparison
    pictures: Sequence[FeatureView]
    vectors: Mapping[str, pd.DataFrame]
    losses: Mapping[str, pd.DataFrame]
    bits: Mapping[str, float]
    folder: Path


def check_names(only: Sequence[str], data: str | None = None) -> None:
    """Raise AssayError for an unknown part, one that is named twice, and `data` with nobody to use it, or missing."""
    check_parts(only, PARTS, data)


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
    `check_names`.
    """
    check_names(only, data)
    done = run_parts(
        folder,
        list(only) or (["code-python", "dyck"] if everything else ["code-python"]),
        lambda name: [PARTS[name](everything=everything, device=device, data=data)],
        _judged,
        sequences=sequences,
        overwrite=overwrite,
        workers=workers,
        progress=progress,
    )
    return done, write_parts(folder, done, [illustrations(one) for one in done])


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
    engine = Engine(subject)
    site = engine.site(part.site)
    train = part.task.split(part.task.split_names[0], part.fit_sequences)
    samples = collect(engine, train, site.read).at(site)
    for number, recipe in enumerate(part.recipes):
        name = label(recipe)
        progress(Step(number, len(part.recipes), f"{part.name}: reconstruction"))
        kept = getattr(recipe, "keeps", False)
        fitted = comparison.fitted(name, site.name) if kept else copy.deepcopy(recipe).fit(samples)
        vectors[name] = reconstruction(subject, part.task, fitted, sequences=part.sequences)
        losses[name] = loss_recovered(subject, part.task, fitted, sequences=part.sequences)
        width = subject.model.config.hidden_size
        counted = representation_bits(fitted, width=width, length=1, vectors=1, precision=PRECISION)
        bits[name] = counted.per_position
    progress(Step(1, 1, f"{part.name}: features"))
    for file, frames in ((VECTORS, vectors), (LOSSES, losses)):
        whole = pd.concat([frame.assign(proxy=name) for name, frame in frames.items()], ignore_index=True)
        write_atomically(folder / file, lambda path, whole=whole: whole.to_parquet(path))  # type: ignore[misc]
    main = comparison.fitted(label(part.main), site.name)
    pictures = feature_views(subject, part.task, main, sequences=part.sequences)
    return Done(part, comparison, pictures, vectors, losses, bits, folder)


def illustrations(done: Done) -> Illustrations:
    """What a part adds to its comparison: tables, and curves over bits."""
    shown = label(done.part.main)
    return Illustrations(
        tables=[
            overview(done),
            under_shifts(done),
            split_by_split(f"{done.part.name}: {shown}", done.vectors[shown], done.losses[shown]),
            by_kind(done, shown),
        ],
        charts=[by_bits(done, "same_prediction"), by_bits(done, "explained")],
        features=list(done.pictures),
    )


def _agreements(done: Done) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Same prediction of every proxy on every split, those refitted among them."""
    return {
        (row["proxy"], split.name): row
        for split in done.comparison.record.splits
        if split.role != "train"
        for row in done.comparison.agreement(split.name).to_dict("records")
    }


def _gaps(done: Done) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {(row["proxy"], row["split"]): row for row in done.comparison.gaps().to_dict("records") if row["trained"]}


def overview(done: Done) -> TableView:
    """Every recipe: bits, what it explains and how often it agrees, in distribution and where it is worst."""
    agreements, comparison = _agreements(done), done.comparison
    verdicts = {verdict.proxy: verdict for verdict in comparison.verdicts()}
    rows = []
    for recipe in done.part.recipes:
        name = label(recipe)
        verdict = verdicts[name]
        worst = min(comparison.shifts, key=lambda shift, name=name: agreements[name, shift]["estimate"])  # type: ignore[misc]
        control = recipe.control()
        at_random = {} if control is None else agreements.get((label(control), "iid"), {})
        equal = agreements.get((label(RandomPerturbation(recipe)), "iid"), {})
        losses = whole(done.losses[name], "iid")
        rows.append([
            (name, ""),
            (f"{done.bits[name]:.0f}", ""),
            cell(whole(done.vectors[name], "iid"), "explained"),
            cell(losses, "recovered_from_zeros"),
            cell(agreements[name, "iid"], "estimate", scale=100.0, digits=1, ends=""),
            cell(at_random, "estimate", scale=100.0, digits=1, ends=""),
            cell(equal, "estimate", scale=100.0, digits=1, ends=""),
            cell(whole(done.vectors[name], worst), "explained"),
            cell(agreements[name, worst], "estimate", scale=100.0, digits=1, ends=""),
            (worst.replace("_", " "), ""),
            (verdict.judgement, ""),
        ])  # fmt: skip
    return TableView(
        title=f"{done.part.name}, {done.part.site}: dictionaries beside projections of equal bits",
        note="Bits: of what is kept at each position, numbers of 16 bits; the choice of k features of F counts as "
        "log2 of how many there are. Explained: the share of variance, each split by its own mean. Loss recovered: "
        "from zeros in the place of the vectors, the field's usual number. Same prediction: per cent. Random: as many "
        "random directions with one fitted length. Equal noise: every vector moved as far in a random direction. The "
        "worst shift is the one of least agreement. Explained and loss are of the first training seed.",
        headings=[
            "recipe", "bits", "explained, iid", "loss recovered, iid", "same prediction, iid", "random", "equal noise",
            "explained, worst shift", "same prediction, worst shift", "worst shift", "verdict",
        ],
        rows=rows,
    )  # fmt: skip


def under_shifts(done: Done) -> TableView:
    """Under every shift: the gaps, at equal margin, and what refitting gives back."""
    agreements, gaps = _agreements(done), _gaps(done)
    rows = []
    for recipe in done.part.recipes:
        name = label(recipe)
        for shift in done.comparison.shifts:
            again = agreements.get((f"{name}{REFITTED}", shift), {})
            rows.append([
                (f"{name}, {shift.replace('_', ' ')}", ""),
                cell(whole(done.vectors[name], shift), "gap"),
                cell(gaps[name, shift], "gap", scale=100.0, digits=1, ends=""),
                cell(gaps[name, shift], "matched", scale=100.0, digits=1),
                cell(agreements[name, shift], "estimate", scale=100.0, digits=1, ends=""),
                cell(again, "estimate", scale=100.0, digits=1, ends=""),
            ])  # fmt: skip
    return TableView(
        title=f"{done.part.name}: gaps, and what refitting gives back",
        note="Gap: on iid less under the shift, of the variance that is explained and of the same prediction (points; "
        "at equal margin: iid re-weighted to the shift's margins of the subject). Refitted: the same recipe trained on "
        f"other sequences of the shift. Where a recipe says rows={ROWS}, it has seen as many vectors in both trainings "
        "(fewer where a shift has fewer); elsewhere refitting has fewer, and may look like a cost.",
        headings=[
            "recipe, shift", "gap of the variance explained", "gap of the same prediction", "at equal margin",
            "same prediction", "same prediction, refitted",
        ],
        rows=rows,
        quiet=True,
    )  # fmt: skip


def by_kind(done: Done, name: str) -> TableView:
    """The gap of a dictionary by kind of prediction and shift."""
    comparison = done.comparison
    rows = []
    for kind in comparison.record.kinds:
        gaps = comparison.gaps(kind=kind.name)
        own = gaps[(gaps["proxy"] == name) & gaps["trained"]].set_index("split")
        cells: list[Cell] = [(kind.name.replace("_", " "), "")]
        for shift in comparison.shifts:
            row = own.loc[shift].to_dict() if shift in own.index else {}
            cells.append(cell(row, "gap", scale=100.0, digits=1, ends=""))
        rows.append(cells)
    return TableView(
        title=f"{done.part.name}: {name}, gap of the same prediction by kind",
        note="Points: same prediction on iid less under the shift, of predictions of the kind. Where the subject "
        "itself is less certain of a kind, some gap is to be expected; – where there are too few.",
        headings=["kind", *(shift.replace("_", " ") for shift in comparison.shifts)],
        rows=rows,
        quiet=True,
    )


def by_bits(done: Done, what: str) -> Chart:
    """Same prediction or the variance explained against bits, in distribution and under the shifts of largest gaps.

    Where all recipes have about the same bits, they stand beside each other by name.
    """
    agreements, gaps = _agreements(done), _gaps(done)
    main = label(done.part.main)
    order = sorted(done.comparison.shifts, key=lambda shift: -float(gaps[main, shift]["gap"]))
    alike = max(done.bits.values()) < SAME_BITS * min(done.bits.values())
    families: dict[str, list[str]] = {}
    for recipe in done.part.recipes:
        families.setdefault("" if alike else _family(recipe), []).append(label(recipe))
    series = []
    for split in ("iid", *order[:SHIFTS_DRAWN]):
        for family, names in families.items():
            known = names if alike else sorted(names, key=done.bits.__getitem__)
            if what == "explained":
                rows = [whole(done.vectors[name], split) for name in known]
                keys, scale = ("explained", "explained_low", "explained_high"), 1.0
            else:
                rows = [agreements[name, split] for name in known]
                keys, scale = ("estimate", "low", "high"), 100.0
            values: dict[str, Any] = {
                axis: [_or_none(scale * float(row[key])) for row in rows]
                for axis, key in zip(("y", "low", "high"), keys, strict=True)
            }
            x = [float(number) for number in range(len(known))] if alike else [done.bits[name] for name in known]
            series.append(Series(name=split.replace("_", " "), variant=family, x=x, **values))
    words = "share of variance explained" if what == "explained" else "same prediction as the subject, %"
    bits = (
        f"of recipes that keep about {np.mean(list(done.bits.values())):.0f} bits at a position"
        if alike
        else "against the bits kept at a position"
    )
    return Chart(
        name=f"{what.replace('_', '-')}-by-bits-{done.part.name}",
        caption=f"{done.part.name}, {done.part.site}: {words}, {bits} (numbers of 16 bits, codebooks not counted), "
        f"in distribution and under {min(len(order), SHIFTS_DRAWN)} shifts.",
        x_label="recipe" if alike else "bits a position",
        y_label=words,
        names=[label(recipe) for recipe in done.part.recipes] if alike else None,
        series=series,
        logarithmic=not alike,
    )


def _family(recipe: Simplification) -> str:
    """What is joined by a line: recipes of one kind, whatever their size; rows and seeds apart."""
    if not isinstance(recipe, SparseAutoencoder):
        return type(recipe).__name__
    few = "" if recipe.rows is None else f", {recipe.rows:,} vectors"
    return f"{recipe.kind}{few}" + (f", seed {recipe.seed}" if recipe.seed else "")


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value
