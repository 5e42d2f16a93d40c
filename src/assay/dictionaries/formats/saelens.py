"""Dictionaries in the format of SAELens (`cfg.json`, `sae_weights.safetensors`), read and written.

After the code of sae-lens 6.54.12, and of versions before 6, whose configurations are flat; none of it is used here.

* Training files hold `topk_threshold` or `log_threshold` instead of `threshold`; BatchTopK and Matryoshka dictionaries
  are JumpReLU ones.
* `rescale_acts_by_decoder_norm` selects by activations times the norms of decoder directions. These are folded into the
  weights: codes are the ones that selection sees, SAELens' own of a training file, and what is decoded is the same.
* `expected_average_only_in` multiplied vectors by a factor that the files do not hold: the caller has to give it, and
  it is folded into the weights, which leaves codes alone.
* `center_writing_weights` of the model that was trained on means that vectors of the residual stream had no mean:
  normalization `centring`. Vectors within heads and MLPs and behind a LayerNorm are the same in both models.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
from torch import Tensor

from assay._errors import AssayError
from assay._files import is_leftover, write_atomically
from assay.dictionaries._dictionary import KINDS, Dictionary
from assay.dictionaries.formats._shared import (
    Config,
    Tensors,
    dtype_of,
    folded_norms,
    folded_scale,
    listed,
    made,
    read_json,
    read_safetensors,
    refusal,
    short,
)

CONFIG, WEIGHTS, RECORD = "cfg.json", "sae_weights.safetensors", "assay.json"
"""The files of a folder: SAELens' own two, and what Assay knows beyond them."""

FORMAT: Literal["assay-dictionary"] = "assay-dictionary"
VERSION: Literal[1] = 1

WRITTEN_AS = "6.54.12"
"""The version of SAELens whose format is written."""


def architecture_of(kind: str, skip: bool, transcodes: bool) -> str:
    """SAELens' word for a dictionary, or one made in the same way where SAELens has no such dictionary."""
    words = [] if kind == "relu" else [kind]
    words += ["skip"] * skip + ["transcoder"] * transcodes
    return "_".join(words) or "standard"


_ARCHITECTURES = {
    architecture_of(kind, skip, transcodes): (kind, skip, transcodes)
    for kind in KINDS
    for skip in (False, True)
    for transcodes in (False, True)
}
_IN_TRAINING = ("batchtopk", "matryoshka_batchtopk")
"""Architectures of training files: JumpReLU dictionaries once trained."""

_OLD_NAMES = {
    "hook_name": "hook_point",
    "hook_head_index": "hook_point_head_index",
    "activation_fn": "activation_fn_str",
}

_UNPROCESSED = ("fold_ln", "center_unembed", "fold_value_biases", "refactor_factored_attn_matrices")
"""How TransformerLens may change weights, besides centring them; false is nothing done."""

_CENTRED_HOOK = re.compile(r"hook_(resid_\w+|attn_out|mlp_out|attn_in|mlp_in|embed|pos_embed|result)$")
"""Hooks whose vectors lose their mean when the weights that write to the residual stream do."""


def read(folder: Path, scale: float | None) -> Dictionary:
    """The dictionary of a folder. Raises AssayError where it holds none, or one that means something else here."""
    config = _Values(folder / CONFIG)
    kind, skip, transcodes = _architecture(config)
    width, features = config.top.size("d_in"), config.top.size("d_sae")
    out = config.top.size("d_out") if transcodes else width
    tensors = Tensors(folder / WEIGHTS, read_safetensors(folder / WEIGHTS), CONFIG)
    parts: dict[str, Any] = {
        "kind": kind,
        "W_enc": tensors.take("W_enc", width, features),
        "b_enc": tensors.take("b_gate" if kind == "gated" else "b_enc", features),
        "W_dec": tensors.take("W_dec", features, out),
        "b_dec": tensors.take("b_dec", out),
        "transcodes": transcodes,
    }
    if kind == "gated":
        parts |= {name: tensors.take(name, features) for name in ("r_mag", "b_mag")}
    if kind == "jumprelu":
        parts["threshold"] = _threshold(tensors, features)
    if kind == "topk":
        parts["k"] = config.k()
    if skip:
        parts["W_skip"] = tensors.take("W_skip", out, width)
    _drop_ones(config, tensors)
    tensors.finish()
    given = config.top.flag("apply_b_dec_to_input")
    parts["pre_bias"] = not transcodes if given is None else given
    if _rescales(config, kind, parts["W_dec"]):
        names = ("W_enc", "b_enc", "W_dec")
        parts |= zip(names, folded_norms(*(parts[name] for name in names)), strict=True)
    origin = _origin(config)
    _normalize(config, parts, origin, scale)
    record = _record(folder)
    return made(folder, origin if record is None else record, **parts)


class _Values:
    """A cfg.json of any version: what of it is about the dictionary, and what about the model."""

    def __init__(self, path: Path) -> None:
        held = read_json(path)
        held = {**{new: held.get(old) for new, old in _OLD_NAMES.items()}, **held}
        self.top = Config(path, held)
        self.model = self.top.inner("metadata") if "metadata" in self.top else self.top

    @property
    def path(self) -> Path:
        return self.top.path

    def k(self) -> int:
        """How many features are on at most."""
        given = self.top.whole("k")
        within = self.top.inner("activation_fn_kwargs").whole("k")
        if given is None and within is None:
            raise self.top.needed("k")
        if None not in (given, within) and given != within:
            raise refusal(self.path, f"has k: {given} and activation_fn_kwargs.k: {within}; they disagree.")
        found = given if within is None else within
        assert found is not None
        return found


def _architecture(config: _Values) -> tuple[str, bool, bool]:
    """Kind, whether there is a skip connection, and whether it transcodes."""
    name = config.top.text("architecture") or "standard"
    function = config.top.text("activation_fn") or "relu"
    if function == "topk" and name in ("standard", "topk"):
        name = "topk"
    elif function != "relu" and not (function == "topk" and name in _IN_TRAINING):
        raise config.top.wrong("activation_fn", f"not read with the architecture {name!r}; relu and topk are")
    if name in _IN_TRAINING:
        return "jumprelu", False, False
    if name not in _ARCHITECTURES:
        raise config.top.wrong("architecture", f"not read; {', '.join((*_ARCHITECTURES, *_IN_TRAINING))} are")
    return _ARCHITECTURES[name]


def _threshold(tensors: Tensors, features: int) -> Tensor:
    """Thresholds of all features, of whichever of the three forms there is."""
    forms = [name for name in ("threshold", "log_threshold", "topk_threshold") if name in tensors]
    if len(forms) > 1:
        raise refusal(tensors.path, f"holds {' and '.join(forms)}; it is not clear which counts.")
    match forms:
        case ["log_threshold"]:
            return tensors.take("log_threshold", features).exp()
        case ["topk_threshold"]:
            return tensors.take("topk_threshold").repeat(features)
    return tensors.take("threshold", features)


def _drop_ones(config: _Values, tensors: Tensors) -> None:
    """Some versions wrote a factor of 1 for every feature, which says nothing. Raises AssayError for another factor."""
    if "scaling_factor" not in tensors and config.top.flag("finetuning_scaling_factor"):
        raise refusal(config.path, "says finetuning_scaling_factor: true, and there is no tensor scaling_factor.")
    if "scaling_factor" in tensors and not bool((tensors.drop("scaling_factor") == 1).all()):
        raise refusal(
            tensors.path,
            "holds a scaling_factor that is not 1: features were rescaled after training. Multiply W_dec by it, take "
            "it out, and set finetuning_scaling_factor: false.",
        )


def _rescales(config: _Values, kind: str, W_dec: Tensor) -> bool:
    """Whether features were selected by their activations times the norms of their decoder directions."""
    given = config.top.flag("rescale_acts_by_decoder_norm")
    in_training = config.top.text("architecture") in _IN_TRAINING
    if in_training and given is None and bool(((W_dec.float().norm(dim=1) - 1).abs() > 1e-3).any()):
        raise refusal(
            config.path,
            "does not say rescale_acts_by_decoder_norm, and decoder directions have other norms than 1; add it as it "
            "was in training.",
        )
    return bool(given) and (kind == "topk" or in_training)


def _normalize(config: _Values, parts: dict[str, Any], origin: dict[str, Any], scale: float | None) -> None:
    """What is done to vectors before they are encoded, into the parts of a dictionary."""
    given = config.top.held.get("normalize_activations")
    if given in (True, "expected_average_only_in"):
        _fold(config, parts, origin, scale)
        given = None
    elif scale is not None:
        raise AssayError(
            f"scale={short(scale)}: {str(config.path)!r} was not trained on vectors that were multiplied by a factor "
            f"(normalize_activations: {short(given)}); leave scale out."
        )
    if given in (None, False, "none"):
        found = None
    elif given in ("constant_norm_rescale", "layer_norm"):
        found = given
    elif given == "covariance_whitening":
        raise config.top.wrong("normalize_activations", "not read; let SAELens fold it: save the SAE after training")
    else:
        raise config.top.wrong(
            "normalize_activations", "unknown; none, expected_average_only_in, constant_norm_rescale, layer_norm are"
        )
    if _centred(config):
        if found == "constant_norm_rescale":
            raise refusal(config.path, "has both center_writing_weights and constant_norm_rescale; one alone is read.")
        if found == "layer_norm" and "W_skip" in parts:
            raise refusal(config.path, "has both center_writing_weights and layer_norm, with a skip connection.")
        found = found or "centring"
    parts["normalization"] = found


def _fold(config: _Values, parts: dict[str, Any], origin: dict[str, Any], scale: float | None) -> None:
    if parts["transcodes"]:
        raise refusal(
            config.path,
            "is a transcoder with expected_average_only_in, and does not say which factor its outputs have; fold both "
            "factors into the weights and set normalize_activations: none.",
        )
    if scale is None:
        raise refusal(
            config.path,
            "was trained on vectors that were multiplied by a factor which its files do not hold "
            "(expected_average_only_in); give it: scale=√width / mean norm of the vectors trained on.",
        )
    folded_scale(config.path, scale, parts)
    origin["scale"] = float(scale)


def _centred(config: _Values) -> bool:
    """Whether vectors had no mean in the model that was trained on. Raises AssayError for what else was done to it."""
    kwargs = config.model.inner("model_from_pretrained_kwargs")
    for key in kwargs.held:
        done = kwargs.flag(key) if key in (*_UNPROCESSED, "center_writing_weights") else True
        if done and key != "center_writing_weights":
            raise refusal(
                kwargs.path,
                f"was trained in a model made with {short(key)}: {short(kwargs.held[key])} "
                "(model_from_pretrained_kwargs), which Assay does not do; take it out of the file if it changes "
                "nothing at this hook.",
            )
    hook = config.model.text("hook_name")
    return bool(kwargs.flag("center_writing_weights")) and (hook is None or bool(_CENTRED_HOOK.search(hook)))


def _origin(config: _Values) -> dict[str, Any]:
    model = config.model
    architecture = config.top.text("architecture") or "standard"
    trained_as = model.text("training_architecture") or architecture
    positions = _wholes(model, "seqpos_slice")
    reshape = config.top.text("reshape_activations")
    hook = model.text("hook_name")
    if reshape is None:
        reshape = "hook_z" if hook is not None and "hook_z" in hook else "none"
    if reshape not in ("none", "hook_z"):
        raise config.top.wrong("reshape_activations", "unknown; none and hook_z are read")
    excluded = model.held.get("exclude_special_tokens")
    if type(excluded) is not bool:
        excluded = _wholes(model, "exclude_special_tokens")
    return {
        "format": "saelens",
        "version": model.text("sae_lens_version"),
        "architecture": architecture,
        "trained_as": None if trained_as == architecture and architecture not in _IN_TRAINING else trained_as,
        "model": model.text("model_name"),
        "hook": hook,
        "hook_out": model.text("hook_name_out"),
        "hf_hook": model.text("hf_hook_name"),
        "head_index": model.whole("hook_head_index", 0),
        "flattened_heads": True if reshape == "hook_z" else None,
        "bos": model.flag("prepend_bos"),
        "context": model.whole("context_size"),
        "positions": positions,
        "excluded_tokens": excluded or None,
        "processed_model": dict(model.inner("model_from_pretrained_kwargs").held) or None,
    }


def _wholes(config: Config, key: str) -> list[int | None] | None:
    """Whole numbers, or None in their place; None for a list that says nothing."""
    value = config.held.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or not all(item is None or type(item) is int for item in value):
        raise config.wrong(key, "no list of whole numbers")
    return value if any(item is not None for item in value) else None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _record(folder: Path) -> dict[str, Any] | None:
    """The origin that Assay saved beside SAELens' files, if it did. Raises AssayError unless it belongs to them."""
    path = folder / RECORD
    if not path.exists():
        return None
    record = Config(path, read_json(path))
    if record.text("format") != FORMAT or record.whole("version") != VERSION:
        raise refusal(
            path,
            f"is no record of a dictionary of version {VERSION}, which this Assay ({version('assay-interp')}) reads; "
            "take it away to read the rest as SAELens does.",
        )
    for name, key in ((CONFIG, "config_sha256"), (WEIGHTS, "weights_sha256")):
        if record.text(key) != _digest((folder / name).read_bytes()):
            raise refusal(
                path, f"belongs to another {name}, which was changed or damaged; take {RECORD} away if that was meant."
            )
    return dict(record.inner("origin").held)


def save(dictionary: Dictionary, folder: Path) -> Path:
    """Write a dictionary to a folder, as `Dictionary.save` says."""
    _check_free(folder)
    tensors = {_saved_as(dictionary, name): tensor for name, tensor in dictionary.tensors.items()}
    # A tensor that shares its memory with another, or lies in another order, is not written.
    weights = safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    )
    try:
        config = json.dumps(_config(dictionary), indent=1, allow_nan=False).encode()
        record = json.dumps(
            {
                "format": FORMAT,
                "version": VERSION,
                "assay": version("assay-interp"),
                "config_sha256": _digest(config),
                "weights_sha256": _digest(weights),
                "origin": dict(dictionary.origin),
            },
            indent=1,
            allow_nan=False,
        ).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise AssayError(
            f"the origin of this dictionary cannot be saved ({error}); it may hold text, finite numbers, True, False, "
            "None, and lists and dicts of them."
        ) from None
    for name, data in ((WEIGHTS, weights), (CONFIG, config), (RECORD, record)):
        write_atomically(folder / name, lambda path, data=data: path.write_bytes(data))  # type: ignore[misc]
    return folder


def _check_free(folder: Path) -> None:
    """Raise AssayError unless a folder is empty, or holds nothing but a saved dictionary."""
    if folder.exists() and not folder.is_dir():
        raise AssayError(f"{str(folder)!r} is a file; give a folder for the dictionary.")
    found = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    other = [name for name in found if name not in (CONFIG, WEIGHTS, RECORD) and not is_leftover(name)]
    if other or (found and RECORD not in found and CONFIG in found):
        raise AssayError(
            f"{str(folder)!r} holds something else than a dictionary that Assay saved ({listed(other or found, 3)}); "
            "give a folder of its own."
        )


def _saved_as(dictionary: Dictionary, name: str) -> str:
    return "b_gate" if dictionary.kind == "gated" and name == "b_enc" else name


def _config(dictionary: Dictionary) -> dict[str, Any]:
    """A dictionary's cfg.json."""
    origin = dictionary.origin
    architecture = architecture_of(dictionary.kind, dictionary.W_skip is not None, dictionary.transcodes)
    centring = dictionary.normalization == "centring"
    metadata = {
        "sae_lens_version": WRITTEN_AS,
        "sae_lens_training_version": None,
        "training_architecture": _of(origin, "trained_as", str) or architecture,
        "model_name": _of(origin, "model", str),
        "hook_name": _of(origin, "hook", str),
        "hook_name_out": _of(origin, "hook_out", str),
        "hf_hook_name": _of(origin, "hf_hook", str),
        "hook_head_index": _of(origin, "head_index", int),
        "prepend_bos": _of(origin, "bos", bool),
        "context_size": _of(origin, "context", int),
        "seqpos_slice": _of(origin, "positions", list),
        "exclude_special_tokens": _of(origin, "excluded_tokens", bool, list),
        "model_from_pretrained_kwargs": {"center_writing_weights": True} if centring else {},
    }
    hook = metadata["hook_name"]
    if centring and isinstance(hook, str) and not _CENTRED_HOOK.search(hook):
        raise AssayError(
            f"a dictionary that is centred cannot be saved for the hook {hook!r}, whose vectors centring does not "
            "change; set its normalization to None."
        )
    found = {
        "architecture": architecture,
        "d_in": dictionary.width,
        "d_sae": dictionary.features,
        "dtype": dtype_of(dictionary.W_enc),
        "device": "cpu",
        "apply_b_dec_to_input": dictionary.pre_bias,
        "normalize_activations": "none" if centring else dictionary.normalization or "none",
        "reshape_activations": "hook_z" if origin.get("flattened_heads") is True else "none",
        "metadata": {key: value for key, value in metadata.items() if value is not None},
    }
    if dictionary.transcodes:
        found["d_out"] = dictionary.out
    if dictionary.k is not None:
        found |= {"k": dictionary.k, "rescale_acts_by_decoder_norm": False}
    return found


def _of(origin: Mapping[str, Any], key: str, *kinds: type) -> Any:
    """What is known under a key, if it is of a type that SAELens has there."""
    value = origin.get(key)
    return value if type(value) in kinds else None
