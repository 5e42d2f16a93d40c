"""How a subject's residual stream is found, and what is refused by name."""

import gc
import weakref

import numpy as np
import pytest
import torch
from many_subjects import random_pairs, tiny
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo.modeling_olmo import OlmoLayerNorm

from assay import AssayError
from assay.circuits import Circuit, Graph
from assay.circuits._run import wiring_of
from assay.circuits._wiring import Norm
from assay.engine import Engine, collect
from assay.studies._census import build
from assay.subjects import Subject


def causal(name: str) -> Subject:
    return Subject(build(name, "causal"), None, name)


@pytest.mark.parametrize(
    ("name", "graph"),
    [
        ("gpt2", Graph(2, 4, 4)),
        ("mistral", Graph(2, 4, 2)),
        ("gpt_bigcode", Graph(2, 4, 1)),
        ("gpt_neox", Graph(2, 4, 4, parallel=True)),
        ("gpt_neox-sequential", Graph(2, 4, 4)),
        ("gptj", Graph(2, 4, 4, parallel=True)),
        ("cohere", Graph(2, 4, 4, parallel=True)),
    ],
)
def test_graphs_are_those_of_the_architecture(name, graph):
    assert wiring_of(Engine(tiny(name))).graph == graph


def test_scales_are_found():
    wiring = wiring_of(Engine(tiny("granite")))
    assert [(layer.scale, layer.mlp_scale) for layer in wiring.layers] == [pytest.approx((0.4, 0.4), rel=1e-9)] * 2
    assert wiring.logit_scale == pytest.approx(1 / 3, rel=1e-9)
    behind = wiring_of(Engine(tiny("hyperclovax")))
    assert [(layer.scale, layer.mlp_scale) for layer in behind.layers] == [pytest.approx((0.4, 0.4), rel=1e-6)] * 2
    assert all(layer.after is not None and layer.mlp_after is not None for layer in behind.layers)
    divided = tiny("minicpm3")
    assert divided.model.config.logits_scaling != 1
    assert wiring_of(Engine(divided)).logit_scale == pytest.approx(1 / divided.model.config.logits_scaling, rel=1e-6)
    plain = wiring_of(Engine(tiny("gpt2")))
    assert [(layer.scale, layer.mlp_scale) for layer in plain.layers] == [(1, 1)] * 2


def test_soft_caps_are_found():
    wiring = wiring_of(Engine(tiny("vaultgemma")))
    assert (wiring.logit_scale, wiring.logit_cap) == (1, 3)
    assert wiring_of(Engine(tiny("gpt2"))).logit_cap is None


NORMS = {
    "layer": (lambda: nn.LayerNorm(16), True),
    "layer-eps": (lambda: nn.LayerNorm(16, eps=1e-2), True),
    "layer-without-weights": (lambda: nn.LayerNorm(16, elementwise_affine=False), True),
    "olmo": (lambda: OlmoLayerNorm(16), True),  # says its epsilon nowhere
    "rms": (lambda: nn.RMSNorm(16), False),  # its epsilon is None
    "llama": (lambda: LlamaRMSNorm(16, eps=1e-3), False),
    "gemma": (lambda: GemmaRMSNorm(16), False),
    "planted": (lambda: nn.LayerNorm(16, eps=1e12), True),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", NORMS)
def test_norms_are_found_by_what_they_compute(name, dtype):
    make, centred = NORMS[name]
    torch.manual_seed(0)
    module = make().to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    if name == "planted":
        nn.init.constant_(module.weight, 1e6)
    norm = Norm.of(module, 16, torch.zeros(1, dtype=dtype))
    assert norm.weight is not None
    assert (norm.centred, norm.weight.dtype) == (centred, dtype)
    for size in (1e-3, 1e-1, 10.0):
        x = size * torch.randn(5, 16, dtype=dtype)
        expected = module(x)
        unit, inverse = norm.unit(x)
        found = norm.weight * unit + (0 if getattr(module, "bias", None) is None else module.bias)
        tolerance = {torch.bfloat16: 0.02, torch.float32: 1e-5, torch.float64: 1e-5}[dtype]
        assert (found - expected).abs().max() <= tolerance * expected.abs().max()
        assert inverse.shape == (5, 1)


@pytest.mark.parametrize("module", [nn.Linear(16, 16), nn.Identity(), nn.Tanh()])
def test_what_is_no_norm_is_left_to_autograd(module):
    norm = Norm.of(module, 16, torch.zeros(1))
    assert norm.weight is None
    x, gradients = torch.randn(3, 16), torch.randn(2, 3, 16)
    copies = x.expand(2, 3, 16).clone().requires_grad_(True)
    (expected,) = torch.autograd.grad((module(copies) * gradients).sum(), copies)
    assert torch.allclose(norm.pulled_back(x, gradients), expected)


REFUSED = [
    ("gemma4_text", "what leaves layer 0 is not the sum of what was added to it"),  # a third branch
    ("bert", "has the projections query, key, value, not queries, keys, values and output"),
    ("deepseek_v32", "has the projections q_a_proj"),  # latent attention with an index
    ("bitnet", "takes in something else than the heads' outputs"),  # a norm of all heads' outputs
    ("nanochat", "no norm was found between the last block and the final hidden states"),
    ("jamba", "blocks without attention"),  # Mamba between
    ("lfm2_moe", "blocks without attention"),  # a convolution before
    ("bamba", "blocks without attention"),
    ("longcat_flash", "do not correspond one to one"),
    ("bart", "is not the sum of what was added to it"),  # a norm of the stream
    ("mimo_v2_flash", "not all of one kind"),
]


@pytest.mark.parametrize(("name", "why"), REFUSED)
def test_what_is_no_sum_is_refused_by_name(name, why):
    subject = causal(name)
    who = rf"{type(subject.model).__name__} \('{name}'\): circuits of edges cannot be found in this architecture: .*"
    with pytest.raises(AssayError, match=who + why):
        wiring_of(Engine(subject))
    with pytest.raises(AssayError, match=who + why):
        Circuit(["embeddings -> logits"]).check(subject, [])


def test_other_objectives_are_refused():
    subject = Subject(build("bert", "masked"), None, "bert")
    with pytest.raises(AssayError, match="edges are for causal decoders"):
        wiring_of(Engine(subject))


def test_encoder_decoders_are_refused():
    subject = Subject(build("t5", "features"), None, "t5")
    with pytest.raises(AssayError, match="edges are for causal decoders"):
        wiring_of(Engine(subject))


def test_a_subject_in_training_mode_is_refused():
    subject = tiny("gpt2")
    subject.model.train()
    with pytest.raises(AssayError, match=r"in training mode.*model\.eval\(\)"):
        wiring_of(Engine(subject))
    subject.model.eval()
    assert wiring_of(Engine(subject)).graph.layers == 2


class Stored(nn.Parameter):
    """Weights of a kind of their own, as those of bitsandbytes are."""


class Rounded(nn.Linear):
    """Whole numbers, and beside them what they are multiplied by: a plain layer to all who look at its class."""

    def __init__(self, like: nn.Linear) -> None:
        super().__init__(like.in_features, like.out_features, bias=like.bias is not None, dtype=like.weight.dtype)
        self.scale = float(like.weight.detach().abs().max()) / 127
        self.weight = nn.Parameter((like.weight.detach() / self.scale).round())
        self.bias = like.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(inputs, self.weight * self.scale, self.bias)


def stored(subject: Subject) -> None:
    for module in subject.model.modules():
        if isinstance(module, nn.Linear):
            module.weight = Stored(module.weight.data)


def rounded(subject: Subject, *names: str) -> None:
    for parent in list(subject.model.modules()):
        for name, module in parent.named_children():
            if isinstance(module, nn.Linear) and name in names:
                setattr(parent, name, Rounded(module))


def in_eight_bits(subject: Subject) -> None:
    """By torch's own layers, which pack their weights."""
    if torch.backends.quantized.engine == "none":
        pytest.skip("this torch computes nothing in eight bits")
    torch.ao.quantization.quantize_dynamic(subject.model, {nn.Linear}, dtype=torch.qint8, inplace=True)


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
QUANTIZED = {
    "weights of a kind of their own": (stored, "no linear projections .* dequantize"),
    "packed in eight bits": (in_eight_bits, "no linear projections .* dequantize"),
    "whole numbers and a scale": (lambda subject: rounded(subject, *ATTENTION), "does not give the subject's logits"),
    "in the output projection alone": (lambda subject: rounded(subject, "o_proj"), "residual stream|logits"),
}


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*[Qq]uantiz.*:UserWarning")
@pytest.mark.parametrize("how", QUANTIZED)
def test_quantized_weights_are_refused(how):
    """No slices of them are what the module multiplies by: whoever looks at weights would explain another model."""
    change, why = QUANTIZED[how]
    subject = tiny("llama", dtype=torch.float32)
    pairs = random_pairs(subject, 30)
    assert wiring_of(Engine(subject)).graph.layers == 2
    change(subject)
    for call in (
        lambda: wiring_of(Engine(subject)),
        lambda: Circuit(["embeddings -> logits"]).check(subject, []),
        lambda: Circuit(["embeddings -> logits"]).apply(subject),
        lambda: Circuit(3, method="eap").fit(collect(Engine(subject), pairs, ())),
    ):
        with pytest.raises(AssayError, match=rf"LlamaForCausalLM \('llama'\).*({why})"):
            call()


def test_quantized_mlps_are_run_as_they_are():
    """An MLP is one sender: it is run by its own code, and nothing is read from its weights."""
    subject = tiny("llama")
    rounded(subject, "gate_proj", "up_proj", "down_proj")
    graph = wiring_of(Engine(subject)).graph
    assert graph.size == len(graph.edges(graph.exists))


def test_a_wiring_is_found_once_and_again_when_weights_change():
    subject = tiny("gpt2")
    first = wiring_of(Engine(subject))
    assert wiring_of(Engine(subject)) is first
    with torch.no_grad():
        subject.model.transformer.h[0].attn.c_proj.weight.mul_(2)
    second = wiring_of(Engine(subject))
    assert second is not first
    assert second.graph == first.graph


def test_a_known_wiring_does_not_keep_its_model_alive():
    subject = tiny("gpt2")
    Circuit(["embeddings -> logits"]).apply(subject)
    known = weakref.ref(subject.model)
    del subject
    gc.collect()
    assert known() is None


def test_nothing_is_left_on_the_model():
    subject = tiny("gpt2")
    engine, split = Engine(subject), random_pairs(tiny("gpt2"), 3)
    before = {name: set(vars(module)) for name, module in subject.model.named_modules()}
    proxy = Circuit(["embeddings -> layer0.mlp", "layer0.mlp -> logits"]).apply(subject)
    proxy.on_pairs(torch.from_numpy(split.tokens), torch.from_numpy(split.counterfactuals))
    for name, module in subject.model.named_modules():
        assert set(vars(module)) == before[name]
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert engine.layers == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_served(dtype):
    subject = tiny("llama", dtype=dtype, scale=1.0)
    split = random_pairs(subject, 3)
    wiring = wiring_of(Engine(subject))
    assert all(layer.norm.weight is not None for layer in wiring.layers)
    proxy = Circuit([str(edge) for edge in wiring.graph.edges(wiring.graph.exists)]).apply(subject)
    tokens, valid = torch.from_numpy(split.tokens), torch.from_numpy(split.valid.astype(np.int64))
    found = proxy.on_pairs(tokens, torch.from_numpy(split.counterfactuals), valid)
    assert found.dtype == dtype
    off = (found - subject(tokens, valid))[valid.bool()].abs().max()
    assert off < 0.1 * subject(tokens, valid).float().std()


def test_one_layer_and_one_head():
    config = GPT2Config(vocab_size=90, n_positions=8, n_embd=8, n_layer=1, n_head=1, bos_token_id=None)
    subject = Subject(GPT2LMHeadModel(config).double(), None, "one")
    assert wiring_of(Engine(subject)).graph == Graph(1, 1, 1)
