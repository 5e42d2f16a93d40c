"""How many inputs of a group could be answered wrongly: exact counting of a relaxation, by products of polynomials.

For any λ_x > 0, an input on which some output x of a group reaches Σ_p f_x(p, t_p) ≥ 0 also has Σ_p J(p, t_p) ≥ 0 with
J = max_x λ_x f_x. Rounding the slack of each J below its position's top down to a grid, the number of inputs left is a
sum of coefficients of Π_p Σ_t z^slack(p, t), in integers of any size (docs/soundness.md, theorems 3 and 4). With a
minimum in place of the maximum, and slacks rounded up, the same count bounds from below how many inputs one output
surely wins (theorem 9).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int

from assay.proofs._certificate import Credit, Piece, Relaxation
from assay.proofs._exact import flint
from assay.proofs._operations import Operations
from assay.proofs.attention._groups import Cell, Group
from assay.proofs.attention._search import count_wrong

FRACTION = 6
"""Tops of positions are recorded in units of the grid divided by 2 to this power."""

_COARSE = 256
"""The grid on which all groups are counted at first, in steps."""

_LARGEST_SUM = 24
"""Tops of positions add up to less than 2 to this power, in steps."""

_DIGITS = 10
"""Binary digits of a scaling's multiplier."""


def _total(slacks: Sequence[np.ndarray], limit: int, operations: Operations) -> int:
    """How many ways there are to choose one slack a position so that they add up to at most `limit`."""
    library = flint()
    product = None
    size = sum(map(len, slacks))
    arithmetic = size
    for slack in slacks:
        counts = np.bincount(slack[slack <= limit])
        if not len(counts):
            product = None
            break
        factor = library.fmpz_poly(counts.tolist())
        if product is None:
            product = factor
            continue
        arithmetic += 2 * int(np.count_nonzero(counts)) * min(limit + 1, product.degree() + 1)
        product = product.mul_low(factor, limit + 1)
    operations.add(arithmetic=arithmetic, comparisons=size)
    if not slacks:
        return 1
    return int(product(1)) if product is not None else 0


def _with_copies(slacks: Sequence[np.ndarray], limit: int, copies: tuple[int, int], operations: Operations) -> int:
    """The same, where the last choice at each position must be taken between `copies[0]` and `copies[1]` times."""
    library = flint()
    least, most = copies
    states = {0: library.fmpz_poly([1])}
    for slack in slacks:
        others = slack[:-1][slack[:-1] <= limit]
        counts = np.bincount(others) if len(others) else np.zeros(1, dtype=np.int64)
        factor = library.fmpz_poly(counts.tolist())
        single = int(slack[-1])
        after: dict[int, object] = {}
        for taken, state in states.items():
            length = state.degree() + 1
            operations.add(arithmetic=2 * int(np.count_nonzero(counts)) * length + length)
            stay = state.mul_low(factor, limit + 1)
            after[taken] = after[taken] + stay if taken in after else stay
            if taken < most and single <= limit:
                move = state.left_shift(single).truncate(limit + 1)
                after[taken + 1] = after[taken + 1] + move if taken + 1 in after else move
        states = after
    return int(sum(sum(state.coeffs()) for taken, state in states.items() if taken >= least))


def _ways(cell: Cell, slacks: Sequence[np.ndarray], limit: int, operations: Operations) -> int:
    """How many inputs of the cell have slacks that add up to at most `limit` (`slacks`: position by token)."""
    if cell.copies not in ((0, cell.free), (1, cell.free)):
        return _with_copies(slacks, limit, cell.copies, operations)
    total = _total(slacks, limit, operations)
    if cell.copies[0] == 1:
        total -= _total([slack[:-1] for slack in slacks], limit, operations)
    return total


@dataclass(frozen=True)
class _Scales:
    """λ of every row, as multiplier / 2^shift with multipliers below 2^11 (1 where no row is scaled)."""

    multipliers: Int[np.ndarray, " row"]
    shifts: Int[np.ndarray, " row"]

    @staticmethod
    def of(factors: Float[np.ndarray, " row"]) -> "_Scales":
        """Near the given factors, brought to a largest of at most 1."""
        if np.all(factors == factors[0]):
            return _Scales(np.ones(len(factors), dtype=np.int64), np.zeros(len(factors), dtype=np.int64))
        mantissa, exponent = np.frexp(np.maximum(factors / factors.max(), 2.0**-40))
        multipliers = np.rint(np.ldexp(mantissa, _DIGITS)).astype(np.int64)
        shifts = _DIGITS + 1 - exponent.astype(np.int64)
        return _Scales(multipliers, shifts)

    def down(self, values: Int[np.ndarray, "row ..."]) -> Int[np.ndarray, "row ..."]:
        """λ times each row, rounded down."""
        shape = (-1, *[1] * (values.ndim - 1))
        shifts = self.shifts.reshape(shape)
        if (self.multipliers == 1).all():
            return values >> shifts
        return ((values >> _DIGITS) * self.multipliers.reshape(shape)) >> (shifts - _DIGITS)

    def up(self, values: Int[np.ndarray, "row ..."]) -> Int[np.ndarray, "row ..."]:
        """λ times each row, rounded up."""
        return -self.down(-values)


def _equal(sizes: Float[np.ndarray, " row"]) -> Float[np.ndarray, " row"]:
    """Factors that make these sizes equal."""
    return 1 / (sizes + 1)


def _step(values: Int[np.ndarray, "position token"], last: int, grid: int) -> int:
    """The power of two that is the step of a grid: about `grid` steps from the best sum down to 0.

    Where large numbers cancel, steps are longer, so that sums in steps stay within float64, which the checker uses.
    """
    best = values.max(axis=1)
    total, size = int(best.sum()) + last, int(np.abs(best).sum()) + abs(last)
    return max(FRACTION, total.bit_length() - (grid.bit_length() - 1), size.bit_length() - _LARGEST_SUM)


def _relax(group: Group, chosen: np.ndarray, scales: _Scales, grid: int, operations: Operations) -> Relaxation:
    """Count one relaxation of the outputs `chosen`, with about `grid` steps between the worst input and 0."""
    upper = scales.up(group.upper[chosen]).max(axis=0)
    last = int(scales.up(group.upper_last[chosen]).max())
    operations.add(arithmetic=group.upper[chosen].size, comparisons=group.upper[chosen].size)
    step = _step(upper, last, grid)
    fine = step - FRACTION
    tops = -((-upper.max(axis=1)) >> fine)
    # A millionth of a step of leeway, so that the checker's coarser rounding never finds more inputs than this.
    leeway = 1 << max(0, step - 20)
    slacks = np.maximum(((tops[:, None] << fine) - upper - leeway) >> step, 0)
    limit = (int(tops.sum() << fine) + last + leeway) >> step
    count = _ways(group.cell, list(slacks), limit, operations) if limit >= 0 else 0
    return Relaxation(
        outputs=[group.outputs[index] for index in chosen],
        multipliers=scales.multipliers.tolist(),
        powers=(scales.shifts + step + np.array(group.units)[chosen]).tolist(),
        tops=tops.tolist(),
        count=min(count, group.cell.size),
    )


def _scalings(group: Group) -> list[_Scales]:
    """Choices of λ: all equal; the contributions of the maximum made equal."""
    found = [_Scales.of(np.ones(len(group.outputs)))]
    if len(group.outputs) > 1:
        found.append(_Scales.of(_equal(np.abs(group.upper[:, :, -1].mean(axis=1)))))
    return found


def _piece(cell: Cell, relaxations: list[Relaxation]) -> Piece:
    return Piece(
        last=cell.last,
        maximum=cell.maximum,
        relaxations=relaxations,
        credits=[],
        wrong=min(cell.size, sum(relaxation.count for relaxation in relaxations)),
        surely_wrong=0,
    )


def _together(group: Group, scalings: Sequence[_Scales], grid: int, operations: Operations) -> tuple[Piece, _Scales]:
    """All outputs in one relaxation, and the choice of λ that admits least."""
    everything = np.arange(len(group.outputs))
    found = [_relax(group, everything, scales, grid, operations) for scales in scalings]
    best = min(range(len(found)), key=lambda index: found[index].count)
    return _piece(group.cell, [found[best]]), scalings[best]


def _in_clusters(group: Group, grid: int, operations: Operations) -> Piece:
    """Neighbouring outputs in relaxations of their own: at first one each, then joined where that admits fewer."""

    def relax(chosen: list[int], steps: int) -> Relaxation:
        sizes = np.abs(group.upper[chosen, :, -1].mean(axis=1))
        return _relax(group, np.array(chosen), _Scales.of(_equal(sizes)), steps, operations)

    coarse = min(grid, _COARSE)
    order = sorted(range(len(group.outputs)), key=lambda row: group.outputs[row][::-1])
    clusters = [[row] for row in order]
    counts = [relax(cluster, coarse).count for cluster in clusters]
    joined = [relax(a + b, coarse).count for a, b in pairwise(clusters)]
    while joined:
        at = max(range(len(joined)), key=lambda index: counts[index] + counts[index + 1] - joined[index])
        if counts[at] + counts[at + 1] < joined[at]:
            break
        clusters[at : at + 2] = [clusters[at] + clusters[at + 1]]
        counts[at : at + 2] = [joined.pop(at)]
        for side in (at - 1, at):
            if 0 <= side < len(joined):
                joined[side] = relax(clusters[side] + clusters[side + 1], coarse).count
    return _piece(group.cell, [relax(cluster, grid) for cluster in clusters])


@dataclass(frozen=True)
class _Leads:
    """By how much an output leads each of its rivals, at least: rows of integers, each in its own unit."""

    output: int
    rivals: list[tuple[int, int]]
    lower: Int[np.ndarray, "row position token"]
    last: Int[np.ndarray, " row"]
    units: Int[np.ndarray, " row"]
    direct: Int[np.ndarray, " row"]
    """For each row, the row of the same model that leads the maximum."""


def _leads(group: Group, models: int) -> Iterator[_Leads]:
    """For each token that all models could wrongly predict, its leads over the maximum and every other suspect."""
    where = {name: row for row, name in enumerate(group.outputs)}
    for token in sorted({x for _, x in group.outputs}):
        if any((model, token) not in where for model in range(models)):
            continue
        rivals: list[tuple[int, int]] = []
        units: list[int] = []
        lower, last, direct = [], [], []
        for model in range(models):
            own = where[model, token]
            direct += [len(rivals)] * sum(name[0] == model for name in group.outputs)
            rivals.append((model, group.cell.maximum))
            lower.append(group.lower[own])
            last.append(group.lower_last[own])
            for (other, x), row in where.items():
                if other == model and x != token:
                    rivals.append((model, x))
                    lower.append(group.lower[own] - group.upper[row])
                    last.append(group.lower_last[own] - group.upper_last[row])
            units += [group.units[own]] * (len(rivals) - len(units))
        yield _Leads(token, rivals, np.array(lower), np.array(last), np.array(units), np.array(direct))


def _win(leads: _Leads, cell: Cell, scales: _Scales, grid: int, operations: Operations) -> Credit | None:
    """Count inputs on which the output surely leads all rivals, or None where none is found."""
    lower, last = scales.down(leads.lower).min(axis=0), int(scales.down(leads.last).min())
    operations.add(arithmetic=2 * leads.lower.size, comparisons=leads.lower.size)
    total = int(lower.max(axis=1).sum()) + last
    if total <= 0:
        return None
    step = _step(lower, last, grid)
    fine = step - FRACTION
    tops = -((-lower.max(axis=1)) >> fine)
    # The checker's coarser rounding must never find fewer inputs than this.
    leeway = 1 << max(0, step - 20)
    slacks = np.maximum(-((lower - (tops[:, None] << fine) - leeway) >> step), 0)
    limit = (int(tops.sum() << fine) + last - leeway - 1) >> step
    count = _ways(cell, list(slacks), limit, operations) if limit >= 0 else 0
    if count == 0:
        return None
    return Credit(
        output=leads.output,
        rivals=leads.rivals,
        multipliers=scales.multipliers.tolist(),
        powers=(scales.shifts + step + leads.units).tolist(),
        tops=tops.tolist(),
        count=count,
    )


def _credits(group: Group, models: int, grid: int, operations: Operations) -> list[Credit]:
    """For each output, at least how many inputs of the group all models answer with it."""
    found = []
    for leads in _leads(group, models):
        sizes = np.abs(leads.lower[:, :, -1].mean(axis=1))
        tried = [_win(leads, group.cell, _Scales.of(_equal(sizes[leads.direct])), grid, operations)]
        if len(leads.rivals) > models:
            tried.append(_win(leads, group.cell, _Scales.of(_equal(sizes)), grid, operations))
        best = max((credit for credit in tried if credit), key=lambda credit: credit.count, default=None)
        if best is not None:
            found.append(best)
    return found


def count_groups(
    groups: Sequence[Group],
    *,
    models: int,
    grid: int,
    refine: int,
    search: int,
    two_sided: bool,
    operations: Operations,
) -> list[Piece]:
    """Bounds on the wrong inputs of every group: all outputs in one relaxation, the better of two choices of λ.

    Of one model, the groups of at most `search` inputs are searched; if they are more than `refine`, only those among
    the `refine` heaviest by a first count on a coarse grid. The heaviest others, fewer each time, are counted again on
    grids four times as fine, the `refine` heaviest at last on `grid`, and an eighth of those also with their outputs in
    clusters. Of two models, the inputs of those groups on which both are wrong in the same way are counted too; of one,
    if `two_sided`, the inputs of all groups that are surely wrong.
    """
    small = [models == 1 and group.cell.size <= search for group in groups]
    all_searched = sum(small) <= refine
    grids = [grid]
    while grids[0] > _COARSE:
        grids.insert(0, max(_COARSE, grids[0] // 4))
    pieces: list[Piece] = []
    scales: dict[int, _Scales] = {}
    for index, group in enumerate(groups):
        if small[index] and all_searched:
            pieces.append(count_wrong(group, operations))
        else:
            piece, scales[index] = _together(group, _scalings(group), grids[0], operations)
            pieces.append(piece)

    def heaviest(count: int) -> list[int]:
        counted = [index for index, piece in enumerate(pieces) if piece.relaxations and piece.wrong]
        return sorted(counted, key=lambda index: -pieces[index].wrong)[:count]

    def improve(index: int, piece: Piece) -> None:
        if piece.wrong < pieces[index].wrong:
            pieces[index] = piece

    for index in heaviest(refine):
        if small[index]:
            pieces[index] = count_wrong(groups[index], operations)
    for level, finer in enumerate(grids[1:], start=1):
        for index in heaviest(refine * 8 ** (len(grids) - 1 - level)):
            improve(index, _together(groups[index], [scales[index]], finer, operations)[0])
    for index in heaviest(refine // 8):
        if len(groups[index].outputs) > 1:
            improve(index, _in_clusters(groups[index], grid, operations))
    if models == 1 and not two_sided:
        return pieces
    for index in heaviest(len(groups) if models == 1 else refine):
        won = _credits(groups[index], models, grid, operations)
        total = sum(credit.count for credit in won)
        change = {"surely_wrong": total} if models == 1 else {"wrong": pieces[index].wrong - total}
        pieces[index] = pieces[index].model_copy(update={"credits": won, **change})
    return pieces
