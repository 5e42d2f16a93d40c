"""What splits are called where a person reads of them."""

from dataclasses import replace

import pytest

from assay import AssayError
from assay.tasks import Dyck, DyckPairs, MaxOfK, MaxOfKPairs, ToyEnglish
from assay.tasks._task import LABEL
from assay.tasks.toy_english import GRAMMARS

DYCK = Dyck(brackets=20, max_depth=4, deeper=6, training_sentences=300, max_brackets=60)
SHIPPED = [DYCK, DyckPairs(DYCK), MaxOfK(), MaxOfKPairs(MaxOfK()), *map(ToyEnglish, GRAMMARS)]


@pytest.mark.parametrize("task", SHIPPED, ids=lambda task: task.name)
def test_every_split_of_a_shipped_task_has_words_of_its_own(task):
    labels = [task.split(name, 1).label for name in task.split_names]
    assert labels[:2] == ["training", "like training"]
    assert len(set(labels)) == len(labels)
    assert all("_" not in label and len(label) <= LABEL for label in labels)


def test_pairs_are_called_as_the_splits_that_they_come_from():
    assert [DyckPairs(DYCK).split(name, 2).label for name in DYCK.split_names] == [
        "training", "like training", "known structures", "new structures, short", "new structures, long",
        "deeper nesting",
    ]  # fmt: skip


@pytest.mark.parametrize("label", ["", "  ", "two\nlines", "x" * (LABEL + 1)], ids=["empty", "blank", "lines", "long"])
def test_a_label_is_a_short_line(label):
    split = MaxOfK().split("iid", 2)
    with pytest.raises(AssayError, match=r"label=.* has to be a line of 1 to 28 characters; or leave it out"):
        replace(split, label=label)
    assert replace(split, label=None).label is None
