"""The search for a bracket matcher that generalizes to depth: what its candidates are and how they are measured."""

import json

import numpy as np
import pytest
import torch

import dyck_generalization as search
from assay import compare
from assay.engine import Engine
from assay.simplify import Identity
from assay.subjects import IGNORED, Subject, dyck_model
from assay.tasks import Dyck

LANGUAGE = search.Language(
    Dyck(brackets=3, max_depth=4, deeper=8, training_sentences=2_000, max_brackets=60), 2, 300, 40
)
COUNTER = "counter"


def splits():
    return [LANGUAGE.task.split(name, LANGUAGE.sequences) for name in ("iid", "unseen_depth")]


def dealt(candidate, steps=40):
    """The training sentences of the first steps, as tuples of tokens after START."""
    batches = search.batches_of(candidate, LANGUAGE, 0, steps)
    return [[tuple(row[row != IGNORED].tolist()) for row in batches(step).labels] for step in range(steps)]


@pytest.mark.parametrize("name", ["no positions", "rotary", "counter", "counter, three layers"])
def test_every_architecture_can_be_judged(name):
    model = search.build(search.CANDIDATES[name], LANGUAGE.task, 0).eval()
    subject = Subject(model, LANGUAGE.task.tokenizer(), name)
    candidate = search.CANDIDATES[name]
    assert len(Engine(subject).heads) == candidate.layers
    comparison = compare(subject, LANGUAGE.task, [Identity()], sequences=10, controls=False, resamples=50)
    assert (comparison.agreement("unseen_depth")["estimate"] == 1).all()


def test_shipped_candidate_is_the_shipped_architecture():
    built = search.build(search.CANDIDATES["as shipped"], LANGUAGE.task, 3)
    for one, other in zip(built.parameters(), dyck_model(LANGUAGE.task, 3).parameters(), strict=True):
        assert torch.equal(one, other)
    assert search.LANGUAGES["full"].task == Dyck()


def test_accuracy_is_that_of_a_comparison():
    """As `compare` measures it, and the bands of depth add up to the whole of their split."""
    model = search.build(search.CANDIDATES[COUNTER], LANGUAGE.task, 0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
    iid, deep, *bands = search.measure(model, LANGUAGE.task, splits())
    subject = Subject(model, LANGUAGE.task.tokenizer(), "random")
    comparison = compare(
        subject, LANGUAGE.task, [Identity()], sequences=LANGUAGE.sequences, controls=False, resamples=50
    )
    rows = comparison.results.query("metric == 'subject_accuracy' and kind == 'closing_far' and feature == ''")
    expected = rows.groupby("split")["estimate"].first()
    assert 0 < deep < 1
    assert [iid, deep] == pytest.approx([expected["iid"], expected["unseen_depth"]], abs=1e-9)
    split = splits()[1]
    depth = split.features["depth"][split.kinds == search.CLOSING_FAR]
    shares = [(depth <= 4).mean(), ((depth > 4) & (depth <= 6)).mean(), (depth > 6).mean()]
    assert np.dot(shares, bands) == pytest.approx(deep)


@pytest.mark.parametrize("positions", ["none", "linear"])
def test_fixed_positions_stay_as_they_are(positions, tmp_path):
    candidate = search.Candidate(positions)
    fixed = search.build(candidate, LANGUAGE.task, 0).transformer.wpe.weight
    assert not fixed.requires_grad
    assert (fixed[:, 1:] == 0).all()
    steps = fixed[1:, 0] - fixed[:-1, 0]
    assert (steps > 0).all() if positions == "linear" else (steps == 0).all()


def test_counter_attends_to_all_tokens_alike():
    model = search.build(search.CANDIDATES[COUNTER], LANGUAGE.task, 0).eval()
    model.set_attn_implementation("eager")
    tokens = torch.from_numpy(splits()[0].tokens[:2, :12])
    pattern = model(input_ids=tokens, output_attentions=True).attentions[0]
    expected = torch.ones(12, 12).tril() / torch.arange(1, 13)[:, None]
    torch.testing.assert_close(pattern, expected.expand_as(pattern))
    open_model = search.build(search.CANDIDATES["rotary, parallel"], LANGUAGE.task, 0).eval()
    open_model.set_attn_implementation("eager")
    with torch.no_grad():
        other = open_model(input_ids=tokens, output_attentions=True).attentions[0]
    assert not torch.allclose(other, pattern, atol=1e-6)


def test_flat_depths_are_flatter_and_of_the_training_sentences():
    train = LANGUAGE.task.split("train", 2_000)
    training = {tuple(row[1:length].tolist()) for row, length in zip(train.tokens, train.lengths, strict=True)}

    def deepest(candidate):
        """How many far closing brackets of depth 3, the deepest that can be far, come for one of depth 1."""
        sentences = [sentence for batch in dealt(candidate) for sentence in batch]
        assert set(sentences) <= training
        width = max(map(len, sentences)) - 1
        rows = np.full((len(sentences), width), -1)
        for row, sentence in zip(rows, sentences, strict=True):
            row[: len(sentence) - 1] = sentence[:-1]
        split = LANGUAGE.task.make_split(rows, name="dealt", role="train", description="")
        counts = np.bincount(split.features["depth"][split.kinds == search.CLOSING_FAR], minlength=5)
        return counts[3] / counts[1]

    assert deepest(search.Candidate(flat=True)) > 1.3 * deepest(search.Candidate())


def test_curriculum_begins_with_short_sentences():
    longest = [max(map(len, batch)) for batch in dealt(search.Candidate(curriculum=0.5))]
    assert max(longest[:20]) < LANGUAGE.task.positions // 2 < max(longest[20:])


def test_a_finished_training_is_read_again_and_a_table_has_its_numbers(tmp_path):
    search.run(COUNTER, LANGUAGE, 1, tmp_path)
    (file,) = tmp_path.glob("*.json")
    record = json.loads(file.read_text())
    assert (record["name"], record["seed"], record["steps"], record["done"]) == (COUNTER, 1, 2, 2)
    record["accuracy"][1] = 0.123
    file.write_text(json.dumps(record))
    search.run(COUNTER, LANGUAGE, 1, tmp_path)
    assert json.loads(file.read_text()) == record
    search.run("as shipped", LANGUAGE, 0, tmp_path)
    lines = search.table(tmp_path).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| as shipped", f"| {COUNTER}"]
    assert lines[3].split(" | ")[3:6:2] == ["2", "12.3"]


def test_a_stopped_training_says_so_and_goes_on(tmp_path):
    search.run(COUNTER, LANGUAGE, 0, tmp_path)
    (file,) = tmp_path.glob("*.json")
    finished = json.loads(file.read_text())
    file.write_text(json.dumps({**finished, "done": 1}))
    assert search.table(tmp_path).splitlines()[2].split(" | ")[3] == "1 of 2"
    file.with_suffix(".pt").unlink()
    search.run(COUNTER, LANGUAGE, 0, tmp_path)
    assert json.loads(file.read_text()) == finished


def test_every_training_has_a_file_of_its_own(tmp_path):
    """Also where a name has a point in it, which looks like the beginning of a suffix."""
    for seed in (0, 1):
        search.run("counter, weight decay 0.3", LANGUAGE, seed, tmp_path)
    search.run("as shipped, weight decay 0.3", LANGUAGE, 0, tmp_path)
    records = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert sorted((record["name"], record["seed"]) for record in records) == [
        ("as shipped, weight decay 0.3", 0), ("counter, weight decay 0.3", 0), ("counter, weight decay 0.3", 1),
    ]  # fmt: skip
