"""Wrong arguments: AssayError says what was given and what to pass. In processes without the checks of the tests."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from assay import AssayError
from assay._given import checked
from assay.testing.fuzz import interface

WRONG = {
    "assay.load(None)": "load(name=None): must be a string or a path",
    "assay.compare(subject.model, task, [assay.SVD(2)])": "compare(subject=<GPT2LMHeadModel>): must be a Subject",
    "assay.compare(subject, task, assay.SVD(2))": "must be a list of Simplifications; assay.SVD(rank=8) gives one",
    "assay.compare(subject, task, [assay.SVD])": "must be a list of Simplifications",
    "assay.compare(subject, task, 'svd')": "compare(simplifications='svd'): must be a list",
    "assay.compare(subject, None, [assay.SVD(2)])": "compare(task=None): must be a Task",
    "assay.compare(subject, task, [assay.SVD(2)], workers=4)": "workers=4): must be a Workers; assay.Workers(4)",
    "assay.compare(subject, task, [assay.SVD(2)], sites=[1])": "sites=[1]): must be a list of strings",
    "assay.compare(subject, task, [assay.SVD(2)], sites='all')": "sites='all'): must be a list of strings",
    "assay.compare(subject, task, [assay.SVD(2)], sequences=2.5)": "sequences=2.5): must be a whole number",
    "assay.compare(subject, task, [assay.SVD(2)], folder='a\\0b')": "no file can be called so",
    "assay.compare(subject, task, [assay.SVD(2)], resamples=2**70)": "must be at most 1,000,000",
    "assay.SVD('8')": "SVD(rank='8'): must be a whole number",
    "assay.SVD(True)": "SVD(rank=True): must be a whole number",
    "assay.SVD(2).fit(None)": "SVD.fit(samples=None): must be a Samples",
    "assay.Workers('4')": "Workers(jobs='4'): must be a whole number",
    "assay.certify('max-of-4')": "certify(subject='max-of-4'): must be a Subject; assay.load(name)",
    "assay.tasks.Text(subject.tokenizer, None, ['a'], ['b'])": "shifts=['b']): must be a table (a dict)",
    "subject.shuffled_copy(seed=2**70)": "at most 64 bits",
    "subject.to('abacus')": "Subject.to(device='abacus')",
}

SCRIPT = """
import json, sys
import assay
from assay.testing.fuzz import interface

subject, task = assay.load("dyck-20-10"), assay.tasks.Dyck(training_sentences=60)
said = {}
for text in json.loads(sys.argv[1]):
    try:
        eval(text)
    except Exception as error:
        said[text] = f"{type(error).__name__}: {error}"
wrong = [
    found
    for call in interface.others()
    for value in interface.plain_values()
    if (found := interface.attempt(call, list(call.arguments), value))
]
print(json.dumps([said, wrong]))
"""


@pytest.mark.slow
def test_wrong_types_are_told_and_what_to_pass():
    call = [sys.executable, "-c", SCRIPT, json.dumps(list(WRONG))]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    said, wrong = json.loads(done.stdout)
    for text, words in WRONG.items():
        assert said.get(text, "accepted").startswith("AssayError: "), (text, said.get(text))
        assert words in said[text]
        assert "\n" not in said[text]
    assert not wrong


@pytest.mark.slow
def test_every_parameter_of_everything_public():
    call = "from assay.testing.fuzz import interface; print(*interface.run(0, 0.0, lambda text: None), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, check=True)
    rows = done.stdout.strip().splitlines()
    assert len(rows) > 40
    assert not [row for row in rows if "wrong=0" not in row]


@pytest.mark.parametrize(
    ("hint", "right", "wrong"),
    [
        (int, [0, -3, np.int64(2)], [True, 2.0, "2", None, np.float32(2), np.array([1])]),
        (float, [0, 2.5, np.float32(2), float("nan")], [True, "2", None, 1j]),
        (bool, [True, np.bool_(False)], [0, "True", None]),
        (str, ["", "x"], [b"x", None, 1, Path("x")]),
        (str | Path | None, ["x", Path("x"), None], [1, b"x", ["x"]]),
        (Sequence[int], [[1], (), range(3), np.array([1, 2])], [1, "12", {1: 2}, iter([1]), [1.5], {1}]),
        (Iterable[str], [["x"], iter(["x"]), {"x"}, (letter for letter in "ab")], ["x", 3, None, [1]]),
        (tuple[int, ...], [(), (1, 2), [1]], [1, (1.5,), "12"]),
        (tuple[int, str], [(1, "x")], [(1,), ("x", 1), (1, "x", 2)]),
        (Mapping[str, int], [{}, {"x": 1}], [[], {"x": "y"}, {1: 1}, None]),
        (Literal["a", "b"], ["a", "unknown"], [1, None, ["a"]]),
        (Callable[[int], int], [len, int], [1, "len", None]),
        (torch.Tensor, [torch.zeros(2)], [np.zeros(2), 1, [1.0]]),
        (type[int], [int, str], [1, "int"]),
    ],
    # Values of some lists show an address, which is another one in every process.
    ids=lambda given: "values" if isinstance(given, list) else str(given),
)
def test_what_fits_a_hint(hint, right, wrong):
    def function(value):
        return value

    function.__annotations__ = {"value": hint}
    guarded = checked(function)
    for value in right:
        assert guarded(value) is value
        assert guarded(value=value) is value
    for value in wrong:
        with pytest.raises(AssayError, match=r"function\(value=.*must be"):
            guarded(value)


def test_an_iterator_is_not_used_up():
    @checked
    def total(numbers: Iterable[int]) -> int:
        return sum(numbers)

    assert total(iter([1, 2, 3])) == 6


def test_hints_that_cannot_be_found_are_let_be():
    def function(value: "Nowhere"):  # noqa: F821
        return value

    assert checked(function)(3) == 3


def test_the_sweep_replaces_each_parameter():
    call = interface.Call("it", lambda first, second=2: 1 / 0, {"first": 1})
    assert call.parameters() == ["first", "second"]
    assert interface.attempt(call, ["first"], None).startswith("it(first=None): ZeroDivisionError")
