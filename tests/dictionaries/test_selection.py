"""The largest numbers of rows and all above a bar, against sorting; equal values and numbers that are not."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.dictionaries._selection import above, largest, largest_of_rows


@pytest.mark.parametrize(
    ("features", "k"), [(1_024, 16), (1_024, 32), (4_096, 16), (96, 3), (97, 5), (8, 8), (64, 1), (1, 1)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_largest_of_rows_are_those_of_sorting(features: int, k: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(features + k)
    values = torch.randn(37, features, generator=generator).to(dtype)
    found, index = largest_of_rows(values, k)
    assert torch.equal(found.sort(dim=1, descending=True).values, values.sort(dim=1, descending=True).values[:, :k])
    assert torch.equal(values.gather(1, index), found)
    assert all(len(set(row)) == k for row in index.tolist())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 16), st.integers(1, 4))
def test_equal_values_are_chosen_as_often_as_there_is_room(seed: int, k: int, distinct: int) -> None:
    values = torch.from_numpy(np.random.default_rng(seed).integers(0, distinct, (5, 128)).astype(np.float32))
    found, index = largest_of_rows(values, k)
    assert torch.equal(found.sort(dim=1, descending=True).values, values.sort(dim=1, descending=True).values[:, :k])
    assert torch.equal(values.gather(1, index), found)
    assert all(len(set(row)) == k for row in index.tolist())


def test_one_group_may_hold_all_of_the_largest() -> None:
    values = torch.zeros(3, 1_024)
    values[:, ::128] = torch.arange(100.0, 108.0)  # the eight members of one strided group
    found, index = largest_of_rows(values, 8)
    assert torch.equal(found.sort(dim=1).values, values[:, ::128])
    assert torch.equal(index.sort(dim=1).values, torch.arange(0, 1_024, 128).expand(3, -1))


def test_rows_with_numbers_that_are_none_are_answered() -> None:
    values = torch.randn(4, 256)
    values[1, 7] = torch.nan
    values[2] = torch.inf
    found, index = largest_of_rows(values, 3)
    assert found.shape == index.shape == (4, 3)
    assert torch.equal(found[0].sort(descending=True).values, values[0].sort(descending=True).values[:3])


def test_no_rows_have_no_largest() -> None:
    found, index = largest_of_rows(torch.zeros(0, 64), 3)
    assert found.shape == index.shape == (0, 3)


@pytest.mark.parametrize("bar", [0.5, 9.0, torch.linspace(-1, 1, 40)])
def test_what_is_above_a_bar_is_listed_by_row(bar: float | torch.Tensor) -> None:
    values = torch.randn(20, 40, generator=torch.Generator().manual_seed(0))
    found, rows, index = above(values, bar)
    mask = values > bar
    assert torch.equal(torch.stack([rows, index], dim=1), mask.nonzero())
    assert torch.equal(found, values[mask])


@pytest.mark.parametrize("count", [1, 7, 100])
@pytest.mark.parametrize("distinct", [3, 10**6])
def test_the_largest_of_all_in_order(count: int, distinct: int) -> None:
    values = torch.from_numpy(np.random.default_rng(count).integers(0, distinct, 100).astype(np.float32))
    found = largest(values, count)
    assert torch.equal(found, found.unique())
    assert torch.equal(values[found].sort(descending=True).values, values.sort(descending=True).values[:count])
