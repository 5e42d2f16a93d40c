"""Gradient interaction modifications: against the model's own code with its parts exchanged, and its shares."""

from contextlib import ExitStack

import numpy as np
import pytest
import torch
from small_subjects import PARTS, assert_batches_do_not_matter, at_scale, pairs, problem_of, scale, subject_of
from torch import Tensor, nn
from transformers import GptOssConfig, GptOssForCausalLM

from assay import AssayError
from assay.circuits import EdgeAttribution, InteractionGradients, Problem, discoveries
from assay.engine import instead
from assay.subjects import Subject


class Warm(torch.autograd.Function):
    """Softmax whose gradient is that at a temperature, from the scores themselves."""

    temperature = 2.0

    @staticmethod
    def forward(context, scores):
        context.save_for_backward(scores)
        return torch.exp(scores - scores.logsumexp(dim=-1, keepdim=True))

    @staticmethod
    def backward(context, gradient):
        (scores,) = context.saved_tensors
        warm = scores / Warm.temperature
        warm = torch.exp(warm - warm.logsumexp(dim=-1, keepdim=True))
        return warm * (gradient - (gradient * warm).sum(dim=-1, keepdim=True))


def shared(share: Tensor | float):
    """A hook by which a part of the gradient of what a module gives is passed on."""

    def hook(_: nn.Module, __, output: Tensor) -> Tensor:
        found = output.clone()
        found.register_hook(lambda gradient: gradient * share)
        return found

    return hook


def gradients_of_senders(kind: str, problem: Problem, monkeypatch) -> tuple[list[Tensor], list[Tensor]]:
    """What each sender writes in the subject, and the gradient of m with respect to it, by the model's own code."""
    model = problem.engine.subject.model
    model.set_attn_implementation("eager")
    blocks, first, output, second, mlp, last = PARTS[kind]
    blocks = list(model.get_submodule(blocks))
    graph = problem.wiring.graph
    (batch,) = problem.batches()
    written: list[Tensor] = []
    monkeypatch.setattr(nn.functional, "softmax", lambda scores, *_, **__: Warm.apply(scores))
    with ExitStack() as stack:
        norms = [block.get_submodule(name) for block in blocks for name in (first, second)]
        for norm in (*norms, model.get_submodule(last)):
            stack.enter_context(instead(norm, lambda x, norm=norm: at_scale(norm, x, scale(norm, x).detach())))
        for block in blocks:
            if kind == "gpt2":
                share = torch.tensor([0.25, 0.25, 0.5]).repeat_interleave(16)
                modules = {block.attn.c_attn: share}
            elif kind == "neox":
                share = torch.tensor([0.25, 0.25, 0.5]).repeat_interleave(8).repeat(2)
                modules = {block.attention.query_key_value: share}
            else:
                attention, gated = block.self_attn, block.mlp
                modules = {attention.q_proj: 0.25, attention.k_proj: 0.25, attention.v_proj: 0.5}
                modules |= {gated.gate_proj: 0.5, gated.up_proj: 0.5}
            for module, share in modules.items():
                stack.callback(module.register_forward_hook(shared(share)).remove)

            def heads(_: nn.Module, given, block=block):
                parts = given[0].unflatten(-1, (graph.heads, -1)).unbind(dim=-2)
                weight = block.get_submodule(output).weight
                weight = weight if kind == "gpt2" else weight.T
                parts = [part.clone() for part in parts]
                written.extend(parts)
                return (torch.cat(parts, dim=-1),)

            stack.callback(block.get_submodule(output).register_forward_pre_hook(heads).remove)
            stack.callback(
                block.get_submodule(mlp).register_forward_hook(lambda _, __, given: written.append(given)).remove
            )

        def begin(_: nn.Module, given, options):
            own = given[0] if given else options.pop("hidden_states")
            written.append(own.detach().requires_grad_(True))
            return (written[-1], *given[1:]), options

        stack.callback(blocks[0].register_forward_pre_hook(begin, with_kwargs=True).remove)
        value = problem.value(model.base_model(batch.tokens)[0], batch).mean()
        return written, list(torch.autograd.grad(value, written))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox"])
def test_edges_out_of_a_sender_sum_to_its_gradient_by_the_rules(kind, monkeypatch) -> None:
    problem = problem_of(subject_of(kind), pairs(4))
    found = np.nansum(InteractionGradients().scores(problem), axis=1)
    (batch,) = problem.batches()
    reference = problem.trace(batch)
    written, gradients = gradients_of_senders(kind, problem, monkeypatch)
    graph = problem.wiring.graph
    other = [reference.embeddings]
    for layer in range(graph.layers):
        heads = reference.heads[layer].unflatten(-1, (graph.heads, -1)).unbind(dim=-2)
        # In parallel blocks what the MLP gives may come first; the order of hooks is that of execution.
        other += [*heads, reference.mlp[layer]]
    expected = [
        float(((theirs - own.detach()) * gradient).sum())
        for theirs, own, gradient in zip(other, written, gradients, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(expected).min() > 1e-4


def test_shares_of_edges_into_the_last_layer() -> None:
    """At temperature 1 and without norms, its edges are those of EAP, by their shares."""
    subject = subject_of("gpt2", spread=0.2)
    with torch.no_grad():
        for module in subject.model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e12
                module.weight.fill_(1e6)
    problem = problem_of(subject, ablation="mean")
    graph = problem.wiring.graph
    plain, found = EdgeAttribution().scores(problem), InteractionGradients(temperature=1.0).scores(problem)
    start = graph.reading(1).start
    shares = np.repeat([0.25, 0.25, 0.5, 1, 1], [2, 2, 2, 1, 1])
    # What enters the MLP and the logits is behind everything; both are as they were.
    np.testing.assert_allclose(found[:, start:], shares * plain[:, start:], rtol=1e-8, atol=1e-12)
    assert np.nanmax(np.abs(plain[:, start : start + 4])) > 1e-5


def test_a_key_with_all_the_attention_still_counts() -> None:
    """Saturated attention has no gradient by itself; at a temperature it has."""
    subject = subject_of("gpt2")
    with torch.no_grad():
        for block in subject.model.transformer.h:
            block.attn.c_attn.weight[:, :32] *= 4
    problem = problem_of(subject)
    keys = problem.wiring.graph.reading(1)
    keys = slice(keys.start, keys.start + 4)
    cold, warm = (
        np.nanmax(np.abs(InteractionGradients(temperature=temperature).scores(problem)[:, keys]))
        for temperature in (1.0, 4.0)
    )
    assert warm > 2 * cold


def test_neither_batches_nor_the_order_of_pairs_matter(monkeypatch) -> None:
    problem = problem_of(subject_of("llama"))
    assert_batches_do_not_matter(InteractionGradients(), problem, monkeypatch, atol=1e-5)


def test_what_it_cannot_work_with_is_refused() -> None:
    with pytest.raises(AssayError, match="method 'gim' with measure='kl'"):
        InteractionGradients().scores(problem_of(subject_of("gpt2"), pairs(2), measure="kl"))
    with pytest.raises(AssayError, match=r"temperature=0\.5"):
        InteractionGradients(temperature=0.5).scores(problem_of(subject_of("gpt2"), pairs(2)))


def test_attention_sinks_are_refused() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 17, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2, "num_experts_per_tok": 1}
    config = GptOssConfig(**sizes, **heads, max_position_embeddings=64, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    subject = Subject(GptOssForCausalLM(config).eval(), None, "random-gpt-oss", seed=0)
    with pytest.raises(AssayError, match="attention sinks"):
        InteractionGradients().scores(problem_of(subject))


def test_it_is_known_by_name() -> None:
    assert discoveries.get("gim") is InteractionGradients
