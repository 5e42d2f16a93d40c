"""Files of ACDC and CircuitKIT: read as their code means them.

The files are made here by hand, line by line after the code that writes them: ACDC's `TLACDCCorrespondence.
setup_from_model` and `TLACDCExperiment.save_subgraph` and `save_edges` (ArthurConmy/Automatic-Circuit-Discovery at
`bc99ace8`), CircuitKIT's `discover_circuit`, `CircuitScores.to_json`, `CircuitArtifact.save_json`, `Graph.to_json` and
`Graph.to_pt` (Lexsi-Labs/CircuitKIT at `8e019e4`). Neither tool was run.
"""

import json
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from many_subjects import tiny

from assay import AssayError
from assay.circuits import Circuit, Graph

NONE = (None,)


def at(head):
    return (None, None, head)


def acdc(layers=2, heads=2, positions=False):
    """All keys of a subgraph, with True everywhere."""
    found = OrderedDict()
    downstream = [(f"blocks.{layers - 1}.hook_resid_post", NONE)]
    for layer in reversed(range(layers)):
        for name, index in downstream:
            found[name, index, f"blocks.{layer}.hook_mlp_out", NONE] = True
        found[f"blocks.{layer}.hook_mlp_out", NONE, f"blocks.{layer}.hook_mlp_in", NONE] = True
        downstream.append((f"blocks.{layer}.hook_mlp_in", NONE))
        more = []
        for head in reversed(range(heads)):
            for name, index in downstream:
                found[name, index, f"blocks.{layer}.attn.hook_result", at(head)] = True
            for letter in "qkv":
                result, link = f"blocks.{layer}.attn.hook_result", f"blocks.{layer}.attn.hook_{letter}"
                found[result, at(head), link, at(head)] = True
                found[link, at(head), f"blocks.{layer}.hook_{letter}_input", at(head)] = True
                more.append((f"blocks.{layer}.hook_{letter}_input", at(head)))
        downstream += more
    for embedding in ("hook_embed", "hook_pos_embed") if positions else ("blocks.0.hook_resid_pre",):
        for name, index in downstream:
            found[name, index, embedding, NONE] = True
    return found


def theirs(edge):
    """Our edge as ACDC's key."""
    sender, receiver = edge.split(" -> ")
    part = receiver.split(".")
    to = {
        1: ("blocks.{last}.hook_resid_post", NONE),
        2: (f"blocks.{part[0][5:]}.hook_mlp_in", NONE),
    }.get(len(part)) or (f"blocks.{part[0][5:]}.hook_{part[2][0]}_input", at(int(part[1][4:])))
    of = sender.split(".")
    if len(of) == 1:
        return (*to, "blocks.0.hook_resid_pre", NONE)
    if of[1] == "mlp":
        return (*to, f"blocks.{of[0][5:]}.hook_mlp_out", NONE)
    return (*to, f"blocks.{of[0][5:]}.attn.hook_result", at(int(of[1][4:])))


def key(edge, last=1):
    receiver, *rest = theirs(edge)
    return (receiver.format(last=last), *rest)


CIRCUIT = (
    "embeddings -> layer0.head1.values",
    "layer0.head1 -> layer1.head0.queries",
    "layer0.head1 -> layer0.mlp",
    "layer0.mlp -> layer1.head0.keys",
    "layer1.head0 -> logits",
    "layer1.mlp -> logits",
)


def with_circuit(edges=CIRCUIT, **options):
    """A whole subgraph in which only some edges are present; links within heads and MLPs are."""
    found, graph = acdc(**options), Graph(2, 2, 2)
    for name in map(str, graph.edges(graph.exists)):
        found[key(name)] = name in edges
    return found


@pytest.fixture
def file(tmp_path):
    """file(name, content): a file, by torch.save where its name ends in .pt or .pth, else JSON."""

    def written(name, content):
        path = tmp_path / name
        if path.suffix in (".pt", ".pth"):
            torch.save(content, path)
        else:
            path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return written


def refused(path, words, **options):
    with pytest.raises(AssayError, match=words) as error:
        Circuit.read(path, **options)
    assert "\n" not in str(error.value)
    assert path.name in str(error.value)


# -- ACDC -----------------------------------------------------------------------------------------------------------


def test_a_whole_subgraph_has_every_edge_of_our_graph(file):
    circuit = Circuit.read(file("all.pth", acdc()))
    graph = Graph(2, 2, 2)
    assert set(circuit.edges) == set(map(str, graph.edges(graph.exists)))
    assert circuit.found.graph == graph
    assert not circuit.found.at_least
    assert circuit.ablation == "counterfactual"


def test_a_subgraph_is_the_edges_that_are_present(file):
    circuit = Circuit.read(file("some.pth", with_circuit()))
    assert set(circuit.edges) == set(CIRCUIT)
    assert (circuit.found.graph, circuit.found.at_least) == (Graph(2, 2, 2), False)


def test_what_a_head_reads_counts_only_where_it_is_linked(file):
    """Their hook overwrites the head's queries where the link is not present, whatever they read."""
    found = with_circuit()
    found["blocks.1.attn.hook_q", at(0), "blocks.1.hook_q_input", at(0)] = False
    assert set(Circuit.read(file("a.pth", found)).edges) == set(CIRCUIT) - {CIRCUIT[1]}
    del found["blocks.1.attn.hook_q", at(0), "blocks.1.hook_q_input", at(0)]
    assert set(Circuit.read(file("b.pth", found)).edges) == set(CIRCUIT) - {CIRCUIT[1]}


def after_a_run(edges=CIRCUIT, layers=2):
    """What a run leaves: removed edges are not in the dictionary."""
    links = {name: True for name in acdc(layers) if "attn.hook_" in name[0] or "mlp_out" in name[0]}
    return OrderedDict({**{key(edge, layers - 1): True for edge in edges}, **links})


@pytest.fixture(scope="module")
def gpt2():
    return tiny("gpt2")


def test_a_subgraph_after_a_run_is_laid_on_the_subject(file, gpt2, tmp_path):
    """It says how many layers there are and not how many heads."""
    heads = gpt2.model.config.n_head
    layers = gpt2.model.config.n_layer
    assert heads >= 2
    edges = [edge.replace("layer1", f"layer{layers - 1}") for edge in CIRCUIT]
    circuit = Circuit.read(file("run.pth", after_a_run(edges, layers)))
    assert circuit.found.at_least
    with pytest.raises(AssayError, match="does not say yet of which graph"):
        circuit.write(tmp_path / "c.json")
    proxy = circuit.apply(gpt2)
    assert set(map(str, proxy.graph.edges(proxy.kept))) == set(edges)
    again = Circuit.read(circuit.write(tmp_path / "c.json"))
    assert again.found.graph == proxy.graph
    assert np.array_equal(again.apply(gpt2).kept, proxy.kept)
    refused(tmp_path / "run.pth", "does not say how many heads there are", groups=2)
    refused(tmp_path / "run.pth", "has scores of 0 edges", edges=5)


def test_a_subgraph_of_another_depth_or_more_heads_is_refused(file, gpt2):
    layers = gpt2.model.config.n_layer
    deeper = Circuit.read(file("deeper.pth", after_a_run(layers=layers + 1)))
    with pytest.raises(AssayError, match=f"of a model of {layers + 1} layers of at least 2 heads, and"):
        deeper.apply(gpt2)
    wide = [*CIRCUIT, "embeddings -> layer0.head40.keys"]
    with pytest.raises(AssayError, match="of at least 41 heads, and"):
        Circuit.read(file("wide.pth", after_a_run(wide, layers))).apply(gpt2)


def test_keys_and_values_by_head_are_put_together(file):
    llama = tiny("mistral")
    graph = Circuit(["embeddings -> logits"]).apply(llama).graph
    share = graph.heads // graph.groups
    assert share > 1
    edges = [f"embeddings -> layer0.head{head}.keys" for head in range(share)] + ["layer0.head0 -> logits"]
    circuit = Circuit.read(file("run.pth", after_a_run(edges, graph.layers)))
    proxy = circuit.apply(llama)
    assert set(map(str, proxy.graph.edges(proxy.kept))) == {"embeddings -> layer0.group0.keys", edges[-1]}
    with pytest.raises(AssayError, match="share their keys in this model"):
        Circuit.read(file("odd.pth", after_a_run(edges[1:], graph.layers))).apply(llama)


def test_tokens_and_positions_are_one_sender(file):
    both = acdc(positions=True)
    circuit = Circuit.read(file("both.pth", both))
    assert (circuit.found.graph, len(circuit.edges), circuit.found.at_least) == (Graph(2, 2, 2), 46, False)
    both["blocks.0.hook_mlp_in", NONE, "hook_pos_embed", NONE] = False
    refused(file("one.pth", both), "edge from hook_embed to mlp in of layer 0 and not that from hook_pos_embed")
    del both["blocks.0.hook_mlp_in", NONE, "hook_pos_embed", NONE]
    refused(file("none.pth", both), "edge from hook_embed to mlp in of layer 0 and not that from hook_pos_embed")


class TorchIndex:
    """As ACDC's: an object, for which a pickle holds the name of a class to be imported."""

    def __init__(self, index):
        self.hashable_tuple = tuple(index)


def test_pickled_edges_are_refused_without_loading_them(tmp_path):
    """`save_edges` pickles objects of ACDC's classes."""
    edges = [((name[0], TorchIndex(name[1]), name[2], TorchIndex(name[3])), 0.1) for name in after_a_run()]
    path = tmp_path / "another_final_edges.pkl"
    path.write_bytes(pickle.dumps(edges))
    refused(path, r"ACDC's save_subgraph \(save_edges pickles objects\)")


RESID, EMBED, MLP = ("blocks.1.hook_resid_post", NONE), ("hook_embed", NONE), ("blocks.0.hook_mlp_out", NONE)
WRONG_SUBGRAPHS = [
    ({(*RESID, "blocks.0.hook_mlp_out", NONE): 1}, "True or False"),
    ({(*RESID, "blocks.0.hook_mlp_out"): True}, "ACDC has .receiver, index, sender, index"),
    ({(*RESID, "blocks.0.hook_mlp_out", at(0)): True}, "is no part of ACDC's graph"),
    ({(*RESID, "blocks.0.attn.hook_result", NONE): True}, "is no part of ACDC's graph"),
    ({(*RESID, "blocks.0.attn.hook_result", at(-1)): True}, "is no part of ACDC's graph"),
    ({(*RESID, "blocks.0.attn.hook_result", at(True)): True}, "is no part of ACDC's graph"),
    ({(*RESID, "blocks.0.attn.hook_result", (None, 0, 0)): True}, "is no part of ACDC's graph"),
    ({(*RESID, "blocks.0.hook_resid_mid", NONE): True}, "is no part of ACDC's graph"),
    ({(*RESID, 5, NONE): True}, "is no part of ACDC's graph"),
    ({(*RESID, "blocks.1.hook_mlp_in", NONE): True}, "which no decoder has"),
    ({(*RESID, "blocks.2.hook_mlp_out", NONE): True}, "which no decoder has"),
    ({("blocks.0.hook_mlp_in", NONE, "blocks.0.hook_mlp_out", NONE): True}, "no edge into the logits"),
    ({(*RESID, *EMBED): True, ("blocks.2.hook_resid_post", NONE, *EMBED): True}, "of one layer"),
    ({(*RESID, *MLP): True, ("blocks.0.hook_mlp_in", NONE, *MLP): True}, "from mlp out of layer 0 to mlp in"),
    ({("blocks.999999.hook_resid_post", NONE, "blocks.0.attn.hook_result", at(999_999)): True}, "no such model"),
    ({(*RESID, "blocks.0.hook_mlp_out", NONE): False}, "has no edges in the circuit"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "words"), WRONG_SUBGRAPHS)
def test_what_acdc_does_not_write_is_refused(file, content, words):
    refused(file("wrong.pth", content), words)


# -- CircuitKIT -----------------------------------------------------------------------------------------------------

SCORES = {"A0.0": 0.5, "A0.1": 0.1, "MLP 0": 0.4, "A1.0": 0.05, "A1.1": 0.9, "MLP 1": 0.3}


def scores(**changes):
    """What `CircuitScores.to_json` writes."""
    return {
        "task": "ioi", "model": "gpt2", "algorithm": "eap-ig", "level": "node", "node_scores": SCORES,
        "timestamp": "2026-08-18T15:48:13Z", "version": "1.0", "discovery_cfg": {"algorithm": "eap-ig", "ig_steps": 5},
        **changes,
    }  # fmt: skip


def out_of(*senders):
    """All edges out of some senders."""
    graph = Graph(2, 2, 2)
    return {str(edge) for edge in graph.edges(graph.exists) if edge.sender in senders}


def test_listed_nodes_are_taken_out_and_all_others_stay(file):
    """`circuit.pt` is what `get_nodes_to_prune` gives: with half of each kind, the least of them."""
    file("circuit_scores.json", scores())
    circuit = Circuit.read(file("circuit.pt", ["MLP 1", "A1.0", "A0.1"]))
    assert set(circuit.edges) == out_of("embeddings", "layer0.head0", "layer0.mlp", "layer1.head1")
    assert circuit.found.graph == Graph(2, 2, 2)
    assert circuit.name == "circuit"


def test_the_side_car_may_be_bare_and_of_heads_alone(file):
    file("circuit_scores.json", {"node_scores": {name: 1.0 for name in SCORES if name[0] == "A"}})
    circuit = Circuit.read(file("circuit.pt", ["A1.0"]))
    others = ("embeddings", "layer0.head0", "layer0.head1", "layer0.mlp", "layer1.head1", "layer1.mlp")
    assert set(circuit.edges) == out_of(*others)


@pytest.mark.parametrize("name", ["circuit_scores.json", "circuit_scores.pt"])
def test_scores_choose_the_best_nodes_that_fit(file, name):
    content = scores() if name.endswith("json") else {"algo": "eap-ig", "level": "node", "node_scores": SCORES}
    path = file(name, content)
    counts = {"embeddings": 15, "layer0.head0": 9, "layer0.mlp": 8, "layer1.head1": 2, "layer1.mlp": 1}
    assert {sender: len(out_of(sender)) for sender in counts} == counts
    assert set(Circuit.read(path, edges=15).edges) == out_of("embeddings")
    assert set(Circuit.read(path, edges=17).edges) == out_of("embeddings", "layer1.head1")
    assert set(Circuit.read(path, edges=25).edges) == out_of("embeddings", "layer1.head1", "layer0.mlp")
    assert set(Circuit.read(path, edges=26).edges) == out_of("embeddings", "layer1.head1", "layer0.head0")
    assert Circuit.read(path, edges=26).edges[15].startswith("layer1.head1"), "the best first"
    assert len(Circuit.read(path, edges=46).edges) == 46
    refused(path, "say how many edges to take")
    refused(path, "the embeddings alone have 15 edges; edges=14 is too few", edges=14)


def test_the_embeddings_are_named_by_their_acdc(file):
    path = file("circuit_scores.json", scores(algorithm="acdc", node_scores={"Resid Start": 0.0, **SCORES}))
    assert set(Circuit.read(path, edges=17).edges) == out_of("embeddings", "layer1.head1")


def test_nodes_of_a_model_with_groups(file):
    """Query heads are their nodes; keys and values come together where groups are known."""
    llama = tiny("mistral")
    graph = Circuit(["embeddings -> logits"]).apply(llama).graph
    assert graph.groups < graph.heads
    names = [f"A{layer}.{head}" for layer in range(graph.layers) for head in range(graph.heads)]
    names += [f"MLP {layer}" for layer in range(graph.layers)]
    file("circuit_scores.json", {"node_scores": dict.fromkeys(names, 1.0)})
    path = file("circuit.pt", ["A0.1", "MLP 0"])
    kept = graph.exists.copy()
    kept[[graph.sender(0, 1), graph.sender(0)]] = False
    for circuit in (Circuit.read(path), Circuit.read(path, groups=graph.groups)):
        assert np.array_equal(circuit.apply(llama).kept, kept)


def test_their_graphs_are_read_as_those_of_eap_ig(file):
    """`to_json` and `to_pt` have more in cfg, and scores of nodes."""
    config = {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 8, "d_mlp": 32, "mlp_hook": "mlp_out"}
    graph = Graph(2, 2, 2)
    letters = {"queries": "q", "keys": "k", "values": "v"}

    def named(node):
        parts = node.replace("layer", "").split(".")
        if len(parts) == 1:
            return {"embeddings": "input", "logits": "logits"}[node]
        if parts[1] == "mlp":
            return f"m{parts[0]}"
        return f"a{parts[0]}.{parts[1].replace('head', 'h')}" + (f"<{letters[parts[2]]}>" if len(parts) > 2 else "")

    inside = {"embeddings -> layer0.mlp", "layer0.mlp -> layer1.head1.keys", "layer1.head1 -> logits"}
    edges = {
        f"{named(edge.sender)}->{named(edge.receiver)}": {"score": 0.0, "in_graph": str(edge) in inside}
        for edge in graph.edges(graph.exists)
    }
    nodes = {named(sender): {"in_graph": True, "score": 0.25} for sender in (*graph.senders, "logits")}
    circuit = Circuit.read(file("graph.json", {"cfg": config, "nodes": nodes, "edges": edges}))
    assert set(circuit.edges) == inside
    assert circuit.found.width == 8
    kept = torch.from_numpy(graph.matrix(inside))
    matrices = {
        "cfg": config,
        "src_nodes": list(map(named, graph.senders)),
        "dst_nodes": list(map(named, graph.receivers)),
        "edges_scores": torch.zeros(graph.shape),
        "edges_in_graph": kept,
        "nodes_in_graph": kept.any(dim=1),
        "nodes_scores": torch.full((7,), torch.nan),
    }
    assert set(Circuit.read(file("graph.pt", matrices)).edges) == inside


def artifact():
    """What `CircuitArtifact.save_json` writes of scores of heads and MLPs."""
    node = {"layer_idx": 0, "node_type": "attn_head", "index": 1, "importance": 1.0, "name": "L0H1"}
    metadata = {
        "model_id": "gpt2", "discovery_method": "eap", "task": "ioi", "dataset": "ioi_dataset", "granularity": "head",
        "threshold": 0.3, "timestamp": "2026-08-18T15:48:13", "algorithm_params": {},
    }  # fmt: skip
    return {"version": "1.0", "metadata": metadata, "nodes": {"L0H1": node}, "edges": {}}


def test_what_does_not_say_which_edges_is_refused(file):
    refused(
        file("circuit.json", artifact()), r"is a CircuitArtifact, whose scores are cut at 1 .* give circuit\.pt with"
    )
    neurons = {"mlp": {0: [1, 2]}, "heads": {(0, 1): [3]}, "_meta": {"mlp_hook": "mlp_out"}}
    refused(file("neurons.pt", neurons), "holds a circuit of neurons")
    neurons = {"algo": "eap", "level": "neuron", "neurons_scores": torch.zeros(7, 8), "total_neurons": 56}
    refused(file("neurons_scores.pt", neurons), "holds a circuit of neurons")
    refused(file("alone.pt", ["A0.1"]), "takes out, and not of which model; put its 'alone_scores.json' beside it")
    file("damaged_scores.json", {"scores": {}})
    refused(file("damaged.pt", ["A0.1"]), "put its 'damaged_scores.json' beside it")


@pytest.mark.parametrize(
    ("nodes", "options", "words"),
    [
        (["A2.0"], {}, "lists 'A2.0', which a model of 2 layers of 2 heads has not"),
        (["A0.2"], {}, "lists 'A0.2', which"),
        (["MLP 2"], {}, "lists 'MLP 2', which"),
        (["Resid Start"], {}, "lists 'Resid Start', which"),
        (["a0.h1"], {}, "lists 'a0.h1', which"),
        (["A0.1", "A0.1"], {}, "lists 'A0.1' twice"),
        (["A0.1"], {"edges": 5}, "read 'circuit_scores.json' with edges=5"),
        (["A0.1"], {"groups": 3}, "cannot share keys and values in 3 groups"),
        ([name for name in SCORES if name != "MLP 1"], {"groups": 1}, None),
    ],
)
def test_lists_that_make_no_sense_are_refused(file, nodes, options, words):
    file("circuit_scores.json", scores())
    path = file("circuit.pt", nodes)
    if words is None:
        assert Circuit.read(path, **options).edges
    else:
        refused(path, words, **options)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"node_scores": {}}, "no scores of nodes by name"),
        ({"node_scores": [1.0]}, "no scores of nodes by name"),
        ({"level": "neuron"}, "level 'node'"),
        ({"more": 1}, "has 'more', which is not known"),
        ({"version": "2.0"}, "has version '2.0' of CircuitKIT's scores"),
        ({"node_scores": {**SCORES, "A1.x": 1.0}}, "score of 'A1.x', which is no head"),
        ({"node_scores": {"MLP 0": 1.0}}, "no scores of heads"),
        ({"node_scores": {"A0.0": 1.0, "A1.1": 1.0}}, "of 2 heads and 0 MLPs, of 2 layers not all"),
        (
            {"node_scores": {name: score for name, score in SCORES.items() if name != "MLP 0"}},
            "1 MLPs, of 2 layers not all",
        ),
        ({"node_scores": {**SCORES, "A0.0": "high"}}, "has the score 'high' for 'A0.0', which is no number"),
        ({"node_scores": {**SCORES, "A0.0": 1e999}}, "Infinity, which is no number"),
        ({"node_scores": {**SCORES, "A999999.999999": 1.0}}, "there is no such model"),
        ({"node_scores": {name: 1.0 for name in SCORES if name[0] == "A"}}, "has no scores of MLPs"),
    ],
)
def test_scores_that_make_no_sense_are_refused(file, changes, words):
    refused(file("circuit_scores.json", scores(**changes)), words, edges=20)
