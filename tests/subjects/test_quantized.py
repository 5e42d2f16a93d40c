"""Quantized folders: read as what they say they are, or refused; what was rounded, and computed in, is recorded."""

import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from assay import AssayError
from assay.engine import Engine
from assay.subjects import Subject, load

TOKENS = torch.randint(0, 64, (3, 12), generator=torch.Generator().manual_seed(0))


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 32}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=2, num_attention_heads=4)).eval()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=64, n_layer=2, n_head=4)).eval()


def configure(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def quantized(model, folder, config):
    """A folder that transformers wrote of a model it quantized; saved before the first use of it."""
    model.save_pretrained(folder / "plain")
    AutoModelForCausalLM.from_pretrained(folder / "plain", quantization_config=config).save_pretrained(folder / "mine")
    return folder / "mine"


def distance(subject, model) -> float:
    expected = model(TOKENS).logits.detach()
    return float((subject(TOKENS) - expected).norm() / expected.norm())


def assert_steady(subject, folder):
    """What was read is the same whenever one looks, is what is on disk, and the engine and the control can use it."""
    logits, before = subject(TOKENS), (subject.weights_sha256, subject.config_sha256)
    assert torch.equal(subject(TOKENS), logits)
    assert (subject.weights_sha256, subject.config_sha256) == before
    assert torch.equal(subject(TOKENS), logits)
    again = load(folder)
    assert (again.weights_sha256, again.config_sha256) == before
    assert torch.equal(again(TOKENS), logits)
    assert (Engine(subject).run(TOKENS).logits - logits).norm() < 0.05 * logits.norm()
    assert (subject.shuffled_copy()(TOKENS) - logits).norm() > 0.5 * logits.norm()
    assert torch.equal(subject(TOKENS), logits)
    assert subject.describe()["quantization"] == subject.record["quantization"]


# -- what is refused ------------------------------------------------------------------------------------------------


def test_a_quantization_that_would_be_skipped_is_refused(tmp_path):
    llama().save_pretrained(tmp_path)
    configure(tmp_path, quantization_config={"quant_method": "unheard-of", "bits": 4})
    with pytest.raises(AssayError, match=r"quantized by 'unheard-of', which is not known.*bitsandbytes"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, r"missing: pip install bitsandbytes( accelerate)?\."),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, r"missing: pip install bitsandbytes( accelerate)?\."),
        ({"quant_method": "compressed-tensors"}, r"missing: pip install compressed-tensors( accelerate)?\."),
        ({"quant_method": "quanto", "weights": "int8"}, r"missing: pip install optimum-quanto( accelerate)?\."),
        ({"quant_method": "torchao", "quant_type": {}}, r"missing: pip install torchao( accelerate)?\."),
        ({"quant_method": "gptq", "bits": 4}, r"missing: pip install gptqmodel( accelerate)?\. Or .*dequantize"),
        ({"quant_method": "aqlm"}, r"missing: pip install 'aqlm\[gpu,cpu\]'( accelerate)?\."),
        ({"bits": 4}, "quant_method"),
    ],
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, said, words):
    llama().save_pretrained(tmp_path)
    configure(tmp_path, quantization_config=said)
    found = importlib.util.find_spec
    packages = ("bitsandbytes", "compressed_tensors", "optimum", "torchao", "gptqmodel", "aqlm")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name.partition(".")[0] in packages else found(name)
    )
    with pytest.raises(AssayError, match=words) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_no_quantization_is_none(tmp_path):
    llama().save_pretrained(tmp_path)
    configure(tmp_path, quantization_config=None)
    assert "quantization" not in load(tmp_path).describe()


def test_a_folder_of_which_nothing_is_quantized_is_refused(tmp_path):
    """GPT-2's layers are of a class of their own, which bitnet, like others, passes over without a word."""
    pytest.importorskip("accelerate", reason="transformers reads quantized weights with the package accelerate")
    gpt2().save_pretrained(tmp_path)
    configure(tmp_path, quantization_config={"quant_method": "bitnet"})
    with pytest.raises(AssayError, match=r"quantized by bitnet, but none of its 9 linear layers is after loading"):
        load(tmp_path)


def test_plain_weights_that_are_called_quantized_are_refused(tmp_path):
    pytest.importorskip("compressed_tensors", reason="the folder names the package compressed-tensors")
    llama().save_pretrained(tmp_path)
    configure(tmp_path, quantization_config=packed_settings())
    with pytest.raises(AssayError, match=r"lacks \d+ tensors"):
        load(tmp_path)


# -- bitsandbytes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [llama, gpt2])
def test_four_bits_of_bitsandbytes(tmp_path, make):
    """Exactly the product of the dequantized weights, in the dtype that is asked for."""
    bnb = pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig  # noqa: PLC0415

    model = make()
    folder = quantized(model, tmp_path, BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"))
    subject = load(folder)
    layers = 14 if make is llama else 8
    assert subject.record["quantization"] == {
        "method": "bitsandbytes",
        "layers": layers,
        "of_layers": layers + 1,
        "computed_in": "float32",
    }
    plain = make()
    for name, module in subject.model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            weight = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            into = plain.get_submodule(name).weight.data
            into.copy_(weight if weight.shape == into.shape and make is llama else weight.T)
    torch.testing.assert_close(subject(TOKENS), plain(TOKENS).logits.detach(), atol=1e-5, rtol=1e-5)
    assert 0.01 < distance(subject, model) < 0.3
    assert subject.parameters == Subject(model, None, "plain").parameters
    assert_steady(subject, folder)


def test_four_bits_that_were_packed_anew_are_refused(tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig  # noqa: PLC0415

    folder = quantized(llama(), tmp_path, BitsAndBytesConfig(load_in_4bit=True))
    model = AutoModelForCausalLM.from_pretrained(folder)
    if not model.model.layers[0].mlp.up_proj.support_avx512bf16_for_cpu:
        pytest.skip("this CPU does not multiply in bfloat16")
    with torch.no_grad():
        model(TOKENS)
    with pytest.raises(AssayError, match=r"layers\.0\.self_attn\.q_proj were packed anew"):
        Subject(model, None, "used")


@pytest.mark.parametrize("make", [llama, gpt2])
def test_eight_bits_of_bitsandbytes(tmp_path, make, capfd):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig  # noqa: PLC0415

    model = make()
    folder = quantized(model, tmp_path, BitsAndBytesConfig(load_in_8bit=True))
    capfd.readouterr()
    subject = load(folder)
    assert 1e-3 < distance(subject, model) < 0.05
    assert "inputs will be cast" not in "".join(capfd.readouterr())
    assert subject.record["quantization"]["computed_in"].startswith("int8")
    assert_steady(subject, folder)


# -- torchao --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "computed_in"),
    [
        ("Int8WeightOnlyConfig", "float32"),
        ("Int8DynamicActivationInt8WeightConfig", "float32, from inputs that are rounded, too"),
    ],
)
def test_eight_bits_of_torchao(tmp_path, kind, computed_in):
    quantization = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig  # noqa: PLC0415

    model = llama()
    folder = quantized(model, tmp_path, TorchAoConfig(getattr(quantization, kind)()))
    subject = load(folder)
    told = subject.record["quantization"]
    assert (told["method"], told["layers"], told["of_layers"], told["computed_in"]) == ("torchao", 14, 15, computed_in)
    assert 1e-3 < distance(subject, model) < 0.05
    assert not subject.alterations
    assert_steady(subject, folder)


def test_torchao_does_nothing_to_gpt2_and_is_refused(tmp_path):
    quantization = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig  # noqa: PLC0415

    folder = quantized(gpt2(), tmp_path, TorchAoConfig(quantization.Int8WeightOnlyConfig()))
    with pytest.raises(AssayError, match="quantized by torchao, but none of its 9 linear layers"):
        load(folder)


# -- quanto ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_that_quanto_rounds_on_loading(tmp_path, bits):
    pytest.importorskip("optimum.quanto")
    model = llama()
    model.save_pretrained(tmp_path)
    configure(tmp_path, quantization_config={"quant_method": "quanto", "weights": f"int{bits}", "activations": None})
    subject = load(tmp_path)
    assert subject.record["quantization"]["layers"] == 14
    assert (1e-3 if bits == 8 else 0.03) < distance(subject, model) < (0.05 if bits == 8 else 0.5)
    assert_steady(subject, tmp_path)


def test_activations_that_were_not_measured_are_refused(tmp_path):
    pytest.importorskip("optimum.quanto")
    llama().save_pretrained(tmp_path)
    configure(tmp_path, quantization_config={"quant_method": "quanto", "weights": "int8", "activations": "int8"})
    with pytest.raises(AssayError):
        load(tmp_path)


def test_frozen_weights_that_know_no_inference_mode(tmp_path):
    quanto = pytest.importorskip("optimum.quanto")
    model = llama()
    quanto.quantize(model, weights=quanto.qint4)
    quanto.freeze(model)
    with torch.no_grad():
        expected = model(input_ids=TOKENS).logits
    with pytest.raises(RuntimeError, match="inference tensor"), torch.inference_mode():
        model(input_ids=TOKENS)
    logits = Subject(model, None, "frozen")(TOKENS)
    assert torch.equal(logits, expected)
    assert not logits.requires_grad


def test_plain_weights_are_used_in_inference_mode(subject):
    assert subject(torch.tensor([[8, 0, 1, 9]])).is_inference()


# -- compressed-tensors ---------------------------------------------------------------------------------------------


def packed_settings():
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }


def test_packed_weights_of_compressed_tensors(tmp_path):
    """Packed by hand: eight numbers of 4 bits, 8 added, in an int32, the first lowest."""
    pytest.importorskip("compressed_tensors")
    model = llama()
    model.save_pretrained(tmp_path)
    stored, plain = {}, llama()
    for key, weight in load_file(tmp_path / "model.safetensors").items():
        if not key.endswith("proj.weight"):
            stored[key] = weight
            continue
        scale = weight.abs().amax(1, keepdim=True) / 7
        codes = (weight / scale).round()
        eights = (codes.long() + 8).reshape(len(weight), -1, 8)
        stored[f"{key}_packed"] = (eights << torch.arange(0, 32, 4)).sum(-1).to(torch.int32)
        stored[f"{key}_scale"], stored[f"{key}_shape"] = scale, torch.tensor(weight.shape)
        plain.get_submodule(key.removesuffix(".weight")).weight.data = codes * scale
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    configure(tmp_path, quantization_config=packed_settings())
    subject = load(tmp_path)
    assert torch.equal(subject(TOKENS), plain(TOKENS).logits)
    assert subject.record["quantization"] == {
        "method": "compressed-tensors",
        "layers": 14,
        "of_layers": 15,
        "computed_in": "float32",
    }
    assert_steady(subject, tmp_path)


# -- together with adapters -----------------------------------------------------------------------------------------


def test_an_adapter_is_not_merged_into_quantized_weights(tmp_path):
    pytest.importorskip("peft")
    settings = {"peft_type": "LORA", "base_model_name_or_path": "base", "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    save_file({"base_model.model.x.lora_A.weight": torch.ones(2, 2)}, tmp_path / "adapter_model.safetensors")
    model = llama()
    base = Subject(model, None, "base", record={"quantization": {"method": "bitsandbytes"}})
    with pytest.raises(AssayError, match=r"'base' of .* is quantized, and merging an adapter would round"):
        load(tmp_path, base=base)
