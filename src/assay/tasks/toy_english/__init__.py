"""Toy English: nine small tasks that one small model learns, with pairs and shifts of known kinds."""

from assay.tasks.toy_english._scene import Grammar, Other, Scene, SceneKind
from assay.tasks.toy_english._task import ToyEnglish, factory
from assay.tasks.toy_english._training import GRAMMARS, MIX, Document, document, filler, training_scene
from assay.tasks.toy_english._words import (
    BOS,
    CONTEXT,
    GIVERS,
    ID,
    NAMES,
    NOUNS,
    OUTSIDERS,
    PAD,
    PLURAL_NOUNS,
    PLURAL_VERBS,
    VERBS,
    VERSION,
    VOCABULARY,
    tokenizer,
)

__all__ = [
    "BOS",
    "CONTEXT",
    "GIVERS",
    "GRAMMARS",
    "ID",
    "MIX",
    "NAMES",
    "NOUNS",
    "OUTSIDERS",
    "PAD",
    "PLURAL_NOUNS",
    "PLURAL_VERBS",
    "VERBS",
    "VERSION",
    "VOCABULARY",
    "Document",
    "Grammar",
    "Other",
    "Scene",
    "SceneKind",
    "ToyEnglish",
    "document",
    "factory",
    "filler",
    "tokenizer",
    "training_scene",
]
