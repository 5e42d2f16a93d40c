"""Training of dictionaries: settings, one loop for all kinds, and what is calibrated afterwards."""

import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from assay._errors import AssayError, unknown_name
from assay._given import checked
from assay.dictionaries import _gradients
from assay.dictionaries._dictionary import SPARSE, Dictionary
from assay.dictionaries._gradients import Entries, Everything, Loss, Parameters
from assay.dictionaries._selection import above, largest, largest_of_rows
from assay.engine._kernels import product

COUNTED = ("topk", "batchtopk", "matryoshka")
"""Kinds that are given how many features are on."""

PENALIZED = ("relu", "jumprelu", "gated")
"""Kinds that are given a price of features that are on."""

BLOCK = 2**20
"""Pre-activations that are held at a time where few of them are kept: about what a CPU's cache holds."""

DENSE_ROWS = 256
"""Rows whose codes are held at a time where many are on: fewer make products slower, more take memory."""

RECORDS = 100
"""Means of loss and L0 that are kept of a run, at most about."""

FIRST_THRESHOLD = 0.5
"""Of JumpReLU, where rows have a mean norm of √width; from 0.01 thresholds take thousands of steps to get there."""

WARM = 0.3
"""The share of a run over which penalties rise."""

FIRST_PENALTY, AT_ONCE = 0.1, 1.0
GAIN = {"relu": 0.06, "gated": 0.06, "jumprelu": 0.02}
"""Where a penalty starts that is moved until an L0 is met, and its relative change for each e-fold that L0 is off:
for the next step alone, and for good. Thresholds move slowly, so that a penalty that moves fast goes too far."""


@dataclass(frozen=True)
class Training:
    """How a dictionary is trained.

    | kind | what is minimised, a mean over rows | source |
    |---|---|---|
    | `topk` | the squared error with the `k` largest codes of each row | arXiv 2406.04093 |
    | `batchtopk` | the same with the k largest a row of all rows of a batch together | arXiv 2412.06410 |
    | `matryoshka` | the mean of the squared errors of the first `groups` features, as `batchtopk` | arXiv 2503.17547 |
    | `relu` | squared error + penalty · Σ codes | Anthropic's update of April 2024 |
    | `jumprelu` | squared error + penalty · how many codes are on | arXiv 2407.14435 |
    | `gated` | squared error + penalty · Σ open gates + squared error by the gates alone | arXiv 2404.16014 |

    Rows are scaled to a mean norm of √width first, which penalties refer to, and back in the dictionary. The first
    three take `k`, the last three either `penalty` or `l0`, how many codes are to be on in the mean: the penalty is
    then moved during training until they are. Dictionaries of `batchtopk` and `matryoshka` are JumpReLU ones, whose
    one threshold is calibrated: of a sample, k codes a row are on in the mean. So are the thresholds of `jumprelu` with
    `l0`, all by one factor.

    `lr` None is 4e-3 · √(1024 / features). `transcodes`: what is decoded is not the row but what a module makes of it;
    `skip` adds a linear map of the row. `rescale` multiplies the codes of a `relu` dictionary by the one number that
    gives the least squared error: its penalty has made them too small. `auxiliary` is the weight of what features that
    were silent for `dead_rows` rows, or a fifth of the run if that is less, explain of what is left; of the first three
    kinds. `bandwidth` is the width of the window over which the gradient of a `jumprelu` threshold is estimated.

    Raises AssayError for settings that do not go together.
    """

    kind: str = "topk"
    features: int = 1_024
    k: int | None = None
    penalty: float | int | None = None
    l0: float | int | None = None
    groups: tuple[int, ...] | None = None
    steps: int = 2_000
    lr: float | int | None = None
    seed: int = 0
    transcodes: bool = False
    skip: bool = False
    rescale: bool = True
    auxiliary: float = 1 / 32
    dead_rows: int = 200_000
    bandwidth: float = 0.05

    def __post_init__(self) -> None:
        _check(self)

    @property
    def rate(self) -> float:
        """The learning rate after warm-up."""
        return 4e-3 * math.sqrt(1_024 / self.features) if self.lr is None else self.lr

    @property
    def prefixes(self) -> tuple[int, ...]:
        """How many of the first features each part of a Matryoshka loss has; all of them for the other kinds."""
        if self.kind != "matryoshka":
            return (self.features,)
        if self.groups is not None:
            return self.groups
        return tuple(sorted({max(1, self.features // part) for part in (8, 4, 2, 1)}))


@dataclass(frozen=True, eq=False)
class Trained:
    """A dictionary, and how its training went.

    `loss` and `l0` are means over the steps up to each of `recorded`, the loss of scaled rows. `dead` is the share of
    features that were silent at the end for as long as counts as dead, `penalty` the last one, `seconds` by the clock.
    """

    dictionary: Dictionary
    recorded: tuple[int, ...]
    loss: tuple[float, ...]
    l0: tuple[float, ...]
    steps: int
    dead: float
    penalty: float | None
    seconds: float


@checked
def train(
    settings: Training,
    rows: Iterator[tuple[Tensor, ...]],
    *,
    sample: tuple[Tensor, ...],
    calibration: tuple[Tensor, ...],
    progress: Callable[[int], None] | None = None,
) -> Trained:
    """Train a dictionary on batches of rows.

    `rows` yields (x,), or (x, y) for transcoders, each (row, width), `settings.steps` times; no batch is kept.
    `sample` are such rows for initial values, `calibration` for what is fitted after training: seeded draws, not the
    first rows of a split. `progress` is told each step that is done. The same settings and rows give the same bits on
    as many threads.

    Raises AssayError for rows of other shapes than the sample's, fewer batches than steps, and a loss that is not
    finite.
    """
    began = time.perf_counter()
    # Gradients of sums over entries are taken by torch, which inference mode would not allow.
    with torch.inference_mode(False), torch.no_grad():
        run = Run(settings, sample)
        run.checked(calibration)
        recorded: list[tuple[int, float, float]] = []
        each, total = max(1, settings.steps // RECORDS), torch.zeros(2, dtype=torch.float64)
        for step in range(settings.steps):
            batch = next(rows, None)
            if batch is None:
                raise AssayError(
                    f"there were rows for {step} steps, and training takes {settings.steps}; give fewer steps or "
                    "repeat the rows."
                )
            loss, count = run.step(*run.checked(batch)), len(batch[0])
            del batch
            total = total.to(loss.value.device) + torch.stack([loss.value.double(), loss.on.double() / count])
            if (step + 1) % each == 0 or step + 1 == settings.steps:
                since = step + 1 - (recorded[-1][0] if recorded else 0)
                mean_loss, l0 = (total / since).tolist()
                if not math.isfinite(mean_loss):
                    raise AssayError(
                        f"the loss was no longer finite by step {step + 1}: with a learning rate of {settings.rate:g} "
                        "training has diverged (lower lr), or rows hold numbers that are not finite."
                    )
                recorded.append((step + 1, mean_loss, l0))
                total = total.zero_()
            if progress is not None:
                progress(step + 1)
        dictionary = run.dictionary(calibration)
    steps, losses, l0s = zip(*recorded, strict=True)
    penalty = run.penalty if settings.kind in PENALIZED else None
    return Trained(
        dictionary, steps, losses, l0s, settings.steps, run.dead(), penalty, time.perf_counter() - began
    )  # fmt: skip


class Run:
    """Parameters in training, and what is known of the run so far."""

    def __init__(self, settings: Training, sample: tuple[Tensor, ...]) -> None:
        self.settings, self._widths = settings, None
        self._widths = [part.shape[-1] for part in self.checked(sample)]
        self.scales = [_scale(part) for part in sample]
        self.own = _initial(settings, sample, self.scales[-1])
        self._adam = torch.optim.Adam(list(self.own.values()), lr=settings.rate, fused=True)
        features, device = settings.features, self.own["encoder"].device
        self._silent = torch.zeros(features, dtype=torch.int64, device=device)
        self._group = torch.bucketize(
            torch.arange(features, device=device), torch.tensor(settings.prefixes, device=device), right=True
        )
        self._done = self._rows = 0
        self._share, self._bar = 1.0, math.inf
        self.penalty = self._multiplier = settings.penalty if settings.penalty is not None else FIRST_PENALTY
        self._first_l0: float | None = None

    def checked(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """A batch, or a sample; AssayError if it is not of the right shape."""
        wanted = 2 if self.settings.transcodes else 1
        if len(batch) != wanted or any(
            part.dim() != 2 or len(part) != len(batch[0]) or not len(part) for part in batch
        ):
            raise AssayError(
                f"training takes {'(x, y)' if wanted == 2 else '(x,)'} with rows of vectors, as many of each; got "
                f"shapes {', '.join(str(tuple(part.shape)) for part in batch)}."
            )
        if self._widths is not None and [part.shape[1] for part in batch] != self._widths:
            raise AssayError(
                f"rows have {[part.shape[1] for part in batch]} numbers, and those of the sample {self._widths}."
            )
        return batch

    @property
    def pre_bias(self) -> bool:
        """Whether b_dec is taken off what is encoded."""
        return not self.settings.transcodes

    @property
    def window(self) -> float:
        """How many rows a feature is silent before it counts as dead."""
        whole = self._rows / max(1, self._done) * self.settings.steps
        return min(self.settings.dead_rows, whole / 5)

    def dead(self) -> float:
        """The share of features that count as dead."""
        return float((self._silent >= self.window).double().mean())

    # -- a step ------------------------------------------------------------------------------------------------------

    def step(self, *batch: Tensor) -> Loss:
        """One step of training."""
        settings, own = self.settings, self.own
        loss, gradients = self.gradients(*batch)
        for name, gradient in gradients.items():
            own[name].grad = gradient
        torch.nn.utils.clip_grad_norm_(own.values(), 1.0)
        self._adam.param_groups[0]["lr"] = settings.rate * _schedule(self._done, settings.steps)
        self._adam.step()
        self._adam.zero_grad()
        own["decoder"].div_(torch.linalg.vector_norm(own["decoder"], dim=1, keepdim=True))
        return loss

    def gradients(self, *batch: Tensor) -> tuple[Loss, Parameters]:
        """The loss of a batch and the gradients of all parameters, those along the decoder's rows taken off."""
        settings, own = self.settings, self.own
        inputs, target = self.prepared(batch)
        loss = self.loss(inputs, target)
        self._rows += len(inputs)
        self._done += 1
        self._silent = torch.where(loss.fired, 0, self._silent + len(inputs))
        if settings.kind in COUNTED and settings.auxiliary:
            silent = (self._silent >= self.window).nonzero()[:, 0]
            if len(silent):
                loss = _gradients.add_auxiliary(loss, own, inputs, silent, settings.auxiliary)
        return loss, _gradients.completed(loss, own, pre_bias=self.pre_bias)

    def prepared(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """What is encoded, and what the codes are to give: without b_dec and what a skip connection gives."""
        scaled = [part.to(self.own["b_dec"].dtype) * scale for part, scale in zip(batch, self.scales, strict=True)]
        if self.pre_bias:
            inputs = target = scaled[0].sub_(self.own["b_dec"])
        else:
            inputs, target = scaled[0], scaled[1].sub_(self.own["b_dec"])
        if self.settings.skip:
            target.sub_(product(inputs, self.own["skip"]))
        return inputs, target

    def loss(self, inputs: Float[Tensor, "row width"], target: Float[Tensor, "row out"]) -> Loss:
        """The loss of prepared rows, at the penalty of now, without the auxiliary part."""
        settings, own = self.settings, self.own
        if settings.kind in COUNTED:
            by, pre = self._entries(inputs)
            return _gradients.relu(by, own, pre, inputs, target, groups=len(settings.prefixes))
        penalty = self.penalty
        if settings.l0 is None:
            penalty *= min(1.0, (self._done + 1) / (WARM * settings.steps))
        if settings.kind == "relu":
            of = functools.partial(_gradients.relu, penalty=penalty)
        elif settings.kind == "gated":
            of = functools.partial(_gradients.gated, penalty=penalty)
        else:
            of = functools.partial(_gradients.jumprelu, penalty=penalty, bandwidth=settings.bandwidth)
        if self._share > SPARSE:
            loss = _gradients.joined(self._dense(of, inputs, target), len(inputs))
        else:
            by, pre = self._entries(inputs)
            loss = of(by, own, pre, inputs, target)
        l0 = float(loss.on) / len(inputs)
        self._share = l0 / settings.features
        if settings.l0 is not None:
            self._steer(l0, float(settings.l0))
        return loss

    def _dense(
        self, of: Callable[..., Loss], inputs: Float[Tensor, "row width"], target: Float[Tensor, "row out"]
    ) -> Iterator[Loss]:
        """The losses of some rows at a time, over all features."""
        own = self.own
        for start in range(0, len(inputs), DENSE_ROWS):
            part = slice(start, start + DENSE_ROWS)
            pre = product(inputs[part], own["encoder"], own["b_enc"])
            yield of(Everything(own["decoder"]), own, pre, inputs[part], target[part])

    def _steer(self, l0: float, wanted: float) -> None:
        """Move the penalty towards the one that gives an L0: the multiplier of a constraint, by its error and its sum.

        The L0 that is wanted now goes from the first step's to the one asked for while penalties otherwise warm up.
        """
        if self._first_l0 is None:
            self._first_l0 = max(l0, 1.0)
        way = min(1.0, self._done / (WARM * self.settings.steps))
        now = (1 - way) * math.log(self._first_l0) + way * math.log(wanted)
        # Fewer on than on the way there is no reason to lower a penalty that has not begun to work.
        off = max(-1.0 if way == 1 else 0.0, min(1.0, math.log(max(l0, 1e-3)) - now))
        self._multiplier *= math.exp(GAIN[self.settings.kind] * off)
        self.penalty = self._multiplier * math.exp(AT_ONCE * off)

    def _entries(self, inputs: Float[Tensor, "row width"]) -> tuple[Entries, Tensor]:
        """What the loss is computed over, and the pre-activations there."""
        settings, own, rows = self.settings, self.own, len(inputs)
        if settings.kind == "topk":
            assert settings.k is not None
            parts = [largest_of_rows(pre, settings.k) for _, pre in self._pre_activations(inputs)]
            values, index = (torch.cat([part[place].flatten() for part in parts]) for place in (0, 1))
            bags = torch.arange(rows, device=index.device).repeat_interleave(settings.k)
            on = values > 0
            if not bool(on.all()):
                values, index, bags = values[on], index[on], bags[on]
            return Entries(bags, index, rows, own["decoder"]), values
        if settings.kind in COUNTED:
            values, bags, index = self._largest_of_all(inputs)
            groups = len(settings.prefixes)
            if groups > 1:
                bags = bags + rows * self._group[index]
                order = torch.argsort(bags, stable=True)
                values, bags, index = values[order], bags[order], index[order]
            return Entries(bags, index, rows * groups, own["decoder"]), values
        bar: Tensor | float = 0.0
        if settings.kind == "jumprelu":
            bar = own["log_threshold"].exp() - settings.bandwidth / 2
        values, bags, index = self._above(inputs, bar)
        return Entries(bags, index, rows, own["decoder"]), values

    def _pre_activations(
        self, inputs: Float[Tensor, "row width"]
    ) -> Iterator[tuple[int, Float[Tensor, "row feature"]]]:
        """Pre-activations of some rows at a time, each with the first row's number."""
        for part in _parts(self.settings.features, len(inputs)):
            yield part.start, product(inputs[part], self.own["encoder"], self.own["b_enc"])

    def _above(self, inputs: Float[Tensor, "row width"], bar: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        """The pre-activations above a bar, their rows and features."""
        parts = []
        for start, pre in self._pre_activations(inputs):
            values, rows, index = above(pre, bar)
            parts.append((values, rows + start, index))
        values, rows, index = (torch.cat(part) for part in zip(*parts, strict=True))
        return values, rows, index

    def _largest_of_all(self, inputs: Float[Tensor, "row width"]) -> tuple[Tensor, Tensor, Tensor]:
        """The k largest pre-activations a row of all rows together, as far as they are above 0."""
        assert self.settings.k is not None
        wanted = self.settings.k * len(inputs)
        if self._bar == math.inf:
            few = product(inputs[:: max(1, len(inputs) // 64)], self.own["encoder"], self.own["b_enc"])
            rank = min(few.numel(), 2 * self.settings.k * len(few))
            self._bar = max(0.0, float(few.flatten().topk(rank).values[-1]))
        # A bar that is a little below the last batch's smallest leaves few to choose from; if it leaves too few, lower.
        while True:
            values, rows, index = self._above(inputs, self._bar)
            if len(values) >= wanted or self._bar == 0:
                break
            self._bar = self._bar * 0.7 if self._bar > 1e-3 else 0.0
        if len(values) > wanted:
            chosen = largest(values, wanted)
            values, rows, index = values[chosen], rows[chosen], index[chosen]
        self._bar = 0.9 * float(values.min()) if len(values) == wanted else 0.0
        return values, rows, index

    # -- after training ----------------------------------------------------------------------------------------------

    def dictionary(self, calibration: tuple[Tensor, ...]) -> Dictionary:
        """The dictionary of unscaled rows, in float32 on the CPU, with what is fitted after training.

        Decoder rows keep norm 1, so that codes are in the units of what is decoded.
        """
        settings, into, out = self.settings, self.scales[0], self.scales[-1]
        own = {name: parameter.detach().float().cpu() for name, parameter in self.own.items()}
        parts: dict[str, Any] = {
            "W_enc": (own["encoder"] * (into / out)).t().contiguous(),
            "b_enc": own["b_enc"] / out,
            "W_dec": own["decoder"].clone(),
            "b_dec": own["b_dec"] / out,
            "pre_bias": self.pre_bias,
            "transcodes": settings.transcodes,
            "W_skip": own["skip"] * (into / out) if settings.skip else None,
        }
        calibration = tuple(part.float().cpu() for part in calibration)
        if settings.kind == "topk":
            return Dictionary(kind="topk", k=settings.k, **parts)
        if settings.kind == "jumprelu":
            thresholds = own["log_threshold"].exp() / out
            found = Dictionary(kind="jumprelu", threshold=thresholds, **parts)
            if settings.l0 is None:
                return found
            return replace(
                found, threshold=thresholds * _threshold(found, float(settings.l0), calibration[0], thresholds)
            )
        if settings.kind == "gated":
            return Dictionary(kind="gated", r_mag=own["r_mag"].clone(), b_mag=own["b_mag"] / out, **parts)
        found = Dictionary(kind="relu", **parts)
        if settings.kind == "relu":
            factor = _factor(found, calibration) if settings.rescale else 1.0
            return replace(found, W_enc=found.W_enc * factor, b_enc=found.b_enc * factor)
        assert settings.k is not None
        threshold = _threshold(found, float(settings.k), calibration[0])
        return replace(found, kind="jumprelu", threshold=torch.full_like(found.b_enc, threshold))


def _parts(features: int, rows: int) -> Iterator[slice]:
    """Some rows at a time, so that the codes of each part are held, and not those of all."""
    size = max(64, BLOCK // features)
    for start in range(0, rows, size):
        yield slice(start, start + size)


def _threshold(
    dictionary: Dictionary,
    l0: float | int,
    rows: Float[Tensor, "row width"],
    unit: Float[Tensor, " feature"] | float = 1.0,
) -> float:
    """The threshold, in units that may be a feature's own, above which lie l0 pre-activations a row in the mean.

    It is 0 if fewer are above 0.
    """
    wanted = round(l0 * len(rows)) + 1
    kept, bar = rows.new_zeros(0), 0.0
    for part in _parts(dictionary.features, len(rows)):
        values, _, _ = above(dictionary._pre_activations(rows[part]) / unit, bar)
        kept = torch.cat([kept, values])
        if len(kept) > wanted:
            kept = kept[largest(kept, wanted)]
            bar = float(kept.min())
    return float(kept.min()) if len(kept) == wanted else 0.0


def _factor(dictionary: Dictionary, calibration: tuple[Tensor, ...]) -> float:
    """The factor of all codes that gives the least squared error."""
    x, target = calibration[0], calibration[-1]
    both = torch.zeros(2, dtype=torch.float64)
    for part in _parts(dictionary.features, len(x)):
        rest = dictionary.b_dec if dictionary.W_skip is None else dictionary.b_dec + x[part] @ dictionary.W_skip.t()
        decoded = (dictionary.reconstruct(x[part]) - rest).double()
        both += torch.stack([(decoded * (target[part] - rest)).sum(), decoded.square().sum()])
    along, energy = both.tolist()
    # Codes are never below 0: what is not decoded along the target at all is left as it is.
    return along / energy if along > 0 and energy > 0 else 1.0


def _scale(rows: Float[Tensor, "row width"]) -> float:
    """What gives rows a mean norm of √width."""
    norm = float(torch.linalg.vector_norm(rows, dim=1).double().mean())
    if not (math.isfinite(norm) and norm > 0):
        raise AssayError(
            f"the rows of the sample have a mean norm of {norm}; training needs rows that are finite, not all 0."
        )
    return math.sqrt(rows.shape[1]) / norm


def _initial(settings: Training, sample: tuple[Tensor, ...], scale: float) -> Parameters:
    """Parameters before the first step, on the sample's device; `scale` is that of what is decoded."""
    first, last, features = sample[0], sample[-1], settings.features
    dtype = torch.promote_types(first.dtype, torch.float32)
    generator = torch.Generator().manual_seed(settings.seed)
    decoder = torch.randn(features, last.shape[1], generator=generator, dtype=dtype)
    decoder /= torch.linalg.vector_norm(decoder, dim=1, keepdim=True)
    encoder = decoder.clone()
    if settings.transcodes:
        encoder = torch.randn(features, first.shape[1], generator=generator, dtype=dtype) / math.sqrt(first.shape[1])
    found = {"encoder": encoder, "decoder": decoder, "b_enc": torch.zeros(features, dtype=dtype)}
    if settings.kind == "jumprelu":
        found["log_threshold"] = torch.full((features,), math.log(FIRST_THRESHOLD), dtype=dtype)
    if settings.kind == "gated":
        found |= {"r_mag": torch.zeros(features, dtype=dtype), "b_mag": torch.zeros(features, dtype=dtype)}
    if settings.skip:
        found["skip"] = torch.zeros(last.shape[1], first.shape[1], dtype=dtype)
    found["b_dec"] = last.mean(dim=0, dtype=dtype) * scale
    return {name: tensor.to(first.device) for name, tensor in found.items()}


def _schedule(step: int, steps: int) -> float:
    """The share of the learning rate in a step, counted from 1: 5 % warm-up, the last 20 % down to 0."""
    return min(1.0, step / (0.05 * steps), (steps - step + 1) / (0.2 * steps))


def _check(given: Training) -> None:
    """Raise AssayError unless settings go together."""
    if given.kind not in COUNTED + PENALIZED:
        raise unknown_name("kind of training", given.kind, COUNTED + PENALIZED)
    for name in ("features", "steps", "dead_rows"):
        if getattr(given, name) < 1:
            raise AssayError(f"{name} is {getattr(given, name)}; it has to be at least 1.")
    _check_kind(given)
    if given.skip and not given.transcodes:
        raise AssayError(
            "a skip connection is a transcoder's: an autoencoder would learn to copy; set transcodes, too."
        )
    for name in ("rate", "bandwidth"):
        if not (math.isfinite(getattr(given, name)) and getattr(given, name) > 0):
            raise AssayError(f"{'lr' if name == 'rate' else name} is {getattr(given, name)}; it has to be above 0.")
    if not given.auxiliary >= 0:
        raise AssayError(f"auxiliary is {given.auxiliary}; it has to be at least 0.")


def _check_kind(given: Training) -> None:
    """Raise AssayError unless settings are those of their kind."""
    if given.kind in COUNTED:
        if given.k is None or given.penalty is not None or given.l0 is not None:
            raise AssayError(f"training of the kind {given.kind!r} takes k, how many codes are on, no penalty or l0.")
        if not 1 <= given.k <= given.features:
            raise AssayError(f"k is {given.k}; it has to be between 1 and the {given.features} features.")
    else:
        if given.k is not None or (given.penalty is None) == (given.l0 is None):
            raise AssayError(f"training of the kind {given.kind!r} takes either penalty or l0, and no k.")
        if given.penalty is not None and not given.penalty >= 0:
            raise AssayError(f"penalty is {given.penalty}; it has to be at least 0.")
        if given.l0 is not None and not 0 < given.l0 < given.features:
            raise AssayError(f"l0 is {given.l0}; it has to be between 0 and the {given.features} features.")
    if given.groups is not None:
        rises = list(given.groups) == sorted(set(given.groups)) and min(given.groups, default=0) >= 1
        if given.kind != "matryoshka" or not rises or given.groups[-1] != given.features:
            raise AssayError(
                f"groups are {given.groups}; only 'matryoshka' has them, rising up to all {given.features} features."
            )
