"""Sentences as text, labels on sentences small enough to label by hand, and the tokenizer."""

import numpy as np
import pytest

from assay import AssayError
from assay.tasks import UNSCORED, Dyck

NEAR, FAR, OPENING, END = range(4)


def test_kinds_are_in_this_order(task):
    assert [kind.name for kind in task.kinds] == ["closing_near", "closing_far", "opening", "end"]
    assert [kind.determined for kind in task.kinds] == [True, True, False, True]
    assert task.kinds[NEAR].candidates == task.kinds[FAR].candidates == (4, 5, 6, 7)
    assert task.kinds[OPENING].candidates == (0, 1, 2, 3)
    assert task.kinds[END].candidates is None


def test_labels_of_a_sentence_labelled_by_hand(task):
    split = task.read_sentence("(0 (3 3) 0)")
    np.testing.assert_array_equal(split.tokens, [[task.start_id, 0, 3, 4 + 3, 4 + 0, task.end_id]])
    np.testing.assert_array_equal(split.kinds, [[OPENING, OPENING, NEAR, NEAR, END, UNSCORED]])
    np.testing.assert_array_equal(split.features["depth"], [[1, 2, 2, 1, 0, 0]])
    np.testing.assert_array_equal(split.features["distance"], [[0, 0, 1, 3, 0, 0]])
    np.testing.assert_array_equal(split.lengths, [6])
    assert split.valid.all()


def test_far_begins_at_ten_positions(task):
    inner = "(1 1) "
    nine = task.read_sentence(f"(0 {4 * inner}0)")
    eleven = task.read_sentence(f"(0 {5 * inner}0)")
    assert nine.features["distance"][0, 9] == 9
    assert nine.kinds[0, 9] == NEAR
    assert eleven.features["distance"][0, 11] == 11
    assert eleven.kinds[0, 11] == FAR
    assert eleven.kinds[0, 12] == END
    np.testing.assert_array_equal(eleven.kinds[0, 1:11], [OPENING, NEAR] * 5)


def test_two_blocks_after_each_other(task):
    split = task.read_sentence("(1 1) (2 (2 2) 2)")
    np.testing.assert_array_equal(split.features["depth"], [[1, 1, 1, 2, 2, 1, 0, 0]])
    np.testing.assert_array_equal(split.features["distance"], [[0, 1, 0, 0, 1, 3, 0, 0]])


@pytest.mark.parametrize(
    ("text", "trouble"),
    [
        ("", "it is empty"),
        ("   ", "it is empty"),
        ("(0 (4 4) 0)", r"'\(4' is not a bracket"),
        ("(0 START 0)", "'START' is not a bracket"),
        ("(0(3 3)0)", "is not a bracket"),
        ("(0 0) " * 31, "62 brackets; at most 60"),
        ("(0 (1 0) 1)", "not well nested"),
        ("(0 (1 1)", "not well nested"),
        ("0) (0", "not well nested"),
        ("0) 0) 0) 0) 0) (0 (0 (0 (0 (0", "not well nested"),
    ],
)
def test_bad_sentences_are_refused(task, text, trouble):
    with pytest.raises(AssayError, match=trouble):
        task.read_sentence(text)


def test_longest_sentence_that_fits_is_read(task):
    assert task.read_sentence("(0 0) " * 30).lengths[0] == 62 == task.positions


def test_vocabulary(task):
    assert len(task.vocabulary) == 2 * 4 + 3
    assert task.vocabulary[2] == "(2"
    assert task.vocabulary[4 + 2] == "2)"
    assert task.vocabulary[task.start_id] == "START"
    assert task.vocabulary[task.end_id] == "END"
    assert task.vocabulary[task.pad_id] == "PAD"


def test_tokenizer_agrees_with_the_task(task):
    tokenizer = task.tokenizer()
    text = "(0 (3 3) (1 1) 0)"
    ids = tokenizer(text)["input_ids"]
    assert ids == task.read_sentence(text).tokens[0].tolist()
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.bos_token_id == task.start_id
    assert tokenizer.eos_token_id == task.end_id
    assert tokenizer.pad_token_id == task.pad_id
    assert tokenizer.get_vocab() == {token: index for index, token in enumerate(task.vocabulary)}


def test_tokenizer_reads_generated_sentences(task):
    tokenizer = task.tokenizer()
    split = task.split("iid", 20)
    for row, length in zip(split.tokens, split.lengths, strict=True):
        text = " ".join(task.vocabulary[token] for token in row[1 : length - 1])
        assert tokenizer(text)["input_ids"] == row[:length].tolist()


def test_tokenizer_pads_on_the_right_as_splits_do(task):
    tokenizer = task.tokenizer()
    padded = tokenizer(["(0 0)", "(1 (2 2) 1)"], padding=True)
    start, end, pad = task.start_id, task.end_id, task.pad_id
    assert padded["input_ids"] == [[start, 0, 4, end, pad, pad], [start, 1, 2, 6, 5, end]]
    assert padded["attention_mask"] == [[1, 1, 1, 1, 0, 0], [1] * 6]


def test_default_task_is_the_one_of_the_paper():
    task = Dyck()
    assert (task.brackets, task.max_depth, task.deeper, task.training_sentences) == (20, 10, 20, 200_000)
    assert task.name == "dyck-20-10"
    assert len(task.vocabulary) == 43
