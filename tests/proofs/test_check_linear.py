"""The checker refuses whatever was altered in a certificate about a linear model."""

import numpy as np
import pytest
from test_check import altered, another, field, leaves
from tiny import table_subject

import assay
from assay.proofs import LINEAR_STRATEGIES, Certificate, certify
from assay.proofs.linear._proof import packed
from assay.tasks import InputSet
from assay.testing.fuzz._forge import copy_of, restated, sealed

QUESTIONS = [(strategy, quantity) for strategy in LINEAR_STRATEGIES for quantity in ("accuracy", "loss")]


@pytest.fixture(scope="module")
def subject():
    # Nearly right: the logit of x is t x - x² / 4 plus noise.
    size = np.arange(7.0)
    noise = np.random.default_rng(4).normal(0, 0.4, (7, 7))
    return table_subject(np.outer(size, size) - size**2 / 4 + noise, 3)


@pytest.fixture(scope="module")
def certificates(subject):
    inputs = InputSet(3, 7, minimum_maximum=2, within=4)
    blocks = {"width": 2, "top": 2, "refine": 5}
    return {
        (strategy, quantity): certify(
            subject,
            strategy=strategy,
            quantity=quantity,
            inputs=inputs,
            **(blocks if strategy == "blocks" else {}),
        )
        for strategy, quantity in QUESTIONS
    }


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_field_is_covered_by_the_digest(certificates, subject, question):
    content = certificates[question].model_dump(mode="json")
    certificates[question].verify(subject)
    for path, value in leaves(content):
        try:
            changed = Certificate.model_validate(altered(content, path, another(value)))
        except ValueError:
            continue
        with pytest.raises(assay.AssayError, match="refuted"):
            changed.verify(subject)


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_forger_who_renews_the_digest_is_refuted(certificates, subject, question):
    content = certificates[question].model_dump(mode="json")
    not_checked = certificates[question].verify(subject)
    assert not_checked == ("subject.seed", "seconds", "versions")
    forged = 0
    for path, value in leaves(content):
        if field(path) in (*not_checked, "digest") or (question[1] == "loss" and path[0] in ("at_least", "at_most")):
            continue
        try:
            changed = Certificate.model_validate(sealed(altered(content, path, another(value))))
        except ValueError:
            continue
        forged += 1
        with pytest.raises(assay.AssayError, match="refuted"):
            changed.verify(subject)
    assert forged >= 12


def resealed(content, **changes):
    return Certificate.model_validate(restated(copy_of(content) | changes))


@pytest.mark.parametrize("strategy", LINEAR_STRATEGIES)
def test_a_better_loss_than_proved_is_refuted(certificates, subject, strategy):
    content = certificates[strategy, "loss"].model_dump(mode="json")
    resealed(content).verify(subject)
    step = 2**50 // 10**10
    with pytest.raises(assay.AssayError, match="may be larger"):
        resealed(content, at_most=content["at_most"] - step).verify(subject)
    with pytest.raises(assay.AssayError, match="may be smaller"):
        resealed(content, at_least=content["at_least"] + step).verify(subject)
    with pytest.raises(assay.AssayError, match="may be smaller"):
        resealed(content, at_least=-1).verify(subject)


@pytest.mark.parametrize("question", QUESTIONS)
def test_another_strategy_name_is_refuted(certificates, subject, question):
    content = certificates[question].model_dump(mode="json")
    for strategy in (*LINEAR_STRATEGIES, "cubic", "exact"):
        if strategy != question[0]:
            with pytest.raises(assay.AssayError, match="refuted"):
                Certificate.model_validate(sealed(content | {"strategy": strategy})).verify(subject)


def test_kept_outputs_other_than_those_recorded(certificates, subject):
    """Another choice of outputs is another proof; it is verified only if it proves what is claimed."""
    content = certificates["blocks", "loss"].model_dump(mode="json")
    kept = np.eye(7, dtype=bool)
    kept[np.arange(7), (np.arange(7) + 3) % 7] = True
    worse = content["blocks"] | {"kept": packed(kept)}
    with pytest.raises(assay.AssayError, match=r"may be (smaller|larger)"):
        resealed(content, blocks=worse).verify(subject)
    for key, text in (("kept", ""), ("kept", "@"), ("refined", packed(np.ones(3, dtype=bool)))):
        with pytest.raises(assay.AssayError, match="refuted"):
            resealed(content, blocks=content["blocks"] | {key: text}).verify(subject)


def test_parameters_that_are_no_numbers_are_refuted(certificates, subject):
    for question, key in ((("blocks", "accuracy"), "refine"), (("gemm", "accuracy"), "direct")):
        content = certificates[question].model_dump(mode="json")
        content["parameters"][key] = str(content["parameters"][key])
        with pytest.raises(assay.AssayError, match="not a number"):
            resealed(content).verify(subject)


def test_other_weights_and_other_families_are_refuted(certificates, subject):
    other = table_subject(np.eye(7), 3)
    with pytest.raises(assay.AssayError, match="weights"):
        certificates["gemm", "loss"].verify(other)
    content = certificates["gemm", "accuracy"].model_dump(mode="json")
    content["subject"]["architecture"] = "MaxOfKForCausalLM"
    with pytest.raises(assay.AssayError, match="refuted"):
        Certificate.model_validate(sealed(content)).verify(subject)


def test_a_model_that_reads_another_number_of_tokens_is_refuted(certificates, subject):
    # The weights are the same, the configuration is not.
    shorter = table_subject(subject.model.embed_tokens.weight.detach().numpy(), 2)
    with pytest.raises(assay.AssayError, match="number of tokens"):
        certificates["gemm", "loss"].verify(shorter)


def test_files_keep_loss_bounds(certificates, subject, tmp_path):
    certificates["blocks", "loss"].save(tmp_path / "c.json")
    again = Certificate.load(tmp_path / "c.json")
    assert again == certificates["blocks", "loss"]
    assert again.low <= again.high
    again.verify(subject)
