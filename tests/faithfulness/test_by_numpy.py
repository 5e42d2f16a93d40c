"""numpy's functions and torch's are the same, whichever is taken."""

import numpy as np
import pytest
import torch

from assay.faithfulness import _by_numpy


@pytest.fixture(params=["torch", "numpy"])
def numbers(request, monkeypatch):
    """Random numbers, with 0 and a denormal among them, whose functions are torch's or numpy's."""
    monkeypatch.setattr(_by_numpy, "THREADS", 0 if request.param == "torch" else 1_000)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    random = np.random.default_rng(0).normal(size=(4, 7, 50)) * 3
    random[..., 7], random[..., 8] = 0, 1e-42
    return random


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_functions_are_what_they_say(numbers, dtype):
    given = torch.from_numpy(numbers).to(dtype)
    exact = given.double().numpy()
    np.testing.assert_allclose(_by_numpy.expm1(given), np.expm1(exact), rtol=1e-6, atol=0)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(_by_numpy.log_(given.abs()), np.log(np.abs(exact)), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(_by_numpy.argmax(given), exact.argmax(axis=-1))
    np.testing.assert_array_equal(given.double(), exact)


def test_half_precision_is_left_to_torch(numbers):
    given = torch.from_numpy(numbers).to(torch.bfloat16)
    np.testing.assert_allclose(_by_numpy.expm1(given).double(), given.double().expm1(), rtol=1e-2)
    np.testing.assert_array_equal(_by_numpy.argmax(given), given.double().numpy().argmax(axis=-1))


def test_logarithms_are_in_place(numbers):
    given = torch.from_numpy(numbers).float().abs()
    assert _by_numpy.log_(given) is given
    assert given[0, 0, 7] == -torch.inf


def test_extremes_are_quiet_and_ties_go_to_the_first(numbers):
    assert _by_numpy.expm1(torch.tensor([1e4])).item() == torch.inf
    assert _by_numpy.argmax(torch.tensor([[1.0, 3.0, 3.0]])).tolist() == [1]
