"""Cutting source files into functions: outermost functions and methods that have a body."""

import ast
import io
import re
import tokenize
import warnings
from collections.abc import Iterator

from pygments.token import Comment, Name

from assay.tasks._lexing import COMMENT, IN_KEYWORD, NUMBER, OPERATOR, STRING, tokens

MIN_LINES = 3
MAX_CHARACTERS = 4_000
"""A function is at least this many lines and at most this many characters long; a longer one is searched inside."""

_CONTROL = frozenset(
    "if for while switch catch synchronized try foreach elseif else do return match with unless until".split()
)
_CONTAINERS = frozenset("class interface namespace trait record enum".split())
_ACCESS = frozenset(("public", "private", "protected"))
_RUBY_DEF = re.compile(r"^([ \t]*)def\s", re.MULTILINE)


class UncutError(Exception):
    """A file cannot be cut; the message is the reason, in a word or two."""


def decode(data: bytes, language: str) -> str:
    """The text of a source file, with line ends made `\\n`.

    Raises UncutError for an empty file, a binary file (it holds a NUL) and one that is not UTF-8 (or, for Python,
    not what its encoding line says).
    """
    if not data.strip():
        raise UncutError("empty")
    if b"\0" in data:
        raise UncutError("binary")
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
    return [
        function
        for function in found
        if function.count("\n") + 1 >= MIN_LINES and len(function) <= MAX_CHARACTERS
    ]


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
    """One pass over the tokens with a stack of open brackets; the header is what stands since the last statement."""
    open_at: list[tuple[str, int]] = []
    header: list[tuple[int, str, bool]] = []
    function: tuple[int, int] | None = None
    for at, value, is_name in _symbols(text, language):
        if function is not None and value not in "()[]{}":
            continue
        inside_parentheses = any(bracket != "{" for bracket, _ in open_at)
        if value in ("(", "["):
            open_at.append((value, at))
        elif value in (")", "]"):
            if open_at and open_at[-1][0] != "{":
                open_at.pop()
        elif value == "{":
            if function is None and not inside_parentheses and _is_function(header, language):
                function = (header[0][0], len(open_at))
            open_at.append((value, at))
            header = []
            continue
        elif value == "}":
            while open_at and open_at.pop()[0] != "{":
                pass
            if function is not None and len(open_at) <= function[1]:
                whole = text[function[0] : at + 1]
                if len(whole) <= MAX_CHARACTERS:
                    yield whole
                else:
                    yield from _cut_braces(whole[whole.index("{") + 1 : -1], language)
                function = None
            header = []
            continue
        elif not inside_parentheses and (value == ";" or (value == "," and language == "javascript")):
            header = []
            continue
        if value == ":" and header and header[-1][1] in _ACCESS:
            header = []
        elif function is None:
            header.append((at, value, is_name))


def _symbols(text: str, language: str) -> Iterator[tuple[int, str, bool]]:
    """Position and text of what is code, single punctuation marks and whole words; whether it is a name."""
    for start, part, value, token in tokens(text, language):
        if part == COMMENT or token in Comment or not value.strip():
            continue
        if part in (STRING, NUMBER):
            yield start, '"', False
        elif part == IN_KEYWORD:
            yield start + len(value) - len(value.lstrip()), value.strip(), False
        elif token in Name:
            yield start, value, True
        elif part == OPERATOR:
            for offset, mark in enumerate(value):
                if not mark.isspace():
                    yield start + offset, mark, False


def _is_function(header: list[tuple[int, str, bool]], language: str) -> bool:
    words = [value for _, value, _ in header]
    if "(" not in words:
        return False
    if language == "go":
        return words[0] == "func"
    if language in ("php", "javascript") and "function" in words:
        return not _CONTROL & {words[0]}
    opening = words.index("(")
    before = words[:opening]
    if not before or _CONTROL & set(before) or _CONTAINERS & set(words) or "=" in before or language == "php":
        return False
    return header[opening - 1][2] or words[0] == "@" or "operator" in before
