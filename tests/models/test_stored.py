"""A model that was stored is judged as it is in memory, on what it was stored on and on nothing else."""

import copy

import pytest
import torch

import assay
from assay import AssayError, OtherModel
from assay.models import StoredModel, is_stored, store_model
from assay.subjects import Subject

QUICK = {"sequences": 20, "resamples": 100}


@pytest.fixture(scope="module")
def base():
    return assay.load("code-python")


@pytest.fixture(scope="module")
def other(base):
    model = copy.deepcopy(base.model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * parameter.std(correction=0) * torch.randn(parameter.shape, generator=generator))
    return Subject(model, base.tokenizer, "other")


@pytest.fixture(scope="module")
def text(base):
    lines = [f"def f{n}(a, b):\n    return a{n} + {n} if a else 'b{n}'" for n in range(24)]
    return assay.tasks.Text(base.tokenizer, None, lines[:12], {"other": lines[12:]}, max_length=48)


def splits(text):
    return [text.split(name, 20) for name in text.split_names]


def numbers(comparison, proxy):
    rows = comparison.results.query("proxy == @proxy and kind == 'all' and feature == ''")
    return {(row["metric"], row["split"]): row["estimate"] for row in rows.to_dict("records")}


@pytest.mark.parametrize(("form", "close"), [("float32", 1e-6), ("16-bit", 1e-4)])
def test_it_scores_as_it_does_in_memory(base, other, text, tmp_path, form, close):  # noqa: PLR0917
    store_model(other, splits(text), tmp_path / "stored", form=form)
    assert is_stored(tmp_path / "stored")
    recipes = [StoredModel(tmp_path / "stored"), OtherModel(other)]
    comparison = assay.compare(base, text, recipes, **QUICK)
    kept, there = numbers(comparison, "stored"), numbers(comparison, "other")
    assert kept.keys() == there.keys()
    for place, value in there.items():
        if place[0] == "attention_jsd":
            assert kept[place] != kept[place], "nothing is known of its attention"
        else:
            assert kept[place] == pytest.approx(value, rel=1e-3, abs=close), place
    assert there["kl", "iid"] > 1e-3
    record = next(item for item in comparison.record.proxies if item.proxy == "stored")
    assert record.about["weights_sha256"] == other.weights_sha256
    assert [warning for warning in comparison.warnings() if "read from a store" in warning]


def test_a_stopped_writer_goes_on(base, text, tmp_path):
    class StoppedError(Exception):
        pass

    def stop(name, done, total):
        if name == "other":
            raise StoppedError

    with pytest.raises(StoppedError):
        store_model(base, splits(text), tmp_path, progress=stop)
    store_model(base, splits(text), tmp_path)
    [verdict] = assay.compare(base, text, [StoredModel(tmp_path, "again")], **QUICK).verdicts()
    assert verdict.agreement == 1


def test_other_text_and_a_missing_split_are_refused_before_any_work(base, text, tmp_path):
    store_model(base, splits(text)[:1], tmp_path / "one")
    with pytest.raises(AssayError, match=r"holds no split 'other' \(it has iid\)"):
        assay.compare(base, text, [StoredModel(tmp_path / "one")], folder=tmp_path / "run", **QUICK)
    longer = assay.tasks.Text(base.tokenizer, None, ["x = 1", "y = 2"], {"other": ["z = 3", "w = 4"]}, max_length=48)
    store_model(base, splits(text), tmp_path / "both")
    with pytest.raises(AssayError, match="is not of split 'iid' but of other"):
        assay.compare(base, longer, [StoredModel(tmp_path / "both")], folder=tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()


def test_it_is_no_proxy_by_itself(base, tmp_path):
    with pytest.raises(AssayError, match="let compare\\(\\) judge it"):
        StoredModel(tmp_path).apply(base)


def test_on_the_command_line(command, base, text, tmp_path):
    for name in ("iid", "prose"):
        (tmp_path / f"{name}.txt").write_text("\n".join(f"{name} {n} is a line" for n in range(8)), encoding="utf-8")
    given = [part for name in ("iid", "prose") for part in ("--split", f"{name}={tmp_path / name}.txt")]
    given += ["--sequences", 8, "--max-length", 24]
    status, out, err = command("store", "code-python", *given, "--out", tmp_path / "kept")
    assert status == 0, err
    assert "log-probabilities are in" in out
    status, out, err = command(
        "compare", "code-python", "--with", tmp_path / "kept", *given, "--out", tmp_path / "run",
        "--min-agreement", "0.5", "--max-gap", "0.9", "--require", "faithful",
    )  # fmt: skip
    assert status == 0, err
    assert "kept at model: FAITHFUL" in " ".join(out.split())
    status, _, err = command("store", "code-python", *given, "--out", tmp_path / "kept", "--form", "bfloat16")
    assert status != 0
    assert "bfloat16" in err


def test_a_kl_that_the_store_could_have_made_itself_is_skipped(base, text, tmp_path):
    """A copy that differs by less than the codes lose: in memory its KL is told, from the store it is skipped."""
    model = copy.deepcopy(base.model)
    with torch.no_grad():
        next(model.parameters()).mul_(1 + 1e-5)
    near = Subject(model, base.tokenizer, "near")
    for form in ("16-bit", "float32"):
        store_model(near, splits(text), tmp_path / form, form=form)
    recipes = [StoredModel(tmp_path / "16-bit"), StoredModel(tmp_path / "float32"), OtherModel(near)]
    comparison = assay.compare(base, text, recipes, folder=tmp_path / "run", **QUICK)
    told = numbers(comparison, "near")["kl", "iid"]
    codes = comparison.record.proxies[0].about["self_kl"]
    assert 0 < told < 10 * codes["iid"]
    assert codes.keys() == {"iid", "other"}
    rows = comparison.results
    for metric in ("kl", "kl_reverse", "jsd"):
        kept = rows[(rows["proxy"] == "16-bit") & (rows["metric"] == metric) & (rows["split"] == "iid")]
        assert len(kept) == 3, "all, repeated and new"
        assert kept[["estimate", "low", "high"]].isna().all(axis=None)
        assert kept["reason"].str.startswith("skipped: below 10 times").all()
        in_memory = numbers(comparison, "near")[metric, "iid"]
        assert numbers(comparison, "float32")[metric, "iid"] == pytest.approx(in_memory, rel=0.1)
    assert numbers(comparison, "16-bit")["same_prediction", "iid"] == 1
    gaps = comparison.gaps("kl").set_index("proxy")
    assert gaps.loc["16-bit", ["gap", "low", "p", "matched"]].isna().all()
    assert "below 10 times" in gaps.loc["16-bit", "matched_reason"]
    assert gaps.loc["near", ["gap", "low"]].notna().all()
    models = comparison.models().query("kind == 'all' and split == 'iid'").set_index("proxy")
    assert models.loc["16-bit", ["kl_50", "kl_99", "kl_max", "design_effect"]].isna().all()
    assert "below 10 times" in models.loc["16-bit", "kl_reason"]
    assert models.loc["near", ["kl_50", "kl_max"]].notna().all()
    kept = comparison.sequence_scores().to_pandas()
    assert "kl" not in set(kept[kept["proxy"] == "16-bit"]["metric"])
    assert "kl" in set(kept[kept["proxy"] == "near"]["metric"])
    again = assay.compare(base, text, recipes, folder=tmp_path / "run", **QUICK)
    assert again.results.equals(comparison.results), "read again from its cells"
