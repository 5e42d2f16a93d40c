"""Rooms import downwards only (design: what may know of what)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "assay"

BELOW = {
    "tasks": set(),
    "subjects": {"tasks"},
    "engine": {"tasks", "subjects"},
    "simplify": {"tasks", "subjects", "engine"},
    # Siblings: none imports another.
    "circuits": {"tasks", "subjects", "engine", "simplify"},
    "dictionaries": {"tasks", "subjects", "engine", "simplify"},
    "models": {"tasks", "subjects", "engine", "simplify"},
    # Judging knows no kind of explanation.
    "faithfulness": {"tasks", "subjects", "engine", "simplify"},
    "diagnostics": {"tasks", "subjects", "engine", "simplify", "circuits", "dictionaries", "faithfulness"},
    "proofs": {"tasks", "subjects", "engine", "simplify"},
    "testing": {
        "tasks", "subjects", "engine", "simplify", "circuits", "dictionaries", "models", "faithfulness", "proofs",
        "reports",
    },
    "reports": {"tasks", "subjects", "faithfulness"},
    "studies": {
        "tasks", "subjects", "engine", "simplify", "circuits", "dictionaries", "models", "faithfulness", "diagnostics",
        "proofs", "testing", "reports",
    },
}  # fmt: skip
"""What each room may import; the command line may import all."""


def rooms_imported(path: Path) -> Iterator[str]:
    """The rooms that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            parts = node.module.split(".")
            if parts[0] == "assay":
                yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("assay."))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names = [str(part.value) for part in ast.walk(node) if isinstance(part, ast.Constant)]
            yield from (name.split(".")[1] for name in names if name.startswith("assay."))


def test_every_room_has_its_rule():
    assert {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()} == {*BELOW, "cli"}


@pytest.mark.parametrize("room", BELOW)
def test_rooms_import_downwards_only(room):
    upward = {
        (str(path.relative_to(ROOT)), other)
        for path in (ROOT / room).rglob("*.py")
        for other in rooms_imported(path)
        if other in {*BELOW, "cli"} and other not in BELOW[room] | {room}
    }
    assert upward == set()


def test_what_all_rooms_stand_on_imports_none_of_them():
    """The front door and the command's start stand above, and put the rooms together."""
    above = {"__init__.py", "__main__.py"}
    found = {path.name: {*rooms_imported(path)} & {*BELOW, "cli"} for path in ROOT.glob("*.py")}
    assert {name for name, rooms in found.items() if rooms} == above


def test_imports_by_a_string_are_seen(tmp_path):
    (tmp_path / "a.py").write_text("import importlib\nimportlib.import_module(f'assay.cli.{x}')\n", encoding="utf-8")
    assert [*rooms_imported(tmp_path / "a.py")] == ["cli"]


GRADIENT_MODES = ("no_grad", "enable_grad", "inference_mode", "set_grad_enabled")


def yields_within_a_gradient_mode(tree: ast.AST) -> Iterator[int]:
    """Lines at which a generator yields while it holds a mode that is the whole process's.

    Two such generators in turn would restore each other's modes, and leave gradients off for good. A context manager
    (one yield, and nothing runs in between but its block) is none.
    """
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        if any("contextmanager" in ast.unparse(decorator) for decorator in function.decorator_list):
            continue
        for block in ast.walk(function):
            held = isinstance(block, ast.With) and any(
                mode in ast.unparse(item) for item in block.items for mode in GRADIENT_MODES
            )
            for node in ast.walk(block) if held else ():
                if isinstance(node, ast.Yield | ast.YieldFrom):
                    yield node.lineno


def test_no_generator_yields_while_it_holds_a_gradient_mode():
    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in ROOT.rglob("*.py")
        for line in yields_within_a_gradient_mode(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert not found
    bad = "def f():\n    with torch.no_grad():\n        yield 1\n"
    assert list(yields_within_a_gradient_mode(ast.parse(bad))) == [3]
