"""GGUF files for tests, written as llama.cpp's converter writes them."""

import json

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="GGUF files are written and read by the package gguf")


def permuted(weight, heads):
    """Rows of queries and keys in the order of llama.cpp: pairs that are rotated together lie beside each other."""
    width = len(weight) // heads
    order = [
        head * width + half * width // 2 + i for head in range(heads) for i in range(width // 2) for half in (0, 1)
    ]
    return weight[order]


def write(path, model, kind=None, *, permute=True, without=(), also=None, entries=None, tokenizer=None, of="gpt2"):
    """A model as llama.cpp's converter writes it.

    `kind` is how matrices are stored (default: F32), `also` are further tensors, `entries` further lines of the header,
    `of` is what kind the tokenizer is said to be.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, config.model_type)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    if config.model_type == "llama":
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_vocab_size(config.vocab_size)
    else:
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, config.num_hidden_layers)
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    for key, value in (entries or {}).items():
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(key, value)
    if tokenizer is not None:
        add_tokenizer(writer, tokenizer, of)
    tensors = {}
    for key, tensor in model.state_dict().items():
        stem, _, ending = key.rpartition(".")
        values = tensor.numpy()
        if config.tie_word_embeddings and stem == "lm_head":
            continue
        if permute and stem.endswith(("q_proj", "k_proj")):
            values = permuted(
                values, config.num_attention_heads if stem.endswith("q_proj") else config.num_key_value_heads
            )
        if stem.endswith(("c_attn", "c_proj", "c_fc")) and ending == "weight":
            values = values.T
        tensors[f"{names.get_name(stem)}.{ending}"] = values
    for name, values in (tensors | (also or {})).items():
        if name in without:
            continue
        stored = np.ascontiguousarray(values, dtype=np.float32)
        if stored.ndim < 2 or kind in (None, gguf.GGMLQuantizationType.F32):
            writer.add_tensor(name, stored)
        else:
            writer.add_tensor(name, gguf.quantize(stored, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokenizer(writer, tokenizer, kind):
    inner = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre("default")
    writer.add_token_list(sorted(inner["vocab"], key=inner["vocab"].get))
    writer.add_token_types([1] * len(inner["vocab"]))
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in inner["merges"]])
