"""Pages that lie outside of docs/: those of the root of the repository, and the notebooks of examples/."""

import base64
import json
import re
from pathlib import Path

PAGES = {"CHANGELOG.md": "project/changelog.md", "CONTRIBUTING.md": "project/contributing.md",
         "SECURITY.md": "project/security.md"}  # fmt: skip
"""Pages of the root, and where they are below docs/generated/."""


def notebooks(root: Path) -> dict[str, bytes]:
    """The notebooks of examples/, with what was run."""
    return {f"gallery/{path.name}": path.read_bytes() for path in sorted((root / "examples").glob("*.ipynb"))}


def pictures(root: Path) -> dict[str, bytes]:
    """The first picture of every notebook that has one, for the gallery."""
    found = {}
    for path in (*sorted((root / "examples").glob("*.ipynb")), root / "docs" / "tutorial.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        outputs = (output for cell in cells for output in cell.get("outputs", ()))
        drawn = (output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {}))
        if first := next(drawn, None):
            found[f"gallery/{path.stem}.png"] = base64.b64decode("".join(first))
    return found


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
