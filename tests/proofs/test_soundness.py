"""No certificate is above the truth: tiny models against enumeration in exact arithmetic."""

import re
from functools import partial
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import barely_tied, extreme_models, tiny_inputs, tiny_models

import assay
from assay.proofs import REMAINDERS, STRATEGIES, Operations, certify
from assay.proofs.attention import _groups, _subcubic
from assay.proofs.attention._count import count_groups
from assay.proofs.attention._groups import Cell, Group
from assay.proofs.attention._remainders import Circuit, max_diff, mean_diff, recursive, svd
from assay.proofs.attention._search import count_wrong
from assay.proofs.attention._tables import make_tables, read_weights, score_matrices
from assay.tasks import InputSet
from assay.testing.fuzz._models import attention_subject, tabular_subject
from assay.testing.fuzz._truth import AttentionTruth

QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def certified(subject, **keywords):
    """A certificate, or None where scores or logits leave the range of certificates."""
    try:
        return certify(subject, **keywords)
    except assay.AssayError as error:
        if any(reason in str(error) for reason in ("2^40", "span a factor", "the logits differ")):
            return None
        raise


def never_above_the_truth(subject, data):
    inputs = data.draw(tiny_inputs(subject))
    truth = AttentionTruth(subject).count(inputs)
    for strategy in STRATEGIES:
        options = {
            "grid": data.draw(st.sampled_from([8, 64, 1024, 2**20])),
            "search": data.draw(st.sampled_from([0, 0, 8, 2**18])),
            "two_sided": data.draw(st.booleans()),
        }
        remainder = data.draw(st.sampled_from(sorted(REMAINDERS)))
        block = data.draw(st.sampled_from([2, 3, 8]))
        own = {"separable": options, "subcubic-low-rank": {"remainder": remainder}}.get(strategy, {})
        with patch.object(_groups, "_BLOCK", block):
            certificate = certified(subject, strategy=strategy, inputs=inputs, **own)
        if certificate is None:
            continue
        assert certificate.at_least <= truth <= certificate.at_most, (strategy, truth, certificate)
        certificate.verify(subject)


@settings(max_examples=30, deadline=None, suppress_health_check=QUIET)
@given(subject=st.one_of(tiny_models(), extreme_models()), data=st.data())
def test_a_certificate_is_never_above_the_truth(subject, data):
    never_above_the_truth(subject, data)


@pytest.mark.parametrize("tokens", [8, 9, 17])
@pytest.mark.parametrize("scale", [0.1, 0.4, 0.8])
def test_of_more_tokens_than_a_block_has_the_exact_count_is_the_truth(tokens, scale):
    rng = np.random.default_rng(tokens)
    shapes = {"W_E": (tokens, 3), "W_pos": (2, 3), "W_Q": (3, 1), "W_K": (3, 1), "W_V": (3, 1), "W_O": (1, 3)}
    arrays = {name: rng.normal(0, scale, shape) for name, shape in shapes.items()}
    arrays["W_U"] = arrays["W_E"].T + rng.normal(0, 0.1, (3, tokens))
    subject = attention_subject(arrays, 2)
    for inputs in (InputSet(2, tokens), InputSet(2, tokens, minimum_maximum=5, within=3)):
        truth = AttentionTruth(subject).count(inputs)
        for strategy in ("separable", "exact"):
            certificate = certify(subject, strategy=strategy, inputs=inputs)
            assert certificate.at_least <= truth <= certificate.at_most
            assert strategy == "separable" or certificate.at_least == truth
            certificate.verify(subject)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=4000, deadline=None, suppress_health_check=QUIET)
@given(subject=st.one_of(tiny_models(), extreme_models()), data=st.data())
def test_a_certificate_is_never_above_the_truth_at_length(subject, data):
    never_above_the_truth(subject, data)


def test_a_model_without_weights_ties_everywhere_and_is_never_correct():
    subject = attention_subject({"W_E": np.zeros((3, 2))}, 3)
    for strategy in STRATEGIES:
        assert certify(subject, strategy=strategy).at_least == 0


def test_equal_outputs_tie():
    subject = attention_subject({"W_E": np.array([[0.0], [1.0]]), "W_U": np.array([[1.0, 1.0]])}, 2)
    assert certify(subject, strategy="exact").at_least == 0


def test_a_model_that_copies_its_last_token():
    # Orthogonal tokens, no attention output: the prediction is the last token, so the answer is right when it is the
    # largest: Σ_m (m + 1)^(K - 1) of the v^K inputs.
    subject = attention_subject({"W_E": np.eye(4), "W_U": np.eye(4)}, 3)
    for strategy in STRATEGIES:
        certificate = certify(subject, strategy=strategy)
        total = sum((m + 1) ** 2 for m in range(4))
        assert certificate.at_least <= total if "subcubic" in strategy else certificate.at_least == total
    assert certify(subject, strategy="exact").at_most == 30


@pytest.mark.parametrize("strategy", ["cubic", "subcubic", "subcubic-low-rank"])
def test_boxes_of_tokens_that_get_next_to_no_attention_are_accepted(strategy):
    """Token 1 attends to 0 and 2 e^54 times as much as to itself: alone it is right by e^-54 of the group's largest."""
    subject = attention_subject(
        {
            "W_E": np.array([[0.0, 0.0], [0.0, 3.0], [0.0, 0.0]]),
            "W_Q": np.array([[0.0], [3.0]]),
            "W_K": np.array([[0.0], [-2.0]]),
            "W_U": np.array([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
        },
        3,
    )
    certificate = certify(subject, strategy=strategy)
    assert 0 < certificate.at_least <= AttentionTruth(subject).count(InputSet(3, 3))
    certificate.verify(subject)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_light_position_with_a_strong_token_is_not_lost(strategy):
    """The free position has e^-45 of the last one's weight, but token 0 there gets e^70 of token 1's attention."""
    subject = attention_subject(
        {
            "W_E": np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
            "W_pos": np.array([[0.0, 0.0, -45.0], [0.0, 0.0, 0.0]]),
            "W_Q": np.array([[1.0], [1.0], [0.0]]),
            "W_K": np.array([[70.0], [0.0], [1.0]]),
            "W_V": np.array([[1.0], [0.0], [0.0]]),
            "W_O": np.array([[0.0, 0.0, 4.0]]),
            "W_U": np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]]),
        },
        2,
    )
    inputs = InputSet(2, 2, minimum_maximum=1)
    certificate = certify(subject, strategy=strategy, inputs=inputs)
    assert certificate.at_least <= AttentionTruth(subject).count(inputs) == 1
    certificate.verify(subject)


def test_a_single_token_or_position_is_refused():
    for tokens, length in ((1, 2), (2, 1)):
        with pytest.raises(assay.AssayError, match="nothing to compare"):
            certify(attention_subject({"W_E": np.eye(tokens)}, length))


@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - {"cubic"}))
def test_sums_of_which_little_is_left_are_added_up_exactly(strategy):
    """Whatever gets attention, token 1 leads by 2^60; where it is missing, e^-105 of the weights is left."""
    subject = tabular_subject(
        of_tokens=np.array([[-70.0, 0.0], [0.0, 70.0]]),
        of_positions=np.array([[35.0, 0.0, -35.0, 0.0]] * 2),
        direct=np.array([[0.0, -3.0], [0.0, 2.0**60]]),
        offset=np.zeros(2),
        values=np.zeros((2, 2)),
        at=np.zeros((4, 2)),
    )
    certificate = certify(subject, strategy=strategy)
    assert certificate.at_least == 2**3 <= AttentionTruth(subject).count(InputSet(4, 2))
    certificate.verify(subject)


@pytest.mark.parametrize("strategy", ["separable", "exact"])
def test_a_group_in_which_the_largest_token_stands_at_a_light_position_is_accepted(strategy):
    """Token 2 gets e^30 of the others' attention, but one position has e^-70 of the others' weight."""
    near = -(2.0**-20) * abs(np.arange(4)[:, None] - np.arange(4))
    near[0, 0], near[2, 1] = 2, -(2.0**30)
    subject = tabular_subject(
        of_tokens=np.array([[0.0, 30.0, 60.0, 90.0]] * 4),
        of_positions=np.array([[0.0, -70.0, -35.0, 0.0]] * 4),
        direct=np.array([[0.0] * 4, [0.0, 0.0, 2.0, 0.0], [0.0, 0.0, -(2.0**30), 0.0], [0.0] * 4]),
        offset=np.zeros(4),
        values=near,
        at=np.zeros((4, 4)),
    )
    certificate = certify(subject, strategy=strategy, inputs=InputSet(4, 4, minimum_maximum=2))
    assert (1, 2) not in {(piece.last, piece.maximum) for piece in certificate.pieces}
    certificate.verify(subject)


@pytest.mark.parametrize("two_sided", [False, True])
def test_a_tie_of_large_numbers_is_counted_on_a_grid(two_sided):
    subject, inputs = barely_tied(), InputSet(4, 2, minimum_maximum=1)
    certificate = certify(subject, strategy="separable", inputs=inputs, search=0, two_sided=two_sided)
    assert certificate.at_least == AttentionTruth(subject).count(inputs) == 11
    assert all(piece.relaxations for piece in certificate.pieces)
    certificate.verify(subject)


def test_small_groups_among_the_heaviest_are_searched():
    subject = spread_positions()[0]
    truth = AttentionTruth(subject).count(InputSet(3, 4))
    counted = certify(subject, strategy="separable", grid=8, search=0)
    assert counted.at_least < truth
    assert all(piece.relaxations for piece in counted.pieces)
    searched = certify(subject, strategy="separable", grid=8, search=4**2)
    assert searched.at_least == searched.at_most == truth
    assert not any(piece.relaxations for piece in searched.pieces)
    heaviest = max(counted.pieces, key=lambda piece: piece.wrong)
    some = certify(subject, strategy="separable", grid=8, search=4**2, refine=1)
    assert [piece for piece in some.pieces if not piece.relaxations] == [
        piece for piece in searched.pieces if (piece.last, piece.maximum) == (heaviest.last, heaviest.maximum)
    ]
    some.verify(subject)


def test_large_numbers_that_cancel_are_not_claimed():
    # In float64 the logits of token 1 and 0 differ by exactly 1/2 after 2^80 cancels; three of the four inputs tie
    # or lose.
    unembed = np.zeros((4, 2))
    unembed[:, 0] = 2.0**80, 1, -(2.0**80), -0.5
    subject = attention_subject({"W_E": np.ones((2, 4)), "W_U": unembed}, 2)
    truth = AttentionTruth(subject).count(InputSet(2, 2))
    for strategy in STRATEGIES:
        assert certify(subject, strategy=strategy).at_least <= truth


@pytest.mark.parametrize("size", [3.0, 100.0])
def test_large_scores_are_right_or_refused(size):
    """Scores of 18 are certified exactly; scores of 20,000 would lose weights to underflow and are refused."""
    subject = attention_subject(
        {
            "W_E": np.array([[0.0], [1.0], [2.0]]),
            "W_Q": np.array([[size]]),
            "W_K": np.array([[size]]),
            "W_V": np.array([[1.0]]),
            "W_O": np.array([[1.0]]),
            "W_U": np.array([[-1.0, 0.0, 1.0]]),
        },
        3,
    )
    if size == 100.0:
        with pytest.raises(assay.AssayError, match=r"span a factor of 2\^"):
            certify(subject, strategy="exact")
        return
    truth = AttentionTruth(subject).count(InputSet(3, 3))
    certificate = certify(subject, strategy="exact")
    assert certificate.at_least <= truth <= certificate.at_most


def spread_positions():
    """Positions of very different weight: where the copy of the maximum stands decides."""
    rng = np.random.default_rng(3)
    return [
        attention_subject(
            {
                "W_E": np.c_[np.arange(4), np.ones(4)] + rng.normal(0, 0.3, (4, 2)),
                "W_pos": np.c_[np.zeros(3), [3.0, -3.0, 0.0]],
                "W_Q": np.array([[0.3], [1.0]]),
                "W_K": np.array([[0.5], [1.0]]),
                "W_V": np.array([[1.0], [0.0]]),
                "W_O": np.array([[2.0, 0.0]]),
                "W_U": np.array([np.arange(4.0), -(np.arange(4.0) ** 2) / 2]) + rng.normal(0, 0.2, (2, 4)),
            },
            3,
        )
        for _ in range(20)
    ]


def claims(subjects):
    return [
        certify(s, strategy="separable", grid=1024, search=0).at_least - AttentionTruth(s).count(InputSet(3, 4))
        for s in subjects
    ]


def test_mutants_of_the_worst_case_are_caught(monkeypatch):
    subjects = spread_positions()
    assert max(claims(subjects)) <= 0

    def penalty_of_the_best_position(upper, last, cell):
        top = upper.max(axis=2)
        return top.sum(axis=1) + last - (cell.copies[0] >= 1) * (top - upper[:, :, -1]).max(axis=1)

    monkeypatch.setattr(_groups, "worst", penalty_of_the_best_position)
    refused = 0
    for subject in subjects:
        certificate = certify(subject, strategy="separable", search=0)
        try:
            certificate.verify(subject)
        except assay.AssayError:
            refused += 1
    assert refused > 0


def test_ties_are_not_lost_by_a_mutant_without_slack(monkeypatch):
    subject = attention_subject({"W_E": np.eye(3), "W_U": np.ones((3, 3))}, 2)
    monkeypatch.setattr(_groups, "PAD", -_groups.PAD)
    monkeypatch.setattr(_groups, "worst", lambda upper, last, cell: np.full(len(upper), -1))
    certificate = certify(subject, strategy="separable", search=0)
    assert certificate.at_least > 0
    with pytest.raises(assay.AssayError, match="not shown to be right"):
        certificate.verify(subject)


@pytest.mark.parametrize("seed", range(8))
def test_counting_never_finds_fewer_than_enumeration(seed):
    rng = np.random.default_rng(seed)
    for _ in range(40):
        free, tokens, outputs = rng.integers(1, 4), rng.integers(2, 5), rng.integers(1, 3)
        values = rng.integers(-(2**40), 2**40, size=(outputs, free, tokens))
        last = rng.integers(-(2**41), 2**41, size=outputs)
        least = int(rng.integers(0, 2))
        copies = (least, int(free)) if rng.integers(2) else (least, least)
        cell = Cell(int(tokens) - 1, int(tokens) - 1, tuple(range(tokens)), copies, int(free))
        group = Group(cell, tuple((0, x) for x in range(outputs)), values, last, values, last, (0,) * int(outputs))
        index = np.array(list(np.ndindex(*[int(tokens)] * int(free))))
        taken = (index == tokens - 1).sum(axis=1)
        member = (taken >= copies[0]) & (taken <= copies[1])
        sums = sum(values[:, p, index[:, p]] for p in range(free)) + last[:, None]
        truth = int(((sums >= 0).any(axis=0) & member).sum())
        exact = count_wrong(group, Operations())
        assert exact.wrong == exact.surely_wrong == truth
        for grid in (8, 4096):
            piece = count_groups(
                [group], models=1, grid=grid, refine=1, search=0, two_sided=True, operations=Operations()
            )[0]
            assert piece.surely_wrong <= truth <= piece.wrong <= cell.size


def _weights_and_scores():
    rng = np.random.default_rng(5)
    subject = attention_subject(
        {name: rng.normal(0, 1, shape) for name, shape in {"W_E": (6, 5), "W_Q": (5, 4), "W_K": (5, 4)}.items()}, 3
    )
    weights = read_weights(subject)
    return weights, score_matrices(weights, Operations())[0].rounded() / 2


def _is_bounded(scores, exact):
    return (np.ptp(exact - scores.own, axis=1) <= scores.error).all()


@pytest.mark.parametrize("remainder", REMAINDERS)
def test_the_remainder_of_a_low_rank_is_bounded(remainder):
    """Differences of exact scores differ from those of the rank-1 part by at most the bound."""
    weights, exact = _weights_and_scores()
    scores = _subcubic._scores(weights, remainder, Operations())
    assert _is_bounded(scores, exact)
    assert scores.error.max() < 40 * np.ptp(exact)


def test_the_recipes_of_the_remainder_agree_with_other_ways_to_compute_them():
    rng = np.random.default_rng(1)
    E, P, Q, K = rng.normal(0, 1, (6, 5)), rng.normal(0, 1, 5), rng.normal(0, 1, (5, 4)), rng.normal(0, 1, (5, 4))
    X, Y, c, e = (E + P) @ Q, E @ K, rng.normal(0, 1, 4), rng.normal(0, 1, 4)
    circuit = Circuit(E + P, Q, K, E, X, Y, c, e)
    remainder = X @ (np.eye(4) - np.outer(c, e)) @ Y.T
    assert circuit.rest @ Y.T == pytest.approx(remainder)
    sigma = np.linalg.norm(remainder, 2)
    assert svd(circuit, Operations()) == pytest.approx(np.full(6, np.sqrt(2) * sigma), rel=1e-9)
    assert (svd(circuit, Operations()) >= np.sqrt(2) * sigma).all()
    spread = Y.max(axis=0) - Y.min(axis=0)
    by_terms = [sum(abs(circuit.rest[q, k]) * spread[k] for k in range(4)) for q in range(6)]
    assert max_diff(circuit, Operations()) == pytest.approx(by_terms)
    # Without rank 1, of queries that are all equal, the range of exact scores.
    equal = Circuit(np.tile(E[0] + P, (6, 1)), Q, K, E, np.tile(X[0], (6, 1)), Y, 0 * c, e)
    assert mean_diff(equal, Operations()) == pytest.approx([np.ptp(X[0] @ Y.T)] * 6)
    # With factors of one entry a row, nothing is lost on the way through the chain.
    one, four = np.eye(4), np.diag([1.0, 2, 3, 4])
    chain = Circuit(one, one, one, four, one, four, 0 * c, e)
    assert recursive(chain, Operations()) == pytest.approx([1, 2, 3, 4])


@pytest.mark.parametrize("tokens", [2, 8, 9, 17])
def test_blocks_are_maxima_without_one_output(tokens):
    table = np.random.default_rng(tokens).integers(0, 5, (3, tokens)).astype(float)
    of_blocks, other = _groups._of_blocks(table)
    for row, m in np.ndindex(3, tokens):
        block = range(m // 8 * 8, min(m // 8 * 8 + 8, tokens))
        assert of_blocks[row, m // 8] == max(table[row, x] for x in block)
        assert other[row, m] == max((table[row, x] for x in block if x != m), default=-np.inf)


@pytest.mark.parametrize("scale", [0.3, 0.7, 1.2])
def test_the_tiers_leave_out_no_output_that_could_win(scale):
    """Of random models of more tokens than a block has, against the worst case of every group and output."""
    rng = np.random.default_rng(1)
    d = {"W_E": (19, 6), "W_pos": (4, 6), "W_Q": (6, 3), "W_K": (6, 3), "W_V": (6, 3), "W_O": (3, 6), "W_U": (6, 19)}
    arrays = {name: rng.normal(0, scale, shape) for name, shape in d.items()}
    arrays["W_U"] = arrays["W_U"] + np.outer(arrays["W_E"].mean(axis=0), np.arange(19)) * 4
    tables = make_tables(read_weights(attention_subject(arrays, 4)), Operations())
    groups = _groups.suspicious_groups([tables], InputSet(4, 19), Operations())
    found = {(group.cell.last, group.cell.maximum, x) for group in groups for _, x in group.outputs}
    expected = set()
    for cell in _groups.cells(InputSet(4, 19)):
        others = np.array([x for x in range(19) if x != cell.maximum])
        upper, last, *_ = _groups.contributions(tables, cell, others)
        expected |= {(cell.last, cell.maximum, int(x)) for x in others[_groups.worst(upper, last, cell) >= 0]}
    assert found == expected
    assert 1_000 < len(expected) < 18 * 190


def test_products_too_small_for_floats_are_not_lost_from_a_chain():
    q, Q, K, E = (np.array(rows) for rows in ([[2.0**500]] * 2, [[2.0**-500]], [[2.0**-350]], [[0.0], [2.0**-300]]))
    circuit = Circuit(q, Q, K, E, q @ Q, E @ K, np.zeros(1), np.zeros(1))
    assert (recursive(circuit, Operations()) >= 2.0**-650).all()


@pytest.mark.parametrize("remainder", REMAINDERS)
def test_queries_too_small_for_floats_are_all_remainder(remainder):
    arrays = {"W_E": [[t, 1.0] for t in range(4)], "W_Q": [[0.0], [2.0**-1030]], "W_K": [[1.0], [0.0]]}
    subject = attention_subject({name: np.array(rows) for name, rows in arrays.items()} | {"W_U": np.eye(2, 4)}, 2)
    subject.model.double()
    subject.model.layers[0].attn.q_proj.weight.data[0, 1] = 2.0**-1030
    certificate = certify(subject, strategy="subcubic-low-rank", remainder=remainder)
    assert certificate.at_least <= AttentionTruth(subject).count(InputSet(2, 4)) <= certificate.at_most


@pytest.mark.parametrize(("remainder", "routine"), [("principal", "svd"), ("svd", "eigh")])
def test_the_remainder_of_a_low_rank_is_bounded_whatever_the_directions(monkeypatch, remainder, routine):
    """Also where the directions that are tried are bad ones."""
    rng = np.random.default_rng(5)
    weights, exact = _weights_and_scores()
    whole = getattr(np.linalg, routine)

    def disturbed(amount, matrix):
        *others, directions = whole(matrix)
        return *others, directions + amount * rng.normal(0, 1, directions.shape)

    bounds = []
    for amount in (0.0, 1e-6, 0.1):
        monkeypatch.setattr(np.linalg, routine, partial(disturbed, amount))
        scores = _subcubic._scores(weights, remainder, Operations())
        monkeypatch.undo()
        assert _is_bounded(scores, exact)
        bounds.append(scores.error.max())
    assert bounds[0] < bounds[1] < bounds[2]


def test_of_the_recipes_of_the_source_none_is_as_tight_as_the_principal_directions():
    subject = assay.load("max-of-4")
    found = {name: certify(subject, strategy="subcubic-low-rank", remainder=name) for name in REMAINDERS}
    assert found["principal"].at_least == max(item.at_least for item in found.values())
    assert min(found, key=lambda name: found[name].operations.total) == "recursive"
    for name, certificate in found.items():
        certificate.verify(subject)
        assert certificate.parameters == {"remainder": name}


def test_sums_of_more_terms_than_rounding_is_bounded_for_are_refused(monkeypatch):
    monkeypatch.setattr(_subcubic, "_LARGEST_SUM", 63)
    with pytest.raises(assay.AssayError, match="not 64"):
        certify(assay.load("max-of-4"), strategy="subcubic")


def test_the_rank_1_part_of_a_trained_head_loses_little():
    """In the principal directions of the keys, the remainder costs less than a twentieth of the bound."""
    subject = assay.load("max-of-4")
    whole, part = (certify(subject, strategy=name) for name in ("subcubic", "subcubic-low-rank"))
    assert whole.at_least > part.at_least > 0.95 * whole.at_least
    assert part.operations.total < whole.operations.total
    assert part.unexplained_dimension < whole.unexplained_dimension


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("max-of-4", {"strategy": "cubic", "grid": 64}, "certify(grid=64): strategy 'cubic' has no such option"),
        ("max-of-4", {"remainder": "svd"}, "certify(remainder='svd'): strategy 'separable' has no such option"),
        ("max-of-4", {"strategy": "subcubic-low-rank", "remainder": "sdv"}, "did you mean 'svd'"),
        ("max-of-4", {"width": 8}, "strategy 'separable' has no such option; it is of 'blocks'"),
        ("linear-max-of-3", {"refine": 5}, "strategy 'gemm' has no such option; it is of 'separable', 'blocks'"),
        ("linear-max-of-3", {"strategy": "blocks", "two_sided": True}, "certify(two_sided=True)"),
    ],
)
def test_options_that_a_strategy_does_not_look_at_are_refused(model, options, words):
    with pytest.raises(assay.AssayError, match=re.escape(words)):
        certify(assay.load(model), **options)
