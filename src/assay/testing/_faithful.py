"""An assertion that an explanation holds."""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from assay._errors import AssayError
from assay._given import checked
from assay.engine import Engine, Proxy, check_proxy
from assay.faithfulness import ALL, CleanPass
from assay.faithfulness._assess import Assessment, Finding, assess
from assay.faithfulness._statistics import FEW
from assay.faithfulness._verdicts import check_shares, in_percent
from assay.simplify import Simplification, label
from assay.subjects import Subject
from assay.tasks import UNSCORED, Feature, Kind, Split, Task, bound
from assay.testing._session import Session

_SEQUENCES = 500
_KINDS_SHOWN = 5

_PREDICTION = Kind("prediction", "any scored prediction")


class _Words(NamedTuple):
    """What is judged of a model, in the words of a message."""

    asked: str
    counted: Callable[[Finding], str]
    few: str
    flips: str


_OF_TOKENS = _Words(
    asked="the subject's own prediction on at least {}",
    counted=lambda finding: f"{finding.predictions:,} predictions in {finding.sequences:,} sequences",
    few="have such predictions",
    flips="predictions that flip",
)
_OF_EMBEDDINGS = _Words(
    asked="the subject's own nearest neighbour for at least {} of the sequences",
    counted=lambda finding: f"the nearest neighbours of {finding.sequences:,} sequences",
    few="could be compared",
    flips="nearest neighbours that change",
)


@checked
def assert_faithful(
    subject: Subject,
    proxy: Proxy,
    splits: Task | Sequence[Split],
    *,
    min_agreement: float = 0.95,
    max_gap: float = 0.02,
    task: Task | None = None,
    kinds: Sequence[str] | None = None,
    sequences: int | None = None,
    seed: int = 0,
    resamples: int = 2_000,
    level: float = 0.95,
    session: Session | None = None,
) -> None:
    """Assert that a proxy predicts what the subject predicts, in distribution and under every shift.

        assert_faithful(subject, proxy, task)

    It passes if whole confidence intervals of the given `level`, from `resamples` resamples drawn with `seed`, show
    that the proxy predicts the subject's token on at least `min_agreement` of the predictions on the split of role
    "iid", and that under every shift the share is at most `max_gap` lower: the rule for the verdict "faithful" of
    `assay.compare`, which may still call it "vacuous", since it judges controls, too. Of an encoder it is the share of
    sequences that keep their nearest neighbour within the split. The same arguments give the same result.

    `splits` is a task, of which every split but the first (train) is judged on its first `sequences` sequences (500, or
    what the session says, pytest's option --assay-sequences), or a list of splits, one of role "iid" and at least one
    of role "shift" (all their sequences, or the first `sequences`). `kinds` names the kinds of prediction that have to
    hold, each by itself; the default is the task's primary kind. For a list of splits `task` says what their kinds are;
    without it every scored prediction counts alike, and its prediction is the arg max over the whole vocabulary.

    With a `session` (the fixture `assay_session`) the subject's own passes are computed once for all tests. In a run of
    pytest the numbers are properties of the test in its JUnit report (`--junitxml`), whether it passes or not.

    Raises AssertionError that gives the numbers of every split and kind that failed, and says whether the proxy was
    shown to be unfaithful or whether there is too little data to tell; AssayError if the call itself is wrong, or the
    subject gives numbers that are not finite.
    """
    __tracebackhide__ = True
    check_shares("assert_faithful", min_agreement=min_agreement, max_gap=max_gap)
    if not 0 < level < 1:
        raise AssayError(f"assert_faithful(level={level}): must be between 0 and 1, for example 0.95.")
    for name, number in (("resamples", resamples), ("sequences", _SEQUENCES if sequences is None else sequences)):
        if number < 2:
            raise AssayError(f"assert_faithful({name}={number}): must be at least 2.")
    check_proxy(proxy, subject, "assert_faithful(proxy=...)")
    of_task = (None if session is None else session.sequences) or _SEQUENCES
    judged = _GivenSplits(bound(splits, subject.tokenizer), task, sequences, of_task)
    chosen = (judged.primary_kind,) if kinds is None else tuple(kinds)
    known = (ALL, *(kind.name for kind in judged.kinds))
    for kind in chosen:
        if kind not in known:
            raise AssayError(f"assert_faithful(kinds=...): there is no kind {kind!r}; there are {', '.join(known)}.")
    if not chosen or len(set(chosen)) < len(chosen):
        raise AssayError("assert_faithful(kinds=...): name at least one kind, each once.")
    result = assess(
        Engine(subject) if session is None else session.engine(subject),
        proxy,
        judged,
        judged.splits,
        kinds=chosen,
        min_agreement=min_agreement,
        max_gap=max_gap,
        seed=seed,
        resamples=resamples,
        level=level,
        clean_pass=CleanPass if session is None else session.clean_pass,
    )
    _record(proxy, result)
    if any(finding.standing != "holds" for finding in result.findings):
        words = _OF_EMBEDDINGS if judged.splits[0].objective == "embedding" else _OF_TOKENS
        asked = (
            f"asked for: {words.asked.format(f'{100 * min_agreement:g}%')} in distribution, and at most "
            f"{100 * max_gap:g} points less under every shift ({100 * level:g}% intervals)"
        )
        raise AssertionError("\n".join(_message(proxy, asked, result, words)))


class _GivenSplits:
    """The splits to be judged as a task: without features, and of one kind where nobody said what kinds there are."""

    def __init__(self, given: Task | Sequence[Split], task: Task | None, sequences: int | None, of_task: int) -> None:
        if isinstance(given, Task):
            if task is not None:
                raise AssayError("assert_faithful(task=...): only for a list of splits; splits= is a task already.")
            count = of_task if sequences is None else sequences
            found = [split for name in given.split_names if (split := given.split(name, count)).role != "train"]
            task = given
        else:
            if not isinstance(given, Sequence) or not all(isinstance(item, Split) for item in given):
                raise AssayError(f"assert_faithful(splits={given!r}): give a task, or a list of its splits.")
            found = [item if sequences is None else item.first(sequences) for item in given]
        roles = [item.role for item in found]
        if roles.count("iid") != 1 or "shift" not in roles or "train" in roles:
            raise AssayError(
                "assert_faithful(splits=...): needs one split of role 'iid' and at least one of role 'shift', none of "
                f"role 'train'; got {', '.join(f'{item.name!r} ({item.role})' for item in found) or 'none'}."
            )
        if len({item.name for item in found}) < len(found):
            raise AssayError("assert_faithful(splits=...): two splits have the same name.")
        self.name = "splits" if task is None else task.name
        self.kinds: tuple[Kind, ...] = (_PREDICTION,) if task is None else task.kinds
        self.primary_kind = ALL if task is None else task.primary_kind
        self.features: tuple[Feature, ...] = ()
        self.splits = [replace(item, features={}, kinds=self._kinds_of(item, task)) for item in found]
        self.split_names = tuple(item.name for item in found)

    @staticmethod
    def _kinds_of(split: Split, task: Task | None) -> np.ndarray:
        if task is None:
            return np.where(split.kinds == UNSCORED, UNSCORED, 0)
        if split.kinds.max() >= len(task.kinds):
            raise AssayError(
                f"assert_faithful(): split {split.name!r} has kind {split.kinds.max()}, but the task {task.name!r} has "
                f"{len(task.kinds)} kinds; the split is not of this task."
            )
        return split.kinds

    def split(self, name: str, sequences: int) -> Split:
        """The first sequences of a split."""
        return next(item for item in self.splits if item.name == name).first(sequences)

    def describe(self) -> dict[str, object]:
        """The names of the splits."""
        return {"splits": list(self.split_names)}


def _explanation(proxy: Proxy) -> str:
    """What the proxy claims, where it is made of a recipe."""
    recipe = getattr(proxy, "simplification", None)
    return f"{label(recipe)}: " if isinstance(recipe, Simplification) else ""


def _record(proxy: Proxy, result: Assessment) -> None:
    """Give the numbers to the test that runs, if one does, as properties of its JUnit report."""
    plugin = sys.modules.get("assay_pytest")
    if plugin is None:
        return
    for finding in result.findings:
        name = f"{_explanation(proxy)}{finding.split}, {finding.kind}: {'gap' if finding.is_gap else 'agreement'}"
        for ending, value in (("", finding.value), (", low", finding.low), (", high", finding.high)):
            plugin.record_property(f"{name}{ending}", f"{value:.6g}")
        plugin.record_property(f"{name}, standing", finding.standing)


def _message(proxy: Proxy, asked: str, result: Assessment, words: _Words) -> Iterator[str]:
    """Why an assertion failed, line by line, and what to do."""
    failing = [finding for finding in result.findings if finding.standing == "fails"]
    undecided = [finding for finding in result.findings if finding.standing == "undecided"]
    why = "too noisy to tell" if result.noisy else "too little data to tell"
    yield f"{'NOT FAITHFUL' if failing else f'NOT DECIDED ({why})'}: {_explanation(proxy)}{proxy!r}"
    yield asked
    width = max(len(f"{finding.split}, {finding.kind}") for finding in result.findings)
    order = ("fails", "undecided", "holds")
    for finding in sorted(result.findings, key=lambda item: order.index(item.standing)):
        yield f"  {finding.standing:<9}  {f'{finding.split}, {finding.kind}':<{width}}  {_numbers(finding, words)}"
    for name in dict.fromkeys(finding.split for finding in failing):
        rates = {kind: rate for (split, kind), rate in result.agreement.items() if split == name and kind != ALL}
        rates = {kind: rate for kind, rate in rates.items() if not math.isnan(rate)}
        if set(rates) - {finding.kind for finding in result.findings}:
            lowest = sorted(rates, key=lambda kind: rates[kind])[:_KINDS_SHOWN]
            yield f"  lowest on {name}: {', '.join(f'{kind} {in_percent(rates[kind])}' for kind in lowest)}"
    if failing:
        yield (
            "This is shown; more sequences will not change it. Find a better explanation, or claim less: another "
            "min_agreement or max_gap, or only the splits on which it holds."
        )
    else:
        yield from _advice(undecided, result, words)


def _numbers(finding: Finding, words: _Words) -> str:
    of = words.counted(finding)
    if math.isnan(finding.low):
        return f"not measured: {finding.reason or 'nothing to compare with in distribution'}" + (
            f" ({of})" if finding.predictions else ""
        )
    if not finding.is_gap:
        return f"agrees on {in_percent(finding.value)} [{in_percent(finding.low)}, {in_percent(finding.high)}] of {of}"
    change = "less" if finding.value >= 0 else "more"
    return (
        f"{abs(100 * finding.value):.1f} points {change} than in distribution (gap [{100 * finding.low:+.1f}, "
        f"{100 * finding.high:+.1f}]); agrees on {in_percent(finding.agreement)} of {of}"
    )


def _advice(undecided: Sequence[Finding], result: Assessment, words: _Words) -> Iterator[str]:
    """How to get a decision."""
    noise, max_gap = result.noise, result.max_gap
    if result.noisy:
        yield (
            f"The noise floor, the {in_percent(noise)} of {words.flips} when nothing is edited, is above the "
            f"{100 * max_gap:g} points to be told apart; compute in a wider dtype, or allow a larger max_gap."
        )
        return
    needed = 0
    for finding in undecided:
        where = f"{finding.split}, {finding.kind}"
        if finding.sequences < FEW:
            yield (
                f"{where}: only {finding.sequences} of {finding.size} sequences {words.few}; give at least "
                f"{FEW} that do, better hundreds."
            )
        elif math.isnan(finding.low):
            continue
        elif finding.is_gap and finding.bound < finding.value <= noise:
            yield (
                f"{where}: the gap is within the noise floor, the {in_percent(noise)} of {words.flips} when "
                "nothing is edited; compute in a wider dtype, or allow a larger max_gap."
            )
        elif finding.needed is None:
            yield f"{where}: too near the bound for any number of sequences to decide soon; choose another bound."
        else:
            needed = max(needed, finding.needed)
    if needed:
        yield f"If the rates stay as they are, about {needed:,} sequences a split decide (sequences=...)."
