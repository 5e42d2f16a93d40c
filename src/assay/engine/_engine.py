"""Running a subject: plainly, watched, or edited."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay._errors import AssayError
from assay.engine._attention import Edit, Head, LayerObserver, Plan, in_force, using
from assay.subjects import Subject


@dataclass
class Run:
    """What one forward pass gave.

    `logits` is (batch, position, vocabulary). The others hold what was asked for, by layer: `queries` and `keys`
    (batch, head, position, width), `patterns` (batch, head, query, key), `residuals` (batch, position, model width):
    the residual stream that enters each layer. What each block gave back is kept for runs that resume from this one.
    """

    logits: Float[Tensor, "batch position vocabulary"]
    queries: dict[int, Tensor] = field(default_factory=dict)
    keys: dict[int, Tensor] = field(default_factory=dict)
    patterns: dict[int, Tensor] = field(default_factory=dict)
    residuals: dict[int, Tensor] = field(default_factory=dict)
    _outputs: dict[int, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class IdentityDifference:
    """Largest absolute differences of a logit between an identity edit and the subject, and both logits.

    `eager` is against the subject under its own eager attention, `as_loaded` against the attention implementation
    that it was loaded with.
    """

    eager: float
    as_loaded: float
    edited_logits: Float[Tensor, "batch position vocabulary"]
    loaded_logits: Float[Tensor, "batch position vocabulary"]


@contextmanager
def _given(block: nn.Module, output: Any) -> Iterator[None]:
    """Within the block, a module gives back what is known already instead of computing it."""
    block.forward = lambda *inputs, **options: output
    try:
        yield
    finally:
        del block.forward


def _keep_input(into: dict[int, Tensor], layer: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        into[layer] = inputs[0]

    return keep


def _keep_output(into: dict[int, Any], layer: int) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def keep(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        into[layer] = output

    return keep


class Engine:
    """Reads and edits the attention of one subject.

    On construction the subject sees three tokens, which shows its attention modules in the order in which they run.
    Raises AssayError, by name and before any work is done, if the architecture does not go through transformers'
    AttentionInterface: an edit would silently not happen.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        plan = Plan(layers={})
        tokens = torch.arange(3, device=subject.device)[None] % subject.vocabulary
        with in_force(subject.model, plan):
            subject(tokens)
        if not plan.met:
            raise AssayError(
                f"{type(subject.model).__name__} ({subject.name!r}) does not compute attention through transformers' "
                "AttentionInterface, so its attention can be neither read nor edited; it is not supported."
            )
        self._modules: tuple[nn.Module, ...] = tuple(plan.met)
        if len({id(module) for module in self._modules}) != len(self._modules):
            raise AssayError(
                f"{type(subject.model).__name__} ({subject.name!r}) uses one attention module twice in a pass; "
                "layers cannot be told apart, so it is not supported."
            )
        self._layers = {id(module): layer for layer, module in enumerate(self._modules)}
        widths: dict[int, tuple[int, int]] = {}

        def note(layer: int, queries: Tensor) -> None:
            widths[layer] = (queries.shape[1], queries.shape[3])

        self._forward(tokens, None, Plan(self._layers, on_queries=note), self.layers)
        self.widths = {layer: width for layer, (_, width) in widths.items()}
        self.heads = tuple(Head(layer, head) for layer, (count, _) in widths.items() for head in range(count))

    @property
    def layers(self) -> int:
        """The number of attention layers."""
        return len(self._modules)

    def layer_name(self, layer: int) -> str:
        """The qualified name of a layer's attention module in the subject."""
        names = {id(module): name for name, module in self.subject.model.named_modules()}
        return names[id(self._modules[layer])]

    def sites(self, text: str) -> tuple[Head, ...]:
        """The heads that a site's name stands for: `all`, `layer1` or `layer1.head0`.

        Raises AssayError if the subject has no such head.
        """
        chosen = tuple(head for head in self.heads if text in ("all", f"layer{head.layer}", str(head)))
        if not chosen:
            last = self.heads[-1]
            raise AssayError(
                f"site {text!r} is not in {self.subject.name!r}; use 'all', 'layer0' to 'layer{last.layer}', or a head "
                f"such as '{last}'."
            )
        return chosen

    def _forward(self, tokens: Tensor, valid: Tensor | None, plan: Plan, expected: int) -> Tensor:
        with in_force(self.subject.model, plan):
            logits = self.subject(tokens, valid)
        if len(plan.met) != expected:
            raise AssayError(
                f"{self.subject.name!r} called {len(plan.met)} attention layers where {expected} were "
                "expected; its layers depend on its input, which is not supported."
            )
        return logits

    def run(
        self,
        tokens: Int[Tensor, "batch position"],
        valid: Int[Tensor, "batch position"] | None = None,
        *,
        edits: Iterable[Edit] = (),
        read: Sequence[str] = (),
        on_pattern: LayerObserver | None = None,
        resume: Run | None = None,
    ) -> Run:
        """One forward pass with `edits` in force.

        `valid` is 1 at tokens and 0 at padding. `read` names what to keep: "queries", "keys", "patterns" (as edited),
        "residuals", and "outputs" for a run to resume from. `on_pattern` is called with each layer's pattern when it
        is there. `resume` is an unedited run on the same tokens that kept its outputs: blocks below the first edited
        layer are not computed again (and so nothing is read there). Raises AssayError for a head that the subject
        does not have, two edits of one head, or an unknown name in `read`.
        """
        unknown = set(read) - {"queries", "keys", "patterns", "residuals", "outputs"}
        if unknown:
            raise AssayError(f"read={sorted(unknown)}: can read queries, keys, patterns, residuals and outputs.")
        by_layer = self._by_layer(edits)
        run = Run(logits=torch.empty(0, 0, 0))

        def pattern_seen(layer: int, pattern: Tensor) -> None:
            if "patterns" in read:
                run.patterns[layer] = pattern
            if on_pattern is not None:
                on_pattern(layer, pattern)

        plan = Plan(
            self._layers,
            by_layer,
            on_queries=run.queries.__setitem__ if "queries" in read else None,
            on_keys=run.keys.__setitem__ if "keys" in read else None,
            on_pattern=pattern_seen if "patterns" in read or on_pattern is not None else None,
        )
        first = 0 if resume is None else min(by_layer, default=0)
        with ExitStack() as stack:
            for layer, block in enumerate(self._blocks):
                if layer < first and resume is not None:
                    stack.enter_context(_given(block, resume._outputs[layer]))
                if "residuals" in read:
                    hook = block.register_forward_pre_hook(_keep_input(run.residuals, layer))
                    stack.callback(hook.remove)
                if "outputs" in read:
                    hook = block.register_forward_hook(_keep_output(run._outputs, layer))
                    stack.callback(hook.remove)
            run.logits = self._forward(tokens, valid, plan, self.layers - first)
        return run

    def _by_layer(self, edits: Iterable[Edit]) -> dict[int, tuple[Edit, ...]]:
        found: dict[int, list[Edit]] = defaultdict(list)
        seen: set[Head] = set()
        for edit in edits:
            if edit.head not in self.heads:
                raise AssayError(
                    f"{edit.head} is not in {self.subject.name!r}, which has {self.heads[0]} to {self.heads[-1]}."
                )
            if edit.head in seen:
                raise AssayError(f"two edits of {edit.head}; put them into one.")
            seen.add(edit.head)
            found[edit.head.layer].append(edit)
        return {layer: tuple(edits) for layer, edits in found.items()}

    @cached_property
    def _blocks(self) -> list[nn.Module]:
        """The Transformer block around each attention module: its parent in the module tree."""
        modules = dict(self.subject.model.named_modules())
        return [modules[self.layer_name(layer).rpartition(".")[0]] for layer in range(self.layers)]

    def identity_difference(
        self, tokens: Int[Tensor, "batch position"], valid: Int[Tensor, "batch position"] | None = None
    ) -> IdentityDifference:
        """What changing nothing changes: the numerical noise floor of everything measured through the engine.

        Edits that give back what they get are compared with the untouched subject, which computes attention by its
        architecture's own eager code, and with the subject as it was loaded, whose attention implementation (often
        torch's fused one) may order the arithmetic differently. Padding positions do not count.
        """
        edits = [Edit(head, queries=lambda x: x, keys=lambda x: x, pattern=lambda p, _: p) for head in self.heads]
        edited = self.run(tokens, valid, edits=edits).logits
        as_loaded = self.subject(tokens, valid)
        with using(self.subject.model, "eager"):
            untouched = self.subject(tokens, valid)

        def largest(other: Tensor) -> float:
            difference = (other - edited).abs().amax(dim=-1)
            return float((difference if valid is None else difference * valid).max())

        return IdentityDifference(largest(untouched), largest(as_loaded), edited, as_loaded)
