"""Repeated lists: dax fep gorp hib dax fep … gorp."""

from collections.abc import Sequence
from functools import partial
from random import Random

from assay.tasks._task import Feature
from assay.tasks.toy_english._scene import Grammar, Other, Scene, SceneKind
from assay.tasks.toy_english._words import NAMES, NONSENSE, NUMBERS, PLAIN, THINGS

SHORTEST, LONGEST = 4, 10
_WORDS = {"names": NAMES, "things": THINGS + PLAIN, "numbers": NUMBERS}


def draw(random: Random, split: str) -> Scene | None:
    """A list of different words that is said again from its start, up to some word; in training, up to the last."""
    words = _WORDS.get(split, NONSENSE)
    length = random.randint(14, 20) if split == "longer" else random.randint(SHORTEST, LONGEST)
    listed = random.sample(words, length)
    key = " ".join(listed)
    fresh: list[str] = []
    start, end = 0, length - 1
    if split != "train":
        end = random.randint(1, length - 1)
    if split == "single":
        start = end - 1
        fresh = random.sample([word for word in words if word not in listed], 3)

    repeated = " ".join((*fresh, *listed[start:end]))
    return Scene(
        f"{key} {repeated}",
        (listed[end],),
        partial(_changed, words=words, listed=listed, repeated=repeated, end=end),
        features={"length": length, "distance": length + len(fresh) - start, "place": end},
        key=key,
        sure=end - start,
    )


def _changed(
    name: str, random: Random, *, words: Sequence[str], listed: Sequence[str], repeated: str, end: int
) -> Other:
    said = {*listed, *repeated.split()}
    other = random.choice([word for word in words if word not in said])
    return Other(f"{' '.join((*listed[:end], other, *listed[end + 1 :]))} {repeated}", (other,))


GRAMMAR = Grammar(
    name="induction",
    description="Toy English, repeated lists: dax fep gorp hib dax fep … gorp",
    kinds=(SceneKind("answer", "the word that comes next in the repeated list"),),
    features=(
        Feature("length", "words in the list", ("answer",)),
        Feature("distance", "positions from the answer back to the same word in the list", ("answer",)),
        Feature("place", "which word of the list the answer is, from 0", ("answer",)),
    ),
    counterfactuals=("target",),
    shifts={
        "longer": ("longer lists", "lists of 14 to 20 words"),
        "single": ("one word returns", "one word of the list returns after three others"),
        "names": ("lists of names", "lists of names"),
        "things": ("lists of things", "lists of things"),
        "numbers": ("lists of numbers", "lists of numbers"),
    },
    draw=draw,
)
