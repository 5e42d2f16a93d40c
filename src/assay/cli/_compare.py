"""assay compare and assay store: one's own model."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from assay._errors import AssayError
from assay._files import try_file
from assay._terminal import styled
from assay.cli._config import CallInFile, Config, write_call
from assay.cli._shared import (
    JUDGED,
    JUDGED_ON,
    OUTPUT,
    SUBJECT,
    VERDICTS,
    WORK,
    AsJson,
    Dask,
    Device,
    Jobs,
    OutFolder,
    Overwrite,
    app,
    argument,
    default_folder,
    err,
    examples,
    follow,
    out,
    print_run,
    progress_bar,
    summary,
)


@app.command(
    "compare",
    cls=CallInFile,
    epilog=examples(
        "assay compare gpt2 --fit train.txt --split iid=held-out.txt --split code=code.txt \\\n"
        "    --simplify svd:rank=8 --simplify kmeans:clusters=64 --sites all-layers",
        "assay compare gpt2 --with ./gpt2-4bit --split iid=held-out.txt --split code=code.txt \\\n"
        "    --require faithful",
        "assay compare gpt2 --pairs pairs.jsonl --simplify circuit:edges=200",
        "assay compare toy-english --task toy-english/ioi --simplify circuit:edges=40",
        "assay compare --config assay-runs/compare-20261120-183000/run.yaml --sequences 1000",
    ),
)
def compare_text(
    model: Annotated[str, typer.Argument(help="A folder, a Hugging Face name, or a shipped model.", metavar="MODEL")],
    split: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FILE, repeated; one is iid, the others are shifts.", rich_help_panel=JUDGED_ON),
    ] = None,
    pairs: Annotated[
        list[str] | None,
        typer.Option(
            help="Pairs instead of text, for circuits: a file whose rows name their splits, or NAME=FILE, repeated.",
            rich_help_panel=JUDGED_ON,
        ),
    ] = None,
    named: Annotated[
        str | None,
        typer.Option(
            "--task",
            help="A task by its name instead of text or pairs, such as toy-english/ioi or dyck (see assay list).",
            rich_help_panel=JUDGED_ON,
        ),
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(
            help="Text to fit on: .txt, .jsonl(.gz), .parquet, or hub:NAME; not needed for --with alone.",
            rich_help_panel=JUDGED_ON,
        ),
    ] = None,
    simplify: Annotated[
        list[str] | None,
        typer.Option(
            help="Such as svd:rank=8, circuit:edges=200, file:their_circuit.json, one-hot (see assay list), or your "
            "class: file.py:Name(rank=4); repeated.",
            rich_help_panel=JUDGED,
        ),
    ] = None,
    others: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            help="Another model to judge in MODEL's place, repeated: a folder, a name, a .gguf file, an adapter, or "
            "what assay store wrote.",
            rich_help_panel=JUDGED,
        ),
    ] = None,
    same_tokenizer: Annotated[
        bool,
        typer.Option(
            "--same-tokenizer", help="Models of --with without a tokenizer have that of MODEL.", rich_help_panel=JUDGED
        ),
    ] = False,
    sites: Annotated[
        list[str] | None,
        typer.Option(
            help="all (default), layer0.head1, layer2.mlp, all-heads …, repeated; A+B is one site.",
            rich_help_panel=JUDGED_ON,
        ),
    ] = None,
    positions: Annotated[
        str,
        typer.Option(
            help="all, or scored: sites are changed only where predictions are scored.", rich_help_panel=JUDGED_ON
        ),
    ] = "all",
    text_field: Annotated[
        str, typer.Option(help="Field with the text, where the files have fields.", rich_help_panel=JUDGED_ON)
    ] = "text",
    max_length: Annotated[
        int | None, typer.Option(min=2, help="Tokens a sequence (default at most 256).", rich_help_panel=JUDGED_ON)
    ] = None,
    sequences: Annotated[int, typer.Option(min=2, help="Sequences a split.", rich_help_panel=JUDGED_ON)] = 300,
    fit_sequences: Annotated[int, typer.Option(min=2, help="Sequences to fit on.", rich_help_panel=JUDGED_ON)] = 1_000,
    objective: Annotated[
        str | None,
        typer.Option(help="causal, masked or embedding (default: as the model is).", rich_help_panel=SUBJECT),
    ] = None,
    pooling: Annotated[
        str | None, typer.Option(help="mean, cls, last or max, for embeddings.", rich_help_panel=SUBJECT)
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Text before every sequence, for embeddings.", rich_help_panel=SUBJECT)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Training seed of a shipped model (default 0).", rich_help_panel=SUBJECT)
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16 (default: the checkpoint's).", rich_help_panel=SUBJECT),
    ] = None,
    device: Device = "cpu",
    sharded: Annotated[
        bool,
        typer.Option("--sharded", help="Spread MODEL over all GPUs and the CPU, by accelerate.", rich_help_panel=WORK),
    ] = False,
    controls: Annotated[
        bool, typer.Option(help="Judge controls and a shuffled copy too.", rich_help_panel=JUDGED)
    ] = True,
    primary_kind: Annotated[
        str | None,
        typer.Option(
            help="Kind of prediction that verdicts are about, such as repeated (default all).", rich_help_panel=VERDICTS
        ),
    ] = None,
    primary_metric: Annotated[
        str | None,
        typer.Option(
            help="Rate that verdicts rest on (default same_prediction, or same_neighbour).", rich_help_panel=VERDICTS
        ),
    ] = None,
    require: Annotated[
        str | None,
        typer.Option(
            help="faithful or identical: what every verdict has to be, else exit status 3.", rich_help_panel=VERDICTS
        ),
    ] = None,
    min_agreement: Annotated[
        float, typer.Option(help="Agreement that verdicts ask for in distribution.", rich_help_panel=VERDICTS)
    ] = 0.95,
    max_gap: Annotated[
        float, typer.Option(help="How much less they allow under a shift.", rich_help_panel=VERDICTS)
    ] = 0.02,
    junit: Annotated[
        Path | None,
        typer.Option(
            help="With --require: also write the verdicts as a JUnit file.", dir_okay=False, rich_help_panel=OUTPUT
        ),
    ] = None,
    counting: Annotated[
        str | None,
        typer.Option(
            help="llama.cpp: count the models of --with as it does, too, beside Assay's numbers.",
            rich_help_panel=VERDICTS,
        ),
    ] = None,
    chunk: Annotated[
        int | None,
        typer.Option(
            "--context",
            min=3,
            help="With --counting: tokens a chunk, whose second half counts (default 512).",
            rich_help_panel=VERDICTS,
        ),
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read pytorch_model.bin, tensors only.", rich_help_panel=SUBJECT)
    ] = False,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run the code that comes with the model.", rich_help_panel=SUBJECT),
    ] = False,
    jobs: Jobs = 1,
    dask: Dask = None,
    config: Config = None,
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

    workers = argument("jobs", lambda: Workers(jobs, dask))
    bars = _shares(min_agreement=min_agreement, max_gap=max_gap)
    requirement = argument("require", lambda: Requirement(require or "faithful"))
    _check_junit(junit, require)
    if chunk is not None and counting is None:
        raise typer.BadParameter("chunks are what others count: --counting llama.cpp.", param_hint="--context")
    recipes = argument("simplify", lambda: [simplifications.build(specification) for specification in simplify or ()])
    _check_source(split, pairs, named, (fit, max_length, counting))
    _check_asked(recipes, others or (), fit or pairs or named, sites or (), positions)
    splits = argument("split", lambda: _splits(split or []))
    _check_files(None if pairs or named else splits, fit)
    subject = _loaded(
        model,
        seed=seed,
        device=device,
        dtype=dtype,
        objective=objective,
        pooling=pooling,
        prompt=prompt,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
        sharded=sharded,
    )
    recipes += argument("with", lambda: _others(others or (), subject, same_tokenizer))
    engine = engine_of(subject, parts=not all(map(is_whole, recipes)))
    argument("sites", lambda: engine.sites(sites or ["all"]))
    make = partial(text.task_of, subject, fit, splits, text_field=text_field, max_length=max_length)
    task = _task(subject, named, pairs, make, max_length)
    _warn_without_shift(task.split_names)
    basis = (task, subject.objective, resolve_metrics(subject.objective, of_models=bool(others)))
    argument("primary-metric", lambda: resolve_primary(*basis, primary_metric, kind="all"))
    argument("primary-kind", lambda: resolve_primary(*basis, primary_metric, primary_kind))
    cut = partial(counted.chunks_of, subject, task, recipes, context=chunk or CONTEXT, chunks=sequences)
    chunks = None if counting is None else argument("counting", partial(cut, counting))
    folder = out_folder or default_folder("compare")
    with progress_bar(folder) as bar:
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
            progress=follow(bar, line),
        )
    write_call(folder)
    failing = requirement.failing(comparison.verdicts()) if require is not None else []
    if junit is not None:
        write_junit(comparison, junit, requirement)
    if as_json:
        required = None if require is None else {"judgement": require, **bars, "met": not failing}
        tables = {table.title: [table.headings, *table.rows] for table in shown.tables}
        counts = None if chunks is None else json.loads((folder / counted.COUNTS).read_bytes())
        printed = {**summary(comparison, folder), "tables": tables, "required": required, "counting": counts}
        print(json.dumps(printed, indent=2))
    else:
        print_run(comparison, shown, folder)
    _exit_if(failing, require)


def _task(
    subject: Any,
    named: str | None,
    pairs: Sequence[str] | None,
    of_text: Callable[[], Any],
    max_length: int | None,
) -> Any:
    """The task of a name, of pairs, or of text."""
    from assay.studies import text  # noqa: PLC0415

    if named:
        return argument("task", lambda: text.task_named(subject, named))
    if pairs:
        return argument("pairs", lambda: text.pairs_of(subject, pairs))
    _check_reads(subject, max_length)
    return argument("split", of_text)


def _loaded(model: str, *, seed: int | None, **options: Any) -> Any:
    """The model with the options of the command line; names are resolved."""
    from assay.subjects import (  # noqa: PLC0415
        check_name,
        check_seed,
        load,
        resolve_device,
        resolve_dtype,
        resolve_objective,
        resolve_pooling,
    )

    argument("MODEL", lambda: check_name(model))
    if seed is not None:
        argument("seed", lambda: check_seed(model, seed))
    for name, resolve in (
        ("device", resolve_device),
        ("dtype", resolve_dtype),
        ("objective", resolve_objective),
        ("pooling", resolve_pooling),
    ):
        if options.get(name) is not None:
            options[name] = argument(name, partial(resolve, options[name]))
    return argument("MODEL", lambda: load(model, seed=seed, **options))


def _check_files(splits: Mapping[str, str] | None, fit: str | None) -> None:
    """Files of text are there, before a model is loaded."""
    from assay.studies import text  # noqa: PLC0415

    if splits is not None:
        argument("split", lambda: text.check_splits(splits))
    if fit is not None:
        argument("fit", lambda: text.check_source("fit", fit))


def _check_reads(subject: Any, max_length: int | None) -> None:
    """The model reads text, of that length."""
    from assay.studies import text  # noqa: PLC0415

    argument("MODEL", lambda: text.check_reads(subject))
    argument("max-length", lambda: text.check_reads(subject, max_length))


def _warn_without_shift(names: Sequence[str]) -> None:
    if not {*names} - {"train", "iid"}:
        err.print(styled(("warning: ", "bold yellow"), _NO_SHIFT), soft_wrap=True)


_NO_SHIFT = (
    "there is no shift, so nothing can be shown to hold, or to fail, off the distribution it was fitted on: add text "
    "of another kind, --split NAME=FILE."
)


def _check_junit(junit: Path | None, required: str | None) -> None:
    """A file of verdicts needs something that is required of them, and a place where it can be written."""
    if junit is None:
        return
    if required is None:
        raise typer.BadParameter("say what is required of the verdicts: --require faithful.", param_hint="--junit")
    argument("junit", lambda: try_file(junit))


def _exit_if(failing: Sequence[Any], required: str | None) -> None:
    """Say which verdicts are not what is required, and leave with exit status 3 if there are any."""
    for verdict in failing:
        err.print(styled((f"required {required}: ", "bold red"), str(verdict)), soft_wrap=True)
    if failing:
        raise typer.Exit(3)


@app.command("store")
def store_text(
    model: Annotated[
        str, typer.Argument(help="A folder, a Hugging Face name, a .gguf file, or a shipped model.", metavar="MODEL")
    ],
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

    splits = argument("split", lambda: _splits(split))
    _check_files(splits, None)
    subject = _loaded(model, seed=None, device=device, dtype=dtype)
    _check_reads(subject, max_length)
    task = argument("split", lambda: text.task_of(subject, None, splits, text_field=text_field, max_length=max_length))
    with progress_bar(out_folder) as bar:
        line = bar.add_task("starting", total=None)
        store_model(
            subject,
            [task.split(name, sequences) for name in task.split_names],
            out_folder,
            form=form,
            progress=lambda name, done, total: bar.update(line, description=name, completed=done, total=total),
        )
    out.print(styled(f"The log-probabilities are in {out_folder}"), soft_wrap=True)


def _check_source(
    split: Sequence[str] | None, pairs: Sequence[str] | None, named: str | None, of_text: Sequence[object]
) -> None:
    """What is judged on: text, or pairs or a task without what is for text; another combination is a wrong call."""
    if named and (pairs or split or any(option is not None for option in of_text)):
        raise typer.BadParameter(
            "a task has splits of its own; leave out pairs and text (--pairs, --split, --fit, --max-length, "
            "--counting).",
            param_hint="--task",
        )
    if pairs and (split or any(option is not None for option in of_text)):
        raise typer.BadParameter(
            "pairs have splits and lengths of their own; leave out what is for text (--split, --fit, --max-length, "
            "--counting).",
            param_hint="--pairs",
        )
    if not pairs and not split and not named:
        hint = "give what to judge on: --split iid=FILE, --pairs FILE, or --task NAME."
        raise typer.BadParameter(hint, param_hint="--split")


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
    if argument("positions", lambda: resolve_positions(positions)) == "scored" and all(map(is_whole, recipes)):
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
