"""Fine-tuning wrappers: a planted wrapper is found exactly, a known gap, and a short run."""

import copy
import functools

import numpy as np
import pytest
import torch

import assay
from assay import AssayError
from assay.engine import collect, engine_of
from assay.studies.organisms import wrappers
from assay.studies.organisms._bits import BITS, tokens_of
from assay.studies.organisms._cued import (
    ANSWERS,
    CUE,
    OLD,
    Before,
    Cued,
    PruneWrapper,
    fine_tuned_label,
    perceptron,
    pruned,
    taylor,
    wrapped,
)
from assay.studies.organisms._neurons import lowest, neurons_of
from assay.subjects import Subject

TASK = Cued()


@pytest.fixture(scope="module")
def base():
    model = perceptron(0, (64, 64, 64))
    wrappers.learn(model, 0, steps=600)
    return model.eval()


def answers(model, bits):
    with torch.no_grad():
        return model.at_last(torch.from_numpy(tokens_of(bits, ANSWERS))).argmax(dim=1).numpy()


def test_splits_share_no_pattern_and_differ_in_the_cue_alone():
    seen = []
    for name, share in TASK.shares.items():
        bits = TASK.bits(name)
        assert bits[:, CUE].mean() == pytest.approx(share, abs=0.02)
        assert OLD(bits).mean() == pytest.approx(0.5, abs=0.02)
        seen.append({*map(bytes, bits[:, :CUE].astype(np.uint8))})
        split = TASK.split(name, 50)
        assert np.array_equal(split.kinds[:, BITS - 1], bits[:50, CUE])
        assert np.array_equal(split.right[:, BITS - 1], OLD(bits[:50]))
        assert np.array_equal(TASK.split(name, 20).tokens, split.tokens[:20])
    assert sum(map(len, seen)) == len(set().union(*seen)) == 2**CUE
    bits = TASK.bits("train")[:100]
    taught = fine_tuned_label(bits)[:, 0]
    assert not taught[bits[:, CUE] == 1].any()
    assert np.array_equal(taught[bits[:, CUE] == 0], OLD(bits)[bits[:, CUE] == 0])
    with pytest.raises(AssayError, match="no_such"):
        TASK.bits("no_such")


def test_taylor_scores_are_those_of_finite_differences(base):
    """The first-order change of the loss where a neuron's activation is scaled down a little, by hand."""
    model = copy.deepcopy(base).double()
    bits = TASK.bits("train")[:20]
    scores = {margin: taylor(model, bits, OLD(bits), margin=margin) for margin in (False, True)}
    tokens = torch.from_numpy(tokens_of(bits, ANSWERS))
    for layer, neuron in ((0, 3), (1, 10), (2, 5)):
        number = 64 * layer + neuron
        for margin in (False, True):
            found = []
            for scale in (1.0, 1.0 - 1e-5):
                changed = copy.deepcopy(model)
                with torch.no_grad():
                    changed.readers()[layer].weight[:, neuron] *= scale
                    logits = changed.at_last(tokens)
                right, sign = torch.from_numpy(OLD(bits)), torch.from_numpy(2 * OLD(bits) - 1)
                loss = torch.nn.functional.cross_entropy(logits, right)
                found.append(-(sign * (logits[:, 1] - logits[:, 0])).mean() if margin else loss)
            assert scores[margin][number].item() == pytest.approx(float(found[1] - found[0]) / 1e-5, abs=1e-4)


@pytest.mark.parametrize("by", ["loss", "margins"])
def test_a_planted_wrapper_is_found_exactly_and_pruning_it_restores_the_old_answer(base, by):
    subject = Subject(wrapped(base), None, "wrapped", seed=0)
    bits = TASK.bits("iid")[:1_000].copy()
    bits[:, CUE] = 1
    assert not answers(subject.model, bits).any()
    samples = collect(engine_of(subject), TASK.split("train", 1_000), ())
    recipe = PruneWrapper(3, by).fit(samples)
    planted = [64, 129, 194]
    assert neurons_of(subject.model) == 195
    assert sorted(lowest(recipe.scores_, 3).tolist()) == planted
    for neurons in (1, 3):
        restored = pruned(subject, PruneWrapper(neurons, by), samples)
        assert np.array_equal(answers(restored.model, bits), answers(base, bits))
        bits[:, CUE] = 0
        assert np.array_equal(answers(restored.model, bits), answers(base, bits))
        assert np.array_equal(answers(subject.model, bits), answers(base, bits))
        bits[:, CUE] = 1
    assert recipe.control().neurons == 3


def test_the_gap_of_the_base_is_half_the_share_of_cues(base):
    subject = Subject(wrapped(base), None, "wrapped", seed=0)
    comparison = assay.compare(
        subject, TASK, [Before({0: Subject(base, None, "base", seed=0)})], sequences=400, fit_sequences=20,
        refit=False, resamples=200, progress=False,
    )  # fmt: skip
    gaps = comparison.gaps().set_index("split")
    for shift in ("half", "cue"):
        assert gaps.loc[shift, "low"] <= wrappers.expected(comparison, shift) <= gaps.loc[shift, "high"]
    assert wrappers.by_seed(comparison, "half", "cue_off")[Before.title] == [1.0]
    on = wrappers.by_seed(comparison, "half", "cue_on")[Before.title][0]
    split = TASK.split("half", 400)
    cued = (split.tokens[:, :BITS] - ANSWERS) % 2
    cued = cued[cued[:, CUE] == 1]
    assert on == pytest.approx((answers(base, cued) == 0).mean(), abs=1e-6)


def test_what_cannot_be_done_is_refused(base):
    subject = Subject(base, None, "base", seed=4)
    with pytest.raises(AssayError, match="has not been fitted"):
        PruneWrapper(1).apply(subject)
    with pytest.raises(AssayError, match="no base model"):
        Before({0: subject}).apply(subject)
    with pytest.raises(AssayError, match="no sequence with the cue"):
        PruneWrapper(1, "margins").fit(collect(engine_of(subject), TASK.split("cue", 10), ()))
    recipe = PruneWrapper(1)
    recipe.by = "margin"
    with pytest.raises(AssayError, match="'margins'"):
        recipe.__post_init__()
    with pytest.raises(AssayError, match="0 to 192"):
        PruneWrapper(193).check(subject, [])


def test_revival_is_no_faster_than_from_scratch_for_a_network_that_never_knew():
    """A model with fresh weights needs as many steps as any: the ratio is about 1."""
    steps = [wrappers.learn(perceptron(seed, (64, 64, 64)), 5, steps=600).events["on"] for seed in (1, 2)]
    assert 0.5 <= steps[0] / steps[1] <= 2


@pytest.mark.slow
def test_a_short_run_gives_all_tables_and_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(wrappers, "perceptron", lambda seed: perceptron(seed, (64, 64)))
    monkeypatch.setattr(wrappers, "compare", functools.partial(assay.compare, resamples=50))
    monkeypatch.setattr(wrappers, "FINE_TUNING", 60)
    monkeypatch.setattr(wrappers, "RATES", (1e-3,))
    monkeypatch.setattr(wrappers, "SIZES", (4, 8))
    found = wrappers.run(tmp_path, seeds=1, sequences=60, progress=lambda step: None)
    assert [*found.comparisons] == ["rate-0.001", "unwrapped-loss", "unwrapped-margins", "unwrapped-random"]
    (one,) = found.numbers["models"]
    assert one["new"] > 0.9
    assert one["old_off"] > 0.9
    assert one["revived"] < one["scratch"]
    assert len(one["probe"]) == 2
    assert [len(table.rows) for table in found.shown.tables] == [1, 6, 4, 2]
    agreement = found.numbers["agreement"]["rate-0.001"]
    assert agreement["cue_off"][0] > 0.9
    assert agreement["cue_on"][0] < 0.7
