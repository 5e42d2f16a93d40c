"""Labels in context: two exemplars with their labels, and one of the exemplars again, of which the label is asked.

After aadityasingh/icl-dynamics (arXiv 2404.07129); the sizes are ours.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from transformers import GPT2Config, GPT2LMHeadModel

from assay._errors import AssayError, unknown_name
from assay._given import check_fields
from assay.subjects import IGNORED, Batch
from assay.tasks import NO_TOKEN, UNSCORED, Feature, Kind, Role, Split

EXEMPLARS, LABELS, LENGTH = 50, 5, 5
"""Exemplars are tokens 0 to 49, labels 50 to 54; a sequence is x1 l1 x2 l2 q."""

LABEL_TOKENS = tuple(range(EXEMPLARS, EXEMPLARS + LABELS))

HELD = ((0, 1), (2, 3))
"""Pairs of labels that never occur together in training; each label occurs there with others."""

SHOWN = tuple(pair for pair in combinations(range(LABELS), 2) if pair not in HELD)

QUERY = LENGTH - 1


@dataclass(frozen=True)
class LabelsInContext:
    """Two exemplars with labels, and a query that is one of them; the answer is its label.

    | split | sequences |
    |---|---|
    | train, iid | the two labels are one of eight pairs |
    | relabelled | the two labels are one of the two other pairs |

    The counterfactual asks for the other exemplar; its label is the foil.
    """

    seed: int = 0

    name = "labels-in-context"
    primary_kind = "label"
    split_names = ("train", "iid", "relabelled")
    kinds = (Kind("label", "the label that the query had in the context", LABEL_TOKENS),)
    features = (Feature("slot", "where the exemplar stands", ("label",), (0, 1), ("first", "second")),)

    def __post_init__(self) -> None:
        check_fields(self)

    def describe(self) -> dict[str, object]:
        """The parameters, as plain values."""
        return {"task": self.name, **asdict(self)}

    def split(self, name: str, sequences: int) -> Split:
        """The first `sequences` sequences of a split. Raises AssayError for an unknown split or a number below 1."""
        roles: dict[str, tuple[Role, str]] = {
            "train": ("train", "pairs of labels that occur in training"),
            "iid": ("iid", "fresh sequences of that kind"),
            "relabelled": ("shift", "pairs of labels that never occur together in training"),
        }
        if name not in roles:
            raise unknown_name("split", name, roles)
        if sequences < 1:
            raise AssayError(f"split({name!r}, sequences={sequences}): must be at least 1.")
        rng = np.random.default_rng([self.seed, 1 + self.split_names.index(name)])
        tokens, slot = draw(rng, sequences, HELD if name == "relabelled" else SHOWN)
        rows = np.arange(sequences)
        other = tokens.copy()
        other[:, QUERY] = tokens[rows, 2 * (1 - slot)]
        role, description = roles[name]

        def at_query(values: np.ndarray | int, elsewhere: int) -> np.ndarray:
            found = np.full(tokens.shape, elsewhere)
            found[:, QUERY] = values
            return found

        return Split(
            name=name,
            role=role,
            description=description,
            tokens=tokens,
            lengths=np.full(sequences, LENGTH),
            kinds=at_query(0, UNSCORED),
            features={"slot": at_query(slot, 0)},
            counterfactuals=other,
            answers=at_query(tokens[rows, 2 * slot + 1], NO_TOKEN),
            foils=at_query(tokens[rows, 3 - 2 * slot], NO_TOKEN),
        )


def draw(
    rng: np.random.Generator, count: int, pairs: tuple[tuple[int, int], ...]
) -> tuple[Int[np.ndarray, "count position"], Int[np.ndarray, " count"]]:
    """Sequences whose two labels are one of `pairs`, and which of the two exemplars is asked for."""
    first = rng.integers(EXEMPLARS, size=count)
    second = (first + rng.integers(1, EXEMPLARS, size=count)) % EXEMPLARS
    labels = EXEMPLARS + rng.permuted(np.array(pairs)[rng.integers(len(pairs), size=count)], axis=1)
    slot = rng.integers(2, size=count)
    query = np.where(slot == 0, first, second)
    return np.column_stack((first, labels[:, 0], second, labels[:, 1], query)), slot


def batches(*, batch: int, seed: int) -> Callable[[int], Batch]:
    """Fresh training sequences; the batch of a step depends on nothing but the seed and the step."""

    def at(step: int) -> Batch:
        tokens, slot = draw(np.random.default_rng([seed, 0, step]), batch, SHOWN)
        labels = np.full(tokens.shape, IGNORED)
        labels[:, QUERY] = tokens[np.arange(batch), 2 * slot + 1]
        return Batch(tokens, labels)

    return at


def attention_only(
    seed: int, *, vocabulary: int, positions: int, width: int = 64, spread: float = 0.3
) -> GPT2LMHeadModel:
    """A fresh GPT-2 of 2 layers of 4 heads whose MLPs write nothing and are not trained.

    Learned positions, layer norm, an unembedding of its own; embeddings have standard deviation `spread`.
    """
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=positions,
        n_embd=width,
        n_layer=2,
        n_head=4,
        n_inner=1,
        initializer_range=width**-0.5,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
        for embedding in (model.transformer.wte, model.transformer.wpe):
            torch.nn.init.normal_(embedding.weight, std=spread)
    blocks: Any = model.transformer.h
    for block in blocks:
        for parameter in (*block.mlp.parameters(), *block.ln_2.parameters()):
            parameter.requires_grad_(False)
        torch.nn.init.zeros_(block.mlp.c_proj.weight)
    return model
