"""Assay: test what an explanation of a Transformer is worth."""

from assay import tasks
from assay._errors import AssayError

__version__ = "0.1.0"

__all__ = ["AssayError", "tasks"]
