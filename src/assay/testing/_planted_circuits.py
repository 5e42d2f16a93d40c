"""Subjects whose circuits are known, because their weights were set by hand.

Both are an ordinary GPT-2 in float64. Features have two coordinates of the width for themselves, (1, -1)/√2, so that
every vector has mean 0, and the layer norms, with an epsilon of 1e12 and weights of 1e6, are the identity to 1e-12.

The constructions are our own. That a head which looks for what another has copied from the token before continues a
repeated sequence: Elhage et al., A Mathematical Framework for Transformer Circuits, 2021.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from transformers import GPT2Config, GPT2LMHeadModel

from assay._errors import AssayError, unknown_name
from assay.subjects import Subject
from assay.tasks import NO_TOKEN, UNSCORED, Split

Changed = Literal["first", "answers", "last"]
"""What a counterfactual of `induction` swaps: the tokens looked for, those behind them, or which is asked for."""

NAMES, BIGRAMS = 8, 4
"""Tokens that may be looked for, and how many of them a sequence has."""

GAIN, SURE = 10.0, 40.0
"""Logits of an answer, and the score at which a head looks at a place: its attention elsewhere is below 1e-15."""


@dataclass(frozen=True)
class PlantedCircuit:
    """A subject, pairs that ask for its one mechanism, and the edges that this is made of; all others have no effect.

    `pairs` is a train split whose only kind is 0.
    """

    subject: Subject
    pairs: Split
    edges: tuple[str, ...]


def induction(
    sharpness: float = 3.0,
    *,
    changed: Sequence[Changed] = ("first", "answers", "last"),
    weak: float = 0.0,
    pairs: int = 60,
    seed: int = 0,
) -> PlantedCircuit:
    """A model of two layers and two heads that continues the last token as it was continued before: 46 edges.

    `layer0.head0` writes at every position which token was before. `layer1.head0` looks for the last token there, with
    a score of `sharpness` where it is found (attention is then proportional to exp(score)), and copies what stands
    there to the logits. The other heads and the MLPs read everything and write what nobody reads.

    Sequences have 10 tokens: a start, A B and C D among two other such bigrams in random order, and A again. The answer
    is B, the foil D. Counterfactuals swap, by turns of those in `changed`, A and C in their bigrams ("first"), B and D
    ("answers"), or have C at the end ("last"). `edges` are those that matter for these; for all three, five:

        embeddings -> layer0.head0.values     first
        layer0.head0 -> layer1.head0.keys     first
        embeddings -> layer1.head0.values     answers
        embeddings -> layer1.head0.queries    last
        layer1.head0 -> logits                all

    With `weak` a last token adds so much to the logit of its B by itself: a sixth edge, `embeddings -> logits`, whose
    effect on m is 2 `weak` where the last token is swapped.

    Gradients at the subject's own run vanish as exp(-sharpness): at 20 attribution there misses the edges into the
    queries and keys and the one before, which patching finds. `pairs` and `seed` say how many pairs are drawn, and
    which. Raises AssayError for no pair, and for a part in `changed` that is unknown, or none.
    """
    unknown = [part for part in changed if part not in get_args(Changed)]
    if unknown:
        raise unknown_name("part", str(unknown[0]), get_args(Changed))
    if not changed or pairs < 1:
        raise AssayError(f"induction(changed={tuple(changed)}, pairs={pairs}): give at least one part and one pair.")
    start, vocabulary, positions = 2 * NAMES, 2 * NAMES + 1, 2 * BIGRAMS + 2
    places = np.eye(positions)
    before = np.eye(positions, k=-1)
    before[0, 0] = 1
    tokens = np.eye(vocabulary)
    spoken = tokens.copy()
    spoken[start] = 0
    made = _Weights(
        {"now": vocabulary, "before": vocabulary, "place": positions, "out": vocabulary, "junk": 4}, heads=2
    )
    made.head(0, 0, ("place", SURE * before), ("place", places), ("now", tokens), ("before", tokens))
    made.head(1, 0, ("now", sharpness * tokens), ("before", tokens), ("now", spoken), ("out", tokens))
    rng = np.random.default_rng(0)
    for layer in range(2):
        junk: list[_Map] = [("", rng.normal(size=(made.features, 4)) / 4) for _ in range(3)]
        made.head(layer, 1, junk[0], junk[1], junk[2], ("junk", np.eye(4)))
        made.mlp(layer, rng.normal(size=(made.features, 16)) / 4, "junk", rng.normal(size=(16, 4)))
    continued = np.zeros((vocabulary, vocabulary))
    continued[np.arange(NAMES), NAMES + np.arange(NAMES)] = weak
    model = made.model(
        {"now": tokens}, {"place": places}, {"out": GAIN * tokens, "now": continued}, layers=2, activation="gelu_new"
    )

    draw = np.random.default_rng(seed)
    bigrams = draw.permuted(np.tile(np.arange(NAMES), (pairs, 1)), axis=1)[:, :BIGRAMS]
    order = draw.permuted(np.tile(np.arange(BIGRAMS), (pairs, 1)), axis=1)
    rows = np.arange(pairs)
    first, second = (1 + 2 * (order == place).argmax(axis=1) for place in (0, 1))  # where A and C stand
    context = np.take_along_axis(bigrams, order, axis=1)
    own = np.full((pairs, positions), start)
    own[:, 1:-1:2], own[:, 2:-1:2] = context, NAMES + context
    own[:, -1] = bigrams[:, 0]
    other = own.copy()
    part = np.array([changed[row % len(changed)] for row in range(pairs)])
    for name, shift in (("first", 0), ("answers", 1)):
        chosen = rows[part == name]
        a, c = first[chosen] + shift, second[chosen] + shift
        other[chosen, a], other[chosen, c] = own[chosen, c], own[chosen, a]
    other[part == "last", -1] = bigrams[part == "last", 1]
    edges = {
        "first": ("embeddings -> layer0.head0.values", "layer0.head0 -> layer1.head0.keys"),
        "answers": ("embeddings -> layer1.head0.values",),
        "last": ("embeddings -> layer1.head0.queries", *(["embeddings -> logits"] if weak else [])),
    }
    true = [edge for name, needed in edges.items() if name in changed for edge in needed]
    return PlantedCircuit(
        Subject(model, None, "planted-induction"),
        _pairs(own, other, NAMES + bigrams[:, 0], NAMES + bigrams[:, 1]),
        (*true, "layer1.head0 -> logits"),
    )


def either(*, pairs: int = 60, seed: int = 0) -> PlantedCircuit:
    """A model of one layer and two heads in which either of two paths is enough: 13 edges, five of them true.

    The second token is a signal, in the counterfactual another token. Both heads tell the MLP at the last position
    whether it is; m is `GAIN` if either head says so, else 0, by 1 - relu(1 - a - b). So each of the four edges into
    and out of the heads has no effect alone, in patching and in gradients at the subject's own run; both of a pair
    together have all of it. (Integrated gradients give each a half.) Raises AssayError for no pair.
    """
    if pairs < 1:
        raise AssayError(f"either(pairs={pairs}): give at least one pair.")
    start, ask, yes, no = range(2 * NAMES, 2 * NAMES + 4)
    vocabulary, positions = no + 1, 3
    places, tokens = np.eye(positions), np.eye(vocabulary)
    looks = np.zeros((positions, positions))
    looks[:, 1] = SURE
    signal = (np.arange(vocabulary) < NAMES).astype(float)[:, None]
    made = _Weights({"now": vocabulary, "place": positions, "heard": 2, "out": 1}, heads=2)
    for head in range(2):
        made.head(0, head, ("place", looks), ("place", places), ("now", signal), ("heard", np.eye(2)[head][None]))
    made.mlp(0, made.reading("heard", np.full((2, 1), -1.0)), "out", np.full((1, 1), -1.0), inner=1.0, outer=1.0)
    answers = np.zeros((vocabulary, 1))
    answers[yes], answers[no] = GAIN / 2, -GAIN / 2
    model = made.model({"now": tokens}, {"place": places}, {"out": answers.T}, layers=1, activation="relu")

    draw = np.random.default_rng(seed)
    own = np.full((pairs, positions), start)
    own[:, -1] = ask
    other = own.copy()
    own[:, 1] = draw.integers(NAMES, size=pairs)
    other[:, 1] = NAMES + draw.integers(NAMES, size=pairs)
    heads = [f"layer0.head{head}" for head in range(2)]
    edges = [f"embeddings -> {head}.values" for head in heads] + [f"{head} -> layer0.mlp" for head in heads]
    return PlantedCircuit(
        Subject(model, None, "planted-either"),
        _pairs(own, other, np.full(pairs, yes), np.full(pairs, no)),
        (*edges, "layer0.mlp -> logits"),
    )


def _pairs(
    own: Int[np.ndarray, "pair position"],
    other: Int[np.ndarray, "pair position"],
    answers: Int[np.ndarray, " pair"],
    foils: Int[np.ndarray, " pair"],
) -> Split:
    """Pairs whose last position is scored."""

    def at_last(values: Any, elsewhere: int) -> Int[np.ndarray, "pair position"]:
        found = np.full(own.shape, elsewhere)
        found[:, -1] = values
        return found

    return Split(
        name="train",
        role="train",
        description="pairs for a planted circuit",
        tokens=own,
        lengths=np.full(len(own), own.shape[1]),
        kinds=at_last(0, UNSCORED),
        counterfactuals=other,
        answers=at_last(answers, NO_TOKEN),
        foils=at_last(foils, NO_TOKEN),
    )


_Map = tuple[str, Float[np.ndarray, "_ _"]]
"""Numbers that are read from the features of a group ("" for all features), or written to them."""


class _Weights:
    """Weights of a GPT-2 in terms of features: groups of them, by name and size, with two coordinates each."""

    def __init__(self, groups: Mapping[str, int], *, heads: int) -> None:
        self.features, self.heads = sum(groups.values()), heads
        self.width = 2 * self.features
        directions = np.zeros((self.features, self.width))
        directions[np.arange(self.features), 2 * np.arange(self.features)] = 2**-0.5
        directions[np.arange(self.features), 2 * np.arange(self.features) + 1] = -(2**-0.5)
        ends = np.cumsum(list(groups.values()))
        starts = ends - list(groups.values())
        places = zip(groups, starts.tolist(), ends.tolist(), strict=True)
        self.places = {"": slice(0, self.features)} | {name: slice(start, end) for name, start, end in places}
        self.directions = directions
        self.weights: dict[str, np.ndarray] = {}

    def reading(self, group: str, numbers: Float[np.ndarray, "_ number"]) -> Float[np.ndarray, "feature number"]:
        """What reads numbers from the features of a group, and nothing from others."""
        found = np.zeros((self.features, numbers.shape[1]))
        found[self.places[group]] = numbers
        return found

    def head(self, layer: int, head: int, queries: _Map, keys: _Map, values: _Map, writes: _Map) -> None:  # noqa: PLR0917
        """A head whose scores are queries times keys, and which writes its values to the features of a group."""
        size = self.width // self.heads
        projection = self._weight(f"h.{layer}.attn.c_attn.weight", (self.width, 3 * self.width))
        for part, (group, numbers) in enumerate((queries, keys, values)):
            start = part * self.width + head * size
            scale = math.sqrt(size) if part == 0 else 1.0
            read = self.directions.T @ self.reading(group, numbers)
            projection[:, start : start + numbers.shape[1]] = scale * read
        group, numbers = writes
        output = self._weight(f"h.{layer}.attn.c_proj.weight", (self.width, self.width))
        rows = slice(head * size, head * size + len(numbers))
        output[rows] = numbers @ self.directions[self.places[group]]

    def mlp(  # noqa: PLR0917
        self,
        layer: int,
        reads: Float[np.ndarray, "feature inner"],
        group: str,
        writes: Float[np.ndarray, "inner _"],
        inner: float = 0.0,
        outer: float = 0.0,
    ) -> None:
        """An MLP that reads all features and writes to those of a group, with constants added within and behind."""
        name = f"h.{layer}.mlp"
        self.weights[f"{name}.c_fc.weight"] = self.directions.T @ reads
        self.weights[f"{name}.c_fc.bias"] = np.full(reads.shape[1], inner)
        self.weights[f"{name}.c_proj.weight"] = writes @ self.directions[self.places[group]]
        self.weights[f"{name}.c_proj.bias"] = outer * self.directions[self.places[group]].sum(axis=0)

    def model(
        self,
        tokens: Mapping[str, Float[np.ndarray, "token _"]],
        places: Mapping[str, Float[np.ndarray, "position _"]],
        logits: Mapping[str, Float[np.ndarray, "_ token"]],
        *,
        layers: int,
        activation: str,
    ) -> GPT2LMHeadModel:
        """The model; tokens and places write to features, logits read them, by group."""
        written = [
            sum(numbers @ self.directions[self.places[group]] for group, numbers in each.items())
            for each in (tokens, places)
        ]
        read = sum(numbers.T @ self.directions[self.places[group]] for group, numbers in logits.items())
        assert isinstance(read, np.ndarray)
        config = GPT2Config(
            vocab_size=len(read),
            n_positions=len(written[1]),  # type: ignore[arg-type]
            n_embd=self.width,
            n_layer=layers,
            n_head=self.heads,
            n_inner=self.weights["h.0.mlp.c_fc.weight"].shape[1],
            activation_function=activation,
            layer_norm_epsilon=1e12,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
        )
        with torch.random.fork_rng(devices=[]):
            model = GPT2LMHeadModel(config).double().eval()
        given = self.weights | {"wte.weight": written[0], "wpe.weight": written[1]}
        with torch.no_grad():
            for name, parameter in model.transformer.named_parameters():
                if name in given:
                    parameter.copy_(torch.from_numpy(given[name]))
                else:
                    parameter.fill_(1e6 if "ln_" in name and name.endswith("weight") else 0.0)
            model.lm_head.weight.copy_(torch.from_numpy(read))
        return model

    def _weight(self, name: str, shape: tuple[int, int]) -> np.ndarray:
        return self.weights.setdefault(name, np.zeros(shape))
