"""A split that is not made for a subject is refused: another vocabulary, tokens without embeddings, training mode."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import assay
from assay import AssayError
from assay.faithfulness._compare import check_fits
from assay.subjects import Subject, load, save
from assay.tasks import Code, Dyck, Function, Split, Text, count_copies

WORDS = ["[PAD]", "[MASK]", "?", "a", "b", "c", "d", "e"]
LINES = ["a b c d", "b c d a", "c d a b"]


def tokenizer_of(words):
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?", pad_token="[PAD]", mask_token="[MASK]")


def gpt2(vocabulary):
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=80, n_embd=8, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=None
    )
    return GPT2LMHeadModel(config)


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_of(WORDS)


@pytest.fixture(scope="module")
def subject(tokenizer):
    return Subject(gpt2(len(WORDS)), tokenizer, "mine")


def split_by(tokenizer, lines=LINES, **options) -> Split:
    return Text(tokenizer, train=["a"], iid=lines, shifts={}, **options).split("iid", 9)


# -- vocabularies ---------------------------------------------------------------------------------------------------


def test_another_vocabulary_is_refused_with_a_token_that_shows_it(subject):
    other = tokenizer_of([*WORDS[:3], *WORDS[:2:-1]])
    with pytest.raises(
        AssayError, match=r"token 4 of split 'iid' is 'd' to the task but 'b' to 'mine'.*subject\.token"
    ):
        check_fits([subject], split_by(other))


def test_every_subject_is_looked_at(subject):
    other = replace(subject, tokenizer=tokenizer_of([*WORDS[:3], *WORDS[:2:-1]]), name="second")
    with pytest.raises(AssayError, match="to 'second'"):
        check_fits([subject, other], split_by(subject.tokenizer))


def test_compare_refuses_it(subject):
    task = Text(tokenizer_of([*WORDS[:3], *WORDS[:2:-1]]), train=LINES, iid=["e a b"], shifts={"x": ["b b e"]})
    with pytest.raises(AssayError, match="vocabularies differ"):
        assay.compare(subject, task, [assay.SVD(rank=1)])


def test_the_same_vocabulary_fits_however_it_came(subject, tokenizer, tmp_path):
    save(subject, tmp_path / "saved")
    again = load(tmp_path / "saved")
    for reader in (tokenizer, copy.deepcopy(tokenizer), tokenizer_of(WORDS), again.tokenizer):
        for one in (subject, again):
            check_fits([one], split_by(reader))
    assert (
        Text(again.tokenizer, train=["a"], iid=["b"], shifts={}).describe()["vocabulary_sha256"]
        == (Text(tokenizer, train=["a"], iid=["b"], shifts={}).describe()["vocabulary_sha256"])
    )


def test_only_tokens_that_occur_matter(subject, tokenizer):
    """One was added on either side, or they differ in a token that is not there."""
    grown = copy.deepcopy(tokenizer)
    grown.add_tokens(["f"])
    elsewhere = tokenizer_of([*WORDS[:-1], "z"])
    for reader in (grown, elsewhere):
        check_fits([subject], split_by(reader))
        check_fits([replace(subject, tokenizer=reader)], split_by(tokenizer))
    with pytest.raises(AssayError, match="'z' to the task but 'e' to"):
        check_fits([subject], split_by(elsewhere, ["a z b"]))
    hashes = [
        Text(one, train=["a"], iid=["b"], shifts={}).describe()["vocabulary_sha256"] for one in (tokenizer, grown)
    ]
    assert hashes[0] != hashes[1]


def test_a_token_without_an_embedding_is_refused_where_it_occurs(subject, tokenizer):
    grown = copy.deepcopy(tokenizer)
    grown.add_tokens(["f"])
    with_one_more = replace(subject, tokenizer=grown)
    check_fits([with_one_more], split_by(grown))
    with pytest.raises(AssayError, match=r"token 8 but 'mine' has embeddings of 0 to 7 only.*resize_token_embeddings"):
        check_fits([with_one_more], split_by(grown, ["a f b"]))


def test_tokens_under_masks_occur():
    grown = tokenizer_of(WORDS)
    grown.add_tokens(["f"])
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    subject = Subject(BertForMaskedLM(config), grown, "masked")
    split = split_by(grown, ["f f"], objective="masked", mask_share=1.0)
    assert split.tokens.tolist() == [[1, 1]]
    assert split.occurring.tolist() == [1, 8]
    with pytest.raises(AssayError, match="token 8 but 'masked' has embeddings of 0 to 7"):
        check_fits([subject], split)


def test_padding_does_not_occur():
    kinds = np.zeros((2, 3), dtype=np.int64)
    split = Split("x", "iid", "", np.array([[1, 2, 9], [3, 9, 9]]), np.array([2, 1]), kinds)
    assert split.occurring.tolist() == [1, 2, 3]


def test_without_a_tokenizer_or_names_nothing_can_be_told(subject):
    other = tokenizer_of([*WORDS[:3], *WORDS[:2:-1]])
    check_fits([replace(subject, tokenizer=None)], split_by(other))
    check_fits([subject], replace(split_by(other), names=None))


def test_a_language_of_other_brackets_is_refused():
    small, large = (Dyck(brackets=n, max_depth=3, deeper=5, training_sentences=50, max_brackets=20) for n in (2, 3))
    subject = Subject(gpt2(len(large.vocabulary)), large.tokenizer(), "brackets")
    check_fits([subject], large.split("iid", 5))
    with pytest.raises(AssayError, match="vocabularies differ"):
        check_fits([subject], small.split("iid", 5))


class Functions:
    """Some functions of two repositories."""

    language = "python"

    def read(self):
        from assay.tasks import Found  # noqa: PLC0415

        texts = [f"def f{number}(abc):\n    return [abc, {number}]\n    # {'xyz' * number}" for number in range(60)]
        return Found(tuple(Function(text, "python", "r", "") for text in texts), 1)

    def describe(self):
        return {}


def test_code_in_another_vocabulary_is_refused():
    own = Code(Functions(), context=64)
    fewer = own.vocabulary[:4] + own.vocabulary[5:]
    subject = Subject(gpt2(len(own.vocabulary)), own.tokenizer(), "code")
    check_fits([subject], own.split("iid", 3))
    with pytest.raises(AssayError, match="vocabularies differ"):
        check_fits([subject], Code(Functions(), context=64, vocabulary_from=fewer).split("iid", 3))


# -- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [False, True])
def test_a_model_that_is_set_to_training_is_refused(subject, part):
    model = copy.deepcopy(subject.model)
    fresh = replace(subject, model=model)
    split = split_by(subject.tokenizer)
    check_fits([fresh], split)
    (next(module for module in model.modules() if isinstance(module, torch.nn.Dropout)) if part else model).train()
    with pytest.raises(AssayError, match=r"'mine' was set to training.*model\.eval"):
        check_fits([fresh], split)
    check_fits([replace(subject, model=model)], split)


def test_generated_splits_may_share_a_little(bracket_task):
    copies = count_copies({name: bracket_task.split(name, 50) for name in bracket_task.split_names})
    assert not any(copies.equal(overlap) for overlap in copies.overlaps)
