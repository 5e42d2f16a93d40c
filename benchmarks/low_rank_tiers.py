"""How far low-rank factors could carry in the first tier of the separable proof, if their remainder cost nothing.

Run `python benchmarks/low_rank_tiers.py`. EU and EV of the shipped K = 4 models are replaced by their best
approximations of some rank, and the range of each row of what is left is added to every difference: no bound on a
remainder can do better. Printed is how many of the (last token, largest token) groups are then still shown to be
right by their worst case, and how many outputs of the others are left, which a proof would have to look at again.
These are plain floats: a measurement, no proof.
"""

import numpy as np

import assay
from assay.proofs import Operations
from assay.proofs.attention._tables import Tables, make_tables, read_weights

RANKS = (1, 2, 4, 8, 16, 32)


def truncated(table: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The best approximation of a rank, and the range of each row of the remainder."""
    left, values, right = np.linalg.svd(table)
    kept = (left[:, :rank] * values[:rank]) @ right[:rank]
    return kept, np.ptp(table - kept, axis=1)


def suspicious(tables: Tables, rank: int | None) -> tuple[int, int, int]:
    """Groups, groups not shown to be right, and outputs that could win in those."""
    v = tables.vocabulary
    EU, of_queries = truncated(tables.EU, rank) if rank else (tables.EU, np.zeros(v))
    EV, of_tokens = truncated(tables.EV, rank) if rank else (tables.EV, np.zeros(v))
    W = np.ldexp(tables.token.mantissa, tables.token.exponent)
    pi = np.ldexp(tables.position.mantissa, tables.position.exponent)
    groups = left = outputs = 0
    for m in range(v):
        gain = EV[: m + 1] - EV[: m + 1, m, None] + of_tokens[: m + 1, None]
        PV = tables.PV - tables.PV[:, m, None]
        for q in range(m + 1):
            of_query = EU[q] - EU[q, m] + of_queries[q]
            value = W[q, : m + 1, None] * (of_query + gain + PV[:-1].max(axis=0))
            best, copy = value.max(axis=0), value[m]
            total = pi[q, :-1].sum() * best + W[q, q] * pi[q, -1] * (of_query + gain[q] + PV[-1])
            if q < m:
                total = total - pi[q, :-1].min() * (best - copy)
            total[m] = -1
            groups, left, outputs = groups + 1, left + bool((total >= 0).any()), outputs + int((total >= 0).sum())
    return groups, left, outputs


def main() -> None:
    """Print a row a rank, with medians over the training seeds."""
    print("| rank of EU and EV | operations of the two tables | groups not shown | outputs left |")
    print("|---|---|---|---|")
    weights = [read_weights(assay.load("max-of-4", seed=seed)) for seed in range(5)]
    models = [make_tables(each, Operations()) for each in weights]
    v, d = weights[0].E.shape
    for rank in (*RANKS, None):
        found = [suspicious(tables, rank) for tables in models]
        inner = rank or d
        cost = 2 * 2 * v * v * inner + (2 * 2 * 2 * v * d * inner if rank else 0)
        left, outputs = (int(np.median([row[index] for row in found])) for index in (1, 2))
        print(f"| {rank or 'full'} | {cost:,} | {left:,} of {found[0][0]:,} | {outputs:,} |")


if __name__ == "__main__":
    main()
