"""A model that is not in memory: its log-probabilities on the splits that are judged were stored before."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay._errors import AssayError
from assay._given import check_fields, checked
from assay.engine import NO_ATTENTION, Answer, Clean, Samples, batches, engine_of, tensors
from assay.models._store import HEADER, Store, StoreWriter
from assay.subjects import Subject
from assay.tasks import UNSCORED, Split

_POSITIONS = 64
"""Positions whose logits are made at a time."""

_Key = bytes


class _Rows(NamedTuple):
    """Where the stored rows of a sequence are, and at which of its positions."""

    store: Store
    sequence: int
    positions: Int[np.ndarray, " prediction"]


@checked
def store_model(
    subject: Subject,
    splits: Sequence[Split],
    folder: str | Path,
    *,
    form: str = "16-bit",
    progress: Callable[[str, int, int], None] = lambda split, done, total: None,
) -> Path:
    """Write a model's log-probabilities at the scored positions of splits, each into a folder of its name.

    `form` is that of `StoreWriter`. A writer that was stopped goes on with what is missing. Returns the folder. Raises
    AssayError for embeddings, which have none, and as `StoreWriter` does.
    """
    engine = engine_of(subject, parts=False)
    for split in splits:
        if split.objective == "embedding":
            raise AssayError(f"split {split.name!r} asks for embeddings, which have no log-probabilities to store.")
        vocabulary = engine.run(engine.few_tokens()).logits.shape[-1]
        about = subject.describe()
        writer = StoreWriter(Path(folder) / split.name, split, vocabulary=vocabulary, subject=about, form=form)
        missing, done = set(writer.missing.tolist()), 0
        with engine.ready():
            for index, batch in batches(engine, split):
                done += len(index)
                progress(split.name, done, len(split))
                if not missing & set(index.tolist()):
                    continue
                tokens, valid = tensors(batch, subject.device)
                run = engine.run(tokens, valid, logits=False)
                scored = batch.kinds != UNSCORED
                for positions in torch.from_numpy(np.flatnonzero(scored.any(axis=0))).split(_POSITIONS):
                    row, place = np.nonzero(scored[:, positions.numpy()])
                    found = engine.logits(run, positions.to(subject.device))[row, place]
                    writer.add(index[row], positions.numpy()[place], found)
        writer.finish()
    return Path(folder)


@checked
def is_stored(folder: str | Path) -> bool:
    """Whether a folder is one that `store_model` wrote."""
    return Path(folder).is_dir() and any(Path(folder).glob(f"*/{HEADER}"))


@dataclass
class StoredModel:
    """A model that was run before (`store_model`, `assay store`), in the place of the subject.

    It answers for the splits whose tokens, scored positions and targets it was stored on, and for nothing else. So two
    models need not be in memory together. Its answers are log-probabilities, by whose largest difference from the
    subject's logits nothing is told, and of its attention nothing is known.

    Raises AssayError, before any work, for a split that it does not hold, another vocabulary, and damaged files.
    """

    folder: str | Path
    name: str | None = None
    index_: dict[_Key, _Rows] = field(default_factory=dict, init=False, repr=False, compare=False)
    about_: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    whole: ClassVar[bool] = True
    streams: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def title(self) -> str:
        """How it is called in results."""
        return self.name or Path(self.folder).name

    @property
    def caution(self) -> str | None:
        """What the form of the store loses."""
        largest = max(self.about_.get("self_kl", {}).values(), default=0.0)
        return None if not largest else (
            f"{self.title} is read from a store, whose form alone makes a mean KL of {largest:.1e} nats; a KL that is "
            "below ten times that is skipped."
        )  # fmt: skip

    @checked
    def fit(self, samples: Samples) -> "StoredModel":
        """Nothing is fitted."""
        return self

    @checked
    def apply(self, subject: Subject) -> "_Stored":
        """What was stored. Raises AssayError before `check` has seen the splits."""
        if not self.index_:
            raise AssayError(
                f"{self.title!r} answers for the splits that it was stored on only; let compare() judge it."
            )
        return _Stored(self.title, self.index_)

    def control(self) -> None:
        """None: it explains nothing, so it has nothing to beat."""

    def describe(self) -> dict[str, Any]:
        """What the record keeps of it: the model as it was stored."""
        return self.about_

    def check(self, subject: Subject, splits: Sequence[Split]) -> None:
        """Find the rows of the splits to judge. Raises AssayError where they are missing or of something else."""
        answers = subject(torch.zeros(1, 1, dtype=torch.long, device=subject.device)).shape[-1]
        self.index_ = {}
        self_kl: dict[str, float] = {}
        for split in splits:
            if split.role == "train":
                continue
            if not (Path(self.folder) / split.name / HEADER).is_file():
                held = sorted(path.parent.name for path in Path(self.folder).glob(f"*/{HEADER}"))
                raise AssayError(
                    f"{str(self.folder)!r} holds no split {split.name!r} (it has {', '.join(held) or 'none'}); store "
                    "the model on it: assay store MODEL --split NAME=FILE."
                )
            store = Store(Path(self.folder) / split.name)
            store.check(split)
            if store.vocabulary != answers:
                raise AssayError(
                    f"{self.title!r} was stored with {store.vocabulary:,} answers and {subject.name!r} has "
                    f"{answers:,}; they have to be of one vocabulary."
                )
            self_kl[split.name] = store.self_kl.mean
            self.about_ = {**store.subject, "stored": store.form, "self_kl": self_kl}
            for sequence in range(len(split)):
                length = int(split.lengths[sequence])
                positions = np.flatnonzero(split.kinds[sequence] != UNSCORED)
                self.index_[_key(split.tokens[sequence, :length])] = _Rows(store, sequence, positions)


def _key(tokens: Int[np.ndarray, " position"]) -> _Key:
    return tokens.astype(np.int64).tobytes()


def _sequences(tokens: Tensor, valid: Tensor) -> Iterator[tuple[Int[np.ndarray, " position"], int]]:
    """Every row of a batch, and its length."""
    return zip(tokens.cpu().numpy(), valid.sum(dim=1).tolist(), strict=True)


class _Stored:
    """Answers from stores, sequence by sequence."""

    def __init__(self, title: str, index: dict[_Key, _Rows]) -> None:
        self._title, self._index = title, index
        self._vocabulary = next(iter(index.values())).store.vocabulary

    def __call__(
        self, tokens: Int[Tensor, "batch position"], valid: Int[Tensor, "batch position"] | None = None
    ) -> Float[Tensor, "batch position vocabulary"]:
        """Log-probabilities of sequences that were stored; 0 at positions that were not scored."""
        valid = torch.ones_like(tokens) if valid is None else valid
        return self._rows(tokens, valid, torch.arange(tokens.shape[1]))

    def answer(self, clean: Clean) -> Answer:
        """The answer on the batch of `clean`, read when it is asked for."""
        every = torch.arange(clean.tokens.shape[1])

        def logits(positions: slice | Tensor) -> Tensor:
            return self._rows(
                clean.tokens, clean.valid, every[positions if isinstance(positions, slice) else positions.cpu()]
            )

        kept = (self._kept(own, length) for own, length in _sequences(clean.tokens, clean.valid))
        return Answer(logits, NO_ATTENTION, 0, kl_error=max(rows.store.self_kl.mean for rows in kept))

    def _rows(self, tokens: Tensor, valid: Tensor, positions: Tensor) -> Tensor:
        found = torch.zeros(len(tokens), len(positions), self._vocabulary)
        for row, (own, length) in enumerate(_sequences(tokens, valid)):
            kept = self._kept(own, length)
            inside = np.flatnonzero(np.isin(kept.positions, positions.numpy()))
            if len(inside):
                start, stop = int(inside[0]), int(inside[-1]) + 1
                values = kept.store.rows(kept.sequence, start, stop)[torch.from_numpy(inside - start)]
                place = np.searchsorted(positions.numpy(), kept.positions[inside])
                found[row, torch.from_numpy(place)] = values
        return found.to(tokens.device)

    def _kept(self, own: Int[np.ndarray, " position"], length: int) -> _Rows:
        kept = self._index.get(_key(own[:length]))
        if kept is None:
            raise AssayError(f"{self._title!r} was not stored on a sequence that it is asked about.")
        return kept

    def __repr__(self) -> str:
        return f"StoredModel({self._title!r})"
