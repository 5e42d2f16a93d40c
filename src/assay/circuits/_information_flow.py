"""Information flow routes: how much of what a receiver takes in comes from each sender."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assay.circuits._attribution import means_of, no_scores
from assay.circuits._problem import Batch, Problem
from assay.circuits._run import differences, traced


@dataclass
class InformationFlow:
    """The share that each sender has in what a receiver takes in, by proximity; nothing is patched.

    For c_s what a sender writes and x_r the residual stream that receiver r reads, at one position,

    proximity(s, r) = max(0, |x_r| - |x_r - c_s|) in the norm L1, score(s -> r) = proximity(s, r) / sum over s',

    mean over a pair's positions up to its last scored one (for the logits: over the scored ones), mean over pairs.
    Scores are shares from 0 to 1, and those into a receiver sum to 1 (less where no sender is near its sum; a share is
    0 there). They are no effects on m: they know neither what was asked nor what the counterfactual, the ablation and
    the measure are, nor whether a part of the stream is used. Rank them by absolute value. All receivers that read the
    same stream (queries, keys and values of a layer) have the same scores. One run of the subject is all it takes.

    Source: Ferrando and Voita, arXiv 2403.00824, section 3, in the form for edges of the benchmark MIB (arXiv
    2504.13151). Differences to the paper: what a head writes is not split by the token that it came from, and every
    sender is compared with the whole stream instead of each block's outputs with what enters the block. Differences to
    MIB: positions after the last scored one do not count, logits are read at scored positions alone, and where all
    proximities are 0 shares are 0 instead of undefined.
    """

    def check(self, problem: Problem) -> None:
        """Nothing is refused."""

    def scores(self, problem: Problem) -> Float[np.ndarray, "sender receiver"]:
        """The share of every sender in each receiver; NaN where there is no edge."""
        wiring = problem.wiring
        graph = wiring.graph
        scores = no_scores(problem)
        for batch in problem.batches():
            trace = traced(wiring, batch.tokens, batch.valid)
            weights, last = _weights(batch, scores)
            with torch.inference_mode():
                written = differences(wiring, trace, trace.senders_only(torch.zeros_like))
                for number in range(graph.layers):
                    reading, mlp = graph.reading(number), graph.mlp(number)
                    for columns, stream in (
                        (reading, trace.attention_input[number]),
                        (slice(mlp, mlp + 1), trace.mlp_input[number]),
                    ):
                        heard = graph.heard[columns.start]
                        found = shares(written[:heard], stream) * weights
                        scores[:heard, columns] += found.sum(dim=(1, 2))[:, None]
                scores[:, graph.logits] += (shares(written, trace.final) * last).sum(dim=(1, 2))
        return means_of(problem, scores)


def shares(
    parts: Float[Tensor, "part *rows width"], whole: Float[Tensor, "*rows width"]
) -> Float[Tensor, " part *rows"]:
    """The share of each part in the whole, by proximity in the norm L1; 0 where no part is near."""
    proximity = (whole.abs().sum(dim=-1) - (whole - parts).abs().sum(dim=-1)).clamp(min=0)
    total = proximity.sum(dim=0)
    return proximity / torch.where(total > 0, total, 1)


def _weights(batch: Batch, like: Tensor) -> tuple[Float[Tensor, "pair position"], Float[Tensor, "pair position"]]:
    """What positions count in a pair's mean, for receivers before the logits and for the logits."""
    scored = like.new_zeros(batch.tokens.shape)
    scored[batch.rows, batch.positions] = 1
    before = scored.flip(1).cumsum(dim=1).flip(1).clamp(max=1) * batch.valid
    return before / before.sum(dim=1, keepdim=True), scored / scored.sum(dim=1, keepdim=True)
