"""Docstrings: def f ( X , Y , Z , W ) : param X about pilot param … Y."""

from collections.abc import Sequence
from functools import partial
from random import Random

from assay.tasks._task import Feature
from assay.tasks.toy_english._scene import Grammar, Other, Scene, SceneKind
from assay.tasks.toy_english._words import LETTERS, NOUNS, PLACES, PLAIN, THINGS

_COUNTS = {"three": 3, "five": 5}


def draw(random: Random, split: str) -> Scene | None:
    """Four arguments (or three, five) and a list that explains them in order, up to one."""
    words = THINGS + PLAIN + PLACES if split == "words" else LETTERS
    count = _COUNTS.get(split, 4)
    arguments = random.sample(words, count)
    asked = random.randrange(1, count)
    nouns = random.sample(NOUNS, asked)
    explained = " ".join(f"param {one} about {noun}" for one, noun in zip(arguments, nouns, strict=False))

    frame = f"def f ( {{}} ) : {explained} param"
    return Scene(
        frame.format(" , ".join(arguments)),
        (arguments[asked],),
        partial(_changed, frame=frame, words=words, arguments=arguments, asked=asked),
        features={"arguments": count, "place": asked},
    )


def _changed(
    name: str, random: Random, *, frame: str, words: Sequence[str], arguments: Sequence[str], asked: int
) -> Other:
    other = random.choice([word for word in words if word not in arguments])
    return Other(frame.format(" , ".join((*arguments[:asked], other, *arguments[asked + 1 :]))), (other,))


GRAMMAR = Grammar(
    name="docstring",
    description="Toy English, docstrings: def f ( X , Y , Z , W ) : param X about pilot param … Y",
    kinds=(SceneKind("answer", "the next argument"),),
    features=(
        Feature("arguments", "arguments of the function", ("answer",)),
        Feature("place", "which of them is asked for, from 0", ("answer",)),
    ),
    counterfactuals=("argument",),
    shifts={
        "three": ("three arguments", "three arguments"),
        "five": ("five arguments", "five arguments"),
        "words": ("words as arguments", "words for arguments"),
    },
    draw=draw,
)
