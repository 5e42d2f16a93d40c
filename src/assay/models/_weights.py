"""The linear weights of a subject's blocks: finding them, replacing them, and seeing what goes into them."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from assay._errors import AssayError
from assay.engine import Samples, WholeModel, batches, engine_of, tensors
from assay.simplify import Simplification, label, source_of
from assay.simplify._protocol import check_positive
from assay.subjects import Subject

WHAT_STAYS = (
    "Recipes on weights change the linear weights of the blocks only (nn.Linear and Conv1D): embeddings, norms, biases "
    "and the output head stay as they are."
)
"""What the record has to say beside every recipe on weights."""


@dataclass(frozen=True)
class Linear:
    """A linear map inside a block, by its qualified name in the model."""

    name: str
    module: nn.Linear | Conv1D

    @property
    def shape(self) -> tuple[int, int]:
        """How many outputs and inputs it has."""
        first, second = self.module.weight.shape
        return (second, first) if isinstance(self.module, Conv1D) else (first, second)

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """A copy of its weight, a row an output, in float32 or wider; a Conv1D keeps it transposed."""
        stored: Tensor = self.module.weight.detach()
        wide = stored.to(torch.promote_types(stored.dtype, torch.float32), copy=True)
        return wide.T.contiguous() if isinstance(self.module, Conv1D) else wide

    def put(self, weight: Float[Tensor, "out in"]) -> None:
        """Give it another weight, in the dtype and on the device of the one that it has.

        The parameter is a new one: what shared the old one keeps it.
        """
        old = self.module.weight
        stored = weight.T if isinstance(self.module, Conv1D) else weight
        self.module.weight = nn.Parameter(stored.to(old).contiguous(), requires_grad=old.requires_grad)


class WeightRecipe(Simplification, Protocol):
    """A recipe that replaces every linear weight of the blocks by another one."""

    def changed(self, linear: Linear) -> Float[Tensor, "out in"]:
        """What a weight becomes. Raises AssayError before `fit`, where the recipe has to learn."""
        ...


def linears(subject: Subject) -> tuple[Linear, ...]:
    """The linear maps inside the blocks of a subject, in the order of the model.

    Blocks are the items of its outermost lists of modules (`nn.ModuleList`); a list of bare linear maps is one of
    output heads, not of blocks. Raises AssayError if there are none, if one is quantized or parametrized already, or
    if weights of the blocks are kept as stacks of matrices (as the experts of a mixture), which would be left out.
    """
    who = f"{type(subject.model).__name__} ({subject.name!r})"
    found: dict[int, Linear] = {}
    for name, block in _blocks(subject.model):
        for inner, module in block.named_modules(prefix=name):
            if isinstance(module, nn.Linear | Conv1D):
                found.setdefault(id(module), Linear(inner, module))
            elif not isinstance(module, _ConvNd):
                stacked = [key for key, weight in module.named_parameters(recurse=False) if weight.squeeze().dim() > 2]
                if stacked:
                    raise AssayError(
                        f"{who}: {inner}.{stacked[0]} is a stack of matrices; recipes on weights change nn.Linear and "
                        "Conv1D, and would leave it out. This architecture is not supported."
                    )
    if not found:
        raise AssayError(
            f"{who} has no linear weights (nn.Linear or Conv1D) inside blocks, the items of an nn.ModuleList; recipes "
            "on weights have nothing to change there."
        )
    for linear in found.values():
        weight = linear.module.weight
        if type(weight) is not nn.Parameter or not weight.is_floating_point():
            raise AssayError(
                f"{who}: the weight of {linear.name} is no plain tensor of floating point numbers (it is quantized or "
                "parametrized); load the model in float32, or merge what was put on it."
            )
    return tuple(found.values())


def _blocks(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        inside = f"{prefix}{name}"
        if isinstance(child, nn.ModuleList):
            items = child.named_children()
            yield from ((f"{inside}.{key}", item) for key, item in items if not isinstance(item, nn.Linear | Conv1D))
        else:
            yield from _blocks(child, f"{inside}.")


def with_weights(recipe: WeightRecipe, subject: Subject) -> WholeModel:
    """A copy of a subject with every linear weight of its blocks changed by a recipe; the subject stays as it is."""
    linears(subject)
    model: PreTrainedModel = copy.deepcopy(subject.model)
    other = replace(subject, model=model, name=f"{subject.name}, {label(recipe)}", record={})
    with torch.no_grad():
        for linear in linears(other):
            linear.put(recipe.changed(linear))
    return WholeModel(other)


Learned = TypeVar("Learned")


def learned_of(recipe: Simplification, found: Mapping[str, Learned] | None, linear: Linear) -> Learned:
    """What was learned of one linear map. Raises AssayError before `fit`, and for a map that `fit` did not see."""
    if found is None:
        raise AssayError(f"{label(recipe)} has not been fitted; call fit(samples) before apply(subject).")
    if linear.name not in found:
        raise AssayError(
            f"{label(recipe)} was fitted on a subject without {linear.name}; fit it on the subject that it is applied "
            "to."
        )
    return found[linear.name]


def over_inputs(
    recipe: Simplification,
    samples: Samples,
    chosen: Sequence[Linear],
    take: Callable[[Linear, Float[Tensor, "token in"]], None],
) -> None:
    """Run the subject on the split and let `take` see, batch by batch, what goes into linear maps at valid positions.

    In float64, on the subject's device (on the CPU where that has no float64); nothing is kept. Raises AssayError for a
    map that is not run, or gets something else than a vector a token.
    """
    subject, split = source_of(recipe, samples)
    engine = engine_of(subject, parts=False)
    here: list[Tensor] = []
    met: set[str] = set()

    def hook_of(linear: Linear) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
            vectors, (valid,) = next(iter((*inputs, *options.values()))), here
            if vectors.numel() != valid.numel() * vectors.shape[-1]:
                raise AssayError(
                    f"{label(recipe)}: {linear.name} gets {tuple(vectors.shape)} numbers for {tuple(valid.shape)} "
                    "tokens, not a vector a token; use a recipe that needs no activations."
                )
            met.add(linear.name)
            kept = vectors.reshape(valid.numel(), -1)[valid.flatten()]
            take(linear, (kept.cpu() if kept.device.type == "mps" else kept).double())

        return hook

    handles = [linear.module.register_forward_pre_hook(hook_of(linear), with_kwargs=True) for linear in chosen]
    try:
        for _, batch in batches(engine, split):
            tokens, valid = tensors(batch, subject.device)
            here[:] = [valid.bool()]
            subject(tokens, valid)
    finally:
        for handle in handles:
            handle.remove()
    missed = next((linear.name for linear in chosen if linear.name not in met), None)
    if missed is not None:
        raise AssayError(
            f"{label(recipe)}: {missed} is not used when {subject.name!r} runs, so its inputs are not known; use a "
            "recipe that needs no activations."
        )


def accumulator(linear: Linear, *shape: int) -> Float[Tensor, "..."]:
    """Zeros in float64 where `over_inputs` gives a map's inputs."""
    device: torch.device = linear.module.weight.device
    return torch.zeros(shape, dtype=torch.float64, device="cpu" if device.type == "mps" else device)


def check_share(recipe: Simplification, share: object) -> None:
    """Raise AssayError unless a share of weights can go and leave some."""
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
        raise AssayError(f"{label(recipe)}: share must be a number from 0 to below 1, for example 0.5.")


def removed(share: float, weights: int) -> int:
    """How many of so many weights go."""
    return round(share * weights)


def check_rank(recipe: Simplification, rank: int, chosen: Sequence[Linear] = ()) -> None:
    """Raise AssayError unless a rank is a whole number of at least 1 that one of the matrices has."""
    check_positive(recipe, rank=rank)
    most = max((min(linear.shape) for linear in chosen), default=rank)
    if rank > most:
        raise AssayError(
            f"{label(recipe)}: no linear weight of the blocks has a rank above {most}, so rank must be 1 to {most}."
        )
