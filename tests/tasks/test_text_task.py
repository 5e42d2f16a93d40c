"""One's own text: where it comes from, what is predicted in it, and how predictions are grouped."""

import copy
import gzip
import json
import sys
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizer, PreTrainedTokenizerFast

import assay
from assay import AssayError
from assay.subjects import Subject
from assay.tasks import CLASSES, UNSCORED, Group, Text

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "##s", "mat", ",", ".", "1", "##2", "on"]


@pytest.fixture(scope="module")
def wordpiece():
    """Like BERT's: a word's later pieces begin with ##; CLS in front and SEP behind."""
    backend = Tokenizer(models.WordPiece({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]",
        mask_token="[MASK]",
    )  # fmt: skip


@pytest.fixture(scope="module")
def bytewise():
    """Like GPT-2's: bytes, with merges that take a space in front of a word."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    extra = ["Ġt", "Ġth", "Ġthe", "ĠĠ", "ca", "cat"]
    merges = [("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e"), ("Ġ", "Ġ"), ("c", "a"), ("ca", "t")]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate([*letters, *extra])}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


class Letters(PreTrainedTokenizer):
    """A tokenizer in Python, without offsets: one token a character."""

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, **options):
        self.letters = [chr(code) for code in range(32, 127)]
        super().__init__(unk_token="?", **options)

    @property
    def vocab_size(self):
        return len(self.letters)

    def get_vocab(self):
        return {letter: index for index, letter in enumerate(self.letters)}

    def _tokenize(self, text, **options):
        return list(text)

    def _convert_token_to_id(self, token):
        return self.letters.index(token) if token in self.letters else 31

    def _convert_id_to_token(self, index):
        return self.letters[index]

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens)


def text(tokenizer, lines, **options):
    return Text(tokenizer, train=options.pop("train", lines), iid=lines, shifts={}, **options)


def classes(task, name="class"):
    split = task.split("iid", 10)
    labels = next(feature.labels for feature in task.features if feature.name == name)
    return [
        [labels[value] for value in values[kinds != UNSCORED]]
        for values, kinds in zip(split.features[name], split.kinds, strict=True)
    ]


# -- classes of tokens ----------------------------------------------------------------------------------------------


def test_classes_of_word_pieces(wordpiece):
    line = "the cats, 12 mat."
    assert wordpiece.convert_ids_to_tokens(wordpiece(line)["input_ids"]) == [
        "[CLS]", "the", "cat", "##s", ",", "1", "##2", "mat", ".", "[SEP]",
    ]  # fmt: skip
    assert classes(text(wordpiece, [line])) == [
        ["word start", "word start", "word continuation", "punctuation", "digit", "digit", "word start", "punctuation",
         "special"],
    ]  # fmt: skip


def test_classes_of_bytes(bytewise):
    line = "x the  catcat's _9"
    tokens = bytewise.convert_ids_to_tokens(bytewise(line)["input_ids"])
    assert tokens == ["x", "Ġthe", "ĠĠ", "cat", "cat", "'", "s", "Ġ", "_", "9"]
    expected = ["word start", "whitespace", "word start", "word continuation", "punctuation", "word continuation",
                "whitespace", "punctuation", "digit"]  # fmt: skip
    assert classes(text(bytewise, [line])) == [expected]


def test_classes_without_offsets_are_those_with(bytewise):
    """A character tokenizer in Python against the byte tokenizer, which knows offsets, on text without its merges."""
    slow = Letters()
    assert not slow.is_fast
    line = "So be it, 42 don't_x!"
    assert classes(text(slow, [line])) == classes(text(bytewise, [line]))


def test_every_class_is_one_of_those_named(bytewise):
    rng = np.random.default_rng(0)
    lines = ["".join(map(chr, rng.integers(33, 0x2FF, size=40))) for _ in range(10)]
    found = {name for row in classes(text(bytewise, lines)) for name in row}
    assert found <= set(CLASSES)
    assert {"word start", "word continuation", "punctuation"} <= found


# -- kinds and the other groupings ----------------------------------------------------------------------------------


def test_induction_is_about_the_token_before(bytewise):
    task = text(bytewise, ["abxab"])
    split = task.split("iid", 1)
    assert split.kinds.tolist() == [[1, 1, 0, 0, UNSCORED]]
    # before b: a is new; before x: b is new; before a: x is new; before the last b: a occurred earlier
    assert split.features["induction"].tolist() == [[0, 0, 0, 1, 0]]


def test_frequency_bands_are_shares_of_the_train_split(bytewise):
    """2 of 10,000 tokens are b, 20 are c, 200 are d, the rest a; e is not there."""
    letters = "b" * 2 + "c" * 20 + "d" * 200 + "a" * 9_778
    train = [letters[start : start + 100] for start in range(0, 10_000, 100)]
    task = text(bytewise, ["aabcde"], train=train)
    assert classes(task, "frequency") == [["1% and more", "0.01% to 0.1%", "0.1% to 1%", "1% and more", "unseen"]]
    rare = text(bytewise, ["ab"], train=[*train, "a" * 200] * 60)
    assert classes(rare, "frequency") == [["0.01% to 0.1%"]]
    one = text(bytewise, ["ab"], train=["b" + "a" * 199, *["a" * 200] * 60])
    assert classes(one, "frequency") == [["below 0.01%"]]


def test_a_group_of_ones_own(wordpiece):
    group = Group("length", ("short", "long"), lambda texts: ["long" if len(t) > 2 else "short" for t in texts])
    task = text(wordpiece, ["the cat on mat"], groups=(group,))
    assert classes(task, "length") == [["long", "long", "short", "long", "short"]]
    assert task.describe()["groups"] == ["length"]


@pytest.mark.parametrize(
    ("function", "words"),
    [(lambda texts: ["big"] * len(texts), "'big'"), (lambda texts: ["short"], "1 labels for 4 tokens")],
)
def test_a_group_that_does_not_keep_its_word_is_refused(wordpiece, function, words):
    task = text(wordpiece, ["the cat"], groups=(Group("length", ("short", "long"), function),))
    with pytest.raises(AssayError, match=words):
        task.split("iid", 1)


def test_a_group_with_the_name_of_another_is_refused(wordpiece):
    with pytest.raises(AssayError, match="class is taken"):
        text(wordpiece, ["the"], groups=(Group("class", ("a",), lambda texts: ["a"] * len(texts)),))


# -- masked tokens and embeddings -----------------------------------------------------------------------------------


def test_masked_tokens_are_asked_at_their_place(wordpiece):
    lines = ["the cat sat on the mat , the cat sat", "mat . cat", "the cats sat on 1 mat . the cat sat on mat , 12"]
    task = text(wordpiece, lines, objective="masked", mask_share=0.3)
    split = task.split("iid", 3)
    for row, line in enumerate(lines):
        original = wordpiece(line)["input_ids"]
        asked = np.flatnonzero(split.kinds[row] != UNSCORED)
        assert len(asked) == max(1, round(0.3 * (len(original) - 2)))
        for place in range(len(original)):
            if place in asked:
                assert split.tokens[row, place] == wordpiece.mask_token_id
                assert split.targets[row, place] == original[place]
                shown = [token for other, token in enumerate(original) if other not in asked]
                assert split.kinds[row, place] == (0 if original[place] in shown else 1)
                before = original[place - 1]
                earlier = [original[other] for other in range(place - 1) if other not in asked]
                assert split.features["induction"][row, place] == (place - 1 not in asked and before in earlier)
            else:
                assert split.tokens[row, place] == original[place]
        assert 0 not in asked, "CLS is not masked"
        assert len(original) - 1 not in asked, "SEP is not masked"


def test_masks_depend_on_the_sequence_and_the_seed_alone(wordpiece):
    lines = [f"the cat {'on ' * count} mat sat" for count in range(3, 12)]
    both = [text(wordpiece, order, objective="masked").split("iid", 9) for order in (lines, lines[::-1])]
    masked = [
        {tuple(row[:length].tolist()) for row, length in zip(split.tokens, split.lengths.tolist(), strict=True)}
        for split in both
    ]
    assert masked[0] == masked[1]
    other = text(wordpiece, lines, objective="masked", seed=1).split("iid", 9)
    assert not np.array_equal(other.tokens, both[0].tokens)


def test_masking_needs_a_mask_token(bytewise):
    with pytest.raises(AssayError, match="no mask token"):
        text(bytewise, ["ab"], objective="masked")


def test_embeddings_have_one_prediction_a_different_sequence(wordpiece):
    task = text(wordpiece, ["the cat", "the mat", "the cat", "", "sat"], objective="embedding")
    split = task.split("iid", 10)
    assert len(split) == 3
    assert (split.kinds == UNSCORED).all()
    assert task.kinds == task.features == ()


# -- sources --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The same three sequences in every form."""
    folder = tmp_path_factory.mktemp("sources")
    lines = ["the cat", "on the mat", "sat ."]
    rows = "\n".join(json.dumps({"id": number, "body": line}) for number, line in enumerate(lines)) + "\n\n"
    (folder / "a.txt").write_text("\n\n".join(lines), encoding="utf-8")
    (folder / "a.jsonl").write_text(rows, encoding="utf-8")
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(rows.encode(), mtime=0))
    pd.DataFrame({"body": [*lines, None], "id": range(4)}).to_parquet(folder / "a.parquet")
    return folder


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_every_form_of_file_gives_the_same(wordpiece, sources, name):
    expected = text(wordpiece, ["the cat", "on the mat", "sat ."]).split("iid", 9)
    task = text(wordpiece, sources / name, text_field="body")
    found = task.split("iid", 9)
    assert found.tokens.tolist() == expected.tokens.tolist()
    assert len(str(task.describe()["iid_source"])) == 64
    assert str(sources) not in str(task.describe())


def test_a_dataset_of_the_hub(wordpiece, monkeypatch):
    calls = []
    stand_in = ModuleType("datasets")
    stand_in.load_dataset = lambda name, configuration, split: (  # type: ignore[attr-defined]
        calls.append((name, configuration, split)) or [{"text": "the cat"}, {"text": "on"}]
    )
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    for source in ("hub:some/text", "hub:some/text:test", "hub:some/text:small:test"):
        assert len(text(wordpiece, source, train=["the"]).split("iid", 9)) == 2
    assert calls == [("some/text", None, "train"), ("some/text", None, "test"), ("some/text", "small", "test")]
    with pytest.raises(AssayError, match="hub:NAME"):
        text(wordpiece, "hub:a:b:c:d", train=["the"]).split("iid", 1)


def test_a_dataset_of_the_hub_needs_the_extra(wordpiece, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(AssayError, match=r"assay-interp\[datasets\]"):
        text(wordpiece, "hub:some/text").split("iid", 1)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'\n{"text": \n', r"lines that are not JSON \(line 2\)"),
        ("b.jsonl", b"[1, 2]\n", "not JSON objects"),
        ("c.jsonl", b'{"body": "the cat", "id": 3}\n', "no field 'text', only 'body', 'id'.*--text-field"),
        ("d.jsonl", b'{"text": 3}\n', "no text but of type int"),
        ("e.jsonl", b'{"text": "\\ud800"}\n', "not Unicode text"),
        ("f.jsonl.gz", b"no gzip", "cannot be read to their end"),
        ("g.jsonl.gz", gzip.compress(b"", mtime=0)[:-9], "cannot be read to their end"),
        ("h.parquet", b"PAR1 no parquet", "cannot be read as Parquet"),
        ("i.csv", b"text\nthe cat\n", "give a .txt, .jsonl"),
        ("j.txt", b"the\0cat\n", "NUL bytes"),
        ("k.txt", b"\xff\xfe", "cannot be read as UTF-8"),
        ("l.txt", b"\n\n", "no sequence of at least two tokens"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(bytewise, tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AssayError, match=rf"(?s){words}"):
        text(bytewise, tmp_path / name, train=["ab"]).split("iid", 2_000)


def test_a_file_that_is_cut_short_is_counted_and_its_beginning_is_used(bytewise, tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "the cat"}\n' * 999, mtime=0)[:-9])
    found = text(bytewise, tmp_path / "a.jsonl.gz", train=["ab"]).split("iid", 2_000)
    assert 0 < len(found) <= 999
    assert found.lost == {"files that cannot be read to their end": 1}


def test_only_what_is_asked_for_is_read(bytewise, tmp_path):
    """The second line is broken, and the first is enough."""
    path = tmp_path / "long.jsonl"
    path.write_text('{"text": "abc"}\nbroken\n', encoding="utf-8")
    assert [text(bytewise, path, train=["ab"]).split("iid", count).lost for count in (1, 2)] == [
        {}, {"lines that are not JSON": 1},
    ]  # fmt: skip


def test_wrong_options_are_refused(bytewise):
    with pytest.raises(AssayError, match=r"mask_share=0\.0"):
        text(bytewise, ["ab"], mask_share=0.0)


# -- the kind that verdicts are about -------------------------------------------------------------------------------


def parts(texts):
    """A part of speech for every token, by a list."""
    of = {"sat": "verb", "cat": "noun", "mat": "noun"}
    return [of.get(text.strip(), "rest") for text in texts]


SPEECH = Group("speech", ("verb", "noun", "rest"), parts)
SENTENCE = "the cat sat on the mat"


@pytest.mark.parametrize("objective", ["causal", "masked"])
@pytest.mark.parametrize(
    ("primary", "kinds", "grouping"),
    [
        ("all", ("repeated", "new"), "repetition"),
        ("new", ("repeated", "new"), "repetition"),
        ("verb", ("verb", "noun", "rest"), "speech"),
        ("word start", CLASSES, "class"),
        ("unseen", ("unseen", "below 0.01%", "0.01% to 0.1%", "0.1% to 1%", "1% and more"), "frequency"),
        ("the token before is new", ("the token before is new", "the token before occurred earlier"), "induction"),
    ],
)
def test_the_primary_kind_is_a_class_of_any_grouping(wordpiece, objective, primary, kinds, grouping):
    options = {"objective": objective, "groups": (SPEECH,), "mask_share": 0.5}
    task = text(wordpiece, [SENTENCE], primary=primary, **options)
    assert task.primary_kind == primary
    assert tuple(kind.name for kind in task.kinds) == kinds
    names = {"repetition", "frequency", "class", "induction", "speech"}
    assert {feature.name for feature in task.features} == names - {grouping}
    assert task.describe()["primary"] == primary
    # Every grouping says the same of a prediction, whether it gives the kinds or a feature.
    of_class = text(wordpiece, [SENTENCE], primary="digit", **options).split("iid", 1)
    by_default = text(wordpiece, [SENTENCE], **options).split("iid", 1)
    chosen = task.split("iid", 1)
    expected = of_class.features[grouping] if grouping != "class" else by_default.features["class"]
    scored = by_default.kinds != UNSCORED
    assert (chosen.kinds[scored] == expected[scored]).all()
    assert (chosen.kinds[~scored] == UNSCORED).all()


def test_predictions_of_the_primary_kind(wordpiece):
    task = text(wordpiece, [SENTENCE], primary="verb", groups=(SPEECH,))
    split = task.split("iid", 1)
    tokens = wordpiece(SENTENCE)["input_ids"]
    verb = tokens.index(WORDS.index("sat"))
    assert np.flatnonzero(split.kinds[0] == 0).tolist() == [verb - 1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"primary": "verbs"}, "unknown primary kind 'verbs'; did you mean 'verb'"),
        ({"primary": "x"}, "unknown primary kind 'x'; known: .*all.*digit.*noun.*repeated.*verb"),
        (
            {"primary": "rest", "groups": (SPEECH, Group("other", ("rest", "x"), parts))},
            "speech and other must have the kind once",
        ),
        ({"primary": "mine", "groups": (Group("own", ("mine", "all"), parts),)}, "no kind 'all'"),
        ({"primary": "new", "objective": "embedding"}, "embeddings have no kinds"),
    ],
)
def test_a_primary_kind_that_is_none_is_refused(wordpiece, options, words):
    with pytest.raises(AssayError, match=words):
        text(wordpiece, [SENTENCE], **{"groups": (SPEECH,), **options})


def test_a_verdict_on_a_kind_of_ones_own(wordpiece):
    lines = [
        f"{a} {b} sat on the {c} , {b} sat" for a in ("the", "on", "1") for b in ("cat", "mat") for c in ("cat", "mat")
    ]
    task = Text(
        wordpiece, train=lines[::3], iid=lines[1::3], shifts={"x": lines[2::3]}, groups=(SPEECH,), primary="verb"
    )
    config = GPT2Config(
        vocab_size=len(WORDS), n_positions=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=None
    )
    subject = Subject(GPT2LMHeadModel(config), wordpiece, "mine")
    comparison = assay.compare(
        subject, task, [assay.SVD(rank=4)], sequences=4, fit_sequences=4, resamples=20, refit=False
    )
    assert comparison.record.primary_kind == "verb"
    agreement = comparison.agreement()
    assert set(agreement["kind"]) == {"verb"}
    assert agreement["predictions"].max() == 2 * 4


# -- padding --------------------------------------------------------------------------------------------------------


def test_padding_that_was_added_to_the_tokenizer_is_not_used(bytewise):
    """The model may have no embedding for it."""
    grown = copy.deepcopy(bytewise)
    grown.add_special_tokens({"pad_token": "[PAD]"})
    assert grown.pad_token_id == len(bytewise)
    split = text(grown, ["abc", "abcdef"]).split("iid", 2)
    assert split.tokens.max() < len(bytewise)
