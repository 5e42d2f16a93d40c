"""Where a check begins: the content is whole, the weights are those named, and the family's checker goes on."""

import hashlib
import json
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np

from assay._errors import AssayError
from assay.proofs.checker import _attention, _linear
from assay.proofs.checker._common import BUDGET, Budget, require
from assay.proofs.checker._read import require_shape

_FAMILIES = {"MaxOfKForCausalLM": _attention, "LinearMaxForCausalLM": _linear}
"""For each architecture its checker."""

_MAKING = ("subject.seed", "seconds", "versions")
"""What no family checks."""


def check(
    content: Mapping[str, Any],
    weights: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    *,
    budget: int = BUDGET,
) -> tuple[str, ...]:
    """Check a certificate (as its JSON content) against weights by name; returns the fields that were not checked.

    Raises AssayError with the reason if the certificate is refuted, or if checking it takes more than `budget`
    operations, each about a nanosecond.
    """
    if find_spec("flint") is None:
        raise AssayError("the checker needs python-flint, which is not installed: pip install 'assay-interp[proofs]'.")
    require_shape(content)
    rest = {key: value for key, value in content.items() if key != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    require(hashlib.sha256(text.encode()).hexdigest() == content["digest"], "the content does not match its digest")
    subject, inputs = content["subject"], content["inputs"]
    require(inputs["minimum_maximum"] < inputs["vocabulary"], "a condition of the set of inputs is out of range")
    copies = inputs["copies"] or 1
    require(copies <= inputs["length"], "a condition of the set of inputs is out of range")
    require(subject["architecture"] in _FAMILIES, "the architecture is unknown to the checker")
    family = _FAMILIES[subject["architecture"]]
    sizes = _sizes(weights, family.SHAPES)
    digest = hashlib.sha256()
    for name, array in sorted(weights.items()):
        digest.update(f"{name} torch.{array.dtype} {tuple(array.shape)}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
        require(bool(np.isfinite(array).all()), "a weight is not finite")
    require(digest.hexdigest() == subject["weights_sha256"], "the weights are not those it was made for")
    family.check(content, weights, sizes, config, Budget(budget))
    return (*family.NOT_CHECKED, *_MAKING)


def _sizes(weights: Mapping[str, np.ndarray], shapes: Mapping[str, str]) -> dict[str, int]:
    """The sizes for which letters stand in the shapes of the arrays, of which there must be no others."""
    other = sorted(weights.keys() ^ shapes.keys())
    require(not other, f"the model lacks arrays of its architecture, or has others: {', '.join(map(repr, other))}")
    sizes: dict[str, int] = {}
    for name, letters in shapes.items():
        array = weights[name]
        require(array.dtype.name in ("float32", "float64"), f"{name!r} is not of float32 or float64")
        require(array.ndim == len(letters) and array.size > 0, f"{name!r} is no matrix")
        for letter, size in zip(letters, array.shape, strict=True):
            require(sizes.setdefault(letter, size) == size, f"{name!r} does not fit the other arrays")
    return sizes
