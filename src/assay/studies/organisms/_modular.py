"""Addition modulo p with wrong labels in training, the account that it is addition, and periodic neurons."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from assay._errors import AssayError, unknown_name
from assay._given import check_fields
from assay.engine import Samples, WholeModel
from assay.simplify import label
from assay.studies.organisms._neurons import RandomNeurons, check_neurons, lowest, perceptron_of, without
from assay.subjects import PooledMLPForCausalLM, Subject, corrupted, pooled_mlp
from assay.tasks import UNSCORED, Kind, Role, Split

INIT = 0.5
"""Weights at the start have the deviation INIT / (2 neurons)^(1/3), that of the source."""


@dataclass(frozen=True)
class ModularAddition:
    """a + b modulo `modulus`, of which half of the pairs are trained on, a `share` of these with another answer.

    Tokens below the modulus are answers, the next ones the values of a, and then those of b; the right answer, which
    stands behind a and b, is the true sum in every split. Half of the pairs that were trained on with the true sum are
    `train`, the others `iid`; shifts are `corrupted` (trained on with another answer) and `unseen` (never trained on).
    """

    modulus: int = 97
    share: float = 0.35
    seed: int = 0

    name = "modular-addition"
    primary_kind = "sum"
    kinds = (Kind("sum", "a + b modulo p"),)
    features = ()
    split_names = ("train", "iid", "corrupted", "unseen")

    def __post_init__(self) -> None:
        check_fields(self)
        if self.modulus < 3:
            raise AssayError(f"ModularAddition(modulus={self.modulus}): must be at least 3.")

    @cached_property
    def pairs(self) -> Int[np.ndarray, "pair 2"]:
        """All pairs, those that are trained on first."""
        order = np.random.default_rng(self.seed).permutation(self.modulus**2)
        return np.stack((order // self.modulus, order % self.modulus), axis=1)

    @cached_property
    def sums(self) -> Int[np.ndarray, " pair"]:
        """Their true sums."""
        return self.pairs.sum(axis=1) % self.modulus

    @property
    def trained_on(self) -> int:
        """How many pairs are trained on."""
        return self.modulus**2 // 2

    @cached_property
    def labels(self) -> tuple[Int[np.ndarray, " trained"], Bool[np.ndarray, " trained"]]:
        """What is trained on, and where it is wrong."""
        return corrupted(self.sums[: self.trained_on], self.modulus, self.share, self.seed)

    def tokens(self, pairs: Int[np.ndarray, "pair 2"]) -> Int[np.ndarray, "pair 2"]:
        """The tokens of a and b."""
        return pairs + self.modulus * np.array([1, 2])

    def rows(self, name: str) -> Int[np.ndarray, " pair"]:
        """Which pairs a split has, in its order. Raises AssayError for a split that there is none of."""
        if name not in self.split_names:
            raise unknown_name("split", name, self.split_names)
        clean = np.flatnonzero(~self.labels[1])
        return {
            "train": clean[: len(clean) // 2],
            "iid": clean[len(clean) // 2 :],
            "corrupted": np.flatnonzero(self.labels[1]),
            "unseen": np.arange(self.trained_on, self.modulus**2),
        }[name]

    def split(self, name: str, sequences: int) -> Split:
        """The first so many sequences of a split, all where it has fewer."""
        rows = self.rows(name)[:sequences]
        tokens = np.concatenate((self.tokens(self.pairs[rows]), self.sums[rows, None]), axis=1)
        kinds = np.full(tokens.shape, UNSCORED)
        kinds[:, 1] = 0
        about: dict[str, tuple[Role, str]] = {
            "train": ("train", "pairs trained on with the true sum, one half"),
            "iid": ("iid", "pairs trained on with the true sum, the other half"),
            "corrupted": ("shift", "pairs trained on with another answer; right is the true sum"),
            "unseen": ("shift", "pairs that were never trained on"),
        }
        role, description = about[name]
        lengths = np.full(len(tokens), tokens.shape[1])
        return Split(name=name, role=role, description=description, tokens=tokens, lengths=lengths, kinds=kinds)

    def describe(self) -> dict[str, object]:
        """The parameters, as plain values."""
        return {"task": self.name, "modulus": self.modulus, "share": self.share, "seed": self.seed}


def squares(task: ModularAddition, neurons: int, seed: int) -> PooledMLPForCausalLM:
    """A fresh network W (U_a + V_b)² without biases."""
    return pooled_mlp(
        length=2,
        vocabulary=3 * task.modulus,
        answers=task.modulus,
        hidden=(neurons,),
        activation="square",
        bias=False,
        deviation=INIT / (2 * neurons) ** (1 / 3),
        seed=seed,
    )


def planted(task: ModularAddition, periodic: int, random: int, deviation: float, seed: int) -> PooledMLPForCausalLM:
    """The network that adds by waves, and so many neurons with random weights behind them.

    U_a = cos(2πsa/p + u), V_b = cos(2πsb/p + v), W_c = cos(2πsc/p + u + v) with random phases; s goes round from 1 to
    p // 2. A random neuron's weights are Gaussian with this deviation.
    """
    rng = np.random.default_rng(seed)
    model = squares(task, periodic + random, seed)
    p = task.modulus
    s = np.arange(periodic) % (p // 2) + 1
    first, second = rng.uniform(0, 2 * np.pi, (2, periodic))
    angle = 2 * np.pi * np.arange(p)[:, None] * s / p
    waves = [np.cos(angle + phase) for phase in (first, second, first + second)]
    u, v, w = (np.concatenate((wave, rng.normal(0, deviation, (p, random))), axis=1) for wave in waves)
    with torch.no_grad():
        model.embed_tokens.weight.copy_(torch.from_numpy(np.concatenate((np.zeros_like(u), u, v))))
        model.lm_head.weight.copy_(torch.from_numpy(w))
    return model.eval()


@torch.no_grad()
def said(model: PreTrainedModel, task: ModularAddition) -> Int[np.ndarray, " pair"]:
    """What a perceptron answers to every pair, in the task's order."""
    assert isinstance(model, PooledMLPForCausalLM)
    found: np.ndarray = (
        model.at_last(torch.from_numpy(task.tokens(task.pairs)).to(model.device)).argmax(1).cpu().numpy()
    )
    return found


def participation(vectors: Float[Tensor, "period neuron"]) -> Float[Tensor, " neuron"]:
    """The inverse participation ratio of each column: how few frequencies it has.

    Sum over frequencies k of (|F_k| / ‖F‖)^4, with F the real Fourier transform: 1 for one wave, 1/2 for two as large,
    about 0.04 for Gaussian noise of length 97. Source: arXiv 2310.13061.
    """
    spectrum = torch.fft.rfft(vectors.double(), dim=0).abs()
    shares: Tensor = (spectrum / spectrum.norm(dim=0)) ** 4
    return shares.sum(dim=0)


def periodicity(model: PooledMLPForCausalLM, modulus: int) -> Float[Tensor, " neuron"]:
    """How periodic each hidden neuron is: the mean participation of its weights from a, from b, and to the answers."""
    vectors = model.embed_tokens.weight.detach()
    of_a, of_b = vectors[modulus : 2 * modulus], vectors[2 * modulus : 3 * modulus]
    return torch.stack([participation(part) for part in (of_a, of_b, model.lm_head.weight.detach())]).mean(dim=0)


By = Literal["low", "high"]


@dataclass
class PrunePeriodic:
    """Take out the `neurons` hidden neurons that are the least ("low") or the most ("high") periodic.

    With "low" it is the account "periodic neurons add modulo p": the rest is taken out. Of a network with one hidden
    layer and inputs a and b, each of `modulus` values. Nothing is learned from data. Source: arXiv 2310.13061.
    """

    neurons: int
    modulus: int
    by: By = "low"

    streams: ClassVar[tuple[str, ...]] = ()
    whole: ClassVar[bool] = True
    learns: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.by not in get_args(By):
            raise unknown_name("by", str(self.by), get_args(By))

    @property
    def title(self) -> str:
        """How it is called in results."""
        return f"without the {self.neurons} {'least' if self.by == 'low' else 'most'} periodic"

    def check(self, subject: Subject, splits: Sequence[Split]) -> None:
        """Raise AssayError for another model than such a network, or more neurons than it has."""
        model = perceptron_of(subject, self)
        check_neurons(self, self.neurons, model)
        if len(model.readers()) > 1 or model.config.vocab_size != 3 * self.modulus:
            raise AssayError(
                f"{label(self)}: {subject.name!r} has {len(model.readers())} hidden layers and "
                f"{model.config.vocab_size} tokens; it is for one layer and {3 * self.modulus} tokens."
            )

    def fit(self, samples: Samples) -> "PrunePeriodic":
        """Nothing is learned."""
        return self

    def apply(self, subject: Subject) -> WholeModel:
        """A copy of the subject without them."""
        scores = periodicity(perceptron_of(subject, self), self.modulus)
        return without(subject, lowest(scores if self.by == "low" else -scores, self.neurons), self)

    def control(self) -> RandomNeurons:
        """As many neurons, chosen at random."""
        return RandomNeurons(self.neurons)


class _Adds:
    """Answers with the sum."""

    def __init__(self, modulus: int) -> None:
        self.modulus = modulus

    def __call__(
        self, tokens: Int[Tensor, "batch position"], valid: Int[Tensor, "batch position"] | None = None
    ) -> Float[Tensor, "batch position answer"]:
        """10 for the sum of a and b and 0 for the others, at every position."""
        total = (tokens[:, 0] - self.modulus + tokens[:, 1] - 2 * self.modulus) % self.modulus
        logits = 10.0 * torch.nn.functional.one_hot(total, self.modulus)
        return logits[:, None].expand(-1, tokens.shape[1], -1)


@dataclass
class Adds:
    """The account that the subject adds modulo `modulus`, as a program: right everywhere, whatever the subject does."""

    modulus: int

    streams: ClassVar[tuple[str, ...]] = ()
    whole: ClassVar[bool] = True
    copies: ClassVar[bool] = False
    learns: ClassVar[bool] = False

    @property
    def title(self) -> str:
        """How it is called in results."""
        return f"a + b mod {self.modulus}"

    def fit(self, samples: Samples) -> "Adds":
        """Nothing is learned."""
        return self

    def apply(self, subject: Subject) -> _Adds:
        """The program."""
        return _Adds(self.modulus)

    def control(self) -> None:
        """None: it has no parts that could be drawn at random."""
