"""The features of an attribution graph alone in the place of all MLPs: what it claims, without its error nodes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from assay._errors import AssayError
from assay.dictionaries._attribution_graph import AttributionGraph
from assay.dictionaries._cross_layer import CrossLayerTranscoder
from assay.dictionaries._dictionary import Codes, Dictionary
from assay.dictionaries._replacement import CrossLayerReplacement, Replacement, Splice, read_replacement
from assay.engine import Block, Edit, Engine, MapEdit, Place, Samples
from assay.simplify import SimplifiedSubject, label
from assay.simplify._protocol import proxy_of
from assay.subjects import Subject
from assay.tasks import Split

Ablated = Literal["zero", "mean"]
"""What a feature that is not kept is: off, or as it is in the mean of the train split."""

ROWS = 50_000
"""Vectors of a layer that means and how often features are on are taken from."""

BATCH = 4_096
"""Vectors that are encoded at a time."""

Spliced: TypeAlias = Replacement | CrossLayerReplacement

Mask: TypeAlias = Bool[Tensor, "*position feature"]
"""Which features of a layer are kept: everywhere, or at each position of a prompt."""


@dataclass(frozen=True)
class Transcoders:
    """The transcoders of all layers of a subject at their places, to be put in force with some of their features."""

    places: tuple[Block, ...]
    parts: tuple[Dictionary, ...] | CrossLayerTranscoder

    @classmethod
    def of(cls, replacement: Spliced, engine: Engine) -> "Transcoders":
        """Those of a replacement model. Raises AssayError unless it has one for every MLP of the subject."""
        if isinstance(replacement, CrossLayerReplacement):
            replacement.check_size(engine)
            return cls(engine.blocks, replacement.own)
        placed = replacement.placed(engine)
        missing = [str(block) for block in engine.blocks if block not in placed]
        if missing:
            raise AssayError(
                f"{label(replacement)} has no transcoder for the MLP of {missing[0]} of {engine.subject.name!r}; a "
                "graph is drawn of a replacement model that has one for every layer."
            )
        return cls(engine.blocks, tuple(placed[block] for block in engine.blocks))

    def check(self, graph: AttributionGraph, engine: Engine) -> None:
        """Raise AssayError for a graph of another number of layers, or with features that there are none of."""
        if graph.layers != len(self.places):
            raise AssayError(
                f"the graph is of a model of {graph.layers} layers, and {engine.subject.name!r} has "
                f"{len(self.places)}; give the model that it was drawn of."
            )
        for layer, numbers in graph.kept.items():
            if numbers and numbers[-1] >= self.features(layer):
                raise AssayError(
                    f"the graph has feature {numbers[-1]} of layer {layer}, whose dictionary has "
                    f"{self.features(layer)}; give the dictionaries that it was drawn with."
                )

    def features(self, layer: int) -> int:
        """How many features a layer has."""
        if isinstance(self.parts, CrossLayerTranscoder):
            return len(self.parts.b_enc[layer])
        return self.parts[layer].features

    def encode(self, layer: int, entered: Float[Tensor, "row width"]) -> Codes:
        """The codes of what enters the MLP of a layer."""
        if isinstance(self.parts, CrossLayerTranscoder):
            return self.parts.encode_layer(layer, entered)
        return self.parts[layer].encode(entered)

    def used(self, samples: Samples) -> tuple[list[Float[Tensor, " feature"]], list[Float[Tensor, " feature"]]]:
        """Of every feature of each layer, its mean activation and how often it is on, on some vectors of the split."""
        means, shares = [], []
        for layer, place in enumerate(self.places):
            (rows,) = samples.some(place, ROWS, streams=("mlp_input",))
            total, on = torch.zeros(2, self.features(layer), dtype=torch.float64)
            for part in rows.split(BATCH):
                codes = self.encode(layer, part)
                total.index_add_(0, codes.index, codes.value.double())
                on += torch.bincount(codes.index, minlength=len(on))
            means.append(total.float() / len(rows))
            shares.append(on.float() / len(rows))
        return means, shares

    def constants(
        self, means: Sequence[Float[Tensor, " feature"]], kept: Sequence[Mask]
    ) -> list[Float[Tensor, " width"]]:
        """What the features that are not kept add to each layer, each as it is in the mean."""
        off = [own * ~mask for own, mask in zip(means, kept, strict=True)]
        if isinstance(self.parts, CrossLayerTranscoder):
            decoders = self.parts.W_dec
            return [
                torch.stack([off[own] @ decoders[own][:, layer - own].to(off[own]) for own in range(layer + 1)]).sum(0)
                for layer in range(len(self.places))
            ]
        return [own @ part.W_dec.to(own) for own, part in zip(off, self.parts, strict=True)]

    def in_force(
        self,
        recipe: object,
        subject: Subject,
        kept: Sequence[Mask] | None,
        constants: Sequence[Float[Tensor, " width"]] | None = None,
        untouched: int = 0,
    ) -> SimplifiedSubject:
        """The subject with all MLPs replaced by what features that are kept (None: all) and constants add up to.

        Features that are kept by position are those of sequences of just as many. At the first `untouched` positions
        MLPs stay as they are.
        """

        def changed(layer: int, codes: Codes) -> Codes:
            if kept is None:
                return codes
            mask = kept[layer].to(codes.index.device)
            return codes.only(mask[codes.index] if mask.dim() == 1 else mask[codes.rows % len(mask), codes.index])

        splice = Splice(self.parts, changed) if isinstance(self.parts, CrossLayerTranscoder) else None

        def edit(place: Place) -> Edit:
            assert isinstance(place, Block)
            layer = self.places.index(place)
            made = self._replaced(layer, changed) if splice is None else splice.at(layer)

            def given(
                entered: Float[Tensor, "batch position width"], own: Float[Tensor, "batch position width"]
            ) -> Float[Tensor, "batch position width"]:
                found = made(entered, own)
                if constants is not None:
                    found = found + constants[layer].to(found)
                return torch.cat([own[:, :untouched], found[:, untouched:]], dim=1)

            return Edit(place, mlp_map=given)

        return proxy_of(recipe, subject, self.places, edit)

    def _replaced(self, layer: int, changed: Callable[[int, Codes], Codes]) -> MapEdit:
        """What the transcoder of one layer gives of changed codes."""
        assert not isinstance(self.parts, CrossLayerTranscoder)
        own = self.parts[layer]

        def replaced(
            entered: Float[Tensor, "batch position width"], given: Float[Tensor, "batch position width"]
        ) -> Float[Tensor, "batch position width"]:
            rows = entered.reshape(-1, entered.shape[-1])
            found = own.decode(changed(layer, own.encode(rows)), rows)
            return found.reshape(given.shape).to(given.dtype)

        return replaced


_Recipe = TypeVar("_Recipe", bound="_SomeFeatures")


@dataclass
class _SomeFeatures(ABC):
    """What recipes share that leave some features in the place of all MLPs, each saying which in `_chosen`.

    After `fit`, `transcoders_` are in force with the features of `kept_`, and `constants_` in the place of the others.
    """

    ablation: Ablated = field(default="zero", kw_only=True)
    untouched: int = field(default=1, kw_only=True)
    streams_: dict[Place, tuple[str, ...]] | None = field(default=None, init=False, repr=False, compare=False)
    transcoders_: Transcoders | None = field(default=None, init=False, repr=False, compare=False)
    kept_: list[Tensor] | None = field(default=None, init=False, repr=False, compare=False)
    constants_: list[Tensor] | None = field(default=None, init=False, repr=False, compare=False)

    streams: ClassVar[tuple[str, ...]] = ()
    any_stream: ClassVar[bool] = True
    streams_rows: ClassVar[bool] = True

    @property
    @abstractmethod
    def spliced(self) -> Spliced:
        """The replacement model."""

    @property
    def learns(self) -> bool:
        """Whether there is anything to fit."""
        return self.ablation == "mean"

    def describe(self) -> dict[str, Any]:
        """What the record keeps of it."""
        return {"replacement": self.spliced.describe(), "ablation": self.ablation, "untouched": self.untouched}

    def own_sites(self, engine: Engine) -> tuple[str, ...]:
        """The MLPs of all layers."""
        return ("all.mlp",)

    def fit(self: _Recipe, samples: Samples) -> _Recipe:
        """Take the places, the features that are kept, and with `ablation="mean"` the means of the others.

        Raises AssayError for samples of other places than all MLPs.
        """
        self.transcoders_ = self.streams_ = self.kept_ = self.constants_ = None
        if samples.subject is None:
            raise AssayError(f"{label(self)}: these samples do not say of which subject; take them from collect().")
        engine = Engine(samples.subject)
        found = self._transcoders(engine)
        if samples.places != engine.blocks or any(samples.streams_of(place) != ("mlp",) for place in samples.places):
            raise AssayError(f"{label(self)} stands for all MLPs at once; give it the site 'all.mlp'.")
        means, shares = found.used(samples) if self.learns else ([], [])
        kept = self._chosen(found, shares)
        if self.ablation == "mean":
            self.constants_ = found.constants(means, kept)
        self.kept_, self.transcoders_, self.streams_ = kept, found, dict.fromkeys(samples.places, ("mlp",))
        return self

    def _transcoders(self, engine: Engine) -> Transcoders:
        """Those of a subject. Raises AssayError for options that cannot be, and for one that they do not fit."""
        if self.ablation not in get_args(Ablated):
            raise AssayError(f"ablation={self.ablation!r}: features are ablated to {' or '.join(get_args(Ablated))}.")
        if isinstance(self.untouched, bool) or not isinstance(self.untouched, int) or self.untouched < 0:
            raise AssayError(
                f"untouched={self.untouched!r}: say at how many first positions MLPs stay as they are, 0 or more."
            )
        return Transcoders.of(self.spliced, engine)

    @abstractmethod
    def _chosen(self, found: Transcoders, shares: Sequence[Float[Tensor, " feature"]]) -> list[Tensor]:
        """The features of every layer that are kept; `shares` says how often each is on, of a recipe that learns."""

    def apply(self, subject: Subject) -> SimplifiedSubject:
        """The subject with the kept features in the place of its MLPs. Raises AssayError before `fit`."""
        if self.transcoders_ is None:
            raise AssayError(f"{label(self)} has not been fitted; call fit(samples), or give it to compare.")
        return self.transcoders_.in_force(self, subject, self.kept_, self.constants_, self.untouched)

    def _more(self) -> str:
        return f", ablation={self.ablation!r}" + ("" if self.untouched == 1 else f", untouched={self.untouched}")


@dataclass
class KeptFeatures(_SomeFeatures):
    """The features of an attribution graph alone in the place of all MLPs; all others are ablated.

        graph = assay.AttributionGraph.read("graph.pt").pruned()
        compare(subject, task, [read_replacement(folder), KeptFeatures(graph, folder)])

    A graph is of one prompt, and claims that its features make the answer. Here they alone are left in the replacement
    model, at every position, on whatever a split has: features that are not in the graph are off (`ablation="zero"`,
    as the tool's own interventions have them) or as in the mean of the train split (`"mean"`), and no error node puts
    back what dictionaries get wrong. At the first `untouched` positions of a sequence MLPs stay as they are: there
    circuit-tracer lets no feature be on, and what MLPs write there is in no node.

    `graph` and `replacement` are paths, too: to a file of circuit-tracer, and to the folder of its dictionaries. The
    control has as many random features a layer, of those that are on in the train split, each as likely as it is often
    on. What is kept is measured from the replacement model without any feature. Raises AssayError for a graph that does
    not fit dictionaries or subject, or has no features.
    """

    graph: AttributionGraph | str | Path
    replacement: Spliced | str | Path
    caution: str | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Read at once: what is compared is what was in the files then.
        if not isinstance(self.graph, AttributionGraph):
            self.graph = AttributionGraph.read(self.graph)
        if not isinstance(self.replacement, Replacement | CrossLayerReplacement):
            self.replacement = read_replacement(self.replacement)

    @property
    def own(self) -> AttributionGraph:
        """The graph."""
        assert isinstance(self.graph, AttributionGraph)
        return self.graph

    @property
    def spliced(self) -> Spliced:
        """The replacement model."""
        assert isinstance(self.replacement, Replacement | CrossLayerReplacement)
        return self.replacement

    @property
    def title(self) -> str:
        """What it is."""
        count = sum(map(len, self.own.kept.values()))
        return f"KeptFeatures({count:,} of {self.own.layers} layers{self._more()})"

    def describe(self) -> dict[str, Any]:
        """What the record keeps of it."""
        graph = {key: value for key, value in self.own.origin.items() if value is not None}
        kept = {str(layer): list(numbers) for layer, numbers in self.own.kept.items()}
        return {"graph": graph, "kept": kept, **super().describe()}

    def check(self, subject: Subject, splits: Sequence[Split]) -> None:
        """Raise AssayError for a subject that it is not of."""
        self._transcoders(Engine(subject))
        self.spliced.check(subject, splits)
        self.caution = self.spliced.caution

    def _transcoders(self, engine: Engine) -> Transcoders:
        found = super()._transcoders(engine)
        if not len(self.own.features):
            raise AssayError(f"{label(self)}: the graph has no features; prune it less.")
        found.check(self.own, engine)
        return found

    def _chosen(self, found: Transcoders, shares: Sequence[Float[Tensor, " feature"]]) -> list[Tensor]:
        return [_mask(found.features(layer), numbers) for layer, numbers in self.own.kept.items()]

    def control(self) -> "RandomFeatures":
        """As many random features in each layer."""
        counts = tuple(map(len, self.own.kept.values()))
        return RandomFeatures(self.spliced, counts, ablation=self.ablation, untouched=self.untouched)

    def ablated(self) -> "NoFeatures":
        """No feature at all."""
        return NoFeatures(self.spliced, ablation=self.ablation, untouched=self.untouched)


@dataclass
class NoFeatures(_SomeFeatures):
    """No features in the place of all MLPs: what kept ones are measured from.

    Only the constants of dictionaries are left, and with `ablation="mean"` what their features are in the mean of the
    train split. All else is as for `KeptFeatures`.
    """

    replacement: Spliced

    @property
    def spliced(self) -> Spliced:
        """The replacement model."""
        return self.replacement

    @property
    def title(self) -> str:
        """What it is."""
        return f"NoFeatures({self._more()[2:]})"

    def _chosen(self, found: Transcoders, shares: Sequence[Float[Tensor, " feature"]]) -> list[Tensor]:
        return [_mask(found.features(layer), ()) for layer in range(len(found.places))]

    def control(self) -> None:
        """None: this is a control."""


@dataclass
class RandomFeatures(_SomeFeatures):
    """Random features of dictionaries in the place of all MLPs, so many in each layer: what kept ones have to beat.

    Each is drawn as often as it is on in the train split, so that the draw knows which features are used and not which
    are needed. All else is as for `KeptFeatures`, whose control it is. Raises AssayError for more features of a layer
    than there are.
    """

    replacement: Spliced
    counts: tuple[int, ...]
    seed: int = 0

    @property
    def spliced(self) -> Spliced:
        """The replacement model."""
        return self.replacement

    @property
    def learns(self) -> bool:
        """True: how often features are on is learned."""
        return True

    @property
    def title(self) -> str:
        """What it is."""
        drawn = f", seed={self.seed}" if self.seed else ""
        return f"RandomFeatures({sum(self.counts):,} of {len(self.counts)} layers{self._more()}{drawn})"

    def describe(self) -> dict[str, Any]:
        """What the record keeps of it."""
        return {"counts": list(self.counts), **super().describe()}

    def _chosen(self, found: Transcoders, shares: Sequence[Float[Tensor, " feature"]]) -> list[Tensor]:
        if len(self.counts) != len(found.places):
            raise AssayError(f"{label(self)}: there are counts of {len(self.counts)} of {len(found.places)} layers.")
        generator, kept = torch.Generator().manual_seed(self.seed), []
        for layer, (count, share) in enumerate(zip(self.counts, shares, strict=True)):
            if not 0 <= count <= len(share):
                raise AssayError(f"{label(self)}: layer {layer} has {len(share)} features, and {count} were asked for.")
            # Features that are never on come last, where there are not enough others.
            weights = share.double() + 1e-9
            drawn = torch.multinomial(weights, count, generator=generator).tolist() if count else []
            kept.append(_mask(len(share), drawn))
        return kept

    def redrawn(self, number: int) -> "RandomFeatures":
        """The same control drawn again."""
        return replace(self, seed=self.seed + number)

    def control(self) -> None:
        """None: this is a control."""


def _mask(features: int, numbers: Sequence[int]) -> Mask:
    found = torch.zeros(features, dtype=torch.bool)
    found[list(numbers)] = True
    return found
