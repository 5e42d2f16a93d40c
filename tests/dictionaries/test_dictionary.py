"""The record of a dictionary: its codes and what they stand for, against the formulas written out a row at a time."""

import dataclasses
import math

import pytest
import torch

from assay import AssayError
from assay.dictionaries import Codes, Dictionary, measure
from assay.dictionaries._selection import largest_of_rows

D, F = 6, 40


def made(kind, *, out=D, transcodes=False, skip=False, **options):
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    own = {
        "topk": {"k": 5},
        "jumprelu": {"threshold": draw(F).abs()},
        "gated": {"r_mag": draw(F) / 3, "b_mag": draw(F)},
    }.get(kind, {})
    return Dictionary(
        kind,
        draw(D, F),
        draw(F),
        draw(F, out),
        draw(out),
        transcodes=transcodes,
        W_skip=draw(out, D) if skip else None,
        **own,
        **options,
    )


def by_hand(it, x):
    """Codes and reconstruction of one vector, number by number."""
    mean, scale = 0.0, 1.0
    if it.normalization == "constant_norm_rescale":
        scale = math.sqrt(float(x @ x)) / math.sqrt(D)
        x = x / scale
    elif it.normalization is not None:
        mean = float(x.sum()) / D
        x = x - mean
        if it.normalization == "layer_norm":
            scale = math.sqrt(float(x @ x) / (D - 1))
            x = x / (scale + 1e-5)
    moved = x - it.b_dec if it.pre_bias else x
    u = [float(moved @ it.W_enc[:, f]) for f in range(F)]
    z = [0.0] * F
    if it.kind == "topk":
        u = [u[f] + float(it.b_enc[f]) for f in range(F)]
        for f in sorted(range(F), key=u.__getitem__)[-it.k :]:
            z[f] = max(u[f], 0.0)
    for f in range(F):
        if it.kind == "relu":
            z[f] = max(u[f] + float(it.b_enc[f]), 0.0)
        if it.kind == "jumprelu":
            z[f] = u[f] + float(it.b_enc[f]) if u[f] + float(it.b_enc[f]) > float(it.threshold[f]) else 0.0
        if it.kind == "gated" and u[f] + float(it.b_enc[f]) > 0:
            z[f] = max(u[f] * math.exp(float(it.r_mag[f])) + float(it.b_mag[f]), 0.0)
    found = it.b_dec + sum(z[f] * it.W_dec[f] for f in range(F))
    if it.W_skip is not None:
        found = found + it.W_skip @ x
    return torch.tensor(z), found if it.transcodes else found * scale + mean


CASES = [
    *({"kind": kind} for kind in ("relu", "topk", "jumprelu", "gated")),
    *({"kind": kind, "pre_bias": True} for kind in ("relu", "topk", "jumprelu", "gated")),
    *({"kind": "topk", "normalization": name} for name in ("constant_norm_rescale", "layer_norm", "centring")),
    {"kind": "relu", "normalization": "layer_norm", "pre_bias": True},
    {"kind": "topk", "transcodes": True},
    {"kind": "jumprelu", "transcodes": True, "skip": True, "out": 4},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_codes_and_reconstructions_are_those_of_the_formulas(case):
    it = made(**case)
    x = torch.randn(17, D, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    codes = it.encode(x)
    expected = [by_hand(it, row) for row in x]
    torch.testing.assert_close(codes.dense().float(), torch.stack([z for z, _ in expected]), rtol=1e-5, atol=1e-6)
    whole = torch.stack([found for _, found in expected])
    torch.testing.assert_close(it.decode(codes, x), whole)
    torch.testing.assert_close(it.reconstruct(x), whole)
    assert bool((codes.value > 0).all())
    assert codes.counts.tolist() == (codes.dense() > 0).sum(dim=1).tolist()
    # Each vector by itself, and in whatever company.
    torch.testing.assert_close(torch.cat([it.reconstruct(row[None]) for row in x]), whole)
    assert it.reconstruct(x.float()).dtype == torch.float32


@pytest.mark.parametrize("pre_bias", [False, True], ids=["plain", "pre_bias"])
@pytest.mark.parametrize("kind", ["relu", "topk", "jumprelu", "gated"])
def test_a_transcoder_of_vectors_behind_a_weight_and_a_bias(kind, pre_bias):
    """What it does of the vectors before the norm's weight and bias is what its like does of those behind."""
    generator = torch.Generator().manual_seed(8)
    weight, bias, x = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((D,), (D,), (17, D)))
    for skip in (False, True):
        it = made(kind, transcodes=True, skip=skip, pre_bias=pre_bias)
        moved = it.of_affine(weight, bias)
        torch.testing.assert_close(moved.encode(x * weight + bias).dense(), it.encode(x).dense())
        torch.testing.assert_close(moved.reconstruct(x * weight + bias), it.reconstruct(x))
        assert it.encode(x).counts.sum() > 0
    with pytest.raises(AssayError, match="normalizes what it encodes"):
        made(kind, transcodes=True, normalization="layer_norm").of_affine(weight, bias)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_bias_before_the_encoder_may_be_behind_it(case):
    it = made(**case)
    x = torch.randn(17, D, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    plain = it.without_pre_bias()
    assert not plain.pre_bias
    torch.testing.assert_close(plain.encode(x).dense(), it.encode(x).dense(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(plain.reconstruct(x), it.reconstruct(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_decoded_of_no_feature(case):
    """All the rest is what the features give, each by itself."""
    it = made(**case)
    x = torch.randn(17, D, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    none = dataclasses.replace(it, W_dec=torch.zeros_like(it.W_dec))
    torch.testing.assert_close(it.without_features(x), none.reconstruct(x))


def test_few_features_on_give_the_same_as_many():
    """Below and above the share of features from which on plain products are taken."""
    it = made("jumprelu")
    x = torch.randn(200, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    few = dataclasses.replace(it, threshold=torch.full((F,), 5.0, dtype=torch.float64))
    share = float((few.encode(x).dense() > 0).double().mean())
    assert 0 < share < 0.08 < float((it.encode(x).dense() > 0).double().mean())
    torch.testing.assert_close(few.reconstruct(x), few.encode(x).dense() @ few.W_dec + few.b_dec)
    torch.testing.assert_close(it.reconstruct(x), it.encode(x).dense() @ it.W_dec + it.b_dec)


def test_a_vector_without_features_is_decoded_as_the_bias():
    it = dataclasses.replace(made("jumprelu"), threshold=torch.full((F,), 1e9, dtype=torch.float64))
    x = torch.randn(3, D, dtype=torch.float64)
    assert len(it.encode(x).index) == 0
    torch.testing.assert_close(it.reconstruct(x), it.b_dec.expand(3, D))
    torch.testing.assert_close(it.decode(it.encode(x)), it.b_dec.expand(3, D))


def test_an_orthonormal_dictionary_of_all_directions_and_their_opposites_is_the_identity():
    basis, _ = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64))
    both = torch.cat([basis, -basis])
    it = Dictionary("topk", both.T.contiguous(), torch.zeros(2 * D), both, torch.zeros(D), k=2 * D)
    x = torch.randn(20, D, dtype=torch.float64)
    torch.testing.assert_close(it.reconstruct(x), x)
    found = measure(it, x)
    assert found.explained == pytest.approx(1)
    assert found.shrinkage == pytest.approx(1)
    assert found.l0 == pytest.approx(D)
    assert found.dead == 0


def test_scale_and_rotation_do_what_they_should():
    basis, _ = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64))
    x = torch.randn(11, D, dtype=torch.float64)
    for kind in ("relu", "topk", "jumprelu", "gated"):
        it = made(kind)
        turned = dataclasses.replace(it, W_enc=basis.T @ it.W_enc, W_dec=it.W_dec @ basis, b_dec=it.b_dec @ basis)
        torch.testing.assert_close(turned.reconstruct(x @ basis), it.reconstruct(x) @ basis)
    zeros = {"b_enc": torch.zeros(F), "b_dec": torch.zeros(D)}
    for kind in ("relu", "topk"):
        it = dataclasses.replace(made(kind), **zeros)
        torch.testing.assert_close(it.reconstruct(3 * x), 3 * it.reconstruct(x))


def test_measures_are_those_of_their_formulas():
    it = made("jumprelu")
    x = torch.randn(5_000, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 100
    found, back, z = measure(it, x), it.reconstruct(x), it.encode(x).dense()
    assert found.rows == 5_000
    assert found.explained == pytest.approx(1 - float((x - back).square().sum() / (x - x.mean(0)).square().sum()))
    assert found.l0 == pytest.approx(float((z > 0).sum(dim=1).double().mean()))
    share = (z > 0).double().mean(dim=0)
    assert found.dead == pytest.approx(float((share == 0).double().mean()))
    assert found.dense == pytest.approx(float((share > 0.1).double().mean()))
    own, base = back - it.b_dec, x - it.b_dec
    assert found.shrinkage == pytest.approx(float(own.square().sum() / (own * base).sum()))
    assert math.isnan(measure(it, x[:0]).explained)


def test_the_mean_explains_nothing_wherever_the_vectors_are():
    for far in (0.0, 1e4):
        x = torch.randn(9_000, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + far
        nothing = Dictionary("relu", torch.zeros(D, F), -torch.ones(F), torch.zeros(F, D), x.mean(dim=0))
        assert measure(nothing, x).explained == pytest.approx(0, abs=1e-6)
        assert measure(nothing, x).dead == 1


@pytest.mark.parametrize(("features", "k"), [(1024, 16), (64, 1), (72, 9), (40, 40), (41, 3), (512, 65)])
def test_the_largest_of_rows_are_the_largest(features, k):
    values = torch.randn(33, features, generator=torch.Generator().manual_seed(features))
    values[:, features // 2 :] = values[:, : features - features // 2]  # ties
    found, index = largest_of_rows(values, k)
    assert torch.equal(found.sort(dim=1).values, values.sort(dim=1).values[:, features - k :])
    assert torch.equal(values.gather(1, index), found)
    assert all(len(set(row)) == k for row in index.tolist())


def test_codes_keep_their_rows():
    dense = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, -3.0]])
    codes = Codes.of_dense(dense)
    assert codes.index.tolist() == [1, 0]
    assert codes.rows.tolist() == [0, 2]
    assert codes.counts.tolist() == [1, 0, 1]
    assert codes.dense().tolist() == dense.clamp(min=0).tolist()


def bad(name, value, kind="topk"):
    return pytest.param(kind, {name: value}, id=f"{kind} {name}")


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        bad("kind", "temporal"),
        bad("k", 0),
        bad("k", F + 1),
        bad("k", True),
        bad("k", None),
        bad("k", 3, "relu"),
        bad("threshold", None, "jumprelu"),
        bad("threshold", torch.ones(F)),
        bad("threshold", -torch.ones(F), "jumprelu"),
        bad("threshold", torch.ones(F + 1), "jumprelu"),
        bad("r_mag", None, "gated"),
        bad("W_enc", torch.ones(D)),
        bad("W_enc", torch.ones(D, F + 1)),
        bad("W_enc", torch.ones(D, F, dtype=torch.int64)),
        bad("W_dec", torch.full((F, D), math.nan)),
        bad("W_dec", torch.ones(F, D + 1)),
        bad("b_dec", torch.full((D,), math.inf)),
        bad("b_enc", torch.ones(1)),
        bad("W_skip", torch.ones(D, D + 1)),
        bad("normalization", "whitening"),
    ],
)
def test_what_is_no_dictionary_is_refused_in_one_line(kind, change):
    it = made(kind)
    with pytest.raises(AssayError) as caught:
        dataclasses.replace(it, **change)
    assert "\n" not in str(caught.value)


def test_vectors_of_another_width_are_refused():
    it = made("relu", normalization="layer_norm")
    with pytest.raises(AssayError, match="vectors of 6 numbers"):
        it.encode(torch.ones(3, D + 1))
    with pytest.raises(AssayError, match="give decode"):
        it.decode(it.encode(torch.randn(3, D)))
