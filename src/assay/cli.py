"""The command line. Each command calls one public function.

Exit status: 0 done, 1 the work failed, 2 the call was wrong.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from assay._errors import AssayError

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

out = Console(highlight=False)
err = Console(stderr=True)

Device = Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print machine-readable output instead of tables.")]


def main() -> None:
    """Run the command line."""
    try:
        app()
    except AssayError as error:
        err.print(f"[bold red]error:[/] {error}", highlight=False, soft_wrap=True)
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


def _default_folder(study: str) -> Path:
    return Path("assay-runs") / f"{study}-{datetime.now():%Y%m%d-%H%M%S}"


@run_app.command("dyck")
def run_dyck(
    full: Annotated[bool, typer.Option("--full", help="All seeds, sites and ranks, 2,000 sequences a split.")] = False,
    seed: Annotated[int | None, typer.Option(help="Training seed of the shipped model (default 0).")] = None,
    sequences: Annotated[int | None, typer.Option(min=2, help="Sequences a split (default 200, full 2,000).")] = None,
    sentence: Annotated[str | None, typer.Option(help="A sentence to draw, such as '(0 (3 3) 0)'.")] = None,
    device: Device = "cpu",
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="Run folder; an unfinished run in it goes on.", file_okay=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Judge simplifications of bracket matchers in and out of distribution."""
    from assay.reports import terminal  # noqa: PLC0415  (keeps --help fast)
    from assay.studies import dyck  # noqa: PLC0415
    from assay.subjects import check_seed, resolve_device  # noqa: PLC0415
    from assay.tasks import Dyck  # noqa: PLC0415

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
            progress=lambda step: bar.update(line, description=step.text, completed=step.done, total=step.total),
        )
    if as_json:
        print(json.dumps(_summary(comparison, folder), indent=2))
        return
    out.print(terminal(comparison))
    out.print(f"\nThe run is in {folder}; open [bold]{folder / 'report.html'}[/]", highlight=False, soft_wrap=True)


def _summary(comparison: Any, folder: Path) -> dict[str, Any]:
    """What `--json` prints: verdicts, agreement and gaps, with the folder that holds the rest."""
    columns = ["proxy", "site", "trained", "is_control", "split"]
    agreement = [
        comparison.agreement(split.name, trained=trained)
        for split in comparison.record.splits[1:]
        for trained in (True, False)
    ]
    return {
        "folder": str(folder),
        "primary_kind": comparison.record.primary_kind,
        "noise_floor": comparison.record.noise_floor.model_dump(),
        "verdicts": [{**vars(verdict), "text": str(verdict)} for verdict in comparison.verdicts()],
        "same_prediction": [
            row for part in agreement for row in _records(part, [*columns, "estimate", "low", "high", "sequences"])
        ],
        "gaps": _records(comparison.gaps(), [*columns, "gap", "low", "high", "p_holm"]),
    }


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
    out.print(f"The model is in {folder}", highlight=False, soft_wrap=True)


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
        write_markdown(comparison, markdown)
    if as_json:
        print(json.dumps(_summary(comparison, run), indent=2))
        return
    out.print(terminal(comparison))
    out.print(f"\nDrawn again: [bold]{page}[/]", highlight=False, soft_wrap=True)


@app.command("list")
def list_names(as_json: AsJson = False) -> None:
    """List tasks, models, simplifications and metrics."""
    from assay.faithfulness import metrics  # noqa: PLC0415
    from assay.simplify import simplifications  # noqa: PLC0415
    from assay.subjects import shipped  # noqa: PLC0415
    from assay.tasks import tasks  # noqa: PLC0415

    names = {
        "tasks": {name: _first_line(tasks.get(name)) for name in tasks},
        "models": {name: f"shipped with seeds {', '.join(map(str, seeds))}" for name, seeds in shipped().items()},
        "simplifications": {name: _first_line(simplifications.get(name)) for name in simplifications},
        "metrics": {name: metrics.get(name)().description for name in metrics},
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
