"""A task whose splits hold pairs: random tokens, one of which the counterfactual changes, and random answers."""

from dataclasses import dataclass

import numpy as np

from assay.tasks import NO_TOKEN, UNSCORED, Kind, Split

VOCABULARY = 9


@dataclass(frozen=True)
class PairTask:
    """Splits train, iid and the shift `shorter`; `without` names those that are to have no pairs.

    Every sequence is scored at one or two positions, each with one or two foils.
    """

    without: tuple[str, ...] = ()
    name: str = "pairs"
    primary_kind: str = "asked"
    kinds = (Kind("asked", "what a pair asks"),)
    features = ()
    split_names = ("train", "iid", "shorter")

    def split(self, name: str, sequences: int) -> Split:
        rng = np.random.default_rng(self.split_names.index(name))
        width = 5 if name == "shorter" else 8
        # Every row from a stream of its own, so that the first ones are the same however many are asked for.
        rows = [self._row(np.random.default_rng(seed), width) for seed in rng.integers(2**32, size=sequences)]
        tokens, counterfactuals, answers, foils, lengths = (np.array(part) for part in zip(*rows, strict=True))
        pairs = {} if name in self.without else {"counterfactuals": counterfactuals, "answers": answers, "foils": foils}
        role = "shift" if name == "shorter" else name
        kinds = np.where(answers == NO_TOKEN, UNSCORED, 0)
        return Split(name, role, f"random tokens, {width} at most", tokens, lengths, kinds, **pairs)

    @staticmethod
    def _row(rng, width):
        length = int(rng.integers(3, width + 1))
        tokens = np.zeros(width, dtype=np.int64)
        tokens[:length] = rng.integers(0, VOCABULARY, length)
        counterfactual = tokens.copy()
        counterfactual[0] = (tokens[0] + rng.integers(1, VOCABULARY)) % VOCABULARY
        answers = np.full(width, NO_TOKEN)
        foils = np.full((width, 2), NO_TOKEN)
        for position in {length - 2, *rng.integers(1, length - 1, 1).tolist()}:
            answer, *others = rng.permutation(VOCABULARY)[:3]
            answers[position] = answer
            count = int(rng.integers(1, 3))
            foils[position, :count] = others[:count]
        return tokens, counterfactual, answers, foils, length

    def describe(self):
        return {"task": self.name, "without": list(self.without)}
