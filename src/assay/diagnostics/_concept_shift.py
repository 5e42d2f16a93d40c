"""What training moved: do the samples of a concept move together, or has the space turned under all of them?"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans

from assay._errors import AssayError
from assay._given import checked
from assay.diagnostics._setting import Estimate, smooth_of
from assay.engine import Block, Engine, Place, batches, tensors
from assay.faithfulness import Weights
from assay.faithfulness._summary import weights_of
from assay.subjects import Subject
from assay.tasks import Split, Task

CLUSTERED = 20_000
"""The most vectors that concepts are found from."""

RESTARTS = 4

Vectors = Float[np.ndarray, "sample width"]


@dataclass(frozen=True)
class Concept:
    """One cluster of the vectors before training.

    `samples` is how many held-out vectors are in it. `shift` (width,) is the mean displacement of its vectors,
    `consistency` the mean cosine with it of the displacements of those held out, in [-1, 1]; NaN where there are none.
    """

    samples: int
    shift: Float[np.ndarray, " width"]
    consistency: float


@dataclass(frozen=True)
class Account:
    """How far a description of the change tells where held-out vectors went.

    `explained` is 1 - sum |b - b'|² / sum |b - a|²: what is told of the displacement, at most 1 (nothing told is 0).
    `residual` is sum |b - b'|² / sum |b - c|² with c the mean after training of the vector's concept: below 1 where the
    description tells more of a vector than its concept does, and 0 where it tells all.
    """

    explained: Estimate
    residual: Estimate

    def __str__(self) -> str:
        return f"{self.explained} of the displacement (residual {self.residual} of the spread within concepts)"


@dataclass(frozen=True)
class ConceptShift:
    """What became of the vectors of a place when a model was trained; see `concept_shift`.

    `by_concept` is the account by a shift for each concept, `alike` by one shift for all, `turned` by one rotation (or
    reflection) and a shift. `recovery` is the mean cosine of the concepts that were found anew after training, by their
    held-out vectors, and the old ones with their shifts; `recovery_alike` and `recovery_without` with one shift for all
    and with none.
    """

    concepts: tuple[Concept, ...]
    by_concept: Account
    alike: Account
    turned: Account
    recovery: float
    recovery_alike: float
    recovery_without: float

    def __str__(self) -> str:
        return (
            f"{len(self.concepts)} concepts; a shift for each tells {self.by_concept}; one for all {self.alike}; a "
            f"rotation {self.turned}; cosine of centroids {self.recovery:.3f} (one shift {self.recovery_alike:.3f}, "
            f"none {self.recovery_without:.3f})"
        )


@checked
def concept_shift(
    before: Subject,
    after: Subject,
    task: Task,
    site: str,
    *,
    concepts: int = 20,
    split: str = "iid",
    sequences: int = 200,
    fit_sequences: int = 200,
    level: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> ConceptShift:
    """How the vectors of a place have moved between two states of a model, on the same tokens.

    `site` names one place and stream, such as `layer1.residual`. On the train split the vectors a before training are
    clustered (k-means) into `concepts`, each with the mean displacement s of its vectors to those after training, b;
    on another `split` an a belongs to the nearest centroid, and three descriptions tell where it went:

        b' = a + s_k (a shift for each concept),    b' = a + s (one for all),    b' = mean b + (a - mean a) Q

    with Q the orthogonal matrix that fits the train split best (Procrustes). Limits are over sequences.

    Read `residual`. Where clusters are tight, the old centroid with its mean displacement is the new centroid, whatever
    happened: under a pure rotation the cosine of centroids (`recovery`) and the `consistency` are those of concepts
    that were shifted, and it is within a cluster that vectors have not moved together: there the residual is about 2
    under a random rotation and 0 under shifts. That cosine is nearly blind the other way, too: old and new centroids
    are alike without any shift.

    Source: Khayatan et al., arXiv 2501.03012 (concepts by semi-NMF among others, mean displacements, cosine of matched
    concepts). Differences: held-out vectors; the residual within concepts, one shift for all and a rotation to compare
    with; nothing is steered.

    Raises AssayError for a site of several places or streams, models of other widths or vocabularies, fewer than two
    different vectors a concept, and where nothing moved.
    """
    if concepts < 1:
        raise AssayError(f"concept_shift(concepts={concepts}): must be at least 1.")
    if before.vocabulary != after.vocabulary:
        raise AssayError(
            f"concept_shift(): {before.name!r} knows {before.vocabulary:,} tokens and {after.name!r} "
            f"{after.vocabulary:,}; give two states of one model."
        )
    engines = Engine(before), Engine(after)
    fitted, judged = task.split("train", fit_sequences), task.split(split, sequences)
    return shift_of(
        _read(engines, fitted, site),
        _read(engines, judged, site),
        concepts,
        weights_of(judged, seed=seed, resamples=resamples),
        level=level,
        seed=seed,
    )


class Moved(NamedTuple):
    """Vectors before and after training, and the sequence that each is of."""

    before: Vectors
    after: Vectors
    sequence: Int[np.ndarray, " sample"]


def shift_of(
    fitted: Moved, judged: Moved, concepts: int, weights: Weights, *, level: float = 0.95, seed: int = 0
) -> ConceptShift:
    """`concept_shift` of vectors: those of the train split, and those held out, of whose sequences `weights` are."""
    if len(np.unique(fitted.before, axis=0)) < 2 * concepts:
        raise AssayError(
            f"concept_shift(concepts={concepts}): only {len(np.unique(fitted.before, axis=0))} different vectors; ask "
            "for fewer concepts, or give more sequences."
        )
    old = _clusters(fitted.before, concepts, seed)
    number, held = old.predict(fitted.before), old.predict(judged.before)
    shifts = _means(fitted.after - fitted.before, number, concepts)
    new_means = _means(fitted.after, number, concepts)
    moved = judged.after - judged.before
    if not moved.any():
        raise AssayError("concept_shift(): no held-out vector has moved; the two models are one at this site.")
    alike = (fitted.after - fitted.before).mean(axis=0)
    turn = _turn(fitted)
    within = _square(judged.after - new_means[held])

    def account(told: Vectors) -> Account:
        columns = [_by_sequence(one, judged, weights) for one in (_square(judged.after - told), _square(moved), within)]
        return Account(
            smooth_of(lambda sums: np.asarray(1 - sums[0] / sums[1]), columns, weights, level=level),
            smooth_of(lambda sums: np.asarray(sums[0] / sums[2]), columns, weights, level=level),
        )

    new = _clusters(fitted.after, concepts, seed)
    found = _means(judged.after, new.predict(judged.after), concepts)
    recovered = [
        _recovery(old.cluster_centers_ + shift, new.cluster_centers_, found) for shift in (shifts, alike, 0 * alike)
    ]
    cosines = _cosine(moved, shifts[held])
    return ConceptShift(
        tuple(
            Concept(int(one.sum()), shifts[k], float(cosines[one].mean()) if one.any() else np.nan)
            for k in range(concepts)
            for one in [held == k]
        ),
        account(judged.before + shifts[held]),
        account(judged.before + alike),
        account(fitted.after.mean(axis=0) + (judged.before - fitted.before.mean(axis=0)) @ turn),
        *recovered,
    )


def _clusters(vectors: Vectors, concepts: int, seed: int) -> KMeans:
    """Clusters of some of the vectors."""
    drawn = np.random.default_rng(seed).permutation(len(vectors))[:CLUSTERED]
    return KMeans(concepts, n_init=RESTARTS, random_state=seed).fit(vectors[np.sort(drawn)])


def _means(vectors: Vectors, number: Int[np.ndarray, " sample"], concepts: int) -> Float[np.ndarray, "concept width"]:
    """The mean of each cluster; NaN for one without vectors."""
    sums = np.zeros((concepts, vectors.shape[1]))
    np.add.at(sums, number, vectors)
    counts = np.bincount(number, minlength=concepts)[:, None]
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


def _turn(fitted: Moved) -> Float[np.ndarray, "width width"]:
    """The orthogonal matrix that takes centred vectors nearest to where they went."""
    a, b = (vectors - vectors.mean(axis=0) for vectors in fitted[:2])
    left, _, right = np.linalg.svd(a.T @ b)
    found: np.ndarray = left @ right
    return found


def _square(vectors: Vectors) -> Float[np.ndarray, " sample"]:
    found: np.ndarray = (vectors**2).sum(axis=1)
    return found


def _by_sequence(
    values: Float[np.ndarray, " sample"], judged: Moved, weights: Weights
) -> Float[np.ndarray, " sequence"]:
    return np.bincount(judged.sequence, weights=values, minlength=len(weights.units))


def _cosine(one: Float[np.ndarray, "... width"], other: Float[np.ndarray, "... width"]) -> Float[np.ndarray, "..."]:
    """Cosines of vectors one by one; 0 where one of them has no length."""
    lengths = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    products = (one * other).sum(axis=-1)
    return np.divide(products, lengths, out=np.zeros(products.shape), where=lengths > 0)


def _recovery(
    told: Float[np.ndarray, "concept width"],
    new: Float[np.ndarray, "concept width"],
    held_out: Float[np.ndarray, "concept width"],
) -> float:
    """The mean cosine of centroids with the new ones that match them best, as held-out vectors give those."""
    _, match = linear_sum_assignment(-_cosine(told[:, None], new[None]))
    there = ~np.isnan(held_out[match]).any(axis=1)
    return float(_cosine(told[there], held_out[match][there]).mean())


def _one(engine: Engine, name: str) -> tuple[Place, str]:
    """The place and stream of a site. Raises AssayError unless it is one of each."""
    streams = dict(engine.site(name).streams)
    (place, own), *others = streams.items()
    if others or len(own) > 1:
        raise AssayError(
            f"concept_shift(site={name!r}): needs one place and one stream, such as 'layer1.residual' or "
            "'layer0.head1.values'."
        )
    return place, own[0]


def _read(engines: tuple[Engine, Engine], split: Split, site: str) -> Moved:
    """The vectors of a place in two models on all tokens of a split."""
    place, stream = _one(engines[0], site)
    _one(engines[1], site)
    found: list[list[np.ndarray]] = [[], []]
    sequence: list[np.ndarray] = []
    for index, batch in batches(engines[0], split):
        sequence.append(np.broadcast_to(index[:, None], batch.valid.shape)[batch.valid])
        for engine, parts in zip(engines, found, strict=True):
            run = engine.run(*tensors(batch, engine.subject.device), read=(stream,), logits=False)
            states = getattr(run, stream)[place.layer]
            own = states if isinstance(place, Block) else states[:, place.head]
            parts.append(own.double().cpu().numpy()[batch.valid])
    a, b = (np.concatenate(parts) for parts in found)
    if a.shape != b.shape:
        raise AssayError(
            f"concept_shift(): vectors of {site} have width {a.shape[1]} before and {b.shape[1]} after; give two "
            "states of one model."
        )
    return Moved(a, b, np.concatenate(sequence))
