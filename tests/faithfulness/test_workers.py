"""Work is done once wherever it is done, and a worker that dies takes nothing finished with it."""

import contextlib
import importlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from assay import AssayError
from assay.faithfulness._workers import ATTEMPTS, Workers


def square(number):
    return number * number


def die_once(number, marks):
    """Kills its own process the first time it is called for 3."""
    mark = Path(marks) / "died"
    if number == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    (Path(marks) / f"{number}-{os.getpid()}").touch()
    return number


def die(number):
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(number):
    raise AssayError(f"{number} is refused")


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_item_is_worked_once(jobs):
    found = dict(Workers(jobs).map(square, [(number,) for number in range(7)]))
    assert found == {number: number * number for number in range(7)}


def test_a_function_that_cannot_be_pickled_plainly_goes_too():
    base = 10
    assert dict(Workers(2).map(lambda number: base + number, [(1,), (2,)])) == {0: 11, 1: 12}


def test_a_worker_that_dies_loses_only_what_it_was_doing(tmp_path):
    found = dict(Workers(2).map(die_once, [(number, str(tmp_path)) for number in range(8)]))
    assert found == {number: number for number in range(8)}
    assert (tmp_path / "died").exists()


@pytest.mark.slow
def test_workers_that_keep_dying_are_given_up():
    with pytest.raises(AssayError, match=f"died {ATTEMPTS} times.*fewer jobs"):
        dict(Workers(2).map(die, [(1,), (2,)]))


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_of_the_work_is_raised_here(jobs):
    with pytest.raises(AssayError, match="1 is refused"):
        dict(Workers(jobs).map(refuse, [(1,)]))


@pytest.mark.parametrize("jobs", [0, -2])
def test_senseless_numbers_are_refused(jobs):
    with pytest.raises(AssayError, match=f"jobs={jobs}"):
        Workers(jobs)


def test_all_cores():
    assert Workers(-1).count == os.cpu_count()
    assert not Workers(1).many


def test_a_cluster_does_the_work():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster:
        workers = Workers(cluster=cluster.scheduler_address)
        assert workers.many
        found = dict(workers.map(lambda number: number * number, [(number,) for number in range(5)]))
    assert found == {number: number * number for number in range(5)}


def work_slowly(number, marks):
    """Kills its own process the first time it is called for 3; notes what was done."""
    found = die_once(number, marks)
    time.sleep(0.3)
    return found


@pytest.mark.slow
def test_a_cluster_that_loses_workers_and_is_lost(tmp_path):
    distributed = pytest.importorskip("distributed")
    once = importlib.import_module("dask").config.set({"distributed.scheduler.allowed-failures": 1})
    local = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": ":0"}
    with once, distributed.LocalCluster(**local) as cluster:
        workers = Workers(cluster=cluster.scheduler_address)
        found = dict(workers.map(work_slowly, [(number, str(tmp_path)) for number in range(8)]))
        assert found == {number: number for number in range(8)}
        assert (tmp_path / "died").exists()
        done = [path.name.partition("-")[0] for path in tmp_path.iterdir() if path.name != "died"]
        assert len(done) <= 8 + 1  # what the dead worker had finished, and not yet handed over
        with pytest.raises(AssayError, match="1 is refused"):
            dict(workers.map(refuse, [(1,)]))
        with pytest.raises(AssayError, match="died over and over"):
            dict(workers.map(die, [(1,)]))
        going = workers.map(work_slowly, [(number, str(tmp_path)) for number in range(8)])
        next(going)
        cluster.sync(cluster.scheduler.close, reason="as if it had crashed")
        cluster.close()
        with pytest.raises(AssayError, match="is gone"):
            list(going)


HTTP = b"HTTP/1.0 400 Bad request syntax\r\nContent-Type: text/html\r\n\r\n<html>\n<h1>Error\n</html>"


@pytest.mark.parametrize(
    "said", [b"", HTTP, b"SSH-2.0-OpenSSH_9.6\r\n", b"\xff" * 64, b"\0" * 64], ids=["silent", "http", "ssh", "ff", "00"]
)
def test_an_address_where_something_else_answers(monkeypatch, said):
    pytest.importorskip("distributed")
    monkeypatch.setattr("assay.faithfulness._workers.ANSWER", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        answering = threading.Thread(target=answer, args=(server, said))
        answering.start()
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(AssayError, match=f"no Dask scheduler answers at '{address}'") as refused:
            dict(Workers(cluster=address).map(square, [(1,)]))
        assert "\n" not in str(refused.value)
        answering.join()


def answer(server, said):
    with contextlib.suppress(OSError):
        connection, _ = server.accept()
        with connection:
            connection.sendall(said)
            while connection.recv(1024):
                pass


def test_a_cluster_that_does_not_answer(monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("assay.faithfulness._workers.ANSWER", 0.5)
    with pytest.raises(AssayError, match="no Dask scheduler answers"):
        dict(Workers(cluster="tcp://127.0.0.1:1").map(square, [(1,)]))


ORPHANS = """
import os, sys, time
from assay.faithfulness import Workers

def at_work(number):
    print(os.getpid(), flush=True)
    time.sleep(600)

list(Workers(2).map(at_work, [(0,), (1,)]))
"""


@pytest.mark.slow
def test_workers_end_with_the_process_that_is_killed():
    run = subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True)
    workers = [int(run.stdout.readline()) for _ in range(2)]
    run.kill()
    # Workers hold the other end of the pipe: it is closed when the last of them is gone.
    run.communicate(timeout=60)
    assert len(set(workers)) == 2
