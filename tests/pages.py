"""The code of a page of documentation, to be run as it stands there."""

import contextlib
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def blocks(page, language="python"):
    """The blocks of a language on a page of docs/, in their order."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def printed_by(page):
    """What every block of Python on a page prints, line by line, in one run; and the names they leave."""
    names: dict[str, object] = {}
    found = []
    for code in blocks(page):
        lines: list[str] = []
        names["print"] = lambda *words, lines=lines: lines.append(" ".join(map(str, words)))
        with contextlib.chdir(ROOT):
            exec(compile(code, page, "exec"), names)
        found.append(lines)
    return found, names
