"""Small models of three architectures, and sequences of random tokens with padding."""

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from assay.subjects import Subject
from assay.tasks import Split

VOCABULARY = 23


def gpt2():
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=16, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3,
            bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip


def llama():
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=16, initializer_range=0.3, bos_token_id=None,
            eos_token_id=None,
        )
    )  # fmt: skip


def bert(kind):
    return kind(
        BertConfig(
            vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=16, initializer_range=0.3,
        )
    )  # fmt: skip


MAKE = {
    "gpt2": gpt2,
    "llama": llama,
    "bert": lambda: bert(BertForMaskedLM),
    "encoder": lambda: bert(BertModel),
}


def made(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Subject(MAKE[name]().eval(), None, f"a small {name}")


@pytest.fixture(scope="session", params=MAKE)
def each(request):
    """A subject of every architecture."""
    return made(request.param)


@pytest.fixture(scope="session")
def small():
    """A GPT-2, whose linear weights are Conv1D."""
    return made("gpt2")


@pytest.fixture(scope="session")
def grouped():
    """A Llama with fewer keys than queries."""
    return made("llama")


@pytest.fixture(scope="session")
def sequences():
    """40 sequences of 4 to 12 tokens, padded."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(VOCABULARY, size=(40, 12))
    lengths = rng.integers(4, 13, size=40)
    return Split("random", "train", "random tokens", tokens, lengths, tokens * 0)


@pytest.fixture(scope="session")
def tokens():
    return torch.randint(VOCABULARY, (3, 10), generator=torch.Generator().manual_seed(1))
