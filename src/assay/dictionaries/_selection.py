"""The largest numbers of rows, and all above a bar: exactly, and faster than torch selects on a CPU."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

_GROUPS = 8
"""Groups a wanted value, at least: with this many, few values that are not wanted come through the first step."""


def largest_of_rows(
    values: Float[Tensor, "row feature"], k: int
) -> tuple[Float[Tensor, "row k"], Int[Tensor, "row k"]]:
    """The `k` largest values of each row and where they are, in no order; of equal values any may be chosen.

    On a CPU in two steps. The k-th largest of the maxima of groups is a bar below which none of the k largest lies, for
    k values reach it; and few others do. The second step leaves out these.
    """
    # numpy partitions rows with the CPU's wide instructions, torch.topk does not; both are exact.
    if values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64) and values.numel():
        chosen = _in_two_steps(values.numpy(), k)
        if chosen is not None:
            return torch.from_numpy(chosen[0]), torch.from_numpy(chosen[1])
    found = torch.topk(values, k, dim=1, sorted=False)
    return found.values, found.indices


def above(
    values: Float[Tensor, "row feature"], bar: Float[Tensor, " feature"] | float
) -> tuple[Float[Tensor, " entry"], Int[Tensor, " entry"], Int[Tensor, " entry"]]:
    """The values above a bar, the row of each and its place in the row; by row, in a row by place."""
    # numpy, several times as fast as nonzero, knows no bfloat16 and nothing of gradients.
    if values.device.type != "cpu" or values.dtype == torch.bfloat16 or values.requires_grad:
        rows, index = (values > bar).nonzero(as_tuple=True)
        return values[rows, index], rows, index
    plain = values.numpy()
    place = np.flatnonzero(plain > (bar.numpy() if isinstance(bar, Tensor) else bar))
    row, column, _ = _split(place, *plain.shape)
    return torch.from_numpy(plain.ravel()[place]), torch.from_numpy(row), torch.from_numpy(column)


def largest(values: Float[Tensor, " entry"], count: int) -> Int[Tensor, " count"]:
    """Where the `count` largest values are, in order; of equal values any may be chosen."""
    if values.device.type == "cpu" and count:
        plain = values.numpy()
        bar = np.partition(plain, len(plain) - count)[len(plain) - count]
        found = np.flatnonzero(plain >= bar)
        if len(found) == count:
            return torch.from_numpy(found)
    return values.topk(count, sorted=False).indices.sort().values


def _split(place: np.ndarray, rows: int, features: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ascending places in a matrix as rows and places in them, and where each row begins."""
    begin = np.searchsorted(place, np.arange(rows + 1) * features)
    row = np.repeat(np.arange(rows), np.diff(begin))
    return row, place - row * features, begin


def _in_two_steps(values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The k largest of each row by place; None where numbers that are not finite leave other than k of a row."""
    rows, features = values.shape
    size = 1
    while size < 32 and features % (2 * size) == 0 and features // (2 * size) >= _GROUPS * k:
        size *= 2
    groups = features // size
    # Groups are strided: their maxima are then taken across rows of memory, which is several times as fast as within.
    # torch's maximum is faster than numpy's over this axis.
    best = torch.from_numpy(values).view(rows, size, groups).amax(dim=1).numpy() if size > 1 else values
    bar = np.partition(best, groups - k, axis=1)[:, groups - k]
    place = np.flatnonzero(values >= bar[:, None])
    row, index, begin = _split(place, rows, features)
    chosen, counts = values.ravel()[place], np.diff(begin)
    most = int(counts.max())
    if most > k:
        padded = np.full((rows, most), -np.inf, dtype=values.dtype)
        padded[row, np.arange(len(place)) - begin[row]] = chosen
        bar = np.partition(padded, most - k, axis=1)[:, most - k]
        kept = chosen >= bar[row]
        counts = np.bincount(row[kept], minlength=rows)
        if int(counts.max()) > k:
            # Of the values at a row's bar, the last ones are too many.
            equal = np.flatnonzero(chosen == bar[row])
            last = np.searchsorted(row[equal], row[equal], side="right")
            kept[equal[last - np.arange(len(equal)) <= counts[row[equal]] - k]] = False
            counts = np.bincount(row[kept], minlength=rows)
        chosen, index = chosen[kept], index[kept]
    if bool((counts != k).any()):
        return None
    return chosen.reshape(rows, k), index.reshape(rows, k)
