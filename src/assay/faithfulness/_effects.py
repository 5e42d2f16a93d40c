"""The effect on the answer: of what the subject does for it beyond the ablated model, how much a proxy does."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from assay.faithfulness._metrics_of_pairs import LogitDeviation, LogitDifference, SubjectLogitDifference
from assay.faithfulness._statistics import UNBOUNDED, Sample, Weights, draws, estimate, smooth

EFFECT_COLUMNS = (
    "proxy", "site", "is_control", "split", "ablation", "pairs",
    "subject_difference", "proxy_difference", "ablated_difference",
    *(f"{name}{end}" for name in ("effect", "deviation", "gap", "gap_iid_scale") for end in ("", "_low", "_high")),
    "reason",
)  # fmt: skip

EFFECT_METRICS = (SubjectLogitDifference.name, LogitDifference.name, LogitDeviation.name)
"""What effects are made of."""

LEAST_PAIRS = 30
"""A share of an effect is not measured on fewer different pairs."""

CLEAR = 0.99
"""A share of an effect is measured where this interval of the effect does not contain 0."""


@dataclass(frozen=True)
class OfPairs:
    """A candidate on the pairs of a split: sums of `EFFECT_METRICS` over the predictions of every sequence."""

    subject: Float[np.ndarray, "seed sequence"]
    proxy: Float[np.ndarray, "seed sequence"]
    deviation: Float[np.ndarray, "seed sequence"]
    counts: Int[np.ndarray, "seed sequence"]


def effect_rows(
    base: Mapping[str, Any],
    own: Mapping[str, OfPairs],
    ablated: Mapping[str, OfPairs],
    splits: Sequence[str],
    *,
    iid: str,
    weights: Mapping[str, Weights],
    level: float,
) -> Iterator[dict[str, Any]]:
    """One row a split of pairs: a candidate between what ablates all that it could keep and the subject.

    `own` and `ablated` are by split what was measured of both; a split is missing where it was not.
    """
    sides = {name: _Side.of(own.get(name), ablated.get(name), weights[name]) for name in splits}
    for name, side in sides.items():
        row = {**dict.fromkeys(EFFECT_COLUMNS, np.nan), **base, "split": name, "pairs": 0, "reason": side.reason}
        row |= side.means()
        if side.sample is not None:
            row |= _limits("deviation", smooth(_deviation, side.sample, level=level))
            if side.reason is None:
                row |= _limits("effect", smooth(_effect, side.sample, level=level))
            first = sides.get(iid)
            if name != iid and first is not None and first.sample is not None and first.reason is None:
                both = first.sample, side.sample
                row |= _limits("gap_iid_scale", smooth(_lost_on_the_scale_of_the_first, *both, level=level))
                if side.reason is None:
                    row |= _limits("gap", smooth(_gap, *both, level=level))
        yield row


Sums = Float[np.ndarray, "column ..."]
"""Of C - ∅, M - ∅, |C - M|, |∅ - M| and M - C, and the number of predictions, along the first axis."""


def _effect(sums: Sums) -> Float[np.ndarray, "..."]:
    found: np.ndarray = sums[0] / sums[1]
    return found


def _deviation(sums: Sums) -> Float[np.ndarray, "..."]:
    found: np.ndarray = sums[2] / sums[3]
    return found


def _gap(iid: Sums, shift: Sums) -> Float[np.ndarray, "..."]:
    return _effect(iid) - _effect(shift)


def _lost_on_the_scale_of_the_first(iid: Sums, shift: Sums) -> Float[np.ndarray, "..."]:
    found: np.ndarray = (shift[4] / shift[5] - iid[4] / iid[5]) / (iid[1] / iid[5])
    return found


def _limits(name: str, found: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))


@dataclass(frozen=True)
class _Side:
    """One split: what was measured, the sums that functions are of (None: too few pairs), and why there is no share."""

    own: OfPairs | None
    ablated: OfPairs | None
    pairs: int
    sample: Sample | None
    reason: str | None

    @classmethod
    def of(cls, own: OfPairs | None, ablated: OfPairs | None, weights: Weights) -> "_Side":
        """Draws of a control count as seeds; what has a single one is the same for all of the other's."""
        if own is None or ablated is None:
            which = "the proxy" if own is None else "the ablated model"
            return cls(own, ablated, 0, None, f"{which} was not measured there")
        pairs = int((weights.pooled(own.counts[:1]) > 0).sum())
        if pairs < LEAST_PAIRS:
            reason = f"only {pairs} different pairs, and at least {LEAST_PAIRS} are needed"
            return cls(own, ablated, pairs, None, reason)
        columns = (
            own.proxy - ablated.proxy,
            own.subject - ablated.proxy,
            own.deviation,
            ablated.deviation,
            own.subject - own.proxy,
            own.counts.astype(float),
        )
        sums = np.stack(np.broadcast_arrays(*columns), axis=-1)
        # Every seed has a share of its own, so every seed's effect has to be clear of 0: seeds are columns here.
        effect, counts = (np.ascontiguousarray(sums[..., place].T[None]) for place in (1, 5))
        drawn = draws(effect, counts, weights, bounds=[UNBOUNDED] * len(sums))
        found = estimate(drawn, level=CLEAR, nonnegative=np.zeros(len(sums), dtype=bool))
        unclear = None
        if not ((found.low > 0) | (found.high < 0)).all():
            unclear = "the subject is not shown to differ from the ablated model there: the 99% interval contains 0"
        return cls(own, ablated, pairs, (sums, weights), unclear)

    def means(self) -> dict[str, Any]:
        """How many pairs there are, and the logit differences of the three models, means over predictions and seeds."""
        found: dict[str, Any] = {"pairs": self.pairs}
        for name, of, sums in (
            ("subject", self.own, "subject"),
            ("proxy", self.own, "proxy"),
            ("ablated", self.ablated, "proxy"),
        ):
            if of is not None and of.counts.any():
                found[f"{name}_difference"] = float((getattr(of, sums).sum(axis=1) / of.counts.sum(axis=1)).mean())
        return found
