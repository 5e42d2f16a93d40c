"""Assay's pytest plugin: the fixture `assay_session`.

pytest imports this module in every run where Assay is installed, so it stands outside the package and imports nothing
of it (nor torch) before the fixture is asked for.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from assay.testing import Session


@pytest.fixture(scope="session")
def assay_session() -> "Iterator[Session]":
    """Subjects and their clean passes, kept until the last test: give it to `assert_faithful(session=...)`."""
    from assay.testing import Session  # noqa: PLC0415  (importing torch takes seconds)

    session = Session()
    yield session
    session.clear()
