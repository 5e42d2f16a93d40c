"""The estimator contract, labels, and the registry with its entry points."""

from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest
import torch

import assay._registry
from assay import AssayError
from assay._registry import Registry
from assay.engine import Samples
from assay.simplify import (
    SVD,
    Identity,
    KMeans,
    OneHotAttention,
    RandomProjection,
    Simplification,
    UniformAttention,
    label,
    simplifications,
)


def each() -> list:
    return [
        SVD(rank=3),
        SVD(rank=3, joint=False, centred=True),
        KMeans(clusters=5),
        OneHotAttention(),
        RandomProjection(rank=3),
        UniformAttention(),
        Identity(),
    ]


TOKENS = torch.tensor([[8, 0, 1, 5, 4, 2, 6, 9]])


class Foreign:
    """A simplification of somebody else's."""

    streams = ()

    def __init__(self, strength: float = 1.0) -> None:
        self.strength = strength

    def fit(self, samples):
        return self

    def apply(self, subject):
        raise NotImplementedError

    def control(self):
        return None


@pytest.mark.parametrize("simplification", each(), ids=label)
def test_protocol_is_kept(simplification):
    assert isinstance(simplification, Simplification)
    assert set(simplification.streams) <= {"queries", "keys"}


@pytest.mark.parametrize("simplification", each(), ids=label)
def test_fit_returns_itself_and_leaves_parameters_and_subject_alone(simplification, subject, samples):
    before, weights = label(simplification), subject.weights_sha256
    assert simplification.fit(samples) is simplification
    proxy = simplification.apply(subject)
    assert proxy(TOKENS).shape == subject(TOKENS).shape
    assert label(simplification) == before
    assert subject.weights_sha256 == weights


@pytest.mark.parametrize("simplification", each(), ids=label)
def test_apply_before_fit_is_refused(simplification, subject):
    with pytest.raises(AssayError, match=r"has not been fitted; call fit\(samples\)"):
        simplification.apply(subject)


@pytest.mark.parametrize("simplification", [item for item in each() if item.streams], ids=label)
def test_fit_that_fails_halfway_leaves_nothing_fitted(simplification, subject, samples):
    """Otherwise a proxy could be made that is simplified at some of the heads only."""
    first, second = samples.places
    with pytest.raises(KeyError):
        simplification.fit(Samples((first, second), {first: samples.queries[first]}, {first: samples.keys[first]}))
    with pytest.raises(AssayError, match="has not been fitted"):
        simplification.apply(subject)


@pytest.mark.parametrize("number", range(len(each())))
def test_refit_forgets(number, subject, samples):
    first, second = samples.places
    other = Samples((second,), {second: samples.keys[second]}, {second: 3 * samples.queries[first]})
    refitted, fresh = each()[number].fit(samples).fit(other), each()[number].fit(other)
    proxy = refitted.apply(subject)
    assert [edit.place for edit in proxy.edits] == [second]
    assert torch.equal(proxy(TOKENS), fresh.apply(subject)(TOKENS))


@pytest.mark.parametrize("number", range(len(each())))
def test_a_proxy_keeps_what_it_was_made_of(number, subject, samples):
    """A later fit of the same object does not change a proxy that exists already."""
    first, second = samples.places
    simplification = each()[number].fit(samples)
    proxy = simplification.apply(subject)
    before = proxy(TOKENS)
    simplification.fit(Samples((second,), {second: samples.keys[second]}, {second: 3 * samples.queries[first]}))
    assert torch.equal(proxy(TOKENS), before)


@pytest.mark.parametrize("simplification", [item for item in each() if not item.streams], ids=label)
def test_recipes_without_streams_need_no_data(simplification, subject, samples):
    proxy = simplification.fit(Samples(samples.places)).apply(subject)
    assert torch.equal(proxy(TOKENS), simplification.fit(samples).apply(subject)(TOKENS))


@pytest.mark.parametrize("number", range(len(each())))
def test_fitted_objects_can_be_compared(number, samples):
    """Equality is about parameters; what was learned are tensors, whose equality is no truth value."""
    one, other = each()[number].fit(samples), each()[number].fit(samples)
    assert one == other


@pytest.mark.parametrize(
    ("simplification", "expected"),
    [
        (SVD(rank=8), "SVD(rank=8)"),
        (SVD(8, joint=True, centred=False), "SVD(rank=8)"),
        (SVD(rank=8, joint=False), "SVD(rank=8, joint=False)"),
        (KMeans(clusters=16, seed=2), "KMeans(clusters=16, seed=2)"),
        (OneHotAttention(), "OneHotAttention()"),
        (RandomProjection(rank=2, seed=0), "RandomProjection(rank=2)"),
        (Foreign(), "Foreign()"),
        (Foreign(strength=0.5), "Foreign(strength=0.5)"),
    ],
)
def test_labels(simplification, expected):
    assert label(simplification) == expected


def test_labels_do_not_show_what_was_learned(samples):
    assert label(SVD(rank=2).fit(samples)) == "SVD(rank=2)"


# -- the registry ---------------------------------------------------------------------------------------------------


def offer(monkeypatch, *entries: EntryPoint) -> None:
    """Let installed packages seem to offer these entry points."""

    def entry_points(*, group):
        return [entry for entry in entries if entry.group == group]

    monkeypatch.setattr(assay._registry, "entry_points", entry_points)


def entry(name: str, group: str = "assay.simplifications", value: str = "collections:OrderedDict") -> EntryPoint:
    return EntryPoint(name=name, value=value, group=group)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("svd:rank=8,joint=False", SVD(rank=8, joint=False)),
        ("svd:rank=8", SVD(rank=8)),
        (" svd : rank = 8 , centred = True ", SVD(rank=8, centred=True)),
        ("kmeans:clusters=16,restarts=3", KMeans(clusters=16, restarts=3)),
        ("one-hot", OneHotAttention()),
        ("one-hot:", OneHotAttention()),
        ("uniform", UniformAttention()),
        ("identity", Identity()),
        ("random-projection:rank=2,seed=5", RandomProjection(rank=2, seed=5)),
    ],
)
def test_text_makes_a_simplification(text, expected):
    built = simplifications.build(text)
    assert type(built) is type(expected)
    assert built == expected


def test_all_names_are_listed_in_order():
    ours = {"svd", "kmeans", "one-hot", "random-projection", "uniform", "identity"}
    assert ours <= set(simplifications)
    assert list(simplifications) == sorted(simplifications)


@pytest.mark.parametrize(
    ("given", "nearest"), [("sdv", "svd"), ("k-means", "kmeans"), ("onehot", "one-hot"), ("uniforn:x=1", "uniform")]
)
def test_unknown_name_is_refused_with_the_nearest(given, nearest):
    with pytest.raises(AssayError, match=f"unknown simplification.*did you mean.*'{nearest}'"):
        simplifications.build(given)


def test_unknown_name_without_neighbours_lists_all():
    with pytest.raises(AssayError, match=r"known: .*identity.*kmeans.*svd"):
        simplifications.get("zzzzzzzz")


@pytest.mark.parametrize(
    ("text", "trouble"),
    [
        ("svd", r"missing.*'rank'.*svd:rank"),
        ("svd:rank=8,ranks=8", r"'ranks'.*svd:rank"),
        ("svd:8", "'8' is not of the form name=value"),
        ("identity:rank=2", "'rank'"),
        ("svd:rank=8,=2", "svd"),
    ],
)
def test_wrong_parameters_are_refused(text, trouble):
    with pytest.raises(AssayError, match=trouble):
        simplifications.build(text)


def test_parameter_given_twice_is_refused():
    with pytest.raises(AssayError, match="rank"):
        simplifications.build("svd:rank=8,rank=4")


@dataclass
class OfFile:
    """A recipe that takes a path first."""

    path: str
    edges: int = 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("of-file:their.json", OfFile("their.json")),
        ("of-file:path=their.json", OfFile("their.json")),
        ("of-file:path='their.json'", OfFile("their.json")),
        ("of-file: /a folder/their.json , edges = 5", OfFile("/a folder/their.json", 5)),
        ("of-file:edges=5,path=their.json", OfFile("their.json", 5)),
        ("of-file:C:/runs/their.json", OfFile("C:/runs/their.json")),
        ("of-file:2026", OfFile("2026")),
        ("of-file:path=2026,edges=5", OfFile("2026", 5)),
        # What stands before the sign is no name of a parameter.
        ("of-file:runs/edges=20.json,edges=5", OfFile("runs/edges=20.json", 5)),
        ("of-file:path=edges=20.json", OfFile("edges=20.json")),
    ],
)
def test_a_path_that_comes_first_needs_no_name(text, expected):
    registry = Registry("nobody.uses.this", "thing")
    registry.register("of-file", OfFile)
    assert registry.build(text) == expected


@pytest.mark.parametrize(
    ("text", "trouble"),
    [
        ("of-file", "missing a required argument: 'path'"),
        ("of-file:", "missing a required argument: 'path'"),
        ("of-file:edges=20.json", "no path is given.*if that is the path itself, of-file:path=edges=20.json"),
        ("of-file:edges=5", "no path is given, since 'edges=5' is a parameter"),
        ("of-file:a,b.json", "'b.json' is not of the form name=value.*comma cannot be given here; rename the file"),
        ("of-file:edges=5,their.json", "'their.json' is not of the form name=value.*which comes first"),
        ("of-file:a.json,path=b.json", "path is given twice"),
        ("of-file:a.json,size=5", "'size'.*of-file.*path"),
    ],
)
def test_a_path_that_is_ambiguous_is_refused(text, trouble):
    registry = Registry("nobody.uses.this", "thing")
    registry.register("of-file", OfFile)
    with pytest.raises(AssayError, match=trouble):
        registry.build(text)


def test_name_is_taken_once():
    registry = Registry("nobody.uses.this", "thing")
    registry.register("mine", Foreign)
    with pytest.raises(AssayError, match="thing 'mine' is registered already"):
        registry.register("mine", SVD)
    assert registry.get("mine") is Foreign


def test_entry_points_are_discovered(monkeypatch):
    offer(monkeypatch, entry("theirs", value=f"{__name__}:Foreign"), entry("elsewhere", group="assay.tasks"))
    assert "theirs" in list(simplifications)
    assert "elsewhere" not in list(simplifications)
    built = simplifications.build("theirs:strength=0.25")
    assert isinstance(built, Foreign)
    assert built.strength == 0.25


def test_entry_points_are_among_the_suggestions(monkeypatch):
    offer(monkeypatch, entry("special-method"))
    with pytest.raises(AssayError, match="did you mean 'special-method'"):
        simplifications.get("specialmethod")


def test_entry_point_that_takes_our_name_is_refused(monkeypatch):
    offer(monkeypatch, entry("svd"))
    with pytest.raises(AssayError, match=r"'svd' is offered both by Assay and by .*collections:OrderedDict"):
        simplifications.build("svd:rank=2")
    assert simplifications.get("kmeans") is KMeans


def test_two_entry_points_of_one_name_are_refused(monkeypatch):
    offer(monkeypatch, entry("theirs"), entry("theirs", value="collections:Counter"))
    with pytest.raises(AssayError, match="theirs"):
        simplifications.get("theirs")


def test_entry_point_that_cannot_be_imported_is_refused(monkeypatch):
    offer(monkeypatch, entry("broken", value="no_such_module_anywhere:Thing"))
    with pytest.raises(AssayError, match="broken"):
        simplifications.get("broken")
