"""Successors: series two four six … eight."""

from functools import cache, partial
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
    start = random.choice(_starts(kind, step, terms))
    if held_part("start", kind, str(step), str(start)) != (split == "starts") and split != "combinations":
        return None
    *shown, answer = _terms(kind, step, terms, start)
    wraps = int(not 0 <= start + terms * step < len(CLASSES[kind]))
    return Scene(
        " ".join(("series", *shown)),
        (answer,),
        partial(_changed, kind=kind, step=step, terms=terms, start=start),
        features={"class": list(CLASSES).index(kind), "step": step, "wraps": wraps},
    )


def _terms(kind: str, step: int, terms: int, start: int) -> list[str]:
    """So many terms of a series, and the one after them."""
    words = CLASSES[kind]
    return [words[(start + place * step) % len(words)] for place in range(terms + 1)]


def _changed(name: str, random: Random, *, kind: str, step: int, terms: int, start: int) -> Other:
    other = random.choice([one for one in _starts(kind, step, terms) if one != start])
    *shown, answer = _terms(kind, step, terms, other)
    return Other(" ".join(("series", *shown)), (answer,))


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
        "two": ("two terms", "two terms only, which training has as the first of three"),
        "longer": ("five terms", "five terms"),
        "starts": ("new starts", "starts that the class and step never have in training (1 in 8)"),
        "combinations": ("new combinations", "classes and steps that never occur together in training"),
    },
    draw=draw,
    memorised=True,
)
