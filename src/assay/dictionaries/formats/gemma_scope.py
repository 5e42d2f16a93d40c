"""Dictionaries in the format of Gemma Scope (`params.npz`) and Gemma Scope 2 (`params.safetensors`, `config.json`).

After what SAELens 6.54.12 and circuit-tracer 0.5.0 read; none of their code is used here. All are JumpReLU ones that
take no bias off before they encode. The first release says nothing in its files of model, hook, or whether what is
decoded is the vector or what an MLP makes of it: only names of folders do, and where these are gone, the caller has to.

Those of embeddings encode what the embedding holds, before the model multiplies it by √width; `scale` says which of the
two they are for here. (SAELens folds that factor into the weights and not into `b_dec`.)
"""

import re
from pathlib import Path
from typing import Any

from assay._errors import AssayError
from assay.dictionaries._dictionary import Dictionary
from assay.dictionaries.formats._shared import (
    Config,
    Tensors,
    folded_scale,
    made,
    read_json,
    read_npz,
    read_safetensors,
    refusal,
    short,
)

CONFIG = "config.json"
WEIGHTS = ("params.npz", "params.safetensors")

_RELEASE = re.compile(r"gemma-scope-\w+-(?:pt|it)-(res|mlp|att|transcoders)\b")
_LAYER = re.compile(r"layer_(\d{1,4})(?!\d)")


def read(path: Path, scale: float | None, transcodes: bool | None) -> Dictionary:
    """The dictionary of a file. Raises AssayError where it holds none, or it cannot be told what it decodes."""
    held = read_npz(path) if path.suffix == ".npz" else read_safetensors(path)
    held = {f"W_{name[2:]}" if name.startswith("w_") else name: tensor for name, tensor in held.items()}
    tensors = Tensors(path, held, "its other tensors")
    config = Config(path.parent / CONFIG, read_json(path.parent / CONFIG) if (path.parent / CONFIG).is_file() else {})
    architecture = config.text("architecture")
    if architecture not in (None, "jump_relu"):
        raise config.wrong("architecture", "not read; jump_relu is")
    if len(tensors.shape("W_dec")) > 2:
        raise refusal(path, "is a layer of a cross-layer transcoder, which says nothing alone; no such file is read.")
    shape = tensors.shape("W_enc")
    width, features = shape if len(shape) == 2 else (None, None)
    parts: dict[str, Any] = {
        "W_enc": tensors.take("W_enc", width, features),
        "b_enc": tensors.take("b_enc", features),
        "threshold": tensors.take("threshold", features),
        "W_dec": tensors.take("W_dec", features, None),
    }
    out = parts["W_dec"].shape[1]
    parts["b_dec"] = tensors.take("b_dec", out)
    if "affine_skip_connection" in tensors:
        parts["W_skip"] = tensors.take("affine_skip_connection", width, out).T
    elif config.flag("affine_connection"):
        raise refusal(path, f"holds no affine_skip_connection, and {CONFIG} says that there is one.")
    tensors.finish()
    origin = _origin(path, config)
    parts["transcodes"] = _transcodes(path, config, transcodes)
    if "embedding" in path.resolve().parent.parts:
        _of_embedding(path, origin, parts, scale)
    elif scale is not None:
        raise AssayError(f"scale={short(scale)}: {str(path)!r} is of no embedding, and needs none; leave scale out.")
    return made(path, origin, kind="jumprelu", **parts)


def _transcodes(path: Path, config: Config, given: bool | None) -> bool:
    """Whether what is decoded is what a module makes of a vector, by all that says so."""
    release = _RELEASE.search(path.resolve().as_posix())
    said = None
    if "hf_hook_point_in" in config:
        said = config.text("hf_hook_point_out") not in (None, config.text("hf_hook_point_in"))
    elif release is not None:
        said = release[1] == "transcoders"
    if given is None and said is None:
        raise refusal(
            path,
            "does not say whether it is an autoencoder or a transcoder, and no folder is named as in the release; say "
            "so: transcodes=False or transcodes=True.",
        )
    return bool(given if said is None else said)


def _of_embedding(path: Path, origin: dict[str, Any], parts: dict[str, Any], scale: float | None) -> None:
    if scale is None:
        width = parts["W_enc"].shape[0]
        raise refusal(
            path,
            f"encodes embeddings, which the model multiplies by √{width} afterwards; say which are given to it: "
            f"scale=1 those of the embedding, scale={width**-0.5:.6g} those of the residual stream.",
        )
    folded_scale(path, scale, parts)
    origin["scale"] = float(scale)


def _origin(path: Path, config: Config) -> dict[str, Any]:
    whole = path.resolve().parent.as_posix()
    release, layer = _RELEASE.search(whole), _LAYER.search(whole)
    return {
        "format": "gemma-scope",
        "architecture": "jump_relu",
        "model": config.text("model_name"),
        "hook": None if release is None else release[1],
        "hf_hook": config.text("hf_hook_point_in"),
        "hook_out": config.text("hf_hook_point_out"),
        "layer": None if layer is None else int(layer[1]),
    }
