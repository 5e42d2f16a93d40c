"""What docs/diagnostics.md says is run as it stands there; it asserts what it says."""

from pages import printed_by


def test_the_page_runs_and_prints_a_record_a_block():
    blocks, _ = printed_by("diagnostics.md")
    assert [len(lines) for lines in blocks] == [1, 1, 1, 1, 1]
    assert "the explanation adds 0.4" in blocks[0][0]
    assert "passes 0.1" in blocks[1][0]
    assert "10% kept: top 0.9" in blocks[2][0]
    assert "leak" in blocks[3][0]
    assert "2 of 3 and 3 components shared" in blocks[4][0]
