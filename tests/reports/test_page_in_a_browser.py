"""What only a browser knows of the page: nothing sticks out, all can be read, nothing is said or fetched."""

import inspect
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from test_page import swept

from assay.reports import write_page
from assay.reports._style import PHONE
from browser import Browser, browser, chromium

pytestmark = pytest.mark.skipif(chromium() is None, reason="there is no chromium to open the page with")

WIDTHS = (1280, 768, 390, 320)

OUTSIDE = """
[...document.querySelectorAll('body *')].filter(one => {
  const box = one.getBoundingClientRect();
  return box.width && box.right > innerWidth + 1 && !one.closest('.scroll, .picture, .vh');
}).map(one => one.outerHTML.slice(0, 90))
"""
"""Elements beyond the right edge that do not scroll in a region of their own."""

UNREADABLE = """
(() => {
  const numbers = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const over = (top, ground) => [0, 1, 2].map(i => top[i] * (top[3] ?? 1) + ground[i] * (1 - (top[3] ?? 1)));
  const light = colour => colour.slice(0, 3).map(v => v / 255)
    .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = one => {
    const above = [];
    for (let at = one; at; at = at.parentElement) above.unshift(numbers(getComputedStyle(at).backgroundColor));
    return above.reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const one = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !one.getClientRects().length || one.closest('style, .vh, title')) continue;
    const style = getComputedStyle(one), drawn = one.closest('svg');
    const below = ground(one), text = over(numbers(drawn ? style.fill : style.color), below);
    const [dark, bright] = [light(text), light(below)].sort((a, b) => a - b);
    const ratio = (bright + .05) / (dark + .05);
    // Units of a figure are not pixels of the page.
    const size = parseFloat(style.fontSize) * (drawn ? drawn.getScreenCTM().a : 1);
    const small = size < 11.99 && !one.closest('code');
    if (ratio < 4.5 || small) found.push([walker.currentNode.data.trim().slice(0, 40), ratio, style.fontSize]);
  }
  return found;
})()
"""
"""Texts with too little contrast on what lies below them, or too small."""

OPEN_ALL = "document.querySelectorAll('details').forEach(one => { one.open = true; })"


@pytest.fixture(scope="module")
def shown_page(page: Path):
    with browser() as opened:
        opened.show(page)
        yield opened


def test_the_console_is_empty_and_nothing_is_fetched(shown_page: Browser, page: Path):
    shown_page.show(page)
    assert shown_page.said == []
    assert {address for address in shown_page.asked if not address.startswith("data:")} == {page.as_uri()}


@pytest.mark.parametrize("opened", [False, True], ids=["folded", "open"])
def test_nothing_sticks_out_at_any_width(shown_page: Browser, page: Path, opened: bool):
    shown_page.show(page)
    if opened:
        shown_page.ask(OPEN_ALL)
    for width in WIDTHS:
        shown_page.look(width=width)
        assert shown_page.ask("document.documentElement.scrollWidth - innerWidth") == 0, width
        assert shown_page.ask(OUTSIDE) == [], width


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_text_can_be_read(shown_page: Browser, page: Path, dark: bool):
    shown_page.show(page, dark=dark)
    shown_page.ask(OPEN_ALL)
    assert shown_page.ask("getComputedStyle(document.body).backgroundColor") == (
        "rgb(21, 24, 27)" if dark else "rgb(255, 255, 255)"
    )
    assert shown_page.ask(UNREADABLE) == []


def test_what_is_looked_for_would_be_found(shown_page: Browser, page: Path):
    """A fault of each sort, put in on purpose."""
    shown_page.show(page, width=390)
    shown_page.ask("document.querySelector('h1').style.cssText = 'width: 500px; white-space: nowrap; color: #999'")
    assert shown_page.ask("document.documentElement.scrollWidth - innerWidth") > 0
    assert len(shown_page.ask(OUTSIDE)) == 1
    assert [ratio < 3 for _, ratio, _ in shown_page.ask(UNREADABLE)] == [True]
    before = len(shown_page.said)
    shown_page.ask("console.log('a word')")
    shown_page.ask("1")
    assert len(shown_page.said) == before + 1
    shown_page.said.pop()


def test_the_first_screen_has_the_finding_and_those_who_lost(shown_page: Browser, page: Path):
    for width, height, rows in ((1280, 800, 3), (390, 844, 1)):
        shown_page.show(page, width=width, height=height)
        bottoms = shown_page.ask(
            "[...document.querySelectorAll('h1, .lead p, .heads, .row')].map(one => one.getBoundingClientRect().bottom)"
        )
        assert all(bottom <= height for bottom in bottoms[: 3 + rows])


FORMS = "[...document.querySelectorAll('.picture .wide, .picture .narrow')].filter(one => one.checkVisibility())"


def test_figures_have_a_form_for_a_phone_in_which_nothing_shrinks_or_scrolls(shown_page: Browser, page: Path):
    for width, form in ((1280, "wide"), (768, "wide"), (390, "narrow"), (320, "narrow")):
        shown_page.show(page, width=width)
        shown_page.ask(OPEN_ALL)
        seen = shown_page.ask(f"{FORMS}.map(one => one.getAttribute('class'))")
        assert len(seen) > 5
        assert set(seen) == {form}
        regions = "[...document.querySelectorAll('.picture')]"
        beyond = set(shown_page.ask(f"{regions}.map(one => one.scrollWidth - one.clientWidth)"))
        # The narrowest phones have less room than the form for phones takes: there it scrolls, and keeps its size.
        assert beyond == ({0} if width > 320 else {round(96 * PHONE) - (320 - 2 * 16)}), width
        scales = shown_page.ask(
            "[...document.querySelectorAll('.picture svg')].filter(one => one.checkVisibility())"
            ".map(one => one.getScreenCTM().a)"
        )
        assert all(abs(scale - 96 / 72) < 0.01 for scale in scales)


def test_marks_lie_within_their_strip(shown_page: Browser, page: Path):
    for width in WIDTHS:
        shown_page.show(page, width=width)
        spread = shown_page.ask(
            """[...document.querySelectorAll('.strip svg')].flatMap(strip => {
              const frame = strip.getBoundingClientRect();
              return [...strip.querySelectorAll('use')].map(mark => {
                const box = mark.getBoundingClientRect();
                return [box.left - frame.left, frame.right - box.right, box.top - frame.top, frame.bottom - box.bottom];
              });
            })"""
        )
        assert len(spread) > 10
        assert min(min(margins) for margins in spread) > -1, width


def test_a_link_opens_its_section_and_print_opens_all(shown_page: Browser, page: Path):
    shown_page.show(page)
    assert shown_page.ask("document.querySelectorAll('details[open]').length") == 0
    shown_page.ask("document.querySelector('nav.contents a[href=\"#rules\"]').click()")
    assert shown_page.ask("document.getElementById('rules').closest('details').open")
    folded = "document.getElementById('splits').checkVisibility({contentVisibilityAuto: true})"
    seen = "document.querySelector('#splits table').getBoundingClientRect().height"
    shown_page.show(page)
    assert not shown_page.ask(folded) or shown_page.ask(seen) == 0
    shown_page.look(width=690, media="print", dark=True)
    assert shown_page.ask(seen) > 100
    assert shown_page.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert shown_page.ask("document.documentElement.scrollWidth - innerWidth") == 0


SEEN = "[...document.querySelectorAll('{}')].filter(one => one.checkVisibility()).map(one => one.dataset.verdict)"


@pytest.fixture(scope="module")
def sweep_page(shown, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(swept(shown, 3, 5), tmp_path_factory.mktemp("sweep") / "report.html")


def press(opened: Browser, key: str):
    for kind in ("rawKeyDown", "keyUp"):
        opened.call(
            "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode={"ArrowRight": 39}[key]
        )


def test_verdicts_are_filtered_by_keyboard(shown_page: Browser, sweep_page: Path):
    rows, table = ".forest > div[data-verdict]", "#splits tr[data-verdict]"
    for width in (1280, 320):
        shown_page.show(sweep_page, width=width)
        shown_page.ask(OPEN_ALL)
        before = {where: shown_page.ask(SEEN.format(where)) for where in (rows, table, ".verdict")}
        assert before[rows][:2] == ["illusion", "gap"]
        assert len(before[table]) == 45
        shown_page.ask("document.querySelector('.filter input').focus()")
        for judgement in ("illusion", "gap"):
            press(shown_page, "ArrowRight")
            assert shown_page.ask("document.querySelector('.filter input:checked').id") == f"only-{judgement}"
            for where, all_of in before.items():
                assert shown_page.ask(SEEN.format(where)) == [judgement] * all_of.count(judgement) != [], where
            faint = "[...document.querySelectorAll('.sites td svg')].filter(one => getComputedStyle(one).opacity == 1)"
            assert shown_page.ask(f"{faint}.map(one => one.dataset.verdict)") == [judgement]
        assert shown_page.ask("document.documentElement.scrollWidth - innerWidth") == 0
        assert shown_page.ask(OUTSIDE) == []
        small = "[...document.querySelectorAll('.filter label')].filter(one => one.getBoundingClientRect().height < 24)"
        assert shown_page.ask(f"{small}.length") == 0
        shown_page.look(width=690, media="print")
        for where, all_of in before.items():
            assert shown_page.ask(SEEN.format(where)) == all_of, "nothing is left out in print"
    assert shown_page.said == []


def test_where_no_row_has_a_verdict_the_filter_says_where_they_are(shown_page: Browser, sweep_page: Path):
    """Rows are drawn of the worst alone; the grids have all."""
    shown_page.show(sweep_page)
    none = "[...document.querySelectorAll('.none')].filter(one => one.checkVisibility()).map(one => one.textContent)"
    assert shown_page.ask(none) == []
    counted = shown_page.ask("[...document.querySelectorAll('.filter label')].map(one => one.textContent.trim())")
    drawn = set(shown_page.ask(SEEN.format(".forest > div[data-verdict]")))
    for label in counted[1:]:
        judgement, _ = label.split()
        shown_page.ask(f"document.querySelector('#only-{judgement}').click()")
        said = f"None of these 12 is {judgement}; the grids and the table of all splits have those that are."
        assert shown_page.ask(none) == ([] if judgement in drawn else [said])
        assert shown_page.ask(f"{none}.length") == (judgement not in drawn)


@pytest.mark.slow
def test_a_folded_group_is_open_when_it_alone_is_shown(shown_page: Browser, shown, tmp_path):
    """Of thirteen rows on, groups that mislead nobody are folded."""
    many = swept(shown, 1, 5)
    judged = [replace(one, judgement="unfaithful" if n % 2 else "gap") for n, one in enumerate(many.verdicts())]
    many.verdicts = lambda: tuple(judged)
    shown_page.show(write_page(many, tmp_path / "report.html"))
    heights = "[...document.querySelectorAll('.forest [data-verdict=unfaithful] .row')].map(one => one.clientHeight)"
    seen = "[...document.querySelectorAll('.forest [data-verdict=unfaithful] .row')].map(one => one.checkVisibility())"
    assert shown_page.ask(seen) == [False] * 7
    shown_page.ask("document.querySelector('#only-unfaithful').click()")
    assert shown_page.ask(seen) == [True] * 7
    assert min(shown_page.ask(heights)) > 20


def test_screenshots_are_made_by_a_command(shown, tmp_path):
    from page_screenshots import main  # noqa: PLC0415

    run = shown.save(tmp_path / "run")
    [picture] = main(
        [str(run), "--out", str(tmp_path / "images"), "--only", "phone", "--mode", "dark", "--name", "run"]
    )
    assert picture == tmp_path / "images" / "run-phone-dark.png"
    data = picture.read_bytes()
    assert re.match(rb"\x89PNG", data)
    assert (int.from_bytes(data[16:20]), int.from_bytes(data[20:24])) == (390, 844)


def test_a_browser_starts_whatever_files_are_open():
    """Numbers 3 and 4, by which it is driven, may be free in the child alone: packages close files of theirs there."""
    code = """
import os
from browser import browser
held = [os.open(os.devnull, os.O_RDONLY) for _ in range(2)]
os.register_at_fork(after_in_child=lambda: [os.close(one) for one in held])
with browser() as shown:
    print(shown.ask("1 + 1"))
"""
    given = {**os.environ, "PYTHONPATH": str(Path(inspect.getfile(Browser)).parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=given)
    assert done.stdout == "2\n", done.stderr[-500:]
