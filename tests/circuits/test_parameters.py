"""Every parameter of circuits and of the methods that find them: what is of another type or out of range is refused."""

import dataclasses
import inspect
from dataclasses import replace

import numpy as np
import pytest
from planted_task import Induction
from small_subjects import pairs, problem_of, subject_of

from assay import AssayError
from assay.circuits import AllAblated, Circuit, Edge, Graph, RandomCircuit, discoveries
from assay.engine import Samples

NAN, INF = float("nan"), float("inf")
NO_WHOLE = (0, -1, 2.5, NAN, INF, "5", None, True, [5], np.float64(5.0), np.ones((40, 2)))
NO_SEED = (-1, 2.5, NAN, "5", None, True)
NO_NAME = ("no-such", "", 5, None, True, ["mean"], np.ones((40, 2)))
NO_RULE = (*NO_NAME, "midpoints")

WRONG = {
    "circuit": {
        "edges": (*NO_WHOLE[2:-1], 0, -1, 47, 10**30, "embeddings -> logits", b"x", [], [None], ["nonsense"], {"a"}),
        "method": (5, None, True, "no-such", Circuit, slice(3), ["eap"], np.ones(3)),
        "ablation": NO_NAME,
        "measure": NO_NAME,
        "rank": NO_NAME,
        "level": NO_NAME,
        "name": (5, None, b"x", ["name"], NAN),
        "seed": NO_SEED,
        "found": (5, "exact", {}, Graph(2, 2, 2)),
    },
    "random": {"of": (None, 5, "circuit", AllAblated()), "seed": NO_SEED},
    "ablated": {"ablation": NO_NAME, "seed": NO_SEED},
    "cd-t": {},
    "discrete-codes": {
        "features": NO_WHOLE,
        "score": NO_NAME,
        "classes": NO_NAME,
        "penalty": (-0.1, NAN, INF, "0.1", None, True, [0.1], 1j),
        "steps": NO_WHOLE,
        "seed": NO_SEED,
    },
    "eap": {},
    "eap-ig": {"steps": NO_WHOLE, "rule": NO_RULE},
    "eap-ig-activations": {"steps": NO_WHOLE, "rule": NO_RULE},
    "exact": {"screen": NO_WHOLE},
    "exact-nodes": {},
    "gim": {"temperature": (0.5, 0, -1, NAN, INF, "2", None, True, [2.0], 2j)},
    "greedy": {"threshold": (0, -0.1, NAN, INF, "0.1", None, True, [0.1])},
    "information-flow": {},
    "mask-ig": {"steps": NO_WHOLE, "rule": NO_RULE},
    "observable": {},
    "path-interventions": {"rate": (0, 1, -0.1, 1.1, NAN, INF, "0.1", None, True, [0.1], 1j)},
    "ships": {"without": NO_NAME, "plain": (5, "iid", [1], np.ones((40, 2))), "contrast": (0, 1, "no", None, NAN)},
}

RIGHT = {
    "circuit": {"edges": (np.int64(5), np.uint8(5), [Edge("embeddings", "logits")], ("embeddings -> logits",))},
    "discrete-codes": {"features": (np.int64(4),), "penalty": (0, np.float32(0.1)), "seed": (np.int64(3),)},
    "eap-ig": {"steps": (np.int64(2),)},
    "exact": {"screen": (np.int64(46),)},
    "gim": {"temperature": (np.float32(2), 2)},
    "greedy": {"threshold": (np.float32(0.1), 1)},
    "path-interventions": {"rate": (np.float64(0.1),)},
    "ships": {"contrast": (np.bool_(False),), "plain": (None,)},
}


@pytest.fixture(scope="module")
def subject():
    return subject_of("gpt2")


@pytest.fixture(scope="module")
def train():
    return replace(pairs(40), name="train", role="train")


@pytest.fixture(scope="module")
def problem(subject, train):
    return problem_of(subject, train)


def made(kind, **parameters):
    """A circuit, a control of one or a discovery method, with one parameter that is another.

    It is put in place afterwards: in tests, and only there, arguments of another type do not get as far as our checks.
    """
    makers = {
        "circuit": lambda: Circuit(edges=5, method="eap"),
        "random": lambda: RandomCircuit(Circuit(5, method="eap")),
        "ablated": AllAblated,
    }
    found = makers[kind]() if kind in makers else discoveries.get(kind)()
    for name, value in parameters.items():
        setattr(found, name, value)
    getattr(found, "__post_init__", lambda: None)()
    return found


def checked(kind, problem, **parameters):
    """What says before any work whether it can be done."""
    found = made(kind, **parameters)
    if kind in ("circuit", "random", "ablated"):
        found.check(problem.engine.subject, [problem.split])
    else:
        found.check(problem)


def cases(table):
    return [(kind, name, value) for kind, own in table.items() for name, values in own.items() for value in values]


def test_no_parameter_is_left_out():
    assert set(WRONG) == {"circuit", "random", "ablated", *discoveries}
    for kind, own in WRONG.items():
        assert set(own) == set(inspect.signature(type(made(kind))).parameters)
        assert set(own) == {field.name for field in dataclasses.fields(made(kind)) if field.init}


@pytest.mark.parametrize(("kind", "name", "value"), cases(WRONG), ids=str)
def test_what_it_cannot_be_is_refused_with_what_was_given(problem, kind, name, value):
    with pytest.raises(AssayError) as error:
        checked(kind, problem, **{name: value})
    message = str(error.value)
    words = {"without": "way to take a head out", "edges": "edge"}.get(name, name)
    assert words in message
    given = value if isinstance(value, str) else " ".join(repr(value).split())[:50]
    # What is long, and no plain value, is named by its type.
    kind = value.__name__ if isinstance(value, type) else type(value).__name__
    assert given.strip("[]") in message or kind in message
    assert "\n" not in message
    assert len(message) < 300


@pytest.mark.parametrize(("kind", "name", "value"), cases(RIGHT), ids=str)
def test_what_is_a_number_of_numpys_is_taken(problem, kind, name, value):
    checked(kind, problem, **{name: value})


@pytest.fixture(scope="module")
def planted():
    """Samples of a subject that does something to its pairs, and of a graph of 46 edges as well."""
    return Samples((), subject=Induction.subject(), split=Induction().split("train", 40))


def test_a_number_of_numpys_is_the_same_number(planted):
    circuit = made("circuit", edges=np.int64(5), seed=np.int64(2))
    assert circuit == Circuit(5, method="eap", seed=2)
    assert repr(circuit) == repr(Circuit(5, method="eap", seed=2))
    assert circuit.fit(planted).kept_.sum() == 5


def test_edges_may_be_given_as_they_were_found(planted):
    found = Circuit(5, method="eap").fit(planted)
    again = Circuit(found.edges_).fit(planted)
    assert np.array_equal(again.kept_, found.kept_)
    assert again.bits_ == found.bits_


@pytest.mark.parametrize("value", [3.5, "5", None, {"a"}])
def test_wrong_edges_are_refused_without_a_fit_too(subject, value):
    with pytest.raises(AssayError, match="a whole number or a list of strings or Edges"):
        made("circuit", edges=value).apply(subject)


# -- whole heads ----------------------------------------------------------------------------------------------------


def test_whole_heads_that_cannot_hold_the_embeddings_edges_are_refused(planted):
    out = int(Graph(2, 2, 2).exists[0].sum())
    for edges in (1, out - 1):
        with pytest.raises(AssayError, match=f"without which nothing is on a path, have {out}; edges must be {out}"):
            Circuit(edges, method="eap", level="heads").check(planted.subject, [planted.split])
    circuit = Circuit(out, method="eap", level="heads").fit(planted)
    assert circuit.kept_.sum() == out
    assert circuit.pruned_ == 1, "embeddings -> logits is a path"
    with pytest.raises(AssayError, match=f"edges must be {out} to"):
        circuit.of_size(out - 1)


@pytest.mark.parametrize("method", ["eap", "exact-nodes", "information-flow", "ships"])
@pytest.mark.parametrize("rank", ["absolute", "helpful"])
def test_no_circuit_of_whole_heads_is_empty(planted, method, rank):
    """Whatever ranks first: without the embeddings' edges nothing else is on a path."""
    circuit = Circuit(46, method=method, level="heads", rank=rank).fit(planted)
    sizes = circuit.sizes_
    assert sizes[0] == circuit.graph_.exists[0].sum()
    assert sizes[-1] == 46
    for size in sizes:
        assert circuit.of_size(size).pruned_ > 0


# -- what means by position and other sequences reach ---------------------------------------------------------------


def long(split, name, role, extra):
    """The split with longer sequences."""
    wide = {}
    for part in ("tokens", "counterfactuals", "kinds", "answers", "foils"):
        own = getattr(split, part)
        mode = "edge" if part in ("tokens", "counterfactuals") else "minimum"
        wide[part] = np.pad(own, ((0, 0), (extra, 0), *((0, 0),) * (own.ndim - 2)), mode=mode)
    return replace(split, name=name, role=role, lengths=split.lengths + extra, **wide)


@pytest.mark.parametrize("ablation", ["position", "resample"])
@pytest.mark.parametrize("circuit", ["found", "given", "all"])
def test_splits_that_are_out_of_reach_are_refused_before_any_work(subject, train, ablation, circuit):
    recipe = {
        "found": Circuit(5, method="exact", ablation=ablation),
        "given": Circuit(["embeddings -> logits"], ablation=ablation),
        "all": AllAblated(ablation),
    }[circuit]
    near, far = long(train, "iid", "iid", 0), long(train, "unseen_long", "shift", 3)
    recipe.check(subject, [train, near])
    with pytest.raises(AssayError) as error:
        recipe.check(subject, [train, near, far])
    words = str(error.value)
    assert "split 'unseen_long' has sequences of up to 10 tokens" in words
    assert {"position": "fitted on 'train' has means of positions 0 to 6",
            "resample": "fitted on 'train' has sequences of up to 7 tokens"}[ablation] in words  # fmt: skip
    for other in ("mean", "zero"):
        replace(recipe, ablation=other).check(subject, [train, near, far])


def test_what_is_left_of_a_shift_has_to_reach_the_shift(subject, train):
    """It is fitted on as well, for the refit control: a second split of its name."""
    judged = long(train, "other", "shift", 0)
    rest = judged.take(np.flatnonzero(judged.lengths < 7))
    recipe = Circuit(5, method="exact", ablation="position")
    recipe.check(subject, [train, judged, judged])
    with pytest.raises(AssayError, match=r"split 'other' has sequences of up to 7 tokens, .* has means of"):
        recipe.check(subject, [train, judged, rest])


def test_a_sequence_without_another_one_to_draw_is_named(subject, train):
    (longest, *rest) = np.flatnonzero(train.lengths == 7)
    alone = train.take(np.setdiff1d(np.arange(len(train)), rest))
    where = int(np.flatnonzero(alone.lengths == 7)[0])
    with pytest.raises(AssayError, match=f"sequence {where} of split 'train' has 7 tokens, and 'train'"):
        Circuit(5, method="exact", ablation="resample").check(subject, [alone])
    given = Circuit(["embeddings -> logits"], ablation="resample")
    given.check(subject, [alone, replace(train.take(np.array(rest)), name="iid", role="iid")])
    with pytest.raises(AssayError, match="sequence 0 of split 'iid'"):
        given.check(subject, [alone, replace(train.take(np.array([longest])), name="iid", role="iid")])
