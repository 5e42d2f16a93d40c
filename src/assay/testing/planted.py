"""Planted subjects: models whose gap, circuit, neurons or atoms are known exactly, to test what looks for them.

`induction`, `either`, `cancelling` (two heads that undo each other), `two_tasks` (which share heads) and `nothing` give
a model with pairs of inputs and the edges that its answers are made by:

```python
from assay.testing import planted

known = planted.induction(sharpness=3)
known.subject, known.pairs, known.edges  # "layer0.head0 -> layer1.head0.keys" among five of 46
```

`memoriser` and `wrapper` give a model with some neurons that answer some inputs otherwise than its rule, and the model
without them; `SparseSums` is a task whose model's vectors are sums of a few known atoms:

```python
known = planted.wrapper()
known.subject, known.base, known.neurons  # without any of the three neurons it is the base
task = planted.SparseSums()
task.subject(), task.atoms, task.recovery(task.atoms)  # the last is (1.0, 1.0)
```

The rest of this page is about gaps.

`Lookup` is a task, `Lookup.subject()` its model: an ordinary GPT-2 with one head and set weights, which is always
right. `assay.SVD(rank=task.rank)` on its queries and keys drops what finds the rare keys, and nothing else, so the
proxy is wrong exactly where a rare key is asked for; how often that is, the task decides.

```python
from assay.testing import planted

task = planted.Lookup(gap=0.3)
comparison = assay.compare(task.subject(), task, [assay.SVD(rank=task.rank)])
comparison.gaps()[["gap", "low", "high"]]  # covers task.truth.gap, which is 0.3
```

**The subject.** A sequence is a context of `SLOTS` tokens, each a key that carries a value, then two decoys or blanks,
then questions, each the name of a key, followed by its value. Tokens are sums of *features*, each of which has two
coordinates of the width d for itself, (1, -1)/√2, so that every token has mean 0; a filler feature, which nothing
reads, brings every token to length √d. Layer norm is then the identity. The head gives the question about key i the
query t_i e_i, a token of key i the key s_i e_i, and every other token 0; values and output copy the carried value,
which is read by the unembedding. The MLP writes nothing. With t_i s_i = `SCORE` √d nearly all attention is on the
key asked for, and all answers have nearly the same margin, `MARGIN`.

**Why the projection is exact.** Every query and every key vector is a multiple of one coordinate, so the matrix of
second moments that SVD diagonalises (queries and keys together, not centred) *is* diagonal: a projection keeps
some coordinates whole and drops the others. Its entries a sequence, up to a common factor, are

    frequent key   (SLOTS - rare keys)/FREQUENT · 4² + questions · (1 - p)/FREQUENT · 2²        about 27 to 32
    decoy          2 · 4²                                                                       32
    rare key       2² + questions · p/rare keys · 4²                                            above 4

where p is the share of questions about rare keys, so rare keys go first. Without its coordinate, the query for a rare
key is 0 and its attention uniform; the answer is then the value that most of the context carries. The rare keys and one
of the frequent ones always carry another one: the proxy is always wrong about rare keys, and (its other scores being
those of the subject) never about frequent ones. Hence agreement = 1 - p on every split, by prediction and by
sequence, and gap = p on the shift - p on iid.

The construction is our own: the failures of low-rank explanations under a shift that arXiv 2312.03656 measures in
trained models, with their size set by hand.
"""

import math
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Int
from transformers import GPT2Config, GPT2LMHeadModel

from assay._errors import AssayError, unknown_name
from assay.subjects import Subject
from assay.tasks import UNSCORED, Feature, Kind, Role, Split
from assay.testing._planted_circuits import PlantedCircuit, cancelling, either, induction, nothing, two_tasks
from assay.testing._planted_dictionary import SparseSums
from assay.testing._planted_neurons import PlantedNeurons, PlantedSums, memoriser, wrapper

__all__ = [
    "Cause",
    "Lookup",
    "PlantedCircuit",
    "PlantedNeurons",
    "PlantedSums",
    "SparseSums",
    "Truth",
    "cancelling",
    "either",
    "induction",
    "memoriser",
    "nothing",
    "two_tasks",
    "wrapper",
]

Cause = Literal["fit", "structure", "difficulty"]
"""What a planted gap is due to; see `Lookup`."""

SLOTS, FREQUENT, VALUES = 12, 6, 4
"""Tokens of the context, keys that are frequent, and values that a key may carry."""

SCORE, HARD_SCORE = 10.0, 3.5
"""Attention score of a question and its key: nearly all attention is there; or it is spread, with the key still ahead.

A score of 20 would leave a random projection of the same rank right nearly everywhere, and so be no control.
"""

MARGIN = 9.0
"""Nats by which the subject's answer leads where all attention is on its key: amid a stratum of the matched gap."""

FREQUENT_KEY, RARE_KEY, DECOY = 4.0, 2.0, 4.0
"""Lengths s_i of key vectors, and of the decoy, up to a common factor; queries have t_i = `PRODUCT` / s_i."""

PRODUCT = 8.0


class Truth(NamedTuple):
    """What holds of a planted proxy in the population, exactly; shares in [0, 1].

    `agreement` is in distribution; `gap`, `matched`, `removed` and `remaining` are what the columns of
    `Comparison.gaps` with these names estimate, by prediction and by sequence.
    """

    agreement: float
    gap: float
    matched: float
    removed: float
    remaining: float


@dataclass(frozen=True)
class Lookup:
    """Questions about keys and their values; under the shift, rare keys are asked for more often by `gap`.

    In `train` and `iid` a question is about a rare key with probability `rare_share`, under the shift `more_rare` with
    `rare_share + gap`. What `SVD(rank=task.rank)` of queries and keys gets wrong there is due to the `cause`:

    - "fit": one rare key. Decoys, which no question reads, take its place among the directions that are kept; under the
      shift they are blanks, and a refit there keeps the rare key. Of the gap, refitting removes rare_share + gap, and
      -rare_share remains.
    - "structure": two rare keys and no decoys. The rank is too low on any split: nothing is removed, the gap remains.
    - "difficulty": as "fit", but the rare key gets only most of the attention, so that the subject is less sure of it.
      At equal margin there is no gap.

    `Lookup(gap=0.0, rare_share=0.0)` plants no error at all. With several `questions` a sequence, errors come in
    clusters: with probability `rho` all questions of a sequence are about rare keys or none is, otherwise each is drawn
    by itself; `rho` is then the correlation of any two errors of a sequence, exactly. Which rare or frequent key it is,
    is uniform. `SVD(rank=task.whole_rank)` keeps every direction and agrees everywhere.

    One kind of prediction is scored, `answer`; the feature `rare` says which questions are about a rare key. `seed`
    draws the sequences; the subject does not depend on it.

    Raises AssayError for an unknown cause, shares outside [0, 1], no question, and where rare keys are asked for so
    often that their directions might not be the last.
    """

    gap: float
    rare_share: float = 0.02
    cause: Cause = "fit"
    questions: int = 1
    rho: float = 1.0
    seed: int = 0

    name = "lookup"
    primary_kind = "answer"
    split_names = ("train", "iid", "more_rare")
    kinds = (Kind("answer", "the value that the key asked for carries"),)
    features = (Feature("rare", "key asked for", ("answer",), (0, 1), ("frequent", "rare")),)

    def __post_init__(self) -> None:
        if self.cause not in get_args(Cause):
            raise unknown_name("cause", str(self.cause), get_args(Cause))
        for name, value in (
            ("rare_share", self.rare_share),
            ("rare_share + gap", self.rare_share + self.gap),
            ("rho", self.rho),
        ):
            if not 0 <= value <= 1:
                raise AssayError(f"Lookup({name} = {value:g}): must be between 0 and 1.")
        if self.questions < 1:
            raise AssayError(f"Lookup(questions={self.questions}): must be at least 1.")
        for name in ("train",) if self.has_decoys else ("train", "more_rare"):
            rare, others = self._moments(self._share(name))
            if rare > others / 2:
                raise AssayError(
                    f"Lookup(gap={self.gap:g}, rare_share={self.rare_share:g}, questions={self.questions}): on {name} "
                    f"a rare key has {rare / others:.0%} of the second moment of other directions, and at most 50% "
                    "keeps it last; lower the share or the number of questions."
                )

    @property
    def rare(self) -> int:
        """How many keys are rare."""
        return 2 if self.cause == "structure" else 1

    @property
    def has_decoys(self) -> bool:
        """Whether decoys follow the context, other than under the shift."""
        return self.cause != "structure"

    @property
    def rank(self) -> int:
        """The directions that are not of rare keys, in distribution: SVD of this rank drops those."""
        return FREQUENT + self.has_decoys

    @property
    def whole_rank(self) -> int:
        """All directions that queries and keys have."""
        return self.rank + self.rare

    @property
    def truth(self) -> Truth:
        """What holds of `SVD(rank=task.rank)` in the population."""
        refit_heals = self.has_decoys
        return Truth(
            agreement=1 - self.rare_share,
            gap=self.gap,
            matched=0.0 if self.cause == "difficulty" else self.gap,
            removed=self.rare_share + self.gap if refit_heals else 0.0,
            remaining=-self.rare_share if refit_heals else self.gap,
        )

    @property
    def positions(self) -> int:
        """Tokens of a sequence; all have the same number."""
        return SLOTS + 2 + 2 * self.questions

    def describe(self) -> dict[str, object]:
        """The parameters, as plain values."""
        return {"task": self.name, **asdict(self)}

    def _share(self, name: str) -> float:
        """The probability that a question of a split is about a rare key."""
        return self.rare_share + (self.gap if name == "more_rare" else 0.0)

    @property
    def _rare_product(self) -> float:
        """t_i s_i of a rare key, up to the common factor."""
        return PRODUCT * (HARD_SCORE / SCORE if self.cause == "difficulty" else 1)

    def _moments(self, share: float) -> tuple[float, float]:
        """Second moments a sequence, up to the common factor: a rare key's, and the least of other directions."""
        rare = RARE_KEY**2 + self.questions * share / self.rare * (self._rare_product / RARE_KEY) ** 2
        frequent = (
            (SLOTS - self.rare) * FREQUENT_KEY**2 + self.questions * (1 - share) * (PRODUCT / FREQUENT_KEY) ** 2
        ) / FREQUENT
        return rare, min(frequent, 2 * DECOY**2)

    @property
    def _ids(self) -> dict[str, int]:
        """The first token of each group: keys with values come before all, key by key."""
        keys = FREQUENT + self.rare
        question = keys * VALUES
        answer = question + keys
        return {"question": question, "answer": answer, "decoy": answer + VALUES, "blank": answer + VALUES + 1}

    def subject(self) -> Subject:
        """The model that always answers right: GPT-2 of one layer and one head, in float32, made in float64."""
        keys = FREQUENT + self.rare
        ids = self._ids
        vocabulary = ids["blank"] + 1
        question, key, value = np.split(np.arange(2 * keys + VALUES), (keys, 2 * keys))
        decoy = 2 * keys + VALUES
        filler = decoy + 1
        width = 2 * (filler + 1)
        direction = np.zeros((filler + 1, width))
        direction[np.arange(filler + 1), 2 * np.arange(filler + 1)] = 2**-0.5
        direction[np.arange(filler + 1), 2 * np.arange(filler + 1) + 1] = -(2**-0.5)

        tokens = np.zeros((vocabulary, filler + 1))
        carried = np.arange(keys * VALUES)
        tokens[carried, key[carried // VALUES]] = 1
        tokens[carried, value[carried % VALUES]] = 1
        tokens[ids["question"] + np.arange(keys), question] = 1
        tokens[ids["decoy"], decoy] = 1
        tokens[:, filler] = np.sqrt(width - (tokens**2).sum(axis=1))

        lengths = np.array([FREQUENT_KEY] * FREQUENT + [RARE_KEY] * self.rare)
        products = np.array([PRODUCT] * FREQUENT + [self._rare_product] * self.rare)
        common = math.sqrt(SCORE * math.sqrt(width) / PRODUCT)
        to_queries, to_keys, to_values = (np.zeros((filler + 1, width)) for _ in range(3))
        to_queries[question, np.arange(keys)] = common * products / lengths
        to_keys[key, np.arange(keys)] = common * lengths
        to_keys[decoy, keys] = common * DECOY
        to_values[value, np.arange(VALUES)] = 1
        answers = np.zeros((vocabulary, filler + 1))
        # The last layer norm shortens a vector that has the answer added, of length 1.
        answers[ids["answer"] + np.arange(VALUES), value] = MARGIN * math.sqrt((width + 1) / width)

        config = GPT2Config(
            vocab_size=vocabulary,
            n_positions=self.positions,
            n_embd=width,
            n_layer=1,
            n_head=1,
            layer_norm_epsilon=1e-12,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
        )
        with torch.random.fork_rng():
            model = GPT2LMHeadModel(config).eval()
        block = model.transformer.h[0]
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.fill_(float("ln_" in name and name.endswith("weight")))
            for weight, numbers in (
                (model.transformer.wte.weight, tokens @ direction),
                (block.attn.c_attn.weight, direction.T @ np.hstack((to_queries, to_keys, to_values))),
                (block.attn.c_proj.weight, to_values.T @ direction),
                (model.lm_head.weight, answers @ direction),
            ):
                weight.copy_(torch.from_numpy(numbers))
        return Subject(model, None, f"planted-{self.name}")

    def split(self, name: str, sequences: int) -> Split:
        """The first `sequences` sequences of a split. Raises AssayError for an unknown split or a number below 1."""
        roles: dict[str, tuple[Role, str]] = {
            "train": ("train", "questions about frequent keys, mostly"),
            "iid": ("iid", "fresh sequences of that kind"),
            "more_rare": ("shift", "more questions about rare keys" + (", no decoys" if self.has_decoys else "")),
        }
        if name not in roles:
            raise unknown_name("split", name, roles)
        if sequences < 1:
            raise AssayError(f"split({name!r}, sequences={sequences}): must be at least 1.")
        chunk = 1024
        drawn = [
            self._draw(name, np.random.default_rng([self.seed, self.split_names.index(name), index]), chunk)
            for index in range(-(-sequences // chunk))
        ]
        tokens, rare = (np.concatenate(parts)[:sequences] for parts in zip(*drawn, strict=True))
        asked = np.arange(SLOTS + 2, self.positions, 2)
        kinds = np.full(tokens.shape, UNSCORED, dtype=np.int64)
        kinds[:, asked] = 0
        feature = np.zeros_like(kinds)
        feature[:, asked] = rare
        role, description = roles[name]
        return Split(
            name=name,
            role=role,
            description=description,
            tokens=tokens,
            lengths=np.full(sequences, self.positions),
            kinds=kinds,
            features={"rare": feature},
        )

    def _draw(
        self, name: str, rng: np.random.Generator, count: int
    ) -> tuple[Int[np.ndarray, "count position"], Int[np.ndarray, "count question"]]:
        """Tokens of so many sequences, and which of their questions are about rare keys (1)."""
        rows = np.arange(count)[:, None]
        every = np.arange(FREQUENT + self.rare)
        odd = rng.integers(FREQUENT, size=(count, 1))
        spare = (odd + 1 + rng.integers(FREQUENT - 1, size=(count, SLOTS - len(every)))) % FREQUENT
        most = rng.integers(VALUES, size=(count, 1))
        carried = np.repeat(most, len(every), axis=1)
        other = (most + 1 + rng.integers(VALUES - 1, size=(count, 1 + self.rare))) % VALUES
        carried[rows, np.hstack((odd, np.broadcast_to(every[FREQUENT:], (count, self.rare))))] = other
        keys = rng.permuted(np.hstack((np.broadcast_to(every, (count, len(every))), spare)), axis=1)
        context = keys * VALUES + carried[rows, keys]

        chance = rng.random((count, self.questions))
        chance = np.where(rng.random((count, 1)) < self.rho, chance[:, :1], chance)
        rare = chance < self._share(name)
        asked = np.where(
            rare,
            FREQUENT + rng.integers(self.rare, size=rare.shape),
            rng.integers(FREQUENT, size=rare.shape),
        )
        ids = self._ids
        follows = ids["decoy" if self.has_decoys and name != "more_rare" else "blank"]
        questions = np.stack((ids["question"] + asked, ids["answer"] + carried[rows, asked]), axis=-1)
        tokens = np.hstack((context, np.full((count, 2), follows), questions.reshape(count, -1)))
        return tokens, rare.astype(np.int64)
