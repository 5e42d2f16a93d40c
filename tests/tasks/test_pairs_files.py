"""One's own pairs: what files hold, what a tokenizer makes of it, and what is refused."""

import csv
import gzip
import json
import random
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import assay
from assay import AssayError
from assay.subjects import Subject
from assay.tasks import NO_TOKEN, UNSCORED, Pair, Pairs, Task, tasks
from assay.tasks._pair_files import read_pairs
from assay.testing import Session

WORDS = ["[PAD]", "[UNK]", "[BOS]", "[EOS]", "John", "Mary", "Anna", "gave", "a", "cup", "to", "the", "boy"]
ROW = {
    "clean": "John gave a cup to",
    "counterfactual": "Mary gave a cup to",
    "answer": "Mary",
    "foil": "John",
}


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    """One token a word, BOS in front and EOS behind."""
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", bos_token="[BOS]", eos_token="[EOS]"
    )


@pytest.fixture(scope="module")
def bytewise() -> PreTrainedTokenizerFast:
    """Like GPT-2's: bytes, with merges that take a space in front of a word."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e")]
    vocabulary = {token: index for index, token in enumerate([*letters, "Ġt", "Ġth", "Ġthe"])}
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def rows(*changes: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**ROW, **change} for change in changes]


def in_iid(*changes: dict[str, Any], **options: Any) -> Pairs:
    return Pairs.of(rows(*({"split": "iid", **change} for change in changes)), **options)


def json_lines(path: Any, *content: Any) -> Any:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


# -- in tokens ------------------------------------------------------------------------------------------------------


def test_a_pair_in_tokens(words: PreTrainedTokenizerFast) -> None:
    pairs = in_iid({}, {"clean": "gave a John", "counterfactual": "gave a boy", "kind": "short"})
    assert isinstance(pairs, Task)
    assert not pairs.is_bound
    task = pairs.bound_to(words)
    split = task.split("iid", 9)
    assert split.tokens.tolist() == [[2, 4, 7, 8, 9, 10], [2, 7, 8, 4, 0, 0]]
    assert split.counterfactuals.tolist() == [[2, 5, 7, 8, 9, 10], [2, 7, 8, 12, 0, 0]]
    assert split.lengths.tolist() == [6, 4]
    assert split.kinds.tolist() == [[-1, -1, -1, -1, -1, 0], [-1, -1, -1, 1, -1, -1]]
    assert split.answers.tolist() == [[-1, -1, -1, -1, -1, 5], [-1, -1, -1, 5, -1, -1]]
    assert split.foils.tolist() == [[-1, -1, -1, -1, -1, 4], [-1, -1, -1, 4, -1, -1]]
    # John stands four tokens before "to"; the other row differs in its last token
    assert split.features["distance"][split.kinds != UNSCORED].tolist() == [4, 0]
    assert [kind.name for kind in task.kinds] == ["answer", "short"]
    assert split.names == {i: WORDS[i] for i in split.occurring.tolist()}
    assert task.describe()["in_front"] == ["[BOS]"]


def test_ids_need_no_tokenizer() -> None:
    ids = {"clean": [7, 8, 9], "counterfactual": [7, 6, 9], "answer": 1, "foil": [2, 3]}
    task = in_iid(ids, {**ids, "foil": 5})
    assert task.is_bound
    split = task.split("iid", 2)
    assert split.tokens.tolist() == [[7, 8, 9], [7, 8, 9]]
    assert split.foils[:, 2].tolist() == [[2, 3], [5, NO_TOKEN]]
    assert split.names is None


def test_an_answer_is_the_token_by_which_the_text_goes_on(bytewise: PreTrainedTokenizerFast) -> None:
    """`the` behind a space is one token; after ` th`, where both together would be another token, `e` is itself."""
    together = in_iid({"clean": "of", "counterfactual": "if", "answer": " the", "foil": " th"}).bound_to(bytewise)
    split = together.split("iid", 1)
    assert bytewise.convert_ids_to_tokens([split.answers[0, -1], split.foils[0, -1]]) == ["Ġthe", "Ġth"]
    inside = in_iid({"clean": "of th", "counterfactual": "if th", "answer": "e", "foil": "a"}).bound_to(bytewise)
    split = inside.split("iid", 1)
    assert bytewise.convert_ids_to_tokens(split.tokens[0].tolist()) == ["o", "f", "Ġth"]
    assert bytewise.convert_ids_to_tokens([split.answers[0, -1], split.foils[0, -1]]) == ["e", "a"]


def test_an_answer_that_is_one_token_only_behind_the_text() -> None:
    """Like SentencePiece: a text by itself gets a mark in front, so that ` Mary` alone is two tokens."""
    vocabulary = {token: index for index, token in enumerate(["<unk>", "▁", "▁saw", "▁met", "▁Mary", "▁John"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("▁[A-Za-z]*"), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert tokenizer(" Mary", add_special_tokens=False)["input_ids"] == [1, 4]
    split = (
        in_iid({"clean": "saw", "counterfactual": "met", "answer": " Mary", "foil": "John"})
        .bound_to(tokenizer)
        .split("iid", 1)
    )
    assert (split.answers[0, -1], split.foils[0, -1]) == (4, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "the boy"}, r"'the boy' is 2 tokens \('the', 'boy'\)"),
        ({"foil": ["John", "Eve"]}, "'Eve' is unknown to the tokenizer"),
        ({"counterfactual": "Mary gave a cup"}, "clean is 6 tokens and its counterfactual 5"),
        ({"counterfactual": ROW["clean"]}, "are the same tokens"),
        ({"clean": "Eve gave", "counterfactual": "Kim gave"}, "are the same tokens"),
        ({"foil": ["John", "Mary"]}, r"the answer \(token 5\) is a foil too"),
        ({"clean": " ", "counterfactual": " "}, "are the same tokens"),
    ],
)
def test_what_is_no_pair_to_the_tokenizer(change: Any, message: str, words: PreTrainedTokenizerFast) -> None:
    with pytest.raises(AssayError, match=rf"^row 2: .*{message}.*misfits='leave out'"):
        in_iid({}, change).bound_to(words)
    left = in_iid({}, change, {}, misfits="leave out").bound_to(words)
    assert len(left.split("iid", 9)) == 2
    assert left.describe()["splits"]["iid"] | {"sha256": 0} == {"pairs": 3, "sha256": 0, "left_out": 1}  # type: ignore[index]
    with pytest.raises(AssayError, match=r"^row 1: .*1 more of split 'iid' do not fit"):
        in_iid(change, change, misfits="leave out").bound_to(words)


def test_texts_without_a_tokenizer() -> None:
    with pytest.raises(AssayError, match=r"pairs.bound_to\(subject.tokenizer\)"):
        in_iid({}).split("iid", 1)
    with pytest.raises(AssayError, match="need a tokenizer, and the subject has none"):
        in_iid({}).bound_to(None)


def test_splits_of_every_size_begin_alike(words: PreTrainedTokenizerFast) -> None:
    task = in_iid({}, {"foil": ["John", "Anna"]}, {"clean": "John", "counterfactual": "Mary"}).bound_to(words)
    whole = task.split("iid", 3)
    for count in (1, 2):
        part, first = task.split("iid", count), whole.first(count)
        for name in ("tokens", "counterfactuals", "answers", "foils", "kinds", "lengths"):
            assert np.array_equal(getattr(part, name), getattr(first, name)), name
    for name, count in (("ood", 1), ("iid", 0)):
        with pytest.raises(AssayError):
            task.split(name, count)


# -- splits ---------------------------------------------------------------------------------------------------------


def test_rows_name_their_split(tmp_path: Any) -> None:
    content = rows(*({"split": name, "answer": str(i)} for i, name in enumerate(("names", "iid", "train", "iid"))))
    pairs = Pairs.read(json_lines(tmp_path / "a.jsonl", *content))
    assert pairs.split_names == ("train", "iid", "names")
    assert [pair.answer for pair in pairs.pairs["iid"]] == ["1", "3"]


def test_rows_without_a_split_are_dealt_by_their_clean_input() -> None:
    content = rows(*({"clean": f"input {i // 2}", "answer": str(i)} for i in range(42)))
    pairs = Pairs.of(content)
    assert pairs.split_names == ("train", "iid")
    of = {name: {pair.clean for pair in pairs.pairs[name]} for name in pairs.split_names}
    assert (len(of["train"]), len(of["iid"])) == (11, 10)
    assert not of["train"] & of["iid"]
    assert [pair.answer for pair in pairs.pairs["iid"]] == sorted((p.answer for p in pairs.pairs["iid"]), key=int)
    random.Random(0).shuffle(content)
    again = Pairs.of(content)
    assert {name: {pair.clean for pair in again.pairs[name]} for name in again.split_names} == of
    assert pairs.describe()["dealt"]


def test_one_file_a_split(tmp_path: Any) -> None:
    files = {name: json_lines(tmp_path / f"{name}.jsonl", *rows({})) for name in ("names", "iid")}
    pairs = Pairs.read(files)
    assert pairs.split_names == ("iid", "names")
    other = json_lines(tmp_path / "other.jsonl", *rows({}, {"split": "names"}))
    with pytest.raises(AssayError, match=r"line 2 of '.*other.jsonl' is of split 'names', .* given for 'iid'"):
        Pairs.read({"iid": other})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (rows({"split": "train"}, {"split": "test"}), "no split 'iid', only 'train', 'test'"),
        (rows({"split": "iid"}, {}), "row 2 names no split"),
        (rows({}, {}), "one clean input only"),
        ([], "has no pairs"),
    ],
)
def test_splits_that_cannot_be_made(content: Any, message: str) -> None:
    with pytest.raises(AssayError, match=message):
        Pairs.of(content)


# -- our own files --------------------------------------------------------------------------------------------------

some_text = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8)
some_ids = st.lists(st.integers(0, 99), min_size=1, max_size=4)
some_token = some_text | st.integers(0, 99)
some_row = st.fixed_dictionaries(
    {
        "answer": some_token,
        "foil": some_token | st.lists(some_token, min_size=1, max_size=3, unique=True),
        "split": st.sampled_from(["iid", "other"]),
        "kind": some_text.filter(lambda name: name != "all"),
    }
)
both_sides = st.tuples(some_text, some_text) | st.tuples(some_ids, some_ids)


@given(st.lists(st.tuples(some_row, both_sides), max_size=4))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read_again(tmp_path: Any, found: list[Any]) -> None:
    content = [{**row, "clean": clean, "counterfactual": other} for row, (clean, other) in found]
    pairs = Pairs.of([{**ROW, "split": "iid"}, *content])  # never bound: with a text
    read = Pairs.read(pairs.write(tmp_path / "again.jsonl"))
    assert read.pairs == pairs.pairs
    assert read.describe() == pairs.describe()


def test_where_nothing_can_be_written(tmp_path: Any) -> None:
    with pytest.raises(AssayError, match=r"end in .jsonl"):
        in_iid({}).write(tmp_path / "a.json")
    (tmp_path / "a.txt").touch()
    with pytest.raises(AssayError, match=r"a.txt.* is a file; give a folder"):
        in_iid({}).write(tmp_path / "a.txt" / "a.jsonl")


def test_the_same_rows_in_every_form(tmp_path: Any) -> None:
    content = rows({"split": "iid"}, {"split": "iid", "answer": "Anna"})
    json_lines(tmp_path / "a.jsonl", *content)
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in content)
    (tmp_path / "a.json").write_text(json.dumps(content))
    pd.DataFrame(content).to_csv(tmp_path / "a.csv", index=False)
    pd.DataFrame(content).to_parquet(tmp_path / "a.parquet")
    expected = Pairs.of(content).pairs
    for ending in ("jsonl", "jsonl.gz", "json", "csv", "parquet"):
        assert Pairs.read(tmp_path / f"a.{ending}").pairs == expected, ending
    assert tasks.build(f"pairs:path={tmp_path / 'a.jsonl'},misfits=leave out").misfits == "leave out"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clean": float("nan")}, "'clean' is of type float"),
        ({"clean": []}, "'clean' is empty"),
        ({"clean": ""}, "'clean' is empty"),
        ({"clean": [1, -2]}, "'clean' holds something that is a number that is no token id"),
        ({"clean": [1, True]}, "'clean' holds something that is of type bool"),
        ({"clean": [1, 2]}, "both texts or both token ids"),
        ({"answer": None}, "'answer' is of type NoneType"),
        ({"answer": ["Mary"]}, "'answer' is of type list"),
        ({"answer": 10**30}, "'answer' is a number that is no token id"),
        ({"answer": "\ud800"}, "'answer' is not Unicode text"),
        ({"answer": b"Mary"}, "'answer' is of type bytes"),
        ({"foil": []}, "has no foil"),
        ({"foil": ["John", 0.5]}, "'foil' is of type float"),
        ({"kind": 3}, "'kind' is of type int"),
        ({"kind": "all"}, "'all' is no name for a kind"),
    ],
)
def test_rows_that_are_no_pairs(change: Any, message: str) -> None:
    with pytest.raises(AssayError, match=f"^row 1.*{message}"):
        in_iid(change, {})


def test_rows_without_a_field() -> None:
    with pytest.raises(AssayError, match=r"^row 1 has no 'foil', only 'clean', 'counterfactual', 'answer'"):
        Pairs.of([{key: value for key, value in ROW.items() if key != "foil"}])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'\n{"clean": "x"}', "line 2 of '.*a.jsonl' has no 'foil'"),
        ("a.jsonl", b"\n\n{", r"lines that are not JSON \(line 3\)"),
        ("a.jsonl", b"[" * 200_000, r"lines that are not JSON \(line 1\)"),
        ("a.jsonl", b'{"answer": ' + b"1" * 5_000 + b"}", r"lines that are not JSON \(line 1\)"),
        ("a.jsonl", b"\xff\xfe", r"lines that are not UTF-8 \(line 1\)"),
        ("a.jsonl", b"", "has no pairs"),
        ("a.jsonl.gz", b"no gzip", r"cannot be read to their end \(line 1\)"),
        ("a.json", b'{"prompts": 3}', "no list of pairs"),
        ("a.json", b'[["x"]]', "prompt 1 of '.*a.json' is of type list"),
        ("a.json", b"{", "cannot be read as JSON"),
        ("a.csv", b"clean,corrupted\nx", "line 2 of '.*a.csv' has 1 cells for 2 columns"),
        ("a.csv", b'clean,corrupted\n"x', "cannot be read as CSV"),
        ("a.csv", b"\xff\xfe", "cannot be read as CSV"),
        ("a.csv", b"", "has no pairs"),
        ("a.parquet", b"no parquet", "cannot be read as Parquet"),
        ("a.txt", b"x", "is no file of pairs"),
    ],
)
def test_files_that_hold_no_pairs(tmp_path: Any, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AssayError, match=message):
        Pairs.read(tmp_path / name)


def test_no_file_at_all(tmp_path: Any) -> None:
    for source, message in (
        (tmp_path / "missing.jsonl", "there is no file"),
        (tmp_path, "there is no file"),
        ("hub:a:b:c:d", "must be hub:NAME"),
    ):
        with pytest.raises(AssayError, match=message):
            Pairs.read(source)
    with pytest.raises(AssayError, match="given as list"):
        read_pairs([ROW], None, Counter())


# -- what other tools write -----------------------------------------------------------------------------------------


def test_eap_ig(tmp_path: Any) -> None:
    path = tmp_path / "ioi.csv"
    header = ["", "clean", "corrupted", "corrupted_hard", "correct_idx", "incorrect_idx"]
    with path.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(header)
        table.writerow([470, "Then, A and B", "Then, C and B", "Then, B and A", 11, 12])
        table.writerow([2, 'A "quoted"\nline', "x", "y", "13", "14"])
    pairs = Pairs.read({"iid": path}).pairs["iid"]
    assert pairs == (
        Pair("Then, A and B", "Then, C and B", 11, (12,)),
        Pair('A "quoted"\nline', "x", 13, (14,)),
    )
    hard = Pairs.read({"iid": path}, counterfactual="corrupted_hard").pairs["iid"]
    assert [pair.counterfactual for pair in hard] == ["Then, B and A", "y"]
    path.write_text("clean,corrupted,country_idx,corrupted_country_idx\nParis,Rome,3,4\n")
    assert Pairs.read({"iid": path}).pairs["iid"] == (Pair("Paris", "Rome", 3, (4,)),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("clean,corrupted,label\nthe year 1352,the year 1301,52\n", "line 2 of .* has no 'correct_idx', only"),
        ("clean,corrupted,correct_idx,incorrect_idx\na,b,5.0,6\n", "'correct_idx' is '5.0'"),
        ("clean,corrupted,correct_idx,incorrect_idx\na,b,5,\n", "'incorrect_idx' is ''"),
        ("clean,corrupted,correct_idx,incorrect_idx\na,b,5," + "9" * 5_000, "'incorrect_idx' is '9999"),
    ],
)
def test_eap_ig_files_without_one_answer_and_one_foil(tmp_path: Any, content: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(AssayError, match=message):
        Pairs.read(tmp_path / "a.csv")


def test_auto_circuit(tmp_path: Any) -> None:
    path = tmp_path / "prompts.json"
    prompt = {"clean": "a b", "corrupt": "c b", "answers": [" d"], "wrong_answers": [" e", " f"]}
    ids = {"clean": [3, 0], "corrupt": [3, 1], "answers": [0], "wrong_answers": [1]}
    path.write_text(json.dumps({"seq_labels": ["x", "y"], "prompts": [prompt, ids]}))
    assert Pairs.read({"iid": path}).pairs["iid"] == (
        Pair("a b", "c b", " d", (" e", " f")),
        Pair((3, 0), (3, 1), 0, (1,)),
    )
    for answers, message in (
        ([" d", " e"], "prompt 1 of .* has 2 answers"),
        ([[0, 1]], "prompt 1 of .*: 'answer' is of type list"),
        (" d", "no list of answers"),
    ):
        path.write_text(json.dumps({"prompts": [{**prompt, "answers": answers}]}))
        with pytest.raises(AssayError, match=message):
            Pairs.read(path)


def test_mib(tmp_path: Any) -> None:
    ioi = {
        "prompt": "A and B met. A gave it to",
        "choices": ["A", "B"],
        "answerKey": 1,
        "metadata": {"subject": "A", "indirect_object": "B", "random_c": "C"},
        "s2_io_flip_counterfactual": {"prompt": "A and B met. B gave it to", "choices": ["A", "B"], "answerKey": 0},
        "abc_counterfactual": {"prompt": "C and D met. E gave it to", "choices": ["C", "D"], "answerKey": 1},
    }
    path = json_lines(tmp_path / "ioi.jsonl", ioi)
    assert Pairs.read({"iid": path}).pairs["iid"] == (Pair(ioi["prompt"], "A and B met. B gave it to", " B", (" A",)),)
    abc = Pairs.read({"iid": path}, counterfactual="abc").pairs["iid"]
    assert abc == (Pair(ioi["prompt"], "C and D met. E gave it to", " B", (" A",)),)
    with pytest.raises(AssayError, match=r"unknown counterfactual of line 1 of .* 'random'"):
        Pairs.read({"iid": path}, counterfactual="random")

    choices = {"label": ["K", "L"], "text": ["red", "blue"]}
    mcqa = {
        "prompt": "K red L blue. It is blue:",
        "choices": choices,
        "answerKey": 1,
        "symbol_counterfactual": {
            "prompt": "M red N blue. It is blue:",
            "choices": {"label": ["M", "N"]},
            "answerKey": 1,
        },
    }
    sums = {"prompt": "1+2=", "label": 3, "operator": "+", "random_counterfactual": {"prompt": "4+5=", "label": 9}}
    nothing = {**sums, "random_counterfactual": None}
    path = json_lines(tmp_path / "others.jsonl", mcqa, nothing, sums)
    assert Pairs.read({"iid": path}).pairs["iid"] == (
        Pair(mcqa["prompt"], "M red N blue. It is blue:", "L", ("N",)),
        Pair("1+2=", "4+5=", "3", ("9",)),
    )
    path = json_lines(tmp_path / "bad.jsonl", {**mcqa, "answerKey": 2})
    with pytest.raises(AssayError, match=r"line 1 of .* answerKey 2 names none"):
        Pairs.read({"iid": path})


# -- in use ---------------------------------------------------------------------------------------------------------


def test_a_comparison_binds_pairs_to_the_subject(words: PreTrainedTokenizerFast) -> None:
    config = GPT2Config(
        vocab_size=len(WORDS), n_positions=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=2, eos_token_id=3
    )
    subject = Subject(GPT2LMHeadModel(config), words, "tiny")
    names = ("John", "Mary", "Anna", "boy")
    pairs = Pairs.of(
        {"clean": f"{one} gave {a} cup to", "counterfactual": f"{other} gave {a} cup to",
         "answer": one, "foil": other, "split": split}
        for split, a in (("train", "a"), ("iid", "the"), ("names", "the boy"))
        for one in names for other in names if one != other
    )  # fmt: skip
    recipe = assay.SVD(rank=2)
    options: dict[str, Any] = {"sequences": 12, "fit_sequences": 12, "resamples": 50, "controls": False}
    comparison = assay.compare(subject, pairs, [recipe], **options)
    assert comparison.record.task["task"] == "pairs"
    assert comparison.record.task["in_front"] == ["[BOS]"]
    assert {split.name for split in comparison.record.splits} == {"train", "iid", "names"}
    with pytest.raises(AssayError, match="row 1: 'x' is unknown"):
        assay.compare(subject, in_iid({"answer": "x"}), [recipe])
    session = Session()
    proxy = session.proxy(subject, assay.Identity(), pairs, sequences=12)
    with pytest.raises(
        AssertionError, match=r"agrees on 100.0% .* of 12 predictions"
    ):  # the splits are made, but small
        assay.testing.assert_faithful(subject, proxy, pairs, sequences=12, session=session)
