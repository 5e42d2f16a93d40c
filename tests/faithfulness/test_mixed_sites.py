"""Sites of several places and streams: every recipe and control acts on all of them, and cells tell them apart."""

import copy
import itertools
from dataclasses import dataclass, field

import pytest
import torch

import assay
from assay import AssayError
from assay.engine import BLOCK_STREAMS, EditedSubject, collect
from assay.faithfulness import Comparison
from assay.faithfulness._cells import MODEL, candidates_of, cell_name
from assay.simplify import Identity, MeanAblation, RandomPerturbation, RandomProjection, applied
from assay.simplify._protocol import vector_proxy

PARTS = ("layer0.head0", "layer1.head0.values", "layer1.mlp")
MIXED = "+".join(PARTS)
QUICK = {"sequences": 30, "fit_sequences": 60, "resamples": 60, "refit": False}

VECTORS = [
    assay.SVD(rank=2),
    assay.SVD(rank=2, joint=False, centred=True),
    assay.KMeans(clusters=4),
    RandomProjection(rank=2),
    MeanAblation(),
    RandomPerturbation(assay.SVD(rank=2)),
]


@pytest.fixture(scope="module")
def everything(engine, task):
    return collect(engine, task.split("train", 60), ("queries", "keys", "values", "mlp"))


@pytest.fixture(scope="module")
def tokens(task):
    return torch.from_numpy(task.split("iid", 6).tokens)


@pytest.mark.parametrize("recipe", VECTORS, ids=repr)
def test_a_set_is_simplified_as_its_parts_are(engine, everything, tokens, recipe):
    """Each place is fitted from its own vectors, so the edits are those of the parts, all at once."""
    subject = engine.subject

    def made(site):
        return applied(copy.deepcopy(recipe).fit(everything.at(engine.site(site))), subject)

    whole = made(MIXED)
    parts = EditedSubject(subject, [edit for part in PARTS for edit in made(part).edits])
    assert torch.equal(whole(tokens), parts(tokens))
    for part in PARTS:
        assert not torch.equal(whole(tokens), made(part)(tokens)), f"{part} is not all that is simplified"


@pytest.mark.parametrize("recipe", VECTORS, ids=repr)
@pytest.mark.parametrize(
    "site", ["all.attention", "layer1.after", "embeddings", "embeddings+layer0.attention+L1.after"]
)
def test_streams_of_blocks_are_sites(engine, task, tokens, recipe, site):
    where = engine.site(site)
    samples = collect(engine, task.split("train", 60), where.read).at(where)
    proxy = applied(copy.deepcopy(recipe).fit(samples), engine.subject)
    edited = {edit.place: tuple(s for s in BLOCK_STREAMS if getattr(edit, s)) for edit in proxy.edits}
    assert edited == dict(where.streams)
    assert not torch.allclose(proxy(tokens), engine.subject(tokens), atol=1e-3)


def test_an_identity_at_a_set_changes_nothing(engine, everything, tokens):
    proxy = Identity().fit(everything.at(engine.site(MIXED))).apply(engine.subject)
    changed = {str(edit.place): [name for name, value in vars(edit).items() if callable(value)] for edit in proxy.edits}
    assert changed == {"layer0.head0": ["queries", "keys", "pattern"], "layer1.head0": ["values"], "layer1": ["mlp"]}
    torch.testing.assert_close(proxy(tokens), engine.subject(tokens), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("joint", [True, False])
def test_streams_merged_at_one_place(engine, everything, joint):
    """Queries and keys share a basis where that is asked for; values have their own, whatever else is there."""
    merged = assay.SVD(rank=2, joint=joint).fit(everything.at(engine.site("layer0.head0+layer0.head0.values")))
    [queries, keys, values] = next(iter(merged.subspaces_.values()))
    attention = assay.SVD(rank=2, joint=joint).fit(everything.at(engine.site("layer0.head0"))).subspaces_
    alone = assay.SVD(rank=2, joint=joint).fit(everything.at(engine.site("layer0.head0.values"))).subspaces_
    place = engine.heads[0]
    for found, expected in zip((queries, keys, values), (*attention[place], *alone[place]), strict=True):
        assert torch.equal(found.basis, expected.basis)
    assert torch.equal(queries.basis, keys.basis) == joint


@pytest.mark.parametrize("recipe", [assay.OneHotAttention(), assay.UniformAttention()], ids=repr)
def test_recipes_of_attention_refuse_streams(engine, everything, recipe):
    for site in (MIXED, "layer0.head0+layer1.head0.values", "all.mlp", "layer0.head0.queries"):
        with pytest.raises(AssayError, match="is about attention and cannot act on"):
            candidates_of(engine, [recipe], [site], controls=True, refit=False)
        with pytest.raises(AssayError, match="is about attention and cannot act on the"):
            recipe.fit(everything.at(engine.site(site)))
    proxy = recipe.fit(everything.at(engine.site("layer0.head0+layer1.head0"))).apply(engine.subject)
    assert len(proxy.edits) == 2


@dataclass
class Counted:
    """Notes every fit; halves what it is given."""

    fits: list = field(default_factory=list)
    streams_: dict | None = field(default=None, init=False, repr=False)

    streams = ("queries", "keys")
    any_stream = True

    def __deepcopy__(self, memo):
        return Counted(self.fits)

    def fit(self, samples):
        self.streams_ = {place: samples.streams_of(place) for place in samples.places}
        self.fits.append({str(place): [len(part) for part in samples.of(place)] for place in samples.places})
        return self

    def apply(self, subject):
        return vector_proxy(self, subject, self.streams_, self.streams_, lambda _: lambda vectors: vectors / 2)

    def control(self):
        return None


def test_a_recipe_is_fitted_once_for_all_places(subject, task):
    recipe = Counted()
    assay.compare(subject, task, [recipe], sites=[PARTS], controls=False, **QUICK)
    [found] = recipe.fits
    assert {place: len(streams) for place, streams in found.items()} == {
        "layer0.head0": 2, "layer1.head0": 1, "layer1": 1,
    }  # fmt: skip


@pytest.mark.slow
def test_a_comparison_at_a_set_of_places(subject, task, tmp_path):
    recipes = [assay.SVD(rank=2), assay.KMeans(clusters=4), assay.SVD(rank=32)]
    found = assay.compare(subject, task, recipes, sites=[list(reversed(PARTS)), "1.0"], folder=tmp_path, **QUICK)
    [mixed] = {proxy.site for proxy in found.record.proxies} - {"layer1.head0"}
    assert mixed == MIXED
    assert found.record.settings["sites"] == [MIXED, "layer1.head0"]
    at_set = [proxy for proxy in found.record.proxies if proxy.site == MIXED]
    assert {proxy.heads for proxy in at_set} == {("layer0.head0", "layer1.head0", "layer1")}
    controls = {proxy.proxy for proxy in at_set if proxy.is_control}
    assert controls == {
        "RandomProjection(rank=2)", "RandomProjection(rank=32)", "MeanAblation()", "Identity()",
        "RandomPerturbation(of=SVD(rank=2))", "RandomPerturbation(of=KMeans(clusters=4))",
        "RandomPerturbation(of=SVD(rank=32))",
    }  # fmt: skip
    [clusters] = [proxy for proxy in at_set if proxy.proxy == "KMeans(clusters=4)"]
    assert clusters.control == "MeanAblation()", "uniform attention is for attention alone"
    assert found.agreement("iid").query("site == @MIXED")["estimate"].between(0, 1).all()
    assert all(not proxy.logit_difference or None not in proxy.logit_difference.values() for proxy in at_set)
    again = assay.compare(subject, task, recipes, sites=[PARTS, "L1H0"], folder=tmp_path, **QUICK)
    assert again.to_frame().equals(found.to_frame()), "the same set, written differently, is the same study"
    assert Comparison.load(tmp_path).record.settings == found.record.settings


def names_of_cells(engine, task, *sites):
    [described] = [engine.subject.describe()]
    for site in sites:
        [item] = candidates_of(engine, [assay.SVD(rank=2)], [site], controls=False, refit=False)
        yield cell_name(described, task, item, fingerprints=[], fitted_on="a", judged_on="b", positions="all", seed=0)


def test_cells_of_one_set_are_one_and_of_different_sets_different(engine, task):
    for order in itertools.permutations(PARTS):
        assert len(set(names_of_cells(engine, task, MIXED, "+".join(order), list(order)))) == 1
    same = ("layer0+layer1", "all", "L0H0+1.0", "layer1.head0.keys+layer0+layer1.head0.queries")
    assert len(set(names_of_cells(engine, task, *same))) == 1
    different = (
        "all", "all.queries", "all.mlp", "all.values", "layer0", "layer1", "layer0+layer1.values", "layer0+layer1.keys",
        "layer0.values+layer1", "layer0.values+layer1.values+layer0", "layer0.mlp", "layer0.residual",
        "layer0.mlp+layer0.residual", "layer0.mlp+layer1.residual", "layer1.mlp+layer0.residual", MIXED,
    )  # fmt: skip
    assert len(set(names_of_cells(engine, task, *different))) == len(different)


def test_what_replaces_a_model_has_no_places():
    assert (MODEL.places, MODEL.read, MODEL.explicit) == ((), (), False)


def test_a_session_fits_at_a_set(engine, everything, task, tokens):
    found = assay.testing.Session().proxy(engine.subject, assay.SVD(rank=2), task, site=PARTS, sequences=60)
    expected = assay.SVD(rank=2).fit(everything.at(engine.site(MIXED))).apply(engine.subject)
    assert torch.equal(found(tokens), expected(tokens))
