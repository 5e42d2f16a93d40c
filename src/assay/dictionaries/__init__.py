"""Dictionaries: sparse codes of a stream, trained here or read from the field's files.

One file a recipe and one a format of files. A dictionary is a simplification like any other: what it makes of the
vectors of a place stands in for them.
"""

from assay.dictionaries._attribution_graph import AttributionGraph, GraphScores, Link, Node
from assay.dictionaries._cross_layer import CrossLayerTranscoder
from assay.dictionaries._dictionary import KINDS, Codes, Dictionary
from assay.dictionaries._given import GivenDictionary
from assay.dictionaries._kept_features import KeptFeatures, NoFeatures, RandomFeatures, Transcoders
from assay.dictionaries._measures import DENSE, Measures, measure
from assay.dictionaries._named import sparse_autoencoder
from assay.dictionaries._random import RandomDictionary
from assay.dictionaries._realigned import RealignedDictionary, realigned
from assay.dictionaries._replacement import CrossLayerReplacement, Replacement, read_replacement
from assay.dictionaries._sparse_autoencoder import SparseAutoencoder, Transcoder
from assay.dictionaries._training import Trained, Training, train

__all__ = [
    "DENSE",
    "KINDS",
    "AttributionGraph",
    "Codes",
    "CrossLayerReplacement",
    "CrossLayerTranscoder",
    "Dictionary",
    "GivenDictionary",
    "GraphScores",
    "KeptFeatures",
    "Link",
    "Measures",
    "NoFeatures",
    "Node",
    "RandomDictionary",
    "RandomFeatures",
    "RealignedDictionary",
    "Replacement",
    "SparseAutoencoder",
    "Trained",
    "Training",
    "Transcoder",
    "Transcoders",
    "measure",
    "read_replacement",
    "realigned",
    "sparse_autoencoder",
    "train",
]
