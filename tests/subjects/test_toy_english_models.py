"""The model of toy English: its batches, what it is trained with, and what is shipped."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from assay.subjects import IGNORED, TOY_ENGLISH_RECIPE, Batch, PackedDocuments, Recipe, toy_english_model, train
from assay.tasks.toy_english import BOS, CONTEXT, ID, PAD, VOCABULARY

TINY = {"width": 24, "layers": 2, "heads": 2}
RECIPE = Recipe(steps=12, learning_rate=5e-3, warmup_steps=2, checkpoint_every=5, cooldown=0.3)


@pytest.fixture(scope="module")
def batch() -> Batch:
    return PackedDocuments(0, rows=4)(0)


def test_the_reference_model_is_a_llama_of_three_layers_of_four_heads():
    model = toy_english_model(0)
    config = model.config
    assert type(model).__name__ == "LlamaForCausalLM"
    assert (config.num_hidden_layers, config.num_attention_heads, config.hidden_size) == (3, 4, 96)
    assert config.vocab_size == len(VOCABULARY)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert sum(part.numel() for part in model.parameters()) == 381_216
    assert torch.equal(model.lm_head.weight, toy_english_model(0).lm_head.weight)
    assert not torch.equal(model.lm_head.weight, toy_english_model(1).lm_head.weight)


def test_batches_depend_on_seed_and_step_alone(batch):
    again = PackedDocuments(0, rows=4)
    again(3)
    for array in ("tokens", "labels", "weights", "documents"):
        assert np.array_equal(getattr(again(0), array), getattr(batch, array))
    assert not np.array_equal(again(1).tokens, batch.tokens)
    assert not np.array_equal(PackedDocuments(1, rows=4)(0).tokens, batch.tokens)


def test_rows_hold_whole_documents_one_behind_the_other(batch):
    assert batch.documents is not None
    assert batch.weights is not None
    assert (batch.tokens != PAD).mean() > 0.85
    for tokens, labels, weights, documents in zip(
        batch.tokens, batch.labels, batch.weights, batch.documents, strict=True
    ):
        numbers = documents[documents > 0]
        assert (np.diff(numbers) >= 0).all()
        for number in range(1, numbers.max() + 1):
            own = documents == number
            said, asked = tokens[own], labels[own]
            assert said[0] == BOS
            assert said[-1] == ID["."]
            assert asked[:-1].tolist() == said[1:].tolist()
            assert asked[-1] == IGNORED, "nothing is asked across documents"
            assert weights[own][-3] == 25, "the answer, which a full stop follows"
        assert (labels[documents == 0] == IGNORED).all()
        assert set(weights.tolist()) <= {1.0, 25.0}


def test_a_document_in_a_row_is_read_as_if_it_stood_alone(batch, monkeypatch, tmp_path):
    """What the training gives the model, row by row, against each document by itself."""
    model = toy_english_model(0, **TINY)
    seen = {}
    forward = model.forward

    def spy(**given):
        seen["logits"] = forward(**given).logits.detach()
        return forward(**given)

    monkeypatch.setattr(model, "forward", spy)
    train(model, lambda step: batch, replace(RECIPE, steps=1, learning_rate=0.0), checkpoint=tmp_path / "one.pt")
    assert batch.documents is not None
    with torch.no_grad():
        for row in range(2):
            for number in range(1, int(batch.documents[row].max()) + 1):
                own = np.flatnonzero(batch.documents[row] == number)
                alone = forward(input_ids=torch.from_numpy(batch.tokens[row : row + 1, own])).logits[0]
                torch.testing.assert_close(seen["logits"][row, own], alone, atol=1e-5, rtol=1e-5)


def test_the_loss_is_the_mean_over_weighted_labels(batch, tmp_path):
    model = toy_english_model(0, **TINY)
    weights = np.array([[2.0, 1.0, 25.0, 1.0]], dtype=np.float32)
    tokens = np.array([[0, 5, 6, 7]])
    labels = np.array([[5, IGNORED, 7, 9]])
    with torch.no_grad():
        logs = model(input_ids=torch.from_numpy(tokens)).logits[0].log_softmax(dim=-1)
    expected = -(2 * logs[0, 5] + 25 * logs[2, 7] + logs[3, 9]) / 28
    done = train(
        model, lambda step: Batch(tokens, labels, weights), replace(RECIPE, steps=1), checkpoint=tmp_path / "one.pt"
    )
    assert done.final_loss == pytest.approx(float(expected), rel=1e-5)


def test_a_cooldown_holds_the_rate_and_then_falls_in_a_line():
    recipe = Recipe(steps=1_000, learning_rate=1.0, warmup_steps=100, cooldown=0.25)
    assert recipe.rate(49) == 0.5
    assert [recipe.rate(step) for step in (100, 500, 750)] == [1.0, 1.0, 1.0]
    assert recipe.rate(875) == pytest.approx(0.5)
    assert recipe.rate(999) == pytest.approx(1 / 250)


class StoppedError(Exception):
    """Stands for a killed process."""


def test_a_resumed_training_ends_with_the_same_bits_and_learns(tmp_path):
    batches = PackedDocuments(0, rows=4)
    losses = []
    whole = toy_english_model(0, **TINY)
    train(whole, batches, RECIPE, checkpoint=tmp_path / "a.pt", report=lambda now: losses.append(now.loss))

    def stop(now):
        if now.step == 8:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(toy_english_model(0, **TINY), batches, RECIPE, checkpoint=tmp_path / "b.pt", report=stop)
    resumed = toy_english_model(5, **TINY)
    train(resumed, batches, RECIPE, checkpoint=tmp_path / "b.pt")
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    assert losses[-2] < losses[0] - 0.4


def test_the_recipe_reads_rows_as_long_as_the_context():
    assert PackedDocuments(0, rows=1)(0).tokens.shape == (1, CONTEXT)
    assert max(TOY_ENGLISH_RECIPE.rate(step) for step in range(TOY_ENGLISH_RECIPE.steps)) == 1.0
