"""Subspaces of the hidden activations of an MLP: patched in a model, and found by gradient."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from assay._errors import AssayError, unknown_name
from assay._given import checked
from assay.circuits import Batch, Problem, Reference
from assay.circuits._mlp import inputs_first, last_linear
from assay.diagnostics._illusion import SubspacePatch, subspace_patch
from assay.diagnostics._setting import check_pairs
from assay.engine import Engine
from assay.faithfulness._summary import weights_of
from assay.subjects import Subject
from assay.tasks import UNSCORED, Split

Positions = Literal["scored", "all"]
"""Where activations are patched: where predictions are scored, or everywhere."""


@checked
def mlp_patch(
    subject: Subject,
    split: Split,
    layer: int,
    directions: Float[Tensor, "width ..."],
    *,
    positions: Positions = "scored",
    level: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> SubspacePatch:
    """Patch the hidden activations of a layer's MLP along a subspace, from each pair's counterfactual; see
    `subspace_patch`.

    The hidden activations are what the MLP's last linear map reads. m is the logit difference of answer and foils, its
    sum over a pair's predictions.

    Raises AssayError for a split with fewer than 30 different pairs, a layer that there is not, an MLP without one last
    linear map, and as `subspace_patch`.
    """
    weights = weights_of(split, seed=seed, resamples=resamples)
    check_pairs(split, weights)
    place = _Place.of(subject, split, layer, positions)
    base, source = place.read(counterfactual=False), place.read(counterfactual=True)
    return subspace_patch(
        base,
        torch.where(place.where[..., None], source, base),
        directions.to(base.device),
        place.weight,
        place.m,
        of_source=torch.from_numpy(place.problem.baseline[1]),
        weights=weights,
        level=level,
    )


@checked
def aligned_subspace(
    subject: Subject,
    split: Split,
    layer: int,
    *,
    dimensions: int = 1,
    positions: Positions = "scored",
    steps: int = 100,
    rate: float = 0.03,
    seed: int = 0,
) -> Float[Tensor, "width dimension"]:
    """Search the subspace of a layer's MLP activations whose patch turns the answers over most (orthonormal columns).

    The mean over pairs of log(1 + exp(m)) is minimised, with m of the patched run: the cross entropy of the foil
    against the answer. A step of Adam each over all pairs, on an unconstrained matrix whose QR decomposition is the
    subspace, from a random start. Give pairs of the train split, and judge what was found on others by `mlp_patch`: a
    search for effects finds illusions too.

    Source: Geiger et al., arXiv 2303.02536 (distributed alignment search). Differences: one subspace for one variable,
    which is which answer is right; and the QR decomposition in place of an orthogonal parametrisation.

    Raises AssayError as `mlp_patch`, and for dimensions, steps or a rate that are not positive.
    """
    if dimensions < 1 or steps < 1 or not rate > 0:
        raise AssayError(f"aligned_subspace(dimensions={dimensions}, steps={steps}, rate={rate}): all must be above 0.")
    check_pairs(split, weights_of(split, seed=seed, resamples=1))
    place = _Place.of(subject, split, layer, positions)
    base, source = place.read(counterfactual=False), place.read(counterfactual=True)
    if dimensions > base.shape[-1]:
        raise AssayError(f"aligned_subspace(dimensions={dimensions}): there are {base.shape[-1]} activations.")
    more = torch.where(place.where[..., None], source - base, 0)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(base.shape[-1], dimensions, generator=generator).to(base)
    with torch.inference_mode(mode=False), torch.enable_grad():
        # Made anew: what a graph is to keep must not be an inference tensor.
        base, more, matrix = base.clone(), more.clone(), start.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([matrix], lr=rate)
        for _ in range(steps):
            matrix.grad = torch.zeros_like(matrix)
            for batch in place.batches():
                basis = torch.linalg.qr(matrix).Q
                rows = torch.from_numpy(batch.index)
                cut = slice(batch.tokens.shape[1])
                patched = base[rows, cut] + more[rows, cut] @ basis @ basis.T
                values = place.m_of(batch, patched)
                loss = torch.nn.functional.softplus(values).sum() / len(split)
                # Not `backward`: the weights' own gradients stay as they are.
                matrix.grad += torch.autograd.grad(loss, matrix)[0]
            optimizer.step()
        found: Tensor = torch.linalg.qr(matrix).Q.detach()
    return found


@dataclass(frozen=True)
class _Place:
    """The last linear map of an MLP, and the pairs on which what it reads is patched, where `where` says so."""

    problem: Problem
    module: nn.Linear | Conv1D
    where: Bool[Tensor, "pair position"]

    @classmethod
    def of(cls, subject: Subject, split: Split, layer: int, positions: Positions) -> "_Place":
        if positions not in get_args(Positions):
            raise unknown_name("positions", str(positions), get_args(Positions))
        problem = Problem(Engine(subject), split, Reference("counterfactual"))
        layers = problem.wiring.layers
        if not 0 <= layer < len(layers):
            raise AssayError(f"layer {layer}: {subject.name!r} has layers 0 to {len(layers) - 1}.")
        scored = split.kinds != UNSCORED if positions == "scored" else split.valid
        return cls(
            problem, last_linear(problem.engine, problem.wiring, layer), torch.from_numpy(scored).to(subject.device)
        )

    @property
    def weight(self) -> Float[Tensor, "width model"]:
        """What the map does to activations."""
        return inputs_first(self.module)

    def batches(self) -> Iterator[Batch]:
        """The pairs, some at a time."""
        yield from self.problem.batches(1)

    def read(self, *, counterfactual: bool) -> Float[Tensor, "pair position width"]:
        """What the map reads in a run on the pairs' inputs, or on their counterfactuals; 0 at padding."""
        found = torch.zeros(*self.where.shape, len(self.weight), dtype=self.weight.dtype, device=self.weight.device)
        taken: list[Tensor] = []
        for batch in self.batches():
            tokens = batch.counterfactuals if counterfactual else batch.tokens
            assert tokens is not None
            hook = self.module.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
            try:
                with torch.inference_mode():
                    self.problem.wiring.hidden(tokens, batch.valid)
            finally:
                hook.remove()
            rows = torch.from_numpy(batch.index).to(found.device)
            found[rows, : tokens.shape[1]] = taken.pop().reshape(*tokens.shape, -1)
        return found

    def m(self, activations: Float[Tensor, "pair position width"]) -> Float[Tensor, " pair"]:
        """m of every pair with activations put in place."""
        found = torch.zeros(len(activations), dtype=torch.float64)
        for batch in self.batches():
            rows = torch.from_numpy(batch.index)
            with torch.inference_mode():
                given = activations[rows.to(activations.device), : batch.tokens.shape[1]]
                found[rows] = self.m_of(batch, given).double().cpu()
        return found

    def m_of(self, batch: Batch, activations: Float[Tensor, "pair position width"]) -> Float[Tensor, " pair"]:
        """m of the pairs of a batch with activations put in place."""

        def put(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return (activations.reshape(inputs[0].shape), *inputs[1:])

        hook = self.module.register_forward_pre_hook(put)
        try:
            return self.problem.value(self.problem.wiring.hidden(batch.tokens, batch.valid), batch)
        finally:
            hook.remove()
