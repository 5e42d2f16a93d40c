"""Your own pairs: an input, its counterfactual, the right next token and a wrong one."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from transformers import PreTrainedTokenizerBase

from assay._errors import AssayError, unknown_name
from assay._files import write_atomically
from assay._given import check_fields, checked
from assay.tasks._pair_files import Pair, pair_of, read_pairs
from assay.tasks._task import Feature, Kind, Role, Split
from assay.tasks._token_pairs import TokenPair, split_of_pairs
from assay.tasks._tokenizer import encoded, token_names, vocabulary_sha256

Misfits = Literal["refuse", "leave out"]
"""What is done with pairs that are none to a tokenizer."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs by split, each with one prediction: of the token that follows the clean text.

    `pairs` are those of every split; `iid` has to be among them, `train` is what is fitted on, all other names are
    shifts. Texts are tokens only to a tokenizer: `bound_to(tokenizer)` gives the task whose splits can be made, and
    `compare` binds to the subject's own. Pairs of token ids need none.

    A text gets the special tokens that the tokenizer puts in front by default; those that it puts behind are left out,
    for there the text goes on. The answer and each foil are one token: the one by which the text goes on when both are
    tokenized together, or else the only token of the answer by itself. Ids are taken as they are: that they are of this
    tokenizer cannot be checked.

    What is no pair to the tokenizer is refused, with its row, or left out and counted (`misfits="leave out"`): an
    answer or a foil of several tokens, or unknown; texts of different numbers of tokens; no difference between them; an
    answer that is a foil. `lost` is how many lines could not be read as pairs at all, by reason. Kinds are those that
    the rows name; `distance` is how many tokens the prediction is after the first difference.
    """

    pairs: Mapping[str, Sequence[Pair]]
    tokenizer: PreTrainedTokenizerBase | None = None
    misfits: Misfits = "refuse"
    dealt: bool = False
    lost: Mapping[str, int] = field(default_factory=dict)

    name = "pairs"
    primary_kind = "all"
    features = (
        Feature(
            "distance",
            "tokens from the first difference to the last before the prediction",
            ("all",),
            (0, 1, 2, 4, 8, 16, 32, 64, 128),
        ),
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.misfits not in get_args(Misfits):
            raise unknown_name("treatment of misfits", str(self.misfits), get_args(Misfits))
        order = sorted(self.pairs, key=lambda name: ("train", "iid", name).index(name))
        object.__setattr__(self, "pairs", {name: tuple(self.pairs[name]) for name in order})
        if "iid" not in self.pairs:
            raise AssayError(
                f"the pairs have no split 'iid', only {', '.join(map(repr, self.pairs)) or 'none'}; name one so: it is "
                "what the shifts are compared with."
            )
        empty = [name for name, pairs in self.pairs.items() if not pairs]
        if empty:
            raise AssayError(f"split {empty[0]!r} has no pairs; give at least one.")
        if self.is_bound:
            _ = self._encoded

    # -- where they come from ---------------------------------------------------------------------------------------

    @classmethod
    @checked
    def read(
        cls,
        path: str | Path | Mapping[str, str | Path],
        *,
        counterfactual: str | None = None,
        misfits: Misfits = "refuse",
    ) -> "Pairs":
        """The pairs of a file, or of one a split: `Pairs.read({"train": a, "iid": b, "names": c})`.

        | layout | fields of a row |
        |---|---|
        | ours | clean, counterfactual, answer, foil (one or a list), and if you like split and kind |
        | EAP-IG | clean, corrupted, and the ids of answer and foil: correct_idx and incorrect_idx |
        | auto-circuit | clean, corrupt, answers (one), wrong_answers; in the list `prompts` of a .json |
        | MIB | those of its datasets of IOI, of multiple choice and of arithmetic |

        Rows are of JSON lines (`.jsonl`, `.jsonl.gz`), `.json`, `.csv`, `.parquet` or a dataset (`hub:NAME:SPLIT`);
        texts, or lists of token ids. `counterfactual` names the field with the counterfactual where there are several
        (EAP-IG's corrupted_hard, MIB's abc). Where rows name no split, half of the different clean inputs are dealt to
        train and half to iid, by a hash of them. See `Pairs` for `misfits`.

        Lines of JSON lines that are no pairs are counted (`lost`, and in the record of a comparison) and the rest is
        used. Raises AssayError, with file and line, for a file of nothing else, and for what is no pair in the others.
        """
        lost: Counter[str] = Counter()
        if not isinstance(path, Mapping):
            return cls._of_pairs(read_pairs(path, counterfactual, lost), str(path), misfits, lost)
        pairs: dict[str, list[Pair]] = {}
        for split, source in path.items():
            pairs[split] = read_pairs(source, counterfactual, lost)
            for pair in pairs[split]:
                if pair.split not in (None, split):
                    raise AssayError(f"{pair.where} is of split {pair.split!r}, but its file is given for {split!r}.")
        return cls(pairs, misfits=misfits, lost=lost)

    @classmethod
    @checked
    def of(cls, rows: Iterable[Mapping[str, Any]], *, misfits: Misfits = "refuse") -> "Pairs":
        """The pairs of rows with the fields of a file. Raises AssayError as `read` does."""
        found = (pair_of(row, f"row {number}") for number, row in enumerate(rows, start=1))
        return cls._of_pairs([pair for pair in found if pair is not None], "the rows", misfits, {})

    @classmethod
    def _of_pairs(cls, found: Sequence[Pair], source: str, misfits: Misfits, lost: Mapping[str, int]) -> "Pairs":
        if not found:
            raise AssayError(f"{source!r} has no pairs; give at least two.")
        without = [pair for pair in found if pair.split is None]
        if not without:
            names = dict.fromkeys(str(pair.split) for pair in found)
            by_name = {name: [pair for pair in found if pair.split == name] for name in names}
            return cls(by_name, misfits=misfits, lost=lost)
        if len(without) < len(found):
            raise AssayError(f"{without[0].where} names no split, and others do; name one in every row, or in none.")
        ranks = {pair.clean: hashlib.sha256(json.dumps(pair.clean).encode()).digest() for pair in found}
        inputs = sorted(ranks, key=ranks.__getitem__)
        if len(inputs) < 2:
            raise AssayError(f"{source!r} has one clean input only, and no split is named; name one ('split': 'iid').")
        train = set(inputs[: (len(inputs) + 1) // 2])
        dealt = {
            "train": [pair for pair in found if pair.clean in train],
            "iid": [pair for pair in found if pair.clean not in train],
        }
        return cls(dealt, misfits=misfits, dealt=True, lost=lost)

    @checked
    def write(self, path: str | Path) -> Path:
        """Write all pairs as JSON lines, with split and kind, so that `read` gives them again.

        Raises AssayError for a name that does not end in .jsonl, and where nothing can be written.
        """
        into = Path(path)
        if into.suffix != ".jsonl":
            raise AssayError(f"write({str(path)!r}): the name has to end in .jsonl.")
        rows = ({**pair.row(), "split": name} for name, pairs in self.pairs.items() for pair in pairs)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        try:
            write_atomically(into, lambda path: path.write_text(text, encoding="utf-8", newline="\n"))
        except OSError as error:
            raise AssayError(f"cannot write {str(path)!r}: {error.strerror}.") from None
        return into

    # -- tokens -----------------------------------------------------------------------------------------------------

    @property
    def is_bound(self) -> bool:
        """Whether splits can be made: with a tokenizer, or because no pair has a text."""
        return self.tokenizer is not None or not any(pair.has_text for pairs in self.pairs.values() for pair in pairs)

    @checked
    def bound_to(self, tokenizer: PreTrainedTokenizerBase | None) -> "Pairs":
        """The task in the tokens of a tokenizer. Raises AssayError for pairs that are none to it, and for None."""
        if tokenizer is None:
            raise AssayError("pairs of texts need a tokenizer, and the subject has none; give lists of token ids.")
        return replace(self, tokenizer=tokenizer)

    @cached_property
    def _encoded(self) -> dict[str, tuple[TokenPair, ...]]:
        """The token pairs of every split, without those left out. Raises AssayError as `bound_to` does."""
        found: dict[str, tuple[TokenPair, ...]] = {}
        kinds = [kind.name for kind in self.kinds]
        for name, pairs in self.pairs.items():
            fitting: list[TokenPair] = []
            misfits: list[str] = []
            for pair, tokens in zip(pairs, _tokenized(pairs, self.tokenizer), strict=True):
                reason = tokens if isinstance(tokens, str) else _reason(tokens)
                if reason is not None:
                    misfits.append(f"{pair.where}: {reason}")
                elif not isinstance(tokens, str):
                    place = {"distance": len(tokens.tokens) - 1 - _first_difference(tokens)}
                    fitting.append(replace(tokens, kind=kinds.index(pair.kind), features=place))
            if misfits and (self.misfits == "refuse" or not fitting):
                more = f" ({len(misfits) - 1} more of split {name!r} do not fit)" if len(misfits) > 1 else ""
                fix = "change the row" if self.misfits == "leave out" else "change the row, or misfits='leave out'"
                raise AssayError(f"{misfits[0]}; {fix}{more}.")
            found[name] = tuple(fitting)
        return found

    # -- the task ---------------------------------------------------------------------------------------------------

    @cached_property
    def kinds(self) -> tuple[Kind, ...]:
        """Those that the rows name, in the order in which they occur; `answer` where none is named."""
        names = dict.fromkeys(pair.kind for pairs in self.pairs.values() for pair in pairs)
        return tuple(Kind(name, f"the answer to a pair of kind {name}") for name in names)

    @property
    def split_names(self) -> tuple[str, ...]:
        """train, where there is one, iid and the shifts."""
        return tuple(self.pairs)

    @checked
    def split(self, name: str, sequences: int) -> Split:
        """The first `sequences` pairs of a split, fewer if it has fewer.

        Raises AssayError for an unknown split, a number below 1, and texts that are not bound to a tokenizer.
        """
        if name not in self.split_names:
            raise unknown_name("split", name, self.split_names)
        if sequences < 1:
            raise AssayError(f"split({name!r}, sequences={sequences}): must be at least 1.")
        if not self.is_bound:
            raise AssayError("these pairs are texts and need a tokenizer: use pairs.bound_to(subject.tokenizer).")
        role: Role = "train" if name == "train" else "iid" if name == "iid" else "shift"
        pairs = self._encoded[name]
        split = split_of_pairs(
            pairs[:sequences],
            name=name,
            role=role,
            description=f"your pairs for {name}" + (", half of them dealt by a hash" if self.dealt else ""),
            pad=_padding(self.tokenizer),
            names=None,
            foils=max(len(pair.foils) for pair in pairs),
        )
        if self.tokenizer is None:
            return split
        return replace(split, names=token_names(self.tokenizer, split.occurring.tolist()))

    def describe(self) -> dict[str, object]:
        """What was read and, once bound, the tokenizer, its special tokens and what was left out; plain values only."""
        splits: dict[str, dict[str, object]] = {}
        for name, pairs in self.pairs.items():
            digest = hashlib.sha256("".join(json.dumps(pair.row()) + "\n" for pair in pairs).encode())
            splits[name] = {"pairs": len(pairs), "sha256": digest.hexdigest()}
            if self.is_bound:
                splits[name]["left_out"] = len(pairs) - len(self._encoded[name])
        told: dict[str, object] = {"task": "pairs", "dealt": self.dealt, "misfits": self.misfits, "splits": splits}
        if self.lost:
            told["lost"] = dict(sorted(self.lost.items()))
        if self.tokenizer is not None:
            told["vocabulary_sha256"] = vocabulary_sha256(self.tokenizer)
            told["in_front"] = self.tokenizer.convert_ids_to_tokens(_ids(self.tokenizer, ["."])[0].in_front)
        return told


@checked
def bound(task: Any, tokenizer: PreTrainedTokenizerBase | None) -> Any:
    """A task in the tokens of a tokenizer, where it has `is_bound` and `bound_to` and is not bound to one yet."""
    return task if getattr(task, "is_bound", True) else task.bound_to(tokenizer)


@dataclass(frozen=True)
class _Ids:
    """A text's tokens, with how many of them are special ones that the tokenizer put in front."""

    ids: list[int]
    added: int

    @property
    def in_front(self) -> list[int]:
        return self.ids[: self.added]


def _ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[_Ids]:
    """The tokens of texts, with special ones in front as the tokenizer adds them, and without those behind."""
    if not texts:
        return []
    found: Any = encoded(tokenizer, list(texts), return_special_tokens_mask=True)
    kept: list[_Ids] = []
    for ids, marks in zip(found["input_ids"], found["special_tokens_mask"], strict=True):
        plain = [place for place, mark in enumerate(marks) if not mark]
        end = plain[-1] + 1 if plain else 0
        kept.append(_Ids(list(ids[:end]), plain[0] if plain else 0))
    return kept


def _tokenized(pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase | None) -> list[TokenPair | str]:
    """Every pair in tokens, or the reason why it is none."""
    clean, counterfactual = (
        _sequences([getattr(pair, side) for pair in pairs], tokenizer) for side in ("clean", "counterfactual")
    )
    asked = [(row, token) for row, pair in enumerate(pairs) for token in (pair.answer, *pair.foils)]
    single: dict[tuple[int, str | int], int | str] = {key: key[1] for key in asked if isinstance(key[1], int)}
    if tokenizer is not None:
        texts = [key for key in asked if isinstance(key[1], str)]
        together = _ids(tokenizer, [f"{pairs[row].clean}{text}" for row, text in texts])
        answers = [str(text) for _, text in texts]
        alone = encoded(tokenizer, answers, add_special_tokens=False) if texts else {"input_ids": []}
        for key, joined, ids in zip(texts, together, alone["input_ids"], strict=True):
            before = clean[key[0]] if isinstance(pairs[key[0]].clean, str) else None
            single[key] = _one_token(tokenizer, str(key[1]), before, joined.ids, list(ids))
    found: list[TokenPair | str] = []
    for row, pair in enumerate(pairs):
        tokens = [single[row, token] for token in (pair.answer, *pair.foils)]
        wrong = [token for token in tokens if isinstance(token, str)]
        right = [token for token in tokens if not isinstance(token, str)]
        foils = list(dict.fromkeys(right[1:]))
        found.append(wrong[0] if wrong else TokenPair(clean[row], counterfactual[row], right[0], foils))
    return found


def _sequences(given: Sequence[str | tuple[int, ...]], tokenizer: PreTrainedTokenizerBase | None) -> list[list[int]]:
    """Texts in tokens, and ids as they are."""
    texts = iter([] if tokenizer is None else _ids(tokenizer, [text for text in given if isinstance(text, str)]))
    return [next(texts).ids if isinstance(part, str) else list(part) for part in given]


def _one_token(
    tokenizer: PreTrainedTokenizerBase, text: str, before: list[int] | None, joined: list[int], alone: list[int]
) -> int | str:
    """The token by which `before` goes on with a text, or the reason why there is none."""
    goes_on = before is not None and len(joined) == len(before) + 1 and joined[:-1] == before
    candidates = [*([joined[-1]] if goes_on else []), *(alone if len(alone) == 1 else [])]
    known = [token for token in candidates if token != tokenizer.unk_token_id]
    if known:
        return known[0]
    if candidates:
        return f"{text!r} is unknown to the tokenizer; answers and foils are tokens that it has"
    pieces = ", ".join(repr(str(tokenizer.decode([token]))) for token in alone)
    return f"{text!r} is {len(alone)} tokens ({pieces}); answers and foils are one token each"


def _first_difference(pair: TokenPair) -> int:
    both = zip(pair.tokens, pair.counterfactual, strict=True)
    return next(place for place, (one, other) in enumerate(both) if one != other)


def _reason(pair: TokenPair) -> str | None:
    """Why tokens are no pair; None if they are one."""
    lengths = len(pair.tokens), len(pair.counterfactual)
    if lengths[0] != lengths[1]:
        return f"clean is {lengths[0]} tokens and its counterfactual {lengths[1]}; both need the same number"
    if list(pair.tokens) == list(pair.counterfactual):
        return "clean and its counterfactual are the same tokens; something has to differ"
    if pair.answer in pair.foils:
        return f"the answer (token {pair.answer}) is a foil too; a foil has to be wrong"
    return None


def _padding(tokenizer: PreTrainedTokenizerBase | None) -> int:
    """Padding is masked, so any token will do; one that was added to the tokenizer may have no embedding."""
    pad = None if tokenizer is None else tokenizer.pad_token_id
    return pad if tokenizer is not None and isinstance(pad, int) and pad < tokenizer.vocab_size else 0
