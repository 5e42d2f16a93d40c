"""docs/file-formats.md says what is in every file that Assay writes."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

import assay
from assay.circuits._files import _Record as CircuitRecord
from assay.dictionaries import Dictionary
from assay.models._store import HEADER
from assay.simplify._saved import _Record as ProxyRecord
from pages import ROOT

PAGE = (ROOT / "docs" / "file-formats.md").read_text(encoding="utf-8")


def rows(heading):
    """What stands in code in the first column of the tables below a heading, table by table."""
    section = re.split(rf"^## {re.escape(heading)}$", PAGE, flags=re.MULTILINE)[1].split("\n## ")[0]
    tables = re.split(r"\n\n", section)
    found = [re.findall(r"^\| (`.+?`) \|", table, flags=re.MULTILINE) for table in tables]
    return [sorted(re.findall(r"`(.+?)`", " ".join(cells))) for cells in found if cells]


@pytest.mark.parametrize(
    ("heading", "record", "place"),
    [("Certificate", assay.Certificate, 0), ("Circuit", CircuitRecord, 0), ("Saved proxy", ProxyRecord, 1)],
    ids=["certificate", "circuit", "proxy"],
)
def test_fields_are_those_of_the_code(heading, record, place):
    assert rows(heading)[place] == sorted(record.model_fields)


def test_a_certificate_has_these_fields(tmp_path):
    assay.certify(assay.load("max-of-4"), strategy="subcubic").save(tmp_path / "cert.json")
    written = json.loads((tmp_path / "cert.json").read_text(encoding="utf-8"))
    assert sorted(written) == rows("Certificate")[0]
    assert f"`{written['format']}`, {written['version']}" in PAGE


@pytest.mark.slow  # pairs are made first
def test_a_circuit_has_these_fields(tmp_path):
    circuit = assay.Circuit(edges=["layer0.head0 -> layer1.head0.queries"])
    pairs = assay.tasks.DyckPairs()
    subject = assay.load("dyck-20-10")
    engine = assay.engine.Engine(subject)
    samples = assay.engine.collect(engine, pairs.split("train", 40), ()).at(engine.site("all"))
    circuit.fit(samples).write(tmp_path / "circuit.json")
    written = json.loads((tmp_path / "circuit.json").read_text(encoding="utf-8"))
    assert sorted(written) == rows("Circuit")[0]
    assert f"`{written['format']}`, {written['version']}" in PAGE


def test_a_dictionary_has_these_files(tmp_path):
    decoder = torch.eye(4).repeat(2, 1)
    parts = {"W_enc": decoder.T.clone(), "W_dec": decoder, "b_enc": torch.zeros(8), "b_dec": torch.zeros(4)}
    Dictionary(kind="topk", k=2, **parts).save(tmp_path / "sae")
    assert sorted(path.name for path in (tmp_path / "sae").iterdir()) == rows("Dictionary")[0]
    assert {"W_enc", "W_dec", "b_enc", "b_dec"} <= set(load_file(tmp_path / "sae" / "sae_weights.safetensors"))


def test_a_proxy_has_these_files_and_fields(tmp_path, samples, subject):
    assay.SVD(rank=2).fit(samples).apply(subject).save(tmp_path / "proxy")
    assert sorted(path.name for path in (tmp_path / "proxy").iterdir()) == rows("Saved proxy")[0]
    written = json.loads((tmp_path / "proxy" / "proxy.json").read_text(encoding="utf-8"))
    assert sorted(written) == rows("Saved proxy")[1]
    assert f"`{written['format']}`, {written['version']}" in PAGE


def test_a_store_is_named_as_it_is():
    assert f"`{HEADER}`" in PAGE
