"""Build the site into docs/_build/html and check its links: `python docs/build_site.py`, with the extra `docs`.

Warnings are errors, and no network is needed. Notebooks are not run: they are committed with what they gave, and the
tests run them.
"""

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

DOCS = Path(__file__).parent


class Page(HTMLParser):
    """What a page links to, what it loads, and the places in it that can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag says."""
        found = {name: value or "" for name, value in attrs}
        self.places |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload") and "href" in found:
            self.loads.append(found["href"])
        elif tag in ("script", "img", "iframe", "source") and "src" in found:
            self.loads.append(found["src"])


def broken(folder: Path) -> Iterator[str]:
    """Links of a built site that lead nowhere within it, and what its pages load from elsewhere."""
    pages = {
        path.resolve(): Page(path.read_text(encoding="utf-8"))
        for path in sorted(folder.rglob("*.html"))
        if "_static" not in path.parts
    }
    for path, page in pages.items():
        where = path.relative_to(folder.resolve())
        for address in page.loads:
            if urlsplit(address).scheme not in ("", "data"):
                yield f"{where} loads {address}, which needs a network"
        for address in (*page.links, *page.loads):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                yield f"{where} links to {address}, which is not there"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].places:
                yield f"{where} links to {address}, which has no such place"


def main() -> int:
    """Build the site and check it; the exit status."""
    try:
        from sphinx.cmd.build import build_main  # noqa: PLC0415  (links are checked without it in the tests)
    except ImportError as error:
        print(f"the site needs the packages of the extra docs: pip install -e '.[docs]' ({error})", file=sys.stderr)
        return 1

    out = DOCS / "_build" / "html"
    status = build_main(["-E", "-W", "--keep-going", "-n", "-q", "-b", "html", str(DOCS), str(out)])
    found = list(broken(out)) if not status else []
    print("\n".join(found) if found or status else f"built: {out / 'index.html'}")
    return status or bool(found)


if __name__ == "__main__":
    sys.exit(main())
