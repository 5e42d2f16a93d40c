"""The k largest numbers of every row, exactly and faster than by torch's own selection where rows are long."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_GROUP = 8
"""Members of a group. Groups of 8 won at 1,024 features already, where groups of 16 did not."""


def largest_of_rows(
    values: Float[Tensor, "row feature"], k: int
) -> tuple[Float[Tensor, "row k"], Int[Tensor, "row k"]]:
    """The `k` largest values of each row and where they are, in no order; of equal values any may be chosen.

    On a CPU in two steps: maxima of groups, then the members of the k groups with the largest. A value that is among
    the k largest is in one of those groups, for each group before it holds a value that is no smaller.
    """
    rows, features = values.shape
    groups = features // _GROUP
    # With few groups to choose from, the first step is no less work than the whole.
    if values.device.type != "cpu" or features % _GROUP or groups < 8 * k:
        found = torch.topk(values, k, dim=1, sorted=False)
        return found.values, found.indices
    # Groups are strided: their maxima are then taken across rows of memory, which is several times as fast as within.
    grouped = values.view(rows, _GROUP, groups)
    best = torch.topk(grouped.amax(dim=1), k, dim=1, sorted=False).indices
    members = (best[:, None, :] + torch.arange(_GROUP, device=values.device)[:, None] * groups).view(rows, -1)
    chosen = torch.topk(values.gather(1, members), k, dim=1, sorted=False)
    return chosen.values, members.gather(1, chosen.indices)
