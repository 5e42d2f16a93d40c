"""Proxies in folders: what comes back is what was saved, and whatever else it could be is refused in one line."""

import copy
import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import assay
from assay import AssayError
from assay.engine import BLOCK_STREAMS, Block, Edit, EditedSubject, Engine, Head, collect
from assay.simplify import (
    SVD,
    Identity,
    KMeans,
    MeanAblation,
    OneHotAttention,
    RandomPerturbation,
    RandomProjection,
    SimplifiedSubject,
    UniformAttention,
    applied,
)
from assay.subjects import Subject
from assay.testing import assert_faithful

MIXED = "layer0.head0+layer1.head0.values+layer1.mlp"
RECIPES = [
    (SVD(rank=3), MIXED),
    (SVD(rank=3, joint=False, centred=True), "all"),
    (KMeans(clusters=4), MIXED),
    (RandomProjection(rank=3, seed=2), MIXED),
    (MeanAblation(), "embeddings+layer1.attention+layer1.after"),
    (MeanAblation(), "layer0.heads+layer1.middle+layer1.mlp_input"),
    (Identity(), MIXED),
    (OneHotAttention(), "all"),
    (UniformAttention(), "layer1"),
    (RandomPerturbation(SVD(rank=3), seed=4), MIXED),
    (RandomPerturbation(OneHotAttention()), "all"),
]


@pytest.fixture(scope="module")
def everything(engine, task):
    return collect(engine, task.split("train", 40), ("queries", "keys", "values", *BLOCK_STREAMS))


@pytest.fixture
def make(engine, everything):
    """make(recipe, site): a proxy of the small subject."""
    return lambda recipe, site=MIXED: applied(
        copy.deepcopy(recipe).fit(everything.at(engine.site(site))), engine.subject
    )


@pytest.fixture(scope="module")
def tokens(task):
    return torch.from_numpy(task.split("iid", 5).tokens)


@pytest.fixture
def saved(make, tmp_path):
    return make(SVD(rank=3)).save(tmp_path / "proxy")


# -- what comes back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("recipe", "site"), RECIPES, ids=[f"{recipe} at {site}" for recipe, site in RECIPES])
def test_what_was_saved_comes_back_to_the_last_bit(make, tokens, tmp_path, recipe, site):
    proxy = make(recipe, site)
    subject = proxy.subject
    folder = proxy.save(tmp_path / "a" / "proxy")
    assert sorted(path.name for path in folder.iterdir()) == ["proxy.json", "tensors.safetensors"]
    found = assay.load_proxy(folder, subject)
    assert torch.equal(found(tokens), proxy(tokens))
    assert [edit.place for edit in found.edits] == [edit.place for edit in proxy.edits]
    assert found.simplification == recipe
    assert not found.transferred
    assert found.fitted_on == proxy.fitted_on
    again = found.save(tmp_path / "again")
    for name in ("proxy.json", "tensors.safetensors"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


SCRIPT = """
import sys
import numpy as np
import torch
import assay
torch.set_num_threads(1)
subject = assay.load("dyck-20-10")
tokens = torch.from_numpy(np.load(sys.argv[2]))
np.save(sys.argv[3], assay.load_proxy(sys.argv[1], subject)(tokens).numpy())
"""


def test_a_fresh_process_has_the_same_logits(tmp_path):
    subject, task = assay.load("dyck-20-10"), assay.tasks.Dyck(training_sentences=300, max_brackets=60)
    session = assay.testing.Session()
    proxy = session.proxy(subject, KMeans(clusters=8), task, site="layer0+layer1.mlp", sequences=100)
    given = task.split("iid", 20).tokens
    np.save(tmp_path / "tokens.npy", given)
    paths = [proxy.save(tmp_path / "proxy"), tmp_path / "tokens.npy", tmp_path / "found.npy"]
    subprocess.run([sys.executable, "-c", SCRIPT, *map(str, paths)], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), proxy(torch.from_numpy(given)).numpy())


class Own:
    """Shifts keys by numbers of all kinds."""

    streams = ("queries", "keys")

    def __init__(self, by=0.5, labels=("a", None)):
        self.by, self.labels = by, labels
        self.learned_ = None
        self.cache = object()

    def fit(self, samples):
        array = np.arange(6, dtype=np.float32).reshape(2, 3)
        self.learned_ = {
            "places": (samples.places[0], Block(1)), "array": array, "again": array, "number": np.float64(0.1),
            "limits": [float("inf"), -float("inf")], "text": "layer0", 3: {(1, True): torch.ones(2, dtype=torch.int8)},
            "transposed": torch.arange(6.0).reshape(2, 3).T, "empty": torch.empty(0, 4), "nothing": None,
        }  # fmt: skip
        return self

    def apply(self, subject):
        place, shift = self.learned_["places"][0], self.by * self.learned_["number"]
        return EditedSubject(subject, [Edit(place, keys=lambda keys: keys + shift)])

    def control(self):
        return None


def test_a_class_of_ones_own_is_given_when_it_is_loaded(make, subject, tokens, tmp_path):
    proxy = make(Own(by=2.0, labels=["b", 1]), "all")
    assert isinstance(proxy, SimplifiedSubject), "edits alone know what made them once they are applied"
    folder = proxy.save(tmp_path)
    found = assay.load_proxy(folder, subject, simplification=Own)
    assert torch.equal(found(tokens), proxy(tokens))
    before, after = proxy.simplification.learned_, found.simplification.learned_
    assert (found.simplification.by, found.simplification.labels) == (2.0, ["b", 1])
    assert list(after) == list(before)
    for key in ("places", "number", "limits", "text", "nothing"):
        assert after[key] == before[key]
    assert type(after["number"]) is np.float64
    assert isinstance(after["array"], np.ndarray)
    np.testing.assert_array_equal(after["array"], before["array"])
    assert torch.equal(after[3][1, True], before[3][1, True])
    assert after[3][1, True].dtype == torch.int8
    assert torch.equal(after["transposed"], before["transposed"])
    assert after["transposed"].stride() == before["transposed"].stride()
    assert after["empty"].shape == (0, 4)
    kept = json.loads((folder / "proxy.json").read_text(encoding="utf-8"))
    assert kept["simplification"]["name"] is None
    assert len(kept["tensors"]) == 5, "one array that is held twice is kept once"


class Renamed(Own):
    """Another class."""


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, r"was made by the class Own; give it: load_proxy\(folder, subject, simplification=Own\)"),
        (Renamed, "made by the class Own, not by Renamed"),
    ],
)
def test_a_class_that_is_not_given_is_asked_for(make, subject, tmp_path, given, words):
    folder = make(Own(), "all").save(tmp_path)
    with pytest.raises(AssayError, match=words):
        assay.load_proxy(folder, subject, simplification=given)


def test_a_class_that_has_changed_is_refused(make, subject, tmp_path):
    folder = make(Own(), "all").save(tmp_path)

    def changed(**members):
        return type("Own", (Own,), {"__qualname__": "Own", **members})

    def fewer(self, by=0.5):
        Own.__init__(self, by)

    def raising(self, by, labels):
        raise ZeroDivisionError("no\nsuch")

    def elsewhere(self, subject):
        return EditedSubject(subject, [Edit(Head(1, 0), keys=lambda keys: keys)])

    def broken(self, subject):
        return EditedSubject(subject, [Edit(Head(0, 0), keys=lambda keys: keys[..., :3])])

    for kind, words in (
        (changed(__init__=fewer), "cannot be made with the parameters.*unexpected keyword"),
        (changed(__init__=raising), "cannot be made.*ZeroDivisionError: no such"),
        (changed(apply=elsewhere), "edits other places or streams than when it was saved"),
        (changed(apply=broken), "does not run in 'random-dyck'"),
    ):
        with pytest.raises(AssayError, match=words) as error:
            assay.load_proxy(folder, subject, simplification=kind)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "held", [lambda: 1, object(), {1, 2}, torch.nn.Linear(1, 1), b"bytes", [np.array(["a"])], torch.float32]
)
def test_what_is_no_plain_value_is_not_saved(make, tmp_path, held):
    proxy = make(Own(), "all")
    proxy.simplification.learned_ = {"what": [held]}
    with pytest.raises(AssayError, match=r"Own\(\) cannot be saved: its learned_ holds a .*; tensors, arrays, numbers"):
        proxy.save(tmp_path / "proxy")
    assert not (tmp_path / "proxy").exists()


def test_projections_that_are_shared_are_kept_once(saved):
    """Three places, of which one has a basis for queries and keys together; a basis and a mean each."""
    assert len(safetensors.torch.load_file(saved / "tensors.safetensors")) == 2 * 3


def test_a_later_fit_does_not_change_what_is_saved(engine, everything, tokens, tmp_path):
    recipe = SVD(rank=3).fit(everything.at(engine.site("layer0")))
    proxy = recipe.apply(engine.subject)
    before = proxy(tokens)
    recipe.fit(everything.at(engine.site("layer1")))
    assert torch.equal(assay.load_proxy(proxy.save(tmp_path), engine.subject)(tokens), before)


# -- another subject ------------------------------------------------------------------------------------------------


def test_todays_weights_with_last_months_explanation(make, subject, tokens, saved):
    """The same edits in the other model; the record and the name say where they are from."""
    today = subject.shuffled_copy()
    proxy, other = make(SVD(rank=3)), assay.load_proxy(saved, today)
    assert torch.equal(other(tokens), EditedSubject(today, proxy.edits)(tokens))
    assert other.transferred
    assert other.subject is today
    assert other.fitted_on == proxy.fitted_on
    assert other.fitted_on.weights_sha256 == subject.weights_sha256 != today.weights_sha256
    assert f"fitted on other weights: those of 'random-dyck' ({subject.weights_sha256[:8]})" in repr(other)
    assert "other weights" not in repr(assay.load_proxy(saved, subject))
    assert repr(proxy) == (f"SimplifiedSubject({subject!r}, SVD(rank=3) at layer0.head0, layer1.head0, layer1)")


def gpt2(layers=2, width=32, heads=1):
    size = {"n_positions": 200, "n_embd": width * heads, "n_layer": layers, "n_head": heads}
    return GPT2LMHeadModel(GPT2Config(vocab_size=11, **size, bos_token_id=None, eos_token_id=None))


def llama():
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=11, **size, bos_token_id=None, eos_token_id=None))


def test_a_subject_of_another_architecture_is_refused(subject, saved):
    width, half = Engine(subject).widths[0], Engine(subject).widths[0] // 2
    for model, words in (
        (gpt2(layers=1, width=width), r"is about layer1\.head0, which 'other' does not have"),
        (gpt2(width=half), rf"vectors of width {width} at layer0\.head0, which in 'other' have width {half}"),
        (gpt2(width=width, heads=2), rf"vectors of width {width} at layer1, which in 'other' have width {2 * width}"),
        (llama(), "was fitted on a GPT2LMHeadModel .*and 'other' is a LlamaForCausalLM"),
    ):
        with pytest.raises(AssayError, match=words) as error:
            assay.load_proxy(saved, Subject(model, None, "other"))
        assert "same architecture" in str(error.value)
        assert "\n" not in str(error.value)


def test_a_loaded_proxy_is_asserted_to_be_faithful(tmp_path):
    """It holds for the model that it was made of, and not for one that does the same in another inner form."""
    subject, task = assay.load("dyck-20-10"), assay.tasks.Dyck(training_sentences=300, max_brackets=60)
    width = Engine(subject).widths[1]
    proxy = assay.testing.Session().proxy(subject, SVD(rank=8), task, site="layer1", sequences=100)
    loaded = assay.load_proxy(proxy.save(tmp_path), subject)
    iid = task.split("iid", 600)
    splits = [iid.take(np.arange(300)), replace(iid.take(np.arange(300, 600)), name="fresh", role="shift")]
    asked = {"task": task, "resamples": 200, "min_agreement": 0.85, "max_gap": 0.1}
    assert_faithful(subject, loaded, splits, **asked)
    changed = Subject(copy.deepcopy(subject.model), subject.tokenizer, "changed")
    turned, _ = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(0)))
    projection = changed.model.transformer.h[1].attn.c_attn
    with torch.no_grad():
        for part in (slice(0, width), slice(width, 2 * width)):  # scores are those of before in any basis
            projection.weight[:, part] = projection.weight[:, part] @ turned
            projection.bias[part] = projection.bias[part] @ turned
    given = torch.from_numpy(iid.tokens[:5])
    torch.testing.assert_close(changed(given), subject(given), atol=1e-2, rtol=1e-3)
    with pytest.raises(AssertionError, match=r"NOT FAITHFUL: .*SimplifiedSubject\(.*fitted on other weights"):
        assert_faithful(changed, assay.load_proxy(tmp_path, changed), splits, **asked)


# -- damage ---------------------------------------------------------------------------------------------------------


def rewritten(folder: Path, change) -> Path:
    """The folder with its record changed."""
    path = folder / "proxy.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    change(record)
    path.write_text(json.dumps(record), encoding="utf-8")
    return folder


def with_tensors(folder: Path, change) -> Path:
    """The folder with its tensors changed, and a record that has their hash."""
    path = folder / "tensors.safetensors"
    data = safetensors.torch.save(change(safetensors.torch.load_file(path)))
    path.write_bytes(data)
    return rewritten(folder, lambda record: record.update(tensors_sha256=hashlib.sha256(data).hexdigest()))


def first_learned(record):
    return record["simplification"]["learned"]["subspaces_"]["dict"][0]


RECORDS = {
    "another version": (lambda r: r.update(version=2), "has version 2 of the format.*reads version 1"),
    "no version": (lambda r: r.pop("version"), "has version None"),
    "another format": (lambda r: r.update(format="other"), "is no record of a saved proxy"),
    "a field more": (lambda r: r.update(more=1), "damaged.*more: Extra inputs"),
    "a field less": (lambda r: r.pop("places"), "damaged.*places: Field required"),
    "a field of another type": (lambda r: r["subject"].update(name=3), "damaged.*subject.name"),
    "an unknown class": (lambda r: r["simplification"].update(name="svdd"), "unknown simplification 'svdd'"),
    "an unknown parameter": (lambda r: r["simplification"]["parameters"].update(ranks=3), "unexpected keyword"),
    "a parameter less": (lambda r: r["simplification"]["parameters"].pop("rank"), "missing a required argument"),
    "a name that is not learned": (lambda r: r["simplification"]["learned"].update(fit=1), "'fit' is no name"),
    "a private name": (lambda r: r["simplification"]["learned"].update(__class__=1), "'__class__' is no name"),
    "a value of no kind": (lambda r: first_learned(r).__setitem__(0, {"module": "os"}), "a value of the kind 'module'"),
    "a value of two kinds": (lambda r: first_learned(r).__setitem__(0, {"list": [], "float": "1"}), "ValueError"),
    "a bare list": (lambda r: first_learned(r).__setitem__(0, [1]), "a list among the values"),
    "a place that is none": (lambda r: first_learned(r).__setitem__(0, {"place": "layer0x"}), "ValueError"),
    "a tensor that is not there": (
        lambda r: first_learned(r)[1]["tuple"][0]["subspace"].__setitem__(0, {"tensor": "tensor99"}), "KeyError",
    ),
    "a key that is a list": (lambda r: first_learned(r).__setitem__(0, {"list": []}), "TypeError"),
    "places that there are not": (lambda r: r["places"][0].update(place="head0"), "places or streams that"),
    "streams that there are not": (lambda r: r["places"][0].update(streams=["mlp"]), "places or streams that"),
    "a layer that there is not": (lambda r: r["places"][0].update(place="layer7.head0"), r"is about layer7\.head0"),
    "another width": (lambda r: r["places"][0]["widths"].update(keys=5), "width"),
    "another hash": (lambda r: r.update(tensors_sha256="0" * 64), "its hash is not the one"),
    "another shape": (lambda r: r["tensors"]["tensor0"].update(shape=[1, 2]), "tensor0 is float64 of shape"),
    "another dtype": (lambda r: r["tensors"]["tensor0"].update(dtype="float32"), "tensor0 is float64"),
    "another order": (lambda r: r["tensors"]["tensor0"].update(order=[0, 0]), r"in the order \[0, 0\]"),
    "a place too few": (lambda r: r["places"].pop(), "edits other places or streams"),
}  # fmt: skip


@pytest.mark.parametrize("what", RECORDS)
def test_a_record_that_was_changed_is_refused(subject, saved, what):
    change, words = RECORDS[what]
    with pytest.raises(AssayError, match=words) as error:
        assay.load_proxy(rewritten(saved, change), subject)
    assert "\n" not in str(error.value)
    assert str(saved) in str(error.value)


TENSORS = {
    "missing": (lambda t: {key: t[key] for key in list(t)[1:]}, "missing tensors: tensor"),
    "extra": (lambda t: {**t, "other": torch.ones(1)}, "extra tensors: other"),
    "misshapen": (lambda t: {**t, "tensor0": t["tensor0"][:, :1].clone()}, "tensor0 is float64 of shape"),
    "of another type": (lambda t: {**t, "tensor1": t["tensor1"].float()}, "tensor1 is float32"),
}


@pytest.mark.parametrize("what", TENSORS)
def test_tensors_that_were_changed_are_refused(subject, saved, what):
    change, words = TENSORS[what]
    with pytest.raises(AssayError, match=words):
        assay.load_proxy(with_tensors(saved, change), subject)


def test_what_was_learned_has_to_fit_the_subject(make, subject, tmp_path):
    """Record and tensors agree with each other, and not with the heads."""
    folder = make(KMeans(clusters=4)).save(tmp_path)
    with_tensors(folder, lambda tensors: {**tensors, "tensor0": torch.ones(4, 3)})
    rewritten(folder, lambda record: record["tensors"]["tensor0"].update(shape=[4, 3]))
    with pytest.raises(AssayError, match=r"KMeans\(clusters=4\) does not run in 'random-dyck' \(\w+Error") as error:
        assay.load_proxy(folder, subject)
    assert "\n" not in str(error.value)


def test_files_that_are_not_what_they_were_are_refused(subject, saved, tmp_path):
    tensors, record = saved / "tensors.safetensors", saved / "proxy.json"
    data, text = tensors.read_bytes(), record.read_bytes()
    for change in (data[:-1], data + b"\0", data[:100] + bytes([data[100] ^ 1]) + data[101:], b""):
        tensors.write_bytes(change)
        with pytest.raises(AssayError, match="its hash is not the one in"):
            assay.load_proxy(saved, subject)
    tensors.write_bytes(b"garbage")
    rewritten(saved, lambda r: r.update(tensors_sha256=hashlib.sha256(b"garbage").hexdigest()))
    with pytest.raises(AssayError, match=r"tensors\.safetensors' is damaged"):
        assay.load_proxy(saved, subject)
    tensors.unlink()
    with pytest.raises(AssayError, match="cannot be read: No such file"):
        assay.load_proxy(saved, subject)
    for content, words in ((text[:-9], "it is no JSON"), (b"\xff", "it is no JSON"), (b"[]", "no record of a saved")):
        record.write_bytes(content)
        with pytest.raises(AssayError, match=words):
            assay.load_proxy(saved, subject)
    record.write_bytes(b"[" * 100_000)
    with pytest.raises(AssayError, match="it is no JSON"):
        assay.load_proxy(saved, subject)
    with pytest.raises(AssayError, match="holds no saved proxy"):
        assay.load_proxy(tmp_path / "nowhere", subject)


# -- folders --------------------------------------------------------------------------------------------------------


def test_a_saved_proxy_is_replaced_and_nothing_else_is(make, subject, tokens, saved, tmp_path):
    other = make(KMeans(clusters=4))
    (saved / ".0123456789abcdef.assay-part").touch()
    other.save(saved)
    assert torch.equal(assay.load_proxy(saved, subject)(tokens), other(tokens))
    (saved / "notes.txt").write_text("mine", encoding="utf-8")
    before = (saved / "proxy.json").read_bytes()
    with pytest.raises(AssayError, match=r"holds something else than a saved proxy \(notes\.txt\)"):
        other.save(saved)
    assert (saved / "proxy.json").read_bytes() == before
    for name, content in {"proxy.json": b"{}", "tensors.safetensors": b"", "config.json": b"{}"}.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_bytes(content)
        with pytest.raises(AssayError, match="holds something else"):
            other.save(folder)
        assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [(name, content)]
    with pytest.raises(AssayError, match="is a file"):
        other.save(saved / "notes.txt")
    (tmp_path / "empty").mkdir()
    assert other.save(tmp_path / "empty") == tmp_path / "empty"
