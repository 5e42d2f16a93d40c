import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import assay

ROOT = Path(__file__).parents[1]


def test_public_names_exist():
    for name in assay.__all__:
        assert hasattr(assay, name)
    assert {"compare", "certify", "load", "SVD", "tasks"} <= set(assay.__all__)


def test_the_stub_says_where_names_come_from():
    stub = ast.parse(Path(assay.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    names = [(node.module, name.name) for node in stub.body if isinstance(node, ast.ImportFrom) for name in node.names]
    assert sorted(name for _, name in names) == sorted(assay.__all__)
    for module, name in names:
        if module is not None:
            assert getattr(assay, name) is getattr(sys.modules[f"assay.{module}"], name)


def test_torch_is_not_imported_before_it_is_needed():
    code = "import sys, assay.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("given", "then"), [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")])
def test_threads_sleep_while_they_wait_unless_they_are_told_not_to(given, then):
    """Before torch is imported: later nobody asks."""
    code = (
        "import atexit, os, sys, assay.cli\n"
        "atexit.register(lambda: print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY']))\n"
        "sys.argv = ['assay', '--version']\n"
        "assay.cli.main()"
    )
    clean = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    call = [sys.executable, "-c", code]
    done = subprocess.run(call, check=True, capture_output=True, text=True, env={**clean, **given})
    assert done.stdout.splitlines()[-1] == f"False {then}"


def test_the_readme_names_the_lowest_versions_that_are_allowed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lowest = dict(re.match(r"([\w-]+)>=([\d.]+)", line).groups() for line in project["dependencies"])
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    named = dict(re.findall(r"(\w+) ([\d.]+)", re.search(r"lowest that `pyproject.toml` allows \((.+?)\)", readme)[1]))
    assert named
    assert named.items() <= lowest.items()
