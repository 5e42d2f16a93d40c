"""Assay: test what an explanation of a Transformer is worth.

How faithful is a simplified account of a model, does that hold off the distribution it was fitted on, and what can be
proved? Start with `assay.load`, `assay.compare` and the simplifications (`assay.SVD`, …), or
with `assay.certify`.
"""

from importlib import import_module
from importlib.metadata import version

import lazy_loader

from assay._drawing import drawn_by

# What the stub beside this file imports is imported when it is first used: torch and transformers take seconds.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = version("assay-interp")

# Comparisons draw themselves, and yet no room imports upwards: the rooms are put together here, above them all.
drawn_by(lambda: import_module("assay.reports"))
