"""What every character of a function is: the kind of prediction it makes, its part of speech, its bracket depth.

Pygments does the lexing. Its tokens differ between languages in detail (some lump `));` together, some split a string
at every escape), so that only their class is used (comment, string, number, keyword, anything else) and the rest is
read from the characters.
"""

import hashlib
import math
import re
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Int
from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.token import Comment, Keyword, Number, Operator, String, _TokenType

from assay._errors import AssayError, unknown_name

KINDS = ("whitespace", "keyword", "new_word", "repeated_word", "closing_bracket", "other")
PARTS = ("layout", "keyword", "identifier", "string", "comment", "number", "operator", "bracket", "end")
"""What a character is part of: the finer bins under the kinds, in the order of the feature `part`."""

WHITESPACE, KEYWORD, NEW_WORD, REPEATED_WORD, CLOSING_BRACKET, OTHER = range(len(KINDS))
LAYOUT, IN_KEYWORD, IDENTIFIER, STRING, COMMENT, NUMBER, OPERATOR, BRACKET, END = range(len(PARTS))

SECONDS = 10.0
"""Of a processor, that lexing one text may take: many times what the largest files take that people write.

Some lexers look at each place through all that follows it, and what somebody made for it takes them hours.
"""

_WORD = re.compile(r"(?<!\w)[^\W\d]\w*")
_WORD_OR_ESCAPE = re.compile(r"\\.|(?<!\w)[^\W\d]\w*", re.DOTALL)
_SPACE = re.compile(r"\s+")
_KEPT = 16
_LONG_SPACE = re.compile(rf"\s{{{2 * _KEPT + 2},}}")
_BRACKETS = re.compile(r"[()\[\]{}]")
_PYTHON_MARKS = re.compile(
    r"""\#[^\n]*|'''(?:[^\\]|\\.)*?'''|\"\"\"(?:[^\\]|\\.)*?\"\"\"|'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"|[()\[\]{}]""",
    re.DOTALL,
)
_PYTHON_FORMATTED = re.compile(r"\b(?:[ft]r?|r[ft])['\"]", re.IGNORECASE)


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


class SlowError(AssayError):
    """A text takes too long to lex."""


def check_language(name: str) -> None:
    """Raise AssayError for a language that cannot be lexed here."""
    if name not in LANGUAGES:
        raise unknown_name("language", name, LANGUAGES)


@cache
def _lexer(language: str) -> Lexer:
    check_language(language)
    entry = LANGUAGES[language]
    return get_lexer_by_name(entry.lexer, **dict(entry.options))


def language_words(language: str) -> str:
    """A language as people write it: `C++` for `cpp`. Raises AssayError for one that there is none of."""
    return str(_lexer(language).name)


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


def _shortened(text: str) -> tuple[str, list[int], list[int]]:
    """The text with every long run of white space cut short; and where each of its parts begins, in it and in `text`.

    Expressions of Pygments in which one piece of white space may be shared between several parts take time that grows
    with a power of its length, and nothing can interrupt them. A line break stays one.
    """
    parts: list[str] = []
    begins: list[int] = []
    places: list[int] = []
    length = 0

    def keep(part: str, place: int) -> None:
        nonlocal length
        parts.append(part)
        begins.append(length)
        places.append(place)
        length += len(part)

    done = 0
    for run in _LONG_SPACE.finditer(text):
        first, last = run.start() + _KEPT, run.end() - _KEPT
        keep(text[done:first], done)
        keep("\n" if "\n" in text[first:last] else " ", first)
        done = last
    keep(text[done:], done)
    return "".join(parts), begins, places


def tokens(text: str, language: str, *, seconds: float = math.inf) -> Iterator[tuple[int, int, str, _TokenType]]:
    """The tokens of `text` in order: first character, part (of PARTS), text, Pygments' own type.

    The part is one of COMMENT, STRING, NUMBER, IN_KEYWORD and, for everything else, OPERATOR. Raises SlowError where
    they take more than so many seconds of a processor.
    """
    latest = time.thread_time() + seconds
    # Some lexers know a comment only by the end of its line.
    short, begins, places = _shortened(text + "\n")

    def place(at: int) -> int:
        part = bisect_right(begins, at) - 1
        return places[part] + at - begins[part]

    for at, token, value in _lexer(language).get_tokens_unprocessed(short):
        if time.thread_time() > latest:
            raise SlowError(
                f"{len(text)} characters of {language} take more than {seconds:g} seconds to lex; leave them out."
            )
        start = place(at)
        inside = text[start : place(at + len(value))]
        if inside:
            yield start, _part_of(token), inside, token


@dataclass(frozen=True)
class Outline:
    """What the splits need to know of a function; depths are the deepest bracket of the text (0 without brackets)."""

    key: bytes
    depth: int
    depth_in_context: int


def _comments_and_brackets(text: str, language: str) -> Iterator[tuple[int, int]]:
    """First and last character (exclusive) of every comment and of every bracket outside comments and strings.

    Python without formatted strings is read by one expression, twenty times faster than by the lexer and to the same
    result.
    """
    if language == "python" and not _PYTHON_FORMATTED.search(text):
        yield from (match.span() for match in _PYTHON_MARKS.finditer(text) if text[match.start()] not in "'\"")
        return
    for start, part, value, _ in tokens(text, language, seconds=SECONDS):
        if part == COMMENT:
            yield start, start + len(value)
        elif part == OPERATOR:
            yield from ((start + match.start(), start + match.end()) for match in _BRACKETS.finditer(value))


def outline(text: str, language: str, context: int) -> Outline:
    """The key and the depth of a function, in whole and within its first `context` characters.

    The key is a hash of the text without comments, white space and letter case: functions with the same key count as
    one and the same. Brackets in strings and comments are not counted. Raises SlowError where it takes more than
    SECONDS.
    """
    code: list[str] = []
    level = deepest = deepest_in_context = done = 0
    for start, end in _comments_and_brackets(text, language):
        mark = text[start:end]
        if not _BRACKETS.fullmatch(mark):
            code.append(text[done:start])
            done = end
        elif mark in "([{":
            level += 1
            deepest = max(deepest, level)
            if start < context:
                deepest_in_context = max(deepest_in_context, level)
        elif level:
            level -= 1
    bare = _SPACE.sub("", "".join([*code, text[done:]])).casefold()
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
    found = Characters(
        kind=np.full(count, OTHER, dtype=np.int64),
        part=np.full(count, OPERATOR, dtype=np.int64),
        place=np.zeros(count, dtype=np.int64),
        depth=np.zeros(count, dtype=np.int64),
    )
    brackets: list[int] = []
    runs: list[list[int]] = []
    for start, part, value, token in tokens(text, language):
        end = start + len(value)
        if part == OPERATOR:
            brackets += [start + match.start() for match in _BRACKETS.finditer(value)]
        found.part[start:end] = part
        run = OPERATOR if part == IN_KEYWORD else part
        if token in String.Affix or run == NUMBER:
            continue
        if runs and runs[-1][1:] == [start, run]:
            runs[-1][1] = end
        else:
            runs.append([start, end, run])
    _mark_brackets(found, text, brackets)
    _mark_words(found, text, runs)
    for match in _SPACE.finditer(text):
        inside = slice(*match.span())
        found.kind[inside] = WHITESPACE
        found.part[inside] = np.where(np.isin(found.part[inside], (STRING, COMMENT)), found.part[inside], LAYOUT)
    found.part[(found.part == IN_KEYWORD) & (found.kind != KEYWORD)] = OPERATOR
    return found


def _mark_brackets(found: Characters, text: str, brackets: Sequence[int]) -> None:
    """Depth of every character, and the part and kind of brackets, from the positions of those that count."""
    level = counted = 0
    for at in brackets:
        opens = text[at] in "([{"
        found.depth[counted:at] = level
        found.depth[at] = level + opens
        found.part[at] = BRACKET
        if not opens:
            found.kind[at] = CLOSING_BRACKET
        level = level + 1 if opens else max(0, level - 1)
        counted = at + 1
    found.depth[counted:] = level


def _mark_words(found: Characters, text: str, runs: Sequence[Sequence[int]]) -> None:
    """Kind, place and part of words, in runs (first, end, part) of code, of one string or of one comment."""
    seen: set[str] = set()
    for start, end, run in runs:
        for match in (_WORD_OR_ESCAPE if run == STRING else _WORD).finditer(text, start, end):
            first, last = match.span()
            if text[first] == "\\":
                continue
            if found.part[first] == IN_KEYWORD:
                found.kind[first:last] = KEYWORD
            else:
                found.kind[first:last] = REPEATED_WORD if match[0] in seen else NEW_WORD
                seen.add(match[0])
                if run == OPERATOR:
                    found.part[first:last] = IDENTIFIER
            found.place[first] = 1
            found.place[first + 1 : last] = 2
