"""An encoder in a folder of sentence-transformers is judged as it is used, or refused by name."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import assay
from assay import AssayError
from assay.subjects import load, pool
from assay.tasks import Text

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "The", "cat", "Cat", "sat", "mat", "on", "find", ":"]
TEXTS = ["The Cat sat", "the cat sat on the mat on the mat on the mat", "The mat"]
POOLING = {"pooling_mode_mean_tokens": True}


@pytest.fixture
def folder(tmp_path):
    """A cased encoder of 12 positions as sentence-transformers writes one."""
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]",
        mask_token="[MASK]", model_max_length=12,
    )  # fmt: skip
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=12, initializer_range=0.5,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path)
    types = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    found = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in types.items()]
    write(tmp_path, "modules.json", found)
    (tmp_path / "1_Pooling").mkdir()
    write(tmp_path, "1_Pooling/config.json", POOLING)
    return tmp_path


def write(folder, name, content):
    (folder / name).write_text(json.dumps(content))


def vectors(subject):
    """The embeddings of TEXTS as the task and the subject give them."""
    task = Text(
        subject.tokenizer,
        train=["on the mat"],
        iid=TEXTS,
        shifts={},
        objective="embedding",
        prompt=subject.prompt,
    )
    split = task.split("iid", len(TEXTS))
    valid = torch.from_numpy(split.valid).long()
    return pool(subject(torch.from_numpy(split.tokens), valid), valid, subject.pooling), split


def expected(folder, texts, longest):
    """What sentence-transformers does: tokenize, cut, run, average; one text at a time."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = BertModel.from_pretrained(folder).eval()
    rows = []
    for text in texts:
        tokens = tokenizer(text, truncation=True, max_length=longest, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            rows.append(model(tokens).last_hidden_state[0].mean(dim=0))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("files", "change", "longest"),
    [
        ({}, lambda text: text, 12),
        ({"sentence_bert_config.json": {"max_seq_length": 6, "do_lower_case": False}}, lambda text: text, 6),
        ({"sentence_roberta_config.json": {"max_seq_length": 5}}, lambda text: text, 5),
        ({"sentence_bert_config.json": {"max_seq_length": None, "do_lower_case": True}}, str.lower, 12),
        (
            {"config_sentence_transformers.json": {"prompts": {"a": "find: "}, "default_prompt_name": "a"}},
            lambda text: "find: " + text,
            12,
        ),
        (
            {"config_sentence_transformers.json": {"prompts": {"a": "find: "}, "default_prompt_name": None}},
            lambda text: text,
            12,
        ),
        (
            {
                "sentence_bert_config.json": {"max_seq_length": 8, "do_lower_case": True},
                "config_sentence_transformers.json": {"prompts": {"a": "Find: "}, "default_prompt_name": "a"},
            },
            lambda text: ("Find: " + text).lower(),
            8,
        ),
    ],
)
def test_vectors_are_those_in_use(folder, files, change, longest):
    for name, content in files.items():
        write(folder, name, content)
    found, split = vectors(load(folder))
    torch.testing.assert_close(found, expected(folder, [change(text) for text in TEXTS], longest))
    assert int(split.lengths.max()) == longest


def test_settings_matter_here(folder):
    """Else the test before could not fail."""
    plain, _ = vectors(load(folder))
    for change, longest in ((str.lower, 12), (lambda text: "find: " + text, 12), (lambda text: text, 6)):
        other = expected(folder, [change(text) for text in TEXTS], longest)
        assert torch.cosine_similarity(plain, other).min() < 0.99


def test_what_newer_versions_write_is_read(folder):
    write(
        folder,
        "sentence_bert_config.json",
        {
            "transformer_task": "feature-extraction",
            "modality_config": {
                "text": {"method": "forward", "method_output_name": "last_hidden_state"},
                "image": {"method": "get_image_features", "method_output_name": None},
            },
            "module_output_name": "token_embeddings",
            "unpad_inputs": True,
            "query_length": 5,
        },
    )
    types = {
        "": "sentence_transformers.base.modules.transformer.Transformer",
        "1_Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    }
    write(folder, "modules.json", [{"path": path, "type": kind} for path, kind in types.items()])
    write(folder, "1_Pooling/config.json", {"embedding_dimension": 16, "pooling_mode": "mean", "include_prompt": True})
    write(
        folder,
        "config_sentence_transformers.json",
        {"model_type": "SentenceTransformer", "prompts": {"query": "", "document": ""}, "default_prompt_name": "query"},
    )
    found, _ = vectors(load(folder))
    torch.testing.assert_close(found, expected(folder, TEXTS, 12))


def test_what_is_said_goes_before_the_files(folder):
    write(folder, "config_sentence_transformers.json", {"prompts": {"a": "find: "}, "default_prompt_name": "a"})
    assert load(folder).prompt == "find: "
    assert load(folder, prompt="").prompt == ""
    assert load(folder, prompt="the ").describe()["prompt"] == "the "
    with pytest.raises(AssayError, match=r"load\(prompt='x'\).*prompt is for embeddings"):
        assay.load("dyck-20-10", prompt="x")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task='fill-mask'"),
        ("sentence_bert_config.json", {"model_args": {"dtype": "float16"}}, "model_args="),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"padding": "max_length"}}}, "processing_kwargs="),
        ("sentence_bert_config.json", {"of_a_later_version": 3}, "of_a_later_version=3"),
        (
            "sentence_bert_config.json",
            {"modality_config": {"text": {"method": "get_text_features", "method_output_name": None}}},
            "get_text_features",
        ),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "a SparseEncoder"),
        ("config_sentence_transformers.json", {"default_prompt_name": "b", "prompts": {"a": "x"}}, "prompts are a"),
        ("modules.json", [{"path": "", "type": "own.code.Transformer"}], r"'Transformer' \(own\.code\.Transformer"),
        ("modules.json", [{"path": "0_T", "type": "sentence_transformers.models.Transformer"}], "the folder '0_T'"),
        ("modules.json", "{", "is damaged"),
    ],
)
def test_other_uses_are_refused_by_name(folder, file, content, words):
    if isinstance(content, str):
        (folder / file).write_text(content)
    else:
        write(folder, file, content)
    with pytest.raises(AssayError, match=words):
        load(folder)


@pytest.mark.parametrize("kind", ["Dense", "LayerNorm", "WeightedLayerPooling", "LSTM", "CNN", "Router"])
def test_modules_that_change_the_vector_are_refused_whatever_the_pooling(folder, kind):
    modules = json.loads((folder / "modules.json").read_text())
    write(folder, "modules.json", [*modules, {"path": "3", "type": f"sentence_transformers.models.{kind}"}])
    for pooling in (None, "cls"):
        with pytest.raises(AssayError, match=f"'{kind}'"):
            load(folder, pooling=pooling)


def test_a_prompt_that_is_not_pooled_is_refused(folder):
    write(folder, "config_sentence_transformers.json", {"prompts": {"a": "find: "}, "default_prompt_name": "a"})
    write(folder, "1_Pooling/config.json", {**POOLING, "include_prompt": False})
    with pytest.raises(AssayError, match=r"leaves the prompt 'find: ' out of its pooling.*prompt=''"):
        load(folder)
    assert load(folder, prompt="").prompt == ""


# -- in a comparison ------------------------------------------------------------------------------------------------


def compare(subject, tokenizer=None, **options):
    train = [f"{a} {b} {c}" for a in WORDS[5:10] for b in WORDS[5:10] for c in WORDS[5:8]]
    task = Text(
        tokenizer or subject.tokenizer,
        train=train[::3],
        iid=train[1::3],
        shifts={"other": train[2::3]},
        objective="embedding",
        **options,
    )
    return assay.compare(
        subject, task, [assay.SVD(rank=8)], sequences=10, fit_sequences=10, resamples=20, controls=False, refit=False
    )


def test_a_task_without_the_prompt_is_refused(folder):
    write(folder, "config_sentence_transformers.json", {"prompts": {"a": "find: "}, "default_prompt_name": "a"})
    subject = load(folder)
    with pytest.raises(AssayError, match=r"with the prompt '' but .* is used with 'find: '.*prompt=subject\.prompt"):
        compare(subject)
    assert compare(subject, prompt=subject.prompt).record.subjects[0]["prompt"] == "find: "


def test_a_task_of_longer_sequences_is_refused(folder):
    longer = load(folder)
    write(folder, "sentence_bert_config.json", {"max_seq_length": 4})
    subject = load(folder)
    assert (longer.positions, subject.positions) == (12, 4)
    with pytest.raises(AssayError, match="has 4 positions"):
        compare(subject, tokenizer=longer.tokenizer)


def test_prompts_are_for_embeddings(folder):
    with pytest.raises(AssayError, match=r"Text\(prompt='find: '\)"):
        Text(load(folder).tokenizer, train=["the"], iid=["on"], shifts={}, prompt="find: ")
