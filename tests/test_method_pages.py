"""Every registered method has a page with all that a page has, and what it says can be called and tested."""

import inspect
import re
import shlex
import tomllib

import pytest

from assay.simplify import simplifications
from pages import ROOT
from site_pages import methods, plain
from site_pages.commands import commands

EVERY = list(methods.methods())
IDS = [f"{method.group}-{method.name}" for method in EVERY]


def test_facts_are_of_what_is_registered_and_of_nothing_else():
    facts = tomllib.loads(methods.FACTS.read_text(encoding="utf-8"))
    named = {(group, name) for group, found in methods.registered().items() for name in found}
    assert {(group, name) for group, found in facts.items() for name in found} == named
    assert {method.path for method in EVERY} <= set(methods.pages())


@pytest.mark.parametrize("method", EVERY, ids=IDS)
def test_a_page_says_all_that_a_page_says(method):
    sections = re.split(r"^## (.+)\n", method.page(), flags=re.MULTILINE)
    found = dict(zip(sections[1::2], (text.strip() for text in sections[2::2]), strict=True))
    for heading in methods.HEADINGS:
        assert len(found[heading]) > 5, heading
    if method.group in ("simplifications", "discoveries"):
        assert len(found["In the words of the code"]) > 60


@pytest.mark.parametrize("method", EVERY, ids=IDS)
def test_its_test_is_there(method):
    assert methods.test_of(method.facts["test"]) is not None, method.facts["test"]


def test_no_fact_is_said_twice():
    """Where a docstring says how a method differs from its source, the table of facts need not."""
    for method in EVERY:
        if method.group == "discoveries" and plain.differences(method.docstring):
            assert "differences" not in method.facts, method.name


@pytest.mark.parametrize("method", EVERY, ids=IDS)
def test_its_command_is_one_that_the_command_line_reads(method):
    program, *words = shlex.split(method.command)
    command = dict(commands())[f"{program} {words[0]}"]
    context = command.make_context(words[0], words[1:], resilient_parsing=True)
    assert context.params["model"]
    with pytest.raises(Exception, match="No such option"):
        command.make_context(words[0], [*words[1:], "--no-such-option"])


@pytest.mark.parametrize("method", [m for m in EVERY if m.group == "simplifications"], ids=lambda m: m.name)
def test_its_parameters_are_those_of_the_recipe(method):
    name, _, rest = method.facts["simplify"].partition(":")
    assert name == method.name
    signature = inspect.signature(simplifications.get(name))
    for part in filter(None, rest.split(",")):
        given = part.partition("=")[0] if "=" in part else next(iter(signature.parameters))
        takes_any = any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values())
        assert given in signature.parameters or takes_any


def test_papers_that_pages_name_are_those_of_the_code():
    """A number of arXiv on a page stands in the code, too: both are of the same source."""
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src" / "assay").rglob("*.py"))
    for method in EVERY:
        for number in re.findall(r"arXiv (\d{4}\.\d{5})", " ".join(method.facts["sources"])):
            assert number in code, (method.name, number)
