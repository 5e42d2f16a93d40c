"""Encoders: cosine and nearest neighbours against plain loops, and intervals that know of their dependence."""

import numpy as np
import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import assay
from assay.engine import Engine, collect
from assay.faithfulness import RATE, Cosine, SameNeighbour, draws, estimate, every
from assay.faithfulness._embeddings import neighbours
from assay.faithfulness._statistics import NO_MARGIN
from assay.reports import Illustrations, figures, markdown, terminal, write_page
from assay.subjects import Subject
from assay.tasks import Split, Text
from assay.testing import assert_faithful

WORDS = ["[PAD]", "[UNK]", *"abcdefghij"]


# -- metrics --------------------------------------------------------------------------------------------------------


def cosine(a, b):
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def nearest(vectors, i):
    others = [j for j in range(len(vectors)) if j != i]
    return max(others, key=lambda j: cosine(vectors[i], vectors[j]))


@pytest.fixture(scope="module")
def clouds():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(40, 6))
    return first, first + 0.5 * rng.normal(size=(40, 6))


def test_neighbours_are_those_of_a_loop(clouds):
    for vectors in clouds:
        assert neighbours(vectors).tolist() == [nearest(vectors, i) for i in range(len(vectors))]


def test_neighbours_of_many_are_found_block_by_block():
    angles = np.random.default_rng(1).permutation(np.linspace(0, 1, 2_500) ** 2)
    vectors = np.stack((np.cos(angles), np.sin(angles)), axis=1)
    order = np.argsort(angles)
    for place in (0, 1, 700, 2_499):
        beside = [order[other] for other in (place - 1, place + 1) if 0 <= other < 2_500]
        expected = min(beside, key=lambda other: abs(angles[other] - angles[order[place]]))
        assert neighbours(vectors)[order[place]] == expected


def test_equally_near_ones_are_taken_in_order():
    vectors = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [0.0, 3.0]])
    assert neighbours(vectors).tolist() == [1, 2, 1, 1]


def test_length_and_sign_of_scale_do_not_matter(clouds):
    first, second = clouds
    scale = np.random.default_rng(2).uniform(0.1, 9, size=(40, 1))
    assert Cosine()(first, second) == pytest.approx([cosine(a, b) for a, b in zip(first, second, strict=True)])
    assert Cosine()(first * scale, second) == pytest.approx(Cosine()(first, second))
    assert SameNeighbour()(first, second * scale).tolist() == SameNeighbour()(first, second).tolist()
    assert Cosine()(first, -first) == pytest.approx(-np.ones(40))


def test_a_model_is_faithful_to_itself_and_to_its_rotation(clouds):
    first, _ = clouds
    turn, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(6, 6)))
    assert (SameNeighbour()(first, first) == 1).all()
    assert (SameNeighbour()(first, first @ turn) == 1).all()
    assert Cosine()(first, first) == pytest.approx(np.ones(40))


def test_outcomes_are_spread_as_the_covariances_of_dependent_pairs_say():
    wider = 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        first = rng.normal(size=(30, 4))
        second = first + 0.4 * rng.normal(size=(30, 4))
        near = [[nearest(vectors, i) for i in range(30)] for vectors in (first, second)]
        outcome = np.array([float(near[0][i] == near[1][i]) for i in range(30)])
        rate = outcome.mean()
        points = [{i, near[0][i], near[1][i]} for i in range(30)]
        pairs = [(i, j) for i in range(30) for j in range(30) if points[i] & points[j]]
        variance = sum((outcome[i] - rate) * (outcome[j] - rate) for i, j in pairs)
        found = SameNeighbour()(first, second)
        assert found.mean() == pytest.approx(rate)
        assert found.var() * 30 == pytest.approx(max(variance, outcome.var() * 30))
        assert len(set(found.round(9))) == 2
        wider += variance > outcome.var() * 30
    assert wider, "the test would not see the dependence"


def test_intervals_cover_the_rate_as_often_as_they_say():
    """Fresh samples of 60 sentences: the mean rate over many of them lies in 95% of the intervals, or more."""
    rng = np.random.default_rng(4)
    runs = []
    for _ in range(150):
        first = rng.normal(size=(60, 3))
        runs.append(SameNeighbour()(first, first + 0.25 * rng.normal(size=(60, 3))))
    truth = np.mean(runs)
    sums = np.stack(runs, axis=1)[None]
    drawn = draws(sums, np.ones(sums.shape, dtype=np.int64), every(60), bounds=[RATE] * len(runs))
    limits = estimate(drawn)
    assert (limits.low >= 0).all()
    assert (limits.high <= 1).all()
    assert ((limits.low <= limits.value) & (limits.value <= limits.high)).all()
    inside = ((limits.low <= truth) & (truth <= limits.high)).mean()
    assert 0.93 < inside < 0.995


# -- the whole way --------------------------------------------------------------------------------------------------


def tokenizer():
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")


@pytest.fixture(scope="module")
def subject():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, initializer_range=0.3,
    )  # fmt: skip
    return Subject(BertModel(config).eval(), tokenizer(), "a small encoder")


@pytest.fixture(scope="module")
def task(subject):
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(list("abcdefghij"), size=rng.integers(3, 12))) for _ in range(75)]
    return Text(subject.tokenizer, lines[:25], lines[25:50], {"other": lines[50:]}, objective="embedding")


@pytest.fixture(scope="module")
def comparison(subject, task):
    recipes = [assay.SVD(rank=1), assay.SVD(rank=4), assay.OneHotAttention()]
    return assay.compare(subject, task, recipes, sequences=25, fit_sequences=25, resamples=100)


def embeddings(model, split):
    """Mean over tokens, one sequence at a time without padding."""
    found = []
    for row, length in zip(split.tokens, split.lengths.tolist(), strict=True):
        found.append(model(torch.from_numpy(row[None, :length]))[0].double().mean(dim=0).numpy())
    return np.stack(found)


@pytest.mark.parametrize("name", ["iid", "other"])
def test_results_are_those_of_a_loop(subject, task, comparison, name):
    split = task.split(name, 25)
    samples = collect(Engine(subject), task.split("train", 25), ("queries", "keys"))
    proxy = assay.SVD(rank=1).fit(samples).apply(subject)
    first, second = embeddings(subject, split), embeddings(proxy, split)
    same = np.mean([nearest(first, i) == nearest(second, i) for i in range(25)])
    assert same < 1, "the test would not see a difference"
    frame = comparison.to_frame().query(f"trained and proxy == 'SVD(rank=1)' and split == '{name}' and feature == ''")
    found = frame.set_index("metric")["estimate"]
    assert found["same_neighbour"] == pytest.approx(same)
    assert found["cosine"] == pytest.approx(np.mean([cosine(a, b) for a, b in zip(first, second, strict=True)]))
    assert found["attention_jsd"] > 0
    assert set(found.index) == {"same_neighbour", "cosine", "attention_jsd"}
    assert set(frame["predictions"]) == {25}


def test_verdicts_rest_on_neighbours(comparison):
    assert comparison.record.primary_metric == "same_neighbour"
    assert set(comparison.agreement()["metric"]) == set(comparison.gaps()["metric"]) == {"same_neighbour"}
    exact = comparison.agreement().set_index("proxy").loc["Identity()"]
    assert (exact["estimate"], exact["high"]) == (1, 1)
    assert exact["low"] < 1, "25 sequences do not show that no other would change its neighbour"
    assert {verdict.proxy for verdict in comparison.verdicts()} == {"SVD(rank=1)", "SVD(rank=4)", "OneHotAttention()"}


def test_embeddings_have_no_margin_and_so_no_gap_of_theirs_is_an_illusion(comparison):
    own = comparison.gaps().query("trained and not is_control")
    assert own["matched"].isna().all()
    assert set(own["matched_reason"]) == {NO_MARGIN}
    loose = comparison.verdicts(min_agreement=0.0, max_gap=0.0)
    assert not any(verdict.judgement == "illusion" for verdict in loose)


def test_a_shown_gap_of_embeddings_is_a_gap_of_unknown_cause(comparison):
    """The gaps of this small encoder moved to where they are shown."""
    gaps = comparison._gaps.assign(gap=0.5, low=0.4, high=0.6, error=0.05)
    results = comparison.results.assign(low=0.96, high=1.0)
    moved = assay.Comparison(comparison.record, results, gaps, comparison._controls, comparison._sequences)
    for verdict in moved.verdicts():
        assert verdict.judgement == "gap"
        assert NO_MARGIN in str(verdict)


def test_a_run_is_kept_and_read_again(subject, task, comparison, tmp_path):
    comparison.save(tmp_path)
    again = assay.Comparison.load(tmp_path)
    assert list(map(str, again.verdicts())) == list(map(str, comparison.verdicts()))
    values = again.sequence_scores().to_pandas().query("metric == 'same_neighbour' and split == 'iid' and trained")
    means = values.groupby("proxy", observed=True)["mean"].mean()
    agreement = comparison.agreement().set_index("proxy")["estimate"]
    for proxy, value in means.items():
        assert value == pytest.approx(agreement[proxy], abs=1e-6)


def test_reports_speak_of_neighbours_and_draw_nothing_empty(comparison, tmp_path):
    page = write_page(comparison, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Same nearest neighbour" in page
    assert "accuracy of the subject" not in page
    console = Console(width=200)
    with console.capture() as shown:
        console.print(terminal(comparison))
    assert shown.get().startswith("Same nearest neighbour")
    assert "accuracy" not in markdown(comparison)
    drawn = {name: figure for name, _, figure in figures(comparison, Illustrations())}
    assert set(drawn) == {"agreement-by-size-all", "gaps-all", "attention-by-layer-all"}
    assert drawn["gaps-all"].axes[0].get_xlabel() == "gap: same neighbour on iid minus on the shift (points)"
    assert [axes.get_title(loc="left")[:8] for axes in drawn["agreement-by-size-all"].axes].count("SVD: sam") == 1


def test_embeddings_that_are_zero_or_not_finite_are_no_embeddings(subject, task):
    broken = Subject(BertModel(subject.model.config).eval(), subject.tokenizer, "broken")
    with torch.no_grad():
        broken.model.encoder.layer[1].output.LayerNorm.weight.zero_()
        broken.model.encoder.layer[1].output.LayerNorm.bias.zero_()
    with pytest.raises(assay.AssayError, match="zero or not finite"):
        assay.compare(broken, task, [assay.SVD(rank=1)], sequences=5, fit_sequences=5)


def test_equal_sequences_and_too_few_are_refused(subject, task):
    split = task.split("iid", 3)
    with pytest.raises(assay.AssayError, match="must be different"):
        Split(
            "twice", "iid", "", split.tokens[[0, 0, 1]], split.lengths[[0, 0, 1]], split.kinds[[0, 0, 1]],
            objective="embedding",
        )  # fmt: skip
    with pytest.raises(assay.AssayError, match="at least 3"):
        assay.compare(subject, task, [assay.SVD(rank=1)], sequences=2)


def test_an_encoder_can_be_kept_faithful_in_tests(subject, task):
    samples = collect(Engine(subject), task.split("train", 25), ("queries", "keys"))
    exact, coarse = (assay.SVD(rank=rank).fit(samples).apply(subject) for rank in (8, 1))
    assert_faithful(subject, exact, task, min_agreement=0.8, max_gap=0.25, resamples=100)
    with pytest.raises(AssertionError) as caught:
        assert_faithful(subject, coarse, task, min_agreement=0.999, max_gap=0.25, resamples=100)
    message = str(caught.value)
    assert "the subject's own nearest neighbour for at least 99.9% of the sequences in distribution" in message
    assert "of the nearest neighbours of 25 sequences" in message
    assert "prediction" not in message
