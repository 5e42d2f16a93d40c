"""The command line. One file a group; each command calls one public function.

Exit status: 0 done, 1 the work failed, 2 the call was wrong, 3 a verdict is not what was required, 130 interrupted.
"""

import os
import sys

from assay._errors import AssayError
from assay.cli import _compare, _proofs, _reports, _run, _train
from assay.cli._shared import app, reason, say_error

__all__ = ["app", "main"]

GROUPS = (_run, _train, _compare, _proofs, _reports)
"""Importing a group adds its commands."""


def main() -> None:
    """Run the command line."""
    # OpenMP's threads spin while they wait for each other: beside other busy processes a run takes up to twice as long
    # (benchmarks/busy_machine.py). Its library asks once, when torch is first imported, which is later than here.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        app()
    except AssayError as error:
        say_error(str(error))
        sys.exit(1)
    except Exception as error:
        why = reason(error)
        if why is None:
            raise
        say_error(why)
        sys.exit(1)
