"""A comparison draws itself, however it came to be, without a word about `reports` before."""

import subprocess
import sys

CODE = """
import sys
import assay
from cloudpickle import dumps, loads

comparison = assay.Comparison.load(sys.argv[1])
assert "assay.reports" not in sys.modules, "computing never imports plotting"
again = loads(dumps(comparison))
assert again.report(sys.argv[2]).read_bytes() == comparison.report(sys.argv[3]).read_bytes()
assert list(again.figures())[0] == "verdicts"
"""


def test_in_a_fresh_process_from_a_folder_and_from_a_pickle(shown, tmp_path):
    run = shown.save(tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-c", CODE, *map(str, (run, tmp_path / "one.html", tmp_path / "other.html"))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "<h1>" in (tmp_path / "one.html").read_text(encoding="utf-8")
