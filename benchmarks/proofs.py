"""What soundness costs a bound, and what brute force by forward passes costs.

Run `python benchmarks/proofs.py`. The first part counts a model's wrong inputs with the slack that covers rounding
errors and without it (which proves nothing). The second runs the model itself on all inputs with some last tokens, as
published brute force does on all, and extrapolates its time; its operations are counted for all inputs.
"""

import time

import torch

import assay
from assay.proofs import Operations
from assay.proofs.attention import _groups
from machine import machine

NAMES = ("max-of-4", "max-of-5", "max-of-10")
LASTS = (0, 21, 42, 63)


def cost_of_soundness(name: str) -> tuple[float, float]:
    """The certified lower bound with and without slack for rounding errors."""
    subject, pad = assay.load(name), _groups.PAD
    sound = assay.certify(subject).low
    try:
        _groups.PAD = 0.0
        return sound, assay.certify(subject).low
    finally:
        _groups.PAD = pad


def forward_passes(name: str, lasts: tuple[int, ...]) -> tuple[float, float, Operations]:
    """Accuracy on all inputs that end in `lasts`, seconds for all inputs, and operations for all inputs."""
    subject = assay.load(name)
    config = subject.model.config
    v, k, d, h = config.vocab_size, config.length, config.hidden_size, config.head_dim
    started, right, seen = time.process_time(), 0, 0
    free = torch.cartesian_prod(*[torch.arange(v)] * (k - 1))
    for last in lasts:
        for part in free.split(65_536):
            tokens = torch.cat([part, torch.full((len(part), 1), last)], dim=1)
            with torch.inference_mode():
                predicted = subject(tokens)[:, -1].argmax(dim=1)
            right, seen = right + int((predicted == tokens.max(dim=1).values).sum()), seen + len(tokens)
    seconds = (time.process_time() - started) * v**k / seen
    each = Operations()
    each.add(arithmetic=k * d + k * k + d, comparisons=v + k, exponentials=k)
    for rows, inner, columns in ((k, d, h), (k, d, h), (k, d, h), (1, h, k), (1, k, h), (1, h, d), (1, d, v)):
        each.product(rows, inner, columns)
    operations = Operations(
        arithmetic=each.arithmetic * v**k, comparisons=each.comparisons * v**k, exponentials=each.exponentials * v**k
    )
    return right / seen, seconds, operations


def main() -> None:
    """Print both measurements."""
    torch.set_num_threads(1)
    for name in NAMES:
        sound, unsound = cost_of_soundness(name)
        print(f"{name}: certified {sound:.9f}, without slack {unsound:.9f}, difference {unsound - sound:.2e}")
    share, seconds, operations = forward_passes("max-of-4", LASTS)
    print(f"max-of-4, forward passes on inputs that end in {LASTS}: accuracy {share:.9f}")
    print(f"all inputs: {seconds:.0f} s, {operations.total:.3g} operations")


if __name__ == "__main__":
    main()
    print(f"\n{machine()}")
