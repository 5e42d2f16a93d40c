"""How far the heads and MLPs that matter for one task are those that matter for another, or under a shift."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from assay._errors import AssayError
from assay._given import checked
from assay.circuits import Circuit, Graph, Problem, measured
from assay.diagnostics._overlap import tail, weighted_jaccard
from assay.simplify import label

Importances = Float[np.ndarray, "layer component"]


@dataclass(frozen=True)
class Reuse:
    """How much two tasks share at one size.

    `of_first` and `of_second` are numbers of components that matter for each, of `components`; `shared` matter for
    both. `share` is shared / of_first, `jaccard` shared / (all of both), `weighted` the same of importances, whatever
    the size. `expected` are shared by sets of these sizes drawn evenly, and as many as were with probability `p`;
    `layered_expected` and `layered_p` are for sets with as many of each layer as each task has there. `ceiling` is the
    mean Jaccard index of two discoveries of the same task, over both tasks (None where nothing was resampled).
    """

    first: str
    second: str
    size: int | None
    components: int
    of_first: int
    of_second: int
    shared: int
    share: float
    jaccard: float
    weighted: float
    expected: float
    p: float
    layered_expected: float
    layered_p: float
    ceiling: float | None

    def __str__(self) -> str:
        ceiling = "" if self.ceiling is None else f"; at most {self.ceiling:.2f} by discovery again"
        return (
            f"{self.first} and {self.second}: {self.shared} of {self.of_first} and {self.of_second} components shared "
            f"(Jaccard {self.jaccard:.2f}{ceiling}; by chance {self.expected:.1f}, p = {self.p:.2g}; by chance within "
            f"layers {self.layered_expected:.1f}, p = {self.layered_p:.2g})"
        )


@dataclass(frozen=True)
class ComponentReuse:
    """`pairs` of tasks, at every size; and `faithfulness[found on, asked of]`, size by size, where it was asked for.

    That is the share of a task's effect that comes back with the components of another task alone: (m with these and
    all else ablated - m with all ablated) / (m - m with all ablated), 1 for the whole model.
    """

    pairs: tuple[Reuse, ...]
    faithfulness: Mapping[int | None, Mapping[tuple[str, str], float]]

    def between(self, first: str, second: str, size: int | None = None) -> Reuse:
        """The record of two tasks, in either order of names, at a size (None: the only one).

        Raises AssayError where there is none, or more than one.
        """
        found = [one for one in self.pairs if {one.first, one.second} == {first, second} and size in (None, one.size)]
        if len(found) != 1:
            raise AssayError(
                f"between({first!r}, {second!r}, size={size}): there are {len(found)} such pairs, not one."
            )
        return found[0]


@checked
def component_importances(circuit: Circuit) -> Importances:
    """How much every head matters by a fitted circuit's scores, and in the last column every MLP: (layer, heads + 1).

    The sum of the scores' sizes over the edges out of it. Raises AssayError for a circuit that has no scores.
    """
    if circuit.scores_ is None or circuit.graph_ is None:
        raise AssayError(f"{label(circuit)} has no scores: it has not been fitted, or its edges were given.")
    graph = circuit.graph_
    by_sender = np.abs(np.nan_to_num(circuit.scores_)).sum(axis=1)
    return by_sender[1:].reshape(graph.layers, graph.heads + 1)


@checked
def component_reuse(
    importances: Mapping[str, Importances],
    *,
    sizes: Sequence[int] = (),
    least: float | None = None,
    resampled: Mapping[str, Sequence[Importances]] | None = None,
    problems: Mapping[str, Problem] | None = None,
) -> ComponentReuse:
    """Which components (heads, or heads and MLPs) matter for several tasks, or for one task on iid and under a shift.

    `importances` of every task are (layer, component), signs aside; a component matters if it is among the `size`
    largest, for each of `sizes` (show several: what is shared depends on it), or has at least the share `least` of the
    largest; never if its importance is 0. N components of which a and b matter share a b / N by chance, at least k of
    them with the tail of the hypergeometric distribution. Late layers are in most circuits, so the fairer null draws
    within layers. The most that can be expected is what two discoveries of one task share: give importances found again
    on bootstrap samples of pairs in `resampled`, two or more a task.

    With `problems`, a task's components are also judged on every other task: all edges out of them and out of the
    embeddings are kept, all others ablated as the problem says. Where importances have no column of MLPs, all MLPs are
    kept.

    Source: Merullo, Eickhoff and Pavlick, arXiv 2310.08744. Differences: the nulls and the ceiling, which are not in
    it; importances are given, by whatever method, and not by path patching alone. For edges of two circuits see
    `overlap`.

    Raises AssayError for fewer than two tasks, importances of different shapes, that are not finite or all 0, for no
    size, or sizes that there are not, for fewer than two resamples of a task, and for problems of another graph.
    """
    names, shape = _checked(importances, sizes, least, resampled)
    weights = {name: np.abs(importances[name]).astype(np.float64) for name in names}
    again = {name: [np.abs(one) for one in found] for name, found in (resampled or {}).items()}
    pairs: list[Reuse] = []
    faithfulness: dict[int | None, dict[tuple[str, str], float]] = {}
    for size in sizes or (None,):
        matter = {name: _mattering(weights[name], size, least) for name in names}
        ceilings = {name: _ceiling([_mattering(one, size, least) for one in found]) for name, found in again.items()}
        for first, second in combinations(names, 2):
            both = [ceilings[name] for name in (first, second)] if again else []
            pairs.append(_between(first, second, size, matter, weights, float(np.mean(both)) if both else None))
        if problems is not None:
            faithfulness[size] = _across(matter, problems, shape)
    return ComponentReuse(tuple(pairs), faithfulness)


def _checked(
    importances: Mapping[str, Importances],
    sizes: Sequence[int],
    least: float | None,
    resampled: Mapping[str, Sequence[Importances]] | None,
) -> tuple[list[str], tuple[int, ...]]:
    names = list(importances)
    if len(names) < 2:
        raise AssayError(f"component_reuse(): {len(names)} task was given; give importances of two or more.")
    shape = importances[names[0]].shape
    if resampled is not None and set(resampled) != set(names):
        raise AssayError(f"component_reuse(resampled=...): give those of {', '.join(names)}, each two or more.")
    given = [*importances.items(), *((name, one) for name, found in (resampled or {}).items() for one in found)]
    for name, found in given:
        if found.shape != shape:
            raise AssayError(
                f"component_reuse(): {name!r} has importances of the shape {found.shape}, {names[0]!r} of {shape}; "
                "give components of one model."
            )
        if not np.isfinite(found).all() or not found.any():
            raise AssayError(f"component_reuse(): importances of {name!r} are not finite, or all 0.")
    if any(len(found) < 2 for found in (resampled or {}).values()):
        raise AssayError("component_reuse(resampled=...): give at least two discoveries of every task.")
    if bool(sizes) == (least is not None):
        raise AssayError(
            "component_reuse(): give sizes, or least: how many components, or how important they have to be."
        )
    if any(not 1 <= size <= importances[names[0]].size for size in sizes):
        raise AssayError(f"component_reuse(sizes={tuple(sizes)}): must be 1 to {importances[names[0]].size}.")
    if least is not None and not 0 < least <= 1:
        raise AssayError(f"component_reuse(least={least}): must be above 0 and at most 1, a share of the largest.")
    return names, shape


def _mattering(weights: Importances, size: int | None, least: float | None) -> Bool[np.ndarray, "layer component"]:
    if size is None:
        assert least is not None
        return weights >= least * weights.max()
    chosen = np.zeros(weights.size, dtype=bool)
    chosen[np.argsort(-weights, axis=None, kind="stable")[:size]] = True
    return chosen.reshape(weights.shape) & (weights > 0)


def _ceiling(found: Sequence[Bool[np.ndarray, "layer component"]]) -> float:
    """The mean Jaccard index of every two."""
    return float(np.mean([(one & other).sum() / (one | other).sum() for one, other in combinations(found, 2)]))


def _between(  # noqa: PLR0917
    first: str,
    second: str,
    size: int | None,
    matter: Mapping[str, Bool[np.ndarray, "layer component"]],
    weights: Mapping[str, Importances],
    ceiling: float | None,
) -> Reuse:
    one, other = matter[first], matter[second]
    shared, a, b = int((one & other).sum()), int(one.sum()), int(other.sum())
    width = one.shape[1]
    counts = [(width, int(in_one), int(in_other)) for in_one, in_other in zip(one.sum(1), other.sum(1), strict=True)]
    return Reuse(
        first=first,
        second=second,
        size=size,
        components=one.size,
        of_first=a,
        of_second=b,
        shared=shared,
        share=shared / a,
        jaccard=shared / int((one | other).sum()),
        weighted=weighted_jaccard(weights[first], weights[second]),
        expected=a * b / one.size,
        p=float(stats.hypergeom.sf(shared - 1, one.size, a, b)),
        layered_expected=float(sum(in_one * in_other / width for _, in_one, in_other in counts)),
        layered_p=tail(counts, shared),
        ceiling=ceiling,
    )


def _across(
    matter: Mapping[str, Bool[np.ndarray, "layer component"]], problems: Mapping[str, Problem], shape: tuple[int, ...]
) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], float] = {}
    for asked, problem in problems.items():
        graph = problem.wiring.graph
        if shape not in ((graph.layers, graph.heads), (graph.layers, graph.heads + 1)):
            raise AssayError(
                f"component_reuse(problems=...): importances of the shape {shape} do not fit {graph.layers} layers of "
                f"{graph.heads} heads, with or without a column of MLPs."
            )
        all_, none = problem.means
        if all_ == none:
            raise AssayError(f"component_reuse(problems=...): ablating everything does not change m of {asked!r}.")
        for name, values in zip(matter, measured(problem, [_kept(graph, one) for one in matter.values()]), strict=True):
            found[name, asked] = float((values.mean() - none) / (all_ - none))
    return found


def _kept(graph: Graph, matter: Bool[np.ndarray, "layer component"]) -> Bool[np.ndarray, "sender receiver"]:
    """All edges out of some components, and out of the embeddings."""
    if matter.shape[1] == graph.heads:
        matter = np.hstack((matter, np.ones((graph.layers, 1), dtype=bool)))
    return graph.exists & np.concatenate(([True], matter.ravel()))[:, None]
