"""Splits against their definitions, worked out again with strings and sets."""

from dataclasses import replace

import numpy as np
import pytest

from assay import AssayError
from assay.tasks import UNSCORED, Dyck, Split, Task, tasks

SEQUENCES = 300
EVALUATION = ("iid", "seen_structure", "unseen_structure_short", "unseen_structure_long", "unseen_depth")

Sentence = tuple[int, ...]


def sentences_of(split: Split) -> list[Sentence]:
    """Brackets alone, START, END and padding taken off."""
    return [tuple(map(int, row[1 : length - 1])) for row, length in zip(split.tokens, split.lengths, strict=True)]


def moves(sentence: Sentence, brackets: int) -> str:
    return "".join("O" if token < brackets else "C" for token in sentence)


def blocks(text: str) -> set[str]:
    found, depth, begin = set(), 0, 0
    for place, move in enumerate(text):
        depth += 1 if move == "O" else -1
        if depth == 0:
            found.add(text[begin : place + 1])
            begin = place + 1
    return found


def deepest(text: str) -> int:
    depth, most = 0, 0
    for move in text:
        depth += 1 if move == "O" else -1
        most = max(most, depth)
    return most


@pytest.fixture(scope="module")
def splits(task) -> dict[str, Split]:
    found = {name: task.split(name, SEQUENCES) for name in EVALUATION}
    found["train"] = task.split("train", task.training_sentences)
    return found


@pytest.fixture(scope="module")
def by_blocks(task) -> dict[str, Split]:
    other = replace(task, structure="blocks")
    found = {name: other.split(name, SEQUENCES) for name in EVALUATION}
    found["train"] = other.split("train", other.training_sentences)
    return found


def test_task_keeps_the_protocol(task):
    assert isinstance(task, Task)
    assert task.split_names == ("train", *EVALUATION)
    assert task.primary_kind in {kind.name for kind in task.kinds}
    assert tasks.get("dyck") is Dyck


def test_no_sentence_is_in_two_splits(splits):
    sets = {name: set(sentences_of(split)) for name, split in splits.items()}
    names = list(sets)
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            assert not sets[one] & sets[other], f"{one} and {other} share sentences"


@pytest.mark.parametrize("name", EVALUATION)
def test_no_sentence_is_twice_in_an_evaluation_split(splits, name):
    assert len(set(sentences_of(splits[name]))) == SEQUENCES


def test_training_keeps_repetitions(splits, task):
    assert len(splits["train"]) == task.training_sentences
    assert len(set(sentences_of(splits["train"]))) < task.training_sentences


def test_every_sentence_is_well_nested_and_within_the_depth(splits, task):
    for name, split in splits.items():
        limit = task.deeper if name == "unseen_depth" else task.max_depth
        for sentence in sentences_of(split):
            stack: list[int] = []
            for token in sentence:
                assert 0 <= token < 2 * task.brackets
                if token < task.brackets:
                    stack.append(token)
                    assert len(stack) <= limit
                else:
                    assert stack.pop() == token - task.brackets
            assert not stack
            assert task.min_brackets <= len(sentence) <= task.max_brackets


def test_unseen_depth_is_strictly_deeper_and_reaches_far(splits, task):
    depths = [deepest(moves(sentence, task.brackets)) for sentence in sentences_of(splits["unseen_depth"])]
    assert min(depths) == task.max_depth + 1
    assert max(depths) > task.max_depth + 2


def test_structures_are_seen_or_not_as_whole_sentences(splits, task):
    seen = {moves(sentence, task.brackets) for sentence in sentences_of(splits["train"])}
    for sentence in sentences_of(splits["seen_structure"]):
        assert moves(sentence, task.brackets) in seen
    for name in ("unseen_structure_short", "unseen_structure_long"):
        for sentence in sentences_of(splits[name]):
            assert moves(sentence, task.brackets) not in seen


def test_structures_are_seen_or_not_by_blocks(by_blocks, task):
    seen: set[str] = set()
    for sentence in sentences_of(by_blocks["train"]):
        seen |= blocks(moves(sentence, task.brackets))
    for sentence in sentences_of(by_blocks["seen_structure"]):
        assert blocks(moves(sentence, task.brackets)) <= seen
    for name in ("unseen_structure_short", "unseen_structure_long"):
        for sentence in sentences_of(by_blocks[name]):
            assert not blocks(moves(sentence, task.brackets)) <= seen


def test_the_two_definitions_of_structure_differ(splits, by_blocks):
    assert sentences_of(splits["train"]) == sentences_of(by_blocks["train"])
    assert sentences_of(splits["seen_structure"]) != sentences_of(by_blocks["seen_structure"])


def test_unseen_structures_are_divided_by_length(splits):
    assert max(map(len, sentences_of(splits["unseen_structure_short"]))) == 32
    assert min(map(len, sentences_of(splits["unseen_structure_long"]))) == 34


def test_iid_holds_seen_and_unseen_structures(splits, task):
    seen = {moves(sentence, task.brackets) for sentence in sentences_of(splits["train"])}
    share = np.mean([moves(sentence, task.brackets) in seen for sentence in sentences_of(splits["iid"])])
    assert 0.05 < share < 0.95


@pytest.mark.parametrize("name", ["train", *EVALUATION])
def test_few_sentences_are_the_start_of_many(task, name):
    few, many = task.split(name, 50), task.split(name, 100)
    assert sentences_of(few) == sentences_of(many)[:50]
    first = many.first(50)
    np.testing.assert_array_equal(few.tokens, first.tokens)
    np.testing.assert_array_equal(few.kinds, first.kinds)
    for feature in few.features:
        np.testing.assert_array_equal(few.features[feature], first.features[feature])


def test_same_seed_gives_the_same_sentences_and_another_seed_others(task):
    again, other = replace(task), replace(task, seed=task.seed + 1)
    for name in ("train", "iid", "unseen_depth"):
        mine = sentences_of(task.split(name, 60))
        assert sentences_of(again.split(name, 60)) == mine
        assert sentences_of(other.split(name, 60)) != mine


def test_asking_for_another_split_in_between_changes_nothing(task):
    fresh = replace(task)
    before = sentences_of(fresh.split("iid", 40))
    fresh.split("unseen_depth", 40)
    assert sentences_of(fresh.split("iid", 40)) == before


def test_sequences_are_start_sentence_end_padding(splits, task):
    for split in splits.values():
        for row, length in zip(split.tokens, split.lengths, strict=True):
            assert row[0] == task.start_id
            assert row[length - 1] == task.end_id
            assert (row[length:] == task.pad_id).all()
            assert (row[1 : length - 1] < 2 * task.brackets).all()
        assert split.tokens.shape[1] == split.lengths.max() <= task.positions
        np.testing.assert_array_equal(split.valid.sum(axis=1), split.lengths)


def test_kinds_depth_and_distance_agree_with_a_stack(splits, task):
    names = [kind.name for kind in task.kinds]
    for split in (splits["iid"], splits["unseen_depth"]):
        for number in range(100):
            sentence = [int(token) for token in split.tokens[number, 1 : split.lengths[number] - 1]]
            stack: list[int] = []
            for place, token in enumerate(sentence):
                at = (number, place)
                if token < task.brackets:
                    stack.append(place)
                    expected = ("opening", len(stack), 0)
                else:
                    distance = place - stack[-1]
                    expected = ("closing_far" if distance >= 10 else "closing_near", len(stack), distance)
                    stack.pop()
                found = (names[split.kinds[at]], split.features["depth"][at], split.features["distance"][at])
                assert found == expected
            assert names[split.kinds[number, len(sentence)]] == "end"
            assert split.features["depth"][number, len(sentence)] == 0
            assert (split.kinds[number, len(sentence) + 1 :] == UNSCORED).all()


def test_roles(splits):
    assert splits["train"].role == "train"
    assert splits["iid"].role == "iid"
    assert {splits[name].role for name in EVALUATION[1:]} == {"shift"}


def test_take_cuts_to_the_longest_chosen(splits):
    split = splits["iid"]
    index = np.argsort(split.lengths, kind="stable")[:5]
    taken = split.take(index)
    assert taken.tokens.shape == (5, split.lengths[index].max())
    np.testing.assert_array_equal(taken.tokens[2], split.tokens[index[2], : taken.tokens.shape[1]])
    np.testing.assert_array_equal(taken.features["depth"][2], split.features["depth"][index[2], : taken.kinds.shape[1]])
    assert len(split.first(10_000)) == SEQUENCES


def test_split_without_sequences_is_refused(splits):
    empty = np.zeros((0, 3), dtype=np.int64)
    with pytest.raises(AssayError, match="no sequences"):
        Split("nothing", "iid", "", empty, np.zeros(0, dtype=np.int64), empty)


@pytest.mark.parametrize(
    ("parameters", "trouble"),
    [
        ({"brackets": 0}, "brackets=0"),
        ({"max_depth": 0}, "max_depth=0"),
        ({"deeper": 10}, "deeper=10"),
        ({"training_sentences": 0}, "training_sentences=0"),
        ({"min_brackets": 1}, "min_brackets=1"),
        ({"max_brackets": 21}, "max_brackets=21"),
        ({"min_brackets": 60, "max_brackets": 50}, "max_brackets=50"),
    ],
)
def test_bad_parameters_are_refused(parameters, trouble):
    with pytest.raises(AssayError, match=trouble):
        Dyck(**parameters)


def test_bad_structure_is_refused(task):
    wrong = replace(task)
    object.__setattr__(wrong, "structure", "words")  # the constructor's types are checked while tests run
    with pytest.raises(AssayError, match=r"structure='words'\): must be 'sentence' or 'blocks'"):
        wrong.__post_init__()


def test_unknown_split_is_refused_with_the_nearest_names(task):
    with pytest.raises(AssayError, match="did you mean 'unseen_depth'"):
        task.split("unseen_dept", 10)


@pytest.mark.parametrize(("name", "sequences"), [("iid", 0), ("train", -1), ("train", 2_001)])
def test_bad_number_of_sequences_is_refused(task, name, sequences):
    with pytest.raises(AssayError, match=f"sequences={sequences}"):
        task.split(name, sequences)


def test_split_that_cannot_be_filled_is_refused(monkeypatch):
    monkeypatch.setattr("assay.tasks._dyck._CHUNK", 100)
    tiny = Dyck(brackets=1, max_depth=1, deeper=2, training_sentences=50, max_brackets=6)
    with pytest.raises(AssayError, match="too few sentences"):
        tiny.split("unseen_structure_long", 1)


def test_description_rebuilds_the_task(task):
    parameters = task.describe()
    assert parameters.pop("task") == "dyck"
    assert Dyck(**parameters) == task
    assert task.name == "dyck-4-4"


def test_many_sentences_at_the_default_settings():
    """A tenth of the default training set."""
    task = Dyck(training_sentences=20_000)
    assert len(task.split("train", 20_000)) == 20_000


def test_moments_of_the_unbounded_language():
    """Mean length and share of sentences as deep as allowed, measured on 200,000 draws of the same process."""
    training = Dyck(training_sentences=20_000, max_brackets=1_200).training
    assert (training >= 0).sum(axis=1).mean() == pytest.approx(48.9, abs=2.0)
    step = np.where(training < 0, 0, np.where(training < 20, 1, -1))
    depth = np.cumsum(step, axis=1, dtype=np.int16).max(axis=1)
    assert depth.max() == 10
    assert (depth == 10).mean() == pytest.approx(0.227, abs=0.015)
