"""What a model can be asked, and how an encoder's vectors become one."""

import json
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)
from transformers.utils import cached_file

from assay._errors import AssayError, unknown_name
from assay.tasks import Objective

Pooling = Literal["mean", "cls", "last", "max"]
"""How the vectors of a sequence's tokens become one: their mean, the first, the last, the largest of each entry."""

AUTO_CLASSES: dict[Objective, Any] = {
    "causal": AutoModelForCausalLM,
    "masked": AutoModelForMaskedLM,
    "embedding": AutoModel,
}

WHAT: dict[Objective, str] = {
    "causal": "a causal language model",
    "masked": "a masked language model",
    "embedding": "an encoder that gives embeddings",
}


def _names(mapping: dict[str, Any]) -> set[str]:
    return {name for value in mapping.values() for name in ((value,) if isinstance(value, str) else value)}


_BY_CLASS: tuple[tuple[Objective, set[str], str], ...] = (
    ("causal", _names(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES), "ForCausalLM"),
    ("masked", _names(MODEL_FOR_MASKED_LM_MAPPING_NAMES), "ForMaskedLM"),
    ("embedding", _names(MODEL_MAPPING_NAMES), "Model"),
)


def objective_of(architecture: str) -> Objective | None:
    """What a model class is for, by transformers' own tables, else by the end of its name; None if that is neither."""
    for objective, names, _ in _BY_CLASS:
        if architecture in names:
            return objective
    return next((objective for objective, _, ending in _BY_CLASS if architecture.endswith(ending)), None)


def resolve_objective(objective: str) -> Objective:
    """The objective of that name. Raises AssayError unless there is one."""
    if objective not in get_args(Objective):
        raise unknown_name("objective", objective, get_args(Objective))
    return cast(Objective, objective)


def resolve_pooling(pooling: str) -> Pooling:
    """The pooling of that name. Raises AssayError unless there is one."""
    if pooling not in get_args(Pooling):
        raise unknown_name("pooling", pooling, get_args(Pooling))
    return cast(Pooling, pooling)


def pool(
    hidden: Float[Tensor, "batch position width"], valid: Int[Tensor, "batch position"], pooling: Pooling
) -> Float[Tensor, "batch width"]:
    """One vector a sequence, from the vectors of its valid tokens, in float32 or wider."""
    states = hidden if hidden.dtype == torch.float64 else hidden.float()
    keep = valid.bool().unsqueeze(-1)
    if pooling == "mean":
        return states.where(keep, 0).sum(dim=1) / valid.sum(dim=1, keepdim=True)
    if pooling == "max":
        return states.where(keep, -torch.inf).amax(dim=1)
    place = (
        valid.argmax(dim=1)
        if pooling == "cls"
        else (valid * torch.arange(valid.shape[1], device=valid.device)).argmax(dim=1)
    )
    return states[torch.arange(len(states), device=states.device), place]


_MODES: dict[str, Pooling] = {
    "mean": "mean",
    "mean_tokens": "mean",
    "mean_sqrt_len_tokens": "mean",  # the mean times a positive number, which no cosine sees
    "cls": "cls",
    "cls_token": "cls",
    "max": "max",
    "max_tokens": "max",
    "lasttoken": "last",
}


def is_sentence_transformer(source: str | Path) -> bool:
    """Whether there is a modules.json, as sentence-transformers writes it."""
    return _file(source, "modules.json") is not None


def read_pooling(source: str | Path) -> Pooling:
    """The pooling that a model of sentence-transformers was trained with; the mean where nothing is said.

    Normalising the pooled vector changes no cosine, so that module is passed over. Raises AssayError for a module that
    does change it, and for a pooling that Assay does not have.
    """
    path = _file(source, "modules.json")
    if path is None:
        return "mean"
    pooling: Pooling = "mean"
    for module in _json(path):
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            settings = _file(source, f"{module.get('path', '1_Pooling')}/config.json")
            pooling = "mean" if settings is None else _pooling(_json(settings), settings)
        elif kind not in ("Transformer", "Normalize"):
            raise AssayError(
                f"{str(source)!r} changes its embeddings by a module {kind!r} ({path.name}), which Assay does not run; "
                "only Transformer, Pooling and Normalize are supported."
            )
    return pooling


def _pooling(settings: dict[str, Any], path: Path) -> Pooling:
    said = settings.get("pooling_mode")
    modes = [said] if isinstance(said, str) else said
    if modes is None:
        modes = [
            name.removeprefix("pooling_mode_")
            for name, on in settings.items()
            if name.startswith("pooling_mode_") and on
        ]
    if len(modes) != 1 or modes[0] not in _MODES:
        raise AssayError(
            f"{str(path)!r} asks for the pooling {' and '.join(map(str, modes)) or 'none'}; supported is one of "
            f"{', '.join(sorted(_MODES))}. Give pooling=... to use another than it says."
        )
    return _MODES[modes[0]]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AssayError(f"{path} is damaged ({error}); restore it.") from None


def _file(source: str | Path, name: str) -> Path | None:
    """A file of a folder or of a model on the hub; None if it has none."""
    if isinstance(source, Path):
        return source / name if (source / name).is_file() else None
    try:
        found = cached_file(
            source, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
        )
    except OSError:
        return None
    return None if found is None else Path(found)
