"""The subspace gap where it is known: a plane turned by an angle, none, and the whole width."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from assay import AssayError
from assay.diagnostics import subspace_gap
from one_hot import Given, fitted, relu_dictionary, split_of, subject_of

WIDTH, TOKENS = 8, 12
ANGLE = 0.6


def vectors():
    """Tokens of two halves: the first vary in coordinates 0 to 3, the second too, but with 3 turned towards 4."""
    generator = torch.Generator().manual_seed(0)
    found = torch.zeros(TOKENS, WIDTH, dtype=torch.float64)
    half = torch.randn(TOKENS // 2, 4, generator=generator, dtype=torch.float64)
    found[: TOKENS // 2, :4] = found[TOKENS // 2 :, :4] = half
    found[TOKENS // 2 :, 3] *= np.cos(ANGLE)
    found[TOKENS // 2 :, 4] = half[:, 3] * np.sin(ANGLE)
    return found + 100


@pytest.fixture(scope="module")
def subject():
    return subject_of(vectors())


@pytest.fixture(scope="module")
def task():
    rng = np.random.default_rng(0)
    halves = {"train": 0, "iid": 0, "turned": TOKENS // 2, "same": 0}
    splits = [split_of(name, first + rng.integers(TOKENS // 2, size=(30, 10))) for name, first in halves.items()]
    # Fewer sequences than groups, and one alone, of which there is no jackknife.
    return Given([*splits, replace(splits[-1].first(7), name="few"), replace(splits[-1].first(1), name="alone")])


def recipe(subject, task):
    """A decoder of the first four coordinates, and the offset that has no part in any covariance."""
    decoder = torch.zeros(6, WIDTH, dtype=torch.float64)
    decoder[:, :4] = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return fitted(relu_dictionary(torch.ones(WIDTH, 6, dtype=torch.float64), decoder), subject, task)


def test_a_turned_direction_is_all_of_the_gap(subject, task):
    found = subspace_gap(subject, task, recipe(subject, task), rank=4).set_index("split")
    assert found.loc["iid", "gap"] == pytest.approx(0, abs=1e-9)
    assert found.loc["same", "change"] == pytest.approx(0, abs=1e-9)
    assert found.loc["turned", "gap"] == pytest.approx(np.sin(ANGLE) ** 2 / 4)
    assert found.loc["turned", "change"] == pytest.approx(np.sin(ANGLE) ** 2 / 4)
    np.testing.assert_allclose(found["chance"], 0.5)
    np.testing.assert_allclose(found["held"], 1)
    assert list(found["vectors"]) == [300, 300, 300, 70, 10]
    assert found.loc["few", "change_low"] <= found.loc["few", "change"] <= found.loc["few", "change_high"]
    assert np.isfinite(found.loc["few", "change_high"])
    assert np.isnan(found.loc["alone", ["gap_low", "gap_high", "change_low", "change_high"]].astype(float)).all()
    assert np.isnan(found.loc["iid", "change"])


def test_the_limits_are_those_of_a_jackknife(subject, task):
    given = recipe(subject, task)
    found = subspace_gap(subject, task, given, rank=2, level=0.9).set_index("split")
    x = vectors().numpy()[task.split("turned", 30).tokens]
    own = np.linalg.svd(given.own.W_dec.numpy())[2][:2]
    # Its groups, as it draws them: the first 20 different sequences of a permutation begin them.
    group = np.random.default_rng(0).permutation(30) % 20

    def gap(chosen):
        return 1 - ((own @ np.linalg.eigh(np.cov(x[chosen].reshape(-1, WIDTH).T))[1][:, -2:]) ** 2).sum() / 2

    left = np.array([gap(group != one) for one in range(20)])
    error = np.sqrt(19 / 20 * ((left - left.mean()) ** 2).sum())
    row = found.loc["turned"]
    assert row["gap"] == pytest.approx(gap(group >= 0))
    assert row["gap_high"] - row["gap"] == pytest.approx(min(1.729133 * error, 1 - row["gap"]), rel=1e-5)
    assert row["gap_low"] < row["gap"] < row["gap_high"]
    assert row["change_low"] <= row["change"] <= row["change_high"]


def test_the_rank_is_chosen_on_iid_and_the_whole_width_has_no_gap(subject, task):
    given = recipe(subject, task)
    found = subspace_gap(subject, task, given)
    values = np.linalg.eigvalsh(np.cov(vectors().numpy()[task.split("iid", 30).tokens].reshape(-1, WIDTH).T))[::-1]
    held = values.cumsum() / values.sum()
    assert set(found["rank"]) == {int((held < 0.9).sum()) + 1}
    assert 0.9 <= found.loc[found["split"] == "iid", "held"].item() < 1
    eye = torch.eye(WIDTH, dtype=torch.float64)
    whole = subspace_gap(subject, task, fitted(relu_dictionary(eye, eye), subject, task), rank=WIDTH)
    np.testing.assert_allclose(whole["gap"], 0, atol=1e-12)
    np.testing.assert_allclose(whole["chance"], 0)


def test_a_transcoder_is_asked_about_what_it_writes(subject, task):
    eye = torch.eye(WIDTH, dtype=torch.float64)
    found = subspace_gap(
        subject, task, fitted(relu_dictionary(eye, eye, transcodes=True), subject, task, "layer0.mlp"), rank=3
    )
    assert set(found["place"]) == {"layer0.mlp"}
    assert found["gap"].between(0, 1).all()


def test_what_has_no_subspace_is_refused(subject, task):
    given = recipe(subject, task)
    for rank in (0, 7):
        with pytest.raises(AssayError, match="give a rank of 1 to 6"):
            subspace_gap(subject, task, given, rank=rank)
    with pytest.raises(AssayError, match="normalizes every vector"):
        subspace_gap(subject, task, fitted(replace(given.own, normalization="layer_norm"), subject, task))
