"""k-means, one-hot and uniform attention against answers known beforehand."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans as ScikitKMeans

from assay import AssayError
from assay.engine import ATTENTION, Head, Samples, Site
from assay.simplify import KMeans, OneHotAttention, UniformAttention

HEAD = Head(0, 0)


def edit_of(simplification, subject, head: Head = HEAD):
    return {edit.place: edit for edit in simplification.apply(subject).edits}[head]


def samples_of(queries: torch.Tensor, keys: torch.Tensor) -> Samples:
    return Samples((HEAD,), {HEAD: queries}, {HEAD: keys})


# -- the toy head: depth on a line ----------------------------------------------------------------------------------


DIRECTION = torch.tensor([2.0, -1.0, 2.0, 0.0])
ORIGIN = torch.tensor([0.5, 3.0, -1.0, 1.0])


def at_depth(depths: torch.Tensor) -> torch.Tensor:
    """Keys (and queries) that say nothing but the depth, on a line."""
    return ORIGIN + depths.to(torch.float32)[:, None] * DIRECTION


@pytest.fixture
def trained_depths() -> torch.Tensor:
    return torch.randint(0, 11, (3_000,), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def clustered(subject, trained_depths):
    samples = samples_of(at_depth(trained_depths), at_depth(trained_depths.flip(0)))
    return edit_of(KMeans(clusters=11, restarts=10).fit(samples), subject)


@pytest.mark.parametrize("stream", ["queries", "keys"])
def test_eleven_centres_are_exact_to_depth_ten(clustered, stream):
    depths = torch.arange(11)
    found = getattr(clustered, stream)(at_depth(depths)[None])[0]
    torch.testing.assert_close(found, at_depth(depths), atol=1e-4, rtol=0)


@pytest.mark.parametrize("stream", ["queries", "keys"])
def test_every_deeper_depth_becomes_depth_ten(clustered, stream):
    depths = torch.arange(11, 60)
    found = getattr(clustered, stream)(at_depth(depths)[None])[0]
    torch.testing.assert_close(found, at_depth(torch.full_like(depths, 10)), atol=1e-4, rtol=0)


def test_attention_by_depth_is_exact_within_and_blind_beyond(clustered):
    """Attend to the key whose depth is that of the query: the score is -|q - k|², up to what only depends on q."""

    def attended(depths):
        points = at_depth(depths)[None]
        queries, keys = clustered.queries(points)[0], clustered.keys(points)[0]
        return (-torch.cdist(queries, keys).square()).softmax(-1)

    within, beyond = attended(torch.arange(11)), attended(torch.arange(11, 15))
    torch.testing.assert_close(within, torch.eye(11), atol=1e-2, rtol=0)
    torch.testing.assert_close(beyond, torch.full((4, 4), 0.25), atol=1e-4, rtol=0)


# -- k-means --------------------------------------------------------------------------------------------------------


def test_centres_and_assignments_are_those_of_scikit_learn(subject, samples):
    fitted = KMeans(clusters=12, restarts=2, seed=3).fit(samples)
    for head in samples.places:
        edit = edit_of(fitted, subject, head)
        for place, (stream, vectors) in enumerate((("queries", samples.queries), ("keys", samples.keys))):
            points = vectors[head]
            expected = ScikitKMeans(12, n_init=2, random_state=3).fit(points.numpy())
            torch.testing.assert_close(fitted.centres_[head][place], torch.from_numpy(expected.cluster_centers_))
            fresh = points[:500] + 0.1 * torch.randn(500, 32, generator=torch.Generator().manual_seed(place))
            wanted = expected.cluster_centers_[expected.predict(fresh.numpy())]
            np.testing.assert_allclose(getattr(edit, stream)(fresh[None])[0].numpy(), wanted, atol=1e-5)


def test_of_very_many_samples_enough_are_used(subject):
    generator = torch.Generator().manual_seed(4)
    points = torch.randn(40_000, 3, generator=generator) + 2 * torch.randint(0, 3, (40_000, 1), generator=generator)
    edit = edit_of(KMeans(clusters=6, restarts=3).fit(samples_of(points, points)), subject)
    error = (edit.queries(points[None])[0] - points).square().sum().item()
    of_all = ScikitKMeans(6, n_init=3, random_state=0).fit(points.numpy()).inertia_
    assert of_all <= error * (1 + 1e-6) <= 1.02 * of_all


def test_queries_and_keys_are_clustered_apart(subject):
    queries = torch.tensor([[0.0, 0.0], [1.0, 0.0]]).repeat(20, 1)
    keys = torch.tensor([[10.0, 10.0], [20.0, 20.0]]).repeat(20, 1)
    edit = edit_of(KMeans(clusters=2).fit(samples_of(queries, keys)), subject)
    torch.testing.assert_close(edit.queries(queries[None])[0], queries)
    torch.testing.assert_close(edit.keys(keys[None])[0], keys)
    torch.testing.assert_close(edit.queries(keys[None])[0], torch.tensor([1.0, 0.0]).expand(40, 2))


def test_one_cluster_is_the_mean(subject, samples):
    edit = edit_of(KMeans(clusters=1).fit(samples), subject, samples.places[0])
    keys = samples.keys[samples.places[0]]
    torch.testing.assert_close(edit.keys(keys[None])[0], keys.mean(0).expand_as(keys), atol=1e-4, rtol=0)


def test_as_many_clusters_as_distinct_vectors_are_exact(subject):
    vectors = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)).repeat(4, 1)
    edit = edit_of(KMeans(clusters=7, restarts=10).fit(samples_of(vectors, vectors)), subject)
    torch.testing.assert_close(edit.keys(vectors[None])[0], vectors, atol=1e-5, rtol=0)


def test_clustering_is_idempotent_and_repeatable(subject, samples):
    head = samples.places[0]
    points = samples.keys[head][None, :300]
    once = edit_of(KMeans(clusters=9).fit(samples), subject, head).keys(points)
    again = edit_of(KMeans(clusters=9).fit(samples), subject, head)
    assert torch.equal(again.keys(points), once)
    assert torch.equal(again.keys(once), once)
    assert len(torch.unique(once[0], dim=0)) <= 9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_nearest_centre_is_nearest_in_every_dtype(subject, dtype):
    """Far from the origin, where |c|² - 2 v·c has no digits left unless it is computed with care."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(600, 8, generator=generator) + 40
    fitted = KMeans(clusters=6).fit(samples_of(points, points))
    low = points.to(dtype)
    found = edit_of(fitted, subject).keys(low[None])[0]
    assert found.dtype == dtype
    centres = fitted.centres_[HEAD][1].double()
    exact = torch.cdist(low.double(), centres)
    chosen = torch.cdist(found.double(), centres).argmin(-1)
    excess = exact.gather(1, chosen[:, None])[:, 0] - exact.amin(-1)
    assert excess.max() < 1e-3


def test_more_clusters_than_distinct_vectors_are_refused(samples):
    few = torch.ones(50, 3)
    few[0] = 2
    with pytest.raises(AssayError, match=r"KMeans\(clusters=3\): only 2 distinct"):
        KMeans(clusters=3).fit(samples_of(few, few))


def test_distinct_vectors_are_counted_among_all_samples(subject):
    """The first vectors may all be the same: a start token, say."""
    vectors = torch.cat((torch.zeros(500, 2), torch.ones(500, 2)))
    edit = edit_of(KMeans(clusters=2).fit(samples_of(vectors, vectors)), subject)
    torch.testing.assert_close(edit.keys(vectors[None])[0], vectors)


@pytest.mark.parametrize(
    ("parameters", "name"), [({"clusters": 0}, "clusters"), ({"clusters": 4, "restarts": 0}, "restarts")]
)
def test_bad_numbers_are_refused(samples, parameters, name):
    with pytest.raises(AssayError, match=f"{name} must be a whole number of at least 1"):
        KMeans(**parameters).fit(samples)


@pytest.mark.parametrize("clusters", [2.0, "4", True, None])
def test_clusters_that_are_no_number_are_refused(samples, clusters):
    simplification = KMeans(clusters=1)
    simplification.clusters = clusters
    with pytest.raises(AssayError, match="clusters must be a whole number"):
        simplification.fit(samples)


def test_control_is_attention_without_information():
    assert isinstance(KMeans(clusters=4).control(), UniformAttention)
    assert isinstance(OneHotAttention().control(), UniformAttention)
    assert UniformAttention().control() is None


# -- patterns -------------------------------------------------------------------------------------------------------


def test_one_hot_rows_by_hand(subject, samples):
    harden = edit_of(OneHotAttention().fit(samples), subject).pattern
    pattern = torch.tensor([[[1.0, 0.0, 0.0], [0.4, 0.6, 0.0], [0.2, 0.3, 0.5]]])
    visible = torch.ones(1, 3, 3).tril().bool()
    expected = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    assert torch.equal(harden(pattern, visible), expected)


def test_one_hot_takes_the_first_of_equals(subject, samples):
    harden = edit_of(OneHotAttention().fit(samples), subject).pattern
    pattern = torch.tensor([[[1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [0.2, 0.4, 0.4, 0.0], [0.25] * 4]])
    found = harden(pattern, torch.ones(1, 4, 4).tril().bool())
    assert found.argmax(-1).tolist() == [[0, 0, 1, 0]]
    assert torch.equal(found.sum(-1), torch.ones(1, 4))
    assert ((found == 0) | (found == 1)).all()


def test_one_hot_keeps_the_dtype_and_the_shape(subject, samples):
    harden = edit_of(OneHotAttention().fit(samples), subject).pattern
    pattern = torch.rand(2, 5, 5).tril().to(torch.bfloat16)
    found = harden(pattern, torch.ones(2, 5, 5).tril().bool())
    assert found.dtype == torch.bfloat16
    assert found.shape == pattern.shape


def test_one_hot_of_a_model_points_where_the_subject_looks_most(subject, engine, samples, task):
    tokens = torch.from_numpy(task.read_sentence("(0 (3 3) (1 1) 0)").tokens)
    clean = engine.run(tokens, read=("patterns",)).patterns[0][0, 0]
    proxy = OneHotAttention().fit(samples.at(Site("one head", {HEAD: ATTENTION}))).apply(subject)
    hard = engine.run(tokens, edits=proxy.edits, read=("patterns",)).patterns[0][0, 0]
    for row, soft in zip(hard, clean, strict=True):
        assert row.sum() == row.max() == 1
        assert soft[row.argmax()] == soft.max()


def test_uniform_rows_by_hand(subject, samples):
    level = edit_of(UniformAttention().fit(samples), subject).pattern
    visible = torch.tensor([[[1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 0]]]).bool()
    found = level(torch.rand(1, 4, 3), visible)
    torch.testing.assert_close(found, torch.tensor([[[1.0, 0, 0], [0.5, 0.5, 0], [0, 0.5, 0.5], [0, 0, 0]]]))


def test_uniform_rows_of_a_model_leave_padding_out(subject, engine, samples, task):
    tokens = torch.from_numpy(task.read_sentence("(0 (3 3) (1 1) 0)").tokens)
    length = tokens.shape[1]
    padded = torch.cat((tokens, torch.full((1, 3), task.pad_id)), dim=1)
    left = torch.cat((torch.full((1, 3), task.pad_id), tokens), dim=1)
    edits = UniformAttention().fit(samples).apply(subject).edits
    expected = torch.ones(length, length).tril() / torch.arange(1, length + 1)[:, None]
    for given, first in ((tokens, 0), (padded, 0), (left, 3)):
        valid = (given != task.pad_id).long()
        last = first + length
        for layer, pattern in engine.run(given, valid, edits=edits, read=("patterns",)).patterns.items():
            rows = pattern[0, 0, first:last]
            torch.testing.assert_close(rows[:, first:last], expected, msg=f"layer {layer}")
            assert rows.sum(-1).max() <= 1 + 1e-6
