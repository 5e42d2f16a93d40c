"""The documentation: links between its files, and what the check of the built site finds."""

import re
from pathlib import Path

import pytest

import site_pages
from browser import browser, chromium
from pages import ROOT
from site_pages import outside, plain
from site_pages.api import ROOMS
from site_pages.commands import commands, options

STYLE = (ROOT / "docs/_static/assay.css").read_text(encoding="utf-8")

GENERATED = "generated/"
"""What is made of the code is on the site only."""


@pytest.fixture(scope="module")
def made():
    return site_pages.pages()


def sources():
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs/results").glob("*.md")]
    return sorted(path for path in found if path.is_file())


def without_code(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text):
    """The places of a page, as code hosts and the site name them."""
    heads = re.findall(r"^#+ (.+)$", without_code(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_files_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8")))
    for link in links:
        if re.match(r"[a-z]+:", link) or link.startswith(GENERATED):
            continue
        path, _, place = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if place and target.suffix == ".md":
            assert place in anchors(target.read_text(encoding="utf-8")), link


def test_every_page_of_docs_is_in_a_table_of_contents():
    listed = set()
    for page in (ROOT / "docs").glob("*.md"):
        for block in re.findall(r"^```\{toctree\}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.M):
            for line in block.split("\n"):
                pattern = line.strip()
                if pattern and not pattern.startswith((":", GENERATED)):
                    listed |= {path.relative_to(ROOT / "docs") for path in (ROOT / "docs").glob(f"{pattern}.*")}
    there = {
        path.relative_to(ROOT / "docs")
        for path in (*(ROOT / "docs").glob("*.md"), *(ROOT / "docs/results").glob("*.md"))
    }
    assert there - listed == {Path("index.md")}


def test_pages_made_of_the_code_hold_everything_public(made):
    found = made
    for room in ROOMS:
        names = __import__(f"assay.{room}", fromlist=["__all__"]).__all__
        page = found[f"api/assay.{room}.rst"]
        assert [name for name in names if f":: assay.{room}.{name}\n" not in page] == []
    import assay  # noqa: PLC0415

    assert [name for name in assay.__all__ if f"assay.{name}" not in found["api/index.md"]] == []


def test_the_page_of_the_command_line_holds_every_option(made):
    page = made["command-line.md"]
    for name, command in commands():
        section = re.split(rf"^##+ {name}$", page, flags=re.MULTILINE)[1].split("\n## ")[0]
        for option in options(command):
            if "completion" not in option.name:
                assert f"`{option.opts[0]}`" in section, (name, option.name)


def test_links_out_of_docs_lead_to_copies():
    text = "[a](../SECURITY.md) [b](../../SECURITY.md#limits) [c](../examples/compact-proofs.ipynb) [d](x.md)"
    assert outside.relinked(text) == (
        "[a](/generated/project/security.md) [b](/generated/project/security.md#limits) "
        "[c](/generated/gallery/compact-proofs.ipynb) [d](x.md)"
    )


def test_notebooks_and_their_pictures_are_on_the_site():
    assert set(outside.notebooks(ROOT)) == {f"gallery/{path.name}" for path in (ROOT / "examples").glob("*.ipynb")}
    shown = outside.pictures(ROOT)
    assert {"gallery/tutorial.png", "gallery/your-own-model.png"} <= set(shown)
    assert all(picture.startswith(b"\x89PNG") for picture in shown.values())


def test_what_is_written_is_written_once_and_what_is_gone_is_removed(tmp_path, monkeypatch):
    files = {"a/b.md": b"one", "c.png": b"two"}
    monkeypatch.setattr(site_pages, "files", lambda: files)
    site_pages.write_all(tmp_path)
    (tmp_path / "old.md").write_text("old", encoding="utf-8")
    before = (tmp_path / "c.png").stat().st_mtime_ns
    files["a/b.md"] = b"other"
    site_pages.write_all(tmp_path)
    found = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"b.md": b"other", "c.png": b"two"}
    assert (tmp_path / "c.png").stat().st_mtime_ns == before


def test_docstrings_as_restructured_text():
    text = """First `x_` of a_ * b.

    From there
    - one `k|l`
      goes on
    - two

        y = a_b * c

    | a | b |
    |---|---|
    | `1` | 2_ |
    """
    assert plain.restructured(text) == [
        r"First \ ``x_``\  of a\_ \* b.", "",
        "From there", "",
        r"- one \ ``k|l``\  goes on", "- two", "",
        "::", "", "        y = a_b * c", "",
        ".. list-table::", "   :header-rows: 1", "",
        "   * - a", "     - b", r"   * - \ ``1``\ ", r"     - 2\_", "",
    ]  # fmt: skip


def test_docstrings_as_markdown():
    assert (
        plain.marked("A <b> `c<d>` [x] $5\n\n    f = *\n\n- q\n")
        == r"A \<b> `c<d>` \[x\] \$5" + "\n\n```text\nf = *\n```\n\n- q"
    )
    assert plain.table(["a"], [["x|y"]]) == "| a |\n| --- |\n| x\\|y |"
    assert plain.differences("It does.\n\nSource: X. Differences: one; two. Raises AssayError for z.") == "One; two."
    assert plain.differences("It does.") is None


def test_broken_links_of_a_built_site_are_found(tmp_path):
    from build_site import broken  # noqa: PLC0415

    (tmp_path / "a.html").write_text(
        '<h1 id="x"></h1><a href="b.html#y">1</a><a href="b.html#z">2</a><a href="c.html">3</a><a href="#x">4</a>'
        '<a href="https://example.org/">5</a><script src="https://example.org/x.js"></script><img src="no.png">',
        encoding="utf-8",
    )
    (tmp_path / "b.html").write_text('<p id="y"></p>', encoding="utf-8")
    assert list(broken(tmp_path)) == [
        "a.html loads https://example.org/x.js, which needs a network",
        "a.html links to b.html#z, which has no such place",
        "a.html links to c.html, which is not there",
        "a.html links to no.png, which is not there",
    ]


@pytest.mark.skipif(chromium() is None, reason="there is no chromium to open a page with")
def test_formulas_and_long_names_break_on_a_phone_and_other_blocks_scroll(made, tmp_path):
    """Beside what the theme says, of which only the rules that widen pages are here."""
    long = "value_of_everything[that, is, long] · " * 9
    block = f'<div class="highlight"><pre>{long}</pre></div>'
    method = made[next(name for name in made if name.endswith("simplifications/svd.md"))]
    ids = [f"#{head[3:].lower().replace(' ', '-')}" for head in re.findall("^## .+$", method, flags=re.MULTILINE)]
    broken = re.search(r"^(#formula.*?) \{", STYLE, flags=re.MULTILINE)[1].replace(" pre", "").split(", ")
    assert broken == [name for name in ids if name in broken]
    sections = "".join(f'<section id="{name[1:]}">{block}</section>' for name in broken)
    name = f'<code><span class="pre">tests/{"test_" * 30}.py</span></code>'
    signature = f'<dl class="py"><dt class="sig"><span class="pre">{"Name" * 40}</span></dt></dl>'
    (tmp_path / "page.html").write_text(
        "<style>pre { overflow: auto } .pre { white-space: nowrap } " + STYLE + "</style>"
        f'<article class="bd-article"><h1>{"Heading" * 12}</h1><p>{name}</p>{signature}{sections}'
        f'<section id="results">{block}</section></article>',
        encoding="utf-8",
    )
    with browser() as shown:
        for width in (1280, 390, 320):
            shown.show(tmp_path / "page.html", width=width)
            assert shown.ask("document.documentElement.scrollWidth - innerWidth") == 0
            inside = "[...document.querySelectorAll('pre')].map(one => one.scrollWidth > one.clientWidth)"
            assert shown.ask(inside) == [False] * len(broken) + [True], width
