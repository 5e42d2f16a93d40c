"""Perceptrons as language models: at the last position they are the perceptron, and the engine reads and edits it."""

import numpy as np
import pytest
import torch

import assay
from assay import AssayError
from assay.engine import Block, Edit, Engine, Head
from assay.subjects import Subject, pooled_mlp

SIZES = {"length": 4, "vocabulary": 11, "answers": 3, "seed": 1}
TOKENS = torch.tensor([[3, 5, 7, 9, 0], [4, 6, 8, 10, 1]])


def by_hand(model, tokens, activation):
    """The perceptron, in numpy and float64."""
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    found = [activation(weights["embed_tokens.weight"][tokens.numpy()].sum(axis=1))]
    for number in range(len(model.config.hidden_sizes) - 1):
        prefix = f"layers.0.mlp.hidden.{number}"
        found.append(activation(found[-1] @ weights[f"{prefix}.weight"].T + weights.get(f"{prefix}.bias", 0)))
    return found, found[-1] @ weights["lm_head.weight"].T + weights.get("lm_head.bias", 0)


@pytest.mark.parametrize(
    ("name", "bias", "hidden"), [("relu", True, (6, 5)), ("tanh", False, (6, 5, 4)), ("square", False, (7,))]
)
def test_it_is_the_perceptron_at_the_last_position(name, bias, hidden):
    activation = {"relu": lambda x: np.maximum(x, 0), "tanh": np.tanh, "square": np.square}[name]
    model = pooled_mlp(**SIZES, hidden=hidden, activation=name, bias=bias).eval()
    layers, logits = by_hand(model, TOKENS[:, :4], activation)
    with torch.no_grad():
        for found, expected in zip(model.hidden_layers(TOKENS[:, :4]), layers, strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_allclose(model.at_last(TOKENS[:, :4]), logits, atol=1e-5)
    np.testing.assert_allclose(Subject(model, None, "m")(TOKENS)[:, 3], logits, atol=1e-5)
    assert [linear.in_features for linear in model.readers()] == list(hidden)


def test_pre_activations_and_last_hidden_layer_are_sites():
    model = pooled_mlp(**SIZES, hidden=(6, 5))
    engine = Engine(Subject(model, None, "m"))
    run = engine.run(TOKENS, read=("outputs", "mlp"))
    with torch.no_grad():
        first, last = model.hidden_layers(TOKENS[:, :4])
        torch.testing.assert_close(torch.relu(run.outputs[0][:, 0, 3]), first)
        torch.testing.assert_close(run.mlp[0][:, 3], last)
        nothing = engine.run(TOKENS, edits=[Edit(Block(0), mlp=torch.zeros_like)]).logits
        torch.testing.assert_close(nothing, model.lm_head.bias.expand_as(nothing))
        silent = engine.run(TOKENS, edits=[Edit(Head(0, 0), outputs=torch.zeros_like)]).logits
        expected = model.lm_head(torch.relu(model.layers[0].mlp.hidden[0].bias))
        torch.testing.assert_close(silent, expected.expand_as(silent))


def test_it_is_read_again_from_a_folder(tmp_path):
    model = pooled_mlp(**SIZES, hidden=(6, 5), deviation=0.3)
    model.save_pretrained(tmp_path / "m")
    again = assay.load(tmp_path / "m")
    assert torch.equal(again(TOKENS), Subject(model, None, "m")(TOKENS))
    assert torch.equal(pooled_mlp(**SIZES, hidden=(6, 5), deviation=0.3).lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"activation": "reul"}, "did you mean 'relu'"),
        ({"hidden": ()}, "at least one hidden layer"),
        ({"hidden": (4, 0)}, "sizes must be at least 1"),
        ({"answers": 11}, "larger than the answers"),
    ],
)
def test_sizes_that_no_perceptron_has_are_refused(wrong, message):
    with pytest.raises(AssayError, match=message):
        pooled_mlp(**{**SIZES, "hidden": (4,), **wrong})
