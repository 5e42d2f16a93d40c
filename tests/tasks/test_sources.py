"""Text is read once and as it is meant, whatever it comes in, or refused in one line."""

import gzip
import io
import json
from collections import deque

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from assay import AssayError
from assay.tasks import JsonLines, Text, source_of
from assay.tasks._lines import settled

LINES = ["a b c", "b c a", "c a b a"]


@pytest.fixture(scope="module")
def tokenizer():
    """Words of single letters; whatever else there is, marks and carriage returns too, is a token of its own."""
    known = {"?": 0, "a": 1, "b": 2, "c": 3, "\ufeff": 4, "\r": 5}
    backend = Tokenizer(models.WordLevel(known, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?")


def tokens(tokenizer, source):
    split = Text(tokenizer, train=["a b"], iid=source, shifts={}).split("iid", 99)
    return [row[:length].tolist() for row, length in zip(split.tokens, split.lengths.tolist(), strict=True)]


EXPECTED = [[1, 2, 3], [2, 3, 1], [3, 1, 2, 1]]


# -- objects --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: list(LINES),
        lambda: tuple(LINES),
        lambda: (line for line in LINES),
        lambda: iter(LINES),
        lambda: map(str, LINES),
        lambda: deque(LINES),
        lambda: dict(enumerate(LINES)).values(),
        lambda: np.array(LINES),
        lambda: pd.Series(LINES, index=[7, 8, 9]),
        lambda: pd.DataFrame({"text": LINES})["text"],
        lambda: pd.Index(LINES),
    ],
)
def test_sequences_in_any_object_are_read_once(tokenizer, make):
    task = Text(tokenizer, train=["a b"], iid=make(), shifts={})
    for _ in range(2):
        split = task.split("iid", 99)
        assert [row[:length].tolist() for row, length in zip(split.tokens, split.lengths, strict=True)] == EXPECTED
        assert task.describe() == Text(tokenizer, train=["a b"], iid=LINES, shifts={}).describe()


def test_the_train_split_is_counted_and_given_from_one_reading(tokenizer):
    """Frequencies are counted over it before it is a split itself."""
    task = Text(tokenizer, train=iter(LINES), iid=["a b"], shifts={})
    assert task.split("iid", 1).features["frequency"][0, 0] > 0
    assert len(task.split("train", 99)) == 3


def test_a_list_that_is_changed_later_changes_nothing(tokenizer):
    lines = list(LINES)
    task = Text(tokenizer, train=["a"], iid=lines, shifts={})
    lines[0] = "c c c"
    assert task.split("iid", 1).tokens.tolist() == EXPECTED[:1]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            pd.DataFrame({"id": [1], "text": ["a b"]}),
            r"DataFrame, a table with the columns 'id', 'text'.*table\['text'\]",
        ),
        (pa.table({"id": [1], "text": ["a b"]}), r"Table, a table with the columns 'id', 'text'"),
        ({"text": ["a b"]}, "dict, a table with the columns 'text'"),
        ({"a b", "b c"}, "set, which has no first sequence"),
        (7, "int, which has no first sequence"),
        (None, "NoneType, which has no first sequence"),
        (io.StringIO("a b\nb c\n"), "StringIO, an open file; give its path"),
        (["a b", None], "sequence 2 is no text but of type NoneType"),
        (pd.Series(["a b", float("nan")], dtype=object), "sequence 2 is no text but of type float"),
        ([["a", "b"]], "sequence 1 is no text but of type list"),
        ([{"text": "a b"}], "sequence 1 is no text but of type dict"),
        (b"a b", "sequence 1 is no text but of type int"),
        (["a b", "\ud800"], "sequence 2 is not Unicode text"),
    ],
)
def test_objects_that_hold_something_else_are_refused_in_one_line(source, words):
    with pytest.raises(AssayError, match=words) as error:
        settled(source, "iid")
    assert str(error.value).startswith("split 'iid'")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("split", ["train", "iid", "other"])
def test_every_source_of_a_task_is_looked_at(tokenizer, split):
    sources = {"train": LINES, "iid": LINES, "other": LINES} | {split: pd.DataFrame({"text": LINES})}
    with pytest.raises(AssayError, match=f"split {split!r} is given as DataFrame"):
        Text(tokenizer, train=sources["train"], iid=sources["iid"], shifts={"other": sources["other"]})


# -- files ----------------------------------------------------------------------------------------------------------


def as_json(lines, end="\n"):
    return end.join(json.dumps({"text": line}) for line in lines).encode() + end.encode()


BOM = "\ufeff".encode()


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".jsonlines", ".JSONL", ".NdJson"])
@pytest.mark.parametrize("zipped", [".gz", ".GZ", ""])
@pytest.mark.parametrize("start_and_end", [(b"", "\n"), (b"", "\r\n"), (b"", "\r"), (BOM, "\n"), (BOM, "\r")])
def test_json_lines_by_any_name(tokenizer, tmp_path, suffix, zipped, start_and_end):
    path = tmp_path / f"a{suffix}{zipped}"
    start, end = start_and_end
    content = start + as_json(LINES, end)
    path.write_bytes(gzip.compress(content, mtime=0) if zipped else content)
    assert tokens(tokenizer, path) == EXPECTED


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", BOM])
@pytest.mark.parametrize("last", [True, False])
def test_plain_text_with_any_ends_of_lines(tokenizer, tmp_path, end, mark, last):
    path = tmp_path / "a.txt"
    path.write_bytes(mark + end.join(LINES).encode() + (end.encode() if last else b""))
    assert tokens(tokenizer, path) == EXPECTED


def test_ends_of_lines_inside_a_row_are_text(tokenizer, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(as_json(["a \r b"]))
    assert tokens(tokenizer, tmp_path / "a.jsonl") == [[1, 5, 2]]
    assert tokens(tokenizer, ["a \r b"]) == [[1, 5, 2]]


def test_two_files_written_one_after_the_other_have_two_marks(tokenizer, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(BOM + as_json(LINES[:1]) + BOM + as_json(LINES[1:]))
    assert tokens(tokenizer, tmp_path / "a.jsonl") == EXPECTED


# -- functions ------------------------------------------------------------------------------------------------------


def test_functions_are_found_under_every_name(tmp_path):
    row = {"whole_func_string": "def f():\r    return 1", "language": "python", "repository_name": "r"}
    contents = {
        "a.ndjson": json.dumps(row).encode(),
        "b.jsonlines.gz": gzip.compress(BOM + json.dumps(row).encode(), mtime=0),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    source = source_of(tmp_path, "python")
    assert isinstance(source, JsonLines)
    assert [function.text for function in source.read().functions] == ["def f():\n    return 1"] * 2
