"""What does not change a model's answers does not change what is proved about it."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import tiny_models

import assay
from assay.proofs import STRATEGIES, certify
from assay.subjects import Subject

DIMENSIONS = {"embed_tokens": 1, "embed_positions": 1, "lm_head": 1, "q_proj": 1, "k_proj": 1, "v_proj": 1, "o_proj": 0}
"""The axis of each matrix that runs over the dimensions of the residual stream."""

WIDTHS = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "o_proj": 1}
"""The axis of each matrix that runs over the width of the head."""


def changed(subject, change):
    model = copy.deepcopy(subject.model)
    model.load_state_dict({key: change(key.split(".")[-2], tensor) for key, tensor in model.state_dict().items()})
    return Subject(model, None, subject.name)


def permuted(subject, axes, size, rng):
    order = torch.from_numpy(rng.permutation(size))
    return changed(subject, lambda name, tensor: tensor.index_select(axes[name], order) if name in axes else tensor)


def with_positions_permuted(subject, rng):
    free = subject.model.config.length - 1
    order = torch.from_numpy(np.append(rng.permutation(free), [free, free + 1]))
    return changed(subject, lambda name, tensor: tensor[order] if name == "embed_positions" else tensor)


CHANGES = {
    "logits times 2": lambda subject, rng: changed(
        subject, lambda name, tensor: 2 * tensor if name == "lm_head" else tensor
    ),
    "dimensions of the residual stream": lambda subject, rng: permuted(
        subject, DIMENSIONS, subject.model.config.hidden_size, rng
    ),
    "dimensions of the head": lambda subject, rng: permuted(subject, WIDTHS, subject.model.config.head_dim, rng),
    "free positions": with_positions_permuted,
}


def bounds(subject, strategy):
    certificate = certify(subject, strategy=strategy)
    return certificate.at_least, certificate.at_most


@pytest.mark.parametrize("change", CHANGES)
def test_counts_of_tiny_models_do_not_change(change):
    @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
    @given(subject=tiny_models(head=4), seed=st.integers(0, 2**32 - 1))
    def unchanged(subject, seed):
        other = CHANGES[change](subject, np.random.default_rng(seed))
        for strategy in ("brute-force", "cubic", "exact"):
            try:
                found = bounds(subject, strategy)
            except assay.AssayError:
                with pytest.raises(assay.AssayError):
                    bounds(other, strategy)
            else:
                assert bounds(other, strategy) == found

    unchanged()


@pytest.mark.parametrize("change", CHANGES)
def test_counts_of_a_shipped_model_do_not_change(change):
    subject = assay.load("max-of-4")
    other = CHANGES[change](subject, np.random.default_rng(0))
    assert other.weights_sha256 != subject.weights_sha256
    # A multiple of all logits changes no rounding either, so no bound.
    strategies = set(STRATEGIES) - {"brute-force"} if change == "logits times 2" else {"exact", "cubic"}
    for strategy in strategies:
        assert bounds(other, strategy) == bounds(subject, strategy)
