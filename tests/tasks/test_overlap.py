"""Copies within and among splits are counted token for token, warned about, and equal splits refused."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from assay import AssayError
from assay.tasks import UNSCORED, Split, Text, count_copies, sequence_hashes, warn_of_overlaps

WORDS = ["[PAD]", "[MASK]", "?", "a", "b", "c", "d", "e"]


@pytest.fixture(scope="module")
def tokenizer():
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="?", pad_token="[PAD]", mask_token="[MASK]", model_max_length=8
    )


def split_of(rows, name="x", pad=0):
    width = max(map(len, rows))
    tokens = np.array([[*row, *[pad] * (width - len(row))] for row in rows])
    lengths = np.array([len(row) for row in rows])
    return Split(name, "shift", "", tokens, lengths, np.zeros_like(tokens))


rows = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3).map(tuple), min_size=1, max_size=6)


@given(rows, rows, rows)
def test_counts_are_those_of_a_plain_count(one, two, three):
    given_rows = {"one": one, "two": two, "three": three}
    copies = count_copies({name: split_of(found, name, pad=0) for name, found in given_rows.items()})
    assert dict(copies.sequences) == {name: len(found) for name, found in given_rows.items()}
    assert dict(copies.different) == {name: len(set(found)) for name, found in given_rows.items()}
    expected = {}
    for first, second in (("one", "two"), ("one", "three"), ("two", "three")):
        left, right = given_rows[first], given_rows[second]
        shared = sum(row in right for row in left), sum(row in left for row in right)
        if shared != (0, 0):
            expected[first, second] = (*shared, set(left) == set(right))
    found = {(o.first, o.second): (o.of_first, o.of_second, copies.equal(o)) for o in copies.overlaps}
    assert found == expected


def test_padding_is_no_part_of_a_sequence():
    wide, narrow = split_of([(1, 2), (1, 2, 0, 0)], pad=0), split_of([(1, 2)], pad=7)
    assert len(set(sequence_hashes(wide))) == 2
    assert sequence_hashes(narrow) == sequence_hashes(wide)[:1]


def test_masks_do_not_hide_a_copy(tokenizer):
    """The same sequences under other masks are the same sequences."""
    lines = ["a b c d e", "b c d e a", "c d e a b"]
    options = {"train": ["a"], "iid": lines, "shifts": {}, "objective": "masked"}
    one, two = (Text(tokenizer, seed=seed, **options).split("iid", 9) for seed in (0, 1))
    assert not np.array_equal(one.tokens, two.tokens)
    assert sequence_hashes(one) == sequence_hashes(two)


# -- in Text --------------------------------------------------------------------------------------------------------


def text(tokenizer, **sources):
    return Text(
        tokenizer,
        train=sources.pop("train", ["a b", "b c", "c d"]),
        iid=sources.pop("iid", ["a c", "b d", "c e"]),
        shifts=sources,
    )


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        ({"iid": ["a c", "a b", "a b"]}, "2 of the 3 sequences of split 'iid' also occur in 'train' (1 of its 3)"),
        ({"x": ["a  b", "e e"]}, "1 of the 2 sequences of split 'x' also occur in 'train' (1 of its 3)"),
        ({"x": ["b d", "e e"]}, "1 of the 2 sequences of split 'x' also occur in 'iid' (1 of its 3)"),
        ({"x": ["d d", "e e"], "y": ["e e"]}, "1 of the 1 sequences of split 'y' also occur in 'x' (1 of its 2)"),
    ],
)
@pytest.mark.parametrize("backwards", [False, True])
def test_splits_that_share_sequences_are_warned_about_once(tokenizer, sources, words, backwards):
    task = text(tokenizer, **sources)
    names = task.split_names[::-1] if backwards else task.split_names
    with pytest.warns(UserWarning, match=re.escape(words)) as told:
        made = [task.split(name, 9) for name in names]
    assert len(told) == 1
    assert [len(task.split(name, 9)) for name in names] == [len(split) for split in made]


def test_more_of_a_split_may_bring_an_overlap_to_light(tokenizer):
    task = text(tokenizer, iid=["a c", "b d", "c d"])
    task.split("train", 9)
    task.split("iid", 2)
    with pytest.warns(UserWarning, match="1 of the 3 sequences of split 'iid'"):
        task.split("iid", 3)


def test_nothing_is_said_of_splits_that_share_nothing(tokenizer):
    task = text(tokenizer, x=["e a"])
    for name in task.split_names:
        task.split(name, 9)


@pytest.mark.parametrize("x", [["a b", "b c", "c d"], ["c d", "b c", "a b"], ["c d", "b c", "c d", "a  b"]])
def test_the_same_split_twice_is_refused_every_time(tokenizer, x):
    task = text(tokenizer, x=x)
    task.split("train", 9)
    for _ in range(2):
        with pytest.raises(AssayError, match=r"'train' and 'x' have the same sequences \(3 different ones\)"):
            task.split("x", 9)


def test_copies_within_a_split_are_no_overlap():
    copies = count_copies({"one": split_of([(1,), (1,), (2,)])})
    assert (copies.sequences["one"], copies.different["one"], copies.overlaps) == (3, 2, ())
    warn_of_overlaps(copies)


def test_tagged_sequences_are_copies_by_what_is_shown_not_by_their_tags():
    """Counted by the tags alone, the two sequences of three different words were one."""
    tokens = np.array([[0, 1, 2, 3], [0, 4, 5, 6], [0, 1, 2, 3]])
    kinds = np.where(tokens == 0, UNSCORED, 0)
    split = Split("iid", "iid", "", tokens, np.full(3, 4), kinds, objective="masked", targets=np.ones_like(tokens))
    first, second, third = sequence_hashes(split)
    assert first == third != second
    assert count_copies({"iid": split}).different == {"iid": 2}
