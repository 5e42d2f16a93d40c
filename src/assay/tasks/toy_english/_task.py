"""The task: pairs of one grammar of toy English, in tokens."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from random import Random

from transformers import PreTrainedTokenizerFast

from assay._errors import AssayError, unknown_name
from assay._given import check_fields, checked
from assay.tasks._task import Feature, Kind, Role, Split
from assay.tasks._token_pairs import TokenPair, split_of_pairs
from assay.tasks.toy_english import _words
from assay.tasks.toy_english._scene import Grammar, Scene
from assay.tasks.toy_english._training import FRUITLESS, GRAMMARS
from assay.tasks.toy_english._words import BOS, ID, PAD, VERSION, VOCABULARY


@dataclass(frozen=True)
class ToyEnglish:
    """One of the nine tasks of toy English, as pairs: prompts with one prediction, each beside a counterfactual.

    `asks` names the task (`GRAMMARS`), `counterfactual` what is changed; each task has a usual one. All splits are
    drawn from `seed`, prompts without repetition, and a split that has fewer gives fewer. A tenth of all prompts, by a
    hash, is never trained on, by the shipped models or any other: `iid` has those, `train` the others. What makes a
    shift (a pair of names, an ending, a template) is kept out of training altogether. In successor and facts, which
    have to be memorised, nothing is held: `iid` and `train` are alike, and both were shown.

    Where several answers are right (every later year, every plural verb), `Split.answers` has one of them, drawn, and
    `Split.also_right` the others. Raises AssayError for an unknown task or counterfactual.
    """

    asks: str = "ioi"
    counterfactual: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.asks not in GRAMMARS:
            raise unknown_name("task of toy English", self.asks, GRAMMARS)
        known = self.grammar.counterfactuals
        if self.counterfactual is not None and self.counterfactual not in known:
            raise unknown_name(f"counterfactual of {self.name}", self.counterfactual, known)

    @property
    def grammar(self) -> Grammar:
        """Where its prompts come from."""
        return GRAMMARS[self.asks]

    @property
    def name(self) -> str:
        """Such as `toy-english/ioi`."""
        return f"toy-english/{self.asks}"

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Those of the grammar."""
        return tuple(
            Kind(
                kind.name,
                kind.description,
                None if kind.candidates is None else tuple(ID[word] for word in kind.candidates),
                kind.determined,
            )
            for kind in self.grammar.kinds
        )

    @property
    def primary_kind(self) -> str:
        """The only kind, or all of them."""
        return self.grammar.kinds[0].name if len(self.grammar.kinds) == 1 else "all"

    @property
    def features(self) -> tuple[Feature, ...]:
        """Those of the grammar."""
        return self.grammar.features

    @property
    def split_names(self) -> tuple[str, ...]:
        """train, iid and the shifts."""
        return ("train", "iid", *self.grammar.shifts)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """All words, in the order of their tokens."""
        return VOCABULARY

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer of toy English: one token a word, <bos> in front. It fails on words that are not of it."""
        return _words.tokenizer()

    def describe(self) -> dict[str, object]:
        """The parameters, as plain values."""
        return {
            "task": self.name,
            "counterfactual": self.counterfactual or self.grammar.counterfactuals[0],
            "seed": self.seed,
            "vocabulary_version": VERSION,
        }

    @checked
    def split(self, name: str, sequences: int) -> Split:
        """The first `sequences` pairs of a split, fewer if it has fewer.

        Raises AssayError for an unknown split and a number below 1.
        """
        if name not in self.split_names:
            raise unknown_name("split", name, self.split_names)
        if sequences < 1:
            raise AssayError(f"split({name!r}, sequences={sequences}): must be at least 1.")
        role: Role = "train" if name == "train" else "iid" if name == "iid" else "shift"
        known = "prompts that are trained on"
        held = known if self.grammar.memorised else "prompts that are never trained on"
        worded = {"train": ("training", known), "iid": ("like training", held), **self.grammar.shifts}
        label, description = worded[name]
        pairs = self._first(name, sequences)
        return split_of_pairs(
            pairs,
            name=name,
            role=role,
            description=description,
            label=label,
            pad=PAD,
            names=dict(enumerate(VOCABULARY)),
            foils=max(len(pair.foils) for pair in pairs),
        )

    @cached_property
    def _drawn(self) -> dict[str, tuple[Iterator[TokenPair], list[TokenPair]]]:
        """What goes on being drawn of every split, and what was."""
        return {}

    def _first(self, name: str, count: int) -> list[TokenPair]:
        rest, found = self._drawn.setdefault(name, (self._pairs(name), []))
        found.extend(islice(rest, max(0, count - len(found))))
        return found[:count]

    def _pairs(self, name: str) -> Iterator[TokenPair]:
        """The pairs of a split, until so many draws in a row have given none that is new."""
        random = Random(f"toy-english/{self.asks}/{name}/{self.seed}")
        seen: set[str] = set()
        fruitless = 0
        while fruitless < FRUITLESS:
            fruitless += 1
            scene = self.grammar.draw(random, "iid" if name == "train" else name)
            if scene is None or scene.text in seen or not self._belongs(scene, name):
                continue
            seen.add(scene.text)
            pair = self._pair(scene)
            if pair is not None:
                fruitless = 0
                yield pair

    def _belongs(self, scene: Scene, name: str) -> bool:
        """Whether a scene is of a split by the rule of the held tenth, where that decides."""
        if self.grammar.memorised or name not in ("train", "iid", *self.grammar.inside):
            return True
        return scene.held == (name != "train")

    def _pair(self, scene: Scene) -> TokenPair | None:
        """A scene in tokens; None if it has no counterfactual. What is drawn depends on nothing but seed and prompt."""
        random = Random(f"toy-english/{self.asks}/{self.seed}/{scene.text}")
        answer, *also = random.sample(scene.answers, len(scene.answers))
        other = scene.change(self.counterfactual or self.grammar.counterfactuals[0], random)
        if other is None:
            return None
        return TokenPair(
            [BOS, *(ID[word] for word in scene.text.split())],
            [BOS, *(ID[word] for word in other.text.split())],
            ID[answer],
            [ID[word] for word in other.foils],
            kind=[kind.name for kind in self.grammar.kinds].index(scene.kind),
            features=scene.features,
            also_right=[ID[word] for word in also],
        )


def factory(asks: str) -> Callable[..., ToyEnglish]:
    """What the registry calls for one of the nine tasks."""

    def made(counterfactual: str | None = None, seed: int = 0) -> ToyEnglish:
        return ToyEnglish(asks, counterfactual, seed)

    made.__doc__ = GRAMMARS[asks].description
    return made
