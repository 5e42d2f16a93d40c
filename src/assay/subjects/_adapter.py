"""Adapters of peft: put on a copy of their base, checked tensor by tensor, and merged into a plain model."""

import copy
import importlib.util
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from assay._errors import AssayError
from assay._files import read_json
from assay.subjects._reading import quiet, reason, refuse_lack_of_memory
from assay.subjects._sentences import file_of
from assay.subjects._subject import Subject

SETTINGS = "adapter_config.json"


def is_adapter(source: str | Path) -> bool:
    """Whether a folder, or a model on the hub, is an adapter."""
    return file_of(source, SETTINGS) is not None


def require_peft(name: str) -> None:
    """Raise AssayError unless peft is installed."""
    if importlib.util.find_spec("peft") is None:
        raise AssayError(f"{name!r} is an adapter, and needs the package peft: pip install 'assay-interp[peft]'.")


def named_base(source: str | Path, name: str) -> str | Path:
    """The base that an adapter names: a folder, seen from here or from the adapter's, or a name on the hub.

    Raises AssayError where it names none, or another adapter.
    """
    named = _settings(source, name).get("base_model_name_or_path")
    if not named or not isinstance(named, str):
        raise AssayError(f"{name!r} is an adapter that does not name its base ({SETTINGS}); give base=.")
    beside = (Path(named), source / named) if isinstance(source, Path) else (Path(named),)
    found = next((path for path in beside if path.is_dir()), str(named))
    if is_adapter(found):
        raise AssayError(
            f"{name!r} is an adapter on {str(named)!r}, which is an adapter itself; load that and give it as base=."
        )
    return found


def merge(source: str | Path, name: str, base: Subject, *, dtype: torch.dtype | None, allow_pickle: bool) -> Subject:
    """The base with an adapter in its weights, as a plain model; `base` is left as it is.

    Raises AssayError if the adapter does not fit the base tensor by tensor, if its kind cannot be merged, or if merging
    changes what it computes by more than rounding.
    """
    from peft import PeftConfig, PeftModel  # noqa: PLC0415

    settings = _settings(source, name)
    if not allow_pickle and file_of(source, "adapter_model.safetensors") is None:
        raise AssayError(
            f"{name!r} has no adapter_model.safetensors, and pickles can run code when they are read. Write it again "
            "as safetensors (save_pretrained does), or give allow_pickle=True (--allow-pickle), which reads tensors "
            "and nothing else."
        )
    if "quantization" in base.record:
        raise AssayError(
            f"the base {base.name!r} of {name!r} is quantized, and merging an adapter would round its weights again; "
            "give base=, the same model in full precision."
        )
    if settings.get("megatron_config"):
        raise AssayError(f"{name!r} is an adapter for Megatron's layers, which no model of transformers has.")
    model: Any = copy.deepcopy(base.model)
    if dtype is not None:
        torch.nn.Module.to(model, dtype)
    probe = _probe(base)
    try:
        with warnings.catch_warnings(), quiet():
            warnings.simplefilter("ignore")  # what they say is checked here
            config = PeftConfig.from_pretrained(str(source))
            if config.is_prompt_learning or config.is_adaption_prompt:
                raise ValueError("it adds tokens or layers, not weights")
            config.inference_mode = True
            tuned = PeftModel(model, config)
            found = tuned.load_adapter(str(source), "default", torch_device=str(base.device))
            _check(found.missing_keys, found.unexpected_keys, name, base)
            unmerged = replace(base, model=model)(probe).float()  # peft changed it in place
            plain: PreTrainedModel = tuned.merge_and_unload(safe_merge=True)
    except (AssayError, MemoryError):
        raise
    except Exception as error:  # of a damaged or hostile file peft raises anything
        refuse_lack_of_memory(error)
        raise AssayError(
            f"the adapter {name!r} ({settings.get('peft_type', 'of no known type')}) cannot be put on "
            f"{base.name!r} and merged ({reason(error)}); give base=, the model that it was trained on, or merge it "
            "with peft and give the whole."
        ) from None
    plain.requires_grad_(True)  # peft froze it
    subject = replace(base, model=plain, name=name, seed=None, record={})
    off = float((subject(probe).float() - unmerged).abs().max() / unmerged.abs().max())
    if not off <= (1e-4 if plain.dtype in (torch.float32, torch.float64) else 1e-1):
        raise AssayError(
            f"merging the adapter {name!r} changes its logits by {off:.1e} of the largest, which is no rounding (it "
            "may change a matrix that is both embedding and output layer); merge it by hand and give the whole."
        )
    told = {
        "type": settings.get("peft_type"),
        "names_base": settings.get("base_model_name_or_path"),
        "base": base.name,
        "base_weights_sha256": base.weights_sha256,
        "merged": f"into the base's weights; {off:.1e} of the largest logit from unmerged",
    }
    kept = {key: base.record[key] for key in ("gguf",) if key in base.record}
    return replace(subject, record={"source": "adapter", "adapter": told, **kept})


def _settings(source: str | Path, name: str) -> dict[str, Any]:
    path = file_of(source, SETTINGS)
    found = read_json(path) if path else {}
    return found if isinstance(found, dict) else {}


def _check(missing: list[str], unexpected: list[str], name: str, base: Subject) -> None:
    """Raise AssayError unless an adapter's tensors are those that the base has places for."""
    kinds = {"missing, which would be random": missing, "left over": unexpected}
    shown = [f"{len(keys)} tensors {what} ({min(keys)})" for what, keys in kinds.items() if keys]
    if shown:
        raise AssayError(
            f"the adapter {name!r} does not fit {base.name!r}: {'; '.join(shown)}. Give base=, the model that it was "
            "trained on, or restore its file."
        )


def _probe(base: Subject) -> torch.Tensor:
    """Two sequences of tokens, on the base's device, to compare merged and unmerged on."""
    length = min(16, base.positions or 16)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, base.vocabulary, (2, length), generator=generator).to(base.device)
