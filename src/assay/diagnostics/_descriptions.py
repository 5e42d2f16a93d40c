"""Whether what a feature means in distribution is what it means under a shift: a few rules, tested on held-out text."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from sklearn.tree import DecisionTreeClassifier

from assay._errors import AssayError
from assay._given import checked
from assay.diagnostics._encoded import encoded
from assay.diagnostics._features import activations, feature_use
from assay.diagnostics._reconstruction import judged_splits
from assay.diagnostics._setting import smooth_of
from assay.engine import Engine
from assay.faithfulness import Weights
from assay.faithfulness._statistics import smooth
from assay.faithfulness._summary import weights_of
from assay.simplify import Simplification
from assay.subjects import Subject
from assay.tasks import NO_TOKEN, Question, Read, Split, Task, bound

DESCRIBED_COLUMNS = (
    "place", "feature", "split", "role", "sequences", "on", "said",
    *(f"{name}{end}" for name in ("f1", "gap") for end in ("", "_low", "_high")),
    "precision", "recall", "rules", "reason",
)  # fmt: skip

MOST = 32
"""Tokens that are asked about at one distance."""

LEAST = 10
"""Tokens that a feature has to be on at, for rules to be made, and that each leaf has to have."""

_LEAF = -1


@checked
def described(
    subject: Subject,
    task: Task,
    fitted: Simplification,
    features: int | Sequence[int] | None = None,
    *,
    place: str | None = None,
    depth: int = 3,
    tokens: int = 4,
    count: int = 20,
    sequences: int = 500,
    fit_sequences: int = 200,
    resamples: int = 2_000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """How well a few rules say where a feature is on, on held-out iid and on each shift: one row a (feature, split).

    The description of a feature is a decision tree of `depth` on what stands in plain sight at a position: which the
    last `tokens` tokens are, how many stand before, and the task's features of the token just read. It is made on
    `fit_sequences` of the train split, and says "on" at the leaves that give the largest F1 there. `f1` is
    2 P R / (P + R) of what it says on a split, with `precision` P, the share of the tokens it says "on" at where the
    feature is on, and `recall` R, the share of the tokens the feature is on at where it says so: in [0, 1], 1 where the
    rules are all that there is to say. `gap` is `f1` on iid minus that on the split: positive where the feature's
    meaning does not transfer. Both have `_low` and `_high`, over whole sequences (BCa). `on` and `said` are shares of
    all tokens; F1 rises with `on` by itself: rules that say "on" everywhere have 2 on / (1 + on).

    A low `f1` on iid says that these rules do not describe the feature, not that nothing does; then a gap says little.
    `features` are numbers; by default the `count` of the largest mean contribution on iid. `rules` are in words;
    `reason` says why there is no number.

    Source: the confidence of RecSAE's descriptions (arXiv 2411.06112), where a language model describes a feature and
    predicts where it is on. Differences: a tree describes; held out by sequences; shifts, intervals.

    Raises AssayError for a recipe without dictionaries or not fitted, an unknown feature or place, bad numbers, and a
    task without a train split.
    """
    for name, value, least in (("depth", depth, 1), ("tokens", tokens, 0), ("count", count, 1)):
        if value < least:
            raise AssayError(f"described({name}={value}): must be at least {least}.")
    task = bound(task, subject.tokenizer)
    engine, one = Engine(subject), encoded(fitted, place)
    train = task.split(task.split_names[0], fit_sequences)
    if train.role != "train":
        raise AssayError(
            "descriptions are made on the train split, and this task has none; give a task with one, such as "
            "Text(train=...)."
        )
    splits = judged_splits(task, sequences)
    if features is None:
        use = feature_use(subject, task, fitted, place=place, splits=[splits[0].name], sequences=sequences)
        order = use.sort_values("contribution", ascending=False, kind="stable")["feature"]
        numbers = [int(each) for each in order[:count]]
    else:
        numbers = [one.checked(each) for each in ([features] if isinstance(features, int | np.integer) else features)]
    shared = set(train.features).intersection(*(split.features for split in splits))
    train = replace(train, features={name: train.features[name] for name in shared})
    names = _names(subject, train)
    learned = [
        _learned(train, active > 0, depth=depth, tokens=tokens, seed=seed)
        for active in activations(engine, train, one, numbers)
    ]
    found: dict[str, list[_Told]] = {}
    weights: dict[str, Weights] = {}
    for split in splits:
        active = activations(engine, split, one, numbers)
        found[split.name] = [_Told.of(split, own > 0, rules) for own, rules in zip(active, learned, strict=True)]
        weights[split.name] = weights_of(split, seed=seed, resamples=resamples)
    rows = []
    for number, (feature, rules) in enumerate(zip(numbers, learned, strict=True)):
        words = "never known to be on" if rules is None else rules.text(names)
        base = {"place": one.name, "feature": feature, "rules": words}
        own = {name: told[number] for name, told in found.items()}
        rows += [base | _row(split, own, splits[0].name, weights, level, known=rules is not None) for split in splits]
    return pd.DataFrame(rows, columns=list(DESCRIBED_COLUMNS))


def _names(subject: Subject, split: Split) -> Mapping[int, str]:
    """What rules call tokens: as they are written, or as the split names them."""
    if subject.tokenizer is None:
        return split.names or {}
    return {token: str(subject.tokenizer.decode([token])) for token in split.occurring.tolist()}


class _Condition(NamedTuple):
    """The answer to a question is above a bound, or not."""

    question: Question
    above: bool
    bound: int


def _words(way: Sequence[_Condition], names: Mapping[int, str]) -> list[str]:
    """Conditions in words, without those that others of the same way imply."""
    known = {one.question.back for one in way if one.question.about == "token" and one.above}
    found: dict[tuple[Question, bool], str] = {}
    for question, above, edge in way:
        words = question.text(names)
        if question.about != "token":
            # Of bounds on one side, a later one is the narrower.
            found[question, above] = f"{words} > {edge}" if above else f"{words} <= {edge}"
        elif above or question.back not in known:
            found[question, above] = words if above else words.replace(" is ", " is not ", 1)
    return list(found.values())


@dataclass(frozen=True)
class _Rules:
    """A decision tree over questions, and the leaves where it says "on"."""

    questions: tuple[Question, ...]
    asked: Int[np.ndarray, " node"]
    threshold: Float[np.ndarray, " node"]
    left: Int[np.ndarray, " node"]
    right: Int[np.ndarray, " node"]
    on: Bool[np.ndarray, " node"]

    def says(self, read: Read) -> Bool[np.ndarray, "sequence position"]:
        """Whether it says "on", at every position."""
        found = np.zeros(read.tokens.shape, dtype=np.int64)
        answers = {number: read.answers(self.questions[number]) for number in set(self.asked.tolist()) - {_LEAF}}
        for node in range(len(self.asked)):  # children come behind their parents
            if self.asked[node] != _LEAF:
                here = found == node
                low = answers[int(self.asked[node])] <= self.threshold[node]
                found[here & low], found[here & ~low] = self.left[node], self.right[node]
        said: np.ndarray = self.on[found]
        return said

    def text(self, names: Mapping[int, str]) -> str:
        """When it says "on", in words."""
        ways = [" and ".join(_words(way, names)) or "always" for way in self._ways(0, ())]
        return " or ".join(ways) or "never"

    def _ways(self, node: int, path: tuple["_Condition", ...]) -> list[tuple["_Condition", ...]]:
        """The conditions on the way to each part of the tree that says "on" throughout."""
        below = self._under(node)
        if self.on[below].all():
            return [path]
        if not self.on[below].any():
            return []
        question, bound = self.questions[self.asked[node]], int(np.floor(self.threshold[node]))
        return [
            *self._ways(int(self.right[node]), (*path, _Condition(question, True, bound))),
            *self._ways(int(self.left[node]), (*path, _Condition(question, False, bound))),
        ]

    def _under(self, node: int) -> list[int]:
        """The leaves under a node."""
        if self.asked[node] == _LEAF:
            return [node]
        return [*self._under(int(self.left[node])), *self._under(int(self.right[node]))]


def read_of(split: Split) -> Read:
    """A split as it is read."""
    return Read(split.tokens, split.valid.astype(bool), split.features)


def questions_about(read: Read, on: Bool[np.ndarray, "sequence position"], *, tokens: int, most: int) -> list[Question]:
    """Questions that may tell where something is on: positions, task features, and of each of the last `tokens` tokens
    the `most` whose share where it is on differs most from that elsewhere.
    """
    valid = read.valid
    found: list[Question] = []
    for back in range(tokens):
        there = read.before(back)
        ids, numbers = np.unique(there[valid], return_inverse=True)
        yes = np.bincount(numbers, weights=on[valid], minlength=len(ids))
        no = np.bincount(numbers, weights=~on[valid], minlength=len(ids))
        difference = np.abs(yes / max(yes.sum(), 1) - no / max(no.sum(), 1))
        often = ids[np.argsort(-difference, kind="stable")]
        found += [Question("token", back=back, token=int(token)) for token in often[often != NO_TOKEN][:most]]
    return [*found, Question("position"), *(Question("feature", name=name) for name in sorted(read.features))]


def _learned(
    split: Split, on: Bool[np.ndarray, "sequence position"], *, depth: int, tokens: int, seed: int
) -> _Rules | None:
    """The rules for where something is on; None where it is on at too few places to tell."""
    read = read_of(split)
    labels = on[read.valid]
    if labels.sum() < LEAST:
        return None
    questions = questions_about(read, on, tokens=tokens, most=MOST)
    table = np.stack([read.answers(question)[read.valid] for question in questions], axis=1).astype(np.float32)
    made = DecisionTreeClassifier(max_depth=depth, min_samples_leaf=LEAST, class_weight="balanced", random_state=seed)
    tree = made.fit(table, labels).tree_
    leaf = tree.apply(table)
    yes = np.bincount(leaf, weights=labels, minlength=tree.node_count)
    every = np.bincount(leaf, minlength=tree.node_count)
    # F1 is largest for the purest leaves down to some share; nodes within the tree have none, and come last.
    order = np.argsort(-yes / np.maximum(every, 1), kind="stable")
    scores = 2 * yes[order].cumsum() / (every[order].cumsum() + labels.sum())
    said = np.zeros(tree.node_count, dtype=bool)
    said[order[: int(scores.argmax()) + 1]] = True
    asked = np.where(tree.children_left == _LEAF, _LEAF, tree.feature)
    return _Rules(
        tuple(questions), asked.astype(np.int64), tree.threshold, tree.children_left.astype(np.int64),
        tree.children_right.astype(np.int64), said,
    )  # fmt: skip


@dataclass(frozen=True)
class _Told:
    """By sequence: tokens where both rules and feature say "on", where rules do, where the feature does, and all."""

    both: Float[np.ndarray, " sequence"]
    said: Float[np.ndarray, " sequence"]
    on: Float[np.ndarray, " sequence"]
    tokens: Float[np.ndarray, " sequence"]

    @classmethod
    def of(cls, split: Split, on: Bool[np.ndarray, "sequence position"], rules: _Rules | None) -> "_Told":
        valid = split.valid.astype(bool)
        said = np.zeros_like(valid) if rules is None else rules.says(read_of(split)) & valid
        return cls(*(part.sum(axis=1).astype(float) for part in (said & on, said, on & valid, valid)))

    @property
    def columns(self) -> tuple[np.ndarray, ...]:
        """What F1 is made of."""
        return self.both, self.said, self.on


def _f1(sums: Float[np.ndarray, "column ..."]) -> Float[np.ndarray, "..."]:
    below = sums[1] + sums[2]
    found: np.ndarray = np.divide(2 * sums[0], below, out=np.zeros_like(below), where=below > 0)
    return found


def _row(
    split: Split, found: Mapping[str, _Told], iid: str, weights: Mapping[str, Weights], level: float, *, known: bool
) -> dict[str, Any]:
    """The row of one feature and split, but for what is the feature's."""
    own, first = found[split.name], found[iid]
    row: dict[str, Any] = {
        **dict.fromkeys(DESCRIBED_COLUMNS[4:], np.nan),
        "split": split.name,
        "role": split.role,
        "sequences": int((own.on > 0).sum()),
        "on": float(own.on.sum() / own.tokens.sum()),
        "said": float(own.said.sum() / own.tokens.sum()),
        "reason": None,
    }
    row.pop("rules")
    if not known:
        return row | {"reason": f"on at fewer than {LEAST} tokens of the train split, so that no rules could be made"}
    if not own.on.sum():
        return row | {"reason": "the feature is never on there"}
    row["recall"] = float(own.both.sum() / own.on.sum())
    row["precision"] = float(own.both.sum() / own.said.sum()) if own.said.sum() else np.nan
    row |= _named("f1", smooth_of(_f1, own.columns, weights[split.name], level=level))
    if split.name != iid and first.on.sum():
        samples = [
            (np.stack(one.columns, axis=-1)[None], weights[name]) for one, name in ((first, iid), (own, split.name))
        ]
        row |= _named("gap", smooth(lambda at, there: _f1(at) - _f1(there), *samples, level=level))
    return row


def _named(name: str, found: Collection[float]) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))
