"""The one exception type of Assay, and the words its messages are made of."""

import difflib
from collections.abc import Iterable


class AssayError(Exception):
    """Wrong input or work that cannot be done: the message says what was given, what is allowed, how to fix it."""


def unknown_name(noun: str, given: str, known: Iterable[str]) -> AssayError:
    """An error for a name that does not exist, with the nearest names that do."""
    known = sorted(known)
    near = difflib.get_close_matches(given, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(name) for name in near)}?" if near else f"known: {', '.join(known)}."
    return AssayError(f"unknown {noun} {given!r}; {hint}")
