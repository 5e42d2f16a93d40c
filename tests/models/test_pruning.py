"""Pruning against an independent choice, weight by weight."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from assay import AssayError
from assay.engine import Engine, Samples, collect
from assay.models import PruneWeights, RandomMask
from assay.models._weights import Linear, linears


def inputs_of(subject, split, name):
    """What goes into a linear map at valid positions, one sequence at a time without padding: (token, in)."""
    seen = []
    module = subject.model.get_submodule(name)
    handle = module.register_forward_hook(
        lambda _, inputs, output: seen.append(inputs[0].reshape(-1, inputs[0].shape[-1]))
    )
    for row in range(len(split)):
        subject(torch.from_numpy(split.tokens[row : row + 1, : split.lengths[row]]))
    handle.remove()
    return torch.cat(seen).double()


def test_magnitude_by_hand():
    module = nn.Linear(2, 2, bias=False)
    module.weight = nn.Parameter(torch.tensor([[0.1, -3.0], [0.2, -0.3]]))
    one = Linear("by.hand", module)
    assert PruneWeights(share=0.5).changed(one).tolist() == [[0, -3], [0, pytest.approx(-0.3)]]
    assert PruneWeights(share=0.25).changed(one).flatten().tolist() == pytest.approx([0, -3.0, 0.2, -0.3])
    assert PruneWeights(share=0.75).changed(one).flatten().tolist() == pytest.approx([0, -3.0, 0, 0])


def test_of_equals_the_first_go():
    module = nn.Linear(4, 1, bias=False)
    module.weight = nn.Parameter(torch.tensor([[1.0, -1.0, 1.0, 1.0]]))
    assert PruneWeights(share=0.5).changed(Linear("equal", module)).tolist() == [[0, 0, 1, 1]]


def test_magnitude_keeps_the_largest_of_each_matrix(each):
    for one in linears(each):
        found, weight = PruneWeights(share=0.3).changed(one), one.weight
        gone = found == 0
        assert int(gone.sum()) == round(0.3 * weight.numel())
        assert weight[gone].abs().max() <= weight[~gone].abs().min()
        assert torch.equal(found[~gone], weight[~gone])


def test_activation_takes_size_times_norm_of_the_input_within_rows(each, sequences):
    recipe = PruneWeights(share=0.4, by="activation").fit(collect(Engine(each), sequences, ()))
    differs = False
    for one in linears(each):
        found, weight = recipe.changed(one).numpy(), one.weight.double().numpy()
        norms = inputs_of(each, sequences, one.name).square().sum(dim=0).sqrt().numpy()
        np.testing.assert_allclose(recipe.norms_[one.name].numpy(), norms, rtol=1e-4)
        for i in range(weight.shape[0]):
            scores = [abs(weight[i, j]) * norms[j] for j in range(weight.shape[1])]
            gone = sorted(range(len(scores)), key=scores.__getitem__)[: round(0.4 * len(scores))]
            assert np.flatnonzero(found[i] == 0).tolist() == sorted(gone)
            differs |= set(gone) != set(np.argsort(abs(weight[i]))[: len(gone)])
    assert differs, "the test would not see plain magnitude"


def test_nothing_pruned_is_the_model(each, sequences, tokens):
    samples = collect(Engine(each), sequences, ())
    for recipe in (PruneWeights(share=0.0), PruneWeights(share=0.0, by="activation"), RandomMask(share=0.0)):
        torch.testing.assert_close(recipe.fit(samples).apply(each)(tokens), each(tokens), rtol=0, atol=1e-5)


def test_the_control_is_a_random_mask_of_as_many(small):
    control = PruneWeights(share=0.3, by="activation").control()
    assert control == RandomMask(share=0.3)
    for one in linears(small):
        gone, again, other = (
            recipe.changed(one) == 0 for recipe in (control, RandomMask(share=0.3), control.redrawn(1))
        )
        count, weights = int(gone.sum()), gone.numel()
        assert count == round(0.3 * weights) == int(other.sum())
        assert torch.equal(gone, again)
        assert torch.equal(control.changed(one)[~gone], one.weight[~gone])
        spread = math.sqrt(weights * 0.09 * 0.91)
        assert abs(int((gone & other).sum()) - 0.09 * weights) < 5 * spread
        by_size = PruneWeights(share=0.3).changed(one) == 0
        assert abs(int((gone & by_size).sum()) - 0.09 * weights) < 5 * spread


@pytest.mark.parametrize("share", [1, 1.5, -0.1, float("nan"), "half", True])
@pytest.mark.parametrize("make", [PruneWeights, RandomMask])
def test_a_share_is_from_0_to_below_1(make, share, small):
    recipe = make(0.5)
    recipe.share = share
    with pytest.raises(AssayError, match=r"\(share=.*\): share must be a number from 0 to below 1"):
        recipe.apply(small)
    with pytest.raises(AssayError, match="share must be"):
        recipe.fit(Samples(()))


def test_another_criterion_is_refused(small):
    recipe = PruneWeights(0.5)
    recipe.by = "luck"
    with pytest.raises(AssayError, match="by must be 'magnitude' or 'activation'"):
        recipe.check(small, ())


def test_activations_need_samples_with_a_subject_and_the_one_applied_to(small, grouped, sequences):
    with pytest.raises(AssayError, match=r"take samples from assay\.engine\.collect"):
        PruneWeights(0.5, by="activation").fit(Samples(()))
    recipe = PruneWeights(0.5, by="activation").fit(collect(Engine(small), sequences, ()))
    with pytest.raises(AssayError, match=r"was fitted on a subject without model\.layers\.0"):
        recipe.apply(grouped)
