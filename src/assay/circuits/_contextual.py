"""Contextual decomposition: what is left of what a sender writes, followed through the subject to its logits."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assay._errors import AssayError
from assay.circuits._exact import over_edges, together
from assay.circuits._problem import Batch, Problem
from assay.circuits._run import Trace, differences, traced
from assay.circuits._wiring import NEAR, Layer, Norm


@dataclass
class ContextualDecomposition:
    """CD-T: every activation x is split into a part that comes from a sender and the rest, x = rel + irrel.

    At the sender, rel = c - c' and irrel = c', what it writes in the reference. From there on

    - norm: rel -> weight · (rel - mean rel) / σ with the subject's own σ (no mean in an RMSNorm);
    - attention: the subject's own pattern, values and outputs split as the linear maps they are;
    - MLP, one function f of what its norm gives: irrel -> f(irrel), rel -> f(rel + irrel) - f(irrel);
    - biases belong to irrel: they are there whatever the sender writes.

    score(sender) = m(irrel) - m(rel + irrel), spread evenly over the edges out of the sender, so that they sum to it:
    made for circuits of whole heads (`level="heads"`). This is exactly what ablating the sender changes while all
    patterns and scales of norms stay as they are; so it is blind to all that a sender does through queries and keys.
    The parts of different senders overlap and sum to nothing. How good it is, the embeddings tell, from which
    everything comes: their score, `np.nansum(circuit.scores_[0])`, would be m(all ablated) - m(subject), the
    difference of `circuit.baseline_`, if no pattern or scale moved.

    Source: Hsu et al., arXiv 2407.00886, section 3, and its code. Differences: there a bias is split between the parts
    by their size, which breaks the reading as an ablation (as does their optional repair of signs, not offered), and
    the layers of an MLP are split one by one; here an MLP may be of any kind. Raises AssayError for an architecture
    in which heads give something else than pattern times values, an MLP is not one module, or a norm is no LayerNorm
    or RMSNorm.
    """

    def check(self, problem: Problem) -> None:
        """Raise AssayError for an architecture that cannot be decomposed, with the layer."""
        batch = next(iter(problem.batches(rows=1)))
        _Decomposed(problem, batch).check()

    def scores(self, problem: Problem) -> Float[np.ndarray, "sender receiver"]:
        """The score of every edge, in the units of m; NaN where there is none."""
        self.check(problem)
        graph = problem.wiring.graph
        found = np.zeros(len(graph.senders))
        for batch in problem.batches():
            decomposed = _Decomposed(problem, batch)
            size = together(batch)
            for start in range(0, len(found), size):
                senders = range(start, min(start + size, len(found)))
                found[senders] += decomposed.scores(senders)
        return over_edges(graph, found / len(problem.split))


class _Decomposed:
    """The subject's own run on a batch, and the parts of it that come from senders."""

    def __init__(self, problem: Problem, batch: Batch) -> None:
        self.problem, self.batch, self.wiring = problem, batch, problem.wiring
        self.trace = traced(self.wiring, batch.tokens, batch.valid)
        reference: Trace = problem.trace(batch)
        with torch.inference_mode():
            self.relevant = differences(self.wiring, self.trace, reference)
            run = problem.engine.run(batch.tokens, batch.valid, read=("patterns",), logits=False)
            self.clean = self.wiring.norm.module(self.trace.final)
            self.value = problem.value(self.clean, batch, self.clean).double().sum()
        self.patterns = run.patterns

    def check(self) -> None:
        """Raise AssayError unless the rules give the subject's own heads and MLPs."""
        norms = [self.wiring.norm, *(norm for layer in self.wiring.layers for norm in (layer.norm, layer.mlp_norm))]
        if any(norm.weight is None for norm in norms):
            self._refuse("has a norm that is no LayerNorm or RMSNorm")
        for number, layer in enumerate(self.wiring.layers):
            if layer.entry is not layer.mlp:
                self._refuse(f"has an MLP in layer {number} that is not one module")
            with torch.inference_mode():
                found = self._mixed(number, layer, self._values(number, layer)[None])[0]
                if not _near(found, self.trace.heads[number]):
                    self._refuse(f"has heads in layer {number} that give something else than pattern times values")
                normed = layer.mlp_norm.module(self.trace.mlp_input[number])
                if not _near(self._mlp(layer, normed), self.trace.mlp[number]):
                    self._refuse(f"has an MLP in layer {number} that does something else on its own")

    def _refuse(self, what: str) -> None:
        subject = self.problem.engine.subject
        raise AssayError(
            f"method 'cd-t': {type(subject.model).__name__} ({subject.name!r}) {what}, so that it cannot be "
            "decomposed; use method='exact-nodes'."
        )

    def scores(self, senders: Sequence[int]) -> Float[np.ndarray, " sender"]:
        """What the parts of some senders, one behind the other, add to m, taken away: summed over pairs."""
        graph = self.wiring.graph
        with torch.inference_mode():
            parts = self.relevant[list(senders)].clone()
            for number, layer in enumerate(self.wiring.layers):
                before = sum(sender < graph.sender(number, 0) for sender in senders)
                heads = before if graph.parallel else sum(sender < graph.sender(number) for sender in senders)
                normed = _through(layer.norm, self.trace.attention_input[number], parts[:before])
                attended = self._attended(number, layer, normed)
                if not graph.parallel:
                    parts[:before] += attended
                total = layer.mlp_norm.module(self.trace.mlp_input[number])
                rest = total - _through(layer.mlp_norm, self.trace.mlp_input[number], parts[:heads])
                parts[:heads] += self.trace.mlp[number] - self._mlp(layer, rest)
                if graph.parallel:
                    parts[:before] += attended
            rest = self.clean - _through(self.wiring.norm, self.trace.final, parts)
            several, clean = self.batch.repeated(len(parts)), self.clean.repeat(len(parts), 1, 1)
            values = self.problem.value(rest.flatten(0, 1), several, clean).double()
            found: np.ndarray = (values.view(len(parts), -1).sum(dim=1) - self.value).cpu().numpy()
        return found

    def _values(self, number: int, layer: Layer) -> Float[Tensor, "batch position group width"]:
        """The subject's own values of a layer."""
        place = layer.streams[2]
        found: Tensor = self.trace.projected[number][place.projection][..., place.columns.to(self.batch.tokens.device)]
        return found

    def _attended(self, number: int, layer: Layer, normed: Float[Tensor, "part batch position model"]) -> Tensor:
        """What attention adds of what its norm gives, biases left out."""
        values = torch.einsum("pbtm,gwm->pbtgw", normed, layer.weight(2))
        return self._mixed(number, layer, values) @ layer.output_weight

    def _mixed(self, number: int, layer: Layer, values: Float[Tensor, "part batch position group width"]) -> Tensor:
        """Values mixed by the subject's own patterns: heads side by side, as the output projection takes them."""
        share = self.wiring.graph.heads // self.wiring.graph.groups
        found = torch.einsum("bhqk,pbkhw->pbqhw", self.patterns[number], values.repeat_interleave(share, dim=3))
        return found.flatten(-2)

    def _mlp(
        self, layer: Layer, normed: Float[Tensor, "*batch position model"]
    ) -> Float[Tensor, "*batch position model"]:
        """What an MLP adds when its norm gives something."""
        output = layer.mlp(normed.flatten(0, -3))
        added: Tensor = output[0] if isinstance(output, tuple) else output
        return added.reshape(normed.shape) * layer.mlp_scale


def _through(
    norm: Norm, stream: Tensor, parts: Float[Tensor, "part *rows width"]
) -> Float[Tensor, " part *rows width"]:
    """Parts of a stream behind its norm, at the stream's own scale."""
    assert norm.weight is not None
    centred = parts - parts.mean(dim=-1, keepdim=True) if norm.centred else parts
    return centred * norm.unit(stream)[1] * norm.weight


def _near(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and bool((found - expected).abs().max() <= NEAR * (expected.std() + 1e-30))
