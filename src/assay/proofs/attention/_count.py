"""How many inputs of a group could be answered wrongly: exact counting of a relaxation, by products of polynomials.

For any λ_x > 0, an input on which some output x of a group reaches Σ_p f_x(p, t_p) ≥ 0 also has Σ_p J(p, t_p) ≥ 0 with
J = max_x λ_x f_x. Rounding the slack of each J below its position's top down to a grid, the number of inputs left is a
sum of coefficients of Π_p Σ_t z^slack(p, t), in integers of any size (docs/soundness.md, theorems 3 and 4).
"""

from collections.abc import Iterator, Sequence

import numpy as np

from assay.proofs._certificate import Piece, Relaxation
from assay.proofs._exact import flint
from assay.proofs._operations import Operations
from assay.proofs.attention._groups import Cell, Group

FRACTION = 6
"""Tops of positions are recorded in units of the grid divided by 2 to this power."""


def _total(slacks: Sequence[np.ndarray], limit: int, operations: Operations) -> int:
    """How many ways there are to choose one slack a position so that they add up to at most `limit`."""
    library = flint()
    product = None
    operations.add(arithmetic=sum(map(len, slacks)), comparisons=sum(map(len, slacks)))
    for slack in slacks:
        kept = slack[slack <= limit]
        if not len(kept):
            return 0
        counts = np.bincount(kept)
        factor = library.fmpz_poly(counts.tolist())
        if product is None:
            product = factor
            continue
        operations.add(arithmetic=2 * int(np.count_nonzero(counts)) * min(limit + 1, product.degree() + 1))
        product = product.mul_low(factor, limit + 1)
    return int(sum(product.coeffs())) if product is not None else 0


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


def _relax(group: Group, chosen: np.ndarray, shifts: np.ndarray, grid: int, operations: Operations) -> Relaxation:
    """Count one relaxation: outputs `chosen`, λ = 2^-shifts, about `grid` steps between the worst input and 0."""
    upper = (-((-group.upper[chosen]) >> shifts[:, None, None])).max(axis=0)
    last = int((-((-group.upper_last[chosen]) >> shifts)).max())
    operations.add(arithmetic=group.upper[chosen].size, comparisons=group.upper[chosen].size)
    total = int(upper.max(axis=1).sum()) + last
    step = max(FRACTION, total.bit_length() - (grid.bit_length() - 1))
    fine = step - FRACTION
    tops = -((-upper.max(axis=1)) >> fine)
    # A millionth of a step of leeway, so that the checker's coarser rounding never finds more inputs than this.
    leeway = 1 << max(0, step - 20)
    slacks = np.maximum(((tops[:, None] << fine) - upper - leeway) >> step, 0)
    limit = (int(tops.sum() << fine) + last + leeway) >> step
    count = _ways(group.cell, list(slacks), limit, operations) if limit >= 0 else 0
    return Relaxation(
        outputs=[group.outputs[index] for index in chosen],
        shifts=shifts.tolist(),
        step=step + group.unit,
        tops=tops.tolist(),
        count=min(count, group.cell.size),
    )


def _scalings(group: Group) -> Iterator[np.ndarray]:
    """Choices of λ as right shifts: all equal; the contributions of the maximum made equal."""
    count = len(group.outputs)
    yield np.zeros(count, dtype=np.int64)
    if count > 1:
        logs = np.log2(np.abs(group.upper[:, :, -1].astype(np.float64).mean(axis=1)) + 1)
        yield np.minimum(np.round(logs - logs.min()).astype(np.int64), 40)


def _piece(cell: Cell, relaxations: list[Relaxation]) -> Piece:
    return Piece(
        last=cell.last,
        maximum=cell.maximum,
        relaxations=relaxations,
        wrong=min(cell.size, sum(relaxation.count for relaxation in relaxations)),
        surely_wrong=0,
    )


def _together(group: Group, grid: int, operations: Operations) -> Piece:
    everything = np.arange(len(group.outputs))
    found = [_relax(group, everything, shifts, grid, operations) for shifts in _scalings(group)]
    return _piece(group.cell, [min(found, key=lambda relaxation: relaxation.count)])


def _one_by_one(group: Group, grid: int, operations: Operations) -> Piece:
    none = np.zeros(1, dtype=np.int64)
    return _piece(group.cell, [_relax(group, np.array([x]), none, grid, operations) for x in range(len(group.outputs))])


def count_groups(groups: Sequence[Group], *, grid: int, refine: int, operations: Operations) -> list[Piece]:
    """Bounds on the wrong inputs of every group: all outputs in one relaxation, the better of two choices of λ.

    The `refine` heaviest groups are counted again with each output on its own, which sums their inputs.
    """
    pieces = [_together(group, grid, operations) for group in groups]
    heaviest = sorted(range(len(groups)), key=lambda index: -pieces[index].wrong)[:refine]
    for index in heaviest:
        if len(groups[index].outputs) > 1 and pieces[index].wrong:
            alone = _one_by_one(groups[index], grid, operations)
            if alone.wrong < pieces[index].wrong:
                pieces[index] = alone
    return pieces
