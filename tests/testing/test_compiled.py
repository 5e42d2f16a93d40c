"""Compiled programs: the interpreter against Python, models against the interpreter, edges against exchanges."""

import itertools
from collections import Counter
from zlib import crc32

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

import assay
from assay import AssayError
from assay.circuits import ExactEdges, Problem, Reference
from assay.engine import Engine
from assay.testing import check_architecture
from assay.testing.compiled import (
    KNOWN_PROGRAMS,
    Aggregate,
    Compiled,
    Count,
    Interpreted,
    Node,
    Positions,
    Program,
    Tokens,
    Zip,
    compile_program,
    effects,
    known_program,
)

SHORT = {"dyck1": 8, "sort-behind": 4}
"""Longest inputs that are tried, where all of the program's own would take long."""


def compiled(name: str, **options) -> Compiled:
    known = known_program(name)
    return compile_program(known.output, known.length, family=known.family, **options)


def every_input(program: Program, longest: int):
    for length in range(1, longest + 1):
        yield length, list(itertools.product(program.words, repeat=length))


def said(made: Compiled, inputs) -> torch.Tensor:
    with torch.no_grad():
        return made.subject.model(input_ids=torch.from_numpy(made.encode(inputs)[0])).logits[:, 1:]


def continued(part: tuple[str, ...]) -> str:
    places = [here for here in range(1, len(part)) if part[here - 1] == part[-1]]
    return part[places[-1]] if places else "none"


def bracket(part: tuple[str, ...]) -> str:
    depths = list(itertools.accumulate(1 if word == "(" else -1 for word in part))
    return "wrong" if min(depths) < 0 else "open" if depths[-1] else "closed"


def next_smallest(part: tuple[str, ...]) -> str:
    letters, asked = sorted(word for word in part if word in "abcd"), sum(word in "|_" for word in part)
    return letters[asked - 1] if 0 < asked <= len(letters) else "none"


SO_FAR = {
    "induction": continued,
    "own-count": lambda part: part.count(part[-1]),
    "maximum": max,
    "dyck1": bracket,
    "sort-behind": next_smallest,
}
WHOLE = {
    "reverse": lambda words: words[::-1],
    "histogram": lambda words: [Counter(words)[word] for word in words],
    "sort-by-ranks": sorted,
}


def by_python(name: str, words: tuple[str, ...]) -> list:
    """What a program means, written with Python's own tools."""
    if name in WHOLE:
        return list(WHOLE[name](words))
    return [SO_FAR[name](words[: place + 1]) for place in range(len(words))]


@pytest.mark.parametrize("name", KNOWN_PROGRAMS)
def test_programs_and_their_models_are_right_on_every_short_input(name):
    made = compiled(name)
    for _, inputs in every_input(made.program, min(made.program.length, SHORT.get(name, 6))):
        outputs = made.outputs(inputs)[:, 1:]
        means = [[made.token(value) for value in by_python(name, words)] for words in inputs]
        assert (outputs == np.array(means)).all()
        logits = said(made, inputs)
        right = torch.from_numpy(outputs)
        assert (logits.argmax(dim=-1) == right).all()
        ahead = logits.gather(2, right[..., None])[..., 0] - logits.scatter(2, right[..., None], -torch.inf).amax(
            dim=-1
        )
        assert float((ahead - 30).abs().max()) < 0.01


def code(value) -> int:
    return crc32(repr(value).encode()) % 64


def drawn(seed: int) -> tuple[Node, int]:
    """A random program of some nodes."""
    rng = np.random.default_rng(seed)
    now, place = Tokens(("a", "b", "c")), Positions()
    known: list[Node] = [now, place]
    node: Node = now
    for _ in range(int(rng.integers(3, 6))):
        one, two, three = (known[int(number)] for number in rng.integers(len(known), size=3))
        table = rng.random((64, 64)) < 0.5
        codes = rng.integers(4, size=(64, 64))

        def selects(key, query, table=table) -> bool:
            return bool(table[code(key), code(query)])

        def coded(one, other, codes=codes) -> int:
            return int(codes[code(one), code(other)])

        def preferred(key, codes=codes) -> float:
            return float(codes[code(key), 0])

        kind = rng.integers(4)
        if kind == 0:
            node = Count(one, two, selects, 5)
        elif kind == 1:
            node = Zip(coded, one, two)
        elif kind == 2:
            node = Aggregate(
                one, two, selects, three, "x", prefer=lambda key, codes=codes: float(codes[hash((key, 4)) % 64, 0])
            )
        else:
            node = Aggregate(one, two, selects, three, 1)
        known.append(node)
    return Zip(lambda one, other: (code(one) + code(other)) % 7, node, now), 5


@pytest.mark.parametrize("family", ["gpt2", "bert"])
@pytest.mark.parametrize("seed", range(12))
def test_random_programs_are_computed_exactly(family, seed):
    output, length = drawn(seed)
    made = compile_program(output, length, family=family, rotated=seed if seed % 2 else None, dtype=torch.float64)
    for _, inputs in every_input(made.program, 4):
        right = torch.from_numpy(made.outputs(inputs)[:, 1:])
        assert (said(made, inputs).argmax(dim=-1) == right).all()


def test_padding_and_attention_functions_change_nothing():
    for name in ("induction", "reverse"):
        made = compiled(name)
        inputs = [("a", "b", "c", "a", "b"), ("c",), ("b", "b")]
        tokens, lengths = made.encode(inputs)
        valid = torch.arange(tokens.shape[1])[None] < torch.from_numpy(lengths)[:, None]
        right = made.outputs(inputs)
        for one in (made.subject, Engine(made.subject).subject):
            logits = one(torch.from_numpy(tokens), valid.long())
            for row, words in enumerate(inputs):
                here = slice(1, 1 + len(words))
                assert (logits[row, here].argmax(dim=-1).numpy() == right[row, here]).all()


@pytest.mark.parametrize("name", ["induction", "sort-by-ranks"])
def test_layer_norms_are_the_identity(name):
    made = compiled(name, dtype=torch.float64)
    seen = []
    for module in made.subject.model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.register_forward_hook(lambda module, given, out: seen.append((given[0], out)))
    said(made, [("a", "b", "a", "c")])
    # The last of an encoder is within its head, behind a ReLU, and takes a mean off.
    for given, out in seen[:-1]:
        assert float((out - given).abs().max()) <= 1e-9 * float(given.abs().max())


def test_saved_models_are_the_same_to_the_bit(tmp_path):
    made = compiled("induction")
    made.subject.model.save_pretrained(tmp_path)
    again = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    tokens = torch.from_numpy(made.encode([("a", "b", "a")])[0])
    with torch.no_grad():
        assert torch.equal(again(input_ids=tokens).logits, made.subject.model(input_ids=tokens).logits)


# -- edges -----------------------------------------------------------------------------------------------------------

LIVE = {
    "induction": {
        "embeddings -> layer0.head0.values", "layer0.head0 -> layer1.head0.keys", "embeddings -> layer1.head0.queries",
        "embeddings -> layer1.head0.values", "layer1.head0 -> logits",
    },
    "own-count": {
        "embeddings -> layer0.head0.queries", "embeddings -> layer0.head0.keys", "layer0.head0 -> layer0.mlp",
        "layer0.mlp -> logits",
    },
    "maximum": {"embeddings -> layer0.head0.keys", "embeddings -> layer0.head0.values", "layer0.head0 -> logits"},
}  # fmt: skip


@pytest.mark.parametrize("rotated", [None, 3], ids=["plain", "rotated"])
@pytest.mark.parametrize("name", LIVE)
def test_edges_that_an_exchange_shows_are_those_that_were_meant(name, rotated):
    made = compiled(name, dtype=torch.float64, rotated=rotated)
    found = effects(made, made.task().split("train", 300))
    assert {edge for edge, share in found.items() if share} == LIVE[name]
    assert LIVE[name] <= {*made.edges} <= {*found}


def test_edges_that_are_not_declared_are_inert():
    made = compiled("dyck1", dtype=torch.float64)
    found = effects(made, made.task().split("train", 40))
    assert max(share for edge, share in found.items() if edge not in made.edges) == 0
    assert sum(share > 0 for share in found.values()) == 10


@pytest.mark.parametrize("name", ["induction", "own-count", "maximum", "dyck1"])
def test_edge_patching_gives_no_effect_to_what_is_not_declared(name):
    """The discovery of circuits, by the engine, against what was compiled."""
    made = compiled(name, dtype=torch.float64)
    split = made.task().split("train", 60)
    engine = Engine(made.subject)
    problem = Problem(engine, split, Reference.fitted(engine, "counterfactual", split))
    scores = ExactEdges().scores(problem)
    graph = problem.wiring.graph
    found = {f"{graph.senders[s]} -> {graph.receivers[r]}": scores[s, r] for s, r in np.argwhere(graph.exists)}
    shares = effects(made, split)
    assert found.keys() == shares.keys()
    for edge, score in found.items():
        assert abs(score) < 1e-6 or edge in made.edges, edge
        assert abs(score) > 0.1 or not shares[edge], edge


# -- judging ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide() -> Compiled:
    known = known_program("own-count", length=8, words=6)
    return compile_program(known.output, known.length)


def test_the_program_is_an_exact_explanation_of_its_model(wide):
    comparison = assay.compare(wide.subject, wide.task(), [Interpreted(wide)], progress=False)
    (verdict,) = comparison.verdicts()
    assert verdict.judgement == "faithful"
    assert (verdict.agreement, verdict.gap) == (1, 0)
    results = comparison.results
    results = results[(results["kind"] == "all") & (results["feature"] == "") & results["trained"]]
    own = results[~results["is_control"]].set_index("metric")
    assert own.loc["kl", "estimate"].max() < 1e-9
    assert (own.loc["same_prediction", "estimate"] == 1).all()


def test_a_planted_error_is_measured_as_large_as_it_is(wide):
    few = {*wide.program.words[:2]}
    task = wide.task()
    recipe = Interpreted(wide, wrong=0.3, where=lambda words: {*words} <= few)
    comparison = assay.compare(wide.subject, task, [recipe], sequences=400, controls=False, progress=False)
    gaps = comparison.gaps()
    gap = gaps[gaps["split"] == "few"].iloc[0]
    assert gap["low"] <= 0.3 <= gap["high"]
    split = task.split("few", 400)
    rows = [[wide.names[token - 1] for token in row[1:length]]
            for row, length in zip(split.tokens.tolist(), split.lengths.tolist(), strict=True)]  # fmt: skip
    scored = (split.kinds >= 0).sum(axis=1)
    wrong = np.array([recipe.is_wrong(words) for words in rows])
    results = comparison.results
    row = results[(results["metric"] == "same_prediction") & (results["split"] == "few") & (results["kind"] == "all")
                  & (results["feature"] == "") & results["trained"]].iloc[0]  # fmt: skip
    assert row["estimate"] == pytest.approx(1 - (scored * wrong).sum() / scored.sum(), abs=1e-9)


def test_a_compiled_encoder_is_judged_as_well():
    known = known_program("histogram", length=8, words=6)
    made = compile_program(known.output, known.length, family="bert")
    comparison = assay.compare(made.subject, made.task(), [Interpreted(made)], sequences=300, progress=False)
    (verdict,) = comparison.verdicts()
    assert (verdict.agreement, verdict.gap) == (1, 0)
    assert verdict.judgement in {"faithful", "inconclusive"}


def test_a_compiled_model_can_be_checked_as_an_architecture():
    """It has fewer positions than are tried elsewhere; it used to end in an IndexError."""
    assert check_architecture(compiled("own-count").subject.model).layers == 1
    assert check_architecture(compiled("histogram").subject.model).layers == 1
    with pytest.raises(AssayError, match="reads 6 tokens; this reads 4"):
        check_architecture(compile_program(known_program("own-count").output, 3).subject.model)


# -- what is refused -------------------------------------------------------------------------------------------------

NOW = Tokens(("a", "b"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: compile_program(Zip(lambda a: 1 / 0, NOW), 3), "a function fails on 'a'"),
        (lambda: compile_program(Count(NOW, NOW, lambda a, b: a.x, 3), 3), "a predicate fails on 'a', 'a'"),
        (lambda: compile_program(NOW, 0), "length is 0"),
        (lambda: compile_program(Aggregate(NOW, NOW, lambda a, b: True, NOW, "x", float), 3), "a preference fails"),
        (lambda: compile_program(Positions(), 3), "reads no words"),
        (lambda: compile_program(Zip(lambda a, b: a, NOW, Tokens(("a", "c"))), 3), "the same words"),
        (lambda: compile_program(Zip(lambda a: [a], NOW), 3), "hashable"),
        (lambda: compile_program(Count(NOW, NOW, lambda a, b: True, 0), 3), "most=0"),
        (lambda: compile_program(NOW, 3, family="llama"), "family 'llama'"),
        (lambda: compile_program(NOW, 3, dtype=torch.float16), "float16"),
        (lambda: compile_program(NOW, 3, sharpness=0), "sharpness is 0"),
        (lambda: compile_program(Zip(lambda a, b: (a, b), Positions(), Zip(lambda a, b: (a, b), NOW, Positions())), 80),
         "domains multiply"),
        (lambda: compiled("own-count").program(["a", "x"]), "'x' is no word"),
        (lambda: compiled("own-count").program(["a"] * 8), "8 words were given"),
        (lambda: compiled("own-count").program([]), "0 words were given"),
        (lambda: compile_program(Count(NOW, NOW, lambda a, b: True, 2), 3).program(["a"] * 3), "counts 3"),
        (lambda: compiled("own-count").task().split("unseen", 3), "split 'unseen'"),
        (lambda: compiled("own-count").task().split("iid", 0), "at least 1"),
        (lambda: effects(compiled("reverse"), compiled("reverse").task().split("iid", 3)), "family 'gpt2'"),
        (lambda: known_program("sort"), "program 'sort'"),
        (lambda: Interpreted(compiled("own-count"), wrong=1.5), "must be a share"),
        (lambda: Interpreted(compiled("own-count")).apply(compiled("dyck1").subject), "was compiled to"),
    ],
    ids=["function", "predicate", "length", "prefer", "words", "alphabet", "hash", "most", "family", "half", "sharp",
         "wide", "word", "long", "none", "counts", "split", "sequences", "effects", "known", "share", "other"],
)  # fmt: skip
def test_what_cannot_be_compiled_is_refused(make, words):
    with pytest.raises(AssayError, match=words):
        make()
