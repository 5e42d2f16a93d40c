"""Where a decoder's residual stream is written and read: found in one pass, and checked by number."""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from assay._errors import AssayError
from assay.circuits._graph import Graph
from assay.circuits._kernels import kernels_of
from assay.engine import Engine
from assay.engine._kernels import product, using_kernels
from assay.subjects import Subject

NEAR, NEAR_IN_HALF = 1e-4, 0.05
"""How far sums may be off, as a share of the spread of what they have to be; and where weights have 16 bits."""

STREAMS = ("queries", "keys", "values")

_LINEAR = (nn.Linear, Conv1D)

_PROJECTIONS = ((1, 1), (3, 1), (2, 2), (2, 3))
"""How many linear maps of an attention module read the stream, and how many do not: one or three for queries, keys and
values, and the output's; or one for queries and one for what keys and values are made of, and then those that make keys
and values of it, the output's, and maybe one that makes queries."""


@dataclass(frozen=True)
class Norm:
    """A norm of vectors x (…, width): y = weight · x̂ + bias, with x̂ = (x - mean x) / σ if `centred`, else x / σ.

    `weight` is None where the module is no such norm; then its derivative is taken by autograd. Where σ is `held`, its
    derivative is that at a constant σ. Where there is no norm, y = x, and `reader` is the module that takes x in.
    """

    module: nn.Module
    centred: bool
    weight: Tensor | None
    eps: float
    held: bool = False
    reader: nn.Module | None = None

    @classmethod
    def none(cls, reader: nn.Module, width: int, like: Tensor) -> "Norm":
        """No norm in front of a module."""
        ones = torch.ones(width, dtype=like.dtype, device=like.device)
        return cls(nn.Identity(), centred=False, weight=ones, eps=0.0, held=True, reader=reader)

    @property
    def place(self) -> nn.Module:
        """The module that takes in x."""
        return self.module if self.reader is None else self.reader

    @classmethod
    def of(cls, module: nn.Module, width: int, like: Tensor) -> "Norm":
        """The norm that a module computes, found by trying what it could be.

        On vectors of ordinary size, which tell what is divided by what, and on tiny ones, which tell `eps`. The
        weight is kept in the dtype and on the device of `like`, the model's.
        """
        whole = like.dtype in (torch.float32, torch.float64)
        exact = module if whole else copy.deepcopy(module).float()
        generator = torch.Generator().manual_seed(0)
        ordinary = 3 * torch.randn(4, width, generator=generator) + 1
        x = torch.cat((ordinary, ordinary / 1_000)).to(like.device, like.dtype if whole else torch.float32)
        given: Tensor | None = getattr(exact, "weight", None)
        added: Tensor | float | None = getattr(exact, "bias", None)
        added = 0.0 if added is None else added
        weights = [torch.ones_like(x[0])]
        if given is not None:
            weights = [given.detach(), 1 + given.detach()] if given.shape == (width,) else []
        with torch.no_grad():
            found: Tensor = exact(x)
            for centred in (True, False):
                for weight in weights:
                    norm = cls(exact, centred, weight, 0.0)
                    norm = replace(norm, eps=norm._eps(x, found - added))
                    off = (weight * norm.unit(x)[0] + added - found).abs().amax(dim=1)
                    if bool((off <= 1e-5 * found.abs().amax(dim=1)).all()):
                        return cls(module, centred, weight.to(like.dtype), norm.eps)
        return cls(module, centred=False, weight=None, eps=0.0)

    def _eps(self, x: Float[Tensor, "row width"], found: Float[Tensor, "row width"]) -> float:
        """Its `eps`: as it says, or what explains what it gave (without a bias)."""
        for name in _EPS:
            value = getattr(self.module, name, None)
            if isinstance(value, int | float):
                return float(value)
        assert self.weight is not None
        centre = x - x.mean(dim=-1, keepdim=True) if self.centred else x
        tiny = slice(len(x) // 2, len(x))
        share = (self.weight * centre)[tiny].square().sum(dim=-1) / found[tiny].square().sum(dim=-1)
        return max(0.0, float((share - centre[tiny].square().mean(dim=-1)).median()))

    def unit(self, x: Float[Tensor, "*rows width"]) -> tuple[Float[Tensor, "*rows width"], Float[Tensor, "*rows 1"]]:
        """x̂, and 1 / σ."""
        if self.reader is not None:
            return x, torch.ones_like(x[..., :1])
        centre = x - x.mean(dim=-1, keepdim=True) if self.centred else x
        inverse = (centre.square().mean(dim=-1, keepdim=True) + self.eps).rsqrt()
        return centre * inverse, inverse

    def pulled_back(
        self, x: Float[Tensor, "row width"], gradients: Float[Tensor, "receiver row width"]
    ) -> Float[Tensor, "receiver row width"]:
        """Gradients with respect to x from those with respect to y, by autograd."""
        with torch.inference_mode(mode=False), torch.enable_grad():
            copies = x.detach().clone().expand(len(gradients), *x.shape).clone().requires_grad_(True)
            return torch.autograd.grad(self.module(copies), copies, gradients.clone())[0]


_EPS = ("eps", "variance_epsilon", "epsilon")


@dataclass(frozen=True)
class Stream:
    """The queries, keys or values of a layer: which columns of a projection's output they are."""

    projection: int
    columns: Int[Tensor, "count width"]

    @cached_property
    def chosen(self) -> slice | Int[Tensor, " column"]:
        """The columns, one behind the other; a slice where they are that in the projection, too, which saves copies."""
        flat = self.columns.flatten()
        start, end = int(flat[0]), int(flat[-1]) + 1
        if torch.equal(flat, torch.arange(start, end, device=flat.device)):
            return slice(start, end)
        return flat

    def of(self, projected: Float[Tensor, "*rows output"]) -> Float[Tensor, "*rows count width"]:
        """Its part of what the projection gives."""
        chosen = self.chosen if isinstance(self.chosen, slice) else self.chosen.to(projected.device)
        found: Tensor = projected[..., chosen].unflatten(-1, self.columns.shape)
        return found

    def put(
        self,
        projected: Float[Tensor, "*rows output"],
        chosen: slice | Sequence[int],
        values: Float[Tensor, "*rows chosen width"],
    ) -> None:
        """Put values in the place of what the projection gives for some of its heads or groups."""
        if isinstance(self.chosen, slice):
            self.of(projected)[..., chosen, :] = values
        else:
            projected[..., self.columns[chosen].flatten().to(projected.device)] = values.flatten(-2)

    def put_rows(
        self,
        projected: Float[Tensor, "row *rows output"],
        rows: Int[np.ndarray, " chosen"],
        one: int,
        values: Float[Tensor, "chosen *rows width"],
    ) -> None:
        """Put values in the place of what the projection gives for one head or group in some rows."""
        if isinstance(self.chosen, slice):
            start = self.chosen.start + one * self.columns.shape[1]
            projected[..., start : start + self.columns.shape[1]][rows] = values
        else:
            projected[torch.from_numpy(rows)[:, None], ..., self.columns[one].to(projected.device)] = values.movedim(
                -1, 1
            )


@dataclass(frozen=True)
class Layer:
    """The modules of one block that read and write the residual stream.

    `projections` read `norm`; what `output` gives is added, `scale` times; `entry` is what reads `mlp_norm` and `mlp`
    what gives back what the MLP adds, `mlp_scale` times (one module, as a rule). What the block, `attention` and
    `mlp` gave in a pass tells in which form they give it, so that they can be left out.

    Where `after` is there, a norm of what `output` gives is what is added. It is y = weight · x̂, and x̂ = x / σ with the
    σ of all heads: a head adds its part of the sum, divided by this σ. `mlp_after` is such a norm of the MLP, whose
    module `mlp` then is.
    """

    attention: nn.Module
    norm: Norm
    projections: tuple[nn.Module, ...]
    streams: tuple[Stream, Stream, Stream]
    output: nn.Module
    scale: float
    mlp_norm: Norm
    entry: nn.Module
    mlp: nn.Module
    mlp_scale: float
    block_gives: Any
    attention_gives: Any
    mlp_gives: Any
    after: Norm | None = None
    mlp_after: Norm | None = None

    def weight(self, stream: int) -> Float[Tensor, "count width model"]:
        """The weights of a stream's heads or groups, an output a row."""
        place = self.streams[stream]
        module: Any = self.projections[place.projection]
        stored: Tensor = module.weight.detach()
        # Outputs last, as a stream takes them; a view where it can be one.
        return place.of(stored if isinstance(module, Conv1D) else stored.T).movedim(0, -1)

    def bias(self, stream: int) -> Float[Tensor, "count width"] | None:
        """Their biases."""
        place = self.streams[stream]
        bias: Tensor | None = self.projections[place.projection].bias  # type: ignore[assignment]
        return None if bias is None else place.of(bias.detach())

    @cached_property
    def output_weight(self) -> Float[Tensor, "inputs model"]:
        """The output projection, scaled: what heads add to the residual stream, from what `heads` makes of them.

        Where a norm follows, with its weight, and without what it divides by.
        """
        weight = self._projecting
        if self.after is not None and self.after.weight is not None:
            weight = weight - weight.mean(dim=-1, keepdim=True) if self.after.centred else weight
            weight = weight * self.after.weight
        return weight if self.scale == 1 else weight * self.scale

    @property
    def output_bias(self) -> Float[Tensor, " model"] | None:
        """What attention adds whatever its heads give, scaled."""
        bias: Tensor | None = getattr(self.output if self.after is None else self.after.module, "bias", None)
        return None if bias is None else bias.detach() * self.scale

    def heads(self, inputs: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows inputs"]:
        """What the output projection takes in, divided by what a norm after it divides by."""
        if self.after is None:
            return inputs
        return inputs * self.after.unit(product(inputs, self._projecting.T))[1]

    def attended(self, heads: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows model"]:
        """What attention gives to be added, `scale` times, from what `heads` makes of its heads."""
        added = heads @ self.output_weight
        return (added if self.output_bias is None else added + self.output_bias) / self.scale

    @property
    def _projecting(self) -> Float[Tensor, "inputs model"]:
        stored: Tensor = self.output.weight.detach()  # type: ignore[operator]
        return stored if isinstance(self.output, Conv1D) else stored.T


@dataclass
class _Seen:
    """What a module took and gave in a pass, and when it ended."""

    name: str
    module: nn.Module
    taken: Tensor | None
    given: Tensor | None
    whole: Any
    calls: int = 1


@dataclass(frozen=True)
class Wiring:
    """How the residual stream of one subject is written and read.

    `blocks` are its blocks, `norm` the one before the unembedding `head`, whose logits are taken `logit_scale` times
    and softly capped at `logit_cap` (cap · tanh(logit / cap)), `base` everything up to there. With `resumes`, blocks
    can be left out of a pass. The model itself is not held.
    """

    graph: Graph
    width: int
    blocks: tuple[nn.Module, ...]
    layers: tuple[Layer, ...]
    norm: Norm
    base: nn.Module
    head: nn.Module
    logit_scale: float
    logit_cap: float | None
    resumes: bool
    cached: bool

    @classmethod
    def of(cls, engine: Engine) -> "Wiring":
        """That of an engine's subject.

        Raises AssayError, with the class and the check that failed, for an architecture in which the residual stream
        is not the sum of its senders, or whose parts were not found.
        """
        return _Search(engine).found()

    @cached_property
    def kernels(self) -> dict[nn.Module, Callable[..., Tensor]]:
        """Faster kernels of its modules; gradients pass them."""
        return kernels_of(self.base)

    def logits_of(
        self, hidden: Float[Tensor, "row width"], chosen: Int[Tensor, "row token"]
    ) -> Float[Tensor, "row token"]:
        """The logits of a few tokens a row, from final hidden states."""
        head: Any = self.head
        found = torch.einsum("rw,rtw->rt", hidden, head.weight[chosen])
        if getattr(head, "bias", None) is not None:
            found = found + head.bias[chosen]
        return self._as_given(found)

    def logits(self, hidden: Float[Tensor, "row width"]) -> Float[Tensor, "row token"]:
        """The logits of all tokens, from final hidden states."""
        found: Tensor = self.head(hidden)
        return self._as_given(found)

    def _as_given(self, logits: Tensor) -> Tensor:
        scaled = logits * self.logit_scale
        return scaled if self.logit_cap is None else self.logit_cap * torch.tanh(scaled / self.logit_cap)

    def hidden(
        self, tokens: Int[Tensor, "batch position"], valid: Int[Tensor, "batch position"]
    ) -> Float[Tensor, "batch position width"]:
        """The final hidden states, by the model's own code; with gradients where something asks for them."""
        without_cache = {"use_cache": False} if self.cached else {}
        with using_kernels(self.kernels):
            found: Tensor = self.base(input_ids=tokens, attention_mask=valid, **without_cache)[0]
        return found


class _Search:
    """Finds the wiring of one subject in a pass on a few tokens."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.subject = engine, engine.subject
        self.tokens = _some_tokens(self.subject)
        self.heads = 0

    def found(self) -> Wiring:
        """The wiring. Raises AssayError, as `Wiring.of` says."""
        engine, model = self.engine, self.subject.model
        if model.training:
            self._refuse("it is in training mode, in which no two passes need be equal; call model.eval()")
        if self.subject.objective != "causal":
            self._refuse(f"it is asked for the objective {self.subject.objective!r}, and edges are for causal decoders")
        if len({str(parameter.device) for parameter in model.parameters()}) > 1:
            self._refuse("its weights are on several devices")
        seen, heads = self._watched()
        counts = {len(widths) for widths in heads.values()}
        if len(counts) > 1:
            self._refuse("its layers have different numbers of heads")
        (self.heads,) = counts
        self.width = _size(seen[engine.modules[0]].taken)
        found = [self._layer(seen, layer) for layer in range(engine.layers)]
        layers = tuple(layer for layer, _ in found)
        kinds = {graph for _, graph in found}
        if len(kinds) > 1:
            self._refuse("its layers are not all of one kind")
        graph = kinds.pop()
        joint = self._check_streams(layers, graph)
        graph = replace(graph, joint=joint or any(layer.after is not None for layer in layers))
        body = self._body(seen)
        head, scale, cap = self._head(seen, body)
        return Wiring(
            graph,
            self.width,
            tuple(engine.modules),
            layers,
            self._final_norm(seen, body),
            body.module,
            head,
            scale,
            cap,
            engine.resumes,
            bool(getattr(model.config, "use_cache", False)),
        )

    def _refuse(self, why: str) -> None:
        who = f"{type(self.subject.model).__name__} ({self.subject.name!r})"
        raise AssayError(f"{who}: circuits of edges cannot be found in this architecture: {why}.")

    def _watched(self) -> tuple[dict[nn.Module, _Seen], dict[int, list[int]]]:
        """What every module took and gave on a few tokens, in the order in which they ended; widths of the heads."""
        seen: dict[nn.Module, _Seen] = {}

        def note(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
                first = next((value for value in (*inputs, *options.values()) if isinstance(value, Tensor)), None)
                if module in seen:
                    seen[module].calls += 1
                    return
                seen[module] = _Seen(name, module, first, _first(output), output)

            return hook

        with ExitStack() as stack:
            for name, module in self.subject.model.named_modules():
                stack.callback(module.register_forward_hook(note(name), with_kwargs=True).remove)
            self.subject(self.tokens)
        engine = self.engine
        if len(engine.modules) != engine.layers or any(block not in seen for block in engine.modules):
            self._refuse("its blocks and attention layers do not correspond one to one")
        if any(seen[block].calls > 1 for block in engine.modules):
            self._refuse("a block is used several times in a pass")
        for parent in self.subject.model.modules():
            siblings = [one for one in parent if one in seen] if isinstance(parent, nn.ModuleList) else []
            others = [one for one in siblings if one not in engine.modules]
            if 0 < len(others) < len(siblings):
                names = ", ".join(sorted({type(one).__name__ for one in others}))
                self._refuse(f"among its blocks are {len(others)} blocks without attention ({names})")
        widths: dict[int, list[int]] = {}
        for head in engine.heads:
            widths.setdefault(head.layer, []).append(engine.widths[head.layer])
        return seen, widths

    def _layer(self, seen: dict[nn.Module, _Seen], number: int) -> tuple[Layer, Graph]:
        """The parts of one block, and the graph of a model of such blocks."""
        block, attention = self.engine.modules[number], self.engine.attentions[number]
        where = f"layer {number}"
        entered = seen[block].taken
        linear = [seen[module] for module in attention.modules() if module in seen and _is_linear(module)]
        linear = sorted(linear, key=list(seen.values()).index)
        if not linear or entered is None:
            self._refuse(
                f"no linear projections were met in the attention of {where}; if its weights are quantized, dequantize "
                "them (model.dequantize())"
            )
        read = linear[0].taken
        projections = [one for one in linear if _same(one.taken, read)]
        rest = [one for one in linear if one not in projections]
        if (len(projections), len(rest)) not in _PROJECTIONS or any(one.calls > 1 for one in linear):
            names = ", ".join(one.name.rpartition(".")[2] for one in linear)
            self._refuse(f"the attention of {where} has the projections {names}, not queries, keys, values and output")
        output = rest[-1]
        inside = set(attention.modules())
        if _same(read, entered) and _same(seen[attention].taken, entered):
            norm = Norm.none(attention, self.width, self._like)
        else:
            before = self._giving(seen, block, read, inside, f"what the attention of {where} reads")
            if not _same(before.taken, entered):
                self._refuse(f"what the norm before the attention of {where} takes in is not what enters its block")
            norm = self._norm(before.module)
        mlp = seen.get(self.engine.mlp(number))
        if mlp is None or mlp.given is None:
            self._refuse(f"the MLP of {where} was not met")
        assert mlp is not None
        entry, mlp_norm, read_by_mlp = self._entry(seen, block, inside, mlp, where)
        behind, behind_mlp = self._behind(seen, block, output), self._behind(seen, block, mlp)
        if behind is not None and getattr(output.module, "bias", None) is not None:
            self._refuse(f"a norm follows the output projection of {where}, whose bias is part of no head")
        left = seen[block].given
        attends, adds = behind or output, behind_mlp or mlp
        attended, added = _wide(attends.given, entered), _wide(adds.given, entered)
        x, between, after = _wide(entered, entered), _wide(read_by_mlp, entered), _wide(left, entered)
        parallel = _same(read_by_mlp, entered) or (torch.equal(between, x) and bool(attended.any()))
        if parallel:
            scales = self._scales(after, x, attended, added)
        else:
            scales = [*self._scales(between, x, attended), *self._scales(after, between, added)]
            self._check_sum(between, x + scales[0] * attended, f"the residual stream before the MLP of {where}")
        self._check_sum(after, x + scales[0] * attended + scales[1] * added, f"what leaves {where}")
        streams, graph = self._streams(projections, len(rest) == 3, inside, seen, number)
        one = Layer(
            attention,
            norm,
            tuple(found.module for found in projections),
            streams,
            output.module,
            scales[0],
            mlp_norm,
            entry.module,
            adds.module,
            scales[1],
            seen[block].whole,
            seen[attention].whole,
            adds.whole,
            None if behind is None else self._norm(behind.module),
            None if behind_mlp is None else self._norm(behind_mlp.module),
        )
        if one.after is not None and one.after.weight is None:
            self._refuse(f"what follows the output projection of {where} is no norm that divides by a length")
        return one, replace(graph, parallel=parallel)

    def _behind(self, seen: Mapping[nn.Module, _Seen], block: nn.Module, branch: _Seen) -> _Seen | None:
        """The norm that takes in what a branch of a block gives, if there is one."""
        for module in block.modules():
            one = seen.get(module)
            if one is None or module is branch.module or any(True for _ in module.children()) or _is_linear(module):
                continue
            if _same(one.taken, branch.given) and not _same(one.taken, one.given) and _size(one.given) == self.width:
                return one
        return None

    def _giving(
        self, seen: Mapping[nn.Module, _Seen], block: nn.Module, what: Tensor | None, without: set[nn.Module], text: str
    ) -> _Seen:
        """The module of a block that gives a tensor and did not take it: a norm."""
        for module in block.modules():
            one = seen.get(module)
            if one is None or module in without or module is block or _same(one.taken, what):
                continue
            if _same(one.given, what) and not any(True for _ in module.children()):
                return one
        self._refuse(f"{text} is given by no norm (norms after the branches, or none)")
        raise AssertionError

    def _entry(
        self, seen: Mapping[nn.Module, _Seen], block: nn.Module, inside: set[nn.Module], mlp: _Seen, where: str
    ) -> tuple[_Seen, Norm, Tensor | None]:
        """The module that reads the residual stream for the MLP, the norm that it reads, and what the norm takes in."""
        leaves = [
            one
            for module in block.modules()
            if (one := seen.get(module)) is not None
            and module not in inside
            and not any(True for _ in module.children())
        ]
        norms = [
            one
            for one in leaves
            if not _is_linear(one.module) and not _same(one.taken, one.given) and _size(one.given) == self.width
        ]
        for entry in (mlp, *(one for one in leaves if _is_linear(one.module))) if mlp.calls == 1 else ():
            for norm in norms:
                if _same(norm.given, entry.taken):
                    return entry, self._norm(norm.module), norm.taken
        if mlp.calls == 1 and _size(mlp.taken) == self.width:
            return mlp, Norm.none(mlp.module, self.width, self._like), mlp.taken
        self._refuse(f"what the MLP of {where} reads is given by no norm (norms after the branches, or none)")
        raise AssertionError

    def _norm(self, module: nn.Module) -> Norm:
        return Norm.of(module, self.width, self._like)

    @property
    def _like(self) -> Tensor:
        return next(self.subject.model.parameters())

    def _near(self, found: Tensor, expected: Tensor) -> bool:
        return _off(found, expected) <= near(self.subject.model.dtype)

    def _scales(self, whole: Tensor, before: Tensor, *parts: Tensor) -> list[float]:
        """How many times each part was added to what was before: once, unless least squares find something better."""
        if self._near(whole, before + sum(parts)):
            return [1.0] * len(parts)
        matrix = torch.stack([part.flatten() for part in parts], dim=1)
        found: list[float] = torch.linalg.lstsq(matrix, (whole - before).flatten()[:, None]).solution[:, 0].tolist()
        return found

    def _check_sum(self, found: Tensor, expected: Tensor, what: str) -> None:
        off = _off(found, expected)
        if not off <= near(self.subject.model.dtype):
            self._refuse(f"{what} is not the sum of what was added to it (off by {off:.1e} of its spread)")

    def _streams(
        self, projections: list[_Seen], latent_queries: bool, inside: set[nn.Module], seen: Mapping[nn.Module, _Seen],
        number: int,
    ) -> tuple[tuple[Stream, Stream, Stream], Graph]:  # fmt: skip
        """Which columns are whose, as it seems (`_check_streams` tells), and the graph of layers of that kind."""
        width = self.engine.widths[number]
        outputs = [_size(one.given) for one in projections]
        if len(projections) == 2:
            return self._latent(projections, latent_queries, inside, seen, number)
        if len(projections) == 3:
            groups = outputs[1] // width
            counts = (self.heads, groups, groups)
            if groups * width != outputs[1] or outputs[0] != self.heads * width or self.heads % groups:
                self._refuse(f"layer {number} has projections of widths {outputs} for {self.heads} heads of {width}")
            found = tuple(Stream(place, torch.arange(outputs[place]).view(counts[place], -1)) for place in range(3))
            return found, Graph(self.engine.layers, self.heads, groups)  # type: ignore[return-value]
        rest = outputs[0] // width - self.heads
        if outputs[0] % width or rest < 2 or rest % 2 or self.heads % (rest // 2):
            self._refuse(f"layer {number} projects to {outputs[0]} numbers for {self.heads} heads of {width}")
        groups = rest // 2
        columns = torch.arange(outputs[0]).view(-1, width)
        fed = self._fed((projections[0].module,), [(0, one) for one in columns], number)
        streams = []
        for kind, count in enumerate((self.heads, groups, groups)):
            wanted = torch.eye(count, dtype=torch.bool).repeat_interleave(self.heads // count, dim=1)
            own = [[place for place, one in enumerate(fed) if torch.equal(one[kind], heads)] for heads in wanted]
            if any(len(places) != 1 for places in own):
                self._refuse(f"how layer {number} splits its projection into queries, keys and values was not found")
            streams.append(Stream(0, columns[[places[0] for places in own]]))
        return (streams[0], streams[1], streams[2]), Graph(self.engine.layers, self.heads, groups)

    def _latent(
        self, projections: list[_Seen], latent_queries: bool, inside: set[nn.Module], seen: Mapping[nn.Module, _Seen],
        number: int,
    ) -> tuple[tuple[Stream, Stream, Stream], Graph]:  # fmt: skip
        """The same where a part of one projection is what keys and values are made of: a norm takes that part in."""
        for place, one in enumerate(projections):
            parts = [seen[module].taken for module in inside if module in seen]
            found = next((columns for part in parts if (columns := _columns(part, one.given)) is not None), None)
            if found is None:
                continue
            latent, keys = found
            queries = torch.arange(_size(projections[1 - place].given))
            count = 1 if latent_queries else self.heads
            if len(queries) % count == 0:
                streams = (
                    Stream(1 - place, queries.view(count, -1)),
                    Stream(place, keys[None]),
                    Stream(place, latent[None]),
                )
                graph = Graph(self.engine.layers, self.heads, 1, latent=True, latent_queries=latent_queries)
                return streams, graph
        self._refuse(f"which part of the projections of layer {number} its keys and values are made of was not found")
        raise AssertionError

    def _check_streams(self, layers: tuple[Layer, ...], graph: Graph) -> bool:
        """Whether the columns of a head feed the queries and keys of all heads, through a norm.

        Raises AssayError unless they feed this head alone, or all heads in this way.
        """
        joint = set()
        for number, layer in enumerate(layers):
            fed = self._feeds(layer, number)
            apart, together = (self._expected(layer, graph, joint=joint) for joint in (False, True))
            if not torch.equal(fed, apart) and not torch.equal(fed, together):
                self._refuse(f"a part of the projections of layer {number} feeds other heads than its own")
            joint.add(not torch.equal(fed, apart))
            self._check_outputs(number, layer)
        return True in joint

    def _feeds(self, layer: Layer, number: int) -> Bool[Tensor, "receiver stream head"]:
        """Which heads' queries, keys and values move when the columns of one head or group are moved."""
        columns = [(stream.projection, one) for stream in layer.streams for one in stream.columns]
        return self._fed(layer.projections, columns, number)

    def _expected(self, layer: Layer, graph: Graph, *, joint: bool) -> Bool[Tensor, "receiver stream head"]:
        """Which should move: those of its own heads and no others; if `joint`, of all heads but for values.

        What keys and values are both made of moves both.
        """
        rows = []
        for kind, stream in enumerate(layer.streams):
            count = len(stream.columns)
            mine = torch.eye(count, dtype=torch.bool).repeat_interleave(self.heads // count, dim=1)
            found = torch.zeros(count, len(STREAMS), self.heads, dtype=torch.bool)
            found[:, kind] = True if joint and kind < 2 else mine
            if graph.latent and kind == 2:
                found[:, 1] = mine
            rows.append(found)
        return torch.cat(rows)

    def _fed(
        self, projections: tuple[nn.Module, ...], columns: list[tuple[int, Tensor]], number: int
    ) -> Bool[Tensor, "columns stream head"]:
        """Which heads' queries, keys and values move with some columns (of any number), each of one of the projections.

        A row of a batch each: first none is moved, then all columns in turn.
        """
        tokens = self.tokens[:1].repeat(len(columns) + 1, 1)

        def move(which: int) -> Callable[..., Tensor]:
            def hook(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
                moved = output.clone()
                # A layer that projects to nothing but 0 (its weights were set by hand) is moved by 1.
                largest = output.abs().max()
                largest = largest.where(largest > 0, 1)
                for row, (projection, mine) in enumerate(columns, start=1):
                    if projection == which:
                        rows = moved.view(len(tokens), -1, moved.shape[-1])[row]
                        step = torch.linspace(0.5, 1, len(mine), device=output.device, dtype=output.dtype)
                        rows[:, mine.to(output.device)] += step * largest
                return moved

            return hook

        with ExitStack() as stack:
            for which, module in enumerate(projections):
                stack.callback(module.register_forward_hook(move(which)).remove)
            run = self.engine.run(tokens, read=STREAMS, logits=False)
        found = []
        for name in STREAMS:
            states: Tensor = getattr(run, name)[number]
            # Rows of a batch may differ in rounding; what was moved was moved by half of the largest or more.
            least = max(1e-3, 2 * near(states.dtype)) * states[:1].abs().max()
            found.append(((states[1:] - states[:1]).abs().flatten(2).amax(dim=2) > least).cpu())
        return torch.stack(found, dim=1)

    def _check_outputs(self, number: int, layer: Layer) -> None:
        """Raise AssayError unless the output projection takes in the heads' outputs, one behind the other."""
        taken: list[Tensor] = []
        hook = layer.output.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0].detach()))
        try:
            run = self.engine.run(self.tokens, read=("outputs",), logits=False)
        finally:
            hook.remove()
        outputs = run.outputs[number].transpose(1, 2).flatten(2)
        if taken[0].numel() != outputs.numel() or not self._near(taken[0].reshape(outputs.shape), outputs):
            self._refuse(f"the output projection of layer {number} takes in something else than the heads' outputs")

    def _body(self, seen: Mapping[nn.Module, _Seen]) -> _Seen:
        """Everything up to the final hidden states: the model's body, or what it calls in its place."""
        model, last = self.subject.model, self.engine.modules[-1]
        head = seen.get(model.get_output_embeddings())
        for module in (model.base_model, *model.modules()):
            one = seen.get(module)
            inside = one is not None and module is not model and any(part is last for part in module.modules())
            if one is not None and inside and head is not None and self._read_by(head, one):
                return one
        self._refuse("no body was found whose final hidden states a linear unembedding reads")
        raise AssertionError

    def _read_by(self, head: _Seen, one: _Seen) -> bool:
        """Whether an unembedding reads what a module gives, or that times a number."""
        if _same(one.given, head.taken):
            return True
        if one.given is None or head.taken is None or one.given.shape != head.taken.shape:
            return False
        given, taken = _wide(one.given, one.given), _wide(head.taken, head.taken)
        return self._near(taken, self._scales(taken, torch.zeros_like(taken), given)[0] * given)

    def _final_norm(self, seen: Mapping[nn.Module, _Seen], body: _Seen) -> Norm:
        left = seen[self.engine.modules[-1]].given
        blocks = {module for block in self.engine.modules for module in block.modules()}
        for one in seen.values():
            if one.module not in blocks and _same(one.taken, left) and _same(one.given, body.given):
                return self._norm(one.module)
        self._refuse("no norm was found between the last block and the final hidden states")
        raise AssertionError

    def _head(self, seen: Mapping[nn.Module, _Seen], of_body: _Seen) -> tuple[nn.Module, float, float | None]:
        """The unembedding, the scale of its logits, and their soft cap."""
        model = self.subject.model
        head: Any = model.get_output_embeddings()
        body, logits = of_body.given, seen[model].given
        if body is None or logits is None or not isinstance(getattr(head, "weight", None), Tensor):
            self._refuse("it has no linear unembedding")
        with torch.no_grad():
            plain = head(body)
        whole, linear = _wide(logits, logits), _wide(plain, plain)
        (scale,) = self._scales(whole, torch.zeros_like(whole), linear)
        if self._near(whole, scale * linear):
            return head, scale, None
        cap: Any = getattr(model.config.get_text_config(decoder=True), "final_logit_softcapping", None)
        if not cap or not self._near(whole, cap * torch.tanh(linear / cap)):
            self._refuse("its logits are neither linear in the final hidden states nor that with a soft cap")
        return head, 1.0, float(cap)


def with_first(output: Any, first: Tensor) -> Any:
    """What a module gave, with another tensor as its first part, and nothing in the place of other tensors."""
    if isinstance(output, tuple):
        return (first, *(None if isinstance(part, Tensor) else part for part in output[1:]))
    return first


def _first(output: Any) -> Tensor | None:
    found = output
    while not isinstance(found, Tensor):
        if isinstance(found, tuple | list) and found:
            found = found[0]
        elif isinstance(found, Mapping) and found:
            found = next(iter(found.values()))
        else:
            return None
    return found


def _size(tensor: Tensor | None) -> int:
    """How many numbers a vector has."""
    return 0 if tensor is None else int(tensor.shape[-1])


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, _LINEAR) and type(module.weight) is nn.Parameter


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    """Whether two tensors are the same memory, in whatever shape."""
    if first is None or second is None or first.numel() != second.numel():
        return False
    return first.data_ptr() == second.data_ptr() and first.shape[-1] == second.shape[-1]


def _columns(
    part: Tensor | None, whole: Tensor | None
) -> tuple[Int[Tensor, " inside"], Int[Tensor, " outside"]] | None:
    """Which columns of a tensor a part of it has, and which not; None if it is no such part."""
    if part is None or whole is None or not 0 < _size(part) < _size(whole):
        return None
    if part.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr() or part.dtype != whole.dtype:
        return None
    start = part.storage_offset() - whole.storage_offset()
    if not 0 <= start <= _size(whole) - _size(part):
        return None
    inside = torch.arange(int(start), int(start) + _size(part))
    every = torch.arange(_size(whole))
    return inside, every[(every < start) | (every >= start + _size(part))]


def _wide(tensor: Tensor | None, like: Tensor | None) -> Tensor:
    assert tensor is not None
    assert like is not None
    return tensor.reshape(like.shape).to("cpu", torch.float64)


def near(dtype: torch.dtype) -> float:
    """How far sums of such numbers may be off, as a share of their size and of the spread of all."""
    return NEAR if dtype in (torch.float32, torch.float64) else NEAR_IN_HALF


def _off(found: Tensor, expected: Tensor) -> float:
    """How far numbers are off, as a share of their size and of the spread of all: a few of them may be huge."""
    wide, other = found.double(), expected.double()
    return float(((wide - other).abs() / (other.abs() + other.std() + 1e-30)).max())


def _some_tokens(subject: Subject) -> Int[Tensor, "2 position"]:
    generator = torch.Generator().manual_seed(0)
    longest = min(6, subject.positions or 6)
    return torch.randint(subject.vocabulary, (2, longest), generator=generator).to(subject.device)
