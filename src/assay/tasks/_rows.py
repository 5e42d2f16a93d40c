"""Rows of JSON lines, of Parquet files and of datasets of the Hugging Face hub, read as they are asked for."""

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from io import BufferedIOBase
from pathlib import Path
from typing import Any, TypeVar

import pyarrow
import pyarrow.parquet

from assay._errors import AssayError
from assay._files import limit

LEAST_GROWTH = 2**28
"""Bytes that a gzipped file may become in any case: they are not held."""

_JSON_LINES = (".jsonl", ".ndjson", ".jsonlines")

_Made = TypeVar("_Made")


def is_json_lines(path: Path) -> bool:
    """Whether a file is one of JSON lines by its name: .jsonl, .ndjson, .jsonlines, or one of them gzipped."""
    return path.name.lower().removesuffix(".gz").endswith(_JSON_LINES)


def json_rows(path: Path) -> Iterator[Mapping[str, Any] | str]:
    """The object of every line of a file of JSON lines, or the reason why a line has none: see `json_lines`."""
    return (row for _, row in json_lines(path))


def json_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """The lines of a file of JSON lines, gzipped if it ends in .gz: number and object, or the reason why it has none.

    Lines end with LF, CR or both. Blank ones are passed over, and so is a byte order mark in front of a line. A line
    that is longer than the limit is not held, and gives a reason. A file that cannot be read, is cut short, or becomes
    too many times its size when it is decompressed ends with one.
    """
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as stream:
            most = max(LEAST_GROWTH, limit("growth") * path.stat().st_size)
            for ended in _ended(stream, limit("line"), most):
                for line in [ended] if ended is None else ended.splitlines():
                    number += 1
                    if line is None or line.strip():
                        yield (
                            number,
                            f"lines of more than {limit('line'):,} bytes" if line is None else _object_of(line),
                        )
    except (EOFError, gzip.BadGzipFile, zlib.error, OSError):
        yield number + 1, "files that cannot be read to their end"
    except _GrownError:
        yield number + 1, f"files that become more than {limit('growth')} times their size"


def from_lines(
    path: Path, make: Callable[[Mapping[str, Any] | str, int], _Made], lost: Counter[str] | None, reason: str
) -> Iterator[_Made]:
    """What `make(row, number)` makes of every line of a file of JSON lines: see `json_lines` for rows that are str.

    A line for which it raises AssayError is counted in `lost`: by why it has no object, or else by `reason`. If all
    are, the first one's error is raised at the end; where `lost` is None, at once.
    """
    refused: AssayError | None = None
    used = False
    for number, row in json_lines(path):
        try:
            made = make(row, number)
        except AssayError as error:
            if lost is None:
                raise
            lost[row if isinstance(row, str) else reason] += 1
            refused = refused or error
        else:
            used = True
            yield made
    if refused is not None and not used:
        raise refused


def in_words(lost: Mapping[str, int]) -> str:
    """How much was lost, by reason."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(lost.items()))


def _ended(stream: BufferedIOBase, longest: int, most: int) -> Iterator[bytes | None]:
    """What ends with LF, None for more than `longest` bytes of it. Raises _GrownError after `most` bytes in all."""
    read = 0
    while ended := stream.readline(longest + 1):
        whole = len(ended) <= longest
        yield ended if whole else None
        read += len(ended)
        while not whole and not ended.endswith(b"\n") and (ended := stream.readline(longest)):
            read += len(ended)
            if read > most:
                raise _GrownError
        if read > most:
            raise _GrownError


class _GrownError(Exception):
    """A file becomes too many times its size."""


def _object_of(line: bytes) -> Mapping[str, Any] | str:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return "lines that are not UTF-8"
    except (ValueError, RecursionError):  # the first also for numbers of thousands of digits
        return "lines that are not JSON"
    return row if isinstance(row, dict) else "lines that are not JSON objects"


def parquet_rows(path: Path, column: str | None = None) -> Iterator[Mapping[str, Any]]:
    """The rows of a Parquet file, with one column of them or all. Raises AssayError if it cannot be read.

    Where there is no column of that name, rows have the names of all and no values.
    """
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if column is not None and column not in names and file.metadata.num_rows:
                yield dict.fromkeys(names)
                return
            for batch in file.iter_batches(batch_size=1_024, columns=None if column is None else [column]):
                yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowException, ValueError, OverflowError) as error:  # the last two: values no Python has
        raise AssayError(f"{str(path)!r} cannot be read as Parquet ({_first_line(error)}).") from None


HUB = "hub:"
"""What the name of a dataset of the hub begins with, where a file could stand as well."""


def hub_parts(source: str) -> tuple[str, str | None, str] | None:
    """Name, configuration and split of `hub:NAME`, `hub:NAME:SPLIT` or `hub:NAME:CONFIGURATION:SPLIT`; None for others.

    The split is `train` unless said otherwise.
    """
    name, *rest = source.removeprefix(HUB).split(":")
    if not name or len(rest) > 2:
        return None
    return name, rest[0] if len(rest) == 2 else None, rest[-1] if rest else "train"


def hub_rows(name: str, configuration: str | None, part: str) -> Iterable[Mapping[str, Any]]:
    """The rows of one split of a dataset of the hub, or of a local copy of one.

    Raises AssayError if the package `datasets` (the extra `assay-interp[datasets]`) is not installed or the split
    cannot be loaded.
    """
    try:
        datasets = import_module("datasets")
    except ImportError:
        raise AssayError(
            f"the dataset {name!r} needs the package datasets; pip install 'assay-interp[datasets]'."
        ) from None
    try:
        rows: Iterable[Mapping[str, Any]] = datasets.load_dataset(name, configuration, split=part)
    except (OSError, ValueError, RuntimeError) as error:
        of = "" if configuration is None else f" of {configuration!r}"
        raise AssayError(
            f"could not load split {part!r}{of} of the dataset {name!r} ({_first_line(error)}); give a name of the hub "
            "or a folder with a local copy."
        ) from None
    return rows


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
