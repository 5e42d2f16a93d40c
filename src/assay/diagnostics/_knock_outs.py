"""Is anything missing in a circuit, and is anything in it for nothing: completeness and minimality."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from assay._errors import AssayError
from assay._given import checked
from assay.circuits import Circuit, Edge, Graph, RandomCircuit, divergences, measured
from assay.diagnostics._setting import Estimate, Setting
from assay.faithfulness import Weights, holm
from assay.subjects import Subject
from assay.tasks import Split

IDLE_QUANTILE = 0.9
"""An edge has to do more than this quantile of edges that are put into the circuit at random."""


@dataclass(frozen=True)
class KnockOut:
    """KL(subject without K || circuit without K), in nats, for some edges K of the circuit; 0 is complete."""

    edges: tuple[Edge, ...]
    kl: Estimate


@dataclass(frozen=True)
class Completeness:
    """A circuit beside the subject, both without the same edges.

    `whole` is KL(M || C), in nats, summed over the predictions of a pair; `random` are knock-outs of edges drawn at
    random; `worst` is the one that was found to tell the two apart most, on other pairs than it is measured on.
    """

    whole: Estimate
    random: tuple[KnockOut, ...]
    worst: KnockOut | None


@checked
def completeness(
    circuit: Circuit | RandomCircuit,
    subject: Subject,
    split: Split,
    *,
    sizes: Sequence[int] | None = None,
    draws: int = 5,
    greedy: int = 1,
    level: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> Completeness:
    """KL(M without K || C without K) for edges K of a circuit C, against KL(M || C), in nats; lower is better.

    A circuit that misses a part which stands in for another (a backup) does as the subject, until edges are ablated in
    both. K is drawn `draws` times for each of `sizes` (default: 1, 2 and a quarter of the circuit's edges on paths),
    and once searched: edge by edge, up to `greedy` of them, each time the one whose ablation tells subject and circuit
    apart most. The search sees the first half of the pairs and is measured on the others, since the largest of many
    estimates is too large.

    Source: Wang et al., arXiv 2211.00593, section 4.1. Differences: edges for nodes; KL, which is not blind to tokens
    beside answer and foil; and the worst K is measured on other pairs.

    Raises AssayError for a size that the circuit does not have, a circuit without edges on paths, and where circuits
    cannot be judged (few pairs, no effect).
    """
    setting = Setting.of(circuit, subject, split, resamples=resamples, seed=seed)
    graph, kept = setting.problem.wiring.graph, setting.kept
    places = np.argwhere(kept)
    if not len(places):
        raise AssayError("completeness(): the circuit has no edges on paths, so that none can be knocked out.")
    asked = sorted({1, min(2, len(places)), max(1, len(places) // 4)}) if sizes is None else list(sizes)
    if not all(1 <= size <= len(places) for size in asked) or draws < 1 or greedy < 0:
        raise AssayError(
            f"completeness(sizes={asked}, draws={draws}, greedy={greedy}): the circuit has {len(places)} edges on "
            "paths; sizes must be from 1 to that, draws at least 1, greedy at least 0."
        )
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(len(places))[:size] for size in asked for _ in range(draws)]
    nothing = places[:0]
    knocked = [nothing, *(places[one] for one in chosen)]
    found = divergences(setting.problem, [_without(graph, kept, edges) for edges in knocked])
    estimates = [_nonnegative(setting.mean(values, level=level)) for values in found]
    random = tuple(KnockOut(_names(graph, edges), kl) for edges, kl in zip(knocked[1:], estimates[1:], strict=True))
    return Completeness(estimates[0], random, _worst(setting, split, places, greedy, level) if greedy else None)


def _worst(setting: Setting, split: Split, places: Int[np.ndarray, "edge 2"], greedy: int, level: float) -> KnockOut:
    """The knock-out that a greedy search on half of the different pairs finds, on the other half."""
    graph, kept = setting.problem.wiring.graph, setting.kept
    seen = setting.weights.units < setting.weights.size / 2
    first, other = setting.part(split, seen), setting.part(split, ~seen)
    found: list[np.ndarray] = []
    for _ in range(min(greedy, len(places))):
        left = [place for place in places if not any((place == one).all() for one in found)]
        tried = [_without(graph, kept, np.array([*found, place])) for place in left]
        found.append(left[int(divergences(first.problem, tried).mean(axis=1).argmax())])
    edges = np.array(found)
    values = divergences(other.problem, [_without(graph, kept, edges)])[0]
    return KnockOut(_names(graph, edges), _nonnegative(other.mean(values, level=level)))


def _without(
    graph: Graph, kept: Bool[np.ndarray, "sender receiver"], edges: Int[np.ndarray, "edge 2"]
) -> tuple[Bool[np.ndarray, "sender receiver"], Bool[np.ndarray, "sender receiver"]]:
    """The subject and the circuit without some edges."""
    out = np.zeros_like(kept)
    out[tuple(edges.T)] = True
    return graph.exists & ~out, kept & ~out


def _names(graph: Graph, edges: Int[np.ndarray, "edge 2"]) -> tuple[Edge, ...]:
    return tuple(Edge(graph.senders[sender], graph.receivers[receiver]) for sender, receiver in edges)


def _nonnegative(found: Estimate) -> Estimate:
    return found._replace(low=max(found.low, 0.0))


@dataclass(frozen=True)
class EdgeEffect:
    """What one edge of a circuit does: f(C) - f(C without it), and Holm's p-value of "no more than idle edges"."""

    edge: Edge
    effect: Estimate
    p: float


@dataclass(frozen=True)
class Minimality:
    """The edges of a circuit, the largest effect first, and what edges put into it at random do.

    `idle` are |f(C with one) - f(C)| of those, and `bound` their 0.9 quantile. `needed` edges do more, with Holm's
    p-values below 0.05; of the others that is not shown.
    """

    f: Estimate
    edges: tuple[EdgeEffect, ...]
    idle: Float[np.ndarray, " edge"]
    bound: float

    @property
    def needed(self) -> tuple[Edge, ...]:
        """The edges that are shown to do more than idle ones."""
        return tuple(one.edge for one in self.edges if one.p < 0.05)

    @property
    def not_shown(self) -> tuple[Edge, ...]:
        """The edges of which that is not shown."""
        return tuple(one.edge for one in self.edges if not one.p < 0.05)


@checked
def minimality(
    circuit: Circuit | RandomCircuit,
    subject: Subject,
    split: Split,
    *,
    idle: int = 50,
    level: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> Minimality:
    """f(C) - f(C without e) for every edge e of a circuit, against edges that are put into it at random.

    Edges on paths only; with e go those that are on no path without it. Up to `idle` edges outside C that are on a path
    when they are put in are drawn, one at a time; what they change is what an edge does that nobody asked for. Tested
    is that |effect of e| is at most the 0.9 quantile of theirs, by the linearised standard error over pairs; p-values
    are Holm's over the edges. The quantile is taken as it is, without an error of its own. Of two edges of which either
    is enough, neither has an effect here: minimality is of single edges.

    Source: Wang et al., arXiv 2211.00593, section 4.2, and Shi et al., arXiv 2410.13032, who test against inflated
    circuits. Differences: f is a ratio of means with its sign kept, and the test is over pairs.

    Raises AssayError for `idle` below 1, a circuit without edges on paths, and where circuits cannot be judged (few
    pairs, no effect).
    """
    if idle < 1:
        raise AssayError(f"minimality(idle={idle}): must be at least 1.")
    setting = Setting.of(circuit, subject, split, resamples=resamples, seed=seed)
    graph, kept = setting.problem.wiring.graph, setting.kept
    places = np.argwhere(kept)
    if not len(places):
        raise AssayError("minimality(): the circuit has no edges on paths.")
    added = _added(graph, kept, idle, np.random.default_rng(seed))
    without = [_without(graph, kept, place[None])[1] for place in places]
    whole, *others = measured(setting.problem, [kept, *without, *added])
    scale = setting.subject - setting.ablated
    of_edges, of_idle = others[: len(places)], others[len(places) :]
    noise = np.abs([float((values - whole).mean() / scale.mean()) for values in of_idle])
    bound = float(np.quantile(noise, IDLE_QUANTILE)) if len(noise) else 0.0
    changes = [whole - values for values in of_edges]
    p = holm([_p_above(setting.weights, change, scale, bound) for change in changes])
    names = _names(graph, places)
    rows = [
        EdgeEffect(edge, setting.share(change, scale, level=level), one)
        for edge, change, one in zip(names, changes, p, strict=True)
    ]
    rows.sort(key=lambda row: -abs(row.effect.value))
    f = setting.share(whole - setting.ablated, scale, level=level)
    return Minimality(f, tuple(rows), noise, bound)


def _added(
    graph: Graph, kept: Bool[np.ndarray, "sender receiver"], count: int, rng: np.random.Generator
) -> list[Bool[np.ndarray, "sender receiver"]]:
    """A circuit with one more edge each, which is then on a path."""
    found: list[Bool[np.ndarray, "sender receiver"]] = []
    for place in rng.permutation(np.argwhere(graph.exists & ~kept)):
        if len(found) == count:
            break
        more = kept.copy()
        more[tuple(place)] = True
        if graph.pruned(more)[tuple(place)]:
            found.append(more)
    return found


def _p_above(
    weights: Weights, change: Float[np.ndarray, " pair"], scale: Float[np.ndarray, " pair"], bound: float
) -> float:
    """The p-value of |mean change / mean scale| <= bound: the largest over all such values."""
    pooled = weights.pooled(np.stack((change, scale), axis=-1)[None])[0]
    value = float(pooled[:, 0].sum() / pooled[:, 1].sum())
    count = len(pooled)
    residuals = (pooled[:, 0] - value * pooled[:, 1]) / pooled[:, 1].mean()
    error = float(np.sqrt((residuals**2).sum() / (count - 1) / count))
    if not error:
        return float(abs(value) <= bound)
    beyond = [(abs(value) - bound) / error, (abs(value) + bound) / error]
    return min(1.0, float(np.sum(stats.t.sf(beyond, count - 1))))
