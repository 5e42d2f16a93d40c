"""A comparison draws itself, however it came to be, without a word about `reports` before."""

import subprocess
import sys

import cloudpickle
import pytest

import assay
from assay._drawing import drawing
from assay.faithfulness import Comparison

CODE = """
import sys
import assay

comparison = assay.Comparison.load(sys.argv[1])
assert "assay.reports" not in sys.modules, "computing never imports plotting"
print(comparison.report(sys.argv[2]))
"""


def test_from_a_folder_and_from_a_pickle(shown, shown_folder):
    assert drawing() is assay.reports
    for comparison in (Comparison.load(shown_folder), cloudpickle.loads(cloudpickle.dumps(shown))):
        assert list(comparison.figures()) == list(shown.figures())
        assert comparison.to_latex() == shown.to_latex()


@pytest.mark.slow
def test_in_a_fresh_process(shown, shown_folder, tmp_path):
    page = tmp_path / "report.html"
    call = [sys.executable, "-c", CODE, str(shown_folder), str(page)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(page)
    assert "<h1>" in page.read_text(encoding="utf-8")
