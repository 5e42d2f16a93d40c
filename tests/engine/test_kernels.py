"""The same functions by other kernels: equal to the model's own, put back afterwards, and only where they apply."""

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.activations import GELUTanh, NewGELUActivation
from transformers.pytorch_utils import Conv1D

from assay.engine import Engine, _kernels
from assay.engine._kernels import faster, gelu, using_kernels
from assay.engine._tail import given
from assay.subjects import Subject

needs_onednn = pytest.mark.skipif(not _kernels._by_onednn(), reason="this CPU or torch leaves dense layers to torch")


@pytest.fixture
def products(monkeypatch):
    """The shapes of inputs that oneDNN was given, every size of them."""
    seen = []
    plain = _kernels._product

    def product(inputs, weight, bias):
        seen.append(tuple(inputs.shape))
        return plain(inputs, weight, bias)

    monkeypatch.setattr(_kernels, "_product", product)
    monkeypatch.setattr(_kernels, "LEAST", 0)
    monkeypatch.setattr(_kernels, "ROWS", 0)
    return seen


def test_gelu_is_that_of_torch():
    inputs = torch.cat([torch.linspace(-12, 12, 100_001), torch.tensor([-1e30, -200.0, 200.0, 1e20])])
    expected = nn.functional.gelu(inputs.double(), approximate="tanh")
    torch.testing.assert_close(gelu(inputs).double(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_gelu_in_another_precision_is_torchs_own(dtype):
    inputs = torch.linspace(-5, 5, 999, dtype=dtype)
    torch.testing.assert_close(gelu(inputs), nn.functional.gelu(inputs, approximate="tanh"), atol=0, rtol=0)


@needs_onednn
@pytest.mark.parametrize("layer", [nn.Linear(40, 24), nn.Linear(40, 24, bias=False), Conv1D(24, 40)], ids=repr)
@pytest.mark.parametrize("shape", [(7, 40), (3, 5, 40), (1, 40), (2, 0, 40)])
def test_dense_layers_give_what_they_give(layer, shape, products):
    inputs = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = faster(layer)[layer](inputs)
        bias = None if layer.bias is None else layer.bias.double()
        weight = layer.weight if isinstance(layer, nn.Linear) else layer.weight.t()
        exact = nn.functional.linear(inputs.double(), weight.double(), bias)
    assert products == [shape]
    torch.testing.assert_close(found.double(), exact, atol=1e-5, rtol=1e-5)


@needs_onednn
def test_inputs_of_another_kind_are_left_to_the_layer(products, monkeypatch):
    layer = nn.Linear(8, 8)
    kernel = faster(layer)[layer]
    layer.double()
    with torch.inference_mode():
        assert kernel(torch.ones(3, 8, dtype=torch.float64)).dtype == torch.float64
        layer.float()
        with monkeypatch.context() as without:
            without.setattr(torch.backends.mkldnn, "enabled", False)
            kernel(torch.ones(3, 8))
        assert not products
        kernel(torch.ones(3, 8))
        with torch.autocast("cpu", torch.bfloat16):
            assert kernel(torch.ones(3, 8)).dtype == torch.bfloat16
    assert products == [(3, 8)]


@needs_onednn
@pytest.mark.parametrize(("shape", "large"), [((16, 500), True), ((15, 500), False), ((16, 100), False)])
def test_small_products_are_left_to_the_layer(shape, large, monkeypatch):
    monkeypatch.setattr(_kernels, "_product", lambda *given: pytest.fail("by oneDNN") if not large else given[0])
    layer = nn.Linear(shape[1], 500)
    with torch.inference_mode():
        assert faster(layer)[layer](torch.ones(shape)).shape == (shape if large else (shape[0], 500))


@needs_onednn
def test_a_class_that_was_given_another_forward_keeps_it(monkeypatch, products):
    layer = nn.Linear(4, 4)
    kernel = faster(layer)[layer]
    monkeypatch.setattr(nn.Linear, "forward", lambda self, inputs: inputs + 1)
    assert kernel(torch.ones(2, 4)).tolist() == [[2.0] * 4] * 2
    assert layer not in faster(layer)
    assert not products


def test_layers_of_another_kind_have_no_other_kernel():
    class Adapted(nn.Linear):
        """A layer with something of its own."""

    half = nn.Linear(4, 4).to(torch.bfloat16)
    assert not faster(nn.Sequential(Adapted(4, 4), half, nn.GELU(), nn.ReLU()))
    assert set(faster(nn.Sequential(GELUTanh(), NewGELUActivation())).values()) == {gelu}


@pytest.mark.parametrize("inside", [False, True])
def test_what_is_given_stays_given_and_forwards_are_put_back(inside):
    model = nn.Sequential(nn.Linear(4, 4), NewGELUActivation())
    one = torch.ones(2, 4)
    blocks = [given(model[1], one), using_kernels(faster(model))]
    first, second = reversed(blocks) if inside else blocks
    with pytest.raises(ZeroDivisionError), first:  # noqa: PT012
        with second:
            assert model(torch.zeros(2, 4)) is one
        raise ZeroDivisionError
    assert not any("forward" in vars(module) for module in model.modules())


def test_kernels_may_be_in_use_twice():
    model = NewGELUActivation()
    with using_kernels(faster(model)):
        with using_kernels(faster(model)):
            assert model.forward is gelu
        assert model.forward is gelu
    assert "forward" not in vars(model)


@needs_onednn
@pytest.mark.parametrize(
    "model",
    [
        GPT2LMHeadModel(GPT2Config(vocab_size=90, n_positions=32, n_embd=32, n_layer=2, n_head=2)),
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=90,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
            )
        ),
    ],
    ids=["gpt2", "llama"],
)
def test_a_pass_by_other_kernels_is_the_models_own(model, products):
    subject = Subject(model.eval(), None, "tiny")
    engine = Engine(subject)
    tokens = torch.arange(60).reshape(3, 20)
    products.clear()
    found = engine.run(tokens).logits
    dense = [module for module in model.modules() if type(module) in (nn.Linear, Conv1D)]
    assert len(products) == len(dense)
    torch.testing.assert_close(found, subject(tokens), atol=2e-6, rtol=1e-5)
    resumed = engine.run_from(engine.run(tokens, resumable=True, logits=False), logits=False)
    torch.testing.assert_close(engine.logits(resumed, slice(3, 9)), found[:, 3:9], atol=2e-6, rtol=1e-5)
