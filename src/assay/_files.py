"""The one module through which Assay changes the file system, and by which names become paths.

A file is written beside its place, brought to the disk, and moved there as a whole: whoever stops in between leaves the
old file or the new one. Names that come from others (of charts, splits, sites, proxies) become names of files by
`safe_name` alone, and paths below a folder that somebody else may have filled are made by `inside`.

Files that may come from anybody are looked at before they are read: how long they are, and how long they would become.
"""

import hashlib
import json
import math
import os
import re
import secrets
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from assay._errors import AssayError
from assay._given import checked

if sys.platform != "win32":
    import fcntl

_LEFTOVER = re.compile(r"\.[0-9a-f]{16}\.assay-part")
"""How a file is called while it is written."""

_LONGEST = 120
"""Bytes of a file's name; file systems take 255, of which endings need some."""

_CHANGED = re.compile(r".*-[0-9a-f]{16}", re.DOTALL)
"""Names that end as those do that `safe_name` changed."""

_swept: set[Path] = set()
"""Folders in which this process has removed what others left."""


def safe_name(text: str) -> str:
    r"""The name of a file for a name that may be anything: of `[\w.-]` only, no leading dot, at most 120 bytes.

    A name that is all of this stays as it is. Any other loses what is not allowed, and ends in a hash of the whole, so
    that different names stay different.
    """
    kept = re.sub(r"[^\w.-]", "_", text).lstrip(".")
    if kept == text and text and len(text.encode()) <= _LONGEST and not _CHANGED.fullmatch(text):
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{kept.encode()[: _LONGEST - 17].decode(errors='ignore')}-{digest}"


def inside(folder: Path, name: str) -> Path:
    """The path of a file below a folder. Raises AssayError unless it is there, with all links on the way followed."""
    path = folder / name
    try:
        whole, top = path.resolve(), folder.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a null character
        raise AssayError(f"{name!r} is no path below {str(folder)!r} ({error}).") from None
    if whole == top or not whole.is_relative_to(top):
        raise AssayError(
            f"{name!r} lies outside {str(folder)!r}, by its name or by a link; a folder is read and written within "
            "itself only. Take the link away, or give another folder."
        )
    return path


def refuse_links(folder: Path) -> None:
    """Raise AssayError if a folder that may be from somebody else holds a link out of it, or a pipe or device."""
    for place, folders, files in os.walk(folder):
        for path in (Path(place, name) for name in (*folders, *files)):
            if path.is_symlink():
                inside(folder, str(path.relative_to(folder)))
            elif not path.is_file() and not path.is_dir():
                raise AssayError(f"{str(path)!r} is no plain file; take it away, or give another folder.")


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where they are not there, and bring them to the disk.

    Raises AssayError where a file is in the way.
    """
    missing = []
    while not folder.is_dir() and folder != folder.parent:
        if folder.exists():
            raise AssayError(f"{str(folder)!r} is a file; give a folder.")
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        _sync(path.parent)


def try_folder(folder: Path) -> None:
    """Write and remove an empty file in a folder, which is made. Raises AssayError, saying why, where that fails.

    It is for before the work: hours of it may be lost when only its end finds out.
    """
    try:
        make_folder(folder)
        temporary, lock = _temporary(folder)
        os.close(lock)
        temporary.unlink(missing_ok=True)
    except OSError as error:
        raise AssayError(
            f"nothing can be written to {str(folder)!r} ({error.strerror}); give another folder."
        ) from None


def try_file(path: Path) -> None:
    """See before the work that a file can be written at its end. Raises AssayError, saying why, where it cannot."""
    if path.is_dir():
        raise AssayError(f"{str(path)!r} is a folder; give the name of a file.")
    try_folder(path.parent)


@checked
def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it into place: never a half-written file.

    Both are brought to the disk, so that this holds when power is lost, too. A link at `path` is replaced, not
    followed. What stopped processes left in the folder is removed. Raises AssayError for a folder in place of the file.
    """
    folder = path.parent
    make_folder(folder)
    if path.is_dir():
        raise AssayError(f"{str(path)!r} is a folder; give the name of a file.")
    _sweep(folder)
    temporary, lock = _temporary(folder)
    try:
        write(temporary)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(folder)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(lock)


def append(path: Path, text: str) -> None:
    """Add text to the end of a file, which is made if it is not there."""
    make_folder(path.parent)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def remove(path: Path) -> None:
    """Remove a file, or a link and not what it leads to; nothing happens where there is none."""
    path.unlink(missing_ok=True)


def is_leftover(name: str) -> bool:
    """Whether a file's name is one of those that a process leaves that was stopped while it wrote."""
    return _LEFTOVER.fullmatch(name) is not None


def _temporary(folder: Path) -> tuple[Path, int]:
    """A new empty file, under a name that nobody can guess, and its descriptor, which holds a lock while it is used."""
    while True:
        path = folder / f".{secrets.token_hex(8)}.assay-part"
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if _locked(lock) is not False and os.fstat(lock).st_nlink:
            return path, lock
        os.close(lock)  # somebody who sweeps came in between


def _locked(descriptor: int) -> bool | None:
    """Take the lock of a file. False: another process has it; None: there are no locks here."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _sweep(folder: Path) -> None:
    """Remove what stopped processes left in a folder; what one still writes is locked."""
    whole = folder.absolute()
    if whole in _swept:
        return
    _swept.add(whole)
    for name in filter(is_leftover, os.listdir(folder)):
        try:
            lock = os.open(folder / name, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
        except OSError:
            continue
        try:
            if _locked(lock):
                (folder / name).unlink(missing_ok=True)
        finally:
            os.close(lock)


def _sync(path: Path) -> None:
    """Bring a file or a folder to the disk."""
    if sys.platform == "win32" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -- reading what may be from anybody -------------------------------------------------------------------------------

LIMITS: Mapping[str, int] = {
    "line": 2**23,
    "file": 2**28,
    "certificate": 2**26,
    "growth": 50,
}
"""What files may hold: bytes of a line of text in JSON lines, of a file that is read at once (JSON, a circuit) and of a
certificate, and how many times
its size a compressed file may become. `ASSAY_LIMITS="line=100000000,growth=200"` in the environment sets others."""

_SMALL = 2**20
"""Bytes that a compressed file may become in any case."""


def limit(name: str) -> int:
    """One of `LIMITS`, as the environment has it. Raises AssayError where that is no list of them."""
    found = dict(LIMITS)
    given = os.environ.get("ASSAY_LIMITS", "")
    for part in filter(None, given.split(",")):
        key, _, value = part.partition("=")
        if key.strip() not in found or not value.strip().isdecimal() or len(value) > 18:
            raise AssayError(
                f"ASSAY_LIMITS={given!r} in the environment: give names and whole numbers, such as line=100000000; "
                f"known: {', '.join(LIMITS)}."
            )
        found[key.strip()] = int(value)
    return found[name]


def too_large(what: str, size: str, name: str) -> AssayError:
    """An error about something beyond one of `LIMITS`."""
    return AssayError(
        f"{what} {size}, and at most {limit(name):,} are read; if that is right, raise the limit by "
        f"ASSAY_LIMITS={name}=... in the environment."
    )


def read_bytes(path: Path, name: str = "file") -> bytes:
    """The content of a file that is read at once. Raises AssayError if it is longer than a limit, or no plain file.

    Raises OSError as the system does.
    """
    size = path.stat().st_size
    if path.exists() and not path.is_file() and not path.is_dir():  # a pipe would be waited for
        raise AssayError(f"{str(path)!r} is no plain file.")
    if size > limit(name):
        raise too_large(repr(str(path)), f"has {size:,} bytes", name)
    return path.read_bytes()


def read_json(path: Path) -> Any:
    """The content of a JSON file, in UTF-8. Raises AssayError, in one line, if it is none or cannot be read."""
    try:
        return json.loads(read_bytes(path))
    except OSError as error:
        raise AssayError(f"{str(path)!r} cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise AssayError(f"{str(path)!r} is damaged ({why_no_json(error)}); restore it.") from None


def why_no_json(error: ValueError | RecursionError) -> str:
    """What an error of the JSON reader says."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"it is no JSON: {error.msg} at line {error.lineno}, column {error.colno}"
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else "it has a number of too many digits"


def check_growth(path: Path) -> None:
    """Raise AssayError if a zip file says that it holds many times its size. Other files pass.

    Raises what `zipfile` does where a zip file is damaged.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        # What a part says of its size is all that is read of it.
        declared = sum(item.file_size for item in archive.infolist())
    size = path.stat().st_size
    if declared > max(_SMALL, limit("growth") * size):
        raise too_large(
            repr(str(path)), f"would grow to {declared:,} bytes, {declared // size:,} times its size", "growth"
        )


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name. Raises AssayError if they say that they are larger than what they lie in.

    Their shapes are looked at before any is read; pickled objects are refused. Raises anything where it is damaged.
    """
    check_growth(path)
    with zipfile.ZipFile(path) as archive:
        for item in archive.infolist():
            with archive.open(item) as part:
                version = np.lib.format.read_magic(part)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(part)
            if math.prod(shape) * dtype.itemsize > item.file_size:
                raise AssayError(
                    f"{str(path)!r} is damaged: {item.filename!r} is shorter than its shape; save it again."
                )
    with np.load(path, allow_pickle=False) as held:
        return {name: held[name] for name in held.files}
