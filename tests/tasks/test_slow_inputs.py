"""Source files that were made to be slow to read are read fast, or left out and counted."""

import contextlib
import json
import time

import pytest

from assay.tasks import Code, _lexing
from assay.tasks._cutting import MAX_BYTES, MAX_CHARACTERS, UncutError, cut
from assay.tasks._functions import Folder, JsonLines
from assay.tasks._lexing import COMMENT, LANGUAGES, NUMBER, SlowError, outline, tokens

JAVA = "int first(int a) {\n    return a;\n}"


def seconds(work):
    """Of a processor, until some work is done or given up."""
    started = time.thread_time()
    with contextlib.suppress(UncutError, SlowError):
        work()
    return time.thread_time() - started


def repeated(fragment, size=MAX_BYTES):
    return (fragment * (size // len(fragment) + 1))[:size]


@pytest.mark.parametrize("fragment", ["def \n", "def a\n", "  def a\n end\n"], ids=["bare", "named", "other-indent"])
def test_the_largest_file_of_functions_without_end_is_cut_in_seconds(fragment):
    assert seconds(lambda: cut(repeated(fragment), "ruby")) < 10


@pytest.mark.parametrize("name", ["a.", "a .\\\n", "é."], ids=["plain", "continued", "accented"])
@pytest.mark.parametrize("before", ["import ", "from "])
def test_a_dotted_name_as_long_as_a_file_is_not_parsed(before, name):
    """The parser would keep each of its beginnings: 40 GB."""
    function = "def first(a):\n    b = a.c.d.e\n    return b"
    with pytest.raises(UncutError, match=r"^does not parse$"):
        cut(f"{function}\n{before}{repeated(name)}b", "python")
    assert cut(f"{function}\n{before}{name * 20}b{' import c' * (before == 'from ')}", "python") == [function]


def test_functions_within_functions_are_searched_once():
    """Of 2,000 functions inside each other the outermost that is short enough is taken."""
    depth = (MAX_CHARACTERS + 1) // len("a(){\n}\n")
    found = []
    assert seconds(lambda: found.extend(cut("a(){\n" * 2_000 + "}\n" * 2_000, "java"))) < 10
    assert found == ["a(){\n" * depth + "}\n" * (depth - 1) + "}"]
    assert MAX_CHARACTERS - len("a(){\n}\n") < len(found[0]) <= MAX_CHARACTERS


def test_functions_side_by_side_in_one_that_is_too_long_are_taken_in_order():
    inside = [f"int f{k}(int a) {{\n    if (a) {{ b(); }}\n    return {k};\n}}" for k in range(100)]
    assert cut("void all() {\n" + "\n".join(inside) + "\n}", "java") == inside
    assert cut("void all() {\n" + "\n".join(inside[:3]) + "\n", "java") == []


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(_lexing, "SECONDS", 0.05)


def test_a_text_that_takes_its_lexer_too_long_is_refused_in_one_line():
    text = repeated("a b ", 40_000)
    with pytest.raises(
        SlowError, match=r"^40000 characters of java take more than 0\.05 seconds to lex; leave them ou"
    ):
        list(tokens(text, "java", seconds=0.05))


@pytest.mark.parametrize(("language", "fragment"), [("java", "a b "), ("c", "\n"), ("php", "$")],
                         ids=["java", "c", "php"])  # fmt: skip
def test_a_file_that_takes_its_lexer_too_long_is_not_cut(impatient, language, fragment):
    with pytest.raises(UncutError, match=r"^too slow to lex$"):
        cut(repeated(f"a b;{fragment}"), language)


def test_a_file_that_takes_too_long_is_counted_and_the_others_are_read(impatient, tmp_path):
    (tmp_path / "Good.java").write_text(JAVA)
    (tmp_path / "Slow.java").write_text(repeated("a b ", 40_000))
    found = Folder(tmp_path, "java").read()
    assert [function.text for function in found.functions] == [JAVA]
    assert found.lost == {"java files: too slow to lex": 1}


def test_a_function_that_takes_too_long_is_counted_and_the_others_are_dealt(impatient, tmp_path):
    texts = [JAVA.replace("first", f"f{k}") for k in range(60)] + [repeated("a b ", 40_000)]
    rows = [{"code": text, "language": "java", "repo": "a"} for text in texts]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    told = Code(JsonLines((tmp_path / "rows.jsonl",))).describe()
    assert told["left_out"] == {"too slow to lex": 1}
    assert sum(split["functions"] for split in told["splits"].values()) == 60


# -- white space, which expressions of Pygments share out in every way -------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_with_much_white_space_in_it_keeps_a_lexer_from_looking_at_the_clock(language):
    space = 3_000 * "\n"
    for text in (f"a{space}", f"a b(){space}", f"a{space}b{space}(){space}"):
        assert seconds(lambda text=text: list(tokens(text, language))) < 5


def marks_of(text, language):
    """What is no white space, mark by mark, with its place and part."""
    return [
        (start + offset, part, mark)
        for start, part, value, _ in tokens(text, language)
        for offset, mark in enumerate(value)
        if not mark.isspace()
    ]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("run", [" ", "\n", "\t \n"], ids=["blanks", "breaks", "both"])
def test_marks_around_much_white_space_are_what_they_are_around_little(language, run):
    words = ["a", "//b", "'c'", "(", "d", "1", ";", '"e"', "f"]
    little, much = "\n".join(words), f"{100 * run}\n".join(words)
    assert "".join(value for _, _, value, _ in tokens(much, language)) == much
    found = marks_of(much, language)
    assert all(much[at] == mark for at, _, mark in found)
    assert [mark for _, *mark in found] == [mark for _, *mark in marks_of(little, language)]


@pytest.mark.parametrize("length", [1, 33, 34, 35, 1_000])
def test_a_line_break_in_the_middle_of_much_white_space_ends_a_comment(length):
    text = f"int a; // b{' ' * length}\n{' ' * length}c(1);"
    parts = {mark: part for _, part, mark in marks_of(text, "c")}
    assert [mark for mark, part in parts.items() if part == COMMENT] == ["/", "b"]
    assert parts["1"] == NUMBER


# -- any fragment -------------------------------------------------------------------------------------------------

FRAGMENTS = [
    "a b ", "a ", "a\n", "\n", " \n", "( ", "{", "}", "a(){", "a(){\n", "f(a", "[", '"', "'", "`", "/*", "//", "#",
    "#if 0\n", "\\", "\\\n", "0", "0x", "1.", "a.", "a,", "a<", "a<b ", "a<>", "a[]", "<<", "<<A", "@a ", "=", "a=",
    "=>", "?", "a?", "$", "${", "$a", '"""', "'''", "def ", "def a\n", "def a\nend\n", "class ", "a:", "::", "a::",
    "public ", "new ", "function ", "/a", "%", "%w(", "#{", '"#{', "<?", "?>", "<<<A\n", "import ", "struct a ",
    "static ", "a* ", 'R"(', "_", "é", "=begin\n", "int a", "case ", "return ", "func ", "type ", "lambda ", "yield ",
    "template<", "use ", "&", "a/**/", "//a\n", "a;",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("before", ["", "a", "a b()", "class a", "import a."])
def test_no_fragment_again_and_again_takes_much_more_than_what_is_allowed(monkeypatch, language, before):
    """The largest file, and the outline of a function; between two looks at the clock a lexer takes one token."""
    monkeypatch.setattr(_lexing, "SECONDS", 0.1)
    took = {}
    for fragment in FRAGMENTS:
        text = before + repeated(fragment)
        for work in (lambda text=text: cut(text, language), lambda text=text: outline(text, language, 255)):
            took[fragment] = max(seconds(work), took.get(fragment, 0))
    assert max(took.values()) < 10, sorted(took.items(), key=lambda item: -item[1])[:5]
