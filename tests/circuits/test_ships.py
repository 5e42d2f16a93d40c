import copy

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from assay import AssayError
from assay.circuits import Circuit, Problem, Reference, Ships, head_group
from assay.engine import Edit, Engine, Head
from assay.subjects import Subject
from small_decoder import fitted, pairs_of, random_decoder


def problem_of(subject, split, measure="kl"):
    return Problem(Engine(subject), split, Reference("counterfactual"), measure)


def by_sender(problem, scores):
    return dict(zip(problem.wiring.graph.senders, np.nansum(scores, axis=1), strict=True))


def kl(first, second):
    p, q = first.log_softmax(-1), second.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def test_scores_are_divergences_by_hand():
    subject = random_decoder()
    pairs = pairs_of(subject, count=30)
    problem = problem_of(subject, pairs)
    tokens = torch.from_numpy(pairs.tokens)
    for without in ("zero", "uniform"):
        found = by_sender(problem, Ships(without, contrast=False).scores(problem))
        contrasted = by_sender(problem, Ships(without).scores(problem))
        for layer in range(2):
            for head in range(2):
                other = copy.deepcopy(subject.model)
                attention = other.transformer.h[layer].attn
                columns = slice(8 * head, 8 * head + 8)
                with torch.no_grad():
                    if without == "zero":
                        attention.c_proj.weight[columns] = 0
                    else:
                        attention.c_attn.weight[:, columns] = 0
                        attention.c_attn.bias[columns] = 0
                    change = kl(subject.model(tokens).logits, other(tokens).logits)
                assert found[f"layer{layer}.head{head}"] == pytest.approx(float(change[:, -1].mean()))
                expected = float(change[:, -1].mean() - change[:, :-1].mean())
                assert contrasted[f"layer{layer}.head{head}"] == pytest.approx(expected)
        best = max(value for name, value in found.items() if name != "embeddings")
        assert found["embeddings"] == pytest.approx(best)


def two_for_one():
    """Both heads write the same large vector whatever they see: either is enough."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=6, n_positions=4, n_embd=8, n_layer=1, n_head=2, tie_word_embeddings=False,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval().double()
    always, written = torch.tensor([1.0, -1, 0, 0, 0, 0, 0, 0]), torch.tensor([0.0, 0, 1, -1, 0, 0, 0, 0])
    block = model.transformer.h[0]
    with torch.no_grad():
        model.transformer.wte.weight.normal_().add_(3 * always)
        model.transformer.wpe.weight.zero_()
        block.attn.c_attn.weight.zero_()
        block.attn.c_proj.weight.zero_()
        for head in range(2):
            block.attn.c_attn.weight[:, 16 + 4 * head] = always
            block.attn.c_proj.weight[4 * head] = 1e4 * written
        block.mlp.c_proj.weight.zero_()
        model.lm_head.weight.normal_(std=2)
    return Subject(model, None, "two-for-one")


def test_of_two_heads_of_which_either_is_enough_neither_is_found():
    """A known failure of every method that takes single heads."""
    subject = two_for_one()
    tokens = np.random.default_rng(0).integers(6, size=(30, 4))
    engine = Engine(subject)
    both = [Edit(Head(0, head), outputs=torch.zeros_like) for head in range(2)]
    whole = engine.run(torch.from_numpy(tokens)).logits
    assert float(kl(whole, engine.run(torch.from_numpy(tokens), edits=both).logits)[:, -1].mean()) > 1
    for edit in both:
        assert float(kl(whole, engine.run(torch.from_numpy(tokens), edits=[edit]).logits)[:, -1].mean()) < 1e-6
    problem = problem_of(subject, pairs_of(random_decoder(vocabulary=6), count=30, length=4))
    found = by_sender(problem, Ships("zero", contrast=False).scores(problem))
    assert abs(found["layer0.head0"]) < 1e-6
    assert abs(found["layer0.head1"]) < 1e-6


def test_the_angle_of_a_group_is_that_of_feature_space():
    subject = random_decoder()
    pairs = pairs_of(subject, count=30)
    found = head_group(subject, pairs, 2, without="zero")
    states = []
    angles = {}
    for group in ((), *((head,) for head in range(4)), *((a, b) for a in range(4) for b in range(4) if a != b)):
        other = copy.deepcopy(subject.model)
        with torch.no_grad():
            for number in group:
                other.transformer.h[number // 2].attn.c_proj.weight[8 * (number % 2) : 8 * (number % 2) + 8] = 0
            last = other.transformer(torch.from_numpy(pairs.tokens)).last_hidden_state[:, -1]
        states.append(np.linalg.svd(last.numpy(), full_matrices=False)[2][0])
        angles[group] = np.arccos(min(1.0, abs(states[0] @ states[-1])))
    first = max(range(4), key=lambda head: angles[head,])
    second = max((head for head in range(4) if head != first), key=lambda head: angles[first, head])
    assert [2 * head.layer + head.head for head in found.heads] == [first, second]
    assert found.angles == pytest.approx([angles[first,], angles[first, second]])
    with pytest.raises(AssayError, match="has 4 heads"):
        head_group(subject, pairs, 5)


def test_a_group_finds_the_second_of_two_for_one_once_it_has_the_first():
    subject = two_for_one()
    pairs = pairs_of(random_decoder(vocabulary=6), count=30, length=4)
    found = head_group(subject, pairs, 2, without="zero")
    assert found.angles[0] < 1e-3
    assert found.angles[1] > 0.5


def test_a_circuit_of_whole_heads_is_found_with_it():
    subject = random_decoder()
    pairs = pairs_of(subject, "train", count=40)
    for measure in ("logit_difference", "kl"):
        circuit = Circuit(edges=30, method=Ships(contrast=False), measure=measure, rank="helpful", level="heads")
        found = fitted(circuit, subject, pairs)
        assert 0 < found.pruned_ <= 30
        assert np.array_equal(found.kept_[0], found.graph_.exists[0])


def test_no_plain_prediction_is_refused():
    subject = random_decoder()
    pairs = pairs_of(subject, count=30, length=1)
    with pytest.raises(AssayError, match="has no prediction that is not scored"):
        Ships().scores(problem_of(subject, pairs))
