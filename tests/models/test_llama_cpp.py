"""llama.cpp's file and counting, against a reader and counter of loops that follow its description alone."""

import math
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay import AssayError
from assay.models import LlamaCppFile, counting, through_llama_cpp, write_llama_cpp
from assay.tasks import UNSCORED


def a_text(chunks=3, context=9, vocabulary=11, spread=3.0, seed=0):
    """Tokens (chunk, position) and logits (prediction, vocabulary) of the predictions that count."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocabulary, (chunks, context))
    rows = chunks * (context - 1 - context // 2)
    return tokens, torch.from_numpy(rng.normal(0, spread, (rows, vocabulary)).astype(np.float32))


@pytest.fixture
def written(tmp_path):
    """written(chunks=…, …) -> (path, tokens, logits)"""

    def write(**how):
        tokens, logits = a_text(**how)
        path = tmp_path / "base.kld"
        write_llama_cpp(path, tokens, logits.split(5))
        return path, tokens, logits

    return write


def read_by_loops(data):
    """(tokens, rows of ln p, right tokens) of the bytes of a file, number by number."""
    assert data[:8] == b"_logits_"
    context, vocabulary, chunks = struct.unpack_from("<Iii", data, 8)
    place = 20
    tokens = []
    for _ in range(chunks):
        tokens.append(list(struct.unpack_from(f"<{context}i", data, place)))
        place += 4 * context
    rows, right = [], []
    for chunk in range(chunks):
        for position in range(context // 2, context - 1):
            scale, floor = struct.unpack_from("<ff", data, place)
            codes = struct.unpack_from(f"<{vocabulary}H", data, place + 8)
            rows.append([scale * code + floor for code in codes])
            right.append(tokens[chunk][position + 1])
            place += 2 * (2 * math.ceil(vocabulary / 2) + 4)
    assert place == len(data)
    return tokens, rows, right


def normalized(row):
    top = max(row)
    level = top + math.log(sum(math.exp(number - top) for number in row))
    return [number - level for number in row]


def mean_and_error(numbers):
    n = len(numbers)
    mean = sum(numbers) / n
    return mean, math.sqrt(max(sum(x * x for x in numbers) / n - mean**2, 0) / (n - 1))


def count_by_loops(base, other, right):
    """The statistics, in float64 and one number at a time, but for the places of quantiles (float32)."""
    n = len(right)
    nll_b, nll_q, kls, changes, same = [], [], [], [], 0
    for row, logits, token in zip(base, other, right, strict=True):
        q = normalized(logits)
        nll_b.append(-row[token])
        nll_q.append(-q[token])
        kls.append(sum(math.exp(b) * (b - own) for b, own in zip(row, q, strict=True) if b > -16))
        changes.append(math.exp(q[token]) - math.exp(row[token]))
        same += row.index(max(row)) == logits.index(max(logits))
    (mean_b, error_b), (mean_q, error_q) = mean_and_error(nll_b), mean_and_error(nll_q)
    covariance = (sum(b * q for b, q in zip(nll_b, nll_q, strict=True)) / n - mean_b * mean_q) / (n - 1)
    of_ratio = math.sqrt(error_q**2 + error_b**2 - 2 * covariance)
    ppl_b, ppl_q = math.exp(mean_b), math.exp(mean_q)
    square, square_error = mean_and_error([x * x for x in changes])
    p = same / n

    def quantile(numbers, share):
        ordered = sorted(numbers)
        place = float(np.float32(share) * np.float32(n - 1))
        low = min(int(place), n - 2)
        return ordered[low] + (place - low) * (ordered[low + 1] - ordered[low])

    return {
        "perplexity": (ppl_q, ppl_q * error_q),
        "base_perplexity": (ppl_b, ppl_b * error_b),
        "correlation": covariance / (error_q * error_b),
        "log_ratio": (mean_q - mean_b, of_ratio),
        "ratio": (math.exp(mean_q - mean_b), math.exp(mean_q - mean_b) * of_ratio),
        "difference": (
            ppl_q - ppl_b,
            math.sqrt((ppl_q * error_q) ** 2 + (ppl_b * error_b) ** 2 - 2 * ppl_q * ppl_b * covariance),
        ),
        "kl": mean_and_error(kls),
        "change": mean_and_error(changes),
        "rms_change": (math.sqrt(square), square_error / (2 * math.sqrt(square))),
        "same_top": (p, math.sqrt(p * (1 - p) / (n - 1))),
    }, {"kl_quantiles": lambda share: quantile(kls, share), "change_quantiles": lambda share: quantile(changes, share)}


# -- the file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocabulary", [1, 2, 11, 12])
@pytest.mark.parametrize("context", [3, 4, 9])
def test_what_is_written_is_what_the_description_says(written, context, vocabulary):
    path, tokens, logits = written(context=context, vocabulary=vocabulary)
    found, rows, right = read_by_loops(path.read_bytes())
    file = LlamaCppFile(path, vocabulary=vocabulary)
    assert found == tokens.tolist() == file.tokens.tolist()
    assert right == file.targets.tolist()
    assert (file.context, file.vocabulary, file.chunks, len(file)) == (context, vocabulary, 3, len(logits))
    np.testing.assert_allclose(file.rows(), rows, atol=2e-6, rtol=0)
    # Half a step of a range of at most 16 nats.
    np.testing.assert_allclose(rows, logits.double().log_softmax(-1).clamp_min(-40), atol=16 / 65_535 / 2 + 2e-6)


def test_rows_are_read_in_any_pieces(written):
    path, _, _ = written()
    file = LlamaCppFile(path)
    whole = file.rows()
    assert torch.equal(torch.cat(list(file.blocks())), whole)
    assert torch.equal(file.rows(4, 7), whole[4:7])
    assert torch.equal(file.rows(10), whole[10:])
    assert file.rows(5, 5).shape == (0, 11)


def test_a_constant_row_has_no_range(written, tmp_path):
    logits = torch.tensor([[7.0] * 5, [-3.0] * 5, [1e-42, 0, 0, 0, 0]])
    write_llama_cpp(tmp_path / "flat", np.zeros((3, 3), dtype=np.int64), [logits])
    _, rows, _ = read_by_loops((tmp_path / "flat").read_bytes())
    np.testing.assert_allclose(rows, -math.log(5), atol=1e-6)
    assert torch.allclose(LlamaCppFile(tmp_path / "flat").rows(), torch.tensor(-math.log(5)))


def test_tokens_16_nats_below_the_top_are_written_as_if_they_were_there():
    """ln Z = ln(1 + 2 e^-20 + e^-16) is next to 0: the floor is -16, and the right token's ln p is wrong by 4."""
    found = through_llama_cpp(torch.tensor([[20.0, 0.0, 4.0, 0.0], [20.0, -torch.inf, 4.0, 0.0]]))
    np.testing.assert_allclose(found, [[0, -16, -16, -16]] * 2, atol=1e-5)
    many = through_llama_cpp(torch.cat((torch.zeros(1, 1), torch.full((1, 50_000), -30.0)), dim=1))
    assert many.double().exp().sum().item() == pytest.approx(1 + 50_000 * math.exp(-16), abs=1e-6)


def test_constants_added_to_logits_change_nothing_but_rounding():
    _, logits = a_text()
    np.testing.assert_allclose(through_llama_cpp(logits), through_llama_cpp(logits + 4), atol=3e-4)


def test_as_a_split_it_scores_what_the_file_has(written):
    path, tokens, _ = written(chunks=2, context=8)
    split = LlamaCppFile(path).split(bos=0)
    assert split.tokens[:, 0].tolist() == [0, 0]
    assert split.tokens[:, 1:].tolist() == tokens[:, 1:].tolist()
    assert [np.flatnonzero(kinds != UNSCORED).tolist() for kinds in split.kinds] == [[4, 5, 6]] * 2
    rows, places = np.nonzero(split.kinds != UNSCORED)
    assert split.tokens[rows, places + 1].tolist() == LlamaCppFile(path).targets.tolist()
    assert LlamaCppFile(path).split().tokens.tolist() == tokens.tolist()


# -- what is refused --------------------------------------------------------------------------------------------------


def one_line(error):
    return "\n" not in str(error.value)


def test_another_vocabulary_is_refused(written):
    path, _, _ = written()
    with pytest.raises(AssayError, match="of a vocabulary of 11 tokens, not 12") as error:
        LlamaCppFile(path, vocabulary=12)
    assert one_line(error)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(AssayError, match="cannot be read"):
        LlamaCppFile(tmp_path / "none")
    with pytest.raises(AssayError, match="cannot be read"):
        LlamaCppFile(tmp_path)


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\0", lambda data: data[: -2 * 16]])
def test_a_size_off_by_a_byte_or_a_record_is_refused(written, change):
    path, _, _ = written()
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(AssayError, match="was not written to its end") as error:
        LlamaCppFile(path)
    assert one_line(error)


@given(
    context=st.integers(0, 2**32 - 1),
    vocabulary=st.integers(-(2**31), 2**31 - 1),
    chunks=st.integers(-(2**31), 2**31 - 1),
    rest=st.binary(max_size=40),
)
@settings(deadline=None)
def test_header_numbers_of_any_size_are_refused_before_anything_is_held(
    tmp_path_factory, context, vocabulary, chunks, rest
):
    path = tmp_path_factory.getbasetemp() / "absurd.kld"
    path.write_bytes(struct.pack("<8sIii", b"_logits_", context, vocabulary, chunks) + rest)
    tracemalloc.start()
    try:
        with pytest.raises(AssayError) as error:
            LlamaCppFile(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert one_line(error)


@given(place=st.integers(0, 19), bit=st.integers(0, 7))
@settings(deadline=None)
def test_a_bit_of_the_header_that_flips_is_noticed(tmp_path_factory, place, bit):
    path = tmp_path_factory.getbasetemp() / "flipped.kld"
    tokens, logits = a_text()
    write_llama_cpp(path, tokens, [logits])
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)
    with pytest.raises(AssayError):
        LlamaCppFile(path, vocabulary=11)


@given(data=st.binary(max_size=200))
@settings(deadline=None)
def test_other_bytes_are_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "other.kld"
    path.write_bytes(data)
    with pytest.raises(AssayError) as error:
        LlamaCppFile(path)
    assert one_line(error)


def test_tokens_beyond_the_vocabulary_are_refused(written):
    path, _, _ = written()
    data = bytearray(path.read_bytes())
    for wrong in (11, -1):
        data[24:28] = struct.pack("<i", wrong)
        path.write_bytes(data)
        with pytest.raises(AssayError, match=f"token {wrong}, which a vocabulary of 11"):
            LlamaCppFile(path)


@pytest.mark.parametrize("span", [(math.nan, -1), (-1e-4, -1), (1e-4, math.inf), (1e-4, math.nan), (1e-4, -5)])
def test_a_damaged_record_is_named_when_it_is_read(written, span):
    path, _, _ = written()
    start, record = 20 + 4 * 27, 2 * 16
    data = bytearray(path.read_bytes())
    data[start + 5 * record : start + 5 * record + 8] = struct.pack("<ff", *span)
    path.write_bytes(data)
    file = LlamaCppFile(path)
    assert file.rows(0, 5).shape == (5, 11)
    with pytest.raises(AssayError, match="prediction 1 of chunk 1"):
        file.rows()


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    tokens, logits = a_text()
    path = tmp_path / "base.kld"
    nothing = torch.full((1, 11), math.nan)
    for blocks, words in (
        ([logits[:-1]], "12 predictions that count, and there were 11"),
        ([logits, logits], "there were more"),
        ([], "there were 0"),
        ([logits[:3], logits[3:, :4]], "rows of 11 tokens, then of 4"),
        ([logits[:-1], nothing], "nan as its largest"),
        ([logits[:-1], -nothing.nan_to_num(torch.inf)], "inf as its largest"),
        ([logits[:, :3]], "which a vocabulary of 3 has not"),
    ):
        with pytest.raises(AssayError, match=words) as error:
            write_llama_cpp(path, tokens, blocks)
        assert one_line(error)
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(AssayError, match="at least 3 tokens"):
        write_llama_cpp(path, tokens[:, :2], [logits])


# -- counting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("vocabulary", "spread", "noise"), [(7, 1.0, 0.01), (40, 3.0, 0.3), (61, 6.0, 2.0)])
def test_statistics_are_those_of_the_loops(written, vocabulary, spread, noise):
    path, _, logits = written(chunks=9, context=40, vocabulary=vocabulary, spread=spread)
    other = logits + noise * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    file = LlamaCppFile(path)
    found = counting(file.blocks(), other.split(128), file.targets)
    _, rows, right = read_by_loops(path.read_bytes())
    expected, quantiles = count_by_loops(rows, other.tolist(), right)
    assert found.positions == 171
    for name, value in expected.items():
        own = getattr(found, name)
        scale = max(1.0, abs(expected["perplexity"][0])) if "perplexity" in name or name == "difference" else 1.0
        assert own == pytest.approx(value, abs=1e-6 * scale, rel=1e-6 if name == "correlation" else 0), name
    for name, quantile in quantiles.items():
        for share, own in getattr(found, name).items():
            assert own == pytest.approx(quantile(share), abs=1e-6, rel=1e-6), (name, share)
    # What was clipped is part of it: the right token is, now and then.
    if spread == 6:
        clipped = [row[token] == min(row) and row.count(min(row)) > 1 for row, token in zip(rows, right, strict=True)]
        assert sum(clipped) > 3


def test_log_probabilities_count_like_logits_and_so_does_a_base_that_was_not_filed(written):
    path, _, logits = written(chunks=9, context=40)
    file = LlamaCppFile(path)
    other = logits + 0.3 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    first = counting(file.blocks(), other.split(128), file.targets)
    second = counting([through_llama_cpp(logits)], [other.log_softmax(-1)], file.targets)
    assert second.kl == pytest.approx(first.kl, abs=1e-7)
    assert second.perplexity == pytest.approx(first.perplexity, rel=1e-6)
    assert second.same_top == first.same_top


def test_the_same_model_differs_by_rounding_only(written):
    path, _, logits = written(chunks=9, context=40)
    file = LlamaCppFile(path)
    found = counting(file.blocks(), logits.split(128), file.targets)
    assert abs(found.kl.value) < 1e-5
    assert found.ratio.value == pytest.approx(1, abs=1e-4)
    itself = counting(file.blocks(), file.blocks(), file.targets)
    # Stored rows do not sum to one exactly.
    assert itself.kl.value == pytest.approx(0, abs=1e-5)
    assert itself.same_top == (1.0, 0.0)
    assert itself.log_ratio.error < 1e-4


def test_nothing_that_differs_is_no_error():
    flat = [torch.full((100, 4), -math.log(4))]
    found = counting(flat, flat, np.zeros(100, dtype=np.int64))
    assert found.rms_change == (pytest.approx(0, abs=1e-7), pytest.approx(0, abs=1e-7))
    assert math.isnan(found.correlation)
    assert found.perplexity == pytest.approx((4, 0), abs=1e-5)


def test_ties_go_to_the_first_of_equal_codes():
    """Logits that differ by less than a step have one code: the base's first choice is then the first of them."""
    logits = torch.tensor([[0.0, 5.0, 5.00001, -9.0]]).repeat(100, 1)
    found = counting([through_llama_cpp(logits)], [logits], np.ones(100, dtype=np.int64))
    assert found.same_top.value == 0


def test_quantiles_by_hand():
    """KL of (1/2, 1/2) from (e^a, 1)/(e^a + 1): ln(e^(a/2) + e^(-a/2)) - ln 2, for a = 0, 0.01, 0.02, …"""
    steps = np.arange(101) / 100
    base = torch.full((101, 2), -math.log(2))
    other = torch.tensor(np.stack((steps, 0 * steps), axis=1))
    found = counting([base], [other], np.zeros(101, dtype=np.int64))
    kl = np.log(2 * np.cosh(steps / 2)) - math.log(2)
    assert found.kl_quantiles[0.5] == pytest.approx(kl[50], abs=1e-6)
    assert found.kl_quantiles[0.999] == pytest.approx(kl[99] + 0.9 * (kl[100] - kl[99]), abs=1e-6)
    assert (found.kl_quantiles[0], found.kl_quantiles[1]) == pytest.approx((0, kl[100]), abs=1e-6)
    assert found.change_quantiles[0.25] == pytest.approx(1 / (1 + math.exp(-0.25)) - 0.5, abs=1e-6)


def test_what_cannot_be_counted_is_refused():
    rows = torch.full((100, 4), -math.log(4))
    right = np.zeros(100, dtype=np.int64)
    without = rows.clone()
    without[70, 1] = -torch.inf
    for base, other, targets, words in (
        ([rows[:99]], [rows[:99]], right[:99], "no statistics of fewer than 100"),
        ([rows], [rows[:, :3]], right, r"\(100, 4\) and \(100, 3\)"),
        ([rows], [], right, r"\(100, 4\) and nothing"),
        ([rows], [rows, rows], right, "after 100 predictions base and other give nothing and"),
        ([rows], [rows], right[:98], "more predictions than the 98 right tokens"),
        ([rows], [rows], np.zeros(101, dtype=np.int64), "100 predictions for 101"),
        ([rows], [rows], right + 4, "has token 4, which a vocabulary of 4 has not"),
        ([rows], [without], right, "not finite at prediction 70"),
        ([rows], [without.nan_to_num(neginf=math.nan)], right, "not finite at prediction 70"),
    ):
        with pytest.raises(AssayError, match=words) as error:
            counting(base, other, targets)
        assert one_line(error)
    # Below e^-16 of the base nobody asks the other model, unless it is the right token.
    low = torch.tensor([[0.0, -20.0]]).repeat(100, 1)
    sure = torch.tensor([[0.0, -torch.inf]]).repeat(100, 1)
    assert counting([low], [sure], right).kl.value == pytest.approx(0, abs=1e-6)
    with pytest.raises(AssayError, match="not finite at prediction 0"):
        counting([low], [sure], right + 1)
