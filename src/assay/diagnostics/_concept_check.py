"""Whether what is called a concept is one: is it there when it counts, and is it read from where it is?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from assay._errors import AssayError
from assay._given import checked
from assay.diagnostics._refits import as_table

Concepts = Callable[[Float[np.ndarray, "example part"]], Float[np.ndarray, "example concept"]]

_RESAMPLES = 2_000


@dataclass(frozen=True)
class ConceptCheck:
    """What was found of each concept, one row each, with limits (`…_low`, `…_high`).

    `importance` is the mean |contribution| of the concept to the answer, as a share of all concepts'; `existence` the
    share of inputs in which the concept is there, of those in which it is among the largest contributions (higher is
    better; beside it `prevalence`, what chance gives); `leak` the share of the change of the concept's value that comes
    from outside its region (0: read from its region alone; 1: from elsewhere alone); `accuracy` the share of inputs in
    which it says rightly whether it is there. What could not be measured is missing, and `why` says why.
    """

    rows: pd.DataFrame
    level: float

    def __str__(self) -> str:
        return self.rows.to_string(index=False, float_format=lambda value: f"{value:.3f}")


@checked
def concept_check(
    concepts: Concepts,
    inputs: np.ndarray,
    present: np.ndarray,
    regions: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    names: Sequence[str] | None = None,
    top: int = 1,
    threshold: float = 0.0,
    draws: int = 8,
    level: float = 0.95,
    seed: int = 0,
) -> ConceptCheck:
    """Whether the concepts of a model are what they are called, by importance, existence, location and leak.

    `concepts` answers inputs (example, part) with a value of each concept, (example, concept) (logits rather than
    probabilities: a saturated one does not change, wherever it is read from); it says that the concept is there above
    `threshold`. `present` (example, concept) says where it really is; `regions` (concept, part) which parts of an input
    each concept is about. `weights` (concept) are those of the answer's linear readout: with centred values they give
    contributions, of which the `top` largest count.

    The leak is by interventions: with In the mean |change| of the value when the parts of its region are taken from
    another input, and Out when all others are, leak = Out / (In + Out), over `draws` other inputs each. Judge on inputs
    in which concepts do not occur together: where they always do, any of them may stand for another, and accuracy stays
    high while the leak grows. Taking parts from others may make inputs that cannot be.

    Limits are for other inputs (percentiles of resamples, `draws` kept together).

    Sources: Margeloiu et al., arXiv 2105.04289, and Furby et al., 2402.00912 (concepts that are read from elsewhere, by
    saliency). Differences: interventions instead of saliency, existence beside prevalence, limits; the formulas are our
    own.

    Raises AssayError for shapes that do not fit together, values that are not finite, and `top` beyond the concepts.
    """
    table = as_table("concept_check(inputs=...)", inputs)
    values = _values(concepts, table)
    count = values.shape[1]
    for name, given, shape in (("present", present, values.shape), ("regions", regions, (count, table.shape[1]))):
        if np.shape(given) != shape:
            raise AssayError(f"concept_check({name}=...): has shape {np.shape(given)}; must have {shape}.")
    named = [f"concept {number}" for number in range(count)] if names is None else list(names)
    if len(named) != count or (weights is not None and np.shape(weights) != (count,)):
        raise AssayError(f"concept_check(names=..., weights=...): must have one for each of the {count} concepts.")
    if not 1 <= top <= count or draws < 1 or not 0 < level < 1:
        raise AssayError(
            f"concept_check(top={top}, draws={draws}, level={level}): top from 1 to the {count} concepts, at least one "
            "draw, and a level within (0, 1)."
        )
    rng = np.random.default_rng(seed)
    others = np.stack([rng.permutation(len(table)) for _ in range(draws)])
    contributions = None if weights is None else (values - values.mean(axis=0)) * weights
    resamples = rng.multinomial(len(table), np.full(len(table), 1 / len(table)), size=_RESAMPLES)
    both = np.concatenate([np.ones((1, len(table)), dtype=int), resamples])
    rows = [
        {
            "concept": named[number],
            "prevalence": float(present[:, number].mean()),
            **_measured(
                {
                    "accuracy": (((values[:, number] > threshold) == present[:, number]).astype(float), None),
                    **_leak(concepts, table, others, regions[number], number),
                    **_of_contributions(contributions, present, number, top),
                },
                both,
                level,
            ),
        }
        for number in range(count)
    ]
    return ConceptCheck(pd.DataFrame(rows), level)


_Shares = Mapping[str, tuple[Float[np.ndarray, " example"], Float[np.ndarray, " example"] | None]]
"""By name: what is summed over inputs, and over what sum; None is their number."""


def _leak(
    concepts: Concepts,
    inputs: Float[np.ndarray, "example part"],
    others: np.ndarray,
    region: Bool[np.ndarray, " part"],
    number: int,
) -> _Shares:
    values = _values(concepts, inputs)
    changes = [
        np.mean(
            [
                np.abs(_values(concepts, np.where(taken, inputs[order], inputs))[:, number] - values[:, number])
                for order in others
            ],
            axis=0,
        )
        for taken in (region, ~region)
    ]
    return {"leak": (changes[1], changes[0] + changes[1])}


def _of_contributions(
    contributions: Float[np.ndarray, "example concept"] | None,
    present: Bool[np.ndarray, "example concept"],
    number: int,
    top: int,
) -> _Shares:
    if contributions is None:
        return {}
    size = np.abs(contributions)
    ranks = (-size).argsort(axis=1, kind="stable")[:, :top]
    counts = (ranks == number).any(axis=1).astype(float)
    return {
        "importance": (size[:, number], size.sum(axis=1)),
        "existence": (counts * present[:, number], counts),
    }


def _measured(shares: _Shares, resamples: np.ndarray, level: float) -> dict[str, object]:
    found: dict[str, object] = {}
    why = []
    for name, (part, whole) in shares.items():
        below = resamples @ (np.ones(len(part)) if whole is None else whole)
        if below[0] <= 0:
            found |= dict.fromkeys((name, f"{name}_low", f"{name}_high"), np.nan)
            why.append(f"{name}: " + ("nothing changes it" if name == "leak" else "never among the largest"))
            continue
        with np.errstate(invalid="ignore", divide="ignore"):
            values = (resamples @ part) / below
        low, high = np.nanquantile(values[1:], [(1 - level) / 2, (1 + level) / 2])
        found |= {name: float(values[0]), f"{name}_low": float(low), f"{name}_high": float(high)}
    return {**found, "why": "; ".join(why)}


def _values(concepts: Concepts, inputs: Float[np.ndarray, "example part"]) -> Float[np.ndarray, "example concept"]:
    values = np.asarray(concepts(inputs), dtype=np.float64)
    if values.ndim != 2 or len(values) != len(inputs) or not values.shape[1] or not np.isfinite(values).all():
        raise AssayError(
            f"concept_check(concepts=...): answers {len(inputs)} inputs with shape {values.shape}; must give finite "
            "numbers of shape (example, concept)."
        )
    return values
