"""Hooks and their like on a subject's model are said, and make it another subject; nothing else does."""

import copy
import subprocess
import sys
import types

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP

import assay
from assay._fingerprint import NotHashableError
from assay.engine import Engine
from assay.subjects import Subject


@pytest.fixture
def own(subject):
    """A copy that a test may change."""
    return Subject(copy.deepcopy(subject.model), subject.tokenizer, "own", seed=0)


def louder(factor):
    return lambda module, inputs, output: output * factor


def quieter(module, inputs):
    return (inputs[0] / 2, *inputs[1:])


def unchanged(module, inputs, output):
    return output


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def replaced(model, factor):
    mlp = model.transformer.h[1].mlp
    mlp.forward = types.MethodType(lambda self, hidden: factor * GPT2MLP.forward(self, hidden), mlp)


def act(self, hidden):
    return hidden


ALTERED = {
    "a forward hook": (
        lambda model: model.transformer.h[0].mlp.register_forward_hook(louder(2)),
        ["forward hook louder.<locals>.<lambda> on transformer.h.0.mlp"],
    ),
    "a pre-hook": (
        lambda model: model.transformer.ln_f.register_forward_pre_hook(quieter),
        ["forward pre-hook quieter on transformer.ln_f"],
    ),
    "a hook on the whole model": (
        lambda model: model.register_forward_hook(unchanged),
        ["forward hook unchanged on the model"],
    ),
    "a forward of its own": (
        lambda model: replaced(model, 3),
        ["forward of transformer.h.1.mlp replaced by replaced.<locals>.<lambda>"],
    ),
    "a parametrization": (
        lambda model: parametrize.register_parametrization(model.transformer.h[0].mlp.c_fc, "weight", Doubled()),
        ["weight of transformer.h.0.mlp.c_fc parametrized by Doubled"],
    ),
    "a setting": (lambda model: setattr(model.transformer.ln_f, "eps", 0.5), []),
    "a tensor beside the weights": (lambda model: setattr(model.transformer.h[0], "mask", torch.ones(2)), []),
    "another mode": (lambda model: model.train(), []),
}


@pytest.mark.parametrize("what", ALTERED)
def test_what_was_altered_is_another_subject_and_hooks_are_said(own, subject, what):
    alter, words = ALTERED[what]
    before = own.behaviour_sha256
    assert before == subject.behaviour_sha256
    assert "hooks" not in own.describe()
    alter(own.model)
    assert isinstance(own.behaviour_sha256, str)
    assert own.behaviour_sha256 != before
    assert own.describe().get("hooks", []) == words


def test_what_a_hook_holds_makes_a_difference(subject):
    found = set()
    for make in (lambda model, x: model.transformer.h[0].register_forward_hook(louder(x)), replaced):
        for factor in (2, 3):
            model = copy.deepcopy(subject.model)
            make(model, factor)
            found.add(Subject(model, None, "own").behaviour_sha256)
    assert len(found) == 4


def test_a_forward_that_was_put_into_a_class_of_others_is_said(own, monkeypatch):
    before = own.behaviour_sha256
    monkeypatch.setattr(GPT2MLP, "forward", act)
    assert own.alterations == ("forward of every GPT2MLP replaced by act",)
    assert own.behaviour_sha256 != before


def test_a_hook_on_all_modules_of_the_process_is_said(own):
    before = own.behaviour_sha256
    handle = nn.modules.module.register_module_forward_hook(louder(1))
    try:
        assert own.alterations == ("forward hook louder.<locals>.<lambda> on all modules",)
        assert own.behaviour_sha256 != before
    finally:
        handle.remove()
    assert own.behaviour_sha256 == before


def test_a_hook_that_cannot_be_hashed_leaves_no_hash(own):
    numbers = (number for number in range(3))
    own.model.register_forward_hook(lambda *_: next(numbers))
    assert isinstance(own.behaviour_sha256, NotHashableError)


class Mine(LlamaForCausalLM):
    """A model of the user's own."""

    factor = 2

    def forward(self, *given, **named):
        output = super().forward(*given, **named)
        output.logits = self.factor * output.logits
        return output


def test_the_code_of_a_model_of_ones_own_counts_and_is_no_alteration(monkeypatch):
    config = LlamaConfig(vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    mine = Subject(Mine(config).eval(), None, "mine")
    assert mine.alterations == ()
    before = mine.behaviour_sha256
    monkeypatch.setattr(Mine, "factor", 3)
    assert mine.behaviour_sha256 != before


@pytest.mark.parametrize(
    "make",
    [
        lambda: assay.load("code-python"),
        lambda: Subject(
            LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
                )
            ).eval(),
            None,
            "llama",
        ),
        lambda: Subject(
            BertModel(
                BertConfig(
                    vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
                )
            ).eval(),
            None,
            "bert",
        ),
    ],
    ids=["gpt2", "llama", "bert"],
)
def test_use_alters_nothing(make):
    subject = make()
    before = subject.behaviour_sha256
    tokens = torch.arange(5)[None]
    engine = Engine(subject)
    engine.run(tokens, read=("queries", "patterns"))
    subject(tokens)
    subject.model(tokens, output_hidden_states=True, output_attentions=True)
    assert subject.alterations == ()
    assert subject.behaviour_sha256 == before


def test_another_process_finds_the_same():
    say = "import assay; print(assay.load('code-python').behaviour_sha256)"
    done = subprocess.run([sys.executable, "-c", say], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == assay.load("code-python").behaviour_sha256
