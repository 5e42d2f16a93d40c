"""A text is cut into chunks as llama.cpp cuts it, and refused where it would count nothing."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import assay
from assay import AssayError
from assay.models import cut_like_llama_cpp
from assay.tasks import UNSCORED


def words(template=None):
    """A tokenizer of letters: a is 2, b is 3 …; 0 begins and 1 ends a text, if the template says so."""
    known = {word: number for number, word in enumerate(["<s>", "</s>", *"abcdefghij"])}
    backend = Tokenizer(models.WordLevel(known, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if template is not None:
        special = [("<s>", 0), ("</s>", 1)]
        backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


TEXT = " ".join("abcdefghij" * 50)


def test_chunks_are_whole_and_their_second_half_is_scored():
    split = cut_like_llama_cpp(words(), TEXT, context=150, name="there", role="shift")
    assert (split.name, split.role, split.tokens.shape) == ("there", "shift", (3, 150)), "500 tokens, 50 left over"
    np.testing.assert_array_equal(split.tokens.reshape(-1), np.arange(450) % 10 + 2)
    expected = [list(range(75, 149))] * 3
    assert [np.flatnonzero(row != UNSCORED).tolist() for row in split.kinds] == expected
    assert len(cut_like_llama_cpp(words(), TEXT, context=150, chunks=2)) == 2


def test_a_first_token_of_the_tokenizer_begins_every_chunk_and_stands_in_for_one():
    split = cut_like_llama_cpp(words("<s> $A"), TEXT, context=100)
    text = np.concatenate(([0], np.arange(500) % 10 + 2))[:500].reshape(5, 100)
    np.testing.assert_array_equal(split.tokens[:, 1:], text[:, 1:])
    assert split.tokens[:, 0].tolist() == [0] * 5


@pytest.mark.parametrize(
    ("template", "context", "chunks", "reason"),
    [
        ("<s> $A </s>", 100, None, "one token in front at most, and none behind"),
        ("$A </s>", 100, None, "one token in front at most, and none behind"),
        (None, 251, None, "has 500 tokens"),
        (None, 2, None, "and of 3"),
        (None, 100, 2, "2 chunks of 100 tokens have 98 predictions that count"),
    ],
)
def test_what_is_not_counted_is_refused(template, context, chunks, reason):
    with pytest.raises(AssayError, match=reason):
        cut_like_llama_cpp(words(template), TEXT, context=context, chunks=chunks)


def test_the_text_of_a_split_is_the_file_as_it_stands(tmp_path):
    (tmp_path / "iid.txt").write_bytes(b"a b\r\n\n  c\nd\n\n")
    (tmp_path / "rows.jsonl").write_text('{"text": "a\\nb"}\n{"text": ""}\n{"text": "c"}\n', encoding="utf-8")
    task = assay.tasks.Text(words(), None, tmp_path / "iid.txt", {"rows": tmp_path / "rows.jsonl", "list": ["a", "b"]})
    assert task.whole("iid") == "a b\n\n  c\nd\n"
    assert task.whole("rows") == "a\nb\nc"
    assert task.whole("list") == "a\nb"
    with pytest.raises(AssayError, match="unknown split"):
        task.whole("train")
