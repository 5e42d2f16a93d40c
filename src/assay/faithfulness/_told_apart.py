"""Divergences that are no larger than what the form of a proxy's answers makes by itself are not measured."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from assay.faithfulness._scores import Column

TIMES = 10
"""A mean divergence counts as measured from so many times on what is there without any difference of the models."""

_OF_KL = {"kl": 1.0, "kl_reverse": 1.0, "jsd": 0.25}
"""The divergences of predictions, and how many times KL each is where the two distributions are close."""


def least(metric: str, kl_error: float) -> float:
    """The smallest mean of a metric that is told apart from `kl_error`, a mean KL in nats; 0 where any is."""
    return TIMES * kl_error * _OF_KL.get(metric, 0.0)


def reason(kl_error: float) -> str:
    """Why a divergence below `least` is not given."""
    return f"below {TIMES} times what the form of the stored answers makes by itself (a mean KL of {kl_error:.1e} nats)"


def not_told_apart(
    columns: Sequence[Column],
    sums: Float[np.ndarray, "seed sequence column"],
    counts: Int[np.ndarray, "seed sequence column"],
    kl_error: float,
) -> Mapping[tuple[str, str], str]:
    """The metrics and kinds whose mean over all predictions is too small, and why."""
    if not kl_error:
        return {}
    smallest = np.array([least(column.metric, kl_error) for column in columns])
    below = (_means(sums, counts) < smallest) & (smallest > 0)
    return {
        (column.metric, column.kind): reason(kl_error)
        for column, too_small in zip(columns, below.tolist(), strict=True)
        if too_small and not column.feature
    }


def _means(
    sums: Float[np.ndarray, "seed sequence column"], counts: Int[np.ndarray, "seed sequence column"]
) -> Float[np.ndarray, " column"]:
    """NaN, which is below nothing, where there is no prediction."""
    total = counts.sum(axis=(0, 1))
    return np.divide(sums.sum(axis=(0, 1)), total, out=np.full(len(total), np.nan), where=total > 0)
