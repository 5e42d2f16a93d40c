"""Toy English: a model organism, and what is known of it: where it succeeds, how it fails, how deep its answers lie."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from assay._errors import AssayError
from assay.faithfulness import Step
from assay.reports import Illustrations, TableView
from assay.studies.organisms._study import Findings
from assay.studies.organisms._toy_english import (
    JUDGED,
    LEAST_LOST,
    LEAST_RIGHT,
    MOST_EARLY,
    SCENARIOS,
    SUBJECT,
    Depth,
    Right,
    Without,
    accuracies,
    bag_of_words,
    depth,
    said,
    scenarios,
    train,
)
from assay.subjects import Subject, load, shipped
from assay.tasks import Split, ToyEnglish
from assay.tasks.toy_english import (
    GIVERS,
    GRAMMARS,
    NAMES,
    NOUNS,
    OUTSIDERS,
    PLURAL_NOUNS,
    PLURAL_VERBS,
    VERBS,
    VOCABULARY,
)

__all__ = ["SEEDS", "SEQUENCES", "SUBJECT", "SUMMARY", "Found", "Way", "run", "train", "ways"]

SUMMARY = "nine tasks in one small decoder: accuracy on every split, how deep the answers lie, how it fails"

SEEDS = 3

SEQUENCES = 400
"""Prompts a split, at most."""


@dataclass(frozen=True)
class Way:
    """A way in which a model answers on a split, and on which share of the prompts it does."""

    asks: str
    split: str
    text: str
    share: float


@dataclass(frozen=True)
class Found:
    """What is known of one shipped model: `accuracy` by task and split."""

    name: str
    seed: int
    steps: int
    accuracy: Mapping[str, Mapping[str, Right]]
    depths: Sequence[Depth]
    ways: Sequence[Way]
    without: Sequence[Without]


def early() -> list[str]:
    """The names of the shipped models of earlier steps, in their order."""
    names = [name for name in shipped() if name.startswith(f"{SUBJECT}@")]
    return sorted(names, key=lambda name: int(name.partition("@")[2]))


def run(folder: Path, *, seeds: int, sequences: int, device: str, progress: Callable[[Step], None]) -> Findings:
    """Measure the shipped models of toy English: the first so many seeds, and the earlier ones of a training.

    The acceptance test is among the tables (see `Depth`). Raises AssayError where no model is shipped, or fewer seeds
    than are asked for.
    """
    known = shipped().get(SUBJECT)
    if known is None:
        raise AssayError(f"no model {SUBJECT!r} is shipped; train one: assay train toy-english.")
    if seeds > len(known):
        raise AssayError(f"{seeds} seeds were asked for; {len(known)} trainings of {SUBJECT} are shipped.")
    subjects = [load(SUBJECT, seed=seed, device=device) for seed in known[:seeds]]
    subjects += [load(name, device=device) for name in early()]
    found = []
    for number, subject in enumerate(subjects):
        who = f"{subject.name} seed {subject.seed}"
        progress(Step(number, len(subjects) + 1, who))
        found.append(
            Found(
                name=subject.name,
                seed=subject.seed or 0,
                steps=subject.record["steps"],
                accuracy=accuracies(subject, sequences),
                depths=[depth(subject, asks, sequences) for asks in GRAMMARS],
                ways=ways(subject, sequences),
                without=scenarios(subject, sequences),
            )
        )
    progress(Step(len(subjects), len(subjects) + 1, "a bag of words"))
    bags = {asks: bag_of_words(asks) for asks in JUDGED}
    numbers = {"models": [asdict(one) for one in found], "bag_of_words": bags}
    return Findings(numbers, Illustrations(tables=tables(found, bags, sequences)))


def ways(subject: Subject, prompts: int) -> list[Way]:
    """How a subject answers where the right answer is not what it says, or there is none: the known truths."""
    return [
        Way(asks, name, text, float(np.mean(list(map(holds, *_read(subject, asks, name, prompts))))))
        for asks, name, text, holds in _WAYS
    ]


def _read(subject: Subject, asks: str, name: str, prompts: int) -> tuple[list[list[str]], list[str], list[str]]:
    """Prompts in words, what the subject says, and the right answer."""
    split: Split = ToyEnglish(asks).split(name, prompts)
    texts = [
        [VOCABULARY[token] for token in tokens[1:length]]
        for tokens, length in zip(split.tokens.tolist(), split.lengths.tolist(), strict=True)
    ]
    assert split.answers is not None
    answers = [VOCABULARY[token] for token in split.answers.max(axis=1)]
    return texts, [VOCABULARY[token] for token in said(subject.model, split)], answers


def _is_letter_of_slot(labels: Sequence[str]) -> Callable[[list[str], str, str], bool]:
    return lambda text, word, answer: word == "ABCD"[labels.index(answer)]


def _is_label_of_distractor(text: list[str], word: str, answer: str) -> bool:
    """Whether the label is that of the colour that was stated last."""
    colour = text[text.index("question") - 2]
    options = text[text.index("?") + 1 : -1]
    return word == options[options.index(colour) - 1]


def _agrees_with_nearest(text: list[str], word: str, answer: str) -> bool:
    """Whether the word is a verb of the number of the last noun."""
    noun = next(one for one in reversed(text) if one in NOUNS + PLURAL_NOUNS)
    return word in (PLURAL_VERBS if noun in PLURAL_NOUNS else VERBS)


def _is_other_name(text: list[str], word: str, answer: str) -> bool:
    """Whether the word is a name that is not in the prompt."""
    return word in NAMES + GIVERS + OUTSIDERS and word not in text


_WAYS: tuple[tuple[str, str, str, Callable[[list[str], str, str], bool]], ...] = (
    ("choice", "letters", "says the letter, A to D, of the right slot", _is_letter_of_slot("WXYZ")),
    ("choice", "numbers", "says the letter, A to D, of the right slot", _is_letter_of_slot(("01", "02", "03", "04"))),
    ("choice", "distractor", "says the label of the colour stated last", _is_label_of_distractor),
    ("choice", "balanced", "says A", lambda text, word, answer: word == "A"),
    ("choice", "open", "says A", lambda text, word, answer: word == "A"),
    ("agreement", "three", "says a verb of the number of the nearest noun", _agrees_with_nearest),
    ("agreement", "relative", "says a verb of the number of the nearest noun", _agrees_with_nearest),
    ("ioi", "outside_io", "says a name that is not in the prompt", _is_other_name),
    ("ioi", "distractor", "says a name that is not in the prompt", _is_other_name),
)


def tables(found: Sequence[Found], bags: Mapping[str, float], prompts: int) -> list[TableView]:
    """All that was found."""
    seeds = [one for one in found if one.name == SUBJECT]
    return [
        _of_splits(seeds, prompts),
        _acceptance(seeds, bags),
        _of_ways(found),
        _of_scenarios(seeds[0]),
        _of_steps([*(one for one in found if one.name != SUBJECT), *seeds[:1]]),
    ]


def _cell(value: float, below: str = "") -> tuple[str, str]:
    return f"{value:.3f}", below


def _interval(one: Right) -> str:
    found = stats.binomtest(round(one.accuracy * one.prompts), one.prompts).proportion_ci(0.95, method="exact")
    return f"[{found.low:.3f}, {found.high:.3f}]"


def _of_splits(seeds: Sequence[Found], prompts: int) -> TableView:
    rows = []
    for asks in GRAMMARS:
        for name in ToyEnglish(asks).split_names[1:]:
            measured = [one.accuracy[asks][name] for one in seeds]
            rows.append([
                (f"{asks}, {name}", ""),
                (str(measured[0].prompts), ""),
                *(_cell(one.accuracy, f"{_interval(one)}; {one.over_foils:.3f}") for one in measured),
            ])  # fmt: skip
    return TableView(
        title="Accuracy on every split",
        note=f"The share of prompts (at most {prompts}) after which the likeliest of all words is right; below it, its "
        "exact 95% interval (Clopper and Pearson; over prompts, not over trainings), and the share after which the "
        "right words together are likelier than the foils, which hides that something else is said. "
        "choice/open and facts/guess have no right answer: theirs is the share of A, and of an object drawn by chance.",
        headings=["split", "prompts", *(f"seed {one.seed}" for one in seeds)],
        rows=rows,
    )


def _acceptance(seeds: Sequence[Found], bags: Mapping[str, float]) -> TableView:
    rows = [
        [
            (f"{one.asks}, seed {model.seed}", ""),
            *(_cell(share) for share in one.after),
            _cell(one.without_heads),
            (f"{bags[one.asks]:.3f}" if one.asks in bags else "–", ""),
            (("yes" if one.accepted else "no") if one.asks in JUDGED else "not asked", ""),
        ]
        for model in seeds
        for one in model.depths
    ]
    return TableView(
        title="The acceptance test: how deep the answers lie",
        note="Accuracy on iid read off the residual stream behind each block (by the last norm and the unembedding), "
        "and with all heads above the first block replaced by their means over all positions of these prompts. "
        f"Accepted: at least {LEAST_RIGHT} at the end, at most {MOST_EARLY} after the first block, and at least "
        f"{LEAST_LOST} lost without the heads above it. Bag of words: a logistic regression on words, their positions "
        "and their numbers, which tells how far a task could be solved without composition; it is about the task, and "
        "no part of the test.",
        headings=["task", "after block 1", "block 2", "block 3", "without heads above", "bag of words", "accepted"],
        rows=rows,
    )


def _of_ways(found: Sequence[Found]) -> TableView:
    names = [f"{one.name} seed {one.seed}" for one in found]
    rows = [
        [(f"{way.asks}, {way.split}: {way.text}", ""), *(_cell(one.ways[number].share) for one in found)]
        for number, way in enumerate(found[0].ways)
    ]
    return TableView(
        title="How it answers where it fails",
        note="The share of prompts after which the model does what is said.",
        headings=["split, and what it says", *names],
        rows=rows,
    )


def _of_scenarios(model: Found) -> TableView:
    rows = [
        [(one.part, ""), _cell(one.iid), *(_cell(one.scenarios[name]) for name in SCENARIOS)] for one in model.without
    ]
    return TableView(
        title=f"Facts by what gives the answer, seed {model.seed}, without one part",
        note="Accuracy with a head or an MLP replaced by its mean over all positions of the prompts of iid. Recall: "
        "memory against the rule of the suffix, or without one; both: memory and the rule agree; heuristic: the rule "
        "alone; guess: nothing tells (chance is 0.1). iid is a mixture of the first two, and a number of it alone does "
        "not say of what.",
        headings=["without", "iid", *SCENARIOS],
        rows=rows,
    )


def _of_steps(found: Sequence[Found]) -> TableView:
    return TableView(
        title="Along the training of seed 0",
        note="Accuracy on iid of the models that were kept, and of the finished one.",
        headings=["task", *(f"step {one.steps:,}" for one in found)],
        rows=[[(asks, ""), *(_cell(one.accuracy[asks]["iid"].accuracy) for one in found)] for asks in GRAMMARS],
    )
