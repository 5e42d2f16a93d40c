"""A program that is right about a task, as the explanation of a Transformer that was trained on it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from zlib import crc32

import numpy as np
import pandas as pd
import torch
from transformers import BertConfig, BertForMaskedLM

from assay._errors import AssayError, unknown_name
from assay.faithfulness import ALL, Comparison, compare
from assay.reports import TableView
from assay.subjects import IGNORED, Batch, Progress, Recipe, Subject, train
from assay.tasks import NO_TOKEN, UNSCORED, Kind, Role, Split
from assay.testing.compiled import Compiled, Interpreted, Value, compile_program, known_program

LENGTH, WORDS = 7, 6
"""Words of the longest input, and how many different ones there are."""

TRAINED = 5
"""Words of the longest input that is trained on."""

RECIPE = Recipe(steps=2_000, learning_rate=2e-3, betas=(0.9, 0.98), weight_decay=0.01, warmup_steps=50, clip_norm=1.0)

ROWS = 96
"""Inputs of a step."""


def histogram() -> Compiled:
    """The program that counts how often each word is in the input."""
    known = known_program("histogram", length=LENGTH, words=WORDS)
    return compile_program(known.output, known.length, family=known.family, name="histogram")


def _met(words: Sequence[Value], known: Sequence[Value]) -> bool:
    """Whether the last two of the known words are both there."""
    return {*known[-2:]} <= {*words}


def _held(words: Sequence[Value]) -> bool:
    """Whether an input is held out of the training: a tenth of them is."""
    return crc32(" ".join(map(str, words)).encode()) % 10 == 0


@dataclass(frozen=True)
class Histogram:
    """How often each word is in the input, out of six words; the last two never occur together in training.

    `train` and `iid` have up to 5 words; a tenth of all such inputs is in iid and never trained on. `longer` inputs
    have 6 or 7 words, those of `pair` up to 5 and both of the two that never met, those of `both` 6 or 7 and both.
    Lengths are drawn evenly, and of a length every input with the same chance.
    """

    seed: int = 0
    name: str = field(default="histogram", init=False)
    kinds: tuple[Kind, ...] = field(default=(Kind("count", "how often the word is in the input"),), init=False)
    features: tuple[()] = field(default=(), init=False)
    primary_kind: str = field(default="count", init=False)
    split_names: tuple[str, ...] = field(default=("train", "iid", "longer", "pair", "both"), init=False)

    @cached_property
    def compiled(self) -> Compiled:
        """The program, compiled: it reads the same tokens."""
        return histogram()

    def describe(self) -> dict[str, object]:
        """The parameters, as plain values."""
        return {"task": self.name, "seed": self.seed, "words": WORDS, "trained": TRAINED, "length": LENGTH}

    @cached_property
    def trainable(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """All inputs that may be trained on, as tokens and labels, by length."""
        words = self.compiled.program.words
        found = []
        for length in range(1, TRAINED + 1):
            inputs = [one for one in product(words, repeat=length) if not _met(one, words) and not _held(one)]
            outputs = self.compiled.outputs(inputs)
            found.append((self.compiled.encode(inputs)[0], np.where(outputs == NO_TOKEN, IGNORED, outputs)))
        return found

    def inputs(self, name: str, count: int, rng: np.random.Generator) -> list[tuple[Value, ...]]:
        """Random inputs of a split."""
        words = self.compiled.program.words
        lengths = (1, TRAINED) if name in {"train", "iid", "pair"} else (TRAINED + 1, LENGTH)
        found: list[tuple[Value, ...]] = []
        while len(found) < count:
            drawn = rng.integers(len(words), size=int(rng.integers(lengths[0], lengths[1] + 1)))
            one = tuple(words[place] for place in drawn)
            fits = name not in {"train", "iid"} or _held(one) == (name == "iid")
            if fits and _met(one, words) == (name in {"pair", "both"}):
                found.append(one)
        return found

    def split(self, name: str, sequences: int) -> Split:
        """The first `sequences` sequences of a split. Raises AssayError for an unknown split or a number below 1."""
        roles: dict[str, tuple[Role, str]] = {
            "train": ("train", "up to five words, the last two never together"),
            "iid": ("iid", "inputs of that kind that were not trained on"),
            "longer": ("shift", "six or seven words"),
            "pair": ("shift", "the two words that never met, together"),
            "both": ("shift", "six or seven words, the two among them"),
        }
        if name not in roles:
            raise unknown_name("split", name, roles)
        if sequences < 1:
            raise AssayError(f"split({name!r}, sequences={sequences}): must be at least 1.")
        inputs = self.inputs(name, sequences, np.random.default_rng([self.seed, self.split_names.index(name)]))
        tokens, lengths = self.compiled.encode(inputs)
        outputs = self.compiled.outputs(inputs)
        role, description = roles[name]
        return Split(
            name=name,
            role=role,
            description=description,
            tokens=tokens,
            lengths=lengths,
            kinds=np.where(outputs == NO_TOKEN, UNSCORED, 0),
            objective="masked",
            targets=outputs,
        )


def trained(
    task: Histogram, seed: int, *, recipe: Recipe = RECIPE, device: str = "cpu",
    report: Callable[[Progress], None] = lambda progress: None,
) -> Subject:  # fmt: skip
    """An ordinary BERT (2 layers of 4 heads, width 64) trained on the task."""
    compiled = task.compiled
    config = BertConfig(
        vocab_size=1 + len(compiled.names),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=LENGTH + 1,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertForMaskedLM(config)

    known = task.trainable

    def batches(step: int) -> Batch:
        # All inputs of a step have one length, so that nothing has to be padded.
        rng = np.random.default_rng([task.seed, seed, step])
        tokens, labels = known[int(rng.integers(len(known)))]
        chosen = rng.integers(len(tokens), size=ROWS)
        return Batch(tokens[chosen], labels[chosen])

    train(model, batches, recipe, checkpoint=None, device=device, report=report)
    return Subject(model, None, "histogram", seed=seed, objective="masked")


@dataclass(frozen=True)
class Explained:
    """How far a right program and a Transformer agree, of one training: by split, shares and their limits.

    `agreement` is of the two, `accuracy` the Transformer's; the program is always right. `gap` is that of the verdict.
    """

    seed: int
    agreement: Mapping[str, tuple[float, float, float]]
    accuracy: Mapping[str, float]
    shift: str
    gap: tuple[float, float, float]
    verdict: str


def explain(task: Histogram, subject: Subject, sequences: int) -> Explained:
    """Judge the program as the explanation of a Transformer."""
    comparison = compare(subject, task, [Interpreted(task.compiled)], sequences=sequences, progress=False)
    (verdict,) = comparison.verdicts()
    rows = whole(comparison)
    same, right = (
        {row["split"]: row for row in rows[rows["metric"] == metric].to_dict("records")}
        for metric in ("same_prediction", "subject_accuracy")
    )
    return Explained(
        seed=subject.seed or 0,
        agreement={split: (row["estimate"], row["low"], row["high"]) for split, row in same.items()},
        accuracy={split: row["estimate"] for split, row in right.items()},
        shift=verdict.shift or "",
        gap=(verdict.gap, verdict.gap_low, verdict.gap_high),
        verdict=verdict.judgement,
    )


def whole(comparison: Comparison) -> pd.DataFrame:
    """The results of an explanation itself over all predictions."""
    results = comparison.results
    found: pd.DataFrame = results[
        (results["kind"] == ALL) & (results["feature"] == "") & results["trained"] & ~results["is_control"]
    ]
    return found


def table(found: Sequence[Explained], cell: Callable[[tuple[float, float, float]], tuple[str, str]]) -> TableView:
    """Agreement of program and Transformers on every split."""
    splits = list(found[0].agreement)
    return TableView(
        title="A program that is right, as the explanation of a trained Transformer",
        note="How often each word is in the input: an ordinary BERT of two layers, trained on inputs of up to five "
        "words in which two of the six never met, and the program that counts them. Agreement of the two in percent, "
        "with intervals; the program is always right, so that this is the Transformer's accuracy, too, and where that "
        "errs the program never errs with it. It is right about the task; about the model it holds where that was "
        "trained.",
        headings=["training", *splits, "largest gap, in points", "verdict"],
        rows=[
            [(f"seed {one.seed}", ""), *(cell(one.agreement[split]) for split in splits),
             (cell(one.gap)[0], f"{cell(one.gap)[1]}, {one.shift}"), (one.verdict, "")]
            for one in found
        ],
    )  # fmt: skip
