"""Two training seeds of the reference model, judged once on a small task with a folder, serve most tests."""

from pathlib import Path

import pytest

import assay
from assay.faithfulness import Comparison
from assay.subjects import Subject
from assay.tasks import Dyck

CALL = {"sites": ("all",), "sequences": 20, "fit_sequences": 100, "resamples": 150, "seed": 3}


def recipes():
    return [assay.SVD(rank=2), assay.SVD(rank=8), assay.SVD(rank=32), assay.OneHotAttention()]


@pytest.fixture(scope="session")
def bracket_task() -> Dyck:
    """Short sentences of the language that the reference models know."""
    return Dyck(brackets=20, max_depth=10, deeper=14, training_sentences=2_000, max_brackets=60)


@pytest.fixture(scope="session")
def trained() -> list[Subject]:
    return [assay.load("dyck-20-10", seed=seed) for seed in (0, 1)]


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="session")
def comparison(trained: list[Subject], bracket_task: Dyck, run_folder: Path) -> Comparison:
    return assay.compare(trained, bracket_task, recipes(), folder=run_folder, **CALL)
