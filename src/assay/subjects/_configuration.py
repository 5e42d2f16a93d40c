"""What the configuration of a model may ask for, looked at before anything is made of it."""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from assay._errors import AssayError
from assay._files import read_json
from assay.subjects._objective import auto_class
from assay.tasks import Objective

_LARGEST, _MOST_LAYERS = 2**26, 4096
"""A size, and a number of layers, that no model has."""

_TIMES, _SMALL = 64, 2**26
"""How many times the bytes of its files a model may take (from 1 bit to float64), and what it may take in any case."""


def check_configuration(folder: Path, name: str) -> None:
    """Raise AssayError if config.json is no configuration, asks for code of a hub, or for sizes that no model has."""
    path = folder / "config.json"
    if not path.exists():
        return
    found = read_json(path)
    if not isinstance(found, dict):
        raise AssayError(f"{str(path)!r} holds a {type(found).__name__}, not an object; restore it.")
    architectures = found.get("architectures")
    if architectures is not None and not (
        isinstance(architectures, list) and all(isinstance(item, str) for item in architectures)
    ):
        raise AssayError(f"{str(path)!r} has architectures that are no list of names; restore it.")
    for key, value in _settings(found):
        if "attn_implementation" in key or "experts_implementation" in key:
            refuse_kernels(value, name)
        if isinstance(value, int) and (value > _MOST_LAYERS if "layer" in key else _is_size(key) and value > _LARGEST):
            raise AssayError(f"{str(path)!r} says {key}: {value:.3g}, which no model has; restore it.")


def _settings(config: Mapping[str, Any], depth: int = 0) -> Iterator[tuple[str, Any]]:
    """The settings of a configuration, and of those in it."""
    for key, value in config.items():
        yield key, value
        if isinstance(value, dict) and depth < 8:
            yield from _settings(value, depth + 1)


def _is_size(key: str) -> bool:
    return key.startswith(("n_", "num_", "d_", "max_position")) or key.endswith(("_size", "_dim", "_heads"))


def refuse_kernels(implementation: Any, name: str) -> None:
    """Raise AssayError where an attention implementation names code of a hub."""
    named = implementation.values() if isinstance(implementation, dict) else (implementation,)
    for item in named:
        if isinstance(item, str) and "/" in item:
            raise AssayError(
                f"{name!r} asks for attention by {item!r}, code that would be fetched from a hub and run, which Assay "
                "does not; take attn_implementation out of its config.json."
            )


def check_demand(config: PreTrainedConfig, objective: Objective, folder: Path, name: str) -> None:
    """Raise AssayError if a configuration asks for much more memory than the weights beside it have.

    transformers would fill what the files do not hold with random numbers. Raises what it does for a configuration that
    no model can be made of.
    """
    stored = sum(path.stat().st_size for ending in ("safetensors", "bin") for path in folder.glob(f"*.{ending}"))
    with torch.device("meta"):
        model = auto_class(objective, config).from_config(config)
    asked = sum(part.numel() * part.element_size() for part in itertools.chain(model.parameters(), model.buffers()))
    if asked > max(_SMALL, _TIMES * stored):
        raise AssayError(
            f"the configuration of {name!r} asks for {asked:,} bytes, and its files hold {stored:,}; restore the "
            "config.json that belongs to them."
        )
