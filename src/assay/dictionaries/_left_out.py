"""The tokens that the training of a published dictionary left out, as far as its files say."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from transformers import PreTrainedTokenizerBase

from assay._errors import AssayError
from assay.tasks import Split


@dataclass(frozen=True)
class LeftOut:
    """The tokens of a split whose like a dictionary never saw in training, by why; `untold` says what cannot be told.

    Each is (sequence, position), false at padding, and only reasons that hold somewhere are there.
    """

    by: Mapping[str, Bool[np.ndarray, "sequence position"]]
    untold: tuple[str, ...] = ()

    def __or__(self, other: "LeftOut") -> "LeftOut":
        """Those that either of two left out."""
        both = {**self.by, **{why: own | self.by.get(why, False) for why, own in other.by.items()}}
        return LeftOut(both, tuple(dict.fromkeys((*self.untold, *other.untold))))

    @property
    def any(self) -> Bool[np.ndarray, "sequence position"] | None:
        """Those left out for any reason; None if there are none."""
        return np.logical_or.reduce(list(self.by.values())) if self.by else None


def left_out(origin: Mapping[str, Any], split: Split, tokenizer: PreTrainedTokenizerBase | None) -> LeftOut:
    """The tokens of a split that a dictionary's training left out.

    By the keys of `Dictionary.origin`: tokens at other `positions`, or beyond the `context` (negative positions count
    from its end); `excluded_tokens`, of which True are all special tokens of the subject's tokenizer; where `bos` is
    false, tokens that begin sequences, and where it is true, every token of a sequence that does not begin with one: no
    position of such a sequence is as it was in training. As in TransformerLens, a tokenizer without a token that begins
    sequences has its end token for it. Raises AssayError for positions that are no start, end and step.
    """
    found: dict[str, Bool[np.ndarray, "sequence position"]] = {}
    untold = []
    try:
        for why, tokens in _reasons(origin, split, tokenizer):
            if tokens is None:
                untold.append(why)
            elif (tokens & split.valid).any():
                found[why] = tokens & split.valid
    except (TypeError, ValueError):
        raise AssayError(
            f"the files of this dictionary have the positions {origin['positions']!r}, which are no start, end and "
            "step of whole numbers; mend them (SAELens: seqpos_slice), or leave them out."
        ) from None
    return LeftOut(found, tuple(untold))


def _reasons(
    origin: Mapping[str, Any], split: Split, tokenizer: PreTrainedTokenizerBase | None
) -> Iterator[tuple[str, Bool[np.ndarray, "sequence position"] | None]]:
    """Why tokens were left out, and which; None for those of which it cannot be told."""
    tokens, width = split.tokens, split.tokens.shape[1]
    context, positions = origin.get("context"), origin.get("positions")
    if context is not None:
        yield f"beyond the {context} tokens of its sequences", _at(np.arange(width) >= context, tokens)
    if positions is not None:
        part, most = slice(*positions), width if context is None else int(context)
        if context is None and any(end is not None and end < 0 for end in (part.start, part.stop)):
            yield f"at other positions than {_shown(part)} of sequences whose length its files do not say", None
        else:
            seen = np.zeros(max(most, width), dtype=bool)
            seen[:most][part] = True
            # What lies beyond the context has its own reason.
            yield f"at other positions than {_shown(part)}", _at(~seen[:width] & (np.arange(width) < most), tokens)
    excluded = origin.get("excluded_tokens")
    if excluded is True:
        special = None if tokenizer is None else np.isin(tokens, tokenizer.all_special_ids)
        yield "special tokens", special
    elif excluded:
        yield "tokens that it excluded", np.isin(tokens, excluded)
    if origin.get("bos") is not None:
        begins = _begins(tokens, tokenizer)
        if origin["bos"]:
            lacking = None if begins is None else np.broadcast_to(~begins[:, :1], tokens.shape)
            yield "in sequences without the token that begins a text (prepend_bos)", lacking
        else:
            yield "tokens that begin a text (prepend_bos: false)", begins


def _at(chosen: Bool[np.ndarray, " position"], tokens: Int[np.ndarray, "sequence position"]) -> np.ndarray:
    return np.broadcast_to(chosen, tokens.shape)


def _begins(
    tokens: Int[np.ndarray, "sequence position"], tokenizer: PreTrainedTokenizerBase | None
) -> Bool[np.ndarray, "sequence position"] | None:
    """Whether each token is the one that begins a text; None where the tokenizer is not known."""
    if tokenizer is None:
        return None
    bos = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return np.zeros(tokens.shape, dtype=bool) if bos is None else tokens == bos


def _shown(part: slice) -> str:
    """Positions as Python writes them."""
    ends = ["" if end is None else str(end) for end in (part.start, part.stop)]
    return ":".join(ends if part.step in (None, 1) else [*ends, str(part.step)])


def caution_of(
    origin: Mapping[str, Any], splits: Sequence[Split], tokenizer: PreTrainedTokenizerBase | None
) -> str | None:
    """What a comparison has to say of a dictionary that acts on tokens that its training left out; None if on none."""
    found = [left_out(origin, split, tokenizer) for split in splits]
    shares: dict[str, list[str]] = {}
    for own, split in zip(found, splits, strict=True):
        for why, chosen in own.by.items():
            shares.setdefault(why, []).append(f"{chosen.sum() / split.valid.sum():.1%} of {split.name}")
    said = [f"{why}: {', '.join(own)}" for why, own in shares.items()]
    sentences = []
    if said:
        sentences.append(
            f"by its files it was not trained on some of the tokens that it acts on, {'; '.join(said)}; "
            "diagnostics.reconstruction has these as a kind of their own."
        )
    untold = dict.fromkeys(why for own in found for why in own.untold)
    if untold:
        sentences.append(f"{told_of(untold)}.")
    return " ".join(sentences) or None


def told_of(untold: Iterable[str]) -> str:
    """That it is not known of which tokens a dictionary knows nothing."""
    return (
        f"by its files it was not trained on tokens {' and '.join(untold)}, and which these are cannot be told here "
        "(the subject has no tokenizer, or the files do not say enough)"
    )
