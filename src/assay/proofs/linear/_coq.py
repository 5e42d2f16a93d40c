"""The accuracy of a linear model as a theorem for the proof assistant Coq (Rocq): weights, model, proof, nothing else.

The model is written down in integers; linearity of the logits, the correctness of the check and the enumeration of the
inputs are proved in the file, and only the count is computed, by Coq's virtual machine.
"""

import re
from importlib.resources import files

import numpy as np

from assay._errors import AssayError
from assay._given import checked
from assay.proofs._certificate import Certificate
from assay.proofs._exact import ExactMatrix
from assay.subjects import LinearMaxForCausalLM, Subject

_LARGEST = 2**21


@checked
def coq_development(subject: Subject, certificate: Certificate) -> str:
    """A self-contained Coq file whose theorem states how many inputs a linear subject answers correctly.

    `certificate` gives the number; Coq counts again, and refuses the file if it finds another. `coqc` 8.16 or later
    checks it with the standard library only. Raises AssayError for another architecture, for a certificate that is not
    of the exact accuracy over all inputs of this subject, and where Coq would have to compare more than 2^21 logits.
    """
    if not isinstance(subject.model, LinearMaxForCausalLM):
        raise AssayError(f"a Coq development is written for linear models only; {subject.name!r} is none.")
    inputs = certificate.inputs
    whole = inputs.size == inputs.vocabulary**inputs.length
    if certificate.quantity != "accuracy" or certificate.at_least != certificate.at_most or not whole:
        raise AssayError(
            "a Coq development states the exact accuracy over all inputs; use strategy 'gemm' without sets."
        )
    if certificate.subject.weights_sha256 != subject.weights_sha256:
        raise AssayError(f"the certificate is about other weights than those of {subject.name!r}.")
    if inputs.size * inputs.vocabulary > _LARGEST:
        raise AssayError(
            f"Coq would have to compare {inputs.size} × {inputs.vocabulary} logits, which takes too long; at most 2^21 "
            "(64 tokens in pairs make 2^18)."
        )
    state = {key: tensor.detach().cpu().numpy() for key, tensor in subject.model.state_dict().items()}
    E, W, U = (ExactMatrix.of(state[f"{name}.weight"]) for name in ("embed_tokens", "linear", "lm_head"))
    values = {
        # A name must not end the comment it stands in.
        "statement": re.sub(r'["*@]', "_", certificate.statement),
        "sha": certificate.subject.weights_sha256,
        "e": str(E.exponent),
        "w": str(W.exponent),
        "u": str(U.exponent),
        "E": _written(E),
        "W": _written(W),
        "U": _written(U),
        "n": str(inputs.length),
        "N": str(certificate.at_least),
    }
    text = files("assay.proofs.linear").joinpath("accuracy.v").read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text


def _written(matrix: ExactMatrix) -> str:
    """A matrix of integers in Coq's notation."""
    entries = np.array([f"({x})" if x < 0 else str(x) for x in matrix.integers()], dtype=object).reshape(matrix.shape)
    return "[" + ";\n  ".join("[" + "; ".join(row) + "]" for row in entries) + "]"
