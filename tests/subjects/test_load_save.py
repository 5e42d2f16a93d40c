"""Subjects on disk: what is written is read back exactly, and what cannot be judged is refused."""

import copy
import json
import shutil
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from assay import AssayError
from assay.subjects import Subject, check_seed, dyck_model, load, resolve_device, save, shipped, takes_base

TOKENS = torch.tensor([[8, 0, 1, 5, 4, 9]])


def state(subject: Subject) -> dict[str, torch.Tensor]:
    return subject.model.state_dict()


def assert_same_weights(one: Subject, other: Subject) -> None:
    assert state(one).keys() == state(other).keys()
    for name, weight in state(one).items():
        assert torch.equal(weight, state(other)[name]), name


@pytest.fixture
def folder(subject, tmp_path) -> Path:
    record = {"seed": 3, "steps": 5, "accuracy": {"iid": 0.25}, "note": "naïve – ∞"}
    save(replace(subject, record=record, seed=3), tmp_path / "mine")
    return tmp_path / "mine"


def damage(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_round_trip_keeps_every_bit(subject, folder):
    again = load(folder)
    assert_same_weights(subject, again)
    assert again.weights_sha256 == subject.weights_sha256
    assert again.record == {"seed": 3, "steps": 5, "accuracy": {"iid": 0.25}, "note": "naïve – ∞"}
    assert (again.seed, again.name, again.trained) == (3, "mine", True)
    assert torch.equal(again(TOKENS), subject(TOKENS))
    assert not again.model.training


def test_round_trip_keeps_the_tokenizer(subject, folder):
    text = "(0 (3 3) 0)"
    assert load(folder).tokenizer(text)["input_ids"] == subject.tokenizer(text)["input_ids"]


def test_folder_can_be_named_by_text(subject, folder):
    assert load(str(folder)).weights_sha256 == subject.weights_sha256


def test_saving_twice_gives_the_same_files(subject, tmp_path):
    for name in ("a", "b"):
        save(subject, tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_saved_config_does_not_name_our_attention(subject, engine, folder):
    engine.run(TOKENS)
    save(subject, folder)
    assert "assay" not in (folder / "config.json").read_text()


def test_subject_without_a_tokenizer(subject, tmp_path):
    save(replace(subject, tokenizer=None), tmp_path / "bare")
    again = load(tmp_path / "bare")
    assert again.tokenizer is None
    assert_same_weights(subject, again)


def test_dtype_can_be_chosen(folder):
    assert load(folder).model.dtype == torch.float32
    assert load(folder, dtype=torch.float64).model.dtype == torch.float64


def test_shipped_models_load_with_their_record():
    for name, seeds in shipped().items():
        for seed in seeds:
            subject = load(name, seed=seed)
            assert (subject.name, subject.seed) == (name, seed)
            assert subject.record["seed"] == seed
            assert (subject.tokenizer is None) == ("max-of" in name)


def test_missing_seed_is_refused_with_those_that_exist():
    name, seeds = next(iter(shipped().items()))
    with pytest.raises(AssayError, match=rf"seeds {seeds[0]}.*not with 99"):
        load(name, seed=99)
    with pytest.raises(AssayError, match="not with -1"):
        check_seed(name, -1)


@pytest.mark.parametrize("name", ["dyck-20-11", "dyck-2010", "Dyck-20-10"])
def test_misspelt_name_is_refused_with_the_nearest(name):
    with pytest.raises(AssayError, match=r"unknown reference model.*did you mean 'dyck-20-10'"):
        load(name)


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(AssayError, match="there is no folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(AssayError, match="there is no folder"):
        load("./nowhere-at-all")


def test_folder_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "readme.txt").write_text("nothing here")
    with pytest.raises(AssayError, match=r"could not read .* as a model"):
        load(tmp_path)


def test_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(AssayError, match="causal language model"):
        load(folder)


def test_pickled_weights_are_read_only_when_asked_for(subject, folder):
    (folder / "model.safetensors").unlink()
    torch.save(state(subject), folder / "pytorch_model.bin")
    with pytest.raises(AssayError, match=r"pickle \(pytorch_model\.bin\).*allow_pickle=True"):
        load(folder)
    assert load(folder, allow_pickle=True).weights_sha256 == subject.weights_sha256


def test_safetensors_go_before_pickles(subject, folder):
    torch.save({name: weight + 1 for name, weight in state(subject).items()}, folder / "pytorch_model.bin")
    for allowed in (False, True):
        assert load(folder, allow_pickle=allowed).weights_sha256 == subject.weights_sha256


class Harmful:
    """Run when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_with_code_is_refused_and_not_run(subject, folder, tmp_path):
    mark = tmp_path / "was-run"
    (folder / "model.safetensors").unlink()
    torch.save({**state(subject), "extra": Harmful(mark)}, folder / "pytorch_model.bin")
    with pytest.raises(AssayError, match="could not read"):
        load(folder, allow_pickle=True)
    assert not mark.exists()


def test_code_of_the_model_is_not_run_unless_asked_for(subject, folder, tmp_path):
    mark = tmp_path / "was-run"
    code = (
        f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
        "from transformers import GPT2Config, GPT2LMHeadModel\n"
        "class OwnConfig(GPT2Config):\n    model_type = 'own'\n"
        "class OwnForCausalLM(GPT2LMHeadModel):\n    config_class = OwnConfig\n"
    )
    (folder / "own.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own",
        "architectures": ["OwnForCausalLM"],
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(AssayError, match="trust_remote_code=True"):
        load(folder)
    assert not mark.exists()
    assert type(load(folder, trust_remote_code=True).model).__name__ == "OwnForCausalLM"
    assert mark.exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_broken_tokenizer_is_refused(folder, name):
    (folder / name).write_text("{")
    with pytest.raises(AssayError, match="tokenizer of 'mine' cannot be read"):
        load(folder)


def test_a_tokenizer_of_a_larger_vocabulary_is_no_matter_by_itself(subject, folder):
    """Gemma's has one token more than the model: only those that occur must have embeddings."""
    tokenizer = load(folder).tokenizer
    tokenizer.add_tokens(["one-more"])
    save(replace(subject, tokenizer=tokenizer), folder)
    assert len(load(folder).tokenizer) == subject.vocabulary + 1


def test_a_model_that_overflows_is_refused(subject, folder):
    def enlarge(weights):
        weights["transformer.h.1.mlp.c_proj.weight"] += 1e38

    damage(folder, enlarge)
    with pytest.raises(AssayError, match="logits that are not finite"):
        load(folder)


def test_config_of_an_unknown_architecture_is_refused(folder):
    (folder / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(AssayError, match=r"could not read .* as a model"):
        load(folder)


def test_config_that_contradicts_itself_is_refused(folder):
    config = {"model_type": "llama", "hidden_size": 30, "num_attention_heads": 4, "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(AssayError, match=r"could not read .*30.* is not a multiple"):
        load(folder)


def test_config_that_is_no_json_is_refused(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(AssayError, match=r"config.json. is damaged \(it is no JSON"):
        load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(folder, value):
    def spoil(weights):
        weights["transformer.h.1.mlp.c_fc.weight"][2, 3] = value

    damage(folder, spoil)
    with pytest.raises(AssayError, match=r"not finite \(transformer\.h\.1\.mlp\.c_fc\.weight\)"):
        load(folder)


def test_cut_off_weights_are_refused(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(AssayError):
        load(folder)


def test_incomplete_weights_are_refused(folder):
    """Otherwise random numbers would silently stand in for the missing tensor."""

    def forget(weights):
        del weights["transformer.h.1.mlp.c_fc.weight"]

    damage(folder, forget)
    with pytest.raises(AssayError, match=r"h\.1\.mlp\.c_fc\.weight"):
        load(folder)


def test_weights_of_another_shape_are_refused(folder):
    def widen(weights):
        weights["transformer.h.1.mlp.c_fc.weight"] = torch.zeros(32, 64)

    damage(folder, widen)
    with pytest.raises(AssayError):
        load(folder)


def test_broken_training_record_is_refused(folder):
    (folder / "training.json").write_text("{")
    with pytest.raises(AssayError, match=r"training\.json"):
        load(folder)


def test_folder_without_a_record_loads(subject, folder):
    (folder / "training.json").unlink()
    again = load(folder)
    assert again.record == {}
    assert again.seed is None
    assert again.weights_sha256 == subject.weights_sha256


def test_unusable_device_is_refused(folder):
    with pytest.raises(AssayError, match="device 'warp:9' cannot be used"):
        load(folder, device="warp:9")


def test_automatic_device():
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert resolve_device("auto") == expected
    assert resolve_device("cpu") == "cpu"


def test_record_is_readable_json(folder):
    text = (folder / "training.json").read_text(encoding="utf-8")
    assert json.loads(text)["steps"] == 5
    assert "naïve – ∞" in text
    assert not [path for path in folder.iterdir() if path.name.endswith(".part")]


def test_loading_does_not_depend_on_where_the_folder_is(subject, folder, tmp_path):
    shutil.move(folder, tmp_path / "elsewhere")
    assert load(tmp_path / "elsewhere").weights_sha256 == subject.weights_sha256


# -- the subject itself ---------------------------------------------------------------------------------------------


def test_a_subject_is_in_evaluation_mode(task):
    """With dropout on, the model would be another at every call."""
    model = dyck_model(task, seed=0)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    subject = Subject(model, None, "in training")
    assert not any(module.training for module in model.modules())
    assert torch.equal(subject(TOKENS), subject(TOKENS))


def test_hash_changes_with_any_weight(task):
    subject = Subject(dyck_model(task, seed=0).eval(), None, "small")
    before = subject.weights_sha256
    hashes = {before}
    parameters = dict(subject.model.named_parameters())
    for parameter in parameters.values():
        with torch.no_grad():
            kept = parameter.flatten()[-1].clone()
            parameter.flatten()[-1] += 1e-3
            hashes.add(subject.weights_sha256)
            parameter.flatten()[-1] = kept
    assert len(hashes) == len(parameters) + 1
    assert subject.weights_sha256 == before


def test_hash_does_not_change_with_the_seedless_things(subject):
    assert replace(subject, name="other", seed=7, tokenizer=None).weights_sha256 == subject.weights_sha256


def test_hash_tells_dtypes_apart(task):
    model = dyck_model(task, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    full = Subject(model, None, "zeros").weights_sha256
    assert Subject(model.to(torch.bfloat16), None, "zeros").weights_sha256 != full


def test_shuffled_copy_differs_and_leaves_the_subject_alone(subject):
    before = subject.weights_sha256
    shuffled = subject.shuffled_copy()
    assert shuffled.weights_sha256 != before == subject.weights_sha256
    assert not shuffled.trained
    assert shuffled.record == {}
    assert type(shuffled.model) is type(subject.model)
    assert not shuffled.model.training
    assert "shuffled" in repr(shuffled)


def test_shuffled_copy_has_the_entries_of_every_matrix_elsewhere(subject):
    """So every matrix keeps its norm, and with it the size of queries, keys and logits."""
    copied = state(subject.shuffled_copy())
    matrices = {name: weight for name, weight in state(subject).items() if weight.dim() >= 2}
    assert len(matrices) > 8
    for name, weight in matrices.items():
        assert copied[name].shape == weight.shape, name
        assert torch.equal(copied[name].flatten().sort().values, weight.flatten().sort().values), name
        torch.testing.assert_close(copied[name].norm(), weight.norm())
        kept = (copied[name] == weight).double().mean()
        assert kept < 0.1, name


def test_shuffled_copy_leaves_vectors(subject):
    with torch.no_grad():
        for parameter in (model := copy.deepcopy(subject.model)).parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    mine = Subject(model, None, "no vector is constant")
    copied = state(mine.shuffled_copy())
    vectors = {name: weight for name, weight in state(mine).items() if weight.dim() == 1}
    assert len(vectors) > 8
    for name, weight in vectors.items():
        assert torch.equal(copied[name], weight), name


def test_shuffled_copy_keeps_ties(subject):
    """A matrix that is both embedding and unembedding stays one, shuffled once."""
    shuffled = subject.shuffled_copy().model
    assert subject.model.config.tie_word_embeddings
    assert shuffled.lm_head.weight is shuffled.transformer.wte.weight
    assert shuffled.lm_head.weight is not subject.model.lm_head.weight


def test_shuffled_copy_depends_on_its_seed_alone(subject):
    torch.manual_seed(1)
    one = subject.shuffled_copy(seed=5)
    torch.manual_seed(2)
    assert subject.shuffled_copy(seed=5).weights_sha256 == one.weights_sha256
    assert subject.shuffled_copy(seed=6).weights_sha256 != one.weights_sha256
    assert (one.seed, one.name) == (5, subject.name)


def test_shuffled_copy_leaves_the_global_generator_alone(subject):
    torch.manual_seed(17)
    expected = torch.rand(3)
    torch.manual_seed(17)
    subject.shuffled_copy()
    assert torch.equal(torch.rand(3), expected)


def test_shuffled_copy_has_its_own_configuration(subject):
    """Otherwise changing the attention of one changes that of the other."""
    shared = subject.shuffled_copy().model.config is subject.model.config
    assert not shared


def test_padding_after_a_sequence_changes_nothing(subject, task):
    padded = torch.cat((TOKENS, torch.full((1, 4), task.pad_id)), dim=1)
    valid = (padded != task.pad_id).long()
    torch.testing.assert_close(subject(padded, valid)[:, :6], subject(TOKENS), atol=1e-5, rtol=0)


def test_description(subject):
    found = subject.describe()
    assert found["architecture"] == "GPT2LMHeadModel"
    assert found["parameters"] == sum(weight.numel() for weight in subject.model.parameters()) == subject.parameters
    assert found["weights_sha256"] == subject.weights_sha256
    assert json.loads(json.dumps(found)) == found
    assert "&lt;b&gt;" in replace(subject, name="<b>")._repr_html_()


def test_reference_model_is_the_one_described(task):
    config = dyck_model(task, seed=0).config
    assert (config.n_layer, config.n_head, config.n_embd, config.n_inner) == (2, 1, 32, 128)
    assert config.vocab_size == len(task.vocabulary)
    assert config.n_positions == task.positions


def test_reference_model_depends_on_its_seed(task):
    hashes = [Subject(dyck_model(task, seed=seed), None, "x").weights_sha256 for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_sharded_model_has_the_same_logits(folder, subject):
    """Where there is one device only, all of it is there; with several, accelerate spreads it."""
    pytest.importorskip("accelerate")
    again = load(folder, sharded=True)
    tokens = torch.arange(6)[None] % subject.vocabulary
    assert torch.equal(again(tokens).cpu(), load(folder)(tokens))


def test_sharding_needs_accelerate_and_a_whole_model(folder, monkeypatch, tmp_path):
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")
    with pytest.raises(AssayError, match=r"sharded=True\): it is a GGUF file; only whole models"):
        load(gguf, sharded=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(AssayError, match="needs the package accelerate: pip install accelerate"):
        load(folder, sharded=True)


# -- names that are nobody's ------------------------------------------------------------------------------------------


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        self.send_response(self.server.status)
        for name, value in self.server.headers:
            self.send_header(name, value)
        self.end_headers()

    def do_HEAD(self):
        self.do_GET()

    def log_message(self, *arguments):
        """Nothing is printed."""


class _Hub(ThreadingHTTPServer):
    """A hub that answers every question with one status, and keeps them."""

    def __init__(self, status, headers):
        self.status, self.headers, self.asked = status, headers, []
        super().__init__(("127.0.0.1", 0), _Answers)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """hub(status, headers) -> a server in the place of the hub, which is asked over the network."""
    running = []

    def start(status, headers=()):
        server = _Hub(status, headers)
        running.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        return server

    monkeypatch.chdir(tmp_path)
    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (404, [("X-Error-Code", "RepoNotFound")], "has no model of that name"),
        (503, [], "cannot be reached"),
    ],
    ids=["unknown", "broken"],
)
def test_a_name_that_the_hub_does_not_give_is_asked_for_once(hub, tmp_path, status, headers, words):
    server = hub(status, headers)
    (tmp_path / "my-modle").mkdir()
    for refused in (load, takes_base):
        server.asked.clear()
        with pytest.raises(AssayError, match=words) as caught:
            refused("my-model")
        assert "did you mean 'my-modle'?" in str(caught.value)
        assert [path for path in server.asked if "my-model" in path] == ["/api/models/my-model"]


@pytest.mark.parametrize("name", ["two/many/parts", "what is this", "-", "a\0b"])
def test_what_is_no_name_is_not_asked_for(hub, name):
    server = hub(200)
    with pytest.raises(AssayError, match=r"no name that a model can have|no file can be called so"):
        load(name)
    assert not server.asked


def test_seeds_are_of_shipped_models(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    with pytest.raises(AssayError, match="leave it out"):
        load(tmp_path / "mine", seed=0)
