"""Assay's pytest plugin: the fixture `assay_session`, its options and marker, and the numbers of assertions.

pytest imports this module in every run where Assay is installed, so it stands outside the package and imports nothing
of it (nor torch) before the fixture is asked for.
"""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter  # pytest itself has the name in newer versions only

    from assay.testing import Session

MARKER = "assay"

_STANDING = ", standing"


def _from_two(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number of sequences, at least 2")
    return int(text)


def _gigabytes(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number of gigabytes, 0 to keep nothing")
    return number


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the fixture."""
    group = parser.getgroup("assay", "explanations of models (assay)")
    group.addoption(
        "--assay-sequences", type=_from_two, metavar="N",
        help="judge the first N sequences of each split of a task, where assert_faithful does not say how many "
        "(500); fewer are quicker, and decide less",
    )  # fmt: skip
    group.addoption(
        "--assay-device", default="cpu", metavar="DEVICE",
        help="where assay_session.load puts subjects, where it does not say (default: %(default)s), for example cuda",
    )  # fmt: skip
    group.addoption(
        "--assay-memory", type=_gigabytes, default=1.0, metavar="GB",
        help="how much of the subjects' clean passes is kept for the next test (default: %(default)s)",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    said = "judges an explanation; every test that asks for assay_session has it (`-m 'not assay'` leaves them out)"
    config.addinivalue_line("markers", f"{MARKER}: {said}")


@pytest.hookimpl(tryfirst=True)  # before pytest picks tests by their markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use the fixture."""
    for item in items:
        if "assay_session" in getattr(item, "fixturenames", ()):
            item.add_marker(MARKER)


def pytest_terminal_summary(terminalreporter: "TerminalReporter") -> None:
    """Say of every claim that was judged whether it holds."""
    reports = [report for found in terminalreporter.stats.values() for report in found]
    lines = {
        (getattr(report, "nodeid", ""), name): value
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, value in report.user_properties
        if name.endswith(_STANDING)
    }
    if not lines or terminalreporter.verbosity < 0:
        return
    terminalreporter.section("assay: explanations judged")
    for (test, name), standing in sorted(lines.items()):
        # Names of splits and kinds may come from strangers: none of them moves the cursor.
        said = "".join(char if char.isprintable() else "?" for char in name.removesuffix(_STANDING))
        terminalreporter.write_line(f"{standing:<9}  {test}  {said}")


_running: list[pytest.Item] = []
"""The test that runs."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Know which test it is that measures something."""
    _running.append(item)
    try:
        return (yield)
    finally:
        _running.pop()


def record_property(name: str, value: str) -> None:
    """Add a property to the test that runs, as pytest's fixture of this name does; `assert_faithful` calls it."""
    if _running:
        _running[-1].user_properties.append((name, value))


@pytest.fixture(scope="session")
def assay_session(pytestconfig: pytest.Config) -> "Iterator[Session]":
    """Subjects and their clean passes, kept until the last test: give it to `assert_faithful(session=...)`."""
    from assay.testing import Session  # noqa: PLC0415  (importing torch takes seconds)

    session = Session(
        memory=int(1e9 * pytestconfig.getoption("--assay-memory")),
        device=pytestconfig.getoption("--assay-device"),
        sequences=pytestconfig.getoption("--assay-sequences"),
    )
    yield session
    session.clear()
