"""Assay's pytest plugin: the fixture `assay_session`, and the numbers of assertions as properties of their test.

pytest imports this module in every run where Assay is installed, so it stands outside the package and imports nothing
of it (nor torch) before the fixture is asked for.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from assay.testing import Session

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
def assay_session() -> "Iterator[Session]":
    """Subjects and their clean passes, kept until the last test: give it to `assert_faithful(session=...)`."""
    from assay.testing import Session  # noqa: PLC0415  (importing torch takes seconds)

    session = Session()
    yield session
    session.clear()
