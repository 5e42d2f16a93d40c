"""The conformance suite passes ours and catches what it says it catches."""

from dataclasses import dataclass, field

import pytest
import torch

from assay.circuits import Circuit, RandomValueVectors, ValueVectorEdit
from assay.engine import Edit
from assay.models import (
    LowRankWeights,
    NGram,
    NoiseWeights,
    PruneWeights,
    RandomFactors,
    RandomMask,
    RoundWeights,
    RuleSurrogate,
)
from assay.simplify import (
    SVD,
    Identity,
    InteractionBasis,
    KMeans,
    MeanAblation,
    OneHotAttention,
    RandomPerturbation,
    RandomProjection,
    UniformAttention,
    simplifications,
)
from assay.simplify._protocol import proxy_of
from assay.testing import check_simplification

PATHS = ["embeddings -> layer0.mlp", "layer0.mlp -> logits", "embeddings -> layer0.head1.queries"]

OURS = {
    "svd": lambda: SVD(rank=3),
    "svd-separate-centred": lambda: SVD(rank=3, joint=False, centred=True),
    "kmeans": lambda: KMeans(clusters=5),
    "one-hot": OneHotAttention,
    "interaction-basis": lambda: InteractionBasis(features=3),
    "random-projection": lambda: RandomProjection(rank=3),
    "uniform": UniformAttention,
    "mean": MeanAblation,
    "identity": Identity,
    "random-perturbation": lambda: RandomPerturbation(SVD(rank=3)),
    "random-perturbation-of-a-pattern": lambda: RandomPerturbation(OneHotAttention()),
    "round-weights": lambda: RoundWeights(bits=4),
    "round-weights-in-groups": lambda: RoundWeights(bits=3, group=8, symmetric=False),
    "prune-weights": lambda: PruneWeights(share=0.4),
    "prune-weights-by-activation": lambda: PruneWeights(share=0.4, by="activation"),
    "low-rank-weights": lambda: LowRankWeights(rank=5),
    "low-rank-weights-by-activation": lambda: LowRankWeights(rank=5, by="activation"),
    "noise-weights": lambda: NoiseWeights(RoundWeights(bits=4)),
    "noise-weights-of-what-learns": lambda: NoiseWeights(PruneWeights(share=0.4, by="activation")),
    "random-mask": lambda: RandomMask(share=0.4),
    "random-factors": lambda: RandomFactors(rank=5),
    "n-gram": lambda: NGram(order=3),
    "value-vectors": lambda: ValueVectorEdit(token=6, neurons=4, least_gap=0.0),
    "value-vectors-removed": lambda: ValueVectorEdit(token=6, edit="remove", neurons=4, least_gap=0.0),
    "random-value-vectors": lambda: RandomValueVectors(ValueVectorEdit(token=6, neurons=4, least_gap=0.0)),
    "n-gram-without-context": lambda: NGram(order=1),
    "rule-surrogate": lambda: RuleSurrogate(features=6, depth=3),
    "rule-surrogate-without-rules": lambda: RuleSurrogate(depth=0),
    "circuit": lambda: Circuit(PATHS, ablation="zero"),
    "circuit-with-means": lambda: Circuit(PATHS, ablation="mean"),
}


@pytest.mark.parametrize("name", OURS)
def test_ours_keep_the_contract(name):
    check_simplification(OURS[name])


def test_every_registered_simplification_is_checked_here():
    elsewhere = {
        name for name in simplifications if simplifications.get(name).__module__.startswith("assay.dictionaries.")
    }
    assert elsewhere >= {"sparse-autoencoder", "transcoder"}, "checked in tests/dictionaries"
    assert set(simplifications) - elsewhere - {"file"} <= set(OURS), "what a file makes is a circuit"


@dataclass
class _Broken:
    """An identity with a planted fault."""

    fault: str = ""
    heads_: tuple | None = field(default=None, init=False)
    calls_: int | None = field(default=None, init=False)
    streams = ()

    def fit(self, samples):
        self.heads_ = samples.places
        self.calls_ = (self.calls_ or 0) + 1
        return None if self.fault == "fit returns nothing" else self

    def apply(self, subject):
        if self.fault == "apply before fit" and self.heads_ is None:
            return proxy_of(self, subject, (), Edit)
        faults = {
            "looks ahead": lambda pattern, visible: pattern.roll(1, dims=-1),
            "depends on the batch": lambda pattern, visible: pattern.mean(dim=0, keepdim=True).expand_as(pattern),
            "attends to padding": lambda pattern, visible: torch.ones_like(pattern).tril() / pattern.shape[-1],
            "remembers": lambda pattern, visible: pattern * (self.calls_ or 0),
            "not finite": lambda pattern, visible: pattern * float("nan"),
        }
        edit = faults.get(self.fault, lambda pattern, visible: pattern)
        if self.fault == "changes the subject":
            with torch.no_grad():
                next(subject.model.parameters()).add_(1)
        return proxy_of(self, subject, self.heads_, lambda head: Edit(head, pattern=edit))

    def control(self):
        return None


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("fit returns nothing", "fit must return self"),
        ("apply before fit", "apply before fit"),
        ("looks ahead", "later token"),
        ("depends on the batch", "rest of the batch|later token"),
        ("attends to padding", "padding"),
        ("remembers", "forget"),
        ("not finite", "not finite"),
        ("changes the subject", "weights changed"),
    ],
)
def test_faults_are_caught(fault, message):
    with pytest.raises(AssertionError, match=message):
        check_simplification(lambda: _Broken(fault))


def test_the_planted_identity_without_a_fault_passes():
    check_simplification(_Broken)
