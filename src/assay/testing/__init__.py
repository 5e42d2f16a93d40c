"""For tests: a conformance suite for authors of simplifications, and assertions that keep explanations true.

The pytest plugin that comes with the package gives the fixture `assay_session` (see `Session`).
"""

from assay.testing._faithful import assert_faithful
from assay.testing._session import Session
from assay.testing._simplifications import TOLERANCE, check_simplification

__all__ = ["TOLERANCE", "Session", "assert_faithful", "check_simplification"]
