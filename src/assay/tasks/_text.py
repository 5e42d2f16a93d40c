"""Your own text: one split a file, every next token a prediction."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from assay._errors import AssayError, unknown_name
from assay.tasks._task import UNSCORED, Feature, Kind, Role, Split

Source = str | Path | Sequence[str]
"""A file of UTF-8 text with one sequence a line, or the sequences themselves."""


@dataclass(frozen=True)
class Text:
    """Next-token prediction on text: a train split to fit on, `iid`, and any number of named shifts.

    Each of `train`, `iid` and the values of `shifts` is a text file with one sequence a line, or a list of strings.
    Blank lines are passed over; longer sequences are cut to `max_length` tokens, and those with fewer than two tokens
    have nothing to predict and are left out. Sequences are used in order.

    Kinds of prediction: a token that occurred `repeated`ly (it stands earlier in the sequence) or is `new` in it.
    Raises AssayError for a file that cannot be read as text, an empty split, a name that is taken.
    """

    tokenizer: PreTrainedTokenizerBase
    train: Source
    iid: Source
    shifts: Mapping[str, Source]
    max_length: int = 256

    name = "text"
    primary_kind = "all"
    kinds = (
        Kind("repeated", "a token that stands earlier in the sequence"),
        Kind("new", "a token that does not stand earlier in the sequence"),
    )
    features: tuple[Feature, ...] = ()

    def __post_init__(self) -> None:
        taken = {"train", "iid"} & set(self.shifts)
        if taken:
            raise AssayError(f"Text(shifts=...): {', '.join(sorted(taken))} is no name for a shift; choose another.")
        if self.max_length < 2:
            raise AssayError(f"Text(max_length={self.max_length}): must be at least 2.")

    @property
    def split_names(self) -> tuple[str, ...]:
        """train, iid and the shifts."""
        return ("train", "iid", *self.shifts)

    def _lines(self, name: str) -> list[str]:
        source = {"train": self.train, "iid": self.iid, **self.shifts}[name]
        if not isinstance(source, str | Path):
            return [line for line in source if line.strip()]
        try:
            text = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise AssayError(f"split {name!r}: {str(source)!r} cannot be read as UTF-8 text ({error}).") from None
        return [line for line in text.splitlines() if line.strip()]

    def split(self, name: str, sequences: int) -> Split:
        """The first `sequences` sequences of a split, fewer if it has fewer."""
        if name not in self.split_names:
            raise unknown_name("split", name, self.split_names)
        if sequences < 1:
            raise AssayError(f"split({name!r}, sequences={sequences}): must be at least 1.")
        rows: list[list[int]] = []
        for line in self._lines(name):
            ids = self.tokenizer(line, truncation=True, max_length=self.max_length)["input_ids"]
            if len(ids) >= 2:
                rows.append(list(ids))
            if len(rows) == sequences:
                break
        if not rows:
            raise AssayError(f"split {name!r} has no sequence of at least two tokens.")
        lengths = np.array([len(row) for row in rows])
        tokens = np.zeros((len(rows), lengths.max()), dtype=np.int64)
        kinds = np.full(tokens.shape, UNSCORED, dtype=np.int64)
        for index, row in enumerate(rows):
            tokens[index, : len(row)] = row
            seen: set[int] = set()
            for place in range(len(row) - 1):
                seen.add(row[place])
                kinds[index, place] = 0 if row[place + 1] in seen else 1
        role: Role = "train" if name == "train" else "iid" if name == "iid" else "shift"
        return Split(name, role, f"your text for {name}", tokens, lengths, kinds)

    def describe(self) -> dict[str, object]:
        """Names of the splits with a hash of their text, as plain values."""
        hashes = {name: hashlib.sha256("\n".join(self._lines(name)).encode()).hexdigest() for name in self.split_names}
        return {"task": "text", "max_length": self.max_length, **{f"{name}_sha256": h for name, h in hashes.items()}}
