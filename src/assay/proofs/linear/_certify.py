"""From a linear subject to a certificate."""

import time
from dataclasses import asdict
from typing import Literal

from assay._errors import AssayError, unknown_name
from assay.proofs._certificate import Certificate, InputsRecord, SubjectRecord, statement_of, versions
from assay.proofs._operations import Operations
from assay.proofs.linear._proof import LINEAR_STRATEGIES, Question, prove
from assay.proofs.linear._table import make_table
from assay.subjects import Subject
from assay.tasks import InputSet

_LARGEST_LENGTH = 20
"""21! exceeds 63 bits."""


def certify_linear(
    subject: Subject,
    *,
    quantity: Literal["accuracy", "loss"],
    strategy: str,
    inputs: InputSet | None,
    width: int,
    top: int,
    refine: int,
) -> Certificate:
    """Prove how many inputs of a set a linear max-of-n subject answers correctly, or its mean loss over them.

    `width`, `top` and `refine` belong to the strategy "blocks": outputs a block, outputs a token and multisets of
    tokens that are taken exactly. Raises AssayError as `assay.certify` does.
    """
    if strategy not in LINEAR_STRATEGIES:
        raise unknown_name("proof strategy for linear models", strategy, LINEAR_STRATEGIES)
    started = time.monotonic()
    operations = Operations()
    table = make_table(subject, operations)
    v, n = table.vocabulary, table.length
    record = SubjectRecord.of(subject, vocabulary=v, length=n)
    inputs = inputs or InputSet(n, v)
    if (inputs.length, inputs.vocabulary) != (n, v):
        raise AssayError(
            f"the input set has {inputs.length} tokens out of {inputs.vocabulary}, {subject.name!r} reads "
            f"{n} out of {v}; make the set with the subject's sizes."
        )
    if n < 2:
        raise AssayError(f"{subject.name!r} reads one token at a time; there is nothing to compare.")
    if n > _LARGEST_LENGTH or n * inputs.size >= 2**63:
        raise AssayError(
            f"{subject.name!r} reads {n} tokens and the set has {inputs.size} inputs; at most {_LARGEST_LENGTH} tokens "
            "each, and less than 2^63 in all inputs together, can be counted."
        )
    if not (width >= 1 and top >= 0 and refine >= 0):
        raise AssayError(
            f"certify(width={width}, top={top}, refine={refine}): width must be at least 1, the others at least 0."
        )
    question = Question(table, inputs, quantity, operations)
    proof = prove(question, strategy, width=width, top=top, refine=refine)
    width = table.embedding.shape[1]
    return Certificate(
        statement=statement_of(
            record,
            model=f"embeddings of width {width} added up, one linear map, no attention, no normalisation, no bias",
            quantity=quantity,
            inputs=inputs,
            at_least=proof.at_least,
            at_most=proof.at_most,
        ),
        subject=record,
        proxy=None,
        inputs=InputsRecord(**asdict(inputs), size=inputs.size),
        quantity=quantity,
        strategy=strategy,
        parameters=proof.parameters,
        at_least=proof.at_least,
        at_most=proof.at_most,
        blocks=proof.blocks,
        operations=operations,
        unexplained_dimension=proof.unexplained_dimension,
        seconds=time.monotonic() - started,
        versions=versions(),
    ).sealed()
