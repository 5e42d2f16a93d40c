"""Adapters: what results is the base with the adapter in its weights, and nothing random is in it."""

import copy
import importlib.util
import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from assay import AssayError
from assay.engine import Engine
from assay.subjects import Subject, load, save

peft = pytest.importorskip("peft", reason="adapters are written and read by the package peft")

TOKENS = torch.randint(0, 64, (3, 12), generator=torch.Generator().manual_seed(0))


def llama(seed=0, **changes) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 32}
    config = LlamaConfig(**(sizes | {"num_hidden_layers": 2, "num_attention_heads": 4} | changes))
    return LlamaForCausalLM(config).eval()


def adapt(model, folder, kind=peft.LoraConfig, *, filled=True, **settings):
    """Put an adapter on a copy of a model, with random numbers if `filled`, and save it; the unmerged whole."""
    torch.manual_seed(1)
    settings = {"target_modules": ["q_proj", "v_proj", "up_proj"], "task_type": "CAUSAL_LM"} | settings
    with warnings.catch_warnings(action="ignore"):  # of a base that has no folder, and of tied layers
        tuned = peft.get_peft_model(copy.deepcopy(model), kind(**settings))
        for name, weight in tuned.named_parameters():
            if filled and weight.requires_grad and "magnitude" not in name:
                torch.nn.init.normal_(weight, mean=float("ia3" in name), std=0.1)
        tuned.save_pretrained(folder)
    return tuned.eval()


@pytest.fixture
def base(tmp_path) -> Subject:
    model = llama()
    model.save_pretrained(tmp_path / "base")
    return load(tmp_path / "base")


@pytest.fixture
def folder(base, tmp_path):
    adapt(base.model, tmp_path / "adapter")
    return tmp_path / "adapter"


def settings(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rename(folder, change):
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({change(name): value for name, value in weights.items()}, folder / "adapter_model.safetensors")


# -- what results ---------------------------------------------------------------------------------------------------


def test_the_adapter_is_in_the_weights(base, folder):
    """W + (alpha / r) B A, by hand."""
    subject = load(folder)
    parts = load_file(folder / "adapter_model.safetensors")
    told = json.loads((folder / "adapter_config.json").read_text())
    changed = 0
    for name, weight in base.model.state_dict().items():
        low, high = (parts.get(f"base_model.model.{name[:-7]}.lora_{part}.weight") for part in "AB")
        added = 0 if low is None else told["lora_alpha"] / told["r"] * high @ low
        torch.testing.assert_close(subject.model.state_dict()[name], weight + added)
        changed += low is not None
    assert changed == 2 * 3


@pytest.mark.parametrize("given", [True, False])
def test_it_answers_as_the_unmerged_one(base, tmp_path, given):
    tuned = adapt(base.model, tmp_path / "adapter")
    subject = load(tmp_path / "adapter", base=base if given else None)
    with torch.no_grad():
        torch.testing.assert_close(subject(TOKENS), tuned(TOKENS).logits, atol=1e-5, rtol=1e-5)
    assert (subject(TOKENS) - base(TOKENS)).abs().max() > 0.01
    assert (subject.name, subject.objective, type(subject.model)) == ("adapter", "causal", LlamaForCausalLM)
    assert not subject.alterations
    assert subject.behaviour_sha256 == base.behaviour_sha256
    assert subject.config_sha256 == base.config_sha256
    assert all(weight.requires_grad for weight in subject.model.parameters())


def test_a_fresh_one_is_its_base_exactly(base, tmp_path):
    adapt(base.model, tmp_path / "adapter", filled=False)
    subject = load(tmp_path / "adapter")
    assert subject.weights_sha256 == base.weights_sha256
    assert torch.equal(subject(TOKENS), base(TOKENS))


def test_the_base_is_left_as_it_is(base, folder):
    before = (base.weights_sha256, base.config_sha256, base.behaviour_sha256, base(TOKENS))
    load(folder, base=base, dtype=torch.float64)
    assert (base.weights_sha256, base.config_sha256, base.behaviour_sha256) == before[:3]
    assert torch.equal(base(TOKENS), before[3])
    assert base.model.dtype == torch.float32


def test_the_record_tells_what_was_merged_into_what(base, folder, tmp_path):
    subject = load(folder)
    told = subject.record["adapter"]
    assert subject.record["source"] == "adapter"
    assert (told["type"], told["base"], told["names_base"]) == ("LORA", "base", str(tmp_path / "base"))
    assert told["base_weights_sha256"] == base.weights_sha256
    assert told["merged"].startswith("into the base's weights; ")
    assert float(told["merged"].split()[4]) < 1e-5
    assert subject.describe()["adapter"] == told
    save(subject, tmp_path / "whole")
    assert torch.equal(load(tmp_path / "whole")(TOKENS), subject(TOKENS))


def test_the_engine_runs_it(folder):
    subject = load(folder)
    assert torch.allclose(Engine(subject).run(TOKENS).logits, subject(TOKENS), atol=1e-4)


def test_dtype_can_be_chosen(base, folder):
    assert load(folder, dtype=torch.float64).model.dtype == torch.float64
    assert load(folder, base=base, dtype=torch.float64).model.dtype == torch.float64
    assert load(folder, dtype=torch.bfloat16).model.dtype == torch.bfloat16


def test_nothing_is_printed(folder, capfd):
    capfd.readouterr()
    load(folder)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (peft.LoraConfig, {"use_dora": True}),
        (peft.LoraConfig, {"use_rslora": True, "modules_to_save": ["norm"]}),
        (peft.LoraConfig, {"bias": "all", "target_modules": ["o_proj"]}),
        (peft.LoHaConfig, {}),
        (peft.IA3Config, {"feedforward_modules": ["up_proj"]}),
    ],
)
def test_other_kinds_that_can_be_merged(tmp_path, kind, options):
    base = Subject(llama(attention_bias=True), None, "base")
    tuned = adapt(base.model, tmp_path / "adapter", kind, **options)
    subject = load(tmp_path / "adapter", base=base)
    with torch.no_grad():
        torch.testing.assert_close(subject(TOKENS), tuned(TOKENS).logits, atol=1e-5, rtol=1e-4)
    assert (subject(TOKENS) - base(TOKENS)).abs().max() > 1e-3


def test_conv1d_and_encoders(tmp_path):
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4)).eval()
    tuned = adapt(gpt2, tmp_path / "gpt2", target_modules=["c_attn"], fan_in_fan_out=True)
    with torch.no_grad():
        logits = load(tmp_path / "gpt2", base=Subject(gpt2, None, "gpt2"))(TOKENS)
        torch.testing.assert_close(logits, tuned(TOKENS).logits, atol=1e-5, rtol=1e-5)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    bert = BertModel(BertConfig(vocab_size=64, **sizes), add_pooling_layer=False).eval()
    bert.save_pretrained(tmp_path / "bert")
    tuned = adapt(load(tmp_path / "bert").model, tmp_path / "encoder", target_modules=["query"], task_type=None)
    settings(tmp_path / "encoder", base_model_name_or_path=str(tmp_path / "bert"))
    subject = load(tmp_path / "encoder", pooling="cls", prompt="query: ")
    assert (subject.objective, subject.pooling, subject.prompt) == ("embedding", "cls", "query: ")
    with torch.no_grad():
        torch.testing.assert_close(subject(TOKENS), tuned(TOKENS).last_hidden_state, atol=1e-5, rtol=1e-5)


def test_the_tokenizer_is_its_own_or_that_of_the_base(subject, tmp_path):
    save(subject, tmp_path / "base")
    base = load(tmp_path / "base")
    adapt(base.model, tmp_path / "adapter", target_modules=["c_attn"], fan_in_fan_out=True)
    assert load(tmp_path / "adapter").tokenizer.get_vocab() == base.tokenizer.get_vocab()
    assert load(tmp_path / "adapter", base=base).tokenizer is base.tokenizer
    base.tokenizer.save_pretrained(tmp_path / "adapter")
    own = load(tmp_path / "adapter", base=base).tokenizer
    assert own is not base.tokenizer
    assert own.get_vocab() == base.tokenizer.get_vocab()


# -- where the base is ----------------------------------------------------------------------------------------------


def test_a_relative_name_is_seen_from_here_or_from_the_adapter(base, folder, tmp_path, monkeypatch):
    expected = load(folder).weights_sha256
    settings(folder, base_model_name_or_path="../base")
    assert load(folder).weights_sha256 == expected
    settings(folder, base_model_name_or_path="base")
    monkeypatch.chdir(tmp_path)
    assert load(folder).weights_sha256 == expected


def test_the_base_may_be_named_in_the_call(folder, tmp_path):
    expected = load(folder).weights_sha256
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(AssayError):
        load(folder)
    assert load(folder, base=tmp_path / "moved").weights_sha256 == expected


def test_another_base_of_the_same_shapes_is_allowed_and_told(base, folder):
    other = Subject(llama(seed=5), None, "other")
    subject = load(folder, base=other)
    told = subject.record["adapter"]
    assert told["base"] == "other"
    assert told["names_base"].endswith("base")
    assert told["base_weights_sha256"] == other.weights_sha256 != base.weights_sha256
    assert subject.weights_sha256 != load(folder).weights_sha256


@pytest.mark.parametrize("named", [None, ""])
def test_a_base_that_is_not_named_must_be_given(base, folder, named):
    settings(folder, base_model_name_or_path=named)
    with pytest.raises(AssayError, match="does not name its base"):
        load(folder)
    assert load(folder, base=base).record["adapter"]["names_base"] == named


def test_an_adapter_on_an_adapter_is_refused(folder):
    settings(folder, base_model_name_or_path=str(folder))
    with pytest.raises(AssayError, match="which is an adapter itself"):
        load(folder)


def test_an_adapter_beside_a_whole_model_goes_before_it(base, folder, tmp_path):
    """A folder that holds both would otherwise be read without its adapter."""
    expected = load(folder).weights_sha256
    for path in (tmp_path / "base").iterdir():
        shutil.copy(path, folder)
    assert load(folder).weights_sha256 == expected != base.weights_sha256


def test_a_whole_model_has_no_base(base, tmp_path):
    with pytest.raises(AssayError, match="base is for adapters and GGUF files"):
        load(tmp_path / "base", base=base)


# -- what does not fit is refused -----------------------------------------------------------------------------------


def test_tensors_of_other_names_are_refused(folder):
    """peft only warns, and A and B stay as they were made."""
    rename(folder, lambda name: name.replace("base_model.model.", "base_model.model.model."))
    with pytest.raises(AssayError, match=r"12 tensors missing, which would be random \(.*; 12 tensors left over \("):
        load(folder)


def test_one_tensor_missing_is_refused_by_name(folder):
    weights = load_file(folder / "adapter_model.safetensors")
    weights.pop("base_model.model.model.layers.1.mlp.up_proj.lora_B.weight")
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(AssayError, match=r"1 tensors missing.*layers\.1\.mlp\.up_proj\.lora_B[^;]*Give base="):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 1}, r"6 tensors left over \(.*layers\.1\."),
        ({"num_hidden_layers": 3}, r"6 tensors missing, which would be random \(.*layers\.2\."),
        ({"hidden_size": 64}, "size mismatch for .*lora_A"),
    ],
)
def test_a_base_of_other_shapes_is_refused(folder, changes, words):
    with pytest.raises(AssayError, match=words) as error:
        load(folder, base=Subject(llama(**changes), None, "other"))
    assert "\n" not in str(error.value)


def test_a_base_of_another_architecture_is_refused(folder):
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4))
    with pytest.raises(AssayError, match=r"cannot be put on 'gpt2' .*Target modules"):
        load(folder, base=Subject(gpt2, None, "gpt2"))


def test_added_tokens_are_no_weights(base, tmp_path):
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    peft.get_peft_model(copy.deepcopy(base.model), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(AssayError, match=r"\(PROMPT_TUNING\) cannot be .*adds tokens or layers, not weights"):
        load(tmp_path / "adapter", base=base)


def test_an_output_layer_that_is_tied_is_refused(tmp_path):
    """Merged, the embedding changes, too, and the model is another than the adapter's."""
    model = llama(tie_word_embeddings=True)
    adapt(model, tmp_path / "adapter", target_modules=["lm_head"])
    with pytest.raises(AssayError, match="no rounding"):
        load(tmp_path / "adapter", base=Subject(model, None, "base"))


def test_weights_in_a_pickle_are_read_only_when_asked_for(folder):
    expected = load(folder).weights_sha256
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(AssayError, match="pickles can run code"):
        load(folder)
    assert load(folder, allow_pickle=True).weights_sha256 == expected


@pytest.mark.parametrize("text", ["{", "[]", '{"peft_type": "NEW", "base_model_name_or_path": "../base"}'])
def test_settings_that_cannot_be_read_are_refused(folder, text):
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(AssayError) as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_cut_weights_are_refused(folder):
    data = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(AssayError, match="cannot be put on"):
        load(folder)


def test_numbers_that_are_not_finite_are_refused(folder):
    weights = load_file(folder / "adapter_model.safetensors")
    weights["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"][0, 0] = torch.nan
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(AssayError):
        load(folder)


def test_another_objective_than_the_base_is_refused(base, folder):
    with pytest.raises(AssayError, match="the base 'base' of 'adapter' is causal"):
        load(folder, base=base, objective="embedding")


def test_a_missing_package_is_named(folder, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else found(name))
    with pytest.raises(AssayError, match=r"package peft: pip install 'assay-interp\[peft\]'"):
        load(folder)
