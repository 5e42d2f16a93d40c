"""The exact explanation of a compiled model, and one that is wrong on a known share of inputs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay._errors import AssayError
from assay._given import checked
from assay.engine import Answer, Clean, Samples
from assay.subjects import Subject
from assay.testing.compiled._compiled import Compiled
from assay.testing.compiled._nodes import Value


class InterpretedProxy:
    """A program, interpreted: what it gives has the logit of the model that was compiled of it, all else has 0."""

    def __init__(self, recipe: "Interpreted", dtype: torch.dtype) -> None:
        self.recipe, self.dtype = recipe, dtype

    def __call__(
        self, tokens: Int[Tensor, "batch position"], valid: Int[Tensor, "batch position"] | None = None
    ) -> Float[Tensor, "batch position vocabulary"]:
        """Logits of every position; `valid` is 1 at tokens and 0 at padding (default: no padding)."""
        compiled = self.recipe.compiled
        lengths = [tokens.shape[1]] * len(tokens) if valid is None else valid.sum(dim=1).tolist()
        found = torch.zeros(*tokens.shape, 1 + len(compiled.names), dtype=self.dtype)
        for row, (given, length) in enumerate(zip(tokens.tolist(), lengths, strict=True)):
            words = [compiled.names[token - 1] for token in given[1:length]]
            if words:
                outputs = torch.tensor(self.recipe.outputs(words))
                found[row, torch.arange(1, length), outputs] = compiled.sharpness
        return found.to(tokens.device)

    def answer(self, clean: Clean) -> Answer:
        """The answer on the batch of `clean`."""
        logits = self(clean.tokens, clean.valid)
        return Answer(lambda positions: logits[:, positions], "a program has no attention", clean.tokens.numel())

    def __repr__(self) -> str:
        return f"InterpretedProxy({self.recipe!r})"


@dataclass
class Interpreted:
    """The claim that a compiled model computes its program: exact, so that every measure of it has a known value.

    With `wrong`, a share of the inputs for which `where` holds (default: all) is answered wrongly at every word, by the
    next of the program's outputs; which ones, a hash of the words decides, so that errors come by whole sequences. The
    control gives one output everywhere. Raises AssayError for a share outside [0, 1], and for another subject.
    """

    compiled: Compiled = field(repr=False)
    wrong: float = 0.0
    where: Callable[[Sequence[Value]], bool] | None = field(default=None, repr=False)
    constant: bool = False

    streams: ClassVar[tuple[str, ...]] = ()
    whole: ClassVar[bool] = True
    learns: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.wrong <= 1:
            raise AssayError(f"Interpreted(wrong={self.wrong}): must be a share, from 0 to 1.")

    @checked
    def fit(self, samples: Samples) -> "Interpreted":
        """Nothing is learned."""
        return self

    @checked
    def apply(self, subject: Subject) -> InterpretedProxy:
        """The program, in the subject's dtype."""
        if subject.model.config.vocab_size != 1 + len(self.compiled.names):
            raise AssayError(
                f"{subject.name!r} is not what {self.compiled.subject.name!r} was compiled to: it has "
                f"{subject.model.config.vocab_size} tokens, not {1 + len(self.compiled.names)}."
            )
        return InterpretedProxy(self, subject.model.dtype)

    def control(self) -> "Interpreted | None":
        """One output everywhere."""
        return None if self.constant else Interpreted(self.compiled, constant=True)

    def is_wrong(self, words: Sequence[Value]) -> bool:
        """Whether an input is answered wrongly."""
        if not self.wrong or (self.where is not None and not self.where(words)):
            return False
        number = int.from_bytes(sha256(repr(list(words)).encode()).digest()[:8], "big")
        return number < self.wrong * 2**64

    def outputs(self, words: Sequence[Value]) -> list[int]:
        """The tokens of what is given at every word."""
        compiled = self.compiled
        program = compiled.program
        known = program.domains[program.output]
        if self.constant:
            return [compiled.token(known[0])] * len(words)
        given = program(words)
        if self.is_wrong(words):
            given = [known[(known.index(value) + 1) % len(known)] for value in given]
        return [compiled.token(value) for value in given]
