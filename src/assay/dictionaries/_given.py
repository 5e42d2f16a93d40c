"""Dictionaries that were made elsewhere."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from assay._errors import AssayError
from assay._given import check_fields, checked
from assay.dictionaries._dictionary import Dictionary
from assay.dictionaries._fitted import FittedDictionaries, key_of
from assay.dictionaries._left_out import caution_of, left_out
from assay.dictionaries._measures import measure
from assay.dictionaries._random import RandomDictionary
from assay.engine import (
    BLOCK_STREAMS,
    Block,
    Engine,
    Head,
    Place,
    Samples,
    affine_of_hook,
    site_of_hook,
)
from assay.engine._rows import bytes_a_row, read_rows
from assay.simplify import label
from assay.simplify._protocol import source_of
from assay.subjects import Subject
from assay.tasks import Split

LOOKED_AT = 64
"""Sequences on which it is tried whether a dictionary is one of the vectors that it is said to be of."""

MOST_BYTES = 200_000_000
"""Of one stream of all layers together."""

BETTER = 0.1
"""A place where a dictionary explains so much more of the variance than at its own is told of."""


_Given = TypeVar("_Given", bound="GivenDictionary")


@dataclass
class GivenDictionary(FittedDictionaries):
    """Replace vectors by what a dictionary makes of them that was trained elsewhere.

    `dictionary` is a path to its files (see `Dictionary.read`), or what was read. It acts at `site`, or where its files
    say; `assay compare` names sites by `--sites` for a dictionary whose files do not say. `scale` is what vectors were
    multiplied with before training, for files that leave it out.

    Before a comparison it is tried on vectors of the train split. Where it explains none of their variance, a
    comparison is refused, with what would explain more: another layer or stream, or vectors whose mean is taken off. A
    file that names a wrong hook, scale or model is found that way. Where another place would be explained better by
    far, `caution` says so. With `unchecked` neither is asked. `caution` says, too, of which tokens of every split its
    files say that it was not trained on them (sequences without a first token, positions, special tokens); it acts on
    them all the same, and is tried on the others.

    Nothing is learned: `fit` checks widths, and takes `measures_` on a sample of the train split. Raises AssayError for
    files that are no dictionary, a site that the subject does not have or of another width, and a transcoder at
    another site than an MLP's.
    """

    dictionary: Dictionary | str | Path
    site: str | None = None
    scale: float | None = None
    unchecked: bool = False
    caution: str | None = field(default=None, init=False, repr=False, compare=False)
    l0_: float | None = field(default=None, init=False, repr=False, compare=False)

    streams: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        # Read at once: what is compared is what was in the files then, and a name of a cell covers every number of it.
        check_fields(self)
        if not isinstance(self.dictionary, Dictionary):
            self.dictionary = Dictionary.read(self.dictionary, scale=self.scale)

    @property
    def own(self) -> Dictionary:
        """The dictionary."""
        assert isinstance(self.dictionary, Dictionary)
        return self.dictionary

    @property
    def title(self) -> str:
        """Where it comes from, and what it is."""
        own = self.own
        kind = str(own.origin.get("trained_as", own.kind))
        name = own.origin.get("name", "dictionary")
        chosen = f", k={own.k}" if own.k is not None else ""
        return f"{name} ({kind}{' transcoder' if own.transcodes else ''}, {own.features:,} features{chosen})"

    def describe(self) -> dict[str, Any]:
        """What the record keeps of it."""
        return {"dictionary": {key: value for key, value in self.own.origin.items() if value is not None}}

    def own_sites(self, engine: Engine) -> tuple[str, ...] | None:
        """Where it acts; None where neither its files nor anybody says, so that it acts at every site asked for."""
        if self.site is not None:
            return (self.site,)
        origin = self.own.origin
        if origin.get("site") is not None:
            return (str(origin["site"]),)
        hook = origin.get("hook_out") if self.own.transcodes else origin.get("hook")
        if hook is None:
            return None
        return (site_of_hook(engine, str(hook), head=origin.get("head_index")),)

    def placed(self, engine: Engine) -> Dictionary:
        """The dictionary of the vectors that there are at its site, where its hook has others."""
        own, hook = self.own, self.own.origin.get("hook")
        affine = affine_of_hook(engine, str(hook)) if own.transcodes and hook is not None else None
        if affine is None:
            return own
        weight, bias = (part.detach().cpu().to(own.W_enc.dtype) for part in affine)
        try:
            return own.of_affine(weight, bias)
        except AssayError as error:
            raise AssayError(f"{label(self)}, of the hook {hook!r} behind a norm: {error}") from None

    def check(self, subject: Subject, splits: Sequence[Split]) -> None:
        """Raise AssayError for a dictionary that explains nothing of the vectors that it is said to be of."""
        engine = Engine(subject)
        names = self.own_sites(engine)
        unseen = caution_of(self.own.origin, splits, subject.tokenizer)
        hints = [] if unseen is None else [unseen]
        if names is not None:
            found, site, own = _Vectors.of(engine, splits[0]), engine.site(names[0]), self.placed(engine)
            tried = found.without(left_out(own.origin, found.split, subject.tokenizer).any)
            for place in site.places:
                for stream in site.streams_of(place):
                    self.l0_ = measure(own, *self._rows(found, place, stream)).l0
                    hint = None if self.unchecked else self._try(tried, own, place, stream)
                    hints += [] if hint is None else [hint]
        self.caution = f"{label(self)}: {' '.join(hints)}" if hints else None

    def _rows(self, found: "_Vectors", place: Place, stream: str) -> tuple[Tensor, ...]:
        """Vectors of a stream that the dictionary is to act on. Raises AssayError if it cannot."""
        if self.own.transcodes and (not isinstance(place, Block) or stream != "mlp"):
            raise AssayError(
                f"{label(self)} stands for an MLP and cannot act on the {stream} of {place}; give it the site of an "
                "MLP, such as site='layer0.mlp'."
            )
        rows = found.at(self.own, place, stream)
        for what, width, vectors in (("takes", self.own.width, rows[0]), ("gives", self.own.out, rows[-1])):
            if vectors.shape[1] != width:
                raise AssayError(
                    f"{label(self)} {what} {width} numbers, and {place}.{stream} of {found.engine.subject.name!r} has "
                    f"{vectors.shape[1]}; give it the site that it was trained on."
                )
        return rows

    def _try(self, found: "_Vectors", dictionary: Dictionary, place: Place, stream: str) -> str | None:
        """What makes it doubtful that these are the vectors that the dictionary is of.

        Raises AssayError if they are not.
        """
        own = found.explained(dictionary, place, stream)
        others = [
            (found.explained(dictionary, other, another), f"{other}.{another}")
            for other, another in found.like(dictionary, place, stream)
        ]
        best, where = max(others, default=(-np.inf, ""))
        here = f"{place}.{stream}"
        centred = -np.inf
        if dictionary.normalization is None and not dictionary.transcodes:
            centred = found.explained(replace(dictionary, normalization="centring"), place, stream)
        hint = ""
        if max(best, centred) > max(own, 0) + BETTER:
            hint = (
                f"it explains {best:.2f} at {where}: its files name the wrong hook, or mean it otherwise; give "
                f"site='{where}'"
                if best >= centred
                else f"of vectors whose mean was taken off it explains {centred:.2f}: it was trained on a model with "
                "centred writing weights; say so in its files (center_writing_weights)"
            )
        if own <= 0:
            raise AssayError(
                f"{label(self)} explains {own:.2f} of the variance at {here} of {found.engine.subject.name!r}, no more "
                f"than a constant; {hint or 'it is of another model, hook or scale'}. With unchecked=True it is "
                "compared as it is."
            )
        return f"it explains {own:.2f} of the variance at {here}, and {hint}." if hint else None

    @checked
    def fit(self, samples: Samples) -> "GivenDictionary":
        """Take the places, and measures on a sample of the train split."""
        self.dictionaries_ = None
        self.streams_ = {place: samples.streams_of(place) for place in samples.places}
        subject, split = source_of(self, samples)
        engine = Engine(subject)
        found, own = _Vectors.of(engine, split), self.placed(engine)
        made = {}
        measures = {}
        for place, streams in self.streams_.items():
            rows = [self._rows(found, place, stream) for stream in streams]
            made[place] = tuple(self.made(own, samples, place, stream) for stream in streams)
            for stream, one, vectors in zip(streams, made[place], rows, strict=True):
                measures[key_of(place, stream)] = measure(one, *vectors)
        self.l0_ = next(iter(measures.values())).l0
        self.measures_, self.dictionaries_ = measures, made
        return self

    def made(self, own: Dictionary, samples: Samples, place: Place, stream: str) -> Dictionary:
        """The dictionary that acts on a stream of a place: the one of the files."""
        return own

    def control(self) -> RandomDictionary:
        """As many random features, about as many of them on, and one length that is fitted."""
        return RandomDictionary(self.own.features, k=self._k, transcodes=self.own.transcodes)

    @property
    def _k(self) -> int:
        """How many features are on, in the mean where their number varies, as a comparison or `fit` has found it."""
        if self.own.k is not None:
            return self.own.k
        if self.l0_ is None:
            raise AssayError(
                f"{label(self)}: how many features are on, and so its control, is known once check(subject, splits) or "
                "fit(samples) has seen vectors."
            )
        return min(max(1, round(self.l0_)), self.own.features)

    def saved(self) -> dict[str, Any]:
        """All that it holds; the dictionary itself once."""
        return {**super().saved(), "parameters": {"site": self.site, "unchecked": self.unchecked}}

    @classmethod
    def restored(cls: type[_Given], given: Mapping[str, Any]) -> _Given:
        """One again of what `saved` gave."""
        first = next(iter(given["dictionaries"].values()))[0]
        return super().restored({**given, "parameters": {**given["parameters"], "dictionary": Dictionary(**first)}})


@dataclass
class _Vectors:
    """Vectors of a subject at some tokens of a few sequences, read when they are asked for."""

    engine: Engine
    split: Split
    tokens: Bool[np.ndarray, "sequence position"]
    read: dict[str, dict[Place, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, engine: Engine, split: Split) -> "_Vectors":
        """Those of all tokens of sequences drawn from a split."""
        drawn = np.random.default_rng(0).permutation(len(split))[:LOOKED_AT]
        chosen = split.take(np.sort(drawn))
        return cls(engine, chosen, chosen.valid)

    def without(self, tokens: Bool[np.ndarray, "sequence position"] | None) -> "_Vectors":
        """Those of all other tokens than some; of all, where none would remain."""
        if tokens is None or not (self.tokens & ~tokens).any():
            return self
        return _Vectors(self.engine, self.split, self.tokens & ~tokens)

    def at(self, dictionary: Dictionary, place: Place, stream: str) -> tuple[Tensor, ...]:
        """What a dictionary encodes, and what it is to give where that is something else."""
        return tuple(self._of(place, name) for name in (*(("mlp_input",) if dictionary.transcodes else ()), stream))

    def _of(self, place: Place, stream: str) -> Tensor:
        if stream not in self.read:
            places = self.engine.blocks if stream in BLOCK_STREAMS else self.engine.heads
            wanted: dict[Place, tuple[str, ...]] = dict.fromkeys(places, (stream,))
            # Many layers at once: a part of the positions is enough to tell places apart.
            share = MOST_BYTES / (bytes_a_row(self.engine, wanted) * int(self.tokens.sum()))
            keep = self.tokens & (np.random.default_rng(0).random(self.tokens.shape) < share)
            rows = read_rows(self.engine, self.split, wanted, keep)
            self.read[stream] = {at: vectors for (at, _), vectors in rows.items()}
        return self.read[stream][place]

    def explained(self, dictionary: Dictionary, place: Place, stream: str) -> float:
        """The share of variance that a dictionary explains at a place."""
        return measure(dictionary, *self.at(dictionary, place, stream)).explained

    def like(self, dictionary: Dictionary, place: Place, stream: str) -> Iterator[tuple[Place, str]]:
        """Other places and streams that a dictionary could be of, by their widths."""
        last = self.engine.blocks[-1]
        for other in self.engine.heads if isinstance(place, Head) else self.engine.blocks:
            streams = (stream,) if isinstance(place, Head) or dictionary.transcodes else BLOCK_STREAMS
            for name in streams:
                # What leaves a block enters the next one.
                if (other, name) == (place, stream) or (name == "after" and other != last):
                    continue
                try:
                    rows = self.at(dictionary, other, name)
                except (AssayError, KeyError):  # an architecture need not have every stream
                    continue
                if (rows[0].shape[1], rows[-1].shape[1]) == (dictionary.width, dictionary.out):
                    yield other, name
