"""Pairs of English sentences for pretrained models: who gets it, and how many they are.

They were chosen by what SmolLM2-135M itself does: the answer is what it expects most, on most of them. Templates on
which it does something else were left out, whatever circuits do there.
"""

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
    "The friends {a} and {b} found a {thing} at the {place}, and {s} gave it to",
    "At the {place}, {a} and {b} had an argument, and then {s} sent a {thing} to",
)
_GIVING_LATER = (
    "When {a} and {b} went to the {place}, the weather was bad and the news was worse, but {s} gave a {thing} to",
    "After {a} and {b} arrived at the {place}, where nobody had been for years, {s} handed a {thing} to",
)

_NOUNS = ("key", "dog", "teacher", "boy", "girl", "car", "book", "house", "picture", "friend", "king", "doctor")
_UNSEEN_NOUNS = ("author", "letter", "farmer", "student", "tree", "cat", "bird", "table")
_IS, _WAS = (" is", " are"), (" was", " were")

_BEING = {
    "It seems to me that the {n} next to the {m}": _IS,
    "Everybody knows that the {n} behind the {m}": _IS,
    "We did not know whether the {n} beside the {m}": _WAS,
}
_BEING_OTHERWISE = {
    "I was sure that the {n} that the {m} saw": _WAS,
    "Later we found out that the {n} without the {m}": _IS,
}
_BEING_LATER = {
    "I was told that the {n} near the {m}, which nobody in the village had seen before,": _WAS,
    "Everybody knows that the {n} behind the {m}, not far from the old station,": _IS,
}
_VERBS = _BEING | _BEING_OTHERWISE | _BEING_LATER

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
            "train": (tuple(_BEING), _NOUNS, train),
            "iid": (tuple(_BEING), _NOUNS, judged),
            "unseen_templates": (tuple(_BEING_OTHERWISE), _NOUNS, 2 * judged),
            "unseen_nouns": (tuple(_BEING), _UNSEEN_NOUNS, 2 * judged),
            "distractors": (tuple(_BEING_LATER), _NOUNS, 2 * judged),
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
    many, many_between = (int(number) for number in rng.integers(2, size=2))
    between = nouns[second] + "s" * many_between
    verbs = _VERBS[template]
    return {
        "clean": template.format(n=nouns[first] + "s" * many, m=between),
        "counterfactual": template.format(n=nouns[first] + "s" * (1 - many), m=between),
        "answer": verbs[many],
        "foil": verbs[1 - many],
    }
