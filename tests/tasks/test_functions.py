import gzip
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from assay import AssayError
from assay.tasks import Folder, Function, HubDataset, Interpreter, JsonLines, source_of
from assay.tasks import _functions as module

GOOD = {
    "repository_name": "a/b",
    "whole_func_string": "int f() {\n  return 1;\n}",
    "language": "java",
    "split_name": "train",
}
AS_FUNCTION = Function("int f() {\n  return 1;\n}", "java", "a/b", "train")


def test_rows_of_both_layouts_of_codesearchnet_are_read(tmp_path: Path) -> None:
    original = {"repo": "a/b", "code": "int f() {\r\n  return 1;\r\n}\n", "language": "java", "partition": "train"}
    (tmp_path / "a.jsonl").write_text(json.dumps(GOOD) + "\n\n" + json.dumps(original) + "\n")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as stream:
        stream.write(json.dumps({**GOOD, "split_name": "valid", "language": "go"}))
    found = JsonLines((tmp_path,)).read()
    assert found.functions == (
        AS_FUNCTION,
        AS_FUNCTION,
        Function(GOOD["whole_func_string"], "go", "a/b", "valid"),
    )
    assert found.files == 2
    assert found.lost == {}
    assert [file["name"] for file in JsonLines((tmp_path,)).describe()["files"]] == ["a.jsonl", "b.jsonl.gz"]


def test_what_is_corrupt_is_counted_and_the_rest_is_used(tmp_path: Path) -> None:
    rows = [
        json.dumps(GOOD).encode(),
        b'{"repository_name": ',
        b"[1, 2]",
        b'{"language": "\xff"}',
        json.dumps({**GOOD, "language": "cobol"}).encode(),
        json.dumps({**GOOD, "whole_func_string": " "}).encode(),
        json.dumps({"language": "java"}).encode(),
        json.dumps({**GOOD, "whole_func_string": "half \ud800"}).encode(),
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(rows))
    whole = gzip.compress(json.dumps(GOOD).encode() * 50, mtime=0)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-12])
    (tmp_path / "no.jsonl.gz").write_bytes(b"not gzip")
    (tmp_path / "empty.jsonl").write_bytes(b"")
    found = JsonLines((tmp_path,)).read()
    assert found.functions == (AS_FUNCTION,)
    assert found.lost == {
        "lines that are not JSON": 1,
        "lines that are not JSON objects": 1,
        "lines that are not UTF-8": 1,
        "functions in an unknown language (cobol)": 1,
        "empty functions": 1,
        "functions that are not Unicode text": 1,
        "rows without text, language or repository": 1,
        "files that cannot be read to their end": 2,
    }
    assert found.describe()["lost"] == dict(sorted(found.lost.items()))


def test_nothing_left_names_the_losses_and_the_fix(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{\n{\n")
    with pytest.raises(AssayError, match=r"no functions; lost: 2 lines that are not JSON.*whole_func_string"):
        JsonLines((path,)).read()
    with pytest.raises(AssayError, match="no file or folder"):
        JsonLines((tmp_path / "b.jsonl",)).read()
    (tmp_path / "folder").mkdir()
    with pytest.raises(AssayError, match=r"no \.jsonl"):
        JsonLines((tmp_path / "folder",)).read()


def test_the_hash_of_what_was_found_depends_on_content_and_order(tmp_path: Path) -> None:
    for name, rows in (("a", [GOOD, {**GOOD, "repo": "c"}]), ("b", [GOOD]), ("c", [GOOD])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    hashes = [JsonLines((tmp_path / f"{name}.jsonl",)).read().describe()["sha256"] for name in "abc"]
    assert hashes[0] != hashes[1] == hashes[2]


def test_a_folder_of_ones_own_with_its_losses(tmp_path: Path) -> None:
    (tmp_path / "one" / "deep").mkdir(parents=True)
    (tmp_path / "one" / "deep" / "a.go").write_text("func a() {\n\tb()\n}\n")
    (tmp_path / "own.go").write_text("func c() {\n\td()\n}\n")
    (tmp_path / "empty.go").write_text("")
    (tmp_path / "binary.go").write_bytes(b"func\0")
    (tmp_path / "latin.go").write_bytes("func é() {\n\tb()\n}\n".encode("latin-1"))
    (tmp_path / "other.py").write_text("def f():\n    a\n    b\n")
    found = Folder(tmp_path, "go").read()
    assert found.functions == (
        Function("func a() {\n\tb()\n}", "go", "one"),
        Function("func c() {\n\td()\n}", "go", tmp_path.name),
    )
    assert found.lost == {"go files: empty": 1, "go files: binary": 1, "go files: undecodable": 1}
    assert found.files == 5


def test_a_folder_without_functions_or_of_an_unknown_language(tmp_path: Path) -> None:
    (tmp_path / "a.go").write_bytes(b"\0")
    with pytest.raises(AssayError, match=r"no functions; lost: 1 go files: binary\. Give one with go files"):
        Folder(tmp_path, "go").read()
    with pytest.raises(AssayError, match="unknown language 'golang'"):
        Folder(tmp_path, "golang").read()
    with pytest.raises(AssayError, match="no folder"):
        Folder(tmp_path / "none", "go").read()


def test_the_interpreter_brings_a_library_other_repositories_and_languages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, packages = tmp_path / "lib", tmp_path / "lib" / "site-packages"
    python = "def {}(a):\n    b = a\n    return b\n"
    files = {
        library / "a.py": python.format("a"),
        library / "test" / "b.py": python.format("b"),
        packages / "one" / "c.py": python.format("c") + python.format("d") + python.format("e"),
        packages / "one" / "_vendor" / "x.py": python.format("x"),
        packages / "two.py": python.format("f"),
        packages / "two-1.0.dist-info" / "METADATA": "",
        packages / "one" / "inc" / "c.h": "int g(int a) {\n  return a;\n}",
        packages / "one" / "src.c": "int h(int a) {\n  return a;\n}",
        packages / "one" / "k.js": "function k(a) {\n  return a;\n}",
        packages / "one" / "bad.py": "def f(:",
    }
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(
        module.sysconfig,
        "get_paths",
        lambda: {"stdlib": str(library), "purelib": str(packages), "platlib": str(packages)},
    )
    found = Interpreter(per_repository=2).read()
    named = {(f.text.split("(")[0].split()[-1], f.language, f.repository, f.part) for f in found.functions}
    assert named == {
        ("a", "python", "python", "train"),
        ("c", "python", "one", "test"),
        ("d", "python", "one", "test"),
        ("f", "python", "two", "test"),
        ("g", "cpp", "one", "test"),
        ("h", "c", "one", "test"),
        ("k", "javascript", "one", "test"),
    }
    assert found.lost == {"python files: does not parse": 1}


def test_an_interpreter_without_source_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = dict.fromkeys(("stdlib", "purelib", "platlib"), str(tmp_path))
    monkeypatch.setattr(module.sysconfig, "get_paths", lambda: paths)
    with pytest.raises(AssayError, match="standard library of this Python holds no functions"):
        Interpreter().read()


def test_a_hub_dataset_without_datasets_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(AssayError, match=r"assay-interp\[datasets\]"):
        HubDataset().read()


def test_a_local_copy_of_the_hub_dataset_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets", reason="the extra assay-interp[datasets] is not installed")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    pandas = pytest.importorskip("pandas")
    rows = {"repository_name": ["a/b"], "whole_func_string": [GOOD["whole_func_string"]]}
    lines = ["---", "configs:"]
    for language, parts in (("java", ("train", "validation", "test")), ("go", ("test",))):
        lines += [f"- config_name: {language}", "  data_files:"]
        for part in parts:
            path = tmp_path / "data" / language / f"{part}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pandas.DataFrame({**rows, "language": [language]}).to_parquet(path)
            lines += [f"  - split: {part}", f"    path: {language}/{part}-*.parquet"]
    (tmp_path / "data" / "README.md").write_text("\n".join([*lines, "---", ""]))
    source = HubDataset(str(tmp_path / "data"), ("java", "go"))
    found = source.read()
    assert [(f.language, f.part) for f in found.functions] == [
        ("java", "train"),
        ("java", "valid"),
        ("java", "test"),
        ("go", "test"),
    ]
    assert source.describe()["name"] == "data"
    with pytest.raises(AssayError, match="could not load split 'train' of 'ruby'"):
        HubDataset(str(tmp_path / "data"), ("ruby",)).read()


def test_a_hub_dataset_is_asked_for_every_part_of_the_training_language(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, language: str, split: str) -> list[dict[str, str]]:
        asked.append((name, language, split))
        return [{"repository_name": "a", "func_code_string": "x", "language": language}]

    stand_in = ModuleType("datasets")
    stand_in.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    found = HubDataset("some/name", ("go", "php")).read()
    assert asked == [("some/name", "go", part) for part in ("train", "validation", "test")] + [
        ("some/name", "php", "test")
    ]
    assert [f.part for f in found.functions] == ["train", "valid", "test", "test"]


def test_source_of_reads_what_a_person_writes(tmp_path: Path) -> None:
    assert source_of("python") == Interpreter()
    assert source_of("hub:code_search_net", "go") == HubDataset(
        "code_search_net", ("go", "java", "javascript", "php", "ruby", "python")
    )
    with pytest.raises(AssayError, match="give the language"):
        source_of(tmp_path)
    assert source_of(tmp_path, "go") == Folder(tmp_path, "go")
    (tmp_path / "a.jsonl").write_text(json.dumps(GOOD))
    assert source_of(tmp_path) == JsonLines((tmp_path,), "java")
    assert source_of(tmp_path / "a.jsonl", "php").language == "php"
    assert source_of(Interpreter()) == Interpreter()
    with pytest.raises(AssayError, match="unknown source of functions 'pyton'; did you mean 'python'"):
        source_of("pyton")
    with pytest.raises(AssayError, match="unknown language"):
        source_of(tmp_path, "golang")
