"""Dictionaries of several layers in force at once, without error nodes."""

import pytest
import torch

import assay
from assay import AssayError
from assay.dictionaries import (
    CrossLayerReplacement,
    CrossLayerTranscoder,
    Dictionary,
    GivenDictionary,
    Replacement,
    SparseAutoencoder,
    Transcoder,
)
from assay.engine import Engine, collect

SMALL = {"k": 3, "expansion": 2, "steps": 6, "batch": 64}


def samples_at(subject, task, site, streams=()):
    engine = Engine(subject)
    return collect(engine, task.split("train", 60), streams).at(engine.site(site))


@pytest.fixture
def tokens(task):
    return torch.from_numpy(task.split("iid", 5).tokens)


def transcoders(subject, task):
    recipe = Transcoder(**SMALL).fit(samples_at(subject, task, "all.mlp"))
    return [one for (one,) in recipe.dictionaries_.values()], recipe


def test_a_replacement_does_what_its_parts_do_together(subject, task, tokens):
    made, together = transcoders(subject, task)
    parts = [GivenDictionary(one, site=f"layer{layer}.mlp") for layer, one in enumerate(made)]
    whole = Replacement(parts)
    assert whole.own_sites(Engine(subject)) == ("+".join(part.site for part in parts),)
    proxy = whole.fit(samples_at(subject, task, "all.mlp")).apply(subject)
    assert torch.equal(proxy(tokens), together.apply(subject)(tokens))
    handles = [
        block.mlp.register_forward_hook(
            lambda module, inputs, output, one=one: one.reconstruct(inputs[0].flatten(0, 1)).view_as(output)
        )
        for block, one in zip(subject.model.transformer.h, made, strict=True)
    ]
    try:
        by_hand = subject(tokens)
    finally:
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(proxy(tokens), by_hand, rtol=1e-4, atol=1e-4)


def test_replacements_are_compared_one_layer_more_at_a_time(subject, task):
    made, _ = transcoders(subject, task)
    parts = [GivenDictionary(one, site=f"layer{layer}.mlp", unchecked=True) for layer, one in enumerate(made)]
    comparison = assay.compare(
        subject, task, [Replacement(parts[:1]), Replacement(parts)], sequences=15, fit_sequences=60, resamples=100,
        controls=False,
    )  # fmt: skip
    sites = [verdict.site for verdict in comparison.verdicts()]
    assert sites == ["layer0.mlp", "all.mlp"]


def test_up_to_layers_are_the_first_the_first_two_and_so_on(subject, task):
    engine = Engine(subject)
    assert [site.name for site in engine.sites(["all-layers.mlp", "up-to-layers.mlp"])] == [
        "layer0.mlp", "layer1.mlp", "all.mlp",
    ]  # fmt: skip
    with pytest.raises(AssayError, match=r"layer0\.mlp is meant twice"):
        engine.sites(["up-to-layers.mlp", "layer0.mlp"])
    # A dictionary at a site of two places is the one that each place has alone.
    samples = collect(engine, task.split("train", 60), ())
    both = SparseAutoencoder(**SMALL).fit(samples.at(engine.site("all.mlp")))
    alone = SparseAutoencoder(**SMALL).fit(samples.at(engine.site("layer1.mlp")))
    (place,) = alone.dictionaries_
    assert both.dictionaries_[place][0] is alone.dictionaries_[place][0]


def test_the_same_seed_and_vectors_give_the_same_bits(subject, task):
    first, again = (SparseAutoencoder(**SMALL).fit(samples_at(subject, task, "layer1.mlp")) for _ in range(2))
    other = SparseAutoencoder(seed=1, **SMALL).fit(samples_at(subject, task, "layer1.mlp"))
    (one,), (two,), (three,) = (next(iter(recipe.dictionaries_.values())) for recipe in (first, again, other))
    assert one is not two
    assert torch.equal(one.W_enc, two.W_enc)
    assert torch.equal(one.W_dec, two.W_dec)
    assert not torch.equal(one.W_enc, three.W_enc)


def cross_layer(subject, layers=2, features=10):
    width = subject.model.config.hidden_size
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator) / 3

    return CrossLayerTranscoder(
        [draw(width, features) for _ in range(layers)],
        [draw(features) for _ in range(layers)],
        [draw(features, layers - layer, width) for layer in range(layers)],
        [draw(width) for _ in range(layers)],
        threshold=[draw(features).abs() for _ in range(layers)],
    )


def test_a_cross_layer_transcoder_writes_to_all_later_layers(subject, task, tokens):
    made = cross_layer(subject)
    recipe = CrossLayerReplacement(made).fit(samples_at(subject, task, "all.mlp"))
    proxy = recipe.apply(subject)
    entered = []

    def hook(layer):
        def replace(module, inputs, output):
            entered.append(inputs[0].flatten(0, 1))
            z = [
                torch.where((u := x @ made.W_enc[at] + made.b_enc[at]) > made.threshold[at], u, 0).clamp(min=0)
                for at, x in enumerate(entered)
            ]
            found = made.b_dec[layer] + sum(own @ made.W_dec[at][:, layer - at] for at, own in enumerate(z))
            return found.view_as(output)

        return replace

    handles = [block.mlp.register_forward_hook(hook(layer)) for layer, block in enumerate(subject.model.transformer.h)]
    try:
        by_hand = subject(tokens)
    finally:
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(proxy(tokens), by_hand, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(proxy(tokens[:2]), by_hand[:2], rtol=1e-4, atol=1e-4)


def test_a_cross_layer_transcoder_is_judged_in_the_place_of_all_mlps(subject, task):
    recipe = CrossLayerReplacement(cross_layer(subject))
    comparison = assay.compare(subject, task, [recipe], sequences=15, fit_sequences=60, resamples=100)
    (verdict,) = comparison.verdicts()
    assert verdict.site == "all.mlp"
    for made in (cross_layer(subject, layers=3), cross_layer(subject)):
        wrong = CrossLayerReplacement(made)
        site = "layer0.mlp" if made.layers == 2 else "all.mlp"
        with pytest.raises(AssayError, match=r"3 layers of width|give it the site 'all\.mlp'"):
            wrong.fit(samples_at(subject, task, site))


def test_what_is_no_part_is_refused(subject, task):
    engine = Engine(subject)
    nowhere = Dictionary("relu", torch.ones(3, 5), torch.zeros(5), torch.ones(5, 3), torch.zeros(3))
    twice = [GivenDictionary(nowhere, site="layer0.mlp")] * 2
    for parts, why in (([], "no dictionary"), ([SparseAutoencoder()], "a SparseAutoencoder"), (twice, "meant twice")):
        recipe = Replacement(twice)
        recipe.parts = parts  # past the types that tests check
        with pytest.raises(AssayError, match=why):
            engine.sites(recipe.own_sites(engine))
    with pytest.raises(AssayError, match="does not say where it acts"):
        Replacement([GivenDictionary(nowhere)]).own_sites(engine)
