"""Dictionaries in the format of Llama Scope (`hyperparams.json`, `checkpoints/final.safetensors`).

After the code of OpenMOSS/Language-Model-SAEs of November 2024; none of it is used here. Weights are those of training,
where vectors were multiplied by √width over their mean norm. As that library does when it loads them, biases are
divided by the factor, and decoder directions made of norm 1 where sparsity counted their norms: the threshold is one of
activations in the model's own units, and so are codes.
"""

from pathlib import Path
from typing import Any

import torch

from assay.dictionaries._dictionary import Dictionary
from assay.dictionaries.formats._shared import (
    Config,
    Tensors,
    folded_norms,
    made,
    read_json,
    read_safetensors,
)

CONFIG = "hyperparams.json"
WEIGHTS = ("checkpoints/pruned.safetensors", "checkpoints/final.safetensors")


def read(folder: Path) -> Dictionary:
    """The dictionary of a folder. Raises AssayError where it holds none, or one that means something else here."""
    config = Config(folder / CONFIG, read_json(folder / CONFIG))
    if config.flag("use_glu_encoder"):
        raise config.wrong("use_glu_encoder", "not read: such an encoder has gates of its own")
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), folder / WEIGHTS[-1])
    width = config.size("d_model")
    features = config.whole("d_sae") or width * config.size("expansion_factor")
    tensors = Tensors(path, read_safetensors(path), CONFIG)
    parts: dict[str, Any] = {
        "W_enc": tensors.take("encoder.weight", features, width).T,
        "b_enc": tensors.take("encoder.bias", features),
        "W_dec": tensors.take("decoder.weight", width, features).T,
    }
    parts |= {name: tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for name, tensor in parts.items()}
    biased = config.flag("use_decoder_bias") is not False
    parts["b_dec"] = tensors.take("decoder.bias", width) if biased else parts["W_dec"].new_zeros(width)
    tensors.finish()
    before, after = _factors(config, width)
    parts["b_enc"], parts["b_dec"] = parts["b_enc"] / before, parts["b_dec"].to(parts["W_dec"].dtype) / after
    parts["W_dec"] = parts["W_dec"] * (before / after)
    if config.flag("sparsity_include_decoder_norm") is not False:
        names = ("W_enc", "b_enc", "W_dec")
        parts |= zip(names, folded_norms(*(parts[name] for name in names)), strict=True)
    _activation(config, features, parts)
    pre_bias = config.flag("apply_decoder_bias_to_pre_encoder")
    if pre_bias is None:
        raise config.needed("apply_decoder_bias_to_pre_encoder")
    hook, hook_out = config.text("hook_point_in"), config.text("hook_point_out")
    origin = {
        "format": "llama-scope",
        "architecture": parts["kind"],
        "trained_as": config.text("act_fn"),
        "hook": hook,
        "hook_out": None if hook_out == hook else hook_out,
        "scale": before if before != 1 else None,
    }
    return made(folder, origin, pre_bias=pre_bias and biased, transcodes=hook_out not in (None, hook), **parts)


def _factors(config: Config, width: int) -> tuple[float, float]:
    """By how much vectors were multiplied in training: those encoded, and those decoded."""
    way = config.text("norm_activation")
    if way in ("none", "inference"):
        return 1.0, 1.0
    if way != "dataset-wise":
        raise config.wrong("norm_activation", "not read; dataset-wise, inference and none are")
    norms = config.inner("dataset_average_activation_norm")
    found = []
    for key in ("in", "out"):
        norm = norms.number(key)
        if norm is None:
            raise norms.needed(key)
        if not 1e-30 < norm < 1e30:
            raise norms.wrong(key, "no mean norm of vectors")
        found.append(width**0.5 / norm)
    return found[0], found[1]


def _activation(config: Config, features: int, parts: dict[str, Any]) -> None:
    """Kind and threshold, or number of features, into the parts of a dictionary."""
    function, threshold = config.text("act_fn"), config.number("jump_relu_threshold") or 0.0
    if function == "jumprelu" or (function == "topk" and threshold > 0):
        parts |= {"kind": "jumprelu", "threshold": torch.full((features,), threshold)}
    elif function == "topk":
        parts |= {"kind": "topk", "k": config.size("top_k")}
    elif function == "relu":
        parts["kind"] = "relu"
    else:
        raise config.wrong("act_fn", "not read; jumprelu, topk and relu are")
