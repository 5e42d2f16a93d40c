"""Kinds, parts and depths against functions labelled by hand.

Under every line stand its kinds: w white space, k keyword, n new word, r repeated word, c closing bracket, o other;
the blanks between them are only there to be read.
"""

import argparse
import inspect
import json.decoder
import re
import tokenize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay import AssayError
from assay.tasks import _lexing
from assay.tasks._cutting import cut
from assay.tasks._lexing import KINDS, LANGUAGES, PARTS, characters, outline

LETTERS = dict(zip("wknrco", range(len(KINDS)), strict=True))

LABELLED = {
    "java": r"""
int add(int[] xs) { // so [(
kkk w nnn o kkk oc w nn c w o w oo w nn w oo
  return xs[0] + "xs)\n" + y;
ww kkkkkk w rr o o c w o w o rr o oo o w o w n o
}
c
""",
    "python": r"""
def add(xs, y):  # y (x
kkk w nnn o nn o w n c o ww o w r w o n
    if xs is not None:
wwww kk w rr w kk w kkk w kkkk o
        return f"{add} of" + xs[0]
wwwwwwww kkkkkk w oo o rrr o w nn o w o w rr o o c
""",
    "javascript": r"""
const add = function (a) {
kkkkk w nnn w o w kkkkkkkk w o n c w o
  return /a(b/.test(`${a}`);
ww kkkkkk w o r o n o o nnnn o o oo r o o c o
};
c o
""",
    "php": r"""
public function add($a) {
kkkkkk w kkkkkkkk w nnn o o n c w o
  return $this->a['k]'];
ww kkkkkk w o nnnn oo r o o n o o c o
}
c
""",
    "go": r"""
func (t *T) Add(s []int) int {
kkkk w o n w o n c w nnn o n w o c kkk c w kkk w o
	return s[0] + t.x // t)
w kkkkkk w r o o c w o w r o n w oo w r o
}
c
""",
    "ruby": r"""
def add(a)
kkk w nnn o n c
  a.map { |x| "#{x})" } # }
ww r o nnn w o w o n o w o oo r o o o w c w o w o
end
kkk
""",
    "c": r"""
static int add(char *a) {
kkkkkk w kkk w nnn o kkkk w o n c w o
  return a[0x1F] == '('; /* a { */
ww kkkkkk w r o oooo c w oo w ooo o w oo w r w o w oo
}
c
""",
    "cpp": r"""
bool Add::ok(int a) const {
kkkk w nnn oo nn o kkk w n c w kkkkk w o
  return a < 2 && ok(a);
ww kkkkkk w r w o w o w oo w rr o r c o
}
c
""",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_kinds_are_those_labelled_by_hand(language: str) -> None:
    lines = LABELLED[language].strip("\n").split("\n")
    text = "\n".join(lines[::2])
    labels = "w".join(line.replace(" ", "") for line in lines[1::2])
    assert len(labels) == len(text)
    found = "".join("wknrco"[kind] for kind in characters(text, language).kind)
    assert found == labels


def test_depth_counts_a_bracket_itself_and_none_in_strings_and_comments() -> None:
    text = 'f(a[g(")")]); // ('
    assert "".join(map(str, characters(text, "java").depth)) == "011223333321000000"


def test_depth_after_a_closing_bracket_too_many_starts_again_at_zero() -> None:
    assert characters(")(a)", "java").depth.tolist() == [0, 1, 1, 1]


def test_parts_and_places() -> None:
    text = "if (ab) x = 'c d' + 2; // e"
    found = characters(text, "javascript")
    letters = dict(zip(PARTS, "lkiscnobe", strict=True))
    assert "".join(
        letters[PARTS[part]] for part in found.part
    ) == "kk l b ii b l i l o l sssss l o l n o l cccc".replace(" ", "")
    assert "".join(map(str, found.place)) == "12 0 0 12 0 0 1 0 0 0 0 1 0 1 0 0 0 0 0 0 0 0 0 0 1".replace(" ", "")


def test_a_keyword_inside_a_string_is_a_word_and_words_differ_by_case() -> None:
    found = characters('f("for For for")', "java")
    assert "".join("wknrco"[kind] for kind in found.kind) == "noonnnwnnnwrrroc"


def test_outline_ignores_comments_white_space_and_case() -> None:
    one = outline("int f() { return A; }", "java", 255)
    other = outline("int  f() {\n  // say (((\n  return a;\n}", "java", 255)
    assert one == other
    assert one.depth == 1
    assert outline("int f() { return B; }", "java", 255).key != one.key


def test_outline_knows_the_depth_inside_the_context() -> None:
    found = outline("f(a, (((b))))", "java", 5)
    assert (found.depth, found.depth_in_context) == (4, 1)


def test_an_unknown_language_is_refused_with_the_known_ones() -> None:
    with pytest.raises(AssayError, match="unknown language 'pyton'; did you mean 'python'"):
        outline("x", "pyton", 10)


@pytest.mark.parametrize("language", LANGUAGES)
@given(text=st.text(alphabet="ab1_ \n\t\"'`#/*\\(){}[]$<>=?é", max_size=60))
def test_any_text_is_lexed(language: str, text: str) -> None:
    found = characters(text, language)
    assert len(found.kind) == len(found.depth) == len(text)
    assert (found.depth >= 0).all()
    for character, kind in zip(text, found.kind, strict=True):
        assert (kind == LETTERS["w"]) == character.isspace()
        assert kind != LETTERS["c"] or character in ")]}"


TRICKY = (
    "def f():\n    return '#(' + \"it's (\" # a comment (\n",
    'def f():\n    """It\'s "quoted" (\n    # no comment [\n    """\n    return (r"\\"", b\'\\\'(\')\n',
    "def f(a=[], *, b={}):\n    return '''a''' \\\n        if a else rb'('\n",
    "def f(x):\n    return f'{g(x)} (' + rf\"{x:{'>'}{10}} # no\"\n",
)


@pytest.mark.parametrize("module", [argparse, inspect, json.decoder, tokenize])
def test_outlines_of_python_do_not_depend_on_how_they_are_read(module, monkeypatch) -> None:
    functions = [*TRICKY, *cut(inspect.getsource(module), "python")]
    quick = [outline(text, "python", 100) for text in functions]
    monkeypatch.setattr(_lexing, "_PYTHON_FORMATTED", re.compile(""))
    assert quick == [outline(text, "python", 100) for text in functions]
    assert max(found.depth for found in quick) >= 3


def test_languages_are_called_as_people_write_them():
    assert {name: _lexing.language_words(name) for name in LANGUAGES} == {
        "c": "C", "cpp": "C++", "go": "Go", "java": "Java", "javascript": "JavaScript", "php": "PHP",
        "python": "Python", "ruby": "Ruby",
    }  # fmt: skip
