"""Your own text: one split a file, every next token (or masked token, or whole sequence) a prediction."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
from transformers import PreTrainedTokenizerBase

from assay._errors import AssayError, unknown_name
from assay._given import check_fields, checked
from assay._terminal import visible
from assay.tasks._lines import TextSource, fingerprint, lines, settled, whole
from assay.tasks._overlap import copies_among, sequence_hashes, warn_of_overlaps
from assay.tasks._pieces import CLASSES, Piece, pieces
from assay.tasks._rows import in_words
from assay.tasks._task import UNSCORED, Feature, Kind, Objective, Role, Split
from assay.tasks._tokenizer import encoded, token_names, vocabulary_sha256

COUNTED = 5_000
"""Sequences of the train split from which token frequencies are counted."""

_BANDS = (0.0, 1e-4, 1e-3, 1e-2)
_BAND_LABELS = ("unseen", "below 0.01%", "0.01% to 0.1%", "0.1% to 1%", "1% and more")
_INDUCTION_LABELS = ("the token before is new", "the token before occurred earlier")
_REPETITION = "repetition"
_BUILT_IN = (_REPETITION, "frequency", "class", "induction")


@dataclass(frozen=True)
class Group:
    """A grouping of one's own: `function` gives the label of each token of a sequence from their texts.

        def capital(texts):
            return ["capital" if text.strip()[:1].isupper() else "other" for text in texts]

        Group("capital", ("capital", "other"), capital)

    The texts are those of the whole sequence, white space included, and empty for special tokens. A prediction is
    grouped by the token it is of.
    """

    name: str
    labels: tuple[str, ...]
    function: Callable[[Sequence[str]], Sequence[str]]

    def of(self, texts: Sequence[str]) -> list[int]:
        """Indices into `labels`. Raises AssayError if the function gives something else."""
        found = list(self.function(texts))
        wrong = [label for label in found if label not in self.labels]
        if wrong or len(found) != len(texts):
            said = f"the label {wrong[0]!r}" if wrong else f"{len(found)} labels"
            raise AssayError(
                f"Group({self.name!r}): its function gave {said} for {len(texts)} tokens; it must give one of "
                f"{', '.join(map(repr, self.labels))} for each."
            )
        return [self.labels.index(label) for label in found]


@dataclass(frozen=True)
class _Grouping:
    """A way to put every prediction into a class."""

    description: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class _Asked:
    """One sequence as the model sees it; `answers[t]` is the place of the token that is predicted at t, or none."""

    tokens: list[int]
    pieces: list[Piece]
    answers: dict[int, int]


def _in_short(source: Any) -> str:
    """A source of text as it is named, or how many texts it has."""
    if isinstance(source, str | Path):
        return str(source)
    return f"{len(source):,} texts" if isinstance(source, Sized) else "texts"


@dataclass(frozen=True, repr=False)
class Text:
    """Predictions on text: a train split to fit on, `iid`, and any number of named shifts.

    Each of `train`, `iid` and the values of `shifts` is a source of sequences: a list of strings or anything else that
    gives strings in an order (it is read once), a file (`.txt`, `.jsonl`, `.jsonl.gz`, `.parquet`; `text_field` names
    the field with the text) or `hub:NAME`, a dataset of the Hugging Face hub: see `TextSource`. `train` may be None
    where nothing is fitted: models that are compared as they are. Blank lines are passed over, and so are lines of a
    `.jsonl` file that hold no text, which are counted (`Split.lost`, and in the record of a comparison; refused if
    there are no others); longer sequences are cut to `max_length` tokens, and those in which there is nothing to
    predict are left out. Sequences are used in order. Splits that share sequences, token for token, are warned about as
    they are made, and two with the very same ones are refused.

    `objective` must be that of the subject:

    | objective | what is predicted |
    |---|---|
    | causal | every next token |
    | masked | `mask_share` of a sequence's tokens, at least one, chosen at random from `seed` and the sequence itself |
    | embedding | one vector for the whole sequence; a sequence that occurs a second time is left out |

    Masking follows BERT (Devlin et al. 2019, arXiv 1810.04805, section 3.1 and appendix A.1): 15% of the tokens, not
    special ones. There, 80% of them become the mask token, 10% a random token and 10% stay, to bring pretraining
    nearer to fine-tuning; here, where the same question is to be asked everywhere, all become the mask token.

    Predictions are grouped in several ways, each of which puts every prediction into one class:

    | grouping | classes of the predicted token |
    |---|---|
    | repetition | `repeated`, if it stands earlier in the sequence (masked: anywhere else in it, unmasked), or `new` |
    | frequency | its share of the tokens of the first 5,000 sequences of the train split (or `iid`), in five bands |
    | class | word start, word continuation, digit, punctuation, whitespace, special (`assay.tasks.CLASSES`) |
    | induction | whether the token before it occurred earlier in the sequence (masked: both of them unmasked) |
    | your own | `groups` |

    One grouping gives the **kinds** of prediction: repetition, or that of the class that `primary` names. `primary` is
    the class that verdicts are about (`Text(..., groups=(parts_of_speech,), primary="verb")`), or "all". The other
    groupings cut across it, so they are **features**, given for all predictions together.

    An encoder that gives embeddings may be used with a `prompt` (`subject.prompt`) before every sequence. Its
    sequences are cut to its tokenizer's `model_max_length` where that is less than `max_length`.

    Raises AssayError for a source that cannot be read as text, an empty split, a name that is taken, a `primary` that
    is no class or one of several groupings, or a tokenizer without a mask token under "masked".
    """

    tokenizer: PreTrainedTokenizerBase
    train: TextSource | None
    iid: TextSource
    shifts: Mapping[str, TextSource]
    max_length: int = 256
    text_field: str = "text"
    objective: Objective = "causal"
    groups: tuple[Group, ...] = ()
    mask_share: float = 0.15
    seed: int = 0
    primary: str = "all"
    prompt: str = ""

    name = "text"

    def __post_init__(self) -> None:
        check_fields(self)
        taken = {"train", "iid"} & set(self.shifts)
        if taken:
            raise AssayError(f"Text(shifts=...): {', '.join(sorted(taken))} is no name for a shift; choose another.")
        if self.max_length < 2:
            raise AssayError(f"Text(max_length={self.max_length}): must be at least 2.")
        if self.objective not in get_args(Objective):
            raise unknown_name("objective", self.objective, get_args(Objective))
        if not 0 < self.mask_share <= 1:
            raise AssayError(f"Text(mask_share={self.mask_share}): must be above 0 and at most 1, for example 0.15.")
        if self.objective == "masked" and self.tokenizer.mask_token_id is None:
            raise AssayError("Text(objective='masked'): the tokenizer has no mask token, so nothing can be masked.")
        if self.prompt and self.objective != "embedding":
            raise AssayError(f"Text(prompt={self.prompt!r}): a prompt is for embeddings; leave it out.")
        for name in ("train", "iid"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, settled(getattr(self, name), name))
        object.__setattr__(self, "shifts", {name: settled(source, name) for name, source in self.shifts.items()})
        object.__setattr__(self, "groups", tuple(self.groups))
        names = [*_BUILT_IN, *(group.name for group in self.groups)]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise AssayError(f"Text(groups=...): {', '.join(sorted(twice))} is taken; choose another name.")
        self._check_primary()

    def __repr__(self) -> str:
        sources = {"train": self.train, "iid": self.iid, **self.shifts}
        parts = [f"{name}={_in_short(source)}" for name, source in sources.items() if source is not None]
        return visible(f"<Text {', '.join(parts)}; {self.objective}, at most {self.max_length:,} tokens>")

    def _check_primary(self) -> None:
        if self.primary == "all":
            return
        if self.objective == "embedding":
            raise AssayError(f"Text(primary={self.primary!r}): embeddings have no kinds; leave it out.")
        labels = [label for grouping in self._groupings.values() for label in grouping.labels]
        if self.primary not in labels:
            raise unknown_name("primary kind", self.primary, ("all", *labels))
        having = [name for name, grouping in self._groupings.items() if self.primary in grouping.labels]
        if len(having) > 1 or "all" in self._groupings[having[0]].labels:
            raise AssayError(
                f"Text(primary={self.primary!r}): {' and '.join(having)} must have the kind once between them, and no "
                "kind 'all'; give your own groups labels of their own."
            )

    @property
    def primary_kind(self) -> str:
        """The kind that verdicts are about, or "all"."""
        return self.primary

    @cached_property
    def _groupings(self) -> dict[str, _Grouping]:
        """All groupings by name."""
        where = "earlier" if self.objective == "causal" else "elsewhere"
        return {
            _REPETITION: _Grouping(f"whether the predicted token stands {where} in the sequence", ("repeated", "new")),
            "frequency": _Grouping(f"share of the predicted token in the {self.split_names[0]} split", _BAND_LABELS),
            "class": _Grouping("class of the predicted token", CLASSES),
            "induction": _Grouping("the token before the predicted one", _INDUCTION_LABELS),
            **{group.name: _Grouping(f"{group.name} of the predicted token", group.labels) for group in self.groups},
        }

    @cached_property
    def _by(self) -> str:
        """The grouping that gives the kinds."""
        having = (name for name, grouping in self._groupings.items() if self.primary in grouping.labels)
        return _REPETITION if self.primary == "all" else next(having)

    @property
    def split_names(self) -> tuple[str, ...]:
        """train, where there is one, iid and the shifts."""
        return tuple(self._sources)

    @property
    def _sources(self) -> dict[str, TextSource]:
        return {**({} if self.train is None else {"train": self.train}), "iid": self.iid, **self.shifts}

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The classes of one grouping: repeated and new, unless `primary` is of another; none for embeddings."""
        if self.objective == "embedding":
            return ()
        grouping = self._groupings[self._by]
        return tuple(Kind(label, f"{grouping.description}: {label}") for label in grouping.labels)

    @property
    def features(self) -> tuple[Feature, ...]:
        """The groupings that do not give the kinds; none for embeddings."""
        if self.objective == "embedding":
            return ()
        return tuple(
            Feature(name, grouping.description, ("all",), tuple(range(len(grouping.labels))), grouping.labels)
            for name, grouping in self._groupings.items()
            if name != self._by
        )

    def _lines(self, name: str, lost: Counter[str]) -> Iterator[str]:
        return lines(self._sources[name], self.text_field, name, lost)

    @checked
    def whole(self, name: str) -> str:
        """The text of a split as one, for those who cut it otherwise.

        A plain file as it stands, blank lines included; of any other source a line a sequence. Raises AssayError for an
        unknown split, and a source that cannot be read.
        """
        if name not in self.split_names:
            raise unknown_name("split", name, self.split_names)
        return whole(self._sources[name], self.text_field, name)

    @cached_property
    def _shares(self) -> dict[int, float]:
        """The share of each token among those of the first sequences of the train split, or of iid without one."""
        counts: Counter[int] = Counter()
        texts = islice(self._lines(self.split_names[0], Counter()), COUNTED)
        while batch := list(islice(texts, 256)):
            found: Any = encoded(self.tokenizer, batch, truncation=True, max_length=self.max_length)
            for ids in found["input_ids"]:
                counts.update(ids)
        return {token: count / counts.total() for token, count in counts.items()}

    @cached_property
    def _longest(self) -> int:
        """How many tokens a sequence has at most; an encoder in use cuts its text where its tokenizer says."""
        of_tokenizer = self.tokenizer.model_max_length if self.objective == "embedding" else self.max_length
        return min(self.max_length, of_tokenizer)

    def _asked(self, line: str) -> _Asked:
        found = pieces(self.tokenizer, self.prompt + line, self._longest)
        tokens = [piece.token for piece in found]
        if self.objective == "causal":
            return _Asked(tokens, found, {place: place + 1 for place in range(len(tokens) - 1)})
        if self.objective == "embedding":
            return _Asked(tokens, found, {0: 0} if any(not piece.is_special for piece in found) else {})
        able = [place for place, piece in enumerate(found) if not piece.is_special]
        if not able:
            return _Asked(tokens, found, {})
        digest = hashlib.sha256(np.array([self.seed, *tokens], dtype=np.int64).tobytes()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        count = max(1, round(self.mask_share * len(able)))
        chosen = sorted(rng.choice(able, size=count, replace=False).tolist())
        mask = self.tokenizer.mask_token_id
        seen = [mask if place in chosen else token for place, token in enumerate(tokens)]
        return _Asked(seen, found, {place: place for place in chosen})

    def _sequences(self, name: str, lost: Counter[str]) -> Iterator[_Asked]:
        """The sequences in which there is something to predict; lines that hold none are counted in `lost`."""
        before: set[tuple[int, ...]] = set()
        for line in self._lines(name, lost):
            asked = self._asked(line)
            if not asked.answers:
                continue
            if self.objective == "embedding":
                if tuple(asked.tokens) in before:
                    continue
                before.add(tuple(asked.tokens))
            yield asked

    @checked
    def split(self, name: str, sequences: int) -> Split:
        """The first `sequences` sequences of a split, fewer if it has fewer, and the number of bad lines before them.

        Warns if they share some with a split that was made before. Raises AssayError if they are the same as another's,
        for an unknown split, a number below 1, and a source that cannot be read or has no sequence.
        """
        if name not in self.split_names:
            raise unknown_name("split", name, self.split_names)
        if sequences < 1:
            raise AssayError(f"split({name!r}, sequences={sequences}): must be at least 1.")
        lost: Counter[str] = Counter()
        rows = list(islice(self._sequences(name, lost), sequences))
        if not rows:
            least = "two tokens" if self.objective == "causal" else "one token that is not special"
            also = f" (lost: {in_words(lost)})" if lost else ""
            raise AssayError(f"split {name!r} has no sequence of at least {least}{also}; is the file empty?")
        lengths = np.array([len(row.tokens) for row in rows])
        pad = self.tokenizer.pad_token_id
        # Padding is masked, so any token will do; one that was added to the tokenizer may have no embedding.
        usable = pad is not None and pad < self.tokenizer.vocab_size
        tokens = np.full((len(rows), lengths.max()), pad if usable else 0, dtype=np.int64)
        kinds = np.full(tokens.shape, UNSCORED, dtype=np.int64)
        targets = np.zeros(tokens.shape, dtype=np.int64)
        features = {feature.name: np.zeros(tokens.shape, dtype=np.int64) for feature in self.features}
        for index, row in enumerate(rows):
            tokens[index, : len(row.tokens)] = row.tokens
            if self.objective == "embedding":
                continue
            at, answers = list(row.answers), list(row.answers.values())
            targets[index, at] = [row.pieces[answer].token for answer in answers]
            for grouping, values in self._classes_of(row).items():
                into = kinds if grouping == self._by else features[grouping]
                into[index, at] = values
        role: Role = "train" if name == "train" else "iid" if name == "iid" else "shift"
        split = Split(
            name=name,
            role=role,
            description=f"your text for {name}",
            tokens=tokens,
            lengths=lengths,
            kinds=kinds,
            features=features,
            objective=self.objective,
            targets=targets if self.objective == "masked" else None,
            prompt=self.prompt,
            lost=dict(sorted(lost.items())),
        )
        split = replace(split, names=token_names(self.tokenizer, split.occurring.tolist()))
        self._look_for_copies(split)
        return split

    @cached_property
    def _made(self) -> dict[str, list[bytes]]:
        """The hashes of the sequences of every split that was made, by its name."""
        return {}

    def _look_for_copies(self, split: Split) -> None:
        """Warn of what a split shares with those made before, unless at least as many of its sequences were seen."""
        if len(split) > len(self._made.get(split.name, ())):
            hashes = {**self._made, split.name: sequence_hashes(split)}
            copies = copies_among({name: hashes[name] for name in self.split_names if name in hashes})
            warn_of_overlaps(copies.of(split.name))
            self._made[split.name] = hashes[split.name]

    def _repetition_of(self, row: _Asked) -> list[int]:
        """0 for a repeated token, 1 for a new one, of every answer."""
        if self.objective == "masked":
            shown = {token for place, token in enumerate(row.tokens) if place not in row.answers}
            return [0 if row.pieces[answer].token in shown else 1 for answer in row.answers.values()]
        first: dict[int, int] = {}
        for place, token in enumerate(row.tokens):
            first.setdefault(token, place)
        return [0 if first[row.tokens[answer]] < answer else 1 for answer in row.answers.values()]

    def _classes_of(self, row: _Asked) -> dict[str, list[int]]:
        """The class of every answer under every grouping."""
        own = [piece.token for piece in row.pieces]
        shares = [self._shares.get(token, 0.0) for token in own]
        hidden = row.answers if self.objective == "masked" else {}
        seen: set[int] = set()
        induction = [0]
        for place, token in enumerate(own[:-1]):
            induction.append(int(place not in hidden and token in seen))
            if place not in hidden:
                seen.add(token)
        texts = [piece.text for piece in row.pieces]
        of_tokens = {
            "frequency": [int(np.searchsorted(_BANDS, share, side="right")) if share else 0 for share in shares],
            "class": [piece.of_class for piece in row.pieces],
            "induction": induction,
            **{group.name: group.of(texts) for group in self.groups},
        }
        return {
            _REPETITION: self._repetition_of(row),
            **{name: [values[answer] for answer in row.answers.values()] for name, values in of_tokens.items()},
        }

    @cached_property
    def _vocabulary_sha256(self) -> str:
        return vocabulary_sha256(self.tokenizer)

    def describe(self) -> dict[str, object]:
        """Parameters and, of every split's source, a hash of its content or its name; plain values only."""
        masking = {"mask_share": self.mask_share, "seed": self.seed} if self.objective == "masked" else {}
        prompting = {"prompt": self.prompt} if self.objective == "embedding" else {}
        return {
            "task": "text",
            "objective": self.objective,
            "max_length": self._longest,
            **masking,
            **prompting,
            "groups": [group.name for group in self.groups],
            "primary": self.primary,
            "vocabulary_sha256": self._vocabulary_sha256,
            **{f"{name}_source": fingerprint(source) for name, source in self._sources.items()},
        }
