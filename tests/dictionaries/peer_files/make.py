"""Makes the files beside it with the code of the libraries themselves; see README.md. No test runs it.

python make.py, where sae-lens, eai-sparsify, circuit-tracer and dictionary-learning can be imported.
"""

import json
import shutil
import sys
from pathlib import Path
from unittest.mock import MagicMock, patch

import numpy as np
import torch
import yaml
from circuit_tracer.transcoder import cross_layer_transcoder, single_layer_transcoder
from circuit_tracer.transcoder.activation_functions import JumpReLU
from sae_lens import SAE
from sae_lens.loading import pretrained_sae_loaders as loaders
from sae_lens.registry import get_sae_class, get_sae_training_class
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder
from sparsify.config import SparseCoderConfig

sys.modules["nnsight"] = MagicMock()  # what dictionary-learning imports and its dictionaries do not need
from dictionary_learning import dictionary as learned  # noqa: E402
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE  # noqa: E402
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE  # noqa: E402
from dictionary_learning.trainers.top_k import AutoEncoderTopK  # noqa: E402

HERE = Path(__file__).parent
WIDTH, FEATURES, K, ROWS, OUT, SCALE = 8, 24, 4, 20, 6, 1.7


def rows():
    """Vectors with a mean of their own and norms that differ, as activations have."""
    generator = torch.Generator().manual_seed(1)
    sizes = torch.rand(ROWS, 1, generator=generator) * 3 + 0.5
    return torch.randn(ROWS, WIDTH, generator=generator) * sizes + 0.7


def randomize(module):
    """Random weights and biases; thresholds are above 0, and decoder directions of different norms."""
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if name in ("k", "group_sizes") or not tensor.is_floating_point():
                continue
            if "threshold" in name:
                tensor.copy_(torch.rand_like(tensor) * 0.8 + 0.1)
            elif "W_" in name or "weight" in name or "w_" in name:
                tensor.copy_(torch.randn_like(tensor) / 2)
            else:
                tensor.copy_(torch.randn_like(tensor) / 4)
    return module.eval()


def expect(folder, codes, decoded, **more):
    """What the library makes of the rows."""
    arrays = {"rows": rows(), "codes": codes, "decoded": decoded, **more}
    np.savez_compressed(folder / "expected.npz", **{key: np.asarray(value) for key, value in arrays.items()})


METADATA = {
    "model_name": "tiny", "hook_name": "blocks.1.hook_resid_pre", "hook_head_index": None, "prepend_bos": True,
    "context_size": 32, "seqpos_slice": [None], "model_from_pretrained_kwargs": {"center_writing_weights": False},
}  # fmt: skip


def sae(architecture, metadata=None, training=False, **settings):
    """A SAELens SAE with random weights."""
    kind, config = (get_sae_training_class if training else get_sae_class)(architecture)
    settings = {"d_in": WIDTH, "d_sae": FEATURES, **settings}
    if "transcoder" in architecture:
        settings = {"d_out": WIDTH, "apply_b_dec_to_input": False, **settings}
    return randomize(kind(config(**settings, metadata=SAEMetadata(**{**METADATA, **(metadata or {})}))))


@torch.no_grad()
def saelens():
    """All architectures, normalizations, training files, and flat configurations of versions before 6."""
    root = HERE / "saelens"
    out = {"hook_name": "blocks.1.mlp.hook_in", "hook_name_out": "blocks.1.hook_mlp_out"}
    cases = {
        "standard": sae("standard"),
        "standard-no-pre-bias": sae("standard", apply_b_dec_to_input=False),
        "gated": sae("gated"),
        "topk": sae("topk", k=K),
        "topk-rescaled": sae("topk", k=K, rescale_acts_by_decoder_norm=True),
        "jumprelu": sae("jumprelu"),
        "transcoder": sae("transcoder", out, d_out=OUT),
        "skip_transcoder": sae("skip_transcoder", out, d_out=OUT),
        "skip_transcoder-layer_norm": sae("skip_transcoder", out, normalize_activations="layer_norm"),
        "jumprelu_transcoder": sae("jumprelu_transcoder", out),
        "jumprelu_skip_transcoder": sae("jumprelu_skip_transcoder", out),
        "standard-layer_norm": sae("standard", normalize_activations="layer_norm"),
        "gated-layer_norm": sae("gated", normalize_activations="layer_norm"),
        "topk-constant_norm": sae("topk", k=K, normalize_activations="constant_norm_rescale"),
        "jumprelu-scaled": sae("jumprelu", normalize_activations="expected_average_only_in"),
        "gated-scaled": sae("gated", normalize_activations="expected_average_only_in"),
    }
    for name, made in cases.items():
        made.save_model(root / name)
        more = {}
        if name.endswith("-scaled"):
            made.fold_activation_norm_scaling_factor(SCALE)
            more["scale"] = SCALE
        expect(root / name, made.encode(rows()), made(rows()), **more)

    heads = sae("standard", {"hook_name": "blocks.1.attn.hook_z"}, reshape_activations="hook_z")
    heads.save_model(root / "hook_z")
    by_head = rows().reshape(ROWS, 2, WIDTH // 2)
    expect(root / "hook_z", heads.encode(by_head), heads(by_head).reshape(ROWS, WIDTH))

    centred = sae("standard", {"model_from_pretrained_kwargs": {"center_writing_weights": True}})
    centred.save_model(root / "centred")
    mean = rows().mean(dim=1, keepdim=True)  # the model itself would have taken it off
    expect(root / "centred", centred.encode(rows() - mean), centred(rows() - mean) + mean)

    half = sae("standard", dtype="bfloat16")
    half.save_model(root / "bfloat16")
    half = half.to(torch.float32)
    expect(root / "bfloat16", half.encode(rows()), half(rows()))
    training()
    before_6()


def training():
    """What training saves, and what SAELens makes of it for inference."""
    root = HERE / "saelens"
    cases = {
        "training-topk": sae("topk", training=True, k=K),
        "training-batchtopk": sae("batchtopk", training=True, k=K),
        "training-matryoshka": sae("matryoshka_batchtopk", training=True, k=K, matryoshka_widths=[8, FEATURES]),
        "training-jumprelu": sae("jumprelu", training=True),
        "training-gated": sae("gated", training=True),
    }
    for name, made in cases.items():
        made.save_model(root / name)
        done = root / name.replace("training", "trained")
        made.save_inference_model(done)
        final = SAE.load_from_disk(done)
        for folder in (root / name, done):
            expect(folder, final.encode(rows()), final(rows()))
    # As SAELens before 6.54 saved it in training: the logarithm, under a name of its own.
    folder = root / "training-jumprelu-logarithm"
    shutil.copytree(root / "training-jumprelu", folder, dirs_exist_ok=True)
    held = load_file(folder / "sae_weights.safetensors")
    held["log_threshold"] = held.pop("threshold").log()
    save_file(held, folder / "sae_weights.safetensors")


def before_6():
    """Flat configurations, after those of published dictionaries, as SAELens of today reads them."""
    root = HERE / "saelens"
    flat = {
        "d_in": WIDTH, "d_sae": FEATURES, "dtype": "torch.float32", "device": "cpu", "model_name": "gpt2-small",
        "hook_point": "blocks.1.hook_resid_pre", "hook_point_layer": 1, "hook_point_head_index": None,
        "prepend_bos": True, "context_size": 128, "lr": 0.0004, "l1_coefficient": 8e-05, "sae_lens_version": "2.1.3",
    }  # fmt: skip
    cases = {
        "old-standard": ("standard", {"activation_fn_str": "relu", "normalize_activations": None}),
        "old-bool": ("standard", {"normalize_activations": False, "apply_b_dec_to_input": False}),
        "old-bool-scaled": ("standard", {"normalize_activations": True}),
        "old-topk": (
            "topk",
            {
                "architecture": "standard",
                "activation_fn_str": "topk",
                "activation_fn_kwargs": {"k": K},
                "normalize_activations": "layer_norm",
            },
        ),
        "old-jumprelu": ("jumprelu", {"architecture": "jumprelu", "normalize_activations": "none"}),
        "old-gated": ("gated", {"architecture": "gated", "activation_fn_kwargs": {}}),
        "old-hook_z": ("standard", {"hook_point": "blocks.1.attn.hook_z"}),
    }
    for name, (architecture, settings) in cases.items():
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        settings_of = {"k": K} if architecture == "topk" else {}
        held = {key: value.clone() for key, value in sae(architecture, **settings_of).state_dict().items()}
        if name == "old-standard":
            held["scaling_factor"] = torch.ones(FEATURES)  # which some versions wrote
        save_file(held, folder / "sae_weights.safetensors")
        (folder / "cfg.json").write_text(json.dumps({**flat, **settings}))
        made, more, given = SAE.load_from_disk(folder), {}, rows()
        if name == "old-bool-scaled":
            made.fold_activation_norm_scaling_factor(SCALE)
            more["scale"] = SCALE
        if name == "old-hook_z":
            given = given.reshape(ROWS, 2, WIDTH // 2)
        expect(folder, made.encode(given), made(given).reshape(ROWS, WIDTH), **more)


@torch.no_grad()
def sparsify():
    """A run of three hookpoints, with the settings of the run beside them."""
    root = HERE / "sparsify"
    cases = {
        "layers.1": {},
        "layers.1.mlp": {"transcode": True, "skip_connection": True},
        "layers.2.mlp": {"transcode": True, "num_latents": FEATURES + 1, "normalize_decoder": False},
    }
    for name, settings in cases.items():
        made = randomize(SparseCoder(WIDTH, SparseCoderConfig(k=K, expansion_factor=3, **settings)))
        made.save_to_disk(root / name)
        found = made.encode(rows())
        codes = torch.zeros_like(found.pre_acts).scatter_(1, found.top_indices, found.top_acts)
        expect(root / name, codes, made(rows()).sae_out)
    (root / "config.json").write_text(json.dumps({"model": "tiny", "ctx_len": 32, "hookpoints": list(cases)}))


@torch.no_grad()
def dictionary_learning():
    """All classes, as its training saves them."""
    root = HERE / "dictionary_learning"
    cases = {
        "AutoEncoder": learned.AutoEncoder(WIDTH, FEATURES),
        "AutoEncoderNew": learned.AutoEncoderNew(WIDTH, FEATURES),
        "GatedAutoEncoder": learned.GatedAutoEncoder(WIDTH, FEATURES),
        "JumpReluAutoEncoder": learned.JumpReluAutoEncoder(WIDTH, FEATURES),
        "AutoEncoderTopK": AutoEncoderTopK(WIDTH, FEATURES, K),
        "BatchTopKSAE": BatchTopKSAE(WIDTH, FEATURES, K),
        "MatryoshkaBatchTopKSAE": MatryoshkaBatchTopKSAE(WIDTH, FEATURES, K, [8, FEATURES - 8]),
    }
    for name, made in cases.items():
        folder = root / name / "trainer_0"
        folder.mkdir(parents=True, exist_ok=True)
        randomize(made)
        torch.save(made.state_dict(), folder / "ae.pt")
        trainer = {
            "dict_class": name, "activation_dim": WIDTH, "dict_size": FEATURES, "layer": 1, "lm_name": "tiny",
            "submodule_name": "resid_post_layer_1", **({"k": K} if hasattr(made, "k") else {}),
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 32}}))
        expect(folder, made.encode(rows()), made(rows()))


@torch.no_grad()
def circuit_tracer():
    """Sets of transcoders, and cross-layer transcoders of three layers."""
    root = HERE / "circuit_tracer"
    hooks = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}
    given, options = torch.stack([rows(), rows().flip(0), rows() * 0.5]), {"dtype": torch.float32, "device": "cpu"}
    for name, jumps, skip in (("relu", False, False), ("jumprelu-skip", True, True)):
        layers = {}
        for layer in range(2):
            function = JumpReLU(torch.zeros(FEATURES), 0.1) if jumps else torch.nn.functional.relu
            one = single_layer_transcoder.SingleLayerTranscoder(
                WIDTH, FEATURES, function, layer, skip_connection=skip, **options
            )
            layers[layer] = randomize(one)
        made = single_layer_transcoder.TranscoderSet(layers, **hooks)
        folder = root / name
        made.to_safetensors(folder)
        config = {"model_kind": "transcoder_set", "model_name": "tiny", "scan": "tiny-scan", **hooks}
        (folder / "config.yaml").write_text(yaml.dump(config))
        codes = made.encode(given[:2])
        expect(folder, codes, made.decode(codes, given[:2]), rows=given[:2])
    for name, function in (("cross-relu", "relu"), ("cross-jumprelu", "jump_relu")):
        made = cross_layer_transcoder.CrossLayerTranscoder(
            3, FEATURES, WIDTH, activation_function=function, lazy_decoder=False, **hooks, **options
        )
        folder = root / name
        randomize(made).to_safetensors(folder)
        (folder / "config.yaml").write_text(
            yaml.dump({"model_kind": "cross_layer_transcoder", "model_name": "tiny", "scan": "tiny-scan", **hooks})
        )
        expect(folder, made.encode(given), made(given), rows=given)


def loaded(loader, repo, folder, root, **overrides):
    """What a loader of SAELens, which would download, makes of files that lie here."""

    def local(repo_id, filename, subfolder="", **_):
        return str(root / repo_id.split("/")[-1] / subfolder / filename)

    def shapes(repo_id, filename):
        held = load_file(local(repo_id, filename))
        return {key: list(value.shape) for key, value in held.items()}

    with (
        patch.object(loaders, "hf_hub_download", local),
        patch.object(loaders, "get_safetensors_tensor_shapes", shapes),
    ):
        config, held, *_ = loader(repo, folder, cfg_overrides=overrides)
    config = loaders.handle_config_defaulting(config)
    kind, of_config = get_sae_class(config["architecture"])
    made = kind(of_config.from_dict(config))
    made.load_state_dict(held)
    return made


@torch.no_grad()
def gemma_scope():
    """Files as they were published, in folders of the releases' names."""
    root = HERE / "gemma_scope"

    def random(**shapes):
        found = {key: torch.randn(shape) / 2 for key, shape in shapes.items()}
        return {**found, "b_enc": torch.randn(FEATURES) / 4, "threshold": torch.rand(FEATURES) * 0.8 + 0.1}

    one = {"W_enc": (WIDTH, FEATURES), "W_dec": (FEATURES, WIDTH), "b_dec": (WIDTH,)}
    cases = {
        "gemma-scope-2b-pt-res/layer_5/width_16k/average_l0_10": (loaders.gemma_2_sae_huggingface_loader, one),
        "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6": (loaders.gemma_2_sae_huggingface_loader, one),
        "gemma-scope-2b-pt-transcoders/layer_5/width_16k/average_l0_10": (
            loaders.gemma_2_transcoder_huggingface_loader,
            one,
        ),
    }
    for name, (loader, shapes) in cases.items():
        repo, _, inner = name.partition("/")
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        held = random(**shapes)
        if "embedding" in name:
            held["b_dec"] *= 0  # which SAELens leaves as it is, where the rest is multiplied by √width
        np.savez(folder / "params.npz", **{key: value.numpy() for key, value in held.items()})
        sizes = {"d_in": WIDTH, "d_sae": FEATURES, **({"d_out": WIDTH} if "transcoders" in repo else {})}
        made = loaded(loader, f"google/{repo}", inner, root, **sizes)
        more = {"scale": WIDTH**-0.5} if "embedding" in name else {}
        expect(folder, made.encode(rows()), made(rows()), **more)
    second = {"w_enc": (WIDTH, FEATURES), "w_dec": (FEATURES, WIDTH), "b_dec": (WIDTH,)}
    cases = {
        "gemma-scope-2-270m-pt/resid_post/layer_5_width_16k_l0_small": second,
        "gemma-scope-2-270m-pt/transcoder/layer_5_width_16k_l0_small_affine": {
            **second,
            "affine_skip_connection": (WIDTH, WIDTH),
        },
    }
    for name, shapes in cases.items():
        repo, _, inner = name.partition("/")
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        save_file(random(**shapes), folder / "params.safetensors")
        config = {"architecture": "jump_relu", "model_name": "gemma-v3-270m-pt"}
        if "transcoder" in name:
            config |= {
                "hf_hook_point_in": "model.layers.5.pre_feedforward_layernorm.output",
                "hf_hook_point_out": "model.layers.5.post_feedforward_layernorm.output",
                "affine_connection": True,
            }
        else:
            config["hf_hook_point_in"] = "model.layers.5.output"
        (folder / "config.json").write_text(json.dumps(config))
        made = loaded(loaders.gemma_3_sae_huggingface_loader, f"google/{repo}", inner, root)
        expect(folder, made.encode(rows()), made(rows()))


@torch.no_grad()
def llama_scope():
    """A file as it was published: decoder directions of norm 1, no bias taken off before encoding."""
    root = HERE / "llama_scope"
    folder = root / "Llama3_1-8B-Base-LXR-8x" / "Llama3_1-8B-Base-L1R-8x"
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    decoder = torch.randn(WIDTH, FEATURES)
    held = {
        "encoder.weight": torch.randn(FEATURES, WIDTH) / 2, "encoder.bias": torch.randn(FEATURES) / 4,
        "decoder.weight": decoder / decoder.norm(dim=0), "decoder.bias": torch.randn(WIDTH) / 4,
    }  # fmt: skip
    save_file(held, folder / "checkpoints" / "final.safetensors")
    hook = "blocks.1.hook_resid_post"
    config = {
        "hook_point_in": hook, "hook_point_out": hook, "use_decoder_bias": True, "d_model": WIDTH, "d_sae": FEATURES,
        "apply_decoder_bias_to_pre_encoder": False, "expansion_factor": 3, "act_fn": "jumprelu", "top_k": K,
        "jump_relu_threshold": 0.4, "norm_activation": "dataset-wise", "sparsity_include_decoder_norm": True,
        "dataset_average_activation_norm": {"in": 6.5, "out": 6.5}, "use_glu_encoder": False,
    }  # fmt: skip
    (folder / "hyperparams.json").write_text(json.dumps(config))
    repo = "fnlp/Llama3_1-8B-Base-LXR-8x"
    made = loaded(loaders.llama_scope_sae_huggingface_loader, repo, folder.name, root, dtype="float32")
    scale = WIDTH**0.5 / 6.5
    made.fold_activation_norm_scaling_factor(scale)
    # SAELens' codes are those of vectors that were multiplied, Llama Scope's own are in the model's units.
    expect(folder, made.encode(rows()) / scale, made(rows()))


if __name__ == "__main__":
    torch.manual_seed(0)
    for make in (saelens, sparsify, dictionary_learning, circuit_tracer, gemma_scope, llama_scope):
        make()
