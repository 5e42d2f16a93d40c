"""How much of the effect circuits of all sizes do: areas under f, and between f and 1."""

import bisect
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float

from assay._errors import AssayError, unknown_name
from assay._given import checked
from assay.circuits import Circuit, measured
from assay.diagnostics._setting import Estimate, Setting
from assay.subjects import Subject
from assay.tasks import Split

Grid = Literal["log2", "mib"]
"""Sizes at which f is taken: 1, 2, 4, … edges on paths up to all of them, or those of MIB."""

Area = Callable[[Float[np.ndarray, " size"], Float[np.ndarray, "size ..."]], Float[np.ndarray, "..."]]

MIB_SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""MIB's sizes, as shares of all edges before pruning."""


@dataclass(frozen=True)
class Areas:
    """f of circuits of all sizes from one discovery, and the two areas that sum it up.

    `f[i]` is at `x[i]`; the circuit there has `edges[i]` edges, and `pruned[i]` of them on paths. `cpr` (higher is
    better; 1 is f = 1 at all sizes) and `cmd` (lower is better, at least 0) are in units of f.
    """

    grid: Grid
    x: tuple[float, ...]
    edges: tuple[int, ...]
    pruned: tuple[int, ...]
    f: tuple[Estimate, ...]
    cpr: Estimate
    cmd: Estimate
    _setting: Setting = field(repr=False, compare=False)
    _columns: tuple[Float[np.ndarray, " pair"], ...] = field(repr=False, compare=False)

    def minus(self, other: "Areas", *, level: float = 0.95) -> tuple[Estimate, Estimate]:
        """By how much `cpr` and `cmd` of this discovery are larger than another's on the same pairs, paired.

        Raises AssayError for areas over other pairs or another grid.
        """
        if self.grid != other.grid or self._setting.problem.sha256 != other._setting.problem.sha256:
            raise AssayError("Areas.minus(): both have to be of the same pairs and grid; measure them on one split.")
        count = len(self._columns)

        def more(area: Area, sums: Float[np.ndarray, "column ..."]) -> Float[np.ndarray, "..."]:
            found: np.ndarray = area(np.array(self.x), _shares(sums[:count])) - area(
                np.array(other.x), _shares(sums[count:])
            )
            return found

        columns = (*self._columns, *other._columns)
        first, second = (
            self._setting.smooth(functools.partial(more, area), columns, level=level) for area in _AREAS[self.grid]
        )
        return first, second


@checked
def areas(
    circuit: Circuit,
    subject: Subject,
    split: Split,
    *,
    grid: Grid = "log2",
    level: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> Areas:
    """CPR and CMD of a discovery on pairs: areas under f and under |1 - f| over sizes of its circuits.

    f(k) = (mean C_k - mean ∅) / (mean M - mean ∅), with m of the subject M, of the circuit C_k and with all edges
    ablated ∅. On the grid "log2", f at size s is that of the largest circuit by the scores' order with at most s edges
    on paths, and x = log s / log N, for s = 1, 2, 4, … and N, the number of edges of the graph. Where no such circuit
    has a path, f is 0. f is linear between the sizes, where it crosses 1 the area of |1 - f| is that under the line,
    and nothing is clamped. Limits are BCa over pairs; discovery's own spread is not in them (see `stability`).

    Source: Mueller et al., arXiv 2504.13151 (MIB), section 3: "integrated circuit performance ratio" and "integrated
    circuit-model distance". Differences: their x is a share of edges before pruning, half of which is between a half
    and all of them, and begins at .001; in small graphs several of their sizes are 0; trapezoids of |1 - f| are too
    large where f crosses 1. `grid="mib"` computes theirs (give `Circuit(rank="absolute")`, as they do by default).

    Raises AssayError for a circuit that was given, and as said of `Circuit` for too few pairs and no effect.
    """
    if grid not in get_args(Grid):
        raise unknown_name("grid", str(grid), get_args(Grid))
    setting = Setting.of(circuit, subject, split, resamples=resamples, seed=seed)
    graph = setting.problem.wiring.graph
    sizes, x = _log2(circuit) if grid == "log2" else _mib(graph.size)
    nothing = np.zeros(graph.shape, dtype=bool)
    least = circuit.sizes_[0]
    masks = [nothing if size < least else _kept(circuit, size) for size in sizes]
    found = measured(setting.problem, masks)
    columns = (*(values - setting.ablated for values in found), setting.subject - setting.ablated)

    def of(area: Area, sums: Float[np.ndarray, "column ..."]) -> Float[np.ndarray, "..."]:
        return area(np.array(x), _shares(sums))

    under, from_one = (setting.smooth(functools.partial(of, area), columns, level=level) for area in _AREAS[grid])
    return Areas(
        grid,
        tuple(x),
        tuple(sizes),
        tuple(int(graph.pruned(mask).sum()) for mask in masks),
        tuple(setting.share(column, columns[-1], level=level) for column in columns[:-1]),
        under,
        from_one,
        setting,
        columns,
    )


@checked
def area_under(x: Float[np.ndarray, " size"], f: Float[np.ndarray, "size ..."]) -> Float[np.ndarray, "..."]:
    """The area under a line through points."""
    return _area(x, (f[1:] + f[:-1]) / 2)


@checked
def area_from_one(x: Float[np.ndarray, " size"], f: Float[np.ndarray, "size ..."]) -> Float[np.ndarray, "..."]:
    """The area between a line through points and 1, whichever is above.

    Where the line crosses 1 between distances a and b of different sign, it is (a² + b²) / (2 (|a| + |b|)) a unit.
    """
    first, second = 1 - f[:-1], 1 - f[1:]
    whole = np.abs(first) + np.abs(second)
    crossed = np.divide(first**2 + second**2, 2 * whole, out=np.zeros_like(whole), where=whole > 0)
    return _area(x, np.where(first * second < 0, crossed, whole / 2))


def _trapezoids_from_one(x: Float[np.ndarray, " size"], f: Float[np.ndarray, "size ..."]) -> Float[np.ndarray, "..."]:
    """The trapezoids of |1 - f|, as MIB adds them up."""
    return area_under(x, np.abs(1 - f))


_AREAS: Mapping[Grid, tuple[Area, Area]] = {
    "log2": (area_under, area_from_one),
    "mib": (area_under, _trapezoids_from_one),
}


def _area(x: Float[np.ndarray, " size"], heights: Float[np.ndarray, "step ..."]) -> Float[np.ndarray, "..."]:
    found: np.ndarray = np.tensordot(np.diff(x), heights, axes=1)
    return found


def _shares(sums: Float[np.ndarray, "column ..."]) -> Float[np.ndarray, "size ..."]:
    """f of every size; the last column is the effect."""
    found: np.ndarray = sums[:-1] / sums[-1]
    return found


def _kept(circuit: Circuit, size: int) -> Bool[np.ndarray, "sender receiver"]:
    kept = circuit.of_size(size).kept_
    assert kept is not None
    return kept


def _log2(circuit: Circuit) -> tuple[list[int], list[float]]:
    """Edges before pruning of the circuits of the grid, and where they are on the axis."""
    graph = circuit.graph_
    assert graph is not None

    @functools.cache
    def pruned(size: int) -> int:
        return int(graph.pruned(_kept(circuit, size)).sum())

    known = circuit.sizes_
    most = sorted({2**power for power in range(int(math.log2(graph.size)) + 1)} | {graph.size})
    places = [bisect.bisect_right(known, one, key=pruned) for one in most]
    return [known[place - 1] if place else 0 for place in places], [
        math.log(one) / math.log(graph.size) for one in most
    ]


def _mib(edges: int) -> tuple[list[int], list[float]]:
    return [int(share * edges) for share in MIB_SHARES], list(MIB_SHARES)
