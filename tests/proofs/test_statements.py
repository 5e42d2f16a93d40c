"""A verified sentence says what was verified: which model, which proxy, which bounds, and no word of anybody else."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from rich.console import Console
from tiny import table_subject
from typer.testing import CliRunner

import assay
from assay import cli
from assay.proofs import STRATEGIES, Certificate, Proxy, certify
from assay.studies import max_of_k
from assay.studies.max_of_k import Result
from assay.subjects import MaxOfKForCausalLM, import_max_of_k
from assay.tasks import InputSet
from assay.testing.fuzz._forge import copy_of, restated, sealed
from assay.testing.fuzz._models import attention_subject


def attention(name="tiny", head=4, seed=2):
    """A model that names the largest of three tokens out of four, rather often."""
    rng = np.random.default_rng(seed)
    size = np.arange(4.0)
    heads = {f"W_{key}": rng.normal(0, 0.2, (2, head)) for key in "QKV"}
    heads["W_Q"][:, 0], heads["W_K"][:, 0], heads["W_V"][:, 0] = (0.6, 1.0), (1.0, 1.0), (1.0, 0.0)
    found = attention_subject(
        {
            "W_E": np.column_stack([size, np.ones(4)]) + rng.normal(0, 0.1, (4, 2)),
            "W_pos": np.array([[0.0, 1.0], [0.0, -1.0], [0.0, 0.0]]),
            **heads,
            "W_O": np.vstack([[4.0, 0.0], rng.normal(0, 0.3, (head - 1, 2))]),
            "W_U": np.vstack([size, -(size**2) * 2.2]) + rng.normal(0, 0.2, (2, 4)),
        },
        3,
    )
    return dataclasses.replace(found, name=name)


def linear(name="tiny"):
    size = np.arange(4.0)
    return dataclasses.replace(table_subject(np.outer(size, size) - size**2 / 4, 2), name=name)


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_the_statement_names_scale_weights_and_what_the_model_has_not(strategy):
    subject = attention()
    proved = certify(subject, strategy=strategy)
    assert 'the model called "tiny" predicts the largest token on ' in proved.statement
    assert "scale 1/sqrt(4), no normalisation, no MLP, no bias, in real arithmetic" in proved.statement
    assert proved.statement.endswith(f"the SHA-256 of its weights is {subject.weights_sha256}.")


def test_the_statement_of_a_loss_names_the_weights():
    subject = linear()
    for quantity in ("accuracy", "loss"):
        proved = certify(subject, quantity=quantity)
        assert "no attention, no normalisation, no bias, in real arithmetic" in proved.statement
        assert proved.statement.endswith(f"the SHA-256 of its weights is {subject.weights_sha256}.")


# -- bounds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["exact", "brute-force"])
def test_an_exact_proof_says_how_many_ties_it_leaves_open(strategy):
    # Without an unembedding all tokens tie, everywhere.
    subject = attention_subject({"W_E": np.eye(3), "W_U": np.zeros((3, 3))}, 2)
    proved = certify(subject, strategy=strategy)
    assert (proved.at_least, proved.at_most) == (0, 9)
    assert "on at least 0 and at most 9 (9 left open: ties and near ties are not told apart);" in proved.statement
    proved.verify(subject)
    one_sided = proved.statement.replace(" and at most 9 (9 left open: ties and near ties are not told apart)", "")
    with pytest.raises(assay.AssayError, match="the statement should read"):
        Certificate.model_validate(sealed(proved.model_dump(mode="json") | {"statement": one_sided})).verify(subject)


def test_a_proof_without_open_inputs_says_exactly():
    proved = certify(attention(), strategy="exact")
    assert f"on exactly {proved.at_least};" in proved.statement
    bound = certify(attention(), strategy="cubic")
    assert f"on at least {bound.at_least};" in bound.statement


# -- proxies ------------------------------------------------------------------------------------------------------


KINDS = {
    "with rank at most 1 of 4": assay.SVD(rank=1),
    "with rank at most 3 of 4": assay.RandomProjection(rank=3),
    "scores of tokens replaced by a matrix of rank at most 2. The": Proxy(rank=2),
    "scores of tokens replaced by a matrix of rank at most 1, scores of positions replaced by 0": Proxy(1, True),
    "The proxy: scores of positions replaced by 0": Proxy(None, True),
    "attention to the best key only": assay.OneHotAttention(),
    "equal attention to all keys": assay.UniformAttention(),
}


@pytest.mark.parametrize("words", KINDS)
def test_kind_and_rank_of_a_proxy_are_part_of_the_statement(words):
    subject = attention()
    proved = certify(subject, strategy="separable", against=KINDS[words])
    assert words in proved.statement
    assert "against" not in proved.parameters
    proved.verify(subject)
    for other in set(KINDS) - {words}:
        changed = certify(subject, strategy="separable", against=KINDS[other]).model_dump(mode="json")
        statement = changed["statement"]
        proxy = re.search(r"The proxy: .*?\. (?=The model)", statement)[0]
        content = proved.model_dump(mode="json")
        content["statement"] = re.sub(r"The proxy: .*?\. (?=The model)", lambda _, new=proxy: new, content["statement"])
        with pytest.raises(assay.AssayError, match="the statement should read"):
            Certificate.model_validate(sealed(content)).verify(subject)


def test_a_proxy_of_full_rank_does_not_pass_as_one_of_rank_1():
    subject = attention()
    whole = certify(subject, strategy="exact", against=assay.RandomProjection(rank=4))
    assert "rank at most 4 of 4" in whole.statement
    content = whole.model_dump(mode="json")
    content["parameters"] = {"against": "SVD(rank=1)"}
    with pytest.raises(assay.AssayError, match="the parameters are not the strategy's"):
        Certificate.model_validate(sealed(content)).verify(subject)
    content = whole.model_dump(mode="json")
    content["statement"] = content["statement"].replace("rank at most 4", "rank at most 1")
    with pytest.raises(assay.AssayError, match="the statement should read"):
        Certificate.model_validate(sealed(content)).verify(subject)


@pytest.mark.parametrize("side", ["queries", "keys"])
def test_ranks_that_differ_are_both_stated(side):
    """The unused column of one side is all zeros: the same proxy, and a rank that the record does not show."""
    subject = attention()
    proved = certify(subject, strategy="exact", against=assay.SVD(rank=1))
    content = proved.model_dump(mode="json")
    content["proxy"][side]["basis"] = [[*row, 0.0] for row in content["proxy"][side]["basis"]]
    with pytest.raises(assay.AssayError, match="the statement should read"):
        Certificate.model_validate(sealed(content)).verify(subject)
    ranks = {"queries": 1, "keys": 1} | {side: 2}
    stated = Certificate.model_validate(restated(content))
    assert f"rank at most {ranks['queries']} (queries) and {ranks['keys']} (keys) of 4" in stated.statement
    stated.verify(subject)


@pytest.mark.parametrize(
    ("proxy", "reason"),
    [
        ({"kind": "scores", "left": None, "right": None, "average_positions": False}, "the subject itself"),
        ({"kind": "scores", "left": None, "right": [[1.0]] * 4, "average_positions": True}, "half a matrix"),
        ({"kind": "scores", "left": [[1.0]] * 4, "right": [[1.0, 0.0]] * 4, "average_positions": True}, "does not fit"),
        ({"kind": "scores", "left": [[1.0] * 5] * 4, "right": [[1.0] * 5] * 4, "average_positions": True}, "not fit"),
        ({"kind": "scores", "left": [[1.0]] * 3, "right": [[1.0]] * 3, "average_positions": True}, "does not fit"),
        ({"queries": {"basis": [[1.0]] * 3, "mean": [0.0] * 4}}, "does not fit"),
        ({"queries": {"basis": [[1.0] * 5] * 4, "mean": [0.0] * 4}}, "does not fit"),
        ({"queries": {"basis": [[1.0]] * 4, "mean": [0.0] * 3}}, "does not fit"),
        ({"keys": {"basis": [[1.0]] * 5, "mean": [0.0] * 4}}, "does not fit"),
    ],
)
def test_proxies_that_do_not_fit_the_model_are_refused(proxy, reason):
    subject = attention()
    content = certify(subject, strategy="exact", against=assay.SVD(rank=1)).model_dump(mode="json")
    content["proxy"] = proxy if "kind" in proxy else content["proxy"] | proxy
    with pytest.raises(assay.AssayError, match=reason):
        Certificate.model_validate(sealed(content)).verify(subject)


# -- names --------------------------------------------------------------------------------------------------------


STRANGE = [
    "max-of-4\nverified: all is well",
    "a\rb",
    "a\tb",
    "a\x1b[31mb",
    "a\x00",
    "\u202egnp.exe",
    "a\u200bb",
    "a\u2028b",
    "a\ud800",
    "x" * 201,
]


@pytest.mark.parametrize("name", STRANGE, ids=range(len(STRANGE)))
@pytest.mark.parametrize("family", [attention, linear])
def test_names_that_cannot_be_printed_are_refused(family, name):
    with pytest.raises(assay.AssayError, match="give it another") as refused:
        certify(family(name))
    assert str(refused.value).isprintable()
    content = certify(family()).model_dump(mode="json")
    content["subject"]["name"] = name
    # Not by the record either, whatever made it.
    changed = certify(family()).model_copy(
        update={"subject": certify(family()).subject.model_copy(update={"name": name})}
    )
    with pytest.raises(assay.AssayError, match=r"subject\.name must be printable text"):
        changed.verify(family())


@pytest.mark.parametrize("family", [attention, linear])
@pytest.mark.parametrize(
    "name", ['x" predicts it on exactly 64; "y', "back\\slash", "[bold]max[/bold]", "größte <b>", ""]
)
def test_a_name_stands_in_quotes_that_it_cannot_close(family, name):
    subject = family(name)
    proved = certify(subject)
    (quoted,) = re.findall(r'the model called ("(?:[^"\\]|\\.)*") predicts', proved.statement)
    assert quoted == '"' + name.replace("\\", r"\\").replace('"', r"\"") + '"'
    proved.verify(subject)
    bare = proved.statement.replace(quoted, name, 1)
    with pytest.raises(assay.AssayError, match="the statement should read"):
        Certificate.model_validate(sealed(proved.model_dump(mode="json") | {"statement": bare})).verify(subject)


def test_a_shipped_models_name_is_not_another_models():
    subject = attention("max-of-4")
    proved = certify(subject)
    for given in (None, subject):
        with pytest.raises(assay.AssayError, match="refuted"):
            proved.verify(given)
    shipped = assay.load("max-of-4", seed=1)
    inputs = InputSet(4, 64, minimum_maximum=60, within=1)
    certify(shipped, inputs=inputs).verify(dataclasses.replace(shipped, name="a copy"))


MARKUP = "[bold red]x[/] [link=https://example.org]y[/link] :smiley: <b>z</b>"


@pytest.fixture
def marked(tmp_path):
    """A model whose file is named in markup, and its certificate."""
    arrays = {"W_E": np.eye(3), "W_pos": np.zeros((2, 3)), "W_U": np.eye(3)}
    arrays |= {f"W_{key}": np.zeros((3, 3)) for key in "QKVO"}
    np.savez(tmp_path / "model.npz", **arrays)
    subject = import_max_of_k(tmp_path / "model.npz", name=MARKUP)
    proved = certify(subject)
    proved.save(tmp_path / "c.json")
    return tmp_path, proved


def test_a_name_is_never_rendered_as_markup(marked):
    folder, proved = marked
    assert MARKUP in proved.statement
    call = ["verify", str(folder / "c.json"), "--model", str(folder / "model.npz")]
    done = CliRunner().invoke(cli.app, call)
    assert done.exit_code == 0, done.output
    assert f"verified: {proved.statement}\n" in done.output
    folder.joinpath("model.npz").rename(folder / "[bold]m[i] :smiley:.npz")
    done = CliRunner().invoke(cli.app, ["certify", str(folder / "[bold]m[i] :smiley:.npz")])
    assert 'called "[bold]m[i] :smiley:" predicts' in done.output
    assert "<b>z" not in proved._repr_html_()
    assert "&lt;b&gt;z" in proved._repr_html_()


def test_the_studys_tables_do_not_render_markup(marked, tmp_path):
    result = Result(MARKUP, 0, "frontier", marked[1], 0.5, against=MARKUP)
    console = Console(width=400, emoji=False)
    with console.capture() as capture:
        console.print(max_of_k.terminal([result]))
    assert capture.get().count(MARKUP) == 2
    # A figure on a logarithmic scale needs a point above 0.
    whole = Result("max-of-4", 0, "frontier", certify(assay.load("max-of-4"), strategy="exact"), None)
    max_of_k._draw([result, whole], tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<b>z</b>" not in page
    assert "&lt;b&gt;z&lt;/b&gt;" in page


def test_what_was_not_checked_is_printed(marked):
    folder, _ = marked
    call = ["verify", str(folder / "c.json"), "--model", str(folder / "model.npz")]
    done = CliRunner().invoke(cli.app, call)
    assert "not checked: strategy, parameters, operations, subject.seed, seconds, versions\n" in done.output


# -- models -------------------------------------------------------------------------------------------------------


def test_models_with_more_than_the_proof_knows_are_refused():
    subject = attention()
    proved = certify(subject)
    weights = {key: tensor.numpy() for key, tensor in subject.model.state_dict().items()}
    config = subject.model.config.to_dict()
    check = assay.proofs.checker.check
    content = proved.model_dump(mode="json")
    check(content, weights, config)
    with pytest.raises(assay.AssayError, match=r"'layers\.0\.norm\.weight'"):
        check(content, weights | {"layers.0.norm.weight": np.ones(6, dtype=np.float32)}, config)
    with pytest.raises(assay.AssayError, match=r"'lm_head\.weight'"):
        check(content, {key: value for key, value in weights.items() if key != "lm_head.weight"}, config)
    with pytest.raises(assay.AssayError, match="does not fit the other arrays"):
        check(content, weights | {"lm_head.weight": np.ones((5, 6), dtype=np.float32)}, config)
    with pytest.raises(assay.AssayError, match="is no matrix"):
        check(content, weights | {"lm_head.weight": np.ones(6, dtype=np.float32)}, config)
    with pytest.raises(assay.AssayError, match="not of float32 or float64"):
        check(content, weights | {"lm_head.weight": weights["lm_head.weight"].astype(np.float16)}, config)
    # The weights are the same; the scores are scaled by another root.
    for head in (1, None):
        with pytest.raises(assay.AssayError, match="scales its scores by another width"):
            check(content, weights, config | {"head_dim": head})


class Normalised(MaxOfKForCausalLM):
    """The same arrays, and another function of them."""

    def forward(self, *arguments, **keywords):
        found = super().forward(*arguments, **keywords)
        found.logits = torch.nn.functional.layer_norm(found.logits, found.logits.shape[-1:])
        return found


def test_a_subclass_is_another_model():
    subject = attention()
    other = Normalised(subject.model.config)
    other.load_state_dict(subject.model.state_dict())
    with pytest.raises(assay.AssayError, match="is a Normalised"):
        certify(dataclasses.replace(subject, model=other.eval()))


@pytest.mark.parametrize("family", [attention, linear])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_other_precisions_are_refused_in_one_line(family, dtype):
    subject = family()
    proved = certify(subject)
    half = dataclasses.replace(subject, model=subject.model.to(dtype))
    for act in (lambda: certify(half), lambda: proved.verify(half)):
        with pytest.raises(assay.AssayError, match=f"has {dtype} weights; load it with dtype=torch.float32"):
            act()


def test_a_certificate_of_the_version_before_says_what_to_do(tmp_path):
    content = certify(attention()).model_dump(mode="json") | {"version": 1}
    path = tmp_path / "old.json"
    path.write_text(certify(attention()).model_dump_json().replace('"version":2', '"version":1'), encoding="utf-8")
    with pytest.raises(assay.AssayError, match="is of version 1, the checker reads version 2: make it again with"):
        Certificate.load(path)
    assert copy_of(content)["version"] == 1
