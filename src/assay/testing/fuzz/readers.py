"""Changed files against everything that reads one: nothing but AssayError, MemoryError, KeyboardInterrupt may leave.

A case is a good file of one kind with a change (`_mutations`), or a folder or a link in its place. It is wrong if the
reader raises anything else, if the error is of more than one line, if code in the file was run, or if a file was
written beside the folder that was read.
"""

import os
import shutil
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path

import numpy as np

from assay._errors import AssayError
from assay.testing.fuzz._mutations import mutated
from assay.testing.fuzz._samples import Sample, samples
from assay.testing.fuzz._tried import Tally, Tried

SLOW = 30.0
"""Seconds of the processor after which a case counts as wrong: the files are tiny."""


def run(seed: int, minutes: float, say: Callable[[str], None]) -> list[Tried]:
    """Try changed files of every kind in turn, for so many minutes or until it is interrupted."""
    tally = Tally()
    end = time.monotonic() + 60 * minutes
    with suppress(KeyboardInterrupt), corpus(samples()) as kinds:
        number = 0
        while time.monotonic() < end:
            for kind in (kind for kind in kinds if number % kind.sample.every == 0):
                tally.count(kind.sample.kind, kind.case(seed, number))
            number += 1
            say(str(tally))
    return tally.rows()


@contextmanager
def corpus(of: Sequence[Sample]) -> Iterator[list["Kind"]]:
    """Good files of some kinds, each in a folder of its own, which are gone afterwards."""
    with tempfile.TemporaryDirectory() as name, silence():
        found = []
        made: dict[object, Path] = {}
        for place, sample in enumerate(of):
            if sample.make not in made:
                made[sample.make] = Path(name, f"good-{place}")
                made[sample.make].mkdir()
                sample.make(made[sample.make])
            found.append(Kind(sample, made[sample.make], Path(name)))
        yield found


@contextmanager
def silence() -> Iterator[None]:
    """What is read warns and reports; the cases are told by the table."""
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        yield


class Kind:
    """A kind of file with a good one of it."""

    def __init__(self, sample: Sample, good: Path, top: Path) -> None:
        self.sample, self.good, self.top = sample, good, top

    def unchanged(self) -> str:
        """What is wrong with the good file: nothing, or how it is refused."""
        with silence(), self.copied() as folder:
            return self._tried(folder, refused_is_wrong=True)

    def case(self, seed: int, number: int) -> str:
        """What is wrong with a case: empty if nothing is."""
        rng = np.random.default_rng([seed, number, *self.sample.kind.encode()])
        with silence(), self.copied() as folder:
            paths = sorted(path for path in folder.glob(self.sample.changed) if path.is_file())
            path = paths[rng.integers(len(paths))]
            what = rng.integers(40)
            if what < 2:
                path.unlink()
                path.mkdir() if what else path.symlink_to(self.top / "nowhere")
            else:
                path.write_bytes(mutated(path.name, path.read_bytes(), rng))
            wrong = self._tried(folder)
        return f"seed {seed}, case {number}, {path.name}: {wrong}" if wrong else ""

    @contextmanager
    def copied(self) -> Iterator[Path]:
        """A copy of the good file's folder, with nothing beside it."""
        place = self.top / "case"
        shutil.copytree(self.good, place / "below" / "file")
        try:
            with chdir(place / "below"):
                yield place / "below" / "file"
        finally:
            shutil.rmtree(place)

    def _tried(self, folder: Path, refused_is_wrong: bool = False) -> str:
        started = time.process_time()
        wrong = ""
        try:
            self.sample.read(folder)
        except (MemoryError, KeyboardInterrupt):
            raise
        except AssayError as error:
            if "\n" in str(error) or refused_is_wrong:
                wrong = f"AssayError{'' if refused_is_wrong else ' of more than one line'}: {str(error)!r}"
        except BaseException as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            wrong = f"{type(error).__name__}: {' '.join(str(error).split())[:120]} ({where})"
        seconds = time.process_time() - started
        if not wrong and seconds > SLOW:
            wrong = f"took {seconds:.0f} s"
        beside = [name for place in (folder.parent, folder.parent.parent) for name in os.listdir(place)]
        if not wrong and sorted(beside) != ["below", folder.name]:
            wrong = f"wrote outside of its folder: {', '.join(sorted(set(beside) - {'below', folder.name}))}"
        return wrong.encode("ascii", "backslashreplace").decode()
