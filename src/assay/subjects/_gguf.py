"""GGUF files, as llama.cpp uses them: dequantized, and refused where transformers would pass over what they hold."""

import copy
import importlib.util
import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoTokenizer, GgufConfig, PreTrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.integrations.gguf import GGUF_ARCHS
from transformers.modeling_gguf_pytorch_utils import (
    GGUF_SUPPORTED_ARCHITECTURES,
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)

from assay._errors import AssayError, is_failure
from assay.subjects._checkpoint import check_loaded, prefer_plain_attention
from assay.subjects._objective import auto_class, objective_of
from assay.subjects._reading import quiet, reason, refuse_lack_of_memory
from assay.subjects._subject import Subject
from assay.tasks import Objective

_SAID: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("block_count", ("num_hidden_layers",)),
    ("embedding_length", ("hidden_size",)),
    ("attention.head_count", ("num_attention_heads",)),
    ("attention.head_count_kv", ("num_key_value_heads",)),
    ("attention.layer_norm_rms_epsilon", ("rms_norm_eps",)),
    ("attention.layer_norm_epsilon", ("layer_norm_epsilon", "layer_norm_eps", "norm_eps")),
)
"""What a file says about its model beside the tensors, and the settings of a configuration that must agree with it."""

_TOKENIZERS = ("gpt2", "llama", "t5", "gemma4")
"""The kinds of tokenizers that transformers builds; of others, older versions make one of these without a word."""

_LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""How Llama 3.1 and its successors scale rotary frequencies; the factor (8 or 32) is the largest of a file's."""


class GgufFile:
    """An open GGUF file. Raises AssayError if it is none, is cut short, or a package to read it is missing."""

    def __init__(self, path: Path, name: str) -> None:
        for package in ("gguf", "accelerate"):
            if importlib.util.find_spec(package) is None:
                raise AssayError(
                    f"to read {name!r}, a GGUF file, the package {package} is needed: pip install 'assay-interp[gguf]'."
                )
        from gguf import GGUFReader  # noqa: PLC0415

        self.path, self.name = path.absolute(), name
        try:
            self._reader: Any = GGUFReader(path)
            self.architecture = str(self.said("general.architecture"))
        except Exception as error:  # gguf raises nothing more special
            raise AssayError(
                f"{name!r} cannot be read as a GGUF file ({reason(error)}); it is damaged or cut short, or another "
                "kind of file: fetch or convert it again."
            ) from None
        if int(self.said("split.count", 1)) > 1:
            raise AssayError(
                f"{name!r} is one of {self.said('split.count')} parts of a model; merge them with llama.cpp's "
                "gguf-split --merge and give the whole."
            )

    def said(self, key: str, default: Any = None) -> Any:
        """The value of an entry of the file's header; raises KeyError where there is none and no default."""
        field = self._reader.fields.get(key)
        if field is None and default is None:
            raise KeyError(f"there is no {key}")
        return default if field is None else field.contents()

    @property
    def blocks(self) -> int:
        """The number of blocks, as its tensors are named."""
        found = (re.search(r"\bblk\.(\d+)\.", name) for name in self.names)
        return max((int(one[1]) + 1 for one in found if one), default=0)

    @property
    def names(self) -> set[str]:
        """The names of its tensors."""
        return {tensor.name for tensor in self._reader.tensors}

    def tensor(self, name: str) -> NDArray[np.generic] | None:
        """A tensor that is stored as numbers (not in blocks); None if there is none."""
        return next((tensor.data for tensor in self._reader.tensors if tensor.name == name), None)

    def rows(self, name: str) -> int | None:
        """The number of rows of a matrix; None if there is none of that name."""
        return next((int(tensor.shape[1]) for tensor in self._reader.tensors if tensor.name == name), None)

    def describe(self) -> dict[str, Any]:
        """What is stored: the number of tensors of every type, and bits a weight, of each type and of all."""
        stored: dict[str, list[tuple[int, int]]] = {}
        for tensor in self._reader.tensors:
            stored.setdefault(tensor.tensor_type.name, []).append((int(tensor.n_bytes), int(tensor.n_elements)))

        def bits(sizes: list[tuple[int, int]]) -> float:
            return round(8 * sum(size for size, _ in sizes) / sum(count for _, count in sizes), 3)

        return {
            "file": self.path.name,
            "architecture": self.architecture,
            "tensors": {kind: {"number": len(sizes), "bits": bits(sizes)} for kind, sizes in sorted(stored.items())},
            "bits": bits([size for sizes in stored.values() for size in sizes]),
            "note": "weights only: llama.cpp rounds activations, too",
        }


def read_gguf(
    path: Path, name: str, *, objective: Objective | None, dtype: torch.dtype | None, base: Subject | None
) -> Subject:
    """The model of a GGUF file, dequantized to `dtype` (default: float32), with the file's tokenizer.

    Its configuration is the file's, or that of `base`, where that is of the same type and does not contradict the file.
    Raises AssayError as `load` does.
    """
    file = GgufFile(path, name)
    # an empty folder, so that nothing that lies beside the file (an adapter, a tokenizer) is mixed with it
    with tempfile.TemporaryDirectory() as empty, quiet(), redirect_stderr(StringIO()):  # a bar that has no switch
        try:
            config = _configuration(file, empty, base)
            objective = objective or objective_of((config.architectures or [""])[0]) or "causal"
            found: Any = auto_class(objective, config).from_pretrained(
                empty,
                gguf_file=str(file.path),
                config=config,
                dtype=dtype or torch.float32,
                quantization_config=GgufConfig(dequantize=True),
                ignore_mismatched_sizes=True,  # refused by name below
                output_loading_info=True,
            )
        except (AssayError, MemoryError):
            raise
        except Exception as error:  # of a damaged or hostile file transformers raises anything
            refuse_lack_of_memory(error)
            raise AssayError(
                f"could not read {name!r}, a GGUF file of architecture {file.architecture!r} ({reason(error)}); known "
                f"are {', '.join(sorted({*GGUF_SUPPORTED_ARCHITECTURES, *GGUF_ARCHS}))}. For others, give the model "
                "that it was made from, as a folder."
            ) from None
        model: PreTrainedModel = found[0]
        _check(file, model, found[1], objective, base)
        tokenizer = _tokenizer(file, empty, model, base)
    model.config._name_or_path = name
    told = file.describe() | {"configuration": "of the file" if base is None else f"of {base.name}"}
    return Subject(model, tokenizer, name, record={"source": "gguf", "gguf": told}, objective=objective)


def _configuration(file: GgufFile, empty: str, base: Subject | None) -> PreTrainedConfig:
    config: PreTrainedConfig = AutoConfig.from_pretrained(empty, gguf_file=str(file.path))
    said = file.said(f"{file.architecture}.block_count", 0)
    if isinstance(said, int) and said > file.blocks:
        raise AssayError(
            f"{file.name!r} says that it has {said} blocks, but holds {file.blocks}; fetch or convert it again."
        )
    if base is not None:
        if base.model.config.model_type != config.model_type:
            raise AssayError(
                f"{file.name!r} holds a model of type {config.model_type!r}, so it cannot have the configuration of "
                f"the base {base.name!r}, of type {base.model.config.model_type!r}; give the model it was made from."
            )
        config = copy.deepcopy(base.model.config)
    else:
        config.vocab_size = file.rows("token_embd.weight") or config.vocab_size
        if config.model_type == "gpt2":  # whose sizes transformers does not read
            config.n_positions = file.rows("position_embd.weight") or config.n_positions
        factors = file.tensor("rope_freqs.weight")
        if factors is not None and factors.max() > 1:
            config.rope_parameters = {**_rotary(config), **_LLAMA3, "factor": float(factors.max())}
    prefer_plain_attention(config)
    return config


def _rotary(config: PreTrainedConfig) -> dict[str, Any]:
    return dict(getattr(config, "rope_parameters", None) or {})


def _check(
    file: GgufFile, model: PreTrainedModel, info: Mapping[str, Any], objective: Objective, base: Subject | None
) -> None:
    """Raise AssayError unless model and file have the same tensors and settings."""
    whose = "its own configuration" if base is None else f"the configuration of {base.name!r}"
    fix = "give base=, the model that it was made from" if base is None else "give the base that it was made from"
    for key, said, setting in _contradictions(file, model.config):
        raise AssayError(f"{file.name!r} says {file.architecture}.{key} = {said}, and {whose} {setting}; {fix}.")
    shapes = sorted({*info["mismatched_keys"], *_misfits(model)})
    if shapes:
        key, saved, expected = shapes[0]
        raise AssayError(
            f"{file.name!r} has {len(shapes)} tensors of other shapes than {whose} says ({key}: "
            f"{' x '.join(map(str, saved))}, not {' x '.join(map(str, expected))}); {fix}."
        )
    left = {key for key in _passed_over(file, model) if not _is_of_rotary(file, key, model)}
    if objective == "embedding":
        left -= {"output.weight", "output.bias"}
    if left:
        shown = ", ".join(sorted(left)[:3]) + (" …" if len(left) > 3 else "")
        raise AssayError(
            f"{file.name!r} has {len(left)} tensors that {type(model).__name__} does not use with {whose} ({shown}), "
            f"so another model than the stored one would be judged; {fix}."
        )
    check_loaded(model, info, file.name, objective)


def _contradictions(file: GgufFile, config: PreTrainedConfig) -> Iterator[tuple[str, object, object]]:
    """Entries of the file that the configuration does not agree with: name, what it says, what the configuration has.

    Numbers in the file are float32.
    """
    rotary = _rotary(config)
    pairs = [(key, next((getattr(config, one) for one in names if hasattr(config, one)), None)) for key, names in _SAID]
    for key, setting in [*pairs, ("rope.freq_base", rotary.get("rope_theta"))]:
        said = file.said(f"{file.architecture}.{key}", math.nan)
        if isinstance(said, int | float) and isinstance(setting, int | float) and abs(said - setting) > 1e-6 * setting:
            yield key, f"{said:g}", f"{setting:g}"
    scaling = str(file.said(f"{file.architecture}.rope.scaling.type", "none"))
    kinds = [part["rope_type"] for part in (rotary, *rotary.values()) if isinstance(part, dict) and "rope_type" in part]
    if scaling not in ("none", *kinds):
        yield "rope.scaling.type", scaling, " and ".join(kinds) or "none"


def _misfits(model: PreTrainedModel) -> Iterator[tuple[str, torch.Size, torch.Size]]:
    """Tensors of other shapes than the configuration says, which older versions of transformers put in all the same."""
    with torch.device("meta"):
        expected = type(model)(model.config).state_dict()
    for key, tensor in model.state_dict().items():
        if tensor.shape != expected[key].shape:
            yield key, tensor.shape, expected[key].shape


def _passed_over(file: GgufFile, model: PreTrainedModel) -> set[str]:
    """The tensors that transformers' older reader leaves out without a word; the newer one reports them."""
    if file.architecture in GGUF_ARCHS:
        return set()
    processor = TENSOR_PROCESSORS.get(file.architecture, TensorProcessor)()
    places = get_gguf_hf_weights_map(model, processor)
    return {name for name in file.names if name not in places and name.removesuffix(".weight") not in places}


def _is_of_rotary(file: GgufFile, name: str, model: PreTrainedModel) -> bool:
    """Whether a tensor only says what the model's rotary frequencies are divided by, and says the same."""
    factors, rotary = file.tensor(name), _rotary(model.config)
    kind = {"rope_factors_long.weight": "long_factor", "rope_factors_short.weight": "short_factor"}.get(name)
    if factors is None or (kind is None and name != "rope_freqs.weight"):
        return False
    if kind is not None:
        held = np.asarray(rotary.get(kind, ()))
        return held.shape == factors.shape and np.allclose(factors, held, rtol=1e-5)
    used = [tensor for key, tensor in model.named_buffers() if key.endswith("rotary_emb.inv_freq")]
    plain = torch.arange(len(factors), dtype=torch.float64).div(len(factors)).neg().mul(math.log(rotary["rope_theta"]))
    expected = plain.exp() / torch.from_numpy(factors.astype(np.float64))
    return bool(used) and all(
        one.shape == expected.shape and torch.allclose(one.double().cpu(), expected, rtol=1e-5, atol=0) for one in used
    )


def _tokenizer(file: GgufFile, empty: str, model: PreTrainedModel, base: Subject | None) -> Tokenizer | None:
    """The file's tokenizer; None if it has none, and where it cannot be read the base's, if that has the same tokens.

    transformers gives a tokenizer special tokens of its own where the file names none; those that the model has no
    embedding for are taken off again.
    """
    kind = file.said("tokenizer.ggml.model", "none")
    if kind in ("none", "no_vocab"):
        return None
    try:
        if kind not in _TOKENIZERS:
            raise ValueError(f"kinds that can be: {', '.join(_TOKENIZERS)}")
        found: Tokenizer = AutoTokenizer.from_pretrained(empty, gguf_file=str(file.path))
    except BaseException as error:  # tokenizers raises nothing more special, and panics
        if not is_failure(error):
            raise
        if base is None:
            raise AssayError(
                f"the tokenizer of {file.name!r} (of kind {kind!r}) cannot be read ({reason(error)}); give base=, the "
                "model that it was made from, to use its tokenizer, or a base without one to do without."
            ) from None
        if base.tokenizer is not None:
            _same_tokens(file, base, base.tokenizer)
        return base.tokenizer
    embeddings: Any = model.get_input_embeddings()
    for role, token in found.special_tokens_map.items():
        if isinstance(token, str) and found.convert_tokens_to_ids(token) >= embeddings.weight.shape[0]:
            setattr(found, role, None)
    return found


def _same_tokens(file: GgufFile, base: Subject, tokenizer: Tokenizer) -> None:
    for number, token in enumerate(file.said("tokenizer.ggml.tokens", [])):
        other = tokenizer.convert_ids_to_tokens(number) if number < len(tokenizer) else None
        if other != token:
            raise AssayError(
                f"the tokenizer of {file.name!r} cannot be read, and that of the base {base.name!r} has {other!r}, not "
                f"{token!r}, for token {number}; give the model that the file was made from."
            )
