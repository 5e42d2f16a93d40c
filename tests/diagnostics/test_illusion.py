import numpy as np
import pytest
import torch

from assay import AssayError
from assay.diagnostics import aligned_subspace, mlp_patch, subspace_patch
from small_decoder import differences, pairs_of

W_OUT = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
READOUT = torch.tensor([2.0, 1.0], dtype=torch.float64)


def toy(direction, pairs=40):
    """h = x (1, 0, 1), read by W_OUT and (2, 1): base x = 1, source x = -1."""
    base = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64).repeat(pairs, 1)
    return subspace_patch(
        base, -base, torch.tensor(direction, dtype=torch.float64), W_OUT, lambda u: u @ W_OUT @ READOUT
    )


def test_the_illusory_direction_of_the_toy():
    found = toy([1.0, 1.0, 0.0])
    assert found.subspace.effect == pytest.approx((1, 1, 1))
    assert found.row.effect == pytest.approx((0, 0, 0), abs=1e-12)
    assert found.null.effect == pytest.approx((0, 0, 0), abs=1e-12)
    assert found.row.length == pytest.approx(0.7071, abs=1e-4)
    assert found.null.length == pytest.approx(0.7071, abs=1e-4)
    assert found.subspace.turned.value == 1
    # The row part is e2, where nothing moves; the null part e1: two of an average square of 8/3.
    assert found.row.movement == pytest.approx(0, abs=1e-12)
    assert found.null.movement == pytest.approx((4 / (8 / 3)) ** 0.5)
    assert found.verdict == "illusory"
    assert str(found).startswith("illusory: the patch has 1 [1, 1] of the effect")


def test_the_faithful_direction_of_the_toy():
    found = toy([0.0, 0.0, 3.0])
    assert found.subspace.effect.value == pytest.approx(1)
    assert found.row.effect.value == pytest.approx(1)
    assert found.row.length == pytest.approx(1)
    assert found.null.length == pytest.approx(0, abs=1e-12)
    assert found.null.effect.value == 0
    assert np.isnan(found.null.movement)
    assert found.verdict == "faithful"


@pytest.mark.parametrize("direction", [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
def test_either_part_alone_does_nothing(direction):
    assert toy(direction).verdict == "no effect"


def test_all_of_the_toy_is_faithful():
    found = toy([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert found.subspace == found.activations
    assert found.row.length == pytest.approx((2 / 3) ** 0.5)
    assert found.verdict == "faithful"


def test_a_scalar_readout_cannot_show_it():
    base = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64).repeat(40, 1)
    weight = torch.tensor([[0.0], [2.0], [1.0]], dtype=torch.float64)
    found = subspace_patch(
        base, -base, torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64), weight, lambda u: (u @ weight)[:, 0]
    )
    assert found.subspace.effect.value == pytest.approx(1)
    assert found.verdict == "faithful"


def test_parts_by_hand_for_a_random_subspace():
    rng = np.random.default_rng(0)
    base, source = rng.normal(size=(2, 50, 6))
    source += 1
    weight, readout = rng.normal(size=(6, 3)), rng.normal(size=3)
    directions = rng.normal(size=(6, 2))
    found = subspace_patch(
        *(torch.from_numpy(one) for one in (base, source, directions, weight)),
        lambda u: u @ torch.from_numpy(weight) @ torch.from_numpy(readout),
    )
    read = weight @ np.linalg.pinv(weight)
    unit = np.linalg.qr(directions)[0]
    scale = (base - source) @ weight @ readout
    for part, vectors in ((found.subspace, unit), (found.row, read @ unit), (found.null, unit - read @ unit)):
        onto = vectors @ np.linalg.pinv(vectors)
        change = (base - source) @ onto @ weight @ readout
        assert part.effect.value == pytest.approx(change.mean() / scale.mean())
        moved = np.square((source - base) @ onto).sum(axis=1).mean() / 2
        assert part.movement == pytest.approx((moved / np.square(source - base).mean()) ** 0.5)
        assert part.length == pytest.approx(np.sqrt(np.square(vectors).sum() / 2))
    assert found.null.effect.value == pytest.approx(0, abs=1e-12)


def test_bad_input_is_refused():
    base = torch.ones(40, 3, dtype=torch.float64)
    direction = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)

    def m(u):
        return u.sum(dim=-1)

    with pytest.raises(AssayError, match="nothing to patch"):
        subspace_patch(base, base, direction, W_OUT, m)
    with pytest.raises(AssayError, match="not independent"):
        subspace_patch(base, -base, torch.stack((direction, 2 * direction), dim=1), W_OUT, m)
    with pytest.raises(AssayError, match=r"of shape \(2,\) for activations of width 3"):
        subspace_patch(base, -base, torch.ones(2, dtype=torch.float64), W_OUT, m)
    with pytest.raises(AssayError, match="do not fit"):
        subspace_patch(base, -base, direction, W_OUT.T, m)


def test_all_activations_of_an_mlp_by_hand(decoder, pairs):
    width = 64
    found = mlp_patch(decoder, pairs, 1, torch.eye(width, dtype=torch.float64), positions="all", resamples=200)
    tokens, others = torch.from_numpy(pairs.tokens), torch.from_numpy(pairs.counterfactuals)
    projection = decoder.model.transformer.h[1].mlp.c_proj
    seen = []
    with torch.no_grad():
        handle = projection.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        before, after = differences(decoder(tokens), pairs), differences(decoder(others), pairs)
        handle.remove()
        handle = projection.register_forward_pre_hook(lambda _, inputs: (seen[1],))
        patched = differences(decoder(tokens), pairs)
        handle.remove()
    expected = (before - patched).mean() / (before - after).mean()
    assert found.subspace.effect.value == pytest.approx(expected)
    assert found.activations.effect.value == pytest.approx(expected)
    # Sixteen of 64 directions are read, and they do everything.
    assert found.row.length == pytest.approx(0.5)
    assert found.row.effect.value == pytest.approx(expected)
    assert found.null.effect.value == pytest.approx(0, abs=1e-12)
    at_last = mlp_patch(decoder, pairs, 1, torch.eye(width, dtype=torch.float64), resamples=200)
    # In the last layer only the scored position matters.
    assert at_last.subspace.effect.value == pytest.approx(expected)


def test_the_search_finds_more_than_chance(decoder, pairs):
    train = pairs_of(decoder, "train", count=40)
    parameters = {name: value.clone() for name, value in decoder.model.named_parameters()}
    direction = aligned_subspace(decoder, train, 1, steps=40, rate=0.1)
    assert direction.shape == (64, 1)
    assert direction.norm() == pytest.approx(1)
    found = mlp_patch(decoder, pairs, 1, direction, resamples=200)
    generator = torch.Generator().manual_seed(0)
    random = [
        mlp_patch(decoder, pairs, 1, torch.randn(64, generator=generator, dtype=torch.float64), resamples=20)
        for _ in range(5)
    ]
    assert found.subspace.effect.value > max(one.subspace.effect.value for one in random)
    assert all(torch.equal(parameters[name], value) for name, value in decoder.model.named_parameters())
    assert all(value.grad is None for value in decoder.model.parameters())
    with pytest.raises(AssayError, match="there are 64 activations"):
        aligned_subspace(decoder, train, 1, dimensions=65)
    with pytest.raises(AssayError, match="has layers 0 to 1"):
        aligned_subspace(decoder, train, 2)
