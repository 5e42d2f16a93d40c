"""Documents in which a segment comes twice: what there is to copy, and for some documents what there is to remember."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import Int
from transformers import GPT2Config, GPT2LMHeadModel

from assay._errors import AssayError, unknown_name
from assay._given import check_fields
from assay.subjects import IGNORED, Batch
from assay.tasks import UNSCORED, Feature, Kind, Role, Split

TOKENS, LENGTH, SEGMENT, LONGER = 32, 20, 6, 8

_SET = 10_000
"""What tells the random numbers of the repeated set from those of batches and splits."""


@dataclass(frozen=True)
class Segments:
    """Documents of 20 different tokens out of 32, but for a segment of 6 that comes twice, both places random.

    | split | documents |
    |---|---|
    | train, iid | fresh ones |
    | repeated | of the set of `documents` that a training repeats |
    | longer | fresh ones with a segment of 8 |

    Scored are the tokens of the second segment but its first (`copy`), which only copying can tell in a fresh document;
    and, of repeated documents, all others but the first (`memory`). The feature `offset` is how far the segment stands
    from itself. No token but those of the segment comes twice, so that it is plain where to copy from.
    """

    documents: int = 200
    seed: int = 0

    name = "segments"
    primary_kind = "copy"
    split_names = ("train", "iid", "repeated", "longer")
    kinds = (
        Kind("copy", "a token of the second segment, but its first"),
        Kind("memory", "another token of a document that was repeated in training"),
    )
    features = (Feature("offset", "how far the segment is from itself", ("copy",), (SEGMENT, 8, 10, 12)),)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.documents < 1:
            raise AssayError(f"Segments(documents={self.documents}): must be at least 1.")

    def describe(self) -> dict[str, object]:
        """The parameters, as plain values."""
        return {"task": self.name, **asdict(self)}

    def repeated(self) -> Int[np.ndarray, "document position"]:
        """The set that is repeated."""
        return draw(np.random.default_rng([self.seed, _SET]), self.documents)[0]

    def split(self, name: str, sequences: int) -> Split:
        """The first `sequences` documents of a split (of the repeated set at most all).

        Raises AssayError for an unknown split or a number below 1.
        """
        roles: dict[str, tuple[Role, str]] = {
            "train": ("train", "fresh documents"),
            "iid": ("iid", "fresh documents"),
            "repeated": ("shift", f"documents of the repeated set of {self.documents:,}"),
            "longer": ("shift", f"fresh documents with a segment of {LONGER} tokens"),
        }
        if name not in roles:
            raise unknown_name("split", name, roles)
        if sequences < 1:
            raise AssayError(f"split({name!r}, sequences={sequences}): must be at least 1.")
        place = self.split_names.index(name)
        rng = np.random.default_rng([self.seed, _SET if name == "repeated" else _SET + 1 + place])
        segment = LONGER if name == "longer" else SEGMENT
        count = self.documents if name == "repeated" else sequences
        tokens, first, second = (part[:sequences] for part in draw(rng, count, segment))
        at = np.arange(LENGTH)
        inner = (at >= second[:, None]) & (at < second[:, None] + segment - 1)
        kinds = np.where(inner, 0, UNSCORED)
        if name == "repeated":
            kinds = np.where(~inner & (at < LENGTH - 1), 1, kinds)
        role, description = roles[name]
        return Split(
            name=name,
            role=role,
            description=description,
            tokens=tokens,
            lengths=np.full(len(tokens), LENGTH),
            kinds=kinds,
            features={"offset": np.where(inner, (second - first)[:, None], 0)},
        )


def draw(
    rng: np.random.Generator, count: int, segment: int = SEGMENT
) -> tuple[Int[np.ndarray, "count position"], Int[np.ndarray, " count"], Int[np.ndarray, " count"]]:
    """Documents, and where their segment starts for the first and for the second time."""
    places = [(a, b) for a in range(LENGTH) for b in range(a + segment, LENGTH - segment + 1)]
    first, second = np.array(places)[rng.integers(len(places), size=count)].T
    different = rng.permuted(np.tile(np.arange(TOKENS), (count, 1)), axis=1)[:, : LENGTH - segment]
    at = np.arange(LENGTH)
    # The second segment takes no tokens of its own: it has those that stand where the first one is.
    behind, start = at >= second[:, None] + segment, second[:, None]
    source = np.where(at < start, at, np.where(behind, at - segment, at - start + first[:, None]))
    return np.take_along_axis(different, source, axis=1), first, second


def as_batch(tokens: Int[np.ndarray, "document position"]) -> Batch:
    """Documents with their next tokens as labels."""
    labels = np.full_like(tokens, IGNORED)
    labels[:, :-1] = tokens[:, 1:]
    return Batch(tokens, labels)


def batches(*, batch: int, seed: int) -> Callable[[int], Batch]:
    """Fresh documents; the batch of a step depends on nothing but the seed and the step."""
    return lambda step: as_batch(draw(np.random.default_rng([seed, 0, step]), batch)[0])


def small_decoder(seed: int, *, width: int = 64) -> GPT2LMHeadModel:
    """A fresh GPT-2 of 2 layers of 4 heads with MLPs of twice its width, learned positions and no dropout."""
    config = GPT2Config(
        vocab_size=TOKENS,
        n_positions=LENGTH,
        n_embd=width,
        n_layer=2,
        n_head=4,
        n_inner=2 * width,
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
        return cast(GPT2LMHeadModel, GPT2LMHeadModel(config))
