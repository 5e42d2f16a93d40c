"""A task of one's own: close brackets that are all opened first, at depths that the model knows and deeper ones."""

import numpy as np

from assay.tasks import UNSCORED, Kind, Split

OPENING, START, PAD = 20, 40, 42  # types of brackets and two tokens of the shipped model dyck-20-10

DEPTHS = {"train": (2, 8), "iid": (2, 8), "deep": (9, 10), "too_deep": (11, 14)}


class Nest:
    """Sentences such as `(3 (7 (3 3) 7) 3)`: some brackets are opened, then all are closed."""

    name = "nest"
    kinds = (Kind("closing", "closing bracket", candidates=tuple(range(OPENING, 2 * OPENING))),)
    primary_kind = "closing"
    features = ()
    split_names = tuple(DEPTHS)

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def split(self, name, sequences):
        """The first `sequences` sequences of a split; the same ones every time."""
        rng = np.random.default_rng([self.seed, self.split_names.index(name)])
        least, most = DEPTHS[name]
        tokens = np.full((sequences, 2 * most + 1), PAD)
        kinds = np.full(tokens.shape, UNSCORED)
        lengths = np.zeros(sequences, dtype=np.int64)
        for row in range(sequences):
            depth = int(rng.integers(least, most + 1))
            opened = rng.integers(OPENING, size=depth)
            lengths[row] = 2 * depth + 1
            tokens[row, : lengths[row]] = [START, *opened, *(opened[::-1] + OPENING)]
            kinds[row, depth : 2 * depth] = 0  # the prediction of the next token, made at these positions
        return Split(
            name=name,
            role=name if name in ("train", "iid") else "shift",
            description=f"{least} to {most} brackets in one another",
            tokens=tokens,
            lengths=lengths,
            kinds=kinds,
        )

    def describe(self):
        """What the record keeps."""
        return {"task": self.name, "seed": self.seed}
