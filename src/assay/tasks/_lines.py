"""Where text comes from: files, datasets of the hub, lists of strings."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from io import IOBase
from pathlib import Path
from typing import Any

from assay._errors import AssayError
from assay.tasks._rows import HUB, from_lines, hub_parts, hub_rows, is_json_lines, parquet_rows

TextSource = str | Path | Iterable[str]
"""Sequences of text: a file, `hub:NAME` or the sequences themselves, such as a list or a column of a table.

A file of JSON lines (`.jsonl`, `.ndjson`, `.jsonlines`, and each of them with `.gz`) or a `.parquet` file has one
sequence a row, in the text field; any other file is UTF-8 text with one sequence a line (a line ends with LF, CR or
both). A byte order mark is no part of the text. `hub:NAME`, `hub:NAME:SPLIT` and `hub:NAME:CONFIGURATION:SPLIT` name a
dataset of the Hugging Face hub, or a local copy of one (split `train` unless said otherwise).
"""

_NOT_TEXT = (".json", ".csv", ".tsv", ".zip", ".gz", ".zst", ".bz2", ".xz")


def settled(source: object, split: str) -> str | Path | tuple[str, ...]:
    """The source in a form that gives the same sequences however often it is read: sequences become a tuple.

    Raises AssayError, with the split's name, for an object that holds anything else than text in an order.
    """
    if isinstance(source, str | Path):
        return source
    given = f"split {split!r} is given as {type(source).__name__}"
    columns: Any = source if isinstance(source, Mapping) else getattr(source, "column_names", None)
    columns = getattr(source, "columns", None) if columns is None else columns
    if columns is not None:
        named = ", ".join(map(repr, columns))
        raise AssayError(
            f"{given}, a table with the columns {named}; give the column with the text, such as list(table['text'])."
        )
    if isinstance(source, IOBase):
        raise AssayError(f"{given}, an open file; give its path.")
    if isinstance(source, AbstractSet) or not isinstance(source, Iterable):
        raise AssayError(f"{given}, which has no first sequence and no next; give a file, hub:NAME or a list of texts.")
    texts = tuple(source)
    for number, text in enumerate(texts, start=1):
        _check_text(text, f"sequence {number}", split)
    return tuple(map(str, texts))


def lines(source: TextSource, field: str, split: str, lost: Counter[str] | None = None) -> Iterator[str]:
    """The sequences of a source in order, blank ones passed over, read as they are asked for.

    Lines of a file of JSON lines that hold no text are counted in `lost`, by reason, unless no line holds one. Raises
    AssayError, with the split's name, for what else cannot be read as text, and for such lines where `lost` is None.
    """
    if not isinstance(source, str | Path):
        found: Iterable[str] = source
    elif str(source).startswith(HUB):
        found = _hub(str(source), field, split)
    else:
        found = _file(Path(source), field, split, lost)
    return (text for text in found if text.strip())


def whole(source: TextSource, field: str, split: str) -> str:
    """A source as one text: a plain file as it stands (its lines ended by LF, the last by nothing), and of any other a
    line a sequence.

    Raises AssayError, with the split's name, for what cannot be read as text.
    """
    named = isinstance(source, str | Path) and not str(source).startswith(HUB)
    if named and _is_plain(path := Path(str(source))) and path.is_file():
        return "\n".join(_plain(path, split))
    return "\n".join(lines(source, field, split))


def _is_plain(path: Path) -> bool:
    """Whether a file is text without fields, by its name."""
    return not (is_json_lines(path) or path.name.lower().endswith((".parquet", *_NOT_TEXT)))


def _file(path: Path, field: str, split: str, lost: Counter[str] | None) -> Iterator[str]:
    if not path.is_file():
        raise AssayError(
            f"split {split!r}: there is no file {str(path)!r}; give a .txt, .jsonl(.gz) or .parquet file, or a list "
            "of texts."
        )
    name = path.name.lower()
    if is_json_lines(path):

        def texts(row: Mapping[str, Any] | str, number: int) -> list[str]:
            if isinstance(row, str):
                raise AssayError(f"split {split!r}: {str(path)!r} has {row} (line {number}); fix or remove it.")
            return list(_field(row, field, split, f"line {number} of {str(path)!r}"))

        for found in from_lines(path, texts, lost, f"lines without text in {field!r}"):
            yield from found
    elif name.endswith(".parquet"):
        for number, row in enumerate(parquet_rows(path, field), start=1):
            yield from _field(row, field, split, f"row {number} of {str(path)!r}")
    elif name.endswith(_NOT_TEXT):
        raise AssayError(f"split {split!r}: {str(path)!r} cannot be read; give a .txt, .jsonl(.gz) or .parquet file.")
    else:
        yield from _plain(path, split)


def _plain(path: Path, split: str) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as stream:
            for line in stream:
                if "\0" in line:
                    raise AssayError(
                        f"split {split!r}: {str(path)!r} cannot be read as UTF-8 text (it holds NUL bytes, so it is "
                        "binary)."
                    )
                yield line.rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise AssayError(f"split {split!r}: {str(path)!r} cannot be read as UTF-8 text ({error}).") from None


def _hub(source: str, field: str, split: str) -> Iterator[str]:
    parts = hub_parts(source)
    if parts is None:
        raise AssayError(
            f"split {split!r}: {source!r} must be hub:NAME, hub:NAME:SPLIT or hub:NAME:CONFIGURATION:SPLIT."
        )
    for number, row in enumerate(hub_rows(*parts), start=1):
        yield from _field(row, field, split, f"row {number} of {source!r}")


def _field(row: Mapping[str, Any], field: str, split: str, where: str) -> Iterator[str]:
    """The text of a row; none where it is null."""
    if field not in row:
        raise AssayError(
            f"split {split!r}: {where} has no field {field!r}, only {', '.join(map(repr, row))}; name the field with "
            "the text (text_field, --text-field)."
        )
    text = row[field]
    if text is None:
        return
    _check_text(text, f"field {field!r} of {where}", split)
    yield text


def _check_text(text: Any, what: str, split: str) -> None:
    if not isinstance(text, str):
        raise AssayError(
            f"split {split!r}: {what} is no text but of type {type(text).__name__}; give str only, and leave out "
            "missing values."
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise AssayError(f"split {split!r}: {what} is not Unicode text (it holds half a character).") from None


def fingerprint(source: TextSource) -> str:
    """What tells a source from another in a record: the hash of its content, or the name of a dataset."""
    if isinstance(source, str) and source.startswith(HUB):
        return source if not Path(source.removeprefix(HUB)).is_absolute() else HUB + Path(source).name
    digest = hashlib.sha256()
    if isinstance(source, str | Path):
        with Path(source).open("rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
    else:
        for text in source:
            digest.update(text.encode() + b"\n")
    return digest.hexdigest()
