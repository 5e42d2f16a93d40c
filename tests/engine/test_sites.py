"""Sites are sets of places and streams, however they are written."""

import itertools
import random

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from assay import AssayError
from assay.engine import ATTENTION, BLOCK_STREAMS, HEAD_STREAMS, Block, Engine, Head, Samples, Site
from assay.subjects import Subject

LAYERS, HEADS = 3, 2


def engine_of(layers=LAYERS, heads=HEADS):
    size = {"vocab_size": 11, "n_positions": 8, "n_embd": 4 * heads, "n_layer": layers, "n_head": heads}
    config = GPT2Config(**size, bos_token_id=None, eos_token_id=None)
    return Engine(Subject(GPT2LMHeadModel(config), None, "three-layers"))


@pytest.fixture(scope="module")
def reader() -> Engine:
    return engine_of()


@pytest.mark.parametrize(
    ("written", "name", "streams"),
    [
        ("2.1", "layer2.head1", {Head(2, 1): ATTENTION}),
        ("L2H1", "layer2.head1", {Head(2, 1): ATTENTION}),
        ("L2", "layer2", {Head(2, 0): ATTENTION, Head(2, 1): ATTENTION}),
        ("L2H1.values", "layer2.head1.values", {Head(2, 1): ("values",)}),
        ("0.0.outputs", "layer0.head0.outputs", {Head(0, 0): ("outputs",)}),
        ("L1.mlp", "layer1.mlp", {Block(1): ("mlp",)}),
        ("layer0.head1+layer2.head0", "layer0.head1+layer2.head0", {Head(0, 1): ATTENTION, Head(2, 0): ATTENTION}),
        ("L2H0 + 0.1", "layer0.head1+layer2.head0", {Head(0, 1): ATTENTION, Head(2, 0): ATTENTION}),
        ("layer2.mlp+1.0", "layer1.head0+layer2.mlp", {Head(1, 0): ATTENTION, Block(2): ("mlp",)}),
        ("1.0.values+1.0", "layer1.head0+layer1.head0.values", {Head(1, 0): ("queries", "keys", "values")}),
        ("1.0.keys+1.0.queries", "layer1.head0", {Head(1, 0): ATTENTION}),
        ("1.0.keys+1.0.values", "layer1.head0.keys+layer1.head0.values", {Head(1, 0): ("keys", "values")}),
        ("1.0+1.1", "layer1", {Head(1, 0): ATTENTION, Head(1, 1): ATTENTION}),
        ("L0+L1+L2", "all", dict.fromkeys([Head(a, b) for a in range(3) for b in range(2)], ATTENTION)),
        ("L2.mlp+L0.mlp+L1.mlp", "all.mlp", {Block(0): ("mlp",), Block(1): ("mlp",), Block(2): ("mlp",)}),
        ("L1.residual+L1.mlp", "layer1.mlp+layer1.residual", {Block(1): ("mlp", "residual")}),
    ],
)
def test_notations(reader, written, name, streams):
    site = reader.site(written)
    assert (site.name, dict(site.streams)) == (name, streams)
    assert list(site.streams) == sorted(streams, key=lambda place: (isinstance(place, Block), place))
    assert reader.site(written.split("+")) == reader.site(tuple(written.split("+"))) == site
    again = reader.site(name)
    assert (again.name, again.streams) == (name, site.streams), "a name that is given back stands for itself"


def test_streams_belong_to_places(reader):
    site = reader.site("layer0.head1+layer1.head0.values+layer2.mlp")
    assert site.places == (Head(0, 1), Head(1, 0), Block(2))
    assert [site.streams_of(place) for place in site.places] == [ATTENTION, ("values",), ("mlp",)]
    assert site.read == ("queries", "keys", "values", "mlp")
    assert site.explicit
    assert not reader.site("layer0.head1+layer2").explicit


def test_every_order_of_parts_is_one_site(reader):
    parts = ["layer0.head1", "layer1.head0.values", "layer2.mlp", "layer1"]
    sites = [reader.site("+".join(order)) for order in itertools.permutations(parts)]
    assert all(site == sites[0] and list(site.streams) == list(sites[0].streams) for site in sites)
    assert sites[0].name == "layer0.head1+layer1+layer1.head0.values+layer2.mlp"


@pytest.mark.parametrize(("layers", "heads"), [(1, 1), (1, 3), (3, 1), (3, 2)])
def test_names_and_sets_are_one_to_one(layers, heads):
    """Random sets of (place, stream): the name of each stands for it, and different sets have different names."""
    engine, draw = engine_of(layers, heads), random.Random(layers + heads)
    pairs = [(place, stream) for place in engine.heads for stream in HEAD_STREAMS]
    pairs += [(place, stream) for place in engine.blocks for stream in BLOCK_STREAMS]
    names = {}
    for _ in range(200):
        chosen = draw.sample(pairs, draw.randint(2, min(9, len(pairs))))
        site = engine.site([f"{place}.{stream}" for place, stream in chosen])
        found = {(place, stream) for place, own in site.streams.items() for stream in own}
        assert found == set(chosen)
        assert engine.site(site.name).streams == site.streams
        assert names.setdefault(site.name, found) == found
    assert len(names) > 20 * min(layers * heads, 2)


def test_lists_are_sites_of_their_own(reader):
    sites = reader.sites([["layer1.head0", "layer2.mlp"], "all", ("2.1",), "all-layers.mlp"])
    assert [site.name for site in sites] == [
        "layer1.head0+layer2.mlp", "all", "layer2.head1", "layer0.mlp", "layer1.mlp", "layer2.mlp",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("layer0.head1+layer0.head1", r"layer0\.head1\.keys is meant twice"),
        ("layer0.head1+L0H1", r"'layer0\.head1\+L0H1'.*layer0\.head1\.keys is meant twice"),
        ("all+2.1", r"layer2\.head1\.keys is meant twice"),
        ("layer0+layer0.head1.queries", r"layer0\.head1\.queries is meant twice"),
        ("all.mlp+layer2.mlp", r"layer2\.mlp is meant twice"),
        ("layer0.head1+", "site '' is not in 'three-layers'"),
        ("layer0.head1+layer9", "site 'layer9' is not in"),
        ("layer0.head1+all-heads", "'all-heads' stands for many sites"),
        ("all-layers.mlp+layer0", r"'all-layers\.mlp' stands for many sites"),
        ("l2h1", "site 'l2h1' is not in"),
        ("L2H2", "site 'L2H2' is not in"),
        ("2", "site '2' is not in"),
        ("2.1.mlp", r"site '2\.1\.mlp' is not in"),
        ([], "site '' is not in"),
    ],
)
def test_what_is_no_site_is_refused(reader, written, words):
    with pytest.raises(AssayError, match=words):
        reader.site(written)


@pytest.mark.parametrize(
    "names", [["2.1", "layer2.head1"], ["1.0+L2.mlp", ["layer2.mlp", "layer1.head0"]], ["all-heads", "L1H1"]]
)
def test_one_site_twice_is_refused(reader, names):
    with pytest.raises(AssayError, match="is meant twice"):
        reader.sites(names)


def test_samples_have_streams_a_place():
    one, two = Head(0, 0), Block(1)
    vectors = {name: {one: torch.full((3, 2), float(number))} for number, name in enumerate(HEAD_STREAMS)}
    whole = Samples((one,), **vectors, mlp={two: torch.full((3, 5), 9.0)})
    here = whole.at(Site("some", {one: ("keys", "values"), two: ("mlp",)}))
    assert here.places == (one, two)
    assert [float(part.mean()) for part in here.of(one)] == [1, 2]
    assert [float(part.mean()) for part in here.of(two)] == [9]
    assert whole.streams_of(one) == ATTENTION
    assert [float(part.mean()) for part in whole.of(one)] == [0, 1]
