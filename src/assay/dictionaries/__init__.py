"""Dictionaries: sparse codes of a stream, trained here or read from the field's files."""

from assay.dictionaries._cross_layer import CrossLayerTranscoder
from assay.dictionaries._dictionary import KINDS, Codes, Dictionary

__all__ = ["KINDS", "Codes", "CrossLayerTranscoder", "Dictionary"]
