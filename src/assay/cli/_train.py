"""assay train: the reference models, made again."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from assay._terminal import styled
from assay.cli._shared import (
    AsJson,
    Device,
    Functions,
    Language,
    argument,
    out,
    progress_bar,
    train_app,
)

Steps = Annotated[int | None, typer.Option(min=1, help="Training steps (default: the recipe's).")]
OutFolder = Annotated[Path | None, typer.Option("--out", help="Folder of the model.", file_okay=False)]


def _say(folder: Path, record: Mapping[str, Any], lines: Iterable[str], *, as_json: bool) -> None:
    """Print what was trained: the record as JSON, or lines of it and where the model is."""
    if as_json:
        print(json.dumps({"folder": str(folder), **record}, indent=2))
        return
    for line in (*lines, f"The model is in {folder}"):
        out.print(styled(line), soft_wrap=True)


@train_app.command("dyck")
def train_dyck(
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the order of the data.")] = 0,
    steps: Steps = None,
    device: Device = "cpu",
    out_folder: OutFolder = None,
    as_json: AsJson = False,
) -> None:
    """Train the Dyck reference model."""
    from dataclasses import replace  # noqa: PLC0415

    from assay.studies import dyck  # noqa: PLC0415
    from assay.subjects import DYCK_RECIPE, resolve_device  # noqa: PLC0415

    device = argument("device", lambda: resolve_device(device))
    folder = out_folder or Path("assay-models") / dyck.SUBJECT / f"seed-{seed}"
    recipe = DYCK_RECIPE if steps is None else replace(DYCK_RECIPE, steps=steps)
    with progress_bar(folder) as bar:
        line = bar.add_task("training", total=recipe.steps)
        subject = dyck.train(
            folder,
            seed=seed,
            device=device,
            recipe=recipe,
            progress=lambda now: bar.update(line, completed=now.step, description=f"loss {now.loss:.3f} nats"),
            measuring=lambda step: bar.update(line, description=step.text, completed=step.done, total=step.total),
        )
    lines = (
        f"{split:24} " + "  ".join(f"{kind} {value:.4f}" for kind, value in accuracy.items())
        for split, accuracy in subject.record["accuracy"].items()
    )
    _say(folder, subject.record, lines, as_json=as_json)


@train_app.command("code")
def train_code(
    data: Functions = "python",
    language: Language = None,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the order of the data.")] = 0,
    steps: Steps = None,
    device: Device = "cpu",
    out_folder: OutFolder = None,
    as_json: AsJson = False,
) -> None:
    """Train a character-level model of program functions."""
    from dataclasses import replace  # noqa: PLC0415

    from assay.studies import code  # noqa: PLC0415
    from assay.subjects import CODE_RECIPE, resolve_device  # noqa: PLC0415
    from assay.tasks import Code  # noqa: PLC0415

    device = argument("device", lambda: resolve_device(device))
    recipe = CODE_RECIPE if steps is None else replace(CODE_RECIPE, steps=steps)
    task = argument("data", lambda: Code.from_data(data, language))
    folder = out_folder or Path("assay-models") / task.name / f"seed-{seed}"
    with progress_bar(folder) as bar:
        line = bar.add_task("training", total=recipe.steps)
        subject = code.train(
            folder,
            task=task,
            seed=seed,
            device=device,
            recipe=recipe,
            progress=lambda now: bar.update(line, completed=now.step, description=f"loss {now.loss:.3f} nats"),
        )
    lines = (
        f"{split:20} {measured['bits_per_character']:.3f} bits a character  accuracy {measured['accuracy']:.3f}  "
        f"{measured['functions']} functions"
        for split, measured in subject.record["measured"].items()
    )
    _say(folder, subject.record, lines, as_json=as_json)


@train_app.command("max-of-k")
def train_max_of_k(
    name: Annotated[
        str, typer.Argument(help="Which model: max-of-4, max-of-10, linear-max-of-2, …", metavar="NAME")
    ] = "max-of-4",
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the data.")] = 0,
    device: Device = "cpu",
    out_folder: Annotated[Path | None, typer.Option("--out", help="Folder of the models.", file_okay=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Train a model that names the largest of K tokens."""
    from assay.studies import max_of_k  # noqa: PLC0415
    from assay.subjects import resolve_device  # noqa: PLC0415

    device = argument("device", lambda: resolve_device(device))
    task = argument("NAME", lambda: max_of_k.task_of(name))
    folder = out_folder or Path("assay-models")
    with progress_bar(folder) as bar:
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
    line_of_it = f"{task.name}: accuracy {subject.record['iid_accuracy']:.4f} on fresh sequences"
    _say(folder / name / f"seed-{seed}", subject.record, [line_of_it], as_json=as_json)


@train_app.command("toy-english")
def train_toy_english(
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the data.")] = 0,
    steps: Steps = None,
    device: Device = "cpu",
    out_folder: OutFolder = None,
    as_json: AsJson = False,
) -> None:
    """Train the model of toy English: nine tasks, ten minutes on one core."""
    from dataclasses import replace  # noqa: PLC0415

    from assay.studies.organisms import toy_english  # noqa: PLC0415
    from assay.subjects import TOY_ENGLISH_RECIPE, resolve_device  # noqa: PLC0415

    device = argument("device", lambda: resolve_device(device))
    folder = out_folder or Path("assay-models") / toy_english.SUBJECT / f"seed-{seed}"
    recipe = TOY_ENGLISH_RECIPE if steps is None else replace(TOY_ENGLISH_RECIPE, steps=steps)
    with progress_bar(folder) as bar:
        line = bar.add_task("training", total=recipe.steps)
        subject = toy_english.train(
            folder,
            seed=seed,
            device=device,
            recipe=recipe,
            progress=lambda now: bar.update(line, completed=now.step, description=f"loss {now.loss:.3f} nats"),
            measuring=lambda step: bar.update(line, description=step.text, completed=step.done, total=step.total),
            looked=lambda look: bar.console.print(styled(_looked(look)), soft_wrap=True),
        )
    lines = (
        f"{asks:10} " + "  ".join(f"{split} {measured['accuracy']:.3f}" for split, measured in splits.items())
        for asks, splits in subject.record["accuracy"].items()
    )
    _say(folder, subject.record, lines, as_json=as_json)


def _looked(look: Mapping[str, Any]) -> str:
    """A line of the log of a training."""
    return f"{look['step']:6} " + "  ".join(f"{asks} {value:.2f}" for asks, value in look["accuracy"].items())
