import copy
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from small_subjects import subject_of
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

import assay
from assay import AssayError
from assay.circuits import RandomValueVectors, ValueVectorEdit, value_vectors
from assay.circuits._value_vectors import _Values
from assay.engine import Engine, collect
from assay.simplify import label
from assay.subjects import Subject
from assay.tasks import Kind, Split
from small_decoder import pairs_of

WORDS, TOKEN, NEURON, PUSH = 12, 7, 5, 3.0
PLANTED = (1, NEURON)


def _base(kind, width=16):
    """Two layers with random weights, and norms with weights; the MLP of the second never acts."""
    torch.manual_seed(3)
    sizes = {"vocab_size": WORDS, "bos_token_id": None, "eos_token_id": None, "tie_word_embeddings": False}
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(**sizes, n_positions=8, n_embd=width, n_layer=2, n_head=2))
    else:
        sizes |= {"hidden_size": width, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=8, mlp_bias=True))
    model = model.double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
            else:
                parameter.normal_(std=0.3)
        # Each token has a direction of its own, as wide as those of the others.
        model.lm_head.weight.copy_(4 * torch.linalg.qr(model.lm_head.weight.T).Q.T)
        if kind == "gpt2":
            mlp = model.transformer.h[1].mlp
            mlp.c_fc.weight.zero_()
            mlp.c_fc.bias.fill_(-100)  # of which GELU makes 0
            mlp.c_proj.weight[NEURON] = 0
        else:
            mlp = model.model.layers[1].mlp
            mlp.up_proj.weight.zero_()
            mlp.up_proj.bias.zero_()
            mlp.down_proj.weight[:, NEURON] = 0
    return Subject(model, None, f"without-bias-{kind}")


def _planted(kind, sign=1):
    """The same with one neuron of the second layer that is always active, by `sign`, and writes one token."""
    base = _base(kind)
    model = copy.deepcopy(base.model)
    direction = sign * PUSH * _Values.of(base).direction(TOKEN)
    with torch.no_grad():
        if kind == "gpt2":
            mlp = model.transformer.h[1].mlp
            mlp.c_fc.bias[NEURON] = 3
            mlp.c_proj.weight[NEURON] = direction
        else:
            mlp = model.model.layers[1].mlp
            mlp.gate_proj.weight[NEURON] = 0
            mlp.gate_proj.bias[NEURON] = 3
            mlp.up_proj.bias[NEURON] = sign
            mlp.down_proj.weight[:, NEURON] = direction
    return base, Subject(model, None, f"planted-{kind}")


CASES = [("gpt2", 1), ("llama", 1), ("llama", -1)]


def _samples(subject, split):
    return collect(Engine(subject), split, ())


def _edit(**options):
    return ValueVectorEdit(TOKEN, **{"least_gap": 1.0, "strength": PUSH, **options})


@pytest.mark.parametrize(("kind", "sign"), CASES)
@pytest.mark.parametrize("options", [{}, {"edit": "remove", "strength": 1.0}])
def test_the_planted_neuron_is_found_and_taken_out_with_nothing_else(kind, sign, options):
    base, planted = _planted(kind, sign)
    split = pairs_of(base, "train")
    tokens = torch.from_numpy(split.tokens)
    biased = planted(tokens)[:, -1].argmax(dim=-1) == TOKEN
    assert biased.double().mean() > 0.9
    fitted = _edit(**options).fit(_samples(planted, split))
    assert PLANTED in fitted.neurons_
    only = _edit(**options, neurons=1).fit(_samples(planted, split))
    assert [place for place in only.neurons_ if place[0] == 1] == [PLANTED]
    only.neurons_ = (PLANTED,)
    torch.testing.assert_close(only.apply(planted)(tokens), base(tokens), rtol=0, atol=1e-9)
    half = copy.copy(only)
    half.strength = only.strength / 2
    assert (half.apply(planted)(tokens) - base(tokens)).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_random_neurons_that_never_act_change_nothing(kind):
    base, planted = _planted(kind)
    split = pairs_of(base, "train")
    tokens = torch.from_numpy(split.tokens)
    control = _edit(least_gap=_only_planted(planted, split)).control().fit(_samples(planted, split))
    assert control.fitted_.neurons_ == (PLANTED,)
    for number in range(5):
        again = control.redrawn(number)
        again.fitted_ = control.fitted_
        torch.testing.assert_close(again.apply(planted)(tokens), planted(tokens), rtol=0, atol=1e-12)


def _only_planted(subject, split):
    """A gap that nothing but the planted neuron has: just below its own, which no other can exceed."""
    low = 0.0
    for _ in range(40):
        try:
            found = _edit(least_gap=low).fit(_samples(subject, split)).neurons_
        except AssayError:
            break
        if found == (PLANTED,):
            return low
        low += 0.25
    raise AssertionError("no gap leaves the planted neuron alone")


@pytest.mark.parametrize("edit", ["subtract", "remove"])
@pytest.mark.parametrize("directions", [True, False])
def test_controls_change_as_many_value_vectors_as_far(edit, directions):
    base, planted = _planted("gpt2")
    split = pairs_of(base, "train")
    fitted = _edit(edit=edit).fit(_samples(planted, split))
    control = RandomValueVectors(fitted, directions=directions).fit(_samples(planted, split))
    own, random, other = (
        _moved(planted, item.apply(planted)) for item in (fitted, control, _drawn_again(control, planted, split))
    )
    assert len(own) == len(random) == len(fitted.neurons_)
    np.testing.assert_allclose(sorted(own.values()), sorted(random.values()), rtol=1e-9)
    if directions:
        assert set(own) == set(random)
    else:
        assert not set(own) & set(random)
        assert set(random) != set(other)
        assert [layer for layer, _ in sorted(own)] == [layer for layer, _ in sorted(random)]


def _drawn_again(control, planted, split):
    return control.redrawn(1).fit(_samples(planted, split))


def _moved(subject, proxy):
    """How far each value vector was moved, of those that were; nothing else is."""
    found = {}
    after = dict(proxy.model.model.named_parameters())
    for name, before in subject.model.named_parameters():
        if "mlp.c_proj.weight" in name:
            lengths = (after[name] - before).detach().norm(dim=1)
            layer = int(name.split(".")[2])
            found |= {(layer, int(row)): float(lengths[row]) for row in lengths.nonzero().flatten()}
        else:
            assert torch.equal(after[name], before)
    return found


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("against", [None, [2, 4, 9]])
def test_scores_are_those_of_one_product_at_a_time(kind, against):
    subject = subject_of(kind)
    model = subject.model
    norm = model.transformer.ln_f if kind == "gpt2" else model.model.norm
    found = value_vectors(subject, [4, 11], against=against)
    unembedding = model.lm_head.weight.detach().numpy()
    for row, token in enumerate((4, 11)):
        others = [other for other in (against or range(len(unembedding))) if against is None or other != token]
        for layer in range(2):
            if kind == "gpt2":
                written = model.transformer.h[layer].mlp.c_proj.weight.detach().numpy()
            else:
                written = model.model.layers[layer].mlp.down_proj.weight.detach().numpy().T
            for neuron, vector in enumerate(written):
                centred = vector - vector.mean() if kind == "gpt2" else vector
                read = norm.weight.detach().numpy() * centred
                expected = read @ unembedding[token] - np.mean([read @ unembedding[other] for other in others])
                assert found.scores[layer][row, neuron] == pytest.approx(expected, abs=1e-10)
    best = found.top(11, 3)
    assert [score for *_, score in best] == sorted(np.concatenate([one[1] for one in found.scores]))[::-1][:3]
    assert all(found.scores[layer][1, neuron] == score for layer, neuron, score in best)


def test_the_planted_neuron_stands_first_by_weights_alone():
    _, planted = _planted("gpt2")
    assert value_vectors(planted, [TOKEN]).top(TOKEN, 1)[0][:2] == PLANTED


def test_neurons_are_those_that_a_loop_over_failures_finds():
    """Independent: one sequence at a time, NumPy, hooks on GPT-2's own modules."""
    subject = subject_of("gpt2", seed=4)
    rng = np.random.default_rng(0)
    tokens = rng.integers(17, size=(300, 6))
    kinds = np.full(tokens.shape, -1)
    kinds[:, :-1] = 0
    split = Split("train", "train", "", tokens, np.full(300, 6), kinds)
    said = subject(torch.from_numpy(tokens)).argmax(dim=-1).numpy()[:, :-1]
    token = int(np.bincount(said.flatten()).argmax())
    where = np.argwhere((said == token) & (tokens[:, 1:] != token))
    model = subject.model
    g = model.transformer.ln_f.weight.detach().numpy()
    read = model.lm_head.weight.detach().numpy() * g
    taken = [{}, {}]
    for layer, block in enumerate(model.transformer.h):
        block.mlp.c_proj.register_forward_hook(
            lambda _, inputs, output, layer=layer: taken[layer].update(
                a=inputs[0][0].detach().numpy(), out=output[0].detach().numpy()
            )
        )

    def unit(x):
        x = x - x.mean(axis=-1, keepdims=True)
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + model.transformer.ln_f.eps)

    active, gaps, more = [[], []], [[], []], []
    for row, place in where:
        subject(torch.from_numpy(tokens[row : row + 1]))
        n = read[token] - read[tokens[row, place + 1]]
        more.append(n)
        for layer in range(2):
            active[layer].append(taken[layer]["a"][place])
            gaps[layer].append(unit(taken[layer]["out"][place]) @ n)
    expected = []
    for layer in range(2):
        if np.mean(gaps[layer]) <= 0:
            continue
        written = model.transformer.h[layer].mlp.c_proj.weight.detach().numpy()
        order = np.argsort(-np.abs(active[layer]).mean(axis=0) * np.linalg.norm(written, axis=1))[:10]
        signs = np.sign(np.mean(active[layer], axis=0))
        expected += [(layer, i) for i in order if signs[i] * unit(written[i]) @ np.mean(more, axis=0) > 0.5]
    for block in model.transformer.h:
        block.mlp.c_proj._forward_hooks.clear()
    fitted = ValueVectorEdit(token, least_gap=0.5).fit(_samples(subject, split))
    assert len(where) > 30
    assert len(expected) > 2
    assert fitted.neurons_ == tuple(expected)


@dataclass(frozen=True)
class _Task:
    splits: dict[str, Split]
    kinds: tuple[Kind, ...] = (Kind("answer", "the answer"),)
    features: tuple = ()
    name: str = "planted-bias"
    primary_kind: str = "all"
    given: dict[str, object] = field(default_factory=dict)

    @property
    def split_names(self):
        return tuple(self.splits)

    def split(self, name, sequences):
        return self.splits[name].first(sequences)

    def describe(self):
        return {"task": self.name}


def test_compare_judges_the_edit_beside_controls_drawn_five_times():
    base, planted = _planted("gpt2")
    splits = {name: pairs_of(base, name, seed=seed) for seed, name in enumerate(("train", "iid"))}
    edit = _edit(least_gap=_only_planted(planted, splits["train"]))
    comparison = assay.compare(planted, _Task(splits), [edit], resamples=50)
    rows = comparison.results.query("split == 'iid' and kind == 'all' and feature == ''")
    of_random, of_directions = label(edit.control()), label(edit.perturbation())
    assert set(rows["proxy"]) == {label(edit), of_random, of_directions}
    found = rows.set_index(["proxy", "metric"])["estimate"]
    assert found[label(edit), "proxy_accuracy"] == 1, "without the bias its answers are those it was made from"
    assert found[label(edit), "flip_to_wrong"] == 0
    assert found[label(edit), "same_prediction"] < 0.9
    assert found[of_random, "same_prediction"] == 1, "neurons that never act"
    assert found[of_random, "logit_deviation"] == pytest.approx(0, abs=1e-12)
    assert found[of_directions, "flip_to_right"] < found[label(edit), "flip_to_right"]
    assert any("meant to change answers" in warning for warning in comparison.warnings())
    drawn = {proxy.proxy: proxy.draws for proxy in comparison.record.proxies}
    assert drawn[of_random] == drawn[of_directions] == 5


def test_where_nothing_is_anchored_the_train_split_is_refused_and_a_shift_left_alone():
    base = _base("gpt2")
    tokens = pairs_of(base, "train")
    with pytest.raises(AssayError, match="never predicts token 7 where another is right"):
        _edit().fit(_samples(base, tokens))
    fitted = _edit().fit(_samples(base, pairs_of(base, "iid")))
    assert fitted.neurons_ == ()
    there = torch.from_numpy(tokens.tokens)
    assert torch.equal(fitted.apply(base)(there), base(there))
    _, planted = _planted("gpt2")
    with pytest.raises(AssayError, match="no neuron passes; lower least_gap"):
        _edit(least_gap=1e3).fit(_samples(planted, tokens))


def test_what_is_found_does_not_depend_on_batches(monkeypatch):
    base, planted = _planted("gpt2")
    split = pairs_of(base, "train")
    whole = _edit(least_gap=0.0).fit(_samples(planted, split))
    monkeypatch.setattr("assay.engine._batches.TOKENS_PER_BATCH", 7)
    single = _edit(least_gap=0.0).fit(_samples(planted, split.take(np.random.default_rng(0).permutation(len(split)))))
    assert single.neurons_ == whole.neurons_
    for one, other in zip(single.activations_, whole.activations_, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_bad_parameters_and_architectures_are_refused():
    subject = subject_of("gpt2")
    for options, what in (
        ({"token": 17}, "from 0 to 16"),
        ({"token": 1, "strength": 0.0}, "strength=0.0: must be a number above 0"),
        ({"token": 1, "neurons": 33}, "neurons must be 1 to 32"),
        ({"token": 1, "neurons": 0}, "at least 1"),
    ):
        with pytest.raises(AssayError, match=what):
            ValueVectorEdit(**options).check(subject, ())
    other = ValueVectorEdit(1)
    other.edit = "add"
    with pytest.raises(AssayError, match="subtract"):
        other.check(subject, ())
    with pytest.raises(AssayError, match="ids from 0 to 16"):
        value_vectors(subject, [17])
    with pytest.raises(AssayError, match="another token"):
        value_vectors(subject, [3], against=[3])
    with pytest.raises(AssayError, match="token 5 has no scores"):
        value_vectors(subject, [3]).top(5)
    with pytest.raises(AssayError, match="has not been fitted"):
        ValueVectorEdit(1).apply(subject)
    with pytest.raises(AssayError, match="has not been fitted"):
        ValueVectorEdit(1).control().apply(subject)
    config = MixtralConfig(
        vocab_size=17, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=2, max_position_embeddings=16, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    mixture = Subject(MixtralForCausalLM(config).eval(), None, "mixture")
    with pytest.raises(AssayError, match="MixtralForCausalLM"):
        value_vectors(mixture, [3])
