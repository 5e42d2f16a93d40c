"""A conformance suite for methods that discover circuits, which yours and ours have to pass."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import spearmanr

from assay._errors import AssayError
from assay._given import checked
from assay.circuits import Ablation, Batch, Discovery, ExactEdges, Measure, Problem, Reference
from assay.engine import Engine
from assay.subjects import Subject
from assay.tasks import NO_TOKEN, UNSCORED, Split
from assay.testing._simplifications import small_gpt2, small_llama

SAME = 1e-8
"""Largest difference of a score, as a share of the largest score, that counts as none; small models are in float64."""

COMPLETE = 0.2
"""By how much the sum of scores that a method calls complete may miss the whole change of m, as a share of the sum of
their sizes: integrals are taken at a few points (five left ends miss it by 0.17, five midpoints by 0.01). Scores from
one gradient miss it by 0.39 and more."""

_PAIRS = 4


@dataclass(frozen=True)
class _Cut(Problem):
    """A problem whose pairs come a few at a time."""

    most: int = 1

    def batches(
        self, senders: int | None = None, *, rows: int | None = None, tokens: int | None = None
    ) -> Iterator[Batch]:
        """At most `most` pairs at a time."""
        return super().batches(senders, rows=self.most if rows is None else min(rows, self.most), tokens=tokens)


@checked
def check_discovery(make: Callable[[], Discovery]) -> dict[str, float]:
    """Check that a discovery method keeps the contract; `make` gives a fresh one each time it is called.

        check_discovery(lambda: MyMethod(steps=5))

    On a small GPT-2 and a small Llama with grouped keys, with pairs of several lengths, all in float64: parameters are
    only stored; scores are (sender, receiver), NaN exactly where there is no edge (at least there, with
    `partial = True`) and finite elsewhere; they are the same at every call; they depend neither on how pairs are cut
    into batches, and so padded, nor on their order; they are the mean of those of every pair by itself, unless
    `pairwise = False`; weights and hooks of the subject are left as they were. Where the method has an attribute
    `complete`, the scores of all edges ("all"), or of those out of the embeddings ("embeddings"), sum to m with all
    edges ablated less m of the subject, to a fifth of the sum of their sizes.

    The ablation is "counterfactual" and the measure "logit_difference"; for a method whose `check` refuses that, the
    measure is "kl", or else the ablation "mean". Raises AssertionError that names the first rule broken. Returns
    Spearman's rank correlation of the sizes of its scores with those of `ExactEdges`, by the name of the small model:
    no rule, but good to know.
    """
    return {subject.name: _check(make, subject) for subject in map(_calmer, (small_gpt2(), small_llama()))}


def _calmer(subject: Subject) -> Subject:
    """With weights of half the size in its blocks, so that integrals over a few points come out."""
    with torch.no_grad():
        for block in Engine(subject).modules:
            for parameter in block.parameters():
                parameter.mul_(0.5 if parameter.dim() > 1 else 1)
    return subject


def _check(make: Callable[[], Discovery], subject: Subject) -> float:
    fresh = make()
    name = f"{type(fresh).__name__} on {subject.name}"
    assert isinstance(fresh, Discovery), f"{name}: needs scores(problem)"
    for key in inspect.signature(type(fresh)).parameters:
        assert hasattr(fresh, key), f"{name}: parameter {key!r} is not stored under its own name"
    engine, split = Engine(subject), small_pairs(0)
    problem = _problem(make, engine, split, name)
    before = subject.weights_sha256, subject.alterations
    scores = make().scores(problem)
    after = subject.weights_sha256, subject.alterations
    assert after == before, f"{name}: the subject's weights or hooks are not as they were"
    graph = problem.wiring.graph
    assert scores.shape == graph.shape, f"{name}: scores have the shape {scores.shape}, not {graph.shape}"
    missing = np.isnan(scores)
    wrong = int((~missing & ~graph.exists).sum())
    wrong += 0 if getattr(fresh, "partial", False) else int((missing & graph.exists).sum())
    assert not wrong, f"{name}: scores must be NaN exactly where there is no edge; {wrong} are not so"
    assert not np.isinf(scores).any(), f"{name}: scores are not finite"
    assert not missing.all(), f"{name}: no edge has a score"

    same = _Same(scores)
    same(make().scores(problem), f"{name}: the same pairs give other scores")
    twice = make()
    twice.scores(replace(problem, split=small_pairs(1)))
    same(twice.scores(problem), f"{name}: scores depend on what the method was asked before")
    for most in (1, 4):
        cut = _Cut(engine, split, problem.reference, problem.measure, most)
        same(make().scores(cut), f"{name}: batches of {most} pairs give other scores")
    order = np.random.default_rng(0).permutation(len(split))
    same(make().scores(replace(problem, split=split.take(order))), f"{name}: pairs in another order give other scores")
    if getattr(fresh, "pairwise", True):
        alone = [make().scores(replace(problem, split=split.take(np.array([row])))) for row in range(len(split))]
        same(np.mean(alone, axis=0), f"{name}: scores are not the mean of those of every pair by itself")
    _check_sum(fresh, problem, scores, name)
    exact = scores if isinstance(fresh, ExactEdges) else ExactEdges().scores(problem)
    sizes = [np.abs(found[~missing]) for found in (scores, exact)]
    return float(spearmanr(*sizes).statistic) if np.ptp(sizes[0]) > 0 else 0.0


def _problem(make: Callable[[], Discovery], engine: Engine, split: Split, name: str) -> Problem:
    """The first problem that a method takes, of those that there are."""
    refused: list[str] = []
    ways: tuple[tuple[Ablation, Measure], ...] = (
        ("counterfactual", "logit_difference"),
        ("counterfactual", "kl"),
        ("mean", "logit_difference"),
    )
    for ablation, measure in ways:
        problem = Problem(engine, split, Reference.fitted(engine, ablation, split), measure)
        try:
            getattr(make(), "check", lambda _: None)(problem)
        except AssayError as error:
            refused.append(str(error))
            continue
        return problem
    raise AssertionError(f"{name}: check refuses every problem: {refused[0]}")


class _Same:
    def __init__(self, scores: Float[np.ndarray, "sender receiver"]) -> None:
        self.scores, self.largest = scores, float(np.nanmax(np.abs(scores)))

    def __call__(self, other: Float[np.ndarray, "sender receiver"], what: str) -> None:
        difference = float(np.nanmax(np.abs(other - self.scores)))
        assert difference <= SAME * max(self.largest, 1e-12), (
            f"{what} (one differs by {difference:.2g}; the largest is {self.largest:.2g})"
        )


def _check_sum(method: Discovery, problem: Problem, scores: Float[np.ndarray, "sender receiver"], name: str) -> None:
    complete = getattr(method, "complete", None)
    assert complete in (None, "all", "embeddings"), f"{name}: complete={complete!r} must be 'all', 'embeddings' or None"
    if complete is None:
        return
    before, after = problem.means
    summed = scores if complete == "all" else scores[0]
    total = float(np.nansum(summed))
    assert abs(total - (after - before)) <= COMPLETE * float(np.nansum(np.abs(summed))), (
        f"{name}: scores of {'all edges' if complete == 'all' else 'edges out of the embeddings'} sum to {total:.4g}, "
        f"and all edges ablated change m by {after - before:.4g}"
    )


def small_pairs(seed: int) -> Split:
    """Pairs of random tokens, of lengths from 6 to 9, the first token changed, with one or two predictions."""
    rng = np.random.default_rng(seed)
    lengths = 6 + np.arange(_PAIRS) % 4
    tokens = rng.integers(1, 20, size=(_PAIRS, 9))
    tokens[np.arange(9) >= lengths[:, None]] = 0
    other = tokens.copy()
    other[:, 0] = 1 + tokens[:, 0] % 19
    kinds, answers = np.full_like(tokens, UNSCORED), np.full_like(tokens, NO_TOKEN)
    foils = np.full((*tokens.shape, 2), NO_TOKEN)
    for row, length in enumerate(lengths):
        for place in {int(length) - 1, 3 + row % 2 * int(length - 4)}:
            kinds[row, place] = 0
            answers[row, place] = rng.integers(1, 10)
            foils[row, place, : 1 + row % 2] = rng.permutation(np.arange(10, 20))[: 1 + row % 2]
    return Split(
        name="train",
        role="train",
        description="random pairs",
        tokens=tokens,
        lengths=lengths,
        kinds=kinds,
        counterfactuals=other,
        answers=answers,
        foils=foils,
    )
