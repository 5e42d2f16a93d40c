"""How well vectors are reconstructed, split by split and kind by kind, and what that loses."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assay._errors import AssayError
from assay._given import checked
from assay.diagnostics._setting import CLEAR, smooth_of
from assay.dictionaries import DENSE, Dictionary
from assay.dictionaries._left_out import LeftOut, left_out, told_of
from assay.engine import BLOCK_STREAMS, Edit, EditedSubject, Engine, Place, batches, collect, tensors
from assay.faithfulness import ALL, Weights
from assay.faithfulness._embeddings import score_split
from assay.faithfulness._metrics import LogPerplexityRatio
from assay.faithfulness._scores import Column, NotFiniteError, Scores
from assay.faithfulness._statistics import smooth
from assay.faithfulness._summary import weights_of
from assay.simplify import MeanAblation, Simplification, label
from assay.simplify._protocol import applied
from assay.subjects import Subject
from assay.tasks import UNSCORED, Split, Task, bound

COLUMNS = (
    "place", "split", "role", "kind", "sequences", "vectors",
    *(f"{name}{end}" for name in ("explained", "gap") for end in ("", "_low", "_high")),
    "off_support", "l0", "dead", "dense", "newly_dense", "shrinkage", "reason",
)  # fmt: skip

LOSS_COLUMNS = (
    "split", "role", "kind", "sequences", "predictions", "loss_added", "loss_added_by_zeros", "loss_added_by_means",
    *(f"recovered_from_{name}{end}" for name in ("zeros", "means") for end in ("", "_low", "_high")),
    "reason",
)  # fmt: skip

SEEN, UNSEEN = "trained on", "not trained on"
"""The kinds of tokens whose like a dictionary of files has seen in training, as far as these say, and has not."""

FAR = 0.95
"""A vector of a shift lies off the support where its error is above this quantile of the errors in distribution."""


@checked
def reconstruction(
    subject: Subject,
    task: Task,
    simplification: Simplification,
    *,
    sequences: int = 500,
    resamples: int = 2_000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """What a fitted recipe makes of the subject's own vectors: one row a (place, split, kind); the kind "all" first.

    `explained` is 1 - sum |x - x^|^2 / sum |x - mean x|^2, with sums over all vectors of the kind in the split and
    their own mean: at most 1, higher is better; 0 is what their mean explains, so that mean ablation refitted on a
    shift explains 0 there. "all" has every token of the sequences, a kind those at which such a prediction is made.
    `gap` is `explained` on iid minus that on the split. Both have `_low` and `_high`, from sequences drawn again (BCa),
    with the mean held fixed. `off_support` is the share of vectors whose squared error is above the 95th percentile of
    iid: 0.05 where nothing changes.

    Of dictionaries there are also `l0`, the mean number of features that are on; `dead`, the share of features that are
    on in no vector of the split (fewer vectors, more of them); `dense`, the share on in more than a tenth of the
    vectors; `newly_dense`, the share that is dense there and not on iid; and `shrinkage`, as in
    `assay.dictionaries.Measures`: 1 is unbiased. They are NaN of anything else that replaces vectors (SVD, clusters),
    which can be asked in the same way, and beside "all" where they are of a split as a whole. `reason` says why there
    is no number.

    Where the files of a dictionary say that its training left some tokens out which are there on any split (positions,
    special tokens, sequences without a first token that says so), the kinds "trained on" and "not trained on" stand
    beside the others, each about its own mean: an `explained` of "all" may be made by a few first tokens of ten times
    the norm.

    Every place is asked on vectors of the subject alone, also where the recipe acts at several: what one changes for
    the next is in agreement and in `loss_recovered`, not here. Not the mean of ratios a vector, nor the variance
    about 0, that other tools have called by this name.

    Raises AssayError for a recipe that was not fitted, and one that changes no vectors.
    """
    task = bound(task, subject.tokenizer)
    engine = Engine(subject)
    streams = _streams_of(simplification, subject)
    found: dict[str, dict[str, _Vectors]] = {}
    weights: dict[str, Weights] = {}
    splits = judged_splits(task, sequences)
    unseen = {split.name: _unseen(streams, split, subject) for split in splits}
    for split in splits:
        found[split.name] = _read(engine, task, split, streams, unseen[split.name])
        weights[split.name] = weights_of(split, seed=seed, resamples=resamples)
    iid = next(split.name for split in splits if split.role == "iid")
    rows = []
    for place in (one.name for one in streams):
        limited = any(own[place].by or own[place].untold for own in unseen.values())
        for split in splits:
            for kind in (ALL, *(kind.name for kind in task.kinds), *((SEEN, UNSEEN) if limited else ())):
                untold = unseen[split.name][place].untold if kind in (SEEN, UNSEEN) else ()
                rows.append(_row(place, split, kind, found, iid, weights, level, untold))
    return pd.DataFrame(rows, columns=list(COLUMNS))


@checked
def loss_recovered(
    subject: Subject,
    task: Task,
    simplification: Simplification,
    *,
    sequences: int = 500,
    fit_sequences: int = 200,
    resamples: int = 2_000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """The field's loss recovered: one row a (split, kind), of the loss in nats of the right next token.

    With zeros or means in the place of the vectors that a fitted recipe replaces, the subject loses
    `loss_added_by_zeros` and `loss_added_by_means` (means of `fit_sequences` of the train split); the recipe loses
    `loss_added`. `recovered_from_zeros` is 1 - loss_added / loss_added_by_zeros, `recovered_from_means` likewise: 1 is
    the subject's own loss, 0 that of the ablation; with `_low` and `_high` (BCa over sequences).

    A large number says little. Zeros in a residual stream are so far from anything that the subject has seen that most
    of their loss is recovered by whatever is near: 0.96 while a quarter of all predictions change is common. So both
    are given, and same prediction is what verdicts rest on. Where an ablation is not shown to add loss (its 99%
    interval contains 0), the share is not measured, and `reason` says so.

    Where files say that the training of any of the dictionaries left some tokens out, the kinds "trained on" and "not
    trained on" are of predictions that are made at such tokens, as in `reconstruction`.

    Raises AssayError for a recipe that was not fitted, that changes no vectors, or whose logits are not finite.
    """
    task = bound(task, subject.tokenizer)
    engine = Engine(subject)
    streams = _streams_of(simplification, subject)
    own = applied(simplification, subject)
    train = task.split(task.split_names[0], fit_sequences)
    samples = collect(engine, train, tuple(dict.fromkeys(one.stream for one in streams)))
    by_place: dict[Place, tuple[str, ...]] = {}
    for one in streams:
        by_place[one.place] = (*by_place.get(one.place, ()), one.stream)
    site = engine.site([one.name for one in streams])
    proxies = {
        "own": own,
        "zeros": EditedSubject(subject, [_zeros_at(place, names) for place, names in by_place.items()]),
        "means": applied(MeanAblation().fit(samples.at(site)), subject),
    }
    metric = LogPerplexityRatio()
    splits = judged_splits(task, sequences)
    unseen = {split.name: reduce(or_, _unseen(streams, split, subject).values(), LeftOut({})) for split in splits}
    limited = any(own.by or own.untold for own in unseen.values())
    rows = []
    for split in splits:
        given = score_split(engine, proxies, task, split, [metric], keep=(metric.name,) if limited else ())
        weights = weights_of(split, seed=seed, resamples=resamples)
        scores = {name: one for name, one in given.items() if not isinstance(one, NotFiniteError)}
        broken = [name for name in given if name not in scores]
        if broken:
            raise AssayError(
                f"{label(simplification)}: {broken[0]} give logits that are not finite numbers on split "
                f"{split.name!r}; no loss can be told."
            )
        for kind in (ALL, *(kind.name for kind in task.kinds if kind.determined)):
            column = scores["own"].columns.index(Column(metric.name, kind, "", 0))
            losses = {name: (one.sums[:, column], one.counts[:, column]) for name, one in scores.items()}
            rows.append(_loss_row(split, kind, losses, weights, scores["own"].skipped.get(metric.name), level))
        for kind in (SEEN, UNSEEN) if limited else ():
            losses = {
                name: _at_tokens(one, metric.name, task, split, unseen[split.name], kind)
                for name, one in scores.items()
            }
            untold = unseen[split.name].untold
            rows.append(_loss_row(split, kind, losses, weights, told_of(untold) if untold else None, level))
    return pd.DataFrame(rows, columns=list(LOSS_COLUMNS))


def _unseen(streams: "Sequence[_Stream]", split: Split, subject: Subject) -> dict[str, LeftOut]:
    """By stream, the tokens of a split that the training of its dictionary left out."""
    return {one.name: left_out(one.origin, split, subject.tokenizer) for one in streams}


def _at_tokens(  # noqa: PLR0917
    scores: Scores, metric: str, task: Task, split: Split, unseen: LeftOut, kind: str
) -> tuple[Float[np.ndarray, " sequence"], Int[np.ndarray, " sequence"]]:
    """By sequence, sum and number of a metric's values at the predictions that are made at tokens of one of the two."""
    determined = np.array([one.determined for one in task.kinds])
    scored = split.kinds != UNSCORED
    left = np.zeros(scored.shape, dtype=bool) if unseen.any is None else unseen.any
    chosen = scored & (left if kind == UNSEEN else ~left)
    chosen[scored] &= determined[split.kinds[scored]]
    sequence = np.nonzero(chosen)[0]
    values = scores.kept[metric][chosen[scored]].astype(float)
    sums = np.bincount(sequence, values, len(split)).astype(float)  # of nothing, bincount gives whole numbers
    return sums, np.bincount(sequence, minlength=len(split))


def _zeros_at(place: Place, streams: Sequence[str]) -> Edit:
    functions: dict[str, Any] = dict.fromkeys(streams, torch.zeros_like)
    return Edit(place, **functions)


def judged_splits(task: Task, sequences: int) -> list[Split]:
    """The splits that explanations are judged on: all but the train split, iid first."""
    found = [task.split(name, sequences) for name in task.split_names]
    return sorted((split for split in found if split.role != "train"), key=lambda split: split.role != "iid")


@dataclass(frozen=True)
class _Stream:
    """One stream of a place that is replaced: by what, and the dictionary that does it, if one does."""

    place: Place
    stream: str
    function: Callable[..., Tensor]
    reads: tuple[str, ...]
    dictionary: Dictionary | None
    origin: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{self.place}.{self.stream}"


def _streams_of(simplification: Simplification, subject: Subject) -> list[_Stream]:
    """What a fitted recipe replaces. Raises AssayError if it replaces no vectors."""
    proxy = applied(simplification, subject)
    fitted: Mapping[Place, Sequence[Dictionary]] = getattr(simplification, "dictionaries_", None) or {}
    meant: Mapping[Place, Sequence[str]] = getattr(simplification, "streams_", None) or {}
    whole: Mapping[str, Any] = getattr(simplification, "origin", {})
    found: list[_Stream] = []

    def add(place: Place, stream: str, function: Callable[..., Tensor], reads: tuple[str, ...]) -> None:
        dictionary = own.get(stream)
        found.append(
            _Stream(place, stream, function, reads, dictionary, whole if dictionary is None else dictionary.origin)
        )

    for edit in proxy.edits if isinstance(proxy, EditedSubject) else ():
        own = dict(zip(meant.get(edit.place, ()), fitted.get(edit.place, ()), strict=False))
        for stream in ("queries", "keys", "values", "outputs", *BLOCK_STREAMS):
            function = getattr(edit, stream)
            if function is not None:
                add(edit.place, stream, function, (stream,))
        if edit.mlp_map is not None:
            add(edit.place, "mlp", edit.mlp_map, ("mlp_input", "mlp"))
    if not found:
        raise AssayError(
            f"{label(simplification)} replaces no vectors, so that nothing is reconstructed; give a dictionary, or "
            "another recipe of vectors such as SVD."
        )
    return found


@dataclass
class _Vectors:
    """All vectors of a stream on a split: squared error, square about the mean, kind (-1: none) and sequence of each.

    `unseen` are those at tokens that a dictionary's training left out, and `within` the square of each about the mean
    of those that it is one of, these or the others. `on` counts the vectors that each feature is on in, `counts` the
    features of each vector; `long` and `along` are the sums that shrinkage is made of, a vector each.
    """

    error: Float[np.ndarray, " vector"]
    square: Float[np.ndarray, " vector"]
    kind: Int[np.ndarray, " vector"]
    sequence: Int[np.ndarray, " vector"]
    kinds: tuple[str, ...]
    unseen: Bool[np.ndarray, " vector"]
    within: Float[np.ndarray, " vector"]
    on: Int[np.ndarray, " feature"] | None = None
    counts: Float[np.ndarray, " vector"] | None = None
    long: Float[np.ndarray, " vector"] | None = None
    along: Float[np.ndarray, " vector"] | None = None

    def of(self, kind: str) -> Bool[np.ndarray, " vector"]:
        """Which vectors are of a kind."""
        if kind in (SEEN, UNSEEN):
            return self.unseen if kind == UNSEEN else ~self.unseen
        return np.ones(len(self.kind), dtype=bool) if kind == ALL else self.kind == self.kinds.index(kind)

    def sums(
        self, kind: str, sequences: int
    ) -> tuple[Float[np.ndarray, " sequence"], Float[np.ndarray, " sequence"], Int[np.ndarray, " sequence"]]:
        """Sums of error and square over the vectors of a kind of every sequence, and how many those are."""
        chosen = self.of(kind)
        places, square = self.sequence[chosen], self.within if kind in (SEEN, UNSEEN) else self.square
        # Of nothing, bincount gives whole numbers, weights or not.
        error, total = (
            np.bincount(places, weights=of[chosen], minlength=sequences).astype(float) for of in (self.error, square)
        )
        return error, total, np.bincount(places, minlength=sequences)


@dataclass
class _Gathered:
    """What is gathered of a stream, batch by batch."""

    parts: dict[str, list[np.ndarray]] = field(default_factory=dict)
    on: Int[np.ndarray, " feature"] | None = None

    def add(self, **found: Tensor) -> None:
        for name, values in found.items():
            self.parts.setdefault(name, []).append(values.double().cpu().numpy())

    def __getitem__(self, name: str) -> np.ndarray:
        return np.concatenate(self.parts[name])


def _read(
    engine: Engine, task: Task, split: Split, streams: Sequence[_Stream], unseen: Mapping[str, LeftOut]
) -> dict[str, _Vectors]:
    """Errors and squares of all streams on a split, by name."""
    gathered = {one.name: _Gathered() for one in streams}
    kinds: list[np.ndarray] = []
    sequence: list[np.ndarray] = []
    means = _means(engine, split, streams, unseen)
    for index, batch, read in _batches(engine, split, streams):
        valid = batch.valid.astype(bool)
        kinds.append(batch.kinds[valid])
        sequence.append(np.broadcast_to(index[:, None], valid.shape)[valid])
        for one in streams:
            given = [_at(read, one.place, stream) for stream in one.reads]
            made = one.function(*(states.clone() for states in given))
            keep = torch.from_numpy(valid).to(made.device)
            vectors, target, back = given[0][keep], given[-1][keep].double(), made[keep].double()
            own, left = gathered[one.name], _left(unseen[one.name], index, valid).to(made.device)
            whole, *parts = means[one.name]
            own.add(
                error=(target - back).square().sum(1),
                square=(target - whole).square().sum(1),
                within=(target - torch.stack(parts)[left.long()]).square().sum(1),
                unseen=left,
            )
            if one.dictionary is not None:
                codes = one.dictionary.encode(vectors)
                base = one.dictionary.b_dec.to(target)
                own.add(
                    counts=codes.counts,
                    long=(back - base).square().sum(1),
                    along=((back - base) * (target - base)).sum(1),
                )
                on = torch.bincount(codes.index, minlength=codes.features).cpu().numpy()
                own.on = on if own.on is None else own.on + on
    names = tuple(kind.name for kind in task.kinds)
    kind, numbers = np.concatenate(kinds), np.concatenate(sequence)
    found = {}
    for name, own in gathered.items():
        always = (own["error"], own["square"], kind, numbers, names, own["unseen"] > 0, own["within"])
        of_codes = () if own.on is None else (own.on, *(own[part] for part in ("counts", "long", "along")))
        found[name] = _Vectors(*always, *of_codes)
    return found


def _left(
    unseen: LeftOut, index: Int[np.ndarray, " sequence"], valid: Bool[np.ndarray, "sequence position"]
) -> Bool[Tensor, " vector"]:
    """Which of the tokens of a batch a dictionary's training left out."""
    left = unseen.any
    chosen = np.zeros(int(valid.sum()), dtype=bool) if left is None else left[index, : valid.shape[1]][valid]
    return torch.from_numpy(chosen)


def _means(
    engine: Engine, split: Split, streams: Sequence[_Stream], unseen: Mapping[str, LeftOut]
) -> dict[str, Float[Tensor, "three width"]]:
    """The means of every stream in float64: over the tokens of a split, over those seen in training and the others."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    for index, batch, read in _batches(engine, split, streams):
        valid = batch.valid.astype(bool)
        for one in streams:
            states = _at(read, one.place, one.reads[-1])
            vectors = states[torch.from_numpy(valid).to(states.device)].double()
            left = _left(unseen[one.name], index, valid).to(vectors)
            chosen = torch.stack([torch.ones_like(left), 1 - left, left])
            sums[one.name] = sums.get(one.name, 0) + chosen @ vectors
            counts[one.name] = counts.get(one.name, 0) + chosen.sum(dim=1, keepdim=True)
    return {name: total / counts[name].clamp_min(1) for name, total in sums.items()}


def _batches(
    engine: Engine, split: Split, streams: Sequence[_Stream]
) -> Iterator[tuple[Int[np.ndarray, " sequence"], Split, Any]]:
    """Index, sequences and the subject's own run of every batch."""
    names = tuple(dict.fromkeys(name for one in streams for name in one.reads))
    with engine.ready():
        for index, batch in batches(engine, split):
            yield index, batch, engine.run(*tensors(batch, engine.subject.device), read=names, logits=False)


def _at(run: Any, place: Place, stream: str) -> Tensor:
    states: Tensor = getattr(run, stream)[place.layer]
    return states if stream in BLOCK_STREAMS else states[:, place.head]  # type: ignore[union-attr]


def _row(  # noqa: PLR0917
    place: str,
    split: Split,
    kind: str,
    found: Mapping[str, Mapping[str, _Vectors]],
    iid: str,
    weights: Mapping[str, Weights],
    level: float,
    untold: Sequence[str],
) -> dict[str, Any]:
    """The row of one place, split and kind; `untold` is what cannot be told of which vectors are of the kind."""
    own, first = found[split.name][place], found[iid][place]
    chosen = own.of(kind)
    error, square, count = own.sums(kind, len(split))
    row: dict[str, Any] = {
        **dict.fromkeys(COLUMNS, np.nan),
        "place": place,
        "split": split.name,
        "role": split.role,
        "kind": kind,
        "sequences": int((count > 0).sum()),
        "vectors": int(chosen.sum()),
        "reason": None,
    }
    if untold:
        return row | {"sequences": np.nan, "vectors": np.nan, "reason": told_of(untold)}
    if not square.sum() > 0:
        return row | {"reason": "there are no vectors of this kind, or all are the same"}
    row |= _named("explained", smooth_of(_explained, (error, square), weights[split.name], level=level))
    if split.name != iid:
        at_first = first.sums(kind, len(weights[iid].units))
        if at_first[1].sum() > 0:
            row |= _named("gap", _gap(at_first[:2], (error, square), (weights[iid], weights[split.name]), level))
    row["off_support"] = float((own.error[chosen] > np.quantile(first.error, FAR)).mean())
    if own.counts is not None and own.long is not None and own.along is not None:
        row["l0"] = float(own.counts[chosen].mean())
        along = float(own.along[chosen].sum())
        row["shrinkage"] = float(own.long[chosen].sum()) / along if along else np.nan
    if own.on is not None and first.on is not None and kind == ALL:
        dense, before = own.on > DENSE * len(own.error), first.on > DENSE * len(first.error)
        row |= {
            "dead": float((own.on == 0).mean()),
            "dense": float(dense.mean()),
            "newly_dense": float((dense & ~before).mean()),
        }
    return row


def _explained(sums: Float[np.ndarray, "column ..."]) -> Float[np.ndarray, "..."]:
    found: np.ndarray = 1 - sums[0] / sums[1]
    return found


def _gap(
    iid: Sequence[np.ndarray], shift: Sequence[np.ndarray], weights: tuple[Weights, Weights], level: float
) -> tuple[float, float, float]:
    samples = [(np.stack(columns, axis=-1)[None], own) for columns, own in zip((iid, shift), weights, strict=True)]
    return smooth(lambda first, other: _explained(first) - _explained(other), *samples, level=level)


def _named(name: str, found: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))


def _loss_row(  # noqa: PLR0917
    split: Split,
    kind: str,
    losses: Mapping[str, tuple[Float[np.ndarray, " sequence"], Int[np.ndarray, " sequence"]]],
    weights: Weights,
    reason: str | None,
    level: float,
) -> dict[str, Any]:
    """The row of one split and kind, of sums and numbers of predictions of the recipe and both ablations."""
    sums = {name: own for name, (own, _) in losses.items()}
    counts = losses["own"][1]
    predictions = int(counts.sum())
    row: dict[str, Any] = {
        **dict.fromkeys(LOSS_COLUMNS, np.nan),
        "split": split.name,
        "role": split.role,
        "kind": kind,
        "sequences": int((counts > 0).sum()),
        "predictions": predictions,
        "reason": reason,
    }
    if reason is not None or not predictions:
        return row | {"reason": reason or "there are no predictions of this kind"}
    row["loss_added"] = float(sums["own"].sum()) / predictions
    unclear = []
    for name in ("zeros", "means"):
        row[f"loss_added_by_{name}"] = float(sums[name].sum()) / predictions
        added = smooth_of(lambda of: of[0] / of[1], (sums[name], counts.astype(float)), weights, level=CLEAR)
        if added.low > 0:
            row |= _named(
                f"recovered_from_{name}", smooth_of(_explained, (sums["own"], sums[name]), weights, level=level)
            )
        else:
            unclear.append(name)
    if unclear:
        row["reason"] = (
            f"{' and '.join(unclear)} in the place of the vectors are not shown to add loss there: the 99% interval "
            "contains 0"
        )
    return row
