"""Published hook names and module paths as sites: the vectors there are those that a hook of one's own sees."""

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    T5Config,
    T5EncoderModel,
)

from assay import AssayError
from assay.engine import Engine, Head, affine_of_hook, site_of_hook
from assay.subjects import Subject

VOCABULARY, LAYERS = 37, 3
SIZE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "initializer_range": 0.15,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
_engines: dict[str, Engine] = {}


def configuration(name: str) -> PreTrainedConfig:
    if name == "gpt2":
        size = {"vocab_size": VOCABULARY, "n_positions": 32, "n_embd": 32, "n_layer": LAYERS, "n_head": 4}
        return GPT2Config(**size, initializer_range=0.15, bos_token_id=0, eos_token_id=1)
    made = {
        "llama": lambda: LlamaConfig(**SIZE, num_key_value_heads=2),
        "gpt-neox": lambda: GPTNeoXConfig(**SIZE, rotary_pct=0.5),
        "gemma2": lambda: Gemma2Config(**SIZE, num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8),
        "bert": lambda: BertConfig(**SIZE, is_decoder=True),
    }
    return made[name]()


def engine_of(name: str) -> Engine:
    """An engine of a random model, its norms' weights and biases random, too; made once."""
    if name not in _engines:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(configuration(name), attn_implementation="eager").eval()
        with torch.no_grad():
            for path, parameter in model.named_parameters():
                if "norm" in path.lower() or "ln_" in path:
                    parameter.add_(0.3 * torch.randn_like(parameter))
        _engines[name] = Engine(Subject(model, None, name))
    return _engines[name]


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("blocks.1.hook_resid_pre", "layer1.residual"),
        ("blocks.0.hook_resid_mid", "layer0.middle"),
        ("blocks.1.hook_resid_post", "layer1.after"),
        ("blocks.2.hook_resid_post", "layer2.after"),
        ("blocks.1.hook_attn_out", "layer1.attention"),
        ("blocks.2.attn.hook_z", "layer2.heads"),
        ("blocks.1.hook_mlp_out", "layer1.mlp"),
        ("blocks.1.mlp.hook_out", "layer1.mlp"),
        ("blocks.1.mlp.hook_in", "layer1.mlp_input"),
        ("blocks.0.ln2.hook_normalized", "layer0.mlp_input"),
        ("transformer.h.2", "layer2.after"),
        ("h.2", "layer2.after"),
        ("transformer.h.1.mlp", "layer1.mlp"),
        ("h.1.mlp", "layer1.mlp"),
        ("h.1.attn", "layer1.attention"),
    ],
)
def test_names_of_places_in_gpt2(hook, site):
    engine = engine_of("gpt2")
    assert site_of_hook(engine, hook) == site
    assert engine.site(site).name == site


@pytest.mark.parametrize(
    ("name", "hook", "site"),
    [
        ("llama", "model.layers.2", "layer2.after"),
        ("llama", "layers.0.mlp", "layer0.mlp"),
        ("llama", "layers.1.self_attn", "layer1.attention"),
        ("llama", "blocks.1.hook_resid_mid", "layer1.middle"),
        ("gpt-neox", "gpt_neox.layers.1", "layer1.after"),
        ("gpt-neox", "blocks.1.hook_mlp_out", "layer1.mlp"),
        ("gpt-neox", "blocks.1.hook_resid_post", "layer1.after"),
        ("gemma2", "model.layers.1.mlp", "layer1.mlp"),
        ("gemma2", "blocks.1.mlp.hook_out", "layer1.mlp"),
        ("gemma2", "blocks.1.hook_resid_post", "layer1.after"),
        ("gemma2", "blocks.1.hook_attn_out", "layer1.attention"),
        ("bert", "blocks.1.hook_resid_pre", "layer1.residual"),
        ("bert", "bert.encoder.layer.1", "layer1.after"),
        ("bert", "blocks.1.hook_mlp_out", "layer1.mlp"),
    ],
)
def test_names_of_places_elsewhere(name, hook, site):
    assert site_of_hook(engine_of(name), hook) == site


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt-neox", "gemma2"])
@pytest.mark.parametrize("path", ["layers.1", "layers.1.mlp"])
def test_a_path_stands_for_what_its_module_gives(name, path):
    engine, tokens = engine_of(name), torch.arange(3, 12)[None]
    path = path.replace("layers", "h") if name == "gpt2" else path
    (module,) = (own for other, own in engine.subject.model.named_modules() if other.endswith(f".{path}"))
    seen = []
    handle = module.register_forward_hook(lambda *given: seen.append(given[2]))
    try:
        engine.subject(tokens)
    finally:
        handle.remove()
    layer, stream = site_of_hook(engine, path).split(".")
    given = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    found = getattr(engine.run(tokens, read=(stream,)), stream)[int(layer.removeprefix("layer"))]
    torch.testing.assert_close(found, given, atol=1e-5, rtol=1e-4)


def test_a_head_of_hook_z_is_its_outputs():
    engine = engine_of("gpt2")
    assert site_of_hook(engine, "blocks.2.attn.hook_z", head=3) == "layer2.head3.outputs"
    assert engine.site("layer2.head3.outputs").places == (Head(2, 3),)
    for hook, head in (("blocks.2.attn.hook_z", 4), ("blocks.2.attn.hook_z", -1), ("blocks.2.hook_mlp_out", 0)):
        with pytest.raises(AssayError, match=rf"hook '{hook}' with head {head}: .*attn\.hook_z, 0 to 3 in 'gpt2'"):
            site_of_hook(engine, hook, head=head)


@pytest.mark.parametrize(
    ("name", "hook", "words"),
    [
        ("gpt2", "blocks.3.hook_resid_pre", r"'gpt2' has attention in the blocks of number 0, 1, 2, and 3 is none"),
        ("gpt2", "blocks.1.attn.hook_q", r"is none of its modules in 'gpt2'; .*hook_resid_mid.*'transformer\.h\.0'"),
        ("gpt2", "hook_embed", "is none of its modules"),
        ("gpt2", "", "is none of its modules"),
        ("gpt2", "blocks.x.hook_resid_pre", "is none of its modules"),
        ("gpt2", "mlp", r"is the end of several modules \(transformer\.h\.0\.mlp"),
        ("gpt2", "h.1.ln_2", "what LayerNorm gives is no site of 'gpt2'"),
        ("gpt2", "transformer.wte", "what Embedding gives is no site"),
        ("gpt-neox", "blocks.1.hook_resid_mid", r"would be layer1\.middle, but GPTNeoXLayer .*may stand beside"),
        ("gemma2", "blocks.1.hook_mlp_out", r"is behind the Gemma2RMSNorm of layer1 .*layer1\.mlp is not"),
        ("gemma2", "layers.1.self_attn", "what Gemma2Attention gives is no site"),
        ("bert", "blocks.1.hook_resid_post", r"is before the LayerNorm of layer1 .*layer1\.after is not"),
        ("bert", "blocks.1.hook_resid_mid", r"would be layer1\.middle, but BertLayer .*a norm or a scale follows"),
    ],
)
def test_what_has_no_counterpart_is_refused(name, hook, words):
    with pytest.raises(AssayError, match=rf"^hook '{hook}'.*{words}"):
        site_of_hook(engine_of(name), hook)


class Convolution(nn.Module):
    """A block without attention."""

    attention_type = "none"

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.norm = other.ln_2

    def forward(self, hidden: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return hidden + self.norm(hidden)


def test_blocks_are_counted_by_number_and_layers_by_attention():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(configuration("gpt2")).eval()
    model.transformer.h[1] = Convolution(model.transformer.h[1])
    engine = Engine(Subject(model, None, "hybrid"))
    assert engine.layers == 2
    assert site_of_hook(engine, "blocks.2.hook_resid_pre") == "layer1.residual"
    assert site_of_hook(engine, "blocks.2.mlp.hook_in") == "layer1.mlp_input"
    assert site_of_hook(engine, "h.2") == "layer1.after"
    with pytest.raises(AssayError, match="has attention in the blocks of number 0, 2, and 1 is none of them"):
        site_of_hook(engine, "blocks.1.hook_resid_pre")
    with pytest.raises(AssayError, match="what Convolution gives is no site"):
        site_of_hook(engine, "h.1")


def test_a_block_in_two_lists_is_counted_in_the_outer_one():
    size = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 4}
    engine = Engine(Subject(T5EncoderModel(T5Config(**size)).eval(), None, "t5"))
    assert site_of_hook(engine, "blocks.1.attn.hook_z") == "layer1.heads"


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt-neox", "gemma2"])
def test_a_normalized_input_is_found_again_from_what_enters_the_mlp(name):
    """By the norm's own formula, from what enters the norm; Gemma's weight counts from 1."""
    engine, tokens = engine_of(name), torch.arange(3, 12)[None]
    hook = "blocks.1.ln2.hook_normalized"
    weight, bias = affine_of_hook(engine, hook)
    run = engine.run(tokens, read=("mlp_input", "residual", *(() if name == "gpt-neox" else ("middle",))))
    x = run.residual[1] if name == "gpt-neox" else run.middle[1]
    centred = x - x.mean(dim=-1, keepdim=True) if name in ("gpt2", "gpt-neox") else x
    eps = 1e-5 if name in ("gpt2", "gpt-neox") else 1e-6
    expected = centred / (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    assert site_of_hook(engine, hook) == "layer1.mlp_input"
    torch.testing.assert_close((run.mlp_input[1] - bias) / weight, expected, atol=1e-4, rtol=1e-3)
    assert bool(bias.any()) == (name in ("gpt2", "gpt-neox"))


def test_what_needs_no_norm_undone_says_so():
    engine = engine_of("gpt2")
    for hook in ("blocks.1.mlp.hook_in", "blocks.1.hook_resid_pre", "h.1.mlp"):
        assert affine_of_hook(engine, hook) is None
    with pytest.raises(AssayError, match="is none of its modules"):
        affine_of_hook(engine, "nothing")


def test_a_norm_whose_weight_is_0_cannot_be_undone():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(configuration("llama")).eval()
    with torch.no_grad():
        model.model.layers[1].post_attention_layernorm.weight[5] = 0
    engine = Engine(Subject(model, None, "mine"))
    assert affine_of_hook(engine, "blocks.0.ln2.hook_normalized") is not None
    with pytest.raises(AssayError, match="has a weight that is 0"):
        affine_of_hook(engine, "blocks.1.ln2.hook_normalized")


def test_an_mlp_without_a_norm_before_it_says_so():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(configuration("gpt2")).eval()
    model.transformer.h[1].ln_2 = nn.Identity()
    engine = Engine(Subject(model, None, "mine"))
    with pytest.raises(AssayError, match=r"no norm was found whose output enters .*mlp\.hook_in"):
        affine_of_hook(engine, "blocks.1.ln2.hook_normalized")
