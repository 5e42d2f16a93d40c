"""What the pages about dictionaries and about bases, rules and shifts say is run as it stands there."""

import re

import pytest

from pages import blocks, printed_by

# The code of the three pages takes minutes, five of them that of the last.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def about_dictionaries():
    return printed_by("dictionaries.md")[0]


@pytest.fixture(scope="module")
def about_features():
    return printed_by("dictionaries-features.md")


@pytest.fixture(scope="module")
def about_bases():
    return printed_by("bases-rules-shifts.md")


def decimals(line):
    """The numbers of a line that have a point."""
    return [float(number) for number in re.findall(r"-?\d+\.\d+", line)]


def test_no_block_of_a_page_is_left_out():
    for page, count in (("dictionaries.md", 3), ("dictionaries-features.md", 3), ("bases-rules-shifts.md", 3)):
        assert len(blocks(page)) == count


def test_a_dictionary_does_better_than_svd_and_is_judged_in_all_ways(about_dictionaries):
    trained, svd = about_dictionaries[0]
    assert trained.startswith("SparseAutoencoder(k=8, steps=150) at layer1.residual: ")
    agrees = [float(re.search(r"Agrees with the subject on ([\d.]+)%", line)[1]) for line in (trained, svd)]
    assert agrees[0] > agrees[1] + 10
    vectors, losses = about_dictionaries[1]
    assert len(vectors.splitlines()) == len(losses.splitlines()) == 6
    for line in vectors.splitlines()[1:]:
        assert 0.9 < decimals(line)[0] < 1
    for line in losses.splitlines()[1:]:
        assert 0.8 < min(decimals(line)) <= max(decimals(line)) < 1
    assert 0.3 < decimals(about_dictionaries[2][0])[0] < 0.8, "features that nobody learned explain much"


def test_features_are_shown_described_and_asked_about(about_features):
    (shown, dependence, paths), names = about_features
    *top, described, absorbed = shown
    assert len(top) == 2 * len(names["picked"])
    assert "depth > " in described
    for line in (*described.splitlines(), *absorbed.splitlines()):
        assert "..." not in line
    assert dependence[0].startswith(
        "layer1.residual: features of fits on the train split and on unseen_depth match at "
    )
    lines = [line for line in paths[0].splitlines() if " -> layer1.mlp feature 12" in line]
    assert {line.count("->") for line in lines} == {1, 2}
    measured = [line for line in lines if "NaN" not in line]  # a path may never be on
    assert len(measured) > len(lines) / 2
    for line in measured:
        contribution, share, error = decimals(line)[-3:]
        assert 0 <= share <= 1
        assert 0 <= error < 0.5
        assert "error" not in line or contribution != 0
    assert max(decimals(line)[-1] for line in measured) > 0.01, "the transcoders' errors stand beside every path"


def test_an_interaction_basis_ties_with_principal_components(about_bases):
    (table, *_), _ = about_bases
    local, _, components = (decimals(line)[-3:] for line in table[0].splitlines()[1:])
    assert components[0] < local[0] < components[0] + 0.05
    assert local[1] < components[2], "their intervals overlap"


def test_rules_are_a_floor(about_bases):
    (_, tables, _), _ = about_bases
    brackets, code = ([decimals(line)[-3] for line in table.splitlines()[1:]] for table in tables)
    assert max(brackets) < 0.1
    few, many, without, counted, most_frequent, _ = code
    assert most_frequent < few < many < counted
    assert without < many


def test_the_gap_is_there_without_a_shift_and_the_fit_gives_half_of_it_back(about_bases):
    (_, _, (*ranks, before)), _ = about_bases
    found = [decimals(line) for line in ranks]
    iid, shifted = decimals(before)
    for gap, on_c, _ in found:
        assert 0 <= gap <= on_c < gap + 0.05
    assert found[2][:2] == [0, 0]
    few, some, whole = (explained for *_, explained in found)
    assert few < shifted
    assert some < whole
    assert 0.3 < (whole - shifted) / (iid - shifted) < 0.8
