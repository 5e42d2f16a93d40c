"""Training: planted features are found, results are the same bits, what is exported is what was trained."""

import math
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from assay import AssayError
from assay.dictionaries import Dictionary
from assay.dictionaries._training import COUNTED, PENALIZED, Run, Trained, Training, train

WIDTH, TRUE = 32, 48


class Planted:
    """Sums of few of 48 unit vectors; feature 0 is absent unless asked for, 1 and 2 often come together."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        directions = torch.randn(TRUE, WIDTH, generator=generator)
        self.directions = directions / directions.norm(dim=1, keepdim=True)
        self.rates = 0.01 + 0.07 * torch.rand(TRUE, generator=generator)

    def rows(self, count: int, generator: torch.Generator, new: float = 0.0) -> Tensor:
        on = torch.rand(count, TRUE, generator=generator) < self.rates
        on[:, 0] = torch.rand(count, generator=generator) < new
        together = torch.rand(count, generator=generator) < 0.5
        on[:, 2] = torch.where(together, on[:, 1], on[:, 2])
        return ((1 + 0.25 * torch.randn(count, TRUE, generator=generator)) * on) @ self.directions

    def trained(self, batch: int = 512, **given: Any) -> Trained:
        settings = Training(seed=7, **given)
        sample = (self.rows(4_096, torch.Generator().manual_seed(2)),)
        return train(settings, self.batches(settings.steps, batch), sample=sample, calibration=sample)

    def batches(self, steps: int, batch: int = 512) -> Iterator[tuple[Tensor, ...]]:
        generator = torch.Generator().manual_seed(1)
        return ((self.rows(batch, generator),) for _ in range(steps))

    def judged(self, found: Trained) -> tuple[float, float, float, float]:
        """Mean best cosine of the features that were there, that of feature 0; of other rows what is explained, L0."""
        best = (self.directions @ found.dictionary.W_dec.T).amax(dim=1)
        held_out = self.rows(8_192, torch.Generator().manual_seed(3))
        l0 = float(found.dictionary.encode(held_out).counts.double().mean())
        return float(best[1:].mean()), float(best[0]), explained(found.dictionary, held_out), l0


def explained(dictionary: Dictionary, x: Tensor, y: Tensor | None = None) -> float:
    wanted = (x if y is None else y).double()
    left = (wanted - dictionary.reconstruct(x)).square().sum()
    return float(1 - left / (wanted - wanted.mean(dim=0)).square().sum())


@pytest.fixture(scope="module")
def planted() -> Planted:
    return Planted()


def test_planted_features_are_found_and_an_absent_one_is_not(planted: Planted) -> None:
    found = planted.trained(kind="topk", features=96, k=3, steps=500)
    recovered, new, share, l0 = planted.judged(found)
    assert recovered >= 0.95
    assert new <= 0.6
    assert share >= 0.89
    assert l0 <= 3
    shift = planted.rows(8_192, torch.Generator().manual_seed(3), new=0.05)
    assert explained(found.dictionary, shift) < share - 0.01
    torch.testing.assert_close(found.dictionary.W_dec.norm(dim=1), torch.ones(96))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "given", "least", "l0"),
    [
        ("topk", {"features": 48, "k": 3, "steps": 1_500}, (0.92, 0.88), (2, 3)),
        ("topk", {"features": 96, "k": 3, "steps": 1_500}, (0.95, 0.90), (2, 3)),
        ("batchtopk", {"features": 96, "k": 3, "steps": 1_500}, (0.93, 0.96), (2.85, 3.15)),
        ("matryoshka", {"features": 96, "k": 3, "steps": 1_500}, (0.86, 0.94), (2.85, 3.15)),
        ("relu", {"features": 96, "l0": 4, "steps": 1_500}, (0.97, 0.94), (3.6, 4.4)),
        ("relu", {"features": 96, "penalty": 1.5, "steps": 1_500}, (0.97, 0.94), (2, 6)),
        ("jumprelu", {"features": 96, "penalty": 1.0, "steps": 1_500}, (0.95, 0.95), (1.7, 3)),
        ("gated", {"features": 96, "l0": 3, "steps": 1_500}, (0.93, 0.95), (2.7, 3.3)),
    ],
)  # fmt: skip
def test_every_kind_finds_planted_features(
    planted: Planted, kind: str, given: dict[str, Any], least: tuple[float, float], l0: tuple[float, float]
) -> None:
    found = planted.judged(planted.trained(kind=kind, **given))
    assert found[0] >= least[0]
    assert found[1] <= 0.65
    assert found[2] >= least[1]
    assert l0[0] <= found[3] <= l0[1]


@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka"])
def test_a_threshold_is_calibrated_to_k_codes_a_row(planted: Planted, kind: str) -> None:
    found = planted.trained(kind=kind, features=96, k=3, steps=60)
    assert found.dictionary.kind == "jumprelu"
    assert len(found.dictionary.threshold.unique()) == 1
    sample = planted.rows(4_096, torch.Generator().manual_seed(2))
    assert float(found.dictionary.encode(sample).counts.double().mean()) == pytest.approx(3, rel=1e-3)
    assert planted.judged(found)[3] == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize(("kind", "l0", "apart"), [("relu", 4, 0.1), ("jumprelu", 3, 0.05)])
def test_a_penalty_is_found_for_the_l0_that_is_asked_for(planted: Planted, kind: str, l0: int, apart: float) -> None:
    found = planted.trained(kind=kind, features=96, l0=l0, steps=200)
    assert planted.judged(found)[3] == pytest.approx(l0, rel=apart)
    assert found.penalty > 0


def test_codes_made_too_small_by_a_penalty_are_made_larger_again(planted: Planted) -> None:
    given = {"kind": "relu", "features": 96, "penalty": 2.0, "steps": 150}
    plain, rescaled = planted.trained(rescale=False, **given), planted.trained(**given)
    sample = planted.rows(4_096, torch.Generator().manual_seed(2))
    a, b = (one.dictionary.reconstruct(sample) - one.dictionary.b_dec for one in (plain, rescaled))
    factor = float((b * a).sum() / a.square().sum())
    torch.testing.assert_close(b, factor * a, rtol=1e-4, atol=1e-5)
    best = float((a * (sample - plain.dictionary.b_dec)).double().sum() / a.double().square().sum())
    assert factor == pytest.approx(best, rel=1e-4)
    assert factor > 1.02
    assert explained(rescaled.dictionary, sample) > explained(plain.dictionary, sample)


def test_noise_is_explained_no_better_than_independent_directions_could() -> None:
    """A code of one direction w explains (w·x)² of a row at most; no 16 do better than independent ones (Šidák)."""
    generator = torch.Generator().manual_seed(0)
    settings = Training("topk", features=16, k=1, steps=150, lr=0.02)
    rows = ((torch.randn(256, WIDTH, generator=generator),) for _ in range(settings.steps))
    sample = (torch.randn(4_096, WIDTH, generator=generator),)
    found = train(settings, rows, sample=sample, calibration=sample)
    largest = torch.randn(100_000, 16, generator=generator, dtype=torch.float64).square().amax(dim=1)
    bound = float(largest.mean()) / WIDTH
    share = explained(found.dictionary, torch.randn(20_000, WIDTH, generator=generator))
    assert 1 / WIDTH < share < bound


def small(kind: str, **more: Any) -> Training:
    own = {"k": 3} if kind in COUNTED else {"penalty": 0.5}
    return Training(kind, features=64, steps=25, seed=3, **own, **more)


@pytest.mark.parametrize("kind", COUNTED + PENALIZED)
def test_the_same_seed_gives_the_same_bits(planted: Planted, kind: str) -> None:
    with torch.inference_mode():
        sample = (planted.rows(512, torch.Generator().manual_seed(2)),)
        batches = list(planted.batches(25, 128))
        first = train(small(kind), iter(batches), sample=sample, calibration=sample)
    again = train(small(kind), planted.batches(25, 128), sample=sample, calibration=sample)
    for name, tensor in first.dictionary.tensors.items():
        assert torch.equal(tensor, again.dictionary.tensors[name]), name
    assert (first.loss, first.l0, first.dead) == (again.loss, again.l0, again.dead)
    other = train(
        Training(**{**vars(small(kind)), "seed": 4}), planted.batches(25, 128), sample=sample, calibration=sample
    )
    assert not torch.equal(other.dictionary.W_dec, first.dictionary.W_dec)


@pytest.mark.parametrize("kind", COUNTED + PENALIZED)
@pytest.mark.parametrize("skip", [None, False, True])
def test_what_is_exported_is_what_was_trained(planted: Planted, kind: str, skip: bool | None) -> None:
    generator = torch.Generator().manual_seed(5)
    way = {} if skip is None else {"transcodes": True, "skip": skip}
    settings = small(kind, rescale=False, **way)
    x = 3 * planted.rows(256, generator) + 0.2
    batch = (x,) if skip is None else (x, (x @ torch.randn(WIDTH, 20, generator=generator)).abs())
    with torch.no_grad():
        run = Run(settings, batch)
        for _ in range(settings.steps):
            run.step(*batch)
        own, dictionary = run.own, run.dictionary(batch)
        encoded = batch[0] * run.scales[0] - (own["b_dec"] if skip is None else 0)
        u = encoded @ own["encoder"].T + own["b_enc"]
        match kind:
            case "topk":
                found = u.topk(3, dim=1)
                z = torch.zeros_like(u).scatter(1, found.indices, found.values.clamp_min(0))
            case "batchtopk" | "matryoshka":
                z = u * (u > u.flatten().sort(descending=True).values[3 * len(x)].clamp_min(0))
            case "relu":
                z = u.clamp_min(0)
            case "jumprelu":
                z = u * (u > own["log_threshold"].exp())
            case "gated":
                z = (u > 0) * ((u - own["b_enc"]) * own["r_mag"].exp() + own["b_mag"]).clamp_min(0)
        decoded = z @ own["decoder"] + own["b_dec"] + (batch[0] * run.scales[0] @ own["skip"].T if skip else 0)
    wanted = decoded / run.scales[-1]
    apart = (dictionary.reconstruct(batch[0]) - wanted).norm(dim=1)
    # A code at its threshold may fall on either side in another order of sums.
    assert float((apart > 1e-4 * wanted.norm(dim=1).mean()).double().mean()) <= 0.02
    assert dictionary.transcodes == (skip is not None)
    assert all(tensor.dtype == torch.float32 for tensor in dictionary.tensors.values())


def test_a_change_of_unit_changes_units_alone(planted: Planted) -> None:
    sample = planted.rows(512, torch.Generator().manual_seed(2))
    one, other = (
        train(
            small("relu"), ((unit * x,) for (x,) in planted.batches(25, 128)),
            sample=(unit * sample,), calibration=(unit * sample,),
        ).dictionary
        for unit in (1, 1_024)
    )  # fmt: skip
    assert torch.equal(one.W_dec, other.W_dec)
    torch.testing.assert_close(1_024 * one.reconstruct(sample), other.reconstruct(1_024 * sample))
    torch.testing.assert_close(1_024 * one.encode(sample).value, other.encode(1_024 * sample).value)


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_finds_features_of_a_layer(skip: bool) -> None:
    """16 rectified features of 8 numbers, and with `skip` a linear map beside them."""
    generator = torch.Generator().manual_seed(0)
    into, out = (torch.randn(shape, generator=generator) for shape in ((12, 16), (16, 8)))
    beside = 2 * torch.randn(12, 8, generator=generator) * skip

    def layer(count: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(count, 12, generator=generator)
        return x, (x @ into - 3).clamp_min(0) @ out + x @ beside

    settings = Training("topk", features=32, k=4, steps=200, lr=0.01, transcodes=True, skip=skip)
    sample = layer(2_000)
    found = train(settings, (layer(256) for _ in range(settings.steps)), sample=sample, calibration=sample)
    x, y = layer(5_000)
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones(5_000, 1)], dim=1), y).solution
    linear = torch.cat([x, torch.ones(5_000, 1)], dim=1) @ solution
    left = float((y - linear).square().sum() / (y - y.mean(dim=0)).square().sum())
    assert 1 - explained(found.dictionary, x, y) < 0.6 * left
    assert (found.dictionary.W_skip is not None) == skip


def test_no_batch_is_kept(planted: Planted) -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def batches() -> Iterator[tuple[Tensor, ...]]:
        nonlocal most
        for (x,) in planted.batches(25, 128):
            most = max(most, sum(one() is not None for one in alive))
            alive.append(weakref.ref(x))
            batch = (x,)
            del x
            yield batch
            del batch

    sample = (planted.rows(512, torch.Generator().manual_seed(2)),)
    train(small("topk"), batches(), sample=sample, calibration=sample)
    assert len(alive) == 25
    assert most <= 1


def test_the_course_of_training_is_recorded(planted: Planted) -> None:
    seen: list[int] = []
    sample = (planted.rows(512, torch.Generator().manual_seed(2)),)
    settings, batches = Training("topk", features=64, k=2, steps=115), planted.batches(115, 128)
    found = train(settings, batches, sample=sample, calibration=sample, progress=seen.append)
    assert seen == list(range(1, 116))
    assert found.recorded == (*range(1, 116),)
    assert len(found.loss) == len(found.l0) == len(found.recorded)
    assert found.l0[0] == 2
    assert all(1 <= l0 <= 2 for l0 in found.l0)
    assert found.loss[-1] < 0.7 * found.loss[0]
    assert 0 <= found.dead < 1
    assert found.penalty is None
    assert found.steps == 115
    assert found.seconds > 0


def test_features_that_no_row_needs_count_as_dead() -> None:
    """Rows along one direction, both ways: two features are enough, and k = 1 lets only few others be on."""
    rows = torch.randn(2_000, 1, generator=torch.Generator().manual_seed(0)) * torch.ones(1, 8)
    batches = ((rows[:256],) for _ in range(200))
    found = train(
        Training("topk", features=16, k=1, steps=200, auxiliary=0.0), batches, sample=(rows,), calibration=(rows,)
    )
    on = found.dictionary.encode(rows[:256]).index.unique()
    assert found.dead == 1 - len(on) / 16
    assert found.dead > 0.5


def test_the_rate_follows_the_number_of_features() -> None:
    assert Training(k=1).rate == pytest.approx(4e-3)
    assert Training(k=1, features=4_096).rate == pytest.approx(2e-3)
    assert Training(k=1, lr=0.5).rate == 0.5


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kind": "top-k", "k": 1}, "did you mean 'topk'"),
        ({"kind": "topk"}, "takes k"),
        ({"kind": "topk", "k": 3, "penalty": 1.0}, "no penalty or l0"),
        ({"kind": "topk", "k": 0}, "k is 0"),
        ({"kind": "topk", "k": 2_000}, "between 1 and the 1024 features"),
        ({"kind": "relu"}, "either penalty or l0"),
        ({"kind": "relu", "penalty": 1.0, "l0": 3.0}, "either penalty or l0"),
        ({"kind": "gated", "penalty": 1.0, "k": 3}, "no k"),
        ({"kind": "relu", "penalty": -1.0}, "penalty is -1.0"),
        ({"kind": "relu", "penalty": math.nan}, "penalty is nan"),
        ({"kind": "relu", "l0": 0.0}, "l0 is 0.0"),
        ({"kind": "topk", "k": 3, "groups": (8, 1_024)}, "only 'matryoshka'"),
        ({"kind": "matryoshka", "k": 3, "groups": (8, 512)}, "rising up to all 1024"),
        ({"kind": "matryoshka", "k": 3, "groups": (8, 8, 1_024)}, "rising up to all 1024"),
        ({"kind": "matryoshka", "k": 3, "groups": ()}, "rising up to all 1024"),
        ({"k": 1, "skip": True}, "transcodes"),
        ({"k": 1, "steps": 0}, "steps is 0"),
        ({"k": 1, "lr": 0.0}, "lr is 0.0"),
        ({"k": 1, "lr": math.inf}, "lr is inf"),
        ({"k": 1, "auxiliary": -1.0}, "auxiliary is -1.0"),
        ({"kind": "jumprelu", "penalty": 1.0, "bandwidth": 0.0}, "bandwidth is 0.0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(AssayError, match=words):
        Training(**given)


def test_rows_that_do_not_fit_are_refused(planted: Planted) -> None:
    sample = (planted.rows(64, torch.Generator().manual_seed(2)),)
    x = sample[0]
    for rows, words in (
        ([(x, x)], "training takes \\(x,\\)"),
        ([(x[:, :5],)], "have \\[5\\] numbers, and those of the sample \\[32\\]"),
        ([(x[:0],)], "got shapes \\(0, 32\\)"),
        ([(x,)] * 3, "rows for 3 steps, and training takes 25"),
        ([(x * math.nan,)] * 25, "no longer finite"),
    ):
        with pytest.raises(AssayError, match=words):
            train(small("topk"), iter(rows), sample=sample, calibration=sample)
    with pytest.raises(AssayError, match="mean norm of 0"):
        train(small("topk"), iter([(x,)] * 25), sample=(0 * x,), calibration=sample)
    with pytest.raises(AssayError, match="\\(x, y\\)"):
        train(small("topk", transcodes=True), iter([(x, x)] * 25), sample=sample, calibration=(x, x))
