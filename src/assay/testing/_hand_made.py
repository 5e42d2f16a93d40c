"""Weights of an ordinary GPT-2 that are set by hand, in terms of features.

Features have two coordinates of the width for themselves, (1, -1)/√2, so that every vector has mean 0, and the layer
norms, with an epsilon of 1e12 and weights of 1e6, are the identity to 1e-12 in float64.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from transformers import GPT2Config, GPT2LMHeadModel

Map = tuple[str, Float[np.ndarray, "_ _"]]
"""Numbers that are read from the features of a group ("" for all features), or written to them."""


class HandMade:
    """Weights of a GPT-2 in terms of features: groups of them, by name and size, with two coordinates each."""

    def __init__(self, groups: Mapping[str, int], *, heads: int) -> None:
        self.features, self.heads = sum(groups.values()), heads
        self.width = 2 * self.features
        directions = np.zeros((self.features, self.width))
        directions[np.arange(self.features), 2 * np.arange(self.features)] = 2**-0.5
        directions[np.arange(self.features), 2 * np.arange(self.features) + 1] = -(2**-0.5)
        ends = np.cumsum(list(groups.values()))
        starts = ends - list(groups.values())
        places = zip(groups, starts.tolist(), ends.tolist(), strict=True)
        self.places = {"": slice(0, self.features)} | {name: slice(start, end) for name, start, end in places}
        self.directions = directions
        self.weights: dict[str, np.ndarray] = {}

    def reading(self, group: str, numbers: Float[np.ndarray, "_ number"]) -> Float[np.ndarray, "feature number"]:
        """What reads numbers from the features of a group, and nothing from others."""
        found = np.zeros((self.features, numbers.shape[1]))
        found[self.places[group]] = numbers
        return found

    def head(self, layer: int, head: int, queries: Map, keys: Map, values: Map, writes: Map) -> None:  # noqa: PLR0917
        """A head whose scores are queries times keys, and which writes its values to the features of a group."""
        size = self.width // self.heads
        projection = self._weight(f"h.{layer}.attn.c_attn.weight", (self.width, 3 * self.width))
        for part, (group, numbers) in enumerate((queries, keys, values)):
            start = part * self.width + head * size
            scale = math.sqrt(size) if part == 0 else 1.0
            read = self.directions.T @ self.reading(group, numbers)
            projection[:, start : start + numbers.shape[1]] = scale * read
        group, numbers = writes
        output = self._weight(f"h.{layer}.attn.c_proj.weight", (self.width, self.width))
        rows = slice(head * size, head * size + len(numbers))
        output[rows] = numbers @ self.directions[self.places[group]]

    def mlp(  # noqa: PLR0917
        self,
        layer: int,
        reads: Float[np.ndarray, "feature inner"],
        group: str,
        writes: Float[np.ndarray, "inner _"],
        inner: float | Float[np.ndarray, " inner"] = 0.0,
        outer: float = 0.0,
    ) -> None:
        """An MLP that reads all features and writes to those of a group, with constants added within and behind."""
        name = f"h.{layer}.mlp"
        self.weights[f"{name}.c_fc.weight"] = self.directions.T @ reads
        self.weights[f"{name}.c_fc.bias"] = np.full(reads.shape[1], inner)
        self.weights[f"{name}.c_proj.weight"] = writes @ self.directions[self.places[group]]
        self.weights[f"{name}.c_proj.bias"] = outer * self.directions[self.places[group]].sum(axis=0)

    def model(
        self,
        tokens: Mapping[str, Float[np.ndarray, "token _"]],
        places: Mapping[str, Float[np.ndarray, "position _"]],
        logits: Mapping[str, Float[np.ndarray, "_ token"]],
        *,
        layers: int,
        activation: str,
    ) -> GPT2LMHeadModel:
        """The model; tokens and places write to features, logits read them, by group."""
        written = [
            sum(numbers @ self.directions[self.places[group]] for group, numbers in each.items())
            for each in (tokens, places)
        ]
        read = sum(numbers.T @ self.directions[self.places[group]] for group, numbers in logits.items())
        assert isinstance(read, np.ndarray)
        config = GPT2Config(
            vocab_size=len(read),
            n_positions=len(written[1]),  # type: ignore[arg-type]
            n_embd=self.width,
            n_layer=layers,
            n_head=self.heads,
            n_inner=self.weights["h.0.mlp.c_fc.weight"].shape[1],
            activation_function=activation,
            layer_norm_epsilon=1e12,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
        )
        with torch.random.fork_rng(devices=[]):
            model = GPT2LMHeadModel(config).double().eval()
        given = self.weights | {"wte.weight": written[0], "wpe.weight": written[1]}
        with torch.no_grad():
            for name, parameter in model.transformer.named_parameters():
                if name in given:
                    parameter.copy_(torch.from_numpy(given[name]))
                else:
                    parameter.fill_(1e6 if "ln_" in name and name.endswith("weight") else 0.0)
            model.lm_head.weight.copy_(torch.from_numpy(read))
        return model

    def _weight(self, name: str, shape: tuple[int, int]) -> np.ndarray:
        return self.weights.setdefault(name, np.zeros(shape))
