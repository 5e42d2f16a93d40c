"""Circuits of transcoders, by weights: what the features of earlier layers add to a feature of a later one."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
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
from assay.dictionaries import Codes
from assay.engine import Engine, Run, batches, tensors
from assay.faithfulness import Weights
from assay.faithfulness._summary import weights_of
from assay.simplify import Simplification, label
from assay.subjects import Subject
from assay.tasks import Split, Task, bound

PATH_COLUMNS = (
    "split", "role", "target", "path", "steps", "source", "layer", "feature", "sequences", "positions", "weight",
    "together", *(f"{name}{end}" for name in ("contribution", "share", "error") for end in ("", "_low", "_high")),
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
    steps: int = 1,
    count: int = 10,
    splits: Sequence[str] | None = None,
    sequences: int = 500,
    resamples: int = 2_000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """What turns a feature of a later transcoder on, by features of earlier ones: one row a (split, path).

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
    single sources (every feature by itself), in [0, 1]. `error` is what the errors of all transcoders together have of
    the shares of all sources of the same feature: it stands beside every path into that feature, and where it is large,
    the transcoders do not say what turns it on. All have `_low` and `_high`, over whole sequences (BCa). `weight` is
    <W_dec,i, g_j>, which no input changes but for the factor s z_i; `together` is the share of the same positions at
    which the source is on: a large weight between features that are never on together explains nothing.

    With `steps` above 1 paths are followed back. Where a source is a feature i that is on, z_i is its own
    pre-activation (of a gated one, its magnitude), so again such a sum: a path of two steps adds s <W_dec,i, g_j> times
    a part of z_i, and so on. The `count` paths of the largest share of any split are followed by one step more.
    Rows whose `path` goes on with another row's ("layer0.mlp feature 12 -> layer1.mlp feature 3 -> ...") add up to its
    `contribution`, and to its `share`, which is divided among the sources of feature i by their absolute parts, a
    position at a time. `weight` is the product along the path, and `together` counts where all of its features are on.

    All of a path is at one position, through the residual stream alone: what comes by way of attention is in
    "attention", at any step. `fitted` is a recipe of transcoders at several MLPs; `place` that of the target
    ("layer1.mlp"; by default the last).

    Source: Dunefsky, Chlenski and Nanda (arXiv 2406.11944). Differences: the scale of the norm is held and its mean
    taken off exactly, in place of a constant ratio; errors and constants stand beside features; intervals, and shifts.

    Raises AssayError for a recipe without transcoders before the target, a dictionary that is none, a target that
    normalizes what it encodes (and with several steps any that does), an unknown feature, place or split, and an
    architecture where what enters the norm is not the sum of what was added (norms behind an MLP or attention, a scaled
    residual).
    """
    for name, value in (("count", count), ("steps", steps)):
        if value < 1:
            raise AssayError(f"transcoder_paths({name}={value}): must be at least 1.")
    task = bound(task, subject.tokenizer)
    engine = Engine(subject)
    target, before = _asked(fitted, place, steps)
    number = target.checked(feature)
    circuit = _Circuit(engine, target, before)
    chosen = chosen_splits(task, splits, sequences)
    weights = {split.name: weights_of(split, seed=seed, resamples=resamples) for split in chosen}
    rows: dict[str, list[dict[str, Any]]] = {split.name: [] for split in chosen}
    nodes = [circuit.node(number)]
    whole: dict[str, _Sums] = {}
    for _ in range(steps):
        found = {split.name: [_Sums(split) for _ in nodes] for split in chosen}
        for split in chosen:
            for index, every in circuit.batches(split, nodes):
                for sums, parts in zip(found[split.name], every, strict=True):
                    sums.add(index, parts)
        whole = whole or {name: sums for name, (sums,) in found.items()}
        shown = _largest(found, whole, count)
        for split in chosen:
            for which, (node, own) in enumerate(zip(nodes, found[split.name], strict=True)):
                features = [one for at, one in shown if at == which]
                rows[split.name] += _rows(node, own, whole[split.name], features, weights[split.name], level)
        nodes = [nodes[at].back(one) for at, one in shown]
        if not nodes:
            break
    name = f"{target.name} feature {number}"
    every_row = [{"target": name} | row for own in rows.values() for row in own]
    return pd.DataFrame(every_row, columns=list(PATH_COLUMNS)).astype({"layer": "Int64", "feature": "Int64"})


def _asked(fitted: Simplification, place: str | None, steps: int = 1) -> tuple[Encoded, list[Encoded]]:
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
    for one in (target, *(before if steps > 1 else ())):
        if one.dictionary.normalization is not None:
            raise AssayError(
                f"the transcoder at {one.name} normalizes what it encodes ({one.dictionary.normalization}), so that "
                "its pre-activations are no sum over what came before."
            )
    return target, before


@dataclass(frozen=True)
class _Parts:
    """What was added to a target by all sources of a feature on one path, at the positions where that path is on.

    `whole` has what is not taken apart, by name; of features there are entries: row, number among all features of all
    transcoders, and contribution; together they make `total`. `sequence` says in which sequence of the batch a row is.
    `ratio` is what an absolute contribution is to be multiplied with for its share: 1 in the first step, and such that
    the shares of a feature's sources make its own.
    """

    sequence: Int[np.ndarray, " row"]
    whole: Mapping[str, Float[np.ndarray, " row"]]
    row: Int[np.ndarray, " entry"]
    feature: Int[np.ndarray, " entry"]
    value: Float[np.ndarray, " entry"]
    ratio: Float[np.ndarray, " row"]
    total: Float[np.ndarray, " row"]


@dataclass(frozen=True)
class _Norm:
    """The norm before an MLP: `scaled` is what it multiplies with (γ), by which its scale at a position is found.

    `shift` is what it adds (β), `centred` says whether it takes means off, `own` whether what the attention of the same
    block adds enters it.
    """

    layer: int
    scaled: Float[Tensor, " width"]
    shift: Float[Tensor, " width"]
    centred: bool
    own: bool

    @classmethod
    def of(cls, engine: Engine, layer: int, width: int) -> "_Norm":
        """That of a layer."""
        norm = _norm(engine, layer)
        weights = _weights_of(norm, width, next(engine.subject.model.parameters()))
        return cls(layer, *weights, _own_attention(engine, layer, norm))

    def scale(self, vector: Float[Tensor, "row width"], entered: Float[Tensor, "row width"]) -> Float[Tensor, " row"]:
        """The scale at every row. Raises AssayError where what entered is no norm of what was added up to."""
        moved = vector - vector.mean(dim=1, keepdim=True) if self.centred else vector
        before, behind = moved * self.scaled, entered - self.shift
        scale: Tensor = (before * behind).sum(dim=1) / before.square().sum(dim=1).clamp_min(1e-300)
        left = (behind - scale[:, None] * before).norm(dim=1)
        if bool((left > NEAR * behind.norm(dim=1)).any()):
            raise AssayError(
                f"what enters the MLP of layer{self.layer} is not a norm of what embeddings, attention and MLPs have "
                "added up to: this architecture scales or normalizes what it adds, so there is no sum to take apart, "
                "or it computes in too low a precision (load the model in float32)."
            )
        return scale


class _Circuit:
    """Transcoders up to that of a target, with the norms before their MLPs; all of their features are numbered on."""

    def __init__(self, engine: Engine, target: Encoded, before: Sequence[Encoded]) -> None:
        self.engine, self.target, self.before = engine, target, before
        self.layers = tuple(block.layer for block in engine.blocks if block.layer < target.place.layer)
        self.starts = np.cumsum([0, *(one.dictionary.features for one in before)])[:-1]
        self._norms: dict[int, _Norm] = {}

    def norm(self, layer: int) -> _Norm:
        """The norm before the MLP of a layer."""
        if layer not in self._norms:
            self._norms[layer] = _Norm.of(self.engine, layer, self.target.dictionary.width)
        return self._norms[layer]

    def named(self, feature: int) -> tuple[int, int]:
        """The transcoder (its place among those before) and the number there of a feature."""
        place = int(np.searchsorted(self.starts, feature, side="right")) - 1
        return place, feature - int(self.starts[place])

    def node(self, number: int) -> "_Node":
        """The target itself."""
        return _Node(self, self.target, number, None, 1.0)

    def batches(
        self, split: Split, nodes: "Sequence[_Node]"
    ) -> Iterator[tuple[Int[np.ndarray, " sequence"], list[_Parts]]]:
        """The parts of all nodes, paths to one target, on every batch of a split."""
        layers = [*self.layers, self.target.place.layer]
        with self.engine.ready():
            for index, batch in batches(self.engine, split):
                tokens, valid = tensors(batch, self.engine.subject.device)
                run = self.engine.run(tokens, valid, read=STREAMS, layers=layers, logits=False)
                there = _Rows(self, run, batch.valid.astype(bool), nodes[0].target)
                yield index, [there.parts(node) for node in nodes]


@dataclass(frozen=True, eq=False)
class _Node:
    """A feature on a path to a target, and what its pre-activation reads in what was before.

    `after` is the feature that it adds to, None for the target; `weight` the product of the weights from there on.
    """

    circuit: _Circuit
    one: Encoded
    number: int
    after: "_Node | None"
    weight: float

    @property
    def target(self) -> "_Node":
        """The end of the path."""
        return self if self.after is None else self.after.target

    @property
    def steps(self) -> int:
        """How many steps a path has that ends here with one more."""
        return 1 if self.after is None else self.after.steps + 1

    @property
    def path(self) -> str:
        """The path from here on."""
        own = f"{self.one.name} feature {self.number}"
        return own if self.after is None else f"{own} -> {self.after.path}"

    @cached_property
    def norm(self) -> _Norm:
        """The norm of what it reads."""
        return self.circuit.norm(self.one.place.layer)

    @cached_property
    def before(self) -> Sequence[Encoded]:
        """The transcoders before."""
        return [one for one in self.circuit.before if one.place.layer < self.one.place.layer]

    @cached_property
    def read(self) -> tuple[Float[Tensor, " width"], float]:
        """What is multiplied with the vector that enters the MLP, and what is added to that: z of a feature that is on.

        Of a gated feature its magnitude; of the target its gate, which says whether it is on.
        """
        own = self.one.dictionary.to(torch.zeros(1, dtype=torch.float64))
        column, bias = own.W_enc[:, self.number].cpu(), float(own.b_enc[self.number])
        if own.kind == "gated" and self.after is not None:
            assert own.r_mag is not None
            assert own.b_mag is not None
            column, bias = column * own.r_mag[self.number].exp().cpu(), float(own.b_mag[self.number])
        return column, bias - float(own.b_dec.cpu() @ column) if own.pre_bias else bias

    @cached_property
    def direction(self) -> Float[Tensor, " width"]:
        """g_j: with s the scale of the norm and v what it is of, the pre-activation is s <v, g_j> + bias."""
        found = self.norm.scaled * self.read[0]
        return found - found.mean() if self.norm.centred else found

    @cached_property
    def weights(self) -> Float[np.ndarray, " feature"]:
        """<W_dec,i, g_j> of all features before."""
        decoders = [one.dictionary.W_dec.double().cpu() @ self.direction for one in self.before]
        return torch.cat(decoders).numpy() if decoders else np.zeros(0)

    def back(self, feature: int) -> "_Node":
        """A feature before as the start of a path through this one."""
        place, number = self.circuit.named(feature)
        return _Node(self.circuit, self.before[place], number, self, self.weight * float(self.weights[feature]))


@dataclass(frozen=True)
class _Reached:
    """A path in a batch: the rows where it is on, and at each of them the norm's scale, the factor that what its
    feature reads is multiplied with on the way to the target, and the ratio of shares (see `_Parts`).
    """

    rows: Int[Tensor, " row"]
    scale: Float[Tensor, " row"]
    factor: Float[Tensor, " row"]
    ratio: Float[Tensor, " row"]
    parts: _Parts


class _Rows:
    """A batch at the positions where a target is on: what was added there by everything before."""

    def __init__(
        self, circuit: _Circuit, run: Run, valid: Bool[np.ndarray, "sequence position"], target: _Node
    ) -> None:
        self._circuit, self._run, self._target = circuit, run, target
        self._valid = torch.from_numpy(valid)
        layer = target.one.place.layer
        codes = target.one.dictionary.encode(self._all("mlp_input", layer))
        self._on = codes.rows[codes.index == target.number]
        self._sequence = np.nonzero(valid)[0][self._on.numpy()]
        self._held: dict[tuple[str, int], Tensor] = {}
        self._codes: dict[int, Codes] = {}
        self._reached: dict[_Node, _Reached] = {}

    def _all(self, stream: str, layer: int) -> Float[Tensor, "row width"]:
        found: Tensor = getattr(self._run, stream)[layer].detach().cpu()[self._valid]
        return found.double()

    def _at(self, stream: str, layer: int) -> Float[Tensor, "row width"]:
        if (stream, layer) not in self._held:
            self._held[stream, layer] = self._all(stream, layer)[self._on]
        return self._held[stream, layer]

    def _coded(self, place: int) -> Codes:
        """The codes of one of the transcoders before, at all rows."""
        if place not in self._codes:
            one = self._circuit.before[place]
            self._codes[place] = one.dictionary.encode(self._at("mlp_input", one.place.layer))
        return self._codes[place]

    def parts(self, node: _Node) -> _Parts:
        """What was added on one path."""
        return self._of(node).parts

    def _of(self, node: _Node) -> _Reached:
        if node not in self._reached:
            self._reached[node] = self._reach(node)
        return self._reached[node]

    def _reach(self, node: _Node) -> _Reached:
        """Where a path is on, and the parts of its feature's pre-activation there."""
        if node.after is None:
            rows = torch.arange(len(self._on))
            factor, passed = torch.ones(len(rows), dtype=torch.float64), None
        else:
            after = self._of(node.after)
            place = node.after.before.index(node.one)
            codes = self._coded(place)
            mine = codes.index == node.number
            active = torch.zeros(len(self._on), dtype=torch.float64)
            active[codes.rows[mine]] = codes.value[mine].double()
            kept = active[after.rows] > 0
            rows = after.rows[kept]
            weight = float(node.after.weights[int(self._circuit.starts[place]) + node.number])
            factor, passed = after.factor[kept] * after.scale[kept] * weight, after.ratio[kept] * active[rows]
        scale, whole, entries = self._sources(node, rows)
        size = torch.stack([part.abs() for part in whole.values()]).sum(dim=0)
        size = size.index_add(0, entries[0], entries[2].abs())
        ratio = torch.ones_like(size) if passed is None else passed / size
        column, bias = node.read
        total = self._at("mlp_input", node.one.place.layer)[rows] @ column + bias
        found = _Parts(
            sequence=self._sequence[rows.numpy()],
            whole={name: (factor * part).numpy() for name, part in whole.items()},
            row=entries[0].numpy(),
            feature=entries[1].numpy(),
            value=(factor[entries[0]] * entries[2]).numpy(),
            ratio=ratio.numpy(),
            total=(factor * total).numpy(),
        )
        return _Reached(rows, scale, factor, ratio, found)

    def _sources(
        self, node: _Node, rows: Int[Tensor, " row"]
    ) -> tuple[Float[Tensor, " row"], dict[str, Tensor], tuple[Tensor, Tensor, Tensor]]:
        """The scale of the norm before a feature, the parts of its pre-activation that are not taken apart, and those
        of features as entries: row among these, number of the feature, part.
        """
        layer = node.one.place.layer
        layers = [at for at in self._circuit.layers if at < layer]
        added = {"embeddings": self._at("residual", min([*layers, layer]))[rows]}
        attended = [*layers, *([layer] if node.norm.own else [])]
        added |= {f"layer{at}.attention": self._at("attention", at)[rows] for at in attended}
        given = {at: self._at("mlp", at)[rows] for at in layers}
        vector = torch.stack([*added.values(), *given.values()]).sum(dim=0)
        scale = node.norm.scale(vector, self._at("mlp_input", layer)[rows])
        whole = {name: scale * (part @ node.direction) for name, part in added.items()}
        entries = [(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), scale[:0])]
        place_of = torch.full((len(self._on),), -1).index_put((rows,), torch.arange(len(rows)))
        for place, one in enumerate(node.before):
            at, dictionary, codes = one.place.layer, one.dictionary.to(vector), self._coded(place)
            kept = place_of[codes.rows] >= 0
            row, index = place_of[codes.rows][kept], codes.index[kept]
            weights = torch.from_numpy(node.weights)[int(self._circuit.starts[place]) + index]
            parts = scale[row] * codes.value[kept].double() * weights
            entries.append((row, index + int(self._circuit.starts[place]), parts))
            base = dictionary.without_features(self._at("mlp_input", at)[rows])
            whole[f"{one.name} constant"] = scale * (dictionary.b_dec @ node.direction)
            if dictionary.W_skip is not None:
                whole[f"{one.name} skip"] = scale * ((base - dictionary.b_dec) @ node.direction)
            left = scale * ((given.pop(at) - base) @ node.direction)
            whole[f"{one.name} error"] = left.index_add(0, row, parts, alpha=-1)
        whole |= {f"layer{at}.mlp": scale * (part @ node.direction) for at, part in given.items()}
        column, bias = node.read
        whole["bias"] = torch.full_like(scale, float(node.norm.shift @ column) + bias)
        row, feature, value = (torch.cat(part) for part in zip(*entries, strict=True))
        return scale, whole, (row, feature, value)


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
    """Sums over the positions of a split at which a path is on, by sequence: of what is not taken apart by name,
    and of features as entries (sequence, feature, sum, sum of what makes shares, positions on).
    """

    split: Split
    positions: Float[np.ndarray, " sequence"] = field(init=False)
    size: Float[np.ndarray, " sequence"] = field(init=False)
    total: Float[np.ndarray, " sequence"] = field(init=False)
    whole: dict[str, Float[np.ndarray, "two sequence"]] = field(default_factory=dict)
    entries: Float[np.ndarray, "five entry"] = field(default_factory=lambda: np.zeros((5, 0)))

    def __post_init__(self) -> None:
        self.positions, self.size, self.total = np.zeros((3, len(self.split)))

    def add(self, index: Int[np.ndarray, " sequence"], parts: _Parts) -> None:
        """Take in a batch."""
        sequence = index[parts.sequence]
        np.add.at(self.positions, sequence, 1)
        np.add.at(self.total, sequence, parts.total)
        for name, values in parts.whole.items():
            own = self.whole.setdefault(name, np.zeros((2, len(self.split))))
            np.add.at(own[0], sequence, values)
            shares = parts.ratio * np.abs(values)
            np.add.at(own[1], sequence, shares)
            np.add.at(self.size, sequence, shares)
        of_entries = parts.ratio[parts.row] * np.abs(parts.value)
        np.add.at(self.size, sequence[parts.row], of_entries)
        pairs = np.stack([sequence[parts.row], parts.feature])
        different, which = np.unique(pairs, axis=1, return_inverse=True)
        sums = [
            np.bincount(which.reshape(-1), weights, different.shape[1])
            for weights in (parts.value, of_entries, np.ones(len(parts.value)))
        ]
        self.entries = np.concatenate([self.entries, [*different.astype(float), *sums]], axis=1)

    def of(self, features: Sequence[int] | None) -> Float[np.ndarray, "three sequence"]:
        """By sequence: sum, sum of what makes shares and positions on, of some features together; of all by None."""
        found = np.zeros((3, len(self.split)))
        own = self.entries if features is None else self.entries[:, np.isin(self.entries[1], features)]
        np.add.at(found.T, own[0].astype(np.int64), own[2:].T)
        return found

    @property
    def errors(self) -> Float[np.ndarray, " sequence"]:
        """By sequence, what makes the shares of the errors of all transcoders."""
        own = [values[1] for name, values in self.whole.items() if name.endswith(" error")]
        found: np.ndarray = np.sum(own, axis=0) if own else np.zeros(len(self.split))
        return found


def _largest(found: Mapping[str, Sequence[_Sums]], whole: Mapping[str, _Sums], count: int) -> list[tuple[int, int]]:
    """The paths of the largest share of any split: which of those that are followed, and the feature before."""
    shares: dict[tuple[int, int], float] = {}
    for split, every in found.items():
        size = float(whole[split].size.sum())
        for place, own in enumerate(every):
            total = np.bincount(own.entries[1].astype(np.int64), own.entries[3])
            for feature in np.flatnonzero(total).tolist():
                key = place, feature
                shares[key] = max(shares.get(key, 0.0), float(total[feature] / size))
    return sorted(shares, key=lambda key: (-shares[key], key))[:count]


def _rows(  # noqa: PLR0917
    node: _Node, own: _Sums, whole: _Sums, shown: Sequence[int], weights: Weights, level: float
) -> Iterator[dict[str, Any]]:
    """The rows of the sources of one feature on one path; `whole` are the sums of the target."""
    base: dict[str, Any] = {
        **dict.fromkeys(PATH_COLUMNS, np.nan),
        "split": own.split.name,
        "role": own.split.role,
        "steps": node.steps,
        "layer": None,
        "feature": None,
        "sequences": int((own.positions > 0).sum()),
        "positions": int(own.positions.sum()),
        "reason": None,
    }
    base.pop("target")

    def entry(source: str, **more: Any) -> dict[str, Any]:
        return base | {"source": source, "path": f"{source} -> {node.path}"} | more

    if not own.positions.any():
        if node.after is None:
            yield entry("pre-activation", path=node.path, reason="the target is never on there")
        else:
            yield entry("other features", reason="the path is never on there")
        return
    error = _named("error", share_of(own.errors, own.size, weights, level=level))

    def measured(total: np.ndarray, shares: np.ndarray) -> dict[str, Any]:
        return (
            _named("contribution", share_of(total, whole.positions, weights, level=level))
            | _named("share", share_of(shares, whole.size, weights, level=level))
            | error
        )

    for feature in shown:
        before = node.back(feature)
        total, shares, on = own.of([feature])
        yield (
            entry(
                f"{before.one.name} feature {before.number}",
                layer=before.one.place.layer,
                feature=before.number,
                weight=before.weight,
                together=float(on.sum() / whole.positions.sum()),
            )
            | measured(total, shares)
        )
    others = own.of(None) - own.of(shown)
    yield entry("other features") | measured(others[0], others[1])
    for name, (total, shares) in own.whole.items():
        layer = name.removeprefix("layer").partition(".")[0]
        yield entry(name, layer=int(layer) if layer.isdigit() else None) | measured(total, shares)
    if node.after is None:
        total = share_of(own.total, own.positions, weights, level=level)
        yield entry("pre-activation", path=node.path) | _named("contribution", total)


def _named(name: str, found: Sequence[float]) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))
