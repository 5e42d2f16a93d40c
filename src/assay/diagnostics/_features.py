"""Single features of a dictionary: how much each is used, which of them tell something, and where they are on."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from assay._errors import AssayError, unknown_name
from assay._given import checked
from assay.diagnostics._encoded import Encoded, chosen_splits, encoded
from assay.dictionaries import DENSE
from assay.engine import Engine
from assay.simplify import Simplification
from assay.subjects import Subject
from assay.tasks import Split, Task, bound

USE_COLUMNS = ("place", "split", "role", "feature", "vectors", "on", "mean", "largest", "contribution")


@checked
def feature_use(
    subject: Subject,
    task: Task,
    fitted: Simplification,
    *,
    place: str | None = None,
    splits: Collection[str] | None = None,
    sequences: int = 500,
) -> pd.DataFrame:
    """How much every feature of a fitted dictionary is used: one row a (split, feature).

    Over all tokens of `sequences` sequences of a split: `on` is the share of them that the feature is on at, `mean` its
    mean activation (zeros count), `largest` the largest, all in the units of the codes; `contribution` is the mean
    times the length of the feature's row of the decoder: how much of the reconstruction it makes on average, in the
    units of the vectors, which compares features whose rows are of different lengths.

    `place` is that of the dictionary ("layer2.residual"), and may be left out where the recipe has one. `splits` are
    names; by default iid and all shifts. Raises AssayError for a recipe without dictionaries or not fitted, and for an
    unknown place or split.
    """
    task = bound(task, subject.tokenizer)
    engine, one = Engine(subject), encoded(fitted, place)
    length = one.dictionary.W_dec.double().norm(dim=1).cpu().numpy()
    frames = []
    for split in chosen_splits(task, splits, sequences):
        on, total, largest, vectors = (np.zeros(one.dictionary.features) for _ in range(4))
        for batch in one.batches(engine, split):
            index = batch.codes.index.cpu().numpy()
            value = batch.codes.value.double().cpu().numpy()
            on += np.bincount(index, minlength=len(on))
            total += np.bincount(index, weights=value, minlength=len(on))
            np.maximum.at(largest, index, value)
            vectors += len(batch.vectors)
        mean = total / vectors
        columns: dict[str, Any] = {
            "place": one.name, "split": split.name, "role": split.role, "feature": np.arange(len(on)),
            "vectors": vectors.astype(np.int64), "on": on / vectors, "mean": mean, "largest": largest,
            "contribution": mean * length,
        }  # fmt: skip
        frames.append(pd.DataFrame(columns, columns=list(USE_COLUMNS)))
    return pd.concat(frames, ignore_index=True)


@checked
def telling_features(use: pd.DataFrame, *, count: int = 2, shift: str | None = None) -> pd.DataFrame:
    """A few features worth looking at, of a frame of `feature_use`: columns `feature`, `why` and `split`, a shift.

    In this order, at most `count` of each, none twice: "moved", those whose mean contribution changes most between iid
    and a shift; "newly dense", those on at more than a tenth of the tokens of a shift and not of iid, the most used
    first; "most used", those of the largest mean contribution on iid. `split` is the shift in which a feature moved
    most, or `shift`.

    The features that moved most of thousands moved in part by chance: this says where to look, not that something is
    there. Raises AssayError for a frame without iid, or without a shift, and for an unknown shift.
    """
    if count < 1:
        raise AssayError(f"telling_features(count={count}): must be at least 1.")
    of_iid = use[use["role"] == "iid"].set_index("feature")
    shifts = list(dict.fromkeys(use["split"][use["role"] == "shift"]))
    if shift is not None and shift not in shifts:
        raise unknown_name("shift", shift, shifts)
    chosen = shifts if shift is None else [shift]
    if of_iid.empty or not chosen:
        raise AssayError(
            "features are picked by what changes between iid and a shift, and there is no "
            f"{'shift' if chosen == [] else 'iid'} in this frame; give feature_use() both splits."
        )
    by_shift = {name: use[use["split"] == name].set_index("feature").loc[of_iid.index] for name in chosen}
    moves = pd.DataFrame({name: (own["contribution"] - of_iid["contribution"]).abs() for name, own in by_shift.items()})
    where = moves.idxmax(axis=1)
    dense = pd.DataFrame({name: own["on"].where(of_iid["on"] <= DENSE, 0.0) for name, own in by_shift.items()})
    ranked = {
        "moved": moves.max(axis=1),
        "newly dense": dense.max(axis=1).where(lambda on: on > DENSE, 0.0),
        "most used": of_iid["contribution"],
    }
    rows: list[tuple[int, str, str]] = []
    for why, score in ranked.items():
        order = score[score > 0].sort_values(ascending=False, kind="stable").index
        fresh = [int(one) for one in order if int(one) not in {row[0] for row in rows}]
        at = dense.idxmax(axis=1) if why == "newly dense" else where
        rows += [(one, why, str(at.loc[one])) for one in fresh[:count]]
    return pd.DataFrame(rows, columns=["feature", "why", "split"])


@dataclass(frozen=True)
class TopSequence:
    """The tokens around the place where a feature is most active in a sequence, with its activation at each.

    `sequence` is its number in the split, `start` the position there of the first token that is shown. `texts` are the
    tokens as they stand in the text, white space included; `activations` are in the units of the codes, 0 where the
    feature is off; `best` is the index of the largest.
    """

    sequence: int
    start: int
    tokens: tuple[int, ...]
    texts: tuple[str, ...]
    activations: tuple[float, ...]

    @property
    def best(self) -> int:
        """Which of the tokens the feature is most active at."""
        return int(np.argmax(self.activations))

    @property
    def largest(self) -> float:
        """The largest activation."""
        return max(self.activations)


@dataclass(frozen=True)
class TopSequences:
    """Where a feature is most active on a split: the first is the most active.

    `on` is the share of all tokens that it is on at, `mean` its mean activation over all of them, zeros included. There
    are no `sequences` where it is never on.
    """

    place: str
    feature: int
    split: str
    role: str
    on: float
    mean: float
    sequences: tuple[TopSequence, ...]


@checked
def top_sequences(
    subject: Subject,
    task: Task,
    fitted: Simplification,
    features: int | Sequence[int],
    *,
    place: str | None = None,
    splits: Collection[str] | None = None,
    count: int = 5,
    sequences: int = 500,
    before: int = 24,
    after: int = 8,
) -> list[TopSequences]:
    """The `count` sequences of every split in which a feature is most active: one entry a (feature, split), in order.

    Of a sequence only its most active place is shown, with at most `before` tokens before it and `after` behind it. Of
    places with the same tokens around them one is shown. Several features are looked for in one pass. Sequences of
    equal activation are in the order of the split.

    What a feature's name would be made of: the sequences of iid and of a shift side by side show whether it would be
    the same name. The most active sequences are not what a feature mostly does; `described` asks that.

    `place` and `splits` are as in `feature_use`. Raises AssayError as it does, and for an unknown feature.
    """
    for name, value, least in (("count", count, 1), ("before", before, 0), ("after", after, 0)):
        if value < least:
            raise AssayError(f"top_sequences({name}={value}): must be at least {least}.")
    task = bound(task, subject.tokenizer)
    engine, one = Engine(subject), encoded(fitted, place)
    numbers = [one.checked(each) for each in ([features] if isinstance(features, int | np.integer) else features)]
    found: dict[tuple[int, str], TopSequences] = {}
    for split in chosen_splits(task, splits, sequences):
        active = activations(engine, split, one, numbers)
        tokens = int(split.lengths.sum())
        for number, own in zip(numbers, active, strict=True):
            shown = _top(subject, split, own, count, before, after)
            found[number, split.name] = TopSequences(
                one.name, number, split.name, split.role, float((own > 0).sum()) / tokens, float(own.sum()) / tokens,
                tuple(shown),
            )  # fmt: skip
    return [found[key] for key in sorted(found, key=lambda key: numbers.index(key[0]))]


def activations(
    engine: Engine, split: Split, one: Encoded, features: Sequence[int]
) -> Float[np.ndarray, "feature sequence position"]:
    """The activations of some features at all tokens of a split; 0 at padding."""
    found = np.zeros((len(features), *split.tokens.shape))
    for batch in one.batches(engine, split):
        rows, index = batch.codes.rows.cpu(), batch.codes.index.cpu()
        for number, feature in enumerate(features):
            entries = torch.nonzero(index == feature)[:, 0]
            at = rows[entries].numpy()
            found[number, batch.sequence[at], batch.position[at]] = batch.codes.value.cpu()[entries].double().numpy()
    return found


def _top(  # noqa: PLR0917
    subject: Subject, split: Split, active: Float[np.ndarray, "sequence position"], count: int, before: int, after: int
) -> Iterator[TopSequence]:
    """The most active sequences of a feature, of those with equal tokens one."""
    shown: set[bytes] = set()
    largest = active.max(axis=1)
    for row in np.argsort(-largest, kind="stable").tolist():
        if not largest[row] > 0 or len(shown) == count:
            return
        best = int(active[row].argmax())
        start, end = max(0, best - before), min(int(split.lengths[row]), best + after + 1)
        window = split.tokens[row, start:end]
        key = window.astype(np.int64).tobytes()
        if key not in shown:
            shown.add(key)
            yield TopSequence(
                sequence=row,
                start=start,
                tokens=tuple(window.tolist()),
                texts=tuple(texts_of(subject, split, split.tokens[row, :end])[start:]),
                activations=tuple(active[row, start:end].tolist()),
            )


def texts_of(subject: Subject, split: Split, tokens: Int[np.ndarray, " position"]) -> list[str]:
    """What each token adds to the text before it; without a tokenizer its name, or its number, and a space."""
    ids: list[int] = tokens.tolist()
    tokenizer = subject.tokenizer
    if tokenizer is None:
        names: Mapping[int, str] = split.names or {}
        return [f"{names.get(token, token)} " for token in ids]
    decoded: dict[tuple[int, ...], str] = {}

    def text(*some: int) -> str:
        if some not in decoded:
            decoded[some] = str(tokenizer.decode(list(some), clean_up_tokenization_spaces=False))
        return decoded[some]

    found = []
    for place, token in enumerate(ids):
        # Alone, a token loses the white space that some tokenizers join words with.
        head = text(ids[place - 1]) if place else ""
        both = text(ids[place - 1], token) if place else text(token)
        found.append(both[len(head) :] if both.startswith(head) else text(token))
    return found
