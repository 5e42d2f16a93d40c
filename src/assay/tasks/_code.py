"""Code completion: the next character of a function.

The natural-data task of "Interpretability Illusions" (arXiv 2312.03656): a character-level language model of
functions, judged on deeper nesting, other repositories and other languages. The paper's data are CodeSearchNet
(Husain et al. 2019); here any source of functions will do (`assay.tasks.Source`).
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from transformers import PreTrainedTokenizerFast

from assay._errors import AssayError, unknown_name
from assay._given import check_fields, checked
from assay.tasks._functions import Found, Function, Interpreter, Source, source_of
from assay.tasks._lexing import END as AT_END
from assay.tasks._lexing import KINDS, OTHER, PARTS, SlowError, characters, check_language, language_words, outline
from assay.tasks._task import UNSCORED, Feature, Kind, Role, Split
from assay.tasks._tokenizer import END, PAD, SPECIALS, START, UNKNOWN, character_tokenizer

RARE = 10
"""Characters that occur fewer times in the training split become the unknown token."""

_HELD_OUT = 10
_HELD_OUT_PARTS = ("valid", "test")
_DESCRIPTIONS = (
    "white space",
    "a character of a keyword",
    "a character of a word that is new in the function",
    "a character of a word that occurred before in the function",
    "a closing bracket outside strings and comments",
    "anything else: operators, opening brackets, numbers, the end of the function",
)


@dataclass(frozen=True)
class _Dealt:
    """Functions of every split in their order, and how many were left out, by reason."""

    splits: dict[str, list[Function]]
    left_out: dict[str, int]


@dataclass(frozen=True)
class Code:
    """Next-character prediction on functions of `source`.

    | split | functions |
    |---|---|
    | train | training language, bracket depth at most `max_depth` |
    | iid | the same repositories and depths, held out |
    | unseen_depth | the same repositories, deeper than `max_depth` inside the context |
    | unseen_repository | repositories of which nothing is trained on, depth at most `max_depth` |
    | one of each other language's name | depth at most `max_depth` |

    A sequence is START, the first characters of the function and, where it fits into `context` tokens, END. The
    repositories of `unseen_repository` are those that the source only has in its valid or test part; where there are
    none, repositories in the order of a hash until they hold a tenth of the functions (a single repository is not
    held out). `iid` is what the source has in its valid or test part of trained repositories; where there is nothing,
    a tenth of the functions, chosen by a hash. No two functions of any splits are equal up to comments, white space
    and letter case: `train` is dealt first, then in the order of the table. Splits that would be empty are left out
    of `split_names`; `describe()` counts everything that was dropped. All hashes are of a function's text (or a
    repository's name), so that what is held out from one version of a source is held out from the others too, and a
    split's first functions are a sample of it.

    The vocabulary is `SPECIALS` and the characters that occur at least 10 times in the training split, sorted;
    a model brings its own (`vocabulary_from=code_vocabulary(subject.tokenizer)`), so that the two agree where the
    source differs from the training's.

    A prediction's features belong to the predicted character: `depth`, the brackets open at it (both brackets of an
    outermost pair have 1; in strings and comments they do not count); `part`, what it is part of (an index into
    `PARTS`); `place`, 1 for the first character of a word, 2 for the later ones, 0 outside words. END is of kind
    other and part end.
    """

    source: Source = field(default_factory=Interpreter)
    context: int = 256
    max_depth: int = 3
    vocabulary_from: tuple[str, ...] | None = field(default=None, repr=False)
    seed: int = 0

    primary_kind = "all"

    def __post_init__(self) -> None:
        check_fields(self)
        for name, value, low in (("context", self.context, 8), ("max_depth", self.max_depth, 0)):
            if value < low:
                raise AssayError(f"Code({name}={value}): must be at least {low}.")
        given = self.vocabulary_from
        if given is not None:
            doubtful = [token for token in given[len(SPECIALS) :] if len(token) != 1]
            if given[: len(SPECIALS)] != SPECIALS or doubtful or len(set(given)) != len(given):
                raise AssayError(
                    f"Code(vocabulary_from=…): must be {', '.join(SPECIALS)} and then single characters, each once; "
                    f"got {', '.join(map(repr, (*given[:5], *doubtful[:1])))} …"
                )
        check_language(self.source.language)

    @classmethod
    @checked
    def from_data(cls, data: str | Path | Source = "python", language: str | None = None, **parameters: Any) -> "Code":
        """The task on what a person names: see `source_of` for `data` and `language`, `Code` for `parameters`."""
        return cls(source_of(data, language), **parameters)

    # -- vocabulary ---------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """`code-` and the training language."""
        return f"code-{self.source.language}"

    @property
    def start_id(self) -> int:
        """The token before every function."""
        return START

    @property
    def end_id(self) -> int:
        """The token after every function that ends inside the context."""
        return END

    @property
    def pad_id(self) -> int:
        """The padding token, never predicted."""
        return PAD

    @property
    def unknown_id(self) -> int:
        """The token of every character that is not in the vocabulary."""
        return UNKNOWN

    @property
    def positions(self) -> int:
        """The longest sequence, START and END included."""
        return self.context

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """The tokens as text: START, END, PAD, unknown, then characters."""
        if self.vocabulary_from is not None:
            return self.vocabulary_from
        counts: Counter[str] = Counter()
        for function in self._dealt.splits["train"]:
            counts.update(function.text)
        return (*SPECIALS, *sorted(character for character, count in counts.items() if count >= RARE))

    @cached_property
    def _ids(self) -> dict[int, int]:
        return {ord(token): index for index, token in enumerate(self.vocabulary) if index >= len(SPECIALS)}

    @checked
    def id_of(self, character: str) -> int:
        """The token of a character, `unknown_id` where the vocabulary has none."""
        return self._ids.get(ord(character), UNKNOWN)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A Hugging Face tokenizer with the same ids: one token a character, START in front."""
        return character_tokenizer(self.vocabulary, self.context)

    @checked
    def decode(self, tokens: Int[np.ndarray, " position"]) -> str:
        """The text of tokens; specials by their names."""
        return "".join(self.vocabulary[token] for token in tokens)

    # -- what results are broken down by ------------------------------------------------------------------------

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Whitespace, keyword, new word, repeated word, closing bracket, other."""
        return tuple(Kind(name, text) for name, text in zip(KINDS, _DESCRIPTIONS, strict=True))

    @property
    def features(self) -> tuple[Feature, ...]:
        """Depth, part and place of the predicted character."""
        parts = ", ".join(f"{index} {name}" for index, name in enumerate(PARTS))
        return (
            Feature("depth", "brackets open at the predicted character", (*KINDS, "all"), (0, 1, 2, 3, 4, 5, 6)),
            Feature("part", f"what the predicted character is part of ({parts})", KINDS, tuple(range(len(PARTS)))),
            Feature(
                "place",
                "1 the first character of a word, 2 a later one",
                ("keyword", "new_word", "repeated_word"),
                (1, 2),
            ),
        )

    # -- functions ----------------------------------------------------------------------------------------------

    @cached_property
    def _found(self) -> Found:
        return self.source.read()

    def _unseen_repositories(self, own: Sequence[Function]) -> set[str]:
        everything = {function.repository for function in own}
        trained = {function.repository for function in own if function.part not in _HELD_OUT_PARTS} or everything
        unseen = everything - trained
        if unseen or len(trained) == 1:
            return unseen
        sizes = Counter(function.repository for function in own)
        for repository in sorted(trained, key=lambda name: hashlib.sha256(name.encode()).digest())[: len(trained) - 1]:
            unseen.add(repository)
            if sum(sizes[name] for name in unseen) * _HELD_OUT >= len(own):
                break
        return unseen

    @cached_property
    def _dealt(self) -> _Dealt:
        """Every function in its split.

        A function is dealt once: train, iid and unseen_depth come from the trained repositories before the others
        are looked at, so that a copy in an evaluation split is the one that is dropped.
        """
        language = self.source.language
        own = [function for function in self._found.functions if function.language == language]
        if not own:
            languages = sorted({function.language for function in self._found.functions})
            raise AssayError(
                f"the source has no functions in its training language {language!r}; it has {', '.join(languages)}."
            )
        unseen = self._unseen_repositories(own)
        held_out = _HELD_OUT_PARTS if any(function.part not in _HELD_OUT_PARTS for function in own) else ()
        has_own_iid = any(function.part in held_out and function.repository not in unseen for function in own)

        def rank(function: Function) -> tuple[int, int]:
            if function.language != language:
                return 2, 0
            return int(function.repository in unseen), int(function.part in held_out)

        splits: dict[str, list[tuple[bytes, Function]]] = {}
        left_out: Counter[str] = Counter()
        seen: set[bytes] = set()
        for function in sorted(self._found.functions, key=rank):
            try:
                known = outline(function.text, function.language, self.context - 1)
            except SlowError:
                left_out["too slow to lex"] += 1
                continue
            if known.key in seen:
                left_out["duplicates"] += 1
                continue
            seen.add(known.key)
            name = function.language
            if name == language:
                if function.repository in unseen:
                    name = "unseen_repository"
                elif function.part in held_out or (not has_own_iid and known.key[0] * _HELD_OUT < 256):
                    name = "iid"
                else:
                    name = "train"
            if known.depth > self.max_depth:
                if name not in ("train", "iid") or known.depth_in_context <= self.max_depth:
                    reason = "too deep" if name not in ("train", "iid") else "too deep, but only past the context"
                    left_out[f"{name}: {reason}"] += 1
                    continue
                name = "unseen_depth"
            order = hashlib.sha256(known.key + self.seed.to_bytes(8, "little")).digest()
            splits.setdefault(name, []).append((order, function))
        for needed in ("train", "iid"):
            if needed not in splits:
                raise AssayError(
                    f"the source has too few functions of bracket depth at most {self.max_depth} for a split "
                    f"{needed!r} ({len(own)} functions in {language}); give more functions."
                )
        fixed = [name for name in ("train", "iid", "unseen_depth", "unseen_repository") if name in splits]
        names = [*fixed, *sorted(set(splits) - set(fixed))]
        return _Dealt(
            {name: [function for _, function in sorted(splits[name], key=lambda pair: pair[0])] for name in names},
            dict(sorted(left_out.items())),
        )

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits that have functions: train, iid, unseen_depth, unseen_repository, other languages."""
        return tuple(self._dealt.splits)

    @checked
    def functions(self, name: str) -> tuple[Function, ...]:
        """All functions of a split, in its order. Raises AssayError for an unknown split."""
        if name not in self._dealt.splits:
            raise unknown_name("split", name, self._dealt.splits)
        return tuple(self._dealt.splits[name])

    def describe(self) -> dict[str, object]:
        """Parameters, source, what was found, lost and left out, functions and hash of every split."""
        return {
            "task": "code",
            "language": self.source.language,
            "context": self.context,
            "max_depth": self.max_depth,
            "seed": self.seed,
            "source": self.source.describe(),
            "found": self._found.describe(),
            "left_out": self._dealt.left_out,
            "splits": {
                name: {
                    "functions": len(functions),
                    "repositories": len({function.repository for function in functions}),
                    "sha256": Found(tuple(functions), 0).describe()["sha256"],
                }
                for name, functions in self._dealt.splits.items()
            },
            "vocabulary": len(self.vocabulary),
            "vocabulary_sha256": hashlib.sha256("".join(self.vocabulary).encode()).hexdigest(),
        }

    # -- sequences ----------------------------------------------------------------------------------------------

    def _window(self, text: str) -> tuple[str, bool]:
        """The characters that fit, and whether END does too."""
        return text[: self.context - 1], len(text) <= self.context - 2

    def _tokens(self, functions: Sequence[Function]) -> tuple[np.ndarray, np.ndarray]:
        rows = []
        for function in functions:
            text, ends = self._window(function.text)
            rows.append([START, *map(self.id_of, text), *([END] if ends else [])])
        lengths = np.array([len(row) for row in rows])
        tokens = np.full((len(rows), int(lengths.max())), PAD, dtype=np.int64)
        for row, values in zip(tokens, rows, strict=True):
            row[: len(values)] = values
        return tokens, lengths

    @cached_property
    def training(self) -> tuple[Int[np.ndarray, "sequence position"], Int[np.ndarray, " sequence"]]:
        """All training sequences: tokens (padded on the right with `pad_id`) and lengths."""
        return self._tokens(self._dealt.splits["train"])

    @checked
    def split(self, name: str, sequences: int) -> Split:
        """The first `sequences` functions of a split (all, if it has fewer: see the split's own length).

        Raises AssayError for an unknown split or a number below 1.
        """
        functions = self.functions(name)
        if sequences < 1:
            raise AssayError(f"split({name!r}, sequences={sequences}): must be at least 1.")
        within = f"brackets at most {self.max_depth} deep"
        roles: dict[str, tuple[Role, str, str]] = {
            "train": ("train", "training", "training functions"),
            "iid": ("iid", "like training", "held-out functions of the training repositories and depths"),
            "unseen_depth": (
                "shift",
                "deeper nesting",
                f"brackets deeper than {self.max_depth}, training repositories",
            ),
            "unseen_repository": ("shift", "new repositories", f"repositories not trained on, {within}"),
        }
        if name not in roles:
            roles[name] = ("shift", language_words(name), f"functions in {name}, {within}")
        role, label, description = roles[name]
        found = self.make_split(functions[:sequences], name=name, role=role, description=description)
        return replace(found, label=label)

    def make_split(self, functions: Sequence[Function], *, name: str, role: Role, description: str) -> Split:
        """A split of the given functions, in sequences START … END PAD …

        Kinds are those of the whole function, read from its first character; only the context is kept.
        """
        tokens, lengths = self._tokens(functions)
        kinds = np.full(tokens.shape, UNSCORED, dtype=np.int64)
        features = {feature.name: np.zeros(tokens.shape, dtype=np.int64) for feature in self.features}
        for row, function in enumerate(functions):
            text, ends = self._window(function.text)
            of_text = characters(function.text, function.language)
            count = len(text)
            kinds[row, :count] = of_text.kind[:count]
            for feature, values in features.items():
                values[row, :count] = getattr(of_text, feature)[:count]
            if ends:
                kinds[row, count] = OTHER
                features["part"][row, count] = AT_END
        return Split(name, role, description, tokens, lengths, kinds, features, names=dict(enumerate(self.vocabulary)))

    @checked
    def read_function(self, text: str, language: str) -> Split:
        """A split of one function. Raises AssayError if it is empty or its language is unknown."""
        check_language(language)
        if not text.strip():
            raise AssayError("the function is empty; give its text.")
        return self.make_split(
            [Function(text, language, "")], name="function", role="shift", description=f"a function in {language}"
        )
