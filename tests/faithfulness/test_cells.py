"""Cells: what is kept comes back for the very same question only, whole, and under its own name."""

import copy
import shutil
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from pandas.testing import assert_frame_equal
from torch import nn

import assay
from assay import AssayError
from assay.engine import Edit, EditedSubject
from assay.faithfulness import Comparison
from assay.faithfulness._cells import Cells, candidates_of
from assay.faithfulness._scores import Scores
from assay.simplify import RandomPerturbation, label
from assay.simplify._protocol import proxy_of

QUICK = {
    "sequences": 8, "fit_sequences": 40, "resamples": 100, "refit": False, "controls": False,
    "metrics": ["same_prediction", "kl"],
}  # fmt: skip


@dataclass
class Scaled:
    """Scales keys by a number that is found in whatever it is given; `None` scales by one."""

    by: object = None
    number: object = None
    heads_: tuple | None = field(default=None, init=False, repr=False)

    streams = ()

    def fit(self, samples):
        self.heads_ = samples.places
        return self

    def factor(self):
        return 1.0 if self.number is None else float(self.number(self.by))

    def apply(self, subject):
        return proxy_of(self, subject, self.heads_, lambda head: Edit(head, keys=lambda keys: self.factor() * keys))

    def control(self):
        return None


@pytest.fixture
def judge(subject, task):
    """judge(folder, *simplifications, **options): a quick comparison on the small subject."""

    def compare(folder, *simplifications, **options):
        return assay.compare(subject, task, simplifications, folder=folder, **{**QUICK, **options})

    return compare


def divergence(comparison):
    """How far each simplification is from the subject on iid: KL in nats."""
    rows = comparison.results.query("metric == 'kl' and kind == 'all' and feature == '' and split == 'iid' and trained")
    return rows.query("not is_control").set_index("proxy")["estimate"].round(9).to_dict()


def scored(monkeypatch):
    """The keys of the proxies that are scored from here on."""
    from assay.faithfulness import _compare  # noqa: PLC0415

    keys, score_split = [], _compare.score_split

    def watched(engine, proxies, *rest, **options):
        keys.extend(proxies)
        return score_split(engine, proxies, *rest, **options)

    monkeypatch.setattr(_compare, "score_split", watched)
    return keys


# -- whatever differs is another question ---------------------------------------------------------------------------


def table(middle):
    found = np.zeros(2_000)
    found[1_000] = middle
    return found


def weighted(weight):
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, weight)
    return module


def fifth_digit(tensor):
    return 1.0 if tensor.item() == torch.tensor(0.12345) else -5.0


@dataclass
class Setting:
    values: list


SCALED = """
from assay.engine import Edit
from assay.simplify._protocol import proxy_of
FACTOR = {factor}
def scaled(vectors):
    return {helper} * vectors
class Edited:
    streams = ()
    heads_ = None
    def fit(self, samples):
        self.heads_ = samples.places
        return self
    def apply(self, subject):
        return proxy_of(self, subject, self.heads_, lambda head: Edit(head, keys=scaled, queries=self.queries))
    def queries(self, vectors):
        return {method} * vectors
    def control(self):
        return None
"""


def edited(**changes):
    space = {"__name__": "methods_of_mine"}
    exec(SCALED.format(**{"factor": 1, "helper": "FACTOR", "method": "1", **changes}), space)
    return space["Edited"]()


def closed_over(factor):
    return Scaled(number=lambda _: factor)


OTHERS = {
    "a number": lambda x: Scaled(x, float),
    "an entry in the middle of an array": lambda x: Scaled(table(x), np.sum),
    "the fifth digit of a tensor": lambda x: Scaled(torch.tensor(0.12345 if x == 1 else 0.12346), fifth_digit),
    "weights of a module": lambda x: Scaled(weighted(x), lambda module: module.weight.item()),
    "a list of arrays": lambda x: Scaled([table(1.0), table(x)], lambda tables: tables[1].sum()),
    "a dictionary": lambda x: Scaled({"a": {"b": torch.tensor(x)}}, lambda found: found["a"]["b"].item()),
    "a dataclass": lambda x: Scaled(Setting([table(x)]), lambda setting: setting.values[0].sum()),
    "what a function has closed over": closed_over,
    "a method": lambda x: edited(method=x),
    "a helper": lambda x: edited(helper=x),
    "a constant": lambda x: edited(factor=x),
}


def all_of(factor):
    """One of every kind by name, each scaling by a factor in its own way; one of them within another recipe."""
    found = {kind: make(factor) for kind, make in OTHERS.items()}
    return {**found, "nested": RandomPerturbation(OTHERS["an entry in the middle of an array"](factor))}


def test_another_simplification_is_judged_anew(tmp_path, judge):
    first = judge(tmp_path, *all_of(1.0).values())
    assert set(divergence(first).values()) == {0.0}, "all scale by one"
    (tmp_path / "comparison.json").unlink()
    again = judge(tmp_path, *all_of(-5.0).values())
    old = dict(zip(all_of(-5.0), divergence(again).values(), strict=True))
    assert not [kind for kind, value in old.items() if value < 1e-4], "these were believed to scale by one"
    assert_frame_equal(again.to_frame(), judge(None, *all_of(-5.0).values()).to_frame())


def test_the_same_simplification_is_not_judged_again(tmp_path, monkeypatch, judge):
    first = judge(tmp_path, *all_of(-5.0).values())
    keys = scored(monkeypatch)
    assert_frame_equal(judge(tmp_path, *all_of(-5.0).values()).to_frame(), first.to_frame())
    assert keys == []


def test_a_fitted_simplification_is_the_same_as_a_fresh_one(tmp_path, monkeypatch, judge, samples):
    judge(tmp_path, assay.SVD(rank=2))
    keys = scored(monkeypatch)
    judge(tmp_path, assay.SVD(rank=2).fit(samples))
    assert keys == []


# -- what cannot be hashed ------------------------------------------------------------------------------------------


def test_what_cannot_be_hashed_is_judged_in_every_run_and_the_record_says_so(tmp_path, monkeypatch, judge):
    numbers = (number for number in range(3))
    monkeypatch.setattr(Scaled, "__deepcopy__", lambda self, memo: Scaled(self.by, self.number), raising=False)
    keys = scored(monkeypatch)
    for _ in range(2):
        found = judge(tmp_path, Scaled(numbers, lambda _: -5.0), assay.SVD(rank=2))
    splits = len(found.record.splits) - 1
    assert sum(key.startswith("Scaled(by=<genexpr>(?), number=<lambda>(") for key in keys) == 2 * splits
    assert sum(key.startswith("SVD(rank=2)") for key in keys) == splits
    [said] = [item for item in found.record.skipped if "not cached" in item.reason]
    assert "Scaled(" in said.what
    assert "Scaled.by: a generator cannot be hashed" in said.reason
    assert Comparison.load(tmp_path).record == found.record
    assert not [item for item in judge(None, Scaled(numbers)).record.skipped if "cached" in item.reason], "no folder"


# -- labels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (table(1.0), "array(float64, 2000, "),
        (torch.zeros(3, 4), "tensor(float32, 3x4, "),
        (weighted(1.0), "Linear("),
        (list(range(2_000)), "list("),
        ("a" * 500, "str("),
        (fifth_digit, "fifth_digit("),
        ([1, 2], "[1, 2]"),
        (Scaled(table(1.0)), "Scaled(by=array("),
    ],
    ids=lambda value: type(value).__name__,
)
def test_labels_are_short_and_the_same_everywhere(value, words):
    found = label(Scaled(value))
    assert found.startswith(f"Scaled(by={words}")
    assert len(found) < 80
    assert "0x" not in found
    assert found == label(Scaled(value))


def test_an_array_is_never_taken_for_its_default():
    assert label(Scaled(np.array([None]))).startswith("Scaled(by=array(")
    assert label(Scaled()) == "Scaled()"


@dataclass
class Quiet:
    """Shows nothing of what it holds."""

    value: float

    def __repr__(self):
        return "Quiet()"


def quiet(value):
    return Scaled(Quiet(value), lambda held: held.value)


def test_different_simplifications_of_one_label_get_numbers(tmp_path, judge):
    found = judge(tmp_path, *map(quiet, (1.0, -5.0, 3.0)), controls=True)
    first = label(quiet(1.0))
    names = [first, f"{first} #2", f"{first} #3"]
    assert [verdict.proxy for verdict in found.verdicts()] == names
    assert divergence(found) == {
        name: divergence(judge(None, quiet(value)))[first] for name, value in zip(names, (1.0, -5.0, 3.0), strict=True)
    }
    own = {proxy.proxy: proxy.perturbation for proxy in found.record.proxies if not proxy.is_control}
    perturbation = f"RandomPerturbation(of={first})"
    assert list(own.values()) == [perturbation, f"{perturbation} #2", f"{perturbation} #3"]
    assert not found.to_frame().duplicated(["proxy", "trained", "split", "metric", "kind", "feature", "bin"]).any()


def test_numbers_do_not_depend_on_the_site(engine):
    found = candidates_of(engine, [quiet(1.0), quiet(2.0)], ["layer0", "layer1"], controls=True, refit=False)
    for site in ("layer0", "layer1"):
        shared = ("Identity()", "MeanAblation()")
        names = [item.name.partition(" #")[2] for item in found if item.site == site and item.name not in shared]
        assert names == ["", "2", "", "2"]


def test_equal_simplifications_are_given_twice(judge):
    for pair in ((quiet(1.0), quiet(1.0)), (Scaled(table(1.0)), Scaled(table(1.0)))):
        with pytest.raises(AssayError, match="is given twice"):
            judge(None, *pair)


# -- files ----------------------------------------------------------------------------------------------------------


def rewritten(path, **changes):
    """A cell's file with other arrays, written as anybody would."""
    with np.load(path) as data:
        arrays = {**data}
    np.savez_compressed(path, **{**arrays, **{name: change(arrays[name]) for name, change in changes.items()}})


def swapped(path):
    other = next(one for one in sorted(path.parent.glob("*.npz")) if one != path)
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


SPOILED = {
    "sums changed": lambda path: rewritten(path, sums=lambda sums: sums * 0),
    "counts changed": lambda path: rewritten(path, counts=lambda counts: counts + 1),
    "too few rows": lambda path: rewritten(path, sums=lambda sums: sums[:2], counts=lambda counts: counts[:2]),
    "too few columns": lambda path: rewritten(path, sums=lambda sums: sums[:, :2]),
    "columns of another shape": lambda path: rewritten(path, about=lambda about: np.array('{"columns": [[1, 2]]}')),
    "swapped": swapped,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "its end cut off": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "something else": lambda path: path.write_text("sums"),
    "a bit flipped": lambda path: path.write_bytes(flipped(path.read_bytes())),
}


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, subject, task):
    """A finished run of one simplification, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    return assay.compare(subject, task, [assay.SVD(rank=2)], folder=folder, **QUICK), folder


@pytest.mark.parametrize("how", SPOILED)
def test_a_cell_that_is_not_what_was_written_is_made_again_and_that_is_said(tmp_path, judge, whole, how):
    first, folder = whole
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = sorted((tmp_path / "cells").glob("*.npz"))[0]
    before = {one.name: one.read_bytes() for one in path.parent.iterdir()}
    SPOILED[how](path)
    changed = {one.name for one in path.parent.iterdir() if one.read_bytes() != before[one.name]}
    assert changed
    again = judge(tmp_path, assay.SVD(rank=2))
    assert_frame_equal(again.to_frame(), first.to_frame())
    said = [item for item in again.record.skipped if "is made again" in item.reason]
    assert {item.reason.split()[0] for item in said} == changed
    assert all(item.what.startswith("the kept cell of SVD(rank=2) at all on ") for item in said)
    assert {one.name: one.read_bytes() for one in path.parent.iterdir()} == before


def test_a_cell_is_a_zip_file_that_others_can_read(tmp_path):
    cells = Cells(tmp_path)
    scores = Scores((), np.ones((2, 0)), np.ones((2, 0), dtype=np.int64))
    cells.put("name", scores)
    assert "name" in cells
    with np.load(tmp_path / "name.npz") as data:
        assert data["sums"].shape == (2, 0)
    (tmp_path / "name.npz").rename(tmp_path / "other.npz")
    assert "other" not in cells
    assert "name" not in cells
    assert cells.damaged == {"other"}


def test_a_file_that_breaks_after_it_was_found_is_named(tmp_path):
    cells = Cells(tmp_path)
    cells.put("name", Scores((), np.ones((2, 0)), np.ones((2, 0), dtype=np.int64)))
    for content in (b"", b"PK", (tmp_path / "name.npz").read_bytes()[:60]):
        (tmp_path / "name.npz").write_bytes(content)
        with pytest.raises(AssayError, match=r"name\.npz is damaged.*remove it and run again"):
            cells["name"]


# -- proxies of something else --------------------------------------------------------------------------------------


@dataclass
class Wrong:
    """Gives something else than a proxy of the subject."""

    what: str

    streams = ()

    def fit(self, samples):
        return None if self.what == "nothing fitted" else self

    def apply(self, subject):
        if self.what == "weights changed":
            with torch.no_grad():
                next(subject.model.parameters()).mul_(1)
        return {
            "nothing": None,
            "a call of its own": Louder(subject, []),
            "an edit that is none": edited_by(subject, {"layer0.head0": 0}),
        }.get(self.what, EditedSubject(subject, []))

    def control(self):
        return None


def edited_by(subject, edit):
    proxy = EditedSubject(subject, [])
    proxy.edits = (edit,)
    return proxy


class Louder(EditedSubject):
    def __call__(self, tokens, valid=None):
        return 2 * super().__call__(tokens, valid)


WRONG = {
    "nothing": "is a NoneType, not a proxy",
    "a call of its own": "a __call__ of its own",
    "an edit that is none": "a dict among its edits",
    "weights changed": "changes the weights of",
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("within", [lambda item: item, RandomPerturbation], ids=["itself", "nested"])
def test_what_is_no_proxy_of_the_subject_is_refused(judge, what, within):
    with pytest.raises(AssayError, match=rf"Wrong\(what='{what}'\)\.apply\(subject\) .*{WRONG[what]}"):
        judge(None, within(Wrong(what)))


def test_a_fit_that_gives_nothing_is_refused(judge):
    with pytest.raises(AssayError, match=r"Wrong\(.*fit must return self"):
        judge(None, Wrong("nothing fitted"))


@pytest.mark.parametrize("what", [what for what in WRONG if what != "weights changed"])
def test_the_conformance_suite_catches_it_too(what):
    @dataclass
    class Later(Wrong):
        fitted_: bool | None = field(default=None, init=False)

        def fit(self, samples):
            self.fitted_ = True
            return self

        def apply(self, subject):
            if not self.fitted_:
                raise AssayError("fit first")
            return super().apply(subject)

    with pytest.raises(AssertionError, match=WRONG[what]):
        assay.testing.check_simplification(lambda: Later(what))


def test_a_copy_of_the_subject_is_the_subject(judge, subject):
    twin = assay.subjects.Subject(copy.deepcopy(subject.model), subject.tokenizer, "twin")
    found = judge(None, Made(twin))
    assert list(divergence(found).values()) == [0.0]


@dataclass
class Made:
    """A proxy of whatever subject it is given."""

    of: object

    streams = ()

    def fit(self, samples):
        return self

    def apply(self, subject):
        return EditedSubject(self.of, [])

    def control(self):
        return None


# -- hooks on the subject -------------------------------------------------------------------------------------------


def test_a_subject_that_got_a_hook_is_judged_anew_and_the_record_says_so(tmp_path, subject, task):
    own = assay.subjects.Subject(copy.deepcopy(subject.model), subject.tokenizer, "own", seed=0)

    def judged(folder):
        return assay.compare(own, task, [assay.SVD(rank=2)], folder=folder, **QUICK)

    plain = judged(tmp_path)
    assert "hooks" not in plain.record.subjects[0]
    own.model.transformer.h[0].mlp.register_forward_hook(lambda module, inputs, output: -3 * output)
    (tmp_path / "comparison.json").unlink()
    hooked = judged(tmp_path)
    [said] = hooked.record.subjects[0]["hooks"]
    assert said.endswith("on transformer.h.0.mlp")
    assert_frame_equal(hooked.to_frame(), judged(None).to_frame())
    assert divergence(hooked) != divergence(plain)


def test_a_hook_that_cannot_be_hashed_keeps_no_cells(tmp_path, subject, task):
    own = assay.subjects.Subject(copy.deepcopy(subject.model), subject.tokenizer, "own", seed=0)
    numbers = (number for number in range(3))
    own.model.register_forward_hook(lambda *_: numbers and None)
    found = assay.compare(own, task, [assay.SVD(rank=2)], folder=tmp_path, **QUICK)
    [said] = [item for item in found.record.skipped if "not cached" in item.reason]
    assert said.what == "cells of subject own for another run"
    assert "generator" in said.reason
    assert not list(tmp_path.glob("cells/*"))
