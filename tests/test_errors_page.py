"""docs/errors.md provokes every kind of error, and gets the messages that it shows."""

import re

import pytest

from assay import AssayError
from pages import ROOT

PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"^## (.+?)\n\n```python\n(.*?)^```\n\n```text\n(.*?)\n```", PAGE, flags=re.DOTALL | re.MULTILINE)
SLOW = {"Too little"}


def test_every_kind_of_the_table_is_shown_once():
    table = re.findall(r"^\| \[(.+?)\]\(#(.+?)\) \|", PAGE, flags=re.MULTILINE)
    assert [name for name, _ in table] == [name for name, _, _ in SHOWN]
    assert [place for _, place in table] == [name.lower().replace(" ", "-") for name, _, _ in SHOWN]
    assert len(re.findall(r"^## ", PAGE, flags=re.MULTILINE)) == len(SHOWN)


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [pytest.param(*one, id=one[0], marks=[pytest.mark.slow] if one[0] in SLOW else []) for one in SHOWN],
)
def test_what_is_shown_is_what_is_said(name, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    *before, last = re.split(r"\n(?=\S)", code.strip())
    names: dict[str, object] = {}
    exec(compile("\n".join(before), name, "exec"), names)
    with pytest.raises(AssayError) as caught:
        exec(compile(last, name, "exec"), names)
    assert str(caught.value) == message
