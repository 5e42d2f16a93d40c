"""How text that is not ours is shown: names of splits, files and subjects may hold anything, and command nothing.

All of Assay that writes to a terminal does it through this module: a string is never markup, and what is no plain
character is shown as Python writes it (`\\x1b` for the escape that terminals obey).
"""

import unicodedata
from typing import Any

from rich.console import Console
from rich.style import Style
from rich.text import Text


def visible(text: str, *, keep: str = "") -> str:
    """The text with every character escaped that is not shown as itself, such as ESC, BEL or a reversal of direction.

    Spaces stay, as do the characters of `keep`.
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in keep or unicodedata.category(letter) == "Zs" else _code(letter)
        for letter in text
    )


def _code(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def styled(*parts: str | tuple[str, str]) -> Text:
    """A line from its parts, each a text or a text with its style; breaks of lines within a part are shown, too."""
    return Text.assemble(*(visible(part) if isinstance(part, str) else (visible(part[0]), part[1]) for part in parts))


class Terminal(Console):
    """A console that takes strings as they are: no markup, no emoji codes, no codes of the terminal."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, *, style: str | Style = "", **options: Any) -> Text:
        """A string to be printed, or in a table: lines stay lines, all else is made visible."""
        return super().render_str(visible(text, keep="\n"), style=style, **options)
