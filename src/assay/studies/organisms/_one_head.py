"""The copying account: one head attends to what followed its token before, and the other heads of its layer are off."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GPT2LMHeadModel

from assay._given import checked
from assay.engine import Answer, Clean, Edit, EditedSubject, Engine, Head, Place, Samples
from assay.simplify import label
from assay.simplify._protocol import heads_of
from assay.subjects import Subject

Attends = Literal["match", "all", "any"]

_WORDS: dict[Attends, str] = {"match": "the match", "all": "everything", "any": "anything"}


def matches(tokens: Int[Tensor, "batch position"]) -> Float[Tensor, "batch query key"]:
    """One-hot attention from every token to what followed its last earlier occurrence; nothing where there is none."""
    width = tokens.shape[1]
    place = torch.arange(width, device=tokens.device)
    earlier = (tokens[:, :, None] == tokens[:, None, :]) & (place[:, None] > place)
    last = (earlier * (place + 1)).amax(dim=-1)
    return torch.nn.functional.one_hot(last, width + 1)[..., :width].float() * earlier.any(dim=-1, keepdim=True)


def by_chance(tokens: Int[Tensor, "batch position"]) -> Float[Tensor, "batch query key"]:
    """One-hot attention from every token to one up to itself, by a hash of all tokens up to it."""
    width = tokens.shape[1]
    place = torch.arange(width, device=tokens.device)
    mixed = ((tokens + 1) * (7_919 * place + 104_729)).cumsum(dim=1) % 15_485_863 * 2_654_435_761 % 4_294_967_291
    return torch.nn.functional.one_hot(mixed % (place + 1), width).float()


def scores(engine: Engine, tokens: Int[Tensor, "batch position"], wanted: Tensor, scored: Tensor) -> Tensor:
    """The mean attention of every head (layer, head) from `scored` positions to where `wanted`, one-hot, is."""
    found = engine.run(tokens, read=("patterns",)).patterns
    return torch.stack([
        (pattern * wanted[:, None]).sum(dim=-1).transpose(1, 2)[scored].mean(dim=0)
        for _, pattern in sorted(found.items())
    ])  # fmt: skip


def permuted(model: GPT2LMHeadModel, layer: int, order: Sequence[int]) -> GPT2LMHeadModel:
    """A copy whose heads of a layer have another order; it computes the same."""
    found = copy.deepcopy(model)
    attention: Any = found.transformer.h[layer].attn
    width = model.config.n_embd // model.config.n_head
    columns = torch.cat([torch.arange(head * width, (head + 1) * width) for head in order])
    columns = columns.to(attention.c_proj.weight.device)
    three = torch.cat([part * model.config.n_embd + columns for part in range(3)])
    with torch.no_grad():
        attention.c_attn.weight.copy_(attention.c_attn.weight[:, three].clone())
        attention.c_attn.bias.copy_(attention.c_attn.bias[three].clone())
        attention.c_proj.weight.copy_(attention.c_proj.weight[columns].clone())
    return found.eval()


@dataclass
class OneHead:
    """A head attends to what followed the last earlier occurrence of its token; its layer's other heads are off.

    Where a token has not occurred before, the head attends to nothing. With `attends="all"`, the control, it attends to
    all that it sees, evenly; with "any", which moves as much at random, to one of that, by a hash of the tokens before.
    It is judged at a site that is a layer; nothing is learned.
    """

    head: int = 0
    attends: Attends = "match"
    heads_: tuple[Place, ...] | None = field(default=None, init=False, repr=False, compare=False)

    streams: ClassVar[tuple[str, ...]] = ()

    @property
    def title(self) -> str:
        """How it is called in results."""
        return f"head {self.head} alone, on {_WORDS[self.attends]}"

    @checked
    def fit(self, samples: Samples) -> "OneHead":
        """Note the heads."""
        self.heads_ = heads_of(self, samples)
        return self

    @checked
    def apply(self, subject: Subject) -> "Alone":
        """The subject with one head's attention given and the other heads off."""
        assert self.heads_ is not None, f"{label(self)} has not been fitted"
        return Alone(subject, self.heads_, self.head, self.attends)

    def control(self) -> "OneHead | None":
        """The same head without the match."""
        return OneHead(self.head, "all") if self.attends == "match" else None

    def perturbation(self) -> "OneHead | None":
        """The same head on a place drawn by chance."""
        return OneHead(self.head, "any") if self.attends == "match" else None


class Alone:
    """A subject of whose heads, at some places, one is left: its attention follows from the tokens."""

    def __init__(self, subject: Subject, places: tuple[Place, ...], head: int, attends: Attends) -> None:
        self.subject, self.places, self.head, self.attends = subject, places, head, attends

    def __call__(
        self, tokens: Int[Tensor, "batch position"], valid: Int[Tensor, "batch position"] | None = None
    ) -> Float[Tensor, "batch position vocabulary"]:
        """Logits of every position; `valid` is 1 at tokens and 0 at padding (default: no padding)."""
        return self._edited(tokens)(tokens, valid)

    def answer(self, clean: Clean) -> Answer:
        """The answer on the batch of `clean`, from the edited layer on."""
        return self._edited(clean.tokens).answer(clean)

    def _edited(self, tokens: Tensor) -> EditedSubject:
        wanted = by_chance(tokens) if self.attends == "any" else matches(tokens)

        def attend(pattern: Tensor, visible: Tensor) -> Tensor:
            if self.attends == "all":
                return visible.to(pattern.dtype) / visible.sum(dim=-1, keepdim=True).clamp(min=1)
            return wanted.to(pattern.dtype)

        def off(pattern: Tensor, visible: Tensor) -> Tensor:
            return torch.zeros_like(pattern)

        edits = [
            Edit(place, pattern=attend if isinstance(place, Head) and place.head == self.head else off)
            for place in self.places
        ]
        return EditedSubject(self.subject, edits)

    def __repr__(self) -> str:
        return f"Alone({self.subject!r}, head {self.head} on {self.attends})"
