"""Pairs of English sentences for pretrained models: who gets it, and how many they are."""

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from assay.tasks import Pairs

_NAMES = ("Mary", "John", "Tom", "Anna", "Paul", "Jane", "Mark", "Lisa", "Peter", "Kate", "James", "Laura")
_UNSEEN_NAMES = ("Alice", "David", "Emma", "George", "Sarah", "Henry", "Julia", "Simon")
_PLACES, _THINGS = ("store", "park", "school", "office", "station"), ("drink", "book", "ball", "letter", "key")

_GIVING = (
    "When {a} and {b} went to the {place}, {s} gave a {thing} to",
    "After {a} and {b} arrived at the {place}, {s} handed a {thing} to",
    "While {a} and {b} were at the {place}, {s} offered a {thing} to",
)
_GIVING_OTHERWISE = (
    "{a} and {b} had a long talk at the {place}. Then {s} passed a {thing} to",
    "The {place} was closed when {a} and {b} came by, so {s} threw a {thing} to",
)
_GIVING_LATER = (
    "When {a} and {b} went to the {place}, the weather was bad and the news was worse, but {s} gave a {thing} to",
    "After {a} and {b} arrived at the {place}, where nobody had been for years, {s} handed a {thing} to",
)

_NOUNS = ("key", "dog", "teacher", "boy", "girl", "car", "book", "house", "picture", "friend", "king", "doctor")
_UNSEEN_NOUNS = ("author", "letter", "farmer", "student", "tree", "cat", "bird", "table")
_VERBS = ((" is", " are"), (" was", " were"))

_BEING = (
    "I was told that the {n} near the {m}",
    "Everybody knows that the {n} behind the {m}",
    "It seems to me that the {n} next to the {m}",
)
_BEING_OTHERWISE = (
    "The {n} that the {m} saw",
    "In the evening the {n} from the {m}",
)
_BEING_LATER = (
    "I was told that the {n} near the {m}, which nobody in the village had seen before,",
    "Everybody knows that the {n} behind the {m}, not far from the old station,",
)

Draw = Callable[[np.random.Generator, str, Sequence[str]], dict[str, str]]
"""A pair from a template and words."""


def ioi_pairs(train: int = 100, judged: int = 100, seed: int = 0) -> Pairs:
    """Indirect objects: the answer is the name that came once; in the counterfactual the other name comes once.

    One name differs, the second occurrence of the one who gives. Splits: `train` and `iid` of three templates and
    twelve names, and as shifts templates that are not among them, other names, and clauses in between. Either name may
    be the one who gives. Source of the task: Wang et al., arXiv 2211.00593.
    """
    return _pairs(
        _giving,
        {
            "train": (_GIVING, _NAMES, train),
            "iid": (_GIVING, _NAMES, judged),
            "unseen_templates": (_GIVING_OTHERWISE, _NAMES, 2 * judged),
            "unseen_names": (_GIVING, _UNSEEN_NAMES, 2 * judged),
            "distractors": (_GIVING_LATER, _NAMES, 2 * judged),
        },
        seed,
    )


def agreement_pairs(train: int = 100, judged: int = 100, seed: int = 0) -> Pairs:
    """Agreement: the verb has the number of its subject; in the counterfactual the subject has the other number.

    One noun differs. Another noun of either number stands between subject and verb. Splits as those of `ioi_pairs`,
    with nouns in the place of names.
    """
    return _pairs(
        _being,
        {
            "train": (_BEING, _NOUNS, train),
            "iid": (_BEING, _NOUNS, judged),
            "unseen_templates": (_BEING_OTHERWISE, _NOUNS, 2 * judged),
            "unseen_nouns": (_BEING, _UNSEEN_NOUNS, 2 * judged),
            "distractors": (_BEING_LATER, _NOUNS, 2 * judged),
        },
        seed,
    )


def _pairs(draw: Draw, kinds: dict[str, tuple[Sequence[str], Sequence[str], int]], seed: int) -> Pairs:
    """Pairs of every split; no sentence occurs twice."""
    rng = np.random.default_rng(seed)
    seen: set[str] = set()
    rows: list[dict[str, str]] = []
    for split, (templates, words, count) in kinds.items():
        rows += [
            {**row, "split": split} for row in itertools.islice(_different(rng, draw, templates, words, seen), count)
        ]
    return Pairs.of(rows)


def _different(
    rng: np.random.Generator, draw: Draw, templates: Sequence[str], words: Sequence[str], seen: set[str]
) -> Iterator[dict[str, str]]:
    """Pairs whose sentence did not occur before, templates in turn."""
    for template in itertools.cycle(templates):
        row = draw(rng, template, words)
        if row["clean"] not in seen:
            seen.add(row["clean"])
            yield row


def _giving(rng: np.random.Generator, template: str, names: Sequence[str]) -> dict[str, str]:
    first, second = rng.choice(len(names), size=2, replace=False)
    giver = int(rng.integers(2))
    words = {"a": names[first], "b": names[second], "place": rng.choice(_PLACES), "thing": rng.choice(_THINGS)}
    pair = (names[first], names[second])
    return {
        "clean": template.format(**words, s=pair[giver]),
        "counterfactual": template.format(**words, s=pair[1 - giver]),
        "answer": f" {pair[1 - giver]}",
        "foil": f" {pair[giver]}",
    }


def _being(rng: np.random.Generator, template: str, nouns: Sequence[str]) -> dict[str, str]:
    first, second = rng.choice(len(nouns), size=2, replace=False)
    many, many_between, tense = (int(number) for number in rng.integers(2, size=3))
    between = nouns[second] + "s" * many_between
    verbs = _VERBS[tense]
    return {
        "clean": template.format(n=nouns[first] + "s" * many, m=between),
        "counterfactual": template.format(n=nouns[first] + "s" * (1 - many), m=between),
        "answer": verbs[many],
        "foil": verbs[1 - many],
    }
