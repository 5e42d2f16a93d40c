"""The character-level tokenizer of the code models."""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from assay._errors import AssayError
from assay.tasks import SPECIALS, Code


def character_tokenizer(task: Code) -> PreTrainedTokenizerFast:
    """A tokenizer with the task's vocabulary: one token a character, START in front, unknown characters as unknown."""
    start, end, pad, unknown = SPECIALS
    tokenizer = Tokenizer(
        models.WordLevel({token: index for index, token in enumerate(task.vocabulary)}, unk_token=unknown)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", pair=f"{start} $A {end} $B", special_tokens=[(start, task.start_id), (end, task.end_id)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=start,
        eos_token=end,
        pad_token=pad,
        unk_token=unknown,
        model_max_length=task.context,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )


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
