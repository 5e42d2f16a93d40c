"""Absorption where it is planted, where there is none, and against the definition written out row by row."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import assay
from assay import AssayError
from assay.diagnostics import _absorption as own
from assay.diagnostics import absorption
from assay.diagnostics._concepts import concept_of, concepts_of
from assay.diagnostics._encoded import encoded
from assay.engine import Engine, collect
from assay.tasks import Feature, Kind
from one_hot import Given, fitted, relu_dictionary, split_of, subject_of

ANIMALS, TOKENS = 4, 8  # tokens 0 to 3 are animals, and token 0 is a dog
P, DOG = 0, 1  # coordinates


def vectors():
    """Animals share a direction, the dog has one more; the others have one each, and all a common offset."""
    found = torch.zeros(TOKENS, 12, dtype=torch.float64)
    found[:ANIMALS, P] = 1
    found[0, DOG] = 1
    found[ANIMALS:, 2:6] = torch.eye(4, dtype=torch.float64)
    found[:, 11] = 3
    return found


def drawn(name, dogs, *, sequences=60, length=20, seed=0):
    """Half animals, of which a share are dogs; kinds by the token at hand."""
    rng = np.random.default_rng([seed, len(name)])
    shape = (sequences, length)
    animal = rng.random(shape) < 0.5
    dog = rng.random(shape) < dogs
    tokens = np.where(animal, np.where(dog, 0, rng.integers(1, ANIMALS, shape)), rng.integers(ANIMALS, TOKENS, shape))
    return split_of(name, tokens, kinds=np.where(animal, 0, 1))


@pytest.fixture(scope="module")
def task():
    kinds = (Kind("animal", "an animal"), Kind("other", "anything else"))
    return Given([drawn("train", 0.05), drawn("iid", 0.05), drawn("dogs", 0.4)], kinds=kinds)


@pytest.fixture(scope="module")
def subject():
    return subject_of(vectors())


def recipe(subject, task, *, absorbing):
    """Feature 0: animals (but for dogs, if absorbing); feature 1: dogs, which then brings the animal along."""
    encoder = torch.zeros(12, 6, dtype=torch.float64)
    decoder = torch.zeros(6, 12, dtype=torch.float64)
    encoder[P, 0], decoder[0, P] = 1, 1
    encoder[DOG, 1], decoder[1, DOG] = 1, 1
    for number in range(4):
        encoder[2 + number, 2 + number] = decoder[2 + number, 2 + number] = 1
    if absorbing:
        encoder[DOG, 0] = -2
        decoder[1, P] = 1
    base = torch.zeros(12, dtype=torch.float64)
    base[11] = 3
    made = relu_dictionary(encoder, decoder)
    return fitted(type(made)("relu", made.W_enc, made.b_enc, made.W_dec, base), subject, task)


def row_of(frame, split, concept="animal"):
    return frame[(frame["split"] == split) & (frame["concept"] == concept)].iloc[0]


def test_a_child_that_absorbs_its_parent_is_found_as_often_as_it_does(subject, task):
    found = absorption(subject, task, recipe(subject, task, absorbing=True), concepts=["animal"], resamples=400)
    for name in ("iid", "dogs"):
        row = row_of(found, name)
        assert row["main"] == (0,)
        assert row["found"] == row["positives"] > 0
        assert row["absorbed_low"] < row["absorbed"] < row["absorbed_high"]
        assert row["main_on"] == pytest.approx(1 - row["absorbed"])
        assert row["absorber"] == 1
        assert row["reason"] is None
    # All of the shift is judged, and in it the dogs are exactly what is absorbed.
    tokens = task.split("dogs", 99).tokens
    share = (tokens == 0).sum() / (tokens < ANIMALS).sum()
    shift, iid = row_of(found, "dogs"), row_of(found, "iid")
    assert shift["absorbed"] == pytest.approx(share)
    assert shift["gap"] == pytest.approx(shift["absorbed"] - iid["absorbed"])
    assert 0.1 < shift["gap_low"] < shift["gap"] < shift["gap_high"] < 0.5
    assert iid["absorbed_low"] < 0.05 < iid["absorbed_high"]
    assert np.isnan(iid["gap"])


def test_where_the_parent_stays_on_nothing_is_absorbed(subject, task):
    found = absorption(subject, task, recipe(subject, task, absorbing=False), resamples=300)
    assert list(found["concept"].unique()) == ["animal", "other"]
    animals = found[found["concept"] == "animal"]
    assert (animals["absorbed"] == 0).all()
    assert (animals["absorbed_high"] < 0.15).all()
    assert (animals["main_on"] == 1).all()
    assert animals["absorber"].isna().all()


@pytest.fixture(scope="module")
def writer():
    """A model whose MLP gives the vectors of the tokens, and what enters it for each token."""
    made = subject_of(torch.randn(TOKENS, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))
    block = made.model.transformer.h[0]
    with torch.no_grad():
        block.attn.c_proj.weight.zero_()
        block.attn.c_proj.bias.zero_()
        entered = block.ln_2(made.model.transformer.wte.weight)
    block.mlp = Looked(entered, vectors())
    return made, entered.detach()


class Looked(torch.nn.Module):
    """What stands in a table beside the row that is given."""

    def __init__(self, rows, table):
        super().__init__()
        self.rows, self.table = rows, table

    def forward(self, given):
        return self.table[torch.cdist(given, self.rows.expand(len(given), -1, -1)).argmin(dim=-1)]


@pytest.mark.parametrize("absorbing", [True, False], ids=["absorbing", "plain"])
@pytest.mark.parametrize("normalization", [None, "layer_norm"], ids=["as it is", "normalized"])
def test_transcoders_absorb_in_what_the_mlp_gives(absorbing, normalization, writer, subject, task):
    """The codes of the planted dictionary, read off what enters the MLP: what is found is what is found there."""
    made, entered = writer
    planted = recipe(subject, task, absorbing=absorbing).own
    codes = planted.encode(vectors()).dense()
    read = entered if normalization is None else (entered - entered.mean(1, keepdim=True)) / (
        entered.std(1, keepdim=True) + 1e-5
    )  # fmt: skip
    encoder = torch.linalg.pinv(read) @ codes
    # A little below 0, as what is solved for is 0 but for rounding.
    own = replace(planted, W_enc=encoder, b_enc=planted.b_enc - 1e-9, transcodes=True, normalization=normalization)
    found = absorption(made, task, fitted(own, made, task, "layer0.mlp"), concepts=["animal"], resamples=200)
    known = absorption(subject, task, recipe(subject, task, absorbing=absorbing), concepts=["animal"], resamples=200)
    assert set(found["place"]) == {"layer0.mlp"}
    for column in ("split", "positives", "found", "main", "absorber"):
        assert list(found[column]) == list(known[column])
    for column in ("absorbed", "absorbed_low", "absorbed_high", "main_on", "gap"):
        np.testing.assert_allclose(found[column].astype(float), known[column].astype(float), atol=1e-9)


def test_a_skip_connection_is_no_feature(writer, subject, task):
    """Seven tenths of the concept's direction come by the skip connection: features have no part in these."""
    made, entered = writer
    planted = recipe(subject, task, absorbing=True).own
    codes = planted.encode(vectors()).dense()
    W_skip = (torch.linalg.pinv(entered) @ vectors() * 0.7).T
    own = replace(
        planted, W_enc=torch.linalg.pinv(entered) @ codes, b_enc=planted.b_enc - 1e-9, W_dec=planted.W_dec * 0.3,
        b_dec=planted.b_dec * 0.3, W_skip=W_skip, transcodes=True,
    )  # fmt: skip
    torch.testing.assert_close(own.reconstruct(entered), vectors(), atol=1e-7, rtol=0)
    found = absorption(made, task, fitted(own, made, task, "layer0.mlp"), concepts=["animal"], resamples=200)
    known = absorption(subject, task, recipe(subject, task, absorbing=True), concepts=["animal"], resamples=200)
    # Of the rest features make all, as before; of the whole they would make less than the share that counts.
    np.testing.assert_allclose(found["absorbed"].astype(float), known["absorbed"].astype(float), atol=1e-9)


def by_definition(x, codes, dictionary, probe):
    """Whether a vector is absorbed, as the definition has it."""
    w = probe.direction
    parts = [float(z * (row @ w)) for z, row in zip(codes, dictionary.W_dec, strict=True)]
    if any(codes[f] > 0 for f in probe.main):
        return False
    best = max((f for f in range(len(codes)) if codes[f] > 0), key=parts.__getitem__, default=None)
    if best is None:
        return False
    cosine = float(dictionary.W_dec[best] @ w / dictionary.W_dec[best].norm())
    whole = float((x - dictionary.b_dec) @ w)
    return cosine >= 0.025 and whole > 0 and parts[best] >= 0.4 * whole


def test_a_trained_dictionary_against_the_definition_a_row_at_a_time():
    torch.manual_seed(1)
    made = subject_of(torch.randn(TOKENS, 8, dtype=torch.float64))
    splits = [drawn(name, 0.1, sequences=20) for name in ("train", "iid", "other")]
    task = Given(splits, kinds=(Kind("animal", ""), Kind("other", "")))
    engine = Engine(made)
    at = collect(engine, splits[0], ("residual",)).at(engine.site("layer0.residual"))
    one = encoded(assay.SparseAutoencoder(k=2, features=12, steps=40, batch=64).fit(at), None)
    (probe,) = own._probes(engine, one, splits[1], [concept_of(task, "animal")], 0)
    (counts,) = own._count(engine, one, splits[2], [probe])
    absorbed = found = 0
    dictionary = one.dictionary.to(torch.zeros(1, dtype=torch.float64))
    for token in splits[2].tokens[splits[2].tokens < ANIMALS].tolist():
        x = made.model.transformer.wte.weight[token].detach()
        codes = dictionary.encode(x[None]).dense()[0]
        if float(x @ probe.direction) + probe.offset > 0:
            found += 1
            absorbed += by_definition(x, codes, dictionary, probe)
    assert int(counts.found.sum()) == found > 0
    assert int(counts.absorbed.sum()) == absorbed


def test_concepts_are_kinds_classes_and_thresholds(task):
    depth = Feature("depth", "", ("animal",))
    sort = Feature("class", "", ("all",), (0, 1, 3), ("none", "few", "many"))
    given = Given(task.splits, kinds=task.kinds, features=(depth, sort))
    tokens = np.array([[0, 1, 5, 6]])
    values = np.array([[2, 4, 9, 9]])
    split = split_of(
        "iid", tokens, kinds=np.array([[0, 0, 1, -1]]), features={"depth": values, "class": np.array([[0, 1, 2, 7]])}
    )
    for name, asked, holds in (
        ("animal", [1, 1, 1, 0], [1, 1, 0, 0]),
        ("depth>=3", [1, 1, 0, 0], [0, 1, 0, 0]),
        ("depth=2", [1, 1, 0, 0], [1, 0, 0, 0]),
        ("class=few", [1, 1, 1, 0], [0, 1, 1, 0]),
        ("class=many", [1, 1, 1, 0], [0, 0, 0, 0]),
    ):
        concept = concept_of(given, name)
        assert concept.asked(split).astype(int).tolist() == [asked]
        assert concept.holds(split).astype(int).tolist() == [holds]
    assert [one.name for one in concepts_of(given, split)] == [
        "animal", "other", "depth>=4", "class=none", "class=few", "class=many",
    ]  # fmt: skip
    for name, words in (
        ("anmal", "did you mean 'animal'"),
        ("depth>=deep", "'deep' is no number"),
        ("class=lots", "one of none, few, many"),
        ("class>=1", "has classes"),
    ):
        with pytest.raises(AssayError, match=words):
            concept_of(given, name)


def test_what_cannot_be_judged_is_said(subject, task):
    given = recipe(subject, task, absorbing=True)
    rare = Feature("never", "", ("all",))
    splits = [
        split_of(one.name, one.tokens, kinds=one.kinds, features={"never": np.zeros_like(one.tokens)})
        for one in task.splits
    ]
    asked = Given(splits, kinds=task.kinds, features=(rare,))
    found = absorption(subject, asked, given, concepts=["never>=1"], resamples=200)
    assert found["absorbed"].isna().all()
    assert "it holds at 0; 10 of each are needed" in found["reason"][0]
    with pytest.raises(AssayError, match="give at least 4"):
        absorption(subject, task, given, sequences=3)
    with pytest.raises(AssayError, match="no concepts"):
        absorption(subject, Given(task.splits), given)
    plain = relu_dictionary(torch.eye(12, dtype=torch.float64), torch.eye(12, dtype=torch.float64))
    normalizing = replace(plain, normalization="layer_norm")
    with pytest.raises(AssayError, match="normalizes every vector"):
        absorption(subject, task, fitted(normalizing, subject, task))
