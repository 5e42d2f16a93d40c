"""What the site asks of Sphinx: docstrings as the plain text they are, and links to pages outside of docs/."""

from typing import Any

from site_pages import outside, plain


def plain_docstring(*arguments: Any) -> None:
    """Let a docstring say in reStructuredText what it says in plain text."""
    lines: list[str] = arguments[-1]
    lines[:] = plain.restructured("\n".join(lines))


def relink(app: Any, document: str, source: list[str]) -> None:
    """Let links to pages of the root lead to their copies."""
    source[0] = outside.relinked(source[0])


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", plain_docstring)
    app.connect("source-read", relink)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
