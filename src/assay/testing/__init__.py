"""For tests: conformance suites for authors of simplifications and of discovery methods, and more.

`assert_faithful` and the fixture `assay_session` of the pytest plugin that comes with the package (see `Session`) keep
explanations true. `assay.testing.planted` has subjects whose generalization gap, or whose circuit, is known exactly.
"""

from assay.testing import planted
from assay.testing._architectures import Support, check_architecture
from assay.testing._discoveries import check_discovery
from assay.testing._faithful import assert_faithful
from assay.testing._session import Session
from assay.testing._simplifications import TOLERANCE, check_simplification

__all__ = [
    "TOLERANCE",
    "Session",
    "Support",
    "assert_faithful",
    "check_architecture",
    "check_discovery",
    "check_simplification",
    "planted",
]
