"""Several dictionaries in force at once: the replacement model that attribution graphs are drawn of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from assay._errors import AssayError
from assay._given import check_fields, checked
from assay.dictionaries._cross_layer import CrossLayerTranscoder
from assay.dictionaries._dictionary import Codes, Dictionary
from assay.dictionaries._given import GivenDictionary
from assay.dictionaries._left_out import caution_of
from assay.engine import Block, Edit, Engine, MapEdit, Place, Samples
from assay.simplify import SimplifiedSubject, label
from assay.simplify._protocol import proxy_of
from assay.subjects import Subject
from assay.tasks import Split


@dataclass
class Replacement:
    """Dictionaries of several places in force at once, without error nodes: a replacement model.

        parts = [assay.GivenDictionary(path) for path in paths]
        compare(subject, task, [Replacement(parts[:n]) for n in range(1, len(parts) + 1)])

    Each acts where its files say, on what the ones before it have made; nothing of what they get wrong is put back.
    That is what a graph of features claims to stand for the subject, once its error nodes are left out. Trained
    dictionaries need none of it: at a site such as `all.mlp` or `up-to-layers.mlp` they are in force together.

    Raises AssayError for fewer than one dictionary, one that does not say where it acts, and two at one place.
    """

    parts: Sequence[GivenDictionary]
    caution: str | None = field(default=None, init=False, repr=False, compare=False)
    fitted_: list[GivenDictionary] | None = field(default=None, init=False, repr=False, compare=False)

    streams: ClassVar[tuple[str, ...]] = ()
    any_stream: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def title(self) -> str:
        """What its parts are called."""
        first, *rest = (part.title for part in self.parts)
        return f"Replacement({first}{f', and {len(rest)} more' if rest else ''})"

    def describe(self) -> dict[str, Any]:
        """What the record keeps of it."""
        return {"parts": [part.describe() for part in self.parts]}

    def own_sites(self, engine: Engine) -> tuple[str, ...]:
        """The one site of all places together."""
        self._check()
        names: list[str] = []
        for part in self.parts:
            own = part.own_sites(engine)
            if own is None:
                raise AssayError(
                    f"{label(part)} does not say where it acts; give it site=..., such as 'layer0.mlp', to be a part "
                    "of a replacement."
                )
            names += own
        return ("+".join(names),)

    def _check(self) -> None:
        wrong = [part for part in self.parts if not isinstance(part, GivenDictionary)]
        if wrong or not self.parts:
            what = "no dictionary" if not self.parts else f"a {type(wrong[0]).__name__}"
            raise AssayError(f"Replacement() was given {what}; give it GivenDictionary(path) for each place.")

    def placed(self, engine: Engine) -> dict[Place, Dictionary]:
        """The dictionary of every place of a subject. Raises AssayError where one has none, or another stream."""
        (site,) = self.own_sites(engine)
        found: dict[Place, Dictionary] = {}
        for part in self.parts:
            own = engine.site(self._site_of(part, engine))
            if not part.own.transcodes or any(own.streams_of(place) != ("mlp",) for place in own.places):
                raise AssayError(f"{label(part)} does not stand for an MLP; {site!r} is to be one of MLPs.")
            found |= dict.fromkeys(own.places, part.placed(engine))
        return found

    def check(self, subject: Subject, splits: Sequence[Split]) -> None:
        """As its parts do, each at its place."""
        self._check()
        for part in self.parts:
            part.check(subject, splits)
        self.caution = " ".join(part.caution for part in self.parts if part.caution) or None

    @checked
    def fit(self, samples: Samples) -> "Replacement":
        """Let every part take its place."""
        self._check()
        self.fitted_ = None
        engine = Engine(samples.subject) if samples.subject is not None else None
        if engine is None:
            raise AssayError(f"{label(self)}: these samples do not say of which subject; take them from collect().")
        self.fitted_ = [
            GivenDictionary(part.dictionary, part.site, part.scale, part.unchecked).fit(
                samples.at(engine.site(self._site_of(part, engine)))
            )
            for part in self.parts
        ]
        return self

    def _site_of(self, part: GivenDictionary, engine: Engine) -> str:
        own = part.own_sites(engine)
        assert own is not None
        return own[0]

    @property
    def dictionaries_(self) -> dict[Place, tuple[Dictionary, ...]] | None:
        """The dictionary of every place."""
        return (
            None
            if self.fitted_ is None
            else {p: d for one in self.fitted_ for p, d in (one.dictionaries_ or {}).items()}
        )

    @property
    def streams_(self) -> dict[Place, tuple[str, ...]] | None:
        """The stream of every place."""
        return None if self.fitted_ is None else {p: s for one in self.fitted_ for p, s in (one.streams_ or {}).items()}

    @checked
    def apply(self, subject: Subject) -> SimplifiedSubject:
        """The subject with every part in force."""
        edits = {edit.place: edit for one in self.fitted_ or () for edit in one.apply(subject).edits}
        return proxy_of(self, subject, tuple(edits) or None, edits.__getitem__)

    def control(self) -> None:
        """None: mean ablation of all places stands beside it."""


@dataclass
class CrossLayerReplacement:
    """A cross-layer transcoder in the place of every MLP, without error nodes.

    `transcoder` is a path to its folder (see `CrossLayerTranscoder.read`), or what was read. What it gives for a layer
    is made of what enters the MLPs of that layer and all before it, as they are once those have been replaced. Nothing
    is learned. `caution` says of which tokens its files say that it was not trained on them, as circuit-tracer lets no
    feature be on at the first position. Raises AssayError for a subject of another number of layers or another width.
    """

    transcoder: CrossLayerTranscoder | str | Path
    caution: str | None = field(default=None, init=False, repr=False, compare=False)
    streams_: dict[Place, tuple[str, ...]] | None = field(default=None, init=False, repr=False, compare=False)

    streams: ClassVar[tuple[str, ...]] = ()
    any_stream: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)
        if not isinstance(self.transcoder, CrossLayerTranscoder):
            self.transcoder = CrossLayerTranscoder.read(self.transcoder)

    @property
    def own(self) -> CrossLayerTranscoder:
        """The transcoder."""
        assert isinstance(self.transcoder, CrossLayerTranscoder)
        return self.transcoder

    @property
    def title(self) -> str:
        """What it is."""
        features = sum(len(bias) for bias in self.own.b_enc)
        return f"CrossLayerReplacement({self.own.layers} layers, {features:,} features)"

    def describe(self) -> dict[str, Any]:
        """What the record keeps of it."""
        return {"transcoder": {key: value for key, value in self.own.origin.items() if value is not None}}

    @property
    def origin(self) -> Mapping[str, Any]:
        """What is known of where it comes from."""
        return self.own.origin

    def own_sites(self, engine: Engine) -> tuple[str, ...]:
        """The MLPs of all layers."""
        return ("all.mlp",)

    def check(self, subject: Subject, splits: Sequence[Split]) -> None:
        """Raise AssayError for a subject that it is not of."""
        self.check_size(Engine(subject))
        unseen = caution_of(self.own.origin, splits, subject.tokenizer)
        self.caution = None if unseen is None else f"{label(self)}: {unseen}"

    def check_size(self, engine: Engine) -> None:
        """Raise AssayError for a subject of another number of layers, or another width."""
        tokens = engine.few_tokens()
        width = engine.run(tokens, read=("mlp_input",), logits=False).mlp_input[engine.blocks[0].layer].shape[-1]
        if (len(engine.blocks), width) != (self.own.layers, self.own.width):
            raise AssayError(
                f"{label(self)} is of {self.own.layers} layers of width {self.own.width}, and "
                f"{engine.subject.name!r} has {len(engine.blocks)} of width {width}; give the model that it was made "
                "for."
            )

    @checked
    def fit(self, samples: Samples) -> "CrossLayerReplacement":
        """Take the places."""
        self.streams_ = None
        if samples.subject is None:
            raise AssayError(f"{label(self)}: these samples do not say of which subject; take them from collect().")
        self.check_size(Engine(samples.subject))
        if len(samples.places) != self.own.layers or any(samples.streams_of(one) != ("mlp",) for one in samples.places):
            raise AssayError(f"{label(self)} stands for all MLPs at once; give it the site 'all.mlp'.")
        self.streams_ = dict.fromkeys(samples.places, ("mlp",))
        return self

    @checked
    def apply(self, subject: Subject) -> SimplifiedSubject:
        """The subject with all its MLPs replaced."""
        splice = Splice(self.own)
        places = list(self.streams_ or {})

        def edit(place: Place) -> Edit:
            assert isinstance(place, Block)
            return Edit(place, mlp_map=splice.at(places.index(place)))

        return proxy_of(self, subject, tuple(places) or None, edit)

    def control(self) -> None:
        """None: mean ablation of all MLPs stands beside it."""


class Splice:
    """Decodes layer by layer within one pass; what layers have added for later ones is kept until those come.

    `changed` may take features out of the codes of a layer.
    """

    def __init__(self, transcoder: CrossLayerTranscoder, changed: Callable[[int, Codes], Codes] | None = None) -> None:
        self._transcoder = transcoder
        self._changed = changed
        self._codes: list[Codes] = []

    def at(self, layer: int) -> MapEdit:
        """What is given at a layer, of what enters there and what entered before in this pass."""

        def replace(
            entered: Float[Tensor, "batch position width"], given: Float[Tensor, "batch position width"]
        ) -> Float[Tensor, "batch position width"]:
            # A pass begins at the first layer: what another pass has left is gone then.
            del self._codes[layer:]
            if len(self._codes) != layer:
                raise AssayError(
                    "a cross-layer transcoder was run from the middle of the model; run it from its start."
                )
            codes = self._transcoder.encode_layer(layer, entered.reshape(-1, entered.shape[-1]))
            self._codes.append(codes if self._changed is None else self._changed(layer, codes))
            found = self._transcoder.decode_layer(layer, self._codes)
            if layer + 1 == self._transcoder.layers:
                self._codes.clear()
            return found.reshape(given.shape).to(given.dtype)

        return replace


@checked
def read_replacement(path: str | Path) -> Replacement | CrossLayerReplacement:
    """The replacement model of a folder of circuit-tracer: a transcoder for each layer, or a cross-layer transcoder.

    Raises AssayError for a folder that holds neither, or a set that lacks a layer.
    """
    from assay.dictionaries.formats import read_set  # noqa: PLC0415  (which makes such records itself)

    found = read_set(path)
    if isinstance(found, CrossLayerTranscoder):
        return CrossLayerReplacement(found)
    return Replacement([GivenDictionary(one) for one in found])
