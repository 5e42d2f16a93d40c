"""A page a method: what it claims, how, from where, how it differs, how to call it, and a test of a known truth."""

import ast
import inspect
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from assay.circuits import discoveries
from assay.dictionaries import SparseAutoencoder
from assay.dictionaries._training import COUNTED, PENALIZED
from assay.proofs import LINEAR_STRATEGIES, STRATEGIES, certify
from assay.simplify import simplifications
from site_pages import plain

FACTS = Path(__file__).parents[1] / "methods.toml"

GROUPS = {
    "simplifications": (
        "Simplifications",
        "Recipes that give a proxy of a subject, and the controls they have to beat: `--simplify NAME:…`, or a class.",
    ),
    "discoveries": (
        "Finding circuits",
        "Ways to give every edge a score: `--simplify circuit:edges=200,method=NAME` ([circuits](/circuits.md)).",
    ),
    "dictionaries": (
        "Kinds of dictionaries",
        "How codes are made, and what is minimised: `--simplify sae:kind=NAME` ([dictionaries](/dictionaries.md)).",
    ),
    "proofs": (
        "Proofs about attention models",
        "Strategies of `assay certify` for max-of-K models ([theorems](/soundness.md)).",
    ),
    "linear-proofs": (
        "Proofs about linear models",
        "Strategies of `assay certify` for linear models ([theorems](/soundness.md#linear-models)).",
    ),
}
"""Title and introduction of every group of methods."""

HEADINGS = ("Claim", "Formula", "Source", "Differences from the source", "Command", "Test of a known truth")
"""What every page has."""


@dataclass(frozen=True)
class Method:
    """A registered method with its facts: what docs/methods.toml and its docstring say."""

    group: str
    name: str
    facts: dict[str, Any]
    documented: Any
    """What has the docstring: a class, a function, or None where a strategy has a line in a table only."""

    @property
    def path(self) -> str:
        """Its page, below docs/generated/."""
        return f"methods/{self.group}/{self.name}.md"

    @property
    def docstring(self) -> str:
        """What the code says of it."""
        return inspect.getdoc(self.documented) or ""

    @property
    def differences(self) -> str | None:
        """How it differs from its source; the docstring first."""
        return self.facts.get("differences") or plain.differences(self.docstring)

    @property
    def command(self) -> str:
        """A call of the command line that uses it."""
        more = f" {self.facts['more']}" if "more" in self.facts else ""
        text = "assay compare MODEL --fit train.txt --split iid=held_out.txt --split code=code.txt"
        match self.group:
            case "simplifications" if self.name in ("circuit", "file"):
                return f"assay compare MODEL --pairs pairs.jsonl --simplify {self.facts['simplify']}{more}"
            case "simplifications":
                return f"{text} --simplify {self.facts['simplify']}{more}"
            case "discoveries":
                level = ",level=heads" if self.name in HEADS else ""
                circuit = f"circuit:edges=200,method={self.name}{level}"
                return f"assay compare MODEL --pairs pairs.jsonl --simplify {circuit}{more}"
            case "dictionaries":
                return f"{text} --simplify sae:kind={self.name},k=32 --sites layer3.residual"
        return f"assay certify {self.facts['model']} --strategy {self.name}{more}"

    @property
    def python(self) -> str | None:
        """Its public name in Python; None where it is chosen by its name."""
        if self.group in ("simplifications", "discoveries"):
            where = self.documented if inspect.isclass(self.documented) else inspect.unwrap(self.documented)
            return f"assay.{where.__module__.split('.')[1]}.{where.__qualname__}"
        return None

    def page(self) -> str:
        """The page, in Markdown."""
        sections = {
            "Claim": plain.escaped(self.facts["claim"]),
            "Formula": f"```text\n{self.facts['formula'].strip()}\n```",
            "Source": "\n".join(f"- {_linked(source)}" for source in self.facts["sources"]),
            "Differences from the source": plain.escaped(self.differences or ""),
            "Command": f"```bash\n{self.command}\n```",
            "Test of a known truth": f"`{self.facts['test']}`:\n\n{self._of_test()}",
        }
        parts = [f"# {self.name}"]
        parts += [f"## {heading}\n\n{sections[heading]}" for heading in HEADINGS]
        if self.group in ("simplifications", "discoveries"):
            role = "func" if inspect.isroutine(self.documented) else "class"
            link = f"{{py:{role}}}`{self.python}`" if "." not in _after(self.python) else f"`{self.python}`"
            parts.append(f"## In the words of the code\n\n{link}\n\n{plain.marked(self.docstring)}")
        return "\n\n".join(parts) + "\n"

    def _of_test(self) -> str:
        """What the test is about, by its own name or docstring."""
        found = test_of(self.facts["test"])
        said = ast.get_docstring(found) if found is not None else None
        return plain.escaped(said or f"*{self.facts['test'].split('::test_')[1].replace('_', ' ')}*").replace(
            "\\*", "*"
        )


HEADS = ("exact-nodes", "cd-t", "ships", "discrete-codes")
"""Ways that score whole heads."""


def _after(name: str | None) -> str:
    """A public name without its room."""
    return (name or "").removeprefix("assay.").partition(".")[2]


def _linked(source: str) -> str:
    """A source whose numbers of arXiv and own pages are links."""
    text = re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", source)
    return re.sub(r"(?<![/\w])(soundness|circuits|dictionaries)\.md", r"[\1](/\1.md)", text)


@cache
def _functions(path: Path) -> dict[str, ast.FunctionDef]:
    """The functions of a file by name."""
    body = ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else []
    return {one.name: one for one in body if isinstance(one, ast.FunctionDef)}


def test_of(node: str) -> ast.FunctionDef | None:
    """The function of a test by its path and name; None if there is none."""
    path, _, name = node.partition("::")
    return _functions(FACTS.parents[1] / path).get(name)


def registered() -> dict[str, dict[str, Any]]:
    """Everything that has a name, by group, with what has its docstring."""
    named: dict[str, Callable[[str], Any]] = {"simplifications": simplifications.get, "discoveries": discoveries.get}
    return {
        "simplifications": {name: named["simplifications"](name) for name in simplifications},
        "discoveries": {name: named["discoveries"](name) for name in discoveries},
        "dictionaries": dict.fromkeys((*COUNTED, *PENALIZED), SparseAutoencoder),
        "proofs": dict.fromkeys(STRATEGIES, certify),
        "linear-proofs": dict.fromkeys(LINEAR_STRATEGIES, certify),
    }


def methods() -> Iterator[Method]:
    """All registered methods of Assay. Raises KeyError for one without facts."""
    facts = tomllib.loads(FACTS.read_text(encoding="utf-8"))
    for group, found in registered().items():
        for name, documented in found.items():
            yield Method(group, name, facts[group][name], documented)


def pages() -> dict[str, str]:
    """A page a method, one a group, and one that names the groups."""
    every = list(methods())
    found = {method.path: method.page() for method in every}
    for group, (title, introduction) in GROUPS.items():
        own = [method for method in every if method.group == group]
        rows = [[f"[{method.name}]({group}/{method.name}.md)", plain.escaped(method.facts["claim"])] for method in own]
        tree = "\n".join(f"{group}/{method.name}" for method in own)
        found[f"methods/{group}.md"] = (
            f"# {title}\n\n{introduction}\n\n{plain.table(['name', 'claim'], rows)}\n\n"
            f"```{{toctree}}\n:hidden:\n\n{tree}\n```\n"
        )
    tree = "\n".join(GROUPS)
    found["methods/index.md"] = (
        "# Methods\n\nEvery method has a page: what it claims of a model, its formula, where it is from and how it "
        "differs from there, a call, and a test whose answer is known beforehand.\n\n"
        f"```{{toctree}}\n:maxdepth: 2\n\n{tree}\n```\n"
    )
    return found
