"""Files are written as a whole, names become names of files by one function, and no path leads out of its folder."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import assay
from assay._files import append, inside, is_leftover, make_folder, refuse_links, remove, safe_name, write_atomically

NAMES = (
    st.text(max_size=300) | st.text("ab._-/\\ \n\0", max_size=12) | st.from_regex(r"a_b-[0-9a-f]{16}", fullmatch=True)
)
ROOT = Path(assay.__file__).parent


@given(NAMES)
def test_a_safe_name_is_one_whatever_the_name(name):
    found = safe_name(name)
    assert re.fullmatch(r"[\w-][\w.-]*", found)
    assert len(found.encode()) <= 120


@given(NAMES, NAMES)
def test_different_names_stay_different(first, second):
    assert (safe_name(first) == safe_name(second)) == (first == second)
    assert safe_name(safe_name(first)) != safe_name(first) or safe_name(first) == first


@pytest.mark.parametrize("name", ["agreement-by-depth-layer0.head1", "Größe", "a", "x" * 120])
def test_a_plain_name_stays_as_it_is(name):
    assert safe_name(name) == name


def test_a_made_up_name_does_not_take_the_place_of_another():
    assert safe_name("a b").startswith("a_b-")
    assert safe_name(safe_name("a b")) != safe_name("a b")


def test_a_path_has_to_lie_inside(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "out").symlink_to(tmp_path)
    (tmp_path / "run" / "figures").symlink_to(tmp_path)
    (tmp_path / "run" / "loop").symlink_to("loop")
    (tmp_path / "run" / "near").symlink_to("here")
    assert inside(tmp_path / "run", "a/b.svg") == tmp_path / "run" / "a" / "b.svg"
    assert inside(tmp_path / "out" / "run", "near") == tmp_path / "out" / "run" / "near"
    for name in ("../x", "/x", ".", "", "a/../../x", "figures/x", "a\0b"):
        with pytest.raises(assay.AssayError, match=r"lies outside|is no path below"):
            inside(tmp_path / "run", name)


def test_links_out_of_a_folder_are_refused_and_others_are_not(tmp_path):
    (tmp_path / "run" / "a").mkdir(parents=True)
    (tmp_path / "run" / "a" / "b").symlink_to(Path("..") / "c")
    refuse_links(tmp_path / "run")
    refuse_links(tmp_path / "missing")
    (tmp_path / "run" / "a" / "d").symlink_to(tmp_path)
    with pytest.raises(assay.AssayError, match="'a/d' lies outside"):
        refuse_links(tmp_path / "run")


def test_a_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "kept").write_text("old")
    (tmp_path / "link").symlink_to("kept")
    write_atomically(tmp_path / "link", lambda path: path.write_text("new"))
    assert (tmp_path / "kept").read_text() == "old"
    assert (tmp_path / "link").read_text() == "new"
    assert not (tmp_path / "link").is_symlink()
    (tmp_path / "other").symlink_to("kept")
    remove(tmp_path / "other")
    remove(tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "link"]


def test_the_temporary_file_is_new_and_has_the_rights_of_any_other(tmp_path):
    seen = []
    for _ in range(2):
        write_atomically(tmp_path / "deep" / "file", lambda path: seen.append(path.name) or path.write_text("x"))
    assert all(map(is_leftover, seen))
    assert len(set(seen)) == 2
    (tmp_path / "plain").touch()
    assert (tmp_path / "deep" / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_file_and_folders_are_synced_before_and_after_the_move(tmp_path, monkeypatch):
    told = []
    sync, replace = os.fsync, os.replace
    names = {}

    def synced(descriptor):
        found = os.fstat(descriptor).st_ino
        told.append(names.get(found, "file"))
        sync(descriptor)

    names[tmp_path.stat().st_ino] = "top"
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda a, b: (told.append("moved"), replace(a, b)))
    make_folder(tmp_path / "new")
    names[(tmp_path / "new").stat().st_ino] = "new"
    write_atomically(tmp_path / "new" / "file", lambda path: path.write_text("x"))
    assert told == ["top", "file", "moved", "new"]


LOCKED = """
import sys
from pathlib import Path
from assay._files import write_atomically
write_atomically(Path(sys.argv[1]) / "slow", lambda path: (print("writing", flush=True), sys.stdin.readline()))
"""


def test_what_a_stopped_process_left_is_removed_and_what_another_writes_is_not(tmp_path):
    (tmp_path / ".0123456789abcdef.assay-part").write_text("left")
    (tmp_path / ".mine.part").write_text("kept")
    with subprocess.Popen(
        [sys.executable, "-c", LOCKED, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "writing\n"
        assert sum(map(is_leftover, os.listdir(tmp_path))) == 1  # the other one swept
        write_atomically(tmp_path / "file", lambda path: path.write_text("x"))
        assert sum(map(is_leftover, os.listdir(tmp_path))) == 1
        other.communicate("\n")
    assert other.returncode == 0
    assert sorted(os.listdir(tmp_path)) == [".mine.part", "file", "slow"]


def test_text_is_added_to_the_end(tmp_path):
    append(tmp_path / "a" / "lines", "one\n")
    append(tmp_path / "a" / "lines", "two\n")
    assert (tmp_path / "a" / "lines").read_text() == "one\ntwo\n"


WRITES = {"write_text", "write_bytes", "mkdir", "unlink", "touch", "makedirs", "rmtree", "symlink_to"}


def direct_writes(tree):
    """Lines at which a module changes the file system, except through a path that is handed to it to fill."""

    def within(node, handed):
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            handed = handed | {argument.arg for argument in node.args.args}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            modes = [part.value for part in node.args if isinstance(part, ast.Constant) and isinstance(part.value, str)]
            opens = node.func.attr == "open" and any(set(mode) & set("wax+") for mode in modes)
            if (node.func.attr in WRITES or opens) and ast.unparse(node.func.value) not in handed:
                yield node.lineno
        for child in ast.iter_child_nodes(node):
            yield from within(child, handed)

    return list(within(tree, frozenset()))


def test_no_other_module_changes_the_file_system():
    found = {}
    for path in ROOT.rglob("*.py"):
        lines = direct_writes(ast.parse(path.read_text(encoding="utf-8")))
        # The fuzz makes its own files, in a folder that it takes away again.
        if lines and path.name != "_files.py" and path.parent.name != "fuzz":
            found[str(path.relative_to(ROOT))] = lines
    assert found == {}
    assert direct_writes(ast.parse("x = lambda path: path.write_text('')\n(a / b).mkdir()\nc.open('wb')")) == [2, 3]
