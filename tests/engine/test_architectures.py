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
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)
from transformers.modeling_outputs import CausalLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from assay import AssayError
from assay.engine import Edit, Engine, Head, run_together, shared
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
_engines: dict[str, Engine] = {}


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
