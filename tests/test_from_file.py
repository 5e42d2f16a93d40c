"""A class from a file of one's own: what text stands for it, what is refused, and that workers have it."""

import copy
import os
import sys

import pytest

import assay
from assay import AssayError
from assay.faithfulness import Workers
from assay.simplify import label, simplifications

OWN = '''
from __future__ import annotations

from dataclasses import dataclass, field

from assay.engine import Edit, EditedSubject

SCALE = 0.5


def scaled(vectors):
    return SCALE * vectors


class Helper:
    def function(self):
        return scaled


@dataclass
class Halved:
    """Halves keys."""

    rank: int = 1
    names: list[str] | None = None
    heads_: tuple | None = field(default=None, init=False, repr=False)

    streams = ()

    def __post_init__(self):
        if self.rank < 0:
            raise ValueError("no such\\n rank")

    def fit(self, samples):
        self.heads_ = samples.places
        return self

    def apply(self, subject):
        return EditedSubject(subject, [Edit(head, keys=Helper().function()) for head in self.heads_ or ()])

    def control(self):
        return None


class Half:
    streams = ()

    def fit(self, samples):
        return self


def made():
    return Halved()
'''


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "my-method.py"
    path.write_text(OWN, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("call", "rank", "names"),
    [
        ("Halved", 1, None),
        ("Halved()", 1, None),
        ("Halved(4)", 4, None),
        (" Halved( rank = 4, names=['a, b', \"c:d\"] ) ", 4, ["a, b", "c:d"]),
        ("Halved(3, None)", 3, None),
    ],
)
def test_text_makes_an_object_of_the_class(own, call, rank, names):
    found = simplifications.build(f"{own}:{call}")
    assert (type(found).__name__, found.rank, found.names) == ("Halved", rank, names)
    assert label(found).startswith("Halved(")


def test_one_file_is_run_once_and_again_when_it_has_changed(own):
    first, second = (simplifications.build(f"{own}:Halved(rank={rank})") for rank in (1, 2))
    assert type(first) is type(second)
    own.write_text(OWN.replace("SCALE = 0.5", "SCALE = 0.25"), encoding="utf-8")
    assert type(simplifications.build(f"{own}:Halved")) is not type(first)
    assert not (own.parent / "__pycache__").exists()


def test_the_file_may_be_given_from_where_one_is(own, monkeypatch):
    monkeypatch.chdir(own.parent)
    assert simplifications.build("my-method.py:Halved").rank == 1
    monkeypatch.setenv("HOME", str(own.parent))
    assert simplifications.build("~/my-method.py:Halved").rank == 1


WRONG = {
    "{folder}/none.py:Halved": "'{folder}/none.py' cannot be read (No such file or directory)",
    "{folder}/folder.py:Halved": "cannot be read (Is a directory)",
    "{file}:Halvd": "unknown class of {file}: 'Halvd'; did you mean 'Halved'",
    "{file}:made": "made is a function, not a class",
    "{file}:SCALE": "SCALE is a float, not a class",
    "{file}:Half": "Half is no simplification; it has no apply, control",
    "{file}:Helper": "it has no streams, fit, apply, control",
    "{file}:": "is not of the form Name or Name(parameter=value, ...)",
    "{file}:Halved(rank=": "is not of the form",
    "{file}:Halved(rank=open('x'))": "is not of the form",
    "{file}:Halved(rank=other)": "is not of the form",
    "{file}:Halved(**{{}})": "is not of the form",
    "{file}:Halved(*[1])": "is not of the form",
    "{file}:Helper.Halved(1)": "is not of the form",
    "{file}:Halved(1)(2)": "is not of the form",
    "{file}:Halved(ranks=2)": "unknown parameter of Halved 'ranks'; did you mean 'rank'?",
    "{file}:Halved(1, rank=2)": "multiple values for argument 'rank'",
    "{file}:Halved(rank=-1)": "cannot be made: ValueError: no such rank.",
    "{folder}/raises.py:Halved": "'{folder}/raises.py' cannot be run: ZeroDivisionError: division by zero.",
    "{folder}/syntax.py:Halved": "cannot be run: SyntaxError",
    "{folder}/leaves.py:Halved": "cannot be run: SystemExit: 3.",
    "{folder}/imports.py:Halved": "cannot be run: ModuleNotFoundError: No module named 'no_such_module_anywhere'.",
    "{folder}/binary.py:Halved": "cannot be run: SyntaxError",
}


@pytest.fixture
def filled(own):
    (own.parent / "folder.py").mkdir()
    files = {
        "raises": "1 / 0", "syntax": "class Halved(:", "leaves": "raise SystemExit(3)",
        "imports": "import no_such_module_anywhere",
    }  # fmt: skip
    for name, content in files.items():
        (own.parent / f"{name}.py").write_text(content, encoding="utf-8")
    (own.parent / "binary.py").write_bytes(b"\xff\xfe\x00")
    return lambda text: text.format(folder=own.parent, file=own)


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_simplification_is_refused_in_one_line(filled, text):
    before = set(sys.modules)
    with pytest.raises(AssayError) as error:
        simplifications.build(filled(text))
    assert filled(WRONG[text]) in str(error.value)
    assert "\n" not in str(error.value)
    assert not [name for name in set(sys.modules) - before if name.split("_")[0] in ("raises", "syntax", "leaves")]


@pytest.mark.parametrize(
    "text", ["{folder}/none.py:Halved", "{folder}/raises.py:Halved", "{file}:Half", "{file}:Other"]
)
def test_a_wrong_file_is_a_wrong_call(command, filled, text):
    status, out, err = command("compare", "code-python", "--split", "iid=x.txt", "--simplify", filled(text))
    assert status == 2
    assert not out
    assert "Traceback" not in err
    assert "Invalid value for --simplify" in err


def where(simplification):
    """In a worker: what the class does there, and in which process."""
    edits = simplification.apply(None).edits
    return os.getpid(), simplification, [edit.keys(4.0) for edit in edits]


@pytest.mark.slow
def test_workers_have_the_class(own, samples):
    fitted = simplifications.build(f"{own}:Halved(rank=3)").fit(samples)
    own.unlink()
    for _, (process, back, found) in Workers(2).map(where, [(fitted,), (copy.deepcopy(fitted),)]):
        assert process != os.getpid()
        assert found == [2.0, 2.0]
        assert type(back) is type(fitted)
        assert back == fitted


def test_results_do_not_depend_on_the_workers(own, subject, task, tmp_path):
    quick = {"sequences": 20, "fit_sequences": 20, "resamples": 50, "refit": False, "controls": False}
    recipes = [simplifications.build(f"{own}:Halved(rank={rank})") for rank in (1, 2)]
    alone = assay.compare(subject, task, recipes, folder=tmp_path / "run", **quick)
    shared = assay.compare(subject, task, recipes, workers=Workers(2), **quick)
    assert shared.to_frame().equals(alone.to_frame())
    assert list((tmp_path / "run" / "cells").iterdir())
