"""The architectures and recipes of the reference models that Assay trains and ships."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from assay._given import checked
from assay.subjects._train import Recipe
from assay.tasks import Code, Dyck

DYCK_TOKENS_PER_BATCH = 4_000

DYCK_RECIPE = Recipe(
    steps=12_000,
    learning_rate=3e-3,
    betas=(0.9, 0.98),
    weight_decay=0.01,
    warmup_steps=300,
)

CODE_TOKENS_PER_BATCH = 3_000

CODE_RECIPE = Recipe(
    steps=4_500,
    learning_rate=2e-3,
    betas=(0.9, 0.98),
    weight_decay=0.01,
    warmup_steps=200,
)


@checked
def dyck_model(task: Dyck, seed: int) -> GPT2LMHeadModel:
    """A fresh reference model: GPT-2 with 2 layers of 1 head, width 32, MLP 128, learned positions.

    The widths are those reported for arXiv 2312.03656; the activation is the tanh form of GELU in its fused version.
    """
    return _fresh(task, seed, width=32, layers=2, heads=1)


@checked
def code_model(task: Code, seed: int, *, width: int = 128, layers: int = 4, heads: int = 4) -> GPT2LMHeadModel:
    """A fresh reference model: GPT-2 with 4 layers of 4 heads, width 128, MLP 512, learned positions, tied embeddings.

    Layers and heads are those of arXiv 2312.03656; the activation is the tanh form of GELU in its fused version, and
    there is no dropout.
    """
    return _fresh(task, seed, width=width, layers=layers, heads=heads)


def _fresh(task: Dyck | Code, seed: int, *, width: int, layers: int, heads: int) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=len(task.vocabulary),
        n_positions=task.positions,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        n_inner=4 * width,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=task.start_id,
        eos_token_id=task.end_id,
        pad_token_id=task.pad_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config)
