"""Files from strangers: harmless, small in memory, and refused in one line where they are wrong."""

import gzip
import io
import json
import os
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

import assay
from assay import AssayError
from assay._errors import shown
from assay._files import LIMITS, check_growth, limit, read_arrays, read_bytes, read_json
from assay.cli import app
from assay.faithfulness import Comparison
from assay.proofs import Certificate
from assay.reports import Illustrations
from assay.subjects import import_max_of_k, load
from assay.tasks import JsonLines, Pairs, Text
from assay.testing.fuzz import _samples, readers

KINDS = [
    pytest.param(sample.kind, marks=[pytest.mark.slow] * (sample.every > 1), id=sample.kind)
    for sample in _samples.samples()
]


@pytest.fixture(scope="module")
def corpus():
    with readers.corpus(_samples.samples()) as kinds:
        yield {kind.sample.kind: kind for kind in kinds}


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_file_is_read_and_changed_ones_are_read_or_refused_in_one_line(corpus, kind):
    assert corpus[kind].unchanged() == ""
    assert [corpus[kind].case(0, number) for number in range(2)] == ["", ""]


@pytest.fixture
def run(corpus, tmp_path):
    """A run folder, three folders deep."""
    with corpus["run: comparison.json"].copied() as copied:
        folder = tmp_path / "a" / "b" / "run"
        folder.parent.mkdir(parents=True)
        os.rename(copied, folder)
        copied.mkdir()
        yield folder


def report(folder):
    """`assay report`, of which nothing but an AssayError may leave."""
    found = CliRunner().invoke(app, ["report", str(folder)])
    assert found.exception is None or isinstance(found.exception, AssayError), found.exception
    return found.exception


# -- paths ----------------------------------------------------------------------------------------------------------


def test_no_name_of_a_chart_leads_out_of_the_run(run, tmp_path):
    chart = Illustrations.load(run).charts[0].model_dump()
    names = ["../../../x", str(tmp_path / "abs" / "x"), "a/b", ".hidden"]
    charts = [chart | {"name": name} for name in names]
    (run / "illustrations.json").write_text(json.dumps({"charts": charts}))
    assert report(run) is None
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert os.listdir(tmp_path / "a") == ["b"]
    assert os.listdir(tmp_path / "a" / "b") == ["run"]
    drawn = list((run / "figures").iterdir())
    assert all(path.is_file() and path.name[0] != "." for path in drawn)
    assert len([path for path in drawn if path.suffix == ".png"]) >= len(names)
    (run / "illustrations.json").write_text(json.dumps({"charts": [chart | {"name": "\ud800"}]}))
    assert "illustrations.json' is damaged" in str(report(run))


def test_links_of_a_run_folder_are_not_followed(run, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine.svg").write_text("mine")
    (run / "figures").symlink_to(outside)
    assert "lies outside" in str(report(run))
    with pytest.raises(AssayError, match="lies outside"):
        assay.faithfulness.claim(run, {"study": "other"}, overwrite=True)
    assert os.listdir(outside) == ["mine.svg"]
    (run / "figures").unlink()
    (run / "gaps.parquet").rename(outside / "gaps.parquet")
    (run / "gaps.parquet").symlink_to(outside / "gaps.parquet")
    assert "lies outside" in str(report(run))
    (run / "gaps.parquet").unlink()
    os.mkfifo(run / "gaps.parquet")
    assert "is no plain file" in str(report(run))


# -- one line -------------------------------------------------------------------------------------------------------


def changed(corpus, kind, name, content, tmp_path):
    """A copy of a good folder with another file in it."""
    with corpus[kind].copied() as copied:
        folder = tmp_path / "given"
        os.rename(copied, folder)
        copied.mkdir()
    (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    "content",
    [
        [],
        "x",
        DEEP,
        b"1" * 5_000,
        b"\xff",
        {"dtype": "complex64"},
        {"dtype": "nn"},
        {"dtype": ["float32"]},
        {"seed": "x"},
    ],
    ids=["list", "text", "deep", "digits", "bytes", "complex", "strange", "listed", "seed"],
)
def test_a_training_record_of_anything_else_is_refused(corpus, tmp_path, content):
    folder = changed(corpus, "model: training.json", "training.json", content, tmp_path)
    with pytest.raises(AssayError, match=r"training\.json"):
        load(folder)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"attn_implementation": "someone/kernel"}, "code that would be fetched from a hub"),
        ({"_attn_implementation": {"": "someone/kernel"}}, "code that would be fetched from a hub"),
        ({"architectures": "GPT2LMHeadModel"}, "architectures that are no list of names"),
        ({"architectures": [1]}, "architectures that are no list of names"),
        ({"n_layer": 10**9}, "which no model has"),
        ({"vocab_size": 10**12}, "which no model has"),
        ({"n_embd": 2**20}, "asks for .* bytes, and its files hold"),
        ({"n_positions": 2**26}, "asks for .* bytes, and its files hold"),
    ],
    ids=["kernel", "kernels", "name", "number", "layers", "tokens", "width", "positions"],
)
def test_a_configuration_is_looked_at_before_a_model_is_made(corpus, tmp_path, more, said):
    folder = changed(corpus, "model: config.json", "config.json", b"{}", tmp_path)
    config = json.loads((corpus["model: config.json"].good / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | more))
    with pytest.raises(AssayError, match=said):
        load(folder)


def test_a_byte_order_mark_in_a_configuration_is_refused_in_one_line(corpus, tmp_path):
    good = (corpus["model: config.json"].good / "config.json").read_bytes()
    folder = changed(corpus, "model: config.json", "config.json", b"\xef\xbb\xbf" + good, tmp_path)
    with pytest.raises(AssayError) as found:
        load(folder)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("modules.json", {}),
        ("modules.json", 1),
        ("modules.json", [1]),
        ("modules.json", [{"type": "sentence_transformers.models.Pooling", "path": 1}]),
        ("modules.json", [{"type": "sentence_transformers.models.Pooling", "path": "../../x"}]),
        ("1_Pooling/config.json", []),
        ("1_Pooling/config.json", {"pooling_mode": 1}),
        ("sentence_bert_config.json", "x"),
        ("sentence_bert_config.json", {"max_seq_length": "x"}),
        ("config_sentence_transformers.json", {"prompts": [], "default_prompt_name": 1}),
    ],
    ids=str,
)
def test_settings_of_sentence_transformers_of_the_wrong_type_are_refused(corpus, tmp_path, name, content):
    folder = changed(corpus, "sentence-transformers: modules.json", name, content, tmp_path)
    with pytest.raises(AssayError, match=Path(name).name):
        load(folder)


def test_a_tokenizer_without_an_unknown_token_is_refused_when_it_meets_one(tmp_path):
    inner = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="none"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    task = Text(PreTrainedTokenizerFast(tokenizer_object=inner), train=None, iid=["a b", "a c"], shifts={})
    with pytest.raises(AssayError, match="unknown token"):
        task.split("iid", 2)


def test_a_certificate_that_is_a_folder_is_refused(tmp_path):
    with pytest.raises(AssayError, match="is not a certificate"):
        Certificate.load(tmp_path)


def test_bad_lines_of_functions_are_counted_and_the_rest_is_used(corpus, tmp_path):
    good = (corpus["functions: functions.jsonl"].good / "functions.jsonl").read_bytes()
    path = tmp_path / "functions.jsonl"
    bad = [DEEP, b'{"a": ' + b"1" * 5_000 + b"}", b'{"a": ' * 100_000, b"\xff", b'"x"', b'{"a": "\\ud800"}']
    path.write_bytes(b"\n".join([*bad, good]))
    found = JsonLines((path,), "python").read()
    assert len(found.functions) == 3
    assert sum(found.lost.values()) == len(bad)


BAD = {
    DEEP: "lines that are not JSON",
    b'{"a": ' * 100_000: "lines that are not JSON",
    b'{"a": ' + b"1" * 5_000 + b"}": "lines that are not JSON",
    b"{": "lines that are not JSON",
    b"\xff": "lines that are not UTF-8",
    b'"x"': "lines that are not JSON objects",
    b"[1, 2]": "lines that are not JSON objects",
    b'{"a": "b"}': None,
    b'{"text": 3, "clean": 3}': None,
    b'{"text": {"text": "a"}, "clean": ["a"]}': None,
    b'{"text": "\\ud800", "clean": "\\ud800", "counterfactual": "a", "answer": "a", "foil": "b"}': None,
}
"""Lines of a file of JSON lines that hold neither a text nor a pair, and why; None: they are objects."""


def counted(bad, otherwise):
    return {
        reason or otherwise: sum(BAD[line] == reason for line in bad)
        for reason in dict.fromkeys(BAD[line] for line in bad)
    }


@pytest.mark.parametrize("name", ["text.jsonl", "text.jsonl.gz"])
def test_bad_lines_of_text_are_counted_and_the_rest_is_used(tmp_path, name):
    good = [json.dumps({"text": line}).encode() for line in _samples.LINES]
    mixed = b"\n".join([*list(BAD)[:8], good[0], b'{"text": null}', good[1], *list(BAD)[8:], *good[2:], b"{"])
    (tmp_path / name).write_bytes(gzip.compress(mixed) if name.endswith(".gz") else mixed)

    def task(source):
        return Text(_samples.tokenizer(), train=None, iid=source, shifts={})

    expected = task(list(_samples.LINES))
    for sequences, bad in ((2, list(BAD)[:8]), (4, list(BAD)), (9, [*BAD, b"{"])):
        found = task(tmp_path / name).split("iid", sequences)
        assert found.tokens.tolist() == expected.split("iid", sequences).tokens.tolist()
        assert found.lost == counted(bad, "lines without text in 'text'")
        assert found.first(1).lost == found.lost
        assert not expected.split("iid", sequences).lost
    with pytest.raises(AssayError, match=r"split 'iid': .* has lines that are not JSON \(line 1\)"):
        task(tmp_path / name).whole("iid")  # there is no record that could say it


@pytest.mark.parametrize("line", BAD, ids=lambda line: line[:12].decode("ascii", "replace"))
def test_a_file_of_bad_lines_alone_is_refused_for_the_first(tmp_path, line):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b"\n".join([line, *BAD]))
    with pytest.raises(AssayError, match=r"line 1") as refused:
        Text(_samples.tokenizer(), train=None, iid=path, shifts={}).split("iid", 5)
    assert (BAD[line] or "text") in str(refused.value)
    with pytest.raises(AssayError, match=r"line 1") as refused:
        Pairs.read(path)
    assert (BAD[line] or "") in str(refused.value)


def test_what_was_lost_is_said_where_nothing_can_be_asked(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{\n{"text": "a"}\n"x"\n')
    with pytest.raises(AssayError, match=r"\(lost: 1 lines that are not JSON, 1 lines that are not JSON objects\)"):
        Text(_samples.tokenizer(), train=None, iid=path, shifts={}).split("iid", 5)


def test_bad_lines_of_pairs_are_counted_and_the_rest_is_used(corpus, tmp_path):
    good = (corpus["pairs: pairs.jsonl"].good / "pairs.jsonl").read_bytes().splitlines()
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"\n".join([*list(BAD)[:5], *good, *list(BAD)[5:]]))
    whole, found = (Pairs.read(source) for source in (corpus["pairs: pairs.jsonl"].good / "pairs.jsonl", path))
    assert found.pairs == whole.pairs
    assert found.lost == counted(BAD, "lines that are no pairs")
    assert whole.describe() | {"lost": dict(sorted(found.lost.items()))} == found.describe()
    # Of one file a split, those of all are counted.
    iid = [line for line in good if b'"iid"' in line]
    path.write_bytes(b"\n".join([*iid, b"{"]))
    assert Pairs.read({"iid": path}).lost == {"lines that are not JSON": 1}


def test_the_record_of_a_comparison_says_what_was_lost(tmp_path):
    text = tmp_path / "text.jsonl"
    text.write_bytes(b"\n".join([*(json.dumps({"text": line}).encode() for line in _samples.LINES), b"{", b"1", b"[]"]))
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_bytes(b"\n".join([b"{", *(json.dumps(row).encode() for row in _samples._PAIRS)]))
    call = {"sequences": 9, "fit_sequences": 9, "resamples": 10, "controls": False, "refit": False}
    task = Text(_samples.tokenizer(), train=["a c d b"], iid=text, shifts={})
    comparison = assay.compare(_samples.subject(), task, [assay.Identity()], **call)
    lost = [(item.what, item.reason) for item in comparison.record.skipped if "split iid" in item.what]
    assert lost == [
        ("1 lines that are not JSON of split iid", "left out, and the rest is used"),
        ("2 lines that are not JSON objects of split iid", "left out, and the rest is used"),
    ]
    page = comparison.report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "2 lines that are not JSON objects of split iid: left out, and the rest is used." in page
    comparison = assay.compare(_samples.subject(), Pairs.read(pairs), [assay.Identity()], **call)
    assert comparison.record.task["lost"] == {"lines that are not JSON": 1}


def test_only_the_column_of_text_is_read(tmp_path):
    far = pa.array([2**62] * 2).cast(pa.timestamp("us"))
    path = tmp_path / "text.parquet"
    pyarrow.parquet.write_table(pa.table({"when": far, "text": ["a b", "b a"], "wide": [[0.0] * 1000] * 2}), path)
    task = Text(_samples.tokenizer(), train=None, iid=path, shifts={})
    assert len(task.split("iid", 5)) == 2
    with pytest.raises(AssayError, match="has no field 'words', only 'when', 'text', 'wide'"):
        Text(_samples.tokenizer(), train=None, iid=path, shifts={}, text_field="words").split("iid", 5)


def test_tables_of_a_run_that_do_not_belong_together_are_refused(run):
    results = pyarrow.parquet.read_table(run / "results.parquet")
    pyarrow.parquet.write_table(results.drop_columns("low"), run / "results.parquet")
    assert "has no column 'low'" in str(report(run))
    place = results.column_names.index("estimate")
    wrong = results.set_column(place, "estimate", pa.array(["x"] * len(results)))
    pyarrow.parquet.write_table(wrong, run / "results.parquet")
    assert "column 'estimate' is of" in str(report(run))
    pyarrow.parquet.write_table(results.slice(0, 0), run / "results.parquet")
    with pytest.raises(AssayError, match="do not belong together"):
        Comparison.load(run)


# -- bombs ----------------------------------------------------------------------------------------------------------


def peak(work):
    """The most memory that Python held at a time, in bytes."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_line_that_becomes_huge_is_not_held(tmp_path):
    path = tmp_path / "text.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b'{"text": "a b"}\n{"text": "')
        for _ in range(60):
            file.write(b"a" * 2**20)
        file.write(b'"}\n')
    assert path.stat().st_size < 2**20

    def work():
        found = Text(_samples.tokenizer(), train=None, iid=path, shifts={}).split("iid", 5)
        assert (len(found), found.lost) == (1, {"lines of more than 8,388,608 bytes": 1})

    assert peak(work) < 2**26


def test_a_file_that_becomes_too_many_times_its_size_is_read_no_further(tmp_path, monkeypatch):
    monkeypatch.setattr("assay.tasks._rows.LEAST_GROWTH", 2**20)
    path = tmp_path / "functions.jsonl.gz"
    path.write_bytes(gzip.compress(b" \n" * 2**21))
    with pytest.raises(AssayError, match="become more than 50 times their size"):
        JsonLines((path,), "python").read()
    monkeypatch.setenv("ASSAY_LIMITS", "growth=5000")
    with pytest.raises(AssayError) as found:
        JsonLines((path,), "python").read()
    assert "times their size" not in str(found.value)


def test_arrays_that_become_huge_are_refused_by_their_headers(tmp_path):
    np.savez_compressed(tmp_path / "bomb.npz", W_E=np.zeros((2**12, 2**11), np.float32))
    assert (tmp_path / "bomb.npz").stat().st_size < 2**16

    def work():
        with pytest.raises(AssayError, match=r"would grow to 33,554,\d+ bytes"):
            import_max_of_k(tmp_path / "bomb.npz")

    assert peak(work) < 2**22


def test_an_array_that_is_shorter_than_its_shape_is_refused_before_memory_is_taken(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**50,)})
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as archive:
        archive.writestr("W_E.npy", header.getvalue())
    with pytest.raises(AssayError, match="is shorter than its shape"):
        read_arrays(tmp_path / "short.npz")


def test_a_torch_file_that_was_compressed_is_refused(tmp_path):
    torch.save({"W_E": torch.zeros(2**22)}, tmp_path / "plain.pt")
    check_growth(tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "bomb.pt", "w", 8) as bomb:
        for item in plain.infolist():
            bomb.writestr(item.filename, plain.read(item))
    with pytest.raises(AssayError, match="would grow to"):
        import_max_of_k(tmp_path / "bomb.pt")


def test_what_holds_itself_many_times_over_is_not_written_out():
    value = ["x"]
    for _ in range(60):
        value = [value] * 9
    assert len(shown(value, 80)) <= 80
    assert shown({"a": [1, "b"]}, 80) == "{'a': [1, 'b']}"
    assert shown(10**5_000, 60) == "a number of too many digits"
    assert len(shown("x" * 500, 60)) <= 60


def test_a_certificate_is_measured_before_it_is_read(tmp_path):
    with (tmp_path / "blanks.json").open("wb") as file:
        file.truncate(300 * 10**6)

    def work():
        with pytest.raises(AssayError, match="has 300,000,000 bytes, and at most 67,108,864 are read"):
            Certificate.load(tmp_path / "blanks.json")

    assert peak(work) < 2**20


def test_limits_can_be_set_and_nonsense_is_refused(tmp_path, monkeypatch):
    assert {name: limit(name) for name in LIMITS} == LIMITS
    (tmp_path / "x.json").write_text("[1]")
    monkeypatch.setenv("ASSAY_LIMITS", "file=2, line=7")
    assert limit("line") == 7
    with pytest.raises(AssayError, match=r"has 3 bytes, and at most 2 are read.*ASSAY_LIMITS=file="):
        read_bytes(tmp_path / "x.json")
    monkeypatch.setenv("ASSAY_LIMITS", "file=3")
    assert read_json(tmp_path / "x.json") == [1]
    for wrong in ("file", "fule=3", "file=-1", "file=x", "file=" + "1" * 30):
        monkeypatch.setenv("ASSAY_LIMITS", wrong)
        with pytest.raises(AssayError, match="give names and whole numbers"):
            limit("line")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(AssayError, match="is no plain file"):
        read_json(tmp_path / "pipe.json")
