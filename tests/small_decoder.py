"""A small decoder with random weights, and pairs of token ids that change its answers."""

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from assay.circuits import Circuit, CircuitProxy, Reference
from assay.engine import Engine, collect
from assay.subjects import Subject
from assay.tasks import Split


def random_decoder(seed=0, *, layers=2, heads=2, width=16, vocabulary=12, scale=4.0):
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=8, n_embd=width, n_layer=layers, n_head=heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval().double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
            elif "bias" in name:
                parameter.normal_(std=0.1)
    return Subject(model, None, f"random-{seed}")


def pairs_of(subject, name="iid", *, count=60, length=5, seed=0):
    """Pairs that differ in one token; what the subject says of each is the answer, and the foil."""
    rng = np.random.default_rng([seed, len(name)])
    tokens = rng.integers(subject.vocabulary, size=(8 * count, length))
    others = tokens.copy()
    places = rng.integers(length, size=len(tokens))
    rows = np.arange(len(tokens))
    others[rows, places] = (tokens[rows, places] + rng.integers(1, subject.vocabulary, size=len(rows))) % (
        subject.vocabulary
    )
    with torch.no_grad():
        said, foil = (subject(torch.from_numpy(side))[:, -1].argmax(dim=-1).numpy() for side in (tokens, others))
    rows = np.flatnonzero(said != foil)[:count]
    kinds = np.full((len(rows), length), -1)
    answers, foils = kinds.copy(), kinds.copy()
    kinds[:, -1], answers[:, -1], foils[:, -1] = 0, said[rows], foil[rows]
    return Split(
        name=name, role="train" if name == "train" else "iid", description="", tokens=tokens[rows],
        lengths=np.full(len(rows), length), kinds=kinds, counterfactuals=others[rows], answers=answers, foils=foils,
    )  # fmt: skip


def fitted(circuit, subject, split):
    return circuit.fit(collect(Engine(subject), split, ()))


def differences(logits, split):
    """m of every pair, from logits."""
    rows = np.arange(len(split.tokens))
    last = logits[:, -1].numpy()
    return last[rows, split.answers[:, -1]] - last[rows, split.foils[:, -1]]


_ENGINES = {}


def logits_of(subject, split, kept):
    """The logits of the circuit of a matrix of edges, by its proxy."""
    if id(subject) not in _ENGINES:
        _ENGINES[id(subject)] = subject, Engine(subject), Circuit(edges=["embeddings -> logits"]).apply(subject).graph
    _, engine, graph = _ENGINES[id(subject)]
    proxy = CircuitProxy(subject, graph, kept, Reference("counterfactual"), None)
    proxy._engine = engine
    return proxy.on_pairs(torch.from_numpy(split.tokens), torch.from_numpy(split.counterfactuals))


def m_of(subject, split, kept):
    """m of every pair for the circuit of a matrix of edges, by its proxy."""
    return differences(logits_of(subject, split, kept), split)
