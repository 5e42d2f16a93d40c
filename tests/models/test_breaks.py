"""The block that was changed is found, and not those that inherit its error."""

import copy

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import assay
from assay.models import breaks
from assay.models._breaks import _suspect
from assay.subjects import Subject
from assay.tasks import Split


def llama(layers=4, width=16, seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=40, hidden_size=width, intermediate_size=32, num_hidden_layers=layers,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
                         initializer_range=0.2)  # fmt: skip
    return Subject(LlamaForCausalLM(config), None, "llama")


@pytest.fixture(scope="module")
def split():
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, 20, 12)
    tokens = rng.integers(0, 40, (12, int(lengths.max())))
    kinds = np.where(np.arange(tokens.shape[1])[None] < lengths[:, None] - 1, 0, -1)
    return Split("iid", "iid", "random", tokens, lengths, kinds)


def changed(subject, layer, size=0.2):
    model = copy.deepcopy(subject.model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.model.layers[layer].parameters():
            parameter.add_(size * parameter.std() * torch.randn(parameter.shape, generator=generator))
    return Subject(model, None, "changed")


@pytest.mark.parametrize("layer", range(4))
def test_a_planted_block_is_found_exactly(split, layer):
    base = llama()
    found = breaks(base, changed(base, layer), split)
    local = found.blocks["local"].to_numpy()
    assert found.suspect == layer
    assert local[layer] > 1e-2
    assert (np.delete(local, layer) == 0).all(), "the other blocks are the same and get the same input"
    accumulated = found.blocks["accumulated"].to_numpy()
    assert (accumulated[:layer] == 0).all()
    assert (accumulated[layer:] > 0).all(), "what follows carries the error on"


def test_by_hand(split):
    """One sequence at a time and without hooks: block by block with the model's own modules."""
    base = llama(layers=2)
    other = changed(base, 0)
    found = breaks(base, other, split).blocks
    parts = np.zeros((2, 4))
    for row in range(len(split)):
        tokens = torch.from_numpy(split.tokens[row : row + 1, : split.lengths[row]])
        states = []
        for model in (base.model.model, other.model.model):
            with torch.no_grad():
                states.append(model(tokens, output_hidden_states=True).hidden_states)
        model, changed_model = base.model.model, other.model.model
        positions = torch.arange(tokens.shape[1])[None]
        with torch.no_grad():
            rotary = model.rotary_emb(states[0][0], position_ids=positions)
            mask = torch.full((tokens.shape[1],) * 2, -1e9).triu(1)[None, None]
            made = changed_model.layers[0](states[0][0], attention_mask=mask, position_embeddings=rotary)
            made = made[0] if isinstance(made, tuple) else made
        # transformers' last hidden state is behind the final norm; the first block's is not.
        parts[0] += [
            float((states[1][1] - states[0][1]).double().square().sum()),
            float(states[0][1].double().square().sum()),
            float((made - states[0][1]).double().square().sum()),
            0,
        ]
    assert found["accumulated"][0] == pytest.approx(np.sqrt(parts[0, 0] / parts[0, 1]), rel=1e-4)
    assert found["local"][0] == pytest.approx(np.sqrt(parts[0, 2] / parts[0, 1]), rel=1e-4)
    assert found["local"][0] == pytest.approx(found["accumulated"][0], rel=1e-5), "nothing comes before the first block"


def test_a_copy_breaks_nowhere(split):
    base = llama()
    found = breaks(base, Subject(copy.deepcopy(base.model), None, "copy"), split)
    assert (found.blocks[["local", "accumulated"]] == 0).all(axis=None)
    np.testing.assert_allclose(found.blocks["cosine"], 1)
    assert (found.suspect, found.first_large, found.reason) == (None, None, None)


def test_an_error_everywhere_stands_out_nowhere(split):
    base = llama()
    model = copy.deepcopy(base.model)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.copy_(parameter.bfloat16().float())
    found = breaks(base, Subject(model, None, "rounded"), split)
    assert (found.blocks["local"] > 0).all()
    assert found.suspect is None


@pytest.mark.parametrize(("local", "expected"), [
    ([0, 0, 0.1, 0], 2), ([0.1, 0.1, 0.4, 0.1], 2), ([0.1, 0.1, 0.29, 0.1], None), ([0, 1e-7, 0, 0], None),
    ([0.5], 0), ([0.0], None), ([np.nan, np.nan], None), ([0.4, 0.1, 0.9, 0.1, 0.1], 0),
])  # fmt: skip
def test_what_stands_out(local, expected):
    assert _suspect(np.array(local)) == expected


def test_other_shapes_are_skipped_with_a_reason(split):
    base = llama()
    found = breaks(base, llama(layers=3), split)
    assert found.reason == "the subject has 4 blocks and the other model 3"
    assert found.blocks["accumulated"].isna().all()
    narrow = breaks(base, llama(width=24), split)
    assert narrow.reason == "the residual streams of the two models are not equally wide"


def test_on_a_shipped_model_with_one_block_at_three_bits():
    subject = assay.load("code-python")
    rounded = {}
    for bits_of in ((8, 8, 3, 8), (8, 8, 8, 8)):
        model = copy.deepcopy(subject.model)
        with torch.no_grad():
            for block, bits in zip(model.transformer.h, bits_of, strict=True):
                for parameter in block.parameters():
                    if parameter.dim() == 2:
                        step = parameter.abs().amax(dim=0, keepdim=True) / (2 ** (bits - 1) - 1)
                        parameter.copy_((parameter / step).round() * step)
        rounded[bits_of] = Subject(model, None, "rounded")
    task = assay.tasks.Text(
        subject.tokenizer, None, ["def f(a, b):", "    return a + b", "class Plain:"], {"x": ["if y"]}
    )
    found = breaks(subject, rounded[8, 8, 3, 8], task.split("iid", 3))
    assert found.suspect == 2
    assert breaks(subject, rounded[8, 8, 8, 8], task.split("iid", 3)).suspect is None
