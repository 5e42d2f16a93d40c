"""What Assay computes by other kernels than a model's own code or torch would take, on one thread, and how precisely.

Run `python benchmarks/faster_kernels.py`. It prints a table of dense layers in float32 (torch's own product, which is
MKL's on most CPUs, and oneDNN's) and one of functions of single numbers. Both kernels alternate in one run, ratios are
medians over rounds, and errors are the largest against float64, relative to the largest output. A ratio near 1 means
that a CPU gets the same from either.
"""

import functools
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from assay.engine._kernels import faster, gelu
from assay.faithfulness import _by_numpy
from machine import machine

ROUNDS = 7
LAYERS = (
    ("small, into the MLP", 4_096, 128, 512),
    ("small, out of it", 4_096, 512, 128),
    ("GPT-2, into the MLP", 256, 768, 3_072),
    ("GPT-2, unembedding", 64, 768, 50_257),
    ("Llama type, into the MLP", 1_024, 512, 1_376),
)
FUNCTIONS: tuple[tuple[str, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]], ...] = (
    ("GELU, tanh form", functools.partial(nn.functional.gelu, approximate="tanh"), gelu),
    (
        "logarithm of a square",
        lambda numbers: (numbers * numbers).log_(),
        lambda numbers: _by_numpy.log_(numbers * numbers),
    ),
    ("e^x - 1", torch.expm1, _by_numpy.expm1),
    ("arg max of 512", lambda numbers: numbers.argmax(dim=-1), _by_numpy.argmax),
)


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Wall seconds of one call."""
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - start) / repeats


def compared(kernels: tuple[Callable[[Tensor], Tensor], ...], inputs: Tensor, repeats: int) -> tuple[float, ...]:
    """Median seconds of both kernels, the median ratio, and both errors; the first of `kernels` gives the truth."""
    for kernel in kernels:
        kernel(inputs)
    rounds = [[seconds(functools.partial(kernel, inputs), repeats) for kernel in kernels[1:]] for _ in range(ROUNDS)]
    truth = kernels[0](inputs).double()
    largest = truth.abs().max().clamp_min(1)
    errors = [float((kernel(inputs) - truth).abs().max() / largest) for kernel in kernels[1:]]
    plain, other = (statistics.median(column) for column in zip(*rounds, strict=True))
    return plain, other, statistics.median(before / after for before, after in rounds), *errors


def main() -> None:
    """Print both tables."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.inference_mode():
        print("| dense layer | rows | in x out | torch, 10^9/s | Assay, 10^9/s | ratio | error of torch | of Assay |")
        print("|---|---|---|---|---|---|---|---|")
        for name, rows, width, out in LAYERS:
            layer = nn.Linear(width, out)
            kernel = faster(layer).get(layer)
            if kernel is None:
                print(f"| {name} | | | left to torch on this machine | | | | |")
                continue
            exact = nn.Linear(width, out, dtype=torch.float64)
            exact.load_state_dict(layer.state_dict())
            operations = 2 * rows * width * out
            plain, other, ratio, *errors = compared(
                (lambda inputs, exact=exact: exact(inputs.double()), layer, kernel),  # type: ignore[misc]
                torch.randn(rows, width),
                max(1, 10**10 // operations),
            )
            print(
                f"| {name} | {rows:,} | {width:,} x {out:,} | {operations / plain / 1e9:.0f} "
                f"| {operations / other / 1e9:.0f} | {ratio:.2f} | {errors[0]:.1e} | {errors[1]:.1e} |",
                flush=True,
            )
        print("\n| function | torch, ns a number | Assay, ns a number | ratio | error of torch | of Assay |")
        print("|---|---|---|---|---|---|")
        numbers = torch.randn(2_048, 512)
        for name, plain_kernel, kernel in FUNCTIONS:
            exact_kernel: Callable[[Tensor], Tensor] = lambda inputs, k=plain_kernel: k(inputs.double())  # type: ignore[misc]  # noqa: E731
            plain, other, ratio, *errors = compared((exact_kernel, plain_kernel, kernel), numbers, 5)
            plain, other = (1e9 * time / numbers.numel() for time in (plain, other))
            print(f"| {name} | {plain:.2f} | {other:.2f} | {ratio:.1f} | {errors[0]:.1e} | {errors[1]:.1e} |")


if __name__ == "__main__":
    main()
    print(f"\n{machine()}")
