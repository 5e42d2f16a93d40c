"""Rules against a rule that was planted, against a model that looks at one token, and counted by hand."""

import math

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import assay
from assay import AssayError
from assay.engine import Engine, Samples, collect
from assay.faithfulness import CleanPass
from assay.models import RuleSurrogate, weight_bits
from assay.models._rule_surrogate import Tree, grown, ranked
from assay.subjects import Subject
from assay.tasks import UNSCORED, Question, Read, Split

VOCABULARY = 23
ANY = [Question("feature", name=str(number)) for number in range(20)]


def planted(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """20 coins, and the label of a rule over three of them: where coin 4 is up coin 11 decides, else coin 17."""
    table = np.random.default_rng(seed).integers(2, size=(rows, 20)).astype(np.float32)
    return table, np.where(table[:, 4] == 1, table[:, 11], table[:, 17]).astype(np.int64) + 5


def told(tree: Tree, table: np.ndarray) -> np.ndarray:
    """What a tree predicts for rows of a table, whose columns its questions name."""
    # Of a sequence the first position has read nothing: rows are the second.
    features = {question.name: table[:, [int(question.name)] * 2].astype(np.int64) for question in tree.questions}
    read = Read(np.zeros((len(table), 2), dtype=np.int64), np.ones((len(table), 2), dtype=bool), features)
    return tree.classes[tree.counts[tree.leaf(read)[:, 1]].argmax(axis=1)]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_rule_over_three_of_twenty_features_is_found(seed):
    table, labels = planted(4_000, seed)
    held_out = np.arange(4_000) % 2 == 1
    best = ranked(table, labels, fitted=~held_out, held_out=held_out, seed=seed)
    assert set(best[:3]) == {4, 11, 17}
    tree = grown(table[:, best[:3]], labels, [ANY[n] for n in best[:3]], depth=3, vocabulary=VOCABULARY, seed=seed)
    fresh, right = planted(1_000, seed + 100)
    biased = fresh.copy()
    biased[:, 4] = 1
    assert (told(tree, table) == labels).all()
    assert (told(tree, fresh) == right).all()
    assert (told(tree, biased) == biased[:, 11] + 5).all()


def test_rules_on_a_twin_hold_only_where_it_is_one():
    """A twin of coin 4 decides as well, until it is another coin: then half of the rows ask the wrong coin, and half of
    those hear the same."""
    table, labels = planted(4_000, 3)
    columns = [0, 11, 17]
    table[:, 0] = table[:, 4]
    tree = grown(table[:, columns], labels, [ANY[n] for n in columns], depth=3, vocabulary=VOCABULARY, seed=0)
    assert (told(tree, table) == labels).all()
    shifted, right = planted(20_000, 4)
    assert (told(tree, shifted) == right).mean() == pytest.approx(0.75, abs=0.01)


@pytest.fixture(scope="module")
def last_token():
    """A GPT-2 without attention, MLPs and positions: what it predicts depends on the last token alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=VOCABULARY, n_positions=16, n_embd=16, n_layer=1, n_head=2, initializer_range=0.3,
            bos_token_id=None, eos_token_id=None, tie_word_embeddings=False,
        )  # fmt: skip
        model = GPT2LMHeadModel(config).eval()
    block = model.transformer.h[0]
    with torch.no_grad():
        for part in (model.transformer.wpe, block.attn.c_proj, block.mlp.c_proj):
            part.weight.zero_()
        for part in (block.attn.c_proj, block.mlp.c_proj):
            part.bias.zero_()
    return Subject(model, None, "last token")


def random_split(seed: int, highest: int, **features: np.ndarray) -> Split:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(highest, size=(60, 12))
    return Split("train", "train", "random", tokens, rng.integers(4, 13, size=60), tokens * 0, features)


def fitted(recipe: RuleSurrogate, subject: Subject, split: Split) -> RuleSurrogate:
    return recipe.fit(collect(Engine(subject), split, ()))


def test_a_model_of_the_last_token_is_written_as_rules(last_token):
    recipe = fitted(RuleSurrogate(features=6, depth=5), last_token, random_split(0, 6))
    assert {(question.about, question.back) for question in recipe.tree_.questions} == {("token", 0)}
    tokens = torch.from_numpy(random_split(1, 6).tokens)
    first = last_token(tokens).argmax(dim=-1)
    assert len(first.unique()) > 2
    assert torch.equal(recipe.apply(last_token)(tokens).argmax(dim=-1), first)
    shallow = fitted(RuleSurrogate(features=6, depth=1), last_token, random_split(0, 6))
    assert shallow.tree_.leaves == 2
    share = (shallow.apply(last_token)(tokens).argmax(dim=-1) == first).float().mean()
    constant = fitted(RuleSurrogate(depth=0), last_token, random_split(0, 6))
    assert constant.tree_.leaves == 1
    assert (constant.apply(last_token)(tokens).argmax(dim=-1) == first).float().mean() < share < 1


def test_probabilities_are_smoothed_as_written_down(small):
    split = random_split(2, 5)
    recipe = fitted(RuleSurrogate(features=3, depth=2, tokens=2), small, split)
    tree, proxy = recipe.tree_, recipe.apply(small)
    tokens, valid = torch.from_numpy(split.tokens), torch.from_numpy(split.valid)
    first = small(tokens, valid.long()).argmax(dim=-1)[valid].numpy()
    leaves = tree.leaf(Read(split.tokens, split.valid, {}))[split.valid]
    found = proxy(tokens, valid.long())[valid].double().exp().numpy()
    overall = (np.bincount(first, minlength=VOCABULARY) + 1) / (len(first) + VOCABULARY)
    assert 2 <= len(np.unique(leaves)) == tree.leaves
    for leaf in np.unique(leaves):
        there = first[leaves == leaf]
        expected = (np.bincount(there, minlength=VOCABULARY) + overall) / (len(there) + 1)
        np.testing.assert_allclose(found[leaves == leaf], np.tile(expected, (len(there), 1)), rtol=1e-5)


def test_questions_are_about_what_has_been_read():
    read = Read(np.array([[7, 8, 9, 7]]), np.array([[False, True, True, True]]), {"depth": np.array([[4, 5, 6, 1]])})
    assert read.answers(Question("token", back=0, token=7)).tolist() == [[0, 0, 0, 1]]
    assert read.answers(Question("token", back=1, token=7)).tolist() == [[0, 0, 0, 0]], "padding is no token"
    assert read.answers(Question("token", back=1, token=8)).tolist() == [[0, 0, 1, 0]]
    assert read.answers(Question("token", back=9, token=8)).tolist() == [[0, 0, 0, 0]]
    assert read.answers(Question("position")).tolist() == [[0, 0, 1, 2]]
    # The depth of the prediction at a place is that of the token behind it.
    assert read.answers(Question("feature", name="depth")).tolist() == [[0, 4, 5, 6]]


def test_rules_are_text():
    tree = Tree(
        (Question("position"), Question("token", back=2, token=4)),
        asked=np.array([0, 1, -1, -1, -1]),
        threshold=np.array([6.5, 0.5, -2, -2, -2]),
        left=np.array([1, 3, -1, -1, -1]),
        right=np.array([2, 4, -1, -1, -1]),
        classes=np.array([4, 9]),
        counts=np.array([[0, 0], [0, 0], [1, 3], [2, 0], [0, 1_000]]),
        tests=13,
        vocabulary=VOCABULARY,
    )
    assert tree.rules({4: "("}).splitlines() == [
        "if position > 6.5:",
        "  predict 9 (75% of 4)",
        "else:",
        "  if the token 2 before is '(':",
        "    predict 9 (100% of 1,000)",
        "  else:",
        "    predict '(' (100% of 2)",
    ]


def test_bits_by_hand(last_token):
    """A leaf says one of the tokens that are predicted, another node one of all tests, and every node which it is."""
    recipe = fitted(RuleSurrogate(features=3, depth=1, tokens=2), last_token, random_split(0, 6))
    tree = recipe.tree_
    assert (len(tree.asked), tree.leaves, tree.tests) == (3, 2, 3)
    found = weight_bits(recipe, last_token)
    assert found.total == pytest.approx(3 + 2 * math.log2(len(tree.classes)) + math.log2(3))
    assert (found.parameters, found.per_weight) == (3, pytest.approx(found.total / 3))
    with pytest.raises(AssayError, match="has not been fitted"):
        weight_bits(RuleSurrogate(), last_token)


def test_only_scored_predictions_are_imitated(last_token):
    """Where only what follows token 2 is scored, that is all the rules know."""
    split = random_split(0, 6)
    split.kinds[split.tokens != 2] = UNSCORED
    recipe = fitted(RuleSurrogate(), last_token, split)
    assert recipe.tree_.leaves == 1
    assert recipe.tree_.classes.tolist() == [int(last_token(torch.tensor([[2]])).argmax())]
    split.kinds[:] = UNSCORED
    with pytest.raises(AssayError, match="'train' has no scored prediction"):
        fitted(RuleSurrogate(), last_token, split)


def test_features_of_a_task_are_known_to_a_comparison_alone(task, subject):
    """On a random model, which prefers some brackets after others, and with the depth of the bracket just read."""
    recipe = RuleSurrogate(features=12, depth=6)
    comparison = assay.compare(subject, task, [recipe], sequences=12, fit_sequences=50, resamples=20)
    records = {record.proxy: record for record in comparison.record.proxies}
    assert records["RuleSurrogate(features=12, depth=6)"].control == "RuleSurrogate(depth=0)"
    assert records["RuleSurrogate(depth=0)"].is_control
    rows = comparison.results.query("metric == 'kl' and kind == 'all' and split == 'iid' and feature == ''")
    assert np.isfinite(rows["estimate"]).all()
    fitted(recipe, subject, task.split("train", 50))
    names = {question.name for question in recipe.tree_.questions if question.about == "feature"}
    assert names <= set(task.split("iid", 1).features)
    split = task.split("iid", 5)
    none = np.array([1, -1, -1])
    recipe.tree_ = Tree(
        (Question("feature", name="depth"),),
        asked=np.array([0, -1, -1]),
        threshold=np.array([1.5, 0, 0]),
        left=none,
        right=none + none.clip(0),
        classes=np.array([3]),
        counts=np.ones((3, 1), dtype=np.int64),
        tests=1,
        vocabulary=subject.vocabulary,
    )
    proxy, tokens = recipe.apply(subject), torch.from_numpy(split.tokens)
    with pytest.raises(AssayError, match=r"rules ask for 'depth', a feature of the task.*task_features=False"):
        proxy(tokens)
    clean = CleanPass(Engine(subject), tokens, torch.from_numpy(split.valid).long())
    ((_, answer),) = clean.answers([proxy], batch=split)
    assert answer.logits(slice(2, 4)).shape == (5, 2, subject.vocabulary)
    assert answer.attention == "rules have no attention"


def test_the_same_samples_give_the_same_tree_and_a_saved_one_comes_back(small, each, tmp_path):
    split = random_split(3, 9)
    one, other = (fitted(RuleSurrogate(features=5, depth=3, tokens=2, seed=2), small, split) for _ in range(2))
    assert one.rules() == other.rules()
    assert one.rules().startswith("if ")
    proxy = one.apply(small)
    folder = proxy.save(tmp_path / "rules")
    assert {path.name for path in folder.iterdir()} == {"proxy.json", "tensors.safetensors"}
    again = assay.load_proxy(folder, small, simplification=RuleSurrogate)
    assert again.simplification == one
    assert not again.transferred
    tokens = torch.from_numpy(split.tokens)
    assert torch.equal(again(tokens), proxy(tokens))
    elsewhere = Subject(small.shuffled_copy().model, None, "shuffled")
    moved = assay.load_proxy(folder, elsewhere, simplification=RuleSurrogate)
    assert moved.transferred
    assert moved.fitted_on.name == "a small gpt2"


def test_what_it_cannot_stand_for_is_refused(small, each):
    if each.objective != "causal":
        with pytest.raises(AssayError, match=r"predicts the next token, and 'a small .*' is judged as"):
            RuleSurrogate().check(each, ())
    for wrong, what in (
        (RuleSurrogate(features=0), "features must be a whole number of at least 1"),
        (RuleSurrogate(tokens=0), "tokens must be a whole number of at least 1"),
        (RuleSurrogate(depth=-1), "depth must be a whole number of at least 0"),
    ):
        with pytest.raises(AssayError, match=what):
            wrong.check(small, ())
    with pytest.raises(AssayError, match=r"depth=True\): must be a whole number"):
        RuleSurrogate(depth=True)
    with pytest.raises(AssayError, match=r"RuleSurrogate\(\) has not been fitted"):
        RuleSurrogate().apply(small)
    with pytest.raises(AssayError, match=r"take samples from assay\.engine\.collect"):
        RuleSurrogate().fit(Samples(()))
    splits = [random_split(0, 5), random_split(0, 5, depth=np.zeros((60, 12), dtype=np.int64))]
    with pytest.raises(AssayError, match=r"different features \('train' has none; 'train' has depth\)"):
        RuleSurrogate().check(small, splits)
    RuleSurrogate(task_features=False).check(small, splits)


def test_half_precision_subjects_are_answered_in_float32(small):
    half = Subject(type(small.model)(small.model.config).bfloat16(), None, "half")
    recipe = fitted(RuleSurrogate(), small, random_split(0, 6))
    assert recipe.apply(half)(torch.tensor([[1, 2]])).dtype == torch.float32
