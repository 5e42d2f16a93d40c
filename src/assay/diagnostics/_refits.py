"""Models that are fitted again and again: mean scores, with limits for what they were fitted on and asked, both."""

import warnings
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from assay._errors import AssayError
from assay.diagnostics._setting import Estimate

RESAMPLES = 1_000


def both_ways(
    scores: Float[np.ndarray, "fit item"], *, level: float, seed: int, strata: Int[np.ndarray, " item"] | None = None
) -> Estimate:
    """The mean of scores, with limits from fits and items drawn again, each with replacement (by quantiles).

    Fits share their items, so neither alone says how far off the mean may be. Owen's pigeonhole bootstrap (Annals of
    Applied Statistics 1, 2007), which is never too narrow in expectation. With `strata`, the mean is over strata of
    their means, and items are drawn within each.
    """
    rng = np.random.default_rng(seed)
    fits = rng.multinomial(len(scores), np.full(len(scores), 1 / len(scores)), size=RESAMPLES)
    means, drawn = [], []
    for stratum in np.unique(strata) if strata is not None else (None,):
        own = scores if stratum is None else scores[:, strata == stratum]
        count = own.shape[1]
        items = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
        means.append(own.mean())
        drawn.append(np.einsum("bi,bi->b", fits @ own, items) / own.size)  # divided last: whole numbers stay exact
    low, high = np.quantile(np.mean(drawn, axis=0), [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(np.mean(means)), float(low), float(high))


def predicted(
    model: Any, train: tuple[np.ndarray, np.ndarray], inputs: Float[np.ndarray, "item feature"]
) -> np.ndarray:
    """What a fresh model answers after it was fitted on examples, which may all have one answer."""
    examples, answers = train
    if len(np.unique(answers)) == 1:
        return np.full(len(inputs), answers[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # one that is not at its optimum is a model all the same
        found: np.ndarray = clone(model).fit(examples, answers).predict(inputs)
    return found


def as_table(name: str, given: object, rows: int | None = None) -> Float[np.ndarray, "example feature"]:
    """Numbers as a table of one row an example. Raises AssayError for what is none, and for another number of rows."""
    try:
        table = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        raise AssayError(f"{name}: must be numbers, one row an example.") from None
    if table.ndim == 1:
        table = table[:, None]
    if table.ndim != 2 or not table.size or not np.isfinite(table).all():
        raise AssayError(
            f"{name}: must be finite numbers of shape (example, feature); got shape {table.shape}"
            + (" with some that are not finite." if table.size and not np.isfinite(table).all() else ".")
        )
    if rows is not None and len(table) != rows:
        raise AssayError(f"{name}: has {len(table)} examples, the inputs have {rows}.")
    return table


def as_answers(name: str, given: object, rows: int) -> np.ndarray:
    """Answers of examples: labels, one each. Raises AssayError for another shape."""
    answers = np.asarray(given)
    if answers.shape != (rows,) or answers.dtype.kind not in "biuU":
        raise AssayError(f"{name}: must be {rows} labels (whole numbers or strings), one an example of the inputs.")
    return answers
