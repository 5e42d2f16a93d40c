"""What is needed to read a model, wherever it comes from: quiet, and other packages' errors in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging

from assay._errors import is_lack_of_memory


@contextmanager
def quiet(bars: bool = False) -> Iterator[None]:
    """Without transformers' reports of what it loaded, which is checked here; with its progress bars if `bars`.

    These have nothing to say about local files.
    """
    shown, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    if not bars:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shown:
            transformers_logging.enable_progress_bar()


def refuse_lack_of_memory(error: BaseException) -> None:
    """Raise MemoryError if an error says that memory ran out: nothing is known of the file then."""
    if is_lack_of_memory(error):
        raise MemoryError(f"out of memory ({reason(error)})") from None


def reason(error: BaseException) -> str:
    """The first line of what an error says, with the next one where it only leads to that; its name if it is silent."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    first = f"{lines[0]} {lines[1].strip()}" if lines[0].endswith(":") and lines[1:] else lines[0]
    return first if len(first) <= 300 else f"{first[:297]}..."
