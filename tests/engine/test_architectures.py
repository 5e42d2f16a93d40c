"""The engine on small random models of many architectures: changing nothing changes nothing, and edits stay local."""

import inspect
import sys

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    T5Config,
    T5EncoderModel,
)
from transformers.modeling_outputs import CausalLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from assay import AssayError
from assay.engine import BLOCK_STREAMS, Block, Edit, Engine, Head, run_together, shared
from assay.subjects import Subject
from assay.testing import check_architecture

VOCABULARY, POSITIONS, LAYERS = 37, 12, 3
GATED = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "initializer_range": 0.15,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
GROUPED = ("llama", "mistral", "gemma2", "gpt-oss", "qwen3")
SLIDING = 4


def configuration(name: str) -> PreTrainedConfig:
    plain = {key: value for key, value in GATED.items() if key != "num_key_value_heads"}
    alternating = ["sliding_attention", "full_attention", "sliding_attention"]
    configurations = {
        "gpt2": lambda: GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=32,
            n_embd=32,
            n_layer=LAYERS,
            n_head=4,
            initializer_range=0.15,
            bos_token_id=0,
            eos_token_id=1,
        ),
        "llama": lambda: LlamaConfig(**GATED),
        "mistral": lambda: MistralConfig(**GATED, sliding_window=SLIDING),
        "qwen3": lambda: Qwen3Config(**GATED, head_dim=8),
        "gemma2": lambda: Gemma2Config(
            **GATED,
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=SLIDING,
            attn_logit_softcapping=0.5,
            layer_types=alternating,
        ),
        "gpt-oss": lambda: GptOssConfig(
            **GATED,
            head_dim=8,
            num_local_experts=2,
            num_experts_per_tok=1,
            sliding_window=SLIDING,
            layer_types=alternating,
        ),
        "gpt-neox": lambda: GPTNeoXConfig(**plain, rotary_pct=0.5),
        "opt": lambda: OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            ffn_dim=40,
            word_embed_proj_dim=32,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            max_position_embeddings=32,
            init_std=0.15,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        ),
        "bert": lambda: BertConfig(**plain, is_decoder=True),
        "bert-encoder": lambda: BertConfig(**plain, is_decoder=False),
    }
    return configurations[name]()


CAUSAL = ("gpt2", *GROUPED, "gpt-neox", "opt", "bert")
ALL = (*CAUSAL, "bert-encoder")
PARALLEL_OR_NORMED = ("gpt-neox", "bert", "bert-encoder")
"""Without a residual stream between attention and MLP."""
_engines: dict[str, Engine] = {}


def streams_of(name: str) -> tuple[str, ...]:
    return tuple(stream for stream in BLOCK_STREAMS if stream != "middle" or name not in PARALLEL_OR_NORMED)


def engine_of(name: str) -> Engine:
    """An engine of a random model, made once."""
    if name not in _engines:
        torch.manual_seed(0)
        # In some versions of transformers the fused attention that is the default leaves out Gemma's soft-capping.
        chosen = {"attn_implementation": "eager"} if name == "gemma2" else {}
        model = AutoModelForCausalLM.from_config(configuration(name), **chosen).eval()
        _engines[name] = Engine(Subject(model, None, name))
    return _engines[name]


def tokens_for(sequences: int = 3, *, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (sequences, POSITIONS), generator=torch.Generator().manual_seed(seed))


def shifted(vectors: torch.Tensor) -> torch.Tensor:
    """An edit that changes the scores of every pair of positions differently."""
    return vectors.flip(-1) * 1.5 + 0.5


@pytest.mark.parametrize("name", ALL)
def test_identity_changes_nothing(name):
    engine = engine_of(name)
    difference = engine.identity_difference(tokens_for())
    assert difference.eager <= 1e-5
    assert difference.as_loaded <= 1e-4
    assert difference.edited_logits.std() > 0.05


@pytest.mark.parametrize("name", ALL)
def test_identity_changes_nothing_with_padding(name):
    tokens = tokens_for()
    valid = torch.ones_like(tokens)
    valid[0, 7:] = 0
    valid[2, 3:] = 0
    difference = engine_of(name).identity_difference(tokens, valid)
    assert difference.eager <= 1e-5
    assert difference.as_loaded <= 1e-4


@pytest.mark.parametrize("name", ALL)
def test_layers_and_heads_are_found(name):
    engine = engine_of(name)
    assert engine.layers == LAYERS
    assert engine.heads == tuple(Head(layer, head) for layer in range(LAYERS) for head in range(4))
    assert set(engine.widths.values()) == {8}
    assert len({engine.layer_name(layer) for layer in range(LAYERS)}) == LAYERS
    assert all(str(layer) in engine.layer_name(layer) for layer in range(LAYERS))


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("part", ["queries", "keys", "pattern"])
def test_edited_model_stays_causal(name, part):
    engine = engine_of(name)
    change = (lambda pattern, visible: visible / visible.sum(-1, keepdim=True)) if part == "pattern" else shifted
    edits = [Edit(Head(1, 2), **{part: change})]
    tokens = tokens_for()
    later = tokens.clone()
    later[:, 8:] = tokens_for(seed=2)[:, 8:]
    before, after = engine.run(tokens, edits=edits).logits, engine.run(later, edits=edits).logits
    torch.testing.assert_close(before[:, :8], after[:, :8], atol=1e-5, rtol=0)
    assert (before[:, 8:] - after[:, 8:]).abs().max() > 1e-2
    assert (before - engine.run(tokens).logits).abs().max() > 1e-3


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("part", ["queries", "keys"])
def test_edit_takes_effect_at_its_head_alone(name, part):
    engine, tokens = engine_of(name), tokens_for()
    read = ("queries", "keys", "patterns", "residual")
    clean = engine.run(tokens, read=read)
    edited = engine.run(tokens, edits=[Edit(Head(1, 2), **{part: shifted})], read=read)
    others = [0, 1, 3]
    for stream in ("queries", "keys", "patterns"):
        before, after = getattr(clean, stream), getattr(edited, stream)
        assert torch.equal(after[0], before[0]), "a layer below the edit changed"
        assert torch.equal(after[1][:, others], before[1][:, others]), "another head of the layer changed"
        changed = not torch.equal(after[1][:, 2], before[1][:, 2])
        assert changed == (stream in (part, "patterns"))
    assert torch.equal(getattr(edited, part)[1][:, 2], shifted(getattr(clean, part)[1][:, 2]))
    assert torch.equal(edited.residual[1], clean.residual[1])
    assert not torch.equal(edited.residual[2], clean.residual[2])


@pytest.mark.parametrize("name", GROUPED)
def test_editing_the_keys_of_one_head_leaves_the_rest_of_its_group(name):
    """Heads 0 and 1 share their keys, and so do 2 and 3."""
    engine, tokens = engine_of(name), tokens_for()
    clean = engine.run(tokens, read=("keys", "patterns"))
    assert torch.equal(clean.keys[0][:, 0], clean.keys[0][:, 1])
    assert not torch.equal(clean.keys[0][:, 1], clean.keys[0][:, 2])
    edited = engine.run(tokens, edits=[Edit(Head(0, 0), keys=shifted)], read=("keys", "patterns"))
    assert torch.equal(edited.keys[0][:, 1], clean.keys[0][:, 1])
    assert torch.equal(edited.patterns[0][:, 1:], clean.patterns[0][:, 1:])
    assert (edited.patterns[0][:, 0] - clean.patterns[0][:, 0]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gpt-oss"])
def test_sliding_window_is_what_an_edit_sees(name):
    seen = {}

    def note(pattern, visible):
        seen["visible"] = visible.clone()
        return pattern

    engine_of(name).run(tokens_for(), edits=[Edit(Head(0, 0), pattern=note)])
    position = torch.arange(POSITIONS)
    back = position[:, None] - position[None, :]
    expected = (back >= 0) & (back < SLIDING)
    assert torch.equal(seen["visible"], expected.expand(3, -1, -1))


@pytest.mark.parametrize("name", ALL)
def test_patterns_are_weights_over_what_is_visible(name):
    pattern = engine_of(name).run(tokens_for(), read=("patterns",)).patterns[1]
    total = pattern.sum(-1)
    if name == "gpt-oss":
        assert (total < 1 - 1e-4).all(), "the sink should have taken its share"
    else:
        torch.testing.assert_close(total, torch.ones_like(total))
    if name != "bert-encoder":
        assert (pattern.triu(1) == 0).all()


def test_soft_cap_bounds_the_patterns():
    """With scores capped to [-0.5, 0.5], no two visible weights of a row are more than a factor e apart."""
    patterns = engine_of("gemma2").run(
        tokens_for(), edits=[Edit(Head(1, 0), keys=lambda k: 100 * k)], read=("patterns",)
    )
    rows = patterns.patterns[1][:, 0]
    smallest = torch.where(torch.ones_like(rows[0]).tril().bool(), rows, torch.inf).amin(-1)
    ratio = rows.amax(-1) / smallest
    assert ratio.max() <= torch.e + 1e-4
    assert ratio.max() > 2.5


def test_sinks_take_their_share_by_hand():
    engine, tokens = engine_of("gpt-oss"), tokens_for()
    run = engine.run(tokens, read=("queries", "keys", "patterns"))
    sinks = engine.subject.model.model.layers[1].self_attn.sinks.detach()
    scores = run.queries[1] @ run.keys[1].transpose(-1, -2) / 8**0.5
    weight = scores.exp().tril()
    expected = weight / (weight.sum(-1, keepdim=True) + sinks.exp()[None, :, None, None])
    torch.testing.assert_close(run.patterns[1], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("part", ["pattern", "queries", "values"])
def test_runs_in_one_batch_are_those_alone(name, part):
    """Three runs first edited in layer 1: at one head, at another, and at both and a later one."""
    engine, tokens = engine_of(name), tokens_for()
    valid = torch.ones_like(tokens)
    valid[1, 9:] = 0
    clean = engine.run(tokens, valid, resumable=True)
    change = (lambda pattern, visible: visible / visible.sum(-1, keepdim=True)) if part == "pattern" else shifted
    first, second = Edit(Head(1, 2), **{part: change}), Edit(Head(1, 0), keys=shifted)
    edits = [[first], [second], [first, second, Edit(Head(2, 3), values=torch.zeros_like)]]
    seen = []
    runs = run_together(engine, clean, edits, rows=4, on_rows=lambda *given: seen.append(given[:3]))
    for number, (run, own) in enumerate(zip(runs, edits, strict=True)):
        alone = engine.run_from(clean, edits=own, read=("patterns",))
        torch.testing.assert_close(run.logits, alone.logits, atol=2e-6, rtol=2e-6)
        for layer, rows, pattern in seen:
            of_run = pattern.chunk(3)[number]
            expected = alone.patterns[layer][:, :, rows, : of_run.shape[-1]]
            torch.testing.assert_close(of_run, expected, atol=2e-6, rtol=0)
    assert {layer for layer, _, _ in seen} == {1, 2}
    assert [list(group) for group in shared(engine, clean, edits, most=2)] == [[0, 1], [2]]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("layer", range(LAYERS))
def test_resuming_gives_the_same_logits(name, layer):
    engine, tokens = engine_of(name), tokens_for()
    valid = torch.ones_like(tokens)
    valid[1, 9:] = 0
    clean = engine.run(tokens, valid, resumable=True)
    edits = [Edit(Head(layer, 1), queries=shifted), Edit(Head(LAYERS - 1, 0), keys=shifted)]
    whole = engine.run(tokens, valid, edits=edits, read=("patterns",))
    rest = engine.run(tokens, valid, edits=edits, read=("patterns",), resume=clean)
    assert torch.equal(rest.logits, whole.logits)
    assert set(rest.patterns) == set(range(layer, LAYERS))
    assert all(torch.equal(rest.patterns[above], whole.patterns[above]) for above in rest.patterns)
    again = engine.run(tokens, valid, edits=edits, resume=clean)
    assert torch.equal(again.logits, whole.logits), "masks and projections taken over from the run before"
    assert torch.equal(engine.run(tokens, valid).logits, clean.logits), "the model was left with known outputs"


@pytest.mark.parametrize("name", ALL)
def test_first_residual_is_the_embedding(name):
    engine, tokens = engine_of(name), tokens_for()
    run = engine.run(tokens, read=("residual",))
    assert set(run.residual) == set(range(LAYERS))
    with torch.inference_mode():
        hidden = engine.subject.model(input_ids=tokens, output_hidden_states=True).hidden_states
    for layer in range(LAYERS):
        torch.testing.assert_close(run.residual[layer], hidden[layer], atol=1e-5, rtol=0)


PROJECTED = {
    "gpt2": "transformer.h.{}.attn.c_proj",
    "gpt-neox": "gpt_neox.layers.{}.attention.dense",
    "opt": "model.decoder.layers.{}.self_attn.out_proj",
    "gemma2": "model.layers.{}.post_attention_layernorm",
    "bert": "bert.encoder.layer.{}.attention.output.dense",
    "bert-encoder": "bert.encoder.layer.{}.attention.output.dense",
}
"""What gives what attention adds, by its name; elsewhere `o_proj`. Gemma norms it first."""


def projection(name: str, layer: int) -> nn.Module:
    path = PROJECTED.get(name, "model.layers.{}.self_attn.o_proj")
    return engine_of(name).subject.model.get_submodule(path.format(layer))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("layer", range(LAYERS))
def test_attention_is_what_the_projection_gives(name, layer):
    """Read, zeroed and moved, against the model with hooks on the module that is known to give it."""
    engine, tokens = engine_of(name), tokens_for()
    seen = []
    change = torch.zeros_like if layer else shifted

    def hook(_, inputs, output):
        seen.append((inputs[0], output))
        return change(output)

    found = engine.run(tokens, read=("attention", "outputs"))
    edited = engine.run(tokens, edits=[Edit(Block(layer), attention=change)]).logits
    handle = projection(name, layer).register_forward_hook(hook)
    try:
        expected = engine.subject(tokens)
    finally:
        handle.remove()
    torch.testing.assert_close(found.attention[layer], seen[0][1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(edited, expected, atol=1e-4, rtol=1e-4)
    assert (edited - engine.run(tokens).logits).abs().max() > 1e-3
    heads = found.outputs[layer].transpose(1, 2).flatten(2)
    assert not torch.allclose(found.attention[layer], heads, atol=1e-3), "only the heads' outputs, side by side"


PROJECTIONS = {key: value for key, value in PROJECTED.items() if key != "gemma2"}
"""What projects the heads, by its name; elsewhere `o_proj`."""


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("layer", range(LAYERS))
def test_heads_are_what_enters_the_projection(name, layer):
    """Read and replaced, with padding, against the model with a hook on its output projection."""
    engine, tokens = engine_of(name), tokens_for()
    valid = torch.ones_like(tokens)
    valid[1, 9:] = 0
    path = PROJECTIONS.get(name, "model.layers.{}.self_attn.o_proj").format(layer)
    seen = []

    def hook(_, inputs):
        seen.append(inputs[0].clone())
        return (shifted(inputs[0]),)

    run = engine.run(tokens, valid, read=("heads",))
    edited = engine.run(tokens, valid, edits=[Edit(Block(layer), heads=shifted)]).logits
    handle = engine.subject.model.get_submodule(path).register_forward_pre_hook(hook)
    try:
        expected = engine.subject(tokens, valid)
    finally:
        handle.remove()
    keep = valid.bool()
    assert run.heads[layer].shape == (3, POSITIONS, 32)
    torch.testing.assert_close(run.heads[layer][keep], seen[0][keep], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(edited[keep], expected[keep], atol=1e-4, rtol=1e-4)
    assert (edited - engine.run(tokens, valid).logits)[keep].abs().max() > 1e-3


NORMS = {
    "gpt2": "transformer.h.{}.ln_2",
    "opt": "model.decoder.layers.{}.final_layer_norm",
    "gemma2": "model.layers.{}.pre_feedforward_layernorm",
}
"""The norm before the MLP by its name; elsewhere `post_attention_layernorm`."""


@pytest.mark.parametrize("name", [name for name in ALL if name not in PARALLEL_OR_NORMED])
@pytest.mark.parametrize("layer", range(LAYERS))
def test_between_attention_and_mlp_is_what_the_norm_before_the_mlp_reads(name, layer):
    """Read, and edited for the norm and for what is carried on, with hooks on the norm and on the block."""
    engine, tokens = engine_of(name), tokens_for()
    valid = torch.ones_like(tokens)
    valid[1, 9:] = 0
    norm = engine.subject.model.get_submodule(NORMS.get(name, "model.layers.{}.post_attention_layernorm").format(layer))
    seen = {}

    def enter(_, inputs):
        seen["before"] = inputs[0].clone()
        return (shifted(inputs[0]),)

    def leave(_, inputs, output):
        own = output[0] if isinstance(output, tuple) else output
        moved = own + (shifted(seen["before"]) - seen["before"]).reshape(own.shape)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    run = engine.run(tokens, valid, read=streams_of(name))
    edited = engine.run(tokens, valid, edits=[Edit(Block(layer), middle=shifted)], read=("middle",))
    handles = [norm.register_forward_pre_hook(enter), engine.modules[layer].register_forward_hook(leave)]
    try:
        expected = engine.subject(tokens, valid)
    finally:
        for handle in handles:
            handle.remove()
    keep = valid.bool()
    before = seen["before"].reshape(run.middle[layer].shape)
    torch.testing.assert_close(run.middle[layer][keep], before[keep], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(edited.middle[layer], shifted(run.middle[layer]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(edited.logits[keep], expected[keep], atol=1e-4, rtol=1e-4)
    assert torch.equal(run.middle[layer], run.residual[layer] + run.attention[layer])
    behind = (run.after[layer] - run.middle[layer])[keep]
    if name == "gemma2":
        mlp = engine.modules[layer].post_feedforward_layernorm(run.mlp[layer]).detach()[keep]
        torch.testing.assert_close(behind, mlp, atol=1e-5, rtol=1e-4)
    else:
        torch.testing.assert_close(behind, run.mlp[layer][keep], atol=1e-5, rtol=1e-4)
    nothing = engine.run(tokens, valid, edits=[Edit(Block(layer), middle=lambda x: x)]).logits
    torch.testing.assert_close(nothing, run.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gpt-neox", "its MLP does not read it"),
        ("bert", "not that stream and what a module adds"),
        ("bert-encoder", ""),
    ],
)
def test_a_block_without_a_stream_between_attention_and_mlp_says_so(name, reason):
    engine, tokens = engine_of(name), tokens_for()
    words = rf"layer 0 of '{name}'\) has no residual stream between attention and MLP: .*{reason}"
    for call in (
        lambda: engine.site("layer1.middle"),
        lambda: engine.run(tokens, read=("middle",)),
        lambda: engine.run(tokens, edits=[Edit(Block(1), middle=shifted)]),
    ):
        with pytest.raises(AssayError, match=words):
            call()


@pytest.mark.parametrize(
    ("name", "change"),
    [(name, change) for name in CAUSAL for change in ("mlp_map", *streams_of(name))],
)
def test_a_model_whose_block_is_edited_stays_causal_and_reads_a_sequence_alone(name, change):
    """Later tokens, padding and the rest of the batch do not matter."""
    engine, tokens = engine_of(name), tokens_for()
    functions = {"mlp_map": lambda entered, given: given + shifted(entered)[..., : given.shape[-1]]}
    edits = [Edit(Block(1), **{change: functions.get(change, shifted)})]
    later = tokens.clone()
    later[:, 8:] = tokens_for(seed=2)[:, 8:]
    edited = engine.run(tokens, edits=edits).logits
    torch.testing.assert_close(engine.run(later, edits=edits).logits[:, :8], edited[:, :8], atol=1e-5, rtol=0)
    torch.testing.assert_close(engine.run(tokens[:1], edits=edits).logits, edited[:1], atol=1e-5, rtol=1e-5)
    valid = torch.ones_like(tokens)
    valid[:, 8:] = 0
    short = engine.run(tokens[:, :8], edits=edits).logits
    torch.testing.assert_close(engine.run(later, valid, edits=edits).logits[:, :8], short, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in ALL if "bert" not in name and name != "gemma2"])
def test_a_block_adds_its_attention_and_its_mlp(name):
    run = engine_of(name).run(tokens_for(), read=streams_of(name))
    for layer in range(LAYERS):
        added = run.residual[layer] + run.attention[layer] + run.mlp[layer]
        torch.testing.assert_close(run.after[layer], added, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_what_leaves_a_block_enters_the_next(name):
    """The last one's is what the model's head begins with, which an edit of it alone decides."""
    engine, tokens = engine_of(name), tokens_for()
    run = engine.run(tokens, read=("after", "residual"))
    for layer in range(LAYERS - 1):
        assert torch.equal(run.after[layer], run.residual[layer + 1])
    others = engine.run(tokens_for(seed=5), read=("after",))
    last = Edit(Block(LAYERS - 1), after=lambda _: others.after[LAYERS - 1])
    torch.testing.assert_close(engine.run(tokens, edits=[last]).logits, others.logits, atol=1e-5, rtol=0)
    first = Edit(Block(0), residual=shifted)
    second = Edit(Block(1), residual=shifted)
    before = Edit(Block(0), after=shifted)
    assert torch.equal(engine.run(tokens, edits=[second]).logits, engine.run(tokens, edits=[before]).logits)
    assert not torch.equal(engine.run(tokens, edits=[first]).logits, engine.run(tokens, edits=[before]).logits)


@pytest.mark.parametrize(("name", "stream"), [(name, stream) for name in ALL for stream in streams_of(name)])
@pytest.mark.parametrize("layer", range(LAYERS))
def test_edits_of_blocks_resume_and_share_a_batch(name, layer, stream):
    engine, tokens = engine_of(name), tokens_for()
    valid = torch.ones_like(tokens)
    valid[1, 9:] = 0
    clean = engine.run(tokens, valid, resumable=True)
    own = [Edit(Block(layer), **{stream: shifted})]
    other = [Edit(Block(layer), **{stream: torch.zeros_like}), Edit(Head(LAYERS - 1, 1), values=shifted)]
    alone = [engine.run(tokens, valid, edits=edits).logits for edits in (own, other)]
    assert not torch.equal(alone[0], alone[1])
    for edits, whole in zip((own, other), alone, strict=True):
        assert torch.equal(engine.run_from(clean, edits=edits).logits, whole)
        assert torch.equal(engine.run_from(clean, edits=edits).logits, whole)
    runs = run_together(engine, clean, [own, other, own])
    for run, whole in zip(runs, (*alone, alone[0]), strict=True):
        torch.testing.assert_close(run.logits, whole, atol=2e-6, rtol=2e-6)


MLPS = {
    "gpt2": ("transformer.h.{}.mlp", "transformer.h.{}.mlp"),
    "gpt-neox": ("gpt_neox.layers.{}.mlp", "gpt_neox.layers.{}.mlp"),
    "opt": ("model.decoder.layers.{}.fc1", "model.decoder.layers.{}.fc2"),
    "bert": ("bert.encoder.layer.{}.intermediate.dense", "bert.encoder.layer.{}.output.dense"),
    "bert-encoder": ("bert.encoder.layer.{}.intermediate.dense", "bert.encoder.layer.{}.output.dense"),
}
"""What an MLP's input enters and what its output leaves, by their names; elsewhere the module `mlp`."""


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("layer", range(LAYERS))
def test_an_mlp_is_read_and_replaced_as_by_hooks(name, layer):
    """With padding: input and output of one pass, and a transcoder of them that is fitted by least squares."""
    engine, tokens = engine_of(name), tokens_for()
    valid = torch.ones_like(tokens)
    valid[1, 9:] = 0
    entry, exit_ = (
        engine.subject.model.get_submodule(path.format(layer))
        for path in MLPS.get(name, ("model.layers.{}.mlp", "model.layers.{}.mlp"))
    )
    run = engine.run(tokens, valid, read=("mlp_input", "mlp"))
    x, y = run.mlp_input[layer], run.mlp[layer]
    map_ = torch.linalg.lstsq(x[valid.bool()], y[valid.bool()]).solution
    seen = {}

    def change(entered, given):
        return entered @ map_ + 0.1 * given

    def replace(_, inputs, output):
        given = output[0] if isinstance(output, tuple) else output
        seen["output"] = given.reshape(y.shape).clone()
        changed = change(seen["input"], seen["output"]).reshape(given.shape)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    hooks = [
        entry.register_forward_pre_hook(lambda _, inputs: seen.update(input=inputs[0].reshape(x.shape).clone())),
        exit_.register_forward_hook(replace),
    ]
    try:
        expected = engine.subject(tokens, valid)
    finally:
        for hook in hooks:
            hook.remove()
    keep = valid.bool()
    torch.testing.assert_close(x[keep], seen["input"][keep], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(y[keep], seen["output"][keep], atol=1e-5, rtol=1e-4)
    found = engine.run(tokens, valid, edits=[Edit(Block(layer), mlp_map=change)]).logits
    torch.testing.assert_close(found[keep], expected[keep], atol=1e-4, rtol=1e-4)
    assert (found - engine.run(tokens, valid).logits)[keep].abs().max() > 1e-3


class Sideways(nn.Module):
    """An MLP that looks at the position before, too."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.inner = mlp

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.inner(hidden) + hidden.cumsum(dim=1)


def test_an_mlp_that_sees_more_than_its_input_at_a_position_is_refused():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(configuration("llama")).eval()
    model.model.layers[1].mlp = Sideways(model.model.layers[1].mlp)
    engine = Engine(Subject(model, None, "mine"))
    for call in (
        lambda: engine.site("layer0.mlp_input"),
        lambda: engine.run(tokens_for(), edits=[Edit(Block(0), mlp_map=lambda x, y: x)]),
    ):
        with pytest.raises(AssayError, match=r"layer 1 of 'mine'\) is not made of what enters Sideways alone"):
            call()
    assert engine.site("all.mlp").places == engine.blocks


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("layer", range(LAYERS))
def test_a_run_that_stops_reads_what_a_whole_run_reads(name, layer):
    engine, tokens = engine_of(name), tokens_for()
    valid = torch.ones_like(tokens)
    valid[1, 9:] = 0
    read = ("values", "patterns", *streams_of(name))
    whole = engine.run(tokens, valid, read=read)
    part = engine.run(tokens, valid, read=read, layers=[layer], logits=False)
    for stream in read:
        assert set(getattr(part, stream)) == {layer}
        assert torch.equal(getattr(part, stream)[layer], getattr(whole, stream)[layer])
    assert torch.equal(engine.run(tokens, valid).logits, whole.logits)


def scaled_residuals() -> PreTrainedModel:
    """A Granite that halves what attention adds, after the projection."""
    return AutoModelForCausalLM.from_config(GraniteConfig(**GATED, residual_multiplier=0.5))


def t5() -> PreTrainedModel:
    """Its block is two lists of modules in one another."""
    size = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 4}
    return T5EncoderModel(T5Config(**size, initializer_factor=1.0))


@pytest.mark.parametrize(
    ("make", "refused", "block"),
    [(scaled_residuals, "attention", "GraniteDecoderLayer"), (t5, "after", "T5LayerSelfAttention")],
)
def test_streams_that_an_architecture_does_not_have_are_refused(make, refused, block):
    engine = Engine(Subject(make().eval(), None, "mine"))
    tokens = tokens_for()
    words = rf"{block} .*layer 0 of 'mine'.* \.{refused} cannot be used"
    for call in (
        lambda: engine.site(f"all.{refused}"),
        lambda: engine.site(f"layer0.head1+layer1.{refused}"),
        lambda: engine.run(tokens, read=(refused,)),
        lambda: engine.run(tokens, edits=[Edit(Block(1), **{refused: shifted})]),
    ):
        with pytest.raises(AssayError, match=words):
            call()
    for other in {"attention", "after"} - {refused}:
        assert engine.site(f"all.{other}").places == engine.blocks
    assert engine.site("embeddings").places == (Block(0),)


def test_attention_that_adds_nothing_in_one_block():
    """Its module is found by that of the others."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(configuration("llama")).eval()
    nn.init.zeros_(model.model.layers[1].self_attn.o_proj.weight)
    engine = Engine(Subject(model, None, "mine"))
    tokens = tokens_for()
    run = engine.run(tokens, read=("attention",))
    assert [bool(run.attention[layer].any()) for layer in range(LAYERS)] == [True, False, True]
    edited = engine.run(tokens, edits=[Edit(Block(1), attention=lambda x: x + 1)], read=("residual",))
    assert (edited.residual[2] - run.attention[1]).abs().max() > 0.1
    assert not torch.allclose(edited.logits, run.logits, atol=1e-3)


@pytest.mark.parametrize(
    "config",
    [
        GPTNeoConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global"], 2]],
            max_position_embeddings=32,
            bos_token_id=0,
            eos_token_id=1,
        ),
        GPTJConfig(
            vocab_size=VOCABULARY,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=32,
            rotary_dim=4,
            bos_token_id=0,
            eos_token_id=1,
        ),
        BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1),
        FalconConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            bos_token_id=0,
            eos_token_id=1,
        ),
    ],
    ids=["gpt-neo", "gpt-j", "bloom", "falcon"],
)
def test_architecture_outside_the_interface_is_refused_by_name(config):
    """Transformers moves one after the other of them to its interface; those that it has moved are supported."""
    model = AutoModelForCausalLM.from_config(config).eval()
    before = model.config._attn_implementation
    if "ALL_ATTENTION_FUNCTIONS" in inspect.getsource(sys.modules[type(model).__module__]):
        assert check_architecture(model).layers == 2
    else:
        with pytest.raises(AssayError, match=rf"{type(model).__name__} \('mine'\).*not supported"):
            Engine(Subject(model, None, "mine"))
    assert model.config._attn_implementation == before


class PlantedAttention(nn.Module):
    """Attention of states to themselves: of positions in 5 heads, of two layers at each position, or of the ends."""

    num_key_value_groups = 1

    def __init__(self, config: PreTrainedConfig, to: str) -> None:
        super().__init__()
        self.config, self.to = config, to

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        key = hidden.unflatten(-1, (5, 4)).transpose(1, 2)
        query = key[:, :, [0, -1]] if self.to == "ends" else key
        if self.to == "layers":
            query, key = hidden[:, :, None], torch.stack((hidden, hidden.flip(-1)), dim=2)
        own = self.to == "positions, by itself"
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        mixed = (eager_attention_forward if own else attend)(self, query, key, key, None, scaling=1.0)[0]
        if self.to == "layers":
            return mixed[:, 0]
        return mixed.flatten(2) if self.to != "ends" else mixed.flatten(2).mean(1, keepdim=True)


class PlantedBlock(nn.Module):
    def __init__(self, config: PreTrainedConfig, attends_to: tuple[str, ...]) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({str(i): PlantedAttention(config, to) for i, to in enumerate(attends_to)})

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for attention in self.attention.values():
            hidden = hidden + attention(hidden)
        return hidden


class PlantedForCausalLM(PreTrainedModel):
    """Three blocks around attention modules, without any weights but the embedding's."""

    config_class = PreTrainedConfig
    _supports_attention_backend = True

    def __init__(self, *attends_to: str) -> None:
        super().__init__(PreTrainedConfig(vocab_size=VOCABULARY, max_position_embeddings=32))
        self.embed_tokens = nn.Embedding(VOCABULARY, 20)
        self.blocks = nn.ModuleList([PlantedBlock(self.config, attends_to) for _ in range(LAYERS)])
        self.post_init()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> CausalLMOutput:
        hidden = self.embed_tokens(input_ids)
        for block in self.blocks:
            hidden = block(hidden)
        return CausalLMOutput(logits=hidden @ self.embed_tokens.weight.T)


def planted(*attends_to: str) -> PlantedForCausalLM:
    torch.manual_seed(0)
    return PlantedForCausalLM(*attends_to).eval()


@pytest.mark.parametrize(
    ("attends_to", "reason"),
    [
        (("positions, by itself",), r"PlantedForCausalLM \('mine'\) does not compute attention through"),
        (("positions", "positions, by itself"), "its PlantedAttention computes attention beside"),
        (("layers",), "does not compute attention through"),
        (("positions", "ends"), "PlantedAttention attends to 5 keys from 2 tokens"),
    ],
)
def test_attention_that_could_not_be_edited_is_refused_by_name(attends_to, reason):
    """Five heads are as many as the tokens that the engine tries, and still no positions."""
    with pytest.raises(AssayError, match=f"{reason}.*not supported"):
        Engine(Subject(planted(*attends_to), None, "mine"))


def test_attention_to_layers_is_left_alone():
    support = check_architecture(planted("layers", "positions", "layers"))
    assert (support.layers, support.heads) == (LAYERS, 5 * LAYERS)
    assert support.not_reached == ("PlantedAttention",)
