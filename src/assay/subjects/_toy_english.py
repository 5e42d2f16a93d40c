"""The reference model of toy English: its shape, its recipe, and its batches."""

from random import Random

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from assay._given import checked
from assay.subjects._train import IGNORED, Batch, Recipe
from assay.tasks.toy_english import BOS, CONTEXT, PAD, VOCABULARY, Document, document

TOY_ENGLISH_RECIPE = Recipe(
    steps=5_000,
    learning_rate=3e-3,
    betas=(0.9, 0.98),
    weight_decay=0.05,
    warmup_steps=100,
    checkpoint_every=100,
    cooldown=0.3,
)

ROWS = 32
"""Rows of a batch, each of `CONTEXT` tokens."""

ANSWER_WEIGHT = 25.0
"""What the loss of a determined prediction counts; that of any other counts 1, and would drown it at equal weight."""


class PackedDocuments:
    """Batches of training sentences, several in a row of tokens; `batches(step)` depends on seed and step alone.

    Sentences go into the first row that has room, until `misfits` of them have found none. No sentence sees another
    (`Batch.documents`), and each is read from position 0.
    """

    misfits = 12

    def __init__(self, seed: int, *, rows: int = ROWS) -> None:
        self.seed = seed
        self.rows = rows

    def __call__(self, step: int) -> Batch:
        """The batch of a step."""
        random = Random(f"toy-english/train/{self.seed}/{step}")
        rows: list[list[Document]] = [[] for _ in range(self.rows)]
        room = [CONTEXT] * self.rows
        misfits = 0
        while misfits < self.misfits:
            found = document(random)
            length = len(found.tokens)
            row = next((row for row, left in enumerate(room) if left >= length), None)
            if row is None:
                misfits += 1
                continue
            rows[row].append(found)
            room[row] -= length
        return _batch(rows)


def _batch(rows: list[list[Document]]) -> Batch:
    """Rows of documents in arrays; what is left of a row is a document of its own, without labels."""
    shape = (len(rows), CONTEXT)
    tokens, labels = np.full(shape, PAD, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
    weights, documents = np.ones(shape, dtype=np.float32), np.zeros(shape, dtype=np.int64)
    for row, held in enumerate(rows):
        start = 0
        for number, one in enumerate(held, start=1):
            end = start + len(one.tokens)
            tokens[row, start:end] = one.tokens
            labels[row, start : end - 1] = one.tokens[1:]
            weights[row, start:end] = np.where(one.sure, ANSWER_WEIGHT, 1.0)
            documents[row, start:end] = number
            start = end
    return Batch(tokens, labels, weights, documents)


@checked
def toy_english_model(seed: int, *, width: int = 96, layers: int = 3, heads: int = 4) -> LlamaForCausalLM:
    """A fresh reference model: Llama with 3 layers of 4 heads, width 96, gated MLP of 256, tied embeddings."""
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=width,
        intermediate_size=256 * width // 96,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=None,
        pad_token_id=PAD,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
