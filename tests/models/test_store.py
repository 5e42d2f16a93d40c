"""Stored log-probabilities: what comes back, what the forms lose, interruptions, and what is refused."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from assay import AssayError
from assay.engine import batches, tensors
from assay.models import Store, StoreWriter, _store
from assay.tasks import UNSCORED, Split

VOCABULARY = 23
SUBJECT = {"name": "mine", "weights_sha256": "0" * 64, "parameters": 5}


@pytest.fixture
def split():
    """Six sequences of 3 to 9 tokens; two of three positions are scored, none of sequence 4."""
    rng = np.random.default_rng(0)
    lengths = np.array([9, 3, 7, 8, 5, 6])
    tokens = np.where(np.arange(9) < lengths[:, None], rng.integers(1, VOCABULARY, (6, 9)), 0)
    scored = (np.arange(9) < lengths[:, None] - 1) & (np.arange(9) % 3 != 1)
    scored[4] = False
    return Split("iid", "iid", "random", tokens, lengths, np.where(scored, 1, UNSCORED))


@pytest.fixture
def rows(split):
    """(sequences, positions, logits) of all scored positions."""
    sequences, positions = np.nonzero(split.kinds != UNSCORED)
    logits = 4 * torch.randn(len(sequences), VOCABULARY, generator=torch.Generator().manual_seed(0))
    return sequences, positions, logits


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of a few rows."""
    monkeypatch.setattr(_store, "CHUNK", 5 * VOCABULARY * 2)
    monkeypatch.setattr(_store, "_NUMBERS", 2 * VOCABULARY)


def begin(folder, split, **how):
    return StoreWriter(folder, split, **({"vocabulary": VOCABULARY, "subject": SUBJECT} | how))


def write(folder, split, rows, **how):
    writer = begin(folder, split, **how)
    writer.add(*rows)
    return writer.finish()


def some(rows, index):
    sequences, positions, logits = rows
    return sequences[index], positions[index], logits[torch.as_tensor(np.asarray(index))]


def all_of(store):
    return torch.cat([store.rows(sequence) for sequence in range(len(store))])


# -- what comes back --------------------------------------------------------------------------------------------------


def test_float32_keeps_log_probabilities(tmp_path, split, rows, small_chunks):
    store = write(tmp_path / "store", split, rows, form="float32")
    assert torch.equal(all_of(store), rows[2].double().log_softmax(-1).float())
    assert store.self_kl.largest < 1e-13
    assert (store.form, store.vocabulary, store.subject, store.split_name) == ("float32", VOCABULARY, SUBJECT, "iid")
    assert store.predictions == tuple(np.bincount(rows[0], minlength=6).tolist())
    assert len(store) == 6


def test_16_bits_lose_half_a_step_and_probabilities_sum_to_one(tmp_path, split, rows):
    store = write(tmp_path / "store", split, rows, form="16-bit")
    exact, found = rows[2].double().log_softmax(-1), all_of(store).double()
    steps = (exact.max(-1).values - exact.min(-1).values) / 65_534
    assert ((found - exact).abs().max(-1).values <= steps + 4e-6).all()
    np.testing.assert_allclose(found.exp().sum(-1), 1, atol=1e-6)
    assert torch.equal(found.argmax(-1), exact.argmax(-1))
    kl = (exact.exp() * (exact - found.log_softmax(-1))).sum(-1)
    assert store.self_kl.mean == pytest.approx(kl.mean().item(), rel=1e-3)
    assert store.self_kl.largest == pytest.approx(kl.max().item(), rel=1e-3)
    # KL of rounding errors, uniform within a step, is about step² / 24.
    assert 0 < store.self_kl.largest < (steps.max() ** 2 / 6).item()


def test_by_hand(tmp_path):
    """ln p = ln(1/2), ln(1/4), ln(1/4), 0: the codes are 65,535, 1, 1 and 0, and nothing is lost."""
    split = Split("iid", "iid", "", np.array([[0, 1]]), np.array([2]), np.array([[0, UNSCORED]]))
    logits = torch.tensor([[math.log(2), 0, 0, -torch.inf]])
    store = StoreWriter(tmp_path / "store", split, vocabulary=4, subject=SUBJECT)
    store.add(np.array([0]), np.array([0]), logits)
    found = store.finish()
    with safe_open(next((tmp_path / "store").glob("*.safetensors")), framework="numpy") as file:
        assert file.get_tensor("values").tolist() == [[65_535, 1, 1, 0]]
        assert file.get_tensor("steps")[0] == pytest.approx(math.log(2) / 65_534)
        assert file.get_tensor("levels")[0] == pytest.approx(-math.log(2))
    np.testing.assert_allclose(found.rows(0).exp(), [[0.5, 0.25, 0.25, 0]], atol=1e-7)
    assert found.self_kl.largest < 1e-12


@pytest.mark.parametrize("form", ["float32", "16-bit"])
def test_odd_rows_come_back(tmp_path, form):
    """Equal numbers, one sure token, ruled out ones, a range beyond every limit, and one of llama.cpp's clipped."""
    lowest = torch.finfo(torch.float32).min
    logits = torch.zeros(5, 6)
    logits[1, 2] = 200.0
    logits[2, 3:] = -torch.inf
    logits[3, :2] = lowest
    logits[4, 0] = -40.0
    split = Split("iid", "iid", "", np.ones((1, 6), dtype=np.int64), np.array([6]), np.array([[0] * 5 + [UNSCORED]]))
    writer = StoreWriter(tmp_path / "store", split, vocabulary=6, subject=SUBJECT, form=form)
    writer.add(np.zeros(5, dtype=np.int64), np.arange(5), logits)
    store = writer.finish()
    found, exact = store.rows(0), logits.double().log_softmax(-1)
    np.testing.assert_allclose(found.double().exp(), exact.exp(), atol=1e-6)
    np.testing.assert_allclose(found[[0, 1, 4]], exact[[0, 1, 4]], atol=5e-3)
    assert found[2, 3:].tolist() == [-torch.inf] * 3
    assert store.self_kl.largest < 1e-6


@given(seed=st.integers(0, 1_000), spread=st.floats(0, 300), vocabulary=st.integers(1, 300), shift=st.floats(-1e3, 1e3))
@settings(deadline=None, max_examples=50)
def test_the_16_bit_form_loses_next_to_nothing(seed, spread, vocabulary, shift):
    rng = np.random.default_rng(seed)
    log_p = _store._normalized(rng.normal(0, spread, (4, vocabulary)) + shift)
    kept = _store._encode(log_p, "16-bit").decoded()
    assert (kept.argmax(axis=1) == log_p.argmax(axis=1)).all() or spread < 1e-3
    limit = (np.ptp(np.maximum(log_p, -750), axis=1) / 65_534) ** 2 / 6 + 1e-12
    assert (_store._self_kl(log_p, kept) >= 0).all()
    assert (_store._self_kl(log_p, kept) <= limit).all()


def test_the_error_is_that_of_a_definition(split):
    """KL by its definition, of distributions far from each other and near."""
    rng = np.random.default_rng(0)
    given_ = _store._normalized(rng.normal(0, 3, (5, 40)))
    for noise in (3, 0.1):
        kept = _store._normalized(given_ + rng.normal(0, noise, given_.shape)).astype(np.float32)
        expected = (np.exp(given_) * (given_ - _store._normalized(kept.astype(float)))).sum(axis=1)
        np.testing.assert_allclose(_store._self_kl(given_, kept), expected, rtol=1e-9)


def test_rows_are_read_in_any_pieces_and_written_in_any_order(tmp_path, split, rows, small_chunks):
    whole = write(tmp_path / "store", split, rows)
    assert len(list((tmp_path / "store").glob("*.safetensors"))) == 3
    for start, stop in ((0, 2), (1, None), (2, 4), (3, 3), (4, 1), (0, 99)):
        assert torch.equal(whole.rows(0, start, stop), whole.rows(0)[start:stop])
    assert whole.rows(4).shape == (0, VOCABULARY)
    writer = begin(tmp_path / "other", split)
    order = np.random.default_rng(0).permutation(len(rows[0]))
    for part in np.array_split(order, 7):
        writer.add(*some(rows, part))
    assert torch.equal(all_of(writer.finish()), all_of(whole))


@pytest.mark.parametrize("form", ["float32", "16-bit"])
def test_a_subject_is_stored_batch_by_batch(tmp_path, subject, engine, task, form):
    split = task.split("iid", 12)
    writer = StoreWriter(
        tmp_path / "store", split, vocabulary=subject.vocabulary, subject=subject.describe(), form=form
    )
    expected = {}
    for index, batch in batches(engine, split):
        logits = subject(*tensors(batch, subject.device)).clone()
        places = np.nonzero(batch.kinds != UNSCORED)
        chosen = logits[places]
        writer.add(index[places[0]], places[1], chosen)
        for row, sequence in enumerate(index.tolist()):
            expected[sequence] = chosen[torch.from_numpy(places[0] == row)].double().log_softmax(-1)
    store = writer.finish()
    store.check(split)
    assert store.subject["weights_sha256"] == subject.weights_sha256
    for sequence, rows in expected.items():
        np.testing.assert_allclose(store.rows(sequence), rows, atol=5e-4 if form == "16-bit" else 1e-5)
    assert store.self_kl.largest < (1e-7 if form == "16-bit" else 1e-12)


# -- interruptions ----------------------------------------------------------------------------------------------------


def test_a_stopped_writer_goes_on_with_what_is_missing(tmp_path, split, rows, small_chunks):
    folder = tmp_path / "store"
    first = begin(folder, split)
    assert first.missing.tolist() == [0, 1, 2, 3, 5]
    first.add(*some(rows, np.arange(12)))
    assert first.missing.tolist() == [3, 5]
    with pytest.raises(AssayError, match="is not finished"):
        Store(folder)
    # Killed here: what was not yet a chunk is gone.
    second = begin(folder, split)
    missing = second.missing
    assert 0 not in missing
    assert {3, 5} <= set(missing.tolist())
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert before
    second.add(*some(rows, np.isin(rows[0], missing).nonzero()[0]))
    store = second.finish()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert torch.equal(all_of(store), all_of(write(tmp_path / "whole", split, rows)))
    assert store.self_kl.largest == Store(tmp_path / "whole").self_kl.largest
    assert store.self_kl.mean == pytest.approx(Store(tmp_path / "whole").self_kl.mean)


def test_rows_that_are_there_stay_and_a_finished_store_may_be_written_again(tmp_path, split, rows, small_chunks):
    folder = tmp_path / "store"
    found = all_of(write(folder, split, rows))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    writer = begin(folder, split)
    assert len(writer.missing) == 0
    writer.add(rows[0], rows[1], torch.zeros_like(rows[2]))
    assert torch.equal(all_of(writer.finish()), found)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_store_that_lacks_rows_is_not_finished(tmp_path, split, rows):
    writer = begin(tmp_path / "store", split)
    writer.add(*some(rows, np.arange(8)))
    with pytest.raises(AssayError, match=r"8 of 18 predictions; 3 sequences are not complete, the first of them is 2"):
        writer.finish()
    assert begin(tmp_path / "store", split).missing.tolist() == [2, 3, 5]


def test_nothing_is_left_of_a_chunk_that_could_not_be_written(tmp_path, split, rows, monkeypatch):
    def half(arrays, path, metadata):
        path.write_bytes(b"half a chunk")
        raise KeyboardInterrupt

    writer = begin(tmp_path / "store", split)
    writer.add(*rows)
    monkeypatch.setattr(_store, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        writer.finish()
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["store.json"]


# -- what is refused --------------------------------------------------------------------------------------------------


def changed(array, place, value):
    array = array.copy()
    array[place] = value
    return array


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda split: replace(split, tokens=changed(split.tokens, (2, 3), 0)), "tokens"),
        (lambda split: replace(split, kinds=changed(split.kinds, (0, 0), 0)), "kinds"),
        (lambda split: replace(split, kinds=changed(split.kinds, (0, 1), 1)), "scored positions, kinds"),
        (lambda split: replace(split, lengths=changed(split.lengths, 1, 4)), "tokens, lengths"),
        (lambda split: split.first(5), "tokens, lengths, scored positions, kinds"),
        (lambda split: replace(split, objective="masked", targets=split.tokens), "objective, targets"),
    ],
)
def test_another_split_is_refused_by_the_store_and_the_writer(tmp_path, split, rows, change, what):
    store = write(tmp_path / "store", split, rows)
    store.check(split)
    with pytest.raises(AssayError, match=f"but of other {what};") as error:
        store.check(change(split))
    assert "\n" not in str(error.value)
    with pytest.raises(AssayError, match=f"something else .different: {what}"):
        begin(tmp_path / "store", change(split))


def test_the_width_of_the_padding_does_not_matter(tmp_path, split, rows):
    wider = replace(
        split,
        tokens=np.pad(split.tokens, ((0, 0), (0, 3)), constant_values=7),
        kinds=np.pad(split.kinds, ((0, 0), (0, 3)), constant_values=UNSCORED),
    )
    write(tmp_path / "store", split, rows).check(wider)


def test_targets_under_masks_matter(tmp_path, split, rows):
    masked = replace(split, objective="masked", targets=split.tokens)
    store = write(tmp_path / "store", masked, rows)
    store.check(masked)
    with pytest.raises(AssayError, match="other targets"):
        store.check(replace(masked, targets=changed(split.tokens, (0, 0), 3)))
    store.check(replace(masked, targets=changed(split.tokens, (0, 1), 3)))  # nothing is asked there


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ({"form": "float32"}, "form"),
        ({"vocabulary": VOCABULARY + 1}, "vocabulary"),
        ({"subject": SUBJECT | {"weights_sha256": "1" * 64}}, "subject"),
    ],
)
def test_a_folder_with_another_store_is_not_gone_on_with(tmp_path, split, rows, how, what):
    write(tmp_path / "store", split, rows)
    with pytest.raises(AssayError, match=rf"something else \(different: {what}\)"):
        begin(tmp_path / "store", split, **how)


def test_folders_of_something_else_are_refused(tmp_path, split):
    save_file({"weight": np.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(AssayError, match="of no store"):
        begin(tmp_path, split)
    with pytest.raises(AssayError, match="is a file"):
        begin(tmp_path / "model.safetensors", split)
    with pytest.raises(AssayError, match="is no store"):
        Store(tmp_path)


def test_what_cannot_be_stored_is_refused(tmp_path, split, rows):
    with pytest.raises(AssayError, match="unknown form of a store"):
        begin(tmp_path / "store", split, form="bfloat16")
    with pytest.raises(AssayError, match="no weights_sha256"):
        begin(tmp_path / "store", split, subject={"name": "mine"})
    with pytest.raises(AssayError, match=f"token {split.tokens.max()}, which a vocabulary"):
        begin(tmp_path / "store", split, vocabulary=int(split.tokens.max()))
    with pytest.raises(AssayError, match="no scored prediction"):
        begin(tmp_path / "store", replace(split, kinds=np.full_like(split.kinds, UNSCORED)))
    assert not (tmp_path / "store").exists()
    writer = begin(tmp_path / "store", split)
    sequences, positions, logits = some(rows, np.arange(3))
    for given_, words in (
        ((sequences, positions + 1, logits), "position 1 of sequence 0 is not scored"),
        ((sequences + 6, positions, logits), "position 0 of sequence 6 is not scored"),
        ((sequences, positions - 1, logits), "position -1 of sequence 0 is not scored"),
        ((sequences[[0, 0]], positions[[0, 0]], logits[:2]), "given twice"),
        ((sequences, positions, logits[:, :4]), "rows of 4 tokens, not 23"),
        ((sequences, positions, logits * math.nan), "the largest is nan"),
        ((sequences, positions, torch.full_like(logits, -math.inf)), "the largest is -inf"),
        ((sequences, positions, torch.full_like(logits, math.inf)), "the largest is inf"),
    ):
        with pytest.raises(AssayError, match=words):
            writer.add(*given_)
    assert writer.missing.tolist() == [0, 1, 2, 3, 5]
    with pytest.raises(AssayError, match="has sequences 0 to 5, not 6"):
        write(tmp_path / "whole", split, rows).rows(6)


@pytest.mark.parametrize("form", ["float32", "16-bit"])
def test_every_byte_of_a_chunk_counts(tmp_path, split, rows, form):
    """Any bit that flips, and any cut, is noticed: when the store is opened, or when the chunk is read."""
    store = write(tmp_path / "store", split, rows, form=form)
    path = next((tmp_path / "store").glob("*.safetensors"))
    whole = path.read_bytes()
    exact = all_of(store)
    rng, noticed = np.random.default_rng(0), 0
    for place in (*range(0, 500, 7), *rng.integers(0, len(whole), 60)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << rng.integers(8))]) + whole[place + 1 :])
        try:
            found = all_of(Store(tmp_path / "store"))
        except AssayError:
            noticed += 1
        else:
            # What is not noticed is of no effect, such as the padding of the header.
            assert torch.equal(found, exact)
    assert noticed >= 120
    for place in rng.integers(0, len(whole), 20):
        path.write_bytes(whole[:place])
        with pytest.raises(AssayError):
            Store(tmp_path / "store")


def test_a_damaged_chunk_is_written_anew(tmp_path, split, rows, small_chunks):
    store = write(tmp_path / "store", split, rows)
    exact = all_of(store)
    path = sorted((tmp_path / "store").glob("*.safetensors"))[1]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    damaged = Store(tmp_path / "store")
    assert torch.equal(damaged.rows(0, 0, 2), exact[:2])
    with pytest.raises(AssayError, match="its checksum is another one"):
        all_of(damaged)
    with pytest.raises(AssayError, match=f"{path.name} is damaged"):
        begin(tmp_path / "store", split)
    path.unlink()
    with pytest.raises(AssayError, match=f"{path.name} is damaged"):
        Store(tmp_path / "store")
    writer = begin(tmp_path / "store", split)
    assert 0 < len(writer.missing) < 5
    writer.add(*rows)
    assert torch.equal(all_of(writer.finish()), exact)


def test_chunks_of_another_store_are_refused(tmp_path, split, rows, small_chunks):
    write(tmp_path / "store", split, rows)
    write(tmp_path / "other", split, rows, subject=SUBJECT | {"weights_sha256": "1" * 64})
    path = sorted((tmp_path / "store").glob("*.safetensors"))[1]
    own = path.read_bytes()
    path.write_bytes((tmp_path / "other" / path.name).read_bytes())
    with pytest.raises(AssayError, match="is of another store"):
        Store(tmp_path / "store")
    with pytest.raises(AssayError, match="is of another store"):
        begin(tmp_path / "store", split)
    path.write_bytes(own)
    (tmp_path / "store" / "0000000099.safetensors").write_bytes(own)
    assert len(all_of(Store(tmp_path / "store"))) == len(rows[0])
    with pytest.raises(AssayError, match="chunks overlap"):
        begin(tmp_path / "store", split)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "version 2, written by a newer version .* reads up to 1; update Assay"),
        ({"format": "other"}, "damaged .format"),
        ({"vocabulary": "many"}, "damaged .vocabulary"),
        ({"vocabulary": 24}, "is of another store"),
        ({"predictions": [6, 2, 4, 5, 0, 5]}, "is of another store"),
        ({"self_kl": {"mean": 0.0, "largest": 0.0}}, "others than it says"),
        ({"chunks": {}}, "damaged|others"),
        ({"extra": 1}, "damaged .extra"),
    ],
)
def test_a_header_that_was_changed_is_refused(tmp_path, split, rows, change, words):
    write(tmp_path / "store", split, rows)
    path = tmp_path / "store" / "store.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(AssayError, match=words) as error:
        Store(tmp_path / "store")
    assert "\n" not in str(error.value)


@given(
    data=st.binary(max_size=60) | st.sampled_from([b"[]", b"{}", b"null", b'{"version": null}', b'{"version": 1e9}'])
)
@settings(deadline=None)
def test_other_bytes_are_no_header(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "no-store"
    folder.mkdir(exist_ok=True)
    (folder / "store.json").write_bytes(data)
    with pytest.raises(AssayError):
        Store(folder)
