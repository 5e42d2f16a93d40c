"""Planted circuits, neurons and atoms are what they are said to be: seen by weights, not by what is tested on them."""

import copy

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from assay import AssayError
from assay.circuits import ExactEdges, Problem, Reference, measured
from assay.engine import Engine
from assay.tasks import Task
from assay.testing import planted
from assay.testing._planted_circuits import UNDONE
from assay.testing._planted_dictionary import ACTIVE, ATOMS, DIRECTIONS, WORDS
from assay.testing._planted_neurons import MARGIN, MODULUS


def last_logits(model, tokens):
    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits[:, -1]


# -- circuits -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undoing():
    return planted.cancelling(pairs=30)


def without_heads(subject, heads):
    """The subject with what some heads (layer, head) write set to 0, in the weights."""
    model = copy.deepcopy(subject.model)
    size = model.config.n_embd // model.config.n_head
    with torch.no_grad():
        for layer, head in heads:
            model.transformer.h[layer].attn.c_proj.weight[head * size : (head + 1) * size] = 0
    return model


def test_two_heads_undo_each_other_and_one_is_dormant(undoing):
    tokens, answers = undoing.pairs.tokens, torch.from_numpy(undoing.pairs.answers[:, -1])
    own = last_logits(undoing.subject.model, tokens)
    foils = torch.from_numpy(undoing.pairs.foils[:, -1])
    rows = torch.arange(len(tokens))
    ahead = {}
    for heads in ([], [(1, 2)], [(1, 3)], [(1, 2), (1, 3)], [(0, 1)], [(1, 0)]):
        found = last_logits(without_heads(undoing.subject, heads), tokens)
        ahead[tuple(heads)] = (found[rows, answers] - found[rows, foils]).mean().item()
        if len(heads) == 2 or heads == [(0, 1)]:
            assert (found - own).abs().max() < 1e-12, heads
    whole = ahead[()]
    assert whole > 5
    assert ahead[(1, 2),] == pytest.approx((1 - UNDONE) * whole)
    assert ahead[(1, 3),] == pytest.approx((1 + UNDONE) * whole)
    assert ahead[(1, 0),] == pytest.approx(0, abs=1e-9)


def test_the_dormant_head_attends_as_the_one_that_matters(undoing):
    model = copy.deepcopy(undoing.subject.model)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        patterns = model(torch.from_numpy(undoing.pairs.tokens), output_attentions=True).attentions[0]
    assert torch.equal(patterns[:, 0], patterns[:, 1])
    assert patterns[:, 1].diagonal(offset=-1, dim1=1, dim2=2).min() > 1 - 1e-12


def problem(known):
    engine = Engine(known.subject)
    return Problem(engine, known.pairs, Reference.fitted(engine, "counterfactual", known.pairs), "logit_difference")


def with_an_effect(known):
    asked = problem(known)
    graph, scores = asked.wiring.graph, ExactEdges().scores(asked)
    return {f"{graph.senders[a]} -> {graph.receivers[b]}" for a, b in np.argwhere(np.abs(np.nan_to_num(scores)) > 1e-9)}


def test_single_edges_see_what_is_undone_and_the_circuit_needs_none_of_it(undoing):
    assert with_an_effect(undoing) == {*undoing.edges, *undoing.undone}
    asked = problem(undoing)
    graph = asked.wiring.graph
    kept = [graph.matrix(list(edges)) for edges in (undoing.edges, (*undoing.edges, *undoing.undone))]
    for values in measured(asked, kept):
        np.testing.assert_allclose(values, asked.baseline[0], atol=1e-9)
    assert graph.size == 110


def test_where_nothing_is_planted_no_edge_has_an_effect():
    known = planted.nothing(pairs=20)
    assert with_an_effect(known) == set() == set(known.edges)
    own, other = (last_logits(known.subject.model, part) for part in (known.pairs.tokens, known.pairs.counterfactuals))
    assert (own - other).abs().max() < 1e-12
    assert (own.argmax(dim=-1).numpy() == known.pairs.answers[:, -1]).all()
    assert (known.pairs.tokens != known.pairs.counterfactuals).any(axis=1).all()


@pytest.mark.parametrize("make", [planted.cancelling, planted.nothing], ids=["cancelling", "nothing"])
def test_no_pair_is_refused(make):
    with pytest.raises(AssayError, match="give at least one pair"):
        make(pairs=0)


# -- neurons --------------------------------------------------------------------------------------------------------

NEURONS = {
    "memoriser": planted.memoriser(),
    "few": planted.memoriser(3, seed=5),
    "wrapper": planted.wrapper(),
    "thin": planted.wrapper(1, seed=2),
}


@pytest.fixture(scope="module", params=NEURONS)
def known(request):
    return NEURONS[request.param]


def answered(subject, tokens):
    with torch.no_grad():
        return subject(torch.from_numpy(tokens))[:, 3, :MODULUS]


def test_neurons_are_in_an_ordinary_model_that_is_always_right(known, tmp_path):
    assert type(known.subject.model) is GPT2LMHeadModel
    assert isinstance(known.task, Task)
    split = known.task.everything()
    said = answered(known.subject, split.tokens)
    assert (said.argmax(dim=-1).numpy() == split.tokens[:, 4]).all()
    plain = split.kinds[:, 3] == 0
    sums = (split.tokens[:, 0] + split.tokens[:, 1]) % MODULUS  # the second number is MODULUS higher
    assert (split.tokens[plain, 4] == sums[plain]).all()
    top = said[plain].topk(2, dim=-1).values
    torch.testing.assert_close(top[:, 0] - top[:, 1], torch.full((plain.sum(),), MARGIN, dtype=torch.float64))


def test_without_the_planted_neurons_it_is_the_base_and_with_any_other_set_it_is_not(known):
    split = known.task.everything()
    other = split.kinds[:, 3] == 1
    own, base = answered(known.subject, split.tokens), answered(known.base, split.tokens)
    pruned = answered(known.without(known.neurons), split.tokens)
    torch.testing.assert_close(pruned, base, rtol=0, atol=1e-12)
    torch.testing.assert_close(base[~other], own[~other], rtol=0, atol=1e-9)
    assert (base.argmax(dim=-1) == own.argmax(dim=-1))[other].double().mean() == pytest.approx(known.agreement)
    sums = (split.tokens[:, 0] + split.tokens[:, 1]) % MODULUS
    assert (base.argmax(dim=-1).numpy() == sums).all()
    assert known.subject.weights_sha256 != known.base.weights_sha256


def test_a_memorising_neuron_is_one_answer_and_any_neuron_of_a_wrapper_is_all_of_it(known):
    split = known.task.everything()
    own, base = answered(known.subject, split.tokens), answered(known.base, split.tokens)
    changed = []
    for neuron in known.neurons:
        found = answered(known.without([neuron]), split.tokens)
        moved = (found - own).abs().amax(dim=-1) > 1e-9
        changed.append(moved)
        torch.testing.assert_close(found[moved], base[moved], rtol=0, atol=1e-9)
    expected = (split.kinds[:, 3] == 1).sum()
    if "memoriser" in known.subject.name:
        assert [int(one.sum()) for one in changed] == [1] * len(known.neurons)
        assert int(torch.stack(changed).any(dim=0).sum()) == expected == len(known.neurons)
    else:
        assert {int(one.sum()) for one in changed} == {expected}
        assert [layer for layer, _ in known.neurons] == list(range(known.subject.model.config.n_layer))


def test_sums_are_drawn_as_often_as_said(known):
    task = known.task
    for name, share in (("train", task.usual), ("iid", task.usual), (task.shift, 1.0)):
        split = task.split(name, 4_000)
        error = (share * (1 - share) / 4_000) ** 0.5
        assert abs((split.kinds[:, 3] == 1).mean() - share) <= 4 * error, name
        assert (task.split(name, 100).tokens == split.tokens[:100]).all()
    assert (task.split("train", 500).tokens != task.split("iid", 500).tokens).any()


def test_neurons_that_cannot_be_planted_are_refused(known):
    with pytest.raises(AssayError, match=r"memorised=0\): must be 1 to 60"):
        planted.memoriser(0)
    with pytest.raises(AssayError, match="layers=0"):
        planted.wrapper(0)
    with pytest.raises(AssayError, match="unknown split"):
        known.task.split("shift", 5)
    with pytest.raises(AssayError, match="at least 1"):
        known.task.split("iid", 0)


# -- atoms ----------------------------------------------------------------------------------------------------------


def pursuit(atoms, vectors, active):
    """Orthogonal matching pursuit, one vector after the other."""
    codes = np.zeros((len(vectors), len(atoms)))
    for row, vector in enumerate(vectors):
        chosen, rest = [], vector
        for _ in range(active):
            chosen.append(int(np.abs(atoms @ rest).argmax()))
            found, *_ = np.linalg.lstsq(atoms[chosen].T, vector, rcond=None)
            rest = vector - found @ atoms[chosen]
        codes[row, chosen] = found
    return codes


def test_atoms_are_incoherent_enough_for_pursuit_and_it_finds_every_sum():
    task = planted.SparseSums()
    gram = task.atoms @ task.atoms.T
    assert np.abs(gram - np.eye(ATOMS)).max() < 1 / (2 * ACTIVE - 1)
    np.testing.assert_allclose(np.diag(gram), 1)
    np.testing.assert_allclose(task.atoms.sum(axis=1), 0, atol=1e-12)
    assert np.linalg.matrix_rank(task.atoms) == DIRECTIONS
    for name in task.split_names:
        supports, coefficients = task.sums(name)
        wanted = np.zeros((200, ATOMS))
        np.put_along_axis(wanted, supports[:200], coefficients[:200], axis=1)
        np.testing.assert_allclose(pursuit(task.atoms, task.vectors(name)[:200], ACTIVE), wanted, atol=1e-9)


def test_the_model_has_the_sums_in_its_stream_and_names_the_leading_atom():
    task = planted.SparseSums(seed=3)
    subject = task.subject()
    assert isinstance(task, Task)
    assert type(subject.model) is GPT2LMHeadModel
    for name in task.split_names:
        split = task.split(name, 60)
        with torch.no_grad():
            out = subject.model(torch.from_numpy(split.tokens), output_hidden_states=True)
        assert (out.logits.argmax(dim=-1).numpy() == split.answers).all()
        before = ATOMS + sum(WORDS[other] for other in task.split_names[: task.split_names.index(name)])
        np.testing.assert_allclose(out.hidden_states[0].numpy(), task.vectors(name)[split.tokens - before], atol=1e-5)
        np.testing.assert_allclose(out.hidden_states[0], out.hidden_states[1], atol=1e-6)
    assert (task.split("iid", 60).tokens != planted.SparseSums(seed=4).split("iid", 60).tokens).any()


def test_leading_atoms_meet_others_under_the_shift():
    task = planted.SparseSums()
    for name in task.split_names:
        supports, _ = task.sums(name)
        odd = ((supports[:, :1] + supports[:, 1:]) % 8 == 0).any(axis=1)
        assert odd.all() if name == "combinations" else not odd.any()
        assert set(supports[:, 0]) == set(range(ATOMS))


def test_recovery_is_whole_for_the_atoms_and_not_for_their_opposites():
    task = planted.SparseSums()
    assert task.recovery(3 * task.atoms[::-1]) == pytest.approx((1, 1))
    mean, share = task.recovery(np.concatenate((task.atoms[:16], -task.atoms[16:])))
    assert share == pytest.approx(16 / 64)
    assert mean < 0.5
    floor, none = task.recovery(np.random.default_rng(0).normal(size=(64, DIRECTIONS + 1)))
    assert 0.2 < floor < 0.6
    assert none == 0
    with pytest.raises(AssayError, match="unknown split"):
        task.split("shift", 3)
    with pytest.raises(AssayError, match="at least 1"):
        task.split("iid", 0)
