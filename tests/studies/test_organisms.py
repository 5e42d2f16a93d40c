"""The study of toy English: how often a model is right, how deep its answers lie, how it fails; and what is shipped."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from assay import AssayError
from assay.cli import app
from assay.reports import Chart, Illustrations, Series, write_chart
from assay.studies import organisms
from assay.studies.organisms import Findings, _toy_english, toy_english
from assay.studies.organisms._toy_english import Depth, Right, bag_of_words, depth, right
from assay.subjects import Recipe, Subject, load, shipped, toy_english_model
from assay.tasks import NO_TOKEN, ToyEnglish
from assay.tasks.toy_english import GRAMMARS, ID, VERSION, tokenizer

CHART = Chart(
    name="learned", caption="How much is learned.", x_label="steps", y_label="accuracy", names=None,
    series=[Series(name="all", x=[0, 1], y=[0.0, 1.0], low=[None, None], high=[None, None])],
)  # fmt: skip


def test_every_study_says_what_it_is_about_and_how_much_it_runs():
    assert organisms.names()[0] == organisms.FIRST
    for name in organisms.names():
        found = organisms.study(name)
        assert 20 < len(found.SUMMARY) <= 120, name
        assert not found.SUMMARY.endswith("."), name
        assert min(found.SEEDS, found.SEQUENCES - 1) >= 1, name


def test_a_study_leaves_its_numbers_and_its_figure(tmp_path, monkeypatch):
    asked = {}

    def run(folder, **options):
        asked.update(options)
        return Findings({"share": 0.5}, Illustrations(charts=[CHART]))

    monkeypatch.setattr(organisms, "study", lambda name: SimpleNamespace(SUMMARY="", SEEDS=3, SEQUENCES=50, run=run))
    found = organisms.run("any", tmp_path, seeds=2, device="cpu")
    assert (asked["seeds"], asked["sequences"], asked["device"]) == (2, 50, "cpu")
    numbers = json.loads((tmp_path / organisms.RESULTS).read_text())
    assert numbers == {"organism": "any", "seeds": 2, "sequences": 50, "share": 0.5}
    assert (tmp_path / "figures" / "learned.svg").read_text().startswith("<?xml")
    write_chart(found.shown, tmp_path / "page.svg")
    assert (tmp_path / "page.svg").read_text() == (tmp_path / "figures" / "learned.svg").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [({"name": "toy-inglish"}, "toy-english"), ({"name": "_study"}, "toy-english"), ({"seeds": 0}, "seeds is 0"),
     ({"sequences": 1}, "sequences 1"), ({"seeds": 9}, "9 seeds were asked for; 3 trainings")],
    ids=["name", "private", "seeds", "sequences", "shipped"],
)  # fmt: skip
def test_a_study_that_cannot_be_run_is_refused(tmp_path, options, words):
    with pytest.raises(AssayError, match=words):
        organisms.run(**{"name": "toy-english", "folder": tmp_path, **options})


SHIPPED = [(name, seed) for name, seeds in shipped().items() if name.startswith("toy-english") for seed in seeds]
FINISHED = [seed for name, seed in SHIPPED if name == "toy-english"]


@pytest.fixture(scope="module")
def fresh() -> Subject:
    return Subject(toy_english_model(0, width=24, layers=3, heads=2), tokenizer(), "fresh")


@pytest.mark.parametrize("asks", ["ioi", "greater", "agreement"])
def test_right_is_counted_as_by_hand(fresh, asks):
    split = ToyEnglish(asks).split("iid", 30)
    found = right(fresh.model, split)
    accurate, over = [], []
    for row in range(len(split)):
        length = int(split.lengths[row])
        with torch.no_grad():
            logits = fresh.model(input_ids=torch.from_numpy(split.tokens[row : row + 1, :length])).logits[0, -1]
        good = {int(split.answers[row, length - 1])}
        if split.also_right is not None:
            good |= {token for token in split.also_right[row, length - 1].tolist() if token != NO_TOKEN}
        bad = {token for token in np.atleast_1d(split.foils[row, length - 1]).tolist() if token != NO_TOKEN}
        chances = logits.softmax(dim=-1)
        accurate.append(int(logits.argmax()) in good)
        over.append(float(chances[list(good)].sum()) > float(chances[list(bad)].sum()))
    assert found.accuracy == pytest.approx(np.mean(accurate))
    assert found.over_foils == pytest.approx(np.mean(over))
    assert found.prompts == 30


def test_depth_reads_every_block_and_ends_with_the_model(fresh):
    with torch.no_grad():
        for block in fresh.model.model.layers[1:]:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    found = depth(fresh, "choice", 40)
    assert len(set(found.after)) == 1, "blocks that add nothing change nothing"
    assert found.without_heads == found.after[-1]
    assert found.after[-1] == right(fresh.model, ToyEnglish("choice").split("iid", 40)).accuracy
    assert not found.accepted


@pytest.mark.parametrize(
    ("after", "without", "accepted"),
    [((0.6, 0.9, 0.97), 0.66, True), ((0.61, 0.9, 0.97), 0.6, False), ((0.1, 0.9, 0.96), 0.1, False),
     ((0.1, 0.9, 1.0), 0.71, False)],
    ids=["accepted", "early", "wrong", "kept"],
)  # fmt: skip
def test_a_task_solved_in_one_block_or_without_heads_is_not_accepted(after, without, accepted):
    assert Depth("ioi", after, without).accepted is accepted


def test_a_bag_of_words_cannot_match_and_can_add():
    assert bag_of_words("coloured", fitted=300, prompts=100, steps=60) < 0.6
    assert bag_of_words("agreement", fitted=300, prompts=100, steps=60) < 0.6, "ten verbs are right, one is drawn"


@pytest.mark.parametrize(
    ("share", "prompts", "interval"),
    [(1.0, 400, "[0.991, 1.000]"), (0.0, 400, "[0.000, 0.009]"), (0.5, 10, "[0.187, 0.813]")],
    ids=["all", "none", "half"],
)  # fmt: skip
def test_accuracies_have_exact_intervals(share, prompts, interval):
    """All of n: the lower limit is (0.025)^(1/n); half of ten is in tables of Clopper and Pearson."""
    assert toy_english._interval(Right(share, 1.0, prompts)) == interval
    assert f"{0.025 ** (1 / 400):.3f}" == "0.991"


def words(text: str) -> list[str]:
    return text.split()


def test_ways_are_read_off_the_prompts():
    ways = {(asks, name): holds for asks, name, _, holds in toy_english._WAYS}
    text = words("the ring is red . question : what colour is the ring ? W blue X red Y grey Z pink answer")
    assert ways["choice", "letters"](text, "B", "X")
    assert not ways["choice", "letters"](text, "X", "X")
    text = words("the hat is red . the box is grey . question : what colour is the hat ? A grey B red answer")
    assert ways["choice", "distractor"](text, "A", "B")
    assert not ways["choice", "distractor"](text, "B", "B")
    text = words("the dog near the cats behind the birds under the kings")
    assert ways["agreement", "three"](text, "run", "runs")
    assert not ways["agreement", "three"](text, "runs", "runs")
    assert not ways["agreement", "three"](text, "under", "runs")
    text = words("the dog that the cats like")
    assert ways["agreement", "relative"](text, "sing", "runs")
    text = words("mary and olga had lunch at the park . mary passed a cup to")
    assert ways["ioi", "outside_io"](text, "john", "olga")
    assert not ways["ioi", "outside_io"](text, "mary", "olga")
    assert not ways["ioi", "outside_io"](text, "the", "olga")


def test_training_keeps_early_models_and_a_record(tmp_path):
    recipe = Recipe(steps=4, learning_rate=1e-3, checkpoint_every=2, cooldown=0.5)
    looks = []
    trained = _toy_english.train(tmp_path / "m", seed=3, recipe=recipe, early=(2,), prompts=3, looked=looks.append)
    assert [look["step"] for look in looks] == [4]
    assert trained.record["seed"] == 3
    assert trained.record["steps"] == 4
    assert trained.record["vocabulary_version"] == VERSION
    assert set(trained.record["accuracy"]) == set(GRAMMARS)
    assert trained.record["log"][-1]["accuracy"].keys() == GRAMMARS.keys()
    early, written = load(tmp_path / "m" / "2"), load(tmp_path / "m")
    assert early.record["name"] == "toy-english@2"
    assert early.weights_sha256 != written.weights_sha256 == trained.record["weights_sha256"]
    assert not (tmp_path / "m" / "checkpoint.pt").exists()
    with pytest.raises(AssayError, match="holds a trained model already"):
        _toy_english.train(tmp_path / "m", recipe=recipe)


@pytest.mark.parametrize(("name", "seed"), SHIPPED)
def test_a_shipped_model_reads_the_frozen_words_and_is_what_its_record_says(name, seed):
    subject = load(name, seed=seed)
    assert subject.tokenizer is not None
    assert subject.tokenizer.get_vocab() == ID
    assert subject.record["vocabulary_version"] == VERSION
    assert subject.record["weights_sha256"] == subject.weights_sha256
    assert subject.record["name"] == name
    steps = name.partition("@")[2]
    assert not steps or subject.record["steps"] == int(steps)
    found = right(subject.model, ToyEnglish("choice").split("iid", 400)).accuracy
    assert found == pytest.approx(subject.record["accuracy"]["choice"]["iid"]["accuracy"], abs=0.01)


def test_every_finished_model_solves_every_task_as_its_record_says():
    for seed in FINISHED:
        record = load("toy-english", seed=seed).record["accuracy"]
        assert record.keys() == GRAMMARS.keys()
        assert min(splits["iid"]["accuracy"] for splits in record.values()) > 0.5


SHORT = {(1, "induction")}
"""What falls short: seed 1 is right on 0.950 of the lists, and 0.97 is asked."""


@pytest.mark.slow
@pytest.mark.parametrize("seed", FINISHED)
@pytest.mark.parametrize("asks", _toy_english.JUDGED)
def test_a_shipped_model_passes_the_acceptance_test_or_is_known_not_to(seed, asks):
    assert depth(load("toy-english", seed=seed), asks).accepted is ((seed, asks) not in SHORT)


@pytest.mark.parametrize("study", [("organisms",), ("programs",)], ids=["organisms", "programs"])
def test_tables_do_not_go_where_the_figure_goes(study, tmp_path):
    found = CliRunner().invoke(app, ["run", *study, "--markdown", str(tmp_path / "page.svg")])
    assert found.exit_code == 2
    assert "figure goes" in " ".join(found.output.replace("│", " ").split())
    assert not list(tmp_path.iterdir())
