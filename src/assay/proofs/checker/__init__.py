"""The independent checker: reads a certificate and weights, and redoes the proof on another path.

It shares no code with what makes certificates. Each model family has a file, which is meant to be read in one sitting,
next to docs/soundness.md. Everything it does not accept, it refuses.
"""

from assay.proofs.checker._check import check
from assay.proofs.checker._common import BUDGET, LONGEST_NAME
from assay.proofs.checker._read import read

__all__ = ["BUDGET", "LONGEST_NAME", "check", "read"]
