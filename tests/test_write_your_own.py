"""What docs/write-your-own.md says is run as it stands there, with files of text put beside it."""

import shlex
import shutil

import numpy as np
import pytest
import torch

import assay
from assay.faithfulness import Comparison
from pages import ROOT, blocks

PAGE = "write-your-own.md"


@pytest.mark.slow
def test_the_command_of_the_page_runs(command, tmp_path, monkeypatch):
    """In two processes, which have the class from nowhere else than the file."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for name, word in {"fit": "if", "iid": "for", "code": "def"}.items():
        lines = (f"{word} item_{n} in [{n}, {n + 1}]: print(item_{n}, '{n}')" for n in range(40))
        (tmp_path / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    [text] = blocks(PAGE, "bash")
    [call] = text.strip().splitlines()
    program, *arguments = shlex.split(call)
    assert program == "assay"
    status, _, err = command(*arguments)
    assert status == 0, err
    found = Comparison.load(tmp_path / "runs" / "rounded")
    judged = {(proxy.proxy, proxy.site) for proxy in found.record.proxies if not proxy.is_control}
    assert judged == {(proxy, "layer0.head1+layer1.mlp") for proxy in ("Rounded(levels=8)", "SVD(rank=8)")}
    assert found.agreement("iid")["estimate"].between(0.01, 1).all()
    assert list((tmp_path / "runs" / "rounded" / "cells").iterdir()), "cells of the class are kept"


def test_the_python_of_the_page_runs(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    names: dict[str, object] = {}
    whole, check, metric, task = blocks(PAGE)
    for code in (whole, check, metric):
        exec(compile(code, "write-your-own.md", "exec"), names)
    among = names["comparison"].to_frame().query("metric == 'among_three' and kind == 'all' and feature == ''")
    same = names["comparison"].to_frame().query("metric == 'same_prediction' and kind == 'all' and feature == ''")
    assert (among["estimate"].to_numpy() >= same["estimate"].to_numpy()).all()
    exec(compile(task, "write-your-own.md", "exec"), names)
    assert names["comparison"].shifts == ("deep", "too_deep")
    printed = capsys.readouterr().out
    for words in ("Rounded(levels=8) at layer1", "Rounded(levels=64) at layer1", "estimate", "too_deep"):
        assert words in printed


@pytest.fixture
def rounded(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from examples.rounded import Rounded  # noqa: PLC0415

    return Rounded


def test_rounding_by_hand(rounded, engine, samples):
    """Four values between the extremes of every coordinate; what lies outside gets the nearest."""
    place = samples.places[0]
    edit = rounded(levels=4).fit(samples).apply(engine.subject).edits[0]
    vectors = torch.randn(2, 50, 32, generator=torch.Generator().manual_seed(0)) * 3
    low, high = samples.keys[place].numpy().min(axis=0), samples.keys[place].numpy().max(axis=0)
    values = np.stack([low + part * (high - low) / 3 for part in range(4)])
    nearest = np.abs(vectors.numpy()[None] - values[:, None, None]).argmin(axis=0)
    expected = np.take_along_axis(values[:, None, None] + np.zeros_like(vectors)[None], nearest[None], axis=0)[0]
    np.testing.assert_allclose(edit.keys(vectors), expected, atol=1e-4)


def test_the_task_of_the_page(monkeypatch):
    """It names the tokens of the shipped model, and asks for brackets that are right."""
    monkeypatch.syspath_prepend(str(ROOT))
    from examples.nest import DEPTHS, Nest  # noqa: PLC0415

    task, names = Nest(), {token: text for text, token in assay.load("dyck-20-10").tokenizer.get_vocab().items()}
    assert isinstance(task, assay.tasks.Task)
    for name in task.split_names:
        split = task.split(name, 30)
        for row, length, kinds in zip(split.tokens, split.lengths, split.kinds, strict=True):
            words = [names[int(token)] for token in row]
            depth = int(length) // 2
            opened, closed = words[1 : depth + 1], words[depth + 1 : length]
            assert words[0] == "START"
            assert set(words[length:]) <= {"PAD"}
            assert closed == [f"{word[1:]})" for word in opened[::-1]]
            assert np.flatnonzero(kinds == 0).tolist() == list(range(depth, 2 * depth))
            assert DEPTHS[name][0] <= depth <= DEPTHS[name][1]
        np.testing.assert_array_equal(task.split(name, 9).tokens, split.tokens[:9])
