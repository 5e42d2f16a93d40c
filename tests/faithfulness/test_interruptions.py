"""A comparison that is killed or runs out of disk loses nothing that was finished, and ends as if nothing had been."""

import resource
import signal

import pytest

from kills import cells, complete, finish, kill, results, start


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_killed_at_any_moment_and_run_again(tmp_path, jobs):
    longest = complete(tmp_path / "whole", jobs)
    most = cells(tmp_path / "whole")
    kills = list(kill(tmp_path / "killed", jobs, times=4, seed=jobs, longest=longest, most=most))
    assert any(found.moment is not None and 0 < found.cells < most for found in kills), (
        "no run was killed in the middle"
    )
    complete(tmp_path / "killed", jobs)
    assert results(tmp_path / "killed") == results(tmp_path / "whole")


@pytest.mark.slow
def test_a_full_disk_leaves_nothing_damaged(tmp_path):
    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, 4_000))

    status, said = finish(start(tmp_path / "run", before=limited))
    assert status != 0
    assert "File too large" in said
    assert not (tmp_path / "run" / "comparison.json").exists()
    complete(tmp_path / "run")
    complete(tmp_path / "whole")
    assert results(tmp_path / "run") == results(tmp_path / "whole")
