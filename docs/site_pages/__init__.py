"""The pages of the site that are made of the code: API, command line, methods, and pages that lie outside of docs/.

Nothing here needs Sphinx: every module gives text, `write_all` writes it to docs/generated/, and tests read it.
"""

from pathlib import Path

from assay.faithfulness import RULES
from site_pages import api, commands, methods, outside

ROOT = Path(__file__).parents[2]
"""The repository."""


def pages() -> dict[str, str]:
    """All pages made of the code, by their path below docs/generated/."""
    own = {"command-line.md": commands.page(), "rules.md": RULES}
    return {**api.pages(), **methods.pages(), **own, **outside.pages(ROOT)}


def files() -> dict[str, bytes]:
    """All files below docs/generated/: the pages, and the notebooks with a picture of each."""
    text = {name: page.encode() for name, page in pages().items()}
    return {**text, **outside.notebooks(ROOT), **outside.pictures(ROOT)}


def write_all(folder: Path) -> None:
    """Write every file below a folder, those that have changed only, and remove what is none any more."""
    wanted = {folder / name: data for name, data in files().items()}
    for path in sorted(folder.rglob("*")) if folder.exists() else ():
        if path.is_file() and path not in wanted:
            path.unlink()
    for path, data in wanted.items():
        if not path.exists() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
