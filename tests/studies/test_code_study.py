import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from assay import AssayError
from assay.studies.code import measure, train
from assay.subjects import Progress, Recipe, Subject, code_model, load
from assay.tasks import Code, Found, Function, JsonLines, code_vocabulary

RECIPE = Recipe(steps=6, learning_rate=1e-3, warmup_steps=2, checkpoint_every=2)


@dataclass(frozen=True)
class Given:
    """Forty short functions in four repositories."""

    language: str = "java"

    def read(self) -> Found:
        texts = [f"int f{i}() {{\n  return {'((((' * (i % 5 == 0)}{i}{'))))' * (i % 5 == 0)};\n}}" for i in range(40)]
        return Found(tuple(Function(text, "java", f"r{i % 4}") for i, text in enumerate(texts)), 1)

    def describe(self) -> dict[str, object]:
        return {"kind": "given"}


DATA = Path(os.environ.get("ASSAY_CODEFUNCTIONS", Path(__file__).parents[3] / "shared" / "data" / "codefunctions"))
"""The development data: `../shared/data/codefunctions` beside the repository, or where the variable says."""


class Interrupted(Exception):  # noqa: N818
    """Stands for the end of a machine."""


def test_an_interrupted_training_ends_with_the_same_file(tmp_path: Path) -> None:
    task = Code(Given(), context=32)

    def stop(progress: Progress) -> None:
        if progress.step == 5:
            raise Interrupted

    whole = train(tmp_path / "whole", task=task, recipe=RECIPE)
    with pytest.raises(Interrupted):
        train(tmp_path / "resumed", task=task, recipe=RECIPE, progress=stop)
    steps = []
    resumed = train(tmp_path / "resumed", task=task, recipe=RECIPE, progress=lambda p: steps.append(p.step))
    assert steps == [5, 6]
    assert resumed.weights_sha256 == whole.weights_sha256
    assert resumed.record["measured"] == whole.record["measured"] == measure(whole, task)
    assert not list(tmp_path.rglob("checkpoint*"))
    assert whole.record["tokens"] == resumed.record["tokens"]
    assert whole.record["stored"] == "float16"
    assert whole.model.dtype == torch.float32
    with pytest.raises(AssayError, match="holds a trained model already"):
        train(tmp_path / "whole", task=task, recipe=RECIPE)


def test_a_checkpoint_of_another_task_is_not_continued(tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.step == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(tmp_path, task=Code(Given(), context=32), recipe=RECIPE, progress=stop)
    steps = []
    train(tmp_path, task=Code(Given(), context=24), recipe=RECIPE, progress=lambda p: steps.append(p.step))
    assert steps == [1, 2, 3, 4, 5, 6]


def test_measuring_a_model_that_knows_nothing_gives_the_bits_of_its_vocabulary() -> None:
    task = Code(Given(), context=32)
    model = code_model(task, 0)
    torch.nn.init.zeros_(model.transformer.wte.weight)
    measured = measure(Subject(model.eval(), task.tokenizer(), "null"), task, functions=5)
    for name, of_split in measured.items():
        split = task.split(name, 5)
        assert of_split["bits_per_character"] == pytest.approx(np.log2(len(task.vocabulary)), abs=1e-4)
        assert of_split["predictions"] == (split.lengths - 1).sum()
        assert of_split["accuracy"] == 0
        assert sum(kind["share"] for kind in of_split["kinds"].values()) == pytest.approx(1, abs=1e-4)
        assert of_split["kinds"]["keyword"]["accuracy"] == 0


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the development data (ASSAY_CODEFUNCTIONS) are not on this machine")
def test_the_shipped_java_model_does_what_its_record_says() -> None:
    subject = load("code-java")
    task = Code(JsonLines((DATA,)), vocabulary_from=code_vocabulary(subject.tokenizer))
    assert task.describe()["splits"] == subject.record["task"]["splits"]
    for name, of_split in measure(subject, task).items():
        recorded = subject.record["measured"][name]
        assert of_split["accuracy"] == pytest.approx(recorded["accuracy"], abs=5e-4)
        assert of_split["bits_per_character"] == pytest.approx(recorded["bits_per_character"], abs=1e-3)
