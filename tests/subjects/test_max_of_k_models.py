import numpy as np
import pytest
import torch

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


def test_only_max_of_k_models_are_certified():
    with pytest.raises(assay.AssayError, match="MaxOfKForCausalLM"):
        assay.certify(load("dyck-20-10"))
    with pytest.raises(assay.AssayError, match="separable"):
        assay.certify(load("max-of-4"), strategy="seperable")
