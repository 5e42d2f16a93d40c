"""Hard attention."""

from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import one_hot

from assay._given import checked
from assay.engine import Edit, Place, Samples
from assay.simplify._controls import UniformAttention
from assay.simplify._protocol import heads_of, proxy_of
from assay.simplify._proxy import SimplifiedSubject
from assay.subjects import Subject


@dataclass
class OneHotAttention:
    """Attend to one position only: the one with the largest weight (the first of them, in a tie).

    Source: "one-hot attention" of arXiv 2312.03656; it does not depend on data. The rule for ties is ours.
    """

    heads_: tuple[Place, ...] | None = field(default=None, init=False, repr=False, compare=False)

    streams: ClassVar[tuple[str, ...]] = ()

    @checked
    def fit(self, samples: Samples) -> "OneHotAttention":
        """Note the heads."""
        self.heads_ = heads_of(self, samples)
        return self

    @checked
    def apply(self, subject: Subject) -> SimplifiedSubject:
        """The subject with one-hot attention at the fitted heads."""

        def harden(
            pattern: Float[Tensor, "batch query key"], visible: Bool[Tensor, "batch query key"]
        ) -> Float[Tensor, "batch query key"]:
            return one_hot(pattern.argmax(dim=-1), pattern.shape[-1]).to(pattern.dtype)

        return proxy_of(self, subject, self.heads_, lambda head: Edit(head, pattern=harden))

    def control(self) -> UniformAttention:
        """Attention without information."""
        return UniformAttention()
