"""Low rank: optimal in the sense that is claimed, and nothing at full rank."""

import pytest
import torch
from test_pruning import inputs_of

import assay.models._low_rank
from assay import AssayError
from assay.engine import Engine, Samples, collect
from assay.models import LowRankWeights, RandomFactors
from assay.models._weights import linears


@pytest.fixture(scope="module")
def samples(each, sequences):
    return collect(Engine(each), sequences, ())


def rank_of(weight):
    return int(torch.linalg.matrix_rank(weight.double(), rtol=1e-5))


def test_by_weights_is_the_truncated_decomposition(each, samples):
    recipe = LowRankWeights(rank=3).fit(samples)
    for one in linears(each):
        u, s, v = torch.linalg.svd(one.weight.double(), full_matrices=False)
        torch.testing.assert_close(recipe.changed(one).double(), u[:, :3] @ s[:3].diag() @ v[:3], rtol=0, atol=1e-5)


def test_by_activation_is_the_decomposition_of_weighted_weights(each, samples, sequences):
    """As the paper writes it: cut W L, then multiply by the inverse of L."""
    recipe = LowRankWeights(rank=3, by="activation").fit(samples)
    for one in linears(each):
        inputs = inputs_of(each, sequences, one.name)
        moment = inputs.T @ inputs
        moment += 1e-6 * moment.diagonal().mean() * torch.eye(len(moment), dtype=torch.float64)
        root = torch.linalg.cholesky(moment)
        u, s, v = torch.linalg.svd(one.weight.double() @ root, full_matrices=False)
        expected = u[:, :3] @ s[:3].diag() @ v[:3] @ torch.linalg.inv(root)
        torch.testing.assert_close(recipe.changed(one).double(), expected, rtol=0, atol=2e-4)


def test_by_activation_no_other_matrix_of_the_rank_has_closer_outputs(each, samples, sequences):
    """Neither plain decomposition, nor small moves of its factors, nor random subspaces; and the least is known."""
    by_activation, plain = (LowRankWeights(rank=3, by=by).fit(samples) for by in ("activation", "weights"))
    generator = torch.Generator().manual_seed(0)
    for one in linears(each)[:4]:
        inputs, weight = inputs_of(each, sequences, one.name), one.weight.double()

        def error(other, inputs=inputs, weight=weight):
            return float((inputs @ (other - weight).T).norm())

        best = by_activation.changed(one).double()
        assert rank_of(best) == 3
        least = error(best)
        assert least == pytest.approx(float(torch.linalg.svdvals(inputs @ weight.T)[3:].norm()), rel=1e-3)
        assert error(plain.changed(one).double()) > least
        u, s, v = torch.linalg.svd(best, full_matrices=False)
        left, right = u[:, :3] * s[:3], v[:3]
        for size in (1e-3, 1e-2, 0.1, 1.0):
            for _ in range(10):
                moved = [
                    part + size * part.norm() / part.numel() ** 0.5
                    * torch.randn(part.shape, generator=generator, dtype=torch.float64)
                    for part in (left, right)
                ]  # fmt: skip
                assert error(moved[0] @ moved[1]) > least


def test_full_rank_is_the_model(each, samples, tokens):
    for by in ("weights", "activation"):
        proxy = LowRankWeights(rank=16, by=by).fit(samples).apply(each)
        torch.testing.assert_close(proxy(tokens), each(tokens), rtol=0, atol=1e-5)
        errors = [
            float((LowRankWeights(rank, by=by).fit(samples).apply(each)(tokens) - each(tokens)).norm())
            for rank in (2, 8, 15)
        ]
        assert errors[0] > errors[1] > errors[2] > 0


def test_second_moments_in_several_passes_are_the_same(small, sequences, monkeypatch):
    samples = collect(Engine(small), sequences, ())
    once = LowRankWeights(rank=3, by="activation").fit(samples)
    monkeypatch.setattr(assay.models._low_rank, "LARGEST", 5_000)
    again = LowRankWeights(rank=3, by="activation").fit(samples)
    assert len(list(assay.models._low_rank._passes(linears(small)))) > 2
    assert once.bases_.keys() == again.bases_.keys() == {one.name for one in linears(small)}
    for name, basis in once.bases_.items():
        assert torch.equal(basis, again.bases_[name])


def test_matrices_of_no_higher_rank_stay_and_the_record_says_so(grouped, sequences):
    """Keys and values of grouped queries are narrower than the rest."""
    recipe = LowRankWeights(rank=10).fit(collect(Engine(grouped), sequences, ()))
    recipe.check(grouped, ())
    narrow = [one for one in linears(grouped) if min(one.shape) == 8]
    assert len(narrow) == 4
    for one in linears(grouped):
        assert torch.equal(recipe.changed(one), one.weight) == (min(one.shape) == 8)
    assert "leaves model.layers.0.self_attn.k_proj and 3 more unchanged" in recipe.caution
    fits = LowRankWeights(rank=7)
    fits.check(grouped, ())
    assert "unchanged" not in fits.caution


def test_the_control_is_a_random_subspace_of_the_rank(each):
    control = LowRankWeights(rank=3, by="activation").control()
    assert control == RandomFactors(rank=3)
    for one in linears(each):
        weight = one.weight.double()
        first, other = (recipe.changed(one).double() for recipe in (control, control.redrawn(1)))
        assert rank_of(first) == rank_of(other) == 3
        assert (first - other).norm() > 0.1 * weight.norm()
        # A projection: what is left is orthogonal to what is taken.
        assert float((first * (weight - first)).sum()) == pytest.approx(0, abs=1e-4)
        assert torch.equal(RandomFactors(rank=16).changed(one), one.weight)


@pytest.mark.parametrize(("rank", "what"), [(0, "at least 1"), (True, "at least 1"),
                                            (17, "rank must be 1 to 16")])  # fmt: skip
def test_a_rank_is_one_that_some_matrix_has(rank, what, small, sequences):
    samples = collect(Engine(small), sequences, ())
    recipe, control = LowRankWeights(2), RandomFactors(2)
    recipe.rank = control.rank = rank
    with pytest.raises(AssayError, match=rf"LowRankWeights\(rank={rank}\).*{what}"):
        recipe.fit(samples)
    with pytest.raises(AssayError, match=what):
        recipe.check(small, ())
    with pytest.raises(AssayError, match=what):
        control.apply(small)


def test_another_criterion_and_too_early_a_call_are_refused(small):
    recipe = LowRankWeights(2)
    recipe.by = "luck"
    with pytest.raises(AssayError, match="by must be 'weights' or 'activation'"):
        recipe.check(small, ())
    with pytest.raises(AssayError, match="has not been fitted"):
        LowRankWeights(2).apply(small)
    with pytest.raises(AssayError, match=r"take samples from assay\.engine\.collect"):
        LowRankWeights(2).fit(Samples(()))
