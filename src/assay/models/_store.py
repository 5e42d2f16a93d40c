"""A model's log-probabilities at the scored positions of a split, kept in a folder: what stands in for a large subject.

`store.json` says what the rows are of: hashes of the split's tokens, lengths, scored positions, kinds and targets, the
vocabulary, the form, and the description of the model with the hash of its weights. The rows lie in chunks
(`*.safetensors`), each with the numbers of its rows and a checksum, and each either finished or not there: a writer
that was stopped goes on with what is missing. Rows are numbered by sequence, then position.

Two forms. "float32" keeps the numbers. "16-bit" takes half the room: for each row codes c of 16 bits, a step and a
level,

    ln p = level − step · (65,535 − c),

with step = (highest ln p − lowest ln p) / 65,534 and the level such that the probabilities, as they are read, sum to
one. Code 0 stands for probability 0, as which everything below e^−750 counts. These are the codes of llama.cpp's file
(see `_llama_cpp`) without its limit of 16 nats, below which it forgets tokens, and without a sum that is off by what
rounding made of it.

What either form loses is measured when rows are written: KL(given || kept), its mean and its largest, are in the
header. A divergence from a stored subject means nothing below several times as much.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int, Shaped, UInt16
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from assay._errors import AssayError, unknown_name
from assay._files import inside, read_bytes, write_atomically
from assay.tasks import UNSCORED, Split

VERSION = 1
HEADER = "store.json"

Form = Literal["float32", "16-bit"]

CHUNK = 2**25
"""Bytes of rows from which on a chunk is written."""

_ENDING = ".safetensors"

_NUMBERS = 2**21
"""Log-probabilities that are taken at a time."""

_STEPS = 65_535
_NOTHING = -750.0
"""Below this ln p a probability is 0 in float64."""


class SelfKL(BaseModel):
    """KL(given || kept) of the rows of a store, in nats: mean and largest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: float
    largest: float


class _Header(BaseModel):
    """What store.json holds. `split` has hashes by what they are of, `predictions` the scored positions of every
    sequence. `chunks` (checksums by name) and `self_kl` are there once the store is finished."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["assay stored log-probabilities"] = "assay stored log-probabilities"
    version: int = VERSION
    form: Form
    vocabulary: int
    name: str
    split: dict[str, str]
    predictions: tuple[int, ...]
    subject: dict[str, Any]
    chunks: dict[str, str] | None = None
    self_kl: SelfKL | None = None

    @property
    def of(self) -> str:
        """A hash of what the rows are of."""
        asked = self.model_dump(mode="json", exclude={"chunks", "self_kl"})
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def split_hashes(split: Split) -> dict[str, str]:
    """Hashes of all that stored rows depend on, by what they are of; padding, whose width is free, is left out."""
    scored = split.kinds != UNSCORED
    arrays = {
        "tokens": split.tokens[split.valid],
        "lengths": split.lengths,
        "scored positions": np.argwhere(scored),
        "kinds": split.kinds[scored],
        **({} if split.targets is None else {"targets": split.targets[scored]}),
    }
    found = {
        name: hashlib.sha256(np.ascontiguousarray(array, dtype="<i8").tobytes()).hexdigest()
        for name, array in arrays.items()
    }
    return {"objective": split.objective, **found}


class _Encoded(NamedTuple):
    """Rows in the form they are kept in: codes with steps and levels, or the numbers themselves."""

    values: Shaped[np.ndarray, "row vocabulary"]
    steps: Float32[np.ndarray, " row"] | None = None
    levels: Float32[np.ndarray, " row"] | None = None

    def decoded(self) -> Float32[np.ndarray, "row vocabulary"]:
        """Log-probabilities."""
        if self.steps is None or self.levels is None:
            return self.values
        return _decode(self.values, self.steps, self.levels)


def _decode(
    codes: UInt16[np.ndarray, "row vocabulary"], steps: Float32[np.ndarray, " row"], levels: Float32[np.ndarray, " row"]
) -> Float32[np.ndarray, "row vocabulary"]:
    found = codes.astype(np.float32)
    found -= np.float32(_STEPS)
    found *= steps[:, None]
    found += levels[:, None]
    found[codes == 0] = -np.inf
    return found


def _normalized(rows: Float64[np.ndarray, "row vocabulary"]) -> Float64[np.ndarray, "row vocabulary"]:
    """Rows whose probabilities sum to one."""
    top = rows.max(axis=1, keepdims=True)
    found: np.ndarray = rows - (top + np.log(np.exp(rows - top).sum(axis=1, keepdims=True)))
    return found


def _encode(log_p: Float64[np.ndarray, "row vocabulary"], form: Form) -> _Encoded:
    if form == "float32":
        return _Encoded(log_p.astype(np.float32))
    possible = log_p >= _NOTHING
    top = log_p.max(axis=1)
    lowest = np.where(possible, log_p, top[:, None]).min(axis=1)
    # A row of equal numbers has no range; any step does.
    steps = np.maximum((top - lowest) / (_STEPS - 1), np.finfo(np.float32).tiny).astype(np.float32)
    below = np.divide(top[:, None] - log_p, steps[:, None], out=np.full_like(log_p, _STEPS), where=possible)
    codes = (_STEPS - np.minimum(np.rint(below), np.where(possible, _STEPS - 1, _STEPS))).astype(np.uint16)
    kept = _decode(codes, steps, np.zeros_like(steps)).astype(np.float64)
    return _Encoded(codes, steps, -np.log(np.exp(kept).sum(axis=1)).astype(np.float32))


def _self_kl(
    given: Float64[np.ndarray, "row vocabulary"], kept: Float32[np.ndarray, "row vocabulary"]
) -> Float64[np.ndarray, " row"]:
    """KL(given || kept) of every row: the sum of q − p + p r, with r = ln p/q, of which no term is negative."""
    log_q = _normalized(kept.astype(np.float64))
    p = np.exp(given)
    ratio = np.subtract(given, log_q, out=np.zeros_like(given), where=p > 0)
    # Where r is small, the terms as written are what rounding leaves of them.
    near = (np.abs(ratio) < 1) & (p > 0)
    small = p * (np.expm1(-np.where(near, ratio, 0)) + ratio)
    found: np.ndarray = np.where(near, small, np.exp(log_q) - p + p * ratio).sum(axis=1)
    return found


class StoreWriter:
    """Writes the log-probabilities of a model at the scored positions of a split, going on with what was begun.

    `subject` is what is known of the model, with its `weights_sha256` (`Subject.describe()`). `form` is "float32" or
    "16-bit" (half the room). If the folder holds a part of the same store, that stays: `missing` are the sequences that
    still need rows. Rows are written in chunks as soon as there are enough of them, and `finish` makes all a store.
    Raises AssayError for a folder with anything else (saying what differs), for damage, and for a split without
    predictions, as those for embeddings are.
    """

    def __init__(
        self, folder: str | Path, split: Split, *, vocabulary: int, subject: Mapping[str, Any], form: str = "16-bit"
    ) -> None:
        scored = split.kinds != UNSCORED
        if not scored.any():
            raise AssayError(f"split {split.name!r} has no scored prediction, so there is nothing to store of it.")
        if split.occurring.max() >= vocabulary:
            raise AssayError(
                f"split {split.name!r} has token {split.occurring.max()}, which a vocabulary of {vocabulary:,} has not."
            )
        if "weights_sha256" not in subject:
            raise AssayError(
                "StoreWriter(): the description of the subject has no weights_sha256, by which its rows are known "
                "again; give Subject.describe()."
            )
        self.folder = Path(folder)
        asked = _Header(
            form=_resolve_form(form),
            vocabulary=vocabulary,
            name=split.name,
            split=split_hashes(split),
            predictions=tuple(scored.sum(axis=1).tolist()),
            subject=json.loads(json.dumps(dict(subject))),
        )
        self._header = _begin(self.folder, asked)
        self._numbers = np.where(scored, np.cumsum(scored).reshape(scored.shape) - 1, -1)
        self._there: Bool[np.ndarray, " row"] = np.zeros(int(scored.sum()), dtype=bool)
        self._chunks = {path.name: _Chunk(path, self._header) for path in sorted(self.folder.glob(f"*{_ENDING}"))}
        for chunk in self._chunks.values():
            chunk.check()
        self._there[_all_rows(self.folder, self._chunks.values(), len(self._there))] = True
        self._waiting: list[tuple[Int[np.ndarray, " row"], _Encoded, Float64[np.ndarray, " row"]]] = []

    @property
    def missing(self) -> Int[np.ndarray, " sequence"]:
        """The sequences of which rows are still to be added."""
        ends = np.cumsum(self._header.predictions)
        there = np.concatenate(([0], np.cumsum(self._there)))
        done = there[ends] - there[ends - self._header.predictions]
        return np.flatnonzero(done < self._header.predictions)

    def add(
        self,
        sequences: Int[np.ndarray, " row"],
        positions: Int[np.ndarray, " row"],
        log_probabilities: Float[Tensor, "row vocabulary"],
    ) -> None:
        """Add rows, in any order: of which sequences, at which positions, and their log-probabilities or logits.

        Rows that are there already are left as they are. Raises AssayError for a position that is not scored, for one
        that is given twice, and for numbers that are no logits (NaN, +∞, or all of them −∞).
        """
        vocabulary = self._header.vocabulary
        if log_probabilities.shape[1] != vocabulary:
            raise AssayError(f"StoreWriter.add(): rows of {log_probabilities.shape[1]:,} tokens, not {vocabulary:,}.")
        size, width = self._numbers.shape
        inside = (sequences >= 0) & (sequences < size) & (positions >= 0) & (positions < width)
        numbers = np.where(inside, self._numbers[np.where(inside, sequences, 0), np.where(inside, positions, 0)], -1)
        if (numbers < 0).any():
            place = int((numbers < 0).argmax())
            raise AssayError(
                f"StoreWriter.add(): position {positions[place]} of sequence {sequences[place]} is not scored in split "
                f"{self._header.name!r}."
            )
        if len(np.unique(numbers)) < len(numbers):
            raise AssayError("StoreWriter.add(): a position of a sequence is given twice.")
        new = np.flatnonzero(~self._there[numbers])
        rows = max(1, _NUMBERS // vocabulary)
        for start in range(0, len(new), rows):
            chosen = new[start : start + rows]
            given = log_probabilities[torch.from_numpy(chosen)].detach().to("cpu", torch.float64).numpy()
            top = given.max(axis=1)
            if not np.isfinite(top).all():
                place = int(chosen[(~np.isfinite(top)).argmax()])
                raise AssayError(
                    f"StoreWriter.add(): position {positions[place]} of sequence {sequences[place]} has numbers that "
                    f"are no logits; the largest is {top[~np.isfinite(top)][0]}."
                )
            log_p = _normalized(given)
            encoded = _encode(log_p, self._header.form)
            self._waiting.append((numbers[chosen], encoded, _self_kl(log_p, encoded.decoded())))
            self._there[numbers[chosen]] = True
            if sum(part.values.nbytes for _, part, _ in self._waiting) >= CHUNK:
                self._write()

    def finish(self) -> "Store":
        """The store, with all rows. Raises AssayError if some were not added; those that were are kept."""
        self._write()
        if len(self.missing):
            raise AssayError(
                f"the store {str(self.folder)!r} has {int(self._there.sum()):,} of {len(self._there):,} predictions; "
                f"{len(self.missing):,} sequences are not complete, the first of them is {self.missing[0]}."
            )
        chunks = {name: chunk.checksum for name, chunk in sorted(self._chunks.items())}
        found = _overall(self._chunks.values(), len(self._there))
        _write_header(self.folder, self._header.model_copy(update={"chunks": chunks, "self_kl": found}))
        return Store(self.folder)

    def _write(self) -> None:
        """Write what waits as a chunk."""
        if not self._waiting:
            return
        numbers, encoded, errors = zip(*self._waiting, strict=True)
        rows, kl = np.concatenate(numbers), np.concatenate(errors)
        order = np.argsort(rows)
        parts = [part for part in zip(*encoded, strict=True) if part[0] is not None]
        arrays = {name: np.concatenate(part)[order] for name, part in zip(_Encoded._fields, parts, strict=False)}
        arrays["rows"] = rows[order]
        said = {"of": self._header.of, "kl_sum": repr(float(kl.sum())), "kl_largest": repr(float(kl.max()))}
        said["sha256"] = _checksum(said, arrays)
        # Named by its first row, so that whoever does the same work again writes the same file.
        path = self.folder / f"{rows.min():010d}{_ENDING}"
        write_atomically(path, lambda file: save_file(arrays, file, metadata=said))
        self._chunks[path.name] = _Chunk(path, self._header)
        self._waiting.clear()


class Store:
    """Log-probabilities that `StoreWriter` wrote, read where they lie: a row is loaded when it is asked for.

    Its length is the number of sequences, `predictions` the number of rows of each, `self_kl` what the form lost, and
    `subject` the description of the model that they are of. Raises AssayError for a store that is not finished,
    damaged, or of a newer version; the checksum of a chunk is tried when the first row of it is read.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._header = header = _read_header(self.folder)
        if header.chunks is None or header.self_kl is None:
            raise AssayError(f"the store {str(self.folder)!r} is not finished; write it again, and it goes on.")
        self.form, self.vocabulary, self.subject = header.form, header.vocabulary, header.subject
        self.split_name, self.predictions, self.self_kl = header.name, header.predictions, header.self_kl
        self._chunks = [_Chunk(inside(self.folder, name), header) for name in header.chunks]
        total = sum(header.predictions)
        numbers = _all_rows(self.folder, self._chunks, total)
        if (
            [chunk.checksum for chunk in self._chunks] != list(header.chunks.values())
            or len(numbers) != total
            or _overall(self._chunks, total) != header.self_kl
        ):
            raise AssayError(
                f"{self.folder / HEADER} is damaged: its chunks are others than it says; write the "
                "store again, which puts it right."
            )
        self._first = np.cumsum((0, *header.predictions))
        places = [np.arange(len(chunk.rows)) for chunk in self._chunks]
        self._chunk_of, self._place_of = np.empty(total, dtype=np.int64), np.empty(total, dtype=np.int64)
        self._chunk_of[numbers] = np.repeat(np.arange(len(places)), [len(place) for place in places])
        self._place_of[numbers] = np.concatenate(places)

    def __len__(self) -> int:
        return len(self.predictions)

    def check(self, split: Split) -> None:
        """Raise AssayError unless the rows are of this split's tokens, scored positions, kinds and targets."""
        other = _differing(self._header.split, split_hashes(split))
        if other:
            raise AssayError(
                f"the store {str(self.folder)!r} is not of split {split.name!r} but of other {', '.join(other)}; store "
                "the log-probabilities of this split, or judge the one that was stored."
            )

    def rows(self, sequence: int, start: int = 0, stop: int | None = None) -> Float[Tensor, "prediction vocabulary"]:
        """Log-probabilities of a sequence's scored positions in order, from its prediction `start` to before `stop`.

        In float32; probabilities sum to one. Raises AssayError for a sequence that there is not, and for damage.
        """
        if not 0 <= sequence < len(self):
            raise AssayError(f"the store {str(self.folder)!r} has sequences 0 to {len(self) - 1}, not {sequence}.")
        start, stop, _ = slice(start, stop).indices(self.predictions[sequence])
        before = int(self._first[sequence])
        chosen = slice(before + start, before + max(start, stop))
        chunks, places = self._chunk_of[chosen], self._place_of[chosen]
        found = torch.empty((len(chunks), self.vocabulary))
        breaks = np.flatnonzero((np.diff(chunks) != 0) | (np.diff(places) != 1)) + 1
        for run in np.split(np.arange(len(chunks)), breaks):
            if len(run):
                place = int(places[run[0]])
                kept = self._chunks[chunks[run[0]]].read(place, place + len(run))
                found[run[0] : run[-1] + 1] = torch.from_numpy(kept.decoded())
        return found


class _Chunk:
    """A file of rows. What it says of itself is read at once."""

    def __init__(self, path: Path, header: _Header) -> None:
        self.path = path
        self._checked = False
        coded: dict[str, tuple[str, list[int]]] = (
            {"steps": ("F32", []), "levels": ("F32", [])} if header.form == "16-bit" else {}
        )
        kinds = {"rows": ("I64", []), "values": ("U16" if coded else "F32", [header.vocabulary]), **coded}
        with self._open() as file:
            self._said: dict[str, str] = file.metadata() or {}
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
            lengths = {tuple(part.get_shape()[:1]) for part in slices.values()}
            found = {name: (part.get_dtype(), part.get_shape()[1:]) for name, part in slices.items()}
            if found != kinds or len(lengths) != 1 or self._said["of"] != header.of:
                raise AssayError(f"{path} is of another store than the {HEADER} beside it; {_AGAIN}.")
            self._names = sorted(slices)
            self.rows: Int[np.ndarray, " row"] = file.get_tensor("rows")
            self.checksum = self._said["sha256"]
            self.self_kl = float(self._said["kl_sum"]), float(self._said["kl_largest"])

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            with safe_open(self.path, framework="numpy") as file:
                yield file
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise self._damaged(str(error)) from None

    def _damaged(self, why: str) -> AssayError:
        return AssayError(f"{self.path} is damaged ({why}); {_AGAIN}.")

    def check(self) -> None:
        """Raise AssayError if the checksum is another one; it is made once."""
        if self._checked:
            return
        with self._open() as file:
            found = _checksum(self._said, {name: file.get_tensor(name) for name in self._names})
        if found != self.checksum:
            raise self._damaged("its checksum is another one")
        self._checked = True

    def read(self, start: int, stop: int) -> _Encoded:
        """Some of the rows."""
        self.check()
        with self._open() as file:
            return _Encoded(**{name: file.get_slice(name)[start:stop] for name in self._names if name != "rows"})


_AGAIN = "remove it, and write the store again, which goes on with what is left"


def _checksum(said: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps([said["of"], said["kl_sum"], said["kl_largest"]]).encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def _overall(chunks: Iterable[_Chunk], total: int) -> SelfKL:
    sums, largest = zip(*(chunk.self_kl for chunk in chunks), strict=True)
    return SelfKL(mean=math.fsum(sums) / total, largest=max(largest))


def _all_rows(folder: Path, chunks: Iterable[_Chunk], total: int) -> Int[np.ndarray, " row"]:
    """The numbers of the rows of chunks, one after the other. Raises AssayError for one that is there twice."""
    numbers = np.concatenate([np.zeros(0, dtype=np.int64), *(chunk.rows for chunk in chunks)])
    if len(np.unique(numbers[(numbers >= 0) & (numbers < total)])) < len(numbers):
        raise AssayError(
            f"the store {str(folder)!r} is damaged: its chunks overlap; remove the folder and write the store again."
        )
    return numbers


def _resolve_form(name: str) -> Form:
    for form in get_args(Form):
        if name == form:
            return form
    raise unknown_name("form of a store", name, get_args(Form))


def _begin(folder: Path, asked: _Header) -> _Header:
    """The header of the folder, written if there is none. Raises AssayError if it is of something else."""
    if folder.exists() and not folder.is_dir():
        raise AssayError(f"{str(folder)!r} is a file; give a folder for the store.")
    if not (folder / HEADER).exists():
        if folder.exists() and any(folder.glob(f"*{_ENDING}")):
            raise AssayError(f"{str(folder)!r} has {_ENDING} files that are of no store; give another folder.")
        _write_header(folder, asked)
        return asked
    held = _read_header(folder)
    if held.of != asked.of:
        other = [name for name in ("form", "vocabulary", "subject") if getattr(held, name) != getattr(asked, name)]
        other += _differing(held.split, asked.split)
        raise AssayError(
            f"{str(folder)!r} holds the store of something else (different: {', '.join(other) or 'the split name'}); "
            "give another folder, or remove that one."
        )
    return held


def _differing(held: Mapping[str, str], asked: Mapping[str, str]) -> list[str]:
    return [name for name in {**held, **asked} if held.get(name) != asked.get(name)]


def _write_header(folder: Path, header: _Header) -> None:
    text = header.model_dump_json(indent=1) + "\n"
    write_atomically(folder / HEADER, lambda path: path.write_text(text, encoding="utf-8"))


def _read_header(folder: Path) -> _Header:
    path = folder / HEADER
    try:
        data = read_bytes(path)
    except OSError as error:
        raise AssayError(
            f"{str(folder)!r} is no store of log-probabilities: its {HEADER} cannot be read ({error.strerror})."
        ) from None
    try:
        version = json.loads(data)["version"]
    except (ValueError, TypeError, KeyError, RecursionError):
        version = VERSION
    if isinstance(version, int) and version > VERSION:
        raise AssayError(
            f"{str(folder)!r} is a store of version {version}, written by a newer version of Assay than this one, "
            f"which reads up to {VERSION}; update Assay."
        )
    try:
        return _Header.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise AssayError(
            f"{path} is damaged ({where}: {first['msg']}); remove the folder and write the store again."
        ) from None
