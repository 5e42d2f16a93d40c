"""Two models counted as llama.cpp counts: a text in its chunks, both run on them."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from assay._errors import AssayError
from assay._given import checked
from assay.engine import Proxy
from assay.models._llama_cpp import LEAST, Counts, as_split, counting, scored_by_llama_cpp, through_llama_cpp
from assay.subjects import Subject
from assay.tasks import Role, Split

CONTEXT = 512
"""Tokens a chunk, where nothing else is said."""


@checked
def cut_like_llama_cpp(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    context: int = CONTEXT,
    chunks: int | None = None,
    name: str = "text",
    role: Role = "iid",
) -> Split:
    """A text in whole chunks of `context` tokens, as `llama-perplexity` cuts it, at most `chunks` of them (None: all).

    It is one sequence to the tokenizer. Where that puts a token of its own in front (BOS), every chunk begins with it,
    in the place of its own first token. Predictions are scored at `scored_by_llama_cpp(context)`.

    Raises AssayError for a tokenizer that puts anything else around a text, and where llama.cpp counts nothing: in a
    text of fewer tokens than two chunks, and of fewer than 100 predictions.
    """
    inside, whole = (
        tokenizer("a", add_special_tokens=special, verbose=False)["input_ids"] for special in (False, True)
    )
    around = len(whole) - len(inside)
    if around not in (0, 1) or whole[around:] != inside:
        raise AssayError(
            f"split {name!r}: the tokenizer makes {whole} of 'a' and {inside} without special tokens; llama.cpp counts "
            "where there is one token in front at most, and none behind."
        )
    ids = tokenizer(text, verbose=False)["input_ids"]
    if context < 3 or len(ids) < 2 * context:
        raise AssayError(
            f"split {name!r}: its text has {len(ids):,} tokens, and llama.cpp counts at least two chunks of "
            f"{context:,} (and of 3); give more text, or a shorter context (--context)."
        )
    count = min(len(ids) // context, chunks or len(ids))
    scored = scored_by_llama_cpp(context)
    if count * (scored.stop - scored.start) < LEAST:
        raise AssayError(
            f"split {name!r}: {count:,} chunks of {context:,} tokens have {count * (scored.stop - scored.start)} "
            f"predictions that count, and llama.cpp gives no statistics of fewer than {LEAST}; give more text."
        )
    tokens = np.array(ids[: count * context], dtype=np.int64).reshape(count, context)
    return as_split(tokens, name, role, whole[0] if around else None)


@checked
def count_like_llama_cpp(subject: Subject, other: Proxy, split: Split) -> Counts:
    """What `llama-perplexity --kl-divergence` would say of another model beside the subject: both are run on chunks.

    `split` is of `cut_like_llama_cpp`. The subject's log-probabilities are taken as they come back from llama.cpp's
    file, so that even a model beside itself has a mean KL, of about 1e-6 nats. Chunks are run one at a time. Raises
    AssayError as `counting` does.
    """
    scored = scored_by_llama_cpp(split.tokens.shape[1])
    tokens = torch.from_numpy(split.tokens).to(subject.device)

    def rows(model: Proxy) -> Iterator[Tensor]:
        for chunk in tokens.split(1):
            # Two of these run in turn: a yield within no_grad would leave gradients off for good.
            with torch.no_grad():
                found = model(chunk, torch.ones_like(chunk))[0, scored]
            yield found

    targets = split.tokens[:, scored.start + 1 : scored.stop + 1].reshape(-1)
    return counting(map(through_llama_cpp, rows(subject)), rows(other), targets)
