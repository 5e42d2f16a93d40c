"""The plugin in pytest runs of its own."""

import sys
from xml.etree import ElementTree

import pytest

PLUGIN = ("-p", "assay_pytest", "-p", "no:cacheprovider")


@pytest.fixture
def run(pytester, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ":".join(path for path in sys.path if path))
    return lambda *arguments: pytester.runpytest_subprocess(*PLUGIN, *arguments)


def test_a_run_that_does_not_use_it_imports_nothing(pytester, run):
    pytester.makepyfile(
        """
        import sys

        def test_nothing_was_imported():
            heavy = {"torch", "transformers", "assay"} & set(sys.modules)
            assert not heavy, heavy

        def test_warnings_are_filtered_as_the_user_says(pytestconfig):
            assert pytestconfig.getini("filterwarnings") == []
        """
    )
    result = run("-W", "error", "--strict-markers", "--strict-config")
    result.assert_outcomes(passed=2)


def test_it_is_an_entry_point_and_lists_its_fixture(pytester, run):
    result = run("--fixtures")
    result.stdout.fnmatch_lines(["assay_session*session scope*", "*clean passes*"])


def test_a_users_tests(pytester, run):
    """What the README says, with a passing and both failing outcomes, in one run."""
    pytester.makepyfile(
        """
        import assay
        import pytest
        from assay.testing import assert_faithful

        TASK = assay.tasks.Dyck(training_sentences=2_000)

        @pytest.fixture(scope="module")
        def subject(assay_session):
            return assay_session.load("dyck-20-10")

        def test_holds(assay_session, subject):
            proxy = assay_session.proxy(subject, assay.SVD(rank=32), TASK, site="layer1", sequences=100)
            splits = [TASK.split(name, 200) for name in ("iid", "unseen_depth")]
            assert_faithful(subject, proxy, splits, session=assay_session)

        def test_does_not_hold(assay_session, subject):
            proxy = assay_session.proxy(subject, assay.SVD(rank=2), TASK, site="layer1", sequences=100)
            splits = [TASK.split(name, 200) for name in ("iid", "unseen_depth")]
            assert_faithful(subject, proxy, splits, session=assay_session)

        def test_cannot_be_decided(assay_session, subject):
            proxy = assay_session.proxy(subject, assay.SVD(rank=32), TASK, site="layer1", sequences=100)
            assert_faithful(subject, proxy, TASK, sequences=10, session=assay_session)

        def test_subjects_are_shared(assay_session, subject):
            assert assay_session.load("dyck-20-10") is subject

        def test_wrong_types_are_refused_in_plain_words(assay_session, subject):
            proxy = assay_session.proxy(subject, assay.SVD(rank=32), TASK, sequences=20)
            with pytest.raises(assay.AssayError, match=r"must be a Proxy; simplification.fit.*apply"):
                assert_faithful(subject, assay.SVD(rank=2), TASK)
            for wrong in (["iid"], "iid", 3):
                with pytest.raises(assay.AssayError, match="must be a Task or a list of Splits"):
                    assert_faithful(subject, proxy, wrong)
        """
    )
    result = run("--junitxml=junit.xml")
    result.assert_outcomes(passed=3, failed=2)
    cases = {case.get("name"): case for case in ElementTree.parse(pytester.path / "junit.xml").iter("testcase")}
    for name, recipe in (("test_holds", "SVD(rank=32)"), ("test_does_not_hold", "SVD(rank=2)")):
        said = {one.get("name"): one.get("value") for one in cases[name].iter("property")}
        low, value, high = (float(said[f"{recipe}: iid, all: agreement{end}"]) for end in (", low", "", ", high"))
        assert 0 <= low <= value <= high <= 1
        assert said[f"{recipe}: iid, all: agreement, standing"] == ("holds" if name == "test_holds" else "fails")
        assert f"{recipe}: unseen_depth, all: gap" in said
    assert not list(cases["test_subjects_are_shared"].iter("property"))
    result.stdout.fnmatch_lines(
        [
            "*assay: explanations judged*",
            "undecided *test_cannot_be_decided  SVD(rank=32): iid, *: agreement",
            "fails *test_does_not_hold  SVD(rank=2): iid, all: agreement",
            "holds *test_holds  SVD(rank=32): unseen_depth, all: gap",
        ]
    )
    result.stdout.fnmatch_lines(
        [
            ">*assert_faithful(subject, proxy, splits, session=assay_session)",
            "E*AssertionError: NOT FAITHFUL: SVD(rank=2): SimplifiedSubject(Subject('dyck-20-10'*layer1.head0)",
            "E*fails*iid, all*agrees on *% *predictions in 200 sequences",
            "E*AssertionError: NOT DECIDED (too little data to tell)*",
        ]
    )
    result.stdout.no_fnmatch_line("*_faithful.py:*: in assert_faithful*")


@pytest.mark.slow
def test_options_and_marker(pytester, run):
    pytester.makepyfile(
        """
        import pytest

        def test_options(assay_session):
            assert (assay_session.sequences, assay_session.device) == (12, "meta")
            assert assay_session.load("dyck-20-10", device="cpu") is assay_session.load("dyck-20-10", device="cpu")

        def test_how_many_are_judged(assay_session):
            import assay
            from assay.testing import assert_faithful
            task = assay.tasks.Dyck(brackets=4, max_depth=4, deeper=8, training_sentences=200)
            subject = assay.Subject(assay.subjects.dyck_model(task, seed=0), task.tokenizer(), "random")
            proxy = assay_session.proxy(subject, assay.SVD(rank=1), task, sequences=20)
            for given, count in (({}, 12), ({"sequences": 10}, 10)):
                with pytest.raises(AssertionError, match=f"(in|of) {count} sequences"):
                    assert_faithful(subject, proxy, task, session=assay_session, kinds=["all"], **given)

        def test_of_something_else():
            pass
        """
    )
    options = ("--strict-markers", "--assay-sequences=12", "--assay-device=meta")
    run(*options).assert_outcomes(passed=3)
    run(*options, "-m", "not assay").assert_outcomes(passed=1, deselected=2)
    run("--markers").stdout.fnmatch_lines(["@pytest.mark.assay: judges an explanation*"])


@pytest.mark.parametrize(("option", "said"), [("sequences=1", "at least 2"), ("memory=-1", "a number of gigabytes")])
def test_options_that_are_wrong(pytester, run, option, said):
    result = run(f"--assay-{option}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*argument --assay-{option.split('=')[0]}:*{said}*"])
