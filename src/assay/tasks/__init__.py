"""What the subject is asked: sequences in named splits, with the kind of every prediction.

One file a task. Knows nothing of models.
"""

from assay.tasks._dyck import Dyck
from assay.tasks._max_of_k import InputSet, MaxOfK
from assay.tasks._task import UNSCORED, Feature, Kind, Role, Split, Task

__all__ = ["UNSCORED", "Dyck", "Feature", "InputSet", "Kind", "MaxOfK", "Role", "Split", "Task"]
