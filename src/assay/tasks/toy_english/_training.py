"""What a model of toy English is trained on: sentences of all nine grammars, drawn without end."""

from itertools import accumulate
from random import Random
from typing import NamedTuple

from assay._errors import AssayError
from assay.tasks.toy_english import (
    _agreement,
    _choice,
    _coloured,
    _docstring,
    _facts,
    _greater,
    _induction,
    _ioi,
    _successor,
)
from assay.tasks.toy_english._scene import Grammar, Scene
from assay.tasks.toy_english._words import (
    BOS,
    COLOURS,
    ID,
    NAMES,
    NEW_SPANS,
    NOUNS,
    NUMBERS,
    OUTSIDERS,
    PLACES,
    PLURAL_NOUNS,
    PLURAL_TRANSITIVES,
    TRANSITIVES,
)

GRAMMARS: dict[str, Grammar] = {
    module.GRAMMAR.name: module.GRAMMAR
    for module in (_ioi, _greater, _induction, _successor, _agreement, _coloured, _choice, _facts, _docstring)
}
"""The nine grammars by name."""

MIX = {
    "ioi": 10, "greater": 5, "induction": 14, "successor": 8, "agreement": 5, "coloured": 26, "choice": 26, "facts": 14,
    "docstring": 6,
}  # fmt: skip
"""How often each is drawn, in parts."""

FILLED = 0.2
"""How often another sentence stands before the prompt."""

FRUITLESS = 5_000
"""Draws in a row without a new scene after which a split is held to have no more."""


class Document(NamedTuple):
    """A training sentence in tokens: <bos>, perhaps a filler, a prompt, one right answer, a full stop.

    `sure[t]` says that the prediction made at position t is determined by the grammar.
    """

    tokens: list[int]
    sure: list[bool]


def training_scene(random: Random, grammar: Grammar) -> Scene:
    """A scene that is trained on: none of the held tenth. Raises AssayError for a grammar that gives none."""
    for _ in range(FRUITLESS):
        scene = grammar.draw(random, "train")
        if scene is not None and (grammar.memorised or not scene.held):
            return scene
    raise AssayError(f"the grammar {grammar.name!r} gives no scene to train on.")


_CUMULATED = tuple(accumulate(MIX.values()))


def document(random: Random) -> Document:
    """The next training sentence of a stream."""
    grammar = GRAMMARS[random.choices(tuple(MIX), cum_weights=_CUMULATED)[0]]
    scene = training_scene(random, grammar)
    before = f"{filler(random, scene if grammar.name == 'ioi' else None)} " if random.random() < FILLED else ""
    prompt = [BOS, *(ID[word] for word in f"{before}{scene.text}".split())]
    end = len(prompt)
    return Document(
        [*prompt, ID[random.choice(scene.answers)], ID["."]],
        [end - scene.sure <= place < end for place in range(end + 2)],
    )


def filler(random: Random, ioi: Scene | None) -> str:
    """A sentence that asks nothing. Before one with an indirect object it names no outsider, and no name of it."""
    if ioi is None:
        name = random.choice(NAMES + OUTSIDERS)
    else:
        said = set(ioi.text.split())
        name = random.choice([one for one in NAMES if one not in said])
    kind = random.randrange(7)
    if kind <= 1:
        return f"{name} was here today ."
    if kind == 2:
        return f"{name} {random.choice(TRANSITIVES)} the {random.choice(NOUNS)} ."
    if kind == 3:
        return f"the {random.choice(PLURAL_NOUNS)} that {random.choice(PLURAL_TRANSITIVES)} {name} are old ."
    if kind == 4:
        return f"it was a long {random.choice(('day', *NEW_SPANS))} in the {random.choice(PLACES)} ."
    if kind == 5:
        return f"the room {random.choice(NUMBERS)} was {random.choice(COLOURS)} ."
    return f"there is a {random.choice(NOUNS)} near the old {random.choice(PLACES)} ."
