"""A GPT-2 written out edge by edge, every edge ablated by any share: slow, short, and without Assay's graph code."""

import math

import numpy as np
import torch
from torch import Tensor

from assay.circuits import Problem


class Naive:
    """The pairs of a problem through its GPT-2, each receiver's input summed up from the senders one by one.

    Sequences are padded on the right, so that what is scored never sees padding.
    """

    def __init__(self, problem: Problem) -> None:
        self.graph, self.split = problem.wiring.graph, problem.split
        self.model = problem.engine.subject.model
        self.tokens = torch.from_numpy(self.split.tokens.astype(np.int64))
        none = torch.zeros(self.graph.shape, dtype=torch.float64)
        with torch.no_grad():
            self.reference = self._senders(torch.from_numpy(self.split.counterfactuals.astype(np.int64)), none, None)
            self.clean = self._hidden(none)

    def _embedded(self, tokens: Tensor) -> Tensor:
        body = self.model.transformer
        return body.wte(tokens) + body.wpe(torch.arange(tokens.shape[1]))

    def _input(self, receiver: int, written: list[Tensor], ablated: Tensor, reference: list[Tensor] | None) -> Tensor:
        found = torch.zeros_like(written[0])
        for sender, own in enumerate(written[: self.graph.heard[receiver]]):
            share = ablated[sender, receiver]
            found = found + (own if reference is None else (1 - share) * own + share * reference[sender])
        return found

    def _senders(self, tokens: Tensor, ablated: Tensor, reference: list[Tensor] | None) -> list[Tensor]:
        graph, written, biases = self.graph, [self._embedded(tokens)], torch.zeros(self.model.config.n_embd)
        width = self.model.config.n_embd // graph.heads
        for number, block in enumerate(self.model.transformer.h):
            weight, bias = block.attn.c_attn.weight, block.attn.c_attn.bias
            start = graph.reading(number).start
            for head in range(graph.heads):
                parts = []
                for stream in range(3):
                    receiver = start + stream * graph.heads + head
                    normed = block.ln_1(self._input(receiver, written, ablated, reference) + biases)
                    columns = slice(
                        stream * width * graph.heads + head * width, stream * width * graph.heads + (head + 1) * width
                    )
                    parts.append(normed @ weight[:, columns] + bias[columns])
                query, key, value = parts
                scores = query @ key.transpose(1, 2) / math.sqrt(width)
                hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
                pattern = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
                written.append(pattern @ value @ block.attn.c_proj.weight[head * width : (head + 1) * width])
            biases = biases + block.attn.c_proj.bias
            entering = self._input(graph.mlp(number), written, ablated, reference) + biases
            written.append(block.mlp(block.ln_2(entering)))
        self._biases = biases
        return written

    def _hidden(self, ablated: Tensor) -> Tensor:
        reference = getattr(self, "reference", None)
        written = self._senders(self.tokens, ablated, reference)
        stream = self._input(self.graph.logits, written, ablated, reference)
        return self.model.transformer.ln_f(stream + self._biases)

    def values(self, ablated: Tensor, measure: str = "logit_difference") -> Tensor:
        """m of every pair when edges are ablated by some shares (sender, receiver)."""
        hidden, found = self._hidden(ablated), [torch.zeros((), dtype=torch.float64) for _ in range(len(self.split))]
        for row, place in np.argwhere(self.split.kinds >= 0):
            logits, clean = hidden[row, place] @ self.model.lm_head.weight.T, self.clean[row, place]
            if measure == "kl":
                log_p = (clean @ self.model.lm_head.weight.T).log_softmax(dim=-1)
                found[row] = found[row] + (log_p.exp() * (log_p - logits.log_softmax(dim=-1))).sum()
            else:
                foils = [logits[foil] for foil in self.split.foils[row, place].ravel().tolist() if foil >= 0]
                answer = logits[int(self.split.answers[row, place])]
                found[row] = found[row] + answer - torch.stack(foils).mean()
        return torch.stack(found)
