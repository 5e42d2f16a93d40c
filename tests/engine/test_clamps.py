"""Edits in force while gradients are taken: what is constant carries none, the rest those of a pass by hand."""

import pytest
import torch
from torch.nn.functional import cross_entropy, layer_norm, linear
from transformers import GPT2Config, GPT2LMHeadModel

from assay import AssayError
from assay.engine import Block, Edit, Engine, Head
from assay.subjects import Subject

TOKENS = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 1, 0, 2]])
LABELS = torch.tensor([4, 1])
WIDTH, HEADS = 8, 2


def fresh() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=9, n_positions=5, n_embd=WIDTH, n_layer=2, n_head=HEADS, n_inner=3, initializer_range=0.4,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False,
    )  # fmt: skip
    return GPT2LMHeadModel(config).double()


BEFORE = torch.eye(5, dtype=torch.float64).roll(-1, dims=1).T.contiguous()


def by_hand(model: GPT2LMHeadModel, *, clamped: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of the last position and what head 1 of layer 1 attends to from there, in plain products."""
    weights = dict(model.named_parameters())
    x = weights["transformer.wte.weight"][TOKENS] + weights["transformer.wpe.weight"]

    def norm(x, name):
        return layer_norm(x, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    def conv(x, name):
        return linear(x, weights[f"{name}.weight"].T, weights[f"{name}.bias"])

    hidden = torch.ones(5, 5).triu(1).bool()
    for layer in range(2):
        block = f"transformer.h.{layer}"
        parts = conv(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn").split(WIDTH, dim=-1)
        q, k, v = (part.reshape(2, 5, HEADS, -1).transpose(1, 2) for part in parts)
        pattern = (q @ k.transpose(-1, -2) / (WIDTH / HEADS) ** 0.5).masked_fill(hidden, -torch.inf).softmax(dim=-1)
        if clamped and layer == 0:
            pattern = torch.stack((BEFORE.expand(2, 5, 5), pattern[:, 1]), dim=1)
        x = x + conv((pattern @ v).transpose(1, 2).flatten(2), f"{block}.attn.c_proj")
        inner = torch.nn.functional.gelu(conv(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc"), approximate="tanh")
        x = x + conv(inner, f"{block}.mlp.c_proj")
    return linear(norm(x, "transformer.ln_f"), weights["lm_head.weight"])[:, -1], pattern[:, 1, -1]


def gradients(model, loss):
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)
    return dict(zip(dict(model.named_parameters()), found, strict=True))


@pytest.mark.parametrize("clamped", [True, False], ids=["clamped", "read"])
def test_gradients_under_clamps_are_those_of_a_pass_by_hand(clamped):
    model = fresh()
    engine = Engine(Subject(model, None, "small"))
    seen = []

    def before(pattern, visible):
        return BEFORE.expand_as(pattern)

    def read(pattern, visible):
        seen.append(pattern)
        return pattern

    edits = [Edit(Head(1, 1), pattern=read), *([Edit(Head(0, 0), pattern=before)] if clamped else [])]
    with engine.clamped(edits):
        logits = model(input_ids=TOKENS).logits[:, -1]
        found = gradients(model, cross_entropy(logits, LABELS) + (seen[0][:, -1] ** 2).sum())
    expected, pattern = by_hand(model, clamped=clamped)
    wanted = gradients(model, cross_entropy(expected, LABELS) + (pattern**2).sum())
    torch.testing.assert_close(logits, expected, atol=1e-10, rtol=0)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=1e-10, rtol=0, msg=name)
    queries = found["transformer.h.0.attn.c_attn.weight"][:, : WIDTH // HEADS]
    assert torch.equal(queries, torch.zeros_like(queries)) is clamped


def test_behind_the_block_the_model_is_as_it_was():
    model = fresh()
    engine = Engine(Subject(model, None, "small"))
    with torch.no_grad():
        before = model(input_ids=TOKENS).logits
        with engine.clamped([Edit(Head(0, 0), pattern=lambda pattern, visible: torch.zeros_like(pattern))]):
            within = model(input_ids=TOKENS).logits
        assert not torch.equal(before, within)
        assert torch.equal(before, model(input_ids=TOKENS).logits)


@pytest.mark.parametrize(
    ("edits", "words"),
    [([Edit(Block(0), mlp=lambda x: x)], "heads alone can be clamped"),
     ([Edit(Head(2, 0), values=lambda x: x)], "layer2.head0 is not in"),
     ([Edit(Head(0, 0), values=lambda x: x)] * 2, "two edits of layer0.head0")],
    ids=["block", "unknown", "twice"],
)  # fmt: skip
def test_what_cannot_be_clamped_is_refused(edits, words):
    engine = Engine(Subject(fresh(), None, "small"))
    with pytest.raises(AssayError, match=words), engine.clamped(edits):
        pass
