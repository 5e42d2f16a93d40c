"""Pairs of token sequences, as a split holds them: one prediction each, made at the last token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from assay.tasks._task import NO_TOKEN, UNSCORED, Role, Split


@dataclass(frozen=True)
class TokenPair:
    """A sequence, its counterfactual of the same length, and what is right and what is not after the last token.

    `kind` is an index into the task's kinds; `features` belong to the prediction. What is as right as the answer is
    `also_right`.
    """

    tokens: Sequence[int]
    counterfactual: Sequence[int]
    answer: int
    foils: Sequence[int]
    kind: int = 0
    features: Mapping[str, int] = field(default_factory=dict)
    also_right: Sequence[int] = ()


def split_of_pairs(
    pairs: Sequence[TokenPair],
    *,
    name: str,
    role: Role,
    description: str,
    pad: int,
    names: Mapping[int, str] | None,
    foils: int = 1,
    label: str | None = None,
) -> Split:
    """A split of pairs, padded on the right with `pad`, with room for `foils` foils. Raises AssayError as Split."""
    lengths = np.array([len(pair.tokens) for pair in pairs])
    tokens = np.full((len(pairs), lengths.max()), pad, dtype=np.int64)
    counterfactuals = tokens.copy()
    kinds = np.full(tokens.shape, UNSCORED, dtype=np.int64)
    answers = np.full(tokens.shape, NO_TOKEN, dtype=np.int64)
    wrong = np.full((*tokens.shape, foils), NO_TOKEN, dtype=np.int64)
    others = np.full((*tokens.shape, max(len(pair.also_right) for pair in pairs)), NO_TOKEN, dtype=np.int64)
    features = {feature: np.zeros(tokens.shape, dtype=np.int64) for feature in pairs[0].features}
    for row, pair in enumerate(pairs):
        last = len(pair.tokens) - 1
        tokens[row, : last + 1] = pair.tokens
        counterfactuals[row, : last + 1] = pair.counterfactual
        kinds[row, last] = pair.kind
        answers[row, last] = pair.answer
        wrong[row, last, : len(pair.foils)] = pair.foils
        others[row, last, : len(pair.also_right)] = pair.also_right
        for feature, values in features.items():
            values[row, last] = pair.features[feature]
    return Split(
        name=name,
        role=role,
        description=description,
        tokens=tokens,
        lengths=lengths,
        kinds=kinds,
        features=features,
        names=names,
        counterfactuals=counterfactuals,
        answers=answers,
        foils=wrong if foils > 1 else wrong[..., 0],
        also_right=others if others.size else None,
        label=label,
    )
