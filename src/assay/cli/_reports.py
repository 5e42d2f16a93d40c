"""assay report and assay list."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from assay.cli._shared import (
    AsJson,
    app,
    out,
    summary,
)


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
    with comparison.trusted_no_further():
        if markdown is not None:
            write_markdown(comparison, markdown, illustrations)
        if as_json:
            print(json.dumps(summary(comparison, run), indent=2))
            return
        out.print(terminal(comparison))
    out.print(f"\nDrawn again: [bold]{escape(str(page))}[/]", soft_wrap=True)


@app.command("list")
def list_names(as_json: AsJson = False) -> None:
    """List tasks, models, simplifications, discovery methods, metrics and proof strategies."""
    from assay.circuits import discoveries  # noqa: PLC0415
    from assay.faithfulness import embedding_metrics, metrics  # noqa: PLC0415
    from assay.proofs import LINEAR_STRATEGIES, STRATEGIES  # noqa: PLC0415
    from assay.simplify import simplifications  # noqa: PLC0415
    from assay.subjects import shipped  # noqa: PLC0415
    from assay.tasks import tasks  # noqa: PLC0415

    names = {
        "tasks": {name: _first_line(tasks.get(name)) for name in tasks},
        "models": {name: f"shipped with seeds {', '.join(map(str, seeds))}" for name, seeds in shipped().items()},
        "simplifications": {name: _first_line(simplifications.get(name)) for name in simplifications},
        "discovery methods of circuits": {name: _first_line(discoveries.get(name)) for name in discoveries},
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
