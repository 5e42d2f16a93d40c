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
    """The index of the largest number (the first of them) along the last of several axes."""
    if not _by_numpy(numbers, everywhere=True):
        return numbers.argmax(dim=-1)
    return torch.from_numpy(numbers.numpy().argmax(axis=-1))


def _by_numpy(numbers: Tensor, *, everywhere: bool = False) -> bool:
    """Whether numbers are numpy's; where it is not faster `everywhere`, only with AVX-512."""
    return (
        numbers.device.type == "cpu"
        and numbers.dtype == torch.float32
        and torch.get_num_threads() <= THREADS
        and (everywhere or torch.backends.cpu.get_cpu_capability() == "AVX512")
    )
