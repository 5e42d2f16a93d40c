"""The page is one file that needs nothing else, says the verdicts and lets no text become markup."""

import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import assay
from assay.faithfulness import JUDGEMENTS, RULES, Comparison
from assay.reports import (
    Illustrations,
    SentenceView,
    figures,
    limits,
    percent,
    point_limits,
    points,
    style,
    to_png,
    to_svg,
    write_figures,
    write_page,
)
from assay.reports._figures import attention_by_layer, drawings, sentence_attention
from assay.reports._forest import FIRST, SHAPES
from assay.reports._inline import inline
from assay.reports._page import rendered
from assay.reports._story import SEVERITY, finding
from assay.reports._style import COLOURS, PALETTE, PHONE, _rounded
from assay.reports._tables import JUDGEMENT_STYLE, MEANING, controls_asked
from assay.tasks import Text


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen = []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))

    handle_startendtag = handle_starttag


@pytest.fixture(scope="module")
def tags(page):
    parser = Tags()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser.seen


def test_the_page_is_small(page):
    assert 20_000 < page.stat().st_size < 300_000


def swept(comparison, layers, heads):
    """The comparison as if it had been made at so many heads, with a gap and an illusion among the verdicts."""
    names = [f"layer{layer}.head{head}" for layer in range(layers) for head in range(heads)]
    proxies = [one for one in comparison.record.proxies if not one.is_control]
    record = comparison.record.model_copy(
        update={"proxies": tuple(p.model_copy(update={"site": n, "heads": (n,)}) for n in names for p in proxies)}
    )
    recipes = [one.proxy for one in proxies]
    frames = [
        pd.concat([frame[frame["proxy"].isin(recipes)].assign(site=name) for name in names], ignore_index=True)
        for frame in (comparison.results, comparison._gaps, comparison._controls)
    ]
    found = Comparison(record, *frames, comparison._sequences)
    judged = list(found.verdicts())
    for place, judgement in ((0, "illusion"), (4, "gap")):
        judged[place] = replace(judged[place], judgement=judgement, gap=0.1)
    found.verdicts = lambda: tuple(judged)
    return found


def test_a_sweep_over_many_sites_has_a_grid_a_recipe_and_the_worst_first(shown, tmp_path):
    sweep = swept(shown, 3, 5)
    text = write_page(sweep, tmp_path / "report.html").read_text(encoding="utf-8")
    tables = re.findall(r'<table class="sites">.*?</table>', text, re.DOTALL)
    verdicts = sweep.verdicts()
    recipes = list(dict.fromkeys(verdict.proxy for verdict in verdicts))
    assert [re.search("<b>(.*?)</b>", table)[1] for table in tables] == recipes
    for recipe, table in zip(recipes, tables, strict=True):
        own = {verdict.site: verdict.judgement for verdict in verdicts if verdict.proxy == recipe}
        cells = dict(re.findall(r'aria-label="([\w.]+): (\w+)', table))
        assert cells == own
        assert re.findall(r'<th scope="col">(\d)</th>', table) == [*"01234"]
        assert re.findall(r'<th scope="row">(.*?)</th>', table) == ["layer 0", "layer 1", "layer 2"]
        assert table.count('<td class="illusion">') == list(own.values()).count("illusion")
    assert text.count('<li class="row">') == FIRST
    assert text.index("<h2>Worst first</h2>") < text.index('<li class="row">')
    losses = text[text.index('id="layers"') :].partition("</table>")[0]
    assert "10.0<small>1 of 5</small>" in losses
    whole = text[text.index('id="splits"') :].partition("</table>")[0]
    assert whole.count('<b class="v-') == len(verdicts)
    assert text.count('class="verdict ') == FIRST


@pytest.mark.slow
def test_a_sweep_over_a_hundred_sites_is_small(shown, tmp_path):
    assert write_page(swept(shown, 10, 17), tmp_path / "report.html").stat().st_size < 500_000


def test_nothing_is_fetched_from_elsewhere(page, tags):
    for tag, attributes in tags:
        assert tag not in ("script", "link", "iframe", "object", "base"), tag
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "action", "srcset", "poster"):
                assert value.startswith(("data:image/", "#")), (tag, name, value[:60])
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"url\((?!['\"]?(?:#|data:))", text)
    assert "@import" not in text


def test_all_text_is_escaped(page, tags):
    text = page.read_text(encoding="utf-8")
    for raw in ("<script>", "<b>subject", "<img src=x", "<b>bold"):
        assert raw not in text
    assert "&lt;script&gt;alert(" in text
    assert "&lt;img src=x" in text
    assert not [tag for tag, attributes in tags if attributes.get("src") == "x"]


def test_verdicts_come_first_and_in_words(page, shown):
    text = page.read_text(encoding="utf-8")
    body = text[text.index("<main") :]
    assert unescape(body).index(finding(shown)) < body.index(">Verdicts<") < body.index(">Contents<")
    forest, rest = body[: body.index(">Contents<")], body[body.index(">Contents<") :]
    for verdict in shown.verdicts():
        assert f'class="verdict v-{verdict.judgement}"' in rest
        assert f"<b>{verdict.proxy}</b>" in forest
        assert f'<span class="v-{verdict.judgement}">{verdict.judgement}</span> at {verdict.site}' in forest
        assert MEANING[verdict.judgement] in unescape(forest)
        assert f"{verdict.proxy} at {verdict.site}" in body
    names = [proxy.proxy for proxy in shown.record.proxies if not proxy.proxy.startswith("RandomPerturbation")]
    assert all(f">{name}<" in body for name in names)
    order = ["The verdicts in full", "Agreement by split", "What the gaps are made of", "How a verdict is made"]
    places = [rest.index(f"<h2>{title}</h2>") for title in order]
    assert places == sorted(places)
    assert all(split.name in body for split in shown.record.splits)


def test_every_judgement_has_its_words_its_style_and_a_shape_of_its_own():
    assert tuple(MEANING) == tuple(JUDGEMENT_STYLE) == JUDGEMENTS
    assert sorted(SEVERITY) == sorted(JUDGEMENTS)
    assert len(set(MEANING.values())) == len(set(JUDGEMENT_STYLE.values())) == len(JUDGEMENTS)
    assert len({SHAPES[one] for one in JUDGEMENTS}) == len(JUDGEMENTS)


def test_every_section_is_in_the_contents_and_its_link_leads_into_it(page):
    text = page.read_text(encoding="utf-8")
    behind = text[text.index(">Contents</h2>") :]
    links = re.findall(r'<li><a href="#([^"]*)">(.*?)</a></li>', behind)
    sections = re.findall(
        r'<section class="part"><h2>(.*?)</h2>.*?<div class="inside" id="([^"]*)">', behind, re.DOTALL
    )
    assert links == [(name, title) for title, name in sections]
    assert len(links) > 8
    for title in ("Keys layer1", "Gaps layer1", "How a verdict is made"):
        assert title in [shown for _, shown in links]


def test_headings_skip_no_level_and_tables_say_what_their_cells_are(tags):
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later <= before + 1 for before, later in pairwise(levels))
    names = [tag for tag, _ in tags]
    assert names.count("main") == 1
    assert names.count("table") == names.count("caption") > 3
    assert all(attributes.get("scope") in {"col", "row"} for tag, attributes in tags if tag == "th")
    for tag, attributes in tags:
        if attributes.get("class") in {"scroll", "picture"}:
            assert (attributes["tabindex"], attributes["role"]) == ("0", "region"), tag
            assert attributes["aria-label"]
        if attributes.get("role") == "img":
            assert attributes["aria-label"]


def test_the_rules_are_rendered(page):
    text = page.read_text(encoding="utf-8")
    rules = text[text.index('id="rules"') : text.index('id="run"')]
    assert "*" not in rules
    assert "`" not in rules
    assert "<i>shown</i>" in rules
    assert "<b>illusion</b>" in rules
    assert "<code>min_agreement</code>" in rules
    assert re.findall(r'<li value="(\d)">', rules) == ["0", "1", "2", "3", "4"]
    assert rules.count("<ol>") == 1
    assert rules.count("<ul>") == 1
    assert rules.count("<li>") == RULES.count("\n   - ") == 3
    words = re.sub(r"<[^>]*>|[*`]", "", rules[rules.index(">") + 1 :])
    plain = re.sub(r"[*`]|^\s*- |^\d\. ", "", RULES, flags=re.MULTILINE)
    assert unescape(words).split()[: len(plain.split())] == plain.split(), "not one word is lost"


def test_markdown_of_others_is_no_markup():
    assert rendered("a *<b>*&\n\n1. **<i>** `<x>`") == (
        '<p>a <i>&lt;b&gt;</i>&amp;</p>\n<ol><li value="1"><p><b>&lt;i&gt;</b> <code>&lt;x&gt;</code></p></li></ol>'
    )


def luminance(colour):
    digits = colour.lstrip("#")
    channels = [
        int(part, 16) / 255 for part in re.findall("..", digits if len(digits) == 6 else re.sub("(.)", r"\1\1", digits))
    ]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))


def contrast(one, other):
    """WCAG 2.2's contrast ratio of two colours."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_everything_can_be_read_in_both_modes(mode):
    """WCAG AA asks for 4.5 of text, and for 3 of marks."""
    assert contrast("#fff", "#000000") == pytest.approx(21)
    colours = COLOURS[mode]
    series = [f"series{number}" for number in range(len(PALETTE))]
    for name in (*JUDGEMENTS, "ink", "muted", "link"):
        assert contrast(colours[name], colours["bg"]) >= 4.5, name
        assert contrast(colours[name], colours["surface"]) >= 4.5, name
    for name in (*JUDGEMENTS, "ink", "axis", "muted"):
        assert contrast(colours[name], colours["band"]) >= 3, name
    assert all(contrast(colours[name], colours["bg"]) >= 4.49 for name in series)
    assert len({colours[name] for name in series}) == len(series)


def test_the_page_has_the_colours_of_both_modes_and_prints_in_light(page):
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    found = [dict(re.findall(r"--(\w+): (#\w+)", block)) for block in blocks]
    assert found == [COLOURS["light"], COLOURS["dark"], COLOURS["light"]]
    assert set(re.findall(r"var\(--(\w+)\)", text)) <= set(COLOURS["light"])
    drawn = "".join(re.findall(r'<div class="picture".*?</svg>', text, re.DOTALL))
    assert "var(--series1)" in drawn
    assert not [colour for colour in PALETTE if colour in drawn], "colours of figures follow the mode"


def test_the_page_says_what_to_know_before_believing_it(page, shown):
    text = unescape(page.read_text(encoding="utf-8"))
    body = text[text.index("<body>") :]
    assert shown.warnings(), "the train split of Dyck repeats sentences"
    for warning in shown.warnings():
        assert body.index(">Verdicts<") < body.index(warning) < body.index("<details>"), "it is not folded"
    for shift, gap in shown.detectable().items():
        assert f"{100 * gap:.1f} under {shown.split_labels[shift]}" in body
    asked = dict(controls_asked(shown))
    assert {name.split()[0] for name in asked} == {
        "RandomProjection", "UniformAttention", "MeanAblation", "RandomPerturbation", "Identity", "Shuffled",
    }  # fmt: skip
    assert "RandomProjection (5 draws)" in asked
    for name, question in asked.items():
        assert f"<li>{name}: {question}</li>" in body
    assert "shuffled copy" in body
    assert "untrained" not in body


def test_names_of_splits_stand_on_the_page_as_code_alone(page):
    """In what is shown and in the names of pictures; the record has them in its own table."""
    text = page.read_text(encoding="utf-8")
    text = text[text.index("<body") : text.index('id="run"')]
    rest = re.sub(r"<code>.*?</code>", "", text, flags=re.DOTALL)
    warned = re.sub(r'<div class="warning">.*?</div>', "", rest, flags=re.DOTALL)
    assert re.findall(r"\w*(?:unseen_|seen_structure)\w*", warned) == []
    for label in ("like training", "known structures", "new structures, short", "deeper nesting"):
        assert warned.count(label) > 5


def test_the_page_has_the_share_recovered_and_the_gap_by_sequence(page, shown):
    text = page.read_text(encoding="utf-8")
    verdict = next(verdict for verdict in shown.verdicts() if verdict.proxy == "SVD(rank=8)")
    row = re.search(r'<tr data-verdict="\w+"><th scope="row">SVD\(rank=8\)</th>.*?</tr>', text, re.DOTALL)[0]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)
    assert (
        cells[-2]
        == f"{percent(verdict.recovered)}<small>{limits(verdict.recovered_low, verdict.recovered_high)}</small>"
    )
    assert cells[-1] == f'<b class="v-{verdict.judgement}">{verdict.judgement}</b>'
    gaps = shown.gaps().query("proxy == 'SVD(rank=2)' and trained and split == 'unseen_depth'")
    value, low, high = gaps[["per_sequence", "per_sequence_low", "per_sequence_high"]].iloc[0]
    assert not np.isnan(value)
    assert f"<td>{points(value)}<small>{point_limits(low, high)}</small></td>" in text


def test_without_controls_nothing_is_said_to_be_recovered(shown, tmp_path):
    """The record says that none were judged, and so does the page."""
    own = tuple(proxy.model_copy(update={"control": None, "ablation": None, "perturbation": None})
                for proxy in shown.record.proxies if not proxy.is_control)  # fmt: skip
    record = shown.record.model_copy(
        update={
            "proxies": own,
            "settings": {**shown.record.settings, "controls": False},
            "subjects": tuple(item for item in shown.record.subjects if item["trained"]),
        }
    )
    blank = shown._controls.assign(**dict.fromkeys(shown._controls.columns[4:-1], np.nan))
    alone = Comparison(record, shown.results, shown._gaps, blank, shown._sequences)
    text = write_page(alone, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "No controls were judged" in text
    assert "What each control asks" not in text
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL)


def test_references_inside_figures_have_their_targets(tags):
    own = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(own) == len(set(own)), "two figures share an id"
    wanted = [attributes[name] for _, attributes in tags for name in ("href", "xlink:href") if name in attributes]
    assert wanted
    assert {value.removeprefix("#") for value in wanted} <= set(own)


# -- figures --------------------------------------------------------------------------------------------------------


def test_every_figure_has_its_axes_labelled(shown, illustrations):
    names = []
    for name, caption, figure in figures(shown, illustrations):
        names.append(name)
        assert caption
        axes = [one for one in figure.axes if one.get_label() != "<colorbar>"]
        assert all(one.get_xlabel() for one in axes), name
        assert axes[0].get_ylabel() or axes[0].get_yticklabels(), name
    assert {"agreement-by-size-layer1", "gaps-layer1", "agreement-by-depth-layer1", "attention-by-layer-layer1",
            "keys-layer1", "sentence-0"} <= set(names)  # fmt: skip


def test_figures_are_the_same_bytes_twice(shown, illustrations):
    first = {name: to_svg(figure) for name, _, figure in figures(shown, illustrations)}
    assert {name: to_svg(figure) for name, _, figure in figures(shown, illustrations)} == first


def test_figures_are_written_in_both_forms(shown, illustrations, tmp_path):
    paths = write_figures(shown, tmp_path, illustrations)
    assert {path.suffix for path in paths} == {".svg", ".png"}
    assert all(path.stat().st_size > 500 for path in paths)


def layers_drawn(comparison, heads, changed):
    """The layers in the legend, of a site with these heads and a model in which the attention of these changes."""
    rows = comparison.results.query("feature == 'layer' and bin == 1")
    others = comparison.results.query("not (feature == 'layer' and bin in (0, 1))")
    bars = [rows.assign(bin=layer, estimate=rows["estimate"] * (layer in changed)) for layer in range(12)]
    proxies = tuple(proxy.model_copy(update={"heads": heads}) for proxy in comparison.record.proxies)
    deep = Comparison(
        comparison.record.model_copy(update={"proxies": proxies}),
        pd.concat([others, *bars], ignore_index=True),
        comparison._gaps,
        comparison._controls,
        comparison._sequences,
    )
    with style():
        [legend] = attention_by_layer(deep, "layer1").legends
    return [int(text.get_text().removeprefix("layer ")) for text in legend.get_texts()]


def test_no_edited_layer_is_left_out_and_no_other_has_bars(shown):
    everywhere = tuple(range(12))
    assert layers_drawn(shown, tuple(f"layer{layer}.head0" for layer in everywhere), everywhere) == [*everywhere]
    assert layers_drawn(shown, ("layer3.head0", "layer3.head1", "layer5.head0"), everywhere[3:]) == [3, 5]
    assert layers_drawn(shown, ("layer7",), everywhere[8:]) == [8, 9, 10, 11], "an edit behind the layer's attention"
    assert layers_drawn(shown, (), everywhere) == [*everywhere], "another model"


def test_no_shift_is_left_out(shown, illustrations):
    shift = next(split for split in shown.record.splits if split.name == "unseen_depth")
    names = [f"shift{number}" for number in range(9)]
    record = shown.record.model_copy(
        update={"splits": (*shown.record.splits, *(shift.model_copy(update={"name": name}) for name in names))}
    )
    frames = [
        pd.concat([frame, *(frame[frame["split"] == "unseen_depth"].assign(split=name) for name in names)])
        for frame in (shown.results, shown._gaps, shown._controls)
    ]
    many = Comparison(record, *(frame.reset_index(drop=True) for frame in frames), shown._sequences)
    drawn = {name: figure for name, _, figure in figures(many, illustrations)}
    chart = drawn["gaps-layer1"]
    legends = [*chart.legends, *(axes.get_legend() for axes in chart.axes if axes.get_legend())]
    legend = {text.get_text() for one in legends for text in one.get_texts()}
    assert set(names) <= legend
    assert "at equal margin of the subject" in legend
    marks = [line.get_ydata() for line in chart.axes[0].get_lines() if len(line.get_ydata()) > 2]
    assert max(float(y[0]) for y in marks) < min(float(y[1]) for y in marks), "marks of two proxies do not mingle"
    lines = {line.get_label() for line in drawn["agreement-by-size-layer1"].axes[0].get_lines()}
    assert set(names) <= lines


def test_tokens_with_dollar_signs_are_text(shown, illustrations):
    view = illustrations.sentences[0].model_copy(update={"tokens": ["$", "$$", r"$\nope$"]})
    only = illustrations.model_copy(update={"sentences": [view]})
    drawn = {name: figure for name, _, figure in figures(shown, only)}
    assert r"\nope" in to_svg(drawn["sentence-0"])


def test_gap_chart_shows_the_gaps(shown, illustrations):
    drawn = {name: figure for name, _, figure in figures(shown, illustrations)}
    axes = drawn["gaps-layer1"].axes[0]
    marks = np.concatenate([line.get_xdata() for line in axes.get_lines()]).astype(float)
    gaps = shown.gaps().query("trained and site == 'layer1' and not proxy.str.startswith('RandomPerturbation')")
    for value in 100 * pd.concat([gaps["gap"], gaps["matched"]]).dropna():
        assert np.isclose(marks, value).any()


@pytest.mark.parametrize("step", [0.0005, 0.125, 1e-7])
def test_numbers_of_ticks_are_written_as_they_are(step):
    values = [step * count for count in range(1, 8)]
    with style():
        figure = Figure()
        axes = figure.subplots()
        axes.plot(values, values)
        axes.set_xticks(values, [f"{value:.7f}" for value in values])
        axes.set_title('<path d="0.123456"/> x="0.0005"')
    drawn = unescape(to_svg(figure))
    assert all(f">{value:.7f}<" in drawn for value in values)
    assert '><path d="0.123456"/> x="0.0005"<' in drawn


def test_inline_figures_lose_no_mark_no_text_and_no_reference(shown, illustrations):
    with style():
        drawn = {one.name: one.draw(PHONE) for one in drawings(shown, illustrations) if one.name.startswith("gaps")}
    for name, figure in drawn.items():
        whole, short = ElementTree.fromstring(to_svg(figure)), ElementTree.fromstring(inline(figure, name, "wide"))
        texts = [[one.text for one in root.iter() if one.tag.endswith("text")] for root in (whole, short)]
        assert texts[0] == texts[1]
        marks = [sum(one.tag.endswith("use") for one in root.iter()) for root in (whole, short)]
        assert marks[0] == marks[1] > 10
        values = [value for one in short.iter() for value in one.attrib.values()]
        ids = [one.get("id") for one in short.iter() if one.get("id")]
        assert {found for value in values for found in re.findall(r"#(\w+)", value)} == set(ids)
        assert len(ids) == len(set(ids))
        # Lines of one look are one path: as often as before, the pen is put down.
        pens = []
        for root in (whole, short):
            defined = {one for group in root.iter() if group.tag.endswith("defs") for one in group.iter()}
            pens.append(sum(one.get("d", "").count("M") for one in root.iter() if one not in defined))
        assert pens[0] == pens[1] > 10
        assert len(inline(figure, name, "wide")) < len(to_svg(figure)) / 2
        colours = inline(figure, name, "wide")
        assert "var(--series1)" in colours
        assert PALETTE[1] not in colours


def test_coordinates_are_rounded_to_a_hundredth():
    assert _rounded('<path d="M 0.0049 12.3456 L -7.996 1.5e-05"/>') == '<path d="M 0 12.35 L -8 1.5e-05"/>'
    assert _rounded('<use x="1.23456" style="stroke-width: 0.8888"/>') == '<use x="1.23" style="stroke-width: 0.8888"/>'
    with style():
        figure = Figure()
        figure.subplots().plot(np.linspace(0, 1, 50), np.linspace(0, 1, 50) ** 2)
    for path in re.findall(r'<path[^>]* d="([^"]*)"', to_svg(figure)):
        assert not re.search(r"\.\d{3}", path)


@pytest.mark.parametrize("tokens", [3, 20, 90])
def test_a_sentence_is_not_cropped_and_its_tokens_do_not_touch(tokens):
    pattern = np.tril(np.ones((tokens, tokens))) / np.arange(1, tokens + 1)[:, None]
    view = SentenceView(
        title="t", site="layer1", proxy="SVD(rank=8)", tokens=["START", *(f"({n}" for n in range(tokens - 1))],
        subject_pattern=pattern.tolist(), proxy_pattern=pattern.tolist(), predictions=[],
    )  # fmt: skip
    with style():
        figure = sentence_attention(view)
    assert to_png(figure, dpi=110.0), "the first drawing of a figure is the one that a page shows"
    inside, paper = figure.get_tightbbox(), figure.bbox_inches
    assert inside.x0 >= 0
    assert inside.y0 >= 0
    assert inside.x1 <= paper.x1
    assert inside.y1 <= paper.y1
    names = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert all(above.y0 >= below.y1 for above, below in pairwise(names))


def test_logarithmic_axes_have_readable_labels():
    with style():
        figure = Figure()
        axes = figure.subplots()
        axes.semilogy([1, 2], [1e-3, 1e-1])
    drawn = re.sub(r"<!--.*?-->", "", to_svg(figure), flags=re.DOTALL)
    assert "mathdefault" not in drawn


# -- groupings with names -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_text():
    """A random model on text: every grouping is over all predictions and has names for its classes."""
    subject = assay.load("code-python")
    lines = [f"def f{n}(a, b):\n    return a{n} + {n} if a else 'b{n}'" for n in range(24)]
    task = Text(subject.tokenizer, train=lines[:8], iid=lines[8:16], shifts={"other": lines[16:]}, max_length=40)
    recipes = [assay.SVD(rank=2), assay.OneHotAttention()]
    return assay.compare(subject, task, recipes, sites=("layer0",), sequences=8, fit_sequences=8, resamples=50)


def test_classes_are_drawn_by_name(of_text):
    drawn = {name: figure for name, _, figure in figures(of_text, Illustrations())}
    assert {"agreement-by-class-layer0", "agreement-by-frequency-layer0", "agreement-by-induction-layer0"} <= set(drawn)
    axes = drawn["agreement-by-class-layer0"].axes
    assert [one.get_title(loc="left") for one in axes] == ["iid", "other"]
    labels = [label.get_text() for label in axes[0].get_yticklabels()]
    assert labels == ["word start", "word continuation", "digit", "punctuation", "whitespace"], "nothing is special"
    frame = of_text.to_frame().query(
        "trained and metric == 'same_prediction' and feature == 'class' and split == 'iid'"
    )
    marks = np.concatenate([line.get_xdata() for line in axes[0].get_lines()]).astype(float)
    for value in frame[frame["proxy"] == "SVD(rank=2)"]["estimate"]:
        assert np.isclose(marks, value).any()
    assert set(frame["label"]) == set(labels)
    assert set(of_text.to_frame().query("feature == ''")["label"]) == {""}


def test_no_figure_is_empty(of_text, shown):
    for comparison in (of_text, shown):
        for name, _, figure in figures(comparison, Illustrations()):
            for axes in figure.axes:
                numbers = [line.get_xdata() for line in axes.get_lines()] + [[bar.get_width()] for bar in axes.patches]
                assert any(np.isfinite(np.asarray(one, dtype=float)).any() for one in numbers), (name, axes.get_title())


def test_a_sweep_over_many_sites_is_one_figure(of_text):
    names = [f"layer{layer}.head{head}" for layer in range(3) for head in range(4)]
    proxies = [
        proxy.model_copy(update={"site": name, "heads": (name,)}) for name in names for proxy in of_text.record.proxies
    ]
    everywhere = [proxy.model_copy(update={"site": "all", "heads": tuple(names)}) for proxy in of_text.record.proxies]
    record = of_text.record.model_copy(update={"proxies": (*everywhere, *proxies)})
    frames = [
        pd.concat([frame.assign(site=name) for name in ("all", *names)], ignore_index=True)
        for frame in (of_text.results, of_text._gaps, of_text._controls)
    ]
    worst = (frames[0]["site"] == "layer2.head1") & (frames[0]["proxy"] == "SVD(rank=2)")
    frames[0].loc[worst, "estimate"] = 0.125
    drawn = {
        name: figure for name, _, figure in figures(Comparison(record, *frames, of_text._sequences), Illustrations())
    }
    assert "gaps-all" in drawn
    assert "gaps-layer0.head0" not in drawn
    panel = drawn["agreement-by-site"].axes[0]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["SVD(rank=2)", "OneHotAttention()"]
    assert panel.get_images()[0].get_array()[0, 1 + names.index("layer2.head1")] == 0.125
    assert [label.get_text() for label in drawn["agreement-by-site"].axes[1].get_xticklabels()] == ["all", *names]
