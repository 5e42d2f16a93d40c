"""Contextual decomposition: it is ablation at fixed patterns and scales, and its identities."""

from contextlib import ExitStack

import numpy as np
import pytest
import torch
from small_subjects import PARTS, assert_batches_do_not_matter, at_scale, pairs, problem_of, scale, subject_of
from torch import nn
from transformers import OPTConfig, OPTForCausalLM

from assay import AssayError
from assay.circuits import ContextualDecomposition, ExactNodes, Problem, discoveries
from assay.engine import instead
from assay.subjects import Subject


class Frozen:
    """The model's own code with the patterns and the norms' scales of its pass on the pairs; one sender replaced."""

    def __init__(self, kind: str, problem: Problem, monkeypatch) -> None:
        self.problem, model = problem, problem.engine.subject.model
        blocks, first, output, second, mlp, last = PARTS[kind]
        self.model, self.blocks = model, list(model.get_submodule(blocks))
        self.outputs = [block.get_submodule(output) for block in self.blocks]
        self.mlps = [block.get_submodule(mlp) for block in self.blocks]
        self.norms = [block.get_submodule(name) for block in self.blocks for name in (first, second)]
        self.norms.append(model.get_submodule(last))
        split = problem.split
        self.tokens, others = (torch.from_numpy(t.astype(np.int64)) for t in (split.tokens, split.counterfactuals))
        self.patterns: list[torch.Tensor] = []
        self.again: list[torch.Tensor] = []
        softmax = nn.functional.softmax

        def fixed(scores, *arguments, **options):
            if scores.dim() != 4:
                return softmax(scores, *arguments, **options)
            if self.again:
                return self.again.pop(0)
            self.patterns.append(softmax(scores, *arguments, **options))
            return self.patterns[-1]

        monkeypatch.setattr(nn.functional, "softmax", fixed)
        self.other = self._written(others)
        self.patterns.clear()
        self.scales: list[torch.Tensor] = []
        self.own = self._written(self.tokens)

    def _written(self, tokens):
        """What enters the first block, the output projections and what the MLPs give."""
        found, self.scales = {}, []
        with ExitStack() as stack, torch.no_grad():
            enter = self.blocks[0].register_forward_pre_hook(
                lambda _, given, options: found.__setitem__("embeddings", (given or (options["hidden_states"],))[0]),
                with_kwargs=True,
            )
            stack.callback(enter.remove)
            for number, (output, mlp) in enumerate(zip(self.outputs, self.mlps, strict=True)):
                hook = output.register_forward_pre_hook(
                    lambda _, given, number=number: found.__setitem__(("heads", number), given[0])
                )
                stack.callback(hook.remove)
                hook = mlp.register_forward_hook(
                    lambda _, given, output, number=number: found.__setitem__(("mlp", number), output)
                )
                stack.callback(hook.remove)
            for norm in self.norms:
                hook = norm.register_forward_pre_hook(lambda module, given: self.scales.append(scale(module, given[0])))
                stack.callback(hook.remove)
            found["final"] = self.model.base_model(tokens)[0]
        return found

    def hidden(self, sender: str):
        """Final hidden states with one sender replaced by what it writes in the counterfactual."""
        self.again = list(self.patterns)
        scales = list(self.scales)
        with ExitStack() as stack, torch.no_grad():
            for norm in self.norms:
                stack.enter_context(instead(norm, lambda x, norm=norm: at_scale(norm, x, scales.pop(0))))
            if sender == "embeddings":
                hook = self.blocks[0].register_forward_pre_hook(
                    lambda _, given, options: ((self.other["embeddings"], *given[1:]), options), with_kwargs=True
                )
            else:
                layer, _, part = sender[5:].partition(".")
                if part == "mlp":
                    hook = self.mlps[int(layer)].register_forward_hook(lambda *_: self.other["mlp", int(layer)])
                else:
                    count = self.problem.wiring.graph.heads
                    put = self.own["heads", int(layer)].unflatten(-1, (count, -1)).clone()
                    other = self.other["heads", int(layer)].unflatten(-1, (count, -1))
                    put[:, :, int(part[4:])] = other[:, :, int(part[4:])]
                    hook = self.outputs[int(layer)].register_forward_pre_hook(lambda *_: (put.flatten(-2),))
            stack.callback(hook.remove)
            return self.model.base_model(self.tokens)[0]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox"])
@pytest.mark.parametrize("measure", ["logit_difference", "kl"])
def test_a_score_is_what_ablation_changes_at_fixed_patterns_and_scales(kind, measure, monkeypatch) -> None:
    problem = problem_of(subject_of(kind), pairs(4), measure=measure)
    found = np.nansum(ContextualDecomposition().scores(problem), axis=1)
    problem.engine.subject.model.set_attn_implementation("eager")
    frozen = Frozen(kind, problem, monkeypatch)
    (batch,) = problem.batches()
    order = torch.from_numpy(batch.index)
    clean = frozen.own["final"][order]
    with torch.no_grad():
        whole = problem.value(clean, batch, clean)
        expected = [
            float((problem.value(frozen.hidden(sender)[order], batch, clean) - whole).mean())
            for sender in problem.wiring.graph.senders
        ]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(expected).min() > 1e-4


def flat(subject: Subject) -> Subject:
    """The same with norms that are the identity and attention that is uniform."""
    with torch.no_grad():
        for block in subject.model.transformer.h:
            block.attn.c_attn.weight[:, :32] = 0
            block.attn.c_attn.bias[:32] = 0
        for module in subject.model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e12
                module.weight.fill_(1e6)
                module.bias.zero_()
    return subject


@pytest.mark.parametrize("ablation", ["counterfactual", "mean"])
def test_it_is_exact_where_no_pattern_and_no_scale_can_move(ablation) -> None:
    problem = problem_of(flat(subject_of("gpt2", spread=0.2)), ablation=ablation)
    exact = ExactNodes().scores(problem)
    np.testing.assert_allclose(ContextualDecomposition().scores(problem), exact, atol=1e-9)
    subject, ablated = problem.baseline
    everything = float(np.nansum(ContextualDecomposition().scores(problem)[0]))
    if ablation == "counterfactual":
        assert everything == pytest.approx(float(ablated.mean() - subject.mean()), abs=1e-9)
    assert abs(everything) > 0.005


def test_all_of_a_model_without_biases_comes_from_its_embeddings() -> None:
    subject = subject_of("gpt2", spread=0.3)
    with torch.no_grad():
        for name, parameter in subject.model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    problem = problem_of(subject, ablation="zero")
    whole, _ = problem.baseline
    # Where nothing is left, nothing is written: rel is all of x, in every layer, whatever the patterns are.
    assert np.nansum(ContextualDecomposition().scores(problem)[0]) == pytest.approx(-float(whole.mean()), abs=1e-9)


def test_neither_batches_nor_the_order_of_pairs_matter(monkeypatch) -> None:
    problem = problem_of(subject_of("neox"), ablation="mean")
    assert_batches_do_not_matter(ContextualDecomposition(), problem, monkeypatch)
    whole = ContextualDecomposition().scores(problem)
    monkeypatch.setattr("assay.circuits._exact.TOKENS", 1)
    np.testing.assert_allclose(ContextualDecomposition().scores(problem), whole, atol=1e-10)


def test_an_mlp_in_two_modules_is_refused() -> None:
    torch.manual_seed(0)
    config = OPTConfig(
        hidden_size=16,
        ffn_dim=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=17,
        max_position_embeddings=16,
        word_embed_proj_dim=16,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = OPTForCausalLM(config).double().eval()
    problem = problem_of(Subject(model, None, "random-opt", seed=0))
    with pytest.raises(AssayError, match="MLP in layer 0 that is not one module"):
        ContextualDecomposition().scores(problem)


def test_it_is_known_by_name() -> None:
    assert discoveries.get("cd-t") is ContextualDecomposition
