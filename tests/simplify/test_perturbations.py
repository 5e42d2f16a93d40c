"""The control of equal size moves as far as what it is compared with, and nowhere in particular."""

import pytest
import torch

from assay import AssayError
from assay.engine import Engine, Head, Samples, collect
from assay.simplify import SVD, Identity, KMeans, OneHotAttention, RandomPerturbation, UniformAttention, label

HEADS = (Head(0, 0), Head(1, 0))


def gaussian(count, width, seed):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def samples() -> Samples:
    return Samples(HEADS, {head: gaussian(200, 8, 1) for head in HEADS}, {head: gaussian(200, 8, 2) for head in HEADS})


def pair(inner, samples, subject):
    """The first edit of a simplification and of its perturbation."""
    return tuple(made.fit(samples).apply(subject).edits[0] for made in (inner, RandomPerturbation(inner)))


@pytest.mark.parametrize("inner", [SVD(rank=2), SVD(rank=3, centred=True), KMeans(clusters=5)], ids=label)
@pytest.mark.parametrize("stream", ["queries", "keys"])
def test_every_vector_moves_as_far_in_a_direction_of_its_own(inner, stream, samples, subject):
    own, instead = pair(inner, samples, subject)
    vectors = gaussian(600, 8, 3)[None]
    moved, shaken = (getattr(edit, stream)(vectors) - vectors for edit in (own, instead))
    torch.testing.assert_close(shaken.norm(dim=-1), moved.norm(dim=-1), rtol=1e-6, atol=1e-6)
    cosine = torch.nn.functional.cosine_similarity(shaken, moved, dim=-1)[0]
    assert abs(float(cosine.mean())) < 0.1
    unit = shaken[0] / shaken[0].norm(dim=-1, keepdim=True)
    assert float((unit.T @ unit / 600).diagonal().max()) < 0.3, "no coordinate has more than its share"
    assert abs(float((unit[1:] * unit[:-1]).sum(dim=-1).mean())) < 0.1, "different vectors, different directions"


def test_equal_vectors_move_alike_and_nothing_depends_on_what_stands_beside(samples, subject):
    _, instead = pair(SVD(rank=2), samples, subject)
    vectors = gaussian(40, 8, 4).reshape(4, 10, 8)
    whole = instead.queries(vectors)
    torch.testing.assert_close(instead.queries(vectors[2:3, 5:6]), whole[2:3, 5:6])
    torch.testing.assert_close(instead.queries(vectors.flip(0, 1)), whole.flip(0, 1))


def test_heads_streams_and_seeds_have_directions_of_their_own(samples, subject):
    vectors = gaussian(300, 8, 5)[None]
    found = {}
    for seed in (0, 1):
        for edit in RandomPerturbation(SVD(rank=2), seed=seed).fit(samples).apply(subject).edits:
            for stream in ("queries", "keys"):
                found[seed, str(edit), stream] = getattr(edit, stream)(vectors) - vectors
    assert len(found) == 8
    values = list(found.values())
    for number, first in enumerate(values):
        for second in values[:number]:
            assert abs(float(torch.nn.functional.cosine_similarity(first, second, dim=-1).mean())) < 0.15


@pytest.mark.parametrize("inner", [OneHotAttention(), UniformAttention()], ids=label)
def test_a_pattern_loses_as_much_to_a_visible_position(inner, samples, subject):
    own, instead = pair(inner, samples, subject)
    visible = torch.ones(9, 9, dtype=torch.bool).tril()[None].expand(3, 9, 9)
    pattern = torch.where(visible, gaussian(243, 1, 6).reshape(3, 9, 9), -torch.inf).softmax(dim=-1)
    distance = [(edit.pattern(pattern, visible) - pattern).abs().sum(dim=-1) / 2 for edit in (own, instead)]
    moved = instead.pattern(pattern, visible)
    torch.testing.assert_close(moved.sum(dim=-1), torch.ones(3, 9, dtype=torch.float64))
    assert (moved >= 0).all()
    assert (moved[~visible] == 0).all()
    if isinstance(inner, OneHotAttention):
        torch.testing.assert_close(distance[1], distance[0])
    else:
        assert (distance[1] <= distance[0] + 1e-12).all()
    wider = torch.nn.functional.pad(pattern, (0, 4, 0, 4))
    seen = torch.nn.functional.pad(visible, (0, 4, 0, 4))
    torch.testing.assert_close(instead.pattern(wider, seen)[:, :9, :9], moved)


def test_random_positions_are_spread(samples, subject):
    _, instead = pair(OneHotAttention(), samples, subject)
    size = 60
    visible = torch.ones(size, size, dtype=torch.bool).tril()[None]
    uniform = visible.double() / visible.sum(dim=-1, keepdim=True)
    gained = (instead.pattern(uniform, visible) - uniform)[0].argmax(dim=-1)
    share = gained / torch.arange(1, size + 1)
    assert 0.35 < float(share[5:].mean()) < 0.65
    assert len(set(gained.tolist())) > size // 3


def test_what_moves_nothing_has_a_perturbation_that_moves_nothing(samples, subject):
    _, instead = pair(Identity(), samples, subject)
    vectors = gaussian(30, 8, 7)[None]
    torch.testing.assert_close(instead.queries(vectors), vectors)


def test_the_simplification_itself_is_left_as_it_was(samples, subject):
    inner = SVD(rank=2)
    RandomPerturbation(inner).fit(samples)
    assert inner.subspaces_ is None


def test_one_around_a_fitted_simplification_is_the_same(samples, subject):
    given = RandomPerturbation(KMeans(clusters=4)).around(KMeans(clusters=4).fit(samples)).apply(subject).edits[0]
    fitted = RandomPerturbation(KMeans(clusters=4)).fit(samples).apply(subject).edits[0]
    vectors = gaussian(30, 8, 7)[None]
    torch.testing.assert_close(given.queries(vectors), fitted.queries(vectors), rtol=0, atol=0)


def test_it_has_to_be_fitted_and_is_called_after_what_it_measures(subject):
    control = RandomPerturbation(SVD(rank=2))
    assert label(control) == "RandomPerturbation(of=SVD(rank=2))"
    assert control.streams == ("queries", "keys")
    with pytest.raises(AssayError, match=r"RandomPerturbation\(of=SVD\(rank=2\)\) has not been fitted"):
        control.apply(subject)


def test_a_real_subject_is_moved_by_equal_size(subject, task):
    engine = Engine(subject)
    found = collect(engine, task.split("train", 20), ("queries", "keys"))
    tokens = torch.from_numpy(task.split("iid", 4).tokens)
    first, second = (RandomPerturbation(SVD(rank=2)).fit(found).apply(subject)(tokens) for _ in range(2))
    torch.testing.assert_close(first, second)
    assert not torch.allclose(first, subject(tokens))
