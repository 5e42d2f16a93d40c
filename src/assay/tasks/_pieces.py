"""What a token stands for in its text: the start of a word, a digit, white space …"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from assay.tasks._tokenizer import encoded

CLASSES = ("word start", "word continuation", "digit", "punctuation", "whitespace", "special")
"""The classes of tokens, each token in one.

A token with a letter is a word's: its continuation if it does not begin with white space and the character before it
is a letter, a digit, an underscore or an apostrophe, else its start. Of the others, one with a digit is a digit, one
that is empty or all white space is whitespace, and the rest is punctuation (symbols too). Special are the tokens that
the tokenizer adds.
"""

_WORD_START, _CONTINUATION, _DIGIT, _PUNCTUATION, _WHITESPACE, _SPECIAL = range(len(CLASSES))


@dataclass(frozen=True)
class Piece:
    """A token's own text, white space included, and the character before it (empty at the beginning)."""

    token: int
    text: str
    before: str
    is_special: bool

    @property
    def of_class(self) -> int:
        """The token's class, an index into `CLASSES`."""
        if self.is_special:
            return _SPECIAL
        core = self.text.strip()
        if not core:
            return _WHITESPACE
        if any(character.isalpha() for character in core):
            inside = self.before.isalnum() or self.before in ("_", "'", "’")
            return _CONTINUATION if inside and not self.text[0].isspace() else _WORD_START
        return _DIGIT if any(character.isdigit() for character in core) else _PUNCTUATION


def pieces(tokenizer: PreTrainedTokenizerBase, line: str, max_length: int) -> list[Piece]:
    """The tokens of a line, at most `max_length`, special ones included.

    The text of a token is its place in the line, as fast tokenizers tell it. For the others it is what decoding the
    token after its predecessor adds.
    """
    options: dict[str, Any] = {"truncation": True, "max_length": max_length, "return_special_tokens_mask": True}
    specials = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    if tokenizer.is_fast:
        found = encoded(tokenizer, line, return_offsets_mapping=True, **options)
        return [
            Piece(token, line[start:end], line[start - 1 : start] if start else "", bool(added) or token in specials)
            for token, (start, end), added in zip(
                found["input_ids"], found["offset_mapping"], found["special_tokens_mask"], strict=True
            )
        ]
    found = encoded(tokenizer, line, **options)
    tokens: list[int] = found["input_ids"]
    added = [bool(mark) or token in specials for token, mark in zip(tokens, found["special_tokens_mask"], strict=True)]
    return [
        Piece(
            token,
            *_decoded(tokenizer, tokens[place - 1 : place] if place and not added[place - 1] else [], token),
            mark,
        )
        for place, (token, mark) in enumerate(zip(tokens, added, strict=True))
    ]


def _decoded(tokenizer: PreTrainedTokenizerBase, previous: Sequence[int], token: int) -> tuple[str, str]:
    """The text that a token adds to its predecessor's, and the character before it."""
    head = str(tokenizer.decode(list(previous)))
    both = str(tokenizer.decode([*previous, token]))
    return (both[len(head) :] if both.startswith(head) else both), head[-1:]
