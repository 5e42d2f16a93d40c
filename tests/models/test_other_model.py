"""Other models in the place of a subject: identical copies, small changes, and what cannot be compared."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import assay
from assay import AssayError, OtherModel
from assay.subjects import Subject, save
from assay.tasks import Text

WORDS = ["[PAD]", "[UNK]", "[MASK]", *(f"w{number}" for number in range(27))]
QUICK = {"sequences": 20, "fit_sequences": 20, "resamples": 100}


def words(names):
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(names)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", mask_token="[MASK]", model_max_length=24
    )


def gpt2(vocabulary=30, positions=24):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=vocabulary, n_positions=positions, n_embd=16, n_layer=2, n_head=2,
                        initializer_range=0.4, bos_token_id=None, eos_token_id=None)  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def lines(seed, count=24):
    rng = np.random.default_rng(seed)
    return [" ".join(f"w{number}" for number in rng.integers(0, 27, rng.integers(3, 20))) for _ in range(count)]


@pytest.fixture(scope="module")
def tokenizer():
    return words(WORDS)


@pytest.fixture(scope="module")
def subject(tokenizer):
    return Subject(gpt2(), tokenizer, "base")


@pytest.fixture(scope="module")
def text(tokenizer):
    return Text(tokenizer, None, lines(0), {"other": lines(1)}, max_length=24)


@pytest.fixture
def altered(subject):
    """A copy of the subject with one weight changed."""
    model = copy.deepcopy(subject.model)
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[0, 0] += 1.0
    return model


def judged(subject, text, *others, **options):
    return assay.compare(subject, text, list(others), **{**QUICK, **options})


def numbers(comparison, metric, split="iid"):
    rows = comparison.results.query("metric == @metric and split == @split and kind == 'all' and feature == ''")
    return rows.set_index("proxy")["estimate"]


# -- identical and changed --------------------------------------------------------------------------------------------


def test_the_same_model_is_identical_however_it_is_given(subject, text, tmp_path):
    save(subject, tmp_path / "saved")
    others = [
        OtherModel(subject, name="itself"),
        OtherModel(copy.deepcopy(subject.model), name="in memory", same_tokenizer=True),
        OtherModel(tmp_path / "saved"),
        OtherModel(str(tmp_path / "saved"), name="again"),
    ]
    comparison = judged(subject, text, *others)
    assert [(verdict.proxy, verdict.judgement) for verdict in comparison.verdicts()] == [
        (name, "identical") for name in ("itself", "in memory", "saved", "again")
    ]
    for metric in ("kl", "kl_reverse", "log_perplexity_ratio", "right_probability", "attention_jsd", "jsd"):
        assert (numbers(comparison, metric) == 0).all(), metric
    about = comparison.record.proxies[2].about
    assert about["weights_changed"] == {"matrices": 0, "of": about["weights_changed"]["of"], "share_of_parameters": 0}
    assert about["weights_sha256"] == subject.weights_sha256


def test_one_weight_is_found(subject, text, altered):
    comparison = judged(subject, text, OtherModel(altered, "altered", same_tokenizer=True))
    [verdict] = comparison.verdicts()
    assert verdict.judgement != "identical"
    [record] = comparison.record.proxies
    assert min(record.logit_difference.values()) > 0
    assert record.about["weights_changed"]["matrices"] == 1
    assert (numbers(comparison, "kl") > 0).all()


def test_base_and_other_exchanged(subject, text, altered):
    """Flips and divergences change places, differences their sign."""
    other = Subject(altered, subject.tokenizer, "altered")
    one, back = judged(subject, text, OtherModel(other)), judged(other, text, OtherModel(subject))
    for metric, reverse, sign in (
        ("flip_to_wrong", "flip_to_right", 1), ("flip_to_right", "flip_to_wrong", 1), ("kl", "kl_reverse", 1),
        ("kl_reverse", "kl", 1), ("log_perplexity_ratio", "log_perplexity_ratio", -1),
        ("right_probability", "right_probability", -1), ("same_prediction", "same_prediction", 1), ("jsd", "jsd", 1),
        ("first_five", "first_five", 1),
    ):  # fmt: skip
        first, second = numbers(one, metric)["altered"], numbers(back, reverse)["base"]
        assert first == pytest.approx(sign * second, rel=1e-4, abs=1e-7), metric
    assert numbers(one, "kl")["altered"] > 1e-6


def test_metrics_of_models_are_for_them_alone(subject, tokenizer):
    task = Text(tokenizer, lines(5), lines(0), {"other": lines(1)}, max_length=24)
    plain = judged(subject, task, assay.SVD(rank=2), controls=False, refit=False)
    assert "kl_reverse" not in {metric.name for metric in plain.record.metrics}
    both = judged(subject, task, assay.SVD(rank=2), OtherModel(subject), controls=False, refit=False)
    assert "kl_reverse" in {metric.name for metric in both.record.metrics}
    assert {verdict.judgement for verdict in both.verdicts()} >= {"identical"}


def test_two_of_one_name_get_numbers(subject, text, altered):
    others = [OtherModel(subject, "it"), OtherModel(altered, "it", same_tokenizer=True)]
    assert [verdict.proxy for verdict in judged(subject, text, *others).verdicts()] == ["it", "it #2"]


def test_half_of_the_attention_is_another_architecture(subject, text, tokenizer):
    torch.manual_seed(1)
    config = LlamaConfig(vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                         num_attention_heads=2, max_position_embeddings=24)  # fmt: skip
    other = Subject(LlamaForCausalLM(config), tokenizer, "llama")
    comparison = judged(subject, text, OtherModel(other))
    rows = comparison.results.query("metric == 'attention_jsd'")
    assert rows["estimate"].isna().all()
    assert set(rows["reason"]) == {
        "skipped: the attention of a LlamaForCausalLM is not compared with that of a GPT2LMHeadModel"
    }
    assert comparison.record.proxies[0].about["weights_changed"] == {
        "unknown": "its matrices are stored otherwise than the subject's"
    }
    assert comparison.verdicts()[0].judgement == "unfaithful", "two random models have nothing to do with each other"


@pytest.mark.slow
def test_several_processes_load_it_from_its_folder(subject, text, tmp_path, altered):
    save(Subject(altered, subject.tokenizer, "altered"), tmp_path / "altered")
    other = OtherModel(tmp_path / "altered")
    alone, shared = judged(subject, text, other), judged(subject, text, other, workers=assay.Workers(2))
    assert numbers(alone, "kl")["altered"] == pytest.approx(numbers(shared, "kl")["altered"], rel=1e-6)


def test_a_folder_whose_weights_changed_is_another_model(subject, text, tmp_path, altered):
    save(subject, tmp_path / "model")
    first = judged(subject, text, OtherModel(tmp_path / "model"), folder=tmp_path / "run")
    save(Subject(altered, subject.tokenizer, "altered"), tmp_path / "model")
    other = OtherModel(tmp_path / "model")
    again = judged(subject, text, other, folder=tmp_path / "run", overwrite=True)
    assert first.verdicts()[0].judgement == "identical"
    assert again.verdicts()[0].judgement != "identical"


# -- objectives -----------------------------------------------------------------------------------------------------


def bert(kind, seed=0):
    torch.manual_seed(seed)
    config = BertConfig(vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=32, max_position_embeddings=24, initializer_range=0.4)  # fmt: skip
    return kind(config).eval()


def test_masked_models(tokenizer):
    base = Subject(bert(BertForMaskedLM), tokenizer, "bert")
    task = Text(tokenizer, None, lines(0), {"other": lines(1)}, max_length=24, objective="masked")
    other = Subject(bert(BertForMaskedLM, 1), tokenizer, "other")
    same, differs = judged(base, task, OtherModel(base), OtherModel(other)).verdicts()
    assert (same.judgement, differs.judgement) == ("identical", "unfaithful")


def test_encoders(tokenizer):
    base = Subject(bert(BertModel), tokenizer, "bert", objective="embedding")
    task = Text(tokenizer, None, lines(0), {"other": lines(1)}, max_length=24, objective="embedding")
    other = Subject(bert(BertModel, 1), tokenizer, "other", objective="embedding")
    same, differs = judged(base, task, OtherModel(base), OtherModel(other)).verdicts()
    assert same.judgement == "identical"
    assert differs.judgement != "identical"
    assert differs.agreement < 0.5


# -- what cannot be compared ------------------------------------------------------------------------------------------


def resized(subject, count):
    model = copy.deepcopy(subject.model)
    model.resize_token_embeddings(count, mean_resizing=False)
    return model


def test_a_padded_vocabulary_is_cut_and_its_mass_said(subject, text):
    model = resized(subject, len(WORDS) + 34)
    with torch.no_grad():
        model.transformer.wte.weight[len(WORDS) :] = 0
    comparison = judged(subject, text, OtherModel(model, "padded", same_tokenizer=True))
    [warning] = [warning for warning in comparison.warnings() if "padded" in warning]
    assert "has 34 answers more than the subject" in warning
    tokens = torch.from_numpy(text.split("other", 8).tokens.astype(np.int64))
    valid = torch.from_numpy(text.split("other", 8).valid)
    with torch.no_grad():
        mass = model(tokens).logits.softmax(-1)[..., len(WORDS) :].sum(-1)[valid].mean()
    assert f"had {100 * float(mass):.2g}% of its probability" in warning
    assert (numbers(comparison, "kl") < 1e-9).all(), "zero rows of padding say nothing of the rest"


def test_fewer_answers_are_refused(subject, text):
    base = Subject(resized(subject, len(WORDS) + 4), subject.tokenizer, "larger")
    with pytest.raises(AssayError, match=r"'base' answers with 30 tokens and 'larger' with 34"):
        judged(base, text, OtherModel(subject))


def test_another_tokenizer_is_refused_by_the_first_token_that_differs(subject, text):
    swapped = [*WORDS]
    swapped[7], swapped[9] = swapped[9], swapped[7]
    other = Subject(gpt2(), words(swapped), "swapped")
    with pytest.raises(AssayError, match=r"token 7 is 'w4' to 'base' and 'w6' to 'swapped'"):
        judged(subject, text, OtherModel(other))


def test_the_same_vocabulary_cut_differently_is_refused(subject, text):
    other = words(WORDS)
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.CharDelimiterSplit("\n")
    with pytest.raises(AssayError, match=r"the tokenizers of 'base' and 'by lines' cut .* differently"):
        judged(subject, text, OtherModel(Subject(gpt2(), other, "by lines")))


def test_a_model_without_a_tokenizer_is_refused_for_text_unless_it_is_said_to_be_the_same(subject, text, task):
    without = Subject(gpt2(), None, "without")
    with pytest.raises(AssayError, match=r"'without' has no tokenizer, .*same_tokenizer=True"):
        judged(subject, text, OtherModel(without))
    assert judged(subject, text, OtherModel(without, same_tokenizer=True)).verdicts()[0].judgement == "identical"


@pytest.mark.parametrize(("make", "message"), {
    "objective": (lambda: Subject(bert(BertForMaskedLM), words(WORDS), "bert"), "as 'masked' and 'base' as 'causal'"),
    "positions": (lambda: Subject(gpt2(positions=8), words(WORDS), "short"), "'short' has 8 positions"),
    "vocabulary": (lambda: Subject(gpt2(20), None, "small"), "'small' has embeddings of 0 to 19 only"),
}.values(), ids=["objective", "positions", "vocabulary"])  # fmt: skip
def test_what_cannot_answer_is_refused_before_any_work(subject, text, tmp_path, make, message):
    with pytest.raises(AssayError, match=message) as caught:
        judged(subject, text, OtherModel(make()), folder=tmp_path / "run")
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


class Deaf(GPT2LMHeadModel):
    """Ignores which tokens are valid, and looks at all of them."""

    def forward(self, input_ids=None, attention_mask=None, **options):
        output = super().forward(input_ids=input_ids, **options)
        output.logits = output.logits + output.logits.mean(dim=1, keepdim=True)
        return output


def test_a_model_that_ignores_padding_is_refused(subject, text):
    deaf = Deaf(subject.model.config)
    deaf.load_state_dict(subject.model.state_dict())
    with pytest.raises(AssayError, match="'deaf' answers differently when a sequence is padded"):
        judged(subject, text, OtherModel(Subject(deaf, subject.tokenizer, "deaf")))


def test_a_dtype_for_a_model_in_memory_is_refused(subject, text):
    with pytest.raises(AssayError, match=r"'base' is in memory already, in torch\.float32"):
        judged(subject, text, OtherModel(subject, dtype=torch.bfloat16))


def test_a_recipe_that_is_fitted_needs_a_train_split(subject, text):
    with pytest.raises(AssayError, match=r"SVD\(rank=2\) is fitted on a train split, and the task has none"):
        judged(subject, text, assay.SVD(rank=2))


def test_weights_that_are_not_finite_are_said_and_nothing_is_claimed(subject, text):
    model = copy.deepcopy(subject.model)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight[0, 0] = float("nan")
    with pytest.raises(AssayError, match=r"'broken' gives logits that are not finite \(sequence 0 of other"):
        judged(subject, text, OtherModel(replace(subject, model=model, name="broken")))
