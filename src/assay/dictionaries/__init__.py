"""Dictionaries: sparse codes of a stream, trained here or read from the field's files."""

from assay.dictionaries._cross_layer import CrossLayerTranscoder
from assay.dictionaries._dictionary import KINDS, Codes, Dictionary
from assay.dictionaries._measures import DENSE, Measures, measure

__all__ = ["DENSE", "KINDS", "Codes", "CrossLayerTranscoder", "Dictionary", "Measures", "measure"]
