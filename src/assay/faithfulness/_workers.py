"""Where the work of a comparison is done: here, in processes beside this one, or on a cluster."""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import joblib
import torch

from assay._errors import AssayError, in_line
from assay._given import check_fields

ATTEMPTS = 3
"""How often in a row workers may die without any work having been finished in between."""

ANSWER = 10.0
"""Seconds that a scheduler may take to answer."""

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
        if self.cluster is not None:
            yield from _on_cluster(self.cluster, work, items)
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
        threads = max(1, torch.get_num_threads() // self.count)
        calls = [joblib.delayed(_numbered)(work, number, item, threads) for number, item in left.items()]
        own: dict[str, Any] = {"backend": "loky", "initializer": _end_with, "initargs": (os.getpid(),)}
        yield from joblib.Parallel(n_jobs=self.count, return_as="generator_unordered", batch_size=1, **own)(calls)


def _on_cluster(
    address: str, work: Callable[..., _Result], items: Sequence[tuple[Any, ...]]
) -> Iterator[tuple[int, _Result]]:
    """The work done by a Dask cluster, whose scheduler gives that of a worker which died to another one.

    Without joblib, whose Dask backend waits without end for work that the scheduler has given up.
    """
    try:
        from distributed import Client, KilledWorker, as_completed  # noqa: PLC0415
    except ImportError:
        raise AssayError(
            "work on a cluster needs the package dask[distributed]: pip install 'assay-interp[cluster]'"
        ) from None
    try:
        # A client waits without end where something else listens, so that is asked for its name first.
        with ThreadPoolExecutor(1) as aside:  # a notebook has a loop of its own in this thread
            who = aside.submit(asyncio.run, _named(address)).result()
        if who != "Scheduler":
            raise AssayError(f"at {address!r} is a Dask {who.lower()}; give the address of the scheduler.")
        client = Client(address, timeout=ANSWER)
    except AssayError:
        raise
    except Exception as error:  # what others answer breaks in many ways
        raise AssayError(f"no Dask scheduler answers at {address!r} ({in_line(error)}).") from None
    with client:
        futures = [client.submit(_numbered, work, number, item, None, pure=False) for number, item in enumerate(items)]
        try:
            for future in as_completed(futures):
                yield future.result()
                future.release()
        except KilledWorker:
            raise AssayError(
                f"workers of the Dask cluster at {address!r} died over and over on the same work; they may be out of "
                "memory, or crash."
            ) from None
        except CancelledError:
            raise AssayError(f"the Dask scheduler at {address!r} is gone, or has cancelled the work.") from None


async def _named(address: str) -> str:
    """What a server of Dask calls itself. Raises some error where there is none."""
    from distributed import rpc  # noqa: PLC0415

    async with asyncio.timeout(ANSWER), rpc(address, timeout=ANSWER) as server:
        found = await server.identity()
    return str(found["type"])


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
