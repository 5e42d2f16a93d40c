"""What the subject is asked: sequences in named splits, with the kind of every prediction.

One file a task. Knows nothing of models.
"""

from assay._registry import Registry
from assay.tasks._dyck import Dyck
from assay.tasks._max_of_k import InputSet, MaxOfK
from assay.tasks._task import UNSCORED, Feature, Kind, Role, Split, Task
from assay.tasks._text import Text

tasks = Registry("assay.tasks", "task")
"""All tasks by name."""

tasks.register("dyck", Dyck)
tasks.register("max-of-k", MaxOfK)
tasks.register("text", Text)

__all__ = ["UNSCORED", "Dyck", "Feature", "InputSet", "Kind", "MaxOfK", "Role", "Split", "Task", "Text", "tasks"]
