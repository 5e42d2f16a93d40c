"""Cutting source files into functions: outermost functions and methods that have a body."""

import ast
import io
import re
import tokenize
import warnings
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pygments.token import Comment, Name

from assay.tasks import _lexing
from assay.tasks._lexing import COMMENT, IN_KEYWORD, NUMBER, OPERATOR, STRING, SlowError, tokens

MIN_LINES = 3
MAX_CHARACTERS = 4_000
"""A function is at least this many lines and at most this many characters long; a longer one is searched inside."""

MAX_BYTES = 400_000

_CONTROL = frozenset(
    ("if", "for", "while", "switch", "catch", "synchronized", "try", "foreach", "elseif", "else", "do", "return")
)
_CONTAINERS = frozenset(("class", "interface", "namespace", "trait", "record", "enum"))
_ACCESS = frozenset(("public", "private", "protected"))
_DOTTED = re.compile(r"(?<!\w)(?:\w+[\s\\]*\.[\s\\]*){200}")
_RUBY_DEF = re.compile(r"^([ \t]*)def\s", re.MULTILINE)
_RUBY_END = re.compile(r"^([ \t]*)end\b", re.MULTILINE)


@dataclass(frozen=True)
class _Symbol:
    at: int
    text: str
    is_name: bool = False


class UncutError(Exception):
    """A file cannot be cut; the message is the reason, in a word or two."""


def decode(data: bytes, language: str) -> str:
    """The text of a source file, with line ends made `\\n`.

    Raises UncutError for an empty file, a binary file (it holds a NUL), one of more than MAX_BYTES (most such are
    generated) and one that is not UTF-8 (or, for Python, not what its encoding line says).
    """
    if not data.strip():
        raise UncutError("empty")
    if b"\0" in data:
        raise UncutError("binary")
    if len(data) > MAX_BYTES:
        raise UncutError("too large")
    try:
        encoding = tokenize.detect_encoding(io.BytesIO(data).readline)[0] if language == "python" else "utf-8-sig"
        text = data.decode(encoding)
    except (UnicodeDecodeError, SyntaxError, LookupError):
        raise UncutError("undecodable") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def cut(text: str, language: str) -> list[str]:
    """The functions of a source file, each from its first to its last character, later lines with their indent.

    Python is cut by `ast`, Ruby by the indentation of `def` and `end`, the languages with braces by their brackets:
    a block is a function's when what stands before it, since the last statement or block, holds parentheses and is
    no control statement, class or namespace. Raises UncutError where Python does not parse, and for a file that takes
    its lexer more than SECONDS.
    """
    found: Iterable[str]
    if language == "python":
        found = _cut_python(text)
    elif language == "ruby":
        found = _cut_ruby(text)
    else:
        try:
            found = _cut_braces(text, language)
        except SlowError:
            raise UncutError("too slow to lex") from None
    return [function for function in found if function.count("\n") + 1 >= MIN_LINES and len(function) <= MAX_CHARACTERS]


def _cut_python(text: str) -> Iterator[str]:
    # Of the name in `import a.b.c` the parser keeps every beginning: those of the longest file take all memory.
    if _DOTTED.search(text):
        raise UncutError("does not parse")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UncutError("does not parse") from None
    lines = text.split("\n")
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inside = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt | ast.Module)]
            waiting += reversed(inside)
        elif node.end_lineno is not None:
            yield "\n".join(lines[node.lineno - 1 : node.end_lineno]).strip()


def _cut_ruby(text: str) -> Iterator[str]:
    """A function ends at the next `end` with its indent."""
    ends: dict[str, list[int]] = {}
    for match in _RUBY_END.finditer(text):
        ends.setdefault(match[1], []).append(match.end())
    done = 0
    for match in _RUBY_DEF.finditer(text):
        closing = ends.get(match[1], [])
        after = bisect_right(closing, match.end())
        if match.start() >= done and after < len(closing):
            done = closing[after]
            yield text[match.start() + len(match[1]) : done]


def _cut_braces(text: str, language: str) -> list[str]:
    """One pass over the symbols with a stack of open brackets; a block's header stands since the last statement.

    What a function of at most MAX_CHARACTERS holds is part of it; a longer one gives what is inside.
    """
    open_brackets: list[str] = []
    header: list[_Symbol] = []
    begun: list[tuple[int, int]] = []
    found: list[tuple[int, int]] = []
    for symbol in _symbols(text, language):
        mark = symbol.text
        at_statement = not open_brackets or open_brackets[-1] == "{"
        if mark == "{":
            if at_statement and _is_function(header, language):
                begun.append((header[0].at, len(open_brackets)))
        elif mark == "}":
            while open_brackets and open_brackets.pop() != "{":
                pass
            while begun and len(open_brackets) <= begun[-1][1]:
                start, end = begun.pop()[0], symbol.at + 1
                if end - start <= MAX_CHARACTERS:
                    while found and found[-1][0] > start:
                        found.pop()
                    found.append((start, end))
        elif mark in (")", "]") and not at_statement:
            open_brackets.pop()
        if mark in ("(", "[", "{"):
            open_brackets.append(mark)
        _extend(header, symbol, at_statement, language)
    # What stands behind a bracket that is never closed is not known to be a function of its own.
    last = begun[0][0] if begun else len(text)
    return [text[start:end] for start, end in found if start < last]


def _extend(header: list[_Symbol], symbol: _Symbol, at_statement: bool, language: str) -> None:
    """Add a symbol to the header, or empty it where the symbol ends a statement, block or access label."""
    ends = symbol.text in ("{", "}") or (
        at_statement
        and (
            symbol.text == ";"
            or (symbol.text == "," and language == "javascript")
            or (symbol.text == ":" and bool(header) and header[-1].text in _ACCESS)
        )
    )
    if ends:
        header.clear()
    else:
        header.append(symbol)


def _symbols(text: str, language: str) -> Iterator[_Symbol]:
    """What is code: single punctuation marks, whole words; a string or number as one mark."""
    for start, part, value, token in tokens(text, language, seconds=_lexing.SECONDS):
        if part == COMMENT or token in Comment or not value.strip():
            continue
        if part in (STRING, NUMBER):
            yield _Symbol(start, '"')
        elif part == IN_KEYWORD:
            yield _Symbol(start + len(value) - len(value.lstrip()), value.strip())
        elif token in Name:
            yield _Symbol(start, value, is_name=True)
        elif part == OPERATOR:
            for offset, mark in enumerate(value):
                if not mark.isspace():
                    yield _Symbol(start + offset, mark)


def _is_function(header: list[_Symbol], language: str) -> bool:
    words = [symbol.text for symbol in header]
    if "(" not in words:
        return False
    if language == "go":
        return words[0] == "func"
    if language in ("php", "javascript") and "function" in words:
        return not _CONTROL & {words[0]}
    opening = words.index("(")
    before = words[:opening]
    if "operator" in before:
        return True
    if not before or _CONTROL & set(before) or _CONTAINERS & set(words) or "=" in before or language == "php":
        return False
    return header[opening - 1].is_name or words[0] == "@"
