"""A dozen of the architectures of the census, each different in some way; all of them under the slow marker."""

import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import CONFIG_MAPPING
from transformers.models.llama import modeling_llama as llama

from assay import AssayError
from assay.engine import Edit, Engine, Head
from assay.studies import _census
from assay.studies._census import Row, architectures, build, census, examine, examine_apart
from assay.studies.architectures import main, markdown
from assay.subjects import Subject
from assay.testing import check_architecture

DIFFERENT = [
    ("gpt2", "causal"),
    ("llama", "causal"),  # grouped queries, rotary positions
    ("gemma2", "causal"),  # soft caps, sliding windows in alternating layers
    ("gpt_oss", "causal"),  # attention sinks, experts
    ("granite_swa", "causal"),  # attention sinks computed beside the attention weights
    ("deepseek_v3", "causal"),  # latent attention: values narrower than keys
    ("gemma3n_text", "causal"),  # later layers share the keys of earlier ones
    ("inkling2_text", "causal"),  # attention that sees all queries at once, and attention to layers
    ("jamba", "causal"),  # most layers have no attention
    ("longcat_flash", "causal"),  # two attention layers a block
    ("opt", "causal"),  # scaled queries
    ("bert", "masked"),
    ("modernbert", "masked"),
    ("distilbert", "features"),  # modules that do not know their layer
    ("t5", "features"),  # relative bias passed from block to block
]

WITH_EDGES = {("gpt2", "causal"), ("llama", "causal"), ("gemma2", "causal"), ("gpt_oss", "causal"),
              ("granite_swa", "causal"), ("deepseek_v3", "causal"), ("opt", "causal")}  # fmt: skip
"""Those whose residual stream is the sum of what heads and MLPs add."""

REFUSED = [
    ("mamba", "causal", "AttentionInterface"),  # has no attention
    ("diffllama", "causal", "one attention module twice"),
    ("deepseek_v4", "causal", "6 keys from 5 tokens"),
    ("bigbird_pegasus", "features", "beside transformers' AttentionInterface"),  # its encoder alone
]

ALLOWED = {"passes", "refused", "not buildable", "not text"}


@pytest.mark.parametrize(("name", "use"), DIFFERENT)
def test_architecture_passes(name, use):
    if name not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    row = examine(name, use)
    assert (row.status, row.reason) == ("passes", "")
    assert row.details["layers"] >= 2
    assert (row.details["edges"] == "") == ((name, use) in WITH_EDGES)
    assert row.details["identity"] <= 1e-4


@pytest.mark.parametrize(("name", "use", "reason"), REFUSED)
def test_architecture_is_refused_by_name(name, use, reason):
    row = examine(name, use)
    assert row.status == "refused"
    assert reason in row.reason
    assert row.model.removesuffix("ForCausalLM").removesuffix("Model") in row.reason


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"), reason="builds no Musicgen from a default configuration"
)
def test_what_does_not_run_on_tokens_is_refused_by_name():
    model = build("musicgen", "causal")
    with pytest.raises(AssayError, match=r"MusicgenForCausalLM .*could not be run on token ids alone"):
        check_architecture(model)


def test_half_precision_is_refused():
    with pytest.raises(AssayError, match="float32 or float64"):
        check_architecture(build("gpt2", "causal").bfloat16())


def test_sinks_computed_aside_are_part_of_the_patterns():
    """The architecture scales each output by sigmoid(logsumexp - sink): what the sink leaves to the tokens."""
    model = build("granite_swa", "causal")
    engine = Engine(Subject(model, None, "sinks"))
    tokens = torch.arange(10, 22)[None]
    run = engine.run(tokens, read=("queries", "keys", "values", "patterns", "outputs"))
    for layer in range(engine.layers):
        assert torch.allclose(run.patterns[layer] @ run.values[layer], run.outputs[layer], atol=1e-5)
    attention = model.model.layers[0].self_attn
    scores = run.queries[0] @ run.keys[0].transpose(-1, -2) * attention.scaling
    visible = run.patterns[0] > 0
    kept = (scores.masked_fill(~visible, -torch.inf).logsumexp(dim=-1) - attention.sinks[None, :, None]).sigmoid()
    assert torch.allclose(run.patterns[0].sum(dim=-1), kept, atol=1e-5)
    rows = []
    engine.run(tokens, on_rows=lambda layer, where, weights, *_: rows.append((layer, weights)), rows=12)
    assert torch.allclose(dict(rows)[0], run.patterns[0], atol=1e-6)


def test_attention_that_is_not_weights_times_values_is_refused(monkeypatch):
    """A planted architecture: its outputs get something besides."""
    own = llama.eager_attention_forward

    def more(*arguments, **options):
        output, weights = own(*arguments, **options)
        return output + 0.1, weights

    monkeypatch.setattr(llama, "eager_attention_forward", more)
    with pytest.raises(AssayError, match="not its attention weights times its values"):
        Engine(Subject(build("llama", "causal"), None, "planted"))


def test_sites_of_blocks_where_blocks_are_not_plain():
    two = Engine(Subject(build("longcat_flash", "causal"), None, "two"))
    assert [block.layer for block in two.blocks] == [0, 2, 4]
    assert two.expand("all-layers.residual") == ("layer0.residual", "layer2.residual", "layer4.residual")
    with pytest.raises(AssayError, match=r"several attention layers besides.*sites that end in \.mlp"):
        two.site("all.mlp")
    with pytest.raises(AssayError, match=r"has shared_mlp besides"):
        Engine(Subject(build("granitemoeshared", "causal"), None, "beside")).site("layer1.mlp")
    with pytest.raises(AssayError, match="not one vector a token"):
        Engine(Subject(build("hy_v4", "causal"), None, "copies")).site("layer1.residual")


def test_layers_that_share_keys_are_not_left_out():
    engine = Engine(Subject(build("gemma3n_text", "causal"), None, "shared"))
    tokens = torch.arange(10, 16)[None]
    clean = engine.run(tokens, resumable=True)
    edit = Edit(Head(3, 0), values=lambda states: 2 * states)
    rest = engine.run(tokens, edits=[edit], read=("patterns",), resume=clean)
    assert torch.equal(rest.logits, engine.run(tokens, edits=[edit]).logits)
    assert set(rest.patterns) == {0, 1, 2, 3}


def test_check_finds_an_edit_without_effect():
    model = build("llama", "causal")
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
    with pytest.raises(AssertionError, match="edit of queries in layer 1 has no effect"):
        check_architecture(model)


def test_check_finds_a_resumed_run_that_differs(monkeypatch):
    own = Engine.run

    def run(self, tokens, valid=None, *, resume=None, **options):
        found = own(self, tokens, valid, resume=resume, **options)
        if resume is not None:
            found.logits = found.logits + 0.1
        return found

    monkeypatch.setattr(Engine, "run", run)
    with pytest.raises(AssertionError, match="resumes at layer 0 differs"):
        check_architecture(build("gpt2", "causal"))


def test_check_finds_an_edit_at_the_wrong_head(monkeypatch):
    own = Engine.run

    def run(self, tokens, valid=None, *, edits=(), **options):
        moved = [
            Edit(Head(edit.place.layer, 0), values=edit.values)
            if len(edits) == 1 and isinstance(edit.place, Head) and edit.values is not None
            else edit
            for edit in edits
        ]
        return own(self, tokens, valid, edits=moved, **options)

    monkeypatch.setattr(Engine, "run", run)
    with pytest.raises(AssertionError, match=r"edit of values at .* is lost"):
        check_architecture(build("gpt2", "causal"))


@pytest.mark.slow
def test_a_process_of_its_own_gives_the_same_row():
    row = examine_apart("gpt2", "causal")
    assert row.status == "passes"
    assert row.details == examine("gpt2", "causal").details


@pytest.mark.slow
def test_one_that_hangs_loses_only_itself():
    row = examine_apart("gpt2", "causal", seconds=0.01)
    assert (row.status, row.reason) == ("fails", "took longer than 0.01 s")


def test_one_that_is_unknown_to_transformers_is_said_to_be():
    assert examine("no-such-model", "causal").status == "not buildable"


def row(name, use="causal", status="passes", reason="", **details):
    known = {
        "layers": 3, "heads": 12, "streams": ("queries", "mlp"), "not_reached": (), "edges": "", "identity": 0,
        "as_loaded": 0,
    }  # fmt: skip
    return Row(name, use, name.upper(), status, reason, {**known, **details} if status == "passes" else {})


def test_census_goes_on_where_it_was(tmp_path, monkeypatch):
    calls = []

    def fake(name, use, seconds):
        calls.append(name)
        return row(name, use)

    monkeypatch.setattr(_census, "examine_apart", fake)
    kept, chosen = tmp_path / "kept.jsonl", [("a", "causal"), ("b", "causal"), ("c", "masked")]
    whole = census(chosen, kept)
    assert calls == ["a", "b", "c"]
    lines = [line for line in kept.read_text().splitlines() if line]
    stale = json.dumps({**json.loads(lines[1]), "key": "made by other code"})
    kept.write_text("\n".join([lines[0], stale, lines[2][: len(lines[2]) // 2]]))
    again = census(chosen, kept)
    assert calls == ["a", "b", "c", "b", "c"]
    assert [json.loads(json.dumps(found.__dict__)) for found in again] == [
        json.loads(json.dumps(found.__dict__)) for found in whole
    ]
    assert len(census(chosen, kept)) == 3
    assert len(calls) == 5


def test_page_counts_and_gives_reasons():
    rows = [
        row("a"),
        row("a", "features"),
        row("b", "causal", "refused", "b <is> a|b"),
        row("c", "masked", "not buildable", "ImportError: timm"),
        row("d", "features", "not text", "takes pixel_values"),
        row("e", not_reached=("LinearAttention",), edges="its norms <come> last"),
    ]
    page = markdown(rows)
    assert "**2 of 4 architectures pass in at least one use.**" in page
    assert "| causal LM | 3 | 2 | 1 | 0 | 0 |" in page
    assert "**Circuits of edges work in 1 of the 2 causal language models that pass.**" in page
    assert "| a | passes |  | passes | 3 | mlp | yes |" in page
    assert "| b | refused |  |  |  |  |  |" in page
    assert "| e | passes |  |  | 3 | mlp | no |" in page
    assert "| e | its norms &lt;come> last |" in page
    assert "| b | causal LM | refused | b &lt;is> a\\|b |" in page
    assert "- e (causal LM): LinearAttention" in page
    assert "1 architectures take no text as their main input: d." in page


def test_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_census, "examine_apart", lambda name, use, seconds: row(name, use))
    page = tmp_path / "page.md"
    assert main(["gpt2", "--keep", str(tmp_path / "runs" / "kept.jsonl"), "--markdown", str(page)]) == 0
    assert "gpt2 (causal LM): passes" in capsys.readouterr().out
    assert "| gpt2 | passes |  | passes |" in page.read_text()
    monkeypatch.setattr(_census, "examine_apart", lambda name, use, seconds: row(name, use, "fails", "silent"))
    assert main(["gpt2", "--keep", str(tmp_path / "other.jsonl")]) == 1


PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"


def test_the_page_in_the_repository_has_150_and_no_bug():
    text = PAGE.read_text(encoding="utf-8")
    table = text.split("## All architectures")[1].split("##")[0]
    cells = [line.strip("| ").split(" | ")[:4] for line in table.splitlines()[4:] if line.startswith("|")]
    statuses = {cell for line in cells for cell in line[1:] if cell}
    assert statuses <= ALLOWED
    passing = sum("passes" in line[1:] for line in cells)
    assert passing >= 150
    assert f"**{passing} of {len(cells)} architectures pass" in text
    assert re.search(r"with transformers 5\.\d+", text)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_architecture(tmp_path):
    rows = census(architectures(), tmp_path / "kept.jsonl", jobs=2)
    assert {found.status for found in rows} <= ALLOWED, [found for found in rows if found.status not in ALLOWED]
    assert len({found.type for found in rows if found.status == "passes"}) >= 150
