"""`certify`: from a subject and a strategy to a certificate."""

import platform
import time
from dataclasses import asdict
from importlib.metadata import version
from typing import Literal

import numpy as np

from assay._errors import AssayError, unknown_name
from assay.proofs._certificate import (
    Boxes,
    Certificate,
    InputsRecord,
    Piece,
    ProxyRecord,
    SubjectRecord,
    statement_of,
)
from assay.proofs._operations import Operations
from assay.proofs.attention import (
    Proxy,
    brute_force,
    correct_in_boxes,
    count_groups,
    count_wrong,
    cubic,
    make_tables,
    proxy_tables,
    read_weights,
    suspicious_groups,
)
from assay.subjects import Subject
from assay.tasks import InputSet

STRATEGIES = {
    "brute-force": "every input, from the tables of the decomposed model",
    "cubic": "boxes of inputs, worst position orders and convexity (arXiv 2406.11779)",
    "separable": "worst case of every group exactly, wrong inputs of the others bounded by counting",
    "exact": "worst case of every group exactly, wrong inputs of the others by branch and bound",
}
"""The proof strategies for max-of-K attention, in words."""

_LARGEST_ENUMERATION = 2**31


def certify(
    subject: Subject,
    *,
    strategy: str = "separable",
    inputs: InputSet | None = None,
    against: Proxy | None = None,
    grid: int = 1024,
    refine: int = 64,
) -> Certificate:
    """Prove how many inputs of a set a max-of-K subject answers correctly, over all of them.

    `strategy` is a name of `STRATEGIES`; `inputs` defaults to all sequences. With `against`, the certificate is about
    agreement: how often subject and proxy both give the correct token. `grid` is the number of steps to which
    "separable" rounds, `refine` how many of the heaviest groups it counts output by output: both make the bound
    tighter and the proof longer.

    The certified function is the one of real arithmetic with the subject's weights; a tie counts as wrong. The
    theorem behind each strategy is in docs/soundness.md. Raises AssayError for another architecture, an unknown
    strategy, an input set of other sizes, or weights for which the assumptions of the proofs do not hold.
    """
    if strategy not in STRATEGIES:
        raise unknown_name("proof strategy", strategy, STRATEGIES)
    if not (8 <= grid <= 2**20 and refine >= 0):
        raise AssayError(f"certify(grid={grid}, refine={refine}): grid must be between 8 and 2^20, refine at least 0.")
    started = time.monotonic()
    operations = Operations()
    weights = read_weights(subject)
    inputs = inputs or InputSet(weights.length, weights.vocabulary)
    if (inputs.length, inputs.vocabulary) != (weights.length, weights.vocabulary):
        raise AssayError(
            f"the input set has {inputs.length} tokens out of {inputs.vocabulary}, {subject.name!r} reads "
            f"{weights.length} out of {weights.vocabulary}; make the set with the subject's sizes."
        )
    tables = make_tables(weights, operations)
    models = [tables]
    proxy: ProxyRecord | None = None
    if against is not None:
        if strategy == "cubic":
            raise AssayError("strategy 'cubic' proves accuracy only; use 'separable' or 'exact' for agreement.")
        replaced, proxy = proxy_tables(weights, tables, against, operations)
        models.append(replaced)

    pieces: list[Piece] | None = None
    boxes: list[Boxes] | None = None
    parameters: dict[str, int | str] = {}
    v, length = weights.vocabulary, weights.length
    dimension = 3 * v * v + 2 * length * v
    if strategy == "cubic":
        boxes = cubic(tables, inputs, operations)
        at_least, at_most = correct_in_boxes(boxes, inputs), inputs.size
    else:
        if strategy == "brute-force":
            if inputs.size > _LARGEST_ENUMERATION:
                raise AssayError(
                    f"brute force would enumerate {inputs.size:.3g} inputs; at most 2^31. Use strategy 'separable'."
                )
            pieces = brute_force(models, inputs, operations)
            dimension = inputs.size * v
        else:
            groups = suspicious_groups(models, inputs, operations)
            if strategy == "exact":
                pieces = [count_wrong(group, operations) for group in groups]
            else:
                parameters = {"grid": grid, "refine": refine}
                pieces = count_groups(groups, grid=grid, refine=refine, operations=operations)
        at_least = inputs.size - sum(piece.wrong for piece in pieces)
        # Where subject and proxy are wrong together they may still agree: no upper bound then.
        at_most = inputs.size - (0 if against else sum(piece.surely_wrong for piece in pieces))
    quantity: Literal["accuracy", "agreement"] = "accuracy" if against is None else "agreement"
    return Certificate(
        statement=statement_of(
            quantity=quantity,
            name=subject.name,
            description=inputs.describe(),
            at_least=at_least,
            at_most=at_most,
            size=inputs.size,
        ),
        subject=SubjectRecord(
            name=subject.name,
            seed=subject.seed,
            architecture=type(subject.model).__name__,
            weights_sha256=subject.weights_sha256,
            vocabulary=v,
            length=length,
        ),
        proxy=proxy,
        inputs=InputsRecord(**asdict(inputs), size=inputs.size),
        quantity=quantity,
        strategy=strategy,
        parameters=parameters,
        at_least=at_least,
        at_most=at_most,
        pieces=pieces,
        boxes=boxes,
        operations=operations,
        unexplained_dimension=dimension,
        seconds=time.monotonic() - started,
        versions={
            "assay": version("assay-interp"),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "python-flint": version("python-flint"),
        },
    ).sealed()
