"""Dictionaries as simplifications: the contract, what is learned, what is saved, and what is refused."""

import dataclasses
import math

import pytest
import torch

import assay
from assay import AssayError
from assay.dictionaries import Dictionary, GivenDictionary, RandomDictionary, SparseAutoencoder, Transcoder, measure
from assay.engine import Block, Engine, collect
from assay.simplify import representation_bits, simplifications
from assay.testing import check_simplification

SITE = "layer1.residual"
SMALL = {"k": 3, "expansion": 2, "steps": 6, "batch": 64}


def fitted(recipe, subject, task, site=SITE, count=150):
    engine = Engine(subject)
    return recipe.fit(collect(engine, task.split("train", count), ()).at(engine.site(site)))


def test_the_contract_of_autoencoders():
    sites = ["all", "layer0.residual+layer1.mlp", "layer0.head1.values"]
    check_simplification(lambda: SparseAutoencoder(**SMALL), sites=sites)


@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka", "relu", "gated", "jumprelu"])
def test_the_contract_of_other_kinds(kind):
    check_simplification(lambda: SparseAutoencoder(kind=kind, **SMALL), sites=["layer1.residual"])


def test_the_contract_of_random_dictionaries():
    check_simplification(lambda: RandomDictionary(k=3, expansion=2), sites=["layer1.residual", "layer0.head1.values"])
    check_simplification(lambda: RandomDictionary(k=3, expansion=2, transcodes=True), sites=["layer0.mlp"])


def test_the_contract_of_transcoders():
    check_simplification(lambda: Transcoder(skip=True, **SMALL), sites=["all.mlp"])


def test_what_stands_in_is_what_the_dictionary_makes_of_the_vectors(subject, task):
    """By hooks of torch alone: the residual stream before block 1 replaced by its reconstruction."""
    recipe = fitted(SparseAutoencoder(**SMALL), subject, task)
    ((dictionary,),) = recipe.dictionaries_.values()
    tokens = torch.from_numpy(task.split("iid", 6).tokens)

    def replace(module, inputs):
        states = inputs[0]
        return (dictionary.reconstruct(states.flatten(0, 1)).view_as(states), *inputs[1:])

    handle = subject.model.transformer.h[1].register_forward_pre_hook(replace)
    try:
        by_hand = subject(tokens)
    finally:
        handle.remove()
    torch.testing.assert_close(recipe.apply(subject)(tokens), by_hand, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(by_hand, subject(tokens), atol=1e-2)


def test_a_transcoder_stands_for_its_mlp(subject, task):
    recipe = fitted(Transcoder(**SMALL), subject, task, "layer1.mlp")
    ((transcoder,),) = recipe.dictionaries_.values()
    tokens = torch.from_numpy(task.split("iid", 6).tokens)

    def replace(module, inputs, output):
        return transcoder.reconstruct(inputs[0].flatten(0, 1)).view_as(output)

    handle = subject.model.transformer.h[1].mlp.register_forward_hook(replace)
    try:
        by_hand = subject(tokens)
    finally:
        handle.remove()
    torch.testing.assert_close(recipe.apply(subject)(tokens), by_hand, rtol=1e-4, atol=1e-4)
    assert transcoder.transcodes
    assert not transcoder.pre_bias


def test_training_beats_its_control(subject, task):
    """On vectors in few directions, far from random ones."""
    recipe = SparseAutoencoder(k=4, expansion=2, steps=300, batch=256)
    found = fitted(recipe, subject, task).measures_[SITE]
    control = fitted(recipe.control(), subject, task).measures_[SITE]
    assert found.explained > control.explained + 0.2
    assert found.l0 == pytest.approx(4, abs=0.2)
    assert control.explained > 0, "its one length is fitted, so it does no worse than the mean"


def test_a_control_is_fitted_by_least_squares_and_drawn_again(subject, task):
    control = fitted(RandomDictionary(features=20, k=3), subject, task)
    ((one,),) = control.dictionaries_.values()
    rows = collect(Engine(subject), task.split("train", 150), ("residual",)).residual[Block(1)]
    explained = measure(one, rows).explained
    for factor in (0.9, 1.1):
        other = Dictionary("topk", one.W_enc, one.b_enc, one.W_dec * factor, one.b_dec, k=3, pre_bias=True)
        assert measure(other, rows).explained < explained
    norms = one.W_dec.norm(dim=1)
    torch.testing.assert_close(norms, norms[:1].expand_as(norms))
    again = fitted(control.redrawn(1), subject, task)
    ((other,),) = again.dictionaries_.values()
    assert abs(float((other.W_enc * one.W_enc).sum() / one.W_enc.square().sum())) < 0.5


def test_rows_limit_what_is_learned_from(subject, task):
    """With as many rows as there are the same rows are seen; with few, a dictionary learns these by heart."""
    few = fitted(SparseAutoencoder(rows=64, k=4, expansion=4, steps=200, batch=64), subject, task)
    many = fitted(SparseAutoencoder(k=4, expansion=4, steps=200, batch=64), subject, task)
    assert few.measures_[SITE].explained < many.measures_[SITE].explained


def test_bits_count_a_subset_and_not_an_order(subject, task):
    recipe = fitted(SparseAutoencoder(**SMALL), subject, task)
    width = subject.model.config.hidden_size
    features = 2 * width
    bits = representation_bits(recipe, width=width, length=10, vectors=1)
    assert bits.per_position == pytest.approx(math.log2(math.comb(features, 3)) + 3 * 16)
    assert bits.codebook == 16 * (2 * features * width + features + width)
    varying = fitted(SparseAutoencoder(kind="batchtopk", **SMALL), subject, task)
    l0 = varying.measures_[SITE].l0
    found = representation_bits(varying, width=width, length=10, vectors=1, precision=6).per_position
    chosen = (math.lgamma(features + 1) - math.lgamma(l0 + 1) - math.lgamma(features - l0 + 1)) / math.log(2)
    assert found == pytest.approx(chosen + math.log2(features + 1) + 6 * l0)
    with pytest.raises(AssayError, match="not been fitted"):
        representation_bits(SparseAutoencoder(), width=width, length=10)


@pytest.mark.parametrize(
    ("recipe", "site"),
    [
        (SparseAutoencoder(**SMALL), "layer0.residual+layer1.mlp"),
        (SparseAutoencoder(kind="gated", **SMALL), SITE),
        (Transcoder(skip=True, **SMALL), "all.mlp"),
        (RandomDictionary(k=2, expansion=1), "layer1.head0.values"),
    ],
    ids=["autoencoder", "gated", "transcoder", "random"],
)
def test_what_was_fitted_is_saved_and_loaded(recipe, site, subject, task, tmp_path):
    proxy = fitted(recipe, subject, task, site).apply(subject)
    proxy.save(tmp_path / "kept")
    again = assay.load_proxy(tmp_path / "kept", subject, simplification=type(recipe))
    tokens = torch.from_numpy(task.split("iid", 4).tokens)
    assert torch.equal(again(tokens), proxy(tokens))
    assert again.simplification == recipe
    assert again.simplification.measures_ == recipe.measures_


@pytest.mark.parametrize(
    "wrong",
    [
        {"k": 0},
        {"k": 2.5},
        {"k": True},
        {"k": 10_000},
        {"kind": "temporal"},
        {"expansion": -1},
        {"features": 0},
        {"steps": 0},
        {"batch": "many"},
        {"lr": 0.0},
        {"lr": math.nan},
        {"penalty": -1.0, "kind": "relu"},
        {"penalty": 1.0},
        {"rows": 0},
        {"features": 100_000},
    ],
    ids=str,
)
def test_parameters_that_no_dictionary_has_are_refused(wrong, subject, task):
    for kind, site in ((SparseAutoencoder, SITE), (Transcoder, "layer1.mlp")):
        recipe = kind(**SMALL)
        for name, value in wrong.items():
            setattr(recipe, name, value)  # past the types that tests check
        with pytest.raises(AssayError) as caught:
            fitted(recipe, subject, task, site)
        assert "\n" not in str(caught.value)


def test_a_transcoder_is_for_mlps(subject, task):
    for site in (SITE, "layer1", "layer1.head0.values"):
        with pytest.raises(AssayError, match="stands for an MLP"):
            fitted(Transcoder(**SMALL), subject, task, site)


# -- dictionaries of files -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(subject, task):
    recipe = SparseAutoencoder(k=6, expansion=4, steps=200, batch=256)
    ((dictionary,),) = fitted(recipe, subject, task).dictionaries_.values()
    return dictionary


def test_a_given_dictionary_does_as_the_trained_one(subject, task, trained, tmp_path):
    trained.save(tmp_path / "sae")
    given = GivenDictionary(tmp_path / "sae", site=SITE)
    comparison = assay.compare(subject, task, [given], sequences=20, fit_sequences=100, resamples=200)
    (verdict,) = comparison.verdicts()
    assert verdict.site == SITE
    proxy = fitted(GivenDictionary(trained, site=SITE), subject, task).apply(subject)
    tokens = torch.from_numpy(task.split("iid", 4).tokens)
    recipe = fitted(SparseAutoencoder(k=6, expansion=4, steps=200, batch=256), subject, task)
    assert torch.equal(proxy(tokens), recipe.apply(subject)(tokens))
    assert f"{trained.features} features" in verdict.proxy.replace(",", "")


@pytest.mark.parametrize(("right", "wrong"), [("layer1.mlp", "layer0.mlp"), ("layer1.mlp", "layer0.residual")])
def test_a_given_dictionary_at_the_wrong_place_is_found_out(right, wrong, subject, task):
    splits = [task.split("train", 60)]
    ((dictionary,),) = fitted(
        SparseAutoencoder(k=6, expansion=4, steps=200, batch=256), subject, task, right
    ).dictionaries_.values()
    own = GivenDictionary(dictionary, site=right)
    own.check(subject, splits)
    assert own.caution is None
    with pytest.raises(AssayError, match=f"it explains 0.[5-9][0-9] at {right}: .* give site='{right}'"):
        GivenDictionary(dictionary, site=wrong).check(subject, splits)
    GivenDictionary(dictionary, site=wrong, unchecked=True).check(subject, splits)


def test_a_dictionary_of_a_centred_model_is_found_out(subject, task, trained):
    """It was trained on vectors without their mean: on a model with a mean far from 0, it fails, and says why."""
    rows = collect(Engine(subject), task.split("train", 100), ("residual",)).residual[Block(1)]
    moved = Dictionary(
        "topk", trained.W_enc, trained.b_enc - 1000 * trained.W_enc.sum(dim=0), trained.W_dec, trained.b_dec + 1000,
        k=6, pre_bias=False,
    )  # fmt: skip
    assert measure(moved, rows).explained < 0
    with pytest.raises(AssayError, match="another model, hook or scale"):
        GivenDictionary(moved, site=SITE).check(subject, [task.split("train", 60)])


def test_a_transcoder_of_a_norms_output_before_its_weight_and_bias(subject, task):
    """By hooks of torch alone: it encodes what the norm gives with its weight and bias taken off."""
    width = subject.model.config.hidden_size
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator) / 3

    norm, mlp = subject.model.transformer.h[1].ln_2, subject.model.transformer.h[1].mlp
    kept = {name: parameter.detach().clone() for name, parameter in norm.named_parameters()}
    try:
        with torch.no_grad():
            norm.weight.copy_(1 + draw(width).abs())
            norm.bias.copy_(draw(width))
        made = Dictionary(
            "gated", draw(width, 20), draw(20), draw(20, width), draw(width), r_mag=draw(20), b_mag=draw(20).abs(),
            W_skip=draw(width, width), pre_bias=True, transcodes=True,
            origin={"hook": "blocks.1.ln2.hook_normalized", "hook_out": "blocks.1.hook_mlp_out"},
        )  # fmt: skip
        given = GivenDictionary(made, unchecked=True)
        assert given.own_sites(Engine(subject)) == ("layer1.mlp",)
        proxy = fitted(given, subject, task, "layer1.mlp").apply(subject)
        tokens = torch.from_numpy(task.split("iid", 4).tokens)

        def replaced(module, inputs, output):
            plain = (inputs[0].flatten(0, 1) - norm.bias) / norm.weight
            return made.reconstruct(plain).view_as(output)

        handle = mlp.register_forward_hook(replaced)
        try:
            by_hand = subject(tokens)
        finally:
            handle.remove()
        torch.testing.assert_close(proxy(tokens), by_hand, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(by_hand, subject(tokens), atol=1e-2)
        normalizing = dataclasses.replace(made, normalization="layer_norm")
        with pytest.raises(AssayError, match="behind a norm: this dictionary normalizes what it encodes"):
            fitted(GivenDictionary(normalizing, unchecked=True), subject, task, "layer1.mlp")
    finally:
        with torch.no_grad():
            for name, parameter in norm.named_parameters():
                parameter.copy_(kept[name])


def test_widths_that_do_not_fit_are_refused(subject, task, trained):
    narrow = Dictionary("relu", torch.ones(3, 5), torch.zeros(5), torch.ones(5, 3), torch.zeros(3))
    for ask in (
        lambda: GivenDictionary(narrow, site=SITE).check(subject, [task.split("train", 30)]),
        lambda: fitted(GivenDictionary(narrow, site=SITE), subject, task),
    ):
        with pytest.raises(AssayError, match=f"takes 3 numbers, and {SITE} .* has {trained.width}"):
            ask()


def test_the_control_of_a_given_dictionary_has_as_many_features_on(subject, task, trained):
    varying = Dictionary(
        "jumprelu", trained.W_enc, trained.b_enc, trained.W_dec, trained.b_dec,
        threshold=torch.full((trained.features,), 0.5), pre_bias=True,
    )  # fmt: skip
    given = GivenDictionary(varying, site=SITE, unchecked=True)
    with pytest.raises(AssayError, match="is known once"):
        given.control()
    l0 = fitted(given, subject, task).measures_[SITE].l0
    assert given.control().k == max(1, round(l0))


def test_sae_is_one_that_is_trained_or_one_of_a_file(trained, tmp_path):
    from assay.dictionaries import sparse_autoencoder  # noqa: PLC0415

    trained.save(tmp_path / "sae")
    assert sparse_autoencoder(k=8) == SparseAutoencoder(k=8)
    assert isinstance(sparse_autoencoder(str(tmp_path / "sae"), site=SITE), GivenDictionary)
    for wrong in ({"widht": 3}, {"path": str(tmp_path / "sae"), "k": 3}, {"site": SITE}, {"scale": 2.0, "k": 3}):
        with pytest.raises(AssayError):
            sparse_autoencoder(**wrong)
    assert {"sae", "transcoder", "given-dictionary", "random-dictionary"} <= set(simplifications)
