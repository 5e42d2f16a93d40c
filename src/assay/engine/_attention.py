"""One attention function for every architecture that goes through transformers' AttentionInterface.

It calls the model's own eager attention, so that soft-capping, attention sinks, relative biases and masks stay as the
model has them; around that call it reads and edits queries, keys, values, patterns and outputs as the active plan
says. The mask function is registered under the same name: without it transformers passes no mask and a decoder
silently stops being causal.
"""

import functools
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import AttentionInterface

from assay._errors import AssayError
from assay.engine._places import BLOCK_STREAMS, HEAD_STREAMS, Head, Place

IMPLEMENTATION = "assay_read_and_edit"

VectorEdit = Callable[[Float[Tensor, "batch position width"]], Float[Tensor, "batch position width"]]
PatternEdit = Callable[
    [Float[Tensor, "batch query key"], Bool[Tensor, "batch query key"]], Float[Tensor, "batch query key"]
]
MapEdit = Callable[
    [Float[Tensor, "batch position width"], Float[Tensor, "batch position given"]],
    Float[Tensor, "batch position given"],
]
LayerObserver = Callable[[int, Tensor], None]
RowObserver = Callable[[int, slice, Tensor, Tensor | None], None]


@dataclass(frozen=True)
class Edit:
    """Replace what a head or a block computes by a function of it.

    At a `Head`: `queries` and `keys` map (batch, position, width) to the same shape, after biases, rotary positions
    and normalisation, before scaling; `values` likewise; `outputs` the head's output before the output projection.
    With grouped queries every query head gets its own copy of keys and values. `pattern` maps the attention weights
    (batch, query, key), and which of them the mask leaves visible, to new weights.

    At a `Block`, all (batch, position, model width): `residual` maps the residual stream that enters it, `attention`
    what its attention adds to that (all heads together, after the output projection), `mlp_input` what enters its MLP
    (behind the norm that stands before it), `mlp` what its MLP gives, and `after` the residual stream that leaves it;
    `middle` maps the residual stream between attention and MLP, for the MLP that reads it and for what is carried on;
    `heads` (batch, position, heads x width) the outputs of all heads side by side, before the output projection.
    `mlp_map` maps what enters the MLP and what the MLP gives to what it is to give; `mlp` is applied on top of that.
    Raises AssayError for a stream that the place does not have.
    """

    place: Place
    queries: VectorEdit | None = None
    keys: VectorEdit | None = None
    values: VectorEdit | None = None
    outputs: VectorEdit | None = None
    pattern: PatternEdit | None = None
    mlp_input: VectorEdit | None = None
    mlp_map: MapEdit | None = None
    mlp: VectorEdit | None = None
    residual: VectorEdit | None = None
    attention: VectorEdit | None = None
    after: VectorEdit | None = None
    heads: VectorEdit | None = None
    middle: VectorEdit | None = None

    def __post_init__(self) -> None:
        own = (*HEAD_STREAMS, "pattern") if isinstance(self.place, Head) else (*BLOCK_STREAMS, "mlp_map")
        for item in fields(self)[1:]:
            if getattr(self, item.name) is not None and item.name not in own:
                what = "head" if isinstance(self.place, Head) else "block"
                raise AssayError(f"Edit({self.place}, {item.name}=...): a {what} has {', '.join(own)}.")


def replaced(name: str, arguments: Sequence[Tensor]) -> Tensor:
    """Of what an edit's function of this name is given, the tensor that its result stands for."""
    return arguments[1] if name == "mlp_map" else arguments[0]


@dataclass
class Masks:
    """The attention masks of a pass in the order in which they were made, and how many keys the rows of each see."""

    made: list[Tensor | None] = field(default_factory=list)
    reaches: list[tuple[Tensor, list[int]]] = field(default_factory=list)

    def reach(self, mask: Tensor | None, queries: int, keys: int) -> list[int]:
        """How many keys, counted from the first, each query sees at most, over the batch."""
        if mask is None:
            return [keys] * queries
        for known, found in self.reaches:
            if known is mask:
                return found
        visible = _seen(mask)[..., :keys].flatten(0, 1).any(dim=0).expand(queries, keys)
        last = (visible * torch.arange(1, keys + 1, device=mask.device)).amax(dim=-1)
        reach: list[int] = torch.where(last == 0, keys, last).tolist()
        self.reaches.append((mask, reach))
        return reach


@dataclass
class Plan:
    """What to do at each attention module in one forward pass, and which modules were met, in order.

    `layers` numbers modules by their id. One whose number is None attends to something else than positions: it is left
    alone and does not count as met. `shapes` are those of queries and keys at the modules that were met.
    An observer of "queries", "keys", "values" or "outputs" gets the layer and (batch, head, position, width), one of
    "patterns" (batch, head, query, key), one of "heads" (batch, position, heads x width), all as edited and as soon as
    they are there, so that nobody has to hold all layers at once. Attention is computed for `rows` queries at a time:
    `on_rows` gets their pattern, cut to the keys that any of them sees, and the same rows of the pattern that the
    queries and keys of `beside` give at that layer (None where it has none).
    In layers that are `scaled`, the architecture scales outputs after attention, and patterns are made to say so.
    Masks that were `made` by another pass on the same tokens are not made again.
    """

    layers: Mapping[int, int | None]
    edits: Mapping[int, tuple[Edit, ...]] = field(default_factory=dict)
    observers: Mapping[str, LayerObserver] = field(default_factory=dict)
    on_rows: RowObserver | None = None
    rows: int = sys.maxsize
    beside: Mapping[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    scaled: frozenset[int] = frozenset()
    met: list[nn.Module] = field(default_factory=list)
    shapes: list[tuple[torch.Size, torch.Size]] = field(default_factory=list)
    masks: Masks = field(default_factory=Masks)
    masks_met: int = 0

    def mask(self, make: Callable[[], Tensor | None]) -> Tensor | None:
        """The next mask of the pass."""
        if self.masks_met == len(self.masks.made):
            self.masks.made.append(make())
        self.masks_met += 1
        return self.masks.made[self.masks_met - 1]


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


def _check_keys(module: nn.Module, query: Tensor, key: Tensor) -> None:
    if key.shape[2] != query.shape[2]:
        raise AssayError(
            f"{type(module).__name__} attends to {key.shape[2]} keys from {query.shape[2]} tokens (compressed keys, or "
            "those of another sequence); an architecture with such layers is not supported."
        )


def _scaled(
    eager: Callable[..., tuple[Tensor, Tensor]], owner: Any, *states: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor]:
    """Eager attention of an architecture that scales each output after attention (an attention sink computed aside).

    `states` are queries, keys, values and mask. A column of ones among the values shows the scale; with it the weights
    are those that make the outputs, and their rows add up to less than one as under any sink.
    """
    query, key, value, mask = states
    assert value is not None
    wide = torch.cat((value, torch.ones_like(value[..., :1])), dim=-1)
    output, pattern = eager(owner, query, key, wide, mask, **options)
    scale = output[..., -1].transpose(1, 2).unsqueeze(-1) / pattern.sum(dim=-1, keepdim=True)
    return output[..., :-1].contiguous(), pattern * scale


def _edited(states: Tensor, edits: tuple[Edit, ...], stream: str, *, heads_at: int = 1) -> Tensor:
    chosen = [(edit.place.head, getattr(edit, stream)) for edit in edits if isinstance(edit.place, Head)]
    chosen = [(head, function) for head, function in chosen if function is not None]
    if not chosen:
        return states
    states = states.clone(memory_format=torch.contiguous_format)
    for head, function in chosen:
        part = states.select(heads_at, head)
        part.copy_(function(part))
    return states


def _side_by_side(output: Tensor, edits: tuple[Edit, ...]) -> Tensor:
    """Outputs of all heads (batch, position, head, width), after an edit of all of them together."""
    for edit in edits:
        if edit.heads is not None:
            output = edit.heads(output.flatten(2).clone()).reshape(output.shape)
    return output


def _seen(mask: Tensor) -> Tensor:
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def _visible(mask: Tensor | None, pattern: Tensor) -> Tensor:
    if mask is None:
        return torch.ones_like(pattern[:, 0], dtype=torch.bool)
    return _seen(mask)[:, 0, :, : pattern.shape[-1]].expand_as(pattern[:, 0])


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    plan = _active.get()
    eager = own_eager_attention(module)
    if plan is None or plan.layers.get(id(module), 0) is None:
        return eager(module, query, key, value, attention_mask, **options)
    plan.met.append(module)
    plan.shapes.append((query.shape, key.shape))
    layer = plan.layers.get(id(module))
    edits = () if layer is None else plan.edits.get(layer, ())
    blocked = plan.on_rows is not None or plan.rows < query.shape[2]
    if layer is None or not (edits or plan.observers or blocked):
        return eager(module, query, key, value, attention_mask, **options)

    _check_keys(module, query, key)
    eager = functools.partial(_scaled, eager) if layer in plan.scaled else eager
    groups = query.shape[1] // key.shape[1]
    owner: Any = module
    of_heads = any(isinstance(edit.place, Head) for edit in edits)
    if groups > 1 and (of_heads or "keys" in plan.observers or "values" in plan.observers):
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        owner = _Ungrouped(module)
    query, key = _edited(query, edits, "queries"), _edited(key, edits, "keys")
    value = _edited(value, edits, "values")
    _observe(plan, layer, queries=query, keys=key, values=value)
    attend = functools.partial(eager, owner)
    other = plan.beside.get(layer)
    pattern: Tensor | None = None
    whole = "patterns" in plan.observers or any(edit.pattern is not None for edit in edits)
    blocks = list(_row_blocks(plan, attention_mask, query.shape[2], key.shape[2])) if blocked else []
    rows_beside: Iterator[Tensor | None] = itertools.repeat(None)
    if other is not None:
        aside = functools.partial(eager, _Ungrouped(module))
        found = _by_rows(aside, (*other, other[1][..., :0]), attention_mask, options, blocks)
        rows_beside = (weights for _, _, weights in found)
    on_rows = plan.on_rows or _unseen
    if blocked and not whole:
        outputs = []
        by_rows = _by_rows(attend, (query, key, value), attention_mask, options, blocks)
        for (rows, part, weights), beside in zip(by_rows, rows_beside, strict=False):
            on_rows(layer, rows, weights, beside)
            outputs.append(part)
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
    else:
        output, pattern = _with_pattern(
            edits, attend(query, key, value, attention_mask, **options), value, attention_mask
        )
        if "patterns" in plan.observers:
            plan.observers["patterns"](layer, pattern)
        for (rows, reach), beside in zip(blocks, rows_beside, strict=False):
            on_rows(layer, rows, pattern[:, :, rows, :reach], beside)
    output = _side_by_side(_edited(output, edits, "outputs", heads_at=2), edits)
    _observe(plan, layer, outputs=output.transpose(1, 2), heads=output.flatten(2))
    return output, pattern


def _observe(plan: Plan, layer: int, **streams: Tensor) -> None:
    for stream, states in streams.items():
        if stream in plan.observers:
            plan.observers[stream](layer, states)


def _unseen(layer: int, rows: slice, pattern: Tensor, beside: Tensor | None) -> None:
    """The observer of rows that nobody observes."""


def _with_pattern(
    edits: tuple[Edit, ...], found: tuple[Tensor, Tensor], value: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Output and pattern of attention, with the pattern's edits in force."""
    chosen = [(edit.place.head, edit.pattern) for edit in edits if isinstance(edit.place, Head)]
    if all(function is None for _, function in chosen):
        return found
    pattern = found[1].clone()
    visible = _visible(mask, pattern)
    for head, function in chosen:
        if function is not None:
            pattern[:, head] = function(pattern[:, head], visible)
    return (pattern @ value).transpose(1, 2).contiguous(), pattern


def _row_blocks(plan: Plan, mask: Tensor | None, queries: int, keys: int) -> Iterator[tuple[slice, int]]:
    """Blocks of queries, each with the number of keys that it reaches."""
    if plan.rows >= queries:
        yield slice(0, queries), keys
        return
    reach = plan.masks.reach(mask, queries, keys)
    for start in range(0, queries, plan.rows):
        stop = min(start + plan.rows, queries)
        yield slice(start, stop), max(reach[start:stop])


def _by_rows(
    attend: Callable[..., tuple[Tensor, Tensor]],
    states: tuple[Tensor, Tensor, Tensor],
    mask: Tensor | None,
    options: Mapping[str, Any],
    blocks: Iterable[tuple[slice, int]],
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """The model's own attention, a block of queries at a time and over the keys that the block sees."""
    query, key, value = (state.contiguous() for state in states)
    queries, keys = query.shape[2], key.shape[2]
    for rows, reach in blocks:
        here = {
            name: option[..., rows, :reach]
            if isinstance(option, Tensor) and option.shape[-2:] == (queries, keys)
            else option
            for name, option in options.items()
        }
        part = None if mask is None else mask[..., rows if mask.shape[-2] == queries else slice(None), :reach]
        output, pattern = attend(query[:, :, rows], key[:, :, :reach], value[:, :, :reach], part, **here)
        yield rows, output, pattern


def _mask(*given: Any, **options: Any) -> Tensor | None:
    plan = _active.get()
    make = functools.partial(eager_mask, *given, **options)
    return make() if plan is None else plan.mask(make)


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, _mask)


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
