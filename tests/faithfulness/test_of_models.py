"""Flips and tails of whole models, from cells that were made by hand."""

import numpy as np
import pytest

from assay.faithfulness._of_models import model_rows
from assay.faithfulness._scores import Column, Scores
from assay.faithfulness._summary import weights_of
from assay.tasks import Kind, Split

KINDS = (Kind("a", "first"), Kind("b", "second"))


def split_of(sequences, copies=False):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 1000, (sequences, 6))
    if copies:
        tokens[sequences // 2 :] = tokens[: sequences - sequences // 2]
    kinds = np.tile([0, 0, 1, 1, 1, -1], (sequences, 1))
    return Split("iid", "iid", "random", tokens, np.full(sequences, 6), kinds)


def cell(sequences, to_wrong, to_right, kl=None):
    """Flips by sequence, all of kind a (of two predictions a sequence); KL of every prediction."""
    names = [("flip_to_wrong", to_wrong), ("flip_to_right", to_right)]
    columns = [Column(name, kind, "", 0) for name, _ in names for kind in ("all", "a", "b")]
    sums, counts = np.zeros((sequences, 6)), np.zeros((sequences, 6), dtype=np.int64)
    for number, (_, flips) in enumerate(names):
        sums[:, 3 * number], sums[:, 3 * number + 1] = flips, flips
        counts[:, 3 * number : 3 * number + 3] = (5, 2, 3)
    kept = {} if kl is None else {"kl": np.asarray(kl, dtype=np.float32)}
    return Scores(tuple(columns), sums, counts, {}, 1.0, kept)


def rows(cells, split):
    weights = weights_of(split, seed=0, resamples=500)
    found = model_rows({"proxy": "it", "site": "model"}, cells, split, KINDS, weights=weights, level=0.95)
    return {row["kind"]: row for row in found}


def test_flips_are_counted_and_tested_over_sequences():
    """Two sequences flip, by 4 and -1: of the four signs, +5, +3, -3, -5, all are at least 3."""
    to_wrong, to_right = np.zeros(20), np.zeros(20)
    to_wrong[3], to_wrong[7], to_right[7] = 2, 0, 1
    found = rows([cell(20, to_wrong, to_right)], split_of(20))
    row = found["all"]
    assert (row["flips_to_wrong"], row["flips_to_right"], row["predictions"], row["sequences"]) == (2, 1, 100, 20)
    assert row["flips_p"] == 1.0, "|2 - 1| = 1 is the least that two signs of 2 and 1 can give"
    assert row["accuracy_change"] == pytest.approx(-1 / 100)
    assert row["accuracy_change_low"] < -1 / 100 < row["accuracy_change_high"]
    assert found["a"]["accuracy_change"] == pytest.approx(-1 / 40)
    assert (found["b"]["flips_to_wrong"], found["b"]["flips_p"]) == (0, 1.0)


def test_one_way_flips_of_many_sequences_are_found_and_copies_are_no_evidence():
    one_way = np.zeros(20)
    one_way[:5] = 1
    one_way[10:15] = 1
    assert rows([cell(20, one_way, np.zeros(20))], split_of(20))["all"]["flips_p"] == pytest.approx(2 / 2**10)
    copied = rows([cell(20, one_way, np.zeros(20))], split_of(20, copies=True))
    assert copied["all"]["flips_p"] == pytest.approx(2 / 2**5)


def test_flips_of_all_seeds_count_together():
    up, down = np.zeros(20), np.zeros(20)
    up[0], down[0] = 2, 1
    row = rows([cell(20, up, np.zeros(20)), cell(20, np.zeros(20), down)], split_of(20))["all"]
    assert (row["flips_to_wrong"], row["flips_to_right"], row["predictions"]) == (2, 1, 200)


def test_tails_are_those_of_numpy_and_the_largest_is_found():
    rng = np.random.default_rng(1)
    kl = rng.lognormal(size=120 * 5)
    kl[17 * 5 + 3] = 99
    row = rows([cell(120, np.zeros(120), np.zeros(120), kl)], split_of(120))["all"]
    for share, name in ((0.5, "kl_50"), (0.9, "kl_90"), (0.99, "kl_99")):
        assert row[name] == pytest.approx(np.quantile(kl.astype(np.float32), share), rel=1e-6)
        assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]
    assert (row["kl_max"], row["kl_max_sequence"], row["kl_max_position"]) == (99, 17, 3)
    assert row["kl_worst"][0] == 17
    assert row["kl_worst_means"] == pytest.approx(sorted(kl.reshape(120, 5).mean(axis=1))[::-1][:10], rel=1e-5)
    assert row["design_effect"] == pytest.approx(1, abs=0.3), "these are independent"


def test_of_a_kind_only_its_predictions_count():
    kl = np.tile([1.0, 1, 5, 5, 5], 120)
    found = rows([cell(120, np.zeros(120), np.zeros(120), kl)], split_of(120))
    assert (found["a"]["kl_50"], found["b"]["kl_50"], found["b"]["kl_max_position"]) == (1, 5, 2)


def test_equal_values_within_sequences_raise_the_design_effect_to_the_root_of_their_number():
    kl = np.repeat(np.random.default_rng(2).normal(10, 1, 400), 5)
    row = rows([cell(400, np.zeros(400), np.zeros(400), kl)], split_of(400))["all"]
    assert row["design_effect"] == pytest.approx(np.sqrt(5), rel=1e-3)


def test_what_was_not_measured_is_said():
    few = rows([cell(20, np.zeros(20), np.zeros(20), np.ones(100))], split_of(20))["all"]
    assert few["kl_50"] == 1
    assert np.isnan(few["kl_50_low"])
    assert "20 different sequences; below 100" in few["kl_reason"]
    unkept = rows([cell(20, np.zeros(20), np.zeros(20))], split_of(20))["all"]
    assert np.isnan(unkept["kl_max"])
    assert unkept["kl_reason"] == "the values of single predictions were not kept"
