"""Losses of dictionaries and their gradients, by sums over the features that are on instead of whole products.

With k of F features on in a row, all products but the encoder's have k / F of their work; where many are on, plain
products are faster. Each formula is written once, in terms of what `Entries` and `Everything` both compute.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from assay.dictionaries._selection import largest_of_rows
from assay.engine._kernels import product

Parameters = dict[str, Tensor]
"""By name: `encoder` (feature, width), `decoder` (feature, out) with rows of norm 1, `b_enc`, `b_dec`; of JumpReLU
`log_threshold`, of gated `r_mag` and `b_mag`; of a skip connection `skip` (out, width)."""

Values = Float[Tensor, " entry"] | Float[Tensor, "row feature"]
"""Numbers of `Entries`, or of `Everything`."""


class Entries:
    """Some features of each row, as a list by bag: most often those that are on.

    A row is one bag, or, where features come in groups, as many bags as there are groups: first those of the first
    group, of all rows, then those of the next.
    """

    def __init__(
        self,
        bags_of: Int[Tensor, " entry"],
        index: Int[Tensor, " entry"],
        bags: int,
        decoder: Float[Tensor, "feature out"],
    ) -> None:
        self._index, self._bags, self._decoder = index, bags, decoder
        each = torch.bincount(bags_of, minlength=bags)
        self._start = each.cumsum(0) - each
        self._order = _by_feature(index, len(decoder))
        self._counts = torch.bincount(index, minlength=len(decoder))
        self._first = self._counts.cumsum(0) - self._counts
        self._bags_by_feature = bags_of[self._order]
        self._graph: tuple[Tensor, Tensor] | None = None

    def at(self, parameter: Float[Tensor, " feature"]) -> Float[Tensor, " entry"]:
        """The number of each entry's feature."""
        return parameter[self._index]

    def decode(self, values: Float[Tensor, " entry"]) -> Float[Tensor, "bag out"]:
        """The sum over each bag of value times decoder row."""
        with torch.enable_grad():
            weights = values.detach().requires_grad_()
            summed = embedding_bag(self._index, self._decoder, self._start, per_sample_weights=weights, mode="sum")
        self._graph = weights, summed
        return summed.detach()

    def back(self, gradient: Float[Tensor, "bag out"]) -> Float[Tensor, " entry"]:
        """The product of the gradient of each entry's bag with its decoder row; after `decode`, of whatever values."""
        assert self._graph is not None
        weights, summed = self._graph
        (found,) = torch.autograd.grad(summed, weights, gradient, retain_graph=True)
        return found

    def over(
        self, values: Float[Tensor, " entry"], table: Float[Tensor, "row width"]
    ) -> Float[Tensor, "feature width"]:
        """The sum over each feature's entries of value times row of a table, which has a row a bag or a row a row."""
        bags = self._bags_by_feature if len(table) == self._bags else self._bags_by_feature % len(table)
        return embedding_bag(bags, table, self._first, per_sample_weights=values[self._order], mode="sum")

    def total(self, values: Float[Tensor, " entry"]) -> Float[Tensor, " feature"]:
        """The sum over each feature's entries of values."""
        return self.over(values, values.new_ones(self._bags, 1))[:, 0]

    def fired(self, values: Float[Tensor, " entry"]) -> Bool[Tensor, " feature"]:
        """Whether a feature has a value above 0."""
        on = values > 0
        if bool(on.all()):
            return self._counts > 0
        return torch.bincount(self._index[on], minlength=len(self._decoder)) > 0


class Everything:
    """All features of all rows, as matrices."""

    def __init__(self, decoder: Float[Tensor, "feature out"]) -> None:
        self._decoder = decoder

    def at(self, parameter: Float[Tensor, " feature"]) -> Float[Tensor, " feature"]:
        """The number of each feature."""
        return parameter

    def decode(self, values: Float[Tensor, "row feature"]) -> Float[Tensor, "row out"]:
        """The sum over each row of value times decoder row."""
        return product(values, self._decoder.t())

    def back(self, gradient: Float[Tensor, "row out"]) -> Float[Tensor, "row feature"]:
        """The product of the gradient of each row with every decoder row."""
        return product(gradient, self._decoder)

    def over(
        self, values: Float[Tensor, "row feature"], table: Float[Tensor, "row width"]
    ) -> Float[Tensor, "feature width"]:
        """The sum over rows of value times row of a table."""
        return product(values.t(), table.t())

    def total(self, values: Float[Tensor, "row feature"]) -> Float[Tensor, " feature"]:
        """The sum over rows of values."""
        return values.sum(dim=0)

    def fired(self, values: Float[Tensor, "row feature"]) -> Bool[Tensor, " feature"]:
        """Whether a feature has a value above 0."""
        return values.amax(dim=0) > 0


def _by_feature(index: Int[Tensor, " entry"], features: int) -> Int[Tensor, " entry"]:
    """The order that sorts entries by feature, stable, so that sums over them have one order."""
    if index.device.type == "cpu" and features <= 2**16:
        # numpy sorts numbers of 16 bits by their digits: an order of magnitude less than by comparing.
        return torch.from_numpy(np.argsort(index.numpy().astype(np.uint16), kind="stable"))
    return torch.argsort(index, stable=True)


@dataclass(frozen=True)
class Loss:
    """The loss of some rows, a mean over them, and its gradients by parameter.

    `on` is how many features are on in all, `fired` which are on at all, `left` what is not reconstructed, `steps` the
    gradient of all rows' pre-activations together.
    """

    value: Float[Tensor, ""]
    on: Int[Tensor, ""]
    fired: Bool[Tensor, " feature"]
    left: Float[Tensor, "row out"]
    steps: Float[Tensor, " feature"]
    gradients: Parameters


def joined(losses: Iterable[Loss], rows: int) -> Loss:
    """The loss of so many rows from those of parts of them, one after the other, so that one part is held at a time.

    The first one's tensors are taken over.
    """
    parts = iter(losses)
    first = next(parts)
    share = len(first.left) / rows
    # Before the gradients are scaled in place: that of b_enc is the same tensor.
    value, steps = first.value * share, first.steps * share
    gradients = first.gradients
    for gradient in gradients.values():
        gradient.mul_(share)
    on, fired, left = first.on, first.fired, [first.left]
    for part in parts:
        share = len(part.left) / rows
        value, steps = value + share * part.value, steps + share * part.steps
        for name, gradient in part.gradients.items():
            gradients[name].add_(gradient, alpha=share)
        on, fired = on + part.on, fired | part.fired
        left.append(part.left)
    return Loss(value, on, fired, torch.cat(left), steps, gradients)


def relu(
    by: Entries | Everything,
    own: Parameters,
    pre: Values,
    inputs: Float[Tensor, "row width"],
    target: Float[Tensor, "row out"],
    *,
    penalty: float = 0.0,
    groups: int = 1,
) -> Loss:
    """|target - z W_dec|² + penalty Σ z_f |W_dec,f| with z = max(pre, 0); with groups, a mean over their prefixes.

    The gradient of |W_dec,f| is along the row and falls to what keeps rows at norm 1.
    """
    rows = len(inputs)
    codes = pre.clamp_min_(0)
    decoded = by.decode(codes)
    if groups > 1:
        decoded = decoded.view(groups, rows, -1).cumsum(dim=0)
        left = decoded.sub_(target)
        gradient = left * (2 / (rows * groups))
        # A feature of group j is part of the prefixes that end with j and later ones.
        gradient = gradient.flip(0).cumsum(dim=0).flip(0)
        first, whole = gradient[0], left[-1]
        gradient = gradient.reshape(groups * rows, -1)
    else:
        left = whole = decoded.sub_(target)
        first = gradient = left * (2 / rows)
    value = left.square().sum() / (rows * groups)
    step = by.back(gradient)
    if penalty:
        value = value + penalty / rows * codes.sum()
        step = step.add_(penalty / rows)
    step = step.mul_(codes > 0)
    steps, found = _gradients(by, own, inputs, codes, step, of_bags=gradient, of_rows=first)
    return Loss(value, torch.count_nonzero(codes), by.fired(codes), -whole, steps, found)


def jumprelu(
    by: Entries | Everything,
    own: Parameters,
    pre: Values,
    inputs: Float[Tensor, "row width"],
    target: Float[Tensor, "row out"],
    *,
    penalty: float,
    bandwidth: float,
) -> Loss:
    """|target - z W_dec|² + penalty Σ 1[pre > θ] with z = pre 1[pre > θ], θ = e^log_threshold.

    Steps have no gradient; that of thresholds is estimated over a window, whose width is `bandwidth`, around them
    (arXiv 2407.14435, equations 11 and 12, with a rectangle as the kernel):
    -1/bandwidth Σ 1[|pre - θ| < bandwidth / 2] (θ ∂L/∂z + penalty / rows).
    """
    rows = len(inputs)
    threshold = own["log_threshold"].exp()
    bar = by.at(threshold)
    codes = pre * (pre > bar)
    left = by.decode(codes).sub_(target)
    gradient = left * (2 / rows)
    on = torch.count_nonzero(codes)
    step = by.back(gradient)
    near = (pre - bar).abs_() < bandwidth / 2
    along = by.total((step * bar).add_(penalty / rows).mul_(near)).mul_(-1 / bandwidth)
    steps, found = _gradients(by, own, inputs, codes, step.mul_(codes > 0), of_bags=gradient, of_rows=gradient)
    found["log_threshold"] = along * threshold
    value = left.square().sum() / rows + penalty / rows * on.to(left.dtype)
    return Loss(value, on, by.fired(codes), -left, steps, found)


def gated(
    by: Entries | Everything,
    own: Parameters,
    pre: Values,
    inputs: Float[Tensor, "row width"],
    target: Float[Tensor, "row out"],
    *,
    penalty: float,
) -> Loss:
    """|target - z W_dec|² + penalty Σ π⁺ |W_dec,f| + |target - π⁺ sg[W_dec]|² with π = pre, sg without gradient.

    z = 1[π > 0] max((π - b_enc) e^r_mag + b_mag, 0) (arXiv 2404.16014, equations 7 and 8); b_dec, which is in the
    target here, has no gradient from the last term either.
    """
    rows = len(inputs)
    gate = pre.clamp_min(0)
    stretch = by.at(own["r_mag"].exp())
    stretched = (pre - by.at(own["b_enc"])).mul_(stretch)
    codes = (stretched + by.at(own["b_mag"])).clamp_min_(0).mul_(gate > 0)
    left = by.decode(codes).sub_(target)
    by_gates = by.decode(gate).sub_(target)
    gradient = left * (2 / rows)
    magnitude = by.back(gradient).mul_(codes > 0)
    opening = by.back(by_gates * (2 / rows)).add_(penalty / rows).mul_(gate > 0)
    steps, found = _gradients(
        by, own, inputs, codes, (magnitude * stretch).add_(opening), of_bags=gradient, of_rows=gradient
    )
    found["b_enc"] = by.total(opening)
    found["b_mag"] = by.total(magnitude)
    found["r_mag"] = by.total(magnitude.mul_(stretched))
    value = (left.square().sum() + by_gates.square().sum() + penalty * gate.sum()) / rows
    return Loss(value, torch.count_nonzero(codes), by.fired(codes), -left, steps, found)


def _gradients(
    by: Entries | Everything,
    own: Parameters,
    inputs: Float[Tensor, "row width"],
    codes: Values,
    step: Values,
    *,
    of_bags: Float[Tensor, "bag out"],
    of_rows: Float[Tensor, "row out"],
) -> tuple[Float[Tensor, " feature"], Parameters]:
    """The gradient of all rows' pre-activations together, and those of all parameters but a kind's own.

    Given are `step`, of pre-activations, and those of what is decoded of each bag and of each row. That of b_dec is as
    if it were not taken off the inputs.
    """
    steps = by.total(step)
    found = {
        "encoder": by.over(step, inputs),
        "decoder": by.over(codes, of_bags),
        "b_enc": steps,
        "b_dec": of_rows.sum(dim=0),
    }
    if "skip" in own:
        found["skip"] = of_rows.t() @ inputs
    return steps, found


def add_auxiliary(
    loss: Loss,
    own: Parameters,
    inputs: Float[Tensor, "row width"],
    silent: Int[Tensor, " dead"],
    weight: float,
) -> Loss:
    """With weight |left - z W_dec|² in the loss, z the width / 2 largest pre-activations of features that are silent.

    What is left over counts as given, and b_dec has no part (arXiv 2406.04093, appendix A.2). Pre-activations count
    as they are, also below 0: a feature that is never above 0 would get no gradient otherwise.
    """
    encoder, decoder, rows = own["encoder"][silent], own["decoder"][silent], len(inputs)
    k = min(max(1, decoder.shape[1] // 2), len(silent))
    values, index = largest_of_rows(product(inputs, encoder, own["b_enc"][silent]), k)
    of_rows = torch.arange(rows, device=index.device).repeat_interleave(k)
    by, codes = Entries(of_rows, index.flatten(), rows, decoder), values.flatten()
    left = by.decode(codes).sub_(loss.left)
    gradient = left * (2 * weight / rows)
    step = by.back(gradient)
    steps, found = loss.steps.clone(), dict(loss.gradients)
    steps[silent] += by.total(step)
    found["b_enc"] = steps
    found["encoder"][silent] += by.over(step, inputs)
    found["decoder"][silent] += by.over(codes, gradient)
    return Loss(loss.value + weight / rows * left.square().sum(), loss.on, loss.fired, loss.left, steps, found)


def completed(loss: Loss, own: Parameters, *, pre_bias: bool) -> Parameters:
    """All gradients: with b_dec's part in what is encoded, and with nothing along the decoder's rows."""
    found, decoder = loss.gradients, own["decoder"]
    if pre_bias:
        found["b_dec"] = found["b_dec"] - loss.steps @ own["encoder"]
    gradient = found["decoder"]
    gradient.sub_(decoder * (gradient * decoder).sum(dim=1, keepdim=True))
    return found
