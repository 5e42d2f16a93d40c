"""Sequences that occur twice, token for token: within a split, and in two splits."""

import hashlib
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from assay._errors import AssayError
from assay._given import checked
from assay.tasks._task import UNSCORED, Split


@dataclass(frozen=True)
class Overlap:
    """How many sequences of `first` also occur in `second`, and the other way round; copies are counted."""

    first: str
    second: str
    of_first: int
    of_second: int


@dataclass(frozen=True)
class Copies:
    """Exact copies among splits: the sequences of each, how many of them differ, and which pairs share any."""

    sequences: Mapping[str, int]
    different: Mapping[str, int]
    overlaps: tuple[Overlap, ...]

    def equal(self, overlap: Overlap) -> bool:
        """Whether the two splits have the same sequences, whatever their order and number of copies."""
        return (overlap.of_first, overlap.of_second) == (
            self.sequences[overlap.first],
            self.sequences[overlap.second],
        )

    def of(self, split: str) -> "Copies":
        """Only the overlaps of one split."""
        own = tuple(overlap for overlap in self.overlaps if split in (overlap.first, overlap.second))
        return replace(self, overlaps=own)


@checked
def sequence_hashes(split: Split) -> list[bytes]:
    """One hash a sequence, of its tokens without padding: equal ones are copies.

    Under masks it is of the tokens that stand there and those that are asked for, wherever the masks are. Where what is
    asked for is a tag of a token that is shown, it is of the tokens.
    """
    shown = split.tokens
    asked = split.kinds != UNSCORED
    # A mask hides its token, and is the same one everywhere.
    if split.targets is not None and len(np.unique(shown[asked])) == 1:
        shown = np.where(asked, split.targets, shown)
    rows = np.ascontiguousarray(shown.astype(np.int64))
    return [
        hashlib.sha256(row[:length].tobytes()).digest()
        for row, length in zip(rows, split.lengths.tolist(), strict=True)
    ]


@checked
def count_copies(splits: Mapping[str, Split]) -> Copies:
    """Count the copies within every split, and among every two, in the order of the mapping."""
    return copies_among({name: sequence_hashes(split) for name, split in splits.items()})


@checked
def copies_among(hashes: Mapping[str, Sequence[bytes]]) -> Copies:
    """Count copies by the `sequence_hashes` of splits."""
    counted = {name: Counter(found) for name, found in hashes.items()}
    overlaps = []
    for first, second in combinations(counted, 2):
        both = counted[first].keys() & counted[second].keys()
        if both:
            of_first, of_second = (sum(counted[name][one] for one in both) for name in (first, second))
            overlaps.append(Overlap(first, second, of_first, of_second))
    return Copies(
        {name: len(found) for name, found in hashes.items()},
        {name: len(found) for name, found in counted.items()},
        tuple(overlaps),
    )


@checked
def check_differ(copies: Copies) -> None:
    """Raise AssayError if two splits have the very same sequences."""
    for overlap in copies.overlaps:
        if copies.equal(overlap):
            raise AssayError(
                f"the splits {overlap.first!r} and {overlap.second!r} have the same sequences "
                f"({copies.different[overlap.first]:,} different ones); give each split text of its own."
            )


@checked
def warn_of_overlaps(copies: Copies) -> None:
    """Warn about every two splits that share sequences. Raises AssayError if two have the very same ones."""
    check_differ(copies)
    for overlap in copies.overlaps:
        first, second = overlap.first, overlap.second
        # Always from here, so that Python shows it once, whoever counts.
        warnings.warn(
            f"{overlap.of_second:,} of the {copies.sequences[second]:,} sequences of split {second!r} also occur in "
            f"{first!r} ({overlap.of_first:,} of its {copies.sequences[first]:,}); leave them out of one of the two, "
            "or the splits look more alike than they are.",
            UserWarning,
            stacklevel=1,
        )
