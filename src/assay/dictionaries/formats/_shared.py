"""What all readers of files share: refusals, values of a configuration, tensors by name and shape. No code is run."""

import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from assay._errors import AssayError, shown
from assay._files import check_growth, read_arrays, read_bytes
from assay.dictionaries._cross_layer import CrossLayerTranscoder
from assay.dictionaries._dictionary import Dictionary

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types of numbers that weights are stored in."""

CONVERT = (
    "Only tensors by name are read: where it was made, give its tensors to assay.dictionaries.Dictionary, and save() "
    "that."
)
"""How to bring what only its own code can read."""

_SHOWN = 80
"""Letters of a value, or of another package's message, that a refusal repeats."""


def refusal(path: Path, why: str) -> AssayError:
    """A file that is not read, and why: one line."""
    return AssayError(f"{str(path)!r} {' '.join(why.split())}")


def short(value: object) -> str:
    """A value as a message shows it."""
    if isinstance(value, dict | list) and len(value) > 10:
        return f"a {type(value).__name__} of {len(value)}"
    return shown(value, _SHOWN)


def listed(names: list[str], most: int = 8) -> str:
    """The first of some names."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file. Raises AssayError for anything else."""
    try:
        found = json.loads(read_bytes(path))
    except OSError as error:
        raise refusal(path, f"cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise refusal(path, f"is no JSON ({type(error).__name__}); copy it again from where it came.") from None
    return _object(path, found)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping of a YAML file, of plain values only. Raises AssayError for anything else."""
    try:
        found = yaml.safe_load(read_bytes(path))
    except OSError as error:
        raise refusal(path, f"cannot be read ({error.strerror}).") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise refusal(
            path, f"is no YAML of plain values ({type(error).__name__}); copy it again from where it came."
        ) from None
    return _object(path, found)


def _object(path: Path, found: object) -> dict[str, Any]:
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise refusal(path, f"holds a {type(found).__name__}, not an object of values by name.")
    return found


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of safetensors. Raises AssayError for a damaged one."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise refusal(path, "is missing.") from None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise refusal(
            path, f"is no file of safetensors, or a damaged one ({_said(error)}); copy it again from where it came."
        ) from None


def read_torch(path: Path) -> dict[str, Tensor]:
    """The tensors that torch saved by name. Raises AssayError for anything else, all that would run code included."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check_growth(path)
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise refusal(path, "is missing.") from None
    except (AssayError, MemoryError):
        raise
    except Exception as error:  # a damaged or hostile archive may raise anything
        raise refusal(
            path,
            f"is not read ({type(error).__name__}): it is damaged, or would run code of its own. {CONVERT}",
        ) from None
    size = path.stat().st_size
    held = _object(path, found)
    for name, value in held.items():
        plain = type(value) in (Tensor, torch.nn.Parameter) and value.layout == torch.strided
        if not plain or value.device.type != "cpu":
            raise refusal(
                path,
                f"holds {short(name)}, a {type(value).__name__}; only tensors by name are read: save a state_dict.",
            )
        # A tensor may be declared larger than what it lies in, by repeating it: no weights are.
        if value.numel() * value.element_size() > size:
            raise refusal(path, f"holds {short(name)} of shape {sizes(value)}, which is more than the file is.")
    return {name: value.detach() for name, value in held.items()}


def read_npz(path: Path) -> dict[str, Tensor]:
    """The arrays of a numpy archive. Raises AssayError for anything else, pickled objects included."""
    try:
        return {name: torch.from_numpy(array) for name, array in read_arrays(path).items()}
    except FileNotFoundError:
        raise refusal(path, "is missing.") from None
    except (AssayError, MemoryError):
        raise
    except Exception as error:  # a damaged or hostile archive may raise anything
        raise refusal(
            path,
            f"is no numpy archive of plain arrays, or a damaged one ({_said(error)}); copy it again from where it "
            "came.",
        ) from None


def _said(error: Exception) -> str:
    what = " ".join(str(error).split())
    return f"{type(error).__name__}: {what[:_SHOWN]}" if what else type(error).__name__


class Config:
    """A configuration of a file: values by key, each of the type that it has to have, or None where there is none."""

    def __init__(self, path: Path, held: Mapping[str, Any], within: str = "") -> None:
        self.path, self.held, self._within = path, held, within

    def __contains__(self, key: str) -> bool:
        return self.held.get(key) is not None

    def whole(self, key: str, least: int = 1) -> int | None:
        """A whole number."""
        value = self.held.get(key)
        if value is not None and (type(value) is not int or value < least):
            raise self.wrong(key, f"no whole number of at least {least}")
        return value

    def size(self, key: str) -> int:
        """A whole number that has to be there."""
        value = self.whole(key)
        if value is None:
            raise self.needed(key)
        return value

    def number(self, key: str) -> float | None:
        """A finite number."""
        value = self.held.get(key)
        if value is None:
            return None
        if type(value) not in (int, float) or not -1e300 < value < 1e300:
            raise self.wrong(key, "no finite number")
        return float(value)

    def text(self, key: str) -> str | None:
        """A text."""
        value = self.held.get(key)
        if value is not None and type(value) is not str:
            raise self.wrong(key, "no text")
        return value

    def flag(self, key: str) -> bool | None:
        """True or false."""
        value = self.held.get(key)
        if value is not None and type(value) is not bool:
            raise self.wrong(key, "neither true nor false")
        return value

    def inner(self, key: str) -> "Config":
        """An object inside; an empty one where there is none."""
        value = self.held.get(key)
        if value is None:
            value = {}
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            raise self.wrong(key, "no object of values by name")
        return Config(self.path, value, f"{self._within}{key}.")

    def needed(self, key: str) -> AssayError:
        """The error for a value that is missing."""
        return refusal(self.path, f"has no {self._within}{key}; copy it again from where it came.")

    def wrong(self, key: str, why: str) -> AssayError:
        """The error for a value that cannot be."""
        return refusal(self.path, f"has {self._within}{key}: {short(self.held.get(key))}, which is {why}.")


class Tensors:
    """Tensors of a file by name; each is taken once, with the shape that it has to have."""

    def __init__(self, path: Path, held: Mapping[str, Tensor], known: str) -> None:
        self.path, self._held, self._known = path, dict(held), known

    def __contains__(self, name: str) -> bool:
        return name in self._held

    @property
    def names(self) -> set[str]:
        """Names of those that were not taken yet."""
        return set(self._held)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor that is not taken yet. Raises AssayError if there is none of that name."""
        return tuple(self._get(name).shape)

    def take(self, name: str, *shape: int | None) -> Tensor:
        """A tensor of real numbers. Raises AssayError if there is none of that name and shape (None: any size)."""
        tensor = self._get(name)
        del self._held[name]
        if tensor.dtype not in FLOATS:
            raise refusal(self.path, f"holds {name} as {dtype_of(tensor)}; weights are real numbers.")
        fits = len(shape) == tensor.dim() and all(
            given is None or given == own for given, own in zip(shape, tensor.shape, strict=True)
        )
        if not fits:
            wanted = " x ".join("any" if size is None else str(size) for size in shape) or "a single number"
            raise refusal(
                self.path, f"holds {name} of shape {sizes(tensor)}, and by {self._known} it is {wanted}; they disagree."
            )
        return tensor

    def whole(self, name: str) -> int:
        """A tensor of one whole number of at least 1."""
        tensor = self._get(name)
        del self._held[name]
        if tensor.numel() != 1 or tensor.is_floating_point() or tensor.is_complex() or int(tensor) < 1:
            raise refusal(self.path, f"holds {name} that is no whole number of at least 1.")
        return int(tensor)

    def drop(self, name: str) -> Tensor:
        """A tensor as it is, whatever it is."""
        tensor = self._get(name)
        del self._held[name]
        return tensor

    def finish(self) -> None:
        """Raise AssayError if a tensor was not taken: what is not understood is not ignored."""
        if self._held:
            unknown = listed([short(name) for name in sorted(self._held)])
            raise refusal(
                self.path,
                f"holds tensors that this reader does not know: {unknown}; they might change what the dictionary does.",
            )

    def _get(self, name: str) -> Tensor:
        if name not in self._held:
            raise refusal(
                self.path,
                f"has no tensor {name}; it holds {listed([short(key) for key in sorted(self._held)]) or 'none'}.",
            )
        return self._held[name]


def sizes(tensor: Tensor) -> str:
    """The shape of a tensor as a message shows it."""
    return " x ".join(map(str, tensor.shape)) or "a single number"


def dtype_of(tensor: Tensor) -> str:
    """The type of a tensor's numbers by its usual name."""
    return str(tensor.dtype).removeprefix("torch.")


def made(path: Path, origin: Mapping[str, Any], **parts: Any) -> Dictionary:
    """A dictionary of what was read, in one dtype, at least float32. Raises AssayError unless it is one."""
    dtype = torch.promote_types(parts["W_enc"].dtype, torch.float32)
    parts = {
        name: value.to(dtype).contiguous() if isinstance(value, Tensor) else value for name, value in parts.items()
    }
    try:
        return Dictionary(**parts, origin=_known(origin))
    except AssayError as error:
        raise refusal(path, f"holds no dictionary: {error}") from None


def cross_layer_made(path: Path, origin: Mapping[str, Any], parts: Mapping[str, list[Tensor]]) -> CrossLayerTranscoder:
    """A cross-layer transcoder of what was read, as `made` makes dictionaries; no thresholds are none at all."""
    dtype = torch.promote_types(parts["W_enc"][0].dtype, torch.float32)
    cast = {name: [tensor.to(dtype).contiguous() for tensor in held] for name, held in parts.items() if held}
    try:
        return CrossLayerTranscoder(**cast, origin=_known(origin))
    except AssayError as error:
        raise refusal(path, f"holds no cross-layer transcoder: {error}") from None


def _known(origin: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in origin.items() if value is not None}


def folded_norms(W_enc: Tensor, b_enc: Tensor, W_dec: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same dictionary with decoder directions of norm 1: codes are multiplied by the norms, what is decoded stays.

    W_enc is (width, feature), W_dec (feature, out). A direction of norm 0 stays 0.
    """
    norms = W_dec.to(torch.promote_types(W_dec.dtype, torch.float32)).norm(dim=1).clamp_min(1e-8)
    return W_enc * norms, b_enc * norms, W_dec / norms[:, None]


def folded_scale(path: Path, scale: float, parts: dict[str, Any]) -> None:
    """Put the factor by which vectors were multiplied in training into the weights, so that they need none.

    Biases before the activation and thresholds stay, for codes do.
    """
    if not (isinstance(scale, int | float) and not isinstance(scale, bool) and math.isfinite(scale) and scale > 0):
        raise AssayError(f"scale={short(scale)}: the factor that vectors were multiplied by is a number above 0.")
    try:
        parts["W_enc"] = parts["W_enc"] * scale
        parts["W_dec"], parts["b_dec"] = parts["W_dec"] / scale, parts["b_dec"] / scale
    except (OverflowError, RuntimeError):
        raise refusal(path, f"cannot be rescaled by {short(scale)}.") from None
