import os
from collections import Counter
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from assay import AssayError
from assay.tasks import KINDS, PARTS, SPECIALS, UNSCORED, Code, Folder, Found, Function, JsonLines, Task, tasks
from assay.tasks._lexing import characters, outline

DATA = Path(os.environ.get("ASSAY_CODEFUNCTIONS", Path(__file__).parents[3] / "shared" / "data" / "codefunctions"))
"""The development data: `../shared/data/codefunctions` beside the repository, or where the variable says."""


@dataclass(frozen=True)
class Given:
    """A source of the functions that it is given."""

    functions: tuple[Function, ...]
    language: str = "java"

    def read(self) -> Found:
        return Found(self.functions, 1, {"lost on purpose": 1})

    def describe(self) -> dict[str, object]:
        return {"kind": "given"}


def java(name: str, depth: int, extra: str = "") -> str:
    return f"int {name}() {{\n  return {'(' * (depth - 1)}{name}{')' * (depth - 1)};{extra}\n}}"


def functions(parts: bool, repositories: int = 6, each: int = 12) -> tuple[Function, ...]:
    made = []
    for repository in range(repositories):
        for index in range(each):
            part = "" if not parts else "test" if repository == 0 else "valid" if index % 6 == 5 else "train"
            text = java(f"f{repository}x{index}", 5 if index % 4 == 3 else 2)
            made.append(Function(text, "java", f"r{repository}", part))
    made += [Function(f"func g{i}() {{\n\treturn {i}\n}}", "go", "other", "test") for i in range(3)]
    made += [Function("func h() {\n\treturn ((((1))))\n}", "go", "other", "test")]
    return tuple(made)


def keys(task: Code, name: str) -> set[bytes]:
    return {outline(f.text, f.language, task.context).key for f in task.functions(name)}


def repositories(task: Code, name: str) -> set[str]:
    return {f.repository for f in task.functions(name)}


@pytest.mark.parametrize("parts", [True, False])
def test_splits_are_disjoint_where_they_say_so(parts: bool) -> None:
    task = Code(Given(functions(parts)))
    assert isinstance(task, Task)
    assert task.split_names == ("train", "iid", "unseen_depth", "unseen_repository", "go")
    labels = [task.split(name, 1).label for name in task.split_names]
    assert labels == ["training", "like training", "deeper nesting", "new repositories", "Go"]
    for one, other in combinations(task.split_names, 2):
        assert not keys(task, one) & keys(task, other)
    assert not repositories(task, "train") & repositories(task, "unseen_repository")
    assert repositories(task, "iid") <= {f.repository for f in functions(parts)} - repositories(
        task, "unseen_repository"
    )
    for name in task.split_names:
        depths = [outline(f.text, f.language, 255).depth for f in task.functions(name)]
        assert all(depth > 3 for depth in depths) if name == "unseen_depth" else all(depth <= 3 for depth in depths)


def test_the_parts_of_the_source_are_kept() -> None:
    task = Code(Given(functions(parts=True)))
    assert {f.part for f in task.functions("train")} == {"train"}
    assert {f.part for f in task.functions("iid")} == {"valid"}
    assert repositories(task, "unseen_repository") == {"r0"}


def test_a_source_with_held_out_parts_only_is_divided_all_the_same() -> None:
    task = Code(Given(tuple(replace(f, part="test") for f in functions(parts=False))))
    assert task.split_names == ("train", "iid", "unseen_depth", "unseen_repository", "go")


def test_a_single_repository_is_not_held_out() -> None:
    task = Code(Given(functions(parts=False, repositories=1, each=60)))
    assert task.split_names == ("train", "iid", "unseen_depth", "go")
    assert 1 <= len(task.functions("iid")) < len(task.functions("train")) / 3


def test_duplicates_are_dropped_from_the_evaluation_splits_and_counted() -> None:
    given = functions(parts=True)
    trained = next(f for f in given if f.part == "train")
    copies = (
        Function(trained.text.replace("{", "{ // copied"), "java", "r0", "test"),
        Function(trained.text.upper(), "java", "r1", "valid"),
    )
    plain, copied = Code(Given(given)), Code(Given((*copies, *given)))
    assert copied.describe()["left_out"] == {**plain.describe()["left_out"], "duplicates": 2}
    assert copied.describe()["splits"] == plain.describe()["splits"]


def test_the_record_counts_everything() -> None:
    given = functions(parts=True)
    record = Code(Given(given)).describe()
    assert record["found"]["lost"] == {"lost on purpose": 1}
    assert record["left_out"] == {"go: too deep": 1, "unseen_repository: too deep": 3}
    kept = sum(split["functions"] for split in record["splits"].values())
    assert kept + sum(record["left_out"].values()) == len(given)


def test_a_function_that_is_deep_only_past_the_context_is_in_no_split() -> None:
    late = Function(java("late", 1, "x();" * 20 + "((((y))))"), "java", "r1", "train")
    task = Code(Given((*functions(parts=True), late)), context=64)
    assert task.describe()["left_out"]["train: too deep, but only past the context"] == 1
    assert all(late not in task.functions(name) for name in task.split_names)


def test_splits_do_not_depend_on_the_order_of_the_source_nor_on_how_many_are_asked_for() -> None:
    given = functions(parts=False)
    one, other = Code(Given(given)), Code(Given(given[::-1]))
    assert one.describe()["splits"] == other.describe()["splits"]
    assert (one.split("iid", 2).tokens == one.split("iid", 5).first(2).tokens).all()
    assert Code(Given(given), seed=1).functions("train") != one.functions("train")
    assert set(Code(Given(given), seed=1).functions("train")) == set(one.functions("train"))


def test_a_sequence_predicts_the_next_character() -> None:
    task = Code(Given(functions(parts=True)))
    split = task.split("go", 1)
    text = task.functions("go")[0].text
    length = int(split.lengths[0])
    assert task.decode(split.tokens[0, :length]) == f"<start>{text}<end>".translate(
        {ord(c): "<unknown>" for c in set(text) - set(task.vocabulary)}
    )
    known = characters(text, "go")
    assert split.kinds[0, : length - 2].tolist() == known.kind.tolist()
    assert split.features["depth"][0, : length - 2].tolist() == known.depth.tolist()
    assert KINDS[split.kinds[0, length - 2]] == "other"
    assert PARTS[split.features["part"][0, length - 2]] == "end"
    assert (split.kinds[0, length - 1 :] == UNSCORED).all()
    assert split.kinds.shape == split.tokens.shape == split.features["place"].shape


def test_a_function_longer_than_the_context_has_no_end_but_fills_it() -> None:
    task = Code(Given(functions(parts=True)), context=16)
    split = task.split("train", 10_000)
    assert len(split) == len(task.functions("train"))
    assert (split.lengths == 16).all()
    assert not (split.tokens == task.end_id).any()
    assert ((split.kinds != UNSCORED).sum(axis=1) == 15).all()


@pytest.mark.parametrize(("over", "ends"), [(-1, True), (0, True), (1, False)])
def test_the_end_is_predicted_only_where_it_fits(over: int, ends: bool) -> None:
    task = Code(Given(functions(parts=True)), context=32)
    split = task.read_function("x" * (30 + over), "java")
    assert (split.tokens[0, split.lengths[0] - 1] == task.end_id) == ends
    assert split.lengths[0] <= 32


def test_every_kind_and_bin_is_declared() -> None:
    task = Code(Given(functions(parts=True)))
    split = task.split("train", 100)
    assert [kind.name for kind in task.kinds] == list(KINDS)
    assert set(split.features) == {feature.name for feature in task.features}
    assert {feature.name: feature.edges for feature in task.features}["part"] == tuple(range(len(PARTS)))
    assert split.kinds.max() < len(KINDS)


def test_rare_characters_are_unknown_and_a_models_vocabulary_is_kept() -> None:
    given = functions(parts=True)
    counts = Counter("".join(f.text for f in Code(Given(given)).functions("train")))
    task = Code(Given(given))
    assert task.vocabulary[:4] == SPECIALS
    assert set(task.vocabulary[4:]) == {c for c, count in counts.items() if count >= 10}
    fixed = Code(Given(given), vocabulary_from=(*SPECIALS, "i", "n", "t"))
    assert fixed.decode(fixed.read_function("int é", "java").tokens[0]) == "<start>int<unknown><unknown><end>"
    tokens, lengths = fixed.training
    assert tokens.max() < len(fixed.vocabulary)
    assert (tokens[np.arange(len(tokens)), lengths - 1] == fixed.end_id).all()


@pytest.mark.parametrize("vocabulary", [("a", "b"), (*SPECIALS, "ab"), (*SPECIALS, "a", "a"), SPECIALS[:3]], ids=len)
def test_a_vocabulary_that_is_none_is_refused(vocabulary: tuple[str, ...]) -> None:
    with pytest.raises(AssayError, match="vocabulary_from"):
        Code(Given(()), vocabulary_from=vocabulary)


def test_the_task_is_built_from_text(tmp_path: Path) -> None:
    task = tasks.build(f"code:data={tmp_path},language=go,max_depth=2")
    assert task == Code(Folder(tmp_path, "go"), max_depth=2)
    assert tasks.build("code") == Code()


def test_wrong_calls_are_refused_with_the_fix() -> None:
    task = Code(Given(functions(parts=True)))
    with pytest.raises(AssayError, match=r"context=4\): must be at least 8"):
        Code(context=4)
    with pytest.raises(AssayError, match="unknown split 'goo'; did you mean 'go'"):
        task.split("goo", 1)
    with pytest.raises(AssayError, match="sequences=0"):
        task.split("iid", 0)
    with pytest.raises(AssayError, match="function is empty"):
        task.read_function(" ", "java")
    with pytest.raises(AssayError, match="unknown language 'jawa'"):
        task.read_function("x", "jawa")
    with pytest.raises(AssayError, match=r"no functions in its training language 'php'; it has go, java"):
        Code(Given(functions(parts=True), language="php")).split_names  # noqa: B018
    with pytest.raises(AssayError, match="too few functions"):
        Code(Given(functions(parts=True)[3:4])).split_names  # noqa: B018


@pytest.mark.skipif(not DATA.is_dir(), reason="the development data (ASSAY_CODEFUNCTIONS) are not on this machine")
def test_real_functions_keep_the_promises_of_their_splits() -> None:
    task = Code(JsonLines(tuple(DATA / f"{name}.jsonl.gz" for name in ("java_unseen_repo", "ruby"))))
    assert task.split_names == ("train", "iid", "unseen_depth", "unseen_repository", "ruby")
    of_split = {name: keys(task, name) for name in task.split_names}
    for one, other in combinations(task.split_names, 2):
        assert not of_split[one] & of_split[other]
    assert not repositories(task, "train") & repositories(task, "unseen_repository")
    split = task.split("ruby", 200)
    shares = np.bincount(split.kinds[split.kinds != UNSCORED], minlength=len(KINDS)) / (split.kinds != UNSCORED).sum()
    assert (shares > 0.01).all()
    unknown = (split.tokens == task.unknown_id).sum() / split.lengths.sum()
    assert unknown < 0.005
