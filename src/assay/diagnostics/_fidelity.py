"""Fidelity near the data: only a part of a circuit, or of the rest, is ablated."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from scipy import stats

from assay._errors import AssayError
from assay._given import checked
from assay.circuits import Circuit, RandomCircuit, measured_by_pair
from assay.diagnostics._setting import Estimate, Setting
from assay.subjects import Subject
from assay.tasks import Split


@dataclass(frozen=True)
class RobustFidelity:
    """What ablating a part of a circuit loses (`plus`, larger is better), and what a part of the rest (`minus`, nearer
    to 0 is better), in the units of m; `difference` is plus - minus. `effect` is what ablating everything loses.
    `removed_from_circuit` and `removed_from_rest` are how many edges were ablated, on average.
    """

    plus: Estimate
    minus: Estimate
    difference: Estimate
    effect: Estimate
    removed_from_circuit: float
    removed_from_rest: float


@checked
def robust_fidelity(
    circuit: Circuit | RandomCircuit,
    subject: Subject,
    split: Split,
    *,
    remove_from_circuit: float = 0.1,
    remove_from_rest: float = 0.1,
    draws: int = 1,
    level: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> RobustFidelity:
    """What is lost where a random part of a circuit is ablated, and where a random part of everything else is.

    plus = m(M) - E m(M without a part of C) and minus = m(M) - E m(M without a part of the rest), where each edge is in
    the part with probability `remove_from_circuit` or `remove_from_rest`, given that at least one is; C are the
    circuit's edges on paths. With 1 and 1 they are the ordinary fidelities: of the subject without the circuit, and of
    the circuit. Every pair has `draws` parts of its own, and limits are over pairs: draws are in them.

    Ablating much takes the subject off its data. A gap that is gone at a small `remove_from_rest` came from that, and
    not from the circuit. A small `plus` may mean that edges are redundant; a large circuit has a small `minus` whatever
    it is: compare with its control.

    Source: Zheng et al., arXiv 2310.01820, Fid_alpha+ and Fid_alpha-. Differences: both names say what is removed
    (their code turns alpha_2 into 1 - alpha_2), edges are those of a model and not of an input's graph, and the number
    removed is at least 1.

    Raises AssayError for a probability outside (0, 1], fewer than one draw, a circuit without edges on paths, and where
    circuits cannot be judged (few pairs, no effect).
    """
    for name, value in (("remove_from_circuit", remove_from_circuit), ("remove_from_rest", remove_from_rest)):
        if not 0 < value <= 1:
            raise AssayError(f"robust_fidelity({name}={value!r}): must be above 0 and at most 1.")
    if draws < 1:
        raise AssayError(f"robust_fidelity(draws={draws}): must be at least 1.")
    setting = Setting.of(circuit, subject, split, resamples=resamples, seed=seed)
    graph, kept = setting.problem.wiring.graph, setting.kept
    if not kept.any():
        raise AssayError("robust_fidelity(): the circuit has no edges on paths, so that none can be removed.")
    rng = np.random.default_rng(seed)
    lost, removed = [], []
    for part, share in ((kept, remove_from_circuit), (graph.exists & ~kept, remove_from_rest)):
        total, count = np.zeros(len(split)), 0
        for _ in range(draws):
            masks = [_part(part, share, rng) for _ in range(len(split))]
            total += setting.subject - measured_by_pair(setting.problem, [graph.exists & ~mask for mask in masks])
            count += sum(int(mask.sum()) for mask in masks)
        lost.append(total / draws)
        removed.append(count / draws / len(split))
    return RobustFidelity(
        setting.mean(lost[0], level=level),
        setting.mean(lost[1], level=level),
        setting.mean(lost[0] - lost[1], level=level),
        setting.mean(setting.subject - setting.ablated, level=level),
        removed[0],
        removed[1],
    )


def _part(
    edges: Bool[np.ndarray, "sender receiver"], share: float, rng: np.random.Generator
) -> Bool[np.ndarray, "sender receiver"]:
    """Each of some edges with a probability, given that there is at least one; none of none."""
    places = np.argwhere(edges)
    found = np.zeros_like(edges)
    size = len(places)
    if not size:
        return found
    none = (1 - share) ** size
    # The number by the inverse of its distribution above 0, then which: no draw is thrown away.
    count = int(stats.binom.ppf(none + (1 - none) * rng.random(), size, share))
    found[tuple(rng.permutation(places)[: max(count, 1)].T)] = True
    return found
