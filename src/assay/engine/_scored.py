"""Edits that act only where predictions are made."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assay._errors import AssayError
from assay.engine._attention import Edit, replaced
from assay.engine._proxy import Answer, Clean, EditedSubject
from assay.tasks import UNSCORED


class AtScored:
    """An edited subject whose edits act at scored positions only; at all others everything is as it was.

    There a vector is replaced by what its edit makes of it (a key or a value, too, which later positions then see), and
    a query's row of a pattern. Which positions are scored stands in the batch as the task gave it; called with tokens
    alone, an edit acts at every position, unless `scored` says where. Raises AssayError for a subject that is edited in
    another way than by `assay.engine.Edit`.
    """

    def __init__(self, edited: EditedSubject) -> None:
        if type(edited).answer_together.__func__ is not EditedSubject.answer_together.__func__:  # type: ignore[attr-defined]
            raise AssayError(
                f"{edited!r} has an answer_together of its own, so that it cannot be told to act at scored positions "
                "only; judge it at all positions."
            )
        self.edited = edited

    def __call__(
        self,
        tokens: Int[Tensor, "batch position"],
        valid: Int[Tensor, "batch position"] | None = None,
        scored: Bool[Tensor, "batch position"] | None = None,
    ) -> Float[Tensor, "batch position vocabulary"]:
        """Logits of every position; edits act where `scored` is true (default: everywhere)."""
        return (self.edited if scored is None else self._at(scored))(tokens, valid)

    def answer(self, clean: Clean) -> Answer:
        """The answer on the batch of `clean`. Raises AssayError if that does not say what is scored."""
        return next(answer for _, answer in self.answer_together([self], clean))

    @classmethod
    def answer_together(cls, proxies: Sequence["AtScored"], clean: Clean) -> Iterator[tuple[int, Answer]]:
        """Number and answer of each, as of `EditedSubject`."""
        if clean.batch is None:
            raise AssayError("edits that act at scored positions need the batch as the task gave it (batch=).")
        scored = torch.from_numpy(clean.batch.kinds != UNSCORED).to(clean.tokens.device)
        return EditedSubject.answer_together([proxy._at(scored) for proxy in proxies], clean)

    def _at(self, scored: Tensor) -> EditedSubject:
        return EditedSubject(self.edited.subject, [_where(scored, edit) for edit in self.edited.edits])

    def __repr__(self) -> str:
        return f"AtScored({self.edited!r})"


def _where(scored: Tensor, edit: Edit) -> Edit:
    """The edit, in force where a position (of a pattern: a query) is scored."""

    def only(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *states: torch.where(scored[..., None], function(*states), replaced(name, states))

    functions = {item.name: getattr(edit, item.name) for item in fields(edit)[1:]}
    changed: dict[str, Any] = {
        name: only(name, function) for name, function in functions.items() if function is not None
    }
    return replace(edit, **changed)
