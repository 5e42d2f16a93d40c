"""Where functions come from: files in CodeSearchNet's layout, the hub, this interpreter, a folder of one's own.

A source is any object with `read()` and `describe()`; all of them give the same functions in the same order every
time, use what can be read, and count what was lost and why.
"""

import hashlib
import os
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from assay._errors import AssayError, unknown_name
from assay._given import checked
from assay.tasks._cutting import UncutError, cut, decode
from assay.tasks._lexing import LANGUAGES, check_language
from assay.tasks._rows import hub_rows, in_words, is_json_lines, json_rows

_TESTS = ("test", "tests", "testing", "idlelib", "lib2to3", "turtledemo")
_COPIES = ("site-packages", "dist-packages", "node_modules", "_vendor", "vendor", "vendored", "third_party", "extern")
_SKIPPED = frozenset((*_TESTS, *_COPIES, "__pycache__"))
_TEXT = ("whole_func_string", "original_string", "func_code_string", "code")
_PARTS = {"train": "train", "valid": "valid", "validation": "valid", "test": "test", "": ""}


@dataclass(frozen=True)
class Function:
    """A function's text; `part` is the source's own division (train, valid, test; empty where it has none)."""

    text: str
    language: str
    repository: str
    part: str = ""


@dataclass(frozen=True)
class Found:
    """What a source gave: functions, and how many lines or files were lost, by reason."""

    functions: tuple[Function, ...]
    files: int
    lost: Mapping[str, int] = field(default_factory=dict)

    def describe(self) -> dict[str, object]:
        """Counts by language, what was lost, and a hash over all functions in order."""
        digest = hashlib.sha256()
        for function in self.functions:
            for value in (function.language, function.repository, function.part, function.text):
                digest.update(value.encode() + b"\0")
        return {
            "files": self.files,
            "functions": dict(sorted(Counter(function.language for function in self.functions).items())),
            "lost": dict(sorted(self.lost.items())),
            "sha256": digest.hexdigest(),
        }


@runtime_checkable
class Source(Protocol):
    """Functions to make a code task of."""

    @property
    def language(self) -> str:
        """The language of the training distribution."""
        ...

    def read(self) -> Found:
        """All functions. Raises AssayError if there are none."""
        ...

    def describe(self) -> dict[str, object]:
        """How the source was called, for the record: no absolute paths."""
        ...


def _nothing_found(what: str, lost: Mapping[str, int], fix: str) -> AssayError:
    losses = f"; lost: {in_words(lost)}" if lost else ""
    return AssayError(f"{what} holds no functions{losses}. {fix}")


def _row_function(row: Mapping[str, Any]) -> Function | str:
    """A row in CodeSearchNet's layout as a function, or the reason why it is none."""
    text = next((row[name] for name in _TEXT if isinstance(row.get(name), str)), None)
    language = row.get("language")
    repository = row.get("repository_name", row.get("repo"))
    if text is None or not isinstance(language, str) or not isinstance(repository, str):
        return "rows without text, language or repository"
    if not text.strip():
        return "empty functions"
    if not _is_unicode(text):
        return "functions that are not Unicode text"
    if language not in LANGUAGES:
        return f"functions in an unknown language ({language})"
    part = _PARTS.get(str(row.get("split_name", row.get("partition", ""))), "")
    return Function(text.replace("\r\n", "\n").replace("\r", "\n").strip(), language, repository, part)


def _is_unicode(text: str) -> bool:
    """Whether UTF-8 can write the text: JSON can hold halves of characters, which it cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _sort_out(rows: Iterable[Function | str], lost: Counter[str]) -> Iterator[Function]:
    for row in rows:
        if isinstance(row, str):
            lost[row] += 1
        else:
            yield row


def _json_lines_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if is_json_lines(path)]


@dataclass(frozen=True)
class JsonLines:
    """Files, or folders of files, in the layout of CodeSearchNet: one JSON object a line.

    In a folder, files are read that end in `.jsonl`, `.ndjson` or `.jsonlines`, or in one of them with `.gz`.

    Of every row its text (`whole_func_string`, `original_string`, `func_code_string` or `code`), `language`,
    `repository_name` (or `repo`) and `split_name` (or `partition`) are read. A line that is not JSON, a row that
    lacks one of the first three, a file that is cut short and one that is not UTF-8 are counted as lost; the rest
    is used.
    """

    paths: tuple[Path, ...]
    language: str = "java"

    def _files(self) -> list[Path]:
        files: list[Path] = []
        for path in self.paths:
            if path.is_dir():
                inside = _json_lines_in(path)
                if not inside:
                    raise AssayError(f"folder {str(path)!r} has no .jsonl or .jsonl.gz file; give one that has.")
                files += sorted(inside)
            elif path.is_file():
                files.append(path)
            else:
                raise AssayError(f"there is no file or folder {str(path)!r}; give .jsonl or .jsonl.gz files.")
        return files

    def read(self) -> Found:
        """All functions of all files, in the order of the files' names. Raises AssayError if there are none."""
        check_language(self.language)
        files = self._files()
        lost: Counter[str] = Counter()
        rows = (row for path in files for row in json_rows(path))
        functions = tuple(_sort_out((row if isinstance(row, str) else _row_function(row) for row in rows), lost))
        if not functions:
            raise _nothing_found(
                ", ".join(repr(str(path)) for path in self.paths),
                lost,
                "Give files in the layout of CodeSearchNet: one JSON object a line with whole_func_string, language "
                "and repository_name.",
            )
        return Found(functions, len(files), lost)

    def describe(self) -> dict[str, object]:
        """Names and hashes of the files."""
        return {
            "kind": "jsonl",
            "language": self.language,
            "files": [
                {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()} for path in self._files()
            ],
        }


@dataclass(frozen=True)
class HubDataset:
    """A dataset of the Hugging Face hub in the layout of `code_search_net`, or a local copy of one.

    `languages` are its configurations; the first is the training distribution. Needs the package `datasets` (the
    extra `assay-interp[datasets]`) and, for a name of the hub, the network on first use.
    """

    name: str = "code_search_net"
    languages: tuple[str, ...] = ("java", "javascript", "php", "go", "ruby", "python")

    @property
    def language(self) -> str:
        """The language of the training distribution."""
        return self.languages[0]

    def read(self) -> Found:
        """All functions: every split of the training language, `test` of the others.

        Raises AssayError if `datasets` is not installed, or the dataset cannot be loaded or has no functions.
        """
        for language in self.languages:
            check_language(language)
        lost: Counter[str] = Counter()
        functions: list[Function] = []
        parts = 0
        for language in self.languages:
            for part in ("train", "validation", "test") if language == self.language else ("test",):
                rows = hub_rows(self.name, language, part)
                parts += 1
                functions += _sort_out(
                    (_row_function({"language": language, "split_name": part, **row}) for row in rows), lost
                )
        if not functions:
            raise _nothing_found(f"the dataset {self.name!r}", lost, "Give one in the layout of code_search_net.")
        return Found(tuple(functions), parts, lost)

    def describe(self) -> dict[str, object]:
        """Name (of a local copy, its folder's) and languages."""
        return {"kind": "hub", "name": Path(self.name).name, "languages": list(self.languages)}


def _hash_order(paths: Iterable[Path], root: Path) -> list[Path]:
    """Paths in an order that depends on nothing but their names below `root`, and mixes folders."""
    return sorted(paths, key=lambda path: hashlib.sha256(path.relative_to(root).as_posix().encode()).digest())


def _cut_files(
    paths: Iterable[Path], language: str, *, limit: int | None, lost: Counter[str], label: Callable[[Path], str]
) -> tuple[list[tuple[str, Path]], int]:
    """Functions of the files, each with its file, until a repository (`label`) has `limit`; and the files read."""
    found: list[tuple[str, Path]] = []
    of_repository: Counter[str] = Counter()
    files = 0
    for path in paths:
        room = None if limit is None else limit - of_repository[label(path)]
        if room is not None and room <= 0:
            continue
        files += 1
        try:
            functions = cut(decode(path.read_bytes(), language), language)[:room]
        except OSError:
            lost[f"unreadable {language} files"] += 1
            continue
        except UncutError as reason:
            lost[f"{language} files: {reason}"] += 1
            continue
        of_repository[label(path)] += len(functions)
        found += [(function, path) for function in functions]
    return found, files


@dataclass(frozen=True)
class Folder:
    """A folder of one's own with source files of one language; its folders of the first level are the repositories.

    Files that lie directly in the folder belong to a repository of the folder's name. Empty, binary and undecodable
    files, files that take too long to lex and (for Python) files that do not parse are counted as lost.
    """

    path: Path
    language: str

    def read(self) -> Found:
        """All functions. Raises AssayError for an unknown language, a folder that is not there or has none."""
        check_language(self.language)
        if not self.path.is_dir():
            raise AssayError(f"there is no folder {str(self.path)!r}; give one with source files in {self.language}.")
        suffixes = LANGUAGES[self.language].suffixes
        paths = sorted(path for path in self.path.rglob("*") if path.suffix in suffixes and path.is_file())
        lost: Counter[str] = Counter()
        found, files = _cut_files(paths, self.language, limit=None, lost=lost, label=self._repository)
        if not found:
            raise _nothing_found(
                f"folder {str(self.path)!r}",
                lost,
                f"Give one with {self.language} files ({', '.join(suffixes)}) that hold functions of three lines or "
                "more, or another language.",
            )
        functions = tuple(Function(text, self.language, self._repository(path)) for text, path in found)
        return Found(functions, files, lost)

    def _repository(self, path: Path) -> str:
        parts = path.relative_to(self.path).parts
        return parts[0] if len(parts) > 1 else self.path.name

    def describe(self) -> dict[str, object]:
        """Name of the folder and language."""
        return {"kind": "folder", "name": self.path.name, "language": self.language}


@dataclass(frozen=True)
class Interpreter:
    """The source with nothing to download: what the running Python brings along.

    The standard library (tests aside) is the training distribution; the installed packages are the other
    repositories; the C, C++ and JavaScript files inside them are the other languages. Of a package at most
    `per_repository` functions of a language are read, from files in an order that mixes its folders. Tests and
    copies of other packages are left out.
    """

    per_repository: int = 100
    languages: tuple[str, ...] = ("cpp", "c", "javascript")
    language = "python"

    def read(self) -> Found:
        """All functions. Raises AssayError if the standard library's source is not there."""
        paths = sysconfig.get_paths()
        library = Path(paths["stdlib"])
        lost: Counter[str] = Counter()
        own = self._sources(library, ("python",))["python"]
        found, files = _cut_files(own, "python", limit=None, lost=lost, label=lambda path: "python")
        if not found:
            raise _nothing_found("the standard library of this Python", lost, "Give another source of functions.")
        functions = [Function(text, "python", "python", "train") for text, _ in found]
        for root in sorted({Path(paths["purelib"]), Path(paths["platlib"])}):

            def package(path: Path, root: Path = root) -> str:
                return path.relative_to(root).parts[0].removesuffix(".py")

            for language, sources in self._sources(root, ("python", *self.languages)).items():
                found, read = _cut_files(sources, language, limit=self.per_repository, lost=lost, label=package)
                files += read
                functions += [Function(text, language, package(path), "test") for text, path in found]
        return Found(tuple(functions), files, lost)

    @staticmethod
    def _sources(root: Path, languages: Sequence[str]) -> dict[str, list[Path]]:
        """Source files below `root` by language, mixed by a hash of their names; headers count as the first's."""
        of_suffix = {suffix: name for name in reversed(languages) for suffix in LANGUAGES[name].suffixes}
        found: dict[str, list[Path]] = {name: [] for name in languages}
        for folder, below, names in os.walk(root):
            below[:] = sorted(set(below) - _SKIPPED)
            for name in names:
                language = of_suffix.get(os.path.splitext(name)[1])
                if language:
                    found[language].append(Path(folder, name))
        return {language: _hash_order(paths, root) for language, paths in found.items()}

    def describe(self) -> dict[str, object]:
        """The version of the interpreter and the limits."""
        return {
            "kind": "interpreter",
            "python": sysconfig.get_python_version(),
            "per_repository": self.per_repository,
            "languages": list(self.languages),
        }


@checked
def source_of(data: str | Path | Source, language: str | None = None) -> Source:
    """A source from what a person writes: `python`, `hub:NAME`, a .jsonl file, a folder of them or of source files.

    A folder with .jsonl files is read as such (`language` names the training language, Java by default); any other
    folder needs `language`. Raises AssayError for anything else.
    """
    if isinstance(data, Source):
        return data
    if language is not None:
        check_language(language)
    text = str(data)
    if text == "python":
        return Interpreter()
    if text.startswith("hub:"):
        others = tuple(name for name in HubDataset().languages if name != language)
        return HubDataset(text.removeprefix("hub:"), (language, *others) if language else HubDataset().languages)
    path = Path(data)
    if path.is_dir() and not _json_lines_in(path):
        if language is None:
            raise AssayError(f"folder {text!r} has no .jsonl files; for a folder of source files give the language.")
        return Folder(path, language)
    if path.exists():
        return JsonLines((path,), language or "java")
    raise unknown_name("source of functions", text, ("python", "hub:code_search_net", "a .jsonl file", "a folder"))
