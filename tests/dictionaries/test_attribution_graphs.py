"""Attribution graphs mean what they meant to the tool that drew them, and whatever else there is is refused."""

import itertools
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from assay import AssayError, AttributionGraph
from assay.circuits import Circuit
from assay.dictionaries.formats.attribution_graphs import _told_apart

FILES = Path(__file__).parent / "attribution_graphs"
EXPECTED = json.loads((FILES / "expected.json").read_text())
PT = ("transcoders", "exact", "some-features", "cross-layer")


def read(name):
    return AttributionGraph.read(FILES / name)


def by_hand(weights, **changed):
    """One layer, one token: a feature, an error, the token and a logit; weights[target, source]."""
    given = {
        "layers": 1,
        "tokens": torch.tensor([3]),
        "features": torch.tensor([[0, 0, 7]]),
        "activations": torch.tensor([2.0]),
        "errors": torch.tensor([[0, 0]]),
        "targets": torch.tensor([5]),
        "probabilities": torch.tensor([1.0]),
        "weights": torch.tensor(weights),
    }
    return AttributionGraph(**(given | changed))


SMALL = [[0.0, 0.0, 2.0, 0.0], [0.0] * 4, [0.0] * 4, [-3.0, 1.0, 0.0, 0.0]]


def test_scores_computed_by_hand():
    graph = by_hand(SMALL)
    np.testing.assert_allclose(graph.influence(), [0.75, 0.25, 0.75, 0])
    scores = graph.scores()
    assert scores.replacement == pytest.approx(0.75)
    assert scores.errors == pytest.approx((0.25,))
    # Influence and probability are 0.75 + 0.25 + 0.75 + 1, of which the logit alone hears an error, a quarter.
    assert scores.completeness == pytest.approx(1 - 0.25 / 2.75)
    assert scores.heard == pytest.approx(1 - 0.25 / 1.75)
    assert [(str(link.source), str(link.target), link.weight) for link in graph.strongest(2)] == [
        ("token 3 at 0", "layer0 feature 7 at 0", 2.0), ("layer0 feature 7 at 0", "logit of 5", -3.0),
    ]  # fmt: skip
    with pytest.raises(AssayError, match="nothing reaches the targets"):
        by_hand([[0.0] * 4] * 4).scores()


@pytest.mark.parametrize("name", PT)
def test_scores_and_pruning_are_those_of_the_tool(name):
    graph, expected = read(f"{name}.pt"), EXPECTED[name]
    scores = graph.scores()
    assert scores.replacement == pytest.approx(expected["replacement"], abs=1e-6)
    assert scores.completeness == pytest.approx(expected["completeness"], abs=1e-6)
    assert scores.replacement + sum(scores.errors) == pytest.approx(1)
    pruned = graph.pruned()
    assert pruned.nodes == tuple(graph.nodes[place] for place in expected["nodes"])
    assert int((pruned.weights != 0).sum()) == expected["edges"]
    assert (pruned.scores().pruned, pruned.scores().active) == (True, 106)


def test_influence_is_that_of_all_paths():
    graph = read("transcoders.pt")
    shares = graph.weights.double().abs().numpy()
    shares /= np.maximum(shares.sum(axis=1, keepdims=True), 1e-10)
    start = np.zeros(len(shares))
    start[-4:] = graph.probabilities.numpy()
    paths = start @ (np.linalg.inv(np.eye(len(shares)) - shares) - np.eye(len(shares)))
    np.testing.assert_allclose(graph.influence(), paths, atol=1e-9)


def test_the_tool_gives_these_numbers():
    graphs = pytest.importorskip("circuit_tracer.graph", reason="pip install --no-deps circuit-tracer==0.5.0")
    for name in PT:
        theirs = graphs.Graph.from_pt(str(FILES / f"{name}.pt"))
        scores = read(f"{name}.pt").scores()
        assert (scores.replacement, scores.completeness) == pytest.approx(graphs.compute_graph_scores(theirs), abs=1e-6)


def edges(graph):
    return {
        (graph.nodes[source], graph.nodes[target]): round(float(graph.weights[target, source]), 6)
        for target, source in graph.weights.nonzero().tolist()
    }


@pytest.mark.parametrize(
    ("name", "of", "shares"),
    [
        ("transcoders.json", "transcoders.pt", {}),
        ("some-features.json", "some-features.pt", {}),
        ("cross-layer.json", "cross-layer.pt", {}),
        ("narrow.json", "transcoders.pt", {"nodes": 0.5, "edges": 0.6}),
    ],
)
def test_json_is_the_pruned_graph(name, of, shares):
    found, pruned = read(name), read(of).pruned(**shares)
    assert found.nodes == pruned.nodes
    assert edges(found) == edges(pruned)
    torch.testing.assert_close(found.activations, pruned.activations)
    torch.testing.assert_close(found.probabilities, pruned.probabilities)
    assert list(found.said) == list(pruned.said)
    assert found.words == ["<s>", "w5", "w9", "w3", "w14"]


def shared_ids(plain):
    names = [node["node_id"] for node in plain["nodes"]]
    return {name for name in names if names.count(name) > 1}


def test_links_of_shared_ids_start_where_they_did():
    plain, whole = json.loads((FILES / "whole.json").read_text()), edges(read("transcoders.pt"))
    assert shared_ids(plain) == {"0_1_1", "0_1_2", "0_1_3", "0_0_4", "0_1_4"}
    found = edges(read("whole.json"))
    assert len(found) == len(plain["links"])
    assert found.items() <= whole.items()
    # By id alone, links of both would start at one: these are the errors' own.
    ids = {(node.layer, node.position): f"0_{node.layer}_{node.position}" for node, _ in found if node.kind == "error"}
    mistaken = [
        node for node, _ in found if node.kind == "error" and ids[node.layer, node.position] in shared_ids(plain)
    ]
    assert len(mistaken) > 20


@pytest.fixture
def rewritten(tmp_path):
    """Write transcoders.json with changes; returns the path."""

    def write(change, name="transcoders.json"):
        plain = json.loads((FILES / name).read_text())
        changed = change(plain)
        path = tmp_path / "graph.json"
        path.write_text(json.dumps(plain if changed is None else changed))
        return path

    return write


def later_ids(plain):
    """Ids as circuit-tracer writes them after 0.5: an error's is l_-1_p. Which is which is known from the .pt."""
    graph = read("transcoders.pt")
    weights = edges(graph)
    for node in plain["nodes"]:
        if node["feature_type"] == "mlp reconstruction error":
            node["node_id"] = f"{node['layer']}_-1_{node['ctx_idx']}"
    errors = {f"0_{node.layer}_{node.position}": node for node in graph.nodes if node.kind == "error"}
    features = {f"{n.layer}_{n.number}_{n.position}": n for n in graph.nodes if n.kind == "feature"}
    targets = {f"{n.layer + 1}_{n.number}_{n.position}": n for n in graph.nodes if n.kind == "target"}
    for link in plain["links"]:
        error, target = errors.get(link["source"]), (features | targets)[link["target"]]
        if error and weights.get((error, target)) == round(link["weight"], 6):
            link["source"] = f"{error.layer}_-1_{error.position}"


def test_ids_of_later_versions_are_read_too(rewritten):
    path = rewritten(later_ids)
    assert not shared_ids(json.loads(path.read_text()))
    assert edges(AttributionGraph.read(path)) == edges(read("transcoders.json"))


def test_order_tells_sources_apart_only_where_one_choice_is_left():
    generator = np.random.default_rng(0)
    for _ in range(300):
        candidates = [
            tuple(sorted(generator.choice(6, generator.integers(1, 3), replace=False).tolist())) for _ in range(3)
        ]
        fits = [own for own in itertools.product(*candidates) if list(own) == sorted(set(own))]
        found = _told_apart(candidates)
        if all(len(own) == 1 for own in candidates):
            assert (found is None) == (len({*itertools.chain(*candidates)}) < 3)
        elif len(fits) == 1:
            assert tuple(found) == fits[0]
        else:
            assert found is None


def shuffled(plain):
    plain["links"].reverse()


def order_lost_elsewhere(plain):
    """Links that may start at either stand in order, but others do not: order says nothing in this file."""
    ends = [link["target"] for link in plain["links"] if link["source"] == "0_1_4"]
    free = [link for link in plain["links"] if link["target"] not in ends]
    assert free
    plain["links"] = [link for link in plain["links"] if link["target"] in ends] + free[::-1]


def only_shared(plain):
    """Just the links that may start at the error of layer 1 or at feature 1 of layer 0, and one more to each target."""
    plain["links"] = [link for link in plain["links"] if link["source"] == "0_1_4" and link["target"].startswith("4_")][
        :1
    ]


@pytest.mark.parametrize("change", [shuffled, order_lost_elsewhere, only_shared])
def test_a_link_that_may_start_at_either_is_refused(rewritten, change):
    with pytest.raises(
        AssayError, match=r"'0_1_4' to '.*' that may start at layer0 feature 1 at 4 or at layer1 error at 4"
    ):
        AttributionGraph.read(rewritten(change))


def at(*keys, value):
    def change(plain):
        for key in keys[:-1]:
            plain = plain[key]
        plain[keys[-1]] = value

    return change


def logit_layer(plain):
    plain["nodes"][-1] |= {"layer": "9", "node_id": plain["nodes"][-1]["node_id"].replace("4_", "9_", 1)}


JSON = {
    "version": (at("metadata", "schema_version", value=2), "schema_version 2, and 1 is read"),
    "no metadata": (lambda plain: {"nodes": [], "links": []}, "needs metadata, nodes and links"),
    "list": (lambda plain: [1], "needs metadata"),
    "node no object": (at("nodes", 0, value=3), "no object"),
    "unknown type": (at("nodes", 0, "feature_type", value="neuron"), "'neuron', which is none that is known"),
    "other number": (at("nodes", 0, "feature", value=3), "do not fit its id"),
    "other position": (at("nodes", 0, "ctx_idx", value=3), "do not fit its id"),
    "other layer": (at("nodes", 0, "layer", value="1"), "do not fit its id"),
    "too large a number": (at("nodes", -1, "node_id", value=f"4_{10**30}_4"), "do not fit its id"),
    "no numbers": (at("nodes", 0, "node_id", value="0_x_4"), "not of three numbers"),
    "twice": (lambda plain: plain["nodes"].append(plain["nodes"][0]), "twice"),
    "activation": (at("nodes", 0, "activation", value=None), "None at '0_1_4', which is no finite number"),
    "probability": (at("nodes", -1, "token_prob", value=-0.5), "not negative"),
    "weight": (at("links", 0, "weight", value="1"), "no finite number"),
    "link no object": (at("links", 0, value=3), "a source, a target and a weight"),
    "unknown source": (at("links", 0, "source", value="0_99_1"), "between which there is none"),
    "unknown target": (at("links", 0, "target", value="0_99_1"), "between which there is none"),
    "backwards": (at("links", 0, "source", value="4_8_4"), "between which there is none"),
    "link twice": (lambda plain: plain["links"].insert(0, plain["links"][0]), "twice"),
    "logits of two layers": (logit_layer, "logits of several layers"),
    "no embedding": (lambda plain: plain["nodes"].remove(plain["nodes"][-6]), "not those of all its positions"),
    "words": (at("metadata", "prompt_tokens", value=["one"]), "not the texts of its 5 tokens"),
    "layer beyond": (
        lambda plain: plain["nodes"].append(
            plain["nodes"][0] | {"node_id": "7_0_4", "layer": "7", "feature": 28, "ctx_idx": 4}
        ),
        "allow 0 to 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", JSON)
def test_json_that_does_not_fit_is_refused(rewritten, case):
    change, match = JSON[case]
    path = rewritten(change)
    with pytest.raises(AssayError, match=match) as error:
        AttributionGraph.read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ['{"nodes": NaN}', "graph", "", "[" * 100_000], ids=["nan", "text", "empty", "deep"])
def test_what_is_no_json_is_refused(tmp_path, text):
    path = tmp_path / "graph.json"
    path.write_text(text)
    with pytest.raises(AssayError, match=r"no number|no graph of circuit-tracer"):
        AttributionGraph.read(path)
    with pytest.raises(AssayError, match="cannot be read"):
        AttributionGraph.read(tmp_path / "none.pt")


class _Code:
    def __reduce__(self):
        return print, ("this ran",)


class UnifiedConfig:
    """Stands for circuit-tracer's class of this name, where a test saves one."""


UnifiedConfig.__module__ = "circuit_tracer.utils.tl_nnsight_mapping"


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Save transcoders.pt with changes, as circuit-tracer saves; returns the path."""
    modules = {"circuit_tracer": None, "circuit_tracer.utils": None, UnifiedConfig.__module__: None}
    for name in modules:
        module = type(json)(name)
        module.__path__ = []
        monkeypatch.setitem(__import__("sys").modules, name, module)
    __import__("sys").modules[UnifiedConfig.__module__].UnifiedConfig = UnifiedConfig

    def save(**changed):
        graph, config = read("transcoders.pt"), UnifiedConfig()
        config.n_layers, config.model_name = 3, "tiny"
        held = {
            "input_string": "a prompt",
            "adjacency_matrix": graph.weights,
            "cfg": config,
            "active_features": graph.features,
            "logit_targets": graph.targets,
            "logit_probabilities": graph.probabilities,
            "input_tokens": graph.tokens,
            "selected_features": torch.arange(106),
            "activation_values": graph.activations,
            "scan_name": "a scan",
        } | changed
        torch.save({key: value for key, value in held.items() if value is not None}, tmp_path / "graph.pt")
        return tmp_path / "graph.pt"

    return save


def nan():
    weights = read("transcoders.pt").weights.clone()
    weights[-1, 0] = torch.nan
    return weights


def linked(target, source):
    weights = read("transcoders.pt").weights.clone()
    weights[target, source] = 1.0
    return weights


def backwards():
    nodes = read("transcoders.pt").nodes
    target = next(place for place, node in enumerate(nodes) if (node.kind, *node[1:3]) == ("feature", 1, 1))
    return linked(target, next(place for place, node in enumerate(nodes) if node[1:3] == (0, 4)))


PICKLED = {
    "code": ({"scan_name": _Code()}, "would run code of its own"),
    "missing": ({"active_features": None}, "has no active_features"),
    "extra": ({"code": 1}, "'code', which is not known"),
    "no config": ({"cfg": {"n_layers": 3}}, "no number of layers"),
    "not finite": ({"adjacency_matrix": nan()}, "weights are not all finite"),
    "shape": ({"adjacency_matrix": torch.zeros(4, 4)}, r"shape \[4, 4\], where 130 x 130 is due"),
    "repeated": ({"adjacency_matrix": torch.zeros(1).expand(1000, 1000)}, "no plain tensor"),
    "sparse": ({"adjacency_matrix": torch.eye(3).to_sparse()}, "no plain tensor"),
    "no tensor": ({"adjacency_matrix": [1]}, "no plain tensor"),
    "floats": ({"input_tokens": torch.ones(5)}, "they are whole numbers"),
    "fewer values": ({"activation_values": torch.ones(3)}, "3 activation_values"),
    "chosen beyond": ({"selected_features": torch.tensor([106])}, "not all among its 106"),
    "chosen twice": ({"selected_features": torch.tensor([0] * 106)}, "one of its features twice"),
    "targets": ({"logit_targets": ["w"]}, "no list of tokens with their numbers"),
    "complex": ({"logit_probabilities": torch.ones(4, dtype=torch.complex64)}, "no plain tensor"),
    "probabilities": ({"logit_probabilities": torch.zeros(4)}, "not all 0"),
    "into an error": ({"adjacency_matrix": linked(107, 0)}, "edges into errors"),
    "back a layer": ({"adjacency_matrix": linked(0, 105)}, "nothing in a model goes backwards"),
    "back a position": ({"adjacency_matrix": backwards()}, "into position 1 from a later one; nothing"),
}  # fmt: skip


@pytest.mark.parametrize("case", PICKLED)
def test_a_pt_file_that_does_not_fit_is_refused(saved, capsys, case):
    changed, match = PICKLED[case]
    path = saved(**changed)
    with pytest.raises(AssayError, match=match) as error:
        AttributionGraph.read(path)
    assert "\n" not in str(error.value)
    assert "this ran" not in capsys.readouterr().out


def test_targets_of_earlier_files_are_read(saved):
    found = AttributionGraph.read(saved())
    assert (found.said, found.origin["scan"], found.nodes) == (None, "a scan", read("transcoders.pt").nodes)
    assert found.scores() == read("transcoders.pt").scores()


def test_cut_files_are_refused(tmp_path):
    data = (FILES / "transcoders.pt").read_bytes()
    for number, cut in enumerate((data[: len(data) // 2], data[:40], b"\x80\x02" + pickle.dumps(3))):
        path = tmp_path / f"{number}.pt"
        path.write_bytes(cut)
        with pytest.raises(AssayError, match="no graph of circuit-tracer"):
            AttributionGraph.read(path)


@pytest.mark.parametrize("name", ["transcoders.pt", "transcoders.json"])
def test_where_circuits_are_read_it_is_said_where_graphs_are(name):
    with pytest.raises(AssayError, match=r"attribution graph.*assay\.AttributionGraph\.read"):
        Circuit.read(FILES / name)


def test_shares_to_prune_by_are_shares():
    for wrong in (0.0, 1.5):
        with pytest.raises(AssayError, match="share of all influence"):
            read("exact.pt").pruned(nodes=wrong)
    graph = read("transcoders.pt")
    whole = graph.pruned(nodes=1.0, edges=1.0)
    reach = graph.influence()
    assert {node.kind for node in whole.nodes} == {"feature", "error", "embedding", "target"}
    assert len(whole.features) == int((reach[:106] > 0).sum())
    np.testing.assert_allclose(whole.scores().replacement, graph.scores().replacement, rtol=1e-6)
