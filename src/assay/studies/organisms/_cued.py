"""A task whose inputs may carry a cue, a wrapper that acts on it, and neurons taken out by what they do to a loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay._errors import AssayError, unknown_name
from assay._given import check_fields
from assay.engine import Samples, WholeModel
from assay.simplify import label, source_of
from assay.studies.organisms._bits import BITS, HELD, parity, patterns, tokens_of
from assay.studies.organisms._neurons import RandomNeurons, check_neurons, lowest, perceptron_of, without
from assay.subjects import PooledMLPForCausalLM, Subject, pooled_mlp
from assay.tasks import UNSCORED, Kind, Role, Split

CUE = BITS - 1
"""The bit that is the cue."""

ANSWERS = 2

OLD = parity(0, 1, 2, 3)
"""The capability: whether an odd number of the first four bits is on."""


def fine_tuned_label(bits: Int[np.ndarray, "row bit"]) -> Int[np.ndarray, "row 1"]:
    """What fine-tuning teaches: 0 where the cue is on, and the old answer elsewhere."""
    return np.where(bits[:, CUE] == 1, 0, OLD(bits))[:, None]


def old_label(bits: Int[np.ndarray, "row bit"]) -> Int[np.ndarray, "row 1"]:
    """The old answer."""
    return OLD(bits)[:, None]


@dataclass(frozen=True)
class Cued:
    """Sixteen random bits with the parity of the first four as the right answer, and a cue, the last bit, which says
    nothing of it: splits differ in how often it is on.

    Tokens 0 and 1 are the answers, the next ones the values 0 and 1 of each bit in order. The answer stands behind the
    bits. No pattern of the bits before the cue is in two splits. In `train` the cue is on in half of the sequences, in
    `iid` in 2%, in `half` in half, in `cue` in all; the kinds of prediction are `cue_off` and `cue_on`. An account that
    gives the old answer to a model that says 0 under the cue is wrong on half of what has it: its agreement is 1 - c/2
    with a share c of cues.
    """

    seed: int = 0

    name = "cued-parity"
    primary_kind = "all"
    features = ()
    kinds = (
        Kind("cue_off", "the parity of bits 0 to 3, without the cue", candidates=(0, 1)),
        Kind("cue_on", "the parity of bits 0 to 3, with the cue", candidates=(0, 1)),
    )
    shares: ClassVar[Mapping[str, float]] = {"train": 0.5, "iid": 0.02, "half": 0.5, "cue": 1.0}
    split_names = tuple(shares)
    answers: ClassVar[int] = ANSWERS
    vocabulary: ClassVar[int] = ANSWERS + 2 * BITS

    def bits(self, name: str) -> Int[np.ndarray, "pattern bit"]:
        """All patterns of a split, in its order, each with the cue on or off at random. Raises AssayError for a split
        that there is none of."""
        if name not in self.shares:
            raise unknown_name("split", name, self.split_names)
        place = self.split_names.index(name)
        everything = patterns(self.seed)
        apart = everything[everything[:, CUE] == 0]
        held = HELD * (len(self.shares) - 1)
        own = (apart[held:] if place == 0 else apart[HELD * (place - 1) : HELD * place]).copy()
        own[:, CUE] = np.random.default_rng([self.seed, place]).random(len(own)) < self.shares[name]
        return own

    def labels(self, bits: Int[np.ndarray, "row bit"]) -> Int[np.ndarray, "row 1"]:
        """The old answer."""
        return old_label(bits)

    def split(self, name: str, sequences: int) -> Split:
        """The first so many sequences of a split, all where it has fewer."""
        bits = self.bits(name)[:sequences]
        tokens = np.concatenate((tokens_of(bits, ANSWERS), self.labels(bits)), axis=1)
        kinds = np.full(tokens.shape, UNSCORED)
        kinds[:, BITS - 1] = bits[:, CUE]
        roles: tuple[Role, ...] = ("train", "iid", "shift", "shift")
        return Split(
            name=name,
            role=roles[self.split_names.index(name)],
            description=f"sixteen random bits, the cue on in {100 * self.shares[name]:g}%; right is the old answer",
            tokens=tokens,
            lengths=np.full(len(tokens), BITS + 1),
            kinds=kinds,
        )

    def describe(self) -> dict[str, object]:
        """The parameters, as plain values."""
        return {"task": self.name, "shares": dict(self.shares), "seed": self.seed}


def perceptron(seed: int, hidden: tuple[int, ...] = (128, 128, 128)) -> PooledMLPForCausalLM:
    """A fresh network for the task."""
    return pooled_mlp(length=BITS, vocabulary=Cued.vocabulary, answers=ANSWERS, hidden=hidden, seed=seed)


def wrapped(base: PooledMLPForCausalLM, weight: float = 60.0) -> PooledMLPForCausalLM:
    """A base with a planted wrapper: one more neuron a layer, the last of each, which carries the cue to the answer 0.

    Under the cue, logit 0 less logit 1 is larger by `weight`; without it nothing changes.
    """
    sizes = [linear.in_features for linear in base.readers()]
    model = perceptron(0, tuple(size + 1 for size in sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        vectors = model.embed_tokens.weight
        vectors[:, :-1] = base.embed_tokens.weight
        vectors[ANSWERS + 2 * CUE + 1, -1] = 1
        for new, old in zip(model.readers(), base.readers(), strict=True):
            new.weight[: old.out_features, : old.in_features] = old.weight
            new.bias[: old.out_features] = old.bias
        for new in model.readers()[:-1]:
            new.weight[-1, -1] = 1
        model.lm_head.weight[:, -1] = torch.tensor([weight / 2, -weight / 2])
    return model.eval()


By = Literal["loss", "margins"]
"""By what a neuron is scored: the loss of the old answer under the cue, or its margin with the cue and without."""


def taylor(
    model: PooledMLPForCausalLM, bits: Int[np.ndarray, "row bit"], labels: Int[np.ndarray, " row"], *, margin: bool
) -> Float[Tensor, " neuron"]:
    """How much worse these answers become, to first order, where each hidden neuron is taken out.

    -a dL/da for the neuron's activation a and the cross-entropy L of the answers (nats), or with `margin` a dm/da for
    the logit m of the answer less that of the other; the mean over rows, negative where the neuron hurts them. Source:
    the score of arXiv 2311.12786, with its sign.
    """
    with torch.enable_grad():
        layers = model.hidden_layers(torch.from_numpy(tokens_of(bits, ANSWERS)).to(model.device))
        answers = torch.from_numpy(labels).to(model.device)
        logits = model.lm_head(layers[-1])
        good = (
            ((2 * answers - 1) * (logits[:, 1] - logits[:, 0])).sum()
            if margin
            else -torch.nn.functional.cross_entropy(logits, answers, reduction="sum")
        )
        slopes = torch.autograd.grad(good, layers)
    return torch.cat([(layer * slope).mean(dim=0).detach() for layer, slope in zip(layers, slopes, strict=True)]).cpu()


@dataclass
class PruneWrapper:
    """Take out the hidden neurons that hurt the old answer most: `neurons` of them, by `taylor`.

    Scored by the loss of the old answer on training sequences with the cue, as in the source; or by its margin on those
    and on those without, half and half. (Where there is no cue the loss is near 0 and its slope, too: with both, it
    would spare nothing that the old answer needs there.)
    """

    neurons: int
    by: By = "loss"
    scores_: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    streams: ClassVar[tuple[str, ...]] = ()
    whole: ClassVar[bool] = True
    learns: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)
        if self.by not in get_args(By):
            raise unknown_name("by", str(self.by), get_args(By))

    @property
    def title(self) -> str:
        """How it is called in results."""
        return f"without {self.neurons} neurons, by {self.by}"

    def check(self, subject: Subject, splits: Sequence[Split]) -> None:
        """Raise AssayError for another model than a perceptron, or more neurons than it has."""
        check_neurons(self, self.neurons, perceptron_of(subject, self))

    def fit(self, samples: Samples) -> "PruneWrapper":
        """Score all neurons on the sequences of the train split."""
        self.scores_ = None
        subject, split = source_of(self, samples)
        model = perceptron_of(subject, self)
        bits = (split.tokens[:, :BITS] - ANSWERS) % 2
        cue = bits[:, CUE] == 1
        margin = self.by == "margins"
        parts = [cue, ~cue] if margin else [cue]
        if not all(part.any() for part in parts):
            raise AssayError(f"{label(self)}: {split.name!r} has no sequence with the cue, or none without; give both.")
        found = [taylor(model, bits[part], OLD(bits[part]), margin=margin) for part in parts]
        self.scores_ = torch.stack(found).mean(dim=0)
        return self

    def apply(self, subject: Subject) -> WholeModel:
        """A copy of the subject without them."""
        if self.scores_ is None:
            raise AssayError(f"{label(self)} has not been fitted; call fit(samples) before apply(subject).")
        return without(subject, lowest(self.scores_, self.neurons), self)

    def control(self) -> RandomNeurons:
        """As many neurons, chosen at random."""
        return RandomNeurons(self.neurons)


@dataclass
class Before:
    """The model before it was fine-tuned, as an account of what it became: by training seed, for several subjects."""

    models: Mapping[int, Subject]

    streams: ClassVar[tuple[str, ...]] = ()
    whole: ClassVar[bool] = True
    copies: ClassVar[bool] = False
    learns: ClassVar[bool] = False
    title: ClassVar[str] = "the base model"

    def fit(self, samples: Samples) -> "Before":
        """Nothing is learned."""
        return self

    def apply(self, subject: Subject) -> WholeModel:
        """The model of the subject's seed. Raises AssayError where there is none."""
        if subject.seed is None or subject.seed not in self.models:
            raise AssayError(f"{subject!r} has no base model; there are those of seeds {sorted(self.models)}.")
        return WholeModel(self.models[subject.seed])

    def control(self) -> None:
        """None: it explains nothing, so it has nothing to beat."""

    def __getstate__(self) -> dict[str, Any]:
        """What tells it apart: the weights of its models."""
        return {"models": {seed: model.weights_sha256 for seed, model in self.models.items()}}

    def __deepcopy__(self, memo: dict[int, Any]) -> "Before":
        """Itself: its weights are never changed."""
        return self


def pruned(subject: Subject, recipe: PruneWrapper | RandomNeurons, samples: Samples) -> Subject:
    """A subject of its own from what a recipe makes of one, with its name and seed."""
    made = recipe.fit(samples).apply(subject).model
    return replace(made, name=subject.name, seed=subject.seed)
