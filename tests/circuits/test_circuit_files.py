"""Circuits in files: what other tools wrote means what it meant there, and whatever else there is is refused."""

import io
import json
import tomllib
import warnings
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from assay import AssayError
from assay._registry import Registry
from assay.circuits import Circuit, EdgeAttribution, Found, Graph, Problem, Reference, write_mib
from assay.engine import Engine, collect
from assay.simplify import label
from assay.subjects import Subject
from assay.tasks import Split

PEERS = Path(__file__).parent / "peer_files"
GPT2, LLAMA = Graph(2, 2, 2), Graph(2, 4, 2)
FILES = {name: (PEERS / name).read_bytes() for name in ("gpt2-20.json", "gpt2-20.pt", "gpt2-prune-scores.pt")}


@pytest.fixture(scope="module")
def subjects():
    """The models that the files of `peer_files` are about."""
    return {
        name: Subject(AutoModelForCausalLM.from_pretrained(PEERS / name).eval(), None, name)
        for name in ("gpt2", "llama")
    }


@pytest.fixture(scope="module")
def splits():
    """The pairs that they were scored on."""
    found = {}
    for name, pairs in torch.load(PEERS / "pairs.pt", weights_only=True).items():
        count, length = pairs["clean"].shape
        last = {part: np.full((count, length), -1) for part in ("kinds", "answers", "foils")}
        for part, value in (("kinds", 0), ("answers", pairs["answers"]), ("foils", pairs["foils"])):
            last[part][:, -1] = np.array(value.tolist() if isinstance(value, torch.Tensor) else value)
        tokens = {"tokens": pairs["clean"].numpy(), "counterfactuals": pairs["corrupt"].numpy()}
        found[name] = Split("train", "train", "two tokens", lengths=np.full(count, length), **tokens, **last)
    return found


@pytest.fixture(scope="module")
def many(splits):
    """Enough of them to find a circuit on."""
    return {name: split.take(np.arange(len(split)).repeat(5)) for name, split in splits.items()}


@pytest.fixture
def found(subjects, many):
    """found(model, **parameters): a circuit that was found on a subject."""

    def find(model="gpt2", **parameters):
        parameters = {"edges": 12, "method": "eap", **parameters}
        return Circuit(**parameters).fit(collect(Engine(subjects[model]), many[model], ()))

    return find


@pytest.fixture
def file(tmp_path):
    """file(content): a file with that content, JSON unless it is bytes."""

    def written(content, name="their.json"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    return written


def pickled(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def refused(path, words, **options):
    with pytest.raises(AssayError, match=words) as error:
        Circuit.read(path, **options)
    assert "\n" not in str(error.value)
    assert str(path.name) in str(error.value)


def ours(theirs):
    """An edge by our name, word by word."""
    sender, receiver = theirs.split("->")
    part = {"q": "queries", "k": "keys", "v": "values"}.get(receiver[-2:-1]) if receiver.endswith(">") else None
    names = []
    for name in (sender, receiver.partition("<")[0]):
        if name in ("input", "logits"):
            names.append({"input": "embeddings", "logits": "logits"}[name])
        elif name.startswith("m"):
            names.append(f"layer{name[1:]}.mlp")
        else:
            layer, head = name[1:].split(".h")
            names.append(f"layer{layer}.head{head}")
    return f"{names[0]} -> {names[1]}{'' if part is None else f'.{part}'}"


# -- what other tools wrote -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2-20", "llama-20"])
def test_a_circuit_of_eap_ig_is_the_one_that_they_wrote(name):
    written = json.loads((PEERS / f"{name}.json").read_text())
    inside = {ours(edge): -entry["score"] for edge, entry in written["edges"].items() if entry["in_graph"]}
    assert len(inside) == 20
    for suffix in ("json", "pt"):
        circuit = Circuit.read(PEERS / f"{name}.{suffix}")
        assert dict(zip(circuit.edges, circuit.found.scores, strict=True)) == inside
        assert np.all(np.diff(np.abs(circuit.found.scores)) <= 0), "the best first"
        heads = written["cfg"]["n_heads"]
        assert circuit.found == Found(Graph(2, heads, heads), 8, circuit.found.scores)
        assert circuit.ablation == "counterfactual"
        assert label(circuit) == f"Circuit({name}, 20 edges)"


def test_the_best_of_a_file_are_those_of_largest_absolute_score():
    written = json.loads((PEERS / "gpt2-scores.json").read_text())["edges"]
    ranked = sorted(written, key=lambda edge: -abs(written[edge]["score"]))
    for count in (1, 7, 46):
        assert list(Circuit.read(PEERS / "gpt2-scores.json", edges=count).edges) == list(map(ours, ranked[:count]))


@pytest.mark.parametrize(
    ("name", "file", "groups"),
    [("gpt2", "gpt2-scores.json", None), ("gpt2", "gpt2-prune-scores.pt", None), ("llama", "llama-scores.json", 2)],
)
def test_their_scores_are_ours_edge_by_edge(subjects, splits, name, file, groups):
    """Both tools ran their own attribution on the same model and pairs: names, signs and sums of heads are right."""
    engine, split = Engine(subjects[name]), splits[name]
    problem = Problem(engine, split, Reference.fitted(engine, "counterfactual", split))
    own, graph = EdgeAttribution().scores(problem), problem.wiring.graph
    circuit = Circuit.read(PEERS / file, edges=graph.size, groups=groups)
    assert len(circuit.edges) == graph.size
    theirs = np.full(graph.shape, np.nan)
    for edge, score in zip(circuit.edges, circuit.found.scores, strict=True):
        theirs[graph.place(edge)] = score
    np.testing.assert_allclose(theirs, own, atol=1e-5 * np.nanmax(np.abs(own)), rtol=1e-4)


def test_a_circuit_that_was_read_is_run(subjects, splits):
    circuit, split = Circuit.read(PEERS / "gpt2-20.json"), splits["gpt2"]
    circuit.check(subjects["gpt2"], [split])
    by_name = Circuit(list(circuit.edges)).apply(subjects["gpt2"])
    tokens, others = (torch.from_numpy(array) for array in (split.tokens, split.counterfactuals))
    proxy = circuit.apply(subjects["gpt2"])
    assert proxy.kept.sum() == 20
    assert torch.equal(proxy.on_pairs(tokens, others), by_name.on_pairs(tokens, others))


# -- heads that share keys and values -------------------------------------------------------------------------------


def by_head(inside, heads=4, **config):
    """A file of EAP-IG about one layer, with some edges in the circuit."""
    edges = {f"input->a0.h{head}<{part}>": {} for head in range(heads) for part in "qkv"}
    edges |= {
        f"{sender}->{to}": {} for to in ("m0", "logits") for sender in ("input", *(f"a0.h{i}" for i in range(heads)))
    }
    edges["m0->logits"] = {}
    for number, (name, edge) in enumerate(edges.items()):
        edge.update(in_graph=name in inside, score=(-1) ** number * float(1 + number))
    config = {"n_layers": 1, "n_heads": heads, "parallel_attn_mlp": False, "d_model": 8, **config}
    return {"cfg": config, "nodes": {"input": True}, "edges": edges}


def test_heads_that_agree_are_one_group(file):
    inside = {"input->a0.h2<k>", "input->a0.h3<k>", "input->a0.h1<q>", "a0.h2->logits"}
    expected = {"embeddings -> layer0.group1.keys", "embeddings -> layer0.head1.queries", "layer0.head2 -> logits"}
    for circuit in (
        Circuit.read(file(by_head(inside)), groups=2),
        Circuit.read(file(by_head(inside, n_key_value_heads=2))),
    ):
        assert set(circuit.edges) == expected
        assert circuit.found.graph == Graph(1, 4, 2)
    scores = {ours(name): -edge["score"] for name, edge in by_head(inside)["edges"].items()}
    both = scores["embeddings -> layer0.head2.keys"] + scores["embeddings -> layer0.head3.keys"]
    assert dict(zip(circuit.edges, circuit.found.scores, strict=True))["embeddings -> layer0.group1.keys"] == both


def test_heads_that_do_not_agree_are_named(file, subjects):
    path = file(by_head({"input->a0.h2<v>", "input->a0.h0<k>", "input->a0.h1<k>"}))
    refused(
        path,
        r"heads 2 to 3 of layer 0 share their values .* embeddings is heard by those of head 2 and not of 3",
        groups=2,
    )
    with pytest.raises(AssayError, match=r"^Circuit\(llama-20, 20 edges\): heads . to . of layer . share .*groups=2\)"):
        Circuit.read(PEERS / "llama-20.json").check(subjects["llama"], [])
    assert len(Circuit.read(path, groups=2, edges=5).edges) == 5, "the best by sum need no agreement"


def test_names_by_head_are_put_together_when_a_subject_is_met(subjects, tmp_path):
    """Keys and values of both heads of a group, or of none."""
    names = [f"embeddings -> layer0.head{head}.{part}" for part in ("keys", "values") for head in (2, 3)]
    names += ["layer0.head2 -> logits", "embeddings -> layer0.head2.queries"]
    circuit = Circuit(names, found=Found(Graph(2, 4, 4), scores=(1.0, 2.0, None, 4.0, -9.0, 0.5)))
    proxy = circuit.apply(subjects["llama"])
    expected = {"embeddings -> layer0.group1.keys", "embeddings -> layer0.group1.values", *names[-2:]}
    assert set(map(str, proxy.graph.edges(proxy.kept))) == expected
    written = json.loads(circuit.write(tmp_path / "c.json").read_text())
    assert dict(written["edges"]) == {
        "layer0.head2 -> logits": -9.0,
        "embeddings -> layer0.group1.keys": 3.0,
        "embeddings -> layer0.head2.queries": 0.5,
        "embeddings -> layer0.group1.values": None,
    }


# -- round trips ----------------------------------------------------------------------------------------------------


def test_our_own_file_has_all_that_is_known(found, tmp_path, subjects, many):
    circuit = found()
    path = circuit.write(tmp_path / "new" / "circuit.json")
    written = json.loads(path.read_text())
    subject = subjects["gpt2"]
    assert written == {
        "format": "assay-circuit",
        "version": 1,
        "assay": written["assay"],
        "name": "found by eap",
        "subject": {
            "name": "gpt2",
            "seed": None,
            "architecture": "GPT2LMHeadModel",
            "weights_sha256": subject.weights_sha256,
            "config_sha256": subject.config_sha256,
        },
        "graph": {"layers": 2, "heads": 2, "groups": 2, "parallel": False, "width": 8},
        "method": "eap",
        "measure": "logit_difference",
        "rank": "absolute",
        "ablation": "counterfactual",
        "pairs_sha256": Problem(Engine(subject), many["gpt2"], circuit.reference_).sha256,
        "baseline": list(circuit.baseline_),
        "edges_on_paths": circuit.pruned_,
        "edges": [[str(edge), circuit.scores_[circuit.graph_.place(edge)]] for edge in circuit.edges_],
    }
    again = Circuit.read(path)
    assert again.edges == [str(edge) for edge in circuit.edges_]
    assert again.write(tmp_path / "again.json").read_bytes() == path.read_bytes()
    proxy = again.apply(subject)
    assert np.array_equal(proxy.kept, circuit.kept_)
    assert again.write(tmp_path / "again.json").read_bytes() == path.read_bytes(), "after it met a subject, too"
    assert Circuit.read(path, edges=5).edges == again.edges[:5]
    smaller = Circuit.read(circuit.of_size(5).write(tmp_path / "five.json"))
    assert (smaller.edges, smaller.found.subject) == (again.edges[:5], again.found.subject)


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("llama", {"rank": "helpful"}),
        ("llama", {"level": "heads", "edges": 20}),
        ("gpt2", {"ablation": "mean", "method": "exact"}),
        ("llama", {"measure": "kl", "method": "exact", "rank": "helpful", "name": "by divergence"}),
    ],
)
def test_our_own_file_keeps_the_claim(  # noqa: PLR0917
    found, tmp_path, subjects, many, model, parameters
):
    circuit, split = found(model, **parameters), many[model]
    again = Circuit.read(circuit.write(tmp_path / "c.json"))
    for name in ("ablation", "measure", "rank"):
        assert getattr(again, name) == getattr(circuit, name)
    assert again.name == (circuit.name or f"found by {circuit.method}")
    fitted = again.fit(collect(Engine(subjects[model]), split, ()))
    assert np.array_equal(fitted.kept_, circuit.kept_)
    tokens, others = torch.from_numpy(split.tokens[:3]), torch.from_numpy(split.counterfactuals[:3])
    one, other = (item.apply(subjects[model]).on_pairs(tokens, others) for item in (circuit, fitted))
    assert torch.equal(one, other)
    best = Circuit.read(tmp_path / "c.json", edges=4).edges
    assert best == [str(edge) for edge in circuit.edges_[:4]]
    values = [circuit._ranks(circuit.scores_)[circuit.graph_.place(edge)] for edge in circuit.edges_]
    assert values == sorted(values, reverse=True)


def test_a_circuit_by_hand_is_written_once_its_graph_is_known(subjects, tmp_path):
    edges = ["embeddings -> layer0.mlp", "layer0.mlp -> logits", "layer0.head1 -> layer1.mlp"]
    circuit = Circuit(edges, name="by hand")
    with pytest.raises(AssayError, match="does not say yet of which graph its edges are"):
        circuit.write(tmp_path / "c.json")
    circuit.apply(subjects["gpt2"])
    written = json.loads(circuit.write(tmp_path / "c.json").read_text())
    assert (written["method"], written["subject"], written["name"]) == (None, None, "by hand")
    assert sorted(written["edges"]) == sorted([edge, None] for edge in edges)
    assert written["edges_on_paths"] == 2
    refused(tmp_path / "c.json", "has 0 edges with scores; edges=1 is too many", edges=1)
    theirs = json.loads(circuit.write(tmp_path / "c.json", format="eap-ig").read_text())
    assert {ours(name) for name, edge in theirs["edges"].items() if edge["in_graph"]} == set(edges)
    assert not any(edge["score"] for edge in theirs["edges"].values())
    assert {name for name, node in theirs["nodes"].items() if node["in_graph"]} == {"input", "m0", "logits"}
    assert set(Circuit.read(tmp_path / "c.json").edges) == set(edges)
    scores = torch.load(circuit.write(tmp_path / "c.pt", format="auto-circuit"), weights_only=True)
    assert sum(float(values.sum()) for values in scores.values()) == 3
    assert set(Circuit.read(tmp_path / "c.pt", edges=3).edges) == set(edges)


def test_what_eap_ig_wrote_is_written_as_they_did(tmp_path):
    theirs = json.loads((PEERS / "gpt2-scores.json").read_text())
    everything = Circuit.read(PEERS / "gpt2-scores.json", edges=46)
    again = json.loads(everything.write(tmp_path / "again.json", format="eap-ig").read_text())
    assert again["cfg"] == theirs["cfg"]
    assert {name: edge["score"] for name, edge in again["edges"].items()} == {
        name: edge["score"] for name, edge in theirs["edges"].items()
    }
    assert list(again["nodes"]) == list(theirs["nodes"])
    circuit = Circuit.read(PEERS / "gpt2-20.pt")
    before = torch.load(PEERS / "gpt2-20.pt", weights_only=True)
    after = torch.load(circuit.write(tmp_path / "again.pt", format="eap-ig"), weights_only=True)
    assert list(after) == list(before)
    for name in ("cfg", "src_nodes", "dst_nodes"):
        assert after[name] == before[name]
    for name in ("edges_in_graph", "nodes_in_graph"):
        assert torch.equal(after[name], before[name]), name
    inside = before["edges_in_graph"]
    assert torch.equal(after["edges_scores"][inside], before["edges_scores"][inside])
    assert after["edges_scores"].dtype == before["edges_scores"].dtype


def test_what_auto_circuit_wrote_is_written_as_they_did(tmp_path):
    before = torch.load(PEERS / "gpt2-prune-scores.pt", weights_only=True)
    path = Circuit.read(PEERS / "gpt2-prune-scores.pt", edges=46).write(tmp_path / "s.pt", format="auto-circuit")
    after = torch.load(path, weights_only=True)
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("form", ["eap-ig", "auto-circuit"])
def test_shared_heads_share_a_score(found, tmp_path, form):
    """A group's score comes back as the sum of its heads'."""
    circuit = found("llama", edges=30)
    path = circuit.write(tmp_path / "c.pt", format=form)
    again = Circuit.read(path, edges=circuit.graph_.size, groups=2)
    for edge, score in zip(again.edges, again.found.scores, strict=True):
        assert score == pytest.approx(circuit.scores_[circuit.graph_.place(edge)], rel=1e-6, abs=1e-12)
    if form == "eap-ig":
        assert set(Circuit.read(path, groups=2).edges) == {str(edge) for edge in circuit.edges_}
        assert np.array_equal(Circuit.read(path).apply(subject_of(circuit)).kept, circuit.kept_)


def subject_of(circuit):
    name = circuit.found_.subject.name
    return Subject(AutoModelForCausalLM.from_pretrained(PEERS / name).eval(), None, name)


def test_scores_have_the_sign_of_a_loss_for_them(found, tmp_path):
    """What helps has a positive score there, whatever it was measured by here."""
    for parameters, sign in (({}, -1), ({"measure": "kl", "method": "exact"}, 1)):
        circuit = found(edges=10, **parameters)
        written = json.loads(circuit.write(tmp_path / "c.json", format="eap-ig").read_text())["edges"]
        for name, edge in written.items():
            assert edge["score"] == sign * circuit.scores_[circuit.graph_.place(ours(name))]


@pytest.mark.parametrize(("name", "form"), [("gpt2", "json"), ("llama", "json"), ("llama", "pt")])
def test_a_submission_to_mib_has_nine_circuits(found, tmp_path, name, form):
    circuit = found(name, edges=3)
    folder = write_mib(tmp_path / "ioi_gpt2", circuit, form=form)
    shares = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
    assert {path.name for path in folder.iterdir()} == {f"{share:g}.{form}" for share in shares}
    heads = circuit.graph_.heads
    total = Graph(2, heads, heads).size
    before: set[str] = set()
    for share in shares:
        path = folder / f"{share:g}.{form}"
        if form == "json":
            count = sum(edge["in_graph"] for edge in json.loads(path.read_text())["edges"].values())
        else:
            count = int(torch.load(path, weights_only=True)["edges_in_graph"].sum())
        most = int(share * total / 100)
        assert most - 2 < count <= most
        edges = set(Circuit.read(path, groups=circuit.graph_.groups).edges) if count else set()
        assert edges >= before
        values = np.abs([circuit.scores_[circuit.graph_.place(edge)] for edge in edges])
        others = [abs(circuit.scores_[circuit.graph_.place(edge)]) for edge in all_edges(circuit.graph_) - edges]
        assert not count or values.min() >= max(others)
        before = edges


def all_edges(graph):
    return {str(edge) for edge in graph.edges(graph.exists)}


def test_a_submission_needs_scores(tmp_path):
    with pytest.raises(AssayError, match=r"up to half of all 46 edges, .* of this circuit 20 have scores"):
        write_mib(tmp_path / "m", Circuit.read(PEERS / "gpt2-20.json"))
    assert not (tmp_path / "m").exists()


# -- refusals -------------------------------------------------------------------------------------------------------


def test_a_model_of_another_form_is_refused_with_both(subjects, file):
    circuit = Circuit.read(PEERS / "gpt2-20.json")
    for words in ("2 layers of 2 heads, of width 8", "'llama' has 2 layers of 4 heads that share keys and values in 2"):
        with pytest.raises(AssayError, match=words):
            circuit.check(subjects["llama"], [])
        with pytest.raises(AssayError, match=words):
            circuit.apply(subjects["llama"])
    wide = json.loads(FILES["gpt2-20.json"])
    wide["cfg"]["d_model"] = 16
    with pytest.raises(AssayError, match="of width 16, and 'gpt2' has 2 layers of 2 heads, of width 8"):
        Circuit.read(file(wide)).apply(subjects["gpt2"])


def test_a_fitted_circuit_is_not_laid_on_another_graph(found, subjects):
    circuit = found()
    with pytest.raises(AssayError, match="is a circuit of 2 layers of 2 heads, and 'llama' has"):
        circuit.apply(subjects["llama"])


@pytest.mark.parametrize("name", ["gpt2-neurons.pt", "llama-neurons.pt"])
def test_circuits_of_neurons_are_refused(name):
    refused(PEERS / name, "holds a circuit of neurons")


def test_scores_alone_are_no_circuit(file):
    refused(PEERS / "gpt2-scores.json", "has no edges in the circuit, say how many")
    refused(PEERS / "gpt2-prune-scores.pt", "has no edges in the circuit, say how many")
    refused(PEERS / "gpt2-scores.json", "has scores of 46 edges; edges=47 is too many", edges=47)
    nothing = by_head(set())
    for edge in nothing["edges"].values():
        edge["score"] = 0.0
    refused(file(nothing), "has no edges in the circuit, and no scores")
    refused(file(nothing), "has scores of 0 edges", edges=1)


@pytest.mark.parametrize("options", [{"edges": 0}, {"edges": -1}, {"edges": True}, {"groups": 0}])
def test_a_number_of_edges_or_groups_is_a_number(options):
    with pytest.raises(
        AssayError, match=r"say (how many of the edges of a file|in how many groups)|must be a whole number or None"
    ):
        Circuit.read(PEERS / "gpt2-20.json", **options)


def test_groups_have_to_divide_the_heads(file, found, tmp_path):
    refused(PEERS / "llama-20.json", "has 4 heads a layer, which cannot share keys and values in 3 groups", groups=3)
    path = found("llama").write(tmp_path / "c.json")
    assert Circuit.read(path, groups=2).edges == Circuit.read(path).edges
    refused(path, "says itself that there are 2 groups; leave groups= out", groups=4)


def test_a_file_is_written_whole_or_not_at_all(found, tmp_path):
    circuit = found()
    (tmp_path / "file").write_text("")
    with pytest.raises(AssayError, match="is a file; give a folder"):
        circuit.write(tmp_path / "file" / "c.json")
    with pytest.raises(AssayError, match="is a folder; give the name of a file"):
        circuit.write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    unprintable = found(name="a\nb")
    with pytest.raises(AssayError, match="a circuit's name has at most 200 letters"):
        unprintable.write(tmp_path / "c.json")
    read = Circuit.read(PEERS / "gpt2-prune-scores.pt", edges=9)
    with pytest.raises(AssayError, match="the width of the model, which is not known of this circuit"):
        read.write(tmp_path / "c.json", format="eap-ig")


def quantized(matrix):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(matrix, 0.1, 0, torch.qint8)


ODD = {
    "sparse": torch.eye(3).to_sparse(),
    "of complex numbers": torch.eye(3, dtype=torch.complex64),
    "quantized": quantized(torch.eye(3)),
    "without data": torch.eye(3, device="meta"),
    "of another shape": torch.eye(3),
    "vast": torch.zeros(1).expand(7, 10**12),
    "not finite": torch.full((7, 15), float("nan")),
}
"""Tensors that are no plain matrices of scores."""


@pytest.mark.parametrize("what", list(ODD))
def test_tensors_that_are_no_scores_are_refused(file, what):
    tensor = ODD[what]
    matrices = torch.load(PEERS / "gpt2-20.pt", weights_only=True)
    scores = torch.load(PEERS / "gpt2-prune-scores.pt", weights_only=True)
    refused(file(pickled({**matrices, "edges_scores": tensor}), "c.pt"), "their|has|is no")
    refused(file(pickled({**matrices, "edges_in_graph": tensor}), "c.pt"), "has|is no")
    if what == "not finite":
        tensor = torch.full((2, 1), float("inf"))
    refused(file(pickled({**scores, "blocks.0.hook_q_input": tensor}), "c.pt"), "has|is no", edges=3)


class Harmful:
    def __reduce__(self):
        return (Path("harm").touch, ())


def other_torch_files():
    matrices = torch.load(PEERS / "gpt2-20.pt", weights_only=True)
    scores = torch.load(PEERS / "gpt2-prune-scores.pt", weights_only=True)
    yield Harmful(), r"is no file of a circuit \(UnpicklingError in torch.load"
    yield [1], "holds a list, and neither"
    yield {}, "holds a dict, and neither"
    yield {"a task": {"a method": scores}}, "give the scores of one task and one method"
    yield {1: torch.zeros(2)}, "has scores of the module 1;"
    yield {"blocks.0.hook_q_input": torch.zeros(2, 1)}, r"has nothing for blocks\.0\.hook_k_input"
    yield {"blocks.0.hook_attn_in": torch.zeros(2, 1)}, "separate_qkv=True"
    yield {"blocks.0.hook_resid_mid": torch.zeros(2)}, "factorized=True"
    yield {name: values[None] for name, values in scores.items()}, "has scores by position"
    yield {**scores, "blocks.0.hook_resid_post": torch.zeros(4)}, r"has scores of blocks\.0\.hook_resid_post"
    yield {**scores, "blocks.1.hook_mlp_in": torch.zeros(4)}, r"shape \[4\] for blocks\.1\.hook_mlp_in, .* shape \[6\]"
    yield {**scores, "blocks.999999.hook_mlp_in": torch.zeros(4)}, "there is no such model"
    yield {**matrices, "cfg": [2, 2]}, "has a cfg that is a list"
    yield (
        {**matrices, "cfg": {**matrices["cfg"], "n_layers": 3}},
        "has src_nodes that are not those of a model of its cfg",
    )
    yield {**matrices, "cfg": {**matrices["cfg"], "n_layers": 10**9}}, "there is no such model"
    yield {**matrices, "cfg": {**matrices["cfg"], "n_heads": True}}, "has cfg.n_heads: True"
    yield {**matrices, "dst_nodes": matrices["dst_nodes"][::-1]}, "has dst_nodes that are not"
    yield {**matrices, "edges_in_graph": matrices["edges_scores"]}, "edges_in_graph that are not true or false"
    yield {**matrices, "more": 1}, "it has 'more', which is not known"
    yield {key: value for key, value in matrices.items() if key != "edges_scores"}, "it has no edges_scores"


@pytest.mark.parametrize(("content", "words"), list(other_torch_files()))
def test_other_files_of_torch_are_refused(file, monkeypatch, tmp_path, content, words):
    monkeypatch.chdir(tmp_path)
    refused(file(pickled(content), "c.pt"), words, edges=2)
    assert not Path("harm").exists()


def changes_of_theirs():
    yield [], "is no file of a circuit"
    yield {}, "is no file of a circuit"
    yield {"format": "assay-proxy"}, "is no file of a circuit"
    yield {"cfg": {}}, "it has no nodes"
    yield {"nodes": 5}, "nodes or edges that are no objects"
    yield {"edges": []}, "nodes or edges that are no objects"
    yield {"nodes": {"a9.h9": True}}, "has the node 'a9.h9'"
    yield {"nodes": {"m0": {"in_graph": True, "neurons": [1]}}}, "a circuit of neurons"
    yield {"cfg": {"n_layers": 2}}, "has cfg.n_heads: None"
    yield {"cfg": {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": 0}}, "has cfg.parallel_attn_mlp: 0"
    yield {"cfg": {"n_layers": 2, "n_heads": 2, "n_key_value_heads": -1}}, "has cfg.n_key_value_heads: -1"
    yield {"cfg": {"n_layers": 10**6, "n_heads": 10**6}}, "there is no such model"
    for name in ("m1->m0", "input->a0.h0", "a0.h0->m0<q>", "", "->", "input->m0 ", "\n\ud800->m0", "logits->m0"):
        yield {"edges": {name: {"in_graph": True, "score": 1.0}}}, "has the edge .* which a model of its cfg has not"
    for edge in (True, None, {}, {"in_graph": 1}, {"in_graph": True, "weight": 2}, [1, 2]):
        yield {"edges": {"input->m0": edge}}, "needs in_graph"
    for score in ("1", True, [0.5], 10**400, -(10**400)):
        yield {"edges": {"input->m0": {"in_graph": True, "score": score}}}, "which is (no number|not finite)"


@pytest.mark.parametrize(("change", "words"), list(changes_of_theirs()))
def test_other_files_of_json_are_refused(file, change, words):
    whole = words == "is no file of a circuit"
    content = change if whole else {**json.loads(FILES["gpt2-20.json"]), **change}
    if change == {"cfg": {}}:
        content = change
    refused(file(content), words)


@pytest.mark.parametrize("score", ["NaN", "-Infinity", "1e999"])
def test_scores_that_are_no_numbers_are_refused(file, score):
    text = FILES["gpt2-20.json"].decode().replace('"score": ', f'"score": {score}, "was": ', 1)
    refused(file(text.encode()), f"holds {score}, which is no number|not finite|needs in_graph")
    text = FILES["gpt2-20.json"].decode()
    first = text[text.index('"score": ') + 9 :].partition(",")[0]
    refused(file(text.replace(first, score).encode()), f"holds {score}, which is no number|which is not finite")


@pytest.mark.parametrize(
    "content", [b"", b"nothing", b"\xff\xfe", b"[" * 100_000, b"1" * 5_000, b"PK\x03\x04", b"\x80\x02."]
)
def test_what_is_no_file_of_a_circuit_is_refused(file, content):
    refused(file(content), "is no file of a circuit")


def test_what_is_no_file_is_refused(tmp_path):
    refused(tmp_path, "cannot be read")
    refused(tmp_path / "none.json", "cannot be read \\(No such file")
    with pytest.raises(AssayError, match="no file can be called so"):
        Circuit.read("a\0b")


def test_a_node_may_be_a_flag_and_a_score_missing(file):
    """As older EAP-IG wrote them, and as MIB describes circuits without scores."""
    content = json.loads(FILES["gpt2-20.json"])
    inside = {ours(name) for name, edge in content["edges"].items() if edge["in_graph"]}
    content["nodes"] = {name: node["in_graph"] for name, node in content["nodes"].items()}
    content["edges"] = {name: {"in_graph": True} for name, edge in content["edges"].items() if edge["in_graph"]} | {
        "input->m0": {"in_graph": ours("input->m0") in inside, "score": None}
    }
    content["cfg"]["act_fn"] = "gelu_new"
    circuit = Circuit.read(file(content))
    assert set(circuit.edges) == inside
    assert circuit.found.scores is None


def changes_of_ours():
    yield {"version": 2}, "has version 2 of the format of circuits"
    yield {"version": None}, "has version None"
    yield {"more": 1}, "'more': Extra inputs are not permitted"
    yield {"name": 5}, "'name': Input should be a valid string"
    yield {"name": "a\nb"}, "its name holds what cannot be printed"
    yield {"name": "x" * 201}, "'name': String should have at most 200"
    yield {"subject": "gpt2"}, "'subject'"
    yield {"ablation": "random"}, "'ablation'"
    yield {"rank": "best"}, "'rank'"
    yield {"baseline": [1.0]}, "'baseline.1'"
    yield {"graph": {"layers": 2, "heads": 2, "groups": 2, "parallel": False}}, "'graph.width': Field required"
    for numbers in ((10**9, 10**9, 1), (0, 2, 2), (2, -2, 2), (2, 3, 2), (2, 2, 0)):
        graph = dict(zip(("layers", "heads", "groups"), numbers, strict=True))
        yield {"graph": {**graph, "parallel": False, "width": 8}}, "there is no such model"
    yield {"edges": []}, "no edges"
    yield {"edges": {}}, "'edges'"
    yield {"edges": [["embeddings -> logits"]]}, "'edges.0.1'"
    yield {"edges": [["embeddings -> logits", True]]}, "'edges.0"
    yield {"edges": [["embeddings -> logits", 1.0]] * 2}, "there twice"
    yield {"edges": [["embeddings->logits", 1.0]]}, "not written as Assay writes it"
    yield {"edges": [["embeddings", 1.0]]}, "is no edge"
    yield {"edges": [["embeddings -> layer7.mlp", 1.0]]}, "is no receiver"
    yield {"edges": [["layer1.mlp -> layer0.mlp", 1.0]]}, "is computed before"
    yield {"edges_on_paths": 3}, "edges_on_paths is not how many"
    yield {"pairs_sha256": ...}, "'pairs_sha256': Field required"


@pytest.mark.parametrize(("change", "words"), list(changes_of_ours()))
def test_our_own_file_is_read_strictly(file, change, words):
    content = {**json.loads(OWN), **change}
    content = {key: value for key, value in content.items() if value is not ...}
    refused(file(content), words)


OWN = """{"format": "assay-circuit", "version": 1, "assay": "0.1.0", "name": "ioi", "subject": null,
"graph": {"layers": 2, "heads": 2, "groups": 1, "parallel": false, "width": null}, "method": null,
"measure": "logit_difference", "rank": "absolute", "ablation": "counterfactual", "pairs_sha256": null, "baseline": null,
"edges_on_paths": 2, "edges": [["layer0.mlp -> logits", -2], ["embeddings -> layer0.mlp", 1.5],
["layer0.head0 -> layer1.group0.keys", null]]}"""


def test_a_file_of_ours_by_hand(file):
    circuit = Circuit.read(file(OWN.encode()))
    assert circuit.edges == ["layer0.mlp -> logits", "embeddings -> layer0.mlp", "layer0.head0 -> layer1.group0.keys"]
    assert circuit.found == Found(Graph(2, 2, 1), scores=(-2.0, 1.5, None))
    assert label(circuit) == "Circuit(ioi, 3 edges)"
    assert Circuit.read(file(OWN.encode()), edges=1).edges == ["layer0.mlp -> logits"]
    refused(file(OWN.encode()), "has 2 edges with scores; edges=3 is too many", edges=3)
    helpful = OWN.replace('"absolute"', '"helpful"').replace("-2", "2").replace("1.5", "-1.5")
    assert Circuit.read(file(helpful.encode()), edges=1).edges == ["embeddings -> layer0.mlp"]
    unnamed = Circuit.read(file(OWN.replace('"ioi"', '""').encode(), "their circuit.json"))
    assert label(unnamed) == "Circuit(their circuit, 3 edges)"


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**12) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places(value, path=()):
    """Every place in a nested value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def reads_or_refuses(path, **options):
    """Whatever a file holds, there is a circuit or one line that says why there is none."""
    refusal = ""
    try:
        circuit = Circuit.read(path, **options)
    except AssayError as error:
        refusal = str(error)
    if refusal:
        assert "\n" not in refusal
        assert len(refusal) < 600
    else:
        assert circuit.edges
        assert circuit.found.graph.matrix(circuit.edges).sum() == len(circuit.edges)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_file_that_was_changed_anywhere_is_read_or_refused(data, tmp_path_factory):
    content = json.loads(data.draw(st.sampled_from([FILES["gpt2-20.json"], OWN])))
    for _ in range(data.draw(st.integers(1, 2))):
        *above, last = data.draw(st.sampled_from([path for path in places(content) if path]))
        held = content
        for key in above:
            held = held[key]
        how = data.draw(st.sampled_from(["replace", "remove", "rename"]))
        value = data.draw(JUNK) if how == "replace" else held[last]
        if how != "replace":
            del held[last]
        if how == "rename" and isinstance(held, dict):
            held[data.draw(st.text(max_size=8))] = value
        elif how == "replace":
            held[last] = value
        if not content:
            break
    path = tmp_path_factory.getbasetemp() / "changed.json"
    path.write_text(json.dumps(content))
    reads_or_refuses(
        path, edges=data.draw(st.none() | st.integers(1, 50)), groups=data.draw(st.sampled_from([None, 1, 2]))
    )


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_bytes_that_were_changed_anywhere_are_read_or_refused(data, tmp_path_factory):
    content = bytearray(data.draw(st.sampled_from([*FILES.values(), OWN.encode()])))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content) - 1))
        content[start : start + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    path = tmp_path_factory.getbasetemp() / "changed.pt"
    path.write_bytes(bytes(content))
    reads_or_refuses(path, edges=data.draw(st.none() | st.integers(1, 50)))


# -- on the command line --------------------------------------------------------------------------------------------


def test_a_file_has_a_name_on_the_command_line(file):
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    offered = project["entry-points"]["assay.simplifications"]["file"]
    factory = EntryPoint("file", offered, "assay.simplifications").load()
    registry = Registry("assay.none", "simplification")
    registry.register("file", factory)
    path = PEERS / "gpt2-20.json"
    assert registry.build(f"file:path={path}") == Circuit.read(path)
    assert registry.build(f"file:path={path},edges=5") == Circuit.read(path, edges=5)
    assert registry.build(f"file:{path}") == Circuit.read(path)
    assert registry.build(f"file: {path} , edges = 5") == Circuit.read(path, edges=5)
    for text in ("file:path=nowhere.json", "file:nowhere.json"):
        with pytest.raises(AssayError, match=r"'nowhere.json' cannot be read"):
            registry.build(text)
    with pytest.raises(AssayError, match="missing a required argument: 'path'"):
        registry.build("file")
