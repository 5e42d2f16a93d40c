"""Simplified max-of-K models: what an explanation of the head says it computes."""

from dataclasses import dataclass, replace

import numpy as np

from assay._errors import AssayError
from assay.proofs._certificate import ProxyRecord
from assay.proofs._exact import ExactMatrix
from assay.proofs._operations import Operations
from assay.proofs.attention._tables import Tables, Weights, average_positions, exponentials, score_matrices


@dataclass(frozen=True)
class Proxy:
    """A subject whose query-key circuit has been simplified.

    `rank`: the scores of tokens are replaced by their best approximation of this rank (truncated SVD of SE); None
    keeps them. `average_positions`: the scores of positions are dropped, as if every key had the same position.
    """

    rank: int | None = 1
    average_positions: bool = False

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise AssayError(f"Proxy(rank={self.rank}): must be at least 1, or None to keep the scores.")
        if self.rank is None and not self.average_positions:
            raise AssayError("Proxy(rank=None, average_positions=False) is the subject itself; simplify something.")


def proxy_tables(weights: Weights, tables: Tables, proxy: Proxy, operations: Operations) -> tuple[Tables, ProxyRecord]:
    """The tables of a proxy, and its record. The factors in the record define the proxy, exactly."""
    left = right = None
    changed = average_positions(tables) if proxy.average_positions else tables
    if proxy.rank is not None:
        v = tables.vocabulary
        if proxy.rank > v:
            raise AssayError(f"Proxy(rank={proxy.rank}): must be at most the vocabulary, {v}.")
        scores = score_matrices(weights, operations)[0].rounded() / np.sqrt(weights.head)
        u, s, vt = np.linalg.svd(scores)
        left, right = u[:, : proxy.rank] * s[: proxy.rank], vt[: proxy.rank].T
        token = exponentials(ExactMatrix.of(left) @ ExactMatrix.of(right).T, 1)
        operations.product(v, proxy.rank, v)
        operations.add(exponentials=v * v)
        changed = replace(changed, token=token)
    record = ProxyRecord(
        left=None if left is None else left.tolist(),
        right=None if right is None else right.tolist(),
        average_positions=proxy.average_positions,
    )
    return changed, record
