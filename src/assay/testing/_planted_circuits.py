"""Subjects whose circuits are known, because their weights were set by hand (see `HandMade`), in float64.

The constructions are our own. That a head which looks for what another has copied from the token before continues a
repeated sequence: Elhage et al., A Mathematical Framework for Transformer Circuits, 2021.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Int
from transformers import GPT2LMHeadModel

from assay._errors import AssayError, unknown_name
from assay.subjects import Subject
from assay.tasks import NO_TOKEN, UNSCORED, Split
from assay.testing._hand_made import HandMade, Map

Changed = Literal["first", "answers", "last"]
"""What a counterfactual of `induction` swaps: the tokens looked for, those behind them, or which is asked for."""

NAMES, BIGRAMS = 8, 4
"""Tokens that may be looked for, and how many of them a sequence has."""

GAIN, SURE = 10.0, 40.0
"""Logits of an answer, and the score at which a head looks at a place: its attention elsewhere is below 1e-15."""

UNDONE = 1.5
"""What the two heads of `cancelling` copy, as a multiple of what the true one does: enough to turn the answer."""


@dataclass(frozen=True)
class PlantedCircuit:
    """A subject, pairs that ask for its one mechanism, and the edges that this is made of; all others have no effect.

    `undone` are edges of another sort: each has an effect by itself, which others of them undo, so that all of them
    together have none. They are no part of the mechanism. `pairs` is a train split whose only kind is 0.
    """

    subject: Subject
    pairs: Split
    edges: tuple[str, ...]
    undone: tuple[str, ...] = ()


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
    made = HandMade(_GROUPS, heads=2)
    _induction_heads(made, sharpness)
    for layer in range(2):
        _junk(made, layer, heads=(1,))
    edges = {
        "first": ("embeddings -> layer0.head0.values", "layer0.head0 -> layer1.head0.keys"),
        "answers": ("embeddings -> layer1.head0.values",),
        "last": ("embeddings -> layer1.head0.queries", *(["embeddings -> logits"] if weak else [])),
    }
    true = [edge for name, needed in edges.items() if name in changed for edge in needed]
    return PlantedCircuit(
        Subject(_continuing(made, weak), None, "planted-induction"),
        _bigram_pairs(changed, pairs, seed),
        (*true, "layer1.head0 -> logits"),
    )


def cancelling(sharpness: float = 3.0, *, pairs: int = 60, seed: int = 0) -> PlantedCircuit:
    """The model of `induction` with four heads a layer, two of which undo each other, and one that only looks right.

    `layer1.head2` and `layer1.head3` look where `layer1.head0` looks, and copy what stands there to the logits, one
    with a factor of `UNDONE`, the other of -`UNDONE`. Whoever ablates one thing at a time sees the model break without
    one of them, and be surer without the other; without both, or with both as in the counterfactual, not a logit
    changes. Their edges are `undone`; `edges` are the five of `induction`, and the two heads belong to no mechanism.
    `layer0.head1` attends to the token before, as `layer0.head0` does, and writes nothing: who judges by patterns finds
    it. All other heads and the MLPs write what nobody reads. 110 edges. Raises AssayError for no pair.
    """
    if pairs < 1:
        raise AssayError(f"cancelling(pairs={pairs}): give at least one pair.")
    made = HandMade({**_GROUPS, "spare": 1}, heads=4)  # one feature more, so that four heads share the width
    _induction_heads(made, sharpness)
    _previous(made, 1, writes=False)
    for head, factor in ((2, UNDONE), (3, -UNDONE)):
        _copying(made, head, sharpness, factor)
    for layer, heads in enumerate(((2, 3), (1,))):
        _junk(made, layer, heads)
    changed = get_args(Changed)
    known = induction(sharpness, changed=changed, pairs=1)
    undone = [
        edge
        for head in ("layer1.head2", "layer1.head3")
        for edge in (
            f"layer0.head0 -> {head}.keys",
            f"embeddings -> {head}.values",
            f"embeddings -> {head}.queries",
            f"{head} -> logits",
        )
    ]
    return PlantedCircuit(
        Subject(_continuing(made, 0.0), None, "planted-cancelling"),
        _bigram_pairs(changed, pairs, seed),
        known.edges,
        tuple(undone),
    )


def nothing(*, pairs: int = 60, seed: int = 0) -> PlantedCircuit:
    """The model of `induction` without its two heads: nothing is planted, and no edge has an effect.

    The last token alone tells its B, which the embeddings give to the logits; counterfactuals change only the tokens
    before it. All heads and MLPs read everything and write what nobody reads. What finds an edge here invents it.
    Raises AssayError for no pair.
    """
    if pairs < 1:
        raise AssayError(f"nothing(pairs={pairs}): give at least one pair.")
    made = HandMade(_GROUPS, heads=2)
    for layer in range(2):
        _junk(made, layer, heads=(0, 1))
    return PlantedCircuit(
        Subject(_continuing(made, GAIN), None, "planted-nothing"), _bigram_pairs(("first", "answers"), pairs, seed), ()
    )


_START, _VOCABULARY, _POSITIONS = 2 * NAMES, 2 * NAMES + 1, 2 * BIGRAMS + 2
_TOKENS, _PLACES = np.eye(_VOCABULARY), np.eye(_POSITIONS)
_GROUPS = {"now": _VOCABULARY, "before": _VOCABULARY, "place": _POSITIONS, "out": _VOCABULARY, "junk": 4}


def _induction_heads(made: HandMade, sharpness: float) -> None:
    """The first head of both layers."""
    _previous(made, 0)
    _copying(made, 0, sharpness, 1.0)


def _previous(made: HandMade, head: int, *, writes: bool = True) -> None:
    """A head of the first layer that attends to the token before, and writes which it is, or nothing."""
    before = np.eye(_POSITIONS, k=-1)
    before[0, 0] = 1
    made.head(0, head, ("place", SURE * before), ("place", _PLACES), ("now", _TOKENS), ("before", writes * _TOKENS))


def _copying(made: HandMade, head: int, sharpness: float, factor: float) -> None:
    """A head of the second layer that looks for the last token before others, and copies those to the logits."""
    spoken = _TOKENS.copy()
    spoken[_START] = 0
    made.head(1, head, ("now", sharpness * _TOKENS), ("before", _TOKENS), ("now", spoken), ("out", factor * _TOKENS))


def _junk(made: HandMade, layer: int, heads: Sequence[int]) -> None:
    """Some heads of a layer, and its MLP, read everything and write what nobody reads."""
    rng = np.random.default_rng(layer)
    for head in heads:
        junk: list[Map] = [("", rng.normal(size=(made.features, 4)) / 4) for _ in range(3)]
        made.head(layer, head, junk[0], junk[1], junk[2], ("junk", np.eye(4)))
    made.mlp(layer, rng.normal(size=(made.features, 16)) / 4, "junk", rng.normal(size=(16, 4)))


def _continuing(made: HandMade, weak: float) -> GPT2LMHeadModel:
    """The model whose logits are what is copied, and `weak` for what a last token tells by itself."""
    continued = np.zeros((_VOCABULARY, _VOCABULARY))
    continued[np.arange(NAMES), NAMES + np.arange(NAMES)] = weak
    return made.model(
        {"now": _TOKENS},
        {"place": _PLACES},
        {"out": GAIN * _TOKENS, "now": continued},
        layers=2,
        activation="gelu_new",
    )


def _bigram_pairs(changed: Sequence[Changed], pairs: int, seed: int) -> Split:
    """Bigrams in random order and a first token again, beside the same with a part changed, by turns."""
    draw = np.random.default_rng(seed)
    bigrams = draw.permuted(np.tile(np.arange(NAMES), (pairs, 1)), axis=1)[:, :BIGRAMS]
    order = draw.permuted(np.tile(np.arange(BIGRAMS), (pairs, 1)), axis=1)
    rows = np.arange(pairs)
    first, second = (1 + 2 * (order == place).argmax(axis=1) for place in (0, 1))  # where A and C stand
    context = np.take_along_axis(bigrams, order, axis=1)
    own = np.full((pairs, _POSITIONS), _START)
    own[:, 1:-1:2], own[:, 2:-1:2] = context, NAMES + context
    own[:, -1] = bigrams[:, 0]
    other = own.copy()
    part = np.array([changed[row % len(changed)] for row in range(pairs)])
    for name, shift in (("first", 0), ("answers", 1)):
        chosen = rows[part == name]
        a, c = first[chosen] + shift, second[chosen] + shift
        other[chosen, a], other[chosen, c] = own[chosen, c], own[chosen, a]
    other[part == "last", -1] = bigrams[part == "last", 1]
    return _pairs(own, other, NAMES + bigrams[:, 0], NAMES + bigrams[:, 1])


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
    made = HandMade({"now": vocabulary, "place": positions, "heard": 2, "out": 1}, heads=2)
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


def two_tasks(
    shared: int = 2, private: int = 1, *, pairs: int = 60, seed: int = 0
) -> tuple[PlantedCircuit, PlantedCircuit]:
    """A model of two tasks, in two layers of heads: some heads serve both tasks, some one of them, two neither.

    The last token says which task it is. Of a task's `shared` + `private` heads each looks at the second token and
    adds an equal part of m, `GAIN` where that is a signal and -`GAIN` where, as in the counterfactual, it is not; for
    the other task a private head looks at the first token, which says nothing. So of the heads of a task, a share of
    shared / (shared + private) is used again, and ablating each changes m by 2 `GAIN` / (shared + private). Where the
    heads are is drawn with `seed`, as the pairs are. Raises AssayError for a task without heads and for no pair.
    """
    used = shared + private
    if min(shared, private) < 0 or used < 1 or pairs < 1:
        raise AssayError(
            f"two_tasks(shared={shared}, private={private}, pairs={pairs}): give a task a head, and one pair."
        )
    start, asks, yes, no = 2 * NAMES, (2 * NAMES + 1, 2 * NAMES + 2), 2 * NAMES + 3, 2 * NAMES + 4
    vocabulary, positions = no + 1, 3
    places, tokens = np.eye(positions), np.eye(vocabulary)
    signal = np.zeros((vocabulary, 1))
    signal[:NAMES], signal[NAMES:start] = 1, -1
    heads = -(-(shared + 2 * private + 2) // 2)
    draw = np.random.default_rng(seed)
    at = [divmod(int(place), heads) for place in draw.permutation(2 * heads)]
    own = (at[:used], [*at[:shared], *at[used : used + private]])
    groups = {"now": vocabulary, "place": positions, "out": 1, "junk": 4}
    spare = -sum(groups.values()) % heads  # so that the heads share the width
    made = HandMade({**groups, **({"spare": spare} if spare else {})}, heads=heads)
    rng = np.random.default_rng(0)
    for layer in range(2):
        for head in range(heads):
            looks = np.zeros((vocabulary, positions))
            for ask, of_task in zip(asks, own, strict=True):
                looks[ask, 1 if (layer, head) in of_task else 0] = SURE
            written = np.full((1, 1), 1 / used if (layer, head) in {*own[0], *own[1]} else 0.0)
            made.head(layer, head, ("now", looks), ("place", places), ("now", signal), ("out", written))
        made.mlp(layer, rng.normal(size=(made.features, 16)) / 4, "junk", rng.normal(size=(16, 4)))
    answers = np.zeros((1, vocabulary))
    answers[0, yes], answers[0, no] = GAIN / 2, -GAIN / 2
    model = made.model({"now": tokens}, {"place": places}, {"out": answers}, layers=2, activation="gelu_new")
    subject = Subject(model, None, "planted-two-tasks")

    def circuit(task: int) -> PlantedCircuit:
        prompts = np.full((pairs, positions), start)
        prompts[:, -1] = asks[task]
        others = prompts.copy()
        prompts[:, 1] = draw.integers(NAMES, size=pairs)
        others[:, 1] = NAMES + draw.integers(NAMES, size=pairs)
        names = [f"layer{layer}.head{head}" for layer, head in sorted(own[task])]
        edges = [f"embeddings -> {head}.values" for head in names] + [f"{head} -> logits" for head in names]
        return PlantedCircuit(subject, _pairs(prompts, others, np.full(pairs, yes), np.full(pairs, no)), tuple(edges))

    return circuit(0), circuit(1)


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
