"""What a model is asked: guessed from its files, said by name, and refused where it does not fit."""

import json

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertLMHeadModel,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    RobertaConfig,
    RobertaForMaskedLM,
)

from assay import AssayError
from assay.subjects import Subject, load, pool
from assay.subjects._objective import objective_of

SIZES = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
BERT = {**SIZES, "max_position_embeddings": 20}


def gpt2():
    return GPT2Config(
        vocab_size=30, n_positions=20, n_embd=16, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None
    )


def written(model, folder):
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("make", "objective", "shape"),
    [
        (lambda: GPT2LMHeadModel(gpt2()), "causal", 30),
        (lambda: BertForMaskedLM(BertConfig(**BERT)), "masked", 30),
        (
            lambda: DistilBertForMaskedLM(DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=32)),
            "masked",
            30_522,
        ),
        (lambda: BertModel(BertConfig(**BERT)), "embedding", 16),
        (lambda: GPT2Model(gpt2()), "embedding", 16),
    ],
)
def test_the_objective_is_that_of_the_architecture(tmp_path, make, objective, shape):
    model = make().eval()
    subject = load(written(model, tmp_path))
    assert subject.objective == Subject(model, None, "by hand").objective == objective
    assert subject.describe()["objective"] == objective
    assert subject(torch.tensor([[1, 2, 3]])).shape == (1, 3, shape)


def test_every_class_has_an_objective_or_none():
    assert objective_of("GPT2LMHeadModel") == "causal"
    assert objective_of("OwnForCausalLM") == "causal"
    assert objective_of("OwnForMaskedLM") == "masked"
    assert objective_of("BertForSequenceClassification") is None


def test_what_is_said_goes_before_what_is_guessed(tmp_path):
    folder = written(BertForMaskedLM(BertConfig(**BERT)), tmp_path)
    assert load(folder).objective == "masked"
    subject = load(folder, objective="embedding", pooling="cls")
    assert (type(subject.model).__name__, subject.objective, subject.pooling) == ("BertModel", "embedding", "cls")


def test_a_missing_pooler_is_no_part_of_an_embedding(tmp_path):
    """Its random weights would change the hash from one load to the next."""
    folder = written(BertForMaskedLM(BertConfig(**BERT)), tmp_path)
    one, two = (load(folder, objective="embedding") for _ in range(2))
    assert one.weights_sha256 == two.weights_sha256
    assert not [name for name in one.model.state_dict() if "pooler" in name]


def test_a_head_that_is_not_there_is_refused(tmp_path):
    folder = written(BertModel(BertConfig(**BERT)), tmp_path)
    with pytest.raises(AssayError, match=r"lacks .* tensors.*as a masked language model it cannot be judged"):
        load(folder, objective="masked")


def test_an_encoder_is_no_causal_model(tmp_path):
    folder = written(BertLMHeadModel(BertConfig(**BERT, is_decoder=False)), tmp_path)
    with pytest.raises(AssayError, match=r"sees later tokens.*objective='masked'"):
        load(folder, objective="causal")


def test_a_decoder_is_no_masked_model(tmp_path):
    folder = written(GPT2LMHeadModel(gpt2()), tmp_path)
    with pytest.raises(AssayError, match="as a masked language model"):
        load(folder, objective="masked")


def test_an_architecture_that_does_not_tell_needs_it_said(tmp_path):
    folder = written(BertForSequenceClassification(BertConfig(**BERT)), tmp_path)
    with pytest.raises(AssayError, match=r"BertForSequenceClassification.*causal, masked, embedding"):
        load(folder)
    assert load(folder, objective="embedding").objective == "embedding"


def test_pooling_of_a_causal_model_is_refused(tmp_path):
    with pytest.raises(AssayError, match="pooling is for embeddings"):
        load(written(GPT2LMHeadModel(gpt2()), tmp_path), pooling="mean")


# -- pooling --------------------------------------------------------------------------------------------------------


def test_pooling_sees_valid_tokens_only():
    hidden = torch.tensor([[[1.0, -5.0], [3.0, -1.0], [99.0, 99.0]], [[2.0, 2.0], [4.0, 0.0], [0.0, 7.0]]])
    valid = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert pool(hidden, valid, "mean").tolist() == [[2.0, -3.0], [2.0, 3.0]]
    assert pool(hidden, valid, "cls").tolist() == [[1.0, -5.0], [2.0, 2.0]]
    assert pool(hidden, valid, "last").tolist() == [[3.0, -1.0], [0.0, 7.0]]
    assert pool(hidden, valid, "max").tolist() == [[3.0, -1.0], [4.0, 7.0]]


def modules(folder, *kinds, pooling=None):
    written(BertModel(BertConfig(**BERT)), folder)
    found = [
        {"idx": i, "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(found))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling or {}))
    return folder


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "max"}, "max"),
    ],
)
def test_pooling_is_that_of_sentence_transformers(tmp_path, said, expected):
    folder = modules(tmp_path, "Transformer", "Pooling", "Normalize", pooling=said)
    subject = load(folder)
    assert (subject.objective, subject.pooling) == ("embedding", expected)
    assert subject.describe()["pooling"] == expected
    assert load(folder, pooling="cls").pooling == "cls"


@pytest.mark.parametrize(
    "said",
    [{"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}, {"pooling_mode_weightedmean_tokens": True}],
)
def test_a_pooling_that_is_not_there_is_refused(tmp_path, said):
    folder = modules(tmp_path, "Transformer", "Pooling", pooling=said)
    with pytest.raises(AssayError, match=r"supported is one of.*pooling=\.\.\."):
        load(folder)
    assert load(folder, pooling="max").pooling == "max"


def test_a_module_that_changes_embeddings_is_refused(tmp_path):
    folder = modules(tmp_path, "Transformer", "Pooling", "Dense", pooling={"pooling_mode_mean_tokens": True})
    with pytest.raises(AssayError, match="'Dense'"):
        load(folder)


# -- positions ------------------------------------------------------------------------------------------------------


def test_positions_leave_out_the_padding_row(tmp_path):
    roberta = RobertaForMaskedLM(RobertaConfig(**BERT, pad_token_id=1)).eval()
    subject = Subject(roberta, None, "r")
    assert subject.positions == 18
    assert subject(torch.full((1, 18), 5)).shape == (1, 18, 30)
    with pytest.raises((IndexError, RuntimeError)):
        subject(torch.full((1, 19), 5))
    assert Subject(BertModel(BertConfig(**BERT)), None, "b").positions == 20
    assert Subject(GPT2LMHeadModel(gpt2()), None, "g").positions == 20


def test_a_model_in_memory_is_called_as_it_was_loaded_or_after_its_class(tmp_path):
    model = GPT2LMHeadModel(gpt2())
    new, named = Subject.from_model(model), Subject.from_model(model, name="mine")
    assert (new.name, named.name, new.tokenizer) == ("GPT2LMHeadModel", "mine", None)
    assert new.model is model
    assert not model.training
    loaded = GPT2LMHeadModel.from_pretrained(written(model, tmp_path))
    assert Subject.from_model(loaded).name == str(tmp_path)
    with pytest.raises(AssayError, match="model"):
        Subject.from_model("gpt2")
