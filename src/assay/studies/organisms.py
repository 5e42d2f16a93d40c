"""Toy English: a model organism, its training, and what is known of it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from assay._errors import AssayError
from assay._files import read_json, remove, write_atomically
from assay.faithfulness import Step
from assay.subjects import (
    TOY_ENGLISH_RECIPE,
    PackedDocuments,
    Progress,
    Recipe,
    Subject,
    load,
    save,
    toy_english_model,
)
from assay.subjects import train as train_model
from assay.tasks import NO_TOKEN, UNSCORED, Split, ToyEnglish
from assay.tasks.toy_english import GRAMMARS, MIX, VERSION

SUBJECT = "toy-english"

EARLY = (250, 500, 1_000, 2_000)
"""Steps after which a training keeps its model, to be loaded as `toy-english@1000`."""

_LOOK_EVERY, _LOOK_AT = 250, 60
"""How often, in steps, a training is looked at, and on how many prompts a task."""

_LOG, _CHECKPOINT = "log.json", "checkpoint.pt"


@dataclass(frozen=True)
class Right:
    """How often a model is right on a split.

    `accuracy` is the share of prompts after which the likeliest of all words is right, `over_foils` that after which
    the right words together are likelier than the foils together.
    """

    accuracy: float
    over_foils: float
    prompts: int


def right(model: PreTrainedModel, split: Split, *, rows: int = 256) -> Right:
    """How often a model is right on a split of pairs with one prediction a row."""
    device = next(model.parameters()).device
    found = []
    for start in range(0, len(split), rows):
        part = split.take(np.arange(start, min(start + rows, len(split))))
        at = np.nonzero(part.kinds != UNSCORED)
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(part.tokens).to(device)).logits[at].float().cpu()
        assert part.answers is not None
        assert part.foils is not None
        answers = part.answers[at][:, None]
        if part.also_right is not None:
            answers = np.concatenate((answers, part.also_right[at]), axis=1)
        foils = part.foils.reshape(*part.tokens.shape, -1)[at]
        chosen = logits.argmax(dim=-1).numpy()[:, None]
        is_right = (answers == chosen).any(axis=1)
        found.append(np.stack((is_right, _mass(logits, answers) > _mass(logits, foils)), axis=1))
    accuracy, over_foils = np.concatenate(found).mean(axis=0).tolist()
    return Right(accuracy, over_foils, len(split))


def _mass(logits: torch.Tensor, tokens: np.ndarray) -> np.ndarray:
    """ln of the probability of several tokens of a row together, up to a number of the row."""
    chosen = logits.gather(1, torch.from_numpy(tokens.clip(min=0)))
    found: np.ndarray = chosen.masked_fill(torch.from_numpy(tokens == NO_TOKEN), -torch.inf).logsumexp(dim=1).numpy()
    return found


def in_distribution(model: PreTrainedModel, prompts: int) -> dict[str, float]:
    """Accuracy on the iid split of every task."""
    return {asks: round(right(model, ToyEnglish(asks).split("iid", prompts)).accuracy, 4) for asks in GRAMMARS}


class _Log:
    """What a training says of itself every so many steps, kept beside its checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = read_json(path) if path.exists() else []

    def add(self, line: Mapping[str, Any]) -> None:
        """Add a line, in the place of what an interrupted training said of the same step and of later ones."""
        self.lines = [*(one for one in self.lines if one["step"] < line["step"]), dict(line)]
        text = json.dumps(self.lines, indent=1)
        write_atomically(self.path, lambda path: path.write_text(text, encoding="utf-8"))


def train(
    folder: Path,
    *,
    seed: int = 0,
    device: str = "cpu",
    recipe: Recipe = TOY_ENGLISH_RECIPE,
    early: Sequence[int] = EARLY,
    prompts: int = 400,
    progress: Callable[[Progress], None] = lambda progress: None,
    measuring: Callable[[Step], None] = lambda step: None,
    looked: Callable[[Mapping[str, Any]], None] = lambda line: None,
) -> Subject:
    """Train the reference model from `seed` and save it in `folder` with its training record.

    The model after each of the steps `early` is kept in a folder of that name in it. An interrupted training goes on
    from its checkpoint in the same folder and ends with the same weights. The record holds a log (every 250 steps the
    accuracy on 60 prompts of every task, told to `looked`) and the accuracy on `prompts` of every split, measured from
    the file that was written. Raises AssayError if the folder holds a finished model.
    """
    if (folder / "model.safetensors").exists():
        raise AssayError(f"{str(folder)!r} holds a trained model already; choose another folder or remove it.")
    tokenizer = ToyEnglish().tokenizer()
    model = toy_english_model(seed)
    checkpoint, log = folder / _CHECKPOINT, _Log(folder / _LOG)

    def after(now: Progress) -> None:
        progress(now)
        if now.step % _LOOK_EVERY == 0 or now.step == recipe.steps:
            line = {"step": now.step, "tokens": now.tokens, "loss_nats": round(now.loss, 4)}
            line["accuracy"] = in_distribution(model, _LOOK_AT)  # type: ignore[assignment]
            log.add(line)
            looked(line)
        if now.step in early and now.step < recipe.steps:
            record = {**_record(seed, recipe, device), "name": f"{SUBJECT}@{now.step}", "steps": now.step}
            _written(model, tokenizer, folder / str(now.step), record, prompts, device, measuring)

    done = train_model(model, PackedDocuments(seed), recipe, checkpoint=checkpoint, device=device, report=after)
    record = {
        **_record(seed, recipe, device),
        "steps": done.steps,
        "tokens": done.tokens,
        "seconds": round(done.seconds, 1),
        "final_loss_nats": done.final_loss,
        "log": log.lines,
    }
    trained = _written(model, tokenizer, folder, record, prompts, device, measuring)
    remove(checkpoint)
    remove(log.path)
    return trained


def _record(seed: int, recipe: Recipe, device: str) -> dict[str, Any]:
    return {
        "name": SUBJECT,
        "seed": seed,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "dtype": "float32",
        "vocabulary_version": VERSION,
        "mix": MIX,
        "recipe": {**asdict(recipe), "optimizer": "AdamW"},
        "device": device,
        "versions": {name: version(name) for name in ("assay-interp", "torch", "transformers", "numpy")},
    }


def _written(  # noqa: PLR0917
    model: PreTrainedModel,
    tokenizer: Any,
    folder: Path,
    record: Mapping[str, Any],
    prompts: int,
    device: str,
    measuring: Callable[[Step], None],
) -> Subject:
    """The model as it is read from what is written, in float16, with its accuracy on every split in the record."""
    training = model.training
    seed = record["seed"]
    save(Subject(model, tokenizer, record["name"], seed=seed, record=dict(record)), folder, stored=torch.float16)
    model.train(training)
    written = load(folder, device=device)
    found = {**record, "accuracy": accuracies(written, prompts, measuring), "weights_sha256": written.weights_sha256}
    subject = replace(written, name=record["name"], record=found)
    save(subject, folder, stored=torch.float16)
    return subject


def accuracies(
    subject: Subject, prompts: int, progress: Callable[[Step], None] = lambda step: None
) -> dict[str, dict[str, dict[str, float]]]:
    """How often a subject is right on every split of every task (see `Right`)."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    splits = [(asks, name) for asks in GRAMMARS for name in ToyEnglish(asks).split_names[1:]]
    for number, (asks, name) in enumerate(splits):
        progress(Step(number, len(splits), f"{asks}: {name}"))
        measured = right(subject.model, ToyEnglish(asks).split(name, prompts))
        found.setdefault(asks, {})[name] = {key: round(value, 4) for key, value in asdict(measured).items()}
    return found
