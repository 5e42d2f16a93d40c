"""How much what the model says changes without a head, beyond what any head's loss changes."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from assay._errors import AssayError
from assay.circuits._importance import spread
from assay.circuits._parameters import check_choice, check_flag, shown
from assay.circuits._problem import Problem
from assay.engine import Block, Edit, Engine, Head, Run, batches, tensors
from assay.tasks import Split

Without = Literal["uniform", "zero"]
"""What a head does that is taken out: attend to all visible positions equally, or write nothing."""

LOGITS = 20_000_000
"""Logits of a batch that are held at a time."""


@dataclass
class Ships:
    """KL(p || p without a head) at scored predictions less the same at plain ones, in nats a prediction.

    Heads are taken out one at a time (`without`: uniform attention, or nothing written), MLPs by writing nothing. That
    alone finds what matters for anything, so the mean KL over plain predictions is taken off: those of the sequences of
    `plain`, or (None) those at the other positions of the pairs' own inputs. With `contrast=False` it is not. Single
    heads miss what is redundant: of two heads of which either is enough, both score 0.

    A sender's score is spread over the edges out of it; give `Circuit(level="heads")`. What edges carry that a circuit
    leaves out is another matter, see `Circuit.ablation`.

    Source: Zhou et al., arXiv 2410.13708 (Ships). Differences: uniform attention is put into the pattern, not made by
    queries near 0, which a bias or a norm of queries undoes; log-softmax in place of probabilities with 1e-12 added;
    and the plain predictions.
    """

    without: Without = "uniform"
    plain: Split | None = None
    contrast: bool = True

    pairwise: ClassVar[bool] = False

    def check(self, problem: Problem) -> None:
        """Raise AssayError for bad parameters, and where no plain prediction is left."""
        check_choice("way to take a head out", self.without, get_args(Without))
        check_flag("contrast", self.contrast)
        if self.plain is not None and not isinstance(self.plain, Split):
            raise AssayError(f"plain={shown(self.plain)}: must be a split of plain sequences, or None.")
        split = problem.split
        if self.contrast and self.plain is None and not (split.valid & (split.kinds < 0)).any():
            raise AssayError(
                f"method 'ships': split {split.name!r} has no prediction that is not scored, to tell what matters for "
                "anything; give Ships(plain=split), or Ships(contrast=False)."
            )

    def scores(self, problem: Problem) -> Float[np.ndarray, "sender receiver"]:
        """The score of every edge, in nats; NaN where there is none."""
        self.check(problem)
        split = problem.split
        found = self._mean_kl(problem, split, split.kinds >= 0)
        if self.contrast:
            plain = split if self.plain is None else self.plain
            found = found - self._mean_kl(problem, plain, plain.valid & (plain.kinds < 0 if plain is split else True))
        return spread(problem, found)

    def _mean_kl(
        self, problem: Problem, split: Split, where: Bool[np.ndarray, "sequence position"]
    ) -> Float[np.ndarray, " sender"]:
        """KL(p || p without a sender), the mean over predictions; 0 for the embeddings."""
        engine, graph = problem.engine, problem.wiring.graph
        places: dict[int, Head | Block] = {
            graph.sender(layer, head): Head(layer, head) for layer in range(graph.layers) for head in range(graph.heads)
        }
        places |= {graph.sender(layer): Block(layer) for layer in range(graph.layers)}
        total = np.zeros(len(graph.senders))
        room = max(1, LOGITS // (split.tokens.shape[1] * engine.subject.vocabulary))
        for index, part in batches(engine, split):
            for start in range(0, len(part), room):
                chosen = np.arange(start, min(start + room, len(part)))
                tokens, valid = tensors(part.take(chosen), engine.subject.device)
                asked = torch.from_numpy(where[index[chosen]][:, : tokens.shape[1]]).to(tokens.device)
                clean = engine.run(tokens, valid, resumable=True, logits=False)
                own = _log_p(engine, clean, asked)
                for sender, place in places.items():
                    run = engine.run(
                        tokens, valid, edits=[without_head(place, self.without)], resume=clean, logits=False
                    )
                    other = _log_p(engine, run, asked)
                    total[sender] += float((own.exp() * (own - other)).sum())
        return total / where.sum()


def without_head(place: Head | Block, without: Without) -> Edit:
    """What takes a head out, or an MLP, which then writes nothing."""
    if isinstance(place, Block):
        return Edit(place, mlp=torch.zeros_like)
    return Edit(place, outputs=torch.zeros_like) if without == "zero" else Edit(place, pattern=_uniform)


def _uniform(
    pattern: Float[Tensor, "batch query key"], visible: Bool[Tensor, "batch query key"]
) -> Float[Tensor, "batch query key"]:
    """Equal weights on all visible keys."""
    weight = visible.to(pattern.dtype)
    return weight / weight.sum(dim=-1, keepdim=True).clamp(min=1)


def _log_p(engine: Engine, run: Run, where: Bool[Tensor, "batch position"]) -> Float[Tensor, "prediction vocabulary"]:
    """Log-probabilities of some predictions."""
    positions = where.any(dim=0).nonzero()[:, 0]
    logits = engine.logits(run, positions)
    return logits[where[:, positions]].double().log_softmax(dim=-1)
