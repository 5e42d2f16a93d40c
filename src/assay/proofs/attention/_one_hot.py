"""Hard attention: the model whose last position attends to the best key only.

Its prediction depends on nothing but the last token and what stands at the position with the largest score, so the
inputs with a given winner are a product set and are counted exactly (docs/soundness.md, theorem 10).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Int

from assay.proofs._certificate import Piece
from assay.proofs._exact import ExactMatrix
from assay.proofs._operations import Operations
from assay.proofs.attention._groups import PAD, Cell, cells
from assay.proofs.attention._tables import Tables, Weights, score_matrices
from assay.tasks import InputSet


@dataclass(frozen=True)
class OneHot:
    """A model with hard attention.

    `rank` (v, K, v) by (last token, position, token) orders the scores of a last token exactly, equal scores equal;
    `token` (v, K, v) is what is predicted when that key wins, -1 where rounding (or a tie) leaves it open.
    """

    rank: Int[np.ndarray, "v K v"]
    token: Int[np.ndarray, "v K v"]


def _aligned(matrix: ExactMatrix, exponent: int) -> np.ndarray:
    return np.array([entry << (matrix.exponent - exponent) for entry in matrix.integers()], dtype=object).reshape(
        matrix.shape
    )


def one_hot(weights: Weights, tables: Tables, operations: Operations) -> OneHot:
    """The subject with hard attention; of equal scores the first position wins."""
    v, length = tables.vocabulary, tables.length
    of_tokens, of_positions = score_matrices(weights, operations)
    exponent = min(of_tokens.exponent, of_positions.exponent)
    of_token, of_position = _aligned(of_tokens, exponent), _aligned(of_positions, exponent)
    rank = np.empty((v, length, v), dtype=np.int64)
    token = np.empty((v, length, v), dtype=np.int64)
    pad = PAD * tables.spread
    for last in range(v):
        scores = (of_position[last][:, None] + of_token[last][None, :]).ravel()
        order = sorted(range(len(scores)), key=scores.__getitem__)
        steps = [0, *(int(scores[a] != scores[b]) for a, b in pairwise(order))]
        rank[last].reshape(-1)[order] = np.cumsum(steps)
        logits = tables.EU[last] + tables.EV[None] + tables.PV[:, None]
        top = logits.max(axis=2)
        token[last] = np.where((logits > (top - pad)[:, :, None]).sum(axis=2) == 1, logits.argmax(axis=2), -1)
    pairs = v * v * length
    operations.add(
        arithmetic=pairs + 2 * pairs * v, comparisons=pairs * (v + int(np.ceil(np.log2(max(2, length * v)))))
    )
    return OneHot(rank, token)


def count_one_hot(model: OneHot, cell: Cell, operations: Operations) -> int:
    """On how many inputs of the cell hard attention may not predict the largest token."""
    q, m, free = cell.last, cell.maximum, cell.free
    tokens = np.array(cell.tokens)
    rank, size = model.rank[q], len(cell.tokens)
    # Every key that could win: position, token; the last position holds q.
    position = np.append(np.repeat(np.arange(free), size), free)
    token = np.append(np.tile(tokens, free), q)
    score = rank[position, token]
    wrong = (model.token[q, position, token] != m) & ((position == free) | (score >= rank[free, q]))
    position, token, score = position[wrong], token[wrong], score[wrong]
    # What other positions may hold: earlier ones a smaller score, later ones at most an equal one.
    allowed = np.ones((free, len(score)), dtype=np.int64)
    maximum = np.zeros((free, len(score)), dtype=np.int64)
    for other in range(free):
        ordered = np.sort(rank[other, tokens])
        before, after = (np.searchsorted(ordered, score, side=side) for side in ("left", "right"))
        own = position == other
        allowed[other] = np.where(own, 1, np.where(other < position, before, after))
        wins = np.where(other < position, rank[other, m] < score, rank[other, m] <= score)
        maximum[other] = np.where(own, token == m, wins)
    operations.add(arithmetic=4 * free * len(score), comparisons=free * (len(score) + size) * max(1, size).bit_length())
    possible = (allowed > 0).all(axis=0) & (maximum.sum(axis=0) >= cell.copies[0])
    allowed, maximum = allowed[:, possible], maximum[:, possible]
    smaller = (allowed - maximum).astype(object)
    least, most = cell.copies
    if most == free and least <= 1:
        total = int(np.prod(allowed.astype(object), axis=0).sum()) if free else allowed.shape[1]
        without = int(np.prod(smaller, axis=0).sum()) if free else allowed.shape[1]
        return total - without if least else total
    ways = [np.ones(allowed.shape[1], dtype=object)]
    for other in range(free):
        longer = [*(state * smaller[other] for state in ways), np.zeros(allowed.shape[1], dtype=object)]
        for taken, state in enumerate(ways):
            longer[taken + 1] = longer[taken + 1] + state * maximum[other].astype(object)
        ways = longer
    return int(sum(ways[taken].sum() for taken in range(least, most + 1)))


def predictions(model: OneHot, cell: Cell, inputs: Int[np.ndarray, "input free"]) -> Int[np.ndarray, " input"]:
    """What hard attention predicts on inputs of a cell given by their free tokens; -1 where that is open."""
    whole = np.column_stack([inputs, np.full(len(inputs), cell.last)])
    winner = model.rank[cell.last][np.arange(whole.shape[1]), whole].argmax(axis=1)
    return model.token[cell.last, winner, whole[np.arange(len(whole)), winner]]


def with_hard_attention(
    pieces: Sequence[Piece], model: OneHot, inputs: InputSet, operations: Operations
) -> list[Piece]:
    """Bounds on the inputs that the subject (`pieces`) or hard attention gets wrong: where neither does, they agree."""
    known = {(piece.last, piece.maximum): piece for piece in pieces}
    found = []
    for cell in cells(inputs):
        piece = known.get((cell.last, cell.maximum))
        wrong = count_one_hot(model, cell, operations)
        if piece is None and not wrong:
            continue
        piece = piece or Piece(
            last=cell.last, maximum=cell.maximum, relaxations=[], credits=[], wrong=0, surely_wrong=0
        )
        change = {"wrong": min(cell.size, piece.wrong + wrong), "surely_wrong": 0, "credits": [], "proxy_wrong": wrong}
        found.append(piece.model_copy(update=change))
    return found
