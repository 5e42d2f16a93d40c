"""Whatever a file holds, the checker verifies a true claim or refuses it in one line, within its budget."""

import json
import time
from datetime import timedelta
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_statements import attention, linear
from typer.testing import CliRunner

import assay
from assay.cli import app
from assay.proofs import Certificate, Proxy, certify
from assay.tasks import InputSet
from assay.testing.fuzz._forge import at, consistent, copy_of, sealed
from assay.testing.fuzz._models import attention_subject, linear_subject
from assay.testing.fuzz._truth import AttentionTruth
from assay.testing.fuzz.proofs import FORGERIES, Case

SMALL = 10**9
"""A budget in which every certificate of a tiny model is checked, and which is used up within seconds."""

QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


@cache
def bases():
    """One certificate of every kind of evidence as JSON content, with its subject."""
    soft, often_wrong, sums = attention(), attention(head=1, seed=8), linear()
    near = InputSet(3, 4, minimum_maximum=1, within=2)
    counted = {"strategy": "separable", "search": 0}
    proofs = [
        (soft, {"strategy": "exact"}),
        (soft, {"strategy": "brute-force", "inputs": near}),
        (often_wrong, counted),
        (often_wrong, counted | {"two_sided": True, "inputs": InputSet(3, 4, copies=1)}),
        (soft, {"strategy": "cubic"}),
        (soft, {"strategy": "subcubic-low-rank"}),
        (soft, {"strategy": "exact", "against": assay.SVD(rank=1)}),
        (soft, counted | {"against": Proxy(rank=1)}),
        (soft, counted | {"against": assay.OneHotAttention()}),
        (soft, {"strategy": "brute-force", "against": assay.OneHotAttention()}),
        (sums, {"strategy": "gemm"}),
        (sums, {"strategy": "blocks", "quantity": "loss", "width": 2, "top": 1, "refine": 3}),
        (sums, {"strategy": "symmetry", "quantity": "loss"}),
    ]
    return [(subject, certify(subject, **how).model_dump(mode="json")) for subject, how in proofs]


@cache
def cases():
    """For each base the model with the truth about it, and the base's content."""
    return [(Case(subject), content) for subject, content in bases()]


def refused(case, content, folder):
    """Whether a certificate is refused, by the checker and on the way from a file."""
    path = folder / "certificate.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    found = case.refused(content, SMALL), case.unread(path)
    assert bool(found[0]) == bool(found[1])
    return bool(found[0])


@pytest.mark.parametrize("index", range(13))
def test_the_files_that_are_forged_below_are_valid(index, tmp_path):
    case, content = cases()[index]
    assert not case.untrue(content)
    assert not refused(case, content, tmp_path)
    assert not refused(case, consistent(copy_of(content)), tmp_path)


# -- any change ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORGERIES)
@settings(max_examples=60, deadline=timedelta(seconds=60), suppress_health_check=QUIET)
@given(rng=st.randoms(use_true_random=False))
def test_any_change_is_refused_in_one_line_or_true(tmp_path_factory, kind, rng):
    """At length: `python -m assay.testing.fuzz proofs`."""
    case, content = rng.choice(cases())
    other = rng.choice([base for another, base in cases() if another.linear == case.linear])
    assert FORGERIES[kind](rng, case, copy_of(content), other, tmp_path_factory.getbasetemp())


@pytest.mark.parametrize("side", ["queries", "keys"])
@pytest.mark.parametrize("part", ["mean", "basis"])
@pytest.mark.parametrize("change", [lambda rows: rows[1:], lambda rows: [*rows, rows[0]], lambda rows: []],
                         ids=["one less", "one more", "none"])  # fmt: skip
def test_a_projection_of_another_width_is_refused_on_both_sides(tmp_path, side, part, change):
    """The mean of keys moves no attention, but it stands in the record that the statement is of."""
    case, content = next(one for one in cases() if (one[1].get("proxy") or {}).get("kind") == "projection")
    content = copy_of(content)
    content["proxy"][side][part] = change(content["proxy"][side][part])
    assert refused(case, sealed(content), tmp_path)


# -- each fault by itself -----------------------------------------------------------------------------------------


def refusal(text, folder):
    path = folder / "certificate.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(assay.AssayError) as refused:
        Certificate.load(path)
    assert str(refused.value).isprintable()
    return str(refused.value)


@pytest.mark.parametrize("index", range(13))
def test_a_key_that_stands_twice_is_refused_at_every_depth(index, tmp_path):
    _, content = bases()[index]
    text = json.dumps(content)
    seen = 0
    for start in (place for place, letter in enumerate(text) if letter == "{"):
        # Both are the same: whichever a reader takes, the file says it twice.
        found = json.JSONDecoder().raw_decode(text[start:])[0]
        if not found:
            continue
        key, value = next(iter(found.items()))
        twice = f"{text[: start + 1]}{json.dumps(key)}: {json.dumps(value)}, {text[start + 1 :]}"
        assert json.loads(twice) == content
        assert f"the key {key!r} stands twice in one object" in refusal(twice, tmp_path)
        seen += 1
    assert seen >= 5


@pytest.mark.parametrize(
    ("number", "words"),
    [
        ("NaN", "NaN is no number"),
        ("Infinity", "Infinity is no number"),
        ("-Infinity", "-Infinity is no number"),
        ("1e999", "1e999 is too large for a float"),
        ("-1e99999999999", "too large for a float"),
        ("9" * 3_901, "a number has 3901 digits; at most 3900 are read"),
        ("-" + "9" * 10**6, "a number has 1000001 digits"),
    ],
)
def test_numbers_that_are_no_numbers_or_huge_are_refused(number, words, tmp_path):
    for key in ("at_least", "seconds", "size"):
        text = json.dumps(bases()[0][1])
        before, after = text.split(f'"{key}": ', 1)
        assert words in refusal(f'{before}"{key}": {number}{after[after.index(",") :]}', tmp_path)


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**300, 1.5, True, "1", None, [1]])
@pytest.mark.parametrize("field", ["multipliers", "powers", "tops"])
def test_numbers_of_a_relaxation_fit_64_bits(field, value, tmp_path):
    content = copy_of(bases()[2][1])
    piece = next(piece for piece in content["pieces"] if piece["relaxations"])
    piece["relaxations"][0][field][0] = value
    words = f"relaxations[0].{field}[0] must be a whole number of at least {-(2**63)} below 2^63"
    assert words in refusal(json.dumps(sealed(content)), tmp_path)


RAGGED = [
    [],
    [[]],
    [[1.0], [1.0, 2.0], [1.0], [1.0]],
    [[1.0], []],
    [1.0, 2.0],
    [[[1.0]]],
    [[1]],
    [["1"]],
    [[None]],
    1.0,
]


@pytest.mark.parametrize("matrix", RAGGED, ids=range(len(RAGGED)))
def test_ragged_arrays_are_refused(matrix, tmp_path):
    for index, path in ((6, ("queries", "basis")), (6, ("keys", "basis")), (7, ("left",)), (7, ("right",))):
        content = copy_of(bases()[index][1])
        *way, last = path
        at(content["proxy"], way)[last] = matrix
        assert f"proxy.{'.'.join(path)}" in refusal(json.dumps(sealed(content)), tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "3",
        '"a"',
        "{}",
        "[" * 10**6,
        '{"a":' * 10**5,
        "{'format': 1}",
        "\ufeff{}",
        '{"format": NaN}',
    ],
    ids=range(12),
)
def test_other_files_are_refused(text, tmp_path):
    refusal(text, tmp_path)


def test_files_that_are_no_text_are_refused(tmp_path):
    for name, content in (("bytes", b"\xff\xfe\x00"), ("zip", b"PK\x03\x04\x80")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(assay.AssayError, match="is not a certificate: it cannot be read as text"):
            Certificate.load(tmp_path / name)
    with pytest.raises(assay.AssayError, match="is not a certificate: it cannot be read as text"):
        Certificate.load(tmp_path)


def test_a_file_of_unbounded_length_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setenv("ASSAY_LIMITS", "certificate=10000")
    assert "has 10,002 bytes, and at most 10,000 are read" in refusal(" " * 10**4 + "{}", tmp_path)


def test_evidence_of_another_family_is_refused():
    """An attention certificate that holds blocks, a linear one that holds boxes: nothing unread stands in a file."""
    for index, field, other in ((0, "blocks", 11), (10, "boxes", 4), (10, "pieces", 0)):
        subject, content = bases()[index]
        with pytest.raises(assay.AssayError, match="the evidence does not belong to"):
            Certificate.model_validate(sealed(content | {field: bases()[other][1][field]})).verify(subject)


def test_boxes_are_accepted_if_all_their_inputs_are_right_and_refused_otherwise():
    subject, content = bases()[4]
    truth, outcomes = AttentionTruth(subject), []
    for box in content["boxes"]:
        q, m = box["last"], box["maximum"]
        for smaller in range(3 if q == m else 2):
            for token in range(m) if smaller else [m]:
                changed = copy_of(content)
                changed["boxes"] = [box | {"tokens": [(1 << token) * (c == smaller) for c in range(3)]}]
                inside = [(a, b, q) for a in {token, m} for b in {token, m} if (a != m) + (b != m) == smaller]
                right = all(truth.correct(tokens) for tokens in inside)
                try:
                    Certificate.model_validate(consistent(changed)).verify(subject)
                except assay.AssayError as error:
                    outcomes.append((right, "holds a wrong input" not in str(error)))
                else:
                    outcomes.append((right, True))
    assert all(right == accepted for right, accepted in outcomes)
    assert {right for right, _ in outcomes} == {False, True}


# -- the budget ---------------------------------------------------------------------------------------------------


def refused_early(content, subject, words, seconds=20):
    """A file that would keep the checker for years is refused before it begins."""
    started = time.process_time()
    with pytest.raises(assay.AssayError, match=words) as refused:
        Certificate.model_validate(content).verify(subject)
    assert time.process_time() - started < seconds
    assert "certificate not checked" in str(refused.value)
    assert "larger budget" in str(refused.value)


@pytest.fixture(scope="module")
def ten():
    subject = assay.load("max-of-10")
    return subject, certify(subject, grid=64, refine=0, search=0).model_dump(mode="json")


def test_counted_groups_that_are_to_be_searched_are_refused_early(ten):
    subject, content = ten
    content = copy_of(content)
    assert any(piece["relaxations"] for piece in content["pieces"])
    for piece in content["pieces"]:
        piece["relaxations"] = []
    refused_early(consistent(content), subject, "searching the groups that were not counted", seconds=2)


def test_a_search_for_few_wrong_inputs_ends_where_more_are_found(ten):
    """Whoever records fewer wrong inputs than there are is refuted by the first that are too many."""
    subject, content = ten
    content = copy_of(content)
    for piece in content["pieces"]:
        piece.update(relaxations=[], wrong=0)
    with pytest.raises(assay.AssayError, match="inputs that may be wrong, or more"):
        Certificate.model_validate(consistent(content)).verify(subject)


def test_a_finer_grid_than_there_is_time_for_is_refused_early(ten):
    subject, content = ten
    content = copy_of(content)
    for piece in content["pieces"]:
        for relaxation in piece["relaxations"]:
            relaxation["powers"] = [power - 14 for power in relaxation["powers"]]
            relaxation["tops"] = [top << 14 for top in relaxation["tops"]]
    refused_early(consistent(content), subject, "counting on grids")


def test_a_relaxation_that_stands_there_many_times_is_not_counted_so_often():
    subject, content = bases()[2]
    content = copy_of(content)
    piece = next(piece for piece in content["pieces"] if piece["relaxations"])
    piece["relaxations"] *= 20_000
    with pytest.raises(assay.AssayError, match="certificate not checked: counting on"):
        Certificate.model_validate(sealed(content)).verify(subject, budget=SMALL)


def attention_of(vocabulary, length):
    return attention_subject({"W_E": np.ones((vocabulary, 1)), "W_U": np.ones((1, vocabulary))}, length)


def claim_about(subject, index, **changes):
    """A certificate of the kind of a base, about a subject for which nobody could make one."""
    config, (_, content) = subject.model.config, bases()[index]
    sizes = {"vocabulary": config.vocab_size, "length": config.length}
    size = config.vocab_size**config.length if config.length < 100 else 1
    changed = {
        "subject": content["subject"] | sizes | {"weights_sha256": subject.weights_sha256},
        "inputs": content["inputs"] | sizes | {"size": size},
        "pieces": content["pieces"] and [],
    }
    return sealed(content | changed | changes)


@pytest.mark.parametrize(("vocabulary", "length"), [(20_000, 2), (2, 100_000), (600, 300)])
@pytest.mark.parametrize("index", [0, 4, 8])
def test_models_of_many_tokens_or_positions_are_refused_early(vocabulary, length, index):
    subject = attention_of(vocabulary, length)
    refused_early(claim_about(subject, index), subject, "the (tables|order of all keys|worst case of every group)")


@pytest.mark.parametrize(("vocabulary", "length"), [(64, 20), (2_000, 4), (50_000, 2)])
def test_linear_models_of_many_multisets_are_refused_early(vocabulary, length):
    subject = linear_subject(np.ones((vocabulary, 1)), np.ones((1, 1)), np.ones((1, vocabulary)), length)
    refused_early(claim_about(subject, 12), subject, "the (table|sums of exponentials|multisets of tokens)")


def test_every_input_of_hard_attention_is_not_looked_at():
    """Of all 4^40 ways to fill the free positions none but those of one copy count, and all would be looked at."""
    subject = attention_of(4, 41)
    piece = {"relaxations": [], "credits": [], "proxy_wrong": 0, "wrong": 0, "surely_wrong": 0}
    inputs = {"length": 41, "vocabulary": 4, "minimum_maximum": 3, "within": 3, "copies": 40, "size": 123}
    content = claim_about(
        subject, 9, pieces=[{"last": 0, "maximum": 3} | piece], inputs=inputs, unexplained_dimension=123 * 4
    )
    refused_early(content, subject, "looking at every input")


def test_sets_of_more_inputs_than_64_bits_count_are_refused():
    """Of 10^20 inputs, 7766279631452241920 are left modulo 2^64."""
    subject = linear_subject(np.ones((10, 1)), np.ones((1, 1)), np.ones((1, 10)), 20)
    for size in (10**20, 10**20 % 2**64):
        content = claim_about(subject, 12)
        content["inputs"]["size"] = size
        with pytest.raises(assay.AssayError, match=r"hold 2\^63 tokens or more|the set has 1"):
            Certificate.model_validate(sealed(content)).verify(subject)


@pytest.mark.parametrize(("vocabulary", "length"), [(13, 17), (2, 21)])
def test_sets_that_the_checker_could_not_count_are_not_certified(vocabulary, length):
    subject = linear_subject(np.ones((vocabulary, 1)), np.ones((1, 1)), np.ones((1, vocabulary)), length)
    with pytest.raises(assay.AssayError, match=r"20 tokens each, and less than 2\^63 in all inputs"):
        certify(subject, strategy="symmetry")


@pytest.mark.parametrize("index", range(13))
def test_a_check_within_the_budget_is_made_and_one_beyond_it_is_not(index):
    subject, content = bases()[index]
    for budget, words in ((1, "certificate not checked: the table"), (10**4, "1.0e\\+04 are allowed")):
        with pytest.raises(assay.AssayError, match=words):
            Certificate.model_validate(content).verify(subject, budget=budget)
    Certificate.model_validate(content).verify(subject, budget=SMALL)


def test_the_budget_is_an_option_of_the_command_line(tmp_path):
    inputs = InputSet(4, 64, minimum_maximum=60, within=1)
    certify(assay.load("max-of-4"), inputs=inputs).save(tmp_path / "c.json")
    verify = ["verify", str(tmp_path / "c.json")]
    assert CliRunner().invoke(app, verify).exit_code == 0
    assert CliRunner().invoke(app, [*verify, "--budget", "1e10"]).exit_code == 0
    refused = CliRunner().invoke(app, [*verify, "--budget", "1e6"])
    assert isinstance(refused.exception, assay.AssayError)
    for wrong in ("0", "-3", "nan", "inf", "many", ""):
        assert CliRunner().invoke(app, [*verify, "--budget", wrong]).exit_code == 2
