"""What heads do: previous-token and induction scores, and whether they go with the gaps."""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike
from scipy import stats

from assay._errors import AssayError
from assay.engine import Engine, batches, tensors
from assay.tasks import Split

CONTEXT = 4
"""Tokens that have to recur for a position to count as a recurrence."""


def recurrences(
    tokens: Int[np.ndarray, " position"], context: int = CONTEXT
) -> tuple[Int[np.ndarray, " found"], Int[np.ndarray, " found"]]:
    """Positions whose last `context` tokens occurred before, and the position after that (most recent) occurrence.

    An occurrence that ends one position before does not count: in a run of one token, the position after it is the
    position itself.
    """
    here, after = [], []
    last: dict[bytes, int] = {}
    for end in range(context - 1, len(tokens)):
        if end >= context + 1:
            earlier = end - 2
            last[tokens[earlier - context + 1 : earlier + 1].tobytes()] = earlier
        found = last.get(tokens[end - context + 1 : end + 1].tobytes())
        if found is not None:
            here.append(end)
            after.append(found + 1)
    return np.array(here, dtype=np.int64), np.array(after, dtype=np.int64)


def head_scores(engine: Engine, split: Split, *, context: int = CONTEXT) -> pd.DataFrame:
    """How much of each head's attention goes where, on a split: one row a head, means over positions, in [0, 1].

    - `previous_token`: attention to the position before.
    - `induction`: where the last `context` tokens occurred before, attention to the position after their most recent
      occurrence: the token that followed them then.
    - `induction_chance`: what a head that attends equally to all positions has there.

    `positions` and `recurrences` count what the means are over; NaN where there is none. Source: induction heads,
    Olsson et al. 2022, measured there on repeated random tokens; here on the split's own sequences, with a context of
    several tokens because single characters recur everywhere.
    """
    heads = engine.heads
    sums = np.zeros((len(heads), 2))
    chance, positions, found = 0.0, 0, 0
    for _, batch in batches(engine, split):
        tokens, valid = tensors(batch, engine.subject.device)
        patterns = engine.run(tokens, valid, read=("patterns",), logits=False).patterns
        rows: list[tuple[int, Int[np.ndarray, " found"], Int[np.ndarray, " found"]]] = []
        for row, length in enumerate(batch.lengths.tolist()):
            here, after = recurrences(batch.tokens[row, :length], context)
            rows.append((row, here, after))
            positions += length - 1
            found += len(here)
            chance += float((1 / (here + 1)).sum())
        later: Bool[np.ndarray, "sequence position"] = batch.valid[:, 1:]
        for number, head in enumerate(heads):
            pattern = patterns[head.layer][:, head.head].float().cpu().numpy()
            sums[number, 0] += np.diagonal(pattern, offset=-1, axis1=1, axis2=2)[later].sum()
            sums[number, 1] += sum(pattern[row, here, after].sum() for row, here, after in rows)
    return pd.DataFrame(
        {
            "head": [str(head) for head in heads],
            "previous_token": sums[:, 0] / positions if positions else np.nan,
            "induction": sums[:, 1] / found if found else np.nan,
            "induction_chance": chance / found if found else np.nan,
            "positions": positions,
            "recurrences": found,
        }
    )


class Correlation(NamedTuple):
    """Spearman's rank correlation of two measures of `units` units, with confidence limits."""

    value: float
    low: float
    high: float
    units: int


def rank_correlation(
    first: Float[np.ndarray, " unit"] | ArrayLike,
    second: Float[np.ndarray, " unit"] | ArrayLike,
    *,
    level: float = 0.95,
) -> Correlation:
    """Spearman's rank correlation with an interval over units (heads), in [-1, 1].

    The interval is Fisher's z with the variance (1 + r^2 / 2) / (n - 3) of Bonett and Wright (2000, Psychometrika 65).
    It is about other heads like these; with sixteen of them it is wide. NaN where a measure does not vary. Raises
    AssayError for fewer than four units.
    """
    x, y = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if len(x) != len(y) or len(x) < 4:
        raise AssayError(f"rank_correlation(): needs two measures of at least 4 units; got {len(x)} and {len(y)}.")
    if np.ptp(x) == 0 or np.ptp(y) == 0 or not np.isfinite([x, y]).all():
        return Correlation(math.nan, math.nan, math.nan, len(x))
    value = float(stats.spearmanr(x, y).statistic)
    half = float(stats.norm.ppf((1 + level) / 2)) * math.sqrt((1 + value**2 / 2) / (len(x) - 3))
    centre = math.atanh(min(max(value, -1 + 1e-12), 1 - 1e-12))
    return Correlation(value, math.tanh(centre - half), math.tanh(centre + half), len(x))
