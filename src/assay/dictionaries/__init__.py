"""Dictionaries: sparse codes of a stream, trained here or read from the field's files."""

from assay.dictionaries._dictionary import KINDS, Codes, Dictionary
from assay.dictionaries._measures import Measures, measure

__all__ = ["KINDS", "Codes", "Dictionary", "Measures", "measure"]
