"""Which weights a recipe changes, and that it leaves everything else."""

import copy

import pytest
import torch
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.pytorch_utils import Conv1D

import assay
from assay import AssayError
from assay.engine import Samples
from assay.models import LowRankWeights, PruneWeights, RoundWeights
from assay.models._weights import linears
from assay.simplify import label
from assay.subjects import Subject, linear_max_model
from assay.tasks import MaxOfK

IN_A_BLOCK = {
    "a small gpt2": {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"},
    "a small llama": {
        *(f"self_attn.{name}_proj" for name in "qkvo"),
        *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    },
    "a small bert": {
        *(f"attention.self.{name}" for name in ("query", "key", "value")),
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    },
}
IN_A_BLOCK["a small encoder"] = IN_A_BLOCK["a small bert"]


def test_linear_maps_of_all_blocks_are_found_and_no_others(each):
    found = [one.name for one in linears(each)]
    assert len(found) == len(set(found)) == 2 * len(IN_A_BLOCK[each.name])
    for layer in ("0", "1"):
        within = {name.partition(f".{layer}.")[2] for name in found if f".{layer}." in name}
        assert within == IN_A_BLOCK[each.name]


def test_a_weight_has_a_row_an_output_however_it_is_kept(each):
    for one in linears(each):
        kept = one.module.weight.detach()
        expected = kept.T if isinstance(one.module, Conv1D) else kept
        assert torch.equal(one.weight, expected)
        assert one.shape == tuple(expected.shape)
        inputs = torch.randn(5, one.shape[1], generator=torch.Generator().manual_seed(0))
        bias = 0 if one.module.bias is None else one.module.bias
        torch.testing.assert_close(one.module(inputs), inputs @ one.weight.T + bias)


def test_a_weight_that_is_put_back_changes_nothing(each, tokens):
    other = Subject(copy.deepcopy(each.model), None, "copy")
    for one in linears(other):
        one.put(one.weight)
    assert torch.equal(other(tokens), each(tokens))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_only_linear_weights_change_and_only_in_the_copy(dtype, each, tokens):
    subject = Subject(copy.deepcopy(each.model).to(dtype), None, each.name)
    before, state = subject.weights_sha256, copy.deepcopy(subject.model.state_dict())
    proxy = RoundWeights(bits=3).apply(subject)
    assert subject.weights_sha256 == before
    own = {f"{one.name}.weight" for one in linears(subject)}
    for key, value in proxy.model.model.state_dict().items():
        assert value.dtype == state[key].dtype
        assert torch.equal(value, state[key]) == (key not in own), key
    assert not torch.equal(proxy(tokens), subject(tokens))
    assert proxy.model.objective == subject.objective
    assert not proxy.model.model.training


def test_a_weight_that_is_shared_with_what_stays_is_changed_in_its_block_alone(small):
    model = copy.deepcopy(small.model)
    model.kept = nn.Module()
    model.kept.weight = model.transformer.h[0].mlp.c_fc.weight
    proxy = PruneWeights(share=0.5).apply(Subject(model, None, "shared"))
    changed = proxy.model.model
    assert torch.equal(changed.kept.weight, model.kept.weight)
    assert (changed.transformer.h[0].mlp.c_fc.weight == 0).float().mean() == 0.5


@pytest.mark.parametrize("recipe", [RoundWeights(bits=4), PruneWeights(share=0.5), LowRankWeights(rank=2)])
def test_a_model_without_blocks_is_refused_by_name(recipe, sequences):
    subject = Subject(linear_max_model(MaxOfK(length=2, vocabulary=5), seed=0), None, "flat")
    with pytest.raises(AssayError, match=r"LinearMaxForCausalLM \('flat'\) has no linear weights"):
        recipe.check(subject, ())
    with pytest.raises(AssayError, match="has no linear weights"):
        recipe.fit(Samples((), subject=subject, split=sequences)).apply(subject)


def test_stacked_experts_and_quantized_weights_are_refused(small):
    config = MixtralConfig(
        vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2, max_position_embeddings=8,
    )  # fmt: skip
    with pytest.raises(AssayError, match=r"experts\.\w+ is a stack of matrices"):
        linears(Subject(MixtralForCausalLM(config).eval(), None, "experts"))
    model = copy.deepcopy(small.model)
    module = model.transformer.h[1].mlp.c_proj
    module.weight = nn.Parameter(module.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(AssayError, match=r"weight of transformer\.h\.1\.mlp\.c_proj is no plain tensor"):
        linears(Subject(model, None, "int8"))


RECIPES = [
    RoundWeights(bits=4),
    PruneWeights(share=0.3),
    PruneWeights(share=0.3, by="activation"),
    LowRankWeights(rank=20),
    LowRankWeights(rank=20, by="activation"),
]


@pytest.fixture(scope="module")
def comparison(subject, task):
    options = {"sequences": 10, "fit_sequences": 30, "resamples": 20, "refit": False}
    return assay.compare(subject, task, RECIPES, metrics=["same_prediction", "kl"], **options)


@pytest.mark.parametrize("recipe", RECIPES, ids=label)
def test_each_is_judged_with_its_controls(recipe, comparison):
    records = {record.proxy: record for record in comparison.record.proxies}
    judged = records[label(recipe)]
    assert judged.site == "model"
    assert judged.caution.startswith("Recipes on weights change the linear weights of the blocks only")
    assert judged.caution in comparison.warnings()
    rounding = isinstance(recipe, RoundWeights)
    control = judged.perturbation if rounding else judged.control
    assert (judged.perturbation is None, judged.control is None) == (not rounding, rounding)
    assert records[control].draws == 5
    assert all(difference > 0 for difference in judged.logit_difference.values())
    chosen = comparison.results.query(
        "metric == 'kl' and split == 'iid' and kind == 'all' and feature == '' and trained"
    )
    divergence = chosen.set_index("proxy")["estimate"]
    assert 0 < divergence[judged.proxy] < float("inf")
    if not rounding:
        assert divergence[judged.proxy] < divergence[control], "it has to beat a random choice in distribution"
