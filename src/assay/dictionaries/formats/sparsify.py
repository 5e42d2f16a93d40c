"""Dictionaries in the format of EleutherAI's sparsify (`cfg.json`, `sae.safetensors`, a folder for every hookpoint).

After the code of eai-sparsify 1.3.3; none of it is used here. All are TopK ones, which may transcode and have a skip
connection. Autoencoders take `b_dec` off before they encode, transcoders do not, whatever `normalize_decoder` says. The
name of the folder is the hookpoint: a path of modules of transformers.
"""

from pathlib import Path
from typing import Any

from assay.dictionaries._dictionary import Dictionary
from assay.dictionaries.formats._shared import Config, Tensors, made, read_json, read_safetensors

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"


def read(folder: Path) -> Dictionary:
    """The dictionary of a folder. Raises AssayError where it holds none, or one that means something else here."""
    config = Config(folder / CONFIG, read_json(folder / CONFIG))
    activation = config.text("activation")
    if activation not in (None, "topk"):
        raise config.wrong("activation", "not read; topk is")
    if config.flag("signed"):
        raise config.wrong("signed", "not read: features would be on with negative activations")
    width, k = config.size("d_in"), config.size("k")
    # Nought latents is the library's word for a multiple of the width.
    features = config.whole("num_latents", 0) or width * config.size("expansion_factor")
    tensors = Tensors(folder / WEIGHTS, read_safetensors(folder / WEIGHTS), CONFIG)
    parts: dict[str, Any] = {
        "W_enc": tensors.take("encoder.weight", features, width).T,
        "b_enc": tensors.take("encoder.bias", features),
        "W_dec": tensors.take("W_dec", features, width),
        "b_dec": tensors.take("b_dec", width),
    }
    if config.flag("skip_connection"):
        parts["W_skip"] = tensors.take("W_skip", width, width)
    tensors.finish()
    transcodes = bool(config.flag("transcode"))
    return made(
        folder, _origin(folder, transcodes), kind="topk", k=k, pre_bias=not transcodes, transcodes=transcodes, **parts
    )


def _origin(folder: Path, transcodes: bool) -> dict[str, Any]:
    """What names say, and the settings of the whole run, which lie beside the folders of its hookpoints."""
    whole = folder.resolve().parent / "config.json"
    run = Config(whole, read_json(whole) if whole.is_file() else {})
    hook = folder.resolve().name
    return {
        "format": "sparsify",
        "architecture": "transcoder" if transcodes else "sae",
        "model": run.text("model"),
        "hook": hook,
        "hook_out": hook if transcodes else None,
        "hf_hook": hook,
        "context": run.whole("ctx_len"),
    }
