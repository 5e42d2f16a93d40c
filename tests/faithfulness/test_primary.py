"""What is measured, and what verdicts rest on, as the caller asks."""

from dataclasses import dataclass

import pytest

import assay
from assay import AssayError
from assay.faithfulness import Comparison, Metric, embedding_metrics, metrics, resolve_metrics, resolve_primary
from assay.faithfulness._metrics import JSDivergence, KLDivergence, SamePrediction
from assay.reports import terminal, write_figures, write_page

QUICK = {"sequences": 30, "fit_sequences": 40, "resamples": 100, "refit": False, "controls": False}


class Near:
    """Is the proxy's distribution within a limit (KL, in nats) of the subject's?"""

    unit = "rate"
    higher_is_better = True
    needs_answer = False
    needs_attention = False
    description = "the proxy's distribution is near the subject's"

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.name = f"within_{limit:g}"

    def __call__(self, pair):
        return (KLDivergence()(pair) <= self.limit).double()


@pytest.fixture(scope="module")
def whole(subject, task):
    return assay.compare(subject, task, [assay.SVD(rank=2)], **QUICK)


def test_only_the_metrics_asked_for_are_measured(subject, task, whole):
    found = assay.compare(subject, task, [assay.SVD(rank=2)], metrics=["kl", "same_prediction"], **QUICK)
    assert [metric.name for metric in found.record.metrics] == ["kl", "same_prediction"]
    assert set(found.results["metric"]) == {"kl", "same_prediction"}
    rows = found.results.sort_values(["split", "metric", "kind", "feature", "bin"], ignore_index=True)
    other = whole.results.query("metric in ('kl', 'same_prediction')")
    other = other.sort_values(["split", "metric", "kind", "feature", "bin"], ignore_index=True)
    assert rows["estimate"].equals(other["estimate"]), "the same numbers as among all metrics"


def test_verdicts_rest_on_the_metric_and_kind_that_were_asked_for(tmp_path, subject, task, whole):
    asked = {"metrics": [Near(0.001), Near(1000.0)], "primary_kind": "all"}
    first, whatever = (
        assay.compare(subject, task, [assay.SVD(rank=2)], primary_metric=f"within_{limit:g}", **asked, **QUICK)
        for limit in (0.001, 1000)
    )
    assert (first.record.primary_metric, first.record.primary_kind) == ("within_0.001", "all")
    [verdict] = whatever.verdicts()
    assert verdict.agreement == 1
    for found in (first, whatever):
        rows = found.results.query(f"metric == '{found.record.primary_metric}' and kind == 'all' and feature == ''")
        on_iid = rows[rows["split"] == "iid"]["estimate"].item()
        assert found.verdicts()[0].agreement == on_iid
        gaps = found.gaps().set_index("split")["gap"]
        for split, estimate in rows.set_index("split")["estimate"].drop("iid").items():
            assert gaps[split] == pytest.approx(on_iid - estimate, abs=1e-12)
    assert first.verdicts()[0].agreement < 1
    first.save(tmp_path)
    assert list(map(str, Comparison.load(tmp_path).verdicts())) == list(map(str, first.verdicts()))


def test_another_primary_kind_is_another_row_of_the_same_results(subject, task, whole):
    found = assay.compare(subject, task, [assay.SVD(rank=2)], primary_kind="opening", **QUICK)
    assert found.results.equals(whole.results)
    row = whole.results.query("metric == 'same_prediction' and kind == 'opening' and split == 'iid' and feature == ''")
    assert found.verdicts()[0].agreement == row["estimate"].item()
    assert whole.record.primary_kind == "closing_far"


@pytest.mark.parametrize("asked", [["same_prediction"], ["proxy_accuracy", "jsd"], [Near(2.0), "subject_accuracy"]])
def test_pages_and_tables_show_what_was_measured(tmp_path, subject, task, asked):
    primary = next(metric.name for metric in resolve_metrics("causal", asked) if metric.unit == "rate")
    ranks = [assay.SVD(rank=rank) for rank in (1, 2)]
    found = assay.compare(
        subject, task, ranks, metrics=asked, primary_metric=primary, **{**QUICK, "sites": ("layer1",)}
    )
    drawn = {path.stem for path in write_figures(found, tmp_path / "figures")}
    assert "agreement-by-size-layer1" in drawn
    assert "attention-by-layer-layer1" not in drawn, "attention was not measured"
    page = write_page(found, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "on closing_far predictions" in page
    assert f"Points of {primary.replace('_', ' ')} on closing_far" in page
    terminal(found)


class Edited(JSDivergence):
    """A metric of one's own that is edited between two runs."""

    name = "mine"
    factor = 1.0

    def __call__(self, pair):
        return self.factor * super().__call__(pair)


def test_a_metric_that_was_edited_is_measured_anew(tmp_path, monkeypatch, subject, task):
    def measured():
        found = assay.compare(
            subject, task, [assay.SVD(rank=2)], metrics=[SamePrediction(), Edited()], folder=tmp_path, **QUICK
        )
        return found.results.query("metric == 'mine' and kind == 'all' and split == 'iid'")["estimate"].item()

    before = measured()
    monkeypatch.setattr(Edited, "factor", 2.0)
    assert measured() == pytest.approx(2 * before)


def test_a_metric_that_cannot_be_hashed_keeps_no_cell(tmp_path, subject, task):
    metric = Near(1.0)
    metric.stream = (number for number in range(3))
    found = assay.compare(
        subject, task, [assay.SVD(rank=2)], metrics=["same_prediction", metric], folder=tmp_path, **QUICK
    )
    assert not list(tmp_path.glob("cells/*"))
    [said] = [item for item in found.record.skipped if "not cached" in item.reason]
    assert "Near.stream: a generator" in said.reason


def refused(match, subject, task, **options):
    with pytest.raises(AssayError, match=match) as caught:
        assay.compare(subject, task, [assay.SVD(rank=2)], **{**QUICK, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"metrics": ["kld"]}, "unknown metric 'kld'; did you mean 'kl'"),
        ({"metrics": []}, "must be a list of metrics"),
        ({"metrics": ["kl", "kl"]}, "kl is given twice"),
        ({"metrics": ["same_prediction", SamePrediction()]}, "same_prediction is given twice"),
        ({"metrics": ["kl"]}, "primary_metric='same_prediction'.*not measured here; give one of none"),
        ({"metrics": ["kl", "proxy_accuracy"]}, "give one of proxy_accuracy"),
        ({"primary_metric": "kl"}, "no rate of which more is better; give one of proxy_accuracy, same_prediction"),
        ({"primary_metric": "same_neighbour"}, "not measured here"),
        ({"primary_kind": "closing_fat"}, "unknown kind of prediction 'closing_fat'; did you mean 'closing_far'"),
        ({"primary_kind": "opening", "primary_metric": "proxy_accuracy"}, "does not determine the answer"),
    ],
)
def test_wrong_calls(subject, task, options, match):
    refused(match, subject, task, **options)


@dataclass(frozen=True)
class Odd:
    """A task whose primary kind does not exist."""

    inner: object
    primary_kind = "everything"
    name, kinds, features, split_names = (
        property(lambda self, n=n: getattr(self.inner, n)) for n in ("name", "kinds", "features", "split_names")
    )

    def split(self, name, sequences):
        return self.inner.split(name, sequences)

    def describe(self):
        return {}


def test_a_task_whose_own_primary_kind_is_none_of_its_kinds(subject, task):
    refused("unknown kind of prediction 'everything'", subject, Odd(task))


def test_of_embeddings_there_are_only_ours(task):
    ours = [metric.name for metric in embedding_metrics]
    assert [metric.name for metric in resolve_metrics("embedding")] == ours
    [cosine] = resolve_metrics("embedding", ["cosine"])
    assert resolve_primary(task, "embedding", resolve_metrics("embedding")) == ("same_neighbour", "all")
    with pytest.raises(AssayError, match="not measured here"):
        resolve_primary(task, "embedding", [cosine])
    with pytest.raises(AssayError, match="unknown metric 'kl'"):
        resolve_metrics("embedding", ["kl"])
    with pytest.raises(AssayError, match="is no metric for this; give same_neighbour or cosine or attention_jsd"):
        resolve_metrics("embedding", [Near(1.0)])


def test_what_is_no_metric_is_refused():
    assert isinstance(Near(1.0), Metric)
    with pytest.raises(AssayError, match="is no metric for this"):
        resolve_metrics("causal", ["kl", SamePrediction])
    of_models = {name for name in metrics if getattr(metrics.get(name), "of_models", False)}
    assert of_models >= {"kl_reverse", "flip_to_wrong", "flip_to_right", "first_five"}
    of_pairs = {name for name in metrics if getattr(metrics.get(name), "of_pairs", False)}
    assert of_pairs == {"logit_difference", "subject_logit_difference", "logit_deviation"}
    for whole, pairs in ((False, False), (True, False), (False, True), (True, True)):
        found = [metric.name for metric in resolve_metrics("causal", of_models=whole, of_pairs=pairs)]
        left_out = (set() if whole else of_models) | (set() if pairs else of_pairs)
        assert found == [name for name in metrics if name not in left_out]


def test_a_metric_of_pairs_is_refused_where_no_split_has_any():
    with pytest.raises(AssayError, match="logit_deviation is about pairs, and no split has any"):
        resolve_metrics("causal", ["kl", "logit_deviation"])
    assert [one.name for one in resolve_metrics("causal", ["logit_deviation"], of_pairs=True)] == ["logit_deviation"]
