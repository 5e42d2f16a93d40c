"""Pairs in a split: what they must satisfy, and that they are cut with the rest."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from assay import AssayError
from assay.tasks import NO_TOKEN, UNSCORED, Split


def a_split(**changed: Any) -> Split:
    """Three sequences of 3, 4 and 2 tokens, each scored at its end, with a counterfactual that differs in one token."""
    tokens = np.array([[1, 2, 3, 0], [4, 2, 3, 3], [5, 2, 0, 0]])
    lengths = np.array([3, 4, 2])
    last = lengths - 1
    rows = np.arange(3)
    kinds = np.full(tokens.shape, UNSCORED)
    kinds[rows, last] = 0
    counterfactuals = tokens.copy()
    counterfactuals[:, 0] = [4, 5, 1]
    answers, foils = np.full(tokens.shape, NO_TOKEN), np.full(tokens.shape, NO_TOKEN)
    answers[rows, last], foils[rows, last] = [1, 4, 5], [4, 5, 1]
    given: dict[str, Any] = {
        "tokens": tokens,
        "lengths": lengths,
        "kinds": kinds,
        "counterfactuals": counterfactuals,
        "answers": answers,
        "foils": foils,
    }
    return Split("iid", "iid", "three pairs", **(given | changed))


def at(split: Split, name: str, row: int, position: int, value: int) -> np.ndarray:
    """An array of the split with one entry changed."""
    changed: np.ndarray = getattr(split, name).copy()
    changed[row, position] = value
    return changed


def test_pairs_are_cut_with_the_rest() -> None:
    part = a_split().take(np.array([2, 0]))
    assert part.has_pairs
    assert part.counterfactuals is not None
    assert part.answers is not None
    assert part.foils is not None
    assert part.counterfactuals.tolist() == [[1, 2, 0], [4, 2, 3]]
    assert part.answers.tolist() == [[-1, 5, -1], [-1, -1, 1]]
    assert part.foils.tolist() == [[-1, 1, -1], [-1, -1, 4]]


def test_what_is_right_is_the_answer_and_not_the_token_that_follows() -> None:
    split = a_split()
    assert split.right[split.kinds != UNSCORED].tolist() == [1, 4, 5]
    alone = replace(split, counterfactuals=None, answers=None, foils=None)
    assert not alone.has_pairs
    assert alone.right[:, :-1].tolist() == split.tokens[:, 1:].tolist()


def test_tokens_that_occur_are_those_of_both_sides_and_what_is_asked_for() -> None:
    split = a_split()
    answers = at(split, "answers", 0, 2, 8)
    counterfactuals = at(split, "counterfactuals", 2, 0, 9)
    assert a_split(answers=answers, counterfactuals=counterfactuals).occurring.tolist() == [1, 2, 3, 4, 5, 8, 9]


def test_several_foils() -> None:
    split = a_split()
    foils = np.stack((split.foils, np.full(split.tokens.shape, NO_TOKEN)), axis=-1)  # type: ignore[arg-type]
    foils[1, 3, 1] = 9
    more = a_split(foils=foils)
    assert more.occurring.tolist() == [1, 2, 3, 4, 5, 9]
    assert more.first(1).foils.shape == (1, 3, 2)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda split: {"foils": None}, "give all three, or none"),
        (lambda split: {"answers": at(split, "answers", 1, 0, 4)}, "row 1 has an answer where no prediction is scored"),
        (lambda split: {"answers": at(split, "answers", 2, 1, NO_TOKEN)}, "row 2 has an answer where .* none where"),
        (lambda split: {"foils": at(split, "foils", 0, 0, 4)}, "row 0 has a foil where no prediction is scored"),
        (lambda split: {"foils": at(split, "foils", 2, 1, 5)}, "row 2 has a foil that is the answer"),
        (lambda split: {"counterfactuals": split.tokens}, "row 0 does not differ"),
        (
            # only behind the scored position, in what is padding there
            lambda split: {"counterfactuals": at(replace(split), "tokens", 0, 3, 7)},
            "row 0 does not differ",
        ),
        (lambda split: {"objective": "masked", "targets": split.tokens}, "pairs are for the objective 'causal'"),
    ],
)  # fmt: skip
def test_pairs_that_do_not_fit_are_refused_with_their_row(change: Any, message: str) -> None:
    with pytest.raises(AssayError, match=message):
        a_split(**change(a_split()))


def others(split: Split, row: int, position: int, value: int) -> np.ndarray:
    """One more right answer at one place, with room for two."""
    found = np.full((*split.tokens.shape, 2), NO_TOKEN)
    found[row, position, 0] = value
    return found


def test_several_right_answers_are_cut_and_occur_with_the_rest() -> None:
    split = a_split(also_right=others(a_split(), 1, 3, 9))
    assert split.occurring.tolist() == [1, 2, 3, 4, 5, 9]
    assert split.right[split.kinds != UNSCORED].tolist() == [1, 4, 5]
    part = split.take(np.array([0, 2]))
    assert part.also_right is not None
    assert part.also_right.shape == (2, 3, 2)
    assert (part.also_right == NO_TOKEN).all()


@pytest.mark.parametrize(
    ("place", "message"),
    [((0, 0, 9), "row 0 has another right answer where no prediction"), ((2, 1, 1), "row 2 has a foil that is right")],
    ids=["unscored", "foil"],
)
def test_right_answers_that_do_not_fit_are_refused(place: tuple[int, int, int], message: str) -> None:
    split = a_split()
    with pytest.raises(AssayError, match=message):
        a_split(also_right=others(split, *place))
    alone = {"counterfactuals": None, "answers": None, "foils": None}
    with pytest.raises(AssayError, match="also_right is for pairs"):
        a_split(**alone, also_right=others(split, 1, 3, 9))
