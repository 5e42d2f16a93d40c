"""The interaction basis: linear maps with known answers, Jacobians written out, and what a fitted one keeps to."""

import copy

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group

import assay
from assay import AssayError
from assay.engine import Block, Edit, Engine, Samples, collect
from assay.simplify import SVD, InteractionBasis, applied
from assay.simplify import _interaction_basis as module
from assay.simplify._interaction_basis import basis_of, moments
from assay.testing._simplifications import _sequences, small_gpt2


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def basis_for(x: torch.Tensor, weight: torch.Tensor) -> module.Basis:
    """That of vectors followed by the linear map x @ weight, whose derivative is the same everywhere."""
    return basis_of(*moments(x), weight @ weight.T)


def replaced(basis: module.Basis, x: torch.Tensor) -> torch.Tensor:
    return basis.edit()(x[None])[0]


# -- linear maps ----------------------------------------------------------------------------------------------------


@pytest.fixture
def planted() -> tuple[torch.Tensor, torch.Tensor]:
    """Activations of rank 8 in 12 dimensions, away from 0, and a map of rank 5."""
    return drawn(500, 8, seed=0) @ drawn(8, 12, seed=1) + 3, drawn(12, 5, seed=2) @ drawn(5, 9, seed=3)


def test_as_many_features_as_vectors_vary_and_the_map_reads(planted):
    x, weight = planted
    found = basis_for(x, weight)
    assert found.into.shape == (12, 5)
    features = (x - x.mean(dim=0)) @ found.into
    np.testing.assert_allclose(features.T @ features / len(x), np.diag(found.sizes), atol=1e-10 * found.sizes.max())
    assert (found.sizes.diff() <= 0).all()
    np.testing.assert_allclose(found.back @ found.into, np.eye(5), atol=1e-8)
    np.testing.assert_allclose(replaced(found, x) @ weight, x @ weight, atol=1e-9)
    assert (replaced(found, x) - x).abs().max() > 0.1, "what the map does not read is left out"


def test_another_parametrisation_of_the_same_map_has_the_same_features(planted):
    x, weight = planted
    change = drawn(12, 12, seed=4)
    one, other = basis_for(x, weight), basis_for(x @ change, torch.linalg.inv(change) @ weight)
    np.testing.assert_allclose(other.sizes, one.sizes, rtol=1e-9)
    features, again = ((y - y.mean(dim=0)) @ basis.into for y, basis in ((x, one), (x @ change, other)))
    np.testing.assert_allclose(again * (again * features).sum(dim=0).sign(), features, atol=1e-7)
    for count in (1, 3):
        kept, same = replaced(one.first(count), x), replaced(other.first(count), x @ change)
        np.testing.assert_allclose(same, kept @ change, atol=1e-7)


def test_what_is_lost_is_the_sum_of_the_sizes_left_out_and_no_subspace_loses_less(planted):
    x, weight = planted
    found = basis_for(x, weight)
    mean, covariance = moments(x)
    components = torch.linalg.eigh(covariance).eigenvectors.flip(1)
    for count in range(1, 5):
        lost = ((replaced(found.first(count), x) - x) @ weight).square().sum(dim=1).mean()
        assert float(lost) == pytest.approx(float(found.sizes[count:].sum()), rel=1e-9)
        directions = components[:, :count]
        by_variance = mean + (x - mean) @ directions @ directions.T
        assert lost < ((by_variance - x) @ weight).square().sum(dim=1).mean()


def test_a_direction_that_is_dead_in_distribution_is_lost_where_it_is_alive():
    """Its energy times the weight behind it is the whole error."""
    x, weight = drawn(400, 12, seed=5), drawn(12, 9, seed=6)
    direction = torch.linalg.qr(drawn(12, 1, seed=7)).Q[:, 0]
    x -= torch.outer(x @ direction, direction)
    found = basis_for(x, weight)
    assert found.into.shape == (12, 9)
    amounts = drawn(300, seed=8) * 2 + 1
    shifted = x[:300] + torch.outer(amounts, direction)
    inside, outside = (((replaced(found, y) - y) @ weight).square().sum(dim=1).mean() for y in (x, shifted))
    assert float(inside) < 1e-20
    expected = amounts.square().mean() * (direction @ weight).square().sum()
    assert float(outside) == pytest.approx(float(expected), rel=1e-6)
    assert float(outside) > 1


def test_two_blocks_that_do_not_interact_come_apart():
    """Isotropic vectors, turned, before a map of two blocks: no feature is in both, and principal components are."""
    blocks = torch.block_diag(drawn(4, 4, seed=9), drawn(4, 4, seed=10))
    isotropic = torch.linalg.qr(drawn(1000, 8, seed=11)).Q * 1000**0.5
    turned = torch.from_numpy(ortho_group.rvs(8, random_state=12))
    found = basis_of(
        torch.zeros(8, dtype=torch.float64), isotropic.T @ isotropic / 1000, turned.T @ blocks @ blocks.T @ turned
    )

    def off_block(into: torch.Tensor) -> float:
        """The share of all squared interactions that features have outside the block in which they have most."""
        interactions = (torch.linalg.pinv(into) @ turned.T @ blocks).square()
        sides = torch.stack((interactions[:, :4].sum(dim=1), interactions[:, 4:].sum(dim=1)))
        return float(sides.min(dim=0).values.sum() / sides.sum())

    sample = isotropic @ turned
    components = torch.linalg.eigh(moments(sample)[1]).eigenvectors
    assert off_block(found.into) < 1e-12
    assert off_block(components) > 0.05


def test_vectors_that_do_not_vary_or_that_nothing_reads_have_no_features():
    x, weight = drawn(50, 4, seed=13), drawn(4, 3, seed=14)
    for one, other in ((x * 0 + 2, weight), (x, weight * 0)):
        found = basis_for(one, other)
        assert found.into.shape == (4, 0)
        torch.testing.assert_close(replaced(found, one), one.mean(dim=0).expand_as(one))


# -- a model --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    return small_gpt2()


@pytest.fixture(scope="module")
def collected(small):
    streams = ("queries", "keys", "values", "mlp", "residual", "after")
    return collect(Engine(small), _sequences(0), streams)


def following(samples: Samples, *, local: bool = True):
    return module._Following(samples.subject, samples.split, samples, local=local, seed=0)


def test_influences_are_those_of_jacobians_written_out(small, collected, monkeypatch):
    """Of the last node by the whole derivative of the logits, of the one before it in coordinates of the last one."""
    monkeypatch.setattr(module, "SOURCES", 150)
    body, head = small.model.transformer, small.model.lm_head
    samples = collected.at(Engine(small).site("layer0.residual"))
    with module.frozen(small.model):
        follows = following(samples)
        (_,) = follows.bases(Block(0))
        estimates = (
            follows._influences[0, 1][Block(0), "residual"],
            follows.influences({(Block(1), "residual"): torch.zeros(16)}, 2),
        )
        into = follows.node(1).into

    def logits(entering: torch.Tensor) -> torch.Tensor:
        found = head(body.ln_f(body.h[1](entering[None])))[0]
        return found - found.mean(dim=-1, keepdim=True)

    def features(entering: torch.Tensor) -> torch.Tensor:
        return body.h[0](entering[None])[0] @ into

    split = _sequences(0)
    run = Engine(small).run(torch.from_numpy(split.tokens), read=("residual",))
    for function, layer, estimate in (
        (logits, 1, estimates[1][Block(1), "residual"]),
        (features, 0, estimates[0]),
    ):
        exact = torch.zeros(16, 16, dtype=torch.float64)
        for row in run.residual[layer].clone():
            jacobian = torch.autograd.functional.jacobian(function, row, vectorize=True)
            each = jacobian.flatten(0, 1)  # (output, position, width)
            exact += torch.einsum("opi,opj->ij", each, each)
        exact /= split.tokens.size
        assert float((estimate - exact).norm() / exact.norm()) < 0.1


@pytest.mark.parametrize("site", ["layer1.residual", "layer0.head1.values", "layer1.mlp"])
def test_derivatives_on_a_line_add_up_to_the_change_from_the_mean(small, collected, monkeypatch, site):
    """Integrated gradients are complete: for every choice of signs they give what the outputs changed by."""
    monkeypatch.setattr(module, "POINTS", 24)
    monkeypatch.setattr(module, "SOURCES", 3)
    (place,) = Engine(small).site(site).places
    samples = collected.at(Engine(small).site(site))
    (stream,), (vectors,) = samples.streams_of(place), samples.of(place)
    mean = vectors.double().mean(dim=0)
    tokens = torch.from_numpy(_sequences(0).tokens[:4])
    with module.frozen(small.model):
        follows = following(samples, local=False)
        behind = follows._behind(place, stream)
        into = None if behind == 2 else follows.node(1).into
        found = follows._gradients(tokens, torch.ones_like(tokens), {(place, stream): mean}, behind, "draw")
    engine = Engine(small)
    runs = [
        engine.run(tokens, edits=edits, read=(stream, "residual"))
        for edits in ([], [Edit(place, **{stream: mean.expand_as})])
    ]
    whole, ablated = (run.logits if behind == 2 else run.residual[1] for run in runs)
    states = getattr(runs[0], stream)[place.layer]
    own = states if isinstance(place, Block) else states[:, place.head]
    for source, gradients in enumerate(found):
        signs = follows._signs(whole, into, f"draw {source}")
        expected = ((whole - ablated) * signs).sum()
        assert float((gradients[place, stream] * (own - mean)).sum()) == pytest.approx(float(expected), rel=2e-3)


@pytest.mark.parametrize(("site", "kept"), [("layer0.mlp", 15), ("layer1.head0.values", 8), ("layer1.after", 15)])
def test_all_features_are_the_subject_and_half_of_them_are_not(small, collected, site, kept):
    """Norms take off the mean of what is added to the residual stream: one direction of it is read by nothing."""
    tokens = torch.from_numpy(_sequences(1).tokens)
    samples = collected.at(Engine(small).site(site))
    (place,), (vectors,) = samples.places, samples.of(samples.places[0])
    fitted = InteractionBasis(vectors.shape[1]).fit(samples)
    assert fitted.bases_[place][0].into.shape == (vectors.shape[1], kept)
    torch.testing.assert_close(fitted.apply(small)(tokens), small(tokens), atol=1e-4, rtol=0)
    half = InteractionBasis(vectors.shape[1] // 2).fit(samples)
    assert (half.apply(small)(tokens) - small(tokens)).abs().max() > 0.1


def test_the_model_is_left_as_it_was(small, collected):
    asked = [parameter.requires_grad for parameter in small.model.parameters()]
    before = small.weights_sha256
    InteractionBasis(4).fit(collected.at(Engine(small).site("all.residual")))
    assert [parameter.requires_grad for parameter in small.model.parameters()] == asked
    assert all(parameter.grad is None for parameter in small.model.parameters())
    assert small.weights_sha256 == before
    with torch.inference_mode():
        inside = InteractionBasis(4).fit(collected.at(Engine(small).site("layer1.residual")))
    assert inside.bases_[Block(1)][0].into.shape == (16, 4)


def test_signs_are_drawn_from_the_seed(small, collected):
    samples = collected.at(Engine(small).site("layer1.residual"))
    one, same, other = (InteractionBasis(4, seed=seed).fit(samples).bases_[Block(1)][0].into for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("local", [True, False])
def test_a_saved_one_comes_back(small, collected, tmp_path, local):
    samples = collected.at(Engine(small).site("layer0.head0.values+layer1.mlp"))
    proxy = applied(InteractionBasis(3, local=local, seed=5).fit(samples), small)
    again = assay.load_proxy(proxy.save(tmp_path / "saved"), small)
    assert again.simplification == InteractionBasis(3, local=local, seed=5)
    tokens = torch.from_numpy(_sequences(1).tokens)
    assert torch.equal(again(tokens), proxy(tokens))
    again.save(tmp_path / "twice")
    assert (tmp_path / "twice" / "tensors.safetensors").read_bytes() == (
        tmp_path / "saved" / "tensors.safetensors"
    ).read_bytes()


def test_the_control_is_pca_of_equal_size():
    assert InteractionBasis(5).control() == SVD(5, joint=False, centred=True)


def test_it_is_judged_beside_its_control_and_refitted(subject, task):
    options = {"sites": ["layer1.mlp"], "sequences": 10, "fit_sequences": 30, "resamples": 20}
    comparison = assay.compare(subject, task, [InteractionBasis(4)], **options)
    records = {record.proxy: record for record in comparison.record.proxies}
    assert records["InteractionBasis(features=4)"].control == "SVD(rank=4, joint=False, centred=True)"
    assert records["SVD(rank=4, joint=False, centred=True)"].is_control
    gaps = comparison.gaps().query("proxy == 'InteractionBasis(features=4)'")
    assert np.isfinite(gaps["removed"]).any()


def test_what_does_not_fit_is_refused(small, collected):
    samples = collected.at(Engine(small).site("layer1.mlp"))
    with pytest.raises(
        AssayError, match=r"InteractionBasis\(features=17\): vectors of layer1 have width 16, so features must"
    ):
        InteractionBasis(17).fit(samples)
    with pytest.raises(AssayError, match="features must be a whole number of at least 1"):
        InteractionBasis(0).fit(samples)
    with pytest.raises(AssayError, match=r"take samples from assay\.engine\.collect"):
        InteractionBasis(2).fit(Samples((Block(1),), mlp=samples.mlp, streams=samples.streams))
    with pytest.raises(AssayError, match="has not been fitted"):
        copy.deepcopy(InteractionBasis(2)).apply(small)
