import io
import pickle
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

import assay
from assay.engine import Engine
from assay.subjects import Subject, import_max_of_k, load, max_of_k_batches, max_of_k_model, shipped
from assay.tasks import MaxOfK

NAMES = [(name, seed) for name, seeds in shipped().items() if "max-of" in name for seed in seeds]


@pytest.mark.parametrize(("name", "seed"), NAMES)
def test_shipped_models_do_what_their_record_says(name, seed):
    subject = load(name, seed=seed)
    task = subject.record["task"]
    split = MaxOfK(task["length"], vocabulary=task["vocabulary"]).split("iid", 10_000)
    right = 0
    for begin in range(0, 10_000, 1000):
        tokens = split.tokens[begin : begin + 1000]
        logits = subject(torch.from_numpy(tokens[:, :-1]))[:, -1]
        right += int((logits.argmax(dim=1).numpy() == tokens[:, -1]).sum())
    assert right / 10_000 == pytest.approx(subject.record["iid_accuracy"], abs=2e-4)
    assert right > 9_900


def test_the_families_are_complete():
    found = dict.fromkeys(name for name, _ in NAMES)
    assert len(shipped()["max-of-4"]) >= 5
    assert {"max-of-5", "max-of-10", "max-of-20", "max-of-10-vocabulary-128", "linear-max-of-2"} <= set(found)


def test_it_is_causal_and_attention_functions_agree():
    model = max_of_k_model(MaxOfK(4), seed=0).eval()
    subject = Subject(model, None, "fresh")
    tokens = torch.from_numpy(MaxOfK(4).split("iid", 16).tokens)
    changed = tokens.clone()
    changed[:, -1] = 0
    assert torch.equal(subject(tokens)[:, :-1], subject(changed)[:, :-1])
    by_sdpa = subject(tokens)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(subject(tokens), by_sdpa)


def test_the_engine_reads_it():
    engine = Engine(load("max-of-4"))
    assert engine is not None


def test_batches_depend_on_the_step_only():
    batches = max_of_k_batches(MaxOfK(4), batch=8, seed=1)
    first = batches(3)
    batches(0)
    assert (batches(3).tokens == first.tokens).all()
    assert (first.labels[:, -1] == first.tokens.max(axis=1)).all()


def arrays_of(subject, prefix=""):
    state = subject.model.state_dict()
    short = {
        "W_E": state["embed_tokens.weight"],
        "W_pos": state["embed_positions.weight"][:-1],
        "W_U": state["lm_head.weight"].T,
    } | {f"W_{n}": state[f"layers.0.attn.{n.lower()}_proj.weight"].T for n in "QKVO"}
    return {prefix + key: value.contiguous() for key, value in short.items()}


def test_import_of_arrays_and_of_a_transformer_lens_state(tmp_path):
    subject = load("max-of-4")
    tokens = torch.from_numpy(MaxOfK(4).split("iid", 16).tokens[:, :-1])
    np.savez(tmp_path / "plain.npz", **{key: value.numpy() for key, value in arrays_of(subject).items()})
    prefixes = {"W_E": "embed.", "W_pos": "pos_embed.", "W_U": "unembed."}
    lens = {
        prefixes.get(key, "blocks.0.attn.") + key: value[None] if key in ("W_Q", "W_K", "W_V", "W_O") else value
        for key, value in arrays_of(subject).items()
    }
    torch.save({**lens, "unembed.b_U": torch.zeros(64), "blocks.0.attn.mask": torch.ones(4, 4)}, tmp_path / "lens.pt")
    for name in ("plain.npz", "lens.pt"):
        assert torch.equal(import_max_of_k(tmp_path / name)(tokens), subject(tokens))
    torch.save({**lens, "unembed.b_U": torch.ones(64)}, tmp_path / "bias.pt")
    with pytest.raises(assay.AssayError, match="bias"):
        import_max_of_k(tmp_path / "bias.pt")
    np.savez(tmp_path / "short.npz", W_E=np.ones((4, 2)))
    with pytest.raises(assay.AssayError, match="W_pos"):
        import_max_of_k(tmp_path / "short.npz")


@pytest.fixture(scope="module")
def lens():
    """The state dict of a small attention-only model as TransformerLens saves it: 3 positions, 5 tokens."""
    rng = np.random.default_rng(0)
    shapes = {"embed.W_E": (5, 4), "pos_embed.W_pos": (3, 4), "unembed.W_U": (4, 5)}
    shapes |= {f"blocks.0.attn.W_{name}": (1, 4, 2) for name in "QKV"} | {"blocks.0.attn.W_O": (1, 2, 4)}
    state = {key: torch.tensor(rng.normal(size=shape), dtype=torch.float32) for key, shape in shapes.items()}
    zeros = {f"blocks.0.attn.b_{name}": torch.zeros(1, 2) for name in "QKV"}
    zeros |= {"blocks.0.attn.b_O": torch.zeros(4), "unembed.b_U": torch.zeros(5)}
    return (
        state
        | zeros
        | {"blocks.0.attn.mask": torch.ones(3, 3).tril().bool(), "blocks.0.attn.IGNORE": -torch.inf * torch.ones(())}
    )


def test_what_changes_nothing_may_stand_beside_the_matrices(lens, tmp_path):
    torch.save(lens, tmp_path / "whole.pt")
    torch.save({key: value for key, value in lens.items() if ".W_" in key}, tmp_path / "matrices.pt")
    tokens = torch.tensor(list(np.ndindex(5, 5, 5)))
    first, second = (import_max_of_k(tmp_path / name) for name in ("whole.pt", "matrices.pt"))
    assert first.weights_sha256 == second.weights_sha256
    assert torch.equal(first(tokens), second(tokens))


@pytest.mark.parametrize(
    "other",
    [
        "blocks.0.ln1.w", "blocks.0.ln1.b", "ln_final.w", "blocks.0.mlp.W_in", "blocks.0.mlp.b_out", "W_gate",
        "blocks.0.attn.rotary_sin", "blocks.0.attn.W_Q.scale", "W_E_extra", "step",
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pt", ".pth"])
def test_a_model_with_other_arrays_is_refused_by_their_name(lens, tmp_path, suffix, other):
    path = tmp_path / f"model{suffix}"
    # Also where they are zero: of a layer's weights, zeros are no identity.
    state = lens | {other: torch.zeros(4)}
    if suffix == ".npz":
        np.savez(path, **{key: value.numpy() for key, value in state.items()})
    elif suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    with pytest.raises(assay.AssayError, match=re.escape(repr(other))) as refused:
        import_max_of_k(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "bias", ["blocks.0.attn.b_Q", "blocks.0.attn.b_K", "blocks.0.attn.b_V", "blocks.0.attn.b_O", "unembed.b_U"]
)
@pytest.mark.parametrize("value", [2.0**-149, float("nan")])
def test_a_bias_that_is_not_zero_is_refused(lens, tmp_path, bias, value):
    changed = lens[bias].clone()
    changed[..., -1] = value
    torch.save(lens | {bias: changed}, tmp_path / "model.pt")
    with pytest.raises(assay.AssayError, match=re.escape(bias)):
        import_max_of_k(tmp_path / "model.pt")


@pytest.mark.parametrize(
    "mask", [torch.ones(3, 3).triu(), torch.eye(3), torch.ones(4, 4), torch.ones(3), torch.zeros(0, 0)]
)
def test_a_mask_that_hides_a_position_from_the_last_one_is_refused(lens, tmp_path, mask):
    torch.save(lens | {"blocks.0.attn.mask": mask}, tmp_path / "model.pt")
    with pytest.raises(assay.AssayError, match=r"'blocks\.0\.attn\.mask' does not let the last of 3 positions"):
        import_max_of_k(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.ones(5, 4, dtype=torch.bfloat16), "of torch.bfloat16"),
        (torch.ones(5, 4).to(torch.float8_e4m3fn), "of torch.float8_e4m3fn"),
        (torch.ones(5, 4).to_sparse(), "torch.sparse_coo"),
        (torch.ones(5, 4, dtype=torch.complex64), "no array of numbers"),
        ([1, 2, 3], "no array of numbers"),
        ({"nested": torch.ones(5, 4)}, "no array of numbers"),
        (torch.ones(()), "shape ()"),
        (torch.ones(5), "shape (5,)"),
        (torch.ones(0, 4), "shape (0, 4)"),
        (torch.ones(2, 5, 4), "shape (2, 5, 4)"),
        (torch.ones(5, 3), "W_pos has shape (3, 4); it must be (K, 3)"),
        (torch.full((5, 4), torch.inf), "not finite float32"),
        (torch.full((5, 4), 0.1, dtype=torch.float64), "not finite float32"),
        (torch.full((5, 4), 1e300, dtype=torch.float64), "not finite float32"),
    ],
)
def test_arrays_that_are_no_float32_matrices_are_refused_in_one_line(lens, tmp_path, value, words):
    torch.save(lens | {"embed.W_E": value}, tmp_path / "model.pt")
    with pytest.raises(assay.AssayError, match=re.escape(words)) as refused:
        import_max_of_k(tmp_path / "model.pt")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize("harm", ["empty", "noise", "cut", "another format", "no names", "a pickle"])
def test_malformed_files_are_refused_in_one_line(lens, tmp_path, suffix, harm):
    path = tmp_path / f"model{suffix}"
    whole = io.BytesIO()
    if suffix == ".npz":
        np.savez(whole, **{key: value.numpy() for key, value in lens.items()})
    elif suffix == ".safetensors":
        whole.write(save(lens))
    else:
        torch.save(lens, whole)
    if harm == "no names":
        whole = io.BytesIO()
        (np.save if suffix == ".npz" else lambda file, value: torch.save(torch.tensor(value), file))(
            whole, np.ones((5, 4))
        )
    content = {
        "empty": b"",
        "noise": np.random.default_rng(1).bytes(4_000),
        "cut": whole.getvalue()[: len(whole.getvalue()) // 2],
        "another format": b"W_E = [[1, 2], [3, 4]]\n" * 20,
        "no names": whole.getvalue(),
        "a pickle": pickle.dumps({"W_E": print}),
    }[harm]
    path.write_bytes(content)
    with pytest.raises(assay.AssayError, match=r"'model\.\w+' (cannot be read|does not hold)") as refused:
        import_max_of_k(path)
    assert "\n" not in str(refused.value)


def test_only_max_of_k_models_are_certified():
    with pytest.raises(assay.AssayError, match="MaxOfKForCausalLM"):
        assay.certify(load("dyck-20-10"))
    with pytest.raises(assay.AssayError, match="separable"):
        assay.certify(load("max-of-4"), strategy="seperable")
