"""One small comparison with everything that a page shows."""

from pathlib import Path

import pytest

import assay
from assay.faithfulness import Comparison
from assay.reports import Illustrations, KeyCloud, SentenceView, write_page
from assay.tasks import Dyck

TITLE = "<script>alert('title')</script> & \"quotes\""


@pytest.fixture(scope="session")
def shown_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shown")


@pytest.fixture(scope="session")
def shown(shown_folder: Path) -> Comparison:
    task = Dyck(brackets=20, max_depth=10, deeper=14, training_sentences=2_000, max_brackets=60)
    recipes = [assay.SVD(rank=2), assay.SVD(rank=8), assay.OneHotAttention()]
    options = {"sites": ("layer1",), "sequences": 16, "fit_sequences": 80, "resamples": 150}
    return assay.compare(assay.load("dyck-20-10"), task, recipes, folder=shown_folder, **options)


@pytest.fixture(scope="session")
def illustrations(shown_folder: Path) -> Illustrations:
    pattern = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]
    return Illustrations(
        keys=[
            KeyCloud(
                site="layer1",
                colour="depth <b>bold</b>",
                boundary=1,
                points={"iid": [(0.0, 1.0, 0), (1.0, 0.5, 1)], "unseen_depth": [(0.3, 0.2, 2), (0.1, 0.1, 1)]},
            )
        ],
        sentences=[
            SentenceView(
                title=TITLE,
                site="layer1",
                proxy="SVD(rank=8)",
                tokens=["START", "(0", "0)"],
                subject_pattern=pattern,
                proxy_pattern=pattern,
                predictions=[(1, "0)", "0)", "<img src=x onerror=alert(1)>")],
            )
        ],
    )


@pytest.fixture(scope="session")
def page(shown: Comparison, illustrations: Illustrations, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of that comparison, with names that would like to be markup."""
    record = shown.record.model_copy(
        update={
            "task": {**shown.record.task, "note": "<script>alert('task')</script>"},
            "subjects": tuple({**item, "name": "<b>subject</b>"} for item in shown.record.subjects),
        }
    )
    hostile = Comparison(record, shown.results, shown._gaps, shown._controls, shown._sequences)
    return write_page(hostile, tmp_path_factory.mktemp("page") / "report.html", illustrations)
