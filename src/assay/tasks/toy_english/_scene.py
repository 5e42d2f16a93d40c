"""What every grammar of toy English gives: scenes, and the rule by which some of them are never trained on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from random import Random
from typing import NamedTuple

from assay.tasks._task import Feature

TENTH = 10


def digest(*parts: str) -> int:
    """A number that every process gives to the same words."""
    return int.from_bytes(blake2b("|".join(parts).encode(), digest_size=8).digest(), "big")


def held(key: str) -> bool:
    """Whether a prompt is of the tenth that is never trained on."""
    return digest(key) % TENTH == 0


@lru_cache(maxsize=10_000)
def held_part(what: str, *parts: str, share: int = 8) -> bool:
    """Whether a part of prompts (a pair of names, say) is of the share, one in `share`, that is never trained on."""
    return digest(what, *parts) % share == 0


class Other(NamedTuple):
    """A counterfactual: a prompt of the same length, and the words that are right there and not in the original."""

    text: str
    foils: tuple[str, ...]


class Scene(NamedTuple):
    """A prompt, all the words that are right after it, and its counterfactuals.

    `change(name, random)` gives the counterfactual of that name, or None where it has none (a partial of a function of
    the module: scenes are drawn by the thousand). `key` is what the rule of
    the held tenth is applied to (the text, where it is None); `sure` is how many of the last predictions, that of the
    answer included, are determined.
    """

    text: str
    answers: tuple[str, ...]
    change: Callable[[str, Random], Other | None]
    kind: str = "answer"
    features: Mapping[str, int] = {}
    key: str | None = None
    sure: int = 1

    @property
    def held(self) -> bool:
        """Whether it is of the tenth that is never trained on."""
        return held(self.key or self.text)


@dataclass(frozen=True)
class SceneKind:
    """A kind of prediction, as `Kind`, with words for candidates."""

    name: str
    description: str
    candidates: tuple[str, ...] | None = None
    determined: bool = True


@dataclass(frozen=True)
class Grammar:
    """One of the nine things that toy English asks.

    `draw(random, split)` gives a scene, or None where the dice gave none of the split. `shifts` are the other splits
    than train and iid, with their labels and what is unlike training in them. `inside` are those of the shifts that
    lie inside the training grammar, and differ by how often things occur: like iid they have scenes of the held tenth
    only. With `memorised` scenes nothing is held: all that is asked in distribution was shown in training. The first
    of `counterfactuals` is the usual one.
    """

    name: str
    description: str
    kinds: tuple[SceneKind, ...]
    features: tuple[Feature, ...]
    counterfactuals: tuple[str, ...]
    shifts: Mapping[str, tuple[str, str]]
    draw: Callable[[Random, str], Scene | None]
    inside: frozenset[str] = frozenset()
    memorised: bool = False
