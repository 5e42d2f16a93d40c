"""The code study: train a character model of functions, measure it, and judge its simplifications on every split."""

import hashlib
import json
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from transformers import PreTrainedModel

from assay._errors import AssayError
from assay._files import remove
from assay.engine import Engine, collect
from assay.faithfulness import Comparison, Step, Workers, compare, head_scores
from assay.reports import Illustrations, write_figures, write_page
from assay.simplify import SVD, KMeans, OneHotAttention, Simplification, label
from assay.studies import _code_views as views
from assay.subjects import (
    CODE_RECIPE,
    CODE_TOKENS_PER_BATCH,
    BucketedBatches,
    Progress,
    Recipe,
    Subject,
    code_model,
    load,
    save,
)
from assay.subjects import train as train_model
from assay.tasks import KINDS, UNSCORED, Code, code_vocabulary

_BATCH = 32

SUBJECT = "code-python"
"""The model of the default run: its training distribution is on every machine that runs Python."""

SHOWN = SVD(rank=8)
"""The proxy that is shown by kind of character, and on a function."""

HEADS = "heads"
COMPONENTS = "components"
"""Folders of a run's other comparisons: each head by itself, and each component."""


def quick() -> list[Simplification]:
    """The simplifications of all heads together in the default run."""
    return [SVD(rank=4), SVD(rank=8), SVD(rank=16), KMeans(clusters=16), OneHotAttention()]


def full() -> list[Simplification]:
    """The simplifications of `--full`."""
    return [
        *(SVD(rank=rank) for rank in (1, 2, 4, 8, 16, 32)),
        *(KMeans(clusters=clusters) for clusters in (4, 16, 64, 256)),
        OneHotAttention(),
    ]


def each_head() -> list[Simplification]:
    """The simplifications of each head by itself with `--full`."""
    return [*(SVD(rank=rank) for rank in (1, 2, 4, 8, 16, 32)), KMeans(clusters=16), OneHotAttention()]


def vocabulary_of(subject: Subject) -> tuple[str, ...]:
    """The characters that a subject knows. Raises AssayError if it is no character model of functions."""
    if subject.tokenizer is None:
        raise AssayError(f"{subject.name!r} has no tokenizer; give a model made by `assay train code`.")
    return code_vocabulary(subject.tokenizer)


def task_of(subject: Subject, data: str = "python", language: str | None = None) -> Code:
    """The functions that `data` names (see `Code.from_data`), in the vocabulary of a character model.

    Raises AssayError if the data cannot be read, or if the subject is no character model of functions.
    """
    known = vocabulary_of(subject)
    return Code.from_data(data, language, vocabulary_from=known, context=subject.positions or 256)


def run(
    folder: Path,
    subject: Subject,
    task: Code,
    *,
    everything: bool = False,
    functions: int | None = None,
    fit_functions: int | None = None,
    overwrite: bool = False,
    workers: Workers = Workers(),
    progress: Callable[[Step], None] = lambda step: None,
) -> tuple[Comparison, Illustrations]:
    """Judge simplifications of a character model of functions and leave a run folder.

    Three comparisons: all heads together with every control (in `folder`), each head by itself (`folder/heads`),
    and each component projected on a quarter of its directions (`folder/components`). By default 20 functions a
    split and a few recipes, in minutes; with `everything`, ranks 1 to 32, 4 to 256 clusters and 300 functions, in
    hours on a CPU. `functions` sets the number, and `fit_functions` that of those to fit on (50, or 1,000). Tables,
    charts and the function that is shown are in the returned illustrations and in the page. A run that was stopped
    goes on where it was; `overwrite` is that of `assay.compare`. Raises AssayError as `assay.compare` does.
    """
    recipes = full() if everything else quick()
    options: dict[str, Any] = {
        "sequences": functions if functions is not None else 300 if everything else 20,
        "fit_sequences": fit_functions if fit_functions is not None else 1_000 if everything else 50,
        "overwrite": overwrite,
        "workers": workers,
        "progress": progress,
    }
    engine = Engine(subject)
    width = engine.widths[0]
    whole = compare(subject, task, recipes, folder=folder, **options)
    alone = {"controls": False, "refit": False, **options}
    per_head = {"simplifications": each_head() if everything else [SHOWN], "sites": ["all-heads"]}
    heads = compare(subject, task, folder=folder / HEADS, **{**alone, **per_head, "controls": everything})
    quarter = SVD(rank=width // 4)
    vectors = compare(subject, task, [quarter], sites=["all.values"], folder=folder / COMPONENTS / "values", **alone)
    blocks = compare(
        subject,
        task,
        [SVD(rank=subject.model.config.hidden_size // 4)],
        sites=["all.mlp", "all.residual"],
        folder=folder / COMPONENTS / "blocks",
        **alone,
    )
    progress(Step(1, 1, "figures"))
    shown = illustrate(engine, task, whole, heads, [vectors, blocks], recipes, options["sequences"])
    shown.save(folder)
    write_figures(whole, folder / "figures", shown)
    write_page(whole, folder / "report.html", shown)
    return whole, shown


def illustrate(  # noqa: PLR0917
    engine: Engine,
    task: Code,
    whole: Comparison,
    heads: Comparison,
    components: Sequence[Comparison],
    recipes: Sequence[Simplification],
    functions: int,
) -> Illustrations:
    """Everything that a code run shows beside the usual tables and figures."""
    splits = [task.split(name, functions) for name in task.split_names[1:]]
    shown, width = label(SHOWN), engine.widths[0]
    scores = head_scores(engine, splits[0])
    table, chart = views.components_view(whole, components, f"SVD(rank={width // 4})")
    samples = collect(engine, task.split("train", 200), ("queries", "keys"))
    proxy = SVD(rank=SHOWN.rank).fit(samples.at(engine.site("all"))).apply(engine.subject)
    largest = str(views.head_gaps(heads, shown).index[0])
    of_head = SVD(rank=SHOWN.rank).fit(samples.at(engine.site(largest))).apply(engine.subject)
    last = splits[-1]
    return Illustrations(
        tables=[
            *([views.measured(engine.subject)] if "measured" in engine.subject.record else []),
            views.shares(task, splits),
            *views.by_kind(whole, [label(item) for item in recipes], [label(item) for item in quick()]),
            *views.kind_gaps(whole, shown),
            views.by_depth(whole, shown, "all", task.max_depth),
            views.heads_table(heads, scores, shown),
            *views.heads_by_proxy(heads, shown),
            views.heads_by_kind(heads, shown),
            views.by_depth(heads, shown, largest, task.max_depth),
            views.correlations(heads, scores, shown),
            table,
        ],
        charts=[
            views.gaps_by_shift(whole, [label(item) for item in quick()]),
            views.gaps_by_kind(whole, shown),
            views.agreement_by_bits(whole, recipes, splits, width, task.context),
            chart,
        ],
        texts=[
            views.function_view(engine, task, views.telling_function(engine, split, proxy), proxy, shown, "all")
            for split in (splits[0], last)
        ],
        sentences=list(views.attention_views(engine, task, [splits[0], last], largest, of_head, shown)),
    )


@torch.inference_mode()
def measure(subject: Subject, task: Code, *, functions: int = 1_000) -> dict[str, dict[str, Any]]:
    """How well a model predicts, by split: bits per character, next-character accuracy, accuracy and share by kind.

    Bits are the mean of −log2 p(next token) over all predictions of a split's first `functions` functions (END, where
    it fits into the context, is one of them); lower is better. Accuracy is the share of predictions whose arg max is
    right. A kind that does not occur has accuracy None.
    """
    measured: dict[str, dict[str, Any]] = {}
    for name in task.split_names:
        split = task.split(name, functions)
        bits: list[Float[np.ndarray, " prediction"]] = []
        right: list[np.ndarray] = []
        kinds: list[np.ndarray] = []
        for start in range(0, len(split), _BATCH):
            part = split.take(np.arange(start, min(start + _BATCH, len(split))))
            tokens = torch.from_numpy(part.tokens).to(subject.device)
            logits = subject(tokens, torch.from_numpy(part.valid.astype(np.int64)).to(subject.device))[:, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
            scored = part.kinds[:, :-1] != UNSCORED
            bits.append(loss.cpu().numpy()[scored] / math.log(2))
            right.append((logits.argmax(-1) == tokens[:, 1:]).cpu().numpy()[scored])
            kinds.append(part.kinds[:, :-1][scored])
        correct, kind = np.concatenate(right), np.concatenate(kinds)
        measured[name] = {
            "functions": len(split),
            "predictions": len(correct),
            "bits_per_character": round(float(np.concatenate(bits).mean()), 5),
            "accuracy": round(float(correct.mean()), 5),
            "kinds": {
                label: {
                    "share": round(float((kind == index).mean()), 5),
                    "accuracy": round(float(correct[kind == index].mean()), 5) if (kind == index).any() else None,
                }
                for index, label in enumerate(KINDS)
            },
        }
    return measured


def train(
    folder: Path,
    *,
    task: Code | None = None,
    seed: int = 0,
    device: str = "cpu",
    recipe: Recipe = CODE_RECIPE,
    stored: torch.dtype = torch.float16,
    note: str = "",
    progress: Callable[[Progress], None] = lambda progress: None,
) -> Subject:
    """Train the reference model on `task` (default: `Code()`) from `seed`, save it in `folder`, return it as read back.

    An interrupted training goes on from its checkpoint in the same folder, which is named by task, recipe and seed,
    and ends with the same weights. The record holds task, recipe, model, versions and `measure` of the file that was
    written; `note` is added to it. The weights are rounded to `stored` in the file; the returned subject computes
    with them in float32. Raises AssayError if the folder holds a trained model already or the loss stops being a
    number.
    """
    if (folder / "model.safetensors").exists():
        raise AssayError(f"{str(folder)!r} holds a trained model already; choose another folder or remove it.")
    task = task or Code()
    described = task.describe()
    settings = {**asdict(recipe), "tokens_per_batch": CODE_TOKENS_PER_BATCH}
    model = code_model(task, seed)
    key = hashlib.sha256(json.dumps([described, settings, seed]).encode()).hexdigest()[:12]
    checkpoint = folder / f"checkpoint-{key}.pt"
    tokens, lengths = task.training
    batches = BucketedBatches(tokens, lengths, tokens_per_batch=CODE_TOKENS_PER_BATCH, seed=seed)
    done = train_model(model, batches, recipe, checkpoint=checkpoint, device=device, report=progress)
    save(Subject(model, task.tokenizer(), task.name, seed=seed), folder, stored=stored)
    read = load(folder, device=device, dtype=torch.float32)
    record = {
        "name": task.name,
        "seed": seed,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "dtype": "float32",
        "stored": str(stored).removeprefix("torch."),
        "model": _model_record(model),
        "task": described,
        "recipe": settings,
        "steps": done.steps,
        "tokens": done.tokens,
        "epochs": round(done.tokens / int((lengths - 1).sum()), 3),
        "seconds": round(done.seconds, 1),
        "final_loss_nats": done.final_loss,
        "measured": measure(read, task),
        "weights_sha256": read.weights_sha256,
        "device": device,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("assay-interp", "torch", "transformers", "numpy", "pygments")},
        },
        **({"note": note} if note else {}),
    }
    trained = replace(read, name=task.name, seed=seed, record=record)
    save(trained, folder, stored=stored)
    remove(checkpoint)
    return trained


def _model_record(model: PreTrainedModel) -> dict[str, Any]:
    """What the record says of the architecture."""
    config = model.config
    return {
        "architecture": type(model).__name__,
        "layers": config.n_layer,
        "heads": config.n_head,
        "width": config.n_embd,
        "mlp": config.n_inner,
        "activation": config.activation_function,
        "positions": config.n_positions,
        "vocabulary": config.vocab_size,
        "tied_embeddings": config.tie_word_embeddings,
        "dropout": config.resid_pdrop,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
