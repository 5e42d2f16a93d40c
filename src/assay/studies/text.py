"""One's own model and text: simplifications judged, and a run folder left."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from assay._errors import AssayError
from assay._files import remove
from assay.faithfulness import Comparison, Step, Workers, check_fits, compare
from assay.reports import Illustrations, write_figures, write_page
from assay.simplify import Simplification
from assay.studies._dictionary_views import tables_of
from assay.studies.counted import COUNTS, counted, counts_table, write_counts
from assay.studies.two_models import views
from assay.subjects import Subject
from assay.tasks import Pairs, Split, Task, Text, TextSource, bound, tasks

MAX_LENGTH = 256
"""Tokens a sequence, where the model has positions for as many and nothing else is said."""


def task_of(
    subject: Subject,
    fit: TextSource | None,
    splits: Mapping[str, TextSource],
    *,
    text_field: str = "text",
    max_length: int | None = None,
) -> Text:
    """The task of a subject and text: `fit` to fit on (None: nothing is), `splits["iid"]`, and every other a shift.

    Raises AssayError if the subject has no tokenizer, there is no split `iid`, a file is not there, a name is taken, or
    `max_length` (default: 256, or the subject's positions if those are fewer) is more than its positions.
    """
    check_reads(subject, max_length)
    assert subject.tokenizer is not None
    check_splits(splits)
    if fit is not None:
        check_source("fit", fit)
    shifts, positions = dict(splits), subject.positions
    return Text(
        subject.tokenizer,
        train=fit,
        iid=shifts.pop("iid"),
        shifts=shifts,
        max_length=max_length or min(MAX_LENGTH, positions or MAX_LENGTH),
        text_field=text_field,
        objective=subject.objective or "causal",
        prompt=subject.prompt,
    )


def check_reads(subject: Subject, max_length: int | None = None) -> None:
    """Raise AssayError if a subject reads no text, or not so many tokens."""
    if subject.tokenizer is None:
        raise AssayError(
            f"{subject.name!r} has no tokenizer, so it cannot read text; save one beside it "
            "(tokenizer.save_pretrained(folder))."
        )
    positions = subject.positions
    if max_length is not None and positions is not None and max_length > positions:
        raise AssayError(f"max_length={max_length}: {subject.name!r} has {positions} positions; give at most that.")


def check_splits(splits: Mapping[str, TextSource]) -> None:
    """Raise AssayError if there is no split `iid`, or a file is not there."""
    if "iid" not in splits:
        raise AssayError(
            f"the splits are {', '.join(splits) or 'none'}; exactly one must be called iid: text like that of fit, but "
            "held out (--split iid=FILE)."
        )
    for name, source in splits.items():
        check_source(name, source)


def check_source(name: str, source: TextSource) -> None:
    """Raise AssayError if a source of text is a file that is not there; `name` says what it is for."""
    is_file = isinstance(source, Path) or (isinstance(source, str) and not source.startswith("hub:"))
    if is_file and not Path(str(source)).is_file():
        raise AssayError(f"{name}: there is no file {str(source)!r}.")


def pairs_of(subject: Subject, sources: Sequence[str]) -> Pairs:
    """The task of files of pairs: one file, whose rows name their splits, or `NAME=FILE` for each split.

    Raises AssayError as `Pairs.read` does, for two files that name no split, and for pairs that are none in the
    subject's tokens, or in none of them.
    """
    named = dict(source.partition("=")[::2] for source in sources if "=" in source and not Path(source).is_file())
    if len(named) == len(sources):
        found = Pairs.read(named)
    elif len(sources) == 1:
        found = Pairs.read(sources[0])
    else:
        raise AssayError(
            f"pairs {', '.join(sources)}: give one file, or NAME=FILE for each split (train=…, iid=…, and "
            "shifts), each name once."
        )
    bound: Pairs = found if found.is_bound else found.bound_to(subject.tokenizer)
    for name in bound.split_names:
        bound.split(name, 1)
    return bound


def task_named(subject: Subject, specification: str) -> Task:
    """A task by its name and parameters, in the subject's tokens.

    Raises AssayError for an unknown name, parameters that do not fit it, and a task that is not made for the subject.
    """
    found: Task = bound(tasks.build(specification), subject.tokenizer)
    for name in found.split_names:
        check_fits([subject], found.split(name, 1))
    return found


def run(
    folder: Path,
    subject: Subject,
    task: Task,
    simplifications: Sequence[Simplification],
    *,
    sites: Sequence[str] = ("all",),
    positions: str = "all",
    sequences: int = 300,
    fit_sequences: int = 1_000,
    controls: bool = True,
    primary_metric: str | None = None,
    primary_kind: str | None = None,
    min_agreement: float = 0.95,
    max_gap: float = 0.02,
    chunks: Mapping[str, Split] | None = None,
    overwrite: bool = False,
    workers: Workers = Workers(),
    progress: Callable[[Step], None] = lambda step: None,
) -> tuple[Comparison, Illustrations]:
    """Judge simplifications of a subject on its text and leave a run folder with figures and a page.

    See `assay.compare` for the arguments and errors. A run that was stopped goes on where it was. With `chunks` (of
    `assay.studies.counted.chunks_of`), other models are also counted as llama.cpp does, in a table and counting.json.
    Gives the comparison, and what the page shows beside it of other models and of dictionaries.
    """
    comparison = compare(
        subject,
        task,
        simplifications,
        sites=sites,
        positions=positions,
        sequences=sequences,
        fit_sequences=fit_sequences,
        controls=controls,
        primary_metric=primary_metric,
        primary_kind=primary_kind,
        min_agreement=min_agreement,
        max_gap=max_gap,
        folder=folder,
        overwrite=overwrite,
        workers=workers,
        progress=progress,
    )
    progress(Step(1, 1, "figures"))
    shown = views(comparison, subject, task, simplifications, sequences, fit_sequences)
    of_dictionaries = tables_of(
        comparison,
        subject,
        task,
        simplifications,
        sequences=sequences,
        fit_sequences=fit_sequences,
        progress=lambda text: progress(Step(1, 1, text)),
    )
    shown = shown.model_copy(update={"tables": [*shown.tables, *of_dictionaries]})
    remove(folder / COUNTS)
    if chunks is not None:
        progress(Step(1, 1, "counting"))
        counts = counted(subject, simplifications, chunks)
        write_counts(folder, counts, chunks)
        shown = shown.model_copy(update={"tables": [*shown.tables, counts_table(comparison, counts, chunks)]})
    shown.save(folder)
    write_figures(comparison, folder / "figures", shown)
    write_page(comparison, folder / "report.html", shown)
    return comparison, shown
