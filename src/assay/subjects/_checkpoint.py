"""Whether what was loaded is the model that was saved: every tensor in its place, none left over, none made up."""

import copy
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from assay._errors import AssayError
from assay.subjects._objective import WHAT
from assay.tasks import Objective

_ATTENTION = (None, "eager", "sdpa")
_OUTPUT_LAYERS = frozenset(("lm_head", "embed_out"))


def prefer_plain_attention(config: PreTrainedConfig) -> None:
    """Let a configuration name no attention implementation but the two that need nothing installed, in place.

    The name says how the weights were run last, not what they are.
    """
    if config._attn_implementation not in _ATTENTION:
        config._attn_implementation = None
    for key in config.sub_configs:
        part = getattr(config, key, None)
        if isinstance(part, PreTrainedConfig):
            prefer_plain_attention(part)


def check_loaded(model: PreTrainedModel, found: Mapping[str, Any], name: str, objective: Objective) -> None:
    """Raise AssayError unless a model has all its tensors from the checkpoint, and the checkpoint no others.

    `found` is transformers' loading information, where the architecture's own lists of what may be missing or left over
    were taken off. Further, a tensor may be left over that the model computes itself (a buffer), one that another class
    of the same architecture has, such as the head of another task, and for embeddings an output layer.
    """
    shapes = sorted(found["mismatched_keys"])
    if shapes:
        key, saved, expected = shapes[0]
        raise AssayError(
            f"the checkpoint of {name!r} has {len(shapes)} tensors of other shapes than its configuration says ({key}: "
            f"{_shape(saved)}, not {_shape(expected)}); restore the config.json that belongs to it."
        )
    missing = set(found["missing_keys"])
    if missing:
        raise AssayError(
            f"the checkpoint of {name!r} lacks {len(missing)} tensors ({min(missing)}), which would be random; "
            f"as {WHAT[objective]} it cannot be judged."
        )
    unused = _unused(model, set(found["unexpected_keys"]))
    if objective == "embedding":
        unused = {key for key in unused if _OUTPUT_LAYERS.isdisjoint(key.split("."))}
    if unused:
        shown = ", ".join(sorted(unused)[:3]) + (" …" if len(unused) > 3 else "")
        raise AssayError(
            f"the checkpoint of {name!r} has {len(unused)} tensors that {type(model).__name__} does not use with this "
            f"configuration ({shown}), so another model than the saved one would be judged; restore the config.json "
            "that belongs to it, or, if they do not matter, load it with transformers and give assay.Subject(model, "
            "tokenizer, name)."
        )


def _shape(shape: torch.Size) -> str:
    return " x ".join(map(str, shape))


def _unused(model: PreTrainedModel, left: set[str]) -> set[str]:
    """Those of the tensors left over that are not known to be without effect."""

    def bare(key: str) -> str:
        return key.removeprefix(f"{model.base_model_prefix}.")

    computed = {bare(name) for name, _ in model.named_buffers()}
    # masked_bias: the constant that older versions put where the mask is
    unused = {key for key in left if bare(key) not in computed and not key.endswith(".masked_bias")}
    for relative in _relatives(model) if unused else ():
        known = {bare(key) for key in relative.state_dict()}
        unused = {key for key in unused if bare(key) not in known}
        if not unused:
            break
    return unused


def _relatives(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Models without weights of the other classes of an architecture that can be made with this configuration."""
    for kind in vars(sys.modules[type(model).__module__]).values():
        if (
            not isinstance(kind, type)
            or not issubclass(kind, PreTrainedModel)
            or kind.config_class is not type(model).config_class
            or kind is type(model)
        ):
            continue
        config = copy.deepcopy(model.config)
        config._attn_implementation = "eager"
        try:
            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                relative = kind(config)
        except (AssertionError, AttributeError, ImportError, NotImplementedError, RuntimeError, TypeError, ValueError):
            continue
        yield relative
