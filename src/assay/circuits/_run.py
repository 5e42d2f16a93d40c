"""A subject in which every edge outside a circuit carries something else: one pass for all edges."""

import functools
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay._errors import AssayError
from assay.circuits._wiring import Layer, Wiring, near, with_first
from assay.engine import Engine, Run, instead
from assay.engine._frozen import frozen
from assay.engine._kernels import product, using_kernels
from assay.subjects import Subject

Found = TypeVar("Found")

BUDGET = 256_000_000
"""Bytes of what senders add that a pass holds at a time, on a CPU."""

SENDERS = ("heads", "mlp")
INPUTS = ("attention_input", "mlp_input")
PARTS = (*SENDERS, *INPUTS, "projected")
"""What a trace may hold, layer by layer."""


@dataclass
class Trace:
    """What every sender wrote in a pass, and what entered the norms, in shapes (batch or 1, position or 1, …).

    `embeddings` (…, width) enters the first block. By layer: `heads` (…, heads x width of a value), what the output
    projection takes in (where a norm follows it, divided by what this divides by); `mlp` (…, width), what the MLP
    adds; `attention_input` and `mlp_input`, the residual stream at the norms before them; `projected`, what the
    projections gave. `final` is the residual stream at the last norm.
    """

    embeddings: Tensor = field(default_factory=lambda: torch.empty(0))
    heads: dict[int, Tensor] = field(default_factory=dict)
    mlp: dict[int, Tensor] = field(default_factory=dict)
    attention_input: dict[int, Tensor] = field(default_factory=dict)
    mlp_input: dict[int, Tensor] = field(default_factory=dict)
    projected: dict[int, dict[int, Tensor]] = field(default_factory=dict)
    final: Tensor = field(default_factory=lambda: torch.empty(0))

    def rows(self, chosen: slice) -> "Trace":
        """That of a part of the batch; what is the same for all sequences stays whole."""

        def cut(tensor: Tensor) -> Tensor:
            return tensor if len(tensor) == 1 else tensor[chosen]

        return self._each(cut)

    def detached(self) -> "Trace":
        """That without gradients."""
        return self._each(Tensor.detach)

    def first(self, positions: int) -> "Trace":
        """That of the first positions."""
        return self._each(lambda tensor: tensor[:, :positions])

    def within(self, positions: slice) -> "Trace":
        """That of some positions; what is the same at all of them stays whole."""
        return self._each(lambda tensor: tensor if tensor.shape[1] == 1 else tensor[:, positions])

    def senders_only(self, function: Callable[[Tensor], Tensor]) -> "Trace":
        """A function of what every sender writes; what entered the norms is left out."""
        return Trace(
            function(self.embeddings),
            {layer: function(tensor) for layer, tensor in self.heads.items()},
            {layer: function(tensor) for layer, tensor in self.mlp.items()},
        )

    def plus(self, other: "Trace") -> "Trace":
        """The sum of what senders write in two traces."""
        return Trace(
            self.embeddings + other.embeddings,
            {layer: tensor + other.heads[layer] for layer, tensor in self.heads.items()},
            {layer: tensor + other.mlp[layer] for layer, tensor in self.mlp.items()},
        )

    def _each(self, function: Callable[[Tensor], Tensor]) -> "Trace":
        return Trace(
            function(self.embeddings),
            **{
                name: {layer: function(tensor) for layer, tensor in getattr(self, name).items()}
                for name in ("heads", "mlp", "attention_input", "mlp_input")
            },
            projected={
                layer: {place: function(tensor) for place, tensor in given.items()}
                for layer, given in self.projected.items()
            },
            final=function(self.final),
        )


def traced(
    wiring: Wiring,
    tokens: Int[Tensor, "batch position"],
    valid: Int[Tensor, "batch position"],
    parts: Collection[str] = PARTS,
) -> Trace:
    """The trace of the subject's own pass on some tokens, with some of its parts."""
    trace = Trace()
    with ExitStack() as stack, torch.inference_mode():
        keep(stack, wiring, trace, tokens.shape, parts)
        wiring.hidden(tokens, valid)
    return trace


def keep(stack: ExitStack, wiring: Wiring, trace: Trace, shape: torch.Size, parts: Collection[str] = PARTS) -> None:
    """Until the stack is closed, a pass on tokens of a shape puts some parts of its trace into `trace`."""

    def entering(module: nn.Module, put: Callable[[Tensor], None]) -> None:
        def hook(_: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
            put(first_of(inputs, options).reshape(*shape, -1))

        stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)

    def leaving(module: nn.Module, put: Callable[[Tensor], None]) -> None:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            found: Tensor = output[0] if isinstance(output, tuple) else output
            put(found.reshape(*shape, -1))

        stack.callback(module.register_forward_hook(hook).remove)

    entering(wiring.blocks[0], functools.partial(setattr, trace, "embeddings"))
    entering(wiring.norm.module, functools.partial(setattr, trace, "final"))
    for number, layer in enumerate(wiring.layers):
        if "heads" in parts:
            entering(layer.output, functools.partial(_heads_into, trace.heads, number, layer))
        if "attention_input" in parts:
            entering(layer.norm.place, functools.partial(trace.attention_input.__setitem__, number))
        if "mlp_input" in parts:
            entering(layer.mlp_norm.place, functools.partial(trace.mlp_input.__setitem__, number))
        if "projected" in parts:
            trace.projected[number] = {}
            for place, module in enumerate(layer.projections):
                leaving(module, functools.partial(trace.projected[number].__setitem__, place))
        if "mlp" in parts:
            leaving(layer.mlp, functools.partial(_scaled_into, trace.mlp, number, layer.mlp_scale))


def _heads_into(into: dict[int, Tensor], number: int, layer: Layer, given: Tensor) -> None:
    into[number] = layer.heads(given)


def _scaled_into(into: dict[int, Tensor], number: int, scale: float, found: Tensor) -> None:
    into[number] = found if scale == 1 else found * scale


def constant(wiring: Wiring, trace: Trace) -> Trace:
    """The trace of a run that never was: its senders write what `trace` says, and the norms take in their sums.

    Gradients go to what they write, where that asks for them (freeze the model then).
    """
    stream = trace.embeddings
    found = replace(trace, attention_input={}, mlp_input={}, projected={})
    with torch.set_grad_enabled(torch.is_grad_enabled() and stream.requires_grad):
        for number, layer in enumerate(wiring.layers):
            found.attention_input[number] = stream
            normed = layer.norm.module(stream)
            found.projected[number] = {place: module(normed) for place, module in enumerate(layer.projections)}
            attended = stream + trace.heads[number] @ layer.output_weight
            if layer.output_bias is not None:
                attended = attended + layer.output_bias
            found.mlp_input[number] = stream if wiring.graph.parallel else attended
            stream = attended + trace.mlp[number]
    found.final = stream
    return found


def differences(
    wiring: Wiring, trace: Trace, reference: Trace, senders: Sequence[int] | None = None
) -> Float[Tensor, "sender batch position width"]:
    """What every sender (or those given, ascending) writes more in one trace than in the other."""
    graph = wiring.graph
    chosen = range(len(graph.senders)) if senders is None else senders
    place = {sender: index for index, sender in enumerate(chosen)}
    first = trace.embeddings - reference.embeddings
    found = first.new_empty((len(place), *first.shape))
    if 0 in place:
        found[place[0]] = first
    for number, layer in enumerate(wiring.layers):
        heads = [head for head in range(graph.heads) if graph.sender(number, head) in place]
        if heads:
            change = trace.heads[number] - reference.heads[number]
            _write_heads(graph.heads, layer, change, heads, found, place[graph.sender(number, heads[0])])
        if graph.sender(number) in place:
            found[place[graph.sender(number)]] = trace.mlp[number] - reference.mlp[number]
    return found


def _write_heads(  # noqa: PLR0917
    count: int, layer: Layer, change: Tensor, heads: Sequence[int], into: Tensor, start: int
) -> None:
    """What each of some heads adds, from how their outputs changed (batch, position, heads x width)."""
    weight = layer.output_weight.unflatten(0, (count, -1))
    parts = change.unflatten(-1, (count, -1))
    rows = into[start : start + len(heads)].flatten(1, 2)
    for place, head in enumerate(heads):
        torch.mm(parts[:, :, head].flatten(0, 1), weight[head], out=rows[place])


def run_circuit(  # noqa: PLR0917
    engine: Engine,
    wiring: Wiring,
    kept: Bool[np.ndarray, "sender receiver"],
    reference: Trace,
    tokens: Int[Tensor, "batch position"],
    valid: Int[Tensor, "batch position"],
) -> Run:
    """A pass in which every edge outside `kept` carries what its sender wrote in `reference`.

    A receiver takes in x'_r plus the sum, over the edges that it keeps, of what their senders write more than in the
    reference. Senders that nobody hears are not computed: give it edges on paths (`Graph.pruned`). The result has no
    logits; `engine.logits` makes them.
    """
    return Pass(wiring, kept, reference, tokens).run(lambda: engine.plainly(tokens, valid))


def hidden_of_circuit(
    wiring: Wiring,
    kept: Bool[np.ndarray, "sender receiver"],
    reference: Trace,
    tokens: Int[Tensor, "batch position"],
    valid: Int[Tensor, "batch position"],
) -> Float[Tensor, "batch position width"]:
    """The final hidden states of `run_circuit`."""
    return Pass(wiring, kept, reference, tokens).run(lambda: wiring.hidden(tokens, valid))


class Pass:
    """What one pass of a circuit keeps: what its senders write more than in the reference, as it becomes known.

    Up to where a batch first differs from the reference all senders write what they write there, and all receivers
    take it in: decoders look back alone. So nothing is kept, projected or thought before `first`.
    """

    def __init__(
        self, wiring: Wiring, kept: Bool[np.ndarray, "sender receiver"], reference: Trace, tokens: Tensor
    ) -> None:
        self.wiring, self.graph, self.reference = wiring, wiring.graph, reference
        self.shape = tokens.shape
        self.senders = np.flatnonzero(kept.any(axis=1))
        self.heard = [np.flatnonzero(row).tolist() for row in kept[self.senders].T]
        self.place = {int(sender): index for index, sender in enumerate(self.senders)}
        self.first = 0
        self.more = torch.empty(0)

    def run(self, compute: Callable[[], Found]) -> Found:
        layers = self.wiring.layers
        with ExitStack() as stack, self.mode():
            first = self.wiring.blocks[0].register_forward_pre_hook(self._begin, with_kwargs=True)
            stack.callback(first.remove)
            for number, layer in enumerate(layers):
                self._attend(stack, number, layer)
                self._think(stack, number, layer)
            final = self.wiring.norm.module
            own = final.forward

            def last(*_: Any, **__: Any) -> Any:
                return own(self._whole(self._input(self.graph.logits, self.reference.final), self.reference.final))

            stack.enter_context(instead(final, last))
            stack.enter_context(using_kernels(self.wiring.kernels))
            return compute()

    def mode(self) -> AbstractContextManager[object]:
        """In what it runs."""
        return torch.inference_mode()

    def product(self, inputs: Tensor, weight: Tensor) -> Tensor:
        """inputs (…, in) times the transpose of weight (out, in)."""
        return product(inputs, weight)

    def write_heads(self, number: int, layer: Layer, heads: Sequence[int], change: Tensor) -> None:
        """Take in what some heads of a layer write more, from how their outputs changed."""
        start = self.place[self.graph.sender(number, heads[0])]
        _write_heads(self.graph.heads, layer, change, heads, self.more, start)

    def write_mlp(self, number: int, added: Tensor) -> None:
        """Take in what the MLP of a layer writes."""
        torch.sub(added, self._part(self.reference.mlp[number]), out=self.more[self.place[self.graph.sender(number)]])

    def _begin(self, _: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        self.start(first_of(inputs, options).reshape(*self.shape, self.wiring.width))

    def start(self, stream: Tensor) -> None:
        """Take in what enters the first block."""
        more = stream - self.reference.embeddings
        different = (more != 0).any(dim=-1).any(dim=0)
        # Where they differ nowhere, one position is left: not all modules take none.
        self.first = int(different.int().argmax()) if bool(different.any()) else self.shape[1] - 1
        self.more = stream.new_empty((len(self.senders), *more[:, self.first :].shape))
        if 0 in self.place:
            self.more[self.place[0]] = more[:, self.first :]

    def _part(self, tensor: Tensor) -> Tensor:
        """What there is of a reference from `first` on."""
        return tensor if tensor.shape[1] == 1 else tensor[:, self.first :]

    def _whole(self, part: Float[Tensor, "batch rest width"], before: Tensor) -> Float[Tensor, "batch position width"]:
        """What there is from `first` on, and `before` in front of it."""
        if not self.first:
            return part
        found = before.expand(*self.shape, part.shape[-1]).clone()
        found[:, self.first :] = part
        return found

    def _input(self, receiver: int, reference: Tensor) -> Tensor:
        """What a receiver takes in, from `first` on."""
        return self.inputs([self.heard[receiver]], reference)[0]

    def inputs(self, heard: Sequence[Sequence[int]], reference: Tensor) -> Float[Tensor, "group batch rest width"]:
        """What receivers take in that keep some senders each, by their places in `more`, from `first` on."""
        reference = self._part(reference)
        last = max((one[-1] + 1 for one in heard if one), default=0)
        if sum(map(len, heard)) <= last // 2 + len(heard):
            found = reference.expand(len(heard), *self.more.shape[1:]).clone()
            for into, senders in zip(found, heard, strict=True):
                for sender in senders:
                    into.add_(self.more[sender])
            return found
        kept = np.zeros((len(heard), last), dtype=np.float32)
        for row, senders in zip(kept, heard, strict=True):
            row[list(senders)] = 1
        sums = torch.from_numpy(kept).to(self.more) @ self.more[:last].flatten(1)
        return sums.view(len(heard), *self.more.shape[1:]) + reference

    def _attend(self, stack: ExitStack, number: int, layer: Layer) -> None:
        """Attention of a layer on what its receivers take in; left out where none of its heads is heard."""
        heads = [head for head in range(self.graph.heads) if self.graph.sender(number, head) in self.place]
        if not heads:
            zeros = self._like(layer.attention_gives)
            stack.enter_context(instead(layer.attention, lambda *_, **__: zeros))
            return
        projected: dict[int, Tensor] = {}

        def project(place: int) -> Any:
            def forward(given: Tensor, *_: Any) -> Tensor:
                if not projected:
                    projected.update(enumerate(self._projected(number, layer)))
                found = projected[place]
                return found.reshape(*given.shape[:-1], found.shape[-1])

            return forward

        for place, module in enumerate(layer.projections):
            stack.enter_context(instead(module, project(place)))

        def give(outputs: Tensor, *_: Any) -> Tensor:
            own = layer.heads(outputs.reshape(*self.shape, -1))
            self.write_heads(number, layer, heads, self._part(own) - self._part(self.reference.heads[number]))
            return outputs.new_zeros(()).expand(*outputs.shape[:-1], self.wiring.width)

        stack.enter_context(instead(layer.output, give))

    def _projected(self, number: int, layer: Layer) -> list[Tensor]:
        """What the projections give, receiver by receiver; where nothing is kept, what they gave in the reference."""
        given = self.reference.projected[number]
        found = [given[place].expand(*self.shape, -1).clone() for place in range(len(given))]
        reading = self.graph.reading(number)
        heard = self.heard[reading]
        # Receivers that keep the same senders take in the same.
        groups = {tuple(senders): row for row, senders in enumerate(dict.fromkeys(map(tuple, filter(None, heard))))}
        if not groups:
            return found
        inputs = layer.norm.module(self.inputs(list(groups), self.reference.attention_input[number]))
        start = 0
        for kind, stream in enumerate(layer.streams):
            own = heard[start : start + len(stream.columns)]
            start += len(own)
            weight, bias = layer.weight(kind), layer.bias(kind)
            for senders, row in groups.items():
                chosen = [place for place, one in enumerate(own) if tuple(one) == senders]
                if chosen:
                    part = slice(chosen[0], chosen[-1] + 1) if len(chosen) == chosen[-1] + 1 - chosen[0] else chosen
                    values = self.product(inputs[row], weight[part].flatten(0, 1)).unflatten(-1, (len(chosen), -1))
                    into = self._part(found[stream.projection])
                    stream.put(into, part, values if bias is None else values + bias[part])
        return found

    def _think(self, stack: ExitStack, number: int, layer: Layer) -> None:
        """The MLP of a layer on what it takes in; left out where it is not heard."""
        sender = self.graph.sender(number)
        heard = sender in self.place

        apart = False

        def before(_: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
            nonlocal apart
            given = layer.mlp_norm.module(self._input(self.graph.mlp(number), self.reference.mlp_input[number]))
            own = first_of(inputs, options)
            # A module that takes in the stream and nothing else, at every position by itself, can be given a part.
            apart = layer.entry is layer.mlp and own.shape[:-1] == self.shape and len(inputs) + len(options) == 1
            return with_given(inputs, options, given if apart else self._whole(given, given.new_zeros(())))

        def after(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
            added: Tensor = output[0] if isinstance(output, tuple) else output
            added = added if apart else self._part(added.reshape(*self.shape, -1))
            added = added if layer.mlp_scale == 1 else added * layer.mlp_scale
            self.write_mlp(number, added)
            # What it gives back is read by nobody, but has to be of the form that the block expects.
            return self._like(output) if apart else output

        if heard:
            stack.callback(layer.entry.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(layer.mlp.register_forward_hook(after).remove)
        else:
            zeros = self._like(layer.mlp_gives)
            stack.enter_context(instead(layer.mlp, lambda given, *_, **__: with_first(zeros, _zeros(given, zeros))))

    def _like(self, output: Any) -> Any:
        """What a module gives in form, with zeros in it."""
        first = output[0] if isinstance(output, tuple) else output
        zeros = first.new_zeros(()).expand(*self.shape, first.shape[-1])
        return with_first(output, zeros)


def _zeros(given: Tensor, like: Any) -> Tensor:
    """Zeros of a module's own width, for as many vectors as it was given."""
    first: Tensor = like[0] if isinstance(like, tuple) else like
    return first.new_zeros(()).expand(*given.shape[:-1], first.shape[-1])


def first_of(inputs: tuple[Any, ...], options: Mapping[str, Any]) -> Tensor:
    found: Tensor = inputs[0] if inputs else next(value for value in options.values() if isinstance(value, Tensor))
    return found


def with_given(
    inputs: tuple[Any, ...], options: Mapping[str, Any], given: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a module is called with, another tensor in the place of the first."""
    own = first_of(inputs, options)
    given = given.reshape(own.shape) if given.numel() == own.numel() else given
    if inputs:
        return (given, *inputs[1:]), dict(options)
    return inputs, {**options, next(name for name in options if options[name] is own): given}


def resume_at(stack: ExitStack, wiring: Wiring, number: int, stream: Tensor) -> None:
    """Until the stack is closed, blocks below a layer are left out: `stream` enters it (where blocks can be left)."""
    if wiring.resumes:
        for layer, block in zip(wiring.layers[:number], wiring.blocks, strict=False):
            given = with_first(layer.block_gives, stream)
            stack.enter_context(instead(block, lambda *_, given=given, **__: given))


def rows_at_a_time(wiring: Wiring, senders: int, positions: int, element: int) -> int:
    """How many sequences a pass may take for what so many senders write to fit into `BUDGET`."""
    return max(1, BUDGET // max(1, senders * positions * wiring.width * element))


_KNOWN: "weakref.WeakKeyDictionary[nn.Module, tuple[object, Wiring]]" = weakref.WeakKeyDictionary()


def wiring_of(engine: Engine) -> Wiring:
    """The wiring of an engine's subject, known from before unless its weights have changed.

    Raises AssayError, as `Wiring.of` does, and if the circuit of all edges is not the subject or that of none not its
    counterfactual run, to twice `near` of the spread of the logits.
    """
    return _known_or_found(engine.subject, lambda: engine)


def wired(subject: Subject) -> Wiring:
    """As `wiring_of`, of a subject: an engine, whose probes are a dozen passes, is made only if it is not known."""
    return _known_or_found(subject, lambda: Engine(subject))


def _known_or_found(subject: Subject, engine_of: Callable[[], Engine]) -> Wiring:
    model = subject.model
    now = (
        subject.objective,
        *((tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in model.parameters()),
    )
    known = _KNOWN.get(model)
    if known is None or known[0] != now:
        engine = engine_of()
        with frozen(model):
            wiring = Wiring.of(engine)
            _check(engine, wiring)
        known = now, wiring
        _KNOWN[model] = known
    return known[1]


def _check(engine: Engine, wiring: Wiring) -> None:
    generator = torch.Generator().manual_seed(1)
    tokens, others = (
        torch.randint(engine.subject.vocabulary, (1, min(5, engine.subject.positions or 5)), generator=generator).to(
            engine.subject.device
        )
        for _ in range(2)
    )
    others[:, : tokens.shape[1] - 3] = tokens[:, : tokens.shape[1] - 3]  # nothing is computed where inputs are the same
    valid = torch.ones_like(tokens)
    reference = traced(wiring, others, valid)
    for kept, on, what in (
        (wiring.graph.exists, tokens, "all edges does not give the subject's logits"),
        (np.zeros_like(wiring.graph.exists), others, "no edges does not give those of the counterfactual run"),
    ):
        run = run_circuit(engine, wiring, kept, reference, tokens, valid)
        found, expected = engine.logits(run, slice(None)), engine.subject(on, valid)
        off = float((found - expected).abs().max() / expected.std())
        if not off <= 2 * near(expected.dtype):
            who = f"{type(engine.subject.model).__name__} ({engine.subject.name!r})"
            raise AssayError(
                f"{who}: circuits of edges cannot be run in this architecture: a circuit of {what} "
                f"(off by {off:.1e} of their spread)."
            )
