"""numpy's functions and torch's are the same, whichever is taken."""

import pytest
import torch

from assay.faithfulness import _by_numpy

NUMBERS = torch.cat([torch.randn(4, 7, 50), torch.zeros(4, 7, 1), torch.full((4, 7, 1), 1e-42)], dim=-1)


@pytest.mark.parametrize("threads", [0, 1_000], ids=["torch", "numpy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_functions_are_what_they_say(threads, dtype, monkeypatch):
    monkeypatch.setattr(_by_numpy, "THREADS", threads)
    numbers = NUMBERS.to(dtype)
    close = {"atol": 1e-2, "rtol": 1e-2} if dtype == torch.bfloat16 else {"atol": 1e-6, "rtol": 1e-6}
    torch.testing.assert_close(_by_numpy.expm1(numbers).double(), numbers.double().expm1(), **close)
    positive = numbers.abs() + 1e-3
    torch.testing.assert_close(_by_numpy.log_(positive.clone()).double(), positive.double().log(), **close)
    assert torch.equal(_by_numpy.argmax(numbers), numbers.argmax(dim=-1))


@pytest.mark.parametrize("threads", [0, 1_000], ids=["torch", "numpy"])
def test_extremes_are_quiet_and_ties_go_to_the_first(threads, monkeypatch):
    monkeypatch.setattr(_by_numpy, "THREADS", threads)
    assert _by_numpy.log_(torch.zeros(1)).item() == -torch.inf
    assert _by_numpy.expm1(torch.tensor([1e4])).item() == torch.inf
    assert _by_numpy.argmax(torch.tensor([[1.0, 3.0, 3.0]])).tolist() == [1]
