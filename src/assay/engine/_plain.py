"""Subjects whose attention cannot be read: they are run whole, and other models may stand for them."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from assay._errors import AssayError
from assay.engine._engine import Engine
from assay.engine._places import ATTENTION, Place
from assay.engine._run import IdentityDifference, Run
from assay.subjects import Subject

_PADDING = 1e-3
"""How far padding may move a logit, relative to the largest; 250 times as far in half precision."""


class PlainEngine(Engine):
    """Runs a subject by its own code, as it is: there is nothing to read and nothing to edit.

    It has no layers, heads or blocks, and no site but "all", where nothing acts. A run holds the logits of all
    positions. `unreadable` says why there is no more. Raises AssayError for a subject that cannot be run on token ids
    and an attention mask, has not one output a token, or answers otherwise when a sequence is padded.
    """

    def __init__(self, subject: Subject, unreadable: str) -> None:  # what Engine finds out is not there
        self.subject = subject
        self.unreadable = unreadable
        self._modules = ()
        self.heads, self.blocks, self.widths = (), (), {}
        self._rows_agree = False
        self._check_padding()

    def _check_padding(self) -> None:
        try:
            tokens = self.few_tokens()
            short = max(1, tokens.shape[1] - 2)
            valid = (torch.arange(tokens.shape[1], device=tokens.device) < short).long()[None]
            padded, alone = self.subject(tokens, valid), self.subject(tokens[:, :short])
        except (torch.OutOfMemoryError, AssayError):
            raise
        except Exception as error:
            raise AssayError(self.unreadable) from error
        if padded.shape[:2] != tokens.shape:
            raise AssayError(self.unreadable)
        moved = float((padded[:, :short] - alone).abs().max())
        exact = alone.dtype in (torch.float32, torch.float64)
        if not moved <= (1 if exact else 250) * _PADDING * float(alone.abs().max()):
            raise AssayError(
                f"{self.subject.name!r} answers differently when a sequence is padded (a logit moves by {moved:.2g}), "
                "so it ignores which tokens are valid; it cannot be judged in batches."
            )

    def ready(self) -> AbstractContextManager[None]:
        """Nothing has to be prepared."""
        return nullcontext()

    def run(
        self, tokens: Int[Tensor, "batch position"], valid: Int[Tensor, "batch position"] | None = None, **options: Any
    ) -> Run:
        """The subject's logits. Raises AssayError if edits or something to read are asked for."""
        if options.get("edits") or options.get("read") or options.get("resume") is not None:
            raise AssayError(self.unreadable)
        return Run(logits=self.subject(tokens, valid), _tokens=tokens, _valid=valid)

    def identity_difference(
        self, tokens: Int[Tensor, "batch position"], valid: Int[Tensor, "batch position"] | None = None
    ) -> IdentityDifference:
        """What another batch changes: every sequence alone and without padding, against all of them together."""
        together = self.subject(tokens, valid)
        alone = torch.zeros_like(together)
        lengths = [tokens.shape[1]] * len(tokens) if valid is None else valid.sum(dim=1).tolist()
        largest = 0.0
        for row, length in enumerate(lengths):
            alone[row, :length] = self.subject(tokens[row : row + 1, :length])[0]
            largest = max(largest, float((alone[row, :length] - together[row, :length]).abs().max()))
        return IdentityDifference(0.0, largest, alone, together)

    def _part(self, text: str) -> tuple[str, tuple[Place, ...], tuple[str, ...]]:
        if text != "all":
            raise AssayError(f"site {text!r}: {self.unreadable}")
        return text, (), ATTENTION


def engine_of(subject: Subject, *, parts: bool = True) -> Engine:
    """An engine of the subject; a `PlainEngine` where its attention cannot be read and no `parts` of it are asked for.

    Raises AssayError as `Engine` does, or as `PlainEngine` does.
    """
    try:
        return Engine(subject)
    except AssayError as error:
        if parts:
            raise
        return PlainEngine(subject, str(error))
