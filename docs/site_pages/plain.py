"""Docstrings are plain text: paragraphs, lists, tables and indented formulas, with names in backticks."""

import inspect
import re
from collections.abc import Iterator

_ITEM = re.compile(r"(?:-|\d+\.) ")
_ROW = re.compile(r"\|.*\|\s*$")
_DIFFERENCES = re.compile(r"Differences?(?: to [^:.]+)?: ")
_RAISES = re.compile(r"(?:^|(?<=[.)] ))(?:`\w+` )?[Rr]aises AssayError")


def blocks(text: str) -> Iterator[tuple[str, list[str]]]:
    """The blocks of a docstring: ("text" | "list" | "table" | "formula", its lines)."""
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        lines = block.split("\n")
        if all(line.startswith(" ") for line in lines):
            yield "formula", [line.rstrip() for line in lines]
            continue
        kind, held = "", list[str]()
        for line in lines:
            now = "list" if _ITEM.match(line) else "table" if _ROW.match(line) else None
            if now is None:
                now = "list" if kind == "list" else "text"
            if now != kind and held:
                yield kind, held
                held = []
            kind = now
            held.append(line)
        yield kind, held


def items(lines: list[str]) -> list[str]:
    """The items of a list, each in one line, without their marks."""
    found: list[str] = []
    for line in lines:
        if _ITEM.match(line):
            found.append(_ITEM.sub("", line, count=1))
        else:
            found[-1] += f" {line.strip()}"
    return found


def cells(lines: list[str]) -> list[list[str]]:
    """The rows of a table, its headings first."""
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    return [row for row in rows if not all(set(cell) <= {"-"} for cell in row)]


def inline(text: str) -> str:
    """Text as reStructuredText: what is in backticks is code, and nothing else means anything."""
    parts = re.split(r"`([^`]+)`", text)
    # Code ends where it is followed by a space or a mark; an escaped space stands for nothing.
    return "".join(
        f"\\ ``{part.strip()}``\\ " if number % 2 else re.sub(r"([\\*_|`])", r"\\\1", part)
        for number, part in enumerate(parts)
    )


def restructured(text: str) -> list[str]:
    """A docstring as lines of reStructuredText that say just what it says."""
    found: list[str] = []
    for kind, lines in blocks(text):
        if kind == "formula":
            found += ["::", "", *(f"    {line}" for line in lines)]
        elif kind == "list":
            found += [f"- {inline(item)}" for item in items(lines)]
        elif kind == "table":
            found += [".. list-table::", "   :header-rows: 1", ""]
            for row in cells(lines):
                found += [f"   {'*' if not number else ' '} - {inline(cell)}" for number, cell in enumerate(row)]
        else:
            found.append(inline(" ".join(lines)))
        found.append("")
    return found


def marked(text: str) -> str:
    """A docstring as Markdown."""
    found: list[str] = []
    for kind, lines in blocks(text):
        if kind == "formula":
            found += ["```text", *inspect.cleandoc("\n".join(lines)).split("\n"), "```"]
        elif kind == "list":
            found += [f"- {escaped(item)}" for item in items(lines)]
        elif kind == "table":
            head, *rows = ([escaped(cell) for cell in row] for row in cells(lines))
            found += [row_of(head), row_of(["---"] * len(head)), *map(row_of, rows)]
        else:
            found.append(escaped(" ".join(lines)))
        found.append("")
    return "\n".join(found).strip()


def escaped(text: str) -> str:
    """Text outside of backticks in which nothing is Markdown."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(
        part if number % 2 else re.sub(r"([\\*_<\[\]$])", r"\\\1", part) for number, part in enumerate(parts)
    )


def row_of(values: list[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(value.replace('|', chr(92) + '|') for value in values)} |"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join([row_of(head), row_of(["---"] * len(head)), *map(row_of, rows)])


def summary(text: str | None) -> str:
    """The first paragraph of a docstring, in one line."""
    return " ".join(inspect.cleandoc(text or "").split("\n\n")[0].split())


def differences(text: str) -> str | None:
    """What a docstring says after "Differences:", up to the end of its paragraph or what it raises; None if nothing."""
    for kind, lines in blocks(text):
        if kind == "text" and (match := _DIFFERENCES.search(joined := " ".join(lines))):
            found = _RAISES.split(joined[match.end() :])[0].strip()
            return found[:1].upper() + found[1:]
    return None
