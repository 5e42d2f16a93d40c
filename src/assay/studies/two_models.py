"""What a page shows of other models beside verdicts and gaps: flips, tails, where it breaks, the worst sequences."""

import copy
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from assay._errors import AssayError
from assay.engine import Proxy, Samples, Site, WholeModel, collect, engine_of, tensors
from assay.faithfulness import ALL, Comparison
from assay.models import LARGE, Breaks, breaks
from assay.reports import Illustrations, TableView, TextView
from assay.simplify import Simplification, applied, is_whole, label
from assay.subjects import Subject
from assay.tasks import UNSCORED, Split, Task

BROKEN_ON = 50
"""Sequences on which blocks are compared."""

WORST = 10
"""Sequences that are shown of a model, the worst over all splits."""

SHOWN_TOKENS = 400
"""Tokens of a sequence that are shown."""


def views(  # noqa: PLR0917
    comparison: Comparison,
    subject: Subject,
    task: Task,
    simplifications: Sequence[Simplification],
    sequences: int,
    fit_sequences: int,
) -> Illustrations:
    """The tables and texts of what replaces the subject whole and differs from it; nothing where there is none.

    Recipes are fitted once more, on the same `fit_sequences` sequences: only what they learned about the subject was
    kept. Where a model breaks, and on which sequences, is shown of those that are models of their own (other models,
    and recipes on weights).
    """
    whole = {label(item): item for item in simplifications if is_whole(item)}
    names = [verdict.proxy for verdict in comparison.verdicts() if verdict.judgement != "identical"]
    different = {name: recipe for name, recipe in whole.items() if name in names}
    if not different:
        return Illustrations()
    splits = {
        split.name: task.split(split.name, sequences) for split in comparison.record.splits if split.role != "train"
    }
    embedding = subject.objective == "embedding"
    tables = [] if embedding else [make(comparison, different) for make in (_means, _tails, _flips)]
    texts: list[TextView] = []
    for name, recipe in different.items():
        model = _proxy_of(recipe, subject, task, fit_sequences)
        if isinstance(model, WholeModel):
            tables.append(_broken(subject, name, model.model, splits))
            texts += [] if embedding else _worst(comparison, subject, name, model, splits)
    return Illustrations(tables=tables, texts=texts)


def _proxy_of(recipe: Simplification, subject: Subject, task: Task, fit_sequences: int) -> Proxy:
    """What compare() has judged."""
    train = task.split(task.split_names[0], fit_sequences)
    if train.role == "train":
        samples = collect(engine_of(subject, parts=bool(recipe.streams)), train, recipe.streams)
    else:
        samples = Samples((), subject=subject)
    return applied(copy.deepcopy(recipe).fit(samples.at(Site("model", {}))), subject)


def _in_order(comparison: Comparison, names: Collection[str]) -> list[dict[str, Any]]:
    frame = comparison.models()
    chosen = frame[(frame["kind"] == comparison.record.primary_kind) & frame["proxy"].isin(names)]
    return [dict(row) for row in chosen.to_dict("records")]


def _number(value: float) -> str:
    """A divergence or a difference in three digits, small ones by powers."""
    if math.isnan(value):
        return "–"
    if value == 0:
        return "0"
    return f"{value:.3f}" if abs(value) >= 0.01 else f"{value:.1e}"


def _cell(value: float, low: float, high: float) -> tuple[str, str]:
    return _number(value), "" if math.isnan(low) else f"{_number(low)} to {_number(high)}"


def _flips(comparison: Comparison, names: Collection[str]) -> TableView:
    rows = [
        [
            (f"{row['proxy']}, {row['split']}", ""),
            (f"{row['flips_to_wrong']:,.0f}", ""),
            (f"{row['flips_to_right']:,.0f}", ""),
            (f"{row['flips_p']:.2g}", ""),
            _cell(*(100 * row[f"accuracy_change{end}"] for end in ("", "_low", "_high"))),
            (f"{row['predictions']:,.0f}", ""),
        ]
        for row in _in_order(comparison, names)
        if not math.isnan(row["flips_p"])
    ]
    return TableView(
        title="Flips: where one of the two models is right and the other wrong",
        note="On the primary kind. Accuracy sees only the difference of the two, in points with its interval; p is the "
        "test that they are as many, the signs of whole sequences flipped at random.",
        headings=["model, split", "right to wrong", "wrong to right", "p", "accuracy changes by", "predictions"],
        rows=rows,
    )


_MEANS = {
    "kl": "KL", "kl_reverse": "KL back", "log_perplexity_ratio": "ln perplexity ratio",
    "right_probability": "right token", "first_five": "first five",
}  # fmt: skip


def _means(comparison: Comparison, names: Collection[str]) -> TableView:
    frame = comparison.results
    frame = frame[(frame["kind"] == comparison.record.primary_kind) & (frame["feature"] == "") & frame["trained"]]
    known = frame.set_index(["proxy", "split", "metric"])[["estimate", "low", "high"]]
    shown = [metric for metric in _MEANS if metric in set(frame["metric"])]
    places = [(row["proxy"], row["split"]) for row in _in_order(comparison, names)]
    return TableView(
        title="How far the two models' distributions are from each other, on the average",
        note="On the primary kind, with intervals over sequences. KL in nats of the other model from the subject, and "
        "the other way round. ln of the ratio of perplexities: above 0, the other model predicts worse. Right token: "
        "the change of its probability. First five: the share of the subject's five most likely tokens that are among "
        "the other's.",
        headings=["model, split", *(_MEANS[metric] for metric in shown)],
        rows=[
            [
                (f"{proxy}, {split}", ""),
                *(_cell(*known.loc[(proxy, split, metric)].tolist()) for metric in shown),
            ]
            for proxy, split in places
        ],
    )


def _tails(comparison: Comparison, names: Collection[str]) -> TableView:
    rows = [
        [
            (f"{row['proxy']}, {row['split']}", ""),
            *(_cell(*(row[f"kl_{share}{end}"] for end in ("", "_low", "_high"))) for share in (50, 90, 99)),
            (_number(row["kl_max"]), f"sequence {row['kl_max_sequence']:.0f}, token {row['kl_max_position']:.0f}"),
            ("–" if math.isnan(row["design_effect"]) else f"{row['design_effect']:.1f}", ""),
        ]
        for row in _in_order(comparison, names)
        if not math.isnan(row["kl_max"])
    ]
    return TableView(
        title="The tails: KL of single predictions",
        note="Quantiles over predictions, in nats, with intervals over sequences where there are at least a hundred. "
        "Tokens of one sequence are not independent: the last column is by how much the standard error of the mean KL "
        "over sequences is larger than over tokens.",
        headings=["model, split", "median", "90%", "99%", "largest", "error, times that of tokens"],
        rows=rows,
        quiet=True,
    )


def _broken(subject: Subject, name: str, other: Subject, splits: Mapping[str, Split]) -> TableView:
    """The blocks of a model, on every split."""
    found: dict[str, Breaks] = {}
    reason = None
    for split_name, split in splits.items():
        try:
            found[split_name] = breaks(subject, other, split.first(BROKEN_ON))
        except AssayError as error:
            reason = str(error)
    if not found:
        return TableView(title=f"Where {name} breaks", note=f"Skipped: {reason}", headings=["block"], rows=[])
    first = next(iter(found.values()))
    blocks = first.blocks["layer"].tolist()
    note = (
        "Relative errors, block by block. Local: what the other model's block makes of the subject's input, so "
        "that a block that differs stands out; accumulated: how far the residual stream has come from the "
        f"subject's by then. On {BROKEN_ON} sequences a split."
    )
    for where, one in found.items():
        if one.first_large is not None:
            note += f" On {where} the stream is off by more than {100 * LARGE:g}% from block {one.first_large} on."
    if first.reason is not None:
        note += f" Skipped: {first.reason}."
    return TableView(
        title=f"Where {name} breaks: {_says(found)}",
        note=note,
        headings=["block", *(f"{what}, {split}" for split in found for what in ("local", "accumulated"))],
        rows=[
            [
                (str(block), ""),
                *(
                    (_number(float(one.blocks[what][place])), "")
                    for one in found.values()
                    for what in ("local", "accumulated")
                ),
            ]
            for place, block in enumerate(blocks)
        ],
    )


def _says(found: Mapping[str, Breaks]) -> str:
    suspects = {split: one.suspect for split, one in found.items() if one.suspect is not None}
    if not suspects:
        return "no block stands out"
    if len(set(suspects.values())) == 1 and len(suspects) == len(found):
        return f"block {next(iter(suspects.values()))} stands out"
    return ", ".join(f"block {block} stands out on {split}" for split, block in suspects.items())


def _worst(
    comparison: Comparison, subject: Subject, name: str, model: Proxy, splits: Mapping[str, Split]
) -> Iterator[TextView]:
    """The sequences of all splits with the largest mean KL, every token coloured by how far the models are apart."""
    frame = comparison.models()
    found: list[tuple[float, str, int]] = []
    for row in frame[(frame["proxy"] == name) & (frame["kind"] == ALL)].to_dict("records"):
        if isinstance(row["kl_worst"], float):
            continue
        pairs = zip(row["kl_worst"], row["kl_worst_means"], strict=True)
        found += [(-float(mean), str(row["split"]), int(sequence)) for sequence, mean in pairs]
    for mean, split, sequence in sorted(found)[:WORST]:
        one = splits[split].take(np.array([sequence]))
        yield _text(subject, model, one, name, f"{split}, sequence {sequence}: mean KL {-mean:.3f} nats")


def _text(subject: Subject, model: Proxy, one: Split, name: str, title: str) -> TextView:
    """One sequence, token by token."""
    tokens, valid = tensors(one, subject.device)
    first, second = (each(tokens, valid)[0].double() for each in (subject, model))
    p, q = first.log_softmax(dim=-1), second.log_softmax(dim=-1)
    middle = torch.logaddexp(p, q) - math.log(2)
    jsd = ((p.exp() * (p - middle) + q.exp() * (q - middle)).sum(dim=-1) / 2).clamp(0, math.log(2)).tolist()
    picks = [logits.argmax(dim=-1).tolist() for logits in (first, second)]
    length = int(min(one.lengths[0], SHOWN_TOKENS))
    # What is predicted at a position is shown at the token that it is about: the next one, or the one under the mask.
    ahead = 0 if one.targets is not None else 1
    shown = one.tokens[0, ahead:length].tolist()
    scored = one.kinds[0, : len(shown)] != UNSCORED

    def words(ids: Sequence[int]) -> list[str]:
        if subject.tokenizer is None:
            return [f"{token} " for token in ids]
        return [str(subject.tokenizer.decode([token])) for token in ids]

    return TextView(
        title=title,
        site="model",
        proxy=name,
        characters=words(shown),
        divergence=[round(jsd[t], 4) if scored[t] else None for t in range(len(shown))],
        subject=[word if scored[t] else None for t, word in enumerate(words(picks[0][: len(shown)]))],
        proxy_says=[word if scored[t] else None for t, word in enumerate(words(picks[1][: len(shown)]))],
    )
