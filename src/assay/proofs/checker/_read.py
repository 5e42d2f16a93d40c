"""What a certificate must look like before anything in it is believed: strict JSON, of one shape, with bounded numbers.

A file that another reader could take for another certificate (a key twice, NaN, numbers that overflow) is refused here,
and so is whatever the checker would stumble over: lists of uneven length, other types, text that cannot be printed.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from assay._errors import AssayError
from assay.proofs.checker._common import LONGEST_NAME, require

VERSION = 2

_DIGITS = 3_900
"""Of a whole number: more than a count or mask of a model that can be checked has; Python prints 4,300."""

_WORD = 2**63
"""Whole numbers are less: they become int64."""

_Shape = Callable[[Any, str], None]
"""Raises AssayError unless a value has a shape; the text says where the value stands."""


def _refuse(where: str, wanted: str) -> NoReturn:
    raise AssayError(f"certificate refuted: {where} must be {wanted}")


def _whole(low: int | None = None, high: int | None = None) -> _Shape:
    """A whole number from `low` to less than `high`, by default of at most _DIGITS digits."""
    least, below = -(10**_DIGITS) if low is None else low, 10**_DIGITS if high is None else high
    limit = "" if low is None else f" of at least {low}"

    def shape(value: Any, where: str) -> None:
        if type(value) is not int or not least <= value < below:
            _refuse(where, f"a whole number{limit}" + ("" if high is None else f" below 2^{high.bit_length() - 1}"))

    return shape


def _real(value: Any, where: str) -> None:
    if type(value) is not float or not math.isfinite(value):
        _refuse(where, "a finite number with a decimal point")


def _text(longest: int, pattern: str = r".*") -> _Shape:
    def shape(value: Any, where: str) -> None:
        if type(value) is not str or len(value) > longest or not value.isprintable():
            _refuse(where, f"printable text of at most {longest} characters")
        if not re.fullmatch(pattern, value):
            _refuse(where, f"text that matches {pattern}")

    return shape


def _or_null(of: _Shape) -> _Shape:
    def shape(value: Any, where: str) -> None:
        if value is not None:
            of(value, where)

    return shape


def _list(of: _Shape, length: int | None = None) -> _Shape:
    def shape(value: Any, where: str) -> None:
        if type(value) is not list or (length is not None and len(value) != length):
            _refuse(where, "a list" + (f" of {length}" if length is not None else ""))
        for index, item in enumerate(value):
            of(item, f"{where}[{index}]")

    return shape


def _matrix(value: Any, where: str) -> None:
    _list(_list(_real))(value, where)
    if not value or not value[0] or len({len(row) for row in value}) > 1:
        _refuse(where, "rows of one length, at least one")


def _map(of: _Shape, most: int) -> _Shape:
    def shape(value: Any, where: str) -> None:
        if type(value) is not dict or len(value) > most:
            _refuse(where, f"an object of at most {most} entries")
        for key, item in value.items():
            _text(40)(key, f"a name in {where}")
            of(item, f"{where}.{key}")

    return shape


def _object(fields: Mapping[str, _Shape]) -> _Shape:
    def shape(value: Any, where: str) -> None:
        if type(value) is not dict or value.keys() != fields.keys():
            _refuse(where, f"an object with exactly {', '.join(fields)}")
        for key, of in fields.items():
            of(value[key], f"{where}.{key}".removeprefix("the certificate."))

    return shape


def _parameter(value: Any, where: str) -> None:
    (_text(40) if type(value) is str else _whole(0, _WORD))(value, where)


def _flag(value: Any, where: str) -> None:
    if type(value) is not bool:
        _refuse(where, "true or false")


_SMALL = _whole(high=_WORD, low=-_WORD)
_COUNT = _whole(0)
_SUBSPACE = _object({"basis": _matrix, "mean": _list(_real)})
_SCALED = {"multipliers": _list(_SMALL), "powers": _list(_SMALL), "tops": _list(_SMALL), "count": _COUNT}
_NAMES = _list(_list(_SMALL, 2))
_PROXIES: dict[str, _Shape] = {
    "scores": _object(
        {"kind": _text(10), "left": _or_null(_matrix), "right": _or_null(_matrix), "average_positions": _flag}
    ),
    "projection": _object({"kind": _text(10), "queries": _SUBSPACE, "keys": _SUBSPACE}),
    "one-hot": _object({"kind": _text(10)}),
    "uniform": _object({"kind": _text(10)}),
}


def _proxy(value: Any, where: str) -> None:
    kind = value.get("kind") if type(value) is dict else None
    if type(kind) is not str or kind not in _PROXIES:
        _refuse(where, f"an object whose kind is one of {', '.join(_PROXIES)}")
    _PROXIES[kind](value, where)


_PIECE = {
    "last": _SMALL,
    "maximum": _SMALL,
    "relaxations": _list(_object({"outputs": _NAMES} | _SCALED)),
    "credits": _list(_object({"output": _SMALL, "rivals": _NAMES} | _SCALED)),
    "proxy_wrong": _COUNT,
    "wrong": _COUNT,
    "surely_wrong": _COUNT,
}
_CERTIFICATE = _object(
    {
        "format": _text(20, "assay-certificate"),
        "version": _whole(VERSION, VERSION + 1),
        "statement": _text(20_000),
        "subject": _object(
            {
                "name": _text(LONGEST_NAME),
                "seed": _or_null(_SMALL),
                "architecture": _text(40),
                "weights_sha256": _text(64, "[0-9a-f]{64}"),
                "vocabulary": _whole(1, _WORD),
                "length": _whole(1, _WORD),
            }
        ),
        "proxy": _or_null(_proxy),
        "inputs": _object(
            {
                "length": _whole(1, _WORD),
                "vocabulary": _whole(1, _WORD),
                "minimum_maximum": _whole(0, _WORD),
                "within": _or_null(_whole(0, _WORD)),
                "copies": _or_null(_whole(1, _WORD)),
                "size": _whole(1),
            }
        ),
        "quantity": _text(20, "accuracy|agreement|loss"),
        "strategy": _text(40),
        "parameters": _map(_parameter, 10),
        "at_least": _whole(),
        "at_most": _whole(),
        "pieces": _or_null(_list(_object(_PIECE))),
        "boxes": _or_null(_list(_object({"last": _SMALL, "maximum": _SMALL, "tokens": _list(_COUNT)}))),
        "blocks": _or_null(_object({"width": _whole(1, _WORD), "kept": _text(2**28), "refined": _text(2**28)})),
        "operations": _object({"arithmetic": _COUNT, "comparisons": _COUNT, "exponentials": _COUNT}),
        "unexplained_dimension": _COUNT,
        "seconds": _real,
        "versions": _map(_text(80), 20),
        "digest": _text(64, "[0-9a-f]{64}"),
    }
)


def require_shape(content: Any) -> None:
    """Raise AssayError unless `content` has the shape of a certificate of this version."""
    version = content.get("version") if type(content) is dict else None
    if type(version) is int and 0 < version < VERSION:
        raise AssayError(
            f"this certificate is of version {version}, the checker reads version {VERSION}: make it again with "
            "`assay certify`."
        )
    _CERTIFICATE(content, "the certificate")


def _whole_number(text: str) -> int:
    require(len(text) <= _DIGITS, f"a number has {len(text)} digits; at most {_DIGITS} are read")
    return int(text)


def _decimal_number(text: str) -> float:
    value = float(text)
    require(math.isfinite(value), f"the number {text[:40]} is too large for a float")
    return value


def _no_number(text: str) -> NoReturn:
    raise AssayError(f"certificate refuted: {text} is no number that a certificate may hold")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        require(key not in found, f"the key {key[:40]!r} stands twice in one object")
        found[key] = value
    return found


def read(text: str) -> dict[str, Any]:
    """The content of a certificate file. Raises AssayError with the reason if it is not one; nothing is checked yet."""
    try:
        content: dict[str, Any] = json.loads(
            text,
            object_pairs_hook=_once,
            parse_int=_whole_number,
            parse_float=_decimal_number,
            parse_constant=_no_number,
        )
    except json.JSONDecodeError as error:
        raise AssayError(f"the file is no JSON: {error.msg} at line {error.lineno}, column {error.colno}.") from None
    except RecursionError:
        raise AssayError("the file is no certificate: its lists and objects stand too deep in one another.") from None
    require_shape(content)
    return content
