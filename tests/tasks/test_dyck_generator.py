"""The generator against its exact probabilities, and the parser against a stack."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from scipy.stats import chisquare

from assay import AssayError
from assay.tasks._dyck import parse_sentences, sample_sentences

BRACKETS, MAX_DEPTH, MIN_BRACKETS, MAX_BRACKETS = 3, 3, 4, 1_200


def rows(sentences: np.ndarray) -> list[list[int]]:
    return [[int(token) for token in row if token >= 0] for row in sentences]


def transitions(sentences: list[list[int]], brackets: int, min_brackets: int) -> dict[tuple[int, bool], Counter[str]]:
    """How often each move was made, by depth and by whether END was allowed; a plain stack follows each sentence."""
    counts: dict[tuple[int, bool], Counter[str]] = defaultdict(Counter)
    for sentence in sentences:
        stack: list[int] = []
        for place, token in enumerate(sentence):
            state = (len(stack), place >= min_brackets)
            if token < brackets:
                counts[state][f"open {token}"] += 1
                stack.append(token)
            else:
                assert stack.pop() == token - brackets, f"{sentence} is not well nested"
                counts[state]["close"] += 1
        assert not stack, f"{sentence} is not closed"
        counts[(0, len(sentence) >= min_brackets)]["end"] += 1
    return counts


@pytest.fixture(scope="module")
def counts() -> dict[tuple[int, bool], Counter[str]]:
    sentences = rows(
        sample_sentences(
            np.random.default_rng(7),
            20_000,
            brackets=BRACKETS,
            max_depth=MAX_DEPTH,
            min_brackets=MIN_BRACKETS,
            max_brackets=MAX_BRACKETS,
        )
    )
    assert max(map(len, sentences)) < MAX_BRACKETS / 2, "the bound on the length is not negligible here"
    return transitions(sentences, BRACKETS, MIN_BRACKETS)


def check_frequencies(found: Counter[str], expected: dict[str, float]) -> None:
    assert set(found) <= set(expected), "an impossible move was made"
    total = sum(found.values())
    assert total > 5_000
    observed = [found[move] for move in expected]
    assert chisquare(observed, [total * probability for probability in expected.values()]).pvalue > 1e-3


OPENINGS = {f"open {i}": 1 / (2 * BRACKETS) for i in range(BRACKETS)}


def test_empty_stack_ends_half_of_the_time_once_long_enough(counts):
    check_frequencies(counts[(0, True)], {**OPENINGS, "end": 0.5})


def test_empty_stack_must_open_while_too_short(counts):
    check_frequencies(counts[(0, False)], {f"open {i}": 1 / BRACKETS for i in range(BRACKETS)})


@pytest.mark.parametrize("depth", range(1, MAX_DEPTH))
@pytest.mark.parametrize("long_enough", [True, False])
def test_inside_closes_half_of_the_time(counts, depth, long_enough):
    check_frequencies(counts[(depth, long_enough)], {**OPENINGS, "close": 0.5})


def test_maximum_depth_always_closes(counts):
    for long_enough in (True, False):
        assert set(counts[(MAX_DEPTH, long_enough)]) <= {"close"}
    assert counts[(MAX_DEPTH, True)]["close"] > 5_000
    assert max(depth for depth, _ in counts) == MAX_DEPTH


def test_length_conditioning_keeps_relative_probabilities():
    """All sentences of Dyck-(1, 2) with 2 to 6 brackets, with probabilities worked out by walking the tree."""
    exact: dict[tuple[int, ...], float] = {}

    def walk(sentence: tuple[int, ...], depth: int, probability: float) -> None:
        if depth == 0 and len(sentence) >= 2:
            exact[sentence] = probability / 2
            probability /= 2
        if len(sentence) == 6:
            return
        if depth == 0:
            walk((*sentence, 0), 1, probability)
        elif depth == 1:
            walk((*sentence, 0), 2, probability / 2)
            walk((*sentence, 1), 0, probability / 2)
        else:
            walk((*sentence, 1), 1, probability)

    walk((), 0, 1.0)
    assert len(exact) == 1 + 2 + 4
    sentences = sample_sentences(
        np.random.default_rng(3), 30_000, brackets=1, max_depth=2, min_brackets=2, max_brackets=6
    )
    found = Counter(tuple(row) for row in rows(sentences))
    assert set(found) <= set(exact)
    expected = np.array(list(exact.values()))
    observed = [found[sentence] for sentence in exact]
    assert chisquare(observed, 30_000 * expected / expected.sum()).pvalue > 1e-3


@pytest.mark.parametrize(("low", "high"), [(2, 8), (5, 30), (30, 40)])
def test_lengths_stay_within_their_limits(low, high):
    sentences = rows(
        sample_sentences(np.random.default_rng(0), 500, brackets=2, max_depth=5, min_brackets=low, max_brackets=high)
    )
    lengths = set(map(len, sentences))
    assert len(sentences) == 500
    assert min(lengths) == low + low % 2
    assert max(lengths) <= high
    assert all(length % 2 == 0 for length in lengths)


def test_nothing_follows_the_end_of_a_sentence():
    sentences = sample_sentences(
        np.random.default_rng(0), 500, brackets=2, max_depth=5, min_brackets=2, max_brackets=30
    )
    absent = sentences < 0
    assert (np.diff(absent.astype(int), axis=1) >= 0).all()
    assert (sentences[absent] == -1).all()
    assert sentences.max() == 3


def test_parser_agrees_with_a_stack():
    brackets = 3
    sentences = sample_sentences(
        np.random.default_rng(11), 300, brackets=brackets, max_depth=6, min_brackets=2, max_brackets=50
    )
    parsed = parse_sentences(sentences, brackets)
    depth, distance = np.zeros_like(sentences), np.zeros_like(sentences)
    for number, sentence in enumerate(rows(sentences)):
        stack: list[int] = []
        for place, token in enumerate(sentence):
            if token < brackets:
                stack.append(place)
                depth[number, place] = len(stack)
            else:
                depth[number, place] = len(stack)
                distance[number, place] = place - stack.pop()
    np.testing.assert_array_equal(parsed.depth, depth)
    np.testing.assert_array_equal(parsed.distance, distance)
    assert depth.max() == 6


@pytest.mark.parametrize(
    "sentence",
    [
        [0, 3],
        [0, 1, 2, 3],
        [2, 0],
        [0],
        [0, 0, 2],
        [0, 2, 2],
        [2, 2, 2, 2, 2, 0, 0, 0, 0, 0],
        [0, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0, 0],
    ],
)
def test_parser_refuses_what_is_not_well_nested(sentence):
    good = [0, 2] + [-1] * (len(sentence) - 2)
    width = max(len(sentence), 2)
    both = np.full((2, width), -1, dtype=np.int16)
    both[0, : len(good)] = good
    both[1, : len(sentence)] = sentence
    with pytest.raises(AssayError, match="sentence 1 is not well nested"):
        parse_sentences(both, brackets=2)
