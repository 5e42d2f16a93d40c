"""Loading subjects: shipped reference models, local folders, names on the Hugging Face hub."""

import copy
import difflib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from assay._errors import AssayError, unknown_name
from assay.subjects._subject import Subject
from assay.subjects._train import write_atomically

_CHECKPOINTS = files("assay.subjects") / "checkpoints"
_RECORD = "training.json"


def shipped() -> dict[str, tuple[int, ...]]:
    """The reference models that come with the package: name and seeds."""
    if not _CHECKPOINTS.is_dir():
        return {}
    found = {}
    for folder in sorted(_CHECKPOINTS.iterdir(), key=lambda path: path.name):
        seeds = sorted(int(child.name.removeprefix("seed-")) for child in folder.iterdir() if child.is_dir())
        if seeds:
            found[folder.name] = tuple(seeds)
    return found


def check_seed(name: str, seed: int) -> None:
    """Raise AssayError unless the reference model is shipped with this training seed."""
    seeds = shipped()[name]
    if seed not in seeds:
        raise AssayError(f"{name!r} is shipped with seeds {', '.join(map(str, seeds))}; not with {seed}.")


def resolve_device(device: str) -> str:
    """`"auto"` is CUDA or MPS where there is one, else the CPU; anything else must name a usable device."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise AssayError(
            f"device {device!r} cannot be used ({reason}); use 'cpu', 'auto' or a device that torch sees."
        ) from None
    return device


def load(name: str | Path, *, seed: int = 0, device: str = "cpu", dtype: torch.dtype | None = None) -> Subject:
    """Load a subject.

    `name` is a shipped reference model (`"dyck-20-10"`, trained from `seed`), a folder made by `save_pretrained`, or
    a name on the Hugging Face hub. Weights are read from safetensors only, and no remote code is run. `device` may be
    `"auto"`; `dtype` defaults to that of the training record (the shipped models are computed with in float32, also
    where they are stored in float16), else to that of the checkpoint.

    Raises AssayError if there is no such model, seed or device, or if it cannot be read as a causal language model.
    """
    device = resolve_device(device)
    known = shipped()
    if str(name) in known:
        check_seed(str(name), seed)
        with as_file(_CHECKPOINTS / str(name) / f"seed-{seed}") as folder:
            return _read(folder, str(name), device, dtype)
    path = Path(name)
    if path.is_dir():
        return _read(path, path.name, device, dtype)
    if difflib.get_close_matches(str(name), known, cutoff=0.7):
        raise unknown_name("reference model", str(name), known)
    if path.is_absolute() or str(name).startswith("."):
        raise AssayError(f"there is no folder {str(name)!r}; give a folder made by save_pretrained, or a model's name.")
    return _read(str(name), str(name), device, dtype)


@contextmanager
def _quiet(quiet: bool) -> Iterator[None]:
    """Without transformers' progress bars, which have nothing to say about local files."""
    shown = transformers_logging.is_progress_bar_enabled()
    if quiet:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _read(source: str | Path, name: str, device: str, dtype: torch.dtype | None) -> Subject:
    record: Mapping[str, Any] = {}
    if isinstance(source, Path) and (source / _RECORD).exists():
        try:
            record = json.loads((source / _RECORD).read_text(encoding="utf-8"))
        except ValueError as error:
            raise AssayError(f"{source / _RECORD} is damaged ({error}); remove it or restore it.") from None
    try:
        with _quiet(isinstance(source, Path)):
            found: Any = AutoModelForCausalLM.from_pretrained(
                source,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=dtype or record.get("dtype") or "auto",
                output_loading_info=True,
            )
            model: PreTrainedModel = found[0]
            missing: set[str] = set(found[1]["missing_keys"])
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if isinstance(source, str):
            raise AssayError(
                f"could not load {source!r} from the Hugging Face hub ({reason}); give a name of the hub, a folder, "
                f"or a shipped model: {', '.join(shipped())}."
            ) from None
        raise AssayError(
            f"could not read {name!r} as a causal language model ({reason}); the folder must hold config.json and "
            "model.safetensors, as save_pretrained writes them."
        ) from None
    if missing:
        raise AssayError(
            f"the checkpoint of {name!r} lacks {len(missing)} tensors ({min(missing)}), which would be random; "
            "it cannot be judged."
        )
    broken = [key for key, value in model.state_dict().items() if not torch.isfinite(value).all()]
    if broken:
        raise AssayError(f"{name!r} has weights that are not finite ({broken[0]}); it cannot be judged.")
    torch.nn.Module.to(model, device)
    return Subject(model.eval(), _tokenizer(source), name, seed=record.get("seed"), record=record)


def _tokenizer(source: str | Path) -> PreTrainedTokenizerBase | None:
    """The model's tokenizer; None if it has none (transformers makes up an empty one then)."""
    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        return None
    return found if set(found.get_vocab()) - set(found.all_special_tokens) else None


def save(subject: Subject, folder: Path, *, stored: torch.dtype | None = None) -> None:
    """Write a subject as a folder that `load` reads: config, safetensors, tokenizer, training record.

    `stored` is the dtype of the weights in the file (default: the subject's own); what is rounded away is lost.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = subject.model
    if stored is not None:
        model = copy.deepcopy(model)
        torch.nn.Module.to(model, stored)
    with _quiet(True):
        model.save_pretrained(folder)
    if subject.tokenizer is not None:
        subject.tokenizer.save_pretrained(folder)
    text = json.dumps(subject.record, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / _RECORD, lambda path: path.write_text(text, encoding="utf-8"))
