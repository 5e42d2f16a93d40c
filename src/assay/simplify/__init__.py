"""What is claimed: recipes that make a simpler proxy of a subject, and the controls they have to beat.

One file a recipe. To add one: write a class with `streams`, `fit`, `apply` and `control` (see `Simplification`),
register it below, and let `assay.testing.check_simplification` judge it.
"""

from assay.simplify._bits import RepresentationBits, representation_bits
from assay.simplify._controls import Identity, MeanAblation, RandomPerturbation, RandomProjection, UniformAttention
from assay.simplify._interaction_basis import InteractionBasis
from assay.simplify._kmeans import KMeans
from assay.simplify._one_hot import OneHotAttention
from assay.simplify._protocol import (
    Simplification,
    ablated_of,
    applied,
    copies_model,
    is_whole,
    label,
    learns,
    own_sites_of,
    reads,
    simplifications,
    source_of,
)
from assay.simplify._proxy import Origin, SavedProxy, SimplifiedSubject
from assay.simplify._saved import load_proxy, remove_proxy, save_proxy
from assay.simplify._svd import SVD

simplifications.register("svd", SVD)
simplifications.register("kmeans", KMeans)
simplifications.register("one-hot", OneHotAttention)
simplifications.register("interaction-basis", InteractionBasis)
simplifications.register("random-projection", RandomProjection)
simplifications.register("uniform", UniformAttention)
simplifications.register("mean", MeanAblation)
simplifications.register("identity", Identity)

__all__ = [
    "SVD",
    "Identity",
    "InteractionBasis",
    "KMeans",
    "MeanAblation",
    "OneHotAttention",
    "Origin",
    "RandomPerturbation",
    "RandomProjection",
    "RepresentationBits",
    "SavedProxy",
    "Simplification",
    "SimplifiedSubject",
    "UniformAttention",
    "ablated_of",
    "applied",
    "copies_model",
    "is_whole",
    "label",
    "learns",
    "load_proxy",
    "own_sites_of",
    "reads",
    "remove_proxy",
    "representation_bits",
    "save_proxy",
    "simplifications",
    "source_of",
]
