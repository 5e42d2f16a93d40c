"""Fingerprints: different for whatever does something else, the same for what does not, in every process."""

import collections
import copy
import functools
import os
import subprocess
import sys
import textwrap
import types
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import nn

from assay._fingerprint import NotHashableError, fingerprint
from assay.simplify import SVD, RandomPerturbation


@dataclass
class Holder:
    """Holds anything, and learns something."""

    held: object
    learned_: object = field(default=None, init=False)
    lambda_: float = 1.0


class Slotted:
    __slots__ = ("held",)

    def __init__(self, held):
        self.held = held


def linear(change=0.0):
    module = nn.Linear(3, 3)
    with torch.no_grad():
        module.weight.copy_(torch.arange(9.0).view(3, 3)).view(-1)[4] += change
        module.bias.zero_()
    return module


def adder(number):
    return lambda x: x + number


def with_hook(factor):
    module = linear()
    module.register_forward_hook(lambda own, inputs, output: output * factor)
    return module


def defined(source, name="made"):
    """What a piece of source defines under a name: a class or function as another run would have it."""
    space = {"__name__": "of_a_user"}
    exec(textwrap.dedent(source), space)
    return space[name]


def table(change=0.0, size=2_000):
    found = np.linspace(0, 1, size)
    found[size // 2] += change
    return found


CLASS = """
SCALE = 2
def helper(x):
    return {helper}
class Base:
    def size(self):
        return {base}
class made(Base):
    limit = {limit}
    def fit(self, samples):
        return [helper(x) for x in samples if x < self.limit]
    @property
    def twice(self):
        return {twice}
    @classmethod
    def build(cls):
        return cls()
    @staticmethod
    def free():
        return {free}
"""
PARTS = {"helper": "x * SCALE", "base": "1", "limit": "3", "twice": "2", "free": "0"}


def edited(**changes):
    return defined(CLASS.format(**{**PARTS, **changes}))


def recursive(value):
    holder = Holder([value])
    holder.held.append(holder)
    return holder


DIFFERENT = {
    "numbers": (1, 2),
    "types of equal numbers": (1, True),
    "signs of zero": (0.0, -0.0),
    "text and bytes": ("a", b"a"),
    "lists and tuples": ([1], (1,)),
    "how lists are cut": ([[1], [2]], [[1, 2], []]),
    "how text is cut": (("ab", "c"), ("a", "bc")),
    "sets": ({1, 2}, {1, 3}),
    "dictionaries": ({"a": 1}, {"a": 2}),
    "an entry in the middle of an array": (table(), table(1e-12)),
    "types of arrays": (np.zeros(2, np.float32), np.zeros(2, np.int32)),
    "shapes of arrays": (np.zeros((2, 3)), np.zeros((3, 2))),
    "arrays of objects": (np.array([1, "a"], object), np.array([1, "b"], object)),
    "masked arrays": (np.ma.array([1, 2], mask=[0, 1]), np.ma.array([1, 2], mask=[1, 0])),
    "the fifth digit of a tensor": (torch.tensor([1.2345678]), torch.tensor([1.2345679])),
    "tensors in half precision": (torch.ones(2).bfloat16(), torch.ones(2).half()),
    "sparse tensors": (torch.tensor([0.0, 1.0]).to_sparse(), torch.tensor([1.0, 0.0]).to_sparse()),
    "weights of a module": (linear(), linear(1e-6)),
    "modules of other classes": (nn.ReLU(), nn.GELU()),
    "settings of a module": (nn.LayerNorm(2, eps=1e-5), nn.LayerNorm(2, eps=1e-6)),
    "a module in training": (nn.Dropout(), nn.Dropout().eval()),
    "hooks on a module": (linear(), with_hook(2)),
    "what a hook holds": (with_hook(2), with_hook(3)),
    "modules within modules": (nn.Sequential(linear()), nn.Sequential(linear(1.0))),
    "attributes": (Holder(1), Holder(2)),
    "attributes of attributes": (Holder({"a": [Holder(table())]}), Holder({"a": [Holder(table(1.0))]})),
    "slots": (Slotted(1), Slotted(2)),
    "parameters that end in _": (Holder(1, lambda_=1.0), Holder(1, lambda_=2.0)),
    "objects that hold themselves": (recursive(1), recursive(2)),
    "nested simplifications": (RandomPerturbation(SVD(2)), RandomPerturbation(SVD(3))),
    "functions": (lambda x: x + 1, lambda x: x + 2),
    "what functions have closed over": tuple(adder(n) for n in (1, 2)),
    "defaults": (lambda x=1: x, lambda x=2: x),
    "partial functions": (functools.partial(max, 1), functools.partial(max, 2)),
    "cached functions": tuple(functools.lru_cache(f) for f in (lambda x: x + 1, lambda x: x + 2)),
    "decorators that matter": tuple(
        torch.autocast("cpu", dtype=kind)(linear) for kind in (torch.bfloat16, torch.float16)
    ),
    "a method of a class": (edited(), edited(helper="x + SCALE")),
    "a base class": (edited(), edited(base="2")),
    "a class attribute": (edited(), edited(limit="4")),
    "a property": (edited(), edited(twice="3")),
    "a static method": (edited(), edited(free="1")),
    "a class with an equal object": (edited()(), edited(limit="4")()),
    "functions bound to an object": tuple(types.MethodType(adder(n), 1) for n in (1, 2)),
    "bound methods": (edited()().fit, edited(limit="4")().fit),
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_whatever_differs_has_another_fingerprint(kind):
    one, other = DIFFERENT[kind]
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(Holder(one)) != fingerprint(Holder(other)), "as a parameter, too"


@pytest.mark.parametrize("kind", DIFFERENT)
def test_a_copy_has_the_same_fingerprint(kind):
    for value in DIFFERENT[kind]:
        assert fingerprint(copy.deepcopy(value)) == fingerprint(value)


def test_a_class_that_was_written_anew_in_the_same_words_is_the_same():
    assert fingerprint(edited()) == fingerprint(edited())


def test_a_method_that_was_replaced_counts(monkeypatch):
    before = fingerprint(Holder(1))
    monkeypatch.setattr(Holder, "__call__", lambda self: 1, raising=False)
    assert fingerprint(Holder(1)) != before


def test_a_global_counts_where_it_is_used_and_nowhere_else():
    source = "import numpy\nSCALE = numpy.arange({})\nOTHER = {}\ndef made(x):\n    return x.OTHER * SCALE"
    assert fingerprint(defined(source.format(3, 1))) != fingerprint(defined(source.format(4, 1)))
    assert fingerprint(defined(source.format(3, 1))) == fingerprint(defined(source.format(3, 2)))


def test_what_fit_makes_anew_can_be_left_out():
    fitted = Holder(1)
    fitted.learned_ = torch.ones(2)
    assert fingerprint(fitted) != fingerprint(Holder(1))
    assert fingerprint(fitted, unfitted=True) == fingerprint(Holder(1), unfitted=True)
    assert fingerprint(Holder(1, lambda_=2), unfitted=True) != fingerprint(Holder(1), unfitted=True)
    assert fingerprint(Holder(fitted), unfitted=True) != fingerprint(Holder(Holder(1)), unfitted=True), (
        "only its own: a parameter that was fitted before may be used as it is"
    )


def deep():
    found = []
    for _ in range(5_000):
        found = [found]
    return found


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: open(os.devnull), r"Holder\.held: a \w+ cannot be hashed"),  # noqa: SIM115
        (lambda: (number for number in range(3)), r"a generator cannot be hashed"),
        (lambda: collections.deque([open(os.devnull)]), r"cannot be hashed"),  # noqa: SIM115
        (lambda: torch.ones(2, device="meta"), "has no bytes"),
        (lambda: pytest.importorskip("conftest"), "Python module conftest"),
        (
            lambda: defined("def made():\n    import of_a_user_too\n    return of_a_user_too.f()"),
            "import it at the top",
        ),
        (deep, "nested too deeply"),
    ],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_cannot_be_hashed_is_refused_with_the_reason(make, words):
    with pytest.raises(NotHashableError, match=words):
        fingerprint(Holder(make()))


FILES = {
    "method_of_mine.py": """
        import functools, beartype, jaxtyping, numpy, torch, assay
        import of_mine.helpers as helpers
        from of_mine import numbers
        class Mine:
            kinds = {"b", "a", "c"}
            def fit(self, samples):
                return helpers.work(samples) + numbers.OF_ALL
            @jaxtyping.jaxtyped(typechecker=beartype.beartype)
            def checked(self, x: int) -> int:
                return x
            @beartype.beartype
            def apply(self, x: int) -> int:
                return numpy.sum(x) + torch.ones(1)
        """,
    "of_mine/__init__.py": "",
    "of_mine/helpers.py": """
        def work(x):
            return deeper(x)
        def deeper(x):
            return x * 2
        def unused(x):
            return x
        """,
    "of_mine/numbers.py": "OF_ALL = 3\n",
}
SAY = "from method_of_mine import Mine; from assay._fingerprint import fingerprint; print(fingerprint(Mine()))"


def test_files_that_were_edited_count_as_far_as_they_are_used(tmp_path):
    def said(seed="0", **changes):
        for name, text in {
            **FILES,
            **{key.replace("__", "/") + ".py": value for key, value in changes.items()},
        }.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(textwrap.dedent(text))
        done = subprocess.run(
            [sys.executable, "-B", "-c", SAY],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
            cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout

    helpers, numbers = FILES["of_mine/helpers.py"], FILES["of_mine/numbers.py"]
    first = said()
    assert said("1") == first, "the same in another process"
    assert said(of_mine__helpers=helpers.replace("x * 2", "x * 3")) != first, "a helper's helper"
    assert said(of_mine__numbers=numbers.replace("3", "4")) != first, "a number in another file"
    assert said(of_mine__helpers=helpers.replace("return x\n", "return -x\n")) == first, "what nothing uses"
