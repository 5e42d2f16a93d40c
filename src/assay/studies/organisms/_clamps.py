"""Parts of an induction circuit that are given to a model, as constants, while it is trained."""

from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from assay.engine import Edit, Engine, Head
from assay.studies.organisms._labels_in_context import LABEL_TOKENS, LABELS, QUERY
from assay.studies.organisms._one_head import matches
from assay.subjects import Batch, Subject

PARTS = ("prev", "match", "copy")

CLAMPS: dict[str, tuple[str, ...]] = {
    "none": (),
    "prev": ("prev",),
    "copy": ("copy",),
    "prev + copy": ("prev", "copy"),
    "match": ("match",),
    "prev + match": ("prev", "match"),
}
"""The clamps that are tried, by name. All three parts together are the answer: there is nothing left to train."""

COPIED = 10.0
"""What a label gains in logits by a whole attention on it, where copying is clamped."""


class Clamped:
    """A model in training with some parts of the circuit given.

    `prev`: head 0 of layer 0 attends to the token before (the first token to itself). `match`: head 0 of layer 1
    attends, from the query, to the right label alone. `copy`: the logits of labels are `COPIED` times the attention of
    that head, from the query, on each label. What is given is constant and carries no gradient; the heads beside it
    are free. Logits are those of the five labels at the query.
    """

    def __init__(self, model: PreTrainedModel, parts: tuple[str, ...]) -> None:
        self.parts = parts
        self.engine = Engine(Subject(model, None, "in training"))
        self._read: list[Tensor] = []

    def around(self, step: int, batch: Batch) -> AbstractContextManager[None]:
        """What a forward pass on a batch is put into."""
        return self._in_force(batch.tokens)

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """The cross-entropy of the right label among the five, in nats; within `around`."""
        tokens = torch.from_numpy(batch.tokens).to(model.device)
        right = torch.from_numpy(batch.labels[:, QUERY] - LABEL_TOKENS[0]).to(model.device)
        return torch.nn.functional.cross_entropy(self._logits(model, tokens), right)

    def answers(self, model: PreTrainedModel, tokens: np.ndarray) -> np.ndarray:
        """The likeliest label token of every sequence, with the clamps on."""
        with self._in_force(tokens):
            logits = self._logits(model, torch.from_numpy(tokens).to(model.device))
        found: np.ndarray = LABEL_TOKENS[0] + logits.argmax(dim=-1).cpu().numpy()
        return found

    def _logits(self, model: PreTrainedModel, tokens: Tensor) -> Tensor:
        self._read.clear()
        logits: Tensor = model(input_ids=tokens).logits[:, QUERY, LABEL_TOKENS[0] :]
        if "copy" not in self.parts:
            return logits
        attention = self._read[0][:, QUERY]
        of_label = tokens[:, None, :] == torch.tensor(LABEL_TOKENS, device=tokens.device)[:, None]
        assert of_label.shape[1] == LABELS
        return COPIED * (of_label * attention[:, None, :]).sum(dim=-1)

    def _in_force(self, tokens: np.ndarray) -> AbstractContextManager[None]:
        wanted = matches(torch.from_numpy(tokens)).to(self.engine.subject.device)[:, QUERY]
        before = torch.eye(tokens.shape[1], device=wanted.device).roll(1, dims=0)
        before[0] = torch.eye(tokens.shape[1], device=wanted.device)[0]

        def previous(pattern: Tensor, visible: Tensor) -> Tensor:
            return before.expand_as(pattern)

        def look(pattern: Tensor, visible: Tensor) -> Tensor:
            if "match" in self.parts:
                pattern = torch.cat((pattern[:, :QUERY], wanted[:, None]), dim=1)
            self._read.append(pattern)
            return pattern

        edits = [Edit(Head(0, 0), pattern=previous)] if "prev" in self.parts else []
        edits += [Edit(Head(1, 0), pattern=look)] if {"match", "copy"} & {*self.parts} else []
        return self.engine.clamped(edits)
