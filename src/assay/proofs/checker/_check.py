"""Where a check begins: the content is whole, the weights are those named, and the family's checker goes on."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from assay.proofs.checker._attention import check_attention
from assay.proofs.checker._common import require
from assay.proofs.checker._linear import check_linear

_FAMILIES = {
    "MaxOfKForCausalLM": (check_attention, "head_dim"),
    "LinearMaxForCausalLM": (check_linear, "length"),
}
"""For each architecture its checker, and the number of the model's configuration that the weights do not tell."""


def check(content: Mapping[str, Any], weights: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> None:
    """Check a certificate (as its JSON content) against weights by name; silence means that it holds.

    Raises AssayError with the reason if it does not.
    """
    rest = {key: value for key, value in content.items() if key != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    require(hashlib.sha256(text.encode()).hexdigest() == content["digest"], "the content does not match its digest")
    digest = hashlib.sha256()
    for name, array in sorted(weights.items()):
        digest.update(f"{name} torch.{array.dtype} {tuple(array.shape)}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
        require(bool(np.isfinite(array).all()), "a weight is not finite")
    subject, inputs = content["subject"], content["inputs"]
    fitting = 0 <= inputs["minimum_maximum"] < inputs["vocabulary"] and (
        inputs["within"] is None or inputs["within"] >= 0
    )
    fitting &= inputs["copies"] is None or 1 <= inputs["copies"] <= inputs["length"]
    require(fitting, "a condition of the set of inputs is out of range")
    require(digest.hexdigest() == subject["weights_sha256"], "the weights are not those it was made for")
    require(subject["architecture"] in _FAMILIES, "the architecture is unknown to the checker")
    family, setting = _FAMILIES[subject["architecture"]]
    require(setting in config, "the model is of another architecture")
    family(content, weights, config[setting])
