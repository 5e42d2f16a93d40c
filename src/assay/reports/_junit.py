"""Verdicts as a JUnit file, which CI services show beside other tests."""

import math
from pathlib import Path
from xml.etree import ElementTree

from assay._files import write_atomically
from assay.faithfulness import Comparison, Requirement, Verdict


def write_junit(comparison: Comparison, path: Path, requirement: Requirement) -> Path:
    """Write one test a proxy and site, which fails where its verdict is not what is required; gives the path."""
    verdicts = comparison.verdicts()
    failing = requirement.failing(verdicts)
    suite = ElementTree.Element(
        "testsuite",
        name="assay",
        tests=str(len(verdicts)),
        failures=str(len(failing)),
        errors="0",
        skipped="0",
        time=str(comparison.record.seconds),
        timestamp=comparison.record.created,
    )
    for verdict in verdicts:
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"assay.{comparison.record.subjects[0]['name']}", name=verdict.where
        )
        properties = ElementTree.SubElement(case, "properties")
        for name, value in {"judgement": verdict.judgement, **_numbers(verdict)}.items():
            ElementTree.SubElement(properties, "property", name=name, value=str(value))
        if verdict in failing:
            failure = ElementTree.SubElement(
                case,
                "failure",
                type=verdict.judgement,
                message=f"required {requirement.judgement}, found {verdict.judgement}",
            )
            failure.text = _printable(str(verdict))
        ElementTree.SubElement(case, "system-out").text = _printable(str(verdict))
    content = ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)
    write_atomically(path, lambda into: into.write_bytes(content))
    return path


def _numbers(verdict: Verdict) -> dict[str, float | str]:
    """The numbers that a verdict rests on, as far as they were measured."""
    names = ("agreement", "low", "high", "gap", "gap_low", "gap_high")
    found = {name: getattr(verdict, name) for name in names if not math.isnan(getattr(verdict, name))}
    return found if verdict.shift is None else {**found, "shift": _printable(verdict.shift)}


def _printable(text: str) -> str:
    """Text without the characters that XML cannot hold."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "?" for letter in text)
