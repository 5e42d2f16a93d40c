"""Files that hold no dictionary, a damaged one, or one that means something else: one line says so; no code runs."""

import io
import json
import pickle
import random
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from assay import AssayError
from assay.dictionaries import CrossLayerTranscoder, Dictionary

PEERS = Path(__file__).parent / "peer_files"
GEMMA = "gemma_scope/gemma-scope-2b-pt-res/layer_5/width_16k/average_l0_10"
GEMMA_2 = "gemma_scope/gemma-scope-2-270m-pt/resid_post/layer_5_width_16k_l0_small"
EMBEDDING = "gemma_scope/gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6"
LLAMA = "llama_scope/Llama3_1-8B-Base-LXR-8x/Llama3_1-8B-Base-L1R-8x"
LEARNED = "dictionary_learning/{}/trainer_0"


def copied(case, folder):
    shutil.copytree(PEERS / case, folder / case, dirs_exist_ok=True)
    (folder / case / "expected.npz").unlink(missing_ok=True)
    return folder / case


def refused(read, path, match, **more):
    with pytest.raises(AssayError, match=match) as caught:
        read(path, **more)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def setting(name, **changes):
    """A change of a JSON file's values; None takes one out, and a dict is put into what is there."""

    def change(folder):
        config = json.loads((folder / name).read_text())
        for key, value in changes.items():
            if value is None:
                config.pop(key, None)
            elif isinstance(value, dict) and isinstance(config.get(key), dict):
                config[key] |= value
            else:
                config[key] = value
        (folder / name).write_text(json.dumps(config))

    return change


def tensors(name, change):
    """A change of the tensors of a file of safetensors, or of one that torch wrote."""

    def write(folder):
        path = folder / name
        if path.suffix == ".safetensors":
            held = load_file(path)
            change(held)
            save_file({key: value.contiguous() for key, value in held.items()}, path)
        elif path.suffix == ".npz":
            with np.load(path) as found:
                held = {key: torch.from_numpy(found[key]) for key in found.files}
            change(held)
            np.savez(path, **{key: value.numpy() for key, value in held.items()})
        else:
            held = torch.load(path, weights_only=True)
            change(held)
            torch.save(held, path)

    return write


def bytes_of(name, content):
    def write(folder):
        data = (folder / name).read_bytes() if callable(content) else b""
        (folder / name).write_bytes(content(data) if callable(content) else content)

    return write


def put(key, value):
    return lambda held: held.update({key: value})


def without(key):
    return lambda held: held.pop(key)


def fill(key, value):
    def change(held):
        held[key].view(-1)[0] = value

    return change


CFG, SAE = "cfg.json", "sae_weights.safetensors"
HUGE = struct.pack("<Q", 80) + json.dumps(
    {"W_enc": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4 * 10**18]}}
).encode().ljust(80)

SAELENS = [
    ("temporal", setting(CFG, architecture="temporal"), "'temporal', which is not read; standard, "),
    ("matching-pursuit", setting(CFG, architecture="matching_pursuit"), "which is not read"),
    ("abstopk", setting(CFG, architecture="abstopk"), "which is not read"),
    ("architecture-number", setting(CFG, architecture=3), "architecture: 3, which is no text"),
    ("activation", setting(CFG, activation_fn="tanh-relu"), "'tanh-relu', which is not read"),
    ("whitening", setting(CFG, normalize_activations="covariance_whitening"), "let SAELens fold it"),
    ("normalization", setting(CFG, normalize_activations="rms"), "'rms', which is unknown"),
    ("normalization-list", setting(CFG, normalize_activations=[1]), "unknown"),
    ("scale-needed", setting(CFG, normalize_activations="expected_average_only_in"), "give it: scale="),
    ("scale-needed-bool", setting(CFG, normalize_activations=True), "give it: scale="),
    ("k-missing", setting(CFG, k=None), "has no k"),
    ("k-0", setting(CFG, k=0), "k: 0, which is no whole number"),
    ("k-true", setting(CFG, k=True), "k: True, which is no whole number"),
    ("k-float", setting(CFG, k=4.0), "no whole number"),
    ("k-many", setting(CFG, k=25), "k is 25"),
    ("k-two", setting(CFG, activation_fn_kwargs={"k": 5}), "they disagree"),
    ("k-huge", setting(CFG, k=10**400), "a number of too many digits|k is"),
    ("width", setting(CFG, d_in=9), "W_enc of shape 8 x 24.*9 x 24; they disagree"),
    ("features", setting(CFG, d_sae=10**12), "disagree"),
    ("width-missing", setting(CFG, d_in=None), "has no d_in"),
    ("width-text", setting(CFG, d_in="8"), "'8', which is no whole number"),
    ("pre-bias", setting(CFG, apply_b_dec_to_input="yes"), "neither true nor false"),
    ("metadata", setting(CFG, metadata=[1]), "no object of values by name"),
    ("hook", setting(CFG, metadata={"hook_name": 5}), "hook_name: 5, which is no text"),
    ("bos", setting(CFG, metadata={"prepend_bos": "x"}), "metadata.prepend_bos"),
    ("positions", setting(CFG, metadata={"seqpos_slice": ["a"]}), "seqpos_slice"),
    ("head", setting(CFG, metadata={"hook_head_index": -1}), "hook_head_index"),
    ("reshape", setting(CFG, reshape_activations="other"), "reshape_activations"),
    ("processed", setting(CFG, metadata={"model_from_pretrained_kwargs": {"fold_ln": True}}), "'fold_ln': True"),
    ("processed-other", setting(CFG, metadata={"model_from_pretrained_kwargs": {"revision": "x"}}), "'revision'"),
    ("processed-text", setting(CFG, metadata={"model_from_pretrained_kwargs": "x"}), "no object"),
    ("finetuned", setting(CFG, finetuning_scaling_factor=True), "no tensor scaling_factor"),
    ("scaling", tensors(SAE, put("scaling_factor", torch.full((24,), 2.0))), "scaling_factor that is not 1"),
    ("extra", tensors(SAE, put("other", torch.ones(2))), "does not know: 'other'"),
    ("extra-long", tensors(SAE, put("o" * 5000, torch.ones(2))), "does not know"),
    ("missing", tensors(SAE, without("b_dec")), "no tensor b_dec"),
    ("nan", tensors(SAE, fill("W_enc", float("nan"))), "not finite"),
    ("infinite", tensors(SAE, fill("b_dec", float("inf"))), "not finite"),
    ("whole-numbers", tensors(SAE, put("b_dec", torch.ones(8, dtype=torch.int32))), "int32"),
    ("shape", tensors(SAE, put("b_enc", torch.ones(23))), "disagree"),
    ("dimensions", tensors(SAE, put("W_dec", torch.ones(24, 8, 1))), "disagree"),
    ("truncated", bytes_of(SAE, lambda data: data[:-100]), "damaged"),
    ("header", bytes_of(SAE, lambda data: data[:40]), "damaged"),
    ("empty", bytes_of(SAE, b""), "damaged"),
    ("huge", bytes_of(SAE, HUGE), "damaged"),
    ("long-header", bytes_of(SAE, b"\xff" * 64), "damaged"),
    ("pickle", bytes_of(SAE, pickle.dumps({"W_enc": 1})), "damaged"),
    ("no-json", bytes_of(CFG, b"{"), "is no JSON"),
    ("json-list", bytes_of(CFG, b"[1]"), "holds a list"),
    ("json-deep", bytes_of(CFG, b"[" * 100_000), "is no JSON"),
    ("json-bytes", bytes_of(CFG, b"\xff\xfe\x00"), "is no JSON"),
    ("json-digits", bytes_of(CFG, b'{"d_in": ' + b"9" * 5000 + b"}"), "is no JSON"),
    ("no-cfg", lambda folder: (folder / CFG).unlink(), r"cfg\.json.* cannot be read"),
    ("no-weights", lambda folder: (folder / SAE).unlink(), "holds no dictionary; looked for"),
    ("cfg-folder", lambda folder: ((folder / CFG).unlink(), (folder / CFG).mkdir()), "cannot be read"),
    ("record", bytes_of("assay.json", b'{"format": "other"}'), "no record of a dictionary"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "match"), [case[1:] for case in SAELENS], ids=[case[0] for case in SAELENS])
def test_what_is_no_dictionary_of_saelens_is_refused(change, match, tmp_path):
    folder = copied("saelens/topk", tmp_path)
    change(folder)
    refused(Dictionary.read, folder, match)


OTHERS = [
    ("saelens/jumprelu", tensors(SAE, put("threshold", torch.full((24,), -0.1))), "threshold below 0"),
    ("saelens/jumprelu", tensors(SAE, put("log_threshold", torch.ones(24))), "not clear which counts"),
    ("saelens/training-jumprelu-logarithm", tensors(SAE, fill("log_threshold", 1e4)), "not finite"),
    ("saelens/training-batchtopk", setting(CFG, rescale_acts_by_decoder_norm=None), "add it as it was in training"),
    ("saelens/transcoder", setting(CFG, normalize_activations=True), "which factor its outputs have"),
    ("saelens/transcoder", setting(CFG, d_out=None), "has no d_out"),
    ("saelens/transcoder", setting(CFG, apply_b_dec_to_input=True), "their widths differ"),
    ("saelens/centred", setting(CFG, normalize_activations="constant_norm_rescale"), "one alone is read"),
    ("saelens/gated", tensors(SAE, without("r_mag")), "no tensor r_mag"),
    ("sparsify/layers.1", setting(CFG, activation="groupmax"), "'groupmax', which is not read"),
    ("sparsify/layers.1", setting(CFG, signed=True), "signed"),
    ("sparsify/layers.1", setting(CFG, k=None), "has no k"),
    ("sparsify/layers.1", setting(CFG, num_latents=7), "disagree"),
    ("sparsify/layers.1", setting(CFG, expansion_factor=None), "has no expansion_factor"),
    ("sparsify/layers.1", setting(CFG, skip_connection=True), "no tensor W_skip"),
    ("sparsify/layers.1.mlp", setting(CFG, skip_connection=False), "does not know: 'W_skip'"),
    ("sparsify/layers.1", lambda folder: (folder.parent / "config.json").write_text("[]"), "holds a list"),
    (LEARNED.format("AutoEncoder"), setting("config.json", trainer={"dict_class": "IdentityDict"}), "'IdentityDict'"),
    (LEARNED.format("AutoEncoder"), setting("config.json", trainer={"dict_class": "AutoEncoderNew"}), "does not hold"),
    (LEARNED.format("AutoEncoder"), setting("config.json", trainer={"dict_size": 25}), "disagree"),
    (LEARNED.format("AutoEncoder"), setting("config.json", trainer="x"), "no object"),
    (LEARNED.format("AutoEncoder"), tensors("ae.pt", put("more", torch.ones(1))), "does not hold the tensors"),
    (LEARNED.format("AutoEncoder"), tensors("ae.pt", put("bias", 3)), "a int; only tensors"),
    (LEARNED.format("AutoEncoder"), tensors("ae.pt", put("bias", torch.ones(8).to_sparse())), "only tensors by name"),
    (LEARNED.format("AutoEncoder"), tensors("ae.pt", put("bias", torch.ones(8, device="meta"))), "only tensors"),
    (LEARNED.format("AutoEncoder"), tensors("ae.pt", put("bias", torch.ones(1).expand(10**12))), "more than the file"),
    (LEARNED.format("AutoEncoder"), tensors("ae.pt", put("encoder.weight", torch.ones(24))), "disagree|no tensor"),
    (LEARNED.format("AutoEncoder"), tensors("ae.pt", put("bias", torch.ones(8, dtype=torch.complex64))), "complex64"),
    (LEARNED.format("AutoEncoderTopK"), setting("config.json", trainer={"k": 5}), "not the 4 that"),
    (LEARNED.format("AutoEncoderTopK"), tensors("ae.pt", put("k", torch.tensor(0))), "no whole number"),
    (LEARNED.format("AutoEncoderTopK"), lambda folder: (folder / "config.json").unlink(), "TopK or BatchTopK"),
    (LEARNED.format("BatchTopKSAE"), tensors("ae.pt", put("threshold", torch.tensor(-1.0))), "before it was set"),
    (LEARNED.format("MatryoshkaBatchTopKSAE"), tensors("ae.pt", put("group_sizes", torch.tensor([8]))), "add up"),
    (LEARNED.format("JumpReluAutoEncoder"), tensors("ae.pt", put("threshold", torch.ones(1))), "disagree"),
    (LEARNED.format("AutoEncoder"), bytes_of("ae.pt", lambda data: data[:-300]), "is not read"),
    (LEARNED.format("AutoEncoder"), bytes_of("ae.pt", pickle.dumps([1])), "is not read|holds a list"),
    (LEARNED.format("AutoEncoder"), bytes_of("ae.pt", b"PK\x03\x04" + b"\x00" * 50), "is not read"),
    (GEMMA, tensors("params.npz", without("threshold")), "no tensor threshold"),
    (GEMMA, tensors("params.npz", put("threshold", torch.full((24,), -1.0))), "threshold below 0"),
    (GEMMA, tensors("params.npz", put("more", torch.ones(1))), "does not know: 'more'"),
    (GEMMA, tensors("params.npz", put("W_dec", torch.ones(24, 3, 8))), "cross-layer"),
    (GEMMA, tensors("params.npz", put("b_dec", torch.ones(9))), "disagree"),
    (GEMMA, bytes_of("params.npz", lambda data: data[:-400]), "damaged"),
    (GEMMA, bytes_of("params.npz", b""), "damaged"),
    (EMBEDDING, lambda folder: None, "multiplies by √8 afterwards"),
    (GEMMA_2, setting("config.json", architecture="relu"), "'relu', which is not read"),
    (GEMMA_2, setting("config.json", affine_connection=True), "no affine_skip_connection"),
    (GEMMA_2, lambda folder: (folder / "config.json").unlink(), "transcodes=False or transcodes=True"),
    (LLAMA, setting("hyperparams.json", act_fn="gelu"), "'gelu', which is not read"),
    (LLAMA, setting("hyperparams.json", use_glu_encoder=True), "gates of its own"),
    (LLAMA, setting("hyperparams.json", norm_activation="token-wise"), "'token-wise', which is not read"),
    (LLAMA, setting("hyperparams.json", apply_decoder_bias_to_pre_encoder=None), "has no apply_decoder_bias"),
    (LLAMA, setting("hyperparams.json", dataset_average_activation_norm={"in": 0}), "no mean norm"),
    (LLAMA, setting("hyperparams.json", dataset_average_activation_norm={"in": "x"}), "no finite number"),
    (LLAMA, setting("hyperparams.json", dataset_average_activation_norm=None), "has no dataset_average"),
    (LLAMA, setting("hyperparams.json", jump_relu_threshold=float("nan")), "no finite number"),
    (LLAMA, lambda folder: shutil.rmtree(folder / "checkpoints"), "is missing"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "change", "match"), OTHERS)
def test_what_is_no_dictionary_of_another_library_is_refused(case, change, match, tmp_path):
    folder = copied(case, tmp_path)
    if case.startswith("sparsify"):
        shutil.copy(PEERS / "sparsify" / "config.json", folder.parent)
    change(folder)
    refused(Dictionary.read, folder, match)


CIRCUIT_TRACER = [
    ("layer_0.safetensors", tensors("layer_0.safetensors", put("log_thresholds", torch.ones(24))), "does not know"),
    ("layer_0.safetensors", tensors("layer_0.safetensors", put("W_skip", torch.ones(8, 9))), "disagree"),
    ("layer_0.safetensors", tensors("layer_0.safetensors", put("W_dec", torch.ones(9, 24))), "disagree"),
    ("layer_0.safetensors", tensors("layer_0.safetensors", put("b_enc", torch.ones(8))), "cannot be told from"),
    ("layer_0.safetensors", tensors("layer_0.safetensors", put("b_enc", torch.tensor(3.0))), "disagree"),
    ("layer_0.safetensors", bytes_of("config.yaml", b"model_kind: crosscoder"), "'crosscoder', which is unknown"),
    ("layer_0.safetensors", bytes_of("config.yaml", b"model_kind: cross_layer_transcoder"), "no set of transcoders"),
    ("layer_0.safetensors", bytes_of("config.yaml", b"a: [b"), "is no YAML"),
    ("layer_0.safetensors", bytes_of("config.yaml", b"!!python/object/apply:os.system ['false']"), "is no YAML"),
    ("layer_0.safetensors", bytes_of("config.yaml", b"model_name: 3"), "no text"),
    ("layer_0.safetensors", bytes_of("layer_0.safetensors", lambda data: data[:99]), "damaged"),
    ("layer_9.safetensors", lambda folder: None, "is no file or folder"),
    (".", lambda folder: None, r"transcoders of 2 layers; give one of its files: layer_0\.safetensors"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "match"), CIRCUIT_TRACER)
def test_what_is_no_set_of_transcoders_is_refused(name, change, match, tmp_path):
    folder = copied("circuit_tracer/relu", tmp_path)
    change(folder)
    refused(Dictionary.read, folder / name, match)


CROSS_LAYER = [
    (lambda folder: (folder / "W_enc_1.safetensors").unlink(), "encoders of the layers 0, 2"),
    (lambda folder: (folder / "W_dec_1.safetensors").unlink(), "is missing"),
    (lambda folder: (folder / "W_enc_2.safetensors").unlink(), "disagree"),  # decoders to a layer that is not there
    (tensors("W_dec_1.safetensors", put("W_dec_1", torch.ones(24, 3, 8))), "disagree"),
    (tensors("W_enc_1.safetensors", put("W_skip_1", torch.ones(8, 8))), "does not know"),
    (tensors("W_enc_1.safetensors", without("threshold_1")), "threshold is given for 2 layers"),
    (tensors("W_enc_1.safetensors", fill("threshold_1", -1.0)), "threshold below 0"),
    (tensors("W_enc_1.safetensors", fill("W_enc_1", float("nan"))), "not finite"),
    (bytes_of("config.yaml", b"model_kind: transcoder_set"), "no cross-layer transcoder"),
    (shutil.rmtree, "is no file or folder"),
]


@pytest.mark.parametrize(("change", "match"), CROSS_LAYER)
def test_what_is_no_cross_layer_transcoder_is_refused(change, match, tmp_path):
    folder = copied("circuit_tracer/cross-jumprelu", tmp_path)
    change(folder)
    refused(CrossLayerTranscoder.read, folder, match)


def test_a_cross_layer_transcoder_is_no_dictionary():
    folder = PEERS / "circuit_tracer" / "cross-relu"
    for path in (folder, folder / "W_enc_1.safetensors"):
        refused(Dictionary.read, path, r"CrossLayerTranscoder\.read")
    made = CrossLayerTranscoder.read(folder)
    with pytest.raises(AssayError, match="has 3 layers, and vectors of 2"):
        made.reconstruct([torch.ones(2, 8)] * 2)
    with pytest.raises(AssayError, match="2 vectors of 8 numbers"):
        made.encode([torch.ones(2, 9)] * 3)


class Code:
    """What runs when it is unpickled by whatever runs code."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("kind", ["torch", "pickle", "npz"])
def test_code_in_a_pickle_does_not_run(kind, tmp_path):
    mark = tmp_path / "ran"
    held = {"W_enc": torch.ones(8, 24), "cfg": Code(mark)}
    path = tmp_path / ("params.npz" if kind == "npz" else "ae.pt")
    if kind == "torch":
        torch.save(held, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"cfg": Code(mark)}))
    else:
        np.savez(path, W_enc=np.array([Code(mark)], dtype=object))
    refused(Dictionary.read, path, "would run code" if kind != "npz" else "plain arrays")
    assert not mark.exists()
    pickle.loads(pickle.dumps(Code(mark)))
    assert mark.exists()  # so that it would have been seen


def test_arrays_that_are_declared_larger_than_they_are_take_no_memory(tmp_path):
    def archive(shape, data, compression=zipfile.ZIP_STORED):
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(tmp_path / "params.npz", "w", compression) as out:
            out.writestr("W_enc.npy", head.getvalue() + data)

    for shape in ((10**6, 10**6), (10**12, 10**12)):
        archive(shape, b"\0" * 64)
        refused(Dictionary.read, tmp_path, "damaged")
    archive((5_000_000,), b"\0" * 20_000_000, zipfile.ZIP_DEFLATED)
    refused(Dictionary.read, tmp_path, "1,018 times its size, and at most 50 are read")


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_is_a_number_above_0(scale):
    refused(Dictionary.read, PEERS / "saelens" / "jumprelu-scaled", "a number above 0", scale=scale)


def test_a_scale_that_overflows_is_refused():
    refused(Dictionary.read, PEERS / "saelens" / "jumprelu-scaled", "not finite", scale=1e-300)


@pytest.mark.parametrize(
    "case", ["saelens/topk", "sparsify/layers.1", LEARNED.format("AutoEncoder"), GEMMA, LLAMA, "circuit_tracer/relu"]
)
def test_a_scale_is_refused_where_none_is_folded(case):
    path = PEERS / case / ("layer_0.safetensors" if "tracer" in case else "")
    refused(Dictionary.read, path, "leave scale out", scale=2.0)


def test_what_is_said_of_what_is_decoded_has_to_be_so():
    refused(Dictionary.read, PEERS / "saelens" / "topk", "is an autoencoder; leave transcodes out", transcodes=True)
    refused(Dictionary.read, PEERS / "saelens" / "transcoder", "is a transcoder", transcodes=False)
    refused(Dictionary.read, PEERS / GEMMA, "is an autoencoder", transcodes=True)
    assert Dictionary.read(PEERS / "saelens" / "transcoder", transcodes=True).transcodes


def test_a_folder_of_several_names_them(tmp_path):
    for name in ("blocks.0", "blocks.1"):
        copied("saelens/topk", tmp_path / name)
    refused(Dictionary.read, tmp_path, r"give one of them: blocks\.0/saelens/topk, blocks\.1/saelens/topk\.$")
    refused(Dictionary.read, PEERS / "sparsify", r"give one of them: layers\.1, layers\.1\.mlp, layers\.2\.mlp\.$")
    refused(Dictionary.read, PEERS / "gemma_scope" / "gemma-scope-2b-pt-res", "layer_5/width_16k/average_l0_10")
    refused(Dictionary.read, PEERS / "dictionary_learning", "AutoEncoder/trainer_0")


def test_anything_else_says_what_was_looked_for(tmp_path):
    refused(Dictionary.read, tmp_path, r"looked for cfg\.json with sae_weights\.safetensors \(SAELens\)")
    refused(Dictionary.read, tmp_path / "nothing", "is no file or folder")
    for name, match in (("model.pkl.gz", "would run code of its own"), ("x.bin", "no format"), ("notes", "no format")):
        (tmp_path / name).write_bytes(b"x")
        refused(Dictionary.read, tmp_path / name, match)
    (tmp_path / "other.safetensors").write_bytes(b"x")
    refused(Dictionary.read, tmp_path / "other.safetensors", r"no config\.yaml beside it")
    shutil.copy(PEERS / LEARNED.format("JumpReluAutoEncoder") / "ae.pt", tmp_path / "other.pt")
    refused(Dictionary.read, tmp_path / "other.pt", r"not named as dictionary_learning.*no config\.json")
    refused(CrossLayerTranscoder.read, tmp_path, "encoders of the layers none")


FUZZED = [
    "saelens/gated",
    "sparsify/layers.1.mlp",
    LEARNED.format("BatchTopKSAE"),
    GEMMA,
    GEMMA_2,
    LLAMA,
    "circuit_tracer/relu",
]


def outcome(path):
    """The dictionary of a path, or what is said against it."""
    try:
        return Dictionary.read(path)
    except AssayError as error:
        return str(error)


@pytest.mark.parametrize("case", FUZZED)
def test_damage_is_refused_or_harmless(case, tmp_path):
    """Bytes changed, cut off, or doubled at random, in any file: a dictionary, or one line."""
    folder, chance = copied(case, tmp_path), random.Random(case)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    path = folder / "layer_0.safetensors" if "tracer" in case else folder
    seen = 0
    for _ in range(60):
        file = chance.choice(files)
        whole = file.read_bytes()
        data = bytearray(whole)
        place = chance.randrange(min(len(data), chance.choice((64, 1024, len(data)))))
        match chance.randrange(4):
            case 0:
                data[place] ^= 1 << chance.randrange(8)
            case 1:
                del data[place:]
            case 2:
                data[place:place] = data[place : place + 8]
            case _:
                data[place : place + 4] = chance.randbytes(4)
        file.write_bytes(data)
        found = outcome(path)
        if isinstance(found, str):
            assert "\n" not in found
            seen += 1
        else:
            assert all(bool(torch.isfinite(tensor).all()) for tensor in found.tensors.values())
        file.write_bytes(whole)
    assert seen > 5
    assert isinstance(Dictionary.read(path), Dictionary)


def test_a_yaml_of_a_set_says_what_it_is_about(tmp_path):
    folder = copied("circuit_tracer/relu", tmp_path)
    (folder / "config.yaml").write_text(yaml.dump({"feature_input_hook": "hook_resid_mid"}))
    assert Dictionary.read(folder / "layer_1.safetensors").origin["hook"] == "blocks.1.hook_resid_mid"
    (folder / "config.yaml").unlink()
    refused(Dictionary.read, folder / "layer_1.safetensors", r"no config\.yaml beside it.*transcodes=True")
    refused(Dictionary.read, folder / "layer_1.safetensors", "no config", transcodes=False)
    assert "hook" not in Dictionary.read(folder / "layer_1.safetensors", transcodes=True).origin
