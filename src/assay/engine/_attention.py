"""One attention function for every architecture that goes through transformers' AttentionInterface.

It calls the model's own eager attention, so that soft-capping, attention sinks, relative biases and masks stay as the
model has them; around that call it reads and edits queries, keys and patterns as the active plan says. The mask
function is registered under the same name: without it transformers passes no mask and a decoder silently stops being
causal.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import AttentionInterface

from assay._errors import AssayError

IMPLEMENTATION = "assay_read_and_edit"

VectorEdit = Callable[[Float[Tensor, "batch position width"]], Float[Tensor, "batch position width"]]
PatternEdit = Callable[
    [Float[Tensor, "batch query key"], Bool[Tensor, "batch query key"]], Float[Tensor, "batch query key"]
]
LayerObserver = Callable[[int, Tensor], None]


@dataclass(frozen=True, order=True)
class Head:
    """One attention head: the layer in order of execution and the (query) head in it, both from 0."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"layer{self.layer}.head{self.head}"


@dataclass(frozen=True)
class Edit:
    """Replace what a head computes by a function of it.

    `queries` and `keys` map (batch, position, width) to the same shape, after biases, rotary positions and
    normalisation, before scaling. With grouped queries every query head gets its own copy of the keys. `pattern` maps
    the attention weights (batch, query, key), and which of them the mask leaves visible, to new weights.
    """

    head: Head
    queries: VectorEdit | None = None
    keys: VectorEdit | None = None
    pattern: PatternEdit | None = None


@dataclass
class Plan:
    """What to do at each attention module in one forward pass, and which modules were met, in order.

    An observer gets the layer and its (edited) queries or keys (batch, head, position, width) or pattern (batch, head,
    query, key) as soon as they are there, so that nobody has to hold all layers at once.
    """

    layers: Mapping[int, int]
    edits: Mapping[int, tuple[Edit, ...]] = field(default_factory=dict)
    on_queries: LayerObserver | None = None
    on_keys: LayerObserver | None = None
    on_pattern: LayerObserver | None = None
    met: list[nn.Module] = field(default_factory=list)

    @property
    def observed(self) -> bool:
        """Whether anything is to be read."""
        return not (self.on_queries is None and self.on_keys is None and self.on_pattern is None)


_active: ContextVar[Plan | None] = ContextVar("assay_plan", default=None)


class _Ungrouped:
    """A view of an attention module whose keys and values have been repeated to one a query head already."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.num_key_value_groups = 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def own_eager_attention(module: nn.Module) -> Callable[..., tuple[Tensor, Tensor]]:
    """The eager attention of the module's architecture. Raises AssayError if it has none."""
    function = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if function is None:
        raise AssayError(
            f"{type(module).__name__} has no eager attention function of its own; this architecture is not supported."
        )
    found: Callable[..., tuple[Tensor, Tensor]] = function
    return found


def _edited(states: Tensor, edits: list[tuple[int, VectorEdit]]) -> Tensor:
    if not edits:
        return states
    states = states.clone()
    for head, function in edits:
        states[:, head] = function(states[:, head])
    return states


def _visible(mask: Tensor | None, pattern: Tensor) -> Tensor:
    if mask is None:
        return torch.ones_like(pattern[:, 0], dtype=torch.bool)
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return seen[:, 0, :, : pattern.shape[-1]].expand_as(pattern[:, 0])


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor]:
    plan = _active.get()
    eager = own_eager_attention(module)
    if plan is None:
        return eager(module, query, key, value, attention_mask, **options)
    plan.met.append(module)
    layer = plan.layers.get(id(module))
    edits = () if layer is None else plan.edits.get(layer, ())
    if layer is None or not (edits or plan.observed):
        return eager(module, query, key, value, attention_mask, **options)

    groups = query.shape[1] // key.shape[1]
    owner: Any = module
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        owner = _Ungrouped(module)
    query = _edited(query, [(edit.head.head, edit.queries) for edit in edits if edit.queries is not None])
    key = _edited(key, [(edit.head.head, edit.keys) for edit in edits if edit.keys is not None])
    if plan.on_queries is not None:
        plan.on_queries(layer, query)
    if plan.on_keys is not None:
        plan.on_keys(layer, key)
    output, pattern = eager(owner, query, key, value, attention_mask, **options)
    pattern_edits = [(edit.head.head, edit.pattern) for edit in edits if edit.pattern is not None]
    if pattern_edits:
        visible = _visible(attention_mask, pattern)
        pattern = pattern.clone()
        for head, function in pattern_edits:
            pattern[:, head] = function(pattern[:, head], visible)
        output = (pattern @ value).transpose(1, 2).contiguous()
    if plan.on_pattern is not None:
        plan.on_pattern(layer, pattern)
    return output, pattern


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)


@contextmanager
def using(model: PreTrainedModel, implementation: str) -> Iterator[None]:
    """Within the block, `model` has another attention implementation; afterwards it is as it was."""
    before = model.config._attn_implementation
    if before != implementation:
        model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        if before != implementation:
            model.set_attn_implementation(before)


@contextmanager
def in_force(model: PreTrainedModel, plan: Plan) -> Iterator[None]:
    """Within the block, `model` computes attention by `plan`."""
    with using(model, IMPLEMENTATION):
        token = _active.set(plan)
        try:
            yield
        finally:
            _active.reset(token)
