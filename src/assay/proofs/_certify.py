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
    OneHot,
    Proxy,
    Tables,
    brute_force,
    correct_in_boxes,
    count_disagreements,
    count_groups,
    count_wrong,
    cubic,
    make_tables,
    proxy_record,
    proxy_tables,
    read_weights,
    suspicious_groups,
    with_hard_attention,
)
from assay.proofs.linear import certify_linear
from assay.simplify import Simplification, label
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


def _count(
    strategy: str,
    models: list[Tables],
    hard: OneHot | None,
    inputs: InputSet,
    *,
    grid: int,
    refine: int,
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
    pieces = count_groups(groups, models=len(models), grid=grid, refine=refine, operations=operations)
    return pieces if hard is None else with_hard_attention(pieces, hard, inputs, operations)


def certify(
    subject: Subject,
    *,
    strategy: str | None = None,
    quantity: Literal["accuracy", "loss"] = "accuracy",
    inputs: InputSet | None = None,
    against: Proxy | Simplification | None = None,
    grid: int = 1024,
    refine: int | None = None,
    width: int = 64,
    top: int = 16,
) -> Certificate:
    """Prove how many inputs of a set a max-of-K subject answers correctly, or its mean loss over them.

    `inputs` defaults to all sequences. For attention models `strategy` is a name of `STRATEGIES`, by default
    "separable"; `grid` is the number of steps to which this rounds, `refine` (64 by default) how many of the heaviest
    groups it counts output by output: both make the bound tighter and the proof longer.

    For linear models `strategy` is a name of `LINEAR_STRATEGIES`, by default "gemm", and `quantity` may be "loss": the
    mean cross-entropy, in nats, of the correct token. In the strategy "blocks", `top` outputs of each token are taken
    exactly, the others in blocks of `width`, and the `refine` multisets of tokens (65,536 by default) about which this
    says least are evaluated one by one.

    With `against`, the certificate is about agreement: on how many inputs subject and proxy predict the same token,
    right or wrong. `against` is a `Proxy`, or a simplification as `compare` judges it: `SVD`, `RandomProjection`,
    `OneHotAttention` or `UniformAttention`. What is proved is what `simplification.apply(subject)` computes, with the
    fitted bases and means in the subject's precision taken as exact numbers; they are stored in the certificate. A
    simplification that has not been fitted is fitted (in a copy) on 1,000 sequences of the train split of
    `MaxOfK(length, vocabulary)`, as `compare` would. Other simplifications, whose scores are not a sum over token and
    position, are refused.

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
    subject: Subject,
    *,
    strategy: str,
    inputs: InputSet | None,
    against: Proxy | Simplification | None,
    grid: int,
    refine: int,
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
    hard: OneHot | None = None
    proxy: ProxyRecord | None = None
    if against is not None:
        if strategy == "cubic":
            raise AssayError("strategy 'cubic' proves accuracy only; use 'separable' or 'exact' for agreement.")
        proxy = proxy_record(subject, weights, against)
        replaced = proxy_tables(weights, tables, proxy, operations)
        if isinstance(replaced, OneHot):
            hard = replaced
        else:
            models.append(replaced)

    v, length = weights.vocabulary, weights.length
    dimension = 3 * v * v + 2 * length * v
    pieces: list[Piece] | None = None
    boxes: list[Boxes] | None = None
    if strategy == "cubic":
        boxes = cubic(tables, inputs, operations)
        at_least, at_most = correct_in_boxes(boxes, inputs), inputs.size
    else:
        if strategy == "brute-force":
            dimension = inputs.size * v
        pieces = _count(strategy, models, hard, inputs, grid=grid, refine=refine, operations=operations)
        at_least = inputs.size - sum(piece.wrong for piece in pieces)
        at_most = inputs.size - sum(piece.surely_wrong for piece in pieces)
    parameters: dict[str, int | str] = {"grid": grid, "refine": refine} if strategy == "separable" else {}
    if against is not None:
        parameters["against"] = label(against)
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
