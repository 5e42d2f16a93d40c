"""Value vectors: what each neuron of an MLP writes, read by the unembedding, and edits of those that write a token."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from assay._errors import AssayError
from assay._given import checked
from assay.circuits._mlp import inputs_first, last_linear
from assay.circuits._parameters import check_choice, check_number, check_whole, is_whole
from assay.circuits._run import wiring_of
from assay.circuits._wiring import Wiring
from assay.engine import Engine, Samples, WholeModel, batches, tensors
from assay.simplify import label, source_of
from assay.subjects import Subject
from assay.tasks import UNSCORED, Split

EditOfValues = Literal["subtract", "remove"]
"""What is taken from a value vector: the direction of the token in the unembedding, or the vector itself."""


@dataclass(frozen=True)
class ValueVectors:
    """How much each neuron pushes tokens up: `scores[layer]` (token, neuron), in the order of `tokens`.

    In logits a unit of the neuron's activation, before the final norm divides.
    """

    tokens: tuple[int, ...]
    scores: tuple[Float[np.ndarray, "token neuron"], ...]

    def top(self, token: int, count: int = 10) -> list[tuple[int, int, float]]:
        """The neurons that push a token up most: layer, neuron and score, largest first.

        Raises AssayError for a token that has not been scored.
        """
        if token not in self.tokens:
            raise AssayError(f"token {token} has no scores; there are those of {', '.join(map(str, self.tokens))}.")
        row = self.tokens.index(token)
        found = [
            (layer, int(neuron), float(scores[row, neuron]))
            for layer, scores in enumerate(self.scores)
            for neuron in np.argsort(-scores[row], kind="stable")[:count]
        ]
        return sorted(found, key=lambda one: -one[2])[:count]


@checked
def value_vectors(subject: Subject, tokens: Sequence[int], *, against: Sequence[int] | None = None) -> ValueVectors:
    """Read the value vectors of every MLP by the unembedding: weights alone, no input.

    score(i, t) = <v_i, u_t - mean of u over `against`>, where v_i is what one unit of neuron i's activation adds to the
    residual stream (a column of the MLP's last linear map) and u_t = g ∘ U_t, the unembedding of t with the weight g of
    the final norm, centred where that norm centres. `against` are other tokens, those that t is chosen among (t itself
    is left out); by default the whole vocabulary. What the final norm divides by is left out: it is the same for all.

    The sign is that of a positive activation. In a gated MLP activations have either sign: a neuron with a negative
    score pushes the token up where its activation is negative. A vector may be large and its neuron never active.

    Source: Geva et al., arXiv 2203.14680 (value vectors in vocabulary space). Differences: the final norm's weight
    folded in, and a score against other tokens.

    Raises AssayError for tokens that the model does not have, for `against` without another token, and for an
    architecture whose residual stream, final norm or value vectors are not found.
    """
    asked = [*tokens, *(against or ())]
    if not tokens or not all(0 <= token < subject.vocabulary for token in asked):
        raise AssayError(
            f"value_vectors(tokens={list(tokens)[:5]}): give at least one token, and ids from 0 to "
            f"{subject.vocabulary - 1}."
        )
    if against is not None and any(set(against) <= {token} for token in tokens):
        raise AssayError("value_vectors(against=...): there has to be another token than the one that is scored.")
    values = _Values.of(subject)
    directions = torch.stack(
        [values.direction(token, None if against is None else set(against) - {token}) for token in tokens]
    )
    scores = tuple((values.vectors(layer) @ directions.T).T.numpy() for layer in range(len(values.modules)))
    return ValueVectors(tuple(tokens), scores)


@dataclass
class ValueVectorEdit:
    """The claim that a few neurons write one token whatever is right: what they write of it is taken away.

    Found on the scored predictions of the train split that are `token` where another one is right (anchored failures;
    a prediction is the arg max of all logits). With n = mean of u_token - u_right over them, u as in `value_vectors`:
    layers count whose MLP says <norm(output), n> > 0 on the mean; of each the `neurons` with the largest
    mean |a_i| · ‖v_i‖ (activation, value vector); of those the ones with s_i <norm(v_i), n> > `least_gap` logits, s_i
    the sign of the mean activation. norm is the final norm without weight and bias.

    Then v_i becomes v_i - `strength` · s_i (u_token - mean u of the vocabulary) with `edit="subtract"`, and
    (1 - `strength`) v_i with "remove". After `fit`, `neurons_` has them (layer, neuron). All other weights stay.

    Source: Li and Gao, arXiv 2405.03205 (anchored answers), and its public code (strength 1, gap 4, 10 neurons).
    Differences: one edit for all inputs, found on means over failures, where theirs is made anew for every input, one
    neuron at a time; theirs adds 8 u_right besides, which takes the right answer from the very input that is judged (an
    oracle: any large vector towards it works), and is left out; s_i, for gated MLPs; the MLP's bias is no part of a
    neuron; attention is not recalibrated.

    Raises AssayError for parameters out of range; for an architecture as `value_vectors`; and where the train split has
    no such failures, or they no such neurons. Found again on another split, it then edits nothing.
    """

    token: int
    edit: EditOfValues = "subtract"
    strength: float = 1.0
    neurons: int = 10
    least_gap: float = 4.0
    neurons_: tuple[tuple[int, int], ...] | None = field(default=None, init=False, repr=False, compare=False)
    activations_: tuple[Tensor, ...] | None = field(default=None, init=False, repr=False, compare=False)

    streams: ClassVar[tuple[str, ...]] = ()
    whole: ClassVar[bool] = True
    learns: ClassVar[bool] = True
    caution: ClassVar[str] = (
        "An edit of value vectors is meant to change answers: agreement with the subject says how many it changes, and "
        "flip_to_right, flip_to_wrong and proxy_accuracy, beside its controls, what it is worth."
    )

    def check(self, subject: Subject, splits: Sequence[Split]) -> None:
        """Raise AssayError for bad parameters and a subject without value vectors."""
        self._check(_Values.of(subject))

    def fit(self, samples: Samples) -> "ValueVectorEdit":
        """Find the neurons."""
        subject, split = source_of(self, samples)
        self.neurons_ = self.activations_ = None
        values = _Values.of(subject)
        self._check(values)
        failures = _Failures.of(values, split, self.token)
        found = failures.neurons(self.neurons, self.least_gap) if failures.count else ()
        if not found and split.role == "train":
            raise AssayError(
                f"{label(self)}: of the {failures.count} scored predictions of split {split.name!r} that are token "
                f"{self.token} where another is right, no neuron passes; lower least_gap, or give more neurons."
                if failures.count
                else f"{label(self)}: {subject.name!r} never predicts token {self.token} where another is right in "
                f"split {split.name!r}; there is no anchored answer to edit."
            )
        self.neurons_, self.activations_ = found, failures.activations
        return self

    def apply(self, subject: Subject) -> WholeModel:
        """A copy of the subject with these neurons edited."""
        values, found = self._fitted(subject)
        return values.edited(self, {place: self._change(values, *place) for place in found})

    def control(self) -> "RandomValueVectors":
        """The same edit of as many other neurons."""
        return RandomValueVectors(self)

    def perturbation(self) -> "RandomValueVectors":
        """The same neurons, moved as far in random directions."""
        return RandomValueVectors(self, directions=True)

    def _fitted(self, subject: Subject) -> tuple["_Values", tuple[tuple[int, int], ...]]:
        """The value vectors of a subject, and the neurons that were found."""
        if self.neurons_ is None or self.activations_ is None:
            raise AssayError(f"{label(self)} has not been fitted; call fit(samples) before apply(subject).")
        values = _Values.of(subject)
        if [len(one) for one in self.activations_] != values.counts:
            raise AssayError(f"{label(self)} was fitted on a subject with other MLPs than {subject.name!r}; fit again.")
        return values, self.neurons_

    def _change(self, values: "_Values", layer: int, neuron: int) -> Float[Tensor, " model"]:
        """What is added to a value vector."""
        assert self.activations_ is not None
        if self.edit == "remove":
            return -self.strength * values.vectors(layer)[neuron]
        sign = 1 if self.activations_[layer][neuron] >= 0 else -1
        return -self.strength * sign * values.direction(self.token)

    def _check(self, values: "_Values") -> None:
        check_whole("neurons", self.neurons)
        check_choice("edit", self.edit, get_args(EditOfValues))
        if not is_whole(self.token) or not 0 <= self.token < values.subject.vocabulary:
            raise AssayError(f"{label(self)}: token has to be an id from 0 to {values.subject.vocabulary - 1}.")
        check_number(
            "strength",
            self.strength,
            lambda value: 0 < value < float("inf"),
            "a number above 0; 1 is the edit as published",
        )
        check_number("least_gap", self.least_gap, lambda value: abs(value) < float("inf"), "a number of logits")
        most = min(values.counts) // 2
        if self.neurons > most:
            raise AssayError(f"{label(self)}: neurons must be 1 to {most}, half of a layer's, to leave others beside.")


@dataclass
class RandomValueVectors:
    """The control of an edit of value vectors: changes as many and as long, drawn at random.

    In every layer as many neurons as `of` edits there, drawn among all others, are edited as it would edit them, each
    change scaled to the length of the one in whose place it stands (a value vector that is 0 has no direction to be
    removed along, and stays). With `directions`, its own neurons are moved as far in random directions: what `of` does
    beyond that is due to the direction, not to the neurons. The draw depends on `seed` alone, not on data.
    """

    of: ValueVectorEdit
    seed: int = 0
    directions: bool = False
    fitted_: ValueVectorEdit | None = field(default=None, init=False, repr=False, compare=False)

    streams: ClassVar[tuple[str, ...]] = ()
    whole: ClassVar[bool] = True
    learns: ClassVar[bool] = True

    def check(self, subject: Subject, splits: Sequence[Split]) -> None:
        """As the edit does."""
        self.of.check(subject, splits)

    def fit(self, samples: Samples) -> "RandomValueVectors":
        """Find the neurons in whose place others stand."""
        self.fitted_ = None
        self.fitted_ = copy.deepcopy(self.of).fit(samples)
        return self

    def apply(self, subject: Subject) -> WholeModel:
        """A copy of the subject with the random edit."""
        if self.fitted_ is None:
            raise AssayError(f"{label(self)} has not been fitted; call fit(samples) before apply(subject).")
        fitted = self.fitted_
        values, found = fitted._fitted(subject)
        generator = torch.Generator().manual_seed(self.seed)
        changes = {}
        for layer in sorted({layer for layer, _ in found}):
            own = [neuron for other, neuron in found if other == layer]
            drawn = [
                neuron
                for neuron in torch.randperm(values.counts[layer], generator=generator).tolist()
                if neuron not in own
            ]
            for neuron, other in zip(own, drawn, strict=False):
                length = fitted._change(values, layer, neuron).norm()
                if self.directions:
                    change = torch.randn(values.width, generator=generator, dtype=torch.float64)
                    place = layer, neuron
                else:
                    change, place = fitted._change(values, layer, other), (layer, other)
                changes[place] = change * (length / change.norm().clamp_min(1e-30))
        return values.edited(self, changes)

    def redrawn(self, number: int) -> "RandomValueVectors":
        """The same control drawn again: the `number`-th other draw."""
        return replace(self, seed=self.seed + number)

    def control(self) -> None:
        """None: this is a control."""


@dataclass(frozen=True)
class _Values:
    """The MLPs of a subject as neurons, and its unembedding with the final norm's weight folded in.

    All in float64 on the CPU.
    """

    subject: Subject
    engine: Engine
    wiring: Wiring
    modules: tuple[nn.Linear | Conv1D, ...]
    weight: Float[Tensor, " model"]

    @classmethod
    def of(cls, subject: Subject) -> "_Values":
        """Those of a subject. Raises AssayError, as `value_vectors` says."""
        engine = Engine(subject)
        wiring = wiring_of(engine)
        if wiring.norm.weight is None:
            raise AssayError(
                f"{type(subject.model).__name__} ({subject.name!r}): its final norm, a "
                f"{type(wiring.norm.module).__name__}, divides by no known length, so that its weight cannot be folded "
                "into the unembedding; value vectors are not read in this architecture."
            )
        modules = tuple(last_linear(engine, wiring, layer) for layer in range(len(wiring.layers)))
        return cls(subject, engine, wiring, modules, wiring.norm.weight.cpu().double())

    @property
    def width(self) -> int:
        """Of the residual stream."""
        return len(self.weight)

    @property
    def counts(self) -> list[int]:
        """How many neurons each layer has."""
        return [len(inputs_first(module)) for module in self.modules]

    def vectors(self, layer: int) -> Float[Tensor, "neuron model"]:
        """What a unit of each neuron's activation adds to the residual stream."""
        return self.wiring.layers[layer].mlp_scale * inputs_first(self.modules[layer]).cpu().double()

    def unit(self, vectors: Float[Tensor, "*rows model"]) -> Float[Tensor, "*rows model"]:
        """The final norm of vectors, without its weight and bias."""
        return self.wiring.norm.unit(vectors)[0]

    def directions(self, tokens: Int[Tensor, " token"]) -> Float[Tensor, "token model"]:
        """u of tokens."""
        return self._folded(self._unembedding[tokens].double())

    def direction(self, token: int, against: set[int] | None = None) -> Float[Tensor, " model"]:
        """u of a token less the mean u of some others, or of the vocabulary."""
        others = self._mean if against is None else self._unembedding[sorted(against)].double().mean(dim=0)
        return self._folded(self._unembedding[token].double() - others)

    @cached_property
    def _unembedding(self) -> Float[Tensor, "token model"]:
        stored: Tensor = self.wiring.head.weight.detach()  # type: ignore[operator]
        return stored[: self.subject.vocabulary].cpu()

    @cached_property
    def _mean(self) -> Float[Tensor, " model"]:
        return self._unembedding.mean(dim=0, dtype=torch.float64)

    def _folded(self, rows: Float[Tensor, "*rows model"]) -> Float[Tensor, "*rows model"]:
        found = rows * self.weight * self.wiring.logit_scale
        return found - found.mean(dim=-1, keepdim=True) if self.wiring.norm.centred else found

    def edited(self, recipe: object, changes: Mapping[tuple[int, int], Float[Tensor, " model"]]) -> WholeModel:
        """A copy of the subject with something added to some value vectors (layer, neuron)."""
        names = {module: name for name, module in self.subject.model.named_modules()}
        model = copy.deepcopy(self.subject.model)
        with torch.no_grad():
            for (layer, neuron), change in changes.items():
                module: Any = model.get_submodule(names[self.modules[layer]])
                row = inputs_first(module)[neuron]
                row.add_((change / self.wiring.layers[layer].mlp_scale).to(row))
        return WholeModel(replace(self.subject, model=model, name=f"{self.subject.name}, {label(recipe)}", record={}))


@dataclass(frozen=True)
class _Failures:
    """The predictions of a split that are a token where another is right: how many, and means over them.

    `more` is the mean of u_token - u_right, `gaps` that of what each layer's MLP says along it, `activations` and
    `sizes` the mean activation of every neuron and its mean absolute value, a tensor a layer.
    """

    values: _Values
    count: int
    more: Float[Tensor, " model"]
    gaps: Float[Tensor, " layer"]
    activations: tuple[Float[Tensor, " neuron"], ...]
    sizes: tuple[Float[Tensor, " neuron"], ...]

    @classmethod
    def of(cls, values: _Values, split: Split, token: int) -> "_Failures":
        """Those of a split."""
        count, more = 0, torch.zeros(values.width, dtype=torch.float64)
        gaps = torch.zeros(len(values.modules), dtype=torch.float64)
        sums, sizes = ([torch.zeros(size, dtype=torch.float64) for size in values.counts] for _ in range(2))
        own = values.directions(torch.tensor([token]))
        for right, activations, outputs in _at_failures(values, split, token):
            along = own - values.directions(right)
            count, more = count + len(right), more + along.sum(dim=0)
            for layer, (active, added) in enumerate(zip(activations, outputs, strict=True)):
                sums[layer] += active.sum(dim=0)
                sizes[layer] += active.abs().sum(dim=0)
                scale = values.wiring.layers[layer].mlp_scale
                gaps[layer] += (values.unit(scale * added) * along).sum()
        many = max(count, 1)
        return cls(
            values,
            count,
            more / many,
            gaps / many,
            tuple(one / many for one in sums),
            tuple(one / many for one in sizes),
        )

    def neurons(self, most: int, least: float) -> tuple[tuple[int, int], ...]:
        """The neurons that write the token there, layer by layer."""
        found = []
        for layer in (self.gaps > 0).nonzero().flatten().tolist():
            vectors = self.values.vectors(layer)
            chosen = (self.sizes[layer] * vectors.norm(dim=1)).argsort(descending=True, stable=True)[:most]
            gaps = self.activations[layer][chosen].sign() * (self.values.unit(vectors[chosen]) @ self.more)
            found += [(layer, neuron) for neuron in chosen[gaps > least].tolist()]
        return tuple(found)


def _at_failures(
    values: _Values, split: Split, token: int
) -> Iterator[tuple[Int[Tensor, " failure"], list[Tensor], list[Tensor]]]:
    """Batch by batch: the right tokens of the failures, and there every layer's activations and its MLP's output."""
    device, wiring = values.subject.device, values.wiring
    scored = split.valid & (split.kinds != UNSCORED) & (split.right != token)
    for index, batch in batches(values.engine, split):
        rows, width = torch.from_numpy(index), batch.tokens.shape[1]
        tokens, valid = tensors(batch, device)
        asked = torch.from_numpy(scored)[rows, :width].to(device)
        with torch.inference_mode():
            said = _said(wiring, wiring.hidden(tokens, valid)[asked])
        failed = torch.zeros_like(asked)
        failed[asked] = said == token
        with_any = failed.any(dim=1)
        if not bool(with_any.any()):
            continue
        where = failed[with_any]
        taken: dict[int, tuple[Tensor, Tensor]] = {}
        with ExitStack() as stack, torch.inference_mode():
            for layer, module in enumerate(values.modules):
                stack.callback(module.register_forward_hook(_keeping(taken, layer, where)).remove)
            wiring.hidden(tokens[with_any], valid[with_any])
        right = torch.from_numpy(split.right.astype(np.int64))[rows, :width][failed.cpu()]
        yield right, [taken[layer][0] for layer in sorted(taken)], [taken[layer][1] for layer in sorted(taken)]


def _said(wiring: Wiring, hidden: Float[Tensor, "row model"]) -> Int[Tensor, " row"]:
    """The token of the largest logit, some rows at a time."""
    head: Callable[[Tensor], Tensor] = wiring.head
    return torch.cat([(head(some) * wiring.logit_scale).argmax(dim=-1) for some in hidden.split(512)])


def _keeping(
    taken: dict[int, tuple[Tensor, Tensor]], layer: int, where: Bool[Tensor, "sequence position"]
) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
    """A hook that keeps what a linear map takes and gives at some positions, in float64 on the CPU."""

    def keep(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        both = (part.reshape(*where.shape, -1)[where].cpu().double() for part in (inputs[0], output))
        taken[layer] = tuple(both)  # type: ignore[assignment]

    return keep
