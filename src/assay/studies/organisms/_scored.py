"""A recipe for vectors that is fitted where predictions are scored, and reading a comparison seed by seed."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from assay._errors import AssayError
from assay._given import checked
from assay.engine import Samples
from assay.faithfulness import Comparison
from assay.simplify import SVD, source_of
from assay.tasks import UNSCORED


def at_scored(samples: Samples) -> Samples:
    """The samples of scored positions alone.

    Raises AssayError unless all sequences are as long, and scored at the same positions.
    """
    _, split = source_of(samples, samples)
    scored = split.kinds != UNSCORED
    if len({*split.lengths.tolist()}) > 1 or (scored != scored[0]).any():
        raise AssayError(
            f"split {split.name!r} has sequences of several lengths, or scored at several positions; vectors of scored "
            "positions are taken where all are alike."
        )
    positions = np.flatnonzero(scored[0])
    length = int(split.lengths[0])
    chosen: dict[str, Any] = {}
    for item in fields(Samples):
        held = getattr(samples, item.name)
        if item.name not in ("streams", "places") and isinstance(held, Mapping) and held:
            chosen[item.name] = {
                place: vectors.unflatten(0, (-1, length))[:, positions].flatten(0, 1) for place, vectors in held.items()
            }
    return replace(samples, **chosen)


@dataclass
class ScoredSVD(SVD):
    """Principal components of the vectors at scored positions: in a model whose other positions answer nothing.

    As `SVD`, centred, but fitted on those positions alone; what stands elsewhere would fill the leading directions.
    """

    centred: bool = True

    @checked
    def fit(self, samples: Samples) -> "ScoredSVD":
        """Find the subspace of each place, of its vectors at scored positions."""
        super().fit(at_scored(samples))
        return self


def by_seed(comparison: Comparison, split: str, kind: str, metric: str = "same_prediction") -> dict[str, list[float]]:
    """The mean of a metric on a kind of a split for each proxy (not its controls), a number a training seed."""
    table = comparison.sequence_scores().to_pandas()
    own = {proxy.proxy for proxy in comparison.record.proxies if not proxy.is_control}
    chosen = table[
        table["trained"]
        & (table["split"] == split)
        & (table["kind"] == kind)
        & (table["metric"] == metric)
        & table["proxy"].isin(own)
    ].astype({"proxy": str})
    sums = (chosen["mean"] * chosen["predictions"]).groupby([chosen["proxy"], chosen["seed"]]).sum()
    counts = chosen["predictions"].groupby([chosen["proxy"], chosen["seed"]]).sum()
    found: dict[str, list[float]] = {}
    for (proxy, _), mean in (sums / counts).items():
        found.setdefault(str(proxy), []).append(float(mean))
    return found
