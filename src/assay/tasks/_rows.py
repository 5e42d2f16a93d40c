"""Rows of JSON lines, of Parquet files and of datasets of the Hugging Face hub, read as they are asked for."""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from assay._errors import AssayError

_JSON_LINES = (".jsonl", ".ndjson", ".jsonlines")


def is_json_lines(path: Path) -> bool:
    """Whether a file is one of JSON lines by its name: .jsonl, .ndjson, .jsonlines, or one of them gzipped."""
    return path.name.lower().removesuffix(".gz").endswith(_JSON_LINES)


def json_rows(path: Path) -> Iterator[Mapping[str, Any] | str]:
    """The object of every line of a file of JSON lines, gzipped if it ends in .gz, or the reason why a line has none.

    Lines end with LF, CR or both. Blank ones are passed over, and so is a byte order mark in front of a line. A file
    that cannot be read, or is cut short, ends with a reason.
    """
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as stream:
            for line in (line for ended in stream for line in ended.splitlines()):
                if line.strip():
                    try:
                        row = json.loads(line.decode("utf-8-sig"))
                    except UnicodeDecodeError:
                        yield "lines that are not UTF-8"
                    except json.JSONDecodeError:
                        yield "lines that are not JSON"
                    else:
                        yield row if isinstance(row, dict) else "lines that are not JSON objects"
    except (EOFError, gzip.BadGzipFile, zlib.error, OSError):
        yield "files that cannot be read to their end"


def parquet_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a Parquet file. Raises AssayError if it cannot be read."""
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1_024):
                yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise AssayError(f"{str(path)!r} cannot be read as Parquet ({_first_line(error)}).") from None


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
