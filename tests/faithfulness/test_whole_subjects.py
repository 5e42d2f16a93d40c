"""Subjects whose attention cannot be read, or that have none, are judged against what replaces them whole."""

import copy

import pytest
import torch
from transformers import FNetConfig, FNetForMaskedLM, MambaConfig, MambaForCausalLM

import assay
from assay import AssayError, OtherModel
from assay.engine import Edit, Engine, Head, PlainEngine, engine_of, tensors
from assay.faithfulness import Comparison
from assay.models import StoredModel, store_model
from assay.subjects import Subject, save

CALL = {"sequences": 20, "resamples": 99}


def mamba(vocabulary, tokenizer=None, name="mamba"):
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=vocabulary, hidden_size=16, num_hidden_layers=2, state_size=4, pad_token_id=0)
    return Subject(MambaForCausalLM(config).eval(), tokenizer, name)


def with_noise(subject, size, name):
    model = copy.deepcopy(subject.model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * parameter.std(correction=0) * torch.randn(parameter.shape, generator=generator))
    return Subject(model, subject.tokenizer, name)


@pytest.fixture(scope="module")
def without_attention(task):
    return mamba(task.tokenizer().vocab_size)


@pytest.fixture(scope="module")
def others(without_attention):
    copied = Subject(copy.deepcopy(without_attention.model), None, "copied")
    return copied, with_noise(without_attention, 0.5, "noisy")


@pytest.fixture(scope="module")
def comparison(without_attention, task, subject, others):
    given = [
        OtherModel(others[0], same_tokenizer=True),
        OtherModel(others[1], same_tokenizer=True),
        OtherModel(Subject(subject.model, None, "gpt"), same_tokenizer=True),
        assay.RoundWeights(bits=3),
    ]
    return assay.compare(without_attention, task, given, **CALL)


def test_verdicts_are_those_of_any_model(comparison):
    found = {verdict.proxy: verdict.judgement for verdict in comparison.verdicts()}
    assert [name for name, judgement in found.items() if judgement == "identical"] == ["copied"]
    assert list(found) == ["copied", "noisy", "gpt", "RoundWeights(bits=3)"]
    assert 0 < comparison.record.noise_floor.logit_difference_as_loaded < 1e-4
    assert comparison.record.noise_floor.flipped == 0


def test_numbers_are_those_of_two_plain_passes(comparison, without_attention, others, task):
    tokens, valid = tensors(task.split("iid", 20), without_attention.device)
    p, q = (one(tokens, valid).double() for one in (without_attention, others[1]))
    scored = torch.from_numpy(task.split("iid", 20).kinds >= 0)
    kl = (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1)[scored].mean().item()
    rows = comparison.results.query("proxy == 'noisy' and split == 'iid' and kind == 'all' and feature == ''")
    rows = rows.set_index("metric")
    assert rows.loc["kl", "estimate"] == pytest.approx(kl, rel=1e-5)
    assert rows.loc["kl", "predictions"] == int(scored.sum())


def test_attention_is_skipped_with_its_reason(comparison):
    rows = comparison.results.query("metric == 'attention_jsd'")
    assert rows["estimate"].isna().all()
    assert rows["reason"].str.startswith("skipped: ").all()
    assert rows["reason"].str.contains("does not compute attention through transformers'").all()


def test_its_parts_cannot_be_judged(without_attention, others, task):
    with pytest.raises(AssayError, match="does not compute attention through transformers"):
        assay.compare(without_attention, task, [OtherModel(others[0], same_tokenizer=True), assay.SVD(rank=2)], **CALL)
    engine = engine_of(without_attention, parts=False)
    assert isinstance(engine, PlainEngine)
    with pytest.raises(AssayError, match=r"site 'layer0\.mlp': MambaForCausalLM"):
        engine.sites(["layer0.mlp"])
    tokens = engine.few_tokens()
    for options in ({"edits": [Edit(Head(0, 0))]}, {"read": ("queries",)}):
        with pytest.raises(AssayError, match="neither read nor edited"):
            engine.run(tokens, **options)


def test_a_subject_that_can_be_read_is_read(subject):
    assert type(engine_of(subject, parts=False)) is Engine


class OfPictures(FNetForMaskedLM):
    """Needs more than tokens."""

    def forward(self, input_ids, pictures, attention_mask=None):
        return super().forward(input_ids)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(FNetForMaskedLM, "ignores which tokens are valid"), (OfPictures, "could not be run on token ids")],
)
def test_a_subject_that_cannot_take_padding_is_refused(kind, reason):
    torch.manual_seed(0)
    config = FNetConfig(vocab_size=30, hidden_size=16, num_hidden_layers=2, intermediate_size=32)
    mixing = Subject(kind(config).eval(), None, "fnet")
    with pytest.raises(AssayError, match=reason):
        engine_of(mixing, parts=False)


def test_it_is_stored_too(without_attention, others, task, tmp_path):
    splits = [task.split(name, 5) for name in task.split_names[1:]]
    store_model(others[1], splits, tmp_path / "noisy")
    given = [StoredModel(tmp_path / "noisy", "stored"), OtherModel(others[1], same_tokenizer=True)]
    frame = assay.compare(without_attention, task, given, sequences=5, resamples=99).agreement("iid")
    assert frame["estimate"].nunique() == 1


def test_on_the_command_line(command, tmp_path):
    tokenizer = assay.load("code-python").tokenizer
    base = mamba(tokenizer.vocab_size, tokenizer, "base")
    save(base, tmp_path / "base")
    save(with_noise(base, 0.3, "noisy"), tmp_path / "noisy")
    for name in ("iid", "prose"):
        (tmp_path / f"{name}.txt").write_text("\n".join(f"{name} {n} is a line" for n in range(8)), encoding="utf-8")
    status, _, err = command(
        "compare", tmp_path / "base", "--with", tmp_path / "noisy", "--split", f"iid={tmp_path / 'iid.txt'}", "--split",
        f"prose={tmp_path / 'prose.txt'}", "--sequences", 8, "--max-length", 12, "--out", tmp_path / "run",
    )  # fmt: skip
    assert status == 0, err
    assert [verdict.proxy for verdict in Comparison.load(tmp_path / "run").verdicts()] == ["noisy"]
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Where noisy breaks" in page
    assert "Skipped: MambaForCausalLM" in page
