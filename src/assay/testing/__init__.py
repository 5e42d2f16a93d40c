"""For tests: a conformance suite for authors of simplifications, and assertions that keep explanations true.

`assay.testing.planted` has subjects whose generalization gap is known exactly, to test what measures gaps. The pytest
plugin that comes with the package gives the fixture `assay_session` (see `Session`).
"""

from assay.testing import planted
from assay.testing._architectures import Support, check_architecture
from assay.testing._faithful import assert_faithful
from assay.testing._session import Session
from assay.testing._simplifications import TOLERANCE, check_simplification

__all__ = [
    "TOLERANCE",
    "Session",
    "Support",
    "assert_faithful",
    "check_architecture",
    "check_simplification",
    "planted",
]
