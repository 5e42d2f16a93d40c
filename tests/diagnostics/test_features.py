"""Where features are on, and which of them tell something: sequences whose activations are known by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

import assay
from assay import AssayError
from assay.diagnostics import feature_use, telling_features, top_sequences
from assay.diagnostics._features import texts_of
from assay.engine import Engine, collect
from assay.tasks import Dyck
from one_hot import Given, fitted, relu_dictionary, split_of, subject_of

V = 6


@pytest.fixture(scope="module")
def known():
    """Feature f is on at token f, as much as the f-th scale; feature 5 is never on in distribution."""
    scales = torch.tensor([1.0, 2, 3, 4, 5, 6], dtype=torch.float64)
    subject = subject_of(torch.eye(V, dtype=torch.float64))
    task = Given(
        [
            split_of("train", [[0, 1, 2, 3]]),
            split_of("iid", [[0, 1, 2, 0, 0, 0], [0, 0, 0, 2, 2, 0], [4, 4, 1, 2, 3, 3], [3, 3, 3, 1, 0, 0]]),
            split_of("shifted", [[5, 5, 5, 0, 1, 0], [5, 2, 2, 2, 0, 0]], lengths=[6, 4]),
        ]
    )
    dictionary = relu_dictionary(torch.diag(scales), torch.diag(1 / scales))
    return subject, task, fitted(dictionary, subject, task)


def test_use_counts_every_token_and_no_padding(known):
    subject, task, recipe = known
    use = feature_use(subject, task, recipe)
    assert list(use["split"].unique()) == ["iid", "shifted"]
    for name in ("iid", "shifted"):
        split = task.split(name, 99)
        shown = split.tokens[split.valid]
        own = use[use["split"] == name].set_index("feature")
        for token in range(V):
            share = (shown == token).mean()
            assert own.loc[token, "on"] == pytest.approx(share)
            assert own.loc[token, "mean"] == pytest.approx((token + 1) * share)
            # The rows of this decoder are as short as the activations are large.
            assert own.loc[token, "contribution"] == pytest.approx(share)
            assert own.loc[token, "largest"] == pytest.approx((token + 1) * (share > 0))
            assert own.loc[token, "vectors"] == len(shown)


def test_telling_features_are_those_that_change(known):
    subject, task, recipe = known
    picked = telling_features(feature_use(subject, task, recipe), count=1)
    assert picked.to_dict("records") == [
        {"feature": 5, "why": "moved", "split": "shifted"},  # 0 to 4 of 10 tokens
        {"feature": 0, "why": "most used", "split": "shifted"},
    ]
    more = telling_features(feature_use(subject, task, recipe), count=2, shift="shifted")
    assert list(more["feature"]) == [5, 0, 3, 2]
    assert list(more["why"]) == ["moved", "moved", "most used", "most used"]


def test_newly_dense_features_are_those_dense_in_the_shift_alone():
    rows = [("iid", 0, 0.5, 1.0), ("iid", 1, 0.05, 0.1), ("iid", 2, 0.01, 0.1), ("iid", 3, 0.2, 0.1)]
    rows += [("a", 0, 0.5, 9.0), ("a", 1, 0.3, 0.2), ("a", 2, 0.09, 0.1), ("a", 3, 0.9, 0.1)]
    rows += [("b", 0, 0.5, 5.0), ("b", 1, 0.4, 0.2), ("b", 2, 0.02, 0.1), ("b", 3, 0.9, 0.1)]
    use = pd.DataFrame(rows, columns=["split", "feature", "on", "contribution"])
    use["role"] = use["split"].where(use["split"] == "iid", "shift")
    assert telling_features(use, count=1).to_dict("records") == [
        {"feature": 0, "why": "moved", "split": "a"},
        {"feature": 1, "why": "newly dense", "split": "b"},
        {"feature": 2, "why": "most used", "split": "a"},
    ]
    with pytest.raises(AssayError, match="no shift in this frame"):
        telling_features(use[use["role"] == "iid"])
    with pytest.raises(AssayError, match="unknown shift 'c'"):
        telling_features(use, shift="c")


def test_the_most_active_places_come_first_and_equal_ones_once(known):
    subject, task, recipe = known
    first, second = top_sequences(subject, task, recipe, 2, before=1, after=1)
    assert (first.split, first.feature, first.place) == ("iid", 2, "layer0.residual")
    # Token 2 with a neighbour on each side; in three sequences, all with other neighbours.
    assert [one.sequence for one in first.sequences] == [0, 1, 2]
    assert [one.tokens for one in first.sequences] == [(1, 2, 0), (0, 2, 2), (1, 2, 3)]
    assert [one.activations for one in first.sequences] == [(0, 3, 0), (0, 3, 3), (0, 3, 0)]
    assert [one.start for one in first.sequences] == [1, 2, 2]
    assert all(one.best == 1 and one.largest == 3 for one in first.sequences)
    assert first.on == pytest.approx(4 / 24)
    assert first.mean == pytest.approx(12 / 24)
    assert second.sequences[0].tokens == (5, 2, 2)
    # Without neighbours, all are the same.
    alone, _ = top_sequences(subject, task, recipe, 2, before=0, after=0)
    assert [one.tokens for one in alone.sequences] == [(2,)]
    (never, shown) = top_sequences(subject, task, recipe, 5)
    assert never.sequences == ()
    assert [one.largest for one in shown.sequences] == [6, 6]


def test_several_features_are_found_in_their_order_and_few_when_few_are_asked_for(known):
    subject, task, recipe = known
    found = top_sequences(subject, task, recipe, [3, 0], splits=["shifted", "iid"], count=1)
    assert [(one.feature, one.split) for one in found] == [(3, "shifted"), (3, "iid"), (0, "shifted"), (0, "iid")]
    assert [len(one.sequences) for one in found] == [0, 1, 1, 1]


def test_a_trained_dictionary_shows_what_its_codes_are(subject, task):
    engine = Engine(subject)
    at = collect(engine, task.split("train", 60), ("residual",)).at(engine.site("layer1.residual"))
    recipe = assay.SparseAutoencoder(k=2, features=24, steps=30, batch=64).fit(at)
    ((dictionary,),) = recipe.dictionaries_.values()
    use = feature_use(subject, task, recipe, splits=["iid"], sequences=20)
    number = int(use["mean"].idxmax())
    (found,) = top_sequences(subject, task, recipe, number, splits=["iid"], sequences=20)
    split = task.split("iid", 20)
    tokens = torch.from_numpy(split.tokens.astype(np.int64))
    hidden = subject.model(tokens, output_hidden_states=True).hidden_states[1].detach()
    codes = dictionary.encode(hidden[torch.from_numpy(split.valid)]).dense()[:, number]
    by_token = np.zeros(split.tokens.shape)
    by_token[split.valid] = codes.numpy()
    best = found.sequences[0]
    assert best.largest == pytest.approx(by_token.max(), rel=1e-5)
    shown = slice(best.start, best.start + len(best.tokens))
    np.testing.assert_allclose(best.activations, by_token[best.sequence, shown], rtol=1e-4, atol=1e-6)
    assert found.mean == pytest.approx(float(codes.mean()), rel=1e-5)


def test_texts_are_those_of_the_whole(subject, task):
    split = task.split("iid", 1)
    own = split.tokens[0, : int(split.lengths[0])]
    assert "".join(texts_of(subject, split, own)) == subject.tokenizer.decode(own.tolist())
    code = assay.load("code-python")
    ids = np.array(code.tokenizer("def f(x):\n    return x  # é")["input_ids"])[1:]
    made = split_of("iid", [ids])
    assert "".join(texts_of(code, made, ids)).startswith("def f(x):\n    return x  # ")
    assert len(texts_of(code, made, ids)) == len(ids)


def _bytes():
    tokens = dict.fromkeys(["play", "ing", "Ġfield", "Ġ", "Ã", "©", "Ċ"])
    made = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, []))
    made.decoder = decoders.ByteLevel()
    return made


def _pieces():
    tokens = ["play", "##ing", "field"]
    made = Tokenizer(models.WordPiece({token: number for number, token in enumerate(tokens)}, unk_token="field"))
    made.decoder = decoders.WordPiece(cleanup=False)
    return made


def _spaces():
    made = Tokenizer(models.WordLevel({"▁play": 0, "ing": 1, "▁field": 2}, unk_token="ing"))
    made.decoder = decoders.Metaspace()
    return made


@pytest.mark.parametrize(
    ("made", "ids", "wanted"),
    [
        (_bytes, [0, 1, 2, 6, 3], ["play", "ing", " field", "\n", " "]),
        (_pieces, [0, 1, 2], ["play", "ing", " field"]),
        (_spaces, [0, 1, 2], ["play", "ing", " field"]),
    ],
)
def test_texts_keep_the_white_space_of_any_tokenizer(made, ids, wanted):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made(), clean_up_tokenization_spaces=False)
    subject = subject_of(torch.eye(8, dtype=torch.float64), tokenizer=tokenizer)
    assert texts_of(subject, split_of("iid", [ids]), np.array(ids)) == wanted


def test_texts_without_a_tokenizer_are_names(known):
    subject, task, _ = known
    assert texts_of(subject, task.split("iid", 1), np.array([0, 4])) == ["0 ", "4 "]
    named = Dyck(brackets=2, max_depth=2, deeper=3, training_sentences=50, max_brackets=8).split("iid", 1)
    assert texts_of(subject, named, np.array([4, 0, 2])) == ["START ", "(0 ", "0) "]


def test_what_has_no_features_and_what_is_unknown_is_refused(known, engine, samples):
    subject, task, recipe = known
    for fails, words in (
        (lambda: feature_use(subject, task, assay.SVD(rank=2)), "has no features; give a dictionary"),
        (lambda: feature_use(subject, task, assay.SparseAutoencoder()), "has not been fitted"),
        (lambda: feature_use(subject, task, recipe, place="layer1.residual"), "unknown place 'layer1.residual'"),
        (lambda: feature_use(subject, task, recipe, splits=["idd"]), "did you mean 'iid'"),
        (lambda: top_sequences(subject, task, recipe, 6), "has features 0 to 5"),
        (lambda: top_sequences(subject, task, recipe, [True]), "a list of whole numbers"),
        (lambda: top_sequences(subject, task, recipe, 1, count=0), "count=0"),
    ):
        with pytest.raises(AssayError, match=words):
            fails()
