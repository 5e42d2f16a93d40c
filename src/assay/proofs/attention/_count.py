"""How many inputs of a group could be answered wrongly: exact counting of a relaxation, by products of polynomials.

For any λ_x > 0, an input on which some output x of a group reaches Σ_p f_x(p, t_p) ≥ 0 also has Σ_p J(p, t_p) ≥ 0 with
J = max_x λ_x f_x. Rounding the slack of each J below its position's top down to a grid, the number of inputs left is a
sum of coefficients of Π_p Σ_t z^slack(p, t), in integers of any size (docs/soundness.md, theorems 3 and 4).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Int

from assay.proofs._certificate import Piece, Relaxation
from assay.proofs._exact import flint
from assay.proofs._operations import Operations
from assay.proofs.attention._groups import Cell, Group, worst

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
        operations.add(arithmetic=2 * np.count_nonzero(counts) * min(limit + 1, product.degree() + 1))
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
            operations.add(arithmetic=2 * np.count_nonzero(counts) * length + length)
            stay = state.mul_low(factor, limit + 1)
            after[taken] = after[taken] + stay if taken in after else stay  # type: ignore[operator]
            if taken < most and single <= limit:
                move = state.left_shift(single).truncate(limit + 1)
                after[taken + 1] = after[taken + 1] + move if taken + 1 in after else move  # type: ignore[operator]
        states = after
    return int(sum(sum(state.coeffs()) for taken, state in states.items() if taken >= least))


def _ways(cell: Cell, slacks: Sequence[np.ndarray], limit: int, operations: Operations) -> int:
    """How many inputs of the cell have slacks that add up to at most `limit` (`slacks`: position by token)."""
    if cell.second is None and cell.copies not in ((0, cell.free), (1, cell.free)):
        return _with_copies(slacks, limit, cell.copies, operations)
    everything = np.arange(len(cell.tokens))
    required = []
    if cell.copies[0] >= 1:
        required.append(len(everything) - 1)
    if cell.second is not None:
        required.append(len(everything) - 2)
    total = 0
    for subset in range(1 << len(required)):
        dropped = [token for bit, token in enumerate(required) if subset >> bit & 1]
        kept = np.delete(everything, dropped)
        total += (-1) ** len(dropped) * _total([slack[kept] for slack in slacks], limit, operations)
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
    slacks = ((tops[:, None] << fine) - upper) >> step
    limit = (int(tops.sum() << fine) + last) >> step
    count = _ways(group.cell, list(slacks), limit, operations) if limit >= 0 else 0
    return Relaxation(
        outputs=[group.outputs[index] for index in chosen],
        shifts=shifts.tolist(),
        step=step + group.unit,
        tops=tops.tolist(),
        count=min(count, group.cell.size),
    )


def _scalings(group: Group) -> Iterator[np.ndarray]:
    """Choices of λ as right shifts: all equal; the copies of the maximum made equal; half way."""
    count = len(group.outputs)
    yield np.zeros(count, dtype=np.int64)
    if count > 1:
        size = np.abs(group.upper[:, :, -1].astype(np.float64).mean(axis=1)) + 1
        logs = np.log2(size)
        full = np.round(logs - logs.min()).astype(np.int64)
        yield np.minimum(full, 40)
        yield np.minimum(full // 2, 40)


def count_group(group: Group, grid: int, operations: Operations) -> Piece:
    """The best of the relaxations: all outputs together under several λ, or a sum over single outputs."""
    everything = np.arange(len(group.outputs))
    best: list[Relaxation] = []
    for shifts in _scalings(group):
        relaxation = _relax(group, everything, shifts, grid, operations)
        if not best or relaxation.count < best[0].count:
            best = [relaxation]
    return _piece(group.cell, best)


def _singles(group: Group, grid: int, operations: Operations) -> Piece:
    none = np.zeros(1, dtype=np.int64)
    return _piece(
        group.cell, [_relax(group, np.array([x]), none, grid, operations) for x in range(len(group.outputs))]
    )


def _piece(cell: Cell, relaxations: list[Relaxation]) -> Piece:
    return Piece(
        last=cell.last,
        maximum=cell.maximum,
        second=cell.second,
        relaxations=relaxations,
        wrong=min(cell.size, sum(relaxation.count for relaxation in relaxations)),
    )


def _split(group: Group, operations: Operations) -> list[Group]:
    """The group by its largest free token below the maximum (None: all free tokens are the maximum)."""
    cell = group.cell
    parts = []
    for index in range(len(cell.tokens)):
        rows: Int[np.ndarray, " token"] = np.append(np.arange(index), len(cell.tokens) - 1)
        # The last index stands for "no smaller token at all"; otherwise token `index - 1` is the largest smaller one.
        second = cell.tokens[index - 1] if index else None
        part = replace(cell, tokens=tuple(cell.tokens[row] for row in rows), second=second)
        if part.size == 0:
            continue
        upper = group.upper[:, :, rows]
        operations.add(arithmetic=2 * upper.shape[0] * cell.free, comparisons=upper.shape[0] * cell.free)
        kept = worst(upper, group.upper_last, part) >= 0
        if kept.any():
            names = tuple(name for name, keep in zip(group.outputs, kept, strict=True) if keep)
            lower = group.lower[:, :, rows]
            parts.append(
                Group(part, names, upper[kept], group.upper_last[kept], lower[kept], group.lower_last[kept], group.unit)
            )
    return parts


def refine_group(group: Group, found: list[Piece], grid: int, operations: Operations) -> list[Piece]:
    """Try a finer grid, single outputs, and a split by the second-largest token; keep what is least."""
    if group.cell.copies not in ((0, group.cell.free), (1, group.cell.free)):
        return found
    candidates = [found, [count_group(group, grid, operations)]]
    if len(group.outputs) > 1:
        candidates.append([_singles(group, grid, operations)])
    halves = []
    for part in _split(group, operations):
        joint = count_group(part, grid // 2, operations)
        if len(part.outputs) > 1 and joint.wrong:
            joint = min(joint, _singles(part, grid // 2, operations), key=lambda piece: piece.wrong)
        halves.append(joint)
    candidates.append(halves)
    return min(candidates, key=lambda pieces: sum(piece.wrong for piece in pieces))
