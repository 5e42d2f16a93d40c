"""One proxy against two claims: it agrees with its subject in distribution, and no shift takes much away."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from assay._fingerprint import NotHashableError
from assay.engine import Engine, Proxy, Samples, Site
from assay.faithfulness._cells import Candidate
from assay.faithfulness._clean_pass import CleanPass
from assay.faithfulness._compare import check_fits, noise_floor
from assay.faithfulness._embeddings import SameNeighbour, score_split
from assay.faithfulness._metrics import SamePrediction
from assay.faithfulness._scores import NotFiniteError
from assay.faithfulness._statistics import holm, p_above
from assay.faithfulness._summary import summarise
from assay.faithfulness._verdicts import Standing, sequences_needed, standing_of_agreement, standing_of_gap
from assay.subjects import Subject
from assay.tasks import Split, Task


@dataclass(frozen=True)
class Finding:
    """What the measurements say of one claim, which is about one split and kind.

    On `iid` the claim is "agrees on at least `bound`", and `value`, `low`, `high` are the share of predictions on which
    the proxy predicts the subject's token. On a shift it is "agrees at most `bound` less than on iid", and they are
    the gap. All are shares; NaN where they were not measured, with the `reason`. `agreement` is that share on the split
    itself, of `predictions` predictions in `sequences` of its `size` sequences. `needed` is about how many sequences a
    split would decide; None where that cannot be said.
    """

    split: str
    kind: str
    is_gap: bool
    standing: Standing
    bound: float
    value: float
    low: float
    high: float
    agreement: float
    predictions: int
    sequences: int
    size: int
    needed: int | None
    reason: str | None


@dataclass(frozen=True)
class Assessment:
    """The findings, the agreement by split and kind (every kind, judged or not), the noise floor and `max_gap`."""

    findings: tuple[Finding, ...]
    agreement: Mapping[tuple[str, str], float]
    noise: float
    max_gap: float

    @property
    def noisy(self) -> bool:
        """Whether changing nothing flips more than the largest gap that is allowed: then nothing is decided."""
        return self.noise > self.max_gap


@dataclass
class _Made:
    """The recipe of a proxy that was made elsewhere."""

    proxy: Proxy
    streams: ClassVar[tuple[str, ...]] = ()

    def fit(self, samples: Samples) -> "_Made":
        return self

    def apply(self, subject: Subject) -> Proxy:
        return self.proxy

    def control(self) -> None:
        return None


def assess(
    engine: Engine,
    proxy: Proxy,
    task: Task,
    splits: Sequence[Split],
    *,
    kinds: Sequence[str],
    min_agreement: float,
    max_gap: float,
    seed: int,
    resamples: int,
    level: float,
    clean_pass: Callable[..., CleanPass] = CleanPass,
) -> Assessment:
    """Judge one proxy on one iid split and at least one shift, for every one of `kinds` ("all" is a kind).

    Scores, intervals and rules are those of `compare` and its verdicts: nothing is decided where the noise floor is
    above `max_gap`. The gaps' tests are adjusted by Holm over the shifts and kinds judged here. No control is asked.
    `task` says what kinds there are.
    """
    by_name = {split.name: split for split in splits}
    for split in splits:
        check_fits([engine.subject], split)
    iid = next(split for split in splits if split.role == "iid")
    noise = noise_floor(engine, task, iid).flipped
    metric: Any = SameNeighbour() if iid.objective == "embedding" else SamePrediction()
    made = NotHashableError("made elsewhere")
    candidate = Candidate("the proxy", _Made(proxy), Site("its places", {}), is_control=False, fingerprint=made)
    scores = {
        split.name: score_split(engine, {candidate.key: proxy}, task, split, [metric], clean_pass=clean_pass)
        for split in splits
    }
    found = {(0, candidate.key, name): cells[candidate.key] for name, cells in scores.items()}
    results, gaps, *_ = summarise(
        [metric],
        task.kinds,
        [engine.subject],
        [candidate],
        primary=(metric.name, task.primary_kind),
        splits=by_name,
        found=found,
        seed=seed,
        resamples=resamples,
        level=level,
    )
    rows = {(row["split"], row["kind"]): row for row in results.to_dict("records") if row["feature"] == ""}
    gaps = gaps[gaps["kind"].isin(kinds)].copy()
    gaps["p_holm"] = holm(p_above(gaps["gap"], gaps["error"], gaps["degrees"], max_gap).tolist())
    gap_rows = {(row["split"], row["kind"]): row for row in gaps.to_dict("records")}
    broken = {name for (_, _, name), cell in found.items() if isinstance(cell, NotFiniteError)}

    findings = []
    for split in (iid, *(split for split in splits if split.role == "shift")):
        for kind in kinds:
            own = rows[split.name, kind]
            gap = None if split is iid else gap_rows[split.name, kind]
            measured = own if gap is None else gap
            value, low, high = (float(measured[key]) for key in ("estimate" if gap is None else "gap", "low", "high"))
            bound = min_agreement if gap is None else max_gap
            agreement = float(own["estimate"])
            standing: Standing
            if split.name in broken:
                standing = "fails"
            elif noise > max_gap:
                standing = "undecided"
            elif gap is None:
                standing = standing_of_agreement(low, high, min_agreement)
            else:
                p_holm = float(gap["p_holm"])
                standing = standing_of_gap(value, low, high, p_holm, max_gap=max_gap, level=level, noise=noise)
            findings.append(
                Finding(
                    split=split.name,
                    kind=kind,
                    is_gap=gap is not None,
                    standing=standing,
                    bound=bound,
                    value=value,
                    low=low,
                    high=high,
                    agreement=agreement,
                    predictions=int(own["predictions"]),
                    sequences=int(own["sequences"]),
                    size=len(split),
                    needed=sequences_needed(
                        len(split),
                        value,
                        low,
                        high,
                        bound,
                        without_errors=agreement == 1 and (gap is None or value == 0),
                    ),
                    reason=own["reason"] if isinstance(own["reason"], str) else None,
                )
            )
    return Assessment(tuple(findings), {place: float(row["estimate"]) for place, row in rows.items()}, noise, max_gap)
