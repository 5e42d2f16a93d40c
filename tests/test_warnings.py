"""Which warnings fail a test: all of ours; of other packages' those that are no deprecations; with `-W error` all."""

import re

import pytest

CALLER = """
import somewhere

def call(*warning):
    somewhere.warns_its_caller(*warning)
"""

FILES = {
    "somewhere": """
import warnings

def warns_its_caller(category, message):
    warnings.warn(message, category, stacklevel=2)
""",
    "assay/__init__": CALLER,
    "assay/engine/__init__": "",
    "assay/engine/_caller": CALLER,
    "assay_pytest": CALLER,
    "assayer": CALLER,
    "elsewhere": CALLER,
    "test_callers": """
import assay.engine._caller, assay_pytest, assayer, elsewhere, pytest, somewhere

CALLERS = {
    "assay": assay.call,
    "assay.engine._caller": assay.engine._caller.call,
    "assay_pytest": assay_pytest.call,
    "a test": somewhere.warns_its_caller,
    "assayer": assayer.call,
    "elsewhere": elsewhere.call,
}
WARNINGS = {
    "deprecation": (DeprecationWarning, "old"),
    "pending": (PendingDeprecationWarning, "old"),
    "future": (FutureWarning, "old"),
    "in words": (UserWarning, "It will be gone.\\nIt is Deprecated."),
    "numbers": (RuntimeWarning, "the mean of nothing"),
    "user": (UserWarning, "something else"),
}

@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("warning", WARNINGS)
def test(caller, warning):
    CALLERS[caller](*WARNINGS[warning])
""",
}
OURS, THEIRS = {"assay", "assay.engine._caller", "assay_pytest", "a test"}, {"assayer", "elsewhere"}
DEPRECATIONS, OTHERS = {"deprecation", "pending", "future", "in words"}, {"numbers", "user"}


@pytest.mark.parametrize(
    ("options", "passing"),
    [((), {(own, caller) for own in DEPRECATIONS for caller in THEIRS}), (("-W", "error"), set())],
)
def test_deprecations_that_other_packages_are_told_of_fail_no_test(pytester, request, options, passing):
    """In a run of its own by the filters of this repository, with stand-ins for this package and for others."""
    filters = "".join(f"\n  {line}" for line in request.config.getini("filterwarnings"))
    pytester.makeini(f"[pytest]\nfilterwarnings ={filters}\n")
    pytester.makepyfile(**FILES)
    result = pytester.runpytest_subprocess("-p", "no:assay_pytest", "-p", "no:cacheprovider", "-rA", *options)
    found = re.findall(r"^(PASSED|FAILED) test_callers\.py::test\[(.+?)-(.+?)\]", result.stdout.str(), re.MULTILINE)
    assert {pair[1:] for pair in found} == {(one, caller) for one in DEPRECATIONS | OTHERS for caller in OURS | THEIRS}
    assert {pair[1:] for pair in found if pair[0] == "PASSED"} == passing
