"""Greater than: the war lasted from the year 17 32 to the year 17 … 33 to 99."""

from functools import partial
from random import Random

from assay.tasks._task import Feature
from assay.tasks.toy_english._scene import Grammar, Other, Scene, SceneKind, digest
from assay.tasks.toy_english._words import NEW_SPANS, NUMBERS, PLACES, SPANS

CENTURIES, NEW_CENTURIES = ("11", "12", "13", "14", "15", "16", "17"), ("10", "18", "19")
LAST_FIRST = 97
"""The latest year in which anything begins."""

NEW_ENDINGS = frozenset(sorted(NUMBERS[2 : LAST_FIRST + 1], key=lambda ending: digest("ending", ending))[:8])
"""Endings of years in which nothing begins in training (01 is none: the counterfactual begins in it)."""

ENDINGS = tuple(ending for ending in NUMBERS[1 : LAST_FIRST + 1] if ending not in NEW_ENDINGS)


def draw(random: Random, split: str) -> Scene | None:
    """A span with the year in which it began; every later year of the century is right."""
    noun = random.choice(NEW_SPANS if split == "nouns" else SPANS)
    century = random.choice(NEW_CENTURIES if split == "centuries" else CENTURIES)
    ending = random.choice(sorted(NEW_ENDINGS) if split == "endings" else ENDINGS)
    clause = f" in the old {random.choice(PLACES)}" if split == "clause" else ""
    number = int(ending)

    frame = f"the {noun}{clause} lasted from the year {century} {{}} to the year {century}"
    return Scene(
        frame.format(ending),
        NUMBERS[number + 1 :],
        partial(_changed, frame=frame, number=number),
        features={"ending": number, "century": int(century)},
    )


def _changed(name: str, random: Random, *, frame: str, number: int) -> Other | None:
    return None if number == 1 else Other(frame.format("01"), NUMBERS[: number + 1])


GRAMMAR = Grammar(
    name="greater",
    description="Toy English, greater than: the war lasted from the year 17 32 to the year 17 … 33 to 99",
    kinds=(SceneKind("answer", "the ending of a later year", NUMBERS),),
    features=(
        Feature("ending", "the ending of the first year", ("answer",), tuple(range(0, 100, 10))),
        Feature("century", "the first two digits of the years", ("answer",)),
    ),
    counterfactuals=("01",),
    shifts={
        "nouns": ("other nouns", "four other nouns"),
        "clause": ("a place in between", "a place between the noun and its verb"),
        "endings": ("new endings", "eight endings that no first year has in training"),
        "centuries": ("other centuries", "the 10s, 18s and 19s"),
    },
    draw=draw,
)
