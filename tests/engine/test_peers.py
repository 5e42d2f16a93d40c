"""The numbers of the tools that Assay could be replaced by, where they are installed (the extra `peers`)."""

import pytest
from transformers import GPT2Config, LlamaConfig

import peers

CONFIGURATIONS = {
    "gpt2": GPT2Config(
        vocab_size=61, n_positions=24, n_embd=32, n_layer=3, n_head=4, initializer_range=0.25, **peers.ENDS
    ),
    "llama": LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=24,
        initializer_range=0.25,
        **peers.ENDS,
    ),
}
PACKAGES = {"TransformerLens": "transformer_lens", "nnsight": "nnsight"}


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def job(request, tmp_path_factory) -> peers.Job:
    return peers.make(
        CONFIGURATIONS[request.param], tmp_path_factory.mktemp("model"), sequences=5, positions=24, ranks=(1, 3, 8)
    )


@pytest.fixture(scope="module")
def ours(job) -> peers.Results:
    return peers.WithAssay(job)(range(job.layers))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tool", list(peers.TOOLS.values())[1:], ids=lambda tool: tool.name)
def test_peers_give_the_same_numbers(tool, job, ours):
    if tool.name in PACKAGES:
        pytest.importorskip(PACKAGES[tool.name])
    theirs = tool(job)(range(job.layers))
    assert theirs.keys() == ours.keys()
    assert peers.difference(ours, theirs) < 1e-5


def test_the_numbers_are_worth_comparing(job, ours):
    """Projections change predictions and attention at every layer, except on all directions."""
    for (_, rank), (same, kl, attention_jsd) in ours.items():
        if rank == 8:
            assert same == 1
            assert max(kl, attention_jsd) < 1e-6
        else:
            assert same < 1
            assert min(kl, attention_jsd) > 1e-3
