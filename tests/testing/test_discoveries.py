"""The conformance suite of discovery methods passes ours and catches what it says it catches."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from assay import AssayError
from assay.circuits import EdgeAttribution, IntegratedEdgeAttribution, Problem, discoveries
from assay.testing import check_discovery

MORE = {
    "eap-ig-left": lambda: IntegratedEdgeAttribution(5, "left"),
    "eap-ig-gauss": lambda: IntegratedEdgeAttribution(6, "gauss"),
}
"""What is checked beside the registered methods with their defaults."""

AGREEMENT = {"exact": (1, 1), "eap": (0.5, 0.98), "eap-ig": (0.5, 0.99), "exact-nodes": (0, 0.5)}
"""Between which bounds the rank correlation with exact patching is on the small models."""


SLOW = {"greedy", "path-interventions"}
"""A run for every edge, on small models whose graphs have hundreds."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in (*discoveries, *MORE)]
)
def test_ours_keep_the_contract(name):
    agreement = check_discovery(MORE.get(name) or discoveries.get(name))
    assert list(agreement) == ["a small GPT-2", "a small Llama with grouped queries"]
    low, high = AGREEMENT.get(name, (-1, 1))
    assert all(low <= value <= high for value in agreement.values())


@dataclass
class _Broken:
    """A method that keeps every rule (scores are sums of tokens by sender); each subclass breaks one."""

    calls: int = field(default=0, init=False)

    def scores(self, problem: Problem) -> np.ndarray:
        self.calls += 1
        graph = problem.wiring.graph
        found = np.where(graph.exists, 0.0, np.nan)
        for batch in problem.batches():
            found += self.of_batch(batch, graph) * (1 + np.arange(len(graph.senders)))[:, None]
        return found / len(problem.split)

    def of_batch(self, batch, graph):
        return float((batch.tokens * batch.valid).sum())


class _Unstored(_Broken):
    def __init__(self, steps: int = 3):
        super().__init__()


class _NoNaN(_Broken):
    def scores(self, problem):
        return np.nan_to_num(super().scores(problem))


class _TooManyNaN(_Broken):
    def scores(self, problem):
        found = super().scores(problem)
        found[0, 0] = np.nan
        return found


class _Infinite(_Broken):
    def scores(self, problem):
        found = super().scores(problem)
        found[0, 0] = np.inf
        return found


class _WrongShape(_Broken):
    def scores(self, problem):
        return super().scores(problem)[:-1]


class _Random(_Broken):
    def scores(self, problem):
        return super().scores(problem) * np.random.default_rng().random()


class _Remembers(_Broken):
    def scores(self, problem):
        return super().scores(problem) * self.calls


class _BatchMeans(_Broken):
    def of_batch(self, batch, graph):
        return super().of_batch(batch, graph) / len(batch.tokens)


class _Padding(_Broken):
    def of_batch(self, batch, graph):
        return float(batch.tokens.numel())


class _FirstPair(_Broken):
    def scores(self, problem):
        return super().scores(problem) * (1 + problem.split.tokens[0, 1])


class _Sums(_Broken):
    def scores(self, problem):
        return super().scores(problem) * len(problem.split)


class _Claims(EdgeAttribution):
    complete = "embeddings"


class _ClaimsAll(_Broken):
    complete = "all"


class _ClaimsNonsense(_Broken):
    complete = "some"


class _Breaks(_Broken):
    def scores(self, problem):
        found = super().scores(problem)
        next(problem.engine.subject.model.parameters()).data.mul_(1.1)
        return found


class _Nothing(_Broken):
    partial = True

    def scores(self, problem):
        return np.full(problem.wiring.graph.shape, np.nan)


class _SaysPartly(_TooManyNaN):
    partial = True


class _SaysTogether(_Sums):
    pairwise = False


class _Refuses(_Broken):
    def check(self, problem):
        raise AssayError("not today")


@pytest.mark.parametrize("method", [_Broken, _SaysPartly, _SaysTogether])
def test_a_method_that_keeps_every_rule_passes(method):
    assert set(check_discovery(method)) == {"a small GPT-2", "a small Llama with grouped queries"}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (_Unstored, "'steps' is not stored"),
        (_NoNaN, "must be NaN exactly where there is no edge"),
        (_TooManyNaN, "must be NaN exactly where there is no edge; 1 are not"),
        (_Infinite, "not finite"),
        (_Nothing, "no edge has a score"),
        (_WrongShape, "scores have the shape"),
        (_Random, "the same pairs give other scores"),
        (_Remembers, "asked before"),
        (_BatchMeans, "batches of 1 pairs give other scores"),
        (_Padding, "batches of 1 pairs give other scores"),
        (_FirstPair, "pairs in another order give other scores"),
        (_Sums, "not the mean of those of every pair"),
        (_Claims, "edges out of the embeddings sum to"),
        (_ClaimsAll, "all edges sum to"),
        (_ClaimsNonsense, "complete='some' must be"),
        (_Breaks, "weights or hooks are not as they were"),
        (_Refuses, "check refuses every problem: not today"),
        (object, "needs scores"),
    ],
)
def test_broken_rules_are_caught(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_discovery(broken)
