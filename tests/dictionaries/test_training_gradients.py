"""Gradients of every kind of training against torch's own of the same losses, written out with whole matrices."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from assay.dictionaries import _training
from assay.dictionaries._gradients import Everything
from assay.dictionaries._training import COUNTED, PENALIZED, Run, Training

WIDTH, OUT, FEATURES, ROWS = 10, 7, 32, 40


class Step(torch.autograd.Function):
    """1[u > θ], whose gradient to θ is minus the share of a window of width ε that u is in."""

    @staticmethod
    def forward(ctx, u: Tensor, threshold: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(u, threshold)
        ctx.width = width
        return (u > threshold).to(u.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[None, Tensor, None]:
        u, threshold = ctx.saved_tensors
        inside = ((u - threshold).abs() < ctx.width / 2).to(u.dtype)
        return None, -(gradient * inside).sum(0) / ctx.width, None


class Jump(torch.autograd.Function):
    """u 1[u > θ]: its gradient to u is 1[u > θ], that to θ minus θ times the window's share."""

    @staticmethod
    def forward(ctx, u: Tensor, threshold: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(u, threshold)
        ctx.width = width
        return u * (u > threshold)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        u, threshold = ctx.saved_tensors
        inside = ((u - threshold).abs() < ctx.width / 2).to(u.dtype)
        return gradient * (u > threshold), -(gradient * inside * threshold).sum(0) / ctx.width, None


def largest(u: Tensor, count: int, *, of_rows: bool) -> Tensor:
    """The largest of each row or of all rows, where they are above 0; the others 0."""
    flat = u if of_rows else u.reshape(1, -1)
    found = flat.topk(count, dim=1)
    return torch.zeros_like(flat).scatter(1, found.indices, found.values.clamp_min(0)).view_as(u)


def plain(run: Run, own: dict[str, Tensor], x: Tensor, y: Tensor, penalty: float) -> Tensor:
    """The loss of scaled rows, as the formulas have it; the second is the target."""
    settings = run.settings
    encoded = x if settings.transcodes else x - own["b_dec"]
    u = encoded @ own["encoder"].T + own["b_enc"]
    skip = x @ own["skip"].T if settings.skip else 0.0
    norms = own["decoder"].norm(dim=1)
    match settings.kind:
        case "topk":
            z = largest(u, settings.k, of_rows=True)
        case "batchtopk" | "matryoshka":
            z = largest(u, settings.k * len(x), of_rows=False)
        case "relu":
            z = u.clamp_min(0)
        case "jumprelu":
            z = Jump.apply(u, own["log_threshold"].exp(), settings.bandwidth)
        case "gated":
            h = encoded @ own["encoder"].T
            z = (u > 0) * (h * own["r_mag"].exp() + own["b_mag"]).clamp_min(0)
    error = torch.stack(
        [(y - z[:, :end] @ own["decoder"][:end] - own["b_dec"] - skip).square().sum(1) for end in settings.prefixes]
    ).mean(0)
    match settings.kind:
        case "relu":
            error = error + penalty * (z * norms).sum(1)
        case "jumprelu":
            error = error + penalty * Step.apply(u, own["log_threshold"].exp(), settings.bandwidth).sum(1)
        case "gated":
            gate = u.clamp_min(0)
            again = y - gate @ own["decoder"].detach() - own["b_dec"].detach() - skip_detached(skip)
            error = error + penalty * (gate * norms).sum(1) + again.square().sum(1)
    return error.mean()


def skip_detached(skip: Tensor | float) -> Tensor | float:
    return skip.detach() if isinstance(skip, Tensor) else skip


def made(seed: int = 0, **given) -> tuple[Run, tuple[Tensor, ...]]:
    """A run in the middle of training, in float64, with no parameter at a special value, and a batch."""
    generator = torch.Generator().manual_seed(seed)
    both = tuple(
        2 + torch.randn(ROWS, size, generator=generator, dtype=torch.float64)
        for size in ((WIDTH, OUT) if given.get("transcodes") else (WIDTH,))
    )
    run = Run(Training(features=FEATURES, steps=10, **given), both)
    for parameter in run.own.values():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    run.own["decoder"].div_(run.own["decoder"].norm(dim=1, keepdim=True))
    run._done = 5  # the penalty is whole by then
    return run, both


def expected(run: Run, batch: tuple[Tensor, ...], loss: Callable[[dict[str, Tensor]], Tensor]) -> dict[str, Tensor]:
    """torch's gradients, what is along the decoder's rows taken off."""
    own = {name: parameter.clone().requires_grad_() for name, parameter in run.own.items()}
    with torch.enable_grad():
        loss(own).backward()
    found = {name: parameter.grad for name, parameter in own.items()}
    rows = run.own["decoder"]
    found["decoder"] = found["decoder"] - rows * (found["decoder"] * rows).sum(1, keepdim=True)
    return found


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert float(gradient.norm()) > 0, name
        cosine = float((found[name] * gradient).sum() / (found[name].norm() * gradient.norm()))
        assert cosine >= 1 - 1e-9, name
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)


OWN = {
    "topk": {"k": 3},
    "batchtopk": {"k": 3},
    "matryoshka": {"k": 3, "groups": (4, 12, 32)},
    "relu": {"penalty": 0.7},
    "jumprelu": {"penalty": 0.7, "bandwidth": 0.4},
    "gated": {"penalty": 0.7},
}
WAYS = {"autoencoder": {}, "transcoder": {"transcodes": True}, "skip": {"transcodes": True, "skip": True}}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("kind", "share"),
    [*((kind, 0.0) for kind in COUNTED), *((kind, share) for kind in PENALIZED for share in (0.0, 1.0))],
)
def test_gradients_are_those_of_the_loss_written_out(
    kind: str, share: float, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = []
    monkeypatch.setattr(_training, "DENSE_ROWS", 17)  # 40 rows in three parts, the last of them small
    monkeypatch.setattr(_training, "Everything", lambda decoder: parts.append(decoder) or Everything(decoder))
    run, batch = made(kind=kind, auxiliary=0.0, **OWN[kind], **WAYS[way])
    run._share = share  # below the share of entries the sums over entries, above it whole matrices
    x, y = (part * scale for part, scale in zip((batch[0], batch[-1]), (run.scales[0], run.scales[-1]), strict=True))
    wanted_loss = plain(run, run.own, x, y, 0.7)
    wanted = expected(run, batch, lambda own: plain(run, own, x, y, 0.7))

    loss, found = run.gradients(*batch)
    assert len(parts) == (3 if share else 0)
    assert float(loss.value) == pytest.approx(float(wanted_loss), rel=1e-12)
    assert_same(found, wanted)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("kind", "dead"), [("topk", 9), ("batchtopk", 9), ("matryoshka", 9), ("topk", 2)])
def test_silent_features_explain_what_is_left(kind: str, dead: int, way: str) -> None:
    run, batch = made(kind=kind, auxiliary=0.5, **OWN[kind], **WAYS[way])
    silent = torch.arange(3, 3 + dead)
    run.own["b_enc"][silent] -= 9  # they are in no row's codes
    run._silent[silent] = 10**6
    run._rows = 10**5  # the others were on too recently to count as dead
    x, y = (part * scale for part, scale in zip((batch[0], batch[-1]), (run.scales[0], run.scales[-1]), strict=True))

    def whole(own: dict[str, Tensor]) -> Tensor:
        encoded = x if run.settings.transcodes else x - own["b_dec"]
        u = encoded @ own["encoder"].T + own["b_enc"]
        z = largest(u, 3 if kind == "topk" else 3 * ROWS, of_rows=kind == "topk")
        left = y - z @ own["decoder"] - own["b_dec"] - (x @ own["skip"].T if run.settings.skip else 0.0)
        chosen = u[:, silent].topk(min(dead, y.shape[1] // 2), dim=1)
        of_dead = torch.zeros(ROWS, dead, dtype=u.dtype).scatter(1, chosen.indices, chosen.values)
        again = left.detach() - of_dead @ own["decoder"][silent]
        return plain(run, own, x, y, 0.0) + 0.5 * again.square().sum(1).mean()

    wanted = expected(run, batch, whole)
    loss, found = run.gradients(*batch)
    assert float(loss.value) == pytest.approx(float(whole(run.own)), rel=1e-12)
    assert_same(found, wanted)


def test_a_batch_with_no_feature_on_has_gradients() -> None:
    run, batch = made(kind="topk", k=3, auxiliary=0.0)
    run.own["b_enc"] -= 100
    loss, found = run.gradients(*batch)
    assert int(loss.on) == 0
    assert not loss.fired.any()
    assert float(found["encoder"].norm()) == 0
    assert float(found["b_dec"].norm()) > 0


@pytest.mark.gpu
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", COUNTED + PENALIZED)
def test_another_device_gives_the_same_gradients(kind: str, way: str) -> None:
    run, batch = made(kind=kind, auxiliary=0.0, **OWN[kind], **WAYS[way])
    run._share = 0.0
    there = Run(run.settings, tuple(part.cuda() for part in batch))
    for name, parameter in run.own.items():
        there.own[name].copy_(parameter)
    there._share, there._done = 0.0, 5
    _, wanted = run.gradients(*batch)
    _, found = there.gradients(*(part.cuda() for part in batch))
    assert_same({name: gradient.cpu() for name, gradient in found.items()}, wanted)
