"""Transcoders in the format of circuit-tracer: a set, one file a layer, or one cross-layer transcoder in many files.

After the code of circuit-tracer 0.5.0 and of its first release; none of it is used here. `config.yaml` says which of
the two it is, and at which hooks they read and write. Encoders are stored (feature, width). Decoders are (feature,
width), and (width, feature) in files of the first release: shapes tell them apart, unless there are as many features as
numbers of a vector. Without thresholds activations are ReLU. Where its graphs are drawn, the library lets no feature be
on at the first position (`positions`).
"""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from assay.dictionaries._cross_layer import CrossLayerTranscoder
from assay.dictionaries._dictionary import Dictionary
from assay.dictionaries.formats._shared import (
    Config,
    Tensors,
    cross_layer_made,
    listed,
    made,
    read_safetensors,
    read_yaml,
    refusal,
)

CONFIG = "config.yaml"
LAYER = re.compile(r"layer_(\d{1,4})\.safetensors")
ENCODER = re.compile(r"W_enc_(\d{1,4})\.safetensors")
THRESHOLD = "activation_function.threshold"

_KINDS = {"transcoder_set": "set of transcoders", "cross_layer_transcoder": "cross-layer transcoder"}


def read(path: Path, transcodes: bool | None) -> Dictionary:
    """The transcoder of one layer. Raises AssayError where a file holds none, or one that means something else here.

    An autoencoder may have tensors of the same names: without a `config.yaml`, the caller says that it transcodes.
    """
    config = _config(path.parent)
    if not config.held and not transcodes:
        raise refusal(
            path,
            f"has no {CONFIG} beside it, which would say that it is one of a set of transcoders; copy it there, or say "
            "so: transcodes=True.",
        )
    kind = config.text("model_kind")
    if kind not in (None, "transcoder_set"):
        raise config.wrong("model_kind", f"no set of transcoders, to which {path.name} would belong")
    layer = _layer(path, config)
    tensors = Tensors(path, read_safetensors(path), "its biases")
    b_enc, b_dec = tensors.take("b_enc", None), tensors.take("b_dec", None)
    features, width = len(b_enc), len(b_dec)
    parts: dict[str, Any] = {
        "W_enc": _by_feature(tensors, "W_enc", features, width).T,
        "b_enc": b_enc,
        "W_dec": _by_feature(tensors, "W_dec", features, width),
        "b_dec": b_dec,
    }
    if THRESHOLD in tensors:
        parts["threshold"] = tensors.take(THRESHOLD, features)
    if "W_skip" in tensors:
        parts["W_skip"] = tensors.take("W_skip", width, width)
    tensors.finish()
    origin = _origin(config) | {"architecture": "transcoder", "layer": layer}
    if layer is not None:
        for key in ("hook", "hook_out"):
            if origin[key] is not None:
                origin[key] = f"blocks.{layer}.{origin[key]}"
    return made(path, origin, kind="jumprelu" if "threshold" in parts else "relu", transcodes=True, **parts)


def read_cross_layer(folder: Path) -> CrossLayerTranscoder:
    """The cross-layer transcoder of a folder. Raises AssayError where it holds none, or a part of one."""
    config = _config(folder)
    kind = config.text("model_kind")
    if kind not in (None, "cross_layer_transcoder"):
        raise config.wrong(
            "model_kind", f"no cross-layer transcoder; Dictionary.read reads a {_KINDS.get(kind, 'set')}"
        )
    found = sorted(int(match[1]) for item in folder.iterdir() if (match := ENCODER.fullmatch(item.name)))
    if not found or found != list(range(len(found))):
        raise refusal(
            folder,
            f"holds encoders of the layers {listed(list(map(str, found))) or 'none'}; a cross-layer transcoder has "
            "W_enc_0.safetensors and one for every layer up to the last.",
        )
    parts: dict[str, list[Tensor]] = {name: [] for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
    for layer in found:
        _read_layer(folder, layer, len(found), parts)
    origin = _origin(config) | {"architecture": "cross_layer_transcoder"}
    return cross_layer_made(folder, origin, parts)


def _read_layer(folder: Path, layer: int, layers: int, parts: dict[str, list[Tensor]]) -> None:
    """The encoder of a layer, and its decoders to that layer and each later one."""
    encoder, decoder = (folder / f"{name}_{layer}.safetensors" for name in ("W_enc", "W_dec"))
    tensors = Tensors(encoder, read_safetensors(encoder), "its biases")
    b_enc, b_dec = tensors.take(f"b_enc_{layer}", None), tensors.take(f"b_dec_{layer}", None)
    features, width = len(b_enc), len(b_dec)
    parts["W_enc"].append(_by_feature(tensors, f"W_enc_{layer}", features, width).T)
    parts["b_enc"].append(b_enc)
    parts["b_dec"].append(b_dec)
    if f"threshold_{layer}" in tensors:
        parts["threshold"].append(tensors.take(f"threshold_{layer}", features))
    tensors.finish()
    tensors = Tensors(decoder, read_safetensors(decoder), encoder.name)
    parts["W_dec"].append(tensors.take(f"W_dec_{layer}", features, layers - layer, width))
    tensors.finish()


def _by_feature(tensors: Tensors, name: str, features: int, width: int) -> Tensor:
    """Weights as (feature, width), whichever of the two ways they lie. Raises AssayError where both would fit."""
    if features == width:
        raise refusal(
            tensors.path,
            f"has as many features as a vector has numbers ({width}); which way {name} lies cannot be told from its "
            "shape.",
        )
    if tensors.shape(name) == (width, features):
        return tensors.take(name, width, features).T
    return tensors.take(name, features, width)


def _config(folder: Path) -> Config:
    path = folder / CONFIG
    config = Config(path, read_yaml(path) if path.is_file() else {})
    kind = config.text("model_kind")
    if kind is not None and kind not in _KINDS:
        raise config.wrong("model_kind", f"unknown; {' and '.join(_KINDS)} are read")
    return config


def _layer(path: Path, config: Config) -> int | None:
    """The layer of a file: by its name, or by its place among those that the set lists."""
    match = LAYER.fullmatch(path.name)
    if match is not None:
        return int(match[1])
    listing = config.held.get("transcoders")
    if isinstance(listing, list):
        for place, item in enumerate(listing):
            if isinstance(item, str) and Path(item.partition("?")[0]).name == path.name:
                return place
    return None


def _origin(config: Config) -> dict[str, Any]:
    return {
        "format": "circuit-tracer",
        "model": config.text("model_name"),
        "hook": config.text("feature_input_hook"),
        "hook_out": config.text("feature_output_hook"),
        "positions": [1, None],
    }
