"""Where the work of a comparison is done: here, in processes beside this one, or on a cluster."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import joblib
import torch

from assay._errors import AssayError
from assay._given import check_fields

ATTEMPTS = 3
"""How often in a row workers may die without any work having been finished in between."""

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Workers:
    """Processes that share the work of a comparison.

    `jobs` is how many (-1: one a core); 1 works in this process. With `cluster`, the address of a Dask scheduler such
    as `"tcp://10.0.0.1:8786"`, the cluster's workers do it, with no other change. The cores of this machine are
    divided among its processes. Raises AssayError for a number of jobs that makes no sense.
    """

    jobs: int = 1
    cluster: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.jobs < 1 and self.jobs != -1:
            raise AssayError(f"jobs={self.jobs}: must be a number of processes, or -1 for one a core.")

    @property
    def many(self) -> bool:
        """Whether work leaves this process."""
        return self.cluster is not None or self.count > 1

    @property
    def count(self) -> int:
        """How many pieces of work are under way at the same time (on a cluster: how many to cut it into at least)."""
        return (os.cpu_count() or 1) if self.jobs == -1 else self.jobs

    def map(self, work: Callable[..., _Result], items: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, _Result]]:
        """The number and the result of every item, `work(*item)`, as they are finished.

        When a worker dies (killed, out of memory), what was finished is kept and the rest is begun again; AssayError
        after some attempts in which nothing was finished. An exception in `work` is raised here.
        """
        if not self.many:
            for number, item in enumerate(items):
                yield number, work(*item)
            return
        left = dict(enumerate(items))
        failed = 0
        while left:
            try:
                for number, result in self._round(work, left):
                    del left[number]
                    failed = 0
                    yield number, result
            except joblib.externals.loky.process_executor.BrokenProcessPool as error:
                failed += 1
                if failed == ATTEMPTS:
                    raise AssayError(
                        f"a worker process died {ATTEMPTS} times without finishing anything; it may be out of memory "
                        f"(use fewer jobs), or crash: {str(error).split('.')[0]}."
                    ) from None

    def _round(self, work: Callable[..., _Result], left: dict[int, tuple[Any, ...]]) -> Iterator[tuple[int, _Result]]:
        with self._backend():
            threads = max(1, torch.get_num_threads() // self.count) if self.cluster is None else None
            calls = [joblib.delayed(_numbered)(work, number, item, threads) for number, item in left.items()]
            options: dict[str, Any] = {"n_jobs": -1}
            if self.cluster is None:
                own = {"backend": "loky", "initializer": _end_with, "initargs": (os.getpid(),)}
                options = {"n_jobs": self.count, **own}
            yield from joblib.Parallel(return_as="generator_unordered", batch_size=1, **options)(calls)

    @contextmanager
    def _backend(self) -> Iterator[None]:
        if self.cluster is None:
            yield
            return
        try:
            from distributed import Client  # noqa: PLC0415
        except ImportError:
            raise AssayError(
                "work on a cluster needs the package dask[distributed]: pip install 'assay-interp[cluster]'"
            ) from None
        try:
            client = Client(self.cluster, timeout=10)
        except (OSError, ValueError, TypeError) as error:
            raise AssayError(f"no Dask scheduler answers at {self.cluster!r} ({error}).") from None
        with client, joblib.parallel_config(backend="dask"):
            yield


def _end_with(parent: int) -> None:
    """In a worker: end when the process that gives it work is gone; killed, it cannot tell its workers."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _numbered(
    work: Callable[..., _Result], number: int, item: tuple[Any, ...], threads: int | None
) -> tuple[int, _Result]:
    """In a worker: one item, on its share of the cores."""
    if threads is not None:
        torch.set_num_threads(threads)
    return number, work(*item)
