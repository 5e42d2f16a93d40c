"""What is measured of pairs: by how much a model puts the answer above what the counterfactual makes right."""

from jaxtyping import Float
from torch import Tensor

from assay._errors import AssayError
from assay.faithfulness._metrics import Pair, Predictions, metrics, widest
from assay.tasks import NO_TOKEN


def _logit_difference(pair: Pair, model: Predictions) -> Float[Tensor, "batch position"]:
    """The logit of the answer minus the mean of those of its foils, by one of the two models; 0 where there is none.

    Raises AssayError where there are no pairs.
    """
    if pair.answers is None or pair.foils is None:
        raise AssayError("logit differences are of pairs, and there are none; give a split with answers and foils.")
    foils = pair.foils if pair.foils.ndim > pair.answers.ndim else pair.foils[..., None]
    here, there = pair.answers != NO_TOKEN, foils != NO_TOKEN
    wide = widest(model.logits)
    of_answer = model.logits.gather(-1, pair.answers.clamp(min=0)[..., None])[..., 0].to(wide)
    of_foils = model.logits.gather(-1, foils.clamp(min=0)).to(wide).where(there, 0)
    return (of_answer - of_foils.sum(dim=-1) / there.sum(dim=-1).clamp(min=1)).where(here, 0)


class LogitDifference:
    """By how much the proxy puts the answer above its foils, in logits: logit(answer) - mean of logit(foil).

    What circuits are discovered and judged by (see `Comparison.effects`). It sees these tokens and no others. Compare
    with `SubjectLogitDifference`: as much is faithful, more is not.
    """

    name = "logit_difference"
    unit = "logits"
    higher_is_better = True
    needs_answer = False
    needs_attention = False
    of_pairs = True
    description = "logit of the answer minus the mean of its foils', by the proxy"

    def __call__(self, pair: Pair) -> Float[Tensor, "batch position"]:
        """The difference at every position."""
        return _logit_difference(pair, pair.proxy)


class SubjectLogitDifference:
    """By how much the subject puts the answer above its foils, in logits; not faithfulness, but what there is to keep.

    See `LogitDifference`.
    """

    name = "subject_logit_difference"
    unit = "logits"
    higher_is_better = True
    needs_answer = False
    needs_attention = False
    of_pairs = True
    description = "logit of the answer minus the mean of its foils', by the subject"

    def __call__(self, pair: Pair) -> Float[Tensor, "batch position"]:
        """The difference at every position."""
        return _logit_difference(pair, pair.subject)


class LogitDeviation:
    """How far the proxy's logit difference is from the subject's, pair by pair, in logits; 0 is faithful.

    The mean of |C - M|: errors of opposite sign cancel in the means of `LogitDifference`, and not here.
    """

    name = "logit_deviation"
    unit = "logits"
    higher_is_better = False
    needs_answer = False
    needs_attention = False
    of_pairs = True
    description = "absolute difference of the proxy's logit difference from the subject's"

    def __call__(self, pair: Pair) -> Float[Tensor, "batch position"]:
        """The absolute difference at every position."""
        return (_logit_difference(pair, pair.proxy) - _logit_difference(pair, pair.subject)).abs()


for _metric in (LogitDifference, SubjectLogitDifference, LogitDeviation):
    metrics.register(_metric.name, _metric)
