"""The checker refuses whatever was altered."""

import numpy as np
import pytest
import torch
from tiny import barely_tied

import assay
from assay.proofs import Certificate, Proxy, certify
from assay.tasks import InputSet
from assay.testing.fuzz._forge import consistent, copy_of, restated, sealed

NAMES = ["exact", "separable", "two-sided", "cubic", "subcubic", "agreement", "hard", "projected"]


@pytest.fixture(scope="module")
def subject():
    return assay.subjects.load("max-of-4")


@pytest.fixture(scope="module")
def certificates(subject):
    near = InputSet(4, 64, minimum_maximum=40, within=2)
    return {
        "exact": certify(subject, strategy="exact", inputs=near),
        "separable": certify(subject, strategy="separable", inputs=near, grid=64, search=0),
        "cubic": certify(subject, strategy="cubic", inputs=near),
        "subcubic": certify(subject, strategy="subcubic", inputs=InputSet(4, 64, minimum_maximum=60)),
        "two-sided": certify(subject, strategy="separable", inputs=near, grid=64, search=0, two_sided=True),
        "hard": certify(subject, strategy="separable", inputs=near, grid=64, search=0, against=assay.OneHotAttention()),
        "projected": certify(subject, strategy="exact", inputs=near, against=assay.SVD(rank=1)),
        "agreement": certify(subject, strategy="separable", inputs=near, against=Proxy(rank=1), grid=64),
    }


def leaves(value, path=()):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list) and value:
        yield from leaves(value[0], (*path, 0))
        if len(value) > 1:
            yield from leaves(value[-1], (*path, len(value) - 1))
    else:
        yield path, value


def altered(content, path, value):
    whole = target = copy_of(content)
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return whole


def another(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    return 1 if value is None else None


@pytest.mark.parametrize("name", NAMES)
def test_every_field_is_covered_by_the_digest(certificates, subject, name):
    content = certificates[name].model_dump(mode="json")
    certificates[name].verify(subject)
    for path, value in leaves(content):
        try:
            changed = Certificate.model_validate(altered(content, path, another(value)))
        except ValueError:
            continue
        with pytest.raises(assay.AssayError, match="refuted"):
            changed.verify(subject)


def field(path):
    """A place in a certificate as the checker names it."""
    return ".".join(path[:2]) if path[0] == "subject" else path[0]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_checked_is_said(certificates, subject, name):
    content = certificates[name].model_dump(mode="json")
    not_checked = certificates[name].verify(subject)
    assert not_checked == ("strategy", "parameters", "operations", "subject.seed", "seconds", "versions")
    for path, value in leaves(content):
        if field(path) in not_checked and path[0] != "strategy":
            Certificate.model_validate(sealed(altered(content, path, another(value)))).verify(subject)
    if name == "exact":
        other = {"strategy": "separable", "parameters": dict.fromkeys(("grid", "refine", "search", "two_sided"), 1)}
        Certificate.model_validate(restated(content | other)).verify(subject)


@pytest.mark.parametrize("name", NAMES)
def test_a_forger_who_renews_the_digest_is_refuted(certificates, subject, name):
    content = certificates[name].model_dump(mode="json")
    not_checked = (*certificates[name].verify(subject), "digest")
    forged = 0
    for path, value in leaves(content):
        if (field(path) in not_checked and path[0] != "strategy") or (path[0] == "proxy" and path[-1] != "kind"):
            continue
        try:
            changed = Certificate.model_validate(sealed(altered(content, path, another(value))))
        except ValueError:
            continue
        if {"tops", "powers", "multipliers"} & set(path):
            # Another relaxation may be as good a proof; it must not be a better one.
            continue
        forged += 1
        try:
            changed.verify(subject)
        except assay.AssayError as error:
            refuted = "refuted" in str(error)
        else:
            refuted = False
        assert refuted, f"{path} = {another(value)!r} instead of {value!r} was verified"
    assert forged >= 15


@pytest.mark.parametrize("name", NAMES)
def test_a_better_bound_than_proved_is_refuted(certificates, subject, name):
    content = certificates[name].model_dump(mode="json")
    content["at_least"] += 1
    content["at_most"] = max(content["at_most"], content["at_least"])
    if content["pieces"]:
        content["pieces"][0]["wrong"] -= 1
    with pytest.raises(assay.AssayError, match="refuted"):
        Certificate.model_validate(restated(content)).verify(subject)


def test_tops_just_below_the_contributions_do_not_hide_a_tie():
    """Every contribution may exceed its top by the checker's own leeway; three of them exceed by more than one's."""
    subject, inputs = barely_tied(), InputSet(4, 2, minimum_maximum=1)
    content = certify(subject, strategy="separable", inputs=inputs, search=0).model_dump(mode="json")
    piece = content["pieces"][-1]
    assert (piece["last"], piece["maximum"], piece["wrong"]) == (1, 1, 1)
    piece["relaxations"][0].update(count=0, tops=[64] * 3, powers=[0], multipliers=[1])
    piece["wrong"] = 0
    with pytest.raises(assay.AssayError, match="a relaxation holds 1 inputs"):
        Certificate.model_validate(consistent(content)).verify(subject)


def test_conditions_that_no_set_has_are_refuted():
    inputs = InputSet(4, 2)
    object.__setattr__(inputs, "copies", 0)
    proved = certify(barely_tied(), strategy="brute-force", inputs=inputs)
    with pytest.raises(assay.AssayError, match=r"inputs\.copies must be a whole number of at least 1"):
        proved.verify(barely_tied())
    for condition in ({"minimum_maximum": 2}, {"copies": 5}):
        content = certify(barely_tied(), strategy="brute-force").model_dump(mode="json")
        content["inputs"] |= condition
        with pytest.raises(assay.AssayError, match="a condition of the set of inputs is out of range"):
            Certificate.model_validate(sealed(content)).verify(barely_tied())


@pytest.mark.parametrize("strategy", ["cubic", "subcubic", "subcubic-low-rank"])
def test_a_box_for_a_number_of_copies_that_the_set_does_not_have_is_refuted(subject, strategy):
    content = certify(subject, strategy=strategy, inputs=InputSet(4, 64, minimum_maximum=62, copies=2)).model_dump(
        mode="json"
    )
    assert content["at_least"] > 0
    for box in content["boxes"]:
        smaller = 2 - (box["last"] != box["maximum"])
        assert not any(mask for number, mask in enumerate(box["tokens"]) if number != smaller)
    content["boxes"][-1]["tokens"][0] = 1 << content["boxes"][-1]["maximum"]
    with pytest.raises(assay.AssayError, match="has a number of copies that the set does not"):
        Certificate.model_validate(sealed(content)).verify(subject)


def test_a_group_left_out_is_refuted(certificates, subject):
    content = certificates["separable"].model_dump(mode="json")
    content["pieces"] = content["pieces"][1:]
    with pytest.raises(assay.AssayError, match="not shown to be right"):
        Certificate.model_validate(consistent(content)).verify(subject)


def test_an_output_left_out_of_a_relaxation_is_refuted(certificates, subject):
    content = certificates["agreement"].model_dump(mode="json")
    piece = next(piece for piece in content["pieces"] if len(piece["relaxations"][0]["outputs"]) > 1)
    for key in ("outputs", "multipliers", "powers"):
        piece["relaxations"][0][key].pop()
    with pytest.raises(assay.AssayError, match="an output that could win is left out"):
        Certificate.model_validate(consistent(content)).verify(subject)


def test_other_weights_are_refuted(certificates, subject):
    with pytest.raises(assay.AssayError, match="weights"):
        certificates["exact"].verify(assay.subjects.load("max-of-4", seed=1))


def test_files(certificates, tmp_path):
    certificates["exact"].save(tmp_path / "c.json")
    again = Certificate.load(tmp_path / "c.json")
    assert again == certificates["exact"]
    again.verify()
    (tmp_path / "bad.json").write_text("{}", encoding="utf-8")
    with pytest.raises(assay.AssayError, match="not a certificate"):
        Certificate.load(tmp_path / "bad.json")
    with pytest.raises(assay.AssayError, match="no file"):
        Certificate.load(tmp_path / "missing.json")


def test_the_shipped_model_by_brute_force_in_float64(subject):
    """All 64^4 inputs of the shipped model, one last token in eight, by an ordinary softmax."""
    state = {key: value.double() for key, value in subject.model.state_dict().items()}
    proved = certify(subject, strategy="exact")
    assert proved.at_least == proved.at_most
    E, P = state["embed_tokens.weight"], state["embed_positions.weight"][:4]
    Q, K, V, O = (state[f"layers.0.attn.{n}_proj.weight"] for n in "qkvo")  # noqa: E741
    wrong = {}
    grid = torch.cartesian_prod(*[torch.arange(64)] * 2)
    for q in (0, 17, 33, 63):
        query = (E[q] + P[3]) @ Q.T / 32**0.5
        score = torch.stack([query @ (K @ (E + P[p]).T) for p in range(4)])
        value = torch.stack([(E + P[p]) @ V.T @ O.T @ state["lm_head.weight"].T for p in range(4)])
        direct = (E[q] + P[3]) @ state["lm_head.weight"].T
        count = np.zeros(64, dtype=int)
        for first in range(64):
            tokens = torch.cat([torch.full((len(grid), 1), first), grid, torch.full((len(grid), 1), q)], dim=1)
            pattern = torch.softmax(score[torch.arange(4), tokens], dim=1)
            logits = direct + torch.einsum("bp,bpx->bx", pattern, value[torch.arange(4), tokens])
            largest = tokens.max(dim=1).values
            own = logits.gather(1, largest[:, None])
            beaten = (logits >= own).sum(dim=1) > 1
            count += np.bincount(largest[beaten].numpy(), minlength=64)
        wrong |= {(q, m): int(n) for m, n in enumerate(count) if n}
    found = {(p.last, p.maximum): p.wrong for p in proved.pieces if p.last in (0, 17, 33, 63) and p.wrong}
    assert found == wrong
