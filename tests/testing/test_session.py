"""A session computes clean passes once, and never for a subject that has changed."""

import copy

import pytest
import torch

import assay
from assay import AssayError
from assay.engine import Edit, EditedSubject, Head
from assay.subjects import Subject
from assay.testing import Session, assert_faithful


def shifted(queries):
    return queries.flip(-1) + 1


@pytest.fixture
def own(subject):
    """A copy that a test may change."""
    return Subject(copy.deepcopy(subject.model), subject.tokenizer, "own")


class Calls:
    """Counts how often a module runs."""

    def __init__(self, module):
        self.count = 0
        module.register_forward_hook(self._called)

    def _called(self, *_):
        self.count += 1

    def during(self, work):
        before = self.count
        work()
        return self.count - before


def judge(subject, task, session):
    proxy = EditedSubject(subject, [Edit(Head(1, 0), queries=shifted)])
    with pytest.raises(AssertionError):
        assert_faithful(subject, proxy, task, sequences=20, resamples=10, session=session)


def test_clean_passes_are_shared(own, task):
    """Above the first layer everything runs again, the first layer's MLP only in the clean pass."""
    session, below = Session(), Calls(own.model.transformer.h[0].mlp)
    first = below.during(lambda: judge(own, task, session))
    second = below.during(lambda: judge(own, task, session))
    fresh = below.during(lambda: judge(own, task, Session()))
    assert fresh >= first - 3, "an engine is set up with a few short passes"
    assert second < first / 2


def test_no_memory_shares_nothing(own, task):
    session, below = Session(memory=0), Calls(own.model.transformer.h[0].mlp)
    judge(own, task, session)
    second = below.during(lambda: judge(own, task, session))
    third = below.during(lambda: judge(own, task, session))
    sharing = Session()
    judge(own, task, sharing)
    assert second == third > below.during(lambda: judge(own, task, sharing))


def test_memory_is_a_limit(own, task):
    session = Session(memory=2_000_000)
    judge(own, task, session)
    assert 0 < session._passes.used <= 2_000_000
    session.clear()
    assert session._passes.used == 0


def test_a_clean_pass_is_that_of_its_tokens(own):
    session = Session()
    engine = session.engine(own)
    tokens = torch.arange(12).reshape(2, 6) % own.vocabulary
    valid, shorter = torch.ones_like(tokens), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    first = session.clean_pass(engine, tokens, valid)
    assert session.clean_pass(engine, tokens.clone(), valid.clone()) is first
    for other in (session.clean_pass(engine, tokens, shorter), session.clean_pass(engine, tokens.flip(0), valid)):
        assert other is not first
    assert torch.equal(engine.logits(first.run, slice(0, 6)), engine.run(tokens, valid).logits)


def test_changed_weights_are_another_subject(own):
    session = Session()
    tokens = torch.arange(6)[None]
    before = session.engine(own).run(tokens).logits
    assert session.engine(own) is session.engine(own)
    with torch.no_grad():
        own.model.transformer.wte.weight.mul_(1.5)
    after = session.engine(own).run(tokens).logits
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, own(tokens))


def test_a_subject_is_loaded_once():
    session = Session()
    assert session.load("dyck-20-10") is session.load("dyck-20-10")
    assert session.load("dyck-20-10", seed=1) is not session.load("dyck-20-10")


def test_a_proxy_is_fitted_on_the_train_split(subject, task):
    session, recipe = Session(), assay.SVD(rank=2)
    proxy = session.proxy(subject, recipe, task, site="layer1", sequences=30)
    assert recipe.subspaces_ is None, "the recipe that was given stays unfitted"
    again = session.proxy(subject, recipe, task.split("train", 30), site="layer1")
    tokens = torch.arange(8)[None]
    assert torch.equal(proxy(tokens), again(tokens))
    assert not torch.allclose(proxy(tokens), subject(tokens), atol=1e-3)
    with pytest.raises(AssayError, match="site 'layer7'"):
        session.proxy(subject, recipe, task, site="layer7")


def test_negative_memory_is_refused():
    with pytest.raises(AssayError, match="number of bytes"):
        Session(memory=-1)
