"""Indirect objects: when A and B went to the store, B gave a ring to … A."""

from collections.abc import Callable, Sequence
from functools import partial
from random import Random

from assay.tasks._task import Feature
from assay.tasks.toy_english._scene import Grammar, Other, Scene, SceneKind, held_part
from assay.tasks.toy_english._words import (
    COLOURS,
    GIVERS,
    NAMES,
    NOUNS,
    OUTSIDERS,
    PLACES,
    PLAIN,
    THINGS,
    VERBS,
)

TEMPLATES = (
    "when {x} and {y} went to the {place} ,{clause} {s} gave a {thing} to",
    "after {x} and {y} came to the {place} ,{clause} {s} handed a {thing} to",
    "while {x} and {y} were at the {place} ,{clause} {s} gave the {thing} to",
    "then {x} and {y} met at the {place} ,{clause} and {s} gave a {thing} to",
    "{x} and {y} had lunch at the {place} .{clause} {s} passed a {thing} to",
    "at the {place} {x} met {y} .{clause} later {s} sent a {thing} to",
    "{x} saw {y} in the {place} ,{clause} so {s} showed the {thing} to",
    "{x} walked to the {place} with {y} ,{clause} and {s} offered a {thing} to",
)

NEW_TEMPLATES = (
    "{x} and {y} walked to the {place} ,{clause} and then {s} handed the {thing} to",
    "at the {place} {x} and {y} had lunch ,{clause} so {s} sent a {thing} to",
    "when {x} saw {y} at the {place} ,{clause} {s} passed the {thing} to",
    "later {x} met {y} in the {place} .{clause} then {s} gave a {thing} to",
)

THREE = (
    "when {x} , {y} and {z} went to the {place} , {s} and {t} gave a {thing} to",
    "after {x} , {y} and {z} came to the {place} , {s} and {t} handed a {thing} to",
    "{x} , {y} and {z} had lunch at the {place} . {s} and {t} passed a {thing} to",
)

_HELD_PAIR = "pair of names"


def draw(random: Random, split: str) -> Scene | None:
    """A scene with two names (of `three`, three), one of which is said again: the other is the answer."""
    if split == "three":
        return _three(random)
    taker = random.choice(GIVERS if split == "never_io" else OUTSIDERS if split == "outside_io" else NAMES)
    giver = random.choice(NAMES if split in ("never_io", "outside_io") else NAMES + GIVERS)
    if taker == giver or held_part(_HELD_PAIR, *sorted((taker, giver))) != (split == "pairs"):
        return None
    number, order = random.randrange(len(NEW_TEMPLATES if split == "templates" else TEMPLATES)), random.randrange(2)
    template = (NEW_TEMPLATES if split == "templates" else TEMPLATES)[number]
    place, thing = random.choice(PLACES), random.choice(THINGS + PLAIN)
    clause = f" {_clause(random)}" if split == "distractor" else ""
    before = ""
    if split == "bystander":
        before = f"{random.choice([name for name in NAMES if name not in (taker, giver)])} was here today . "

    x, y = (taker, giver) if order == 0 else (giver, taker)
    frame = template.format(x="{x}", y="{y}", s="{s}", place=place, thing=thing, clause=clause)
    text = frame.format(x=x, y=y, s=giver)
    change = partial(_changed, frame=before + frame, x=x, y=y, giver=giver)
    return Scene(before + text, (taker,), change, features={"template": number, "order": order}, key=text)


def _changed(name: str, random: Random, *, frame: str, x: str, y: str, giver: str) -> Other:
    if name == "flip":
        return Other(frame.format(x=x, y=y, s=y if giver == x else x), (giver,))
    a, b, c = random.sample([one for one in NAMES if one not in (x, y)], 3)
    return Other(frame.format(x=x, y=y, s=c) if name == "third" else frame.format(x=a, y=b, s=c), (giver,))


def _three(random: Random) -> Scene:
    names = random.sample(NAMES, 3)
    answer = random.randrange(3)
    number, place, thing = random.randrange(len(THREE)), random.choice(PLACES), random.choice(THINGS + PLAIN)
    givers = [name for name in names if name != names[answer]]
    said = partial(_said_of_three, THREE[number], place, thing)
    return Scene(
        said(names, givers),
        (names[answer],),
        partial(_changed_of_three, said=said, names=names, givers=givers),
        features={"template": number, "order": answer},
    )


def _said_of_three(template: str, place: str, thing: str, names: Sequence[str], givers: Sequence[str]) -> str:
    first = dict(zip("xyz", names, strict=True))
    return template.format(**first, s=givers[0], t=givers[1], place=place, thing=thing)


def _changed_of_three(
    name: str, random: Random, *, said: Callable[..., str], names: Sequence[str], givers: Sequence[str]
) -> Other:
    (taker,) = set(names) - set(givers)
    if name == "flip":
        return Other(said(names, (taker, givers[1])), (givers[0],))
    fresh = random.sample([one for one in NAMES if one not in names], 5)
    return Other(said(names if name == "third" else fresh[2:], fresh[:2]), tuple(givers))


def _clause(random: Random) -> str:
    """Seven to nine words without a name, and the comma behind them."""
    place, other = random.sample(PLACES, 2)
    return random.choice((
        f"the old {random.choice(NOUNS)} in the {place} {random.choice(VERBS)} today ,",
        f"the {random.choice(COLOURS)} {random.choice(THINGS)} was here in the {place} ,",
        f"it was a long day in the {place} ,",
        f"there was a {other} near the old {place} ,",
    ))  # fmt: skip


GRAMMAR = Grammar(
    name="ioi",
    description="Toy English, indirect objects: when A and B went to the store, B gave a ring to … A",
    kinds=(SceneKind("answer", "the name that was said once"),),
    features=(
        Feature("template", "which sentence", ("answer",)),
        Feature("order", "which of the names the answer is, from 0", ("answer",)),
    ),
    counterfactuals=("flip", "third", "abc"),
    shifts={
        "bystander": ("another name before", "another name in a sentence before"),
        "pairs": ("new pairs of names", "pairs of names that are never together in training (1 in 8)"),
        "never_io": ("givers as answers", "the answer is a name that only gives in training"),
        "outside_io": ("outsiders as answers", "the answer is a name that is in no such sentence in training"),
        "templates": ("new sentences", "four new sentences of known words"),
        "distractor": ("a clause in between", "a clause of seven to nine words in between"),
        "three": ("three names", "three names, two of which give"),
    },
    draw=draw,
    inside=frozenset({"bystander"}),
)
