"""Files that are small and become large: what reading each takes, in a process of its own.

    python benchmarks/hostile_files.py

prints a table; with PYTHONPATH at another version of Assay's `src`, that of the other version.
"""

import argparse
import gzip
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from assay import AssayError
from assay.proofs import Certificate
from assay.subjects import import_max_of_k
from assay.tasks import Text
from assay.testing.fuzz import _samples
from machine import machine

MILLION = 10**6


def line(path: Path) -> None:
    """A line of 300 MB in 0.3 MB."""
    with gzip.open(path, "wb") as file:
        file.write(b'{"text": "')
        for _ in range(300):
            file.write(b"a" * MILLION)
        file.write(b'"}\n')


def arrays(path: Path) -> None:
    """400 MB of zeros in 0.4 MB."""
    np.savez_compressed(path, W_E=np.zeros(100 * MILLION, np.float32))


def blanks(path: Path) -> None:
    """300 MB of blanks."""
    with path.open("wb") as file:
        for _ in range(300):
            file.write(b" " * MILLION)


def columns(path: Path) -> None:
    """Texts beside vectors of 768 numbers."""
    rows = 20_000
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.random.default_rng(0).random(rows * 768, np.float32)), 768)
    table = pa.table({"text": ["a b c d"] * rows, "vector": vectors})
    pyarrow.parquet.write_table(table, path, row_group_size=2_000)


def text(path: Path) -> None:
    """Read as the only split of a task."""
    Text(_samples.tokenizer(), train=None, iid=path, shifts={}).split("iid", 10**9)


def rows(path: Path) -> None:
    """Read the texts, without a tokenizer."""
    task = Text(_samples.tokenizer(), train=None, iid=path, shifts={})
    assert len(task.whole("iid")) == 20_000 * 8 - 1


CASES = {
    "line.jsonl.gz": (line, text),
    "zeros.npz": (arrays, import_max_of_k),
    "blanks.json": (blanks, Certificate.load),
    "vectors.parquet": (columns, rows),
}


def read(name: str, path: Path) -> None:
    """Read a file and print seconds, MB and what came of it."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    try:
        CASES[name][1](path)
        found = "read"
    except AssayError as error:
        found = f"refused: {str(error).replace(str(path.parent) + '/', '')}"
    seconds = time.perf_counter() - started
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{seconds:.1f} | {megabytes:,.0f} | {found}")


def main() -> None:
    """Make every file and read it in another process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--read", nargs=2, metavar=("NAME", "FILE"), help="read one file (for this program itself)")
    call = parser.parse_args()
    if call.read:
        read(call.read[0], Path(call.read[1]))
        return
    print("| file | MB on the disk | seconds | MB more | |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, (make, _) in CASES.items():
            path = Path(folder, name)
            make(path)
            told = subprocess.run(
                [sys.executable, __file__, "--read", name, str(path)], check=True, capture_output=True, text=True
            )
            print(f"| {name} | {path.stat().st_size / MILLION:.1f} | {told.stdout.strip()} |", flush=True)
            path.unlink()
    print(f"\n{machine()}")


if __name__ == "__main__":
    main()
