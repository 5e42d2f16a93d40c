"""Short passes that show what an architecture does with its attention."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from assay.engine._attention import Plan

Pass = Callable[[Plan], Tensor]
"""One pass on a few tokens, which gives logits."""


def over_layers(plan: Plan, tokens: Tensor) -> set[int]:
    """The ids of modules met by `plan` whose queries and keys are no vectors of positions, but of each position's own.

    They have a place for each of `tokens` where others have heads.
    """
    positions = tokens.shape[1]
    return {
        id(module)
        for module, (queries, keys) in zip(plan.met, plan.shapes, strict=True)
        if queries[1] == keys[1] == positions != queries[2]
    }


def rows_agree(run: Pass, layers: Mapping[int, int | None], scaled: frozenset[int], whole: Tensor) -> bool:
    """Whether attention in blocks of rows gives what the whole gives; some architectures look at all rows."""
    try:
        found = run(Plan(layers, on_rows=lambda *_: None, rows=2, scaled=scaled))
    except (RuntimeError, IndexError):
        return False
    return torch.allclose(whole, found, atol=1e-4, rtol=1e-4)


def unexplained(run: Pass, layers: Mapping[int, int | None], scaled: frozenset[int]) -> frozenset[int]:
    """The layers whose outputs are not pattern times values."""
    found: dict[str, dict[int, Tensor]] = {"patterns": {}, "values": {}, "outputs": {}}
    run(Plan(layers, observers={stream: into.__setitem__ for stream, into in found.items()}, scaled=scaled))
    different = set()
    for layer, pattern in found["patterns"].items():
        expected, outputs = pattern @ found["values"][layer], found["outputs"][layer]
        near = 1e-2 if outputs.dtype in (torch.float16, torch.bfloat16) else 1e-4
        scale = float(outputs.abs().max())
        if expected.shape != outputs.shape or not bool(((expected - outputs).abs() <= near * max(scale, near)).all()):
            different.add(layer)
    return frozenset(different)
