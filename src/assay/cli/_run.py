"""assay run: whole experiments on the shipped models."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from assay._errors import AssayError
from assay._files import try_file
from assay._terminal import styled
from assay.cli._shared import (
    AsJson,
    Dask,
    Device,
    Functions,
    JavaFunctions,
    Jobs,
    Language,
    Markdown,
    OutFolder,
    Overwrite,
    Sequences,
    argument,
    default_folder,
    follow,
    out,
    print_parts,
    print_run,
    progress_bar,
    run_app,
    say_where,
    summary,
)


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

    workers = argument("jobs", lambda: Workers(jobs, dask))
    if full and seed is not None:
        raise typer.BadParameter("--full runs every seed; leave out --seed.", param_hint="--seed")
    device = argument("device", lambda: resolve_device(device))
    argument("seed", lambda: check_seed(dyck.SUBJECT, seed or 0))
    if sentence is not None:
        argument("sentence", lambda: Dyck().read_sentence(sentence))
    folder = out_folder or default_folder("dyck")
    with progress_bar(folder) as bar:
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
            progress=follow(bar, line),
        )
    if as_json:
        print(json.dumps(summary(comparison, folder), indent=2))
        return
    out.print(terminal(comparison))
    say_where(folder)


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

    workers = argument("jobs", lambda: Workers(jobs, dask))
    device = argument("device", lambda: resolve_device(device))
    subject = argument("model", lambda: load(model, device=device))
    argument("model", lambda: code.vocabulary_of(subject))
    folder = out_folder or default_folder("code")
    with progress_bar(folder) as bar:
        line = bar.add_task("reading functions", total=None)
        task = argument("data", lambda: code.task_of(subject, data, language))
        comparison, shown = code.run(
            folder,
            subject,
            task,
            everything=full,
            functions=functions,
            fit_functions=fit_functions,
            overwrite=overwrite,
            workers=workers,
            progress=follow(bar, line),
        )
    if as_json:
        tables = {table.title: [table.headings, *table.rows] for table in shown.tables}
        print(json.dumps({**summary(comparison, folder), "tables": tables}, indent=2))
        return
    print_run(comparison, shown, folder)


def _run_parts(
    study: ModuleType,
    name: str,
    out_folder: Path | None,
    *,
    device: str,
    jobs: int,
    dask: str | None,
    markdown: Path | None,
    as_json: bool,
    only: Sequence[str],
    **options: Any,
) -> None:
    """Run a study of several parts, and print what it leaves."""
    from assay.faithfulness import Workers  # noqa: PLC0415  (keeps --help fast)
    from assay.reports import check_markdown  # noqa: PLC0415
    from assay.subjects import resolve_device  # noqa: PLC0415

    workers = argument("jobs", lambda: Workers(jobs, dask))
    device = argument("device", lambda: resolve_device(device))
    argument("only", lambda: study.check_names(only, *((options["data"],) if "data" in options else ())))
    folder = out_folder or default_folder(name)
    if markdown is not None:
        argument("markdown", lambda: check_markdown(markdown))
    with progress_bar(folder) as bar:
        line = bar.add_task("starting", total=None)
        done, shown = study.run(
            folder, only=only, device=device, workers=workers, progress=follow(bar, line), **options
        )
    print_parts(done, shown, folder, markdown=markdown, as_json=as_json)


@run_app.command("compressed")
def run_compressed(
    full: Annotated[
        bool, typer.Option("--full", help="Five Dyck seeds, pruning and low ranks, more sequences: an hour on a CPU.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help="dyck, code-python, code-java, encoder or smollm2 (slow), repeated (default the first two)."),
    ] = None,
    data: JavaFunctions = None,
    sequences: Sequences = None,
    markdown: Markdown = None,
    device: Device = "cpu",
    jobs: Jobs = 1,
    dask: Dask = None,
    out_folder: OutFolder = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Judge compressed copies of models: rounded, pruned, of low rank, and a table of n-grams in their place."""
    from assay.studies import compressed  # noqa: PLC0415  (keeps --help fast)

    _run_parts(
        compressed, "compressed", out_folder,
        everything=full, only=only or (), device=device, sequences=sequences, overwrite=overwrite, jobs=jobs, dask=dask,
        markdown=markdown, as_json=as_json, data=data,
    )  # fmt: skip


@run_app.command("circuits")
def run_circuits(
    full: Annotated[
        bool, typer.Option("--full", help="Five Dyck seeds, more methods, sizes and pairs: an hour on a CPU.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="dyck, induction, or smollm2 (indirect objects and agreement in SmolLM2-135M: ten minutes), repeated "
            "(default the first two)."
        ),
    ] = None,
    sequences: Sequences = None,
    markdown: Markdown = None,
    device: Device = "cpu",
    jobs: Jobs = 1,
    dask: Dask = None,
    out_folder: OutFolder = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Find circuits on pairs, and judge them under shifts, beside random ones and those found there."""
    from assay.studies import circuits  # noqa: PLC0415  (keeps --help fast)

    _run_parts(
        circuits, "circuits", out_folder,
        everything=full, only=only or (), device=device, sequences=sequences, overwrite=overwrite, jobs=jobs, dask=dask,
        markdown=markdown, as_json=as_json,
    )  # fmt: skip


@run_app.command("dictionaries")
def run_dictionaries(
    full: Annotated[
        bool, typer.Option("--full", help="More kinds, sizes and seeds, and five Dyck seeds: an hour on a CPU.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help="code-python, code-java or dyck, repeated (default the first; with --full dyck, too)."),
    ] = None,
    data: JavaFunctions = None,
    sequences: Sequences = None,
    markdown: Markdown = None,
    device: Device = "cpu",
    jobs: Jobs = 1,
    dask: Dask = None,
    out_folder: OutFolder = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Train dictionaries in one layer, and judge them off the distribution they were trained on."""
    from assay.studies import dictionaries  # noqa: PLC0415  (keeps --help fast)

    _run_parts(
        dictionaries, "dictionaries", out_folder,
        everything=full, only=only or (), device=device, sequences=sequences, overwrite=overwrite, jobs=jobs, dask=dask,
        markdown=markdown, as_json=as_json, data=data,
    )  # fmt: skip


@run_app.command("max-of-k")
def run_max_of_k(
    out_folder: Annotated[Path | None, typer.Option("--out", help="Run folder.", file_okay=False)] = None,
    overwrite: Overwrite = False,
    quick: Annotated[bool, typer.Option("--quick", help="Only the models with K = 4, without brute force.")] = False,
    markdown: Markdown = None,
    as_json: AsJson = False,
) -> None:
    """Prove how often the shipped max-of-K models are right, over all inputs, by every strategy."""
    from assay.studies import max_of_k  # noqa: PLC0415  (keeps --help fast)

    folder = out_folder or default_folder("max-of-k")
    if markdown is not None:
        argument("markdown", lambda: try_file(markdown))
    with progress_bar(folder) as bar:
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
    say_where(folder)


def _beside_a_chart(markdown: Path) -> Path:
    """A Markdown file whose name leaves room for the study's figure beside it, which ends in .svg."""
    if markdown.suffix == ".svg":
        raise AssayError(f"{str(markdown)!r} is where the figure goes; give the tables a file that ends in .md.")
    return markdown


@run_app.command("programs")
def run_programs(
    seeds: Annotated[int, typer.Option(min=1, help="Trained Transformers that a right program is to explain.")] = 3,
    sequences: Sequences = None,
    markdown: Markdown = None,
    device: Device = "cpu",
    out_folder: Annotated[Path | None, typer.Option("--out", help="Run folder.", file_okay=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Judge explanations of compiled programs, whose every number is known, and look for their edges."""
    from assay.reports import check_markdown, terminal_table, write_chart, write_tables  # noqa: PLC0415
    from assay.studies import programs  # noqa: PLC0415
    from assay.subjects import resolve_device  # noqa: PLC0415

    device = argument("device", lambda: resolve_device(device))
    folder = out_folder or default_folder("programs")
    if markdown is not None:
        argument("markdown", lambda: check_markdown(_beside_a_chart(markdown)))
    with progress_bar(folder) as bar:
        line = bar.add_task("starting", total=None)
        shown = programs.run(folder, sequences=sequences, seeds=seeds, device=device, progress=follow(bar, line))
    if markdown is not None:
        write_tables(shown.tables, markdown)
        write_chart(shown, markdown.with_suffix(".svg"))
    if as_json:
        print(json.dumps({"folder": str(folder), **json.loads((folder / programs.RESULTS).read_text("utf-8"))}))
        return
    for table in shown.tables:
        if not table.quiet:
            out.print(terminal_table(table), "")
    out.print(styled(f"The numbers are in {folder / programs.RESULTS}"), soft_wrap=True)


@run_app.command("organisms")
def run_organisms(
    name: Annotated[
        str,
        typer.Argument(
            help="Which organism: toy-english (the shipped models, measured), biased, grokking, …; --list names all.",
            metavar="[NAME]",
        ),
    ] = "toy-english",
    show: Annotated[bool, typer.Option("--list", help="Only name the organisms, each with what it is about.")] = False,
    seeds: Annotated[int | None, typer.Option(min=1, help="Trainings (default: the study's own).")] = None,
    sequences: Sequences = None,
    markdown: Markdown = None,
    device: Device = "cpu",
    out_folder: Annotated[Path | None, typer.Option("--out", help="Run folder.", file_okay=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Train or read a small model whose truth is known, and judge what is said of it."""
    from assay.reports import check_markdown, terminal, terminal_table, write_chart, write_tables  # noqa: PLC0415
    from assay.studies import organisms  # noqa: PLC0415
    from assay.subjects import resolve_device  # noqa: PLC0415

    if show:
        about = {known: organisms.study(known).SUMMARY for known in organisms.names()}
        print(
            json.dumps(about, indent=2) if as_json else "\n".join(f"{known:14} {text}" for known, text in about.items())
        )
        return
    device = argument("device", lambda: resolve_device(device))
    argument("NAME", lambda: organisms.study(name))
    folder = out_folder or default_folder(f"organisms-{name}")
    if markdown is not None:
        argument("markdown", lambda: check_markdown(_beside_a_chart(markdown)))
    with progress_bar(folder) as bar:
        line = bar.add_task("starting", total=None)
        found = organisms.run(name, folder, seeds=seeds, sequences=sequences, device=device, progress=follow(bar, line))
    if markdown is not None:
        write_tables(found.shown.tables, markdown)
        write_chart(found.shown, markdown.with_suffix(".svg"))
    if as_json:
        print(json.dumps({"folder": str(folder), **json.loads((folder / organisms.RESULTS).read_text("utf-8"))}))
        return
    for table in found.shown.tables:
        if not table.quiet:
            out.print(terminal_table(table), "")
    for part, comparison in found.comparisons.items():
        out.print(terminal(comparison))
        out.print(styled(f"{part}: {folder / part / 'report.html'}"), soft_wrap=True)
    out.print(styled(f"The numbers are in {folder / organisms.RESULTS}"), soft_wrap=True)
