"""Makes the files beside it with the code of EAP-IG and of auto-circuit; see README.md. No test runs it.

python make.py EAP_IG AUTO_CIRCUIT, the folders in which `eap` and `auto_circuit` can be imported.
"""

import sys
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import MagicMock

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights, convert_llama_weights
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

sys.path[:0] = sys.argv[1:3]
for name in ("tracr", "tracr.compiler", "tracr.compiler.compiling", "tracr.rasp", "kaleido", "blobfile", "word2word"):
    sys.modules[name] = MagicMock()  # what auto-circuit imports and scores do not need

HERE = Path(__file__).parent
VOCABULARY, PAIRS, POSITIONS = 11, 8, 6


def gpt2():
    """Two layers of two heads."""
    size = {"n_positions": 8, "n_embd": 8, "n_layer": 2, "n_head": 2}
    own = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **size, bos_token_id=None, eos_token_id=None))
    sizes = {"n_layers": 2, "d_model": 8, "n_ctx": 8, "d_head": 4, "n_heads": 2, "d_vocab": VOCABULARY}
    lens = HookedTransformerConfig(**sizes, act_fn="gelu_new", normalization_type="LN", eps=1e-5)
    return own, HookedTransformer(lens), convert_gpt2_weights


def llama():
    """Two layers of four heads, two of which share keys and values."""
    size = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "max_position_embeddings": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=VOCABULARY, **size, **heads, bos_token_id=None, eos_token_id=None)
    sizes = {"n_layers": 2, "d_model": 8, "n_ctx": 8, "d_head": 2, "n_heads": 4, "d_vocab": VOCABULARY, "d_mlp": 12}
    lens = HookedTransformerConfig(
        **sizes, act_fn="silu", normalization_type="RMS", eps=config.rms_norm_eps, n_key_value_heads=2, gated_mlp=True,
        positional_embedding_type="rotary", rotary_dim=2, rotary_base=10_000, final_rms=True,
        rotary_adjacent_pairs=False, ungroup_grouped_query_attention=True,
    )  # fmt: skip
    return LlamaForCausalLM(config), HookedTransformer(lens), convert_llama_weights


def made(make, name):
    """A model with far from even attention, saved, and the same in TransformerLens."""
    torch.manual_seed(1)
    own, lens, convert = make()
    own.eval()
    with torch.no_grad():
        for parameter in own.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10)
            else:
                parameter.add_(torch.randn_like(parameter) / 10)
    own.save_pretrained(HERE / name)
    lens.load_state_dict(convert(own, lens.cfg), strict=False)  # what is missing is nought: the logits are compared
    for flag in ("use_attn_result", "use_split_qkv_input", "use_hook_mlp_in"):
        setattr(lens.cfg, flag, True)
    return own, lens


def pairs(model):
    """Sequences with one token changed; answer and foil are the tokens whose logits that lowers and raises most."""
    generator = torch.Generator().manual_seed(2)
    clean = torch.randint(VOCABULARY, (PAIRS, POSITIONS), generator=generator)
    corrupt = clean.clone()
    corrupt[:, 3] = (clean[:, 3] + torch.randint(1, VOCABULARY, (PAIRS,), generator=generator)) % VOCABULARY
    with torch.no_grad():
        lowered = (model(clean).logits - model(corrupt).logits)[:, -1]
    return {"clean": clean, "corrupt": corrupt, "answers": lowered.argmax(1), "foils": lowered.argmin(1)}


@contextmanager
def on_a_cpu():
    """EAP-IG asks for a GPU by name."""
    before = torch.zeros

    def zeros(*shape, device=None, **options):
        return before(*shape, device="cpu" if device == "cuda" else device, **options)

    torch.zeros = zeros
    try:
        yield
    finally:
        torch.zeros = before


def eap_ig(name, lens, own, given):
    """Scores, and circuits of some sizes, as their `to_json` and `to_pt` write them."""
    from eap import attribute as attribution  # noqa: PLC0415
    from eap.graph import Graph  # noqa: PLC0415

    clean, corrupt, answers, foils = given.values()
    torch.testing.assert_close(lens(clean), own(clean).logits, atol=1e-4, rtol=1e-4)
    attribution.tokenize_plus = lambda _, rows, __=None: (rows, None, torch.full((len(rows),), POSITIONS), POSITIONS)

    def loss(logits, _, __, label):
        return -(logits[:, -1].gather(1, label).diff(dim=1).neg().sum())

    graph = Graph.from_model(lens)
    label = torch.stack((answers, foils), dim=1)
    with on_a_cpu():
        attribution.attribute(lens, graph, [(clean, corrupt, label)], loss, "EAP", quiet=True)
    graph.to_json(str(HERE / f"{name}-scores.json"))
    graph.apply_topn(20, absolute=True, prune=False)
    graph.to_json(str(HERE / f"{name}-20.json"))
    graph.to_pt(str(HERE / f"{name}-20.pt"))
    neurons = Graph.from_model(lens, neuron_level=True)
    neurons.reset(empty=False)
    neurons.to_pt(str(HERE / f"{name}-neurons.pt"))


def auto_circuit(lens, given):
    """Scores of auto-circuit's gradient of masks, saved as torch saves a dictionary."""
    from auto_circuit.data import PromptDataLoader, PromptDataset  # noqa: PLC0415
    from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores  # noqa: PLC0415
    from auto_circuit.utils.graph_utils import patchable_model  # noqa: PLC0415

    clean, corrupt, answers, foils = given.values()
    data = PromptDataset(clean, corrupt, list(answers[:, None]), list(foils[:, None]))
    loader = PromptDataLoader(data, seq_len=None, diverge_idx=0, batch_size=PAIRS, shuffle=False)
    model = patchable_model(lens, factorized=True, slice_output="last_seq", separate_qkv=True)
    scores = mask_gradient_prune_scores(
        model, loader, None, grad_function="logit", answer_function="avg_diff", mask_val=0.0
    )
    torch.save(scores, HERE / "gpt2-prune-scores.pt")


if __name__ == "__main__":
    given = {}
    for name, make in (("gpt2", gpt2), ("llama", llama)):
        own, lens = made(make, name)
        given[name] = pairs(own)
        eap_ig(name, lens, own, given[name])
        if name == "gpt2":
            auto_circuit(lens, given[name])
    torch.save(given, HERE / "pairs.pt")
