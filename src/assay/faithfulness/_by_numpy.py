"""What numpy computes several times faster than torch on one thread or two (`benchmarks/faster_kernels.py`)."""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

THREADS = 2
"""With more of them torch, which shares its work out, is the faster one."""


def log_(numbers: Tensor) -> Tensor:
    """Natural logarithms, in place."""
    if not _by_numpy(numbers):
        return numbers.log_()
    array = numbers.numpy()
    with np.errstate(all="ignore"):
        np.log(array, out=array)
    return numbers


def expm1(numbers: Tensor) -> Tensor:
    """e^x − 1."""
    if not _by_numpy(numbers):
        return numbers.expm1()
    with np.errstate(all="ignore"):
        return torch.from_numpy(np.expm1(numbers.numpy()))


def argmax(numbers: Tensor) -> Int[Tensor, "..."]:
    """The index of the largest number (the first of them) along the last axis."""
    return torch.from_numpy(numbers.numpy().argmax(axis=-1)) if _by_numpy(numbers) else numbers.argmax(dim=-1)


def _by_numpy(numbers: Tensor) -> bool:
    return (
        numbers.device.type == "cpu"
        and numbers.dtype in (torch.float32, torch.float64)
        and torch.get_num_threads() <= THREADS
    )
