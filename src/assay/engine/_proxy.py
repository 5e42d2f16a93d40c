"""The subject with a simplification in force."""

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from assay._errors import AssayError
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


def check_proxy(proxy: object, subject: Subject, what: str) -> None:
    """Raise AssayError unless `proxy` (called `what` in the message) is what it is judged as: edits of this subject.

    Only its edits are judged, in the subject's own model: other weights, or a call of its own, would be ignored.
    """
    if not isinstance(proxy, Proxy):
        raise AssayError(
            f"{what} is a {type(proxy).__name__}, not a proxy; what is judged is what apply(subject) of a fitted "
            "simplification gives, an assay.engine.Proxy(subject, edits)."
        )
    other = proxy.subject
    if other.model is not subject.model and (other.weights_sha256, other.config_sha256) != (
        subject.weights_sha256,
        subject.config_sha256,
    ):
        raise AssayError(
            f"{what} is a proxy of {other!r}, whose weights or configuration are not those of {subject!r}; give a "
            "proxy of the subject that is judged."
        )
    wrong = [type(edit).__name__ for edit in proxy.edits if not isinstance(edit, Edit)]
    if wrong or type(proxy).__call__ is not Proxy.__call__:
        raise AssayError(
            f"{what} has {f'a {wrong[0]} among its edits' if wrong else 'a __call__ of its own'}, which is not judged; "
            "say everything in assay.engine.Edit."
        )
