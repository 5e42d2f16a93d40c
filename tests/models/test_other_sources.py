"""Other models as people hold them: adapters and GGUF files, judged by compare."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import assay
from assay import OtherModel
from assay.subjects import Subject, save, takes_base
from assay.tasks import Text

QUICK = {"sequences": 20, "resamples": 100}


@pytest.fixture(scope="module")
def tokenizer():
    words = ["[UNK]", "[PAD]", *(f"w{number}" for number in range(62))]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")


@pytest.fixture(scope="module")
def subject(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=64,
                         initializer_range=0.3, bos_token_id=None, eos_token_id=None)  # fmt: skip
    return Subject(LlamaForCausalLM(config).eval(), tokenizer, "base")


@pytest.fixture(scope="module")
def text(tokenizer):
    rng = np.random.default_rng(0)
    made = [[" ".join(f"w{n}" for n in rng.integers(0, 62, 12)) for _ in range(20)] for _ in range(2)]
    return Text(tokenizer, None, made[0], {"other": made[1]}, max_length=16)


@pytest.mark.parametrize("filled", [False, True])
def test_an_adapter_is_judged_on_the_subject_and_a_fresh_one_is_identical(subject, text, tmp_path, filled):
    peft = pytest.importorskip("peft")
    save(subject, tmp_path / "base")
    adapted = peft.get_peft_model(
        assay.load(tmp_path / "base").model, peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    if filled:
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.5)
    adapted.save_pretrained(tmp_path / "adapter")
    assert takes_base(tmp_path / "adapter")
    other = OtherModel(tmp_path / "adapter", base=subject)
    comparison = assay.compare(subject, text, [other], **QUICK)
    [verdict] = comparison.verdicts()
    assert (verdict.judgement == "identical") == (not filled)
    about = comparison.record.proxies[0].about
    assert about["source"] == "adapter"
    assert about["weights_changed"]["matrices"] == (2 if filled else 0)


@pytest.mark.parametrize(("kind", "identical"), [("F32", True), ("Q8_0", False)])
def test_a_gguf_file_is_judged_as_its_weights_were_rounded(subject, text, tmp_path, kind, identical):
    gguf = pytest.importorskip("gguf")
    from gguf_files import write  # noqa: PLC0415  (it needs gguf)

    write(tmp_path / "it.gguf", subject.model, getattr(gguf.GGMLQuantizationType, kind))
    assert takes_base(tmp_path / "it.gguf")
    other = OtherModel(tmp_path / "it.gguf", base=subject, same_tokenizer=True)
    comparison = assay.compare(subject, text, [other], **QUICK)
    [verdict] = comparison.verdicts()
    assert (verdict.judgement == "identical") == identical
    assert comparison.record.proxies[0].about["source"] == "gguf"


def test_a_whole_model_takes_no_base(subject, tmp_path):
    save(subject, tmp_path / "model")
    assert not takes_base(tmp_path / "model")
    assert not takes_base("dyck-20-10")
