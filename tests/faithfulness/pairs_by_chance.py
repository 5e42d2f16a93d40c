"""A task whose splits hold pairs by chance, and a recipe whose share of the subject's effect is known exactly."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from assay.engine import Answer
from assay.subjects import Subject
from assay.tasks import NO_TOKEN, UNSCORED, Kind, Split

VOCABULARY = 9


@dataclass(frozen=True)
class PairTask:
    """Splits train, iid and the shift `shorter` of random tokens, all of which the counterfactual changes.

    `without` names the splits that are to have no pairs. Every sequence is scored at one or two positions, each with
    one or two foils; answers and foils are random, or, with a subject in `moving`, the tokens whose logits fall and
    rise most from a sequence to its counterfactual: then every pair has an effect.
    """

    without: tuple[str, ...] = ()
    moving: Subject | None = None
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
        split = Split(name, role, f"random tokens, {width} at most", tokens, lengths, kinds, **pairs)
        return split if self.moving is None or not pairs else self._moved(split)

    def _moved(self, split):
        clean, other = (
            self.moving(torch.from_numpy(tokens), torch.from_numpy(split.valid).long())
            for tokens in (split.tokens, split.counterfactuals)
        )
        fall = (clean - other).detach().numpy()
        here = split.answers != NO_TOKEN
        answers = np.where(here, fall.argmax(axis=-1), NO_TOKEN)
        return replace(split, answers=answers, foils=np.where(here, fall.argmin(axis=-1), NO_TOKEN))

    @staticmethod
    def _row(rng, width):
        length = int(rng.integers(3, width + 1))
        tokens = np.zeros(width, dtype=np.int64)
        tokens[:length] = rng.integers(0, VOCABULARY, length)
        counterfactual = tokens.copy()
        counterfactual[:length] = (tokens[:length] + rng.integers(1, VOCABULARY, length)) % VOCABULARY
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


@dataclass
class Between:
    """Logits a `share` of the way from the subject's on the counterfactual to its own, or `under_shift` of it there.

    Its share of the subject's effect is just that. `knows` says whether it names what it is when it keeps nothing.
    """

    share: float
    under_shift: float | None = None
    knows: bool = True
    whole = True
    streams = ()

    def fit(self, samples):
        return self

    def apply(self, subject):
        return _Interpolated(subject, self)

    def control(self):
        return Between(self.share / 10)

    def ablated(self):
        return Between(0.0) if self.knows else None


class _Interpolated:
    def __init__(self, subject, recipe):
        self.subject, self.recipe = subject, recipe

    def __call__(self, tokens, valid=None):
        return self.subject(tokens, valid)

    def answer(self, clean):
        recipe, batch, subject = self.recipe, clean.batch, clean.engine.subject
        shift = batch.role == "shift" and recipe.under_shift is not None
        share = recipe.under_shift if shift else recipe.share
        other = torch.from_numpy(batch.counterfactuals).to(clean.tokens)
        logits = share * subject(clean.tokens, clean.valid) + (1 - share) * subject(other, clean.valid)
        return Answer(lambda positions: logits[:, positions], "its attention is not its own", logits.numel())
