"""Another model in the place of the subject: compressed, converted, distilled, a later checkpoint."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from assay._errors import AssayError
from assay._given import check_fields, checked
from assay.engine import Samples, WholeModel
from assay.subjects import Subject, load
from assay.tasks import Split

PROBES = ("  two  spaces\nand a line\tor a tab", "naïve Ünïcödé – 漢字 🙂", "3.14159 + 2_000 = x1; return None")
"""What two tokenizers have to cut alike, beside the text itself: white space, accents, other scripts, digits, code."""

_PROBED = 8
"""Sequences on which padding is tried."""


@dataclass
class OtherModel:
    """Another model as a proxy of the subject: is it still the same model, on this text and elsewhere?

    `model` is whatever `assay.load` reads (a folder, also with quantized weights, a name on the hub, a shipped model, a
    GGUF file, an adapter of peft), a `Subject`, or a Hugging Face model that is in memory already. It is run whole, by
    its own code, on the subject's tokens, and judged as any other proxy: there is nothing to fit, no control, and no
    refit. `name` is what it is called in the results (default: the folder's or the model's own). `dtype` is what it is
    computed in (default: as it was saved). `base` goes with an adapter or a GGUF file (see `assay.load`).

    The two have to be asked the same (`objective`) and to mean the same by every token. Tokenizers are compared token
    by token, and on text; a model without a tokenizer is refused for text unless `same_tokenizer` says that it has the
    subject's. A vocabulary that is padded beyond the subject's is cut before any softmax, and the share of probability
    that was in the padding stands in the warnings.

    Raises AssayError, before any work, where they do not: another objective, another tokenizer (with the first token
    that differs), fewer answers than the subject has, fewer positions than a split is long, padding that changes
    predictions, or what `assay.load` refuses.
    """

    model: str | Path | Subject | PreTrainedModel
    name: str | None = None
    dtype: torch.dtype | None = None
    base: Subject | None = None
    same_tokenizer: bool = False
    loaded_: Subject | None = field(default=None, init=False, repr=False, compare=False)
    extra_: int = field(default=0, init=False, repr=False, compare=False)
    about_: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    caution_: str | None = field(default=None, init=False, repr=False, compare=False)

    whole: ClassVar[bool] = True
    streams: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def title(self) -> str:
        """How it is called in results."""
        if self.name is not None:
            return self.name
        if isinstance(self.model, Subject):
            return self.model.name
        if isinstance(self.model, PreTrainedModel):
            return (self.model.name_or_path or "").rstrip("/").rpartition("/")[2] or type(self.model).__name__
        return Path(self.model).name or str(self.model)

    @property
    def caution(self) -> str | None:
        """What to know of it before believing its numbers."""
        return self.caution_

    @checked
    def fit(self, samples: Samples) -> "OtherModel":
        """Nothing is fitted."""
        return self

    @checked
    def apply(self, subject: Subject) -> WholeModel:
        """The other model, where the subject is."""
        other = self.other().to(subject.device)
        return WholeModel(other, vocabulary=_answers_of(subject) if self.extra_ else None)

    def control(self) -> None:
        """None: it explains nothing, so it has nothing to beat."""

    def describe(self) -> dict[str, Any]:
        """What the record keeps of it: the model as it was loaded, and what of the subject's weights it changes."""
        return {**self.other().describe(), **self.about_}

    def other(self) -> Subject:
        """The other model, loaded when it is first asked for."""
        if self.loaded_ is None:
            self.loaded_ = self._load()
        return self.loaded_

    def _load(self) -> Subject:
        if isinstance(self.model, str | Path):
            return load(self.model, dtype=self.dtype, base=self.base)
        found = self.model if isinstance(self.model, Subject) else Subject(self.model, None, self.title)
        if self.dtype not in (None, found.model.dtype):
            raise AssayError(
                f"OtherModel(dtype={self.dtype}): {self.title!r} is in memory already, in {found.model.dtype}; convert "
                "it (model.to(dtype)), or give a folder."
            )
        return found

    def check(self, subject: Subject, splits: Sequence[Split]) -> None:
        """Raise AssayError unless the other model can stand for the subject on these splits."""
        other = self.other()
        if other.objective != subject.objective:
            raise AssayError(
                f"{self.title!r} is asked as {other.objective!r} and {subject.name!r} as {subject.objective!r}; give "
                "both the same objective (load(objective=...))."
            )
        if subject.objective == "embedding" and (other.pooling, other.prompt) != (subject.pooling, subject.prompt):
            raise AssayError(
                f"{self.title!r} is used with pooling {other.pooling!r} and prompt {other.prompt!r}, and "
                f"{subject.name!r} with {subject.pooling!r} and {subject.prompt!r}; give both the same."
            )
        other.to(subject.device)
        self._check_tokens(subject, other, splits)
        limit = other.positions
        for split in splits:
            if limit is not None and split.tokens.shape[1] > limit:
                raise AssayError(
                    f"split {split.name!r} has sequences of {split.tokens.shape[1]} tokens but {self.title!r} has "
                    f"{limit} positions; make the sequences shorter (max_length=, --max-length)."
                )
        self._check_answers(subject, other, splits[-1])
        self._check_padding(other, splits[-1])
        self.about_ = {"weights_changed": _changed(subject, other)}

    def _check_tokens(self, subject: Subject, other: Subject, splits: Sequence[Split]) -> None:
        """Raise AssayError unless both mean the same by every token."""
        largest = max(int(split.occurring[-1]) for split in splits)
        if largest >= other.vocabulary:
            raise AssayError(
                f"the splits have token {largest} but {self.title!r} has embeddings of 0 to {other.vocabulary - 1} "
                "only; it is not a model of this vocabulary."
            )
        mine, theirs = subject.tokenizer, other.tokenizer
        if mine is None or all(split.names is None for split in splits) or self.same_tokenizer:
            return
        if theirs is None:
            raise AssayError(
                f"{self.title!r} has no tokenizer, so nothing says that it means the same by a token as "
                f"{subject.name!r}; save it beside the model (tokenizer.save_pretrained(folder)), or say "
                "OtherModel(same_tokenizer=True) (--same-tokenizer)."
            )
        known = min(subject.vocabulary, other.vocabulary)
        for token, (own, their) in enumerate(zip(_names(mine, known), _names(theirs, known), strict=True)):
            if own != their:
                raise AssayError(
                    f"token {token} is {own!r} to {subject.name!r} and {their!r} to {self.title!r}: they have other "
                    "tokenizers, so their predictions cannot be compared token by token."
                )
        for text in PROBES:
            for special in (True, False):
                own_ids, their_ids = (one(text, add_special_tokens=special)["input_ids"] for one in (mine, theirs))
                if own_ids != their_ids:
                    raise AssayError(
                        f"the tokenizers of {subject.name!r} and {self.title!r} cut {text!r} differently "
                        f"({own_ids[:8]} … and {their_ids[:8]} …{', special tokens included' if special else ''}), "
                        "so their predictions cannot be compared token by token."
                    )

    def _check_padding(self, other: Subject, split: Split) -> None:
        """Raise AssayError if what stands behind a sequence changes what is answered in it."""
        part = split.first(_PROBED)
        short, long = int(part.lengths.argmin()), int(part.lengths.max())
        length = int(part.lengths[short])
        if length == long:
            return
        tokens = torch.from_numpy(part.tokens[[short]].astype("int64")).to(other.device)
        valid = torch.from_numpy(part.valid[[short]].astype("int64")).to(other.device)
        padded, alone = other(tokens, valid)[:, :length], other(tokens[:, :length])
        exact = padded.dtype in (torch.float32, torch.float64)
        # In half precision another length is another order of rounding, which is far above that of float32.
        tolerance = (1e-3 if exact else 0.25) * float(alone.abs().max())
        difference = float((padded - alone).abs().max())
        if not difference <= tolerance:
            raise AssayError(
                f"{self.title!r} answers differently when a sequence is padded (a logit moves by {difference:.2g}), so "
                "it ignores which tokens are valid; it cannot be judged in batches."
            )

    def _check_answers(self, subject: Subject, other: Subject, split: Split) -> None:
        """Raise AssayError for fewer answers than the subject's; note how many more there are, and their mass."""
        part = split.first(_PROBED)
        tokens = torch.from_numpy(part.tokens.astype("int64")).to(other.device)
        valid = torch.from_numpy(part.valid.astype("int64")).to(other.device)
        logits = other(tokens, valid)
        broken = (~torch.isfinite(logits).all(dim=-1) & valid.bool()).nonzero()
        if len(broken):
            sequence, position = broken[0].tolist()
            raise AssayError(
                f"{self.title!r} gives logits that are not finite (sequence {sequence} of {split.name}, position "
                f"{position}); it cannot be judged (in half precision, try float32)."
            )
        if subject.objective == "embedding":
            return
        expected = _answers_of(subject)
        self.extra_ = logits.shape[-1] - expected
        if self.extra_ < 0:
            raise AssayError(
                f"{self.title!r} answers with {logits.shape[-1]} tokens and {subject.name!r} with {expected}; another "
                "model needs at least those of the subject. If the subject's are padded, compare the other way round."
            )
        self.caution_ = None
        if self.extra_:
            mass = float(logits.float().softmax(dim=-1)[..., expected:].sum(dim=-1)[valid.bool()].mean())
            self.caution_ = (
                f"{self.title} has {self.extra_:,} answers more than the subject; they are cut before the softmax, and "
                f"had {100 * mass:.2g}% of its probability on the first sequences."
            )

    def __getstate__(self) -> dict[str, Any]:
        """Its parameters and what it is: a folder of other weights is another model, a loaded one needs no copy."""
        other = self.other()
        state = {item.name: getattr(self, item.name) for item in fields(self)}
        state |= {"loaded_": None, "weights": [other.weights_sha256, other.config_sha256, str(other.model.dtype)]}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({name: value for name, value in state.items() if name != "weights"})

    def __deepcopy__(self, memo: dict[int, Any]) -> "OtherModel":
        """Itself: it learns nothing, and its weights are never changed."""
        return self


def _answers_of(subject: Subject) -> int:
    """How many tokens the subject answers with."""
    return int(subject(torch.zeros(1, 1, dtype=torch.long, device=subject.device)).shape[-1])


def _names(tokenizer: PreTrainedTokenizerBase, known: int) -> Iterator[str | None]:
    """What a tokenizer calls the first tokens, in their order; None where it has none."""
    by_id = {number: name for name, number in tokenizer.get_vocab().items()}
    return (by_id.get(token) for token in range(known))


def _changed(subject: Subject, other: Subject) -> dict[str, Any]:
    """How many of the subject's matrices the other model has changed; why that cannot be said, where it cannot."""
    mine, theirs = (
        {name: tensor for name, tensor in one.model.state_dict().items() if tensor.dim() >= 2}
        for one in (subject, other)
    )
    if {name: tensor.shape for name, tensor in mine.items()} != {name: each.shape for name, each in theirs.items()}:
        return {"unknown": "its matrices are stored otherwise than the subject's"}
    changed = [
        name for name, tensor in mine.items() if not torch.equal(tensor.float(), theirs[name].to(tensor.device).float())
    ]
    numbers = sum(tensor.numel() for tensor in mine.values())
    return {
        "matrices": len(changed),
        "of": len(mine),
        "share_of_parameters": sum(mine[name].numel() for name in changed) / max(numbers, 1),
    }
