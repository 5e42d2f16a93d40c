"""The weights of a program in an ordinary Hugging Face class, turned if wanted."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from assay.testing.compiled._nodes import Family
from assay.testing.compiled._weights import Matrix, Weights

IDENTITY = {"eps": 1e12, "weight": 1e6}
"""A layer norm of vectors with mean 0 is the identity to 1e-12 with these."""


def model_of(weights: Weights, logits: Matrix, family: Family, turn: Matrix | None) -> PreTrainedModel:
    """A model in float64 that computes what weights say.

    `logits` (coordinate, token) is how the stream is read at the end; `turn` (width, width) an orthogonal matrix that
    keeps the vector of ones, by which the whole stream is turned.
    """
    turned = np.eye(weights.width) if turn is None else turn
    given = _GPT2(weights, turned) if family == "gpt2" else _Bert(weights, turned)
    with torch.random.fork_rng(devices=[]):
        model = given.empty(logits.shape[1]).double().eval()
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in named.items():
            is_norm = parameter.ndim == 1 and ("ln_" in name or "LayerNorm" in name) and name.endswith("weight")
            parameter.fill_(IDENTITY["weight"] if is_norm else 0.0)
        for name, numbers in given.numbers(logits).items():
            named[name].copy_(torch.from_numpy(np.ascontiguousarray(numbers)))
    return model


def rotation(width: int, seed: int) -> Matrix:
    """An orthogonal matrix that keeps the vector of ones, so that means stay 0, and else is drawn evenly."""
    rng = np.random.default_rng(seed)
    ones = np.full((width, 1), width**-0.5)
    rest = np.linalg.svd(ones, full_matrices=True)[0][:, 1:]
    drawn, upper = np.linalg.qr(rng.normal(size=(width - 1, width - 1)))
    return ones @ ones.T + rest @ (drawn * np.sign(np.diag(upper))) @ rest.T


class _Family:
    """What both classes share: blocks of all heads and neurons of a layer, turned."""

    def __init__(self, weights: Weights, turn: Matrix) -> None:
        self.weights, self.turn = weights, turn
        self.neurons = max(1, *(sum(map(len, mlp.inner)) for mlp in weights.mlps))

    def read(self, numbers: Matrix) -> Matrix:
        """(width, out) as it reads a turned stream."""
        return self.turn.T @ numbers

    def write(self, numbers: Matrix) -> Matrix:
        """(in, width) as it writes to a turned stream."""
        return numbers @ self.turn

    def attention(self, layer: int) -> tuple[list[Matrix], Float[np.ndarray, " all"], Matrix]:
        """What queries, keys and values of all heads read, the queries' constant, and what the heads write."""
        weights = self.weights
        size, width = weights.head_width, weights.width
        reads = [np.zeros((width, width)) for _ in range(3)]
        constant, writes = np.zeros(width), np.zeros((width, width))
        # The model divides scores by the root of the heads' width.
        scale = size**0.5
        for number, head in enumerate(weights.heads[layer]):
            start = number * size
            for into, numbers in zip(reads, (head.queries * scale, head.keys, head.values), strict=True):
                into[:, start : start + numbers.shape[1]] = numbers
            constant[start : start + len(head.constant)] = head.constant * scale
            writes[start : start + len(head.writes)] = head.writes
        return [self.read(numbers) for numbers in reads], constant, self.write(writes)

    def mlp(self, layer: int) -> tuple[Matrix, Float[np.ndarray, " neuron"], Matrix, Float[np.ndarray, " width"]]:
        """What the MLP reads, adds within, writes and adds behind; neurons that are not needed do nothing."""
        mlp, width = self.weights.mlps[layer], self.weights.width
        reads, inner, writes = np.zeros((width, self.neurons)), np.zeros(self.neurons), np.zeros((self.neurons, width))
        used = 0
        for read, add, write in zip(mlp.reads, mlp.inner, mlp.writes, strict=True):
            end = used + len(add)
            reads[:, used:end], inner[used:end], writes[used:end] = read, add, write
            used = end
        return self.read(reads), inner, self.write(writes), (np.zeros(width) + mlp.outer) @ self.turn


class _GPT2(_Family):
    def empty(self, tokens: int) -> GPT2LMHeadModel:
        weights = self.weights
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=tokens,
                n_positions=weights.program.length + 1,
                n_embd=weights.width,
                n_layer=weights.layers,
                n_head=weights.heads_each,
                n_inner=self.neurons,
                activation_function="relu",
                layer_norm_epsilon=IDENTITY["eps"],
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                tie_word_embeddings=False,
                bos_token_id=None,
                eos_token_id=None,
            )
        )

    def numbers(self, logits: Matrix) -> dict[str, np.ndarray]:
        tokens, places = map(self.write, self.weights.embeddings())
        rows = np.zeros((logits.shape[1], self.weights.width))
        rows[: len(tokens)] = tokens
        found = {
            "transformer.wte.weight": rows,
            "transformer.wpe.weight": places,
            "lm_head.weight": self.read(logits).T,
        }
        for layer in range(self.weights.layers):
            name = f"transformer.h.{layer}"
            reads, constant, writes = self.attention(layer)
            found[f"{name}.attn.c_attn.weight"] = np.hstack(reads)
            found[f"{name}.attn.c_attn.bias"] = np.concatenate((constant, np.zeros(2 * self.weights.width)))
            found[f"{name}.attn.c_proj.weight"] = writes
            parts = ("c_fc.weight", "c_fc.bias", "c_proj.weight", "c_proj.bias")
            found |= {f"{name}.mlp.{part}": numbers for part, numbers in zip(parts, self.mlp(layer), strict=True)}
        return found


class _Bert(_Family):
    def empty(self, tokens: int) -> BertForMaskedLM:
        weights = self.weights
        config: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}
        return BertForMaskedLM(
            BertConfig(
                vocab_size=tokens,
                hidden_size=weights.width,
                num_hidden_layers=weights.layers,
                num_attention_heads=weights.heads_each,
                intermediate_size=self.neurons,
                hidden_act="relu",
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                max_position_embeddings=weights.program.length + 1,
                type_vocab_size=1,
                layer_norm_eps=IDENTITY["eps"],
                pad_token_id=None,
                tie_word_embeddings=False,
                **config,
            )
        )

    def numbers(self, logits: Matrix) -> dict[str, np.ndarray]:
        tokens, places = map(self.write, self.weights.embeddings())
        rows = np.zeros((logits.shape[1], self.weights.width))
        rows[: len(tokens)] = tokens
        # The head has a ReLU and a layer norm of its own: it takes the tokens' logits out first, one coordinate each,
        # and what the norm takes off as their mean is the same for all tokens.
        chosen = np.zeros((self.weights.width, self.weights.width))
        chosen[:, : logits.shape[1]] = self.read(logits)
        found = {
            "bert.embeddings.word_embeddings.weight": rows,
            "bert.embeddings.position_embeddings.weight": places,
            "cls.predictions.transform.dense.weight": chosen.T,
            "cls.predictions.decoder.weight": np.eye(logits.shape[1], self.weights.width),
        }
        for layer in range(self.weights.layers):
            name = f"bert.encoder.layer.{layer}"
            reads, constant, writes = self.attention(layer)
            for part, numbers in zip(("query", "key", "value"), reads, strict=True):
                found[f"{name}.attention.self.{part}.weight"] = numbers.T
            found[f"{name}.attention.self.query.bias"] = constant
            found[f"{name}.attention.output.dense.weight"] = writes.T
            reading, inner, writing, outer = self.mlp(layer)
            found[f"{name}.intermediate.dense.weight"], found[f"{name}.intermediate.dense.bias"] = reading.T, inner
            found[f"{name}.output.dense.weight"], found[f"{name}.output.dense.bias"] = writing.T, outer
        return found
