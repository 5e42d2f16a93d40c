"""Studies of small attention models: tasks by their rules, clamps that are the answer, circuits set by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from assay import AssayError, compare
from assay.engine import Engine
from assay.studies import organisms
from assay.studies.organisms import _labels_in_context as labels
from assay.studies.organisms import _search_task as search_task
from assay.studies.organisms import _segments as segments
from assay.studies.organisms import induction, repeated, search
from assay.studies.organisms._clamps import CLAMPS, PARTS, Clamped
from assay.studies.organisms._one_head import OneHead, by_chance, matches, permuted, scores
from assay.studies.organisms._search_model import graph_model
from assay.studies.organisms._shown import agreement
from assay.subjects import Recipe, Repeated, Subject, Watch, train
from assay.testing._hand_made import HandMade
from assay.testing._planted_circuits import GAIN, SURE

VOCABULARY = labels.EXEMPLARS + labels.LABELS
QUERY = labels.QUERY


def few_draws(*given, **options):
    return compare(*given, **{**options, "metrics": ["same_prediction"], "resamples": 20})


@pytest.fixture
def quick(monkeypatch):
    """Comparisons in studies have few draws and one metric, and are else what they are."""
    for module in (induction, repeated, search):
        monkeypatch.setattr(module, "compare", few_draws)


def by_hand() -> GPT2LMHeadModel:
    """The circuit: head 0.0 writes which token was before, head 1.0 looks for the query there and copies the label."""
    positions, tokens = labels.LENGTH, np.eye(VOCABULARY)
    before = np.eye(positions, k=-1)
    before[0, 0] = 1
    spoken = tokens.copy()
    spoken[: labels.EXEMPLARS] = 0
    made = HandMade({"now": VOCABULARY, "before": VOCABULARY, "place": positions, "out": VOCABULARY}, heads=4)
    made.head(0, 0, ("place", SURE * before), ("place", np.eye(positions)), ("now", tokens), ("before", tokens))
    made.head(1, 0, ("now", SURE * tokens), ("before", tokens), ("now", spoken), ("out", tokens))
    for layer in range(2):
        made.mlp(layer, np.zeros((made.features, 1)), "out", np.zeros((1, VOCABULARY)))
    places = {"place": np.eye(positions)}
    return made.model({"now": tokens}, places, {"out": GAIN * tokens}, layers=2, activation="gelu_new")


def test_labels_in_context_keep_their_rule():
    task = labels.LabelsInContext(seed=3)
    for name, pairs in (("iid", labels.SHOWN), ("relabelled", labels.HELD)):
        split = task.split(name, 200)
        x, first, y, second, asked = split.tokens.T
        assert (x != y).all()
        assert {tuple(sorted(pair)) for pair in zip(first - 50, second - 50, strict=True)} == set(pairs)
        assert np.array_equal(split.answers[:, QUERY], np.where(asked == x, first, second))
        assert np.array_equal(split.foils[:, QUERY], np.where(asked == x, second, first))
        assert set(zip(split.counterfactuals[:, QUERY], asked, strict=True)) <= {
            *zip(x, y, strict=True),
            *zip(y, x, strict=True),
        }
    assert len(labels.SHOWN) == 8
    assert {label for pair in labels.SHOWN for label in pair} == {*range(5)}
    one, two = (labels.batches(batch=8, seed=1)(4) for _ in range(2))
    assert np.array_equal(one.tokens, two.tokens)
    with pytest.raises(AssayError, match="relabelled"):
        task.split("shuffled", 3)
    with pytest.raises(AssayError, match="at least 1"):
        task.split("iid", 0)


def test_matches_by_hand():
    found = matches(torch.tensor([[5, 6, 5, 7, 5, 6]]))[0]
    where = [[key for key in range(6) if row[key]] for row in found.tolist()]
    assert where == [[], [], [1], [], [3], [2]]
    drawn = by_chance(torch.randint(9, (300, 6), generator=torch.Generator().manual_seed(0)))
    assert torch.equal(drawn.sum(dim=-1), torch.ones(300, 6))
    assert torch.equal(drawn.triu(1), torch.zeros(300, 6, 6))
    assert (drawn[:, 5].mean(dim=0) > 0.08).all(), "every place is drawn"


def test_heads_in_another_order_compute_the_same():
    model = labels.attention_only(0, vocabulary=VOCABULARY, positions=5).eval()
    tokens = torch.from_numpy(labels.LabelsInContext().split("iid", 20).tokens)
    other = permuted(model, 1, [2, 0, 3, 1])
    with torch.no_grad():
        torch.testing.assert_close(other(input_ids=tokens).logits, model(input_ids=tokens).logits, atol=1e-5, rtol=0)
    engines = [Engine(Subject(one, None, "one")) for one in (model, other)]
    one, two = (engine.run(tokens, read=("patterns",)).patterns[1] for engine in engines)
    torch.testing.assert_close(two, one[:, [2, 0, 3, 1]], atol=1e-6, rtol=0)


def test_all_parts_given_are_the_answer_before_any_training():
    for seed in range(3):
        model = labels.attention_only(seed, vocabulary=VOCABULARY, positions=5)
        for name in ("iid", "relabelled"):
            split = labels.LabelsInContext().split(name, 100)
            with torch.no_grad():
                assert np.array_equal(Clamped(model, PARTS).answers(model, split.tokens), split.answers[:, QUERY])
                free = Clamped(model, ()).answers(model, split.tokens)
            assert (free == split.answers[:, QUERY]).mean() < 0.5


def test_without_clamps_a_training_is_the_plain_one_bit_for_bit():
    recipe = replace(induction.RECIPE, steps=5)
    trained = []
    for clamped in (True, False):
        model = labels.attention_only(1, vocabulary=VOCABULARY, positions=5)
        model.set_attn_implementation("eager")
        own = Clamped(model, CLAMPS["none"])
        options = {"around": own.around} if clamped else {}
        train(model, labels.batches(batch=8, seed=2), recipe, checkpoint=None, loss=own.loss, **options)
        trained.append(model.state_dict())
    assert all(torch.equal(value, trained[1][name]) for name, value in trained[0].items())
    fresh = labels.attention_only(1, vocabulary=VOCABULARY, positions=5).state_dict()
    same = {name for name, value in fresh.items() if torch.equal(value, trained[0][name])}
    assert same == {name for name in fresh if ".mlp." in name or ".ln_2." in name}, "MLPs are left"


@pytest.mark.parametrize("clamp", [name for name in CLAMPS if name != "none"])
def test_what_is_given_is_not_learned(clamp):
    model = labels.attention_only(0, vocabulary=VOCABULARY, positions=5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    clamped = Clamped(model, CLAMPS[clamp])
    train(model, labels.batches(batch=8, seed=0), replace(induction.RECIPE, steps=1), checkpoint=None,
          loss=clamped.loss, around=clamped.around)  # fmt: skip
    after = model.state_dict()
    head = slice(0, 16)

    def same(name, part) -> bool:
        return torch.equal(after[name][part], before[name][part])

    assert same("transformer.h.0.attn.c_attn.weight", (slice(None), head)) is ("prev" in clamp), "queries of 0.0"
    assert same("transformer.h.1.attn.c_attn.weight", (slice(None), head)) is ("match" in clamp), "queries of 1.0"
    assert same("lm_head.weight", slice(None)) is ("copy" in clamp)


def test_the_circuit_by_hand_is_right_from_the_start_and_the_account_is_all_of_it():
    task = labels.LabelsInContext()
    splits = {name: task.split(name, 60) for name in ("iid", "relabelled")}
    model = by_hand()
    clamped = Clamped(model, ())
    recipe = replace(induction.RECIPE, steps=1)
    watch = Watch(induction._look(clamped, splits), every=1)
    done = train(by_hand(), labels.batches(batch=4, seed=0), recipe, checkpoint=None, watch=watch)
    first = done.log[0]
    assert first["step"] == 0
    assert (first["accuracy"], first["relabelled"]) == (1.0, 1.0)
    assert first["previous"] > 0.999
    # A query for the first exemplar finds it before its label and, as the first token has none before, before itself.
    slot = splits["iid"].features["slot"][:, QUERY]
    assert first["match"] == pytest.approx(1 - (slot == 0).mean() / 2, abs=1e-6)
    found = compare(Subject(model, None, "by hand"), task, [OneHead()], sites=["layer1"], sequences=60,
                    fit_sequences=60, progress=False)  # fmt: skip
    for split in splits:
        assert agreement(found, split, OneHead().title)[0] == 1.0
        assert agreement(found, split, OneHead(attends="all").title)[0] < 0.9
        assert agreement(found, split, OneHead(attends="any").title)[0] < 0.9


def test_scores_are_attention_where_it_is_scored():
    model = by_hand()
    tokens = torch.from_numpy(labels.LabelsInContext().split("iid", 10).tokens)
    query = torch.zeros(10, 5, dtype=torch.bool)
    query[:, 4] = True
    found = scores(Engine(Subject(model, None, "by hand")), tokens, matches(tokens), query)
    assert found.shape == (2, 4)
    assert float(found[0, 1]) == pytest.approx(0.2), "a head without weights looks evenly"


def test_the_study_of_induction_runs(tmp_path, monkeypatch, quick):
    monkeypatch.setattr(induction, "CLAMPS", {name: CLAMPS[name] for name in ("none", "copy")})
    monkeypatch.setattr(induction, "KEPT", (0,))
    found = induction.run(tmp_path, seeds=1, sequences=12, device="cpu", progress=lambda step: None,
                          recipe=Recipe(steps=2, learning_rate=1e-4))  # fmt: skip
    assert [line["step"] for line in found.numbers["along"]["0"]] == [0, 2]
    assert [row[0][0] for row in found.shown.tables[0].rows] == ["none", "copy"]
    assert {one["step"] for one in found.numbers["judged"]} == {0, 2}
    assert set(found.comparisons) == {induction.END, induction.MIDDLE, induction.UNTRAINED}


def test_segments_come_twice_and_nothing_else_does():
    task = segments.Segments(documents=30)
    for name, segment in (("iid", 6), ("repeated", 6), ("longer", 8)):
        split = task.split(name, 200)
        assert len(split) == (30 if name == "repeated" else 200)
        for row, kinds, offset in zip(split.tokens, split.kinds, split.features["offset"], strict=True):
            inner = np.nonzero(kinds == 0)[0]
            start = inner[0]
            assert inner.tolist() == [*range(start, start + segment - 1)]
            back = offset[start]
            assert np.array_equal(row[start : start + segment], row[start - back : start - back + segment])
            assert len({*row.tolist()}) == 20 - segment
            if name == "repeated":
                assert {*np.nonzero(kinds == 1)[0]} == {*range(19)} - {*inner}
        tokens = torch.from_numpy(split.tokens)
        where = matches(tokens).argmax(dim=-1).numpy()
        copied = np.take_along_axis(split.tokens, where, axis=1)
        assert np.array_equal(copied[split.kinds == 0], split.right[split.kinds == 0]), "the match is what to copy"
    assert np.array_equal(task.split("repeated", 50).tokens, task.repeated())
    assert not {row.tobytes() for row in task.repeated()} & {row.tobytes() for row in task.split("iid", 500).tokens}
    with pytest.raises(AssayError, match="at least 1"):
        segments.Segments(documents=0)


def test_the_study_of_repeated_data_runs(tmp_path, quick):
    found = repeated.run(tmp_path, seeds=1, sequences=8, device="cpu", progress=lambda step: None,
                         recipe=Recipe(steps=2, learning_rate=1e-3), sets=(5,))  # fmt: skip
    clean, again = found.numbers["cells"]
    assert (clean["documents"], clean["repeats"]) == (0, 0.0)
    assert again["repeats"] == 2 * 32 / 5
    assert set(found.comparisons) == {"nothing repeated", "5 documents repeated"}
    frame = found.comparisons["5 documents repeated"].results
    assert {"copy", "memory"} <= {*frame[frame["split"] == "repeated"]["kind"]}
    assert [band.band for band in found.shown.charts[0].series].count(True) == 2


def test_a_share_of_nothing_is_the_clean_training_bit_for_bit():
    documents = segments.as_batch(segments.Segments(documents=4).repeated())
    clean = segments.batches(batch=8, seed=1)
    trained = []
    for source in (clean, Repeated(clean, documents, share=0.0, seed=1)):
        model = segments.small_decoder(0)
        train(model, source, Recipe(steps=2, learning_rate=1e-3), checkpoint=None)
        trained.append(model.state_dict())
    assert all(torch.equal(value, trained[1][name]) for name, value in trained[0].items())


def way(edges: set[tuple[int, int]], start: int, goal: int) -> list[int]:
    """The only way from start to goal, found edge by edge from its end."""
    found = [goal]
    while found[-1] != start:
        (before,) = [source for source, target in edges if target == found[-1]]
        found.append(before)
    return found[::-1]


@pytest.mark.parametrize("name", search_task.Search.split_names)
def test_the_first_step_is_the_one_on_the_way(name):
    split = search_task.Search(seed=1).split(name, 60)
    for row, other, length, answer, foil, ahead in zip(
        split.tokens, split.counterfactuals, split.lengths, split.answers[:, 0], split.foils[:, 0],
        split.features["lookahead"][:, 0], strict=True,
    ):  # fmt: skip
        edges = {divmod(int(token) - search_task.EDGES, 12) for token in row[1:length]}
        assert len(edges) == length - 1 == 2 * ahead + (3 if name == "distractor" else 0)
        assert (row[length:] == row[0]).all()
        for question, first in ((row[0], answer), (other[0], foil)):
            found = way(edges, *divmod(int(question) - search_task.QUESTIONS, 12))
            assert len(found) == ahead + 1
            assert found[1] == first
        assert {"one_more": {4}, "two_more": {5}, "distractor": {3}}.get(name, {1, 2, 3}) >= {int(ahead)}


def test_lookaheads_are_introduced_one_after_another():
    batches = search_task.batches(batch=4, seed=0, stage=10)
    seen = [{batches(step).tokens.shape[1] for step in range(first, first + 10)} for first in (0, 10, 20, 40)]
    assert seen[0] == {3}
    assert seen[1] == {3, 5}
    assert seen[2] | seen[3] == {3, 5, 7}


def test_a_graph_is_read_as_a_set_and_what_pads_it_is_not_seen():
    model = graph_model(0).eval()
    subject = Subject(model, None, "graphs")
    split = search_task.Search().split("iid", 30)
    tokens, valid = torch.from_numpy(split.tokens), torch.from_numpy(split.valid.astype(np.int64))
    found = subject(tokens, valid)[:, 0]
    assert found.shape == (30, 12)
    for row, length in enumerate(split.lengths.tolist()):
        mixed = np.concatenate(([0], 1 + np.random.default_rng(row).permutation(length - 1)))
        alone = subject(tokens[row : row + 1, mixed])[0, 0]
        torch.testing.assert_close(alone, found[row], atol=1e-5, rtol=0)
    weight = model.embed_tokens.weight
    ends = model.embed_tokens.ends
    assert weight.shape == (12 + 2 * 144, 64)
    torch.testing.assert_close(weight[search_task.EDGES + 12 * 3 + 7], ends[3] + ends[12 + 7])
    torch.testing.assert_close(weight[search_task.QUESTIONS + 12 * 3 + 7], ends[24 + 3] + ends[36 + 7])
    seen = Engine(subject).run(tokens, valid, read=("patterns",)).patterns[0]
    assert float((seen * (1 - valid)[:, None, None]).abs().max()) == 0.0
    assert float(seen[0, 0, 0, 1]) > 0, "no causal mask: the question sees edges behind it"


def test_the_study_of_search_runs(tmp_path, monkeypatch, quick):
    monkeypatch.setattr(search, "PROXIES", search.PROXIES[-2:])
    found = search.run(tmp_path, seeds=1, sequences=12, device="cpu", progress=lambda step: None,
                       recipe=Recipe(steps=1, learning_rate=1e-3))  # fmt: skip
    assert [one["lookahead"] for one in found.numbers["answered"]] == [1, 2, 3, 4, 5]
    for one in found.numbers["answered"]:
        assert one["right"] == one["back"][-1]
        assert sum(one["back"]) + one["other"] <= 1 + 1e-9
    points = found.shown.charts[0].series[-1]
    assert points.x == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_studies_are_known_by_their_names():
    assert {"induction", "repeated", "search"} <= {*organisms.names()}
