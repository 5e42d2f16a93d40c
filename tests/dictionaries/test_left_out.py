"""Tokens that the training of a published dictionary left out: by hand, in a comparison's record, and never silent."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import assay
from assay import AssayError
from assay.diagnostics import loss_recovered, reconstruction
from assay.dictionaries import CrossLayerReplacement, CrossLayerTranscoder, Dictionary, GivenDictionary, Replacement
from assay.dictionaries._left_out import caution_of, left_out
from assay.engine import Engine
from one_hot import Given, split_of, subject_of
from one_hot import fitted as one_hot_fitted

BOS, END, WORDS = 7, 6, 8


def tokenizer_of(**special):
    model = models.WordLevel({f"t{number}": number for number in range(WORDS)}, unk_token="t0")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), **special)


TOKENIZER = tokenizer_of(bos_token=f"t{BOS}", eos_token=f"t{END}")
SPLIT = split_of("iid", [[BOS, 1, 2, 6, 4], [BOS, 1, 2, 3, 0], [1, 2, 3, 4, 5]], lengths=[5, 3, 5])


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ({"positions": [1, None]}, ["x....", "x..", "x...."]),
        ({"positions": [None, 3]}, ["...xx", "...", "...xx"]),
        ({"positions": [0, None, 2]}, [".x.x.", ".x.", ".x.x."]),
        ({"context": 4}, ["....x", "...", "....x"]),
        ({"context": 4, "positions": [1, -1]}, ["x..xx", "x..", "x..xx"]),
        ({"context": 100, "positions": [2, -97]}, ["xx.xx", "xx.", "xx.xx"]),
        ({"excluded_tokens": True}, ["x..x.", "x..", "....."]),
        ({"excluded_tokens": [2, 99]}, ["..x..", "..x", ".x..."]),
        ({"bos": True}, [".....", "...", "xxxxx"]),
        ({"bos": False}, ["x....", "x..", "....."]),
        ({"bos": True, "positions": [1, None]}, ["x....", "x..", "xxxxx"]),
        ({"format": "sparsify", "bos": None, "excluded_tokens": None}, [".....", "...", "....."]),
    ],
    ids=str,
)
def test_tokens_by_hand(origin, expected):
    found = left_out(origin, SPLIT, TOKENIZER)
    chosen = np.zeros(SPLIT.tokens.shape, dtype=bool) if found.any is None else found.any
    shown = ["".join("x" if one else "." for one in row[:n]) for row, n in zip(chosen, SPLIT.lengths, strict=True)]
    assert shown == expected
    assert not chosen[~SPLIT.valid].any()
    assert found.untold == ()
    said = caution_of(origin, [SPLIT], TOKENIZER)
    assert (said is None) == (found.any is None)
    if said is not None and len(found.by) == 1:
        assert f"{chosen.sum() / 13:.1%} of iid" in said


def test_what_cannot_be_told_is_said():
    for origin, words in (
        ({"bos": True}, "prepend_bos"),
        ({"excluded_tokens": True}, "special tokens"),
        ({"positions": [1, -2]}, "1:-2 of sequences whose length"),
    ):
        known = None if "positions" not in origin else TOKENIZER
        found = left_out(origin, SPLIT, known)
        assert found.any is None
        assert len(found.untold) == 1
        assert words in caution_of(origin, [SPLIT, SPLIT], known)
    # A tokenizer without a first token: TransformerLens takes the last one; with neither no sequence begins with one.
    only_end = left_out({"bos": True}, SPLIT, tokenizer_of(eos_token=f"t{BOS}"))
    np.testing.assert_array_equal(only_end.any, left_out({"bos": True}, SPLIT, TOKENIZER).any)
    neither = left_out({"bos": True}, SPLIT, tokenizer_of())
    np.testing.assert_array_equal(neither.any, SPLIT.valid)
    for wrong in ([1, 2, 3, 4], [0, None, 0]):
        with pytest.raises(AssayError, match="no start, end and step"):
            left_out({"positions": wrong}, SPLIT, TOKENIZER)


def test_either_of_two_leaves_out():
    first = left_out({"positions": [1, None]}, SPLIT, TOKENIZER)
    other = left_out({"excluded_tokens": [2], "bos": True}, SPLIT, None)
    both = first | other
    np.testing.assert_array_equal(both.any, first.any | other.any)
    assert both.untold == other.untold != ()
    assert set(both.by) == set(first.by) | set(other.by)
    np.testing.assert_array_equal((first | first).any, first.any)


# -- in force --------------------------------------------------------------------------------------------------------


FAR = 100.0


@pytest.fixture(scope="module")
def subject():
    """The first token's vector is far from all others, which lie in the first four coordinates."""
    vectors = torch.zeros(WORDS, 8, dtype=torch.float64)
    vectors[:BOS, :4] = torch.randn(BOS, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    vectors[BOS, 7] = FAR
    return subject_of(vectors, tokenizer=TOKENIZER)


@pytest.fixture(scope="module")
def task():
    rng = np.random.default_rng(0)
    splits = []
    for name in ("train", "iid", "bare"):
        tokens = rng.integers(BOS, size=(40, 9))
        if name != "bare":
            tokens[:, 0] = BOS
        splits.append(split_of(name, tokens))
    return Given(splits)


def dictionary_of(**origin):
    """Exact in the first four coordinates, by two features each; a first token it makes nothing of."""
    encoder = torch.zeros(8, 8, dtype=torch.float64)
    for number in range(4):
        encoder[number, 2 * number], encoder[number, 2 * number + 1] = 1, -1
    nothing = torch.zeros(8, dtype=torch.float64)
    return Dictionary("relu", encoder, nothing, encoder.T.contiguous(), nothing, origin=origin)


SITE = "layer0.residual"


def test_a_dictionary_is_tried_on_the_tokens_that_it_was_trained_on(subject, task):
    splits = task.splits
    told = GivenDictionary(dictionary_of(positions=[1, None]), site=SITE)
    told.check(subject, splits)
    assert "it explains" not in told.caution
    # The same without a word on positions: the first token is nearly all of the variance, and nothing of it is kept.
    silent = GivenDictionary(dictionary_of(), site=SITE)
    with pytest.raises(AssayError, match=r"explains -0\.\d+ of the variance"):
        silent.check(subject, splits)
    # Where all tokens were left out, it is tried on all.
    nowhere = GivenDictionary(dictionary_of(bos=True), site=SITE)
    nowhere.check(subject, [splits[2]])
    assert "100.0% of bare" in nowhere.caution


def test_the_record_of_a_comparison_says_it(subject, task):
    given = GivenDictionary(dictionary_of(positions=[1, None], bos=True), site=SITE)
    options = {"sequences": 30, "fit_sequences": 30, "resamples": 50, "controls": False, "refit": False}
    comparison = assay.compare(subject, task, [given], **options)
    [caution] = [proxy.caution for proxy in comparison.record.proxies if not proxy.is_control]
    assert "at other positions than 1:: 11.1% of train, 11.1% of iid, 11.1% of bare" in caution
    assert "without the token that begins a text (prepend_bos): 100.0% of bare" in caution
    assert caution.startswith(given.title)
    assert caution in comparison.warnings()


def test_without_a_site_and_without_a_trial_it_is_said_all_the_same(subject, task):
    for given in (
        GivenDictionary(dictionary_of(bos=False)),
        GivenDictionary(dictionary_of(bos=False), site=SITE, unchecked=True),
    ):
        given.check(subject, task.splits)
        assert "prepend_bos: false" in given.caution
        given.check(subject, [task.split("bare", 9)])
        assert given.caution is None


def test_replacements_say_it_of_every_part(subject, task):
    nothing = torch.zeros(8, dtype=torch.float64)
    one = replace(dictionary_of(), transcodes=True, origin={"positions": [1, None], "name": "first"})
    whole = Replacement([GivenDictionary(one, site="layer0.mlp", unchecked=True)])
    whole.check(subject, task.splits)
    assert whole.caution.startswith("first")
    assert "11.1% of iid" in whole.caution
    across = CrossLayerTranscoder(
        [one.W_enc], [one.b_enc], [one.W_dec[:, None]], [nothing], origin={"positions": [1, None]}
    )
    recipe = CrossLayerReplacement(across)
    recipe.check(subject, task.splits)
    assert "at other positions than 1:: 11.1% of train" in recipe.caution
    assert Engine(subject).site(recipe.own_sites(Engine(subject))[0]).name


def by_hand(subject, dictionary, split, chosen):
    """Explained variance of the chosen tokens about their own mean."""
    x = subject.model.transformer.wte.weight.detach()[torch.from_numpy(split.tokens)][torch.from_numpy(chosen)]
    back = dictionary.reconstruct(x)
    return float(1 - (x - back).square().sum() / (x - x.mean(dim=0)).square().sum())


def test_tokens_left_out_are_a_kind_of_their_own(subject, task):
    made = dictionary_of(positions=[1, None], bos=True)
    # Not exact, so that there is something to tell apart.
    made = replace(made, W_dec=made.W_dec * 0.7)
    fitted = one_hot_fitted(made, subject, task, SITE)
    found = reconstruction(subject, task, fitted, resamples=100).set_index(["split", "kind"])
    assert list(found.loc["iid"].index) == ["all", "next", "trained on", "not trained on"]
    for name in ("iid", "bare"):
        split = task.split(name, 40)
        left = left_out(made.origin, split, TOKENIZER).any
        assert found.loc[(name, "not trained on"), "vectors"] == left.sum()
        assert found.loc[(name, "trained on"), "vectors"] == (~left).sum()
        for kind, chosen in (("trained on", ~left), ("all", split.valid), ("not trained on", left)):
            row = found.loc[(name, kind)]
            if kind == "not trained on" and name == "iid":  # one vector, all the same
                assert "all are the same" in row["reason"]
            elif chosen.any():
                assert row["explained"] == pytest.approx(by_hand(subject, made, split, chosen))
                assert row["explained_low"] <= row["explained"] <= row["explained_high"]
    assert found.loc[("iid", "trained on"), "explained"] > 0.85
    assert found.loc[("iid", "all"), "explained"] < 0
    assert found.loc[("bare", "trained on"), "reason"] == "there are no vectors of this kind, or all are the same"
    # A dictionary whose files leave nothing out has no such kinds.
    plain = reconstruction(subject, task, one_hot_fitted(dictionary_of(), subject, task, SITE), resamples=50)
    assert set(plain["kind"]) == {"all", "next"}


def test_loss_at_tokens_left_out_is_a_kind_of_its_own(subject, task):
    made = dictionary_of(positions=[1, None])
    fitted = one_hot_fitted(made, subject, task, SITE)
    found = loss_recovered(subject, task, fitted, fit_sequences=20, resamples=100).set_index(["split", "kind"])
    for name in ("iid", "bare"):
        own = found.loc[name]
        assert own.loc["not trained on", "predictions"] == 40
        assert own.loc["trained on", "predictions"] == 40 * 7
        for column in ("loss_added", "loss_added_by_zeros", "loss_added_by_means"):
            parts = (own.loc[["trained on", "not trained on"], column] * own.loc[:, "predictions"].iloc[-2:]).sum()
            assert parts / own.loc["all", "predictions"] == pytest.approx(own.loc["all", column], abs=1e-6)
    # Only the first token is changed, and not where there is none.
    assert found.loc[("bare", "all"), "loss_added"] == pytest.approx(0, abs=1e-9)
    assert abs(found.loc[("iid", "not trained on"), "loss_added"]) > 1e-3


def test_kinds_that_cannot_be_told_have_a_reason(subject, task):
    without = replace(subject, tokenizer=None)
    fitted = one_hot_fitted(dictionary_of(bos=True), without, task, SITE)
    for found in (
        reconstruction(without, task, fitted, resamples=50),
        loss_recovered(without, task, fitted, fit_sequences=20, resamples=50),
    ):
        rows = found[found["kind"].isin(["trained on", "not trained on"])]
        assert len(rows) == 4
        assert rows["reason"].str.contains("cannot be told").all()
