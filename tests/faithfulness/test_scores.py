"""Sums and counts of sequences against a slow loop that looks at one prediction at a time."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

from assay.engine import Edit, Engine, Samples, collect, run_together
from assay.engine._batches import copies_that_fit
from assay.faithfulness import ALL, LAYER, CleanPass, metrics
from assay.faithfulness._scores import MARGIN, MARGIN_EDGES, Column, NotFiniteError, Scores, score
from assay.simplify import SVD, Identity, OneHotAttention, RandomPerturbation
from assay.simplify._protocol import proxy_of
from assay.subjects import Subject
from assay.tasks import UNSCORED


@pytest.fixture(scope="module")
def judged():
    """Those of every comparison; of other models and of pairs, test_any_proxy.py and test_metrics_of_pairs.py tell."""
    found = [metrics.get(name)() for name in metrics]
    return [one for one in found if not getattr(one, "of_models", False) and not getattr(one, "of_pairs", False)]


@pytest.fixture(scope="module")
def known(trained):
    return Engine(trained[0])


@pytest.fixture(scope="module")
def split(bracket_task):
    return bracket_task.split("unseen_depth", 9)


@pytest.fixture(scope="module")
def proxies(known, bracket_task):
    samples = collect(known, bracket_task.split("train", 60), ("queries", "keys"))
    last = samples.at(known.site("layer1"))
    return {
        "svd": SVD(rank=4).fit(samples).apply(known.subject),
        "hard": OneHotAttention().fit(last).apply(known.subject),
        "same": Identity().fit(samples).apply(known.subject),
    }


@pytest.fixture(scope="module")
def found(known, proxies, bracket_task, split, judged):
    return score(known, proxies, bracket_task, split, judged)


def jsd(p, q):
    m = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * np.log(p / m), 0) + np.where(q > 0, q * np.log(q / m), 0)
    return float(terms.sum() / 2)


def loop(engine, proxy, task, split):
    """Every prediction by itself: (sequence, metric, kind, feature, bin) -> list of values; no batch, no padding."""
    values = {}

    def note(sequence, metric, kind, number, feature="", bin_of=0):  # noqa: PLR0917
        values.setdefault((sequence, metric, kind, feature, bin_of), []).append(number)

    for sequence in range(len(split)):
        length = int(split.lengths[sequence])
        tokens = torch.from_numpy(split.tokens[sequence : sequence + 1, :length].astype(np.int64))
        plain = engine.run(tokens, read=("patterns",))
        edited = engine.run(tokens, edits=proxy.edits, read=("patterns",))
        for t in range(length):
            index = int(split.kinds[sequence, t])
            if index == UNSCORED:
                continue
            kind = task.kinds[index]
            a, b = (run.logits[0, t].double().numpy() for run in (plain, edited))
            allowed = np.arange(len(a)) if kind.candidates is None else np.array(kind.candidates)
            first, second = (int(allowed[np.argmax(logits[allowed])]) for logits in (a, b))
            answer = int(split.tokens[sequence, t + 1])
            p, q = (np.exp(logits - logits.max()) for logits in (a, b))
            p, q = p / p.sum(), q / q.sum()
            numbers = {
                "same_prediction": float(first == second),
                "subject_accuracy": float(first == answer),
                "proxy_accuracy": float(second == answer),
                "kl": float((p * (np.log(p) - np.log(q))).sum()),
                "jsd": jsd(p, q),
            }
            best = sorted(a[allowed], reverse=True)
            margin_bin = max(i for i, edge in enumerate(MARGIN_EDGES) if edge <= best[0] - best[1])
            by_layer = []
            for layer in range(engine.layers):
                rows = [run.patterns[layer][0, :, t, : t + 1].double().numpy() for run in (plain, edited)]
                by_layer.append(np.mean([jsd(*pair) for pair in zip(*rows, strict=True)]))
            numbers["attention_jsd"] = float(np.mean(by_layer))
            for name, number in numbers.items():
                if name.endswith("accuracy") and not kind.determined:
                    continue
                note(sequence, name, kind.name, number, MARGIN, margin_bin)
                for which in (ALL, kind.name):
                    note(sequence, name, which, number)
                    if name == "attention_jsd":
                        for layer, of_layer in enumerate(by_layer):
                            note(sequence, name, which, of_layer, LAYER, layer)
                if name in ("same_prediction", "subject_accuracy", "proxy_accuracy"):
                    for feature in task.features:
                        if kind.name in feature.kinds:
                            value = int(split.features[feature.name][sequence, t])
                            edges = feature.edges or range(value + 1)
                            left = max(edge for edge in edges if edge <= value)
                            note(sequence, name, kind.name, number, feature.name, left)
    return values


@pytest.mark.parametrize("name", ["svd", "hard"])
def test_sums_and_counts_are_those_of_a_slow_loop(name, known, proxies, bracket_task, split, found):  # noqa: PLR0917
    expected = loop(known, proxies[name], bracket_task, split)
    scores = found[name]
    seen = set()
    for place, column in enumerate(scores.columns):
        for sequence in range(len(split)):
            values = expected.get((sequence, *column), [])
            assert scores.counts[sequence, place] == len(values), column
            assert scores.sums[sequence, place] == pytest.approx(sum(values), abs=5e-4), column
            if values:
                seen.add((sequence, *column))
    assert seen == set(expected), "every prediction of the loop has its column"
    assert {column.feature for column in scores.columns} == {"", "depth", "distance", LAYER, MARGIN}


def test_the_proxies_are_worth_a_test(found):
    place = found["svd"].columns.index(Column("same_prediction", "closing_far", "", 0))
    rates = {name: scores.sums[:, place].sum() / scores.counts[:, place].sum() for name, scores in found.items()}
    assert rates["same"] == 1
    assert 0.05 < rates["svd"] < 0.999


def test_identity_scores_exactly_nothing(found):
    scores = found["same"]
    for place, column in enumerate(scores.columns):
        if column.metric in ("kl", "jsd", "attention_jsd"):
            assert np.abs(scores.sums[:, place]).max() < 1e-9, column
        elif column.metric == "same_prediction":
            np.testing.assert_array_equal(scores.sums[:, place], scores.counts[:, place])


def test_accuracy_on_an_undetermined_kind_is_absent_and_left_out_of_all(found, split, bracket_task):
    scores = found["svd"]
    assert not [c for c in scores.columns if c.metric.endswith("accuracy") and c.kind == "opening"]
    opening = [kind.name for kind in bracket_task.kinds].index("opening")
    everything, answered = (
        scores.counts[:, scores.columns.index(Column(metric, ALL, "", 0))].sum()
        for metric in ("same_prediction", "subject_accuracy")
    )
    assert everything == (split.kinds != UNSCORED).sum()
    assert everything - answered == (split.kinds == opening).sum() > 0


@pytest.mark.parametrize("size", [1, 4, 100])
def test_batch_size_does_not_matter(size, monkeypatch, known, proxies, bracket_task, split, judged, found):  # noqa: PLR0917
    def cut(*given):
        """Batches of `size` in the order of the split, whatever the real ones would be."""
        [part] = [item for item in given if hasattr(item, "take")]
        for start in range(0, len(part), size):
            index = np.arange(start, min(start + size, len(part)))
            yield index, part.take(index)

    monkeypatch.setattr("assay.faithfulness._scores.batches", cut)
    again = score(known, proxies, bracket_task, split, judged)
    for name, scores in again.items():
        assert scores.columns == found[name].columns
        np.testing.assert_array_equal(scores.counts, found[name].counts)
        np.testing.assert_allclose(scores.sums, found[name].sums, atol=5e-4)


@pytest.mark.parametrize(
    "sizes",
    [
        {"_clean_pass.ROWS": 5},
        {"_clean_pass.WEIGHTS_KEPT": 0},
        {"_scores.LOGITS_HELD": 1, "_scores.PREDICTIONS_HELD": 1},
        {"_scores.NUMBERS_HELD": 1},
        {"_metrics.NUMBERS": 1},
        {"_by_numpy.THREADS": 0},
    ],
    ids=str,
)
def test_pieces_do_not_matter(sizes, monkeypatch, known, proxies, bracket_task, split, judged, found):  # noqa: PLR0917
    for constant, value in sizes.items():
        monkeypatch.setattr(f"assay.faithfulness.{constant}", value)
    again = score(known, proxies, bracket_task, split, judged)
    for name, scores in found.items():
        np.testing.assert_array_equal(again[name].counts, scores.counts)
        np.testing.assert_allclose(again[name].sums, scores.sums, atol=5e-5, rtol=5e-6)


@pytest.mark.parametrize("most", [2, 100])
def test_proxies_that_share_a_batch_score_what_they_do_alone(  # noqa: PLR0917
    most, monkeypatch, known, proxies, bracket_task, split, judged
):
    """Also noise, which must not depend on who else is there, and a proxy that starts at another layer."""
    samples = collect(known, bracket_task.split("train", 60), ("queries", "keys"))
    of_values = collect(known, split, ("values",))
    more = {
        "noise": RandomPerturbation(SVD(rank=4)).fit(samples).apply(known.subject),
        "values": SVD(rank=2).fit(of_values.at(known.site("layer0.values"))).apply(known.subject),
        **proxies,
    }
    alone = score(known, more, bracket_task, split, judged)
    batches_of = []

    def together(*given, **options):
        batches_of.append(len(given[2]))
        return run_together(*given, **options)

    monkeypatch.setattr("assay.engine._together.copies_that_fit", lambda *given: most)
    monkeypatch.setattr("assay.engine._proxy.run_together", together)
    again = score(known, more, bracket_task, split, judged)
    assert set(batches_of) == {min(most, 4)}, "all but the proxy of layer 1 start at layer 0"
    assert list(again) == list(alone)
    for name, scores in alone.items():
        np.testing.assert_array_equal(again[name].counts, scores.counts)
        np.testing.assert_allclose(again[name].sums, scores.sums, atol=5e-5, rtol=5e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_proxies_that_share_a_batch_on_a_gpu_score_what_they_do_alone(
    trained, bracket_task, split, judged, monkeypatch
):
    engine = Engine(trained[1].shuffled_copy().to("cuda"))
    samples = collect(engine, bracket_task.split("train", 60), ("queries", "keys"))
    proxies = {str(rank): SVD(rank=rank).fit(samples).apply(engine.subject) for rank in range(1, 9)}
    assert copies_that_fit(engine, *split.tokens.shape) >= len(proxies)
    together = score(engine, proxies, bracket_task, split, judged)
    monkeypatch.setattr("assay.engine._together.copies_that_fit", lambda *given: 1)
    for name, scores in score(engine, proxies, bracket_task, split, judged).items():
        np.testing.assert_allclose(together[name].sums, scores.sums, atol=1e-3, rtol=1e-3)


def test_a_batch_is_shared_off_the_cpu_only_and_as_far_as_there_is_room(known, monkeypatch):
    assert copies_that_fit(known, 1, 8) == 1
    monkeypatch.setattr(Subject, "device", torch.device("cuda"))
    assert copies_that_fit(known, 1, 1024) == 16 * 3_000_000 // (1024 * 1024 * len(known.heads)) == 22
    assert copies_that_fit(known, 64, 32) == 16 * 4_096 // (64 * 32) == 32
    assert copies_that_fit(known, 4_096, 256) == 1


def test_attention_that_no_metric_needs_is_not_compared(known, proxies, bracket_task, split, judged, found):  # noqa: PLR0917
    seen = []

    class Recorded(CleanPass):
        def answers(self, proxies, **options):
            for number, answer in super().answers(proxies, **options):
                seen.append(answer.attention)
                yield number, answer

    some = [metric for metric in judged if metric.name != "attention_jsd"]
    again = score(known, proxies, bracket_task, split, some, clean_pass=Recorded)
    assert set(seen) == {"attention was not asked for"}
    for name, scores in again.items():
        places = [found[name].columns.index(column) for column in scores.columns]
        np.testing.assert_allclose(scores.sums, found[name].sums[:, places], atol=5e-5, rtol=5e-6)
    score(known, proxies, bracket_task, split, judged, clean_pass=Recorded)
    assert set(seen[-1]) == {0, 1}


def test_scores_survive_the_disk(tmp_path, found):
    found["svd"].write(tmp_path / "cell.npz")
    again = Scores.read(tmp_path / "cell.npz")
    assert again.columns == found["svd"].columns
    np.testing.assert_array_equal(again.sums, found["svd"].sums)
    np.testing.assert_array_equal(again.counts, found["svd"].counts)


@dataclass
class Broken:
    """Gives patterns that are not numbers on sequences longer than `longest`."""

    longest: int = 0
    heads_: tuple | None = field(default=None, init=False, repr=False)

    streams = ()

    def fit(self, samples: Samples) -> "Broken":
        self.heads_ = samples.places
        return self

    def apply(self, subject):
        def spoil(pattern, visible):
            return pattern * torch.nan if pattern.shape[-1] > self.longest else pattern

        return proxy_of(self, subject, self.heads_, lambda head: Edit(head, pattern=spoil))

    def control(self) -> None:
        return None


def test_a_proxy_that_is_not_finite_gets_its_reason_and_spares_the_others(known, proxies, bracket_task, split, judged):
    samples = Samples(known.heads)
    broken = Broken().fit(samples).apply(known.subject)
    found = score(known, {"broken": broken, "same": proxies["same"]}, bracket_task, split, judged)
    assert isinstance(found["broken"], NotFiniteError)
    assert "broken" in str(found["broken"])
    assert "not finite" in str(found["broken"])
    assert isinstance(found["same"], Scores)


def test_unscored_positions_and_padding_do_not_count(known, proxies, bracket_task, split, judged):
    """The same sequences with twelve more columns of padding and nothing else."""
    wider = replace(
        split,
        tokens=np.pad(split.tokens, ((0, 0), (0, 12)), constant_values=bracket_task.pad_id),
        kinds=np.pad(split.kinds, ((0, 0), (0, 12)), constant_values=UNSCORED),
        features={name: np.pad(values, ((0, 0), (0, 12))) for name, values in split.features.items()},
    )
    narrow = score(known, {"svd": proxies["svd"]}, bracket_task, split, judged)["svd"]
    wide = score(known, {"svd": proxies["svd"]}, bracket_task, wider, judged)["svd"]
    np.testing.assert_array_equal(wide.counts, narrow.counts)
    np.testing.assert_allclose(wide.sums, narrow.sums, atol=5e-4)
