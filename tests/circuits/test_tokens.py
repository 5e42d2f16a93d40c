import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from assay import AssayError
from assay.circuits import token_scores
from assay.subjects import Subject
from small_decoder import random_decoder


def shifting(vocabulary=10):
    """Layer 0 maps every token to the next one of a circle, layer 1 to itself, layer 2 to the one before."""
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=4, n_embd=vocabulary, n_layer=3, n_head=1, tie_word_embeddings=False,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval().double()
    one = torch.eye(vocabulary, dtype=torch.float64)
    with torch.no_grad():
        model.transformer.wte.weight.copy_(one)
        model.lm_head.weight.copy_(one)
        for block, step in zip(model.transformer.h, (1, 0, -1), strict=True):
            block.attn.c_attn.weight[:, 2 * vocabulary :] = one
            block.attn.c_proj.weight.copy_(one.roll(step, dims=1))
            block.mlp.c_proj.weight.zero_()
    return Subject(model, None, "shifting")


@pytest.mark.parametrize("cyclic", [True, False])
@pytest.mark.parametrize("effective", [True, False])
def test_a_shift_is_a_successor_and_the_identity_copies(cyclic, effective):
    found = token_scores(shifting(), [list(range(10))], cyclic=cyclic, effective=effective)
    for scores in (found.among, found.overall):
        assert scores["successor"][:, 0].tolist() == [1, 0, 0]
        assert scores["copying"][:, 0].tolist() == [0, 1, 0]
        assert scores["predecessor"][:, 0].tolist() == [0, 0, 1]
    assert found.chance == 0.1


def test_the_largest_among_the_series_may_not_be_the_largest():
    found = token_scores(shifting(), [[0, 2, 4, 6]], effective=False)
    # The next token, 1, is in no series of even numbers: within it all others are equal.
    assert found.overall["successor"][0, 0] == 0
    assert found.overall["copying"][1, 0] == found.among["copying"][1, 0] == 1


def test_random_heads_have_about_what_chance_gives():
    subject = random_decoder(layers=3, heads=4, vocabulary=40)
    found = token_scores(subject, [list(range(20)), list(range(20, 40))])
    assert found.chance == 1 / 20
    assert found.among["successor"].shape == (3, 4)
    assert np.mean(found.among["successor"]) < 0.12
    # Among all tokens a hit is a hit among few.
    assert (found.overall["successor"] <= found.among["successor"]).all()


def test_bad_series_are_refused():
    with pytest.raises(AssayError, match="at least three tokens, all different"):
        token_scores(shifting(), [[0, 1, 1]])
    with pytest.raises(AssayError, match="below 10"):
        token_scores(shifting(), [[8, 9, 10]])
