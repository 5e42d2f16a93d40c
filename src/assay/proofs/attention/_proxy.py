"""Simplified max-of-K models: what an explanation of the head says it computes."""

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from assay._errors import AssayError
from assay.engine import ATTENTION, Engine, Head, collect
from assay.proofs._certificate import PatternRecord, ProjectionRecord, ProxyRecord, ScoresRecord, SubspaceRecord
from assay.proofs._exact import ExactMatrix
from assay.proofs._operations import Operations
from assay.proofs.attention._one_hot import OneHot, one_hot
from assay.proofs.attention._tables import (
    Tables,
    Weights,
    average_positions,
    exponentials,
    queries,
    score_matrices,
    uniform,
)
from assay.simplify import SVD, OneHotAttention, RandomProjection, Simplification, UniformAttention, label
from assay.subjects import Subject
from assay.tasks import MaxOfK

_HEAD = Head(0, 0)
_FIT_SEQUENCES = 1_000
"""As many as `compare` fits on by default, so that both speak of the same proxy."""


@dataclass(frozen=True)
class Proxy:
    """A subject whose query-key circuit has been simplified.

    `rank`: the scores of tokens are replaced by their best approximation of this rank (truncated SVD of SE); None
    keeps them. `average_positions`: the scores of positions are dropped, as if every key had the same position.

    This is a statement about weights and needs no data. `assay.SVD(rank)`, which projects queries and keys on the
    directions that data uses most, is another proxy; `assay.certify` takes both.
    """

    rank: int | None = 1
    average_positions: bool = False

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise AssayError(f"Proxy(rank={self.rank}): must be at least 1, or None to keep the scores.")
        if self.rank is None and not self.average_positions:
            raise AssayError("Proxy(rank=None, average_positions=False) is the subject itself; simplify something.")


def _fitted(simplification: SVD | RandomProjection, subject: Subject, weights: Weights) -> SVD | RandomProjection:
    """The simplification itself if it has been fitted, else a copy fitted as `assay.compare` would."""
    if simplification.subspaces_ is not None:
        return simplification
    engine = Engine(subject)
    split = MaxOfK(weights.length, weights.vocabulary).split("train", _FIT_SEQUENCES)
    return copy.deepcopy(simplification).fit(collect(engine, split, simplification.streams))


def _subspace_record(basis: Tensor, mean: Tensor, dtype: torch.dtype) -> SubspaceRecord:
    """A subspace as the proxy uses it: in the subject's precision."""
    return SubspaceRecord(basis=basis.to(dtype).double().tolist(), mean=mean.to(dtype).double().tolist())


def proxy_record(subject: Subject, weights: Weights, against: Proxy | Simplification) -> ProxyRecord:
    """What a proxy computes, in exact numbers. Raises AssayError for a simplification that no proof knows."""
    if isinstance(against, Proxy):
        left = right = None
        if against.rank is not None:
            if against.rank > weights.vocabulary:
                raise AssayError(f"Proxy(rank={against.rank}): must be at most the vocabulary, {weights.vocabulary}.")
            scores = score_matrices(weights, Operations())[0].rounded() / np.sqrt(weights.head)
            u, s, vt = np.linalg.svd(scores)
            left = (u[:, : against.rank] * s[: against.rank]).tolist()
            right = vt[: against.rank].T.tolist()
        return ScoresRecord(left=left, right=right, average_positions=against.average_positions)
    if isinstance(against, OneHotAttention):
        return PatternRecord(kind="one-hot")
    if isinstance(against, UniformAttention):
        return PatternRecord(kind="uniform")
    if isinstance(against, SVD | RandomProjection):
        fitted = _fitted(against, subject, weights)
        found = (fitted.subspaces_ or {}).get(_HEAD)
        if found is None:
            raise AssayError(f"{label(against)} was fitted at other heads; fit it on samples of {_HEAD}.")
        if (fitted.streams_ or {}).get(_HEAD, ATTENTION) != ATTENTION:
            raise AssayError(f"{label(against)} was fitted on other streams than queries and keys; fit it on those.")
        of_queries, of_keys = found if isinstance(found, tuple) else (found, found)
        if len(of_queries.basis) != weights.head:
            raise AssayError(
                f"{label(against)} was fitted on a head of width {len(of_queries.basis)}, that of {subject.name!r} has "
                f"width {weights.head}; fit it on samples of this subject."
            )
        dtype = subject.model.lm_head.weight.dtype
        return ProjectionRecord(
            queries=_subspace_record(of_queries.basis, of_queries.mean, dtype),
            keys=_subspace_record(of_keys.basis, of_keys.mean, dtype),
        )
    raise AssayError(
        f"{label(against)} has no proof: its scores are not a sum of a token's and a position's. Certified agreement "
        "takes assay.proofs.Proxy, SVD, RandomProjection, OneHotAttention and UniformAttention."
    )


def describe(record: ProxyRecord, head: int) -> str:
    """A proxy in words, from its record alone: whatever made it, its kind and rank are what the claim is about."""
    if isinstance(record, PatternRecord):
        if record.kind == "uniform":
            return "equal attention to all keys"
        return "attention to the best key only, of equal ones the first"
    if isinstance(record, ScoresRecord):
        of_tokens = of_positions = ""
        if record.left is not None:
            of_tokens = f"scores of tokens replaced by a matrix of rank at most {len(record.left[0])}"
        if record.average_positions:
            of_positions = "scores of positions replaced by 0"
        return ", ".join(filter(None, (of_tokens, of_positions)))
    ranks = [len(record.queries.basis[0]), len(record.keys.basis[0])]
    rank = f"{ranks[0]} (queries) and {ranks[1]} (keys)" if ranks[0] != ranks[1] else str(ranks[0])
    return f"queries and keys projected, x -> mean + (x - mean) B B^T, with rank at most {rank} of {head}"


def _projected(states: ExactMatrix, record: SubspaceRecord) -> ExactMatrix:
    basis = np.array(record.basis)
    return states @ (ExactMatrix.of(basis) @ ExactMatrix.of(basis.T))


def proxy_tables(weights: Weights, tables: Tables, record: ProxyRecord, operations: Operations) -> Tables | OneHot:
    """The tables of a proxy, which its record defines exactly."""
    v, length, d, h = weights.vocabulary, weights.length, weights.E.shape[1], weights.head
    if isinstance(record, PatternRecord):
        return one_hot(weights, tables, operations) if record.kind == "one-hot" else uniform(tables)
    if isinstance(record, ScoresRecord):
        changed = average_positions(tables) if record.average_positions else tables
        if record.left is not None and record.right is not None:
            left, right = np.array(record.left), np.array(record.right)
            operations.product(v, left.shape[1], v)
            operations.add(exponentials=v * v)
            changed = replace(changed, token=exponentials(ExactMatrix.of(left) @ ExactMatrix.of(right.T), 1))
        return changed
    # Queries become mean + (query - mean) B Bᵀ. A constant in the keys moves all scores of a query alike: left out.
    mean = np.array(record.queries.mean)[None]
    offset = ExactMatrix.of(mean) + _projected(ExactMatrix.of(-mean), record.queries)
    query = _projected(queries(weights) @ weights.Q, record.queries).plus_row(offset)
    scores = [query @ _projected(side @ weights.K, record.keys).T for side in (weights.E, weights.P)]
    rank = len(record.keys.basis[0])
    for rows in (v, v, length):
        operations.product(rows, d, h)
        operations.product(rows, h, 2 * rank)
    operations.product(v, h, v + length)
    operations.add(arithmetic=v * v + v * length, exponentials=v * v + v * length)
    token, position = (exponentials(score, weights.head) for score in scores)
    return replace(tables, token=token, position=position)
