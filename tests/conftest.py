"""Shapes in signatures are checked while the tests run, and one small trained-like subject serves them all."""

from pathlib import Path

from jaxtyping import install_import_hook

SOURCE = Path(__file__).parents[1] / "src"

# Only where shapes are stated: being asked costs a call some microseconds, of which the whole suite makes millions.
install_import_hook(
    [
        ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        for path in sorted((SOURCE / "assay").rglob("*.py"))
        if "from jaxtyping import" in path.read_text(encoding="utf-8")
    ],
    "beartype.beartype",
)

import pytest  # noqa: E402
import torch  # noqa: E402

from assay import cli  # noqa: E402
from assay.engine import Engine, Samples, collect  # noqa: E402
from assay.subjects import Subject, dyck_model  # noqa: E402
from assay.tasks import Dyck  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _gradients_stay_on():
    """Nothing may leave gradients off, or another test (and a user's training) finds none."""
    yield
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


@pytest.fixture(scope="session")
def task() -> Dyck:
    """A small Dyck language that is quick to generate."""
    return Dyck(brackets=4, max_depth=4, deeper=8, training_sentences=2_000, max_brackets=60)


@pytest.fixture(scope="session")
def subject(task: Dyck) -> Subject:
    """A random model of the task, its weights large enough for its attention to be far from uniform."""
    model = dyck_model(task, seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "c_attn.weight" in name or "wte" in name:
                parameter.mul_(12)
    return Subject(model.eval(), task.tokenizer(), "random-dyck", seed=0)


@pytest.fixture(scope="session")
def engine(subject: Subject) -> Engine:
    return Engine(subject)


@pytest.fixture(scope="session")
def samples(engine: Engine, task: Dyck) -> Samples:
    return collect(engine, task.split("train", 200), ("queries", "keys"))


@pytest.fixture
def command(monkeypatch, capsys):
    """command("list", "--json") -> (exit status, stdout, stderr), through main()."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["assay", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code or 0
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call
