"""Whether an attribution graph says what its subject does: on its own prompt, without error nodes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from assay._errors import AssayError
from assay._given import checked
from assay.dictionaries import (
    AttributionGraph,
    CrossLayerReplacement,
    GraphScores,
    KeptFeatures,
    Replacement,
    Transcoders,
)
from assay.engine import Engine
from assay.subjects import Subject

ALL, LATER, WHERE, ANYWHERE, NONE = (
    "replacement", "replacement, first token aside", "kept where the graph has them", "kept at every position",
    "no features",
)  # fmt: skip
"""What is run on the prompt beside the subject."""


@dataclass(frozen=True)
class AttributionClaims:
    """What a graph says of its prompt, beside what the subject and the replacement model do there.

    `scores` are the graph's own. `answers` has a row for every target: its token, the probability that the graph
    states (`claimed`), the subject's and those of the runs below. `runs` has a row for each run: KL of the subject from
    it in nats at the last position (0 is best), whether it predicts the subject's token (`same_prediction`), the token
    that it predicts and its probability.

    | run | MLPs are replaced by |
    |---|---|
    | `replacement` | all dictionaries, nothing of what they get wrong put back |
    | `replacement, first token aside` | the same, but at the first position, as in the graph |
    | `kept where the graph has them` | only the features of the graph, at the positions where it has them |
    | `kept at every position` | only these, wherever they are on |
    | `no features` | the dictionaries' constants alone |

    `claimed_error` is the largest difference between a probability that the graph states and the subject's: far above
    rounding, the graph is of another model or of other tokens. `activation_error` is the largest difference between an
    activation that it states and that in the subject's own pass, divided by the largest activation: far above rounding,
    it is of other dictionaries; `off` of its features are not on at all there.
    """

    scores: GraphScores
    answers: pd.DataFrame
    runs: pd.DataFrame
    claimed_error: float
    activation_error: float
    off: int

    def __str__(self) -> str:
        found = self.runs.set_index("run")
        parts = []
        for name in (LATER, WHERE):
            same = "the same" if found.at[name, "same_prediction"] else "another"
            parts.append(f"{name}: KL {found.at[name, 'kl']:.3g} nats, {same} prediction")
        return (
            f"{self.scores}. {'; '.join(parts)}. Probabilities are within {self.claimed_error:.2g} of the subject's, "
            f"activations within {self.activation_error:.2g} of the largest."
        )


@checked
def attribution_claims(
    graph: AttributionGraph | str | Path,
    subject: Subject,
    replacement: Replacement | CrossLayerReplacement | str | Path,
    *,
    untouched: int = 1,
) -> AttributionClaims:
    """Judge an attribution graph on its own prompt: see `AttributionClaims`.

    The graph explains a model in which error nodes put back what dictionaries get wrong, so its probabilities are the
    subject's by construction. What it shows, features, is what remains without them: here that model is run. `graph`
    is one of `AttributionGraph.read` (pruned, to judge what is kept of it) or a file; `replacement` the dictionaries
    that it was drawn with, or their folder. At the first `untouched` positions features are never on in a graph.

    Raises AssayError for a graph that does not fit subject or dictionaries.
    """
    kept = KeptFeatures(graph, replacement, untouched=untouched)
    own, engine = kept.own, Engine(subject)
    transcoders = Transcoders.of(kept.spliced, engine)
    transcoders.check(own, engine)
    for what, numbers in (("tokens", own.tokens), ("targets", own.targets)):
        if int(numbers.max()) >= subject.vocabulary:
            raise AssayError(
                f"the graph's {what} go up to {int(numbers.max())}, and {subject.name!r} has {subject.vocabulary} "
                "tokens; give the model that it was drawn of (of directions that are no token nothing is known)."
            )
    tokens = own.tokens[None].long().to(subject.device)
    stated, off = _activations(own, engine, transcoders, tokens)
    by_position = _masks(own, transcoders)
    anywhere = [mask.any(dim=0) for mask in by_position]
    masks = {
        ALL: (None, 0),
        LATER: (None, untouched),
        WHERE: (by_position, untouched),
        ANYWHERE: (anywhere, untouched),
        NONE: ([torch.zeros_like(mask) for mask in anywhere], untouched),
    }
    clean = _last(subject(tokens))
    found = {
        name: _last(transcoders.in_force(kept, subject, mask, untouched=first)(tokens))
        for name, (mask, first) in masks.items()
    }
    targets = own.targets.long()
    answers = pd.DataFrame({"token": targets.numpy(), "text": own.said, "claimed": own.probabilities.double().numpy()})
    for name, logs in {"subject": clean, **found}.items():
        answers[name] = logs[targets].exp().numpy()
    return AttributionClaims(
        scores=own.scores(),
        answers=answers,
        runs=pd.DataFrame([_row(name, clean, logs) for name, logs in {"subject": clean, **found}.items()]),
        claimed_error=float(np.abs(answers["claimed"] - answers["subject"]).max()),
        activation_error=stated,
        off=off,
    )


def _last(logits: Float[Tensor, "1 position vocabulary"]) -> Float[Tensor, " vocabulary"]:
    """Log-probabilities at the last position."""
    return logits[0, -1].detach().double().cpu().log_softmax(dim=0)


def _row(name: str, clean: Float[Tensor, " vocabulary"], logs: Float[Tensor, " vocabulary"]) -> dict[str, object]:
    predicted = int(logs.argmax())
    return {
        "run": name,
        "kl": float((clean.exp() * (clean - logs)).sum().clamp_min(0)),
        "same_prediction": predicted == int(clean.argmax()),
        "predicted": predicted,
        "probability": float(logs[predicted].exp()),
    }


def _masks(graph: AttributionGraph, transcoders: Transcoders) -> list[Tensor]:
    """Which features of each layer the graph has, (position, feature)."""
    found = []
    for layer in range(graph.layers):
        mask = torch.zeros(graph.positions, transcoders.features(layer), dtype=torch.bool)
        own = graph.features[graph.features[:, 0] == layer].long()
        mask[own[:, 1], own[:, 2]] = True
        found.append(mask)
    return found


def _activations(
    graph: AttributionGraph, engine: Engine, transcoders: Transcoders, tokens: Tensor
) -> tuple[float, int]:
    """How far stated activations are from those in the subject's pass, and how many features are off there."""
    with engine.ready():
        run = engine.run(tokens, read=("mlp_input",), logits=False)
    worst, largest, off = 0.0, 0.0, 0
    for layer, place in enumerate(transcoders.places):
        dense = transcoders.encode(layer, run.mlp_input[place.layer][0].detach().cpu()).dense().double()
        chosen = graph.features[:, 0] == layer
        own = graph.features[chosen].long()
        there = dense[own[:, 1], own[:, 2]]
        worst = max(worst, float((there - graph.activations[chosen].double()).abs().max()) if len(own) else 0.0)
        largest, off = max(largest, float(dense.max())), off + int((there == 0).sum())
    return (worst / largest if largest > 0 else worst), off
