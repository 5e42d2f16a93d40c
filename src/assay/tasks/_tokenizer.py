"""The character-level tokenizer of the code models, and what tells one tokenizer from another."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from assay._errors import AssayError, in_line, is_failure
from assay._given import checked

SPECIALS = ("<start>", "<end>", "<pad>", "<unknown>")
"""The first tokens of every vocabulary, in this order; single characters follow."""

START, END, PAD, UNKNOWN = range(len(SPECIALS))


def character_tokenizer(vocabulary: Sequence[str], context: int) -> PreTrainedTokenizerFast:
    """A tokenizer of the vocabulary: one token a character, START in front, unknown characters as unknown."""
    start, end, pad, unknown = SPECIALS
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(vocabulary)}, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", pair=f"{start} $A {end} $B", special_tokens=[(start, START), (end, END)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=start,
        eos_token=end,
        pad_token=pad,
        unk_token=unknown,
        model_max_length=context,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )


def encoded(tokenizer: PreTrainedTokenizerBase, text: str | list[str], **options: Any) -> Any:
    """What a tokenizer makes of text. Raises AssayError where it fails."""
    try:
        return tokenizer(text, **options)
    except BaseException as error:  # tokenizers raises nothing more special, and panics
        if not is_failure(error):
            raise
        raise AssayError(
            f"the tokenizer cannot read a text ({in_line(error)}); a tokenizer needs tokens for all that it may meet, "
            "or an unknown token (unk_token) in their place."
        ) from None


@checked
def code_vocabulary(tokenizer: PreTrainedTokenizerBase | None) -> tuple[str, ...]:
    """The vocabulary of a code model, in the order of its ids, for `Code(vocabulary_from=…)`.

    Raises AssayError if the tokenizer is missing or not one of characters.
    """
    vocabulary = {} if tokenizer is None else tokenizer.get_vocab()
    tokens = tuple(sorted(vocabulary, key=vocabulary.__getitem__))
    if tokens[: len(SPECIALS)] != SPECIALS or [vocabulary[token] for token in tokens] != list(range(len(tokens))):
        shown = "no tokenizer" if tokenizer is None else f"a {type(tokenizer).__name__} of {len(tokens)} tokens"
        raise AssayError(
            f"the code task needs a model with a character tokenizer ({', '.join(SPECIALS)}, then characters), as "
            f"`assay train code` makes; this one has {shown}."
        )
    return tokens


@checked
def token_names(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[int]) -> dict[int, str]:
    """What a tokenizer calls each of the tokens; those that it does not have are left out."""
    if tokenizer.is_fast:
        wanted = list(tokens)
        found = zip(wanted, tokenizer.convert_ids_to_tokens(wanted), strict=True)
        return {token: name for token, name in found if name is not None}
    vocabulary = {token: name for name, token in tokenizer.get_vocab().items()}
    return {token: vocabulary[token] for token in tokens if token in vocabulary}


@checked
def vocabulary_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of a tokenizer's vocabulary: every token with its id, added ones too."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()
