"""The subject with a simplification in force."""

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from assay.engine._attention import Edit
from assay.engine._engine import Engine
from assay.subjects import Subject


class Proxy:
    """A subject whose heads are edited; called like the subject, which itself stays as it is."""

    def __init__(self, subject: Subject, edits: Sequence[Edit]) -> None:
        self.subject = subject
        self.edits = tuple(edits)
        self._engine: Engine | None = None

    def __call__(
        self, tokens: Int[Tensor, "batch position"], valid: Int[Tensor, "batch position"] | None = None
    ) -> Float[Tensor, "batch position vocabulary"]:
        """Logits of every position; `valid` is 1 at tokens and 0 at padding (default: no padding)."""
        if self._engine is None:
            self._engine = Engine(self.subject)
        return self._engine.run(tokens, valid, edits=self.edits).logits

    def __repr__(self) -> str:
        heads = ", ".join(str(edit.place) for edit in self.edits)
        return f"Proxy({self.subject!r}, simplified at {heads})"
