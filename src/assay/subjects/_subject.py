"""The model under test, with what is known of it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, repr=False)
class Subject:
    """A Hugging Face model with its tokenizer and a name.

    `seed` is the training seed where it is known, `record` the training record of a reference model (empty
    otherwise), `trained` is False for a copy with fresh weights.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    name: str
    seed: int | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    trained: bool = True

    @torch.inference_mode()
    def __call__(
        self, tokens: Int[Tensor, "batch position"], valid: Int[Tensor, "batch position"] | None = None
    ) -> Float[Tensor, "batch position vocabulary"]:
        """Logits of every position; `valid` is 1 at tokens and 0 at padding (default: no padding)."""
        mask = torch.ones_like(tokens) if valid is None else valid
        without_cache = {"use_cache": False} if getattr(self.model.config, "use_cache", False) else {}
        logits: Tensor = self.model(input_ids=tokens, attention_mask=mask, **without_cache).logits
        return logits

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def vocabulary(self) -> int:
        """The number of tokens that the model has embeddings for."""
        return int(self.model.get_input_embeddings().weight.shape[0])  # type: ignore[index]

    @property
    def weights_sha256(self) -> str:
        """A hash of all weights: names, shapes, dtypes and bytes."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def to(self, device: str | torch.device) -> "Subject":
        """This subject with its weights on `device` (moved in place, as torch does)."""
        torch.nn.Module.to(self.model, device)
        return self

    def untrained_copy(self, seed: int = 0) -> "Subject":
        """The same architecture with fresh random weights: a control that knows nothing."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = type(self.model)(self.model.config)
        torch.nn.Module.to(model, self.device, self.model.dtype)
        return replace(self, model=model.eval(), seed=seed, record={}, trained=False)

    def describe(self) -> dict[str, Any]:
        """What a record keeps of the subject; plain values only."""
        return {
            "name": self.name,
            "seed": self.seed,
            "trained": self.trained,
            "architecture": type(self.model).__name__,
            "parameters": self.parameters,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": str(self.device),
            "weights_sha256": self.weights_sha256,
        }

    def __repr__(self) -> str:
        seed = "" if self.seed is None else f", seed={self.seed}"
        state = "" if self.trained else ", untrained"
        return f"Subject({self.name!r}{seed}{state}: {type(self.model).__name__}, {self.parameters:,} parameters)"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(key)}</th><td>{escape(str(value))}</td></tr>"
            for key, value in self.describe().items()
        )
        return f"<table>{rows}</table>"
