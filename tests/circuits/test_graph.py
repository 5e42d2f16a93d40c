"""The graph: its counts, names and paths."""

import itertools

import numpy as np
import pytest
from transformers import GPT2Config

from assay import AssayError
from assay.circuits import Edge, Graph
from assay.circuits._circuit import random_paths
from assay.circuits._graph import shuffled

GRAPHS = [
    Graph(2, 2, 2),
    Graph(3, 4, 2),
    Graph(3, 4, 1),
    Graph(2, 3, 3, parallel=True),
    Graph(1, 1, 1),
    Graph(4, 1, 1, parallel=True),
    Graph(2, 6, 2, parallel=True),
]


@pytest.mark.parametrize(
    ("graph", "edges"),
    [
        (Graph(GPT2Config().n_layer, GPT2Config().n_head, GPT2Config().n_head), 32_491),  # GPT-2 small
        (Graph(4, 4, 4), 479),
        (Graph(2, 1, 1), 23),  # the shipped Dyck models
        (Graph(3, 4, 2), 190),
        (Graph(2, 2, 2), 46),
    ],
)
def test_known_counts(graph, edges):
    assert graph.size == edges == int(graph.exists.sum()) == len(graph.edges(graph.exists))


@pytest.mark.parametrize("graph", GRAPHS, ids=str)
def test_count_by_the_formula(graph):
    count, heads, readers = 0, graph.heads, graph.heads + 2 * graph.groups
    for layer in range(graph.layers):
        before = 1 + layer * (heads + 1)
        count += before * readers + before + (0 if graph.parallel else heads)
    assert graph.size == count + len(graph.senders)
    assert graph.shape == (1 + graph.layers * (heads + 1), graph.layers * (readers + 1) + 1)


def test_names_of_a_small_graph_are_written_out_in_order():
    graph = Graph(1, 2, 1)
    assert graph.senders == ("embeddings", "layer0.head0", "layer0.head1", "layer0.mlp")
    assert graph.receivers == (
        "layer0.head0.queries", "layer0.head1.queries", "layer0.group0.keys", "layer0.group0.values", "layer0.mlp",
        "logits",
    )  # fmt: skip
    assert [str(edge) for edge in graph.edges(graph.exists)] == [
        "embeddings -> layer0.head0.queries",
        "embeddings -> layer0.head1.queries",
        "embeddings -> layer0.group0.keys",
        "embeddings -> layer0.group0.values",
        "embeddings -> layer0.mlp",
        "embeddings -> logits",
        "layer0.head0 -> layer0.mlp",
        "layer0.head0 -> logits",
        "layer0.head1 -> layer0.mlp",
        "layer0.head1 -> logits",
        "layer0.mlp -> logits",
    ]
    assert "layer1.head1.keys" in Graph(2, 2, 2).receivers


@pytest.mark.parametrize("graph", GRAPHS, ids=str)
def test_edges_parse_as_they_print(graph):
    edges = graph.edges(graph.exists)
    assert len(set(edges)) == graph.size
    assert tuple(Edge.parse(str(edge)) for edge in edges) == edges
    assert np.array_equal(graph.matrix(map(str, edges)), graph.exists)
    some = np.random.default_rng(0).random(graph.shape) < 0.3
    some &= graph.exists
    assert np.array_equal(graph.matrix(graph.edges(some)), some)
    assert Edge.parse("  a->b ") == Edge("a", "b")


@pytest.mark.parametrize("graph", GRAPHS, ids=str)
def test_numbers_of_senders_and_receivers_fit_their_names(graph):
    for layer in range(graph.layers):
        assert graph.senders[graph.sender(layer)] == f"layer{layer}.mlp" == graph.receivers[graph.mlp(layer)]
        assert graph.senders[graph.sender(layer, graph.heads - 1)] == f"layer{layer}.head{graph.heads - 1}"
        reading = graph.receivers[graph.reading(layer)]
        assert [name.rpartition(".")[2] for name in reading] == (
            ["queries"] * graph.heads + ["keys"] * graph.groups + ["values"] * graph.groups
        )
    assert graph.receivers[graph.logits] == "logits"


@pytest.mark.parametrize("graph", GRAPHS, ids=str)
def test_an_edge_exists_where_the_sender_runs_first(graph):
    """By names alone: layer, and within a layer attention before the MLP unless they run side by side."""
    for (row, sender), (column, receiver) in itertools.product(enumerate(graph.senders), enumerate(graph.receivers)):
        ends = _time(receiver, graph.parallel, sends=False)
        assert graph.exists[row, column] == (_time(sender, graph.parallel, sends=True) < ends), (sender, receiver)


def _time(name: str, parallel: bool, *, sends: bool) -> float:
    if name in ("embeddings", "logits"):
        return -1.0 if name == "embeddings" else 1e9
    layer, _, part = name.partition(".")
    start = 10.0 * int(layer.removeprefix("layer"))
    if part == "mlp":
        return start + 8 if sends else start + (2 if parallel else 7)
    return start + 5 if sends else start + 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layer0.head0", "is no edge"),
        ("a -> b -> c", "is no edge"),
        ("layer9.head0 -> logits", "'layer9.head0' is no sender"),
        ("embeddings -> layer0.head7.keys", "is no receiver"),
        ("logits -> embeddings", "'logits' is no sender"),
        ("layer1.head0 -> layer0.mlp", "layer0.mlp is computed before layer1.head0"),
        ("layer0.head0 -> layer0.head1.queries", "or beside it"),
        ("layer0.mlp -> layer0.mlp", "or beside it"),
        ("embeddings -> layer0.group0.keys", "is no receiver"),
    ],
)
def test_edges_that_are_not_there_are_refused(text, message):
    with pytest.raises(AssayError, match=message):
        Graph(2, 2, 2).matrix([text])


def test_an_mlp_of_a_parallel_block_does_not_hear_its_own_heads():
    with pytest.raises(AssayError, match="beside it"):
        Graph(2, 2, 2, parallel=True).place("layer1.head0 -> layer1.mlp")
    assert Graph(2, 2, 2).exists[Graph(2, 2, 2).place("layer1.head0 -> layer1.mlp")]


def on_paths(graph: Graph, kept: np.ndarray) -> set[str]:
    """Edges on paths, by walking every path forwards by names."""
    share = graph.heads // graph.groups
    out: dict[str, list[str]] = {}
    for edge in graph.edges(kept):
        out.setdefault(edge.sender, []).append(edge.receiver)

    def owners(receiver: str) -> list[str]:
        layer, _, rest = receiver.partition(".")
        part = rest.partition(".")[0]
        if part.startswith("group"):
            group = int(part.removeprefix("group"))
            return [f"{layer}.head{head}" for head in range(group * share, (group + 1) * share)]
        return [f"{layer}.{part}"]

    found: set[str] = set()
    known: dict[str, bool] = {}

    def reaches(sender: str) -> bool:
        """Whether a sender has a path to the logits."""
        if sender not in known:
            known[sender] = any(
                receiver == "logits" or any(reaches(one) for one in owners(receiver))
                for receiver in out.get(sender, [])
            )
        return known[sender]

    walked: set[str] = set()

    def walk(sender: str) -> None:
        if sender in walked:
            return
        walked.add(sender)
        for receiver in out.get(sender, []):
            if receiver == "logits":
                found.add(f"{sender} -> {receiver}")
                continue
            if any(reaches(one) for one in owners(receiver)):
                found.add(f"{sender} -> {receiver}")
            for one in owners(receiver):
                walk(one)

    walk("embeddings")
    return found


@pytest.mark.parametrize("graph", GRAPHS, ids=str)
@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_pruning_keeps_what_a_search_of_paths_finds(graph, share):
    rng = np.random.default_rng([graph.size, int(10 * share)])
    changed = 0
    for _ in range(25):
        kept = graph.exists & (rng.random(graph.shape) < share)
        pruned = graph.pruned(kept)
        assert {str(edge) for edge in graph.edges(pruned)} == on_paths(graph, kept)
        assert np.array_equal(graph.pruned(pruned), pruned)
        changed += not np.array_equal(pruned, kept)
    assert np.array_equal(graph.pruned(graph.exists), graph.exists)
    assert changed or graph.size < 10 or share > 0.5


@pytest.mark.parametrize("graph", GRAPHS, ids=str)
def test_image_keeps_sizes_profile_and_paths(graph):
    rng = np.random.default_rng(7)
    images = set()
    for _ in range(20):
        kept = graph.exists & (rng.random(graph.shape) < 0.4)
        image = shuffled(graph, kept, rng)
        images.add(np.array_equal(image, kept))
        assert not (image & ~graph.exists).any()
        assert image.sum() == kept.sum()
        assert graph.pruned(image).sum() == graph.pruned(kept).sum()
        assert np.array_equal(_profile(graph, image), _profile(graph, kept))
        assert np.array_equal(_profile(graph, graph.pruned(image)), _profile(graph, graph.pruned(kept)))
        # Degrees of a layer's heads are those of the circuit, in another order.
        for layer in range(graph.layers):
            mine = slice(graph.sender(layer, 0), graph.sender(layer, 0) + graph.heads)
            assert sorted(image[mine].sum(axis=1)) == sorted(kept[mine].sum(axis=1))
    assert images == ({True} if graph.heads == 1 else {False}) or False in images


def test_an_image_moves_a_head_as_sender_and_receiver_alike():
    """In a circuit where every head of a layer hears itself and no other head, so does its image."""
    graph = Graph(3, 4, 4)
    kept = np.zeros(graph.shape, dtype=bool)
    for head in range(4):  # each head of the second layer hears one head of the first, and is heard by one of the third
        kept |= graph.matrix(
            [
                f"embeddings -> layer0.head{head}.values",
                f"layer0.head{head} -> layer1.head{head}.values",
                f"layer0.head{head} -> layer1.head{head}.queries",
                f"layer1.head{head} -> layer2.head{head}.keys",
            ]
        )
    image = shuffled(graph, kept, np.random.default_rng(3))
    edges = [str(edge).split(" -> ") for edge in graph.edges(image)]
    first = {receiver.rpartition(".")[0]: sender for sender, receiver in edges if receiver.endswith("values")}
    for sender, receiver in edges:
        if receiver.endswith("queries"):
            assert first[receiver.rpartition(".")[0]] == sender
    assert len({sender for sender, receiver in edges if receiver.endswith("keys")}) == 4


def test_images_of_grouped_heads_move_groups_whole():
    graph = Graph(1, 6, 3)
    kept = graph.matrix(
        ["embeddings -> layer0.head2.queries", "embeddings -> layer0.group1.keys", "layer0.head3 -> logits"]
    )
    seen = set()
    for seed in range(60):
        names = {str(edge) for edge in graph.edges(shuffled(graph, kept, np.random.default_rng(seed)))}
        (group,) = [int(name.split("group")[1][0]) for name in names if "group" in name]
        heads = sorted(int(name.split("head")[1][0]) for name in names if "head" in name)
        assert heads == [2 * group, 2 * group + 1]
        seen.add(frozenset(names))
    assert len(seen) == 6  # three groups, two orders within


@pytest.mark.parametrize("graph", GRAPHS, ids=str)
def test_random_paths_are_paths_of_about_the_size(graph):
    for seed in range(10):
        size = int(np.random.default_rng(seed).integers(1, graph.size + 1))
        kept = random_paths(graph, size, np.random.default_rng(seed))
        assert np.array_equal(graph.pruned(kept), kept)
        assert size <= kept.sum() <= size + 2 * graph.layers
    assert not random_paths(graph, 0, np.random.default_rng(0)).any()


def _profile(graph: Graph, kept: np.ndarray) -> np.ndarray:
    """Edges between kinds of places: layers of heads, MLPs, embeddings; kinds of receivers by layer."""
    senders = [name.rpartition("head")[0] or name for name in graph.senders]
    receivers = [
        name if name.endswith(("mlp", "logits")) else f"{name.partition('.')[0]}.{name.rpartition('.')[2]}"
        for name in graph.receivers
    ]
    rows, columns = sorted(set(senders)), sorted(set(receivers))
    found = np.zeros((len(rows), len(columns)), dtype=int)
    for sender, receiver in np.argwhere(kept):
        found[rows.index(senders[sender]), columns.index(receivers[receiver])] += 1
    return found
