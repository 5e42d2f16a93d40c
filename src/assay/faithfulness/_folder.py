"""A run folder holds one study: another one neither takes it over unasked nor leaves a mixture of both."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assay._errors import AssayError
from assay._files import read_bytes, refuse_links, remove, try_folder, write_atomically
from assay.faithfulness._comparison import CONTROLS, EFFECTS, GAPS, MODELS, RECORD, RESULTS, SEQUENCES

STUDY = "study.json"
"""What a folder is used for: the settings of its study, written when a run begins."""

CALL = "run.yaml"
"""The call of the command line that repeats a run."""

_PAGE = "report.html"

_LEFT = (
    RECORD, RESULTS, GAPS, CONTROLS, MODELS, EFFECTS, SEQUENCES, _PAGE, "illustrations.json", "figures/*.svg",
    "figures/*.png", "certificates/*.json", "counting.json", "reconstruction.parquet", "losses.parquet",
    CALL,
)  # fmt: skip
"""All that runs leave beside cells, which are named by what made them. The record goes first: it says "finished"."""


def claim(folder: str | Path, study: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Take a folder for a study, given by its settings (plain values), before any work is done.

    A finished run of the same study stays, to be drawn again, and an unfinished one goes on. What an unfinished run of
    another study left is removed, and so, with `overwrite`, is a finished one, in folders within this one, too. Cells
    stay in any case: they are used for the very same question only. Raises AssayError for a finished run of another
    study without `overwrite`, saying what differs, for a page that is of no run, for a link out of the folder, for a
    file, and where nothing can be written.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise AssayError(f"{str(folder)!r} is a file; give a folder for the run.")
    refuse_links(folder)
    asked = json.loads(json.dumps(study, default=str))
    held = _read(folder / STUDY)
    if held == asked:
        try_folder(folder)
        return
    of_a_run = held is not None or (folder / RECORD).exists()
    if (folder / _PAGE).exists() and not of_a_run:
        raise AssayError(f"{str(folder)!r} has a {_PAGE} that is of no run; give another folder.")
    if not overwrite and ((folder / RECORD).exists() or (folder / _PAGE).exists()):
        other = [] if held is None else [name for name in {**held, **asked} if held.get(name) != asked.get(name)]
        differs = f"different: {', '.join(other)}" if other else "it does not say of which"
        raise AssayError(
            f"{str(folder)!r} holds the finished run of another study ({differs}); give another folder, or replace its "
            "results, figures and page by overwrite=True (--overwrite)."
        )
    try_folder(folder)
    if of_a_run:
        for run in {folder, *(path.parent for path in folder.rglob(STUDY))}:
            for path in (path for name in (*_LEFT, STUDY) for path in sorted(run.glob(name))):
                remove(path)
    text = json.dumps(asked, indent=2) + "\n"
    write_atomically(folder / STUDY, lambda path: path.write_text(text, encoding="utf-8"))


def _read(path: Path) -> dict[str, Any] | None:
    """The study that a folder is used for; None if it does not say."""
    try:
        found = json.loads(read_bytes(path))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
