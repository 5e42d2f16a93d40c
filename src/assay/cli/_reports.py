"""assay report, assay graph and assay list."""

import inspect
import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from assay._files import try_file, try_folder, write_atomically
from assay._terminal import styled
from assay.cli._shared import (
    PAPERS,
    AsJson,
    app,
    argument,
    examples,
    out,
    records,
    summary,
)


@app.command(
    epilog=examples(
        "assay report assay-runs/dyck",
        "assay report assay-runs/dyck --figures paper --width page --latex paper/table.tex",
    )
)
def report(
    run: Annotated[Path, typer.Argument(help="A run folder.", metavar="RUN")],
    out_folder: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for figures and report.html (default: the run folder).", file_okay=False),
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Also write the main table as Markdown to this file.")] = None,
    figures: Annotated[
        Path | None,
        typer.Option(
            help="Also write figures for a paper to this folder, each with its caption as .txt.",
            file_okay=False,
            rich_help_panel=PAPERS,
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option("--format", help="With --figures: pdf (the default), svg or png.", rich_help_panel=PAPERS),
    ] = None,
    width: Annotated[
        str | None,
        typer.Option(
            help="With --figures: column (the default), text, page, or inches such as 4.5.", rich_help_panel=PAPERS
        ),
    ] = None,
    style: Annotated[
        str | None,
        typer.Option(help="With --figures: a style of matplotlib, by its name or as a file.", rich_help_panel=PAPERS),
    ] = None,
    latex_file: Annotated[
        Path | None,
        typer.Option("--latex", help="Also write the main table for LaTeX to this file.", rich_help_panel=PAPERS),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw a finished run again: figures and report.html; also figures and a table for a paper."""
    from assay.faithfulness import Comparison  # noqa: PLC0415
    from assay.reports import (  # noqa: PLC0415
        Illustrations,
        check_form,
        check_markdown,
        latex,
        save_figures,
        terminal,
        write_figures,
        write_markdown,
        write_page,
    )

    if not run.is_dir():
        raise typer.BadParameter(f"there is no folder {str(run)!r}.", param_hint="RUN")
    for option, given in (("--format", form), ("--width", width), ("--style", style)):
        if given is not None and figures is None:
            raise typer.BadParameter("it says how figures for a paper look: give --figures too.", param_hint=option)
    comparison = Comparison.load(run)
    illustrations = Illustrations.load(run)
    folder = out_folder or run
    argument("out", lambda: try_folder(folder))
    if markdown is not None:
        argument("markdown", lambda: check_markdown(markdown))
    if figures is not None:
        argument("format", lambda: check_form(format=form or "pdf"))
        argument("width", lambda: check_form(width=width or "column"))
        argument("style", lambda: check_form(style=style))
        argument("figures", lambda: try_folder(figures))
    if latex_file is not None:
        argument("latex", lambda: try_file(latex_file))
    write_figures(comparison, folder / "figures", illustrations)
    page = write_page(comparison, folder / "report.html", illustrations)
    if figures is not None:
        save_figures(
            comparison,
            figures,
            format=form or "pdf",
            width=width or "column",
            style=style,
            illustrations=illustrations,
        )
    if latex_file is not None:
        table = latex(comparison)
        write_atomically(latex_file, lambda path: path.write_text(table, encoding="utf-8"))
    with comparison.trusted_no_further():
        if markdown is not None:
            write_markdown(comparison, markdown, illustrations)
        if as_json:
            print(json.dumps(summary(comparison, run), indent=2))
            return
        out.print(terminal(comparison))
    out.print()
    for what, path in (("Drawn again: ", page), ("Figures: ", figures), ("Table: ", latex_file)):
        if path is not None:
            out.print(styled(what, (str(path), "bold")), soft_wrap=True)


@app.command("compare-runs", epilog=examples("assay compare-runs assay-runs/monday assay-runs/tuesday"))
def compare_runs(
    first: Annotated[Path, typer.Argument(help="A run folder.", metavar="FIRST")],
    second: Annotated[Path, typer.Argument(help="The run folder that it is compared with.", metavar="SECOND")],
    as_json: AsJson = False,
) -> None:
    """Lay two finished runs side by side: verdicts that changed, numbers that moved, settings that differ."""
    from assay.faithfulness import Comparison, between_runs  # noqa: PLC0415
    from assay.reports import between_tables, terminal_table  # noqa: PLC0415

    for folder, name in ((first, "FIRST"), (second, "SECOND")):
        if not folder.is_dir():
            raise typer.BadParameter(f"there is no folder {str(folder)!r}.", param_hint=name)
    runs = [Comparison.load(folder) for folder in (first, second)]
    with runs[0].trusted_no_further(), runs[1].trusted_no_further():
        found = between_runs(*runs)
        tables = between_tables(found)
    if as_json:
        parts = {name: getattr(found, name) for name in ("verdicts", "numbers", "settings")}
        print(json.dumps({name: records(table, list(table.columns)) for name, table in parts.items()}, indent=2))
        return
    for table in tables:
        out.print(terminal_table(table), "")
    changed = int(found.verdicts["changed"].sum())
    out.print(styled(f"{changed} of {len(found.verdicts)} verdicts changed."))


@app.command()
def graph(
    file: Annotated[
        Path,
        typer.Argument(help="An attribution graph of circuit-tracer: .pt, or JSON of its front end.", metavar="FILE"),
    ],
    model: Annotated[str | None, typer.Option(help="Judge it: the model that it was drawn of.")] = None,
    dictionaries: Annotated[
        str | None, typer.Option(help="With --model: the folder of the transcoders that it was drawn with.")
    ] = None,
    prune: Annotated[
        float | None, typer.Option(help="Only nodes with this share of all influence, such as 0.8.")
    ] = None,
    edges: Annotated[int, typer.Option(min=1, help="Draw so many of the strongest edges.")] = 80,
    untouched: Annotated[
        int, typer.Option(min=0, help="With --model: first positions at which the graph lets no feature be on.")
    ] = 1,
    page: Annotated[Path, typer.Option("--out", help="Write the page here.")] = Path("attribution-graph.html"),
    as_json: AsJson = False,
) -> None:
    """Draw an attribution graph, and judge it on its own prompt by its model and dictionaries, without error nodes."""
    from assay.dictionaries import AttributionGraph, read_replacement  # noqa: PLC0415
    from assay.studies import attribution  # noqa: PLC0415
    from assay.subjects import load  # noqa: PLC0415

    if (model is None) != (dictionaries is None):
        raise typer.BadParameter("a graph is judged with both --model and --dictionaries.", param_hint="--model")
    argument("out", lambda: try_file(page))
    found = argument("FILE", lambda: AttributionGraph.read(file))
    if prune is not None:
        found = argument("prune", lambda: found.pruned(nodes=prune))
    subject = None if model is None else argument("model", lambda: load(model))
    replacement = None if dictionaries is None else argument("dictionaries", lambda: read_replacement(dictionaries))
    claims = attribution.draw(found, page, subject=subject, replacement=replacement, edges=edges, untouched=untouched)
    if as_json:
        tables = {name: getattr(claims, name).to_dict("records") for name in ("answers", "runs")} if claims else {}
        print(json.dumps({"page": str(page), "scores": asdict(found.scores()), **tables}, indent=2))
        return
    out.print(f"{claims or found.scores()}", soft_wrap=True)
    out.print()
    out.print(styled("Drawn: ", (str(page), "bold")), soft_wrap=True)


@app.command("list")
def list_names(as_json: AsJson = False) -> None:
    """List tasks, models, simplifications and their parameters, metrics, proof strategies, and how sites are named."""
    from assay._registry import called  # noqa: PLC0415
    from assay.circuits import discoveries  # noqa: PLC0415
    from assay.engine import GRAMMAR  # noqa: PLC0415
    from assay.faithfulness import embedding_metrics, metrics  # noqa: PLC0415
    from assay.proofs import LINEAR_STRATEGIES, STRATEGIES  # noqa: PLC0415
    from assay.simplify import simplifications  # noqa: PLC0415
    from assay.subjects import PACKAGED, shipped  # noqa: PLC0415
    from assay.tasks import tasks  # noqa: PLC0415

    names: dict[str, dict[str, str]] = {
        "tasks": {name: _first_line(tasks.get(name)) for name in tasks},
        "models": {
            **{name: f"shipped with seeds {', '.join(map(str, seeds))}" for name, seeds in shipped().items()},
            **{name: f"{model.name}, of the package {model.install}" for name, model in PACKAGED.items()},
        },
        "simplifications": {name: _first_line(simplifications.get(name)) for name in simplifications},
        "discovery methods of circuits": {name: _first_line(discoveries.get(name)) for name in discoveries},
        "metrics": {
            **{name: metrics.get(name)().description for name in metrics},
            **{metric.name: metric.description for metric in embedding_metrics},
        },
        "proof strategies": dict(STRATEGIES),
        "proof strategies for linear models": dict(LINEAR_STRATEGIES),
        "sites": GRAMMAR,
    }
    calls = {name: called(name, inspect.signature(simplifications.get(name))) for name in simplifications}
    if as_json:
        print(json.dumps({**names, "parameters of simplifications": calls}, indent=2))
        return
    for heading, entries in names.items():
        out.print(styled((heading, "bold")))
        for name, text in entries.items():
            out.print(styled(f"  {name:18} {text}"), soft_wrap=True)
            if heading == "simplifications" and calls[name] != name:
                out.print(styled(f"  {'':18} {calls[name]}"), soft_wrap=True)


def _first_line(thing: Any) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0].rstrip(".:")
