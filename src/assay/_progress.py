"""How far work is, shown where somebody looks: in a terminal or a notebook, and nowhere else."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TimeRemainingColumn,
)
from rich.text import Text

from assay._terminal import Terminal, styled


class _Description(ProgressColumn):
    """What is being done, which may name subjects and splits."""

    def render(self, task: Task) -> Text:
        """The description as it is."""
        return styled(task.description)


def bar(console: Terminal) -> Progress:
    """A bar in a terminal."""
    columns = (
        SpinnerColumn(),
        _Description(),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    return Progress(*columns, console=console, transient=not console.is_terminal)


@contextmanager
def following(progress: Callable[[Any], None] | bool) -> Iterator[Callable[[Any], None]]:
    """What is told how far work is (`done` of `total`, and in `text` what is next): the function that is given, or with
    True whatever a person sees.

    That is a bar in a terminal, which goes when the work is done, and a line in a notebook, which stays; nothing
    without a person (a pipe, a log), and with False.
    """
    if not isinstance(progress, bool):
        yield progress
        return
    console = Terminal(stderr=True)
    if progress and console.is_jupyter:
        yield _line_of_notebook()
    elif progress and sys.stderr is not None and sys.stderr.isatty():
        with bar(console) as shown:
            shown.live.transient = True
            line = shown.add_task("starting", total=None)
            yield lambda step: shown.update(line, description=step.text, completed=step.done, total=step.total)
    else:
        yield lambda step: None


def _line_of_notebook() -> Callable[[Any], None]:
    """Shows steps as one line, which is written anew: rich's bars need ipywidgets in a notebook."""
    display = importlib.import_module("IPython.display").display
    handle = display({"text/plain": "starting"}, raw=True, display_id=True)
    return lambda step: handle.update({"text/plain": f"{step.done} of {step.total}: {step.text}"}, raw=True)
