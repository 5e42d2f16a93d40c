import math

import numpy as np
import pytest
import torch

from assay import AssayError
from assay.circuits import Circuit
from assay.diagnostics import area_from_one, area_under, areas
from small_decoder import differences, fitted, pairs_of


def by_hand(decoder, split, circuit):
    """f of a circuit from its proxy's logits."""
    tokens, others = torch.from_numpy(split.tokens), torch.from_numpy(split.counterfactuals)
    with torch.no_grad():
        whole, none = differences(decoder(tokens), split), differences(decoder(others), split)
    own = differences(circuit.apply(decoder).on_pairs(tokens, others), split)
    return (own.mean() - none.mean()) / (whole.mean() - none.mean())


def test_the_line_that_crosses_one_has_a_fifth_of_a_unit():
    x, f = np.array([0.0, 1.0]), np.array([0.6, 1.4])
    assert area_from_one(x, f) == pytest.approx(0.2)
    assert area_under(x, f) == pytest.approx(1.0)
    fine = np.linspace(0, 1, 100_001)
    rng = np.random.default_rng(0)
    x, f = np.sort(rng.random(9)), rng.normal(1, 1, 9)
    line = np.interp(x[0] + fine * (x[-1] - x[0]), x, f)
    assert area_from_one(x, f) == pytest.approx(np.abs(1 - line).mean() * (x[-1] - x[0]), rel=1e-4)


def test_areas_are_those_of_the_circuits_by_hand(decoder, pairs, found):
    result = areas(found, decoder, pairs, resamples=200)
    size = found.graph_.size
    assert result.x[0] == 0
    assert result.x[-1] == 1
    assert result.pruned[-1] == size
    sizes = [round(size**x) for x in result.x]
    assert sizes == [1, 2, 4, 8, 16, 32, size]
    assert all(pruned <= most for pruned, most in zip(result.pruned, sizes, strict=True))
    f = [by_hand(decoder, pairs, found.of_size(edges)) if edges else 0.0 for edges in result.edges]
    assert [one.value for one in result.f] == pytest.approx(f, abs=1e-9)
    assert result.f[-1].value == pytest.approx(1, abs=1e-9)
    assert result.cpr.value == pytest.approx(np.trapezoid(f, result.x))
    assert result.cpr.low < result.cpr.value < result.cpr.high
    assert 0 <= result.cmd.low <= result.cmd.value <= result.cmd.high


def test_a_size_is_the_largest_with_as_many_edges_on_paths(decoder, pairs, found):
    result = areas(found, decoder, pairs, resamples=50)
    size = found.graph_.size
    for edges, x in zip(result.edges[:-1], result.x, strict=False):
        assert found.of_size(edges + 1).pruned_ > round(size**x)


def test_mibs_areas_by_their_formula(decoder, pairs, found):
    result = areas(found, decoder, pairs, grid="mib", resamples=200)
    shares = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
    counts = [int(share * found.graph_.size) for share in shares]
    assert list(result.edges) == counts
    f = [by_hand(decoder, pairs, found.of_size(count)) if count else 0.0 for count in counts]
    under = from_one = 0.0
    for i in range(9):
        step = shares[i + 1] - shares[i]
        under += step * (f[i] + f[i + 1]) / 2
        from_one += step * (abs(1 - f[i]) + abs(1 - f[i + 1])) / 2
    assert result.cpr.value == pytest.approx(under, abs=1e-6)
    assert result.cmd.value == pytest.approx(from_one, abs=1e-6)


def test_differences_of_areas_are_paired(decoder, pairs, found):
    first = areas(found, decoder, pairs, resamples=300)
    cpr, cmd = first.minus(first)
    assert cpr == (0, 0, 0)
    assert cmd == (0, 0, 0)
    other = fitted(Circuit(edges=15, method="exact-nodes", level="heads"), decoder, pairs_of(decoder, "train"))
    second = areas(other, decoder, pairs, resamples=300)
    more, _ = first.minus(second)
    assert more.value == pytest.approx(first.cpr.value - second.cpr.value)
    assert more.high - more.low < math.hypot(first.cpr.high - first.cpr.low, second.cpr.high - second.cpr.low)


def test_bad_input_is_refused(decoder, pairs, found):
    given = Circuit(edges=["embeddings -> logits"])
    given.apply(decoder)
    with pytest.raises(AssayError, match="was given and not found"):
        areas(given, decoder, pairs)
    with pytest.raises(AssayError, match="only 12 different pairs"):
        areas(found, decoder, pairs.first(12))
    shift = areas(found, decoder, pairs_of(decoder, "other"), resamples=20)
    with pytest.raises(AssayError, match="same pairs and grid"):
        areas(found, decoder, pairs, resamples=20).minus(shift)
