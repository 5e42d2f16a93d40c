"""The max-of-K study: train the models that the proofs are about, and make every proof on them."""

import platform
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import PreTrainedModel

from assay._errors import unknown_name
from assay.subjects import (
    LINEAR_MAX_BATCH,
    LINEAR_MAX_RECIPE,
    MAX_OF_K_BATCH,
    MAX_OF_K_RECIPE,
    Progress,
    Subject,
    linear_max_model,
    max_of_k_batches,
    max_of_k_model,
    save,
)
from assay.subjects import train as train_model
from assay.tasks import MaxOfK

MODELS: dict[str, tuple[str, MaxOfK]] = {
    "max-of-4": ("attention", MaxOfK(4)),
    "max-of-5": ("attention", MaxOfK(5)),
    "max-of-10": ("attention", MaxOfK(10)),
    "max-of-20": ("attention", MaxOfK(20)),
    "max-of-10-vocabulary-128": ("attention", MaxOfK(10, vocabulary=128)),
    "linear-max-of-2": ("linear", MaxOfK(2, vocabulary=2048)),
    "linear-max-of-3": ("linear", MaxOfK(3, vocabulary=256)),
}
"""The shipped models: name, family and task."""


def train(
    name: str,
    *,
    seed: int,
    folder: Path,
    device: str = "cpu",
    report: Callable[[Progress], None] = lambda progress: None,
) -> Subject:
    """Train the model `name` of `MODELS` from `seed` and save it as `folder/name/seed-<seed>`; resumes if interrupted.

    Raises AssayError for an unknown name.
    """
    if name not in MODELS:
        raise unknown_name("max-of-k model", name, MODELS)
    family, task = MODELS[name]
    attention = family == "attention"
    model: PreTrainedModel = max_of_k_model(task, seed) if attention else linear_max_model(task, seed)
    recipe = MAX_OF_K_RECIPE if attention else LINEAR_MAX_RECIPE
    batch = MAX_OF_K_BATCH if attention else LINEAR_MAX_BATCH
    target = folder / name / f"seed-{seed}"
    checkpoint = target / "checkpoint.pt"
    trained = train_model(
        model,
        max_of_k_batches(task, batch=batch, seed=seed),
        recipe,
        checkpoint=checkpoint,
        device=device,
        report=report,
    )
    torch.nn.Module.to(model, "cpu")
    split = task.split("iid", 10_000)
    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(split.tokens[:, :-1])).logits[:, -1]
    record: dict[str, Any] = {
        "name": name,
        "seed": seed,
        "task": task.describe(),
        "recipe": asdict(recipe),
        "batch": batch,
        **asdict(trained),
        "iid_accuracy": float(np.mean(logits.argmax(dim=1).numpy() == split.tokens[:, -1])),
        "iid_sequences": len(split),
        "device": device,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
        },
    }
    subject = Subject(model, None, name, seed=seed, record=record)
    save(subject, target)
    checkpoint.unlink()
    return subject
