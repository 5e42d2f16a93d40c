"""How parameters are refused: in one line with what was given and what is allowed."""

from collections.abc import Callable, Iterable

import numpy as np

from assay._errors import AssayError, unknown_name


def is_whole(value: object) -> bool:
    """Whether that is a whole number, of Python or NumPy."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_whole(name: str, value: object, *, least: int = 1) -> None:
    """Raise AssayError unless a parameter is a whole number of at least `least`."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise AssayError(f"{name}={shown(value)}: must be a whole number of at least {least}.")


def check_number(name: str, value: object, allowed: Callable[[float], bool], words: str) -> None:
    """Raise AssayError unless a parameter is a number that is `allowed`, which `words` say; NaN never is."""
    known = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not known or not allowed(float(value)):  # type: ignore[arg-type]
        raise AssayError(f"{name}={shown(value)}: must be {words}.")


def check_flag(name: str, value: object) -> None:
    """Raise AssayError unless a parameter is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise AssayError(f"{name}={shown(value)}: must be True or False.")


def check_choice(noun: str, value: object, known: Iterable[str]) -> None:
    """Raise AssayError unless a parameter is one of some words."""
    if not isinstance(value, str) or value not in known:
        raise unknown_name(noun, value if isinstance(value, str) else shown(value), known)


def shown(value: object) -> str:
    """A value as it can stand in a line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
