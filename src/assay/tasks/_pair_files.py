"""Pairs in files: JSON lines of our own, and what other tools write."""

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assay._errors import AssayError, unknown_name
from assay._files import read_bytes
from assay.tasks._rows import HUB, from_lines, hub_parts, hub_rows, is_json_lines, parquet_rows

ANSWER = "answer"
"""The kind of a prediction where a row names none."""

_LARGEST = 2**31 - 1
_MIB = "_counterfactual"
_IDS = (
    ("correct_idx", "incorrect_idx"),
    ("country_idx", "corrupted_country_idx"),
    ("capital_idx", "corrupted_capital_idx"),
    ("clean_answer_idx", "corrupted_answer_idx"),
)
"""Columns with the ids of answer and foil in the files that EAP-IG and its relatives read."""


@dataclass(frozen=True)
class Pair:
    """An input, its counterfactual, the token that is right after the input, and those that are wrong.

    Texts, or token ids: `clean` and `counterfactual` are both texts or both ids; `answer` and each of `foils` is one
    token, as a text or an id. `where` says where the pair was read, for messages.
    """

    clean: str | tuple[int, ...]
    counterfactual: str | tuple[int, ...]
    answer: str | int
    foils: tuple[str | int, ...]
    kind: str = ANSWER
    split: str | None = None
    where: str = field(default="", compare=False)

    @property
    def has_text(self) -> bool:
        """Whether a tokenizer is needed."""
        return any(isinstance(part, str) for part in (self.clean, self.answer, *self.foils))

    def row(self) -> dict[str, Any]:
        """The row of JSON lines that is read back as this pair."""
        foils = list(self.foils)
        return {
            "clean": self.clean if isinstance(self.clean, str) else list(self.clean),
            "counterfactual": self.counterfactual
            if isinstance(self.counterfactual, str)
            else list(self.counterfactual),
            "answer": self.answer,
            "foil": foils[0] if len(foils) == 1 else foils,
            "kind": self.kind,
        }


def read_pairs(source: object, counterfactual: str | None, lost: Counter[str]) -> list[Pair]:
    """The pairs of a file or a dataset in its order; see `Pairs.read`.

    Lines of a file of JSON lines that hold no pair are counted in `lost`, by reason, unless no line holds one. Raises
    AssayError, with file and line, for such files and for everything else that is no pair.
    """
    if not isinstance(source, str | Path):
        raise AssayError(f"a file of pairs is given as {type(source).__name__}; give its path (for rows: Pairs.of).")
    path = Path(source)
    if not str(source).startswith(HUB) and is_json_lines(path) and path.is_file():

        def pair(row: Mapping[str, Any] | str, number: int) -> Pair | None:
            if isinstance(row, str):
                raise AssayError(f"{str(path)!r} has {row} (line {number}); fix or remove it.")
            return pair_of(row, f"line {number} of {str(path)!r}", counterfactual)

        found = from_lines(path, pair, lost, "lines that are no pairs")
    else:
        found = (pair_of(row, where, counterfactual) for where, row in _rows(source))
    return [pair for pair in found if pair is not None]


# -- files ----------------------------------------------------------------------------------------------------------


def _rows(source: str | Path) -> Iterator[tuple[str, Any]]:
    """Every row of anything but JSON lines, with where it stands."""
    if str(source).startswith(HUB):
        parts = hub_parts(str(source))
        if parts is None:
            raise AssayError(f"{str(source)!r} must be hub:NAME, hub:NAME:SPLIT or hub:NAME:CONFIGURATION:SPLIT.")
        yield from _numbered("row", source, hub_rows(*parts))
        return
    path = Path(source)
    if not path.is_file():
        raise AssayError(f"there is no file {str(path)!r}; give a file with pairs: .jsonl(.gz), .json, .csv, .parquet.")
    ending = path.name.lower()
    if ending.endswith(".json"):
        yield from _numbered("prompt", path, _prompts(path))
    elif ending.endswith(".csv"):
        yield from _csv_rows(path)
    elif ending.endswith(".parquet"):
        yield from _numbered("row", path, parquet_rows(path))
    else:
        raise AssayError(
            f"{str(path)!r} is no file of pairs; give one that ends in .jsonl(.gz), .json, .csv, .parquet."
        )


def _numbered(noun: str, source: str | Path, rows: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    return ((f"{noun} {number} of {str(source)!r}", row) for number, row in enumerate(rows, start=1))


def _prompts(path: Path) -> list[Any]:
    try:
        found = json.loads(read_bytes(path))
    except (OSError, ValueError, RecursionError):
        raise AssayError(f"{str(path)!r} cannot be read as JSON; for one object a line, name it .jsonl.") from None
    prompts = found.get("prompts") if isinstance(found, dict) else found
    if not isinstance(prompts, list):
        raise AssayError(f"{str(path)!r} holds no list of pairs, neither by itself nor as 'prompts'.")
    return prompts


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            table = csv.reader(stream, strict=True)
            header = next(table, [])
            # The number of the line on which a row ends: a text may hold line breaks.
            for cells in table:
                if not cells:
                    continue
                where = f"line {table.line_num} of {str(path)!r}"
                if len(cells) != len(header):
                    raise AssayError(f"{where} has {len(cells)} cells for {len(header)} columns; fix or remove it.")
                yield where, dict(zip(header, cells, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AssayError(f"{str(path)!r} cannot be read as CSV in UTF-8 ({error}).") from None


# -- rows -----------------------------------------------------------------------------------------------------------


def pair_of(row: Any, where: str, counterfactual: str | None = None) -> Pair | None:
    """The pair of a row, whichever tool wrote it; None for a row of MIB whose counterfactual is null.

    Raises AssayError, with `where`, for what is no pair.
    """
    if not isinstance(row, Mapping):
        raise AssayError(f"{where} is of type {type(row).__name__}; a row has to have fields with names.")
    pair = _layout(row)(row, where, counterfactual)
    if pair is not None and isinstance(pair.clean, str) != isinstance(pair.counterfactual, str):
        raise AssayError(f"{where}: clean and counterfactual have to be both texts or both token ids.")
    return pair


def _layout(row: Mapping[str, Any]) -> Callable[[Mapping[str, Any], str, str | None], Pair | None]:
    if "prompt" in row and any(str(name).endswith(_MIB) for name in row):
        return _mib
    if "corrupted" in row:
        return _eap_ig
    return _auto_circuit if "corrupt" in row else _own


def _own(row: Mapping[str, Any], where: str, counterfactual: str | None) -> Pair:
    given = _field(row, "foil", where)
    foils = list(given) if isinstance(given, list | tuple) else [given]
    return _made(row, where, counterfactual or "counterfactual", _field(row, "answer", where), foils)


def _eap_ig(row: Mapping[str, Any], where: str, counterfactual: str | None) -> Pair:
    columns = next((pair for pair in _IDS if pair[0] in row), _IDS[0])
    missing = [column for column in columns if column not in row]
    if missing:
        raise AssayError(
            f"{where} has no {missing[0]!r}, only {', '.join(map(repr, row))}; a pair needs the token id of one answer "
            f"and one foil ({' and '.join(_IDS[0])})."
        )
    answer, foil = (_id(row[column], column, where) for column in columns)
    return _made(row, where, counterfactual or "corrupted", answer, [foil])


def _auto_circuit(row: Mapping[str, Any], where: str, counterfactual: str | None) -> Pair:
    answers, foils = _field(row, "answers", where), _field(row, "wrong_answers", where)
    if not isinstance(answers, list) or not isinstance(foils, list) or len(answers) != 1:
        count = f"{len(answers)} answers" if isinstance(answers, list) else "no list of answers"
        raise AssayError(f"{where} has {count}; a pair has one answer (and wrong_answers, a list of foils).")
    return _made(row, where, counterfactual or "corrupt", answers[0], foils)


def _mib(row: Mapping[str, Any], where: str, counterfactual: str | None) -> Pair | None:
    """A row of the datasets of MIB, read as its circuit track does, which passes over null counterfactuals too."""
    there = [str(name).removesuffix(_MIB) for name in row if str(name).endswith(_MIB)]
    metadata = row.get("metadata")
    is_ioi = isinstance(metadata, Mapping) and "indirect_object" in metadata
    has_choices = isinstance(row.get("choices"), Mapping)
    wanted = counterfactual or ("s2_io_flip" if is_ioi else "symbol" if has_choices else "random")
    wanted = wanted.removesuffix(_MIB)
    if wanted not in there:
        raise unknown_name(f"counterfactual of {where}", wanted, there)
    other = row[wanted + _MIB]
    if other is None or (isinstance(other, Mapping) and other.get("prompt", "") is None):
        return None
    if not isinstance(other, Mapping):
        raise AssayError(f"{where}: its {wanted + _MIB} is of type {type(other).__name__}; it has to hold a prompt.")
    if is_ioi:
        assert isinstance(metadata, Mapping)
        answer, foil = (f" {_text(_field(metadata, key, where), key, where)}" for key in ("indirect_object", "subject"))
    elif has_choices:
        answer, foil = (_chosen(side, where) for side in (row, other))
    else:
        answer, foil = (_text(str(_field(side, "label", where)), "label", where) for side in (row, other))
    pair = {"clean": _field(row, "prompt", where), "counterfactual": _field(other, "prompt", where)}
    return _made({**row, **pair}, where, "counterfactual", answer, [foil])


def _chosen(side: Mapping[str, Any], where: str) -> str:
    choices, key = _field(side, "choices", where), _field(side, "answerKey", where)
    labels = choices.get("label") if isinstance(choices, Mapping) else None
    if not isinstance(labels, list) or not _is_id(key) or key >= len(labels):
        raise AssayError(f"{where}: its answerKey {key!r} names none of choices' labels.")
    return _text(str(labels[key]), "label", where)


def _made(row: Mapping[str, Any], where: str, counterfactual: str, answer: Any, foils: list[Any]) -> Pair:
    if not foils:
        raise AssayError(f"{where} has no foil; give at least one token that is wrong.")
    optional: dict[str, Any] = {name: row.get(name) for name in ("kind", "split")}
    found = {name: _text(value, name, where) for name, value in optional.items() if value not in (None, "")}
    if found.get("kind") == "all":
        raise AssayError(f"{where}: 'all' is no name for a kind; choose another.")
    return Pair(
        clean=_sequence(_field(row, "clean", where), "clean", where),
        counterfactual=_sequence(_field(row, counterfactual, where), counterfactual, where),
        answer=_token(answer, "answer", where),
        foils=tuple(dict.fromkeys(_token(foil, "foil", where) for foil in foils)),
        where=where,
        **found,
    )


def _field(row: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in row:
        raise AssayError(f"{where} has no {name!r}, only {', '.join(map(repr, row))}.")
    return row[name]


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST


def _sequence(value: Any, name: str, where: str) -> str | tuple[int, ...]:
    if isinstance(value, str):
        return _text(value, name, where)
    if not isinstance(value, list | tuple):
        what = f"is of type {type(value).__name__}"
    elif value and all(map(_is_id, value)):
        return tuple(value)
    else:
        wrong = next((item for item in value if not _is_id(item)), None)
        what = f"holds something that is {_described(wrong)}" if value else "is empty"
    raise AssayError(f"{where}: {name!r} {what}; it has to be a text or a list of token ids.")


def _token(value: Any, name: str, where: str) -> str | int:
    if isinstance(value, str):
        return _text(value, name, where)
    if not _is_id(value):
        raise AssayError(f"{where}: {name!r} is {_described(value)}; it has to be a text or a token id.")
    found: int = value
    return found


def _id(value: Any, name: str, where: str) -> int:
    """A token id that may be written as text, as all is in CSV."""
    written = isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 12
    number = int(value) if written else value
    if not _is_id(number):
        what = f"{value[:40]!r}" if isinstance(value, str) else _described(value)
        raise AssayError(f"{where}: {name!r} is {what}; it has to be a token id.")
    found: int = number
    return found


def _described(value: Any) -> str:
    """A value that is no token id, in words."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"a number that is no token id (0 to {_LARGEST})"
    return f"of type {type(value).__name__}"


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str) or not value:
        what = "empty" if isinstance(value, str) else f"of type {type(value).__name__}"
        raise AssayError(f"{where}: {name!r} is {what}; it has to be a text.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise AssayError(f"{where}: {name!r} is not Unicode text (it holds half a character).") from None
    return value
