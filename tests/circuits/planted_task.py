"""A task of pairs whose shift asks for edges that no pair of the train split asks for."""

from dataclasses import dataclass, replace

from assay.subjects import Subject
from assay.tasks import Kind, Split
from assay.testing import planted

FOUND_ON_TRAIN = (
    "embeddings -> layer1.head0.values",
    "embeddings -> layer1.head0.queries",
    "layer1.head0 -> logits",
)
NEEDED_BY_THE_SHIFT = (
    "embeddings -> layer0.head0.values",
    "layer0.head0 -> layer1.head0.keys",
    "layer1.head0 -> logits",
)


@dataclass(frozen=True)
class Induction:
    """Pairs of `planted.induction`: answers and last tokens are swapped, under the shift the tokens looked for."""

    name = "planted-induction"
    primary_kind = "answer"
    split_names = ("train", "iid", "first")
    kinds = (Kind("answer", "the token that followed before"),)
    features = ()

    def split(self, name: str, sequences: int) -> Split:
        changed = ("first",) if name == "first" else ("answers", "last")
        known = planted.induction(3.0, changed=changed, pairs=sequences, seed=self.split_names.index(name))
        return replace(known.pairs, name=name, role="shift" if name == "first" else name)

    def describe(self) -> dict[str, object]:
        return {"task": self.name}

    @staticmethod
    def subject() -> Subject:
        return planted.induction(3.0, pairs=1).subject
