"""Running a subject: plainly, watched, or edited."""

import difflib
import functools
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import fields
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay._errors import AssayError
from assay.engine._added import added_behind, added_by_attention
from assay.engine._attention import (
    IMPLEMENTATION,
    Edit,
    LayerObserver,
    MapEdit,
    Masks,
    Plan,
    RowObserver,
    in_force,
    using,
)
from assay.engine._bypass import Bypass
from assay.engine._hooks import at_input, at_output, entering, keep_once, keep_output
from assay.engine._kernels import faster, using_kernels
from assay.engine._places import (
    ATTENTION,
    BLOCK_STREAMS,
    HEAD_STREAMS,
    Block,
    Head,
    Named,
    Place,
    Site,
    in_order,
    name_of,
)
from assay.engine._probes import Pass, over_layers, rows_agree, unexplained
from assay.engine._run import IdentityDifference, Run
from assay.engine._tail import Tail, given
from assay.subjects import Subject

READABLE = (*HEAD_STREAMS, "patterns", *BLOCK_STREAMS)

_MLP_NAMES = ("mlp", "feed_forward", "feedforward", "ffn", "ff", "moe", "block_sparse_moe", "output.dense", "fc2")

_MLP_BEGINS = {"output.dense": "intermediate.dense", "fc2": "fc1"}
"""Where no one module is the MLP: what its input enters, by what its output leaves."""

_PROBED = {
    "mlp_input": ("mlp_input", "mlp_map"),
    "attention": ("attention",),
    "after": ("after",),
    "heads": ("heads",),
    "middle": ("middle",),
}
"""Streams that are tried out before they are first read or edited, and the edits that need them."""

_HOOKED = tuple(stream for stream in BLOCK_STREAMS if stream != "heads")
"""Streams of blocks that enter or leave a module; heads are side by side in the attention function alone."""

_SWEEPS = ("all-heads", "all-layers", "up-to-layers")

_PART = re.compile(
    r"(?:all|layer([0-9]+)(?:\.head([0-9]+))?|L([0-9]+)(?:H([0-9]+))?|([0-9]+)\.([0-9]+))"
    rf"(?:\.({'|'.join((*HEAD_STREAMS, *BLOCK_STREAMS))}))?"
)
"""A part of a site's name: a place in one of its notations, and a stream."""

_LIKE_MLP = re.compile("^(?!.*(norm|gate|router)).*(mlp|moe|expert|feed_?forward|ffn)")
"""The names of modules that do an MLP's work."""


class Engine:
    """Reads and edits the attention, the MLPs and the residual stream of one subject.

    On construction the subject sees a few tokens, which shows its attention modules in the order in which they run.
    Raises AssayError, by name and before any work is done, if the architecture does not go through transformers'
    AttentionInterface: an edit would silently not happen.
    """

    unreadable: str | None = None
    """Why there is nothing to read or edit; None here (see `PlainEngine`)."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._checked: set[str] = set()
        plan = Plan(layers={})
        tokens = self._try(plan)
        aside = self._aside(plan, tokens)
        self._modules: tuple[nn.Module, ...] = tuple(module for module in plan.met if id(module) not in aside)
        if not self._modules:
            raise AssayError(
                f"{type(subject.model).__name__} ({subject.name!r}) does not compute attention through transformers' "
                "AttentionInterface, so its attention can be neither read nor edited; it is not supported."
            )
        if len({id(module) for module in self._modules}) != len(self._modules):
            raise AssayError(
                f"{type(subject.model).__name__} ({subject.name!r}) uses one attention module twice in a pass; "
                "layers cannot be told apart, so it is not supported."
            )
        self._layers = dict.fromkeys(aside) | {id(module): layer for layer, module in enumerate(self._modules)}
        widths: dict[int, tuple[int, int]] = {}

        def note(layer: int, queries: Tensor) -> None:
            widths[layer] = (queries.shape[1], queries.shape[3])

        def probe(plan: Plan) -> Tensor:
            found: Tensor = self._forward(tokens, None, plan, self.layers)
            return found

        whole = probe(Plan(self._layers, observers={"queries": note}))
        self._scaled = self._find_scaled(probe)
        self.widths = {layer: width for layer, (_, width) in widths.items()}
        self.heads = tuple(Head(layer, head) for layer, (count, _) in widths.items() for head in range(count))
        self.blocks = tuple(Block(layer) for layer in range(self.layers) if self._block_start(layer) == layer)
        self._rows_agree = rows_agree(probe, self._layers, self._scaled, whole)
        self._resumes = self._reuses = True
        self._reuses = self._try_resuming(tokens, whole)
        self._resumes = self._reuses or self._try_resuming(tokens, whole)
        self._tail = Tail.of(subject, tokens, whole, lambda plan: in_force(subject.model, plan))

    def few_tokens(self) -> Int[Tensor, "1 position"]:
        """Five tokens to try things on, fewer where the model has fewer positions."""
        longest = getattr(self.subject.model.config, "max_position_embeddings", None) or 5
        return torch.arange(min(5, longest), device=self.subject.device)[None] % self.subject.vocabulary

    def _try(self, plan: Plan) -> Tensor:
        """A first pass, on the tokens given back.

        Raises AssayError if the subject cannot be run on token ids alone, whatever the reason.
        """
        who = f"{type(self.subject.model).__name__} ({self.subject.name!r})"
        bypass = Bypass()
        try:
            tokens = self.few_tokens()
            with in_force(self.subject.model, plan), bypass.watching(self.subject.model):
                output = self.subject(tokens)
        except (torch.OutOfMemoryError, AssayError):
            raise
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise AssayError(f"{who} could not be run on token ids alone ({reason}); it is not supported.") from error
        if output.shape[:2] != tokens.shape:
            raise AssayError(
                f"{who} gives outputs of shape {tuple(output.shape)} for tokens of shape {tuple(tokens.shape)}; only "
                "models with one output a token are supported."
            )
        beside = bypass.around(plan.met) if plan.met else None
        if beside is not None:
            raise AssayError(
                f"{who}: its {beside} computes attention beside transformers' AttentionInterface, so that a part of "
                "its attention could not be edited; it is not supported."
            )
        return tokens

    def _aside(self, plan: Plan, tokens: Tensor) -> set[int]:
        """The ids of modules met by `plan` that attend to the layers below, at each position by itself.

        They have positions where others have heads: at another length too, or it is by chance.
        """
        aside = over_layers(plan, tokens) if tokens.shape[1] > 1 else set()
        if aside:
            shorter = Plan(layers={})
            with in_force(self.subject.model, shorter):
                self.subject(tokens[:, 1:])
            aside &= over_layers(shorter, tokens[:, 1:])
        return aside

    def _try_resuming(self, tokens: Tensor, whole: Tensor) -> bool:
        """Whether blocks can be left out: in some architectures, later blocks use what earlier ones put aside.

        With `_reuses`, whether that holds for masks and projections too, which the second of two runs takes over.
        """
        clean = self.run(tokens, resumable=True, logits=True)
        for layer in {self.layers // 2, self.layers - 1}:
            nothing = Edit(next(head for head in self.heads if head.layer == layer), values=lambda states: states)
            for _ in range(2):
                try:
                    rest = self.run(tokens, edits=[nothing], resume=clean).logits
                except (AssayError, RuntimeError, LookupError, TypeError, ValueError, AttributeError):
                    return False
                if not torch.allclose(rest, whole, atol=1e-4, rtol=1e-4):
                    return False
        return True

    def _find_scaled(self, probe: Pass) -> frozenset[int]:
        """The layers whose outputs are scaled after attention.

        Raises AssayError for a layer whose outputs are not its attention weights times its values, scaled or not:
        there an edit of the pattern would do something else than it says.
        """
        suspected = unexplained(probe, self._layers, frozenset())
        different = unexplained(probe, self._layers, suspected)
        if different:
            raise AssayError(
                f"{type(self.subject.model).__name__} ({self.subject.name!r}): the outputs of "
                f"{self.layer_name(min(different))} are not its attention weights times its values; this "
                "architecture is not supported."
            )
        return suspected

    @property
    def layers(self) -> int:
        """The number of attention layers."""
        return len(self._modules)

    def layer_name(self, layer: int) -> str:
        """The qualified name of a layer's attention module in the subject."""
        return self._names[id(self._modules[layer])]

    @cached_property
    def _kernels(self) -> dict[nn.Module, Callable[..., Tensor]]:
        return faster(self.subject.model)

    @cached_property
    def _names(self) -> dict[int, str]:
        return {id(module): name for name, module in self.subject.model.named_modules()}

    def site(self, name: Named) -> Site:
        """The places and streams that a site's name stands for.

        `all`, `layer1` or `layer1.head0` are attention heads; `all.values`, `layer1.outputs`, `layer1.head0.values`
        their streams (queries, keys, values, outputs); `all.mlp`, `layer1.residual` streams of blocks (mlp_input, mlp,
        residual, attention, after, heads, middle); `embeddings` the residual stream that enters the first block. `L1`,
        `L1H0` and `1.0` are read as `layer1`, `layer1.head0` and `layer1.head0`. Several of these, joined by `+` or in
        a list, are one site. Raises AssayError if the subject has no such place, the place no such stream, or one is
        meant twice.
        """
        whole = name if isinstance(name, str) else "+".join(name)
        texts = [part.strip() for part in whole.split("+")]
        written: list[str] = []
        streams: dict[Place, set[str]] = {}
        for text in texts:
            part, places, own = self._part(text)
            written.append(part)
            for place in places:
                known = streams.setdefault(place, set())
                if known & set(own):
                    raise AssayError(f"site {whole!r}: {place}.{min(known & set(own))} is meant twice.")
                known |= set(own)
        ordered = in_order(streams)
        return Site(written[0] if len(written) == 1 else name_of(ordered, self.heads, self.blocks), ordered)

    def _part(self, text: str) -> tuple[str, tuple[Place, ...], tuple[str, ...]]:
        """A part of a site's name as it is written in full, its places, and their streams."""
        if text == "embeddings":
            self._check_stream("residual")
            if any(place > 0 for _, place in self._lists(0)):
                raise AssayError(
                    f"site 'embeddings': the first blocks of {self.subject.name!r} have no attention, and what enters "
                    "them cannot be read; use 'layer0.residual', what enters the first block that has."
                )
            return text, self.blocks[:1], ("residual",)
        match = _PART.fullmatch(text)
        if text.startswith(_SWEEPS):
            raise AssayError(f"{text!r} stands for many sites, one at a time; it cannot be a part of one.")
        chosen: tuple[Place, ...] = ()
        if match is not None:
            layer, head = (match[1] or match[3] or match[5]), (match[2] or match[4] or match[6])
            stream = match[7] or ""
            where = "all" if layer is None else f"layer{int(layer)}" + ("" if head is None else f".head{int(head)}")
            places: Sequence[Place] = self.blocks if stream in BLOCK_STREAMS else self.heads
            chosen = tuple(place for place in places if where in ("all", f"layer{place.layer}", str(place)))
        if match is None or not chosen:
            last = self.heads[-1]
            near = difflib.get_close_matches(text, self._site_names(), cutoff=0.75)
            hint = f"did you mean {' or '.join(map(repr, near))}? Else " if near else ""
            raise AssayError(
                f"site {text!r} is not in {self.subject.name!r}; {hint}use 'all', 'layer0' to 'layer{last.layer}', or "
                f"a head such as '{last}', alone or followed by one of .{', .'.join(HEAD_STREAMS)}; or 'all' or a "
                f"layer followed by .{' or .'.join(BLOCK_STREAMS)}; or 'embeddings'; or several of these joined by +; "
                "or 'all-heads' or 'all-layers' for each by itself, or 'up-to-layers' for the first, the first two, ..."
            )
        if stream in BLOCK_STREAMS:
            self._check_stream(stream)
        return f"{where}.{stream}".rstrip("."), chosen, (stream,) if stream else ATTENTION

    def _site_names(self) -> list[str]:
        """All names of sites of one part, and those that stand for many."""
        layers = [f"layer{layer}" for layer in sorted({head.layer for head in self.heads})]
        of_heads = ["all", *layers, *map(str, self.heads)]
        return [
            *of_heads,
            *(f"{name}.{stream}" for name in of_heads for stream in HEAD_STREAMS),
            *(f"{name}.{stream}" for name in ("all", *layers) for stream in BLOCK_STREAMS),
            "embeddings",
            *_SWEEPS,
        ]

    def _check_stream(self, stream: str) -> None:
        """Raise AssayError unless every block has this stream, as one vector a token."""
        if stream in self._checked:
            return
        self._checked.add(stream)
        try:
            met = getattr(self.run(self.few_tokens(), read=(stream,)), stream)
            missing = min((block.layer for block in self.blocks if block.layer not in met), default=None)
            if missing is not None:
                raise AssayError(
                    f"the {stream} of {type(self._blocks[missing]).__name__} (layer {missing}) was not met in a pass; "
                    f"sites that end in .{stream} cannot be used with this architecture."
                )
            if stream == "after":
                self._check_passed_on(met)
            if stream == "mlp_input":
                self._check_mapped(met)
            if stream == "heads":
                self._check_side_by_side(met)
            if stream == "middle":
                self._check_between(met)
        except AssayError:
            self._checked.discard(stream)
            raise

    def _check_passed_on(self, after: Mapping[int, Tensor]) -> None:
        """Raise AssayError unless what leaves a block is what enters the next one, and leaves the last at the end."""
        entered: dict[int, Any] = {}

        def note(layer: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
            return lambda _, inputs, options: entered.__setitem__(layer, entering(inputs, options))

        with ExitStack() as stack:
            for block in self.blocks:
                siblings, place = self._lists(block.layer)[-1]
                if place + 1 < len(siblings):
                    before = siblings[place + 1].register_forward_pre_hook(note(block.layer), with_kwargs=True)
                    stack.callback(before.remove)
            self._forward(self.few_tokens(), None, Plan(self._layers), self.layers)
        for layer in after:
            other = entered.get(layer)
            same = other is None or (isinstance(other, Tensor) and torch.equal(after[layer].flatten(), other.flatten()))
            if not same or len(self._lists(layer)) > 1:
                raise AssayError(
                    f"what {type(self._blocks[layer]).__name__} gives back (layer {layer} of {self.subject.name!r}) is "
                    "not what enters the next block; sites that end in .after cannot be used with this architecture."
                )

    def _check_mapped(self, entered: Mapping[int, Tensor]) -> None:
        """Raise AssayError unless what an MLP gives at a position is made of what enters it there, and nothing else.

        Where the same vector enters at all positions, it has to give the same at all.
        """
        tokens = self.few_tokens()
        given = self.run(tokens, read=("mlp",)).mlp
        same = [
            Edit(Block(layer), mlp_input=functools.partial(_everywhere, vectors[:, -1:]))
            for layer, vectors in entered.items()
        ]
        for layer, found in self.run(tokens, edits=same, read=("mlp",)).mlp.items():
            near = 1e-2 if found.dtype in (torch.float16, torch.bfloat16) else 1e-4
            if not torch.allclose(found, given[layer][:, -1:].expand_as(found), atol=near * float(found.abs().max())):
                raise AssayError(
                    f"what the MLP of {type(self._blocks[layer]).__name__} gives (layer {layer} of "
                    f"{self.subject.name!r}) is not made of what enters {type(self._entry(layer)).__name__} alone; "
                    "sites that end in .mlp_input, and mlp_map, cannot be used with this architecture."
                )

    def _check_side_by_side(self, heads: Mapping[int, Tensor]) -> None:
        """Raise AssayError unless a block has the outputs of heads once, at every token."""
        tokens = self.few_tokens()
        for layer, vectors in heads.items():
            several = self._blocks.count(self._blocks[layer]) > 1
            if several or vectors.shape[:2] != tokens.shape:
                why = "has several attention layers" if several else "has heads at other positions than tokens"
                raise AssayError(
                    f"{type(self._blocks[layer]).__name__} (layer {layer} of {self.subject.name!r}) {why}; sites that "
                    "end in .heads cannot be used with this architecture."
                )

    def _check_between(self, between: Mapping[int, Tensor]) -> None:
        """Raise AssayError unless what leaves a block is the stream between attention and MLP, and what is made of it.

        What a module gives is added to it, and with the same vector there at all positions the same has to leave at
        all: an MLP beside attention, or a norm of the stream itself, shows.
        """
        tokens = self.few_tokens()
        added = added_behind(self._inside, self._attending, self._probe)
        clean = self.run(tokens, read=("after",), resumable=True)
        for layer, vectors in between.items():
            same = Edit(Block(layer), middle=functools.partial(_everywhere, vectors[:, -1:]))
            found = self.run(tokens, edits=[same], read=("after",), resume=clean, layers=[layer], logits=False)
            after, expected = found.after[layer], clean.after[layer][:, -1:]
            near = 1e-2 if after.dtype in (torch.float16, torch.bfloat16) else 1e-4
            alike = torch.allclose(after, expected.expand_as(after), atol=near * float(expected.abs().max()))
            if layer not in added or not alike:
                why = (
                    "its MLP does not read it (it may stand beside attention)"
                    if layer in added
                    else "what leaves it is not that stream and what a module adds to it (a norm or a scale follows)"
                )
                raise AssayError(
                    f"{type(self._blocks[layer]).__name__} (layer {layer} of {self.subject.name!r}) has no residual "
                    f"stream between attention and MLP: {why}; sites that end in .middle cannot be used with this "
                    "architecture."
                )

    def _lists(self, layer: int) -> list[tuple[list[nn.Module], int]]:
        """The lists of modules around a layer's block, from without, each with the place of what the block is in."""
        found: list[tuple[list[nn.Module], int]] = []
        above = self._names[id(self._blocks[layer])]
        while above:
            name, above = above, above.rpartition(".")[0]
            parent, child = (self.subject.model.get_submodule(one) for one in (above, name))
            if isinstance(parent, nn.ModuleList):
                found.append((list(parent), list(parent).index(child)))
        return found[::-1] or [([self._blocks[layer]], 0)]

    @property
    def _inside(self) -> dict[int, tuple[nn.Module, nn.Module]]:
        """Every block with its attention module."""
        return {block.layer: (self._blocks[block.layer], self._modules[block.layer]) for block in self.blocks}

    def _probe(self) -> None:
        self._forward(self.few_tokens(), None, Plan(self._layers), self.layers)

    @cached_property
    def _attending(self) -> dict[int, nn.Module]:
        """The module of each block that gives back what its attention adds. Raises AssayError if there is none."""
        found = added_by_attention(self._inside, self._probe)
        for layer, (block, _) in self._inside.items():
            several = self._blocks.count(block) > 1
            if several or layer not in found:
                why = "has several attention layers" if several else "gives what its attention adds by no module"
                raise AssayError(
                    f"{type(block).__name__} (layer {layer} of {self.subject.name!r}) {why}; sites that end in "
                    ".attention cannot be used with this architecture."
                )
        return found

    def number_of(self, block: Block) -> int:
        """The number of a block in the subject's list of blocks, from 0; some may have no attention, and no layer."""
        return self._lists(block.layer)[0][1]

    def expand(self, name: Named) -> tuple[Named, ...]:
        """The names of sites that a sweep stands for, one at a time; any other name stands for itself.

        `all-heads` is every head by itself, `all-layers` every layer, `up-to-layers` the first layer, the first two
        together, and so on; `all-heads.values` and the like with a stream.
        """
        sweep, dot, stream = name.partition(".") if isinstance(name, str) else ("", "", "")
        if sweep == "all-heads":
            return tuple(f"{head}{dot}{stream}" for head in self.heads)
        if sweep in ("all-layers", "up-to-layers"):
            layers = [block.layer for block in self.blocks] if stream in BLOCK_STREAMS else range(self.layers)
            each = [f"layer{layer}{dot}{stream}" for layer in layers]
            return tuple(each if sweep == "all-layers" else ("+".join(each[: place + 1]) for place in range(len(each))))
        return (name,)

    def sites(self, names: Sequence[Named]) -> tuple[Site, ...]:
        """The sites that names, sweeps among them, stand for; one that two sweeps have is there once.

        Raises AssayError for one that is unknown, and for one that is named and meant a second time.
        """
        found: dict[str, tuple[Site, bool]] = {}
        for name in names:
            sweep = isinstance(name, str) and name.startswith(_SWEEPS)
            for site in map(self.site, self.expand(name)):
                known, swept = found.setdefault(site.name, (site, sweep))
                if known is not site and not (swept and sweep):
                    given = ", ".join(one if isinstance(one, str) else "+".join(one) for one in names)
                    raise AssayError(f"sites {given}: {site.name} is meant twice.")
        return tuple(site for site, _ in found.values())

    def ready(self) -> AbstractContextManager[None]:
        """Within the block the subject stays prepared for runs, which saves preparing it for each."""
        return using(self.subject.model, IMPLEMENTATION)

    def _forward(
        self, tokens: Tensor, valid: Tensor | None, plan: Plan, expected: int, call: Callable[..., Any] | None = None
    ) -> Any:
        result = None
        with in_force(self.subject.model, plan), using_kernels(self._kernels), suppress(_StopError):
            result = (call or self.subject)(tokens, valid)
        if len(plan.met) != expected:
            raise AssayError(
                f"{self.subject.name!r} called {len(plan.met)} attention layers where {expected} were "
                "expected; its layers depend on its input, which is not supported."
            )
        return result

    def run(
        self,
        tokens: Int[Tensor, "batch position"],
        valid: Int[Tensor, "batch position"] | None = None,
        *,
        edits: Iterable[Edit] = (),
        read: Sequence[str] = (),
        on_pattern: LayerObserver | None = None,
        on_rows: RowObserver | None = None,
        rows: int | None = None,
        beside: Run | None = None,
        logits: bool = True,
        layers: Collection[int] | None = None,
        resumable: bool = False,
        resume: Run | None = None,
    ) -> Run:
        """One forward pass with `edits` in force.

        `valid` is 1 at tokens and 0 at padding. `read` names what to keep: the fields of `Run`. `on_pattern` is
        called with each layer's pattern when it is there. With `rows`, attention is computed for so many queries at a
        time, and no whole pattern is made unless an edit needs it; `on_rows` is called with the layer, a slice of
        queries and their rows of the pattern (batch, head, query, key), cut after the last key that any of them sees.
        Its last argument are the same rows of another run `beside` this one, made again from its queries and keys, or
        None. With `logits=False` the unembedding is left to `logits()`.

        With `layers`, streams and patterns of these alone are kept. Where nothing else is asked for (no logits, no
        observer, no resuming from here) the run stops behind the last of them: blocks above are not run, and there are
        no logits to be made up.

        A run with `resumable` keeps what each block gave. `resume` is such a run, unedited, on the same tokens and
        padded alike: blocks below the first edited layer are not computed again, and so nothing is read there (they
        are, where later blocks of the architecture need more of them than their outputs). Raises AssayError for a place
        or a layer that the subject does not have, two edits of one place, an unknown name in `read`, or another
        `resume`.
        """
        by_layer = self._by_layer(edits)
        self._check_asked(by_layer, read, layers)
        if resume is not None and (
            resume._edited
            or len(resume._blocks) != self.layers
            or resume._tokens is None
            or not torch.equal(resume._tokens, tokens)
            or not _equal(resume._valid, valid)
        ):
            raise AssayError("resume= needs an unedited run on the same tokens, padded alike, with resumable=True.")
        if not self._resumes:
            resume = None
        run = Run(logits=torch.empty(0, 0, 0), _tokens=tokens, _valid=valid, _edited=bool(by_layer))
        masks = resume._masks if resume is not None and self._reuses else Masks()
        if resumable:
            run._masks = masks
        observers: dict[str, LayerObserver] = {
            stream: _keeper(getattr(run, stream), layers)
            for stream in (*HEAD_STREAMS, "patterns", "heads")
            if stream in read
        }
        if on_pattern is not None:
            observers["patterns"] = _both(observers.get("patterns"), on_pattern)
        plan = Plan(
            self._layers,
            {
                layer: heads
                for layer, edits in by_layer.items()
                if (heads := tuple(edit for edit in edits if isinstance(edit.place, Head) or edit.heads is not None))
            },
            observers,
            on_rows,
            rows if rows is not None and self._rows_agree else sys.maxsize,
            {layer: (queries, beside.keys[layer]) for layer, queries in beside.queries.items()} if beside else {},
            self._scaled,
            masks=masks,
        )
        first = 0 if resume is None else self._first(by_layer)
        with ExitStack() as stack:
            if resume is not None:
                self._skip(stack, resume, first)
                moved = any(edit.residual for edit in by_layer.get(first, ()))
                moved = moved or any(edit.after for layer in by_layer if layer < first for edit in by_layer[layer])
                if self._reuses and not moved:
                    self._project(stack, resume, first, plan)
            self._hook(stack, run, by_layer, set(read), first, layers=layers, resumable=resumable)
            if layers and not (logits or resumable or on_pattern or on_rows):
                run.stopped = max(layers)
                self._read_up_to(stack, run, plan, first)
                return run
            if logits or self._tail is None:
                run.logits = self._forward(tokens, valid, plan, self.layers - first)
            else:
                run._body = self._forward(tokens, valid, plan, self.layers - first, self._tail.body)
        if resume is not None and plan.masks_met != len(masks.made):
            raise AssayError(f"{self.subject.name!r} made another number of attention masks than before.")
        return run

    def _check_asked(
        self, by_layer: Mapping[int, tuple[Edit, ...]], read: Sequence[str], layers: Collection[int] | None
    ) -> None:
        """Raise AssayError for what cannot be read or edited here."""
        unknown = set(read) - set(READABLE)
        if unknown:
            raise AssayError(f"read={sorted(unknown)}: can read {', '.join(READABLE)}.")
        if layers is not None and not set(layers) <= set(range(self.layers)):
            raise AssayError(f"layers={sorted(layers)}: {self.subject.name!r} has layers 0 to {self.layers - 1}.")
        for stream, changes in _PROBED.items():
            edited = any(getattr(edit, change) for own in by_layer.values() for edit in own for change in changes)
            if stream in read or edited:
                self._check_stream(stream)

    def _read_up_to(self, stack: ExitStack, run: Run, plan: Plan, first: int) -> None:
        """A pass that ends behind the block of layer `run.stopped`."""
        assert run.stopped is not None
        assert run._tokens is not None
        block = self._blocks[run.stopped]
        met = [layer for layer, own in enumerate(self._blocks) if own is block][-1] + 1

        def stop(*_: Any) -> None:
            raise _StopError

        stack.callback(block.register_forward_hook(stop).remove)
        self._forward(run._tokens, run._valid, plan, max(0, met - first))

    @contextmanager
    def clamped(self, edits: Iterable[Edit]) -> Iterator[None]:
        """Within the block the subject's model, called as it is, has edits of heads in force, and keeps its gradients.

        That is for training: what an edit gives as a constant carries no gradient, what it makes of what it got carries
        that one's. An edit may also only read, a pattern for a loss. The model's attention is computed by its eager
        code. Raises AssayError for an edit of a block, of a place that the subject does not have, and for two of one.
        """
        by_layer = self._by_layer(edits)
        for edit in (edit for own in by_layer.values() for edit in own):
            if not isinstance(edit.place, Head):
                raise AssayError(f"clamped() with an edit of {edit.place}, a block; heads alone can be clamped.")
        with in_force(self.subject.model, Plan(self._layers, by_layer, scaled=self._scaled)):
            yield

    def plainly(self, tokens: Int[Tensor, "batch position"], valid: Int[Tensor, "batch position"] | None = None) -> Run:
        """A pass of the model's own code with whatever hooks stand on its modules, logits left to `logits()`."""
        run = Run(logits=torch.empty(0, 0, 0), _tokens=tokens, _valid=valid)
        if self._tail is None:
            run.logits = self.subject(tokens, valid)
        else:
            run._body = self._tail.body(tokens, valid)
        return run

    def run_from(self, clean: Run, **options: Any) -> Run:
        """A run that resumes from `clean`, on its tokens; `options` are those of `run`."""
        assert clean._tokens is not None
        return self.run(clean._tokens, clean._valid, resume=clean, **options)

    def first_edited(self, edits: Iterable[Edit]) -> int:
        """The first layer that a run with these edits has to compute; the number of layers if there are none.

        Raises AssayError for edits that `run` refuses.
        """
        return self._first(self._by_layer(edits))

    def _first(self, by_layer: Mapping[int, tuple[Edit, ...]]) -> int:
        """The first layer that edits change: where only what leaves a block is edited, that of the next block."""
        changed = [
            layer + self._blocks.count(self._blocks[layer]) if _only_after(edit) else layer
            for layer, edits in by_layer.items()
            for edit in edits
        ]
        return self._block_start(min(changed, default=self.layers))

    def _block_start(self, layer: int) -> int:
        """The first attention layer of the block that a layer belongs to."""
        while 0 < layer < self.layers and self._blocks[layer - 1] is self._blocks[layer]:
            layer -= 1
        return layer

    def _skip(self, stack: ExitStack, resume: Run, first: int) -> None:
        """Until the stack is closed, blocks below `first` give back what they gave in another run."""
        outputs = {block: resume._blocks[layer] for layer, block in enumerate(self._blocks[:first])}
        for block, output in outputs.items():
            stack.enter_context(given(block, output))

    def _project(self, stack: ExitStack, resume: Run, layer: int, plan: Plan) -> None:
        """Until the stack is closed, the projections of the first edited layer give back what they gave before.

        Nothing below them is edited. A layer that comes for the first time leaves them for the next time.
        """
        if layer == self.layers:
            return
        known = resume._projected.get(layer)
        if known is not None:
            for module, output in known.items():
                stack.enter_context(given(module, output))
            return
        attention = self._modules[layer]
        resume._projected = {layer: {}}
        keep = keep_once(resume._projected[layer], lambda: attention in plan.met)
        for child in attention.children():
            if any(True for _ in child.parameters()):
                stack.callback(child.register_forward_hook(keep).remove)

    def _hook(
        self,
        stack: ExitStack,
        run: Run,
        by_layer: Mapping[int, tuple[Edit, ...]],
        read: set[str],
        first: int,
        *,
        layers: Collection[int] | None,
        resumable: bool,
    ) -> None:
        """Until the stack is closed, blocks from `first` on are edited and read as a run needs it.

        Of those below, what leaves them may be edited.
        """
        shape = run._tokens.shape if run._tokens is not None else torch.Size()
        for layer, block in enumerate(self._blocks):
            if resumable and layer >= first:
                stack.callback(block.register_forward_hook(keep_output(run._blocks, layer)).remove)
            if self._block_start(layer) != layer:
                continue
            edits = [edit for edit in by_layer.get(layer, ()) if isinstance(edit.place, Block)]
            changes = {
                item.name: own for edit in edits for item in fields(edit)[1:] if (own := getattr(edit, item.name))
            }
            kept: dict[str, dict[int, Tensor]] = {
                stream: getattr(run, stream)
                for stream in BLOCK_STREAMS
                if stream in read and layer >= first and (layers is None or layer in layers)
            }
            if "mlp_map" in changes:
                entered = kept.setdefault("mlp_input", {})
                changes["mlp"] = _mapped(changes["mlp_map"], entered, layer, changes.get("mlp"))
            if "middle" in changes or "middle" in kept:
                entered = kept.setdefault("residual", {})
                changes["middle"] = _between(changes.get("middle"), kept.pop("middle", None), entered, layer)
            for stream in _HOOKED:
                edit, keep = changes.get(stream), kept.get(stream)
                if edit is None and keep is None:
                    continue
                if stream in ("mlp_input", "residual"):
                    module = block if stream == "residual" else self._entry(layer)
                    before = at_input(stream, layer, edit, keep, shape)
                    stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
                else:
                    behind = at_output(stream, layer, edit, keep, shape)
                    stack.callback(self.giving(stream, layer).register_forward_hook(behind).remove)

    def giving(self, stream: str, layer: int) -> nn.Module:
        """The module that gives back a stream of a block: mlp, attention or after.

        Raises AssayError if the architecture has none.
        """
        if stream == "mlp":
            return self.mlp(layer)
        return self._blocks[layer] if stream == "after" else self._attending[layer]  # that of middle, too

    def _entry(self, layer: int) -> nn.Module:
        """The module that the input of a block's MLP enters: the MLP itself, or the first of its layers.

        Raises AssayError as `mlp` does, or if that is not found.
        """
        block, whole = self._blocks[layer], self.mlp(layer)
        for last, first in _MLP_BEGINS.items():
            if _has(block, last) and block.get_submodule(last) is whole:
                if not _has(block, first):
                    raise AssayError(
                        f"{type(block).__name__} (layer {layer} of {self.subject.name!r}) has an MLP whose input was "
                        "not found; sites that end in .mlp_input, and mlp_map, cannot be used with this architecture."
                    )
                return block.get_submodule(first)
        return whole

    def logits(self, run: Run, positions: slice | Int[Tensor, " chosen"]) -> Float[Tensor, "batch chosen vocabulary"]:
        """The logits of some positions of a run that left them out (of any run: it takes a part of them).

        Raises AssayError for a run that stopped below the last block.
        """
        if run.stopped is not None:
            raise AssayError(
                f"the run stopped behind layer {run.stopped}, the last that was read (layers=...), and has no logits; "
                "leave layers out, or ask for logits in the run."
            )
        if run._body is None or self._tail is None or run._tokens is None:
            return run.logits[:, positions]
        with using_kernels(self._kernels):
            return self._tail.logits(run._body, run._tokens, run._valid, positions)

    def _by_layer(self, edits: Iterable[Edit]) -> dict[int, tuple[Edit, ...]]:
        found: dict[int, list[Edit]] = defaultdict(list)
        seen: set[Place] = set()
        for edit in edits:
            if edit.place not in self.heads and edit.place not in self.blocks:
                raise AssayError(
                    f"{edit.place} is not in {self.subject.name!r}, which has {self.heads[0]} to {self.heads[-1]}."
                )
            if edit.place in seen:
                raise AssayError(f"two edits of {edit.place}; put them into one.")
            seen.add(edit.place)
            found[edit.place.layer].append(edit)
        return {layer: tuple(edits) for layer, edits in found.items()}

    @property
    def by_rows(self) -> bool:
        """Whether attention computed for a few queries at a time is that of all together, as a probe found."""
        return self._rows_agree

    @property
    def attentions(self) -> tuple[nn.Module, ...]:
        """The attention modules, layer by layer."""
        return self._modules

    @property
    def resumes(self) -> bool:
        """Whether blocks can be left out of a pass, as a probe found."""
        return self._resumes

    @property
    def modules(self) -> list[nn.Module]:
        """The Transformer blocks, in order: one for each of `blocks`."""
        return [self._blocks[block.layer] for block in self.blocks]

    @cached_property
    def _blocks(self) -> list[nn.Module]:
        """The Transformer block around each attention module: its nearest ancestor that is an item of a list."""
        modules = dict(self.subject.model.named_modules())
        blocks = []
        for layer in range(self.layers):
            name = self.layer_name(layer).rpartition(".")[0]
            above = name
            while above and not isinstance(modules[above.rpartition(".")[0]], nn.ModuleList):
                above = above.rpartition(".")[0]
            blocks.append(modules[above or name])
        return blocks

    def mlp(self, layer: int) -> nn.Module:
        """The module whose output a block adds to the residual stream after attention.

        Raises AssayError if there is none, or several side by side.
        """
        block = self._blocks[layer]
        found = next(
            (
                block.get_submodule(name)
                for name in _MLP_NAMES
                if _has(block, name) and not isinstance(block.get_submodule(name), nn.Identity)
            ),
            None,
        )
        others = [
            name
            for name, child in block.named_children()
            if _LIKE_MLP.search(name) and child is not found and any(True for _ in child.parameters())
        ]
        others += ["several attention layers"] if self._blocks.count(block) > 1 else []
        if found is None or others:
            beside = f"has {', '.join(others)} besides" if found is not None else "has no MLP that was found"
            raise AssayError(
                f"{type(block).__name__} (layer {layer} of {self.subject.name!r}) {beside}; sites that end in .mlp "
                "cannot be used with this architecture."
            )
        return found

    def identity_difference(
        self, tokens: Int[Tensor, "batch position"], valid: Int[Tensor, "batch position"] | None = None
    ) -> IdentityDifference:
        """What changing nothing changes: the numerical noise floor of everything measured through the engine.

        Edits that give back what they get are compared with the untouched subject, which computes attention by its
        architecture's own eager code, and with the subject as it was loaded, whose attention implementation (often
        torch's fused one) and kernels may order the arithmetic differently. Padding positions do not count.
        """
        edits = [Edit(head, queries=lambda x: x, keys=lambda x: x, pattern=lambda p, _: p) for head in self.heads]
        edited = self.run(tokens, valid, edits=edits).logits
        as_loaded = self.subject(tokens, valid)
        with using(self.subject.model, "eager"), using_kernels(self._kernels):
            untouched = self.subject(tokens, valid)

        def largest(other: Tensor) -> float:
            difference = (other - edited).abs().amax(dim=-1)
            return float((difference if valid is None else difference * valid).max())

        return IdentityDifference(largest(untouched), largest(as_loaded), edited, as_loaded)


class _StopError(Exception):
    """Ends a pass when all that is wanted has been read."""


def _keeper(into: dict[int, Tensor], layers: Collection[int] | None) -> LayerObserver:
    """An observer that keeps what it sees, of some layers."""

    def keep(layer: int, states: Tensor) -> None:
        if layers is None or layer in layers:
            into[layer] = states

    return keep


def _everywhere(vector: Tensor, states: Tensor) -> Tensor:
    return vector.expand_as(states)


def _mapped(
    function: MapEdit, entered: Mapping[int, Tensor], layer: int, then: Callable[[Tensor], Tensor] | None
) -> Callable[[Tensor], Tensor]:
    """An edit of what an MLP gives that is a function of what entered it, too, and what follows on top of it."""

    def edit(given: Tensor) -> Tensor:
        found = function(entered[layer].clone(), given)
        return found if then is None else then(found)

    return edit


def _between(
    change: Callable[[Tensor], Tensor] | None, keep: dict[int, Tensor] | None, entered: Mapping[int, Tensor], layer: int
) -> Callable[[Tensor], Tensor]:
    """An edit of what attention adds that makes the stream it is added to what `change` makes of it, and keeps that."""

    def edit(added: Tensor) -> Tensor:
        stream = entered[layer] + added
        if change is not None:
            stream = change(stream)
            added = (stream - entered[layer]).to(added.dtype)
        if keep is not None:
            keep[layer] = stream
        return added

    return edit


def _only_after(edit: Edit) -> bool:
    """Whether an edit leaves its block as it is, and changes only what leaves it."""
    return edit.after is not None and all(
        getattr(edit, item.name) is None for item in fields(edit)[1:] if item.name != "after"
    )


def _has(module: nn.Module, name: str) -> bool:
    for part in name.split("."):
        if not hasattr(module, part):
            return False
        module = getattr(module, part)
    return isinstance(module, nn.Module)


def _equal(first: Tensor | None, second: Tensor | None) -> bool:
    return first is second or (first is not None and second is not None and torch.equal(first, second))


def _both(first: LayerObserver | None, second: LayerObserver) -> LayerObserver:
    if first is None:
        return second

    def observe(layer: int, states: Tensor) -> None:
        first(layer, states)
        second(layer, states)

    return observe
