"""Paths of transcoders: they add up to the pre-activation, and are those of the MLPs where transcoders are MLPs."""

from dataclasses import replace

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
from assay.diagnostics._transcoder_paths import _asked, _Circuit
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


def assert_closed(parts, name):
    total = sum(parts.whole.values()) + np.bincount(parts.row, parts.value, len(parts.total))
    size = sum(map(abs, parts.whole.values())) + np.bincount(parts.row, abs(parts.value), len(total))
    # Llama's norm computes in float32, whatever the model's dtype.
    assert (np.abs(total - parts.total) <= (1e-6 if name == "llama" else 1e-12) * size).all()


@pytest.mark.parametrize("name", MODELS)
def test_contributions_add_up_to_the_pre_activation_at_every_position(name, given):
    """Sources at two MLPs of three, one with a skip connection, one without a transcoder; wrong as random ones are."""
    subject = subject_from(MODELS[name])
    skip = random_dictionary(2, W_skip=torch.randn(D, D, dtype=torch.float64))
    recipe = recipe_of({0: skip, 2: random_dictionary(5, pre_bias=True)})
    engine = Engine(subject)
    circuit = _Circuit(engine, *_asked(recipe, None))
    rows = 0
    for number in range(0, 20, 4):
        for _, [parts] in circuit.batches(given.split("iid", 24), [circuit.node(number)]):
            assert_closed(parts, name)
            rows += len(parts.total)
            assert (parts.total > 0).all()  # where a ReLU feature is on
            assert (parts.ratio == 1).all()
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


# -- paths of several steps -------------------------------------------------------------------------------------------


def gated_dictionary(seed):
    given = random_dictionary(seed)
    more = {"r_mag": given.b_enc / 3, "b_mag": given.b_dec.repeat(3)[:20].abs()}
    return Dictionary(
        "gated", given.W_enc, given.b_enc, given.W_dec, given.b_dec, transcodes=True, pre_bias=True, **more
    )


@pytest.mark.parametrize("name", MODELS)
def test_paths_of_several_steps_add_up_at_every_position(name, given):
    """What all sources of a feature on a path add is what the path adds, in contributions and in shares."""
    subject = subject_from(MODELS[name])
    gated, topk, last = gated_dictionary(2), random_dictionary(3), random_dictionary(5)
    topk = Dictionary("topk", topk.W_enc, topk.b_enc + 3, topk.W_dec, topk.b_dec, k=15, transcodes=True)
    often = {0: replace(gated, b_enc=gated.b_enc + 3), 1: topk, 2: replace(last, b_enc=last.b_enc + 3)}
    circuit = _Circuit(Engine(subject), *_asked(recipe_of(often), None))
    root = circuit.node(4)
    middle = [root.back(20 + 7), root.back(9)]
    nodes = [root, *middle, *(middle[0].back(feature) for feature in (3, 11))]
    assert [node.steps for node in nodes] == [1, 2, 2, 3, 3]
    assert nodes[3].path == "layer0.mlp feature 3 -> layer1.mlp feature 7 -> layer2.mlp feature 4"
    met = np.zeros(len(nodes))
    for _, every in circuit.batches(given.split("iid", 24), nodes):
        for node, parts in zip(nodes, every, strict=True):
            assert_closed(parts, name)
            met[nodes.index(node)] += len(parts.total)
        for child, parent, feature in ((1, 0, 27), (2, 0, 9), (3, 1, 3), (4, 1, 11)):
            own, after = every[child], every[parent]
            entries = after.feature == feature
            np.testing.assert_allclose(after.value[entries].sum(), own.total.sum(), rtol=1e-5)
            share = np.abs(own.value) @ own.ratio[own.row] + sum(
                np.abs(part) @ own.ratio for part in own.whole.values()
            )
            np.testing.assert_allclose(share, np.abs(after.value[entries]) @ after.ratio[after.row[entries]], rtol=1e-5)
    assert (met > 10).all()


def test_two_steps_of_exact_transcoders_are_those_of_the_neurons(exact, given):
    subject, recipe = exact
    found = transcoder_paths(subject, given, recipe, 3, steps=2, count=8, splits=["iid"], resamples=100)
    deeper = found[(found["steps"] == 2) & found["feature"].notna()]
    assert len(deeper) == 8
    split = given.split("iid", 24)
    kept = {}
    blocks = subject.model.transformer.h
    hooks = [block.mlp.act.register_forward_hook(lambda _, __, out, at=at: kept.update({at: out})) for at, block in
             enumerate(blocks)]  # fmt: skip
    hooks += [block.ln_2.register_forward_pre_hook(lambda _, inputs, at=at: kept.update({f"v{at}": inputs[0]})) for
              at, block in enumerate(blocks)]  # fmt: skip
    with torch.no_grad():
        subject.model(torch.from_numpy(split.tokens))
    for hook in hooks:
        hook.remove()

    def read(at, written, number):
        """What a neuron reads in what was written, behind the norm as it was."""
        v, norm = kept[f"v{at}"], blocks[at].ln_2
        deviation = ((v - v.mean(-1, keepdim=True)).square().mean(-1) + norm.eps).sqrt()
        moved = (written - written.mean(-1, keepdim=True)) / deviation[..., None] * norm.weight
        return moved @ blocks[at].mlp.c_fc.weight[:, number]

    on = (kept[2][..., 3] > 0).numpy() & split.valid
    for row in deeper.itertuples():
        middle = int(row.path.split(" -> ")[1].split()[-1])
        between = 1 if "layer1.mlp feature" in row.path.split(" -> ")[1] else 0
        assert (row.layer, between) == (0, 1), "the first step back is at layer 1"
        arrives = read(1, kept[0][..., row.feature, None] * blocks[0].mlp.c_proj.weight[row.feature], middle)
        passes = read(2, torch.ones_like(arrives)[..., None] * blocks[1].mlp.c_proj.weight[middle], 3)
        values = (arrives * passes * (kept[1][..., middle] > 0)).detach().numpy()[on]
        assert row.contribution == pytest.approx(values.mean())
        assert row.contribution_low <= row.contribution <= row.contribution_high
        assert row.error == pytest.approx(0, abs=1e-12)


CONTRASTS = torch.tensor(
    [[1, -1, 0, 0, 0, 0, 0, 0], [0, 0, 1, -1, 0, 0, 0, 0], [0, 0, 0, 0, 1, -1, 0, 0], [0, 0, 0, 0, 0, 0, 1, -1]],
    dtype=torch.float64,
)


def planted():
    """A chain: tokens write the first contrast, neuron 2 of layer 0 reads it and writes the second, neuron 5 of layer 1
    reads that and writes the third, neuron 7 of layer 2 reads that; nothing else writes, and contrasts have no mean.
    """
    subject = subject_from(gpt2)
    model = subject.model.transformer
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.wte.weight.copy_(torch.arange(1, V + 1)[:, None] * CONTRASTS[0] + CONTRASTS[3])
        for at, (block, neuron) in enumerate(zip(model.h, (2, 5, 7), strict=True)):
            # Attention writes, too, but nothing that is read.
            block.attn.c_proj.bias.copy_(CONTRASTS[3])
            block.ln_1.weight.fill_(1)
            block.ln_2.weight.fill_(1)
            block.mlp.c_fc.weight[:, neuron] = CONTRASTS[at]
            if at + 1 < LAYERS:
                block.mlp.c_proj.weight[neuron] = 2 * CONTRASTS[at + 1]
    return subject


def test_a_planted_chain_is_found_with_the_errors_beside_it(given):
    """Transcoders that decode 0.5 and 0.6 of what MLPs give: the shares of paths and errors are known."""
    subject = planted()
    made = {}
    for at, (block, kept) in enumerate(zip(subject.model.transformer.h, (0.5, 0.6, 1), strict=True)):
        mlp = block.mlp
        made[at] = Dictionary(
            "relu", mlp.c_fc.weight.detach(), mlp.c_fc.bias.detach(), mlp.c_proj.weight.detach() * kept,
            mlp.c_proj.bias.detach(), transcodes=True,
        )  # fmt: skip
    found = transcoder_paths(subject, given, recipe_of(made), 7, steps=5, splits=["iid"], resamples=50)
    found = found.set_index("path")
    end = "layer2.mlp feature 7"
    one, two = f"layer1.mlp feature 5 -> {end}", f"layer0.mlp feature 2 -> layer1.mlp feature 5 -> {end}"
    total = found.loc[end, "contribution"]
    for path, share, error in (
        (one, 0.6, 0.4),
        (f"layer1.mlp error -> {end}", 0.4, 0.4),
        (two, 0.3, 0.5),
        (f"layer0.mlp error -> {one}", 0.3, 0.5),
        (f"embeddings -> {two}", 0.3, 0.0),
    ):
        row = found.loc[path]
        assert row["share"] == pytest.approx(share)
        assert row["contribution"] == pytest.approx(share * total)
        assert row["error"] == pytest.approx(error)
        assert row["steps"] == path.count("->")
    assert found.loc[two, "weight"] == pytest.approx(0.6 * 0.5 * 4 * 2 * 2)
    assert found.loc[two, "together"] == 1
    rest = found.drop(index=[end, one, two, f"layer1.mlp error -> {end}", f"layer0.mlp error -> {one}",
                             f"embeddings -> {two}"])  # fmt: skip
    np.testing.assert_allclose(rest["share"], 0, atol=1e-12)
    assert found["steps"].max() == 3, "there is nothing before layer 0 but the embeddings"


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
    for wrong in ({"count": 0}, {"steps": 0}):
        with pytest.raises(AssayError, match=r"=0\): must be at least 1"):
            transcoder_paths(subject, given, recipe, 1, **wrong)
    mixed = recipe_of({0: random_dictionary(0), 2: random_dictionary(1, normalization="layer_norm")})
    with pytest.raises(AssayError, match="normalizes what it encodes"):
        transcoder_paths(subject, given, mixed, 1)
    earlier = recipe_of({0: random_dictionary(0, normalization="layer_norm"), 2: random_dictionary(1)})
    assert len(transcoder_paths(subject, given, earlier, 1, splits=["iid"], resamples=50))
    with pytest.raises(AssayError, match=r"transcoder at layer0\.mlp normalizes what it encodes"):
        transcoder_paths(subject, given, earlier, 1, steps=2)
    eye = torch.eye(D, dtype=torch.float64)
    plain = recipe_of({0: Dictionary("relu", eye, eye[0], eye, eye[0]), 2: random_dictionary(1)})
    with pytest.raises(AssayError, match="is no transcoder"):
        transcoder_paths(subject, given, plain, 1)
