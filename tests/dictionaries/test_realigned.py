"""Realignment: what a rotation has turned comes back, against the least squares it solves, and in a comparison."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import assay
from assay import AssayError
from assay.dictionaries import Dictionary, RealignedDictionary, measure, realigned
from assay.engine import Engine, collect
from one_hot import Given, split_of, subject_of

WIDTH, FEATURES, ROWS = 10, 12, 300


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(size, seed=0):
    return torch.linalg.qr(draw(size, size, seed=seed)).Q


def transcoder(rank, **options):
    """One whose decoder lies in the first coordinates, as many as `rank`; every feature is on in half of the rows."""
    decoder = torch.zeros(FEATURES, WIDTH, dtype=torch.float64)
    decoder[:, :rank] = draw(FEATURES, rank, seed=1)
    return Dictionary(
        "relu", draw(WIDTH, FEATURES, seed=2), draw(FEATURES, seed=3) / 9, decoder, draw(WIDTH, seed=4),
        transcodes=True, **options,
    )  # fmt: skip


@pytest.mark.parametrize("rank", [4, None], ids=["four", "all"])
def test_what_is_wanted_turned_is_what_is_decoded_again(rank):
    """The MLP's outputs are turned into other directions, and what enters it is the same: codes stand, and a decoder
    that gives the outputs exactly lies in the span of what they vary in.
    """
    given, x = transcoder(4, W_skip=draw(WIDTH, WIDTH, seed=9) / 3), draw(ROWS, WIDTH, seed=5)
    skipped = x @ given.W_skip.T
    turned = (given.reconstruct(x) - skipped) @ rotation(WIDTH) + 2 + skipped
    assert measure(given, x, turned).explained < 0.5
    found = realigned(given, x, turned, rank=rank, ridge=1e-9)
    fresh = draw(ROWS, WIDTH, seed=6)
    skipped = fresh @ given.W_skip.T
    wanted = (given.reconstruct(fresh) - skipped) @ rotation(WIDTH) + 2 + skipped
    assert measure(found, fresh, wanted).explained == pytest.approx(1, abs=1e-9)
    for codes in (given.encode(fresh), found.encode(fresh)):
        torch.testing.assert_close(codes.dense(), given.encode(fresh).dense())


def test_a_large_ridge_leaves_the_turned_decoder():
    """The nearest rotation of one plane onto another, by hand: the decoder's plane is turned by an angle."""
    angle = 0.7
    given = transcoder(2)
    plane = torch.zeros(2, WIDTH, dtype=torch.float64)
    plane[0, 0], plane[1, 1], plane[1, 2] = 1, np.cos(angle), np.sin(angle)
    vectors = draw(ROWS, WIDTH, seed=7)
    found = realigned(given, vectors, draw(ROWS, 2, seed=8) @ plane, rank=2, ridge=1e12)
    torch.testing.assert_close(found.W_dec, given.W_dec[:, :2] @ plane, atol=1e-7, rtol=0)


def test_it_is_the_ridge_regression_that_it_says():
    given, x = transcoder(WIDTH), draw(ROWS, WIDTH, seed=5)
    given = replace(given, b_enc=given.b_enc - torch.eye(FEATURES, dtype=torch.float64)[3] * 1e3)  # never on
    wanted = draw(ROWS, WIDTH, seed=6)
    ridge = 0.5
    found = realigned(given, x, wanted, ridge=ridge)
    z = given.encode(x).dense().numpy()
    z_moved, y_moved = z - z.mean(0), wanted.numpy() - wanted.numpy().mean(0)
    strength = ridge * (z_moved**2).sum(1).mean()
    # One least squares with the ridge as more rows.
    rows = np.concatenate([z_moved, np.sqrt(strength) * np.eye(FEATURES)])
    targets = np.concatenate([y_moved, np.sqrt(strength) * given.W_dec.numpy()])
    expected = np.linalg.lstsq(rows, targets, rcond=None)[0]
    np.testing.assert_allclose(found.W_dec.numpy(), expected, atol=1e-9)
    np.testing.assert_allclose(found.W_dec[3].numpy(), given.W_dec[3].numpy(), atol=1e-9)
    np.testing.assert_allclose(found.reconstruct(x).numpy().mean(0), wanted.numpy().mean(0), atol=1e-9)


@pytest.mark.parametrize("kind", ["relu", "topk", "gated"])
def test_codes_of_autoencoders_stay(kind):
    more = {"topk": {"k": 3}, "gated": {"r_mag": draw(FEATURES, seed=4) / 3, "b_mag": draw(FEATURES, seed=5)}}
    given = Dictionary(
        kind, draw(WIDTH, FEATURES, seed=1), draw(FEATURES, seed=2), draw(FEATURES, WIDTH, seed=3), draw(WIDTH, seed=6),
        pre_bias=True, **more.get(kind, {}),
    )  # fmt: skip
    x = draw(ROWS, WIDTH, seed=7) + 3
    found = realigned(given, x, x)
    assert not torch.allclose(found.b_dec, given.b_dec, atol=0.1)
    torch.testing.assert_close(found.encode(x).dense(), given.encode(x).dense())
    assert measure(found, x).explained > measure(given, x).explained


def test_what_cannot_be_realigned_is_refused():
    given, x = transcoder(4), draw(ROWS, WIDTH, seed=5)
    for options in ({"rank": 0}, {"rank": 11}, {"ridge": 0.0}):
        with pytest.raises(AssayError, match=r"rank=|ridge="):
            realigned(given, x, x, **options)
    with pytest.raises(AssayError, match="at least 2 vectors"):
        realigned(given, x[:1], x[:1])
    with pytest.raises(AssayError, match="normalizes every vector"):
        realigned(replace(given, transcodes=False, normalization="layer_norm"), x, x)


SITE = "layer0.residual"


@pytest.fixture(scope="module")
def subject():
    return subject_of(draw(20, WIDTH, seed=3))


@pytest.fixture(scope="module")
def task():
    """The shift has tokens of its own."""
    rng = np.random.default_rng(0)
    return Given(
        [
            split_of(name, first + rng.integers(10, size=(80, 8)))
            for name, first in (("train", 0), ("iid", 0), ("far", 10))
        ]
    )


def test_in_a_comparison_it_is_fitted_again_on_shifts(subject, task, tmp_path):
    engine = Engine(subject)
    at = {name: collect(engine, task.split(name, 80), ()).at(engine.site(SITE)) for name in ("train", "far")}
    trained = assay.SparseAutoencoder(k=2, features=20, steps=150, batch=64).fit(at["train"])
    ((dictionary,),) = trained.dictionaries_.values()
    recipe = RealignedDictionary(dictionary, site=SITE, rows=200)
    assert recipe.title.endswith("realigned (200 vectors)")
    comparison = assay.compare(subject, task, [recipe], sequences=40, fit_sequences=40, resamples=50, controls=False)
    (verdict,) = comparison.verdicts()
    assert verdict.site == SITE
    gap = comparison.gaps().query("kind == 'all' and metric == 'same_prediction'").iloc[0]
    assert gap["removed"] > 0, "fitted on vectors of the shift, it does better there"
    for name, samples in at.items():
        fitted = RealignedDictionary(dictionary, site=SITE, rows=200).fit(samples)
        ((found,),) = fitted.dictionaries_.values()
        rows = samples.some(samples.places[0], 999, streams=("residual",))
        assert measure(found, *rows).explained > measure(dictionary, *rows).explained + (0.1 if name == "far" else 0)
    proxy = fitted.apply(subject)
    proxy.save(tmp_path / "kept")
    again = assay.load_proxy(tmp_path / "kept", subject, simplification=RealignedDictionary)
    tokens = torch.from_numpy(task.split("iid", 4).tokens)
    assert torch.equal(again(tokens), proxy(tokens))
    assert (again.simplification.rows, again.simplification.rank) == (200, None)
    with pytest.raises(AssayError, match=r"realigned .* at layer0\.residual: rank=1000"):
        RealignedDictionary(dictionary, site=SITE, rank=1_000).fit(at["train"])
