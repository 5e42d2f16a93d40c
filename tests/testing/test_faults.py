"""Every call of a small run that touches its files fails once, and power is lost after every step: nothing is lost."""

import os

import pytest
from jaxtyping import config

from assay._files import is_leftover
from assay.testing.fuzz import faults

SAMPLE = 4
"""Faults of the quick test, of about a thousand, evenly over kinds and calls."""


@pytest.fixture(scope="module")
def study():
    """Without the checks of the tests: they read cells themselves, and tell of a fault there as one of types."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    yield faults.Study()
    config.update("jaxtyping_disable", before)


@pytest.fixture(scope="module")
def whole(study):
    return faults.undisturbed(study)


def test_a_sample_of_faults(study, whole):
    left, every = whole
    assert {kind for _, kind in every} == {*faults.KINDS, faults.SHORT}
    tried = [faults.fault(study, left, *every[len(every) * place // SAMPLE]) for place in range(SAMPLE - 1)]
    assert set(tried) == {""}
    assert faults.fault(study, left, *every[-5]) == ""


def test_a_sample_of_power_losses(study, whole):
    left, _ = whole
    states = faults.power_losses(study)
    assert len(states) > 20
    # A file whose content is not there may be there by its temporary name only.
    empty = [[name for name, content in state.items() if not content] for state in states]
    assert any(empty)
    assert {is_leftover(name.rpartition("/")[2]) for names in empty for name in names} == {True}
    for state in (states[len(states) // 3], states[-1]):
        assert faults.power_loss(study, left, state) == ""


def test_a_loss_of_power_is_seen(tmp_path):
    """What is moved into place before it is on the disk may be there by its name alone; what was synced is there."""
    folder = tmp_path / "run"
    folder.mkdir()
    with faults.Disk(folder) as disk:
        for synced, name in ((False, "a"), (True, "b")):
            (folder / "part").write_bytes(b"x")
            if synced:
                descriptor = os.open(folder / "part", os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
            os.replace(folder / "part", folder / name)
    assert disk.states == [
        {}, {"a": b""}, {"a": b"", "part": b"x"}, {"a": b"", "b": b"x"},
    ]  # fmt: skip


def test_an_interruption_ends_with_what_was_tried(study, whole, monkeypatch):
    monkeypatch.setattr(faults, "undisturbed", lambda study: whole)
    monkeypatch.setattr(faults, "power_losses", lambda study: [{}])
    monkeypatch.setattr(faults, "fault", lambda *where: "")
    tried = iter(range(2))

    def say(text):
        if next(tried):
            raise KeyboardInterrupt

    rows = faults.run(0, 10.0, say)
    assert sum(row.tried for row in rows) == 2
    assert not any(row.wrong for row in rows)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", [*faults.KINDS, faults.SHORT])
def test_every_fault(study, whole, kind):
    left, every = whole
    found = [faults.fault(study, left, *one) for one in every if one[1] == kind]
    assert len(found) >= 15
    assert None not in found
    assert faults.fault(study, left, len(every), kind) is None
    assert not [wrong for wrong in found if wrong]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_power_loss(study, whole):
    wrong = [faults.power_loss(study, whole[0], state) for state in faults.power_losses(study)]
    assert not any(wrong), wrong


def test_what_fails_is_what_is_asked_for(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()

    def work():
        (folder / "a").write_bytes(b"x" * 1000)
        os.replace(folder / "a", folder / "b")

    with faults.Touches(folder) as touches:
        work()
    assert touches.calls == ["open", "rename"]
    for number, left in enumerate((["b"], ["a", "b"])):
        with faults.Touches(folder, number, "full") as touches, pytest.raises(OSError, match="No space left"):
            work()
        assert touches.reached
        assert sorted(path.name for path in folder.iterdir()) == left
    with faults.Touches(tmp_path / "elsewhere", 0, "full"):
        work()


def test_a_file_that_is_cut_short_is_noticed(study, whole, tmp_path):
    """The comparison of bytes sees what it is there to see."""
    left, _ = whole
    study.run(tmp_path / "run")
    assert faults.found(tmp_path / "run") == left
    path = tmp_path / "run" / faults.RESULTS[0]
    path.write_bytes(path.read_bytes()[:-1])
    assert faults.found(tmp_path / "run") != left
    (tmp_path / "run" / "left over").touch()
    assert "left over" in faults.found(tmp_path / "run")[1]
