"""The code study: train a character model of functions and measure it on every split."""

import hashlib
import json
import math
import platform
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from jaxtyping import Float
from transformers import PreTrainedModel

from assay import subjects
from assay.subjects import (
    CODE_RECIPE,
    CODE_TOKENS_PER_BATCH,
    BucketedBatches,
    Progress,
    Recipe,
    Subject,
    character_tokenizer,
    code_model,
    load,
    save,
)
from assay.tasks import KINDS, UNSCORED, Code

_BATCH = 32
_DTYPE = "float32"


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
    task: Code,
    folder: Path,
    *,
    seed: int = 0,
    recipe: Recipe = CODE_RECIPE,
    tokens_per_batch: int = CODE_TOKENS_PER_BATCH,
    device: str = "cpu",
    stored: torch.dtype = torch.float16,
    note: str = "",
    report: Callable[[Progress], None] = lambda progress: None,
) -> Subject:
    """Train a reference model on the task, write it to `folder` and return it as read back from there.

    An interrupted training continues from its checkpoint in `folder`, which is named by task, recipe and seed and
    deleted at the end. The record (`training.json`) holds task, recipe, model, versions and `measure` of the file
    that was written; `note` is added to it. The weights are rounded to `stored` in the file; the returned subject
    computes with them in float32. Raises AssayError if the loss stops being a number.
    """
    described = task.describe()
    settings = {**asdict(recipe), "tokens_per_batch": tokens_per_batch}
    model = code_model(task, seed)
    key = hashlib.sha256(json.dumps([described, settings, seed]).encode()).hexdigest()[:12]
    checkpoint = folder / f"checkpoint-{key}.pt"
    tokens, lengths = task.training
    batches = BucketedBatches(tokens, lengths, tokens_per_batch=tokens_per_batch, seed=seed)
    done = subjects.train(model, batches, recipe, checkpoint=checkpoint, device=device, report=report)
    record = {
        "dtype": _DTYPE,
        "stored": str(stored).removeprefix("torch."),
        "seed": seed,
        "model": _model_record(model),
        "task": described,
        "recipe": settings,
        "training": {**asdict(done), "device": device, "epochs": round(done.tokens / int((lengths - 1).sum()), 3)},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
        },
        **({"note": note} if note else {}),
    }
    trained = Subject(model.cpu(), character_tokenizer(task), folder.name, seed=seed, record=record)
    save(trained, folder, stored=stored)
    read = load(folder, device=device)
    measured = {**record, "weights_sha256": read.weights_sha256, "measured": measure(read, task)}
    save(replace(trained, record=measured), folder, stored=stored)
    checkpoint.unlink()
    return replace(read, record=measured)


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
