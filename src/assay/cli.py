"""The command line. Each command calls one public function.

Exit status: 0 done, 1 the work failed, 2 the call was wrong, 3 a verdict is not what was required.
"""

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from assay._errors import AssayError, unknown_name

app = typer.Typer(
    help="Test what an explanation of a Transformer is worth.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
run_app = typer.Typer(help="Run a whole experiment on the shipped models.", no_args_is_help=True)
train_app = typer.Typer(help="Train a reference model; goes on where it was interrupted.", no_args_is_help=True)
app.add_typer(run_app, name="run")
app.add_typer(train_app, name="train")

# Names and errors hold text of others: no emoji codes, and markup only where it is written here.
out = Console(highlight=False, emoji=False)
err = Console(stderr=True, highlight=False, emoji=False)

Device = Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")]
Jobs = Annotated[int, typer.Option("--jobs", help="Processes that share the work; -1: one a core.")]
Dask = Annotated[str | None, typer.Option("--dask", help="Address of a Dask scheduler whose workers do it.")]
OutFolder = Annotated[
    Path | None, typer.Option("--out", help="Run folder; an unfinished run in it goes on.", file_okay=False)
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the finished run of another study that --out holds.")
]
Functions = Annotated[str, typer.Option(help="python, hub:NAME, a CodeSearchNet file or folder, or a folder.")]
Language = Annotated[str | None, typer.Option(help="Training language, where the data does not say.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print machine-readable output instead of tables.")]


def main() -> None:
    """Run the command line."""
    try:
        app()
    except AssayError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(1)
    except OSError as error:
        err.print(
            f"[bold red]error:[/] {escape(str(error))}; what was finished is kept: run again with the same --out.",
            soft_wrap=True,
        )
        sys.exit(1)
    except KeyboardInterrupt:
        err.print("stopped; run the same command with the same --out to go on.")
        sys.exit(1)


def _argument(name: str, value: Callable[[], Any]) -> Any:
    """The value of an argument; one that cannot be is a wrong call (exit status 2)."""
    try:
        return value()
    except AssayError as error:
        raise typer.BadParameter(str(error), param_hint=f"--{name}") from None


def _operations(text: str) -> int:
    """A number of operations, which may be written as a float."""
    try:
        number = int(float(text))
    except (ValueError, OverflowError):
        number = 0
    if number < 1:
        raise typer.BadParameter(f"{text!r} is no number of operations; give one such as 1e12.")
    return number


@contextmanager
def _progress() -> Iterator[Progress]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=err, transient=not err.is_terminal) as bar:
        yield bar


def _follow(bar: Progress, line: TaskID) -> Callable[[Any], None]:
    """Shows the steps of a comparison on a line of the bar."""
    return lambda step: bar.update(line, description=step.text, completed=step.done, total=step.total)


def _say_where(folder: Path) -> None:
    out.print(
        f"\nThe run is in {escape(str(folder))}; open [bold]{escape(str(folder / 'report.html'))}[/]", soft_wrap=True
    )


def _print_run(comparison: Any, shown: Any, folder: Path) -> None:
    """The tables of a study that are for the terminal, those of every comparison, and where the run is."""
    from assay.reports import terminal, terminal_table  # noqa: PLC0415

    for table in shown.tables:
        if not table.quiet:
            out.print(terminal_table(table), "")
    out.print(terminal(comparison))
    _say_where(folder)


def _print_parts(done: Sequence[Any], shown: Any, folder: Path, *, markdown: Path | None, as_json: bool) -> None:
    """What a study of several parts leaves: its tables, in the terminal and as Markdown, and where the pages are."""
    from assay.reports import terminal_table, write_tables  # noqa: PLC0415

    if markdown is not None:
        write_tables(shown.tables, markdown)
    if as_json:
        tables = {table.title: [table.headings, *table.rows] for table in shown.tables}
        parts = {one.part.name: _summary(one.comparison, one.folder) for one in done}
        print(json.dumps({"folder": str(folder), "tables": tables, "parts": parts}, indent=2))
        return
    for table in shown.tables:
        if not table.quiet:
            out.print(terminal_table(table), "")
    for one in done:
        out.print(f"{escape(one.part.name)}: {escape(str(one.folder / 'report.html'))}", soft_wrap=True)
    _say_where(folder)


def _default_folder(study: str) -> Path:
    return Path("assay-runs") / f"{study}-{datetime.now():%Y%m%d-%H%M%S}"


@run_app.command("dyck")
def run_dyck(
    full: Annotated[bool, typer.Option("--full", help="All seeds, sites and ranks, 2,000 sequences a split.")] = False,
    seed: Annotated[int | None, typer.Option(help="Training seed of the shipped model (default 0).")] = None,
    sequences: Annotated[int | None, typer.Option(min=2, help="Sequences a split (default 300, full 2,000).")] = None,
    sentence: Annotated[str | None, typer.Option(help="A sentence to draw, such as '(0 (3 3) 0)'.")] = None,
    device: Device = "cpu",
    jobs: Jobs = 1,
    dask: Dask = None,
    out_folder: OutFolder = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Judge simplifications of bracket matchers in and out of distribution."""
    from assay.faithfulness import Workers  # noqa: PLC0415  (keeps --help fast)
    from assay.reports import terminal  # noqa: PLC0415
    from assay.studies import dyck  # noqa: PLC0415
    from assay.subjects import check_seed, resolve_device  # noqa: PLC0415
    from assay.tasks import Dyck  # noqa: PLC0415

    workers = _argument("jobs", lambda: Workers(jobs, dask))
    if full and seed is not None:
        raise typer.BadParameter("--full runs every seed; leave out --seed.", param_hint="--seed")
    device = _argument("device", lambda: resolve_device(device))
    _argument("seed", lambda: check_seed(dyck.SUBJECT, seed or 0))
    if sentence is not None:
        _argument("sentence", lambda: Dyck().read_sentence(sentence))
    folder = out_folder or _default_folder("dyck")
    with _progress() as bar:
        line = bar.add_task("starting", total=None)
        comparison = dyck.run(
            folder,
            everything=full,
            seed=seed or 0,
            device=device,
            sequences=sequences,
            sentence=sentence,
            overwrite=overwrite,
            workers=workers,
            progress=_follow(bar, line),
        )
    if as_json:
        print(json.dumps(_summary(comparison, folder), indent=2))
        return
    out.print(terminal(comparison))
    _say_where(folder)


_PARTS = (
    "per_sequence", "per_sequence_low", "per_sequence_high",
    "matched", "matched_low", "matched_high", "effective", "matched_reason",
    "overlap", "overlap_low", "overlap_high", "outside", "outside_low", "outside_high",
    "perturbed", "perturbed_low", "perturbed_high",
    "removed", "removed_low", "removed_high", "remaining", "remaining_low", "remaining_high",
)  # fmt: skip
"""What a gap is made of: the columns of `Comparison.gaps` that say so."""


def _summary(comparison: Any, folder: Path) -> dict[str, Any]:
    """What `--json` prints: verdicts and what to know beforehand, agreement, gaps and comparisons with the controls.

    The folder holds the rest.
    """
    columns = ["proxy", "site", "trained", "is_control", "split"]
    agreement = [
        comparison.agreement(split.name, trained=trained)
        for split in comparison.record.splits[1:]
        for trained in (True, False)
    ]
    return {
        "folder": str(folder),
        "primary_kind": comparison.record.primary_kind,
        "primary_metric": comparison.record.primary_metric,
        "noise_floor": comparison.record.noise_floor.model_dump(),
        "warnings": list(comparison.warnings()),
        "detectable": comparison.detectable(),
        "verdicts": [_plain({**vars(verdict), "text": str(verdict)}) for verdict in comparison.verdicts()],
        comparison.record.primary_metric: [
            row for part in agreement for row in _records(part, [*columns, "estimate", "low", "high", "sequences"])
        ],
        "gaps": _records(comparison.gaps(), [*columns, "gap", "low", "high", "p_holm", *_PARTS]),
        "controls": _records(comparison.controls(), list(comparison.controls().columns)),
    }


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row with null for what is not a number."""
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}


def _records(frame: Any, columns: list[str]) -> list[dict[str, Any]]:
    """Rows as plain values, null where there is none."""
    rows: list[dict[str, Any]] = json.loads(frame[columns].to_json(orient="records", double_precision=15))
    return rows


@train_app.command("dyck")
def train_dyck(
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the order of the data.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps (default: the recipe's).")] = None,
    device: Device = "cpu",
    out_folder: Annotated[Path | None, typer.Option("--out", help="Folder of the model.", file_okay=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Train the Dyck reference model."""
    from dataclasses import replace  # noqa: PLC0415

    from assay.studies import dyck  # noqa: PLC0415
    from assay.subjects import DYCK_RECIPE, resolve_device  # noqa: PLC0415

    device = _argument("device", lambda: resolve_device(device))
    folder = out_folder or Path("assay-models") / dyck.SUBJECT / f"seed-{seed}"
    recipe = DYCK_RECIPE if steps is None else replace(DYCK_RECIPE, steps=steps)
    with _progress() as bar:
        line = bar.add_task("training", total=recipe.steps)
        subject = dyck.train(
            folder,
            seed=seed,
            device=device,
            recipe=recipe,
            progress=lambda now: bar.update(line, completed=now.step, description=f"loss {now.loss:.3f} nats"),
            measuring=lambda step: bar.update(line, description=step.text, completed=step.done, total=step.total),
        )
    if as_json:
        print(json.dumps({"folder": str(folder), **subject.record}, indent=2))
        return
    for split, accuracy in subject.record["accuracy"].items():
        out.print(f"{split:24} " + "  ".join(f"{kind} {value:.4f}" for kind, value in accuracy.items()))
    out.print(f"The model is in {escape(str(folder))}", soft_wrap=True)


@train_app.command("code")
def train_code(
    data: Functions = "python",
    language: Language = None,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the order of the data.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps (default: the recipe's).")] = None,
    device: Device = "cpu",
    out_folder: Annotated[Path | None, typer.Option("--out", help="Folder of the model.", file_okay=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Train a character-level model of program functions."""
    from dataclasses import replace  # noqa: PLC0415

    from assay.studies import code  # noqa: PLC0415
    from assay.subjects import CODE_RECIPE, resolve_device  # noqa: PLC0415
    from assay.tasks import Code  # noqa: PLC0415

    device = _argument("device", lambda: resolve_device(device))
    recipe = CODE_RECIPE if steps is None else replace(CODE_RECIPE, steps=steps)
    with _progress() as bar:
        line = bar.add_task("reading functions", total=None)
        task = _argument("data", lambda: Code.from_data(data, language))
        folder = out_folder or Path("assay-models") / task.name / f"seed-{seed}"
        bar.update(line, total=recipe.steps)
        subject = code.train(
            folder,
            task=task,
            seed=seed,
            device=device,
            recipe=recipe,
            progress=lambda now: bar.update(line, completed=now.step, description=f"loss {now.loss:.3f} nats"),
        )
    if as_json:
        print(json.dumps({"folder": str(folder), **subject.record}, indent=2))
        return
    for split, measured in subject.record["measured"].items():
        bits, accuracy = measured["bits_per_character"], measured["accuracy"]
        out.print(f"{split:20} {bits:.3f} bits a character  accuracy {accuracy:.3f}  {measured['functions']} functions")
    out.print(f"The model is in {escape(str(folder))}", soft_wrap=True)


@run_app.command("code")
def run_code(
    full: Annotated[bool, typer.Option("--full", help="All recipes, 300 functions a split: hours on a CPU.")] = False,
    model: Annotated[str, typer.Option(help="A shipped model, or a folder made by assay train code.")] = "code-python",
    data: Functions = "python",
    language: Language = None,
    functions: Annotated[int | None, typer.Option(min=2, help="Functions a split (default 20, full 300).")] = None,
    fit_functions: Annotated[
        int | None, typer.Option(min=2, help="Functions to fit on (default 50, full 1,000).")
    ] = None,
    device: Device = "cpu",
    jobs: Jobs = 1,
    dask: Dask = None,
    out_folder: OutFolder = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Judge simplifications of a character model of functions on depths, repositories and languages not seen."""
    from assay.faithfulness import Workers  # noqa: PLC0415  (keeps --help fast)
    from assay.studies import code  # noqa: PLC0415
    from assay.subjects import load, resolve_device  # noqa: PLC0415

    workers = _argument("jobs", lambda: Workers(jobs, dask))
    device = _argument("device", lambda: resolve_device(device))
    subject = load(model, device=device)
    _argument("model", lambda: code.vocabulary_of(subject))
    folder = out_folder or _default_folder("code")
    with _progress() as bar:
        line = bar.add_task("reading functions", total=None)
        task = _argument("data", lambda: code.task_of(subject, data, language))
        comparison, shown = code.run(
            folder,
            subject,
            task,
            everything=full,
            functions=functions,
            fit_functions=fit_functions,
            overwrite=overwrite,
            workers=workers,
            progress=_follow(bar, line),
        )
    if as_json:
        tables = {table.title: [table.headings, *table.rows] for table in shown.tables}
        print(json.dumps({**_summary(comparison, folder), "tables": tables}, indent=2))
        return
    _print_run(comparison, shown, folder)


@run_app.command("compressed")
def run_compressed(
    full: Annotated[
        bool, typer.Option("--full", help="Five Dyck seeds, pruning and low ranks, more sequences: an hour on a CPU.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help="dyck, code-python, code-java, encoder or smollm2 (slow), repeated (default the first two)."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Functions for code-java: a CodeSearchNet file or folder, hub:NAME, or a folder.")
    ] = None,
    sequences: Annotated[int | None, typer.Option(min=2, help="Sequences a split.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Also write the tables as Markdown to this file.")] = None,
    device: Device = "cpu",
    jobs: Jobs = 1,
    dask: Dask = None,
    out_folder: OutFolder = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Judge compressed copies of models: rounded, pruned, of low rank, and a table of n-grams in their place."""
    from assay.faithfulness import Workers  # noqa: PLC0415  (keeps --help fast)
    from assay.studies import compressed  # noqa: PLC0415
    from assay.subjects import resolve_device  # noqa: PLC0415

    workers = _argument("jobs", lambda: Workers(jobs, dask))
    device = _argument("device", lambda: resolve_device(device))
    _argument("only", lambda: compressed.check_parts(only or (), data))
    folder = out_folder or _default_folder("compressed")
    with _progress() as bar:
        line = bar.add_task("starting", total=None)
        done, shown = compressed.run(
            folder,
            everything=full,
            only=only or (),
            data=data,
            device=device,
            sequences=sequences,
            overwrite=overwrite,
            workers=workers,
            progress=_follow(bar, line),
        )
    _print_parts(done, shown, folder, markdown=markdown, as_json=as_json)


@run_app.command("circuits")
def run_circuits(
    full: Annotated[
        bool, typer.Option("--full", help="Five Dyck seeds, more methods, sizes and pairs: an hour on a CPU.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help="dyck, induction or smollm2 (slow), repeated (default the first two)."),
    ] = None,
    sequences: Annotated[int | None, typer.Option(min=2, help="Pairs a split.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Also write the tables as Markdown to this file.")] = None,
    device: Device = "cpu",
    jobs: Jobs = 1,
    dask: Dask = None,
    out_folder: OutFolder = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Find circuits on pairs, and judge them under shifts, beside random ones and those found there."""
    from assay.faithfulness import Workers  # noqa: PLC0415  (keeps --help fast)
    from assay.studies import circuits  # noqa: PLC0415
    from assay.subjects import resolve_device  # noqa: PLC0415

    workers = _argument("jobs", lambda: Workers(jobs, dask))
    device = _argument("device", lambda: resolve_device(device))
    _argument("only", lambda: circuits.check_parts(only or ()))
    folder = out_folder or _default_folder("circuits")
    with _progress() as bar:
        line = bar.add_task("starting", total=None)
        done, shown = circuits.run(
            folder,
            everything=full,
            only=only or (),
            device=device,
            sequences=sequences,
            overwrite=overwrite,
            workers=workers,
            progress=_follow(bar, line),
        )
    _print_parts(done, shown, folder, markdown=markdown, as_json=as_json)


@run_app.command("max-of-k")
def run_max_of_k(
    out_folder: Annotated[Path | None, typer.Option("--out", help="Run folder.", file_okay=False)] = None,
    overwrite: Overwrite = False,
    quick: Annotated[bool, typer.Option("--quick", help="Only the models with K = 4, without brute force.")] = False,
    markdown: Annotated[Path | None, typer.Option(help="Also write the tables as Markdown to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Prove how often the shipped max-of-K models are right, over all inputs, by every strategy."""
    from assay.studies import max_of_k  # noqa: PLC0415  (keeps --help fast)

    folder = out_folder or _default_folder("max-of-k")
    with _progress() as bar:
        line = bar.add_task("starting", total=None)
        results = max_of_k.run(
            folder,
            quick=quick,
            overwrite=overwrite,
            progress=lambda done, total, text: bar.update(line, description=text, completed=done, total=total),
        )
    if markdown is not None:
        sampled = max_of_k.sampled_lines(
            dict.fromkeys((item.model, item.seed) for item in results if item.group == "frontier")
        )
        max_of_k.write_markdown(results, sampled, markdown)
    if as_json:
        print(json.dumps([result.row() for result in results], indent=2))
        return
    out.print(max_of_k.terminal(results))
    _say_where(folder)


@train_app.command("max-of-k")
def train_max_of_k(
    name: Annotated[str, typer.Argument(help="Which model: max-of-4, max-of-10, linear-max-of-2, …")] = "max-of-4",
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the data.")] = 0,
    device: Device = "cpu",
    out_folder: Annotated[Path | None, typer.Option("--out", help="Folder of the models.", file_okay=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Train a model that names the largest of K tokens."""
    from assay.studies import max_of_k  # noqa: PLC0415
    from assay.subjects import resolve_device  # noqa: PLC0415

    device = _argument("device", lambda: resolve_device(device))
    task = _argument("name", lambda: max_of_k.task_of(name))
    folder = out_folder or Path("assay-models")
    with _progress() as bar:
        line = bar.add_task("training", total=None)
        subject = max_of_k.train(
            name,
            seed=seed,
            folder=folder,
            device=device,
            report=lambda now: bar.update(
                line, completed=now.step, total=now.steps, description=f"loss {now.loss:.3f} nats"
            ),
        )
    if as_json:
        print(json.dumps({"folder": str(folder / name / f"seed-{seed}"), **subject.record}, indent=2))
        return
    out.print(f"{task.name}: accuracy {subject.record['iid_accuracy']:.4f} on fresh sequences")
    out.print(f"The model is in {folder / name / f'seed-{seed}'}", highlight=False, soft_wrap=True)


@app.command("compare")
def compare_text(
    model: Annotated[str, typer.Argument(help="A folder, a Hugging Face name, or a shipped model.")],
    split: Annotated[
        list[str] | None, typer.Option(help="NAME=FILE, repeated; one is iid, the others are shifts.")
    ] = None,
    pairs: Annotated[
        list[str] | None,
        typer.Option(
            help="Pairs instead of text, for circuits: a file whose rows name their splits, or NAME=FILE, repeated."
        ),
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(help="Text to fit on: .txt, .jsonl(.gz), .parquet, or hub:NAME; not needed for --with alone."),
    ] = None,
    simplify: Annotated[
        list[str] | None,
        typer.Option(
            help="Such as svd:rank=8, one-hot (see assay list), or your class: file.py:Name(rank=4); repeated."
        ),
    ] = None,
    others: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            help="Another model to judge in MODEL's place, repeated: a folder, a name, a .gguf file, an adapter, or "
            "what assay store wrote.",
        ),
    ] = None,
    same_tokenizer: Annotated[
        bool, typer.Option("--same-tokenizer", help="Models of --with without a tokenizer have that of MODEL.")
    ] = False,
    sites: Annotated[
        list[str] | None,
        typer.Option(help="all (default), layer0.head1, layer2.mlp, all-heads …, repeated; A+B is one site."),
    ] = None,
    positions: Annotated[
        str, typer.Option(help="all, or scored: sites are changed only where predictions are scored.")
    ] = "all",
    text_field: Annotated[str, typer.Option(help="Field with the text, where the files have fields.")] = "text",
    max_length: Annotated[int | None, typer.Option(min=2, help="Tokens a sequence (default at most 256).")] = None,
    sequences: Annotated[int, typer.Option(min=2, help="Sequences a split.")] = 300,
    fit_sequences: Annotated[int, typer.Option(min=2, help="Sequences to fit on.")] = 1_000,
    objective: Annotated[
        str | None, typer.Option(help="causal, masked or embedding (default: as the model is).")
    ] = None,
    pooling: Annotated[str | None, typer.Option(help="mean, cls, last or max, for embeddings.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Text before every sequence, for embeddings.")] = None,
    seed: Annotated[int, typer.Option(help="Training seed of a shipped model.")] = 0,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16 (default: the checkpoint's).")] = None,
    device: Device = "cpu",
    controls: Annotated[bool, typer.Option(help="Judge controls and a shuffled copy too.")] = True,
    primary_kind: Annotated[
        str | None, typer.Option(help="Kind of prediction that verdicts are about, such as repeated (default all).")
    ] = None,
    primary_metric: Annotated[
        str | None, typer.Option(help="Rate that verdicts rest on (default same_prediction, or same_neighbour).")
    ] = None,
    require: Annotated[
        str | None, typer.Option(help="faithful or identical: what every verdict has to be, else exit status 3.")
    ] = None,
    min_agreement: Annotated[float, typer.Option(help="Agreement that verdicts ask for in distribution.")] = 0.95,
    max_gap: Annotated[float, typer.Option(help="How much less they allow under a shift.")] = 0.02,
    junit: Annotated[
        Path | None, typer.Option(help="With --require: also write the verdicts as a JUnit file.", dir_okay=False)
    ] = None,
    counting: Annotated[
        str | None, typer.Option(help="llama.cpp: count the models of --with as it does, too, beside Assay's numbers.")
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=3, help="With --counting: tokens a chunk, whose second half counts (default 512).")
    ] = None,
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Read pytorch_model.bin, tensors only.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code that comes with the model.")
    ] = False,
    jobs: Jobs = 1,
    dask: Dask = None,
    out_folder: OutFolder = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Judge simplifications of your own model, or other models in its place, on your own text.

    Exit status: 0 done, 1 the work failed, 2 the call was wrong, 3 a verdict is not what --require asks for.
    """
    from assay.engine import engine_of  # noqa: PLC0415  (keeps --help fast)
    from assay.faithfulness import Requirement, Workers, resolve_metrics, resolve_primary  # noqa: PLC0415
    from assay.models import CONTEXT  # noqa: PLC0415
    from assay.reports import write_junit  # noqa: PLC0415
    from assay.simplify import is_whole, simplifications  # noqa: PLC0415
    from assay.studies import counted, text  # noqa: PLC0415
    from assay.subjects import (  # noqa: PLC0415
        load,
        resolve_device,
        resolve_dtype,
        resolve_objective,
        resolve_pooling,
    )

    workers = _argument("jobs", lambda: Workers(jobs, dask))
    bars = _shares(min_agreement=min_agreement, max_gap=max_gap)
    requirement = _argument("require", lambda: Requirement(require or "faithful"))
    if junit is not None and require is None:
        raise typer.BadParameter("say what is required of the verdicts: --require faithful.", param_hint="--junit")
    if context is not None and counting is None:
        raise typer.BadParameter("chunks are what others count: --counting llama.cpp.", param_hint="--context")
    recipes = _argument("simplify", lambda: [simplifications.build(specification) for specification in simplify or ()])
    _check_source(split, pairs, (fit, max_length, counting))
    _check_asked(recipes, others or (), fit or pairs, sites or (), positions)
    splits = _argument("split", lambda: _splits(split or []))
    device = _argument("device", lambda: resolve_device(device))
    precision = None if dtype is None else _argument("dtype", lambda: resolve_dtype(dtype))
    asked = None if objective is None else _argument("objective", lambda: resolve_objective(objective))
    pooled = None if pooling is None else _argument("pooling", lambda: resolve_pooling(pooling))
    subject = _argument(
        "model",
        lambda: load(
            model,
            seed=seed,
            device=device,
            dtype=precision,
            objective=asked,
            pooling=pooled,
            prompt=prompt,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
        ),
    )
    recipes += _argument("with", lambda: _others(others or (), subject, same_tokenizer))
    engine = engine_of(subject, parts=not all(map(is_whole, recipes)))
    _argument("sites", lambda: engine.sites(sites or ["all"]))
    make = partial(text.task_of, subject, fit, splits, text_field=text_field, max_length=max_length)
    task = _argument("pairs", lambda: text.pairs_of(subject, pairs)) if pairs else _argument("split", make)
    basis = (task, subject.objective, resolve_metrics(subject.objective, of_models=bool(others)))
    _argument("primary-metric", lambda: resolve_primary(*basis, primary_metric, kind="all"))
    _argument("primary-kind", lambda: resolve_primary(*basis, primary_metric, primary_kind))
    cut = partial(counted.chunks_of, subject, task, recipes, context=context or CONTEXT, chunks=sequences)
    chunks = None if counting is None else _argument("counting", partial(cut, counting))
    folder = out_folder or _default_folder("compare")
    with _progress() as bar:
        line = bar.add_task("starting", total=None)
        comparison, shown = text.run(
            folder,
            subject,
            task,
            recipes,
            sites=sites or ["all"],
            positions=positions,
            sequences=sequences,
            fit_sequences=fit_sequences,
            controls=controls,
            primary_metric=primary_metric,
            primary_kind=primary_kind,
            **bars,
            chunks=chunks,
            overwrite=overwrite,
            workers=workers,
            progress=_follow(bar, line),
        )
    failing = requirement.failing(comparison.verdicts()) if require is not None else []
    if junit is not None:
        write_junit(comparison, junit, requirement)
    if as_json:
        required = None if require is None else {"judgement": require, **bars, "met": not failing}
        tables = {table.title: [table.headings, *table.rows] for table in shown.tables}
        counts = None if chunks is None else json.loads((folder / counted.COUNTS).read_bytes())
        printed = {**_summary(comparison, folder), "tables": tables, "required": required, "counting": counts}
        print(json.dumps(printed, indent=2))
    else:
        _print_run(comparison, shown, folder)
    _exit_if(failing, require)


def _exit_if(failing: Sequence[Any], required: str | None) -> None:
    """Say which verdicts are not what is required, and leave with exit status 3 if there are any."""
    for verdict in failing:
        err.print(f"[bold red]required {required}:[/] {escape(str(verdict))}", soft_wrap=True)
    if failing:
        raise typer.Exit(3)


@app.command("store")
def store_text(
    model: Annotated[str, typer.Argument(help="A folder, a Hugging Face name, a .gguf file, or a shipped model.")],
    split: Annotated[list[str], typer.Option(help="NAME=FILE, repeated, as in the comparison to come.")],
    out_folder: Annotated[Path, typer.Option("--out", help="Folder of the store; an unfinished one goes on.")],
    form: Annotated[str, typer.Option(help="16-bit codes, or float32.")] = "16-bit",
    text_field: Annotated[str, typer.Option(help="Field with the text, where the files have fields.")] = "text",
    max_length: Annotated[int | None, typer.Option(min=2, help="Tokens a sequence (default at most 256).")] = None,
    sequences: Annotated[int, typer.Option(min=2, help="Sequences a split.")] = 300,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16 (default: the checkpoint's).")] = None,
    device: Device = "cpu",
) -> None:
    """Keep a model's log-probabilities on text, to be judged later (--with FOLDER) without the model in memory."""
    from assay.models import store_model  # noqa: PLC0415  (keeps --help fast)
    from assay.studies import text  # noqa: PLC0415
    from assay.subjects import load, resolve_device, resolve_dtype  # noqa: PLC0415

    splits = _argument("split", lambda: _splits(split))
    device = _argument("device", lambda: resolve_device(device))
    precision = None if dtype is None else _argument("dtype", lambda: resolve_dtype(dtype))
    subject = _argument("model", lambda: load(model, device=device, dtype=precision))
    task = _argument("split", lambda: text.task_of(subject, None, splits, text_field=text_field, max_length=max_length))
    with _progress() as bar:
        line = bar.add_task("starting", total=None)
        store_model(
            subject,
            [task.split(name, sequences) for name in task.split_names],
            out_folder,
            form=form,
            progress=lambda name, done, total: bar.update(line, description=name, completed=done, total=total),
        )
    out.print(f"The log-probabilities are in {escape(str(out_folder))}", soft_wrap=True)


def _check_source(split: Sequence[str] | None, pairs: Sequence[str] | None, of_text: Sequence[object]) -> None:
    """What is judged on: text, or pairs without what is for text; another combination is a wrong call."""
    if pairs and (split or any(option is not None for option in of_text)):
        raise typer.BadParameter(
            "pairs have splits and lengths of their own; leave out what is for text (--split, --fit, --max-length, "
            "--counting).",
            param_hint="--pairs",
        )
    if not pairs and not split:
        raise typer.BadParameter("give what to judge on: --split iid=FILE, or --pairs FILE.", param_hint="--split")


def _check_asked(
    recipes: Sequence[Any], others: Sequence[str], fit: object, sites: Sequence[str], positions: str
) -> None:
    """What is judged, on what it is fitted and where: another combination is a wrong call."""
    from assay.faithfulness import resolve_positions  # noqa: PLC0415
    from assay.simplify import is_whole, learns  # noqa: PLC0415

    if not recipes and not others:
        raise typer.BadParameter("give what to judge: --simplify RECIPE, or --with MODEL.", param_hint="--simplify")
    if fit is None and any(learns(recipe) or not is_whole(recipe) for recipe in recipes):
        raise typer.BadParameter("recipes are fitted on text: --fit FILE.", param_hint="--fit")
    if sites and all(map(is_whole, recipes)):
        raise typer.BadParameter("what is judged replaces the model; sites are for its parts.", param_hint="--sites")
    if _argument("positions", lambda: resolve_positions(positions)) == "scored" and all(map(is_whole, recipes)):
        hint = "--positions"
        raise typer.BadParameter("what is judged replaces the model; positions are for its parts.", param_hint=hint)


def _shares(**values: float) -> dict[str, float]:
    """Options that are shares in [0, 1]; another number is a wrong call."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            hint = f"--{name.replace('_', '-')}"
            raise typer.BadParameter(f"{value}: must be a share between 0 and 1.", param_hint=hint)
    return values


def _others(names: Sequence[str], subject: Any, same_tokenizer: bool) -> list[Any]:
    """The models of `--with`, loaded; adapters on the subject."""
    from assay.models import OtherModel, StoredModel, is_stored  # noqa: PLC0415
    from assay.subjects import takes_base  # noqa: PLC0415

    found: list[Any] = []
    for name in names:
        if is_stored(name):
            found.append(StoredModel(name))
            continue
        other = OtherModel(name, base=subject if takes_base(name) else None, same_tokenizer=same_tokenizer)
        other.other()
        found.append(other)
    return found


def _splits(given: list[str]) -> dict[str, str]:
    """`NAME=FILE` as a table. Raises AssayError for another form, or a name given twice or taken."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, source = text.partition("=")
        if not (name and equals and source):
            raise AssayError(f"{text!r} is not of the form NAME=FILE, such as iid=held_out.txt.")
        if name in found:
            raise AssayError(f"two splits are called {name!r}; give each a name of its own.")
        found[name] = source
    return found


@app.command()
def certify(
    model: Annotated[str, typer.Argument(help="A shipped model, a folder, or a .npz or TransformerLens state dict.")],
    strategy: Annotated[
        str | None,
        typer.Option(
            help="brute-force, subcubic-low-rank, subcubic, cubic, separable (default) or exact; for linear models "
            "brute-force, symmetry, convexity, blocks or gemm (default)."
        ),
    ] = None,
    loss: Annotated[bool, typer.Option("--loss", help="Bound the mean loss (linear models) instead.")] = False,
    seed: Annotated[int, typer.Option(help="Training seed of a shipped model.")] = 0,
    minimum_maximum: Annotated[int, typer.Option(min=0, help="Only inputs whose largest token is at least this.")] = 0,
    within: Annotated[int | None, typer.Option(min=0, help="Only inputs within this of their largest token.")] = None,
    copies: Annotated[int | None, typer.Option(min=1, help="Only inputs with this many largest tokens.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Agreement with the rank-r query-key circuit.")] = None,
    average_positions: Annotated[bool, typer.Option(help="Agreement with position-averaged keys.")] = False,
    simplification: Annotated[
        str | None, typer.Option("--against", help="Agreement with a simplification, for example svd:rank=1, one-hot.")
    ] = None,
    grid: Annotated[int, typer.Option(min=8, max=2**20, help="Strategy separable: steps to round to.")] = 1024,
    search: Annotated[
        int,
        typer.Option(
            min=0,
            help="Strategy separable, accuracy or against one-hot: groups of at most so many inputs are searched.",
        ),
    ] = 2**18,
    two_sided: Annotated[bool, typer.Option(help="Strategy separable: bound accuracy from above too.")] = False,
    width: Annotated[int, typer.Option(min=1, help="Strategy blocks: outputs a block.")] = 64,
    top: Annotated[int, typer.Option(min=0, help="Strategy blocks: outputs a token that are taken exactly.")] = 16,
    refine: Annotated[
        int | None,
        typer.Option(min=0, help="Strategies separable and blocks: how many groups, or sums, to refine (512, 65536)."),
    ] = None,
    remainder: Annotated[
        str,
        typer.Option(
            help="Strategy subcubic-low-rank: how what rank 1 leaves out is bounded: principal, max-diff, mean+diff, "
            "svd or recursive."
        ),
    ] = "principal",
    certificate_file: Annotated[Path | None, typer.Option("--out", help="Write the certificate here.")] = None,
    coq_file: Annotated[
        Path | None, typer.Option("--coq", help="Write the accuracy of a small linear model as a Coq theorem here.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Prove how many inputs of a set a max-of-K model answers correctly, or, for a linear one, its mean loss."""
    from assay import proofs  # noqa: PLC0415
    from assay.simplify import Simplification, simplifications  # noqa: PLC0415
    from assay.subjects import LinearMaxForCausalLM, MaxOfKForCausalLM, import_max_of_k, load  # noqa: PLC0415
    from assay.tasks import InputSet  # noqa: PLC0415

    is_file = Path(model).is_file()
    subject = _argument("model", lambda: import_max_of_k(model) if is_file else load(model, seed=seed))
    known = proofs.LINEAR_STRATEGIES if isinstance(subject.model, LinearMaxForCausalLM) else proofs.STRATEGIES
    if strategy is not None and strategy not in known:
        message = str(unknown_name(f"proof strategy for {model}", strategy, known))
        raise typer.BadParameter(message, param_hint="--strategy")
    if remainder not in proofs.REMAINDERS:
        raise typer.BadParameter(str(unknown_name("remainder", remainder, proofs.REMAINDERS)), param_hint="--remainder")
    options: dict[str, Any] = {
        "grid": grid, "refine": refine, "search": search, "two_sided": two_sided, "width": width, "top": top,
        "remainder": remainder,
    }  # fmt: skip
    default = "gemm" if known is proofs.LINEAR_STRATEGIES else "separable"
    _argument("strategy", lambda: proofs.check_options(strategy or default, options))
    inputs = None
    if isinstance(subject.model, MaxOfKForCausalLM | LinearMaxForCausalLM):
        sizes = subject.model.config
        inputs = _argument("within", lambda: InputSet(sizes.length, sizes.vocab_size, minimum_maximum, within, copies))
    against: proofs.Proxy | Simplification | None = None
    if rank is not None or average_positions:
        against = proofs.Proxy(rank, average_positions)
    if simplification is not None:
        if against is not None:
            raise typer.BadParameter("give --against, or --rank and --average-positions.", param_hint="--against")
        against = _argument("against", lambda: simplifications.build(simplification))
    certificate = proofs.certify(
        subject,
        strategy=strategy,
        quantity="loss" if loss else "accuracy",
        inputs=inputs,
        against=against,
        **options,
    )
    if certificate_file is not None:
        certificate.save(certificate_file)
    if coq_file is not None:
        coq_file.write_text(proofs.coq_development(subject, certificate), encoding="utf-8")
    if as_json:
        print(certificate.model_dump_json(indent=2, exclude={"pieces", "boxes", "blocks", "proxy"}))
        return
    least, most = certificate.decimals()
    out.print(certificate.statement, soft_wrap=True, markup=False)
    out.print(f"at least {least}, at most {most}, in {certificate.seconds:.2f} s")


@app.command()
def verify(
    certificate: Annotated[Path, typer.Argument(help="A certificate file.", exists=True, dir_okay=False)],
    model: Annotated[str | None, typer.Option(help="The subject, where it is not a shipped model.")] = None,
    budget: Annotated[
        int | None,
        typer.Option(
            parser=_operations,
            metavar="OPERATIONS",
            help="How much work the check may be, in operations of about a nanosecond: 1e11, if not given.",
        ),
    ] = None,
) -> None:
    """Check a certificate independently: exit status 0 if it holds, 1 with the reason if it is refuted or too long."""
    from assay.proofs import Certificate, checker  # noqa: PLC0415
    from assay.subjects import import_max_of_k, load  # noqa: PLC0415

    subject = None
    if model is not None:
        subject = import_max_of_k(model) if Path(model).is_file() else load(model)
    checked = Certificate.load(certificate)
    not_checked = checked.verify(subject, budget=checker.BUDGET if budget is None else budget)
    out.print(f"verified: {checked.statement}", soft_wrap=True, markup=False)
    out.print(f"not checked: {', '.join(not_checked)}")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    markdown: Annotated[Path | None, typer.Option(help="Also write the main table as Markdown to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw a finished run again: figures and report.html."""
    from assay.faithfulness import Comparison  # noqa: PLC0415
    from assay.reports import Illustrations, terminal, write_figures, write_markdown, write_page  # noqa: PLC0415

    comparison = Comparison.load(run)
    illustrations = Illustrations.load(run)
    write_figures(comparison, run / "figures", illustrations)
    page = write_page(comparison, run / "report.html", illustrations)
    if markdown is not None:
        write_markdown(comparison, markdown, illustrations)
    if as_json:
        print(json.dumps(_summary(comparison, run), indent=2))
        return
    out.print(terminal(comparison))
    out.print(f"\nDrawn again: [bold]{escape(str(page))}[/]", soft_wrap=True)


@app.command("list")
def list_names(as_json: AsJson = False) -> None:
    """List tasks, models, simplifications, metrics and proof strategies."""
    from assay.faithfulness import embedding_metrics, metrics  # noqa: PLC0415
    from assay.proofs import LINEAR_STRATEGIES, STRATEGIES  # noqa: PLC0415
    from assay.simplify import simplifications  # noqa: PLC0415
    from assay.subjects import shipped  # noqa: PLC0415
    from assay.tasks import tasks  # noqa: PLC0415

    names = {
        "tasks": {name: _first_line(tasks.get(name)) for name in tasks},
        "models": {name: f"shipped with seeds {', '.join(map(str, seeds))}" for name, seeds in shipped().items()},
        "simplifications": {name: _first_line(simplifications.get(name)) for name in simplifications},
        "metrics": {
            **{name: metrics.get(name)().description for name in metrics},
            **{metric.name: metric.description for metric in embedding_metrics},
        },
        "proof strategies": dict(STRATEGIES),
        "proof strategies for linear models": dict(LINEAR_STRATEGIES),
    }
    if as_json:
        print(json.dumps(names, indent=2))
        return
    for heading, entries in names.items():
        out.print(f"[bold]{heading}[/]")
        for name, text in entries.items():
            out.print(f"  {name:18} {text}", highlight=False, soft_wrap=True, markup=False)


def _first_line(thing: Any) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0].rstrip(".:")
