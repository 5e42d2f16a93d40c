"""`python -m assay.testing.fuzz proofs --minutes 60 --seed 1`: a long fuzz, and what it found in a table."""

import argparse
import importlib
import math
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from assay._errors import AssayError, unknown_name
from assay._files import write_atomically
from assay.testing.fuzz._tried import Tried

FUZZES = {
    "proofs": "certificates against the truth, and forged ones against the checker",
    "readers": "changed files against everything that reads one",
    "interface": "wrong arguments against the public functions",
    "faults": "every call of a run that touches its files failing once, and losses of power",
}
"""What can be fuzzed, each a module beside this one."""


class _Progress:
    """Says how far it is: in one line that is written over on a terminal, else once a minute."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._next = self.started

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (1 if self._terminal else 60)
        line = f"{(now - self.started) / 60:.1f} min: {text}"
        print(f"\r\x1b[2K{line}" if self._terminal else line, end="" if self._terminal else "\n", file=sys.stderr)
        sys.stderr.flush()

    def end(self) -> None:
        """Leave the line."""
        if self._terminal:
            print(file=sys.stderr)


def table(rows: Sequence[Tried]) -> str:
    """What was tried in Markdown, and the first wrong case of every kind below it."""
    lines = ["| what | tried | wrong |", "|---|---|---|"]
    lines += [f"| {row.kind} | {row.tried:,} | {row.wrong:,} |" for row in rows]
    firsts = [f"- {row.kind}: `{row.first}`" for row in rows if row.first]
    return "\n".join([*lines, *([""] if firsts else []), *firsts])


def write_section(path: Path, name: str, text: str) -> None:
    """Put `text` under the heading of a fuzz, in place of what a former run left there; the rest of a page is kept."""
    page = path.read_text(encoding="utf-8") if path.exists() else "# Fuzzing\n"
    heading = f"## `{name}`\n"
    before, found, after = page.partition(heading)
    rest = after.partition("\n## ") if found else ("", "", "")
    tail = f"\n## {rest[2]}" if rest[1] else ""
    made = f"{before.rstrip()}\n\n{heading}\n{text.rstrip()}\n{tail}"
    write_atomically(path, lambda file: file.write_text(made, encoding="utf-8"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a fuzz; returns 0 if nothing was wrong, 1 if something was or nothing was tried, 2 for a wrong call."""
    parser = argparse.ArgumentParser(
        prog="python -m assay.testing.fuzz",
        description="Fuzz a part of Assay. " + " ".join(f"{name}: {words}." for name, words in FUZZES.items()),
    )
    parser.add_argument("name", metavar="|".join(FUZZES), help="what to fuzz")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="where to start; the same seed draws the same cases")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table into this page as well")
    call = parser.parse_args(arguments)
    try:
        if call.name not in FUZZES:
            raise unknown_name("fuzz", call.name, FUZZES)
        if not (0 < call.minutes < math.inf) or call.seed < 0:
            raise AssayError(f"--minutes {call.minutes} --seed {call.seed}: minutes above 0, a seed of at least 0.")
        if call.markdown is not None and not call.markdown.parent.is_dir():
            raise AssayError(f"--markdown {str(call.markdown)!r}: there is no such folder to write in.")
    except AssayError as error:
        print(error, file=sys.stderr)
        return 2
    say = _Progress()
    try:
        fuzz = importlib.import_module(f"assay.testing.fuzz.{call.name}")
        rows: list[Tried] = fuzz.run(call.seed, call.minutes, say)
    except KeyboardInterrupt:
        print("interrupted before anything was tried.", file=sys.stderr)
        return 1
    say.end()
    minutes = (time.monotonic() - say.started) / 60
    print(found := table(rows))
    if call.markdown is not None:
        command = f"python -m assay.testing.fuzz {call.name} --minutes {call.minutes:g} --seed {call.seed}"
        made = f"`{command}`, which ran for {minutes:.0f} minutes, with assay {version('assay-interp')}:"
        write_section(call.markdown, call.name, f"{made}\n\n{found}")
    return int(any(row.wrong for row in rows))


if __name__ == "__main__":
    sys.exit(main())
