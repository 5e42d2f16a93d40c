"""What the page shows of recipes on weights is what it shows of the model that they make."""

import pytest

import assay
from assay import NGram, OtherModel, PruneWeights, RoundWeights
from assay.engine import collect, engine_of
from assay.studies.two_models import views
from assay.subjects import Subject

SIZES = {"sequences": 6, "fit_sequences": 8}


@pytest.fixture(scope="module")
def base():
    return assay.load("code-python")


@pytest.fixture(scope="module")
def task(base):
    lines = [f"def f{n}(a, b):\n    return a{n} + {n} if a else 'b{n}'" for n in range(30)]
    return assay.tasks.Text(base.tokenizer, lines[:10], lines[10:20], {"other": lines[20:]}, max_length=16)


def shown_of(base, task, recipes):
    comparison = assay.compare(base, task, recipes, controls=False, refit=False, resamples=99, **SIZES)
    return views(comparison, base, task, recipes, *SIZES.values())


def test_recipes_on_weights_are_shown_as_the_models_they_make(base, task):
    pruning = PruneWeights(share=0.4, by="activation")
    samples = collect(engine_of(base), task.split("train", 8), ())
    models = {"pruned": PruneWeights(share=0.4, by="activation").fit(samples), "rounded": RoundWeights(bits=3)}
    copies = [
        OtherModel(Subject(recipe.apply(base).model.model, base.tokenizer, name)) for name, recipe in models.items()
    ]
    shown = shown_of(base, task, [pruning, RoundWeights(bits=3), *copies, NGram(order=2)])
    broken = {table.title: table for table in shown.tables if table.title.startswith("Where ")}
    assert len(broken) == 4, "a table of counts has no blocks"
    for name, other in (("PruneWeights(share=0.4, by='activation')", "pruned"), ("RoundWeights(bits=3)", "rounded")):
        own, same = (
            next(table for title, table in broken.items() if title.startswith(f"Where {one} breaks"))
            for one in (name, other)
        )
        assert own.rows == same.rows
        assert own.title.replace(name, other) == same.title
        texts = {one: [text for text in shown.texts if text.proxy == one] for one in (name, other)}
        assert len(texts[name]) == 10
        assert [text.title for text in texts[name]] == [text.title for text in texts[other]]
        assert [text.divergence for text in texts[name]] == [text.divergence for text in texts[other]]
    assert not [text for text in shown.texts if text.proxy.startswith("NGram")]
    means = next(table for table in shown.tables if "distributions are from each other" in table.title)
    assert ("NGram(order=2), other", "") in [row[0] for row in means.rows], "its numbers are shown all the same"
    assert pruning.norms_ is None, "the recipe itself is left as it was"


def test_nothing_is_shown_of_what_does_not_differ(base, task):
    shown = shown_of(base, task, [OtherModel(base), assay.SVD(rank=2)])
    assert not shown.tables
    assert not shown.texts
