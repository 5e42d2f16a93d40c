"""Features in the page: tokens shaded by activation, both splits side by side, numbers without colour, and escaped."""

import re
from html import unescape

import pytest

import assay
from assay.engine import Engine, collect
from assay.reports import FeatureSide, FeatureText, FeatureView, Illustrations, write_page
from assay.studies._feature_views import feature_views

HOSTILE = "<script>alert('token')</script>"


def views():
    text = FeatureText(tokens=["def ", HOSTILE, "\n", "x"], activations=[0.0, 2.0, 0.5, 0.0])
    other = FeatureText(tokens=["y "], activations=[5.0])
    return [
        FeatureView(
            site="layer1.residual", dictionary="SparseAutoencoder(k=8)", feature=17, why="most & used",
            sides=[
                FeatureSide(split="iid", note="on at 3.0% of tokens", texts=[text]),
                FeatureSide(split="unseen_depth", note="on at 9.0% of tokens", texts=[other]),
            ],
        ),
        FeatureView(
            site="layer1.residual", dictionary="SparseAutoencoder(k=8)", feature=3, why="moved",
            sides=[FeatureSide(split="iid", note="never on", texts=[])],
        ),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def page(shown, tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "report.html"
    return write_page(shown, path, Illustrations(features=views())).read_text(encoding="utf-8")


def test_tokens_are_shaded_in_steps_of_the_largest_activation_of_the_view(page):
    spans = re.findall(r'<span class="(a\d[^"]*)" title="([^"]*)">([^<]*)</span>', page)
    assert [(mark, title) for mark, title, _ in spans] == [("a2 best", "2"), ("a0", "0.5"), ("a4 best", "5")]
    assert unescape(spans[0][2]) == HOSTILE
    assert HOSTILE not in page
    assert spans[1][2] == "↵\n"
    assert "def <span" in page  # off: no colour


def test_a_legend_says_what_shades_stand_for(page):
    legend = re.search(r"Activation: (.*?)</p>", page)[1]
    assert re.findall(r"&nbsp;(.*?)&nbsp;", legend) == ["0 to 1", "1 to 2", "2 to 3", "3 to 4", "4 to 5"]
    assert page.count("Activation: ") == 1  # none for the feature that is never on
    assert "most &amp; used" in page


def test_splits_stand_side_by_side_under_one_heading(page):
    assert page.count("<h2>Features: SparseAutoencoder(k=8) at layer1.residual</h2>") == 1
    first = page[page.index("Feature 17:") : page.index("Feature 3:")]
    assert first.count('<div class="sides">') == 1
    assert re.findall(r"<h4>(.*?)</h4>", first) == ["like training", "deeper nesting"]
    assert "never on" in page


def test_views_are_saved_and_read_again(tmp_path):
    given = Illustrations(features=views())
    given.save(tmp_path)
    assert Illustrations.load(tmp_path) == given


def test_a_dictionary_is_shown_by_its_telling_features(subject, task):
    engine = Engine(subject)
    at = collect(engine, task.split("train", 60), ("residual",)).at(engine.site("layer1.residual"))
    recipe = assay.SparseAutoencoder(k=2, features=24, steps=30, batch=64).fit(at)
    found = feature_views(subject, task, recipe, count=1, texts=2, sequences=20)
    assert found[0].why.startswith("its mean activation")
    assert len({view.feature for view in found}) == len(found)
    for view in found:
        iid, shift = view.sides
        assert iid.split == "iid"
        assert shift.split != "iid"
        assert len(shift.texts) <= 2
        for side in view.sides:
            assert all(max(text.activations) > 0 and len(text.tokens) == len(text.activations) for text in side.texts)
            assert bool(side.texts) != (side.note == "never on")
