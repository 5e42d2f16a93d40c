"""`certify`: from a subject and a strategy to a certificate."""

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
from assay.proofs.linear import certify_linear
from assay.subjects import LinearMaxForCausalLM, Subject
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
    strategy: str | None = None,
    quantity: Literal["accuracy", "loss"] = "accuracy",
    inputs: InputSet | None = None,
    against: Proxy | None = None,
    grid: int = 1024,
    refine: int | None = None,
    width: int = 64,
    top: int = 16,
) -> Certificate:
    """Prove how many inputs of a set a max-of-K subject answers correctly, or its mean loss over them.

    `inputs` defaults to all sequences. For attention models `strategy` is a name of `STRATEGIES`, by default
    "separable". With `against`, the certificate is about agreement: how often subject and proxy both give the correct
    token. `grid` is the number of steps to which "separable" rounds, `refine` (64 by default) how many of the heaviest
    groups it counts output by output: both make the bound tighter and the proof longer.

    For linear models `strategy` is a name of `LINEAR_STRATEGIES`, by default "gemm", and `quantity` may be "loss": the
    mean cross-entropy, in nats, of the correct token. In the strategy "blocks", `top` outputs of each token are taken
    exactly, the others in blocks of `width`, and the `refine` multisets of tokens (65,536 by default) about which this
    says least are evaluated one by one.

    The certified function is the one of real arithmetic with the subject's weights; a tie counts as wrong. The
    theorem behind each strategy is in docs/soundness.md. Raises AssayError for another architecture, an unknown
    strategy, an input set of other sizes, or weights for which the assumptions of the proofs do not hold.
    """
    if quantity not in ("accuracy", "loss"):
        raise AssayError(f"certify(quantity={quantity!r}): 'accuracy' or 'loss'.")
    if isinstance(subject.model, LinearMaxForCausalLM):
        if against is not None:
            raise AssayError("agreement with a proxy is for attention models; a linear model has no query-key circuit.")
        return certify_linear(
            subject,
            quantity=quantity,
            strategy=strategy or "gemm",
            inputs=inputs,
            width=width,
            top=top,
            refine=65_536 if refine is None else refine,
        )
    if quantity == "loss":
        raise AssayError("bounds on the loss are for linear models; for attention models, quantity is 'accuracy'.")
    return _certify_attention(
        subject,
        strategy=strategy or "separable",
        inputs=inputs,
        against=against,
        grid=grid,
        refine=64 if refine is None else refine,
    )


def _certify_attention(
    subject: Subject, *, strategy: str, inputs: InputSet | None, against: Proxy | None, grid: int, refine: int
) -> Certificate:
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
        subject=SubjectRecord.of(subject, vocabulary=v, length=length),
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
        versions=versions(),
    ).sealed()
