"""The command line. One file a group; each command calls one public function.

Exit status: 0 done, 1 the work failed, 2 the call was wrong, 3 a verdict is not what was required.
"""

import sys

from rich.markup import escape

from assay._errors import AssayError
from assay.cli import _compare, _proofs, _reports, _run, _train
from assay.cli._shared import app, err

__all__ = ["app", "main"]

GROUPS = (_run, _train, _compare, _proofs, _reports)
"""Importing a group adds its commands."""


def main() -> None:
    """Run the command line."""
    try:
        app()
    except AssayError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(1)
    except OSError as error:
        err.print(
            f"[bold red]error:[/] {escape(str(error))}; what was finished is kept: run again with the same --out.",
            soft_wrap=True,
        )
        sys.exit(1)
    except KeyboardInterrupt:
        err.print("stopped; run the same command with the same --out to go on.")
        sys.exit(1)
