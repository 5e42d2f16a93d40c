"""The record of a cross-layer transcoder: features that are read at one layer and written at all from there on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import embedding_bag

from assay._errors import AssayError
from assay.dictionaries._dictionary import Codes


@dataclass(frozen=True, eq=False)
class CrossLayerTranscoder:
    """A cross-layer transcoder (Ameisen et al. 2025): all MLPs of a model at once, in features of each layer.

    Features of layer l are read from x_l, what enters its MLP: u = x_l W_enc[l] + b_enc[l], and codes z_l are max(u,
    0), or u where u > `threshold`[l] and else 0. What is decoded for layer m is Σ_{l ≤ m} z_l W_dec[l][:, m - l] +
    b_dec[m]: each layer takes from features of all before it, so none stands alone.

    `W_enc`[l] is (width, feature), `W_dec`[l] (feature, later, width) with as many `later` as there are layers from l
    on. Raises AssayError for lists of different lengths, shapes that do not fit, numbers that are not finite, and a
    negative threshold.
    """

    W_enc: Sequence[Float[Tensor, "width _"]]
    b_enc: Sequence[Float[Tensor, " _"]]
    W_dec: Sequence[Float[Tensor, "_ _ width"]]
    b_dec: Sequence[Float[Tensor, " width"]]
    threshold: Sequence[Float[Tensor, " _"]] | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self)

    @classmethod
    def read(cls, path: str | Path) -> "CrossLayerTranscoder":
        """One in the format of circuit-tracer: a folder of `W_enc_0.safetensors`, `W_dec_0.safetensors` and so on.

        Raises AssayError where there is none, or it is damaged.
        """
        from assay.dictionaries.formats import read_cross_layer  # noqa: PLC0415  (which makes such records itself)

        return read_cross_layer(path)

    @property
    def layers(self) -> int:
        """How many layers there are."""
        return len(self.W_enc)

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return self.W_enc[0].shape[0]

    def encode(self, inputs: Sequence[Float[Tensor, "row width"]]) -> list[Codes]:
        """The codes of what enters each layer's MLP. Raises AssayError for another number of layers, or width."""
        self._check_inputs(inputs)
        return [self.encode_layer(layer, vectors) for layer, vectors in enumerate(inputs)]

    def reconstruct(self, inputs: Sequence[Float[Tensor, "row width"]]) -> list[Float[Tensor, "row width"]]:
        """What is decoded for each layer, of the codes of that layer and all before it, in the dtype of the inputs.

        Rows are the same positions in all layers.
        """
        codes = self.encode(inputs)
        decoded = (self.decode_layer(layer, codes[: layer + 1]) for layer in range(self.layers))
        return [found.to(vectors.dtype) for found, vectors in zip(decoded, inputs, strict=True)]

    def encode_layer(self, layer: int, vectors: Float[Tensor, "row width"]) -> Codes:
        """The codes of what enters the MLP of one layer."""
        own = vectors.to(self._as(vectors))
        weights, bias = self.W_enc[layer].to(own), self.b_enc[layer].to(own)
        found = torch.addmm(bias, own, weights)
        if self.threshold is not None:
            found = found * (found > self.threshold[layer].to(own))
        return Codes.of_dense(found)

    def decode_layer(self, layer: int, codes: Sequence[Codes]) -> Float[Tensor, "row width"]:
        """What is decoded for one layer, of the codes of all layers up to it, at least in float32."""
        if len(codes) != layer + 1:
            raise AssayError(
                f"what is decoded for layer {layer} is made of the codes of layers 0 to {layer}; got those of "
                f"{len(codes)}."
            )
        like = codes[-1].value
        found = self.b_dec[layer].to(like).expand(len(codes[-1].start), -1).clone()
        for before, own in enumerate(codes):
            decoder = self.W_dec[before][:, layer - before].to(like).contiguous()
            found += embedding_bag(own.index, decoder, own.start, per_sample_weights=own.value, mode="sum")
        return found

    def _as(self, vectors: Tensor) -> Tensor:
        """Nothing, in the dtype that vectors are computed in, at least float32, where they lie."""
        return vectors.new_empty(0, dtype=torch.promote_types(vectors.dtype, torch.float32))

    def _check_inputs(self, inputs: Sequence[Tensor]) -> None:
        if len(inputs) != self.layers:
            raise AssayError(
                f"this cross-layer transcoder has {self.layers} layers, and vectors of {len(inputs)} were given; its "
                "layers are decoded together."
            )
        for layer, vectors in enumerate(inputs):
            if vectors.dim() != 2 or vectors.shape != (len(inputs[0]), self.width):
                raise AssayError(
                    f"layer {layer}: expected {len(inputs[0])} vectors of {self.width} numbers, given as (row, width); "
                    f"got shape {tuple(vectors.shape)}."
                )


def _check(given: CrossLayerTranscoder) -> None:
    """Raise AssayError unless a cross-layer transcoder is one."""
    lists = {"W_enc": given.W_enc, "b_enc": given.b_enc, "W_dec": given.W_dec, "b_dec": given.b_dec}
    if given.threshold is not None:
        lists["threshold"] = given.threshold
    layers = len(given.W_enc)
    for name, tensors in lists.items():
        if len(tensors) != layers or not layers:
            raise AssayError(f"{name} is given for {len(tensors)} layers and W_enc for {layers}; each layer has one.")
    width = given.W_enc[0].shape[0] if given.W_enc[0].dim() else 0
    for layer in range(layers):
        features = given.b_enc[layer].numel()
        wanted = {
            "W_enc": (width, features),
            "b_enc": (features,),
            "W_dec": (features, layers - layer, width),
            "b_dec": (width,),
            "threshold": (features,),
        }
        for name, tensors in lists.items():
            tensor = tensors[layer]
            if tuple(tensor.shape) != wanted[name]:
                raise AssayError(
                    f"{name} of layer {layer} has shape {tuple(tensor.shape)}; with {layers} layers, {width} numbers a "
                    f"vector and {features} features it would have {wanted[name]}."
                )
            if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
                raise AssayError(f"{name} of layer {layer} holds numbers that are not finite; it is damaged.")
            if name == "threshold" and bool((tensor < 0).any()):
                raise AssayError(
                    f"layer {layer} has a threshold below 0, which would let features be on with negative activations."
                )
