"""N-grams against counting in dictionaries, and against the table that made the text."""

import time
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch

import assay
from assay import AssayError
from assay.engine import Engine, Samples, collect
from assay.faithfulness import CleanPass
from assay.models import NGram
from assay.models._n_gram import Counts
from assay.subjects import Subject
from assay.tasks import Split

VOCABULARY = 23


def by_dictionaries(split, order, vocabulary):
    """p(w | context) as written down, recursively."""
    followed = defaultdict(Counter)
    for row, length in zip(split.tokens.tolist(), split.lengths.tolist(), strict=True):
        for place in range(1, length):
            for size in range(min(order, place + 1)):
                followed[tuple(row[place - size : place])][row[place]] += 1

    def probability(token, context):
        counts = followed.get(context, Counter())
        shorter = probability(token, context[1:]) if context else 1 / vocabulary
        if not counts:
            return shorter
        return (counts[token] + len(counts) * shorter) / (counts.total() + len(counts))

    return followed, probability


@pytest.fixture(scope="module")
def text():
    """Sequences in which what comes next depends on the last two tokens, some of them of one token."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(6, size=(60, 12))
    for place in range(2, 12):
        follow = (tokens[:, place - 1] + 2 * tokens[:, place - 2]) % 6
        tokens[:, place] = np.where(rng.random(60) < 0.6, follow, tokens[:, place])
    lengths = rng.integers(1, 13, size=60)
    return Split("train", "train", "planted", tokens, lengths, tokens * 0)


@pytest.mark.parametrize("order", [1, 2, 3, 5, 20])
def test_probabilities_are_those_of_dictionaries(order, text, small):
    proxy = NGram(order).fit(collect(Engine(small), text, ())).apply(small)
    tokens = torch.randint(7, (5, 9), generator=torch.Generator().manual_seed(order))
    found = proxy(tokens).exp()
    torch.testing.assert_close(found.sum(dim=-1), torch.ones(5, 9))
    followed, probability = by_dictionaries(text, order, VOCABULARY)
    seen = set()
    for row in range(5):
        for place in range(9):
            context = tuple(tokens[row, max(0, place + 2 - order) : place + 1].tolist()) if order > 1 else ()
            expected = [probability(token, context) for token in range(VOCABULARY)]
            np.testing.assert_allclose(found[row, place].numpy(), expected, rtol=1e-5)
            seen.add(max(size for size in range(len(context) + 1) if context[len(context) - size :] in followed))
    assert len(seen) >= min(order, 4), "contexts of every length should be met"


def test_padding_ends_a_context(text, small):
    proxy = NGram(3).fit(collect(Engine(small), text, ())).apply(small)
    tokens = torch.tensor([[9, 9, 1, 3, 4, 0]])
    valid = torch.tensor([[0, 0, 1, 1, 1, 0]])
    torch.testing.assert_close(proxy(tokens, valid)[:, 2:5], proxy(tokens[:, 2:5]))


def test_order_1_is_constant_and_the_control_of_the_others(text, small):
    proxy = NGram(1).fit(collect(Engine(small), text, ())).apply(small)
    found = proxy(torch.randint(VOCABULARY, (4, 8), generator=torch.Generator().manual_seed(0)))
    assert torch.equal(found, found[:1, :1].expand_as(found))
    predicted = Counter(
        token
        for row, length in zip(text.tokens.tolist(), text.lengths.tolist(), strict=True)
        for token in row[1:length]
    )
    assert int(found[0, 0].argmax()) == predicted.most_common(1)[0][0]
    assert NGram(3).control() == NGram(1)
    assert NGram(1).control() is None


def test_a_planted_table_is_found_again(small):
    """A corpus made by a bigram table: order 2 gives that table, and order 3 loses little by looking further."""
    rng = np.random.default_rng(1)
    table = rng.dirichlet(np.full(5, 0.5), size=5)
    tokens = np.zeros((400, 100), dtype=np.int64)
    tokens[:, 0] = rng.integers(5, size=400)
    for place in range(1, 100):
        above = table[tokens[:, place - 1]].cumsum(axis=1)
        tokens[:, place] = (rng.random((400, 1)) > above).sum(axis=1).clip(max=4)
    split = Split("train", "train", "planted", tokens, np.full(400, 100), tokens * 0)
    contexts = torch.arange(5)[:, None]
    found = Counts.of(split, 2, VOCABULARY)
    rows = found.contexts(contexts.numpy(), np.ones((5, 1), dtype=bool))
    learned = np.exp(found.log_probabilities([numbers[:, 0] for numbers in rows], 5))
    np.testing.assert_allclose(learned[:, :5], table, atol=0.02)
    assert learned[:, 5:].max() < 1e-4
    further = Counts.of(split, 3, VOCABULARY)
    pairs = np.array([[first, second] for first in range(5) for second in range(5)])
    rows = further.contexts(pairs, np.ones(pairs.shape, dtype=bool))
    learned = np.exp(further.log_probabilities([numbers[:, 1] for numbers in rows], 25))
    often = np.bincount((tokens[:, :-2] * 5 + tokens[:, 1:-1]).ravel(), minlength=25)
    error = np.abs(learned[:, :5] - table[pairs[:, 1]]).max(axis=1)
    assert (error < 3 / np.sqrt(often + 1)).all()
    assert np.average(error, weights=often) < 0.02


def test_ties_of_the_longest_context_are_told_apart_by_shorter_ones(small):
    """After 1 2 came 3 and 4, once each; after 2 mostly 4. After 7 2 came nothing: then it is what follows 2."""
    tokens = np.array([[1, 2, 3], [1, 2, 4], [5, 2, 4], [6, 2, 4], [5, 2, 8]])
    split = Split("train", "train", "ties", tokens, np.full(5, 3), tokens * 0)
    proxy = NGram(3).fit(collect(Engine(small), split, ())).apply(small)
    assert int(proxy(torch.tensor([[1, 2]]))[0, -1].argmax()) == 4
    assert int(proxy(torch.tensor([[7, 2]]))[0, -1].argmax()) == 4
    among = [3, 8, 9]
    assert among[int(proxy(torch.tensor([[5, 2]]))[0, -1, among].argmax())] == 8, "what followed 5 2"
    assert among[int(proxy(torch.tensor([[7, 2]]))[0, -1, among[::2]].argmax()) * 2] == 3, "what followed 2"


def test_it_answers_some_positions_at_a_time(text, small, tokens):
    proxy = NGram(3).fit(collect(Engine(small), text, ())).apply(small)
    clean = CleanPass(Engine(small), tokens, torch.ones_like(tokens))
    ((_, answer),) = clean.answers([proxy])
    whole = proxy(tokens)
    for positions in (slice(None), slice(2, 5), torch.tensor([0, 3, 4])):
        assert torch.equal(answer.logits(positions), whole[:, positions])
    assert answer.attention == "a table of counts has no attention"


def test_it_is_judged_with_its_control(task, subject):
    comparison = assay.compare(subject, task, [NGram(3)], sequences=12, fit_sequences=50, resamples=20)
    records = {record.proxy: record for record in comparison.record.proxies}
    assert records["NGram(order=3)"].control == "NGram(order=1)"
    assert records["NGram(order=1)"].is_control
    rows = comparison.results.query("metric == 'kl' and kind == 'all' and split == 'iid' and feature == ''")
    assert np.isfinite(rows["estimate"]).all()
    assert set(rows["proxy"]) >= {"NGram(order=3)", "NGram(order=1)"}


def test_many_tokens_and_a_large_vocabulary_are_quick():
    rng = np.random.default_rng(0)
    tokens = (rng.zipf(1.3, size=(2_000, 500)) - 1) % 50_000
    split = Split("train", "train", "a million tokens", tokens, np.full(2_000, 500), tokens * 0)
    start = time.process_time()
    counts = Counts.of(split, 4, 50_000)
    rows = counts.contexts(tokens[:4], np.ones((4, 500), dtype=bool))
    found = counts.log_probabilities([numbers[:, :16].ravel() for numbers in rows], 64)
    assert time.process_time() - start < 20
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, rtol=1e-9)
    assert max(len(level.keys) for level in counts.levels) < 1_000_000


def test_what_it_cannot_stand_for_is_refused(small, each, text):
    if each.objective != "causal":
        with pytest.raises(AssayError, match=r"predicts the next token, and 'a small .*' is judged as"):
            NGram(2).check(each, ())
    wrong = NGram(2)
    for wrong.order in (0, -1, 2.0, True):
        with pytest.raises(AssayError, match="order must be a whole number of at least 1"):
            wrong.check(small, ())
    with pytest.raises(AssayError, match=r"NGram\(order=2\) has not been fitted"):
        NGram(2).apply(small)
    with pytest.raises(AssayError, match=r"take samples from assay\.engine\.collect"):
        NGram(2).fit(Samples(()))
    alone = Split("alone", "train", "", text.tokens[:, :1], np.ones(60, dtype=np.int64), text.tokens[:, :1] * 0)
    with pytest.raises(AssayError, match="'alone' has no sequence of two tokens"):
        NGram(2).fit(Samples((), subject=small, split=alone))


def test_half_precision_subjects_are_answered_in_float32(small, text):
    half = Subject(type(small.model)(small.model.config).bfloat16(), None, "half")
    recipe = NGram(2).fit(collect(Engine(small), text, ()))
    assert recipe.apply(half)(torch.tensor([[1, 2]])).dtype == torch.float32
