"""The one exception type of Assay, and the words its messages are made of."""

import difflib
import reprlib
from collections.abc import Iterable


class AssayError(Exception):
    """Wrong input or work that cannot be done: the message says what was given, what is allowed, how to fix it."""


def is_failure(error: BaseException) -> bool:
    """Whether an error is of work that failed, also in a package in Rust: nobody's wish to stop, no lack of memory."""
    panics = type(error).__name__ == "PanicException"
    return (isinstance(error, Exception) or panics) and not isinstance(error, MemoryError)


_OF_MEMORY = ("allocate memory", "out of memory", "bad_alloc", "failed to map segment", "can't start new thread")
_SILENT = ("without setting an exception", "without exception set")
"""What errors say where there is no memory: those of packages, and of calls of C that could not say why they failed."""


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, in any of the ways in which packages say so."""
    words = _SILENT if isinstance(error, SystemError) else _OF_MEMORY
    said = str(error).lower()
    tells = isinstance(error, RuntimeError | ImportError | OSError | SystemError)
    return isinstance(error, MemoryError) or (tells and any(part in said for part in words))


def in_line(error: BaseException) -> str:
    """What an error says, in one line that is not too long; its name if it is silent."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."


def shown(value: object, most: int) -> str:
    """A value of a file as it can stand in a message: of what holds itself many times over, only the outermost."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**most:
        return "a number of too many digits"  # which Python refuses to write out
    brief = reprlib.Repr()
    brief.maxlevel = 3
    brief.maxdict = brief.maxlist = brief.maxtuple = brief.maxset = brief.maxfrozenset = 10
    brief.maxstring = brief.maxother = most + 10
    try:
        found = " ".join(brief.repr(value).split())
    except (RecursionError, ValueError):
        return f"a {type(value).__name__}"
    return found if len(found) <= most else f"{found[: most - 3]}..."


def unknown_name(noun: str, given: str, known: Iterable[str]) -> AssayError:
    """An error for a name that does not exist, with the nearest names that do."""
    known = sorted(known)
    near = difflib.get_close_matches(given, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(name) for name in near)}?" if near else f"known: {', '.join(known)}."
    return AssayError(f"unknown {noun} {given!r}; {hint}")
