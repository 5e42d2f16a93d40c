"""Methods that say how much a sender matters, and not an edge."""

import numpy as np
from jaxtyping import Float

from assay.circuits._problem import Problem


def spread(problem: Problem, importance: Float[np.ndarray, " sender"]) -> Float[np.ndarray, "sender receiver"]:
    """The importance of senders, spread evenly over the edges out of each, with the sign of what helps; NaN elsewhere.

    Made for circuits of whole senders (`level="heads"`). The embeddings get as much as the most important sender, since
    nothing is on a path without them.
    """
    graph = problem.wiring.graph
    found = importance.copy()
    found[0] = found[1:].max()
    share = found / graph.exists.sum(axis=1) * (1 if problem.measure == "kl" else -1)
    return np.where(graph.exists, share[:, None], np.nan)
