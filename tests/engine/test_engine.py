"""The engine on GPT-2 against attention written out by hand from the weights, and its manners towards the model."""

import itertools
import math
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from assay import AssayError
from assay.engine import (
    ATTENTION,
    BLOCK_STREAMS,
    AtScored,
    Block,
    Edit,
    EditedSubject,
    Engine,
    Head,
    Site,
    batches,
    collect,
    run_together,
    tensors,
)
from assay.engine._engine import READABLE
from assay.subjects import Subject
from assay.tasks import Dyck, Split

VOCABULARY, WIDTH, HEADS, LAYERS, HEAD_WIDTH = 29, 24, 3, 2, 8


@pytest.fixture(scope="module")
def gpt2() -> Subject:
    """Three heads a layer, large weights, and an ordinary GELU."""
    torch.manual_seed(5)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=40,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        initializer_range=0.3,
        activation_function="gelu",
        bos_token_id=0,
        eos_token_id=1,
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
    return Subject(model, None, "three-heads")


@pytest.fixture(scope="module")
def reader(gpt2) -> Engine:
    return Engine(gpt2)


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(VOCABULARY, (4, 11), generator=torch.Generator().manual_seed(2))


def unchanged(*args):
    return args[0]


def double(vectors):
    return 2 * vectors


def by_hand(model, tokens, change=unchanged, alter=None, map_mlp=None):
    """GPT-2 written out; `change(layer, q, k, pattern)` may replace the pattern, `alter(stream, layer, x)` the rest.

    `map_mlp(layer, entered, given)` replaces what an MLP gives.

    Returns logits and what was seen.
    """
    weights = {name: value.double() for name, value in model.state_dict().items()}
    seen = {"queries": {}, "keys": {}, "values": {}, "outputs": {}, "patterns": {}}
    seen |= {stream: {} for stream in BLOCK_STREAMS}
    alter = alter or (lambda stream, layer, x: x)

    def normal(x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x, name):
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def heads(x):
        return x.unflatten(-1, (HEADS, HEAD_WIDTH)).transpose(1, 2)

    length = tokens.shape[1]
    x = weights["transformer.wte.weight"][tokens] + weights["transformer.wpe.weight"][:length]
    for layer in range(LAYERS):
        block = f"transformer.h.{layer}"
        seen["residual"][layer] = x = alter("residual", layer, x)
        q, k, v = map(heads, linear(normal(x, f"{block}.ln_1"), f"{block}.attn.c_attn").split(WIDTH, dim=-1))
        scores = q @ k.transpose(-1, -2) / math.sqrt(HEAD_WIDTH)
        hidden = torch.ones(length, length).triu(1).bool()
        pattern = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        if change is not unchanged:
            pattern = change(layer, q, k, pattern)
        seen["queries"][layer], seen["keys"][layer], seen["patterns"][layer] = q, k, pattern
        seen["values"][layer] = v = alter("values", layer, v)
        seen["outputs"][layer] = mixed = alter("outputs", layer, pattern @ v)
        seen["heads"][layer] = mixed = alter("heads", layer, mixed.transpose(1, 2).flatten(2))
        mixed = linear(mixed, f"{block}.attn.c_proj")
        seen["attention"][layer] = mixed = alter("attention", layer, mixed)
        seen["middle"][layer] = x = alter("middle", layer, x + mixed)
        seen["mlp_input"][layer] = entered = alter("mlp_input", layer, normal(x, f"{block}.ln_2"))
        inner = linear(entered, f"{block}.mlp.c_fc")
        added = linear(inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2))), f"{block}.mlp.c_proj")
        added = added if map_mlp is None else map_mlp(layer, entered, added)
        seen["mlp"][layer] = added = alter("mlp", layer, added)
        seen["after"][layer] = x = alter("after", layer, x + added)
    return normal(x, "transformer.ln_f") @ weights["transformer.wte.weight"].T, seen


def close(found, expected, tolerance=2e-4):
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=1e-4)


# -- what is read ---------------------------------------------------------------------------------------------------


def test_logits_agree_with_attention_by_hand(gpt2, reader, tokens):
    expected, _ = by_hand(gpt2.model, tokens)
    close(reader.run(tokens).logits, expected)
    close(gpt2(tokens), expected)


@pytest.mark.parametrize("stream", READABLE)
def test_streams_agree_with_the_weights(gpt2, reader, tokens, stream):
    found = getattr(reader.run(tokens, read=(stream,)), stream)
    _, expected = by_hand(gpt2.model, tokens)
    assert set(found) == {0, 1}
    for layer in (0, 1):
        close(found[layer], expected[stream][layer])


def test_only_what_was_asked_for_is_kept(reader, tokens):
    run = reader.run(tokens, read=("keys",))
    assert (run.queries, run.patterns, run.residual) == ({}, {}, {})
    assert set(run.keys) == {0, 1}


def test_observer_sees_each_pattern_in_order(reader, tokens):
    seen = []
    kept = reader.run(tokens, read=("patterns",), on_pattern=lambda layer, pattern: seen.append((layer, pattern)))
    assert [layer for layer, _ in seen] == [0, 1]
    assert all(torch.equal(pattern, kept.patterns[layer]) for layer, pattern in seen)


def test_observer_sees_the_edited_pattern(reader, tokens):
    seen = {}
    reader.run(tokens, edits=[Edit(Head(1, 2), pattern=lambda p, _: p / 2)], on_pattern=seen.__setitem__)
    close(seen[1][:, 2].sum(-1), torch.full((4, 11), 0.5, dtype=torch.float64), 1e-5)
    close(seen[1][:, 1].sum(-1), torch.ones(4, 11, dtype=torch.float64), 1e-5)


def test_names_and_widths(reader):
    assert reader.layers == 2
    assert reader.layer_name(1) == "transformer.h.1.attn"
    assert reader.widths == {0: 8, 1: 8}
    assert reader.heads == tuple(Head(layer, head) for layer in range(2) for head in range(3))


def test_sites(reader):
    assert reader.site("all").places == reader.heads
    assert reader.site("layer1").places == (Head(1, 0), Head(1, 1), Head(1, 2))
    assert reader.site("layer0.head2").places == (Head(0, 2),)
    assert reader.site("layer1").streams == dict.fromkeys(reader.heads[3:], ATTENTION)
    assert not reader.site("layer1").explicit
    for stream in ("queries", "keys", "values", "outputs"):
        assert reader.site(f"layer1.{stream}") == Site(f"layer1.{stream}", dict.fromkeys(reader.heads[3:], (stream,)))
        assert reader.site(f"layer0.head2.{stream}").places == (Head(0, 2),)
    for stream in BLOCK_STREAMS:
        assert reader.site(f"all.{stream}") == Site(f"all.{stream}", {Block(0): (stream,), Block(1): (stream,)})
        assert reader.site(f"layer1.{stream}").explicit
    assert reader.site("embeddings") == Site("embeddings", {Block(0): ("residual",)})
    assert reader.site("embeddings+L1.after").name == "layer0.residual+layer1.after"


def test_sweeps_stand_for_one_site_at_a_time(reader):
    assert reader.expand("all-layers.mlp") == ("layer0.mlp", "layer1.mlp")
    assert reader.expand("all-heads") == tuple(f"layer{layer}.head{head}" for layer in range(2) for head in range(3))
    assert reader.expand("all-heads.values")[4] == "layer1.head1.values"
    assert reader.expand("layer1") == ("layer1",)


@pytest.mark.parametrize(
    "text",
    [
        "layer2",
        "layer0.head3",
        "head0",
        "",
        "layer",
        "layer1.head",
        "ALL",
        "layer0.head1.mlp",
        "all.patterns",
        "all.rest",
    ],
)
def test_unknown_site_is_refused(reader, text):
    with pytest.raises(AssayError, match=r"not in 'three-heads'.*layer0.*layer1.*layer1\.head2"):
        reader.site(text)


# -- what is edited -------------------------------------------------------------------------------------------------


def test_pattern_edit_reaches_the_output(gpt2, reader, tokens):
    """One head of layer 0 attends to the first position alone."""
    first = torch.zeros(11, 11, dtype=torch.float64)
    first[:, 0] = 1

    def change(layer, q, k, pattern):
        if layer == 0:
            pattern = pattern.clone()
            pattern[:, 1] = first
        return pattern

    edit = Edit(Head(0, 1), pattern=lambda pattern, _: first.to(pattern).expand_as(pattern))
    expected, seen = by_hand(gpt2.model, tokens, change)
    run = reader.run(tokens, edits=[edit], read=("patterns", "residual"))
    close(run.logits, expected)
    close(run.residual[1], seen["residual"][1])
    close(run.patterns[1], seen["patterns"][1])
    assert (run.logits - gpt2(tokens)).abs().max() > 0.05


@pytest.mark.parametrize("part", ["queries", "keys", "both"])
def test_vector_edits_reach_the_output(gpt2, reader, tokens, part):
    """Projecting on the first three coordinates; the scale stays that of the full width."""
    keep = torch.zeros(HEAD_WIDTH, dtype=torch.float64)
    keep[:3] = 1

    def change(layer, q, k, pattern):
        if layer == 1:
            left = q[:, 2] * keep if part != "keys" else q[:, 2]
            right = k[:, 2] * keep if part != "queries" else k[:, 2]
            scores = left @ right.transpose(-1, -2) / math.sqrt(HEAD_WIDTH)
            hidden = torch.ones(11, 11).triu(1).bool()
            pattern = pattern.clone()
            pattern[:, 2] = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        return pattern

    def project(vectors):
        return vectors * keep.to(vectors)

    edit = Edit(Head(1, 2), queries=project if part != "keys" else None, keys=project if part != "queries" else None)
    expected, seen = by_hand(gpt2.model, tokens, change)
    run = reader.run(tokens, edits=[edit], read=("patterns",))
    close(run.logits, expected)
    close(run.patterns[1], seen["patterns"][1])


@pytest.mark.parametrize("stream", ["values", "outputs"])
@pytest.mark.parametrize("rows", [None, 4])
def test_values_and_outputs_of_a_head_are_edited(gpt2, reader, tokens, stream, rows):
    def alter(where, layer, x):
        if (where, layer) == (stream, 0):
            x = x.clone()
            x[:, 1] = x[:, 1].flip(-1) + 0.5
        return x

    expected, seen = by_hand(gpt2.model, tokens, alter=alter)
    edit = Edit(Head(0, 1), **{stream: lambda x: x.flip(-1) + 0.5})
    run = reader.run(tokens, edits=[edit], read=(stream, "residual"), on_rows=lambda *_: None, rows=rows)
    close(run.logits, expected)
    close(getattr(run, stream)[0], seen[stream][0])
    assert (run.logits - gpt2(tokens)).abs().max() > 0.05


@pytest.mark.parametrize("stream", BLOCK_STREAMS)
@pytest.mark.parametrize("layer", [0, 1])
def test_streams_of_a_block_are_edited(gpt2, reader, tokens, stream, layer):
    def alter(where, at, x):
        return x.flip(-1) * 0.7 if (where, at) == (stream, layer) else x

    expected, seen = by_hand(gpt2.model, tokens, alter=alter)
    edits = [Edit(Block(layer), **{stream: lambda x: x.flip(-1) * 0.7})]
    run = reader.run(tokens, edits=edits, read=BLOCK_STREAMS)
    close(run.logits, expected)
    for each in BLOCK_STREAMS:
        for at in (0, 1):
            close(getattr(run, each)[at], seen[each][at])
    assert (run.logits - gpt2(tokens)).abs().max() > 0.05
    clean = reader.run(tokens, resumable=True)
    assert torch.equal(reader.run(tokens, edits=edits, resume=clean).logits, run.logits)


def test_heads_and_blocks_are_edited_together(gpt2, reader, tokens):
    def alter(where, layer, x):
        changed = {"values": 2 * x, "mlp": x / 2, "residual": x + 1, "attention": 3 * x, "after": x - 2}
        return changed.get(where, x) if layer == 1 else x

    edits = [Edit(head, values=double) for head in reader.site("layer1").places]
    of_block = {"attention": lambda x: 3 * x, "after": lambda x: x - 2}
    edits.append(Edit(Block(1), mlp=lambda x: x / 2, residual=lambda x: x + 1, **of_block))
    close(reader.run(tokens, edits=edits).logits, by_hand(gpt2.model, tokens, alter=alter)[0])


def test_heads_side_by_side_are_the_outputs_of_heads(reader, tokens):
    """An edit of one head's share is that of the head, and comes on top of edits of heads."""
    run = reader.run(tokens, read=("heads", "outputs"))
    for layer in (0, 1):
        assert torch.equal(run.heads[layer], run.outputs[layer].transpose(1, 2).flatten(2))

    def one(share):
        share[..., HEAD_WIDTH : 2 * HEAD_WIDTH] *= 2
        return share

    alone = reader.run(tokens, edits=[Edit(Head(0, 1), outputs=double)])
    shared = reader.run(tokens, edits=[Edit(Block(0), heads=one)], read=("outputs",))
    assert torch.equal(alone.logits, shared.logits)
    assert torch.equal(shared.outputs[0][:, 1], 2 * run.outputs[0][:, 1])
    assert torch.equal(shared.outputs[0][:, [0, 2]], run.outputs[0][:, [0, 2]])
    both = reader.run(tokens, edits=[Edit(Head(0, 1), outputs=lambda x: x + 1), Edit(Block(0), heads=one)])
    assert torch.equal(both.logits, reader.run(tokens, edits=[Edit(Head(0, 1), outputs=lambda x: 2 * (x + 1))]).logits)


@pytest.mark.parametrize("rows", [1, 4])
def test_heads_side_by_side_by_rows(reader, tokens, rows):
    edits = [Edit(Block(1), heads=lambda x: x.flip(-1))]
    whole = reader.run(tokens, edits=edits, read=("heads",))
    blocked = reader.run(tokens, edits=edits, read=("heads",), rows=rows)
    torch.testing.assert_close(blocked.logits, whole.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(blocked.heads[1], whole.heads[1], atol=1e-6, rtol=1e-5)


def test_what_leaves_a_block_is_what_entered_and_what_was_added(reader, tokens):
    run = reader.run(tokens, read=BLOCK_STREAMS)
    for layer in (0, 1):
        close(run.after[layer], (run.residual[layer] + run.attention[layer] + run.mlp[layer]).double(), 1e-5)
    assert torch.equal(run.after[0], run.residual[1])


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("others", [False, True])
def test_an_mlp_is_replaced_by_a_function_of_what_enters_it_and_what_it_gives(gpt2, reader, tokens, layer, others):
    """Alone, or between edits of what enters and of what is given, which it sees and which sees it."""

    def change(entered, given):
        return entered.flip(-1) * 0.5 + given * entered.square()

    beside = {"mlp_input": lambda x: x + 0.3, "mlp": lambda x: 2 * x} if others else {}

    def alter(where, at, x):
        return beside[where](x) if at == layer and where in beside else x

    def map_mlp(at, entered, given):
        return change(entered, given) if at == layer else given

    expected, seen = by_hand(gpt2.model, tokens, alter=alter, map_mlp=map_mlp)
    edits = [Edit(Block(layer), mlp_map=change, **beside)]
    run = reader.run(tokens, edits=edits, read=("mlp_input", "mlp", "after"))
    close(run.logits, expected)
    for stream in ("mlp_input", "mlp", "after"):
        close(getattr(run, stream)[layer], seen[stream][layer])
    assert (run.logits - gpt2(tokens)).abs().max() > 0.05
    clean = reader.run(tokens, resumable=True)
    assert torch.equal(reader.run(tokens, edits=edits, resume=clean).logits, run.logits)
    assert reader.first_edited(edits) == layer
    identity = Edit(Block(layer), mlp_map=lambda entered, given: given)
    assert torch.equal(reader.run(tokens, edits=[identity]).logits, clean.logits)


def test_runs_in_one_batch_with_and_without_an_mlp_replaced(reader, tokens):
    replaced = [Edit(Block(1), mlp_map=lambda entered, given: entered - given)]
    other = [Edit(Block(1), mlp=double)]
    clean = reader.run(tokens, resumable=True)
    for run, edits in zip(run_together(reader, clean, [replaced, other]), (replaced, other), strict=True):
        torch.testing.assert_close(run.logits, reader.run(tokens, edits=edits).logits, atol=2e-6, rtol=2e-6)


def test_an_mlp_is_replaced_at_scored_positions_only(gpt2, reader, tokens):
    """Elsewhere it gives what it gave, not what entered it."""
    scored = torch.zeros_like(tokens, dtype=torch.bool)
    scored[:, ::3] = True

    def change(entered, given):
        return entered - given

    proxy = AtScored(EditedSubject(gpt2, [Edit(Block(0), mlp_map=change)]))
    where = [Edit(Block(0), mlp_map=lambda x, y: torch.where(scored[..., None], change(x, y), y))]
    assert torch.equal(proxy(tokens, None, scored), reader.run(tokens, edits=where).logits)


@pytest.mark.parametrize(
    ("place", "stream"),
    [(Head(0, 0), name) for name in ("mlp", "after", "mlp_map")] + [(Block(0), "values"), (Block(0), "pattern")],
)
def test_stream_that_a_place_does_not_have_is_refused(place, stream):
    with pytest.raises(AssayError, match=rf"{place}, {stream}=.*(queries, keys|mlp, residual)"):
        Edit(place, **{stream: unchanged})


# -- rows and positions at a time -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3, 4, 11, 64])
@pytest.mark.parametrize("padded", [False, True])
def test_rows_are_those_of_the_pattern(gpt2, reader, tokens, rows, padded):
    valid = torch.ones_like(tokens)
    if padded:
        valid[1, 6:] = 0
    whole = reader.run(tokens, valid, read=("patterns",))
    found = {layer: torch.zeros_like(pattern) for layer, pattern in whole.patterns.items()}
    widths = []

    def note(layer, part, pattern, _):
        found[layer][:, :, part, : pattern.shape[-1]] = pattern
        widths.append((part.stop, pattern.shape[-1]))

    run = reader.run(tokens, valid, on_rows=note, rows=rows)
    assert all(keys <= stop for stop, keys in widths), "keys that no query of the block sees were computed"
    torch.testing.assert_close(run.logits[valid.bool()], whole.logits[valid.bool()], atol=1e-5, rtol=1e-5)
    for layer, pattern in whole.patterns.items():
        torch.testing.assert_close(found[layer], pattern, atol=1e-6, rtol=1e-5)


def test_rows_of_an_edited_pattern(reader, tokens):
    edits = [Edit(Head(1, 2), pattern=lambda p, _: p / 2)]
    whole, sums = reader.run(tokens, edits=edits).logits, []
    run = reader.run(tokens, edits=edits, rows=4, on_rows=lambda layer, _, rows, __: sums.append((layer, rows.sum(-1))))
    torch.testing.assert_close(run.logits, whole, atol=1e-5, rtol=1e-5)
    halves = torch.cat([mass[:, 2] for layer, mass in sums if layer == 1], dim=-1)
    torch.testing.assert_close(halves, torch.full((4, 11), 0.5))


@pytest.mark.parametrize("hard", [False, True])
def test_rows_of_another_run_beside(reader, tokens, hard):
    clean = reader.run(tokens, read=("queries", "keys", "patterns"))
    found = {layer: torch.zeros_like(pattern) for layer, pattern in clean.patterns.items()}

    def note(layer, part, pattern, beside):
        assert beside.shape == pattern.shape
        found[layer][:, :, part, : beside.shape[-1]] = beside

    edit = Edit(Head(0, 0), queries=double, pattern=(lambda p, _: p / 2) if hard else None)
    reader.run(tokens, edits=[edit], on_rows=note, rows=3, beside=clean)
    for layer, pattern in clean.patterns.items():
        torch.testing.assert_close(found[layer], pattern, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("positions", [slice(0, 11), slice(2, 5), torch.tensor([10]), torch.tensor([0, 3, 7])])
def test_logits_of_some_positions(reader, tokens, positions):
    edits = [Edit(Head(0, 0), queries=double)]
    whole = reader.run(tokens, edits=edits).logits
    later = reader.run(tokens, edits=edits, logits=False)
    assert later.logits.numel() == 0
    torch.testing.assert_close(reader.logits(later, positions), whole[:, positions], atol=1e-5, rtol=1e-5)
    assert torch.equal(reader.logits(reader.run(tokens, edits=edits), positions), whole[:, positions])


def test_queries_keys_and_pattern_of_one_head_together(gpt2, reader, tokens):
    def change(layer, q, k, pattern):
        if layer == 0:
            scores = (2 * q[:, 0]) @ (-k[:, 0]).transpose(-1, -2) / math.sqrt(HEAD_WIDTH)
            hidden = torch.ones(11, 11).triu(1).bool()
            pattern = pattern.clone()
            pattern[:, 0] = scores.masked_fill(hidden, -torch.inf).softmax(-1) / 3
        return pattern

    edit = Edit(Head(0, 0), queries=double, keys=lambda k: -k, pattern=lambda p, _: p / 3)
    close(reader.run(tokens, edits=[edit]).logits, by_hand(gpt2.model, tokens, change)[0])


def test_edits_of_several_heads_do_not_depend_on_their_order(reader, tokens):
    edits = [Edit(head, queries=double, pattern=lambda p, _: p / 2) for head in reader.heads]
    assert torch.equal(reader.run(tokens, edits=edits).logits, reader.run(tokens, edits=edits[::-1]).logits)


def test_pattern_edit_is_told_what_is_visible(reader, tokens):
    seen = {}

    def note(pattern, visible):
        seen["visible"] = visible.clone()
        return pattern

    valid = torch.ones_like(tokens)
    valid[1, 6:] = 0
    reader.run(tokens, valid, edits=[Edit(Head(0, 0), pattern=note)])
    causal = torch.ones(11, 11).tril().bool()
    expected = causal & valid.bool()[:, None, :]
    for sequence, length in enumerate(valid.sum(-1).tolist()):
        assert torch.equal(seen["visible"][sequence, :length], expected[sequence, :length])


def test_an_edit_that_overwrites_its_input_harms_nothing(reader, tokens):
    clean = reader.run(tokens, read=("queries", "patterns"))
    edited = reader.run(
        tokens,
        edits=[Edit(Head(0, 1), queries=lambda q: q.zero_(), pattern=lambda p, _: p.zero_())],
        read=("queries", "patterns"),
    )
    assert (edited.queries[0][:, 1] == 0).all()
    assert (edited.patterns[0][:, 1] == 0).all()
    assert torch.equal(edited.queries[0][:, [0, 2]], clean.queries[0][:, [0, 2]])
    assert torch.equal(reader.run(tokens).logits, clean.logits)


@pytest.mark.parametrize("head", [Head(2, 0), Head(0, 3), Head(-1, 0), Head(0, -1)])
def test_unknown_head_is_refused(reader, tokens, head):
    with pytest.raises(AssayError, match=r"not in 'three-heads'.*layer0\.head0 to layer1\.head2"):
        reader.run(tokens, edits=[Edit(head, queries=unchanged)])


def test_two_edits_of_one_head_are_refused(reader, tokens):
    with pytest.raises(AssayError, match=r"two edits of layer0\.head1"):
        reader.run(tokens, edits=[Edit(Head(0, 1), queries=unchanged), Edit(Head(0, 1), keys=unchanged)])


def test_unknown_read_is_refused(reader, tokens):
    with pytest.raises(AssayError, match="logits"):
        reader.run(tokens, read=("queries", "logits"))


# -- resuming -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [0, 1])
def test_resuming_gives_the_same_logits(reader, tokens, layer):
    clean = reader.run(tokens, resumable=True)
    edits = [Edit(Head(layer, 0), queries=double)]
    assert torch.equal(reader.run(tokens, edits=edits, resume=clean).logits, reader.run(tokens, edits=edits).logits)


def test_resuming_does_not_compute_what_is_known(reader, tokens, gpt2):
    """With a known output put in place of the first block, its weights no longer matter."""
    clean = reader.run(tokens, resumable=True)
    edits = [Edit(Head(1, 0), queries=double)]
    whole = reader.run(tokens, edits=edits).logits
    calls = []
    hook = gpt2.model.transformer.h[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    try:
        assert torch.equal(reader.run(tokens, edits=edits, resume=clean).logits, whole)
    finally:
        hook.remove()
    assert calls == []


@pytest.mark.parametrize("padded", [False, True])
def test_runs_that_resume_one_after_another_are_those_from_the_start(reader, tokens, padded):
    """Whatever the layer and the stream of the one before, of which masks and projections are taken over."""
    valid = torch.ones_like(tokens)
    if padded:
        valid[1, 6:] = 0
    clean = reader.run(tokens, valid, resumable=True)
    of_heads = itertools.cycle(("queries", "values", "keys", "outputs"))
    streams = [
        pair for two in zip(of_heads, BLOCK_STREAMS, strict=False) for pair in zip(two, (Head, Block), strict=True)
    ]
    pairs = [(layer, *stream) for layer in (0, 1, 0) for stream in streams]
    for layer, stream, kind in pairs:
        place = Head(layer, 1) if kind is Head else Block(layer)
        edits = [Edit(place, **{stream: lambda x: x.flip(-1) * 0.7})]
        rest, whole = (reader.run(tokens, valid, edits=edits, resume=known) for known in (clean, None))
        assert torch.equal(rest.logits, whole.logits), (layer, stream)
        assert not torch.equal(rest.logits, clean.logits)


@pytest.mark.parametrize(("layer", "computed"), [(0, [1]), (1, [])])
def test_an_edit_of_what_leaves_a_block_computes_only_the_blocks_above(gpt2, reader, tokens, layer, computed):
    """An edit of the same place that needs the block itself, and one above, begin where they have to."""
    clean = reader.run(tokens, resumable=True)
    last = Edit(Block(layer), after=lambda x: x.flip(-1))
    assert reader.first_edited([last]) == layer + 1
    assert reader.first_edited([replace(last, mlp=double)]) == layer
    assert reader.first_edited([last, Edit(Head(0, 1), keys=double)]) == 0
    whole, met = reader.run(tokens, edits=[last]).logits, []
    hooks = [
        block.mlp.register_forward_hook(lambda *_, number=number: met.append(number))
        for number, block in enumerate(gpt2.model.transformer.h)
    ]
    try:
        assert torch.equal(reader.run(tokens, edits=[last], resume=clean).logits, whole)
    finally:
        for hook in hooks:
            hook.remove()
    assert met == computed
    assert not torch.equal(whole, clean.logits)
    both = [last, Edit(Head(1, 0), keys=double)]
    for _ in range(2):
        rest = reader.run(tokens, edits=both, resume=clean).logits
        assert torch.equal(rest, reader.run(tokens, edits=both).logits)
    assert torch.equal(reader.run(tokens, resume=clean).logits, clean.logits)


def test_projections_of_the_layer_resumed_again_are_not_computed_again(gpt2, tokens):
    """With what they gave in its place, their weights no longer matter."""
    subject = replace(gpt2, model=deepcopy(gpt2.model))
    engine = Engine(subject)
    clean = engine.run(tokens, resumable=True)
    first, second = ([Edit(Head(1, 0), queries=change)] for change in (double, torch.neg))
    whole = engine.run(tokens, edits=second).logits
    engine.run(tokens, edits=first, resume=clean)
    with torch.no_grad():
        subject.model.transformer.h[1].attn.c_attn.weight.fill_(torch.nan)
    assert torch.equal(engine.run(tokens, edits=second, resume=clean).logits, whole)
    assert engine.run(tokens, edits=second).logits.isnan().all()


def test_resuming_with_other_padding_is_refused(reader, tokens):
    valid = torch.ones_like(tokens)
    clean = reader.run(tokens, valid, resumable=True)
    valid = valid.clone()
    valid[0, 8:] = 0
    for other in (valid, None):
        with pytest.raises(AssayError, match="padded alike"):
            reader.run(tokens, other, resume=clean)


def test_a_subject_stays_ready_within_the_block_only(gpt2, reader, tokens):
    expected = reader.run(tokens).logits
    before = gpt2.model.config._attn_implementation
    with reader.ready():
        inside = gpt2.model.config._attn_implementation
        assert inside != before
        assert torch.equal(reader.run(tokens).logits, expected)
        assert gpt2.model.config._attn_implementation == inside
    assert gpt2.model.config._attn_implementation == before


@pytest.mark.parametrize("rows", [1, 4])
def test_attention_by_rows_without_an_observer(reader, tokens, rows):
    edits = [Edit(Head(0, 1), queries=double), Edit(Head(1, 0), pattern=lambda p, _: p / 2)]
    found = reader.run(tokens, edits=edits, rows=rows).logits
    torch.testing.assert_close(found, reader.run(tokens, edits=edits).logits, atol=1e-5, rtol=1e-5)


def test_resuming_without_edits_gives_the_clean_logits(reader, tokens):
    clean = reader.run(tokens, resumable=True)
    assert torch.equal(reader.run(tokens, resume=clean).logits, clean.logits)


# -- stopping -------------------------------------------------------------------------------------------------------


def blocks_met(model):
    """Which blocks are run, until the hooks are removed."""
    met = []
    blocks = enumerate(model.transformer.h)
    return met, [
        block.register_forward_pre_hook(lambda *_, number=number: met.append(number)) for number, block in blocks
    ]


@pytest.mark.parametrize("stream", READABLE)
@pytest.mark.parametrize("edits", [[], [Edit(Head(0, 1), values=double), Edit(Block(1), mlp=double)]])
def test_a_run_stops_behind_the_last_layer_that_is_read(gpt2, reader, tokens, stream, edits):
    """With the same vectors as a whole run, in which the other layers are kept as well."""
    reader.run(tokens, read=(stream,))  # what is tried out at first has been
    whole = getattr(reader.run(tokens, edits=edits, read=(stream,)), stream)
    before, hash_before = gpt2(tokens), gpt2.weights_sha256
    met, hooks = blocks_met(gpt2.model)
    try:
        for layers, expected in (([0], [0]), ([1], [0, 1]), ((1, 0), [0, 1])):
            met.clear()
            run = reader.run(tokens, edits=edits, read=(stream,), layers=layers, logits=False)
            assert met == expected
            found = getattr(run, stream)
            assert set(found) == set(layers)
            assert all(torch.equal(found[layer], whole[layer]) for layer in layers)
    finally:
        for hook in hooks:
            hook.remove()
    assert torch.equal(gpt2(tokens), before)
    assert gpt2.weights_sha256 == hash_before
    assert gpt2.model.config._attn_implementation == "sdpa"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in gpt2.model.modules())


@pytest.mark.parametrize("padded", [False, True])
def test_a_run_that_stops_may_resume_and_be_padded(reader, tokens, padded):
    valid = torch.ones_like(tokens)
    if padded:
        valid[1, 6:] = 0
    clean = reader.run(tokens, valid, resumable=True)
    edits = [Edit(Head(1, 0), queries=double)]
    read = ("attention", "queries")
    whole = reader.run(tokens, valid, edits=edits, read=read)
    for _ in range(2):
        part = reader.run_from(clean, edits=edits, read=read, layers=[1], logits=False)
        assert torch.equal(part.attention[1], whole.attention[1])
        assert torch.equal(part.queries[1], whole.queries[1])
    assert torch.equal(reader.run_from(clean, edits=edits).logits, whole.logits), "masks taken over after a stop"
    assert reader.run_from(clean, edits=edits, read=read, layers=[0], logits=False).attention == {}


def test_a_run_that_has_more_to_do_does_not_stop(gpt2, reader, tokens):
    met, hooks = blocks_met(gpt2.model)
    expected = reader.run(tokens).logits
    seen = []
    options = {"read": ("mlp",), "layers": [0]}
    try:
        for more in (
            {},
            {"logits": False, "resumable": True},
            {"logits": False, "on_pattern": lambda *given: seen.append(given)},
            {"logits": False, "on_rows": lambda *given: seen.append(given)},
        ):
            met.clear()
            run = reader.run(tokens, **options, **more)
            assert met == [0, 1]
            assert set(run.mlp) == {0}
            torch.testing.assert_close(reader.logits(run, slice(None)), expected, atol=1e-5, rtol=1e-5)
    finally:
        for hook in hooks:
            hook.remove()
    assert {layer for layer, *_ in seen} == {0, 1}


def test_a_run_that_stopped_has_no_logits(reader, tokens):
    run = reader.run(tokens, read=("mlp",), layers=[0], logits=False)
    with pytest.raises(AssayError, match=r"stopped behind layer 0, .*\(layers=\.\.\.\), and has no logits"):
        reader.logits(run, slice(0, 2))


@pytest.mark.parametrize("layers", [[2], [-1], [0, 7]])
def test_a_layer_that_is_not_there_is_refused(reader, tokens, layers):
    with pytest.raises(AssayError, match="'three-heads' has layers 0 to 1"):
        reader.run(tokens, read=("mlp",), layers=layers)


def test_rows_are_read_without_the_blocks_above(gpt2, reader):
    rng = np.random.default_rng(0)
    drawn = rng.integers(VOCABULARY, size=(5, 8))
    split = Split("random", "train", "random tokens", drawn, np.full(5, 8), drawn * 0)
    samples = collect(reader, split, ()).at(reader.site("layer0.mlp"))
    met, hooks = blocks_met(gpt2.model)
    try:
        next(samples.rows(Block(0), batch=4, steps=1))
    finally:
        for hook in hooks:
            hook.remove()
    assert set(met) == {0}


# -- manners towards the model --------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_model_is_as_it_was_after_a_run(gpt2, tokens, implementation):
    model = gpt2.model
    model.set_attn_implementation(implementation)
    before, hash_before = gpt2(tokens), gpt2.weights_sha256
    engine = Engine(gpt2)
    assert model.config._attn_implementation == implementation
    engine.run(
        tokens,
        edits=[Edit(Head(0, 0), queries=double)],
        read=("queries", "keys", "patterns", "residual", "mlp"),
        resumable=True,
    )
    assert model.config._attn_implementation == implementation
    assert torch.equal(gpt2(tokens), before)
    assert gpt2.weights_sha256 == hash_before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())
    model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("part", ["queries", "keys", "pattern", "mlp_map", *BLOCK_STREAMS])
def test_model_is_as_it_was_after_an_exception_in_an_edit(gpt2, reader, tokens, part):
    before, hash_before = gpt2(tokens), gpt2.weights_sha256
    place = Block(1) if part in ("mlp_map", *BLOCK_STREAMS) else Head(1, 0)
    clean = reader.run(tokens, resumable=True)

    def fail(*_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        reader.run(tokens, edits=[Edit(place, **{part: fail})], read=("residual", "mlp", "patterns"), resume=clean)
    assert gpt2.model.config._attn_implementation == "sdpa"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in gpt2.model.modules())
    assert not any("forward" in vars(module) for module in gpt2.model.modules())
    assert torch.equal(gpt2(tokens), before)
    assert gpt2.weights_sha256 == hash_before
    assert torch.equal(reader.run(tokens).logits, clean.logits)


def test_proxy_is_called_like_its_subject(gpt2, reader, tokens):
    edits = [Edit(Head(1, 1), keys=double)]
    proxy = EditedSubject(gpt2, edits)
    valid = torch.ones_like(tokens)
    before = gpt2(tokens)
    assert torch.equal(proxy(tokens, valid), reader.run(tokens, edits=edits).logits)
    assert torch.equal(proxy(tokens), proxy(tokens, valid))
    assert torch.equal(gpt2(tokens), before)
    assert "layer1.head1" in repr(proxy)


def test_two_proxies_of_one_subject_do_not_disturb_each_other(gpt2, tokens):
    one, other = (
        EditedSubject(gpt2, [Edit(Head(0, 0), queries=double)]),
        EditedSubject(gpt2, [Edit(Head(0, 0), keys=torch.neg)]),
    )
    alone = one(tokens)
    assert not torch.equal(other(tokens), alone)
    assert torch.equal(one(tokens), alone)


def test_identity_difference_is_small_and_notices_a_change(gpt2, reader, tokens, monkeypatch):
    found = reader.identity_difference(tokens)
    assert found.eager <= 1e-5
    assert found.as_loaded <= 1e-4
    run = reader.run
    monkeypatch.setattr(
        reader, "run", lambda tokens, valid, *, edits: run(tokens, valid, edits=[Edit(Head(0, 0), queries=double)])
    )
    assert reader.identity_difference(tokens).eager > 1e-3


# -- batches, padding and samples -----------------------------------------------------------------------------------


def test_batches_cover_each_sequence_once_within_the_budget(engine, task):
    split = task.split("train", 400)
    indices = []
    for index, batch in batches(engine, split):
        count, width = batch.tokens.shape
        assert count * width <= 4_096
        np.testing.assert_array_equal(batch.tokens, split.tokens[index, :width])
        assert width == split.lengths[index].max()
        indices.append(index)
    assert 2 <= len(indices) <= 10
    assert sorted(np.concatenate(indices).tolist()) == list(range(400))


def test_sequence_beyond_the_budget_comes_alone(engine):
    """Two sequences of 2,202 tokens have more than 4,096."""
    long = Dyck(brackets=4, max_depth=4, deeper=8, max_brackets=3_000).read_sentence("(0 0) " * 1_100)
    assert [len(index) for index, _ in batches(engine, long.take(np.zeros(3, dtype=np.int64)))] == [1, 1, 1]


def test_tensors_mark_what_is_valid(task):
    split = task.split("iid", 10)
    tokens, valid = tensors(split, torch.device("cpu"))
    assert tokens.dtype == valid.dtype == torch.int64
    np.testing.assert_array_equal(valid.sum(-1).numpy(), split.lengths)
    np.testing.assert_array_equal((tokens != task.pad_id).long().numpy(), valid.numpy())


def test_padding_and_batch_size_do_not_matter(engine, task):
    check_invariance(engine, task)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_padding_and_batch_size_do_not_matter_on_a_gpu(subject, task):
    check_invariance(Engine(subject.shuffled_copy().to("cuda")), task, tolerance=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_and_cpu_agree(subject, engine, task):
    there = Engine(replace(subject, model=deepcopy(subject.model)).to("cuda"))
    split = task.split("iid", 30)
    edits = [Edit(Head(1, 0), queries=double, pattern=lambda pattern, _: pattern / 2)]
    runs = []
    for each in (engine, there):
        tokens, valid = tensors(split, each.subject.device)
        runs.append(each.run(tokens, valid, edits=edits).logits.cpu() * valid.cpu()[..., None])
    torch.testing.assert_close(runs[1], runs[0], atol=1e-3, rtol=1e-3)
    assert there.identity_difference(tokens, valid).eager <= 1e-5


def check_invariance(engine: Engine, task, tolerance: float = 2e-5) -> None:
    """Every sequence alone, without padding, against all of them together."""
    split = task.split("iid", 24)
    tokens, valid = tensors(split, engine.subject.device)
    edits = [
        Edit(
            Head(1, 0), queries=double, pattern=lambda pattern, visible: (pattern + visible / visible.sum(-1, True)) / 2
        )
    ]
    together = engine.run(tokens, valid, edits=edits, read=("queries", "keys", "patterns", "residual"))
    for number in range(len(split)):
        length = int(split.lengths[number])
        alone = engine.run(
            tokens[number : number + 1, :length], edits=edits, read=("queries", "keys", "patterns", "residual")
        )
        pairs = [(together.logits[number, :length], alone.logits[0])]
        for layer in (0, 1):
            pairs += [
                (together.queries[layer][number, :, :length], alone.queries[layer][0]),
                (together.keys[layer][number, :, :length], alone.keys[layer][0]),
                (together.patterns[layer][number, :, :length, :length], alone.patterns[layer][0]),
                (together.residual[layer][number, :length], alone.residual[layer][0]),
            ]
        for found, expected in pairs:
            torch.testing.assert_close(found, expected, atol=tolerance, rtol=1e-4)
        assert (together.patterns[1][number, :, :length, length:] == 0).all(), "padding was attended to"


def test_collect_is_every_sequence_on_its_own(engine, task):
    split = task.split("train", 40)
    samples = collect(engine, split, ("queries", "keys"))
    assert samples.places == engine.heads
    order = np.argsort(split.lengths, kind="stable")
    for head in engine.heads:
        for stream in ("queries", "keys"):
            expected = []
            for number in order:
                tokens = torch.from_numpy(split.tokens[number : number + 1, : split.lengths[number]])
                run = engine.run(tokens, read=(stream,))
                expected.append(getattr(run, stream)[head.layer][0, head.head])
            found = getattr(samples, stream)[head]
            assert found.shape == (int(split.lengths.sum()), 32)
            torch.testing.assert_close(found, torch.cat(expected), atol=2e-5, rtol=1e-4)


def test_collect_reads_only_what_is_asked_for(engine, task):
    split = task.split("train", 5)
    nothing, keys = collect(engine, split, ()), collect(engine, split, ("keys",))
    assert nothing.places == keys.places == engine.heads
    assert (dict(nothing.queries), dict(nothing.keys), dict(keys.queries)) == ({}, {}, {})
    assert set(keys.keys) == set(engine.heads)


def test_samples_at_some_heads(samples):
    chosen = samples.at(Site("one head", {Head(1, 0): ATTENTION}))
    assert chosen.places == (Head(1, 0),)
    assert set(chosen.queries) == set(chosen.keys) == {Head(1, 0)}
    assert chosen.keys[Head(1, 0)] is samples.keys[Head(1, 0)]
