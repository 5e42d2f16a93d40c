"""A graph's features alone, in the place of all MLPs: what is left of a replacement model without the others."""

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import assay
from assay import AssayError, AttributionGraph, KeptFeatures
from assay.diagnostics import attribution_claims
from assay.dictionaries import (
    CrossLayerReplacement,
    Dictionary,
    GivenDictionary,
    RandomFeatures,
    Replacement,
    read_replacement,
)
from assay.engine import Engine, collect
from assay.subjects import Subject
from assay.tasks import Kind, Split

FILES = Path(__file__).parent / "attribution_graphs"
PROMPT = [0, 5, 9, 3, 14]


@pytest.fixture(scope="module")
def tiny():
    """The model that the graphs are of."""
    return Subject(AutoModelForCausalLM.from_pretrained(FILES / "tiny").eval(), None, "tiny")


@pytest.fixture(scope="module")
def train():
    tokens = torch.randint(23, (20, 6), generator=torch.Generator().manual_seed(0)).numpy()
    return Split("train", "train", "at random", tokens, tokens[:, 0] * 0 + 6, tokens * 0)


@pytest.fixture(scope="module")
def samples(tiny, train):
    engine = Engine(tiny)
    return collect(engine, train, ()).at(engine.site("all.mlp"))


def exact(tiny):
    """Each MLP of ReLUs as the transcoder that it is."""
    return Replacement(
        [
            GivenDictionary(
                Dictionary(
                    "relu", *(part.detach() for part in (block.mlp.c_fc.weight, block.mlp.c_fc.bias)),
                    *(part.detach() for part in (block.mlp.c_proj.weight, block.mlp.c_proj.bias)), transcodes=True,
                ),
                site=f"layer{layer}.mlp",
            )
            for layer, block in enumerate(tiny.model.transformer.h)
        ]
    )  # fmt: skip


def hooked(subject, tokens, replaced):
    """Logits with the MLP of each layer giving replaced(layer, entered, given)."""
    handles = [
        block.mlp.register_forward_hook(lambda module, inputs, given, layer=layer: replaced(layer, inputs[0], given))
        for layer, block in enumerate(subject.model.transformer.h)
    ]
    try:
        return subject(tokens)
    finally:
        for handle in handles:
            handle.remove()


@pytest.fixture(params=["transcoders", "cross-layer"])
def case(request):
    """A graph, its dictionaries, and what they give by hand of masks, means and what entered all layers up to one."""
    folder = FILES / request.param
    replacement = read_replacement(folder)

    def given(layer, entered, masks, means):
        if request.param == "cross-layer":
            made = replacement.own
            codes = [(x @ made.W_enc[at] + made.b_enc[at]).relu() for at, x in enumerate(entered)]
            codes = [torch.where(mask, z, mean) for z, mask, mean in zip(codes, masks, means, strict=False)]
            return made.b_dec[layer] + sum(z @ made.W_dec[at][:, layer - at] for at, z in enumerate(codes))
        own = replacement.parts[layer].own
        z = torch.where(masks[layer], (entered[layer] @ own.W_enc + own.b_enc).relu(), means[layer])
        return z @ own.W_dec + own.b_dec

    return AttributionGraph.read(folder.with_suffix(".pt")).pruned(), replacement, given


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_kept_features_alone_stand_for_the_mlps(tiny, samples, train, case, ablation):
    graph, replacement, given = case
    recipe = KeptFeatures(graph, replacement, ablation=ablation).fit(samples)
    masks = [torch.zeros(16, dtype=torch.bool) for _ in range(3)]
    for layer, _, number in graph.features.tolist():
        masks[layer][number] = True
    assert {layer: tuple(mask.nonzero()[:, 0].tolist()) for layer, mask in enumerate(masks)} == graph.kept
    means = [torch.zeros(16)] * 3
    if ablation == "mean":
        entered = {}
        hooked(tiny, torch.from_numpy(train.tokens), lambda layer, x, own: entered.update({layer: x}))
        parts = [(replacement.own.W_enc[at], replacement.own.b_enc[at]) for at in range(3)] if isinstance(
            replacement, CrossLayerReplacement
        ) else [(part.own.W_enc, part.own.b_enc) for part in replacement.parts]  # fmt: skip
        means = [(entered[at] @ W + b).relu().mean(dim=(0, 1)) for at, (W, b) in enumerate(parts)]
    entered = []

    def replaced(layer, x, own):
        entered.append(x)
        return torch.cat([own[:, :1], given(layer, entered, masks, means)[:, 1:]], dim=1)

    tokens = torch.tensor([PROMPT, PROMPT[::-1]])
    by_hand = hooked(tiny, tokens, replaced)
    torch.testing.assert_close(recipe.apply(tiny)(tokens), by_hand, rtol=1e-4, atol=1e-4)
    assert (tiny(tokens) - by_hand).abs().max() > 0.1


def test_exact_transcoders_with_all_features_are_the_subject(tiny):
    claims = attribution_claims(FILES / "exact.pt", tiny, exact(tiny))
    runs = claims.runs.set_index("run")
    assert runs["same_prediction"].drop("no features").all()
    assert (runs["kl"].drop("no features") < 1e-9).all()
    assert runs.at["no features", "kl"] > 0.1
    assert claims.claimed_error < 1e-6
    assert claims.activation_error < 1e-5
    assert claims.off == 0
    # And pruned to a tenth of the features, a score of 1 says nothing of what is left.
    kept = attribution_claims(AttributionGraph.read(FILES / "exact.pt").pruned(), tiny, exact(tiny))
    assert kept.scores.replacement == pytest.approx(1)
    assert kept.runs.set_index("run").at["kept where the graph has them", "kl"] > 0.1


def test_claims_are_those_of_runs_by_hand(tiny, case):
    graph, replacement, given = case
    claims = attribution_claims(graph, tiny, replacement)
    masks = torch.zeros(3, len(PROMPT), 16, dtype=torch.bool)
    layer, position, number = graph.features.T
    masks[layer, position, number] = True
    tokens = torch.tensor([PROMPT])
    for name, mask, first in (
        ("replacement", torch.ones_like(masks), 0),
        ("replacement, first token aside", torch.ones_like(masks), 1),
        ("kept where the graph has them", masks, 1),
        ("kept at every position", masks.any(dim=1, keepdim=True).expand(masks.shape), 1),
        ("no features", torch.zeros_like(masks), 1),
    ):
        entered = []

        def replaced(layer, x, own, *, mask=mask, first=first, entered=entered):
            entered.append(x)
            found = given(layer, entered, mask, torch.zeros(3, 1))
            return torch.cat([own[:, :first], found[:, first:]], dim=1)

        logs = hooked(tiny, tokens, replaced)[0, -1].double().log_softmax(dim=0)
        clean = tiny(tokens)[0, -1].double().log_softmax(dim=0)
        row = claims.runs.set_index("run").loc[name]
        assert row["kl"] == pytest.approx(float((clean.exp() * (clean - logs)).sum()), abs=1e-5)
        assert row["predicted"] == int(logs.argmax())
        assert claims.answers[name].tolist() == pytest.approx(logs[graph.targets].exp().tolist(), abs=1e-5)
    assert claims.answers["claimed"].tolist() == pytest.approx(claims.answers["subject"].tolist(), abs=1e-6)
    assert claims.answers["text"].tolist() == ["w8", "w11", "w7", "w20"]
    assert claims.activation_error < 1e-5


def test_a_graph_of_other_dictionaries_or_another_model_is_seen(tiny):
    other = attribution_claims(FILES / "transcoders.pt", tiny, FILES / "cross-layer")
    assert other.activation_error < 1e-5, "their encoders are the same"
    model = AutoModelForCausalLM.from_pretrained(FILES / "tiny").eval()
    with torch.no_grad():
        model.transformer.h[0].attn.c_proj.weight.mul_(2)
    changed = attribution_claims(FILES / "transcoders.pt", Subject(model, None, "other"), FILES / "transcoders")
    assert changed.activation_error > 0.01
    assert changed.claimed_error > 0.01


class ByChance:
    """Tokens at random, in distribution and beyond."""

    name, primary_kind, features, split_names = "by chance", "all", (), ("train", "iid", "others")
    kinds = (Kind("any", "any token"),)

    def split(self, name, sequences):
        generator = torch.Generator().manual_seed(self.split_names.index(name))
        tokens = torch.randint(23, (sequences, 6), generator=generator).numpy()
        role = name if name in ("train", "iid") else "shift"
        return Split(name, role, name, tokens, tokens[:, 0] * 0 + 6, tokens * 0)

    def describe(self):
        return {}


def test_kept_features_are_compared_beside_random_and_no_features(tiny):
    recipe = KeptFeatures(FILES / "transcoders.json", exact(tiny))
    comparison = assay.compare(tiny, ByChance(), [recipe], sequences=10, fit_sequences=20, resamples=50)
    (verdict,) = comparison.verdicts()
    assert (verdict.site, verdict.proxy) == ("all.mlp", "KeptFeatures(11 of 3 layers, ablation='zero')")
    text = " ".join(comparison.to_frame()["proxy"].unique())
    assert "RandomFeatures(11 of 3 layers, ablation='zero')" in text
    assert "NoFeatures(ablation='zero')" in text


def test_random_features_are_drawn_as_often_as_they_are_on(tiny, samples):
    replacement = read_replacement(FILES / "transcoders")
    # Three features are never on, and one nearly never.
    first = replacement.parts[0].own
    bias = first.b_enc.clone()
    bias[:3] = -1e3
    own = Replacement(
        [GivenDictionary(dataclasses.replace(first, b_enc=bias), site="layer0.mlp"), *replacement.parts[1:]]
    )
    control = KeptFeatures(FILES / "transcoders.json", own).control()
    assert control.counts == (6, 4, 1)
    first, again, other = (one.fit(samples) for one in (control, dataclasses.replace(control), control.redrawn(1)))
    assert [int(mask.sum()) for mask in first.kept_] == [6, 4, 1]
    assert all(map(torch.equal, first.kept_, again.kept_))
    assert not all(map(torch.equal, first.kept_, other.kept_))
    for seed in range(5):
        assert not RandomFeatures(own, (13, 0, 0), seed=seed).fit(samples).kept_[0][:3].any()
    whole = RandomFeatures(own, (16, 16, 16)).fit(samples).apply(tiny)
    with_first = hooked(
        tiny, torch.tensor([PROMPT]),
        lambda layer, x, given: torch.cat([given[:, :1], own.parts[layer].own.reconstruct(x[0])[None, 1:]], dim=1),
    )  # fmt: skip
    torch.testing.assert_close(whole(torch.tensor([PROMPT])), with_first, rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_refused(tiny, subject, samples, tmp_path):
    graph, replacement = AttributionGraph.read(FILES / "transcoders.pt"), read_replacement(FILES / "transcoders")
    with pytest.raises(AssayError, match="has attention in the blocks of number 0, 1, and 2 is none of them"):
        KeptFeatures(graph, replacement).check(subject, [])
    one_more = AttributionGraph(
        4, graph.tokens, graph.features, graph.activations, graph.errors, graph.targets, graph.probabilities,
        graph.weights,
    )  # fmt: skip
    with pytest.raises(AssayError, match="of a model of 4 layers, and 'tiny' has 3"):
        KeptFeatures(one_more, replacement).check(tiny, [])
    fewer = Replacement(replacement.parts[:2])
    with pytest.raises(AssayError, match="no transcoder for the MLP of layer2"):
        KeptFeatures(graph, fewer).fit(samples)
    narrow = [
        GivenDictionary(
            Dictionary("relu", torch.ones(8, 3), torch.zeros(3), torch.ones(3, 8), torch.zeros(8), transcodes=True),
            site=f"layer{layer}.mlp",
        )
        for layer in range(3)
    ]
    with pytest.raises(AssayError, match="has feature 15 of layer 0, whose dictionary has 3"):
        KeptFeatures(graph, Replacement(narrow)).fit(samples)
    residual = [GivenDictionary(one.own, site=one.site) for one in narrow]
    residual[0].dictionary = Dictionary("relu", torch.ones(8, 3), torch.zeros(3), torch.ones(3, 8), torch.zeros(8))
    with pytest.raises(AssayError, match="does not stand for an MLP"):
        KeptFeatures(graph, Replacement(residual)).fit(samples)
    recipe = KeptFeatures(graph, replacement)
    with pytest.raises(AssayError, match="has not been fitted"):
        recipe.apply(tiny)
    recipe.ablation = "resample"  # past the types that tests check
    with pytest.raises(AssayError, match="zero or mean"):
        recipe.fit(samples)
    with pytest.raises(AssayError, match="0 or more"):
        KeptFeatures(graph, replacement, untouched=-1).fit(samples)
    with pytest.raises(AssayError, match="layer 0 has 16 features, and 17"):
        RandomFeatures(replacement, (17, 0, 0)).fit(samples)
    (tmp_path / "layer_1.safetensors").write_bytes(b"")
    with pytest.raises(AssayError, match="of the layers 1; a set has layer_0"):
        read_replacement(tmp_path)
    targets = AttributionGraph(
        graph.layers, graph.tokens, graph.features, graph.activations, graph.errors, graph.targets + 19,
        graph.probabilities, graph.weights,
    )  # fmt: skip
    with pytest.raises(AssayError, match="targets go up to 39, and 'tiny' has 23 tokens"):
        attribution_claims(targets, tiny, replacement)
