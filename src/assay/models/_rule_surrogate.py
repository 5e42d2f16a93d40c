"""A few rules on what stands in plain sight: the floor that every account of a model has to rise above."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor

from assay._errors import AssayError
from assay._given import check_fields, checked
from assay.engine import Answer, Clean, Samples, tensors
from assay.simplify import Origin, label, save_proxy, source_of
from assay.simplify._protocol import check_positive
from assay.subjects import Subject
from assay.tasks import NO_TOKEN, UNSCORED, Question, Read, Split

ROWS = 10_000
"""The most predictions that a tree is made from."""

MOST = 256
"""The most tokens that are asked about at one distance: those that stand there most often."""

REPEATS = 5
"""How often the answers to a question are permuted among predictions, to see what it is worth."""

SEQUENCES_AT_A_TIME = 32

_LEAF = -1


@dataclass(frozen=True)
class Tree:
    """A decision tree over questions.

    Node n goes to `left[n]` where the answer to question `asked[n]` is at most `threshold[n]`, else to `right[n]`; at
    a leaf `asked` is -1. `classes` are the tokens that were predicted, ascending, and `counts` (node, class) how often
    at each leaf. `tests` is how many different comparisons its questions allow, `vocabulary` how many tokens there are.
    """

    questions: tuple[Question, ...]
    asked: Int[np.ndarray, " node"]
    threshold: Float[np.ndarray, " node"]
    left: Int[np.ndarray, " node"]
    right: Int[np.ndarray, " node"]
    classes: Int[np.ndarray, " class"]
    counts: Int[np.ndarray, "node class"]
    tests: int
    vocabulary: int

    @property
    def leaves(self) -> int:
        """How many leaves there are."""
        return int((self.asked == _LEAF).sum())

    def leaf(self, read: Read) -> Int[np.ndarray, "sequence position"]:
        """The leaf of every position."""
        found = np.zeros(read.tokens.shape, dtype=np.int64)
        if self.asked[0] == _LEAF:
            return found
        answers = np.stack([read.answers(question) for question in self.questions])
        rows, columns = np.indices(found.shape)
        while (inner := self.asked[found] != _LEAF).any():
            on = answers[self.asked[found], rows, columns] <= self.threshold[found]
            found = np.where(inner, np.where(on, self.left[found], self.right[found]), found)
        return found

    def log_probabilities(self, leaves: Int[np.ndarray, " leaf"]) -> Float[np.ndarray, "leaf vocabulary"]:
        """Natural logarithms of the smoothed frequencies of every token at some leaves."""
        every = self.counts.sum(axis=0)
        overall = np.full(self.vocabulary, 1.0)
        overall[self.classes] += every
        overall /= overall.sum()
        found = np.tile(overall, (len(leaves), 1))
        found[:, self.classes] += self.counts[leaves]
        logarithms: np.ndarray = np.log(found / found.sum(axis=1, keepdims=True))
        return logarithms

    def rules(self, names: Mapping[int, str], node: int = 0, depth: int = 0) -> str:
        """The tree as text, a line a node."""
        indent = "  " * depth
        if self.asked[node] == _LEAF:
            best = int(self.classes[self.counts[node].argmax()])
            share = self.counts[node].max() / self.counts[node].sum()
            return f"{indent}predict {names.get(best, best)!r} ({share:.0%} of {self.counts[node].sum():,})\n"
        question = self.questions[self.asked[node]]
        bound = "" if question.about == "token" else f" > {self.threshold[node]:g}"
        yes, no = (self.rules(names, int(child), depth + 1) for child in (self.right[node], self.left[node]))
        return f"{indent}if {question.text(names)}{bound}:\n{yes}{indent}else:\n{no}"


def ranked(
    table: Float[np.ndarray, "row column"],
    labels: Int[np.ndarray, " row"],
    *,
    fitted: Bool[np.ndarray, " row"],
    held_out: Bool[np.ndarray, " row"],
    seed: int,
) -> Int[np.ndarray, " useful"]:
    """The columns that help to tell the labels, the most important first.

    A column's importance is what permuting it costs a tree without a limit, in agreement on the rows held out; the
    tree is made from the `fitted` ones. Columns that cost nothing are left out.
    """
    tree = DecisionTreeClassifier(random_state=seed).fit(table[fitted], labels[fitted])
    rows, right = table[held_out], labels[held_out]
    rng = np.random.default_rng(seed)
    known = float((tree.predict(rows) == right).mean())
    importance = np.zeros(table.shape[1])
    for column in np.unique(tree.tree_.feature[tree.tree_.feature >= 0]):
        kept = rows[:, column].copy()
        for _ in range(REPEATS):
            rows[:, column] = rng.permutation(kept)
            importance[column] += (known - float((tree.predict(rows) == right).mean())) / REPEATS
        rows[:, column] = kept
    order = np.argsort(-importance, kind="stable")
    return order[importance[order] > 0]


def grown(
    table: Float[np.ndarray, "row column"],
    labels: Int[np.ndarray, " row"],
    questions: Sequence[Question],
    *,
    depth: int,
    vocabulary: int,
    seed: int,
) -> Tree:
    """The tree of a depth on all columns of a table, which answer the questions; without any it is one leaf."""
    classes, numbers = np.unique(labels, return_inverse=True)
    tests = sum(len(np.unique(column)) - 1 for column in table.T)
    if depth == 0 or not questions:
        counts = np.bincount(numbers, minlength=len(classes))[None]
        one = np.array([_LEAF])
        return Tree((), one, np.zeros(1), one, one, classes, counts, tests, vocabulary)
    made = DecisionTreeClassifier(max_depth=depth, random_state=seed).fit(table, labels).tree_
    counts = np.zeros((made.node_count, len(classes)), dtype=np.int64)
    np.add.at(counts, (made.apply(table), numbers), 1)
    asked = np.where(made.children_left == _LEAF, _LEAF, made.feature)
    children = (made.children_left.astype(np.int64), made.children_right.astype(np.int64))
    return Tree(tuple(questions), asked.astype(np.int64), made.threshold, *children, classes, counts, tests, vocabulary)


class RuleProxy:
    """Rules that answer as a subject does: with the logarithms of their probabilities."""

    def __init__(self, subject: Subject, tree: Tree, simplification: "RuleSurrogate") -> None:
        self.subject, self.tree = subject, tree
        self.simplification = copy.copy(simplification)  # a later fit of the same object makes it another
        self.dtype = torch.promote_types(subject.model.dtype, torch.float32)

    @property
    def fitted_on(self) -> Origin:
        """The subject that the rules imitate."""
        found = self.simplification.fitted_on_
        assert found is not None
        return found

    @property
    def transferred(self) -> bool:
        """Whether that had other weights than the subject."""
        found, own = self.fitted_on, Origin.of(self.subject)
        return (found.weights_sha256, found.config_sha256) != (own.weights_sha256, own.config_sha256)

    def save(self, folder: str | Path) -> Path:
        """Write the rules to a folder, for `assay.load_proxy`. Raises AssayError for one that holds something else."""
        return save_proxy(self, folder)

    def __call__(
        self, tokens: Int[Tensor, "batch position"], valid: Int[Tensor, "batch position"] | None = None
    ) -> Float[Tensor, "batch position vocabulary"]:
        """Log-probabilities of the next token; `valid` is 1 at tokens and 0 at padding (default: no padding).

        Raises AssayError for rules that ask for a feature of the task, which only `compare` knows.
        """
        return self._logits(self._leaves(tokens, valid, {}), slice(None), tokens)

    def answer(self, clean: Clean) -> Answer:
        """The answer on the batch of `clean`, some positions at a time: all of them may not fit in memory."""
        features = {} if clean.batch is None else clean.batch.features
        leaves = self._leaves(clean.tokens, clean.valid, features)
        return Answer(
            lambda positions: self._logits(leaves, positions, clean.tokens),
            "rules have no attention",
            clean.tokens.numel(),
        )

    def _leaves(
        self, tokens: Tensor, valid: Tensor | None, features: Mapping[str, Int[np.ndarray, "sequence position"]]
    ) -> Int[np.ndarray, "sequence position"]:
        shown = torch.ones_like(tokens) if valid is None else valid
        return self.tree.leaf(Read(tokens.cpu().numpy(), shown.bool().cpu().numpy(), features))

    def _logits(
        self, leaves: Int[np.ndarray, "sequence position"], positions: slice | Tensor, tokens: Tensor
    ) -> Float[Tensor, "batch chosen vocabulary"]:
        chosen = leaves[:, positions if isinstance(positions, slice) else positions.cpu().numpy()]
        different, which = np.unique(chosen, return_inverse=True)
        found = torch.from_numpy(self.tree.log_probabilities(different)).to(tokens.device, self.dtype)
        return found[torch.from_numpy(which.reshape(chosen.shape)).to(tokens.device)]

    def __repr__(self) -> str:
        return f"RuleProxy({self.tree.leaves} leaves)"


@dataclass
class RuleSurrogate:
    """Predict what the subject predicts by a small decision tree over what stands in plain sight.

    Questions that a tree may ask at a position: is the token k back this one (the last `tokens` tokens read, and of
    each distance the `MOST` most frequent), how far from the start is it, and with `task_features` the task's features
    of the token just read, such as a bracket's depth. (A prediction's own features may say what is to be predicted, and
    are not used.) The tree imitates the subject's first choice, not the right token, at some `ROWS` scored predictions
    of the train split. The `features` questions of the greatest permutation importance are kept, and a tree of `depth`
    is made of them. At a leaf with n predictions, n_w of them w, of N in all, N_w of them w,

        p(w) = (n_w + (N_w + 1) / (N + V)) / (n + 1),

    so that no token is impossible; logits are ln p. `seed` draws the predictions and the permutations.

    It is no explanation of how the model does it. It says how much of what a model does can be had without looking
    inside: an account of the inside that agrees with the model no better has explained nothing. Task features smuggle
    a part of the algorithm in, and the tree then says how far that part goes. Depth 0 is the subject's most frequent
    prediction everywhere, and the control of the others.

    Source: Craven and Shavlik (1995, NIPS 8): trees made from a network's own answers. Differences: questions are
    chosen first, by permutation importance on predictions that the tree was not made from; inputs are those of the task
    and none are made up; `features` and `depth` are not cross-validated.

    After `fit`, `tree_` has the tree, and `rules()` writes it. Raises AssayError for parameters that do not fit, a
    subject that does not predict next tokens, and splits of different features.
    """

    features: int = 8
    depth: int = 4
    tokens: int = 4
    task_features: bool = True
    seed: int = 0
    tree_: Tree | None = field(default=None, init=False, repr=False, compare=False)
    names_: dict[int, str] | None = field(default=None, init=False, repr=False, compare=False)
    fitted_on_: Origin | None = field(default=None, init=False, repr=False, compare=False)

    streams: ClassVar[tuple[str, ...]] = ()
    whole: ClassVar[bool] = True
    copies: ClassVar[bool] = False
    learns: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)

    def check_parameters(self) -> None:
        """Raise AssayError for values that no subject could have."""
        check_positive(self, features=self.features, tokens=self.tokens)
        if not isinstance(self.depth, int) or isinstance(self.depth, bool) or self.depth < 0:
            raise AssayError(f"{label(self)}: depth must be a whole number of at least 0.")

    def check(self, subject: Subject, splits: Sequence[Split]) -> None:
        """Raise AssayError for bad parameters, or a subject or splits that rules cannot stand for."""
        self.check_parameters()
        if subject.objective != "causal":
            raise AssayError(
                f"{label(self)} predicts the next token, and {subject.name!r} is judged as {subject.objective!r}; only "
                "causal language models can be compared with it."
            )
        if self.task_features and self.depth and len({frozenset(split.features) for split in splits}) > 1:
            known = "; ".join(f"{split.name!r} has {', '.join(split.features) or 'none'}" for split in splits)
            raise AssayError(f"{label(self)}: splits have different features ({known}); give task_features=False.")

    @checked
    def fit(self, samples: Samples) -> "RuleSurrogate":
        """Make the tree from what the subject predicts on the split."""
        subject, split = source_of(self, samples)
        self.check(subject, [split])
        self.tree_ = None
        part, chosen = self._chosen(split)
        labels, vocabulary = _first_choices(subject, part)
        labels = labels[chosen]
        questions, table = self._asked(Read(part.tokens, part.valid, part.features), chosen)
        if self.depth:
            sequence = np.unique(np.nonzero(chosen)[0], return_inverse=True)[1]
            held_out = sequence % 2 == 1 if sequence.max() else np.ones(len(labels), dtype=bool)
            fitted = held_out if held_out.all() else ~held_out
            best = ranked(table, labels, fitted=fitted, held_out=held_out, seed=self.seed)[: self.features]
        else:
            best = np.empty(0, dtype=np.int64)
        self.tree_ = grown(
            table[:, best],
            labels,
            [questions[column] for column in best],
            depth=self.depth,
            vocabulary=vocabulary,
            seed=self.seed,
        )
        self.names_ = None if split.names is None else dict(split.names)
        self.fitted_on_ = Origin.of(subject)
        return self

    def _chosen(self, split: Split) -> tuple[Split, Bool[np.ndarray, "sequence position"]]:
        """Some sequences, drawn until they have enough scored predictions, and which of these are used."""
        scored = (split.kinds != UNSCORED) & split.valid
        if not scored.any():
            raise AssayError(f"{label(self)}: split {split.name!r} has no scored prediction to imitate.")
        rng = np.random.default_rng(self.seed)
        order = rng.permutation(len(split))
        counts = scored[order].sum(axis=1)
        part = split.take(order[(np.cumsum(counts) - counts < ROWS) & (counts > 0)])
        chosen = (part.kinds != UNSCORED) & part.valid
        places = np.flatnonzero(chosen)
        if len(places) > ROWS:
            chosen.flat[rng.permutation(places)[ROWS:]] = False
        return part, chosen

    def _asked(
        self, read: Read, chosen: Bool[np.ndarray, "sequence position"]
    ) -> tuple[list[Question], Float[np.ndarray, "row column"]]:
        """All questions, and their answers at the chosen positions."""
        questions: list[Question] = []
        columns: list[np.ndarray] = []
        for back in range(self.tokens):
            there = read.before(back)[chosen]
            tokens, counts = np.unique(there[there != NO_TOKEN], return_counts=True)
            often = np.sort(tokens[np.argsort(-counts, kind="stable")[:MOST]])
            questions += [Question("token", back=back, token=int(token)) for token in often]
            columns.append(there[:, None] == often)
        others = [Question("position")]
        others += [Question("feature", name=name) for name in sorted(read.features)] if self.task_features else []
        columns += [read.answers(question)[chosen][:, None] for question in others]
        return questions + others, np.concatenate(columns, axis=1).astype(np.float32)

    @checked
    def apply(self, subject: Subject) -> RuleProxy:
        """The rules, in float32 (float64 for a subject in float64)."""
        return RuleProxy(subject, self.fitted_tree, self)

    @property
    def fitted_tree(self) -> Tree:
        """The tree. Raises AssayError before `fit`."""
        if self.tree_ is None:
            raise AssayError(f"{label(self)} has not been fitted; call fit(samples) before apply(subject).")
        return self.tree_

    def rules(self) -> str:
        """The tree as text. Raises AssayError before `fit`."""
        return self.fitted_tree.rules(self.names_ or {})

    def control(self) -> "RuleSurrogate | None":
        """The subject's most frequent prediction, everywhere; None for depth 0, which is just that."""
        return RuleSurrogate(depth=0) if self.depth else None

    def saved(self) -> dict[str, Any]:
        """All that it holds, in plain values and arrays."""
        tree = self.fitted_tree
        return {
            "parameters": {item.name: getattr(self, item.name) for item in fields(self) if item.init},
            "tree": vars(tree) | {"questions": [vars(question) for question in tree.questions]},
            "names": self.names_,
            "fitted_on": None if self.fitted_on_ is None else vars(self.fitted_on_),
        }

    @classmethod
    def restored(cls, saved: Mapping[str, Any]) -> "RuleSurrogate":
        """One again of what `saved` gave."""
        made = cls(**saved["parameters"])
        questions = tuple(Question(**question) for question in saved["tree"]["questions"])
        made.tree_ = Tree(**saved["tree"] | {"questions": questions})
        made.names_, made.fitted_on_ = saved["names"], Origin(**saved["fitted_on"])
        return made


def _first_choices(subject: Subject, split: Split) -> tuple[Int[np.ndarray, "sequence position"], int]:
    """The token that the subject predicts at every position, and of how many."""
    order = np.argsort(split.lengths, kind="stable")
    found, vocabulary = np.zeros(split.tokens.shape, dtype=np.int64), 0
    for index in np.array_split(order, -(-len(order) // SEQUENCES_AT_A_TIME)):
        logits = subject(*tensors(split.take(index), subject.device))
        vocabulary = logits.shape[-1]
        found[index, : logits.shape[1]] = logits.argmax(dim=-1).cpu().numpy()
    return found, vocabulary
