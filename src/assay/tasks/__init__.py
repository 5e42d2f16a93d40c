"""What the subject is asked: sequences in named splits, with the kind of every prediction.

One file a task. Knows nothing of models.
"""

from assay._registry import Registry
from assay.tasks._code import Code
from assay.tasks._code_pairs import InductionPairs
from assay.tasks._dyck import Dyck
from assay.tasks._dyck_pairs import DyckPairs
from assay.tasks._functions import Folder, Found, Function, HubDataset, Interpreter, JsonLines, Source, source_of
from assay.tasks._lexing import KINDS, LANGUAGES, PARTS
from assay.tasks._lines import TextSource
from assay.tasks._max_of_k import InputSet, MaxOfK
from assay.tasks._max_of_k_pairs import MaxOfKPairs
from assay.tasks._overlap import (
    Copies,
    Overlap,
    check_differ,
    copies_among,
    count_copies,
    sequence_hashes,
    warn_of_overlaps,
)
from assay.tasks._pair_files import Pair
from assay.tasks._pairs import Pairs, bound
from assay.tasks._pieces import CLASSES
from assay.tasks._questions import Question, Read
from assay.tasks._task import NO_TOKEN, UNSCORED, Feature, Kind, Objective, Role, Split, Task
from assay.tasks._text import Group, Text
from assay.tasks._tokenizer import SPECIALS, code_vocabulary, token_names, vocabulary_sha256
from assay.tasks.toy_english import GRAMMARS, ToyEnglish
from assay.tasks.toy_english import factory as _toy_english

tasks = Registry("assay.tasks", "task")
"""All tasks by name."""

tasks.register("code", Code.from_data)
tasks.register("dyck", Dyck)
tasks.register("dyck-pairs", DyckPairs.from_parameters)
tasks.register("induction", InductionPairs.from_data)
tasks.register("max-of-k", MaxOfK)
tasks.register("max-of-k-pairs", MaxOfKPairs.from_parameters)
tasks.register("pairs", Pairs.read)
tasks.register("text", Text)
for _name in GRAMMARS:
    tasks.register(f"toy-english/{_name}", _toy_english(_name))

__all__ = [
    "CLASSES",
    "KINDS",
    "LANGUAGES",
    "NO_TOKEN",
    "PARTS",
    "SPECIALS",
    "UNSCORED",
    "Code",
    "Copies",
    "Dyck",
    "DyckPairs",
    "Feature",
    "Folder",
    "Found",
    "Function",
    "Group",
    "HubDataset",
    "InductionPairs",
    "InputSet",
    "Interpreter",
    "JsonLines",
    "Kind",
    "MaxOfK",
    "MaxOfKPairs",
    "Objective",
    "Overlap",
    "Pair",
    "Pairs",
    "Question",
    "Read",
    "Role",
    "Source",
    "Split",
    "Task",
    "Text",
    "TextSource",
    "ToyEnglish",
    "bound",
    "check_differ",
    "code_vocabulary",
    "copies_among",
    "count_copies",
    "sequence_hashes",
    "source_of",
    "tasks",
    "token_names",
    "vocabulary_sha256",
    "warn_of_overlaps",
]
