"""Pairs of functions that differ in one character of a name that occurs again."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice

import numpy as np

from assay._errors import AssayError, unknown_name
from assay.tasks._code import Code
from assay.tasks._functions import Function
from assay.tasks._lexing import IDENTIFIER, characters
from assay.tasks._task import Feature, Kind, Split
from assay.tasks._token_pairs import TokenPair, split_of_pairs
from assay.tasks._tokenizer import UNKNOWN

_WORD = re.compile(r"(?<!\w)[^\W\d]\w*")
_DISTANCES = (1, 10, 20, 40, 80, 160)


@dataclass(frozen=True)
class _Repeat:
    """Where a character of a name is asked for, where it stood first, and how often other ones could stand there."""

    asked: int
    first: int
    others: Mapping[str, int]
    features: Mapping[str, int]


@dataclass(frozen=True)
class InductionPairs:
    """Functions up to a character of a name that occurs for the second time, and the same with the first one changed.

    Asked for is a character of an identifier, not its first, where exactly one word before begins with the characters
    before it: the same identifier, so that its first occurrence determines what follows. In the counterfactual that
    occurrence has another character at the same place, one that follows the same beginning of a word in the training
    functions, drawn as often as it does there; it is the foil. The two sequences differ in that one character.

    The splits are those of the code task that have such functions. One character of each function is drawn, from `seed`
    and the function's place in its split. `distance` is that of the two places; `known` is how many characters of the
    name stand before the one asked for.
    """

    code: Code = field(default_factory=Code)
    seed: int = 0

    primary_kind = "repeated_name"
    kinds = (Kind("repeated_name", "a later character of an identifier that occurs for the second time"),)
    features = (
        Feature("distance", "characters back to the first occurrence", ("repeated_name",), _DISTANCES),
        Feature("known", "characters of the name before the predicted one", ("repeated_name",), (1, 2, 3, 4, 6, 8)),
    )

    @classmethod
    def from_data(cls, data: str = "python", language: str | None = None, seed: int = 0) -> "InductionPairs":
        """The pairs of what a person names (see `Code.from_data`)."""
        return cls(Code.from_data(data, language), seed)

    @property
    def name(self) -> str:
        """`induction-` and the training language."""
        return f"induction-{self.code.source.language}"

    @cached_property
    def split_names(self) -> tuple[str, ...]:
        """Those of the code task that have such a function."""
        return tuple(name for name in self.code.split_names if any(map(self._repeats, self.code.functions(name))))

    def describe(self) -> dict[str, object]:
        """The parameters, as plain values."""
        return {"task": "induction", "code": self.code.describe(), "seed": self.seed}

    def split(self, name: str, sequences: int) -> Split:
        """The first `sequences` pairs of a split, fewer if it has fewer.

        Raises AssayError for an unknown split or a number below 1.
        """
        if name not in self.split_names:
            raise unknown_name("split", name, self.split_names)
        if sequences < 1:
            raise AssayError(f"split({name!r}, sequences={sequences}): must be at least 1.")
        whole = self.code.split(name, 1)
        return split_of_pairs(
            list(islice(self._pairs(name), sequences)),
            name=name,
            role=whole.role,
            description=f"{whole.description}, up to a character of a repeated name",
            label=whole.label,
            pad=self.code.pad_id,
            names=whole.names,
        )

    def _pairs(self, name: str) -> Iterator[TokenPair]:
        split = self.code.split_names.index(name)
        for place, function in enumerate(self.code.functions(name)):
            repeats = self._repeats(function)
            if repeats:
                rng = np.random.default_rng([self.seed, split, place])
                yield self._pair(function.text, repeats[int(rng.integers(len(repeats)))], rng)

    def _pair(self, text: str, repeat: _Repeat, rng: np.random.Generator) -> TokenPair:
        weights = np.array(list(repeat.others.values()), dtype=float)
        other = list(repeat.others)[int(rng.choice(len(weights), p=weights / weights.sum()))]
        tokens = [self.code.start_id, *map(self.code.id_of, text[: repeat.asked])]
        counterfactual = list(tokens)
        counterfactual[repeat.first + 1] = self.code.id_of(other)
        answer, foil = self.code.id_of(text[repeat.asked]), self.code.id_of(other)
        return TokenPair(tokens, counterfactual, answer, (foil,), features=repeat.features)

    @cached_property
    def _followers(self) -> dict[str, Counter[str]]:
        """How often each character follows each beginning of a word in the training functions."""
        found: dict[str, Counter[str]] = {}
        for function in self.code.functions("train"):
            for word in _WORD.findall(function.text[: self.code.context - 1]):
                for known in range(1, len(word)):
                    found.setdefault(word[:known], Counter())[word[known]] += 1
        return found

    def _others(self, beginning: str, answer: str) -> dict[str, int]:
        """What else follows the beginning of a word, and how often."""
        counts = sorted(self._followers.get(beginning, Counter()).items())
        return {other: count for other, count in counts if other != answer and self.code.id_of(other) != UNKNOWN}

    def _repeats(self, function: Function) -> list[_Repeat]:
        """All characters of a function that can be asked for."""
        text = function.text[: self.code.context - 1]
        part = characters(function.text, function.language).part
        words = [(match.start(), match[0]) for match in _WORD.finditer(text)]
        found: list[_Repeat] = []
        for index, (start, word) in enumerate(words):
            before = [(place, other) for place, other in words[:index] if other[0] == word[0]]
            if part[start] != IDENTIFIER or word not in (other for _, other in before):
                continue
            for known in range(1, len(word)):
                first, *more = [(place, other) for place, other in before if other.startswith(word[:known])]
                if more or first[1] != word or part[first[0]] != IDENTIFIER:
                    continue
                others = self._others(word[:known], word[known])
                if others and self.code.id_of(word[known]) != UNKNOWN:
                    features = {"distance": start - first[0], "known": known}
                    found.append(_Repeat(start + known, first[0] + known, others, features))
        return found
