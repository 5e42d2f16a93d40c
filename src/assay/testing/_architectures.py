"""Whether a model can be read and edited: the checks behind the table of architectures."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn
from transformers import PreTrainedModel

from assay._errors import AssayError
from assay._given import checked
from assay.circuits import ExactEdges, Problem, Reference, measured
from assay.circuits._run import run_circuit, traced, wiring_of
from assay.engine import BLOCK_STREAMS, Block, Edit, Engine, Head, Run, collect
from assay.engine._attention import using
from assay.simplify import SVD
from assay.subjects import Subject
from assay.tasks import NO_TOKEN, UNSCORED, Split

SEQUENCES, LENGTH, SHORTEST = 3, 12, 6
"""Random sequences, their length, and the least at which there is something to cut, to pad and to resume."""

EDGES = 6
"""Edges that are patched one by one, to see that a circuit without them does the same."""

STREAMS = ("queries", "keys", "values", "outputs")


@dataclass(frozen=True)
class Support:
    """What Assay can do with a model that passed `check_architecture`.

    `layers` and `heads` count the attention layers and heads that can be edited, in order of execution; `streams` are
    what can be edited there; `not_reached` names classes of attention modules that ran and cannot be edited.
    `edges` is empty where circuits of edges work (`assay.Circuit`), and else says why not. `identity` is the largest
    change of an output by edits that change nothing, against the architecture's own eager attention, and `as_loaded`
    against the attention implementation that the model was given with.
    """

    layers: int
    heads: int
    streams: tuple[str, ...]
    not_reached: tuple[str, ...]
    edges: str
    identity: float
    as_loaded: float


@checked
def check_architecture(model: PreTrainedModel, *, seed: int = 0) -> Support:
    """Check that a model can be read and edited, and say what of it.

        check_architecture(AutoModelForCausalLM.from_pretrained("./my-model"))

    On random tokens, some of them padding: edits that give back what they get change nothing, at every head and block
    and in every stream; neither does an SVD at full width; an edit of any layer and stream changes the model's
    output, and at its own head alone; a causal model stays causal under an edit; a run that resumes equals the whole
    run; attention in blocks of rows and logits at chosen positions equal those of the whole. Where circuits of edges
    work: that of all edges is the model, that of none its run on other tokens, one without an edge is patching of that
    edge, and edges on no path do nothing.

    Works in float32 and float64. Raises AssayError if the model is not supported, or reads fewer than 6 tokens, and
    AssertionError that names the first check that failed, which is a bug worth reporting; except that where weights are
    set by hand, an edit of a part that computes nothing rightly has no effect.
    """
    subject = Subject(model.eval(), None, type(model).__name__)
    if model.dtype not in (torch.float32, torch.float64):
        raise AssayError(f"check_architecture() needs a model in float32 or float64, not {model.dtype}.")
    ran: set[nn.Module] = set()
    hooks = [module.register_forward_hook(lambda module, *_: ran.add(module)) for module in model.modules()]
    try:
        engine = Engine(subject)
    finally:
        for hook in hooks:
            hook.remove()
    return _Check(subject, engine, seed).support(ran)


class _Check:
    def __init__(self, subject: Subject, engine: Engine, seed: int) -> None:
        self.subject, self.engine, self.name = subject, engine, subject.name
        longest = LENGTH if subject.positions is None else min(LENGTH, subject.positions)
        if longest < SHORTEST:
            raise AssayError(f"check_architecture() needs a model that reads {SHORTEST} tokens; this reads {longest}.")
        self.length, self.padded = longest, longest // 3
        generator = torch.Generator().manual_seed(seed)
        special = set(_special(subject.model.config.to_dict()))
        ordinary = torch.tensor([token for token in range(subject.vocabulary) if token not in special][:500_000])
        chosen = torch.randint(len(ordinary), (2 * SEQUENCES, self.length), generator=generator)
        both = ordinary[chosen].to(subject.device)
        self.tokens, self.others = both[:SEQUENCES], both[SEQUENCES:]
        self.valid = torch.ones_like(self.tokens)
        self.valid[-1, self.length - self.padded :] = 0
        self.clean = self.run(read=(*STREAMS, "patterns"), resumable=True)
        self.scale = max(1.0, float(self.clean.logits[self.valid.bool()].abs().max()))
        self.tolerance = 1_000 * torch.finfo(subject.model.dtype).eps * self.scale

    def run(self, edits: tuple[Edit, ...] | list[Edit] = (), *, tokens: Tensor | None = None, **options: Any) -> Run:
        return self.engine.run(self.tokens if tokens is None else tokens, self.valid, edits=edits, **options)

    def difference(self, first: Tensor, second: Tensor) -> float:
        """The largest difference of an output at a token, from the first token on; infinite where one is not finite."""
        difference = (first - second).abs().amax(dim=-1)[self.valid[:, : first.shape[1]].bool()]
        return float(difference.max()) if bool(torch.isfinite(difference).all()) else torch.inf

    def same(self, first: Tensor, second: Tensor, what: str) -> float:
        difference = self.difference(first, second)
        assert difference <= self.tolerance, f"{self.name}: {what} (an output differs by {difference:.2g})"
        return difference

    def support(self, ran: set[nn.Module]) -> Support:
        assert torch.isfinite(self.clean.logits[self.valid.bool()]).all(), f"{self.name}: its outputs are not finite"
        blocks = tuple(stream for stream in BLOCK_STREAMS if self._offered(stream))
        identity, as_loaded = self._identity(blocks)
        self._full_rank(blocks)
        for layer in range(self.engine.layers):
            self._effect(layer, blocks)
            self._resume(layer, blocks)
        self._one_head()
        self._causality()
        self._parts()
        met = {id(module) for module in self.engine._modules}
        inside = {id(child) for module in self.engine._modules for child in module.modules()}
        other = {
            type(module).__name__
            for module in ran
            if "attention" in type(module).__name__.lower()
            and id(module) not in inside
            and not any(id(child) in met for child in module.modules())
        }
        return Support(
            layers=self.engine.layers,
            heads=len(self.engine.heads),
            streams=(*STREAMS, "pattern", *blocks),
            not_reached=tuple(sorted(other)),
            edges=self._edges(),
            identity=identity,
            as_loaded=as_loaded,
        )

    def _edges(self) -> str:
        """Why circuits of edges do not work; "" where they do."""
        try:
            wiring = wiring_of(self.engine)
        except AssayError as error:
            return re.sub(r"^.*?: (circuits of edges cannot be \w+ in this architecture: )?", "", str(error))
        reference, graph = traced(wiring, self.others, self.valid), wiring.graph

        def circuit(kept: Bool[np.ndarray, "sender receiver"]) -> Tensor:
            run = run_circuit(self.engine, wiring, kept, reference, self.tokens, self.valid)
            return self.engine.logits(run, slice(None))

        others = self.subject(self.others, self.valid)
        self.same(circuit(graph.exists), self.clean.logits, "a circuit of all edges is not the model")
        self.same(circuit(np.zeros(graph.shape, dtype=bool)), others, "a circuit of no edges is not the other run")
        kept = graph.exists & (np.random.default_rng(0).random(graph.shape) < 0.5)
        self.same(circuit(kept), circuit(graph.pruned(kept)), "edges on no path change a circuit")
        self._patching()
        return ""

    def _patching(self) -> None:
        """Patching of the likeliest edges, which resumes from their receivers, is what circuits without them do."""
        tokens, others = (both.cpu().numpy() for both in (self.tokens, self.others))
        lengths = self.valid.sum(dim=1).cpu().numpy()
        last = np.arange(self.length) == lengths[:, None] - 1
        wrong = np.where(tokens != others, others, (tokens + 1) % self.subject.vocabulary)
        split = Split(
            name="random",
            role="train",
            description="random pairs",
            tokens=tokens,
            lengths=lengths,
            kinds=np.where(last, 0, UNSCORED),
            counterfactuals=others,
            answers=np.where(last, tokens, NO_TOKEN),
            foils=np.where(last, wrong, NO_TOKEN),
        )
        problem = Problem(self.engine, split, Reference("counterfactual"))
        graph = problem.wiring.graph
        scores = ExactEdges(screen=EDGES).scores(problem)
        places = [tuple(place) for place in np.argwhere(graph.exists & (scores != 0)).tolist()]
        kept = [graph.exists, *(graph.exists.copy() for _ in places)]
        for mine, place in zip(kept[1:], places, strict=True):
            mine[place] = False
        whole, *without = measured(problem, kept).mean(axis=1)
        for place, found in zip(places, without, strict=True):
            difference = abs(float(scores[place] - (found - whole)))
            edge = f"{graph.senders[place[0]]} -> {graph.receivers[place[1]]}"
            assert difference <= self.tolerance, (
                f"{self.name}: patching {edge} is not what a circuit without it does (m differs by {difference:.2g})"
            )

    def _offered(self, stream: str) -> bool:
        try:
            self.engine.site(f"all.{stream}")
            self.run(read=(stream,))
        except AssayError:
            return False
        return True

    def _identity(self, blocks: tuple[str, ...]) -> tuple[float, float]:
        model = self.subject.model
        as_loaded = self.subject(self.tokens, self.valid)
        with using(model, "eager"):
            eager = self.subject(self.tokens, self.valid)
        vectors: dict[str, Any] = {stream: lambda states: states for stream in STREAMS}
        edits = [Edit(head, **vectors, pattern=lambda pattern, _: pattern) for head in self.engine.heads]
        if blocks:
            of_block: dict[str, Any] = {stream: lambda states: states for stream in blocks}
            edits += [Edit(block, **of_block) for block in self.engine.blocks]
        edited = self.run(edits).logits
        self.same(self.clean.logits, eager, "reading changes its output")
        return (
            self.same(edited, eager, "edits that give back what they get change its output"),
            self.difference(edited, as_loaded),
        )

    def _full_rank(self, blocks: tuple[str, ...]) -> None:
        split = Split(
            name="random",
            role="train",
            description="random tokens",
            tokens=self.tokens.cpu().numpy(),
            lengths=self.valid.sum(dim=1).cpu().numpy(),
            kinds=(self.tokens * 0).cpu().numpy(),
        )
        for stream in ("", "values", "outputs", *blocks):
            samples = collect(self.engine, split, (stream,) if stream else ("queries", "keys"))
            edits: list[Edit] = []
            for layer in self._layers(stream):
                site = self.engine.site(f"layer{layer}.{stream}".rstrip("."))
                here = samples.at(site)
                width = here.of(site.places[0])[0].shape[-1]
                edits += SVD(rank=width).fit(here).apply(self.subject).edits
            self.same(
                self.run(edits).logits,
                self.clean.logits,
                f"an SVD at full width of {stream or 'queries and keys'} changes its output",
            )

    def _layers(self, stream: str) -> list[int]:
        of_blocks = stream in BLOCK_STREAMS
        return [block.layer for block in self.engine.blocks] if of_blocks else list(range(self.engine.layers))

    def _effect(self, layer: int, blocks: tuple[str, ...]) -> None:
        heads = [head for head in self.engine.heads if head.layer == layer]
        for stream in (*STREAMS, *blocks):
            if layer not in self._layers(stream):
                continue
            places = [Block(layer)] if stream in blocks else heads
            edited = self.run([_edit(place, stream) for place in places]).logits
            self.changed(edited, f"an edit of {stream} in layer {layer} has no effect")
        edited = self.run([Edit(head, pattern=_reversed) for head in heads]).logits
        self.changed(edited, f"an edit of patterns in layer {layer} has no effect")

    def changed(self, edited: Tensor, what: str) -> None:
        assert self.difference(edited, self.clean.logits) > 10 * self.tolerance, f"{self.name}: {what}"

    def _resume(self, layer: int, blocks: tuple[str, ...]) -> None:
        last = self.engine.heads[-1]
        first = next(head for head in self.engine.heads if head.layer == layer)
        edits = [Edit(head, queries=_moved, values=_moved) for head in dict.fromkeys((first, last))]
        whole = self.run(edits).logits
        rest = self.run(edits, resume=self.clean).logits
        self.same(rest, whole, f"a run that resumes at layer {layer} differs from the whole run")
        for stream in blocks if Block(layer) in self.engine.blocks else ():
            own = [_edit(Block(layer), stream)]
            rest, whole = (self.run(own, resume=known).logits for known in (self.clean, None))
            what = f"a run that resumes from an edit of {stream} in layer {layer} differs from the whole run"
            self.same(rest, whole, what)

    def _one_head(self) -> None:
        """An edit of one head changes what is read there as it should, and nothing of the layer's other heads."""
        head = self.engine.heads[len(self.engine.heads) // 2]
        others = [item.head for item in self.engine.heads if item.layer == head.layer and item != head]
        for stream in STREAMS:
            edited = getattr(self.run([_edit(head, stream)], read=(stream,)), stream)
            before, after = getattr(self.clean, stream)[head.layer], edited[head.layer]
            what = f"an edit of {stream} at {head}"
            expected = _moved(before[:, head.head])
            assert torch.allclose(after[:, head.head], expected, atol=1e-5, rtol=1e-4), f"{self.name}: {what} is lost"
            assert torch.allclose(after[:, others], before[:, others], atol=1e-5, rtol=1e-4), (
                f"{self.name}: {what} changes other heads"
            )
        twice = [Edit(item, values=lambda states: 2 * states) for item in self.engine.heads if item.layer == head.layer]
        doubled = self.run(twice, read=("outputs",)).outputs[head.layer]
        expected = 2 * self.clean.outputs[head.layer]
        keep = self.valid.bool()[:, None, :, None].expand_as(doubled) if doubled.shape[2] == self.length else ...
        assert torch.allclose(doubled[keep], expected[keep], atol=1e-4, rtol=1e-3), (
            f"{self.name}: twice the values do not give twice the outputs"
        )

    def _causality(self) -> None:
        half = self.length // 2
        later = self.tokens.clone()
        later[:, half:] = self.others[:, half:]
        plain = self.subject(later, self.valid)
        if self.difference(plain[:, :half], self.clean.logits[:, :half]) > self.tolerance:
            return
        head = self.engine.heads[0]
        edits = [Edit(head, queries=_moved, keys=_moved, values=_moved)]
        first, second = self.run(edits).logits, self.run(edits, tokens=later).logits
        self.same(first[:, :half], second[:, :half], "under an edit, later tokens change earlier outputs")

    def _parts(self) -> None:
        rows: list[tuple[int, slice, Tensor]] = []
        blocked = self.run(on_rows=lambda layer, where, weights, *_: rows.append((layer, where, weights)), rows=5)
        self.same(blocked.logits, self.clean.logits, "attention in blocks of rows changes its output")
        for layer, where, weights in rows:
            whole = self.clean.patterns[layer][:, :, where]
            cut = whole[..., : weights.shape[-1]]
            what = f"{self.name}: a block of rows is not that part of the pattern"
            assert torch.allclose(cut, weights, atol=1e-5, rtol=1e-4), what
            assert not bool(whole[..., weights.shape[-1] :].any()), what
        without = self.run(logits=False)
        some = slice(2, self.length - self.padded)
        found = self.engine.logits(without, some)
        expected = self.clean.logits[:, some]
        difference = float((found - expected).abs().max())
        assert difference <= self.tolerance, f"{self.name}: logits at chosen positions differ by {difference:.2g}"


def _edit(place: Head | Block, stream: str) -> Edit:
    functions: dict[str, Any] = {stream: _moved}
    return Edit(place, **functions)


def _moved(states: Tensor) -> Tensor:
    """An edit that changes scores and outputs of every position differently."""
    return states.flip(-1) * 4 + 1


def _reversed(pattern: Tensor, visible: Tensor) -> Tensor:
    """Weights in proportion to how late a visible key is: far from what attention does by itself."""
    place = torch.arange(1, pattern.shape[-1] + 1, device=pattern.device, dtype=pattern.dtype) ** 2
    weights = torch.where(visible, place, 0.0)
    return weights / weights.sum(dim=-1, keepdim=True).clamp_min(1)


def _special(config: Mapping[Any, Any]) -> Iterator[int]:
    """The ids in a configuration of tokens that are not ordinary text."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _special(value)
        elif "token_i" in str(name) and isinstance(value, int):
            yield value
        elif "token_i" in str(name) and isinstance(value, list):
            yield from (item for item in value if isinstance(item, int))
