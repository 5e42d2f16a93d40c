"""Masked language models: predictions at the mask, against an independent loop."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

import assay
from assay.engine import Engine, collect
from assay.subjects import Subject
from assay.tasks import UNSCORED, Text

WORDS = ["[PAD]", "[UNK]", "[MASK]", *"abcdefghij"]


def tokenizer():
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]")


@pytest.fixture(scope="module")
def subject():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, initializer_range=0.4,
    )  # fmt: skip
    return Subject(BertForMaskedLM(config).eval(), tokenizer(), "a small BERT")


@pytest.fixture(scope="module")
def task(subject):
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(list("abcdefghij"), size=rng.integers(6, 15))) for _ in range(60)]
    return Text(
        subject.tokenizer, train=lines[:20], iid=lines[20:40], shifts={"other": lines[40:]}, objective="masked",
        mask_share=0.3,
    )  # fmt: skip


def test_predictions_are_made_and_scored_at_the_mask(subject, task):
    comparison = assay.compare(subject, task, [assay.SVD(rank=2)], sequences=20, fit_sequences=20, resamples=50)
    engine = Engine(subject)
    proxy = assay.SVD(rank=2).fit(collect(engine, task.split("train", 20), ("queries", "keys"))).apply(subject)
    split = task.split("iid", 20)
    same, right, count = 0, 0, 0
    for row in range(len(split)):
        tokens = torch.from_numpy(split.tokens[row : row + 1, : split.lengths[row]])
        first, second = (model(tokens)[0].argmax(-1).numpy() for model in (subject, proxy))
        for place in np.flatnonzero(split.kinds[row] != UNSCORED):
            assert split.tokens[row, place] == subject.tokenizer.mask_token_id
            same += int(first[place] == second[place])
            right += int(first[place] == split.targets[row, place])
            count += 1
    found = comparison.to_frame().query(
        "trained and proxy == 'SVD(rank=2)' and split == 'iid' and kind == 'all' and feature == ''"
    )
    found = found.set_index("metric")
    assert found.loc["same_prediction", "predictions"] == count
    assert found.loc["same_prediction", "estimate"] == pytest.approx(same / count)
    assert found.loc["subject_accuracy", "estimate"] == pytest.approx(right / count)
    assert 0 < same < count, "the test would not see a difference"
    exact = comparison.agreement().set_index("proxy").loc["Identity()", "estimate"]
    assert exact == 1


def test_a_task_of_another_objective_is_refused(subject, task):
    causal = Text(subject.tokenizer, train=["a b"], iid=["a b c"], shifts={})
    with pytest.raises(assay.AssayError, match="'causal' but 'a small BERT' is judged as 'masked'"):
        assay.compare(subject, causal, [assay.SVD(rank=2)])
