"""What is measured at every prediction: agreement, accuracy and divergences of a proxy from its subject."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assay._registry import Registry
from assay.faithfulness._by_numpy import argmax, expm1
from assay.tasks import Kind


def choices(
    logits: Float[Tensor, "batch position vocabulary"],
    kind_of: Int[Tensor, "batch position"],
    kinds: Sequence[Kind],
) -> Int[Tensor, "batch position"]:
    """The predicted token of every position: the arg max over the candidates of the position's kind."""
    chosen = argmax(logits)
    for index, kind in enumerate(kinds):
        if kind.candidates is not None:
            candidates = torch.tensor(kind.candidates, device=logits.device)
            among = candidates[argmax(logits.index_select(-1, candidates))]
            chosen = torch.where(kind_of == index, among, chosen)
    return chosen


def margins(
    logits: Float[Tensor, "batch position vocabulary"],
    kind_of: Int[Tensor, "batch position"],
    kinds: Sequence[Kind],
) -> Float[Tensor, "batch position"]:
    """How sure a model is at every position: its top logit minus the next, among the candidates of the kind.

    In nats (the log odds of the first choice against the second), at least 0; infinite for a single candidate.
    """
    found = _lead(logits)
    for index, kind in enumerate(kinds):
        if kind.candidates is not None:
            among = _lead(logits.index_select(-1, torch.tensor(kind.candidates, device=logits.device)))
            found = torch.where(kind_of == index, among, found)
    return found


def _lead(logits: Tensor) -> Tensor:
    """The largest of the last axis minus the second largest."""
    if logits.shape[-1] == 1:
        return torch.full_like(logits[..., 0], torch.inf)
    first, second = logits.float().topk(2, dim=-1).values.unbind(dim=-1)
    return first - second


def attention_divergence(
    p: Float[Tensor, "batch head query key"], q: Float[Tensor, "batch head query key"]
) -> Float[Tensor, "batch query"]:
    """Jensen-Shannon divergence of attention rows, in nats, averaged over heads; in [0, ln 2], 0 for equal rows.

    JSD(p, q) = KL(p || m)/2 + KL(q || m)/2 with m = (p + q)/2, per query over its keys (arXiv 2312.03656 compares the
    attention of model and proxy by it). A row that does not sum to one, as under an attention sink, has the missing
    mass as one more outcome.
    """

    p, q = p.float(), q.float()
    rows = _divergence(p, q).sum(dim=-1, dtype=torch.float64)
    left_p, left_q = (1 - p.sum(dim=-1)).clamp(min=0), (1 - q.sum(dim=-1)).clamp(min=0)
    sink = (left_p > 1e-3) | (left_q > 1e-3)
    rows = rows + torch.where(sink, _divergence(left_p, left_q), 0).double()
    return rows.clamp(0, math.log(2)).mean(dim=1)


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """The terms of JSD(p, q), outcome by outcome; exactly 0 where p = q.

    Probabilities below 1e-30 count as that in the logarithm: their terms are below 1e-28, and arithmetic on numbers
    that are smaller still (denormals) is slow.
    """
    log_middle = ((p + q) / 2).clamp_min(1e-30).log_()
    terms = p.clamp_min(1e-30).log_().sub_(log_middle).mul_(p)
    return terms.add_(q.clamp_min(1e-30).log_().sub_(log_middle).mul_(q)).div_(2)


FAR = 20.0
"""Nats that a token may gain on the average before the sum that gives KL could lose or overflow its terms."""


class Predictions:
    """What one model predicted on a batch; derived quantities are computed once.

    `logits` is (batch, position, vocabulary), `kind_of` the index of each position's kind among `kinds`.
    """

    def __init__(self, logits: Tensor, kind_of: Tensor, kinds: Sequence[Kind]) -> None:
        self.logits = logits
        self.chosen = choices(logits, kind_of, kinds)

    @cached_property
    def log_probabilities(self) -> Float[Tensor, "batch position vocabulary"]:
        """Natural logarithms of the next-token distribution, in float32 (float64 for a subject in float64)."""
        return self._wide.log_softmax(dim=-1)

    @cached_property
    def probabilities(self) -> Float[Tensor, "batch position vocabulary"]:
        """The next-token distribution, in the same precision."""
        return self._wide.softmax(dim=-1)

    @cached_property
    def log_sum(self) -> Float[Tensor, "batch position"]:
        """ln of the sum of e to the logits."""
        return self._wide.logsumexp(dim=-1)

    @property
    def _wide(self) -> Tensor:
        return self.logits if self.logits.dtype == torch.float64 else self.logits.float()


class Pair:
    """Subject and proxy on the same batch: what a metric sees.

    `targets[b, t]` is the token after position t. `attention[layer]` is the divergence of that layer's attention rows
    (batch, position), see `attention_divergence`. `both_ways` says that KL is asked for in both directions. `answers`,
    `foils` and `also_right` are those of a split of pairs (`Split.answers`), None elsewhere.
    """

    def __init__(
        self,
        subject: Predictions,
        proxy: Predictions,
        targets: Int[Tensor, "batch position"],
        attention: Mapping[int, Tensor],
        *,
        both_ways: bool = False,
        answers: Int[Tensor, "batch position"] | None = None,
        foils: Int[Tensor, "batch position *foil"] | None = None,
        also_right: Int[Tensor, "batch position other"] | None = None,
    ) -> None:
        self.subject = subject
        self.proxy = proxy
        self.targets = targets
        self.attention = attention
        self.both_ways = both_ways
        self.answers, self.foils, self.also_right = answers, foils, also_right

    def is_right(self, chosen: Int[Tensor, "batch position"]) -> Bool[Tensor, "batch position"]:
        """Where what was chosen is the target, or as right."""
        right = chosen == self.targets
        return right if self.also_right is None else right | (chosen[..., None] == self.also_right).any(dim=-1)

    @cached_property
    def divergences(self) -> Float[Tensor, "batch position 2"]:
        """KL(subject || proxy) and KL(proxy || subject), from the same exponentials."""
        subject, proxy = self.subject, self.proxy
        sums = (one.log_sum[..., None] for one in (subject, proxy))
        return _by_rows(_kl_both_ways, subject.logits, proxy.logits, *sums)


NUMBERS = 300_000
"""Logits of a model that a divergence takes at a time on a CPU, whose cache then holds what is made of them."""


def _by_rows(measure: Callable[..., Tensor], *of_models: Tensor) -> Float[Tensor, "batch position *measures"]:
    """A divergence (row) of tensors (row, vocabulary), measured for a few of their positions at a time."""
    first = of_models[0]
    rows = max(1, NUMBERS // first.shape[-1]) if first.device.type == "cpu" else max(1, first[..., 0].numel())
    blocks = zip(*(tensor.flatten(0, 1).split(rows) for tensor in of_models), strict=True)
    found = torch.cat([measure(*block) for block in blocks])
    return found.view(*first.shape[:2], *found.shape[1:])


def widest(like: Tensor) -> torch.dtype:
    """The widest floating point numbers that a tensor's device has."""
    return torch.float32 if like.device.type == "mps" else torch.float64


@runtime_checkable
class Metric(Protocol):
    """A number for every prediction; results are its mean over predictions, with intervals over sequences.

    `unit` is "rate" (then it is in [0, 1] at a prediction), "nats", "logits" or "probability". `higher_is_better` says
    in which direction the proxy is more faithful. `needs_answer`: only defined where the context determines the right
    answer. A metric with `needs_attention = False` does not look at `Pair.attention`, which then need not be computed.
    One with `of_models = True` is measured only where whole models are compared, or where it is asked for; one with
    `of_pairs = True` looks at `Pair.answers` and `Pair.foils`, and is measured on splits of pairs only.
    """

    name: str
    unit: str
    higher_is_better: bool
    needs_answer: bool
    description: str

    def __call__(self, pair: Pair) -> Float[Tensor, "batch position"]:
        """The metric at every position."""
        ...


def is_of_pairs(metric: object) -> bool:
    """Whether a metric (or its class) needs answers and foils."""
    return bool(getattr(metric, "of_pairs", False))


class SamePrediction:
    """Does the proxy predict the same token as the subject? Rate in [0, 1], higher is more faithful.

    The prediction is the arg max over the candidates of the kind. Source: arXiv 2312.03656.
    """

    name = "same_prediction"
    unit = "rate"
    higher_is_better = True
    needs_answer = False
    needs_attention = False
    description = "proxy and subject predict the same token"

    def __call__(self, pair: Pair) -> Float[Tensor, "batch position"]:
        """1 where the two agree, else 0."""
        return (pair.subject.chosen == pair.proxy.chosen).double()


class SubjectAccuracy:
    """Does the subject predict the right token? Rate in [0, 1]; not faithfulness, but what there is to explain."""

    name = "subject_accuracy"
    unit = "rate"
    higher_is_better = True
    needs_answer = True
    needs_attention = False
    description = "the subject predicts the right token"

    def __call__(self, pair: Pair) -> Float[Tensor, "batch position"]:
        """1 where the subject is right, else 0."""
        return pair.is_right(pair.subject.chosen).double()


class ProxyAccuracy:
    """Does the proxy predict the right token? Rate in [0, 1]; compare with `SubjectAccuracy`."""

    name = "proxy_accuracy"
    unit = "rate"
    higher_is_better = True
    needs_answer = True
    needs_attention = False
    description = "the proxy predicts the right token"

    def __call__(self, pair: Pair) -> Float[Tensor, "batch position"]:
        """1 where the proxy is right, else 0."""
        return pair.is_right(pair.proxy.chosen).double()


class KLDivergence:
    """KL(subject || proxy) of the next-token distributions over the whole vocabulary, in nats; 0 is faithful.

    KL(p || q) = sum_v p(v) (ln p(v) - ln q(v)). It is a sum over the vocabulary, not a mean, and is heavy-tailed over
    positions: read it with its interval.
    """

    name = "kl"
    unit = "nats"
    higher_is_better = False
    needs_answer = False
    needs_attention = False
    description = "KL divergence of the proxy's next-token distribution from the subject's"

    def __call__(self, pair: Pair) -> Float[Tensor, "batch position"]:
        """The divergence at every position."""
        if pair.both_ways:
            return pair.divergences[..., 0]
        return _by_rows(_kl, pair.subject.probabilities, pair.subject.logits, pair.proxy.logits)


def _kl(p: Tensor, subject: Tensor, proxy: Tensor) -> Tensor:
    """KL of rows of logits, `p` the subject's probabilities.

    It is ln of the sum of p e^d where that of p d is 0, with d by how much a token's logit rises. So its terms may be
    p (e^d − 1 − d): none is negative, and small ones are not lost. Where e^d would be too large beside too small a p,
    KL is taken as defined.
    """
    change = proxy.to(p.dtype) - subject.to(p.dtype)
    change.sub_((p * change).sum(dim=-1, keepdim=True))
    found = expm1(change).sub_(change).mul_(p).sum(dim=-1).log1p()
    far = change.amax(dim=-1) > FAR
    if bool(far.any()):
        found[far] = _kl_as_defined(subject[far], proxy[far]).to(found.dtype)
    return found.clamp(min=0)


def _kl_as_defined(subject: Tensor, proxy: Tensor) -> Tensor:
    """KL of rows of logits in the widest numbers, for models far apart."""
    log_p, log_q = (logits.to(widest(logits)).log_softmax(dim=-1) for logits in (subject, proxy))
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


class JSDivergence:
    """Jensen-Shannon divergence of the next-token distributions, in nats, in [0, ln 2]; 0 is faithful."""

    name = "jsd"
    unit = "nats"
    higher_is_better = False
    needs_answer = False
    needs_attention = False
    description = "Jensen-Shannon divergence of the next-token distributions"

    def __call__(self, pair: Pair) -> Float[Tensor, "batch position"]:
        """The divergence at every position."""
        subject = pair.subject
        return _by_rows(_jsd, subject.probabilities, subject.log_probabilities, pair.proxy.logits)


def _jsd(p: Tensor, log_p: Tensor, proxy: Tensor) -> Tensor:
    """JSD of rows, from a subject's probabilities and a proxy's logits.

    The logarithms are ln(m/p) = softplus(r) − ln 2 and ln(m/q) = ln(m/p) − r, with r = ln(q/p).
    """
    log_q = proxy.to(p.dtype).log_softmax(dim=-1)
    ratio = log_q - log_p
    above = torch.nn.functional.softplus(ratio) - math.log(2)
    terms = p * above + log_q.exp() * (above - ratio)
    return (terms.sum(dim=-1, dtype=widest(terms)) / -2).clamp(0, math.log(2))


class AttentionJSD:
    """Jensen-Shannon divergence of attention rows, in nats, in [0, ln 2], averaged over all heads; 0 is faithful.

    Layers below the first simplified one are part of the average and contribute 0. By layer, it is under the feature
    `layer` of the results. Source: arXiv 2312.03656.
    """

    name = "attention_jsd"
    unit = "nats"
    higher_is_better = False
    needs_answer = False
    description = "Jensen-Shannon divergence of the attention rows"

    def __call__(self, pair: Pair) -> Float[Tensor, "batch position"]:
        """The divergence of every query's row, averaged over layers."""
        return torch.stack(list(pair.attention.values())).mean(dim=0)


class ReverseKL:
    """KL(proxy || subject) of the next-token distributions over the whole vocabulary, in nats; 0 is faithful.

    Large where the proxy thinks likely what the subject does not; see `KLDivergence` for the other direction.
    """

    name = "kl_reverse"
    unit = "nats"
    higher_is_better = False
    needs_answer = False
    needs_attention = False
    of_models = True
    description = "KL divergence of the subject's next-token distribution from the proxy's"

    def __call__(self, pair: Pair) -> Float[Tensor, "batch position"]:
        """The divergence at every position."""
        return pair.divergences[..., 1]


def _kl_both_ways(subject: Tensor, proxy: Tensor, log_sum: Tensor, log_sum_of_proxy: Tensor) -> Tensor:
    """KL of rows of logits in both directions, (row, 2), from the rows' log sums.

    With r = ln(p/q) and E = e^-r - 1, which is q/p - 1, KL(p || q) is the sum of p (E + r), whose terms are not
    negative, and KL(q || p) that of -p r E, less the former: nothing small is lost in either. Where E would be too
    large beside too small a p, both are taken as defined.
    """
    wide = log_sum.dtype
    ratio = (subject.to(wide) - proxy.to(wide)).sub_(log_sum - log_sum_of_proxy)
    p = (subject.to(wide) - log_sum).exp_()
    excess = expm1(-ratio)
    forward = (p * (excess + ratio)).sum(dim=-1)
    backward = -p.mul_(ratio).mul_(excess).sum(dim=-1) - forward
    found = torch.stack((forward, backward), dim=-1)
    far = -ratio.amin(dim=-1) > FAR
    if bool(far.any()):
        of_rows = subject[far], proxy[far]
        exact = (_kl_as_defined(*of_rows), _kl_as_defined(*of_rows[::-1]))
        found[far] = torch.stack(exact, dim=-1).to(found.dtype)
    return found.clamp(min=0)


class FlipToWrong:
    """Is the subject right where the proxy is wrong? Rate in [0, 1], 0 is faithful; see `FlipToRight`."""

    name = "flip_to_wrong"
    unit = "rate"
    higher_is_better = False
    needs_answer = True
    needs_attention = False
    of_models = True
    description = "the subject predicts the right token and the proxy does not"

    def __call__(self, pair: Pair) -> Float[Tensor, "batch position"]:
        """1 where it flips so, else 0."""
        return (pair.is_right(pair.subject.chosen) & ~pair.is_right(pair.proxy.chosen)).double()


class FlipToRight:
    """Is the proxy right where the subject is wrong? Rate in [0, 1], 0 is faithful.

    Accuracy sees only the difference of the two kinds of flips; `Comparison.flips` tests it over sequences.
    """

    name = "flip_to_right"
    unit = "rate"
    higher_is_better = False
    needs_answer = True
    needs_attention = False
    of_models = True
    description = "the proxy predicts the right token and the subject does not"

    def __call__(self, pair: Pair) -> Float[Tensor, "batch position"]:
        """1 where it flips so, else 0."""
        return (~pair.is_right(pair.subject.chosen) & pair.is_right(pair.proxy.chosen)).double()


class RightProbability:
    """By how much the proxy gives the right token more probability than the subject, in [-1, 1]; 0 is faithful.

    The sign is kept: a mean near 0 may hide changes both ways, which KL does not.
    """

    name = "right_probability"
    unit = "probability"
    higher_is_better = True
    needs_answer = True
    needs_attention = False
    of_models = True
    description = "probability of the right token, the proxy's minus the subject's"

    def __call__(self, pair: Pair) -> Float[Tensor, "batch position"]:
        """The difference at every position."""
        subject, proxy = _of_targets(pair)
        return proxy.exp() - subject.exp()


class LogPerplexityRatio:
    """ln of the proxy's perplexity over the subject's, in nats: the mean of ln p(right) - ln q(right); 0 is faithful.

    Its exponential is the ratio of the perplexities over the predictions counted. Above 0, the proxy predicts worse.
    """

    name = "log_perplexity_ratio"
    unit = "nats"
    higher_is_better = False
    needs_answer = True
    needs_attention = False
    of_models = True
    description = "log probability of the right token, the subject's minus the proxy's"

    def __call__(self, pair: Pair) -> Float[Tensor, "batch position"]:
        """The difference at every position."""
        subject, proxy = _of_targets(pair)
        return subject - proxy


def _of_targets(pair: Pair) -> tuple[Tensor, Tensor]:
    """ln of the probabilities that subject and proxy give the right tokens."""
    where = pair.targets[..., None]
    found = []
    for one in (pair.subject, pair.proxy):
        wide = widest(one.logits)
        found.append(one.logits.gather(-1, where)[..., 0].to(wide) - one.log_sum.to(wide))
    return found[0], found[1]


class FirstFive:
    """The share of the subject's five most likely tokens that are among the proxy's five; in [0, 1], 1 is faithful.

    Of fewer tokens than five, all are; of equally likely ones those count that come first in the sorting of torch.
    """

    name = "first_five"
    unit = "rate"
    higher_is_better = True
    needs_answer = False
    needs_attention = False
    of_models = True
    description = "share of the subject's five most likely tokens that are among the proxy's five"

    def __call__(self, pair: Pair) -> Float[Tensor, "batch position"]:
        """The share at every position."""
        count = min(5, pair.subject.logits.shape[-1])
        first, second = (one.logits.topk(count, dim=-1).indices for one in (pair.subject, pair.proxy))
        return (first[..., :, None] == second[..., None, :]).any(dim=-1).double().mean(dim=-1)


metrics = Registry("assay.metrics", "metric")
"""All metrics by name."""

for _metric in (
    SamePrediction,
    SubjectAccuracy,
    ProxyAccuracy,
    KLDivergence,
    JSDivergence,
    AttentionJSD,
    ReverseKL,
    FlipToWrong,
    FlipToRight,
    RightProbability,
    LogPerplexityRatio,
    FirstFive,
):
    metrics.register(_metric.name, _metric)
