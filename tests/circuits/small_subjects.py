"""Small subjects in float64 and pairs for them, on which discovery methods are tested."""

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from assay.circuits import Measure, Problem, Reference
from assay.engine import Engine
from assay.subjects import Subject
from assay.tasks import NO_TOKEN, UNSCORED, Split

WORDS = 17


def _gpt2() -> PreTrainedModel:
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": WORDS, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def _llama() -> PreTrainedModel:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": WORDS}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": True}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, max_position_embeddings=16, bos_token_id=0, eos_token_id=0))


def _neox() -> PreTrainedModel:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": WORDS}
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(**sizes, num_attention_heads=2, max_position_embeddings=16, bos_token_id=0, eos_token_id=0)
    )


MAKERS = {"gpt2": _gpt2, "llama": _llama, "neox": _neox}


PARTS = {
    "gpt2": ("transformer.h", "ln_1", "attn.c_proj", "ln_2", "mlp", "transformer.ln_f"),
    "llama": (
        "model.layers",
        "input_layernorm",
        "self_attn.o_proj",
        "post_attention_layernorm",
        "mlp",
        "model.norm",
    ),
    "neox": (
        "gpt_neox.layers",
        "input_layernorm",
        "attention.dense",
        "post_attention_layernorm",
        "mlp",
        "gpt_neox.final_layer_norm",
    ),
}
"""Where a block has its norms, its output projection and its MLP, and where the last norm is."""


def subject_of(kind: str, *, seed: int = 0, spread: float = 0.4) -> Subject:
    """A random model whose weights and biases are large enough that nothing in it is near linear."""
    torch.manual_seed(seed)
    model = MAKERS[kind]().double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
            else:
                parameter.normal_(std=spread)
    return Subject(model, None, f"random-{kind}", seed=seed)


def pairs(count: int = 6, length: int = 7, seed: int = 0) -> Split:
    """Random sequences of different lengths, each with one token changed, scored at the end (some twice)."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(length - 2, length + 1, size=count)
    lengths[0] = length
    tokens = rng.integers(1, WORDS, size=(count, length))
    tokens[np.arange(length)[None] >= lengths[:, None]] = 0
    rows = np.arange(count)
    changed = tokens.copy()
    at = rng.integers(0, min(3, length - 3), size=count)
    changed[rows, at] = 1 + (tokens[rows, at] + rng.integers(0, WORDS - 2, size=count)) % (WORDS - 1)
    kinds = np.full(tokens.shape, UNSCORED)
    answers, foils = np.full(tokens.shape, NO_TOKEN), np.full((*tokens.shape, 2), NO_TOKEN)
    for row in rows:
        for place in {int(lengths[row]) - 1, int(lengths[row]) - 1 - row % 2}:
            kinds[row, place] = 0
            answers[row, place], *others = rng.permutation(np.arange(1, WORDS))[:3]
            foils[row, place, : 1 + row % 2] = others[: 1 + row % 2]
    return Split(
        "iid", "iid", "random pairs", tokens, lengths, kinds, counterfactuals=changed, answers=answers, foils=foils
    )


def problem_of(
    subject: Subject,
    split: Split | None = None,
    ablation: str = "counterfactual",
    measure: Measure = "logit_difference",
) -> Problem:
    """A problem on random pairs."""
    split = pairs() if split is None else split
    engine = Engine(subject)
    return Problem(engine, split, Reference.fitted(engine, ablation, split), measure)


def assert_batches_do_not_matter(method, problem: Problem, monkeypatch, *, atol: float = 1e-10) -> None:
    """The same scores when pairs come one at a time, and in another order."""
    whole = method.scores(problem)
    order = np.random.default_rng(1).permutation(len(problem.split))
    other = Problem(problem.engine, problem.split.take(order), problem.reference, problem.measure)
    np.testing.assert_allclose(method.scores(other), whole, atol=atol)
    monkeypatch.setattr("assay.circuits._problem.rows_at_a_time", lambda *_: 1)
    np.testing.assert_allclose(method.scores(problem), whole, atol=atol)


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Rank correlation of what is not NaN."""
    known = ~np.isnan(first)
    ranks = [values[known].argsort().argsort() for values in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1])


def scale(norm: nn.Module, x: Tensor) -> Tensor:
    """What a norm divides by."""
    centre = x - x.mean(dim=-1, keepdim=True) if isinstance(norm, nn.LayerNorm) else x
    eps = norm.eps if isinstance(norm, nn.LayerNorm) else norm.variance_epsilon
    return (centre.square().mean(dim=-1, keepdim=True) + eps).sqrt()


def at_scale(norm: nn.Module, x: Tensor, sigma: Tensor) -> Tensor:
    """What a norm gives when it divides by something else."""
    if isinstance(norm, nn.LayerNorm):
        return (x - x.mean(dim=-1, keepdim=True)) / sigma * norm.weight + norm.bias
    return x / sigma * norm.weight
