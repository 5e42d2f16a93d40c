"""Indirect objects: sentences in which the name that occurs once is to come (Wang et al., arXiv 2211.00593)."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from assay.tasks import Pairs

_NAMES = ("Mary", "John", "Tom", "Anna", "Paul", "Jane", "Mark", "Lisa", "Peter", "Kate", "James", "Laura")
_UNSEEN_NAMES = ("Alice", "David", "Emma", "George", "Sarah", "Henry", "Julia", "Simon")
_PLACES, _THINGS = ("store", "park", "school", "office", "station"), ("drink", "book", "ball", "letter", "key")

_TEMPLATES = (
    "When {a} and {b} went to the {place}, {s} gave a {thing} to",
    "After {a} and {b} arrived at the {place}, {s} handed a {thing} to",
    "While {a} and {b} were at the {place}, {s} offered a {thing} to",
)
_UNSEEN_TEMPLATES = (
    "{a} and {b} had a long talk at the {place}. Then {s} passed a {thing} to",
    "The {place} was closed when {a} and {b} came by, so {s} threw a {thing} to",
)
_DISTRACTORS = (
    "When {a} and {b} went to the {place}, the weather was bad and the news was worse, but {s} gave a {thing} to",
    "After {a} and {b} arrived at the {place}, where nobody had been for years, {s} handed a {thing} to",
)


def ioi_pairs(train: int = 100, judged: int = 100, seed: int = 0) -> Pairs:
    """Pairs of sentences: the answer is the name that came once; in the counterfactual the other name comes once.

    One name differs, the second occurrence of the one who gives. Splits: `train` and `iid` of three templates and
    twelve names, and as shifts templates that are not among them, other names, and clauses in between. Either name may
    be the one who gives.
    """
    rng = np.random.default_rng(seed)
    kinds = {
        "train": (_TEMPLATES, _NAMES, train),
        "iid": (_TEMPLATES, _NAMES, judged),
        "unseen_templates": (_UNSEEN_TEMPLATES, _NAMES, 2 * judged),
        "unseen_names": (_TEMPLATES, _UNSEEN_NAMES, 2 * judged),
        "distractors": (_DISTRACTORS, _NAMES, 2 * judged),
    }
    rows: list[dict[str, str]] = []
    seen: set[str] = set()
    for split, (templates, names, count) in kinds.items():
        drawn = itertools.islice(_drawn(rng, templates, names, split, seen), count)
        rows += list(drawn)
    return Pairs.of(rows)


def _drawn(
    rng: np.random.Generator, templates: Sequence[str], names: Sequence[str], split: str, seen: set[str]
) -> Iterator[dict[str, str]]:
    """Sentences that did not occur before, templates in turn."""
    for template in itertools.cycle(templates):
        first, second = rng.choice(len(names), size=2, replace=False)
        giver = int(rng.integers(2))
        words = {"a": names[first], "b": names[second], "place": rng.choice(_PLACES), "thing": rng.choice(_THINGS)}
        pair = (names[first], names[second])
        clean = template.format(**words, s=pair[giver])
        if clean not in seen:
            seen.add(clean)
            yield {
                "clean": clean,
                "counterfactual": template.format(**words, s=pair[1 - giver]),
                "answer": f" {pair[1 - giver]}",
                "foil": f" {pair[giver]}",
                "split": split,
            }
