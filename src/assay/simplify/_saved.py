"""Fitted simplifications in a folder: what was claimed of a subject, to be tested on another day or on another one."""

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from assay._errors import AssayError
from assay._files import is_leftover, read_bytes, remove, write_atomically
from assay._given import checked
from assay.engine import BLOCK_STREAMS, HEAD_STREAMS, Block, Edit, EditedSubject, Engine, Head, Place
from assay.simplify._controls import RandomPerturbation
from assay.simplify._protocol import Simplification, applied, is_whole, label, simplifications
from assay.simplify._proxy import Origin, SavedProxy, SimplifiedSubject
from assay.simplify._subspace import Subspace
from assay.subjects import Subject

FORMAT: Literal["assay-proxy"] = "assay-proxy"
VERSION: Literal[1] = 1

RECORD, TENSORS = "proxy.json", "tensors.safetensors"
"""The files of a saved proxy: everything that is no array, and the arrays."""

_UNREGISTERED = {"random-perturbation": RandomPerturbation}
"""Classes of ours that no text makes."""

_DAMAGES = (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError)
"""What reading a record may raise that was changed by hand."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Fitted(_Strict):
    """A fitted simplification: by its name in the registry, or None for a class of one's own."""

    name: str | None
    made_by: str
    parameters: dict[str, Any]
    learned: dict[str, Any]


class _Changed(_Strict):
    """What is changed at a place, and how wide the vectors are that are read there."""

    place: str
    streams: list[str]
    widths: dict[str, int]


class _Kept(_Strict):
    """A tensor as it is in the file: its dimensions in the `order` in which they lay in memory, outermost first."""

    shape: list[int]
    dtype: str
    order: list[int]


class _Origin(_Strict):
    name: str
    seed: int | None
    architecture: str
    weights_sha256: str
    config_sha256: str


class _Record(_Strict):
    """All of a saved proxy but its tensors."""

    format: Literal["assay-proxy"]
    version: Literal[1]
    assay: str
    title: str
    simplification: _Fitted
    places: list[_Changed]
    subject: _Origin
    tensors: dict[str, _Kept]
    tensors_sha256: str


@checked
def save_proxy(proxy: SavedProxy, folder: str | Path) -> Path:
    """Write a proxy to a folder, as `SimplifiedSubject.save` says; another kind than that has no places."""
    folder = Path(folder)
    _check_free(folder)
    writer = _Writer()
    made = writer.simplification(proxy.simplification)
    data = safetensors.torch.save(writer.tensors)
    record = _Record(
        format=FORMAT,
        version=VERSION,
        assay=version("assay-interp"),
        title=label(proxy.simplification),
        simplification=made,
        places=_changed(proxy),
        subject=_Origin(**vars(proxy.fitted_on)),
        tensors={
            key: _Kept(shape=list(tensor.shape), dtype=_dtype(tensor), order=writer.orders[key])
            for key, tensor in writer.tensors.items()
        },
        tensors_sha256=hashlib.sha256(data).hexdigest(),
    )
    text = json.dumps(record.model_dump(), indent=1, allow_nan=False) + "\n"
    write_atomically(folder / TENSORS, lambda path: path.write_bytes(data))
    write_atomically(folder / RECORD, lambda path: path.write_text(text, encoding="utf-8"))
    return folder


@checked
def load_proxy(folder: str | Path, subject: Subject, *, simplification: type[Any] | None = None) -> SavedProxy:
    """A saved proxy (`SimplifiedSubject.save`), in force in a subject.

        proxy = assay.load_proxy("explanations/brackets", assay.load("./my-model"))

    The subject may have other weights than the one that the proxy was fitted on: last month's explanation on today's
    model. `proxy.fitted_on` names the other one, and `proxy.transferred` says whether they differ. `simplification` is
    the class that made it, where that is one of your own, in no registry.

    No code is read from the folder. Raises AssayError if it holds no saved proxy, one of another version, or one that
    was damaged or changed; if its class is not known; and for a subject of another architecture.
    """
    folder = Path(folder)
    record = _read_record(folder)
    tensors = _read_tensors(folder, record)
    engine = _engine_of(folder, record, subject)
    made = _Reader(folder, tensors, simplification).simplification(record.simplification)
    try:
        proxy = applied(made, subject)
    except (AssayError, MemoryError):
        raise
    except Exception as error:  # what was learned may have been changed into anything
        raise _damaged(folder, RECORD, f"{type(error).__name__} in {label(made)}.apply") from error
    if is_whole(made) and isinstance(proxy, SavedProxy):
        return proxy
    before = {item.place: item.streams for item in record.places}
    if not isinstance(proxy, EditedSubject) or _streams(proxy.edits) != before:
        raise AssayError(
            f"{str(folder)!r}: {label(made)} edits other places or streams than when it was saved; its class has "
            "changed."
        )
    _check_fits(folder, record, proxy, engine)
    origin = Origin(**record.subject.model_dump())
    same = (origin.weights_sha256, origin.config_sha256) == (subject.weights_sha256, subject.config_sha256)
    return SimplifiedSubject(subject, proxy.edits, made, fitted_on=origin, transferred=not same)


def remove_proxy(folder: Path) -> None:
    """Remove a saved proxy from a folder, or what is left of one that could not be written to its end."""
    for name in (RECORD, TENSORS):
        remove(folder / name)


def _check_free(folder: Path) -> None:
    """Raise AssayError unless a folder is empty, or holds nothing but a saved proxy."""
    if folder.exists() and not folder.is_dir():
        raise AssayError(f"{str(folder)!r} is a file; give a folder for the proxy.")
    held = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    found = [name for name in held if not is_leftover(name)]
    other = [name for name in found if name not in (RECORD, TENSORS)]
    if found and (other or _format_of(folder) != FORMAT):
        raise AssayError(
            f"{str(folder)!r} holds something else than a saved proxy ({', '.join((other or found)[:3])}); give a "
            "folder of its own."
        )


def _format_of(folder: Path) -> object:
    """The format that a folder's record names; None if it names none."""
    try:
        found = json.loads((folder / RECORD).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found.get("format") if isinstance(found, dict) else None


def _changed(proxy: SavedProxy) -> list[_Changed]:
    """What is changed where; of what is no edit of its subject, nothing."""
    if not isinstance(proxy, EditedSubject):
        return []
    engine = Engine(proxy.subject)
    by_place = _streams(proxy.edits)
    widths = _widths(engine, {edit.place: by_place[str(edit.place)] for edit in proxy.edits})
    return [
        _Changed(place=str(edit.place), streams=by_place[str(edit.place)], widths=widths[edit.place])
        for edit in proxy.edits
    ]


def _streams(edits: tuple[Edit, ...]) -> dict[str, list[str]]:
    """What edits change at each place."""
    names = [item.name for item in fields(Edit)[1:]]
    return {str(edit.place): [name for name in names if getattr(edit, name) is not None] for edit in edits}


def _widths(engine: Engine, streams: Mapping[Place, list[str]]) -> dict[Place, dict[str, int]]:
    """The width of every stream that is changed; a pattern is that of queries, an MLP's map that of what it gives."""
    like = {"pattern": "queries", "mlp_map": "mlp"}
    asked = {place: [like.get(name, name) for name in own] for place, own in streams.items()}
    read = tuple(dict.fromkeys(name for own in asked.values() for name in own))
    run = engine.run(engine.few_tokens(), read=read)
    return {
        place: {name: int(getattr(run, name)[place.layer].shape[-1]) for name in own} for place, own in asked.items()
    }


class _Writer:
    """Turns what a simplification holds into plain values, with tensors aside."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.orders: dict[str, list[int]] = {}
        self._known: dict[int, str] = {}
        self._held: list[object] = []

    def simplification(self, fitted: Simplification) -> _Fitted:
        kind: Any = type(fitted)
        ours = next((name for name, own in _UNREGISTERED.items() if own is kind), None)
        name = ours or simplifications.name_of(kind)
        if hasattr(kind, "restored"):
            saved = {key: self._of(value, fitted, key) for key, value in kind.saved(fitted).items()}
            return _Fitted(name=name, made_by=kind.__qualname__, parameters={}, learned=saved)
        names = list(inspect.signature(kind).parameters.values())
        unnamed = [item.name for item in names if item.kind not in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY)]
        if unnamed:
            raise AssayError(f"{label(fitted)} cannot be saved: its parameter {unnamed[0]!r} is no keyword.")
        held = vars(fitted)
        learned = [key for key in held if key.endswith("_") and not key.startswith("_")]
        return _Fitted(
            name=name,
            made_by=kind.__qualname__,
            parameters={item.name: self._of(getattr(fitted, item.name), fitted, item.name) for item in names},
            learned={key: self._of(held[key], fitted, key) for key in learned},
        )

    def _of(self, value: Any, fitted: Simplification, where: str) -> Any:  # noqa: PLR0911  (a case a type)
        kind = type(value)
        if value is None or kind in (bool, int, str):
            return value
        if kind is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if isinstance(value, Head | Block):
            return {"place": str(value)}
        if isinstance(value, Subspace):
            return {"subspace": [self._of(part, fitted, where) for part in (value.basis, value.mean)]}
        if kind in (tuple, list):
            return {kind.__name__: [self._of(item, fitted, where) for item in value]}
        if kind is dict:
            pairs = ([self._of(part, fitted, where) for part in pair] for pair in value.items())
            return {"dict": list(pairs)}
        if kind in (Tensor, torch.nn.Parameter) and value.layout is torch.strided:
            return {"tensor": self._keep(value, value)}
        if (kind is np.ndarray or isinstance(value, np.generic)) and value.dtype.kind in "biuf":
            return {"array" if kind is np.ndarray else "number": self._keep(value, torch.from_numpy(np.array(value)))}
        if isinstance(value, Simplification) and not isinstance(value, type):
            return {"simplification": self.simplification(value).model_dump()}
        raise AssayError(
            f"{label(fitted)} cannot be saved: its {where} holds a {kind.__name__}; tensors, arrays, numbers, text, "
            "places, and tuples, lists and dicts of them can be."
        )

    def _keep(self, value: object, tensor: Tensor) -> str:
        """The name that a tensor is kept under, one for one object."""
        if id(value) not in self._known:
            name = f"tensor{len(self.tensors)}"
            self._known[id(value)] = name
            self._held.append(value)  # an object that is gone would leave its id to another
            # Products round differently in another memory layout: it has to come back, too.
            order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
            self.orders[name] = order
            self.tensors[name] = tensor.detach().cpu().permute(order).contiguous().clone()
        return self._known[id(value)]


class _Reader:
    """Makes a simplification again of plain values and tensors."""

    def __init__(self, folder: Path, tensors: Mapping[str, Tensor], given: type[Any] | None) -> None:
        self.folder, self.tensors, self.given = folder, tensors, given
        self._subspaces: dict[str, Subspace] = {}

    def simplification(self, fitted: _Fitted) -> Simplification:
        kind = self._class(fitted)
        if hasattr(kind, "restored"):
            return self._restored(kind, {name: self._of(value) for name, value in fitted.learned.items()})
        parameters = {name: self._of(value) for name, value in fitted.parameters.items()}
        try:
            made: Simplification = kind(**parameters)
        except AssayError:
            raise
        except Exception as error:  # code of others may raise anything
            what = " ".join(str(error).split())
            raise AssayError(
                f"{str(self.folder)!r}: {fitted.made_by} cannot be made with the parameters that were saved "
                f"({type(error).__name__}: {what}); its class has changed."
            ) from error
        for name, value in fitted.learned.items():
            if not name.endswith("_") or name.startswith("_"):
                raise self._damaged(f"{name!r} is no name of what is learned")
            setattr(made, name, self._of(value))
        return made

    def _restored(self, kind: Any, saved: dict[str, Any]) -> Simplification:
        try:
            made: Simplification = kind.restored(saved)
        except AssayError:
            raise
        except Exception as error:  # code of others may raise anything
            raise self._damaged(f"{type(error).__name__} in {kind.__qualname__}.restored") from None
        return made

    def _class(self, fitted: _Fitted) -> Callable[..., Any]:
        if self.given is not None and self.given.__qualname__ == fitted.made_by:
            return self.given
        if fitted.name in _UNREGISTERED:
            return _UNREGISTERED[fitted.name]
        if fitted.name is not None and self.given is None:
            try:
                return simplifications.get(fitted.name)
            except AssayError as error:
                raise AssayError(f"{str(self.folder)!r} was made by {fitted.made_by}: {error}") from None
        own = fitted.made_by.rpartition(".")[2]
        given = "" if self.given is None else f", not by {self.given.__qualname__}"
        raise AssayError(
            f"{str(self.folder)!r} was made by the class {own}{given}; give it: "
            f"load_proxy(folder, subject, simplification={own})."
        )

    def _of(self, value: Any) -> Any:
        if not isinstance(value, dict):
            if value is None or isinstance(value, bool | int | float | str):
                return value
            raise self._damaged(f"a {type(value).__name__} among the values")
        try:
            [(what, held)] = value.items()
            return self._by_kind(what, held)
        except AssayError:
            raise
        except (*_DAMAGES, ValidationError) as error:
            raise self._damaged(f"{type(error).__name__} at {str(value)[:40]}") from None

    def _by_kind(self, what: str, held: Any) -> Any:  # noqa: PLR0911  (a case a kind)
        match what:
            case "float":
                return float(held)
            case "place":
                return _place(held)
            case "subspace":
                basis, mean = held
                key = f"{basis} {mean}"
                if key not in self._subspaces:
                    self._subspaces[key] = Subspace(self._of(basis), self._of(mean))
                return self._subspaces[key]
            case "tuple":
                return tuple(self._of(item) for item in held)
            case "list":
                return [self._of(item) for item in held]
            case "dict":
                return {self._of(key): self._of(item) for key, item in held}
            case "tensor":
                return self.tensors[held]
            case "array":
                return self.tensors[held].numpy()
            case "number":
                return self.tensors[held].numpy()[()]
            case "simplification":
                return self.simplification(_Fitted(**held))
        raise self._damaged(f"a value of the kind {what!r}")

    def _damaged(self, why: str) -> AssayError:
        return _damaged(self.folder, RECORD, why)


def _damaged(folder: Path, name: str, why: str) -> AssayError:
    return AssayError(
        f"{str(folder / name)!r} is damaged or was changed ({' '.join(why.split())}); save the proxy again."
    )


def _place(text: str) -> Place:
    layer, _, head = text.removeprefix("layer").partition(".head")
    place: Place = Head(int(layer), int(head)) if head else Block(int(layer))
    if str(place) != text:
        raise ValueError(text)
    return place


def _read_record(folder: Path) -> _Record:
    """The record of a saved proxy. Raises AssayError if there is none of this version."""
    path = folder / RECORD
    try:
        found = json.loads(read_bytes(path))
    except OSError as error:
        raise AssayError(f"{str(folder)!r} holds no saved proxy: {RECORD} cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise _damaged(folder, RECORD, f"{type(error).__name__}: it is no JSON") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise AssayError(f"{str(path)!r} is no record of a saved proxy; load_proxy() reads what proxy.save() wrote.")
    if found.get("version") != VERSION:
        raise AssayError(
            f"{str(path)!r} has version {found.get('version')!r} of the format of saved proxies, and this Assay "
            f"({version('assay-interp')}) reads version {VERSION}; save the proxy again with this one."
        )
    try:
        return _Record.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        raise _damaged(folder, RECORD, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _read_tensors(folder: Path, record: _Record) -> dict[str, Tensor]:
    """The tensors that a record names. Raises AssayError unless they are exactly those that were written with it."""
    try:
        data = (folder / TENSORS).read_bytes()
    except OSError as error:
        raise _damaged(folder, TENSORS, f"it cannot be read: {error.strerror}") from None
    if hashlib.sha256(data).hexdigest() != record.tensors_sha256:
        raise _damaged(folder, TENSORS, f"its hash is not the one in {RECORD}")
    try:
        found: dict[str, Tensor] = safetensors.torch.load(data)
    except (SafetensorError, *_DAMAGES) as error:
        raise _damaged(folder, TENSORS, " ".join(str(error).split())) from None
    for what, names in (("missing", set(record.tensors) - set(found)), ("extra", set(found) - set(record.tensors))):
        if names:
            raise _damaged(folder, TENSORS, f"{what} tensors: {', '.join(sorted(names))}")
    for name, tensor in found.items():
        kept, dtype = record.tensors[name], _dtype(tensor)
        if sorted(kept.order) != list(range(len(kept.shape))):
            raise _damaged(folder, RECORD, f"{name} has dimensions in the order {kept.order}")
        if (list(tensor.shape), dtype) != (kept.shape, kept.dtype):
            raise _damaged(
                folder,
                TENSORS,
                f"{name} is {dtype} of shape {list(tensor.shape)}, not {kept.dtype} of shape {kept.shape}",
            )
    return {name: found[name].permute(_inverse(kept.order)) for name, kept in record.tensors.items()}


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _inverse(order: list[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)


def _engine_of(folder: Path, record: _Record, subject: Subject) -> Engine:
    """The engine of a subject that has the places of a proxy, of the same width, in the same architecture.

    Raises AssayError if it does not.
    """
    saved, own = record.subject.architecture, type(subject.model).__name__
    if saved != own:
        raise AssayError(
            f"{str(folder)!r} was fitted on a {saved} ({record.subject.name!r}), and {subject.name!r} is a {own}; give "
            "a subject of the same architecture."
        )
    engine = Engine(subject)
    try:
        places = {_place(item.place): item for item in record.places}
        allowed = {Head: (*HEAD_STREAMS, "pattern"), Block: (*BLOCK_STREAMS, "mlp_map")}
        for place, item in places.items():
            if not set(item.streams) <= set(allowed[type(place)]):
                raise ValueError(item.place)
    except _DAMAGES:
        raise _damaged(folder, RECORD, "places or streams that there are not") from None
    missing = [str(place) for place in places if place not in engine.heads and place not in engine.blocks]
    if missing:
        raise AssayError(
            f"{str(folder)!r} is about {missing[0]}, which {subject.name!r} does not have (it has {engine.heads[0]} to "
            f"{engine.heads[-1]}); give a subject of the same architecture as {record.subject.name!r}."
        )
    widths = _widths(engine, {place: item.streams for place, item in places.items()})
    for place, item in places.items():
        if widths[place] != item.widths:
            raise AssayError(
                f"{str(folder)!r} is about vectors of width {max(item.widths.values())} at {place}, which in "
                f"{subject.name!r} have width {max(widths[place].values())}; give a subject of the same architecture "
                f"as {record.subject.name!r}."
            )
    return engine


def _check_fits(folder: Path, record: _Record, proxy: EditedSubject, engine: Engine) -> None:
    """Raise AssayError unless a proxy runs, on a few tokens."""
    try:
        engine.run(engine.few_tokens(), edits=proxy.edits)
    except (torch.OutOfMemoryError, AssayError):
        raise
    except Exception as error:  # code of others may raise anything
        what = " ".join(str(error).split())
        raise AssayError(
            f"{str(folder)!r}: {record.title} does not run in {engine.subject.name!r} ({type(error).__name__}: "
            f"{what}); what was learned does not fit, or its class has changed."
        ) from error
