"""Tiny random models of any architecture that transformers knows, made from its configuration class alone."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

WIDTH, HEADS, HEAD_WIDTH, LAYERS, VOCABULARY, POSITIONS = 32, 4, 8, 3, 128, 64

FIRST_TOKEN, LAST_TOKEN = 5, 90
"""Ordinary tokens of the tiny models: padding and the like come before, placeholders of images and sounds after."""

_SIZES: dict[str, int] = {
    name: size
    for size, names in (
        (WIDTH, "hidden_size d_model n_embd dim embed_dim emb_dim embedding_size word_embed_proj_dim embedding_dim"),
        (HEADS, "num_attention_heads n_head num_heads n_heads encoder_attention_heads decoder_attention_heads "
                "num_encoder_attention_heads num_decoder_attention_heads attention_heads swa_num_attention_heads"),
        (HEAD_WIDTH, "head_dim d_kv kv_channels dim_head d_head swa_head_dim attention_head_size index_head_dim "
                     "qk_rope_head_dim qk_nope_head_dim v_head_dim rotary_dim swa_v_head_dim"),
        (LAYERS, "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers depth "
                 "num_encoder_layers num_decoder_layers"),
        (40, "intermediate_size ffn_dim d_ff encoder_ffn_dim decoder_ffn_dim n_inner ffn_hidden_size hidden_dim dff "
             "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size mlp_dim dim_ff "
             "intermediate_size_mlp expert_ffn_hidden_size moe_shared_expert_intermediate_size d_inner "
             "dense_intermediate_size shared_experts_intermediate_size"),
        (POSITIONS, "max_position_embeddings n_positions n_ctx max_sequence_length max_seq_len "
                    "max_target_positions context_length"),
        (4, "num_experts num_local_experts n_routed_experts moe_num_experts n_shared_experts num_shared_experts "
            "moe_num_shared_experts index_n_heads sliding_window sliding_window_size attention_window_size "
            "local_attention"),
        (2, "num_experts_per_tok moe_topk moe_k top_k_experts num_experts_per_token mamba_n_groups mamba_ngroups "
            "n_groups o_groups"),
        (1, "n_group topk_group num_expert_group first_k_dense_replace"),
        (16, "q_lora_rank kv_lora_rank o_lora_rank mamba_d_state ssm_state_size state_size"),
        (VOCABULARY, "vocab_size"),
    )
    for name in names.split()
}  # fmt: skip
"""Sizes by the names that configurations give them."""

_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_ORDINARY_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}

_SECTIONS: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_FEW_SECTIONS: dict[str, Any] = {
    "rope_type": "default",
    "rope_theta": 10000.0,
    "mrope_section": [1, 1, 0],
    "partial_rotary_factor": 0.5,
}
OVERRIDES: dict[str, dict[str, Any]] = {
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_chunk_size": 4},
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_chunk_size": 4, "attn_layer_indices": [0, 2]},
    "granitemoehybrid": {
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_chunk_size": 4,
        "layer_types": ["mamba", "attention", "attention"],
    },
    "gemma4_text": {"vocab_size_per_layer_input": 128, "hidden_size_per_layer_input": 8},
    "gemma4": {"text_config": {"vocab_size_per_layer_input": 128, "hidden_size_per_layer_input": 8}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 40,
    },
    "dots3_note_text": {"num_key_value_heads": 4},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "intermediate_size": [40] * 4,
        "activation_sparsity_pattern": [0.0] * 4,
        "vocab_size_per_layer_input": 128,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 4,
        "altup_num_inputs": 2,
    },
    "lfm2": {"layer_types": ["conv", "full_attention", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "full_attention"]},
    "kimi_linear": {"linear_num_heads": 4, "linear_head_dim": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "xmod": {"default_language": "en_XX"},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_hidden_layers": 4, "mamba_dt_rank": 4},
    "esm": {"vocab_size": 128, "mask_token_id": 4, "pad_token_id": 1},
    "lilt": {"channel_shrink_ratio": 4},
    "glm4v_text": {"rope_parameters": _SECTIONS},
    "qwen2_vl_text": {"rope_parameters": _SECTIONS},
    "qwen2_5_vl_text": {"rope_parameters": _SECTIONS},
    "glm_image_text": {"rope_parameters": _SECTIONS},
    "glm_ocr_text": {"rope_parameters": _SECTIONS},
    "glm4v_moe_text": {"rope_parameters": _FEW_SECTIONS},
}
"""Sizes that a configuration needs besides, or instead, by model type."""


def tiny_config(default: PreTrainedConfig, overrides: Mapping[str, Any]) -> PreTrainedConfig:
    """A configuration like `default` with everything that has a size made small.

    Lists with an entry a layer keep every value that occurs in them: the layers that are kept are chosen so that each
    kind of layer is among them. `overrides` go before everything, by name, and by name in a mapping for a
    configuration within this one.
    """
    given: dict[str, Any] = {}
    places = itertools.count(LAST_TOKEN + 1)
    layers = _kept_layers(default)
    for name, value in _fields(default):
        if name in overrides and not isinstance(overrides[name], Mapping):
            continue
        if isinstance(value, PreTrainedConfig):
            given[name] = tiny_config(value, overrides.get(name, OVERRIDES.get(value.model_type, {})))
        elif name == "per_layer_config" and value:
            given[name] = {
                f"{place:02}": {
                    key: HEADS if key == "num_key_value_heads" else _SIZES.get(key, size)
                    for key, size in value[f"{layer:02}"].items()
                }
                for place, layer in enumerate(layers)
                if f"{layer:02}" in value
            }
        elif value is None and name in ("head_dim", "num_key_value_heads"):
            given[name] = HEAD_WIDTH if name == "head_dim" else HEADS
        elif isinstance(value, bool) or value is None:
            continue
        elif name in _SIZES and isinstance(value, int):
            given[name] = len(layers) if name in _COUNTS and layers else min(_SIZES[name], max(value, 1))
        elif name in ("num_key_value_heads", "swa_num_key_value_heads", "num_kv_heads"):
            heads = default.to_dict().get("num_attention_heads", value)
            given[name] = HEADS if value == heads else 1 if value == 1 else HEADS // 2
        elif name.endswith(("_token_id", "_token_index")) and isinstance(value, int):
            given[name] = _ORDINARY_IDS.get(name, value if 0 <= value < FIRST_TOKEN else next(places))
        elif name in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
            given[name] = _tiny_rope(value)
        elif isinstance(value, list) and layers and _is_by_layer(value, _count(default)):
            given[name] = [value[layer] for layer in layers]
        elif isinstance(value, list) and layers and name.endswith(("_idxs", "_layers", "_layer_ids")):
            given[name] = [place for place, layer in enumerate(layers) if layer in value]
    given |= {name: value for name, value in overrides.items() if not isinstance(value, Mapping)}
    return type(default)(**given)


def _fields(config: PreTrainedConfig) -> Iterator[tuple[str, Any]]:
    """What a configuration holds, by name; configurations within it as such."""
    for name, value in config.to_dict().items():
        if name in ("transformers_version", "model_type") or name in getattr(type(config), "attribute_map", {}):
            continue
        yield name, getattr(config, name) if isinstance(value, dict) and "model_type" in value else value


def _count(config: PreTrainedConfig) -> int | None:
    held = config.to_dict()
    return next((held[name] for name in _COUNTS if isinstance(held.get(name), int)), None)


def _is_by_layer(values: list[Any], count: int | None) -> bool:
    """Whether a list has an entry a layer, and is not one of all layers' numbers."""
    return len(values) == count and values != list(range(count))


def _kept_layers(config: PreTrainedConfig) -> list[int]:
    """Layers so that every value of every list with an entry a layer is among them twice; at least `LAYERS` of them."""
    count = _count(config)
    if not count:
        return []
    lists = [value for _, value in _fields(config) if isinstance(value, list) and _is_by_layer(value, count)]
    kept: set[int] = set()
    for values in lists:
        for value in values:
            where = [layer for layer in range(count) if values[layer] == value]
            missing = min(2, len(where)) - sum(layer in kept for layer in where)
            kept.update([layer for layer in where if layer not in kept][: max(missing, 0)])
    for layer in range(count):
        if len(kept) >= LAYERS:
            break
        kept.add(layer)
    return sorted(kept)


def _tiny_rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary parameters for heads of `HEAD_WIDTH`."""
    small: dict[str, Any] = {}
    for name, value in rope.items():
        if isinstance(value, Mapping):
            small[name] = _tiny_rope(value)
        elif name == "mrope_section":
            small[name] = [2, 1, 1]
        elif name in ("short_factor", "long_factor"):
            small[name] = [1.0] * (HEAD_WIDTH // 2)
        else:
            small[name] = value
    return small


def tiny_model(kind: type[PreTrainedModel], config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A random model in float32, every parameter of it: what an architecture starts at zero would hide an edit."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind._from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()
