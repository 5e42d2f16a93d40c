"""Paths of transcoders: they add up to the pre-activation, and are those of the MLPs where transcoders are MLPs."""

import numpy as np
import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

import assay
from assay import AssayError
from assay.diagnostics import transcoder_paths
from assay.diagnostics._transcoder_paths import _asked, _Reading
from assay.dictionaries import Dictionary
from assay.engine import Block, Engine, collect
from assay.subjects import Subject
from one_hot import Given, split_of

V, D, LAYERS, HIDDEN = 11, 8, 3, 12


def gpt2():
    config = GPT2Config(
        vocab_size=V, n_positions=12, n_embd=D, n_layer=LAYERS, n_head=2, n_inner=HIDDEN, activation_function="relu",
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


SIZES = {
    "vocab_size": V, "hidden_size": D, "intermediate_size": HIDDEN, "num_hidden_layers": LAYERS,
    "num_attention_heads": 2, "max_position_embeddings": 12, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
MODELS = {
    "gpt2": gpt2,
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "side by side": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, use_parallel_residual=True)),
}


def subject_from(make, seed=0):
    torch.manual_seed(seed)
    model = make().eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.6 if parameter.dim() > 1 else 0.3) + (parameter == 1))
    return Subject(model, None, "random")


@pytest.fixture(scope="module")
def given():
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 11, size=24)
    return Given([split_of(name, rng.integers(V, size=(24, 10)), lengths=lengths) for name in ("train", "iid", "far")])


def recipe_of(dictionaries):
    made = assay.Transcoder()
    made.dictionaries_ = {Block(layer): (one,) for layer, one in dictionaries.items()}
    made.streams_ = dict.fromkeys(made.dictionaries_, ("mlp",))
    return made


def random_dictionary(seed, **options):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Dictionary("relu", draw(D, 20), draw(20), draw(20, D), draw(D), transcodes=True, **options)


@pytest.mark.parametrize("name", MODELS)
def test_contributions_add_up_to_the_pre_activation_at_every_position(name, given):
    """Sources at two MLPs of three, one with a skip connection, one without a transcoder; wrong as random ones are."""
    subject = subject_from(MODELS[name])
    skip = random_dictionary(2, W_skip=torch.randn(D, D, dtype=torch.float64))
    recipe = recipe_of({0: skip, 2: random_dictionary(5, pre_bias=True)})
    engine = Engine(subject)
    target, before = _asked(recipe, None)
    rows = 0
    for number in range(0, 20, 4):
        reading = _Reading.of(engine, target, before, number)
        for _, parts in reading.batches(engine, given.split("iid", 24)):
            total = sum(parts.whole.values()) + np.bincount(parts.row, parts.value, len(parts.pre_activation))
            size = sum(map(abs, parts.whole.values())) + np.bincount(parts.row, abs(parts.value), len(total))
            # Llama's norm computes in float32, whatever the model's dtype.
            assert (np.abs(total - parts.pre_activation) <= (1e-6 if name == "llama" else 1e-12) * size).all()
            rows += len(total)
            assert (parts.pre_activation > 0).all()  # where a ReLU feature is on
    assert rows > 100
    assert set(parts.whole) == {
        "embeddings", *(f"layer{at}.attention" for at in range(2 if name == "side by side" else 3)),
        *(f"layer0.mlp {what}" for what in ("constant", "skip", "error")), "layer1.mlp", "bias",
    }  # fmt: skip


@pytest.fixture(scope="module")
def exact():
    """A model whose MLPs are transcoders, one feature a neuron."""
    subject = subject_from(gpt2)
    blocks = subject.model.transformer.h
    recipe = recipe_of(
        {
            layer: Dictionary(
                "relu", mlp.c_fc.weight.detach(), mlp.c_fc.bias.detach(), mlp.c_proj.weight.detach(),
                mlp.c_proj.bias.detach(), transcodes=True,
            )
            for layer, mlp in ((layer, block.mlp) for layer, block in enumerate(blocks))
        }
    )  # fmt: skip
    return subject, recipe


def by_hand(subject, split, number):
    """Contributions of every neuron of the MLPs before to one of the last, by transformers' own modules."""
    kept = {}
    blocks = subject.model.transformer.h
    hooks = [block.mlp.act.register_forward_hook(lambda _, __, out, at=at: kept.update({at: out})) for at, block in
             enumerate(blocks)]  # fmt: skip
    hooks.append(blocks[-1].ln_2.register_forward_pre_hook(lambda _, inputs: kept.update({"v": inputs[0]})))
    with torch.no_grad():
        subject.model(torch.from_numpy(split.tokens))
    for hook in hooks:
        hook.remove()
    norm, mlp = blocks[-1].ln_2, blocks[-1].mlp
    v = kept["v"]
    deviation = ((v - v.mean(-1, keepdim=True)).square().mean(-1) + norm.eps).sqrt()
    column = mlp.c_fc.weight[:, number]
    on = (kept[LAYERS - 1][..., number] > 0).numpy() & split.valid
    found = {}
    for at in range(LAYERS - 1):
        for neuron in range(HIDDEN):
            written = kept[at][..., neuron, None] * blocks[at].mlp.c_proj.weight[neuron]
            moved = (written - written.mean(-1, keepdim=True)) / deviation[..., None] * norm.weight
            found[f"layer{at}.mlp feature {neuron}"] = (moved @ column).detach().numpy()[on]
    return found, on


def test_paths_of_exact_transcoders_are_those_of_the_neurons(exact, given):
    subject, recipe = exact
    found = transcoder_paths(subject, given, recipe, 3, count=5, resamples=200)
    for name in ("iid", "far"):
        own = found[found["split"] == name].set_index("source")
        known, on = by_hand(subject, given.split(name, 24), 3)
        assert own["positions"].iloc[0] == on.sum()
        for source, values in known.items():
            if source in own.index:
                row = own.loc[source]
                assert row["contribution"] == pytest.approx(values.mean())
                assert row["contribution_low"] <= row["contribution"] <= row["contribution_high"]
                assert row["together"] == pytest.approx((values != 0).mean())
        shown = [values for source, values in known.items() if source in own.index]
        assert len(shown) == 5
        rest = sum(values for source, values in known.items() if source not in own.index)
        assert own.loc["other features", "contribution"] == pytest.approx(rest.mean())
        for at in range(LAYERS - 1):
            assert own.loc[f"layer{at}.mlp error", "contribution"] == pytest.approx(0, abs=1e-12)
            assert own.loc[f"layer{at}.mlp error", "share"] == pytest.approx(0, abs=1e-12)
        parts = own.drop(index="pre-activation")
        assert parts["contribution"].sum() == pytest.approx(own.loc["pre-activation", "contribution"])
        assert parts["share"].sum() == pytest.approx(1)
        assert own.loc["pre-activation", "contribution"] > 0
    first = found[found["split"] == "iid"]
    assert first["weight"].notna().sum() == 5
    assert first.iloc[0]["target"] == "layer2.mlp feature 3"
    shown = first[first["feature"].notna()]
    assert list(shown["source"]) == [f"layer{row.layer}.mlp feature {row.feature}" for row in shown.itertuples()]


def test_what_transcoders_leave_out_is_in_the_error(exact, given):
    """Transcoders that write nothing: all of the MLP is error, and features have no share."""
    subject, recipe = exact
    silent = {
        place.layer: Dictionary(
            "relu", one.W_enc, one.b_enc, torch.zeros_like(one.W_dec), torch.zeros_like(one.b_dec), transcodes=True
        )
        for place, (one,) in recipe.dictionaries_.items()
    }
    options = {"splits": ["iid"], "resamples": 50}
    exactly = transcoder_paths(subject, given, recipe, 3, count=99, **options).set_index("source")["contribution"]
    found = transcoder_paths(subject, given, recipe_of(silent), 3, **options).set_index("source")["contribution"]
    for at in range(LAYERS - 1):
        whole = [value for source, value in exactly.items() if source.startswith(f"layer{at}.mlp ")]
        assert found[f"layer{at}.mlp error"] == pytest.approx(sum(whole))
        assert found[f"layer{at}.mlp constant"] == 0
    assert found["other features"] == 0
    for source in ("embeddings", "layer1.attention", "bias", "pre-activation"):
        assert found[source] == pytest.approx(exactly[source])


def test_trained_transcoders_in_float32_of_a_shipped_sort(subject):
    rng = np.random.default_rng(1)
    given = Given([split_of(name, rng.integers(8, size=(20, 12))) for name in ("train", "iid", "far")])
    engine = Engine(subject)
    at = collect(engine, given.split("train", 20), ()).at(engine.site("all.mlp"))
    trained = assay.Transcoder(k=4, features=32, steps=20, batch=64).fit(at)
    on = assay.diagnostics.feature_use(subject, given, trained, place="layer1.mlp", splits=["iid"])["on"]
    found = transcoder_paths(
        subject, given, trained, int(on.idxmax()), place="layer1.mlp", splits=["iid"], resamples=50
    ).set_index("source")
    parts = found.drop(index="pre-activation")
    size = parts["contribution"].abs().sum()
    assert parts["contribution"].sum() == pytest.approx(found.loc["pre-activation", "contribution"], abs=1e-4 * size)
    assert found.loc["layer0.mlp error", "share"] > 0


def test_a_target_that_is_never_on_has_a_reason(exact, given):
    subject, recipe = exact
    dead = {place.layer: one for place, (one,) in recipe.dictionaries_.items()}
    last = dead[2]
    dead[2] = Dictionary("relu", last.W_enc, last.b_enc - 1e6, last.W_dec, last.b_dec, transcodes=True)
    found = transcoder_paths(subject, given, recipe_of(dead), 0, resamples=50)
    assert list(found["reason"]) == ["the target is never on there"] * 2


def test_what_does_not_add_up_and_bad_calls_are_refused(exact, given):
    subject, recipe = exact
    sizes = {**SIZES, "head_dim": 4, "num_key_value_heads": 2}
    behind = subject_from(lambda: Gemma2ForCausalLM(Gemma2Config(**sizes)))
    with pytest.raises(AssayError, match="no sum to take apart"):
        transcoder_paths(behind, given, recipe, 0, resamples=50)
    with pytest.raises(AssayError, match=r"no transcoder before layer0\.mlp"):
        transcoder_paths(subject, given, recipe, 0, place="layer0.mlp")
    with pytest.raises(AssayError, match="features 0 to 11"):
        transcoder_paths(subject, given, recipe, 12)
    with pytest.raises(AssayError, match="count=0"):
        transcoder_paths(subject, given, recipe, 1, count=0)
    mixed = recipe_of({0: random_dictionary(0), 2: random_dictionary(1, normalization="layer_norm")})
    with pytest.raises(AssayError, match="normalizes what it encodes"):
        transcoder_paths(subject, given, mixed, 1)
    eye = torch.eye(D, dtype=torch.float64)
    plain = recipe_of({0: Dictionary("relu", eye, eye[0], eye, eye[0]), 2: random_dictionary(1)})
    with pytest.raises(AssayError, match="is no transcoder"):
        transcoder_paths(subject, given, plain, 1)
