"""Projections: hand-built heads with known answers, numpy's SVD as the oracle, and the random control."""

import numpy as np
import pytest
import torch

from assay import AssayError
from assay.engine import ATTENTION, Engine, Head, Samples, Site
from assay.simplify import SVD, Identity, RandomProjection

HEAD = Head(0, 0)


def samples_of(queries: torch.Tensor, keys: torch.Tensor, head: Head = HEAD) -> Samples:
    return Samples((head,), {head: queries}, {head: keys})


def edits_of(simplification, subject) -> dict:
    """The edits of a fitted simplification, by head."""
    return {edit.place: edit for edit in simplification.apply(subject).edits}


def projected(edit, stream: str, vectors: torch.Tensor) -> torch.Tensor:
    return getattr(edit, stream)(vectors[None])[0]


def sines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Sines of the principal angles between the spans of two orthonormal bases."""
    cosines = np.linalg.svd(one.T @ other, compute_uv=False)
    return np.sqrt(np.clip(1 - cosines**2, 0, None))


@pytest.fixture
def skewed() -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys in 6 dimensions with different spectra, means and directions."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([9.0, 5.0, 3.0, 1.0, 0.5, 0.1])
    mixing = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    queries = torch.randn(400, 6, generator=generator) * spread @ mixing + 2.0
    keys = torch.randn(400, 6, generator=generator) * spread.flip(0) - torch.arange(6.0)
    return queries, keys


# -- a hand-built head ----------------------------------------------------------------------------------------------


@pytest.fixture
def plane() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries and keys a u + b w in a plane of an 8-dimensional space, with u the longer direction."""
    u, w = torch.zeros(8), torch.zeros(8)
    u[:4], w[:4] = 0.5, torch.tensor([0.5, -0.5, 0.5, -0.5])
    queries = torch.stack([a * u + b * w for a in (-3.0, 3.0) for b in (-1.0, 1.0)])
    keys = torch.stack([a * u + b * w for a in (-2.0, 2.0) for b in (-1.0, 1.0)])
    return queries, keys, torch.stack((u, w))


def test_rank_two_is_exact_in_a_plane(subject, plane):
    queries, keys, _ = plane
    edit = edits_of(SVD(rank=2).fit(samples_of(queries, keys)), subject)[HEAD]
    torch.testing.assert_close(projected(edit, "queries", queries), queries, atol=1e-6, rtol=0)
    torch.testing.assert_close(projected(edit, "keys", keys), keys, atol=1e-6, rtol=0)


def test_rank_one_loses_exactly_the_shorter_direction(subject, plane):
    """The scores (3s)(2t) + b b' lose b b' = ±1; the vectors lose b w, of length 1."""
    queries, keys, (u, w) = plane
    edit = edits_of(SVD(rank=1).fit(samples_of(queries, keys)), subject)[HEAD]
    low_queries, low_keys = projected(edit, "queries", queries), projected(edit, "keys", keys)
    torch.testing.assert_close(low_queries, (queries @ u)[:, None] * u, atol=1e-6, rtol=0)
    torch.testing.assert_close((queries - low_queries).norm(dim=-1), torch.ones(4), atol=1e-6, rtol=0)
    lost = queries @ keys.T - low_queries @ low_keys.T
    torch.testing.assert_close(lost, torch.outer(queries @ w, keys @ w), atol=1e-5, rtol=0)
    torch.testing.assert_close(lost.abs(), torch.ones(4, 4), atol=1e-5, rtol=0)


def test_rank_one_attention_is_the_analytic_one(subject, plane):
    """A query 3u + w sees the keys ±2u ± w: scores ±6 ± 1 become ±6, whose softmax is known."""
    queries, keys, _ = plane
    edit = edits_of(SVD(rank=1).fit(samples_of(queries, keys)), subject)[HEAD]
    scores = projected(edit, "queries", queries[3:]) @ projected(edit, "keys", keys).T
    upper = np.exp(6) / (2 * np.exp(6) + 2 * np.exp(-6))
    expected = torch.tensor([[0.5 - upper, 0.5 - upper, upper, upper]], dtype=torch.float32)
    torch.testing.assert_close(scores.softmax(-1), expected, atol=1e-6, rtol=0)


# -- numpy's SVD as the oracle --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 3, 5])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("joint", [True, False])
def test_subspaces_are_those_of_numpy(subject, skewed, rank, joint, centred):
    queries, keys = skewed
    fitted = SVD(rank=rank, joint=joint, centred=centred).fit(samples_of(queries, keys))
    both = np.concatenate((queries.double().numpy(), keys.double().numpy()))
    sources = (both, both) if joint else (queries.double().numpy(), keys.double().numpy())
    edit = edits_of(fitted, subject)[HEAD]
    fresh = torch.randn(50, 6, generator=torch.Generator().manual_seed(9)) * 4
    for found, source, stream in zip(fitted.subspaces_[HEAD], sources, ("queries", "keys"), strict=True):
        mean = source.mean(axis=0) if centred else np.zeros(6)
        directions = np.linalg.svd(source - mean, full_matrices=False)[2][:rank].T
        assert found.basis.shape == (6, rank)
        assert sines(found.basis.numpy(), directions).max() < 1e-6
        np.testing.assert_allclose(found.basis.T @ found.basis, np.eye(rank), atol=1e-12)
        np.testing.assert_allclose(found.mean, mean, atol=1e-12)
        expected = mean + (fresh.double().numpy() - mean) @ directions @ directions.T
        np.testing.assert_allclose(projected(edit, stream, fresh), expected, atol=1e-4)


def test_real_activations_against_numpy(subject, samples):
    fitted = SVD(rank=4).fit(samples)
    assert set(fitted.subspaces_) == set(samples.places)
    for head in samples.places:
        both = np.concatenate((samples.queries[head].numpy(), samples.keys[head].numpy())).astype(np.float64)
        directions = np.linalg.svd(both, full_matrices=False)[2][:4].T
        assert sines(fitted.subspaces_[head][0].basis.numpy(), directions).max() < 1e-5


def test_joint_and_separate_and_centred_differ(subject, skewed):
    chosen = [
        SVD(rank=2),
        SVD(rank=2, joint=False),
        SVD(rank=2, centred=True),
        SVD(rank=2, joint=False, centred=True),
    ]
    outputs = []
    for simplification in chosen:
        edit = edits_of(simplification.fit(samples_of(*skewed)), subject)[HEAD]
        outputs.append(torch.cat((projected(edit, "queries", skewed[0]), projected(edit, "keys", skewed[1]))))
    for place, one in enumerate(outputs):
        for other in outputs[place + 1 :]:
            assert (one - other).abs().max() > 0.1


def test_fewer_samples_than_rank_still_span_a_subspace(subject):
    queries, keys = torch.randn(2, 6, generator=torch.Generator().manual_seed(1)), torch.zeros(2, 6)
    fitted = SVD(rank=5).fit(samples_of(queries, keys))
    basis = fitted.subspaces_[HEAD][0].basis
    np.testing.assert_allclose(basis.T @ basis, np.eye(5), atol=1e-12)
    edit = edits_of(fitted, subject)[HEAD]
    torch.testing.assert_close(projected(edit, "queries", queries), queries, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "simplification",
    [SVD(rank=3), SVD(rank=3, joint=False), SVD(rank=3, centred=True), RandomProjection(rank=3)],
    ids=str,
)
def test_projections_are_idempotent_and_keep_dtype(subject, skewed, simplification):
    edit = edits_of(simplification.fit(samples_of(*skewed)), subject)[HEAD]
    for stream, vectors in zip(("queries", "keys"), skewed, strict=True):
        once = projected(edit, stream, vectors)
        torch.testing.assert_close(projected(edit, stream, once), once, atol=1e-4, rtol=0)
        assert (once - vectors).abs().max() > 0.1
        centred = (once - once.mean(0)).double().numpy()
        assert np.linalg.matrix_rank(centred, tol=1e-3) == 3
        for dtype in (torch.float64, torch.bfloat16):
            assert projected(edit, stream, vectors.to(dtype)).dtype == dtype


# -- on a whole model -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "simplification",
    [
        SVD(rank=32),
        SVD(rank=32, joint=False),
        SVD(rank=32, centred=True),
        RandomProjection(rank=32),
        Identity(),
    ],
    ids=str,
)
def test_full_rank_reproduces_the_logits(subject, samples, task, simplification):
    split = task.split("unseen_depth", 20)
    tokens, valid = torch.from_numpy(split.tokens), torch.from_numpy(split.valid.astype(np.int64))
    proxy = simplification.fit(samples).apply(subject)
    difference = (proxy(tokens, valid) - subject(tokens, valid)).abs().amax(-1) * valid
    assert difference.max() <= 1e-5


def test_more_directions_come_closer_and_few_are_far(subject, samples, task):
    split = task.split("iid", 30)
    tokens, valid = torch.from_numpy(split.tokens), torch.from_numpy(split.valid.astype(np.int64))
    expected = subject(tokens, valid)
    errors = []
    for rank in (1, 8, 24, 32):
        found = SVD(rank=rank).fit(samples).apply(subject)(tokens, valid)
        errors.append(float(((found - expected).abs().amax(-1) * valid).sum() / valid.sum()))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.01


def test_only_fitted_heads_are_simplified(subject, engine, samples, task):
    head = samples.places[1]
    proxy = SVD(rank=2).fit(samples.at(Site("one head", {head: ATTENTION}))).apply(subject)
    assert [edit.place for edit in proxy.edits] == [head]
    tokens = torch.from_numpy(task.read_sentence("(0 (3 3) (1 1) 0)").tokens)
    clean = engine.run(tokens, read=("patterns",))
    edited = engine.run(tokens, edits=proxy.edits, read=("patterns",))
    assert torch.equal(edited.patterns[0], clean.patterns[0])
    assert not torch.equal(edited.patterns[1], clean.patterns[1])


def test_width_of_queries_in_a_run_has_the_fitted_rank(subject, engine, samples, task):
    tokens = torch.from_numpy(task.split("unseen_structure_long", 1).tokens)
    proxy = SVD(rank=3).fit(samples).apply(subject)
    run = engine.run(tokens, edits=proxy.edits, read=("queries", "keys"))
    for layer in (0, 1):
        both = torch.cat((run.queries[layer][0, 0], run.keys[layer][0, 0])).numpy()
        assert np.linalg.matrix_rank(both, tol=1e-3) == 3


# -- the random control ---------------------------------------------------------------------------------------------


def bases(simplification: RandomProjection, samples: Samples) -> dict[Head, np.ndarray]:
    return {head: found[0].basis.numpy() for head, found in simplification.fit(samples).subspaces_.items()}


def test_random_subspaces_are_orthonormal(samples):
    for rank in (1, 8, 32):
        for basis in bases(RandomProjection(rank=rank), samples).values():
            assert basis.shape == (32, rank)
            np.testing.assert_allclose(basis.T @ basis, np.eye(rank), atol=1e-12)


def test_random_subspaces_depend_on_seed_and_head_but_not_on_data(samples):
    first = bases(RandomProjection(rank=4), samples)
    other_data = Samples(samples.places, {head: torch.randn(7, 32) for head in samples.places})
    again = bases(RandomProjection(rank=4), other_data)
    other_seed = bases(RandomProjection(rank=4, seed=1), samples)
    for head in samples.places:
        np.testing.assert_array_equal(again[head], first[head])
        assert sines(other_seed[head], first[head]).max() > 0.5
    one, two = samples.places
    assert sines(first[one], first[two]).max() > 0.5


def test_random_subspaces_leave_the_global_generator_alone(samples):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    RandomProjection(rank=4).fit(samples)
    assert torch.equal(torch.rand(2), expected)


def test_random_subspaces_have_no_preferred_direction():
    """The mean of the projectors on many random planes in 6 dimensions is 2/6 of the identity."""
    heads = tuple(Head(layer, head) for layer in range(40) for head in range(50))
    fitted = RandomProjection(rank=2).fit(Samples(heads, {head: torch.zeros(1, 6) for head in heads}))
    mean = torch.stack([spaces[0].basis @ spaces[0].basis.T for spaces in fitted.subspaces_.values()]).mean(0)
    np.testing.assert_allclose(mean, np.eye(6) / 3, atol=0.03)


def test_controls():
    assert SVD(rank=5, joint=False).control() == RandomProjection(rank=5)
    assert RandomProjection(rank=5).control() is None
    assert Identity().control() is None


# -- wrong input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [SVD, RandomProjection])
def test_rank_above_the_width_is_refused(samples, make):
    with pytest.raises(AssayError, match=r"rank=33\).*width 32.*between 1 and 32"):
        make(rank=33).fit(samples)


@pytest.mark.parametrize("make", [SVD, RandomProjection])
@pytest.mark.parametrize("rank", [0, -1, True, 2.5, "8", None])
def test_rank_that_is_no_positive_whole_number_is_refused(samples, make, rank):
    simplification = make(rank=1)
    simplification.rank = rank
    with pytest.raises(AssayError, match="rank must be a whole number of at least 1"):
        simplification.fit(samples)


def test_engine_sees_the_same_heads_as_the_proxy(subject, samples):
    assert tuple(edit.place for edit in Identity().fit(samples).apply(subject).edits) == Engine(subject).heads
