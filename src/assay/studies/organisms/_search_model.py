"""A model of graphs: one token an edge, whose embedding is that of its source plus that of its target; no order.

Attention sees everything (no causal mask), and there are no positions: a set of edges is read as a set.
"""

from collections.abc import Callable
from typing import Any, no_type_check

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import CausalLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from assay.subjects._max_of_k import eager_attention_forward

__all__ = ["GraphConfig", "GraphForCausalLM", "eager_attention_forward"]


@no_type_check  # transformers rewrites the constructor
class GraphConfig(PreTrainedConfig):
    """Sizes: `vertices` V give V tokens for vertices (the answers), V² for edges and V² for questions."""

    model_type = "assay-graph-search"

    vertices: int = 12
    hidden_size: int = 64
    intermediate_size: int = 128
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    tie_word_embeddings: bool = False


class GraphEmbedding(nn.Module):
    """One vector a token from those of its vertices: source + target of an edge, start + goal of a question."""

    def __init__(self, vertices: int, width: int) -> None:
        super().__init__()
        self.vertices = vertices
        self.single = nn.Parameter(torch.empty(vertices, width))
        self.ends = nn.Parameter(torch.empty(4 * vertices, width))

    @property
    def weight(self) -> Tensor:
        """The vectors of all tokens, (V + 2 V², width)."""
        source, target, start, goal = self.ends.split(self.vertices)
        pairs = [(one[:, None] + other).flatten(0, 1) for one, other in ((source, target), (start, goal))]
        return torch.cat((self.single, *pairs))

    def forward(self, tokens: Int[Tensor, "batch position"]) -> Tensor:
        """The vectors of tokens."""
        return nn.functional.embedding(tokens, self.weight)


class GraphAttention(nn.Module):
    """Heads that see every token; calls whichever attention function the configuration names."""

    def __init__(self, config: GraphConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        width = config.hidden_size
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **keywords: Any) -> Tensor:
        """What attention adds."""
        attention: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        shape = (*hidden_states.shape[:2], -1, self.head_dim)
        query, key, value = (
            projection(hidden_states).reshape(shape).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed, _ = attention(self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **keywords)
        found: Tensor = self.o_proj(mixed.reshape(*mixed.shape[:2], -1).contiguous())
        return found


class GraphLayer(nn.Module):
    """Attention and an MLP, each behind a layer norm and added to the residual stream."""

    def __init__(self, config: GraphConfig, layer_idx: int) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = GraphAttention(config, layer_idx)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **keywords: Any) -> Tensor:
        """The residual stream behind the layer."""
        hidden_states = hidden_states + self.attn(self.ln_1(hidden_states), attention_mask, **keywords)
        found: Tensor = hidden_states + self.mlp(self.ln_2(hidden_states))
        return found


class GraphForCausalLM(PreTrainedModel):
    """A Transformer of sets: logits are those of the V vertices, at every token.

    Its name says what it is asked: an answer that is a token, where the task says so; it is not causal.
    """

    config_class = GraphConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["GraphLayer"]  # noqa: RUF012 (transformers' own convention)

    def __init__(self, config: GraphConfig) -> None:
        super().__init__(config)
        self.embed_tokens = GraphEmbedding(config.vertices, config.hidden_size)
        self.layers = nn.ModuleList([GraphLayer(config, layer) for layer in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vertices, bias=False)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, GraphEmbedding):
            for parameter in module.parameters():
                nn.init.normal_(parameter)

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of tokens."""
        return self.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        """The unembedding of vertices."""
        return self.lm_head

    def forward(
        self,
        input_ids: Int[Tensor, "batch position"],
        attention_mask: Int[Tensor, "batch position"] | None = None,
        **keywords: Any,
    ) -> CausalLMOutput:
        """Logits of every position; `attention_mask` is 0 at padding."""
        hidden = self.embed_tokens(input_ids)
        mask = create_bidirectional_mask(self.config, hidden, attention_mask)
        for layer in self.layers:
            hidden = layer(hidden, attention_mask=mask, **keywords)
        return CausalLMOutput(logits=self.lm_head(self.norm(hidden)))


AutoConfig.register(GraphConfig.model_type, GraphConfig)
AutoModelForCausalLM.register(GraphConfig, GraphForCausalLM)


def graph_model(seed: int, *, vertices: int = 12) -> GraphForCausalLM:
    """A fresh model of 3 layers of 4 heads, width 64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GraphForCausalLM(GraphConfig(vertices=vertices))
