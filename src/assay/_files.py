"""The one module through which Assay changes the file system, and by which names become paths.

A file is written beside its place, brought to the disk, and moved there as a whole: whoever stops in between leaves the
old file or the new one. Names that come from others (of charts, splits, sites, proxies) become names of files by
`safe_name` alone, and paths below a folder that somebody else may have filled are made by `inside`.
"""

import hashlib
import os
import re
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

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
    """Raise AssayError if a folder that may be from somebody else holds a link that leads out of it."""
    for place, folders, files in os.walk(folder):
        for path in (Path(place, name) for name in (*folders, *files)):
            if path.is_symlink():
                inside(folder, str(path.relative_to(folder)))


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
