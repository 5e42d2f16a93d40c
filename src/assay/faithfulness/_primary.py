"""Which metrics are computed, and which of them, on which kind of prediction, verdicts rest on."""

from collections.abc import Mapping, Sequence
from typing import Any

from assay._errors import AssayError, unknown_name
from assay.faithfulness._embeddings import SameNeighbour, embedding_metrics
from assay.faithfulness._metrics import Metric, SamePrediction, is_of_pairs, metrics
from assay.faithfulness._scores import ALL
from assay.tasks import Objective, Task


def resolve_metrics(
    objective: Objective | None,
    asked: Sequence[str | Metric] | None = None,
    *,
    of_models: bool = False,
    of_pairs: bool = False,
) -> list[Any]:
    """The metrics `asked` for, by name or as objects.

    None is all that there are for this objective; those for other models only where some are compared (`of_models`),
    those of pairs only where there are some (`of_pairs`). Of embeddings only those are measured that Assay has. Raises
    AssayError for an unknown name, for what is no metric, for two metrics of one name, and for one of pairs where there
    are none.
    """
    of_embeddings: Mapping[str, Any] = {metric.name: metric for metric in embedding_metrics}
    known = of_embeddings if objective == "embedding" else metrics
    if asked is None:
        asked = [
            name
            for name in known
            if objective == "embedding"
            or (
                (of_models or not getattr(metrics.get(name), "of_models", False))
                and (of_pairs or not is_of_pairs(metrics.get(name)))
            )
        ]
    if not asked or isinstance(asked, str):
        raise AssayError(f"compare(metrics={asked!r}): must be a list of metrics, such as ['same_prediction', 'kl'].")
    found: list[Any] = []
    for item in asked:
        if isinstance(item, str):
            if item not in known:
                raise unknown_name("metric", item, known)
            found.append(of_embeddings[item] if objective == "embedding" else metrics.get(item)())
        elif objective == "embedding" or isinstance(item, type) or not isinstance(item, Metric):
            may = (
                " or ".join(of_embeddings)
                if objective == "embedding"
                else "a name, or an object as assay.faithfulness.Metric"
            )
            raise AssayError(f"compare(metrics=...): {item!r} is no metric for this; give {may}.")
        else:
            found.append(item)
    names = [metric.name for metric in found]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise AssayError(f"compare(metrics=...): {', '.join(sorted(twice))} is given twice.")
    without = [metric.name for metric in found if is_of_pairs(metric) and not of_pairs]
    if without:
        raise AssayError(
            f"compare(metrics=...): {', '.join(without)} is about pairs, and no split has any; give splits with "
            "counterfactuals, answers and foils, or leave it out."
        )
    return found


def resolve_primary(
    task: Task,
    objective: Objective | None,
    judged: Sequence[Metric],
    metric: str | None = None,
    kind: str | None = None,
) -> tuple[str, str]:
    """The metric (default: same prediction, or same neighbour) and the kind (default: the task's) of the verdicts.

    Verdicts say on which share of the predictions a proxy is faithful, so the metric has to be a rate of which more is
    better. Raises AssayError if it is not, or is not among those `judged`, or has no meaning on the kind; and for an
    unknown kind.
    """
    default = SameNeighbour.name if objective == "embedding" else SamePrediction.name
    by_name = {item.name: item for item in judged}
    fit = [item.name for item in judged if item.unit == "rate" and item.higher_is_better]
    metric = metric or default
    if metric not in fit:
        why = "is no rate of which more is better" if metric in by_name else "is not measured here"
        raise AssayError(
            f"compare(primary_metric={metric!r}): it {why}; give one of {', '.join(fit) or 'none'}, or other metrics."
        )
    kind = kind or (ALL if objective == "embedding" else task.primary_kind)
    undetermined = [item.name for item in task.kinds if not item.determined]
    kinds = [ALL, *(item.name for item in task.kinds if objective != "embedding")]
    if kind not in kinds:
        raise unknown_name("kind of prediction", kind, kinds)
    if by_name[metric].needs_answer and kind in undetermined:
        raise AssayError(
            f"compare(primary_kind={kind!r}): the context does not determine the answer there, so {metric} has no "
            "meaning; give another kind or metric."
        )
    return metric, kind
