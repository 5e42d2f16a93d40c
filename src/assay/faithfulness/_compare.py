"""Judging proxies of a subject on every split of a task."""

import copy
import hashlib
import json
import math
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from assay._errors import AssayError, unknown_name
from assay._fingerprint import NotHashableError, fingerprint_or_reason
from assay._given import checked
from assay._progress import following
from assay.engine import AtScored, EditedSubject, Engine, Named, Proxy, Samples, batches, collect, engine_of, tensors
from assay.faithfulness._cells import DRAWS, REFITTED, Candidate, Cells, Found, candidates_of, cell_name
from assay.faithfulness._comparison import (
    Comparison,
    FeatureRecord,
    KindRecord,
    MetricRecord,
    NoiseFloor,
    OverlapRecord,
    ProxyRecord,
    Record,
    Skipped,
    SplitRecord,
)
from assay.faithfulness._embeddings import check_embeddings, neighbours, score_split
from assay.faithfulness._fits import FITTED, Fits
from assay.faithfulness._folder import claim
from assay.faithfulness._metrics import Metric, choices
from assay.faithfulness._primary import resolve_metrics, resolve_primary
from assay.faithfulness._scores import ALL, NotFiniteError, Scores
from assay.faithfulness._summary import sequence_tables, summarise
from assay.faithfulness._verdicts import check_shares
from assay.faithfulness._workers import Workers
from assay.simplify import RandomPerturbation, Simplification, applied, copies_model, is_whole, label, learns
from assay.subjects import Subject, pool
from assay.tasks import NO_TOKEN, UNSCORED, Split, Task, bound, check_differ, count_copies, token_names

NOISE_SEQUENCES = 100
"""Enough: the floor is a largest difference, which more sequences hardly move, and each costs passes of its own."""

PARAMETERS_HELD = 20_000_000
"""Parameters of other models that are in memory at the same time: small ones share the subject's passes."""

KEPT = ("kl",)
"""The metrics of which every prediction's value is kept for whole models: for quantiles, and to show the worst."""

Positions = Literal["all", "scored"]

MOST_RESAMPLES = 1_000_000
"""More draws move the ends of no interval, and their weights fill the memory."""

LEAST_REFIT = 30
"""A simplification is refitted on at least so many sequences of a shift, or not at all."""


@dataclass(frozen=True)
class Step:
    """How far a comparison is: `done` of `total` cells (subject x proxy x split), and what comes next."""

    done: int
    total: int
    text: str


@checked
def compare(
    subject: Subject | Sequence[Subject],
    task: Task,
    simplifications: Iterable[Simplification],
    *,
    sites: Sequence[Named] = ("all",),
    positions: str = "all",
    sequences: int = 500,
    fit_sequences: int = 1_000,
    controls: bool = True,
    refit: bool = True,
    metrics: Sequence[str | Metric] | None = None,
    primary_metric: str | None = None,
    primary_kind: str | None = None,
    min_agreement: float = 0.95,
    max_gap: float = 0.02,
    seed: int = 0,
    resamples: int = 2_000,
    level: float = 0.95,
    folder: str | Path | None = None,
    overwrite: bool = False,
    workers: Workers = Workers(),
    progress: Callable[[Step], None] | bool = True,
) -> Comparison:
    """Judge simplifications of a subject on every split of a task.

    Every simplification is fitted on `fit_sequences` sequences of the train split and applied at each of `sites`
    (`"all"`, `"layer1"`, `"layer1.head0"`, `"layer2.mlp"`, …; several joined by `+`, or in a list, are one site, at
    which it is fitted once); the proxy is then compared with the subject on `sequences` sequences of every other split.
    With `positions="scored"`, what a simplification or control changes at a site it changes only where predictions are
    scored (it is fitted on all positions). Several subjects are training seeds of one model: they are judged on the
    same sequences and seeds are resampled too. With `controls`, each simplification's own control, a random
    perturbation that moves as much, mean ablation of the site, a copy of the (first) subject with shuffled weights and
    the identity are judged beside it. Intervals have the given `level` from `resamples` draws.

    What a gap is made of is told by two more comparisons (see `Comparison.gaps`): at the same margin of the subject in
    and out of distribution, and, with `refit`, against the same recipe fitted on the shift itself. For that, every
    simplification that learns from data is fitted once more on each shift's next `fit_sequences` sequences, those
    after the `sequences` that are judged (or what there is of them, at least 30), and judged on that shift alone.

    `metrics` are those to compute, by name or as objects (default: all that there are for such proxies and splits; a
    metric of pairs is skipped on splits without). Verdicts rest on `primary_metric`, a rate of which more is better
    (default: "same_prediction", for embeddings "same_neighbour"), on predictions of `primary_kind` (default: the
    task's; "all" for every one). They ask for an agreement of `min_agreement` in distribution and allow `max_gap` less
    under a shift.

    With a `folder`, each finished cell (subject x proxy x split) is kept there, and a run that was stopped goes on
    where it was; nothing is reused that was made under other settings. A folder with the finished run of another study
    (other subjects, splits, simplifications or settings) is refused, unless `overwrite` says that its results, figures
    and page are to be removed.

    `workers` do the work: `Workers(jobs=4)` are four processes, `Workers(cluster="tcp://10.0.0.1:8786")` those of a
    Dask cluster. One that dies loses only what it was doing; where there are several GPUs, workers take turns.

    Interrupted (Ctrl-C, or a notebook's stop), it says how many cells are finished: they are kept in the folder or,
    without one, in this process, and the same call goes on where it was.

    `progress` is called with every `Step`. By default a bar is shown in a terminal, a line in a notebook, and nothing
    elsewhere; False shows nothing.

    A subject of an architecture whose attention cannot be edited is judged against what replaces it whole
    (`OtherModel`), and attention is skipped. Raises AssayError for bad arguments, such a subject where its parts are to
    be simplified, and one that gives numbers that are not finite.
    """
    started = time.monotonic()
    subjects = [subject] if isinstance(subject, Subject) else list(subject)
    chosen = list(simplifications)
    _check_call(subjects, task, chosen, sites)
    task = bound(task, subjects[0].tokenizer)
    _check_numbers(sequences=sequences, fit_sequences=fit_sequences, resamples=resamples)
    if not 0 < level < 1:
        raise AssayError(f"compare(level={level}): must be between 0 and 1, for example 0.95.")
    bars = {"min_agreement": min_agreement, "max_gap": max_gap}
    check_shares("compare", **bars)
    where = resolve_positions(positions)
    refit = refit and any(map(learns, chosen))
    inputs = _Inputs.of(task, sequences, fit_sequences, refit=refit)
    if where == "scored" and (inputs.iid.objective == "embedding" or all(map(is_whole, chosen))):
        raise AssayError(
            "compare(positions='scored'): it is for parts of a model that predicts tokens; an embedding is of a whole "
            "sequence, and another model is run whole."
        )
    judged = resolve_metrics(
        inputs.iid.objective,
        metrics,
        of_models=any(map(is_whole, chosen)),
        of_pairs=any(split.has_pairs for split in inputs.splits.values()),
    )
    primary = resolve_primary(task, inputs.iid.objective, judged, primary_metric, primary_kind)
    for split in inputs.all:
        check_fits(subjects, split)

    _check_recipes(chosen, subjects, inputs)

    parts = _have_parts(chosen)
    variants = [*subjects, *([subjects[0].shuffled_copy()] if controls and parts else [])]
    engines = [engine_of(variant, parts=parts) for variant in variants]
    candidates = candidates_of(engines[0], chosen, sites, controls, refit)
    options: dict[str, Any] = {"seed": seed, "resamples": resamples, "level": level}
    settings = {
        "sites": [_written(engines[0], site) for site in sites],
        "positions": where,
        "sequences": sequences,
        "fit_sequences": fit_sequences,
        "controls": controls,
        "refit": refit,
        **options,
    }
    about = _task_records(task, inputs, judged, primary)
    if folder is not None:
        claim(folder, _study(subjects, candidates, about, settings), overwrite=overwrite)
    noise = noise_floor(engines[0], task, inputs.iid)

    cells = Cells(None if folder is None else Path(folder) / "cells")
    fits = Fits(None if folder is None else Path(folder) / FITTED)
    judging = _Judging(task, inputs, candidates, judged, Found(cells), cells, fits, seed, where)
    total = sum(len(inputs.of_split(name, candidates, engine.subject)) for engine in engines for name in inputs.splits)
    with following(progress) as tell:
        try:
            judging.run(engines, workers, lambda text: tell(Step(judging.done, total, text)))
            found = judging.found
            tell(Step(total, total, "intervals"))
            results, gaps, beside, largest, of_models, effects = summarise(
                judged,
                task.kinds,
                variants,
                candidates,
                primary=primary,
                splits=inputs.splits,
                found=found,
                **options,
            )
        except KeyboardInterrupt:
            raise judging.stopped(total) from None
    record = Record(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - started, 3),
        assay_version=version("assay-interp"),
        environment=_environment(),
        subjects=tuple(variant.describe() for variant in variants),
        **about,
        proxies=tuple(
            ProxyRecord(
                proxy=item.name,
                site=item.site,
                heads=tuple(map(str, item.at.places)),
                is_control=item.is_control,
                control=item.control,
                ablation=item.ablation,
                perturbation=item.perturbation,
                draws=DRAWS if item.is_control and hasattr(item.simplification, "redrawn") else 1,
                caution=getattr(item.simplification, "caution", None),
                about=_told(item.simplification),
                logit_difference={
                    split: None if math.isnan(value) else value
                    for split, value in largest.get((item.name, item.site), {}).items()
                },
            )
            for item in candidates
            if not item.refitted and not item.redraw
        ),
        settings={**settings, **bars},
        noise_floor=noise,
        skipped=(
            *judging.failures,
            *judging.notes_on_cells,
            *_lost(inputs),
            *_not_refitted(inputs),
            *_undetermined(task),
        ),
    )
    comparison = Comparison(
        record,
        results,
        gaps,
        beside,
        lambda: sequence_tables(variants, candidates, found),
        of_models,
        effects,
        lambda proxy, site, seed, on: judging.fitted(engines, proxy, site, seed, on),
    )
    if folder is not None:
        comparison.save(folder)
    return comparison


@dataclass(frozen=True)
class _Inputs:
    """The splits as they are used: to fit on, to judge on, and what is left of each shift to fit on once more.

    `train` is None where the task has none. `refit_on` has None for a shift that has too few sequences for that, and is
    empty where nothing is refitted.
    """

    train: Split | None
    splits: dict[str, Split]
    refit_on: dict[str, Split | None]

    @classmethod
    def of(cls, task: Task, sequences: int, fit_sequences: int, *, refit: bool) -> "_Inputs":
        """Those of a task. Raises AssayError unless it has one split of role iid."""
        splits: dict[str, Split] = {}
        refit_on: dict[str, Split | None] = {}
        train: Split | None = task.split(task.split_names[0], fit_sequences)
        train = train if train is not None and train.role == "train" else None
        for name in task.split_names[0 if train is None else 1 :]:
            split = task.split(name, sequences)
            if refit and split.role == "shift":
                whole = task.split(name, sequences + fit_sequences)
                rest = np.arange(len(split), len(whole))
                refit_on[name] = whole.take(rest) if len(rest) >= LEAST_REFIT else None
            splits[name] = split
        roles = [split.role for split in splits.values()]
        if roles.count("iid") != 1:
            raise AssayError(
                f"task {task.name!r} has {roles.count('iid')} splits of role 'iid'; exactly one is needed."
            )
        return cls(train, splits, refit_on)

    @property
    def iid(self) -> Split:
        """The split in distribution."""
        return next(split for split in self.splits.values() if split.role == "iid")

    @property
    def all(self) -> list[Split]:
        """Everything that a subject will see."""
        return [*self.named.values(), *(split for split in self.refit_on.values() if split is not None)]

    @property
    def named(self) -> dict[str, Split]:
        """The splits to fit on and to judge on, by name."""
        return {**({} if self.train is None else {self.train.name: self.train}), **self.splits}

    @cached_property
    def hashes(self) -> dict[str, str]:
        """A hash of what is fitted or judged on, by name of the split."""
        return {name: _split_hash(split) for name, split in self.named.items()}

    @cached_property
    def refit_hashes(self) -> dict[str, str]:
        """A hash of what is left of a shift to fit on, by name of the split."""
        return {name: _split_hash(split) for name, split in self.refit_on.items() if split is not None}

    def of_split(self, name: str, candidates: Sequence[Candidate], subject: Subject) -> list[Candidate]:
        """The candidates judged on a split.

        A shuffled copy is a control itself and has no controls of its own; nor does it tell anything of what replaces
        a model as a whole.
        """
        return [
            item
            for item in candidates
            if (subject.trained or not (item.is_control or is_whole(item.simplification)))
            and (not item.refitted or name in self.refit_hashes)
        ]


class _Judging:
    """Makes the cells that are not finished, and finds all of them."""

    def __init__(  # noqa: PLR0917
        self,
        task: Task,
        inputs: _Inputs,
        candidates: Sequence[Candidate],
        judged: Sequence[Metric],
        found: Found,
        cells: Cells,
        fits: Fits,
        seed: int,
        positions: Positions,
    ) -> None:
        self.task, self.inputs, self.candidates, self.judged = task, inputs, candidates, judged
        self.found, self.cells, self.fits, self.seed, self.positions = found, cells, fits, seed, positions
        self.metrics = {f"metric {metric.name}": fingerprint_or_reason(metric) for metric in judged}
        self.failures: list[Skipped] = []
        self.repaired: list[Skipped] = []
        self.unkept: dict[str, Skipped] = {}
        self.done = 0

    def run(self, engines: Sequence[Engine], workers: Workers, progress: Callable[[str], None]) -> None:
        """Judge all subjects on every split: first what has to be fitted, then cell by cell."""
        own = {
            (number, split): self.inputs.of_split(split, self.candidates, engine.subject)
            for number, engine in enumerate(engines)
            for split in self.inputs.splits
        }
        described = [(engine.subject.describe(), engine.subject.behaviour_sha256) for engine in engines]
        names = {
            (number, item.key, split): self._name(*described[number], item, split)
            for (number, split), items in own.items()
            for item in items
        }
        self.cells.take_over(names.values())
        missing = {
            (number, split): [item for item in items if names[number, item.key, split] not in self.cells]
            for (number, split), items in own.items()
        }
        for (number, key, split), name in names.items():
            if name in self.cells.damaged:
                where = f"{key} on {split} ({_who(engines[number].subject)})"
                reason = f"{name}.npz was changed, renamed or cut short after it was written, and is made again"
                self.repaired.append(Skipped(what=f"the kept cell of {where}", reason=reason))
        self.done = len(names) - sum(map(len, missing.values()))
        fitted = self._fitted(engines, missing, workers, progress)
        pieces = [
            (number, split, group)
            for (number, split), items in missing.items()
            for group in _groups(items, workers, len(missing))
        ]
        calls = [
            (
                engines[number].subject,
                self.task,
                self.inputs.splits[split],
                self.judged,
                {item.key: fitted[number, item.key, split if item.refitted else None] for item in group},
                self.positions,
                place if workers.many else None,
            )
            for place, (number, split, group) in enumerate(pieces)
        ]
        if pieces:
            progress(f"{_who(engines[0].subject)}: {pieces[0][1]}")
        for place, scores in workers.map(_judge, calls):
            number, split, group = pieces[place]
            for item in group:
                cell = scores[item.key]
                self.cells.put(names[number, item.key, split], cell)
                if isinstance(cell, NotFiniteError):
                    where = f"{item.key} on {split} ({_who(engines[number].subject)})"
                    self.failures.append(Skipped(what=where, reason=str(cell)))
            self.done += len(group)
            following = pieces[min(place + 1, len(pieces) - 1)]
            progress(f"{_who(engines[following[0]].subject)}: {following[1]}")
        self.failures.sort(key=lambda skipped: skipped.what)
        for place_of_cell, name in names.items():
            self.found.add(place_of_cell, name)

    def stopped(self, total: int) -> KeyboardInterrupt:
        """What to raise where the work was interrupted: it says what is kept, and how to go on."""
        self.cells.leave()
        folder = None if self.cells.folder is None else str(self.cells.folder.parent)
        where = "in this process: the same call" if folder is None else f"in {folder!r}: the same call with that folder"
        return KeyboardInterrupt(f"stopped; {self.done} of {total} cells are finished and kept {where} goes on.")

    @property
    def notes_on_cells(self) -> list[Skipped]:
        """What a reader of the folder has to know of its cells."""
        return [*self.repaired, *(self.unkept.values() if self.cells.folder is not None else ())]

    def _fitted(
        self,
        engines: Sequence[Engine],
        missing: Mapping[tuple[int, str], Sequence[Candidate]],
        workers: Workers,
        progress: Callable[[str], None],
    ) -> dict[tuple[int, str, str | None], Simplification]:
        """What the missing cells need fitted, by subject, key and the shift it is refitted on (None: train)."""
        found: dict[tuple[int, str, str | None], Simplification] = {}
        needed: dict[tuple[int, str | None], dict[str, Candidate]] = {}
        for (number, split), items in missing.items():
            for item in items:
                on = split if item.refitted else None
                known = self._kept(engines[number].subject, item, on)
                if known is None:
                    needed.setdefault((number, on), {})[item.key] = item
                else:
                    found[number, item.key, on] = known
        pieces = [
            (number, on, group)
            for (number, on), items in needed.items()
            for group in _groups(list(items.values()), workers, len(needed))
        ]
        calls = []
        for place, (number, on, group) in enumerate(pieces):
            fit_on = self.inputs.train if on is None else self.inputs.refit_on[on]
            calls.append((engines[number].subject, fit_on, group, place if workers.many else None))
        if pieces:
            progress(f"{_who(engines[0].subject)}: fitting")
        for place, fits in workers.map(_fit, calls):
            number, on, group = pieces[place]
            for item, fit in zip(group, fits, strict=True):
                found[number, item.key, on] = fit
                digest = self._digest(engines[number].subject, item, on)
                if digest is not None:
                    self.fits.keep(item, digest, engines[number].subject, fit)
            progress(f"{_who(engines[number].subject)}: fitting" + (f" on {on}" if on else ""))
        return found

    def _kept(self, subject: Subject, item: Candidate, on: str | None) -> Simplification | None:
        """A recipe that was fitted and kept before; the control of equal size is around the one that sets its size."""
        given = item.simplification
        if isinstance(given, RandomPerturbation):
            whose = (other for other in self.candidates if other.simplification is given.of and other.site == item.site)
            size = next((self._kept(subject, other, on) for other in whose if not other.refitted), None)
            return None if size is None else copy.deepcopy(given).around(size)
        digest = self._digest(subject, item, on) if getattr(item.simplification, "keeps", False) else None
        return None if digest is None else self.fits.find(item, digest, subject)

    def _digest(self, subject: Subject, item: Candidate, on: str | None) -> str | None:
        """A hash of all that a fitted recipe depends on; None where something cannot be hashed."""
        behaviour, train = subject.behaviour_sha256, self.inputs.train
        if isinstance(behaviour, NotHashableError) or isinstance(item.fingerprint, NotHashableError) or train is None:
            return None
        return cell_name(
            subject.describe(),
            self.task,
            item,
            fingerprints=[behaviour, item.fingerprint],
            fitted_on=self.inputs.hashes[train.name] if on is None else self.inputs.refit_hashes[on],
            judged_on="",
            positions="",
            seed=self.seed,
        )

    def fitted(
        self, engines: Sequence[Engine], proxy: str, site: str, seed: int | None, on: str | None
    ) -> Simplification:
        """A fitted recipe that was kept. Raises AssayError if there is none."""
        name = proxy if on is None else proxy + REFITTED
        for engine in engines:
            for item in self.candidates:
                same = (item.name, item.site, item.refitted) == (name, site, on is not None)
                if same and engine.subject.trained and seed in (None, engine.subject.seed):
                    kept = self._kept(engine.subject, item, on)
                    if kept is not None:
                        return kept
        raise AssayError(
            f"no fitted {proxy!r} at {site!r}{'' if on is None else f' refitted on {on!r}'} was kept; kept are recipes "
            "whose class says keeps = True, such as SparseAutoencoder."
        )

    def _name(
        self, described: Mapping[str, Any], behaviour: str | NotHashableError, item: Candidate, split: str
    ) -> str:
        """The name of a cell; one that no other run can find where something cannot be hashed."""
        whose = {f"subject {described['name']}": behaviour, **self.metrics, item.name: item.fingerprint}
        fingerprints: list[str] = []
        for what, found in whose.items():
            if isinstance(found, NotHashableError):
                self.unkept[what] = Skipped(what=f"cells of {what} for another run", reason=f"not cached: {found}")
                return self.cells.without_name()
            fingerprints.append(found)
        hashes = self.inputs.hashes
        train = self.inputs.train
        fitted_on = self.inputs.refit_hashes[split] if item.refitted else "" if train is None else hashes[train.name]
        return cell_name(
            described,
            self.task,
            item,
            fingerprints=fingerprints,
            fitted_on=fitted_on,
            judged_on=hashes[split],
            positions=self.positions,
            seed=self.seed,
        )


def _written(engine: Engine, site: Named) -> str:
    """How the record names a site, in whatever way it was written; a sweep by its own name."""
    return engine.site(site).name if not isinstance(site, str) or engine.expand(site) == (site,) else site


def _told(simplification: Simplification) -> dict[str, Any]:
    """What a recipe tells of itself."""
    describe: Callable[[], dict[str, Any]] | None = getattr(simplification, "describe", None)
    return {} if describe is None else describe()


def _study(
    subjects: Sequence[Subject], candidates: Sequence[Candidate], about: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What makes a comparison the same study as another: what was asked, and not what was found or by which version."""
    return {
        "study": "comparison",
        "subjects": [subject.describe() for subject in subjects],
        "task": about["task"],
        "splits": {split.name: [split.role, split.refit_sequences, split.sha256] for split in about["splits"]},
        "simplifications": list(dict.fromkeys(item.name for item in candidates if not item.is_control)),
        "metrics": [metric.name for metric in about["metrics"]],
        "primary": [about["primary_metric"], about["primary_kind"]],
        **settings,
    }


def _task_records(task: Task, inputs: _Inputs, judged: Sequence[Metric], primary: tuple[str, str]) -> dict[str, Any]:
    """What the record keeps of the task and the metrics."""
    copies = count_copies(inputs.named)
    check_differ(copies)
    metric, kind = primary
    return {
        "task": dict(task.describe()),
        "primary_kind": kind,
        "primary_metric": metric,
        "splits": tuple(
            SplitRecord(
                name=split.name,
                role=split.role,
                description=split.description,
                sequences=len(split),
                different=copies.different[split.name],
                refit_sequences=len(inputs.refit_on.get(split.name) or ()),
                sha256=inputs.hashes[split.name],
                label=split.label,
            )
            for split in inputs.named.values()
        ),
        "overlaps": tuple(OverlapRecord(**vars(overlap)) for overlap in copies.overlaps),
        "chance": _chance(task, inputs.iid, kind),
        "kinds": tuple(
            KindRecord(name=kind.name, description=kind.description, determined=kind.determined) for kind in task.kinds
        ),
        "features": tuple(
            FeatureRecord(
                name=feature.name,
                description=feature.description,
                kinds=feature.kinds,
                edges=feature.edges,
                labels=feature.labels,
            )
            for feature in task.features
        ),
        "metrics": tuple(
            MetricRecord(
                name=metric.name,
                unit=metric.unit,
                higher_is_better=metric.higher_is_better,
                description=metric.description,
            )
            for metric in judged
        ),
    }


def _chance(task: Task, split: Split, kind: str) -> float | None:
    """The accuracy of always answering the most frequent token of a kind; None where there is no answer."""
    kinds = [kind.name for kind in task.kinds]
    determined = {kind.name for kind in task.kinds if kind.determined}
    asked = [kinds.index(name) for name in (kinds if kind == ALL else [kind]) if name in determined]
    here = np.isin(split.kinds, asked)
    answers = split.right[here]
    also = () if split.also_right is None else split.also_right[here]
    every = np.concatenate((answers, *(column[column != NO_TOKEN] for column in np.transpose(also))))
    return float(np.bincount(every).max() / len(answers)) if len(answers) else None


def _lost(inputs: _Inputs) -> Iterator[Skipped]:
    for name, split in inputs.named.items():
        for reason, count in split.lost.items():
            yield Skipped(what=f"{count:,} {reason} of split {name}", reason="left out, and the rest is used")


def _not_refitted(inputs: _Inputs) -> Iterator[Skipped]:
    for name, rest in inputs.refit_on.items():
        if rest is None:
            yield Skipped(
                what=f"refitting on {name}",
                reason=f"fewer than {LEAST_REFIT} sequences are left beside the {len(inputs.splits[name])} that are "
                "judged; give more, or judge fewer",
            )


def _undetermined(task: Task) -> Iterator[Skipped]:
    for kind in task.kinds:
        if not kind.determined:
            yield Skipped(
                what=f"accuracy on {kind.name}",
                reason="the context does not determine the answer, so accuracy has no meaning",
            )


def _check_call(
    subjects: Sequence[Subject], task: Task, simplifications: Sequence[Simplification], sites: Sequence[Named]
) -> None:
    if not subjects or not simplifications or not sites or isinstance(sites, str):
        raise AssayError(
            "compare() needs at least one subject, one simplification and one site (sites is a list, such as ['all'])."
        )
    if not isinstance(task, Task):
        raise AssayError(f"compare(task={task!r}): not a task; see assay.tasks.Task for what one must have.")
    for item in simplifications:
        if not isinstance(item, Simplification) or isinstance(item, type):
            raise AssayError(
                f"compare(): {item!r} is not a simplification; give objects such as assay.SVD(rank=8), with streams, "
                "fit, apply and control."
            )
    if len({(item.name, item.seed) for item in subjects}) < len(subjects):
        raise AssayError("compare(): several subjects must be different training seeds; two are the same.")
    shapes = {json.dumps(_architecture(item)) for item in subjects}
    if len(shapes) > 1:
        raise AssayError("compare(): several subjects must be training seeds of one architecture; these differ.")


def _check_recipes(simplifications: Sequence[Simplification], subjects: Sequence[Subject], inputs: _Inputs) -> None:
    """Let every recipe refuse a subject or a split that it cannot stand for, before any work.

    Raises AssayError, too, for one that learns where there is nothing to learn from.
    """
    splits = inputs.all
    for item in simplifications:
        if inputs.train is None and (learns(item) or not is_whole(item)):
            raise AssayError(
                f"{label(item)} is fitted on a train split, and the task has none; give it one (Text(train=...), "
                "--fit)."
            )
        check_parameters: Callable[[], None] | None = getattr(item, "check_parameters", None)
        if check_parameters is not None:
            check_parameters()
        check: Callable[[Subject, Sequence[Split]], None] | None = getattr(item, "check", None)
        for subject in subjects if check is not None else ():
            assert check is not None
            check(subject, splits)


def _who(subject: Subject) -> str:
    seed = "" if subject.seed is None else f" seed {subject.seed}"
    return f"{subject.name}{seed}" if subject.trained else f"{subject.name}, shuffled"


def _check_numbers(*, resamples: int, **values: int) -> None:
    for name, value in {"resamples": resamples, **values}.items():
        if value < 2:
            raise AssayError(f"compare({name}={value}): must be at least 2.")
    if resamples > MOST_RESAMPLES:
        raise AssayError(f"compare(resamples={resamples}): must be at most {MOST_RESAMPLES:,}.")


def _architecture(subject: Subject) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in subject.model.state_dict().items()}


def check_fits(subjects: Sequence[Subject], split: Split) -> None:
    """Raise AssayError if a split is not made for a subject.

    That is if it asks something else, has tokens that the subject has no embedding for or calls something else, has
    another prompt than an encoder, or is longer than the subject reads; or if the subject has been set to training.
    """
    check_embeddings(split)
    for subject in subjects:
        if any(module.training for module in subject.model.modules()):
            raise AssayError(
                f"the model of {subject.name!r} was set to training after the subject was made, and training is random "
                "(dropout); call model.eval()."
            )
        if split.objective != subject.objective:
            raise AssayError(
                f"split {split.name!r} is made for the objective {split.objective!r} but {subject.name!r} is judged as "
                f"{subject.objective!r}; give both the same, as Text(objective=...) and load(objective=...)."
            )
        if split.prompt is not None and split.prompt != subject.prompt:
            raise AssayError(
                f"split {split.name!r} is made with the prompt {split.prompt!r} but {subject.name!r} is used with "
                f"{subject.prompt!r}; give both the same, as Text(prompt=subject.prompt) and load(prompt=...)."
            )
        _check_tokens(subject, split)
        limit = subject.positions
        if limit is not None and split.tokens.shape[1] > limit:
            raise AssayError(
                f"split {split.name!r} has sequences of {split.tokens.shape[1]} tokens but {subject.name!r} has "
                f"{limit} positions; make the task's sequences shorter."
            )


def _check_tokens(subject: Subject, split: Split) -> None:
    known = subject.vocabulary
    largest = int(max(split.tokens.max(), split.occurring[-1]))
    if largest >= known:
        raise AssayError(
            f"split {split.name!r} has token {largest} but {subject.name!r} has embeddings of 0 to {known - 1} only; "
            "the task and the subject do not belong together (after adding tokens to a tokenizer, "
            "model.resize_token_embeddings(len(tokenizer)) is needed)."
        )
    if subject.tokenizer is None or split.names is None:
        return
    own = token_names(subject.tokenizer, split.occurring.tolist())
    for token in split.occurring.tolist():
        if own.get(token) != split.names.get(token):
            raise AssayError(
                f"token {token} of split {split.name!r} is {split.names.get(token)!r} to the task but "
                f"{own.get(token)!r} to {subject.name!r}; their vocabularies differ. Make the task with the subject's "
                "own (subject.tokenizer)."
            )


def _split_hash(split: Split) -> str:
    digest = hashlib.sha256()
    optional = (split.targets, split.counterfactuals, split.answers, split.foils, split.also_right)
    given = (array for array in optional if array is not None)
    features = (split.features[name] for name in sorted(split.features))
    for array in (split.tokens, split.lengths, split.kinds, *given, *features):
        digest.update(np.ascontiguousarray(array.astype(np.int64)).tobytes())
    return digest.hexdigest()


def _groups(items: Sequence[Candidate], workers: Workers, pieces: int) -> Iterator[Sequence[Candidate]]:
    """The candidates of one subject and split, cut so that all workers have something to do."""
    parts = min(len(items), max(1, math.ceil(2 * workers.count / max(pieces, 1)))) if workers.many else 1
    for part in range(parts if items else 0):
        yield items[part * len(items) // parts : (part + 1) * len(items) // parts]


def _have_parts(simplifications: Iterable[Simplification]) -> bool:
    """Whether any acts on parts of the subject, so that these have to be found."""
    return not all(map(is_whole, simplifications))


def _placed(subject: Subject, place: int | None) -> Subject:
    """In a worker: the subject on the GPU that is this piece's turn, where there are several."""
    spread = len(getattr(subject.model, "hf_device_map", {})) > 1
    if place is None or spread or subject.device.type != "cuda" or torch.cuda.device_count() < 2:
        return subject
    return subject.to(f"cuda:{place % torch.cuda.device_count()}")


def _fit(subject: Subject, train: Split | None, items: Sequence[Candidate], place: int | None) -> list[Simplification]:
    engine = engine_of(_placed(subject, place), parts=_have_parts(item.simplification for item in items))
    streams = sorted({stream for item in items for stream in item.streams})
    samples = Samples(engine.heads, subject=subject) if train is None else collect(engine, train, streams)
    fits: dict[tuple[int, str], Simplification] = {}
    for item in items:
        given = item.simplification
        fit = copy.deepcopy(given)
        known = fits.get((id(given.of), item.site)) if isinstance(given, RandomPerturbation) else None
        if isinstance(fit, RandomPerturbation) and known is not None:
            found: object = fit.around(known)
        else:
            found = fit.fit(samples.at(item.at))
        if not isinstance(found, Simplification):
            raise AssayError(f"{item.name}: fit must return self; it returned a {type(found).__name__}.")
        fits[id(given), item.site] = found
    return list(fits.values())


def _judge(  # noqa: PLR0917
    subject: Subject,
    task: Task,
    split: Split,
    judged: Sequence[Metric],
    fitted: Mapping[str, Simplification],
    positions: Positions,
    place: int | None,
) -> dict[str, Scores | NotFiniteError]:
    engine = engine_of(_placed(subject, place), parts=_have_parts(fitted.values()))
    found: dict[str, Scores | NotFiniteError] = {}
    for group in _held_together(fitted, engine.subject.parameters):
        proxies = {key: _acting(fitted[key], engine.subject, positions) for key in group}
        found |= score_split(engine, proxies, task, split, judged, keep=KEPT if is_whole(fitted[group[0]]) else ())
    return found


def _acting(fitted: Simplification, subject: Subject, positions: Positions) -> Proxy:
    """The proxy, with its edits at these positions only. Raises AssayError for one that is no edits, nor whole."""
    proxy = applied(fitted, subject)
    if positions == "all" or is_whole(fitted):
        return proxy
    if not isinstance(proxy, EditedSubject):
        raise AssayError(
            f"{label(fitted)} gives no edits, so that it cannot be told to act at scored positions only; leave "
            "positions as they are."
        )
    return AtScored(proxy)


@checked
def resolve_positions(name: str) -> Positions:
    """The positions at which sites are changed, by name. Raises AssayError for an unknown name."""
    for known in get_args(Positions):
        if name == known:
            return known
    raise unknown_name("positions", name, get_args(Positions))


def _held_together(fitted: Mapping[str, Simplification], parameters: int) -> Iterator[list[str]]:
    """The keys of what is judged in one go: of copies of the model as many as are held at a time, at least one."""
    copies = [key for key, simplification in fitted.items() if copies_model(simplification)]
    whole = [key for key, simplification in fitted.items() if is_whole(simplification) and key not in copies]
    edits = [key for key, simplification in fitted.items() if not is_whole(simplification)]
    yield from (keys for keys in (edits, whole) if keys)
    size = max(1, PARAMETERS_HELD // parameters)
    yield from (copies[start : start + size] for start in range(0, len(copies), size))


def noise_floor(engine: Engine, task: Task, split: Split) -> NoiseFloor:
    """What an identity edit changes on the first `NOISE_SEQUENCES` sequences of a split."""
    part = split.first(NOISE_SEQUENCES)
    eager, as_loaded, flipped, scored = 0.0, 0.0, 0, 0
    vectors: dict[str, dict[int, np.ndarray]] = {"loaded": {}, "edited": {}}
    for index, batch in batches(engine, part):
        tokens, valid = tensors(batch, engine.subject.device)
        kind_of = torch.from_numpy(batch.kinds).to(tokens.device)
        floor = engine.identity_difference(tokens, valid)
        eager, as_loaded = max(eager, floor.eager), max(as_loaded, floor.as_loaded)
        if split.objective == "embedding":
            for name, hidden in (("loaded", floor.loaded_logits), ("edited", floor.edited_logits)):
                pooled = pool(hidden, valid, engine.subject.pooling).cpu().numpy()
                vectors[name] |= dict(zip(index.tolist(), pooled, strict=True))
            continue
        here = kind_of != UNSCORED
        changed = choices(floor.loaded_logits, kind_of, task.kinds) != choices(floor.edited_logits, kind_of, task.kinds)
        flipped += int(changed[here].sum())
        scored += int(here.sum())
    if split.objective == "embedding":
        loaded, edited = (
            neighbours(np.stack([found[place] for place in range(len(part))])) for found in vectors.values()
        )
        flipped, scored = int((loaded != edited).sum()), len(part)
    return NoiseFloor(
        logit_difference=eager,
        logit_difference_as_loaded=as_loaded,
        flipped=flipped / max(scored, 1),
        sequences=len(part),
    )


def _environment() -> dict[str, str]:
    packages = ("torch", "transformers", "numpy", "scipy", "scikit-learn")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": str(torch.get_num_threads()),
        **{name: version(name) for name in packages},
    }
