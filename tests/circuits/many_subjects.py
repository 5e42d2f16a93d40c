"""Tiny random subjects of many architectures, and random pairs for them."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.models.auto.auto_factory import _get_model_class

from assay.circuits import Batch, Problem, Reference
from assay.circuits._run import constant, run_circuit, traced
from assay.engine import Engine, tensors
from assay.studies._tiny import tiny_config, tiny_model
from assay.subjects import Subject
from assay.tasks import NO_TOKEN, UNSCORED, Split

ARCHITECTURES = {
    "gpt2": {},  # learned positions, one transposed projection, biases
    "llama": {},  # a norm without mean
    "mistral": {},  # grouped keys
    "gpt_neox": {},  # parallel blocks, a projection that is split head by head
    "gpt_neox-sequential": {"use_parallel_residual": False},
    "gptj": {},  # parallel blocks that share a norm
    "qwen3": {},  # norms of queries and keys
    "gemma": {},  # norms with weights counted from 1
    "phi3": {},  # one projection, one entry of the MLP
    "phi": {},  # parallel, and an unembedding with a bias
    "opt": {},  # an MLP without a module of its own
    "granite": {"residual_multiplier": 0.4, "logits_scaling": 3.0},  # what is added is scaled, logits are divided
    "cohere": {},  # logits are scaled
    "mixtral": {},  # experts
    "gpt_bigcode": {},  # one head of keys
    "starcoder2": {},
    "stablelm": {},
    "olmo": {},  # norms without weights
    "codegen": {},  # a projection that is split in four parts
    "vaultgemma": {"final_logit_softcapping": 3.0},  # logits with a soft cap
    "gemma2": {},  # norms before and after the branches
    "hyperclovax": {"residual_multiplier": 0.4},  # what a norm after a branch gives is scaled
    "olmo2": {},  # norms after the branches alone, and norms over the queries and keys of all heads
    "olmoe": {"num_experts_per_tok": 4},  # the latter without the former
    "deepseek_v3": {"first_k_dense_replace": 2},  # queries made of one latent, keys and values of another
    "minicpm3": {},  # the former, with final hidden states divided before the unembedding
    "sarvam_mla": {"first_k_dense_replace": 2},  # the same with queries of heads
}
"""Architectures and what differs from their defaults."""


def tiny(name: str, *, dtype: torch.dtype = torch.float64, scale: float = 2.0) -> Subject:
    """A random model with weights large enough for its attention to be far from uniform."""
    kind = name.partition("-")[0]
    layers = "n_layer" if kind in ("gpt2", "gptj", "gpt_bigcode", "codegen") else "num_hidden_layers"
    config = tiny_config(CONFIG_MAPPING[kind](**{layers: 2}), ARCHITECTURES.get(name, {}))
    model = tiny_model(_get_model_class(config, MODEL_FOR_CAUSAL_LM_MAPPING), config)
    if not hasattr(sys.modules[type(model).__module__], "eager_attention_forward"):
        pytest.skip(f"{kind} goes through transformers' AttentionInterface in later versions only")
    if hasattr(config, "num_local_experts"):
        model.set_experts_implementation("eager")  # what is there else takes no float64
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
            else:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    if dtype == torch.float64:
        for module in model.modules():
            in_double(module)
    return Subject(model.to(dtype).eval(), None, name)


def in_double(module: torch.nn.Module) -> None:
    """Norms that compute in float32 whatever they are given, in the same formula without rounding."""
    name = type(module).__name__
    if not name.endswith(("RMSNorm", "CohereLayerNorm", "OlmoLayerNorm")):
        return
    eps = next((getattr(module, key) for key in ("variance_epsilon", "eps") if hasattr(module, key)), 1e-5)

    def forward(x: torch.Tensor) -> torch.Tensor:
        if name in ("CohereLayerNorm", "OlmoLayerNorm"):
            x = x - x.mean(dim=-1, keepdim=True)
        found = x * (x.square().mean(dim=-1, keepdim=True) + eps).rsqrt()
        weight = getattr(module, "weight", None)
        return found if weight is None else found * (1 + weight if "Gemma" in name else weight)

    module.forward = forward


def random_pairs(subject: Subject, count: int = 5, positions: int = 7, *, seed: int = 0, foils: int = 2) -> Split:
    """Random sequences of several lengths and as many scored predictions; two tokens of a counterfactual differ."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(positions - 2, positions + 1, size=count)
    lengths[0] = positions
    tokens = rng.integers(5, 90, size=(count, positions))
    other = tokens.copy()
    kinds = np.full(tokens.shape, UNSCORED)
    answers = np.full(tokens.shape, NO_TOKEN)
    wrong = np.full((*tokens.shape, foils), NO_TOKEN)
    for row, length in enumerate(lengths):
        for place in (1, 2):
            other[row, place] = 5 + (tokens[row, place] - 5 + rng.integers(1, 85)) % 85
        for place in {int(length) - 1, int(rng.integers(3, length))}:
            kinds[row, place] = 0
            drawn = rng.choice(np.arange(5, 90), size=1 + foils, replace=False)
            answers[row, place] = drawn[0]
            wrong[row, place, : 1 + row % foils] = drawn[1 : 2 + row % foils]
    tokens[np.arange(positions) >= lengths[:, None]] = 0
    other[np.arange(positions) >= lengths[:, None]] = 0
    return Split("train", "train", "random pairs", tokens, lengths, kinds, counterfactuals=other, answers=answers,
                 foils=wrong)  # fmt: skip


def problem_of(subject: Subject, split: Split, ablation="counterfactual", measure="logit_difference") -> Problem:
    engine = Engine(subject)
    return Problem(engine, split, Reference.fitted(engine, ablation, split), measure)


def by_hand(model, tokens, kept, reference=None, *, added=None, embeddings=None):
    """What every sender of a GPT-2 writes, and the logits, with edges outside `kept` carrying `reference`.

    Receiver by receiver and head by head, from plain weights; `kept` holds (sender, receiver) names. `added` may have
    something for the input of a receiver, `embeddings` what enters the first block.
    """
    body = model.transformer
    heads, width = model.config.n_head, model.config.n_embd // model.config.n_head
    positions = tokens.shape[1]
    hidden = torch.ones(positions, positions, dtype=torch.bool).triu(1)
    own = body.wte.weight[tokens] + body.wpe.weight[:positions]
    wrote = {"embeddings": own if embeddings is None else embeddings}
    biases = torch.zeros(model.config.n_embd, dtype=torch.float64)

    def heard(receiver):
        total = biases.expand_as(wrote["embeddings"]).clone()
        for name, own in wrote.items():
            total = total + (own if reference is None or (name, receiver) in kept else reference[name])
        return total if added is None else total + added[receiver]

    for number, block in enumerate(body.h):
        weight, bias = block.attn.c_attn.weight, block.attn.c_attn.bias
        found = {}
        for head in range(heads):
            parts = []
            for place, part in enumerate(("queries", "keys", "values")):
                columns = slice(place * heads * width + head * width, place * heads * width + (head + 1) * width)
                read = norm(block.ln_1, heard(f"layer{number}.head{head}.{part}"))
                parts.append(read @ weight[:, columns] + bias[columns])
            queries, keys, values = parts
            scores = queries @ keys.transpose(1, 2) / math.sqrt(width)
            pattern = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
            rows = slice(head * width, (head + 1) * width)
            found[f"layer{number}.head{head}"] = pattern @ values @ block.attn.c_proj.weight[rows]
        wrote |= found
        biases = biases + block.attn.c_proj.bias
        read = norm(block.ln_2, heard(f"layer{number}.mlp"))
        inner = read @ block.mlp.c_fc.weight + block.mlp.c_fc.bias
        inner = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        wrote[f"layer{number}.mlp"] = inner @ block.mlp.c_proj.weight + block.mlp.c_proj.bias
    return wrote, norm(body.ln_f, heard("logits")) @ model.lm_head.weight.T


def norm(module, x):
    centre = x - x.mean(dim=-1, keepdim=True)
    return centre / (centre.square().mean(dim=-1, keepdim=True) + module.eps).sqrt() * module.weight + module.bias


def means(problem: Problem, kept: np.ndarray, *, moved: float = 1.0) -> float:
    """m of a circuit, by its definition, from logits of all positions.

    With `moved`, ablated edges carry what lies so far on the way from the subject's own run to the reference.
    """
    engine, split = problem.engine, problem.split
    tokens, valid = tensors(split, engine.subject.device)
    batch = Batch.of(split, np.arange(len(split)), engine.subject.device)
    reference = problem.trace(batch)
    if moved != 1.0:
        own = traced(problem.wiring, tokens, valid)
        reference = constant(
            problem.wiring,
            own.senders_only(lambda tensor: tensor * (1 - moved)).plus(
                reference.senders_only(lambda tensor: tensor * moved)
            ),
        )
    run = run_circuit(engine, problem.wiring, kept, reference, tokens, valid)
    found = of_logits(problem, engine.logits(run, slice(None)), engine.subject(tokens, valid))
    return found / len(split)


def of_logits(problem: Problem, logits: torch.Tensor, clean: torch.Tensor) -> float:
    """The sum of m over pairs, prediction by prediction."""
    split, total = problem.split, 0.0
    for row, place in np.argwhere(split.kinds != UNSCORED):
        here, own = logits[row, place].double(), clean[row, place].double()
        if problem.measure == "kl":
            p, q = own.softmax(dim=0), here.softmax(dim=0)
            total += float((p * (p / q).log()).sum())
        else:
            foils = [int(token) for token in np.atleast_1d(split.foils[row, place]) if token != NO_TOKEN]
            total += float(here[split.answers[row, place]] - here[foils].mean())
    return total


def without(problem: Problem, *edges: tuple[int, int]) -> np.ndarray:
    """All edges but some."""
    kept = problem.wiring.graph.exists.copy()
    for edge in edges:
        kept[edge] = False
    return kept


def some_edges(problem: Problem, count: int, seed: int = 0) -> list[tuple[int, int]]:
    """Random edges, some into each kind of receiver."""
    graph = problem.wiring.graph
    rng = np.random.default_rng(seed)
    found = []
    for kind in ("queries", "keys", ("values", "latent"), "mlp", "logits"):
        places = np.argwhere(graph.exists & np.array([name.endswith(kind) for name in graph.receivers]))
        found += [tuple(int(n) for n in place) for place in places[rng.choice(len(places), count, replace=False)]]
    return found


def permuted(split: Split, seed: int = 0) -> Split:
    return replace(split.take(np.random.default_rng(seed).permutation(len(split))))
