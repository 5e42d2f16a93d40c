import itertools

import numpy as np
import pytest

from assay import AssayError
from assay.circuits import Circuit
from assay.diagnostics import robust_fidelity
from small_decoder import m_of

THREE = ["embeddings -> logits", "embeddings -> layer0.mlp", "layer0.mlp -> logits"]


@pytest.fixture(scope="module")
def three(decoder):
    circuit = Circuit(edges=THREE)
    circuit.apply(decoder)
    return circuit


def test_removing_everything_is_the_ordinary_fidelity(decoder, pairs, three):
    found = robust_fidelity(three, decoder, pairs, remove_from_circuit=1.0, remove_from_rest=1.0, resamples=200)
    graph, kept = three.graph_, three.kept_
    whole = m_of(decoder, pairs, graph.exists)
    assert found.plus.value == pytest.approx((whole - m_of(decoder, pairs, graph.exists & ~kept)).mean())
    assert found.minus.value == pytest.approx((whole - m_of(decoder, pairs, kept)).mean())
    assert found.difference.value == pytest.approx(found.plus.value - found.minus.value)
    assert found.effect.value == pytest.approx((whole - m_of(decoder, pairs, np.zeros_like(kept))).mean())
    assert (found.removed_from_circuit, found.removed_from_rest) == (3, graph.size - 3)


def test_a_part_is_what_all_its_choices_give_on_average(decoder, pairs, three):
    share = 0.4
    found = robust_fidelity(three, decoder, pairs, remove_from_circuit=share, remove_from_rest=0.02, resamples=200)
    graph, places = three.graph_, np.argwhere(three.kept_)
    whole = m_of(decoder, pairs, graph.exists)
    expected = removed = 0.0
    none = (1 - share) ** 3
    for count in (1, 2, 3):
        for chosen in itertools.combinations(range(3), count):
            left = graph.exists.copy()
            left[tuple(places[list(chosen)].T)] = False
            probability = share**count * (1 - share) ** (3 - count) / (1 - none)
            expected += probability * (whole - m_of(decoder, pairs, left)).mean()
            removed += probability * count
    half = (found.plus.high - found.plus.low) / 2
    assert found.plus.value == pytest.approx(expected, abs=1.5 * half)
    assert found.removed_from_circuit == pytest.approx(removed, abs=0.2)
    rest = graph.size - 3
    # With at least one removed.
    assert found.removed_from_rest == pytest.approx(0.02 * rest / (1 - 0.98**rest), abs=0.3)
    assert found.removed_from_rest >= 1


def test_bad_input_is_refused(decoder, pairs, three):
    with pytest.raises(AssayError, match="remove_from_rest"):
        robust_fidelity(three, decoder, pairs, remove_from_rest=0.0)
    with pytest.raises(AssayError, match="draws=0"):
        robust_fidelity(three, decoder, pairs, draws=0)
    with pytest.raises(AssayError, match="no edges on paths"):
        robust_fidelity(Circuit(edges=["embeddings -> layer0.mlp"]), decoder, pairs)
