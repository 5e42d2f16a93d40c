import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch

from assay import AssayError
from assay.subjects import Subject, code_model, load, save, shipped
from assay.tasks import SPECIALS, Code, code_vocabulary

NAMES = [name for name in shipped() if name.startswith("code-")]

HELD_OUT = {
    "code-java": """public int indexOf(String value) {
        for (int i = 0; i < size; i++) {
            if (values[i].equals(value)) {
                return i;
            }
        }
        return -1;
    }""",
    "code-python": '''def find(self, value):
        """Return the index of the value."""
        for index, other in enumerate(self.values):
            if other == value:
                return index
        return None''',
}


@pytest.fixture
def task() -> Code:
    return Code(vocabulary_from=(*SPECIALS, *"\n\t (){};=+abcdefint"))


def test_the_reference_model_is_four_layers_of_four_heads_with_tied_embeddings(task: Code) -> None:
    model = code_model(task, 0)
    config = model.config
    assert (config.n_layer, config.n_head, config.n_embd, config.n_inner) == (4, 4, 128, 512)
    assert config.activation_function == "gelu_pytorch_tanh"
    assert config.resid_pdrop == config.embd_pdrop == config.attn_pdrop == 0
    assert model.lm_head.weight is model.transformer.wte.weight
    assert config.n_positions == task.context
    assert torch.equal(model.lm_head.weight, code_model(task, 0).lm_head.weight)
    assert not torch.equal(model.lm_head.weight, code_model(task, 1).lm_head.weight)


def test_the_tokenizer_agrees_with_the_task_and_survives_saving(task: Code, tmp_path: Path) -> None:
    save(Subject(code_model(task, 0), task.tokenizer(), "x", record={"seed": 0}), tmp_path)
    tokenizer = load(tmp_path).tokenizer
    assert tokenizer is not None
    assert code_vocabulary(tokenizer) == task.vocabulary
    for text in ("int f() {\n\treturn a  + é;\n}", "<end>", " ", "aé\U0001f600b"):
        of_task = task.read_function(text + "x", "java").tokens[0][:-2]
        assert tokenizer(text).input_ids == of_task.tolist()
    assert tokenizer.decode(tokenizer("int  a\n").input_ids, skip_special_tokens=True) == "int  a\n"
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (task.pad_id, task.end_id)
    assert tokenizer.unk_token_id == task.unknown_id


def test_a_model_without_a_character_tokenizer_is_refused(task: Code) -> None:
    with pytest.raises(AssayError, match="this one has no tokenizer"):
        code_vocabulary(None)
    tokenizer = task.tokenizer()
    tokenizer.add_tokens(["new"])
    assert code_vocabulary(tokenizer)[-1] == "new"
    with pytest.raises(AssayError, match="'new'"):
        Code(vocabulary_from=code_vocabulary(tokenizer))


def test_weights_stored_in_half_precision_are_loaded_as_the_record_says(task: Code, tmp_path: Path) -> None:
    subject = Subject(code_model(task, 0), None, "x", record={"dtype": "float32"})
    save(subject, tmp_path, stored=torch.float16)
    assert subject.model.dtype == torch.float32
    read = load(tmp_path)
    assert read.model.dtype == torch.float32
    weights = subject.model.state_dict()
    assert all(torch.equal(value, weights[name].half().float()) for name, value in read.model.state_dict().items())
    assert load(tmp_path, dtype=torch.float16).model.dtype == torch.float16
    (tmp_path / "training.json").unlink()
    assert load(tmp_path).model.dtype == torch.float16


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_model_is_small_and_its_record_complete(name: str) -> None:
    assert 0 in shipped()[name]
    folder = files("assay.subjects") / "checkpoints" / name / "seed-0"
    assert sum(len(path.read_bytes()) for path in folder.iterdir()) < 5_000_000
    subject = load(name)
    assert subject.model.dtype == torch.float32
    record = subject.record
    assert record["weights_sha256"] == subject.weights_sha256
    assert record["model"]["parameters"] == subject.parameters
    assert set(record["measured"]) == set(record["task"]["splits"])
    measured = record["measured"]
    assert 0 < measured["iid"]["bits_per_character"] < measured["unseen_repository"]["bits_per_character"] < 4
    assert "/" not in json.dumps(record["task"]["source"])


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_model_predicts_what_it_was_trained_on_and_a_fresh_one_does_not(name: str) -> None:
    subject = load(name)
    task = Code(vocabulary_from=code_vocabulary(subject.tokenizer))
    tokens = torch.from_numpy(task.read_function(HELD_OUT[name], name.removeprefix("code-")).tokens)

    def bits(judged: Subject, ids: torch.Tensor) -> float:
        logits = judged(ids)[0, :-1]
        return torch.nn.functional.cross_entropy(logits, ids[0, 1:]).item() / np.log(2)

    assert bits(subject, tokens) < 3
    assert bits(subject.shuffled_copy(), tokens) > 5
    shuffled = tokens[:, torch.randperm(tokens.shape[1], generator=torch.Generator().manual_seed(0))]
    assert bits(subject, shuffled) > 5
