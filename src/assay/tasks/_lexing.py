"""What every character of a function is: the kind of prediction it makes, its part of speech, its bracket depth.

Pygments does the lexing. Its tokens differ between languages in detail (some lump `));` together, some split a string
at every escape), so that only their class is used (comment, string, number, keyword, anything else) and the rest is
read from the characters.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Int
from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.token import Comment, Keyword, Number, Operator, String, _TokenType

from assay._errors import unknown_name

KINDS = ("whitespace", "keyword", "new_word", "repeated_word", "closing_bracket", "other")
PARTS = ("layout", "keyword", "identifier", "string", "comment", "number", "operator", "bracket", "end")
"""What a character is part of: the finer bins under the kinds, in the order of the feature `part`."""

WHITESPACE, KEYWORD, NEW_WORD, REPEATED_WORD, CLOSING_BRACKET, OTHER = range(len(KINDS))
LAYOUT, IN_KEYWORD, IDENTIFIER, STRING, COMMENT, NUMBER, OPERATOR, BRACKET, END = range(len(PARTS))

_WORD = re.compile(r"(?<!\w)[^\W\d]\w*")
_WORD_OR_ESCAPE = re.compile(r"\\.|(?<!\w)[^\W\d]\w*", re.DOTALL)
_SPACE = re.compile(r"\s+")
_BRACKETS = re.compile(r"[()\[\]{}]")


@dataclass(frozen=True)
class Language:
    """A language that functions can be cut from: its Pygments lexer and the files it is written in."""

    lexer: str
    suffixes: tuple[str, ...]
    options: tuple[tuple[str, Any], ...] = ()


LANGUAGES = {
    "c": Language("c", (".c", ".h")),
    "cpp": Language("cpp", (".cpp", ".cc", ".cxx", ".hpp", ".hh", ".hxx", ".h", ".cu", ".cuh")),
    "go": Language("go", (".go",)),
    "java": Language("java", (".java",)),
    "javascript": Language("javascript", (".js", ".mjs", ".cjs")),
    "php": Language("php", (".php",), (("startinline", True),)),
    "python": Language("python", (".py",)),
    "ruby": Language("ruby", (".rb",)),
}


def check_language(name: str) -> None:
    """Raise AssayError for a language that cannot be lexed here."""
    if name not in LANGUAGES:
        raise unknown_name("language", name, LANGUAGES)


@cache
def _lexer(language: str) -> Lexer:
    check_language(language)
    entry = LANGUAGES[language]
    return get_lexer_by_name(entry.lexer, **dict(entry.options))


@cache
def _part_of(token: _TokenType) -> int:
    if token in Comment and token not in Comment.Preproc and token not in Comment.PreprocFile:
        return COMMENT
    if token in String and token not in String.Symbol:
        return STRING
    if token in Number:
        return NUMBER
    if token in Keyword or token in Operator.Word:
        return IN_KEYWORD
    return OPERATOR


def tokens(text: str, language: str) -> Iterator[tuple[int, int, str, _TokenType]]:
    """The tokens of `text` in order: first character, part (of PARTS), text, Pygments' own type.

    The part is one of COMMENT, STRING, NUMBER, IN_KEYWORD and, for everything else, OPERATOR.
    """
    for start, token, value in _lexer(language).get_tokens_unprocessed(text):
        if value:
            yield start, _part_of(token), value, token


@dataclass(frozen=True)
class Outline:
    """What the splits need to know of a function; depths are the deepest bracket of the text (0 without brackets)."""

    key: bytes
    depth: int
    depth_in_context: int


def outline(text: str, language: str, context: int) -> Outline:
    """The key and the depth of a function, in whole and within its first `context` characters.

    The key is a hash of the text without comments, white space and letter case: functions with the same key count as
    one and the same. Brackets in strings and comments are not counted.
    """
    code: list[str] = []
    level = deepest = deepest_in_context = 0
    for start, part, value, _ in tokens(text, language):
        if part == COMMENT:
            continue
        code.append(value)
        if part == OPERATOR:
            for match in _BRACKETS.finditer(value):
                if match[0] in "([{":
                    level += 1
                    deepest = max(deepest, level)
                    if start + match.start() < context:
                        deepest_in_context = max(deepest_in_context, level)
                elif level:
                    level -= 1
    bare = _SPACE.sub("", "".join(code)).casefold()
    return Outline(hashlib.sha256(bare.encode("utf-8", "surrogatepass")).digest()[:16], deepest, deepest_in_context)


@dataclass(frozen=True)
class Characters:
    """What every character of a text is.

    `kind` indexes KINDS, `part` PARTS. `place` is 0 outside words, 1 at a word's first character and 2 at its later
    ones. `depth` counts the brackets open at the character; a bracket counts itself, so that both brackets of an
    outermost pair have depth 1.
    """

    kind: Int[np.ndarray, " character"]
    part: Int[np.ndarray, " character"]
    place: Int[np.ndarray, " character"]
    depth: Int[np.ndarray, " character"]


def characters(text: str, language: str) -> Characters:
    """Lex a function.

    A word is a run of letters, digits and underscores that does not begin with a digit, wherever it stands (code,
    string or comment; not the letter of an escape such as `\\n`). It is a keyword where the language says so, else a
    repeated word if the same word, in the same case, occurred earlier in the function (keywords apart), else a new
    word. A closing bracket is `)`, `]` or `}` outside strings and comments. White space is white space everywhere.
    """
    count = len(text)
    part = np.full(count, OPERATOR, dtype=np.int64)
    depth = np.zeros(count, dtype=np.int64)
    kind = np.full(count, OTHER, dtype=np.int64)
    place = np.zeros(count, dtype=np.int64)
    runs: list[list[int]] = []
    level = counted = 0
    for start, of_token, value, token in tokens(text, language):
        end = start + len(value)
        if of_token != OPERATOR:
            part[start:end] = of_token
        else:
            for match in _BRACKETS.finditer(value):
                at = start + match.start()
                depth[counted:at] = level
                part[at] = BRACKET
                if match[0] in "([{":
                    level += 1
                    depth[at] = level
                else:
                    kind[at] = CLOSING_BRACKET
                    depth[at] = level
                    level = max(0, level - 1)
                counted = at + 1
        if token in String.Affix:
            continue
        of_run = OPERATOR if of_token == IN_KEYWORD else of_token
        if runs and runs[-1][2] == of_run and runs[-1][1] == start:
            runs[-1][1] = end
        else:
            runs.append([start, end, of_run])
    depth[counted:] = level

    seen: set[str] = set()
    for start, end, of_run in runs:
        if of_run == NUMBER:
            continue
        for match in (_WORD_OR_ESCAPE if of_run == STRING else _WORD).finditer(text, start, end):
            first, last = match.span()
            word = match[0]
            if word[0] == "\\":
                continue
            if part[first] == IN_KEYWORD:
                kind[first:last] = KEYWORD
            else:
                kind[first:last] = REPEATED_WORD if word in seen else NEW_WORD
                seen.add(word)
                if of_run == OPERATOR:
                    part[first:last] = IDENTIFIER
            place[first] = 1
            place[first + 1 : last] = 2
    for match in _SPACE.finditer(text):
        inside = slice(*match.span())
        kind[inside] = WHITESPACE
        part[inside] = np.where(np.isin(part[inside], (STRING, COMMENT)), part[inside], LAYOUT)
    part[(part == IN_KEYWORD) & (kind != KEYWORD)] = OPERATOR
    return Characters(kind, part, place, depth)
