"""What recipes of dictionaries share: fitted dictionaries in force, their bits, and how they are saved."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from assay._errors import AssayError
from assay._given import checked
from assay.dictionaries._dictionary import Dictionary
from assay.dictionaries._measures import Measures
from assay.engine import Block, Edit, MapEdit, Place, Samples, VectorEdit
from assay.simplify import RepresentationBits, SimplifiedSubject, label
from assay.simplify._protocol import proxy_of
from assay.subjects import Subject

Fitted = Mapping[Place, Sequence[Dictionary]]
"""The dictionaries of each place, one a stream."""

TRANSCODED = ("mlp",)
"""The streams of a place where a transcoder acts: what an MLP gives is made of what enters it."""


def in_force(
    recipe: object, subject: Subject, fitted: Fitted | None, streams: Mapping[Place, Sequence[str]] | None
) -> SimplifiedSubject:
    """The subject with every vector at the fitted places replaced by what a dictionary makes of it.

    Raises AssayError if nothing has been fitted.
    """
    found, meant = fitted or {}, streams or {}

    def edit(place: Place) -> Edit:
        functions: dict[str, Any] = {}
        for stream, dictionary in zip(meant[place], found[place], strict=True):
            functions |= (
                {"mlp_map": _transcoded(dictionary)} if dictionary.transcodes else {stream: _reconstructed(dictionary)}
            )
        return Edit(place, **functions)

    return proxy_of(recipe, subject, tuple(found) or None, edit)


def _reconstructed(dictionary: Dictionary) -> VectorEdit:
    made = _rows_at(dictionary)

    def replace(vectors: Float[Tensor, "batch position width"]) -> Float[Tensor, "batch position width"]:
        return made(vectors)

    return replace


def _transcoded(dictionary: Dictionary) -> MapEdit:
    made = _rows_at(dictionary)

    def replace(
        entered: Float[Tensor, "batch position width"], given: Float[Tensor, "batch position out"]
    ) -> Float[Tensor, "batch position out"]:
        return made(entered).to(given.dtype)

    return replace


def _rows_at(dictionary: Dictionary) -> Callable[[Tensor], Tensor]:
    """What a dictionary makes of vectors of any leading shape; it is moved once to where they are."""
    here: dict[tuple[torch.device, torch.dtype], Dictionary] = {}

    def made(vectors: Tensor) -> Tensor:
        key = vectors.device, vectors.dtype
        if key not in here:
            here[key] = dictionary.to(vectors)
        rows = here[key].reconstruct(vectors.reshape(-1, vectors.shape[-1]))
        return rows.reshape(*vectors.shape[:-1], rows.shape[-1])

    return made


def bits_of(
    recipe: object,
    fitted: Fitted | None,
    measures: Mapping[str, Measures] | None,
    *,
    vectors: int,
    precision: int,
) -> RepresentationBits:
    """The bits of dictionaries, for `representation_bits`: those of the first place, as at a site all have one shape.

    A position takes log2 of the number of ways to choose the features that are on, and `precision` bits for each: an
    order of the features says nothing, so log2 C(F, k), and not k log2 F. Where their number varies, its mean of the
    train split, and log2(F + 1) to say it. The codebook is all of the dictionary, its encoder, too: the explanation is
    the map, not the message. Raises AssayError before `fit`.
    """
    if not fitted or measures is None:
        raise AssayError(
            f"{label(recipe)} has not been fitted; its bits depend on the dictionary that fit(samples) makes."
        )
    own, *_ = fitted.values()
    first, features = own[0], own[0].features
    l0 = next(iter(measures.values())).l0 if first.k is None else first.k
    chosen = (math.lgamma(features + 1) - math.lgamma(l0 + 1) - math.lgamma(features - l0 + 1)) / math.log(2)
    counted = 0.0 if first.k is not None else math.log2(features + 1)
    codebook = sum(tensor.numel() for tensor in first.tensors.values()) * precision
    return RepresentationBits(vectors * (chosen + counted + l0 * precision), float(vectors * codebook))


_Recipe = TypeVar("_Recipe", bound="FittedDictionaries")


@dataclass
class FittedDictionaries:
    """What recipes share that have dictionaries once they are fitted.

    After `fit`, `dictionaries_` has the dictionaries by place, one a stream, `streams_` the streams, and `measures_`
    what the dictionaries do on a sample of the train split.
    """

    dictionaries_: dict[Place, tuple[Dictionary, ...]] | None = field(
        default=None, init=False, repr=False, compare=False
    )
    streams_: dict[Place, tuple[str, ...]] | None = field(default=None, init=False, repr=False, compare=False)
    measures_: dict[str, Measures] | None = field(default=None, init=False, repr=False, compare=False)

    any_stream: ClassVar[bool] = True

    @checked
    def apply(self, subject: Subject) -> SimplifiedSubject:
        """The subject with what dictionaries make of vectors at the fitted places."""
        return in_force(self, subject, self.dictionaries_, self.streams_)

    def representation_bits(
        self, *, width: int, length: int, vectors: int = 2, precision: int = 16
    ) -> RepresentationBits:
        """The bits of codes and dictionary. Raises AssayError before `fit`."""
        return bits_of(self, self.dictionaries_, self.measures_, vectors=vectors, precision=precision)

    def saved(self) -> dict[str, Any]:
        """All that it holds, in plain values and tensors, for a saved proxy."""
        measures, own = self.measures_, self.dictionaries_ or {}
        return {
            "parameters": {item.name: getattr(self, item.name) for item in fields(self) if item.init},
            "streams": self.streams_,
            "measures": None if measures is None else {key: asdict(one) for key, one in measures.items()},
            "dictionaries": {
                place: [{item.name: getattr(one, item.name) for item in fields(one)} for one in all_of_it]
                for place, all_of_it in own.items()
            },
        }

    @classmethod
    def restored(cls: type[_Recipe], given: Mapping[str, Any]) -> _Recipe:
        """One again of what `saved` gave."""
        made = cls(**given["parameters"])
        made.streams_ = {place: tuple(own) for place, own in given["streams"].items()}
        measures = given["measures"]
        made.measures_ = None if measures is None else {key: Measures(**one) for key, one in measures.items()}
        made.dictionaries_ = {
            place: tuple(Dictionary(**one) for one in own) for place, own in given["dictionaries"].items()
        }
        return made


def blocks_of(recipe: object, samples: Samples) -> tuple[Place, ...]:
    """The places of samples, where a transcoder is to act. Raises AssayError unless each is the MLP of a block."""
    for place in samples.places:
        if not isinstance(place, Block) or samples.streams_of(place) != TRANSCODED:
            raise AssayError(
                f"{label(recipe)} stands for an MLP, from what enters it to what it gives, and cannot act on the "
                f"{samples.streams_of(place)[0]} of {place}; give it a site such as 'layer0.mlp' or 'all.mlp'."
            )
    return samples.places


def key_of(place: Place, stream: str) -> str:
    """How measures name a stream of a place."""
    return f"{place}.{stream}"


def features_of(recipe: object, width: int, features: int | None, expansion: int, k: int) -> int:
    """How many features a dictionary of vectors of this width has. Raises AssayError if `k` of them cannot be on."""
    found = expansion * width if features is None else features
    if k > found:
        raise AssayError(f"{label(recipe)}: k is {k}, and there are only {found} features; ask for fewer, or for more.")
    return found
