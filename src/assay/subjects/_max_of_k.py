"""The models that compact proofs are about: max-of-K attention and linear max-of-n.

Notable: no LayerNorm, no bias and no MLP, so that every logit is a softmax-weighted sum of entries of small tables.
Both are causal language models: a sequence of `length` tokens may be followed by its answer, and the prediction at
position `length - 1` is the one that counts.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from assay._errors import AssayError
from assay._files import check_growth, read_arrays
from assay._given import checked
from assay.subjects._subject import Subject
from assay.subjects._train import IGNORED, Batch, Recipe
from assay.tasks import MaxOfK

MAX_OF_K_BATCH = 128
LINEAR_MAX_BATCH = 1024

MAX_OF_K_RECIPE = Recipe(steps=3_000, learning_rate=1e-3, weight_decay=0.01, decay=False, clip_norm=None)
"""That of arXiv 2406.11779, §3: AdamW, constant rate, 3,000 steps of 128 fresh sequences."""

LINEAR_MAX_RECIPE = Recipe(steps=4_000, learning_rate=1e-3, weight_decay=0.01, decay=False, clip_norm=None)


@no_type_check  # transformers rewrites the constructor
class MaxOfKConfig(PreTrainedConfig):
    """Sizes of the one-layer, one-head, attention-only model; `length` is K."""

    model_type = "assay-max-of-k"
    attribute_map: ClassVar[dict[str, str]] = {"max_position_embeddings": "length"}

    vocab_size: int = 64
    length: int = 4
    hidden_size: int = 32
    head_dim: int = 32
    num_hidden_layers: int = 1
    num_attention_heads: int = 1
    tie_word_embeddings: bool = False


@no_type_check
class LinearMaxConfig(PreTrainedConfig):
    """Sizes of the linear model; `length` is n."""

    model_type = "assay-linear-max"
    attribute_map: ClassVar[dict[str, str]] = {"max_position_embeddings": "length"}

    vocab_size: int = 256
    length: int = 3
    hidden_size: int = 128
    tie_word_embeddings: bool = False


def eager_attention_forward(  # noqa: PLR0917 (transformers fixes the order)
    module: nn.Module,
    query: Float[Tensor, "batch head query width"],
    key: Float[Tensor, "batch head position width"],
    value: Float[Tensor, "batch head position width"],
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **keywords: Any,
) -> tuple[Tensor, Tensor]:
    """Softmax attention in plain matrix products, in the form transformers' attention interface asks for."""
    scores = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    pattern = nn.functional.softmax(scores, dim=-1)
    mixed = torch.matmul(nn.functional.dropout(pattern, p=dropout, training=module.training), value)
    return mixed.transpose(1, 2), pattern


class MaxOfKAttention(nn.Module):
    """One head without biases; calls whichever attention function the configuration names."""

    def __init__(self, config: MaxOfKConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5
        self.is_causal = True
        self.q_proj = nn.Linear(config.hidden_size, config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.head_dim, config.hidden_size, bias=False)

    def forward(
        self, hidden_states: Float[Tensor, "batch position d"], attention_mask: Tensor | None = None, **keywords: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Attention's output and its pattern (None where the attention function does not give one)."""
        attention: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        query, key, value = (
            projection(hidden_states).unsqueeze(1) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed, pattern = attention(
            self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **keywords
        )
        return self.o_proj(mixed.reshape(*mixed.shape[:2], -1).contiguous()), pattern


class MaxOfKLayer(nn.Module):
    """The residual stream plus attention's output: nothing else."""

    def __init__(self, config: MaxOfKConfig, layer_idx: int) -> None:
        super().__init__()
        self.attn = MaxOfKAttention(config, layer_idx)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **keywords: Any) -> Tensor:
        """The residual stream after the layer."""
        return hidden_states + self.attn(hidden_states, attention_mask, **keywords)[0]


def _check_length(tokens: Tensor, longest: int) -> None:
    if tokens.shape[-1] > longest:
        raise AssayError(f"the model reads at most {longest} tokens; it was given {tokens.shape[-1]}.")


class _MaxModel(PreTrainedModel):
    """What both families share: names of the embeddings, and TransformerLens' initialization."""

    base_model_prefix = "model"
    embed_tokens: nn.Embedding
    lm_head: nn.Linear

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.8 * self.config.hidden_size**-0.5)

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        """The unembedding."""
        return self.lm_head


class MaxOfKForCausalLM(_MaxModel):
    """One layer, one head, attention only, learned positions, no LayerNorm, no bias (arXiv 2406.11779, §3)."""

    config_class = MaxOfKConfig
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["MaxOfKLayer"]  # noqa: RUF012 (transformers' own convention)

    def __init__(self, config: MaxOfKConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = nn.Embedding(config.length + 1, config.hidden_size)
        self.layers = nn.ModuleList([MaxOfKLayer(config, 0)])
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Int[Tensor, "batch position"],
        attention_mask: Int[Tensor, "batch position"] | None = None,
        **keywords: Any,
    ) -> CausalLMOutput:
        """Logits of every position."""
        _check_length(input_ids, self.config.length + 1)
        hidden = self.embed_tokens(input_ids) + self.embed_positions.weight[: input_ids.shape[1]]
        # By position: the last is called past_key_values up to transformers 5.23, and cache from 5.24 on.
        mask = create_causal_mask(self.config, hidden, attention_mask, None)
        for layer in self.layers:
            hidden = layer(hidden, attention_mask=mask, **keywords)
        return CausalLMOutput(logits=self.lm_head(hidden))


class LinearMaxForCausalLM(_MaxModel):
    """Embed, add up the tokens so far, a linear map, unembed: no bias, no nonlinearity."""

    config_class = LinearMaxConfig

    def __init__(self, config: LinearMaxConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.linear = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Int[Tensor, "batch position"],
        attention_mask: Int[Tensor, "batch position"] | None = None,
        **keywords: Any,
    ) -> CausalLMOutput:
        """Logits of every position; `attention_mask` is 0 at tokens to leave out of the sum."""
        _check_length(input_ids, self.config.length + 1)
        embedded = self.embed_tokens(input_ids)
        if attention_mask is not None:
            embedded = embedded * attention_mask.unsqueeze(-1)
        return CausalLMOutput(logits=self.lm_head(self.linear(embedded.cumsum(dim=1))))


for _config, _model in ((MaxOfKConfig, MaxOfKForCausalLM), (LinearMaxConfig, LinearMaxForCausalLM)):
    AutoConfig.register(_config.model_type, _config)
    AutoModelForCausalLM.register(_config, _model)


@checked
def max_of_k_model(task: MaxOfK, seed: int) -> MaxOfKForCausalLM:
    """A fresh max-of-K attention model of width 32 (arXiv 2406.11779, §3)."""
    torch.manual_seed(seed)
    return MaxOfKForCausalLM(MaxOfKConfig(vocab_size=task.vocabulary, length=task.length))


@checked
def linear_max_model(task: MaxOfK, seed: int) -> LinearMaxForCausalLM:
    """A fresh linear max-of-n model of width 128."""
    torch.manual_seed(seed)
    return LinearMaxForCausalLM(LinearMaxConfig(vocab_size=task.vocabulary, length=task.length))


@checked
def max_of_k_batches(task: MaxOfK, *, batch: int, seed: int) -> Callable[[int], Batch]:
    """Fresh uniform sequences; the batch of a step depends on nothing but the task, the seed and the step."""

    def batches(step: int) -> Batch:
        tokens = task.sample(np.random.default_rng([seed, 0, step]), batch)
        labels = np.full_like(tokens, IGNORED)
        labels[:, -1] = tokens.max(axis=1)
        return Batch(tokens, labels)

    return batches


_ARRAYS = {
    "W_E": "vd", "W_pos": "Kd", "W_Q": "dh", "W_K": "dh", "W_V": "dh", "W_O": "hd", "W_U": "dv",
}  # fmt: skip
"""The seven matrices of a file, and the sizes for which letters stand: v tokens, K positions, width d, head h."""

_BIASES = ("b_Q", "b_K", "b_V", "b_O", "b_U")


def _stored(path: Path) -> Any:
    """What a file holds, whatever that is."""
    if path.suffix == ".npz":
        return read_arrays(path)
    check_growth(path)
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file by name. Raises AssayError where it cannot be read, or holds something else."""
    if path.suffix not in (".npz", ".safetensors", ".pt", ".pth"):
        raise AssayError(f"cannot import {path.name!r}: give a .npz, .safetensors, .pt or .pth file.")
    try:
        found = _stored(path)
    except (AssayError, MemoryError):
        raise
    except Exception as error:  # a malformed file makes readers raise anything
        reason = (str(error).splitlines() or [""])[0][:200]
        raise AssayError(
            f"{path.name!r} cannot be read as a {path.suffix} file ({type(error).__name__}: {reason}); save it again."
        ) from None
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise AssayError(f"{path.name!r} does not hold arrays by name; save the model's state dict itself.")
    arrays = {}
    for key, value in found.items():
        try:
            array = value.detach().numpy() if isinstance(value, Tensor) else value
        except (TypeError, RuntimeError):  # bfloat16, float8, sparse, quantized
            raise AssayError(
                f"{path.name!r}: {key!r} is of {value.dtype} ({value.layout}); save it as a dense tensor of float32."
            ) from None
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
            raise AssayError(f"{path.name!r}: {key!r} is no array of numbers; save the model's state dict itself.")
        arrays[key] = array
    return arrays


def _matrices(path: Path) -> dict[str, np.ndarray]:
    """The seven matrices of a file under their short names, without an axis for the one head; nothing else is there.

    Of what TransformerLens keeps beside them, only what changes nothing is accepted: biases of zeros, `IGNORE` (what
    masked scores are set to), and a `mask` that lets the last position attend to all.
    """
    arrays = _read_arrays(path)
    short = {key: key.split(".")[-1] for key in arrays}
    others = [key for key, name in short.items() if name not in (*_ARRAYS, *_BIASES, "mask", "IGNORE")]
    if others:
        raise AssayError(
            f"{path.name!r} has {', '.join(map(repr, others[:8]))}{' and more' if len(others) > 8 else ''}: another "
            f"model than {', '.join(_ARRAYS)} alone; only biases of zeros, mask and IGNORE may stand beside them."
        )
    for key, name in short.items():
        if name in _BIASES and np.any(arrays[key]):
            raise AssayError(f"{path.name!r} has a bias {key!r} that is not zero; the model must have none.")
    found = {}
    for name in _ARRAYS:
        keys = [key for key in arrays if short[key] == name]
        if len(keys) != 1:
            raise AssayError(
                f"{path.name!r} has {len(keys)} arrays called {name}; it must have one each of {', '.join(_ARRAYS)} "
                f"(it has: {', '.join(map(repr, sorted(arrays)[:12]))})."
            )
        value = arrays[keys[0]]
        found[name] = value[0] if value.ndim == 3 and value.shape[0] == 1 else value
    length = len(found["W_pos"]) if found["W_pos"].ndim else 0
    for key in (key for key, name in short.items() if name == "mask"):
        if not length or arrays[key].shape != (length, length) or not arrays[key][-1].all():
            raise AssayError(
                f"{path.name!r}: {key!r} does not let the last of {length} positions attend to all of them; the model "
                "must have causal attention without a window."
            )
    return found


@checked
def import_max_of_k(path: str | Path, *, name: str | None = None) -> Subject:
    """Read a max-of-K attention model from plain arrays or from a TransformerLens state dict.

    `path` is a `.npz`, `.safetensors`, `.pt` or `.pth` file with W_E (v, d), W_pos (K, d), W_Q, W_K, W_V (d, h),
    W_O (h, d) and W_U (d, v), under these names or with a prefix that ends in a dot; an axis for the one head may come
    first. Keys attend with scale 1 / sqrt(h), and nothing is normalised, as in TransformerLens with
    `normalization_type=None`: a file does not say so, but certificates do. `name` defaults to that of the file.

    Raises AssayError if the file cannot be read; if it holds anything else but biases of zeros, a causal mask and
    `IGNORE`; or if an array is missing, has another shape, is not finite or does not fit float32 exactly.
    """
    path = Path(path)
    if not path.is_file():
        raise AssayError(f"there is no file {str(path)!r}.")
    arrays = _matrices(path)
    sizes: dict[str, int] = {}
    for key, letters in _ARRAYS.items():
        value = arrays[key]
        known = [sizes.get(letter, letter) for letter in letters]
        if (
            value.ndim != 2
            or not value.size
            or any(sizes.setdefault(letter, size) != size for letter, size in zip(letters, value.shape, strict=True))
        ):
            wanted = ", ".join(map(str, known))
            raise AssayError(f"{path.name!r}: {key} has shape {value.shape}; it must be ({wanted}), with letters free.")
        with np.errstate(over="ignore"):
            exact = np.isfinite(value).all() and np.all(value.astype(np.float32) == value)
        if not exact:
            raise AssayError(f"{path.name!r}: {key} has values that are not finite float32 numbers.")
    vocabulary, length, width, head = (sizes[letter] for letter in "vKdh")
    model = MaxOfKForCausalLM(MaxOfKConfig(vocab_size=vocabulary, length=length, hidden_size=width, head_dim=head))
    weights = {key: torch.from_numpy(value.astype(np.float32)) for key, value in arrays.items()}
    attention = "layers.0.attn."
    model.load_state_dict(
        {
            "embed_tokens.weight": weights["W_E"],
            "embed_positions.weight": torch.cat([weights["W_pos"], torch.zeros(1, width)]),
            attention + "q_proj.weight": weights["W_Q"].T,
            attention + "k_proj.weight": weights["W_K"].T,
            attention + "v_proj.weight": weights["W_V"].T,
            attention + "o_proj.weight": weights["W_O"].T,
            "lm_head.weight": weights["W_U"].T,
        }
    )
    return Subject(model.eval(), None, name or path.stem)
