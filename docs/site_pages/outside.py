"""Pages that lie outside of docs/: those of the root of the repository, and the notebooks of examples/."""

import re
from pathlib import Path

PAGES = {"CHANGELOG.md": "project/changelog.md", "CONTRIBUTING.md": "project/contributing.md",
         "SECURITY.md": "project/security.md"}  # fmt: skip
"""Pages of the root, and where they are below docs/generated/."""


def copies(root: Path) -> dict[str, Path]:
    """Files that are copied as they are: the notebooks, with what was run."""
    return {f"gallery/{path.name}": path for path in sorted((root / "examples").glob("*.ipynb"))}


def relinked(text: str) -> str:
    """A page of docs/ whose links to pages of the root lead to their copies."""
    for name, place in PAGES.items():
        text = re.sub(rf"\]\((?:\.\./)+{re.escape(name)}", f"](/generated/{place}", text)
    return re.sub(r"\]\((?:\.\./)+examples/([\w-]+)\.ipynb", r"](/generated/gallery/\1.ipynb", text)


def pages(root: Path) -> dict[str, str]:
    """The pages of the root, with links as they are from where they stand on the site."""
    found = {}
    for name, place in PAGES.items():
        text = (root / name).read_text(encoding="utf-8")
        found[place] = relinked(re.sub(r"\]\(docs/", "](/", re.sub(r"\]\((?=[A-Z]+\.md)", "](../", text)))
    return found
