"""Agreement: the dogs near the girl … run."""

from functools import partial
from random import Random

from assay.tasks._task import Feature
from assay.tasks.toy_english._scene import Grammar, Other, Scene, SceneKind
from assay.tasks.toy_english._words import (
    NOUNS,
    PLURAL_NOUNS,
    PLURAL_TRANSITIVES,
    PLURAL_VERBS,
    PREPOSITIONS,
    TRANSITIVES,
    VERBS,
)

_NOUNS, _VERBS, _TRANSITIVES = (NOUNS, PLURAL_NOUNS), (VERBS, PLURAL_VERBS), (TRANSITIVES, PLURAL_TRANSITIVES)
_ATTRACTORS = {"two": 2, "three": 3}


def draw(random: Random, split: str) -> Scene | None:
    """A subject and other nouns behind it; every verb of the subject's number is right.

    In the shifts all other nouns are of the other number; else there is one, of either.
    """
    number = random.randrange(2)
    count = _ATTRACTORS.get(split, 1)
    subject, *others = random.sample(range(len(NOUNS)), 1 + count)
    opposed = 1 - number if split in ("two", "three", "relative") else random.randrange(2)
    if split == "relative":
        behind = f"that the {_NOUNS[opposed][others[0]]} {random.choice(_TRANSITIVES[opposed])}"
    else:
        behind = " ".join(f"{random.choice(PREPOSITIONS)} the {_NOUNS[opposed][other]}" for other in others)

    change = partial(_changed, number=1 - number, subject=subject, behind=behind)
    features = {"attractors": count if opposed != number else 0, "plural": number}
    return Scene(f"the {_NOUNS[number][subject]} {behind}", _VERBS[number], change, features=features)


def _changed(name: str, random: Random, *, number: int, subject: int, behind: str) -> Other:
    return Other(f"the {_NOUNS[number][subject]} {behind}", _VERBS[number])


GRAMMAR = Grammar(
    name="agreement",
    description="Toy English, agreement: the dogs near the girl … run",
    kinds=(SceneKind("answer", "a verb of the subject's number", VERBS + PLURAL_VERBS),),
    features=(
        Feature("attractors", "nouns of the other number between subject and verb", ("answer",)),
        Feature("plural", "1 where the subject is plural", ("answer",)),
    ),
    counterfactuals=("number",),
    shifts={
        "two": ("two nouns in between", "two nouns of the other number in between"),
        "three": ("three nouns in between", "three nouns of the other number in between"),
        "relative": ("a clause in between", "a noun and a verb of the other number in between"),
    },
    draw=draw,
)
