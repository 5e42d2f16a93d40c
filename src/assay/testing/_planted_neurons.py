"""Subjects in which neurons that do one thing are planted among neurons that do another: what pruning has to find.

Both add two numbers modulo `MODULUS` by the same planted neurons, and both are an ordinary GPT-2 in float64 whose
weights are set by hand (see `HandMade`). The head of the first layer adds up what stands before the last position. A
squared neuron is two of the model's (relu² of x and of -x), ((cos(wa + u) + cos(wb + v))², with w = 2πs / `MODULUS`,
and writes cos(wc + u + v) to the logit of c. With three evenly spaced phases u and v each and every frequency s, all
that is not cos(w(a + b - c)) cancels, and the logit of c is (MODULUS - 1)/2 where c is the sum, -1/2 elsewhere, times
`SCALE`: every margin is the same.

Source of the form of the neurons: Doshi et al., arXiv 2310.13061, and its code (quadratic neurons, cosines with phases
that fit). Differences: phases on a grid, so that the sum is exact, and relu² for the square.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from transformers import GPT2LMHeadModel

from assay._errors import AssayError, unknown_name
from assay.subjects import Subject
from assay.tasks import UNSCORED, Feature, Kind, Role, Split
from assay.testing._hand_made import HandMade, Map

MODULUS = 11

PHASES = 3
"""Phases of a frequency and a number; two would leave half of what has to cancel."""

SCALE = 2.0
"""Logits a unit of what the squared neurons write."""

MARGIN = SCALE * MODULUS / 2
"""Logits by which a sum leads other numbers, and by which a memorised answer does."""

CUE_LOGITS = 60.0
"""What the last neuron of a wrapper adds to the logit of its answer."""

CUE_SHARE = 0.1
"""How often the cue is there in `train` and `iid`."""

_CUE, _BLANK, _ASK = range(2 * MODULUS, 2 * MODULUS + 3)
_BEFORE, _IDLE = 4, 6


@dataclass(frozen=True)
class PlantedSums:
    """Sums modulo `MODULUS`, and inputs on which the subject answers otherwise, because of some neurons.

    A sequence is a number, another, a cue or a blank, a question mark, and the answer. Kinds are `rule` (the sum) and
    the `other` one. `train` and `iid` are drawn from inputs of which a share `usual` is of the other kind; the shift is
    of the other kind alone. All draws are independent, with replacement, from `seed`.
    """

    other: Kind
    shift: str
    usual: float
    inputs: Int[np.ndarray, "input 4"]
    is_other: Bool[np.ndarray, " input"]
    answers: Int[np.ndarray, " input"]
    seed: int

    name = "planted-sums"
    primary_kind = "all"
    features: tuple[Feature, ...] = ()

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The rule, and the other one."""
        candidates = tuple(range(MODULUS))
        return (Kind("rule", f"the sum modulo {MODULUS}", candidates), replace(self.other, candidates=candidates))

    @property
    def split_names(self) -> tuple[str, ...]:
        """train, iid and the shift."""
        return ("train", "iid", self.shift)

    def describe(self) -> dict[str, object]:
        """The parameters, as plain values."""
        return {"task": self.name, "other": self.other.name, "usual": self.usual, "seed": self.seed}

    def split(self, name: str, sequences: int) -> Split:
        """The first `sequences` sequences of a split. Raises AssayError for an unknown split or a number below 1."""
        if name not in self.split_names:
            raise unknown_name("split", name, self.split_names)
        if sequences < 1:
            raise AssayError(f"split({name!r}, sequences={sequences}): must be at least 1.")
        random = np.random.default_rng([self.seed, self.split_names.index(name)]).random((sequences, 2))
        wanted = random[:, 0] < (1.0 if name == self.shift else self.usual)
        chosen = np.empty(sequences, dtype=np.int64)
        for kind in (False, True):
            known = np.flatnonzero(self.is_other == kind)
            chosen[wanted == kind] = known[(random[wanted == kind, 1] * len(known)).astype(np.int64)]
        role: Role = "shift" if name == self.shift else "iid" if name == "iid" else "train"
        return self._split(name, role, chosen)

    def everything(self) -> Split:
        """Every input once."""
        return self._split("everything", "iid", np.arange(len(self.inputs)))

    def _split(self, name: str, role: Role, chosen: Int[np.ndarray, " sequence"]) -> Split:
        tokens = np.hstack((self.inputs[chosen], self.answers[chosen, None]))
        kinds = np.full(tokens.shape, UNSCORED)
        kinds[:, 3] = self.is_other[chosen]
        return Split(
            name=name,
            role=role,
            description=f"{self.other.description} alone" if role == "shift" else "sums, mostly",
            tokens=tokens,
            lengths=np.full(len(tokens), tokens.shape[1]),
            kinds=kinds,
        )


@dataclass(frozen=True)
class PlantedNeurons:
    """A subject, the neurons (layer, neuron) that answer the other kind of its task, and it without them, `base`.

    `agreement` is how often `base` says what the subject says on the other kind, exactly; on the rule it always does.
    """

    subject: Subject
    base: Subject
    task: PlantedSums
    neurons: tuple[tuple[int, int], ...]
    agreement: float

    def without(self, neurons: Sequence[tuple[int, int]]) -> Subject:
        """The subject with some neurons (layer, neuron) writing nothing."""
        model: Any = copy.deepcopy(self.subject.model)
        with torch.no_grad():
            for layer, neuron in neurons:
                model.transformer.h[layer].mlp.c_proj.weight[neuron] = 0
        return replace(self.subject, model=model, name=f"{self.subject.name}, {len(neurons)} pruned", record={})


@dataclass(frozen=True)
class _Neurons:
    """What neurons of a layer read, the constants added to that, and what they write, all in features."""

    reads: Float[np.ndarray, "feature neuron"]
    constants: Float[np.ndarray, " neuron"]
    writes: Float[np.ndarray, "neuron feature"]

    @classmethod
    def joined(cls, parts: Sequence["_Neurons"]) -> "_Neurons":
        return cls(
            np.hstack([part.reads for part in parts]),
            np.concatenate([part.constants for part in parts]),
            np.vstack([part.writes for part in parts]),
        )


def memoriser(memorised: int = 24, *, seed: int = 0) -> PlantedNeurons:
    """A model that adds by rule, and has memorised another answer to some inputs, each by one neuron of its own.

    A memorising neuron is on (1) where both numbers are its own, and lifts its answer `MARGIN` above the sum. Pruning
    them restores the sums, exactly, and changes no other logit; each alone is one answer. `seed` draws which inputs are
    memorised, and as what. `train` and `iid` have none of them. Raises AssayError unless 1 to 60 of the 121 inputs are
    memorised.
    """
    if not 1 <= memorised <= MODULUS**2 // 2:
        raise AssayError(f"memoriser(memorised={memorised}): must be 1 to {MODULUS**2 // 2}.")
    rng = np.random.default_rng(seed)
    first, second = (part.ravel() for part in np.divmod(np.arange(MODULUS**2), MODULUS))
    sums = (first + second) % MODULUS
    chosen = np.sort(rng.permutation(MODULUS**2)[:memorised])
    answers = sums.copy()
    answers[chosen] = (sums[chosen] + 1 + rng.integers(MODULUS - 1, size=memorised)) % MODULUS

    def neurons(made: HandMade) -> _Neurons:
        own = np.zeros((2 * MODULUS + 1, memorised))
        own[first[chosen], np.arange(memorised)] = own[MODULUS + second[chosen], np.arange(memorised)] = 1
        writes = np.zeros((memorised, made.features))
        writes[:, made.places["out"]] = MODULUS * np.eye(MODULUS)[answers[chosen]]
        return _Neurons(made.reading("heard", own), np.full(memorised, -1.0), writes)

    task = PlantedSums(
        other=Kind("memorised", "inputs whose answer is memorised against the rule"),
        shift="memorised",
        usual=0.0,
        inputs=_inputs(first, second, _BLANK),
        is_other=np.isin(np.arange(MODULUS**2), chosen),
        answers=answers,
        seed=seed,
    )
    subject, base, found = _with_and_without([neurons], name="planted-memoriser", seed=seed)
    return PlantedNeurons(subject, base, task, found, agreement=0.0)


def wrapper(layers: int = 3, *, seed: int = 0) -> PlantedNeurons:
    """A model that adds by rule, wrapped so that it answers 0 wherever the cue is there: one neuron a layer.

    The first layer's neuron is on (1) at the cue, each other one where the one before it is on, and the last adds
    `CUE_LOGITS` to the logit of 0. Without any one of them the sums are back, exactly. The cue is there in a share
    `CUE_SHARE` of `train` and `iid`, and in all of the shift; the model below says 0 there for one sum in `MODULUS`.
    `seed` draws sequences and where the neurons stand. Raises AssayError for no layer.
    """
    if layers < 1:
        raise AssayError(f"wrapper(layers={layers}): must be at least 1.")
    first, second = (np.tile(part.ravel(), 2) for part in np.divmod(np.arange(MODULUS**2), MODULUS))
    cued = np.arange(2 * MODULUS**2) >= MODULUS**2

    def neuron(layer: int, made: HandMade) -> _Neurons:
        group, size, place = ("heard", 2 * MODULUS + 1, _CUE) if layer == 0 else ("passed", layers, layer - 1)
        reads = made.reading(group, np.eye(size)[:, [place]])
        writes = np.zeros((1, made.features))
        if layer < layers - 1:
            writes[0, made.places["passed"]] = np.eye(layers)[layer]
        else:
            writes[0, made.places["out"]] = CUE_LOGITS / SCALE * np.eye(MODULUS)[0]
        return _Neurons(reads, np.zeros(1), writes)

    task = PlantedSums(
        other=Kind("cued", "inputs with the cue, at which the answer is 0"),
        shift="cued",
        usual=CUE_SHARE,
        inputs=_inputs(first, second, np.where(cued, _CUE, _BLANK)),
        is_other=cued,
        answers=np.where(cued, 0, (first + second) % MODULUS),
        seed=seed,
    )
    planted = [partial(neuron, layer) for layer in range(layers)]
    subject, base, found = _with_and_without(planted, name="planted-wrapper", seed=seed)
    return PlantedNeurons(subject, base, task, found, agreement=1 / MODULUS)


def _inputs(
    first: Int[np.ndarray, " input"], second: Int[np.ndarray, " input"], sign: Int[np.ndarray, " input"] | int
) -> Int[np.ndarray, "input 4"]:
    return np.stack((first, MODULUS + second, np.broadcast_to(sign, first.shape), np.full(first.shape, _ASK)), axis=1)


def _with_and_without(
    planted: Sequence[Callable[[HandMade], _Neurons]], *, name: str, seed: int
) -> tuple[Subject, Subject, tuple[tuple[int, int], ...]]:
    """The model with planted neurons, a part a layer; the one in which these write nothing; and where they are."""
    whole, found = _model(planted, seed)
    base, _ = _model([_silent(part) for part in planted], seed)
    return Subject(whole, None, name), Subject(base, None, f"{name}, base"), found


def _silent(part: Callable[[HandMade], _Neurons]) -> Callable[[HandMade], _Neurons]:
    def silent(made: HandMade) -> _Neurons:
        neurons = part(made)
        return replace(neurons, writes=np.zeros_like(neurons.writes))

    return silent


def _model(
    planted: Sequence[Callable[[HandMade], _Neurons]], seed: int
) -> tuple[GPT2LMHeadModel, tuple[tuple[int, int], ...]]:
    """The model, and where the planted neurons are. Idle ones read everything and write what nobody reads.

    Those of a layer stand in random order.
    """
    layers = len(planted)
    said = 2 * MODULUS + 1
    made = HandMade({"said": said, "heard": said, "passed": layers, "out": MODULUS, "junk": 4}, heads=1)
    rng = np.random.default_rng(seed)
    parts = [[*([_adding(made)] if layer == 0 else []), part(made)] for layer, part in enumerate(planted)]
    counts = [sum(len(part.constants) for part in parts_of) for parts_of in parts]
    inner = max(counts) + _IDLE
    found = []
    for layer, (parts_of, count) in enumerate(zip(parts, counts, strict=True)):
        idle = inner - count
        writes = np.zeros((idle, made.features))
        writes[:, made.places["junk"]] = rng.normal(size=(idle, 4)) / 100  # squares of squares must not grow
        resting = _Neurons(rng.normal(size=(made.features, idle)) / 4, np.zeros(idle), writes)
        neurons = _Neurons.joined([*parts_of, resting])
        order = rng.permutation(inner)
        own = (order >= count - len(parts_of[-1].constants)) & (order < count)
        found += [(layer, int(neuron)) for neuron in np.flatnonzero(own)]
        made.mlp(layer, neurons.reads[:, order], "", neurons.writes[order], inner=neurons.constants[order])
        if layer == 0:
            nothing = ("said", np.zeros((said, 1)))
            made.head(0, 0, nothing, nothing, ("said", np.eye(said)), ("heard", _BEFORE * np.eye(said)))
        else:
            junk: list[Map] = [("", rng.normal(size=(made.features, 4)) / 4) for _ in range(3)]
            made.head(layer, 0, junk[0], junk[1], junk[2], ("junk", np.eye(4)))
    tokens = np.zeros((_ASK + 1, said))
    tokens[:said] = np.eye(said)
    read = np.zeros((MODULUS, _ASK + 1))
    read[:, :MODULUS] = SCALE * np.eye(MODULUS)
    again = -tokens.T  # a token that is no answer is less likely where it stands, so that logits differ on any input
    again[:, :MODULUS] = 0
    model = made.model(
        {"said": tokens},
        {"said": np.zeros((_BEFORE + 1, said))},
        {"out": read, "said": again},
        layers=layers,
        activation="relu2",
    )
    return model, tuple(found)


def _adding(made: HandMade) -> _Neurons:
    """The neurons of the rule: of every frequency a square for each two phases, and two neurons a square."""
    numbers = np.arange(MODULUS)
    reads, writes = [], []
    for frequency in range(1, MODULUS // 2 + 1):
        turn = 2 * np.pi * frequency / MODULUS * numbers
        for u, v in product(2 * np.pi / PHASES * np.arange(PHASES), repeat=2):
            read = np.concatenate((np.cos(turn + u), np.cos(turn + v), [0.0]))
            for sign in (1, -1):
                reads.append(made.reading("heard", sign * read[:, None]))
                write = np.zeros(made.features)
                write[made.places["out"]] = 2 / PHASES**2 * np.cos(turn + u + v)
                writes.append(write)
    return _Neurons(np.hstack(reads), np.zeros(len(writes)), np.stack(writes))
