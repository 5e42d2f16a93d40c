"""Assay: test what an explanation of a Transformer is worth.

How faithful is a simplified account of a model, does that hold off the distribution it was fitted on, and what can be
proved? Start with `assay.load`, `assay.compare` and the simplifications (`assay.SVD`, …), or
with `assay.certify`.
"""

from importlib.metadata import version

from assay import tasks
from assay._errors import AssayError
from assay.faithfulness import Comparison, Verdict, Workers, compare
from assay.proofs import Certificate, certify
from assay.simplify import (
    SVD,
    Identity,
    KMeans,
    MeanAblation,
    OneHotAttention,
    RandomPerturbation,
    RandomProjection,
    UniformAttention,
)
from assay.subjects import Subject, load

__version__ = version("assay-interp")

__all__ = [
    "SVD",
    "AssayError",
    "Certificate",
    "Comparison",
    "Identity",
    "KMeans",
    "MeanAblation",
    "OneHotAttention",
    "RandomPerturbation",
    "RandomProjection",
    "Subject",
    "UniformAttention",
    "Verdict",
    "Workers",
    "certify",
    "compare",
    "load",
    "tasks",
]
