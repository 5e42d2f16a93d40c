"""Hidden neurons of our perceptrons taken out, and the control that takes out as many at random.

A recipe of studies and not of the package: what a neuron is, and what tells a good one from a bad one, is known of the
perceptrons that are made here, and of no other model.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay._errors import AssayError
from assay._given import check_fields
from assay.engine import Samples, WholeModel
from assay.simplify import label
from assay.subjects import PooledMLPForCausalLM, Subject
from assay.tasks import Split


def perceptron_of(subject: Subject, who: object) -> PooledMLPForCausalLM:
    """The subject's model. Raises AssayError unless it is a perceptron of ours."""
    if not isinstance(subject.model, PooledMLPForCausalLM):
        raise AssayError(
            f"{label(who)} takes out hidden neurons of a PooledMLPForCausalLM; {subject.name!r} is a "
            f"{type(subject.model).__name__}."
        )
    return subject.model


def neurons_of(model: PooledMLPForCausalLM) -> int:
    """How many hidden neurons there are."""
    return sum(linear.in_features for linear in model.readers())


def check_neurons(who: object, neurons: int, model: PooledMLPForCausalLM) -> None:
    """Raise AssayError unless so many neurons can go."""
    if not 0 <= neurons <= neurons_of(model):
        raise AssayError(f"{label(who)}: neurons must be 0 to {neurons_of(model)}, all that there are.")


def without(subject: Subject, chosen: Int[Tensor, " chosen"], who: object) -> WholeModel:
    """A copy of a subject in which nothing reads the chosen neurons, numbered through its hidden layers in order."""
    model = cast(PooledMLPForCausalLM, copy.deepcopy(subject.model))
    gone = torch.zeros(neurons_of(model), dtype=torch.bool)
    gone[chosen.cpu()] = True
    start = 0
    with torch.no_grad():
        for linear in model.readers():
            linear.weight[:, gone[start : start + linear.in_features].to(linear.weight.device)] = 0
            start += linear.in_features
    return WholeModel(replace(subject, model=model, name=f"{subject.name}, {label(who)}", record={}))


def lowest(scores: Float[Tensor, " neuron"], neurons: int) -> Int[Tensor, " chosen"]:
    """The neurons with the lowest scores; of equals, those that stand first."""
    return scores.argsort(stable=True)[:neurons]


@dataclass
class RandomNeurons:
    """Take out so many hidden neurons at random: what choosing them has to beat. It depends on `seed` alone."""

    neurons: int
    seed: int = 0

    streams: ClassVar[tuple[str, ...]] = ()
    whole: ClassVar[bool] = True
    learns: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self)

    def check(self, subject: Subject, splits: Sequence[Split]) -> None:
        """Raise AssayError for another model than a perceptron, or more neurons than it has."""
        check_neurons(self, self.neurons, perceptron_of(subject, self))

    def fit(self, samples: Samples) -> "RandomNeurons":
        """Nothing is learned."""
        return self

    def apply(self, subject: Subject) -> WholeModel:
        """A copy of the subject without them."""
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(neurons_of(perceptron_of(subject, self)), generator=generator)
        return without(subject, order[: self.neurons], self)

    def redrawn(self, number: int) -> "RandomNeurons":
        """The same control drawn again: the `number`-th other neurons."""
        return replace(self, seed=self.seed + number)

    def control(self) -> None:
        """None: this is a control."""
