"""The architectures and recipes of the reference models that Assay trains and ships."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from assay.subjects._train import Recipe
from assay.tasks import Dyck

DYCK_TOKENS_PER_BATCH = 4_000

DYCK_RECIPE = Recipe(
    steps=12_000,
    learning_rate=3e-3,
    betas=(0.9, 0.98),
    weight_decay=0.01,
    warmup_steps=300,
)


def dyck_model(task: Dyck, seed: int) -> GPT2LMHeadModel:
    """A fresh reference model: GPT-2 with 2 layers of 1 head, width 32, MLP 128, learned positions.

    The widths are those reported for arXiv 2312.03656; the activation is the tanh form of GELU in its fused version.
    """
    config = GPT2Config(
        vocab_size=len(task.vocabulary),
        n_positions=task.positions,
        n_embd=32,
        n_layer=2,
        n_head=1,
        n_inner=128,
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
