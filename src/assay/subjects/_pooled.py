"""Small multilayer perceptrons as language models: the organisms whose inputs are not read in order.

Notable: the vector of a token is what an input of a perceptron adds to the first layer, so that one head with uniform
attention, whose values are the vectors times their number, has the pre-activations of that layer at the last position.
Positions are tokens of their own, one a (position, value). No residual connection and no norm: `layer0.outputs` are the
pre-activations of the first hidden layer, `layer0.mlp` is the last hidden layer, and both can be read and edited.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal, cast, get_args, no_type_check

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from assay._errors import AssayError, unknown_name
from assay._given import checked
from assay.subjects import _max_of_k

Activation = Literal["relu", "tanh", "square"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "tanh": torch.tanh, "square": torch.square}

eager_attention_forward = _max_of_k.eager_attention_forward  # the engine looks for it in a model's own module


@no_type_check  # transformers rewrites the constructor
class PooledMLPConfig(PreTrainedConfig):
    """Sizes of a perceptron over `length` tokens: widths of its hidden layers, its activation, and its answers.

    Tokens below `answers` are those that it answers with; the others, up to `vocab_size`, are those that it reads.
    `deviation` is the standard deviation of all weights at the start; with 0 they are uniform within 1/sqrt(inputs), as
    torch's own linear layers. Without `bias` no layer has one; the first never has: every position has some token,
    whose vector can hold it.
    """

    model_type = "assay-pooled-mlp"

    vocab_size: int = 34
    answers: int = 2
    length: int = 16
    hidden_sizes: list[int] | tuple[int, ...] = (128,)
    activation: str = "relu"
    bias: bool = True
    deviation: float = 0.0
    num_hidden_layers: int = 1
    num_attention_heads: int = 1
    tie_word_embeddings: bool = False


class PooledAttention(nn.Module):
    """One head that attends equally to all tokens so far; its values are their vectors, times the model's length.

    What it gives at position `length - 1` is their sum.
    """

    def __init__(self, config: PooledMLPConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.scaling = 1.0
        self.is_causal = True

    def forward(
        self, hidden_states: Float[Tensor, "batch position d"], attention_mask: Tensor | None = None, **keywords: Any
    ) -> Float[Tensor, "batch position d"]:
        """The mean of the vectors so far, times the length."""
        attention: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        values = (hidden_states * self.config.length).unsqueeze(1)
        nothing = torch.zeros_like(values)
        mixed, _ = attention(self, nothing, nothing, values, attention_mask, scaling=self.scaling, **keywords)
        return mixed.reshape(hidden_states.shape)


class PooledHidden(nn.Module):
    """From the pre-activations of the first hidden layer to the last hidden layer."""

    def __init__(self, config: PooledMLPConfig) -> None:
        super().__init__()
        self.activation = _ACTIVATIONS[config.activation]
        sizes = config.hidden_sizes
        self.hidden = nn.ModuleList([
            nn.Linear(before, after, bias=config.bias) for before, after in pairwise(sizes)
        ])  # fmt: skip

    def layers(self, pooled: Float[Tensor, "*batch first"]) -> list[Float[Tensor, "*batch _"]]:
        """Every hidden layer behind its activation, in order."""
        found = [self.activation(pooled)]
        for linear in self.hidden:
            found.append(self.activation(linear(found[-1])))
        return found

    def forward(self, pooled: Float[Tensor, "*batch first"]) -> Float[Tensor, "*batch last"]:
        """The last hidden layer."""
        return self.layers(pooled)[-1]


class PooledLayer(nn.Module):
    """Attention, then the perceptron of what it gives: nothing is added to anything."""

    def __init__(self, config: PooledMLPConfig, layer_idx: int) -> None:
        super().__init__()
        self.attn = PooledAttention(config, layer_idx)
        self.mlp = PooledHidden(config)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **keywords: Any) -> Tensor:
        """The last hidden layer at every position."""
        last: Tensor = self.mlp(self.attn(hidden_states, attention_mask, **keywords))
        return last


class PooledMLPForCausalLM(PreTrainedModel):
    """A perceptron over the sum of its tokens' vectors, whose answer is the token behind them.

    Only position `length - 1` is of use: there it is the perceptron itself (`at_last`).
    """

    config_class = PooledMLPConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["PooledLayer"]  # noqa: RUF012 (transformers' own convention)

    def __init__(self, config: PooledMLPConfig) -> None:
        super().__init__(config)
        sizes = config.hidden_sizes
        self.embed_tokens = nn.Embedding(config.vocab_size, sizes[0])
        self.layers = nn.ModuleList([PooledLayer(config, 0)])
        self.lm_head = nn.Linear(sizes[-1], config.answers, bias=config.bias)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        deviation = self.config.deviation
        if isinstance(module, nn.Linear | nn.Embedding):
            inputs = self.config.length if isinstance(module, nn.Embedding) else module.in_features
            if deviation:
                nn.init.normal_(module.weight, std=deviation)
            else:
                nn.init.uniform_(module.weight, -(inputs**-0.5), inputs**-0.5)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.uniform_(module.bias, -(inputs**-0.5), inputs**-0.5)

    def get_input_embeddings(self) -> nn.Module:
        """The vectors of tokens."""
        return self.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        """The map from the last hidden layer to the answers."""
        return self.lm_head

    def forward(
        self,
        input_ids: Int[Tensor, "batch position"],
        attention_mask: Int[Tensor, "batch position"] | None = None,
        **keywords: Any,
    ) -> CausalLMOutput:
        """Logits of every position."""
        hidden = self.embed_tokens(input_ids)
        # By position: the last is called past_key_values up to transformers 5.23, and cache from 5.24 on.
        mask = create_causal_mask(self.config, hidden, attention_mask, None)
        for layer in self.layers:
            hidden = layer(hidden, attention_mask=mask, **keywords)
        return CausalLMOutput(logits=self.lm_head(hidden))

    @property
    def _hidden(self) -> PooledHidden:
        return cast(PooledLayer, self.layers[0]).mlp

    def hidden_layers(self, input_ids: Int[Tensor, "batch length"]) -> list[Float[Tensor, "batch _"]]:
        """Every hidden layer at position `length - 1`, in order, behind its activation; without attention."""
        pooled = nn.functional.embedding_bag(input_ids, self.embed_tokens.weight, mode="sum")
        return self._hidden.layers(pooled)

    def at_last(self, input_ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch answers"]:
        """Logits at position `length - 1` alone, many times as fast as those of all positions."""
        logits: Tensor = self.lm_head(self.hidden_layers(input_ids)[-1])
        return logits

    def readers(self) -> list[nn.Linear]:
        """What reads each hidden layer, in order: the next linear map, at last that to the answers."""
        return [*(cast(nn.Linear, linear) for linear in self._hidden.hidden), self.lm_head]


AutoConfig.register(PooledMLPConfig.model_type, PooledMLPConfig)
AutoModelForCausalLM.register(PooledMLPConfig, PooledMLPForCausalLM)


@checked
def pooled_mlp(
    *,
    length: int,
    vocabulary: int,
    answers: int,
    hidden: tuple[int, ...],
    activation: str = "relu",
    bias: bool = True,
    deviation: float = 0.0,
    seed: int = 0,
) -> PooledMLPForCausalLM:
    """A fresh perceptron over `length` tokens out of `vocabulary`, of which the first `answers` are its answers.

    `hidden` are the widths of its hidden layers; the rest is as in `PooledMLPConfig`. Raises AssayError for sizes below
    1, no hidden layer, a vocabulary that holds no more than the answers, and an unknown activation.
    """
    if activation not in get_args(Activation):
        raise unknown_name("activation", activation, get_args(Activation))
    if length < 1 or not hidden or min(hidden) < 1 or not 1 <= answers < vocabulary:
        raise AssayError(
            f"pooled_mlp(length={length}, vocabulary={vocabulary}, answers={answers}, hidden={hidden}): sizes must be "
            "at least 1, with at least one hidden layer and a vocabulary that is larger than the answers."
        )
    torch.manual_seed(seed)
    return PooledMLPForCausalLM(
        PooledMLPConfig(
            vocab_size=vocabulary,
            answers=answers,
            length=length,
            hidden_sizes=list(hidden),
            activation=activation,
            bias=bias,
            deviation=deviation,
        )
    )
