"""Text that comes with every Python, for trying Assay on one's own model without a download.

    python examples/python_text.py text/

writes, a sequence a line: `fit.txt` and `iid.txt`, the first paragraphs of the docstrings of the standard library (by a
hash of the text, half each); `packages.txt`, those of numpy, scipy and scikit-learn; `code.txt`, the first lines of the
functions of the standard library. White space is made single spaces; texts of fewer than five words and texts that
occur a second time are left out. All are in the order of a hash, so that the first thousand are a sample.
"""

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

SKIPPED = {"test", "tests", "testing", "site-packages", "dist-packages", "idlelib", "lib2to3", "_vendor", "vendored"}
DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
PACKAGES = ("numpy", "scipy", "sklearn")
PER_FILE = 20
CODE_LINES = 8


def files(root: Path) -> Iterator[Path]:
    """The modules below a folder, tests and copies of other packages aside."""
    for path in sorted(root.rglob("*.py")):
        if not SKIPPED & set(path.relative_to(root).parts):
            yield path


def trees(root: Path) -> Iterator[tuple[str, ast.Module]]:
    """Source and syntax tree of every module that can be read."""
    for path in files(root):
        try:
            source = path.read_text(encoding="utf-8")
            yield source, ast.parse(source)
        except (OSError, ValueError, SyntaxError):
            continue


def docstrings(root: Path) -> Iterator[str]:
    """The first paragraphs of docstrings, at most PER_FILE of a file."""
    for _, tree in trees(root):
        found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, DEFINITIONS)]
        yield from [text.split("\n\n")[0] for text in found if text][:PER_FILE]


def functions(root: Path) -> Iterator[str]:
    """The first lines of functions, without their docstrings, at most PER_FILE of a file."""
    for source, tree in trees(root):
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)][:PER_FILE]
        for node in nodes:
            lines = source.splitlines()[node.lineno - 1 : node.end_lineno]
            if ast.get_docstring(node) is not None:
                first = node.body[0]
                del lines[first.lineno - node.lineno : (first.end_lineno or first.lineno) - node.lineno + 1]
            yield " ".join(lines[:CODE_LINES])


def key(text: str) -> bytes:
    """What decides the order, and which half a text is in."""
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()


def tidy(texts: Iterable[str], without: Iterable[str] = ()) -> list[str]:
    """Texts in one line each, every one once, in the order of their hashes."""
    found = {" ".join(text.split()) for text in texts}.difference(without)
    return sorted((text for text in found if len(text.split()) >= 5 and text.isprintable()), key=key)


def main(folder: Path) -> None:
    """Write the four files."""
    paths = sysconfig.get_paths()
    library, packages = Path(paths["stdlib"]), Path(paths["purelib"])
    prose = tidy(docstrings(library))
    splits = {
        "fit": [text for text in prose if key(text)[-1] % 2],
        "iid": [text for text in prose if not key(text)[-1] % 2],
        "packages": tidy(chain.from_iterable(docstrings(packages / name) for name in PACKAGES), prose),
        "code": tidy(functions(library)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, texts in splits.items():
        (folder / f"{name}.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
        print(f"{name:9} {len(texts):6} sequences")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "text"))
