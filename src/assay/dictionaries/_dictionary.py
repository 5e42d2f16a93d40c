"""The record of a dictionary: a sparse code of vectors, and the map that makes it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from assay._errors import AssayError
from assay._given import check_fields, checked
from assay.dictionaries._selection import above, largest_of_rows

KINDS = ("relu", "topk", "jumprelu", "gated")
"""How codes are made of pre-activations; BatchTopK and Matryoshka dictionaries are JumpReLU ones once trained."""

NORMALIZATIONS = ("constant_norm_rescale", "layer_norm", "centring")
"""What may be done to every vector before it is encoded, and undone after decoding."""

SPARSE = 0.08
"""The share of features on above which plain products are faster than sums over the features that are on."""

_Prepared = tuple[Tensor, Tensor, tuple[Tensor | float, Tensor | float]]
"""Vectors as they are encoded, as a skip connection takes them, and the scale and mean that were taken off each."""


@dataclass(frozen=True, eq=False)
class Codes:
    """Sparse codes of some vectors: for each the features that are on, with their activations, all above 0.

    Those of vector r are `index` and `value` from `start[r]` up to the start of the next; `features` is the number of
    features that there are.
    """

    index: Int[Tensor, " entry"]
    value: Float[Tensor, " entry"]
    start: Int[Tensor, " row"]
    features: int

    @classmethod
    def of_dense(cls, dense: Float[Tensor, "row feature"]) -> "Codes":
        """Codes that are given with their zeros; what is not above 0 is off."""
        values, rows, index = above(dense, 0.0)
        return cls(index, values, _starts(rows, len(dense)), dense.shape[1])

    @property
    def rows(self) -> Int[Tensor, " entry"]:
        """The vector that each entry belongs to."""
        return torch.repeat_interleave(self.counts)

    @property
    def counts(self) -> Int[Tensor, " row"]:
        """How many features are on in each vector: its L0."""
        ends = torch.cat([self.start[1:], self.start.new_tensor([len(self.index)])])
        return ends - self.start

    def only(self, kept: Bool[Tensor, " entry"]) -> "Codes":
        """Some of the entries; the others' features are off."""
        return Codes(self.index[kept], self.value[kept], _starts(self.rows[kept], len(self.start)), self.features)

    def dense(self) -> Float[Tensor, "row feature"]:
        """The codes with their zeros."""
        found = self.value.new_zeros(len(self.start), self.features)
        found[self.rows, self.index] = self.value
        return found


def _starts(rows: Int[Tensor, " entry"], count: int) -> Int[Tensor, " row"]:
    """Where the entries of each row begin, given each entry's row in order."""
    each = torch.bincount(rows, minlength=count)
    return each.cumsum(0) - each


@dataclass(frozen=True, eq=False)
class Dictionary:
    """A sparse autoencoder or transcoder: what encodes a vector into few features, and what they stand for.

    With x a vector of `width` numbers, pre-activations are u = (x - b_dec) W_enc + b_enc with `pre_bias`, else
    u = x W_enc + b_enc; codes z are, by `kind`,

    | kind | codes | source |
    |---|---|---|
    | `relu` | max(u, 0) | Bricken et al. 2023 |
    | `topk` | max(u, 0) for the `k` largest u of the vector, else 0 | arXiv 2406.04093 |
    | `jumprelu` | u where u > max(`threshold`, 0), one number a feature, else 0 | arXiv 2407.14435 |
    | `gated` | max(u exp(r_mag) + b_mag, 0), u without b_enc, where u > 0 | arXiv 2404.16014 |

    and what is decoded is z W_dec + b_dec, plus W_skip x for one with a skip connection (arXiv 2501.18823).
    `W_enc` is (width, feature), `W_dec` (feature, out), `W_skip` (out, width); out is the width, but for transcoders
    between streams of different widths. `transcodes` says that what is decoded is not x but what a module makes of it.

    `normalization` is done to x before, and undone after (not where it transcodes): `constant_norm_rescale` scales x to
    the norm √width, `layer_norm` takes its mean off and divides by its standard deviation (with width - 1, plus 1e-5),
    `centring` only takes the mean off, as models do whose writing weights are centred. A skip connection takes x as it
    is given, but for centring, where x is the vector of such a model. `origin` is what is known of where it comes from:
    model, hook, format; its keys are those of `assay.dictionaries.formats`.

    Raises AssayError for an unknown kind, shapes that do not fit each other, a number that is not finite, a `k` that is
    not between 1 and the number of features, and a negative threshold.
    """

    kind: str
    # Plain, for shapes that do not fit are refused in words below, where they come from a file.
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    k: int | None = None
    threshold: Tensor | None = None
    r_mag: Tensor | None = None
    b_mag: Tensor | None = None
    W_skip: Tensor | None = None
    pre_bias: bool = False
    normalization: str | None = None
    transcodes: bool = False
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        _check(self)

    def __deepcopy__(self, _: dict[int, Any]) -> "Dictionary":
        # It never changes, and recipes that hold one are copied for every fit.
        return self

    @property
    def width(self) -> int:
        """Numbers of a vector that is encoded."""
        return self.W_enc.shape[0]

    @property
    def out(self) -> int:
        """Numbers of a vector that is decoded."""
        return self.W_dec.shape[1]

    @property
    def features(self) -> int:
        """How many features there are."""
        return self.W_dec.shape[0]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        held = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in held.items() if isinstance(value, Tensor)}

    @classmethod
    @checked
    def read(
        cls, path: str | Path, *, site: str | None = None, scale: float | None = None, transcodes: bool | None = None
    ) -> "Dictionary":
        """A dictionary of the field's files: `assay.dictionaries.formats.read`, which says what is read and how."""
        from assay.dictionaries.formats import read  # noqa: PLC0415  (which makes dictionaries itself)

        return read(path, site=site, scale=scale, transcodes=transcodes)

    @checked
    def save(self, folder: str | Path) -> Path:
        """Write to a folder in the format of SAELens, with `origin` beside it in `assay.json`; returns the folder.

        `read` gives the same tensors back, bit for bit. SAELens reads autoencoders of all kinds, and transcoders of the
        kinds `relu` and `jumprelu`, with a skip connection or without; it has no others, which only Assay reads. What
        is saved twice is replaced, a file at a time, each whole or not at all. Raises AssayError for a folder that
        holds something else than a saved dictionary, and for an origin that JSON cannot hold.
        """
        from assay.dictionaries.formats.saelens import save  # noqa: PLC0415  (as above)

        return save(self, Path(folder))

    def to(self, like: Tensor) -> "Dictionary":
        """The same with its tensors on the device of `like`, and in its dtype, at least float32."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        moved = {name: tensor.to(like.device, dtype) for name, tensor in self.tensors.items()}
        if all(moved[name] is tensor for name, tensor in self.tensors.items()):
            return self
        return replace(self, **moved)  # type: ignore[arg-type]

    def without_pre_bias(self) -> "Dictionary":
        """The same, with what `pre_bias` takes off the vectors put into the biases behind the encoder."""
        return replace(self._moved(self.b_dec), pre_bias=False) if self.pre_bias else self

    def of_affine(self, weight: Float[Tensor, " width"], bias: Float[Tensor, " width"]) -> "Dictionary":
        """The transcoder of vectors v that does what this one does of (v - bias) / weight.

        Raises AssayError for one that normalizes vectors: what is normalized is no longer linear in v.
        """
        if self.normalization is not None:
            raise AssayError(
                f"this dictionary normalizes what it encodes ({self.normalization}), and so is none of vectors that "
                "were multiplied and moved before; give it vectors as they were in training."
            )
        own, moved, skip = self.without_pre_bias(), bias / weight, self.W_skip
        return replace(
            own._moved(moved),
            W_enc=own.W_enc / weight[:, None],
            W_skip=None if skip is None else skip / weight,
            b_dec=own.b_dec if skip is None else own.b_dec - skip @ moved,
        )

    def _moved(self, by: Float[Tensor, " width"]) -> "Dictionary":
        """The same with `by` taken off all that is encoded, by its biases."""
        taken = by @ self.W_enc
        if self.kind != "gated":
            return replace(self, b_enc=self.b_enc - taken)
        assert self.r_mag is not None
        assert self.b_mag is not None
        return replace(self, b_enc=self.b_enc - taken, b_mag=self.b_mag - taken * self.r_mag.exp())

    @checked
    def encode(self, vectors: Float[Tensor, "row width"]) -> Codes:
        """The codes of some vectors, each by itself. Raises AssayError for vectors of another width."""
        own = self.to(vectors)
        prepared, _, _ = own._prepared(own._checked(vectors))
        if own.k is not None:
            return _of_largest(*largest_of_rows(own._pre_activations(prepared), own.k), own.features)
        return Codes.of_dense(own._dense(prepared))

    @checked
    def decode(self, codes: Codes, vectors: Float[Tensor, "row width"] | None = None) -> Float[Tensor, "row out"]:
        """What codes stand for.

        `vectors` are those that were encoded: a skip connection needs them, and a normalization that is to be undone.
        Raises AssayError where they are needed and missing, or there are more or fewer than codes, and for codes of
        another number of features.
        """
        if codes.features != self.features:
            raise AssayError(f"these codes are of {codes.features} features, and this dictionary has {self.features}.")
        if vectors is not None and len(vectors) != len(codes.start):
            raise AssayError(f"there are codes of {len(codes.start)} vectors, and {len(vectors)} vectors.")
        undone = self.normalization is not None and not self.transcodes
        if vectors is None and (self.W_skip is not None or undone):
            raise AssayError(
                "this dictionary decodes with what was encoded (a skip connection or a normalization); give decode() "
                "the vectors, too."
            )
        own = self.to(codes.value)
        summed = embedding_bag(codes.index, own.W_dec, codes.start, per_sample_weights=codes.value, mode="sum")
        return own._finished(summed, None if vectors is None else own._prepared(own._checked(vectors.to(codes.value))))

    def without_features(self, vectors: Float[Tensor, "row width"]) -> Float[Tensor, "row out"]:
        """What is decoded of some vectors if no feature is on: b_dec, and what of a vector goes by the features."""
        own = self.to(vectors)
        none = own.b_dec.new_zeros(len(vectors), self.out)
        return own._finished(none, own._prepared(own._checked(vectors))).to(vectors.dtype)

    @checked
    def reconstruct(self, vectors: Float[Tensor, "row width"]) -> Float[Tensor, "row out"]:
        """What is decoded of the codes of some vectors, in their dtype."""
        own = self.to(vectors)
        prepared = own._prepared(own._checked(vectors))
        if own.k is not None:
            codes = _of_largest(*largest_of_rows(own._pre_activations(prepared[0]), own.k), own.features)
        else:
            dense = own._dense(prepared[0])
            if int(torch.count_nonzero(dense)) > SPARSE * dense.numel():
                return own._finished(dense @ own.W_dec, prepared).to(vectors.dtype)
            codes = Codes.of_dense(dense)
        summed = embedding_bag(codes.index, own.W_dec, codes.start, per_sample_weights=codes.value, mode="sum")
        return own._finished(summed, prepared).to(vectors.dtype)

    def _checked(self, vectors: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
        if vectors.dim() != 2 or vectors.shape[1] != self.width:
            raise AssayError(
                f"this dictionary encodes vectors of {self.width} numbers, given as (row, width); got shape "
                f"{tuple(vectors.shape)}."
            )
        return vectors.to(self.W_enc.dtype)

    def _prepared(self, vectors: Tensor) -> _Prepared:
        """Vectors made ready to be encoded."""
        match self.normalization:
            case "constant_norm_rescale":
                scale = vectors.norm(dim=1, keepdim=True) / self.width**0.5
                # A vector of zeros has no norm to rescale to; left alone, it is encoded as the zeros that it is.
                return vectors / scale.clamp_min(torch.finfo(vectors.dtype).tiny), vectors, (scale, 0.0)
            case "layer_norm":
                mean = vectors.mean(dim=1, keepdim=True)
                spread = vectors.std(dim=1, keepdim=True)
                return (vectors - mean) / (spread + 1e-5), vectors, (spread, mean)
            case "centring":
                mean = vectors.mean(dim=1, keepdim=True)
                return vectors - mean, vectors - mean, (1.0, mean)
        return vectors, vectors, (1.0, 0.0)

    def _pre_activations(self, prepared: Tensor) -> Tensor:
        bias = self.b_enc
        if self.pre_bias:
            bias = bias - self.b_dec @ self.W_enc
        return torch.addmm(bias, prepared, self.W_enc)

    def _dense(self, prepared: Tensor) -> Tensor:
        """Codes with their zeros, of all kinds but TopK."""
        if self.kind == "gated":
            assert self.r_mag is not None
            assert self.b_mag is not None
            moved = prepared - self.b_dec if self.pre_bias else prepared
            gate = torch.addmm(self.b_enc, moved, self.W_enc) > 0
            # exp(r_mag) goes into the weights first: in float32 another order gives other codes near 0.
            return torch.addmm(self.b_mag, moved, self.W_enc * self.r_mag.exp()).clamp_min_(0).mul_(gate)
        found = self._pre_activations(prepared)
        if self.kind == "jumprelu":
            assert self.threshold is not None
            return found.mul_(found > self.threshold)
        return found.clamp_min_(0)

    def _finished(self, summed: Tensor, prepared: _Prepared | None) -> Tensor:
        """What features give together, with all that does not come from features."""
        found = summed + self.b_dec
        if prepared is None:
            return found
        _, skipping, (scale, mean) = prepared
        if not self.transcodes and self.normalization is not None:
            found = found * scale + mean
        return found if self.W_skip is None else found + skipping @ self.W_skip.T


def _of_largest(values: Float[Tensor, "row k"], index: Int[Tensor, "row k"], features: int) -> Codes:
    """Codes of the largest pre-activations of each row; of these, those above 0 are on."""
    rows, k = values.shape
    on = values > 0
    if bool(on.all()):
        start = torch.arange(0, rows * k, k, device=values.device)
        return Codes(index.flatten(), values.flatten(), start, features)
    each = on.sum(dim=1)
    return Codes(index[on], values[on], each.cumsum(0) - each, features)


def _check(given: Dictionary) -> None:
    """Raise AssayError unless a dictionary is one."""
    if given.kind not in KINDS:
        raise AssayError(f"unknown kind of dictionary {given.kind!r}; use one of {', '.join(KINDS)}.")
    if given.normalization is not None and given.normalization not in NORMALIZATIONS:
        raise AssayError(
            f"unknown normalization {given.normalization!r}; use None or one of {', '.join(NORMALIZATIONS)}."
        )
    own = {"topk": {"k"}, "jumprelu": {"threshold"}, "gated": {"r_mag", "b_mag"}}.get(given.kind, set())
    for name in ("k", "threshold", "r_mag", "b_mag"):
        if (getattr(given, name) is not None) != (name in own):
            need = "needs" if name in own else "has no"
            raise AssayError(f"a dictionary of the kind {given.kind!r} {need} {name}.")
    if given.W_enc.dim() != 2 or given.W_dec.dim() != 2:
        raise AssayError(
            f"W_enc is (width, feature) and W_dec (feature, out); got shapes {tuple(given.W_enc.shape)} and "
            f"{tuple(given.W_dec.shape)}."
        )
    (width, features), out = given.W_enc.shape, given.W_dec.shape[1]
    wanted = {
        "W_dec": (features, out),
        "b_dec": (out,),
        "W_skip": (out, width),
        **dict.fromkeys(("b_enc", "threshold", "r_mag", "b_mag"), (features,)),
    }
    for name, tensor in given.tensors.items():
        shape = wanted.get(name, tuple(tensor.shape))
        if tuple(tensor.shape) != shape:
            raise AssayError(
                f"{name} has shape {tuple(tensor.shape)}, and with W_enc of shape {width} x {features} it would have "
                f"{' x '.join(map(str, shape))}."
            )
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise AssayError(f"{name} holds numbers that are not finite; the dictionary is damaged.")
    if out != width and not given.transcodes:
        raise AssayError(
            f"what is decoded has {out} numbers and what is encoded {width}; only a transcoder may change the width."
        )
    if given.pre_bias and out != width:
        raise AssayError(f"pre_bias takes b_dec ({out} numbers) off what is encoded ({width}); their widths differ.")
    if given.k is not None and (isinstance(given.k, bool) or not 1 <= given.k <= features):
        raise AssayError(f"k is {given.k}; it has to be a whole number between 1 and the {features} features.")
    if given.threshold is not None and bool((given.threshold < 0).any()):
        raise AssayError("a threshold below 0 would let features be on with negative activations; none is allowed.")
