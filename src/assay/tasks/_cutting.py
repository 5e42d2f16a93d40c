"""Cutting source files into functions: outermost functions and methods that have a body."""

import ast
import io
import re
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from pygments.token import Comment, Name

from assay.tasks._lexing import COMMENT, IN_KEYWORD, NUMBER, OPERATOR, STRING, tokens

MIN_LINES = 3
MAX_CHARACTERS = 4_000
"""A function is at least this many lines and at most this many characters long; a longer one is searched inside."""

MAX_BYTES = 400_000

_CONTROL = frozenset(
    ("if", "for", "while", "switch", "catch", "synchronized", "try", "foreach", "elseif", "else", "do", "return")
)
_CONTAINERS = frozenset(("class", "interface", "namespace", "trait", "record", "enum"))
_ACCESS = frozenset(("public", "private", "protected"))
_RUBY_DEF = re.compile(r"^([ \t]*)def\s", re.MULTILINE)


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
    no control statement, class or namespace. Raises UncutError where Python does not parse.
    """
    if language == "python":
        found = _cut_python(text)
    elif language == "ruby":
        found = _cut_ruby(text)
    else:
        found = _cut_braces(text, language)
    return [function for function in found if function.count("\n") + 1 >= MIN_LINES and len(function) <= MAX_CHARACTERS]


def _cut_python(text: str) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UncutError("does not parse") from None
    lines = text.split("\n")
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop(0)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting[:0] = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt | ast.Module)]
        elif node.end_lineno is not None:
            yield "\n".join(lines[node.lineno - 1 : node.end_lineno]).strip()


def _cut_ruby(text: str) -> Iterator[str]:
    end = 0
    for match in _RUBY_DEF.finditer(text):
        if match.start() < end:
            continue
        close = re.compile(rf"^{match[1]}end\b", re.MULTILINE).search(text, match.end())
        if close:
            end = close.end()
            yield text[match.start() + len(match[1]) : end]


def _cut_braces(text: str, language: str) -> Iterator[str]:
    """One pass over the symbols with a stack of open brackets; a block's header stands since the last statement."""
    open_brackets: list[str] = []
    header: list[_Symbol] = []
    function: tuple[int, int] | None = None
    for symbol in _symbols(text, language):
        mark = symbol.text
        at_statement = not open_brackets or open_brackets[-1] == "{"
        if mark == "{":
            if function is None and at_statement and _is_function(header, language):
                function = (header[0].at, len(open_brackets))
        elif mark == "}":
            while open_brackets and open_brackets.pop() != "{":
                pass
            if function is not None and len(open_brackets) <= function[1]:
                whole = text[function[0] : symbol.at + 1]
                if len(whole) <= MAX_CHARACTERS:
                    yield whole
                else:
                    yield from _cut_braces(whole[whole.index("{") + 1 : -1], language)
                function = None
        elif mark in (")", "]") and not at_statement:
            open_brackets.pop()
        if mark in ("(", "[", "{"):
            open_brackets.append(mark)
        if function is None:
            _extend(header, symbol, at_statement, language)


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
    for start, part, value, token in tokens(text, language):
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
