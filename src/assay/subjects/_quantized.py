"""Quantized weights: what reads them, whether they were read as such, and what is computed in."""

import copy
import importlib.util
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import AutoHfQuantizer

from assay._errors import AssayError

_PACKAGES: Mapping[str, tuple[str, str]] = {
    "aqlm": ("aqlm", "aqlm[gpu,cpu]"),
    "auto-round": ("auto_round", "auto-round"),
    "awq": ("gptqmodel", "gptqmodel"),
    "bitnet": ("accelerate", "accelerate"),
    "bitsandbytes": ("bitsandbytes", "bitsandbytes"),
    "compressed-tensors": ("compressed_tensors", "compressed-tensors"),
    "eetq": ("kernels", "kernels"),
    "fbgemm_fp8": ("fbgemm_gpu", "fbgemm-gpu-genai"),
    "fp8": ("kernels", "kernels"),
    "fp_quant": ("fp_quant", "fp_quant"),
    "gptq": ("gptqmodel", "gptqmodel"),
    "higgs": ("flute", "flute-kernel"),
    "hqq": ("hqq", "hqq"),
    "mxfp4": ("kernels", "kernels"),
    "quanto": ("optimum.quanto", "optimum-quanto"),
    "quark": ("quark", "amd-quark"),
    "sinq": ("sinq", "sinq"),
    "spqr": ("spqr_quant", "spqr_quant[gpu]"),
    "torchao": ("torchao", "torchao"),
    "vptq": ("vptq", "vptq"),
}
"""What a method of quantization needs: the module that is imported, and what pip installs it by."""

_LINEAR = (nn.Linear, Conv1D)


def quantization(config: PreTrainedConfig) -> dict[str, Any]:
    """What a configuration says of its weights' quantization; empty where they are not quantized."""
    said = getattr(config, "quantization_config", None)
    said = said or getattr(config.get_text_config(decoder=True), "quantization_config", None) or {}
    return dict(said) if isinstance(said, Mapping) else said.to_dict()


def check_quantization(said: Mapping[str, Any], name: str) -> None:
    """Raise AssayError for quantized weights that transformers would read as if they were not, or has no package for.

    Raises ValueError, as transformers does, where the configuration does not say how they are quantized.
    """
    if not said:
        return
    known = AutoHfQuantizer.supports_quant_method(dict(said))
    method = str(said.get("quant_method", "bitsandbytes"))
    if not known or method not in _PACKAGES:
        raise AssayError(
            f"the weights of {name!r} are quantized by {method!r}, which {'is not read' if known else 'is not known'} "
            f"(read are {', '.join(_PACKAGES)}); save the model dequantized."
        )
    module, package = _PACKAGES[method]
    lacking = [pip for part, pip in ((module, package), ("accelerate", "accelerate")) if not _has(part)]
    if lacking:
        raise AssayError(
            f"the weights of {name!r} are quantized by {method}, and a package to read them is missing: pip install "
            f"{' '.join(repr(pip) if '[' in pip else pip for pip in lacking)}. Or save the model dequantized "
            "(model.dequantize())."
        )


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


def without_scales(said: Mapping[str, Any], model: PreTrainedModel, missing: set[str]) -> set[str]:
    """What else is missing than quanto's scales of activations, where it does not round these; they become 1."""
    if said.get("quant_method") != "quanto" or said.get("activations"):
        return missing
    scales = {key for key in missing if key.endswith((".input_scale", ".output_scale"))}
    for key in scales:
        model.get_buffer(key).fill_(1)
    return missing - scales


def keep_as_stored(model: nn.Module) -> None:
    """Let 4-bit layers of bitsandbytes keep their weights as they were stored, in place.

    On some CPUs they would pack them anew for products in bfloat16 at their first use, and garble them when they are
    asked for their tensors (`state_dict`, `save_pretrained`) after it. Raises AssayError where they have done so.
    """
    for name, module in model.named_modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
            if getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False):
                raise AssayError(
                    f"the 4-bit weights of {name} were packed anew when they were used, and cannot be read any more; "
                    "make the subject before the model's first use, or load it by assay.load."
                )


def describe_quantized(said: Mapping[str, Any], model: PreTrainedModel, name: str) -> dict[str, Any]:
    """What was quantized, for the record: the method, how many linear layers of how many, what is computed in.

    Raises AssayError where no layer was: then the whole model would pass for a quantized one.
    """
    # which says at every product of every layer that inputs are rounded; the record says it once
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    layers = _linear_layers(model)
    quantized = [key for key, module in layers.items() if _is_quantized(module)]
    method = str(said.get("quant_method", "bitsandbytes"))
    if not quantized:
        raise AssayError(
            f"{name!r} says that it is quantized by {method}, but none of its {len(layers)} linear layers is after "
            "loading; take quantization_config out of its config.json if its weights are not, or save it dequantized."
        )
    return {
        "method": method,
        "layers": len(quantized),
        "of_layers": len(layers),
        "computed_in": _computed_in(said, layers[quantized[0]], model.dtype),
    }


def _linear_layers(model: PreTrainedModel) -> dict[str, Any]:
    """The modules in the places where the same model without quantization has linear layers."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        plain = type(model)(config)
    return {key: model.get_submodule(key) for key, module in plain.named_modules() if isinstance(module, _LINEAR)}


def _is_quantized(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return (
        type(module) not in _LINEAR
        or type(weight) is not nn.Parameter
        or not weight.is_floating_point()
        or getattr(module, "quantization_scheme", None) is not None
    )


def _computed_in(said: Mapping[str, Any], layer: Any, dtype: torch.dtype) -> str:
    """In which numbers a layer multiplies, as far as its settings tell."""
    own = str(dtype).removeprefix("torch.")
    if said.get("load_in_8bit"):
        return "int8: the inputs of every layer are rounded, too"
    if said.get("load_in_4bit"):
        return str(said.get("bnb_4bit_compute_dtype", own)).removeprefix("torch.")
    scheme = getattr(layer, "quantization_scheme", None)
    rounds = (
        said.get("activations")
        or getattr(scheme, "input_activations", None) is not None
        or "DynamicActivation" in str(said.get("quant_type"))
    )
    return f"{own}, from inputs that are rounded, too" if rounds else own
