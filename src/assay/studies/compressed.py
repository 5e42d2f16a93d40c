"""Compressed models: how many bits are enough on text like that of the calibration, and how many elsewhere."""

import importlib
import pydoc_data.topics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from assay.engine import Engine, Samples
from assay.faithfulness import Comparison, Step, Workers, compare
from assay.models import LowRankWeights, NGram, PruneWeights, RoundWeights, weight_bits
from assay.reports import Chart, Illustrations, Series, TableView
from assay.simplify import SVD, KMeans, OneHotAttention, Simplification, label, representation_bits
from assay.studies import code
from assay.studies._parts import NEEDS_DATA, check_parts, run_parts, write_parts
from assay.subjects import Subject, load, shipped
from assay.tasks import Code, Dyck, Task, Text

BITS = (8, 6, 5, 4, 3)
PRECISION = 16
"""Bits of a number that is not rounded."""

ATTENTION = "attention"
"""The folder of the simplifications of attention beside a part's own."""


@dataclass(frozen=True)
class Part:
    """One model with its task, and what it is compressed by."""

    name: str
    subjects: Sequence[Subject]
    task: Task
    recipes: Sequence[Simplification]
    attention: Sequence[Simplification]
    sequences: int
    fit_sequences: int
    controls: bool = True

    @property
    def subject(self) -> Subject:
        """The first training seed."""
        return self.subjects[0]


def _rounding() -> list[Simplification]:
    return [RoundWeights(bits) for bits in BITS]


def _all(width: int, *, orders: Sequence[int]) -> list[Simplification]:
    """Every recipe of `--full` for a model of so many dimensions."""
    return [
        *_rounding(),
        RoundWeights(4, group=32, symmetric=False),
        *(PruneWeights(share / 100) for share in (10, 20, 30, 40, 50, 70, 90)),
        *(PruneWeights(share / 100, by="activation") for share in (30, 50)),
        *(LowRankWeights(width * share // 4, by=by) for share in (3, 2) for by in ("weights", "activation")),
        *(NGram(order) for order in orders),
    ]


def _attention(width: int) -> list[Simplification]:
    ranks = [SVD(rank) for rank in (width // 4, width // 2, width) if rank]
    return [*ranks, KMeans(16), KMeans(64), OneHotAttention()]


def dyck(*, everything: bool, device: str) -> Part:
    """Bracket matchers: five training seeds with `everything`."""
    seeds = shipped()["dyck-20-10"] if everything else (0,)
    subjects = [load("dyck-20-10", seed=seed, device=device) for seed in seeds]
    some = [*_rounding(), PruneWeights(0.3), LowRankWeights(24), NGram(4)]
    recipes = _all(32, orders=(2, 4, 8)) if everything else some
    return Part("dyck", subjects, Dyck(), recipes, _attention(16), 300 if everything else 150, 1_000)


def python(*, everything: bool, device: str) -> Part:
    """A character model of Python functions."""
    return _code("code-python", "python", everything=everything, device=device)


def java(*, everything: bool, device: str, data: str) -> Part:
    """A character model of Java functions, on `data` (see `assay run code`)."""
    return _code("code-java", data, everything=everything, device=device)


def _code(name: str, data: str, *, everything: bool, device: str) -> Part:
    subject = load(name, device=device)
    task: Code = code.task_of(subject, data)
    if everything:
        return Part(name, [subject], task, _all(128, orders=(3, 4, 6)), _attention(32), 60, 1_000)
    some = [*_rounding(), NGram(4)]
    return Part(name, [subject], task, some, [SVD(8), OneHotAttention()], 15, 150, controls=False)


def encoder(*, everything: bool, device: str) -> Part:
    """The sentence encoder all-MiniLM-L6-v2, where the package that carries it is installed."""
    subject = load("all-minilm-l6-v2", device=device)
    english, source = _english(), _source_lines()
    assert subject.tokenizer is not None
    task = Text(
        subject.tokenizer, train=english[600:1200], iid=english[:300],
        shifts={"code": source[:300], "shuffled": _shuffled(english[300:600])}, max_length=64, objective="embedding",
    )  # fmt: skip
    count = 300 if everything else 60
    return Part("all-MiniLM-L6-v2", [subject], task, _rounding(), [], count, 300, controls=False)


def smollm2(*, everything: bool, device: str) -> Part:
    """SmolLM2-135M on English, code and shuffled text, where the package that carries it is installed; slow."""
    subject = load("smollm2", device=device)
    assert subject.tokenizer is not None
    english = _english()
    count = 100 if everything else 30
    task = Text(
        subject.tokenizer, train=english[600:1200], iid=english[:count],
        shifts={"code": _source_lines()[:count], "shuffled": _shuffled(english[300 : 300 + count])}, max_length=96,
    )  # fmt: skip
    return Part("SmolLM2-135M", [subject], task, [*_rounding(), NGram(3)], [], count, 500, controls=False)


PARTS: dict[str, Callable[..., Part]] = {
    "dyck": dyck,
    "code-python": python,
    "code-java": java,
    "encoder": encoder,
    "smollm2": smollm2,
}
"""All parts by name; the default run has the first two."""


def _english() -> list[str]:
    """Paragraphs of English that every Python brings along: its own documentation."""
    paragraphs = [" ".join(part.split()) for text in pydoc_data.topics.topics.values() for part in text.split("\n\n")]
    plain = [text for text in paragraphs if len(text) > 120 and sum(map(str.isalpha, text)) > 0.75 * len(text)]
    return list(dict.fromkeys(plain))


def _source_lines() -> list[str]:
    """Pieces of Python code of the standard library, of the length of a paragraph."""
    found = []
    for path in sorted(Path(importlib.__file__).parent.parent.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        found += [text[start : start + 300] for start in range(2_000, len(text) - 300, 3_000)]
    return list(dict.fromkeys(found))


def _shuffled(lines: Sequence[str]) -> list[str]:
    """The words of every line in random order."""
    rng = np.random.default_rng(0)
    return [" ".join(rng.permutation(line.split())) for line in lines]


@dataclass(frozen=True)
class Done:
    """A finished part: its comparison, that of attention (None where there is none), and bits by proxy."""

    part: Part
    comparison: Comparison
    attention: Comparison | None
    bits: Mapping[str, float]
    folder: Path


def run(
    folder: Path,
    *,
    everything: bool = False,
    only: Sequence[str] = (),
    data: str | None = None,
    device: str = "cpu",
    sequences: int | None = None,
    overwrite: bool = False,
    workers: Workers = Workers(),
    progress: Callable[[Step], None] = lambda step: None,
) -> tuple[list[Done], Illustrations]:
    """Judge compressed copies of models in and out of distribution, and leave a run folder.

    By default the Dyck model of seed 0 and the Python model, a few recipes; with `everything` five seeds, pruning and
    low ranks. `only` names the parts to run (see `PARTS`), `data` the functions for the Java model, `sequences` how
    many a split. Every part is a comparison in a folder of its name with a page of its own. A run that was stopped goes
    on where it was. Raises AssayError as `assay.compare` does, for an unknown part, and for one whose model is missing.
    """
    check_names(only, data)

    def parts_of(name: str) -> list[Part]:
        options = {"data": data} if name == NEEDS_DATA else {}
        return [PARTS[name](everything=everything, device=device, **options)]

    done = run_parts(
        folder,
        list(only) or ["dyck", "code-python"],
        parts_of,
        _judged,
        sequences=sequences,
        overwrite=overwrite,
        workers=workers,
        progress=progress,
    )
    own = [Illustrations(tables=[agreement(one), *gaps(one)], charts=[frontier(one)]) for one in done]
    return done, write_parts(folder, done, own, [enough(done)])


def check_names(only: Sequence[str], data: str | None) -> None:
    """Raise AssayError for an unknown part, one that is named twice, and `data` with nobody to use it, or missing."""
    check_parts(only, PARTS, data)


def _judged(folder: Path, part: Part, overwrite: bool, workers: Workers, progress: Callable[[Step], None]) -> Done:
    options: dict[str, Any] = {
        "sequences": part.sequences,
        "fit_sequences": part.fit_sequences,
        "refit": False,
        "overwrite": overwrite,
        "workers": workers,
        "progress": lambda step: progress(Step(step.done, step.total, f"{part.name}: {step.text}")),
    }
    whole = compare(part.subjects, part.task, part.recipes, folder=folder, controls=part.controls, **options)
    beside = None
    if part.attention:
        beside = compare(part.subjects, part.task, part.attention, folder=folder / ATTENTION, controls=False, **options)
    return Done(part, whole, beside, dict(_bits(part)), folder)


def _bits(part: Part) -> Iterator[tuple[str, float]]:
    """Bits that state each proxy, by weight of the subject's blocks.

    Simplifications of attention keep all weights, at 16 bits each, and add what they keep once (bases, centres); an
    n-gram keeps nothing of the model.
    """
    engine = Engine(part.subject)
    weights = weight_bits(RoundWeights(16), part.subject).parameters
    train = part.task.split("train", part.fit_sequences)
    for recipe in part.recipes:
        if isinstance(recipe, NGram):
            counted = replace(recipe).fit(Samples((), subject=part.subject, split=train))
            yield label(recipe), weight_bits(counted, part.subject).total / weights
        else:
            yield label(recipe), weight_bits(recipe, part.subject).per_weight
    for recipe in part.attention:
        own = representation_bits(recipe, width=engine.widths[0], length=train.tokens.shape[1])
        yield label(recipe), PRECISION + len(engine.heads) * own.codebook / weights


def _rates(comparison: Comparison) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Agreement with limits by proxy and split."""
    return {
        (row["proxy"], split.name): (row["estimate"], row["low"], row["high"])
        for split in comparison.record.splits
        if split.role != "train"
        for row in comparison.agreement(split.name).to_dict("records")
        if not row["is_control"]
    }


def _percent(value: float) -> str:
    return ">99.9" if 0.9995 <= value < 1 else f"{100 * value:.1f}"


def agreement(done: Done) -> TableView:
    """Agreement on every split, beside the bits a weight."""
    rates = _rates(done.comparison)
    splits = [split.name for split in done.comparison.record.splits if split.role != "train"]
    verdicts = {verdict.proxy: verdict.judgement for verdict in done.comparison.verdicts()}
    return TableView(
        title=f"{done.part.name}: agreement with the subject, per cent",
        note="On the primary kind, with intervals over sequences and training seeds. Bits are by linear weight of the "
        "blocks; embeddings, norms and the output head stay as they are.",
        headings=["recipe", "bits a weight", *(name.replace("_", " ") for name in splits), "verdict"],
        rows=[
            [
                (label(recipe), ""),
                (f"{bits:.1f}" if (bits := done.bits[label(recipe)]) >= 0.1 else f"{bits:.1g}", ""),
                *(
                    (_percent(value), f"{_percent(low)} to {_percent(high)}")
                    for value, low, high in (rates[label(recipe), split] for split in splits)
                ),
                (verdicts[label(recipe)], ""),
            ]
            for recipe in done.part.recipes
        ],
    )


def gaps(done: Done) -> Iterator[TableView]:
    """What the gaps are made of, a row a recipe and shift."""
    frame = done.comparison.gaps()
    frame = frame[~frame["is_control"].astype(bool) & frame["gap"].notna()]

    def cell(row: Mapping[str, Any], name: str, ends: str) -> tuple[str, str]:
        value, low, high = row[name], row[f"{ends}low"], row[f"{ends}high"]
        if np.isnan(value):
            return "–", ""
        return f"{100 * value:+.1f}", "" if np.isnan(low) else f"{100 * low:+.1f} to {100 * high:+.1f}"

    yield TableView(
        title=f"{done.part.name}: generalization gaps, points",
        note="Agreement on iid less agreement on the shift. By sequence: every sequence counts once. At equal margin: "
        "iid re-weighted to the shift's margins of the subject. Noise: the gap of Gaussian noise of the same size in "
        "every row (five draws), where the recipe has it.",
        headings=["recipe, shift", "gap", "by sequence", "at equal margin", "noise of equal size"],
        rows=[
            [
                (f"{row['proxy']}, {row['split']}", ""),
                cell(row, "gap", ""),
                cell(row, "per_sequence", "per_sequence_"),
                cell(row, "matched", "matched_"),
                cell(row, "perturbed", "perturbed_"),
            ]
            for row in frame.to_dict("records")
        ],
        quiet=True,
    )


def enough(done: Sequence[Done]) -> TableView:
    """The fewest bits that are enough on iid, and under every shift."""
    asked = done[0].comparison.record.settings["min_agreement"]
    rows = []
    for one in done:
        rates = _rates(one.comparison)
        shifts = one.comparison.shifts
        tried = [recipe for recipe in one.part.recipes if isinstance(recipe, RoundWeights) and recipe.group is None]
        on_iid = [recipe.bits for recipe in tried if rates[label(recipe), "iid"][1] >= asked]
        elsewhere = [
            recipe.bits for recipe in tried if all(rates[label(recipe), shift][1] >= asked for shift in shifts)
        ]
        rows.append([
            (one.part.name, ""),
            (str(min(on_iid)) if on_iid else "none shown", ""),
            (str(min(elsewhere)) if elsewhere else "none shown", ""),
            (", ".join(shift.replace("_", " ") for shift in shifts), ""),
        ])  # fmt: skip
    return TableView(
        title=f"Bits that are enough for {100 * asked:g}% agreement",
        note=f"The fewest bits of rounding (of {', '.join(map(str, BITS))}) whose lower limit of agreement is at least "
        f"{100 * asked:g}%: on text like that it was made on, and under every shift. None shown: more sequences, or "
        "more bits, are needed.",
        headings=["model", "in distribution", "under every shift", "shifts"],
        rows=rows,
    )


def frontier(done: Done) -> Chart:
    """Agreement against bits a weight, in distribution and under the worst shift, for every kind of recipe."""
    shifts = done.comparison.shifts
    kinds: dict[str, list[tuple[float, dict[str, tuple[float, float, float]]]]] = {}
    for comparison, recipes in ((done.comparison, done.part.recipes), (done.attention, done.part.attention)):
        if comparison is None:
            continue
        rates = _rates(comparison)
        for recipe in recipes:
            name = label(recipe)
            worst = min((rates[name, shift] for shift in shifts), key=lambda rate: rate[0])
            kinds.setdefault(type(recipe).__name__, []).append(
                (done.bits[name], {"iid": rates[name, "iid"], "worst shift": worst})
            )
    series = []
    for kind, found in kinds.items():
        found.sort(key=lambda item: item[0])
        for variant in ("iid", "worst shift"):
            values = [rates[variant] for _, rates in found]
            series.append(
                Series(
                    name=kind,
                    variant=variant,
                    x=[bits for bits, _ in found],
                    y=[100 * value for value, _, _ in values],
                    low=[100 * low for _, low, _ in values],
                    high=[100 * high for _, _, high in values],
                )
            )
    return Chart(
        name=f"frontier-{done.part.name}",
        caption=f"{done.part.name}: agreement against description length; simplifications of attention keep every "
        "weight.",
        x_label="bits by linear weight of the blocks",
        y_label="agreement with the subject, %",
        names=None,
        series=series,
        logarithmic=True,
    )
