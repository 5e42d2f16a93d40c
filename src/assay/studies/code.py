"""The code study: train a character model of functions and measure it on every split."""

import hashlib
import json
import math
import platform
from collections.abc import Callable
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
from assay.tasks import KINDS, UNSCORED, Code

_BATCH = 32


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
    settings = {**asdict(recipe), "tokens_per_batch": CODE_TOKENS_PER_BATCH, "optimizer": "AdamW"}
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
    checkpoint.unlink()
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
