"""Rows of vectors as they are asked for: each once an epoch, the same by seed, from memory or through a buffer."""

import itertools

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from assay import AssayError
from assay.engine import Block, Engine, Head, Samples, _rows, collect
from assay.subjects import Subject
from assay.tasks import Split

VOCABULARY, WIDTH, LAYERS = 997, 12, 3
PAIR = ("mlp_input", "mlp")
PLACE = Block(1)
SMALL = 4_000
"""Bytes: 83 rows of 12 numbers, or 41 pairs."""


@pytest.fixture(scope="module")
def reader() -> Engine:
    torch.manual_seed(3)
    size = {"vocab_size": VOCABULARY, "n_positions": 24, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 2}
    config = GPT2Config(**size, initializer_range=0.4, bos_token_id=None, eos_token_id=None)
    return Engine(Subject(GPT2LMHeadModel(config).eval(), None, "small"))


@pytest.fixture(scope="module")
def split() -> Split:
    """90 sequences of 1 to 16 tokens, no two of which begin alike."""
    rng = np.random.default_rng(4)
    lengths = rng.integers(1, 17, 90)
    tokens = rng.integers(VOCABULARY, size=(90, 16))
    tokens[:, 0] = rng.permutation(VOCABULARY)[:90]
    return Split("random", "train", "random tokens", tokens, lengths, tokens * 0)


@pytest.fixture(scope="module")
def whole(reader, split) -> torch.Tensor:
    """All rows of what enters the MLP of a block, which are all different."""
    found = collect(reader, split, PAIR).mlp_input[PLACE]
    assert len(torch.unique(found, dim=0)) == len(found) == split.lengths.sum()
    return found


def of(reader, split, site="layer1.mlp", **options) -> Samples:
    return collect(reader, split, (), **options).at(reader.site(site))


def numbers(rows, whole) -> list[int]:
    """Which of all rows these are; each has to be one, whatever batch it was read in."""
    distance, index = torch.cdist(rows.double(), whole.double()).min(dim=1)
    assert float(distance.max()) < 1e-4
    return index.tolist()


def taken(samples, *, batch=7, steps=10, seed=0, streams=("mlp_input",)):
    return list(samples.rows(PLACE, batch=batch, steps=steps, seed=seed, streams=streams))


MODES = pytest.mark.parametrize("options", [{}, {"largest": SMALL}], ids=["from memory", "through a buffer"])


@MODES
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_every_batch_has_its_rows_and_the_same_by_seed(reader, split, whole, options, batch):
    first, again, other = (taken(of(reader, split, **options), batch=batch, seed=seed) for seed in (5, 5, 6))
    assert len(first) == 10
    assert all(rows.shape == (batch, WIDTH) and rows.dtype == torch.float32 for (rows,) in first)
    assert all(torch.equal(*pair) for (a, b) in zip(first, again, strict=True) for pair in zip(a, b, strict=True))
    drawn, drawn_otherwise = (numbers(torch.cat([rows for (rows,) in found]), whole) for found in (first, other))
    assert drawn != drawn_otherwise
    lengths = np.repeat(np.sort(split.lengths), np.sort(split.lengths))
    assert len(set(lengths[drawn])) > 3, "rows of one length after another"


@MODES
def test_one_sample_twice_gives_the_same_bits(reader, split, options):
    samples = of(reader, split, **options)
    assert all(torch.equal(a, b) for (a,), (b,) in zip(taken(samples), taken(samples), strict=True))


def test_in_memory_an_epoch_has_every_row_once(reader, split, whole):
    drawn = numbers(torch.cat([rows for (rows,) in taken(of(reader, split), steps=300)]), whole)
    for start in range(0, len(drawn) - len(whole), len(whole)):
        assert sorted(drawn[start : start + len(whole)]) == list(range(len(whole)))
    assert drawn[: len(whole)] != drawn[len(whole) : 2 * len(whole)], "epochs in the same order"


def test_through_a_buffer_an_epoch_has_every_sequence_once(reader, split, whole, monkeypatch):
    """What has gone of a buffer that is full at first is the first epoch's, and nothing of it comes again."""
    monkeypatch.setattr(_rows, "BUFFER", 64)
    samples = of(reader, split, largest=20_000)
    drawn = numbers(torch.cat([rows for (rows,) in taken(samples, steps=400)]), whole)
    surely = len(whole) - 64 - 16
    assert len(set(drawn[:surely])) == surely
    for epochs in (1, 2, 3):
        visits = np.bincount(drawn[: epochs * len(whole)], minlength=len(whole))
        assert visits.min() >= epochs - 1
        assert visits.max() <= epochs + 1


def test_a_buffer_is_never_fuller_than_it_may_be(reader, split, monkeypatch):
    """Its first filling takes it all, every later one a half; sequences are never cut."""
    monkeypatch.setattr(_rows, "BUFFER", 64)
    read, sizes = _rows.read_rows, []

    def watched(*given):
        found = read(*given)
        sizes.append(len(next(iter(found.values()))))
        return found

    monkeypatch.setattr(_rows, "read_rows", watched)
    taken(of(reader, split, largest=20_000), batch=8, steps=200)
    assert 48 < sizes[0] <= 64
    assert max(sizes) <= 64
    assert np.mean([16 < size <= 48 for size in sizes[1:]]) > 0.8, "but for what is left of an epoch"


@MODES
def test_streams_come_as_pairs_of_the_same_position(reader, split, options):
    mlp = reader.subject.model.transformer.h[1].mlp
    for entered, given in taken(of(reader, split, **options), streams=PAIR):
        with torch.no_grad():
            torch.testing.assert_close(mlp(entered), given, atol=1e-5, rtol=1e-4)


@MODES
def test_streams_are_those_to_act_on_unless_others_are_named(reader, split, options):
    samples = of(reader, split, "layer1.mlp_input+layer1.mlp+layer2.after+layer0.head1", **options)
    both, own = taken(samples, steps=2, streams=None), taken(samples, steps=2, streams=PAIR)
    assert all(torch.equal(*pair) for (a, b) in zip(both, own, strict=True) for pair in zip(a, b, strict=True))
    (after,) = next(samples.rows(Block(2), batch=3, steps=1))
    assert after.shape == (3, WIDTH)
    queries, keys = next(samples.rows(Head(0, 1), batch=3, steps=1))
    assert queries.shape == keys.shape == (3, WIDTH // 2)
    expected = collect(reader, split, ("queries",)).queries[Head(0, 1)]
    numbers(queries, expected)


def test_rows_that_are_held_are_those_read_when_asked_for(reader, split):
    """What was read of every place before, and what is read on demand, are drawn alike."""
    held = collect(reader, split, PAIR).at(reader.site("layer1.mlp"))
    assert set(held.mlp) == {PLACE}
    for a, b in zip(taken(held, streams=PAIR), taken(of(reader, split), streams=PAIR), strict=True):
        assert all(torch.equal(*pair) for pair in zip(a, b, strict=True))


def test_what_was_thinned_out_is_streamed_in_full(reader, split, whole):
    thinned = collect(reader, split, ("mlp_input",), largest=SMALL)
    assert 0 < len(thinned.mlp_input[PLACE]) < len(whole) / 2
    drawn = numbers(torch.cat([rows for (rows,) in taken(thinned, steps=400)]), whole)
    assert set(drawn) == set(range(len(whole)))
    assert thinned.count(PLACE) == len(whole)


def test_rows_can_be_learned_from(reader, split):
    """They are no inference tensors, of which torch keeps no gradients."""
    for options in ({}, {"largest": SMALL}):
        weight = torch.zeros(WIDTH, WIDTH, requires_grad=True)
        for entered, given in taken(of(reader, split, **options), steps=1, streams=PAIR):
            (entered @ weight - given).square().sum().backward()
        assert bool(weight.grad.any())


@MODES
def test_some_rows_are_drawn_without_replacement(reader, split, whole, options):
    samples = of(reader, split, **options)
    (found,) = samples.some(PLACE, 50, seed=2, streams=("mlp_input",))
    drawn = numbers(found, whole)
    assert len(set(drawn)) == 50
    assert drawn != sorted(drawn)
    assert drawn == np.random.default_rng(2).permutation(len(whole))[:50].tolist()
    (other,) = samples.some(PLACE, 50, seed=3, streams=("mlp_input",))
    assert numbers(other, whole) != drawn
    everything = samples.some(PLACE, 10_000, streams=PAIR)
    assert sorted(numbers(everything[0], whole)) == list(range(len(whole)))
    assert len(everything[1]) == len(whole) == samples.count(PLACE)


def test_rows_of_several_places_are_read_in_one_pass_where_they_fit(reader, split, monkeypatch):
    read, passes = _rows.read_rows, []

    def watched(engine, split, wanted, *rest):
        passes.append({place: tuple(streams) for place, streams in wanted.items()})
        return read(engine, split, wanted, *rest)

    monkeypatch.setattr(_rows, "read_rows", watched)
    rows = int(split.lengths.sum())
    for largest, expected in ((rows * 48 * 3, 1), (rows * 48 * 2, 3)):
        passes.clear()
        samples = of(reader, split, "all.mlp", largest=largest)
        for place, _ in itertools.product(reader.blocks, range(2)):
            next(samples.rows(place, batch=2, steps=1))
        assert len(passes) == expected
        assert len(passes[0]) == (LAYERS if expected == 1 else 1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s: s.rows(PLACE, batch=0, steps=1), r"rows\(batch=0\): must be at least 1"),
        (lambda s: s.rows(PLACE, batch=1, steps=0), r"rows\(steps=0\): must be at least 1"),
        (
            lambda s: s.rows(PLACE, batch=1, steps=1),
            r"do not hold mlp of layer1, nor .*collect\(engine, split, streams\)",
        ),
        (lambda s: s.some(PLACE, 3, streams=PAIR), "do not hold .* of layer1, nor"),
        (lambda s: s.count(PLACE), "do not hold mlp of layer1, nor"),
    ],
)
def test_what_cannot_be_read_is_refused(call, words):
    with pytest.raises(AssayError, match=words):
        call(Samples((PLACE,), streams={PLACE: ("mlp",)}))


def test_samples_made_by_hand_have_rows():
    vectors = torch.arange(10.0)[:, None]
    samples = Samples((PLACE,), mlp={PLACE: vectors}, streams={PLACE: ("mlp",)})
    drawn = torch.cat([rows for (rows,) in samples.rows(PLACE, batch=5, steps=2)])
    assert sorted(drawn.flatten().tolist()) == list(range(10))
    assert samples.count(PLACE) == 10
    assert len(samples.some(PLACE, 3)[0]) == 3
