"""What pages show of single features of a dictionary: the telling ones, by their texts on iid and under a shift."""

from assay.diagnostics import TopSequences, feature_use, telling_features, top_sequences
from assay.reports import FeatureSide, FeatureText, FeatureView, percent
from assay.simplify import Simplification, label
from assay.subjects import Subject
from assay.tasks import Task

_WHY = {
    "moved": "its mean activation changes most",
    "newly dense": "on at more than a tenth of the tokens of the shift, and not of iid",
    "most used": "it makes most of the reconstruction on iid",
}


def feature_views(
    subject: Subject,
    task: Task,
    fitted: Simplification,
    *,
    place: str | None = None,
    shift: str | None = None,
    count: int = 2,
    texts: int = 4,
    sequences: int = 500,
) -> list[FeatureView]:
    """The telling features of a fitted dictionary, `count` of each sort, with `texts` texts of iid and of a shift.

    Raises AssayError as `assay.diagnostics.top_sequences` and `telling_features` do.
    """
    use = feature_use(subject, task, fitted, place=place, sequences=sequences)
    iid = str(use["split"][use["role"] == "iid"].iloc[0])
    picked = telling_features(use, count=count, shift=shift).to_dict("records")
    splits = list(dict.fromkeys([iid, *(str(row["split"]) for row in picked)]))
    features = [int(row["feature"]) for row in picked]
    found = top_sequences(subject, task, fitted, features, place=place, splits=splits, count=texts, sequences=sequences)
    by_key = {(one.feature, one.split): one for one in found}
    return [
        FeatureView(
            site=found[0].place,
            dictionary=label(fitted),
            feature=feature,
            why=_WHY[str(row["why"])],
            sides=[_side(by_key[feature, name]) for name in (iid, str(row["split"]))],
        )
        for feature, row in zip(features, picked, strict=True)
    ]


def _side(found: TopSequences) -> FeatureSide:
    note = f"on at {percent(found.on)}% of tokens, mean activation {found.mean:.3g}" if found.on else "never on"
    return FeatureSide(
        split=found.split,
        note=note,
        texts=[FeatureText(tokens=list(one.texts), activations=list(one.activations)) for one in found.sequences],
    )
