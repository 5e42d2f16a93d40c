"""Whether a ranking of inputs' parts says what matters: models fitted again on what is ranked high, and low."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from assay._errors import AssayError
from assay._given import checked
from assay.diagnostics._refits import as_answers, as_table, both_ways, predicted
from assay.diagnostics._setting import Estimate

CLOSE = 0.05
"""Where the mask alone predicts as well as what it leaves, up to this share of the answers, nothing can be read."""

KEPT = ("top", "bottom", "random", "mask")
"""What is left of an input, see `removal`."""


@dataclass(frozen=True)
class Removal:
    """What models predict that were fitted on parts of the inputs.

    `rows` has one row a (share, kept): the share of answers predicted (`accuracy`, in [0, 1]) with limits, of models
    that see the `share` of every input's parts that is ranked highest (`top`), lowest (`bottom`) or by chance
    (`random`), or which parts those highest are and nothing of them (`mask`).
    """

    rows: pd.DataFrame
    level: float
    _right: Mapping[tuple[float, str], Float[np.ndarray, "fit item"]] = field(repr=False, compare=False)
    _seed: int = field(repr=False, compare=False)

    def difference(self, share: float, less: str = "bottom") -> Estimate:
        """What is predicted from the highest parts, less what is from others (DiffROAR for "bottom"), paired.

        Above 0, the ranking finds what matters; a ranking by chance has 0 in expectation. Less "mask" it is what the
        parts say beyond where they are. Raises AssayError for a share or kind that was not measured.
        """
        for key in ((share, "top"), (share, less)):
            if key not in self._right:
                raise AssayError(
                    f"nothing was measured of {key}; there are the shares "
                    f"{sorted({one for one, _ in self._right})} and {', '.join(KEPT)}."
                )
        return both_ways(self._right[share, "top"] - self._right[share, less], level=self.level, seed=self._seed)

    def readable(self, share: float) -> bool:
        """False where the mask alone predicts the answers nearly as well: then no difference says what matters."""
        return bool(self._right[share, "mask"].mean() < self._right[share, "top"].mean() - CLOSE)

    def __str__(self) -> str:
        lines = []
        for share in dict.fromkeys(one for one, _ in self._right):
            means = ", ".join(f"{kept} {self._right[share, kept].mean():.3f}" for kept in KEPT)
            note = "" if self.readable(share) else "; not interpretable: the mask alone predicts"
            lines.append(f"{share:.0%} kept: {means}; top less bottom {self.difference(share)}{note}")
        return "\n".join(lines)


@checked
def removal(
    inputs: np.ndarray,
    answers: Any,
    ranking: np.ndarray,
    *,
    test: tuple[Any, ...],
    shares: Sequence[float] = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8),
    model: Any = None,
    fits: int = 5,
    fill: float = 0.0,
    level: float = 0.95,
    seed: int = 0,
) -> Removal:
    """Whether a ranking of each input's parts finds those that say the answer: remove and retrain.

    Of every one of the `inputs` (example, part) the share of parts that `ranking` (example, part) puts highest (ties by
    chance) is kept and the rest set to `fill`; a `model` (logistic regression; or anything with sklearn's fit and
    predict, cloned) is fitted on that, `fits` times on bootstrap samples of the examples, and asked on the `test`: its
    inputs, answers and ranking. So with the parts lowest and with parts by chance. `mask` models see which parts are
    kept, and none of their values: a ranking that leaks the answer by where it points is no finding of what matters.
    `fill` has to be what says nothing, such as the mean of centred parts.

    Limits are for other fits and other tests, both.

    Source: Shah, Jain and Netrapalli, arXiv 2102.12781 (DiffROAR), after Hooker et al., 1806.10758 (ROAR). Differences:
    the mask alone as control, refits on bootstrap samples, limits.

    Raises AssayError for shapes that do not fit together, shares that keep nothing or everything, and fewer than 2
    fits.
    """
    known = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)) if model is None else model
    if not hasattr(known, "fit") or not hasattr(known, "predict"):
        raise AssayError("removal(model=...): must have fit(inputs, answers) and predict(inputs), as sklearn's have.")
    if len(test) != 3:
        raise AssayError("removal(test=...): must be inputs, answers and ranking of the examples to ask about.")
    train = _Examples.of("removal", inputs, answers, ranking)
    asked = _Examples.of("removal(test=...)", *test)
    parts = train.inputs.shape[1]
    if asked.inputs.shape[1] != parts:
        raise AssayError(f"removal(test=...): inputs have {asked.inputs.shape[1]} parts, those to fit on {parts}.")
    counts = {float(share): round(share * parts) for share in shares}
    if not counts or not all(0 < count < parts for count in counts.values()):
        raise AssayError(
            f"removal(shares={tuple(shares)}): must keep at least one of the {parts} parts, and not all of them."
        )
    if fits < 2:
        raise AssayError(f"removal(fits={fits}): must be at least 2.")
    rng = np.random.default_rng(seed)
    both = [(one, one.order(rng), rng.random(one.inputs.shape).argsort(axis=1)) for one in (train, asked)]
    right: dict[tuple[float, str], list[np.ndarray]] = {}
    for _ in range(fits):
        rows = rng.integers(len(train.inputs), size=len(train.inputs))
        for share, count in counts.items():
            for kept in KEPT:
                seen, shown = (one.kept(kept, count, order, chance, fill) for one, order, chance in both)
                said = predicted(known, (seen[rows], train.answers[rows]), shown)
                right.setdefault((share, kept), []).append(said == asked.answers)
    found = {key: np.array(own, dtype=float) for key, own in right.items()}
    table = [
        {"share": share, "kept": kept,
         **dict(zip(("accuracy", "low", "high"), both_ways(own, level=level, seed=seed), strict=True))}
        for (share, kept), own in found.items()
    ]  # fmt: skip
    return Removal(pd.DataFrame(table), level, found, seed)


@dataclass(frozen=True)
class _Examples:
    inputs: Float[np.ndarray, "example part"]
    answers: np.ndarray
    ranking: Float[np.ndarray, "example part"]

    @classmethod
    def of(cls, caller: str, inputs: Any, answers: Any, ranking: Any) -> "_Examples":
        table = as_table(f"{caller}: inputs", inputs)
        ranks = as_table(f"{caller}: ranking", ranking, len(table))
        if ranks.shape != table.shape:
            raise AssayError(f"{caller}: the ranking has shape {ranks.shape}, the inputs {table.shape}.")
        return cls(table, as_answers(f"{caller}: answers", answers, len(table)), ranks)

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """The parts of each input from the one ranked highest; equals in random order."""
        return np.lexsort((rng.random(self.ranking.shape), -self.ranking), axis=1)

    def kept(
        self, which: str, count: int, order: np.ndarray, chance: np.ndarray, fill: float
    ) -> Float[np.ndarray, "example part"]:
        """What a model sees."""
        top, bottom = order[:, :count], order[:, -count:]
        chosen = {"top": top, "mask": top, "bottom": bottom, "random": chance[:, :count]}
        mask: Bool[np.ndarray, "example part"] = np.zeros(self.inputs.shape, dtype=bool)
        np.put_along_axis(mask, chosen[which], True, axis=1)
        return mask.astype(float) if which == "mask" else np.where(mask, self.inputs, fill)
