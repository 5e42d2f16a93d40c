"""Yes or no questions about predictions, by what a task knows of them."""

import re
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from assay._errors import AssayError, unknown_name
from assay.faithfulness import ALL
from assay.tasks import UNSCORED, Feature, Split, Task

_COMPARED = re.compile(r"(?P<feature>.+?)\s*(?P<sign>>=|=)\s*(?P<value>.+)")


@dataclass(frozen=True)
class Concept:
    """Whether a prediction is of a kind, or whether a feature of the task lies in [least, most) there.

    `name` is "closing_far", "depth>=3", "depth=3" or, for a feature whose bins have labels, "class=digit".
    """

    name: str
    kinds: tuple[int, ...] | None
    feature: str | None = None
    least: float = -np.inf
    most: float = np.inf

    def asked(self, split: Split) -> Bool[np.ndarray, "sequence position"]:
        """The scored predictions that have an answer: those of the feature's kinds."""
        scored = split.kinds != UNSCORED
        return scored & np.isin(split.kinds, self.kinds) if self.feature and self.kinds is not None else scored

    def holds(self, split: Split) -> Bool[np.ndarray, "sequence position"]:
        """The predictions where the answer is yes."""
        if self.feature is None:
            return np.isin(split.kinds, self.kinds or ())
        value = split.features[self.feature]
        return self.asked(split) & (value >= self.least) & (value < self.most)


def concept_of(task: Task, name: str) -> Concept:
    """The concept of a name. Raises AssayError for an unknown kind, feature or label, and what is no number."""
    kinds = [kind.name for kind in task.kinds]
    if name in kinds:
        return Concept(name, (kinds.index(name),))
    match = _COMPARED.fullmatch(name)
    features = {feature.name: feature for feature in task.features}
    if match is None or match["feature"] not in features:
        known = [*kinds, *(f"{one}>=3" for one in features)]
        raise unknown_name("concept", name, known)
    feature, value = features[match["feature"]], match["value"]
    own = None if ALL in feature.kinds else tuple(kinds.index(kind) for kind in feature.kinds)
    if feature.labels is not None:
        if match["sign"] != "=" or value not in feature.labels:
            raise AssayError(
                f"concept {name!r}: {feature.name!r} has classes; write {feature.name}= and one of "
                f"{', '.join(feature.labels)}."
            )
        edges = (*map(float, feature.edges or ()), np.inf)
        place = feature.labels.index(value)
        return Concept(name, own, feature.name, edges[place], edges[place + 1])
    try:
        number = float(value)
    except ValueError:
        raise AssayError(f"concept {name!r}: {value!r} is no number; write for example {feature.name}>=3.") from None
    return Concept(name, own, feature.name, number, np.inf if match["sign"] == ">=" else np.nextafter(number, np.inf))


def concepts_of(task: Task, split: Split) -> list[Concept]:
    """The concepts that a task gives: its kinds, the classes of its features, and for others "at least the median".

    The median is that of a split, and the next larger number where more than half are as large.
    """
    names = [kind.name for kind in task.kinds] if len(task.kinds) > 1 else []
    for feature in task.features:
        names += (
            [f"{feature.name}={one}" for one in feature.labels] if feature.labels else _halved(task, split, feature)
        )
    return [concept_of(task, name) for name in names]


def _halved(task: Task, split: Split, feature: Feature) -> list[str]:
    whole = concept_of(task, f"{feature.name}>=0")
    values = split.features[feature.name][whole.asked(split)]
    larger = np.unique(values[values > np.median(values)]) if len(values) else values
    return [f"{feature.name}>={larger[0]}"] if len(larger) else []
