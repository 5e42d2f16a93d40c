"""Training: batches, the recipe, and a resumed run that ends with the same bits as an undisturbed one."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from assay import AssayError
from assay.subjects import IGNORED, Batch, BucketedBatches, Recipe, dyck_model, train, write_atomically

RECIPE = Recipe(steps=25, learning_rate=3e-3, warmup_steps=4, checkpoint_every=10)


class StoppedError(Exception):
    """Stands for a killed process."""


@pytest.fixture(scope="module")
def split(task):
    return task.split("train", 500)


@pytest.fixture
def batches(split):
    return BucketedBatches(split.tokens, split.lengths, tokens_per_batch=300, seed=1)


def epoch(batches: BucketedBatches, sequences: int) -> list[Batch]:
    """Batches from step 0 until every sequence has been dealt once."""
    found: list[Batch] = []
    while sum(len(batch.tokens) for batch in found) < sequences:
        found.append(batches(len(found)))
    assert sum(len(batch.tokens) for batch in found) == sequences
    return found


def sequences_of(batch: Batch) -> list[tuple[int, ...]]:
    """Each sequence as its first token and its labels, which is all of it."""
    return [
        (int(tokens[0]), *(int(label) for label in labels if label != IGNORED))
        for tokens, labels in zip(batch.tokens, batch.labels, strict=True)
    ]


def expected_sequences(split) -> Counter[tuple[int, ...]]:
    return Counter(
        tuple(int(token) for token in row[:length]) for row, length in zip(split.tokens, split.lengths, strict=True)
    )


# -- batches --------------------------------------------------------------------------------------------------------


def test_every_sequence_comes_once_an_epoch(batches, split):
    first = epoch(batches, len(split))
    assert Counter(text for batch in first for text in sequences_of(batch)) == expected_sequences(split)


def test_second_epoch_is_complete_and_in_another_order(batches, split):
    steps = len(epoch(batches, len(split)))
    second: list[Batch] = []
    while sum(len(batch.tokens) for batch in second) < len(split):
        second.append(batches(steps + len(second)))
    assert Counter(text for batch in second for text in sequences_of(batch)) == expected_sequences(split)
    assert [sequences_of(batch) for batch in second] != [sequences_of(batches(step)) for step in range(len(second))]


def test_batches_stay_within_their_size(batches, split):
    found = epoch(batches, len(split))
    assert all(batch.tokens.size <= 300 for batch in found)
    assert np.mean([batch.tokens.size for batch in found]) > 150


def test_sequence_longer_than_the_limit_is_a_batch_of_its_own(split):
    batches = BucketedBatches(split.tokens, split.lengths, tokens_per_batch=20, seed=1)
    for batch in epoch(batches, len(split)):
        assert batch.tokens.size <= 20 or len(batch.tokens) == 1


def test_labels_are_the_next_tokens(batches):
    for step in range(5):
        batch = batches(step)
        scored = batch.labels[:, :-1] != IGNORED
        np.testing.assert_array_equal(batch.labels[:, :-1][scored], batch.tokens[:, 1:][scored])
        assert (batch.labels[:, -1] == IGNORED).all()


def test_no_label_is_padding_and_every_end_is_predicted(batches, task):
    for step in range(5):
        labels = batches(step).labels
        assert not (labels == task.pad_id).any()
        assert ((labels == task.end_id).sum(axis=1) == 1).all()


def test_batch_is_a_function_of_seed_and_step(split):
    def make(seed):
        return BucketedBatches(split.tokens, split.lengths, tokens_per_batch=300, seed=seed)

    ascending = make(1)
    forward = [ascending(step) for step in range(60)]
    for step in (59, 3, 40, 0):
        for other in (make(1), ascending):
            np.testing.assert_array_equal(other(step).tokens, forward[step].tokens)
            np.testing.assert_array_equal(other(step).labels, forward[step].labels)
    assert any(sequences_of(make(2)(step)) != sequences_of(forward[step]) for step in range(5))


# -- the recipe -----------------------------------------------------------------------------------------------------


def test_learning_rate_by_hand():
    recipe = Recipe(steps=14, learning_rate=1.0, warmup_steps=4)
    assert [recipe.rate(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert recipe.rate(4) == 1.0
    assert recipe.rate(9) == pytest.approx(0.5)
    assert recipe.rate(13) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.9)))
    assert replace(recipe, decay=False).rate(13) == 1.0


# -- training -------------------------------------------------------------------------------------------------------


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal_bits(one, other) -> None:
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def interrupted(model, batches, recipe, checkpoint, *, at: int):
    def stop(progress):
        if progress.step == at:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(model, batches, recipe, checkpoint=checkpoint, report=stop)


def test_training_lowers_the_loss(task, batches, tmp_path):
    losses = []
    model = dyck_model(task, seed=0)
    recipe = replace(RECIPE, steps=60)
    trained = train(model, batches, recipe, checkpoint=tmp_path / "c.pt", report=lambda p: losses.append(p.loss))
    assert losses[0] == pytest.approx(math.log(len(task.vocabulary)), abs=0.2)
    assert trained.final_loss < losses[0] - 0.3
    assert trained.steps == 60
    assert not model.training


def test_one_step_by_hand(task, batches, tmp_path):
    """The loss is the mean over labelled positions, and the update is AdamW's after clipping the gradient."""
    model, reference = dyck_model(task, seed=0), dyck_model(task, seed=0)
    recipe = Recipe(steps=1, learning_rate=1e-2, weight_decay=0.1, clip_norm=0.5)
    seen = []
    trained = train(model, batches, recipe, checkpoint=tmp_path / "c.pt", report=seen.append)

    batch = batches(0)
    labels = torch.from_numpy(batch.labels)
    log_probabilities = reference(input_ids=torch.from_numpy(batch.tokens)).logits.log_softmax(-1)
    scored = labels != IGNORED
    loss = -log_probabilities[scored, labels[scored]].mean()
    loss.backward()
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in reference.parameters()))
    assert norm > 0.5, "clipping is not exercised"
    with torch.no_grad():
        for parameter in reference.parameters():
            gradient = parameter.grad * (0.5 / norm)
            parameter.sub_(1e-2 * (0.1 * parameter + gradient / (gradient.abs() + 1e-8)))
    assert trained.final_loss == pytest.approx(loss.item(), abs=1e-5)
    assert trained.tokens == int(scored.sum())
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=0)
    assert [progress.step for progress in seen] == [1]


@pytest.mark.parametrize("at", [11, 20, 24])
def test_resumed_run_ends_with_the_same_bits(task, batches, tmp_path, at):
    undisturbed = dyck_model(task, seed=0)
    whole = train(undisturbed, batches, RECIPE, checkpoint=tmp_path / "whole.pt")
    interrupted(dyck_model(task, seed=0), batches, RECIPE, tmp_path / "part.pt", at=at)
    resumed = dyck_model(task, seed=99)
    steps = []
    rest = train(
        resumed, batches, RECIPE, checkpoint=tmp_path / "part.pt", report=lambda progress: steps.append(progress.step)
    )
    assert steps == list(range(1 + 10 * ((at - 1) // 10), 26))
    assert_equal_bits(weights(undisturbed), weights(resumed))
    assert (rest.steps, rest.tokens, rest.final_loss) == (whole.steps, whole.tokens, whole.final_loss)


def test_resumed_run_with_dropout_ends_with_the_same_bits(task, batches, tmp_path):
    def fresh():
        model = dyck_model(task, seed=0)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.2
        torch.manual_seed(4)
        return model

    undisturbed = fresh()
    train(undisturbed, batches, RECIPE, checkpoint=tmp_path / "whole.pt")
    interrupted(fresh(), batches, RECIPE, tmp_path / "part.pt", at=13)
    resumed = fresh()
    torch.manual_seed(1234)
    train(resumed, batches, RECIPE, checkpoint=tmp_path / "part.pt")
    assert_equal_bits(weights(undisturbed), weights(resumed))


def test_interruption_before_the_first_checkpoint_starts_over(task, batches, tmp_path):
    interrupted(dyck_model(task, seed=0), batches, RECIPE, tmp_path / "c.pt", at=9)
    assert not (tmp_path / "c.pt").exists()


def test_finished_run_is_only_read_back(task, batches, tmp_path):
    model = dyck_model(task, seed=0)
    first = train(model, batches, RECIPE, checkpoint=tmp_path / "c.pt")
    again = dyck_model(task, seed=1)

    def never(progress):
        raise AssertionError("a finished run took another step")

    second = train(again, batches, RECIPE, checkpoint=tmp_path / "c.pt", report=never)
    assert_equal_bits(weights(model), weights(again))
    assert second.steps == first.steps == 25
    assert second.final_loss == first.final_loss
    assert not again.training


def test_checkpoint_of_another_recipe_is_refused(task, batches, tmp_path):
    interrupted(dyck_model(task, seed=0), batches, RECIPE, tmp_path / "c.pt", at=12)
    for other in (replace(RECIPE, learning_rate=1e-4), replace(RECIPE, betas=(0.8, 0.9)), replace(RECIPE, steps=30)):
        with pytest.raises(AssayError, match="another recipe"):
            train(dyck_model(task, seed=0), batches, other, checkpoint=tmp_path / "c.pt")


def test_loss_that_is_no_number_is_refused(task, batches, tmp_path):
    model = dyck_model(task, seed=0)
    with torch.no_grad():
        model.transformer.wte.weight[0, 0] = float("nan")
    with pytest.raises(AssayError, match="loss became nan at step 0; lower the learning rate"):
        train(model, batches, RECIPE, checkpoint=tmp_path / "c.pt")
    assert not (tmp_path / "c.pt").exists()


def test_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "folder" / "kept.txt"
    write_atomically(path, lambda part: part.write_text("old"))

    def fail(part):
        part.write_text("half of the n")
        raise StoppedError

    with pytest.raises(StoppedError):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [child.name for child in path.parent.iterdir()] == ["kept.txt"]
