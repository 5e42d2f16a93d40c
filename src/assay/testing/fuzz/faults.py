"""Faults in the middle of a run: every touch of its files fails once in turn, and power is lost after every step.

In the manner of SQLite's tests. A small comparison is made in a folder; at one of its calls that touch a file there
(opening, creating, writing, syncing, moving or removing one, making or listing a folder) the disk is full, broken or
closed, or memory runs out. The run has to end with what the command line says in one line, and, begun again in the
same folder, with the bytes of a run that nothing disturbed, and no file more.

Power loss is simulated from what was synced: of a file what it held when it was last synced, of a folder the names that
it had when it was, or, as a file system may write names before content, the names of now.
"""

import contextlib
import errno
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import assay
from assay._errors import AssayError, in_line
from assay.simplify import Simplification
from assay.subjects import Subject, dyck_model
from assay.tasks import Dyck
from assay.testing.fuzz._tried import Tally, Tried

KINDS: Mapping[str, Callable[[], BaseException]] = {
    "full": lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "broken": lambda: OSError(errno.EIO, os.strerror(errno.EIO)),
    "closed": lambda: PermissionError(errno.EACCES, os.strerror(errno.EACCES)),
    "out of memory": lambda: MemoryError("out of memory"),
}
"""Faults of any call, by name: how the disk is, or that there is no memory."""

SHORT = "full in the middle of a file"
"""The fault of a file that is being written: no more than its first bytes fit."""

_FIRST_BYTES = 64

RESULTS = ("results.parquet", "gaps.parquet", "sequences.parquet")
"""The files whose bytes are compared; others say when and how long they were made."""

_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.listdir", "os.scandir")
"""What Python tells its audit hooks of calls that touch files."""


class Study:
    """The small comparison, on a subject and a task that are made once."""

    def __init__(self) -> None:
        self.task = Dyck(brackets=4, max_depth=4, deeper=8, training_sentences=200, max_brackets=40)
        self.subject = Subject(dyck_model(self.task, seed=0).eval(), self.task.tokenizer(), "random", seed=0)

    def run(self, folder: Path) -> None:
        """Make it in a folder, or go on there."""
        recipes: list[Simplification] = [assay.SVD(rank=2), assay.SparseAutoencoder(k=2, features=8, steps=2, batch=16)]
        assay.compare(
            self.subject, self.task, recipes,
            sites=["layer0.head0"], sequences=4, fit_sequences=34, resamples=10, controls=False, refit=False,
            folder=folder,
        )  # fmt: skip


def found(folder: Path) -> tuple[dict[str, bytes], list[str]]:
    """What a finished run left: the bytes of its results, and the names of all its files."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return {name: (folder / name).read_bytes() for name in RESULTS if (folder / name).exists()}, names


class Touches:
    """Counts the calls that touch files in a folder, and lets one of them fail.

    `number` is which, from 0 (None: none does), and `kind` how. Used as a context, one at a time.
    """

    _active: "Touches | None" = None
    _hooked = False

    def __init__(self, folder: Path, number: int | None = None, kind: str = "full") -> None:
        self.calls: list[str] = []
        self._folder, self._number, self._kind = str(folder), number, kind
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def __enter__(self) -> "Touches":
        if not Touches._hooked:  # a hook can never be taken away again
            sys.addaudithook(_heard)
            Touches._hooked = True
        self._fsync = os.fsync
        os.fsync = self._sync  # type: ignore[assignment]  # Python tells no hook of it
        Touches._active = self
        return self

    def __exit__(self, *error: object) -> None:
        Touches._active = None
        os.fsync = self._fsync
        self._end_short()

    @property
    def reached(self) -> bool:
        """Whether the call that fails was made."""
        return self._number is not None and len(self.calls) > self._number

    def heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An event of Python's; raises what its call raises, if it is the one that fails."""
        path = arguments[0] if arguments else None
        if not isinstance(path, str | os.PathLike) or not str(path).startswith(self._folder):
            return
        creates = event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & os.O_EXCL)
        if event in ("os.rename", "os.remove"):
            self._end_short()
        if self._kind != SHORT or creates:
            self._touch("create" if creates else event.removeprefix("os."))

    def _sync(self, descriptor: Any) -> None:
        self._end_short()
        if self._kind != SHORT:
            self._touch("sync")
        self._fsync(descriptor)

    def _touch(self, call: str) -> None:
        self.calls.append(call)
        if len(self.calls) - 1 != self._number:
            return
        if self._kind != SHORT:
            raise KINDS[self._kind]()
        resource.setrlimit(resource.RLIMIT_FSIZE, (_FIRST_BYTES, self._limits[1]))

    def _end_short(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)


def _heard(event: str, arguments: tuple[Any, ...]) -> None:
    if Touches._active is not None and event in _EVENTS:
        Touches._active.heard(event, arguments)


def fault(study: Study, whole: tuple[dict[str, bytes], list[str]], number: int, kind: str) -> str | None:
    """What was wrong when one call failed; "" if nothing was, None if there is no such call."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "run")
        with Touches(folder, number, kind) as touches:
            ending = _ending(study, folder)
        if not touches.reached:
            return None
        where = f"{kind} at call {number} ({touches.calls[number]})"
        if ending:
            return f"{where}: {ending}"
        return _again(study, folder, whole, where)


def _ending(study: Study, folder: Path) -> str:
    """How a disturbed run ended, unless it was well or in what the command line says in one line."""
    try:
        study.run(folder)
    except (AssayError, OSError, MemoryError) as error:
        return "" if len(str(error).splitlines()) <= 1 else f"several lines: {error}"
    except Exception as error:  # what must not be
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {in_line(error)} ({Path(place.filename).name}:{place.lineno})"
    return ""


def _again(study: Study, folder: Path, whole: tuple[dict[str, bytes], list[str]], where: str) -> str:
    """What is wrong with the folder after the run was begun again there."""
    try:
        study.run(folder)
    except Exception as error:  # whatever it is
        return f"{where}: begun again, {type(error).__name__}: {in_line(error)}"
    results, names = found(folder)
    if results != whole[0]:
        return f"{where}: other bytes in {', '.join(name for name in RESULTS if results.get(name) != whole[0][name])}"
    return "" if names == whole[1] else f"{where}: other files: {sorted(set(names) ^ set(whole[1]))[:3]}"


class Disk:
    """What of a folder a loss of power would leave, from the syncs that are made there. Used as a context."""

    def __init__(self, folder: Path) -> None:
        self.states: list[dict[str, bytes]] = []
        self._folder = folder
        self._content: dict[int, bytes] = {}
        self._names: dict[str, dict[str, int]] = {}

    def __enter__(self) -> "Disk":
        self._open, self._replace, self._fsync = os.open, os.replace, os.fsync
        os.open, os.replace, os.fsync = self._opened, self._replaced, self._synced  # type: ignore[assignment]
        return self

    def __exit__(self, *error: object) -> None:
        os.open, os.replace, os.fsync = self._open, self._replace, self._fsync

    def _opened(self, path: Any, flags: int, *rest: Any, **options: Any) -> int:
        descriptor = self._open(path, flags, *rest, **options)
        if flags & os.O_EXCL:  # a new file may have the number of one that is gone
            self._content.pop(os.fstat(descriptor).st_ino, None)
            self._note()
        return descriptor

    def _replaced(self, *paths: Any, **options: Any) -> None:
        self._replace(*paths, **options)
        self._note()

    def _synced(self, descriptor: Any) -> None:
        self._fsync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_dir():
            self._names[str(path)] = _listed(path)
        else:
            self._content[os.fstat(descriptor).st_ino] = path.read_bytes()
        self._note()

    def _note(self) -> None:
        """Keep what would be left now: the names of the last syncs, and all names of now."""
        for ahead in (False, True):
            state = dict(self._left(self._folder, "", ahead)) if self._folder.is_dir() else {}
            if state not in self.states:
                self.states.append(state)

    def _left(self, folder: Path, prefix: str, ahead: bool) -> Iterator[tuple[str, bytes]]:
        names = _listed(folder) if ahead else self._names.get(str(folder), {})
        for name, number in names.items():
            if (folder / name).is_dir():
                yield from self._left(folder / name, f"{prefix}{name}/", ahead)
            else:
                yield f"{prefix}{name}", self._content.get(number, b"")


def _listed(folder: Path) -> dict[str, int]:
    return {entry.name: entry.inode() for entry in os.scandir(folder)}


def power_losses(study: Study) -> list[dict[str, bytes]]:
    """What losses of power in a run would leave, each as content by name; every different state once."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "run")
        with Disk(folder) as disk:
            study.run(folder)
    return disk.states


def power_loss(study: Study, whole: tuple[dict[str, bytes], list[str]], state: Mapping[str, bytes]) -> str:
    """What is wrong when a run goes on from what a loss of power left; "" if nothing is."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "run")
        for file, content in state.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
        return _again(study, folder, whole, f"power lost with {len(state)} files")


def undisturbed(study: Study) -> tuple[tuple[dict[str, bytes], list[str]], list[tuple[int, str]]]:
    """What a run leaves that nothing disturbs, and all its faults: the number of a call, and how it may fail."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "run")
        with Touches(folder) as touches:
            study.run(folder)
        calls, files = len(touches.calls), touches.calls.count("create")
        faults = [(number, kind) for kind in KINDS for number in range(calls)]
        return found(folder), [*faults, *((number, SHORT) for number in range(files))]


def run(seed: int, minutes: float, say: Callable[[str], None]) -> list[Tried]:
    """Let calls fail, and power be lost, for so many minutes or until it is interrupted: all in random order, and again
    in another.
    """
    chance, tally, end = random.Random(seed), Tally(), time.monotonic() + 60 * minutes
    with contextlib.suppress(KeyboardInterrupt):
        study = Study()
        whole, faults = undisturbed(study)
        losses = power_losses(study)
        while time.monotonic() < end:
            tasks: list[Any] = [*faults, *losses]
            chance.shuffle(tasks)
            for item in tasks:
                if time.monotonic() > end:
                    break
                if isinstance(item, dict):
                    tally.count("power lost", power_loss(study, whole, item))
                elif (wrong := fault(study, whole, *item)) is not None:
                    tally.count(item[1], wrong)
                say(str(tally))
    return tally.rows()
