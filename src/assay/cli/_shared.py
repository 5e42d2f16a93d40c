"""What commands share: options, how arguments are refused, progress, and what is printed."""

import json
import math
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress, TaskID
from typer.core import TyperGroup

import assay
from assay._errors import AssayError, in_line, is_lack_of_memory
from assay._progress import bar
from assay._terminal import Terminal, styled, visible


class _Commands(TyperGroup):
    """All commands: one that is interrupted says so, and what is wrong with a call is shown as it is."""

    def invoke(self, ctx: Any) -> Any:
        """Call the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            err.print("stopped.")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            message = getattr(error, "message", None)
            if hasattr(error, "format_message") and isinstance(message, str):  # Typer prints it without a look at it
                error.message = visible(message, keep="\n")  # type: ignore[attr-defined]
            raise


def examples(*calls: str) -> str:
    """The end of a command's help: calls as they are typed, of which long ones have several lines."""
    return "\n\n".join(("Examples:", *(f"$ {call}" for call in calls)))


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples("assay run dyck", "assay compare MODEL -h", "assay list"),
)
run_app = typer.Typer(help="Run a whole experiment on the shipped models.", no_args_is_help=True)
train_app = typer.Typer(help="Train a reference model; goes on where it was interrupted.", no_args_is_help=True)
app.add_typer(run_app, name="run")
app.add_typer(train_app, name="train")


def _say_version(asked: bool) -> bool:
    if asked:
        print(f"assay {assay.__version__}")
        raise typer.Exit
    return asked


@app.callback()
def _assay(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say the version, and end.")
    ] = False,
) -> None:
    """Test what an explanation of a Transformer is worth."""


out = Terminal()
err = Terminal(stderr=True)

INTERRUPTED = 130
"""The exit status of a command that was interrupted, as shells have it."""

JUDGED, JUDGED_ON, SUBJECT = "What is judged", "On what, and where", "The model"
VERDICTS, WORK, OUTPUT, PAPERS = "Verdicts", "How the work is done", "What is left", "For papers"
"""Groups of options in the help."""

Device = Annotated[str, typer.Option(help="cpu, cuda, mps or auto.", rich_help_panel=WORK)]
Jobs = Annotated[
    int, typer.Option("--jobs", help="Processes that share the work; -1: one a core.", rich_help_panel=WORK)
]
Dask = Annotated[
    str | None,
    typer.Option("--dask", help="Address of a Dask scheduler whose workers do it.", rich_help_panel=WORK),
]
OutFolder = Annotated[
    Path | None,
    typer.Option("--out", help="Run folder; an unfinished run in it goes on.", file_okay=False, rich_help_panel=OUTPUT),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Replace the finished run of another study that --out holds.", rich_help_panel=OUTPUT
    ),
]
Functions = Annotated[str, typer.Option(help="python, hub:NAME, a CodeSearchNet file or folder, or a folder.")]
JavaFunctions = Annotated[
    str | None, typer.Option(help="Functions for code-java: a CodeSearchNet file or folder, hub:NAME, or a folder.")
]
Sequences = Annotated[int | None, typer.Option(min=2, help="Sequences a split (pairs, where they are judged).")]
Markdown = Annotated[
    Path | None, typer.Option(help="Also write the tables as Markdown to this file.", rich_help_panel=OUTPUT)
]
Language = Annotated[str | None, typer.Option(help="Training language, where the data does not say.")]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print machine-readable output instead of tables.", rich_help_panel=OUTPUT),
]

_OF_LOADING = re.compile(r"load\((seed|device|dtype|objective|pooling|prompt|sharded)=")
"""What is refused when a model is loaded, but another option says."""


def argument(name: str, value: Callable[[], Any]) -> Any:
    """The value of an argument; one that cannot be is a wrong call (exit status 2), in which it is named.

    `name` is that of an option, or in capitals of an argument without a name.
    """
    try:
        return value()
    except AssayError as error:
        other = _OF_LOADING.match(str(error))
        option = other[1] if other else name
        raise typer.BadParameter(str(error), param_hint=option if option.isupper() else f"--{option}") from None


def say_error(text: str) -> None:
    """One line on the error stream: what is wrong."""
    err.print(styled(("error: ", "bold red"), " ".join(text.split("\n"))), soft_wrap=True)


@contextmanager
def progress_bar(folder: Path) -> Iterator[Progress]:
    """A bar while work is done in `folder`, which is said, and goes on there if it is stopped; then that is said, too.

    Raises typer.Exit where it was interrupted, AssayError where there is no room on the disk or in memory.
    """
    go_on = f"what is finished is in {folder}: the same command with --out {shlex.quote(str(folder))} goes on."
    err.print(styled(f"Working in {folder}"), soft_wrap=True)
    try:
        with bar(err) as shown:
            yield shown
    except KeyboardInterrupt:
        err.print(styled(f"stopped; {go_on}"), soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        why = reason(error)
        if why is None:
            raise
        raise AssayError(f"{why}; {go_on}") from None


def reason(error: Exception) -> str | None:
    """Why work cannot go on that was right to begin: the memory or the disk; None for any other error."""
    if is_lack_of_memory(error):
        return "out of memory"
    return in_line(error) if isinstance(error, OSError) else None


def follow(shown: Progress, line: TaskID) -> Callable[[Any], None]:
    """Shows the steps of a comparison on a line of the bar."""
    return lambda step: shown.update(line, description=step.text, completed=step.done, total=step.total)


def say_where(folder: Path) -> None:
    out.print()
    out.print(styled(f"The run is in {folder}; open ", (str(folder / "report.html"), "bold")), soft_wrap=True)


def print_run(comparison: Any, shown: Any, folder: Path) -> None:
    """The tables of a study that are for the terminal, those of every comparison, and where the run is."""
    from assay.reports import terminal, terminal_table  # noqa: PLC0415

    for table in shown.tables:
        if not table.quiet:
            out.print(terminal_table(table), "")
    out.print(terminal(comparison))
    say_where(folder)


def print_parts(done: Sequence[Any], shown: Any, folder: Path, *, markdown: Path | None, as_json: bool) -> None:
    """What a study of several parts leaves: its tables, in the terminal and as Markdown, and where the pages are."""
    from assay.reports import terminal_table, write_tables  # noqa: PLC0415

    if markdown is not None:
        write_tables(shown.tables, markdown)
    if as_json:
        tables = {table.title: [table.headings, *table.rows] for table in shown.tables}
        parts = {one.part.name: summary(one.comparison, one.folder) for one in done}
        print(json.dumps({"folder": str(folder), "tables": tables, "parts": parts}, indent=2))
        return
    for table in shown.tables:
        if not table.quiet:
            out.print(terminal_table(table), "")
    for one in done:
        out.print(styled(f"{one.part.name}: {one.folder / 'report.html'}"), soft_wrap=True)
    say_where(folder)


def default_folder(study: str) -> Path:
    return Path("assay-runs") / f"{study}-{datetime.now():%Y%m%d-%H%M%S}"


_PARTS = (
    "per_sequence", "per_sequence_low", "per_sequence_high",
    "matched", "matched_low", "matched_high", "effective", "matched_reason",
    "overlap", "overlap_low", "overlap_high", "outside", "outside_low", "outside_high",
    "perturbed", "perturbed_low", "perturbed_high",
    "removed", "removed_low", "removed_high", "remaining", "remaining_low", "remaining_high",
)  # fmt: skip
"""What a gap is made of: the columns of `Comparison.gaps` that say so."""


def summary(comparison: Any, folder: Path) -> dict[str, Any]:
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
            row for part in agreement for row in records(part, [*columns, "estimate", "low", "high", "sequences"])
        ],
        "gaps": records(comparison.gaps(), [*columns, "gap", "low", "high", "p_holm", *_PARTS]),
        "controls": records(comparison.controls(), list(comparison.controls().columns)),
    }


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row with null for what is not a number."""
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}


def records(frame: Any, columns: list[str]) -> list[dict[str, Any]]:
    """Rows as plain values, null where there is none."""
    rows: list[dict[str, Any]] = json.loads(frame[columns].to_json(orient="records", double_precision=15))
    return rows
