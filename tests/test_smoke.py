import ast
import subprocess
import sys
from pathlib import Path

import assay


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
