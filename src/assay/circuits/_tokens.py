"""What a head makes of a token by its weights alone: successor and copying scores."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assay._errors import AssayError
from assay._given import checked
from assay.circuits._run import wired
from assay.circuits._wiring import Wiring
from assay.subjects import Subject


@dataclass(frozen=True)
class TokenScores:
    """How often each head (layer, head) gives the largest logit to the next token of a series, the same, or the one
    before; shares in [0, 1].

    `among` takes the largest among the tokens of the series (a head that knows nothing has `chance`), `overall` among
    the whole vocabulary. Each has the scores "successor", "copying" and "predecessor".
    """

    among: dict[str, Float[np.ndarray, "layer head"]]
    overall: dict[str, Float[np.ndarray, "layer head"]]
    chance: float


@checked
def token_scores(
    subject: Subject, series: Sequence[Sequence[int]], *, cyclic: bool = False, effective: bool = True
) -> TokenScores:
    """Successor and copying scores of every head, from weights: what it writes of token t, read by the unembedding.

    logits(t) = u(E_t) W_V W_O W_U with u the norm before attention and the last norm's weights folded into W_U. E_t is
    what the first MLP adds to the embedding of t, with the embedding (`effective=False`: the embedding alone). `series`
    are ordered sets of tokens, such as numbers, weekdays, months; with `cyclic` the first follows the last. Successors
    are scored on tokens that have one, predecessors likewise, copies on all. Queries and keys are not in it: a head may
    have the map and never attend.

    Source: Gould et al., arXiv 2312.09230 (successor heads, section 3), of which the formula here is our reading.
    Differences: the share among the whole vocabulary beside that among the series, which small sets inflate; the
    embedding is added to what the MLP gives; biases are left out.

    Raises AssayError for a series of fewer than three different tokens, or tokens that the model does not have, and for
    a model that makes its values in several steps (latent attention).
    """
    for one in series:
        if len(set(one)) < max(3, len(one)) or not all(0 <= token < subject.vocabulary for token in one):
            raise AssayError(
                f"token_scores(): series {list(one)[:5]} … has to have at least three tokens, all different and below "
                f"{subject.vocabulary}."
            )
    if not series:
        raise AssayError("token_scores(series=[]): give at least one series of tokens.")
    wiring = wired(subject)
    graph = wiring.graph
    if graph.latent:
        raise AssayError(
            f"token_scores(): {type(subject.model).__name__} ({subject.name!r}) makes its values of a latent of all "
            "heads, so that no head has one value map; use a model without latent attention."
        )
    hits = {name: np.zeros((2, graph.layers, graph.heads)) for name in ("successor", "copying", "predecessor")}
    counts = dict.fromkeys(hits, 0)
    for one in series:
        tokens = torch.tensor(list(one), device=subject.device)
        best = _best(wiring, subject, tokens, effective)
        for name, step in (("successor", 1), ("copying", 0), ("predecessor", -1)):
            wanted = np.arange(len(one)) + step
            there = np.ones(len(one), dtype=bool) if cyclic else (wanted >= 0) & (wanted < len(one))
            wanted %= len(one)
            for row, (found, names) in enumerate(zip(best, (np.arange(len(one)), np.array(one)), strict=True)):
                hits[name][row] += (found[..., there] == names[wanted[there]]).sum(axis=-1)
            counts[name] += int(there.sum())
    among, overall = ({name: hits[name][row] / counts[name] for name in hits} for row in range(2))
    sizes = [len(one) for one in series]
    return TokenScores(among, overall, len(sizes) / sum(sizes))


def _best(wiring: Wiring, subject: Subject, tokens: Tensor, effective: bool) -> tuple[np.ndarray, np.ndarray]:
    """The token with the largest logit by layer, head and token: its place in the series, and its id overall."""
    graph = wiring.graph
    unembedding: Tensor = wiring.head.weight.detach()  # type: ignore[operator]
    among, overall = [], []
    share = graph.heads // graph.groups
    with torch.inference_mode():
        embedding: Tensor = subject.model.get_input_embeddings()(tokens)
        first = wiring.layers[0]
        if effective and (first.entry is first.mlp or first.mlp_after is not None):
            added = _first(first.entry(first.mlp_norm.module(embedding[None])))
            added = added if first.entry is first.mlp else first.mlp(added)
            embedding = embedding + first.mlp_scale * added[0]
        for layer in wiring.layers:
            values = torch.einsum("tm,gvm->gtv", layer.norm.module(embedding), layer.weight(2))
            writes = torch.einsum(
                "htv,hvm->htm",
                values.repeat_interleave(share, dim=0),
                layer.output_weight.unflatten(0, (graph.heads, -1)),
            )
            norm = wiring.norm
            read = norm.module(writes) if norm.weight is None else norm.unit(writes)[0] * norm.weight
            logits = read @ unembedding.T * wiring.logit_scale
            among.append(logits[..., tokens].argmax(dim=-1).cpu().numpy())
            overall.append(logits.argmax(dim=-1).cpu().numpy())
    return np.stack(among), np.stack(overall)


def _first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
