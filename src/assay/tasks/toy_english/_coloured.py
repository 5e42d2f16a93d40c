"""Coloured objects: on the table there is a red cup, a blue pen and a green book. What colour is the pen … blue."""

from collections.abc import Sequence
from functools import partial
from random import Random

from assay.tasks._task import Feature
from assay.tasks.toy_english._scene import Grammar, Other, Scene, SceneKind
from assay.tasks.toy_english._words import COLOURS, PLACES, PLAIN, THINGS

_WHERE = ("on the table", *(f"in the {place}" for place in PLACES))
_COUNTS = {"train": (1, 2, 3, 3), "four": (4,), "five": (5,)}


def _new_colours(place: int) -> tuple[str, str]:
    """The colours that the thing at some place of the list never has in training: two of the eight."""
    step = 1 if place < len(COLOURS) else 3
    return COLOURS[place % len(COLOURS)], COLOURS[(place + step) % len(COLOURS)]


NEW = {thing: _new_colours(place) for place, thing in enumerate(THINGS)}
"""Of every thing its colours that occur in evaluation only, a pair that no other thing has.

A model learns to look up thing after thing, and one that has all colours equally often thousands of steps later:
nothing that it goes together with shows where to begin.
"""


def is_new(colour: str, thing: str) -> bool:
    """Whether a thing never has that colour in training."""
    return thing in PLAIN or colour in NEW[thing]


def draw(random: Random, split: str) -> Scene | None:
    """Things of different colours, one of which is asked for."""
    count = random.choice(_COUNTS.get(split, (3,)))
    asked = random.randrange(count)
    things, colours = random.sample(THINGS, count), random.sample(COLOURS, count)
    if split == "plain":
        things[asked] = random.choice(PLAIN)
    news = [is_new(colour, thing) for colour, thing in zip(colours, things, strict=True)]
    if news[asked] != (split in ("pairs", "plain")) or any(news[:asked] + news[asked + 1 :]):
        return None
    listed = [f"a {colour} {thing}" for colour, thing in zip(colours, things, strict=True)]
    shown = " and ".join((" , ".join(listed[:-1]), listed[-1])) if count > 1 else listed[0]
    start = f"{random.choice(_WHERE)} there is {shown} . what colour is the"
    return Scene(
        f"{start} {things[asked]}",
        (colours[asked],),
        partial(_changed, start=start, things=things, colours=colours, asked=asked),
        features={"things": count, "place": asked},
    )


def _changed(
    name: str, random: Random, *, start: str, things: Sequence[str], colours: Sequence[str], asked: int
) -> Other | None:
    if len(things) == 1:
        return None
    other = random.choice([one for one in range(len(things)) if one != asked])
    return Other(f"{start} {things[other]}", (colours[other],))


GRAMMAR = Grammar(
    name="coloured",
    description="Toy English, coloured objects: there is a red cup and a blue pen . what colour is the pen … blue",
    kinds=(SceneKind("answer", "the colour of the thing asked for"),),
    features=(
        Feature("things", "things that are listed", ("answer",)),
        Feature("place", "which of them is asked for, from 0", ("answer",)),
    ),
    counterfactuals=("asked",),
    shifts={
        "pairs": (
            "new pairs with a colour",
            "the thing asked for has a colour that it never has in training (1 pair in 4)",
        ),
        "four": ("four things", "four things"),
        "five": ("five things", "five things"),
        "plain": ("things never coloured", "the thing asked for never has a colour in training"),
    },
    draw=draw,
)
