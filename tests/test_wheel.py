"""The wheel holds all that is needed, and runs the main job where nothing else is installed."""

import os
import re
import subprocess
import sys
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def done(*command: object, **options: object) -> str:
    """What a command prints."""
    ran = subprocess.run([str(part) for part in command], check=False, capture_output=True, text=True, **options)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    done(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
    (found,) = folder.glob("*.whl")
    return found


def test_it_holds_every_file_of_the_package_and_nothing_else(wheel):
    tracked = {line.removeprefix("src/") for line in done("git", "-C", ROOT, "ls-files", "src").splitlines()}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == tracked


def test_its_metadata_are_complete(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        said = Parser().parsestr(archive.read(name).decode())
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    for field in ("Name", "Version", "Summary", "License-Expression", "Requires-Python", "Keywords", "Author"):
        assert said[field], field
    assert said["Description-Content-Type"] == "text/markdown"
    assert "assay run dyck" in said.get_payload()


@pytest.mark.timeout(1_200)
def test_the_main_job_runs_where_nothing_else_is_installed(wheel, tmp_path):
    venv.create(tmp_path / "clean", with_pip=True)
    scripts = tmp_path / "clean" / ("Scripts" if sys.platform == "win32" else "bin")
    # A path that is set for these tests would lead to the sources in place of what the wheel holds.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done(scripts / "python", "-m", "pip", "install", "--quiet", wheel, env=alone)
    where = done(scripts / "python", "-c", "import assay; print(assay.__file__)", cwd=tmp_path, env=alone)
    assert Path(where.strip()).is_relative_to(tmp_path / "clean")
    run = ("run", "dyck", "--sequences", 40, "--out", tmp_path / "run")
    said = done(scripts / "assay", *run, cwd=tmp_path, env=alone)
    assert re.search(r": (ILLUSION|GAP|INCONCLUSIVE|UNFAITHFUL|VACUOUS|FAITHFUL)\. ", said)
    assert (tmp_path / "run" / "report.html").exists()
