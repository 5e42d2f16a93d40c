"""Tables and figures of the max-of-K study."""

from fractions import Fraction

import numpy as np
import pytest

from assay.proofs import Proxy, certify
from assay.studies import max_of_k
from assay.studies.max_of_k import Result
from assay.subjects import LinearMaxConfig, LinearMaxForCausalLM, Subject, load
from assay.tasks import InputSet


@pytest.fixture(scope="module")
def results():
    found = []
    for name in ("linear-max-of-2", "linear-max-of-3"):
        for seed in (0, 1):
            config = LinearMaxConfig(vocab_size=6, length=int(name[-1]), hidden_size=4)
            subject = Subject(LinearMaxForCausalLM(config).eval(), None, name, seed=seed)
            for strategy in ("brute-force", "convexity", "blocks", "gemm"):
                blocks = {"width": 2, "top": 1, "refine": 3} if strategy == "blocks" else {}
                certificate = certify(subject, strategy=strategy, quantity="loss", **blocks)
                found.append(Result(name, seed, "loss", certificate, None if strategy == "convexity" else 0.25))
            found.append(Result(name, seed, "frontier", certify(subject), 0.5))
    near = InputSet(4, 64, minimum_maximum=40, within=1)
    for strategy in ("cubic", "exact"):
        certificate = certify(load("max-of-4"), strategy=strategy, inputs=near)
        found.append(Result("max-of-4", 0, "frontier", certificate, 0.5))
    return found


def test_bounds_are_printed_outward(results):
    rows = max_of_k.lines(results, "loss")
    assert [row[:3] for row in rows[:3]] == [
        ("linear-max-of-2", "2", "brute-force"),
        ("linear-max-of-2", "2", "convexity"),
        ("linear-max-of-2", "2", "blocks, 2 wide, 1 kept, 3 refined"),
    ]
    for row in rows:
        chosen = [
            item.certificate
            for item in results
            if item.group == "loss" and (item.model, max_of_k._label(item)) == (row[0], row[2])
        ]
        lows, highs = ([part.strip("()") for part in row[column].replace(" to ", " ").split()] for column in (3, 4))
        assert Fraction(lows[0]) <= sorted(Fraction(item.low) for item in chosen)[0]
        assert Fraction(highs[-1]) >= sorted(Fraction(item.high) for item in chosen)[-1]
        assert len(lows[0].split(".")[1]) == 12
        assert row[-1] == ("not checked" if row[2] == "convexity" else "0.25")


@pytest.mark.parametrize(("value", "down", "up"), [(0.1, "0.100", "0.101"), (0.5, "0.500", "0.500")])
def test_rounding(value, down, up):
    # The float 0.1 is a little more than a tenth.
    assert max_of_k._rounded(value, 3, up=False) == down
    assert max_of_k._rounded(value, 3, up=True) == up


def test_a_proof_without_search_is_named_so():
    counted, searched = (
        certify(load("max-of-4"), strategy="separable", grid=64, **options) for options in ({"search": 0}, {})
    )
    assert max_of_k._label(Result("max-of-4", 0, "frontier", counted, None)) == "separable, grid 64, counted only"
    assert max_of_k._label(Result("max-of-4", 0, "frontier", searched, None)) == "separable, grid 64"


def test_certified_gaps_are_from_the_tightest_bound_over_all_inputs_to_near_ties():
    subject, near = load("max-of-4"), InputSet(4, 64, within=1)
    proofs = [
        certify(subject, strategy="cubic"),
        certify(subject, strategy="separable", grid=64, search=0),
        certify(subject, strategy="exact", inputs=near),
        certify(subject, strategy="exact", against=Proxy(1), inputs=near),
        certify(subject, strategy="exact", inputs=InputSet(4, 64, minimum_maximum=50)),
    ]
    results = [Result("max-of-4", 0, "frontier", proof, None) for proof in proofs]
    [(model, seeds, quantity, low, where, high, gap)] = max_of_k.gap_lines(results)
    assert (model, seeds, quantity, where) == ("max-of-4", "1", "accuracy", "within 1")
    assert Fraction(low) <= Fraction(proofs[1].low) < Fraction(low) + Fraction(1, 10**9)
    assert Fraction(high) >= Fraction(proofs[2].high) > Fraction(high) - Fraction(1, 10**9)
    exact = Fraction(proofs[1].at_least, 64**4) - Fraction(proofs[2].at_most, near.size)
    assert Fraction(gap) <= exact < Fraction(gap) + Fraction(2, 10**6)
    assert max_of_k.gap_lines(results[:3] * 2)[0][1] == "2"


def test_figure_of_losses(results):
    figure = max_of_k._losses(results)
    assert [axes.get_title() for axes in figure.axes] == ["linear-max-of-2", "linear-max-of-3"]
    for axes, name in zip(figure.axes, ("linear-max-of-2", "linear-max-of-3"), strict=True):
        drawn = {
            collection.get_label(): np.asarray(collection.get_offsets())
            for collection in axes.collections
            if not collection.get_label().startswith("_")
        }
        for strategy in ("brute-force", "convexity", "blocks", "gemm"):
            expected = [
                (item.certificate.operations.total, item.certificate.high)
                for item in results
                if (item.group, item.model, item.certificate.strategy) == ("loss", name, strategy)
            ]
            assert np.allclose(drawn[strategy], expected)


def test_files_of_a_run(results, tmp_path):
    max_of_k._draw(results, tmp_path)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        "frontier.svg",
        "frontier.png",
        "loss.svg",
        "loss.png",
    }
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == 2
    assert "Mean loss over all inputs" in page
    assert "Accuracy over restricted sets" not in page
    max_of_k.write_markdown(results, [("max-of-4", "0", "10", "0.9", "0.5", "1.0")], tmp_path / "proofs.md")
    text = (tmp_path / "proofs.md").read_text(encoding="utf-8")
    assert "## Mean loss over all inputs, in nats (linear models)" in text
    assert "| max-of-4 | 0 | 10 | 0.9 | 0.5 | 1.0 |" in text


def test_a_sampled_accuracy_is_near_the_proved_one():
    ((name, seed, sequences, share, low, high),) = max_of_k.sampled_lines([("max-of-4", 0)], sequences=20_000)
    exact = certify(load("max-of-4"), strategy="exact")
    assert (name, seed, sequences) == ("max-of-4", "0", "20000")
    assert Fraction(low) < Fraction(share) < Fraction(high)
    assert Fraction(low) <= Fraction(exact.at_least, 64**4) <= Fraction(high)
