"""Training that is looked at and acted on: events, kept models, clamps, losses, repeated documents, wrong labels."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from assay import AssayError
from assay.subjects import (
    IGNORED,
    Batch,
    Event,
    MaxOfKConfig,
    MaxOfKForCausalLM,
    Recipe,
    Repeated,
    Watch,
    corrupted,
    max_of_k_batches,
    train,
)
from assay.tasks import MaxOfK

TASK = MaxOfK(length=2, vocabulary=5)
RECIPE = Recipe(steps=24, learning_rate=1e-2, decay=False, checkpoint_every=10)


class StoppedError(Exception):
    """Stands for a killed process."""


def fresh(seed: int = 0) -> MaxOfKForCausalLM:
    torch.manual_seed(seed)
    return MaxOfKForCausalLM(MaxOfKConfig(vocab_size=5, length=2, hidden_size=8, head_dim=8))


def batches():
    return max_of_k_batches(TASK, batch=16, seed=3)


def size(model) -> dict[str, float]:
    assert not model.training
    assert not torch.is_grad_enabled()
    torch.rand(3)
    return {"size": sum(float(value.norm()) for value in model.parameters()), "half": 0.5}


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_step_of_descent_with_momentum_by_hand():
    recipe = Recipe(steps=2, learning_rate=0.1, betas=(0.9, 0.0), weight_decay=0.01, decay=False, clip_norm=None,
                    optimizer="SGD")  # fmt: skip
    model, other = fresh(), fresh()
    train(model, batches(), recipe, checkpoint=None)
    speed = [torch.zeros_like(value) for value in other.parameters()]
    for step in range(2):
        batch = batches()(step)
        labels = torch.from_numpy(batch.labels)
        chances = other(input_ids=torch.from_numpy(batch.tokens)).logits.log_softmax(-1)
        loss = -chances[labels != IGNORED, labels[labels != IGNORED]].mean()
        found = torch.autograd.grad(loss, list(other.parameters()))
        with torch.no_grad():
            for value, moved, gradient in zip(other.parameters(), speed, found, strict=True):
                moved.mul_(0.9).add_(gradient + 0.01 * value)
                value.sub_(0.1 * moved)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=0)


def test_a_training_is_looked_at_and_its_models_are_kept():
    alone, model = fresh(), fresh()
    train(alone, batches(), RECIPE, checkpoint=None)
    passed = Event("grown", "size", 0.0, keep=(0, 3))
    never = Event("never", "half", 0.5)
    below = Event("below", "half", 0.6, above=False, keep=())
    done = train(model, batches(), RECIPE, checkpoint=None,
                 watch=Watch(size, every=10, at=(0, 7), events=(passed, never, below)))  # fmt: skip
    assert [line["step"] for line in done.log] == [0, 10, 20, 24]
    assert done.events == {"grown": 0, "below": 0}
    assert sorted(done.kept) == [0, 3, 7]
    assert same(done.kept[0], weights(fresh()))
    assert same(weights(model), weights(alone)), "looking changes nothing"
    short = fresh()
    train(short, batches(), replace(RECIPE, steps=7), checkpoint=None)
    assert same(done.kept[7], weights(short))
    with torch.no_grad():
        assert done.log[-1]["size"] == size(model)["size"]


def test_an_event_ends_the_training_after_the_last_model_that_is_kept():
    sizes = [line["size"] for line in
             train(fresh(), batches(), RECIPE, checkpoint=None, watch=Watch(size, every=1)).log]  # fmt: skip
    grown = next(step for step, value in enumerate(sizes) if value > sizes[0] + 0.2)
    event = Event("grown", "size", sizes[0] + 0.2, keep=(0, 2), stop=True)
    model = fresh()
    done = train(model, batches(), RECIPE, checkpoint=None, watch=Watch(size, every=1, events=(event,)))
    assert 0 < grown < 20
    assert done.events == {"grown": grown}
    assert done.steps == grown + 2
    assert sorted(done.kept) == [grown, grown + 2]
    assert same(done.kept[grown + 2], weights(model))


@pytest.mark.parametrize("at", [9, 10, 17])
def test_an_interrupted_training_sees_the_same_events_and_keeps_the_same_models(tmp_path, at):
    with torch.no_grad():
        event = Event("grown", "size", size(fresh().eval())["size"] + 0.1, keep=(1, 12))
    watch = Watch(size, every=4, at=(2, 9), events=(event,))
    whole, part = fresh(), fresh()
    undisturbed = train(whole, batches(), RECIPE, checkpoint=tmp_path / "whole.pt", watch=watch)

    def stop(progress):
        if progress.step == at:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(fresh(), batches(), RECIPE, checkpoint=tmp_path / "part.pt", watch=watch, report=stop)
    resumed = train(part, batches(), RECIPE, checkpoint=tmp_path / "part.pt", watch=watch)
    assert resumed.log == undisturbed.log
    assert resumed.events == undisturbed.events
    assert sorted(resumed.kept) == sorted(undisturbed.kept)
    assert all(same(resumed.kept[step], undisturbed.kept[step]) for step in undisturbed.kept)
    assert same(weights(part), weights(whole))
    again = train(fresh(9), batches(), RECIPE, checkpoint=tmp_path / "part.pt", watch=watch)
    assert (again.log, again.events) == (undisturbed.log, undisturbed.events)


def test_every_loss_is_computed_within_what_is_around_it():
    entered, made = [], []

    @contextmanager
    def around(step, batch):
        entered.append(step)
        made.append(batch.tokens)
        yield
        entered.append(-step)

    def loss(model, batch):
        assert entered[-1] == len(made) - 1
        assert batch.tokens is made[-1]
        return sum((value**2).sum() for value in model.parameters())

    model = fresh()
    before = sum(float((value**2).sum()) for value in weights(model).values())
    done = train(model, batches(), replace(RECIPE, steps=3), checkpoint=None, loss=loss, around=around)
    assert entered == [0, 0, 1, -1, 2, -2]
    assert sum(float((value**2).sum()) for value in weights(model).values()) < before
    assert before > done.final_loss > 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Watch(size, every=0), "every is 0"),
        (lambda: Watch(size, at=(-1,)), "at is"),
        (lambda: Watch(size, events=(Event("a", "x", 0), Event("a", "y", 0))), "its own name"),
        (lambda: Event("a", "x", float("nan")), "finite"),
        (lambda: Event("a", "x", 0.0, keep=(-1,)), "keep is"),
        (lambda: train(fresh(), batches(), RECIPE, checkpoint=None,
                       watch=Watch(size, events=(Event("a", "siez", 0),))), "siez"),
    ],
    ids=["every", "at", "names", "threshold", "keep", "measure"],
)  # fmt: skip
def test_wrong_settings_are_refused(make, words):
    with pytest.raises(AssayError, match=words):
        make()


def test_an_unknown_optimizer_is_refused():
    recipe = Recipe(steps=1, learning_rate=1.0)
    # Past the constructor, whose types are checked in the tests.
    object.__setattr__(recipe, "optimizer", "adam")
    with pytest.raises(AssayError, match=r"optimizer 'adam'.*AdamW"):
        recipe.__post_init__()


# -- data ------------------------------------------------------------------------------------------------------------


def rows(values) -> Batch:
    tokens = np.array(values, dtype=np.int64)[:, None] * np.ones((1, 3), dtype=np.int64)
    return Batch(tokens, tokens + 1)


@pytest.mark.parametrize(("share", "again"), [(0.0, 0), (0.5, 5), (0.9, 9), (1.0, 10)], ids=["0", "5", "9", "all"])
def test_a_share_of_every_batch_comes_again(share, again):
    repeated = Repeated(lambda step: rows(range(100, 110)), rows([1, 2, 3, 4]), share=share, seed=0)
    seen = np.concatenate([repeated(step).tokens[:, 0] for step in range(200)])
    assert (repeated(5).labels == repeated(5).tokens + 1).all()
    assert (repeated(5).tokens == repeated(5).tokens).all()
    old = seen[seen < 100]
    assert len(old) == again * 200
    assert repeated.repeats(10, 200) == again * 200 / 4
    if again:
        counts = np.bincount(old, minlength=5)[1:]
        expected = repeated.repeats(10, 200)
        assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)
    assert (repeated(0).tokens[: 10 - again, 0] == np.arange(100, 110 - again)).all()


def test_documents_of_another_form_are_refused():
    with pytest.raises(AssayError, match="do not fit"):
        Repeated(lambda step: rows([1, 2]), Batch(np.ones((1, 4), int), np.ones((1, 4), int)), share=1, seed=0)(0)
    weighted = Batch(np.ones((1, 3), int), np.ones((1, 3), int), np.ones((1, 3), np.float32))
    with pytest.raises(AssayError, match=r"weights.*none"):
        Repeated(lambda step: rows([1, 2]), weighted, share=1, seed=0)(0)
    with pytest.raises(AssayError, match=r"share is 1\.5"):
        Repeated(lambda step: rows([1, 2]), rows([1]), share=1.5, seed=0)
    with pytest.raises(AssayError, match="at least one"):
        Repeated(lambda step: rows([1, 2]), rows(np.zeros(0)), share=0.5, seed=0)


def test_exactly_a_share_of_labels_is_wrong_and_evenly_so():
    labels = np.random.default_rng(0).integers(7, size=(300, 70))
    found, wrong = corrupted(labels, 7, 0.35, seed=1)
    assert wrong.sum() == round(0.35 * labels.size)
    assert ((found != labels) == wrong).all(), "what is replaced is wrong, and nothing else"
    assert 0 <= found.min() <= found.max() < 7
    moved = np.bincount((found - labels)[wrong] % 7, minlength=7)[1:]
    assert np.abs(moved - wrong.sum() / 6).max() < 5 * np.sqrt(wrong.sum() / 6)
    again, _ = corrupted(labels, 7, 0.35, seed=1)
    assert (again == found).all()
    assert (corrupted(labels, 7, 0.35, seed=2)[0] != found).any()


@pytest.mark.parametrize(
    ("labels", "values", "share", "words"),
    [([0, 1], 2, 1.5, "share"), ([0], 1, 0.5, "at least 2"), ([0, 3], 3, 0.5, "run from 0 to 3")],
    ids=["share", "values", "labels"],
)  # fmt: skip
def test_labels_that_cannot_be_made_wrong_are_refused(labels, values, share, words):
    with pytest.raises(AssayError, match=words):
        corrupted(np.array(labels), values, share, seed=0)
