"""The model under test, with what is known of it."""

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from html import escape
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from assay._errors import AssayError
from assay._fingerprint import NotHashableError, fingerprint_or_reason
from assay._given import check_fields, checked
from assay.subjects._alterations import alterations, behaviour
from assay.subjects._objective import Pooling, objective_of, resolve_objective, resolve_pooling
from assay.subjects._quantized import keep_as_stored
from assay.tasks import Objective

_OF_SOURCE = ("source", "gguf", "adapter", "quantization")
"""Entries of a record that tell what a model's weights were before they were read."""


@dataclass(frozen=True, repr=False)
class Subject:
    """A Hugging Face model with its tokenizer and a name.

    `seed` is the training seed where it is known, `record` the training record of a reference model, and what a GGUF
    file, an adapter or quantized weights were read from (empty otherwise), `trained` is False for a copy with shuffled
    weights. `objective` is what the model is asked (default: what its class is for). `pooling` is how an encoder's
    embedding is made of its tokens' vectors, and `prompt` the text that stands before every sequence when it is used;
    other objectives do not use them.

    The model is put into evaluation mode (`model.eval()`, in place): in training, dropout makes it another at every
    call. Weights of 4 bits are kept as they were stored (`keep_as_stored`).
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    name: str
    seed: int | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    trained: bool = True
    objective: Objective | None = None
    pooling: Pooling = "mean"
    prompt: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        found = self.objective or objective_of(type(self.model).__name__) or "causal"
        resolve_pooling(self.pooling)
        object.__setattr__(self, "objective", resolve_objective(found))
        self.model.eval()
        keep_as_stored(self.model)

    @classmethod
    @checked
    def from_model(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None, *, name: str | None = None
    ) -> "Subject":
        """A model that is in memory already, called by `name`, or as it was loaded, or after its class."""
        return cls(model, tokenizer, name or model.name_or_path or type(model).__name__)

    def __call__(
        self, tokens: Int[Tensor, "batch position"], valid: Int[Tensor, "batch position"] | None = None
    ) -> Float[Tensor, "batch position vocabulary"]:
        """Logits of every position; `valid` is 1 at tokens and 0 at padding (default: no padding).

        For an encoder that gives embeddings, the last hidden states (batch, position, width) stand in their place.
        """
        mask = torch.ones_like(tokens) if valid is None else valid
        without_cache = {"use_cache": False} if getattr(self.model.config, "use_cache", False) else {}
        with self._without_gradients():
            output = self.model(input_ids=tokens, attention_mask=mask, **without_cache)
            logits: Tensor = output.last_hidden_state if self.objective == "embedding" else output.logits
            return logits

    @cached_property
    def _without_gradients(self) -> type[torch.inference_mode | torch.no_grad]:
        """Inference mode is faster, but some quantized weights (quanto's of 4 bits) cannot be used in it."""
        plain = all(type(weight) is torch.nn.Parameter for weight in self.model.parameters())
        return torch.inference_mode if plain else torch.no_grad

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return self.model.num_parameters()

    @property
    def vocabulary(self) -> int:
        """The number of tokens that the model has embeddings for."""
        return int(self.model.get_input_embeddings().weight.shape[0])  # type: ignore[index]

    @property
    def positions(self) -> int | None:
        """The longest sequence that the model has positions for; None if its configuration names none.

        Position embeddings with a padding row (RoBERTa's) begin after it, which takes that many from the number. An
        encoder's text is cut, in use, to its tokenizer's `model_max_length`, if that is less.
        """
        limits = [self._positions_of_model]
        if self.objective == "embedding" and self.tokenizer is not None:
            limits.append(int(self.tokenizer.model_max_length))
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def _positions_of_model(self) -> int | None:
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if limit is None:
            return None
        for name, module in self.model.named_modules():
            if (
                isinstance(module, torch.nn.Embedding)
                and "position" in name
                and module.num_embeddings == limit
                and module.padding_idx is not None
            ):
                return int(limit) - module.padding_idx - 1
        return int(limit)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All weights with their names, in the order of these; of quantized ones, the plain tensors in them."""
        for name, tensor in sorted(self.model.state_dict().items()):
            yield from _plain(name, tensor)

    @property
    def weights_sha256(self) -> str:
        """A hash of all weights: names, shapes, dtypes and bytes."""
        digest = hashlib.sha256()
        for name, tensor in self.tensors():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @property
    def config_sha256(self) -> str:
        """A hash of the configuration, without where it was loaded from and by which version."""
        config = self.model.config.to_dict()
        for passing in ("_name_or_path", "transformers_version", "dtype", "torch_dtype"):
            config.pop(passing, None)
        return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def alterations(self) -> tuple[str, ...]:
        """What others have put on the model, and its file does not say: hooks, replaced methods, parametrizations."""
        return alterations(self.model)

    @property
    def behaviour_sha256(self) -> str | NotHashableError:
        """A hash of the rest that its outputs depend on (hooks, settings of modules, code), or why there is none."""
        return fingerprint_or_reason(behaviour(self.model))

    @checked
    def to(self, device: str | torch.device) -> "Subject":
        """This subject with its weights on `device` (moved in place, as torch does).

        Raises AssayError for a device that there is none of.
        """
        try:
            torch.nn.Module.to(self.model, torch.device(device))
        except (RuntimeError, AssertionError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            why = str(error).split("\n")[0]
            raise AssayError(f"Subject.to(device={str(device)!r}): {why}; 'cpu' is always there.") from None
        return self

    @checked
    def shuffled_copy(self, seed: int = 0) -> "Subject":
        """The same model with the entries of every matrix in random order: a control that knows nothing.

        What was learned is gone, and every matrix keeps its norm, so that the model reacts to a change of its attention
        or its vectors as strongly as one can without structure. (Fresh weights do not do that: their attention hardly
        moves a prediction, and any simplification of it agrees.) Vectors, such as biases and norms, are left. Of
        quantized weights the codes are shuffled, and the scales left.
        """
        model = copy.deepcopy(self.model)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                for name, tensor in _plain("", parameter):
                    if tensor.dim() >= 2 and not (name and tensor.is_floating_point()):
                        order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
                        tensor.copy_(tensor.flatten()[order].view_as(tensor))
        return replace(self, model=model.eval(), seed=seed, record={}, trained=False)

    def describe(self) -> dict[str, Any]:
        """What a record keeps of the subject; plain values only.

        `source`, `gguf`, `adapter` and `quantization` tell what the weights were read from, `hooks` are its
        alterations, where there are any.
        """
        hooks = self.alterations
        return {
            "name": self.name,
            "seed": self.seed,
            "trained": self.trained,
            "architecture": type(self.model).__name__,
            "objective": self.objective,
            **({"pooling": self.pooling, "prompt": self.prompt} if self.objective == "embedding" else {}),
            "parameters": self.parameters,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": str(self.device),
            "weights_sha256": self.weights_sha256,
            "config_sha256": self.config_sha256,
            **{key: self.record[key] for key in _OF_SOURCE if key in self.record},
            **({"hooks": list(hooks)} if hooks else {}),
        }

    def __repr__(self) -> str:
        seed = "" if self.seed is None else f", seed={self.seed}"
        state = "" if self.trained else ", shuffled"
        return f"Subject({self.name!r}{seed}{state}: {type(self.model).__name__}, {self.parameters:,} parameters)"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(key)}</th><td>{escape(str(value))}</td></tr>"
            for key, value in self.describe().items()
        )
        return f"<table>{rows}</table>"


def _plain(name: str, tensor: Any) -> Iterator[tuple[str, Tensor]]:
    if is_traceable_wrapper_subclass(tensor):
        for part in tensor.__tensor_flatten__()[0]:
            yield from _plain(f"{name}.{part}", getattr(tensor, part))
    else:
        yield name, tensor
