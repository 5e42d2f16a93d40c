"""Norms behind branches, norms over all heads, and latent attention, against formulas written out head by head."""

import json

import numpy as np
import pytest
import torch
from many_subjects import means, problem_of, random_pairs, some_edges, tiny, without
from torch import nn
from transformers.models.deepseek_v3.modeling_deepseek_v3 import apply_rotary_pos_emb_interleave

from assay import AssayError
from assay.circuits import (
    Circuit,
    ContextualDecomposition,
    EdgeAttribution,
    ExactEdges,
    ExactNodes,
    Graph,
    IntegratedActivationAttribution,
    IntegratedEdgeAttribution,
    IntegratedMaskGradients,
    InteractionGradients,
    ObservablePropagation,
    Problem,
    Reference,
    measured,
    token_scores,
)
from assay.circuits._run import constant, differences, run_circuit, traced, wiring_of
from assay.engine import Engine

SANDWICHED, BEHIND, OVER_HEADS, LATENT, LATENT_KEYS = "gemma2", "olmo2", "olmoe", "deepseek_v3", "sarvam_mla"
NAMES = (SANDWICHED, BEHIND, OVER_HEADS, LATENT, LATENT_KEYS)


@pytest.fixture(scope="module", params=NAMES)
def problem(request):
    subject = tiny(request.param)
    return problem_of(subject, random_pairs(subject, 4))


def length(x, eps):
    return (x.square().mean(dim=-1, keepdim=True) + eps).sqrt()


def turned(x, cos, sin):
    """Rotary positions of vectors (batch, head, position, width)."""
    half = x.shape[-1] // 2
    return x * cos[:, None] + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin[:, None]


def mixed(queries, keys, values, scaling, *, cap=None, window=None):
    """What heads give: (batch, head, position, width)."""
    share = queries.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(share, dim=1), values.repeat_interleave(share, dim=1)
    scores = queries @ keys.transpose(2, 3) * scaling
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    place = torch.arange(queries.shape[2])
    hidden = place[None] > place[:, None]
    hidden = hidden if window is None else hidden | (place[None] <= place[:, None] - window)
    return scores.masked_fill(hidden, -torch.inf).softmax(dim=-1) @ values


class ByHand:
    """What every sender writes, and the logits, with edges outside `kept` (names) carrying `reference`."""

    def __init__(self, name, model, tokens, kept=None, reference=None):
        self.name, self.model, self.config, self.kept, self.reference = name, model, model.config, kept, reference
        body = model.model
        own = body.embed_tokens(tokens)
        self.wrote = {"embeddings": own}
        self.positions = body.rotary_emb(own, torch.arange(tokens.shape[1])[None])
        for number, block in enumerate(body.layers):
            self.wrote |= self.attended(number, block)
            self.wrote[f"layer{number}.mlp"] = self.thought(number, block)
        logits = model.lm_head(body.norm(self.heard("logits")))
        cap = self.config.final_logit_softcapping if name == SANDWICHED else None
        self.logits = logits if cap is None else cap * torch.tanh(logits / cap)

    def heard(self, receiver):
        plain = self.reference is None
        return sum(
            own if plain or (sender, receiver) in self.kept else self.reference[sender]
            for sender, own in self.wrote.items()
        )

    def attended(self, number, block):
        attention, norm = block.self_attn, nn.Identity() if self.name == BEHIND else block.input_layernorm
        if self.name in (LATENT, LATENT_KEYS):
            given = self.of_latents(f"layer{number}", attention, norm)
        else:
            given = self.of_heads(f"layer{number}", attention, norm, number)
        heads = given.shape[1]
        columns = attention.o_proj.weight.unflatten(1, (heads, -1))
        parts = torch.einsum("bhpw,mhw->hbpm", given, columns)
        if self.name in (SANDWICHED, BEHIND):
            behind = block.post_attention_layernorm
            weight = 1 + behind.weight if self.name == SANDWICHED else behind.weight
            eps = behind.eps if self.name == SANDWICHED else behind.variance_epsilon
            parts = parts / length(parts.sum(dim=0), eps) * weight
        return {f"layer{number}.head{head}": part for head, part in enumerate(parts)}

    def of_heads(self, layer, attention, norm, number):
        heads, groups = self.config.num_attention_heads, self.config.num_key_value_heads
        who = "head" if heads == groups else "group"
        streams = []
        for part, module, kind, count in (
            ("queries", attention.q_proj, "head", heads),
            ("keys", attention.k_proj, who, groups),
            ("values", attention.v_proj, who, groups),
        ):
            rows = module.weight.unflatten(0, (count, -1))
            own = [norm(self.heard(f"{layer}.{kind}{place}.{part}")) @ rows[place].T for place in range(count)]
            streams.append(torch.stack(own, dim=1))
        queries, keys, values = streams
        if self.name in (BEHIND, OVER_HEADS):
            queries, keys = (
                module(x.transpose(1, 2).flatten(2)).unflatten(2, (x.shape[1], -1)).transpose(1, 2)
                for module, x in ((attention.q_norm, queries), (attention.k_norm, keys))
            )
        scaling, cap, window = queries.shape[-1] ** -0.5, None, None
        if self.name == SANDWICHED:
            scaling, cap = self.config.query_pre_attn_scalar**-0.5, self.config.attn_logit_softcapping
            window = self.config.sliding_window if self.config.layer_types[number] == "sliding_attention" else None
        cos, sin = self.positions
        return mixed(turned(queries, cos, sin), turned(keys, cos, sin), values, scaling, cap=cap, window=window)

    def of_latents(self, layer, attention, norm):
        config, heads = self.config, self.config.num_attention_heads
        rank, plain = config.kv_lora_rank, config.qk_nope_head_dim
        if self.name == LATENT:
            read = norm(self.heard(f"{layer}.group0.queries")) @ attention.q_a_proj.weight.T
            queries = attention.q_b_proj(attention.q_a_layernorm(read)).unflatten(2, (heads, -1)).transpose(1, 2)
        else:
            rows = attention.q_proj.weight.unflatten(0, (heads, -1))
            own = [norm(self.heard(f"{layer}.head{head}.queries")) @ rows[head].T for head in range(heads)]
            queries = torch.stack(own, dim=1)
        weight = attention.kv_a_proj_with_mqa.weight
        latent = norm(self.heard(f"{layer}.group0.latent")) @ weight[:rank].T
        placed = norm(self.heard(f"{layer}.group0.keys")) @ weight[rank:].T
        both = attention.kv_b_proj(attention.kv_a_layernorm(latent)).unflatten(2, (heads, -1)).transpose(1, 2)
        asked, placed = queries[..., plain:], placed[:, None]
        cos, sin = self.positions
        if self.name == LATENT or getattr(config, "rope_interleave", False):
            asked, placed = apply_rotary_pos_emb_interleave(asked, placed, cos, sin)
        else:
            asked, placed = turned(asked, cos, sin), turned(placed, cos, sin)
        queries = torch.cat((queries[..., :plain], asked), dim=-1)
        keys = torch.cat((both[..., :plain], placed.expand(-1, heads, -1, -1)), dim=-1)
        return mixed(queries, keys, both[..., plain:], attention.scaling)

    def thought(self, number, block):
        stream = self.heard(f"layer{number}.mlp")
        if self.name == BEHIND:
            return block.post_feedforward_layernorm(block.mlp(stream))
        if self.name == SANDWICHED:
            return block.post_feedforward_layernorm(block.mlp(block.pre_feedforward_layernorm(stream)))
        added = block.mlp(block.post_attention_layernorm(stream))
        return added[0] if isinstance(added, tuple) else added


def by_hand(problem, tokens, kept=None, reference=None):
    subject = problem.engine.subject
    return ByHand(subject.name, subject.model, tokens, kept, reference)


ROUNDING = 1e-5
"""Of logits, as a share of their spread: attention weights and rotary positions are float32 in some of them."""


@torch.no_grad()
def test_senders_add_up_to_the_stream_and_are_those_of_the_formula(problem):
    split, wiring = problem.split, problem.wiring
    tokens, valid = torch.from_numpy(split.tokens), torch.from_numpy(split.valid.astype(np.int64))
    hand = by_hand(problem, tokens)
    real = valid.bool()
    whole = problem.engine.subject(tokens, valid)
    assert (hand.logits - whole)[real].abs().max() < ROUNDING * whole.std()
    trace = traced(wiring, tokens, valid)
    more = differences(wiring, trace, trace.senders_only(torch.zeros_like))
    assert list(hand.wrote) == list(wiring.graph.senders)
    for name, found in zip(wiring.graph.senders, more, strict=True):
        assert (found - hand.wrote[name])[real].abs().max() < ROUNDING * trace.final.std()
    assert (more.sum(dim=0) - trace.final)[real].abs().max() < 1e-6 * trace.final.std()


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2, 0.6, 1.0])
@torch.no_grad()
def test_circuits_are_what_the_formula_gives(problem, share):
    split, graph = problem.split, problem.wiring.graph
    tokens, other = (torch.from_numpy(array) for array in (split.tokens, split.counterfactuals))
    valid = torch.from_numpy(split.valid.astype(np.int64))
    kept = graph.exists & (np.random.default_rng(4).random(graph.shape) < share)
    names = {(edge.sender, edge.receiver) for edge in graph.edges(kept)}
    expected = by_hand(problem, tokens, names, by_hand(problem, other).wrote).logits
    reference = traced(problem.wiring, other, valid)
    real = valid.bool()
    for chosen in (kept, graph.pruned(kept)):
        run = run_circuit(problem.engine, problem.wiring, chosen, reference, tokens, valid)
        found = problem.engine.logits(run, slice(None))
        assert (found - expected)[real].abs().max() < ROUNDING * expected.std()
    if 0 < share < 1:
        assert (problem.engine.subject(tokens, valid) - expected)[real].abs().max() > 0.01


def test_receivers_are_named_after_what_they_are():
    latent = wiring_of(Engine(tiny(LATENT))).graph
    assert latent == Graph(2, 4, 1, latent=True, latent_queries=True)
    assert latent.receivers[:5] == (
        "layer0.group0.queries", "layer0.group0.keys", "layer0.group0.latent", "layer0.mlp", "layer1.group0.queries",
    )  # fmt: skip
    half = wiring_of(Engine(tiny(LATENT_KEYS))).graph
    assert half == Graph(2, 4, 1, latent=True)
    assert half.receivers[3:6] == ("layer0.head3.queries", "layer0.group0.keys", "layer0.group0.latent")
    assert wiring_of(Engine(tiny(BEHIND))).graph == Graph(2, 4, 4, joint=True)
    assert wiring_of(Engine(tiny(SANDWICHED))).graph == Graph(2, 4, 2, joint=True)
    assert wiring_of(Engine(tiny(OVER_HEADS))).graph.receivers == Graph(2, 4, 4).receivers


def test_what_heads_hear_of_each_other_keeps_edges_on_paths():
    edges = ["embeddings -> layer0.head0.queries", "layer0.head1 -> logits"]
    assert Graph(1, 2, 2).pruned(Graph(1, 2, 2).matrix(edges)).sum() == 0
    assert Graph(1, 2, 2, joint=True).pruned(Graph(1, 2, 2).matrix(edges)).sum() == 2
    keys = ["embeddings -> layer0.group0.keys", "layer0.head1 -> logits"]
    latent = Graph(1, 2, 1, latent=True, latent_queries=True)
    assert latent.pruned(latent.matrix(keys)).sum() == 2


def test_patching_is_what_circuits_without_an_edge_do(problem):
    exact = ExactEdges().scores(problem)
    whole = means(problem, problem.wiring.graph.exists)
    for edge in some_edges(problem, 2, seed=1):
        assert exact[edge] == pytest.approx(means(problem, without(problem, edge)) - whole, abs=1e-5)


@torch.no_grad()
def test_gradients_agree_with_patching_where_ablation_changes_little(problem):
    """All edges at once, when they carry what lies a thousandth of the way from the subject's run to the reference."""
    wiring, step = problem.wiring, 1e-3
    (batch,) = problem.batches()
    own, reference = traced(wiring, batch.tokens, batch.valid), problem.trace(batch)
    mix = own.senders_only(lambda x: (1 - step) * x).plus(reference.senders_only(lambda x: step * x))
    near = Problem(problem.engine, problem.split, Reference("mean", constant(wiring, mix)))
    exact, plain = (method.scores(near) / step for method in (ExactEdges(), EdgeAttribution()))
    largest = np.nanmax(np.abs(plain))
    assert largest > 0.1
    np.testing.assert_allclose(exact, plain, atol=0.02 * largest)


def test_scores_of_whole_heads_are_those_of_circuits_without_them(problem):
    scores, graph = ExactNodes().scores(problem), problem.wiring.graph
    senders = (0, 1, graph.sender(0, 2), graph.sender(0), graph.sender(1, 3))
    kept = [graph.exists]
    for sender in senders:
        mask = graph.exists.copy()
        mask[sender] = False
        kept.append(mask)
    whole, *others = measured(problem, kept).mean(axis=1)
    for sender, value in zip(senders, others, strict=True):
        assert np.nansum(scores[sender]) == pytest.approx(value - whole, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_complete_methods_are_complete(name):
    subject = tiny(name, scale=1.2)
    problem = problem_of(subject, random_pairs(subject, 3))
    whole = float(np.mean(problem.baseline[1] - problem.baseline[0]))
    assert abs(whole) > 0.01
    masks = IntegratedMaskGradients(steps=30, rule="gauss").scores(problem)
    assert np.nansum(masks) == pytest.approx(whole, abs=1e-3)
    inputs = IntegratedEdgeAttribution(steps=30, rule="gauss").scores(problem)
    assert np.nansum(inputs[0]) == pytest.approx(whole, abs=1e-3)


@pytest.mark.parametrize("name", [SANDWICHED, BEHIND])
def test_heads_that_move_together_are_complete_behind_their_norm(name):
    subject = tiny(name, scale=1.2)
    problem = problem_of(subject, random_pairs(subject, 3))
    graph = problem.wiring.graph
    scores = IntegratedActivationAttribution(steps=24, rule="gauss").scores(problem)
    for layer in range(graph.layers):
        heads = slice(graph.sender(layer, 0), graph.sender(layer))
        kept = graph.exists.copy()
        kept[heads] = False
        without_them, whole = measured(problem, [kept, graph.exists]).mean(axis=1)
        assert abs(without_them - whole) > 0.01
        assert np.nansum(scores[heads]) == pytest.approx(without_them - whole, abs=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_other_methods_work_or_say_why_not(name):
    subject = tiny(name, scale=1.2)
    problem = problem_of(subject, random_pairs(subject, 3))
    exists = problem.wiring.graph.exists
    if name in (LATENT, LATENT_KEYS):
        with pytest.raises(AssayError, match="makes keys and values of the same numbers"):
            ObservablePropagation().scores(problem)
        with pytest.raises(AssayError, match="makes its values of a latent of all heads"):
            token_scores(subject, [[5, 6, 7]])
    else:
        held = ObservablePropagation().scores(problem)
        assert np.isfinite(held[exists]).sum() < exists.sum()
        assert token_scores(subject, [[5, 6, 7, 8]]).among["copying"].shape == (2, 4)
    if name == OVER_HEADS:
        assert np.isfinite(ContextualDecomposition().scores(problem)[exists]).all()
    else:
        with pytest.raises(AssayError, match="cannot be decomposed"):
            ContextualDecomposition().scores(problem)
    if name in (SANDWICHED, BEHIND):
        assert np.isfinite(InteractionGradients().scores(problem)[exists]).all()


@pytest.mark.parametrize("name", [BEHIND, LATENT])
def test_circuits_are_found_judged_and_kept_in_files(name, tmp_path):
    subject = tiny(name)
    problem = problem_of(subject, random_pairs(subject, 4))
    graph = problem.wiring.graph
    scores = IntegratedEdgeAttribution().scores(problem)
    best = np.argwhere(graph.exists)[np.argsort(-np.abs(scores[graph.exists]))[:40]]
    edges = [f"{graph.senders[sender]} -> {graph.receivers[receiver]}" for sender, receiver in best]
    circuit = Circuit(edges)
    circuit.apply(subject)
    path = circuit.write(tmp_path / "circuit.json")
    again = Circuit.read(path)
    assert np.array_equal(again.apply(subject).kept, circuit.apply(subject).kept)
    if name == LATENT:
        with pytest.raises(AssayError, match="makes them of a latent of all heads"):
            circuit.write(tmp_path / "theirs.json", format="eap-ig")
    else:
        theirs = circuit.write(tmp_path / "theirs.json", format="eap-ig")
        assert np.array_equal(Circuit.read(theirs).apply(subject).kept, circuit.apply(subject).kept)


def test_a_bias_before_a_norm_is_refused():
    subject = tiny(SANDWICHED)
    for block in subject.model.model.layers:
        block.self_attn.o_proj.bias = nn.Parameter(torch.ones(32, dtype=torch.float64))
    with pytest.raises(AssayError, match="whose bias is part of no head"):
        wiring_of(Engine(subject))


class Mixing(nn.Module):
    """A norm of each head's keys that puts some of the next head's in."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(x + x.roll(1, dims=2))


def test_heads_that_take_from_their_neighbours_are_refused():
    subject = tiny("qwen3")
    subject.model.model.layers[1].self_attn.q_norm = Mixing(subject.model.model.layers[1].self_attn.q_norm)
    with pytest.raises(AssayError, match="projections of layer 1 feeds other heads than its own"):
        wiring_of(Engine(subject))


def test_a_file_of_a_latent_in_groups_is_refused(tmp_path):
    circuit = Circuit(["embeddings -> layer0.group0.latent", "layer0.head1 -> logits"])
    circuit.apply(tiny(LATENT))
    path = circuit.write(tmp_path / "circuit.json")
    plain = json.loads(path.read_text())
    assert plain["graph"] == {
        "layers": 2, "heads": 4, "groups": 1, "parallel": False, "latent": True, "latent_queries": True, "width": 32,
    }  # fmt: skip
    plain["graph"]["groups"] = 2
    path.write_text(json.dumps(plain))
    with pytest.raises(AssayError, match="there is no such model"):
        Circuit.read(path)
