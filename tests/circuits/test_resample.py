"""Ablated edges that carry what their senders write on another sequence of the train split."""

import numpy as np
import pytest
import torch
from many_subjects import random_pairs, tiny

from assay import AssayError
from assay.circuits import AllAblated, Batch, Circuit, IntegratedEdgeAttribution, Problem, Reference
from assay.engine import Engine, Samples


@pytest.fixture(scope="module")
def gpt2():
    return tiny("gpt2")


@pytest.fixture(scope="module")
def train():
    return random_pairs(None, 40, seed=3)


def drawn(reference, split):
    return reference._drawn(Batch.of(split, np.arange(len(split)), torch.device("cpu"))).numpy()


def test_each_sequence_gets_another_of_train_as_long_whatever_its_batch(gpt2, train):
    reference = Reference.fitted(Engine(gpt2), "resample", train, seed=1)
    judged = random_pairs(gpt2, 6, seed=8)
    whole = drawn(reference, judged)
    for row, length in enumerate(judged.lengths):
        known = [
            other[:length].tolist() for other, size in zip(train.tokens, train.lengths, strict=True) if size >= length
        ]
        assert whole[row, :length].tolist() in known
        alone = judged.take(np.array([row]))
        assert drawn(reference, alone)[0, :length].tolist() == whole[row, :length].tolist()
    other = drawn(Reference.fitted(Engine(gpt2), "resample", train, seed=2), judged)
    assert (other != whole).any()


def test_a_sequence_of_train_never_stands_for_itself(gpt2, train):
    found = drawn(Reference.fitted(Engine(gpt2), "resample", train), train)
    for row, length in enumerate(train.lengths):
        assert (found[row, :length] != train.tokens[row, :length]).any()


def test_with_every_edge_ablated_the_subject_sees_the_other_sequence(gpt2, train):
    proxy = AllAblated("resample", seed=4).fit(Samples((), subject=gpt2, split=train)).apply(gpt2)
    judged = random_pairs(gpt2, 5, seed=9)
    batch = Batch.of(judged, np.arange(len(judged)), torch.device("cpu"))
    found = proxy(batch.tokens, batch.valid)
    expected = gpt2(proxy.reference._drawn(batch), batch.valid)
    seen = batch.valid.bool()
    torch.testing.assert_close(found[seen], expected[seen], atol=1e-10, rtol=0)


def test_integrated_scores_out_of_the_embeddings_sum_to_what_ablating_everything_changes(gpt2, train):
    problem = Problem(Engine(gpt2), train, Reference.fitted(Engine(gpt2), "resample", train))
    scores = IntegratedEdgeAttribution(steps=40, rule="gauss").scores(problem)
    own, ablated = problem.baseline
    assert np.nansum(scores[0]) == pytest.approx((ablated - own).mean(), rel=1e-3)


def test_sequences_longer_than_any_of_train_are_refused(gpt2, train):
    reference = Reference.fitted(Engine(gpt2), "resample", train.take(np.flatnonzero(train.lengths < 7)))
    with pytest.raises(AssayError, match="no other sequence of 7 tokens in the train split, whose longest has 6"):
        drawn(reference, random_pairs(gpt2, 3))


def test_a_saved_circuit_draws_the_same(gpt2, train, tmp_path):
    from assay import load_proxy  # noqa: PLC0415

    edges = ["embeddings -> layer0.mlp", "layer0.mlp -> logits"]
    proxy = Circuit(edges, ablation="resample", seed=5).fit(Samples((), subject=gpt2, split=train)).apply(gpt2)
    again = load_proxy(proxy.save(tmp_path / "kept"), gpt2)
    batch = Batch.of(random_pairs(gpt2, 4), np.arange(4), torch.device("cpu"))
    assert torch.equal(again(batch.tokens, batch.valid), proxy(batch.tokens, batch.valid))
