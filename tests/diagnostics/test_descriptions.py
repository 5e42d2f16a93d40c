"""Descriptions that transfer and one that does not: what rules say, and how often they are right, counted by hand."""

import numpy as np
import pytest
import torch

import assay
from assay import AssayError
from assay.diagnostics import described
from assay.diagnostics._descriptions import _Condition, _learned, _words, questions_about, read_of
from assay.engine import Engine, collect
from assay.tasks import Question
from one_hot import Given, fitted, relu_dictionary, split_of, subject_of

A, B, FIRST, MANY = 0, 1, 2, 20  # two markers, then 20 tokens of one set and 20 of the other
V = FIRST + 2 * MANY


def drawn(name, *, together, sequences=80, pairs=6):
    """Pairs of a marker and a token: those of the first set follow A, of the second B, or either at random."""
    rng = np.random.default_rng([together, len(name)])
    which = rng.integers(2, size=(sequences, pairs))
    marker = which if together else rng.integers(2, size=which.shape)
    tokens = np.stack([marker, FIRST + MANY * which + rng.integers(MANY, size=which.shape)], axis=2)
    return split_of(name, tokens.reshape(sequences, 2 * pairs))


@pytest.fixture(scope="module")
def task():
    return Given([drawn("train", together=True), drawn("iid", together=True), drawn("apart", together=False)])


@pytest.fixture(scope="module")
def subject():
    return subject_of(torch.eye(V, dtype=torch.float64))


@pytest.fixture(scope="module")
def recipe(subject, task):
    """Feature 0 is on at A, feature 1 at every token of the first set, 2 at one of them, 3 never."""
    encoder = torch.zeros(V, 4, dtype=torch.float64)
    encoder[A, 0] = encoder[FIRST : FIRST + MANY, 1] = encoder[FIRST, 2] = 1
    return fitted(relu_dictionary(encoder, encoder.T.clone()), subject, task)


@pytest.fixture(scope="module")
def found(subject, task, recipe):
    return described(subject, task, recipe, [0, 1, 2, 3], depth=1, resamples=300)


def row_of(frame, feature, split):
    return frame[(frame["feature"] == feature) & (frame["split"] == split)].iloc[0]


def test_a_feature_that_is_a_token_is_described_and_the_description_transfers(found):
    for feature, words in ((0, "the token is 0"), (2, f"the token is {FIRST}")):
        for split in ("iid", "apart"):
            row = row_of(found, feature, split)
            assert row["rules"] == words
            assert row["f1"] == row["precision"] == row["recall"] == 1
            assert row["on"] == row["said"]
        assert row["gap"] == 0


def test_a_correlate_that_breaks_does_not_transfer(found, task):
    iid, apart = row_of(found, 1, "iid"), row_of(found, 1, "apart")
    assert iid["rules"] == "the token 1 before is 0"
    assert iid["f1"] == 1
    tokens = task.split("apart", 999).tokens
    said = np.pad(tokens == A, ((0, 0), (1, 0)))[:, :-1]
    on = (tokens >= FIRST) & (tokens < FIRST + MANY)
    assert apart["f1"] == pytest.approx(2 * (said & on).sum() / (said.sum() + on.sum()))
    assert apart["precision"] == pytest.approx((said & on).sum() / said.sum())
    assert apart["recall"] == pytest.approx((said & on).sum() / on.sum())
    assert apart["gap"] == pytest.approx(1 - apart["f1"])
    assert 0.35 < apart["gap_low"] < apart["gap"] < apart["gap_high"] < 0.65


def test_what_is_never_on_has_no_rules(found):
    for split in ("iid", "apart"):
        row = row_of(found, 3, split)
        assert "fewer than 10 tokens of the train split" in row["reason"]
        assert np.isnan(row["f1"])


def test_by_default_the_most_used_features_are_described(subject, task, recipe):
    few = described(subject, task, recipe, count=2, sequences=20, resamples=50)
    on = {feature: row_of(few, feature, "iid")["on"] for feature in few["feature"]}
    assert set(on) == {0, 1}


def test_rules_say_of_every_position_what_their_words_say():
    """A tree of a hidden rule with two conditions, and one of thresholds: it is found, and says what it was made of."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, size=(60, 10))
    lengths = rng.integers(4, 11, size=60)
    depth = rng.integers(4, size=(60, 10))
    split = split_of("train", tokens, lengths=lengths, features={"depth": depth})
    known = np.pad(depth, ((0, 0), (1, 0)))[:, :-1]  # of the token just read
    for rule, words in (
        ((tokens == 3) & (read_of(split).before(1) == 2), "the token 1 before is 2 and the token is 3"),
        (known >= 2, "depth > 1"),
        ((np.arange(10) >= 4) & (tokens != 1), "position > 3 and the token is not 1"),
    ):
        on = rule & split.valid
        rules = _learned(split, on, depth=2, tokens=2, seed=0)
        assert ((rules.says(read_of(split)) == on) | ~split.valid).all()
        assert sorted(rules.text({}).split(" and ")) == sorted(words.split(" and "))


def test_words_leave_out_what_others_imply():
    token, position = Question("token", back=1, token=7), Question("position")
    other = Question("token", back=1, token=8)
    way = [(position, True, 3), (other, False, 0), (position, True, 5), (token, True, 0), (position, False, 9)]
    assert _words([_Condition(*one) for one in way], {7: "x"}) == [
        "position > 5", "the token 1 before is 'x'", "position <= 9",
    ]  # fmt: skip
    assert _words([_Condition(other, False, 0)], {8: " is "}) == ["the token 1 before is not ' is '"]


def test_questions_are_of_what_has_been_read():
    split = split_of("iid", [[5, 6, 7, 8]], lengths=[3], features={"depth": np.array([[1, 2, 3, 4]])})
    assert read_of(split).before(0).tolist() == [[5, 6, 7, -1]]
    assert read_of(split).before(2).tolist() == [[-1, -1, 5, -1]]
    assert read_of(split).before(7).tolist() == [[-1, -1, -1, -1]]
    assert read_of(split).answers(Question("feature", name="depth")).tolist() == [[0, 1, 2, 3]]
    assert read_of(split).answers(Question("position"))[0, :3].tolist() == [0, 1, 2]
    asked = questions_about(read_of(split), np.array([[False, True, False, False]]), tokens=1, most=1)
    assert asked == [Question("token", token=6), Question("position"), Question("feature", name="depth")]


def test_a_trained_dictionary_of_the_task_is_described(subject, task):
    """Words are those of the tokenizer; a dictionary of tokens alone has features that are tokens."""
    engine = Engine(subject)
    at = collect(engine, task.split("train", 80), ("residual",)).at(engine.site("layer0.residual"))
    trained = assay.SparseAutoencoder(k=1, features=V, steps=300, batch=256).fit(at)
    found = described(subject, task, trained, count=2, sequences=40, resamples=50)
    markers = found[found["split"] == "iid"]
    assert set(markers["rules"]) == {"the token is 0", "the token is 1"}
    assert (found["f1"] > 0.99).all()


def test_bad_calls_are_refused(subject, task, recipe):
    with pytest.raises(AssayError, match="features 0 to 3"):
        described(subject, task, recipe, 4)
    with pytest.raises(AssayError, match="depth=0"):
        described(subject, task, recipe, depth=0)
    with pytest.raises(AssayError, match="made on the train split"):
        described(subject, Given(task.splits[1:]), recipe)
