"""Pairs of the house's own tasks, against readers of their own."""

import json
from typing import Any

import numpy as np
import pytest

from assay import AssayError
from assay.tasks import (
    UNSCORED,
    Code,
    Dyck,
    DyckPairs,
    InductionPairs,
    JsonLines,
    MaxOfK,
    MaxOfKPairs,
    Split,
    Task,
    tasks,
)

DYCK = Dyck(brackets=3, max_depth=3, deeper=6, training_sentences=400, min_brackets=4, max_brackets=40)
SOME = 40


def asked(split: Split, row: int) -> tuple[list[int], list[int], int, int, int]:
    """Tokens and counterfactual without padding, the scored position, answer and foil of a pair."""
    length = int(split.lengths[row])
    assert split.counterfactuals is not None
    assert split.answers is not None
    assert split.foils is not None
    (at,) = np.flatnonzero(split.kinds[row] != UNSCORED).tolist()
    assert at == length - 1, "the prediction is made at the last token"
    return (
        split.tokens[row, :length].tolist(),
        split.counterfactuals[row, :length].tolist(),
        at,
        int(split.answers[row, at]),
        int(split.foils[row, at]),
    )


def check_beginnings(task: Task, name: str, count: int) -> None:
    """A smaller split is the beginning of a larger one, every time."""
    whole = task.split(name, count)
    for fewer in (1, count // 2):
        part, first = task.split(name, fewer), whole.first(fewer)
        for array in ("tokens", "counterfactuals", "answers", "foils", "kinds", "lengths"):
            assert np.array_equal(getattr(part, array), getattr(first, array)), array
        for feature in task.features:
            assert np.array_equal(part.features[feature.name], first.features[feature.name]), feature


# -- Dyck -----------------------------------------------------------------------------------------------------------


def open_brackets(tokens: list[int]) -> tuple[list[int], int]:
    """Where the brackets stand that are open after START and some brackets, and how many were open at most."""
    stack: list[int] = []
    deepest = 0
    for place, token in enumerate(tokens[1:], start=1):
        if token < DYCK.brackets:
            stack.append(place)
        else:
            assert token == DYCK.brackets + tokens[stack.pop()]
        deepest = max(deepest, len(stack))
    return stack, deepest


@pytest.mark.parametrize("name", Dyck.split_names)
def test_dyck(name: str) -> None:
    task = DyckPairs(DYCK)
    assert isinstance(task, Task)
    split = task.split(name, SOME)
    assert len(split) == SOME
    assert split.role == DYCK.split(name, 1).role
    sentences = DYCK.split(name, 400)
    rows = zip(sentences.tokens.tolist(), sentences.lengths.tolist(), strict=True)
    whole = {tuple(row[:length]) for row, length in rows}
    for row in range(SOME):
        tokens, counterfactual, at, answer, foil = asked(split, row)
        stack, deepest = open_brackets(tokens)
        opener = stack[-1]
        assert at + 1 - opener == split.features["distance"][row, at] >= 10
        assert len(stack) == split.features["depth"][row, at]
        assert answer == DYCK.brackets + tokens[opener]
        assert foil == DYCK.brackets + counterfactual[opener]
        assert [place for place in range(at + 1) if tokens[place] != counterfactual[place]] == [opener]
        assert counterfactual[opener] < DYCK.brackets
        assert any(sentence[: at + 2] == (*tokens, answer) for sentence in whole), "a beginning of a sentence"
        assert (deepest > DYCK.max_depth) == (name == "unseen_depth")


def test_dyck_splits_begin_alike_and_seeds_differ() -> None:
    check_beginnings(DyckPairs(DYCK), "iid", 20)
    one, other = (DyckPairs(DYCK, seed=seed).split("iid", SOME) for seed in (0, 1))
    assert not np.array_equal(one.lengths, other.lengths)


def test_dyck_has_what_the_training_sentences_have() -> None:
    found = DyckPairs(DYCK).split("train", 10_000)
    has_far = (DYCK.split("train", 400).kinds == 1).any(axis=1)
    assert len(found) == has_far.sum()


def test_dyck_that_cannot_be_paired() -> None:
    with pytest.raises(AssayError, match="no other type"):
        DyckPairs(Dyck(brackets=1))
    short = Dyck(brackets=3, max_depth=2, deeper=3, training_sentences=20, max_brackets=8)
    with pytest.raises(AssayError, match="no training sentence of dyck-3-2 has a closing bracket 10 positions"):
        DyckPairs(short).split("train", 5)
    for name, count in (("ood", 1), ("iid", 0)):
        with pytest.raises(AssayError):
            DyckPairs(DYCK).split(name, count)


# -- max of K -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MaxOfK.split_names)
def test_max_of_k(name: str) -> None:
    task = MaxOfKPairs(MaxOfK(length=4, vocabulary=16))
    assert isinstance(task, Task)
    split = task.split(name, 300)
    assert split.tokens.shape == (300, 4)
    for row in range(300):
        tokens, counterfactual, at, answer, foil = asked(split, row)
        assert answer == max(tokens)
        assert foil == max(counterfactual) < answer
        changed = [new for old, new in zip(tokens, counterfactual, strict=True) if old != new]
        assert len(changed) == tokens.count(answer)
        assert len(set(changed)) == 1
        smaller = [token for token in tokens if token < answer]
        assert split.features["gap"][row, at] == (answer - max(smaller) if smaller else 0)
        if name == "high_maximum":
            assert foil >= 12
        if name == "near_ties":
            assert min(counterfactual) >= foil - 2
            assert changed[0] >= answer - 2
    check_beginnings(task, name, 20)


def test_every_smaller_token_may_replace_the_largest() -> None:
    split = MaxOfKPairs(MaxOfK(length=2, vocabulary=8)).split("iid", 2_000)
    assert split.counterfactuals is not None
    seen = {
        (int(old[old != new][0]), int(new[old != new][0]))
        for old, new in zip(split.tokens, split.counterfactuals, strict=True)
    }
    assert seen == {(largest, smaller) for largest in range(8) for smaller in range(largest)}


def test_a_vocabulary_without_an_upper_quarter() -> None:
    with pytest.raises(AssayError, match=r"vocabulary=7.*at least 8"):
        MaxOfKPairs(MaxOfK(vocabulary=7))


# -- code -----------------------------------------------------------------------------------------------------------

VOCABULARY = ("<start>", "<end>", "<pad>", "<unknown>", *map(chr, [10, *range(32, 127)]))


def code(path: Any, iid: list[str], train: str = "def g(alto):\n    pass", **others: str) -> InductionPairs:
    rows = [{"code": train, "partition": "train"}, *({"code": text, "partition": "test"} for text in iid)]
    rows = [{"language": "python", "repo": "here", **row} for row in rows]
    rows += [{"language": name, "repo": "here", "code": text, "partition": "test"} for name, text in others.items()]
    (path / "functions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = JsonLines((path / "functions.jsonl",), language="python")
    return InductionPairs(Code(source, vocabulary_from=VOCABULARY))


def test_a_repeated_name(tmp_path: Any) -> None:
    """In training `alt` is all that begins with `a`: after `al` another word than `alpha` goes on with t."""
    text = "def f(alpha):\n    return alpha + 1"
    task = code(tmp_path, [text])
    assert isinstance(task, Task)
    assert task.split_names == ("iid",), "the training function repeats no name"
    split = task.split("iid", 5)
    tokens, counterfactual, at, answer, foil = asked(split, 0)
    assert task.code.decode(np.array(tokens)) == "<start>def f(alpha):\n    return al"
    assert task.code.decode(np.array(counterfactual)) == "<start>def f(altha):\n    return al"
    assert [task.code.vocabulary[token] for token in (answer, foil)] == ["p", "t"]
    assert split.features["distance"][0, at] == text.index("alpha + 1") - text.index("alpha")
    assert split.features["known"][0, at] == 2


@pytest.mark.parametrize(
    "text",
    [
        "def f(alpha, alto):\n    return alpha",  # two names begin with al
        "def f(x):\n    'alpha'\n    return alpha",  # the first occurrence is in a string
        "def f(x):\n    return alpha",
        "def f(beta):\n    return beta",  # nothing else in training begins with be
        "def f(al\u00e9):\n    return al\u00e9",  # the character has no token
    ],
)
def test_where_the_first_occurrence_does_not_determine_the_next_character(tmp_path: Any, text: str) -> None:
    assert len(code(tmp_path, ["def f(alpha):\n    return alpha + 1", text]).split("iid", 5)) == 1


def test_other_characters_are_drawn_as_often_as_they_follow(tmp_path: Any) -> None:
    """In training `al` goes on with t three times and with b once."""
    train = "def g():\n    alto, alte, alti, album"
    functions = [f"def f{i}(alpha):\n    return alpha" for i in range(400)]
    split = code(tmp_path, functions, train=train).split("iid", 400)
    foils = [VOCABULARY[asked(split, row)[4]] for row in range(400)]
    assert set(foils) == {"t", "b"}
    assert foils.count("t") == pytest.approx(300, abs=35)  # 4 standard deviations
    check_beginnings(code(tmp_path, functions, train=train), "iid", 10)


def test_languages_without_a_repeated_name_are_no_splits(tmp_path: Any) -> None:
    text = "def f(alpha):\n    return alpha"
    task = code(tmp_path, [text], java="int f(int alpha) { return alpha; }", go="func f() {}")
    assert task.split_names == ("iid", "java")
    assert task.split("java", 3).role == "shift"
    for name, count in (("go", 1), ("iid", 0)):
        with pytest.raises(AssayError):
            task.split(name, count)


def test_made_pairs_are_tasks_by_name() -> None:
    for name, made in (
        ("dyck-pairs:brackets=3,max_depth=4", DyckPairs(Dyck(brackets=3, max_depth=4))),
        ("max-of-k-pairs:length=5", MaxOfKPairs(MaxOfK(length=5))),
        ("induction:seed=3", InductionPairs(seed=3)),
    ):
        assert tasks.build(name) == made
    for task in (DyckPairs(DYCK), MaxOfKPairs()):
        assert json.loads(json.dumps(task.describe())) == task.describe()
