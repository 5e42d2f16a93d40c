"""How a good file becomes one that might come from anybody: bytes, values of JSON, arrays and columns changed."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import safetensors.numpy
import safetensors.torch
import torch

Rng = np.random.Generator
Mutation = Callable[[bytes, Rng], bytes]


class _Runs:
    """An object that a pickle would run code for."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("code-was-run"),))


_DEEP = 100_000
_VALUES: tuple[str, ...] = (
    "null", "true", "false", "0", "-1", "1", "2", "0.5", "1e308", "-1e999", "NaN", "9223372036854775808", '""', '"x"',
    '"../../../outside"', '"/outside"', r'"\ud800"', r'"\u0000"', r'"\u001b[2J[/red]"', "[]", "{}", "[null]", "[[]]",
    '[""]', '{"": null}', '{"a": {"a": []}}', "1" * 5_000, f'"{"x" * 10_000}"', "[" * _DEEP + "]" * _DEEP,
    "100000000000", '"complex64"', '"float32"', '"auto"', '"a/b"',
)  # fmt: skip
"""JSON that stands in the place of a value."""

_WHOLE: tuple[bytes, ...] = (
    b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"null", b"[]", b"{}", b'"x"', b"[[", b"1" * 5_000, b"[" * _DEEP,
    b'{"a":' * _DEEP, b"PK\x03\x04", b"PK\x05\x06" + 18 * b"\0", b"\x80\x02.", b"\x1f\x8b\x08\0", b"PAR1PAR1", b"GGUF",
    b"\x93NUMPY", b"\x08\0\0\0\0\0\0\0{}      ", b"\xff" * 64, b" " * 100_000, pickle.dumps(_Runs()),
    pickle.dumps([1, 2]),
)  # fmt: skip
"""Contents that stand in the place of a whole file."""


def mutated(name: str, data: bytes, rng: Rng) -> bytes:
    """A file's content, changed in a way that fits its name, or in none."""
    fitting = [_bytes, _bytes, _whole, *(kind for ending, kind in _BY_ENDING.items() if name.endswith(ending))]
    fitting += 3 * fitting[3:]
    with np.errstate(all="ignore"):
        return fitting[rng.integers(len(fitting))](data, rng)


def _whole(data: bytes, rng: Rng) -> bytes:
    return _WHOLE[rng.integers(len(_WHOLE))]


def _bytes(data: bytes, rng: Rng) -> bytes:
    """A few bytes changed, cut out, put in or doubled."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        start = int(rng.integers(len(changed) + 1))
        length = min(len(changed) - start, 2 ** int(rng.integers(0, 8)))
        some = rng.integers(0, 256, length, dtype=np.uint8).tobytes()
        part = (some, b"", bytes(length), b"\xff" * length, changed[start : start + length] * 2, changed[:start])
        changed[start : start + length] = part[rng.integers(len(part))]
    return bytes(changed[: rng.integers(len(changed) + 1)] if rng.random() < 0.2 else changed)


def _places(value: Any, of: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the values of a JSON document stand."""
    yield of
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _places(inner, (*of, key))


def _json(data: bytes, rng: Rng) -> bytes:
    """A value replaced, taken out, doubled or put under another name."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return _bytes(data, rng)
    places = list(_places(found))
    *path, key = places[rng.integers(len(places))] or (None,)
    if key is None:
        return _VALUES[rng.integers(len(_VALUES))].encode()
    holder = found
    for step in path:
        holder = holder[step]
    what = rng.integers(5)
    if what == 0:
        del holder[key]
    elif what == 1 and isinstance(holder, dict):
        holder[str(key) + "_"] = holder.pop(key)
    elif what == 2 and isinstance(holder, list):
        holder.append(holder[key])
    else:
        holder[key] = "HERE"
    return json.dumps(found).replace('"HERE"', _VALUES[rng.integers(len(_VALUES))]).encode()


def _json_lines(data: bytes, rng: Rng) -> bytes:
    lines = data.splitlines() or [b""]
    place = rng.integers(len(lines))
    lines[place] = _json(lines[place], rng)
    return b"\n".join(lines)


def _array(value: np.ndarray, rng: Rng) -> np.ndarray:
    """Another array in the place of one."""
    return (
        np.zeros(()),
        np.zeros(0),
        np.zeros((*value.shape, 1)),
        np.zeros((*value.shape[:-1], 0)),
        np.zeros((0, *value.shape[1:])),
        value.astype(np.complex64),
        value.astype(np.int64),
        value.astype(bool),
        value[:1],
        value.T,
        np.full_like(value, np.nan, dtype=np.float32),
        np.full_like(value, 3e38, dtype=np.float32),
        np.repeat(value[None], 2, axis=0),
        value.astype(np.float64) * 1e300,
        value.reshape(-1),
        value.astype(np.float16),
        value.astype(np.uint8),
        value.astype(np.int8),
    )[rng.integers(18)]


def _renamed(arrays: dict[str, Any], rng: Rng, change: Callable[[Any], Any]) -> dict[str, Any]:
    """One array taken out, renamed or changed, or another added."""
    name = sorted(arrays)[rng.integers(len(arrays))]
    what = rng.integers(8)
    if what == 0:
        del arrays[name]
    elif what == 1:
        arrays[str(name) + "_"] = arrays.pop(name)
    elif what == 2:
        arrays["more"] = arrays[name]
    elif what == 3:
        arrays = {key: change(value) for key, value in arrays.items()}
    else:
        arrays[name] = change(arrays[name])
    return arrays


def _npz(data: bytes, rng: Rng) -> bytes:
    try:
        with np.load(io.BytesIO(data)) as held:
            arrays: dict[str, Any] = dict(held)
    except (ValueError, OSError, zipfile.BadZipFile):
        return _bytes(data, rng)
    odd = (np.array([{}, None]), np.array(["text"]), np.array(b"x"), np.array([(1, 2.0)], dtype="i4,f8"))
    arrays = _renamed(arrays, rng, lambda v: odd[rng.integers(4)] if rng.random() < 0.2 else _array(v, rng))
    into = io.BytesIO()
    (np.savez if rng.random() < 0.5 else np.savez_compressed)(into, **arrays)
    return into.getvalue()


def _safetensors(data: bytes, rng: Rng) -> bytes:
    """Arrays changed, or the header."""
    if rng.random() < 0.4 and len(data) > 8:
        size = int.from_bytes(data[:8], "little")
        header = _json(data[8 : 8 + size], rng)
        return len(header).to_bytes(8, "little") + header + data[8 + size :]
    try:
        arrays: dict[str, Any] = safetensors.numpy.load(data)
    except Exception:  # what was changed before may be anything
        return _bytes(data, rng)
    if not arrays:
        return _bytes(data, rng)
    # Made anew: strides of none are written.
    found = _renamed(arrays, rng, lambda value: np.ascontiguousarray(_array(value, rng)).copy())
    if rng.random() < 0.1:
        tensors = {name: torch.from_numpy(value).to(torch.bfloat16) for name, value in found.items()}
        return safetensors.torch.save(tensors)
    return safetensors.numpy.save(found)


def _torch(data: bytes, rng: Rng) -> bytes:
    """Tensors changed, or something else saved in their place."""
    odd: tuple[Any, ...] = (
        None, 1, "x", [], {}, [torch.zeros(2)], {"a": {"b": torch.zeros(2)}}, {1: torch.zeros(2)}, torch.zeros(()),
        {"a": "b"}, _Runs(), {"a": torch.zeros(2).to_sparse()}, {"a": torch.zeros(1).expand(2**20, 2**10)},
        {"a": torch.empty(2**20, 2**20, device="meta")}, {("a", 0): True},
        {"a": torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8)},
    )  # fmt: skip
    try:
        held = torch.load(io.BytesIO(data), weights_only=True)
    except Exception:  # what was changed before may be anything
        return _bytes(data, rng)
    if rng.random() < 0.3 or not isinstance(held, dict) or not held:
        held = odd[rng.integers(len(odd))]
    else:
        held = _renamed_torch(held, rng, odd)
    into = io.BytesIO()
    torch.save(held, into, _use_new_zipfile_serialization=bool(rng.random() < 0.8))
    return into.getvalue()


def _renamed_torch(held: dict[Any, Any], rng: Rng, odd: tuple[Any, ...]) -> dict[Any, Any]:
    def change(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or rng.random() < 0.3:
            return odd[rng.integers(len(odd))]
        if value.is_sparse or value.is_quantized:
            return value
        return torch.from_numpy(np.ascontiguousarray(_array(value.float().numpy(), rng)))

    if all(isinstance(key, str) for key in held):
        return _renamed(dict(held), rng, change)
    name = list(held)[rng.integers(len(held))]
    return {**held, name: change(held[name])}


def _parquet(data: bytes, rng: Rng) -> bytes:
    """Columns taken out, renamed, of another type, with values of another, or of no rows."""
    try:
        table = pyarrow.parquet.read_table(io.BytesIO(data))
    except (OSError, pa.ArrowException, ValueError):
        return _bytes(data, rng)
    if not table.num_columns:
        return _bytes(data, rng)
    place = int(rng.integers(table.num_columns))
    name, rows = table.column_names[place], table.num_rows
    far = pa.array([2**62] * rows, type=pa.int64()).cast(pa.timestamp("us"))
    columns = (
        pa.nulls(rows), pa.array([None] * rows, type=pa.string()), pa.array(["x"] * rows), pa.array([b"\xff"] * rows),
        pa.array(np.full(rows, np.nan)), pa.array(np.arange(rows)), pa.array([[1.0]] * rows),
        pa.array([{"a": 1}] * rows), far, pa.array([datetime(2000, 1, 1)] * rows), pa.array([True] * rows),
        pa.array([-1] * rows), pa.array([2**62] * rows), pa.array([""] * rows),
        table.column(int(rng.integers(table.num_columns))),
    )  # fmt: skip
    what = rng.integers(8)
    if what == 0:
        table = table.remove_column(place)
    elif what == 1:
        table = table.rename_columns([*table.column_names[:place], f"{name}_", *table.column_names[place + 1 :]])
    elif what == 2:
        table = table.slice(0, 0)
    elif what == 3:
        table = table.append_column("more", columns[rng.integers(len(columns))])
    elif what == 4 and rows:
        table = table.take(pa.array(rng.integers(0, rows, rows)))
    else:
        table = table.set_column(place, name, columns[rng.integers(len(columns))])
    into = io.BytesIO()
    pyarrow.parquet.write_table(table, into)
    return into.getvalue()


_BY_ENDING: dict[str, Mutation] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".pt": _torch,
    ".pth": _torch,
    ".bin": _torch,
    ".parquet": _parquet,
}
