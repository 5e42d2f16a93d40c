"""Certificates about max-of-K attention: from a subject and a strategy to what is proved."""

import time
from dataclasses import asdict
from typing import Literal

from assay._errors import AssayError, unknown_name
from assay.proofs._certificate import (
    Boxes,
    Certificate,
    InputsRecord,
    Piece,
    ProxyRecord,
    SubjectRecord,
    statement_of,
    versions,
)
from assay.proofs._operations import Operations
from assay.proofs.attention._agreement import count_disagreements
from assay.proofs.attention._boxes import correct_in_boxes, cubic
from assay.proofs.attention._brute import brute_force
from assay.proofs.attention._count import count_groups
from assay.proofs.attention._groups import suspicious_groups
from assay.proofs.attention._one_hot import OneHot, with_hard_attention
from assay.proofs.attention._proxy import Proxy, describe, proxy_record, proxy_tables
from assay.proofs.attention._remainders import REMAINDERS
from assay.proofs.attention._search import count_wrong
from assay.proofs.attention._subcubic import subcubic
from assay.proofs.attention._tables import Tables, Weights, make_tables, read_weights
from assay.simplify import Simplification
from assay.subjects import Subject
from assay.tasks import InputSet

STRATEGIES = {
    "brute-force": "every input, from the tables of the decomposed model",
    "subcubic-low-rank": "as subcubic, with token scores of rank 1 and a bounded remainder",
    "subcubic": "boxes of inputs whose smaller tokens keep a distance from the largest (arXiv 2406.11779)",
    "cubic": "boxes of inputs, worst position orders and convexity (arXiv 2406.11779)",
    "separable": "worst case of every group exactly, wrong inputs of the others counted, or few of them searched",
    "exact": "worst case of every group exactly, wrong inputs of the others by branch and bound",
}
"""The proof strategies for max-of-K attention, in words."""

_BOXES = ("subcubic-low-rank", "subcubic", "cubic")

_LARGEST_ENUMERATION = 2**31
"""Inputs that brute force takes at most: minutes; one token more takes as many times as long as there are tokens."""


def _count(
    strategy: str,
    models: list[Tables],
    hard: OneHot | None,
    inputs: InputSet,
    *,
    grid: int,
    refine: int,
    search: int,
    two_sided: bool,
    operations: Operations,
) -> list[Piece]:
    """Group by group, the inputs that are wrong: of the one model, or where a proxy (the second, or `hard`) differs."""
    if strategy == "brute-force":
        if inputs.size > _LARGEST_ENUMERATION:
            raise AssayError(
                f"brute force would enumerate {inputs.size:.3g} inputs; at most 2^31. Use strategy 'separable'."
            )
        return brute_force(models, hard, inputs, operations)
    groups = suspicious_groups(models, inputs, operations)
    if strategy == "exact":
        if hard is not None:
            raise AssayError(
                "strategy 'exact' cannot search hard attention; use 'separable', or 'brute-force' for the exact "
                "agreement of a small model."
            )
        count = count_wrong if len(models) == 1 else count_disagreements
        return [count(group, operations) for group in groups]
    pieces = count_groups(
        groups,
        models=len(models),
        grid=grid,
        refine=refine,
        search=search,
        two_sided=two_sided,
        operations=operations,
    )
    return pieces if hard is None else with_hard_attention(pieces, hard, inputs, operations)


def _boxes(strategy: str, remainder: str, weights: Weights, inputs: InputSet, operations: Operations) -> list[Boxes]:
    if remainder not in REMAINDERS:
        raise unknown_name("remainder", remainder, REMAINDERS)
    if strategy == "cubic":
        return cubic(make_tables(weights, operations), inputs, operations)
    # Refuses weights outside the range in which certificates hold; no part of the proof, which does not use the tables.
    make_tables(weights, Operations())
    bounded = remainder if strategy == "subcubic-low-rank" else None
    return subcubic(weights, inputs, remainder=bounded, operations=operations)


def certify_attention(
    subject: Subject,
    *,
    strategy: str,
    inputs: InputSet | None,
    against: Proxy | Simplification | None,
    grid: int,
    refine: int,
    search: int,
    two_sided: bool,
    remainder: str,
) -> Certificate:
    """What `assay.certify` does for max-of-K attention."""
    if not (8 <= grid <= 2**20 and refine >= 0 and search >= 0):
        raise AssayError(
            f"certify(grid={grid}, refine={refine}, search={search}): grid must be between 8 and 2^20, the others at "
            "least 0."
        )
    started = time.monotonic()
    operations = Operations()
    weights = read_weights(subject)
    if weights.length < 2 or weights.vocabulary < 2:
        raise AssayError(
            f"{subject.name!r} reads {weights.length} tokens out of {weights.vocabulary}; there is nothing to compare."
        )
    inputs = inputs or InputSet(weights.length, weights.vocabulary)
    if (inputs.length, inputs.vocabulary) != (weights.length, weights.vocabulary):
        raise AssayError(
            f"the input set has {inputs.length} tokens out of {inputs.vocabulary}, {subject.name!r} reads "
            f"{weights.length} out of {weights.vocabulary}; make the set with the subject's sizes."
        )
    if strategy not in STRATEGIES:
        raise unknown_name("proof strategy", strategy, STRATEGIES)
    if strategy in _BOXES and against is not None:
        raise AssayError(f"strategy {strategy!r} proves accuracy only; use 'separable' or 'exact' for agreement.")
    v, length = weights.vocabulary, weights.length
    record = SubjectRecord.of(subject, vocabulary=v, length=length)
    dimension = 3 * v * v + 2 * length * v
    boxes: list[Boxes] | None = None
    pieces: list[Piece] | None = None
    proxy: ProxyRecord | None = None
    if strategy in _BOXES:
        boxes = _boxes(strategy, remainder, weights, inputs, operations)
        dimension -= v * v - 3 * v if strategy == "subcubic-low-rank" else 0
        at_least, at_most = correct_in_boxes(boxes, inputs), inputs.size
    else:
        models = [make_tables(weights, operations)]
        hard: OneHot | None = None
        if against is not None:
            proxy = proxy_record(subject, weights, against)
            replaced = proxy_tables(weights, models[0], proxy, operations)
            if isinstance(replaced, OneHot):
                hard = replaced
            else:
                models.append(replaced)
        if strategy == "brute-force":
            dimension = inputs.size * v
        pieces = _count(
            strategy,
            models,
            hard,
            inputs,
            grid=grid,
            refine=refine,
            search=search,
            two_sided=two_sided,
            operations=operations,
        )
        at_least = inputs.size - sum(piece.wrong for piece in pieces)
        at_most = inputs.size - sum(piece.surely_wrong for piece in pieces)
    of_strategies: dict[str, dict[str, int | str]] = {
        "separable": {"grid": grid, "refine": refine, "search": search, "two_sided": int(two_sided)},
        "subcubic-low-rank": {"remainder": remainder},
    }
    quantity: Literal["accuracy", "agreement"] = "accuracy" if against is None else "agreement"
    return Certificate(
        statement=statement_of(
            record,
            model=(
                f"one attention layer with one head, scale 1/sqrt({weights.head}), no normalisation, no MLP, no bias"
            ),
            quantity=quantity,
            inputs=inputs,
            at_least=at_least,
            at_most=at_most,
            exact=strategy in ("brute-force", "exact"),
            proxy=None if proxy is None else describe(proxy, weights.head),
        ),
        subject=record,
        proxy=proxy,
        inputs=InputsRecord(**asdict(inputs), size=inputs.size),
        quantity=quantity,
        strategy=strategy,
        parameters=of_strategies.get(strategy, {}),
        at_least=at_least,
        at_most=at_most,
        pieces=pieces,
        boxes=boxes,
        operations=operations,
        unexplained_dimension=dimension,
        seconds=time.monotonic() - started,
        versions=versions(),
    ).sealed()
