"""The model that is judged is the one that was saved: what does not fit its configuration is refused by name."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2DoubleHeadsModel,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from assay import AssayError
from assay.engine import Engine
from assay.subjects import Subject, load

SIZES = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
LLAMA = {**SIZES, "max_position_embeddings": 20}
GPT2 = {"vocab_size": 30, "n_positions": 20, "n_embd": 16, "n_layer": 2, "n_head": 2, "num_labels": 1}
T5 = {"vocab_size": 30, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
TOKENS = torch.tensor([[1, 2, 3, 4]])


def llama(folder, **options):
    model = LlamaForCausalLM(LlamaConfig(**LLAMA, **options)).eval()
    model.save_pretrained(folder)
    return model


def configure(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def add(folder, **tensors):
    """Put tensors into the checkpoint; None takes one out."""
    weights = load_file(folder / "model.safetensors")
    changed = {name: value for name, value in (weights | tensors).items() if value is not None}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})


# -- tensors that have no place -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("saved_with", "then", "named"),
    [
        ({"attention_bias": True}, {"attention_bias": False}, r"layers\.0\.self_attn\.k_proj\.bias"),
        ({"mlp_bias": True}, {"mlp_bias": False}, r"layers\.0\.mlp\.down_proj\.bias"),
        ({"num_hidden_layers": 3}, {"num_hidden_layers": 2}, r"layers\.2\.input_layernorm\.weight"),
    ],
)
def test_what_the_configuration_leaves_out_is_refused_by_name(tmp_path, saved_with, then, named):
    config = LlamaConfig(**(LLAMA | saved_with))
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    assert load(tmp_path).objective == "causal"
    configure(tmp_path, **then)
    with pytest.raises(AssayError, match=rf"does not use with this configuration \(.*{named}.*another model"):
        load(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.weight_scale_inv",
        "model.layers.0.self_attn.q_proj.weight_scale",
        "model.layers.0.self_attn.q_norm.weight",
        "model.something.weight",
        "v_head.summary.weight",
        "encoder.layer.7.output.dense.bias",
    ],
)
@pytest.mark.parametrize("objective", ["causal", "embedding"])
def test_a_tensor_that_no_class_of_the_architecture_knows_is_refused(tmp_path, name, objective):
    llama(tmp_path)
    add(tmp_path, **{name: torch.ones(2, 2)})
    with pytest.raises(AssayError, match=r"1 tensors that Llama\w+ does not use.*assay\.Subject") as error:
        load(tmp_path, objective=objective)
    assert name.removeprefix("model.") in str(error.value)


def test_only_some_of_many_are_named(tmp_path):
    llama(tmp_path)
    add(tmp_path, **{f"adapter.{number}": torch.ones(1) for number in range(9)})
    with pytest.raises(AssayError, match=r"9 tensors .*\(adapter\.0, adapter\.1, adapter\.2 …\)"):
        load(tmp_path)


def test_other_shapes_are_refused_with_both(tmp_path):
    llama(tmp_path)
    add(tmp_path, **{"model.layers.0.mlp.up_proj.weight": torch.ones(48, 16)})
    with pytest.raises(AssayError, match=r"1 tensors of other shapes .*up_proj\.weight: 48 x 16, not 32 x 16"):
        load(tmp_path)


def test_a_refusal_is_all_that_is_said(tmp_path, capfd):
    """transformers prints tables of its own."""
    llama(tmp_path)
    add(tmp_path, **{"model.layers.0.self_attn.q_proj.bias": torch.ones(16)})
    capfd.readouterr()
    with pytest.raises(AssayError):
        load(tmp_path)
    assert capfd.readouterr() == ("", "")


# -- tensors that may be left over, or missing ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "objective", "kind"),
    [
        (lambda: BertForPreTraining(BertConfig(**SIZES)), "masked", "BertForMaskedLM"),
        (lambda: BertForPreTraining(BertConfig(**SIZES)), "embedding", "BertModel"),
        (lambda: BertForMaskedLM(BertConfig(**SIZES)), "embedding", "BertModel"),
        (lambda: BertForSequenceClassification(BertConfig(**SIZES)), "embedding", "BertModel"),
        (lambda: RobertaForMaskedLM(RobertaConfig(**SIZES)), "embedding", "RobertaModel"),
        (lambda: GPT2DoubleHeadsModel(GPT2Config(**GPT2)), "causal", "GPT2LMHeadModel"),
        (lambda: GPT2LMHeadModel(GPT2Config(**GPT2)), "embedding", "GPT2Model"),
        (lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)), "embedding", "LlamaModel"),
        (
            lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)),
            "embedding",
            "GPTNeoXModel",
        ),  # its head is renamed on disk
        (lambda: T5ForConditionalGeneration(T5Config(**T5)), "embedding", "T5EncoderModel"),
        (lambda: T5ForConditionalGeneration(T5Config(**T5, tie_word_embeddings=False)), "embedding", "T5EncoderModel"),
        (lambda: T5EncoderModel(T5Config(**T5)), None, "T5EncoderModel"),
    ],
)
def test_heads_of_another_task_are_normal(tmp_path, make, objective, kind):
    make().save_pretrained(tmp_path)
    assert type(load(tmp_path, objective=objective).model).__name__ == kind


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)), ["model.layers.0.self_attn.rotary_emb.inv_freq"]),
        (lambda: BertForMaskedLM(BertConfig(**SIZES)), ["bert.embeddings.position_ids"]),
        (
            lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
            ["transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias"],
        ),
    ],
)
def test_buffers_that_older_versions_saved_are_normal(tmp_path, make, names):
    model = make()
    model.save_pretrained(tmp_path)
    add(tmp_path, **{name: torch.ones(1) for name in names})
    assert load(tmp_path).weights_sha256 == Subject(model, None, "as made").weights_sha256


def test_tied_weights_may_be_saved_once(tmp_path):
    model = GPT2LMHeadModel(GPT2Config(**GPT2)).eval()
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert torch.equal(load(tmp_path)(TOKENS), model(TOKENS).logits)


def test_a_head_of_its_own_is_used_whatever_the_configuration_says(tmp_path):
    model = llama(tmp_path, tie_word_embeddings=False)
    configure(tmp_path, tie_word_embeddings=True)
    assert torch.equal(load(tmp_path)(TOKENS), model(TOKENS).logits)


def test_a_head_that_is_missing_is_refused(tmp_path):
    llama(tmp_path, tie_word_embeddings=False)
    add(tmp_path, **{"lm_head.weight": None})
    with pytest.raises(AssayError, match=r"lacks 1 tensors \(lm_head\.weight\), which would be random"):
        load(tmp_path)


@pytest.mark.parametrize("kind", [BertModel, RobertaModel])
def test_a_missing_layer_of_an_encoder_is_refused(tmp_path, kind):
    kind(kind.config_class(**SIZES)).save_pretrained(tmp_path)
    configure(tmp_path, num_hidden_layers=3)
    with pytest.raises(AssayError, match=r"lacks 16 tensors \(encoder\.layer\.2\."):
        load(tmp_path)


# -- adapters, attention implementations ------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [True, False])
def test_an_adapter_is_never_passed_over(tmp_path, whole):
    """Without peft, transformers would read the model beside it."""
    if whole:
        llama(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "./x"}))
    save_file({"base_model.model.x.lora_A.weight": torch.ones(2, 2)}, tmp_path / "adapter_model.safetensors")
    # A name would be looked for on the hub, for as long as that takes.
    with pytest.raises(AssayError, match=r"package peft|no folder or file './x'"):
        load(tmp_path)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("named", ["flash_attention_2", "flash_attention_3", "flex_attention"])
def test_a_file_that_names_an_attention_implementation_is_read_without_it(tmp_path, key, named):
    model = llama(tmp_path)
    configure(tmp_path, **{key: named})
    subject = load(tmp_path)
    assert subject.model.config._attn_implementation == "sdpa"
    assert torch.equal(subject(TOKENS), model(TOKENS).logits)


def test_eager_attention_may_be_named(tmp_path):
    llama(tmp_path)
    configure(tmp_path, attn_implementation="eager")
    assert load(tmp_path).model.config._attn_implementation == "eager"


# -- encoders of encoder-decoders -----------------------------------------------------------------------------------


def test_the_encoder_of_a_whole_model_is_that_of_its_encoder(tmp_path):
    whole = T5ForConditionalGeneration(T5Config(**T5)).eval()
    whole.save_pretrained(tmp_path / "whole")
    T5EncoderModel.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "encoder")
    one, two = load(tmp_path / "whole", objective="embedding"), load(tmp_path / "encoder")
    assert one.weights_sha256 == two.weights_sha256
    expected = whole.encoder(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS)).last_hidden_state
    torch.testing.assert_close(one(TOKENS), expected)
    assert len(Engine(two).sites(["all-layers"])) == 2


def test_a_whole_encoder_decoder_does_not_tell_what_to_ask_it(tmp_path):
    T5ForConditionalGeneration(T5Config(**T5)).save_pretrained(tmp_path)
    with pytest.raises(AssayError, match=r"T5ForConditionalGeneration.*say objective="):
        load(tmp_path)
