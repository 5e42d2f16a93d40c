"""What is too small to be told apart from the error of stored answers, by hand."""

import numpy as np

from assay.faithfulness._scores import ALL, MARGIN, Column
from assay.faithfulness._told_apart import least, not_told_apart

COLUMNS = [
    Column(metric, kind, feature, 0)
    for metric in ("kl", "jsd", "log_perplexity_ratio")
    for kind in (ALL, "near", "far")
    for feature in ("", MARGIN)
]


def cell(**means):
    """Two predictions of every kind in each of two sequences, with these means."""
    sums = np.zeros((1, 2, len(COLUMNS)))
    for place, column in enumerate(COLUMNS):
        near, far = means[column.metric]
        sums[..., place] = 2 * {"near": near, "far": far, ALL: (near + far) / 2}[column.kind]
    return sums, np.full(sums.shape, 2)


def test_each_kind_is_told_apart_for_itself():
    sums, counts = cell(kl=(5e-6, 3e-5), jsd=(2e-6, 3e-6), log_perplexity_ratio=(-1.0, 1e-9))
    found = not_told_apart(COLUMNS, sums, counts, 1e-6)
    assert set(found) == {("kl", "near"), ("jsd", "near")}, "JSD is a quarter of KL: 2.5e-6 is asked of it"
    assert found["kl", "near"].endswith("(a mean KL of 1.0e-06 nats)")
    assert set(not_told_apart(COLUMNS, sums, counts, 2e-6)) == {
        ("kl", "near"), ("kl", ALL), ("jsd", "near"), ("jsd", "far"), ("jsd", ALL),
    }  # fmt: skip


def test_nothing_is_too_small_where_the_form_loses_nothing_and_where_there_is_nothing():
    sums, counts = cell(kl=(0.0, 0.0), jsd=(0.0, 0.0), log_perplexity_ratio=(0.0, 0.0))
    assert not not_told_apart(COLUMNS, sums, counts, 0.0)
    assert not not_told_apart(COLUMNS, sums, 0 * counts, 1e-6)
    assert (least("kl", 0.5), least("same_prediction", 0.5)) == (5, 0)
