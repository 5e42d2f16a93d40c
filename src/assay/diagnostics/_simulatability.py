"""Whether an explanation helps to foretell what a model answers: simulators that learn with it and without it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from assay._errors import AssayError
from assay._given import checked
from assay.diagnostics._refits import as_answers, as_table, both_ways, predicted
from assay.diagnostics._setting import Estimate

CONDITIONS = ("pre", "post", "alone", "shuffled", "label-only")
"""What a simulator is shown beside its training answers, see `simulatability`."""

LEAST = 8


@dataclass(frozen=True)
class Explained:
    """Inputs that a model answered, each with its explanation.

    `inputs` and `explanations` are numbers (example, feature), `answers` the model's answers (labels, one an example).
    `correct` says which of the answers are right, where that is known.

    Raises AssayError for other shapes, numbers that are not finite, and fewer than 8 examples.
    """

    inputs: np.ndarray
    answers: np.ndarray
    explanations: np.ndarray
    correct: np.ndarray | None = None

    def __post_init__(self) -> None:
        inputs = as_table("Explained(inputs=...)", self.inputs)
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "answers", as_answers("Explained(answers=...)", self.answers, len(inputs)))
        parts = as_table("Explained(explanations=...)", self.explanations, len(inputs))
        object.__setattr__(self, "explanations", parts)
        if len(inputs) < LEAST:
            raise AssayError(f"Explained(inputs=...): {len(inputs)} examples; give at least {LEAST}, better hundreds.")
        if self.correct is not None:
            correct = np.asarray(self.correct)
            if correct.shape != (len(inputs),) or correct.dtype != bool:
                raise AssayError("Explained(correct=...): must be True or False for every example.")
            object.__setattr__(self, "correct", correct)

    def __len__(self) -> int:
        return len(self.inputs)

    def shown(self, condition: str, order: np.ndarray, labels: np.ndarray) -> Float[np.ndarray, "example feature"]:
        """What a simulator sees; `order` mixes explanations up, `labels` are all answers there are."""
        said = {
            "pre": (self.inputs,),
            "post": (self.inputs, self.explanations),
            "alone": (self.explanations,),
            "shuffled": (self.inputs, self.explanations[order]),
            "label-only": (self.inputs, (self.answers[:, None] == labels).astype(float)),
        }
        return np.concatenate(said[condition], axis=1)


@dataclass(frozen=True)
class Simulatability:
    """What simulators foretell of a model's answers, with an explanation and without.

    `rows` has one row a (split, simulator, size, condition): the share foretold (`accuracy`, in [0, 1], higher is
    better) with its limits `low` and `high`. `size` is the number of examples that a simulator learned from.
    """

    rows: pd.DataFrame
    level: float
    balanced: bool
    _right: Mapping[tuple[str, str, int, str], Float[np.ndarray, "fit item"]] = field(repr=False, compare=False)
    _strata: Mapping[str, np.ndarray | None] = field(repr=False, compare=False)
    _seed: int = field(repr=False, compare=False)

    def effect(self, split: str, simulator: str, size: int, condition: str = "post") -> Estimate:
        """By how much more is foretold under a condition than from the inputs alone, paired; above 0 is help.

        Raises AssayError for a split, simulator, size or condition that was not measured.
        """
        with_it, without = (self._of(split, simulator, size, one) for one in (condition, "pre"))
        return both_ways(with_it - without, level=self.level, seed=self._seed, strata=self._strata[split])

    def gap(self, split: str, simulator: str, size: int) -> Estimate:
        """By how much smaller the effect is on a split than on the first, where the same simulators are asked."""
        first = str(self.rows["split"].iloc[0])
        effects, strata = [], []
        for number, (one, sign) in enumerate(((first, 1.0), (split, -1.0))):
            effects.append(sign * (self._of(one, simulator, size, "post") - self._of(one, simulator, size, "pre")))
            within = self._strata[one]
            strata.append(2 * number + (np.zeros(effects[-1].shape[1], dtype=int) if within is None else within))
        # The mean over the strata of both is half of their difference.
        found = both_ways(
            np.concatenate(effects, axis=1), level=self.level, seed=self._seed, strata=np.concatenate(strata)
        )
        return Estimate(*(2 * one for one in found))

    def _of(self, split: str, simulator: str, size: int, condition: str) -> Float[np.ndarray, "fit item"]:
        key = (split, simulator, size, condition)
        if key not in self._right:
            known = [sorted({str(one[place]) for one in self._right}) for place in range(4)]
            raise AssayError(
                f"nothing was measured of {key}; there are the splits {', '.join(known[0])}, the simulators "
                f"{', '.join(known[1])}, the sizes {', '.join(known[2])}, and the conditions {', '.join(known[3])}."
            )
        return self._right[key]

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        largest = int(self.rows["size"].max())
        for split in self.rows["split"].unique():
            for simulator in self.rows["simulator"].unique():
                means = [self._of(split, simulator, largest, one).mean() for one in CONDITIONS]
                said = ", ".join(f"{name} {mean:.3f}" for name, mean in zip(CONDITIONS, means, strict=True))
                yield (
                    f"{split}, {simulator} of {largest} examples: {said}; the explanation adds "
                    f"{self.effect(split, simulator, largest)}"
                )


def _simulators() -> dict[str, Any]:
    return {
        "nearest": make_pipeline(StandardScaler(), KNeighborsClassifier(n_neighbors=3)),
        "linear": make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)),
        "tree": DecisionTreeClassifier(max_depth=3, random_state=0),
    }


@checked
def simulatability(
    examples: Explained,
    tests: Mapping[str, Explained],
    *,
    simulators: Mapping[str, Any] | None = None,
    sizes: Sequence[int] = (16, 64, 256),
    fits: int = 20,
    level: float = 0.95,
    seed: int = 0,
) -> Simulatability:
    """Whether explanations raise what a simulator foretells of a model's answers, on familiar inputs and others.

    A simulator learns the model's answers to `sizes` of the `examples`, and answers for the model on the `tests` (by
    name: in distribution first, then shifts), `fits` times, each from other examples. It is shown, in turn:

    - `pre`: inputs alone; `post`: inputs and explanations, also of the tests. post - pre is the `effect`;
    - `alone`: explanations alone. Where that is as good as `post`, the simulator does without the input: the
      explanation says the answer, and the test measures how often it says it rightly, which is agreement;
    - `shuffled`: explanations of other examples. What is left of the effect then is no help;
    - `label-only`: the model's answer instead of the explanation: what saying the answer is worth.

    Simulators are 3 nearest neighbours, logistic regression and a tree of depth 3; `simulators` are others, by name,
    with sklearn's `fit` and `predict`. None of them can multiply: an explanation has to be given in a form in which it
    can be used (an input masked by what is named, rather than the name beside the input), and no effect of a raw one is
    no verdict on it. For counterfactual simulation give inputs, answers and changed inputs side by side as `inputs`,
    the explanations of the unchanged, and as `answers` those to the changed.

    Where `correct` is given in all of them, as many right as wrong answers are learned from, and shares are means of
    those over right and over wrong answers, so that knowing the right answer is no help by itself. Limits are for
    other examples and other tests, both (`fits` times: at least 10 for limits that are worth something).

    Source: Hase and Bansal, arXiv 2005.01831 (forward and counterfactual simulation, by people). Differences:
    algorithms instead of people; tests are explained too, hence the conditions `alone` and `label-only`.

    Raises AssayError where there is no test, examples are fewer than the largest size, widths differ, fits are fewer
    than 2, or a class of `correct` has too few examples.
    """
    known = _simulators() if simulators is None else dict(simulators)
    if fits < 2 or not 0 < level < 1:
        raise AssayError(f"simulatability(fits={fits}, level={level}): at least 2 fits, and a level within (0, 1).")
    _check(examples, tests, known, sizes)
    labels = np.unique(np.concatenate([examples.answers, *(test.answers for test in tests.values())]))
    balanced = all(one.correct is not None for one in (examples, *tests.values()))
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(examples))
    orders = {name: rng.permutation(len(test)) for name, test in tests.items()}
    right: dict[tuple[str, str, int, str], list[np.ndarray]] = {}
    for _ in range(fits):
        chosen = {size: _drawn(examples, size, balanced=balanced, rng=rng) for size in sizes}
        for condition in CONDITIONS:
            seen = examples.shown(condition, order, labels)
            asked = np.concatenate([test.shown(condition, orders[name], labels) for name, test in tests.items()])
            for (size, rows), (simulator, model) in product(chosen.items(), known.items()):
                said = predicted(model, (seen[rows], examples.answers[rows]), asked)
                for name, test in tests.items():
                    own, said = said[: len(test)], said[len(test) :]
                    right.setdefault((name, simulator, size, condition), []).append(own == test.answers)
    found = {key: np.array(own, dtype=float) for key, own in right.items()}
    strata: dict[str, np.ndarray | None] = dict.fromkeys(tests)
    if balanced:
        strata = {name: np.asarray(test.correct, dtype=int) for name, test in tests.items()}
    table = []
    for (name, simulator, size, condition), own in found.items():
        share = both_ways(own, level=level, seed=seed, strata=strata[name])
        place = {"split": name, "simulator": simulator, "size": size, "condition": condition}
        table.append({**place, "accuracy": share.value, "low": share.low, "high": share.high})
    return Simulatability(pd.DataFrame(table), level, balanced, found, strata, seed)


def _check(
    examples: Explained, tests: Mapping[str, Explained], simulators: Mapping[str, Any], sizes: Sequence[int]
) -> None:
    """Raise AssayError for a call of `simulatability` that cannot be answered."""
    if not tests or not simulators or not sizes:
        raise AssayError("simulatability(): give at least one test, one simulator and one size.")
    if min(sizes) < 4 or max(sizes) > len(examples) or len(set(sizes)) < len(sizes):
        raise AssayError(
            f"simulatability(sizes={tuple(sizes)}): must be different numbers of examples from 4 to the "
            f"{len(examples)} there are."
        )
    for name, test in tests.items():
        for what in ("inputs", "explanations"):
            own, others = (getattr(one, what).shape[1] for one in (test, examples))
            if own != others:
                raise AssayError(f"the {what} of {name!r} have {own} numbers each, those of the examples {others}.")
    for name, one in {"examples": examples, **tests}.items():
        if one.correct is not None and min(one.correct.sum(), (~one.correct).sum()) < 2:
            raise AssayError(
                f"{name!r} has {int(one.correct.sum())} right answers of {len(one)}; balancing needs two of each kind: "
                "leave out `correct`, or give other examples."
            )
    for name, model in simulators.items():
        if not hasattr(model, "fit") or not hasattr(model, "predict"):
            raise AssayError(f"simulator {name!r}: must have fit() and predict(), as sklearn's have.")


def _drawn(examples: Explained, size: int, *, balanced: bool, rng: np.random.Generator) -> np.ndarray:
    """Rows to learn from, without replacement; balanced, half of them right answers, as far as there are as many."""
    if not balanced or examples.correct is None:
        return rng.permutation(len(examples))[:size]
    right, wrong = (rng.permutation(np.flatnonzero(one)) for one in (examples.correct, ~examples.correct))
    of_right = min(max(size // 2, size - len(wrong)), len(right))
    return np.concatenate([right[:of_right], wrong[: size - of_right]])
