"""What a model can be asked, and how an encoder's vectors become one."""

from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForTextEncoding,
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    MODEL_MAPPING_NAMES,
)

from assay._errors import unknown_name
from assay._given import checked
from assay.tasks import Objective

Pooling = Literal["mean", "cls", "last", "max"]
"""How the vectors of a sequence's tokens become one: their mean, the first, the last, the largest of each entry."""

_AUTO_CLASSES: dict[Objective, Any] = {
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


def auto_class(objective: Objective, config: PreTrainedConfig) -> Any:
    """The class of transformers that reads a model for an objective: of an encoder-decoder's embedding, the encoder."""
    has_code = "AutoModel" in (getattr(config, "auto_map", None) or {})
    if objective == "embedding" and type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING and not has_code:
        return AutoModelForTextEncoding
    return _AUTO_CLASSES[objective]


@checked
def resolve_objective(objective: str) -> Objective:
    """The objective of that name. Raises AssayError unless there is one."""
    if objective not in get_args(Objective):
        raise unknown_name("objective", objective, get_args(Objective))
    return cast(Objective, objective)


@checked
def resolve_pooling(pooling: str) -> Pooling:
    """The pooling of that name. Raises AssayError unless there is one."""
    if pooling not in get_args(Pooling):
        raise unknown_name("pooling", pooling, get_args(Pooling))
    return cast(Pooling, pooling)


@checked
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
