"""Other models as llama.cpp counts them, beside what Assay says of the same text."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from assay._errors import AssayError, unknown_name
from assay._files import write_atomically
from assay.faithfulness import ALL, Comparison
from assay.models import CONTEXT, Counted, Counts, OtherModel, count_like_llama_cpp, cut_like_llama_cpp
from assay.reports import TableView
from assay.simplify import Simplification, label
from assay.subjects import Subject
from assay.tasks import Split, Text

COUNTINGS = ("llama.cpp",)
"""The ways of others to count that can be asked for."""

COUNTS = "counting.json"
"""Where the numbers are in a run folder, in full."""

Found = Mapping[str, Mapping[str, Counts]]
"""Counts by model and split."""


def chunks_of(
    subject: Subject,
    task: Text,
    simplifications: Sequence[Simplification],
    counting: str,
    *,
    context: int = CONTEXT,
    chunks: int | None = None,
) -> dict[str, Split]:
    """The text of every split that is judged in chunks of `context` tokens, at most `chunks` of each.

    Raises AssayError, before any work, where nothing can be counted so: an unknown counting, no other model, one that
    was stored (of its chunks nothing is known), another objective, more context than a model has positions, and text
    that is too short.
    """
    if counting not in COUNTINGS:
        raise unknown_name("counting", counting, COUNTINGS)
    others = [item for item in simplifications if isinstance(item, OtherModel)]
    if not others:
        raise AssayError(
            f"{counting} counts two models that are run on its own chunks of text; give the other one (--with MODEL; "
            "what was stored holds no such chunks)."
        )
    if subject.objective != "causal":
        raise AssayError(
            f"{counting} counts predictions of the next token, and {subject.name!r} is {subject.objective}."
        )
    for one in (subject, *(item.other() for item in others)):
        if one.positions is not None and context > one.positions:
            raise AssayError(
                f"{counting} counts chunks of {context:,} tokens and {one.name!r} has {one.positions:,} positions; "
                "give a shorter context (--context)."
            )
    return {
        name: cut_like_llama_cpp(
            task.tokenizer,
            task.whole(name),
            context=context,
            chunks=chunks,
            name=name,
            role="iid" if name == "iid" else "shift",
        )
        for name in task.split_names
        if name != "train"
    }


def counted(subject: Subject, simplifications: Sequence[Simplification], chunks: Mapping[str, Split]) -> Found:
    """The counts of every `OtherModel` that compare() has judged, by its name and split."""
    others = {label(item): item for item in simplifications if isinstance(item, OtherModel)}
    found: dict[str, dict[str, Counts]] = {}
    for name, item in others.items():
        model = item.apply(subject)
        found[name] = {split: count_like_llama_cpp(subject, model, chunks[split]) for split in chunks}
    return found


def write_counts(folder: Path, found: Found, chunks: Mapping[str, Split]) -> None:
    """Write counting.json: by model and split, every number with llama.cpp's error."""
    about = {
        split: {"chunks": len(one), "context": one.tokens.shape[1], "first_token": int(one.tokens[0, 0])}
        for split, one in chunks.items()
    }
    models = {name: {split: _plain(asdict(counts)) for split, counts in one.items()} for name, one in found.items()}
    text = json.dumps({"counting": COUNTINGS[0], "splits": about, "models": models}, indent=2, allow_nan=False) + "\n"
    write_atomically(folder / COUNTS, lambda path: path.write_text(text, encoding="utf-8"))


def _plain(value: Any) -> Any:
    """What JSON knows: null for what is no number, value and error by name."""
    if isinstance(value, Counted):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def counts_table(comparison: Comparison, found: Found, chunks: Mapping[str, Split]) -> TableView:
    """llama.cpp's main numbers with its errors, and Assay's mean KL and same first choice on all predictions."""
    frame = comparison.results
    frame = frame[(frame["kind"] == ALL) & (frame["feature"] == "") & frame["trained"].astype(bool)]
    known = frame.set_index(["proxy", "split", "metric"])[["estimate", "low", "high"]]
    context = next(iter(chunks.values())).tokens.shape[1]
    return TableView(
        title="As llama.cpp counts",
        note=f"The text of each split as one, in whole chunks of {context:,} tokens, of which the predictions of the "
        "second half count; the base's log-probabilities in llama.cpp's 16-bit codes, whose own KL is about 1e-6 nats. "
        "Its errors (±) take predictions as independent, which they are not. Beside it Assay's numbers, of every "
        "scored prediction of the sequences that are judged, with intervals over these. KL in nats of the other model "
        "from the subject.",
        headings=[
            "model, split", "KL", "same first choice, %", "ln perplexity ratio", "perplexity", "the subject's",
            "predictions", "KL (Assay)", "same first choice, % (Assay)",
        ],
        rows=[
            [
                (f"{name}, {split}", ""),
                _cell(counts.kl),
                _cell(counts.same_top, 100.0),
                _cell(counts.log_ratio),
                _cell(counts.perplexity),
                _cell(counts.base_perplexity),
                (f"{counts.positions:,}", ""),
                _own(known, (name, split, "kl")),
                _own(known, (name, split, "same_prediction"), 100.0),
            ]
            for name, by_split in found.items()
            for split, counts in by_split.items()
        ],
    )  # fmt: skip


def _number(value: float) -> str:
    return f"{value:.1e}" if 0 < abs(value) < 0.01 else f"{value:.3f}"


def _cell(counted: Counted, times: float = 1.0) -> tuple[str, str]:
    return _number(times * counted.value), f"± {_number(times * counted.error)}"


def _own(known: pd.DataFrame, place: tuple[str, str, str], times: float = 1.0) -> tuple[str, str]:
    """A number of Assay's with its interval; a dash where it was not measured."""
    value, low, high = (float(times * number) for number in known.loc[place])
    if math.isnan(value):
        return "–", ""
    return _number(value), "" if math.isnan(low) else f"{_number(low)} to {_number(high)}"
