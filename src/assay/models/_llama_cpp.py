"""llama.cpp's file of a base model's log-probabilities (`--kl-divergence-base`), and its way of counting.

The text is cut into whole chunks of as many tokens as the context is long (n), and the predictions of a chunk's second
half count: those made at positions ⌊n/2⌋ … n − 2. The file, little endian:

| bytes | what |
|---|---|
| 8 | `_logits_` |
| 4, 4, 4 | context n (uint32), vocabulary V (int32), chunks (int32) |
| 4 · chunks · n | tokens (int32), as they are in the text |
| 2 · (2⌈V/2⌉ + 4) a prediction | scale and floor (float32), then V codes (uint16), one more word if V is odd |

ln p = scale · code + floor. Codes span the range of the logits down to 16 nats below the highest: what is lower is
written as if it were there. So the probabilities of a row may sum to more than 1, and where the right token was lower
the base's perplexity comes out too low.

Source: `tools/perplexity/perplexity.cpp` of llama.cpp at commit 050fc7f. Differences: another vocabulary, or a file of
another size than its header says, is refused (there the first is only logged); what has no value there ("nan", if
nothing differs) is 0.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, UInt16
from torch import Tensor

from assay._errors import AssayError
from assay._files import write_atomically
from assay._given import checked
from assay.tasks import UNSCORED, Role, Split

MAGIC = b"_logits_"
CLIP = 16.0
"""Nats below the highest logit at which the file's range ends; base tokens of ln p at most −16 are not counted."""

LEAST = 100
"""With fewer predictions llama.cpp gives no statistics."""

ROWS = 128
"""Predictions taken at a time."""

KL_SHARES = (0.0, 0.001, 0.01, 0.05, 0.1, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0)
CHANGE_SHARES = (0.0, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)
"""The shares of predictions whose quantiles are given; 0 and 1 are minimum and maximum."""

_HEADER = struct.Struct("<8sIii")
_WORDS = 4
"""Words of a prediction before its codes."""

_STEPS = 65_535
_ABOVE = 1e-3
"""ln p that rounding may put above 0."""


Blocks = Iterable[Float[Tensor, "_ _"]]
"""Rows (prediction, vocabulary), in blocks of any number of them."""


@checked
def scored_by_llama_cpp(context: int) -> slice:
    """The positions of a chunk whose predictions count."""
    return slice(context // 2, context - 1)


class LlamaCppFile:
    """llama.cpp's file of a base model's log-probabilities, read where it lies: nothing is loaded but the tokens.

    `context`, `vocabulary` and `chunks` are those of the header, `tokens` (chunk, position) the text. Its length is the
    number of predictions, chunk after chunk. Raises AssayError for anything but such a file, whole and of the size that
    its header says, and, if `vocabulary` is given, for one of another vocabulary.
    """

    def __init__(self, path: str | Path, *, vocabulary: int | None = None) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                head = file.read(_HEADER.size)
            size = self.path.stat().st_size
        except OSError as error:
            raise AssayError(f"{str(self.path)!r} cannot be read ({error.strerror}).") from None
        if len(head) < _HEADER.size or not head.startswith(MAGIC):
            raise AssayError(
                f"{str(self.path)!r} is no file of log-probabilities by llama.cpp: it does not begin with "
                f"{MAGIC.decode()} and its three numbers; write one with llama-perplexity --kl-divergence-base."
            )
        _, self.context, self.vocabulary, self.chunks = _HEADER.unpack(head)
        says = f"{self.chunks:,} chunks of {self.context:,} tokens, vocabulary {self.vocabulary:,}"
        if self.context < 3 or self.vocabulary < 1 or self.chunks < 1:
            raise AssayError(
                f"{str(self.path)!r} says that it has {says}; it takes a chunk, 3 tokens in it and a vocabulary."
            )
        records = self.chunks * self._in_chunk
        start = _HEADER.size + 4 * self.chunks * self.context
        expected = start + 2 * records * _words(self.vocabulary)
        if size != expected:
            raise AssayError(
                f"{str(self.path)!r} has {size:,} bytes, but {says} are {expected:,}; it is damaged or was not written "
                "to its end."
            )
        if vocabulary is not None and vocabulary != self.vocabulary:
            raise AssayError(
                f"{str(self.path)!r} is of a vocabulary of {self.vocabulary:,} tokens, not {vocabulary:,}; compare "
                "models of one vocabulary."
            )
        tokens = np.fromfile(self.path, "<i4", self.chunks * self.context, offset=_HEADER.size)
        self.tokens: Int[np.ndarray, "chunk position"] = tokens.astype(np.int64).reshape(self.chunks, self.context)
        _check_tokens(self.tokens, self.vocabulary, repr(str(self.path)))
        self._records = np.memmap(self.path, "<u2", "r", offset=start, shape=(records, _words(self.vocabulary)))

    @property
    def _in_chunk(self) -> int:
        positions = scored_by_llama_cpp(self.context)
        return positions.stop - positions.start

    def __len__(self) -> int:
        return len(self._records)

    @property
    def targets(self) -> Int[np.ndarray, " prediction"]:
        """The right token of every prediction."""
        positions = scored_by_llama_cpp(self.context)
        return self.tokens[:, positions.start + 1 : positions.stop + 1].reshape(-1)

    def rows(self, start: int = 0, stop: int | None = None) -> Float[Tensor, "prediction vocabulary"]:
        """Log-probabilities of predictions from `start` to before `stop`, in float32.

        Raises AssayError for one whose scale or floor cannot be right.
        """
        start, stop, _ = slice(start, stop).indices(len(self))
        records = np.asarray(self._records[start:stop])
        scale, floor = _spans(records)
        with np.errstate(all="ignore"):
            wrong = ~((scale >= 0) & (scale * np.float32(_STEPS) + floor <= _ABOVE) & np.isfinite(floor))
        if wrong.any():
            chunk, place = divmod(start + int(wrong.argmax()), self._in_chunk)
            raise AssayError(
                f"{str(self.path)!r} is damaged: its prediction {place} of chunk {chunk} has no log-probabilities "
                f"(scale {scale[wrong][0]:g}, floor {floor[wrong][0]:g})."
            )
        return torch.from_numpy(_decode(records, self.vocabulary))

    def blocks(self) -> Iterator[Float[Tensor, "prediction vocabulary"]]:
        """All rows in order, a block of them at a time."""
        for start in range(0, len(self), ROWS):
            yield self.rows(start, start + ROWS)

    def split(self, name: str = "base", *, role: Role = "iid", bos: int | None = None) -> Split:
        """The chunks as sequences, with one kind of prediction (0), made where the file has log-probabilities.

        `bos` is the token that a chunk begins with when it is run, instead of its own first one, as llama.cpp does if
        the tokenizer adds such a token. The file does not say whether it did.
        """
        return as_split(self.tokens, name, role, bos)


def as_split(tokens: Int[np.ndarray, "chunk position"], name: str, role: Role, bos: int | None) -> Split:
    """Chunks as `LlamaCppFile.split` gives them."""
    chunks, context = tokens.shape
    tokens = tokens.copy()
    if bos is not None:
        tokens[:, 0] = bos
    kinds = np.full_like(tokens, UNSCORED)
    kinds[:, scored_by_llama_cpp(context)] = 0
    lengths = np.full(chunks, context)
    return Split(name, role, f"chunks of {context} tokens, as llama.cpp cuts a text", tokens, lengths, kinds)


@checked
def write_llama_cpp(
    path: str | Path,
    tokens: Int[np.ndarray, "chunk position"],
    blocks: Blocks,
) -> None:
    """Write the file that llama.cpp reads by `--kl-divergence-base`: whole or not at all.

    `tokens` are the chunks of the text, `blocks` logits or log-probabilities of their predictions, those at
    `scored_by_llama_cpp(context)`, chunk after chunk, in blocks of any number of rows, of which one is held at a time.
    Where the tokenizer adds a BOS token, they are made with it as a chunk's first token, and `tokens` has the text's
    own. Raises AssayError for tokens beyond the vocabulary, for another number of rows, and for a row that has no
    largest number.
    """
    chunks, context = tokens.shape
    if context < 3 or chunks < 1:
        raise AssayError(f"write_llama_cpp(): {chunks} chunks of {context} tokens; it takes one, of at least 3 tokens.")
    write_atomically(Path(path), lambda file: _write(file, tokens, blocks))


def _write(path: Path, tokens: Int[np.ndarray, "chunk position"], blocks: Blocks) -> None:
    chunks, context = tokens.shape
    expected = chunks * (scored_by_llama_cpp(context).stop - scored_by_llama_cpp(context).start)
    given = iter(blocks)
    first = next(given, None)
    vocabulary = 0 if first is None else first.shape[-1]
    if first is not None:
        _check_tokens(tokens, vocabulary, "the text")
    written = 0
    with path.open("wb") as file:
        file.write(_HEADER.pack(MAGIC, context, vocabulary, chunks))
        file.write(tokens.astype("<i4").tobytes())
        for block in chain(() if first is None else (first,), given):
            if block.shape[-1] != vocabulary:
                raise AssayError(
                    f"write_llama_cpp(): rows of {vocabulary:,} tokens, then of {block.shape[-1]:,}; give all of them "
                    "for one vocabulary."
                )
            written += len(block)
            if written > expected:
                break
            _write_block(file, block)
    if written != expected:
        more = "more" if written > expected else f"{written:,}"
        raise AssayError(
            f"write_llama_cpp(): {chunks:,} chunks of {context:,} tokens have {expected:,} predictions that count, and "
            f"there were {more}; give the rows of positions {context // 2} to {context - 2} of every chunk."
        )


def _write_block(file: BinaryIO, block: Tensor) -> None:
    for rows in block.split(ROWS):
        file.write(_encode(_numbers(rows)).tobytes())


@checked
def through_llama_cpp(rows: Float[Tensor, "prediction vocabulary"]) -> Float[Tensor, "prediction vocabulary"]:
    """Log-probabilities as they come back from the file, for logits or log-probabilities: what `counting` is to be
    given as the base, to count as llama.cpp would. Raises AssayError for a row that has no largest number."""
    return torch.from_numpy(_decode(_encode(_numbers(rows)), rows.shape[-1]))


def _numbers(rows: Tensor) -> Float32[np.ndarray, "row vocabulary"]:
    found: np.ndarray = rows.detach().to("cpu", torch.float32).numpy()
    return found


def _check_tokens(tokens: Int[np.ndarray, "chunk position"], vocabulary: int, what: str) -> None:
    beyond = (tokens < 0) | (tokens >= vocabulary)
    if beyond.any():
        raise AssayError(f"{what} has token {tokens[beyond][0]}, which a vocabulary of {vocabulary:,} has not.")


def _words(vocabulary: int) -> int:
    """Words of 16 bits that a prediction takes."""
    return 2 * ((vocabulary + 1) // 2) + _WORDS


def _spans(records: UInt16[np.ndarray, "row word"]) -> tuple[Float32[np.ndarray, " row"], Float32[np.ndarray, " row"]]:
    """Scale and floor."""
    spans = np.ascontiguousarray(records[:, :_WORDS]).view("<f4").astype(np.float32)
    return spans[:, 0], spans[:, 1]


def _decode(records: UInt16[np.ndarray, "row word"], vocabulary: int) -> Float32[np.ndarray, "row vocabulary"]:
    scale, floor = _spans(records)
    found = records[:, _WORDS : _WORDS + vocabulary].astype(np.float32)
    found *= scale[:, None]
    found += floor[:, None]
    return found


def _encode(logits: Float32[np.ndarray, "row vocabulary"]) -> UInt16[np.ndarray, "row word"]:
    """In float32, step by step as llama.cpp does it, so that the codes are the same."""
    top = logits.max(axis=1)
    if not np.isfinite(top).all():
        raise AssayError(f"a row of logits has {top[~np.isfinite(top)][0]} as its largest number; they must be finite.")
    bottom = np.maximum(logits.min(axis=1), top - np.float32(CLIP))
    mass = np.exp(logits - top[:, None]).sum(axis=1, dtype=np.float64)
    scale = (top - bottom) / np.float32(_STEPS)
    with np.errstate(divide="ignore", over="ignore"):
        steps = 1 / scale
    # A range that is too narrow to be divided is none.
    scale[~np.isfinite(steps)] = 0
    steps[~np.isfinite(steps)] = 0
    words = np.zeros((len(logits), _words(logits.shape[1])), dtype="<u2")
    spans = np.stack((scale, bottom - top - np.log(mass).astype(np.float32)), axis=1)
    words[:, :_WORDS] = spans.astype("<f4").view("<u2")
    above = np.maximum(logits, bottom[:, None]) - bottom[:, None]
    above *= steps[:, None]
    words[:, _WORDS : _WORDS + logits.shape[1]] = np.rint(above, out=above)
    return words


class Counted(NamedTuple):
    """A number with llama.cpp's "±": a standard error for which predictions are independent, which they are not."""

    value: float
    error: float


@dataclass(frozen=True)
class Counts:
    """llama.cpp's statistics of another model (Q) beside its base, over `positions` predictions.

    Perplexities, `log_ratio` = ln(PPL(Q)/PPL(base)), `ratio` and `difference` of the two, and `correlation` of the
    errors of their logarithms (NaN if one of them has none). `kl` is the mean of KL(base || Q) in nats, `change` the
    mean of Δp = Q(right token) − base(right token) and `rms_change` its root mean square, both in [-1, 1] (llama.cpp
    shows them as percent). `same_top` is the share of predictions with the same first choice. `kl_quantiles` and
    `change_quantiles` have quantiles by the share of predictions below.
    """

    positions: int
    perplexity: Counted
    base_perplexity: Counted
    correlation: float
    log_ratio: Counted
    ratio: Counted
    difference: Counted
    kl: Counted
    kl_quantiles: Mapping[float, float]
    change: Counted
    change_quantiles: Mapping[float, float]
    rms_change: Counted
    same_top: Counted


@checked
def counting(
    base: Blocks,
    other: Blocks,
    targets: Int[np.ndarray, " prediction"],
) -> Counts:
    """Count as `llama-perplexity --kl-divergence` does.

    `base` gives log-probabilities as the file has them (`LlamaCppFile.blocks()`, or through `through_llama_cpp`),
    `other` logits or log-probabilities of the same predictions, in blocks of the same number of rows, of which one pair
    is held at a time. `targets` are the right tokens. Tokens with ln p of the base at most −16 do not count for KL.

    Raises AssayError if the two do not belong together, for fewer than 100 predictions, and where KL is not finite.
    """
    parts: list[_Rows] = []
    done = 0
    for one, two in zip_longest(base, other):
        if one is None or two is None or one.shape != two.shape:
            shapes = " and ".join("nothing" if block is None else str(tuple(block.shape)) for block in (one, two))
            raise AssayError(
                f"counting(): after {done:,} predictions base and other give {shapes}; they must be alike."
            )
        right = targets[done : done + len(one)]
        if len(right) < len(one):
            raise AssayError(f"counting(): there are more predictions than the {len(targets):,} right tokens.")
        _check_tokens(right[None], one.shape[1], "the list of right tokens")
        for rows, others, tokens in zip(
            one.split(ROWS), two.split(ROWS), np.split(right, range(ROWS, len(right), ROWS)), strict=True
        ):
            found = _count_rows(_numbers(rows), _numbers(others), tokens)
            known = np.isfinite(found.kl) & np.isfinite(found.nll)
            if not known.all():
                raise AssayError(
                    f"counting(): KL is not finite at prediction {done + int((~known).argmax()):,}: the other model "
                    "rules out, or has no number for, a token that its base allows."
                )
            parts.append(found)
            done += len(rows)
    if done < len(targets):
        raise AssayError(f"counting(): there are {done:,} predictions for {len(targets):,} right tokens.")
    if done < LEAST:
        raise AssayError(f"counting(): {done} predictions; llama.cpp gives no statistics of fewer than {LEAST}.")
    return _summarize(_Rows(*map(np.concatenate, zip(*parts, strict=True))))


class _Rows(NamedTuple):
    """What is kept of each prediction: negative log-likelihoods, KL, Δp, and whether the first choice is the same."""

    nll: np.ndarray
    base_nll: np.ndarray
    kl: np.ndarray
    change: np.ndarray
    same: np.ndarray


def _count_rows(
    base: Float32[np.ndarray, "row vocabulary"],
    logits: Float32[np.ndarray, "row vocabulary"],
    targets: Int[np.ndarray, " row"],
) -> _Rows:
    """In float32, KL summed in float64, as llama.cpp does it."""
    rows = np.arange(len(base))
    with np.errstate(invalid="ignore", over="ignore"):
        top = logits.max(axis=1)
        level = top + np.log(np.exp(logits - top[:, None]).sum(axis=1, dtype=np.float64)).astype(np.float32)
        nll, base_nll = level - logits[rows, targets], -base[rows, targets]
        counts = base > -CLIP
        terms = np.subtract(base, logits, out=np.zeros_like(base), where=counts)
        np.add(terms, level[:, None], out=terms, where=counts)
        terms *= np.exp(base)
    return _Rows(
        nll,
        base_nll,
        terms.sum(axis=1, dtype=np.float64),
        np.exp(-nll) - np.exp(-base_nll),
        base.argmax(axis=1) == logits.argmax(axis=1),
    )


def _mean(values: np.ndarray, squares: np.ndarray) -> Counted:
    mean = float(values.mean(dtype=np.float64))
    variance = float(squares.mean(dtype=np.float64)) - mean**2
    return Counted(mean, float(np.sqrt(max(variance, 0) / (len(values) - 1))))


def _combined(first: float, second: float, covariance: float) -> float:
    """The standard error of a difference; rounding may make a vanishing one negative."""
    return float(np.sqrt(max(first**2 + second**2 - 2 * covariance, 0)))


def _quantile(ordered: Float32[np.ndarray, " value"], share: float) -> float:
    """Linear interpolation, its place reckoned in float32 as llama.cpp does (that of the median is exact)."""
    if share == 0.5:
        return float(np.median(ordered))
    place = np.float32(share) * np.float32(len(ordered) - 1)
    below = min(int(place), len(ordered) - 1)
    part = place - np.float32(below)
    return float((1 - part) * ordered[below] + part * ordered[min(below + 1, len(ordered) - 1)])


def _summarize(rows: _Rows) -> Counts:
    count = len(rows.nll)
    log, base_log = _mean(rows.nll, rows.nll**2), _mean(rows.base_nll, rows.base_nll**2)
    products = float((rows.nll * rows.base_nll).mean(dtype=np.float64))
    covariance = (products - log.value * base_log.value) / (count - 1)
    errors = log.error * base_log.error
    own, base = (Counted(float(np.exp(one.value)), float(np.exp(one.value)) * one.error) for one in (log, base_log))
    log_ratio = Counted(log.value - base_log.value, _combined(log.error, base_log.error, covariance))
    ratio = float(np.exp(log_ratio.value))
    squares = (rows.change**2).astype(np.float64)
    mean_square = _mean(squares, squares**2)
    rms = float(np.sqrt(mean_square.value))
    same = float(rows.same.mean())
    in_order = np.sort(rows.kl.astype(np.float32)), np.sort(rows.change)
    return Counts(
        positions=count,
        perplexity=own,
        base_perplexity=base,
        correlation=covariance / errors if errors else float("nan"),
        log_ratio=log_ratio,
        ratio=Counted(ratio, ratio * log_ratio.error),
        difference=Counted(
            own.value - base.value, _combined(own.error, base.error, own.value * base.value * covariance)
        ),
        kl=_mean(rows.kl, rows.kl**2),
        kl_quantiles={share: _quantile(in_order[0], share) for share in KL_SHARES},
        change=_mean(rows.change, rows.change**2),
        change_quantiles={share: _quantile(in_order[1], share) for share in CHANGE_SHARES},
        rms_change=Counted(rms, mean_square.error / (2 * rms) if rms else 0.0),
        same_top=Counted(same, float(np.sqrt(same * (1 - same) / (count - 1)))),
    )
