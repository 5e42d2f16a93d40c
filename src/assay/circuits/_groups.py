"""Groups of heads whose loss together turns what the model's last states are about."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assay._errors import AssayError
from assay._given import checked
from assay.circuits._parameters import check_choice, is_whole, shown
from assay.circuits._run import wiring_of
from assay.circuits._ships import Without, without_head
from assay.engine import Engine, Head, batches, tensors
from assay.subjects import Subject
from assay.tasks import Split


@dataclass(frozen=True)
class HeadGroup:
    """Heads in the order in which a greedy search took them; `angles[i]` is that of the first i + 1, in radians."""

    heads: tuple[Head, ...]
    angles: tuple[float, ...]


@checked
def head_group(subject: Subject, split: Split, size: int, *, rank: int = 1, without: Without = "uniform") -> HeadGroup:
    """The heads whose loss together turns the last states most: greedily, one more at a time.

    The states are those before the unembedding, at scored predictions (prediction, width). The angle of a group is the
    largest principal angle between the spans of their first `rank` right singular vectors with all heads and without
    the group, in [0, π/2]. Heads are taken out as `Ships` takes them out. Of two heads of which either is enough,
    neither has an angle of its own: the first of them is found by luck, the second then at once.

    Source: Zhou et al., arXiv 2410.13708 (Sahara). Differences: right singular vectors, which are directions of states;
    their left ones are of prompts, and do not see a change that is the same on all. The angle is that of subspaces, and
    does not see a change of sign. Raises AssayError for a size or a rank that there is not.
    """
    check_choice("way to take a head out", without, get_args(Without))
    engine = Engine(subject)
    heads = list(engine.heads)
    predictions = int((split.kinds >= 0).sum())
    if not is_whole(size) or not 1 <= size <= len(heads):
        raise AssayError(f"head_group(size={shown(size)}): {subject.name!r} has {len(heads)} heads; give 1 to that.")
    if not is_whole(rank) or not 1 <= rank <= min(predictions, wiring_of(engine).width):
        raise AssayError(f"head_group(rank={shown(rank)}): there are {predictions} states; give 1 to at most as many.")
    whole = _directions(_states(engine, split, (), without), rank)
    taken: list[Head] = []
    angles: list[float] = []
    for _ in range(size):
        left = [head for head in heads if head not in taken]
        found = [_angle(whole, _directions(_states(engine, split, (*taken, head), without), rank)) for head in left]
        angles.append(max(found))
        taken.append(left[int(np.argmax(found))])
    return HeadGroup(tuple(taken), tuple(angles))


def _states(engine: Engine, split: Split, heads: Sequence[Head], without: Without) -> Float[Tensor, "prediction width"]:
    """The last states at scored predictions without some heads."""
    norm = wiring_of(engine).norm.module
    found: list[Tensor] = []
    kept: list[Tensor] = []
    hook = norm.register_forward_hook(lambda _, inputs, output: kept.append(output))
    try:
        for _, part in batches(engine, split):
            tokens, valid = tensors(part, engine.subject.device)
            engine.run(tokens, valid, edits=[without_head(head, without) for head in heads], logits=False)
            found.append(kept.pop().reshape(*tokens.shape, -1)[torch.from_numpy(part.kinds >= 0)])
    finally:
        hook.remove()
    return torch.cat(found).double()


def _directions(states: Float[Tensor, "prediction width"], rank: int) -> Float[Tensor, "width rank"]:
    return torch.linalg.svd(states, full_matrices=False).Vh[:rank].T


def _angle(first: Float[Tensor, "width rank"], second: Float[Tensor, "width rank"]) -> float:
    """The largest principal angle: of the least cosine, by its sine, which is exact for small angles."""
    sine = torch.linalg.matrix_norm(second - first @ (first.T @ second), ord=2)
    return float(torch.arcsin(sine.clamp(max=1.0)))
