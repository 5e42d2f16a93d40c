"""The task of one's own text, judged end to end on a model made on the spot."""

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import assay
from assay.subjects import Subject
from assay.tasks import Text


@pytest.fixture
def tokenizer():
    backend = Tokenizer(WordLevel({"?": 0, "a": 1, "b": 2, "c": 3}, unk_token="?"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?")


def test_tokens_kinds_and_cutting(tokenizer, tmp_path):
    path = tmp_path / "shift.txt"
    path.write_text("a b a c\n\nb\nc c c c c c\n", encoding="utf-8")
    task = Text(tokenizer, train=["a b"], iid=["b a"], shifts={"other": path}, max_length=4)
    split = task.split("other", 10)
    assert split.tokens.tolist() == [[1, 2, 1, 3], [3, 3, 3, 3]]
    assert split.lengths.tolist() == [4, 4]
    assert split.kinds.tolist() == [[1, 0, 1, -1], [0, 0, 0, -1]]
    assert split.role == "shift"
    assert len(task.split("other", 1)) == 1


def test_compare_on_ones_own_model(tokenizer):
    lines = ["a b c a b c", "b c a b", "c c a b a", "a a b"]
    other = ["b c a b c a", "c a b c", "a a c b c", "b b c"]
    task = Text(tokenizer, train=lines, iid=other, shifts={"reversed": ["c b a c b a", "b a c b"]})
    config = GPT2Config(
        vocab_size=4, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=None
    )
    subject = Subject(GPT2LMHeadModel(config).eval(), tokenizer, "mine")
    comparison = assay.compare(subject, task, [assay.SVD(rank=4)], sequences=10, fit_sequences=4, resamples=50)
    assert comparison.agreement()["estimate"].max() == 1.0  # rank 4 is full rank here
    assert comparison.shifts == ("reversed",)
    kinds = set(comparison.to_frame()["kind"])
    assert kinds == {"all", "repeated", "new"}


def test_wrong_input(tokenizer, tmp_path):
    with pytest.raises(assay.AssayError, match="train"):
        Text(tokenizer, train=["a b"], iid=["a b"], shifts={"train": ["a"]})
    with pytest.raises(assay.AssayError, match="max_length=1"):
        Text(tokenizer, train=["a b"], iid=["a b"], shifts={}, max_length=1)
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    task = Text(tokenizer, train=["a b"], iid=["a"], shifts={"binary": binary, "missing": tmp_path / "none.txt"})
    for name, words in (("binary", "cannot be read as UTF-8"), ("missing", "there is no file")):
        with pytest.raises(assay.AssayError, match=f"{name}.*{words}"):
            task.split(name, 5)
    with pytest.raises(assay.AssayError, match="at least two tokens"):
        task.split("iid", 5)
    with pytest.raises(assay.AssayError, match="did you mean 'iid'"):
        task.split("iidd", 5)
    with pytest.raises(assay.AssayError, match="sequences=0"):
        task.split("iid", 0)
