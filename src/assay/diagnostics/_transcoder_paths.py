"""Circuits of transcoders, by weights: what the features of earlier layers add to a feature of a later one."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay._errors import AssayError
from assay._given import checked
from assay.diagnostics._encoded import Encoded, all_encoded, chosen_splits, encoded
from assay.diagnostics._setting import share_of
from assay.engine import Engine, batches, tensors
from assay.faithfulness import Weights
from assay.faithfulness._summary import weights_of
from assay.simplify import Simplification, label
from assay.subjects import Subject
from assay.tasks import Split, Task, bound

PATH_COLUMNS = (
    "split", "role", "target", "source", "layer", "feature", "sequences", "positions", "weight", "together",
    *(f"{name}{end}" for name in ("contribution", "share") for end in ("", "_low", "_high")),
    "reason",
)  # fmt: skip

NEAR = 1e-3
"""What may be left of a sum that has to close, as a part of what is added up: rounding in float32 is far below."""

STREAMS = ("residual", "attention", "mlp_input", "mlp")


@checked
def transcoder_paths(
    subject: Subject,
    task: Task,
    fitted: Simplification,
    feature: int,
    *,
    place: str | None = None,
    count: int = 10,
    splits: Sequence[str] | None = None,
    sequences: int = 500,
    resamples: int = 2_000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """What turns a feature of a later transcoder on, by features of earlier ones: one row a (split, source).

    With v the vector that enters the norm before the target's MLP at a position, the pre-activation of target j is

        u_j = s <v, g_j> + bias,    g_j = γ ⊙ W_enc[:, j],

    with s the norm's scale at that position, γ and β its weights (g_j without its mean, where the norm takes means
    off), and bias = <β, W_enc[:, j]> + b_enc,j. The scale is held as it is, so u_j is a sum over all that was added to
    v: of feature i of the transcoder in layer l, s z_i <W_dec,i, g_j>. That is what a row of a source says, in the
    units of u_j, as the mean over the positions of a split at which the target is on:

    | source | what |
    |---|---|
    | "layer0.mlp feature 12" | one feature: the `count` of the largest share on any split |
    | "other features" | all other features together |
    | "layer0.mlp error" | what the MLP gives and its transcoder does not |
    | "layer0.mlp constant", "… skip" | b_dec of the transcoder, and its skip connection, if it has one |
    | "layer0.mlp" | an MLP without a transcoder |
    | "layer0.attention", "embeddings" | what attention has added, which is not taken apart, and the first vector |
    | "bias" | as above |
    | "pre-activation" | u_j itself: the sum of all others |

    `contribution` is that mean; `share` is the sum of |contribution| over these positions as a part of that of all
    single sources (every feature by itself), in [0, 1]. Both have `_low` and `_high`, over whole sequences (BCa).
    `weight` is <W_dec,i, g_j>, which no input changes but for the factor s z_i; `together` is the share of the same
    positions at which the source is on: a large weight between features that are never on together explains nothing.
    Where "error" has a large share, the transcoders do not say what turns the target on.

    These are direct paths, through the residual stream alone: what a feature does by way of attention is in
    "attention". Ask again of a source to follow a path further. `fitted` is a recipe of transcoders at several MLPs;
    `place` that of the target ("layer1.mlp"; by default the last).

    Source: Dunefsky, Chlenski and Nanda (arXiv 2406.11944). Differences: the scale of the norm is held and its mean
    taken off exactly, in place of a constant ratio; errors and constants stand beside features; intervals, and shifts.

    Raises AssayError for a recipe without transcoders before the target, a dictionary that is none or normalizes what
    it encodes, an unknown feature, place or split, and an architecture where what enters the norm is not the sum of
    what was added (norms behind an MLP or attention, a scaled residual).
    """
    if count < 1:
        raise AssayError(f"transcoder_paths(count={count}): must be at least 1.")
    task = bound(task, subject.tokenizer)
    engine = Engine(subject)
    target, before = _asked(fitted, place)
    number = target.checked(feature)
    reading = _Reading.of(engine, target, before, number)
    found: dict[str, _Sums] = {}
    for split in chosen_splits(task, splits, sequences):
        found[split.name] = _Sums(split)
        for index, parts in reading.batches(engine, split):
            found[split.name].add(index, parts)
    shown = _largest(list(found.values()), count)
    rows = [
        {"target": f"{target.name} feature {number}"} | row
        for own in found.values()
        for row in _rows(reading, own, shown, weights_of(own.split, seed=seed, resamples=resamples), level)
    ]
    return pd.DataFrame(rows, columns=list(PATH_COLUMNS)).astype({"layer": "Int64", "feature": "Int64"})


def _asked(fitted: Simplification, place: str | None) -> tuple[Encoded, list[Encoded]]:
    """The transcoder of the target, and those before it."""
    every = sorted(all_encoded(fitted), key=lambda one: one.place.layer)
    for one in every:
        if not one.dictionary.transcodes:
            raise AssayError(
                f"{label(fitted)}: the dictionary at {one.name} is no transcoder; give transcoders of several MLPs, "
                "such as Transcoder at the site 'all.mlp'."
            )
    target = every[-1] if place is None else encoded(fitted, place)
    before = [one for one in every if one.place.layer < target.place.layer]
    if not before:
        raise AssayError(
            f"{label(fitted)} has no transcoder before {target.name}; fit it at several MLPs, such as 'all.mlp', and "
            "ask about a later one."
        )
    if target.dictionary.normalization is not None:
        raise AssayError(
            f"the transcoder at {target.name} normalizes what it encodes ({target.dictionary.normalization}), so that "
            "its pre-activations are no sum over what came before."
        )
    return target, before


@dataclass(frozen=True)
class _Parts:
    """What was added to a target's pre-activation at the positions where it is on.

    `whole` has what is not taken apart, by name; of features there are entries: row, number among all features of all
    transcoders, and contribution. `sequence` says in which sequence of the batch a row is.
    """

    sequence: Int[np.ndarray, " row"]
    whole: Mapping[str, Float[np.ndarray, " row"]]
    row: Int[np.ndarray, " entry"]
    feature: Int[np.ndarray, " entry"]
    value: Float[np.ndarray, " entry"]
    pre_activation: Float[np.ndarray, " row"]


@dataclass(frozen=True)
class _Reading:
    """How a target's pre-activation is read off what was added before.

    `direction` is g_j, `scaled` γ, by which the scale is found, `shift` β; `centred` says whether the norm takes means
    off, `own` whether what the attention of the target's block adds enters its norm. `layers` are those of the blocks
    before; `starts` the numbers of the first feature of each transcoder.
    """

    target: Encoded
    before: Sequence[Encoded]
    number: int
    direction: Float[Tensor, " width"]
    scaled: Float[Tensor, " width"]
    shift: Float[Tensor, " width"]
    bias: float
    centred: bool
    own: bool
    layers: tuple[int, ...]
    weights: Float[np.ndarray, " feature"]
    starts: Int[np.ndarray, " transcoder"]

    @classmethod
    def of(cls, engine: Engine, target: Encoded, before: Sequence[Encoded], number: int) -> "_Reading":
        """That of one target. Raises AssayError where the architecture does not add up."""
        norm = _norm(engine, target.place.layer)
        width, like = target.dictionary.width, next(engine.subject.model.parameters())
        scaled, shift, centred = _weights_of(norm, width, like)
        own = target.dictionary.to(torch.zeros(1, dtype=torch.float64))
        column = own.W_enc[:, number].cpu()
        direction = scaled * column
        if centred:
            direction = direction - direction.mean()
        moved = shift - own.b_dec.cpu() if own.pre_bias else shift
        decoders = [one.dictionary.W_dec.double().cpu() for one in before]
        starts = np.cumsum([0, *(len(one) for one in decoders)])
        return cls(
            target, before, number, direction, scaled, shift, float(moved @ column + own.b_enc[number]), centred,
            _own_attention(engine, target.place.layer, norm),
            tuple(block.layer for block in engine.blocks if block.layer < target.place.layer),
            torch.cat([one @ direction for one in decoders]).numpy(), starts[:-1],
        )  # fmt: skip

    def name(self, feature: int) -> tuple[Encoded, int]:
        """The transcoder and the number there of a feature."""
        place = int(np.searchsorted(self.starts, feature, side="right")) - 1
        return self.before[place], feature - int(self.starts[place])

    def batches(self, engine: Engine, split: Split) -> Iterator[tuple[Int[np.ndarray, " sequence"], _Parts]]:
        """The parts of every batch of a split."""
        layers = [*self.layers, self.target.place.layer]
        with engine.ready():
            for index, batch in batches(engine, split):
                tokens, valid = tensors(batch, engine.subject.device)
                run = engine.run(tokens, valid, read=STREAMS, layers=layers, logits=False)
                yield index, self.parts(run, batch.valid.astype(bool))

    def parts(self, run: Any, valid: Bool[np.ndarray, "sequence position"]) -> _Parts:
        """What was added at the positions of a run where the target is on."""
        layer = self.target.place.layer
        encoder = self.target.dictionary

        def rows(stream: str, at: int) -> Tensor:
            found: Tensor = getattr(run, stream)[at].detach().cpu()[torch.from_numpy(valid)]
            return found.double()

        entered = rows("mlp_input", layer)
        codes = encoder.encode(entered)
        on = codes.rows[codes.index == self.number]
        added = {"embeddings": rows("residual", min([*self.layers, layer]))[on]}
        attended = [*self.layers, *([layer] if self.own else [])]
        added |= {f"layer{at}.attention": rows("attention", at)[on] for at in attended}
        given = {at: rows("mlp", at)[on] for at in self.layers}
        vector = torch.stack([*added.values(), *given.values()]).sum(dim=0)
        entered = entered[on]
        scale = self._scale(vector, entered)
        whole = {name: scale * (part @ self.direction) for name, part in added.items()}
        index, feature, value = [], [], []
        for place, one in enumerate(self.before):
            at, dictionary = one.place.layer, one.dictionary.to(vector)
            into = rows("mlp_input", at)[on]
            own = dictionary.encode(into)
            start = int(self.starts[place])
            weights = torch.from_numpy(self.weights[start : start + own.features])
            parts = scale[own.rows] * own.value * weights[own.index]
            index.append(own.rows)
            feature.append(own.index + start)
            value.append(parts)
            decoded = scale * (dictionary.decode(own, into) @ self.direction)
            constant = scale * (dictionary.b_dec @ self.direction)
            whole[f"{one.name} constant"] = constant
            if dictionary.W_skip is not None:
                whole[f"{one.name} skip"] = decoded - constant - torch.zeros_like(scale).index_add(0, own.rows, parts)
            whole[f"{one.name} error"] = scale * (given.pop(at) @ self.direction) - decoded
        whole |= {f"layer{at}.mlp": scale * (part @ self.direction) for at, part in given.items()}
        whole["bias"] = torch.full_like(scale, self.bias)
        wanted = encoder.to(vector)
        moved = entered - wanted.b_dec if wanted.pre_bias else entered
        return _Parts(
            sequence=np.nonzero(valid)[0][on.numpy()],
            whole={name: part.numpy() for name, part in whole.items()},
            row=torch.cat(index).numpy(),
            feature=torch.cat(feature).numpy(),
            value=torch.cat(value).numpy(),
            pre_activation=(moved @ wanted.W_enc[:, self.number] + wanted.b_enc[self.number]).numpy(),
        )

    def _scale(self, vector: Float[Tensor, "row width"], entered: Float[Tensor, "row width"]) -> Float[Tensor, " row"]:
        """The scale of the norm at every row. Raises AssayError where it is no norm of what was added."""
        moved = vector - vector.mean(dim=1, keepdim=True) if self.centred else vector
        before, behind = moved * self.scaled, entered - self.shift
        scale: Tensor = (before * behind).sum(dim=1) / before.square().sum(dim=1).clamp_min(1e-300)
        left = (behind - scale[:, None] * before).norm(dim=1)
        if bool((left > NEAR * behind.norm(dim=1)).any()):
            raise AssayError(
                f"what enters the MLP of {self.target.place} is not a norm of what embeddings, attention and MLPs have "
                "added up to: this architecture scales or normalizes what it adds, so there is no sum to take apart, "
                "or it computes in too low a precision (load the model in float32)."
            )
        return scale


def _norm(engine: Engine, layer: int) -> nn.Module:
    """The module that gives what enters an MLP; an identity where there is none."""
    block = dict(zip((one.layer for one in engine.blocks), engine.modules, strict=True))[layer]
    met: list[tuple[nn.Module, Any]] = []
    with ExitStack() as stack:
        for module in block.modules():
            stack.callback(module.register_forward_hook(lambda own, _, given: met.append((own, given))).remove)
        entered = engine.run(engine.few_tokens(), read=("mlp_input",), layers=[layer], logits=False).mlp_input[layer]
    for module, given in met:  # the innermost that gives it ends first
        if isinstance(given, Tensor) and given.shape == entered.shape and torch.equal(given, entered):
            return module
    return nn.Identity()


def _weights_of(norm: nn.Module, width: int, like: Tensor) -> tuple[Tensor, Tensor, bool]:
    """What a norm multiplies with and adds, and whether it takes means off: by what it makes of a few vectors.

    So its kind and the names of its parameters do not matter; that it is a norm is seen where it is used.
    """
    # Far from 0, so that what keeps a norm from dividing by 0 does not count.
    signs = 1_000 * (1 - 2 * (torch.arange(width) % 2)).to(like)
    asked = torch.stack([torch.zeros_like(signs), torch.full_like(signs, 1_000.0), signs])
    with torch.no_grad():
        shift, constant, found = (norm(one[None, None])[0, 0].double().cpu() for one in asked)
    centred = bool((constant - shift).abs().max() < NEAR * (found - shift).abs().max())
    given = signs.double().cpu()
    given = given - given.mean() if centred else given
    return (found - shift) * given.square().mean().sqrt() / given, shift, centred


def _own_attention(engine: Engine, layer: int, norm: nn.Module) -> bool:
    """Whether what a block's attention adds enters the norm before its MLP: not where the two are side by side."""
    kept: list[Tensor] = []
    module = engine.mlp(layer) if isinstance(norm, nn.Identity) else norm
    hook = module.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].detach()))
    try:
        run = engine.run(engine.few_tokens(), read=STREAMS, layers=[layer], logits=False)
    finally:
        hook.remove()
    alone, both = run.residual[layer], run.residual[layer] + run.attention[layer]
    return bool((kept[0] - both).norm() <= (kept[0] - alone).norm())


@dataclass
class _Sums:
    """Sums over the positions of a split at which the target is on, by sequence: of what is not taken apart by name,
    and of features as entries (sequence, feature, sum, sum of absolute values, positions on).
    """

    split: Split
    positions: Float[np.ndarray, " sequence"] = field(init=False)
    size: Float[np.ndarray, " sequence"] = field(init=False)
    pre_activation: Float[np.ndarray, " sequence"] = field(init=False)
    whole: dict[str, Float[np.ndarray, "two sequence"]] = field(default_factory=dict)
    entries: Float[np.ndarray, "five entry"] = field(default_factory=lambda: np.zeros((5, 0)))

    def __post_init__(self) -> None:
        self.positions, self.size, self.pre_activation = np.zeros((3, len(self.split)))

    def add(self, index: Int[np.ndarray, " sequence"], parts: _Parts) -> None:
        """Take in a batch."""
        sequence = index[parts.sequence]
        np.add.at(self.positions, sequence, 1)
        np.add.at(self.pre_activation, sequence, parts.pre_activation)
        for name, values in parts.whole.items():
            own = self.whole.setdefault(name, np.zeros((2, len(self.split))))
            np.add.at(own[0], sequence, values)
            np.add.at(own[1], sequence, np.abs(values))
            np.add.at(self.size, sequence, np.abs(values))
        np.add.at(self.size, sequence[parts.row], np.abs(parts.value))
        pairs = np.stack([sequence[parts.row], parts.feature])
        different, which = np.unique(pairs, axis=1, return_inverse=True)
        sums = [
            np.bincount(which.reshape(-1), weights, different.shape[1])
            for weights in (parts.value, np.abs(parts.value), np.ones(len(parts.value)))
        ]
        self.entries = np.concatenate([self.entries, [*different.astype(float), *sums]], axis=1)

    def of(self, features: Sequence[int] | None) -> Float[np.ndarray, "three sequence"]:
        """By sequence: sum, sum of absolute values and positions on, of some features together; of all by None."""
        found = np.zeros((3, len(self.split)))
        own = self.entries if features is None else self.entries[:, np.isin(self.entries[1], features)]
        np.add.at(found.T, own[0].astype(np.int64), own[2:].T)
        return found


def _largest(found: Sequence[_Sums], count: int) -> list[int]:
    """The features of the largest share of any split."""
    shares: dict[int, float] = {}
    for own in found:
        total = np.bincount(own.entries[1].astype(np.int64), own.entries[3])
        for feature in np.flatnonzero(total).tolist():
            shares[feature] = max(shares.get(feature, 0.0), float(total[feature] / own.size.sum()))
    return sorted(shares, key=lambda feature: (-shares[feature], feature))[:count]


def _rows(
    reading: _Reading, own: _Sums, shown: Sequence[int], weights: Weights, level: float
) -> Iterator[dict[str, Any]]:
    """The rows of one split."""
    base: dict[str, Any] = {
        **dict.fromkeys(PATH_COLUMNS, np.nan),
        "split": own.split.name,
        "role": own.split.role,
        "layer": None,
        "feature": None,
        "sequences": int((own.positions > 0).sum()),
        "positions": int(own.positions.sum()),
        "reason": None,
    }
    base.pop("target")
    if not own.positions.any():
        yield base | {"source": "pre-activation", "reason": "the target is never on there"}
        return

    def measured(total: np.ndarray, absolute: np.ndarray | None) -> dict[str, Any]:
        row = _named("contribution", share_of(total, own.positions, weights, level=level))
        return row if absolute is None else row | _named("share", share_of(absolute, own.size, weights, level=level))

    for feature in shown:
        one, number = reading.name(feature)
        total, absolute, on = own.of([feature])
        yield (
            base
            | {
                "source": f"{one.name} feature {number}",
                "layer": one.place.layer,
                "feature": number,
                "weight": float(reading.weights[feature]),
                "together": float(on.sum() / own.positions.sum()),
            }
            | measured(total, absolute)
        )
    others = own.of(None) - own.of(shown)
    yield base | {"source": "other features"} | measured(others[0], others[1])
    for name, (total, absolute) in own.whole.items():
        layer = name.removeprefix("layer").partition(".")[0]
        yield base | {"source": name, "layer": int(layer) if layer.isdigit() else None} | measured(total, absolute)
    yield base | {"source": "pre-activation"} | measured(own.pre_activation, None)


def _named(name: str, found: Sequence[float]) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))
