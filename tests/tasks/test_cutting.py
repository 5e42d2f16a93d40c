import pytest

from assay.tasks._cutting import MAX_BYTES, MAX_CHARACTERS, UncutError, cut, decode

FILES = {
    "python": (
        '''\
import os
@wraps
def first(a):
    def inside():
        return a
    return inside
class A:
    if True:
        async def second(self):
            """Doc: }"""

            return "é"
def short(): pass
''',
        [
            "def first(a):\n    def inside():\n        return a\n    return inside",
            'async def second(self):\n            """Doc: }"""\n\n            return "é"',
        ],
    ),
    "java": (
        """\
package a.b;
@Big(name = "x")
public class A<T> extends B {
    private int x = 3;
    /** Doc { */
    @Override
    public <S> Map<S, T> first(int a) throws E {
        if (a) { b(); }
        return "}";
    }
    enum C { D, E }
    static { start(); }
    void second() {
        return;
    }
}
""",
        [
            "@Override\n    public <S> Map<S, T> first(int a) throws E {\n        if (a) { b(); }\n"
            '        return "}";\n    }',
            "void second() {\n        return;\n    }",
        ],
    ),
    "javascript": (
        """\
'use strict';
const x = { a: 1, b: function (y) {
  return y;
}, c(z) {
  return [z];
} };
function first(a, b) {
  for (;;) { a(); }
}
class A {
  get() {
    return `}`;
  }
}
if (x) {
  y();
}
""",
        [
            "b: function (y) {\n  return y;\n}",
            "c(z) {\n  return [z];\n}",
            "function first(a, b) {\n  for (;;) { a(); }\n}",
            "get() {\n    return `}`;\n  }",
        ],
    ),
    "php": (
        """\
<?php
namespace A;
class B extends C {
    public $x = array(1);
    public function first(array $a): int {
        foreach ($a as $b) { c($b); }
        return 1;
    }
}
function second() {
    return '}';
}
if (isset($x)) {
    y();
}
""",
        [
            "public function first(array $a): int {\n        foreach ($a as $b) { c($b); }\n        return 1;\n    }",
            "function second() {\n    return '}';\n}",
        ],
    ),
    "go": (
        """\
package a
import ("fmt")
type T struct {
	x int
}
func (t *T) First(f func(int) bool) (int, error) {
	return t.x, nil
}
var y = []int{
	1, 2,
}
func second() {
	x()
}
""",
        [
            "func (t *T) First(f func(int) bool) (int, error) {\n\treturn t.x, nil\n}",
            "func second() {\n\tx()\n}",
        ],
    ),
    "ruby": (
        """\
module A
  class B
    def first(a)
      if a
        b
      end
    end
    def short; end
  end
end
""",
        ["def first(a)\n      if a\n        b\n      end\n    end"],
    ),
    "c": (
        """\
#include <x.h>
#define F(x) { x }
struct A {
  int x;
};
static const int y[] = {
  1,
};
static struct A *
first(int a)
{
  while (a) { a--; }
  return 0;
}
int later(void);
""",
        ["static struct A *\nfirst(int a)\n{\n  while (a) { a--; }\n  return 0;\n}"],
    ),
    "cpp": (
        """\
#pragma once
namespace a { namespace b {
template <class T>
class A : public B<T> {
 public:
  A(int x)
      : x_(x) {
    y();
  }
  bool operator==(const A& o) const {
    return o.x_ == x_;
  }
};
}}
extern "C" {
void f(int a) {
  g(a);
}
}
""",
        [
            "A(int x)\n      : x_(x) {\n    y();\n  }",
            "bool operator==(const A& o) const {\n    return o.x_ == x_;\n  }",
            "void f(int a) {\n  g(a);\n}",
        ],
    ),
}


@pytest.mark.parametrize("language", FILES)
def test_functions_are_cut_out_of_a_file(language: str) -> None:
    text, functions = FILES[language]
    assert cut(text, language) == functions


@pytest.mark.parametrize("language", ["java", "javascript", "c"])
def test_unbalanced_brackets_do_no_harm(language: str) -> None:
    assert cut(") } } int f(int a) {\n  return 1;\n}\n int g( {", language) == ["int f(int a) {\n  return 1;\n}"]


def test_what_is_too_long_is_searched_inside() -> None:
    inner = "function f(a) {\n  return a;\n}"
    padding = "x = 1;\n" * (MAX_CHARACTERS // 7)
    assert cut(f"(function () {{\n{inner}\n{padding}}})();", "javascript") == [inner]
    assert cut(f"function outer() {{\n{inner}\n{padding}}}", "javascript") == [inner]


def test_windows_line_ends_and_encodings_are_read() -> None:
    assert decode(b"\xef\xbb\xbfint a;\r\nint b;\rint c;", "c") == "int a;\nint b;\nint c;"
    assert decode("# -*- coding: latin-1 -*-\nx = 'é'".encode("latin-1"), "python").endswith("'é'")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b" \n", "empty"),
        (b"int a;\0", "binary"),
        (b"int \xff;", "undecodable"),
        (b"x" * (MAX_BYTES + 1), "too large"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(UncutError, match=reason):
        decode(data, "c")


def test_an_unknown_python_encoding_is_undecodable() -> None:
    with pytest.raises(UncutError, match="undecodable"):
        decode(b"# coding: nothing-9\nx = 1", "python")


def test_python_that_does_not_parse_says_so_and_warnings_of_the_source_are_not_ours() -> None:
    with pytest.raises(UncutError, match="does not parse"):
        cut("def f(:\n  pass\n", "python")
    assert cut('def f():\n    x = "\\d"\n    return x is 1', "python") == ['def f():\n    x = "\\d"\n    return x is 1']
