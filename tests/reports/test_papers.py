"""Figures and the table for papers: fonts, sizes, words, and what is refused."""

import re
import subprocess
import zlib
from itertools import combinations
from shutil import which

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from assay import AssayError
from assay.faithfulness import Comparison
from assay.reports import WIDTHS, Chart, Series, paper_figures, percent, style
from assay.reports._forest import forest
from assay.reports._forest_figure import TALLEST
from assay.reports._latex import escaped, latex
from assay.reports._style import PAPER, PHONE, WIDE, inches, make_visible, shortened, wrapped
from pages import blocks


@pytest.fixture(scope="module")
def drawn(shown, illustrations):
    """Every figure, and one of a study with long names."""
    names = [f"unseen structure number {number}" for number in range(5)]
    long = "Recipe(of={}, that=has, a=long, name=of_sixty_letters)"
    series = [Series(name=long.format(n), x=range(5), y=[n] * 5, low=[n - 1] * 5, high=[n + 1] * 5) for n in range(3)]
    labels = {"x_label": "the shift " * 6, "y_label": "the gap " * 9}
    chart = Chart(name="chart", caption="c", names=names, series=series, **labels)
    return paper_figures(shown, illustrations.model_copy(update={"charts": [chart]}))


def texts(figure):
    """All that is written in a figure, with where and how large."""
    FigureCanvasAgg(figure)
    make_visible(figure)
    figure.draw_without_rendering()
    hidden = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        seen = axis._update_ticks() if axis.axes.axison else []
        left_out = {*axis.get_major_ticks(), *axis.get_minor_ticks()} - {*seen}
        hidden |= {id(label) for tick in left_out for label in (tick.label1, tick.label2)}
    found = [
        text
        for text in figure.findobj(Text)
        if text.get_text().strip() and text.get_visible() and id(text) not in hidden
    ]
    return [(text.get_text(), text.get_window_extent(), text.get_fontsize()) for text in found]


def faults(figure):
    """Texts outside of the figure, or on each other."""
    written = texts(figure)
    paper = figure.bbox
    outside = [
        text for text, box, _ in written
        if min(box.x0, box.y0) < -0.5 or box.x1 > paper.x1 + 0.5 or box.y1 > paper.y1 + 0.5
    ]  # fmt: skip
    touching = [
        (one, other)
        for (one, a, _), (other, b, _) in combinations(written, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 0.8 and min(a.y1, b.y1) - max(a.y0, b.y0) > 0.8
    ]
    return outside, touching


@pytest.mark.parametrize("width", ["column", "page"])
def test_text_is_large_enough_within_the_figure_and_nowhere_on_other_text(drawn, width):
    for name, paper in drawn.items():
        figure = paper.draw(width)
        assert figure.get_figwidth() == pytest.approx(WIDTHS.get(width, width)) or name.startswith("heat")
        assert figure.get_figheight() < 11
        assert min(size for _, _, size in texts(figure)) >= 6.5, name
        assert faults(figure) == ([], []), name


@pytest.mark.parametrize("width", [WIDE, PHONE], ids=["wide", "phone"])
def test_so_it_is_on_a_page_whose_smallest_text_has_twelve_pixels(drawn, width):
    for name, paper in drawn.items():
        with style():
            figure = paper._draw(width)
        assert min(size for _, _, size in texts(figure)) * 96 / 72 >= 12, name
        assert faults(figure) == ([], []), name


def test_what_is_looked_for_would_be_found(drawn):
    figure = drawn["verdicts"].draw()
    figure.text(0.99, 0.5, "sticks out")
    figure.text(0.5, 0.2, "one")
    figure.text(0.5, 0.2, "other")
    outside, touching = faults(figure)
    assert outside == ["sticks out"]
    assert ("one", "other") in touching


def test_the_main_figure_has_the_rows_order_marks_and_numbers_of_the_page(drawn, shown):
    rows = [row for group in forest(shown).groups for row in group.rows]
    written = [(text, box) for text, box, _ in texts(drawn["verdicts"].draw("page"))]
    named = [(text, box.y0) for text, box in written if text in {row.verdict.proxy for row in rows}]
    assert [text for text, _ in sorted(named, key=lambda one: -one[1])] == [row.verdict.proxy for row in rows]
    for row in rows:
        assert f"{row.familiar} → {row.worst}" in dict(written)
        assert row.verdict.judgement.capitalize() in dict(written)
        assert row.label in drawn["verdicts"].alternative
    axes = drawn["verdicts"].draw("page").axes[0]
    places = {round(float(x), 6) for line in axes.get_lines() for x in np.asarray(line.get_xdata())}
    [left], [right] = ({x for x in places if abs(x - end) < 1e-6} for end in (min(_grid(axes)), max(_grid(axes))))
    for mark in (mark for row in rows for mark in row.marks):
        expected = left + (mark.x - 2) / 96 * (right - left)
        assert min(abs(place - expected) for place in places) < 1e-5


def _grid(axes):
    """Where the lines of the scale are."""
    upright = [line.get_xdata() for line in axes.get_lines() if len(line.get_xdata()) == 2]
    return [float(x[0]) for x in upright if x[0] == x[1]]


def test_a_tall_figure_gets_narrow_lanes_and_then_leaves_the_least_misleading_out(shown, monkeypatch):
    verdicts = shown.verdicts()
    many = Comparison(shown.record, shown.results, shown._gaps, shown._controls, shown._sequences)
    monkeypatch.setattr(many, "verdicts", lambda: tuple(verdicts) * 12, raising=False)
    figure = paper_figures(many)["verdicts"]
    assert TALLEST - 1.5 < figure.draw().get_figheight() <= TALLEST
    left_out = int(re.search(r"(\d+) more are in the table", figure.caption)[1])
    assert 0 < left_out == 36 - figure.alternative.count(" at layer1: ")
    assert faults(figure.draw()) == ([], [])


def test_words_have_the_numbers_that_are_drawn(drawn, shown):
    rates = shown.agreement("unseen_depth").set_index("proxy")["estimate"]
    iid = shown.agreement().set_index("proxy")["estimate"]
    told = drawn["agreement-by-size-layer1"].alternative
    assert f"SVD: same prediction as the subject: like training: 2 {iid['SVD(rank=2)']:.3g}, 8 " in told
    assert f"deeper nesting: 2 {rates['SVD(rank=2)']:.3g}, 8 {rates['SVD(rank=8)']:.3g}" in told
    gaps = shown.gaps().query("trained and split == 'unseen_depth'").set_index("proxy")
    told = drawn["gaps-layer1"].alternative
    for column, name in (("gap", "deeper nesting: "), ("matched", "deeper nesting, at equal margin of the subject: ")):
        if np.isnan(gaps[column]["SVD(rank=2)"]):
            assert name not in told
            continue
        series = told[told.index(name) + len(name) :].partition(";")[0]
        value = re.search(r"SVD\(rank=2\) ([^, ]*)", series)[1].replace("\N{MINUS SIGN}", "-")
        assert float(value) == pytest.approx(100 * gaps[column]["SVD(rank=2)"], rel=0.01)
    assert "2 points" in drawn["keys-layer1"].alternative
    assert "START: START 1, (0 none, 0) none; (0: START 0.5, (0 0.5, 0) none" in drawn["sentence-0"].alternative


def streams(pdf):
    """What a PDF's compressed parts hold."""
    for part in re.findall(rb"stream\r?\n(.*?)endstream", pdf, re.DOTALL):
        try:
            yield zlib.decompress(part)
        except zlib.error:
            yield part


def test_a_pdf_has_truetype_fonts_and_the_width_that_was_asked_for(shown, tmp_path):
    figure = shown.figures()["verdicts"]
    path = figure.save(tmp_path / "verdicts.pdf", "text")
    data = path.read_bytes()
    whole = data + b"".join(streams(data))
    assert b"/FontFile2" in whole
    assert b"/Type3" not in whole
    assert b"/FontFile3" not in whole
    [box] = re.findall(rb"/MediaBox \[([\d. ]+)\]", data)
    assert float(box.split()[2]) == 72 * 5.5
    assert figure.save(tmp_path / "again.pdf", "text").read_bytes() == data


def test_every_figure_is_written_with_its_words_beside(shown, drawn, tmp_path):
    paths = shown.save_figures(tmp_path / "figures", format="png", width=3.0, style={"font.size": 8})
    assert {path.suffix for path in paths} == {".png", ".txt"}
    names = list(shown.figures())
    assert names[0] == "verdicts"
    assert [path.stem for path in paths[::2]] == names
    for path in paths[::2]:
        assert int.from_bytes(path.read_bytes()[16:20]) == 900, "three inches of 300 dots"
        caption, alternative = path.with_suffix(".txt").read_text(encoding="utf-8").strip().split("\n\n")
        assert caption == shown.figures()[path.stem].caption
        assert re.search(r"\d", alternative)


def test_a_style_changes_what_it_says_and_no_more(shown, tmp_path):
    figure = shown.figures()["verdicts"]
    plain = figure.data("svg").decode()
    assert plain == figure.data("svg").decode()
    serif = figure.data("svg", style={"font.family": "serif", "text.color": "#123456"}).decode()
    assert "DejaVu Serif" in serif
    assert "DejaVu Serif" not in plain
    assert "#123456" in serif
    (tmp_path / "own.mplstyle").write_text("font.size: 13\n", encoding="utf-8")
    assert "font: 13px" in figure.data("svg", style=tmp_path / "own.mplstyle").decode().replace("font-size", "font")
    gaps = shown.figures()["gaps-layer1"]
    colours = [set(re.findall(r"#[0-9a-f]{6}", gaps.data("svg", style=one).decode())) for one in (None, "ggplot")]
    assert "#348abd" in colours[1] - colours[0]


WRONG = [
    ({"format": "pgf"}, "unknown format of a figure 'pgf'; did you mean"),
    ({"format": "docx"}, "known: pdf, png, svg"),
    ({"width": "colum"}, "width='colum': give 'column' (3.25 inches)"),
    ({"width": 0.5}, "a number of inches from 2.5 to 20"),
    ({"width": float("nan")}, "a number of inches"),
    ({"style": "nonsense"}, "style='nonsense' is no style: give the name"),
    ({"style": {"font.sise": 9}}, "unknown setting of matplotlib 'font.sise'; did you mean 'font.size'"),
    ({"style": {"font.size": "large-ish"}}, "style cannot be used: "),
    ({"style": 3}, "must be a string, a path, a table"),
]


@pytest.mark.parametrize(("wrong", "words"), WRONG, ids=[f"{next(iter(one))}-{n}" for n, (one, _) in enumerate(WRONG)])
def test_what_there_is_not_is_refused_before_anything_is_written(shown, tmp_path, wrong, words):
    with pytest.raises(AssayError, match=re.escape(words)) as error:
        shown.save_figures(tmp_path / "figures", **wrong)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "figures").exists()


def test_a_file_of_settings_with_a_wrong_name_is_refused(shown, tmp_path):
    path = tmp_path / "own.mplstyle"
    path.write_text("font.size: 9  # fine\nfont.sise: 9\n", encoding="utf-8")
    with pytest.raises(AssayError, match=r"unknown setting of matplotlib 'font\.sise'"):
        shown.figures()["verdicts"].draw(style=path)


def test_names_are_shortened_in_the_middle_and_lines_are_wrapped_to_fit():
    with style(PAPER):
        name = shortened("RandomPerturbation(of=KMeans(clusters=64))", 1.2)
        assert inches(name) <= 1.2
        assert name.startswith("RandomP")
        assert name.endswith("=64))")
        assert "…" in name
        assert shortened("SVD", 1.2) == "SVD"
        assert shortened("a\x1bb", 1.2) == r"a\x1bb", "measured as it is shown"
        lines = wrapped("one two three four five six seven eight nine ten", 1.0)
        assert lines.split() == ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
        assert max(inches(line, 8.0) for line in lines.split("\n")) <= 1.0


# -- the table for LaTeX --------------------------------------------------------------------------------------------


def test_the_table_has_the_numbers_verdicts_and_order_of_the_page(shown):
    table = latex(shown, label="tab:one", caption="Ours, $x^2$.")
    assert r"\caption{Ours, $x^2$.}" in table
    assert r"\label{tab:one}" in table
    order = [row.verdict for group in forest(shown).groups for row in group.rows]
    rows = re.findall(r"^(.+?) & (.+) & (\w+) \\\\$", table, re.MULTILINE)
    judged = [row for row in rows if row[2] != "verdict"]
    assert [(name, judgement) for name, _, judgement in judged] == [(one.proxy, one.judgement) for one in order]
    for name, cells, _ in judged:
        for split, cell in zip(["iid", *shown.shifts], cells.split(" & "), strict=False):
            rate = shown.agreement(split).set_index("proxy").loc[name]
            assert cell == percent(rate["estimate"]).replace(">", "$>$")
            if np.isnan(rate["low"]):
                continue
            limits = ", ".join(percent(rate[end]).replace(">", "$>$") for end in ("low", "high"))
            assert f"[{limits}]" in table
    assert table.count(r"\toprule") == table.count(r"\bottomrule") == 1
    assert all(line.count("&") == len(shown.shifts) + 3 for line in table.splitlines() if line.endswith(r"\\"))
    assert "RandomProjection(rank=2)" in table
    assert r"closing\_far predictions, in per cent, with 95\% confidence intervals" in shown.to_latex()


HOSTILE = [
    (r"\input{/etc/passwd}", r"\textbackslash{}input\{/etc/passwd\}"),
    ("50% & $x_1^2$ #~", r"50\% \& \$x\_1\textasciicircum{}2\$ \#\textasciitilde{}"),
    ("[a] *b* --", "{[}a{]} {*}b{*} {-}{-}"),
    ("<|endoftext|>", r"\textless{}\textbar{}endoftext\textbar{}\textgreater{}"),
    ("`'\"?`", "{`}{'}{''}?{`}"),
    ("é → 中 \x1b", r"é $\to$ \texttt{U+4E2D} \textbackslash{}x1b"),
    ("a\nb", "a b"),
]


@pytest.mark.parametrize(("text", "safe"), HOSTILE, ids=[str(n) for n in range(len(HOSTILE))])
def test_names_of_others_command_nothing(text, safe):
    assert escaped(text) == safe


def renamed(shown, name, label=None):
    """The comparison with another name of one proxy, and another label of one split."""

    def proxy(one):
        changed = {field: name for field in ("proxy", "control") if getattr(one, field) == "SVD(rank=2)"}
        return one.model_copy(update=changed)

    splits = [one.model_copy(update={"label": label} if one.name == "iid" else {}) for one in shown.record.splits]
    record = shown.record.model_copy(
        update={"proxies": tuple(map(proxy, shown.record.proxies)), "splits": tuple(splits)}
    )
    frames = [
        frame.replace({"proxy": {"SVD(rank=2)": name}}) for frame in (shown.results, shown._gaps, shown._controls)
    ]
    return Comparison(record, *frames, shown._sequences)


def test_hostile_names_stand_escaped_in_the_table(shown):
    name = r"\write18{rm -rf} & 100% of $x_1$"
    table = latex(renamed(shown, name))
    assert escaped(name) in table
    assert r"\write" not in table
    rows = [line for line in table.splitlines() if line.endswith(r"\\")]
    assert {line.count("&") - line.count(r"\&") for line in rows} == {len(shown.shifts) + 3}


def test_long_headings_stand_in_lines(shown):
    table = latex(renamed(shown, "One", "50% [of] *all* & more"))
    assert r"& \shortstack[r]{50\% {[}of{]} \\ {*}all{*} \& more} & \shortstack[r]{known \\ structures} &" in table


EVERY_LETTER = "".join(map(chr, (*range(0x20, 0x250), *range(0x2010, 0x2030), 0x301, 0x3B1, 0x4E2D, 0x1F600)))


@pytest.mark.skipif(which("pdflatex") is None, reason="there is no pdflatex to set the table with")
@pytest.mark.parametrize("fonts", ["", r"\usepackage[T1]{fontenc}"], ids=["default", "T1"])
def test_latex_sets_the_table_whatever_names_there_are(shown, tmp_path, fonts):
    if not subprocess.run(["kpsewhich", "booktabs.sty"], check=False, capture_output=True, text=True).stdout:
        pytest.skip("this LaTeX has no booktabs")
    tables = [
        latex(renamed(shown, r"\input{/etc/passwd} 50% & $x_1^2$ #~ {", "[a] *b* -- <|end|> `'\"?")),
        latex(renamed(shown, EVERY_LETTER, "é → 中 ∅ ﬁ ſ « ŋ"), caption="Ours, $x^2$."),
    ]
    text = "\n".join((rf"\documentclass{{article}}{fonts}\usepackage{{booktabs}}\begin{{document}}", *tables))
    (tmp_path / "paper.tex").write_text(text + "\n" + r"\end{document}", encoding="utf-8")
    call = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "paper.tex"]
    done = subprocess.run(call, cwd=tmp_path, check=False, capture_output=True)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-800:]
    assert b"Missing character" not in done.stdout
    assert (tmp_path / "paper.pdf").stat().st_size > 10_000


@pytest.mark.parametrize("label", ["", "tab}", "a b", r"\x"], ids=["none", "brace", "space", "command"])
def test_a_label_that_latex_cannot_read_is_refused(shown, label):
    with pytest.raises(AssayError, match="give letters, digits"):
        shown.to_latex(label=label)


# -- the command ----------------------------------------------------------------------------------------------------


def test_the_page_of_documentation_runs(shown_folder, shown, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "assay-runs").mkdir()
    (tmp_path / "assay-runs" / "my-run").symlink_to(shown_folder)
    first, *rest = blocks("papers.md")
    names: dict[str, object] = {}
    exec(first.replace('format="pdf"', 'format="svg"'), names)  # fonts take a PDF seconds
    for code in rest:
        exec(code, names)
    assert {path.suffix for path in (tmp_path / "paper").iterdir()} == {".svg", ".txt", ".tex"}
    assert (tmp_path / "paper" / "table.tex").read_text(encoding="utf-8") == shown.to_latex(label="tab:verdicts")
    [call] = blocks("papers.md", "bash")
    assert call.split()[:2] == ["assay", "report"]
    assert set(re.findall(r"--\w+", call)) <= {"--figures", "--format", "--width", "--latex"}


@pytest.mark.slow
def test_the_command_writes_figures_and_a_table(command, shown, tmp_path):
    run = shown.save(tmp_path / "run")
    call = ("report", run, "--out", tmp_path / "out", "--figures", tmp_path / "paper", "--format", "svg")
    status, said, wrong = command(*call, "--width", "4.5", "--style", "ggplot", "--latex", tmp_path / "table.tex")
    assert status == 0, wrong
    assert str(tmp_path / "paper") in said.replace("\n", "")
    assert 'width="324pt"' in (tmp_path / "paper" / "verdicts.svg").read_text(encoding="utf-8")
    assert (tmp_path / "table.tex").read_text(encoding="utf-8") == shown.to_latex()


WRONG_OPTIONS = [
    ("--format", "gif", "unknown format"),
    ("--width", "wide", "give 'column'"),
    ("--style", "x", "no style"),
]


@pytest.mark.parametrize(("option", "value", "words"), WRONG_OPTIONS, ids=[one for one, *_ in WRONG_OPTIONS])
def test_the_command_refuses_what_there_is_not(command, shown_folder, shown, tmp_path, option, value, words):  # noqa: PLR0917
    status, _, wrong = command("report", shown_folder, "--figures", tmp_path / "other", option, value)
    assert status == 2
    assert option in wrong
    assert words in " ".join(re.sub(r"[│╭╰─╮╯]", " ", wrong).split())
    status, _, wrong = command("report", shown_folder, option, value)
    assert status == 2
    assert "--figures" in wrong
    assert not (tmp_path / "other").exists()
