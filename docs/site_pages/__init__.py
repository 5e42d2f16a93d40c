"""The pages of the site that are made of the code: API, command line, methods, and pages that lie outside of docs/.

Nothing here needs Sphinx: every module gives text, `write_all` writes it to docs/generated/, and tests read it.
"""

import shutil
from pathlib import Path

from assay.faithfulness import RULES
from site_pages import api, commands, methods, outside

ROOT = Path(__file__).parents[2]
"""The repository."""


def pages() -> dict[str, str]:
    """All pages made of the code, by their path below docs/generated/."""
    return {
        **api.pages(),
        **methods.pages(),
        "command-line.md": commands.page(),
        "rules.md": RULES,
        **outside.pages(ROOT),
    }


def write_all(folder: Path) -> None:
    """Write every page below a folder, those that have changed only, and remove what no page is any more."""
    wanted = {folder / name: text for name, text in pages().items()}
    copies = {folder / name: path for name, path in outside.copies(ROOT).items()}
    for path in sorted(folder.rglob("*")) if folder.exists() else ():
        if path.is_file() and path not in wanted and path not in copies:
            path.unlink()
    for path, text in wanted.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    for path, source in copies.items():
        if not path.exists() or path.read_bytes() != source.read_bytes():
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, path)
