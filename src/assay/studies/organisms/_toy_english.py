"""The model of toy English: how it is trained, how often it is right, and whether there is anything to find in it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from assay._errors import AssayError
from assay._files import read_json, remove, write_atomically
from assay.engine import Block, Edit, Engine, tensors
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

EARLY = (250, 1_000)
"""Steps after which a training keeps its model, to be loaded as `toy-english@1000`."""

_LOOK_EVERY, _LOOK_AT = 250, 60
"""How often, in steps, a training is looked at, and on how many prompts a task."""

_LOG, _CHECKPOINT = "log.json", "checkpoint.pt"


@cache
def _task(asks: str) -> ToyEnglish:
    """A task, which remembers what was drawn of it."""
    return ToyEnglish(asks)


@dataclass(frozen=True)
class Right:
    """How often a model is right on a split.

    `accuracy` is the share of prompts after which the likeliest of all words is right, `over_foils` that after which
    the right words together are likelier than the foils together.
    """

    accuracy: float
    over_foils: float
    prompts: int


def right(model: PreTrainedModel, split: Split) -> Right:
    """How often a model is right on a split of pairs with one prediction a row."""
    logits = _run(model, split)
    assert split.foils is not None
    at = np.nonzero(split.kinds != UNSCORED)
    foils = split.foils.reshape(*split.tokens.shape, -1)[at]
    over = _mass(logits[at], _answers(split)) > _mass(logits[at], foils)
    return Right(float(is_right(logits, split).mean()), float(over.mean()), len(split))


def _run(model: PreTrainedModel, split: Split) -> torch.Tensor:
    """The logits of a model on a split; what is padded comes last, and no prompt sees it."""
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.from_numpy(split.tokens).to(model.device)).logits.float().cpu()
    return found


def said(model: PreTrainedModel, split: Split) -> np.ndarray:
    """The likeliest of all words after every prompt of a split, by a model."""
    return _chosen(_run(model, split), split)


def _chosen(logits: torch.Tensor, split: Split) -> np.ndarray:
    found: np.ndarray = logits[np.nonzero(split.kinds != UNSCORED)].argmax(dim=-1).cpu().numpy()
    return found


def is_right(logits: torch.Tensor, split: Split) -> np.ndarray:
    """After which prompts the likeliest of all words is right."""
    found: np.ndarray = (_answers(split) == _chosen(logits, split)[:, None]).any(axis=1)
    return found


def _answers(split: Split) -> np.ndarray:
    """All right words after every prompt."""
    at = np.nonzero(split.kinds != UNSCORED)
    assert split.answers is not None
    answers = split.answers[at][:, None]
    return answers if split.also_right is None else np.concatenate((answers, split.also_right[at]), axis=1)


def _mass(logits: torch.Tensor, tokens: np.ndarray) -> np.ndarray:
    """ln of the probability of several tokens of a row together, up to a number of the row."""
    given = logits.gather(1, torch.from_numpy(tokens.clip(min=0)))
    found: np.ndarray = given.masked_fill(torch.from_numpy(tokens == NO_TOKEN), -torch.inf).logsumexp(dim=1).numpy()
    return found


def in_distribution(model: PreTrainedModel, prompts: int) -> dict[str, float]:
    """Accuracy on the iid split of every task."""
    return {asks: round(right(model, _task(asks).split("iid", prompts)).accuracy, 4) for asks in GRAMMARS}


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
        "recipe": asdict(recipe),
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
    accuracy = {
        asks: {name: {key: round(value, 4) for key, value in asdict(one).items()} for name, one in splits.items()}
        for asks, splits in accuracies(written, prompts, measuring).items()
    }
    found = {**record, "accuracy": accuracy, "weights_sha256": written.weights_sha256}
    subject = replace(written, name=record["name"], record=found)
    save(subject, folder, stored=torch.float16)
    return subject


def accuracies(
    subject: Subject, prompts: int, progress: Callable[[Step], None] = lambda step: None
) -> dict[str, dict[str, Right]]:
    """How often a subject is right on every split of every task."""
    found: dict[str, dict[str, Right]] = {}
    splits = [(asks, name) for asks in GRAMMARS for name in ToyEnglish(asks).split_names[1:]]
    for number, (asks, name) in enumerate(splits):
        progress(Step(number, len(splits), f"{asks}: {name}"))
        found.setdefault(asks, {})[name] = right(subject.model, _task(asks).split(name, prompts))
    return found


JUDGED = ("ioi", "induction", "coloured", "choice", "docstring")
"""Tasks of which more than one layer has to take part (the others are facts, or answered by what stands there)."""

LEAST_RIGHT, MOST_EARLY, LEAST_LOST = 0.97, 0.6, 0.3
"""In the acceptance test: accuracy at the end, after the first block, and lost with the heads above it."""


@dataclass(frozen=True)
class Depth:
    """Where in its depth a model finds the answers of a task, on iid.

    `after` are the accuracies read off the residual stream behind every block (by the model's own last norm and
    unembedding), the last of them the model's; `without_heads` is the accuracy with all heads above the first block
    replaced by their means over all positions of these prompts.
    """

    asks: str
    after: tuple[float, ...]
    without_heads: float

    @property
    def accepted(self) -> bool:
        """Whether the task is solved, not within one block, and not without the heads above it."""
        first, last = self.after[0], self.after[-1]
        return last >= LEAST_RIGHT and first <= MOST_EARLY and last - self.without_heads >= LEAST_LOST


def depth(subject: Subject, asks: str, prompts: int = 400) -> Depth:
    """Where in its depth a subject finds the answers of a task."""
    engine = Engine(subject)
    split = _task(asks).split("iid", prompts)
    tokens, valid = tensors(split, subject.device)
    with torch.no_grad():
        clean = engine.run(tokens, valid, read=("after", "heads"))
        blocks = list(range(len(clean.after)))
        means = {layer: clean.heads[layer][valid.bool()].mean(dim=0) for layer in blocks[1:]}
        early = [
            engine.run(tokens, valid, edits=[Edit(Block(blocks[-1]), after=partial(_instead, clean.after[layer]))])
            for layer in blocks
        ]
        cut = engine.run(
            tokens, valid, edits=[Edit(Block(layer), heads=partial(_instead, means[layer])) for layer in means]
        )
    shares = [float(is_right(run.logits, split).mean()) for run in (*early, cut)]
    return Depth(asks, tuple(shares[:-1]), shares[-1])


def _instead(value: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    return value.expand_as(state)


SCENARIOS = ("recall", "both", "heuristic", "guess")
"""Splits of facts by what gives the answer; in the last, nothing does."""


@dataclass(frozen=True)
class Without:
    """Accuracy on facts by scenario (and on iid, which mixes the first two) without one part of the model.

    The part gives its mean over all positions of the prompts of iid in the place of what it computes; `part` is "–" for
    the whole model.
    """

    part: str
    iid: float
    scenarios: Mapping[str, float]


def scenarios(subject: Subject, prompts: int = 400) -> list[Without]:
    """What every head and every MLP is to each scenario of facts."""
    engine = Engine(subject)
    splits = {name: _task("facts").split(name, prompts) for name in ("iid", *SCENARIOS)}
    inputs = {name: tensors(split, subject.device) for name, split in splits.items()}
    tokens, valid = inputs["iid"]
    with torch.no_grad():
        clean = engine.run(tokens, valid, read=("outputs", "mlp"))
        here = valid.bool()
        without: dict[str, list[Edit]] = {"–": []}
        for head in engine.heads:
            mean = clean.outputs[head.layer][:, head.head][here].mean(dim=0)
            without[str(head)] = [Edit(head, outputs=partial(_instead, mean))]
        for block in engine.blocks:
            mean = clean.mlp[block.layer][here].mean(dim=0)
            without[f"{block}.mlp"] = [Edit(block, mlp=partial(_instead, mean))]
        found = []
        for part, edits in without.items():
            shares = {
                name: float(is_right(engine.run(*inputs[name], edits=edits).logits, split).mean())
                for name, split in splits.items()
            }
            found.append(Without(part, shares.pop("iid"), shares))
    return found


def bag_of_words(asks: str, *, fitted: int = 3_000, prompts: int = 400, steps: int = 300) -> float:
    """Accuracy on iid of a logistic regression on which words stand there, how often, and at which positions.

    It is fitted on prompts that are trained on; of a task that it solves no composition of heads is needed.
    """
    task = ToyEnglish(asks)
    train, iid = task.split("train", fitted), task.split("iid", prompts)
    answers = np.unique(train.right[train.kinds != UNSCORED])
    width, words = max(train.tokens.shape[1], iid.tokens.shape[1]), len(task.vocabulary)
    counted, judged = (_counted(split, width, words) for split in (train, iid))
    used = counted.any(dim=0)
    target = torch.from_numpy(np.searchsorted(answers, train.right[train.kinds != UNSCORED]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = torch.nn.Linear(int(used.sum()), len(answers))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(layer(counted[:, used]), target) + 1e-5 * (layer.weight**2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        chosen = answers[layer(judged[:, used]).argmax(dim=-1).numpy()]
    return float((chosen == iid.right[iid.kinds != UNSCORED]).mean())


def _counted(split: Split, width: int, words: int) -> torch.Tensor:
    """Of every prompt which word is at which position, and how often each word is there."""
    found = np.zeros((len(split), (width + 1) * words), dtype=np.float32)
    for row, (tokens, length) in enumerate(zip(split.tokens, split.lengths.tolist(), strict=True)):
        np.add.at(found[row], tokens[:length], 1)
        found[row, words * (1 + np.arange(length)) + tokens[:length]] = 1
    return torch.from_numpy(found)
