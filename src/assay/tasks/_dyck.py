"""Dyck-(k, m): well-nested brackets of k types, at most m deep.

The probabilistic generator is the one of Hewitt et al. (2020), also used by Yao et al. (2021) and Murty et al.
(2023): at the empty stack END has probability 1/2 and each opening bracket 1/(2k); below the maximum depth the one
correct closing bracket has probability 1/2 and each opening bracket 1/(2k); at the maximum depth the closing bracket
is certain. The splits are those of Friedman et al. (arXiv 2312.03656).
"""

from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from assay._errors import AssayError, unknown_name
from assay._given import check_fields, checked
from assay.tasks._task import UNSCORED, Feature, Kind, Role, Split

FAR = 10
"""A closing bracket is far when its opener is at least this many positions back (Murty et al. 2023)."""

SHORT = 32
"""Unseen structures are split in two by this length, in brackets (arXiv 2312.03656)."""

_CHUNK = 20_000
_EMPTY = -1


@cache
def _kinds(brackets: int) -> tuple[Kind, ...]:
    opening = tuple(range(brackets))
    closing = tuple(range(brackets, 2 * brackets))
    return (
        Kind("closing_near", f"closing bracket fewer than {FAR} positions from its opener", closing),
        Kind("closing_far", f"closing bracket at least {FAR} positions from its opener", closing),
        Kind("opening", "opening bracket (of a random type)", opening, determined=False),
        Kind("end", "end of the sentence", None),
    )


_FEATURES = (
    Feature("depth", "depth of the predicted bracket", ("closing_near", "closing_far")),
    Feature(
        "distance",
        "positions between the bracket and its opener",
        ("closing_near", "closing_far"),
        (1, 3, 5, 10, 20, 40, 80, 160),
    ),
)


@dataclass(frozen=True)
class _Parsed:
    """What is known of every bracket of some sentences; arrays are (sentence, position), 0 past the end."""

    depth: Int[np.ndarray, "sentence position"]
    distance: Int[np.ndarray, "sentence position"]


def sample_sentences(
    rng: np.random.Generator,
    count: int,
    *,
    brackets: int,
    max_depth: int,
    min_brackets: int,
    max_brackets: int,
) -> Int[np.ndarray, "count max_brackets"]:
    """Draw sentences of Dyck-(brackets, max_depth), conditioned on their length.

    Opening bracket of type i is i, its closing bracket `brackets + i`; -1 follows the last bracket. END is redrawn
    while a sentence is shorter than `min_brackets`; sentences that have not ended after `max_brackets` are rejected
    (as Hewitt et al. do), so that the rest keep their exact relative probabilities. All sentences of a chunk advance
    together, one bracket a step.
    """
    done: list[np.ndarray] = []
    found = 0
    while found < count:
        chunk = max(_CHUNK, min(4 * _CHUNK, count - found))
        sentences = np.full((chunk, max_brackets), _EMPTY, dtype=np.int16)
        stack = np.zeros((chunk, max_depth), dtype=np.int16)
        depth = np.zeros(chunk, dtype=np.int64)
        alive = np.arange(chunk)
        ended = np.zeros(chunk, dtype=bool)
        for step in range(max_brackets + 1):
            level = depth[alive]
            coin = rng.random(len(alive)) < 0.5
            ends = coin & (level == 0) & (step >= min_brackets)
            ended[alive[ends]] = True
            alive, level, coin = alive[~ends], level[~ends], coin[~ends]
            if step == max_brackets or len(alive) == 0:
                break
            opens = (level == 0) | (coin & (level < max_depth))
            opening, closing = alive[opens], alive[~opens]
            types = rng.integers(brackets, size=len(opening), dtype=np.int16)
            stack[opening, level[opens]] = types
            sentences[opening, step] = types
            sentences[closing, step] = brackets + stack[closing, level[~opens] - 1]
            depth[opening] += 1
            depth[closing] -= 1
        kept = sentences[ended]
        done.append(kept)
        found += len(kept)
    return np.concatenate(done)[:count]


def parse_sentences(sentences: Int[np.ndarray, "sentence position"], brackets: int) -> _Parsed:
    """Depth of every bracket (1 for both brackets of an outermost pair) and a closer's distance from its opener.

    Raises AssayError for the first sentence that is not well nested.
    """
    present = sentences != _EMPTY
    opens = present & (sentences < brackets)
    closes = present & ~opens
    after = np.cumsum(opens.astype(np.int16) - closes.astype(np.int16), axis=1)
    depth = np.where(present, after + closes, 0)
    count, width = sentences.shape
    deepest = int(max(depth.max(initial=0), 1))
    opener = np.zeros((count, deepest + 1), dtype=np.int64)
    distance = np.zeros(sentences.shape, dtype=np.int16)
    rows = np.arange(count)
    wrong = np.zeros(count, dtype=bool)
    for step in range(width):
        level = depth[:, step]
        wrong |= closes[:, step] & (level < 1)
        opening = rows[opens[:, step] & (level >= 1)]
        opener[opening, level[opening]] = step
        closing = rows[closes[:, step] & (level >= 1)]
        back = opener[closing, level[closing]]
        wrong[closing] |= sentences[closing, back] + brackets != sentences[closing, step]
        distance[closing, step] = step - back
    wrong |= (opens.sum(axis=1) - closes.sum(axis=1)) != 0
    if wrong.any():
        raise AssayError(
            f"sentence {int(np.flatnonzero(wrong)[0])} is not well nested: every closing bracket must close the "
            "bracket opened last, and every bracket must be closed."
        )
    return _Parsed(depth=depth.astype(np.int16), distance=distance)


@dataclass
class _Hand:
    """Sentences that were dealt of a stream of draws, by split, in order; `dealt` are their bytes."""

    rows: dict[str, list[np.ndarray]] = field(default_factory=dict)
    dealt: set[bytes] = field(default_factory=set)
    chunks: int = 0


@dataclass(frozen=True)
class Dyck:
    """The task Dyck-(brackets, max_depth) with the splits of "Interpretability Illusions" (arXiv 2312.03656, §2).

    | split | sentences |
    |---|---|
    | train | `training_sentences` draws (repetitions kept: they are part of the distribution) |
    | iid | fresh draws that are not training sentences |
    | seen_structure | as iid, and the structure occurs in training |
    | unseen_structure_short | the structure does not occur in training; at most 32 brackets |
    | unseen_structure_long | likewise, more than 32 brackets |
    | unseen_depth | drawn from Dyck-(brackets, deeper), strictly deeper than `max_depth` |

    No sentence is in two splits, and none is twice in an evaluation split. A sentence's structure is its sequence of
    moves with the types erased (`structure="sentence"`), or, as in Murty et al. (2023), the set of its top-level
    blocks, all of which must have been seen (`structure="blocks"`). All lengths are conditioned on
    `min_brackets <= length <= max_brackets`, so that depth shifts while every position stays trained.

    A prediction's `depth` is the depth of the predicted bracket (1 = outermost; 0 for END), its `distance` the number
    of positions from a closing bracket back to its opener (0 for the others).
    """

    brackets: int = 20
    max_depth: int = 10
    deeper: int = 20
    training_sentences: int = 200_000
    min_brackets: int = 4
    max_brackets: int = 254
    structure: Literal["sentence", "blocks"] = "sentence"
    seed: int = 0

    primary_kind = "closing_far"
    split_names = (
        "train",
        "iid",
        "seen_structure",
        "unseen_structure_short",
        "unseen_structure_long",
        "unseen_depth",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        for name, value, low in (
            ("brackets", self.brackets, 1),
            ("max_depth", self.max_depth, 1),
            ("deeper", self.deeper, self.max_depth + 1),
            ("training_sentences", self.training_sentences, 1),
            ("min_brackets", self.min_brackets, 2),
            ("max_brackets", self.max_brackets, max(2 * self.max_depth + 2, self.min_brackets)),
        ):
            if value < low:
                raise AssayError(f"Dyck({name}={value}): must be at least {low}.")
        if self.structure not in ("sentence", "blocks"):
            raise AssayError(f"Dyck(structure={self.structure!r}): must be 'sentence' or 'blocks'.")

    # -- vocabulary ---------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """`dyck-k-m`."""
        return f"dyck-{self.brackets}-{self.max_depth}"

    @property
    def start_id(self) -> int:
        """The token before every sentence."""
        return 2 * self.brackets

    @property
    def end_id(self) -> int:
        """The token after every sentence."""
        return 2 * self.brackets + 1

    @property
    def pad_id(self) -> int:
        """The padding token, never predicted."""
        return 2 * self.brackets + 2

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The tokens as text: `(3` opens type 3 and `3)` closes it."""
        opening = tuple(f"({i}" for i in range(self.brackets))
        closing = tuple(f"{i})" for i in range(self.brackets))
        return (*opening, *closing, "START", "END", "PAD")

    @property
    def positions(self) -> int:
        """The longest sequence, START and END included."""
        return self.max_brackets + 2

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Closing brackets by their distance from the opener, opening brackets, END."""
        return _kinds(self.brackets)

    @property
    def features(self) -> tuple[Feature, ...]:
        """Depth (one bin a level) and distance (bins that double) of closing brackets."""
        return _FEATURES

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A Hugging Face tokenizer of sentences like `(0 (3 3) 0)`: one token a bracket, START and END around them."""
        backend = Tokenizer(WordLevel({token: index for index, token in enumerate(self.vocabulary)}, unk_token="PAD"))
        backend.pre_tokenizer = WhitespaceSplit()
        backend.post_processor = TemplateProcessing(
            single="START $A END", special_tokens=[("START", self.start_id), ("END", self.end_id)]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            bos_token="START",
            eos_token="END",
            pad_token="PAD",
            model_max_length=self.positions,
            clean_up_tokenization_spaces=False,
        )

    def describe(self) -> dict[str, object]:
        """The parameters, as plain values."""
        return {
            "task": "dyck",
            "brackets": self.brackets,
            "max_depth": self.max_depth,
            "deeper": self.deeper,
            "training_sentences": self.training_sentences,
            "min_brackets": self.min_brackets,
            "max_brackets": self.max_brackets,
            "structure": self.structure,
            "seed": self.seed,
        }

    # -- sentences ----------------------------------------------------------------------------------------------

    def _sample(self, stream: int, chunk: int, count: int, max_depth: int) -> np.ndarray:
        return sample_sentences(
            np.random.default_rng([self.seed, stream, chunk]),
            count,
            brackets=self.brackets,
            max_depth=max_depth,
            min_brackets=self.min_brackets,
            max_brackets=self.max_brackets,
        )

    @cached_property
    def training(self) -> Int[np.ndarray, "sentence position"]:
        """All training sentences as brackets, without START and END; -1 past the end."""
        return self._sample(0, 0, self.training_sentences, self.max_depth)

    def _structures(self, sentences: np.ndarray) -> list[frozenset[bytes]]:
        """What must have been seen for each sentence's structure to have been seen."""
        moves = np.where(sentences == _EMPTY, 0, np.where(sentences < self.brackets, 1, 2)).astype(np.uint8)
        lengths = (sentences != _EMPTY).sum(axis=1)
        whole = [row[:length].tobytes() for row, length in zip(moves, lengths, strict=True)]
        if self.structure == "sentence":
            return [frozenset((text,)) for text in whole]
        level = np.cumsum(np.where(moves == 1, 1, np.where(moves == 2, -1, 0)), axis=1)
        blocks = []
        for text, row, length in zip(whole, level, lengths, strict=True):
            cuts = [0, *(np.flatnonzero(row[:length] == 0) + 1).tolist()]
            blocks.append(frozenset(text[a:b] for a, b in pairwise(cuts)))
        return blocks

    @cached_property
    def _seen(self) -> tuple[set[bytes], set[bytes]]:
        sentences = {row.tobytes() for row in self.training}
        structures: set[bytes] = set()
        for parts in self._structures(self.training):
            structures |= parts
        return sentences, structures

    @cached_property
    def _hands(self) -> dict[int, "_Hand"]:
        """What has been dealt of each stream of draws: most splits are dealt of one, and each asks for it."""
        return {}

    def _evaluation(self, wanted: str, count: int) -> np.ndarray:
        """The first `count` sentences of an evaluation split.

        Fresh draws are dealt out in order, even ones to iid and odd ones to the structure splits, and a sentence that
        was dealt before is dropped; so a split's first sentences do not depend on how many are asked for.
        """
        stream = 2 if wanted == "unseen_depth" else 1
        hand = self._hands.setdefault(stream, _Hand())
        rows = hand.rows.setdefault(wanted, [])
        while len(rows) < count:
            if hand.chunks >= 50 and len(rows) < hand.chunks / 10:  # at this rate it would take thousands of chunks
                raise AssayError(
                    f"{self!r}: split {wanted!r} has too few sentences ({len(rows)} found in {hand.chunks * _CHUNK:,} "
                    f"draws, {count} wanted); use fewer training sentences, more bracket types or longer sentences."
                )
            self._deal(stream, hand)
        return np.stack(rows[:count])

    def _deal(self, stream: int, hand: "_Hand") -> None:
        """Deal the next chunk of a stream."""
        seen_sentences, seen_structures = self._seen
        fresh = self._sample(stream, hand.chunks, _CHUNK, self.max_depth if stream == 1 else self.deeper)
        lengths = (fresh != _EMPTY).sum(axis=1)
        if stream == 1:
            names = [
                "iid"
                if index % 2 == 0
                else "seen_structure"
                if parts <= seen_structures
                else "unseen_structure_short"
                if length <= SHORT
                else "unseen_structure_long"
                for index, (parts, length) in enumerate(zip(self._structures(fresh), lengths, strict=True))
            ]
        else:
            moves = np.where(fresh == _EMPTY, 0, np.where(fresh < self.brackets, 1, -1))
            names = np.where(np.cumsum(moves, axis=1).max(axis=1) > self.max_depth, "unseen_depth", "").tolist()
        for row, name in zip(fresh, names, strict=True):
            key = row.tobytes()
            if name and key not in seen_sentences and key not in hand.dealt:
                hand.dealt.add(key)
                hand.rows.setdefault(name, []).append(row)
        hand.chunks += 1

    @checked
    def split(self, name: str, sequences: int) -> Split:
        """The first `sequences` sentences of a split, with START and END, kinds, depth and distance.

        Raises AssayError for an unknown split, a number below 1, or more training sentences than there are.
        """
        roles: dict[str, tuple[Role, str, str]] = {
            "train": ("train", "training", "training sentences"),
            "iid": ("iid", "like training", "fresh sentences of the training distribution"),
            "seen_structure": ("shift", "known structures", "new sentences whose structure occurs in training"),
            "unseen_structure_short": (
                "shift",
                "new structures, short",
                f"structures not seen in training, at most {SHORT} brackets",
            ),
            "unseen_structure_long": (
                "shift",
                "new structures, long",
                f"structures not seen in training, more than {SHORT} brackets",
            ),
            "unseen_depth": (
                "shift",
                "deeper nesting",
                f"sentences deeper than {self.max_depth}, drawn from Dyck-({self.brackets}, {self.deeper})",
            ),
        }
        if name not in roles:
            raise unknown_name("split", name, roles)
        if sequences < 1 or (name == "train" and sequences > self.training_sentences):
            limit = f" and at most training_sentences={self.training_sentences}" if name == "train" else ""
            raise AssayError(f"split({name!r}, sequences={sequences}): must be at least 1{limit}.")
        sentences = self.training[:sequences] if name == "train" else self._evaluation(name, sequences)
        role, label, description = roles[name]
        return replace(self.make_split(sentences, name=name, role=role, description=description), label=label)

    def make_split(
        self, sentences: Int[np.ndarray, "sentence width"], *, name: str, role: Role, description: str
    ) -> Split:
        """A split of sentences given as brackets (-1 past the end), in sequences START … END PAD …"""
        lengths = (sentences != _EMPTY).sum(axis=1)
        width = int(lengths.max())
        sentences = sentences[:, :width]
        parsed = parse_sentences(sentences, self.brackets)
        count = len(sentences)
        rows = np.arange(count)

        tokens = np.full((count, width + 2), self.pad_id, dtype=np.int64)
        tokens[:, 0] = self.start_id
        tokens[:, 1 : width + 1] = np.where(sentences == _EMPTY, self.pad_id, sentences)
        tokens[rows, lengths + 1] = self.end_id

        kinds = np.full((count, width + 2), UNSCORED, dtype=np.int64)
        opening = sentences < self.brackets
        of_bracket = np.where(opening, 2, np.where(parsed.distance >= FAR, 1, 0))
        kinds[:, :width] = np.where(sentences == _EMPTY, UNSCORED, of_bracket)
        kinds[rows, lengths] = 3

        def shifted(values: np.ndarray) -> np.ndarray:
            return np.pad(values.astype(np.int64), ((0, 0), (0, 2)))

        return Split(
            name=name,
            role=role,
            description=description,
            tokens=tokens,
            lengths=lengths + 2,
            kinds=kinds,
            features={"depth": shifted(parsed.depth), "distance": shifted(parsed.distance)},
            names=dict(enumerate(self.vocabulary)),
        )

    @checked
    def read_sentence(self, text: str) -> Split:
        """A split of one sentence written like `(0 (3 3) 0)`.

        Raises AssayError for a token that is not a bracket of this task, a sentence that is not well nested or
        one that is too long.
        """
        index = {token: i for i, token in enumerate(self.vocabulary[: 2 * self.brackets])}
        words = text.split()
        unknown = [word for word in words if word not in index]
        if unknown or not words:
            trouble = f"{unknown[0]!r} is not a bracket" if unknown else "it is empty"
            raise AssayError(
                f"sentence {text!r}: {trouble}; write brackets of types 0 to {self.brackets - 1} "
                "separated by blanks, for example '(0 (3 3) 0)'."
            )
        if len(words) > self.max_brackets:
            raise AssayError(f"the sentence has {len(words)} brackets; at most {self.max_brackets} fit the model.")
        sentence = np.array([[index[word] for word in words]], dtype=np.int16)
        return self.make_split(sentence, name="sentence", role="shift", description=f"the sentence {text}")
