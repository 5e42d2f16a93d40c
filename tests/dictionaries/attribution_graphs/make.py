"""Writes the files beside it: attribution graphs of a tiny model, by circuit-tracer's own code. See README.md.

python make.py, where circuit-tracer 0.5.0 can be imported.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.graph import compute_graph_scores, prune_graph
from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet
from circuit_tracer.utils.create_graph_files import create_graph_files
from tokenizers import Tokenizer, models, pre_tokenizers
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

HERE = Path(__file__).parent
LAYERS, WIDTH, FEATURES, WORDS = 3, 8, 16, 23
PROMPT = [0, 5, 9, 3, 14]
HOOKS = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "mlp.hook_out"}


def subject():
    """A model whose MLPs are of ReLUs, so that transcoders may be exact, and its tokenizer, in the folder tiny."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=WORDS, n_positions=16, n_embd=WIDTH, n_layer=LAYERS, n_head=2, n_inner=FEATURES,
        activation_function="relu", bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "ln" not in name:
                weight.normal_(std=0.45)
    words = {"<s>": 0} | {f"w{number}": number for number in range(1, WORDS)}
    plain = Tokenizer(models.WordLevel(words, unk_token="w1"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>", eos_token="<s>").save_pretrained("tiny")
    model.save_pretrained("tiny")
    return model


def lens(model, transcoders):
    """The replacement model of circuit-tracer."""
    config = HookedTransformerConfig(
        n_layers=LAYERS, d_model=WIDTH, n_ctx=16, d_head=WIDTH // 2, n_heads=2, d_mlp=FEATURES, d_vocab=WORDS,
        act_fn="relu", normalization_type="LN", tokenizer_name="tiny", model_name="tiny", device="cpu",
        original_architecture="GPT2LMHeadModel", eps=model.config.layer_norm_epsilon,
    )  # fmt: skip
    made = TransformerLensReplacementModel(config, tokenizer=AutoTokenizer.from_pretrained("tiny"))
    state = convert_gpt2_weights(model, config)
    made.load_and_process_state_dict(state, fold_ln=False, center_writing_weights=False, center_unembed=False)
    made._configure_replacement_model(transcoders)
    return made


def transcoders(model, spoiled):
    """Each MLP as a transcoder, its decoder spoiled by so much."""
    layers = {}
    for number, block in enumerate(model.transformer.h):
        one = SingleLayerTranscoder(
            WIDTH, FEATURES, torch.nn.functional.relu, number, dtype=torch.float32, device=torch.device("cpu")
        )
        with torch.no_grad():
            one.W_enc.copy_(block.mlp.c_fc.weight.T)
            one.b_enc.copy_(block.mlp.c_fc.bias)
            one.W_dec.copy_(block.mlp.c_proj.weight + spoiled * torch.randn(FEATURES, WIDTH))
            one.b_dec.copy_(block.mlp.c_proj.bias)
        layers[number] = one
    return TranscoderSet(layers, **HOOKS, scan="tiny-scan")


def cross_layer(model, spoiled):
    """The same as a cross-layer transcoder, whose features also write a little further on."""
    made = CrossLayerTranscoder(
        LAYERS, FEATURES, WIDTH, activation_function="relu", lazy_decoder=False, lazy_encoder=False, **HOOKS,
        scan="tiny-cross", dtype=torch.float32, device=torch.device("cpu"),
    )  # fmt: skip
    with torch.no_grad():
        for number, block in enumerate(model.transformer.h):
            made.W_enc[number].copy_(block.mlp.c_fc.weight.T)
            made.b_enc[number].copy_(block.mlp.c_fc.bias)
            made.b_dec[number].copy_(block.mlp.c_proj.bias)
            made.W_dec[number].normal_(std=spoiled)
            made.W_dec[number][:, 0] += block.mlp.c_proj.weight
    return made


def expected(graph):
    """What the tool says of a graph."""
    found = prune_graph(graph)
    replacement, completeness = compute_graph_scores(graph)
    return {
        "replacement": replacement,
        "completeness": completeness,
        "nodes": found.node_mask.nonzero()[:, 0].tolist(),
        "edges": int(found.edge_mask.sum()),
        "cumulative": [round(float(value), 7) for value in found.cumulative_scores],
    }


def main():
    """Everything."""
    os.chdir(HERE)
    for folder in ("tiny", "transcoders", "cross-layer"):
        shutil.rmtree(folder, ignore_errors=True)
    model = subject()
    made = {
        "transcoders": (transcoders(model, 0.2), {}),
        "exact": (transcoders(model, 0.0), {}),
        "some-features": (transcoders(model, 0.2), {"max_feature_nodes": 40}),
        "cross-layer": (cross_layer(model, 0.05), {}),
    }
    said = {}
    for name, (parts, options) in made.items():
        replaced = lens(model, parts)
        graph = attribute(torch.tensor(PROMPT), replaced, batch_size=16, max_n_logits=4, **options)
        graph.to_pt(f"{name}.pt")
        said[name] = expected(graph)
        if name in ("transcoders", "cross-layer"):
            parts.to_safetensors(name)
            kind = "transcoder_set" if name == "transcoders" else "cross_layer_transcoder"
            lines = [f"model_kind: {kind}", "model_name: tiny", f"scan: {parts.scan}"]
            Path(name, "config.yaml").write_text("\n".join(lines + [f"{key}: {own}" for key, own in HOOKS.items()]))
        if name in ("transcoders", "cross-layer", "some-features"):
            create_graph_files(f"{name}.pt", name, "./", scan="tiny-scan")
    for name, options in (
        ("whole", {"node_threshold": 1.0, "edge_threshold": 1.0}),
        ("narrow", {"node_threshold": 0.5, "edge_threshold": 0.6}),
    ):
        create_graph_files("transcoders.pt", name, "./", scan="tiny-scan", **options)
    ours = torch.tensor(PROMPT)
    said["logits"] = [round(float(value), 5) for value in model(ours[None]).logits[0, -1]]
    Path("expected.json").write_text(json.dumps(said))
    Path("graph-metadata.json").unlink()


if __name__ == "__main__":
    np.random.seed(0)
    main()
