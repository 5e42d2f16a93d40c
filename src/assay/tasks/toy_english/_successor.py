"""Successors: series two four six … eight."""

from functools import cache
from random import Random

from assay.tasks._task import Feature
from assay.tasks.toy_english._scene import Grammar, Other, Scene, SceneKind, held_part
from assay.tasks.toy_english._words import COUNTS, DAYS, LETTERS, MONTHS, ORDINALS

CLASSES = {"days": DAYS, "months": MONTHS, "letters": LETTERS, "counts": COUNTS, "ordinals": ORDINALS}
CYCLIC = ("days", "months")
STEPS = (1, 2, 3, -1)
NEW_COMBINATIONS = (("months", 3), ("letters", 2), ("ordinals", -1), ("counts", 3))
"""Classes and steps that never occur together in training."""


@cache
def _starts(kind: str, step: int, terms: int) -> tuple[int, ...]:
    """Where a series of so many terms, and the one after them, can start."""
    size = len(CLASSES[kind])
    return tuple(start for start in range(size) if kind in CYCLIC or 0 <= start + terms * step < size)


def draw(random: Random, split: str) -> Scene | None:
    """The terms of a series; its step is said by them alone."""
    kind, step = random.choice(list(CLASSES)), random.choice(STEPS)
    if ((kind, step) in NEW_COMBINATIONS) != (split == "combinations"):
        return None
    terms = {"longer": 5, "two": 2}.get(split, 3)
    starts = _starts(kind, step, terms)
    start = random.choice(starts)
    if held_part("start", kind, str(step), str(start)) != (split == "starts") and split != "combinations":
        return None
    words = CLASSES[kind]

    def term(start: int, place: int) -> str:
        return words[(start + place * step) % len(words)]

    def said(start: int) -> str:
        return " ".join(("series", *(term(start, place) for place in range(terms))))

    def change(name: str, random: Random) -> Other:
        other = random.choice([one for one in starts if one != start])
        return Other(said(other), (term(other, terms),))

    wraps = int(not 0 <= start + terms * step < len(words))
    features = {"class": list(CLASSES).index(kind), "step": step, "wraps": wraps}
    return Scene(said(start), (term(start, terms),), change, features=features)


GRAMMAR = Grammar(
    name="successor",
    description="Toy English, successors: series two four six … eight",
    kinds=(SceneKind("answer", "the next term of the series"),),
    features=(
        Feature("class", "what the terms are", ("answer",), tuple(range(len(CLASSES))), tuple(CLASSES)),
        Feature("step", "places from a term to the next", ("answer",)),
        Feature("wraps", "1 where the series goes on from its beginning", ("answer",)),
    ),
    counterfactuals=("start",),
    shifts={
        "two": "two terms only",
        "longer": "five terms",
        "starts": "starts that the class and step never have in training (1 in 8)",
        "combinations": "classes and steps that never occur together in training",
    },
    draw=draw,
    memorised=True,
)
