"""What a circuit is to explain: pairs of a subject, how well they are told apart, and what ablated edges carry."""

import functools
import hashlib
import inspect
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay._errors import AssayError
from assay._registry import Registry
from assay.circuits._parameters import check_choice, shown
from assay.circuits._run import PARTS, Trace, constant, rows_at_a_time, traced, wiring_of
from assay.circuits._wiring import Wiring
from assay.engine import Engine, batches, tensors
from assay.tasks import NO_TOKEN, Split

Ablation = Literal["counterfactual", "resample", "mean", "position", "zero", "optimal"]
"""What an ablated edge carries: what its sender writes in the counterfactual's run, position by position, or in that of
another sequence of the train split, at random; its mean over the train split, or the mean at each position there;
nothing; or the constants that bring the circuit nearest to the subject on the train split, one vector a sender, begun
at its mean (`learn_constants`)."""

Measure = Literal["logit_difference", "kl"]
"""What discovery asks of a circuit: the answer's logit less that of the foils, or KL(subject || circuit) in nats."""


@dataclass(frozen=True)
class Batch:
    """Some pairs: `tokens`, `valid`, `counterfactuals` (pair, position), and what is scored.

    `rows` and `positions` say where predictions are scored, `answers` (scored,) and `foils` (scored, foil) which tokens
    are meant; `NO_TOKEN` fills foils up.
    """

    index: Int[np.ndarray, " pair"]
    tokens: Int[Tensor, "pair position"]
    valid: Int[Tensor, "pair position"]
    counterfactuals: Int[Tensor, "pair position"] | None
    rows: Int[Tensor, " scored"]
    positions: Int[Tensor, " scored"]
    answers: Int[Tensor, " scored"]
    foils: Int[Tensor, "scored foil"]

    @classmethod
    def of(cls, split: Split, index: Int[np.ndarray, " pair"], device: torch.device) -> "Batch":
        """That of some sequences of a split, on a device."""
        tokens, valid = tensors(split, device)
        found = None
        places = torch.from_numpy(np.argwhere(split.kinds >= 0))
        answers, foils = torch.full((len(places),), NO_TOKEN), torch.full((len(places), 1), NO_TOKEN)
        if split.counterfactuals is not None and split.answers is not None and split.foils is not None:
            found = torch.from_numpy(split.counterfactuals.astype(np.int64)).to(device)
            where = places.T.tolist()
            answers = torch.from_numpy(split.answers[where[0], where[1]].astype(np.int64))
            foils = torch.from_numpy(split.foils.reshape(*split.tokens.shape, -1)[where[0], where[1]].astype(np.int64))
        rows, positions = places.to(device).T
        return cls(index, tokens, valid, found, rows, positions, answers.to(device), foils.to(device))

    def repeated(self, count: int) -> "Batch":
        """The same pairs `count` times over, all of the first before all of the second."""
        size = len(self.tokens)
        shift = torch.arange(count, device=self.rows.device).repeat_interleave(len(self.rows)) * size
        return replace(
            self,
            index=np.tile(self.index, count),
            tokens=self.tokens.repeat(count, 1),
            valid=self.valid.repeat(count, 1),
            counterfactuals=None if self.counterfactuals is None else self.counterfactuals.repeat(count, 1),
            rows=self.rows.repeat(count) + shift,
            positions=self.positions.repeat(count),
            answers=self.answers.repeat(count),
            foils=self.foils.repeat(count, 1),
        )

    def by_pair(self, values: Float[Tensor, " scored"]) -> Float[Tensor, " pair"]:
        """The sum over the scored predictions of every pair."""
        return values.new_zeros(len(self.tokens)).index_add(0, self.rows, values)


@dataclass(frozen=True)
class Reference:
    """What ablated edges carry, `ablation` by name.

    `means` are those of the train split, where they are needed, or the constants that were learned from there; `others`
    are its sequences and their lengths, of which `seed` draws.
    """

    ablation: Ablation
    means: Trace | None = None
    others: tuple[Int[Tensor, "sequence position"], Int[Tensor, " sequence"]] | None = None
    seed: int = 0

    @classmethod
    def fitted(cls, engine: Engine, ablation: Ablation, split: Split | None, seed: int = 0) -> "Reference":
        """That of an ablation, with what it takes from the train split."""
        check_choice("ablation", ablation, get_args(Ablation))
        wiring = wiring_of(engine)
        if ablation == "counterfactual":
            return cls(ablation)
        if ablation == "zero":
            return cls(ablation, constant(wiring, _zeros(engine, wiring)))
        assert split is not None
        if ablation == "resample":
            tokens, lengths = (torch.from_numpy(array.astype(np.int64)) for array in (split.tokens, split.lengths))
            return cls(ablation, others=(tokens, lengths), seed=seed)
        return cls(ablation, constant(wiring, _means(engine, wiring, split, by_position=ablation == "position")))

    def within(self, wiring: Wiring) -> "Reference":
        """The same for a subject: where means were read from a file, or found in another dtype, its parts take them in.

        Raises AssayError if its heads are of another width.
        """
        if self.means is None:
            return self
        like = wiring.layers[0].output_weight
        known = self.means.embeddings
        if self.means.projected and (known.dtype, known.device) == (like.dtype, like.device):
            return self
        widths = {number: len(layer.output_weight) for number, layer in enumerate(wiring.layers)}
        found = {number: heads.shape[-1] for number, heads in self.means.heads.items()}
        if found != widths:
            raise AssayError(
                f"the means that ablated edges carry are of heads that give {found.get(0)} numbers, and in this "
                f"model they give {widths[0]}; fit the circuit again."
            )
        return Reference(self.ablation, constant(wiring, self.means.senders_only(lambda means: means.to(like))))

    @staticmethod
    def learns(ablation: Ablation) -> bool:
        """Whether an ablation takes anything from data."""
        return ablation in ("resample", "mean", "position", "optimal")

    @property
    def is_another_input(self) -> bool:
        """Whether ablated edges carry what their senders write on another input."""
        return self.ablation in ("counterfactual", "resample")

    def trace(self, wiring: Wiring, batch: Batch, parts: Collection[str] = PARTS) -> Trace:
        """What ablated edges carry on a batch, with some parts at least. Raises AssayError where that is not known."""
        if self.others is not None:
            return traced(wiring, self._drawn(batch), batch.valid, parts)
        if self.means is None:
            if batch.counterfactuals is None:
                raise AssayError(
                    "a circuit with ablation='counterfactual' needs pairs, and these sequences have no "
                    "counterfactuals; give a task of pairs, or use ablation='mean'."
                )
            return traced(wiring, batch.counterfactuals, batch.valid, parts)
        known, asked = self.means.embeddings.shape[1], batch.tokens.shape[1]
        if self.ablation != "position":
            return self.means
        if known < asked:
            raise AssayError(
                f"a circuit with ablation='position' has means of positions 0 to {known - 1} and was asked for "
                f"position {asked - 1}; fit it on sequences as long, or use ablation='mean'."
            )
        return self.means.first(asked)

    def _drawn(self, batch: Batch) -> Int[Tensor, "pair position"]:
        """Another sequence for every one of a batch: at least as long, cut to its length, and not the same.

        Each is drawn by a hash of its own tokens, so that a sequence has the same one in whatever batch it stands.
        """
        assert self.others is not None
        tokens, lengths = (tensor.numpy() for tensor in self.others)
        found = batch.tokens.cpu().numpy().copy()
        for row, length in enumerate(batch.valid.sum(dim=1).tolist()):
            own = found[row, :length].copy()
            able = np.flatnonzero(lengths >= length)
            able = able[(tokens[able, :length] != own).any(axis=1)] if len(able) else able
            if not len(able):
                raise AssayError(
                    f"a circuit with ablation='resample' found no other sequence of {length} tokens in the train "
                    f"split, whose longest has {int(lengths.max())}; fit it on longer sequences, or use "
                    "ablation='mean'."
                )
            digest = hashlib.sha256(own.astype(np.int64).tobytes()).digest()
            rng = np.random.default_rng([self.seed, int.from_bytes(digest[:8], "little")])
            found[row, :length] = tokens[able[rng.integers(len(able))], :length]
        return torch.from_numpy(found).to(batch.tokens.device)

    @property
    def numbers(self) -> int:
        """How many numbers the reference has that are no part of the data."""
        if self.means is None or self.ablation == "zero":
            return 0
        parts = (self.means.embeddings, *self.means.heads.values(), *self.means.mlp.values())
        return sum(part.numel() for part in parts)


def check_reach(who: str, ablation: Ablation, splits: Sequence[Split], *, fits_itself: bool) -> None:
    """Raise AssayError where a split to judge has sequences that the split fitted on has nothing to ablate by.

    Means by position reach as far as its longest sequence, and of what is drawn there has to be another as long. The
    split of role "train" is fitted on for all others, and a second one of a name for the first. With `fits_itself`,
    what is fitted on is run with the ablation, too.
    """
    if ablation not in ("position", "resample"):
        return
    judged: dict[str, Split] = {}
    again: list[Split] = []
    for split in splits:
        if judged.setdefault(split.name, split) is not split:
            again.append(split)
    uses = [(split, other) for split in judged.values() if split.role == "train" for other in judged.values()]
    uses += [(split, judged[split.name]) for split in again] + [(split, split) for split in again]
    for fitted_on, split in uses:
        if fits_itself or split is not fitted_on:
            _check_reach(who, ablation, fitted_on, split)


def _check_reach(who: str, ablation: Ablation, fitted_on: Split, split: Split) -> None:
    most, longest = int(fitted_on.lengths.max()), int(split.lengths.max())
    if longest > most:
        has = f"means of positions 0 to {most - 1}" if ablation == "position" else f"sequences of up to {most} tokens"
        raise AssayError(
            f"{who}: split {split.name!r} has sequences of up to {longest} tokens, and what is fitted on "
            f"{fitted_on.name!r} has {has}; fit it on sequences as long, use ablation='mean', or leave "
            f"{split.name!r} out."
        )
    for row, length in enumerate(split.lengths if ablation == "resample" else ()):
        able, own = np.flatnonzero(fitted_on.lengths >= length), split.tokens[row, :length]
        # The first two are enough, as a rule.
        if not any((fitted_on.tokens[some, :length] != own).any() for some in (able[:2], able)):
            raise AssayError(
                f"{who}: sequence {row} of split {split.name!r} has {length} tokens, and {fitted_on.name!r}, which is "
                "drawn from, has no other sequence as long; give it more there, or use ablation='mean'."
            )


def _zeros(engine: Engine, wiring: Wiring) -> Trace:
    """Senders that write nothing."""
    subject = engine.subject
    nothing = torch.zeros(1, 1, wiring.width, dtype=subject.model.dtype, device=subject.device)
    inputs = {number: len(layer.output_weight) for number, layer in enumerate(wiring.layers)}
    heads = {number: nothing.new_zeros(1, 1, size) for number, size in inputs.items()}
    return Trace(nothing, heads, dict.fromkeys(inputs, nothing))


def _means(engine: Engine, wiring: Wiring, split: Split, *, by_position: bool) -> Trace:
    """What senders write on average over the valid positions of a split, by position or over all."""
    width = int(split.lengths.max()) if by_position else 1
    sums: Trace | None = None
    count = torch.zeros(1, width, 1, dtype=torch.float64)
    for _, part in batches(engine, split):
        tokens, valid = tensors(part, engine.subject.device)
        trace = traced(wiring, tokens, valid)
        weight = valid[..., None].double()
        total = functools.partial(_summed, weight=weight, width=width, by_position=by_position)
        sums = trace.senders_only(total) if sums is None else sums.plus(trace.senders_only(total))
        count += total(torch.ones_like(weight)).cpu()
    assert sums is not None
    dtype = engine.subject.model.dtype
    return sums.senders_only(lambda tensor: (tensor / count.to(tensor.device)).to(dtype))


def _summed(tensor: Tensor, *, weight: Tensor, width: int, by_position: bool) -> Tensor:
    """The sum over sequences, and over positions unless they are told apart, in float64: (1, width, …)."""
    found = (tensor.double() * weight).sum(dim=0, keepdim=True)
    if not by_position:
        return found.sum(dim=1, keepdim=True)
    return torch.nn.functional.pad(found, (0, 0, 0, width - found.shape[1]))


@dataclass(frozen=True)
class Problem:
    """Pairs of a subject that a circuit is to explain: what a discovery method gets.

    m, what is explained, is the mean over pairs of the sum over a pair's scored predictions of the logit of the answer
    less the mean logit of its foils (`measure="logit_difference"`), or of KL(subject || circuit) in nats (`"kl"`).
    """

    engine: Engine
    split: Split
    reference: Reference
    measure: Measure = "logit_difference"

    @cached_property
    def wiring(self) -> Wiring:
        """How the subject's residual stream is written and read."""
        return wiring_of(self.engine)

    def batches(
        self, senders: int | None = None, *, rows: int | None = None, tokens: int | None = None
    ) -> Iterator[Batch]:
        """The pairs, as many at a time as what so many senders write (default: all of them) has room for.

        At most `rows` at a time, or `tokens` (one pair at least). Nothing may depend on how they are cut.
        """
        count = len(self.wiring.graph.senders) if senders is None else senders
        element = torch.finfo(self.engine.subject.model.dtype).bits // 8
        for index, part in batches(self.engine, self.split):
            room = rows_at_a_time(self.wiring, count, part.tokens.shape[1], element)
            room = room if rows is None else min(rows, room)
            room = room if tokens is None else min(max(1, tokens // part.tokens.shape[1]), room)
            for chosen in np.array_split(np.arange(len(part)), math.ceil(len(part) / room)):
                yield Batch.of(part.take(chosen), index[chosen], self.engine.subject.device)

    def trace(self, batch: Batch, parts: Collection[str] = PARTS) -> Trace:
        """What ablated edges carry on a batch, with some parts at least."""
        return self.reference.trace(self.wiring, batch, parts)

    def value(
        self, hidden: Float[Tensor, "pair position width"], batch: Batch, clean: Tensor | None = None
    ) -> Float[Tensor, " pair"]:
        """m of every pair from final hidden states; KL needs those of the subject, `clean`."""
        here = hidden[batch.rows, batch.positions]
        if self.measure == "kl":
            assert clean is not None
            log_p, log_q = (
                self.wiring.logits(states).double().log_softmax(dim=-1)
                for states in (clean[batch.rows, batch.positions], here)
            )
            return batch.by_pair((log_p.exp() * (log_p - log_q)).sum(dim=-1))
        return batch.by_pair(logit_differences(self.wiring, here, batch))

    @cached_property
    def baseline(self) -> tuple[Float[np.ndarray, " pair"], Float[np.ndarray, " pair"]]:
        """The logit difference of every pair for the subject, and with all edges ablated."""
        found = np.zeros((2, len(self.split)))
        for batch in self.batches(1):
            trace = self.trace(batch)
            with torch.inference_mode():
                whole = self.wiring.hidden(batch.tokens, batch.valid)
                last = self.wiring.norm.module(trace.final).expand_as(whole)
                for row, hidden in enumerate((whole, last)):
                    here = logit_differences(self.wiring, hidden[batch.rows, batch.positions], batch)
                    found[row, batch.index] = batch.by_pair(here).cpu().numpy()
        return found[0], found[1]

    @cached_property
    def means(self) -> tuple[float, float]:
        """m of the subject, and with all edges ablated."""
        found = np.zeros(2)
        for batch in self.batches(1):
            trace = self.trace(batch)
            with torch.inference_mode():
                whole = self.wiring.hidden(batch.tokens, batch.valid)
                last = self.wiring.norm.module(trace.final).expand_as(whole)
                found += [float(self.value(hidden, batch, whole).sum()) for hidden in (whole, last)]
        return float(found[0]) / len(self.split), float(found[1]) / len(self.split)

    @cached_property
    def sha256(self) -> str:
        """A hash of the pairs."""
        return sha256_of_pairs(self.split)


def sha256_of_pairs(split: Split) -> str:
    """A hash of the pairs of a split."""
    digest = hashlib.sha256()
    for array in (split.tokens, split.lengths, split.kinds, split.counterfactuals, split.answers, split.foils):
        if array is not None:
            digest.update(repr(array.shape).encode() + np.ascontiguousarray(array.astype(np.int64)).tobytes())
    return digest.hexdigest()


def logit_differences(wiring: Wiring, hidden: Float[Tensor, "scored width"], batch: Batch) -> Float[Tensor, " scored"]:
    """The logit of the answer less the mean of its foils', at every scored prediction."""
    known = batch.foils != NO_TOKEN
    tokens = torch.cat((batch.answers[:, None], batch.foils.clamp(min=0)), dim=1)
    logits = wiring.logits_of(hidden, tokens)
    foils = (logits[:, 1:] * known).sum(dim=1) / known.sum(dim=1)
    found: Tensor = logits[:, 0] - foils
    return found


@runtime_checkable
class Discovery(Protocol):
    """A method that says how much each edge matters.

    `scores` gives, for every edge (sender, receiver), by how much m changes when the edge is ablated, a mean over pairs
    (an estimate, as a rule); NaN where there is no edge. Negative: the edge helps. Nothing may depend on how pairs are
    cut into batches. `assay.testing.check_discovery` checks that. Optional members: `check(problem)` raises AssayError
    for an ablation or a measure that it cannot work with; `complete` says that the scores of "all" edges, or of those
    out of the "embeddings", sum to m with all edges ablated less m of the subject; `partial = True`, that some edges
    have no score either (NaN); `pairwise = False`, that scores are not the mean of those of every pair by itself, as
    where a search is made on all pairs together.
    """

    def scores(self, problem: Problem) -> Float[np.ndarray, "sender receiver"]:
        """The score of every edge."""
        ...


discoveries = Registry("assay.discoveries", "discovery method", ("scores",))
"""All discovery methods by name (`Circuit(method="eap-ig")`)."""


def by_name(method: object) -> Discovery:
    """A discovery method by name, with its defaults, or as it is."""
    if isinstance(method, str):
        make: Callable[[], Discovery] = discoveries.get(method)
        return make()
    if not isinstance(method, Discovery) or isinstance(method, type):
        raise AssayError(
            f"method={shown(method)}: give a name ({', '.join(discoveries)}) or an object with scores(problem)."
        )
    return method


def parameters_of(method: Discovery) -> dict[str, bool | int | float | str | None]:
    """The parameters of a method, as plain values; of what is none, the name of its type."""
    found = {name: getattr(method, name, None) for name in inspect.signature(type(method)).parameters}
    return {
        name: value if value is None or isinstance(value, bool | int | float | str) else type(value).__name__
        for name, value in found.items()
    }
