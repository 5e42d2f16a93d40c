"""The last step of a pass, from the final hidden states to logits, taken for a few positions at a time."""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from assay.engine._attention import Plan
from assay.subjects import Subject


def given(module: nn.Module, output: Any) -> AbstractContextManager[None]:
    """Within the block, a module gives back what is known already instead of computing it."""
    return instead(module, lambda *inputs, **options: output)


@contextmanager
def instead(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within the block, a module computes something else."""
    before = {"forward": module.forward} if "forward" in vars(module) else {}
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]
        vars(module).update(before)


class Tail:
    """A subject split into its body (everything up to the final hidden states) and the unembedding.

    The unembedding is the model's own code, run with the body's output given and cut to some positions; so scaling or
    soft-capping of logits stays.
    """

    def __init__(self, subject: Subject, body: nn.Module) -> None:
        self.subject = subject
        self._module = body

    @classmethod
    def of(
        cls,
        subject: Subject,
        tokens: Tensor,
        whole: Tensor,
        reading: Callable[[Plan], AbstractContextManager[None]],
    ) -> "Tail | None":
        """The tail of a subject; None if it cannot be split, or splitting changed its logits on `tokens`."""
        body = subject.model.base_model
        if body is subject.model:
            return None
        tail = cls(subject, body)
        middle = slice(1, tokens.shape[1] - 1)
        try:
            with reading(Plan({})):
                found = tail.logits(tail.body(tokens, None), tokens, None, middle)
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError):
            return None
        expected = whole[:, middle]
        same = found.shape == expected.shape and torch.allclose(found, expected, atol=1e-4, rtol=1e-4)
        return tail if same else None

    def body(self, tokens: Tensor, valid: Tensor | None) -> Any:
        """Everything up to the final hidden states, in the form in which the model passes it on."""
        return self._call(self._module, tokens, valid)

    def logits(self, body: Any, tokens: Tensor, valid: Tensor | None, positions: slice | Tensor) -> Tensor:
        """Logits (batch, position, vocabulary) of some positions."""
        part = copy.copy(body)
        part["last_hidden_state"] = body[0][:, positions]
        with given(self._module, part):
            found: Tensor = self._call(self.subject.model, tokens, valid).logits
            return found

    @torch.inference_mode()
    def _call(self, module: nn.Module, tokens: Tensor, valid: Tensor | None) -> Any:
        mask = torch.ones_like(tokens) if valid is None else valid
        without_cache = {"use_cache": False} if getattr(self.subject.model.config, "use_cache", False) else {}
        return module(input_ids=tokens, attention_mask=mask, **without_cache)
