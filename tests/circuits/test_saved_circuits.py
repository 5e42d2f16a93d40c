"""Last month's circuit, saved in a folder and judged today."""

import copy
import json

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import assay
from assay import SVD, AssayError
from assay.circuits import Circuit, CircuitProxy
from assay.engine import Engine, collect
from assay.simplify import SavedProxy, label
from assay.subjects import Subject
from assay.tasks import Dyck, DyckPairs
from assay.testing import assert_faithful


@pytest.fixture(scope="module")
def pairs():
    return DyckPairs(Dyck(brackets=20, max_depth=10, training_sentences=400, max_brackets=60))


@pytest.fixture(scope="module")
def trained():
    return assay.load("dyck-20-10")


@pytest.fixture(scope="module")
def train(pairs):
    return pairs.split("train", 60)


@pytest.fixture(scope="module")
def fitted(trained, train):
    """fitted(**parameters): a circuit of the trained model."""

    def fit(**parameters):
        return Circuit(**{"edges": 10, "method": "eap", **parameters}).fit(collect(Engine(trained), train, ()))

    return fit


def logits(proxy, split, count=8):
    tokens, others = (
        torch.from_numpy(array[:count].astype(np.int64)) for array in (split.tokens, split.counterfactuals)
    )
    valid = torch.from_numpy((np.arange(split.tokens.shape[1]) < split.lengths[:count, None]).astype(np.int64))
    return proxy.on_pairs(tokens, others, valid)


@pytest.mark.parametrize("ablation", ["counterfactual", "mean", "position", "zero"])
def test_what_was_saved_comes_back_to_the_last_bit(fitted, trained, train, tmp_path, ablation):
    circuit = fitted(ablation=ablation, method="exact" if ablation in ("mean", "position") else "eap")
    proxy = circuit.apply(trained)
    assert isinstance(proxy, SavedProxy)
    folder = proxy.save(tmp_path / "proxy")
    found = assay.load_proxy(folder, trained)
    assert isinstance(found, CircuitProxy)
    assert np.array_equal(found.kept, proxy.kept)
    assert torch.equal(logits(found, train), logits(proxy, train))
    assert found.fitted_on == proxy.fitted_on == circuit.found_.subject
    assert not found.transferred
    assert found.simplification.found.pairs_sha256 == circuit.found_.pairs_sha256
    assert found.simplification.bits_ == circuit.bits_
    assert label(found.simplification).startswith("Circuit(found by e")
    again = found.save(tmp_path / "again")
    assert (again / "tensors.safetensors").read_bytes() == (folder / "tensors.safetensors").read_bytes()
    records = [json.loads((where / "proxy.json").read_text()) for where in (again, folder)]
    assert [record.pop("title") for record in records] == [label(found.simplification), label(circuit)]
    assert records[0] == records[1]
    kept = safetensors.torch.load_file(folder / "tensors.safetensors")
    assert sum(tensor.numel() for tensor in kept.values()) == circuit.reference_.numbers


def test_a_circuit_by_hand_is_saved(trained, train, tmp_path):
    circuit = Circuit(["embeddings -> layer0.mlp", "layer0.mlp -> logits"], name="by hand")
    proxy = circuit.apply(trained)
    found = assay.load_proxy(proxy.save(tmp_path), trained)
    assert torch.equal(logits(found, train), logits(proxy, train))
    assert label(found.simplification) == "Circuit(by hand, 2 edges)"
    assert not found.transferred


@pytest.fixture(scope="module")
def changed(trained):
    """The trained model after more training that went astray: its MLPs are others."""
    other = Subject(copy.deepcopy(trained.model), trained.tokenizer, "today")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in other.model.named_parameters():
            if ".mlp." in name and parameter.dim() == 2:
                parameter.add_(0.3 * parameter.std() * torch.randn(parameter.shape, generator=generator))
    return other


def test_last_months_circuit_is_asserted_to_be_faithful(trained, changed, pairs, fitted, tmp_path):
    """One that does what the model does, and one that is too small to."""
    folder = fitted(edges=16).apply(trained).save(tmp_path / "enough")
    splits = [pairs.split("iid", 80), pairs.split("unseen_structure_long", 80)]
    asked = {"task": pairs, "resamples": 100, "min_agreement": 0.8, "max_gap": 0.2}
    assert_faithful(trained, assay.load_proxy(folder, trained), splits, **asked)
    loaded = assay.load_proxy(folder, changed)
    assert loaded.transferred
    assert loaded.fitted_on.name == "dyck-20-10"
    few = assay.load_proxy(fitted(edges=3).apply(trained).save(tmp_path / "few"), trained)
    with pytest.raises(AssertionError, match=r"NOT FAITHFUL: .*CircuitProxy"):
        assert_faithful(trained, few, splits, **asked)


def test_means_go_through_the_parts_of_todays_model(trained, changed, train, fitted, tmp_path):
    """What senders wrote on average is kept, and what today's norms and projections make of it is today's."""
    circuit = fitted(ablation="mean", method="exact")
    loaded = assay.load_proxy(circuit.apply(trained).save(tmp_path), changed)
    known, kept = loaded.reference.means, circuit.reference_.means
    assert torch.equal(known.embeddings, kept.embeddings)
    assert all(torch.equal(known.mlp[layer], kept.mlp[layer]) for layer in kept.mlp)
    whole = Circuit([str(edge) for edge in loaded.graph.edges(loaded.graph.exists)]).apply(changed)
    assert not torch.equal(logits(loaded, train), logits(whole, train))


def gpt2(**changes):
    size = {"n_positions": 300, "n_embd": 32, "n_layer": 2, "n_head": 1, **changes}
    return GPT2LMHeadModel(GPT2Config(vocab_size=42, **size, bos_token_id=None, eos_token_id=None))


def llama():
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=42, **size, bos_token_id=None, eos_token_id=None))


def test_a_subject_of_another_form_is_refused(trained, fitted, tmp_path):
    folder = fitted().apply(trained).save(tmp_path)
    width = trained.model.config.n_embd
    for model, words in (
        (gpt2(n_embd=width, n_layer=1), rf"of 2 layers of 1 heads, of width {width}, and 'other' has 1 layers"),
        (gpt2(n_embd=width, n_head=2), "and 'other' has 2 layers of 2 heads"),
        (gpt2(n_embd=2 * width), f"and 'other' has 2 layers of 1 heads, of width {2 * width}"),
        (llama(), "was fitted on a GPT2LMHeadModel .*and 'other' is a LlamaForCausalLM"),
    ):
        with pytest.raises(AssayError, match=words) as error:
            assay.load_proxy(folder, Subject(model.eval(), None, "other"))
        assert "\n" not in str(error.value)


def test_a_control_is_not_saved(trained, train, fitted, tmp_path):
    circuit = fitted()
    samples = collect(Engine(trained), train, ())
    for control in (circuit.control(), circuit.ablated()):
        with pytest.raises(AssayError, match="is not saved; save the circuit"):
            control.fit(samples).apply(trained).save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_holds_one_kind_of_proxy_or_another(trained, train, fitted, tmp_path):
    samples = collect(Engine(trained), train, ("queries", "keys"))
    svd = SVD(rank=3).fit(samples.at(Engine(trained).site("all"))).apply(trained)
    assert isinstance(svd, SavedProxy)
    svd.save(tmp_path)
    fitted().apply(trained).save(tmp_path)
    assert isinstance(assay.load_proxy(tmp_path, trained), CircuitProxy)
    svd.save(tmp_path)
    assert assay.load_proxy(tmp_path, trained).simplification == SVD(rank=3)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(AssayError, match="holds something else than a saved proxy"):
        fitted().apply(trained).save(tmp_path)


def changes():
    def edit(record, edge):
        record["simplification"]["learned"]["circuit"] = edge

    yield lambda record: edit(record, 5), "damaged or was changed"
    yield lambda record: edit(record, {"dict": []}), "has version None of the format of circuits"
    yield lambda record: record["simplification"]["learned"].pop("means"), "KeyError in Circuit.restored"
    yield lambda record: record["simplification"]["learned"].update(means={"list": [1]}), "Error in Circuit.restored"
    yield lambda record: record["simplification"].update(name="no-such"), "unknown simplification 'no-such'"


@pytest.mark.parametrize(("change", "words"), list(changes()))
def test_a_record_that_was_changed_is_refused(trained, fitted, tmp_path, change, words):
    folder = fitted().apply(trained).save(tmp_path)
    record = json.loads((folder / "proxy.json").read_text())
    change(record)
    (folder / "proxy.json").write_text(json.dumps(record))
    with pytest.raises(AssayError, match=words) as error:
        assay.load_proxy(folder, trained)
    assert "\n" not in str(error.value)
