"""Rounding by hand, its noise, and how close many bits come."""

import copy

import pytest
import torch
from torch import nn

from assay import AssayError
from assay.engine import Samples
from assay.models import NoiseWeights, RoundWeights
from assay.models._weights import Linear, linears
from assay.subjects import Subject


def linear(rows):
    module = nn.Linear(len(rows[0]), len(rows), bias=False)
    module.weight = nn.Parameter(torch.tensor(rows, dtype=torch.float32))
    return Linear("by.hand", module)


def test_symmetric_by_hand():
    """3 bits: h = 3, a scale of 3/3 = 1 in the first row and 1.5/3 = 0.5 in the second; halves go to even."""
    found = RoundWeights(bits=3).changed(linear([[3.0, -1.4], [0.75, -1.5]]))
    assert found.tolist() == [[3.0, -1.0], [1.0, -1.5]]
    assert RoundWeights(bits=3).changed(linear([[3.0, 0.5], [3.0, 1.5]])).tolist() == [[3.0, 0.0], [3.0, 2.0]]


def test_a_scale_is_the_nearest_float16_number_unless_that_clips():
    """0.7/7 is stored as 0.0999755859375, and 7 of it are near enough; with 16 bits the next one above is taken."""
    assert RoundWeights(bits=4).changed(linear([[0.7, 0.31]])).tolist() == [
        pytest.approx([7 * 0.0999755859375, 3 * 0.0999755859375], rel=1e-7)
    ]
    near = float(torch.tensor(0.7 / 32767).half())
    found = RoundWeights(bits=16).changed(linear([[0.7, 0.31]]))
    assert 0.7 - 32767 * near > 5e-4, "the test would not see the nearest"
    assert found.tolist() == [pytest.approx([0.7, 0.31], abs=2e-5)]


def test_asymmetric_by_hand():
    """2 bits: levels 0 to 3. From -1 to 2 the scale is 1 and zero stands at 1; from 0 (put in) to 3 it is 1 and 0."""
    found = RoundWeights(bits=2, symmetric=False).changed(
        linear([[-1.0, 2.0, 0.6], [1.2, 3.0, 1.8], [-3.0, -1.0, -2.2]])
    )
    assert found.tolist() == [[-1.0, 2.0, 1.0], [1.0, 3.0, 2.0], [-3.0, -1.0, -2.0]]


def test_groups_have_scales_of_their_own_and_a_length_that_does_not_fit_takes_the_row():
    rows = [[3.0, 1.4, 0.3, 0.1], [30.0, 4.0, 1.0, 0.9]]
    assert RoundWeights(bits=3, group=2).changed(linear(rows))[:, 2:].tolist() == [
        pytest.approx([0.3, 0.1], abs=1e-3),
        pytest.approx([1.0, 1.0], abs=1e-3),
    ]
    for group in (3, 5, 4, None):
        found = RoundWeights(bits=3, group=group).changed(linear(rows))
        assert found.tolist() == [[3.0, 1.0, 0.0, 0.0], [30.0, 0.0, 0.0, 0.0]]


def test_the_record_names_what_is_rounded_by_row(small):
    recipe = RoundWeights(bits=4, group=32)
    recipe.check(small, ())
    said = "RoundWeights(bits=4, group=32) has one scale a row, not groups of 32, in transformer.h.0.attn.c_attn"
    assert f"{said} and 5 more: the rows are no multiple of it." in recipe.caution
    fits = RoundWeights(bits=4, group=16)
    fits.check(small, ())
    assert "scale" not in fits.caution
    assert recipe == RoundWeights(bits=4, group=32)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 5, 11, 16])
@pytest.mark.parametrize("size", [1e-5, 0.02, 3.0])
def test_no_weight_moves_by_more_than_half_a_step(symmetric, bits, size):
    """Also where a scale is so small that float16 has few digits of it; beside what float32 itself rounds."""
    weight = size * torch.randn(40, 24, generator=torch.Generator().manual_seed(bits))
    weight[3] = 0
    weight[4] = weight[4].abs()
    found = RoundWeights(bits, symmetric=symmetric).changed(linear(weight.tolist()))
    assert (found[3] == 0).all()
    low, high = weight.amin(dim=1).clamp(max=0), weight.amax(dim=1).clamp(min=0)
    step = (weight.abs().amax(dim=1) / (2 ** (bits - 1) - 1)) if symmetric else (high - low) / (2**bits - 1)
    half = (step * (1 + 2**-10)).clamp(min=step + 6e-8) / 2
    edge = 1 if symmetric else 2  # a whole zero point may be half a step off
    assert ((found - weight).abs() <= (edge * half + 1e-6 * size)[:, None]).all()
    levels = {len(set(row)) for row in found.tolist()}
    assert max(levels) <= 2**bits


def test_many_bits_are_the_model(each, tokens):
    expected = each(tokens)
    for symmetric in (True, False):
        found = RoundWeights(bits=16, symmetric=symmetric).apply(each)(tokens)
        assert (found - expected).norm() <= 1e-3 * expected.norm()
    errors = [float((RoundWeights(bits).apply(each)(tokens) - expected).norm()) for bits in (3, 5, 8, 12)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.01 * expected.norm()


def test_noise_has_the_length_of_the_error_in_every_row(each):
    rounding = RoundWeights(bits=4)
    subject = Subject(copy.deepcopy(each.model).double(), None, "wide")
    noise = NoiseWeights(rounding)
    assert rounding.perturbation() == noise
    noise.fit(Samples(()))
    again = noise.redrawn(3).fit(Samples(()))
    for one in linears(subject):
        error, moved, other = (recipe.changed(one) - one.weight for recipe in (rounding, noise, again))
        assert (error.norm(dim=1) > 0).any()
        torch.testing.assert_close(moved.norm(dim=1), error.norm(dim=1), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(other.norm(dim=1), error.norm(dim=1), rtol=1e-9, atol=1e-12)
        together = torch.nn.functional.cosine_similarity(moved.flatten(), torch.stack((error, other)).flatten(1), dim=1)
        assert (together.abs() < 6 / moved.numel() ** 0.5).all()
    assert torch.equal(noise.apply(subject)(torch.tensor([[1, 2, 3]])), noise.apply(subject)(torch.tensor([[1, 2, 3]])))


def test_noise_of_two_matrices_of_one_shape_differs(small):
    noise = NoiseWeights(RoundWeights(bits=4)).fit(Samples(()))
    first, second = (one for one in linears(small) if one.name.endswith("c_fc"))
    first, second = (torch.nn.functional.normalize(noise.changed(one) - one.weight, dim=1) for one in (first, second))
    assert (first * second).sum(dim=1).abs().mean() < 0.5


@pytest.mark.parametrize("bits", [1, 0, 17, 4.0, True, "4"])
def test_bits_are_2_to_16(bits, small):
    recipe = RoundWeights(4)
    recipe.bits = bits
    for call in (lambda: recipe.check(small, ()), lambda: recipe.fit(Samples(())), lambda: recipe.apply(small)):
        with pytest.raises(AssayError, match=r"RoundWeights\(bits=.*\): bits must be a whole number from 2 to 16"):
            call()


@pytest.mark.parametrize("group", [0, -32, 32.0])
def test_a_group_has_at_least_one(group, small):
    recipe = RoundWeights(4)
    recipe.group = group
    with pytest.raises(AssayError, match="group must be a whole number of at least 1"):
        recipe.apply(small)


def test_noise_before_fit_is_refused(small):
    with pytest.raises(AssayError, match=r"NoiseWeights\(of=RoundWeights\(bits=4\)\) has not been fitted"):
        NoiseWeights(RoundWeights(4)).apply(small)
